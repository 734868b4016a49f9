"""The KV cache: what holds it, how much room is left, what is likely to come, and what else may bind first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.bundle.dashboards.dashboard import Row
from llm_headroom.bundle.dashboards.panel import NOT_FILLING, Query, Steps, above, below
from llm_headroom.bundle.dashboards.parts import areas, dashed, lines, quiet, stat
from llm_headroom.bundle.dashboards.plan import Plan
from llm_headroom.bundle.dashboards.scope import BY_TARGET, SOURCE, TARGET, Scope
from llm_headroom.thresholds import LOAD_HEADROOM_LOW

if TYPE_CHECKING:
    from llm_headroom.bundle.dashboards.panel import Panel
    from llm_headroom.thresholds import Thresholds

_EARLY = "until enough traffic was seen"
_TEN_MINUTES = "until ten busy minutes were seen"
_BY_TARGET_MODEL = "{{engine}} · {{target}} · {{model}}"


def _rows(scope: Scope, limits: Thresholds, _alerts: str) -> tuple[Row, ...]:
    return (
        Row("How much room is left?", _numbers(scope, limits)),
        Row("What holds the cache?", _held(scope, limits)),
        Row("How much more fits?", _room(scope, limits)),
        Row("Which resource binds first?", _binding(scope)),
        Row("What is likely to come, and why?", _risks(scope, limits)),
        Row(
            "Do Ollama's models fit?",
            _residency(scope, limits),
            optional="for engines that load models on demand",
        ),
    )


DASHBOARD: Final = Plan(
    "kv", "KV cache and capacity", "How much room is left for requests, and what will bind first?", _rows
)


def _numbers(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    used, capacity = (f"sum({scope.of(one)})" for one in (schema.KV_CACHE_USED, schema.KV_CACHE_CAPACITY))
    exhaustion = f"min({scope.of(schema.KV_CACHE_EXHAUSTION)})"
    return (
        stat(
            "KV held",
            "Share of all selected KV cache that cannot be reclaimed.",
            scope.told(f"{used} / {capacity}"),
            unit="percentunit",
            steps=above(limits.kv_usage_high, limits.kv_usage_critical),
            alert="LLMKVCacheHigh",
        ),
        stat(
            "Peak",
            "The highest share that requests hold, of all targets, in the last minute between scrapes.",
            scope.told(f"max({scope.of(schema.KV_CACHE_USAGE_PEAK)})"),
            unit="percentunit",
            steps=above(limits.kv_usage_high, limits.kv_usage_critical),
            alert="LLMKVCacheExhausted",
        ),
        stat(
            "Token room",
            "Tokens that can still be given to new requests: free and reusable ones, less what waits.",
            scope.told(f"sum({scope.of(schema.KV_CACHE_HEADROOM_TOKENS)})"),
        ),
        stat(
            "Room for",
            "Requests of the recent mean size that the fullest target can still admit and end.",
            scope.told(f"min({scope.of(schema.KV_CACHE_HEADROOM_REQUESTS)})"),
            decimals=0,
            steps=below(limits.headroom_requests_low),
            alert="LLMKVHeadroomLow",
        ),
        stat(
            "Full in",
            "Time until the first KV cache is full if demand stays. Look at it, do not page on it.",
            scope.told(f"{exhaustion} or min({scope.of(schema.KV_CACHE_HEADROOM_TOKENS)}) * 0 - {-NOT_FILLING}"),
            unit="s",
            steps=Steps("orange", ((limits.kv_exhaustion_soon, "green"),)),
            alert="LLMKVTimeToFull",
        ),
        stat(
            "Load headroom",
            "How many times its traffic the target takes that is nearest its limit; below 1 it breaks its objective.",
            scope.told(f"min({scope.of(schema.LOAD_HEADROOM, objective='ttft')})"),
            decimals=1,
            steps=below(LOAD_HEADROOM_LOW, 1),
        ),
        stat(
            "Risk",
            "Probability of KV cache trouble or slow first tokens within five minutes, of the target where it is "
            "highest.",
            scope.told(f"max({scope.of(schema.SATURATION_HIGH_WATER_RISK)})"),
            unit="percentunit",
            steps=above(limits.high_water_risk),
            alert="LLMSaturationRisk",
        ),
        stat(
            "Preemptions",
            "Running requests per second that were put back for want of KV cache.",
            scope.told(f"sum({scope.rate(schema.PREEMPTIONS)})"),
            unit="cps",
            alert="LLMPreemptionsHigh",
        ),
    )


def _held(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    used, evictable, capacity = (
        f"sum({scope.of(one)})" for one in (schema.KV_CACHE_USED, schema.KV_CACHE_EVICTABLE, schema.KV_CACHE_CAPACITY)
    )
    free = f"{capacity} - {used} - ({evictable} or {used} * 0)"
    return (
        areas(
            "Tokens by use",
            "Held by requests, kept for reuse (reclaimed when needed), and free, up to the capacity. An engine that "
            "does not tell what it keeps for reuse has it under free.",
            Query(used, "held by requests"),
            Query(evictable, "kept for reuse"),
            Query(free, "free"),
            Query(capacity, "capacity"),
            width=12,
            height=8,
            styles=(
                ("^held", {"color": {"mode": "fixed", "fixedColor": "dark-orange"}}),
                ("^kept", {"color": {"mode": "fixed", "fixedColor": "dark-blue"}}),
                ("^free", {"color": {"mode": "fixed", "fixedColor": "dark-green"}, "custom.fillOpacity": 30}),
                ("^capacity", dashed("text")),
            ),
        ),
        lines(
            "Share held by requests",
            "Per target, and (dashed) its highest poll of the last minute. A full cache does not crash an engine: it "
            "costs preemptions, queueing and first tokens.",
            Query(f"max by ({SOURCE}) ({scope.of(schema.KV_CACHE_USAGE)})", BY_TARGET),
            Query(f"max by ({SOURCE}) ({scope.of(schema.KV_CACHE_USAGE_PEAK)})", f"{BY_TARGET} peak"),
            unit="percentunit",
            width=12,
            height=8,
            highest=1,
            steps=above(limits.kv_usage_high, limits.kv_usage_critical),
            styles=((" peak$", quiet()),),
            alert="LLMKVCacheHigh",
        ),
    )


def _room(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    return (
        lines(
            "Room in tokens",
            "Free and reusable tokens less what waits.",
            Query(f"sum by ({SOURCE}) ({scope.of(schema.KV_CACHE_HEADROOM_TOKENS)})", BY_TARGET),
        ),
        lines(
            "Room in requests",
            "Requests of the recent mean size that can be admitted and end; at most what the engine's own limit of "
            "running requests leaves.",
            Query(f"min by ({SOURCE}) ({scope.of(schema.KV_CACHE_HEADROOM_REQUESTS)})", BY_TARGET),
            steps=below(limits.headroom_requests_low),
            alert="LLMKVHeadroomLow",
        ),
        lines(
            "Time until full",
            "If demand stays as it is. A gap is good news: it does not fill up.",
            Query(f"min by ({SOURCE}) ({scope.of(schema.KV_CACHE_EXHAUSTION)})", BY_TARGET),
            unit="s",
            steps=Steps("orange", ((limits.kv_exhaustion_soon, "green"),)),
            empty="while no KV cache fills up",
            alert="LLMKVTimeToFull",
        ),
    )


def _binding(scope: Scope) -> tuple[Panel, ...]:
    binding = f"max by ({SOURCE}, objective, resource) ({scope.of(schema.LOAD_HEADROOM_BINDING)} == 1)"
    return (
        lines(
            "Load headroom",
            "How many times its traffic of 15 minutes each target takes before its first tokens leave their objective; "
            "16 is 16 or more.",
            Query(f"min by ({SOURCE}) ({scope.of(schema.LOAD_HEADROOM, objective='ttft')})", BY_TARGET),
            width=12,
            steps=below(LOAD_HEADROOM_LOW, 1),
            empty=_TEN_MINUTES,
        ),
        lines(
            "Saturation",
            "Load as a share of what the target takes, its queue included; 200 % at most. Scale on it, target 80 %.",
            Query(f"max by ({SOURCE}) ({scope.of(schema.SATURATION, resource='max')})", BY_TARGET),
            unit="percentunit",
            width=12,
            highest=2,
            steps=Steps("green", ((1, "red"),)),
            empty=_TEN_MINUTES,
        ),
        lines(
            "What binds",
            "The resource that tokens wait for where the load headroom ends.",
            Query(binding, f"{BY_TARGET}: {{{{objective}}}}, {{{{resource}}}}"),
            width=12,
            empty=_TEN_MINUTES,
        ),
        lines(
            "Pressure by resource",
            "Demand over what there is, of the target of each engine where it is greatest: KV cache, concurrency, "
            "prefill, GPU memory. No share of what an engine takes. Cut at 200 %.",
            Query(f"max by (engine, resource) ({scope.of(schema.PRESSURE)})", "{{resource}} ({{engine}})"),
            unit="percentunit",
            width=12,
            highest=2,
            steps=Steps("green", ((1, "red"),)),
        ),
    )


def _risks(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    waiting = f"sum by ({SOURCE}) ({scope.of(schema.REQUESTS_WAITING)})"
    prompts = f"sum by ({SOURCE}) ({scope.rate(schema.PROMPT_TOKENS)})"
    answers = f"sum by ({SOURCE}) ({scope.rate(schema.GENERATION_TOKENS)})"
    return (
        lines(
            "Risk within five minutes",
            "Probability of KV cache trouble or slow first tokens, from the highest forecast of the last ten minutes.",
            Query(f"max by ({SOURCE}) ({scope.of(schema.SATURATION_HIGH_WATER_RISK)})", BY_TARGET),
            unit="percentunit",
            highest=1,
            steps=above(limits.high_water_risk),
            empty=_EARLY,
            alert="LLMSaturationRisk",
        ),
        lines(
            "Of that, now, and by the KV cache alone",
            "Probability from the present forecast, and (dashed) that of preemptions or blocked requests. Take them "
            "for an order, not for calibrated probabilities.",
            Query(f"max by ({SOURCE}) ({scope.of(schema.SATURATION_RISK)})", BY_TARGET),
            Query(f"max by ({SOURCE}) ({scope.of(schema.KV_SATURATION_RISK)})", f"{BY_TARGET} KV cache"),
            unit="percentunit",
            highest=1,
            styles=((" KV cache$", quiet()),),
            empty=_EARLY,
        ),
        lines(
            "Demand",
            "Prompt tokens per second, and (dashed) generated ones: what fills the cache.",
            Query(prompts, BY_TARGET),
            Query(answers, f"{BY_TARGET} generated"),
            unit="tokens/s",
            styles=((" generated$", quiet()),),
        ),
        lines(
            "Waiting requests",
            "What waits is demand that has not got its KV cache yet.",
            Query(waiting, BY_TARGET),
            steps=above(limits.waiting_high),
            width=12,
            alert="LLMQueueBuilding",
        ),
        lines(
            "Preemptions",
            "Running requests per second that were put back for want of KV cache.",
            Query(f"sum by ({SOURCE}) ({scope.rate(schema.PREEMPTIONS)})", BY_TARGET),
            unit="cps",
            at_least=1,
            width=12,
            alert="LLMPreemptionsHigh",
        ),
    )


def _residency(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    none = "without Ollama, or before its first model is loaded"
    return (
        lines(
            "Share of the model on GPUs",
            "Below 1 a part runs on the CPU, many times slower.",
            Query(f"min by ({TARGET}) ({scope.of(schema.MODEL_OFFLOAD)})", _BY_TARGET_MODEL),
            unit="percentunit",
            highest=1,
            steps=below(limits.offload_low),
            empty=none,
            alert="LLMModelSpilledToCPU",
        ),
        lines(
            "Models in memory",
            "1 while a model is loaded. One that comes and goes pays for its load each time.",
            Query(f"max by ({TARGET}) ({scope.of(schema.MODEL_LOADED, engine='ollama')})", _BY_TARGET_MODEL),
            empty=none,
            alert="LLMModelThrash",
        ),
        lines(
            "Risk of spill and of eviction",
            "That a model, or its next load, does not fit on the GPUs; and (dashed) that it is unloaded for another.",
            Query(f"max by ({TARGET}) ({scope.of(schema.SPILL_RISK)})", f"{_BY_TARGET_MODEL} spill"),
            Query(f"max by ({TARGET}) ({scope.of(schema.EVICTION_RISK)})", f"{_BY_TARGET_MODEL} eviction"),
            unit="percentunit",
            highest=1,
            styles=((" eviction$", quiet()),),
            empty=none,
        ),
    )
