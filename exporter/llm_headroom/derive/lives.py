"""Counters that outlive the processes which they are read of: sums over one process after another."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from llm_headroom.derive.observation import growth
from llm_headroom.model import Kind, Point

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llm_headroom.model import Series

ENDED_ORIGIN = "runners that have ended"


class Total(NamedTuple):
    """A counter over several lives: their sum, and the latest life with its latest value."""

    sum: float
    life: str
    last: float

    def after(self, life: str, value: float) -> Total:
        """After a reading; a life of another name starts again, and so does a value that has fallen."""
        return Total(self.sum + growth(self.last if life == self.life else 0.0, value), life, value)


def accumulated(
    totals: Mapping[Series, Total], readings: Iterable[tuple[str, Iterable[Point]]]
) -> tuple[dict[Series, Total], list[Point]]:
    """The totals and the points after a poll of several lives, each with its name and points.

    Counters go on from where the lives before ended, and stay where they are while there is none. What a process
    counted between its last reading and its end is not known. Other points pass as they are.
    """
    after = dict(totals)
    points: list[Point] = []
    seen: set[Series] = set()
    for life, reading in readings:
        for point in reading:
            series, value, origin = point
            if series.metric.kind is not Kind.COUNTER or not isinstance(value, float):
                points.append(point)
                continue
            total = after[series].after(life, value) if series in after else Total(value, life, value)
            after[series] = total
            if series not in seen:
                points.append(Point(series, total.sum, origin))
                seen.add(series)
    points += [Point(series, each.sum, ENDED_ORIGIN) for series, each in after.items() if series not in seen]
    return after, points
