"""The values that flow through the pipeline. All are immutable; of its siblings this module imports `frozen` alone."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, TypeVar, cast
from weakref import WeakValueDictionary

from llm_headroom.frozen import frozen, frozen_named

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Labels: TypeAlias = tuple[tuple[str, str], ...]
"""Label names and values, sorted by name, none of them empty: an empty label is an absent one."""

NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


class Kind(StrEnum):
    """What a metric's values mean; the text is the one of Prometheus' TYPE lines."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


class Subject(StrEnum):
    """What a metric describes, and who may provide it. Each metric has one subject."""

    ENGINE = "engine"
    """An inference engine: its traffic, latencies, KV cache and models, as it exposes them."""
    ROUTER = "router"
    """A router (gateway) in front of engines, as it exposes them."""
    DERIVED = "derived"
    """An engine, worked out here from several readings, or from engine and GPUs together: headroom, risks."""
    PROXY = "proxy"
    """Requests through our measuring proxy that only the proxy itself can count."""
    GPU = "gpu"
    """A GPU, read through NVML; some engines expose their GPU themselves."""
    ATTRIBUTION = "attribution"
    """An engine's part of a GPU: which processes hold its memory, and what that memory is used for."""
    HOST = "host"
    """An engine's processes and control group on this host, as the kernel reports them."""
    COLLECTION = "collection"
    """How the collection from one target went."""
    EXPORTER = "exporter"
    """llm-headroom itself: its build, configuration and push."""
    PROCESS = "process"
    """The process that llm-headroom runs in, as every Python process has it."""


class Across(StrEnum):
    """How the series of one target's data-parallel replicas combine into the target's own value."""

    SUM = "sum"
    """Extensive: requests, tokens, bytes, and histograms of equal bounds."""
    MAX = "max"
    """The worst replica speaks for the target."""
    CAPACITY_WEIGHTED = "capacity_weighted"
    """A share of the KV pool: the mean weighted by each replica's capacity (`Across.MAX` belongs beside it)."""
    NONE = "none"
    """Not to be combined."""


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One canonical metric, defined once and so the same as itself only.

    `unit` is a UCUM code (`s`, `By`, `J`, `W`, `Cel`, `Hz`, `1` on ratios, `{token}`, `{request}`, … elsewhere),
    `labels` are the names that its series may carry, `help` is one line for every engine alike.
    """

    name: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    across: Across = Across.NONE
    _: KW_ONLY
    subject: Subject

    @property
    def exposed_by_engines(self) -> bool:
        """Whether a rule may read it from an endpoint: nobody else gives a series with the same labels.

        A GPU metric may be read if it has a `target` to carry: NVML's own series have none.
        """
        gpu = self.subject is Subject.GPU and "target" in self.labels
        return gpu or self.subject in {Subject.ENGINE, Subject.ROUTER}


class Series:
    """A metric with label values: the identity of a point. Hashed once, since every poll looks it up."""

    __slots__ = ("__weakref__", "_combined", "_hash", "labels", "metric", "model", "replica")

    metric: Metric
    labels: Labels
    model: str
    replica: str
    """The values of these labels, which every poll asks for; `replica` is one of a target's data-parallel replicas."""

    def __init__(self, metric: Metric, labels: Mapping[str, str]) -> None:
        """Drops empty label values: Prometheus takes them for absent ones.

        Lone surrogates, which JSON can hold and UTF-8 cannot (RFC 8259, section 8.2), become `?`.
        """
        self.metric = metric
        pairs = sorted((name, _encodable(value)) for name, value in labels.items() if value)
        self.labels = _shared(tuple([_shared(pair) for pair in pairs]))
        self.model = self.label("model")
        self.replica = self.label("replica")
        self._combined: Series | None = None
        self._hash = hash((metric.name, self.labels))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Series):
            return NotImplemented
        return self._hash == other._hash and self.metric is other.metric and self.labels == other.labels

    def __repr__(self) -> str:
        inside = ",".join(f'{name}="{value}"' for name, value in self.labels)
        return f"{self.metric.name}{{{inside}}}"

    @property
    def combined(self) -> Series:
        """The series of the target's own value, of all data-parallel replicas: this one without `replica`."""
        if not self.replica:
            return self
        if self._combined is None:
            self._combined = series_of(self.metric, tuple(pair for pair in self.labels if pair[0] != "replica"))
        return self._combined

    def label(self, name: str) -> str:
        """The value of a label, empty if the series does not carry it."""
        for key, value in self.labels:
            if key == name:
                return value
        return ""


