"""How far an engine's resources are used: 1 where first tokens begin to leave their objective.

What an autoscaler wants: monotone in the load, without jumps, and comparable between engines and models.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import field
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from llm_headroom.derive.estimates import Mean
from llm_headroom.derive.headroom import demanded
from llm_headroom.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_headroom.derive.estimates import Estimates
    from llm_headroom.derive.observation import Observation

SMOOTHING_SECONDS: Final = 30.0
HIGH_WATER_SECONDS: Final = 600.0
_MARK_SECONDS: Final = 10.0
"""Marks closer than this are merged, so that the memory of ten minutes is at most 60 of them."""
_FULL: Final = 0.97
"""KV demand from which on a newcomer waits for others to end."""


def forecast_ttft(now: Observation, estimates: Estimates) -> float | None:
    """Seconds until the first token of a request that arrives now: the queue before it and its own prefill.

    No less than requests of the last minute have waited, whatever held them up, and where the KV cache is full no
    faster than others end.
    """
    capacity, computed = estimates.prefill_capacity, estimates.computed.value
    if not capacity or computed is None:
        return None
    waiting = now.waiting or 0.0
    expected = (waiting + 1.0) * computed / capacity
    if not waiting:
        return expected
    demand, finishes = kv_demand(now, estimates), estimates.finishes.value
    if demand is not None and demand > _FULL and finishes:
        expected = max(expected, waiting / finishes)
    return max(expected, estimates.wait.value or 0.0)


def kv_demand(now: Observation, estimates: Estimates) -> float | None:
    """What requests hold and what the waiting ones will hold at first, as a share of the KV cache; may exceed 1."""
    if not now.capacity or now.used is None:
        return None
    return demanded(now, estimates) / now.capacity


def resources(now: Observation, estimates: Estimates, slo_seconds: float | None) -> dict[str, float]:
    """Saturation by resource as it is at this moment; what cannot be known is left out.

    `kv_cache`: demand over capacity. `concurrency`: running and waiting requests over the engine's limit. `prefill`:
    the load on prefill (arriving prompt tokens over what it can take), or the forecast of TTFT over its objective,
    whichever is more: the load passes 1 before the queue has grown, the forecast follows the queue.
    """
    found: dict[str, float] = {}
    demand = kv_demand(now, estimates)
    if demand is not None:
        found["kv_cache"] = demand
    if now.limit and now.running is not None:
        found["concurrency"] = (now.running + (now.waiting or 0.0)) / now.limit
    forecast, capacity = forecast_ttft(now, estimates), estimates.prefill_capacity
    arrivals, computed = estimates.arrivals.value, estimates.computed.value
    # The first requests of an engine are slow, and few arrivals make no rate.
    if not estimates.warm or not slo_seconds or not capacity:
        return found
    if forecast is not None and arrivals is not None and computed is not None:
        found["prefill"] = max(arrivals * computed / capacity, forecast / slo_seconds)
    return found


@frozen
class Mark:
    """The highest forecast of TTFT over its objective and KV demand around `at` (seconds)."""

    at: float
    ttft: float
    demand: float


_AT: Final = attrgetter("at")
_TTFT: Final = attrgetter("ttft")
_DEMAND: Final = attrgetter("demand")


@frozen
class Levels:
    """What is remembered: each resource's level, smoothed, and the marks of the last ten minutes."""

    smoothed: Mapping[str, Mean] = field(default_factory=dict)
    marks: tuple[Mark, ...] = ()

    def after(self, levels: Mapping[str, float], mark: Mark | None, at: float, elapsed: float) -> Levels:
        """The levels with those of one more poll, `elapsed` seconds after the one before."""
        empty = Mean(SMOOTHING_SECONDS)
        smoothed = {
            name: self.smoothed.get(name, empty).add(level * elapsed, elapsed, elapsed)
            for name, level in levels.items()
        }
        recent = self.marks[bisect_right(self.marks, at - HIGH_WATER_SECONDS, key=_AT) :]
        if mark is not None and recent and mark.at - recent[-1].at < _MARK_SECONDS:
            *before, last = recent
            recent = (*before, Mark(last.at, max(last.ttft, mark.ttft), max(last.demand, mark.demand)))
        elif mark is not None:
            recent = (*recent, mark)
        return Levels(smoothed, recent)

    def by_resource(self) -> dict[str, float]:
        """The smoothed levels."""
        return {name: mean.value for name, mean in self.smoothed.items() if mean.value is not None}

    def high_water(self) -> tuple[float, float] | None:
        """The highest forecast of TTFT over its objective, and the highest KV demand, of ten minutes."""
        if not self.marks:
            return None
        return max(map(_TTFT, self.marks)), max(map(_DEMAND, self.marks))


def mark(now: Observation, estimates: Estimates, slo_seconds: float | None, at: float) -> Mark | None:
    """This moment's mark; None where the forecast cannot be made, or not yet: it would be remembered for long."""
    forecast = forecast_ttft(now, estimates) if estimates.warm else None
    if forecast is None or not slo_seconds:
        return None
    return Mark(at, forecast / slo_seconds, kv_demand(now, estimates) or 0.0)
