"""The HTTP/1.1 server of the exporter's pages and of simulated engines: who is let in, how many, and how it ends.

It serves trusted and untrusted clients alike: a client is bounded in all that it can hold on to (`Limits`), and what a
client does wrong is no error of the server's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final, Protocol

from llm_headroom.net.accept import Accepting
from llm_headroom.net.bodies import Bodies
from llm_headroom.net.http_connection import CLOSE_SECONDS, READ_BYTES, Connection, Limits
from llm_headroom.net.http_messages import CutError, Handler
from llm_headroom.net.listen import bound_address

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Awaitable, Callable, Mapping, Sequence

_log = logging.getLogger(__name__)


STUCK_SECONDS: Final = 1.0
"""For which a client must not have read what it was sent, before another one may have its place."""


class Security(Protocol):
    """How a connection is secured."""

    @property
    def tls(self) -> ssl.SSLContext | None:
        """Its TLS, None for plain HTTP."""
        ...

    def admits_certificate(self, certificate: Mapping[str, object] | None) -> bool:
        """Whether a client with this certificate (`SSLSocket.getpeercert()`), or without one, is accepted."""
        ...


class _PlainHttp:
    tls = None

    def admits_certificate(self, certificate: Mapping[str, object] | None) -> bool:  # noqa: ARG002 - the protocol's
        return True


async def _plain_http() -> Security:
    return _PlainHttp()


class HttpServer:
    """A server at work from its making on, inside a running event loop.

    Attributes:
        addresses: as they are bound, `host:port`, a port 0 replaced by the real one.
    """

    addresses: tuple[str, ...]

    def __init__(
        self,
        handler: Handler,
        listeners: Sequence[socket.socket],
        *,
        limits: Limits | None = None,
        security: Callable[[], Awaitable[Security]] = _plain_http,
        needs_client: bool = False,
    ) -> None:
        """`listeners` are closed with the server.

        `security` is asked for each connection. With `needs_client` a handler is cancelled when its client closes its
        side; else it continues, and the client may still read the response.
        """
        self.addresses = tuple(map(bound_address, listeners))
        self._handler = handler
        self._listeners = listeners
        self._limits = limits or Limits()
        self._security = security
        self._needs_client = needs_client
        self._bodies = Bodies()
        self._connections: dict[asyncio.Task[None], Connection] = {}
        self._accepting = [Accepting(listener, self._accept) for listener in listeners]

    async def close(self) -> None:
        """Stops accepting, cuts streams off, and other requests under way after the grace period."""
        while self._accepting:
            self._accepting.pop().close()
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

    def _accept(self, client: socket.socket) -> None:
        if len(self._connections) >= self._limits.connections and not self._drop_longest_waiting():
            client.close()
            return
        connection = Connection(self._limits, self._handler, self._bodies, needs_client=self._needs_client)
        task = asyncio.get_running_loop().create_task(self._attend(client, connection))
        self._connections[task] = connection
        task.add_done_callback(self._connections.pop)

    def _drop_longest_waiting(self) -> bool:
        """Frees a slot: closes who has been idle for longest, or else who has not read for longest."""
        waiting = {task: since for task, c in self._connections.items() if (since := c.waiting_since) is not None}
        long_ago = asyncio.get_running_loop().time() - STUCK_SECONDS
        stuck = {
            task: since for task, c in self._connections.items() if (since := c.stuck_since or long_ago) < long_ago
        }
        for found in (waiting, stuck):
            if found:
                task = min(found, key=found.__getitem__)
                self._connections[task].waiting_since = self._connections[task].stuck_since = None
                task.cancel()
                return True
        return False

    async def _attend(self, client: socket.socket, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        try:
            security = await self._security()
        except BaseException:
            client.close()
            raise
        reader = asyncio.StreamReader(limit=READ_BYTES)
        reading = _Reading(reader, connection.client_left)
        seconds = None if security.tls is None else self._limits.head_seconds
        try:
            transport, _ = await loop.connect_accepted_socket(  # uvloop returns its own protocol of TLS
                lambda: reading,
                client,
                ssl=security.tls,
                ssl_handshake_timeout=seconds,
            )
        except OSError as error:  # a TLS handshake that fails or times out is one, too
            _log.debug("TLS handshake failed", extra={"error": str(error)})
            return
        writer = asyncio.StreamWriter(transport, reading, reader, loop)
        try:
            try:
                _admit(security, writer)
                await connection.converse(reader, writer)
            except BaseException:
                transport.abort()
                raise
        except CutError:
            return
        except OSError as error:
            _log.debug("connection ended early", extra={"error": str(error)})
        except Exception:  # noqa: BLE001 - one client's connection must not end the server
            _log.exception("connection closed after an internal error")
        finally:
            writer.close()
            try:
                with contextlib.suppress(OSError):
                    async with asyncio.timeout(CLOSE_SECONDS):
                        await writer.wait_closed()
            finally:
                transport.abort()


def _admit(security: Security, writer: asyncio.StreamWriter) -> None:
    if not security.admits_certificate(writer.get_extra_info("peercert")):
        _log.info("client refused", extra={"error": "its certificate has no name out of client_allowed_sans"})
        raise CutError


class _Reading(asyncio.StreamReaderProtocol):
    """Fills a reader, and reports at once when the client closes its side, also while nobody reads."""

    def __init__(self, reader: asyncio.StreamReader, left: Callable[[], None]) -> None:
        super().__init__(reader)
        self._client_left = left

    def eof_received(self) -> bool:
        self._client_left()
        return bool(super().eof_received())

    def connection_lost(self, exc: Exception | None) -> None:
        self._client_left()
        super().connection_lost(exc)
