"""Snapshots as Prometheus text 0.0.4 and OpenMetrics 1.0.

Both formats share their sample lines; only the lines about a family differ, since OpenMetrics names a counter's family
without `_total` and has units.
Spec: https://prometheus.io/docs/instrumenting/exposition_formats/, https://prometheus.io/docs/specs/om/open_metrics_spec/
"""

from __future__ import annotations

import logging
import math
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from prometheus_client.exposition import choose_encoder

from llm_headroom import schema
from llm_headroom.frozen import frozen
from llm_headroom.model import Histogram, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from llm_headroom.model import Labels, Metric, Point, Series

log = logging.getLogger("llm_headroom")

UNIT_WORDS: Final[Mapping[str, str]] = {
    "s": "seconds",
    "By": "bytes",
    "By/s": "bytes_per_second",
    "1": "ratio",
    "J": "joules",
    "W": "watts",
    "Cel": "celsius",
    "Hz": "hertz",
}
"""UCUM code → its word in metric names."""

_LAYOUTS: Final = 256
"""Lists of metrics, in the order of their points, that are remembered for all targets."""
_POINTS_AT_ONCE: Final = 250
"""Of an exposition, points whose lines are joined at once: some 100 KB."""
_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


class Format(StrEnum):
    """The content types that `/metrics` answers with."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def negotiate(accept: str) -> Format:
    """The format of the response: OpenMetrics if Accept names it, whatever its version from 1.0.0, else text.

    The choice is prometheus-client's: like every Python service, this one takes no notice of the header's q values.
    """
    try:
        content_type = choose_encoder(accept)[1]
    except TypeError:  # of versions that are no numbers, which it compares with numbers
        return Format.TEXT
    return Format.OPENMETRICS if content_type.startswith("application/openmetrics-text") else Format.TEXT


@frozen
class Lines:
    """The sample lines of some points, made family by family when asked for: all at once of many targets fill memory.

    `labels` has what stands between the braces of each point's line, `places` where each metric's points are, in order.
    """

    points: Sequence[Point]
    labels: Sequence[str]
    places: Mapping[Metric, Sequence[int]]

    def texts(self, metric: Metric) -> list[str]:
        """The lines of one metric, those of a point together; none if they cannot be made: others keep their own."""
        points, labels, name = self.points, self.labels, metric.name
        make = _buckets if metric.kind is Kind.HISTOGRAM else _number
        try:
            return [make(name, labels[place], points[place][1]) for place in self.places[metric]]
        except Exception:
            target = points[self.places[metric][0]].series.label("target")
            log.exception("rendering failed: internal error (bug)", extra={"target": target, "metric": name})
            return []


class Renderer:
    """Renders the points of one source to lines; remembers the text of labels as long as its series stay."""

    def __init__(self) -> None:
        self._series: list[Series] = []
        self._labels: Sequence[str] = ()
        self._places: Mapping[Metric, Sequence[int]] = {}

    def lines(self, points: Iterable[Point]) -> Lines:
        """The sample lines of points, those of one metric together."""
        points = list(points)
        series = [point[0] for point in points]
        if series != self._series:
            texts = {labels: _label_text(labels) for labels in dict.fromkeys(each.labels for each in series)}
            self._labels = tuple([texts[each.labels] for each in series])
            self._places = _places(tuple([each.metric for each in series]))
            self._series = series
        return Lines(points, self._labels, self._places)


@lru_cache(_LAYOUTS)
def _places(metrics: tuple[Metric, ...]) -> Mapping[Metric, Sequence[int]]:
    """Where each metric's points are: the same for all targets that expose the same, once in memory."""
    places: dict[Metric, list[int]] = {}
    for place, metric in enumerate(metrics):
        places.setdefault(metric, []).append(place)
    return {metric: tuple(found) for metric, found in places.items()}


def _label_text(labels: Labels) -> str:
    return ",".join([f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels])


def _number(name: str, labels: str, value: float | Histogram) -> str:
    return f"{name}{{{labels}}} {value!r}\n" if labels else f"{name} {value!r}\n"


def _buckets(name: str, labels: str, value: float | Histogram) -> str:
    if not isinstance(value, Histogram):
        return ""
    opened, closed = (f"{{{labels},", f"{{{labels}}}") if labels else ("{", "")
    buckets = (_bucket_lines(value.bounds) % value.counts).replace("\0", f"{name}_bucket{opened}")
    return f"{buckets}{name}_count{closed} {value.count!r}\n{name}_sum{closed} {value.sum!r}\n"


@lru_cache
def _bucket_lines(bounds: tuple[float, ...]) -> str:
    """The lines of all buckets, for a count in each; what the label `le` stands behind is left open as a NUL."""
    return "".join([f'\0le="{bound_text(bound)}"}} %r\n' for bound in bounds])


def bound_text(bound: float) -> str:
    """The value of the label `le` for an upper bound."""
    return "+Inf" if math.isinf(bound) else repr(bound)


def unit_word(metric: Metric) -> str:
    """The unit in the metric's name, which OpenMetrics has in a UNIT line; empty if there is none."""
    return UNIT_WORDS.get(metric.unit, "")


def _heading(metric: Metric, form: Format) -> str:
    """The lines about a family; help texts hold nothing that would have to be escaped."""
    if form is Format.TEXT:
        return f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {metric.kind}\n"
    family, word = metric.name.removesuffix("_total"), unit_word(metric)
    unit = f"# UNIT {family} {word}\n" if word else ""
    return f"# TYPE {family} {metric.kind}\n{unit}# HELP {family} {metric.help}\n"


_HEADINGS: Final = {form: {metric: _heading(metric, form) for metric in schema.ALL} for form in Format}


def exposition(sources: Iterable[Lines], form: Format) -> bytes:
    """An exposition of several sources' lines, in the order of the schema, each family once."""
    return b"".join(pieces(sources, form))


def pieces(sources: Iterable[Lines], form: Format) -> Iterator[bytes]:
    """The same, some families at a time: of many targets the whole takes much memory."""
    exposing: dict[Metric, list[Lines]] = {}
    for lines in sources:
        for metric in lines.places:
            exposing.setdefault(metric, []).append(lines)
    headings = _HEADINGS[form]
    made: list[str] = []
    for metric in schema.ALL:
        found = exposing.get(metric)
        if found is None:
            continue
        made.append(headings[metric])
        for lines in found:
            made += lines.texts(metric)
        if len(made) > _POINTS_AT_ONCE:
            yield "".join(made).encode()
            made.clear()
    if form is Format.OPENMETRICS:
        made.append("# EOF\n")
    if made:
        yield "".join(made).encode()
