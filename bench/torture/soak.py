"""Six hours of operation in minutes: time runs faster for this process, and nothing of it may pile up.

Targets and their models come and go, engines restart and are away for a while, the configuration is reloaded, the
host's clock jumps, and people read every page. What is measured is the process that polls, with its engines.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import selectors
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from captures import Capture
from engine_server import EngineServer, Reply, replayed
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Config, GpuSettings, Target
from llm_headroom.net.http_messages import Request
from llm_headroom.poll import pace
from llm_headroom.poll.poller import Poller
from llm_headroom.poll.published import Published
from llm_headroom.web.app import App
from torture.figures import Figure

if TYPE_CHECKING:
    import random

_ENGINES: Final = {"vllm": Capture("vllm", "0.32.0", "saturated"), "sglang": Capture("sglang", "0.5.23", "saturated")}
_STEP: Final = 300.0
"""Virtual seconds between two events."""
_PER_SAMPLE: Final = 6
_WARM: Final = 2
"""Samples before which caches still fill."""
_MORE_MIB: Final = 6
_MORE: Final = 8
"""Descriptors, tasks or threads: as many connections may be open at one time and not at another."""


class _Clock:
    """Both clocks of this process, so many times faster; the host's may be set."""

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self.set_by = 0.0
        self._real, self._unix = time.monotonic, time.time()
        self._begun = self._real()

    def monotonic(self) -> float:
        return self._begun + (self._real() - self._begun) * self.speed

    def unix(self) -> float:
        return self._unix + (self.monotonic() - self._begun) + self.set_by


class _Selector(selectors.DefaultSelector):
    """Waits for the real share of a virtual time."""

    speed = 1.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(None if timeout is None else timeout / self.speed)


class _Loop(asyncio.SelectorEventLoop):
    """An event loop by that clock."""

    def __init__(self, clock: _Clock) -> None:
        selector = _Selector()
        selector.speed = clock.speed
        super().__init__(selector)
        self._by = clock

    def time(self) -> float:
        return self._by.monotonic()


class _Sample(NamedTuple):
    mib: float
    descriptors: int
    tasks: int
    threads: int


def _sample() -> _Sample:
    gc.collect()
    resident = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return _Sample(
        int(resident.split()[1]) / 1024,
        len(list(Path("/proc/self/fd").iterdir())),
        len(asyncio.all_tasks()),
        threading.active_count(),
    )


def _config(generation: int, engines: dict[str, EngineServer]) -> Config:
    targets = (
        Target(name=f"{kind}-{generation}-{number}", endpoint=Endpoint(url=server.url), engine=kind)
        for kind, server in engines.items()
        for number in range(2)
    )
    return replace(Config(gpu=GpuSettings(enabled=False), host=False), targets=tuple(targets))


def _served(kind: str, generation: int, dice: random.Random) -> dict[str, Reply]:
    """An engine's documents with models of their own; some engines are broken."""
    routes = {path: reply for path, reply in replayed(_ENGINES[kind]).items() if isinstance(reply, Reply)}
    name = b"model-%d" % generation
    changed = {path: replace(each, body=each.body.replace(b"tiny-llama", name)) for path, each in routes.items()}
    if dice.random() < 0.1:
        return {"*": Reply(b"starting", 503)}
    return changed


async def _hours(virtual: float, clock: _Clock, dice: random.Random) -> tuple[list[_Sample], dict[str, int]]:
    samples: list[_Sample] = []
    events = dict.fromkeys(
        ("requests to engines", "reloads", "engine restarts", "jumps of the clock", "restarts of the poller"), 0
    )
    with ExitStack() as stack:
        engines = {kind: stack.enter_context(EngineServer(replayed(each))) for kind, each in _ENGINES.items()}
        poller = Poller(_config(0, engines))
        app = App(Published(poller))
        poller.on_change(app.changed)
        poller.start()
        for step in range(1, int(virtual / _STEP) + 1):
            await asyncio.sleep(_STEP)
            for path in ("/metrics", "/", "/api/v1/snapshot", "/-/healthy"):
                await app.handle(Request("GET", path, {}, {}))
            kind, server = dice.choice(list(engines.items()))
            server.routes = dict(_served(kind, step, dice))
            events["engine restarts"] += 1
            if step % 2:
                await poller.apply(_config(step, engines))
                events["reloads"] += 1
            if step % 5 == 0:
                clock.set_by += dice.choice((-3600.0, 3600.0, 86400.0))
                events["jumps of the clock"] += 1
            if step % 24 == 0:
                await poller.stop()
                await app.close()
                poller = Poller(_config(step, engines))
                app = App(Published(poller))
                poller.on_change(app.changed)
                poller.start()
                events["restarts of the poller"] += 1
            for each in engines.values():
                events["requests to engines"] += len(each.requests)
                each.requests.clear()  # of the bench's own servers
            if step % _PER_SAMPLE == 0:
                samples.append(_sample())
        await poller.stop()
        await app.close()
    return samples, events


def soak(hours: float, speed: float, dice: random.Random) -> Figure:
    """So many virtual hours, at so many times the speed of real ones; for a process of its own."""
    clock = _Clock(speed)
    time.monotonic, time.time = clock.monotonic, clock.unix
    pace.LATE *= speed  # type: ignore[misc]  # a delay of this machine's is no longer than without
    logging.disable(logging.CRITICAL)
    with asyncio.Runner(loop_factory=lambda: _Loop(clock)) as runner:
        samples, events = runner.run(_hours(hours * 3600.0, clock, dice))
    first, last = samples[_WARM:][: len(samples) // 3], samples[-len(samples) // 3 :]
    seen, faults = [], 0
    for name, most in (("mib", _MORE_MIB), ("descriptors", _MORE), ("tasks", _MORE), ("threads", _MORE)):
        before, after = (max(getattr(each, name) for each in part) for part in (first, last))
        seen.append(f"{name.replace('mib', 'MiB resident')} {before:.0f} → {after:.0f}")
        faults += after > before + most
    done = ", ".join(f"{many:,} {what}" for what, many in events.items())
    return Figure("soak", f"{hours:g} h at {speed:g} times the speed: {done}", "; ".join(seen), faults)
