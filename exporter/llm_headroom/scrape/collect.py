"""One target: fetch → parse → map → derive, and what has to be remembered between its polls."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from llm_headroom import clock, schema
from llm_headroom.derive import replicas, restart
from llm_headroom.derive.memory import Memory, advance, with_estimate, with_kin
from llm_headroom.derive.slo import USUAL
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.engines.openai_api import MODELS, present
from llm_headroom.engines.rules import Absent, Fact
from llm_headroom.exposition.text import Exposition
from llm_headroom.model import Cause, Common, Failure, Health, SampleState, Snapshot, numbers, point
from llm_headroom.net.workers import Heavy
from llm_headroom.scrape import kv_cache
from llm_headroom.scrape.documents import Documents
from llm_headroom.scrape.doubts import Doubts
from llm_headroom.scrape.http import FetchError
from llm_headroom.scrape.identify import without_port
from llm_headroom.scrape.label_cap import LabelCap
from llm_headroom.scrape.layers import merge
from llm_headroom.scrape.load_estimates import LoadEstimates
from llm_headroom.scrape.mapping import MOST_SERIES, Mapper, TooManySeries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from llm_headroom.config.settings import Target
    from llm_headroom.derive.slo import Objective
    from llm_headroom.engines.rules import Engine
    from llm_headroom.model import Point
    from llm_headroom.scrape.identify import Look
    from llm_headroom.scrape.layers import Layer, Reported
    from llm_headroom.scrape.plan import Plan

MOST_WARNINGS: Final = 10
MANY_SAMPLES: Final = 5000
"""Samples from which on the work on them is done in a thread."""
LOOK_AGAIN: Final = 300.0
"""Seconds between looks at what answers in an engine's place."""

_NO_SAMPLES: Final[dict[SampleState, int]] = dict.fromkeys(SampleState, 0)

T = TypeVar("T")


class Reading(NamedTuple):
    """What one poll made of a target's own words: nothing of it is derived."""

    points: list[Point]
    samples: dict[SampleState, int]
    unmapped: tuple[str, ...]


@lru_cache(maxsize=256)
def _same(names: frozenset[str]) -> frozenset[str]:
    """Names of metrics as all targets of an engine have them, once in memory."""
    return names


