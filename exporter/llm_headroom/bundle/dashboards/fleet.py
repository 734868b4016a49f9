"""Is everything healthy? The dashboard to open first."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.bundle.dashboards.colours import BAD, DECODE, PREFILL, QUEUE, WARN
from llm_headroom.bundle.dashboards.dashboard import Row
from llm_headroom.bundle.dashboards.panel import (
    Column,
    Kind,
    Panel,
    Query,
    Steps,
    above,
    below,
    fixed,
)
from llm_headroom.bundle.dashboards.parts import (
    failed_share,
    finished_requests_now,
    lines,
    load_headroom,
    responding,
    stat,
    table,
)
from llm_headroom.bundle.dashboards.plan import Plan
from llm_headroom.bundle.dashboards.scope import BY_GPU, BY_MODEL, ENGINES, MODEL, TARGET, Scope
from llm_headroom.bundle.dashboards.words import ENGINE_WORDS, SEVERITY_WORDS
from llm_headroom.model import ENGINE_STATES
from llm_headroom.thresholds import LOAD_HEADROOM_LOW, RATE_SECONDS, SATURATION_HIGH, SLOW_SECONDS

if TYPE_CHECKING:
    from llm_headroom.model import Metric
    from llm_headroom.thresholds import Thresholds

_PLACE = "${datasource:queryparam}&${job:queryparam}&${cluster:queryparam}&${namespace:queryparam}&${__url_time_range}"
_CHOSEN = f"{_PLACE}&${{instance:queryparam}}"
_CELL = (
    "var-engine=${__data.fields.Engine}&var-target=${__data.fields.Target}&var-instance=${__data.fields.Instance}"
    f"&{_PLACE}"
)
_MODEL = "&var-model=${__data.fields.Model}"
_TO_ENGINE = f"/d/llm-headroom-engine?{_CELL}{_MODEL}"
_TO_TARGET = f"/d/llm-headroom-engine?{_CELL}"
_TO_KV = f"/d/llm-headroom-kv?{_CELL}{_MODEL}"
_TO_KV_ALL = f"/d/llm-headroom-kv?{_CHOSEN}"
_TO_GPU = f"/d/llm-headroom-gpu?{_CHOSEN}"
_TO_EXPORTER = f"/d/llm-headroom-exporter?{_CHOSEN}"
_WELL = 'state=~"ok|idle|asleep"'
"""Of each engine's states exactly one is 1 at a time: of these three there are fewer series than of all troubles."""
_ALERT_SHARE = SLOW_SECONDS / RATE_SECONDS
"""What an alert that judges two minutes sees is at least this much of five minutes."""

_SLOS = (
    ("^ttft$", fixed(PREFILL)),
    ("^inter_token_latency$", fixed(DECODE)),
    ("^request_duration$", fixed(QUEUE)),
    ("^availability$", fixed(WARN)),
)


def _rows(scope: Scope, limits: Thresholds, alerts: str) -> tuple[Row, ...]:
    return (
        Row("Is everything healthy?", _numbers(scope, limits, alerts)),
        Row("Which engine needs a look?", (_table(scope, limits), _history(scope))),
        Row("Which alerts are firing?", (_alerts(alerts),)),
        Row("Are the objectives met?", _users(scope, limits)),
        Row("How much traffic is there?", _traffic(scope, limits)),
        Row("How close are the limits?", _limits(scope, limits)),
        Row("How long do responses take?", _latencies(scope), optional="with the recording rules of llm-headroom"),
    )


DASHBOARD: Final = Plan(
    "fleet",
    "Is everything healthy? Engines, traffic, objectives and headroom of the whole fleet.",
    _rows,
)


def _numbers(scope: Scope, limits: Thresholds, alerts: str) -> tuple[Panel, ...]:
    return (*_incident(scope, limits, alerts), *_limits_now(scope, limits, alerts))


