"""Memory: who holds how much, what can still be had, and whether a failing allocation was seen coming."""

from __future__ import annotations

import os
import select
import signal
import time
from typing import TYPE_CHECKING, Any, Final

from device.processes import Metrics, Watch, Worker
from device.rows import MIB, Row, compared, figure, held
from llm_headroom.derive.trend import WARM_SECONDS
from llm_headroom.thresholds import Thresholds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PART: Final = "memory"
PAGE: Final = 2 * MIB
"""The driver gives out memory in pages of this size, and PyTorch rounds up to them."""
TABLES: Final = 0.002
"""Share of an allocation that the driver's page tables for it may take besides."""
RESERVES: Final = 0.55
"""Share of the device that the first engine takes at once, as vLLM and SGLang do."""
LEAK_SECONDS: Final = 17.0
STAIRS: Final = 4
STAIR: Final = 0.03
BURST: Final = 0.06
LEAK_STEPS: Final = 25
GPU: Final = {"gpu": "0"}
ENGINE: Final = "llm_gpu_memory_engine_bytes"


def rows(
    watch: Watch, engines: tuple[Worker, Worker], driver_free: Callable[[], int], *, leak_seconds: float
) -> Iterator[Row]:
    """One engine `engines[0]` reserves, the other grows; `driver_free` is NVML's free memory asked directly."""
    reserving, growing = engines
    before = watch.until(lambda found: len(found.all("llm_gpu_memory_attribution_info")) == len(engines))
    total = before.one("llm_gpu_memory_total_bytes", **GPU) or 0.0
    for name, worker in (("vllm", reserving), ("sglang", growing)):
        methods = {dict(key)["method"] for key in before.all("llm_gpu_memory_attribution_info", target=name)}
        yield held(PART, f"{name}: its process is found", "pid", ", ".join(methods) or "–", right=methods == {"pid"})
        known = before.one("llm_gpu_process_memory_bytes", pid=worker.pid)
        ours = before.sum(ENGINE, target=name)
        yield compared(PART, f"{name}: context alone, engine against process", known or 0.0, ours, "B")

    size = _pages(total * RESERVES)
    yield from _growth(watch, reserving, "vllm", "reserves most of the device at once", size)
    for stair in range(STAIRS):
        yield from _growth(watch, growing, "sglang", f"stair {stair + 1}", _pages(total * STAIR))
    full = watch.since(time.time())
    yield from _growth(watch, growing, "sglang", "burst", _pages(total * BURST))
    yield from _sums(full, total)
    yield from _reserved(full, total)
    with Worker() as third:
        yield from _headroom(watch, third, driver_free)
    with Worker() as third:
        yield from _out_of_memory(watch, third, driver_free, leak_seconds)


def _pages(size: float) -> int:
    return int(size) // PAGE * PAGE


def _growth(watch: Watch, worker: Worker, name: str, what: str, size: int) -> Iterator[Row]:
    before = watch.since(time.time()).sum(ENGINE, target=name)
    had = worker.ask("take", bytes=size)["had"]
    after = watch.since(time.time()).sum(ENGINE, target=name)
    truth = float(size) if had else 0.0
    yield compared(PART, f"{name}: {what}", truth, after - before, "B", within=max(2 * PAGE, TABLES * size))


def _sums(metrics: Metrics, total: float) -> Iterator[Row]:
    parts = {
        "engines": metrics.sum(ENGINE, **GPU),
        "unattributed": metrics.sum("llm_gpu_memory_unattributed_bytes", **GPU),
        "reserved": metrics.sum("llm_gpu_memory_reserved_bytes", **GPU),
        "free": metrics.sum("llm_gpu_memory_free_bytes", **GPU),
    }
    note = ", ".join(f"{name} {size / MIB:.0f} MiB" for name, size in parts.items())
    yield compared(PART, "parts add up to the total", total, sum(parts.values()), "B", within=PAGE, note=note)


def _reserved(metrics: Metrics, total: float) -> Iterator[Row]:
    """An engine's reservation: what it is configured to take, or what it holds, if that is more."""
    for name in ("vllm", "sglang"):
        share = metrics.one("llm_engine_gpu_memory_reservation_ratio", target=name) or 0.0
        truth = max(share * total, metrics.sum(ENGINE, target=name))
        ours = metrics.one("llm_gpu_memory_engine_reservation_bytes", target=name)
        yield compared(PART, f"{name}: reservation", truth, ours, "B", within=PAGE, note=f"configured {share:.0%}")


def _headroom(watch: Watch, third: Worker, driver_free: Callable[[], int]) -> Iterator[Row]:
    """What another process that is already there can really allocate."""
    ours = watch.since(time.time()).one("llm_gpu_memory_headroom_bytes", **GPU)
    free = driver_free()
    got = third.ask("fill")["taken"]
    yield compared(
        PART, "headroom: what another process could allocate", float(got), ours, "B", within=max(64 * MIB, 0.01 * got)
    )
    yield compared(PART, "headroom: what the driver calls free", float(free), ours, "B", within=PAGE)
    left = watch.since(time.time()).one("llm_gpu_memory_headroom_bytes", **GPU)
    yield compared(PART, "headroom with the device full", float(driver_free()), left, "B", within=PAGE)


def _out_of_memory(watch: Watch, third: Worker, driver_free: Callable[[], int], seconds: float) -> Iterator[Row]:
    """A third process takes step after step until an allocation fails, and is then killed.

    The risk looks half an hour ahead, from rises that it has seen and a trend of five minutes at least: of a faster
    leak it cannot know, so that then its highest value is only written down.
    """
    pace = seconds / LEAK_STEPS
    start = watch.since(time.time())
    free = start.one("llm_gpu_memory_headroom_bytes", **GPU) or 0.0
    third.tell("leak", step=max(PAGE, _pages(free / LEAK_STEPS)), every=pace)
    seen: list[tuple[float, float]] = []
    while not _answered(third):
        risk = watch.now().one("llm_oom_risk_ratio", memory="gpu", **GPU)
        seen.append((time.time(), risk or 0.0))
        time.sleep(pace / 4)
    outcome: dict[str, Any] = third.answer()
    before = [risk for at, risk in seen if at < outcome["failed"]]
    limit, highest = Thresholds().oom_risk, max(before, default=0.0)
    what = "OOM risk before a real out-of-memory"
    if seconds > WARM_SECONDS:
        yield held(PART, what, f"warns from {limit:g}", f"{highest:.3f} at most", right=highest >= limit)
    else:
        note = f"a leak of {seconds:.0f} s is too fast to be foreseen; --leak-seconds 420 judges it"
        yield figure(PART, what, highest, "", note)
    full = driver_free()
    os.kill(third.process.pid, signal.SIGKILL)
    third.process.wait()
    killed = time.time()
    while driver_free() <= full + outcome["held"] // 2 and time.time() < killed + 10:
        time.sleep(0.02)
    yield figure(PART, "the driver releases a killed process' memory", time.time() - killed, "s")
    after = watch.since(time.time())
    ours = after.one("llm_gpu_memory_headroom_bytes", **GPU)
    yield compared(PART, "headroom after the kill", float(driver_free()), ours, "B", within=PAGE)
    gone = after.one("llm_gpu_process_memory_bytes", pid=third.pid)
    yield held(PART, "the killed process is gone", "absent", "absent" if gone is None else "there", right=gone is None)


def _answered(worker: Worker) -> bool:
    """Whether a worker's answer can be read without waiting."""
    return bool(select.select([worker.answers], [], [], 0)[0])
