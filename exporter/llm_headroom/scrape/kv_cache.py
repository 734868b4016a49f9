"""Derived from used = usage * capacity of the KV cache, for engines that expose two of the three."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.model import Point, series_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from llm_headroom.model import Labels, Metric, Series

_PARTS: Final = (schema.KV_CACHE_CAPACITY, schema.KV_CACHE_USED, schema.KV_CACHE_USAGE)
_ANY: Final = frozenset(_PARTS)


def completed(points: Sequence[Point]) -> list[Point]:
    """The points with what follows from those of the KV cache, and without what these cannot be.

    A capacity of 0 is an unknown one. Used tokens are no more than the capacity.
    """
    known = [point for point in points if point.series.metric in _ANY]
    most = {each.series.labels: each.value for each in known if each.series.metric is schema.KV_CACHE_CAPACITY}
    changed: dict[Series, Point | None] = {}
    for point in known:
        series, value, _ = point
        capacity = most.get(series.labels)
        if series.metric is schema.KV_CACHE_CAPACITY and not value:
            changed[series] = None
        if series.metric is not schema.KV_CACHE_USED or not isinstance(capacity, float) or not capacity:
            continue
        if isinstance(value, float) and value > capacity:
            changed[series] = point._replace(value=capacity)
    if changed:
        points = [each for point in points if (each := changed.get(point.series, point)) is not None]
        known = [point for point in points if point.series.metric in _ANY]
    return [*points, *implied(known)]


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
