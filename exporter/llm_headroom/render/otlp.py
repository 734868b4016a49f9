"""Points as an OTLP export request, and an answer to it.

Spec: https://github.com/open-telemetry/opentelemetry-proto/blob/v1.5.0/opentelemetry/proto/metrics/v1/metrics.proto and
collector/metrics/v1/metrics_service.proto; the numbers below are those of its fields.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from itertools import accumulate
from operator import sub
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom import __version__
from llm_headroom.model import Histogram, Kind
from llm_headroom.render.protobuf import LENGTH, doubles, fields, number, sized, tag, text, varint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llm_headroom.model import Labels, Series

_CUMULATIVE: Final = 2
_NO_RECORDED_VALUE: Final = 1
_NUMBER: Final = struct.Struct("<BQBQBd")
_GAUGE: Final = struct.Struct("<BQBd")
_ATTRIBUTES: Final = {Kind.GAUGE: 7, Kind.COUNTER: 7, Kind.HISTOGRAM: 9}
_FLAGS: Final = {Kind.GAUGE: 8, Kind.COUNTER: 8, Kind.HISTOGRAM: 10}
_START, _TIME, _VALUE, _COUNT, _SUM = (field << 3 | 1 for field in (2, 3, 4, 4, 5))
_POINT: Final = tag(1, LENGTH)
_COUNTS, _BOUNDS = 6, 7
_IN_METRIC: Final = {Kind.GAUGE: 5, Kind.COUNTER: 7, Kind.HISTOGRAM: 9}


class Shape(IntEnum):
    """What a metric is in OTLP."""

    GAUGE = 0
    COUNTER = 1
    LEVEL = 2
    """A sum that may fall (an UpDownCounter), which is what semantic conventions want of amounts."""
    HISTOGRAM = 3


_KIND: Final = {
    Shape.GAUGE: Kind.GAUGE,
    Shape.COUNTER: Kind.COUNTER,
    Shape.LEVEL: Kind.COUNTER,
    Shape.HISTOGRAM: Kind.HISTOGRAM,
}
_SHAPES: Final = {Kind.GAUGE: Shape.GAUGE, Kind.COUNTER: Shape.COUNTER, Kind.HISTOGRAM: Shape.HISTOGRAM}


class Stream(NamedTuple):
    """What a metric is called and is in OTLP."""

    name: str
    shape: Shape
    unit: str
    description: str


class Line:
    """A series of a stream, and the bytes of it that are the same in each export. Made once, used at each export."""

    __slots__ = ("_bounds", "_front", "_histogram", "attributes", "key", "stream")

    def __init__(self, stream: Stream, labels: Labels) -> None:
        self.stream = stream
        self.attributes = attributes(_ATTRIBUTES[_KIND[stream.shape]], labels)
        self.key = (stream.name, self.attributes)  # quick to look up: both remember their hashes
        size = _GAUGE.size if stream.shape is Shape.GAUGE else _NUMBER.size
        self._front = _POINT + varint(len(self.attributes) + size) + self.attributes
        self._bounds: tuple[float, ...] | None = None
        self._histogram = (b"", struct.Struct(""))

    def scalar(self, value: float, start: int, time: int) -> bytes:
        """A number data point as a field."""
        if self.stream.shape is Shape.GAUGE:
            return self._front + _GAUGE.pack(_TIME, time, _VALUE, value)
        return self._front + _NUMBER.pack(_START, start, _TIME, time, _VALUE, value)

    def histogram(self, value: Histogram, start: int, time: int) -> bytes:
        """A histogram data point as a field: the engine's own buckets, no longer cumulative."""
        if value.bounds is not self._bounds:
            self._learn(value.bounds)
        front, layout = self._histogram
        counts, total = _buckets(value.counts)
        return front + layout.pack(*counts, _START, start, _TIME, time, _COUNT, total, _SUM, value.sum)

    def gone(self, start: int, time: int) -> bytes:
        """A data point that says that there is none any more, as a field."""
        times = struct.pack("<BQBQ", _START, start, _TIME, time)
        flags = number(_FLAGS[_KIND[self.stream.shape]], _NO_RECORDED_VALUE)
        return sized(1, self.attributes + times + flags)

    def _learn(self, bounds: tuple[float, ...]) -> None:
        # Fields may stand in any order: what changes stands last, so that it can be packed at once.
        layout = struct.Struct(f"<{len(bounds)}QBQBQBQBd")
        same = self.attributes + sized(_BOUNDS, doubles(bounds[:-1])) + tag(_COUNTS, LENGTH) + varint(8 * len(bounds))
        self._histogram = (_POINT + varint(len(same) + layout.size) + same, layout)
        self._bounds = bounds


