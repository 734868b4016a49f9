"""Cards of engines and GPUs as HTML."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlencode

from llm_headroom import schema
from llm_headroom.model import Level
from llm_headroom.view import text
from llm_headroom.view.board import UNSHOWN
from llm_headroom.view.signals import risk_name, risk_word
from llm_headroom.view.values import Share
from llm_headroom.web.charts import bar
from llm_headroom.web.figures import ENGINE_FIGURES, GPU_FIGURES, Past, history
from llm_headroom.web.look import escape, key
from llm_headroom.web.summary import ago, mark

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llm_headroom.config.people import Links
    from llm_headroom.view.day import Minute
    from llm_headroom.view.values import (
        EngineCard,
        GpuCard,
        KvCache,
        Latency,
        Missing,
        Objective,
        Risk,
        Router,
        Source,
    )
    from llm_headroom.web.look import Look

PART_NAMES: Final = {
    "weights": "weights",
    "kv_used": "KV used",
    "kv_evictable": "KV reclaimable",
    "kv_free": "KV free",
    "kv_cache": "KV cache",
    "graph": "graphs",
    "model": "model",
    "other": "other",
    "total": "total",
    "device": "on GPUs",
}
OBJECTIVE_NAMES: Final = {"ttft": "TTFT", "inter_token_latency": "Inter-token", "request_duration": "Duration"}


_LOAD: Final = ("Load headroom", "times its present traffic")
RECLAIMABLE: Final = "Reusable prefixes of earlier prompts. Freed when a request needs the memory."


class Around(NamedTuple):
    """What a card is drawn with besides its own values: the time, what the reader wants to see, the day, links."""

    now: float
    look: Look
    minutes: Sequence[Minute]
    links: Links


def engine(card: EngineCard, around: Around) -> str:
    """The card of an engine's model."""
    source = card.source
    named = [] if not card.model else [f"target <b>{escape(source.target)}</b>"]
    about = [escape(f"{source.title} {source.version}".strip()), *named, *_labels(source)]
    parts = [
        _head(card, card.model or source.target, about, around),
        _notes(card.notes),
        _down(card, around.now),
    ]
    if source.up:
        parts += [
            _load(card),
            _traffic(card) if card.router is None else _numbers(_router(card.router)),
            "" if card.kv is None else _kv_cache(card.kv),
            _model_memory(card, around.now),
            _latencies(card),
        ]
    past = Past(card.lines, card.ages, around.minutes, around.now, around.look.day, {})
    parts.append(history(ENGINE_FIGURES, past, _other(around)))
    if source.up:
        parts += [_risks(card.risks), _objectives(card.objectives), _missing(card.missing)]
    parts.append(_links(card, around.links))
    return _card(card, parts)


def gpu(card: GpuCard, around: Around) -> str:
    """The card of a GPU."""
    source = card.source
    title = f"GPU {card.gpu}" if card.gpu else "GPUs"
    parts = [
        _head(card, title, [escape(card.full_name)] if card.full_name else [], around),
        _notes(card.notes),
        _down(card, around.now),
    ]
    if source.up:
        power = "" if card.power_limit is None else f"of {text.watts(card.power_limit)}"
        numbers = [
            ("Utilisation", text.percent(card.utilization), ""),
            ("Power", text.watts(card.power), power),
            ("Temperature", text.celsius(card.temperature), ""),
            ("Memory free", text.size(card.free), f"of {text.size(card.total)}"),
        ]
        parts += [_numbers(numbers), _gpu_memory(card)]
    tops = {"bytes": card.total, "watts": card.power_limit}
    past = Past(card.lines, card.ages, around.minutes, around.now, around.look.day, tops)
    parts.append(history(GPU_FIGURES, past, _other(around)))
    if source.up:
        parts += [_risks(card.risks), _missing(card.missing)]
    return _card(card, parts)


def _other(around: Around) -> str:
    return around.look.address(day=not around.look.day)


def unshown(card: EngineCard | GpuCard, *, many: bool) -> str:
    """In place of a card that cannot be drawn, or of its row where there are many."""
    said = f"{escape(card.source.target)}: {UNSHOWN}"
    if many:
        return f'<tbody data-id="{key(card)}"><tr><td class="bad" colspan="8">{said}</td></tr></tbody>'
    own = key(card)
    return f'<article class="card bad" id="{own}" data-id="{own}"><p>{said}</p></article>'


def _card(card: EngineCard | GpuCard, parts: Iterable[str]) -> str:
    own = key(card)
    return f'<article class="card {card.level}" id="{own}" data-id="{own}">{"".join(parts)}</article>'


