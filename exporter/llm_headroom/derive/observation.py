"""What the derived signals need of a snapshot, for each model: the replicas of a target taken together."""

from __future__ import annotations

from dataclasses import fields
from operator import sub
from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.derive import replicas
from llm_headroom.frozen import frozen_named
from llm_headroom.model import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llm_headroom.model import Metric, Point


@frozen_named
class Observation:
    """One poll of one model. None: not exposed by the engine.

    Gauges: `running`, `waiting`, `limit` in requests, `capacity`, `used` in tokens, `usage` as a ratio. Counters since
    the engine's start: `prompt_tokens`, `cached_tokens`, `generation_tokens`, `finished` requests, `steps`,
    `preemptions`. Histograms since the engine's start: `ttft`, `inter_token`, `duration`, `queue` in seconds,
    `prompt_sizes`, `generation_sizes` in tokens. As a proxy sees it: `silence`, seconds without a byte of any answer,
    `overdue`, requests whose first token is late and has not come; counters of those that ended later than an
    objective without what it is about: `missed_ttft`, `missed_duration`.
    """

    running: float | None = None
    waiting: float | None = None
    limit: float | None = None
    capacity: float | None = None
    used: float | None = None
    usage: float | None = None
    prompt_tokens: float | None = None
    cached_tokens: float | None = None
    generation_tokens: float | None = None
    finished: float | None = None
    steps: float | None = None
    preemptions: float | None = None
    ttft: Histogram | None = None
    inter_token: Histogram | None = None
    duration: Histogram | None = None
    queue: Histogram | None = None
    prompt_sizes: Histogram | None = None
    generation_sizes: Histogram | None = None
    silence: float | None = None
    overdue: float | None = None
    missed_ttft: float | None = None
    missed_duration: float | None = None


_FIELDS: Final[Mapping[Metric, str]] = {
    schema.REQUESTS_RUNNING: "running",
    schema.REQUESTS_WAITING: "waiting",
    schema.REQUESTS_RUNNING_LIMIT: "limit",
    schema.KV_CACHE_CAPACITY: "capacity",
    schema.KV_CACHE_USED: "used",
    schema.KV_CACHE_USAGE: "usage",
    schema.PROMPT_TOKENS: "prompt_tokens",
    schema.PROMPT_TOKENS_CACHED: "cached_tokens",
    schema.GENERATION_TOKENS: "generation_tokens",
    schema.REQUESTS_FINISHED: "finished",
    schema.ENGINE_STEPS: "steps",
    schema.PREEMPTIONS: "preemptions",
    schema.TIME_TO_FIRST_TOKEN: "ttft",
    schema.INTER_TOKEN_LATENCY: "inter_token",
    schema.REQUEST_DURATION: "duration",
    schema.REQUEST_QUEUE: "queue",
    schema.REQUEST_PROMPT_TOKENS: "prompt_sizes",
    schema.REQUEST_GENERATION_TOKENS: "generation_sizes",
    schema.PROXY_SILENCE: "silence",
    schema.PROXY_OVERDUE: "overdue",
    schema.PROXY_MISSED: "missed",
}
_MISSED: Final = {"ttft": "missed_ttft", "request_duration": "missed_duration"}
"""Fields by the label `slo`."""
COUNTERS: Final = ("prompt_tokens", "generation_tokens", "finished", "steps")
HISTOGRAMS: Final = tuple(field.name for field in fields(Observation) if "Histogram" in str(field.type))


def observe(points: Iterable[Point]) -> dict[str, Observation]:
    """An observation for each model that the points speak of."""
    found: dict[str, dict[str, float | Histogram]] = {}
    for series, value, _ in replicas.combined(point for point in points if point.series.metric in _FIELDS):
        if series.metric is schema.PROXY_OVERDUE and series.label("slo") != "ttft":
            continue
        name = _FIELDS[series.metric]
        if series.metric is schema.PROXY_MISSED:
            name = _MISSED[series.label("slo")]
        known = found.setdefault(series.model, {})
        if isinstance(value, float):  # finished requests come by reason
            before = known.get(name, 0.0)
            known[name] = value + (before if isinstance(before, float) else 0.0)
        else:
            known[name] = value
    return {model: Observation(**values) for model, values in found.items()}  # type: ignore[arg-type]


def growth(before: float | None, now: float | None) -> float:
    """What a counter has grown by, 0 if it is not known at both ends; after a fall, what it has grown to."""
    if now is None or before is None:
        return 0.0
    return now - before if now >= before else now


def histogram_growth(before: Histogram | None, now: Histogram | None) -> Histogram | None:
    """The observations between two readings; None without any, or if the bounds have changed."""
    if now is None or before is None or now.bounds != before.bounds:
        return None
    if now.counts == before.counts:
        return None
    counts = tuple(map(sub, now.counts, before.counts))
    if min(counts) < 0.0:  # it restarted
        return now if now.count else None
    return Histogram(now.bounds, counts, now.sum - before.sum)
