"""One run: traffic on a simulated engine, polled as the exporter polls, derived as the exporter derives.

Kept are what Prometheus would have scraped, what the requests suffered, and the risks with what they follow from.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from evaluate.scenarios import calm_day, traffic
from llm_headroom import schema
from llm_headroom.config.objectives import Objectives
from llm_headroom.derive import risk, slo
from llm_headroom.derive.capacity import targets
from llm_headroom.derive.memory import Memory, advance, with_estimate
from llm_headroom.derive.trial import estimated
from llm_headroom.model import Histogram, Point, Series
from llm_headroom.scrape import kv_cache
from llm_headroom.simulate.batching import Engine

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from evaluate.scenarios import Scenario
    from llm_headroom.model import Metric
    from llm_headroom.simulate.engine_state import EngineConfig, EngineReading, Outcome
    from llm_headroom.simulate.measures import HistogramReading
    from llm_headroom.simulate.traffic import Request

POLL_SECONDS: Final = 5.0
POLL_JITTER: Final = 0.2
SCRAPE_SECONDS: Final = 15.0
SCRAPE_JITTER: Final = 1.0
ITL_SLO: Final = 0.2
ESTIMATE_SECONDS: Final = 600.0
"""Between two estimates of the load headroom: the exporter's come each minute, and are smoother."""
DRAIN_SECONDS: Final = 1800.0
"""After the last poll, so that requests end; those that do not are taken to have had no first token either."""
RESERVED: Final = 4096
"""Tokens of an answer that SGLang reserves at most: SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION."""
RISKS: Final = (schema.KV_SATURATION_RISK, schema.SATURATION_HIGH_WATER)
GAUGES: Final = (schema.KV_CACHE_USAGE, schema.REQUESTS_WAITING)
"""What the risks are compared with as a ranking."""


class Firsts(NamedTuple):
    """A first token: when it was clear whether it was slow (seconds), and whether it was."""

    at: float
    slow: bool


class Trouble(NamedTuple):
    """What was suffered from one poll to the next: tokens, those slower than `ITL_SLO`, preemptions, blocking."""

    at: float
    tokens: int
    slow_tokens: int
    preemptions: int
    blocked: bool


class Forecast(NamedTuple):
    """Risks and gauges at a poll, and the features that the risks are logistic functions of, by metric name."""

    at: float
    risks: Mapping[str, float]
    features: Mapping[str, tuple[float, ...]]


@dataclass(slots=True, eq=False)
class Run:
    """One replay; times are seconds since its begin. `calm`: of a whole day at low load."""

    scenario: str
    trace: str
    load: int
    seed: int
    tuning: bool
    span: float
    slo: float
    calm: bool = False
    firsts: list[Firsts] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)
    forecasts: list[Forecast] = field(default_factory=list)
    scrapes: list[tuple[float, list[tuple[str, float]]]] = field(default_factory=list)

    @property
    def target(self) -> str:
        """The label by which Prometheus tells the runs apart."""
        return f"{self.scenario} / {self.load} / {self.seed}"


class _Client:
    """Who sent the requests: knows what became of them, and which of them is at the head of the queue."""

    def __init__(self, slo_seconds: float) -> None:
        self.slo = slo_seconds
        self.sent: list[Request] = []
        self.firsts: list[Firsts] = []
        self._open: dict[int, Request] = {}

    def send(self, request: Request, engine: Engine) -> None:
        self.sent.append(request)
        self._open[id(request)] = request
        engine.submit(request, on_end=self._end)

    def lost(self) -> list[Firsts]:
        """First tokens of the requests that have not ended: so late that they were slow."""
        return [Firsts(one.arrival + self.slo, slow=True) for one in self._open.values()]

    def _end(self, outcome: Outcome) -> None:
        del self._open[id(outcome.request)]
        if outcome.first_token is None:
            return  # rejected: longer than the pool
        arrival = outcome.request.arrival
        slow = outcome.first_token - arrival > self.slo
        self.firsts.append(Firsts(arrival + self.slo if slow else outcome.first_token, slow))

    def blocked(self, reading: EngineReading, *, reserves: bool) -> bool:
        """Whether the head of the queue does not fit into the cache. Queues are first come, first served."""
        if not reading.waiting:
            return False
        head = self.sent[-min(reading.waiting, len(self.sent))]
        reserve = min(head.max_tokens or head.output_tokens, RESERVED) if reserves else 0
        return reading.free_tokens + reading.evictable_tokens < head.prompt_tokens + reserve


