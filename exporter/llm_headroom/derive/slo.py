"""Service levels: requests within a threshold, counted so that they add up across engines whose buckets differ.

A threshold is moved to the next bucket boundary that the engine really has; there its histogram counts exactly. The
boundary is exported, so that a reader sees what was counted.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import asdict, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from llm_headroom.config.objectives import Objectives
from llm_headroom.derive.observation import growth, histogram_growth
from llm_headroom.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_headroom.config.settings import Target
    from llm_headroom.derive.observation import Observation
    from llm_headroom.model import Histogram

WINDOWS: Final = (60.0, 300.0)
"""Seconds of the sliding windows of slow first tokens."""
FINEST_SECONDS: Final = 1.0
"""Polls that follow one another faster are remembered as one, so that memory does not grow with their rate."""
LONGEST_GAP: Final = 30.0
"""Seconds between two polls beyond which their difference belongs to no window."""


@frozen
class Objective:
    """A service level: `field` of the observation (ttft, inter_token, duration), seconds, and the share to reach."""

    name: str
    field: str
    seconds: float
    ratio: float


def objectives(wanted: Objectives) -> tuple[Objective, ...]:
    """The service levels that there are thresholds for."""
    found = (
        Objective("ttft", "ttft", wanted.ttft, wanted.ratio),
        Objective("inter_token_latency", "inter_token", wanted.inter_token_latency, wanted.ratio),
    )
    if wanted.request_duration is None:
        return found
    return (*found, Objective("request_duration", "duration", wanted.request_duration, wanted.ratio))


USUAL: Final = objectives(Objectives())
"""Those of a configuration that names none."""


def judging(target: Target, configured: Objectives) -> tuple[Objective, ...]:
    """What the latency of a target is judged by, its own objectives first: nobody waits for one for batches."""
    own = {name: value for name, value in asdict(target.objectives).items() if value is not None}
    return () if target.purpose == "batch" else objectives(replace(configured, **own))


@frozen
class Tally:
    """Requests (for inter-token latency: tokens) so far, those within the boundary, and the boundary in seconds."""

    total: float = 0.0
    good: float = 0.0
    boundary: float | None = None


@frozen
class Firsts:
    """First tokens up to a poll: when (seconds), how many so far, how many of them slower than the SLO's boundary.

    Those that nobody got are among both.
    """

    at: float
    total: float
    slow: float


_AT: Final = attrgetter("at")
_NONE: Final = Firsts(-math.inf, 0.0, 0.0)


@frozen
class Queue:
    """What waits for a first token: the polls of the objective's last seconds, and how many requests are overdue.

    Of a poll: when, how many waited, and how many first tokens had been `given` until then. Of those that waited at a
    poll, as many wait still as there were more of them than first tokens since, whoever got these.
    """

    polls: tuple[tuple[float, float, float], ...] = ()
    given: float = 0.0
    overdue: float = 0.0

    def after(self, waiting: float, at: float, seconds: float | None, came: float) -> Queue:
        """The queue with a poll at `at`, before which so many first tokens `came`, for an objective of so many seconds.

        Without an objective nothing is overdue.
        """
        if seconds is None or not waiting:
            return Queue()
        polls, given = self.polls, self.given + came
        if polls and at - polls[-1][0] < FINEST_SECONDS:
            polls = (*polls[:-1], (polls[-1][0], min(polls[-1][1], waiting), polls[-1][2]))
        else:
            polls = (*polls, (at, waiting, given))
        while len(polls) > 1 and at - polls[1][0] >= seconds:
            polls = polls[1:]
        then, waited, before = polls[0]
        if at - then < seconds:
            return Queue(polls, given)
        still = min(waited - (given - before), *(number for _, number, _ in polls), waiting)
        return Queue(polls, given, max(still, 0.0))


def boundary(seconds: float, bounds: Sequence[float]) -> int | None:
    """Which of a histogram's bounds the threshold is moved to: the first one that is not below it."""
    for index, bound in enumerate(bounds):
        if bound >= seconds * (1.0 - 1e-9):
            return index if math.isfinite(bound) else None
    return None


def tallied(tally: Tally, objective: Objective, before: Observation | None, now: Observation) -> Tally:
    """The tally with what came between two polls. An engine's restart takes nothing back, another boundary all."""
    reading: Histogram | None = getattr(now, objective.field)
    if reading is None:
        return tally
    index = boundary(objective.seconds, reading.bounds)
    if index is None:
        return tally
    if tally.boundary not in (None, reading.bounds[index]):
        tally = Tally()
    total, good = (0.0, 0.0) if before is None else _between(objective, index, before, now)
    return Tally(tally.total + total, tally.good + good, reading.bounds[index])


def _between(objective: Objective, index: int, before: Observation, now: Observation) -> tuple[float, float]:
    """The requests between two polls, and those within the bound; those that nobody waited for are in the former."""
    grown = histogram_growth(getattr(before, objective.field), getattr(now, objective.field))
    total, good = (0.0, 0.0) if grown is None else (grown.count, grown.counts[index])
    missed = f"missed_{objective.field}"
    return total + growth(getattr(before, missed, None), getattr(now, missed, None)), good


def first_tokens(
    recent: tuple[Firsts, ...], objective: Objective, before: Observation, now: Observation, at: float
) -> tuple[Firsts, ...]:
    """The first tokens of the windows, with those between two polls."""
    index = None if now.ttft is None else boundary(objective.seconds, now.ttft.bounds)
    came, good = (0.0, 0.0) if index is None else _between(objective, index, before, now)
    if not came:
        return recent
    last = recent[-1] if recent else _NONE
    total, slow = last.total + came, last.slow + came - good
    if at - last.at < FINEST_SECONDS:
        return (*recent[:-1], Firsts(last.at, total, slow))
    # The last one before the longest window says how many came before it.
    oldest = max(0, bisect_right(recent, at - max(WINDOWS), key=_AT) - 1)
    return (*recent[oldest:], Firsts(at, total, slow))


def slow_share(recent: tuple[Firsts, ...], window: float, now: float) -> tuple[float, float] | None:
    """The share of slow first tokens within a window's seconds, and of how many; None without any."""
    begin = bisect_right(recent, now - window, key=_AT)
    before, last = recent[begin - 1] if begin else _NONE, recent[-1] if recent else _NONE
    total = last.total - before.total
    return ((last.slow - before.slow) / total, total) if total else None
