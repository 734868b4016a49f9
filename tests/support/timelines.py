"""Polls made of literals: what an engine says at each, and what is derived after the last one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from llm_headroom import schema
from llm_headroom.derive.memory import Memory, advance
from llm_headroom.model import Histogram, Point, Series

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_headroom.model import Metric

BASE = {"engine": "vllm", "target": "t"}
BOUNDS = (0.5, 1.0, 2.5, 5.0, math.inf)


def point(metric: Metric, content: float | Histogram, **labels: str) -> Point:
    return Point(Series(metric, {**BASE, "model": "m", **labels}), content, "test")


def ttft(*counts: float) -> Point:
    """First tokens so far within each of BOUNDS, cumulative."""
    return point(schema.TIME_TO_FIRST_TOKEN, Histogram(BOUNDS, counts, counts[-1] * 0.5))


def polls(timeline: Iterable[tuple[float, list[Point]]]) -> tuple[Memory, list[Point]]:
    """The memory and the derived points after the last of some polls, each at its time in seconds."""
    memory, derived = Memory(), list[Point]()
    for at, points in timeline:
        memory, derived = advance(memory, points, at, base=BASE)
    return memory, derived


def traffic(seconds: float, **changes: float) -> list[Point]:
    """Steady traffic: 2 requests/s of 400 prompt and 100 output tokens, 10 running, 5,000 of 20,000 tokens held."""
    gauges = {"running": 10.0, "waiting": 0.0, "capacity": 20_000.0, "used": 5_000.0}
    gauges |= {name: float(amount) for name, amount in changes.items()}
    finished = 2.0 * seconds
    return [
        point(schema.REQUESTS_RUNNING, gauges["running"]),
        point(schema.REQUESTS_WAITING, gauges["waiting"]),
        point(schema.KV_CACHE_CAPACITY, gauges["capacity"]),
        point(schema.KV_CACHE_USED, gauges["used"]),
        point(schema.KV_CACHE_USAGE, gauges["used"] / gauges["capacity"]),
        point(schema.REQUESTS_FINISHED, finished, reason="stop"),
        point(schema.PROMPT_TOKENS, 400.0 * finished),
        point(schema.GENERATION_TOKENS, 100.0 * finished),
        point(schema.ENGINE_STEPS, 50.0 * seconds),
        point(schema.TIME_TO_FIRST_TOKEN, Histogram(BOUNDS, (finished,) * len(BOUNDS), 0.05 * finished)),
        point(schema.REQUEST_QUEUE, Histogram((1.0, math.inf), (finished, finished), 0.0)),
        point(schema.REQUEST_GENERATION_TOKENS, Histogram((1e3, math.inf), (finished, finished), 100.0 * finished)),
        point(schema.INTER_TOKEN_LATENCY, Histogram((0.2, math.inf), (100.0 * finished,) * 2, 5.0 * finished)),
    ]


def steadily(seconds: int, **changes: float) -> list[tuple[float, list[Point]]]:
    return [(float(at), traffic(at, **changes)) for at in range(0, seconds + 1, 5)]
