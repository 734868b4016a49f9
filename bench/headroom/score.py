"""From estimates to figures: errors, bias at each load, ranking, and intervals over traces."""

from __future__ import annotations

import math
import random
from statistics import median
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headroom.ladder import Row

MOST: Final = 16.0
_RESAMPLES: Final = 200


def errors(rows: Sequence[Row]) -> list[float]:
    """Logarithms of what was said over what is true; both are bounded as the metric is."""
    return [math.log(min(max(row.said, 1.0 / MOST), MOST) / row.true) for row in rows]


def quantile(values: Sequence[float], share: float) -> float:
    """The value at that share of the sorted ones."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def middle(rows: Sequence[Row]) -> float:
    """The median of the absolute error."""
    return median(map(abs, errors(rows)))


def tail(rows: Sequence[Row]) -> float:
    """The 90th percentile of the absolute error."""
    return quantile([abs(each) for each in errors(rows)], 0.9)


def bias(rows: Sequence[Row]) -> float:
    """The median error: above 0 where too much headroom is said to be left."""
    return median(errors(rows))


def worst_bias(rows: Sequence[Row]) -> float:
    """The bias of the level at which it is farthest from 0."""
    levels = {row.level for row in rows}
    return max((bias([row for row in rows if row.level == level]) for level in levels), key=abs)


def ranking(rows: Sequence[Row]) -> float:
    """The chance that a moment at or beyond the limit is said to have less headroom than one at 80 % or below."""
    over = sorted(row.said for row in rows if row.level >= 1.0)
    under = sorted(row.said for row in rows if row.level <= 0.8)
    if not over or not under:
        return math.nan
    wins = sum((one < other) + 0.5 * (one == other) for one in over for other in under)
    return wins / (len(over) * len(under))


def cried(rows: Sequence[Row]) -> float:
    """The share of the minutes at 60 % load that are said to be beyond the limit."""
    calm = [row for row in rows if row.level == 0.6]
    return sum(row.said < 1.0 for row in calm) / len(calm) if calm else math.nan


def interval(rows: Sequence[Row], figure: Callable[[Sequence[Row]], float]) -> tuple[float, float]:
    """A 95 % bootstrap interval of a figure, over traces and, within each, over scenarios."""
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        groups.setdefault(row.group, {}).setdefault(row.scenario, []).append(row)
    chance = random.Random(1)  # noqa: S311 - simulation, not security
    figures = []
    for _ in range(_RESAMPLES):
        drawn: list[Row] = []
        for group in chance.choices(sorted(groups), k=len(groups)):
            for scenario in chance.choices(sorted(groups[group]), k=len(groups[group])):
                drawn += groups[group][scenario]
        figures.append(figure(drawn))
    return quantile(figures, 0.025), quantile(figures, 0.975)
