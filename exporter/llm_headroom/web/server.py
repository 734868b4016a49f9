"""The HTTP/1.1 server of the exporter's pages: addresses, connections, TLS, and who may ask for what.

It serves short requests of trusted and untrusted clients alike: a page costs little, a client is bounded in all that
it can hold on to (`Limits`), and what a client does wrong is no error of the server's.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING

from llm_headroom.net.listen import ListenError, bind, bound_address
from llm_headroom.web.access import TooManyChecksError, Watched
from llm_headroom.web.connection import (
    CLOSE_SECONDS,
    READ_BYTES,
    Connection,
    Handler,
    Limits,
    Request,
    Response,
    plain,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
    from pathlib import Path

    from llm_headroom.web.access import Access

__all__ = ["Handler", "Limits", "ListenError", "Request", "Response", "Server", "serve"]

_log = logging.getLogger(__name__)


async def serve(  # noqa: PLR0913 - each is a choice of its own
    handler: Handler,
    listen: Sequence[str],
    *,
    web_config: Path | None = None,
    max_requests: int = 40,
    methods: Sequence[str] = ("GET", "HEAD"),
    limits: Limits | None = None,
) -> Server:
    """Starts to serve on every address of `listen`: `:9836`, `0.0.0.0:9836`, `[::1]:9836`, `localhost:9836`.

    `:PORT` is every address of the host, IPv6 and IPv4, and port 0 a free one. Beyond `max_requests` handlers at
    once further requests get 503 (0: no limit). `web_config` is read anew whenever it changes.

    Raises:
        ListenError: an address is malformed, in use, or cannot be bound; none stays bound.
        llm_headroom.web.config.WebConfigError: the web configuration cannot be used.
    """
    if not listen:
        raise ListenError("there is no address to listen on")
    watched = Watched(web_config)
    with contextlib.ExitStack() as on_failure:
        listeners: list[socket.socket] = []
        for address in listen:
            for listener in await bind(address):
                on_failure.callback(listener.close)
                listeners.append(listener)
        on_failure.pop_all()
    return Server(handler, listeners, watched, max_requests, frozenset(methods), limits or Limits())


class Server:
    """A server at work, made by `serve`."""

    addresses: tuple[str, ...]
    """The addresses as they are bound, `host:port`, a port 0 replaced by the real one."""

    def __init__(  # noqa: PLR0913, PLR0917 - made in one place, by serve
        self,
        handler: Handler,
        listeners: Sequence[socket.socket],
        watched: Watched,
        max_requests: int,
        methods: frozenset[str],
        limits: Limits,
    ) -> None:
        self.addresses = tuple(map(bound_address, listeners))
        self._handler = handler
        self._listeners = listeners
        self._watched = watched
        self._max_requests = max_requests
        self._methods = methods
        self._limits = limits
        self._handling = 0
        self._connections: dict[asyncio.Task[None], Connection] = {}
        self._accepting = [asyncio.create_task(self._accept(listener)) for listener in listeners]

    async def close(self) -> None:
        """Stops accepting, cuts streams off, and other requests under way after the grace period."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for listener in self._listeners:
            listener.close()
        # A task that is cancelled before its first step would never take its socket over, nor close it.
        await asyncio.sleep(0)
        for task, connection in self._connections.items():
            connection.ending = True
            if connection.waiting_since is not None or connection.streaming:
                task.cancel()
        if self._connections:
            await asyncio.wait(self._connections, timeout=self._limits.grace_seconds)
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        failing = False
        while True:
            try:
                accepted, _ = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno == errno.ECONNABORTED:
                    continue
                if not failing:
                    _log.error("Cannot accept connections on %s: %s", bound_address(listener), error.strerror)
                failing = True
                await asyncio.sleep(1)
                continue
            failing = False
            if len(self._connections) >= self._limits.connections and not self._drop_longest_waiting():
                accepted.close()
                continue
            connection = Connection(self._limits, self._answer)
            task = loop.create_task(self._attend(accepted, connection))
            self._connections[task] = connection
            task.add_done_callback(self._connections.pop)
            # sock_accept does not yield while connections are queued, and others must have their turn.
            await asyncio.sleep(0)

    def _drop_longest_waiting(self) -> bool:
        """Makes room by closing the connection that has sat without a request for longest, if there is one."""
        waiting = [(since, task) for task, c in self._connections.items() if (since := c.waiting_since) is not None]
        if not waiting:
            return False
        _, task = min(waiting, key=lambda pair: pair[0])
        self._connections[task].waiting_since = None
        task.cancel()
        return True

    async def _attend(self, accepted: socket.socket, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        access = self._watched.current()
        reader = asyncio.StreamReader(limit=READ_BYTES)
        seconds = None if access.tls is None else self._limits.head_seconds
        try:
            transport, protocol = await loop.connect_accepted_socket(
                lambda: asyncio.StreamReaderProtocol(reader),
                accepted,
                ssl=access.tls,
                ssl_handshake_timeout=seconds,
                ssl_shutdown_timeout=None if access.tls is None else CLOSE_SECONDS,
            )
        except OSError as error:  # a TLS handshake that fails or times out is one, too
            _log.debug("A client's TLS handshake failed: %s", error)
            return
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            if access.admits_certificate(writer.get_extra_info("peercert")):
                await connection.converse(reader, writer)
            else:
                _log.info("Refused a client: its certificate has no name out of client_allowed_sans")
                transport.abort()
        except OSError as error:
            _log.debug("A client's connection ended early: %s", error)
            transport.abort()
        except asyncio.CancelledError:
            transport.abort()
            raise
        except Exception:  # noqa: BLE001 - one client's connection must not end the server
            _log.exception("A connection was cut by an error of the server")
            transport.abort()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                async with asyncio.timeout(CLOSE_SECONDS + 1):
                    await writer.wait_closed()
            transport.abort()

    async def _answer(self, request: Request) -> Response:
        access = self._watched.current()
        response = await self._refusal(request, access)
        if response is None:
            self._handling += 1
            try:
                response = await self._handler(request)
            except Exception:  # noqa: BLE001 - whatever a page does wrong is its own affair
                _log.exception("The handler of %s failed", request.path)
                response = plain(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal error; the log of the exporter says more.")
            finally:
                self._handling -= 1
        if not access.config.headers:
            return response
        configured = {name.lower() for name, _ in access.config.headers}
        kept = (header for header in response.headers if header[0].lower() not in configured)
        return replace(response, headers=(*access.config.headers, *kept))

    async def _refusal(self, request: Request, access: Access) -> Response | None:
        """Why a request does not reach the handler, None if it does."""
        if access.rate is not None and not access.rate.take(asyncio.get_running_loop().time()):
            return plain(HTTPStatus.TOO_MANY_REQUESTS, "The rate limit of the web configuration is reached.")
        if access.users is not None:
            try:
                admitted = await access.users.admit(request.headers.get("authorization", ""))
            except TooManyChecksError:
                return plain(HTTPStatus.SERVICE_UNAVAILABLE, "Too many passwords wait to be checked; try again later.")
            if not admitted:
                challenge = ("WWW-Authenticate", 'Basic realm="llm-headroom", charset="UTF-8"')
                return plain(HTTPStatus.UNAUTHORIZED, "User name and password are needed.", challenge)
        if request.method not in self._methods:
            allowed = ("Allow", ", ".join(sorted(self._methods)))
            return plain(HTTPStatus.METHOD_NOT_ALLOWED, f"{request.method} is not allowed here.", allowed)
        if 0 < self._max_requests <= self._handling:
            text = f"Limit of concurrent requests reached ({self._max_requests}), try again later."
            return plain(HTTPStatus.SERVICE_UNAVAILABLE, text)
        return None
