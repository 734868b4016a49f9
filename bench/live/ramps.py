"""Runs ramps on an engine that is started here, or on one that serves already, and writes docs/load-headroom.md."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sections
from live import subject
from live.client import Client
from live.exporter import Exporter
from live.ramp import (
    FILLED_SECONDS,
    GROWTH,
    LEARNED_AT,
    LEAST_ASKED,
    POLL_SECONDS,
    STEP_SECONDS,
    Load,
    Mix,
    Ramp,
    filled,
    idle,
    ramp,
    section,
)
from live.share import held

if TYPE_CHECKING:
    from collections.abc import Sequence

    from live.install import Folder

PAGE: Final = Path(__file__).parents[2] / "docs" / "load-headroom.md"
BEFORE: Final = "## Where it fails"
AT_ONCE: Final = 24
"""Requests under way while the engine is filled."""
MIXES: Final = (Mix(400, 8), Mix(40, 60), Mix(200, 40))
"""Prefill, decoding, both; for a context of 1024 tokens."""
HOW: Final = (
    "An engine is kept full for {fill:.0f} s, which says roughly how much it takes. An exporter that has just started "
    "then watches it at 30 % of that, with Poisson arrivals, prompts of half to one and a half times the mean and "
    "exponential answers, until it has a load headroom: that takes ten busy minutes, and there is no shorter honest "
    "way. Then arrivals grow by {growth:.0%} every {step:.0f} s, or after {least:.0f} requests where they are few, "
    "until more than 5 % of the first tokens that a client sees are later than the objective; the limit lies between "
    "the last two steps, by their slow shares. What else runs on the machine meanwhile, and the luck of so few "
    "requests, is in it."
)


@dataclass(frozen=True, slots=True)
class Running:
    """An engine that serves; `limit` are the requests that it runs at once, None where it is not known."""

    url: str
    engine: str
    model: str
    place: str
    limit: int | None = None


def size(text: str) -> Mix:
    """A mix as `PROMPT+ANSWER`. Raises ValueError if it is none."""
    prompt, answer = text.split("+")
    return Mix(int(prompt), int(answer))


async def _each(engine: Running, mixes: Sequence[Mix], folder: Path, page: Path) -> None:
    program = Path(sys.executable).with_name("llm-headroom")
    found: list[Ramp] = []
    for mix in mixes:
        client = Client(engine.url)
        try:
            objective = await idle(client, mix, engine.model)
            most = await filled(client, mix, engine.model, AT_ONCE)
            print(f"{mix.prompt} + {mix.answer}: {most:.2f} requests/s when full, {objective:g} s", flush=True)
            chance = random.Random(2)  # noqa: S311 - traffic, not security
            load = Load(client, mix, engine.model, chance, LEARNED_AT * most)
            with Exporter(
                program,
                folder,
                engine=engine.engine,
                url=engine.url,
                limit=engine.limit,
                interval=POLL_SECONDS,
                objective=objective,
            ) as exporter:
                found.append(await ramp(load, exporter, objective))
        finally:
            await client.close()
        part = written(engine, found)
        print(part, flush=True)
        sections.put(part, page, BEFORE)


def written(engine: Running, ramps: Sequence[Ramp]) -> str:
    """The engine's section of the document."""
    how = HOW.format(fill=FILLED_SECONDS, growth=GROWTH - 1, step=STEP_SECONDS, least=LEAST_ASKED)
    title = f"On a real engine: {engine.engine} on {engine.place}"
    return "\n".join(section(title, f"Run on {time.strftime('%Y-%m-%d')}. {how}", ramps))


def run(folder: Folder, mixes: Sequence[Mix], running: Running | None, cores: float | None, page: Path = PAGE) -> None:
    """Run the ramps and replace the engine's section of the document."""
    with ExitStack() as stack:
        if running is None:
            found = subject.vllm_for_ramps(folder)
            server = stack.enter_context(found.server(folder.path))
            place = f"CPUs with {found.places} places"
            if cores is not None:
                stack.enter_context(held(server.pid, cores))
                place += f", held to {cores:g} of a core"
            running = Running(server.url, found.name, found.model, place, found.places)
        asyncio.run(_each(running, mixes, folder.path, page))
