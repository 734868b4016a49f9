"""Simulated GPUs, read like the real ones: memory follows who holds it, the rest follows the load.

Utilisation is the share of time that engines spent in steps. Power rises with it from idle to the limit, temperature
follows power with a lag, energy adds power up over virtual time. An engine that is slowed down is one whose GPU is too
hot: its clock falls by the same factor. Assumptions, not measurements.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from llm_headroom import schema
from llm_headroom.gpu.device import DeviceProcesses, GpuProcess
from llm_headroom.gpu.reading import Reading
from llm_headroom.model import Point, Series

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_headroom.model import Metric
    from llm_headroom.simulate.clock import Clock
    from llm_headroom.simulate.hardware import Gpu

DRIVER: Final = "simulated"
ORIGIN: Final = "simulated GPU"
UNSEEN_PID: Final = 1 << 22
"""The least PID that no process can have (proc(5): pid_max is at most 2^22)."""
_RESERVED: Final = 512 * 1024**2  # assumed: what driver and firmware reserve
_LIMITS: Final = {  # watts, from NVIDIA's data sheets
    "NVIDIA H100 80GB HBM3": 700.0,
    "NVIDIA A100-SXM4-80GB": 400.0,
    "NVIDIA L4": 72.0,
    "NVIDIA GeForce RTX 4090": 450.0,
}
_IDLE_SHARE: Final = 0.15  # of the power limit
_COOL: Final = 32.0  # degrees Celsius, without power
_WARM: Final = 72.0  # degrees Celsius, at the power limit
_HOT: Final = 93.0  # degrees Celsius, while its clock is lowered for its heat
_LAG: Final = 40.0  # virtual seconds in which a temperature comes 63 % of its way
_SAMPLE: Final = 1.0  # real seconds
_CLOCK: Final = 1.41e9  # hertz; A100's SM clock at most (NVIDIA A100 datasheet), taken for every card


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody who holds memory of a GPU.

    Attributes:
        memory: bytes now.
        pid: as NVML lists it; None for memory that it attributes to no process, such as another container's.
        busy_seconds: virtual seconds of work so far.
        slowdown: by what factor its steps take longer than on a healthy GPU.
    """

    memory: Callable[[], int]
    pid: int | None = None
    busy_seconds: Callable[[], float] | None = None
    slowdown: Callable[[], float] = lambda: 1.0


