"""llm-headroom inside another Python service: a collector for the prometheus-client registry that it has already.

See docs/embedding.md.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from prometheus_client.registry import Collector

from llm_headroom import schema
from llm_headroom.config.load import load
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.model import Subject
from llm_headroom.poll.poller import Poller
from llm_headroom.poll.published import BUILD
from llm_headroom.render import families

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from llm_headroom.config.settings import Config
    from llm_headroom.model import Point

_NOT_COLLECTED: Final = frozenset(
    metric for metric in schema.ALL if metric.subject in {Subject.EXPORTER, Subject.PROCESS}
) - {schema.BUILD_INFO}
"""What only `llm-headroom run` exposes; the process is in the service's own registry."""


class HeadroomCollector(Collector):
    """Polls engines, GPUs and host memory in a thread of its own; a registry collects what was read last.

    `targets` are written as for `llm-headroom run --target`: `"vllm=http://127.0.0.1:8000"`. `config` is a
    configuration file, of which listeners, proxies and OTLP are not used. Without any target, engines are looked for on
    this host's usual ports, unless `discover` is False. `interval` is a duration ("5s"); `gpu` None: if NVML is there.

    Nothing is polled or collected before `start` (which a pre-forking server calls in its workers) and after `close`.
    As a context manager it starts and closes by itself.

    Raises:
        ConfigError: a target, the interval or the file is wrong; the message names all problems.
    """

    def __init__(
        self,
        targets: Sequence[str] = (),
        *,
        config: str | PathLike[str] | None = None,
        interval: str | None = None,
        gpu: bool | None = None,
        discover: bool | None = None,
    ) -> None:
        self._config = load(
            None if config is None else Path(config),
            targets=targets,
            interval=interval,
            gpu=gpu,
            discover=discover,
            engine_names=tuple(BUILT_IN),
        )
        self._lock = threading.Lock()
        self._polling: _Polling | None = None

    def start(self) -> Self:
        """Start polling, unless this process polls already."""
        with self._lock:
            if self._polling is None or not self._polling.alive:
                self._polling = _Polling(self._config)
        return self

    def close(self) -> None:
        """Stop polling and close every connection; `start` starts it again."""
        with self._lock:
            polling, self._polling = self._polling, None
            if polling is not None:
                polling.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def ready(self, timeout: float) -> bool:
        """Whether every configured target has been polled once, successfully or not; waits for it for some seconds."""
        polling = self._polling
        return polling is not None and polling.ready(timeout)

    def describe(self) -> list[families.Family]:
        """Every family that may be collected, without samples: by them a registry finds clashes of names."""
        return [families.empty(metric) for metric in schema.ALL if metric not in _NOT_COLLECTED]

    def collect(self) -> list[families.Family]:
        """What was read last of each source, and how its collection went."""
        with self._lock:
            return families.families(self._polling.points() if self._polling is not None else ())


class _Polling:
    """A poller in a thread with an event loop, spoken to from other threads."""

    def __init__(self, config: Config) -> None:
        self._poller = Poller(config)
        self._ended = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="llm-headroom", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs: it does not after a fork, which takes along the calling thread alone."""
        return self._thread.is_alive()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._poll())

    async def _poll(self) -> None:
        self._poller.start()
        await self._ended.wait()
        await self._poller.stop()

    def ready(self, timeout: float) -> bool:
        """Whether the first round is over; waits for it for at most so many seconds."""
        if not self.alive:
            return False
        waiting = asyncio.run_coroutine_threadsafe(self._poller.first_round(), self._loop)
        try:
            waiting.result(timeout)
        except TimeoutError:
            waiting.cancel()
            return False
        return True

    def points(self) -> Sequence[Point]:
        """Everything to expose now, gathered in the poller's own thread, between two publications."""
        return asyncio.run_coroutine_threadsafe(self._points(), self._loop).result() if self.alive else ()

    async def _points(self) -> Sequence[Point]:
        return [BUILD, *(point for slot in self._poller.slots.values() for point in slot.points())]

    def close(self) -> None:
        """End the poller, its loop and its thread."""
        if self.alive:
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join()
