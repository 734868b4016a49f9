"""One engine in the order of a request's life: arrival, queue, prefill, decode, cache."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.bundle.dashboards import engine_parts
from llm_headroom.bundle.dashboards.colours import BAD, DECODE, GOOD, PREFILL, QUEUE, UNKNOWN, WARN
from llm_headroom.bundle.dashboards.dashboard import Row
from llm_headroom.bundle.dashboards.panel import Kind, Panel, Query, above, fixed
from llm_headroom.bundle.dashboards.parts import (
    OBJECTIVE,
    areas,
    dashed,
    failed_share,
    finished_requests_now,
    heatmap,
    lines,
    load_headroom,
    objective,
    quiet,
    stat,
)
from llm_headroom.bundle.dashboards.plan import Plan
from llm_headroom.bundle.dashboards.scope import BY_MODEL, MODEL, TARGET, Scope
from llm_headroom.bundle.dashboards.words import ENGINE_WORDS
from llm_headroom.model import ENGINE_STATES

if TYPE_CHECKING:
    from llm_headroom.bundle.dashboards.panel import Json
    from llm_headroom.model import Metric
    from llm_headroom.thresholds import Thresholds

_QUANTILES: tuple[tuple[str, Json], ...] = ((" p50$", quiet()), (" p99$", quiet()))
_UNSEEN: Final = "for an engine that does not expose this, such as Ollama without the measuring proxy"
_CLASSES: Final = (
    ("^2xx", fixed(GOOD)),
    ("^3xx", fixed(UNKNOWN)),
    ("^4xx", fixed(WARN)),
    ("^5xx", fixed(BAD)),
)


def _rows(scope: Scope, limits: Thresholds, _alerts: str) -> tuple[Row, ...]:
    return (
        Row("How is the engine doing?", (*_numbers(scope, limits), _states(scope))),
        Row("Where does a request's time go?", _anatomy(scope)),
        Row("Which requests arrive, and how do they end?", _arrivals(scope)),
        Row("How long until the first token?", _prefill(scope, limits)),
        Row("How fast are tokens generated?", _decode(scope, limits)),
        Row("Do requests wait, and for what?", _queue(scope, limits)),
        Row("Does the cache help, and is it large enough?", _cache(scope, limits)),
        *engine_parts.rows(scope),
    )


DASHBOARD: Final = Plan(
    "engine", "Where does a request's time go? One engine: queue, prefill, decode, cache.", _rows, single=True
)


def _quantiles(scope: Scope, metric: Metric) -> tuple[Query, ...]:
    return tuple(
        Query(scope.quantile(share, metric), f"{BY_MODEL} {name}")
        for share, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    )


def _numbers(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    def worst(metric: Metric) -> str:
        return scope.exposed(f"max({scope.quantile(0.95, metric)})")

    return (
        load_headroom(scope, whose=""),
        finished_requests_now(scope),
        stat("Running", "Requests in the running batch.", scope.exposed(f"sum({scope.of(schema.REQUESTS_RUNNING)})")),
        stat(
            "Waiting",
            "Requests waiting to be scheduled.",
            scope.exposed(f"sum({scope.of(schema.REQUESTS_WAITING)})"),
            steps=above(limits.waiting_high),
            alert="LLMQueueBuilding",
        ),
        stat(
            "TTFT",
            "TTFT of the slowest model.",
            worst(schema.TIME_TO_FIRST_TOKEN),
            whose="p95",
            unit="s",
            alert="LLMFirstTokensSlow",
        ),
        stat(
            "ITL",
            "Inter-token latency of the slowest model.",
            worst(schema.INTER_TOKEN_LATENCY),
            whose="p95",
            unit="s",
            steps=above(limits.inter_token_slow),
            alert="LLMInterTokenLatencySlow",
        ),
        failed_share(scope, limits),
        stat(
            "Restarts",
            "Since llm-headroom watches it, recognised by a reset of its counters.",
            scope.exposed(f"sum({scope.of(schema.ENGINE_RESTARTS)})"),
            decimals=0,
            alert="LLMEngineCrashLoop",
        ),
    )


def _states(scope: Scope) -> Panel:
    return Panel(
        kind=Kind.STATES,
        title="State",
        answers="The worst state that holds, of each model. Unreachable: its exporter is, and nothing is known.",
        queries=(Query(scope.state(schema.ENGINE_STATE, ENGINE_STATES, TARGET), "{{model}}"),),
        words=ENGINE_WORDS,
        width=24,
        height=4,
    )


def _anatomy(scope: Scope) -> tuple[Panel, ...]:
    """Where the mean request's time goes; what an engine has no histogram of follows from the others."""
    mean = {metric: scope.mean(metric, "") for metric in (schema.TIME_TO_FIRST_TOKEN, schema.REQUEST_DURATION)}
    queue = scope.mean(schema.REQUEST_QUEUE, "")
    first, whole = mean.values()
    prefill = f"({scope.mean(schema.REQUEST_PREFILL, '')} >= 0) or ({first} - ({queue} >= 0)) or ({first})"
    decode = f"({scope.mean(schema.REQUEST_DECODE, '')} >= 0) or ({whole} - {first})"
    return (
        areas(
            "Mean request",
            "Time in the queue, in prefill and in decode, one on another: the mean duration of a request. Prefill of "
            "an engine without a histogram of it is TTFT less the queue, decode is the duration less TTFT. The dashed "
            "line is the objective of first tokens: queue and prefill belong below it.",
            Query(f"({queue}) >= 0", "queue"),
            Query(f"({prefill}) >= 0", "prefill"),
            Query(f"({decode}) >= 0", "decode"),
            objective(scope, "ttft"),
            unit="s",
            width=12,
            height=10,
            empty=_UNSEEN,
            styles=(
                ("^queue", fixed(QUEUE)),
                ("^prefill", fixed(PREFILL)),
                ("^decode", fixed(DECODE)),
                OBJECTIVE,
            ),
        ),
        _spread(scope, schema.TIME_TO_FIRST_TOKEN, "First tokens", "Requests by how long their first token took.", "s"),
    )


