"""Measuring proxies at work: where they listen, the engine behind each, and what they have measured as points."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

from llm_headroom.config.endpoint import parse_target
from llm_headroom.derive import slo
from llm_headroom.derive.memory import Memory, advance, with_estimate
from llm_headroom.model import Health, Snapshot
from llm_headroom.net.listen import bind, bound_address
from llm_headroom.net.tls import client_context
from llm_headroom.proxy.measures import Measures
from llm_headroom.proxy.relay import Client
from llm_headroom.scrape.load_estimates import LoadEstimates

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llm_headroom.config.endpoint import Endpoint
    from llm_headroom.config.settings import Config, Target
    from llm_headroom.model import Point

log = logging.getLogger("llm_headroom")

JOINED: Final = frozenset({"ollama"})
"""Engines without metrics of their own: what is measured of their traffic stands among their other series. That of
others has a target of its own, since one series must not mix two rulers."""
SUFFIX: Final = "/proxy"
_HAPPY_EYEBALLS_SECONDS: Final = 0.25


class _Address:
    """The engine behind a proxy; see `relay.Upstream`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._origin, self._host, _ = parse_target(endpoint.url)
        self.authority = self._origin.authority
        self._literal = self._host.replace(".", "").isdecimal() or ":" in self._host

    async def connect(self, made: Callable[[], asyncio.Protocol]) -> asyncio.Transport:
        options: dict[str, Any] = {}
        if not self._literal:
            options["happy_eyeballs_delay"] = _HAPPY_EYEBALLS_SECONDS
        if self._origin.scheme == "https":
            options["ssl"] = client_context(self._endpoint.tls)
            options["server_hostname"] = self._endpoint.tls.server_name or self._origin.host
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(made, self._host, self._origin.port, **options)
        return transport


class ProxySource:
    """What a proxy measures of an engine that has metrics of its own: a source beside it, see `poll.Source`."""

    def __init__(self, target: Target, measures: Measures, config: Config) -> None:
        self.kept: Sequence[Point] = ()
        self.interval = config.interval
        self.name = f"{target.name}{SUFFIX}"
        self.labels = target.labels
        self._engine = target.engine or ""
        self._base = {**target.labels, "engine": self._engine, "target": self.name}
        self._measures = measures
        self._memory = Memory()
        self._objectives = slo.objectives(**asdict(config.objectives))
        self._estimates = LoadEstimates(self.name, self._objectives)

    @property
    def capped(self) -> Mapping[str, int]:
        """Label values that were reported as `other`, by label."""
        return self._measures.cap.capped()

    async def collect(self) -> Snapshot:
        """What was measured until now; it cannot fail."""
        taken, started = time.time(), time.monotonic()
        points = list(self._measures.points(self._base))
        self._memory, derived = advance(self._memory, points, started, base=self._base, objectives=self._objectives)
        return Snapshot(
            target=self.name,
            engine=self._engine,
            taken=taken,
            points=(*points, *derived),
            health=Health(up=True, duration_seconds=time.monotonic() - started, last_success=taken),
        )

    async def estimate(self) -> None:
        """Estimate the load headroom from what the proxy has measured."""
        for model, estimate in await self._estimates.made(self._memory):
            self._memory = with_estimate(self._memory, model, estimate)

    async def close(self) -> None:
        """There is nothing to let go of."""


class Proxies:
    """The proxies of a configuration. `joined` and `sources` are what they measure, by the name of the target."""

    def __init__(self, config: Config) -> None:
        targets = {target.name: target for target in config.targets}
        self.joined: dict[str, Measures] = {}
        self.sources: list[ProxySource] = []
        self.addresses: tuple[str, ...] = ()
        self._clients: set[Client] = set()
        self._servers: list[asyncio.Server] = []
        self._doors = [(proxy, targets[proxy.target]) for proxy in config.proxies]
        self._measures: dict[str, Measures] = {}
        for _, target in self._doors:
            if target.name in self._measures:
                continue
            measures = self._measures[target.name] = Measures(
                limit=config.label_limit,
                running_limit=target.requests_running_limit,
                untagged="latest" if target.engine == "ollama" else "",
            )
            if target.engine in JOINED:
                self.joined[target.name] = measures
            else:
                self.sources.append(ProxySource(target, measures, config))

    async def start(self) -> None:
        """Listen.

        Raises:
            web.listen.ListenError: an address cannot be listened on; none stays bound.
        """
        loop = asyncio.get_running_loop()
        addresses = []
        async with contextlib.AsyncExitStack() as on_failure:
            on_failure.push_async_callback(self.close)
            for proxy, target in self._doors:
                there = target.endpoint if proxy.upstream is None else replace(target.endpoint, url=proxy.upstream)
                upstream, measures = _Address(there), self._measures[target.name]
                for listener in await bind(proxy.listen):
                    addresses.append(bound_address(listener))
                    self._servers.append(await loop.create_server(self._maker(upstream, measures), sock=listener))
                    log.info("proxying", extra={"address": addresses[-1], "target": target.name})
            on_failure.pop_all()
        self.addresses = tuple(addresses)

    def _maker(self, upstream: _Address, measures: Measures) -> Callable[[], Client]:
        return lambda: Client(upstream, measures, self._clients)

    async def close(self) -> None:
        """Listen no more, and cut what is under way: an engine's answer may take for ever."""
        for server in self._servers:
            server.close()
        for client in list(self._clients):
            client.close()
        self._servers.clear()
