"""What the exporter answers over HTTP."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Final

from llm_headroom import __version__
from llm_headroom.net.http_messages import Request, Response
from llm_headroom.render import json as as_json
from llm_headroom.render.prometheus import Format, Lines, Renderer, exposition, negotiate, pieces
from llm_headroom.web import page
from llm_headroom.web.look import look
from llm_headroom.web.packing import PACKED, accepts_gzip, gzip, packed
from llm_headroom.web.probe import Probes
from llm_headroom.web.stream import Feed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from llm_headroom.model import Snapshot
    from llm_headroom.poll.published import Published
    from llm_headroom.poll.slot import Slot

REUSED: Final = 1.0
"""Seconds for which a rendering answers further scrapes, if nothing is published meanwhile: the age that the exporter's
own series, such as `process_*`, can have."""
log = logging.getLogger("llm_headroom")

JSON: Final = "application/json; charset=utf-8"


class App:
    """Answers requests from what is published; keeps renderings until something new is.

    `notices` gives further troubles of the exporter itself, in words.
    """

    def __init__(self, published: Published, notices: Callable[[], Iterable[str]] = tuple) -> None:
        self._published = published
        self._more_notices = notices
        self.poller = published.poller
        self._feed = Feed(self.poller, notices=self._notices)
        self._own = Renderer()
        self._renderers: dict[Slot, Renderer] = {}
        """One for each source, so that what it remembers of series goes with the source."""
        self._bodies: dict[tuple[Format, bool], bytes] = {}
        self._rendered = 0.0
        self._probes = Probes(self.poller)

    def changed(self) -> None:
        """Throw away what was rendered: a source has published, or the configuration has changed."""
        self._bodies.clear()
        self._feed.changed()

    async def close(self) -> None:
        """Close the connections of `/probe`."""
        await self._probes.close()

    async def handle(self, request: Request) -> Response:
        """Answer a request."""
        match request.path:
            case "/metrics":
                return self._metrics(request)
            case "/probe":
                return await self._probe(request)
            case "/api/v1/snapshot":
                return packed(Response(self._snapshot(), content_type=JSON), request)
            case "/-/healthy":
                return Response(b"llm-headroom is running.\n")
            case "/-/ready":
                return self._ready()
            case "/":
                parts = self._feed.parts(look(request.query))
                return packed(page.page(__version__, parts, self.poller.config.links), request)
            case "/api/v1/stream":
                return self._feed.subscribe(request.query, gzip=accepts_gzip(request))
            case path if path.startswith("/static/"):
                return packed(page.static(path.removeprefix("/static/")), request)
            case _:
                return Response(b"Not found. See / for what is here.\n", status=404)

    def _notices(self) -> Iterable[str]:
        if error := self._published.reload.error:
            yield f"The configuration was changed and could not be read; the old one is in force: {error}"
        yield from self._more_notices()

    def _ready(self) -> Response:
        if self.poller.ready:
            return Response(b"llm-headroom is ready.\n")
        return Response(b"Not every configured source has been collected once.\n", status=503)

    def _metrics(self, request: Request) -> Response:
        form = negotiate(request.headers.get("accept", ""))
        compressed = accepts_gzip(request)
        now = time.monotonic()
        if not self._bodies or now - self._rendered > REUSED:
            self._bodies.clear()
            self._rendered = now
        body = self._bodies.get((form, compressed))
        if body is None:
            lines = [*self._gathered(), self._own.lines(self._published.own())]
            body = self._bodies[form, compressed] = gzip(pieces(lines, form)) if compressed else exposition(lines, form)
        return _exposed(body, form, compressed=compressed)

    def _gathered(self) -> Iterable[Lines]:
        slots = [slot for slot in self.poller.slots.values() if slot.snapshot is not None]
        self._renderers = {slot: self._renderers.get(slot) or Renderer() for slot in slots}
        return [_rendered(slot, renderer) for slot, renderer in self._renderers.items()]

    def _snapshot(self) -> bytes:
        sources = [source for source in map(_as_json, self.poller.snapshots()) if source]
        head = json.dumps({"version": __version__, "time": time.time()})
        return f'{head[:-1]}, "sources": [{", ".join(sources)}]}}'.encode()

    async def _probe(self, request: Request) -> Response:
        found = await self._probes.points(request)
        if isinstance(found, Response):
            return found
        form = negotiate(request.headers.get("accept", ""))
        compressed = accepts_gzip(request)
        body = exposition([Renderer().lines(found)], form)
        return _exposed(gzip([body]) if compressed else body, form, compressed=compressed)


def _rendered(slot: Slot, renderer: Renderer) -> Lines:
    """A source's lines; none, and a line in the log, where they cannot be made: that costs no other source its own."""
    try:
        return renderer.lines(slot.points())
    except Exception:
        log.exception("rendering failed: internal error (bug)", extra={"target": slot.name})
        return Lines((), (), {})


def _as_json(snapshot: Snapshot) -> str:
    """A source as JSON; empty, and a line in the log, where it cannot be made."""
    try:
        return json.dumps(as_json.source(snapshot), allow_nan=False)
    except Exception:
        log.exception("rendering failed: internal error (bug)", extra={"target": snapshot.target})
        return ""


def _exposed(body: bytes, form: Format, *, compressed: bool) -> Response:
    vary = ("Vary", "Accept, Accept-Encoding")
    return Response(body, content_type=form, headers=(vary, PACKED) if compressed else (vary,))
