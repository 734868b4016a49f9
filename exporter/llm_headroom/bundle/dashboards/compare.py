"""Engines side by side on the user's own traffic: the picture for those who pay for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.bundle.dashboards.colours import BAD
from llm_headroom.bundle.dashboards.dashboard import Row
from llm_headroom.bundle.dashboards.panel import NOT_KNOWN, Column, Query, Steps, below
from llm_headroom.bundle.dashboards.parts import OBJECTIVE, bars, lines, objective, stat, table
from llm_headroom.bundle.dashboards.plan import Plan
from llm_headroom.bundle.dashboards.scope import BY_MODEL, ENGINES, MODEL, SOURCE, WINDOW, Scope
from llm_headroom.thresholds import LOAD_HEADROOM_LOW

if TYPE_CHECKING:
    from llm_headroom.bundle.dashboards.panel import Panel
    from llm_headroom.model import Metric
    from llm_headroom.thresholds import Thresholds

_ENGINE: Final = "{{engine}}"
_RANGE: Final = "$__range"
_SHOWN: Final = "Over the time range shown."
_CURRENCY: Final = "${__field.labels.currency}"
_NO_PRICE: Final = "without a price in llm-headroom's configuration"


def _rows(every: Scope, _limits: Thresholds, _alerts: str) -> tuple[Row, ...]:
    scope = every.once()
    return (
        Row("Is the objective met, what does it cost, and how much more fits?", _manager(scope, every)),
        Row("Which engine serves most, how fast, and for how much?", (_summary(scope), *_bars(scope))),
        Row("How do they compare over time?", _curves(scope)),
        Row("What does a token cost?", _cost(scope)),
        Row("What do they use the GPUs' memory for?", _memory(scope)),
        Row("How do models share an engine?", _models(scope)),
    )


DASHBOARD: Final = Plan(
    "compare",
    "Which engine serves this traffic best, and at what price? Each on its own load: compare like with like.",
    _rows,
    since="now-30m",
    baseline=True,
)


def _tokens(scope: Scope, *more: str) -> str:
    return scope.rate(schema.GENERATION_TOKENS, *more, window=_RANGE)


def _exposed(scope: Scope, expr: str) -> str:
    return scope.exposed(expr, "engine")


def _both(tokens: str, spent: str, *by: str) -> tuple[str, str]:
    """What was generated, and what was spent on it, of the targets of which both are known.

    One that counts no tokens must not lend its price to those that do, nor one without a price its tokens.
    """
    generated = f"sum by ({SOURCE}) ({tokens})"
    paid = f"sum by ({SOURCE}, currency) ({spent})"  # only money has the label
    grouping = f"sum by ({', '.join(by)})" if by else "sum"
    return (
        f"{grouping} ({paid} * 0 + on ({SOURCE}) group_left () {generated})",
        f"{grouping} ({paid} and on ({SOURCE}) {generated})",
    )


def _price(scope: Scope, *by: str) -> str:
    """The cost per million tokens; nothing where none was generated."""
    tokens, cost = _both(_tokens(scope), scope.rate(schema.ENGINE_COST, window=_RANGE), *by, "currency")
    return f"{cost} / ({tokens} > 0) * 1e6"


def _per_joule(scope: Scope, *by: str) -> str:
    """The generated tokens per joule."""
    return " / ".join(_both(_tokens(scope), scope.rate(schema.ENGINE_ENERGY, window=_RANGE), *by))


def _per_gpu(scope: Scope, window: str) -> str:
    """The tokens that each engine generated per second and GPU."""
    tokens = scope.rate(schema.GENERATION_TOKENS, window=window)
    return " / ".join(_both(tokens, scope.of(schema.ENGINE_GPUS), "engine"))


def _manager(scope: Scope, every_target: Scope) -> tuple[Panel, ...]:
    # Only the measuring proxy counts requests that were not answered at all.
    good, every = (
        f"sum by (slo) ({every_target.rate(one, window=_RANGE)})"
        for one in (schema.SLO_REQUESTS_GOOD, schema.SLO_REQUESTS)
    )
    target = f"max by (slo) ({every_target.of(schema.SLO_OBJECTIVE)})"
    spent = scope.rate(schema.ENGINE_COST, window=_RANGE)
    fits = f"sum({scope.of(schema.SUSTAINABLE_REQUESTS, objective='ttft')})"
    room = scope.of(schema.LOAD_HEADROOM)
    return (
        stat(
            "Budget left",
            f"{_SHOWN} Of the objective that fares worst: the share of the requests that may miss it and have not yet. "
            "Below 0 the objective is missed.",
            f"bottomk(1, 1 - (1 - {good} / {every}) / (1 - {target}))",
            whose="${__field.labels.slo}",
            unit="percentunit",
            decimals=0,
            steps=below(0.25, 0),
            empty="without traffic",
            alert="LLMLatencyBudgetBurnFast",
        ),
        stat(
            "Within TTFT",
            f"{_SHOWN} Share of first tokens within their objective, of all requests.",
            scope.share(schema.SLO_REQUESTS_GOOD, schema.SLO_REQUESTS, "", slo="ttft", window=_RANGE),
            whose="mean",
            unit="percentunit",
            decimals=1,
            empty="without traffic",
        ),
        stat(
            "Per hour",
            f"{_SHOWN} What the engines' GPUs cost, in the configured currency.",
            f"sum by (currency) ({spent}) * 3600",
            whose=_CURRENCY,
            decimals=2,
            empty=_NO_PRICE,
        ),
        stat(
            "Price of 1M",
            f"{_SHOWN} What a million generated tokens cost.",
            _price(scope),
            whose=_CURRENCY,
            decimals=2,
            empty=_NO_PRICE,
        ),
        stat(
            "Per joule",
            f"{_SHOWN} Generated tokens per joule of the engines' GPUs.",
            _per_joule(scope),
            unit="suffix: tokens",
            decimals=2,
            empty="where GPUs are not monitored",
        ),
        stat(
            "Served",
            "Requests per second, of five minutes.",
            scope.exposed(f"sum({scope.rate(schema.REQUESTS_FINISHED)})"),
            whose="sum",
            unit="requests/s",
            decimals=1,
        ),
        stat(
            "Would fit",
            "Requests per second like those of the last 15 minutes that the engines take within the objective of first "
            "tokens; of those where it is known.",
            scope.exposed(fits, absent=NOT_KNOWN),
            whose="sum",
            unit="requests/s",
            decimals=1,
        ),
        stat(
            "Headroom",
            "How many times its traffic the target takes that is nearest its limit; below 1 it breaks an objective.",
            scope.exposed(f"min({room})", absent=NOT_KNOWN),
            whose="worst",
            unit="suffix: ×",
            decimals=1,
            steps=below(LOAD_HEADROOM_LOW, 1),
        ),
    )


def _summary(scope: Scope) -> Panel:
    per_gpu = _per_gpu(scope, _RANGE)
    base = f'rate(llm_generation_tokens_total{{{scope.matchers(())}, engine="$baseline"}}[{_RANGE}])'
    base_gpus = f'llm_engine_gpus{{{scope.matchers(())}, engine="$baseline"}}'
    baseline = f"scalar({' / '.join(_both(base, base_gpus))})"

    def quantile(share: float, metric: Metric) -> str:
        return _exposed(scope, scope.engines_quantile(share, metric, _RANGE))

    return table(
        "Engines on their own traffic",
        f"{_SHOWN} Throughput is per GPU, and against that of the baseline, which is chosen above. Quantiles are "
        "estimated within each engine's own buckets: ignore differences smaller than a bucket; with all instances and "
        "targets they need llm-headroom's recording rules. Price: of a million generated tokens, in the configured "
        "currency.",
        (
            Column(title="Engine", label="engine"),
            (f"sum by (engine) ({scope.of(schema.UP, ENGINES)})", Column(title="Up", decimals=0, width=50)),
            (
                _exposed(scope, f"sum by (engine) ({scope.rate(schema.REQUESTS_FINISHED, window=_RANGE)})"),
                Column(title="Requests/s", decimals=2, width=95),
            ),
            (_exposed(scope, per_gpu), Column(title="Tokens/s per GPU", decimals=0, width=135)),
            (
                _exposed(scope, f"{per_gpu} / {baseline} - 1"),
                Column(title="vs. baseline", unit="percentunit", decimals=0, width=105),
            ),
            (quantile(0.5, schema.TIME_TO_FIRST_TOKEN), Column(title="TTFT p50", unit="s", width=90)),
            (quantile(0.95, schema.TIME_TO_FIRST_TOKEN), Column(title="TTFT p95", unit="s", width=90)),
            (quantile(0.95, schema.INTER_TOKEN_LATENCY), Column(title="ITL p95", unit="s", width=90)),
            (quantile(0.95, schema.REQUEST_DURATION), Column(title="E2E p95", unit="s", width=90)),
            (
                _exposed(
                    scope,
                    scope.share(schema.SLO_REQUESTS_GOOD, schema.SLO_REQUESTS, "engine", slo="ttft", window=_RANGE),
                ),
                Column(title="TTFT SLO", unit="percentunit", decimals=1, width=90),
            ),
            (
                _exposed(scope, f"sum by (engine) ({_price(scope, 'engine')})"),
                Column(title="Price", decimals=2, width=80),
            ),
            (_exposed(scope, _per_joule(scope, "engine")), Column(title="Tokens/J", unit="none", decimals=2, width=85)),
        ),
        height=6,
        empty="without a source that is up",
    )


def _bars(scope: Scope) -> tuple[Panel, ...]:
    first = scope.engines_quantile(0.95, schema.TIME_TO_FIRST_TOKEN, _RANGE)
    shown = {"width": 6, "height": 6, "lowest": 0}
    return (
        bars("Tokens/s per GPU", f"{_SHOWN} More is better.", Query(_per_gpu(scope, _RANGE), _ENGINE), **shown),
        bars("TTFT p95", f"{_SHOWN} Less is better.", Query(f"{first} >= 0", _ENGINE), unit="s", **shown),
        bars(
            "Price of 1 M tokens",
            f"{_SHOWN} Less is better.",
            Query(_price(scope, "engine"), _ENGINE),
            decimals=2,
            empty=_NO_PRICE,
            **shown,
        ),
        bars(
            "Tokens per joule",
            f"{_SHOWN} More is better.",
            Query(_per_joule(scope, "engine"), _ENGINE),
            unit="none",
            decimals=2,
            empty="where GPUs are not monitored",
            **shown,
        ),
    )


def _curves(scope: Scope) -> tuple[Panel, ...]:
    return (
        lines(
            "Generated tokens per GPU",
            "Tokens per second.",
            Query(_per_gpu(scope, WINDOW), _ENGINE),
            unit="tokens/s",
        ),
        lines(
            "Time to first token, p95",
            "Time from arrival to the first token, and the objective.",
            Query(scope.engines_quantile(0.95, schema.TIME_TO_FIRST_TOKEN), _ENGINE),
            objective(scope, "ttft"),
            unit="s",
            styles=(OBJECTIVE,),
        ),
        lines(
            "Inter-token latency, p95",
            "Time between successive tokens of one request, and the objective.",
            Query(scope.engines_quantile(0.95, schema.INTER_TOKEN_LATENCY), _ENGINE),
            objective(scope, "inter_token_latency"),
            unit="s",
            styles=(OBJECTIVE,),
        ),
    )


def _cost(scope: Scope) -> tuple[Panel, ...]:
    return (
        lines(
            "Time per output token, p95",
            "Mean time per token after the first one of each finished request.",
            Query(scope.quantile(0.95, schema.TIME_PER_OUTPUT_TOKEN, "engine"), _ENGINE),
            unit="s",
            width=6,
        ),
        lines(
            "Cost per million generated tokens",
            "Of five minutes, in the configured currency; the cheapest target of each engine.",
            Query(f"min by (engine) ({scope.of(schema.COST_PER_MILLION_TOKENS)})", _ENGINE),
            empty=_NO_PRICE,
            width=6,
        ),
        lines(
            "Energy per generated token",
            "Of five minutes; the most efficient target. That of a shared GPU is split by the memory held.",
            Query(f"min by (engine) ({scope.of(schema.ENERGY_PER_TOKEN)})", _ENGINE),
            unit="joule",
            width=6,
        ),
        lines(
            "Error budget left",
            "Of five minutes: below 0 more requests miss the objective than may.",
            Query(
                f"1 - (1 - {scope.share(schema.SLO_REQUESTS_GOOD, schema.SLO_REQUESTS, 'engine', slo='ttft')}) / "
                f"(1 - max by (engine) ({scope.of(schema.SLO_OBJECTIVE, slo='ttft')}))",
                _ENGINE,
            ),
            unit="percentunit",
            highest=1,
            lowest=-1,
            steps=Steps("text", ((0, BAD),)),
            alert="LLMLatencyBudgetBurnFast",
            width=6,
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


def _models(scope: Scope) -> tuple[Panel, ...]:
    return (
        table(
            "Models",
            f"{_SHOWN} How each model performs.",
            (
                Column(title="Engine", label="engine", width=90),
                Column(title="Model", label="model"),
                (f"sum by ({MODEL}) ({scope.of(schema.MODEL_LOADED)})", Column(title="Loaded", width=80)),
                (f"sum by ({MODEL}) ({_tokens(scope)})", Column(title="Generated", unit="tokens/s", width=130)),
                (
                    scope.quantile(0.95, schema.TIME_TO_FIRST_TOKEN, window=_RANGE),
                    Column(title="TTFT p95", unit="s", width=100),
                ),
            ),
            width=12,
        ),
        lines(
            "Generated tokens by model",
            "Tokens per second.",
            Query(f"sum by ({MODEL}) ({scope.rate(schema.GENERATION_TOKENS)})", BY_MODEL),
            unit="tokens/s",
            width=12,
            calcs=("lastNotNull", "max"),
        ),
    )
