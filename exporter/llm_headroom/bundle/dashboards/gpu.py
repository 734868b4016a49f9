"""GPUs: memory by engine, headroom, load, cost and health."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.bundle.dashboards.dashboard import Row
from llm_headroom.bundle.dashboards.panel import WARN, Column, Json, Query, above, below
from llm_headroom.bundle.dashboards.parts import areas, dashed, lines, quiet, stat, table
from llm_headroom.bundle.dashboards.plan import Plan
from llm_headroom.bundle.dashboards.scope import BY_GPU, BY_TARGET, SOURCE, Scope

if TYPE_CHECKING:
    from llm_headroom.bundle.dashboards.panel import Panel
    from llm_headroom.thresholds import Thresholds

_GPU = "gpu, instance"
_KIND_COLOURS = {
    "weights|model": "dark-blue",
    "kv_used": "dark-orange",
    "kv_cache": "dark-orange",
    "kv_evictable": "dark-purple",
    "kv_free": "light-orange",
    "other|graph": "semi-dark-yellow",
}
_MEMORY: tuple[tuple[str, Json], ...] = (
    *((f" ({kind})$", {"color": {"mode": "fixed", "fixedColor": hue}}) for kind, hue in _KIND_COLOURS.items()),
    ("^unattributed", {"color": {"mode": "fixed", "fixedColor": "dark-red"}}),
    ("^driver", {"color": {"mode": "fixed", "fixedColor": "#8e8e99"}}),
    ("^free", {"color": {"mode": "fixed", "fixedColor": "dark-green"}, "custom.fillOpacity": 25}),
    ("^total", dashed("text")),
    ("^headroom low", dashed(WARN)),
)


def _rows(scope: Scope, limits: Thresholds, _alerts: str) -> tuple[Row, ...]:
    return (
        Row("Is there headroom, and are the GPUs healthy?", _numbers(scope, limits)),
        Row("What uses the memory?", _memory(scope, limits)),
        Row("How much is left?", _left(scope, limits)),
        Row("How busy are they?", _work(scope, limits)),
        Row("What does a token cost?", _cost(scope)),
        Row("Are they throttled?", _throttled(scope), optional="where the driver reports clocks and throttling"),
        Row("Are they broken?", _errors(scope), optional="where the driver reports errors"),
        Row("Which processes are on them?", (_processes(scope),), optional="where process ids are visible"),
        Row("How much host memory do engines use?", _host(scope), optional="where control groups can be read"),
    )


DASHBOARD: Final = Plan(
    "gpu",
    "GPU",
    "What uses the GPUs' memory, how much is left, how busy are they, and are they healthy?",
    _rows,
    gpus=True,
)


def _numbers(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    return (
        stat("GPUs", "GPUs listed by NVML, including lost ones.", scope.exposed_gpu(f"sum({scope.of(schema.GPUS)})")),
        stat(
            "Headroom",
            "Memory that can still be allocated on the GPU that has least.",
            scope.exposed_gpu(f"min({scope.of(schema.GPU_MEMORY_HEADROOM_RATIO)})"),
            unit="percentunit",
            steps=below(limits.gpu_headroom_low, limits.gpu_headroom_critical),
            alert="LLMGpuMemoryHeadroomLow",
        ),
        stat(
            "OOM risk",
            "Highest probability that an allocation fails within 30 minutes, of any GPU or host. Absent "
            "until memory has been monitored for a while.",
            scope.exposed_gpu(f"max({scope.of(schema.OOM_RISK)})"),
            unit="percentunit",
            steps=above(limits.oom_risk),
            alert="LLMOomRisk",
        ),
        stat(
            "Unattributed",
            "Used memory that is not attributed to an engine: another program, a leak, or process ids are not visible.",
            scope.exposed_gpu(f"sum({scope.of(schema.GPU_MEMORY_UNATTRIBUTED)})"),
            unit="bytes",
            alert="LLMGpuMemoryGrowthOutsideReservation",
        ),
        stat(
            "Overcommitted",
            "Amount by which reservations exceed the memory of their devices.",
            scope.exposed_gpu(f"sum({scope.of(schema.GPU_MEMORY_OVERCOMMITTED)})"),
            unit="bytes",
            steps=above(1, 1),
            alert="LLMGpuReservationOverlap",
        ),
        stat(
            "Utilisation",
            "Mean share of time during which a kernel was running.",
            scope.exposed_gpu(f"avg({scope.of(schema.GPU_UTILIZATION)})"),
            unit="percentunit",
        ),
        stat("Power", "Total power draw.", scope.exposed_gpu(f"sum({scope.of(schema.GPU_POWER)})"), unit="watt"),
        stat(
            "Hottest",
            "Temperature of the hottest sensor.",
            scope.exposed_gpu(f"max({scope.of(schema.GPU_TEMPERATURE)})"),
            unit="celsius",
            steps=above(limits.gpu_temperature_high),
            alert="LLMGpuTemperatureHigh",
        ),
    )


def _memory(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    total = f"sum({scope.of(schema.GPU_MEMORY_TOTAL)})"
    kinds = f"sum by (engine, target, kind) ({scope.of(schema.GPU_MEMORY_ENGINE)})"
    held = f"sum by ({SOURCE}, gpu) ({scope.of(schema.GPU_MEMORY_ENGINE)})"
    known = f"max by ({SOURCE}, gpu, method) ({scope.of(schema.GPU_ATTRIBUTION_INFO)})"
    return (
        areas(
            "Memory by engine and use",
            "Of all selected GPUs together; choose one above to see it alone. Parts add up to the total. KV cache is "
            "reserved at the engine's startup, so little free memory is normal: above the dashed line an allocation "
            "may fail.",
            Query(kinds, "{{target}} {{kind}}"),
            Query(f"sum({scope.of(schema.GPU_MEMORY_UNATTRIBUTED)})", "unattributed"),
            Query(f"sum({scope.of(schema.GPU_MEMORY_RESERVED)})", "driver"),
            Query(f"sum({scope.of(schema.GPU_MEMORY_FREE)})", "free"),
            Query(total, "total"),
            Query(f"{total} * {1 - limits.gpu_headroom_low:g}", "headroom low"),
            unit="bytes",
            width=16,
            height=10,
            styles=_MEMORY,
        ),
        table(
            "Memory of each engine on each GPU",
            "Memory held by an engine's processes, and the method of attribution.",
            (
                Column(title="Target", label="target"),
                Column(title="GPU", label="gpu", width=50),
                Column(title="Method", label="method", width=110),
                (
                    f"{held} * on ({SOURCE}, gpu) group_left (method) {known}",
                    Column(title="Held", unit="bytes", width=90),
                ),
            ),
            width=8,
            height=10,
            sort="-Held",
        ),
    )


def _left(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    headroom = scope.of(schema.GPU_MEMORY_HEADROOM_RATIO)
    return (
        lines(
            "Headroom",
            "Share of each GPU's memory that can still be allocated.",
            Query(f"min by ({_GPU}) ({headroom})", BY_GPU),
            unit="percentunit",
            highest=1,
            steps=below(limits.gpu_headroom_low, limits.gpu_headroom_critical),
            alert="LLMGpuMemoryHeadroomLow",
        ),
        lines(
            "Reserved and used memory",
            "What each engine uses or is configured to use, and (dashed) what it uses now: growth beyond the "
            "reservation is how GPUs run out.",
            Query(f"sum by ({SOURCE}) ({scope.of(schema.GPU_MEMORY_RESERVATION)})", BY_TARGET),
            Query(f"sum by ({SOURCE}) ({scope.of(schema.GPU_MEMORY_ENGINE)})", f"{BY_TARGET} held"),
            unit="bytes",
            styles=((" held$", quiet()),),
            alert="LLMGpuReservationOverlap",
        ),
        lines(
            "OOM risk",
            "Probability that an allocation fails within 30 minutes, on a GPU or on the host under an engine.",
            Query(
                f"max by (gpu, {SOURCE}, memory) ({scope.of(schema.OOM_RISK)})",
                "{{memory}} {{gpu}} {{target}}",
            ),
            unit="percentunit",
            highest=1,
            steps=above(limits.oom_risk),
            empty="until a GPU has been monitored for a while",
            alert="LLMOomRisk",
        ),
    )


def _work(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    return (
        lines(
            "Utilisation",
            "Share of time during which a kernel was running; a busy GPU is not necessarily saturated.",
            Query(f"max by ({_GPU}) ({scope.of(schema.GPU_UTILIZATION)})", BY_GPU),
            unit="percentunit",
            highest=1,
            alert="LLMGpuIdleWhileQueued",
        ),
        lines(
            "Power, and the limit",
            "Power draw, and (dashed) the limit in force.",
            Query(f"max by ({_GPU}) ({scope.of(schema.GPU_POWER)})", BY_GPU),
            Query(f"max by ({_GPU}) ({scope.of(schema.GPU_POWER_LIMIT)})", f"{BY_GPU} limit"),
            unit="watt",
            styles=((" limit$", dashed()),),
        ),
        lines(
            "Temperature",
            "By sensor.",
            Query(
                f"max by ({_GPU}, sensor) ({scope.of(schema.GPU_TEMPERATURE)})",
                "GPU {{gpu}} {{sensor}} · {{instance}}",
            ),
            unit="celsius",
            steps=above(limits.gpu_temperature_high),
            alert="LLMGpuTemperatureHigh",
        ),
    )


def _cost(scope: Scope) -> tuple[Panel, ...]:
    return (
        lines(
            "Energy per generated token",
            "Energy of the engine's GPUs per generated token, over the last five minutes; that of a shared "
            "GPU is split by the memory held. A gap is no traffic, or an engine that does not count tokens.",
            Query(f"max by ({SOURCE}) ({scope.of(schema.ENERGY_PER_TOKEN)})", BY_TARGET),
            unit="joule",
        ),
        lines(
            "Generated tokens per joule",
            "Over all that is selected.",
            Query(
                f"sum({scope.rate(schema.GENERATION_TOKENS)}) / sum({scope.rate(schema.GPU_ENERGY)})",
                "tokens per joule",
            ),
        ),
        lines(
            "Cost per million generated tokens",
            "Cost of the engine's GPUs over the last five minutes, in the configured currency.",
            Query(
                f"max by (engine, target, currency) ({scope.of(schema.COST_PER_MILLION_TOKENS)})",
                f"{BY_TARGET} {{{{currency}}}}",
            ),
            empty="without a price in llm-headroom's configuration",
        ),
    )


def _throttled(scope: Scope) -> tuple[Panel, ...]:
    return (
        lines(
            "Memory bandwidth",
            "Share of time during which device memory was read or written. Decode is bound by it.",
            Query(f"max by ({_GPU}) ({scope.of(schema.GPU_MEMORY_CONTROLLER)})", BY_GPU),
            unit="percentunit",
            highest=1,
            empty="where the driver does not report it",
        ),
        lines(
            "Throttled",
            "Share of time during which a policy reduced the clocks.",
            Query(
                f"sum by ({_GPU}, policy) ({scope.rate(schema.GPU_THROTTLE_TIME)})",
                "GPU {{gpu}} {{policy}} · {{instance}}",
            ),
            unit="percentunit",
            empty="where the driver does not report it",
            alert="LLMGpuThrottled",
        ),
        lines(
            "SM clock, and its maximum",
            "Clock of the streaming multiprocessors, and (dashed) its maximum.",
            Query(f"max by ({_GPU}) ({scope.of(schema.GPU_CLOCK, domain='sm')})", BY_GPU),
            Query(f"max by ({_GPU}) ({scope.of(schema.GPU_CLOCK_MAX, domain='sm')})", f"{BY_GPU} maximum"),
            unit="hertz",
            styles=((" maximum$", dashed()),),
            empty="where the driver does not report it",
        ),
    )


def _errors(scope: Scope) -> tuple[Panel, ...]:
    none = "on devices without such errors, or that do not report them"
    # A counter that appears with its first error has no increase; so levels are shown, not rates.
    return (
        lines(
            "Xid errors",
            "Errors reported by the driver since llm-headroom started, by Xid number.",
            Query(
                f"sum by ({_GPU}, xid) ({scope.of(schema.GPU_XID_ERRORS)})", "GPU {{gpu}} Xid {{xid}} · {{instance}}"
            ),
            empty=none,
            alert="LLMGpuXidCritical",
        ),
        lines(
            "ECC errors",
            "Over the device's life. Uncorrected errors lose data; a rise in corrected ones is an early sign.",
            Query(
                f"sum by ({_GPU}, severity) ({scope.of(schema.GPU_ECC_ERRORS)})",
                "GPU {{gpu}} {{severity}} · {{instance}}",
            ),
            empty=none,
            alert="LLMGpuUncorrectableEcc",
        ),
        lines(
            "Row remapping, recovery",
            "1 if a row will be remapped at the next reset, or could not be; and the action requested by the driver.",
            Query(f"max by ({_GPU}) ({scope.of(schema.GPU_ROW_REMAP_PENDING)})", "GPU {{gpu}} pending · {{instance}}"),
            Query(f"max by ({_GPU}) ({scope.of(schema.GPU_ROW_REMAP_FAILURE)})", "GPU {{gpu}} failed · {{instance}}"),
            Query(f"max by ({_GPU}) ({scope.of(schema.GPU_RECOVERY_ACTION)})", "GPU {{gpu}} recovery · {{instance}}"),
            empty=none,
            alert="LLMGpuRecoveryAction",
        ),
    )


def _processes(scope: Scope) -> Panel:
    return table(
        "Processes",
        "Memory held by each process now.",
        (
            Column(title="Instance", label="instance"),
            Column(title="GPU", label="gpu", width=80),
            Column(title="PID", label="pid", width=120),
            Column(title="Process", label="process"),
            (
                f"max by (instance, gpu, pid, process) ({scope.of(schema.GPU_PROCESS_MEMORY)})",
                Column(title="Memory", unit="bytes", width=160),
            ),
        ),
        empty="where process ids are not visible",
        sort="-Memory",
    )


def _host(scope: Scope) -> tuple[Panel, ...]:
    none = "where the engine runs on another host, or its control group cannot be read"
    used = f"max by ({SOURCE}) ({scope.of(schema.HOST_MEMORY_USED)})"
    limit = f"max by ({SOURCE}) ({scope.of(schema.HOST_MEMORY_LIMIT)})"
    return (
        lines(
            "Host memory, and the limit",
            "Working set of the engine's control group, and (dashed) its limit.",
            Query(used, BY_TARGET),
            Query(limit, f"{BY_TARGET} limit"),
            unit="bytes",
            styles=((" limit$", dashed()),),
            empty=none,
        ),
        lines(
            "Memory pressure",
            "Share of time during which tasks waited for memory (PSI).",
            Query(
                f"max by ({SOURCE}, severity) ({scope.rate(schema.HOST_MEMORY_PRESSURE)})",
                f"{BY_TARGET} {{{{severity}}}}",
            ),
            unit="percentunit",
            empty=none,
        ),
        lines(
            "OOM kills",
            "Processes in the engine's control group killed by the OOM killer.",
            Query(f"sum by ({SOURCE}) ({scope.of(schema.HOST_OOM_KILLS)})", BY_TARGET),
            empty=none,
            alert="LLMHostOomKill",
        ),
    )