def _spread(scope: Scope, metric: Metric, title: str, answers: str, unit: str) -> Panel:
    buckets = f"sum by (engine, le) ({scope.rate(metric, suffix='_bucket')})"
    return heatmap(title, answers, buckets, unit=unit, width=12, height=10, empty=_UNSEEN)


def _arrivals(scope: Scope) -> tuple[Panel, ...]:
    ends = f"sum by (engine, reason) ({scope.rate(schema.REQUESTS_FINISHED)})"
    fails = f"sum by (engine, reason) ({scope.rate(schema.REQUESTS_FAILED)})"
    prompts = _spread(scope, schema.REQUEST_PROMPT_TOKENS, "Prompts", "Requests by tokens of their prompt.", "short")
    answers = _spread(scope, schema.REQUEST_GENERATION_TOKENS, "Answers", "Requests by generated tokens.", "short")
    return (
        areas(
            "How requests end",
            "By finish reason. Engines that expose no reason have one curve; `abort`: the client disconnected.",
            Query(ends, "{{reason}}"),
            Query(f"{fails} > 0", "failed: {{reason}}"),
            unit="requests/s",
            width=6,
            at_least=1,
            empty=_UNSEEN,
            styles=(
                ("^stop", fixed(GOOD)),
                ("^length", fixed(PREFILL)),
                ("^failed: abort", fixed(UNKNOWN)),
                ("^failed: (?!abort)", fixed(BAD)),
            ),
            alert="LLMErrorRatioHigh",
        ),
        areas(
            "HTTP responses",
            "By class of status code.",
            Query(f"sum by (code) ({scope.rate(schema.HTTP_RESPONSES)})", "{{code}}"),
            unit="responses/s",
            width=6,
            at_least=1,
            empty="for an engine that does not count its responses",
            styles=_CLASSES,
            alert="LLMErrorRatioHigh",
        ),
        replace(prompts, width=6, height=8),
        replace(answers, width=6, height=8),
    )