def _incident(scope: Scope, limits: Thresholds, alerts: str) -> tuple[Panel, ...]:
    """The tiles of the first line: instant, and silent rather than fine where nothing is known."""
    up = scope.once().of(schema.UP, ENGINES)
    where = "cluster, engine, model"
    good, every = (
        f"sum by ({TARGET}) ({scope.rate(one, slo='ttft')})" for one in (schema.SLO_REQUESTS_GOOD, schema.SLO_REQUESTS)
    )
    p95 = scope.once().quantile(0.95, schema.TIME_TO_FIRST_TOKEN, where)
    objective = f"min by ({where}) ({scope.of(schema.SLO_THRESHOLD, slo='ttft')})"
    return (
        stat(
            "Unreachable",
            "Exporters that Prometheus does not reach. What they watch is unknown, not fine.",
            f"sum(1 - {scope.exporters()})",
            steps=above(1, 1),
            link=_TO_EXPORTER,
            alert="LLMExporterDown",
        ),
        responding(
            "Engines",
            "Engines that do not respond, be they dead or still loading; those behind an unreachable exporter, of "
            "which nothing is known; and those that respond.",
            scope,
            up,
            link=_TO_EXPORTER,
        ),
        _firing("Pages firing", "page", alerts, above(1, 1)),
        load_headroom(scope, link=_TO_KV_ALL),
        stat(
            "On time",
            "Share of the first tokens of five minutes within their objective, on the target that has fewest.",
            scope.exposed(f"min({good} / {every})"),
            whose="worst",
            unit="percentunit",
            decimals=1,
            steps=below(1 - limits.ttft_slow_share * _ALERT_SHARE, 1 - limits.ttft_slow_share),
            alert="LLMFirstTokensSlow",
        ),
        stat(
            "Slowest",
            "p95 of TTFT of the model that is slowest against its objective, in multiples of it.",
            Query(f"topk(1, {p95} / on ({where}) {objective} >= 0)", "{{model}}"),
            unit="suffix: × objective",
            whose="worst",
            decimals=1,
            steps=Steps("text", ((1, BAD),)),
            empty="without traffic",
            alert="LLMFirstTokensSlow",
        ),
        finished_requests_now(scope.once()),
        stat(
            "Output",
            "Generated tokens per second, added up.",
            scope.exposed(f"sum({scope.once().rate(schema.GENERATION_TOKENS)})"),
            whose="sum",
            unit="tokens/s",
        ),
    )


def _limits_now(scope: Scope, limits: Thresholds, alerts: str) -> tuple[Panel, ...]:
    return (
        replace(failed_share(scope, limits), width=6),
        replace(_firing("Tickets open", "ticket", alerts, above(1)), width=6),
        stat(
            "Least KV free",
            "KV cache available to new requests on the engine that has least, as a share of its capacity.",
            scope.exposed(f"min({scope.of(schema.KV_CACHE_HEADROOM_RATIO)})"),
            unit="percentunit",
            steps=below(1 - limits.kv_usage_high, 1 - limits.kv_usage_critical),
            link=_TO_KV_ALL,
            alert="LLMKVHeadroomLow",
            width=6,
        ),
        stat(
            "Least GPU free",
            "Memory that can still be allocated on the GPU that has least, as a share of its total.",
            scope.exposed(f"min({scope.of(schema.GPU_MEMORY_HEADROOM_RATIO)})"),
            unit="percentunit",
            steps=below(limits.gpu_headroom_low, limits.gpu_headroom_critical),
            link=_TO_GPU,
            alert="LLMGpuMemoryHeadroomLow",
            width=6,
        ),
    )


def _firing(title: str, severity: str, alerts: str, steps: Steps) -> Panel:
    """How many alerts fire: 0 only where the rules were evaluated within the last hour."""
    fires = f'count(ALERTS{{alertstate="firing", severity="{severity}", {alerts}}})'
    return stat(
        title,
        "Firing alerts of the selected clusters. Needs llm-headroom's rules in this Prometheus.",
        f"{fires} or group(last_over_time(engine_model:llm_up:count[1h])) * 0",
        steps=steps,
        no_value="No rules",
        empty="where the rules are not loaded",
    )


