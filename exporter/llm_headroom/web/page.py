"""The status page: whole in itself without scripts, updated by one where there is a browser that runs it.

It consists of parts, each with a key: frames, and in two of them the cards or rows of engines and GPUs. A stream sends
the parts that have changed.
"""

from __future__ import annotations

import logging
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom.net.http_messages import Response, plain
from llm_headroom.view.day import MINUTES
from llm_headroom.view.values import GpuCard, standing, urgency
from llm_headroom.web import cards, table
from llm_headroom.web.cards import Around
from llm_headroom.web.look import escape, key
from llm_headroom.web.summary import summary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from llm_headroom.config.people import Links
    from llm_headroom.view.day import Minute
    from llm_headroom.view.values import Absent, EngineCard, View
    from llm_headroom.web.look import Look

log = logging.getLogger("llm_headroom")

POLICY: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = (
    ("Content-Security-Policy", POLICY),
    ("Cache-Control", "no-store"),
    ("Referrer-Policy", "no-referrer"),
)
STATIC_HEADERS: Final = (("Cache-Control", "no-cache"),)
STATIC: Final = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "icon-warn.svg": "image/svg+xml",
    "icon-bad.svg": "image/svg+xml",
}
ICONS: Final = {"good": "icon", "warn": "icon-warn", "bad": "icon-bad", "unknown": "icon-warn"}
_BAND: Final = 7
"""Minutes of states above the curves of the last minutes."""
_MOST_MADE: Final = 2000
"""Cards and rows remembered for the next look; each may be needed once for each look."""
_NO_ENGINE: Final = (
    "No engine yet. Start one on this host, or name one: <code>llm-headroom run --target vllm=http://HOST:8000</code>"
)
_NO_GPU: Final = "No GPU is being read."
_APART: Final = re.compile(r"(?<=\d)(</b>)? (?=(?:<small>)?(?:ms|s|min|h|d|[KMGT]?i?B|W|°C|×)(?!\w))")
"""Between a number and its unit, where no line may end."""


class Parts(NamedTuple):
    """The page's changing parts: words for the title, the worst level, and HTML by key in the order of the page."""

    time: float
    title: str
    level: str
    html: Mapping[str, str]


class Painter:
    """Makes the parts of views. What was made of a card is used again while the card is the same."""

    def __init__(
        self, minutes: Callable[[EngineCard | GpuCard, float, int], Iterable[Minute]], links: Callable[[], Links]
    ) -> None:
        self._minutes = minutes
        self._links = links
        self._made: dict[tuple[str, Look, bool], tuple[EngineCard | GpuCard, str]] = {}

    def parts(self, view: View, look: Look) -> Parts:
        """What there is to show to a reader who has chosen a look."""
        top = summary(view, look)
        html = {"summary": f'<section data-id="summary">{_unbroken(top.html)}</section>'}
        lists: dict[str, Sequence[EngineCard | GpuCard]] = {"engines": view.engines, "gpus": view.gpus}
        for name, found in lists.items():
            html[name] = _frame(name, found)
            many = len(found) > table.MOST_CARDS
            for card in sorted(found, key=standing if many else lambda card: urgency(card.state)):
                html[key(card)] = self._card(card, view.time, look, many=many)
        html["absent"] = _unbroken(_absent(view.absent))
        present = {card.id for found in lists.values() for card in found}
        self._made = {known: made for known, made in self._made.items() if known[0] in present}
        if len(self._made) > _MOST_MADE:
            self._made.clear()
        return Parts(view.time, top.title, str(top.level), html)

    def _card(self, card: EngineCard | GpuCard, now: float, look: Look, *, many: bool) -> str:
        own = key(card)
        whole = not many or own in look.opened
        known = (card.id, look, many)
        made = self._made.get(known)
        if made is None or made[0] is not card:
            try:
                drawn = _unbroken(self._drawn(card, now, look, whole=whole, many=many))
            except Exception:  # it costs no other card
                log.exception("rendering failed: internal error (bug)", extra={"target": card.source.target})
                drawn = cards.unshown(card, many=many)
            made = self._made[known] = (card, drawn)
        return made[1]

    def _drawn(self, card: EngineCard | GpuCard, now: float, look: Look, *, whole: bool, many: bool) -> str:
        drawn = ""
        if whole:
            around = Around(now, look, tuple(self._minutes(card, now, MINUTES if look.day else _BAND)), self._links())
            drawn = cards.gpu(card, around) if isinstance(card, GpuCard) else cards.engine(card, around)
        if many:
            row = table.gpu_row if isinstance(card, GpuCard) else table.engine_row
            drawn = row(card, look, drawn)  # type: ignore[arg-type]  # the function goes by the card's kind
        return drawn


