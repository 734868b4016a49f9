"""What a step of an engine costs, learned online from the engine's own latencies.

A step takes `step + token·prompt tokens + pair·pairs + sequence·decoding sequences + context·KV tokens read` seconds.
The five coefficients are fitted by least squares, none of them negative, to the inter-token latency and to the time
to first tokens that did not queue. Old evidence fades.
"""

from __future__ import annotations

import math
from dataclasses import field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from llm_headroom.frozen import frozen_named

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_headroom.derive.interval import Interval

FORGETTING_SECONDS: Final = 1800.0
REFIT_SECONDS: Final = 60.0
LONGEST_INTERVAL: Final = 45.0
"""Seconds; the means of a longer interval hide what the steps were like."""
INHERITED_SHARE: Final = 0.25
"""Weight of what another engine has learned: an engine's own latencies soon say more."""
SELF_CHECK_SECONDS: Final = 120.0
"""For how long what was predicted is compared with what was seen."""
_RATE_SECONDS: Final = 30.0
_LEAST_TOKENS: Final = 5.0
_SURE_TOKENS: Final = 50.0
"""Inter-token latencies from which on their mean is as sure as it gets."""
_LATENCY_ERROR: Final = 0.07
_PREFILL_ERROR: Final = 0.7
"""Of the largest share that prefill has in a neighbouring poll: prompts are booked later than they are computed."""
_FIRST_ERRORS: Final = (0.25, 0.6)
"""Relative error of the time to a lone first token, and of that of several together."""
_LIGHT_LOAD: Final = 0.5
"""Load on prefill up to which first tokens wait for little but their own prefill."""
_WAIT_FOR_STEP: Final = 1.5
"""Steps that a lone request takes: half of the one it arrives in, and its own."""
_HUBER: Final = 2.0
"""Standard deviations from which on a residual counts linearly instead of squared."""
_LATENCY_DRIFT: Final = 1.0005
"""By which the least inter-token latency rises per poll, so that it follows an engine that gets slower."""
_NEIGHBOURS: Final = 5
_PRIOR_SD: Final = (1.0, 1.0, 2.0, 1.5, 1.0)

Row: TypeAlias = tuple[float, float, float, float, float]
"""One number for each coefficient, in the order of `StepCost`."""


class StepCost(NamedTuple):
    """Seconds per step, per computed prompt token, per decoding sequence, per KV token read, and per pair of tokens."""

    step: float
    token: float
    sequence: float
    context: float
    pair: float

    def decode_seconds(self, sequences: float, context: float) -> float:
        """A step that only decodes so many sequences over so many KV tokens."""
        return self.step + self.sequence * sequences + self.context * context

    def prefill_seconds(self, tokens: float, pairs: float) -> float:
        """What computing prompt tokens adds to a step."""
        return self.token * tokens + self.pair * pairs


class Evidence(NamedTuple):
    """Normal equations: the weighted sum of `x·xᵀ`, row by row, and that of `y·x`."""

    squares: tuple[Row, ...] = ((0.0,) * 5,) * 5
    products: Row = (0.0,) * 5

    def faded(self, share: float) -> Evidence:
        """The evidence with a weight `share` times as great."""
        squares = tuple(_row([value * share for value in row]) for row in self.squares)
        return Evidence(squares, _row([value * share for value in self.products]))

    def with_row(self, x: Row, y: float, deviation: float, known: StepCost | None) -> Evidence:
        """The evidence with the equation `x·θ = y`; one far from what is `known` weighs less (Huber)."""
        if known is not None:
            off = abs(y - _dot(x, known)) / deviation
            if off > _HUBER:
                deviation *= math.sqrt(off / _HUBER)
        weight = 1.0 / deviation**2
        squares = tuple(
            _row([value + weight * a * b for value, b in zip(row, x, strict=True)])
            for row, a in zip(self.squares, x, strict=True)
        )
        return Evidence(squares, _row([value + weight * y * a for value, a in zip(self.products, x, strict=True)]))


def _row(values: Sequence[float]) -> Row:
    a, b, c, d, e = values
    return a, b, c, d, e


