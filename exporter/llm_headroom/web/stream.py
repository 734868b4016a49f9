"""The stream behind the status page: what is shown now, and again whenever that changes, as server-sent events.

However many clients look, the view is made once for each change, and not at all while nobody looks. A page is sent the
parts that have changed.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llm_headroom.net.http_messages import Response, plain
from llm_headroom.view.board import Board
from llm_headroom.view.values import as_json
from llm_headroom.web.look import look
from llm_headroom.web.packing import PACKED, gzip_stream
from llm_headroom.web.page import Painter

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping

    from llm_headroom.poll.poller import Poller
    from llm_headroom.view.values import View
    from llm_headroom.web.look import Look
    from llm_headroom.web.page import Parts

FORMS: Final = ("json", "page")
HEADERS: Final = (
    ("Cache-Control", "no-store"),
    ("Connection", "close"),  # a client that comes back after `Pace.lifetime` shows its certificate again
    ("X-Accel-Buffering", "no"),  # nginx would hold events back until its buffer is full
)

REST: Final = 10.0
"""Times that an event took to make until the next one: of thousands of engines that is seconds of all CPU."""


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
    """The views of a poller for any number of streams; `notices` gives the troubles of the exporter itself."""

    def __init__(self, poller: Poller, pace: Pace | None = None, notices: Callable[[], Iterable[str]] = tuple) -> None:
        self._board = Board(poller, notices)
        self._painter = Painter(self._board.minutes, lambda: poller.config.links)
        self._pace = pace or Pace()
        self._news = asyncio.Event()
        self._view: View | None = None
        self._json: bytes | None = None
        self._streams = 0

    def changed(self) -> None:
        """A source has published: remember what it said, and wake every stream."""
        self._board.record()
        self._view = self._json = None
        news, self._news = self._news, asyncio.Event()
        news.set()

    def parts(self, wanted: Look) -> Parts:
        """The page's parts now, for a reader who has chosen a look."""
        return self._painter.parts(self._shared(), wanted)

    def subscribe(self, query: Mapping[str, str], *, gzip: bool = False) -> Response:
        """A stream of views as JSON, or with `form=page` of the page's parts as HTML in JSON; compressed if wanted."""
        form = query.get("form", "json")
        if form not in FORMS:
            return plain(400, f"Unknown form {form!r}; known: {', '.join(FORMS)}.")
        if self._streams >= self._pace.streams:
            return plain(503, f"Limit of concurrent streams reached ({self._pace.streams}), try again later.")
        subscription = _Subscription(self, look(query) if form == "page" else None, gzip=gzip)
        headers = (*HEADERS, PACKED) if gzip else HEADERS
        return Response(b"", content_type="text/event-stream; charset=utf-8", headers=headers, stream=subscription)

    async def events(self, wanted: Look | None) -> AsyncGenerator[bytes]:
        """The events of one stream, until it has lived its time: those of the page, or without a look whole views."""
        loop = asyncio.get_running_loop()
        pace = self._pace
        sent: Mapping[str, str] = {}
        end = loop.time() + pace.lifetime
        yield f"retry: {pace.retry * 1000:.0f}\n\n".encode()
        while True:
            news, begun = self._news, loop.time()
            if wanted is None:
                event = self._whole()
            else:
                parts = self.parts(wanted)
                event, sent = _changes(parts, sent), parts.html
            rest = REST * (loop.time() - begun)
            yield event
            spaced = loop.time() + max(pace.spacing, rest)
            while not news.is_set():
                beat = loop.time() + pace.heartbeat
                try:
                    async with asyncio.timeout_at(min(beat, end)):
                        await news.wait()
                except TimeoutError:
                    if end <= beat:  # not by the clock: a loop's timer may be up to a millisecond early by it
                        return
                    yield b":\n\n"
            await asyncio.sleep(min(spaced, end) - loop.time())
            if end <= spaced:
                return

    def _shared(self) -> View:
        if self._view is None:
            self._view = self._board.view()
        return self._view

    def _whole(self) -> bytes:
        if self._json is None:
            self._json = _event(as_json(self._shared()))
        return self._json


def _changes(parts: Parts, sent: Mapping[str, str]) -> bytes:
    """The parts that are not as they were sent; and the keys of all in their order, if these have changed."""
    data: dict[str, object] = {"time": parts.time, "title": parts.title, "level": parts.level}
    if list(parts.html) != list(sent):
        data["order"] = list(parts.html)
    data["parts"] = {key: html for key, html in parts.html.items() if sent.get(key) != html}
    return _event(data)


def _event(data: object) -> bytes:
    return f"data: {json.dumps(data, allow_nan=False, separators=(',', ':'))}\n\n".encode()


class _Subscription:
    """One stream's place among those that there may be."""

    def __init__(self, feed: Feed, wanted: Look | None, *, gzip: bool) -> None:
        self._feed = feed
        self._events = feed.events(wanted)
        self._shown = gzip_stream(self._events) if gzip else self._events
        feed._streams += 1  # noqa: SLF001 - two halves of one thing

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._shown

    async def aclose(self) -> None:
        self._feed._streams -= 1  # noqa: SLF001 - two halves of one thing
        await self._shown.aclose()
        await self._events.aclose()
