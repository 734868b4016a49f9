"""Whether requests have become others: prompts, what is computed of them, answers; at both sides of each bound."""

from __future__ import annotations

import asyncio
import math
import random
from typing import Any

import pytest

from evaluate.replay import points as read
from llm_headroom.config.objectives import Objectives
from llm_headroom.derive import slo
from llm_headroom.derive.interval import Interval
from llm_headroom.derive.memory import Memory, advance, with_estimate
from llm_headroom.derive.observation import Observation
from llm_headroom.derive.traffic import Lengths, Traffic
from llm_headroom.scrape.load_estimates import LoadEstimates
from llm_headroom.simulate.batching import Engine
from llm_headroom.simulate.engine_state import EngineConfig
from llm_headroom.simulate.hardware import A100_80GB, LLAMA_3_8B, Roofline
from llm_headroom.simulate.traffic import Request

NOTHING = Observation()


def poll(requests: float = 2.0, prompt: float = 1000.0, answer: float = 0.0, cached: float = 0.0) -> Interval:
    """Five seconds in which so many requests came, had first tokens and ended; tokens are of each, `cached` a share."""
    return Interval(
        seconds=5.0, arrivals=requests, finished=requests, admitted=requests, firsts=requests,
        prompt=requests * prompt, cached=requests * prompt * cached, generated=requests * answer,
    )  # fmt: skip


def traffic(*intervals: Interval, alike: float | None = None, **more: Any) -> Traffic:  # noqa: ANN401 - its fields
    """The traffic after the last of some intervals."""
    *before, last = intervals
    seconds = sum(each.seconds for each in before) if alike is None else alike
    return Traffic(intervals=tuple(before), alike=seconds, **more).after(last, NOTHING, NOTHING)


OLD = (poll(),) * 54
"""Four and a half minutes of prompts of 1,000 tokens, two in five seconds; they may vary by as much."""


@pytest.mark.parametrize(
    ("intervals", "alike", "expected"),
    [
        ((*OLD, *(poll(2.0, 2740.0),) * 6), None, 30.0),  # 1,740 are 6.03 times 1,000 over the root of 12
        ((*OLD, *(poll(2.0, 2725.0),) * 6), None, 300.0),
        ((*OLD, *(poll(2.0, 9000.0),) * 6), 139.0, 144.0),  # the old ones were seen for too short a while
        ((*OLD, *(poll(2.0, 9000.0),) * 6), 145.0, 30.0),
        ((*OLD, *(poll(9.0, 9000.0),) * 2), None, 10.0),  # since when they are others
        ((*OLD[:48], *(poll(2.0, 5000.0),) * 12), None, 60.0),
        ((*OLD[:36], *(poll(2.0, 5000.0),) * 24), None, 120.0),
        ((*(poll(0.0),) * 34, *(poll(1.0),) * 10, *(poll(0.0),) * 10, *(poll(2.0, 9000.0),) * 6), None, 30.0),
        ((*(poll(0.0),) * 34, *(poll(0.9),) * 10, *(poll(0.0),) * 10, *(poll(2.0, 9000.0),) * 6), None, 300.0),
        ((*OLD[:30], *(poll(0.0),) * 24, *(poll(2.0, 9000.0),) * 5, poll(0.0)), None, 30.0),
        ((*OLD[:30], *(poll(0.0),) * 24, *(poll(1.9, 9000.0),) * 5, poll(0.0)), None, 300.0),
        ((*(poll(2.0, 0.0),) * 54, *(poll(2.0, 9000.0),) * 6), None, 300.0),  # of a length that is not known
        # of shorter prompts fewer are needed: sixty of 411 are as unlikely as those that lie 6 times away, 589 or not
        ((*(poll(10.0),) * 54, *(poll(10.0, 411.0),) * 6), None, 30.0),
        ((*(poll(10.0),) * 54, *(poll(10.0, 412.0),) * 6), None, 300.0),
        ((*OLD, *(poll(2.2, 1.0),) * 6), None, 30.0),  # a thousandth says no more than a tenth
        ((*OLD, *(poll(2.1, 1.0),) * 6), None, 300.0),
        # however sure, a little is no change
        ((*(poll(900.0),) * 54, *(poll(900.0, 1299.0),) * 6), None, 300.0),
        ((*(poll(900.0),) * 54, *(poll(900.0, 1301.0),) * 6), None, 30.0),
    ],
)
def test_another_mix_is_one_of_another_mean_prompt(
    intervals: tuple[Interval, ...], alike: float | None, expected: float
) -> None:
    assert traffic(*intervals, alike=alike).alike == expected


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (0.85, 0.0, 30.0),  # the cache was flushed
        (0.0, 0.85, 30.0),  # it is warm again
        (0.5, 0.4, 300.0),  # a factor of 1.2
        (0.5, 0.5, 300.0),
        (1.0, 0.0, 300.0),  # nothing was ever computed, as far as is told
    ],
)
def test_another_mix_is_one_of_which_another_part_is_cached(before: float, after: float, expected: float) -> None:
    intervals = (*(poll(20.0, cached=before),) * 54, *(poll(20.0, cached=after),) * 6)
    assert traffic(*intervals).alike == expected


