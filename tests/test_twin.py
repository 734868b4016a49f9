"""The twin: requests replayed by what a step costs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_headroom.derive.step_cost import StepCost
from llm_headroom.derive.traffic import Call
from llm_headroom.derive.twin import COMPUTE, CONCURRENCY, KV_CACHE, Engine, replay

COST = StepCost(step=0.02, token=1e-4, sequence=1e-4, context=0.0, pair=0.0)
LARGE = Engine(cost=COST, capacity=1e6)


def test_a_lone_request_takes_its_prefill() -> None:
    # 0.02 s + 1,000 tokens of 1e-4 s
    calls = [Call(5.0, 1000, 0, 10)]
    assert replay(calls, LARGE, first=0.121, between=1.0).slow_firsts == 0
    assert replay(calls, LARGE, first=0.119, between=1.0).slow_firsts == 1


def test_cached_prompt_tokens_are_not_computed() -> None:
    calls = [Call(5.0, 1000, 900, 10)]  # 0.02 s + 100 tokens of 1e-4 s
    assert replay(calls, LARGE, first=0.031, between=1.0).slow_firsts == 0


def test_a_long_prompt_is_computed_in_chunks() -> None:
    # three steps of 4,096, 4,096 and 1,808 tokens
    calls = [Call(0.0, 10_000, 0, 1)]
    assert replay(calls, LARGE, first=1.061, between=1.0).slow_firsts == 0
    assert replay(calls, LARGE, first=1.059, between=1.0).slow_firsts == 1


def test_tokens_are_as_many_as_the_answers_have_beyond_the_first() -> None:
    calls = [Call(0.0, 100, 0, 11), Call(0.5, 100, 0, 21), Call(9.0, 100, 0, 1)]
    outcome = replay(calls, LARGE, first=1.0, between=0.05)
    assert outcome.firsts == 3
    assert outcome.tokens == 30
    assert outcome.slow_tokens == 0


def test_a_step_yields_several_tokens_with_speculation() -> None:
    calls = [Call(0.0, 100, 0, 31), Call(9.0, 100, 0, 1)]
    engine = Engine(cost=COST, capacity=1e6, per_step=3.0)
    assert replay(calls, engine, first=1.0, between=0.05).tokens == 10


def test_prompts_of_others_make_tokens_slow() -> None:
    calls = [Call(0.0, 10, 0, 200), *(Call(0.5 + i, 3000, 0, 1) for i in range(5))]
    outcome = replay(calls, LARGE, first=10.0, between=0.2)
    assert 1 <= outcome.slow_tokens <= 5  # each of five prompts holds up one token of the first request


def test_prefill_first_holds_tokens_up_for_longer() -> None:
    calls = [Call(0.0, 10, 0, 500), *(Call(0.5, 3000, 0, 1) for _ in range(8))]
    mixed = replay(calls, LARGE, first=10.0, between=0.5)
    paused = replay(calls, Engine(cost=COST, capacity=1e6, prefill_first=True), first=10.0, between=0.5)
    assert mixed.slow_tokens == 0
    assert paused.slow_tokens == 1


def test_the_running_limit_and_the_cache_are_told_apart() -> None:
    calls = [Call(0.0, 100, 0, 300) for _ in range(4)]
    limited = replay([*calls, Call(20.0, 1, 0, 1)], Engine(cost=COST, capacity=1e6, limit=2), first=30.0, between=1.0)
    assert max(limited.waits, key=lambda name: limited.waits[name]) == CONCURRENCY
    full = replay([*calls, Call(20.0, 1, 0, 1)], Engine(cost=COST, capacity=900.0), first=30.0, between=1.0)
    assert max(full.waits, key=lambda name: full.waits[name]) == KV_CACHE
    burst = replay([Call(0.0, 4000, 0, 1) for _ in range(9)], LARGE, first=30.0, between=1.0)
    assert max(burst.waits, key=lambda name: burst.waits[name]) == COMPUTE


def test_a_second_request_waits_for_the_first_where_one_may_run() -> None:
    """Each is prefilled in 0.03 s; the first one decodes 10 tokens of 0.0201 s."""
    calls = [Call(0.0, 100, 0, 11)] * 2
    engine = Engine(cost=COST, capacity=1e6, limit=1)
    outcome = replay(calls, engine, first=0.262, between=1.0)
    assert outcome.waits == pytest.approx({KV_CACHE: 0.0, COMPUTE: 0.06, CONCURRENCY: 0.231})
    assert (outcome.tokens, outcome.slow_firsts) == (20, 0)
    assert replay(calls, engine, first=0.260, between=1.0).slow_firsts == 1


def test_a_request_is_preempted_once_the_cache_is_full_and_computes_its_tokens_again() -> None:
    """After 100 steps of both 1,000 tokens are held; the other one's 100 last steps of 0.0201 s make room."""
    calls = [*[Call(0.0, 400, 0, 201)] * 2, Call(100.0, 1, 0, 1)]
    outcome = replay(calls, Engine(cost=COST, capacity=1000.0), first=200.0, between=1.0)
    prefilled = 2 * (0.02 + 800e-4) + (0.02 + 501e-4) + (0.02 + 1e-4)
    assert outcome.waits == pytest.approx({KV_CACHE: 100 * 0.0201, COMPUTE: prefilled, CONCURRENCY: 0.0})
    assert outcome.tokens == 399  # the first one after it is back comes with its prefill
    assert outcome.slow_firsts == 0


