"""What the HTTP of simulated engines has in common: JSON in and out, and answers in parts."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from llm_headroom.net.http_messages import Response

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from llm_headroom.net.http_messages import Request

JSON: Final = "application/json"


def document(request: Request) -> dict[str, Any]:
    """A request's body as a JSON object.

    Raises:
        ValueError: it is none.
    """
    value = json.loads(request.body or b"{}")
    if not isinstance(value, dict):
        raise ValueError("the body must be a JSON object")  # noqa: TRY004 - one error for all that is no object
    return value


def as_json(value: object, status: int = HTTPStatus.OK) -> Response:
    """A JSON document."""
    return Response(json.dumps(value).encode(), status, JSON)


def in_parts(content_type: str, parts: AsyncGenerator[bytes, None], events: AsyncGenerator[Any, None]) -> Response:
    """A response in parts, made from an engine's events; both end with it."""
    headers = (("Cache-Control", "no-store"),)
    return Response(b"", content_type=content_type, headers=headers, stream=_Parts(parts, events))


class _Parts:
    def __init__(self, parts: AsyncGenerator[bytes, None], events: AsyncGenerator[Any, None]) -> None:
        self._parts = parts
        self._events = events

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._parts

    async def aclose(self) -> None:
        await self._parts.aclose()
        await self._events.aclose()  # the parts do not end them if nobody has asked for the first part
