"""One engine and model in the order in which a request lives: arrival, queue, prefill, decode, cache."""

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
        Row("How is it doing?", _numbers(scope, limits)),
        Row("What arrives, and how does it end?", _arrivals(scope)),
        Row("Do requests wait?", _queue(scope, limits)),
        Row("How long until the first token?", _prefill(scope, limits)),
        Row("How fast does the text flow?", _decode(scope, limits)),
        Row("How much work is done?", _tokens(scope)),
        Row("Does the cache help, and does it suffice?", _cache(scope, limits)),
        Row(
            "How are $engine's latencies spread?",
            _heatmaps(scope),
            optional="for whom quantiles hide too much",
            repeat="engine",
        ),
        Row("Does speculative decoding pay?", _speculation(scope), optional="for engines with a draft model"),
        Row("What does the router do?", _router(scope), optional="for fleets behind SGLang's router or gateway"),
    )


DASHBOARD: Final = Plan(
    "engine", "Engine and model", "Where does a request's time go? In the order in which a request lives.", _rows
)


def _quantiles(scope: Scope, metric: Metric) -> tuple[Query, ...]:
    return tuple(
        Query(scope.quantile(share, metric), f"{BY_MODEL} {name}")
        for share, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    )


def _numbers(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    def worst(metric: Metric) -> str:
        return scope.told(f"max({scope.quantile(0.95, metric)})")

    return (
        finished_requests_now(scope),
        stat("Running", "Requests in the running batch.", scope.told(f"sum({scope.of(schema.REQUESTS_RUNNING)})")),
        stat(
            "Waiting",
            "Requests that wait to be scheduled.",
            scope.told(f"sum({scope.of(schema.REQUESTS_WAITING)})"),
            steps=above(limits.waiting_high),
            alert="LLMQueueBuilding",
        ),
        stat(
            "TTFT p95",
            "Time to the first token of the slowest engine and model.",
            worst(schema.TIME_TO_FIRST_TOKEN),
            unit="s",
            alert="LLMFirstTokensSlow",
        ),
        stat(
            "ITL p95",
            "Time between tokens of the slowest engine and model.",
            worst(schema.INTER_TOKEN_LATENCY),
            unit="s",
            steps=above(limits.inter_token_slow),
            alert="LLMInterTokenLatencySlow",
        ),
        stat(
            "E2E p95",
            "From arrival to end of the slowest engine and model.",
            worst(schema.REQUEST_DURATION),
            unit="s",
        ),
        failed_share(scope, limits),
        stat(
            "Stalled",
            "Engines that have requests, but whose steps and tokens have not moved for a minute.",
            scope.told(f"sum({scope.of(schema.ENGINE_STALLED)})"),
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
            "Mean tokens of prompts and answers. A larger prompt costs prefill, a longer answer costs KV cache.",
            Query(scope.mean(prompts), f"{BY_MODEL} prompt"),
            Query(scope.mean(answers), f"{BY_MODEL} answer"),
            styles=((" answer$", quiet()),),
        ),
        lines(
            "How requests end",
            "Per second, by reason. Engines that tell no reason have one curve; `abort` is a client that left.",
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
            "Requests that wait to be scheduled.",
            Query(f"sum by ({MODEL}) ({scope.of(schema.REQUESTS_WAITING)})", BY_MODEL),
            steps=above(limits.waiting_high),
            alert="LLMQueueBuilding",
        ),
        lines(
            "Running, and the limit",
            "Requests in the running batch beside the most that the engine runs at once. A queue below the limit is "
            "one for KV cache or prefill.",
            Query(f"sum by ({MODEL}) ({scope.of(schema.REQUESTS_RUNNING)})", BY_MODEL),
            Query(f"sum by ({MODEL}) ({scope.of(schema.REQUESTS_RUNNING_LIMIT)})", f"{BY_MODEL} limit"),
            styles=((" limit$", dashed()),),
        ),
        lines(
            "Time in the queue",
            "From arrival to first scheduling.",
            *_quantiles(scope, schema.REQUEST_QUEUE),
            unit="s",
            styles=_QUANTILES,
        ),
    )


def _prefill(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    return (
        lines(
            "Time to first token",
            "From arrival to the first token, the queue included.",
            *_quantiles(scope, schema.TIME_TO_FIRST_TOKEN),
            unit="s",
            styles=_QUANTILES,
            alert="LLMFirstTokensSlow",
        ),
        lines(
            "Slow first tokens",
            "Share of first tokens slower than the objective in the last 60 s, and (dashed) 300 s; the pager "
            "judges 2 min. Exact, as the objective lies on a bucket boundary. A gap is no traffic.",
            Query(f"max by ({MODEL}) ({scope.of(schema.TTFT_SLOW, window='60s')})", f"{BY_MODEL} 60 s"),
            Query(f"max by ({MODEL}) ({scope.of(schema.TTFT_SLOW, window='300s')})", f"{BY_MODEL} 300 s"),
            unit="percentunit",
            steps=above(limits.ttft_slow_share / 2, limits.ttft_slow_share),
            highest=1,
            styles=((" 300 s$", quiet()),),
            alert="LLMFirstTokensSlow",
        ),
        lines(
            "Prefill",
            "From first scheduling to the first token.",
            *_quantiles(scope, schema.REQUEST_PREFILL),
            unit="s",
            styles=_QUANTILES,
        ),
    )


def _decode(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    return (
        lines(
            "Between tokens",
            "Time between successive tokens of one request.",
            *_quantiles(scope, schema.INTER_TOKEN_LATENCY),
            unit="s",
            steps=above(limits.inter_token_slow),
            styles=_QUANTILES,
            alert="LLMInterTokenLatencySlow",
        ),
        lines(
            "Per output token",
            "Mean time per token after the first one, one observation for each finished request.",
            *_quantiles(scope, schema.TIME_PER_OUTPUT_TOKEN),
            unit="s",
            styles=_QUANTILES,
        ),
        lines(
            "Whole requests",
            "From arrival to end.",
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
            "Per second, and (dashed) those of them that were found in a cache and needed no prefill.",
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
            "Forward passes per second. Flat while requests run means stalled.",
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
            "Share of looked-up prompt tokens that were found. A gap is no traffic.",
            Query(scope.share(schema.PREFIX_CACHE_HITS, schema.PREFIX_CACHE_QUERIES, MODEL), BY_MODEL),
            unit="percentunit",
            highest=1,
        ),
        lines(
            "KV cache held by requests",
            "Share that cannot be reclaimed, of the fullest target; reusable cache is not in it.",
            Query(f"max by ({MODEL}) ({scope.of(schema.KV_CACHE_USAGE)})", BY_MODEL),
            unit="percentunit",
            steps=above(limits.kv_usage_high, limits.kv_usage_critical),
            highest=1,
            alert="LLMKVCacheHigh",
        ),
        lines(
            "Preemptions per finished request",
            "Running requests that were put back for want of KV cache.",
            Query(f"{preempted} / {finished}", BY_MODEL),
            unit="percentunit",
            steps=above(limits.preemption_share, limits.preemption_share_critical),
            at_least=0.1,
            alert="LLMPreemptionsHigh",
        ),
    )


def _heatmaps(scope: Scope) -> tuple[Panel, ...]:
    def spread(metric: Metric) -> str:
        return f"sum by (engine, le) ({scope.rate(metric, suffix='_bucket')})"

    none = "for an engine that tells no such histogram"
    return (
        heatmap(
            "Time to first token", "Requests per bucket.", spread(schema.TIME_TO_FIRST_TOKEN), unit="s", empty=none
        ),
        heatmap("Between tokens", "Tokens per bucket.", spread(schema.INTER_TOKEN_LATENCY), unit="s", empty=none),
        heatmap("Whole requests", "Requests per bucket.", spread(schema.REQUEST_DURATION), unit="s", empty=none),
    )


def _speculation(scope: Scope) -> tuple[Panel, ...]:
    accepted, drafted = schema.SPEC_DECODE_ACCEPTED_TOKENS, schema.SPEC_DECODE_DRAFT_TOKENS
    none = "without speculative decoding"
    return (
        lines(
            "Accepted share",
            "Share of the draft's tokens that the model accepted; about 0.8 and more pays.",
            Query(scope.share(accepted, drafted, MODEL), BY_MODEL),
            unit="percentunit",
            highest=1,
            steps=below(0.8),
            empty=none,
        ),
        lines(
            "Accepted share, as the engine averages it",
            "For engines that tell no counters; 0 where nothing is drafted.",
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
            "Per second: taken in, sent again, turned away, failed.",
            Query(f"sum by (engine, target) ({scope.rate(schema.ROUTER_REQUESTS)})", "{{target}} taken in"),
            Query(f"sum by (engine, target) ({scope.rate(schema.ROUTER_RETRIES)})", "{{target}} sent again"),
            Query(f"sum by (engine, target) ({scope.rate(schema.ROUTER_REJECTED)})", "{{target}} turned away"),
            Query(f"sum by (engine, target) ({scope.rate(schema.ROUTER_ERRORS)})", "{{target}} failed"),
            unit="reqps",
            empty=none,
        ),
        lines(
            "Under way at each worker",
            "Requests that the router has under way: does it spread them evenly?",
            Query(f"sum by (engine, worker) ({scope.of(schema.ROUTER_WORKER_REQUESTS)})", "{{worker}}"),
            empty=none,
        ),
        lines(
            "Healthy workers",
            "Beside all that the router knows (dashed).",
            Query(f"sum by (engine, target) ({scope.of(schema.ROUTER_WORKER_HEALTHY)})", "{{target}} healthy"),
            Query(f"sum by (engine, target) ({scope.of(schema.ROUTER_WORKERS)})", "{{target}} known"),
            styles=((" known$", dashed()),),
            empty=none,
        ),
    )
