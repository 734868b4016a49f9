"""Work in the background that ends by a defect is said at once, with what raised."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import bounded
from llm_headroom.config.settings import Config, GpuSettings
from llm_headroom.model import Health, Snapshot
from llm_headroom.poll.poller import Poller

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest


class Beside:
    """A source that can be collected from, and whose estimates are broken."""

    name = "broken"
    labels: Mapping[str, str] = {}
    interval = 0.01
    retained = ()
    capped: Mapping[str, int] = {}

    async def collect(self) -> Snapshot:
        """It is up."""
        return Snapshot(target="broken", engine="vllm", taken=1.0, points=(), health=Health(up=True))

    async def estimate(self) -> None:
        """A defect."""
        raise RuntimeError("out of paper")

    async def close(self) -> None:
        """There is nothing to let go of."""


def test_work_that_ends_by_a_defect_is_logged_and_the_poller_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        poller = Poller(Config(gpu=GpuSettings(enabled=False), host=False, discover=False), beside=[Beside()])
        rounds: list[bool] = []
        poller.on_change(lambda: rounds.append(True))
        poller.start()
        try:
            while "out of paper" not in caplog.text:  # noqa: ASYNC110 - nobody tells of a log
                await asyncio.sleep(0.01)
            before = len(rounds)
            while len(rounds) == before:  # noqa: ASYNC110 - nobody tells of a later round
                await asyncio.sleep(0.01)
        finally:
            await poller.stop()

    bounded.run(test())
    assert "work of the poller has ended" in caplog.text