def _head(card: EngineCard | GpuCard, title: str, about: Sequence[str], around: Around) -> str:
    """The name, and the state with its reason, which holds the numbers."""
    state = card.state
    since = "" if state.since is None else f" for {ago(state.since, around.now)}"
    reason = f" · {escape(state.reason)}" if state.reason else ""
    said = " · ".join([*about, f"read {ago(card.source.taken, around.now)} ago"])
    return (
        f'<header><h3>{escape(title)}</h3><p class="about">{said}</p>'
        f'<p class="state {state.level}">{mark(state.level)}<b>{escape(state.name)}</b>{since}{reason}</p></header>'
    )


def _labels(source: Source) -> list[str]:
    return [f"{escape(name)}=<b>{escape(value)}</b>" for name, value in source.labels]


def _links(card: EngineCard, links: Links) -> str:
    found = []
    if links.runbooks and card.level is not Level.GOOD:
        found.append(f'<a href="{escape(links.runbooks)}">What to do</a>')
    if links.grafana:
        names = {"engine": card.source.engine, "model": card.model, "target": card.source.target}
        query = urlencode({f"var-{name}": value for name, value in names.items() if value}, errors="replace")
        found.append(f'<a href="{escape(links.grafana)}?{escape(query)}">Dashboard</a>')
    if links.prometheus:
        selector = json.dumps(card.source.target, ensure_ascii=False)
        query = urlencode({"g0.expr": f"{{target={selector}}}", "g0.tab": "1"}, errors="replace")
        found.append(f'<a href="{escape(links.prometheus)}/graph?{escape(query)}">Series</a>')
    return f'<p class="note">{" · ".join(found)}</p>' if found else ""


def _notes(notes: Sequence[str]) -> str:
    return f'<ul class="notes">{"".join(f"<li>{escape(each)}</li>" for each in notes)}</ul>' if notes else ""


def _down(card: EngineCard | GpuCard, now: float) -> str:
    """Why nothing could be read, where the state has not said so yet; and what could be read in part only."""
    source, parts = card.source, []
    if source.error:
        if source.error not in card.state.reason:
            parts.append(f'<p class="error">{escape(source.error)}</p>')
        last = "never yet" if source.last_success is None else f"{ago(source.last_success, now)} ago"
        parts.append(f'<p class="note">Last collection that succeeded: {last}</p>')
    parts += [f'<p class="warning">{escape(warning)}</p>' for warning in source.warnings]
    return "".join(parts)


def _load(card: EngineCard) -> str:
    """How much more the engine takes: the first thing to know of it. Where that is not known, why."""
    if not card.load:
        why = next((each.reason for each in card.missing if schema.LOAD_HEADROOM.name in each.metrics), "")
        note = f'<p class="note">Not known: {escape(why.removeprefix("derived: "))}</p>'
        return _section(*_LOAD, note) if why and card.loaded is not False else ""
    thresholds = card.thresholds
    numbers = []
    for each in card.load:
        within = thresholds.get(each.objective)
        name = escape(OBJECTIVE_NAMES.get(each.objective, each.objective))
        said = [
            *([text.binds(each)] if each.binding else []),
            *([] if each.sustainable is None else [f"{text.rate(each.sustainable)} requests/s"]),
            *(["suspect"] if each.suspect else []),
        ]
        value = f'<b class="{text.urgency_of(each)}">{escape(text.times(each.headroom))}</b>'
        numbers.append((f"{name}{'' if within is None else f' ≤ {text.seconds(within)}'}", value, " · ".join(said)))
    return _section(*_LOAD, _numbers(numbers), "load")


def _traffic(card: EngineCard) -> str:
    """Requests, and apart from them tokens: numbers of one unit in each row."""
    limit = "" if card.limit is None else f"of {text.count(card.limit)}"
    replicas = f"on {card.replicas} replicas" if card.replicas > 1 else ""
    exposed = (card.running, card.waiting, card.generation_rate, card.prompt_rate)
    if all(value is None for value in exposed):
        return ""
    requests = [
        ("Running", text.count(card.running), limit or replicas),
        ("Waiting", text.count(card.waiting), ""),
    ]
    tokens = [
        ("Generated", text.rate(card.generation_rate), ""),
        ("Prompt", text.rate(card.prompt_rate), ""),
    ]
    return (
        f'<div class="pair"><section><h4>Requests</h4>{_numbers(requests)}</section>'
        f"<section><h4>Tokens per second</h4>{_numbers(tokens)}</section></div>"
    )


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
    said = [("kv-used", "used", kv.used), ("kv-evictable", "reclaimable", kv.evictable), ("free", "free", kv.free)]
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
        headroom.append(f"<b>{text.rate(kv.headroom_requests)}</b> more requests")
    if kv.headroom_tokens is not None:
        ratio = "" if kv.headroom_ratio is None else f" ({text.percent(kv.headroom_ratio)})"
        headroom.append(f"<b>{text.count(kv.headroom_tokens)}</b> tokens{ratio}")
    if kv.exhaustion_seconds is not None:
        headroom.append(f'full in <b class="warn">{text.span(kv.exhaustion_seconds)}</b>')
    drawn = bar(shares, f"KV cache: {text.percent(usage)} used")
    legend = legend.replace("reclaimable", f'<abbr title="{RECLAIMABLE}">reclaimable</abbr>')
    lines = _line("Headroom", headroom) + _line("", notes)
    return _section("KV cache", f"{text.percent(usage)}{of}", drawn + legend + lines, "memory")


