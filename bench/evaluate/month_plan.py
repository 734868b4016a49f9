"""A month of operations, as four engines live through a week each: their traffic, and what goes wrong or is done.

Two replicas of a chat model behind a balancer, one engine alone with a model for code, and one for batches. Traffic
swings over the day and is nearly nothing at night. Seconds are of the week, which begins on Monday at midnight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from evaluate.incidents import Span
from evaluate.scenarios import A100_8B, CODE, CONV, LARGE, SGLANG_8B

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evaluate.scenarios import Setup

MINUTE: Final = 60.0
HOUR: Final = 3600.0
DAY: Final = 86_400.0
WEEK: Final = 7 * DAY
DRAIN_SECONDS: Final = 120.0
"""Before a planned restart its engine gets no new requests for so long, so that those it has can end."""
CHECK_SECONDS: Final = 10.0
"""After which a balancer sends nothing more to a replica that is down."""
START_SECONDS: Final = 12.0
"""After which a service manager has started a process anew that ended."""
NIGHT: Final = 0.04
"""Share of the day's peak at the quietest hour."""


class Kind(StrEnum):
    """What happens to an engine or to its exporter."""

    DEPLOY = "planned restart, drained first"
    CRASH = "crash; the service manager starts it again"
    DEAD = "end of an engine that nothing restarts for a while"
    STALL = "stall: it answers, but nothing moves"
    SLOW = "GPU slowed to a sixth"
    ERRORS = "a fifth of the requests fail"
    BURST = "burst of traffic"
    RENAMED = "upgrade that renames a metric"
    EXPORTER = "exporter down"
    MISSED = "scrapes missed"


DOWN: Final = frozenset({Kind.DEPLOY, Kind.CRASH, Kind.DEAD})
FAULTS: Final = frozenset({Kind.CRASH, Kind.DEAD, Kind.STALL, Kind.ERRORS})
"""What is an incident of an engine without replicas even if no request came to suffer of it."""


class Event(NamedTuple):
    """Something from one time to another; `much` is a burst's factor on the traffic, or a slow GPU's on each step."""

    kind: Kind
    begin: float
    seconds: float
    much: float = 1.0
    loading: float = 0.0

    @property
    def end(self) -> float:
        """When it is over."""
        return self.begin + self.seconds

    @property
    def span(self) -> Span:
        """From begin to end."""
        return Span(self.begin, self.end)


@dataclass(frozen=True, slots=True)
class Member:
    """One engine of the fleet.

    `peak` is the factor on the trace's arrivals at the busiest hour, `batch` the hours of the night in which a batch
    runs instead, `slo` the objective of a first token in seconds; None for a target whose latency is not judged.
    """

    name: str
    engine: str
    model: str
    trace: str
    setup: Setup
    peak: float
    slo: float | None
    events: Sequence[Event]
    batch: tuple[float, float] | None = None

    def now(self, kind: Kind, at: float) -> Event | None:
        """What of a kind is on at a time."""
        return next((each for each in self.events if each.kind is kind and each.begin <= at < each.end), None)

    def load(self, at: float) -> float:
        """The factor on the trace's arrivals at a time; 0 while nothing is sent to it."""
        if not self.takes(at):
            return 0.0
        hour = at % DAY / HOUR
        if self.batch is not None:
            return self.peak if self.batch[0] <= hour < self.batch[1] else 0.0
        day = NIGHT + (1.0 - NIGHT) * (0.5 - 0.5 * math.cos(2.0 * math.pi * (hour - 3.0) / 24.0))
        burst = self.now(Kind.BURST, at)
        others = self.replicas()
        sharing = 1 + sum(each.takes(at) for each in others)
        return self.peak * day * (burst.much if burst else 1.0) * (1 + len(others)) / sharing

    def takes(self, at: float) -> bool:
        """Whether requests are sent to it. One without replicas gets them even while it is down, unless by plan."""
        for each in self.events:
            if each.kind is Kind.DEPLOY and each.begin - DRAIN_SECONDS <= at < each.end:
                return False
            if each.kind in DOWN and self.replicas() and each.begin + CHECK_SECONDS <= at < each.end:
                return False
        return True

    def replicas(self) -> list[Member]:
        """The others of the same model."""
        return [each for each in FLEET if each.model == self.model and each.name != self.name]


