"""Copies of earlier answers, and counters that stand while clients are answered: nothing is known of the engine then.

Captures of a vLLM whose engine core really stood are stalled, as soon as before.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from captures import CAPTURES, mapper, of
from engine_server import EngineServer, Reply
from llm_headroom import schema
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Config, ProxySettings, Target
from llm_headroom.derive import state
from llm_headroom.derive.copies import CPU
from llm_headroom.derive.memory import Memory, advance
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.exposition.text import Exposition, Parser
from llm_headroom.model import Cause, Health, Histogram, Point, Series, Snapshot, State
from llm_headroom.poll.engine import EngineSource
from llm_headroom.scrape.collect import Collector
from llm_headroom.scrape.doubts import Doubts
from llm_headroom.scrape.http import FetchError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Sequence

POLL: Final = 5.0
STALL: Final = "vllm/0.32.0-stall-crash"
BEFORE, STOPPED = of(f"{STALL}/before_stop"), of(f"{STALL}/engine_stopped_t8")
LATER: Final = of(f"{STALL}/engine_stopped_t20")
BUSY_SGLANG: Final = of("sglang/0.5.23/saturated")


class Poll(NamedTuple):
    """What one poll has read: an exposition, how old caches say it is, and what a proxy has seen until then."""

    exposition: Exposition
    age: float = 0.0
    firsts: float | None = None
    ended: float = 0.0
    silence: float = 0.0


class Said(NamedTuple):
    """The state after a poll, its reason, the cause of a failure, and the points."""

    state: State
    reason: str
    cause: Cause | None
    points: Sequence[Point]


def moved(exposition: Exposition, **samples: float) -> Exposition:
    """An exposition in which samples of these names have grown by so much."""
    named = zip(exposition.layout.keys, exposition.values, strict=True)
    return exposition._replace(values=[value + samples.get(key.name.replace(":", "_"), 0.0) for key, value in named])


def watched(polls: Iterable[Poll], engine: str = "vllm", every: float = POLL) -> list[Said]:
    """What is said at each poll."""
    polls = list(polls)
    seen: list[Point] = []
    doubts, mapping, base = Doubts("http://e:1", lambda: seen), mapper(engine), {"engine": engine, "target": "t"}
    memory, judge, found = Memory(), None, []
    for number, poll in enumerate(polls):
        at = every * number
        seen[:] = proxied(poll)
        failure, points = None, []
        try:
            made = doubts.made({"metrics": poll.exposition}, poll.age, at)
            points = list(mapping.map(poll.exposition)[1].points)
            memory, derived = advance(memory, points, made, base=base)
            points += derived
            doubts.check(points, memory, at)
        except FetchError as failed:
            failure, points = failed.failure, []
        health = Health(up=failure is None, error=failure)
        snapshot = Snapshot(target="t", engine=engine, taken=at, points=tuple(points), health=health)
        judge, judged = state.judge(judge, snapshot, at)
        found.append(Said(judged[0].state, judged[0].reason, failure and failure.cause, points))
    return found


def proxied(poll: Poll) -> list[Point]:
    if poll.firsts is None:
        return []
    base = {"engine": "vllm", "target": "t/proxy", "model": "m"}
    firsts = Histogram((float("inf"),), (poll.firsts,), poll.firsts)
    return [
        Point(Series(schema.TIME_TO_FIRST_TOKEN, base), firsts, "proxy"),
        Point(Series(schema.REQUESTS_FINISHED, {**base, "reason": "stop"}), poll.ended, "proxy"),
        Point(Series(schema.PROXY_SILENCE, base), poll.silence, "proxy"),
    ]


def working(polls: int, begin: Exposition = BEFORE) -> list[Poll]:
    """An engine at work: its steps, tokens, first tokens and CPU time move."""
    grown = {CPU: 0.02, "vllm_iteration_tokens_total_count": 50.0, "vllm_generation_tokens_total": 400.0}
    grown |= dict.fromkeys((f"vllm_time_to_first_token_seconds_{part}" for part in ("bucket", "count")), 3.0)
    return [Poll(moved(begin, **{name: by * number for name, by in grown.items()})) for number in range(polls)]


def dead(polls: int, cpu: float = 0.01, every: int = 1) -> list[Poll]:
    """A stopped engine core behind a server that answers: its CPU time moves at each so many-th poll."""
    return [Poll(moved(STOPPED, **{CPU: cpu * (number // every)})) for number in range(polls)]


def stalls(said: Sequence[Said]) -> float | None:
    """Seconds after the first poll at which it is stalled first."""
    return next((POLL * number for number, each in enumerate(said) if each.state is State.STALLED), None)


# Copies --------------------------------------------------------------------------------------------------------------
def test_an_answer_that_stands_still_to_the_last_digit_is_a_copy_and_nothing_is_known() -> None:
    said = watched([*working(6), *[Poll(STOPPED)] * 30])

    assert stalls(said) is None
    assert (said[-1].state, said[-1].cause, said[-1].points) == (State.UNKNOWN, Cause.STALE, [])
    assert said[-1].reason == (
        "http://e:1: nothing of it has changed for 2 min, not even the CPU time of its process, so it is a copy: "
        "is a cache in front of it?"
    )
    assert [each.cause for each in said[6:18]] == [None] * 12
    assert said[18].cause is Cause.STALE  # 60 s after it was seen first, when a stall would be said


@pytest.mark.parametrize("every", [1, 2, 3, 6])
def test_a_dead_engine_core_is_stalled_as_soon_as_ever(every: int) -> None:
    """Its server goes on to answer, which costs CPU time: where that is fast, less than a hundredth of a second."""
    said = watched([*working(6), *dead(30, every=every)])

    assert stalls(said) == 25.0 + 65.0
    assert {each.cause for each in said} == {None}


def test_captures_of_a_vllm_whose_engine_core_stood_are_stalled() -> None:
    """8 s and 20 s after it was stopped the capture's own CPU time has moved, and nothing else."""
    polls = [*working(6), *[Poll(STOPPED)] * 3, *[Poll(LATER)] * 3, *dead(20, every=2)]
    said = watched(polls)

    assert stalls(said) is not None
    assert {each.cause for each in said} == {None}


