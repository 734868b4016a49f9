"""How httpx's requests reach an engine: over one connection of aiohttp's, which is reused."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from llm_headroom.model import Cause
from llm_headroom.net.lean_httpx import httpx
from llm_headroom.scrape.refusals import Refusal, broken, root, unanswered, unconnected

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

    from aiohttp import ClientHandlerType, ClientRequest, ClientResponse, ClientTimeout, connector
    from aiohttp.tracing import Trace

_LINE_BYTES: Final = 16 * 1024
_MOST_UNREAD: Final = 16
"""Answers that may have come at once, those of 100 to 199 included, which none of our requests asks for."""


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


class Connection(aiohttp.TCPConnector):
    """The one connection: whether the last request found it open, and what that request has come to, in words."""

    reused = False
    doing = "preparing the request"
    _served: object = None

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - aiohttp's
        super().__init__(**options)
        self._factory = cast("partial[ResponseHandler]", partial(_Answers, loop=self._loop))

    async def connect(self, req: ClientRequest, traces: list[Trace], timeout: ClientTimeout) -> connector.Connection:  # noqa: ASYNC109 - aiohttp's signature
        """Called by aiohttp for every request."""
        connection = await super().connect(req, traces, timeout)
        protocol = connection.protocol
        if protocol is self._served and protocol is not None and protocol.should_close:
            # Something was said unasked, such as a 408 to an idle client; aiohttp would take it for the next answer.
            connection.close()
            connection = await super().connect(req, traces, timeout)
        self.reused = connection.protocol is self._served
        self._served = connection.protocol
        self.doing = "waiting for the answer"
        return connection


class Transport(httpx.AsyncBaseTransport):
    """Requests to one origin, one at a time, without a time limit; nothing follows redirects or keeps cookies."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self.connection = Connection(
            limit=1,
            ssl=context or True,
            keepalive_timeout=None,  # the engine's decision
            use_dns_cache=False,
            resolver=aiohttp.ThreadedResolver(),
        )
        self._session = aiohttp.ClientSession(
            connector=self.connection,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(),
            auto_decompress=False,
            max_line_size=_LINE_BYTES,
            max_field_size=_LINE_BYTES,
            middlewares=(_once,),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The head of the answer, its body to be read as it comes; the extension `sni_hostname` as httpx has it.

        Raises:
            Died: the connection ended before any byte of an answer.
            Refusal: there is no answer for another reason; the body's iterator raises it too.
        """
        self.connection.doing = "connecting"
        try:
            response = await self._session.request(
                request.method,
                URL(str(request.url), encoded=True),
                headers=request.headers.multi_items(),
                data=request.content or None,
                allow_redirects=False,
                server_hostname=request.extensions.get("sni_hostname"),
            )
        except (aiohttp.ClientError, OSError, UnicodeError) as error:
            if self.connection.doing == "connecting":
                raise unconnected(root(error), encrypted=request.url.scheme == "https") from None
            raise _invalid(error) from None
        self.connection.doing = "reading the body"
        return httpx.Response(response.status, headers=response.raw_headers, stream=_Body(response), request=request)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._session.close()


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._response.content.iter_any():
                yield piece
        except aiohttp.ClientPayloadError as error:
            reason = getattr(root(error), "message", error)
            raise Refusal(Cause.TRUNCATED, f"the connection was closed too early: {reason}") from None
        except aiohttp.ClientError as error:
            raise _invalid(error) from None

    async def aclose(self) -> None:
        self._response.close()


async def _once(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    """Keeps aiohttp from asking again where a connection died that had not been idle, or had begun to answer."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except aiohttp.ClientOSError as error:
        refusal = broken(root(error))
    except aiohttp.ServerDisconnectedError as error:
        if not isinstance(error.message, str):  # but what there is of a head
            raise Refusal(Cause.TRUNCATED, "the connection was closed too early, within the header") from None
        refusal = unanswered(encrypted=request.is_ssl())
    raise Died(refusal.cause, str(refusal))


def _invalid(error: Exception) -> Refusal:
    first = root(error)
    reason = " ".join(str(getattr(first, "message", first)).split())
    if r"b'\x15\x03" in reason:  # a TLS alert: RFC 8446, section 5.1
        return Refusal(Cause.TLS, "the server speaks TLS on this port; the target's URL should begin with https://")
    return Refusal(Cause.PROTOCOL, f"the answer is not valid HTTP/1.1: {reason[:200]}")
