"""The KV cache: what uses it, how much headroom is left, risks, and which resource is the bottleneck."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.bundle.dashboards.dashboard import Row
from llm_headroom.bundle.dashboards.panel import NOT_FILLING, Query, above, below
from llm_headroom.bundle.dashboards.parts import areas, dashed, lines, quiet, stat
from llm_headroom.bundle.dashboards.plan import Plan
from llm_headroom.bundle.dashboards.scope import BY_TARGET, SOURCE, TARGET, Scope
from llm_headroom.thresholds import LOAD_HEADROOM_LOW, SATURATION_HIGH

if TYPE_CHECKING:
    from llm_headroom.bundle.dashboards.panel import Panel
    from llm_headroom.thresholds import Thresholds

_EARLY = "until there has been enough traffic"
_TEN_MINUTES = "until ten busy minutes were seen"
_BY_TARGET_MODEL = "{{engine}} · {{instance}} · {{target}} · {{model}}"


def _rows(scope: Scope, limits: Thresholds, _alerts: str) -> tuple[Row, ...]:
    return (
        Row("How much headroom is left?", _numbers(scope, limits)),
        Row("What uses the cache?", _held(scope, limits)),
        Row("How many more requests fit?", _room(scope, limits)),
        Row("Which resource is the bottleneck?", _binding(scope)),
        Row("What are the risks in the next minutes?", _risks(scope, limits)),
        Row(
            "Do Ollama's models fit?",
            _residency(scope, limits),
            optional="for engines that load models on demand",
        ),
    )


DASHBOARD: Final = Plan(
    "kv",
    "KV cache and capacity",
    "How much KV cache is left for requests, and which resource is the bottleneck?",
    _rows,
)


def _numbers(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    used, capacity = (f"sum({scope.of(one)})" for one in (schema.KV_CACHE_USED, schema.KV_CACHE_CAPACITY))
    exhaustion = f"min({scope.of(schema.KV_CACHE_EXHAUSTION)})"
    return (
        stat(
            "KV used",
            "Share of the selected KV cache in use by requests, which cannot be reclaimed.",
            scope.exposed(f"{used} / {capacity}"),
            whose="sum",
            unit="percentunit",
            steps=above(limits.kv_usage_high, limits.kv_usage_critical),
            alert="LLMKVHeadroomLow",
        ),
        stat(
            "Worst peak",
            "Highest KV cache usage of any target in the last minute, including peaks between scrapes.",
            scope.exposed(f"max({scope.of(schema.KV_CACHE_USAGE_PEAK)})"),
            unit="percentunit",
            steps=above(limits.kv_usage_high, limits.kv_usage_critical),
            alert="LLMKVCacheExhausted",
        ),
        stat(
            "Free tokens",
            "Tokens available to new requests: free and reclaimable ones, minus the demand of waiting requests.",
            scope.exposed(f"sum({scope.of(schema.KV_CACHE_HEADROOM_TOKENS)})"),
            whose="sum",
        ),
        stat(
            "Requests fit",
            "Requests of the recent mean size that the fullest target can still admit and finish.",
            scope.exposed(f"min({scope.of(schema.KV_CACHE_HEADROOM_REQUESTS)})"),
            whose="worst",
            decimals=0,
            steps=below(limits.headroom_requests_low),
            alert="LLMKVHeadroomLow",
        ),
        stat(
            "Full in",
            "Time until the first KV cache is full at the current demand. For planning, not for paging.",
            scope.exposed(f"{exhaustion} or min({scope.of(schema.KV_CACHE_HEADROOM_TOKENS)}) * 0 - {-NOT_FILLING}"),
            unit="s",
            steps=below(limits.kv_exhaustion_soon),
            alert="LLMKVHeadroomLow",
        ),
        stat(
            "Least room",
            "How many times its traffic the target takes that is nearest its limit; below 1 it breaks its objective.",
            scope.exposed(f"min({scope.of(schema.LOAD_HEADROOM, objective='ttft')})"),
            decimals=1,
            steps=below(LOAD_HEADROOM_LOW, 1),
        ),
        stat(
            "Saturation",
            "Load as a share of what the fullest target takes, its queue included; 200 % at most.",
            scope.exposed(f"clamp_max(max({scope.of(schema.SATURATION, resource='max')}), 2)"),
            whose="worst",
            unit="percentunit",
            steps=above(SATURATION_HIGH, 1),
        ),
        stat(
            "Preempted",
            "Running requests per second that were preempted because the KV cache was full, added up.",
            scope.exposed(f"sum({scope.rate(schema.PREEMPTIONS)})"),
            whose="sum",
            unit="cps",
            alert="LLMKVCacheExhausted",
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
            "In use by requests, reusable prefixes (reclaimed when needed), and free, up to the capacity. An engine "
            "that does not expose its reusable part has it under free.",
            Query(used, "in use by requests"),
            Query(evictable, "reusable"),
            Query(free, "free"),
            Query(capacity, "capacity"),
            width=12,
            height=8,
            styles=(
                ("^in use", {"color": {"mode": "fixed", "fixedColor": "dark-orange"}}),
                ("^reusable", {"color": {"mode": "fixed", "fixedColor": "dark-blue"}}),
                ("^free", {"color": {"mode": "fixed", "fixedColor": "dark-green"}, "custom.fillOpacity": 30}),
                ("^capacity", dashed("text")),
            ),
        ),
        lines(
            "KV cache usage",
            "Per target, and (dashed) its peak of the last minute. A full cache does not crash an engine: it "
            "causes preemptions, queueing and higher TTFT.",
            Query(f"max by ({SOURCE}) ({scope.of(schema.KV_CACHE_USAGE)})", BY_TARGET),
            Query(f"max by ({SOURCE}) ({scope.of(schema.KV_CACHE_USAGE_PEAK)})", f"{BY_TARGET} peak"),
            unit="percentunit",
            width=12,
            height=8,
            highest=1,
            steps=above(limits.kv_usage_high, limits.kv_usage_critical),
            styles=((" peak$", quiet()),),
            alert="LLMKVHeadroomLow",
        ),
    )


def _room(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    return (
        lines(
            "Headroom in tokens",
            "Free and reclaimable tokens minus the demand of waiting requests.",
            Query(f"sum by ({SOURCE}) ({scope.of(schema.KV_CACHE_HEADROOM_TOKENS)})", BY_TARGET),
        ),
        lines(
            "Headroom in requests",
            "Requests of the recent mean size that can be admitted and finish; at most what the engine's limit of "
            "running requests leaves.",
            Query(f"min by ({SOURCE}) ({scope.of(schema.KV_CACHE_HEADROOM_REQUESTS)})", BY_TARGET),
            steps=below(limits.headroom_requests_low),
            alert="LLMKVHeadroomLow",
        ),
        lines(
            "Time until full",
            "At the current demand. A gap means that the cache is not filling up.",
            Query(f"min by ({SOURCE}) ({scope.of(schema.KV_CACHE_EXHAUSTION)})", BY_TARGET),
            unit="s",
            steps=below(limits.kv_exhaustion_soon),
            empty="while no KV cache is filling up",
            alert="LLMKVHeadroomLow",
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
            steps=above(1, 1),
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
            steps=above(1, 1),
        ),
    )


def _risks(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    waiting = f"sum by ({SOURCE}) ({scope.of(schema.REQUESTS_WAITING)})"
    prompts = f"sum by ({SOURCE}) ({scope.rate(schema.PROMPT_TOKENS)})"
    answers = f"sum by ({SOURCE}) ({scope.rate(schema.GENERATION_TOKENS)})"
    return (
        lines(
            "High water of ten minutes",
            "How near the last ten minutes came to KV cache exhaustion or to TTFT beyond the objective. Ranks targets; "
            "no probability.",
            Query(f"max by ({SOURCE}) ({scope.of(schema.SATURATION_HIGH_WATER)})", BY_TARGET),
            unit="none",
            decimals=2,
            highest=1,
            steps=above(limits.high_water_risk),
            empty=_EARLY,
            alert="LLMSaturationRisk",
        ),
        lines(
            "Risk of the KV cache",
            "Probability that requests are preempted or blocked for want of KV cache within five minutes; at least "
            "95 % while they are.",
            Query(f"max by ({SOURCE}) ({scope.of(schema.KV_SATURATION_RISK)})", BY_TARGET),
            unit="percentunit",
            highest=1,
            empty=_EARLY,
        ),
        lines(
            "Demand",
            "Prompt tokens per second, and (dashed) generated ones: both fill the cache.",
            Query(prompts, BY_TARGET),
            Query(answers, f"{BY_TARGET} generated"),
            unit="tokens/s",
            styles=((" generated$", quiet()),),
        ),
        lines(
            "Waiting requests",
            "Waiting requests are demand that has no KV cache yet.",
            Query(waiting, BY_TARGET),
            steps=above(limits.waiting_high),
            width=12,
            alert="LLMQueueBuilding",
        ),
        lines(
            "Preemptions",
            "Running requests per second that were preempted because the KV cache was full.",
            Query(f"sum by ({SOURCE}) ({scope.rate(schema.PREEMPTIONS)})", BY_TARGET),
            unit="cps",
            at_least=1,
            width=12,
            alert="LLMKVCacheExhausted",
        ),
    )


def _residency(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    none = "without Ollama, or before its first model is loaded"
    return (
        lines(
            "Share of the model on GPUs",
            "Below 100 % a part runs on the CPU, many times slower.",
            Query(f"min by ({TARGET}) ({scope.of(schema.MODEL_OFFLOAD)})", _BY_TARGET_MODEL),
            unit="percentunit",
            highest=1,
            steps=below(limits.offload_low),
            empty=none,
            alert="LLMModelSpilledToCPU",
        ),
        lines(
            "Models in memory",
            "1 while a model is loaded. Repeated loads delay the requests that trigger them.",
            Query(f"max by ({TARGET}) ({scope.of(schema.MODEL_LOADED, engine='ollama')})", _BY_TARGET_MODEL),
            empty=none,
            alert="LLMModelThrash",
        ),
        lines(
            "Risk of spill and of eviction",
            "Probability that a model, or its next load, does not fit on the GPUs; and (dashed) that it is unloaded "
            "for another.",
            Query(f"max by ({TARGET}) ({scope.of(schema.SPILL_RISK)})", f"{_BY_TARGET_MODEL} spill"),
            Query(f"max by ({TARGET}) ({scope.of(schema.EVICTION_RISK)})", f"{_BY_TARGET_MODEL} eviction"),
            unit="percentunit",
            highest=1,
            styles=((" eviction$", quiet()),),
            empty=none,
        ),
    )
