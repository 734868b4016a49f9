"""How many times its present traffic an engine can take before it breaks an objective, and what binds then.

The traffic of the last minutes is drawn anew at several factors and replayed on the engine's twin. The headroom is the
factor at which as many requests are slow as the objective allows.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from enum import StrEnum
from statistics import median
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom.derive import twin
from llm_headroom.derive.interval import between
from llm_headroom.derive.step_cost import Learner
from llm_headroom.derive.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llm_headroom.derive.observation import Observation
    from llm_headroom.derive.traffic import Call, Sizes

MOST: Final = 16.0
LEAST: Final = 1.0 / 8.0
"""Bounds of the headroom: what lies beyond them is not told apart."""
BUSY_SECONDS: Final = 600.0
FINEST_SECONDS: Final = 4.5
"""Polls that follow one another faster are taken together."""
LONGEST_GAP: Final = 300.0
"""Seconds without a poll after which the traffic of the window begins anew."""
SMOOTHING_SECONDS: Final = 120.0
SUSPECT_ERROR: Final = 0.15
"""Relative error of predicted token speed beyond which a figure is suspect."""
_PRECISION: Final = 1.06
_STEP: Final = 1.12
"""By which the first guess is widened; the next ones by its square, and so on."""
_REACH: Final = 1.5
"""How far beyond the factor that is asked for draws are made, since the next one may be higher."""
_FIRST_GUESS: Final = 2.0
_WANTED_CALLS: Final = 2000.0
_MOST_DRAWS: Final = 4
_RESERVING_CEILING: Final = 0.9
"""Of the cache, where an engine that reserves room for answers stops admitting, until it was seen to."""
_CEILING_POLLS: Final = 6
_NEAR_LIMIT: Final = 0.97
_LEAST_LIMIT: Final = 16.0
_FULL_POLLS: Final = 3
"""Polls at which requests wait while exactly as many run as ever: that is the limit, if it is not a small number."""


class Missing(StrEnum):
    """Why there is no headroom: a closed set, with what an operator can do about it."""

    CAPACITY = "the engine does not report the size of its KV cache"
    LATENCIES = "the engine does not report the histograms of first tokens and inter-token latency"
    BUSY = "fewer than ten busy minutes were seen"
    TRAFFIC = "too few requests in the last 15 minutes"
    DECODING = "no tokens were decoded"
    NOT_YET = "the first estimate is on its way"


class Target(NamedTuple):
    """An objective: its name, seconds, and the share of tokens that may be slower."""

    name: str
    seconds: float
    allowed: float


@dataclass(frozen=True, slots=True)
class Headroom:
    """Times the present traffic that fits, and the resource that binds at that load."""

    ratio: float
    binding: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One run of the twin at time `at` in seconds: the headroom for each objective, and arrivals per second."""

    at: float
    headroom: Mapping[str, Headroom]
    rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is remembered of one engine for this: its traffic, its step cost, and the estimates so far, smoothed.

    `last` is the observation at which the latest interval ended, `at` its time. `smoothed` has for each objective the
    decayed sum of logarithms of the headroom and its weight.
    """

    at: float
    last: Observation
    traffic: Traffic = field(default_factory=Traffic)
    learner: Learner = field(default_factory=Learner)
    replicas: int = 1
    prefill_first: bool = False
    smoothed: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    estimate: Estimate | None = None

    def after(self, now: Observation, at: float, replicas: int = 1) -> Known:
        """What is known after a poll of the same life of the engine."""
        seconds = at - self.at
        if seconds < FINEST_SECONDS:
            return self
        if seconds > LONGEST_GAP:
            return replace(self, at=at, last=now, traffic=replace(self.traffic, intervals=()))
        interval = between(self.last, now, seconds, replicas)
        return replace(
            self,
            at=at,
            last=now,
            replicas=replicas,
            traffic=self.traffic.after(interval, self.last, now),
            learner=self.learner.after(interval, (now.capacity or 0.0) / replicas),
        )

    def with_estimate(self, estimate: Estimate) -> Known:
        """What is known after a run of the twin."""
        elapsed = estimate.at - self.estimate.at if self.estimate else 0.0
        keep = math.exp(-elapsed / SMOOTHING_SECONDS)
        smoothed = {}
        for name, headroom in estimate.headroom.items():
            total, weight = self.smoothed.get(name, (0.0, 0.0))
            smoothed[name] = (total * keep + math.log(headroom.ratio), weight * keep + 1.0)
        return replace(self, smoothed=smoothed, estimate=estimate)

    @property
    def headroom(self) -> dict[str, Headroom]:
        """For each objective the smoothed headroom; empty before the first estimate."""
        if self.estimate is None:
            return {}
        return {
            name: Headroom(math.exp(total / weight), self.estimate.headroom[name].binding)
            for name, (total, weight) in self.smoothed.items()
        }

    @property
    def suspect(self) -> bool:
        """Whether tokens came so much faster or slower than predicted that the figures should not be believed."""
        error = self.learner.speed_error
        return error is not None and abs(math.log(error)) > math.log1p(SUSPECT_ERROR)

    @property
    def missing(self) -> Missing | None:
        """Why there is nothing to say; None where there is."""
        if not self.last.capacity:
            return Missing.CAPACITY
        if self.last.ttft is None or self.last.inter_token is None:
            return Missing.LATENCIES
        if self.traffic.busy < BUSY_SECONDS:
            return Missing.BUSY
        if self.traffic.sizes() is None:
            return Missing.TRAFFIC
        return Missing.DECODING if self.learner.cost is None else None

    def engine(self, sizes: Sizes) -> twin.Engine | None:
        """The twin of one replica; None where its cost is not known."""
        if self.learner.cost is None or not self.last.capacity:
            return None
        capacity = self.last.capacity / self.replicas
        if self.prefill_first:
            capacity *= self._ceiling(capacity)
        return twin.Engine(
            cost=self.learner.cost,
            capacity=capacity,
            limit=self._limit,
            per_step=sizes.per_step,
            prefill_first=self.prefill_first,
        )

    @property
    def _limit(self) -> float:
        """Most running requests of a replica: as reported, or where requests were seen to wait again and again."""
        if self.last.limit:
            return self.last.limit / self.replicas
        most = max(each.running for each in self.traffic.intervals)
        full = sum(each.running == most and all(each.waiting) for each in self.traffic.intervals)
        return most if most >= _LEAST_LIMIT and full >= _FULL_POLLS else math.inf

    def _ceiling(self, capacity: float) -> float:
        """Usage at which requests wait although more could run: room that is reserved for answers."""
        waiting = [
            max(each.held) / capacity
            for each in self.traffic.intervals
            if all(each.waiting) and each.running < self._limit * _NEAR_LIMIT
        ]
        return min(1.0, median(waiting)) if len(waiting) >= _CEILING_POLLS else _RESERVING_CEILING


def estimated(known: Known, targets: Sequence[Target]) -> Estimate | None:
    """Run the twin; None where something is missing. Takes tens of milliseconds: not for the poll's path."""
    sizes = known.traffic.sizes()
    engine = None if sizes is None or known.missing else known.engine(sizes)
    if sizes is None or engine is None:
        return None
    trial = _Trial(known, sizes, engine, targets)
    found = {}
    for target in targets:
        guess = known.smoothed.get(target.name)
        ratio = factor(trial.excess(target), math.exp(guess[0] / guess[1]) if guess else _FIRST_GUESS)
        found[target.name] = Headroom(ratio, trial.binding(target, ratio))
    return Estimate(at=known.at, headroom=found, rate=known.traffic.rate * known.replicas)


