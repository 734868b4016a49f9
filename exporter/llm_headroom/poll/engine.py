"""An engine as a source: identified if nobody said what it is, collected, and joined with what else is known of it."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from llm_headroom import clock, schema
from llm_headroom.derive import economy, slo
from llm_headroom.derive.memory import Memory
from llm_headroom.engines.rules import Beside
from llm_headroom.host.engines import runs_here
from llm_headroom.net.addresses import on_loopback
from llm_headroom.poll.source import failed
from llm_headroom.scrape.collect import Collector
from llm_headroom.scrape.http import FetchError
from llm_headroom.scrape.identify import identify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from llm_headroom.config.settings import Config, Target
    from llm_headroom.engines.rules import Engine
    from llm_headroom.model import Point, Snapshot
    from llm_headroom.poll.source import Measured
    from llm_headroom.scrape.layers import Layer

log = logging.getLogger("llm_headroom")


class EngineSource:
    """A configured or discovered target. Finds out which engine it is, if nobody said so, and then collects it.

    `here` has what this host knows of the engine's process and memory, if it runs here, `measured` what a proxy in
    front of it has measured where it has no metrics of its own, `proxied` where it has; `gpus` are the devices that it
    was seen to hold memory of. `explain`: warn of what a richer layer lacks, in a report to people. `kin` gives what is
    remembered of all targets. `identified` names the engine that was found here before.
    `config` may be replaced while polled: its interval and cost count from then on, the rest needs another source.
    """

    def __init__(  # noqa: PLR0913 - what it is made of
        self,
        target: Target,
        engines: Mapping[str, Engine],
        config: Config,
        measured: Measured | None = None,
        *,
        explain: bool = False,
        kin: Callable[[], Iterable[Memory]] = tuple,
        proxied: Callable[[], Sequence[Point]] = tuple,
        identified: str | None = None,
    ) -> None:
        self._explain = explain
        self._kin = kin
        self._proxied = proxied
        self.target = target
        self.here: Sequence[Point] = ()
        self._measured = measured
        self._engines = engines
        self.config = config
        self.gpus: economy.Gpus | None = None
        self._ledger: economy.Ledger | None = None
        self._collector: Collector | None = None
        self._role: tuple[Point, ...] = ()
        name = target.engine or identified
        if name is not None:
            self._collector = self._made(engines[name])

    @property
    def engine(self) -> Engine | None:
        """The engine, as soon as it is known."""
        return None if self._collector is None else self._collector.engine

    @property
    def models(self) -> frozenset[str]:
        """The names of its models, as far as it has given them."""
        return frozenset() if self._collector is None else self._collector.models

    @property
    def memory(self) -> Memory:
        """What is remembered of it."""
        return Memory() if self._collector is None else self._collector.memory

    @property
    def retained(self) -> Sequence[Point]:
        """Points exported also while the engine does not respond."""
        measured = () if self._collector is None else self._collector.measured()
        return (*self.here, *measured, *self._role)

    @property
    def capped(self) -> Mapping[str, int]:
        """Label values that were reported as `other`, by label."""
        caps = [
            None if self._collector is None else self._collector.cap,
            self._measured.cap if self._measured is not None else None,
        ]
        counts: dict[str, int] = {}
        for label, count in (each for cap in caps if cap is not None for each in cap.capped().items()):
            counts[label] = counts.get(label, 0) + count
        return counts

    @property
    def interval(self) -> float:
        """Seconds between collections; never shorter than the engine bears."""
        wanted = self.config.interval if self.target.interval is None else self.target.interval
        return wanted if self.engine is None else max(wanted, self.engine.interval)

    def _made(self, engine: Engine) -> Collector:
        config = self.config
        return Collector(
            self.target,
            engine,
            timeout=config.timeout,
            label_limit=config.label_limit,
            objectives=slo.judging(self.target, config.objectives),
            measured=None if self._measured is None else self._measured.points,
            layers=self._layers(engine),
            kin=self._kin,
            proxied=self._proxied if self._direct() else tuple,
        )

    def _direct(self) -> bool:
        """Whether a proxy forwards to the very engine that is polled: on loopback, where nobody balances in between."""
        url, name = self.target.endpoint.url, self.target.name
        upstreams = [each.upstream or url for each in self.config.proxies if each.target == name]
        return upstreams == [url] and on_loopback(urlsplit(url).hostname or "")

    def _layers(self, engine: Engine) -> Sequence[Layer]:
        """Sources of the target beside its own API, the richest first."""
        if not self.config.host or not runs_here(self.target):
            return ()
        match engine.beside:
            case Beside.RUNNERS:
                from llm_headroom.scrape.ollama_runners import RunnerLayer  # noqa: PLC0415 - only where it runs here

                return (RunnerLayer(self.target, label_limit=self.config.label_limit, explain=self._explain),)
            case Beside.COMMAND_LINE:
                from llm_headroom.scrape.llama_server import ServerLayer  # noqa: PLC0415 - only where it runs here

                return (ServerLayer(self.target),)
            case None:
                return ()

    async def collect(self) -> Snapshot:
        """One collection; failures are in its health, never raised."""
        if self._collector is None:
            taken, started = clock.now(), time.monotonic()
            timeout = self.config.timeout if self.target.timeout is None else self.target.timeout
            try:
                engine = await identify(self.target.endpoint, self._engines, timeout=timeout)
            except FetchError as error:
                return failed(self.target.name, "", taken, started, error.failure)
            log.info("identified", extra={"target": self.target.name, "engine": engine.name})
            self._collector = self._made(engine)
        snapshot = await self._collector.collect()
        if not snapshot.health.up:
            return snapshot
        self._role = tuple(each for each in snapshot.points if each.series.metric is schema.ENGINE_ROLE)
        more = (*self._economy(snapshot), *self.here)
        return replace(snapshot, points=(*snapshot.points, *more)) if more else snapshot

    def _economy(self, snapshot: Snapshot) -> Iterator[Point]:
        """What its tokens cost, where its GPUs are known."""
        target, cost = self.target, self.config.cost
        gpus = self.gpus
        if target.gpu_count is not None:
            gpus = economy.Gpus(target.gpu_count, gpus.energy if gpus else {})
        if gpus is None:
            return iter(())
        gpu_hour = cost.gpu_hour if target.gpu_hour is None else target.gpu_hour
        price = None if gpu_hour is None else economy.Price(gpu_hour, cost.currency)
        self._ledger = economy.advance(self._ledger, snapshot.points, gpus, price, time.monotonic())
        labels = {**target.labels, "engine": snapshot.engine, "target": target.name}
        return economy.points(self._ledger, gpus, price, labels) if gpus.count else iter(())

    async def estimate(self) -> None:
        """Estimate the load headroom."""
        if self._collector is not None:
            await self._collector.estimate()

    async def close(self) -> None:
        """Close the connection."""
        if self._collector is not None:
            await self._collector.close()
