"""Queries to NVML: calls and fields, their metrics, and what its return codes mean for a reading.

Data alone: `gpu` does the asking. Functions, fields, units and codes are those of nvml.h as the Python package
nvidia-ml-py (module `pynvml`) declares them.

Left out on purpose: the PCIe byte counters (fields 197 and 198) wrap at a width that is not documented, so that no rate
can be read from them; and the times in the reasons sw_thermal, hw_thermal and hw_power_brake, whose fields are 251 to
253 in some releases of nvml.h and 269 to 271 in later ones, where 251 and 252 mean power smoothing.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llm_headroom import schema

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_headroom.model import Metric


class Code(IntEnum):
    """nvmlReturn_t. pynvml is imported only when GPUs are read, so its constants cannot be used here."""

    UNINITIALIZED = 1
    INVALID_ARGUMENT = 2
    NOT_SUPPORTED = 3
    NO_PERMISSION = 4
    NOT_FOUND = 6
    INSUFFICIENT_SIZE = 7
    INSUFFICIENT_POWER = 8
    DRIVER_NOT_LOADED = 9
    TIMEOUT = 10
    IRQ_ISSUE = 11
    LIBRARY_NOT_FOUND = 12
    FUNCTION_NOT_FOUND = 13
    GPU_IS_LOST = 15
    RESET_REQUIRED = 16
    LIB_RM_VERSION_MISMATCH = 18
    IN_USE = 19
    NO_DATA = 21
    VGPU_ECC_NOT_SUPPORTED = 22
    ARGUMENT_VERSION_MISMATCH = 25
    DEPRECATED = 26
    NOT_READY = 27
    GPU_NOT_FOUND = 28
    UNKNOWN = 999


NVML_LOST: Final = frozenset({Code.UNINITIALIZED, Code.DRIVER_NOT_LOADED, Code.LIB_RM_VERSION_MISMATCH})
"""NVML as a whole is gone, whichever device was asked."""
DEVICE_LOST: Final = frozenset(
    {
        *(Code.TIMEOUT, Code.IRQ_ISSUE, Code.INSUFFICIENT_POWER),
        *(Code.GPU_IS_LOST, Code.RESET_REQUIRED, Code.GPU_NOT_FOUND),
    }
)
"""The device is gone, whichever quantity was asked."""
LOST: Final = NVML_LOST | DEVICE_LOST
UNSUPPORTED: Final = frozenset(
    {
        *(Code.NOT_SUPPORTED, Code.FUNCTION_NOT_FOUND, Code.NO_PERMISSION, Code.NOT_FOUND, Code.INVALID_ARGUMENT),
        *(Code.ARGUMENT_VERSION_MISMATCH, Code.DEPRECATED, Code.VGPU_ECC_NOT_SUPPORTED),
    }
)
"""This device never answers this call: an older driver, another product, a container without the right."""
NOT_NOW: Final = frozenset({Code.NO_DATA, Code.NOT_READY, Code.IN_USE, Code.INSUFFICIENT_SIZE})
"""No error, but no value in this reading either (INSUFFICIENT_SIZE: processes started while they were listed)."""

_NOT_AVAILABLE: Final = 2**64 - 1
BLANK: Final = frozenset({2**32 - 1, _NOT_AVAILABLE, *range(2**31 - 16, 2**31), *range(2**63 - 16, 2**63)})
"""Stand-ins for "not available": NVML_VALUE_NOT_AVAILABLE (nvml.h) and the blanks of dcgm_structs.h, which leak out."""
_NAN: Final = float("nan")


class Value(NamedTuple):
    """One number of an answer: its metric, the least and most that it can be in NVML's unit, and the way to ours.

    `blank` is a number by which devices say that they have none.
    """

    metric: Metric
    most: float
    label: tuple[str, str] = ("", "")
    times: int = 1
    per: int = 1
    least: float = 0
    blank: float = _NAN


class Call(NamedTuple):
    """One NVML function: `ask` takes the pynvml module and a handle and returns a number for each of `values`."""

    origin: str
    ask: Callable[[Any, Any], Sequence[float]]
    values: tuple[Value, ...]
    constant: bool = False


class Fields(NamedTuple):
    """Fields of nvmlDeviceGetFieldValues, by pynvml's names; all that a device supports are read in one call."""

    origins: tuple[str, ...]
    values: tuple[Value, ...]
    scope: int = 0


Way = Call | Fields
Question = tuple[Way, ...]
"""Ways to one and the same set of values, the best first: the first that the device supports is used."""


def _memory(memory: Any) -> tuple[float, ...]:  # noqa: ANN401 (pynvml has no types)
    parts = (memory.used, memory.free, memory.reserved) if hasattr(memory, "reserved") else (memory.used, memory.free)
    if not memory.total:
        return (_NOT_AVAILABLE,) * (1 + len(parts))
    return (memory.total, *(part if part <= memory.total or part in BLANK else _NAN for part in parts))


