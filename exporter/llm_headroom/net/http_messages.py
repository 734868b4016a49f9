"""What a server's handlers see of HTTP: requests and responses; what a connection does with them they need not know."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol, TypeAlias

from llm_headroom.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = logging.getLogger(__name__)


@frozen
class Request:
    """A request: `path` and `query` percent-decoded, of each parameter its first value, header names in lower case.

    `body` is empty where the method gives a body no meaning.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""


class Stream(Protocol):
    """A body sent in parts over any length of time. `aclose` is called once, whatever happens to the client."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The parts, none of them empty."""
        ...

    async def aclose(self) -> None:
        """No more parts are needed."""
        ...


@frozen
class Response:
    """A response; the server adds Content-Length and headers of its own, and leaves the body out where HTTP does.

    With a `stream` the body is what that gives: it ends when the stream, the client or the server does. A stream that
    raises cuts the connection, so that the client sees that the body is not whole.
    """

    body: bytes
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()
    stream: Stream | None = None


Handler: TypeAlias = Callable[[Request], Awaitable[Response]]
"""Answers a request. What it raises becomes a response 500, its traceback in the log alone, but for `CutError`."""


class CutError(Exception):
    """Raised by a handler or a stream: the connection ends at once, without an answer or in the middle of it."""


async def answered(handler: Handler, request: Request) -> Response:
    """The handler's response, or a 500 where it fails.

    Raises:
        CutError: the handler wants the connection cut.
    """
    try:
        return await handler(request)
    except CutError:
        raise
    except Exception:  # noqa: BLE001 - whatever a handler does wrong is its own affair
        _log.exception("handler failed", extra={"path": request.path})
        return plain(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal error; see the log.")


def plain(status: int, text: str, *headers: tuple[str, str]) -> Response:
    """A response of one line of text."""
    return Response(f"{text}\n".encode(), status, headers=headers)