def test_prompts_that_are_cached_whole_or_not_at_all_are_no_change() -> None:
    """A dozen of which none is cached, where a half was, lies 3.5 standard errors away; four dozen lie seven."""
    of_a_half = (poll(0.5, cached=0.5),) * 120
    lengths = Lengths((1000.0, 1001.0), (0.0, 1e9))
    assert traffic(*of_a_half, *(poll(0.5, cached=0.0),) * 24, prompts=lengths).alike == 720.0
    assert traffic(*of_a_half, *(poll(2.0, cached=0.0),) * 24, prompts=lengths).alike == 120.0


@pytest.mark.parametrize(
    ("requests", "answer", "expected"),
    [(2.0, 600.0, 30.0), (2.0, 300.0, 300.0), (10.0, 300.0, 30.0), (2.0, 20.0, 300.0), (50.0, 20.0, 30.0)],
)
def test_another_mix_is_one_of_another_mean_answer(requests: float, answer: float, expected: float) -> None:
    old, new = poll(requests, answer=100.0), poll(requests, answer=answer)
    assert traffic(*(old,) * 54, *(new,) * 6).alike == expected


@pytest.mark.parametrize(("polls", "expected"), [(47, 265.0), (48, 30.0)])
def test_answers_that_end_together_look_like_others_until_four_minutes_are_known(polls: int, expected: float) -> None:
    """A full engine whose requests began together ends few of them for half a minute."""
    usual, none_ends = poll(20.0, answer=100.0), Interval(seconds=5.0, admitted=2.0, generated=2000.0)
    assert traffic(*(usual,) * polls, *(none_ends,) * 6).alike == expected


def test_longer_answers_are_seen_before_one_of_them_has_ended() -> None:
    old = poll(10.0, answer=100.0)
    new = Interval(seconds=5.0, arrivals=10.0, firsts=10.0, prompt=1e4, admitted=5.0, generated=3000.0, running=50.0)
    found = traffic(*(old,) * 54, *(new,) * 6, generated=54e3, answered=540.0)
    assert (found.alike, found.generated / found.answered) == (30.0, 600.0)


def test_minutes_that_differ_anyway_are_no_change() -> None:
    minutes = [poll(20.0, length) for length in (500.0, 1500.0) * 3 for _ in range(12)]
    assert traffic(*minutes, *(poll(20.0, 3000.0),) * 6).alike == 390.0
    assert traffic(*minutes, *(poll(20.0, 6000.0),) * 6).alike == 30.0


