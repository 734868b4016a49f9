"""Engines side by side on the user's own traffic: throughput, latency, memory, cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.bundle.dashboards.dashboard import Row
from llm_headroom.bundle.dashboards.panel import Column, Query
from llm_headroom.bundle.dashboards.parts import bars, lines, table
from llm_headroom.bundle.dashboards.plan import Plan
from llm_headroom.bundle.dashboards.scope import BY_MODEL, MODEL, Scope

if TYPE_CHECKING:
    from llm_headroom.bundle.dashboards.panel import Panel
    from llm_headroom.model import Metric
    from llm_headroom.thresholds import Thresholds

_ENGINE = "{{engine}}"
_RANGE = "$__range"
_SHOWN = "Over the time range shown."


def _rows(scope: Scope, _limits: Thresholds, _alerts: str) -> tuple[Row, ...]:
    return (
        Row("Which engine serves most, and how fast?", (_summary(scope),)),
        Row("How do they compare over time?", _curves(scope)),
        Row("What do they use the GPUs' memory for?", _memory(scope)),
        Row("What does a token cost?", _cost(scope)),
        Row("How do models share an engine?", _models(scope)),
    )


DASHBOARD: Final = Plan(
    "compare",
    "Engine comparison",
    "Which engine serves this traffic best? Each on its own load: compare like with like.",
    _rows,
    since="now-30m",
    baseline=True,
)


def _tokens(scope: Scope, *more: str) -> str:
    return scope.rate(schema.GENERATION_TOKENS, *more, window=_RANGE)


def _exposed(scope: Scope, expr: str) -> str:
    return scope.exposed(expr, "engine")


def _summary(scope: Scope) -> Panel:
    generated = f"sum by (engine) ({_tokens(scope)})"
    baseline = f'scalar(sum(rate(llm_generation_tokens_total{{{scope.matchers(())}, engine="$baseline"}}[{_RANGE}])))'
    gpus = f"sum by (engine) ({scope.of(schema.ENGINE_GPUS)})"
    finished = f"sum by (engine) ({scope.rate(schema.REQUESTS_FINISHED, window=_RANGE)})"

    def p99(metric: Metric) -> str:
        return _exposed(scope, scope.quantile(0.99, metric, by="engine", window=_RANGE))

    return table(
        "Engines on their own traffic",
        f"{_SHOWN} The baseline is chosen above. Metrics that an engine does not expose are marked. Quantiles are "
        "estimated within each engine's own buckets: ignore differences smaller than a bucket.",
        (
            Column(title="Engine", label="engine"),
            (_exposed(scope, generated), Column(title="Generated", unit="tokens/s", width=135)),
            (
                _exposed(scope, f"{generated} / {baseline} - 1"),
                Column(title="Against baseline", unit="percentunit", width=135),
            ),
            (_exposed(scope, f"{generated} / {gpus}"), Column(title="Per GPU", unit="tokens/s", width=135)),
            (_exposed(scope, finished), Column(title="Requests", unit="reqps", width=135)),
            (p99(schema.TIME_TO_FIRST_TOKEN), Column(title="TTFT p99", unit="s", width=135)),
            (p99(schema.TIME_PER_OUTPUT_TOKEN), Column(title="TPOT p99", unit="s", width=135)),
            (p99(schema.REQUEST_DURATION), Column(title="Duration p99", unit="s", width=135)),
            (
                _exposed(
                    scope,
                    scope.share(schema.SLO_REQUESTS_GOOD, schema.SLO_REQUESTS, "engine", slo="ttft", window=_RANGE),
                ),
                Column(title="TTFT SLO", unit="percentunit", width=135),
            ),
        ),
        height=6,
    )


def _curves(scope: Scope) -> tuple[Panel, ...]:
    return (
        lines(
            "Generated tokens",
            "Tokens per second.",
            Query(f"sum by (engine) ({scope.rate(schema.GENERATION_TOKENS)})", _ENGINE),
            unit="tokens/s",
        ),
        lines(
            "Time to first token, p99",
            "Time from arrival to the first token.",
            Query(scope.quantile(0.99, schema.TIME_TO_FIRST_TOKEN, by="engine"), _ENGINE),
            unit="s",
        ),
        lines(
            "Time per output token, p99",
            "Mean time per token after the first one of each finished request.",
            Query(scope.quantile(0.99, schema.TIME_PER_OUTPUT_TOKEN, by="engine"), _ENGINE),
            unit="s",
        ),
    )


def _memory(scope: Scope) -> tuple[Panel, ...]:
    def held(*kinds: str) -> str:
        chosen = scope.of(schema.GPU_MEMORY_ENGINE, f'kind=~"{"|".join(kinds)}"')
        return f"sum by (engine) ({chosen})"

    every = f"sum by (engine) ({scope.of(schema.GPU_MEMORY_ENGINE)})"
    return (
        table(
            "GPU memory by use",
            "Now, on all GPUs of an engine. Weights that are not exposed are under Rest; an engine that "
            "exposes no parts has its whole model under Weights.",
            (
                Column(title="Engine", label="engine"),
                (
                    held("kv_used", "kv_evictable", "kv_free", "kv_cache"),
                    Column(title="KV cache", unit="bytes", width=115),
                ),
                (held("weights", "model"), Column(title="Weights", unit="bytes", width=115)),
                (held("graph", "other"), Column(title="Rest", unit="bytes", width=115)),
                (every, Column(title="All", unit="bytes", width=115)),
            ),
            width=14,
            height=6,
        ),
        bars(
            "GPU memory by engine",
            "Memory held by each engine's processes now, on all their GPUs.",
            Query(every, _ENGINE),
            unit="bytes",
            lowest=0,
            width=10,
            height=6,
        ),
    )


def _cost(scope: Scope) -> tuple[Panel, ...]:
    spent = scope.rate(schema.ENGINE_COST, window=_RANGE)
    joules = scope.rate(schema.ENGINE_ENERGY, window=_RANGE)
    # A target that counts no tokens must not lend its price to one that does.
    counted = f"sum by (engine) ({_tokens(scope)})"
    price = f"sum by (engine, currency) ({spent}) / on (engine) group_left () {counted} * 1e6"
    return (
        table(
            "Price and energy",
            f"{_SHOWN} The price needs a price per GPU-hour in llm-headroom's configuration.",
            (
                Column(title="Engine", label="engine"),
                Column(title="Currency", label="currency", width=80),
                (price, Column(title="Per million tokens", width=140)),
                (f"sum by (engine) ({joules}) / {counted}", Column(title="Energy per token", unit="joule", width=130)),
                (f"{counted} / sum by (engine) ({joules})", Column(title="Tokens per joule", unit="none", width=130)),
            ),
            width=12,
            empty="without a price and without the GPUs' energy",
        ),
        lines(
            "Cost per million generated tokens",
            "Over the tokens of the last five minutes, in the configured currency; the cheapest target.",
            Query(f"min by (engine, currency) ({scope.of(schema.COST_PER_MILLION_TOKENS)})", "{{engine}} {{currency}}"),
            width=6,
            empty="without a price in llm-headroom's configuration",
        ),
        lines(
            "Energy per generated token",
            "Over the tokens of the last five minutes; the most efficient target.",
            Query(f"min by (engine) ({scope.of(schema.ENERGY_PER_TOKEN)})", _ENGINE),
            unit="joule",
            width=6,
        ),
    )


def _models(scope: Scope) -> tuple[Panel, ...]:
    loaded = f"count by (engine) (count by ({MODEL}) ({scope.of(schema.MODEL_LOADED)} == 1))"
    return (
        table(
            "Models",
            f"{_SHOWN} How each model performs.",
            (
                Column(title="Engine", label="engine"),
                Column(title="Model", label="model"),
                (f"max by ({MODEL}) ({scope.of(schema.MODEL_LOADED)})", Column(title="Loaded", width=80)),
                (f"sum by ({MODEL}) ({_tokens(scope)})", Column(title="Generated", unit="tokens/s", width=120)),
                (
                    scope.quantile(0.99, schema.TIME_TO_FIRST_TOKEN, window=_RANGE),
                    Column(title="TTFT p99", unit="s", width=100),
                ),
            ),
            width=12,
        ),
        lines(
            "Models in memory",
            "Number of models loaded in each engine.",
            Query(loaded, _ENGINE),
            width=6,
        ),
        lines(
            "Generated tokens by model",
            "Tokens per second.",
            Query(f"sum by ({MODEL}) ({scope.rate(schema.GENERATION_TOKENS)})", BY_MODEL),
            unit="tokens/s",
            width=6,
        ),
    )
