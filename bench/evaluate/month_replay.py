"""One engine's week: its traffic on the simulator, what its clients suffer, and what Prometheus scrapes.

The exporter's own derivation and judgement run in the loop, and forget when the exporter ends.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from evaluate.incidents import Span, merged, slow_firsts
from evaluate.month_plan import DOWN, FAULTS, START_SECONDS, Kind
from evaluate.prometheus import EPOCH
from evaluate.replay import ITL_SLO, POLL_JITTER, POLL_SECONDS, SCRAPE_SECONDS, Firsts, points, samples
from evaluate.scenarios import trace, traffic
from llm_headroom import schema
from llm_headroom.config.objectives import Objectives
from llm_headroom.derive import memory as derivation
from llm_headroom.derive import restart, slo, state
from llm_headroom.model import Cause, Failure, Health, Point, SampleState, Series, Snapshot, series_of
from llm_headroom.poll.health import health_points, labels_of
from llm_headroom.simulate.batching import Engine

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from evaluate.month_plan import Event, Member
    from llm_headroom.model import Judged
    from llm_headroom.simulate.engine_state import EngineReading, Outcome
    from llm_headroom.simulate.traffic import Request

CLUSTER: Final = "month"
JOB: Final = "llm-headroom"
MISSED: Final = 0.002
"""Share of scrapes that are missed for no reason."""
FAILING: Final = 0.2
_UNSEEN: Final = schema.REQUESTS_WAITING
"""What an upgrade renames."""
_LOST: Final = frozenset({"crash", "rejected_down"})


class Week(NamedTuple):
    """When an engine's clients suffered, or it was at fault; how many requests there were, and how many came late."""

    name: str
    suffered: list[Span]
    requests: int
    slow: int


def replay(member: Member, seed: int, seconds: float, names: frozenset[str], file: Path) -> Week:
    """Replay the first seconds of a week; what is scraped of the metrics named goes to a file."""
    clients = _Clients(member, seed)
    engine = Engine(member.setup.config(), seed=seed)
    exporter = _Exporter(member, names)
    chance = random.Random(seed)  # noqa: S311  simulation, not security
    coming = _arrivals(member, seed, seconds)
    request = next(coming, None)
    events = sorted(
        (each for each in member.events if each.kind in {*DOWN, Kind.STALL, Kind.SLOW}), key=lambda event: event.begin
    )
    scrape = SCRAPE_SECONDS
    with file.open("w") as out:
        for poll in range(1, int(seconds / POLL_SECONDS) + 1):
            at = poll * POLL_SECONDS + chance.uniform(0.0, POLL_JITTER)
            while events and events[0].begin <= at and _can_begin(engine, events[0], at):
                _begin(engine, clients, events.pop(0), at)
            slowed = member.now(Kind.SLOW, at)
            engine.slowdown = slowed.much if slowed else 1.0
            while request is not None and request.arrival <= at:
                engine.advance(max(request.arrival, engine.now))
                clients.send(request, engine)
                request = next(coming, None)
            engine.advance(max(at, engine.now))
            exporter.poll(engine.read(), at, clients.failed)
            if at >= scrape:
                scrape += SCRAPE_SECONDS
                moment = at + chance.uniform(0.0, 1.0)
                for series, value in exporter.scraped(at, missed=chance.random() < MISSED):
                    out.write(f"{series} {value!r} {EPOCH + moment:.3f}\n")
    alone = not member.replicas()
    faults = [each.span for each in member.events if alone and each.kind in FAULTS and each.begin < seconds]
    firsts = sorted(clients.firsts)
    suffered = merged([*slow_firsts(firsts), *faults])
    return Week(member.name, suffered, len(firsts), sum(each.slow for each in firsts))


def _can_begin(engine: Engine, event: Event, at: float) -> bool:
    """An engine hangs over something that it does: a stall waits for a request, but not for ever."""
    engine.advance(max(event.begin, engine.now))  # what ran at the last look may have ended before
    return event.kind is not Kind.STALL or engine.read().running > 0 or at >= event.end


def _begin(engine: Engine, clients: _Clients, event: Event, at: float) -> None:
    if event.kind in DOWN:
        engine.crash(event.seconds)
        clients.failed = 0
    elif event.kind is Kind.STALL:
        engine.stall(max(event.end - at, 0.0))


def _arrivals(member: Member, seed: int, seconds: float) -> Iterator[Request]:
    """The trace again and again, each time drawn anew, as many of its requests as the time of day has."""
    chance = random.Random(seed + 1)  # noqa: S311  simulation, not security
    span, begin = trace(member.trace)[-1].arrival + 1.0, 0.0
    while begin < seconds:
        top = max(member.load(begin + part * span / 240) for part in range(241))
        if top > 0:
            for one in traffic(member.trace, top, seed + int(begin)):
                at = begin + one.arrival
                if at < seconds and chance.random() < member.load(at) / top:
                    yield replace(one, arrival=at)
        begin += span


