"""Targets come and go, as pods do; nothing of those that went stays in memory."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace

import bounded
from captures import Capture
from engine_server import EngineServer, replayed
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Config, GpuSettings, Target
from llm_headroom.model import Series
from llm_headroom.net.http_connection import Request
from llm_headroom.poll.poller import Poller
from llm_headroom.poll.published import Published
from llm_headroom.web.app import App


def targets_in_memory() -> set[str]:
    """The targets of all series that anything holds."""
    gc.collect()
    return {found.label("target") for found in gc.get_objects() if isinstance(found, Series)}


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
