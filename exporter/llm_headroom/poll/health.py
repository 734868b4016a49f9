"""What is published of how the collection from each source goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_headroom import clock, schema
from llm_headroom.model import Common, point

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llm_headroom.model import Cause, Point, Snapshot


def labels_of(snapshot: Snapshot, extra: Mapping[str, str]) -> Common:
    """What every series about a source's collections and states has; `extra` are the operator's labels."""
    return Common({**extra, "target": snapshot.target, "engine": snapshot.engine})


def health_points(
    snapshot: Snapshot, errors: Mapping[Cause, int], capped: Mapping[str, int], labels: Mapping[str, str]
) -> Iterator[Point]:
    """How a source goes: up, age, duration, samples, its errors so far by cause, its capped label values by label.

    `labels` are those of the source, see `labels_of`.
    """
    health, origin = snapshot.health, "collection"
    yield point(schema.UP, float(health.up), origin, labels)
    yield point(schema.SOURCE_DURATION, health.duration_seconds, origin, labels)
    if health.last_success is not None:
        yield point(schema.SOURCE_LAST_SUCCESS, clock.shown(health.last_success), origin, labels)
    for cause, count in errors.items():
        yield point(schema.SOURCE_ERRORS, float(count), origin, labels, cause=cause)
    for state, samples in health.samples.items():
        yield point(schema.SOURCE_SAMPLES, float(samples), origin, labels, state=state)
    for label, values in capped.items():
        yield point(schema.LABEL_VALUES_CAPPED, float(values), origin, labels, label=label)
