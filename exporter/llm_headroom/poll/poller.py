"""The loop that polls every source in the background, and the only place where readings are kept.

Sources are polled by a clock of our own, not by the scrapes of Prometheus: derived signals need an even window, spikes
between scrapes must be seen, and every output must show the same reading. A hung engine cannot hang `/metrics`, which
renders what was read last and says how old it is.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Final, Protocol, TypeVar
from urllib.parse import urlsplit

from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.load import Target
from llm_headroom.derive import economy, slo
from llm_headroom.host.engines import ROUTERS, Finder, Watched
from llm_headroom.model import Cause, Failure, Health, Point, Snapshot
from llm_headroom.poll.collection_series import HealthSeries
from llm_headroom.poll.local import GPU_TARGET, GpuSource, HostWatch, runs_here
from llm_headroom.scrape import catalog
from llm_headroom.scrape.collect import Collector
from llm_headroom.scrape.http import FetchError
from llm_headroom.scrape.identify import identify

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence

    from llm_headroom.config.load import Config
    from llm_headroom.engines.rules import Engine
    from llm_headroom.poll.local import GpuReader
    from llm_headroom.proxy.measures import Measures
    from llm_headroom.proxy.service import Proxies
    from llm_headroom.scrape.layers import Layer

log = logging.getLogger("llm_headroom")

T = TypeVar("T")

ESTIMATE_PAUSE: Final = 2.0
LOOK_AGAIN: Final = 30.0
"""Seconds between looks for engines (on this host's usual ports) and for NVML where there was none."""
LOOK_TIMEOUT: Final = 2.0
BURSTS: Final = 4
"""Times in an interval at which sources are polled. Many at a time cost half as much CPU as one by one (measured at 50
targets: caches stay warm), all at once would make the last ones late."""
HOST_SECONDS: Final = 15.0
HOST_POLLS: Final = 10
"""Host memory is read every `HOST_SECONDS`, or every so many polls where these are faster."""
LOCAL: Final = ("localhost", "127.0.0.1", "::1")


class Source(Protocol):
    """Something that is collected: an engine or this host's GPUs."""

    @property
    def capped(self) -> Mapping[str, int]:
        """Label values that were reported as `other`, by label."""
        ...

    @property
    def interval(self) -> float:
        """Seconds between collections."""
        ...

    @property
    def kept(self) -> Sequence[Point]:
        """What the source has counted itself and is told while it fails, too."""
        ...

    async def collect(self) -> Snapshot:
        """One collection; failures are told in its health, never raised."""
        ...

    async def estimate(self) -> None:
        """What takes too long for a collection, if it is time for it; the next collection has it."""
        ...

    async def close(self) -> None:
        """Let go of connections and libraries."""
        ...


class EngineSource:
    """A configured or discovered target. Finds out which engine it is, if nobody said so, and then collects it.

    `here` is what this host tells of the engine's process and memory, if it runs here, `measures` what a proxy in
    front of it has measured; `gpus` are the devices that it was seen to hold memory of. `explain`: warn of what a
    richer layer could not tell, for a report to people.
    """

    def __init__(
        self,
        target: Target,
        engines: Mapping[str, Engine],
        config: Config,
        measures: Measures | None = None,
        *,
        explain: bool = False,
    ) -> None:
        self._explain = explain
        self.target = target
        self.here: Sequence[Point] = ()
        self._measures = measures
        self._engines = engines
        self._config = config
        self.gpus: economy.Gpus | None = None
        self._ledger: economy.Ledger | None = None
        self._collector: Collector | None = None
        if target.engine is not None:
            self._collector = self._made(engines[target.engine])

    @property
    def engine(self) -> Engine | None:
        """The engine, as soon as it is known."""
        return None if self._collector is None else self._collector.engine

    @property
    def kept(self) -> Sequence[Point]:
        """What is told while the engine does not answer, too."""
        measured = () if self._collector is None else self._collector.measured()
        return (*self.here, *measured)

    @property
    def capped(self) -> Mapping[str, int]:
        """Label values that were reported as `other`, by label."""
        caps = [
            None if self._collector is None else self._collector.cap,
            self._measures.cap if self._measures is not None else None,
        ]
        counts = [Counter(cap.capped()) for cap in caps if cap is not None]
        return sum(counts, Counter())

    @property
    def interval(self) -> float:
        """Seconds between collections; never shorter than the engine bears."""
        wanted = self._config.interval if self.target.interval is None else self.target.interval
        return wanted if self.engine is None else max(wanted, self.engine.interval)

    def _made(self, engine: Engine) -> Collector:
        config = self._config
        return Collector(
            self.target,
            engine,
            timeout=config.timeout,
            label_limit=config.label_limit,
            objectives=slo.objectives(**asdict(config.objectives)),
            measured=None if self._measures is None else self._measures.points,
            layers=self._layers(engine),
        )

    def _layers(self, engine: Engine) -> Sequence[Layer]:
        """What tells of the target beside its own API, the richest first."""
        if engine.name != "ollama" or not self._config.host or not runs_here(self.target):
            return ()
        from llm_headroom.scrape.ollama_runners import RunnerLayer  # noqa: PLC0415 - only where Ollama runs on this host

        return (RunnerLayer(self.target, label_limit=self._config.label_limit, explain=self._explain),)

    async def collect(self) -> Snapshot:
        """One collection; failures are told in its health, never raised."""
        if self._collector is None:
            taken, started = time.time(), time.monotonic()
            timeout = self._config.timeout if self.target.timeout is None else self.target.timeout
            try:
                engine = await identify(self.target.endpoint, self._engines, timeout=timeout)
            except FetchError as failed:
                return _failed(self.target.name, "", taken, started, failed.failure)
            log.info("identified", extra={"target": self.target.name, "engine": engine.name})
            self._collector = self._made(engine)
        snapshot = await self._collector.collect()
        if not snapshot.health.up:
            return snapshot
        return replace(snapshot, points=(*snapshot.points, *self._economy(snapshot), *self.here))

    def _economy(self, snapshot: Snapshot) -> Iterator[Point]:
        """What its tokens cost, where its GPUs are known."""
        target, cost = self.target, self._config.cost
        gpus = self.gpus
        if target.gpu_count is not None:
            gpus = economy.Gpus(target.gpu_count, gpus.energy if gpus else {})
        if gpus is None:
            return iter(())
        gpu_hour = cost.gpu_hour if target.gpu_hour is None else target.gpu_hour
        price = None if gpu_hour is None else economy.Price(gpu_hour, cost.currency)
        self._ledger = economy.advance(self._ledger, snapshot.points, gpus, price, time.monotonic())
        labels = {**target.labels, "engine": snapshot.engine, "target": target.name}
        return economy.told(self._ledger, gpus, price, labels)

    async def estimate(self) -> None:
        """Estimate the load headroom."""
        if self._collector is not None:
            await self._collector.estimate()

    async def close(self) -> None:
        """Close the connection."""
        if self._collector is not None:
            await self._collector.close()


def _failed(  # noqa: PLR0913, PLR0917 - a snapshot's fields
    target: str, engine: str, taken: float, started: float, failure: Failure, last_success: float | None = None
) -> Snapshot:
    return Snapshot(
        target=target,
        engine=engine,
        taken=taken,
        health=Health(up=False, error=failure, duration_seconds=time.monotonic() - started, last_success=last_success),
    )


class Slot:
    """A source that is being polled, and what it said last."""

    def __init__(self, name: str, source: Source, extra: Mapping[str, str]) -> None:
        self.name = name
        self.source = source
        self._health = HealthSeries(extra)
        self.snapshot: Snapshot | None = None
        self.errors: Counter[Cause] = Counter()
        self.task: asyncio.Task[None] | None = None
        self._told: tuple[object, ...] = ()

    def publish(self, snapshot: Snapshot) -> None:
        """Make a snapshot the latest one, count its failures, and log what changed since the one before."""
        self.snapshot = snapshot
        health = snapshot.health
        if health.error is not None:
            self.errors[health.error.cause] += 1
        for part in health.warnings:
            self.errors[part.cause] += 1
        told = (health.up, health.error and health.error.cause, tuple(health.warnings), health.version)
        if told == self._told:
            return
        fields = {"target": snapshot.target, "engine": snapshot.engine or "unknown"}
        if health.error is not None:
            log.warning("source down", extra={**fields, "cause": health.error.cause, "error": health.error.message})
        elif not self._told or not self._told[0] or self._told[3] != health.version:
            log.info("source up", extra={**fields, "version": health.version, "points": len(snapshot.points)})
        known = self._told[2] if self._told else ()
        for warning in health.warnings:
            if not isinstance(known, tuple) or warning not in known:
                log.warning("source incomplete", extra={**fields, "cause": warning.cause, "error": warning.message})
        self._told = told

    def points(self) -> list[Point]:
        """Everything to export of this source: what it said, and how it goes."""
        if self.snapshot is None:
            return []
        kept = () if self.snapshot.health.up else self.source.kept
        return [*self.snapshot.points, *kept, *self._health.points(self.snapshot, self.errors, self.source.capped)]


class Poller:
    """Polls the sources of a configuration until it is stopped; holds the latest snapshot of each.

    `gpus` is what GPUs are read through instead of NVML, `proxies` are the proxies in front of targets.
    """

    def __init__(self, config: Config, *, gpus: GpuReader | None = None, proxies: Proxies | None = None) -> None:
        self.config = config
        self._proxies = proxies
        self._gpus = gpus
        self.engines = catalog.engines(config)
        self.slots: dict[str, Slot] = {}
        self._changed: Callable[[], None] = lambda: None
        self._tasks: set[asyncio.Task[None]] = set()
        self._absent: dict[str, Failure] = {}
        self._round = asyncio.Event()
        self._finder = Finder()

    def on_change(self, told: Callable[[], None]) -> None:
        """Have a function called after each publication, so that renderings can be thrown away."""
        self._changed = told

    def start(self) -> None:
        """Begin to poll; returns at once."""
        self._start_targets(self.config.targets)
        for source in self._proxies.sources if self._proxies else ():
            self._start(Slot(source.name, source, source.labels), 0.0)
        if self._discovers():
            self._spawn(self._discover())
        if self.config.gpu.enabled is not False:
            self._spawn(self._watch_gpus())
        if self.config.host:
            self._spawn(self._watch_host())
        self._spawn(self._estimate())
        if not self.config.targets:
            self._round.set()

    async def stop(self) -> None:
        """End all polling and close every source."""
        tasks = [*self._tasks, *(slot.task for slot in self.slots.values() if slot.task is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for slot in self.slots.values():
            await slot.source.close()
        self.slots.clear()

    async def apply(self, config: Config) -> None:
        """Take over a new configuration: sources that it does not change go on undisturbed."""
        old = self.config
        same = replace(old, targets=(), gpu=config.gpu, probe=config.probe, otlp=None) == replace(
            config, targets=(), gpu=config.gpu, probe=config.probe, otlp=None
        )
        if not same or old.gpu != config.gpu or self._discovers(old) != self._discovers(config):
            await self.stop()
            self._tasks.clear()
            self.config, self.engines = config, catalog.engines(config)
            self.start()
        else:
            self.config = config
            kept = {target.name: target for target in config.targets}
            for target in old.targets:
                if kept.get(target.name) != target:
                    await self._drop(target.name)
            self._start_targets(target for target in config.targets if target.name not in self.slots)
        self._changed()

    @property
    def ready(self) -> bool:
        """Whether every configured source has been collected once, successfully or not."""
        return self._round.is_set()

    async def first_round(self) -> None:
        """Wait until `ready`."""
        await self._round.wait()

    @property
    def absent(self) -> dict[str, str]:
        """What was looked for on this host and not found, and why."""
        return {what: failure.message for what, failure in self._absent.items()}

    def snapshots(self) -> list[Snapshot]:
        """The latest snapshot of each source."""
        return [slot.snapshot for slot in self.slots.values() if slot.snapshot is not None]

    def _watched(self) -> list[Watched]:
        """Engines with their latest collections, for what is read of them on this host."""
        sources = ((slot.source, slot.snapshot) for slot in self.slots.values())
        return [
            Watched(source.target, snapshot)
            for source, snapshot in sources
            if isinstance(source, EngineSource) and (source.engine is None or source.engine.name not in ROUTERS)
        ]

    async def _watch_host(self) -> None:
        """Read the processes and host memory of engines as long as any may run here.

        Less often than engines are polled: it costs about as much as a poll, and what it tells moves slowly.
        """
        host: HostWatch | None = None
        here: dict[Target, bool] = {}
        told: dict[str, Failure | None] = {}
        while True:
            settled = False
            sources = [slot.source for slot in self.slots.values() if isinstance(slot.source, EngineSource)]
            targets = [each.target for each in sources]
            here = {target: here[target] if target in here else runs_here(target) for target in targets}
            # Where GPUs are read, engines may run in containers of this host, with addresses of their own.
            if any(here.values()) or (sources and GPU_TARGET in self.slots):
                host = host or HostWatch(self._finder, timeout=self.config.timeout)
                watched = self._watched()
                settled = all(each.snapshot is not None for each in watched)
                readings = await host.read(watched)
                for source in sources:
                    name, reading = source.target.name, readings.get(source.target.name)
                    source.here = reading.points if reading else ()
                    hidden = reading.hidden if reading and here[source.target] else None
                    if hidden and told.get(name) != hidden:
                        log.info("not seen", extra={"target": name, "reason": hidden.message})
                    told[name] = hidden
            interval = self.config.interval
            await asyncio.sleep(max(interval, min(HOST_SECONDS, HOST_POLLS * interval)) if settled else interval)

    def _discovers(self, config: Config | None = None) -> bool:
        config = config or self.config
        return not config.targets if config.discover is None else config.discover

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _start_targets(self, targets: Iterable[Target]) -> None:
        targets = list(targets)
        for index, target in enumerate(targets):
            measures = self._proxies.joined.get(target.name) if self._proxies else None
            source = EngineSource(target, self.engines, self.config, measures)
            self._start(Slot(target.name, source, target.labels), index * BURSTS // len(targets) / BURSTS)

    def _start(self, slot: Slot, phase: float) -> None:
        self.slots[slot.name] = slot
        slot.task = asyncio.get_running_loop().create_task(self._poll(slot, phase), name=slot.name)

    async def _drop(self, name: str) -> None:
        slot = self.slots.pop(name, None)
        if slot is None:
            return
        if slot.task is not None:
            slot.task.cancel()
            await asyncio.gather(slot.task, return_exceptions=True)
        await slot.source.close()

    async def _poll(self, slot: Slot, phase: float) -> None:
        """Collect at an even pace, `phase` of an interval (from 0 to below 1) behind a beat that all sources share."""
        loop = asyncio.get_running_loop()
        await self._collect(slot)
        while True:
            step = slot.source.interval
            beats = math.floor(loop.time() / step - phase) + 1  # what was missed is skipped, not caught up in a burst
            await asyncio.sleep((beats + phase) * step - loop.time())
            await self._collect(slot)

    async def _collect(self, slot: Slot) -> None:
        taken, started = time.time(), time.monotonic()
        try:
            snapshot = await slot.source.collect()
        except Exception as error:
            log.exception("collection failed by a defect of llm-headroom", extra={"target": slot.name})
            failure = Failure(Cause.INTERNAL, f"{type(error).__name__} in llm-headroom; see its log")
            snapshot = _failed(slot.name, "", taken, started, failure)
        slot.publish(snapshot)
        if slot.name == GPU_TARGET:
            self._hand_out(economy.held_gpus(snapshot.points))
        if not self._round.is_set() and all(
            target.name in self.slots and self.slots[target.name].snapshot is not None for target in self.config.targets
        ):
            self._round.set()
        self._changed()

    async def _estimate(self) -> None:
        """Let one source after another estimate, so that never more than one core is busy with it."""
        while True:
            for slot in tuple(self.slots.values()):
                await slot.source.estimate()
            await asyncio.sleep(ESTIMATE_PAUSE)

    def _hand_out(self, held: Mapping[str, economy.Gpus]) -> None:
        """Tell each engine which devices it holds memory of."""
        for slot in self.slots.values():
            if isinstance(slot.source, EngineSource):
                slot.source.gpus = held.get(slot.name)

    async def _discover(self) -> None:
        """Look for engines on this host's usual ports, again and again; say what is found, and what is not and why."""
        while True:
            taken = {
                urlsplit(target.endpoint.url).port
                for target in self.config.targets
                if urlsplit(target.endpoint.url).hostname in LOCAL
            }
            ports = {engine.port for engine in self.engines.values() if engine.port} - taken
            missing = [port for port in sorted(ports) if f"127.0.0.1:{port}" not in self.slots]
            await asyncio.gather(*(self._look(port) for port in missing))
            await asyncio.sleep(LOOK_AGAIN)

    async def _look(self, port: int) -> None:
        address = f"127.0.0.1:{port}"
        titles = ", ".join(engine.title for engine in self.engines.values() if engine.port == port)
        endpoint = Endpoint(url=f"http://{address}")
        try:
            engine = await identify(endpoint, self.engines, timeout=LOOK_TIMEOUT)
        except FetchError as failed:
            self._tell_absent(f"{address} ({titles})", failed.failure)
            return
        self._absent.pop(f"{address} ({titles})", None)
        log.info("engine found", extra={"address": address, "engine": engine.name})
        target = Target(name=address, endpoint=endpoint, engine=engine.name)
        self._start_targets([target])

    def _tell_absent(self, what: str, failure: Failure) -> None:
        """Log once what was looked for and not found, and once more when the reason changes."""
        known = self._absent.get(what)
        self._absent[what] = failure
        if known is None or known.cause != failure.cause:
            log.info("not found", extra={"what": what, "cause": failure.cause, "reason": failure.message})

    async def _watch_gpus(self) -> None:
        """Poll the GPUs; where NVML is optional and absent, look for it again and again instead."""
        source = GpuSource(self.config, self._watched, self._finder, events=True, reader=self._gpus)
        try:
            while self.config.gpu.enabled is None:
                error = (await source.collect()).health.error
                if error is None:
                    break
                self._tell_absent("GPUs", error)
                await asyncio.sleep(LOOK_AGAIN)
        except asyncio.CancelledError:
            await source.close()
            raise
        self._absent.pop("GPUs", None)
        self._start(Slot(GPU_TARGET, source, {}), 0.0)
