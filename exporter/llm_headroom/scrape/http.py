"""The HTTP client: one connection to one engine, reused between polls.

httpx's requests over aiohttp's protocol, and what a poller needs besides: one deadline for everything, a cap on what
a body expands to, redirects within the origin, and failures in words that help. Proxies named in the environment
(`HTTP_PROXY` and the like) are deliberately not used: an exporter runs beside its engines, and a proxy would hide
which of them does not answer. Cookies are not stored.
"""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urljoin

from llm_headroom import __version__
from llm_headroom.config.endpoint import VISIBLE, check, parse_target, parse_url, without_query
from llm_headroom.frozen import frozen
from llm_headroom.model import Cause, Failure
from llm_headroom.net.files import named
from llm_headroom.net.lean_httpx import httpx
from llm_headroom.net.made_of import MadeOf
from llm_headroom.net.tls import client_context, client_files
from llm_headroom.scrape.credentials import authorization, secret_files
from llm_headroom.scrape.refusals import Refusal
from llm_headroom.scrape.transport import Died, Prepared, Transport, pieces, prepared

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterable, Mapping

    from llm_headroom.config.endpoint import Endpoint

T = TypeVar("T")

_MAX_REDIRECTS: Final = 3
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MOST_MADE: Final = 50
_PERMANENT: Final = frozenset({301, 308})
_AS_GET: Final = frozenset({301, 302, 303})
"""After these a request with a body goes on as a GET without one (RFC 9110, section 15.4)."""


