"""One request and its answer as the proxy sees them pass: what is measured, and when it is counted.

The clock is the wire: from the moment at which the whole request has gone to the engine, to the pieces of its answer.
"""

from __future__ import annotations

from operator import sub
from typing import TYPE_CHECKING, Any, Final

import msgspec

from llm_headroom import schema
from llm_headroom.proxy.dialects import NO_INFERENCE, UNAVAILABLE, Answer, Api, api_of
from llm_headroom.proxy.documents import Events, Lines, Reader, UnreadableError, Whole, reader_of
from llm_headroom.proxy.parts import FORMS, OTHER, Part

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_headroom.proxy.framing import RequestHead, ResponseHead
    from llm_headroom.proxy.measures import Measures, UnderWay

MOST_REQUEST_BYTES: Final = 256 * 1024
"""Of a request's body, looked at for its model; a longer one's model is known when the engine names it."""
_MOST_FORM_BYTES: Final = 4096
"""Beyond which a document may hold numbers that are none to `documents`, in what its form does not name."""
_STREAMED: Final = frozenset({Api.OLLAMA})
"""Paths that stream unless the request turns it off (ollama/ollama docs/api.md)."""
_LOADED: Final = 0.1
"""Seconds of Ollama's `load_duration` beyond which the model was not in memory; 1 to 8 ms if it was."""
_NOT_OWED: Final = frozenset({"client_error", "loading"})
"""Failures of requests that no answer was owed, or not yet."""
_OK: Final = 200
_CLIENT_ERROR: Final = 400
_SERVER_ERROR: Final = 500
_COMPRESSED: Final = ("", "identity")


