"""What is remembered of an engine for its load headroom, and the signals that follow from it."""

from __future__ import annotations

import math
from dataclasses import field, replace
from enum import StrEnum
from statistics import median
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom import schema
from llm_headroom.derive import twin
from llm_headroom.derive.interval import between
from llm_headroom.derive.mix import CHANGE_SECONDS
from llm_headroom.derive.step_cost import Learner
from llm_headroom.derive.traffic import QUIET_SECONDS, USUAL_SECONDS, Lengths, Traffic
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.frozen import frozen_named
from llm_headroom.model import point

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from llm_headroom.derive.observation import Observation
    from llm_headroom.derive.slo import Objective, Tally
    from llm_headroom.derive.traffic import Sizes
    from llm_headroom.model import Point

MOST: Final = 16.0
LEAST: Final = 1.0 / 8.0
"""Bounds of the load headroom: values beyond them are clipped."""
BUSY_SECONDS: Final = 600.0
INHERITED_BUSY_SECONDS: Final = 240.0
"""The same where the step cost was inherited, and predicts this engine's own tokens."""
ALIKE: Final = 0.02
"""Relative difference up to which the KV caches of two engines of one model are the same size: GPUs and arguments are
alike then, or the self-check finds that they are not."""
ESTIMATE_SECONDS: Final = 60.0
"""Time between two estimates, at least."""
STALE_SECONDS: Final = 900.0
"""Age from which on an estimate is no longer shown: the window that it is of has passed."""
MOST_SATURATION: Final = 2.0
SUSPECT_ERROR: Final = 0.15
"""Relative error of predicted token speed beyond which a figure is suspect."""
FINEST_SECONDS: Final = 4.5
"""Polls that follow one another faster are taken together."""
LONGEST_GAP: Final = 300.0
"""Seconds without a poll after which the traffic of the window starts again."""
SMOOTHING_SECONDS: Final = 120.0
_SLOTTED: Final = frozenset(name for name, engine in BUILT_IN.items() if engine.slotted)
_CONTEXT: Final = 131_072.0
"""Tokens that a slot is taken to hold where the cache is not the limit."""
_RESERVING: Final = frozenset(name for name, engine in BUILT_IN.items() if engine.reserves)
_RESERVING_CEILING: Final = 0.9
"""Of the cache, where an engine that reserves stops admitting, until it was seen to."""
_LEAST_CEILING: Final = 0.6
"""Usage below which requests wait for computation, not for room."""
_CEILING_POLLS: Final = 6
_NEAR_LIMIT: Final = 0.97
_LEAST_LIMIT: Final = 16.0
_FULL_POLLS: Final = 3
"""Polls at which requests wait while exactly as many run as ever: that is the limit, if it is not a small number."""
FOLLOWING: Final = frozenset(
    {
        schema.LOAD_HEADROOM,
        schema.SUSTAINABLE_REQUESTS,
        schema.LOAD_HEADROOM_BINDING,
        schema.LOAD_HEADROOM_SUSPECT,
        schema.SATURATION,
    }
)
"""The metrics that follow from it."""
_FIELDS: Final = ("ttft", "inter_token")


class Missing(StrEnum):
    """Why there is no load headroom, in an operator's words."""

    CAPACITY = "the engine does not report the size of its KV cache"
    SLOTS = "how many requests the engine runs at once is not known; set `requests_running_limit` of its target"
    LATENCIES = "the engine does not report histograms of first tokens and of inter-token latency"
    REQUESTS = "the engine does not report the requests that run, or those that have finished"
    BUSY = "ten minutes with requests have to be seen first, some of them in the last 15"
    TRAFFIC = "there were too few requests in the last 15 minutes"
    DECODING = "no tokens are decoded here"
    PENDING = "the first estimate is under way"
    STALLED = "the engine, or a replica of it, makes no progress, so that nobody knows what it takes"


class Target(NamedTuple):
    """An objective: its name, the field of the observation that it is of, seconds, and the share that may be slower."""

    name: str
    field: str
    seconds: float
    allowed: float


class Headroom(NamedTuple):
    """Times the present traffic that fits, and the resource that binds at that load."""

    ratio: float
    binding: str


@frozen_named
class Estimate:
    """The load headroom for each objective at time `at` (seconds), and arrivals per second of the whole target.

    `since` is when the mix of requests that it is of began. `factors` are those that were found on the way, for each
    objective: near them the next estimate begins.
    """

    at: float
    headroom: Mapping[str, Headroom]
    rate: float
    since: float
    factors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@frozen_named