def _dot(x: Sequence[float], y: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def _solved(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float] | None:
    """The solution of a small linear system by elimination with pivots; None where there is no single one."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for column in range(len(rows)):
        pivot = max(range(column, len(rows)), key=lambda index: abs(rows[index][column]))
        if abs(rows[pivot][column]) < 1e-12:  # noqa: PLR2004 - of numbers around 1
            return None
        rows[column], rows[pivot] = rows[pivot], rows[column]
        top = rows[column]
        for row in rows[column + 1 :]:
            share = row[column] / top[column]
            for index in range(column, len(top)):
                row[index] -= share * top[index]
    found = [0.0] * len(rows)
    for column in reversed(range(len(rows))):
        row = rows[column]
        found[column] = (row[-1] - sum(row[i] * found[i] for i in range(column + 1, len(rows)))) / row[column]
    return found


def non_negative(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """The `x` of at least 0 that minimises `x·matrix·x - 2·right·x`, for a symmetric positive definite matrix.

    Every set of positive elements is tried, the full one first: it is the answer if none of it is negative.
    """
    size = len(right)
    best, least = [0.0] * size, 0.0
    for count in range(size, 0, -1):
        for chosen in combinations(range(size), count):
            part = _solved([[matrix[a][b] for b in chosen] for a in chosen], [right[a] for a in chosen])
            if part is None or min(part) < 0.0:
                continue
            value = -sum(right[a] * x for a, x in zip(chosen, part, strict=True))
            if value < least:
                least, best = value, [0.0] * size
                for a, x in zip(chosen, part, strict=True):
                    best[a] = x
        if count == size and least < 0.0:
            break
    return best


@frozen_named
class Learner:
    """What has been learned of one engine. `cost` is None until tokens were decoded.

    `least_latency` is the least mean inter-token latency of an interval in seconds. `light` are the seconds to first
    tokens that did not queue, and their prompt tokens: where prefill's cost begins. `predicted` and `seen` are seconds
    of inter-token latency of the last minutes, as the cost has them and as they were. `inherited` says that another
    engine of the same kind has learned the first of it.
    """

    evidence: Evidence = field(default_factory=Evidence)
    cost: StepCost | None = None
    least_latency: float | None = None
    light: tuple[float, float] = (0.0, 0.0)
    prefill_rate: float = 0.0
    recent: tuple[Interval, ...] = ()
    since_fit: float = 0.0
    predicted: float = 0.0
    seen: float = 0.0
    inherited: bool = False

    def heir(self) -> Learner:
        """What a new engine of the same kind can take over; its own latencies check and correct it."""
        return Learner(
            evidence=self.evidence.faded(INHERITED_SHARE),
            cost=self.cost,
            least_latency=self.least_latency,
            light=(self.light[0] * INHERITED_SHARE, self.light[1] * INHERITED_SHARE),
            inherited=True,
        )

    def after(self, interval: Interval, capacity: float) -> Learner:
        """What is known after one more interval. `capacity` is that of the KV cache in tokens."""
        if interval.seconds > LONGEST_INTERVAL:
            return replace(self, recent=())
        keep = math.exp(-interval.seconds / FORGETTING_SECONDS)
        keep_rate = math.exp(-interval.seconds / _RATE_SECONDS)
        rate = interval.computed / interval.seconds
        known = replace(
            self,
            evidence=self.evidence.faded(keep),
            light=(self.light[0] * keep, self.light[1] * keep),
            prefill_rate=rate + (self.prefill_rate - rate) * keep_rate if self.recent else rate,
            recent=(*self.recent, interval)[-_NEIGHBOURS:],
            since_fit=self.since_fit + interval.seconds,
        )
        known = known._with_latencies()._with_first_tokens(interval)  # noqa: SLF001 - of the same class
        if known.since_fit >= REFIT_SECONDS or known.cost is None:
            return replace(known, cost=known._fitted(capacity), since_fit=0.0)  # noqa: SLF001 - of the same class
        return known

    @property
    def _prefill(self) -> tuple[float, float]:
        """Seconds per prompt token and per pair as far as known, before the first fit too."""
        if self.cost is not None:
            return self.cost.token, self.cost.pair
        return (self.light[0] / self.light[1] if self.light[1] else 0.0), 0.0

    def _with_latencies(self) -> Learner:
        """Learn from the inter-token latency of two intervals ago: of the steps of prompts that are booked by now."""
        last = self.recent[-1]
        known = self
        if last.tokens >= _LEAST_TOKENS and last.token_seconds > 0:
            latency = last.token_seconds / last.tokens
            least = latency if self.least_latency is None else min(self.least_latency * _LATENCY_DRIFT, latency)
            known = replace(self, least_latency=least)
        if len(self.recent) < _NEIGHBOURS:
            return known
        middle = self.recent[_NEIGHBOURS // 2]
        if middle.tokens < _LEAST_TOKENS or middle.preemptions or middle.token_seconds <= 0:
            return known
        latency, per_step = middle.token_seconds / middle.tokens, middle.decoding / middle.tokens
        token, pair = self._prefill
        prefill = max(token * near.computed + pair * near.pairs for near in self.recent[1:]) * per_step
        x = (1.0, middle.computed * per_step, middle.decoding, middle.context, middle.pairs * per_step)
        deviation = math.hypot(_LATENCY_ERROR * latency, _PREFILL_ERROR * prefill)
        deviation /= min(1.0, math.sqrt(middle.tokens / _SURE_TOKENS))
        known = replace(known, evidence=known.evidence.with_row(x, latency, deviation, self.cost))
        if self.cost is None:
            return known
        keep = math.exp(-middle.seconds / SELF_CHECK_SECONDS)
        return replace(
            known,
            predicted=self.predicted * keep + _dot(x, self.cost) * middle.tokens,
            seen=self.seen * keep + middle.token_seconds,
        )

    def _with_first_tokens(self, last: Interval) -> Learner:
        """Learn from the time to first tokens, as long as they do not queue."""
        if not last.firsts or not last.computed or any(last.waiting):
            return self
        load = self.prefill_rate * self.cost.token if self.cost is not None else 0.0
        if load >= _LIGHT_LOAD:
            return self
        known = replace(self, light=(self.light[0] + last.first_seconds, self.light[1] + last.computed))
        if self.cost is None or last.first_seconds <= 0:
            return known
        steps, slowed = _WAIT_FOR_STEP * last.firsts, 1.0 / (1.0 - load)
        x = (steps, last.computed * slowed, steps * last.decoding, steps * last.context, last.pairs * slowed)
        deviation = _FIRST_ERRORS[0 if last.firsts == 1 else 1] * last.first_seconds
        return replace(known, evidence=known.evidence.with_row(x, last.first_seconds, deviation, self.cost))

    def _fitted(self, capacity: float) -> StepCost | None:
        """The coefficients of all evidence, drawn towards what is plausible where it says little."""
        least = self.least_latency
        if least is None or capacity <= 0:
            return None
        token = self.light[0] / self.light[1] if self.light[1] else least / 300.0
        prior = StepCost(least, token, 0.003 * least, 0.5 * least / capacity, 2e-5 * token)
        matrix = [
            [
                self.evidence.squares[a][b] * prior[a] * prior[b] + (1.0 / _PRIOR_SD[a] ** 2 if a == b else 0.0)
                for b in range(5)
            ]
            for a in range(5)
        ]
        right = [self.evidence.products[a] * prior[a] + 1.0 / _PRIOR_SD[a] ** 2 for a in range(5)]
        fitted = _row([x * scale for x, scale in zip(non_negative(matrix, right), prior, strict=True)])
        cost = StepCost(*fitted)
        return cost if cost.token > 0 else cost._replace(token=0.3 * token)

    @property
    def speed_error(self) -> float | None:
        """Predicted over observed tokens per second and sequence of the last minutes; None before there are any."""
        return self.seen / self.predicted if self.predicted > 0 and self.seen > 0 else None