def replay(
    scenario: Scenario, load: int, seed: int, *, names: Collection[str] | None = None, most_seconds: float = math.inf
) -> Run:
    """Replay a scenario at one of its loads.

    `names` are the metrics whose scrapes are kept (None: no scrape is, and nothing is derived), `most_seconds` ends
    the run early.
    """
    requests = [one for one in traffic(scenario.trace, scenario.loads[load], seed) if one.arrival < most_seconds]
    run = Run(scenario.name, scenario.trace, load, seed, scenario.tuning, requests[-1].arrival, scenario.slo())
    exporter = _Exporter(run, frozenset(names)) if names is not None else None
    return _replayed(run, requests, scenario.setup.config(), exporter)


def replay_day(scenario: Scenario, seed: int, *, names: Collection[str], most_seconds: float = math.inf) -> Run:
    """Replay a calm day of a scenario, with estimates of the load headroom."""
    requests = [one for one in calm_day(scenario, seed) if one.arrival < most_seconds]
    span, name = requests[-1].arrival, f"{scenario.name}, calm day"
    run = Run(name, scenario.trace, 0, seed, scenario.tuning, span, scenario.slo(), calm=True)
    return _replayed(run, requests, scenario.setup.config(), _Exporter(run, frozenset(names)))


def _replayed(run: Run, requests: Sequence[Request], config: EngineConfig, exporter: _Exporter | None) -> Run:
    engine, client = Engine(config, seed=run.seed), _Client(run.slo)
    chance = random.Random(run.seed)  # noqa: S311  simulation, not security
    before, coming = engine.read(), 0
    for poll in range(1, int(run.span / POLL_SECONDS) + 1):
        at = poll * POLL_SECONDS + chance.uniform(0.0, POLL_JITTER)
        while coming < len(requests) and requests[coming].arrival <= at:
            engine.advance(requests[coming].arrival)
            client.send(requests[coming], engine)
            coming += 1
        engine.advance(at)
        reading = engine.read()
        run.troubles.append(_trouble(before, reading, client, reserves=config.scheduler == "sglang"))
        if exporter:
            exporter.poll(reading, at)
        before = reading
    end = engine.now
    engine.advance(end + DRAIN_SECONDS)
    run.firsts = sorted(first for first in (*client.firsts, *client.lost()) if first.at <= end)
    if exporter:
        run.scrapes = exporter.scrapes
    return run


def _trouble(before: EngineReading, now: EngineReading, client: _Client, *, reserves: bool) -> Trouble:
    fresh = now.histograms.itl.since(before.histograms.itl)
    slow = sum(fresh.counts[fresh.bounds.index(ITL_SLO) + 1 :])
    preemptions = now.counters.preemptions - before.counters.preemptions
    return Trouble(now.time, fresh.count, slow, preemptions, client.blocked(now, reserves=reserves))


