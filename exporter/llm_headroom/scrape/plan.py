"""A layout's mapping, resolved into positions: what a poll has to do with the values of an exposition, and no more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import le
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom.engines.rules import Combine
from llm_headroom.model import Histogram, Point, SampleState, Series, Subject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from llm_headroom.model import Metric

MOST: Final = 1e24
"""No number of tokens, bytes or seconds is beyond it. What is worked out of those below, as squares, is a number."""
_ROUNDED: Final = 1.01
"""How far above 1 a share is still a matter of rounding."""


class Scalar(NamedTuple):
    """How a number of ours is read, at one or more positions; `most` is the largest that can be, before scaling."""

    origin: str
    indices: tuple[int, ...]
    scale: float
    combine: Combine
    most: float


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
    """How a histogram is read; each of `parts` picks an upstream one's cumulative counts, `sums` are their sums."""

    origin: str
    bounds: tuple[float, ...]
    parts: tuple[Callable[[Sequence[float]], tuple[float, ...]], ...]
    sums: tuple[int, ...]
    scale: float


class Read(NamedTuple):
    """A series of ours, and how its value is read, which is the same for all targets of an engine."""

    series: Series
    how: Scalar | Buckets


class Derived(NamedTuple):
    """A value that is made of those at some positions."""

    make: Callable[..., float]
    indices: tuple[int, ...]


class Mapped(NamedTuple):
    """What was made of samples or facts: points, how many samples were invalid, and what there is to say of that."""

    points: list[Point]
    invalid: int
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A layout's mapping, resolved: which positions make which points.

    `scalars` and `histograms` say how each of the series in `numbers` and `distributions` is read.
    `owned` says whether any sample can only be this kind of engine's. `derived` are values that are made of those at
    some positions, and have the positions behind those of the layout.
    """

    numbers: tuple[Series, ...]
    scalars: tuple[Scalar, ...]
    distributions: tuple[Series, ...]
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
        """Points from the values of a scrape. What cannot be (NaN, negative, beyond `MOST`) is dropped and counted."""
        points = list(self.constants)
        invalid = 0
        problems: list[str] = []
        values = self._with_derived(values)
        for series, (origin, indices, scale, combine, most) in zip(self.numbers, self.scalars, strict=True):
            if len(indices) == 1:
                value = values[indices[0]]
            elif combine is Combine.MAX:
                value = max([values[index] for index in indices])
            else:
                value = sum([values[index] for index in indices])
            if 0.0 <= value <= most:
                points.append(Point(series, value * scale if scale != 1.0 else value, origin))
            elif most < value and is_share(series.metric) and bounded(value * scale) is not None:
                points.append(Point(series, 1.0, origin))
            else:
                invalid += len(indices)
                if most < value < math.inf:
                    problems.append(beyond(origin, series.metric))
        histograms, dropped = self._histograms(values)
        points += histograms
        for indices, listed in self.newest:
            times = [values[index] for index in indices]
            points += listed[times.index(max(times))]
        return Mapped(points, invalid + dropped, tuple(problems))

    def _histograms(self, values: Sequence[float]) -> tuple[list[Point], int]:
        points: list[Point] = []
        invalid = 0
        for series, (origin, bounds, parts, sums, scale) in zip(self.distributions, self.histograms, strict=True):
            counts = parts[0](values)
            if len(parts) > 1:
                counts = tuple(map(sum, zip(*[part(values) for part in parts], strict=True)))
            total = sum([values[index] for index in sums])
            if _cumulative(counts) and 0.0 <= total <= MOST:
                points.append(Point(series, Histogram(bounds, counts, total * scale), origin))
            else:
                invalid += len(bounds) * len(parts)
        return points, invalid

    def left(self, values: Sequence[float]) -> Iterator[tuple[Rest, float, float]]:
        """The counters that have parts taken off, each with its value before and after that."""
        values = self._with_derived(values) if self.rests else values
        for rest in self.rests:
            whole = sum([values[index] for index in rest.indices])
            less = sum([values[index] for index in rest.less])
            if 0.0 <= less <= MOST and whole <= MOST:
                yield rest, whole, max(whole - less, 0.0)

    def _with_derived(self, values: Sequence[float]) -> Sequence[float]:
        if not self.derived:
            return values
        return [*values, *(make(*[values[index] for index in indices]) for make, indices in self.derived)]


def is_share(metric: Metric) -> bool:
    """Whether an engine's metric is a share of a whole, which cannot be above 1."""
    return metric.unit == "1" and metric.subject is not Subject.GPU and metric.name.endswith("_ratio")


def bounded(share: float) -> float | None:
    """A share of at most 1, since engines round; None if it is further above."""
    return min(share, 1.0) if share <= _ROUNDED else None


def possible(value: float, metric: Metric) -> float | None:
    """A value that an engine reports, which is `bounded` if it is a share."""
    return bounded(value) if is_share(metric) else value


def beyond(origin: str, metric: Metric) -> str:
    """What there is to say of a value that is larger than can be."""
    why = "is above 1, which no share can be" if is_share(metric) else f"is beyond {MOST:g}, which no engine can have"
    return f"{origin} {why}: {metric.name} is withheld"


def product(one: float, other: float) -> float:
    """NaN, which is no value, where either is negative: two wrongs make no right."""
    return one * other if one >= 0.0 <= other else math.nan


def _cumulative(counts: tuple[float, ...]) -> bool:
    return counts[0] >= 0.0 and counts[-1] <= MOST and all(map(le, counts, counts[1:]))
