"""Ollama: which models are in memory, how much of each is on the GPUs, and what the measuring proxy sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.bundle.dashboards.colours import BAD, DECODE, GOOD, PREFILL, QUEUE, UNKNOWN, WARN
from llm_headroom.bundle.dashboards.dashboard import Row
from llm_headroom.bundle.dashboards.panel import Column, Query, above, below, fixed
from llm_headroom.bundle.dashboards.parts import OBJECTIVE, areas, lines, objective, quiet, responding, stat, table
from llm_headroom.bundle.dashboards.plan import Plan
from llm_headroom.bundle.dashboards.scope import TARGET, Scope
from llm_headroom.bundle.dashboards.words import ENGINE_WORDS
from llm_headroom.model import ENGINE_STATES

if TYPE_CHECKING:
    from llm_headroom.bundle.dashboards.panel import Panel
    from llm_headroom.model import Metric
    from llm_headroom.thresholds import Thresholds

_OURS: Final = 'engine="ollama"'
_NAME: Final = "{{model}} · {{instance}}"
_BY_MODEL: Final = "engine, model"
_PROXY: Final = (
    "Ollama does not report requests, tokens or latencies: start llm-headroom with --ollama-proxy :11435, and let "
    "clients use that port."
)
_NO_PROXY: Final = "where no client uses the measuring proxy"
_NONE: Final = "before the first model is loaded"


def _rows(scope: Scope, limits: Thresholds, _alerts: str) -> tuple[Row, ...]:
    return (
        Row("Are the models where they should be?", (*_numbers(scope, limits), _models(scope, limits))),
        Row("Do they fit?", _memory(scope, limits)),
        Row("Do they evict each other?", _loads(scope)),
        Row("What do clients get, as the proxy measures it?", _measured(scope)),
        Row("What are answers made of?", _traffic(scope)),
    )


DASHBOARD: Final = Plan(
    "ollama",
    "Which models are in memory, do they fit the GPUs, and what do clients get?",
    _rows,
    choices=("model", "target"),
)


def _numbers(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    offload = scope.of(schema.MODEL_OFFLOAD, _OURS)
    wrong, answers = (
        f"sum by ({TARGET}) ({scope.rate(schema.HTTP_RESPONSES, _OURS, *more)})" for more in (('code="5xx"',), ())
    )
    return (
        responding(
            "Servers",
            "Ollama servers that do not respond; those behind an unreachable exporter, of which nothing is known; and "
            "those that respond.",
            scope,
            scope.of(schema.UP, _OURS),
        ),
        stat(
            "Loaded",
            "Models in memory, of all servers.",
            scope.exposed(f"sum({scope.of(schema.MODELS_LOADED, _OURS)})"),
            whose="sum",
        ),
        stat(
            "On GPU",
            "Share of the model that is least on GPUs; below 100 % a part of it runs on the CPU, many times slower.",
            f"min({offload} and on ({TARGET}) {scope.of(schema.MODEL_LOADED, _OURS)} == 1)",
            whose="worst",
            unit="percentunit",
            steps=below(limits.offload_low),
            empty="while no model is loaded",
            alert="LLMModelSpilledToCPU",
        ),
        stat(
            "Spilled",
            "Models of which a part runs on the CPU.",
            f"count({offload} < {limits.offload_low:g}) or group({scope.of(schema.UP, _OURS)}) * 0",
            steps=above(1),
            alert="LLMModelSpilledToCPU",
        ),
        stat(
            "Loads",
            "Model loads within an hour. More than a few of one model: others evict it, or requests ask for other "
            "context lengths.",
            f"sum(increase({scope.of(schema.MODEL_LOADS, _OURS)}[1h]))",
            whose="sum",
            unit="suffix: /h",
            decimals=0,
            alert="LLMModelThrash",
        ),
        stat(
            "Failing",
            "Share of responses of class 5xx on the server where most are: 503 is a full queue.",
            f"max({wrong} / {answers} >= 0)",
            whose="worst",
            unit="percentunit",
            decimals=1,
            steps=above(limits.error_share, limits.error_share_high),
            no_value="No proxy",
            empty=_NO_PROXY,
            alert="LLMErrorRatioHigh",
        ),
        stat(
            "Oldest wait",
            "Age of the oldest streamed request without a first token.",
            f"max({scope.of(schema.PROXY_FIRST_TOKEN_WAIT, _OURS)})",
            whose="worst",
            unit="s",
            steps=above(limits.blocked_seconds, limits.blocked_seconds),
            no_value="No proxy",
            empty=_NO_PROXY,
            alert="LLMQueueStarved",
        ),
        stat(
            "Output",
            "Generated tokens per second, added up.",
            f"sum({scope.rate(schema.GENERATION_TOKENS, _OURS)})",
            whose="sum",
            unit="tokens/s",
            no_value="No proxy",
            empty=_NO_PROXY,
        ),
    )


def _models(scope: Scope, limits: Thresholds) -> Panel:
    def memory(kind: str) -> str:
        return f"max by ({TARGET}) ({scope.of(schema.MODEL_MEMORY, _OURS, kind=kind)})"

    state = scope.state(schema.ENGINE_STATE, ENGINE_STATES, TARGET, _OURS)
    loads = f"sum by ({TARGET}) (increase({scope.of(schema.MODEL_LOADS, _OURS)}[1h]))"
    return table(
        "Models in memory",
        "One row per model of each server, in memory or used within the hour. A dash under On GPU: not loaded. Unload: "
        "when it goes if nobody asks for it.",
        (
            (f"sort_desc({state})", Column(title="State", words=ENGINE_WORDS, width=170)),
            Column(title="Cluster", label="cluster", width=75),
            Column(title="Instance", label="instance", width=125),
            Column(title="Target", label="target", width=80),
            Column(title="Model", label="model"),
            (memory("total"), Column(title="Size", unit="bytes", width=80)),
            (
                f"min by ({TARGET}) ({scope.of(schema.MODEL_OFFLOAD, _OURS)})",
                Column(title="On GPU", unit="percentunit", bar=1, steps=below(limits.offload_low), width=110),
            ),
            (
                f"max by ({TARGET}) ({scope.of(schema.MODEL_CONTEXT, _OURS)})",
                Column(title="Context", unit="none", width=80),
            ),
            (
                f"max by ({TARGET}) ({scope.of(schema.MODEL_EXPIRY, _OURS)}) - time() > 0",
                Column(title="Unload in", unit="s", decimals=0, width=85),
            ),
            (loads, Column(title="Loads, 1 h", decimals=0, width=85)),
            (
                f"sum by ({TARGET}) ({scope.of(schema.REQUESTS_RUNNING, _OURS)})",
                Column(title="Running", width=75),
            ),
            (
                scope.quantile(0.95, schema.TIME_TO_FIRST_TOKEN, TARGET, _OURS),
                Column(title="TTFT p95", unit="s", width=85),
            ),
        ),
        height=8,
        sort="-State",
    )


def _memory(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    total, device = (
        f"sum by (model) ({scope.of(schema.MODEL_MEMORY, _OURS, kind=kind)})" for kind in ("total", "device")
    )
    return (
        areas(
            "Memory of models",
            "On GPUs, and on the host what does not fit them, of all that is selected.",
            Query(device, "{{model}} on GPUs"),
            Query(f"{total} - {device} > 0", "{{model}} on the host"),
            unit="bytes",
            styles=((" on the host$", fixed(BAD)),),
            empty=_NONE,
        ),
        lines(
            "Share on GPUs",
            "Below 100 % a part runs on the CPU, many times slower.",
            Query(scope.worst(schema.MODEL_OFFLOAD, TARGET, highest=False), _NAME),
            unit="percentunit",
            highest=1,
            steps=below(limits.offload_low),
            empty=_NONE,
            alert="LLMModelSpilledToCPU",
        ),
        lines(
            "Risk of spill and of eviction",
            "Probability that a model, or its next load, does not fit on the GPUs; and (dashed) that it is unloaded "
            "for another.",
            Query(scope.worst(schema.SPILL_RISK, TARGET), f"{_NAME} spill"),
            Query(scope.worst(schema.EVICTION_RISK, TARGET), f"{_NAME} eviction"),
            unit="percentunit",
            highest=1,
            styles=((" eviction$", quiet()),),
            empty=_NONE,
        ),
    )


def _loads(scope: Scope) -> tuple[Panel, ...]:
    return (
        lines(
            "Models in memory",
            "By model, over all that is selected.",
            Query(f"sum by (model) ({scope.of(schema.MODEL_LOADED, _OURS)})", "{{model}}"),
            decimals=0,
            width=12,
            empty=_NONE,
            alert="LLMModelThrash",
        ),
        lines(
            "Loads and unloads",
            "Per minute; each load delays the requests that wait for it.",
            Query(f"sum by (model) ({scope.rate(schema.MODEL_LOADS, _OURS)}) * 60", "{{model}} loads"),
            Query(f"sum by (model) ({scope.rate(schema.MODEL_UNLOADS, _OURS)}) * 60", "{{model}} unloads"),
            unit="suffix: /min",
            width=12,
            styles=((" unloads$", quiet()),),
            empty=_NONE,
            alert="LLMModelThrash",
        ),
    )


def _measured(scope: Scope) -> tuple[Panel, ...]:
    return (
        lines(
            "Time to first token, p95",
            "From arrival at the proxy, and the objective. Requests that waited for a load do not count: of them the "
            "mean is shown, dashed.",
            Query(scope.quantile(0.95, schema.TIME_TO_FIRST_TOKEN, _BY_MODEL, _OURS), "{{model}}"),
            Query(scope.mean(schema.PROXY_FIRST_TOKEN_AFTER_LOAD, _BY_MODEL, _OURS), "{{model}} after a load, mean"),
            objective(scope, "ttft"),
            unit="s",
            styles=(OBJECTIVE, (" after a load, mean$", quiet())),
            no_value=_PROXY,
            empty=_NO_PROXY,
            alert="LLMFirstTokensSlow",
        ),
        lines(
            "Inter-token latency, p95",
            "A model that spills shows it here.",
            Query(scope.quantile(0.95, schema.INTER_TOKEN_LATENCY, _BY_MODEL, _OURS), "{{model}}"),
            objective(scope, "inter_token_latency"),
            unit="s",
            styles=(OBJECTIVE,),
            no_value=_PROXY,
            empty=_NO_PROXY,
            alert="LLMInterTokenLatencySlow",
        ),
        areas(
            "Responses",
            "By class of status code; 503 is a full queue.",
            Query(f"sum by (code) ({scope.rate(schema.HTTP_RESPONSES, _OURS)})", "{{code}}"),
            unit="responses/s",
            styles=(("^2xx", fixed(GOOD)), ("^4xx", fixed(WARN)), ("^5xx", fixed(BAD))),
            no_value=_PROXY,
            empty=_NO_PROXY,
            alert="LLMErrorRatioHigh",
        ),
    )


def _traffic(scope: Scope) -> tuple[Panel, ...]:
    def mean(metric: Metric) -> str:
        return scope.mean(metric, "", _OURS)

    return (
        areas(
            "Mean request",
            "Waiting and loading, prefill and decode, as Ollama states them at the end of each response.",
            Query(f"({mean(schema.REQUEST_QUEUE)}) >= 0", "queue and load"),
            Query(f"({mean(schema.REQUEST_PREFILL)}) >= 0", "prefill"),
            Query(f"({mean(schema.REQUEST_DECODE)}) >= 0", "decode"),
            unit="s",
            styles=(("^queue", fixed(QUEUE)), ("^prefill", fixed(PREFILL)), ("^decode", fixed(DECODE))),
            no_value=_PROXY,
            empty=_NO_PROXY,
        ),
        lines(
            "Generated tokens",
            "By model.",
            Query(f"sum by (model) ({scope.rate(schema.GENERATION_TOKENS, _OURS)})", "{{model}}"),
            unit="tokens/s",
            no_value=_PROXY,
            empty=_NO_PROXY,
        ),
        lines(
            "Not measured",
            "Requests whose tokens could not be counted, by cause.",
            Query(f"sum by (reason) ({scope.rate(schema.PROXY_UNMEASURED, _OURS)})", "{{reason}}"),
            unit="requests/s",
            styles=(("", fixed(UNKNOWN)),),
            empty="while every request is measured",
        ),
    )
