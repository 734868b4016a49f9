"""The sentence at the top of the page: who is in trouble and why; and the words of the title."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom.model import Level
from llm_headroom.view import text
from llm_headroom.view.values import ORDER, EngineCard, GpuCard, urgency
from llm_headroom.web.look import escape, key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_headroom.view.values import View
    from llm_headroom.web.look import Look

MOST_NAMED: Final = 3
"""Cards in trouble that are named; others are counted."""


class Summary(NamedTuple):
    """The worst level, a few words for the window's title, and the sentences as HTML."""

    level: Level
    title: str
    html: str


def summary(view: View, look: Look) -> Summary:
    """What is wrong, the worst first."""
    cards: list[EngineCard | GpuCard] = [*view.engines, *view.gpus]
    wrong = sorted(
        (card for card in cards if card.level is not Level.GOOD),
        key=lambda card: (urgency(card.state), card.state.since or 0.0),
    )
    notices = "".join(f'<p class="notice warn">{escape(each)}</p>' for each in view.notices)
    level = wrong[0].level if wrong else Level.WARN if view.notices else Level.GOOD if cards else Level.UNKNOWN
    least = _least(view, look)
    if not wrong:
        silent = _silent(cards)
        if silent:
            level = min(level, Level.UNKNOWN, key=ORDER.__getitem__)
        what = silent or (_fine(view) if cards else "No engine and no GPU yet.")
        return Summary(level, what, _paragraph(level, what, least) + notices)
    rest = len(wrong) - MOST_NAMED
    more = f"<li>and {rest} more</li>" if rest > 0 else ""
    named = "".join(f"<li>{_sentence(card, view.time, look)}</li>" for card in wrong[:MOST_NAMED])
    counts = {each: sum(card.level is each for card in wrong) for each in (Level.BAD, Level.WARN, Level.UNKNOWN)}
    names = {Level.BAD: "in trouble", Level.WARN: "with a warning", Level.UNKNOWN: "unknown"}
    words = ", ".join(f"{count} {names[each]}" for each, count in counts.items() if count)
    title = f"{words} of {len(cards)}"
    return Summary(level, title, _paragraph(level, title, f'<ul class="wrong">{named}{more}</ul>{least}') + notices)


def name(card: EngineCard | GpuCard) -> str:
    """What a card is called in a sentence: the model and its target, or the GPU."""
    if isinstance(card, GpuCard):
        return f"GPU {card.gpu} ({card.name})" if card.name else f"GPU {card.gpu}" if card.gpu else "GPUs"
    return f"{card.model} on {card.source.target}" if card.model else card.source.target


def ago(at: float, now: float) -> str:
    """How long ago something was; the page's script keeps it going."""
    return f'<time data-at="{at:.0f}">{text.span(max(now - at, 0.0))}</time>'


def mark(level: str) -> str:
    """The mark of a level: its shape says what its colour says."""
    return f'<span class="mark {level}" aria-hidden="true">{text.STATE_MARKS[level]}</span>'


def _silent(cards: Sequence[EngineCard | GpuCard]) -> str:
    """Who could not be read at the last poll, which may be an outage: states wait for the next one."""
    missed = list(dict.fromkeys(card.source.target for card in cards if not card.source.up))
    if not missed:
        return ""
    if len(missed) == 1:
        return f"{missed[0]} could not be read at its last poll, and was fine before"
    return f"{len(missed)} sources could not be read at their last poll, and were fine before"


def _fine(view: View) -> str:
    parts = []
    for number, one in ((len(view.engines), "model"), (len(view.gpus), "GPU")):
        if number:
            parts.append(f"{number} {one}{'s' if number > 1 else ''}")
    return f"{' and '.join(parts)}, all fine"


def _least(view: View, look: Look) -> str:
    """The engine that takes least more, of those of which it is known."""
    known = [(load.headroom, card, load) for card in view.engines if (load := card.least_load) is not None]
    if not known:
        return ""
    _, card, load = min(known, key=lambda each: each[0])
    which = "Least headroom: " if len(view.engines) > 1 else ""
    return f'<p class="least">{which}{_link(card, look)} {escape(text.takes(load))}.</p>'


def _paragraph(level: Level, words: str, more: str = "") -> str:
    return f'<div class="summary {level}"><p>{mark(level)}{escape(words)}</p>{more}</div>'


def _sentence(card: EngineCard | GpuCard, now: float, look: Look) -> str:
    since = "" if card.state.since is None else f", for {ago(card.state.since, now)}"
    reason = f": {escape(card.state.reason)}" if card.state.reason else ""
    return f"{_link(card, look)} <b>{escape(card.state.name)}</b>{since}{reason}"


def _link(card: EngineCard | GpuCard, look: Look) -> str:
    own = key(card)
    target = look.address(toggled="" if own in look.opened else own)
    return f'<a href="{target}#{own}" data-look="{own}">{escape(name(card))}</a>'