def _queue(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    return (
        lines(
            "Waiting",
            "Requests waiting to be scheduled, and (dashed) by what they wait for, where that is exposed.",
            Query(f"sum by ({MODEL}) ({scope.of(schema.REQUESTS_WAITING)})", BY_MODEL),
            Query(f"sum by (engine, reason) ({scope.of(schema.REQUESTS_WAITING_BY_REASON)}) > 0", "for {{reason}}"),
            steps=above(limits.waiting_high),
            styles=(("^for ", quiet()),),
            empty=_UNSEEN,
            alert="LLMQueueBuilding",
        ),
        lines(
            "Running, and the limit",
            "Requests in the running batch, and the maximum that the engine runs at once. A queue below the limit "
            "waits for KV cache or prefill.",
            Query(f"sum by ({MODEL}) ({scope.of(schema.REQUESTS_RUNNING)})", BY_MODEL),
            Query(f"sum by ({MODEL}) ({scope.of(schema.REQUESTS_RUNNING_LIMIT)})", f"{BY_MODEL} limit"),
            styles=((" limit$", dashed()),),
            empty=_UNSEEN,
        ),
        lines(
            "Steps",
            "Forward passes per second. 0 while requests run means stalled.",
            Query(f"sum by ({MODEL}) ({scope.rate(schema.ENGINE_STEPS)})", BY_MODEL),
            unit="steps/s",
            empty=_UNSEEN,
            alert="LLMEngineStalled",
        ),
    )


def _prefill(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    return (
        lines(
            "Time to first token",
            "Time from arrival to the first token, including the queue, and the objective.",
            *_quantiles(scope, schema.TIME_TO_FIRST_TOKEN),
            objective(scope, "ttft"),
            unit="s",
            styles=(*_QUANTILES, OBJECTIVE),
            empty=_UNSEEN,
            alert="LLMFirstTokensSlow",
        ),
        lines(
            "Slow TTFT",
            "Share of requests whose TTFT missed the objective; the alert judges 2 min. Exact, as the objective is on "
            "a bucket boundary. A gap is no traffic.",
            Query(f"max by ({MODEL}) ({scope.of(schema.TTFT_SLOW, window='300s')})", BY_MODEL),
            unit="percentunit",
            steps=above(limits.ttft_slow_share / 2, limits.ttft_slow_share),
            highest=1,
            empty=_UNSEEN,
            alert="LLMFirstTokensSlow",
        ),
        lines(
            "Time in the queue",
            "Time from arrival until first scheduled.",
            *_quantiles(scope, schema.REQUEST_QUEUE),
            unit="s",
            styles=_QUANTILES,
            empty=_UNSEEN,
        ),
    )


def _decode(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    prompts = f"sum by ({MODEL}) ({scope.rate(schema.PROMPT_TOKENS)})"
    return (
        lines(
            "Inter-token latency",
            "Time between successive tokens of one request, and the objective.",
            *_quantiles(scope, schema.INTER_TOKEN_LATENCY),
            objective(scope, "inter_token_latency"),
            unit="s",
            steps=above(limits.inter_token_slow),
            styles=(*_QUANTILES, OBJECTIVE),
            empty=_UNSEEN,
            alert="LLMInterTokenLatencySlow",
        ),
        lines(
            "Request duration",
            "Time from arrival to end.",
            *_quantiles(scope, schema.REQUEST_DURATION),
            unit="s",
            styles=_QUANTILES,
            empty=_UNSEEN,
            alert="LLMLatencyBudgetBurnSlow",
        ),
        lines(
            "Tokens",
            "Generated, and (dashed) of prompts, cached ones included.",
            Query(f"sum by ({MODEL}) ({scope.rate(schema.GENERATION_TOKENS)})", BY_MODEL),
            Query(prompts, f"{BY_MODEL} prompt"),
            unit="tokens/s",
            styles=((" prompt$", quiet()),),
            empty=_UNSEEN,
        ),
    )


def _cache(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    preempted = f"sum by ({MODEL}) ({scope.rate(schema.PREEMPTIONS)})"
    finished = f"sum by ({MODEL}) ({scope.rate(schema.REQUESTS_FINISHED)})"
    return (
        lines(
            "Prefix cache hits",
            "Share of prompt tokens found in the prefix cache. A gap is no traffic.",
            Query(scope.share(schema.PREFIX_CACHE_HITS, schema.PREFIX_CACHE_QUERIES, MODEL), BY_MODEL),
            unit="percentunit",
            highest=1,
            empty=_UNSEEN,
        ),
        lines(
            "KV cache usage",
            "Share in use by requests, and (dashed) its peak of the last minute. Reusable cache is not included.",
            Query(f"max by ({MODEL}) ({scope.of(schema.KV_CACHE_USAGE)})", BY_MODEL),
            Query(f"max by ({MODEL}) ({scope.of(schema.KV_CACHE_USAGE_PEAK)})", f"{BY_MODEL} peak"),
            unit="percentunit",
            steps=above(limits.kv_usage_high, limits.kv_usage_critical),
            highest=1,
            styles=((" peak$", quiet()),),
            empty=_UNSEEN,
            alert="LLMKVHeadroomLow",
        ),
        lines(
            "Preemptions per finished request",
            "Running requests that were preempted because the KV cache was full.",
            Query(f"{preempted} / {finished}", BY_MODEL),
            unit="percentunit",
            steps=above(limits.preemption_share, limits.preemption_share_critical),
            at_least=0.1,
            empty=_UNSEEN,
            alert="LLMKVCacheExhausted",
        ),
    )
