"""Clients that ask again and again: who gets nothing at all is seen, and who presses stop is no incident."""

from __future__ import annotations

import heapq
import json
import random
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest

from llm_headroom import schema
from llm_headroom.config.objectives import Objectives
from llm_headroom.derive import slo, state
from llm_headroom.derive.memory import Memory, advance
from llm_headroom.model import Health, Point, Series, Snapshot, State
from llm_headroom.proxy import framing
from llm_headroom.proxy.exchange import Exchange
from llm_headroom.proxy.measures import Measures
from measured_values import Clock

if TYPE_CHECKING:
    from collections.abc import Callable

BASE: Final = {"engine": "vllm", "target": "a/proxy"}
HEAD: Final = framing.ResponseHead(200, {"content-type": "text/event-stream"})
OBJECTIVES: Final = slo.objectives(Objectives(ttft=2.5))


@dataclass
class Play:
    """`clients` of a stream each wait for at most `patience` seconds, leave, and ask again after about `pause` seconds.

    A first token comes after `ttft` seconds, if at all; the `hurried` share presses stop a little earlier. `role`: the
    engine says at once who speaks. `loads`: it loads a model first, as polls show.
    """

    clients: int = 5
    patience: float = 1.0
    pause: float = 1.0
    ttft: float | None = None
    hurried: float = 0.0
    role: bool = False
    silent: bool = False
    loads: bool = False
    clock: Clock = field(default_factory=lambda: Clock(0.0))

    def __post_init__(self) -> None:
        self._chance = random.Random(1)
        self._measures = Measures(
            limit=4, loads=self.silent or self.loads, silent_loads=self.silent, objectives=OBJECTIVES, clock=self.clock
        )
        self._measures.label("m")
        self._memory = Memory()
        self._judged: state.Memory | None = None
        self._due: list[tuple[float, float, Callable[[float], None]]] = []
        for _ in range(self.clients):
            self._after(self._chance.uniform(0.0, self.pause), self._asks)

    def states(self, until: int) -> list[State]:
        """The state at each poll, every 5 s, up to a time in seconds."""
        return [self._polled(float(at)) for at in range(int(self.clock.now) + 5, until, 5)]

    def _polled(self, at: float) -> State:
        while self._due[0][0] <= at:
            then, _, do = heapq.heappop(self._due)
            do(then)
        self.clock.now = at
        shown = [Point(Series(schema.MODEL_LOADED, {"model": "m"}), float(not self.loads), "")]
        points = self._measures.points(BASE, shown)
        self._memory, derived = advance(self._memory, points, at, base=BASE, objectives=OBJECTIVES)
        snapshot = Snapshot(
            target="a/proxy", engine="vllm", taken=1e9 + at, points=(*points, *derived), health=Health(up=True)
        )
        self._judged, (last,) = state.judge(self._judged, snapshot, at)
        self.reason = last.reason
        return last.state

    def _after(self, at: float, do: Callable[[float], None]) -> None:
        heapq.heappush(self._due, (at, self._chance.random(), do))

    def _asks(self, at: float) -> None:
        raw = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n\r\n"
        exchange = Exchange(self._measures, framing.request_head(raw))
        exchange.asks(b'{"model":"m","stream":true}')
        exchange.sent(at)
        leaves = self.patience
        if self.ttft is not None and self._chance.random() < self.hurried:
            leaves = self.ttft * self._chance.uniform(0.2, 0.9)
        if self.role:
            exchange.answers(HEAD, at)
            exchange.received(event({"role": "assistant"}), at)
        if self.ttft is not None and self.ttft < leaves:
            self._after(at + self.ttft, partial(self._is_answered, exchange))
        else:
            self._after(at + leaves, partial(self._leaves, exchange))

    def _is_answered(self, exchange: Exchange, at: float) -> None:
        if not self.role:
            exchange.answers(HEAD, at)
        exchange.received(event({"content": "a"}), at)
        exchange.received(b"data: [DONE]\n\n", at)
        exchange.ended(at)
        self._after(at + self.pause * self._chance.uniform(0.5, 1.5), self._asks)

    def _leaves(self, exchange: Exchange, at: float) -> None:
        exchange.broken("aborted", at)
        self._after(at + self.pause * self._chance.uniform(0.5, 1.5), self._asks)


def event(delta: dict[str, str]) -> bytes:
    return f"data: {json.dumps({'model': 'm', 'choices': [{'index': 0, 'delta': delta}]})}\n\n".encode()


STORMS: Final[dict[str, Callable[[], Play]]] = {
    "many, at once": partial(Play, clients=20, pause=0.2),
    "few, so that none is there at most polls": partial(Play, clients=1, pause=5.0),
    "none longer than a blink": partial(Play, patience=0.2),
    "the engine says who speaks": partial(Play, role=True),
    "of an engine that answers after they have left": partial(Play, ttft=1.2),
}


@pytest.mark.parametrize("storm", STORMS)
def test_nobody_being_served_for_a_minute_though_many_ask_is_a_stall(storm: str) -> None:
    play = STORMS[storm]()
    found = play.states(300)
    assert State.STALLED not in found[:11]
    assert set(found[14:]) == {State.STALLED}, "it does not flicker"
    assert ", and none has got any output for " in play.reason


FINE: Final[dict[str, Callable[[], Play]]] = {
    "half of them press stop": partial(Play, ttft=0.8, patience=2.0, hurried=0.5),
    "most of them press stop": partial(Play, ttft=0.8, patience=2.0, hurried=0.95, clients=8),
    "who comes back only now and then": partial(Play, clients=1, pause=30.0),
    "a model is being loaded": partial(Play, loads=True),
    "a model may be being loaded": partial(Play, silent=True),
}


@pytest.mark.parametrize("calm", FINE)
def test_who_leaves_beside_others_that_are_served_or_may_wait_for_a_load_says_nothing(calm: str) -> None:
    found = FINE[calm]().states(280)
    assert set(found[1:]) <= {State.OK, State.IDLE}
    assert found[0] in {State.OK, State.IDLE, State.UNKNOWN}, "the first one does not see whether they are served"


def test_a_load_that_takes_too_long_is_a_stall_also_if_nobody_waits_long() -> None:
    assert set(Play(silent=True).states(400)[64:]) == {State.STALLED}


def test_it_ends_with_the_first_answer() -> None:
    play = Play()
    assert play.states(100)[-1] is State.STALLED
    play.ttft = 0.5
    assert set(play.states(130)) == {State.OK}
    play.ttft = None
    assert set(play.states(185)) == {State.OK}
    assert play.states(200)[-1] is State.STALLED