@pytest.mark.parametrize(
    "frozen",
    [
        [Poll(STOPPED)] * 40,  # its CPU time was never seen to move
        [Poll(moved(STOPPED, **{CPU: -STOPPED.values[[key.name for key in STOPPED.layout.keys].index(CPU)]}))] * 40,
        [Poll(moved(STOPPED, vllm_num_requests_waiting=float(number % 2))) for number in range(40)],
    ],
)
def test_what_may_be_the_engine_itself_is_stalled(frozen: list[Poll]) -> None:
    assert stalls(watched(frozen)) == 60.0


def test_an_engine_without_cpu_time_is_stalled_where_no_cache_says_its_age() -> None:
    assert watched([Poll(BUSY_SGLANG)] * 20, "sglang")[-1].state is State.STALLED
    aged = watched([Poll(BUSY_SGLANG, age=POLL * number) for number in range(20)], "sglang")
    assert (aged[-1].state, aged[-1].cause) == (State.UNKNOWN, Cause.STALE)
    assert (
        aged[-1].reason == "http://e:1: it is a copy, made 95 s ago as its header Age says: is a cache in front of it?"
    )


def cached(lifetime: int, polls: int) -> list[Poll]:
    """A working engine, of which a cache keeps each answer for so many polls."""
    queued = moved(BEFORE, vllm_num_requests_waiting=5.0)
    fresh = working(polls, queued)
    return [*fresh[:2], *[fresh[number // lifetime * lifetime + 2] for number in range(polls - lifetime)]]


def test_a_cache_of_five_minutes_stays_one_although_it_fetches_anew() -> None:
    said = watched(cached(60, 200))

    assert stalls(said) is None
    assert {each.cause for each in said[14:]} == {Cause.STALE}


def test_figures_count_again_once_two_answers_differ() -> None:
    said = watched([*working(6), *[Poll(STOPPED)] * 30, *working(6, moved(STOPPED, **{CPU: 3.0}))])

    assert [each.cause for each in said[35:39]] == [Cause.STALE, Cause.STALE, None, None]
    assert said[-1].state is not State.STALLED


def test_of_a_cache_of_half_a_minute_a_queue_is_not_overdue_after_the_first_time() -> None:
    """What waits in a copy has not waited since: a second answer would show that it was let in."""
    said = watched(cached(6, 60))

    overdue = [any(each.series.metric is schema.FIRST_TOKENS_OVERDUE for each in one.points) for one in said]
    assert {each.cause for each in said} == {None}
    assert any(overdue[:12])
    assert not any(overdue[12:])


def test_a_header_of_an_old_answer_is_refused_by_a_poll() -> None:
    body = b'vllm:num_requests_running{model_name="m"} 4\n'

    def answer(age: str) -> Callable[[EngineServer, socket.socket], None]:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nAge: {age}\r\nContent-Length: {len(body)}\r\n\r\n"
        return lambda _, connection: connection.sendall(head.encode() + body)

    async def collected(url: str) -> Snapshot:
        target = Target(name="t", endpoint=Endpoint(url=url), engine="vllm")
        collector = Collector(target, BUILT_IN["vllm"], timeout=30, label_limit=10)
        try:
            return await collector.collect()
        finally:
            await collector.close()

    for age, cause in [("59", None), ("60", Cause.STALE), ("-70", None), ("\u00b2", None), ("1e9", None)]:
        with EngineServer({"/metrics": answer(age)}) as server:
            snapshot = asyncio.run(collected(server.url))
        assert (snapshot.health.error and snapshot.health.error.cause) is cause, age
        assert bool(snapshot.points) is (cause is None)


# Counters that stand while clients are answered ----------------------------------------------------------------------
def beside(polls: Sequence[Poll], firsts: float, ended: float, silence: float = 0.0) -> list[Poll]:
    """Polls at each of which a proxy has seen so many more first tokens and ends of requests."""
    return [
        each._replace(firsts=firsts * number, ended=ended * number, silence=silence)
        for number, each in enumerate(polls)
    ]


STANDING: Final = [*working(6), *dead(30)]
"""The server answers and spends CPU time, but what the engine counts stands still."""


def test_counters_that_stand_while_a_proxy_sees_answers_are_not_those_of_now() -> None:
    said = watched(beside(STANDING, 2.0, 2.0))

    assert stalls(said) is None
    assert (said[-1].state, said[-1].cause) == (State.UNKNOWN, Cause.STALE)
    assert said[-1].reason == (
        "http://e:1: its counters have stood still for 2 min, and meanwhile its proxy has counted 56 first tokens and "
        "56 whole answers"
    )


@pytest.mark.parametrize(
    ("firsts", "ended", "silence"),
    [
        (0.0, 0.0, 0.0),  # nobody asks
        (2.0, 2.0, 60.0),  # no client has got a byte for a minute: what came was of before
        (0.0, 0.02, 0.0),  # a single end: its client reads slowly
    ],
)
def test_a_proxy_that_sees_no_answers_hides_no_stall(firsts: float, ended: float, silence: float) -> None:
    alone, both = watched(STANDING), watched(beside(STANDING, firsts, ended, silence))

    assert stalls(both) == stalls(alone) == 90.0


def test_what_was_under_way_when_the_engine_stopped_is_no_sign_of_work() -> None:
    """Ten seconds of answers that it had given before."""
    came = [min(number, 7) for number in range(len(STANDING))]
    polls = [each._replace(firsts=2.0 * n, ended=2.0 * n) for n, each in zip(came, STANDING, strict=True)]

    assert stalls(watched(polls)) == 90.0


def test_values_are_compared_not_bodies() -> None:
    text = b'# HELP a b\nvllm:num_requests_running{model_name="m"} 4\nprocess_cpu_seconds_total %s\n'
    spelt = [Parser().parse(text % cpu) for cpu in (b"1.0", b"1.5", *[b"2.0", b"2"] * 20)]

    assert watched([Poll(each) for each in spelt])[-1].cause is Cause.STALE


@pytest.mark.parametrize(
    ("name", "upstream", "cause"),
    [
        ("t", None, Cause.STALE),
        ("t", "http://127.0.0.1:1", None),  # a balancer, for all that anybody knows
        ("other", None, None),
    ],
)
def test_only_a_proxy_before_the_very_engine_is_asked(
    monkeypatch: pytest.MonkeyPatch, name: str, upstream: str | None, cause: Cause | None
) -> None:
    for constant in ("copies.STALLED_SECONDS", "copies._UNDER_WAY", "stalls.STALLED_SECONDS"):
        monkeypatch.setattr(f"llm_headroom.derive.{constant}", 1e-9)  # at once
    seen: list[Point] = []

    async def polled(url: str) -> list[Snapshot]:
        target = Target(name="t", endpoint=Endpoint(url=url), engine="vllm")
        proxies = (ProxySettings(listen="127.0.0.1:1", target=name, upstream=upstream),)
        config = Config(targets=(target,), proxies=proxies, host=False)
        source = EngineSource(target, BUILT_IN, config, proxied=lambda: seen)
        try:
            found = []
            for firsts in (0.0, 1.0):
                seen[:] = proxied(Poll(STOPPED, firsts=firsts))
                found.append(await source.collect())
            return found
        finally:
            await source.close()

    body = (CAPTURES / f"{STALL}/engine_stopped_t8.prom").read_bytes()
    with EngineServer({"/metrics": Reply(body)}) as server:
        first, second = asyncio.run(polled(server.url))
    assert first.health.error is None
    assert (second.health.error and second.health.error.cause) is cause
