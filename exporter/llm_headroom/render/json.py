"""Snapshots as plain values for JSON: the status page, `/api/v1/snapshot` and `check`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_headroom import clock
from llm_headroom.model import Histogram

if TYPE_CHECKING:
    from llm_headroom.model import Failure, Judged, Point, Snapshot


def point(value: Point) -> dict[str, Any]:
    """`metric`, `labels`, `source` (the upstream name) and `value` or `histogram`.

    A histogram has `sum`, `count` and `buckets`, a list of [upper bound, cumulative count]; the last bound is "+Inf".
    """
    series, content, origin = value
    rendered: dict[str, Any] = {"metric": series.metric.name, "labels": dict(series.labels)}
    if isinstance(content, Histogram):
        finite = [[bound, count] for bound, count in zip(content.bounds[:-1], content.counts[:-1], strict=True)]
        rendered["histogram"] = {
            "sum": content.sum,
            "count": content.count,
            "buckets": [*finite, ["+Inf", content.count]],
        }
    else:
        rendered["value"] = content
    rendered["source"] = origin
    return rendered


def failure(value: Failure) -> dict[str, str]:
    """`cause` and `message`."""
    return {"cause": str(value.cause), "message": value.message}


def judged(value: Judged) -> dict[str, Any]:
    """`state`, `level`, `reason`, `since` (unix time), and `model` or `gpu` and `uuid` where they are known."""
    names = {"model": value.model, "gpu": value.gpu, "uuid": value.uuid}
    return {
        **{name: text for name, text in names.items() if text},
        "state": value.state.value,
        "level": value.state.level.value,
        "reason": value.reason,
        "since": clock.shown(value.since),
    }


def source(snapshot: Snapshot) -> dict[str, Any]:
    """One source: identity, health, states and points."""
    health = snapshot.health
    return {
        "target": snapshot.target,
        "engine": snapshot.engine,
        "version": health.version,
        "up": health.up,
        "error": None if health.error is None else failure(health.error),
        "warnings": [failure(warning) for warning in health.warnings],
        "taken": clock.shown(snapshot.taken),
        "last_success": health.last_success and clock.shown(health.last_success),
        "duration_seconds": health.duration_seconds,
        "samples": {str(state): count for state, count in health.samples.items()},
        "states": [judged(each) for each in snapshot.states],
        "points": [point(each) for each in snapshot.points],
        "unmapped": list(health.unmapped),
    }
