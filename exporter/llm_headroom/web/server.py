"""The server of the exporter's pages: its addresses, and who may ask for what under the web configuration."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from llm_headroom.net.http_connection import Limits
from llm_headroom.net.http_messages import answered, plain
from llm_headroom.net.http_server import HttpServer
from llm_headroom.net.listen import bind_all
from llm_headroom.web.access import Watched
from llm_headroom.web.users import TooManyChecksError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from llm_headroom.net.http_messages import Handler, Request, Response
    from llm_headroom.web.access import Access

PROBE: Final = "/probe"
"""A path whose requests wait for others, and have a budget of their own: half of all connections."""
HEALTH: Final = frozenset({"/-/healthy", "/-/ready"})
MOST_REQUESTS: Final = 40
"""Requests for anything else that are answered at once."""


async def serve(  # noqa: PLR0913 - each is a choice of its own
    handler: Handler,
    listen: Sequence[str],
    *,
    web_config: Path | None = None,
    max_requests: int = MOST_REQUESTS,
    methods: Sequence[str] = ("GET", "HEAD"),
    limits: Limits | None = None,
) -> HttpServer:
    """Starts to serve on every address of `listen`: `:9836`, `0.0.0.0:9836`, `[::1]:9836`, `localhost:9836`.

    `:PORT` is every address of the host, IPv6 and IPv4, and port 0 a free one. Beyond `max_requests` handlers at
    once further requests get 503 (0: no limit). `web_config` is read again whenever it changes.

    Raises:
        llm_headroom.net.listen.ListenError: an address is malformed, in use, or cannot be bound; none stays bound.
        llm_headroom.config.errors.ConfigError: the web configuration cannot be used.
    """
    watched = Watched(web_config)
    limits = limits or Limits()
    budgets = {PROBE: limits.connections // 2, "": max_requests}
    guarded = _Guarded(handler, watched, budgets, frozenset(methods))
    return HttpServer(guarded.answer, await bind_all(listen), limits=limits, security=watched.current)


class _Guarded:
    """A handler behind what the web configuration asks of a request, and limits of requests at once.

    `budgets` are those limits by path, `""` that of all other paths together. Whether the process lives is answered
    outside every limit: else too many requests would have it restarted.
    """

    def __init__(self, handler: Handler, watched: Watched, budgets: Mapping[str, int], methods: frozenset[str]) -> None:
        self._handler = handler
        self._watched = watched
        self._budgets = budgets
        self._methods = methods
        self._handling: Counter[str] = Counter()

    async def answer(self, request: Request) -> Response:
        access = await self._watched.current()
        response = await self._refusal(request, access)
        if response is None:
            budget = self._budget(request)
            self._handling[budget] += 1
            try:
                response = await answered(self._handler, request)
            finally:
                self._handling[budget] -= 1
        if not access.config.headers:
            return response
        configured = {name.lower() for name, _ in access.config.headers}
        own = (header for header in response.headers if header[0].lower() not in configured)
        return replace(response, headers=(*access.config.headers, *own))

    def _budget(self, request: Request) -> str:
        return request.path if request.path in self._budgets or request.path in HEALTH else ""

    async def _refusal(self, request: Request, access: Access) -> Response | None:
        """Why a request does not reach the handler, None if it does."""
        limited = request.path not in HEALTH
        if limited and access.rate is not None and not access.rate.take(time.monotonic()):
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
        budget = self._budget(request)
        most = self._budgets.get(budget, 0)
        if limited and 0 < most <= self._handling[budget]:
            text = f"Limit of concurrent requests reached ({most}), try again later."
            return plain(HTTPStatus.SERVICE_UNAVAILABLE, text)
        return None
