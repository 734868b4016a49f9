"""What watching GPUs costs: CPU and latency of a collection with everything that is on by default.

    python bench/gpu.py [seconds]

NVML is the stub of tests/support/nvml: the numbers are those of this exporter, its Python bindings and the stub's own
look-ups, not of a driver: a real NVML adds its system calls, of which the table gives the number. The engine is this
process, so that attribution and decomposition have something to do; one process holds memory on each GPU.

The peer reads what nvidia-smi prints (utkuozdemir/nvidia_gpu_exporter by default, and most others): each collection
starts a process that initialises NVML, reads and ends. That cannot be measured without a driver; what is measured is
its floor, starting a process that does nothing. Needs gcc and Linux.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

ROOT: Final = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

import nvml_library  # noqa: E402 - of the tests
from llm_headroom import schema  # noqa: E402
from llm_headroom.config.endpoint import Endpoint  # noqa: E402
from llm_headroom.config.settings import Config, Target  # noqa: E402
from llm_headroom.gpu import Gpus  # noqa: E402
from llm_headroom.host.engines import Finder, Watched  # noqa: E402
from llm_headroom.host.reading import HostMemory  # noqa: E402
from llm_headroom.model import Health, Point, Series, Snapshot  # noqa: E402
from llm_headroom.poll.local import GpuSource  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS: Final = 2.0
INTERVAL: Final = 5.0
GIB: Final = 2**30
_FIELD: Final = " field "


class Cost(NamedTuple):
    """One collection: CPU of this process and its ended children, median and 99th percentile of the duration; ms."""

    cpu: float
    median: float
    worst: float


def measured(work: Callable[[], object], seconds: float) -> Cost:
    """The cost of a call, of as many as fit into the time; the first one is left out."""
    work()
    durations = []
    before = _cpu()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.perf_counter()
        work()
        durations.append(time.perf_counter() - began)
    cpu = (_cpu() - before) / len(durations)
    return Cost(cpu * 1e3, statistics.median(durations) * 1e3, sorted(durations)[int(len(durations) * 0.99)] * 1e3)


def _cpu() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def machine(folder: Path, gpus: int) -> nvml_library.Description:
    """H200s, on each of which this process holds memory."""
    description = nvml_library.Description(folder / f"gpus{gpus}", nvml_library.fixture("h200x8"))
    description.say("system", "nvmlDeviceGetCount_v2", gpus)
    processes = f"{os.getpid()} {100 * GIB} 4294967295 4294967295"
    description.say("gpu *", "nvmlDeviceGetComputeRunningProcesses_v3", processes)
    return description


def engine() -> Watched:
    """A target that is this process and reports its memory as SGLang does."""
    target = Target(name="engine", endpoint=Endpoint(url="http://127.0.0.1:1"), engine="sglang", pid=os.getpid())
    labels = {"engine": "sglang", "target": "engine", "model": "m"}
    kinds = {"weights": 30.0, "kv_cache": 60.0, "graph": 2.0}
    points = [
        Point(Series(schema.MODEL_MEMORY, {**labels, "kind": kind}), size * GIB, "bench")
        for kind, size in kinds.items()
    ]
    tokens = ((schema.KV_CACHE_CAPACITY, 1e6), (schema.KV_CACHE_USED, 4e5), (schema.KV_CACHE_EVICTABLE, 2e5))
    points += [Point(Series(metric, labels), value, "bench") for metric, value in tokens]
    health = Health(up=True)
    return Watched(target, Snapshot(target="engine", engine="sglang", taken=0.0, points=tuple(points), health=health))


def calls(library: Path, folder: Path) -> tuple[int, int]:
    """NVML calls of a reading that is not the first, and the field values that come in one of them."""
    log = folder / "calls"
    os.environ["NVML_STUB_LOG"] = str(log)
    gpus = Gpus(library=library)
    gpus.read()
    log.write_text("", encoding="utf-8")
    gpus.read()
    del os.environ["NVML_STUB_LOG"]
    gpus.close()
    lines = log.read_text(encoding="utf-8").splitlines()
    fields = sum(_FIELD in line for line in lines)
    return len(lines) - fields, fields


async def whole(library: Path, seconds: float) -> tuple[Cost, int]:
    """A collection as the exporter makes it: NVML, attribution, decomposition, in a thread; and its points."""
    watched, finder = [engine()], Finder()
    os.environ["LD_LIBRARY_PATH"] = str(library.parent)
    source = GpuSource(Config(), lambda: watched, finder, explain=False, events=True, reader=None)
    points = len((await source.collect()).points)
    durations = []
    before, end = _cpu(), time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.perf_counter()
        await source.collect()
        durations.append(time.perf_counter() - began)
    cpu = (_cpu() - before) / len(durations)
    await source.close()
    ordered = sorted(durations)
    return Cost(cpu * 1e3, statistics.median(ordered) * 1e3, ordered[int(len(ordered) * 0.99)] * 1e3), points


def row(what: str, cost: Cost, rest: str = "") -> None:
    """One line of the table; the share is of one core at one collection in five seconds."""
    share = cost.cpu / 1e3 / INTERVAL
    print(f"{what:<44}{cost.cpu:>9.2f}{cost.median:>9.2f}{cost.worst:>9.2f}{share:>10.3%}  {rest}")


def child(gpus: int, seconds: float) -> None:
    """In a process of its own, since the stub keeps the first description that it reads."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = nvml_library.build(folder)
        os.environ |= machine(folder, gpus).environment()
        made, fields = calls(library, folder)
        os.environ["NVML_STUB_KEEP"] = "1"
        reader = Gpus(library=library)
        plain = measured(reader.read, seconds)
        reader.close()
        collected, points = asyncio.run(whole(library, seconds))
    row(
        f"{gpus} GPU{'s' * (gpus > 1)}, NVML alone",
        plain,
        f"{made} NVML calls, one of each GPU with {fields // gpus} fields",
    )
    row(f"{gpus} GPU{'s' * (gpus > 1)}, with attribution, in a thread", collected, f"{points} points")


def main() -> None:
    """The table."""
    if len(sys.argv) > 2:
        child(int(sys.argv[1]), float(sys.argv[2]))
        return
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    print(f"{'one collection':<44}{'CPU ms':>9}{'median':>9}{'p99 ms':>9}{'every 5 s':>10}")
    sys.stdout.flush()
    for gpus in (1, 8):
        subprocess.run([sys.executable, __file__, str(gpus), str(seconds)], check=True)
    memory, watched = HostMemory(Finder()), [engine()]
    row("host memory of one engine", measured(lambda: memory.read(watched, time.monotonic()), seconds))
    row("the peer's floor: starting a process", measured(lambda: subprocess.run(["/bin/true"], check=True), seconds))


if __name__ == "__main__":
    main()
