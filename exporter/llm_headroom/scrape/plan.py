"""A layout's mapping, resolved into positions: what a poll has to do with the values of an exposition, and no more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import le
from typing import TYPE_CHECKING, NamedTuple

from llm_headroom.engines.rules import Combine
from llm_headroom.model import Histogram, Point, SampleState, Series

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


class Scalar(NamedTuple):
    """A number of ours, from one or more positions."""

    series: Series
    origin: str
    indices: tuple[int, ...]
    scale: float
    combine: Combine


class Rest(NamedTuple):
    """A counter less some of its parts."""

    series: Series
    origin: str
    indices: tuple[int, ...]
    less: tuple[int, ...]


class Newest(NamedTuple):
    """Info series of which the one with the greatest value holds: positions, and the points of each."""

    indices: tuple[int, ...]
    points: tuple[tuple[Point, ...], ...]


class Buckets(NamedTuple):
    """A histogram of ours; each of `parts` picks an upstream one's cumulative counts, `sums` are their sums."""

    series: Series
    origin: str
    bounds: tuple[float, ...]
    parts: tuple[Callable[[Sequence[float]], tuple[float, ...]], ...]
    sums: tuple[int, ...]
    scale: float


class Derived(NamedTuple):
    """A value that is made of those at some positions."""

    make: Callable[..., float]
    indices: tuple[int, ...]


class Mapped(NamedTuple):
    """What a plan made of an exposition: points, and how many upstream samples went which way."""

    points: list[Point]
    invalid: int


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A layout's mapping, resolved: which positions make which points.

    `owned` says whether any sample can only be this kind of engine's. `derived` are values that are made of those at
    some positions, and have the positions behind those of the layout.
    """

    scalars: tuple[Scalar, ...]
    histograms: tuple[Buckets, ...]
    constants: tuple[Point, ...]
    states: Mapping[SampleState, int]
    unmapped: tuple[str, ...]
    problems: tuple[str, ...]
    owned: bool
    derived: tuple[Derived, ...] = ()
    rests: tuple[Rest, ...] = ()
    newest: tuple[Newest, ...] = ()

    def apply(self, values: Sequence[float]) -> Mapped:
        """Points from the values of a scrape. Values that cannot be (NaN, ±Inf, negative) are dropped and counted."""
        points = list(self.constants)
        invalid = 0
        values = self._with_derived(values)
        for series, origin, indices, scale, combine in self.scalars:
            if len(indices) == 1:
                value = values[indices[0]]
            elif combine is Combine.MAX:
                value = max([values[index] for index in indices])
            else:
                value = sum([values[index] for index in indices])
            if 0.0 <= value < math.inf:
                points.append(Point(series, value * scale if scale != 1.0 else value, origin))
            else:
                invalid += len(indices)
        for series, origin, bounds, parts, sums, scale in self.histograms:
            counts = parts[0](values)
            if len(parts) > 1:
                counts = tuple(map(sum, zip(*[part(values) for part in parts], strict=True)))
            total = sum([values[index] for index in sums])
            if _cumulative(counts) and math.isfinite(total):
                points.append(Point(series, Histogram(bounds, counts, total * scale), origin))
            else:
                invalid += len(bounds) * len(parts)
        for indices, listed in self.newest:
            times = [values[index] for index in indices]
            points += listed[times.index(max(times))]
        return Mapped(points, invalid)

    def left(self, values: Sequence[float]) -> Iterator[tuple[Rest, float, float]]:
        """The counters that have parts taken off, each with its value before and after that."""
        values = self._with_derived(values) if self.rests else values
        for rest in self.rests:
            whole = sum([values[index] for index in rest.indices])
            less = sum([values[index] for index in rest.less])
            if 0.0 <= less < math.inf and whole < math.inf:
                yield rest, whole, max(whole - less, 0.0)

    def _with_derived(self, values: Sequence[float]) -> Sequence[float]:
        if not self.derived:
            return values
        return [*values, *(make(*[values[index] for index in indices]) for make, indices in self.derived)]


def product(one: float, other: float) -> float:
    """NaN, which is no value, where either is negative: two wrongs make no right."""
    return one * other if one >= 0.0 <= other else math.nan


def _cumulative(counts: tuple[float, ...]) -> bool:
    return counts[0] >= 0.0 and counts[-1] < math.inf and all(map(le, counts, counts[1:]))