class Exchange:
    """A request of one connection and its answer. Times are seconds of one monotonic clock."""

    __slots__ = (
        "_after_load",
        "_answer",
        "_api",
        "_body",
        "_first_exposed",
        "_form",
        "_measures",
        "_model",
        "_outputs",
        "_over",
        "_reader",
        "_request",
        "_streamed",
        "_unread",
        "_wanted",
        "method",
        "status",
    )

    def __init__(self, measures: Measures, head: RequestHead) -> None:
        self.method = head.method
        self.status = 0
        """That of the answer; 0 as long as none has come."""
        self._measures = measures
        self._api = api_of(head.method, head.target)
        self._body: bytearray | None = None if self._api is None else bytearray()
        self._answer = Answer()
        self._reader: Reader | None = None
        self._form: Callable[[bytes], Part] | None = None
        self._streamed = False
        self._request: UnderWay | None = None
        self._over = self._api is None
        self._first_exposed = False
        self._after_load: bool | None = None
        self._unread = ""
        self._outputs: list[float] = []
        """When output came: the last one of those whose gaps are exposed, and the ones since."""

    def asks(self, payload: bytes) -> None:
        """A piece of the request's body."""
        if self._body is not None:
            self._body += payload
            if len(self._body) > MOST_REQUEST_BYTES:
                self._body = None

    def sent(self, now: float) -> None:
        """The whole request has gone to the engine."""
        if not self._over:
            self._under_way(now)

    def _under_way(self, now: float) -> UnderWay:
        if self._request is None:
            self._wanted, streams = _asked(self._body)
            streams = self._api is not Api.EMBEDDING and (self._api in _STREAMED if streams is None else streams)
            self._model = self._measures.asked(self._wanted)
            self._body = None
            self._request = self._measures.begin(self._model, now, streams=streams, wanted=self._wanted)
            self._request.settle = self._settle
        return self._request

    def answers(self, head: ResponseHead, now: float) -> None:
        """The final head of the answer has come."""
        self.status = head.status
        if self._over:
            return
        self.sent(now)  # an engine may answer before the whole request is there
        if head.status not in (_OK, UNAVAILABLE):
            return
        if head.headers.get("content-encoding", "").lower() not in _COMPRESSED:
            self._give_up("compressed")
            return
        self._reader = reader_of(head.headers.get("content-type", ""))
        self._streamed = head.status == _OK and isinstance(self._reader, Lines | Events)
        self._form = FORMS.get(self._api) if self._streamed else None
        if self._request is not None and head.status == _OK:
            self._request.watched &= self._streamed
        if self._reader is None:
            self._unread = "format"
        elif self._api is Api.EMBEDDING and head.status == _OK and isinstance(self._reader, Whole):
            self._reader = None  # megabytes of numbers

    def received(self, payload: bytes, now: float) -> None:
        """A piece of the answer's body."""
        request = self._request
        if request is None:
            return
        request.traffic.heard = now
        if self._reader is None:
            return
        try:
            for document in self._reader.feed(payload):
                self._read(request, document, now)
        except UnreadableError as error:
            self._unreadable(str(error))

    def part(self, data: bytes, start: int, end: int, now: float) -> bool:
        """A piece of the answer's body, if these bytes of `data` are one document of its API's form, as almost all are.

        False if they are not, and nothing has been done with them.
        """
        reader, request, form = self._reader, self._request, self._form
        if reader is None or request is None or form is None:
            return False
        document = reader.alone(data, start, end)
        if document is None or len(document) > _MOST_FORM_BYTES:
            return False
        try:
            part = form(document)
            if not document.isascii():
                document.decode()  # what a form does not name is not looked at for that
        except OTHER:
            return False
        bears = part.bears()
        if bears is None:
            return False
        request.traffic.heard = now
        if part.model:
            self._answer.model = part.model
        if bears:
            self._output(request, now)
        return True

    def ended(self, now: float) -> None:
        """The answer has ended as its framing says."""
        request = self._request
        if self._over or request is None:
            return
        if self._reader is not None:
            try:
                for document in self._reader.end():
                    self._read(request, document, now)
            except UnreadableError as error:
                self._unreadable(str(error))
        if self.status >= _CLIENT_ERROR:
            self._close(request, now, self._refusal())
        elif self._answer.failure:
            self._close(request, now, self._answer.failure)
        elif self._streamed and not self._unread and not self._answer.ended:
            self._close(request, now, "incomplete")
        else:
            self._succeed(request, now)

    def broken(self, reason: str, now: float, status: int = 0) -> None:
        """The answer will not end: why (aborted by the client, upstream_…); `status` is that of the proxy's own."""
        if self._over:
            return
        request = self._under_way(now)
        self.status = self.status or status
        if self._answer.ended and not self._answer.failure:
            self._succeed(request, now)  # many clients close as soon as they have read the last event
        else:
            self._close(request, now, self._answer.failure or reason)

    def drop(self) -> None:
        """Nothing more is seen of it, so that nothing of it is counted."""
        self._over = True
        self._reader = None
        if self._request is not None:
            self._measures.end(self._request)

    def _read(self, request: UnderWay, document: object, now: float) -> None:
        self._answer.read(self._api, document)
        if self._answer.output and self._streamed:
            self._output(request, now)

    def _output(self, request: UnderWay, now: float) -> None:
        outputs = self._outputs
        outputs.append(now)
        if len(outputs) == 1:
            request.first = now
            request.traffic.unserved = 0
        elif len(outputs) > 64:  # noqa: PLR2004 - in lots: the model may be named late, memory is bounded
            self._expose_latest(request)

    def _expose_first(self, request: UnderWay) -> None:
        if request.first is not None and not self._first_exposed:
            self._first_exposed = True
            self._observe_first(request, request.first - request.sent_at)

    def _observe_first(self, request: UnderWay, seconds: float) -> None:
        model = self._label()
        if self._waited(request):
            self._measures.observe(schema.PROXY_FIRST_TOKEN_AFTER_LOAD, model, seconds)
            self._measures.observe(schema.TIME_TO_FIRST_TOKEN, model)  # of none yet: the next one is growth
        else:
            self._measures.observe(schema.TIME_TO_FIRST_TOKEN, model, seconds)

    def _waited(self, request: UnderWay) -> bool:
        """Whether the engine had to load the model first: by its own words, else by what was seen in its memory.

        It is decided once, so that a request is measured as one or the other.
        """
        if self._after_load is None:
            load, model = self._answer.load, self._answer.model or self._wanted
            self._after_load = self._measures.awaited(model, request.sent_at) if load is None else load > _LOADED
        return self._after_load

    def _settle(self) -> None:
        if self._request is not None and self._answer.model:  # else it may be named at the end
            self._expose_latest(self._request)

    def _expose_latest(self, request: UnderWay) -> None:
        self._expose_first(request)
        outputs = self._outputs
        if len(outputs) > 1:
            self._measures.observe(schema.INTER_TOKEN_LATENCY, self._label(), *map(sub, outputs[1:], outputs))
            del outputs[:-1]

    def _unreadable(self, why: str) -> None:
        """What claims to be JSON is none, which no client can read either; or it is too long for us."""
        if why == "format" and not self._answer.ended:
            self._answer.failure = self._answer.failure or "malformed"
        self._give_up(why)

    def _give_up(self, why: str) -> None:
        if self._request is not None:
            self._request.watched = False
        self._reader = None
        self._unread = why

    def _label(self) -> str:
        named = self._answer.model
        if not named and self._api is Api.EMBEDDING and self.status == _OK:
            named = self._wanted  # the engine has taken it
        return self._measures.label(named) or self._model

    def _close(self, request: UnderWay, now: float, failure: str = "") -> str:
        """End the exchange; the label of its model."""
        self._over = True
        self._measures.end(request, now)
        model = self._label()
        if self.status:
            self._measures.count(schema.HTTP_RESPONSES, model, "5xx", by=0)  # so that the first one is growth
            self._measures.count(schema.HTTP_RESPONSES, model, f"{self.status // 100}xx")
        self._expose_latest(request)
        if failure:
            self._measures.failed(model, failure)
            if failure not in _NOT_OWED:
                self._measures.unanswered(model, request, now)
            if failure == "aborted" and request.awaited:
                request.traffic.leaves(request)
        return model

    def _succeed(self, request: UnderWay, now: float) -> None:
        model = self._close(request, now)
        request.traffic.unserved = 0
        answer, measures = self._answer, self._measures
        if answer.reason in NO_INFERENCE:
            return
        measures.finished(model, self._finish(request))
        measures.observe(schema.REQUEST_DURATION, model, *(() if self._waited(request) else (now - request.sent_at,)))
        if self._api is Api.EMBEDDING:
            return
        self._durations(request, model)
        if answer.generated is None or answer.prompt is None:
            measures.count(schema.PROXY_UNMEASURED, model, self._unread or "usage_missing")
        for count, total, sizes in (
            (answer.prompt, schema.PROMPT_TOKENS, schema.REQUEST_PROMPT_TOKENS),
            (answer.generated, schema.GENERATION_TOKENS, schema.REQUEST_GENERATION_TOKENS),
        ):
            if count is not None:
                measures.count(total, model, by=count)
                measures.observe(sizes, model, count)
        if answer.cached is not None:
            measures.count(schema.PROMPT_TOKENS_CACHED, model, by=answer.cached)
        if answer.generated is not None and answer.generated > 1:
            self._per_token(request, model, answer.generated)

    def _finish(self, request: UnderWay) -> str:
        """How it ended, as a value of the label `reason`."""
        answer = self._answer
        if self._api is Api.EMBEDDING:
            return "embedding"
        bore = self._unread or request.first is not None or answer.output or (answer.generated or 0) > 1
        return "empty" if answer.reason == "stop" and not bore else answer.reason or "unknown"

    def _refusal(self) -> str:
        if self.status == UNAVAILABLE:
            return "loading" if self._answer.failure == "loading" else "overloaded"
        return "server_error" if self.status >= _SERVER_ERROR else "client_error"

    def _per_token(self, request: UnderWay, model: str, generated: int) -> None:
        """From the wire where it was streamed, else from the engine's own figures."""
        if request.first is not None:
            seconds: float | None = self._outputs[-1] - request.first
        else:
            seconds = None if self._streamed else self._answer.decode
        if seconds is not None:
            self._measures.observe(schema.TIME_PER_OUTPUT_TOKEN, model, seconds / (generated - 1))

    def _durations(self, request: UnderWay, model: str) -> None:
        """The engine's own words: Ollama's total includes the wait for a slot and the loading of the model."""
        answer, measures = self._answer, self._measures
        if answer.prefill is not None:
            measures.observe(schema.REQUEST_PREFILL, model, answer.prefill)
        if answer.decode is not None:
            measures.observe(schema.REQUEST_DECODE, model, answer.decode)
        if answer.total is None or answer.decode is None:
            return
        before = answer.total - answer.decode
        if not self._streamed and before >= 0.0:
            self._observe_first(request, before)
        if answer.prefill is not None:
            measures.observe(schema.REQUEST_QUEUE, model, max(0.0, before - answer.prefill - (answer.load or 0.0)))


class _Asking(msgspec.Struct, frozen=True, gc=False):
    """What is looked at of a request."""

    model: Any = None
    stream: Any = None


_asking: Final = msgspec.json.Decoder(_Asking).decode


def _asked(body: bytearray | None) -> tuple[str, bool | None]:
    """The model that a request names, and whether it asks for a stream, of a body that is JSON.

    Of a body that was too long to look at the latter is taken for granted, as most are.
    """
    if body is None:
        return "", True
    try:
        document = _asking(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "", None
    model, stream = document.model, document.stream
    return model if isinstance(model, str) else "", stream if isinstance(stream, bool) else None
