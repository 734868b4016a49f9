"""A small HTTP/1.1 server for simulated engines: request bodies, streamed answers, clients that leave, real refusal.

The exporter's own web server takes no request bodies and cannot refuse connections; an engine must do both.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import h11

from llm_headroom.net.listen import bind, bound_address

if TYPE_CHECKING:
    from collections.abc import Sequence

_log = logging.getLogger(__name__)

JSON: Final = "application/json"
_READ_BYTES: Final = 65_536
_LARGEST_BODY: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    """A request; ``path`` is without its query."""

    method: str
    path: str
    body: bytes

    def json(self) -> dict[str, Any]:
        """Return the body as a JSON object.

        Raises:
            ValueError: it is none.
        """
        value = json.loads(self.body or b"{}")
        if not isinstance(value, dict):
            raise ValueError("the body must be a JSON object")  # noqa: TRY004 - one error for all that is no object
        return value


class Reply:
    """The answer to one request: ``whole`` at once, or ``begin``, ``write`` and ``end`` for a stream."""

    __slots__ = ("_http", "_writer", "begun")

    begun: bool
    """Whether its head has been sent."""

    def __init__(self, http: h11.Connection, writer: asyncio.StreamWriter) -> None:
        self._http = http
        self._writer = writer
        self.begun = False

    async def whole(self, body: bytes, status: int = 200, content_type: str = JSON) -> None:
        """Send a whole answer."""
        self._head(status, content_type, [("content-length", str(len(body)))])
        await self._send(h11.Data(data=body), h11.EndOfMessage())

    async def json(self, value: object, status: int = 200) -> None:
        """Send a JSON document."""
        await self.whole(json.dumps(value).encode(), status)

    async def begin(self, content_type: str) -> None:
        """Send the head of a stream, so that the client knows at once that it is served."""
        self._head(HTTPStatus.OK, content_type, [("transfer-encoding", "chunked"), ("cache-control", "no-store")])
        await self._send()

    async def write(self, data: bytes) -> None:
        """Send a part of a stream."""
        await self._send(h11.Data(data=data))

    async def end(self) -> None:
        """End a stream."""
        await self._send(h11.EndOfMessage())

    def _head(self, status: int, content_type: str, headers: Sequence[tuple[str, str]]) -> None:
        self.begun = True
        event = h11.Response(status_code=status, headers=[("content-type", content_type), *headers])
        self._writer.write(self._http.send(event) or b"")

    async def _send(self, *events: h11.Event) -> None:
        for event in events:
            self._writer.write(self._http.send(event) or b"")
        await self._writer.drain()


Handler: TypeAlias = Callable[[Request, Reply], Awaitable[None]]
"""Answers a request; cancelled when its client leaves. One that returns without an answer cuts the connection."""


class HttpServer:
    """Serves one handler on one listen address, and can stop to listen and begin again on the same port.

    Attributes:
        address: ``host:port`` as bound.
    """

    address: str

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def start(self, listen: str) -> None:
        """Listen on ``[HOST]:PORT``; port 0 takes a free one.

        Raises:
            llm_headroom.net.listen.ListenError: the address cannot be listened on.
        """
        self._sockets = await bind(listen)
        self.address = bound_address(self._sockets[0])
        await self._listen()

    async def _listen(self) -> None:
        for bound in self._sockets:
            self._servers.append(await asyncio.start_server(self._connected, sock=bound, backlog=256))

    async def refuse(self) -> None:
        """Cut every connection and refuse new ones, with the port kept."""
        names = [(one.family, one.getsockname()) for one in self._sockets]
        await self.close()
        self._sockets = [_bound(family, name) for family, name in names]

    async def resume(self) -> None:
        """Listen again after ``refuse``."""
        await self._listen()

    async def close(self) -> None:
        """Stop to listen and cut every connection."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        for one in self._sockets:
            one.close()
        self._sockets.clear()
        own = asyncio.current_task()
        others = [task for task in self._connections if task is not own]
        for task in others:
            self._connections[task].transport.abort()
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a connection is served outside of a task")
        self._connections[task] = writer
        try:
            await self._converse(reader, writer)
        except (OSError, h11.ProtocolError, asyncio.CancelledError):
            writer.transport.abort()  # the client left, spoke no HTTP, or the server is closing
        finally:
            del self._connections[task]
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        http = h11.Connection(h11.SERVER)
        while (request := await _next(http, reader)) is not None:
            reply = Reply(http, writer)
            if not await self._handle(request, reply, http, reader):
                writer.transport.abort()
                return
            if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                return
            http.start_next_cycle()

    async def _handle(self, request: Request, reply: Reply, http: h11.Connection, reader: asyncio.StreamReader) -> bool:
        """Run the handler beside a watch on the client; False if there is no whole answer."""
        handling = asyncio.ensure_future(self._handler(request, reply))
        watching = asyncio.ensure_future(reader.read(_READ_BYTES))
        try:
            await asyncio.wait((handling, watching), return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                early = watching.result()
                if not early and not handling.done():
                    return False
                http.receive_data(early)
            await handling
        except OSError:
            return False
        except Exception:  # noqa: BLE001 - one request's failure must not end the engine
            _log.exception("the handler of %s failed", request.path)
            if reply.begun:
                return False
            await reply.json(
                {"error": "internal error of the simulator; see its log"}, HTTPStatus.INTERNAL_SERVER_ERROR
            )
        finally:
            for task in (handling, watching):
                task.cancel()
            await asyncio.gather(handling, watching, return_exceptions=True)
        return http.our_state is h11.DONE or http.our_state is h11.MUST_CLOSE


async def _next(http: h11.Connection, reader: asyncio.StreamReader) -> Request | None:
    """Read one request; None at the end of the connection."""
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(_READ_BYTES))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > _LARGEST_BODY:
                return None
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            path = head.target.decode("ascii").partition("?")[0]
            return Request(head.method.decode("ascii"), path, bytes(body))
        else:
            return None


def _bound(family: int, name: tuple[object, ...]) -> socket.socket:
    """Hold a port without listening: connections are refused, and nobody else gets it."""
    held = socket.socket(family, socket.SOCK_STREAM)
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(held.close)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, name[0] != "::")
        held.bind(name)
        held.setblocking(False)  # noqa: FBT003 - the method takes it by position alone
        on_failure.pop_all()
    return held
