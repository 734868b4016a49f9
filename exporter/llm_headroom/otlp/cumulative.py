"""Start times of counters: OTLP requires one for each, and an engine's restart moves it.

Spec: https://opentelemetry.io/docs/specs/otel/metrics/data-model/ (resets and gaps; cumulative streams: handling
unknown start time).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom import schema
from llm_headroom.model import Histogram, Kind, Point, Series, Subject

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_OWN: Final = frozenset({Subject.COLLECTION, Subject.EXPORTER, Subject.PROCESS, Subject.DERIVED, Subject.PROXY})
"""Counted by llm-headroom itself, since it runs; and so are Xid errors."""
_ELSEWHERE: Final = frozenset({Subject.GPU, Subject.HOST})
"""Counted by drivers and kernels, which do not report a start time."""
PROXY: Final = "proxy"
"""Where points are from (`proxy.measures.ORIGIN`, not imported: few run the proxy) that were counted here, too."""
NANOSECONDS: Final = 1_000_000_000


def nanoseconds(seconds: float) -> int:
    """Unix nanoseconds of a unix time."""
    return int(seconds * NANOSECONDS)


class Started(NamedTuple):
    """A point with its times in unix nanoseconds; `start` is 0 for a gauge."""

    point: Point
    start: int
    time: int


@dataclass(slots=True)
class _Known:
    start: int
    time: int
    value: float
    engine: int | None


class Starts:
    """Remembers for each counter and histogram since when it counts.

    `began` is the unix time in seconds at which this process started.
    """

    def __init__(self, began: float) -> None:
        self._began = nanoseconds(began)
        self._known: dict[Series, _Known] = {}

    def started(self, sources: Iterable[tuple[float, Sequence[Point]]]) -> list[Started]:
        """The points of each source, which were taken at a unix time, with the time since when each counts.

        Series that are not among them are remembered, up to a limit: a source may fail for a while.
        """
        out: list[Started] = []
        seen: dict[Series, _Known] = {}
        for taken, points in sources:
            time = nanoseconds(taken)
            engine = _engine_start(points, time)
            for point in points:
                series = point.series
                if series.metric.kind is Kind.GAUGE:
                    out.append(Started(point, 0, time))
                    continue
                known = seen[series] = self._next(point, time, engine)
                out.append(Started(point, known.start, time))
        # A source that fails for a while has no points; its retained state shows later whether it was restarted.
        for series, known in self._known.items():
            if series not in seen and len(seen) < _MOST_KEPT:
                seen[series] = known
        self._known = seen
        return out

    def _next(self, point: Point, time: int, engine: int | None) -> _Known:
        series, value = point.series, _total(point)
        known = self._known.get(series)
        metric = series.metric
        if metric.subject in _OWN or metric is schema.GPU_XID_ERRORS or point.origin == PROXY:
            engine, first = None, self._began
        elif metric.subject in _ELSEWHERE:
            engine, first = None, time
        else:
            first = engine or time
        if known is None:
            # A start equal to the time means that it is unknown.
            return _Known(min(first, time), time, value, engine)
        start = known.start
        if value < known.value or (engine and known.engine and abs(engine - known.engine) > NANOSECONDS):
            # The reset was after the previous point: intervals must not overlap.
            start = max(engine or known.time, known.time)
        return _Known(min(start, time), time, value, engine or known.engine)


_MOST_KEPT: Final = 200_000


def _total(point: Point) -> float:
    return point.value.count if isinstance(point.value, Histogram) else point.value


def _engine_start(points: Iterable[Point], time: int) -> int | None:
    """When the engine started; None if unknown, in the future, or not the same for all of the engine's processes."""
    found = {
        nanoseconds(point.value)
        for point in points
        if point.series.metric is schema.ENGINE_START and not isinstance(point.value, Histogram)
    }
    start = found.pop() if len(found) == 1 else None
    return start if start is not None and 0 < start <= time else None
