"""Is everything healthy? The dashboard to open first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.bundle.dashboards.dashboard import Row
from llm_headroom.bundle.dashboards.panel import Column, Query, Steps, above, below, thresholds
from llm_headroom.bundle.dashboards.parts import (
    failed_share,
    finished_requests,
    finished_requests_now,
    lines,
    stat,
    table,
)
from llm_headroom.bundle.dashboards.plan import Plan
from llm_headroom.bundle.dashboards.scope import BY_GPU, BY_MODEL, ENGINES, MODEL, SOURCE, TARGET, Scope
from llm_headroom.thresholds import LOAD_HEADROOM_LOW

if TYPE_CHECKING:
    from llm_headroom.bundle.dashboards.panel import Panel
    from llm_headroom.model import Metric
    from llm_headroom.thresholds import Thresholds

_CHOSEN = "${datasource:queryparam}&${job:queryparam}&${instance:queryparam}&${__url_time_range}"
_CELL = "var-engine=${__data.fields.Engine}&var-target=${__data.fields.Target}"
_TO_ENGINE = f"/d/llm-headroom-engine?{_CELL}&var-model=${{__data.fields.Model}}&{_CHOSEN}"
_TO_TARGET = f"/d/llm-headroom-engine?{_CELL}&{_CHOSEN}"
_TO_KV = f"/d/llm-headroom-kv?{_CELL}&var-model=${{__data.fields.Model}}&{_CHOSEN}"
_TO_KV_ALL = f"/d/llm-headroom-kv?{_CHOSEN}"
_TO_GPU = f"/d/llm-headroom-gpu?{_CHOSEN}"
_TO_EXPORTER = f"/d/llm-headroom-exporter?{_CHOSEN}"


def _rows(scope: Scope, limits: Thresholds, alerts: str) -> tuple[Row, ...]:
    return (
        Row("Is everything healthy?", _numbers(scope, limits, alerts)),
        Row("Which engine needs attention?", (_table(scope, limits),)),
        Row("Are the objectives met?", _users(scope, limits)),
        Row("How much traffic is there?", _traffic(scope, limits)),
        Row("How close are the limits?", _limits(scope, limits)),
        Row("How long do responses take?", _latencies(scope), optional="with the recording rules of llm-headroom"),
        Row("Which alerts are firing?", (_alerts(alerts),), optional="while an alert fires"),
    )


DASHBOARD: Final = Plan(
    "fleet",
    "Fleet",
    "Is everything healthy? Engines, traffic, objectives and headroom of the whole fleet.",
    _rows,
)


def _numbers(scope: Scope, limits: Thresholds, alerts: str) -> tuple[Panel, ...]:
    up = scope.of(schema.UP, ENGINES)
    attained = scope.share(schema.SLO_REQUESTS_GOOD, schema.SLO_REQUESTS, "", slo="ttft")
    return (
        stat(
            "Engines",
            "Engines whose last collection succeeded, and those that do not respond. The latter lose their other "
            "series at once: a curve that ends is an engine that is down, not an idle one.",
            Query(f"sum({up})", "up"),
            Query(f"sum(1 - {up})", "down"),
            styles=(("^down$", {"thresholds": thresholds(above(1, 1))}),),
            link=_TO_EXPORTER,
            alert="LLMEngineDown",
        ),
        stat(
            "Alerts",
            "Firing alerts of llm-headroom, regardless of the selection above. Needs its rules in this Prometheus.",
            f'count(ALERTS{{alertstate="firing", {alerts}}}) or max({up}) * 0',
            steps=above(1),
        ),
        finished_requests_now(scope),
        stat(
            "Generated",
            "Generated tokens per second.",
            scope.exposed(f"sum({scope.rate(schema.GENERATION_TOKENS)})"),
            unit="tokens/s",
        ),
        failed_share(scope, limits),
        stat(
            "TTFT SLO",
            "Share of requests that met the TTFT objective. Unlike quantiles, it can be added up across engines.",
            scope.exposed(attained),
            unit="percentunit",
            decimals=1,
            steps=below(1 - limits.ttft_slow_share / 2, 1 - limits.ttft_slow_share),
            alert="LLMFirstTokensSlow",
        ),
        stat(
            "KV headroom",
            "KV cache available to new requests on the engine that has least, as a share of its capacity.",
            scope.exposed(f"min({scope.of(schema.KV_CACHE_HEADROOM_RATIO)})"),
            unit="percentunit",
            steps=below(1 - limits.kv_usage_high, 1 - limits.kv_usage_critical),
            link=_TO_KV_ALL,
            alert="LLMKVHeadroomLow",
        ),
        stat(
            "GPU headroom",
            "Memory that can still be allocated on the GPU that has least, as a share of its total.",
            scope.exposed(f"min({scope.of(schema.GPU_MEMORY_HEADROOM_RATIO)})"),
            unit="percentunit",
            steps=below(limits.gpu_headroom_low, limits.gpu_headroom_critical),
            link=_TO_GPU,
            alert="LLMGpuMemoryHeadroomLow",
        ),
    )


def _table(scope: Scope, limits: Thresholds) -> Panel:
    up = scope.of(schema.UP, ENGINES)
    models = f"count by ({TARGET}) ({scope.of(schema.MODEL_LOADED)}) * 0"
    state = (
        f"({models} + on ({SOURCE}) group_left () min by ({SOURCE}) ({up})) or on ({SOURCE}) min by ({SOURCE}) ({up})"
    )
    slow = scope.of(schema.TTFT_SLOW, window="300s")

    def each(expr: str) -> str:
        return f"sum by ({TARGET}) ({expr})"

    return table(
        "Engines, models and targets",
        "One row per model of each engine; an engine that is down has a row without a model. A dash is a metric that "
        "the engine does not expose, or that needs traffic. Click an engine, a model or a number to open its "
        "dashboard.",
        (
            Column(title="Engine", label="engine", width=80),
            Column(title="Target", label="target", link=_TO_TARGET, width=120),
            Column(title="Model", label="model", link=_TO_ENGINE),
            (state, Column(title="Up", steps=below(1), width=60)),
            (each(scope.of(schema.REQUESTS_RUNNING)), Column(title="Running", width=80)),
            (
                each(scope.of(schema.REQUESTS_WAITING)),
                Column(title="Waiting", steps=above(limits.waiting_high), width=80),
            ),
            (each(scope.rate(schema.REQUESTS_FINISHED)), Column(title="Requests", unit="reqps", width=100)),
            (each(scope.rate(schema.GENERATION_TOKENS)), Column(title="Generated", unit="tokens/s", width=105)),
            (
                f"max by ({TARGET}) ({slow})",
                Column(
                    title="Slow TTFT",
                    unit="percentunit",
                    steps=above(limits.ttft_slow_share / 2, limits.ttft_slow_share),
                    width=90,
                ),
            ),
            (
                f"max by ({TARGET}) ({scope.of(schema.KV_CACHE_USAGE)})",
                Column(
                    title="KV cache used",
                    unit="percentunit",
                    steps=above(limits.kv_usage_high, limits.kv_usage_critical),
                    bar=1,
                    width=130,
                    link=_TO_KV,
                ),
            ),
            (
                f"min by ({TARGET}) ({scope.of(schema.KV_CACHE_HEADROOM_REQUESTS)})",
                Column(
                    title="Free requests",
                    unit="none",
                    decimals=0,
                    steps=below(limits.headroom_requests_low),
                    width=90,
                    link=_TO_KV,
                ),
            ),
            (
                f"min by ({TARGET}) ({scope.of(schema.LOAD_HEADROOM, objective='ttft')})",
                Column(
                    title="Load headroom",
                    unit="none",
                    decimals=1,
                    steps=below(LOAD_HEADROOM_LOW, 1),
                    width=120,
                    link=_TO_KV,
                ),
            ),
        ),
        height=8,
        sort="-Waiting",
    )


def _users(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    good, every = schema.SLO_REQUESTS_GOOD, schema.SLO_REQUESTS
    return (
        lines(
            "Slow TTFT",
            "Share of requests whose TTFT missed the objective in the last 60 s: the signal that pages. A gap is no "
            "traffic, or an engine that is down.",
            Query(f"max by ({MODEL}) ({scope.of(schema.TTFT_SLOW, window='60s')})", BY_MODEL),
            unit="percentunit",
            steps=above(limits.ttft_slow_share),
            highest=1,
            alert="LLMFirstTokensSlow",
        ),
        lines(
            "Objectives met",
            "Share of requests (tokens, for inter-token latency) that met each objective, over all that is selected.",
            Query(scope.share(good, every, "slo"), "{{slo}}"),
            unit="percentunit",
            highest=1,
            alert="LLMLatencyBudgetBurnFast",
        ),
        lines(
            "Failed requests",
            "Requests per second that did not complete, by reason.",
            Query(f"sum by (engine, reason) ({scope.rate(schema.REQUESTS_FAILED)})", "{{reason}} ({{engine}})"),
            unit="reqps",
            at_least=1,
            alert="LLMErrorRatioHigh",
        ),
    )


def _traffic(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    return (
        finished_requests(scope),
        lines(
            "Generated tokens",
            "Tokens per second.",
            Query(f"sum by ({MODEL}) ({scope.rate(schema.GENERATION_TOKENS)})", BY_MODEL),
            unit="tokens/s",
        ),
        lines(
            "Waiting requests",
            "Requests waiting to be scheduled.",
            Query(f"sum by ({MODEL}) ({scope.of(schema.REQUESTS_WAITING)})", BY_MODEL),
            steps=above(limits.waiting_high),
            alert="LLMQueueBuilding",
        ),
    )


def _limits(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    return (
        lines(
            "Least KV headroom",
            "KV cache available to new requests on the target that has least, as a share of its capacity.",
            Query(f"min by ({MODEL}) ({scope.of(schema.KV_CACHE_HEADROOM_RATIO)})", BY_MODEL),
            unit="percentunit",
            highest=1,
            alert="LLMKVHeadroomLow",
        ),
        lines(
            "Saturation",
            "Load as a share of what the fullest target takes within its objective of first tokens, its queue "
            "included; 200 % at most. Scale on it, target 80 %.",
            Query(f"max by ({MODEL}) ({scope.of(schema.SATURATION, resource='max')})", BY_MODEL),
            unit="percentunit",
            highest=2,
            steps=Steps("green", ((1, "red"),)),
            link=_TO_KV_ALL,
        ),
        lines(
            "GPU memory headroom",
            "Memory that can still be allocated on each GPU. A card at 95 % is normal, as engines reserve their KV "
            "cache at startup; below the line an allocation may fail.",
            Query(f"min by (gpu, instance) ({scope.of(schema.GPU_MEMORY_HEADROOM_RATIO)})", BY_GPU),
            unit="percentunit",
            steps=below(limits.gpu_headroom_low, limits.gpu_headroom_critical),
            highest=1,
            link=_TO_GPU,
            alert="LLMGpuMemoryHeadroomLow",
        ),
    )


def _latencies(scope: Scope) -> tuple[Panel, ...]:
    def p95(title: str, answers: str, metric: Metric) -> Panel:
        return lines(
            title,
            f"{answers} Per engine and model, over all instances and targets.",
            Query(scope.recorded_quantile(0.95, metric), BY_MODEL),
            unit="s",
            empty="without the recording rules of llm-headroom",
        )

    return (
        p95("Time to first token, p95", "Time from arrival to the first token.", schema.TIME_TO_FIRST_TOKEN),
        p95("Inter-token latency, p95", "Time between successive tokens of one request.", schema.INTER_TOKEN_LATENCY),
        p95("Request duration, p95", "Time from arrival to end.", schema.REQUEST_DURATION),
    )


def _alerts(alerts: str) -> Panel:
    return table(
        "Firing alerts",
        "Firing alerts of llm-headroom.",
        (
            Column(title="Alert", label="alertname", width=260),
            Column(title="Severity", label="severity", width=100),
            Column(title="Engine", label="engine", width=100),
            Column(title="Target", label="target"),
            Column(title="Model", label="model"),
            Column(title="GPU", label="gpu", width=80),
            (
                f'count by (alertname, severity, {TARGET}, gpu) (ALERTS{{alertstate="firing", {alerts}}})',
                Column(title="Alerts", width=80),
            ),
        ),
        empty="while no alert fires",
    )
