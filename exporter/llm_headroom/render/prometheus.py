"""Snapshots as Prometheus text 0.0.4 and OpenMetrics 1.0.

Both formats share their sample lines, which are cached for each snapshot; only the lines about a family differ, since
OpenMetrics names a counter's family without `_total` and has units.
Spec: https://prometheus.io/docs/instrumenting/exposition_formats/, https://prometheus.io/docs/specs/om/open_metrics_spec/
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from prometheus_client.exposition import choose_encoder

from llm_headroom import schema
from llm_headroom.model import Histogram, Kind, Metric, Point, Series

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

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
        self._shape: list[tuple[Series, tuple[float, ...]]] = []
        self._families: Mapping[str, _Family] = {}

    def lines(self, points: Iterable[Point]) -> Lines:
        """The sample lines of points, those of one metric together."""
        points = list(points)
        shape = [(series, value.bounds if isinstance(value, Histogram) else ()) for series, value, _ in points]
        if shape != self._shape:
            self._families = _families(shape)
            self._shape = shape
        return Lines({name: family.text(points) for name, family in self._families.items()})


@dataclass(frozen=True, slots=True)
class _Family:
    """The lines of one metric: a format with a place for each value, and which points the values are of, in order."""

    format: str
    places: tuple[int, ...]

    def text(self, points: Sequence[Point]) -> bytes:
        values: list[float] = []
        for place in self.places:
            value = points[place].value
            if isinstance(value, Histogram):
                values += value.counts
                values += (value.counts[-1], value.sum)
            else:
                values.append(value)
        return (self.format % tuple(values)).encode()


def _families(shape: Iterable[tuple[Series, tuple[float, ...]]]) -> dict[str, _Family]:
    formats: dict[str, list[str]] = {}
    places: dict[str, list[int]] = {}
    for place, (series, bounds) in enumerate(shape):
        name = series.metric.name
        prefixes = _histogram_prefixes(series, bounds) if bounds else (f"{name}{_braces(series)} ",)
        lines = [prefix.replace("%", "%%") + "%r\n" for prefix in prefixes]
        formats.setdefault(name, []).extend(lines)
        places.setdefault(name, []).append(place)
    return {name: _Family("".join(lines), tuple(places[name])) for name, lines in formats.items()}


def _braces(series: Series, bound: str = "") -> str:
    pairs = [f'{name}="{value.translate(_ESCAPES)}"' for name, value in series.labels]
    if bound:
        pairs.append(f'le="{bound}"')
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _histogram_prefixes(series: Series, bounds: tuple[float, ...]) -> tuple[str, ...]:
    name = series.metric.name
    return (
        *(f"{name}_bucket{_braces(series, bound_text(bound))} " for bound in bounds),
        f"{name}_count{_braces(series)} ",
        f"{name}_sum{_braces(series)} ",
    )


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
    gathered: dict[str, list[bytes]] = {}
    for lines in sources:
        for name, text in lines.by_metric.items():
            gathered.setdefault(name, []).append(text)
    headings = _HEADINGS[form]
    pieces: list[bytes] = []
    for metric in schema.ALL:
        found = gathered.get(metric.name)
        if found is not None:
            pieces.append(headings[metric.name])
            pieces += found
    if form is Format.OPENMETRICS:
        pieces.append(b"# EOF\n")
    return b"".join(pieces)
