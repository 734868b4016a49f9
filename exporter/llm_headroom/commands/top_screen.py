"""What `top` shows: a view as tables of the terminal's size, and what the reader has chosen to see of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from rich.console import Console, Group
from rich.styled import Styled
from rich.text import Text

from llm_headroom.commands.top_table import Column, layout, table, whole
from llm_headroom.model import Level
from llm_headroom.view import text
from llm_headroom.view.text import plain
from llm_headroom.view.values import EngineCard, GpuCard, standing, urgency

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import RenderableType
    from rich.table import Table

    from llm_headroom.view.values import Latency, Load, View


Card = TypeVar("Card", EngineCard, GpuCard)
BAR: Final = 8
SHORT_BAR: Final = 4
"""The length of a bar in a terminal that is narrower than `WIDE`."""
WIDE: Final = 100
STYLES: Final = {Level.GOOD: "green", Level.WARN: "yellow", Level.BAD: "bold red", Level.UNKNOWN: "magenta"}
SORTS: Final = ("state", "takes", "target", "model", "waiting", "first tokens", "KV cache", "saturation")
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
TAKES    load headroom: how many times its present traffic the engine can take within its objectives;
         known after ten minutes with requests
TTFT, ITL time to first token, inter-token latency; P95: 95 of 100 are faster
KV FITS  how many more typical requests fit into the KV cache
SAT      saturation: at 100% first tokens begin to miss the TTFT objective
–        not known; never 0
"""


