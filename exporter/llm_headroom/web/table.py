"""Many engines or GPUs as rows of a table, each with its card below it where a reader has opened it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom.view import text
from llm_headroom.view.values import urgency
from llm_headroom.web.look import escape, key
from llm_headroom.web.summary import mark

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_headroom.view.values import EngineCard, GpuCard, Load
    from llm_headroom.web.look import Look

MOST_CARDS: Final = 8
"""Engines, or GPUs, that are all shown as cards; more of them are a table."""


class Column(NamedTuple):
    """A column: its title, whether its values are numbers, and what the title does not say."""

    title: str
    number: bool = False
    hint: str = ""


ENGINE_COLUMNS: Final = (
    Column("State"),
    Column("Target"),
    Column("Model"),
    Column("Takes", number=True, hint="How many times its traffic the engine can take within its objectives"),
    Column("Waiting", number=True, hint="Requests in the queue"),
    Column("First token", number=True, hint="95th percentile of the time to first token, last 2 minutes"),
    Column("KV cache", number=True, hint="Share of the KV cache that requests hold"),
    Column("KV fits", number=True, hint="How many more typical requests fit into the KV cache"),
    Column(
        "Saturation",
        number=True,
        hint="Load as a share of what the engine can take; at 100 % first tokens begin to miss the objective",
    ),
)
GPU_COLUMNS: Final = (
    Column("State"),
    Column("GPU"),
    Column("Name"),
    Column("Memory", number=True, hint="Share of memory in use"),
    Column("Free", number=True),
    Column("Busy", number=True, hint="Share of time during which a kernel was running"),
    Column("Power", number=True),
    Column("Temperature", number=True),
)


class Cell(NamedTuple):
    """What stands in a cell as HTML, what rows are sorted by, and a class."""

    html: str
    order: float | str | None
    kind: str = ""


def head(columns: Sequence[Column], kind: str, noun: str) -> str:
    """A table's beginning, with its filter: rows follow, then `TAIL`."""
    titles = "".join(
        f'<th scope="col"{" class=number" if each.number else ""}>'
        f'<button type="button" data-sort="{index}"{f""" title="{each.hint}" """ if each.hint else ""}>{each.title}'
        f"</button></th>"
        for index, each in enumerate(columns)
    )
    return (
        f'<div class="tools"><label>Filter <input type="search" data-filter="{kind}" '
        f'placeholder="name, model, state …"></label><span class="dim" data-shown="{kind}"></span></div>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{noun}">'
        f'<table class="many" data-list="{kind}"><thead><tr>{titles}</tr></thead>'
    )


TAIL: Final = "</table></div>"


def engine_row(card: EngineCard, look: Look, opened: str) -> str:
    """The row of an engine's model, and the card `opened` below it, if there is one."""
    source, kv = card.source, card.kv
    first = text.first_tokens(card.latencies)
    p95 = text.p95(first) if first else None
    labels = " ".join(f"{escape(name)}={escape(value)}" for name, value in source.labels)
    room = None if kv is None else kv.headroom_requests
    cells = (
        _state(card),
        Cell(_link(card, source.target, look) + (f" <small>{labels}</small>" if labels else ""), source.target),
        Cell(f"{escape(card.model)} <small>{escape(source.title)} {escape(source.version)}</small>", card.model),
        _takes(card.least_load),
        Cell(text.count(card.queued), card.queued),
        Cell(
            "–" if first is None else "no traffic" if p95 is None else text.quantile(p95),
            text.p95_seconds(card.latencies),
            "bad" if text.later(p95, card.thresholds.get("ttft")) else "",
        ),
        Cell(text.percent(None if kv is None else kv.usage), None if kv is None else kv.usage),
        Cell(text.rate(room), room),
        Cell(text.percent(card.saturation), card.saturation),
    )
    return _row(card, cells, ENGINE_COLUMNS, opened)


def gpu_row(card: GpuCard, look: Look, opened: str) -> str:
    """The row of a GPU, and the card `opened` below it, if there is one."""
    cells = (
        _state(card),
        Cell(_link(card, f"GPU {card.gpu}" if card.gpu else "GPUs", look), card.gpu.rjust(8)),
        Cell(escape(card.full_name), card.full_name),
        Cell(text.percent(card.taken), card.taken),
        Cell(text.size(card.free), card.free),
        Cell(text.percent(card.utilization), card.utilization),
        Cell(text.watts(card.power), card.power),
        Cell(text.celsius(card.temperature), card.temperature),
    )
    return _row(card, cells, GPU_COLUMNS, opened)


def _state(card: EngineCard | GpuCard) -> Cell:
    state = card.state
    reason = f"<small>{escape(state.reason)}</small>" if state.reason and state.level != "good" else ""
    return Cell(
        f"<span>{mark(state.level)}{escape(state.name)}</span>{reason}",
        "{}{:02}{}".format(*urgency(state), state.name),
        state.level,
    )


def _takes(load: Load | None) -> Cell:
    """How much more an engine takes, with a question mark where that is suspect; what binds is in the tooltip."""
    if load is None:
        return Cell(text.UNKNOWN, None)
    said = (text.ends_at(load), text.binds(load) if load.binding else "", "suspect" if load.suspect else "")
    words = [word for word in said if word]
    hint = f' title="{escape("; ".join(words))}"' if words else ""
    shown = f"{'? ' if load.suspect else ''}{text.times(load.headroom)}"
    return Cell(f"<span{hint}>{shown}</span>", load.headroom, text.urgency_of(load))


def _link(card: EngineCard | GpuCard, name: str, look: Look) -> str:
    own = key(card)
    expanded = "true" if own in look.opened else "false"
    return (
        f'<a href="{look.address(toggled=own)}#{own}" data-look="{own}" aria-expanded="{expanded}">{escape(name)}</a>'
    )


def _row(card: EngineCard | GpuCard, cells: Sequence[Cell], columns: Sequence[Column], opened: str) -> str:
    parts = []
    for index, (cell, column) in enumerate(zip(cells, columns, strict=True)):
        kind = " ".join(part for part in ("number" if column.number else "", cell.kind) if part)
        order = "" if cell.order is None else f' data-v="{escape(str(cell.order))}"'
        tag = 'th scope="row"' if index == 1 else "td"
        parts.append(f"<{tag}{f' class={kind!r}' if kind else ''}{order}>{cell.html}</{tag[:2]}>")
    below = f'<tr class="below"><td colspan="{len(columns)}">{opened}</td></tr>' if opened else ""
    own = key(card)
    anchor = "" if opened else f' id="{own}"'
    return f'<tbody data-id="{own}"{anchor}><tr>{"".join(parts)}</tr>{below}</tbody>'
