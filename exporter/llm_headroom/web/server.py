"""The server of the exporter's pages: its addresses, and who may ask for what under the web configuration."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING

from llm_headroom.net.http_connection import answered, plain
from llm_headroom.net.http_server import HttpServer
from llm_headroom.net.listen import bind_all
from llm_headroom.web.access import TooManyChecksError, Watched

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from llm_headroom.net.http_connection import Handler, Limits, Request, Response
    from llm_headroom.web.access import Access


async def serve(  # noqa: PLR0913 - each is a choice of its own
    handler: Handler,
    listen: Sequence[str],
    *,
    web_config: Path | None = None,
    max_requests: int = 40,
    methods: Sequence[str] = ("GET", "HEAD"),
    limits: Limits | None = None,
) -> HttpServer:
    """Starts to serve on every address of `listen`: `:9836`, `0.0.0.0:9836`, `[::1]:9836`, `localhost:9836`.

    `:PORT` is every address of the host, IPv6 and IPv4, and port 0 a free one. Beyond `max_requests` handlers at
    once further requests get 503 (0: no limit). `web_config` is read anew whenever it changes.

    Raises:
        llm_headroom.net.listen.ListenError: an address is malformed, in use, or cannot be bound; none stays bound.
        llm_headroom.web.config.WebConfigError: the web configuration cannot be used.
    """
    watched = Watched(web_config)
    guarded = _Guarded(handler, watched, max_requests, frozenset(methods))
    return HttpServer(guarded.answer, await bind_all(listen), limits=limits, security=watched.current)


class _Guarded:
    """A handler behind what the web configuration asks of a request, and a limit of requests at once."""

    def __init__(self, handler: Handler, watched: Watched, max_requests: int, methods: frozenset[str]) -> None:
        self._handler = handler
        self._watched = watched
        self._max_requests = max_requests
        self._methods = methods
        self._handling = 0

    async def answer(self, request: Request) -> Response:
        access = self._watched.current()
        response = await self._refusal(request, access)
        if response is None:
            self._handling += 1
            try:
                response = await answered(self._handler, request)
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
