"""`/probe`: a target that the request names, collected once (the multi-target exporter pattern of Prometheus).

Whoever can ask may choose the target, so that a target is judged by the address that is then connected to, and
credentials go there alone.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from llm_headroom.config.endpoint import parse_target as parse_url
from llm_headroom.config.errors import ConfigError
from llm_headroom.config.reach import literal, reach
from llm_headroom.config.settings import Module, parse_target
from llm_headroom.net.http_messages import plain
from llm_headroom.poll.engine import EngineSource
from llm_headroom.poll.essential import essential
from llm_headroom.poll.health import health_points, labels_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llm_headroom.config.settings import Target
    from llm_headroom.model import Point, Snapshot
    from llm_headroom.net.addresses import Address
    from llm_headroom.net.http_messages import Request, Response
    from llm_headroom.poll.poller import Poller

MOST_PROBED: Final = 256
"""Targets of `/probe` whose connections and plans are retained."""
MOST_AT_ONCE: Final = 40
"""Targets that are collected at the same time; others wait for their turn."""
TIMEOUT_MARGIN: Final = 0.5
"""Seconds that are left to Prometheus of the timeout that it announces."""
SLACK: Final = 1.0
"""Seconds beyond the target's own timeout for which a probe waits where no timeout is announced."""
LONGEST: Final = 120.0
"""Seconds for which a probe waits, whatever is announced."""


class _RefusedError(Exception):
    """The target is not probed; the message says why."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Probes:
    """Collects targets on demand, and retains their connections."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._sources: OrderedDict[Target, EngineSource] = OrderedDict()
        self._collecting: dict[EngineSource, asyncio.Task[Snapshot]] = {}
        self._turns = asyncio.Semaphore(MOST_AT_ONCE)
        self._making = asyncio.Lock()

    async def points(self, request: Request) -> list[Point] | Response:
        """What was collected of the target that a request names, or the answer that says why nothing was."""
        try:
            target = self._named(request)
            limit = _scrape_timeout(request.headers)
            if limit is None:
                limit = SLACK + (self._poller.config.timeout if target.timeout is None else target.timeout)
            async with asyncio.timeout(limit):
                judged = await self._judged(target)
                async with self._making:
                    source = self._source(judged)
                    await asyncio.sleep(0)  # making one takes 10 ms: others have their turn before the next one
                snapshot = await self._collected(source)
        except TimeoutError:
            return plain(504, f"{target.name} has not answered within {limit:g} s.")
        except _RefusedError as refused:
            return plain(refused.status, str(refused))
        errors = Counter([] if snapshot.health.error is None else [snapshot.health.error.cause])
        points = [*snapshot.points, *health_points(snapshot, errors, source.capped, labels_of(snapshot, {}))]
        return list(essential(points)) if self._poller.config.detail == "essential" else points

    async def close(self) -> None:
        """Close the connections."""
        for task in self._collecting.values():
            task.cancel()
        for source in self._sources.values():
            await source.close()

    def _named(self, request: Request) -> Target:
        settings = self._poller.config.probe
        if not settings.allow:
            raise _RefusedError(403, "/probe is off: list what it may reach under probe.allow.")
        text, name = request.query.get("target", ""), request.query.get("module", "")
        if not text:
            raise _RefusedError(400, "Parameter target is missing: /probe?target=HOST:PORT[&module=NAME]")
        module = settings.modules.get(name)
        if name and module is None:
            raise _RefusedError(400, f"Unknown module {name!r}; known: {', '.join(settings.modules) or 'none'}.")
        try:
            target = _target(text, module)
        except ConfigError as error:
            raise _RefusedError(400, str(error)) from None
        if target.engine is not None and target.engine not in self._poller.engines:
            raise _RefusedError(400, f"Unknown engine {target.engine!r}.")
        return target

    async def _judged(self, target: Target) -> Target:
        """The target at the one address that it was found to be allowed at; its name is not looked up again."""
        origin, host, _ = parse_url(target.endpoint.url)
        rules = [rule for rule in map(reach, self._poller.config.probe.allow) if rule.port in (None, origin.port)]
        refused = _RefusedError(403, f"{origin.authority} is not among probe.allow.")
        if (address := literal(host)) is not None:
            addresses: Sequence[Address] = (address,)
            named = False
        else:
            named = any(rule.names(host) for rule in rules)
            if not named and not any(rule.network for rule in rules):
                raise refused
            addresses = await _addresses(host, origin.port)
        allowed = [each for each in addresses if named or any(rule.holds(each) for rule in rules)]
        if not allowed:
            raise refused
        # Of a name with both kinds the older one: engines listen on it more often.
        first = min(allowed, key=lambda each: each.version)
        return replace(target, endpoint=replace(target.endpoint, address=str(first)))

    def _source(self, target: Target) -> EngineSource:
        found = self._sources.get(target)
        if found is None:
            found = self._sources[target] = EngineSource(target, self._poller.engines, self._poller.config)
        self._sources.move_to_end(target)
        for old in list(self._sources)[: max(0, len(self._sources) - MOST_PROBED)]:
            if (source := self._sources[old]) not in self._collecting:
                del self._sources[old]
                task = asyncio.get_running_loop().create_task(source.close())
                task.add_done_callback(lambda _: None)
        return found

    async def _collected(self, source: EngineSource) -> Snapshot:
        """A collection from now on, or the one that is under way: two scrapers do not queue behind each other."""
        task = self._collecting.get(source)
        if task is None:
            task = self._collecting[source] = asyncio.get_running_loop().create_task(self._collect(source))
            task.add_done_callback(lambda _: self._collecting.pop(source))
        return await asyncio.shield(task)

    async def _collect(self, source: EngineSource) -> Snapshot:
        async with self._turns:
            return await source.collect()


def _target(text: str, module: Module | None) -> Target:
    target = parse_target(text)
    if module is None:
        return target
    endpoint = replace(
        target.endpoint,
        tls=module.tls,
        credentials=module.credentials,
        max_bytes=module.max_bytes,
        gzip=module.gzip,
    )
    return replace(target, endpoint=endpoint, engine=target.engine or module.engine, timeout=module.timeout)


async def _addresses(host: str, port: int) -> Sequence[Address]:
    """The addresses that a name has."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port)
    except (OSError, UnicodeError) as error:
        raise _RefusedError(502, f"{host} cannot be resolved: {error}") from None
    return [address for *_, where in found if (address := literal(str(where[0]))) is not None]


def _scrape_timeout(headers: Mapping[str, str]) -> float | None:
    """Seconds to answer in, of those that Prometheus announces; None if it announces none that make sense."""
    try:
        announced = float(headers["x-prometheus-scrape-timeout-seconds"])
    except (KeyError, ValueError):
        return None
    if not announced > 0.0:  # also one that is no number
        return None
    return min(LONGEST, max(announced - TIMEOUT_MARGIN, announced / 2))