def _section(title: str, about: str, inside: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f"<section{named}><h4>{title} <span>{about}</span></h4>{inside}</section>"


def _legend(items: Iterable[tuple[str, str, str]]) -> str:
    """What colours stand for: each with its class, its name, and its value."""
    entries = "".join(f'<li><i class="{kind}"></i>{name} <b>{value}</b></li>' for kind, name, value in items)
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
    used = card.used / card.total if card.taken is None else card.taken
    holders = [f"{escape(share.name)} <b>{text.size(share.bytes)}</b>" for share in card.engines]
    drawn = bar(shares, f"Memory: {text.percent(used)} taken")
    about = f"{text.percent(used)} of {text.size(card.total)}"
    return _section("Memory", about, drawn + _parts(parts) + _line("Engines", holders), "memory")


def _latencies(card: EngineCard) -> str:
    """Percentiles, each row in one unit; those beyond the objective say so by colour and mark."""
    if not card.latencies:
        return ""
    thresholds = card.thresholds
    rows = "".join(_latency(each, thresholds.get(text.OBJECTIVES.get(each.metric, ""))) for each in card.latencies)
    window = text.span(max(each.window for each in card.latencies))
    ttft = thresholds.get("ttft")
    than = "the objective" if ttft is None else text.seconds(ttft)
    slow = [
        f'<b class="{"bad" if each.ratio else ""}">{text.percent(each.ratio)}</b> later than {than} '
        f"in {escape(_window(each.window))}"
        for each in card.slow
    ]
    ranks = "".join(f'<th scope="col">{rank}</th>' for rank in ("p50", "p95", "p99", "objective"))
    table = f'<table><thead><tr><th scope="col">Time</th>{ranks}</tr></thead><tbody>{rows}</tbody></table>'
    return _section("Latency", f"last {window}", table + _line("First tokens", slow))


def _window(label: str) -> str:
    """A window as people write it: its label is `60s`."""
    number = label.removesuffix("s")
    return text.span(float(number)) if number.isdecimal() else label


def _latency(latency: Latency, threshold: float | None) -> str:
    unit, shown = text.row(latency)
    name = f"{text.latency_name(latency)}{f', {unit}' if shown or threshold is not None else ''}"
    objective = "" if threshold is None else f"≤ {text.in_unit(threshold, unit)}"
    cells = "".join(
        f'<td class="{"bad" if text.later(value, threshold) else ""}" title="{text.bucket(value)}">{words}</td>'
        for value, words in zip(latency.quantiles, shown, strict=True)
    )
    quiet = '<td colspan="3" class="dim">no traffic</td>'
    return f'<tr><th scope="row">{escape(name)}</th>{cells or quiet}<td class="dim">{objective}</td></tr>'


def _risks(risks: Sequence[Risk]) -> str:
    """Ranks in words: not every risk is a calibrated probability."""
    if not risks:
        return ""
    rows = "".join(
        f"<li><span>{escape(risk_name(risk))}</span>{bar([(f'risk-{risk_word(risk)}', risk.value)], risk_word(risk))}"
        f"<b>{risk_word(risk)}</b></li>"
        for risk in risks
    )
    return _section("Risk", "a forecast, not a fact", f'<ul class="risks">{rows}</ul>')


def _objectives(objectives: Sequence[Objective]) -> str:
    parts = []
    for each in objectives:
        name = escape(OBJECTIVE_NAMES.get(each.name, each.name))
        within = "" if each.threshold is None else f" ≤ {text.seconds(each.threshold)}"
        missed = each.wanted is not None and each.attained < each.wanted
        parts.append(f'{name}{within} <b class="{"warn" if missed else ""}">{text.attained(each.attained)}</b>')
    return _line("Within the objective since start", parts)


def _missing(missing: Sequence[Missing]) -> str:
    if not missing:
        return ""
    count = sum(len(each.metrics) for each in missing)
    items = "".join(
        f"<dt>{escape(each.reason)}</dt><dd>{', '.join(f'<code>{escape(name)}</code>' for name in each.metrics)}</dd>"
        for each in missing
    )
    those = "metrics that are" if count > 1 else "metric that is"
    return f"<details><summary>{count} {those} not there, and why</summary><dl>{items}</dl></details>"
