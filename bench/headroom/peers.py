"""What others would say: naive estimates, and those of llm-d's Workload Variant Autoscaler by their formulas.

The autoscaler's are expressed from llm-d/llm-d-workload-variant-autoscaler, internal/engines/analyzers (2026-11), for
one replica: its saturation analyzer (a stock of KV tokens), its throughput analyzer (inter-token latency linear in KV
usage), each with the defaults found there.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from llm_headroom.derive.interval import between
from llm_headroom.derive.observation import histogram_growth

if TYPE_CHECKING:
    from llm_headroom.derive.interval import Interval
    from llm_headroom.derive.observation import Observation

WINDOW: Final = 300.0
_SATURATED: Final = 0.8
_QUEUE: Final = 5.0
_KV_SATURATED: Final = 0.85
_USAGES: Final = (0.15, 0.85)
_SPREAD: Final = 0.3
_BASE_LATENCY: Final = 0.006
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

    def poll(self, at: float, now: Observation) -> None:
        """One more reading."""
        if self.recent:
            last_at, last = self.recent[-1]
            each = between(last, now, at - last_at)
            if (now.waiting or 0.0) >= _QUEUE:
                self.saturated.append(now.used or 0.0)
            if each.tokens and now.usage is not None and _USAGES[0] <= now.usage <= _USAGES[1]:
                self.pairs.append((now.usage, each.token_seconds / each.tokens))
        self.recent.append((at, now))
        while self.recent[0][0] < at - WINDOW:
            self.recent.popleft()

    def estimates(self) -> dict[str, float]:
        """Each one's headroom; what cannot be said is left out."""
        (begin, first), (end, now) = self.recent[0], self.recent[-1]
        window = between(first, now, end - begin)
        usage = sum(one.usage or 0.0 for _, one in self.recent) / len(self.recent)
        running = sum(one.running or 0.0 for _, one in self.recent) / len(self.recent)
        found = {"trivial: always 1.7": TRIVIAL}
        slow = _quantile(first, now, 0.95)
        if slow:
            found["objective / p95 of TTFT"] = self.objective / slow
        if usage > 0:
            found["1 / KV usage"] = 1.0 / usage
        if running > 0:
            found["limit / running"] = self.limit / running
        theirs = {"WVA saturation V2": self._stock(now, window), "WVA throughput": self._rate(window)}
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


def _quantile(first: Observation, now: Observation, share: float) -> float | None:
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
