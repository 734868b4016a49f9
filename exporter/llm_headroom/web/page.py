"""The status page: what is watched, how it goes, and what it says, without Grafana and without scripts."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from llm_headroom import __version__, schema
from llm_headroom.derive import replicas
from llm_headroom.model import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from llm_headroom.model import Metric, Point, Snapshot

PAGE_HEADERS: Final = (
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    ("Cache-Control", "no-store"),
    ("Referrer-Policy", "no-referrer"),
)
DASH: Final = '<span class="dim">–</span>'
REFRESH: Final = 5
"""Seconds after which the page loads itself again."""

_STYLE: Final = """
:root{color-scheme:light dark;--back:#fbfbfa;--card:#fff;--text:#1c1e21;--dim:#667;--line:#e3e5e8;--good:#1a7f4b;
--bad:#c22f2f;--warn:#a86400;--bar:#3b7ddd;--track:#e9ecf1}
@media(prefers-color-scheme:dark){:root{--back:#14161a;--card:#1c1f25;--text:#e6e8eb;--dim:#99a;--line:#2c3038;
--good:#4cc38a;--bad:#ff6b6b;--warn:#e0a94a;--bar:#5b9bf3;--track:#2a2f38}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--text);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:80rem;margin:0 auto;padding:1.5rem 1rem 3rem}
header{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;align-items:baseline;margin-bottom:1.2rem}
h1{font-size:1.35rem;margin:0}h2{font-size:1.02rem;margin:1.8rem 0 .5rem}
nav a{margin-right:.9rem}a{color:var(--bar);text-decoration:none}a:hover{text-decoration:underline}
.dim{color:var(--dim)}.good{color:var(--good)}.bad{color:var(--bad)}.warn{color:var(--warn)}
.table{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:.6rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.5rem .65rem;text-align:left;border-top:1px solid var(--line);vertical-align:top;white-space:nowrap}
thead th{border-top:0;font-weight:600;font-size:.82rem;color:var(--dim)}
td.n,th.n{text-align:right}td.text{white-space:normal;min-width:16rem}
.meter{display:inline-block;width:5rem;height:.5rem;border-radius:.25rem;background:var(--track);overflow:hidden;
margin-left:.5rem;vertical-align:middle}.meter i{display:block;height:100%;background:var(--bar)}
.meter i.warn{background:var(--warn)}.meter i.bad{background:var(--bad)}
p.empty{padding:1rem;margin:0}
"""


def page(snapshots: Sequence[Snapshot], absent: Mapping[str, str], now: float) -> bytes:
    """The page as HTML. `absent` is what was looked for and not found, with the reason; `now` is in unix seconds."""
    engines = [snapshot for snapshot in snapshots if snapshot.engine != "nvml"]
    gpus = [snapshot for snapshot in snapshots if snapshot.engine == "nvml"]
    up = sum(snapshot.health.up for snapshot in snapshots)
    state = f"{up} of {len(snapshots)} sources up" if snapshots else "no sources"
    return "".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f'<meta http-equiv="refresh" content="{REFRESH}"><title>llm-headroom</title>',
            f"<style>{_STYLE}</style></head><body><main>",
            f'<header><h1>llm-headroom</h1><span class="dim">{__version__}</span>',
            f'<span class="{"good" if snapshots and up == len(snapshots) else "warn"}">{state}</span>',
            '<nav><a href="/metrics">Metrics</a><a href="/api/v1/snapshot">JSON</a></nav></header>',
            "<h2>Engines</h2>",
            _sources(engines, now)
            or '<p class="table empty">No engine yet. Name one with <code>--target vllm=http://HOST:8000</code>.</p>',
            _models(engines),
            "<h2>GPUs</h2>",
            _sources(gpus, now) or '<p class="table empty">No GPU.</p>',
            _devices(gpus),
            _absent(absent),
            "</main></body></html>",
        )
    ).encode()


def _absent(absent: Mapping[str, str]) -> str:
    rows = [(_cell(escape(what)), _cell(escape(why), "text dim")) for what, why in sorted(absent.items())]
    table = _table([_head("Where"), _head("Why")], rows)
    return f"<h2>Looked for and not found</h2>{table}" if table else ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    if not body:
        return ""
    return f'<div class="table"><table><thead><tr>{"".join(heads)}</tr></thead><tbody>{body}</tbody></table></div>'


def _head(text: str, kind: str = "") -> str:
    return f'<th class="{kind}" scope="col">{text}</th>'


def _cell(text: str, kind: str = "") -> str:
    return f'<td class="{kind}">{text}</td>'


def _sources(snapshots: Sequence[Snapshot], now: float) -> str:
    heads = [
        _head("Target"),
        _head("Engine"),
        _head("State"),
        _head("Age", "n"),
        _head("Collection", "n"),
        _head("Notes"),
    ]
    rows = []
    for snapshot in snapshots:
        health = snapshot.health
        notes = [*([health.error.message] if health.error else []), *(each.message for each in health.warnings)]
        rows.append(
            (
                _cell(escape(snapshot.target)),
                _cell(f'{escape(snapshot.engine or "unknown")} <span class="dim">{escape(health.version)}</span>'),
                _cell("up" if health.up else "down", "good" if health.up else "bad"),
                _cell(f"{max(now - snapshot.taken, 0):.0f} s", "n"),
                _cell(f"{health.duration_seconds * 1000:.1f} ms", "n"),
                _cell(escape("; ".join(notes)), f"text {'' if health.up else 'bad'}"),
            )
        )
    return _table(heads, rows)


def _models(snapshots: Sequence[Snapshot]) -> str:
    heads = [
        _head("Target"),
        _head("Model"),
        _head("Running", "n"),
        _head("Waiting", "n"),
        _head("KV cache", "n"),
        _head("KV tokens", "n"),
        _head("Mean TTFT", "n"),
        _head("Generated", "n"),
        _head("Memory", "n"),
        _head("On GPU", "n"),
    ]
    rows = []
    for snapshot in snapshots:
        models: dict[str, dict[str, float | Histogram]] = {}
        for point in replicas.combined(snapshot.points):
            name, kind = point.series.label("model"), point.series.label("kind")
            if name and not point.series.metric.name.startswith("llm_router_"):
                models.setdefault(name, {}).setdefault(f"{point.series.metric.name}{kind and '/'}{kind}", point.value)
        rows += [_model_row(snapshot.target, name, said) for name, said in sorted(models.items())]
    table = _table(heads, rows)
    return f"<h2>Models</h2>{table}" if table else ""


def _model_row(target: str, model: str, said: dict[str, float | Histogram]) -> tuple[str, ...]:
    def number(metric: Metric, form: Callable[[float], str], kind: str = "") -> str:
        value = said.get(f"{metric.name}{kind and '/'}{kind}")
        return form(value) if isinstance(value, float) else DASH

    ttft = said.get(schema.TIME_TO_FIRST_TOKEN.name)
    mean = f"{ttft.sum / ttft.count:.2f} s" if isinstance(ttft, Histogram) and ttft.count else DASH
    capacity = number(schema.KV_CACHE_CAPACITY, lambda tokens: f' <span class="dim">of {_count(tokens)}</span>')
    state = "" if said.get(schema.MODEL_LOADED.name, 1.0) else ' <span class="dim">not loaded</span>'
    running, limit = number(schema.REQUESTS_RUNNING, _count), said.get(schema.REQUESTS_RUNNING_LIMIT.name)
    most = f' <span class="dim">of {limit:.0f}</span>' if isinstance(limit, float) else ""
    return (
        _cell(escape(target)),
        _cell(escape(model) + state),
        _cell(running + most, "n"),
        _cell(number(schema.REQUESTS_WAITING, _count), "n"),
        _cell(number(schema.KV_CACHE_USAGE, _meter), "n"),
        _cell(number(schema.KV_CACHE_USED, _count) + (capacity if capacity != DASH else ""), "n"),
        _cell(mean, "n"),
        _cell(number(schema.GENERATION_TOKENS, _count), "n"),
        _cell(number(schema.MODEL_MEMORY, _bytes, "total"), "n"),
        _cell(number(schema.MODEL_OFFLOAD, "{:.0%}".format), "n"),
    )


def _devices(snapshots: Sequence[Snapshot]) -> str:
    heads = [
        _head("GPU"),
        _head("Name"),
        _head("Memory used", "n"),
        _head("Free", "n"),
        _head("Busy", "n"),
        _head("Power", "n"),
        _head("Temperature", "n"),
    ]
    devices: dict[tuple[str, str], dict[str, float]] = {}
    names: dict[tuple[str, str], str] = {}
    for point in _points(snapshots):
        key = (point.series.label("gpu"), point.series.label("uuid"))
        if key == ("", "") or not isinstance(point.value, float):
            continue
        devices.setdefault(key, {}).setdefault(point.series.metric.name, point.value)
        if point.series.metric is schema.GPU_INFO:
            names[key] = point.series.label("name")
    rows = []
    for key, said in sorted(devices.items()):
        total, used = said.get(schema.GPU_MEMORY_TOTAL.name), said.get(schema.GPU_MEMORY_USED.name)
        share = _meter(used / total) if total and used is not None else DASH
        rows.append(
            (
                _cell(escape(key[0])),
                _cell(f'{escape(names.get(key, ""))} <span class="dim">{escape(key[1])}</span>'),
                _cell(share, "n"),
                _cell(_or_dash(said.get(schema.GPU_MEMORY_FREE.name), _bytes), "n"),
                _cell(_or_dash(said.get(schema.GPU_UTILIZATION.name), _meter), "n"),
                _cell(_or_dash(said.get(schema.GPU_POWER.name), lambda watts: f"{watts:.0f} W"), "n"),
                _cell(_or_dash(said.get(schema.GPU_TEMPERATURE.name), lambda degrees: f"{degrees:.0f} °C"), "n"),
            )
        )
    return _table(heads, rows)


def _points(snapshots: Sequence[Snapshot]) -> Iterable[Point]:
    return (point for snapshot in snapshots for point in snapshot.points)


def _or_dash(value: float | None, form: Callable[[float], str]) -> str:
    return DASH if value is None else form(value)


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _meter(value: float) -> str:
    level = "bad" if value >= 0.98 else "warn" if value >= 0.9 else ""  # noqa: PLR2004 - only a colour
    width = min(max(value, 0.0), 1.0) * 100
    return f'{value:.0%}<span class="meter"><i class="{level}" style="width:{width:.0f}%"></i></span>'


def _bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:  # noqa: PLR2004 - the step between the units
            return f"{value:.1f} {unit}" if unit != "B" else f"{value:.0f} B"
        value /= 1024
    return f"{value:.1f} TiB"
