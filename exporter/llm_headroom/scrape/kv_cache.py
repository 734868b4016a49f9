"""Derived from used = usage * capacity of the KV cache, for engines that expose two of the three."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.model import Point, series_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from llm_headroom.model import Labels, Metric

_PARTS: Final = (schema.KV_CACHE_CAPACITY, schema.KV_CACHE_USED, schema.KV_CACHE_USAGE)
_ANY: Final = frozenset(_PARTS)


def limited(points: Iterable[Point]) -> list[Point]:
    """The points without capacities of 0, which are unknown ones, and with used tokens of no more than the capacity."""
    known = [point for point in points if point.series.metric is not schema.KV_CACHE_CAPACITY or point.value]
    most = {each.series.labels: each.value for each in known if each.series.metric is schema.KV_CACHE_CAPACITY}
    for index, (series, used, _) in enumerate(known):
        if series.metric is schema.KV_CACHE_USED:
            capacity = most.get(series.labels)
            if isinstance(capacity, float) and isinstance(used, float) and used > capacity:
                known[index] = known[index]._replace(value=capacity)
    return known


def implied(points: Iterable[Point]) -> Iterator[Point]:
    """Used tokens or the usage ratio, where the engine exposes the other one and the capacity of the same replica.

    vLLM's ratio leaves one reserved block out of the capacity, so that used tokens are right to one block.
    """
    parts: dict[Labels, dict[Metric, tuple[float, str]]] = {}
    for series, value, origin in points:
        if series.metric in _ANY and isinstance(value, float):
            parts.setdefault(series.labels, {})[series.metric] = (value, origin)
    for labels, by_metric in parts.items():
        capacity, used, usage = map(by_metric.get, _PARTS)
        if capacity is None or capacity[0] <= 0:
            continue
        if used is None and usage is not None:
            tokens, origin = usage[0] * capacity[0], f"{usage[1]} * {capacity[1]}"
            yield Point(series_of(schema.KV_CACHE_USED, labels), tokens, origin)
        elif usage is None and used is not None:
            ratio, origin = used[0] / capacity[0], f"{used[1]} / {capacity[1]}"
            yield Point(series_of(schema.KV_CACHE_USAGE, labels), ratio, origin)
