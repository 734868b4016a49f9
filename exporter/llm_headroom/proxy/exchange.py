"""One request and its answer as the proxy sees them pass: what is measured, and when it is counted.

The clock is the wire: from the moment at which the whole request has gone to the engine, to the pieces of its answer.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.proxy.dialects import NO_INFERENCE, Answer, Api, api_of
from llm_headroom.proxy.documents import Events, Lines, Reader, UnreadableError, Whole, reader_of

if TYPE_CHECKING:
    from llm_headroom.proxy.framing import RequestHead, ResponseHead
    from llm_headroom.proxy.measures import Measures

MOST_REQUEST_BYTES: Final = 256 * 1024
"""Of a request's body, looked at for its model; a longer one's model is known when the engine names it."""
_OK: Final = 200
_CLIENT_ERROR: Final = 400
_SERVER_ERROR: Final = 500
_UNAVAILABLE: Final = 503
_COMPRESSED: Final = ("", "identity")


class Exchange:
    """A request of one connection and its answer. Times are seconds of one monotonic clock."""

    def __init__(self, measures: Measures, head: RequestHead) -> None:
        self.method = head.method
        self._measures = measures
        self._api = api_of(head.method, head.target)
        self._body: bytearray | None = None if self._api is None else bytearray()
        self._answer = Answer()
        self._reader: Reader | None = None
        self._streamed = False
        self._begun = False
        self._over = self._api is None
        self._model = self._wanted = ""
        self._told = False
        self._sent = self._last = 0.0
        self._first: float | None = None
        self._status = 0
        self._unread = ""
        self._latest: list[float] = []

    def asks(self, payload: bytes) -> None:
        """A piece of the request's body."""
        if self._body is not None:
            self._body += payload
            if len(self._body) > MOST_REQUEST_BYTES:
                self._body = None

    def sent(self, now: float) -> None:
        """The whole request has gone to the engine."""
        if self._over or self._begun:
            return
        self._wanted = _asked(self._body)
        self._model = self._measures.asked(self._wanted)
        self._body = None
        self._sent, self._begun = now, True
        self._measures.begin(self._model)

    def answers(self, head: ResponseHead, now: float) -> None:
        """The final head of the answer has come."""
        if self._over:
            return
        self.sent(now)  # an engine may answer before the whole request is there
        self._status = head.status
        if head.status != _OK:
            return
        if head.headers.get("content-encoding", "").lower() not in _COMPRESSED:
            self._unread = "compressed"
            return
        self._reader = reader_of(head.headers.get("content-type", ""))
        self._streamed = isinstance(self._reader, Lines | Events)
        if self._reader is None:
            self._unread = "format"
        elif self._api is Api.EMBEDDING and isinstance(self._reader, Whole):
            self._reader = None  # megabytes of numbers

    def tells(self, payload: bytes, now: float) -> None:
        """A piece of the answer's body."""
        if self._reader is not None:
            try:
                for document in self._reader.feed(payload):
                    self._read(document, now)
            except UnreadableError as error:
                self._give_up(str(error))

    def ended(self, now: float) -> None:
        """The answer has ended as its framing says."""
        if self._over:
            return
        if self._reader is not None:
            try:
                for document in self._reader.end():
                    self._read(document, now)
            except UnreadableError as error:
                self._give_up(str(error))
        if self._status >= _CLIENT_ERROR:
            self._close(_refusal(self._status))
        elif self._answer.failed:
            self._close("engine_error")
        elif self._streamed and not self._unread and not self._answer.ended:
            self._close("incomplete")
        else:
            self._succeed(now)

    def broken(self, reason: str, now: float) -> None:
        """The answer will not end: why (aborted by the client, upstream_…)."""
        if self._over:
            return
        self.sent(now)
        if self._answer.ended and not self._answer.failed:
            self._succeed(now)  # many clients close as soon as they have read the last event
        else:
            self._close("engine_error" if self._answer.failed else reason)

    def _read(self, document: object, now: float) -> None:
        answer = self._answer
        if self._api is not None:
            answer.read(self._api, document)
        if not answer.output or not self._streamed:
            return
        if self._first is None:
            self._first = now
            if answer.model:  # else it may be named at the end
                self._tell_first()
        else:
            self._latest.append(now - self._last)
            if len(self._latest) >= 64:  # noqa: PLR2004 - told in lots: the model may be named late, memory is bounded
                self._tell_latest()
        self._last = now

    def _tell_first(self) -> None:
        if self._first is not None and not self._told:
            self._told = True
            self._measures.observe(schema.TIME_TO_FIRST_TOKEN, self._label(), self._first - self._sent)

    def _tell_latest(self) -> None:
        self._tell_first()
        model = self._label()
        for gap in self._latest:
            self._measures.observe(schema.INTER_TOKEN_LATENCY, model, gap)
        self._latest.clear()

    def _give_up(self, why: str) -> None:
        self._reader = None
        self._unread = why

    def _label(self) -> str:
        named = self._answer.model
        if not named and self._api is Api.EMBEDDING and self._status == _OK:
            named = self._wanted  # the engine has taken it
        return self._measures.told(named) or self._model

    def _close(self, failure: str = "") -> str:
        """End the exchange; the label of its model."""
        model = self._label()
        self._over = True
        self._reader = None
        self._measures.end(self._model)
        if self._status:
            self._measures.count(schema.HTTP_RESPONSES, model, f"{self._status // 100}xx")
        self._tell_latest()
        if failure:
            self._measures.count(schema.REQUESTS_FAILED, model, failure)
        return model

    def _succeed(self, now: float) -> None:
        model = self._close()
        answer, measures = self._answer, self._measures
        if answer.reason in NO_INFERENCE:
            return
        measures.count(schema.REQUESTS_FINISHED, model, "embedding" if self._api is Api.EMBEDDING else self._reason())
        measures.observe(schema.REQUEST_DURATION, model, now - self._sent)
        if self._api is Api.EMBEDDING:
            return
        self._durations(model)
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
            self._per_token(model, answer.generated)

    def _reason(self) -> str:
        return self._answer.reason or "unknown"

    def _per_token(self, model: str, generated: int) -> None:
        """From the wire where it was streamed, else from what the engine says."""
        if self._first is not None:
            seconds: float | None = self._last - self._first
        else:
            seconds = None if self._streamed else self._answer.decode
        if seconds is not None:
            self._measures.observe(schema.TIME_PER_OUTPUT_TOKEN, model, seconds / (generated - 1))

    def _durations(self, model: str) -> None:
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
            measures.observe(schema.TIME_TO_FIRST_TOKEN, model, before)
        if answer.prefill is not None:
            measures.observe(schema.REQUEST_QUEUE, model, max(0.0, before - answer.prefill))


def _refusal(status: int) -> str:
    if status == _UNAVAILABLE:
        return "overloaded"
    return "server_error" if status >= _SERVER_ERROR else "client_error"


def _asked(body: bytearray | None) -> str:
    """The model that a request names, of a body that is JSON."""
    if not body:
        return ""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    model = document.get("model") if isinstance(document, dict) else None
    return model if isinstance(model, str) else ""
