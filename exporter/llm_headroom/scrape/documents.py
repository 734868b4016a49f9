"""What one target answers: which of its documents are due, how they are asked for, and what of them still holds."""

from __future__ import annotations

import math
import time
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from llm_headroom.engines.answers import NotUnderstood, decode
from llm_headroom.engines.openai_api import MODELS
from llm_headroom.engines.rules import Absent
from llm_headroom.exposition.text import Exposition, Parser, TooManyLines
from llm_headroom.model import Cause, Failure
from llm_headroom.scrape.credentials import HINT
from llm_headroom.scrape.http import Client, FetchError
from llm_headroom.scrape.identify import look
from llm_headroom.scrape.visitors import Visitors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from llm_headroom.config.settings import Target
    from llm_headroom.engines.rules import Document, Engine
    from llm_headroom.exposition.text import Layout
    from llm_headroom.net.workers import Heavy
    from llm_headroom.scrape.http import Response
    from llm_headroom.scrape.identify import Look

TEXT: Final = "text/plain;version=0.0.4"
ANYTHING: Final = "*/*"
LARGE_BODY: Final = 1 << 20
"""Bytes from which on an exposition is parsed in a thread, so that it delays no other target."""
LARGE_JSON: Final = 1 << 16
"""The same of JSON, which takes longer."""
AT_ONCE: Final = 1.0
"""Seconds within which an engine that is up answers what takes it no work."""
RETRY_OPTIONAL: Final = 60.0
"""Seconds until an optional document that failed is asked for again: vLLM takes long for its first `/server_info`."""
REST_OPTIONAL: Final = 300.0
"""The longest such time, for one that failed again and is asked for rarely."""
MOST_LINES: Final = 50_000
"""Lines of an exposition: more would take seconds to read, whoever sends them. So many new ones in 16 MiB take 130 MB,
which the memory limit of the charts allows for; an engine of 64 replicas has 25,000."""
_BARRED: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_HINTS: Final = {
    401: HINT,
    403: HINT,
    404: "is this the right engine and port?",
    503: "the engine is loading or overloaded",
}