def factor(excess: Callable[[float], bool], guess: float) -> float:
    """The factor from which on there is an excess, by bisection around a guess; within the bounds of the headroom."""
    low = high = min(max(guess, LEAST), MOST)
    step = _STEP
    if excess(high):
        while low > LEAST:
            low, step = max(LEAST, low / step), step**2
            if not excess(low):
                break
            high = low
        else:
            return LEAST
    else:
        while high < MOST:
            high, step = min(MOST, high * step), step**2
            if excess(high):
                break
            low = high
        else:
            return MOST
    while high / low > _PRECISION:
        middle = math.sqrt(low * high)
        if excess(middle):
            high = middle
        else:
            low = middle
    return math.sqrt(low * high)


class _Trial:
    """Replays of the same draws at several factors, each done once."""

    def __init__(self, known: Known, sizes: Sizes, engine: twin.Engine, targets: Sequence[Target]) -> None:
        self._known, self._sizes, self._engine = known, sizes, engine
        seconds = {target.name: target.seconds for target in targets}
        self._first = seconds.get("ttft", math.inf)
        self._between = seconds.get("inter_token_latency", math.inf)
        arrivals = known.traffic.total("arrivals")
        self._count = min(_MOST_DRAWS, max(1, math.ceil(_WANTED_CALLS / arrivals)))
        self._most = 0.0
        self._draws: list[list[tuple[float, Call]]] = []
        self._done: dict[float, list[twin.Outcome]] = {}

    def outcomes(self, times: float) -> list[twin.Outcome]:
        """What `times` the traffic suffers, in each draw."""
        if times > self._most:  # draws reach a little further than asked for, and are nested below
            self._most = min(MOST, times * _REACH)
            self._done.clear()
            seed = round(self._known.at)
            self._draws = [
                self._known.traffic.draw(self._sizes, self._most, random.Random(seed + draw))  # noqa: S311 - simulation
                for draw in range(self._count)
            ]
        if times not in self._done:
            self._done[times] = [
                twin.replay(
                    [call for mark, call in draw if mark <= times],
                    self._engine,
                    first=self._first,
                    between=self._between,
                    since=self._known.traffic.warm_up,
                )
                for draw in self._draws
            ]
        return self._done[times]

    def excess(self, target: Target) -> Callable[[float], bool]:
        """Whether more than the allowed share is slow at a factor."""

        def check(times: float) -> bool:
            outcomes = self.outcomes(times)
            if target.name == "ttft":
                total, slow = sum(one.firsts for one in outcomes), sum(one.slow_firsts for one in outcomes)
                return slow > target.allowed * total
            tokens, slow_tokens = sum(one.tokens for one in outcomes), sum(one.slow_tokens for one in outcomes)
            return slow_tokens > target.allowed * tokens

        return check

    def binding(self, target: Target, times: float) -> str:
        """What first tokens wait for at a factor; tokens after the first wait for computation."""
        if target.name != "ttft":
            return twin.COMPUTE
        nearest = min(self._done, key=lambda done: abs(math.log(done / times)))
        waits: dict[str, float] = {}
        for one in self._done[nearest]:
            for resource, seconds in one.waits.items():
                waits[resource] = waits.get(resource, 0.0) + seconds
        return max(waits, key=lambda resource: waits[resource])
