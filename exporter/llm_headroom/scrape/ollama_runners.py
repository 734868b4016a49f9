"""Ollama's runners as a layer beside its API: each one's own endpoints, joined to models by their files.

Runners come and go at any time; one that ends, hangs or refuses costs only its own metrics.
"""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llm_headroom import schema
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Target
from llm_headroom.derive.lives import accumulated
from llm_headroom.engines.answers import NotUnderstood, decode
from llm_headroom.engines.built_in import llamacpp, ollama
from llm_headroom.host import runners
from llm_headroom.host.proc import Proc
from llm_headroom.model import Cause, Failure, point
from llm_headroom.net.threads import NoThreadError, in_thread
from llm_headroom.scrape.collect import Collector
from llm_headroom.scrape.http import Client, FetchError
from llm_headroom.scrape.layers import Reported

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llm_headroom.derive.lives import Total
    from llm_headroom.host.runners import Runner
    from llm_headroom.model import Point, Series

SHARE: Final = 0.5
"""Of the time that is left of a poll, the part that runners may take."""
RUNNER_SECONDS: Final = 2.0
"""The longest that one runner may take; under full load they answer within 0.12 s (captured)."""
ASK_TIMEOUT: Final = 1.0
MOST_ASKED: Final = 8
"""Unknown ports that are asked at one poll whether a runner listens there."""


class _Look(NamedTuple):
    found: tuple[Runner, ...]
    reason: str = ""


class RunnerLayer:
    """Metrics of the runners of one Ollama server. Retains a connection for each, and the counters of ended ones.

    `explain`: warn about models without a runner, in a report to people.
    """

    def __init__(self, target: Target, *, label_limit: int, proc: Proc | None = None, explain: bool = False) -> None:
        self._target = target
        self._limit = label_limit
        self._proc = proc or Proc()
        self._explain = explain
        self._port = target.endpoint.port
        self._readers: dict[tuple[str, str], Collector] = {}
        self._totals: dict[Series, Total] = {}
        self._asked: dict[int, Runner | None] = {}

    async def read(self, documents: Mapping[str, Any], deadline: float) -> Reported:
        """One reading of every runner that is seen; see `layers.Layer`."""
        names = ollama.paths(documents)
        until = time.monotonic() + SHARE * (deadline - time.monotonic())
        look = await self._look(names, until)
        mine = {runner.model: runner for runner in look.found if runner.model in names}
        await self._forget(mine.values(), names)
        asked = [(names[path], runner) for path, runner in mine.items() if not runner.bare]
        answers = await asyncio.gather(*(self._one(name, runner, until) for name, runner in asked))
        found, failures = [], []
        for (name, runner), answer in zip(asked, answers, strict=True):
            if isinstance(answer, Failure):
                failures.append(Failure(answer.cause, f"runner of {name}: {answer.message}"))
            else:
                found.append((runner.life, answer))
        self._totals, points = accumulated(self._totals, found)
        points += self._starts(names, mine.values())
        warnings = [*failures, *self._unseen(names, mine, look)]
        return Reported(points, warnings if self._explain else failures, {"runners": mine})

    async def close(self) -> None:
        """Close every connection."""
        for reader in self._readers.values():
            await reader.close()
        self._readers.clear()

    async def _look(self, names: Mapping[str, str], until: float) -> _Look:
        if not names:
            return _Look(())
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + until - time.monotonic()):
                seen = await in_thread(lambda: runners.find(self._proc, self._port), "runners")
                if seen.runners:
                    return _Look(seen.runners)
                if seen.apart:
                    return _Look((), "they run in a network of their own: share it, as a sidecar does")
                if self._proc.initial_namespace:
                    return _Look((), "no process of one is visible here")
                return await self._listening(until)
        except TimeoutError:
            return _Look((), "/proc or a port did not answer in time")
        except NoThreadError as error:
            return _Look((), error.strerror)

    async def _listening(self, until: float) -> _Look:
        """Runners by what listens on loopback, where processes are hidden but the network is shared."""
        ports = await in_thread(lambda: runners.candidates(self._proc, self._port), "runners")
        self._asked = {inode: known for inode, known in self._asked.items() if inode in ports.values()}
        fresh = [(port, inode) for port, inode in ports.items() if inode not in self._asked][:MOST_ASKED]
        answers = await asyncio.gather(*(_identified(port, inode, until) for port, inode in fresh))
        self._asked.update(zip((inode for _, inode in fresh), answers, strict=True))
        found = tuple(known for known in self._asked.values() if known is not None)
        return _Look(found, "" if found else "neither processes nor ports of one are visible here: share the network")

    async def _forget(self, mine: Iterable[Runner], names: Mapping[str, str]) -> None:
        current = {(names[runner.model], runner.life) for runner in mine}
        for key in self._readers.keys() - current:
            await self._readers.pop(key).close()

    async def _one(self, name: str, runner: Runner, until: float) -> list[Point] | Failure:
        reader = self._readers.get((name, runner.life))
        if reader is None:
            url = f"http://127.0.0.1:{runner.port}"
            there = Target(name=self._target.name, endpoint=Endpoint(url=url), labels=self._target.labels)
            reader = Collector(there, llamacpp.runner(name), timeout=RUNNER_SECONDS, label_limit=self._limit)
            self._readers[name, runner.life] = reader
        try:
            return (await reader.read(min(until, time.monotonic() + RUNNER_SECONDS))).points
        except FetchError as failed:
            return failed.failure

    def _starts(self, names: Mapping[str, str], mine: Iterable[Runner]) -> list[Point]:
        base = {**self._target.labels, "engine": "ollama", "target": self._target.name}
        return [
            point(schema.ENGINE_START, runner.started, "the runner's process", base, model=names[runner.model])
            for runner in mine
            if runner.started is not None
        ]

    def _unseen(self, names: Mapping[str, str], mine: Mapping[str, Runner], look: _Look) -> list[Failure]:
        missing = [name for path, name in names.items() if path not in mine]
        bare = [names[path] for path, runner in mine.items() if runner.bare]
        found = []
        if missing:
            reason = look.reason or "it has ended although Ollama lists the model, or it is no llama-server"
            found.append(Failure(Cause.UNREACHABLE, f"no runner found for {', '.join(missing)}: {reason}"))
        if bare:
            found.append(
                Failure(Cause.UNREACHABLE, f"runner of {', '.join(bare)} has no metrics: Ollama is older than 0.30")
            )
        return found


async def _identified(port: int, inode: int, until: float) -> Runner | None:
    """The runner that listens there; None if it is something else."""
    client = Client(Endpoint(url=f"http://127.0.0.1:{port}", max_bytes=1 << 20))
    try:
        timeout = min(ASK_TIMEOUT, until - time.monotonic())
        response = await client.get(llamacpp.PROPERTIES.path, timeout=timeout, accept="application/json")
        if response.status != HTTPStatus.OK:
            return None
        known: llamacpp.Properties = decode(llamacpp.PROPERTIES, response.body)
    except (FetchError, NotUnderstood):
        return None
    finally:
        await client.close()
    return runners.Runner(known.path, port, str(inode), parallel=known.slots) if known.path else None
