"""Memory: nothing of targets that went stays, as pods come and go; no engine's answer takes more than is allowed."""

from __future__ import annotations

import asyncio
import gc
import importlib
import math
import pkgutil
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import bounded
import llm_headroom
from captures import Capture
from engine_server import TEXT, EngineServer, replayed
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Config, GpuSettings, Target
from llm_headroom.model import Series
from llm_headroom.net.http_messages import Request
from llm_headroom.poll.poller import Poller
from llm_headroom.poll.published import Published
from llm_headroom.scrape.documents import MOST_LINES
from llm_headroom.view.values import EngineCard
from llm_headroom.web.app import App

if TYPE_CHECKING:
    import socket


def targets_in_memory() -> set[str]:
    """The targets of all series and cards that anything holds."""
    gc.collect()
    held = gc.get_objects()
    series = {found.label("target") for found in held if isinstance(found, Series)}
    return series | {found.source.target for found in held if isinstance(found, EngineCard)}


def test_nothing_of_a_target_that_went_stays_in_memory() -> None:
    async def test() -> None:
        with EngineServer(replayed(Capture("vllm", "0.32.0", "saturated"))) as engine:

            def config(generation: int) -> Config:
                pods = (
                    Target(name=f"pod-{generation}-{number}", endpoint=Endpoint(url=engine.url), engine="vllm")
                    for number in range(3)
                )
                return replace(Config(gpu=GpuSettings(enabled=False), host=False), targets=tuple(pods))

            poller = Poller(config(0))
            app = App(Published(poller))
            poller.on_change(app.changed)
            poller.start()
            try:
                await poller.first_round()
                for generation in range(1, 6):
                    for path in ("/metrics", "/", "/api/v1/snapshot"):
                        assert (await app.handle(Request("GET", path, {}, {}))).status == 200
                    await poller.apply(config(generation))
                    while len(poller.snapshots()) < 3:  # noqa: ASYNC110 - nobody tells of a later round
                        await asyncio.sleep(0.005)
                for path in ("/metrics", "/"):
                    await app.handle(Request("GET", path, {}, {}))
                assert {name for name in targets_in_memory() if name.startswith("pod-")} == {
                    "pod-5-0",
                    "pod-5-1",
                    "pod-5-2",
                }
            finally:
                await poller.stop()
                await app.close()

    bounded.run(test())


def test_every_memory_of_results_is_bounded() -> None:
    for module in pkgutil.walk_packages(llm_headroom.__path__, "llm_headroom."):
        if module.name.endswith("__main__"):
            continue
        for name, found in vars(importlib.import_module(module.name)).items():
            parameters = getattr(found, "cache_parameters", None)
            if parameters is not None and found.__module__ == module.name:
                most = parameters()["maxsize"] or math.inf
                assert most <= 4096 or f"{module.name.rpartition('.')[2]}.{name}" in UNBOUNDED


UNBOUNDED: Final = {
    "reach.reach",  # of rules in the configuration
    "reader.shape",  # of types of settings, as the next two
    "values._hints",
    "settings_docs.words",
    "templates.versions",  # of the package's own captures, as the next one
    "templates.template",
    "page._file",  # of the page's own files
}


_POLLS = """
import asyncio, sys
from dataclasses import replace
from pathlib import Path
from llm_headroom.config.load import load
from llm_headroom.net.http_messages import Request
from llm_headroom.poll.poller import Poller
from llm_headroom.poll.published import Published
from llm_headroom.web.app import App

async def main():
    config = load(Path(sys.argv[1]), engine_names=("vllm",))
    poller = Poller(replace(config, timeout=3600.0))  # a busy machine has to read all of it
    app, changed, taken = App(Published(poller)), asyncio.Event(), set()
    poller.on_change(changed.set)
    poller.start()
    while len(taken) < int(sys.argv[2]):
        await changed.wait()
        changed.clear()
        app.changed()
        await app.handle(Request("GET", "/metrics", {}, {}))
        taken |= {slot.snapshot.taken for slot in poller.slots.values() if slot.snapshot}
    await poller.stop()
    await app.close()

asyncio.run(main())
with open("/proc/self/status") as status:
    print(next(line for line in status if line.startswith("VmHWM")).split()[1])
"""
"""Polls and renders so many times, and prints the peak of the resident memory in KiB."""


@pytest.mark.works(8)
def test_the_largest_body_stays_below_the_memory_limit_of_the_chart(tmp_path: Path) -> None:
    values = (Path(__file__).parents[1] / "deploy" / "helm" / "llm-headroom" / "values.yaml").read_text()
    (limit,) = {int(found) for found in re.findall(r"limits: \{memory: (\d+)Mi\}", values)}
    asked: list[int] = []

    def answer(_server: EngineServer, connection: socket.socket) -> None:
        asked.append(len(asked))
        line = b'vllm:num_requests_running{model_name="%d",engine="%06d' + b"x" * 260 + b'"} 1\n'
        body = b"".join(line % (asked[-1], number) for number in range(MOST_LINES))  # every line is new
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {TEXT}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode() + body)

    with EngineServer({"/metrics": answer}) as server:
        config = tmp_path / "headroom.yml"
        config.write_text(f"""
            interval: 1s
            gpu: false
            targets: [{{engine: vllm, url: "{server.url}"}}]
            """)
        polls = (sys.executable, "-c", _POLLS, config, "3")
        ran = subprocess.run(polls, capture_output=True, text=True, check=True)

    assert "source down" not in ran.stderr
    assert len(asked) >= 3
    assert int(ran.stdout) / 1024 < 0.9 * limit