class _Clients:
    """Who sent the requests, and what became of them."""

    def __init__(self, member: Member, seed: int) -> None:
        self.firsts: list[Firsts] = []
        self.failed = 0
        self._member = member
        self._chance = random.Random(seed + 2)  # noqa: S311  simulation, not security

    def send(self, request: Request, engine: Engine) -> None:
        engine.submit(request, on_end=self._end)

    def _end(self, outcome: Outcome) -> None:
        slo_seconds = self._member.slo
        if outcome.reason in _LOST:
            self.firsts.append(Firsts(outcome.ended, slow=True))
        elif self._member.now(Kind.ERRORS, outcome.ended) and self._chance.random() < FAILING:
            self.failed += 1
            self.firsts.append(Firsts(outcome.ended, slow=True))
        elif outcome.first_token is not None:
            arrival = outcome.request.arrival
            slow = slo_seconds is not None and outcome.first_token - arrival > slo_seconds
            self.firsts.append(Firsts(arrival + (slo_seconds or 0.0) if slow else outcome.first_token, slow))


class _Exporter:
    """An exporter beside its engine."""

    def __init__(self, member: Member, names: frozenset[str]) -> None:
        self._member, self._names = member, names
        self._base = {"engine": member.engine, "target": member.name}
        self._label = f'cluster="{CLUSTER}",job="{JOB}",instance="{member.name}:9836"'
        objectives = slo.objectives(Objectives(ttft=member.slo or 1.0, inter_token_latency=ITL_SLO))
        self._objectives = objectives if member.slo is not None else ()
        self._forget()

    def _forget(self) -> None:
        self._memory = derivation.Memory()
        self._judged: state.Memory | None = None
        self._states: tuple[Judged, ...] = ()
        self._success: float | None = None
        self._errors: Counter[Cause] = Counter()
        self._points: list[Point] = []

    def poll(self, reading: EngineReading, at: float, failed: int) -> None:
        """One collection, as `poll` makes it."""
        if self._member.now(Kind.EXPORTER, at):
            self._forget()
            return
        now = EPOCH + at
        labels = {**self._base, "model": self._member.model}
        seen: list[Point] = []
        error = None
        if reading.alive:
            renamed = self._member.now(Kind.RENAMED, at) is not None
            seen = [each for each in points(reading, labels) if not (renamed and each.series.metric is _UNSEEN)]
            seen = _with_failures(seen, failed, labels)
            self._memory, derived = derivation.advance(
                self._memory,
                seen,
                at,
                base=self._base,
                objectives=self._objectives,
                reading=restart.Reading(frozenset({"metrics"}), EPOCH + reading.started_at),
            )
            self._success = now
            seen += derived
            counted = {SampleState.MAPPED: len(seen) - renamed, SampleState.UNKNOWN: int(renamed)}
        else:
            self._memory = replace(self._memory, gap=True)
            error = Failure(Cause.REFUSED, "connection refused")
            self._errors[error.cause] += 1
            counted = {}
        health = Health(
            up=error is None, error=error, duration_seconds=0.004, last_success=self._success, samples=counted
        )
        snapshot = Snapshot(
            target=self._member.name, engine=self._member.engine, taken=now, points=tuple(seen), health=health
        )
        self._judged, states = state.judge(self._judged, snapshot, at, beside=self._beside(at))
        self._points = [
            *seen,
            *state.state_points(states, self._base),
            *health_points(snapshot, self._errors, {}, labels_of(snapshot, {})),
        ]

    def _beside(self, at: float) -> Sequence[Point]:
        """What the host shows of an engine that does not answer: since when its process is there, if it is."""
        for each in self._member.events:
            if each.kind in DOWN and each.begin <= at < each.end:
                begun = each.begin + START_SECONDS if each.kind is not Kind.DEAD else each.end - each.loading
                if at >= begun:
                    return (Point(Series(schema.HOST_PROCESS_START, self._base), EPOCH + begun, "host"),)
        return ()

    def scraped(self, at: float, *, missed: bool) -> Iterator[tuple[str, float]]:
        """What Prometheus gets: nothing but `up` where it does not reach the exporter."""
        missed = missed or any(self._member.now(kind, at) for kind in (Kind.MISSED, Kind.EXPORTER))
        yield f"up{{{self._label}}}", float(not missed)
        if not missed:
            for each in self._points:
                if each.series.metric.name in self._names:
                    yield from samples(each, self._label)


def _with_failures(seen: list[Point], failed: int, labels: Mapping[str, str]) -> list[Point]:
    """Requests that failed did not finish."""
    if not failed:
        return seen
    found = [
        each._replace(value=max(each.value - failed, 0.0))
        if each.series.metric is schema.REQUESTS_FINISHED
        and each.series.label("reason") == "stop"
        and isinstance(each.value, float)
        else each
        for each in seen
    ]
    failures = series_of(schema.REQUESTS_FAILED, (*labels.items(), ("reason", "error")))
    return [*found, Point(failures, float(failed), "simulator")]
