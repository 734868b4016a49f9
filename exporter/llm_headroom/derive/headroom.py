"""How much more the KV cache can take in: in tokens, as a ratio and in typical requests, and for how long."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.model import Point, numbers, series_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from llm_headroom.derive.estimates import Estimates
    from llm_headroom.derive.observation import Observation
    from llm_headroom.model import Labels, Metric

_PARTS: Final = (
    schema.KV_CACHE_CAPACITY,
    schema.KV_CACHE_USED,
    schema.REQUESTS_RUNNING,
    schema.REQUESTS_RUNNING_LIMIT,
    schema.REQUESTS_WAITING,
)


def kv_pools(points: Iterable[Point]) -> dict[Labels, dict[Metric, float]]:
    """Capacity and held tokens of each replica's KV cache, and its requests and their limit, as far as exposed."""
    found: dict[Labels, dict[Metric, float]] = {}
    for series, value in numbers(points, *_PARTS):
        found.setdefault(series.labels, {})[series.metric] = value
    return found


def fullest(pools: Mapping[Labels, Mapping[Metric, float]], model: str, now: Observation) -> tuple[Observation, int]:
    """The observation with the numbers of the model's fullest replica in place of their sum, and how many there are.

    A target is in trouble as soon as one of its replicas is: the sum hides a hot one.
    """
    own = [
        parts
        for labels, parts in pools.items()
        if parts.get(schema.KV_CACHE_CAPACITY)
        and schema.KV_CACHE_USED in parts
        and dict(labels).get("model", "") == model
    ]
    if len(own) < 2:  # noqa: PLR2004 - one replica is the target itself
        return now, 1
    worst = max(own, key=lambda parts: parts[schema.KV_CACHE_USED] / parts[schema.KV_CACHE_CAPACITY])

    def its(metric: Metric, together: float | None) -> float | None:
        return worst.get(metric, None if together is None else together / len(own))

    return replace(
        now,
        capacity=worst[schema.KV_CACHE_CAPACITY],
        used=worst[schema.KV_CACHE_USED],
        running=its(schema.REQUESTS_RUNNING, now.running),
        limit=its(schema.REQUESTS_RUNNING_LIMIT, now.limit),
        waiting=its(schema.REQUESTS_WAITING, now.waiting),
    ), len(own)


def kv_headroom(pools: Mapping[Labels, Mapping[Metric, float]], prompts: Mapping[str, float]) -> Iterator[Point]:
    """Tokens and ratio for each replica of `kv_pools`: what is not held by requests, less what already waits.

    Evictable cache counts as headroom. `prompts` is a typical uncached prompt in tokens by model; where it is not
    known, waiting requests are left out, since nobody knows what they will need.
    """
    for labels, parts in pools.items():
        capacity, used = parts.get(schema.KV_CACHE_CAPACITY), parts.get(schema.KV_CACHE_USED)
        if not capacity or used is None:
            continue
        waiting = parts.get(schema.REQUESTS_WAITING, 0.0) * prompts.get(dict(labels).get("model", ""), 0.0)
        tokens = max(0.0, capacity - used - waiting)
        origin = "capacity - used - waiting * prompt"
        yield Point(series_of(schema.KV_CACHE_HEADROOM_TOKENS, labels), tokens, origin)
        yield Point(series_of(schema.KV_CACHE_HEADROOM_RATIO, labels), tokens / capacity, origin)


def requests(now: Observation, estimates: Estimates) -> float | None:
    """Requests (uncached prompt and answer) that can still be admitted and end without running out of KV cache.

    By the larger of the sizes of a long while and of the last minute. How many may run at a time is another matter.
    """
    sizes = estimates.sizes
    if now.capacity is None or now.used is None or sizes is None or sum(sizes) <= 0:
        return None
    tokens = max(0.0, now.capacity - now.used - (now.waiting or 0.0) * sizes[0])
    return tokens / sum(sizes)


def demanded(now: Observation, estimates: Estimates) -> float:
    """KV tokens that requests hold, and that the waiting ones will hold at first."""
    return (now.used or 0.0) + (now.waiting or 0.0) * (estimates.prompt.value or 0.0)


def steady_demand(estimates: Estimates) -> float | None:
    """KV tokens that the present arrivals will hold once the engine has settled (Little's law)."""
    arrivals, residence, held = estimates.arrivals.value, estimates.residence.value, estimates.held.value
    if arrivals is None or residence is None or held is None:
        return None
    return arrivals * residence * held


def exhaustion_seconds(now: Observation, estimates: Estimates) -> float | None:
    """Seconds until the KV cache is full if demand stays as it is; None where it never fills up so, or is unknown.

    Occupancy approaches the steady demand exponentially, with the time that a request stays. Where as many requests
    run as may, what waits does not get into the cache: there is no such time.
    """
    if now.limit is not None and (now.running or 0.0) >= now.limit:
        return None
    demand, residence = steady_demand(estimates), estimates.residence.value
    if demand is None or residence is None or now.capacity is None or now.used is None or not estimates.warm:
        return None
    begin = demanded(now, estimates)
    if begin >= now.capacity:
        return 0.0
    if demand <= now.capacity:
        return None
    return residence * math.log((demand - begin) / (demand - now.capacity))
