"""How requests reach an engine: one connection, HTTP/1.1 (RFC 9112) in h11's framing over asyncio's streams."""

from __future__ import annotations

import asyncio
import socket
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import aiohappyeyeballs
import h11

from llm_headroom.model import Cause
from llm_headroom.scrape.refusals import Refusal, broken, unanswered, unconnected

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

_READ_BYTES: Final = 256 * 1024
"""As much as asyncio's transports take from a socket at once: an engine's whole body in one piece."""
_HAPPY_EYEBALLS_SECONDS: Final = 0.25  # RFC 8305, section 5: the recommended connection attempt delay
_EVENTS_PER_TURN: Final = 256
"""A body in one-byte chunks is this many events long before other tasks, and the deadline, get their turn."""
_ALERT: Final = b"\x15\x03"
"""How an alert of TLS begins: RFC 8446, section 5.1."""


class Died(Refusal):
    """The connection ended before any byte of an answer."""


class _Reader(asyncio.StreamReader):
    """A stream that knows what has come without having been asked for."""

    unread = 0

    def feed_data(self, data: Any) -> None:  # noqa: ANN401 - as the class above has it
        """Called by the event loop."""
        self.unread += len(data)
        super().feed_data(data)

    async def take(self) -> bytes:
        """The next piece, empty at the end."""
        piece = await self.read(_READ_BYTES)
        self.unread -= len(piece)
        return piece


class Connection:
    """An open connection, one request at a time, without a time limit."""

    def __init__(self, reader: _Reader, writer: asyncio.StreamWriter, *, encrypted: bool) -> None:
        self._reader = reader
        self._writer = writer
        self._encrypted = encrypted
        self._http = h11.Connection(h11.CLIENT)
        self._events = count(1)

    @property
    def idle(self) -> bool:
        """Whether it can take a request: no answer is unfinished, and the server has neither closed nor said anything.

        A server may say something unasked, such as a 408 to an idle client; it is no answer to the next request.
        """
        free = self._http.our_state is h11.IDLE and not self._http.trailing_data[0]
        return free and not (self._reader.unread or self._reader.at_eof() or self._writer.is_closing())

    async def ask(self, request: h11.Request, body: bytes | None) -> h11.Response:
        """The head of the answer.

        Raises:
            Died: the connection ended before any byte of an answer.
            Refusal: there is no answer for another reason.
        """
        sent = self._http.send(request) or b""
        if body is not None:
            sent += self._http.send(h11.Data(data=body)) or b""
        self._http.send(h11.EndOfMessage())
        self._writer.write(sent)
        begun = False
        while not isinstance(event := await self._next(begun=begun), h11.Response):
            begun = True
        return event

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes; after its end the connection is idle, if the server leaves it open.

        Raises:
            Refusal: the answer breaks off, or is not HTTP.
        """
        while not isinstance(event := await self._next(begun=True), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                yield event.data
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()

    def abort(self) -> None:
        """Close at once."""
        self._writer.transport.abort()

    async def _next(self, *, begun: bool) -> object:
        ended = False
        while True:
            if not next(self._events) % _EVENTS_PER_TURN:
                await asyncio.sleep(0)
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                if ended:
                    raise Refusal(Cause.TRUNCATED, f"the connection was closed too early: {error}") from None
                raise Refusal(Cause.PROTOCOL, f"the answer is not valid HTTP/1.1: {error}") from None
            if event is not h11.NEED_DATA:
                return event
            piece = await self._read(begun=begun)
            begun, ended = True, not piece
            self._http.receive_data(piece)

    async def _read(self, *, begun: bool) -> bytes:
        """The next piece of an answer, empty at its end if it has begun."""
        try:
            piece = await self._reader.take()
        except OSError as error:
            refusal = broken(error)
            raise (refusal if begun else Died(refusal.cause, str(refusal))) from None
        if begun:
            return piece
        if not piece:
            refusal = unanswered(encrypted=self._encrypted)
            raise Died(refusal.cause, str(refusal))
        if piece.startswith(_ALERT):
            raise Refusal(Cause.TLS, "the server speaks TLS on this port; the target's URL should begin with https://")
        if not piece.startswith(b"HTTP/"[: len(piece)]):
            raise Refusal(Cause.PROTOCOL, f"the answer is not valid HTTP/1.1; it begins with {piece[:20]!r}")
        return piece


async def connected(host: str, port: int, context: ssl.SSLContext | None, name: str) -> Connection:
    """A new connection to a host, encrypted where there is a context: `name` is the one to be in the certificate.

    Raises:
        Refusal: there is none.
    """
    loop = asyncio.get_running_loop()
    reader = _Reader(limit=_READ_BYTES, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    tls: dict[str, Any] = {} if context is None else {"ssl": context, "server_hostname": name}
    try:
        addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        # uvloop has no happy eyeballs of its own
        opened = await aiohappyeyeballs.start_connection(
            addresses, happy_eyeballs_delay=_HAPPY_EYEBALLS_SECONDS, interleave=1, loop=loop
        )
        transport, _ = await loop.create_connection(lambda: protocol, sock=opened, **tls)
    except (OSError, UnicodeError) as error:
        raise unconnected(error, encrypted=context is not None) from None
    return Connection(reader, asyncio.StreamWriter(transport, protocol, reader, loop), encrypted=context is not None)
