"""What is remembered of each source: a short ring of small readings for rates and percentiles, and a day by minutes.

Counters and histograms are stored as what they have grown by since they were first seen, series by series, so that a
reset (of a whole engine, or of one replica) adds what was counted since, as in Prometheus' `increase`, and nothing is
ever negative.
"""

from __future__ import annotations

import logging
from array import array
from collections import deque
from itertools import pairwise
from math import isfinite
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from llm_headroom import schema
from llm_headroom.derive import replicas
from llm_headroom.derive.observation import growth, histogram_growth
from llm_headroom.model import Histogram
from llm_headroom.scrape.coverage import GPUS
from llm_headroom.view.day import MINUTES, Day
from llm_headroom.view.judged import states
from llm_headroom.view.quantiles import quantile

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from llm_headroom.model import Metric, Point, Series, Snapshot
    from llm_headroom.view.day import Minute
    from llm_headroom.view.values import Condition

log = logging.getLogger("llm_headroom")

SPAN: Final = 300.0
"""Seconds that are remembered."""
HISTOGRAM_SPAN: Final = 120.0
"""The same of histograms: the longest window of a quantile."""
SPACING: Final = 4.0
"""Seconds between stored readings; of faster ones the latest is stored, too."""
MOST_READINGS: Final = int(SPAN / SPACING) + 2
P95: Final = 0.95
MOST_TRACKS: Final = 16
"""Models of one target, or GPUs, that have a history."""

ENGINE_GAUGES: Final = (
    schema.REQUESTS_RUNNING,
    schema.REQUESTS_WAITING,
    schema.KV_CACHE_USAGE,
    schema.ROUTER_REQUESTS_ACTIVE,
    schema.MODEL_OFFLOAD,
)
GPU_GAUGES: Final = (schema.GPU_UTILIZATION, schema.GPU_MEMORY_USED, schema.GPU_POWER)
COUNTERS: Final = (schema.PROMPT_TOKENS, schema.GENERATION_TOKENS, schema.ROUTER_REQUESTS, schema.PREEMPTIONS)
HISTOGRAMS: Final = (schema.TIME_TO_FIRST_TOKEN, schema.INTER_TOKEN_LATENCY, schema.TIME_PER_OUTPUT_TOKEN)
DAY_LINES: Final = ("running", "waiting", "generation_rate", "prompt_rate", "kv_usage", "ttft")
"""Lines of an engine's day; `ttft` is the 95th percentile in seconds."""
GPU_DAY_LINES: Final = ("utilization", "memory_used", "power")
_DAY_GAUGES: Final = {
    "running": schema.REQUESTS_RUNNING,
    "waiting": schema.REQUESTS_WAITING,
    "kv_usage": schema.KV_CACHE_USAGE,
    "utilization": schema.GPU_UTILIZATION,
    "memory_used": schema.GPU_MEMORY_USED,
    "power": schema.GPU_POWER,
}
_DAY_RATES: Final = {"generation_rate": schema.GENERATION_TOKENS, "prompt_rate": schema.PROMPT_TOKENS}
_DAY_WINDOW: Final = 60.0
_GAUGES: Final = frozenset((*ENGINE_GAUGES, *GPU_GAUGES))
_GROWING: Final = frozenset((*COUNTERS, *HISTOGRAMS))
_KEPT: Final = _GAUGES | _GROWING | {schema.KV_CACHE_CAPACITY}


class Grown(NamedTuple):
    """By how much a histogram has grown: `counts` are cumulative over the `bounds`, like the histogram's."""

    bounds: tuple[float, ...]
    counts: array[float]


class Reading(NamedTuple):
    """One collection: gauges as they were, counters and histograms as what they have grown by since first seen.

    All are keyed by name of metric. A failed collection is a reading without values.
    """

    at: float
    gauges: Mapping[str, float]
    grown: Mapping[str, float | Grown]


def key_of(point: Point) -> str:
    """What a point is about within its source: a model, or a GPU by its uuid."""
    return point.series.label("uuid") or point.series.model


