"""What is read on this machine: its GPUs, and the processes and host memory of the engines that run on it.

Both block (NVML, /proc), so each reading has a thread of its own: one that hangs costs only its source.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

from llm_headroom import clock
from llm_headroom.host.engines import addresses, runs_here
from llm_headroom.model import Cause, Failure, Health, SampleState, Snapshot
from llm_headroom.net.threads import NoThreadError, in_thread
from llm_headroom.poll.source import failed
from llm_headroom.scrape.coverage import GPUS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from llm_headroom.config.settings import Config, Target
    from llm_headroom.derive import oom
    from llm_headroom.derive.gpu_memory import DeviceKey
    from llm_headroom.gpu.attribution import Holding
    from llm_headroom.gpu.reading import Reading
    from llm_headroom.host.engines import Finder, Watched
    from llm_headroom.host.reading import HostMemory
    from llm_headroom.host.reading import Reading as HostReading
    from llm_headroom.model import Point

log = logging.getLogger("llm_headroom")

GPU_TARGET: Final = GPUS
"""The name of the target, too."""
_CLOSE_SECONDS: Final = 1.0
"""For which a call of NVML under way is waited for at the end: a supervisor waits, too."""


class GpuReader(Protocol):
    """What GPUs are read through: `llm_headroom.gpu.Gpus`, or simulated ones. Used from one thread at a time."""

    def read(self) -> Reading:
        """One reading; raises `llm_headroom.gpu.GpuError` if there is nothing to read."""
        ...

    def xids(self) -> list[Point]:
        """Xid errors so far."""
        ...

    def close(self) -> None:
        """Let go of libraries."""
        ...


class GpuSource:
    """This host's GPUs, and which engines hold their memory. A call of NVML that hangs costs only the GPUs.

    `engines` gives the targets with their latest collections, `finder` their processes. `explain`: warn of memory that
    could not be attributed, for a report to people. `events`: count Xid errors. `reader`: what is read instead of NVML.
    """

    capped: Mapping[str, int] = MappingProxyType({})

    def __init__(  # noqa: PLR0913 - what it is made of
        self,
        config: Config,
        engines: Callable[[], Sequence[Watched]],
        finder: Finder,
        *,
        explain: bool,
        events: bool,
        reader: GpuReader | None,
    ) -> None:
        from llm_headroom.gpu import Gpus  # noqa: PLC0415 - NVML's bindings are loaded only where GPUs are read

        self.interval = config.interval if config.gpu.interval is None else config.gpu.interval
        self._gpus = reader or Gpus(processes=config.gpu.processes, pcie=config.gpu.pcie, events=events)
        self._engines = engines
        self._finder = finder
        self._explain = explain
        self._timeout = config.timeout
        self._devices: Mapping[DeviceKey, oom.Device] = {}
        self._pending: asyncio.Future[Snapshot] | None = None
        self._pending_since = 0.0
        self._last_success: float | None = None

    @property
    def retained(self) -> Sequence[Point]:
        """Xid errors: exported also after they have taken down the last GPU."""
        return self._gpus.xids()

    async def collect(self) -> Snapshot:
        """One collection; failures are in its health, never raised."""
        taken, started = clock.now(), time.monotonic()
        if self._pending is None or self._pending.done():
            self._pending_since = started
            watched = tuple(self._engines())
            self._pending = in_thread(lambda: self._read(watched), "nvml")
        try:
            # wait_for of Python 3.11 drops a cancellation that comes together with the result; timeout does not
            async with asyncio.timeout(self._timeout):
                snapshot = await asyncio.shield(self._pending)
        except TimeoutError:
            waited = time.monotonic() - self._pending_since
            failure = Failure(Cause.TIMEOUT, f"NVML has not answered for {waited:.1f} s: the driver may hang")
            return failed(GPU_TARGET, GPU_TARGET, taken, started, failure, self._last_success)
        except NoThreadError as error:
            failure = Failure(Cause.INTERNAL, error.strerror)
            return failed(GPU_TARGET, GPU_TARGET, taken, started, failure, self._last_success)
        self._last_success = snapshot.health.last_success
        return snapshot

    def _read(self, watched: tuple[Watched, ...]) -> Snapshot:
        from llm_headroom.derive import gpu_memory, oom  # noqa: PLC0415 - see above
        from llm_headroom.gpu import GpuError  # noqa: PLC0415

        taken, started = clock.now(), time.monotonic()
        try:
            reading = self._gpus.read()
        except GpuError as error:
            return failed(GPU_TARGET, GPU_TARGET, taken, started, error.failure, self._last_success)
        shared = gpu_memory.unified(reading.points, reading.processes, self._finder.proc.memory())
        reading = replace(reading, points=(*reading.points, *shared))
        memory = gpu_memory.device_memory(reading.points)
        most = gpu_memory.attributable(reading.points, reading.processes)
        attributed, unexplained = self._attributed(most, reading, watched)
        derived = gpu_memory.derived(memory, attributed, watched, most=most)
        self._devices, risks = oom.gpus(self._devices, memory, attributed, watched, started)
        points = (*reading.points, *derived.points, *risks)
        return Snapshot(
            target=GPU_TARGET,
            engine=GPU_TARGET,
            taken=taken,
            points=points,
            health=Health(
                up=True,
                warnings=(*reading.warnings, *derived.warnings, *(unexplained if self._explain else ())),
                duration_seconds=time.monotonic() - started,
                last_success=taken,
                samples={SampleState.MAPPED: len(reading.points)},
                version=reading.driver,
            ),
        )

    def _attributed(
        self, used: Mapping[tuple[str, str], float], reading: Reading, watched: tuple[Watched, ...]
    ) -> tuple[list[Holding], list[Failure]]:
        from llm_headroom.gpu import attribution  # noqa: PLC0415 - see above

        proc = self._finder.proc
        pids = [process.pid for device in reading.processes for process in device.processes]
        processes = self._finder.find(watched, pids)
        owners = [
            attribution.Owner(each.target.name, processes.get(each.target.name), each.up, each.target.gpus)
            for each in watched
        ]
        devices = attribution.devices(used, reading.processes)
        visible = os.environ.get("NVIDIA_VISIBLE_DEVICES", "")
        sidecar = attribution.may_eliminate(
            len(devices), visible=visible, initial_namespace=proc.initial_namespace
        ) and all(_in_this_network(each) for each in watched)
        holdings = attribution.attribute(devices, owners, proc, sidecar=sidecar)
        return holdings, attribution.unexplained(devices, holdings, owners, proc)

    async def estimate(self) -> None:
        """There is nothing to estimate."""

    async def close(self) -> None:
        """Unload NVML once the call under way has ended, unless that hangs."""
        if self._pending is not None:
            await asyncio.wait({self._pending}, timeout=min(self._timeout, _CLOSE_SECONDS))
        if self._pending is None or self._pending.done():
            with contextlib.suppress(NoThreadError):
                await in_thread(self._gpus.close, "nvml")


class HostWatch:
    """Processes and host memory of the engines that run on this host, as `finder` finds them."""

    def __init__(self, finder: Finder, *, timeout: float) -> None:
        self._finder = finder
        self._memory: HostMemory | None = None
        self._timeout = timeout
        self._here: dict[Target, bool] = {}
        self._hidden: dict[str, Failure] = {}
        self._pending: asyncio.Future[dict[str, HostReading]] | None = None
        self._risks: dict[str, oom.Host | None] = {}

    def may_see(self, targets: Iterable[Target], *, gpus: bool) -> bool:
        """Whether any of all the targets may run on this host, whose GPUs may be read.

        Where they are, engines may run in containers of this host, with addresses of their own.
        """
        self._here = {each: self._here[each] if each in self._here else runs_here(each) for each in targets}
        return any(self._here.values()) or (gpus and bool(self._here))

    async def read(self, watched: Sequence[Watched]) -> dict[str, HostReading]:
        """What is found of each target; nothing if /proc or /sys does not answer in time.

        `hidden` is left out of targets that run elsewhere, and logged once of the others.
        """
        readings = await self._found(watched)
        elsewhere = {each.target.name for each in watched if not self._here.get(each.target)}
        found = {name: each._replace(hidden=None) if name in elsewhere else each for name, each in readings.items()}
        hidden = {name: each.hidden for name, each in found.items() if each.hidden}
        for name, failure in hidden.items():
            if self._hidden.get(name) != failure:
                log.info("not seen", extra={"target": name, "reason": failure.message})
        self._hidden = hidden
        return found

    async def _found(self, watched: Sequence[Watched]) -> dict[str, HostReading]:
        if self._pending is None or self._pending.done():
            self._pending = in_thread(lambda: self._read(watched, time.monotonic()), "host")
        try:
            async with asyncio.timeout(self._timeout):
                return await asyncio.shield(self._pending)
        except TimeoutError:
            reason = f"/proc has not answered within {self._timeout:g} s"
        except NoThreadError as error:
            reason = error.strerror
        log.warning("host memory not read", extra={"reason": reason})
        return {}

    def _read(self, watched: Sequence[Watched], now: float) -> dict[str, HostReading]:
        from llm_headroom.derive import oom  # noqa: PLC0415 - only where engines run on this host
        from llm_headroom.host.reading import HostMemory  # noqa: PLC0415 - the same

        self._memory = self._memory or HostMemory(self._finder)
        risks: dict[str, oom.Host | None] = {}
        readings = {}
        for name, reading in self._memory.read(watched, now).items():
            risks[name], points = oom.host(self._risks.get(name), reading.points, now)
            readings[name] = reading._replace(points=(*reading.points, *points))
        self._risks = risks
        return readings


def _in_this_network(engine: Watched) -> bool:
    """Whether only this host's loopback leads to it, or this host's own name: in a pod, a process of the same pod."""
    found = addresses(engine.target)
    return bool(found) and all(address.is_loopback for address in found)


def joined(snapshot: Snapshot, host: HostReading) -> Snapshot:
    """An engine that is up, with what this host shows of it, or why it does not."""
    if not snapshot.health.up:
        return snapshot
    hidden = () if host.hidden is None else (host.hidden,)
    health = replace(snapshot.health, warnings=(*snapshot.health.warnings, *hidden))
    return replace(snapshot, points=(*snapshot.points, *host.points), health=health)
