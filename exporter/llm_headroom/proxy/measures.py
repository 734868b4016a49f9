"""What a proxy has measured of one engine, as points: histograms and counters by model, requests under way."""

from __future__ import annotations

import logging
import math
import time
from bisect import bisect_left
from collections import deque
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.derive import replicas, slo
from llm_headroom.derive.loaded import Ready, loaded, ready
from llm_headroom.model import Histogram, Kind, Metric, point
from llm_headroom.proxy.backlog import Backlog
from llm_headroom.proxy.framing import FramingError
from llm_headroom.scrape.label_cap import OVERFLOW, LabelCap

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from llm_headroom.derive.slo import Objective
    from llm_headroom.model import Point

log = logging.getLogger("llm_headroom")

ORIGIN: Final = "proxy"
_LATENCY: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0)
_TOKEN: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0)
_REQUEST: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0)
_LONG: Final = (120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0)
_COUNT: Final = tuple(float(step * 10**power) for power in range(6) for step in (1, 2, 5))
BOUNDS: Final[Mapping[Metric, tuple[float, ...]]] = {
    schema.TIME_TO_FIRST_TOKEN: (*_LATENCY, 40.0, 80.0, 160.0, 640.0, 2560.0, math.inf),
    schema.PROXY_FIRST_TOKEN_AFTER_LOAD: (*_REQUEST, *_LONG, math.inf),
    schema.INTER_TOKEN_LATENCY: (*_TOKEN, 7.5, 10.0, 20.0, 40.0, 80.0, math.inf),
    schema.TIME_PER_OUTPUT_TOKEN: (*_TOKEN, 7.5, 10.0, 20.0, 40.0, 80.0, math.inf),
    schema.REQUEST_DURATION: (*_REQUEST, *_LONG, math.inf),
    schema.REQUEST_QUEUE: (*_REQUEST, *_LONG, math.inf),
    schema.REQUEST_PREFILL: (*_REQUEST, *_LONG, math.inf),
    schema.REQUEST_DECODE: (*_REQUEST, *_LONG, math.inf),
    schema.REQUEST_PROMPT_TOKENS: (*_COUNT, math.inf),
    schema.REQUEST_GENERATION_TOKENS: (*_COUNT, math.inf),
}
"""Upper bounds of buckets: those of vLLM's metrics of the same meaning (vllm/v1/metrics/loggers.py), the same for every
engine, with finer ones for small models; so that engines can be compared by one ruler."""


class _Growing:
    """A histogram that observations are added to."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * len(bounds)
        self._sum = 0.0

    def add(self, values: Iterable[float]) -> None:
        for value in values:
            self._counts[bisect_left(self._bounds, value)] += 1
            self._sum += value

    def value(self) -> Histogram:
        return Histogram(self._bounds, tuple(map(float, accumulate(self._counts))), self._sum)


class Traffic:
    """The requests to one model that are under way, in the order in which they were sent. Times are seconds.

    `streams` of them ask for their answers in parts. `since` is when the engine began to owe one of those a byte,
    `heard` when a byte last came, `left` when the last of them ended without an answer. `unserved` clients have left
    since anybody got any output, the first of whom had asked at `thirst`.
    """

    __slots__ = ("heard", "left", "open", "since", "streams", "thirst", "unserved")

    def __init__(self) -> None:
        self.open: dict[UnderWay, None] = {}
        self.streams = self.unserved = 0
        self.since = self.heard = self.left = self.thirst = -math.inf

    def leaves(self, request: UnderWay) -> None:
        """The client of a request has left that had no output yet."""
        if not self.unserved:
            self.thirst = request.sent_at
        self.unserved += 1

    def drought(self, now: float) -> float:
        """For how long clients have asked again and again, and none has got any output."""
        asked = self.streams or now - self.left <= RETRY_SECONDS
        return now - self.thirst if asked and self.unserved >= MOST_PATIENT else 0.0


class UnderWay:
    """A request that has been sent: when, to which model, whether it asks for a stream, and when its first output came.

    `watched`: its first output would be seen on the wire, as of no answer that comes in one piece or cannot be read.
    `settle` is called before what was measured is read: all of the request that has passed is counted by then.
    """

    __slots__ = ("first", "sent_at", "settle", "streams", "traffic", "wanted", "watched")

    def __init__(self, traffic: Traffic, sent_at: float, wanted: str, *, streams: bool) -> None:
        self.traffic = traffic
        self.wanted = wanted
        self.sent_at = sent_at
        self.streams = self.watched = streams
        self.first: float | None = None
        self.settle: Callable[[], None] = _settled

    @property
    def awaited(self) -> bool:
        """Whether its client still waits for the first output, as far as anybody can know."""
        return self.watched and self.first is None


def _settled() -> None:
    """Nothing of a request remains to be counted."""


AVAILABILITY: Final = "availability"
"""The objective that requests are answered at all."""
LOAD_SECONDS: Final = 300.0
"""For how long loading a model may explain silence: Ollama's default OLLAMA_LOAD_TIMEOUT (envconfig/config.go)."""
RETRY_SECONDS: Final = 10.0
"""A client that gives up and asks again within this time has been waiting all the while."""