class _Track:
    """The readings of one model or GPU, oldest first, and its day."""

    __slots__ = ("_last", "_lines", "_replaced", "_totals", "day", "readings")

    def __init__(self, lines: Sequence[str]) -> None:
        self.readings: deque[Reading] = deque(maxlen=MOST_READINGS)
        self._lines = lines
        self._replaced = False
        self.day = Day(lines)
        self._last: dict[Series, float | Histogram] = {}
        self._totals: dict[str, float | Grown] = {}

    @property
    def known(self) -> bool:
        """Whether anything was read within `SPAN`."""
        return any(reading.gauges or reading.grown for reading in self.readings)

    def note(self, at: float, state: Condition | None) -> None:
        """Take the latest reading into the day, with the state that was judged at its time.

        Rates and percentiles, over a minute each, are not worked out for a reading that only replaces the one before.
        """
        latest = self.readings[-1]
        values: dict[str, float | None] = {}
        if latest.gauges or latest.grown:
            for name in self._lines:
                if (gauge := _DAY_GAUGES.get(name)) is not None:
                    values[name] = latest.gauges.get(gauge.name)
                elif self._replaced:
                    continue
                elif (counter := _DAY_RATES.get(name)) is not None:
                    values[name] = rate(self.readings, counter, _DAY_WINDOW)
                else:
                    values[name] = p95(self.readings, schema.TIME_TO_FIRST_TOKEN, _DAY_WINDOW)
        self.day.put(at, values, state)

    def add(self, at: float, gauging: Sequence[Point], growing: Sequence[Point]) -> None:
        """Append a reading, or replace the latest one where readings come faster than they are stored."""
        gauges = {
            series.metric.name: value
            for series, value, _ in replicas.combined(gauging)
            if isinstance(value, float) and isfinite(value) and series.metric in _GAUGES
        }
        self._grow(growing)
        any_point = bool(gauging or growing)
        reading = Reading(at, gauges, dict(self._totals) if any_point else {})
        readings = self.readings
        self._replaced = bool(
            any_point and len(readings) > 1 and readings[-1].gauges and at - readings[-2].at < SPACING
        )
        if self._replaced:
            readings.pop()
        readings.append(reading)
        while readings[0].at < at - SPAN:
            readings.popleft()
        self._thin(at - HISTOGRAM_SPAN)

    def _thin(self, before: float) -> None:
        """Drop the histograms of older readings: they are most of a history, and nobody looks back so far."""
        readings = self.readings
        for place in reversed(range(len(readings))):
            reading = readings[place]
            if reading.at < before:
                counters = {name: total for name, total in reading.grown.items() if isinstance(total, float)}
                if len(counters) == len(reading.grown):
                    break  # those before it have been thinned when they became so old
                readings[place] = reading._replace(grown=counters)

    def _grow(self, points: Sequence[Point]) -> None:
        last, totals = self._last, self._totals
        seen: dict[Series, float | Histogram] = {}
        sums: dict[str, float] = {}
        histograms: dict[str, list[tuple[Histogram, Histogram | None]]] = {}
        for series, value, _ in points:
            name = series.metric.name
            before = last.get(series)
            seen[series] = value
            if isinstance(value, Histogram):
                histograms.setdefault(name, []).append((value, before if isinstance(before, Histogram) else None))
            elif isfinite(value):
                sums[name] = sums.get(name, 0.0) + growth(before if isinstance(before, float) else None, value)
        for name, more in sums.items():
            known = totals.get(name)
            totals[name] = more + (known if isinstance(known, float) else 0.0)
        for name, pairs in histograms.items():
            grown = _grown(totals.pop(name, None), pairs)
            if grown is not None:
                totals[name] = grown
        if points:
            self._last = seen
            for name in totals.keys() - sums.keys() - histograms.keys():
                del totals[name]


def _grown(known: float | Grown | None, pairs: Sequence[tuple[Histogram, Histogram | None]]) -> Grown | None:
    """The total so far plus what the replicas' histograms have grown by; None if their bounds differ."""
    bounds = pairs[0][0].bounds
    if any(now.bounds != bounds for now, _ in pairs):
        return None
    same = isinstance(known, Grown) and known.bounds == bounds
    counts = known.counts[:] if isinstance(known, Grown) and same else array("d", bytes(8 * len(bounds)))
    for now, before in pairs:
        if (growth := histogram_growth(before, now)) is not None:
            for index, count in enumerate(growth.counts):
                counts[index] += count
    return Grown(bounds, counts)


_Places: TypeAlias = tuple[list[int], list[int]]
"""Where gauges are among a source's points, and where what grows."""
_NOWHERE: Final[_Places] = ([], [])


class History:
    """The readings of every source: the only state behind the status page."""

    def __init__(self) -> None:
        self._sources: dict[str, _Source] = {}

    def record(self, snapshots: Collection[Snapshot], present: Collection[str] | None = None) -> None:
        """Remember what is new of some snapshots, and forget sources that are not `present` (by default: in them)."""
        for snapshot in snapshots:
            source = self._sources.setdefault(snapshot.target, _Source())
            if source.taken == snapshot.taken:
                continue
            source.taken = snapshot.taken
            try:
                source.add(snapshot)
            except Exception:  # it costs no other source its own
                log.exception("history failed: internal error (bug)", extra={"target": snapshot.target})
        present = {snapshot.target for snapshot in snapshots} if present is None else present
        if len(self._sources) > len(present) or not present:
            for gone in self._sources.keys() - set(present):
                del self._sources[gone]

    def readings(self, target: str, key: str) -> Sequence[Reading]:
        """The readings of a model or GPU (see `key_of`) within `SPAN`, oldest first."""
        track = self._track(target, key)
        return () if track is None else tuple(track.readings)

    def models(self, target: str) -> tuple[str, ...]:
        """The models that a target had when it was up last."""
        source = self._sources.get(target)
        return () if source is None else source.models

    def minutes(self, target: str, key: str, now: float, count: int = MINUTES) -> Iterable[Minute]:
        """The last minutes of a model or GPU, up to 24 hours; nothing if it is not known."""
        track = self._track(target, key)
        return () if track is None else track.day.minutes(now, count)

    def _track(self, target: str, key: str) -> _Track | None:
        source = self._sources.get(target)
        return None if source is None else source.tracks.get(key)