class _Device:
    def __init__(self, index: int, gpu: Gpu, holders: Sequence[Holder], now: float) -> None:
        self.gpu = gpu
        self.holders = holders
        self.labels = {"gpu": str(index), "uuid": f"GPU-51e11a7e-0000-4000-8000-{index:012d}"}
        self._at = now
        self._busy = self._work()
        self._utilisation = 0.0
        self._energy = 0.0
        self._temperature = _COOL
        self._slowdown = 1.0
        self._throttled = 0.0
        self.xids: dict[int, tuple[int, float]] = {}
        self._limit = _LIMITS.get(gpu.name, 300.0)

    def _work(self) -> float:
        return sum(one.busy_seconds() for one in self.holders if one.busy_seconds is not None)

    def advance(self, now: float) -> None:
        elapsed = now - self._at
        if elapsed <= 0:
            return
        busy = self._work()
        self._utilisation = min(max((busy - self._busy) / elapsed, 0.0), 1.0)
        self._at, self._busy = now, busy
        self._energy += self._power * elapsed
        self._slowdown = max((one.slowdown() for one in self.holders), default=1.0)
        self._throttled += elapsed * (self._slowdown > 1.0)
        target = _HOT if self._slowdown > 1.0 else _COOL + (_WARM - _COOL) * self._power / self._limit
        self._temperature += (target - self._temperature) * (1.0 - math.exp(-elapsed / _LAG))

    @property
    def _power(self) -> float:
        return self._limit * (_IDLE_SHARE + (1.0 - _IDLE_SHARE) * 0.9 * self._utilisation)

    def _point(self, metric: Metric, value: float, **labels: str) -> Point:
        return Point(Series(metric, {**self.labels, **labels}), float(value), ORIGIN)

    def xid_points(self) -> list[Point]:
        return [
            point
            for xid, (count, last) in self.xids.items()
            for point in (
                self._point(schema.GPU_XID_ERRORS, count, xid=str(xid)),
                self._point(schema.GPU_XID_LAST, last, xid=str(xid)),
            )
        ]

    def read(self) -> tuple[list[Point], DeviceProcesses]:
        point = self._point
        memory = [one.memory() for one in self.holders]
        total = self.gpu.memory_bytes
        used = min(sum(memory), total - _RESERVED)
        points = [
            point(schema.GPU_INFO, 1.0, name=self.gpu.name, driver=DRIVER),
            point(schema.GPU_MEMORY_TOTAL, total),
            point(schema.GPU_MEMORY_USED, used),
            point(schema.GPU_MEMORY_RESERVED, _RESERVED),
            point(schema.GPU_MEMORY_FREE, total - _RESERVED - used),
            point(schema.GPU_UTILIZATION, self._utilisation),
            point(schema.GPU_POWER, self._power),
            point(schema.GPU_POWER_LIMIT, self._limit),
            point(schema.GPU_ENERGY, self._energy),
            point(schema.GPU_TEMPERATURE, round(self._temperature), sensor="gpu"),
            point(schema.GPU_MEMORY_CONTROLLER, 0.8 * self._utilisation),  # decode is bound by memory
            point(schema.GPU_CLOCK, _CLOCK / self._slowdown, domain="sm"),
            point(schema.GPU_CLOCK_MAX, _CLOCK, domain="sm"),
            point(schema.GPU_THROTTLE, self._slowdown > 1.0, reason="hw_thermal"),
            point(schema.GPU_THROTTLE_TIME, self._throttled, policy="thermal"),
            point(schema.GPU_RECOVERY_ACTION, 0),
            point(schema.GPU_ROW_REMAP_PENDING, 0),
            point(schema.GPU_ROW_REMAP_FAILURE, 0),
            point(schema.GPU_ECC_ERRORS, 0, severity="corrected"),
            point(schema.GPU_ECC_ERRORS, 0, severity="uncorrected"),
        ]
        processes = tuple(
            GpuProcess(one.pid, held)
            for one, held in zip(self.holders, memory, strict=True)
            if one.pid is not None and held
        )
        return points, DeviceProcesses(self.labels["gpu"], self.labels["uuid"], processes)


class SimulatedGpus:
    """Simulated GPUs in the place of `llm_headroom.gpu.Gpus`: `read` may be called from any thread.

    They are sampled every second in the event loop in which the engines live, within `async with`; a sample moves
    the engines to now.
    """

    def __init__(self, clock: Clock, gpus: Sequence[tuple[Gpu, Sequence[Holder]]]) -> None:
        self._clock = clock
        now = clock.now()
        self._devices = [_Device(index, gpu, holders, now) for index, (gpu, holders) in enumerate(gpus)]
        self._sampling: asyncio.Task[None] | None = None
        self.sample()

    async def __aenter__(self) -> Self:
        self._sampling = asyncio.get_running_loop().create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._sampling is not None:
            self._sampling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sampling

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_SAMPLE)
            self.sample()

    def sample(self) -> None:
        """Move the engines to now and see what they do to the GPUs."""
        now = self._clock.now()
        points = [Point(Series(schema.GPUS, {}), float(len(self._devices)), ORIGIN)]
        processes = []
        for device in self._devices:
            device.advance(now)
            read, listed = device.read()
            points += [*read, *device.xid_points()]
            processes.append(listed)
        self._reading = Reading(tuple(points), (), DRIVER, tuple(processes))

    def read(self) -> Reading:
        """The latest sample."""
        return self._reading

    def fail(self, index: int, xid: int) -> None:
        """Have the driver report an Xid error of a GPU, now."""
        device = self._devices[index]
        device.xids[xid] = (device.xids.get(xid, (0, 0.0))[0] + 1, time.time())

    def xids(self) -> list[Point]:
        """The Xid errors so far."""
        return [point for device in self._devices for point in device.xid_points()]

    def close(self) -> None:
        """Do nothing: there is no library to unload."""
