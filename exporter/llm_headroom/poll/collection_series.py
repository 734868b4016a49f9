"""What the exporter tells of how the collection from each source goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_headroom import schema
from llm_headroom.model import Point, Series

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llm_headroom.model import Cause, Metric, Snapshot


class HealthSeries:
    """The exporter's own series about one source: up, age, duration, errors, samples. Made once, used at each poll."""

    def __init__(self, extra: Mapping[str, str]) -> None:
        self._extra = dict(extra)
        self._made: dict[tuple[str, Metric, str], Series] = {}

    def points(self, snapshot: Snapshot, errors: Mapping[Cause, int], capped: Mapping[str, int]) -> Iterator[Point]:
        """How the source goes: its errors so far by cause, its capped label values by label."""
        health = snapshot.health
        series = self._series
        yield Point(series(snapshot, schema.UP), float(health.up), "collection")
        yield Point(series(snapshot, schema.SOURCE_DURATION), health.duration_seconds, "collection")
        if health.last_success is not None:
            yield Point(series(snapshot, schema.SOURCE_LAST_SUCCESS), health.last_success, "collection")
        for cause, count in errors.items():
            yield Point(series(snapshot, schema.SOURCE_ERRORS, "cause", cause), float(count), "collection")
        for state, samples in health.samples.items():
            yield Point(series(snapshot, schema.SOURCE_SAMPLES, "state", state), float(samples), "collection")
        for label, values in capped.items():
            yield Point(series(snapshot, schema.LABEL_VALUES_CAPPED, "label", label), float(values), "collection")

    def _series(self, snapshot: Snapshot, metric: Metric, label: str = "", value: str = "") -> Series:
        key = (snapshot.engine, metric, value)
        made = self._made.get(key)
        if made is None:
            labels = {**self._extra, "target": snapshot.target, "engine": snapshot.engine, label: value}
            made = self._made[key] = Series(metric, labels)
        return made