def _table(scope: Scope, limits: Thresholds) -> Panel:
    good, every = (
        f"sum by ({TARGET}) ({scope.rate(one, slo='ttft')})" for one in (schema.SLO_REQUESTS_GOOD, schema.SLO_REQUESTS)
    )
    room = scope.of(schema.LOAD_HEADROOM)
    saturation = scope.of(schema.SATURATION, resource="max")
    return table(
        "Engines, worst first",
        "One row per model of each target. The state is the worst that holds. A dash is a metric that the engine does "
        "not expose, or that needs traffic. Click a target, a model or a number to open its dashboard.",
        (
            (
                f"sort_desc({scope.state(schema.ENGINE_STATE, ENGINE_STATES, TARGET)})",
                Column(title="State", words=ENGINE_WORDS, width=170),
            ),
            Column(title="Cluster", label="cluster", width=75),
            Column(title="Instance", label="instance", width=125),
            Column(title="Engine", label="engine", width=75),
            Column(title="Target", label="target", link=_TO_TARGET, width=125),
            Column(title="Model", label="model", link=_TO_ENGINE),
            (
                f"min by ({TARGET}) ({room})",
                Column(
                    title="Headroom",
                    unit="suffix: ×",
                    decimals=1,
                    steps=below(LOAD_HEADROOM_LOW, 1),
                    width=80,
                    link=_TO_KV,
                ),
            ),
            (
                f"clamp_max(max by ({TARGET}) ({saturation}), 2)",
                Column(title="Saturation", unit="percentunit", steps=above(SATURATION_HIGH, 1), width=90, link=_TO_KV),
            ),
            (
                f"sum by ({TARGET}) ({scope.of(schema.REQUESTS_WAITING)})",
                Column(title="Waiting", steps=above(limits.waiting_high), width=80),
            ),
            (
                f"{good} / {every} >= 0",
                Column(
                    title="TTFT SLO",
                    unit="percentunit",
                    decimals=1,
                    steps=below(1 - limits.ttft_slow_share * _ALERT_SHARE, 1 - limits.ttft_slow_share),
                    width=90,
                ),
            ),
            (
                f"max by ({TARGET}) ({scope.of(schema.KV_CACHE_USAGE)})",
                Column(
                    title="KV used",
                    unit="percentunit",
                    steps=above(limits.kv_usage_high, limits.kv_usage_critical),
                    bar=1,
                    width=110,
                    link=_TO_KV,
                ),
            ),
        ),
        height=10,
        sort="-State",
    )


def _history(scope: Scope) -> Panel:
    well = f"sum_over_time({scope.of(schema.ENGINE_STATE, _WELL)}[$__range] @ end())"
    ever = f"count_over_time({scope.of(schema.ENGINE_STATE, state='ok')}[$__range] @ end())"
    troubled = f"bottomk(12, sum by ({TARGET}) ({well}) / sum by ({TARGET}) ({ever}) < 1)"
    return Panel(
        kind=Kind.STATES,
        title="Since when",
        answers="State over time of engines that were not well within the time shown: the twelve that were well least.",
        queries=(
            Query(
                scope.state(schema.ENGINE_STATE, ENGINE_STATES, TARGET, among=troubled),
                "{{instance}} · {{target}} · {{model}}",
            ),
        ),
        words=ENGINE_WORDS,
        width=24,
        height=8,
        empty="while every engine was well",
        step="1m",
    )


