"""The proxy's byte path: each client's connection has one of its own to the engine, and bytes pass as they come.

So whatever HTTP/1.1 allows between two ends (keep-alive, pipelining, 100-continue, upgrades, trailers, half-closed
connections) goes on between the client and the engine. Only a request's Host may be another one, see `Upstream`, and
where many wait it may get a Via, see `circle`. Who cannot write on is not read from; who leaves is left.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol, cast

from llm_headroom.proxy import framing
from llm_headroom.proxy.backlog import LARGE, MOST_PIECES
from llm_headroom.proxy.circle import CircleError
from llm_headroom.proxy.observer import Observer
from llm_headroom.proxy.refusal import answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llm_headroom.proxy.circle import Circle
    from llm_headroom.proxy.exchange import Exchange
    from llm_headroom.proxy.gate import Gate
    from llm_headroom.proxy.measures import Measures

log = logging.getLogger("llm_headroom")

CONNECT_SECONDS: Final = 10.0
MOST_BUFFERED: Final = 64 * 1024
"""Bytes that wait for a side that does not read before the other one is no longer read from."""
TURN: Final = 64 * 1024
"""Bytes of a piece after which others have their turn: libuv would read on, up to 8 MiB."""
MOST_PIPELINED: Final = 64
"""Requests of one connection that are under way before no more are read from it."""
HEAD_SECONDS: Final = 30.0
"""Seconds in which a head must be complete once it has started."""
REFUSED_SECONDS: Final = 2.0
"""For which a refused client's bytes are read on: to close over unread ones could take the answer from it."""
_BAD_REQUEST: Final = HTTPStatus.BAD_REQUEST
_BAD_GATEWAY: Final = HTTPStatus.BAD_GATEWAY
_TOO_LATE: Final = HTTPStatus.REQUEST_TIMEOUT
_RESET: Final = struct.pack("ii", 1, 0)
"""To linger for no time, once closed: the peer then sees a reset (socket(7), SO_LINGER)."""


class Upstream(Protocol):
    """The engine behind a proxy."""

    @property
    def authority(self) -> str:
        """Its host and port, for messages."""
        ...

    @property
    def circle(self) -> Circle:
        """Which of its requests were here before."""
        ...

    def addressed(self, head: framing.RequestHead) -> bytes:
        """A request's head as the engine is to get it."""
        ...

    def connect(self, made: Callable[[], asyncio.BaseProtocol]) -> Awaitable[object]:
        """Done once there is a connection to it, which the protocol that `made` gives has got.

        Raises:
            OSError: it cannot be had.
        """
        ...


