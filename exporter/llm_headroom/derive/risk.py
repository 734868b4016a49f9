"""Probabilities of trouble within five minutes: KV cache saturation, and first tokens that come too late.

The constants are few and were fitted on replayed production traffic that the figures in the documentation were not
taken from; physics does the rest: occupancy is shot noise around the steady demand, queues have exponential tails.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING, Final

from llm_headroom.derive.estimates import GROWTH_SECONDS
from llm_headroom.derive.headroom import demanded, steady_demand

if TYPE_CHECKING:
    from llm_headroom.derive.estimates import Estimates
    from llm_headroom.derive.observation import Observation
    from llm_headroom.derive.pressure import Levels

HORIZON_SECONDS: Final = 300.0
_LOOK_AHEAD: Final = (15.0, 30.0, 60.0, 120.0, 300.0)
FACT: Final = 0.95
"""Of what is happening already; models are not asked."""
_GROWTH_AHEAD: Final = 30.0
"""Seconds for which the growth of the last ones is taken to go on."""
_UNLIKELY: Final = 2.5
"""Standard deviations from which on growth is no chance."""
_MEASUREMENT_ERROR: Final = 0.01  # of the capacity: gauges are rounded and some seconds old

# Fitted by bench/evaluate/calibrate.py on replayed traffic; docs/evaluation.md says how good they are on other traffic.
_KV: Final = (1.270, 0.821)
_HIGH_WATER: Final = (-0.667, 0.775, 0.001)


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def kv_distance(now: Observation, estimates: Estimates) -> float | None:
    """By how many standard deviations the expected KV demand misses the capacity (negative) at its worst moment."""
    demand, residence, held = steady_demand(estimates), estimates.residence.value, estimates.held.value
    capacity = now.capacity
    if not demand or not residence or not held or not capacity or now.used is None:
        return None
    begin = demanded(now, estimates)

    def deviation(ahead: float) -> float:
        fading = math.exp(-2.0 * ahead / residence)
        variance = 2.0 * held * demand * estimates.burstiness * (1.0 - fading)
        return math.sqrt(variance + (_MEASUREMENT_ERROR * capacity) ** 2)

    distances = []
    for ahead in _LOOK_AHEAD:
        fading = math.exp(-ahead / residence)
        expected = demand * (1.0 - fading) + begin * fading
        distances.append((expected - capacity) / deviation(ahead))
    # What grows faster than chance explains goes on growing: the mix of requests has changed, and no mean knows it yet.
    growth = estimates.growth.value or 0.0
    if growth * GROWTH_SECONDS > _UNLIKELY * deviation(GROWTH_SECONDS):
        distances.append((begin + growth * _GROWTH_AHEAD - capacity) / deviation(_GROWTH_AHEAD))
    return max(distances)


def blocked(now: Observation, estimates: Estimates) -> bool:
    """Whether a request waits that the free part of the KV cache does not hold, although more could run."""
    sizes = estimates.sizes
    if not now.waiting or now.capacity is None or now.used is None or sizes is None:
        return False
    full = now.limit is not None and (now.running or 0.0) >= now.limit
    return not full and now.capacity - now.used < sizes[0]


def with_facts(chance: float | None, *happening: bool) -> float | None:
    """A probability, where what it is the probability of is not happening already."""
    return max(FACT, chance or 0.0) if any(happening) else chance


def kv_feature(distance: float) -> float:
    """What the KV risk is a logistic function of."""
    return min(max(distance, -8.0), 3.0)


def kv_saturation(now: Observation, estimates: Estimates) -> float | None:
    """The probability that requests are preempted or blocked for lack of KV cache within the horizon."""
    distance = kv_distance(now, estimates)
    if distance is None or not estimates.warm:
        return None
    return _sigmoid(_KV[0] + _KV[1] * kv_feature(distance))


def high_water_features(levels: Levels) -> tuple[float, float] | None:
    """What the high-water risk is a logistic function of: log of TTFT over its objective, and KV demand."""
    high = levels.high_water()
    if high is None:
        return None
    ttft, demand = high
    return math.log(min(max(ttft, 1e-3), 1e3)), min(demand, 1.5)


def high_water(levels: Levels, estimates: Estimates) -> float | None:
    """From 0 to 1, from the highest forecast of TTFT and the highest KV demand of the last ten minutes.

    It ranks moments by how likely trouble is within the horizon, but is no probability: on calm days it is too high.
    """
    features = high_water_features(levels) if estimates.warm else None
    if features is None:
        return None
    return _sigmoid(_HIGH_WATER[0] + _HIGH_WATER[1] * features[0] + _HIGH_WATER[2] * features[1])


def queue_overflow(now: Observation, estimates: Estimates, limit: int | None) -> float | None:
    """The probability that more requests wait than may, within the horizon.

    The queue grows by what arrives beyond what ends, with the dispersion that arrivals have shown.
    """
    arrivals, finishes = estimates.arrivals.value, estimates.finishes.value
    if limit is None or now.waiting is None or arrivals is None or finishes is None or not estimates.warm:
        return None
    expected = now.waiting + (arrivals - finishes) * HORIZON_SECONDS
    deviation = math.sqrt(estimates.burstiness * arrivals * HORIZON_SECONDS) + _MEASUREMENT_ERROR * limit
    return max(float(now.waiting >= limit), NormalDist(limit, deviation).cdf(expected))