def test_steps_take_longer_as_the_context_grows() -> None:
    """From 1,000 to 3,000 tokens of 10 us each, on average 2,000."""
    calls = [Call(0.0, 1000, 0, 2001), Call(100.0, 1, 0, 1)]
    engine = Engine(cost=COST._replace(context=1e-5), capacity=1e6)
    assert replay(calls, engine, first=1.0, between=0.0402).slow_tokens == 0
    assert replay(calls, engine, first=1.0, between=0.0400).slow_tokens == 2000


def test_tokens_before_the_beginning_do_not_count() -> None:
    calls = [Call(0.0, 1000, 0, 1001), Call(10.0, 10, 0, 1), Call(100.0, 1, 0, 1)]
    whole, rest = (replay(calls, LARGE, first=1.0, between=1.0, since=since).tokens for since in (0.0, 10.5))
    assert whole == 1000
    assert rest == pytest.approx(1000 - (10.0 - 0.12) / 0.0201, abs=2)


def test_requests_before_the_beginning_do_not_count() -> None:
    calls = [Call(0.0, 100, 0, 1), Call(5.0, 100, 0, 1)]
    assert replay(calls, LARGE, first=1.0, between=1.0, since=4.0).firsts == 1


def test_what_never_comes_is_slow() -> None:
    calls = [Call(0.0, 4000, 0, 1) for _ in range(100)]  # 0.42 s each
    outcome = replay(calls, LARGE, first=2.0, between=1.0)
    assert outcome.firsts == 100
    assert 94 <= outcome.slow_firsts <= 96


def test_tokens_that_all_share_are_held_once() -> None:
    """Of 1,000 tokens 390 are the shared ones; both have 10 and 201 of their own."""
    calls = [*[Call(0.0, 400, 390, 201, 390)] * 2, Call(100.0, 1, 0, 1)]
    outcome = replay(calls, Engine(cost=COST, capacity=1000.0, shared=390.0), first=200.0, between=1.0)
    assert outcome.waits == pytest.approx(
        {KV_CACHE: 0.0, COMPUTE: 2 * (0.02 + 20e-4) + (0.02 + 1e-4), CONCURRENCY: 0.0}
    )
    assert outcome.tokens == 400


def test_shared_tokens_are_there_still_after_a_preemption() -> None:
    """After 125 steps of both 450 of their own are held; the other one's 75 last steps of 0.0201 s make room."""
    calls = [*[Call(0.0, 490, 390, 201, 390)] * 2, Call(100.0, 1, 0, 1)]
    outcome = replay(calls, Engine(cost=COST, capacity=840.0, shared=390.0), first=200.0, between=1.0)
    prefilled = 2 * (0.02 + 200e-4) + (0.02 + 226e-4) + (0.02 + 1e-4)
    assert outcome.waits == pytest.approx({KV_CACHE: 75 * 0.0201, COMPUTE: prefilled, CONCURRENCY: 0.0})
    assert outcome.tokens == 399


def test_steps_take_as_long_as_what_is_held() -> None:
    """Two of 1,000 to 3,000 tokens of their own and 5,000 together: from 7,000 to 11,000 of 1 us each, as seen."""
    calls = [*[Call(0.0, 6000, 5000, 2001, 5000)] * 2, Call(100.0, 1, 0, 1)]
    engine = Engine(cost=COST._replace(context=1e-6), capacity=1e6, shared=5000.0)
    assert replay(calls, engine, first=1.0, between=0.0293).slow_tokens == 0
    assert replay(calls, engine, first=1.0, between=0.0291).slow_tokens == 4000


CALLS = st.lists(
    st.tuples(st.floats(0.0, 3.0), st.integers(1, 3000), st.floats(0.0, 1.0), st.integers(1, 600), st.floats(0.0, 1.0)),
    max_size=40,
)


@settings(deadline=None)
@given(drawn=CALLS, capacity=st.floats(500.0, 20_000.0), limit=st.integers(1, 50), prefill_first=st.booleans())
def test_every_request_is_counted_at_most_once_and_with_patience_exactly_once(
    drawn: list[tuple[float, int, float, int, float]], capacity: float, limit: int, *, prefill_first: bool
) -> None:
    calls, at = [], 0.0
    for gap, prompt, cached, answer, shared in drawn:
        at += gap
        found = int(cached * (prompt - 1))
        calls.append(Call(at, prompt, found, answer, int(shared * found)))
    engine = Engine(cost=COST, capacity=capacity, limit=limit, prefill_first=prefill_first)
    outcome = replay(calls, engine, first=1e5, between=0.05)
    assert outcome.firsts == len(calls)
    assert outcome.slow_firsts == 0
    hasty = replay(calls, engine, first=0.5, between=0.05)
    assert hasty.slow_firsts <= hasty.firsts <= len(calls)
    assert all(seconds >= 0 for seconds in outcome.waits.values())
