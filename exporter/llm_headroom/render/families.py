"""Points as prometheus-client's metric families, for the registries of other Python services.

`generate_latest` writes of them what `render.prometheus` writes of the points.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from llm_headroom import schema
from llm_headroom.model import Histogram, Kind
from llm_headroom.render.prometheus import bound_text, unit_word

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llm_headroom.model import Metric, Point

Family: TypeAlias = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


_KINDS: Final[Mapping[Kind, type[Family]]] = {
    Kind.COUNTER: CounterMetricFamily,
    Kind.GAUGE: GaugeMetricFamily,
    Kind.HISTOGRAM: HistogramMetricFamily,
}


def empty(metric: Metric) -> Family:
    """The family of a metric without samples."""
    return _KINDS[metric.kind](metric.name, metric.help, unit=unit_word(metric))


def families(points: Iterable[Point]) -> list[Family]:
    """The families of points, in the order of the schema, each once."""
    found: dict[Metric, Family] = {}
    for point in points:
        metric = point.series.metric
        one = _of_one(point)
        if metric in found:
            found[metric].samples += one.samples
        else:
            found[metric] = one
    return [found[metric] for metric in schema.ALL if metric in found]


def _of_one(point: Point) -> Family:
    """A family of its own, since a family applies all its label names to each sample, and ours differ in them."""
    (metric, labels), value = (point.series.metric, point.series.labels), point.value
    names, texts, unit = [name for name, _ in labels], [text for _, text in labels], unit_word(metric)
    if isinstance(value, Histogram):
        buckets = [(bound_text(bound), count) for bound, count in zip(value.bounds, value.counts, strict=True)]
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=names, unit=unit)
        histogram.add_metric(texts, buckets, value.sum)
        return histogram
    kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    scalar = kind(metric.name, metric.help, labels=names, unit=unit)
    scalar.add_metric(texts, value)
    return scalar
