"""One engine and model in the order of a request's life: arrival, queue, prefill, decode, cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.bundle.dashboards.dashboard import Row
from llm_headroom.bundle.dashboards.panel import Query, above, below
from llm_headroom.bundle.dashboards.parts import (
    dashed,
    failed_share,
    finished_requests,
    finished_requests_now,
    heatmap,
    lines,
    quiet,
    stat,
)
from llm_headroom.bundle.dashboards.plan import Plan
from llm_headroom.bundle.dashboards.scope import BY_MODEL, MODEL, Scope

if TYPE_CHECKING:
    from llm_headroom.bundle.dashboards.panel import Json, Panel
    from llm_headroom.model import Metric
    from llm_headroom.thresholds import Thresholds

_QUANTILES: tuple[tuple[str, Json], ...] = ((" p50$", quiet()), (" p99$", quiet()))


def _rows(scope: Scope, limits: Thresholds, _alerts: str) -> tuple[Row, ...]:
    return (
        Row("How is the engine doing?", _numbers(scope, limits)),
        Row("Which requests arrive, and how do they end?", _arrivals(scope)),
        Row("Do requests wait?", _queue(scope, limits)),
        Row("How long until the first token?", _prefill(scope, limits)),
        Row("How fast are tokens generated?", _decode(scope, limits)),
        Row("How many tokens are processed?", _tokens(scope)),
        Row("Does the cache help, and is it large enough?", _cache(scope, limits)),
        Row(
            "How are $engine's latencies distributed?",
            _heatmaps(scope),
            optional="in addition to the quantiles above",
            repeat="engine",
        ),
        Row("Does speculative decoding pay?", _speculation(scope), optional="for engines with a draft model"),
        Row("What does the router do?", _router(scope), optional="for fleets behind SGLang's router or gateway"),
    )


DASHBOARD: Final = Plan(
    "engine", "Engine and model", "Where does a request's time go? Queue, prefill, decode, cache.", _rows
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
            "TTFT p95",
            "TTFT of the slowest engine and model.",
            worst(schema.TIME_TO_FIRST_TOKEN),
            whose="worst",
            unit="s",
            alert="LLMFirstTokensSlow",
        ),
        stat(
            "ITL p95",
            "Inter-token latency of the slowest engine and model.",
            worst(schema.INTER_TOKEN_LATENCY),
            whose="worst",
            unit="s",
            steps=above(limits.inter_token_slow),
            alert="LLMInterTokenLatencySlow",
        ),
        stat(
            "E2E p95",
            "Request duration of the slowest engine and model.",
            worst(schema.REQUEST_DURATION),
            whose="worst",
            unit="s",
        ),
        failed_share(scope, limits),
        stat(
            "Stalled",
            "Engines with requests whose steps and tokens have not increased for a minute.",
            scope.exposed(f"sum({scope.of(schema.ENGINE_STALLED)})"),
            steps=above(1, 1),
            alert="LLMEngineStalled",
        ),
    )


def _arrivals(scope: Scope) -> tuple[Panel, ...]:
    prompts, answers = schema.REQUEST_PROMPT_TOKENS, schema.REQUEST_GENERATION_TOKENS
    ends = f"sum by (engine, reason) ({scope.rate(schema.REQUESTS_FINISHED)})"
    fails = f"sum by (engine, reason) ({scope.rate(schema.REQUESTS_FAILED)})"
    return (
        finished_requests(scope),
        lines(
            "Size of requests",
            "Mean tokens of prompts and outputs. Longer prompts need more prefill, longer outputs more KV cache.",
            Query(scope.mean(prompts), f"{BY_MODEL} prompt"),
            Query(scope.mean(answers), f"{BY_MODEL} output"),
            styles=((" output$", quiet()),),
        ),
        lines(
            "How requests end",
            "Per second, by reason. Engines that expose no reason have one curve; `abort`: the client disconnected.",
            Query(ends, "{{reason}} ({{engine}})"),
            Query(fails, "failed: {{reason}} ({{engine}})"),
            unit="reqps",
            alert="LLMErrorRatioHigh",
        ),
    )


def _queue(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    return (
        lines(
            "Waiting",
            "Requests waiting to be scheduled.",
            Query(f"sum by ({MODEL}) ({scope.of(schema.REQUESTS_WAITING)})", BY_MODEL),
            steps=above(limits.waiting_high),
            alert="LLMQueueBuilding",
        ),
        lines(
            "Running, and the limit",
            "Requests in the running batch, and the maximum that the engine runs at once. A queue below the limit "
            "waits for KV cache or prefill.",
            Query(f"sum by ({MODEL}) ({scope.of(schema.REQUESTS_RUNNING)})", BY_MODEL),
            Query(f"sum by ({MODEL}) ({scope.of(schema.REQUESTS_RUNNING_LIMIT)})", f"{BY_MODEL} limit"),
            styles=((" limit$", dashed()),),
        ),
        lines(
            "Time in the queue",
            "Time from arrival until first scheduled.",
            *_quantiles(scope, schema.REQUEST_QUEUE),
            unit="s",
            styles=_QUANTILES,
        ),
    )


def _prefill(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    return (
        lines(
            "Time to first token",
            "Time from arrival to the first token, including the queue.",
            *_quantiles(scope, schema.TIME_TO_FIRST_TOKEN),
            unit="s",
            styles=_QUANTILES,
            alert="LLMFirstTokensSlow",
        ),
        lines(
            "Slow TTFT",
            "Share of requests whose TTFT missed the objective, of the worst target; the alert judges 2 min. Exact, as "
            "the objective is on a bucket boundary. A gap is no traffic.",
            Query(f"max by ({MODEL}) ({scope.of(schema.TTFT_SLOW, window='300s')})", BY_MODEL),
            unit="percentunit",
            steps=above(limits.ttft_slow_share / 2, limits.ttft_slow_share),
            highest=1,
            alert="LLMFirstTokensSlow",
        ),
        lines(
            "Prefill",
            "Time from first scheduling to the first token.",
            *_quantiles(scope, schema.REQUEST_PREFILL),
            unit="s",
            styles=_QUANTILES,
        ),
    )


def _decode(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    return (
        lines(
            "Inter-token latency",
            "Time between successive tokens of one request.",
            *_quantiles(scope, schema.INTER_TOKEN_LATENCY),
            unit="s",
            steps=above(limits.inter_token_slow),
            styles=_QUANTILES,
            alert="LLMInterTokenLatencySlow",
        ),
        lines(
            "Time per output token",
            "Mean time per token after the first one, observed once per finished request.",
            *_quantiles(scope, schema.TIME_PER_OUTPUT_TOKEN),
            unit="s",
            styles=_QUANTILES,
        ),
        lines(
            "Request duration",
            "Time from arrival to end.",
            *_quantiles(scope, schema.REQUEST_DURATION),
            unit="s",
            styles=_QUANTILES,
            alert="LLMLatencyBudgetBurnSlow",
        ),
    )


def _tokens(scope: Scope) -> tuple[Panel, ...]:
    prompts = f"sum by ({MODEL}) ({scope.rate(schema.PROMPT_TOKENS)})"
    cached = f"sum by ({MODEL}) ({scope.rate(schema.PROMPT_TOKENS_CACHED)})"
    return (
        lines(
            "Prompt tokens",
            "Per second, and (dashed) those found in a cache, which need no prefill.",
            Query(prompts, BY_MODEL),
            Query(cached, f"{BY_MODEL} cached"),
            unit="tokens/s",
            styles=((" cached$", quiet()),),
        ),
        lines(
            "Generated tokens",
            "Per second.",
            Query(f"sum by ({MODEL}) ({scope.rate(schema.GENERATION_TOKENS)})", BY_MODEL),
            unit="tokens/s",
        ),
        lines(
            "Steps",
            "Forward passes per second. 0 while requests run means stalled.",
            Query(f"sum by ({MODEL}) ({scope.rate(schema.ENGINE_STEPS)})", BY_MODEL),
            unit="cps",
            alert="LLMEngineStalled",
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
        ),
        lines(
            "KV cache usage",
            "Share in use by requests, of the fullest target; reusable cache is not included.",
            Query(f"max by ({MODEL}) ({scope.of(schema.KV_CACHE_USAGE)})", BY_MODEL),
            unit="percentunit",
            steps=above(limits.kv_usage_high, limits.kv_usage_critical),
            highest=1,
            alert="LLMKVHeadroomLow",
        ),
        lines(
            "Preemptions per finished request",
            "Running requests that were preempted because the KV cache was full.",
            Query(f"{preempted} / {finished}", BY_MODEL),
            unit="percentunit",
            steps=above(limits.preemption_share, limits.preemption_share_critical),
            at_least=0.1,
            alert="LLMKVCacheExhausted",
        ),
    )


def _heatmaps(scope: Scope) -> tuple[Panel, ...]:
    def spread(metric: Metric) -> str:
        return f"sum by (engine, le) ({scope.rate(metric, suffix='_bucket')})"

    none = "for an engine that does not expose this histogram"
    return (
        heatmap(
            "Time to first token", "Requests per bucket.", spread(schema.TIME_TO_FIRST_TOKEN), unit="s", empty=none
        ),
        heatmap("Inter-token latency", "Tokens per bucket.", spread(schema.INTER_TOKEN_LATENCY), unit="s", empty=none),
        heatmap("Request duration", "Requests per bucket.", spread(schema.REQUEST_DURATION), unit="s", empty=none),
    )


def _speculation(scope: Scope) -> tuple[Panel, ...]:
    accepted, drafted = schema.SPEC_DECODE_ACCEPTED_TOKENS, schema.SPEC_DECODE_DRAFT_TOKENS
    none = "without speculative decoding"
    return (
        lines(
            "Acceptance rate",
            "Share of draft tokens accepted by the model; worthwhile from about 80 %.",
            Query(scope.share(accepted, drafted, MODEL), BY_MODEL),
            unit="percentunit",
            highest=1,
            steps=below(0.8),
            empty=none,
        ),
        lines(
            "Acceptance rate, as averaged by the engine",
            "For engines that expose no counters; 0 if nothing is drafted.",
            Query(f"max by ({MODEL}) ({scope.of(schema.SPEC_DECODE_ACCEPTANCE)})", BY_MODEL),
            unit="percentunit",
            highest=1,
            empty=none,
        ),
        lines(
            "Drafted and accepted tokens",
            "Per second.",
            Query(f"sum by ({MODEL}) ({scope.rate(drafted)})", f"{BY_MODEL} drafted"),
            Query(f"sum by ({MODEL}) ({scope.rate(accepted)})", f"{BY_MODEL} accepted"),
            unit="tokens/s",
            styles=((" drafted$", quiet()),),
            empty=none,
        ),
    )


def _router(scope: Scope) -> tuple[Panel, ...]:
    none = "without a router among the targets"
    return (
        lines(
            "Requests at the router",
            "Per second: received, retried, rejected, failed.",
            Query(f"sum by (engine, target) ({scope.rate(schema.ROUTER_REQUESTS)})", "{{target}} received"),
            Query(f"sum by (engine, target) ({scope.rate(schema.ROUTER_RETRIES)})", "{{target}} retried"),
            Query(f"sum by (engine, target) ({scope.rate(schema.ROUTER_REJECTED)})", "{{target}} rejected"),
            Query(f"sum by (engine, target) ({scope.rate(schema.ROUTER_ERRORS)})", "{{target}} failed"),
            unit="reqps",
            empty=none,
        ),
        lines(
            "In progress at each worker",
            "Requests in progress at each worker: does the router balance them?",
            Query(f"sum by (engine, worker) ({scope.of(schema.ROUTER_WORKER_REQUESTS)})", "{{worker}}"),
            empty=none,
        ),
        lines(
            "Healthy workers",
            "And (dashed) all workers known to the router.",
            Query(f"sum by (engine, target) ({scope.of(schema.ROUTER_WORKER_HEALTHY)})", "{{target}} healthy"),
            Query(f"sum by (engine, target) ({scope.of(schema.ROUTER_WORKERS)})", "{{target}} known"),
            styles=((" known$", dashed()),),
            empty=none,
        ),
    )
