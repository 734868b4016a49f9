"""What nvidia-smi says at the same moment: the peer whose numbers everybody knows."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Final, NamedTuple

from device.rows import Row, compared, not_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from device.processes import Metrics

MIB: Final = 2.0**20
_GPU: Final = ("gpu", "0")


class Field(NamedTuple):
    """One column: our metric and label for it, the factor to our unit, and how far apart two readings may lie."""

    name: str
    metric: str
    label: tuple[str, str] = ("gpu", "0")
    factor: float = 1.0
    unit: str = ""
    within: float = 0.0


def _clock(column: str, metric: str, domain: str, within: float) -> Field:
    return Field(column, metric, ("domain", domain), 1e6, "Hz", within)


FIELDS: Final = (
    Field("memory.total", "llm_gpu_memory_total_bytes", factor=MIB, unit="B", within=MIB),
    Field("memory.reserved", "llm_gpu_memory_reserved_bytes", factor=MIB, unit="B", within=MIB),
    Field("memory.used", "llm_gpu_memory_used_bytes", factor=MIB, unit="B", within=4 * MIB),
    Field("memory.free", "llm_gpu_memory_free_bytes", factor=MIB, unit="B", within=4 * MIB),
    Field("utilization.gpu", "llm_gpu_utilization_ratio", factor=0.01, within=0.1),
    Field("utilization.memory", "llm_gpu_memory_controller_utilization_ratio", factor=0.01, within=0.15),
    Field("power.draw", "llm_gpu_power_watts", unit="W", within=60.0),
    Field("enforced.power.limit", "llm_gpu_power_limit_watts", unit="W", within=0.01),
    Field("temperature.gpu", "llm_gpu_temperature_celsius", ("sensor", "gpu"), unit="°C", within=3),
    Field("temperature.memory", "llm_gpu_temperature_celsius", ("sensor", "memory"), unit="°C", within=3),
    _clock("clocks.current.sm", "llm_gpu_clock_hertz", "sm", 300e6),
    _clock("clocks.current.graphics", "llm_gpu_clock_hertz", "graphics", 300e6),
    _clock("clocks.current.memory", "llm_gpu_clock_hertz", "memory", 1e6),
    _clock("clocks.current.video", "llm_gpu_clock_hertz", "video", 300e6),
    _clock("clocks.max.sm", "llm_gpu_clock_max_hertz", "sm", 0.0),
    _clock("clocks.max.memory", "llm_gpu_clock_max_hertz", "memory", 0.0),
    Field("pcie.link.gen.current", "llm_gpu_pcie_link_generation"),
    Field("pcie.link.width.current", "llm_gpu_pcie_link_width"),
    Field("ecc.errors.corrected.aggregate.total", "llm_gpu_ecc_errors_total", ("severity", "corrected")),
    Field("ecc.errors.uncorrected.aggregate.total", "llm_gpu_ecc_errors_total", ("severity", "uncorrected")),
)


def query() -> dict[str, float] | str:
    """Each column's number; columns that this nvidia-smi or GPU does not have are left out. A text says why none is."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "nvidia-smi is not installed"
    found = _asked(program, [field.name for field in FIELDS])
    if not found:  # one unknown column spoils the whole query
        for field in FIELDS:
            found |= _asked(program, [field.name])
    return found or "nvidia-smi gives no numbers"


def _asked(program: str, names: list[str]) -> dict[str, float]:
    command = [program, "--id=0", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    if answer.returncode:
        return {}
    found = {}
    for name, text in zip(names, answer.stdout.strip().split(","), strict=False):
        try:
            found[name] = float(text)
        except ValueError:
            continue  # "[N/A]"
    return found


def rows(part: str, beside: Mapping[str, float] | str, ours: Metrics) -> Iterator[Row]:
    """A row for each column that nvidia-smi has."""
    if isinstance(beside, str):
        yield not_run(part, "nvidia-smi at the same moment", beside)
        return
    for field in FIELDS:
        if field.name in beside:
            labels = dict((_GPU, field.label))
            value = ours.one(field.metric, **labels)
            truth = beside[field.name] * field.factor
            yield compared(part, f"nvidia-smi {field.name}", truth, value, field.unit, within=field.within)
