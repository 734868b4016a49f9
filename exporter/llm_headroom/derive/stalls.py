"""Which data-parallel replicas make no progress: the sum of all hides one that stands still. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom import schema
from llm_headroom.model import Point, numbers, series_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from llm_headroom.model import Labels, Metric

STALLED_SECONDS: Final = 60.0
"""Longer than the longest chunk of prefill, and than the 30 s for which an idle SGLang may show stale gauges."""
_COUNTED: Final = (schema.ENGINE_STEPS, schema.GENERATION_TOKENS, schema.PROMPT_TOKENS)


class Replica(NamedTuple):
    """What a replica has counted, and since when (seconds) that stands although it has requests."""

    counts: Mapping[Metric, float]
    since: float


def busy(running: float | None, waiting: float | None, *, counts_steps: bool) -> bool:
    """Whether requests are reported. Where steps are not exposed, a running request alone may be a stale gauge."""
    return bool(waiting) or (counts_steps and bool(running))


def advance(
    known: Mapping[Labels, Replica], pools: Mapping[Labels, Mapping[Metric, float]], points: Sequence[Point], at: float
) -> dict[Labels, Replica]:
    """The replicas after a poll at `at` (seconds), by labels: of models with several that count for themselves.

    `pools` has the requests of each replica, see `headroom.kv_pools`.
    """
    several = Counter(_model(labels) for labels in pools)
    counts: dict[Labels, dict[Metric, float]] = {}
    if max(several.values(), default=0) > 1:
        for series, value in numbers(points, *_COUNTED):
            if series.labels in pools and several[_model(series.labels)] > 1:
                counts.setdefault(series.labels, {})[series.metric] = value
    found = {}
    for labels, own in counts.items():
        before, parts = known.get(labels), pools[labels]
        running, waiting = parts.get(schema.REQUESTS_RUNNING), parts.get(schema.REQUESTS_WAITING)
        stands = busy(running, waiting, counts_steps=schema.ENGINE_STEPS in own)
        still = before is not None and stands and own == before.counts
        found[labels] = Replica(own, before.since if before is not None and still else at)
    return found


def stalled(replicas: Mapping[Labels, Replica], model: str, at: float) -> Iterator[Point]:
    """Whether each replica of a model is stalled; none where its replicas are not known one by one."""
    for labels, each in replicas.items():
        if _model(labels) == model:
            value = float(at - each.since >= STALLED_SECONDS)
            yield Point(series_of(schema.ENGINE_STALLED, labels), value, "busy while its steps and tokens do not move")


def _model(labels: Labels) -> str:
    return dict(labels).get("model", "")
