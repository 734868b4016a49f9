"""Readings as the data objects of OpenTelemetry's SDK."""

from __future__ import annotations

from enum import Enum
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Histogram as Histograms
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from llm_headroom import __version__
from llm_headroom.model import Histogram, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.sdk.resources import Resource

    from llm_headroom.model import Labels
    from llm_headroom.otlp.cumulative import Started


class Shape(Enum):
    """What a metric is in OTLP; the values are our kinds where they are the same."""

    GAUGE = Kind.GAUGE
    COUNTER = Kind.COUNTER
    LEVEL = "level"
    """A sum that may fall (an UpDownCounter), as semantic conventions require for amounts."""
    HISTOGRAM = Kind.HISTOGRAM


class Stream(NamedTuple):
    """A metric's name and kind in OTLP."""

    name: str
    shape: Shape
    unit: str
    description: str


class Reading(NamedTuple):
    """A data point of a stream. Times are unix nanoseconds; `start` is 0 for gauges."""

    stream: Stream
    labels: Labels
    value: float | Histogram
    start: int
    time: int


def reading(started: Started) -> Reading:
    """A point under its own name."""
    (series, value, _), start, time = started
    metric = series.metric
    return Reading(Stream(metric.name, Shape(metric.kind), metric.unit, metric.help), series.labels, value, start, time)


def metrics_data(readings: Iterable[Reading], resource: Resource) -> MetricsData:
    """The input of the SDK's exporters; readings of one metric are grouped."""
    streams: dict[Stream, list[Reading]] = {}
    for each in readings:
        streams.setdefault(each.stream, []).append(each)
    metrics = [Metric(each.name, each.description, each.unit, _data(each, found)) for each, found in streams.items()]
    scope = ScopeMetrics(InstrumentationScope("llm_headroom", __version__), metrics, "")
    return MetricsData([ResourceMetrics(resource, [scope], resource.schema_url)])


_CUMULATIVE: Final = AggregationTemporality.CUMULATIVE


def _data(stream: Stream, readings: Iterable[Reading]) -> Gauge | Sum | Histograms:
    if stream.shape is Shape.HISTOGRAM:
        return Histograms([_histogram(each) for each in readings], _CUMULATIVE)
    numbers = [
        NumberDataPoint(dict(labels), start, time, float(value))
        for _, labels, value, start, time in readings
        if not isinstance(value, Histogram)
    ]
    if stream.shape is Shape.GAUGE:
        return Gauge(numbers)
    return Sum(numbers, _CUMULATIVE, is_monotonic=stream.shape is Shape.COUNTER)


def _histogram(reading: Reading) -> HistogramDataPoint:
    """The engine's own buckets, no longer cumulative."""
    _, labels, value, start, time = reading
    assert isinstance(value, Histogram)  # noqa: S101 - the schema's kind
    # The buckets must add up to the count, even where an engine's own are at odds by a scrape in mid-update.
    counts = [after - before for before, after in pairwise((0, *accumulate(map(int, value.counts), max)))]
    return HistogramDataPoint(
        attributes=dict(labels),
        start_time_unix_nano=start,
        time_unix_nano=time,
        count=sum(counts),
        sum=value.sum,
        bucket_counts=counts,
        explicit_bounds=value.bounds[:-1],
        min=None,  # type: ignore[arg-type]  # engines expose neither; the encoder leaves None out
        max=None,  # type: ignore[arg-type]  # the same
    )