MOST_PATIENT: Final = 3
"""Clients who leave one after the other without any output, before which nobody wonders: one may press stop twice."""
MOST_MISSED: Final = 10_000
"""Requests that ended late without a first token and are not counted yet: no more than that between two polls."""


def _any(_: str) -> bool:
    return True


class Measures:
    """All that is retained of the traffic to one engine. Models are named by the engine alone, `limit` of them at most.

    `running_limit` is how many requests each replica of the engine runs at once, if that is known: more that are under
    way wait. `untagged` is the tag that the engine adds to a model's name without one. `loads`: the engine loads models
    on demand, and its polls show which are in memory; `silent_loads`: but not that one is being loaded, so that any
    silence before the first byte may be just that. `serves` says whether the engine has a model: many
    repeat whatever name a client has invented.
    """

    def __init__(  # noqa: PLR0913 - each is a choice of its own
        self,
        *,
        limit: int,
        running_limit: int | None = None,
        untagged: str = "",
        loads: bool = False,
        silent_loads: bool = False,
        objectives: Collection[Objective] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cap = LabelCap(limit)
        self.backlog = Backlog()
        self.serves: Callable[[str], bool] = _any
        self.running_limit = running_limit
        self._untagged = untagged
        self._loads = loads
        self._silent_loads = silent_loads
        self._replicas = 1
        self._objectives: dict[str, Objective] = {}
        self._clock = clock
        self._histograms: dict[tuple[Metric, str], _Growing] = {}
        self._counters: dict[tuple[Metric, str, str], float] = {}
        self._traffic: dict[str, Traffic] = {}
        self._missed: deque[tuple[str, str, UnderWay]] = deque(maxlen=MOST_MISSED)
        self._unseen: set[str] = set()
        self._totals: dict[str, float] = {}
        self._ready: Mapping[str, Ready] = {}
        self.judge_by(objectives)

    def judge_by(self, objectives: Collection[Objective]) -> None:
        """From now on late is what these say."""
        self._missed.clear()
        self._objectives = {each.field: _at_bound(each) for each in objectives}

    def label(self, model: str) -> str:
        """The label of a model that the engine's answer has named; `other` if the engine has no such model."""
        if not model:
            return ""
        model = self._tagged(model)
        return self.cap.admit("model", model) if self.serves(model) else OVERFLOW

    def asked(self, model: str) -> str:
        """The label of a model that a client has named: empty unless the engine has named it before."""
        model = self._tagged(model)
        return model if model in self.cap.seen.get("model", ()) else ""

    def _tagged(self, model: str) -> str:
        return f"{model}:{self._untagged}" if self._untagged and model and ":" not in model else model

    def awaited(self, model: str, sent_at: float) -> bool:
        """Whether the engine had to load a model for a request of then, as far as polls have shown it."""
        found = self._ready.get(self._tagged(model))
        return found is not None and sent_at < found.since

    def _may_load(self, request: UnderWay) -> bool:
        """Whether a request may be waiting for a load: also of a model that silent polls do not list at all."""
        unlisted = self._silent_loads and self._tagged(request.wanted) not in self._ready
        return unlisted or self.awaited(request.wanted, request.sent_at)

    def unseen(self, error: Exception) -> None:
        """A connection's answers can no longer be read; logged once for each cause."""
        cause = str(error) if isinstance(error, FramingError) else type(error).__name__
        if cause in self._unseen:
            return
        self._unseen.add(cause)
        defect = None if isinstance(error, FramingError) else error
        log.warning("answers are relayed unmeasured", extra={"reason": cause}, exc_info=defect)

    def begin(self, model: str, now: float, *, streams: bool, wanted: str = "") -> UnderWay:
        """A request is under way; `wanted` is what its client calls a model that the engine may not have named yet."""
        traffic = self._traffic.get(model)
        if traffic is None:
            traffic = self._traffic[model] = Traffic()
        request = UnderWay(traffic, now, wanted or model, streams=streams)
        traffic.open[request] = None
        if streams:
            if not traffic.streams and now - traffic.left > RETRY_SECONDS:
                traffic.since = now
                traffic.unserved = 0
            traffic.streams += 1
        return request

    def end(self, request: UnderWay, now: float = -math.inf) -> None:
        """A request that was under way is no more, at `now` if it was seen to end."""
        traffic = request.traffic
        request.settle = _settled
        if request not in traffic.open:
            return
        del traffic.open[request]
        if request.streams:
            traffic.streams -= 1
            traffic.left = now if request.first is None else -math.inf

    def unanswered(self, model: str, request: UnderWay, now: float) -> None:
        """A request has ended without the answer that it was owed: what is late by now it has missed.

        Whether it waited for a load is known at the next poll.
        """
        for field in _JUDGED:
            if (field != "ttft" or request.awaited) and self._late(field, request, now):
                self._missed.append((field, model, request))

    def _late(self, field: str, request: UnderWay, now: float) -> bool:
        objective = self._objectives.get(field)
        return objective is not None and now - request.sent_at > objective.seconds

    def _count_missed(self) -> None:
        for field in filter(self._objectives.__contains__, _JUDGED):
            for model in filter(None, self._traffic):
                self.count(
                    schema.PROXY_MISSED, model, self._objectives[field].name, by=0
                )  # so that the first is growth
        while self._missed:
            field, model, request = self._missed.popleft()
            if not self._may_load(request):
                self.count(schema.PROXY_MISSED, model, self._objectives[field].name)
                self.observe(_JUDGED[field], model)  # of none: its bounds are those of the objective

    def finished(self, model: str, reason: str) -> None:
        """A request was answered."""
        self.count(schema.REQUESTS_FINISHED, model, reason)
        self.count(schema.SLO_REQUESTS, model, AVAILABILITY)
        self.count(schema.SLO_REQUESTS_GOOD, model, AVAILABILITY)

    def failed(self, model: str, reason: str) -> None:
        """A request was not answered, or not to its end."""
        self.count(schema.REQUESTS_FAILED, model, reason)
        if reason not in schema.NO_FAULT:
            self.count(schema.SLO_REQUESTS, model, AVAILABILITY)

    def observe(self, metric: Metric, model: str, *values: float) -> None:
        """Add observations, in the metric's unit."""
        key = (metric, model)
        found = self._histograms.get(key)
        if found is None:
            found = self._histograms[key] = _Growing(BOUNDS[metric])
        found.add(values)

    def count(self, metric: Metric, model: str, label: str = "", by: float = 1.0) -> None:
        """Add to a counter; `label` is the value of the metric's own label, of a closed set."""
        key = (metric, model, label)
        self._counters[key] = self._counters.get(key, 0.0) + by

    def points(self, base: Mapping[str, str], own: Sequence[Point] = ()) -> list[Point]:
        """Everything so far; `base` are the labels that every series of the target has.

        `own` is what the engine exposes itself at this poll: its replicas, and of one that loads models, which of them
        are in memory.
        A model that nobody has asked for in `label_cap.AGE` seconds is forgotten, where another wants its place.
        """
        now = self._clock()
        if own:
            self._replicas = len(replicas.names(own)) or 1
        if self._loads and own:
            self._ready = ready(self._ready, loaded(own), now)
        self.backlog.look()
        for traffic in self._traffic.values():
            for request in traffic.open:
                request.settle()
        self._count_missed()
        if self.cap.overflow:
            self._forget_idle(now)
        return list(self._points(base, now))

    def _forget_idle(self, now: float) -> None:
        totals = dict.fromkeys(self._traffic, 0.0)
        for (_, model, _), total in self._counters.items():
            totals[model] = totals.get(model, 0.0) + total
        busy = {model for model, total in totals.items() if total != self._totals.get(model)}
        busy |= {model for model, traffic in self._traffic.items() if traffic.open}
        self._totals = totals
        if not self.cap.release((("model", model) for model in busy), now):
            return
        named = {"", OVERFLOW, *self.cap.seen["model"]}
        self._traffic = {model: traffic for model, traffic in self._traffic.items() if model in named}
        self._histograms = {key: grown for key, grown in self._histograms.items() if key[1] in named}
        self._counters = {key: total for key, total in self._counters.items() if key[1] in named}

    def _points(self, base: Mapping[str, str], now: float) -> Iterator[Point]:
        for model, traffic in self._traffic.items():
            requests = len(traffic.open)
            if not model and not requests and len(self._traffic) > 1:
                continue  # by now the engine has named the model
            running = requests if self.running_limit is None else min(requests, self.running_limit * self._replicas)
            origin = f"{ORIGIN}: requests in progress"
            yield point(schema.REQUESTS_RUNNING, float(running), origin, base, model=model)
            if self.running_limit is not None:
                above = f"{origin} above requests_running_limit"
                yield point(schema.REQUESTS_WAITING, float(requests - running), above, base, model=model)
            yield from self._waits(traffic, now, {**base, "model": model})
        for (metric, model), grown in self._histograms.items():
            yield point(metric, grown.value(), ORIGIN, base, model=model)
        for (metric, model, value), total in self._counters.items():
            extra = {name: value for name in metric.labels[-1:] if value}
            yield point(metric, total, ORIGIN, base, model=model, **extra)
            if metric is schema.SLO_REQUESTS and self._objectives:
                ratio = max(each.ratio for each in self._objectives.values())
                yield point(schema.SLO_OBJECTIVE, ratio, "configuration", base, model=model, **extra)

    def _waits(self, traffic: Traffic, now: float, labels: Mapping[str, str]) -> Iterator[Point]:
        """How long clients have been waiting: what no engine exposes before a request has ended."""
        origin = f"{ORIGIN}: requests in progress"
        streams = [each for each in traffic.open if each.streams]
        unanswered = [now - each.sent_at for each in streams if each.awaited]
        silence = now - max(traffic.heard, traffic.since)
        # an engine that loads models on demand may do just that before a first byte, or answer somebody else in one go
        loads = self._silent_loads or any(self.awaited(each.wanted, each.sent_at) for each in streams)
        loading = loads and len(unanswered) == len(streams)
        owed = bool(streams) and not (loading and (silence < LOAD_SECONDS or len(streams) < len(traffic.open)))
        if loads and not self._silent_loads:
            traffic.unserved = 0  # who leaves meanwhile says nothing, also after that
        drought = traffic.drought(now)
        if self._silent_loads and drought < LOAD_SECONDS:
            drought = 0.0
        yield point(schema.PROXY_FIRST_TOKEN_WAIT, max(unanswered, default=0.0), origin, labels)
        yield point(schema.PROXY_SILENCE, max(drought, silence if owed else 0.0), origin, labels)
        judged = [each for each in traffic.open if not self._may_load(each)]
        owing = [each for each in judged if each.awaited]
        for field, requests in (("ttft", owing), ("duration", judged)):
            objective = self._objectives.get(field)
            if objective is not None:
                late = sum(self._late(field, each, now) for each in requests)
                yield point(schema.PROXY_OVERDUE, float(late), origin, labels, slo=objective.name)


_JUDGED: Final = {"ttft": schema.TIME_TO_FIRST_TOKEN, "duration": schema.REQUEST_DURATION}


def _at_bound(objective: Objective) -> Objective:
    """The objective as those are judged that got an answer: by the next bound; beyond the last one nobody misses it."""
    metric = _JUDGED.get(objective.field)
    if metric is None:
        return objective
    index = slo.boundary(objective.seconds, BOUNDS[metric])
    return replace(objective, seconds=math.inf if index is None else BOUNDS[metric][index])


assert all(metric.kind is Kind.HISTOGRAM for metric in BOUNDS)  # noqa: S101 - a table's invariant
