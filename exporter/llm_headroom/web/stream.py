"""The stream behind the status page: what is shown now, and again whenever that changes, as server-sent events.

However many clients look, the view is made and written once for each change, and not at all while nobody looks.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llm_headroom.net.http_connection import Response, plain
from llm_headroom.view.board import Board
from llm_headroom.view.values import as_json

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from llm_headroom.poll.poller import Poller
    from llm_headroom.view.values import View

FORMS: Final = ("json", "page")
HEADERS: Final = (
    ("Cache-Control", "no-store"),
    ("Connection", "close"),  # a client that comes back after `Pace.lifetime` shows its certificate again
    ("X-Accel-Buffering", "no"),  # nginx would hold events back until its buffer is full
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast and for how long a stream goes, in seconds, and how many there may be.

    A stream ends after `lifetime`, so that the client comes back and is authenticated again.
    """

    spacing: float = 1.0
    heartbeat: float = 15.0
    lifetime: float = 600.0
    retry: float = 2.0
    streams: int = 50


class Feed:
    """The views of a poller for any number of streams."""

    def __init__(self, poller: Poller, pace: Pace | None = None) -> None:
        self._board = Board(poller)
        self._pace = pace or Pace()
        self._news = asyncio.Event()
        self._events: dict[str, bytes] = {}
        self._streams = 0

    def changed(self) -> None:
        """A source has published: remember what it said, and tell every stream."""
        self._board.record()
        self._events.clear()
        news, self._news = self._news, asyncio.Event()
        news.set()

    def view(self) -> View:
        """What to show now."""
        return self._board.view()

    def subscribe(self, form: str) -> Response:
        """A stream of views as JSON (`form` is `json`), or of the page's parts as HTML in JSON (`page`)."""
        if form not in FORMS:
            return plain(400, f"Unknown form {form!r}; known: {', '.join(FORMS)}.")
        if self._streams >= self._pace.streams:
            return plain(503, f"Limit of concurrent streams reached ({self._pace.streams}), try again later.")
        return Response(
            b"", content_type="text/event-stream; charset=utf-8", headers=HEADERS, stream=_Subscription(self, form)
        )

    async def events(self, form: str) -> AsyncGenerator[bytes]:
        """The events of one stream, until it has lived its time."""
        loop = asyncio.get_running_loop()
        pace = self._pace
        end = loop.time() + pace.lifetime
        yield f"retry: {pace.retry * 1000:.0f}\n\n".encode()
        while True:
            news = self._news
            yield self._event(form)
            spaced = loop.time() + pace.spacing
            while not news.is_set():
                try:
                    async with asyncio.timeout_at(min(loop.time() + pace.heartbeat, end)):
                        await news.wait()
                except TimeoutError:
                    if loop.time() >= end:
                        return
                    yield b":\n\n"
            await asyncio.sleep(min(spaced, end) - loop.time())
            if loop.time() >= end:
                return

    def _event(self, form: str) -> bytes:
        made = self._events.get(form)
        if made is None:
            shown = self.view()
            if form == "page":
                from llm_headroom.web.page import body  # noqa: PLC0415 - only where somebody looks

                data: object = {"time": shown.time, "body": body(shown)}
            else:
                data = as_json(shown)
            text = json.dumps(data, allow_nan=False, separators=(",", ":"))
            made = self._events[form] = f"data: {text}\n\n".encode()
        return made


class _Subscription:
    """One stream's place among those that there may be."""

    def __init__(self, feed: Feed, form: str) -> None:
        self._feed = feed
        self._events = feed.events(form)
        feed._streams += 1  # noqa: SLF001 - two halves of one thing

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._events

    async def aclose(self) -> None:
        self._feed._streams -= 1  # noqa: SLF001 - two halves of one thing
        await self._events.aclose()
