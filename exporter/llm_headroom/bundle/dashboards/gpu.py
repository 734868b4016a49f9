"""GPUs: each device first, then what uses its memory, how busy it is, and whether it is throttled or broken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.bundle.dashboards.colours import BAD, GOOD, GREY, KINDS, UNKNOWN, WARN, shades
from llm_headroom.bundle.dashboards.dashboard import Row
from llm_headroom.bundle.dashboards.panel import UNPAINTED, Column, Json, Kind, Panel, Query, above, below, fixed
from llm_headroom.bundle.dashboards.parts import areas, dashed, lines, stat, table
from llm_headroom.bundle.dashboards.plan import Plan
from llm_headroom.bundle.dashboards.scope import BY_GPU, Scope
from llm_headroom.bundle.dashboards.words import GPU_WORDS
from llm_headroom.model import GPU_STATES, Level

if TYPE_CHECKING:
    from llm_headroom.model import Metric
    from llm_headroom.thresholds import Thresholds

_GPU: Final = "cluster, instance, gpu"
_WORST: Final = "The worst of the time shown."
_LAST: Final = ("lastNotNull", "max")
_MEMORY: Final[tuple[tuple[str, Json], ...]] = (
    *((pattern, fixed(colour)) for pattern, colour in shades().items()),
    ("^unattributed", fixed(BAD)),
    ("^driver", fixed(GREY)),
    ("^free", {**fixed(GOOD), "custom.fillOpacity": 20}),
    ("^total", dashed("text")),
    ("^headroom low", dashed(WARN)),
)


def _rows(scope: Scope, limits: Thresholds, _alerts: str) -> tuple[Row, ...]:
    return (
        Row("Is there headroom, and are the GPUs healthy?", (*_numbers(scope, limits), _table(scope, limits))),
        Row("What was wrong with them?", _health(scope)),
        Row("How much memory is left?", _left(scope, limits)),
        Row("How busy are they?", _work(scope, limits)),
        Row("What uses the memory of each GPU on $instance?", (_memory(scope, limits),), repeat="instance"),
        Row("Are they throttled?", _throttled(scope), optional="where the driver reports clocks and throttling"),
        Row("Are they broken?", _errors(scope), optional="where the driver reports errors"),
        Row("Which processes are on them?", (_processes(scope),), optional="where process ids are visible"),
    )


DASHBOARD: Final = Plan(
    "gpu",
    "How much memory is left on each GPU and who has the rest, how busy are they, and are they healthy?",
    _rows,
    choices=("gpu",),
)


def _numbers(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    names = "|".join(state for state in GPU_STATES if state.level is Level.BAD)
    bad = f'state=~"{names}"'
    total = scope.of(schema.GPU_MEMORY_TOTAL)
    return (
        stat(
            "GPUs",
            "GPUs behind an unreachable exporter, of which nothing is known; and those that can be read.",
            Query(f"count({scope.behind(total)})", "unknown"),
            Query(scope.exposed_gpu(f"count({scope.reached(total)})"), "read"),
            steps=UNPAINTED,
            styles=(("^unknown$", fixed(UNKNOWN)),),
            empty="where no exporter is unreachable",
            alert="LLMGpuLost",
        ),
        stat(
            "In trouble",
            "GPUs that are lost, or report an error that needs somebody.",
            f"sum({scope.of(schema.GPU_STATE, bad)})",
            steps=above(1, 1),
            alert="LLMGpuXidCritical",
        ),
        stat(
            "Throttled",
            "GPUs whose clocks are held down by heat or by the power supply.",
            f"sum({scope.of(schema.GPU_STATE, state='throttled')})",
            steps=above(1),
            alert="LLMGpuThrottled",
        ),
        stat(
            "Headroom",
            "Memory that can still be allocated on the GPU that has least.",
            scope.exposed_gpu(f"min({scope.of(schema.GPU_MEMORY_HEADROOM_RATIO)})"),
            whose="worst",
            unit="percentunit",
            decimals=1,
            steps=below(limits.gpu_headroom_low, limits.gpu_headroom_critical),
            alert="LLMGpuMemoryHeadroomLow",
        ),
        stat(
            "OOM risk",
            "Highest probability that an allocation fails within 30 minutes, on any GPU. Absent until memory has been "
            "monitored for a while.",
            scope.exposed_gpu(f"max({scope.of(schema.OOM_RISK, memory='gpu')})"),
            whose="worst",
            unit="percentunit",
            steps=above(limits.oom_risk),
            alert="LLMOomRisk",
        ),
        stat(
            "Utilisation",
            "Mean share of time during which a kernel was running.",
            scope.exposed_gpu(f"avg({scope.of(schema.GPU_UTILIZATION)})"),
            whose="mean",
            unit="percentunit",
        ),
        stat(
            "Power",
            "Total power draw.",
            scope.exposed_gpu(f"sum({scope.of(schema.GPU_POWER)})"),
            whose="sum",
            unit="watt",
        ),
        stat(
            "Hottest",
            "Temperature of the hottest sensor.",
            scope.exposed_gpu(f"max({scope.of(schema.GPU_TEMPERATURE)})"),
            whose="worst",
            unit="celsius",
            steps=above(limits.gpu_temperature_high),
            alert="LLMGpuTemperatureHigh",
        ),
    )


def _table(scope: Scope, limits: Thresholds) -> Panel:
    def most(metric: Metric) -> str:
        return f"max by ({_GPU}) ({scope.of(metric)})"

    owners = f"count by ({_GPU}, target) ({scope.of(schema.GPU_MEMORY_ENGINE)})"
    biggest = f"topk by ({_GPU}) (1, sum by ({_GPU}, target) ({scope.of(schema.GPU_MEMORY_ENGINE)}))"
    state = scope.state(schema.GPU_STATE, GPU_STATES, _GPU)
    return table(
        "Devices, worst first",
        "One row per GPU. Owner: the engine that holds most of its memory; Others: how many more do. Power: share of "
        "the limit. Throttled: share of five minutes. Xid: the last error's age.",
        (
            (f"sort_desc({state})", Column(title="State", words=GPU_WORDS, width=175)),
            Column(title="Cluster", label="cluster", width=75),
            Column(title="Instance", label="instance", width=125),
            Column(title="GPU", label="gpu", width=55),
            Column(title="Owner", label="target"),
            (biggest, Column(title="Holds", unit="bytes", width=80)),
            (
                f"min by ({_GPU}) ({scope.of(schema.GPU_MEMORY_HEADROOM_RATIO)})",
                Column(
                    title="Headroom",
                    unit="percentunit",
                    decimals=1,
                    steps=below(limits.gpu_headroom_low, limits.gpu_headroom_critical),
                    bar=1,
                    width=110,
                ),
            ),
            (
                f"max by ({_GPU}) (avg_over_time({scope.of(schema.GPU_UTILIZATION)}[5m]))",
                Column(title="Utilisation", unit="percentunit", bar=1, width=110),
            ),
            (
                f"{most(schema.GPU_POWER)} / {most(schema.GPU_POWER_LIMIT)}",
                Column(title="Power", unit="percentunit", bar=1, width=110),
            ),
            (
                most(schema.GPU_TEMPERATURE),
                Column(title="Temp.", unit="celsius", steps=above(limits.gpu_temperature_high), width=70),
            ),
            (
                f"max by ({_GPU}) ({scope.rate(schema.GPU_THROTTLE_TIME)})",
                Column(title="Throttled", unit="percentunit", decimals=0, steps=above(0.1), width=85),
            ),
            (
                f"time() - max by ({_GPU}) ({scope.of(schema.GPU_XID_LAST)})",
                Column(title="Last Xid", unit="s", decimals=0, width=80),
            ),
            (f"count by ({_GPU}) ({owners}) - 1 > 0", Column(title="Others", decimals=0, width=70)),
        ),
        height=10,
        sort="-State",
    )


def _health(scope: Scope) -> tuple[Panel, ...]:
    state = scope.state(schema.GPU_STATE, GPU_STATES, _GPU)
    others = scope.of(schema.GPU_STATE, 'state!="ok"')
    troubled = f"topk(12, group by ({_GPU}) (max_over_time({others}[$__range] @ end()) > 0))"
    return (
        Panel(
            kind=Kind.STATES,
            title="Devices in trouble",
            answers="State over time of the GPUs that were in another state than ok within the time shown.",
            queries=(Query(f"{state} and on ({_GPU}) {troubled}", BY_GPU),),
            words=GPU_WORDS,
            width=24,
            height=6,
            empty="while every GPU was well",
        ),
        lines(
            "Throttled",
            "Share of time during which a policy reduced the clocks.",
            Query(
                f"sum by ({_GPU}, policy) ({scope.rate(schema.GPU_THROTTLE_TIME)}) > 0",
                f"{BY_GPU} {{{{policy}}}}",
            ),
            unit="percentunit",
            highest=1,
            width=12,
            empty="while no clock is reduced, or where the driver does not report it",
            alert="LLMGpuThrottled",
        ),
        lines(
            "Xid errors",
            "Errors reported by the driver since llm-headroom started, by Xid number.",
            Query(f"sum by ({_GPU}, xid) ({scope.of(schema.GPU_XID_ERRORS)})", f"{BY_GPU} Xid {{{{xid}}}}"),
            width=12,
            empty="before the first error",
            alert="LLMGpuXidCritical",
        ),
    )


def _memory(scope: Scope, limits: Thresholds) -> Panel:
    total = f"sum({scope.of(schema.GPU_MEMORY_TOTAL)})"
    kinds = (
        f"sum by (engine, target, kind) ({scope.of(schema.GPU_MEMORY_ENGINE, match)})"
        for match in (f'kind=~"{kind}"' for kind in KINDS)
    )
    return areas(
        "GPU $gpu",
        "Parts add up to the total: a colour is an engine, its shades are weights (dark), KV cache in use, reusable "
        "and free (light). KV cache is reserved at startup, so little free memory is normal: above the dashed line an "
        "allocation may fail.",
        *(Query(one, "{{target}} ({{engine}}) {{kind}}") for one in kinds),
        Query(f"sum({scope.of(schema.GPU_MEMORY_UNATTRIBUTED)})", "unattributed"),
        Query(f"sum({scope.of(schema.GPU_MEMORY_RESERVED)})", "driver"),
        Query(f"sum({scope.of(schema.GPU_MEMORY_FREE)})", "free"),
        Query(total, "total"),
        Query(f"{total} * {1 - limits.gpu_headroom_low:g}", "headroom low"),
        unit="bytes",
        width=6,
        height=9,
        styles=_MEMORY,
        repeat="gpu",
    )


def _left(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    return (
        lines(
            "Headroom",
            f"{_WORST} Share of each GPU's memory that can still be allocated.",
            Query(scope.worst(schema.GPU_MEMORY_HEADROOM_RATIO, _GPU, highest=False), BY_GPU),
            unit="percentunit",
            at_least=0.1,
            width=12,
            steps=below(limits.gpu_headroom_low, limits.gpu_headroom_critical),
            calcs=("lastNotNull", "min"),
            alert="LLMGpuMemoryHeadroomLow",
        ),
        lines(
            "OOM risk",
            f"{_WORST} Probability that an allocation fails within 30 minutes.",
            Query(scope.worst(schema.OOM_RISK, _GPU, memory="gpu"), BY_GPU),
            unit="percentunit",
            highest=1,
            width=12,
            steps=above(limits.oom_risk),
            calcs=_LAST,
            empty="until a GPU has been monitored for a while",
            alert="LLMOomRisk",
        ),
        lines(
            "Unattributed memory",
            f"{_WORST} Used memory that is not attributed to an engine: another program, a leak, or process ids are "
            "not visible.",
            Query(scope.worst(schema.GPU_MEMORY_UNATTRIBUTED, _GPU), BY_GPU),
            unit="bytes",
            width=12,
            calcs=_LAST,
            alert="LLMGpuMemoryGrowthOutsideReservation",
        ),
        lines(
            "Overcommitted",
            f"{_WORST} Amount by which reservations exceed the memory of their device.",
            Query(f"{scope.worst(schema.GPU_MEMORY_OVERCOMMITTED, _GPU)} > 0", BY_GPU),
            unit="bytes",
            width=12,
            empty="while no device is overcommitted",
            calcs=_LAST,
            alert="LLMGpuReservationOverlap",
        ),
    )


def _work(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    return (
        lines(
            "Utilisation",
            "Share of time during which a kernel was running, of the busiest; a busy GPU is not necessarily saturated.",
            Query(scope.worst_mean(schema.GPU_UTILIZATION, _GPU), BY_GPU),
            unit="percentunit",
            highest=1,
            width=12,
            calcs=_LAST,
            alert="LLMGpuIdleWhileQueued",
        ),
        lines(
            "Memory bandwidth",
            "Share of time during which device memory was read or written, of the busiest. Decode is bound by it.",
            Query(scope.worst_mean(schema.GPU_MEMORY_CONTROLLER, _GPU), BY_GPU),
            unit="percentunit",
            highest=1,
            width=12,
            calcs=_LAST,
            empty="where the driver does not report it",
        ),
        lines(
            "Power",
            "Draw of those that draw most, and (dashed) the highest limit in force.",
            Query(scope.worst_mean(schema.GPU_POWER, _GPU), BY_GPU),
            Query(f"max({scope.of(schema.GPU_POWER_LIMIT)})", "limit"),
            unit="watt",
            width=12,
            styles=(("^limit$", dashed("text")),),
            calcs=_LAST,
        ),
        lines(
            "Temperature",
            "Of the hottest.",
            Query(scope.worst(schema.GPU_TEMPERATURE, f"{_GPU}, sensor"), f"{BY_GPU} {{{{sensor}}}}"),
            unit="celsius",
            width=12,
            steps=above(limits.gpu_temperature_high),
            calcs=_LAST,
            alert="LLMGpuTemperatureHigh",
        ),
    )


def _throttled(scope: Scope) -> tuple[Panel, ...]:
    none = "where the driver does not report it"
    slowest = scope.worst(schema.GPU_CLOCK, _GPU, highest=False, domain="sm")
    most = f"min by ({_GPU}) ({scope.of(schema.GPU_CLOCK_MAX, domain='sm')})"
    return (
        lines(
            "SM clock as a share of its maximum",
            "Of the slowest; an idle GPU lowers its clock, too.",
            Query(f"({slowest}) / {most}", BY_GPU),
            unit="percentunit",
            highest=1,
            width=12,
            calcs=("lastNotNull", "min"),
            empty=none,
        ),
        lines(
            "Reasons",
            "GPUs by the reason that keeps their clocks down now; idle and application clocks are harmless.",
            Query(f"sum by (reason) ({scope.of(schema.GPU_THROTTLE)})", "{{reason}}"),
            unit="suffix: GPUs",
            width=12,
            styles=(("^(idle|application_clocks)$", fixed(UNKNOWN)),),
            empty=none,
            alert="LLMGpuThrottled",
        ),
    )


def _errors(scope: Scope) -> tuple[Panel, ...]:
    none = "on devices without such errors, or that do not report them"
    # A counter that appears with its first error has no increase; so levels are shown, not rates.
    return (
        lines(
            "ECC errors",
            "Over the device's life. Uncorrected errors lose data; a rise in corrected ones is an early sign.",
            Query(f"sum by ({_GPU}, severity) ({scope.of(schema.GPU_ECC_ERRORS)}) > 0", f"{BY_GPU} {{{{severity}}}}"),
            width=12,
            empty=none,
            alert="LLMGpuUncorrectableEcc",
        ),
        lines(
            "Row remapping, recovery",
            "1 if a row will be remapped at the next reset, or could not be; and the action requested by the driver.",
            Query(f"max by ({_GPU}) ({scope.of(schema.GPU_ROW_REMAP_PENDING)}) > 0", f"{BY_GPU} pending"),
            Query(f"max by ({_GPU}) ({scope.of(schema.GPU_ROW_REMAP_FAILURE)}) > 0", f"{BY_GPU} failed"),
            Query(f"max by ({_GPU}) ({scope.of(schema.GPU_RECOVERY_ACTION)}) > 0", f"{BY_GPU} recovery"),
            width=12,
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