class _Source:
    """One source's tracks by key, the models that it had when it was up last, and where its points stood then."""

    __slots__ = ("_places", "_series", "models", "taken", "tracks")

    def __init__(self) -> None:
        self.taken: float | None = None
        self.models: tuple[str, ...] = ()
        self.tracks: dict[str, _Track] = {}
        self._series: list[Series] = []
        self._places: dict[str, _Places] = {}

    def add(self, snapshot: Snapshot) -> None:
        """Remember a snapshot."""
        tracks, points = self.tracks, snapshot.points
        kept = self._kept(points)
        if snapshot.health.up:
            self.models = tuple(sorted(filter(None, kept)))
        gpus = snapshot.engine == GPUS
        for key in kept:
            if key in tracks:
                continue
            if len(tracks) == MOST_TRACKS and (gone := [name for name, track in tracks.items() if not track.known]):
                del tracks[gone[0]]
            if len(tracks) < MOST_TRACKS:
                tracks[key] = _Track(GPU_DAY_LINES if gpus else DAY_LINES)
        judged = states(snapshot)
        for key, track in tracks.items():
            gauging, growing = kept.get(key, _NOWHERE)
            track.add(snapshot.taken, [points[place] for place in gauging], [points[place] for place in growing])
            track.note(snapshot.taken, judged.get(key))

    def _kept(self, points: Sequence[Point]) -> Mapping[str, _Places]:
        """Where the points that are remembered are, by key: where they were last if the poll has the same series."""
        series = [point[0] for point in points]
        if series != self._series:
            self._series, self._places = series, {}
            for place, point in enumerate(points):
                if (metric := point.series.metric) in _KEPT:
                    self._places.setdefault(key_of(point), ([], []))[metric in _GROWING].append(place)
        return self._places


def rate(readings: Sequence[Reading], metric: Metric, window: float) -> float | None:
    """The growth of a counter per second over up to the last `window` seconds; None without two readings of it."""
    (start, first), (end, last) = _ends(readings, metric, window)
    if not isinstance(first, float) or not isinstance(last, float) or end <= start:
        return None
    return max(last - first, 0.0) / (end - start)


def rates(readings: Sequence[Reading], metric: Metric) -> tuple[float | None, ...]:
    """The growth of a counter per second between each reading and the one before; None where either is missing."""
    found: list[float | None] = [None] * min(len(readings), 1)
    return (*found, *(rate(pair, metric, SPAN) for pair in pairwise(readings)))


def grown(readings: Sequence[Reading], metric: Metric, window: float) -> tuple[float, Grown] | None:
    """By how much a histogram has grown over up to the last `window` seconds, and over how many; None if unknown."""
    (start, first), (end, last) = _ends(readings, metric, window)
    if not isinstance(first, Grown) or not isinstance(last, Grown) or end <= start:
        return None
    counts = (max(new - old, 0.0) for new, old in zip(last.counts, first.counts, strict=True))
    return end - start, Grown(last.bounds, array("d", counts))


def p95(readings: Sequence[Reading], metric: Metric, window: float) -> float | None:
    """The 95th percentile of a histogram's growth; beyond the last bound that bound, None without any growth."""
    found = grown(readings, metric, window)
    if found is None or (value := quantile(P95, found[1].bounds, found[1].counts)) is None:
        return None
    return value.low if value.estimate is None else value.estimate


def _ends(
    readings: Sequence[Reading], metric: Metric, window: float
) -> tuple[tuple[float, float | Grown | None], tuple[float, float | Grown | None]]:
    """First and last time and total of the unbroken run in the window up to the latest reading with the metric."""
    first: tuple[float, float | Grown | None] = (0.0, None)
    last = first
    for reading in reversed(readings):
        total = reading.grown.get(metric.name)
        if total is None:
            if reading.gauges or reading.grown:
                break  # the metric vanished while the source was up: what came before is another run
            continue  # a failed collection: the growth over the gap is counted
        before, latest = first[1], last[1]
        other = isinstance(total, Grown) and isinstance(before, Grown) and total.bounds != before.bounds
        if latest is not None and (other or readings[-1].at - reading.at > window):
            break
        if latest is None:
            last = (reading.at, total)
        first = (reading.at, total)
    return first, last
