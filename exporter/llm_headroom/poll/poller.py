"""The loop that polls every source in the background, and the only place where readings are retained.

Sources are polled by a clock of our own, not by the scrapes of Prometheus: derived signals need an even window, spikes
between scrapes must be seen, and every output must show the same reading. A hung engine cannot hang `/metrics`, which
renders what was read last and says how old it is.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import urlsplit

from llm_headroom import clock
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.identity import placed
from llm_headroom.config.settings import Config, Target
from llm_headroom.derive import economy
from llm_headroom.derive.memory import has_elders
from llm_headroom.host.engines import Finder, Watched
from llm_headroom.model import Cause, Failure, Snapshot, Subject
from llm_headroom.net.addresses import of_this_host, on_loopback
from llm_headroom.poll.engine import EngineSource
from llm_headroom.poll.local import GPU_TARGET, GpuSource, HostWatch, joined
from llm_headroom.poll.pace import MOST_AT_ONCE, START_SPACING, Pace, Strain, host_pause, paces
from llm_headroom.poll.slot import Slot
from llm_headroom.poll.sought import FREE, SOUGHT_GPUS, Sought
from llm_headroom.poll.source import failed
from llm_headroom.schema import proxied
from llm_headroom.scrape import catalog
from llm_headroom.scrape.http import FetchError
from llm_headroom.scrape.identify import identify

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence

    from llm_headroom.derive.memory import Memory
    from llm_headroom.host.reading import Reading as HostReading
    from llm_headroom.model import Point
    from llm_headroom.poll.local import GpuReader
    from llm_headroom.poll.source import Measured, NamedSource, Source

log = logging.getLogger("llm_headroom")

ESTIMATE_PAUSE: Final = 2.0
LOOK_AGAIN: Final = 30.0
"""Seconds between looks for engines (on this host's usual ports) and for NVML where there was none."""
LOOK_TIMEOUT: Final = 2.0
_WHERE_DISCOVERED: Final = ("localhost", "127.0.0.1", "::1")
"""Where engines are looked for: behind another address of loopback, such as 127.0.0.2, there may be another one."""


_Work: TypeAlias = "Callable[[], Coroutine[None, None, None]]"


class Poller:
    """Polls the sources of a configuration until it is stopped; holds the latest snapshot of each.

    `gpus` is what GPUs are read through instead of NVML, `beside` are sources that no configuration names, `measured`
    is what was measured of the traffic to targets, by their names. `explain`: warn of what could not be seen, for a
    report to people.
    """

    def __init__(
        self,
        config: Config,
        *,
        gpus: GpuReader | None = None,
        beside: Sequence[NamedSource] = (),
        measured: Mapping[str, Measured] | None = None,
        explain: bool = False,
    ) -> None:
        self.config = config
        self.engines = catalog.engines(config)
        self.slots: dict[str, Slot] = {}
        self.absent: dict[Sought, Failure] = {}
        """What was looked for on this host and not found, and why."""
        self.strain = Strain()
        self._starting, self._started = asyncio.Lock(), 0
        self._gpus = gpus
        self._beside = beside
        self._measured = measured or {}
        self._explain = explain
        self._changed: Callable[[], None] = lambda: None
        self._fresh: dict[str, Snapshot] = {}
        self._read = 0  # so many of the configured targets, in their order, were collected
        self._elders: list[Memory] = []
        """What is remembered of engines whose step cost new ones may take over, while estimates are made."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._round = asyncio.Event()
        self._finder = Finder()

    def on_change(self, changed: Callable[[], None]) -> None:
        """Have a function called after each publication, so that renderings can be thrown away."""
        self._changed = changed

    def start(self) -> None:
        """Begin to poll; returns at once."""
        self._begin(self.config.targets, {})
        if not self.config.targets:
            self._round.set()

    def _begin(self, targets: Iterable[Target], former: Mapping[str, Slot]) -> None:
        """Begin all work that is not going on; a slot goes on from a former one of its name."""
        self._start_targets(targets, former)
        for source in self._beside:
            if source.name not in self.slots:
                before = former.get(source.name)
                self._start(Slot(source.name, source, source.labels, self.config.detail, before), Pace())
        if self._discovers():
            self._tasks.add(self._spawn(self._discover))
        if self.config.gpu.enabled is not False:
            self._tasks.add(self._spawn(partial(self._watch_gpus, former.get(GPU_TARGET))))
        if self.config.host:
            self._tasks.add(self._spawn(self._watch_host, self._forget_host))
        self._tasks.add(self._spawn(self._estimate))

    async def once(self) -> None:
        """Collect everything one time instead of again and again: engines, then GPUs and host, which go by them."""
        found = await asyncio.gather(*map(self._look, self._ports())) if self._discovers() else ()
        slots = self._added([*self.config.targets, *(target for target in found if target is not None)], {})
        await asyncio.gather(*map(self._collect, slots))
        if self.config.gpu.enabled is not False:
            source = self._gpu_source()
            snapshot = await source.collect()
            if snapshot.health.error is None or self.config.gpu.enabled:
                slot = self.slots[GPU_TARGET] = Slot(GPU_TARGET, source, {}, self.config.detail)
                slot.publish(snapshot)
            else:
                self._miss(SOUGHT_GPUS, snapshot.health.error)
                await source.close()
        if self.config.host:
            readings = await self._read_host(HostWatch(self._finder, timeout=self.config.timeout)) or {}
            for slot in slots:
                if slot.snapshot is not None and slot.name in readings:
                    slot.snapshot = joined(slot.snapshot, readings[slot.name])

    async def stop(self) -> None:
        """End all polling and close every source."""
        await _cancelled([*self._tasks, *(slot.task for slot in self.slots.values() if slot.task is not None)])
        self._tasks.clear()
        for slot in self.slots.values():
            await slot.source.close()
        self.slots.clear()

    async def apply(self, config: Config) -> None:
        """Take over a new configuration: sources that it does not change go on undisturbed."""
        old, self.config = self.config, config
        self._read = 0
        remade = _made_of(old) != _made_of(config)
        shared = (old.interval, old.gpu, self._discovers(old)) != (config.interval, config.gpu, self._discovers())
        if remade or shared:
            await _cancelled(self._tasks)
            self._tasks.clear()
        if remade:
            self.engines = catalog.engines(config)
        wanted = {target.name: target for target in config.targets}
        if self._discovers():
            configured = {target.name for target in old.targets}
            found = [source.target for source, _ in self._engine_slots() if source.target.name not in configured]
            wanted = {target.name: target for target in found} | wanted
        former: dict[str, Slot] = {}
        for name, slot in tuple(self.slots.items()):
            if isinstance(slot.source, EngineSource):
                slot.source.config = config
                stays = not remade and wanted.get(name) == slot.source.target
            else:
                stays = not remade and not (shared and name == GPU_TARGET)
            if not stays:
                former[name] = slot
                await self._drop(name)
        new = [target for target in wanted.values() if target.name not in self.slots]
        if remade or shared:
            self._begin(new, former)
        else:
            self._start_targets(new, former)
        self._changed()

    @property
    def ready(self) -> bool:
        """Whether every configured source has been collected once, successfully or not."""
        return self._round.is_set()

    async def first_round(self) -> None:
        """Wait until `ready`."""
        await self._round.wait()

    def snapshots(self) -> list[Snapshot]:
        """The latest snapshot of each source."""
        return [slot.snapshot for slot in self.slots.values() if slot.snapshot is not None]

    def fresh(self) -> Collection[Snapshot]:
        """The latest snapshots of the sources that have published since this was called last."""
        fresh, self._fresh = self._fresh, {}
        return fresh.values()

    def models(self, name: str) -> Collection[str] | None:
        """The models that a target lists; None if nobody knows: it has not been asked yet, or it names none."""
        slot = self.slots.get(name)
        if slot is None or slot.snapshot is None or not isinstance(slot.source, EngineSource):
            return None
        return slot.source.models or (None if slot.snapshot.health.up else ())

    def polled(self, name: str) -> Sequence[Point]:
        """What the latest poll of a target has shown; nothing if that failed, or if there was none."""
        slot = self.slots.get(name)
        return () if slot is None or slot.snapshot is None else slot.snapshot.points

    def _engine_slots(self) -> list[tuple[EngineSource, Slot]]:
        return [(slot.source, slot) for slot in self.slots.values() if isinstance(slot.source, EngineSource)]

    def _watched(self) -> list[Watched]:
        """Engines with their latest collections, for what is read of them on this host."""
        return [
            Watched(source.target, slot.snapshot)
            for source, slot in self._engine_slots()
            if source.engine is None or source.engine.subject is not Subject.ROUTER
        ]

    async def _watch_host(self) -> None:
        """Read the processes and host memory of engines as long as any may run here."""
        host = HostWatch(self._finder, timeout=self.config.timeout)
        while True:
            found = await self._read_host(host)
            await asyncio.sleep(host_pause(self.config.interval, found, self._watched()))

    def _forget_host(self) -> None:
        for source, _ in self._engine_slots():
            source.here = ()

    async def _read_host(self, host: HostWatch) -> dict[str, HostReading] | None:
        """What this host shows of engines, by target; handed to their sources, too. None if none can be here."""
        sources = [source for source, _ in self._engine_slots()]
        if not host.may_see((source.target for source in sources), gpus=GPU_TARGET in self.slots):
            return None
        readings = await host.read(self._watched())
        for source in sources:
            reading = readings.get(source.target.name)
            source.here = reading.points if reading else ()
        return readings

    def _discovers(self, config: Config | None = None) -> bool:
        config = config or self.config
        return not config.targets if config.discover is None else config.discover

    def _spawn(self, work: _Work, forget: Callable[[], None] = lambda: None, name: str = "") -> asyncio.Task[None]:
        """Work in the background. Where it fails, what it has read is forgotten, and it begins anew a little later."""

        async def lasting() -> None:
            while True:
                try:
                    return await work()
                except Exception:
                    log.exception("work of the poller failed, and begins again later", extra={"work": name})
                forget()
                await asyncio.sleep(LOOK_AGAIN)

        return asyncio.get_running_loop().create_task(lasting(), name=name)

    def _added(self, targets: Iterable[Target], former: Mapping[str, Slot]) -> list[Slot]:
        found = []
        for target in targets:
            before = former.get(target.name)
            known = None if before is None else _of_same(target, before.source)
            identified = None if known is None or known.engine is None else known.engine.name
            source = EngineSource(
                target,
                self.engines,
                self.config,
                self._measured.get(target.name),
                explain=self._explain,
                kin=lambda: self._elders,
                proxied=partial(self.polled, proxied(target.name)),
                identified=identified if identified in self.engines else None,
            )
            before = None if known is None else before
            slot = self.slots[target.name] = Slot(target.name, source, target.labels, self.config.detail, before)
            found.append(slot)
        return found

    def _start_targets(self, targets: Iterable[Target], former: Mapping[str, Slot]) -> None:
        slots = self._added(targets, former)
        for slot, pace in zip(slots, paces(len(slots)), strict=True):
            self._start(slot, pace)

    def _start(self, slot: Slot, pace: Pace) -> None:
        self.slots[slot.name] = slot
        slot.task = self._spawn(partial(self._poll, slot, pace), slot.forget, slot.name)

    async def _drop(self, name: str) -> None:
        slot = self.slots.pop(name)
        if slot.task is not None:
            await _cancelled([slot.task])
        await slot.source.close()

    async def _poll(self, slot: Slot, pace: Pace) -> None:
        loop = asyncio.get_running_loop()
        if pace.after:
            await self._turn()
        await self._collect(slot)
        due = -math.inf
        while True:
            now = loop.time()
            slot.due = due = pace.next(now, slot.source.interval * self.strain.stretch, due)
            await asyncio.sleep(due - now)
            self.strain.note(due, loop.time())
            await self._collect(slot)

    async def _turn(self) -> None:
        """Wait for one's turn to begin: as many at a time as are read at once, later where these keep us busy."""
        async with self._starting:
            self._started += 1
            if self._started % MOST_AT_ONCE == 1:
                await asyncio.sleep(START_SPACING)

    async def _collect(self, slot: Slot) -> None:
        taken, started = clock.now(), time.monotonic()
        try:
            snapshot = slot.publish(await slot.source.collect(), self.polled(proxied(slot.name)))
        except Exception as error:
            log.exception("collection failed: internal error (bug)", extra={"target": slot.name})
            failure = Failure(Cause.INTERNAL, f"{type(error).__name__} in llm-headroom; see its log")
            snapshot = slot.publish(failed(slot.name, "", taken, started, failure), self.polled(proxied(slot.name)))
        self._fresh[slot.name] = snapshot
        if slot.name == GPU_TARGET:
            held = economy.held_gpus(snapshot.points)
            for source, engine in self._engine_slots():
                source.gpus = held.get(engine.name, economy.Gpus(0) if snapshot.health.up else None)
        targets = self.config.targets
        # Begun where the last look ended: to ask for all of thousands at each one's first poll takes seconds.
        while self._read < len(targets) and getattr(self.slots.get(targets[self._read].name), "snapshot", None):
            self._read += 1
        if self._read == len(targets):
            self._round.set()
        self._changed()

    async def _estimate(self) -> None:
        """Let one source after another estimate, so that never more than one core is busy with it."""
        while True:
            self._elders = [source.memory for source, _ in self._engine_slots() if has_elders(source.memory)]
            for name in tuple(self.slots):
                # Only the name is held while others are awaited: a target that has gone must leave memory.
                if name in self.slots:
                    await self.slots[name].source.estimate()
                    await asyncio.sleep(0)  # most have nothing to estimate, and thousands would let nobody in between
            self._elders = []
            await asyncio.sleep(max(ESTIMATE_PAUSE, self.config.interval))  # before a poll there is nothing new

    def _ports(self) -> list[int]:
        """This host's usual ports of engines where no target is yet."""
        urls = [urlsplit(target.endpoint.url) for target in self.config.targets]
        taken = {url.port for url in urls if _leads_here(url.hostname or "")}
        ports = frozenset[int]().union(*(engine.ports for engine in self.engines.values())) - taken
        return [port for port in sorted(ports) if placed(f"127.0.0.1:{port}", os.environ) not in self.slots]

    async def _discover(self) -> None:
        """Look for engines on this host's usual ports, again and again; say what is found, and what is not and why."""

        async def start(port: int) -> None:
            if target := await self._look(port):
                self._start_targets([target], {})

        while True:
            await asyncio.gather(*map(start, self._ports()))
            await asyncio.sleep(LOOK_AGAIN)

    async def _look(self, port: int) -> Target | None:
        address = f"127.0.0.1:{port}"
        sought = Sought(address, ", ".join(engine.title for engine in self.engines.values() if port in engine.ports))
        endpoint = Endpoint(url=f"http://{address}")
        try:
            engine = await identify(endpoint, self.engines, timeout=LOOK_TIMEOUT)
        except FetchError as error:
            self._miss(sought, FREE if error.failure.cause is Cause.REFUSED else error.failure)
            return None
        self.absent.pop(sought, None)
        log.info("engine found", extra={"address": address, "engine": engine.name})
        return Target(name=placed(address, os.environ), endpoint=endpoint, engine=engine.name)

    def _miss(self, what: Sought, failure: Failure) -> None:
        """Log once what was looked for and not found, and once more when the reason changes."""
        known, self.absent[what] = self.absent.get(what), failure
        if known is None or known.cause != failure.cause:
            log.info("not found", extra={"what": str(what), "cause": failure.cause, "reason": failure.message})

    def _gpu_source(self) -> GpuSource:
        config, explain = self.config, self._explain
        return GpuSource(config, self._watched, self._finder, explain=explain, events=not explain, reader=self._gpus)

    async def _watch_gpus(self, former: Slot | None) -> None:
        """Poll the GPUs; where NVML is optional and absent, look for it again and again instead."""
        source = self._gpu_source()
        try:
            while self.config.gpu.enabled is None:
                error = (await source.collect()).health.error
                if error is None:
                    break
                self._miss(SOUGHT_GPUS, error)
                await asyncio.sleep(LOOK_AGAIN)
        except BaseException:
            await source.close()
            raise
        self.absent.pop(SOUGHT_GPUS, None)
        self._start(Slot(GPU_TARGET, source, {}, self.config.detail, former), Pace())


def _leads_here(host: str) -> bool:
    """Whether a target of this host's is what would be found where engines are looked for, on the same port."""
    return host in _WHERE_DISCOVERED or (of_this_host(host) and not on_loopback(host))


def _made_of(config: Config) -> tuple[object, ...]:
    """What every source is made of; what else changes, none needs to be made again for."""
    engines = (config.engines, config.mappings)
    return (*engines, config.timeout, config.label_limit, config.objectives, config.host, config.detail)


def _of_same(target: Target, source: Source) -> EngineSource | None:
    """The source if it is one of the same engine at the same address: what was judged of another does not count."""
    if not isinstance(source, EngineSource) or source.target.endpoint.url != target.endpoint.url:
        return None
    return source if source.target.engine == target.engine else None


async def _cancelled(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait for their ends."""
    tasks = tuple(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