class _Exporter:
    """The exporter's derivation in the loop, and the Prometheus that scrapes it."""

    def __init__(self, run: Run, names: frozenset[str]) -> None:
        self.scrapes: list[tuple[float, list[tuple[str, float]]]] = []
        self._run, self._names = run, names
        self._base = {"engine": "vllm", "target": "t"}
        self._run_label = f'cluster="{run.target}"'  # which shipped rules keep apart
        self._memory = Memory()
        self._objectives = slo.objectives(Objectives(ttft=run.slo, inter_token_latency=ITL_SLO, request_duration=30.0))
        self._chance = random.Random(run.seed)  # noqa: S311  simulation, not security
        self._due = SCRAPE_SECONDS
        self._estimate_due = 0.0

    def poll(self, reading: EngineReading, at: float) -> None:
        seen = points(reading, {**self._base, "model": "m"})
        self._memory, derived = advance(self._memory, seen, at, base=self._base, objectives=self._objectives)
        self._run.forecasts.append(self._forecast([*seen, *derived], at))
        if at >= self._due:
            moment = at + self._chance.uniform(0.0, SCRAPE_JITTER)
            told = (each for each in (*seen, *derived) if each.series.metric.name in self._names)
            self.scrapes.append((moment, [sample for point in told for sample in samples(point, self._run_label)]))
            self._due += SCRAPE_SECONDS
        if self._run.calm:
            self._estimate()

    def _estimate(self) -> None:
        known = self._memory.models["m"]
        if known.load.due and known.at >= self._estimate_due:
            self._estimate_due = known.at + ESTIMATE_SECONDS
            estimate = estimated(known.load, targets(self._objectives, known.tallies))
            if estimate is not None:
                self._memory = with_estimate(self._memory, "m", estimate)

    def _forecast(self, told_now: Sequence[Point], at: float) -> Forecast:
        told = {one.series.metric.name: one.value for one in told_now if one.series.metric in (*RISKS, *GAUGES)}
        risks = {name: value for name, value in told.items() if isinstance(value, float)}
        known = self._memory.models["m"]
        distance = risk.kv_distance(known.last, known.estimates)
        features = {
            schema.KV_SATURATION_RISK.name: None if distance is None else (risk.kv_feature(distance),),
            schema.SATURATION_HIGH_WATER.name: risk.high_water_features(known.levels),
        }
        return Forecast(at, risks, {name: one for name, one in features.items() if one is not None and name in risks})


def points(reading: EngineReading, labels: Mapping[str, str]) -> list[Point]:
    """What the exporter would have read of the engine."""

    def point(metric: Metric, value: float | Histogram, **more: str) -> Point:
        return Point(Series(metric, {**labels, **more}), value, "simulator")

    counters, histograms = reading.counters, reading.histograms
    found = [
        point(schema.REQUESTS_RUNNING, float(reading.running)),
        point(schema.REQUESTS_WAITING, float(reading.waiting)),
        point(schema.KV_CACHE_CAPACITY, float(reading.total_tokens)),
        point(schema.KV_CACHE_USAGE, reading.usage),
        point(schema.PREEMPTIONS, float(counters.preemptions)),
        point(schema.PROMPT_TOKENS, float(counters.prompt_tokens)),
        point(schema.PROMPT_TOKENS_CACHED, float(counters.cached_tokens)),
        point(schema.GENERATION_TOKENS, float(counters.generated_tokens)),
        point(schema.ENGINE_STEPS, float(counters.steps)),
        point(schema.TIME_TO_FIRST_TOKEN, _histogram(histograms.ttft)),
        point(schema.INTER_TOKEN_LATENCY, _histogram(histograms.itl)),
        point(schema.REQUEST_DURATION, _histogram(histograms.e2e)),
        point(schema.REQUEST_QUEUE, _histogram(histograms.queue)),
        point(schema.REQUEST_PROMPT_TOKENS, _histogram(histograms.prompt)),
        point(schema.REQUEST_GENERATION_TOKENS, _histogram(histograms.generation)),
    ]
    found += [point(schema.REQUESTS_FINISHED, float(count), reason=why) for why, count in counters.finished.items()]
    return [*found, *kv_cache.implied(found)]


def _histogram(reading: HistogramReading) -> Histogram:
    return Histogram((*reading.bounds, math.inf), tuple(map(float, reading.cumulative())), reading.total)


def samples(point: Point, label: str) -> Iterator[tuple[str, float]]:
    """A point as Prometheus' series, with one more label, and their values."""
    name = point.series.metric.name
    labels = ",".join((label, *(f'{key}="{value}"' for key, value in point.series.labels)))
    if isinstance(point.value, float):
        yield f"{name}{{{labels}}}", point.value
        return
    for bound, count in zip(point.value.bounds, point.value.counts, strict=True):
        le = "+Inf" if bound == math.inf else f"{bound:g}"
        yield f'{name}_bucket{{{labels},le="{le}"}}', count
    yield f"{name}_sum{{{labels}}}", point.value.sum
    yield f"{name}_count{{{labels}}}", point.value.count