def _unbroken(html: str) -> str:
    return _APART.sub("\\1\u00a0", html)


def page(version: str, parts: Parts, links: Links) -> Response:
    """The page as it is now."""
    mark = {"bad": "■ ", "warn": "▲ "}.get(parts.level, "")
    named = [
        ("Docs", links.docs),
        ("Runbooks", links.runbooks),
        ("Grafana", links.grafana),
        ("Prometheus", links.prometheus),
    ]
    own = [("Metrics", "metrics"), ("JSON", "api/v1/snapshot")]
    nav = "".join(f'<a href="{escape(url)}">{name}</a>' for name, url in [*named, *own] if url)
    html = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{mark}{escape(parts.title)} – llm-headroom</title>'
        f'<link rel="icon" href="static/{ICONS[parts.level]}.svg" type="image/svg+xml">'
        '<link rel="stylesheet" href="static/page.css">'
        '<script src="static/page.js" defer></script></head><body>'
        f'<header class="top"><h1>llm-headroom</h1><span class="dim">{escape(version)}</span>'
        '<span id="live" role="status"></span><span id="said" role="status" class="unseen"></span>'
        f"<nav>{nav}</nav></header>"
        f'<main data-time="{parts.time:.3f}">{_assembled(parts.html)}</main></body></html>'
    )
    return Response(html.encode(errors="replace"), content_type="text/html; charset=utf-8", headers=HEADERS)


def _assembled(html: Mapping[str, str]) -> str:
    """All parts in one another: cards and rows stand in the frames before them."""
    frames = [name for name in html if name in {"summary", "engines", "gpus", "absent"}]
    inside = {
        "engines": "".join(made for name, made in html.items() if name.startswith("e") and name not in frames),
        "gpus": "".join(made for name, made in html.items() if name.startswith("g") and name not in frames),
    }
    return "".join(html[name].replace(_PLACE, inside.get(name, ""), 1) for name in frames)


_PLACE: Final = "<!--list-->"


def _frame(name: str, found: Sequence[EngineCard | GpuCard]) -> str:
    """A heading with a place for cards or rows."""
    kind, title = name[0], {"engines": "Engines", "gpus": "GPUs"}[name]
    if not found:
        inside = f'<p class="empty" data-list="{kind}">{_NO_ENGINE if kind == "e" else _NO_GPU}</p>'
    elif len(found) > table.MOST_CARDS:
        columns = table.ENGINE_COLUMNS if kind == "e" else table.GPU_COLUMNS
        inside = f"{table.head(columns, kind, title)}{_PLACE}{table.TAIL}"
    else:
        inside = f'<div class="grid" data-list="{kind}">{_PLACE}</div>'
    return f'<section data-id="{name}"><h2>{title}</h2>{inside}</section>'


def static(name: str) -> Response:
    """One of the page's own files."""
    kind = STATIC.get(name)
    if kind is None:
        return plain(404, "Not found.")
    return Response(_file(name), content_type=kind, headers=STATIC_HEADERS)


@cache
def _file(name: str) -> bytes:
    return (Path(__file__).parent / "static" / name).read_bytes()


def _absent(absent: Iterable[Absent]) -> str:
    items = "".join(f"<dt>{escape(each.what)}</dt><dd>{escape(each.why)}</dd>" for each in absent)
    shown = f'<h2>Looked for and not found</h2><dl class="absent">{items}</dl>' if items else ""
    return f'<section data-id="absent">{shown}</section>'
