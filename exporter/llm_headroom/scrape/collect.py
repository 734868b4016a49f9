"""One target: fetch → parse → map → derive, and what has to be remembered between its polls."""

from __future__ import annotations

import asyncio
import json
import math
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llm_headroom import schema
from llm_headroom.derive.memory import Memory, advance, with_estimate
from llm_headroom.derive.slo import OBJECTIVES
from llm_headroom.engines.rules import Absent, Fact
from llm_headroom.exposition.text import Parser
from llm_headroom.model import Cause, Failure, Health, SampleState, Snapshot, point
from llm_headroom.scrape import kv_cache
from llm_headroom.scrape.http import Client, FetchError
from llm_headroom.scrape.layers import merge
from llm_headroom.scrape.load_estimates import LoadEstimates
from llm_headroom.scrape.mapping import LabelCap, Mapper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from llm_headroom.config.settings import Target
    from llm_headroom.derive.slo import Objective
    from llm_headroom.engines.rules import Document, Engine
    from llm_headroom.exposition.text import Exposition, Layout
    from llm_headroom.model import Point
    from llm_headroom.scrape.http import Response
    from llm_headroom.scrape.layers import Layer, Told

TEXT: Final = "text/plain;version=0.0.4"
ANYTHING: Final = "*/*"
LARGE_BODY: Final = 1 << 20
"""Bytes from which on a body is parsed in a thread, so that it delays no other target."""
RETRY_OPTIONAL: Final = 60.0
"""Seconds until an optional document that failed is asked for again."""
MOST_LINES: Final = 250_000
"""Lines of an exposition: more would take seconds to read, whoever sends them."""
MOST_WARNINGS: Final = 10
OK: Final = 200


def _optional(document: Document) -> bool:
    return document.optional


class Reading(NamedTuple):
    """What one poll made of a target's own words: nothing of it is derived."""

    points: list[Point]
    samples: dict[SampleState, int]
    unmapped: tuple[str, ...]