def _signed(word: int) -> int:
    """A temperature below zero, from the unsigned int that nvmlDeviceGetTemperature returns."""
    return word if word in BLANK or word < 2**31 else word - 2**32


def _bits(reasons: int) -> tuple[float, ...]:
    return tuple(reasons if reasons in BLANK else reasons >> bit & 1 for bit in range(len(_REASONS)))


# nvmlClocksEventReason…: bit n is the n-th name.
_REASONS: Final = (
    *("idle", "application_clocks", "sw_power_cap", "hw_slowdown", "sync_boost"),
    *("sw_thermal", "hw_thermal", "hw_power_brake", "display_clock"),
)
PEBIBYTE: Final = 2**50
_COUNT: Final = 2**48
_MILLIWATTS: Final = 10_000_000
_NANOSECONDS: Final = 10**18  # thirty years
_MILLIJOULES: Final = 10**16  # 10 kW for thirty years
_MEMORY_VALUES: Final = (
    Value(schema.GPU_MEMORY_TOTAL, PEBIBYTE),
    Value(schema.GPU_MEMORY_USED, PEBIBYTE),
    Value(schema.GPU_MEMORY_FREE, PEBIBYTE),
    Value(schema.GPU_MEMORY_RESERVED, PEBIBYTE),
)
_ENERGY: Final = (Value(schema.GPU_ENERGY, _MILLIJOULES, per=1000),)
_CELSIUS: Final = (Value(schema.GPU_TEMPERATURE, 200, ("sensor", "gpu"), least=-50),)
_MEMORY_CELSIUS: Final = (Value(schema.GPU_TEMPERATURE, 200, ("sensor", "memory"), blank=0),)
_THROTTLE: Final = tuple(Value(schema.GPU_THROTTLE, 1, ("reason", reason)) for reason in _REASONS)
_ECC: Final = tuple(
    Value(schema.GPU_ECC_ERRORS, _COUNT, ("severity", severity)) for severity in ("corrected", "uncorrected")
)
_ROWS: Final = (
    Value(schema.GPU_ROW_REMAP_ROWS, _COUNT, ("severity", "correctable")),
    Value(schema.GPU_ROW_REMAP_ROWS, _COUNT, ("severity", "uncorrectable")),
    Value(schema.GPU_ROW_REMAP_PENDING, 1),
    Value(schema.GPU_ROW_REMAP_FAILURE, 1),
)
_REPLAYS: Final = (Value(schema.GPU_PCIE_REPLAYS, _COUNT),)
_NVLINK: Final = tuple(
    Value(schema.GPU_NVLINK_BYTES, PEBIBYTE, ("direction", direction), times=1024)
    for direction in ("transmit", "receive")
)
# The fields NVML_FI_DEV_PERF_POLICY_… and the numbers of nvmlPerfPolicyType_t.
_POLICIES: Final = (*("power", "thermal", "sync_boost", "board_limit", "low_utilization", "reliability"),)
_POLICY_TIME: Final = tuple(
    Value(schema.GPU_THROTTLE_TIME, _NANOSECONDS, ("policy", policy), per=10**9) for policy in _POLICIES
)
_RECOVERY: Final = (Value(schema.GPU_RECOVERY_ACTION, 100),)
_ALL_LINKS: Final = 2**32 - 1


def _call(origin: str, values: tuple[Value, ...], *arguments: int, constant: bool = False) -> Call:
    """A function that returns one number."""
    return Call(origin, lambda pynvml, handle: (getattr(pynvml, origin)(handle, *arguments),), values, constant)


def _number(origin: str, metric: Metric, most: float, per: int = 1) -> Call:
    return _call(origin, (Value(metric, most, per=per),))


def _clock(origin: str, metric: Metric, number: int, domain: str, *, constant: bool) -> Call:
    return _call(origin, (Value(metric, 100_000, ("domain", domain), times=1_000_000),), number, constant=constant)


def _each(origin: str, values: tuple[Value, ...], *arguments: tuple[int, ...]) -> Call:
    """A function that is called once for each of the values."""
    return Call(origin, lambda pynvml, handle: [getattr(pynvml, origin)(handle, *each) for each in arguments], values)


def _reasons(origin: str) -> Call:
    return Call(origin, lambda pynvml, handle: _bits(getattr(pynvml, origin)(handle)), _THROTTLE)


def fans(count: int | None) -> list[Question]:
    """The speed of each fan; only of the first one if the device does not report their number."""

    def fan(origin: str, number: int, *argument: int) -> Question:
        # It "may exceed 100% in certain cases" (nvml.h, nvmlDeviceGetFanSpeed).
        value = Value(schema.GPU_FAN, 300, ("fan", str(number)), per=100)
        return (_call(origin, (value,), *argument),)

    if count is None:
        return [fan("nvmlDeviceGetFanSpeed", 0)]
    return [fan("nvmlDeviceGetFanSpeed_v2", number, number) for number in range(count)]


