"""Simulated engines that follow a clock: advanced when somebody asks, or when somebody waits for what comes next.

An engine that nobody asks costs nothing; the work of the time that has passed is done by the next question. All of
it happens in one event loop.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, TypeAlias

from llm_headroom.simulate.batching import Engine
from llm_headroom.simulate.engine_state import Outcome
from llm_headroom.simulate.ollama_model import OllamaServer
from llm_headroom.simulate.traffic import Request

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Iterator

    from llm_headroom.simulate.clock import Clock
    from llm_headroom.simulate.engine_state import EngineConfig, EngineReading
    from llm_headroom.simulate.ollama_model import OllamaConfig, OllamaReading

Event: TypeAlias = "int | Outcome"
"""What a client sees: the index of each token from 1 on, and at last how its request ended."""

_LEAST_WAIT = 0.001  # real seconds; steps that are shorter are done together
_SLICE = 10.0  # virtual seconds of traffic that are handed over at once


class QueueFullError(Exception):
    """Ollama answers 503."""


class Feed:
    """Streams of requests from clients of our own, merged in order of arrival. Times are shifted to when they begin."""

    def __init__(self) -> None:
        self._heads: list[tuple[float, int, str, Request, float, Iterator[Request]]] = []
        self._numbers = count()

    @property
    def next_arrival(self) -> float:
        """Virtual second of the next request, infinite if there is none."""
        return self._heads[0][0] if self._heads else math.inf

    def add(self, requests: Iterable[Request], begin: float, model: str = "") -> None:
        """Have requests arrive, their second 0 at `begin`."""
        self._push(next(self._numbers), model, iter(requests), begin)

    def _push(self, number: int, model: str, rest: Iterator[Request], begin: float) -> None:
        request = next(rest, None)
        if request is not None:
            heapq.heappush(self._heads, (request.arrival + begin, number, model, request, begin, rest))

    def until(self, moment: float) -> Iterator[tuple[str, Request]]:
        """Yield the requests that arrive until then, with the model that they ask for."""
        while self._heads and self._heads[0][0] <= moment:
            arrival, number, model, request, begin, rest = heapq.heappop(self._heads)
            self._push(number, model, rest, begin)
            yield model, replace(request, arrival=arrival)


@dataclass(slots=True)
class _Client:
    events: asyncio.Queue[Event]

    def token(self, _time: float, index: int) -> None:
        self.events.put_nowait(index)

    def end(self, outcome: Outcome) -> None:
        self.events.put_nowait(outcome)

    async def follow(self) -> AsyncGenerator[Event, None]:
        while True:
            event = await self.events.get()
            yield event
            if isinstance(event, Outcome):
                return


class _Alarm:
    """Lets an engine catch up at each of its events for as long as clients wait; else only those who read it do.

    Args:
        clock: that the engine follows.
        catch_up: does what was due until now.
        next_event: virtual second at which something happens next, infinity if nothing will by itself.
    """

    def __init__(self, clock: Clock, catch_up: Callable[[], None], next_event: Callable[[], float]) -> None:
        self._clock = clock
        self._catch_up = catch_up
        self._next_event = next_event
        self._handle: asyncio.TimerHandle | None = None
        self._waiting = 0

    def set(self) -> None:
        """Set it to the next event, which may be another one than before."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._waiting and (moment := self._next_event()) < math.inf:
            delay = max(self._clock.seconds_until(moment), _LEAST_WAIT)
            self._handle = asyncio.get_running_loop().call_later(delay, self._ring)

    def _ring(self) -> None:
        self._catch_up()
        self.set()

    @contextmanager
    def listening(self, gone: Callable[[], None]) -> Iterator[None]:
        """A client waits; `gone` drops its request, if there is still something of it, when it does no longer."""
        self._waiting += 1
        self.set()
        try:
            yield
        finally:
            self._waiting -= 1
            self._catch_up()
            gone()
            self.set()


class LiveEngine:
    """A vLLM or SGLang engine.

    Attributes:
        clock: that it follows.
        engine: the model in virtual time.
        feed: requests of simulated clients.
        back_at: virtual second at which it is back after its last crash.
    """

    def __init__(self, config: EngineConfig, clock: Clock, seed: int) -> None:
        self.clock = clock
        self.engine = Engine(config, seed, clock.now())
        self.feed = Feed()
        self._alarm = _Alarm(clock, self.catch_up, self._next_event)
        self.back_at = -math.inf
        self._busy_before = 0.0

    @property
    def alive(self) -> bool:
        """Whether it answers."""
        return self.clock.now() >= self.back_at

    @property
    def busy_seconds(self) -> float:
        """Seconds spent in steps, over all of its lives."""
        self.catch_up()
        return self._busy_before + self.engine.read().counters.busy_seconds

    @property
    def slowdown(self) -> float:
        """By what factor its steps take longer than on a healthy GPU."""
        return self.engine.slowdown

    def read(self) -> EngineReading:
        """Its state now."""
        self.catch_up()
        return self.engine.read()

    def catch_up(self) -> None:
        """Do what was due until now; requests that arrive while it is down are lost."""
        now = max(self.clock.now(), self.engine.now)
        while self.engine.now < now:
            end = min(now, self.engine.now + _SLICE)
            for _, request in self.feed.until(end):
                if request.arrival >= self.back_at:
                    self.engine.submit(request)
            self.engine.advance(end)

    def _next_event(self) -> float:
        event = self.engine.next_event
        return min(math.inf if event is None else event, self.feed.next_arrival)

    async def ask(self, request: Request) -> AsyncGenerator[Event, None]:
        """Submit a request as of now and yield what its client sees. One that stops to listen aborts it."""
        self.catch_up()
        client = _Client(asyncio.Queue())
        number = self.engine.submit(replace(request, arrival=self.engine.now), client.token, client.end)
        self.engine.advance(self.engine.now)
        with self._alarm.listening(lambda: self.engine.abort(number)):
            async for event in client.follow():
                yield event

    def stall(self, seconds: float) -> None:
        """Make no progress for so many seconds."""
        self.catch_up()
        self.engine.stall(seconds)
        self._alarm.set()

    def slow_down(self, factor: float) -> None:
        """Let every step from now on take so many times as long; 1.0 is healthy."""
        self.catch_up()
        self.engine.slowdown = factor

    def crash(self, seconds: float) -> None:
        """Lose everything, and be back after so many seconds."""
        self.catch_up()
        self._busy_before = self.busy_seconds
        self.back_at = self.engine.now + seconds
        self.engine.crash(seconds)
        self._alarm.set()


