"""How good probabilities are: rank (AUC), Brier skill, calibration; and the fit of logistic constants."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

BINS: Final = 10
RIDGE: Final = 1e-3
NEWTON_STEPS: Final = 50


class Pair(NamedTuple):
    """What was foretold and what happened."""

    chance: float
    happened: bool


class Bin(NamedTuple):
    """Forecasts within a tenth of the scale: how many, their mean, and how often it happened."""

    cases: int
    foretold: float
    observed: float


class Quality(NamedTuple):
    """Of a probability: how often it happened, rank, skill beside always saying that, expected calibration error."""

    rate: float
    auc: float
    skill: float
    error: float


def bins(pairs: Sequence[Pair]) -> list[Bin]:
    """The reliability curve, empty bins left out."""
    found = []
    for number in range(BINS):
        within = [one for one in pairs if min(int(one.chance * BINS), BINS - 1) == number]
        if within:
            count = len(within)
            happened = sum(one.happened for one in within)
            found.append(Bin(count, sum(one.chance for one in within) / count, happened / count))
    return found


def auc(pairs: Sequence[Pair]) -> float:
    """The chance that a case that happened ranks above one that did not, ties half; NaN if one kind is missing."""
    ordered = sorted(pairs)
    positives = sum(one.happened for one in ordered)
    negatives = len(ordered) - positives
    if not positives or not negatives:
        return math.nan
    ranks, begin = 0.0, 0
    while begin < len(ordered):
        end = begin
        while end < len(ordered) and ordered[end].chance == ordered[begin].chance:
            end += 1
        ranks += (begin + 1 + end) / 2.0 * sum(one.happened for one in ordered[begin:end])
        begin = end
    return (ranks - positives * (positives + 1) / 2.0) / (positives * negatives)


def quality(pairs: Sequence[Pair]) -> Quality:
    """The figures of a probability; NaN where nothing was foretold, or all or nothing happened."""
    if not pairs:
        return Quality(math.nan, math.nan, math.nan, math.nan)
    rate = sum(one.happened for one in pairs) / len(pairs)
    reference = rate * (1.0 - rate)
    actual = sum((one.chance - one.happened) ** 2 for one in pairs) / len(pairs)
    error = sum(one.cases * abs(one.foretold - one.observed) for one in bins(pairs)) / len(pairs)
    return Quality(rate, auc(pairs), 1.0 - actual / reference if reference else math.nan, error)


def logistic(rows: Sequence[tuple[float, ...]], happened: Sequence[bool]) -> tuple[float, ...]:
    """The constant and the factors of a logistic regression, by Newton's method.

    Raises:
        ValueError: all or nothing happened.
    """
    if all(happened) or not any(happened):
        raise ValueError("a fit needs cases that happened and cases that did not")
    inputs = [(1.0, *row) for row in rows]
    size = len(inputs[0])
    weights = [0.0] * size
    for _ in range(NEWTON_STEPS):
        gradient = [-RIDGE * weight for weight in weights]
        hessian = [[RIDGE if i == j else 0.0 for j in range(size)] for i in range(size)]
        for row, label in zip(inputs, happened, strict=True):
            score = sum(weight * value for weight, value in zip(weights, row, strict=True))
            chance = 1.0 / (1.0 + math.exp(-min(max(score, -30.0), 30.0)))
            spread = chance * (1.0 - chance)
            for i in range(size):
                gradient[i] += (label - chance) * row[i]
                for j in range(size):
                    hessian[i][j] += spread * row[i] * row[j]
        step = _solved(hessian, gradient)
        weights = [weight + change for weight, change in zip(weights, step, strict=True)]
        if max(map(abs, step)) < 1e-8:
            break
    return tuple(weights)


def _solved(matrix: list[list[float]], right: list[float]) -> list[float]:
    """The solution of a small linear system, by elimination with pivots."""
    size = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for column in range(size):
        pivot = max(range(column, size), key=lambda index: abs(rows[index][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for index in range(size):
            if index != column:
                factor = rows[index][column] / rows[column][column]
                rows[index] = [one - factor * other for one, other in zip(rows[index], rows[column], strict=True)]
    return [rows[index][size] / rows[index][index] for index in range(size)]