class Client(asyncio.Protocol):
    """A client's side of a relay, and the relay's state."""

    def __init__(self, upstream: Upstream, measures: Measures, gate: Gate) -> None:
        self._upstream = upstream
        self._gate = gate
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._engine: _Engine | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._held = bytearray()
        """Bytes for an engine that is not connected yet; the client is not read from meanwhile."""
        self._head = framing.HeadReader()
        self._deadline: asyncio.TimerHandle | None = None
        self._body: framing.Body | None = None
        self._tunnel = False
        self._asked = 0
        """Requests that have started to arrive."""
        self._upgrade: Exchange | None = None
        """A request for another protocol that the engine has not decided on yet."""
        self._undecided = bytearray()
        """What came after it, and may be of that protocol or not."""
        self.observer = Observer(measures, self._progressed)
        self.backlog = measures.backlog
        self._stops: set[str] = set()
        """Why the client is not read from."""
        self._left = False
        self._over = False

    # The client's side ------------------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=MOST_BUFFERED)
        self._gate.idle(self)

    def data_received(self, data: bytes) -> None:
        """Bytes from the client: on to the engine, heads as it is to get them."""
        if self._over:
            return
        if self._tunnel:
            self._forward(data)
            return
        self._gate.busy(self)
        if len(data) >= TURN:
            self.stop_reading("turn")
            self._loop.call_soon(self.read_on, "turn")
        try:
            self._requests(data)
        except framing.FramingError as error:
            self._refuse(_BAD_REQUEST, f"not a request that can be relayed: {error}", "/")
        except CircleError as error:
            self._unreachable(error, error.target)
        self._rest()

    def eof_received(self) -> bool:
        """The client sends nothing more: the engine learns just that, and decides whether it answers on."""
        self._left = True
        if self._over or (self._engine is None and self._connecting is None):
            return False
        if not self._owed:
            return False
        if self._engine is not None and self._upgrade is None:
            self._engine.end_of_requests()
        return True

    def pause_writing(self) -> None:
        """The client does not read: nothing more is read from the engine."""
        if self._engine is not None:
            self._engine.pause()

    def resume_writing(self) -> None:
        """The client reads on."""
        if self._engine is not None:
            self._engine.resume()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """The client is gone: the engine must see that."""
        self._left = True
        self._end("aborted")
        self._transport = None
        # so that all of this is let go of at once, without the garbage collector
        self.observer.progressed = _nothing
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.abort()
        if self._connecting is not None:
            self._connecting.cancel()
        self._head_came()
        self._gate.gone(self)

    def _requests(self, data: bytes) -> None:
        start = 0
        while start < len(data) or self._body is not None:
            if self._body is None:
                if self._upgrade is not None:
                    self._undecided += data[start:]
                    if len(self._undecided) > MOST_BUFFERED:
                        self.stop_reading("upgrade")
                    return
                start, raw = self._head.take(data, start)
                if raw is None:
                    self._head_begins()
                    return
                self._head_came()
                self._begin(framing.request_head(raw))
                continue
            payload: list[bytes] = []
            end, done = self._body.take(data, start, payload)
            if end > start:
                self._forward(data if end - start == len(data) else data[start:end])
            look = self.observer.request_sent if done else self.observer.request_body
            self.backlog.add(look, payload, monotonic(), end - start)
            start = end
            if not done:
                return
            self._body = None

    def _head_begins(self) -> None:
        if self._deadline is None and not self._head.empty:
            self._deadline = self._loop.call_later(HEAD_SECONDS, self._still_no_head)
            self._gate.head_begins(self)

    def _head_came(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
            self._gate.head_came(self)

    def _still_no_head(self) -> None:
        self._deadline = self._loop.call_later(HEAD_SECONDS, self._still_no_head)
        if not self._stops:  # else it may have come, and it is we who do not read
            self.head_too_late()

    def head_too_late(self) -> None:
        """Stop waiting for the head that has started to arrive."""
        self._head_came()
        self._refuse(_TOO_LATE, "the request's head took too long to come", "/")

    def _begin(self, head: framing.RequestHead) -> None:
        if head.method == "CONNECT":
            raise framing.FramingError("CONNECT is not for a reverse proxy")
        self._asked += 1
        self.backlog.add(self.observer.request, head, monotonic(), len(head.raw))
        self._body = framing.request_body(head)
        raw = self._upstream.circle.sent(head, self._upstream.addressed(head), self, self.backlog.look)
        if self._engine is None and self._connecting is None:
            self._connecting = self._loop.create_task(self._connect(head.target))
        self._forward(raw)
        if self._under_way >= MOST_PIPELINED:
            self.backlog.look()
            if self._under_way >= MOST_PIPELINED:
                self.stop_reading("pipelined")
        if head.upgrades:
            self.backlog.look()
            if self.observer.blind:
                self._tunnel = True  # the engine's response cannot be predicted
            else:
                self._upgrade = self.observer.pending[-1]
        self._attend()

    def _attend(self) -> None:
        """Have answers looked at as they come while it depends on them what is done with the client's bytes."""
        if self._engine is not None:
            self._engine.most = 1 if "pipelined" in self._stops or self._upgrade is not None else MOST_PIECES

    @property
    def _under_way(self) -> int:
        """Requests that are not known to be answered."""
        return 0 if self.observer.blind else self._asked - self.observer.answered

    def _forward(self, data: bytes) -> None:
        if self._engine is not None:
            self._engine.send(data)
        elif not self._over:
            self._held += data
            if len(self._held) > MOST_BUFFERED:
                self.stop_reading("connecting")

    async def _connect(self, target: str) -> None:
        deadline = self._loop.call_later(CONNECT_SECONDS, self._no_answer, target)
        try:
            await self._upstream.connect(lambda: _Engine(self))
        except OSError as error:
            self._unreachable(error, target)
        finally:
            deadline.cancel()
            self._connecting = None

    def _no_answer(self, target: str) -> None:
        if self._connecting is not None and self._engine is None:
            self._connecting.cancel()
            self._unreachable(TimeoutError(), target)

    def _unreachable(self, error: OSError, target: str) -> None:
        if self._over:
            return
        timed_out = isinstance(error, TimeoutError)
        reason = "no answer" if timed_out else (error.strerror or str(error) or type(error).__name__)
        self.backlog.add(self.observer.unreachable, _BAD_GATEWAY, monotonic())
        self._refuse(_BAD_GATEWAY, f"cannot connect to {self._upstream.authority}: {reason}", target)

    def connected(self, engine: _Engine) -> None:
        """There is a connection to the engine: what was held for it can go."""
        if self._transport is None:
            engine.abort()
            return
        engine.deliver = self._transport.write
        self._engine = engine
        self._attend()
        self.read_on("connecting")
        held, self._held = bytes(self._held), bytearray()
        engine.send(held)
        if self._left and self._upgrade is None:
            engine.end_of_requests()

    def _refuse(self, status: HTTPStatus, text: str, target: str) -> None:
        """Answer in the engine's place and close; possible only as long as no answer is under way."""
        log.debug("request not relayed", extra={"reason": text})
        self._end("client_error")
        self._held.clear()
        if self._transport is None or self._transport.is_closing():
            return
        if self._engine is not None:
            self._transport.close()
            return
        self._transport.write(answer(status, text, target))
        if self._left:
            self._transport.close()
            return
        self._transport.write_eof()
        self.read_on(*self._stops)
        self._loop.call_later(REFUSED_SECONDS, self._transport.close)

    def stop_reading(self, why: str) -> None:
        """Nothing more is read from the client until the reason is gone."""
        self._stops.add(why)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def read_on(self, *reasons: str) -> None:
        """Some reasons not to read from the client are gone."""
        self._stops.difference_update(reasons)
        if not self._stops and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # The engine's side ------------------------------------------------------------------------------------------------
    def _progressed(self) -> None:
        """A response has started or ended, or no more of them will be observed."""
        observer = self.observer
        self._upstream.circle.answered(self)
        if "pipelined" in self._stops and self._under_way < MOST_PIPELINED:
            self.read_on("pipelined")
            self._attend()
        if self._upgrade is not None and (observer.blind or self._upgrade.status):
            self._loop.call_soon(self._decided)  # not from within the observer, which is looking at the answer
        self._rest()

    @property
    def _owed(self) -> bool:
        """Whether something may be under way; nobody knows what a blind observer misses."""
        return bool(self._under_way or self.observer.blind or self._body or self._upgrade or self._tunnel)

    def _rest(self) -> None:
        """Lets a client that has left go once nothing is under way, and the gate know of another one."""
        if self._owed or self._deadline or self._over:
            return
        if self._left and self._transport is not None:
            self._transport.close()
        else:
            self._gate.idle(self)

    def _decided(self) -> None:
        """The engine has answered to a request for another protocol: what came after it can go on."""
        if self._upgrade is None:
            return
        self._upgrade = None
        self._attend()
        undecided, self._undecided = bytes(self._undecided), bytearray()
        self._tunnel = self.observer.blind
        if undecided:
            self.data_received(undecided)
        self.read_on("upgrade")
        if self._left and self._engine is not None and self._upgrade is None:
            self._engine.end_of_requests()

    def end_of_answers(self) -> None:
        """The engine sends nothing more."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._tunnel and not self._left and transport.can_write_eof():
            transport.write_eof()
        else:
            self._end("aborted" if self._left else "upstream_closed")
            transport.close()

    def engine_lost(self, *, cut: bool) -> None:
        """The connection to the engine is gone; `cut`: within an answer that only its end ends."""
        self._end("aborted" if self._left else "upstream_closed")
        if self._transport is None:
            return
        if cut:  # the client must not take it for a whole one: without this, it would see an orderly end
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._transport.abort()
        elif not self._transport.is_closing():
            self._transport.close()

    def _end(self, reason: str) -> None:
        self._upstream.circle.answered(self)
        if not self._over:
            self._over = True
            self.backlog.add(self.observer.broken, reason, monotonic())

    def retire(self) -> None:
        """Nothing is under way, and another client needs the place."""
        self._over = True
        if self._transport is not None:
            self._transport.close()

    def close(self) -> None:
        """The proxy ends."""
        self._end("proxy_stopped")
        if self._transport is not None:
            self._transport.abort()


class _Engine(asyncio.Protocol):
    """The engine's side of a relay: its answers go on to the client unchanged, and are looked at later.

    Each chunk of a stream comes through here, after other work has had the caches: so little is touched for it.
    """

    __slots__ = (
        "_backlog",
        "_client",
        "_look",
        "_observer",
        "_passed",
        "_stopped",
        "_transport",
        "deliver",
        "most",
    )

    def __init__(self, client: Client) -> None:
        self._client = client
        self._backlog = client.backlog
        self._observer = client.observer
        self._look = client.observer.answer
        self._passed = client.backlog.passed
        self._transport: asyncio.Transport | None = None
        self._stopped = False
        self.deliver: Callable[[bytes], None] = _nothing
        self.most = MOST_PIECES
        """Pieces that may wait until they are looked at."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=MOST_BUFFERED)
        self._client.connected(self)

    def data_received(self, data: bytes) -> None:
        deliver, passed = self.deliver, self._passed
        deliver(data)
        passed.append((self._look, data, monotonic()))
        if len(passed) >= self.most or len(data) > LARGE:
            self._backlog.look()
            if len(data) >= TURN:
                self._read_on(going=False)
                asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._read_on(going=not self._stopped)

    def _read_on(self, *, going: bool) -> None:
        transport = self._transport
        if transport is not None and not transport.is_closing():
            (transport.resume_reading if going else transport.pause_reading)()

    def eof_received(self) -> bool:
        self._backlog.add(self._observer.end_of_answers, b"", monotonic())
        self._client.end_of_answers()
        return self._transport is not None and self._transport.can_write_eof()  # TLS cannot be closed by half

    def pause_writing(self) -> None:
        self._client.stop_reading("engine")

    def resume_writing(self) -> None:
        self._client.read_on("engine")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._client.engine_lost(cut=exc is not None and self._observer.until_close)

    def send(self, data: bytes) -> None:
        if self._transport is not None and data:
            self._transport.write(data)

    def end_of_requests(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:  # TLS cannot be closed by half
            self._transport.close()

    def pause(self) -> None:
        self._stopped = True
        self._read_on(going=False)

    def resume(self) -> None:
        self._stopped = False
        self._read_on(going=True)

    def abort(self) -> None:
        self.deliver = _nothing
        if self._transport is not None:
            self._transport.abort()


def _nothing(*_: object) -> None:
    """The client has left, or nothing depends on an answer's progress any more."""
