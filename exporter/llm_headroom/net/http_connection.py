"""One connection of an HTTP server: HTTP/1.1 in h11's framing over asyncio's streams.

Everything that a client can hold on to is bounded: the sizes of heads and bodies, and the time of each step.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import parse_qsl, unquote

import h11

from llm_headroom.frozen import frozen_named
from llm_headroom.net.http_messages import Request, answered, plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_headroom.net.bodies import Bodies
    from llm_headroom.net.http_messages import Handler, Response, Stream

READ_BYTES: Final = 4096
CLOSE_SECONDS: Final = 1.0
_WRITE_BYTES: Final = 64 * 1024
"""Of a body, at once: what a client that does not read holds of its own; the body itself is shared."""
LINGER_BYTES: Final = 1024 * 1024
_MOST_PIECES: Final = 512
"""Of a body: each chunk takes h11 some microseconds, in which nobody else has a turn, however small it is."""
_QUERY_FIELDS: Final = 100
_BODY: Final = frozenset({"content-length", "transfer-encoding"})
"""Headers of a request that announce a body (RFC 9112, section 6)."""
_NO_BODY: Final = frozenset({"GET", "HEAD", "DELETE", "CONNECT"})
"""Methods whose bodies mean nothing (RFC 9110, sections 9.3.1, 9.3.2, 9.3.5, 9.3.6): skipped, not retained."""


_Fields: TypeAlias = list[tuple[bytes, bytes]]


@frozen_named
class Limits:
    """What a client may take up; times in seconds, sizes in bytes.

    `head_seconds` holds for the TLS handshake, for a request's head and for its body, `idle_seconds` between the
    requests of one connection, `write_seconds` for each 64 KiB of a response, `grace_seconds` for requests under
    way when the server closes.
    """

    connections: int = 256
    head_bytes: int = 16 * 1024
    body_bytes: int = 64 * 1024
    head_seconds: float = 10.0
    idle_seconds: float = 120.0
    write_seconds: float = 30.0
    grace_seconds: float = 5.0


class _RefusedError(Exception):
    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class Connection:
    """One client's connection: requests in, responses out, one after the other in their order.

    A stream is cut off when the client closes its side. Whole responses are not, since a client may shut its writing
    side and still read (RFC 9112, section 9.6), unless `needs_client` says that handlers are cancelled then.
    """

    __slots__ = (
        "_arrived",
        "_bodies",
        "_client_left",
        "_handler",
        "_head_only",
        "_interruptible",
        "_known",
        "_limits",
        "_needs_client",
        "_repeated",
        "ending",
        "streaming",
        "stuck_since",
        "waiting_since",
    )

    ending: bool
    """Set to end the connection after the response under way."""
    streaming: bool
    """Whether the response under way is a stream, which may be cut off at any time."""
    stuck_since: float | None
    """Since when (of the loop's clock) the client has not read what was sent; None while it reads."""
    waiting_since: float | None
    """When (by the loop's clock) the wait for a whole request started; None while one is being answered."""

    def __init__(self, limits: Limits, handler: Handler, bodies: Bodies, *, needs_client: bool = False) -> None:
        """`bodies` are those that any connection of the server is sending."""
        self._limits = limits
        self._bodies = bodies
        self._handler = handler
        self._needs_client = needs_client
        self._head_only = False
        self._client_left = False
        self._interruptible: asyncio.Task[object] | None = None
        self._arrived = b""
        self._known: tuple[bytes, Request] | None = None
        self._repeated = False
        self.ending = False
        self.streaming = False
        self.stuck_since = None
        self.waiting_since = asyncio.get_running_loop().time()

    def client_left(self) -> None:
        """Takes note that the client has closed its side: what nobody waits for any more is cancelled."""
        self._client_left = True
        if self._interruptible is not None:
            self._interruptible.cancel()
            self._interruptible = None

    @contextlib.contextmanager
    def _while_client_stays(self) -> Iterator[None]:
        if self._client_left:
            raise _gone()
        self._interruptible = asyncio.current_task()
        try:
            yield
        finally:
            self._interruptible = None

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers until one of both sides ends the connection."""
        loop = asyncio.get_running_loop()
        # drain then waits until everything is with the kernel, so that no response piles up behind another.
        writer.transport.set_write_buffer_limits(high=0)
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.head_bytes)
        deadline = loop.time() + self._limits.head_seconds
        while True:
            if not await self._exchange(http, reader, writer, deadline):
                return
            if self.ending or http.our_state not in {h11.DONE, h11.IDLE}:
                break
            if http.our_state is h11.DONE:
                http.start_next_cycle()
            self.waiting_since = loop.time()
            self._arrived, self._repeated = b"", False
            if http.trailing_data[0]:
                await asyncio.sleep(0)  # pipelined requests need no wait, and other connections must have their turn
            elif not await self._next_bytes(http, reader):
                return
            deadline = loop.time() + self._limits.head_seconds
        if http.their_state in {h11.ERROR, h11.SEND_BODY}:
            await _linger(reader, writer)

    async def _next_bytes(self, http: h11.Connection, reader: asyncio.StreamReader) -> bool:
        """Waits for the next request to start; False if the client has closed, or is idle for too long.

        One that is the last one again, byte for byte, as a scraper's is, h11 does not get to see.
        """
        try:
            async with asyncio.timeout(self._limits.idle_seconds):
                data = await reader.read(READ_BYTES)
        except TimeoutError:
            return False
        self._arrived, self._repeated = data, self._known is not None and data == self._known[0]
        if not self._repeated:
            http.receive_data(data)
        return bool(data)

    async def _exchange(
        self, http: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, deadline: float
    ) -> bool:
        """Takes one request in and sends the response to it; False if there was none.

        The response is let go with this call: a connection that idles holds no body.
        """
        response = await self._response(http, reader, writer, deadline)
        if response is None:
            return False
        if response.stream is not None:
            if self._repeated:
                http.receive_data(self._arrived)
                http.next_event(), http.next_event()  # its head, and its end
            await self._stream(http, writer, response, response.stream)
        else:
            await self._send(http, writer, response)
        return True

    async def _response(
        self, http: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, deadline: float
    ) -> Response | None:
        """The response to the next request, None if there was none."""
        if self._repeated and self._known is not None:
            return await self._answered(self._known[1])
        self._head_only = False
        self._known = None
        try:
            request = await self._receive(http, reader, writer, deadline)
        except TimeoutError:
            if http.their_state is h11.IDLE and not http.trailing_data[0]:
                return None
            self.ending = True
            return plain(HTTPStatus.REQUEST_TIMEOUT, "The request took too long to arrive.")
        except h11.RemoteProtocolError as error:
            return plain(error.error_status_hint, f"Not a valid request:  {error}")
        except _RefusedError as error:
            self.ending = True
            return plain(error.status, str(error))
        if request is None:
            return None
        if self._arrived.endswith(b"\r\n\r\n") and not request.headers.keys() & _BODY:
            self._known = self._arrived, request  # a head alone means the same whenever it comes
        return await self._answered(request)

    async def _answered(self, request: Request) -> Response:
        self.waiting_since = None
        if not self._needs_client:
            return await answered(self._handler, request)
        with self._while_client_stays():
            return await answered(self._handler, request)

    async def _receive(
        self, http: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, deadline: float
    ) -> Request | None:
        head = await _event(http, reader, deadline)
        if not isinstance(head, h11.Request):
            return None
        self._head_only = head.method == b"HEAD"
        if sum(len(name) + len(value) + 4 for name, value in head.headers) > self._limits.head_bytes:
            raise _RefusedError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The request's headers are too large.")
        request = _request(head)
        size = int(request.headers.get("content-length", "0"))
        received = pieces = 0
        parts: list[bytes] = []
        while max(size, received) <= self._limits.body_bytes and pieces <= _MOST_PIECES:
            if http.they_are_waiting_for_100_continue:
                if request.method in _NO_BODY:
                    return request  # answered without its body, which the client then does not send
                writer.write(http.send(h11.InformationalResponse(status_code=HTTPStatus.CONTINUE, headers=[])) or b"")
            event = await _event(http, reader, deadline)
            if not isinstance(event, h11.Data):
                return replace(request, body=b"".join(parts)) if parts else request
            received += len(event.data)
            pieces += 1
            if request.method not in _NO_BODY:
                parts.append(bytes(event.data))
        raise _RefusedError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The request's body is too large, or in too many parts."
        )

    async def _stream(
        self, http: h11.Connection, writer: asyncio.StreamWriter, response: Response, stream: Stream
    ) -> None:
        """Sends a stream, and stops as soon as the client closes its side."""
        self.streaming = True
        try:
            with self._while_client_stays():
                writer.write(http.send(_head(response.status, _fields(response, *self._closing(http)))) or b"")
                await self._flush(writer)
                if not self._head_only:
                    async for part in stream:
                        writer.write(http.send(h11.Data(data=part)) or b"")
                        await self._flush(writer)
        finally:
            await stream.aclose()
            self.streaming = False
        if end := http.send(h11.EndOfMessage()):
            writer.write(end)
        await self._flush(writer)

    def _closing(self, http: h11.Connection) -> tuple[tuple[str, str], ...]:
        return (("Connection", "close"),) if self.ending or http.their_state is h11.ERROR else ()

    async def _send(self, http: h11.Connection, writer: asyncio.StreamWriter, response: Response) -> None:
        bodiless = response.status in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}
        length = () if bodiless else (("Content-Length", str(len(response.body))),)
        body = b"" if bodiless or self._head_only else response.body
        fields = _fields(response, *length, *self._closing(http))
        if self._repeated:
            head = _written(response.status, fields)
        else:
            head = http.send(_head(response.status, fields)) or b""
            http.send_with_data_passthrough(h11.Data(data=body))
            http.send(h11.EndOfMessage())
        if len(body) <= _WRITE_BYTES:
            # Never an empty part: Python 3.12 and later keep it in the buffer, and the connection never closes.
            writer.writelines((head, body) if body else (head,))
            await self._flush(writer)
            return
        writer.write(head)
        rest = memoryview(body)
        with self._bodies.sending(body, asyncio.current_task()):
            for start in range(0, len(body), _WRITE_BYTES):
                writer.write(rest[start : start + _WRITE_BYTES])
                await self._flush(writer)

    async def _flush(self, writer: asyncio.StreamWriter) -> None:
        if writer.transport.is_closing():
            raise _gone()
        if writer.transport.get_write_buffer_size():
            self.stuck_since = asyncio.get_running_loop().time()
            async with asyncio.timeout(self._limits.write_seconds):
                await writer.drain()
            self.stuck_since = None


def _fields(response: Response, *extra: tuple[str, str]) -> _Fields:
    headers = [("Content-Type", response.content_type), *response.headers, *extra]
    if all(name.lower() != "x-content-type-options" for name, _ in response.headers):
        headers.append(("X-Content-Type-Options", "nosniff"))
    return [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers]


def _head(status: int, fields: _Fields) -> h11.Response:
    return h11.Response(status_code=status, headers=fields, reason=_phrase(status))


def _written(status: int, fields: _Fields) -> bytes:
    """A head as h11 writes it."""
    lines = b"".join([b"%s: %s\r\n" % field for field in fields])
    return b"HTTP/1.1 %d %s\r\n%s\r\n" % (status, _phrase(status), lines)


def _phrase(status: int) -> bytes:
    return HTTPStatus(status).phrase.encode()


def _gone() -> ConnectionResetError:
    return ConnectionResetError(errno.ECONNRESET, "the client has closed the connection")


async def _event(http: h11.Connection, reader: asyncio.StreamReader, deadline: float) -> object:
    """h11's next event, or its PAUSED; raises TimeoutError where what it takes has not come by a time of the loop's."""
    while (event := http.next_event()) is h11.NEED_DATA:
        async with asyncio.timeout_at(deadline):
            http.receive_data(await reader.read(READ_BYTES))
    return event


async def _linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads on for a moment: to close over unread bytes resets the connection, and the client may lose the response."""
    if writer.can_write_eof():
        writer.write_eof()
    left = LINGER_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            while left > 0 and (data := await reader.read(READ_BYTES)):
                left -= len(data)


def _request(head: h11.Request) -> Request:
    target = head.target.decode("latin-1")
    if not target.startswith("/"):  # the absolute form, as a proxy's client sends it
        _, _, after_scheme = target.partition("://")
        _, slash, path = after_scheme.partition("/")
        target = slash + path
    path, _, query_text = target.partition("?")
    query: dict[str, str] = {}
    if query_text:
        try:
            pairs = parse_qsl(query_text, keep_blank_values=True, max_num_fields=_QUERY_FIELDS)
        except ValueError as error:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "The query has too many parameters.") from error
        for name, value in pairs:
            query.setdefault(name, value)
    headers: dict[str, str] = {}
    for raw_name, raw_value in head.headers:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return Request(head.method.decode("ascii"), unquote(path) or "/", query, headers)