class Documents:
    """The documents of a target, as fetched last. Keeps its connection, its parsers and when each was asked for.

    `held` is what still holds, by key: JSON as the engine's reader made it, an exposition, or `Absent`. `models` are
    the models of expositions that have one of their own, `expositions` the keys of those that were answered, with
    `Absent` too, `warnings` say why optional documents could not be read. `clock` says when those may be tried again.
    """

    def __init__(
        self,
        target: Target,
        engine: Engine,
        *,
        timeout: float,
        heavy: Heavy,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._heavy = heavy
        self.held: dict[str, Any] = {}
        self.models: dict[str, str] = {}
        self.expositions: frozenset[str] = frozenset()
        self.warnings: dict[str, Failure] = {}
        self.age = 0.0
        self._target = target
        self._engine = engine
        self._timeout = timeout
        self._client = Client(target.endpoint)
        self._visitors: Visitors | None = None
        self._parsers: dict[str, Parser] = {}
        self._asked: dict[str, float] = {}
        self._before: dict[str, Any] = {}
        self._not_before: dict[str, float] = {}
        self._accepted: Layout | None = None
        self._fleeting: frozenset[str] = frozenset()

    async def fetch(self, deadline: float) -> None:
        """Fetch what is due, by a deadline in seconds of the monotonic clock, until nothing new is asked for.

        Documents on which others depend come first, then required ones, so that a slow optional one costs nothing but
        itself.

        Raises:
            FetchError: the target, or a document that it must serve, was not read. Nothing that was read before holds
                then: the next answer may be another version's.
        """
        try:
            await self._fetch(deadline)
        except FetchError:
            self.held.clear()
            self.warnings.clear()
            self._asked.clear()
            self._not_before.clear()
            raise

    @property
    def withheld(self) -> tuple[str, ...]:
        """Addresses of optional documents that want credentials."""
        wanting = {key for key, value in self.held.items() if isinstance(value, Absent) and value.status in _BARRED}
        if not wanting:
            return ()
        return tuple(self._url(each) for each in self._engine.documents(self.held) if each.key in wanting)

    async def looks_like(self, engines: Iterable[Engine], deadline: float) -> Look | None:
        """What answers there, if it is not this engine; None if nothing can be said."""
        try:
            found = await look(self._client, engines, deadline)
        except FetchError:
            return None
        return found if found.words and found.engine is not self._engine else None

    async def answers(self) -> bool:
        """Whether the engine's API answers at once, although something that is read of it does not come in time.

        Not where `/metrics` waits for the engine's own work (ggml-org/llama.cpp, tools/server: a task in its queue),
        and says by its silence that this hangs; nor where no exposition is read.
        """
        if self._engine.slotted or not any(each.text for each in self._engine.documents({})):
            return False
        try:
            response = await self._client.get(MODELS.path, timeout=AT_ONCE, accept=ANYTHING)
        except FetchError:
            return False
        return response.status == HTTPStatus.OK or response.status in _BARRED

    def release(self) -> None:
        """Forget the values of expositions that the next poll asks for anew: they were most of a target's memory."""
        for key in self._fleeting:
            if isinstance(document := self.held.get(key), Exposition):
                self.held[key] = document._replace(values=[])

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    async def _fetch(self, deadline: float) -> None:
        asked: set[str] = set()
        self.age = 0.0
        while True:
            documents = tuple(self._engine.documents(self.held))
            due = [document for document in documents if document.key not in asked and self._due(document)]
            if not due:
                break
            first = min(due, key=_rank)
            asked.add(first.key)
            await self._fetch_one(first, deadline)
        known = {document.key for document in documents}
        self._fleeting = frozenset(each.key for each in documents if each.text and not (each.every or each.wakes))
        self.models = {document.key: document.model for document in documents if document.model}
        unseen = self._visitors is None or not self._visitors.seen_all
        stale = {each.key for each in documents if each.wakes and each.key not in asked and unseen}
        for key in self.held.keys() - known | stale:
            self.held.pop(key, None)
        self.expositions = frozenset(each.key for each in documents if each.text and each.key in self.held)
        for key in self._asked.keys() - known:
            self._asked.pop(key)
            self.warnings.pop(key, None)

    def _due(self, document: Document) -> bool:
        if self._not_before.get(document.key, -math.inf) > self._clock():
            return False
        now = time.monotonic()
        asked = self._asked.get(document.key)
        every = document.every
        if document.wakes and asked is not None:
            every = self._visitors.quiet_for(now) if self._visitors else 0.0
        return asked is None or asked + every <= now

    async def _fetch_one(self, document: Document, deadline: float) -> None:
        asked = time.monotonic()
        try:
            value = await self._answer(document, deadline)
        except FetchError as failed:
            if not document.optional:
                raise
            self.held.pop(document.key, None)
            rest = min(document.every, REST_OPTIONAL) if document.key in self.warnings else 0.0
            self._not_before[document.key] = self._clock() + max(RETRY_OPTIONAL, rest)
            self.warnings[document.key] = failed.failure
            return
        self.warnings.pop(document.key, None)
        if isinstance(value, Absent) and document.optional:
            # what an engine does not serve now, it will not serve before a restart, which a failure shows
            self._not_before[document.key] = math.inf
        self._asked[document.key] = asked
        if document.wakes:
            if self._visitors is None:  # now that it has answered, the kernel shows whether it listens on this host
                self._visitors = Visitors(self._target.endpoint)
            if not _same(self._before.get(document.key), value):
                self._visitors.work_seen(asked)
            self._before[document.key] = value
        self.held[document.key] = value

    async def _answer(self, document: Document, deadline: float) -> Any:  # noqa: ANN401 - JSON
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise FetchError(Failure(Cause.TIMEOUT, f"{self._url(document)}: no time left of {self._timeout:.3g} s"))
        response = await self._client.get(
            document.path,
            timeout=remaining,
            accept=TEXT if document.text else ANYTHING,
            body=document.body,
        )
        if response.status in document.tolerated:
            return Absent(response.status)
        if response.status != HTTPStatus.OK:
            raise FetchError(self._refused(document, response))
        try:
            if document.text:
                return await self._exposition(document, response, deadline)
            if len(response.body) < LARGE_JSON:
                return self._json(document, response.body)
            return await self._heavy.do(lambda: self._json(document, response.body), deadline)
        except OSError:  # no time is left, or no worker
            self._parsers.pop(document.key, None)  # it may still be at work
            message = f"{self._url(document)}: no time left of {self._timeout:.3g} s to read {len(response.body)} bytes"
            raise FetchError(Failure(Cause.TIMEOUT, message)) from None

    def _refused(self, document: Document, response: Response) -> Failure:
        own = {} if response.body.strip() else self._engine.hints
        hint = {**_HINTS, **own}.get(response.status, "")
        cause = Cause.AUTH if response.status in _BARRED else Cause.STATUS
        return Failure(cause, f"{self._url(document)} answered {response.status}" + (f": {hint}" if hint else ""))

    async def _exposition(self, document: Document, response: Response, deadline: float) -> Exposition:
        parser = self._parsers.setdefault(document.key, Parser(MOST_LINES))
        openmetrics = response.headers.get("content-type", "").startswith("application/openmetrics-text")
        age = response.headers.get("age", "")
        self.age = max(self.age, float(age) if age.isascii() and age.isdecimal() else 0.0)
        try:
            if len(response.body) < LARGE_BODY:
                exposition = parser.parse(response.body, openmetrics=openmetrics)
            else:
                work = partial(parser.parse, response.body, openmetrics=openmetrics)
                exposition = await self._heavy.do(work, deadline)
        except TooManyLines as many:
            message = f"{self._url(document)} has {many} lines; {MOST_LINES} are the most that are read"
            raise FetchError(Failure(Cause.TOO_LARGE, message)) from None
        layout = exposition.layout
        if not layout.keys and (layout.invalid or not layout.families):
            found = layout.problems[0] if layout.problems else "an empty body"
            raise FetchError(Failure(Cause.FORMAT, f"{self._url(document)} is no metrics exposition: {found}"))
        if layout is not self._accepted:
            if complaint := self._engine.refuse(layout):
                raise FetchError(Failure(Cause.NOT_THIS_ENGINE, f"{self._url(document)}: {complaint}"))
            self._accepted = layout
        return exposition

    def _json(self, document: Document, body: bytes) -> Any:  # noqa: ANN401 - JSON
        try:
            return decode(document, body)
        except NotUnderstood as error:
            raise FetchError(
                Failure(Cause.FORMAT, f"{self._url(document)} is not what {self._engine.title} answers ({error})")
            ) from None

    def _url(self, document: Document) -> str:
        return f"{self._target.endpoint.url}{document.after or document.path}"


def _rank(document: Document) -> tuple[bool, bool]:
    return not document.leads, document.optional


def _same(one: Any, other: Any) -> bool:  # noqa: ANN401 - JSON, or an exposition
    """Whether an answer shows no work since the one before."""
    if isinstance(one, Exposition) and isinstance(other, Exposition):
        values: Sequence[float] = one.values
        return list(values) == list(other.values)
    return bool(one == other)
