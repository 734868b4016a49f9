"""What others would say: naive estimates, and those of llm-d's Workload Variant Autoscaler by their formulas.

The autoscaler's are expressed from llm-d/llm-d-workload-variant-autoscaler, internal/engines/analyzers (2026-11), for
one replica: its saturation analyzer (a stock of KV tokens), its throughput analyzer (inter-token latency linear in KV
usage), each with the defaults found there, and its queueing model (a server whose rate depends on how many it serves),
fitted by least squares instead of its Kalman filter, which does worse.
"""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from llm_headroom.derive.interval import between
from llm_headroom.derive.observation import histogram_growth

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_headroom.derive.interval import Interval
    from llm_headroom.derive.observation import Observation

WINDOW: Final = 300.0
MINUTE: Final = 60.0
_SATURATED: Final = 0.8
_QUEUE: Final = 5.0
_KV_SATURATED: Final = 0.85
_USAGES: Final = (0.15, 0.85)
_SPREAD: Final = 0.3
_BASE_LATENCY: Final = 0.006
_LEAST_PAIRS: Final = 5
_LONGEST_QUEUE: Final = 500
_LARGE: Final = 1e100
TRIVIAL: Final = 1.7
"""What is said without looking: about the geometric mean of the ladder."""


@dataclass(slots=True)
class Peers:
    """Recent readings, and what the estimators remember beyond them."""

    objective: float
    limit: float
    recent: deque[tuple[float, Observation]] = field(default_factory=deque)
    saturated: deque[float] = field(default_factory=lambda: deque(maxlen=20))
    pairs: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=360))
    batches: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=180))
    prefills: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=180))
    chance: random.Random = field(default_factory=lambda: random.Random(1))  # noqa: S311 - simulation, not security

    def poll(self, at: float, now: Observation) -> None:
        """One more reading."""
        if self.recent:
            last_at, last = self.recent[-1]
            each = between(last, now, at - last_at)
            if (now.waiting or 0.0) >= _QUEUE:
                self.saturated.append(now.used or 0.0)
            if each.tokens and now.usage is not None and _USAGES[0] <= now.usage <= _USAGES[1]:
                self.pairs.append((now.usage, each.token_seconds / each.tokens))
            if each.tokens:
                self.batches.append((each.decoding, each.token_seconds / each.tokens))
            if each.firsts and not any(each.waiting):
                self.prefills.append((each.computed, each.first_seconds))
        self.recent.append((at, now))
        while self.recent[0][0] < at - WINDOW:
            self.recent.popleft()

    def estimates(self) -> dict[str, float]:
        """Each one's headroom; what cannot be said is left out."""
        (begin, first), (end, now) = self.recent[0], self.recent[-1]
        window = between(first, now, end - begin)
        usage = sum(one.usage or 0.0 for _, one in self.recent) / len(self.recent)
        running = sum(one.running or 0.0 for _, one in self.recent) / len(self.recent)
        found = {"trivial: always 1.7": TRIVIAL, "trivial: random": self.chance.uniform(0.0, 2.0 * TRIVIAL)}
        minute = next(one for at, one in self.recent if at >= end - MINUTE)
        for name, since in (("5 min", first), ("1 min", minute)):
            slow = first_token_quantile(since, now, 0.95)
            if slow:
                found[f"objective / p95 of TTFT, {name}"] = self.objective / slow
        if usage > 0:
            found["1 / KV usage"] = 1.0 / usage
        if running > 0:
            found["limit / running"] = self.limit / running
        theirs = {
            "WVA saturation V2": self._stock(now, window),
            "WVA throughput": self._rate(window),
            "WVA queueing": self._queueing(window),
        }
        return found | {name: value for name, value in theirs.items() if value is not None and value > 0}

    def _stock(self, now: Observation, window: Interval) -> float | None:
        prompt = window.prompt / window.firsts if window.firsts else 0.0
        demand = (now.used or 0.0) + (now.waiting or 0.0) * prompt
        supply = _SATURATED * (now.capacity or 0.0)
        if self.saturated:
            supply = min(supply, sum(self.saturated) / len(self.saturated))
        return supply / demand if demand > 0 and supply > 0 else None

    def _rate(self, window: Interval) -> float | None:
        if not window.firsts or not window.finished or not self.pairs:
            return None
        prompt, answer = window.prompt / window.firsts, window.generated / max(window.admitted, 1.0)
        held = prompt * (1.0 - window.cached / max(window.prompt, 1.0)) + answer / 2.0
        usages = [usage for usage, _ in self.pairs]
        count, mean = len(self.pairs), sum(usages) / len(usages)
        latency = sum(value for _, value in self.pairs) / count
        if max(usages) - min(usages) >= _SPREAD:
            slope = sum((k - mean) * (v - latency) for k, v in self.pairs) / sum((k - mean) ** 2 for k in usages)
            base = latency - slope * mean
        else:
            base = _BASE_LATENCY
            slope = (latency - base) / mean
        sequences = _KV_SATURATED * (self.recent[-1][1].capacity or 0.0) / held
        saturated = slope * _KV_SATURATED + base
        demand = window.arrivals / window.seconds * answer
        return sequences / saturated / demand if saturated > 0 and demand > 0 else None

    def _queueing(self, window: Interval) -> float | None:
        prefilled = sum(tokens for tokens, _ in self.prefills)
        if not window.firsts or len(self.batches) < _LEAST_PAIRS or not prefilled or not window.arrivals:
            return None
        token = sum(seconds for _, seconds in self.prefills) / prefilled
        step, sequence = _line(self.batches)
        prompt, answer = window.computed / window.firsts, window.generated / max(window.admitted, 1.0)

        def rate(running: int) -> float:
            return running / (token * prompt + answer * (step + sequence * running))

        rates = [rate(running) for running in range(1, int(self.limit) + 1)]

        def first(arrivals: float) -> float:
            """The mean time to the first token of a birth-death process with these rates and a long queue."""
            weight, total, running, waiting = 1.0, 1.0, 0.0, 0.0
            for count in range(1, len(rates) + _LONGEST_QUEUE):
                weight *= arrivals / rates[min(count, len(rates)) - 1]
                total += weight
                running += weight * min(count, len(rates))
                waiting += weight * max(0, count - len(rates))
                if total > _LARGE:
                    weight, total, running, waiting = (each / _LARGE for each in (weight, total, running, waiting))
            return waiting / total / arrivals + token * prompt + step + sequence * running / total

        low, high = 0.0, max(rates)
        for _ in range(12):
            middle = (low + high) / 2.0
            low, high = (middle, high) if first(middle) <= self.objective / 3.0 else (low, middle)
        return low / (window.arrivals / window.seconds)


def _line(pairs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """The base and the slope of a line through pairs, neither negative."""
    pairs = tuple(pairs)
    mean_x, mean_y = sum(x for x, _ in pairs) / len(pairs), sum(y for _, y in pairs) / len(pairs)
    spread = sum((x - mean_x) ** 2 for x, _ in pairs)
    slope = max(0.0, sum((x - mean_x) * (y - mean_y) for x, y in pairs) / spread) if spread > 0 else 0.0
    base = mean_y - slope * mean_x
    return (base, slope) if base > 0 else (0.0, mean_y / mean_x)


def first_token_quantile(first: Observation, now: Observation, share: float) -> float | None:
    """Prometheus' `histogram_quantile` of the first tokens between two readings."""
    grown = histogram_growth(first.ttft, now.ttft)
    if grown is None:
        return None
    rank, below, lower = share * grown.count, 0.0, 0.0
    for bound, count in zip(grown.bounds, grown.counts, strict=True):
        if count >= rank:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * (rank - below) / (count - below)
        below, lower = count, bound
    return lower