MEMORY: Final[Question] = (
    Call(
        "nvmlDeviceGetMemoryInfo_v2",
        lambda pynvml, handle: _memory(pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2)),
        _MEMORY_VALUES,
    ),
    Call(
        "nvmlDeviceGetMemoryInfo",
        lambda pynvml, handle: _memory(pynvml.nvmlDeviceGetMemoryInfo(handle)),
        _MEMORY_VALUES[:3],
    ),
)
BOARD: Final[tuple[Question, ...]] = (
    MEMORY,
    (
        Call(
            "nvmlDeviceGetUtilizationRates",
            lambda pynvml, handle: ((rates := pynvml.nvmlDeviceGetUtilizationRates(handle)).gpu, rates.memory),
            (Value(schema.GPU_UTILIZATION, 100, per=100), Value(schema.GPU_MEMORY_CONTROLLER, 100, per=100)),
        ),
    ),
    (_number("nvmlDeviceGetPowerUsage", schema.GPU_POWER, _MILLIWATTS, 1000),),
    (_number("nvmlDeviceGetEnforcedPowerLimit", schema.GPU_POWER_LIMIT, _MILLIWATTS, 1000),),
    (
        Fields(("NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION",), _ENERGY),
        _call("nvmlDeviceGetTotalEnergyConsumption", _ENERGY),
    ),
    (
        Call(
            "nvmlDeviceGetTemperature",
            lambda pynvml, handle: (_signed(pynvml.nvmlDeviceGetTemperature(handle, 0)),),
            _CELSIUS,
        ),
        # nvml.h announces the end of nvmlDeviceGetTemperature with CUDA 14.
        Call(
            "nvmlDeviceGetTemperatureV",
            # pynvml before 12.570 lacks it; then the result of the older one stays.
            lambda pynvml, handle: (
                getattr(pynvml, "nvmlDeviceGetTemperatureV", pynvml.nvmlDeviceGetTemperature)(handle, 0),
            ),
            _CELSIUS,
        ),
    ),
    (Fields(("NVML_FI_DEV_MEMORY_TEMP",), _MEMORY_CELSIUS),),
    *(
        (_clock(f"nvmlDeviceGet{name}ClockInfo", metric, number, domain, constant=bool(name)),)
        for name, metric in (("", schema.GPU_CLOCK), ("Max", schema.GPU_CLOCK_MAX))
        for number, domain in enumerate(("graphics", "sm", "memory", "video"))
    ),
    (_reasons("nvmlDeviceGetCurrentClocksEventReasons"), _reasons("nvmlDeviceGetCurrentClocksThrottleReasons")),
    (
        Fields(tuple(f"NVML_FI_DEV_PERF_POLICY_{policy.upper()}" for policy in _POLICIES), _POLICY_TIME),
        Call(
            "nvmlDeviceGetViolationStatus",
            lambda pynvml, handle: tuple(
                pynvml.nvmlDeviceGetViolationStatus(handle, number).violationTime for number in range(len(_POLICIES))
            ),
            _POLICY_TIME,
        ),
    ),
    (Fields(("NVML_FI_DEV_GET_GPU_RECOVERY_ACTION",), _RECOVERY),),
    (
        Fields(("NVML_FI_DEV_ECC_SBE_AGG_TOTAL", "NVML_FI_DEV_ECC_DBE_AGG_TOTAL"), _ECC),
        _each("nvmlDeviceGetTotalEccErrors", _ECC, (0, 1), (1, 1)),
    ),
    (
        Fields(tuple(f"NVML_FI_DEV_REMAPPED_{part}" for part in ("COR", "UNC", "PENDING", "FAILURE")), _ROWS),
        Call("nvmlDeviceGetRemappedRows", lambda pynvml, handle: pynvml.nvmlDeviceGetRemappedRows(handle), _ROWS),
    ),
    (
        Fields(("NVML_FI_DEV_PCIE_REPLAY_COUNTER",), _REPLAYS),
        _number("nvmlDeviceGetPcieReplayCounter", schema.GPU_PCIE_REPLAYS, _COUNT),
    ),
    (_number("nvmlDeviceGetCurrPcieLinkGeneration", schema.GPU_PCIE_LINK_GENERATION, 20),),
    (_number("nvmlDeviceGetCurrPcieLinkWidth", schema.GPU_PCIE_LINK_WIDTH, 64),),
    (Fields(("NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX", "NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX"), _NVLINK, _ALL_LINKS),),
)
PCIE: Final[Question] = (
    _each(
        "nvmlDeviceGetPcieThroughput",
        tuple(
            # "KB/s" (nvml.h) leaves open whether 1000 or 1024 bytes are meant.
            Value(schema.GPU_PCIE_THROUGHPUT, 10**9, ("direction", direction), times=1000)
            for direction in ("transmit", "receive")
        ),
        *((0,), (1,)),
    ),
)
"""Asked only on demand: it takes 20 ms for each direction (utkuozdemir/nvidia_gpu_exporter, docs/CONFIGURE.md)."""
PROCESS_LISTS: Final = ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2")
