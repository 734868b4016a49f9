"""How httpx's requests reach an engine: over one connection with aiohttp's protocol, which is reused.

aiohttp's sessions and pools would be between each poll and its connection, for one connection and one kind of request.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

from llm_headroom.model import Cause
from llm_headroom.net.dial import dialled
from llm_headroom.scrape.refusals import Refusal, broken, root, unanswered, unconnected

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Mapping

    from aiohttp import StreamReader

    from llm_headroom.net.lean_httpx import httpx

_LINE_BYTES: Final = 16 * 1024
_MOST_UNREAD: Final = 16
"""Answers that may have come at once, those of 100 to 199 included, which none of our requests asks for."""
_INFORMATIONAL: Final = frozenset({*range(100, 200)} - {101})


class Died(Refusal):
    """The connection ended before any byte of an answer."""


class _Answers(ResponseHandler):
    """The protocol of a connection, which ends where answers come in such numbers that reading them holds up others.

    libuv reads up to 8 MiB before anybody else has a turn, and aiohttp has no limit: 180,000 of `HTTP/1.1 103` took
    1.5 s of CPU and 200 MB.
    """

    def data_received(self, data: bytes) -> None:
        """Bytes from the engine."""
        super().data_received(data)
        if len(self) > _MOST_UNREAD:
            self.abort()
            self.set_exception(HttpProcessingError(code=0, message=f"more than {_MOST_UNREAD} answers at once"))


class Prepared(NamedTuple):
    """A request as it is sent, and where to: polls send the same again and again."""

    host: str
    port: int
    sent: bytes


def prepared(request: httpx.Request) -> Prepared:
    """A request that was made once, to be sent any number of times."""
    url = request.url
    fields = b"".join([b"%s: %s\r\n" % field for field in request.headers.raw])
    sent = b"%s %s HTTP/1.1\r\n%s\r\n%s" % (request.method.encode(), url.raw_path, fields, request.content)
    port = url.port or (443 if url.scheme == "https" else 80)  # httpx leaves the usual ones out
    return Prepared(url.raw_host.decode(), port, sent)


class Answer(NamedTuple):
    """The head of an answer, its body to be read as it comes; header names are looked up in any case."""

    status: int
    headers: Mapping[str, str]
    body: StreamReader


class Transport:
    """Requests to one origin, one at a time, without a time limit; nothing follows redirects or keeps cookies.

    Attributes:
        doing: what the last request has come to, in words.
        reused: whether it found the connection open.
        context: what judges the server, None where nothing is encrypted.
    """

    def __init__(self, context: ssl.SSLContext | None, server_name: str | None) -> None:
        self.doing = "preparing the request"
        self.reused = False
        self.context = context
        self._server_name = server_name and server_name.rstrip(".")
        self._protocol: _Answers | None = None

    async def ask(self, request: Prepared) -> Answer:
        """The head of the answer to a request.

        Raises:
            Died: the connection ended before any byte of an answer.
            Refusal: there is no answer for another reason.
        """
        self.doing = "connecting"
        protocol = await self._connected(request)
        self.doing = "waiting for the answer"
        protocol.set_response_params(
            read_until_eof=True,
            auto_decompress=False,
            max_line_size=_LINE_BYTES,
            max_field_size=_LINE_BYTES,
        )
        if protocol.transport is not None:  # else it has just ended, which its answer says
            protocol.transport.write(request.sent)
        answer = await self._answer(protocol)
        self.doing = "reading the body"
        return answer

    async def _connected(self, request: Prepared) -> _Answers:
        """The connection, made anew if it has ended, or if something was said on it unasked, such as a 408."""
        known = self._protocol
        self.reused = known is not None and known.is_connected() and not known.should_close
        if self.reused and known is not None:
            return known
        self.close()
        loop = asyncio.get_running_loop()
        try:
            connected = await dialled(request.host, request.port)
            _, self._protocol = await loop.create_connection(
                lambda: _Answers(loop), sock=connected, ssl=self.context, server_hostname=self._server_name
            )
        except (OSError, UnicodeError) as error:
            raise unconnected(root(error), encrypted=self.context is not None) from None
        return self._protocol

    async def _answer(self, protocol: _Answers) -> Answer:
        try:
            message, body = await protocol.read()
            while message.code in _INFORMATIONAL:
                message, body = await protocol.read()
        except aiohttp.ServerDisconnectedError as error:
            if not isinstance(error.message, str):  # but what there is of a head
                raise Refusal(Cause.TRUNCATED, "the connection was closed too early, within the header") from None
            refusal = unanswered(encrypted=self.context is not None)
            raise Died(refusal.cause, str(refusal)) from None
        except aiohttp.ClientOSError as error:
            refusal = broken(root(error))
            raise Died(refusal.cause, str(refusal)) from None
        except (aiohttp.ClientError, HttpProcessingError) as error:
            raise _invalid(error) from None
        return Answer(message.code, message.headers, body)

    def done(self) -> None:
        """Take note that no more of the answer is wanted: the connection is kept where all of it has come."""
        if self._protocol is not None and self._protocol.should_close:
            self.close()

    def close(self) -> None:
        """Close the connection."""
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            protocol.abort()


async def pieces(body: StreamReader) -> AsyncIterator[bytes]:
    """A body as it comes.

    Raises:
        Refusal: it ends before its end, or is no valid HTTP.
    """
    try:
        async for piece in body.iter_any():
            yield piece
    except aiohttp.ClientPayloadError as error:
        reason = getattr(root(error), "message", error)
        raise Refusal(Cause.TRUNCATED, f"the connection was closed too early: {reason}") from None
    except (aiohttp.ClientError, HttpProcessingError) as error:
        raise _invalid(error) from None


def _invalid(error: Exception) -> Refusal:
    first = root(error)
    reason = " ".join(str(getattr(first, "message", first)).split())
    if r"b'\x15\x03" in reason:  # a TLS alert: RFC 8446, section 5.1
        return Refusal(Cause.TLS, "the server speaks TLS on this port; the target's URL should begin with https://")
    return Refusal(Cause.PROTOCOL, f"the answer is not valid HTTP/1.1: {reason[:200]}")
