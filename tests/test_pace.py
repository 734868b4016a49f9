"""When sources are polled: in bursts over an interval, on a beat that all have in common."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bounded
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Config, GpuSettings, Target
from llm_headroom.host.engines import Watched
from llm_headroom.model import Health, Snapshot
from llm_headroom.poll.pace import (
    LATE,
    MOST_AT_ONCE,
    MOST_STRETCH,
    START_SPACING,
    STRAINED,
    Pace,
    Strain,
    host_pause,
    paces,
)
from llm_headroom.poll.poller import Poller
from silent_source import Silent

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@pytest.mark.parametrize(
    ("count", "bursts", "sizes"),
    [(1, 1, {1}), (3, 3, {1}), (4, 4, {1}), (5, 4, {1, 2}), (50, 4, {12, 13}), (200, 4, {50}), (201, 5, {40, 41})],
)
def test_sources_are_polled_in_bursts_of_about_one_size(count: int, bursts: int, sizes: set[int]) -> None:
    phases = Counter(pace.phase for pace in paces(count))
    assert (sum(phases.values()), len(phases)) == (count, bursts)
    assert set(phases.values()) == sizes
    assert [*phases] == sorted(phases)
    assert (min(phases), max(phases) < 1.0) == (0.0, True)


def test_four_bursts_are_a_quarter_of_an_interval_apart() -> None:
    assert [pace.phase for pace in paces(8)] == [0.0, 0.0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]


def test_at_the_start_fifty_sources_are_polled_at_once_and_further_ones_a_little_later() -> None:
    assert Counter(pace.after for pace in paces(120)) == {0.0: 50, 0.25: 50, 0.5: 20}
    assert Pace() == (0.0, 0.0)


@pytest.mark.parametrize(
    ("phase", "step", "now", "expected"),
    [
        (0.0, 5.0, 100.0, 105.0),
        (0.0, 5.0, 104.9, 105.0),
        (0.0, 5.0, 123.0, 125.0),
        (0.25, 1.0, 10.0, 10.25),
        (0.25, 1.0, 10.25, 11.25),
        (0.25, 4.0, 10.0, 13.0),
        (0.75, 4.0, 10.0, 11.0),
        (0.75, 4.0, 10.9, 11.0),
    ],
)
def test_the_next_poll_is_on_the_beat_and_later_than_now(
    phase: float, step: float, now: float, expected: float
) -> None:
    assert Pace(7.0, phase).next(now, step) == expected


@given(
    phase=st.floats(0.0, 0.99),
    step=st.floats(0.05, 3600.0),
    beats=st.integers(0, 10**6),
    early=st.floats(-0.4, 0.4),
)
def test_a_timer_that_is_a_little_early_or_late_polls_once(phase: float, step: float, beats: int, early: float) -> None:
    pace = Pace(0.0, phase)
    last = pace.next(beats * step, step)
    assert pace.next(last - early * step, step, last) == pytest.approx(last + step)


@pytest.mark.parametrize(
    ("interval", "pause"), [(0.1, 1.0), (1.0, 10.0), (1.5, 15.0), (2.0, 15.0), (15.0, 15.0), (20.0, 20.0)]
)
def test_host_memory_is_read_every_fifteen_seconds_or_ten_polls(interval: float, pause: float) -> None:
    assert host_pause(interval, {}, ()) == pytest.approx(pause)


def test_host_memory_is_read_at_each_poll_until_every_engine_has_been_collected() -> None:
    target = Target(name="t", endpoint=Endpoint(url="http://127.0.0.1:9"))
    new, known = (
        Watched(target, None),
        Watched(target, Snapshot(target="t", engine="", taken=0.0, health=Health(up=True))),
    )
    assert host_pause(2.0, {}, [known, known]) == 15.0
    assert (host_pause(2.0, {}, [known, new]), host_pause(2.0, None, [known])) == (2.0, 2.0)


def polled(count: int, interval: float, rounds: int) -> tuple[Counter[str], dict[str, float], float]:
    """The polls of so many targets, none of which answers, until each had some; when each was first; and the time."""
    targets = tuple(
        Target(name=f"t{n}", endpoint=Endpoint(url="http://127.0.0.1:9"), engine="vllm") for n in range(count)
    )
    config = Config(gpu=GpuSettings(enabled=False), host=False, discover=False, interval=interval, targets=targets)
    first: dict[str, float] = {}
    polls: Counter[str] = Counter()
    took: list[float] = []

    async def test() -> None:
        poller, enough, clock = Poller(config), asyncio.Event(), asyncio.get_running_loop().time
        start = clock()

        def changed() -> None:
            for snapshot in poller.fresh():
                first.setdefault(snapshot.target, clock() - start)
                polls[snapshot.target] += 1
            if len(polls) == count and min(polls.values()) >= rounds:
                enough.set()

        poller.on_change(changed)
        poller.start()
        try:
            await enough.wait()
            took.append(clock() - start)
        finally:
            await poller.stop()

    bounded.run(test())
    return polls, first, took[0]


def test_more_than_fifty_targets_do_not_start_at_once() -> None:
    _, first, _ = polled(51, 60.0, 1)
    assert first["t50"] >= START_SPACING
    assert min(first.values()) < first["t50"]


@pytest.mark.works(10)
def test_no_more_targets_begin_at_once_however_busy_the_process_is() -> None:
    targets = tuple(
        Target(name=f"t{n}", endpoint=Endpoint(url="http://127.0.0.1:9"), engine="vllm")
        for n in range(5 * MOST_AT_ONCE)
    )
    config = Config(gpu=GpuSettings(enabled=False), host=False, discover=False, interval=3600.0, targets=targets)
    begun: list[int] = []

    async def test() -> None:
        poller = Poller(config)
        poller.start()
        try:
            while not poller.ready:
                end = time.monotonic() + 5 * START_SPACING
                while time.monotonic() < end:
                    pass
                for _ in range(10):  # what is ready has its turns
                    await asyncio.sleep(0)
                begun.append(len(poller.snapshots()))
        finally:
            await poller.stop()

    bounded.run(test())
    assert max(more - before for before, more in itertools.pairwise([0, *begun])) <= 2 * MOST_AT_ONCE


@pytest.mark.parametrize("early", [0.0, 0.003])
def test_a_target_is_polled_again_at_its_interval_and_no_faster(early: float, monkeypatch: pytest.MonkeyPatch) -> None:
    bounded.timers_are_early(early, monkeypatch)
    polls, _, took = polled(4, 0.05, 4)
    assert max(polls.values()) <= took / 0.05 + 3.0  # the one at the start, a beat at once after it, and one at the end


def strained(lates: Iterable[float]) -> list[float]:
    """The stretch after each second, in which polls begin so late."""
    strain, found = Strain(), []
    for second, late in enumerate(lates):
        for poll in range(4):
            now = 1000.0 + 2 * second + 0.1 * poll
            strain.note(now - late, now)
        found.append(strain.stretch)
    return found


def test_intervals_are_longer_while_polls_always_begin_late_and_go_back_afterwards() -> None:
    long = strained([2 * LATE] * 30 + [0.0] * 300)
    assert long[:30] == sorted(long[:30])
    assert max(long) == MOST_STRETCH
    assert long[30:] == sorted(long[30:], reverse=True)
    assert long[-1] == 1.0


@pytest.mark.parametrize("lates", [[0.0] * 9, [LATE / 2] * 9, [0.0, 75.0, 0.0, 0.0], [0.0, 9.0, 0.0, 0.0, 9.0, 0.0]])
def test_neither_a_little_delay_nor_a_single_stop_makes_intervals_longer(lates: list[float]) -> None:
    assert set(strained(lates)) == {1.0}


class Hungry(Silent):
    """A source that takes more CPU than there is, until it has had enough."""

    name = "hungry"
    interval = 0.01
    labels: Mapping[str, str] = MappingProxyType({})
    seconds = 0.7

    async def collect(self) -> Snapshot:
        """Keeps everybody waiting."""
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            pass
        return Snapshot(target=self.name, engine="", taken=0.0, health=Health(up=True))


@pytest.mark.waits(30)
def test_a_poller_that_cannot_keep_up_reads_more_rarely_says_so_and_recovers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    hungry = [Hungry() for _ in range(3)]
    for number, each in enumerate(hungry):
        each.name = f"hungry {number}"
    said: list[str] = []

    async def test() -> None:
        config = Config(gpu=GpuSettings(enabled=False), host=False, discover=False, interval=0.01)
        poller, changed = Poller(config, beside=hungry), asyncio.Event()
        poller.on_change(changed.set)
        poller.start()
        try:
            while poller.strain.stretch < STRAINED:
                changed.clear()
                await changed.wait()
            said.extend(poller.strain.problems())
            for each in hungry:
                each.seconds = 0.0
            while poller.strain.stretch > 1.0:
                changed.clear()
                await changed.wait()
            said.extend(poller.strain.problems())
        finally:
            await poller.stop()

    bounded.run(test())
    assert len(said) == 1
    assert "times as rarely as configured" in said[0]
    logged = [record.getMessage() for record in caplog.records if "sources are read" in record.getMessage()]
    assert logged == ["sources are read more rarely: too little CPU", "sources are read as often as configured"]