def _at(day: int, hour: float) -> float:
    return day * DAY + hour * HOUR


def _deploy(day: int, hour: float, loading: float) -> Event:
    return Event(Kind.DEPLOY, _at(day, hour), loading + START_SECONDS, loading=loading)


def _crash(day: int, hour: float, loading: float) -> Event:
    return Event(Kind.CRASH, _at(day, hour), loading + START_SECONDS, loading=loading)


MON, TUE, WED, THU, FRI, SAT, SUN = range(7)
_PARTITION: Final = Event(Kind.MISSED, _at(SAT, 21), 2 * MINUTE)
FLEET: Final = (
    Member(
        "chat-a",
        "vllm",
        "chat",
        CONV,
        A100_8B,
        0.15,
        2.5,
        (
            _deploy(TUE, 11, 240),
            _deploy(THU, 11, 240),
            _crash(MON, 15.3, 180),
            Event(Kind.STALL, _at(SAT, 13), 6 * MINUTE),
            Event(Kind.BURST, _at(FRI, 14), 6 * MINUTE, 12.0),
            Event(Kind.BURST, _at(MON, 10.5), 3 * MINUTE, 12.0),
            Event(Kind.EXPORTER, _at(WED, 10), 40.0),
            Event(Kind.EXPORTER, _at(SUN, 11), 9 * MINUTE),
            _PARTITION,
        ),
    ),
    Member(
        "chat-b",
        "vllm",
        "chat",
        CONV,
        A100_8B,
        0.15,
        2.5,
        (
            _deploy(TUE, 11.25, 240),
            _deploy(THU, 11.25, 300),
            Event(Kind.DEAD, _at(WED, 20), 25 * MINUTE, loading=180),
            Event(Kind.SLOW, _at(FRI, 17), 20 * MINUTE, 6.0),
            Event(Kind.BURST, _at(FRI, 14), 6 * MINUTE, 12.0),
            Event(Kind.BURST, _at(SUN, 15), 12 * MINUTE, 14.0),
            _PARTITION,
        ),
    ),
    Member(
        "code",
        "sglang",
        "code",
        CODE,
        SGLANG_8B,
        0.1,
        2.5,
        (
            _deploy(WED, 14, 240),
            _deploy(SUN, 9, 600),
            _crash(FRI, 10.7, 360),
            _crash(SAT, 3.2, 240),
            _crash(SUN, 16.0, 90),
            _crash(SUN, 16.06, 90),
            _crash(SUN, 16.12, 90),
            _crash(SUN, 16.18, 90),
            Event(Kind.DEAD, _at(TUE, 22), 12 * MINUTE, loading=120),
            Event(Kind.STALL, _at(THU, 16.5), 8 * MINUTE),
            _crash(THU, 16.5 + 8 / 60, 200),
            Event(Kind.ERRORS, _at(WED, 16), 10 * MINUTE),
            Event(Kind.BURST, _at(MON, 11), 20 * MINUTE, 6.0),
            Event(Kind.BURST, _at(TUE, 15), 7 * MINUTE, 6.0),
            Event(Kind.BURST, _at(SAT, 17), 2 * MINUTE, 6.0),
            Event(Kind.EXPORTER, _at(TUE, 22.08), 8 * MINUTE),
            _PARTITION,
        ),
    ),
    Member(
        "batch",
        "vllm",
        "batch",
        LARGE,
        A100_8B,
        1.0,
        None,
        (
            _deploy(MON, 9, 360),
            _crash(WED, 3.0, 240),
            Event(Kind.RENAMED, _at(THU, 9), WEEK - _at(THU, 9)),
            _deploy(THU, 9 - 0.1, 340),
            Event(Kind.STALL, _at(FRI, 3.5), 15 * MINUTE),
            _PARTITION,
        ),
        batch=(2.0, 4.5),
    ),
)
