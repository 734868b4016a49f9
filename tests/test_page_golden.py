"""The status page and its JSON, byte for byte, of engines and a GPU that expose every metric of the schema.

`pytest --update` writes the files; review the diff.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import every_series
from llm_headroom.config.people import Links
from llm_headroom.model import ENGINE_STATES, GPU_STATES, Cause, Failure, Health, Judged, Snapshot, Subject
from llm_headroom.view import board
from llm_headroom.view.history import History
from llm_headroom.view.values import Missing, as_json
from llm_headroom.web.look import Look
from llm_headroom.web.page import Painter, page

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_headroom.model import State
    from llm_headroom.view.day import Minute
    from llm_headroom.view.values import EngineCard, GpuCard, View

FOLDER: Final = Path(__file__).parent / "fixtures" / "pages"
BEGIN: Final = every_series.END - 600.0
STEP: Final = 5.0
ROUNDS: Final = 30
LINKS: Final = Links(docs="https://d/", runbooks="https://r/", grafana="https://g/", prometheus="https://p/")
SAME: Final = {
    "vllm": ("one:8000", Subject.ENGINE),
    "ollama": ("two:11434", Subject.ENGINE),
    "sglang_router": ("one:8000", Subject.ROUTER),
    "nvml": ("", Subject.GPU),
}
"""Of which target, and as what, an engine exposes the series."""
UNITS: Final = "ms|s|min|h|d|B|[KMGT]iB|W|°C"
TITLES: Final = {"vllm": "vLLM", "ollama": "Ollama", "sglang_router": "Router", "nvml": "NVML"}


def snapshot(engine: str, target: str, step: int, state: State) -> Snapshot:
    """One of the sources after so many polls; the last engine is down in the end."""
    at = BEGIN + STEP * step
    models = {"vllm": ("m",), "ollama": ("n",)}.get(engine, ("",))
    gpu = {"gpu": "0", "uuid": "GPU-a"} if engine == "nvml" else {}
    judged = tuple(
        Judged(state=state, reason="31 of 36 came <late>", since=BEGIN + 60.0, model=model, **gpu) for model in models
    )
    health = Health(up=True, last_success=at, duration_seconds=0.012, version="1.2", warnings=())
    points = every_series.points("a", *SAME[engine], step)
    if target == "down" and step == ROUNDS - 1:
        error = Failure(Cause.REFUSED, "http://x: the connection was refused")
        points, health = (), Health(up=False, error=error, last_success=at - STEP)
    return Snapshot(target=target, engine=engine, taken=at, points=points, health=health, states=judged)


def shown(copies: int) -> tuple[View, History]:
    """The view of so many of each engine, one of them down, and two GPUs."""
    history = History()
    sources = [
        *(("vllm", f"v{at}", ENGINE_STATES[at % len(ENGINE_STATES)]) for at in range(copies)),
        *(("ollama", f"o{at}", ENGINE_STATES[-1 - at % len(ENGINE_STATES)]) for at in range(copies)),
        ("sglang_router", "router", ENGINE_STATES[-1]),
        ("vllm", "down", ENGINE_STATES[0]),
        ("nvml", "gpus", GPU_STATES[0]),
    ]
    for step in range(ROUNDS):
        last = [snapshot(engine, target, step, state) for engine, target, state in sources]
        history.record(last)
    missing = (Missing("does not expose it", ("llm_x", "llm_y")),)
    made = [(one, board.cards(one, history, TITLES, lambda _: missing, {"team": "<search>"})) for one in last]
    return board.assembled(made, {"GPUs": "libnvidia-ml.so.1 not found"}, BEGIN + STEP * ROUNDS, ["a notice"]), history


def check(name: str, found: str, *, update: bool) -> None:
    """Compare with a file, tag by tag."""
    found = found.replace("><", ">\n<") + "\n"
    file = FOLDER / name
    if update:
        file.parent.mkdir(exist_ok=True)
        file.write_text(found, encoding="utf-8")
    assert found == file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "copies", "look"),
    [
        ("cards.html", 1, Look()),
        ("day.html", 1, Look(day=True)),
        ("table.html", 5, Look()),
    ],
)
def test_a_page_is_what_it_was(name: str, copies: int, look: Look, update: bool) -> None:  # noqa: FBT001 - a fixture
    view, history = shown(copies)

    def minutes(card: EngineCard | GpuCard, now: float, count: int) -> Iterable[Minute]:
        key = getattr(card, "uuid", "") or getattr(card, "model", "")
        return history.minutes(card.source.target, key, now, count)

    parts = Painter(minutes, lambda: LINKS).parts(view, look)
    found = page("1.2.3", parts, LINKS).body.decode()
    check(name, found, update=update)
    apart = re.findall(rf"\d(?:</b>)? (?:<small>)?(?:{UNITS})\b.{{20}}", found)
    assert not apart, "no line ends between a number and its unit"
    assert len(re.findall(rf"\d(?:</b>)?\N{{NO-BREAK SPACE}}(?:{UNITS})\b", found)) > 20


def test_the_json_is_what_it_was(update: bool) -> None:  # noqa: FBT001 - a fixture
    view, _ = shown(1)
    found = as_json(view)
    found.pop("version")
    check("snapshot.json", json.dumps(found, indent=1, ensure_ascii=False), update=update)