def _buckets(cumulative: tuple[float, ...]) -> tuple[list[int], int]:
    """Counts of each bucket alone, and of all of them."""
    upto = list(map(int, cumulative))
    counts = list(map(sub, upto, [0, *upto[:-1]]))
    if min(counts) < 0:
        # The buckets must add up to the count, even where an engine's own are at odds by a scrape in mid-update.
        upto = list(accumulate(upto, max, initial=0))[1:]
        counts = list(map(sub, upto, [0, *upto[:-1]]))
    return counts, upto[-1]


def line_of(series: Series) -> Line:
    """The line of a series of ours, under its own name."""
    metric = series.metric
    return Line(Stream(metric.name, _SHAPES[metric.kind], metric.unit, metric.help), series.labels)


class Reading(NamedTuple):
    """A data point: `value` None says that there is none any more. Times are unix nanoseconds; gauges start at 0."""

    line: Line
    value: float | Histogram | None
    start: int
    time: int


class Answer(NamedTuple):
    """What a collector says to an export: data points that it did not take, and why (or a hint, if none)."""

    rejected: int
    message: str


def attributes(field: int, pairs: Iterable[tuple[str, str]]) -> bytes:
    """Attributes whose values are texts, as a repeated field."""
    return b"".join(sized(field, text(1, name) + sized(2, sized(1, _utf8(value)))) for name, value in pairs)


def _utf8(value: str) -> bytes:
    return value.encode(errors="replace")


class Encoder:
    """Encodes readings of one resource.

    `resource` are the resource's attributes, `schema_url` tells where the names of those are from.
    """

    def __init__(self, resource: Mapping[str, str], schema_url: str = "") -> None:
        self._resource = sized(1, attributes(1, resource.items()))
        self._scope = sized(1, text(1, "llm_headroom") + text(2, __version__))
        self._schema_url = text(3, schema_url)

    def request(self, readings: Iterable[Reading]) -> bytes:
        """An ExportMetricsServiceRequest; readings of one metric are put together, wherever they stand."""
        parts: dict[str, tuple[Stream, list[bytes]]] = {}
        for line, value, start, time in readings:
            stream = line.stream
            found = parts.get(stream.name)
            if found is None:
                found = parts[stream.name] = (stream, [])
            if value is None:
                point = line.gone(start, time)
            elif isinstance(value, Histogram):
                point = line.histogram(value, start, time)
            else:
                point = line.scalar(value, start, time)
            found[1].append(point)
        metrics = b"".join(sized(2, _metric(stream, b"".join(points))) for stream, points in parts.values())
        return sized(1, self._resource + sized(2, self._scope + metrics) + self._schema_url)


def _metric(stream: Stream, points: bytes) -> bytes:
    data = points
    if stream.shape is not Shape.GAUGE:
        data += number(2, _CUMULATIVE)
    if stream.shape is Shape.COUNTER:
        data += number(3, 1)
    heading = text(1, stream.name) + text(2, stream.description) + text(3, stream.unit)
    return heading + sized(_IN_METRIC[_KIND[stream.shape]], data)


def answer(body: bytes) -> Answer:
    """What an ExportMetricsServiceResponse says.

    Raises:
        ValueError: it is none.
    """
    rejected, message = 0, ""
    for field, value in fields(body):
        if field == 1 and isinstance(value, bytes):
            for inner, content in fields(value):
                if inner == 1 and isinstance(content, int):
                    rejected = content if content < 1 << 63 else 0  # an int64; a negative one means nothing
                elif inner == 2 and isinstance(content, bytes):  # noqa: PLR2004 - the field's number
                    message = content.decode(errors="replace")
    return Answer(rejected, message)


def status_message(body: bytes) -> str:
    """The message of a google.rpc.Status, which a collector answers errors with; empty if it is none."""
    try:
        found = [value for field, value in fields(body) if field == 2 and isinstance(value, bytes)]  # noqa: PLR2004
    except ValueError:
        return ""
    return found[0].decode(errors="replace") if found else ""
