"""Snapshots as Prometheus text 0.0.4 and OpenMetrics 1.0.

Both formats share their sample lines, which are cached for each snapshot; only the lines about a family differ, since
OpenMetrics names a counter's family without `_total` and has units.
Spec: https://prometheus.io/docs/instrumenting/exposition_formats/, https://prometheus.io/docs/specs/om/open_metrics_spec/
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from prometheus_client.exposition import choose_encoder

from llm_headroom import schema
from llm_headroom.model import Histogram, Kind, Metric, Point, Series

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

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


@dataclass(frozen=True, slots=True)
class Lines:
    """The sample lines of some points by metric, encoded: what cannot be costs its source alone."""

    by_metric: Mapping[str, bytes]


class Renderer:
    """Renders the points of one source to lines; remembers the text around the values as long as its series stay."""

    def __init__(self) -> None:
        self._series: list[Series] = []
        self._families: Mapping[str, _Scalars | _Histograms] = {}

    def lines(self, points: Iterable[Point]) -> Lines:
        """The sample lines of points, those of one metric together."""
        points = list(points)
        series = [point[0] for point in points]
        if series != self._series:
            self._families = _families(series)
            self._series = series
        return Lines({name: family.text(points) for name, family in self._families.items()})


@dataclass(frozen=True, slots=True)
class _Scalars:
    """The lines of one metric: a format with a place for each value, and which points the values are of, in order."""

    format: str
    places: tuple[int, ...]

    def text(self, points: Sequence[Point]) -> bytes:
        return (self.format % tuple([points[place][1] for place in self.places])).encode()


@dataclass(frozen=True, slots=True)
class _Histograms:
    """The same of histograms: what stands before the bound of each bucket, and the lines of count and sum.

    The format of the buckets is made again each time: kept for each of many targets it would be most of their memory.
    """

    buckets: tuple[str, ...]
    sums: tuple[str, ...]
    places: tuple[int, ...]

    def text(self, points: Sequence[Point]) -> bytes:
        texts = []
        for place, bucket, sums in zip(self.places, self.buckets, self.sums, strict=True):
            value = points[place].value
            if isinstance(value, Histogram):
                form = bucket + ("%r\n" + bucket).join(_bound_texts(value.bounds)) + sums
                texts.append(form % (*value.counts, value.counts[-1], value.sum))
        return "".join(texts).encode()


def _families(shape: Iterable[Series]) -> dict[str, _Scalars | _Histograms]:
    places: dict[Metric, list[int]] = {}
    labels: dict[Metric, list[str]] = {}
    for place, series in enumerate(shape):
        pairs = [f'{name}="{value.translate(_ESCAPES)}"' for name, value in series.labels]
        places.setdefault(series.metric, []).append(place)
        labels.setdefault(series.metric, []).append(",".join(pairs).replace("%", "%%"))
    return {metric.name: _family(metric, labels[metric], tuple(found)) for metric, found in places.items()}


def _family(metric: Metric, labels: Iterable[str], places: tuple[int, ...]) -> _Scalars | _Histograms:
    name = metric.name
    braces = [(f"{{{text}}}" if text else "", f"{{{text}," if text else "{") for text in labels]
    if metric.kind is not Kind.HISTOGRAM:
        return _Scalars("".join([f"{name}{closed} %r\n" for closed, _ in braces]), places)
    return _Histograms(
        tuple([f'{name}_bucket{opened}le="' for _, opened in braces]),
        tuple([f"%r\n{name}_count{closed} %r\n{name}_sum{closed} %r\n" for closed, _ in braces]),
        places,
    )


@lru_cache(maxsize=256)
def _bound_texts(bounds: tuple[float, ...]) -> tuple[str, ...]:
    """What ends the labels of each bucket."""
    return tuple([f'{bound_text(bound)}"}} ' for bound in bounds])


def bound_text(bound: float) -> str:
    """The value of the label `le` for an upper bound."""
    return "+Inf" if math.isinf(bound) else repr(bound)


def unit_word(metric: Metric) -> str:
    """The unit in the metric's name, which OpenMetrics has in a UNIT line; empty if there is none."""
    return UNIT_WORDS.get(metric.unit, "")


def _heading(metric: Metric, form: Format) -> str:
    text = metric.help.replace("\\", r"\\").replace("\n", r"\n")
    if form is Format.TEXT:
        return f"# HELP {metric.name} {text}\n# TYPE {metric.name} {metric.kind}\n"
    family = metric.name.removesuffix("_total") if metric.kind is Kind.COUNTER else metric.name
    word = unit_word(metric)
    unit = f"# UNIT {family} {word}\n" if word else ""
    escaped = text.replace('"', r"\"")
    return f"# TYPE {family} {metric.kind}\n{unit}# HELP {family} {escaped}\n"


_HEADINGS: Final = {form: {metric.name: _heading(metric, form).encode() for metric in schema.ALL} for form in Format}


def exposition(sources: Iterable[Lines], form: Format) -> bytes:
    """An exposition of several snapshots' lines, in the order of the schema, each family once."""
    return b"".join(pieces(sources, form))


def pieces(sources: Iterable[Lines], form: Format) -> Iterator[bytes]:
    """The same, family by family: of many targets the whole takes much memory."""
    gathered: dict[str, list[bytes]] = {}
    for lines in sources:
        for name, text in lines.by_metric.items():
            gathered.setdefault(name, []).append(text)
    headings = _HEADINGS[form]
    for metric in schema.ALL:
        found = gathered.get(metric.name)
        if found is not None:
            yield b"".join([headings[metric.name], *found])
    if form is Format.OPENMETRICS:
        yield b"# EOF\n"
