"""A target's own value out of those of its data-parallel replicas, as each metric's `across` says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_headroom import schema
from llm_headroom.model import Across, Histogram, Point, numbers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from llm_headroom.model import Labels, Series


def names(points: Iterable[Point]) -> set[str]:
    """The names of a target's replicas, by their running requests; one without a name is alone."""
    return {series.replica for series, _ in numbers(points, schema.REQUESTS_RUNNING)}


def combined(points: Iterable[Point]) -> Iterable[Point]:
    """Points with one for all replicas of a series.

    A metric that does not combine stays if the replicas agree, and dropped if they do not; so are histograms whose
    bounds differ. A capacity-weighted ratio without known capacities is the plain mean.
    """
    points = list(points)
    found = {point[0].replica for point in points}
    if len(found) > 1:
        return _groups(points)
    # Without its replica's name each series still has one point.
    return [Point(series.combined, value, origin) for series, value, origin in points] if any(found) else points


def _groups(points: Iterable[Point]) -> Iterator[Point]:
    groups: dict[Series, list[Point]] = {}
    capacities: dict[Labels, float] = {}
    for point in points:
        groups.setdefault(point.series.combined, []).append(point)
        if point.series.metric is schema.KV_CACHE_CAPACITY and isinstance(point.value, float):
            capacities[point.series.labels] = point.value
    for series, group in groups.items():
        first = group[0]
        if len(group) == 1:
            yield first if first.series is series else Point(series, first.value, first.origin)
            continue
        value = _value(series.metric.across, group, capacities)
        if value is not None:
            yield Point(series, value, first.origin)


def _value(across: Across, group: Sequence[Point], capacities: dict[Labels, float]) -> float | Histogram | None:
    first = group[0].value
    if isinstance(first, Histogram):
        histograms = [point.value for point in group if isinstance(point.value, Histogram)]
        if len({histogram.bounds for histogram in histograms}) != 1:
            return None
        counts = tuple(sum(column) for column in zip(*(each.counts for each in histograms), strict=True))
        return Histogram(first.bounds, counts, sum(each.sum for each in histograms))
    values = [point.value for point in group if isinstance(point.value, float)]
    if across is Across.SUM:
        return sum(values)
    if across is Across.MAX:
        return max(values)
    if across is Across.CAPACITY_WEIGHTED:
        weights = [capacities.get(point.series.labels, 0.0) for point in group]
        if not all(weights):
            return sum(values) / len(values)
        return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
    return values[0] if len(set(values)) == 1 else None
