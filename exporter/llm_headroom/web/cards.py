"""Cards of engines and GPUs as HTML."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from llm_headroom.thresholds import LOAD_HEADROOM_LOW, RISK_BAD, RISK_WARN
from llm_headroom.view import text
from llm_headroom.view.signals import risk_name
from llm_headroom.view.values import Share
from llm_headroom.web.charts import SHORTEST, bar, chart

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llm_headroom.view.values import (
        EngineCard,
        GpuCard,
        KvCache,
        Latency,
        Line,
        Load,
        Missing,
        Objective,
        Risk,
        Router,
        Source,
        Trouble,
    )

ENGINE_CHARTS: Final = (
    ("Requests", (("running", "running"), ("waiting", "waiting")), ""),
    ("Active requests", (("active", "running"),), ""),
    ("Tokens/s", (("generation_rate", "running"), ("prompt_rate", "prompt")), ""),
    ("KV cache", (("kv_usage", "kv"),), "ratio"),
)
"""Charts of a card: title, the lines with what people call them, and the unit."""
GPU_CHARTS: Final = (
    ("Utilisation", (("utilization", "busy"),), "ratio"),
    ("Memory used", (("memory_used", "kv"),), "bytes"),
    ("Power", (("power", "power"),), "watts"),
)
LINE_NAMES: Final = {
    "running": "running",
    "waiting": "waiting",
    "generation_rate": "generated",
    "prompt_rate": "prompt",
}
PART_NAMES: Final = {
    "weights": "weights",
    "kv_used": "KV used",
    "kv_evictable": "KV evictable",
    "kv_free": "KV free",
    "kv_cache": "KV cache",
    "graph": "graphs",
    "model": "model",
    "other": "other",
    "total": "total",
    "device": "on GPUs",
}
OBJECTIVE_NAMES: Final = {"ttft": "TTFT", "inter_token_latency": "Inter-token", "request_duration": "Duration"}


def engine(card: EngineCard, now: float) -> str:
    """The card of an engine's model."""
    source = card.source
    parts = [
        _head(card.model or source.target, _about(card, now), card.level),
        _troubles(card.troubles),
        _down(source, now),
    ]
    if source.up:
        numbers = _router(card.router) if card.router is not None else _traffic(card)
        parts += [
            _load(card.load),
            _numbers(numbers),
            "" if card.kv is None else _kv_cache(card.kv),
            _model_memory(card, now),
            _latencies(card.latencies, card),
            _charts(ENGINE_CHARTS, card.lines, card.ages),
            _risks(card.risks),
            _objectives(card.objectives),
            _missing(card.missing),
        ]
    return _card(card.id, card.level, parts)


def gpu(card: GpuCard, now: float) -> str:
    """The card of a GPU."""
    source = card.source
    title = f"GPU {card.gpu}" if card.gpu else "GPUs"
    name = " ".join(part for part in (card.name, card.profile) if part)
    about = [*([escape(name)] if name else []), f"{ago(source.taken, now)} ago"]
    parts = [_head(title, about, card.level), _troubles(card.troubles), _down(source, now)]
    if source.up:
        power = "" if card.power_limit is None else f"of {card.power_limit:.0f} W"
        numbers = [
            ("Utilisation", text.percent(card.utilization), ""),
            ("Power", text.UNKNOWN if card.power is None else f"{card.power:.0f} W", power),
            ("Temperature", text.UNKNOWN if card.temperature is None else f"{card.temperature:.0f} °C", ""),
            ("Memory free", text.size(card.free), f"of {text.size(card.total)}"),
        ]
        parts += [
            _numbers(numbers),
            _gpu_memory(card),
            _charts(GPU_CHARTS, card.lines, card.ages, {"bytes": card.total, "watts": card.power_limit}),
            _risks(card.risks),
            _missing(card.missing),
        ]
    return _card(card.id, card.level, parts)


def ago(at: float, now: float) -> str:
    """How long ago something was; the page's script keeps it going."""
    return f'<time data-at="{at:.3f}">{text.span(max(now - at, 0.0))}</time>'


