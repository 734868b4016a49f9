"""What is seen of one connection while it is relayed: its requests, and the answers that belong to them.

Seeing is fenced from relaying: whatever goes wrong here ends the seeing of this connection, and touches no byte.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, TypeVar

from llm_headroom.proxy import framing
from llm_headroom.proxy.exchange import Exchange
from llm_headroom.proxy.framing import size_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_headroom.proxy.measures import Measures

T = TypeVar("T")


def _fenced(look: Callable[[Observer, T, float], None]) -> Callable[[Observer, T, float], None]:
    """Makes a method do nothing once the observer is blind, and makes it blind by whatever the method raises."""

    @wraps(look)
    def guarded(self: Observer, what: T, now: float) -> None:
        if self.blind:
            return
        try:
            look(self, what, now)
        except Exception as error:  # noqa: BLE001 - measuring must not cost anybody the answer
            self._give_up(error)

    return guarded


class Observer:
    """Looks at requests and answers. Times are seconds of one monotonic clock.

    `pending` are the requests that have started to arrive and are not answered yet, in order, `answered` how many are
    no longer. `blind`: nothing is observed any more, as after a switch to another protocol (RFC 9110, section 15.2.2);
    pending requests are then dropped uncounted. `progressed` is called when a response has started or ended, and when
    `blind` has become true.
    """

    __slots__ = ("_asking", "_body", "_head", "_measures", "_streaming", "answered", "blind", "pending", "progressed")

    def __init__(self, measures: Measures, progressed: Callable[[], None]) -> None:
        self.pending: list[Exchange] = []
        self.answered = 0
        self.blind = False
        self._measures = measures
        self.progressed = progressed
        self._asking: Exchange | None = None
        self._head = framing.HeadReader()
        self._body: framing.Body | None = None
        self._streaming: Exchange | None = None
        """Whose answer the next piece belongs to, if a chunk may begin with it."""

    @property
    def until_close(self) -> bool:
        """Whether an answer may be under way that only the connection's end ends."""
        self._measures.backlog.look()
        return self.blind or isinstance(self._body, framing.UntilClose)

    @_fenced
    def request(self, head: framing.RequestHead, _now: float) -> None:
        """A request's head has come."""
        self._asking = Exchange(self._measures, head)
        self.pending.append(self._asking)

    @_fenced
    def request_body(self, payload: list[bytes], _now: float) -> None:
        """Pieces of that request's body."""
        if self._asking is not None:
            for piece in payload:
                self._asking.asks(piece)

    @_fenced
    def request_sent(self, payload: list[bytes], now: float) -> None:
        """The last pieces of its body: the whole request has gone to the engine."""
        self.request_body(payload, now)
        if self._asking is not None:
            self._asking.sent(now)
            self._asking = None

    def answer(self, data: bytes, now: float) -> None:
        """The next bytes that the engine has sent, and when they came; fenced by itself, as it sees every piece."""
        exchange = self._streaming
        try:
            if exchange is not None:
                size = size_line(len(data))
                whole = data.startswith(size) and data.endswith(b"\r\n")
                if whole and exchange.part(data, len(size), len(data) - 2, now):
                    return
            if not self.blind:
                self._streaming = None
                self._read(data, now)
        except Exception as error:  # noqa: BLE001 - measuring must not cost anybody the answer
            self._give_up(error)

    def _read(self, data: bytes, now: float) -> None:
        start = 0
        while start < len(data) or self._body is not None:
            if not self.pending:
                raise framing.FramingError("an answer to no request")
            exchange = self.pending[0]
            if self._body is None:
                start, raw = self._head.take(data, start)
                if raw is None:
                    return
                head = framing.response_head(raw)
                if head.status == framing.SWITCHING:
                    self._drop()
                    return
                if head.status >= framing.FIRST_FINAL:
                    self._body = framing.response_body(head, exchange.method)
                    exchange.answers(head, now)
                    self.progressed()
                continue
            payload: list[bytes] = []
            start, done = self._body.take(data, start, payload)
            for piece in payload:
                exchange.received(piece, now)
            if not done:
                if isinstance(self._body, framing.Chunked) and self._body.between:
                    self._streaming = exchange
                return
            self._finish(now)

    @_fenced
    def end_of_answers(self, _nothing: bytes, now: float) -> None:
        """The engine sends nothing more."""
        if isinstance(self._body, framing.UntilClose):
            self._finish(now)

    @_fenced
    def broken(self, reason: str, now: float) -> None:
        """What is pending will not be answered, and why."""
        self._break(reason, now)

    @_fenced
    def unreachable(self, status: int, now: float) -> None:
        """The engine cannot be reached; `status` is that of the answer in its place."""
        self._break("upstream_unreachable", now, status)

    def _break(self, reason: str, now: float, status: int = 0) -> None:
        while self.pending:
            self.pending[0].broken(reason, now, status)  # still pending if it fails, and then dropped
            self._pass()

    def _finish(self, now: float) -> None:
        self._body = None
        self.pending[0].ended(now)  # still pending if it fails, and then dropped
        self._pass()
        self.progressed()

    def _pass(self) -> None:
        self.pending.pop(0)
        self.answered += 1

    def _give_up(self, error: Exception) -> None:
        self._measures.unseen(error)
        self._drop()

    def _drop(self) -> None:
        self.blind = True
        while self.pending:
            self.pending.pop(0).drop()
        self._asking = self._body = self._streaming = None
        self.progressed()
