"""What follows from the identities of the KV cache: used = usage * capacity, for engines that tell two of the three."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.model import Point, series_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from llm_headroom.model import Labels

_PARTS: Final = frozenset((schema.KV_CACHE_CAPACITY, schema.KV_CACHE_USED, schema.KV_CACHE_USAGE))


def implied(points: Iterable[Point]) -> Iterator[Point]:
    """Used tokens or the usage ratio, where the engine told the other one and the capacity of the same replica.

    vLLM's ratio leaves one reserved block out of the capacity, so that used tokens are right to one block.
    """
    told: dict[Labels, dict[str, Point]] = {}
    for point in points:
        if point.series.metric in _PARTS:
            told.setdefault(point.series.labels, {})[point.series.metric.name] = point
    for labels, parts in told.items():
        capacity = parts.get(schema.KV_CACHE_CAPACITY.name)
        used, usage = parts.get(schema.KV_CACHE_USED.name), parts.get(schema.KV_CACHE_USAGE.name)
        if capacity is None or not isinstance(capacity.value, float) or capacity.value <= 0:
            continue
        if used is None and usage is not None and isinstance(usage.value, float):
            yield Point(
                series_of(schema.KV_CACHE_USED, labels),
                usage.value * capacity.value,
                f"{usage.origin} * {capacity.origin}",
            )
        elif usage is None and used is not None and isinstance(used.value, float):
            yield Point(
                series_of(schema.KV_CACHE_USAGE, labels),
                used.value / capacity.value,
                f"{used.origin} / {capacity.origin}",
            )
