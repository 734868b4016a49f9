"""What `top` shows: a view as tables of the terminal's size, and what the reader has chosen to see of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeVar

from rich.console import Group
from rich.styled import Styled
from rich.table import Table
from rich.text import Text

from llm_headroom.model import Level
from llm_headroom.view import text
from llm_headroom.view.text import plain
from llm_headroom.view.values import EngineCard, GpuCard, urgency

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import RenderableType

    from llm_headroom.view.values import Latency, View


Card = TypeVar("Card", EngineCard, GpuCard)
BAR: Final = 8
STYLES: Final = {Level.GOOD: "green", Level.WARN: "yellow", Level.BAD: "bold red", Level.UNKNOWN: "magenta"}
SORTS: Final = ("state", "target", "model", "waiting", "first tokens", "KV cache", "saturation")
LARGEST_FIRST: Final = frozenset({"waiting", "first tokens", "KV cache", "saturation"})
_KEYS: Final = re.compile(r"\x1b[\[O][0-9;]*[A-Za-z~]|.", re.DOTALL)
"""A key: what begins with Escape and means one, as terminals send it (xterm's ctlseqs, "PC-Style Function Keys")."""
BACKSPACE: Final = ("\x7f", "\b")
HELP: Final = """\
s, S     sort by the next or the previous column; r reverses
/        filter by words of target, model, label, engine or state; Enter keeps it, Esc clears it
n, p     next and previous page; so do PgDn, PgUp, space, b and the arrows
?        this help
q        quit

STATE    as on the status page and in the alerts, worst first
HEADROOM how many more typical requests fit into the KV cache
TAKES    load headroom: how many times its present traffic the engine can take within the TTFT objective
SAT      saturation: at 100% first tokens begin to miss the TTFT objective
–        not known; never 0
"""


class Column(NamedTuple):
    """A column, and the width of the terminal from which on there is room for it."""

    name: str
    number: bool = False
    room: int = 0
    narrowest: int = 1


ENGINE_COLUMNS: Final = (
    Column("STATE", narrowest=9),
    Column("TARGET", narrowest=8),
    Column("MODEL", room=70, narrowest=8),
    Column("ENGINE", room=150),
    Column("TAKES", number=True, room=125),
    Column("RUN", number=True, room=90),
    Column("WAIT", number=True),
    Column("TOK/S", number=True, room=100),
    Column("TTFT P95", number=True, room=60),
    Column("ITL P95", number=True, room=130),
    Column("KV CACHE", number=True, room=80),
    Column("HEADROOM", number=True, room=120),
    Column("SAT", number=True, room=110),
    Column("WHY", room=80, narrowest=12),
)
GPU_COLUMNS: Final = (
    Column("STATE", narrowest=9),
    Column("GPU", narrowest=4),
    Column("NAME", room=100),
    Column("BUSY", number=True),
    Column("MEMORY", number=True),
    Column("FREE", number=True, room=70),
    Column("POWER", number=True, room=80),
    Column("TEMP", number=True, room=80),
    Column("WHY", room=80, narrowest=12),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What the reader has chosen: order, filter, page; whether a filter is being typed, and the help is shown."""

    sort: int = 0
    reverse: bool = False
    words: str = ""
    typing: bool = False
    page: int = 0
    help: bool = False


def pressed(chosen: Chosen, sent: str) -> Chosen | None:
    """The choice after what a terminal sent, which may be several keys; None to quit."""
    after: Chosen | None = chosen
    for key in _KEYS.findall(sent):
        if after is not None:
            after = _typed(after, key) if after.typing else _pressed(after, key)
    return after


def _pressed(chosen: Chosen, key: str) -> Chosen | None:
    changes: dict[str, Any] = {}
    match key:
        case "q" | "Q" | "\x03":
            return None
        case "s" | "S":
            changes = {"sort": (chosen.sort + (1 if key == "s" else -1)) % len(SORTS), "reverse": False, "page": 0}
        case "r":
            changes = {"reverse": not chosen.reverse}
        case "/":
            changes = {"typing": True, "page": 0}
        case "?":
            changes = {"help": not chosen.help}
        case "\x1b":
            changes = {"help": False, "words": "", "page": 0}
        case "n" | " " | "\x1b[6~" | "\x1b[B" | "\x1bOB":
            changes = {"page": chosen.page + 1}
        case "p" | "b" | "\x1b[5~" | "\x1b[A" | "\x1bOA":
            changes = {"page": max(chosen.page - 1, 0)}
    return replace(chosen, **changes)


def _typed(chosen: Chosen, key: str) -> Chosen:
    if key in {"\r", "\n"}:
        return replace(chosen, typing=False)
    if key == "\x1b":
        return replace(chosen, typing=False, words="")
    if key in BACKSPACE:
        return replace(chosen, words=chosen.words[:-1])
    return replace(chosen, words=chosen.words + key) if key.isprintable() else chosen


def screen(  # noqa: PLR0913 - what is shown, and where
    view: View, problem: str, now: float, chosen: Chosen, *, width: int, height: int
) -> RenderableType:
    """The view in a terminal of some size: always a line of what is wrong, and some of engines and of GPUs."""
    if chosen.help:
        return Group(_title(view, problem, now), Text(), Text(HELP), Text("? goes back, q quits", style="dim"))
    engines, gpus = _wanted(view.engines, chosen), _wanted(view.gpus, chosen)
    found = _title(view, problem, now)
    lines = max(height - 2 - bool(engines) - bool(gpus), 2)  # less title, footer and heads
    gpu_lines = min(len(gpus), max(lines // 3, 1)) if engines else min(len(gpus), lines)
    engine_lines = max(lines - gpu_lines, 1)
    parts: list[RenderableType] = [found]
    as_it_was = "dim" if problem else ""
    shown_engines, engine_pages = _page(engines, engine_lines, chosen.page)
    shown_gpus, gpu_pages = _page(gpus, max(gpu_lines, 1), chosen.page)
    if shown_engines:
        parts.append(Styled(_table(ENGINE_COLUMNS, map(_engine_row, shown_engines), width, whole=False), as_it_was))
    if shown_gpus:
        parts.append(Styled(_table(GPU_COLUMNS, map(_gpu_row, shown_gpus), width, whole=False), as_it_was))
    if not shown_engines and not shown_gpus:
        parts.append(Text("Nothing fits the filter." if chosen.words else "No engine and no GPU yet.", style="dim"))
    counts = (len(view.engines), len(engines), len(shown_engines)), (len(view.gpus), len(gpus), len(shown_gpus))
    parts.append(_footer(chosen, counts, max(engine_pages, gpu_pages)))
    return Group(*parts)


def report(view: View, problem: str, now: float, *, width: int) -> RenderableType:
    """Everything at once, the worst first, with whole errors and what was not found."""
    parts: list[RenderableType] = [_title(view, problem, now)]
    engines, gpus = _wanted(view.engines, Chosen()), _wanted(view.gpus, Chosen())
    if engines:
        parts.append(_table(ENGINE_COLUMNS, map(_engine_row, engines), width, whole=True))
    if gpus:
        parts.append(_table(GPU_COLUMNS, map(_gpu_row, gpus), width, whole=True))
    if not engines and not gpus:
        parts.append(Text("No engine and no GPU yet.", style="dim"))
    sources = [*(card.source for card in view.engines), *(card.source for card in view.gpus)]
    lines = [Text(plain(f"{source.target}: {source.error}"), "red") for source in sources if source.error]
    lines += [Text(plain(f"not found: {each.what}: {each.why}"), "dim") for each in view.absent]
    for line in lines:
        line.overflow = "ignore"
    return Group(*parts, *lines)


def _wanted(cards: Sequence[Card], chosen: Chosen) -> list[Card]:
    """The cards that fit the filter, in the order that was chosen; what is not known comes last."""
    words = chosen.words.lower().split()
    name = SORTS[chosen.sort]
    known: list[tuple[tuple[Any, ...], Card]] = []
    unknown: list[Card] = []
    for card in cards:
        if not all(word in _searched(card) for word in words):
            continue
        order = _order(card, name)
        if order is None:
            unknown.append(card)
        else:
            known.append((order, card))
    known.sort(key=lambda each: each[0], reverse=(name in LARGEST_FIRST) != chosen.reverse)
    return [card for _, card in known] + unknown


def _searched(card: EngineCard | GpuCard) -> str:
    source = card.source
    labels = [f"{name}={value}" for name, value in source.labels]
    own = (card.gpu, card.name) if isinstance(card, GpuCard) else (card.model,)
    return " ".join((source.target, source.title, card.state.name, card.state.reason, *labels, *own)).lower()


def _order(card: EngineCard | GpuCard, name: str) -> tuple[Any, ...] | None:
    """What cards are sorted by; of GPUs only the state counts."""
    if name == "state" or isinstance(card, GpuCard):
        return (*urgency(card.state), card.state.name)
    match name:
        case "target":
            return (card.source.target,)
        case "model":
            return (card.model,)
        case "waiting":
            value = card.waiting if card.router is None else card.router.waiting
        case "first tokens":
            value = text.p95_seconds(card.latencies)
        case "KV cache":
            value = None if card.kv is None else card.kv.usage
        case _:
            value = card.saturation
    return None if value is None else (value,)


def _page(cards: list[Card], lines: int, page: int) -> tuple[list[Card], int]:
    """The cards of a page, or of the last one where there are fewer; and how many pages there are."""
    pages = max(-(-len(cards) // lines), 1)
    page = min(page, pages - 1)
    return cards[page * lines : (page + 1) * lines], pages


def _title(view: View, problem: str, now: float) -> Text:
    """How many are in which state of attention, and the worst by name; first of all why nothing newer is known."""
    every: list[EngineCard | GpuCard] = [*view.engines, *view.gpus]
    cards = sorted(every, key=lambda card: urgency(card.state))
    title = Text("llm-headroom  ", "bold", no_wrap=True, overflow="ellipsis")
    if problem:
        title.append(f"{plain(problem)}  ", "red")
    names = {Level.BAD: "in trouble", Level.WARN: "with a warning", Level.UNKNOWN: "unknown", Level.GOOD: "fine"}
    for level, name in names.items():
        if count := sum(card.level is level for card in cards):
            title.append(f"{text.STATE_MARKS[level]} {count} {name}  ", "dim" if problem else STYLES[level])
    title.append(f"{view.up} of {view.sources} sources up  {text.span(max(now - view.time, 0.0))} ago", "dim")
    for notice in view.notices:
        title.append(f"  {plain(notice)}", "yellow")
    if cards and cards[0].level is not Level.GOOD:
        worst = cards[0]
        who = f"GPU {worst.gpu}" if isinstance(worst, GpuCard) else worst.source.target
        title.append(f"  {plain(who)} {worst.state.name}: {plain(worst.state.reason)}", STYLES[worst.level])
    return title


def _footer(chosen: Chosen, counts: tuple[tuple[int, int, int], ...], pages: int) -> Text:
    if chosen.typing:
        return Text.assemble(
            ("filter: ", "bold"), plain(chosen.words), ("▏", "bold"), ("  Enter keeps it, Esc clears it", "dim")
        )
    parts = []
    for noun, (every, fit, shown) in zip(("engine", "GPU"), counts, strict=True):
        hidden = [f"{fit - shown} on other pages"] if fit > shown else []
        hidden += [f"{every - fit} filtered out"] if every > fit else []
        if hidden:
            parts.append(f"{noun}s hidden: {', '.join(hidden)}")
    if pages > 1:
        parts.append(f"page {min(chosen.page + 1, pages)} of {pages} (n, p)")
    if chosen.words:
        parts.append(f"filter: {plain(chosen.words)}")
    parts += [f"by {SORTS[chosen.sort]}", "? help", "q quits"]
    return Text("  ".join(parts), "dim", no_wrap=True, overflow="ellipsis")


def _table(columns: Sequence[Column], rows: Iterable[Sequence[Text | str]], width: int, *, whole: bool) -> Table:
    table = Table(box=None, expand=True, padding=(0, 1), header_style="dim")
    shown = [index for index, column in enumerate(columns) if width >= column.room]
    for index in shown:
        name, number, _, narrowest = columns[index]
        flexible = 1 if name == "WHY" else None  # takes what the others leave
        justify: Literal["left", "right"] = "right" if number else "left"
        table.add_column(name, justify=justify, no_wrap=not whole, min_width=narrowest, ratio=flexible)
    for row in rows:
        table.add_row(*(row[index] for index in shown))
    return table


def _state(card: EngineCard | GpuCard) -> Text:
    return Text(f"{text.STATE_MARKS[card.level]} {card.state.name}", STYLES[card.level])


def _why(card: EngineCard | GpuCard) -> Text:
    said = [card.state.reason] if card.level is not Level.GOOD and card.state.reason else []
    said += card.notes
    return Text(plain("; ".join(said)), STYLES[card.level])


def _engine_row(card: EngineCard) -> tuple[Text | str, ...]:
    source, kv, router = card.source, card.kv, card.router
    first, between = _p95(card)
    return (
        _state(card),
        plain(source.target),
        plain(card.model),
        Text(plain(f"{source.title} {source.version}".strip()), "dim"),
        text.times(None if card.first_token_load is None else card.first_token_load.headroom),
        text.count(card.running if router is None else router.active),
        text.count(card.waiting if router is None else router.waiting),
        text.rate(card.generation_rate),
        first,
        between,
        _bar(None if kv is None else kv.usage),
        text.rate(None if kv is None else kv.headroom_requests),
        text.percent(card.saturation),
        _why(card),
    )


def _gpu_row(card: GpuCard) -> tuple[Text | str, ...]:
    return (
        _state(card),
        plain(card.gpu or card.source.target),
        Text(plain(f"{card.name} {card.profile}".strip()), "dim"),
        text.percent(card.utilization),
        _bar(None if not card.total or card.free is None else 1 - card.free / card.total),
        text.size(card.free),
        text.UNKNOWN if card.power is None else f"{card.power:.0f} W",
        text.UNKNOWN if card.temperature is None else f"{card.temperature:.0f} °C",
        _why(card),
    )


def _p95(card: EngineCard) -> tuple[Text, Text]:
    """The 95th percentiles of first tokens and of those between; red beyond their objectives."""
    thresholds = {each.name: each.threshold for each in card.objectives}
    shown = {"ttft": Text(text.UNKNOWN), "inter_token_latency": Text(text.UNKNOWN)}
    for latency in card.latencies:
        objective = text.OBJECTIVES.get(latency.metric, "")
        shown[objective] = _quantile(latency, thresholds.get(objective))
    return shown["ttft"], shown["inter_token_latency"]


def _quantile(latency: Latency, threshold: float | None) -> Text:
    found = text.p95(latency)
    if found is None:
        return Text("no traffic", "dim")
    return Text(text.quantile(found), STYLES[Level.BAD] if text.later(found, threshold) else "")


def _bar(share: float | None) -> Text:
    if share is None:
        return Text(text.UNKNOWN)
    full = round(min(max(share, 0.0), 1.0) * BAR)
    return Text.assemble(("█" * full, "blue"), ("░" * (BAR - full), "dim"), f" {text.percent(share):>4}")