MOST_SAID: Final = 3
"""Cards in trouble whose reasons stand above the tables, where they have no room for them."""
ROOMY: Final = 12
"""Lines of a terminal from which on there is room for that."""
ENGINE_COLUMNS: Final = (
    Column("STATE", 0, 9, number=False),
    Column("TARGET", 0, 15, number=False, cut=True),
    Column("MODEL", 5, 15, number=False, cut=True),
    Column("ENGINE", 13, 8, number=False, cut=True),
    Column("TAKES", 1, 6),
    Column("RUN", 6, 4),
    Column("WAIT", 2, 4),
    Column("TOK/S", 8, 5),
    Column("TTFT P95", 3, 8),
    Column("ITL P95", 9, 7),
    Column("KV CACHE", 4, 9),
    Column("KV FITS", 10, 7),
    Column("SAT", 12, 4),
    Column("WHY", 11, 40, number=False, cut=True),
)
GPU_COLUMNS: Final = (
    Column("STATE", 0, 9, number=False),
    Column("GPU", 0, 3, number=False, cut=True),
    Column("NAME", 6, 10, number=False, cut=True),
    Column("BUSY", 2, 4),
    Column("MEMORY", 1, 9),
    Column("FREE", 3, 8),
    Column("POWER", 5, 5),
    Column("TEMP", 4, 5),
    Column("WHY", 11, 40, number=False, cut=True),
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
    engine_table, engines_told = _drawn(engines, ENGINE_COLUMNS, _engine_row, width)
    gpu_table, gpus_told = _drawn(gpus, GPU_COLUMNS, _gpu_row, width)
    said: list[Text] = []
    pages = _pages(engines, gpus, chosen.page, height)
    wrong = [card for card in _worst_first(view) if card.level is not Level.GOOD][:MOST_SAID]
    seen = engines_told and gpus_told and all(card in pages.engines or card in pages.gpus for card in wrong)
    if height >= ROOMY and not seen:
        said = _reasons(wrong, width, height // 3)
        pages = _pages(engines, gpus, chosen.page, height - len(said))
    parts: list[RenderableType] = [_title(view, problem, now, worst=height < ROOMY), *said]
    as_it_was = "dim" if problem else ""
    if engines:
        parts.append(Styled(engine_table(pages.engines), as_it_was))
    if gpus:
        parts.append(Styled(gpu_table(pages.gpus), as_it_was))
    if not engines and not gpus:
        parts.append(Text("Nothing fits the filter." if chosen.words else "No engine and no GPU yet.", style="dim"))
    counts = (len(view.engines), len(engines), len(pages.engines)), (len(view.gpus), len(gpus), len(pages.gpus))
    parts.append(_footer(chosen, counts, pages.number))
    return Group(*parts)


def report(view: View, problem: str, now: float, *, width: int) -> RenderableType:
    """Everything at once, the worst first, with whole reasons and errors and what was not found."""
    engines, gpus = _wanted(view.engines, Chosen()), _wanted(view.gpus, Chosen())
    engine_table, engines_told = _drawn(engines, ENGINE_COLUMNS, _engine_row, width)
    gpu_table, gpus_told = _drawn(gpus, GPU_COLUMNS, _gpu_row, width)
    parts: list[RenderableType] = [_title(view, problem, now)]
    if not (engines_told and gpus_told):
        parts += _reasons([card for card in _worst_first(view) if card.level is not Level.GOOD], width)
    if engines:
        parts.append(engine_table(engines))
    if gpus:
        parts.append(gpu_table(gpus))
    if not engines and not gpus:
        parts.append(Text("No engine and no GPU yet.", style="dim"))
    sources = [*(card.source for card in view.engines), *(card.source for card in view.gpus)]
    lines = [Text(plain(f"{source.target}: {source.error}"), "red") for source in sources if source.error]
    lines += [Text(plain(f"not found: {each.what}: {each.why}"), "dim") for each in view.absent]
    for line in lines:
        line.overflow = "ignore"
    return Group(*parts, *lines)


def _drawn(
    cards: Sequence[Card], columns: Sequence[Column], row: Callable[[Card, int], Sequence[Text | str]], width: int
) -> tuple[Callable[[Sequence[Card]], Table], bool]:
    """What draws some of the cards, with the columns that all of them have room for; and whether their reasons have."""
    bar = BAR if width >= WIDE else SHORT_BAR

    def rows(some: Sequence[Card]) -> list[list[Text]]:
        return [[Text(each) if isinstance(each, str) else each for each in row(card, bar)] for card in some]

    every = rows(cards)
    shown = layout(columns, every, width)
    return lambda some: table(columns, rows(some), shown), whole(columns, every, shown, "WHY")


def _reasons(wrong: Sequence[EngineCard | GpuCard], width: int, most: int | None = None) -> list[Text]:
    """Who is in trouble and why; a line each where all of it takes more than so many lines."""
    said = [
        Text(f"{text.STATE_MARKS[card.level]} {_who(card)} {card.state.name}: {_why(card).plain}", STYLES[card.level])
        for card in wrong
    ]
    lines = [line for each in said for line in each.wrap(Console(), width)]
    if most is None or len(lines) <= most:
        return lines
    for each in said:
        each.truncate(width, overflow="ellipsis")
    return said


def _worst_first(view: View) -> list[EngineCard | GpuCard]:
    return sorted([*view.engines, *view.gpus], key=lambda card: urgency(card.state))


def _who(card: EngineCard | GpuCard) -> str:
    return plain(f"GPU {card.gpu}" if isinstance(card, GpuCard) else card.source.target)


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
        return standing(card)
    match name:
        case "takes":
            load = card.least_load
            return None if load is None else (load.headroom,)
        case "target":
            return (card.source.target,)
        case "model":
            return (card.model,)
        case "waiting":
            value = card.queued
        case "first tokens":
            value = text.p95_seconds(card.latencies)
        case "KV cache":
            value = None if card.kv is None else card.kv.usage
        case _:
            value = card.saturation
    return None if value is None else (value,)


class Pages(NamedTuple):
    """The engines and the GPUs of a page, or of the last one where there are fewer; and how many pages there are."""

    engines: list[EngineCard]
    gpus: list[GpuCard]
    number: int


def _pages(engines: list[EngineCard], gpus: list[GpuCard], page: int, height: int) -> Pages:
    """What fits besides title, footer and heads."""
    lines = max(height - 2 - bool(engines) - bool(gpus), 2)
    gpu_lines = min(len(gpus), max(lines // 3, 1)) if engines else min(len(gpus), lines)
    shown_engines, engine_pages = _page(engines, max(lines - gpu_lines, 1), page)
    shown_gpus, gpu_pages = _page(gpus, max(gpu_lines, 1), page)
    return Pages(shown_engines, shown_gpus, max(engine_pages, gpu_pages))


def _page(cards: list[Card], lines: int, page: int) -> tuple[list[Card], int]:
    """The cards of a page, or of the last one where there are fewer; and how many pages there are."""
    pages = max(-(-len(cards) // lines), 1)
    page = min(page, pages - 1)
    return cards[page * lines : (page + 1) * lines], pages


def _title(view: View, problem: str, now: float, *, worst: bool = False) -> Text:
    """How many are in which state of attention, perhaps the worst by name; first of all why nothing newer is known."""
    cards = _worst_first(view)
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
    if worst and cards and cards[0].level is not Level.GOOD:
        state = cards[0].state
        title.append(f"  {_who(cards[0])} {state.name}: {plain(state.reason)}", STYLES[cards[0].level])
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


def _state(card: EngineCard | GpuCard) -> Text:
    return Text(f"{text.STATE_MARKS[card.level]} {card.state.name}", STYLES[card.level])


def _why(card: EngineCard | GpuCard) -> Text:
    said = [card.state.reason] if card.level is not Level.GOOD and card.state.reason else []
    said += card.notes
    return Text(plain("; ".join(said)), STYLES[card.level])


def _engine_row(card: EngineCard, bar: int) -> tuple[Text | str, ...]:
    source, kv, router = card.source, card.kv, card.router
    first, between = _p95(card)
    return (
        _state(card),
        plain(source.target),
        plain(card.model),
        Text(plain(f"{source.title} {source.version}".strip()), "dim"),
        _takes(card.least_load),
        text.count(card.running if router is None else router.active),
        text.count(card.queued),
        text.rate(card.generation_rate),
        first,
        between,
        _bar(None if kv is None else kv.usage, bar),
        text.rate(None if kv is None else kv.headroom_requests),
        text.percent(card.saturation),
        _why(card),
    )


def _gpu_row(card: GpuCard, bar: int) -> tuple[Text | str, ...]:
    return (
        _state(card),
        plain(card.gpu or card.source.target),
        Text(plain(card.full_name.removeprefix("NVIDIA ")), "dim"),
        text.percent(card.utilization),
        _bar(card.taken, bar),
        text.size(card.free),
        text.watts(card.power),
        text.celsius(card.temperature),
        _why(card),
    )


def _p95(card: EngineCard) -> tuple[Text, Text]:
    """The 95th percentiles of first tokens and of those between; red beyond their objectives."""
    shown = {"ttft": Text(text.UNKNOWN), "inter_token_latency": Text(text.UNKNOWN)}
    for latency in card.latencies:
        objective = text.OBJECTIVES.get(latency.metric, "")
        shown[objective] = _quantile(latency, card.thresholds.get(objective))
    return shown["ttft"], shown["inter_token_latency"]


def _quantile(latency: Latency, threshold: float | None) -> Text:
    found = text.p95(latency)
    if found is None:
        return Text("no traffic", "dim")
    return Text(text.quantile(found), STYLES[Level.BAD] if text.later(found, threshold) else "")


def _takes(load: Load | None) -> Text:
    if load is None:
        return Text(text.UNKNOWN)
    styles = {"bad": STYLES[Level.BAD], "warn": STYLES[Level.WARN]}
    return Text(text.times(load.headroom), styles.get(text.urgency_of(load), ""))


def _bar(share: float | None, size: int) -> Text:
    if share is None:
        return Text(text.UNKNOWN)
    full = round(min(max(share, 0.0), 1.0) * size)
    return Text.assemble(("█" * full, "blue"), ("░" * (size - full), "dim"), f" {text.percent(share):>4}")