class Known:
    """An engine's traffic, its step cost, and the estimates so far.

    All are of the mean one of `replicas`. `begun` is when this life of the engine was first seen, `last` the
    observation at which the latest interval ended, `at` its time. `smoothed` has for each objective the decayed sum of
    logarithms of the headroom and its weight.
    """

    begun: float
    at: float
    last: Observation
    engine: str = ""
    replicas: int = 1
    traffic: Traffic = field(default_factory=Traffic)
    learner: Learner = field(default_factory=Learner)
    smoothed: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    estimate: Estimate | None = None

    def after(self, now: Observation, at: float, replicas: int = 1) -> Known:
        """What is known after a poll of the same life of the engine."""
        seconds = at - self.at
        if seconds < FINEST_SECONDS:
            return self
        if seconds > LONGEST_GAP:
            return replace(self, at=at, last=now, traffic=replace(self.traffic, intervals=(), waited=Lengths()))
        interval = between(self.last, now, seconds, replicas)
        known = replace(self, at=at, last=now, replicas=replicas, traffic=self.traffic.after(interval, self.last, now))
        capacity = known.capacity
        return known if capacity is None else replace(known, learner=self.learner.after(interval, capacity))

    def with_estimate(self, estimate: Estimate) -> Known:
        """What is known after a run of the twin; estimates of one mix of requests are smoothed over some minutes."""
        elapsed = estimate.at - self.estimate.at if self.estimate else 0.0
        of_another_mix = self.traffic.alike < elapsed + max(CHANGE_SECONDS)
        keep = 0.0 if of_another_mix else math.exp(-elapsed / SMOOTHING_SECONDS)
        smoothed = {}
        for name, headroom in estimate.headroom.items():
            total, weight = self.smoothed.get(name, (0.0, 0.0))
            smoothed[name] = (total * keep + math.log(headroom.ratio), weight * keep + 1.0)
        return replace(self, smoothed=smoothed, estimate=estimate)

    def without_estimates(self) -> Known:
        """The same engine, before it was estimated by any objective."""
        return replace(self, smoothed={}, estimate=None)

    @property
    def capacity(self) -> float | None:
        """KV tokens of a replica; None where they are not reported and matter."""
        if self.engine in _SLOTTED and self.last.limit:
            return self.last.limit / self.replicas * _CONTEXT
        return self.last.capacity / self.replicas if self.last.capacity else None

    @property
    def due(self) -> bool:
        """Whether there is enough for an estimate, and none that is recent and of this mix of requests."""
        recent = self.estimate is not None and self.at - self.estimate.at < ESTIMATE_SECONDS
        return (self.of_other_mix or not recent) and self._lacking is None

    @property
    def since(self) -> float:
        """When the present mix of requests began."""
        return self.at - self.traffic.alike

    @property
    def of_other_mix(self) -> bool:
        """Whether the mix of requests has changed since the last estimate, as far as is seen."""
        return self.estimate is not None and self.since - self.estimate.since > FINEST_SECONDS

    @property
    def missing(self) -> Missing | None:
        """Why there is no load headroom; None where there is."""
        stale = self.estimate is None or self.at - self.estimate.at > STALE_SECONDS
        return self._lacking or (Missing.PENDING if stale else None)

    @property
    def _lacking(self) -> Missing | None:
        if self.capacity is None:
            return Missing.SLOTS if self.engine in _SLOTTED else Missing.CAPACITY
        if self.last.ttft is None or self.last.inter_token is None:
            return Missing.LATENCIES
        if self.last.running is None or self.last.finished is None or self.last.generation_tokens is None:
            return Missing.REQUESTS
        if self.traffic.busy < self._least_busy:
            return Missing.BUSY
        if self.traffic.sizes() is None:
            return Missing.TRAFFIC
        return Missing.DECODING if self.learner.cost is None else None

    @property
    def _least_busy(self) -> float:
        proven = self.learner.inherited and self.learner.speed_error is not None and not self.suspect
        return INHERITED_BUSY_SECONDS if proven else BUSY_SECONDS

    @property
    def new(self) -> bool:
        """Whether too little was seen of the engine for a step cost of its own."""
        return self.traffic.busy < QUIET_SECONDS and not self.learner.inherited

    @property
    def elder(self) -> bool:
        """Whether enough was seen of the engine for others to take over its step cost."""
        return self.traffic.busy >= BUSY_SECONDS and bool(self.learner.cost)

    def heir_of(self, kin: Iterable[Known]) -> Known:
        """What is known with the step cost of the longest known of `kin` that is of the same kind.

        An engine, with its KV cache and running limit, stands for the GPUs and arguments that nobody reports.
        """
        elders = [each for each in kin if each.elder and self._like(each)]
        if not elders:
            return self
        return replace(self, learner=max(elders, key=lambda each: each.traffic.busy).learner.heir())

    def _like(self, other: Known) -> bool:
        own, theirs = self.capacity, other.capacity
        if own is None or theirs is None or (self.engine, self.last.limit) != (other.engine, other.last.limit):
            return False
        return _same_size(own, theirs)

    @property
    def headroom(self) -> dict[str, Headroom]:
        """For each objective the smoothed headroom; empty where it is missing."""
        if self.estimate is None or self.missing:
            return {}
        return {
            name: Headroom(math.exp(total / weight), self.estimate.headroom[name].binding)
            for name, (total, weight) in self.smoothed.items()
            if name in self.estimate.headroom
        }

    @property
    def suspect(self) -> bool:
        """Whether tokens come so much faster or slower than predicted that the figures should not be believed."""
        error = self.learner.speed_error
        return error is not None and abs(math.log(error)) > math.log1p(SUSPECT_ERROR)

    def twin(self, sizes: Sizes) -> twin.Engine | None:
        """What the twin of one replica is like; None where its cost or capacity is not known."""
        capacity = self.capacity
        if self.learner.cost is None or capacity is None:
            return None
        reserving = self.engine in _RESERVING
        return twin.Engine(
            cost=self.learner.cost,
            capacity=capacity,
            ceiling=self._ceiling(capacity) if reserving else 1.0,
            shared=sizes.prompt * sizes.shared,
            limit=self._limit,
            per_step=sizes.per_step,
            prefill_first=reserving,
        )

    @property
    def _limit(self) -> float:
        """Most running requests of a replica: as reported, or where requests were seen to wait again and again."""
        if self.last.limit:
            return self.last.limit / self.replicas
        most = max((each.running for each in self.traffic.intervals), default=0.0)
        full = sum(each.running == most and all(each.waiting) for each in self.traffic.intervals)
        return most if most >= _LEAST_LIMIT and full >= _FULL_POLLS else math.inf

    def _ceiling(self, capacity: float) -> float:
        """Usage at which requests wait although more could run: room that is reserved for answers."""
        waiting = [
            usage
            for each in self.traffic.intervals
            if all(each.waiting)
            and each.running < self._limit * _NEAR_LIMIT
            and (usage := max(each.held) / capacity) >= _LEAST_CEILING
        ]
        return min(1.0, median(waiting)) if len(waiting) >= _CEILING_POLLS else _RESERVING_CEILING