def _card(identity: str, level: str, parts: Iterable[str]) -> str:
    return f'<article class="card {level}" data-id="{escape(identity)}">{"".join(parts)}</article>'


def _head(title: str, about: Sequence[str], level: str) -> str:
    return (
        f'<header><h3><span class="dot {level}"></span>{escape(title)}</h3>'
        f'<p class="about">{" · ".join(about)}</p></header>'
    )


def _about(card: EngineCard, now: float) -> list[str]:
    source = card.source
    about = [escape(f"{source.title} {source.version}".strip())]
    if card.model:
        about.append(escape(source.target))
    return [*about, f"{ago(source.taken, now)} ago"]


def _troubles(troubles: Sequence[Trouble]) -> str:
    if not troubles:
        return ""
    items = "".join(f'<li class="{each.level}">{escape(each.text)}</li>' for each in troubles)
    return f'<ul class="troubles">{items}</ul>'


def _down(source: Source, now: float) -> str:
    parts = []
    if source.error:
        parts.append(f'<p class="error">{escape(source.error)}</p>')
        last = "never yet" if source.last_success is None else f"{ago(source.last_success, now)} ago"
        parts.append(f'<p class="note">Last collection that succeeded: {last}</p>')
    parts += [f'<p class="warning">{escape(warning)}</p>' for warning in source.warnings]
    return "".join(parts)


def _load(loads: Sequence[Load]) -> str:
    """How much more the engine takes: the first thing to know of it."""
    parts = []
    for each in loads:
        name = escape(OBJECTIVE_NAMES.get(each.objective, each.objective))
        level = "bad" if each.headroom < 1.0 else "warn" if each.headroom < LOAD_HEADROOM_LOW else ""
        sustainable = "" if each.sustainable is None else f", {text.rate(each.sustainable)} requests/s"
        doubt = "; suspect" if each.suspect else ""
        parts.append(f'{name}: <b class="{level}">{escape(text.takes(each))}</b>{sustainable}{doubt}')
    return _line("Load", parts)


def _traffic(card: EngineCard) -> list[tuple[str, str, str]]:
    limit = "" if card.limit is None else f"of {text.count(card.limit)}"
    replicas = f"{card.replicas} replicas" if card.replicas > 1 else ""
    told = (card.running, card.waiting, card.generation_rate, card.prompt_rate)
    if all(value is None for value in told):
        return []
    return [
        ("Running", text.count(card.running), limit or replicas),
        ("Waiting", text.count(card.waiting), ""),
        ("Generated", text.rate(card.generation_rate), "tokens/s"),
        ("Prompt", text.rate(card.prompt_rate), "tokens/s"),
    ]


def _router(router: Router) -> list[tuple[str, str, str]]:
    healthy = "" if router.healthy is None else f"{text.count(router.healthy)} healthy"
    numbers = (
        ("Active", router.active, text.count(router.active), "requests"),
        ("Waiting", router.waiting, text.count(router.waiting), "requests"),
        ("Workers", router.workers, text.count(router.workers), healthy),
        ("Requests", router.request_rate, text.rate(router.request_rate), "per second"),
    )
    return [(name, shown, unit) for name, value, shown, unit in numbers if value is not None]


def _numbers(numbers: Sequence[tuple[str, str, str]]) -> str:
    if not numbers:
        return ""
    items = "".join(
        f"<div><dt>{name}</dt><dd>{value}{f' <small>{escape(unit)}</small>' if unit else ''}</dd></div>"
        for name, value, unit in numbers
    )
    return f'<dl class="numbers">{items}</dl>'