def keep_busy(live: LiveEngine, clients: int, requests: Iterator[Request]) -> None:
    """Have so many clients each send a request as soon as their last one has ended, a second after one that failed."""

    def send(moment: float) -> None:
        request = next(requests, None)
        if request is not None:
            live.engine.submit(replace(request, arrival=moment), on_end=ended)

    def ended(outcome: Outcome) -> None:
        send(outcome.ended if outcome.reason in {"stop", "length"} else max(outcome.ended, live.back_at) + 1.0)

    live.catch_up()
    for _ in range(clients):
        send(live.engine.now)


class LiveOllama:
    """An Ollama server.

    Attributes:
        clock: that it follows.
        server: the model in virtual time; another one after each crash.
        feed: requests of simulated clients.
    """

    def __init__(self, config: OllamaConfig, clock: Clock) -> None:
        self.clock = clock
        self.feed = Feed()
        self.server = OllamaServer(config, clock.now())
        self._alarm = _Alarm(clock, self.catch_up, self._next_event)
        self._clients: set[asyncio.Queue[Event]] = set()
        self._down_until = -math.inf
        self._busy: dict[tuple[str, float], float] = {}
        self._busy_before = 0.0

    @property
    def alive(self) -> bool:
        """Whether it answers."""
        return self.clock.now() >= self._down_until

    @property
    def busy_seconds(self) -> float:
        """Seconds spent in steps, of all models that are or were loaded; a model's last steps may be missed."""
        loaded = {(one.name, one.loaded_at): one.engine.counters.busy_seconds for one in self.read().loaded}
        self._busy_before += sum(seconds for key, seconds in self._busy.items() if key not in loaded)
        self._busy = loaded
        return self._busy_before + sum(loaded.values())

    @property
    def slowdown(self) -> float:
        """By what factor its steps take longer than on a healthy GPU."""
        return self.server.slowdown

    def read(self) -> OllamaReading:
        """Its state now."""
        self.catch_up()
        return self.server.read()

    def catch_up(self) -> None:
        """Do what was due until now; requests that arrive while it is down are lost."""
        now = max(self.clock.now(), self.server.now)
        for model, request in self.feed.until(now):
            if request.arrival < self._down_until:
                continue
            self.server.advance(max(request.arrival, self.server.now))
            self.server.submit(model, request)
        self.server.advance(now)

    def _next_event(self) -> float:
        event = self.server.next_event
        return min(math.inf if event is None else event, self.feed.next_arrival)

    async def ask(self, model: str, request: Request) -> AsyncGenerator[Event, None]:
        """Submit a request as of now and yield what its client sees.

        Raises:
            QueueFullError: too many wait for a model.
            KeyError: there is no such model.
        """
        self.catch_up()
        client = _Client(asyncio.Queue())
        asked = replace(request, arrival=self.server.now)
        server = self.server  # a crash replaces it, and the next one has numbers of its own
        number = server.submit(model, asked, client.token, client.end)
        if number is None:
            raise QueueFullError
        self.server.advance(self.server.now)
        self._clients.add(client.events)
        try:
            with self._alarm.listening(lambda: server.abort(number)):
                async for event in client.follow():
                    yield event
        finally:
            self._clients.discard(client.events)

    def stall(self, seconds: float) -> None:
        """Make no progress for so many seconds."""
        self.catch_up()
        self.server.stall(seconds)
        self._alarm.set()

    def slow_down(self, factor: float) -> None:
        """Let every step from now on take so many times as long, until it crashes; 1.0 is healthy."""
        self.catch_up()
        self.server.slowdown = factor

    def loaded_at(self, model: str) -> float | None:
        """Since when a model is ready, in virtual seconds; None if it is not."""
        return next((one.loaded_at for one in self.read().loaded if one.name == model), None)

    def crash(self, seconds: float) -> None:
        """Lose everything, and be back after so many seconds with no model loaded."""
        self.catch_up()
        self._busy_before, self._busy = self.busy_seconds, {}
        now = self.server.now
        self._down_until = now + seconds
        self.server = OllamaServer(self.server.config, now)
        for events in self._clients:
            events.put_nowait(_crashed(now))


def _crashed(now: float) -> Outcome:
    return Outcome(0, Request(now, 1, 1), "crash", now, None, None, 0, 0, 0)
