"""One connection of the web server: HTTP/1.1 in h11's framing over asyncio's streams.

Everything that a client can hold on to is bounded: the sizes of heads and bodies, and the time of each step.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias
from urllib.parse import parse_qsl, unquote

import h11

if TYPE_CHECKING:
    from collections.abc import Mapping

READ_BYTES: Final = 4096
CLOSE_SECONDS: Final = 1.0
_WRITE_BYTES: Final = 256 * 1024
_LINGER_BYTES: Final = 1024 * 1024
_QUERY_FIELDS: Final = 100


@dataclass(frozen=True, slots=True)
class Request:
    """A request: `path` and `query` percent-decoded, of each parameter its first value, header names in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]


class Stream(Protocol):
    """A body that comes in parts, over as long as it takes. `aclose` is called once, whatever becomes of the client."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The parts, none of them empty."""
        ...

    async def aclose(self) -> None:
        """No part is wanted any more."""
        ...


@dataclass(frozen=True, slots=True)
class Response:
    """A response; the server adds Content-Length and headers of its own, and leaves the body out where HTTP does.

    With a `stream` the body is what that gives: it ends when the stream, the client or the server does.
    """

    body: bytes
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()
    stream: Stream | None = None


Handler: TypeAlias = Callable[[Request], Awaitable[Response]]
"""Answers a request. What it raises becomes a response 500, its traceback in the log alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a client may take up; times in seconds, sizes in bytes.

    `head_seconds` holds for the TLS handshake, for a request's head and for its body, `idle_seconds` between the
    requests of one connection, `write_seconds` for each 256 KiB of a response, `grace_seconds` for requests under
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

    `answer` must not raise.
    """

    __slots__ = ("_answer", "_head_only", "_limits", "ending", "streaming", "waiting_since")

    ending: bool
    """Set to end the connection after the response under way."""
    streaming: bool
    """Whether the response under way is a stream, which may be cut off at any time."""
    waiting_since: float | None
    """Since when (of the loop's clock) no whole request has come; None while one is being answered."""

    def __init__(self, limits: Limits, answer: Handler) -> None:
        self._limits = limits
        self._answer = answer
        self._head_only = False
        self.ending = False
        self.streaming = False
        self.waiting_since = asyncio.get_running_loop().time()

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers until one of both sides ends the connection."""
        loop = asyncio.get_running_loop()
        # drain then waits until everything is with the kernel, so that no response piles up behind another.
        writer.transport.set_write_buffer_limits(high=0)
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.head_bytes)
        deadline = loop.time() + self._limits.head_seconds
        while True:
            response = await self._exchange(http, reader, deadline)
            if response is None:
                return
            if response.stream is not None:
                await self._stream(http, reader, writer, response)
                return
            await self._send(http, writer, response)
            if self.ending or http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                break
            http.start_next_cycle()
            self.waiting_since = loop.time()
            if http.trailing_data[0]:
                await asyncio.sleep(0)  # pipelined requests come without a wait, and others must have their turn
            elif not await self._next_bytes(http, reader):
                return
            deadline = loop.time() + self._limits.head_seconds
        if http.their_state in {h11.ERROR, h11.SEND_BODY}:
            await _linger(reader, writer)

    async def _next_bytes(self, http: h11.Connection, reader: asyncio.StreamReader) -> bool:
        """Waits for the next request to begin; False if the client has closed, or is idle for too long."""
        try:
            async with asyncio.timeout(self._limits.idle_seconds):
                data = await reader.read(READ_BYTES)
        except TimeoutError:
            return False
        http.receive_data(data)
        return bool(data)

    async def _exchange(self, http: h11.Connection, reader: asyncio.StreamReader, deadline: float) -> Response | None:
        """Takes one request in and gives the response to it, None if there was none."""
        self._head_only = False
        try:
            async with asyncio.timeout_at(deadline):
                request = await self._receive(http, reader)
        except TimeoutError:
            if http.their_state is h11.IDLE and not http.trailing_data[0]:
                return None
            self.ending = True
            return plain(HTTPStatus.REQUEST_TIMEOUT, "The request took too long to come.")
        except h11.RemoteProtocolError as error:
            return plain(error.error_status_hint, f"Not a request that this server understands: {error}")
        except _RefusedError as error:
            self.ending = True
            return plain(error.status, str(error))
        if request is None:
            return None
        self.waiting_since = None
        return await self._answer(request)

    async def _receive(self, http: h11.Connection, reader: asyncio.StreamReader) -> Request | None:
        head = await _event(http, reader)
        if not isinstance(head, h11.Request):
            return None
        self._head_only = head.method == b"HEAD"
        if sum(len(name) + len(value) + 4 for name, value in head.headers) > self._limits.head_bytes:
            raise _RefusedError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The request's headers are too large.")
        request = _request(head)
        size = int(request.headers.get("content-length", "0"))
        received = 0
        # A client that waits for 100 Continue is answered without its body: it is of no use to any page.
        wanted = not http.they_are_waiting_for_100_continue
        while max(size, received) <= self._limits.body_bytes:
            event = await _event(http, reader) if wanted else None
            if not isinstance(event, h11.Data):
                return request
            received += len(event.data)
        raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The request's body is too large.")

    async def _stream(
        self, http: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, response: Response
    ) -> None:
        """Sends a stream, and stops as soon as the client closes its side; the connection ends with it."""
        assert response.stream is not None  # noqa: S101 - the caller has looked
        self.ending = True
        self.streaming = True
        try:
            async with asyncio.TaskGroup() as group:
                gone = group.create_task(_closed(reader))
                sending = group.create_task(self._parts(http, writer, response))
                await asyncio.wait((gone, sending), return_when=asyncio.FIRST_COMPLETED)
                gone.cancel()
                sending.cancel()
        except* OSError as errors:
            raise errors.exceptions[0] from None
        finally:
            await response.stream.aclose()

    async def _parts(self, http: h11.Connection, writer: asyncio.StreamWriter, response: Response) -> None:
        head = http.send(_head(response, ("Connection", "close")))
        writer.write(head or b"")
        await self._flush(writer)
        if response.stream is not None and not self._head_only:
            async for part in response.stream:
                writer.write(http.send(h11.Data(data=part)) or b"")
                await self._flush(writer)
        if end := http.send(h11.EndOfMessage()):
            writer.write(end)
        await self._flush(writer)

    async def _send(self, http: h11.Connection, writer: asyncio.StreamWriter, response: Response) -> None:
        bodiless = response.status in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}
        extra = [] if bodiless else [("Content-Length", str(len(response.body)))]
        if self.ending or http.their_state is h11.ERROR:
            extra.append(("Connection", "close"))
        head = http.send(_head(response, *extra))
        body = b"" if bodiless or self._head_only else response.body
        http.send_with_data_passthrough(h11.Data(data=body))
        http.send(h11.EndOfMessage())
        if len(body) <= _WRITE_BYTES:
            # Never an empty part: Python 3.12 and later keep it in the buffer, and the connection never closes.
            writer.writelines((head, body) if body else (head,))
            await self._flush(writer)
            return
        writer.write(head)
        rest = memoryview(body)
        for start in range(0, len(body), _WRITE_BYTES):
            writer.write(rest[start : start + _WRITE_BYTES])
            await self._flush(writer)

    async def _flush(self, writer: asyncio.StreamWriter) -> None:
        if writer.transport.is_closing():
            raise ConnectionResetError(errno.ECONNRESET, "the client has closed the connection")
        if writer.transport.get_write_buffer_size():
            async with asyncio.timeout(self._limits.write_seconds):
                await writer.drain()


def _head(response: Response, *extra: tuple[str, str]) -> h11.Response:
    headers = [("Content-Type", response.content_type), *response.headers, *extra]
    if all(name.lower() != "x-content-type-options" for name, _ in response.headers):
        headers.append(("X-Content-Type-Options", "nosniff"))
    raw = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers]
    phrase = HTTPStatus(response.status).phrase.encode()
    return h11.Response(status_code=response.status, headers=raw, reason=phrase)


async def _closed(reader: asyncio.StreamReader) -> None:
    """Waits until the client closes its side; what it still sends is of no use, since its connection ends anyway."""
    while await reader.read(READ_BYTES):
        pass


async def _event(http: h11.Connection, reader: asyncio.StreamReader) -> object:
    """h11's next event, or its PAUSED."""
    while (event := http.next_event()) is h11.NEED_DATA:
        http.receive_data(await reader.read(READ_BYTES))
    return event


async def _linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads on for a moment: to close over unread bytes resets the connection, and the client may lose the response."""
    if writer.can_write_eof():
        writer.write_eof()
    left = _LINGER_BYTES
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


def plain(status: int, text: str, *headers: tuple[str, str]) -> Response:
    """A response of one line of text."""
    return Response(f"{text}\n".encode(), status, headers=headers)