_T = TypeVar("_T", bound=tuple[object, ...])
_seen: Final[dict[tuple[object, ...], tuple[object, ...]]] = {}
_MOST_SEEN: Final = 20_000


def _shared(labels: _T) -> _T:
    """The same labels, or pair of name and value, as other series hold it: those of one target have few of them."""
    if len(_seen) >= _MOST_SEEN:  # most may be of targets that are gone; the others lose nothing but sharing
        _seen.clear()
    return cast("_T", _seen.setdefault(labels, labels))


def _encodable(text: str) -> str:
    return text if text.isascii() else text.encode(errors="replace").decode()


_remembered: Final[WeakValueDictionary[tuple[Metric, Labels], Series]] = WeakValueDictionary()
"""Series by how they were asked for, as long as anybody holds them: those of a target that has gone are freed."""


def series_of(metric: Metric, labels: Labels) -> Series:
    """The series with these labels, in any order; remembered, since each poll asks for the same ones."""
    found = _remembered.get((metric, labels))
    if found is None:
        found = Series(metric, dict(labels))
        # The key holds the pairs that the series has, so that they are in memory once.
        pairs = {pair: pair for pair in found.labels}
        _remembered[metric, tuple([pairs.get(pair, pair) for pair in labels])] = found
    return found


_MOST_COMMON: Final = 2_000


class Common(dict[str, str]):
    """Labels that many series of one source have, with the series that were made of them: each poll asks for the same.

    Not to be changed. What was made is forgotten where it becomes much: an engine can change its labels at each poll.
    """

    __slots__ = ("_more", "_series")

    def __init__(self, labels: Mapping[str, str]) -> None:
        super().__init__(labels)
        self._series: dict[object, Series] = {}
        self._more: dict[tuple[str, str], Common] = {}

    def series(self, metric: Metric, more: Mapping[str, str]) -> Series:
        """The series with these labels and more."""
        key = (metric, *more.items()) if more else metric
        found = self._series.get(key)
        if found is None:
            if len(self._series) >= _MOST_COMMON:
                self._series.clear()
            found = self._series[key] = Series(metric, {**self, **more})
        return found

    def extended(self, name: str, value: str) -> Common:
        """These labels and one more."""
        found = self._more.get((name, value))
        if found is None:
            if len(self._more) >= _MOST_COMMON:
                self._more.clear()
            found = self._more[name, value] = Common({**self, name: value})
        return found


@frozen
class Histogram:
    """A histogram as a value, like a float.

    `bounds` are the upper bounds, ascending, the last one +Inf; `counts` are cumulative, one for each bound;
    `sum` is the sum of the observations in the metric's unit.
    """

    bounds: tuple[float, ...]
    counts: tuple[float, ...]
    sum: float

    @property
    def count(self) -> float:
        """The number of observations."""
        return self.counts[-1]


class Point(NamedTuple):
    """What we say: a series, its value, and the upstream name or field that the value came from."""

    series: Series
    value: float | Histogram
    origin: str


def point(metric: Metric, value: float | Histogram, origin: str, labels: Mapping[str, str], /, **more: str) -> Point:
    """A point with these labels and more, in any order; its series is remembered, see `Common` and `series_of`."""
    if isinstance(labels, Common):
        return Point(labels.series(metric, more), value, origin)
    return Point(series_of(metric, (*labels.items(), *more.items())), value, origin)


def numbers(points: Iterable[Point], *metrics: Metric) -> Iterator[tuple[Series, float]]:
    """Series and values of the points of some metrics, histograms left out."""
    wanted = frozenset(metrics)
    for series, value, _ in points:
        if series.metric in wanted and isinstance(value, float):
            yield series, value


class SampleState(StrEnum):
    """How a sample that an engine exposes was handled."""

    MAPPED = "mapped"
    IGNORED = "ignored"
    UNKNOWN = "unknown"
    INVALID = "invalid"
    UNKNOWN_LABEL = "unknown_label"
    """Mapped, but separated or taken for a repetition because of a label that no rule knows."""


class Cause(StrEnum):
    """Why a collection failed: a closed set, since it is a label value."""

    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    SLOW = "slow"
    """It answers, but what is read of it does not come in time."""
    STALE = "stale"
    """It answers, but with figures of before."""
    TLS = "tls"
    AUTH = "auth"
    STATUS = "status"
    REDIRECT = "redirect"
    TOO_LARGE = "too_large"
    TRUNCATED = "truncated"
    PROTOCOL = "protocol"
    FORMAT = "format"
    NOT_THIS_ENGINE = "not_this_engine"
    CREDENTIALS = "credentials"
    LIBRARY = "library"
    DRIVER = "driver"
    DEVICE = "device"
    INTERNAL = "internal"


