"""Capacity: how much more traffic fits, what binds first, what uses the KV cache, and the risks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.bundle.dashboards.colours import DECODE, GOOD, PREFILL, QUEUE, WARN
from llm_headroom.bundle.dashboards.dashboard import Row
from llm_headroom.bundle.dashboards.panel import NOT_FILLING, NOT_KNOWN, Column, Query, above, below, fixed
from llm_headroom.bundle.dashboards.parts import areas, dashed, lines, load_headroom, stat, table
from llm_headroom.bundle.dashboards.plan import KEPT, Plan
from llm_headroom.bundle.dashboards.scope import BY_TARGET, MOST, TARGET, Scope
from llm_headroom.thresholds import LOAD_HEADROOM_LOW, SATURATION_HIGH

if TYPE_CHECKING:
    from llm_headroom.bundle.dashboards.panel import Panel
    from llm_headroom.thresholds import Thresholds

_TEN_MINUTES: Final = "until ten busy minutes were seen"
_EARLY: Final = "until there has been enough traffic"
_LAST: Final = ("lastNotNull", "max")
_LEAST: Final = ("lastNotNull", "min")
_WORST: Final = f"The {MOST} worst of the time shown."
_TO_ENGINE: Final = (
    f"/d/llm-headroom-engine?{KEPT}&var-engine=${{__data.fields.Engine}}&var-instance=${{__data.fields.Instance}}"
    "&var-target=${__data.fields.Target}&${__url_time_range}"
)
_BINDING: Final = {
    "kv_cache": (1, "KV cache", QUEUE),
    "compute": (2, "compute", PREFILL),
    "concurrency": (3, "slots", DECODE),
}


def _rows(scope: Scope, limits: Thresholds, _alerts: str) -> tuple[Row, ...]:
    return (
        Row("How much more traffic fits?", (*_numbers(scope, limits), _table(scope, limits))),
        Row("How did that change?", _room(scope)),
        Row("What uses the KV cache?", _held(scope, limits)),
        Row("How many more requests does the cache take?", _cache(scope, limits)),
        Row("What are the risks in the next minutes?", _risks(scope, limits)),
    )


DASHBOARD: Final = Plan("kv", "How much more traffic fits, what binds first, and what uses the KV cache?", _rows)


def _numbers(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    usage, capacity = scope.of(schema.KV_CACHE_USAGE), scope.of(schema.KV_CACHE_CAPACITY)
    full = f"({scope.of(schema.KV_CACHE_HEADROOM_RATIO)} <= 0) * 0"
    exhaustion = f"min({scope.of(schema.KV_CACHE_EXHAUSTION)} or {full})"
    return (
        load_headroom(scope),
        stat(
            "Saturation",
            "Load as a share of what the fullest target takes, its queue included; 200 % at most.",
            scope.exposed(f"clamp_max(max({scope.of(schema.SATURATION, resource='max')}), 2)", absent=NOT_KNOWN),
            whose="worst",
            unit="percentunit",
            steps=above(SATURATION_HIGH, 1),
        ),
        stat(
            "KV used",
            "Share of the selected KV cache in use by requests, which cannot be reclaimed.",
            scope.exposed(f"sum({usage} * {capacity}) / sum({capacity})"),
            whose="sum",
            unit="percentunit",
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
            scope.exposed(f"min({scope.of(schema.KV_CACHE_HEADROOM_REQUESTS)})", absent=NOT_KNOWN),
            whose="worst",
            decimals=0,
            steps=below(limits.headroom_requests_low),
            alert="LLMKVHeadroomLow",
        ),
        stat(
            "Full in",
            "Time until the first KV cache is full at the current demand. For planning, not for paging.",
            scope.exposed(f"{exhaustion} or group({scope.of(schema.KV_CACHE_HEADROOM_TOKENS)}) * 0 - {-NOT_FILLING}"),
            unit="s",
            steps=below(limits.kv_exhaustion_soon),
            alert="LLMKVHeadroomLow",
        ),
        stat(
            "Preempt",
            "Running requests per second that were preempted because the KV cache was full, added up.",
            scope.exposed(f"sum({scope.rate(schema.PREEMPTIONS)})"),
            whose="sum",
            unit="preemptions/s",
            alert="LLMKVCacheExhausted",
        ),
    )


def _where_least(scope: Scope) -> str:
    """What keeps one series of each target: of the objective that it leaves first."""
    return f"and on ({TARGET}, replica, objective) bottomk by ({TARGET}) (1, {scope.of(schema.LOAD_HEADROOM)})"


def _table(scope: Scope, limits: Thresholds) -> Panel:
    def of(resource: str, number: int) -> str:
        return f"({scope.of(schema.LOAD_HEADROOM_BINDING, resource=resource)} * {number} > 0) {_where_least(scope)}"

    binding = f"max by ({TARGET}) ({' or '.join(of(name, number) for name, (number, _, _) in _BINDING.items())})"
    return table(
        "Targets, least headroom first",
        "Headroom: how many times the traffic of 15 minutes fits within the objectives of latency; 16 is 16 or "
        "more. Fits: requests per second like those. Binds: the resource that tokens wait for where the headroom ends. "
        "A dash: until ten busy minutes were seen, or not exposed.",
        (
            Column(title="Cluster", label="cluster", width=75),
            Column(title="Instance", label="instance", width=125),
            Column(title="Engine", label="engine", width=75),
            Column(title="Target", label="target", link=_TO_ENGINE, width=105),
            Column(title="Model", label="model"),
            (
                f"sort(min by ({TARGET}) ({scope.of(schema.LOAD_HEADROOM)}))",
                Column(title="Headroom", unit="suffix: ×", decimals=1, steps=below(LOAD_HEADROOM_LOW, 1), width=80),
            ),
            (
                f"min by ({TARGET}) ({scope.of(schema.SUSTAINABLE_REQUESTS)})",
                Column(title="Fits, req/s", decimals=1, width=90),
            ),
            (
                f"sum by ({TARGET}) ({scope.rate(schema.REQUESTS_FINISHED)})",
                Column(title="Now, req/s", decimals=1, width=90),
            ),
            (
                binding,
                Column(
                    title="Binds", words=tuple((float(at), text, hue) for at, text, hue in _BINDING.values()), width=100
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
                ),
            ),
            (
                f"min by ({TARGET}) ({scope.of(schema.KV_CACHE_HEADROOM_REQUESTS)})",
                Column(
                    title="Cache fits",
                    decimals=0,
                    steps=below(limits.headroom_requests_low),
                    width=95,
                ),
            ),
            (
                f"sum by ({TARGET}) ({scope.of(schema.REQUESTS_WAITING)})",
                Column(title="Waiting", steps=above(limits.waiting_high), width=80),
            ),
        ),
        height=9,
        sort="Headroom",
    )


def _room(scope: Scope) -> tuple[Panel, ...]:
    return (
        lines(
            "Load headroom",
            f"{_WORST} How many times its traffic of 15 minutes each target takes before it leaves an objective of "
            "latency; 16 is 16 or more.",
            Query(scope.worst(schema.LOAD_HEADROOM, highest=False), BY_TARGET),
            unit="suffix: ×",
            width=12,
            steps=below(LOAD_HEADROOM_LOW, 1),
            calcs=_LEAST,
            empty=_TEN_MINUTES,
        ),
        lines(
            "Saturation",
            f"{_WORST} Load as a share of what the target takes, its queue included; 200 % at most. Scale on it, "
            "target 80 %.",
            Query(scope.worst(schema.SATURATION, resource="max"), BY_TARGET),
            unit="percentunit",
            width=12,
            highest=2,
            steps=above(SATURATION_HIGH, 1),
            calcs=_LAST,
            empty=_TEN_MINUTES,
        ),
        areas(
            "What binds",
            "Targets by the resource that tokens wait for where their load headroom ends.",
            Query(
                f"sum by (resource) ({scope.of(schema.LOAD_HEADROOM_BINDING)} {_where_least(scope)})", "{{resource}}"
            ),
            unit="suffix: targets",
            decimals=0,
            width=12,
            styles=tuple(
                (f"^{name}$", fixed(hue) | {"displayName": text}) for name, (_, text, hue) in _BINDING.items()
            ),
            empty=_TEN_MINUTES,
        ),
        lines(
            "Pressure by resource",
            "Demand over what there is, of the target where it is greatest: KV cache, concurrency, prefill, GPU "
            "memory. No share of what an engine takes. Cut at 200 %.",
            Query(
                _in_words(f"clamp_max(max by (engine, resource) ({scope.of(schema.PRESSURE)}), 2)"),
                "{{resource}} ({{engine}})",
            ),
            unit="percentunit",
            width=12,
            highest=2,
            steps=above(1, 1),
            calcs=_LAST,
        ),
    )


def _in_words(expr: str) -> str:
    """The expression with resources as people call them."""
    for name, words in (("kv_cache", "KV cache"), ("gpu_memory", "GPU memory")):
        expr = f'label_replace({expr}, "resource", "{words}", "resource", "{name}")'
    return expr


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
            styles=(
                ("^in use", fixed(QUEUE)),
                ("^reusable", fixed(WARN)),
                ("^free", {**fixed(GOOD), "custom.fillOpacity": 30}),
                ("^capacity", dashed("text")),
            ),
        ),
        lines(
            "KV cache usage",
            f"{_WORST} A full cache does not crash an engine: it causes preemptions, queueing and higher TTFT.",
            Query(scope.worst(schema.KV_CACHE_USAGE), BY_TARGET),
            unit="percentunit",
            width=12,
            highest=1,
            steps=above(limits.kv_usage_high, limits.kv_usage_critical),
            calcs=_LAST,
            alert="LLMKVHeadroomLow",
        ),
    )


def _cache(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    return (
        lines(
            "Headroom in requests",
            f"{_WORST} Requests of the recent mean size that can be admitted and finish; at most what the engine's "
            "limit of running requests leaves.",
            Query(scope.worst(schema.KV_CACHE_HEADROOM_REQUESTS, highest=False), BY_TARGET),
            width=12,
            steps=below(limits.headroom_requests_low),
            calcs=_LEAST,
            alert="LLMKVHeadroomLow",
        ),
        lines(
            "Time until full",
            f"{_WORST} At the demand of each moment. A gap means that the cache is not filling up.",
            Query(scope.worst(schema.KV_CACHE_EXHAUSTION, highest=False), BY_TARGET),
            unit="s",
            width=12,
            steps=below(limits.kv_exhaustion_soon),
            calcs=_LEAST,
            empty="while no KV cache is filling up",
            alert="LLMKVHeadroomLow",
        ),
        lines(
            "Waiting requests",
            f"{_WORST} Waiting requests are demand that has no KV cache yet.",
            Query(scope.worst(schema.REQUESTS_WAITING), BY_TARGET),
            steps=above(limits.waiting_high),
            width=12,
            calcs=_LAST,
            alert="LLMQueueBuilding",
        ),
        lines(
            "Preemptions",
            f"{_WORST} Running requests per second that were preempted because the KV cache was full.",
            Query(scope.worst_rate(schema.PREEMPTIONS), BY_TARGET),
            unit="preemptions/s",
            at_least=1,
            width=12,
            calcs=("max",),
            alert="LLMKVCacheExhausted",
        ),
    )


def _risks(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    return (
        lines(
            "High water of ten minutes",
            f"{_WORST} How near the last ten minutes came to KV cache exhaustion or to TTFT beyond the objective. "
            "Ranks targets; no probability.",
            Query(scope.worst(schema.SATURATION_HIGH_WATER), BY_TARGET),
            unit="none",
            decimals=2,
            width=12,
            highest=1,
            steps=above(limits.high_water_risk),
            calcs=_LAST,
            empty=_EARLY,
            alert="LLMSaturationRisk",
        ),
        lines(
            "Risk of the KV cache",
            f"{_WORST} Probability that requests are preempted or blocked for lack of KV cache within five minutes; at "
            "least 95 % while they are.",
            Query(scope.worst(schema.KV_SATURATION_RISK), BY_TARGET),
            unit="percentunit",
            width=12,
            highest=1,
            calcs=_LAST,
            empty=_EARLY,
        ),
    )
