"""All that is derived of twenty minutes of an engine: calm, a ramp, more than it can take, calm, a restart, idle.

`pytest --update` writes the file; review the diff. What each number should be, other tests say; this one shows which
of them a change moves.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.config.objectives import Objectives
from llm_headroom.derive import slo
from llm_headroom.derive.memory import Memory, advance
from llm_headroom.model import Histogram
from timelines import BASE, point

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_headroom.model import Metric, Point

EXPECTED: Final = Path(__file__).parent / "fixtures" / "derived.txt"
STEP: Final = 5
END: Final = 1200
BOUNDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, math.inf)
SIZES: Final = (100.0, 200.0, 500.0, 1000.0, 2000.0, math.inf)
CAPACITY: Final = 40_000.0


def load(at: int) -> float:
    """What is asked of the engine, as a share of what it can take."""
    if at < 300:
        return 0.3
    if at < 600:
        return 0.3 + 0.8 * (at - 300) / 300
    if at < 700:
        return 1.5
    return 0.4 if at < 1100 else 0.0


class Engine:
    """Its counters so far; they begin anew when it does."""

    def __init__(self) -> None:
        self._sums: dict[Metric, float] = {}
        self._buckets: dict[Metric, list[float]] = {}
        self._totals: dict[Metric, float] = {}

    def _add(self, metric: Metric, by: float) -> None:
        self._totals[metric] = self._totals.get(metric, 0.0) + by

    def _observe(self, metric: Metric, mean: float, count: float, bounds: tuple[float, ...]) -> None:
        """So many observations, exponential around a mean."""
        counts = self._buckets.setdefault(metric, [0.0] * len(bounds))
        for place, bound in enumerate(bounds):
            counts[place] += count * -math.expm1(-bound / mean)
        self._sums[metric] = self._sums.get(metric, 0.0) + mean * count

    def poll(self, at: int) -> Iterator[Point]:
        """What it exposes after five more seconds."""
        share = load(at)
        over = max(0.0, share - 0.9)
        finished = 5.0 * min(share, 1.0) * STEP
        used = CAPACITY * min(0.98, 0.1 + 0.8 * share)
        self._add(schema.REQUESTS_FINISHED, finished)
        self._add(schema.PROMPT_TOKENS, 400.0 * finished)
        self._add(schema.PROMPT_TOKENS_CACHED, 100.0 * finished)
        self._add(schema.GENERATION_TOKENS, 150.0 * finished)
        self._add(schema.PREEMPTIONS, 4.0 * over * STEP)
        self._add(schema.ENGINE_STEPS, 40.0 * STEP if share else 0.0)
        self._observe(schema.TIME_TO_FIRST_TOKEN, 0.1 + 4.0 * over, finished, BOUNDS)
        self._observe(schema.REQUEST_QUEUE, 0.01 + 4.0 * over, finished, BOUNDS)
        self._observe(schema.REQUEST_DURATION, 3.0 + 10.0 * share, finished, BOUNDS)
        self._observe(schema.INTER_TOKEN_LATENCY, 0.02 + 0.03 * share, 149.0 * finished, BOUNDS)
        self._observe(schema.REQUEST_PROMPT_TOKENS, 400.0, finished, SIZES)
        self._observe(schema.REQUEST_GENERATION_TOKENS, 150.0, finished, SIZES)
        for replica, part in (("0", 0.6), ("1", 0.4)):
            yield point(schema.REQUESTS_RUNNING, round(30 * min(share, 1.0) * part) * 1.0, replica=replica)
            yield point(schema.REQUESTS_WAITING, round(80 * over * part) * 1.0, replica=replica)
            yield point(schema.REQUESTS_RUNNING_LIMIT, 32.0, replica=replica)
            yield point(schema.KV_CACHE_CAPACITY, CAPACITY / 2, replica=replica)
            yield point(schema.KV_CACHE_USED, min(used * part, 0.99 * CAPACITY / 2), replica=replica)
            yield point(schema.KV_CACHE_EVICTABLE, 500.0 * part, replica=replica)
            yield point(schema.KV_CACHE_USAGE, min(2 * part * used / CAPACITY, 0.99), replica=replica)
        for metric, total in self._totals.items():
            labels = {"reason": "stop"} if metric is schema.REQUESTS_FINISHED else {}
            yield point(metric, total, **labels)
        for metric, counts in self._buckets.items():
            bounds = BOUNDS if len(counts) == len(BOUNDS) else SIZES
            yield point(metric, Histogram(bounds, tuple(map(round, counts)), self._sums[metric]))


def lines() -> Iterator[str]:
    """What is derived, minute by minute."""
    memory, engine = Memory(), Engine()
    for at in range(0, END + 1, STEP):
        if at == 900:
            engine = Engine()
        memory, derived = advance(
            memory,
            list(engine.poll(at)),
            float(at),
            base=BASE,
            objectives=slo.objectives(Objectives(request_duration=30.0)),
            queue_limit=100,
        )
        if at % 60 == 0:
            yield f"# after {at} s, load {load(at):.2f}"
            yield from sorted(map(shown, derived))


def shown(each: Point) -> str:
    """A point, with the digits that matter."""
    labels = ",".join(f'{name}="{value}"' for name, value in each.series.labels if name not in {*BASE, "model"})
    value = each.value
    if isinstance(value, Histogram):
        return f"{each.series.metric.name}{{{labels}}} {value.count:.4g} {value.sum:.4g}"
    return f"{each.series.metric.name}{{{labels}}} {value:.4g}"


def test_what_follows_from_twenty_minutes(update: bool) -> None:  # noqa: FBT001 - a fixture
    found = "\n".join(lines()) + "\n"
    if update:
        EXPECTED.write_text(found, encoding="utf-8")

    assert found == EXPECTED.read_text(encoding="utf-8")
