"""Measuring proxies at work: where they listen, the engine behind each, and what they have measured as points."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from llm_headroom import clock, schema
from llm_headroom.config.endpoint import parse_target
from llm_headroom.derive import slo
from llm_headroom.derive.memory import Memory, advance, with_estimate
from llm_headroom.model import Health, Snapshot
from llm_headroom.net.accept import Accepting
from llm_headroom.net.addresses import literal, of_this_host, on_loopback, own_name
from llm_headroom.net.dial import dialled
from llm_headroom.net.listen import bind, bound_address
from llm_headroom.net.made_of import MadeOf
from llm_headroom.net.tls import client_context, client_files
from llm_headroom.proxy.circle import LEADS_BACK, MOST_WAITING, Circle
from llm_headroom.proxy.gate import Gate
from llm_headroom.proxy.measures import AVAILABILITY, Measures
from llm_headroom.proxy.relay import Client
from llm_headroom.scrape import catalog
from llm_headroom.scrape.load_estimates import LoadEstimates

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from llm_headroom.config.endpoint import Endpoint
    from llm_headroom.config.settings import Config, ProxySettings, Target
    from llm_headroom.model import Point
    from llm_headroom.proxy.framing import RequestHead

log = logging.getLogger("llm_headroom")

_EVERY: Final = frozenset({literal("0.0.0.0"), literal("::")})


class _Address:
    """The engine behind a proxy; see `relay.Upstream`."""

    def __init__(
        self, endpoint: Endpoint, names: Collection[str], circle: Circle, listeners: Sequence[socket.socket] = ()
    ) -> None:
        self.circle = circle
        self._listeners = listeners
        self._origin, self._host, _ = parse_target(endpoint.url)
        self.authority = self._origin.authority
        self._literal = literal(self._host) is not None
        self._local = on_loopback(self._host)
        self._names = {"localhost", *names}
        self._secured: MadeOf[ssl.SSLContext] | None = None
        if self._origin.scheme == "https":
            self._secured = MadeOf(client_files(endpoint.tls), client_context, endpoint.tls)
            self._server_name = endpoint.tls.server_name or self._origin.host

    def addressed(self, head: RequestHead) -> bytes:
        """The head with the engine's own Host.

        Where the engine listens on loopback, a name that is not this host's stays as it is: by its Host such an engine
        distinguishes its own clients from a page in a browser (DNS rebinding), and must still be able to.
        """
        if self._local and not self._is_here(head.headers.get("host", "")):
            return head.raw
        return head.to(self.authority)

    def _is_here(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        return name.lower().rstrip(".") in self._names or literal(name.strip("[]")) is not None

    def connect(self, made: Callable[[], asyncio.BaseProtocol]) -> Awaitable[object]:
        if self._literal and self._secured is None:
            self._refuse_own(self._host, self._origin.port)
            return asyncio.get_running_loop().create_connection(made, self._host, self._origin.port)
        return self._connected(made)

    async def _connected(self, made: Callable[[], asyncio.BaseProtocol]) -> None:
        secured: dict[str, Any] = {}
        if self._secured is not None:
            secured["ssl"] = await self._secured.now()
            secured["server_hostname"] = self._server_name
        connected = await dialled(self._host, self._origin.port)
        try:
            self._refuse_own(*connected.getpeername()[:2])
        except OSError:
            connected.close()
            raise
        await asyncio.get_running_loop().create_connection(made, sock=connected, **secured)

    def _refuse_own(self, host: str, port: int) -> None:
        """Refuse where a proxy of this process listens: each request would be many, until no descriptor is left.

        Raises:
            OSError: so it is.
        """
        there = literal(host)
        for listener in self._listeners:
            own, listening = listener.getsockname()[:2]
            if listening == port and (literal(own) == there or (literal(own) in _EVERY and of_this_host(host))):
                raise OSError(errno.ELOOP, LEADS_BACK)


class ProxySource:
    """What a proxy measures of an engine that has metrics of its own: a source beside it, see `poll.Source`."""

    def __init__(self, target: Target, measures: Measures, config: Config) -> None:
        self.retained: Sequence[Point] = ()
        self.polled: Callable[[], Sequence[Point]] = tuple
        """What the engine exposes itself, as its latest poll has shown."""
        self.engine_target = target.name
        self.name = schema.proxied(target.name)
        self.labels = target.labels
        self._engine = target.engine or ""
        self._base = {**target.labels, "engine": self._engine, "target": self.name}
        self.measures = measures
        self._memory = Memory()
        self._set(target, config)

    def _set(self, target: Target, config: Config) -> None:
        self.interval = config.interval
        self._objectives = slo.judging(target, config.objectives)
        self._estimates = LoadEstimates(self.name, self._objectives)

    async def apply(self, target: Target, config: Config) -> None:
        """Go on by another configuration: what has passed until now is counted by the one before."""
        await self.collect()
        self._set(target, config)

    @property
    def capped(self) -> Mapping[str, int]:
        """Label values that were reported as `other`, by label."""
        return self.measures.cap.capped()

    async def collect(self) -> Snapshot:
        """What was measured until now; it cannot fail."""
        taken, started = clock.now(), time.monotonic()
        points = list(self.measures.points(self._base, self.polled()))
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
        estimates = self._estimates
        for model, estimate in await estimates.made(self._memory):
            if estimates is not self._estimates:
                return  # it is by objectives of before
            self._memory = with_estimate(self._memory, model, estimate)

    async def close(self) -> None:
        """There is nothing to let go of."""


def _judging(target: Target, config: Config) -> tuple[slo.Objective, ...]:
    """What requests are judged by: latencies, and that they are answered, however late."""
    ratio = target.objectives.ratio or config.objectives.ratio
    available = slo.Objective(AVAILABILITY, AVAILABILITY, math.inf, ratio)
    return (*slo.judging(target, config.objectives), available)


def _fixed(proxy: ProxySettings, target: Target) -> tuple[object, ...]:
    """What a proxy has of its target for good: where it forwards, how it understands, what its series are called."""
    return proxy.upstream or target.endpoint.url, target.endpoint.tls, target.engine, target.labels


class Proxies:
    """The proxies of a configuration. `joined` and `sources` are what they measure, by the name of the target."""

    def __init__(self, config: Config, *, connections: int = 1024, clock: Callable[[], float] = time.monotonic) -> None:
        """`connections` of clients at once, over all proxies; `clock` gives seconds of the event loop's clock."""
        targets = {target.name: target for target in config.targets}
        engines = catalog.engines(config)
        self.joined: dict[str, Measures] = {}
        self.sources: list[ProxySource] = []
        self.addresses: tuple[str, ...] = ()
        self._gate = Gate(connections)
        self._marking = min(MOST_WAITING, connections // 2)
        self._listeners: list[socket.socket] = []
        self._accepting: list[Accepting] = []
        self._beginning: dict[Client, asyncio.Task[None]] = {}
        self._doors = [(proxy, targets[proxy.target]) for proxy in config.proxies]
        self._measures: dict[str, Measures] = {}
        for _, target in self._doors:
            if target.name in self._measures:
                continue
            engine = engines[target.engine or ""]
            measures = self._measures[target.name] = Measures(
                limit=config.label_limit,
                running_limit=target.requests_running_limit,
                untagged=engine.default_tag,
                loads=engine.loads_on_demand,
                silent_loads=engine.hides_loads,
                objectives=_judging(target, config),
                clock=clock,
            )
            if engine.proxy_flag:
                self.joined[target.name] = measures
            else:
                self.sources.append(ProxySource(target, measures, config))

    async def apply(self, config: Config) -> bool:
        """Take over the objectives and limits of another configuration; whether nothing else concerns its proxies."""
        targets = {target.name: target for target in config.targets}
        for source in self.sources:
            if source.engine_target in targets:
                await source.apply(targets[source.engine_target], config)
        for name in self._measures.keys() & targets.keys():
            measures, target = self._measures[name], targets[name]
            measures.running_limit = target.requests_running_limit
            measures.cap.limit = config.label_limit
            measures.judge_by(_judging(target, config))
        return all(
            target.name in targets and _fixed(proxy, target) == _fixed(proxy, targets[target.name])
            for proxy, target in self._doors
        )

    def know_engines_by(
        self, listed: Callable[[str], Collection[str] | None], polled: Callable[[str], Sequence[Point]]
    ) -> None:
        """Give the label `model` only to what an engine lists, by the target's name; None where nobody knows.

        Ollama has no need of it: it answers to the models alone that it has. `polled` is what the latest poll of a
        target has shown.
        """

        def serves(target: str) -> Callable[[str], bool]:
            return lambda model: (names := listed(target)) is None or model in names

        for name, measures in self._measures.items():
            if name not in self.joined:
                measures.serves = serves(name)
        for source in self.sources:
            source.polled = partial(polled, source.engine_target)

    async def start(self) -> None:
        """Listen; without a host in its address a proxy does so on this host's loopback alone.

        Raises:
            net.listen.ListenError: an address cannot be listened on; none stays bound.
        """
        async with contextlib.AsyncExitStack() as on_failure:
            on_failure.push_async_callback(self.close)
            for proxy, target in self._doors:
                there = target.endpoint if proxy.upstream is None else replace(target.endpoint, url=proxy.upstream)
                host, _, port = proxy.listen.rpartition(":")
                names = {host.lower(), *map(str.lower, proxy.hosts), *_names_here()}
                upstream = _Address(there, names, Circle(self._marking), self._listeners)
                for listener in await bind(f"{host or 'localhost'}:{port}"):
                    self._listeners.append(listener)
                    take = partial(self._accept, upstream, self._measures[target.name])
                    self._accepting.append(Accepting(listener, take))
                    log.info("proxying", extra={"address": bound_address(listener), "target": target.name})
            on_failure.pop_all()
        self.addresses = tuple(map(bound_address, self._listeners))

    def _accept(self, upstream: _Address, measures: Measures, connection: socket.socket) -> None:
        if not self._gate.admits():
            for each in self._measures.values():
                each.backlog.look()  # an answer that has ended makes its client idle
            if not self._gate.admits():
                connection.close()
                return
        client = Client(upstream, measures, self._gate)
        self._gate.enter(client)
        self._beginning[client] = asyncio.get_running_loop().create_task(self._begin(client, connection))

    async def _begin(self, client: Client, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: client, connection)
        except OSError:
            self._gate.gone(client)
        finally:
            del self._beginning[client]

    async def close(self) -> None:
        """Stop listening, and cut requests in progress: an engine's response may never end."""
        for accepting in self._accepting:
            accepting.close()
        for listener in self._listeners:
            listener.close()
        self._accepting.clear()
        self._listeners.clear()
        if self._beginning:
            await asyncio.wait(self._beginning.values())
        self._gate.close()


def _names_here() -> set[str]:
    """This host's name, with its domain and without."""
    name = own_name()
    return {name, name.partition(".")[0]}