def _users(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    good, every = schema.SLO_REQUESTS_GOOD, schema.SLO_REQUESTS
    missed, target = (scope.recorded(name) for name in ("llm_slo_missed:ratio_rate1h", "llm_slo_objective_ratio:max"))
    return (
        lines(
            "Slow TTFT",
            "Share of requests whose TTFT missed the objective, of each model's worst target; the alert judges 2 min. "
            "A gap is no traffic, or an engine that is down.",
            Query(f"max by ({MODEL}) ({scope.of(schema.TTFT_SLOW, window='300s')})", BY_MODEL),
            unit="percentunit",
            width=6,
            steps=above(limits.ttft_slow_share),
            highest=1,
            alert="LLMFirstTokensSlow",
        ),
        lines(
            "Objectives met",
            "Share of requests (tokens, for inter-token latency) that met each objective, over all that is selected.",
            Query(scope.share(good, every, "slo"), "{{slo}}"),
            unit="percentunit",
            width=6,
            highest=1,
            styles=_SLOS,
            alert="LLMLatencyBudgetBurnFast",
        ),
        lines(
            "Error budget left",
            "Of the requests of the last hour: the share of those that may miss the objective and have not. Below 0 "
            "the objective is being missed.",
            Query(f"min by (slo) (1 - {missed} / (1 - {target}))", "{{slo}}"),
            unit="percentunit",
            width=6,
            lowest=-1,
            highest=1,
            steps=Steps("text", ((0, BAD),)),
            styles=_SLOS,
            empty="without the recording rules of llm-headroom",
            alert="LLMLatencyBudgetBurnFast",
        ),
        lines(
            "Failed requests",
            "Requests that did not complete, by reason.",
            Query(f"sum by (engine, reason) ({scope.rate(schema.REQUESTS_FAILED)}) > 0", "{{reason}} ({{engine}})"),
            empty="while every request completes",
            unit="requests/s",
            width=6,
            at_least=1,
            alert="LLMErrorRatioHigh",
        ),
    )


def _traffic(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    scope = scope.once()
    return (
        lines(
            "Requests",
            "Finished requests per second, added up.",
            Query(f"sum by ({MODEL}) ({scope.rate(schema.REQUESTS_FINISHED)})", BY_MODEL),
            unit="requests/s",
        ),
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
            "Worst saturation",
            "Load as a share of what the fullest target takes within its objective of first tokens, its queue "
            "included; 200 % at most. Scale on it, target 80 %.",
            Query(f"max by ({MODEL}) ({scope.of(schema.SATURATION, resource='max')})", BY_MODEL),
            unit="percentunit",
            highest=2,
            steps=above(SATURATION_HIGH, 1),
            link=_TO_KV_ALL,
        ),
        lines(
            "GPU memory headroom",
            "Memory that can still be allocated on the GPUs that had least. A card at 95 % is normal, as engines "
            "reserve their KV cache at startup; below the line an allocation may fail.",
            Query(scope.worst(schema.GPU_MEMORY_HEADROOM_RATIO, "cluster, instance, gpu", highest=False), BY_GPU),
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
        p95("TTFT, p95", "Time from arrival to the first token.", schema.TIME_TO_FIRST_TOKEN),
        p95("Inter-token latency, p95", "Time between successive tokens of one request.", schema.INTER_TOKEN_LATENCY),
        p95("Request duration, p95", "Time from arrival to end.", schema.REQUEST_DURATION),
    )


def _alerts(alerts: str) -> Panel:
    by = f"alertname, {TARGET}, gpu"
    fires = f'ALERTS{{alertstate="firing", {alerts}'
    return table(
        "Firing alerts",
        "Firing alerts of llm-headroom.",
        (
            (
                " or ".join(
                    f'group by ({by}) ({fires}, severity="{severity}"}}) * {place}'
                    for place, severity in ((3, "page"), (2, "ticket"), (1, "info"))
                ),
                Column(title="Severity", words=SEVERITY_WORDS, width=100),
            ),
            Column(title="Alert", label="alertname", width=260),
            Column(title="Cluster", label="cluster", width=100),
            Column(title="Instance", label="instance", width=150),
            Column(title="Engine", label="engine", width=100),
            Column(title="Target", label="target"),
            Column(title="Model", label="model"),
            Column(title="GPU", label="gpu", width=80),
            (
                f"count by ({by}) ({fires}}})",
                Column(title="Alerts", width=80),
            ),
        ),
        empty="while no alert fires",
        height=7,
        sort="-Severity",
    )