def _kv_cache(kv: KvCache) -> str:
    usage = kv.usage
    said = [("kv-used", "used", kv.used), ("kv-evictable", "evictable", kv.evictable), ("free", "free", kv.free)]
    whole = kv.capacity
    if whole:
        shares = [(kind, (value or 0.0) / whole) for kind, _, value in said if kind != "free"]
    else:
        shares = [("kv-used", usage or 0.0)]
    legend = _legend((kind, name, text.count(value)) for kind, name, value in said if value is not None)
    of = "" if whole is None else f" of {text.count(whole)} tokens"
    notes = []
    if kv.worst is not None:
        notes.append(f"fullest replica <b>{text.percent(kv.worst)}</b>")
    if kv.peak is not None:
        notes.append(f"peak of the last minute <b>{text.percent(kv.peak)}</b>")
    headroom = []
    if kv.headroom_requests is not None:
        headroom.append(f"<b>{text.count(kv.headroom_requests)}</b> more requests")
    if kv.headroom_tokens is not None:
        ratio = "" if kv.headroom_ratio is None else f" ({text.percent(kv.headroom_ratio)})"
        headroom.append(f"<b>{text.count(kv.headroom_tokens)}</b> tokens{ratio}")
    if kv.exhaustion_seconds is not None:
        headroom.append(f'full in <b class="warn">{text.span(kv.exhaustion_seconds)}</b>')
    drawn = bar(shares, f"KV cache: {text.percent(usage)} used")
    lines = _line("Headroom", headroom) + _line("", notes)
    return _section("KV cache", f"{text.percent(usage)}{of}", drawn + legend + lines, "memory")


def _section(title: str, about: str, inside: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f"<section{named}><h4>{title} <span>{about}</span></h4>{inside}</section>"


def _legend(items: Iterable[tuple[str, str, str]]) -> str:
    """What colours stand for: each with its class, its name, and its value if it has one."""
    entries = "".join(
        f'<li><i class="{kind}"></i>{name}{f" <b>{value}</b>" if value else ""}</li>' for kind, name, value in items
    )
    return f'<ul class="legend">{entries}</ul>' if entries else ""


def _line(name: str, parts: Sequence[str]) -> str:
    if not parts:
        return ""
    return f'<p class="note">{f"{name}: " if name else ""}{" · ".join(f"<span>{part}</span>" for part in parts)}</p>'


def _model_memory(card: EngineCard, now: float) -> str:
    if card.loaded is not False and not card.memory and card.offload is None:
        return ""
    notes = []
    if card.loaded is not None and (card.offload is not None or not card.loaded):
        notes.append("in memory" if card.loaded else "not loaded")
    if card.offload is not None and card.loaded is not False:
        notes.append(f"<b>{text.percent(card.offload)}</b> on GPUs")
    if card.expires is not None:
        due = f"in <b>{text.span(card.expires - now)}</b>" if card.expires > now else "now"
        notes.append(f"unloaded {due} if idle")
    total = next((share.bytes for share in card.memory if share.name == "total"), None)
    drawn = ""
    if card.offload is not None and total:
        drawn = bar([("used", card.offload)], f"{text.percent(card.offload)} of the model on GPUs")
    legend = _parts([share for share in card.memory if share.name not in ("total", "device")])
    said = "" if total is None else text.size(total)
    return _section("Model memory", said, drawn + legend + _line("", notes), "memory")


def _parts(shares: Sequence[Share]) -> str:
    return _legend(
        (escape(each.name.replace("_", "-")), escape(PART_NAMES.get(each.name, each.name)), text.size(each.bytes))
        for each in shares
        if each.bytes
    )


def _gpu_memory(card: GpuCard) -> str:
    if not card.total or card.used is None:
        return ""
    # Without any attribution, what is used is used by nobody in particular.
    parts = list(card.parts) or [Share("used", card.used)]
    if card.parts and card.unattributed is not None:
        parts.append(Share("unattributed", card.unattributed))
    if card.reserved is not None:
        parts.append(Share("reserved", card.reserved))
    shares = [(part.name.replace("_", "-"), part.bytes / card.total) for part in parts]
    if card.free is not None:
        parts.append(Share("free", card.free))
    used = 1 - card.free / card.total if card.free is not None else card.used / card.total
    holders = [f"{escape(share.name)} <b>{text.size(share.bytes)}</b>" for share in card.engines]
    drawn = bar(shares, f"Memory: {text.percent(used)} taken")
    about = f"{text.percent(used)} of {text.size(card.total)}"
    return _section("Memory", about, drawn + _parts(parts) + _line("Engines", holders), "memory")


def _latencies(latencies: Sequence[Latency], card: EngineCard) -> str:
    if not latencies:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(text.latency_name(each))}</th>{_quantiles(each)}</tr>' for each in latencies
    )
    window = text.span(max(each.window for each in latencies))
    slow = [f"<b>{text.percent(each.ratio)}</b> slow in {escape(each.window)}" for each in card.slow]
    ranks = "".join(f'<th scope="col">{rank}</th>' for rank in ("p50", "p95", "p99"))
    table = f"<table><thead><tr><td></td>{ranks}</tr></thead><tbody>{rows}</tbody></table>"
    return _section("Latency", f"last {window}", table + _line("First tokens", slow))