class Level(StrEnum):
    """How much something wants to be looked at."""

    GOOD = "good"
    WARN = "warn"
    BAD = "bad"
    UNKNOWN = "unknown"
    """Not known, which never counts as good."""


class State(StrEnum):
    """The state of an engine's model or of a GPU; a closed set, since it is a label value."""

    DOWN = "down"
    """It does not respond, and is not seen to be starting."""
    MISREAD = "misread"
    """Something responds, but not as this engine does."""
    STALLED = "stalled"
    """There are requests, but neither steps nor tokens increase."""
    FAILING = "failing"
    """Many of its requests fail."""
    BLOCKED = "blocked"
    """Requests wait, and none has been admitted for minutes."""
    SLOW = "slow"
    """TTFT misses the objective."""
    LOADING = "loading"
    """It does not respond yet: never since llm-headroom or the process started, or it reports that it is loading."""
    LAGGING = "lagging"
    """Tokens after the first one miss the objective of inter-token latency."""
    TIGHT = "tight"
    """Almost no KV cache headroom, or no room for models that evict each other."""
    UNKNOWN = "unknown"
    """It cannot be read, or exposes no metrics of requests."""
    ASLEEP = "asleep"
    """Not in GPU memory until the next request or a call wakes it."""
    IDLE = "idle"
    """No request for a minute."""
    OK = "ok"
    """No problem found."""
    LOST = "lost"
    """A GPU that was there, or that NVML lists, can no longer be read."""
    ERROR = "error"
    """A GPU reported a fatal error, or its driver requests a reset."""
    THROTTLED = "throttled"
    """Heat or the power supply reduces a GPU's clocks."""
    FULL = "full"
    """A GPU has no memory left to allocate."""

    @property
    def level(self) -> Level:
        """How urgent it is."""
        return _LEVELS[self]


ENGINE_STATES: Final = (
    State.DOWN,
    State.MISREAD,
    State.STALLED,
    State.FAILING,
    State.BLOCKED,
    State.SLOW,
    State.LOADING,
    State.LAGGING,
    State.TIGHT,
    State.UNKNOWN,
    State.ASLEEP,
    State.IDLE,
    State.OK,
)
"""The states of an engine's model, worst first: the worst one that holds is its state."""
GPU_STATES: Final = (State.LOST, State.ERROR, State.THROTTLED, State.FULL, State.UNKNOWN, State.OK)
"""The same of a GPU."""
_LEVELS: Final[Mapping[State, Level]] = {
    **dict.fromkeys(State, Level.BAD),
    **dict.fromkeys((State.LOADING, State.LAGGING, State.TIGHT, State.THROTTLED, State.FULL), Level.WARN),
    **dict.fromkeys((State.ASLEEP, State.IDLE, State.OK), Level.GOOD),
    State.UNKNOWN: Level.UNKNOWN,
}


@frozen_named
class Judged:
    """The state of an engine's model (`model`, empty where none is known) or of a GPU (`gpu`, `uuid`).

    `reason` says why in words that hold the numbers, `since` is when the state began, by `clock`.
    """

    state: State
    reason: str
    since: float
    model: str = ""
    gpu: str = ""
    uuid: str = ""


class Failure(NamedTuple):
    """Why a source, or a part of it, gave nothing; `message` is written for the operator and holds no secrets."""

    cause: Cause
    message: str


@frozen_named
class Health:
    """How a collection went, apart from what it gave. Times are unix seconds, durations seconds.

    `withheld` are addresses of documents that want credentials, and without which the engine is read all the same.
    """

    up: bool
    error: Failure | None = None
    warnings: tuple[Failure, ...] = ()
    duration_seconds: float = 0.0
    last_success: float | None = None
    samples: Mapping[SampleState, int] = field(default_factory=dict)
    unmapped: tuple[str, ...] = ()
    withheld: tuple[str, ...] = ()
    version: str = ""


@frozen_named
class Snapshot:
    """One collection of one source. A failed collection carries health and no points.

    `taken` is when the collection began, by `clock`, `engine` is empty as long as nobody knows it. `states` are
    what is judged of its models or GPUs, in whatever way the collection went; empty until it is published.
    """

    target: str
    engine: str
    taken: float
    points: tuple[Point, ...] = ()
    health: Health
    states: tuple[Judged, ...] = ()
