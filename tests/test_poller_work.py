"""Work in the background that ends by a defect is said at once, with what raised."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TYPE_CHECKING

import pytest

import bounded
from llm_headroom.config.kinds import Timeout, kind_of
from llm_headroom.config.settings import Config, GpuSettings
from llm_headroom.derive.capacity import ESTIMATE_SECONDS
from llm_headroom.model import Health, Snapshot
from llm_headroom.poll.poller import ESTIMATE_PAUSE, LOOK_AGAIN, LOOK_TIMEOUT, Poller
from llm_headroom.poll.slot import OVERDUE

if TYPE_CHECKING:
    from collections.abc import Mapping


class Beside:
    """A source that can be collected from, and whose pace or estimates are broken."""

    name = "broken"
    labels: Mapping[str, str] = {}
    retained = ()
    capped: Mapping[str, int] = {}

    def __init__(self, defect: str) -> None:
        self._defect = defect

    @property
    def interval(self) -> float:
        """A defect, or 10 ms."""
        if self._defect == "pace":
            raise RuntimeError("out of paper")
        return 0.01

    async def collect(self) -> Snapshot:
        """It is up."""
        return Snapshot(target="broken", engine="vllm", taken=1.0, points=(), health=Health(up=True))

    async def estimate(self) -> None:
        """A defect, or nothing."""
        if self._defect == "estimate":
            raise RuntimeError("out of paper")

    async def close(self) -> None:
        """There is nothing to let go of."""


class Sound(Beside):
    """One that is not broken."""

    name = "sound"


@pytest.mark.parametrize("defect", ["pace", "estimate"])
def test_work_that_ends_by_a_defect_is_logged_and_the_poller_goes_on(
    caplog: pytest.LogCaptureFixture, defect: str
) -> None:
    async def test() -> None:
        sources = [Beside(defect), Sound("")]
        poller = Poller(Config(gpu=GpuSettings(enabled=False), host=False, discover=False), beside=sources)
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
    errors = {record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR}
    assert errors == {"work of the poller failed, and begins again later"}, "what is ended at the stop is no defect"


def test_what_is_tried_again_and_again_is_late_by_a_small_part_of_a_minute() -> None:
    assert 1.0 <= ESTIMATE_PAUSE <= ESTIMATE_SECONDS / 10.0
    assert 10.0 * LOOK_TIMEOUT <= LOOK_AGAIN <= 60.0


def test_others_have_their_turn_between_two_sources_that_have_nothing_to_estimate() -> None:
    class Estimating(Beside):
        def __init__(self, name: str) -> None:
            super().__init__("")
            self.name = name

        async def estimate(self) -> None:
            """Note how many turns the event loop has taken until now."""
            turns.append(passed[0])

    def turn() -> None:
        passed[0] += 1
        asyncio.get_running_loop().call_soon(turn)

    turns: list[int] = []
    passed = [0]

    async def test() -> None:
        sources = [Estimating(f"e{number}") for number in range(50)]
        poller = Poller(Config(gpu=GpuSettings(enabled=False), host=False, discover=False), beside=sources)
        poller.start()
        asyncio.get_running_loop().call_soon(turn)
        while len(turns) < len(sources):  # noqa: ASYNC110 - nobody tells when an estimate is made
            await asyncio.sleep(0)
        await poller.stop()

    bounded.run(test())
    first = turns[:50]
    assert all(later > earlier for earlier, later in itertools.pairwise(first))


class Hanging(Beside):
    """One whose second collection never ends."""

    name = "hanging"
    asked = 0

    async def collect(self) -> Snapshot:
        """Once."""
        self.asked += 1
        if self.asked > 1:
            await asyncio.Event().wait()
        return await super().collect()


def test_what_should_have_been_read_again_long_ago_is_shown_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = Hanging("")
    config = Config(gpu=GpuSettings(enabled=False), host=False, discover=False)
    poller = Poller(config, beside=[hanging, Sound("")])

    def shown(name: str) -> bool:
        return bool(poller.slots[name].points())

    async def test() -> None:
        poller.start()
        try:
            while hanging.asked < 2:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.005)
            assert shown("hanging"), "it may yet come"
            monkeypatch.setattr("llm_headroom.poll.slot.OVERDUE", 0.5)
            while shown("hanging"):  # noqa: ASYNC110 - time passes
                await asyncio.sleep(0.005)
            while not shown("sound"):  # noqa: ASYNC110 - on a machine that is busy for as long
                await asyncio.sleep(0.005)
        finally:
            await poller.stop()

    bounded.run(test())


def test_a_collection_that_is_overdue_has_had_all_the_time_that_it_may_take() -> None:
    assert kind_of(Timeout).meta.le is not None
    assert float(kind_of(Timeout).meta.le) < OVERDUE < 120.0  # type: ignore[arg-type]  # some number