def _quantiles(latency: Latency) -> str:
    if not latency.quantiles:
        return '<td colspan="3" class="dim">no traffic</td>'
    return "".join(f'<td title="{text.bucket(each)}">{text.quantile(each)}</td>' for each in latency.quantiles)


def _charts(
    wanted: Sequence[tuple[str, Sequence[tuple[str, str]], str]],
    lines: Sequence[Line],
    ages: Sequence[float],
    tops: dict[str, float | None] | None = None,
) -> str:
    by_name = {line.name: line.values for line in lines}
    figures = []
    for title, series, unit in wanted:
        drawn = [(kind, by_name[name]) for name, kind in series if name in by_name]
        if not drawn:
            continue
        highest = max((value for _, values in drawn for value in values if value is not None), default=0.0)
        top = 1.0 if unit == "ratio" else (tops or {}).get(unit) or highest
        peak = _amount(highest, unit)
        names = [(kind, LINE_NAMES[name], "") for name, kind in series if name in by_name and len(drawn) > 1]
        label = f"{title} over the last minutes, at most {peak}"
        figures.append(
            f"<figure><figcaption>{title} <span>max {peak}</span></figcaption>"
            f"{chart(drawn, ages, top=top, label=label)}"
            f"{_legend(names)}</figure>"
        )
    if not figures:
        return ""
    span = text.span(max(SHORTEST, *ages))
    return _section("History", f"last {span}", f'<div class="charts">{"".join(figures)}</div>')


def _amount(value: float, unit: str) -> str:
    match unit:
        case "ratio":
            return text.percent(value)
        case "bytes":
            return text.size(value)
        case "watts":
            return f"{value:.0f} W"
        case _:
            return text.count(value)


def _risks(risks: Sequence[Risk]) -> str:
    if not risks:
        return ""
    rows = "".join(
        f"<li><span>{escape(risk_name(risk))}</span>{bar([(_level(risk.value), risk.value)], text.percent(risk.value))}"
        f"<b>{text.percent(risk.value)}</b></li>"
        for risk in risks
    )
    return _section("Risk", "within 5 min", f'<ul class="risks">{rows}</ul>')


def _level(risk: float) -> str:
    return "bad" if risk >= RISK_BAD else "warn" if risk >= RISK_WARN else "good"


def _objectives(objectives: Sequence[Objective]) -> str:
    parts = []
    for each in objectives:
        name = escape(OBJECTIVE_NAMES.get(each.name, each.name))
        within = "" if each.threshold is None else f" ≤ {text.seconds(each.threshold)}"
        missed = each.wanted is not None and each.attained < each.wanted
        parts.append(f'{name}{within} <b class="{"warn" if missed else ""}">{each.attained:.1%}</b>')
    return _line("Objectives", parts)


def _missing(missing: Sequence[Missing]) -> str:
    if not missing:
        return ""
    count = sum(len(each.metrics) for each in missing)
    items = "".join(
        f"<dt>{escape(each.reason)}</dt><dd>{', '.join(f'<code>{escape(name)}</code>' for name in each.metrics)}</dd>"
        for each in missing
    )
    return (
        f"<details><summary>{count} signal{'s' if count > 1 else ''} not told, and why</summary>"
        f"<dl>{items}</dl></details>"
    )
