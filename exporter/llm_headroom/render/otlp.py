"""Points as an OTLP export request, and an answer to it.

Spec: https://github.com/open-telemetry/opentelemetry-proto/blob/v1.5.0/opentelemetry/proto/metrics/v1/metrics.proto and
collector/metrics/v1/metrics_service.proto; the numbers below are those of its fields.
"""

from __future__ import annotations

import math
import struct
from enum import IntEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom import __version__
from llm_headroom.model import Histogram, Kind
from llm_headroom.render.protobuf import LENGTH, doubles, fields, fixed64s, number, sized, tag, text, varint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llm_headroom.model import Labels

_CUMULATIVE: Final = 2
_NO_RECORDED_VALUE: Final = 1
_MOST_KEPT: Final = 200_000
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
SHAPES: Final = {Kind.GAUGE: Shape.GAUGE, Kind.COUNTER: Shape.COUNTER, Kind.HISTOGRAM: Shape.HISTOGRAM}


class Stream(NamedTuple):
    """What a metric is called and is in OTLP."""

    name: str
    shape: Shape
    unit: str
    description: str


class Reading(NamedTuple):
    """A data point: `value` None says that there is none any more. Times are unix nanoseconds; gauges start at 0."""

    stream: Stream
    labels: Labels
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
    """Encodes readings of one resource; remembers what does not change from export to export.

    `resource` are the resource's attributes, `schema_url` tells where the names of those are from.
    """

    def __init__(self, resource: Mapping[str, str], schema_url: str = "") -> None:
        self._resource = sized(1, attributes(1, resource.items()))
        self._scope = sized(1, text(1, "llm_headroom") + text(2, __version__))
        self._schema_url = text(3, schema_url)
        self._attributes: dict[tuple[int, Labels], bytes] = {}
        self._bounds: dict[tuple[float, ...], bytes] = {}

    def request(self, readings: Iterable[Reading]) -> bytes:
        """An ExportMetricsServiceRequest; readings of one metric are put together, wherever they stand."""
        if len(self._attributes) > _MOST_KEPT:
            self._attributes.clear()
        parts: dict[Stream, list[bytes]] = {}
        for reading in readings:
            out = parts.get(reading.stream)
            if out is None:
                out = parts[reading.stream] = []
            point = self._point(reading)
            out += (_POINT, varint(len(point)), point)
        metrics = b"".join(sized(2, _metric(stream, b"".join(points))) for stream, points in parts.items())
        return sized(1, self._resource + sized(2, self._scope + metrics) + self._schema_url)

    def _point(self, reading: Reading) -> bytes:
        stream, labels, value, start, time = reading
        kind = _KIND[stream.shape]
        key = (_ATTRIBUTES[kind], labels)
        head = self._attributes.get(key)
        if head is None:
            head = self._attributes[key] = attributes(key[0], labels)
        if value is None:
            times = struct.pack("<BQBQ", _START, start, _TIME, time)
            return head + times + number(_FLAGS[kind], _NO_RECORDED_VALUE)
        if isinstance(value, Histogram):
            return head + self._histogram(value, start, time)
        if stream.shape is Shape.GAUGE:
            return head + _GAUGE.pack(_TIME, time, _VALUE, value)
        return head + _NUMBER.pack(_START, start, _TIME, time, _VALUE, value)

    def _histogram(self, value: Histogram, start: int, time: int) -> bytes:
        bounds = self._bounds.get(value.bounds)
        if bounds is None:
            bounds = self._bounds[value.bounds] = sized(_BOUNDS, doubles(value.bounds[:-1]))
        cumulative = [0, *map(round, value.counts)]
        # The buckets must add up to the count, even where an engine's own are at odds by a scrape in mid-update.
        for index in range(1, len(cumulative)):
            cumulative[index] = max(cumulative[index], cumulative[index - 1])
        counts = tuple(after - before for before, after in pairwise(cumulative))
        total = b"" if math.isnan(value.sum) else struct.pack("<Bd", _SUM, value.sum)
        return b"".join(
            (
                struct.pack("<BQBQBQ", _START, start, _TIME, time, _COUNT, cumulative[-1]),
                total,
                sized(_COUNTS, fixed64s(counts)),
                bounds,
            )
        )


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
