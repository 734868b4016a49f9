"""Simulated engines that follow a clock: what they do when it moves, and what they are like while they misbehave."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from hand_clock import Hands
from llm_headroom.net.http_messages import CutError
from llm_headroom.net.http_messages import Request as HttpRequest
from llm_headroom.simulate.clock import Clock
from llm_headroom.simulate.engine_state import EngineConfig, Outcome
from llm_headroom.simulate.exposition import Exposition
from llm_headroom.simulate.hardware import GIB, L4, QWEN_2_5_7B, TINY_LLAMA
from llm_headroom.simulate.live import LiveEngine, LiveOllama, QueueFullError, keep_busy
from llm_headroom.simulate.ollama_http import OllamaApi
from llm_headroom.simulate.ollama_model import OllamaConfig
from llm_headroom.simulate.openai_http import OpenAiApi
from llm_headroom.simulate.traffic import Request

SMALL = "small:latest"
HOUR = 3600.0
OLLAMA = OllamaConfig(models={SMALL: TINY_LLAMA, "other:7b": QWEN_2_5_7B}, gpu=L4, gpu_reserved=GIB)


class OneSecond:
    """A step takes a second."""

    def step_seconds(self, *_: int) -> float:
        """Return the same for every step."""
        return 1.0


def engine(clock: Clock, *, seqs: int = 8, queue: int | None = None) -> LiveEngine:
    return LiveEngine(EngineConfig(OneSecond(), "vllm", 101, 4, seqs, 64, max_queue=queue), clock, 0)


# The clock -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("speed", [0.5, 1.0, 250.0])
def test_virtual_seconds_are_real_ones_times_the_speed(speed: float) -> None:
    before = time.monotonic()
    clock = Clock(speed)
    made = time.monotonic()
    assert abs(clock.started - time.time()) < HOUR  # the machine's clock may be set meanwhile

    asked = time.monotonic()
    now = clock.now()
    later = time.monotonic()
    assert (asked - made) * speed <= now <= (later - before) * speed

    assert clock.seconds_until(now) == 0.0
    moment = later + 1000.0
    least = (moment - clock.now()) / speed
    found = clock.seconds_until(moment)
    assert (moment - clock.now()) / speed <= found <= least


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan")])
def test_a_clock_moves_forward(speed: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Clock(speed)
    assert Clock().speed == 1.0


# vLLM and SGLang -----------------------------------------------------------------------------------------------------
def test_an_engine_begins_at_the_time_of_its_clock_and_follows_it() -> None:
    clock = Hands()
    clock.moment = 100.0
    live = engine(clock)
    live.feed.add([Request(0.0, 4, 3), Request(25.0, 4, 2)], 100.0)

    assert live.read().started_at == 100.0
    clock.moment = 102.0
    seen = live.read()
    assert (seen.time, seen.running, seen.counters.generated_tokens) == (102.0, 1, 2)
    clock.moment = 124.9
    assert (live.read().counters.generated_tokens, live.read().running) == (3, 0)
    clock.moment = 126.5
    assert (live.read().counters.generated_tokens, live.read().running) == (4, 1)
    assert live.busy_seconds == pytest.approx(3 + 2)
    clock.moment = 90.0
    assert live.read().time == 126.5


def test_an_engine_that_has_crashed_loses_what_arrives_until_it_is_back() -> None:
    clock = Hands()
    live = engine(clock)
    live.feed.add([Request(0.0, 4, 50), Request(6.0, 4, 1), Request(14.9, 4, 1), Request(15.0, 4, 1)], 0.0)
    clock.moment = 5.0
    assert live.busy_seconds == pytest.approx(5 + 1)

    live.crash(10.0)

    assert (live.alive, live.read().alive, live.back_at) == (False, False, 15.0)
    answers = []
    for moment in (14.99, 15.0):
        clock.moment = moment
        answers.append(live.alive)
    assert answers == [False, True]
    clock.moment = 20.0
    seen = live.read()
    assert (seen.started_at, seen.counters.submitted, seen.counters.generated_tokens) == (15.0, 1, 1)
    assert live.busy_seconds == pytest.approx(6 + 1)
    live.crash(1.0)
    clock.moment = 30.0
    assert live.busy_seconds == pytest.approx(7)


def test_a_stall_and_a_slow_spell_begin_now() -> None:
    clock = Hands()
    live = engine(clock)
    live.feed.add([Request(0.0, 4, 50)], 0.0)
    clock.moment = 4.0
    live.stall(10.0)
    clock.moment = 14.5
    assert live.read().counters.generated_tokens == 4
    clock.moment = 15.0
    assert live.read().counters.generated_tokens == 5
    assert live.slowdown == 1.0

    live.slow_down(3.0)

    clock.moment = 22.0
    assert live.slowdown == 3.0
    assert live.read().counters.generated_tokens == 5 + 1 + 2


def test_clients_of_our_own_send_again_when_they_have_an_answer() -> None:
    clock = Hands()
    live = engine(clock)
    clock.moment = 3.0
    sent = iter([Request(0.0, 4, 2) for _ in range(7)])

    keep_busy(live, 2, sent)

    assert (live.engine.read().time, next(sent, None) is not None) == (3.0, True)
    clock.moment = 6.5
    assert (live.read().running, live.read().counters.submitted) == (2, 4)
    clock.moment = 50.0
    assert (live.read().running, live.read().counters.generated_tokens) == (0, 12)


def test_clients_of_our_own_come_back_a_second_after_a_failure_or_a_restart() -> None:
    clock = Hands()
    live = engine(clock)
    keep_busy(live, 1, iter([Request(0.0, 4, 9), Request(0.0, 4, 1), Request(0.0, 500, 9), Request(0.0, 4, 1)]))
    clock.moment = 4.0
    live.crash(5.0)
    clock.moment = 9.5
    assert live.read().counters.submitted == 0
    clock.moment = 10.5
    assert live.read().counters.submitted == 1
    clock.moment = 11.0
    seen = live.read().counters
    assert (seen.submitted, seen.generated_tokens) == (2, 1)  # the third is longer than the engine takes
    clock.moment = 11.9
    assert live.read().counters.submitted == 2
    clock.moment = 12.0
    assert live.read().counters.submitted == 3


def test_a_client_hears_every_token_and_the_end_and_a_crash() -> None:
    async def run() -> None:
        clock = Hands()
        live = engine(clock)
        events = live.ask(Request(50.0, 4, 2))
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        assert (live.read().running, live.read().waiting) == (1, 0)
        clock.moment = 1.0
        live.catch_up()
        assert await waiting == 1
        clock.moment = 2.0
        live.catch_up()
        assert await anext(events) == 2
        end = await anext(events)
        assert isinstance(end, Outcome)
        assert (end.reason, end.ended, end.request.arrival) == ("length", 2.0, 0.0)
        assert await anext(events, None) is None

        lost = live.ask(Request(0.0, 4, 50))
        waiting = asyncio.ensure_future(anext(lost))
        await asyncio.sleep(0)
        live.crash(1.0)
        end = await waiting
        assert isinstance(end, Outcome)
        assert end.reason == "crash"

    asyncio.run(run())


def test_a_client_that_leaves_drops_its_request() -> None:
    async def run() -> None:
        clock = Hands()
        live = engine(clock)
        events = live.ask(Request(0.0, 4, 50))
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        clock.moment = 1.0
        live.catch_up()
        await waiting
        clock.moment = 4.0
        await events.aclose()
        clock.moment = 9.0
        seen = live.read().counters
        assert (live.read().running, seen.finished.get("abort"), seen.generated_tokens) == (0, 1, 5)

    asyncio.run(run())


def test_what_an_engine_cannot_take_is_refused_or_cut_off() -> None:
    async def run() -> None:
        clock = Hands()
        live = engine(clock, seqs=1, queue=1)
        api = OpenAiApi(live, Exposition("vllm/0.32.0", model="m", config=live.engine.config, start=0.0), "m")
        request = HttpRequest("POST", "/v1/completions", {}, {}, b'{"prompt": "a", "max_tokens": 9}')
        waiting = []
        for _ in range(2):
            waiting.append(asyncio.ensure_future(api.handle(request)))
            await asyncio.sleep(0)

        full = await api.handle(request)
        assert full.status == 503
        assert b"queue is full" in full.body
        live.crash(5.0)
        for one in waiting:
            with pytest.raises(CutError):
                await one
        with pytest.raises(CutError):
            await api.handle(request)

    asyncio.run(run())


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_has_begun_is_cut_off_by_a_crash(*, stream: bool) -> None:
    async def run() -> None:
        clock = Hands()
        live, ollama = engine(clock), LiveOllama(OLLAMA, clock)
        exposition = Exposition("vllm/0.32.0", model="m", config=live.engine.config, start=0.0)
        asked = {"prompt": "a", "max_tokens": 9, "model": SMALL, "stream": stream, "options": {"num_predict": 2000}}
        body = json.dumps(asked).encode()
        questions = (
            (OpenAiApi(live, exposition, "m").handle(HttpRequest("POST", "/v1/completions", {}, {}, body)), live, 3.0),
            (OllamaApi(ollama).handle(HttpRequest("POST", "/api/generate", {}, {}, body)), ollama, 1.1),
        )
        for question, source, seconds in questions:
            answer = asyncio.ensure_future(question)
            await asyncio.sleep(0)
            clock.moment += seconds
            source.catch_up()
            if not stream:
                await asyncio.sleep(0)
                source.crash(1.0)
                with pytest.raises(CutError):
                    await answer
                continue
            parts = (await answer).stream
            assert parts is not None
            assert "token" in (await anext(aiter(parts))).decode()
            source.crash(1.0)
            with pytest.raises(CutError):
                async for _ in parts:
                    pass
            await parts.aclose()

    asyncio.run(run())


# Ollama --------------------------------------------------------------------------------------------------------------
def test_ollama_begins_at_the_time_of_its_clock_and_loses_everything_in_a_crash() -> None:
    clock = Hands()
    clock.moment = 100.0
    live = LiveOllama(OLLAMA, clock)
    live.feed.add([Request(0.0, 4, 5), Request(41.0, 4, 5), Request(59.9, 4, 5), Request(60.0, 4, 5)], 100.0, SMALL)
    assert (live.alive, live.loaded_at(SMALL)) == (True, None)
    clock.moment = 140.0
    loaded = live.loaded_at(SMALL)
    assert loaded is not None
    assert 100.0 < loaded < 110.0
    assert live.loaded_at("other:7b") is None
    busy = live.busy_seconds
    assert 0.0 < busy < 10.0
    assert live.busy_seconds == busy

    live.crash(20.0)

    clock.moment = 159.9
    assert (live.alive, live.read().loaded, live.busy_seconds) == (False, (), busy)
    clock.moment = 160.0
    assert (live.alive, live.read().loaded) == (True, ())
    clock.moment = 190.0
    seen = live.read()
    assert (seen.loads, seen.loaded[0].engine.counters.submitted) == (1, 1)
    assert live.busy_seconds == pytest.approx(2 * busy)


def test_ollama_s_work_is_counted_on_when_a_model_is_unloaded() -> None:
    clock = Hands()
    live = LiveOllama(OLLAMA, clock)
    live.feed.add([Request(0.0, 4, 5), Request(400.0, 4, 5)], 0.0, SMALL)
    clock.moment = 20.0
    first = live.busy_seconds
    clock.moment = 390.0
    assert (live.read().loaded, live.busy_seconds) == ((), first)
    clock.moment = 450.0
    assert live.busy_seconds == pytest.approx(2 * first)


def test_ollama_stalls_and_slows_down_from_now_on() -> None:
    def ended(seconds: float, factor: float) -> float:
        clock = Hands()
        live = LiveOllama(OLLAMA, clock)
        live.feed.add([Request(0.0, 4, 1000)], 0.0, SMALL)
        clock.moment = 2.0
        if seconds:
            live.stall(seconds)
        live.slow_down(factor)
        assert live.slowdown == factor
        clock.moment = 200.0
        return live.read().loaded[0].expires_at - 300.0

    healthy = ended(0.0, 1.0)
    assert ended(30.0, 1.0) == pytest.approx(healthy + 30.0)
    assert ended(0.0, 2.0) == pytest.approx(2.0 + 2.0 * (healthy - 2.0), abs=0.1)


def test_a_client_of_ollama_hears_of_a_full_queue_and_of_a_crash() -> None:
    async def run() -> None:
        clock = Hands()
        live = LiveOllama(OllamaConfig(models={SMALL: TINY_LLAMA}, gpu=L4, max_queue=1), clock)
        events = live.ask(SMALL, Request(0.0, 4, 50))
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await anext(live.ask(SMALL, Request(0.0, 4, 50)))
        with pytest.raises(KeyError):
            await anext(live.ask("nothing", Request(0.0, 4, 50)))
        live.crash(1.0)
        end = await waiting
        assert isinstance(end, Outcome)
        assert (end.reason, end.ended) == ("crash", 0.0)
        clock.moment = 2.0
        again = live.ask(SMALL, Request(0.0, 4, 1))
        waiting = asyncio.ensure_future(anext(again))
        await asyncio.sleep(0)
        await events.aclose()
        assert live.read().pending == 1
        clock.moment = 30.0
        live.catch_up()
        assert await waiting == 1

    asyncio.run(run())