def test_after_a_change_sizes_are_those_since_then() -> None:
    new = poll(2.0, 9000.0, answer=600.0)
    old = (poll(answer=100.0),) * 54
    histogram = Lengths((1.0, math.inf), (1.0, 1.0))
    found = traffic(*old, *(new,) * 6, generated=16e3, answered=160.0, prompts=histogram, waited=histogram)
    assert (found.generated, found.answered, found.alike, len(found.intervals)) == (7200.0, 12.0, 30.0, 60)
    assert found.prompts == found.answers == found.waited == Lengths()
    sizes = found.sizes()
    assert sizes is not None
    assert (sizes.prompt, sizes.answer) == (9000.0, 600.0)


def test_answers_that_seem_to_be_the_same_weigh_as_much_as_the_new_ones() -> None:
    found = traffic(*(poll(),) * 54, *(poll(2.0, 9000.0, answer=40.0),) * 6, generated=20e3, answered=200.0)
    assert found.alike == 30.0
    assert found.answered == pytest.approx(24.0, rel=0.1)
    assert 40.0 < found.generated / found.answered < 100.0


# On a simulated engine ------------------------------------------------------------------------------------------------
LABELS = {"engine": "vllm", "target": "t", "model": "m"}
OBJECTIVES = slo.objectives(Objectives(ttft=2.5, inter_token_latency=5.0))
CHANGED = 900.0
CACHED, WHOLE, SHORT, ANSWERS = (2000, 150, 1696), (2000, 150, 0), (500, 150, 0), (500, 900, 0)
"""Tokens of a prompt, of an answer, and of the prompt's beginning that all share."""


def engine(rate: float, before: tuple[int, int, int], after: tuple[int, int, int]) -> Engine:
    """An engine under Poisson arrivals, of another mix after a quarter of an hour."""
    found = Engine(EngineConfig(Roofline(LLAMA_3_8B, A100_80GB), total_blocks=27_669), seed=1)
    chance, at = random.Random(7), 0.0
    while (at := at + chance.expovariate(rate)) < CHANGED + 120.0:
        prompt, answer, shared = after if at > CHANGED else before
        found.submit(Request(at, prompt, answer, prefix=(1,) if shared else (), prefix_block_tokens=shared or 16))
    return found


async def said(simulated: Engine) -> tuple[float, float]:
    """The load headroom of first tokens at the change, and two minutes later, as the exporter estimates it."""
    estimates, memory = LoadEstimates("t", OBJECTIVES, clock=lambda: simulated.now), Memory()
    found = []
    for until in (CHANGED, CHANGED + 120.0):
        while simulated.now < until:
            simulated.advance(simulated.now + 5.0)
            points = read(simulated.read(), LABELS)
            memory, _ = advance(memory, points, simulated.now, base=LABELS, objectives=OBJECTIVES)
            if simulated.now > CHANGED - 100.0:
                for model, estimate in await estimates.made(memory):
                    memory = with_estimate(memory, model, estimate)
        found.append(memory.models["m"].load.headroom["ttft"].ratio)
    return found[0], found[1]


@pytest.mark.works(2.5)
@pytest.mark.parametrize(
    ("rate", "before", "after", "true"),
    [
        pytest.param(6.7, CACHED, WHOLE, 0.69, id="the prefix cache fails"),
        pytest.param(3.1, WHOLE, CACHED, 5.9, id="the prefix cache is warm again"),
        pytest.param(9.0, SHORT, WHOLE, 0.51, id="prompts grow"),
        pytest.param(5.2, SHORT, ANSWERS, 1.0, id="answers grow"),
    ],
)
def test_two_minutes_after_a_change_the_headroom_is_of_the_new_mix(
    rate: float, before: tuple[int, int, int], after: tuple[int, int, int], true: float
) -> None:
    first, then = asyncio.run(said(engine(rate, before, after)))
    assert abs(math.log(first / true)) > math.log(1.5), "or nothing has changed"
    assert then == pytest.approx(true, rel=0.35)
