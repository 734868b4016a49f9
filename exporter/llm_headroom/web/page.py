"""The status page: whole in itself without scripts, kept up to date by one where there is a browser that runs it."""

from __future__ import annotations

from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llm_headroom.net.http_connection import Response, plain
from llm_headroom.view.values import Level
from llm_headroom.web import cards

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llm_headroom.view.values import Absent, View

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
}


def page(view: View) -> Response:
    """The page as it is now."""
    html = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><title>llm-headroom</title>'
        '<link rel="icon" href="static/icon.svg" type="image/svg+xml"><link rel="stylesheet" href="static/page.css">'
        '<script src="static/page.js" defer></script></head><body>'
        f'<header class="top"><h1>llm-headroom</h1><span class="dim">{escape(view.version)}</span>'
        '<span id="live" role="status"></span>'
        '<nav><a href="metrics">Metrics</a><a href="api/v1/snapshot">JSON</a></nav></header>'
        f'<main data-time="{view.time:.3f}">{body(view)}</main></body></html>'
    )
    return Response(html.encode(errors="replace"), content_type="text/html; charset=utf-8", headers=HEADERS)


def body(view: View) -> str:
    """What changes of the page: one element after the other, each told from others by its data-id."""
    no_engine = "No engine yet. Start one on this host, or name one: <code>llm-headroom run --target vllm=http://HOST:8000</code>"
    return "".join(
        (
            _summary(view),
            _section("Engines", [cards.engine(card, view.time) for card in view.engines], no_engine),
            _section("GPUs", [cards.gpu(card, view.time) for card in view.gpus], "No GPU is being read."),
            _absent(view.absent),
        )
    )


def static(name: str) -> Response:
    """One of the page's own files."""
    kind = STATIC.get(name)
    if kind is None:
        return plain(404, "Not found.")
    return Response(_file(name), content_type=kind, headers=STATIC_HEADERS)


@cache
def _file(name: str) -> bytes:
    return (Path(__file__).parent / "static" / name).read_bytes()


def _summary(view: View) -> str:
    levels = [*(card.level for card in view.engines), *(card.level for card in view.gpus)]
    bad, warn = levels.count(Level.BAD), levels.count(Level.WARN)
    level = "bad" if bad else "warn" if warn or not view.sources else "good"
    sources = f"{view.up} of {view.sources} sources up" if view.sources else "no source yet"
    words = [sources]
    if bad:
        words.append(f"{bad} in trouble")
    if warn:
        words.append(f"{warn} to look at")
    if view.sources and not bad and not warn:
        words.append("nothing to worry about")
    return f'<p class="summary {level}" data-id="summary">{" · ".join(words)}</p>'


def _section(title: str, made: Sequence[str], otherwise: str) -> str:
    inside = f'<div class="grid">{"".join(made)}</div>' if made else f'<p class="empty">{otherwise}</p>'
    return f'<section data-id="{title}"><h2>{title}</h2>{inside}</section>'


def _absent(absent: Iterable[Absent]) -> str:
    items = "".join(f"<dt>{escape(each.what)}</dt><dd>{escape(each.why)}</dd>" for each in absent)
    if not items:
        return ""
    return f'<section data-id="absent"><h2>Looked for and not found</h2><dl class="absent">{items}</dl></section>'