def _same_size(one: float, other: float) -> bool:
    return abs(math.log(one) - math.log(other)) <= ALIKE


def begun(now: Observation, at: float, engine: str, before: Known | None = None) -> Known:
    """What is known at the first poll of an engine's life; its cost is still that of its life `before`.

    Not where its KV cache has another size: other weights, GPUs or arguments have other costs.
    """
    known = Known(begun=at, at=at, last=now, engine=engine)
    if before is None or (before.capacity and known.capacity and not _same_size(before.capacity, known.capacity)):
        return known
    return replace(known, learner=replace(before.learner, recent=()))


def targets(objectives: Sequence[Objective], tallies: Mapping[str, Tally]) -> list[Target]:
    """The objectives that there is a load headroom for, at the bucket boundary that they are counted at."""
    return [
        Target(each.name, each.field, tallies[each.name].boundary or each.seconds, 1.0 - each.ratio)
        for each in objectives
        if each.field in _FIELDS
    ]


def saturation(known: Known) -> float | None:
    """Load as a share of what the engine can take within its objective of first tokens.

    Load is the arrivals of the last minutes, the last one above all, of which a new replica has taken its part; and
    what waits, as if it came within five minutes.
    """
    headroom = known.headroom.get("ttft")
    if headroom is None:
        return None
    sustainable = headroom.ratio * known.traffic.rate * known.replicas
    backlog = (known.last.waiting or 0.0) / USUAL_SECONDS
    load = known.traffic.present_rate * known.replicas + backlog
    return min(MOST_SATURATION, load / sustainable) if sustainable > 0 else None


def points(known: Known, labels: Mapping[str, str]) -> Iterator[Point]:
    """The signals of the load headroom; none where something is missing."""
    origin = "step cost learned from latencies, traffic of 15 min replayed"
    found = known.headroom
    for name, (ratio, binding) in found.items():
        yield point(schema.LOAD_HEADROOM, ratio, origin, labels, objective=name)
        sustainable = ratio * known.traffic.rate * known.replicas
        yield point(schema.SUSTAINABLE_REQUESTS, sustainable, origin, labels, objective=name)
        for resource in (twin.KV_CACHE, twin.COMPUTE, twin.CONCURRENCY):
            binds = float(resource == binding)
            yield point(schema.LOAD_HEADROOM_BINDING, binds, origin, labels, objective=name, resource=resource)
    if found:
        against = "predicted against seen tokens per second"
        yield point(schema.LOAD_HEADROOM_SUSPECT, float(known.suspect), against, labels)
    level = saturation(known)
    if level is not None:
        yield point(schema.SATURATION, level, "1 / load headroom, and the queue", labels, resource="max")