@frozen
class Response:
    """A final answer: header names are looked up in any case, `body` is decompressed."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class FetchError(Exception):
    """There was no answer; `failure` says why, in words that name the URL and hold no secrets."""

    failure: Failure

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Client:
    """Speaks to one endpoint, one request at a time.

    Raises:
        ValueError: the endpoint is not one that can be asked; the message holds no credentials.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._origin, host, self._prefix = parse_target(endpoint.url)
        host = endpoint.address or host
        check(endpoint)
        tls = endpoint.tls
        self._address = f"{self._origin.scheme}://{f'[{host}]' if ':' in host else host}:{self._origin.port}"
        self._secured: MadeOf[ssl.SSLContext] | None = None
        if self._origin.scheme == "https":
            self._secured = MadeOf(client_files(tls), client_context, tls)
        self._authorized: MadeOf[str] | None = None
        if (credentials := endpoint.credentials) is not None:
            self._authorized = MadeOf(secret_files(credentials), authorization, credentials)
        self._server_name = tls.server_name or self._origin.host
        self._transport: Transport | None = None
        self._made: dict[str, tuple[tuple[object, ...], Prepared]] = {}
        self._moved: dict[str, str] = {}
        self._busy = False

    async def get(
        self,
        path: str,
        *,
        timeout: float,  # noqa: ASYNC109 - a deadline for the whole call is this method's promise
        accept: str = "text/plain;version=0.0.4,*/*;q=0.1",
        body: bytes | None = None,
    ) -> Response:
        """The answer to a request for `path` below the endpoint's prefix, whatever its status.

        Redirects are followed within the same origin. `timeout` in seconds covers everything from the name's
        resolution to the body's last byte; after it, as after a cancellation, the connection is gone, so that a late
        answer is never taken for that of the next request. A request may reach the engine twice where a reused
        connection dies under it, so ask only what changes nothing. A `body` is JSON, and posted.

        Raises:
            FetchError: there is no complete answer.
            RuntimeError: another request of this client is under way.
            ValueError: `path` is not an absolute path in visible ASCII characters.
        """
        if not path.startswith("/") or not VISIBLE.fullmatch(path):
            raise ValueError(f"{path!r} is not a path: it must begin with '/' and be percent-encoded")
        if self._busy:
            raise RuntimeError(f"a request to {self._origin} is already under way")
        self._busy = True
        answered = False
        try:
            async with asyncio.timeout(timeout):
                response = await self._follow(path, accept, body)
            answered = True
        except TimeoutError:
            reason = f"no answer within {_rounded(timeout)} s ({self._doing()})"
            raise self._error(path, Cause.TIMEOUT, reason) from None
        except Refusal as refusal:
            raise self._error(path, refusal.cause, str(refusal)) from None
        else:
            return response
        finally:
            self._busy = False
            if not answered:
                await self.close()

    async def close(self) -> None:
        """Closes the connection; a later `get` would open a new one."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def _doing(self) -> str:
        for made in (self._authorized, self._secured):
            if made is not None and made.reading:
                files = ", ".join(named(file, "a file whose name is not shown") for file in made.files)
                return f"reading {files}: does its disk hang?"
        return "preparing the request" if self._transport is None else self._transport.doing

    def _error(self, path: str, cause: Cause, reason: str) -> FetchError:
        # A query is left out: filters make it long, and it may hold an API key.
        return FetchError(Failure(cause, f"{self._origin}{self._prefix}{path.partition('?')[0]}: {reason}"))

    async def _follow(self, path: str, accept: str, body: bytes | None) -> Response:
        # Where a path has moved to is remembered only as long as asking there succeeds.
        moved = self._moved.pop(path, None)
        target = moved or self._prefix + path
        lasting = body is None
        for _ in range(_MAX_REDIRECTS + 1):
            response = await self._exchange(target, accept, body)
            location = response.headers.get("location") if response.status in _REDIRECTS else None
            if location is None:
                if moved is not None and response.status < 400:  # noqa: PLR2004 - errors begin there, RFC 9110, 15.5
                    self._moved[path] = moved
                return response
            previous, target = target, self._redirected(target, location)
            # Starlette adds a missing slash with status 307 (encode/starlette, starlette/routing.py), but for good.
            slash_added = target.partition("?")[0] == previous.partition("?")[0] + "/"
            lasting = lasting and (response.status in _PERMANENT or slash_added)
            if lasting:
                moved = target
            if response.status in _AS_GET:
                body = None
        raise Refusal(Cause.REDIRECT, f"more than {_MAX_REDIRECTS} redirects, the last one to {without_query(target)}")

    def _redirected(self, target: str, location: str) -> str:
        """The path and query to ask next."""
        try:
            origin, _, moved = parse_url(urljoin(f"{self._origin}{target}", location))
        except ValueError as error:
            raise Refusal(Cause.REDIRECT, f"redirects to an address that cannot be followed: {error}") from None
        if origin != self._origin:
            hint = "set the target's URL to the address that answers (a login page means missing credentials)"
            raise Refusal(Cause.REDIRECT, f"redirects to another origin, {without_query(f'{origin}{moved}')}; {hint}")
        return moved or "/"

    async def _exchange(self, target: str, accept: str, body: bytes | None) -> Response:
        headers = {
            "Host": self._origin.authority,
            "User-Agent": f"llm-headroom/{__version__}",
            "Accept": accept,
            "Accept-Encoding": "gzip" if self._endpoint.gzip else "identity",
        }
        if self._authorized is not None:
            headers["Authorization"] = await _read(self._authorized, Cause.CREDENTIALS)
        if body is not None:
            headers["Content-Type"] = "application/json"
        request = self._request(target, headers, body)
        transport = await self._connection()
        try:
            return await self._converse(transport, request)
        except Died:
            if not transport.reused:
                raise
        return await self._converse(transport, request)

    def _request(self, target: str, headers: dict[str, str], body: bytes | None) -> Prepared:
        # A poll asks what the last one asked, and making a request costs a fifth of what fetching the answer does.
        parts = (headers, body)
        made = self._made.get(target)
        if made is None or made[0] != parts:
            try:
                method = "GET" if body is None else "POST"
                request = httpx.Request(method, self._address + target, headers=headers, content=body)
            except httpx.InvalidURL as error:
                raise Refusal(Cause.UNREACHABLE, f"the host name cannot be resolved: {error}") from None
            if len(self._made) >= _MOST_MADE:  # redirects can lead to ever other places
                self._made.clear()
            made = self._made[target] = (parts, prepared(request))
        return made[1]

    async def _connection(self) -> Transport:
        """The connection to use, by certificates as they are now."""
        context: ssl.SSLContext | None = None
        if self._secured is not None:
            context = await _read(self._secured, Cause.TLS)
        if self._transport is None or self._transport.context is not context:
            await self.close()  # it was vouched for by the old certificates
            self._transport = Transport(context, None if context is None else self._server_name)
        return self._transport

    async def _converse(self, transport: Transport, request: Prepared) -> Response:
        cap = self._endpoint.max_bytes
        answer = await transport.ask(request)
        try:
            headers = answer.headers
            if int(headers.get("content-length", "0")) > cap:
                raise _too_large(cap)
            body = await _collected(pieces(answer.body), cap, headers.get("content-encoding", "").strip().lower())
        finally:
            transport.done()
        return Response(answer.status, headers, body)


async def _read(made: MadeOf[T], cause: Cause) -> T:
    """What is made of files; Refusal where it cannot be."""
    try:
        return await made.now()
    except OSError as error:
        raise Refusal(cause, error.strerror or str(error)) from None


async def _collected(parts: AsyncIterable[bytes], cap: int, coding: str) -> bytes:
    """A body, decompressed as it comes: no more than the cap is ever held, whatever it would expand to."""
    if coding not in {"", "identity", "gzip", "x-gzip", "deflate"}:
        raise Refusal(Cause.PROTOCOL, f"the body's Content-Encoding {coding[:40]!r} is not one we asked for")
    plain = coding in {"", "identity"}
    inflate: Any = None  # zlib has no public name for the type of a decompressor
    collected, room = [], cap
    async for piece in parts:
        data = piece
        if not plain:
            if inflate is None:
                # RFC 9110, section 8.4.1.2: deflate means the zlib format, but some servers leave its header out.
                wrapped = data[0] & 0x0F == zlib.DEFLATED
                inflate = zlib.decompressobj(31 if coding != "deflate" else 15 if wrapped else -15)
            try:
                data = inflate.decompress(data, room + 1)
            except zlib.error as error:
                raise Refusal(Cause.PROTOCOL, f"the body is no valid {coding}: {error}") from None
            if inflate.unused_data:
                raise Refusal(Cause.PROTOCOL, f"data follow the end of the {coding} body")
        room -= len(data)
        if room < 0:
            raise _too_large(cap)
        collected.append(data)
    if inflate is not None and not inflate.eof:
        raise Refusal(Cause.PROTOCOL, f"the {coding} body stops before its end")
    return b"".join(collected)


def _rounded(seconds: float) -> str:
    """Seconds for a message: what is left of 5 s after a quick answer is 5 s, not 4.99."""
    return f"{round(seconds, 1) or seconds:.3g}"


def _too_large(cap: int) -> Refusal:
    return Refusal(Cause.TOO_LARGE, f"the body is larger than the limit of {cap} bytes (max_bytes)")