class Collector:
    """A target whose engine is known. Keeps its connection, its parser and plans, and what it reads only now and then.

    `timeout` is the deadline in seconds of one collection, all of its requests together. `layers` are other places that
    tell of the target, the richest first; what its own API tells comes last. `measured` gives what a proxy has
    measured, with the target's labels.
    """

    def __init__(  # noqa: PLR0913 - what it is made of
        self,
        target: Target,
        engine: Engine,
        *,
        timeout: float,
        label_limit: int,
        objectives: Sequence[Objective] = OBJECTIVES,
        measured: Callable[[Mapping[str, str]], Iterable[Point]] | None = None,
        layers: Sequence[Layer] = (),
    ) -> None:
        self.target = target
        self.engine = engine
        self.cap = LabelCap(label_limit)
        self._timeout = max(timeout, engine.timeout) if target.timeout is None else target.timeout
        self._client = Client(target.endpoint)
        self._base = {**target.labels, "engine": engine.name, "target": target.name}
        self._mapper = Mapper(engine, self._base, cap=self.cap)
        self._parsers: dict[str, Parser] = {}
        self._documents: dict[str, Any] = {}
        self._due: dict[str, float] = {}
        self._warnings: dict[str, Failure] = {}
        self._accepted: Layout | None = None
        self._last_success: float | None = None
        self._memory = Memory()
        self._objectives = tuple(objectives)
        self._estimates = LoadEstimates(target.name, objectives)
        self._measured = measured
        self._own: set[str] = set()
        self._layers = tuple(layers)
        self._layer_warnings: tuple[Failure, ...] = ()

    async def collect(self) -> Snapshot:
        """One collection; failures are told in its health, never raised."""
        taken = time.time()
        started = time.monotonic()
        reading = Reading([], {}, ())
        error: Failure | None = None
        try:
            reading = await self.read(started + self._timeout)
            self._own.update(point.series.metric.name for point in reading.points)
            reading.points.extend(self.measured())
            self._memory, derived = advance(
                self._memory,
                reading.points,
                started,
                base=self._base,
                objectives=self._objectives,
                queue_limit=self.engine.queue_limit,
            )
            reading.points.extend(derived)
            self._last_success = taken
        except FetchError as failed:
            error = failed.failure
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
                warnings=(*self._warnings.values(), *self._layer_warnings)[:MOST_WARNINGS],
                duration_seconds=time.monotonic() - started,
                last_success=self._last_success,
                samples=reading.samples,
                unmapped=reading.unmapped,
                version=version,
            ),
        )

    async def estimate(self) -> None:
        """Estimate the load headroom of models whose last estimate is old enough; the next collection tells it."""
        for model, estimate in await self._estimates.made(self._memory):
            self._memory = with_estimate(self._memory, model, estimate)

    async def read(self, deadline: float) -> Reading:
        """Fetch and map what is due, by a deadline in seconds of the monotonic clock.

        Raises:
            FetchError: the target, or a document that it must serve, was not read.
        """
        self._layer_warnings = ()
        try:
            await self._fetch(deadline)
        except FetchError:
            self._forget()
            raise
        told = [await layer.read(self._documents, deadline) for layer in self._layers]
        return self._read(told)

    async def close(self) -> None:
        """Close the connection."""
        for layer in self._layers:
            await layer.close()
        await self._client.close()

    def measured(self) -> list[Point]:
        """What a proxy has measured, without the metrics that the engine itself has told: never two in one."""
        points = () if self._measured is None else self._measured(self._base)
        return [point for point in points if point.series.metric.name not in self._own]

    def _forget(self) -> None:
        """After a failure the next answer may be another version's: nothing that was read before holds."""
        self._documents.clear()
        self._due.clear()
        self._warnings.clear()

    async def _fetch(self, deadline: float) -> None:
        """Fetch what is due, in the engine's order, until nothing new is asked for.

        Required documents come first, so that a slow optional one costs nothing but itself.
        """
        asked: set[str] = set()
        while True:
            documents = tuple(self.engine.documents(self._documents))
            now = time.monotonic()
            due = [
                document
                for document in documents
                if document.key not in asked and self._due.get(document.key, -math.inf) <= now
            ]
            if not due:
                break
            first = min(due, key=_optional)
            asked.add(first.key)
            await self._fetch_one(first, deadline)
        for key in self._documents.keys() - {document.key for document in documents}:
            del self._documents[key]
            self._due.pop(key, None)
            self._warnings.pop(key, None)

    async def _fetch_one(self, document: Document, deadline: float) -> None:
        try:
            value = await self._answer(document, deadline)
        except FetchError as failed:
            if not document.optional:
                raise
            self._documents.pop(document.key, None)
            self._due[document.key] = time.monotonic() + max(RETRY_OPTIONAL, document.every)
            self._warnings[document.key] = failed.failure
            return
        self._warnings.pop(document.key, None)
        if isinstance(value, Absent) and document.optional:
            # what an engine does not serve it will not serve before it starts anew, which `_forget` notices
            self._due[document.key] = math.inf
            if value.status in (401, 403):
                self._warnings[document.key] = Failure(
                    Cause.AUTH,
                    f"{self._url(document)} answered {value.status}: give this target credentials to read it",
                )
        elif document.every:
            self._due[document.key] = time.monotonic() + document.every
        self._documents[document.key] = value

    async def _answer(self, document: Document, deadline: float) -> Any:  # noqa: ANN401 - JSON
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise FetchError(Failure(Cause.TIMEOUT, f"{self._url(document)}: no time left of {self._timeout:g} s"))
        response = await self._client.get(
            document.path,
            timeout=remaining,
            accept=TEXT if document.text else ANYTHING,
            method=document.method,
            body=document.body,
        )
        if response.status in document.tolerated:
            return Absent(response.status)
        if response.status != OK:
            raise FetchError(self._refused(document, response))
        if document.text:
            return await self._exposition(document, response)
        return self._json(document, response.body)

    def _refused(self, document: Document, response: Response) -> Failure:
        url = self._url(document)
        if response.status in (401, 403):
            return Failure(Cause.AUTH, f"{url} answered {response.status}: credentials are missing or wrong")
        hint = {404: ": is this the right engine and port?", 503: ": the engine is loading or overloaded"}
        return Failure(Cause.STATUS, f"{url} answered {response.status}{hint.get(response.status, '')}")

    async def _exposition(self, document: Document, response: Response) -> Exposition:
        if len(response.body) > MOST_LINES and (lines := response.body.count(b"\n")) > MOST_LINES:
            message = f"{self._url(document)} has {lines} lines; {MOST_LINES} are the most that are read"
            raise FetchError(Failure(Cause.TOO_LARGE, message))
        parser = self._parsers.setdefault(document.key, Parser())
        openmetrics = response.headers.get("content-type", "").startswith("application/openmetrics-text")
        if len(response.body) < LARGE_BODY:
            exposition = parser.parse(response.body, openmetrics=openmetrics)
        else:
            exposition = await asyncio.to_thread(parser.parse, response.body, openmetrics=openmetrics)
        layout = exposition.layout
        if not layout.keys and (layout.invalid or not layout.families):
            found = layout.problems[0] if layout.problems else "an empty body"
            raise FetchError(Failure(Cause.FORMAT, f"{self._url(document)} is no metrics exposition: {found}"))
        if layout is not self._accepted:
            if complaint := self.engine.refuse(layout):
                raise FetchError(Failure(Cause.NOT_THIS_ENGINE, f"{self._url(document)}: {complaint}"))
            self._accepted = layout
        return exposition

    def _json(self, document: Document, body: bytes) -> Any:  # noqa: ANN401 - JSON
        try:
            return document.read(json.loads(body))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}" if isinstance(error, LookupError) else type(error).__name__
            raise FetchError(
                Failure(Cause.FORMAT, f"{self._url(document)} is not what {self.engine.title} answers ({reason})")
            ) from None

    def _url(self, document: Document) -> str:
        return f"{self.target.endpoint.url}{document.path}"

    def _version(self) -> str:
        return self.engine.version(self._documents)[:64]

    def _read(self, told: Sequence[Told]) -> Reading:
        points: list[Point] = []
        samples: dict[SampleState, int] = dict.fromkeys(SampleState, 0)
        unmapped: tuple[str, ...] = ()
        model = self.engine.model(self._documents)
        self._warnings.pop("", None)
        for key, document in self._documents.items():
            if key not in self._parsers or isinstance(document, Absent):
                continue
            plan, mapped = self._mapper.map(document, model=model)
            points += mapped.points
            for state, count in plan.states.items():
                samples[state] += count
            samples[SampleState.INVALID] += mapped.invalid
            unmapped += plan.unmapped
            self._remark(plan.problems, silent=not plan.owned)
        documents = dict(self._documents)
        for each in told:
            documents |= each.documents
            self._layer_warnings += tuple(each.warnings)
        facts = self._mapper.place(self._facts(documents), points)
        samples[SampleState.MAPPED] += len(facts)
        points = merge((*(each.points for each in told), [*points, *facts])) if told else [*points, *facts]
        points += kv_cache.implied(points)
        return Reading(points, samples, unmapped)

    def _facts(self, documents: Mapping[str, Any]) -> Sequence[Fact]:
        facts = list(self.engine.facts({**documents, "settings": self.target}))
        limit = self.target.requests_running_limit
        if limit is not None and not self.engine.limit_per_model:
            model = self.engine.model(self._documents)
            facts.append(Fact(schema.REQUESTS_RUNNING_LIMIT, {"model": model}, float(limit), "configuration"))
        return facts

    def _remark(self, problems: Sequence[str], *, silent: bool) -> None:
        if silent and self.engine.silent:
            self._warnings[""] = Failure(Cause.NOT_THIS_ENGINE, self.engine.silent)
        elif problems:
            self._warnings[""] = Failure(Cause.FORMAT, "; ".join(problems[:3]))