class Collector:
    """A target whose engine is known. Keeps its connection, its parser and plans, and what it reads only now and then.

    `timeout` is the deadline in seconds of one collection, all of its requests together. `layers` are other places that
    describe the target, the richest first; its own API is the last. `measured` gives what a proxy has measured, with
    the target's labels, and gets what the engine itself exposes. `kin` gives what is remembered of other targets,
    `proxied` what the latest poll of a proxy before this very engine has shown, nothing where there is none.
    """

    def __init__(  # noqa: PLR0913 - what it is made of
        self,
        target: Target,
        engine: Engine,
        *,
        timeout: float,
        label_limit: int,
        objectives: Sequence[Objective] = USUAL,
        measured: Callable[[Mapping[str, str], Sequence[Point]], Iterable[Point]] | None = None,
        layers: Sequence[Layer] = (),
        kin: Callable[[], Iterable[Memory]] = tuple,
        proxied: Callable[[], Sequence[Point]] = tuple,
    ) -> None:
        self.target = target
        self.engine = engine
        self.cap = LabelCap(label_limit)
        self._timeout = max(timeout, engine.timeout) if target.timeout is None else target.timeout
        self._heavy = Heavy()
        self._documents = Documents(target, engine, timeout=self._timeout, heavy=self._heavy)
        self._base = Common({**target.labels, "engine": engine.name, "target": target.name})
        self._mapper = Mapper(engine, self._base, cap=self.cap, model=target.model)
        self._mappers: dict[str, Mapper] = {}
        self._remarks: list[Failure] = []
        self._remarked: list[Failure] = []
        self._looked: tuple[float, Look | None] = (-math.inf, None)
        self._last_success: float | None = None
        self.memory = Memory()
        self._objectives = tuple(objectives)
        self._estimates = LoadEstimates(target.name, objectives)
        self._measured = measured
        self._own: frozenset[str] = frozenset()
        self._layers = tuple(layers)
        self._kin = kin
        self._doubts = Doubts(target.endpoint.url, proxied)
        self._layer_warnings: tuple[Failure, ...] = ()

    async def collect(self) -> Snapshot:
        """One collection; failures are in its health, never raised."""
        taken = clock.now()
        started = time.monotonic()
        reading = Reading([], {}, ())
        error: Failure | None = None
        try:
            reading = await self.read(started + self._timeout)
            made = self._doubts.made(self._documents.held, self._documents.age, started)
            await self._work(lambda: self._derive(reading, made), started + self._timeout)
            self._doubts.check(reading.points, self.memory, started)
            self._last_success = taken
        except FetchError as failed:
            error, reading = failed.failure, Reading([], {}, ())
            self.memory = replace(self.memory, gap=True)
        self._documents.release()
        version = self._version()
        if error is None and version and schema.ENGINE_INFO.name not in self._own:
            reading.points.append(point(schema.ENGINE_INFO, 1.0, "version", self._base, version=version))
        return Snapshot(
            target=self.target.name,
            engine=self.engine.name,
            taken=taken,
            points=tuple(reading.points),
            health=Health(
                up=error is None,
                error=error,
                warnings=self._warnings(),
                duration_seconds=time.monotonic() - started,
                last_success=self._last_success,
                samples=reading.samples,
                unmapped=reading.unmapped,
                withheld=self._documents.withheld,
                version=version,
            ),
        )

    async def estimate(self) -> None:
        """Estimate the load headroom of models whose last estimate is old enough; the next collection has it."""
        self.memory = with_kin(self.memory, self._kin())
        for model, estimate in await self._estimates.made(self.memory):
            self.memory = with_estimate(self.memory, model, estimate)

    async def read(self, deadline: float) -> Reading:
        """Fetch and map what is due, by a deadline in seconds of the monotonic clock.

        Raises:
            FetchError: the target, or a document that it must serve, was not read.
        """
        self._layer_warnings = ()
        self._remarked, self._remarks = self._remarks, []
        try:
            await self._documents.fetch(deadline)
            reported = [await layer.read(self._documents.held, deadline) for layer in self._layers]
            return await self._work(lambda: self._read(reported), deadline)
        except FetchError as failed:
            raise FetchError(await self._explained(failed.failure, deadline)) from None

    async def _explained(self, failure: Failure, deadline: float) -> Failure:
        """A failure with what answers in the engine's place, or all the same, if that could be its cause."""
        if failure.cause is Cause.TIMEOUT and await self._documents.answers():
            return Failure(Cause.SLOW, f"{failure.message}; its API answers, so raise `timeout` if this lasts")
        if failure.cause in (Cause.REFUSED, Cause.UNREACHABLE, Cause.TIMEOUT):
            return failure._replace(message=failure.message + without_port(self.target.endpoint.url, [self.engine]))
        if failure.cause not in (Cause.STATUS, Cause.FORMAT, Cause.NOT_THIS_ENGINE):
            return failure
        now = time.monotonic()
        if self._looked[0] + LOOK_AGAIN < now:
            self._looked = (now, await self._documents.looks_like(BUILT_IN.values(), deadline))
        found = self._looked[1]
        return failure if found is None else Failure(Cause.NOT_THIS_ENGINE, f"{failure.message}; {found.words}")

    async def close(self) -> None:
        """Close the connection."""
        for layer in self._layers:
            await layer.close()
        await self._documents.close()

    @property
    def models(self) -> frozenset[str]:
        """The names of its models, as its metrics and its model list give them; of the latter adapters, too."""
        listed = present(self._documents.held, MODELS.key) or ()
        return frozenset({*self.memory.models, *(model.id for model in listed)}) - {""}

    def measured(self, own: Sequence[Point] = ()) -> list[Point]:
        """What a proxy has measured, without the metrics that the engine itself exposes: never two in one."""
        points = () if self._measured is None else self._measured(self._base, own)
        return [point for point in points if point.series.metric.name not in self._own]

    async def _work(self, work: Callable[[], T], deadline: float) -> T:
        """Some work on what was read: where that is much, in a thread, so that it delays no other target."""
        held = self._documents.held.values()
        samples = sum(len(each.values) for each in held if isinstance(each, Exposition))
        if samples < MANY_SAMPLES and not self._heavy.busy:
            return work()
        try:
            return await self._heavy.do(work, deadline)
        except OSError:  # no time is left, or no worker
            message = f"{self.target.endpoint.url}: no time left of {self._timeout:.3g} s to map what was read"
            raise FetchError(Failure(Cause.TIMEOUT, message)) from None

    def _derive(self, reading: Reading, at: float) -> None:
        """Add to a reading what a proxy has measured, and what follows of both."""
        seen = self._seen(reading)
        own = {point.series.metric.name for point in reading.points}
        if not own <= self._own:
            self._own = _same(self._own | own)
        reading.points.extend(self.measured(reading.points))
        self.memory, derived = advance(
            self.memory,
            reading.points,
            at,
            base=self._base,
            objectives=self._objectives,
            queue_limit=self.engine.queue_limit,
            reading=seen,
        )
        reading.points.extend(derived)
        if self.cap.release((pair for each in reading.points for pair in each.series.labels), at):
            for mapper in (self._mapper, *self._mappers.values()):
                mapper.forget()

    def _seen(self, reading: Reading) -> restart.Reading:
        """What distinguishes one process of the engine from the next."""
        starts = [value for _, value in numbers(reading.points, schema.ENGINE_START)]
        layers = set() if self._layer_warnings or not self._layers else {"layers"}
        return restart.Reading(
            sources=self._documents.expositions | layers,
            # A layer reports the start of one model's runner, which comes and goes while the engine runs on.
            started=max(starts, default=None) if not self._layers else None,
            version=self._version(),
        )

    def _version(self) -> str:
        return self.engine.version(self._documents.held)[:64]

    def _warnings(self) -> tuple[Failure, ...]:
        return (*self._documents.warnings.values(), *self._remarks, *self._layer_warnings)[:MOST_WARNINGS]

    def _read(self, reported: Sequence[Reported]) -> Reading:
        points: list[Point] = []
        samples = _NO_SAMPLES.copy()
        unmapped: tuple[str, ...] = ()
        problems: tuple[str, ...] = ()
        held = self._documents.held
        model = self.engine.model(held)
        plans: list[Plan] = []
        for key, document in held.items():
            if not isinstance(document, Exposition):
                continue
            if key not in self._mappers:
                self._mappers[key] = Mapper(self.engine, self._base, cap=self.cap, model=self.target.model)
            mapper = self._mappers[key]
            try:
                plan, mapped = mapper.map(document, model=self._documents.models.get(key, model))
            except TooManySeries:
                message = f"{self.target.endpoint.url} exposes more than {MOST_SERIES} series that are mapped"
                raise FetchError(Failure(Cause.TOO_LARGE, message)) from None
            points += mapped.points
            for state, count in plan.states.items():
                samples[state] += count
            samples[SampleState.INVALID] += mapped.invalid
            problems += mapped.problems
            unmapped += plan.unmapped
            plans.append(plan)
        self._judge(plans)
        documents = dict(held)
        for each in reported:
            documents |= each.documents
            self._layer_warnings += tuple(each.warnings)
        facts, invalid, more = self._mapper.place(self._facts(documents, points), points)
        samples[SampleState.MAPPED] += len(facts)
        samples[SampleState.INVALID] += invalid
        if problems or more:
            self._remark(Failure(Cause.FORMAT, "; ".join(dict.fromkeys((*problems, *more)))))
        points = merge((*(each.points for each in reported), [*points, *facts])) if reported else [*points, *facts]
        return Reading(kv_cache.completed(points), samples, unmapped)

    def _facts(self, documents: Mapping[str, Any], points: Iterable[Point]) -> Sequence[Fact]:
        facts = list(self.engine.facts({**documents, "settings": self.target}))
        limit = self.target.requests_running_limit
        if limit is not None and not self.engine.limit_per_model:
            labels = {"model": self.engine.model(self._documents.held)}
            names = replicas.names(points)
            each_of = [labels] if len(names) < 2 else [labels | {"replica": name} for name in sorted(names)]  # noqa: PLR2004 - one alone needs no name
            facts += [Fact(schema.REQUESTS_RUNNING_LIMIT, own, float(limit), "configuration") for own in each_of]
        return facts

    def _remark(self, failure: Failure) -> None:
        """Something to say of an exposition: the same object as at the last poll if nothing has changed, see `Slot`."""
        self._remarks.append(next((each for each in self._remarked if each == failure), failure))

    def _judge(self, plans: Sequence[Plan]) -> None:
        """What there is to say of the expositions.

        Raises:
            FetchError: they hold none of the engine's own metrics, and no other document shows that it is this engine.
        """
        for plan in plans:
            if plan.problems:
                self._remark(Failure(Cause.FORMAT, "; ".join(plan.problems[:3])))
        engine = self.engine
        if any(plan.owned for plan in plans) or not (engine.silent or engine.owned_by):
            return
        if not self._shown():
            url = self.target.endpoint.url
            raise FetchError(Failure(Cause.NOT_THIS_ENGINE, f"{url} serves none of {engine.title}'s metrics"))
        if engine.silent:
            self._remark(Failure(Cause.NOT_THIS_ENGINE, engine.silent))

    def _shown(self) -> bool:
        """Whether a document shows that the engine answers: many others serve a model list, but name its owner."""
        held = self._documents.held
        owners = {getattr(model, "owned_by", None) for model in present(held, MODELS.key) or ()} - {None, ""}
        if owners:
            return self.engine.owned_by in owners
        others = (document for key, document in held.items() if key != MODELS.key)
        return not all(isinstance(document, Exposition | Absent) for document in others)
