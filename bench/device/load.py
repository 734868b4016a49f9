"""Work: utilisation, power, energy, clocks and temperature under a load, and what watching costs the work."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from device import smi
from device.processes import Metrics, Watch, Worker
from device.rows import Row, compared, figure, held, not_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PART: Final = "load"
GPU: Final = {"gpu": "0"}
WARM: Final = 0.1
"""Share of a window that is left out at its start."""
NVML: Final = {"target": "nvml"}


class Sample(NamedTuple):
    """Power in watts, asked of NVML directly."""

    at: float
    watts: float


class Windows(NamedTuple):
    """Seconds of work without the exporter, with it, and without it again; and between the exporter's readings."""

    alone: float
    watched: float
    interval: float


def rows(folder: Path, output: Path, worker: Worker, watts: Callable[[], float], windows: Windows) -> Iterator[Row]:
    """`watts` is the power that NVML reports when asked directly; `folder` is for the exporter's files."""
    began = time.time()
    worker.tell("busy")
    time.sleep(windows.alone)
    alone = time.time()
    with Watch(folder, windows.interval, {}) as watch:
        start = watch.since(time.time())
        on = time.time()
        samples, found = _sampled(watch, watts, on + windows.watched)
        beside = smi.query()
        last = watch.since(time.time())
        cpu = (last.one("process_cpu_seconds_total") or 0.0) - (start.one("process_cpu_seconds_total") or 0.0)
        off = time.time()
    time.sleep(windows.alone)
    end = time.time()
    marks = worker.ask("stop")
    (output / "metrics-loaded.prom").write_text(last.text(), encoding="utf-8")

    yield from _levels(found[len(found) // 2])
    yield from energy(start, last, samples)
    yield from _throttled(start, last)
    yield from smi.rows(PART, beside, last)
    without = (
        *_rates(marks, began + windows.alone * WARM, alone),
        *_rates(marks, end - windows.alone * (1 - WARM), end),
    )
    with_it = _rates(marks, on, off)
    if without and with_it:
        alone, watched = sum(without) / len(without), sum(with_it) / len(with_it)
        note = f"{watched:.2f} with the exporter, {alone:.2f} without, reading every {windows.interval} s"
        yield figure(PART, "work a second with the exporter, as a share of that without", watched / alone, "", note)
    yield figure(PART, "CPU of the exporter beside the load", 100 * cpu / (off - on), "% of a core")
    yield from _pcie(folder, worker, windows)


def _sampled(watch: Watch, watts: Callable[[], float], until: float) -> tuple[list[Sample], list[Metrics]]:
    samples: list[Sample] = []
    found: list[Metrics] = []
    due = time.time()
    while len(samples) < 2 or time.time() < until:
        samples.append(Sample(time.time(), watts()))
        if len(samples) % 5 == 1:
            found.append(watch.now())
        due += 0.1
        time.sleep(max(0.0, due - time.time()))
    return samples, found


def _levels(loaded: Metrics) -> Iterator[Row]:
    busy = loaded.one("llm_gpu_utilization_ratio", **GPU)
    yield compared(PART, "utilisation of a GPU that never waits", 1.0, busy, within=0.1)
    limit = loaded.one("llm_gpu_power_limit_watts", **GPU)
    power = loaded.one("llm_gpu_power_watts", **GPU)
    right = power is not None and limit is not None and 0.2 * limit < power < 1.1 * limit
    yield held(PART, "power under load", f"of {limit} W", f"{power} W", right=right, note="20 % to 110 % of the limit")
    for domain in ("sm", "memory"):
        now = loaded.one("llm_gpu_clock_hertz", domain=domain, **GPU)
        most = loaded.one("llm_gpu_clock_max_hertz", domain=domain, **GPU)
        right = now is not None and most is not None and 0.3 * most < now <= most
        shown = [f"{each / 1e6:.0f} MHz" if each is not None else "–" for each in (most, now)]
        yield held(PART, f"clock under load: {domain}", f"at most {shown[0]}", shown[1], right=right, note="above 30 %")


def energy(start: Metrics, last: Metrics, samples: list[Sample]) -> Iterator[Row]:
    """The growth of the counter between two readings, beside the power summed up over the same time."""
    joules = [each.one("llm_gpu_energy_joules_total", **GPU) for each in (start, last)]
    times = [each.one("llm_source_last_success_timestamp_seconds", **NVML) or 0.0 for each in (start, last)]
    if None in joules:
        yield not_run(PART, "energy against power summed up", "this GPU has no energy counter")
        return
    seconds = samples[-1].at - samples[0].at
    integral = sum((after.at - before.at) * (before.watts + after.watts) / 2 for before, after in pairwise(samples))
    truth = integral / seconds * (times[1] - times[0])
    ours = (joules[1] or 0.0) - (joules[0] or 0.0)
    yield compared(PART, "energy against power summed up", truth, ours, "J", within=0.03 * truth, note="3 %")


def _throttled(start: Metrics, last: Metrics) -> Iterator[Row]:
    """Times cannot grow faster than time: a mistaken unit would."""
    name = "llm_gpu_throttle_seconds_total"
    times = [each.one("llm_source_last_success_timestamp_seconds", **NVML) or 0.0 for each in (start, last)]
    grown = {key: value - start.all(name, **GPU).get(key, value) for key, value in last.all(name, **GPU).items()}
    if not grown:
        yield not_run(PART, "throttle times", "this GPU has none")
        return
    elapsed = times[1] - times[0]
    right = all(0 <= growth <= elapsed * 1.05 for growth in grown.values())
    most = {dict(key)["policy"]: f"{growth:.2f} s" for key, growth in grown.items() if growth}
    shown = ", ".join(f"{policy} {growth}" for policy, growth in most.items()) or "none"
    yield held(PART, "throttle times grow by no more than time", f"{elapsed:.1f} s", shown, right=right)


def _rates(marks: list[tuple[float, int]], start: float, end: float) -> list[float]:
    """Pieces of work a second within a window; nothing if it holds fewer than two marks."""
    inside = [(at, done) for at, done in marks if start <= at <= end]
    if len(inside) < 2:
        return []
    return [(inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])]


def _pcie(folder: Path, worker: Worker, windows: Windows) -> Iterator[Row]:
    """Bytes that the host sends are bytes that the device receives."""
    with Watch(folder, windows.interval, {}, pcie=True) as watch:
        watch.since(time.time())
        worker.tell("copy", until=time.time() + windows.alone)
        time.sleep(windows.alone / 2)
        ours = watch.now().one("llm_gpu_pcie_bytes_per_second", direction="receive", **GPU)
        truth = worker.answer()
    note = "NVML looks at 20 ms"
    yield compared(PART, "PCIe, received while the host copies", truth, ours, "B", within=0.3 * truth, note=note)
