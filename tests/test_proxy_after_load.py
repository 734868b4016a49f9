"""Requests for which the engine has to load the model: measured apart, so that a load is no incident."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import pytest

from llm_headroom import schema
from llm_headroom.derive import state
from llm_headroom.derive.memory import Memory, advance
from llm_headroom.derive.slo import USUAL
from llm_headroom.model import Health, Point, Series, Snapshot, State
from llm_headroom.proxy import framing
from llm_headroom.proxy.exchange import Exchange
from llm_headroom.proxy.measures import Measures
from measured_values import Clock, counted

if TYPE_CHECKING:
    from collections.abc import Mapping

BASE: Final = {"engine": "ollama", "target": "t"}
PART: Final = {"model": "m", "response": "a", "done": False}
LAST: Final = {"model": "m", "done": True, "done_reason": "stop", "prompt_eval_count": 5, "eval_count": 3}


class Box:
    """A measured Ollama, and what the exporter remembers of it; time passes as the test says."""

    def __init__(self) -> None:
        self.clock = Clock(0.0)
        loading = {"loads": True, "silent_loads": True}
        self.measures = Measures(limit=4, untagged="", objectives=USUAL, clock=self.clock, **loading)
        self.memory = Memory()
        self.judged: state.Memory | None = None

    def poll(self, at: float, loaded: float, context: float = 4096.0) -> State:
        """The state after a poll that shows whether the model is in memory, and with which context."""
        self.clock.now = at
        own = [Point(Series(schema.MODELS_LOADED, BASE), loaded, "")]
        own.append(Point(Series(schema.MODEL_LOADED, {**BASE, "model": "m"}), loaded, ""))
        if loaded:
            own.append(Point(Series(schema.MODEL_CONTEXT, {**BASE, "model": "m"}), context, ""))
        points = [*own, *self.measures.points(BASE, own)]
        self.memory, derived = advance(self.memory, points, at, base=BASE)
        health = Health(up=True, last_success=at)
        snapshot = Snapshot(target="t", engine="ollama", taken=at, points=(*points, *derived), health=health)
        self.judged, (found,) = state.judge(self.judged, snapshot, at)
        return found.state

    def ask(self, at: float) -> Exchange:
        """A request that has been sent."""
        asked = Exchange(self.measures, framing.request_head(b"POST /api/generate HTTP/1.1\r\nHost: x\r\n\r\n"))
        asked.asks(b'{"model":"m"}')
        asked.sent(at)
        return asked

    def first(self, asked: Exchange, at: float) -> None:
        """Its first token comes."""
        asked.answers(framing.ResponseHead(200, {"content-type": "application/x-ndjson"}), at)
        asked.received(json.dumps(PART).encode() + b"\n", at)

    def end(self, asked: Exchange, at: float, durations: Mapping[str, float] | None = None) -> None:
        """It is answered; `durations` in seconds."""
        last = LAST | {name: int(seconds * 1e9) for name, seconds in (durations or {}).items()}
        asked.received(json.dumps(last).encode() + b"\n", at)
        asked.ended(at)

    def firsts(self) -> tuple[float, float]:
        """First tokens after a load, and others."""
        found = counted(self.measures, "proxy_first_token_after_load_seconds", "time_to_first_token_seconds")
        names = ("proxy_first_token_after_load_seconds{m}", "time_to_first_token_seconds{m}")
        return found.get(names[0], 0.0), found.get(names[1], 0.0)


@pytest.mark.parametrize("seen", [False, True])
def test_requests_that_waited_for_a_load_are_not_slow_but_those_after_it_are(*, seen: bool) -> None:
    """Five requests wait for a load of 20 s; whether a poll sees the model before their first tokens is no matter."""
    box = Box()
    box.poll(0.0, 0.0)
    waiting = [box.ask(1.0 + number) for number in range(5)]
    if seen:
        box.poll(20.0, 1.0)
    for each in waiting:
        box.first(each, 21.0)
    box.poll(30.0, 1.0)
    for each in waiting:
        box.end(each, 55.0)

    assert box.poll(60.0, 1.0) is State.OK
    assert box.firsts() == (5, 0)
    assert not counted(box.measures, "request_duration_seconds")  # 50 s would miss the objective, too

    late = [box.ask(61.0 + number) for number in range(5)]
    for each in late:
        box.first(each, 81.0)

    assert box.poll(90.0, 1.0) is State.SLOW
    assert box.firsts() == (5, 5)


@pytest.mark.parametrize(("listed", "silence"), [(1.0, 40.0), (0.0, 0.0)])
def test_of_an_engine_that_shows_what_is_in_memory_a_load_alone_explains_silence(listed: float, silence: float) -> None:
    """llama.cpp lists what it has loaded, so that silence of a model that is in memory is no load."""
    clock = Clock(0.0)
    measures = Measures(limit=4, loads=True, clock=clock)
    own = [Point(Series(schema.MODEL_LOADED, {**BASE, "model": "m"}), listed, "")]
    measures.points(BASE, own)
    measures.label("m")
    measures.begin("m", 1.0, streams=True)
    clock.now = 41.0

    found = measures.points(BASE, own)

    assert [value for series, value, _ in found if series.metric is schema.PROXY_SILENCE] == [silence]


def test_another_context_is_another_load() -> None:
    box = Box()
    box.poll(0.0, 1.0)
    asked = box.ask(1.0)
    box.first(asked, 8.0)
    box.poll(10.0, 1.0, context=8192.0)
    assert box.firsts() == (1, 0)


def test_what_is_in_memory_at_the_first_poll_has_always_been() -> None:
    box = Box()
    asked = box.ask(0.5)
    box.poll(1.0, 1.0)
    box.first(asked, 8.0)
    box.poll(10.0, 1.0)
    assert box.firsts() == (0, 1)


@pytest.mark.parametrize(("load", "expected"), [(0.1, (0, 1)), (0.11, (1, 0))])
@pytest.mark.parametrize("loaded", [0.0, 1.0])
def test_the_engine_s_own_word_counts_more_than_polls(load: float, expected: tuple[int, int], loaded: float) -> None:
    box = Box()
    box.poll(0.0, loaded)
    asked = box.ask(1.0)
    box.first(asked, 8.0)
    box.end(asked, 9.0, {"load_duration": load})
    assert box.firsts() == expected


def test_an_engine_that_was_not_polled_or_does_not_list_the_model_has_not_loaded_it() -> None:
    box = Box()
    box.first(box.ask(1.0), 8.0)
    box.poll(10.0, 1.0)
    box.measures.serves = lambda _: True
    elsewhere = Exchange(box.measures, framing.request_head(b"POST /api/generate HTTP/1.1\r\nHost: x\r\n\r\n"))
    elsewhere.asks(b'{"model":"cloud"}')
    elsewhere.sent(11.0)
    elsewhere.answers(framing.ResponseHead(200, {"content-type": "application/x-ndjson"}), 20.0)
    elsewhere.received(json.dumps(PART | {"model": "cloud"}).encode() + b"\n", 20.0)

    assert counted(box.measures, "proxy_first_token", "time_to_first") == {
        "time_to_first_token_seconds{m}": 1,
        "time_to_first_token_seconds{cloud}": 1,
    }


@pytest.mark.parametrize("known", [True, False])
def test_requests_in_progress_are_not_overdue_while_the_model_loads(*, known: bool) -> None:
    """Nor those of a model that the engine has never named, since it has not answered yet."""
    box = Box()
    if known:
        box.measures.label("m")
    box.poll(0.0, 0.0)
    box.ask(1.0)
    box.poll(40.0, 0.0)
    assert not counted(box.measures, "proxy_requests_overdue")
    box.poll(50.0, 1.0)
    box.ask(51.0)
    box.clock.now = 55.0
    assert sum(counted(box.measures, "proxy_requests_overdue").values()) == 1


@pytest.mark.parametrize(("silent", "overdue"), [(True, 0), (False, 1)])
def test_a_model_that_no_poll_lists_may_be_loading_where_polls_say_nothing_of_loads(
    *, silent: bool, overdue: int
) -> None:
    clock = Clock(0.0)
    measures = Measures(limit=4, loads=True, silent_loads=silent, objectives=USUAL, clock=clock)
    measures.points(BASE, [Point(Series(schema.MODEL_LOADED, {**BASE, "model": "other"}), 1.0, "")])
    measures.begin("", 1.0, streams=True, wanted="m")
    clock.now = 10.0

    assert sum(counted(measures, "proxy_requests_overdue").values()) == overdue
