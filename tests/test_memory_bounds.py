"""What is remembered from poll to poll, and for how long: both sides of each bound, on timelines made of literals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from captures import value, values
from llm_headroom import schema
from llm_headroom.config.objectives import Objectives
from llm_headroom.derive import restart, slo
from llm_headroom.derive.capacity import Estimate, Headroom
from llm_headroom.derive.memory import MOST_MODELS, Memory, advance, with_estimate, with_kin
from llm_headroom.derive.step_cost import Learner, StepCost
from llm_headroom.derive.traffic import Traffic
from llm_headroom.model import Common, Histogram, Point
from timelines import BASE, point, polls, ttft

if TYPE_CHECKING:
    from llm_headroom.model import Metric

Poll = tuple[float, list[Point]]


def number(timeline: list[Poll], name: str) -> float | Histogram | None:
    return value(polls(timeline)[1], name)


# Usage ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("usage", "peak"),
    [
        ([(0.0, 0.9), (59.0, 0.1)], 0.9),
        ([(0.0, 0.9), (60.0, 0.1)], 0.1),
        ([(0.0, 0.9), (0.5, 0.1), (60.2, 0.2)], 0.2),  # two polls within a second are one
        ([(0.0, 0.1), (0.5, 0.9), (60.2, 0.2)], 0.9),
        ([(0.0, 0.9), (1.0, 0.1), (60.2, 0.2)], 0.2),
        ([(0.0, 0.9), (0.5, 0.9), (60.2, 0.2)], 0.9),  # of equal ones the later
        ([(0.0, 0.3), (0.0, 0.9)], 0.9),
    ],
)
def test_the_peak_of_a_minute(usage: list[tuple[float, float]], peak: float) -> None:
    timeline = [(at, [point(schema.KV_CACHE_USAGE, each)]) for at, each in usage]
    assert number(timeline, "llm_kv_cache_usage_peak_ratio") == peak


# Stalls --------------------------------------------------------------------------------------------------------------
def work(steps: float | None = None, running: float = 1.0, waiting: float = 0.0, **counters: float) -> list[Point]:
    metrics: dict[str, Metric] = {
        "generated": schema.GENERATION_TOKENS, "prompts": schema.PROMPT_TOKENS, "silence": schema.PROXY_SILENCE,
        "preemptions": schema.PREEMPTIONS,
    }  # fmt: skip
    points = [point(schema.REQUESTS_RUNNING, running), point(schema.REQUESTS_WAITING, waiting)]
    points += [] if steps is None else [point(schema.ENGINE_STEPS, steps)]
    return points + [point(metrics[name], amount) for name, amount in counters.items()]


@pytest.mark.parametrize(
    ("timeline", "stalled"),
    [
        ([(0.0, work(5.0)), (59.0, work(5.0))], 0.0),
        ([(0.0, work(5.0)), (60.0, work(5.0))], 1.0),
        ([(0.0, work(5.0)), (30.0, work(6.0)), (89.0, work(6.0))], 0.0),
        ([(0.0, work(5.0)), (30.0, work(6.0)), (90.0, work(6.0))], 1.0),
        ([(0.0, work(5.0, generated=1.0)), (60.0, work(5.0, generated=2.0))], 0.0),
        ([(0.0, work(5.0, prompts=1.0)), (60.0, work(5.0, prompts=2.0))], 0.0),
        ([(0.0, work(5.0, running=0.0)), (60.0, work(5.0, running=0.0))], 0.0),
        ([(0.0, work(5.0, running=0.0)), (60.0, work(5.0, running=0.0)), (61.0, work(5.0))], 0.0),
        ([(0.0, work(5.0, running=0.0, waiting=1.0)), (60.0, work(5.0, running=0.0, waiting=1.0))], 1.0),
        ([(0.0, work(generated=1.0, waiting=1.0)), (60.0, work(generated=1.0, waiting=1.0))], 1.0),
        ([(0.0, work(generated=1.0)), (60.0, work(generated=1.0))], 0.0),  # a gauge alone may be stale
        ([(0.0, work()), (60.0, work())], None),
        ([(0.0, work(silence=59.0))], 0.0),
        ([(0.0, work(silence=60.0))], 1.0),
    ],
)
def test_an_engine_stalls_after_a_minute_without_a_step(timeline: list[Poll], stalled: float | None) -> None:
    assert number(timeline, "llm_engine_stalled") == stalled


def replicas(*each: tuple[float, float]) -> list[Point]:
    """Replicas with a request each, by their steps and generated tokens."""
    return [
        point(metric, float(value), replica=str(number))
        for number, (steps, tokens) in enumerate(each)
        for metric, value in (
            (schema.REQUESTS_RUNNING, 1.0),
            (schema.ENGINE_STEPS, steps),
            (schema.GENERATION_TOKENS, tokens),
        )
    ]


@pytest.mark.parametrize(
    ("timeline", "stalled"),
    [
        ([(0.0, replicas((5, 5), (5, 5))), (60.0, replicas((6, 6), (5, 5)))], {"0": 0.0, "1": 1.0}),
        ([(0.0, replicas((5, 5), (5, 5))), (59.0, replicas((6, 6), (5, 5)))], {"0": 0.0, "1": 0.0}),
        ([(0.0, replicas((5, 5), (5, 5))), (60.0, replicas((5, 6), (6, 5)))], {"0": 0.0, "1": 0.0}),
        ([(0.0, replicas((5, 5), (5, 5))), (60.0, replicas((5, 5), (5, 5)))], {"0": 1.0, "1": 1.0}),
        ([(0.0, replicas((5, 5))), (60.0, replicas((5, 5)))], {"": 1.0}),  # alone it is the engine
    ],
)
def test_a_replica_that_stands_still_is_stalled_whatever_the_others_do(
    timeline: list[Poll], stalled: dict[str, float]
) -> None:
    assert values(polls(timeline)[1], "llm_engine_stalled", "replica") == stalled


# First tokens --------------------------------------------------------------------------------------------------------
def firsts(at: float, good: float, total: float) -> Poll:
    return at, [ttft(good, good, good, good, total)]


@pytest.mark.parametrize(
    ("timeline", "counted"),
    [
        ([firsts(0.0, 0, 0), firsts(30.0, 0, 4)], {"60s": 4.0, "300s": 4.0}),
        ([firsts(0.0, 0, 0), firsts(31.0, 0, 4)], {}),  # of a long gap nobody knows when they came
        ([firsts(0.0, 0, 0), firsts(5.0, 0, 4), firsts(64.0, 0, 4)], {"60s": 4.0, "300s": 4.0}),
        ([firsts(0.0, 0, 0), firsts(5.0, 0, 4), firsts(65.0, 0, 4)], {"300s": 4.0}),
        ([firsts(0.0, 0, 0), firsts(5.0, 0, 4), firsts(304.0, 0, 4)], {"300s": 4.0}),
        ([firsts(0.0, 0, 0), firsts(5.0, 0, 4), firsts(305.0, 0, 4)], {}),
        # within a second they are remembered as of the first moment, and together
        ([firsts(0.0, 0, 0), firsts(5.0, 0, 4), firsts(5.9, 0, 6), firsts(64.5, 0, 6)], {"60s": 6.0, "300s": 6.0}),
        ([firsts(0.0, 0, 0), firsts(5.0, 0, 4), firsts(5.9, 0, 6), firsts(65.5, 0, 6)], {"300s": 6.0}),
        ([firsts(0.0, 0, 0), firsts(5.0, 0, 4), firsts(6.0, 0, 6), firsts(65.5, 0, 6)], {"60s": 2.0, "300s": 6.0}),
    ],
)
def test_first_tokens_are_remembered_for_their_windows(timeline: list[Poll], counted: dict[str, float]) -> None:
    assert values(polls(timeline)[1], "llm_ttft_window_requests", "window") == counted


@pytest.mark.parametrize(
    ("good", "total", "late"),
    [(57.0, 60.0, True), (58.0, 61.0, False), (0.0, 3.0, True), (0.0, 2.0, False), (38.0, 40.0, False)],
)
def test_three_late_first_tokens_that_are_a_twentieth_are_trouble_now(good: float, total: float, *, late: bool) -> None:
    _, derived = polls([firsts(0.0, 0, 0), firsts(5.0, good, total)])
    assert (value(derived, "llm_saturation_high_water_ratio") == 0.95) is late
    _, batch = advance(polls([firsts(0.0, 0, 0)])[0], firsts(5.0, good, total)[1], 5.0, base=BASE, objectives=())
    assert value(batch, "llm_saturation_high_water_ratio") is None
    assert values(batch, "llm_ttft_slow_ratio", "window") == {}


@pytest.mark.parametrize(
    ("total", "overdue", "late"),
    [
        (0.0, {"ttft": 3.0}, True),
        (0.0, {"ttft": 2.0}, False),
        (57.0, {"ttft": 3.0}, True),
        (58.0, {"ttft": 3.0}, False),
    ],
)
def test_first_tokens_that_a_proxy_awaits_are_trouble_now(
    total: float, overdue: dict[str, float], *, late: bool
) -> None:
    first, second = firsts(0.0, 0, 0), firsts(5.0, total, total)
    awaited = [
        point(schema.PROXY_OVERDUE, number, slo=slo) for slo, number in {"request_duration": 9.0, **overdue}.items()
    ]

    _, derived = polls([first, (second[0], [*second[1], *awaited])])

    assert (value(derived, "llm_saturation_high_water_ratio") == 0.95) is late


@pytest.mark.parametrize(("missed", "late"), [(3.0, True), (2.0, False)])
def test_first_tokens_that_nobody_got_are_late_though_there_was_none(missed: float, *, late: bool) -> None:
    """As of a proxy whose first clients all give up: its counter and the histogram begin with them."""
    begun = [point(schema.REQUESTS_RUNNING, 1.0)]
    counted = [*firsts(5.0, 0, 0)[1], *begun, point(schema.PROXY_MISSED, missed, slo="ttft")]

    _, derived = polls([(0.0, begun), (5.0, counted)])

    assert values(derived, "llm_slo_requests_total", "slo") == {"ttft": missed}
    assert values(derived, "llm_slo_requests_good_total", "slo") == {"ttft": 0.0}
    assert values(derived, "llm_ttft_slow_ratio", "window") == {"60s": 1.0, "300s": 1.0}
    assert (value(derived, "llm_saturation_high_water_ratio") == 0.95) is late


def waits(at: float, waiting: float, first_tokens: float = 4.0) -> Poll:
    return at, [point(schema.REQUESTS_WAITING, waiting), *firsts(at, first_tokens, first_tokens)[1]]


@pytest.mark.parametrize(
    ("timeline", "overdue"),
    [
        ([waits(0.0, 0), waits(5.0, 4), waits(7.4, 4)], None),
        ([waits(0.0, 0), waits(5.0, 4), waits(7.5, 4)], 4.0),
        ([waits(0.0, 0), waits(5.0, 4), waits(7.5, 3)], 3.0),
        ([waits(0.0, 0), waits(5.0, 4), waits(10.0, 9), waits(12.5, 8)], 8.0),  # what came later is late now, too
        ([waits(0.0, 0), waits(5.0, 4), waits(10.0, 9, 5), waits(12.4, 9, 5)], 3.0),  # one got through, whoever it was
        ([waits(0.0, 0), waits(5.0, 4), waits(10.0, 9, 7), waits(12.4, 9, 7)], 1.0),
        ([waits(0.0, 0), waits(5.0, 4), waits(10.0, 9, 8), waits(12.4, 9, 8)], None),
        ([waits(0.0, 0), waits(5.0, 4), waits(10.0, 9, 8), waits(12.5, 7, 10)], 7.0),  # of the 9 of before
        ([waits(0.0, 0), waits(5.0, 9), waits(10.0, 9, 5), waits(10.5, 9, 7), waits(12.4, 9, 8)], 5.0),
        ([waits(0.0, 0), waits(5.0, 9), waits(10.0, 2, 5), waits(12.4, 9, 5)], 2.0),  # the others have left
        ([waits(0.0, 0), waits(5.0, 4), waits(10.0, 0), waits(12.4, 4)], None),
        ([waits(0.0, 0), waits(5.0, 4), waits(5.5, 2), waits(7.5, 4)], 2.0),  # within a second they are one poll
        ([waits(0.0, 0), waits(5.0, 4), waits(65.0, 4)], 4.0),  # counters do not lie over a gap
        ([waits(0.0, 0), waits(5.0, 4), waits(10.0, 4, 1)], None),  # it restarted
    ],
)
def test_what_waits_while_no_first_token_comes_is_overdue(timeline: list[Poll], overdue: float | None) -> None:
    _, derived = polls(timeline)
    assert value(derived, "llm_first_tokens_overdue") == overdue
    assert (value(derived, "llm_saturation_high_water_ratio") == 0.95) is ((overdue or 0.0) >= 3)


@pytest.mark.parametrize(("preempted", "overdue"), [(0.0, 3.0), (1.0, None)])
def test_those_that_were_preempted_wait_for_no_first_token(preempted: float, overdue: float | None) -> None:
    timeline = [waits(0.0, 0), waits(5.0, 4), waits(10.0, 9, 5), waits(12.4, 9, 5)]
    counts = [0.0, preempted, preempted, preempted]
    timeline = [
        (at, [*points, point(schema.PREEMPTIONS, count)]) for (at, points), count in zip(timeline, counts, strict=True)
    ]
    assert number(timeline, "llm_first_tokens_overdue") == overdue


def unmeasured(at: float, waiting: float, prompts: float, *more: Point) -> Poll:
    """Of an engine that does not measure first tokens, such as llama.cpp."""
    counts = ((schema.REQUESTS_WAITING, waiting), (schema.PROMPT_TOKENS, prompts), (schema.GENERATION_TOKENS, 9.0))
    return at, [*(point(metric, value) for metric, value in counts), *more]


@pytest.mark.parametrize(
    ("timeline", "overdue"),
    [
        ([unmeasured(0.0, 0, 7), unmeasured(5.0, 4, 7), unmeasured(7.4, 4, 7)], None),
        ([unmeasured(0.0, 0, 7), unmeasured(5.0, 4, 7), unmeasured(7.5, 3, 7)], 3.0),
        ([unmeasured(0.0, 0, 7), unmeasured(5.0, 4, 7), unmeasured(10.0, 4, 8)], None),  # one got its turn
        ([unmeasured(0.0, 0, 7), unmeasured(5.0, 4, 8), unmeasured(10.0, 4, 8), unmeasured(15.0, 0, 8)], None),
    ],
)
def test_where_first_tokens_are_not_measured_prompts_show_whether_one_gets_its_turn(
    timeline: list[Poll], overdue: float | None
) -> None:
    _, derived = polls(timeline)
    assert value(derived, "llm_first_tokens_overdue") == overdue
    assert value(derived, "llm_slo_requests_total") is None


def test_what_waits_for_no_token_is_not_overdue() -> None:
    """An engine that embeds gives none."""
    embeds = [(at, points[:2]) for at, points in (unmeasured(0.0, 4, 7), unmeasured(5.0, 4, 7), unmeasured(10.0, 4, 7))]

    assert number(embeds, "llm_first_tokens_overdue") is None


def test_where_a_proxy_counts_or_nobody_is_judged_the_engine_has_nothing_overdue() -> None:
    timeline = [waits(0.0, 0), waits(5.0, 4), waits(10.0, 4)]
    proxied = [(at, [*points, point(schema.PROXY_OVERDUE, 1.0, slo="ttft")]) for at, points in timeline]
    memory, batch = Memory(), list[Point]()
    for at, points in timeline:
        memory, batch = advance(memory, points, at, base=BASE, objectives=())

    assert number(proxied, "llm_first_tokens_overdue") is None
    assert value(batch, "llm_first_tokens_overdue") is None


@pytest.mark.parametrize(("seconds", "risk"), [(59.0, 0.95), (60.0, None)])
def test_a_preemption_counts_for_a_minute(seconds: float, risk: float | None) -> None:
    timeline = [(0.0, work(preemptions=1.0)), (5.0, work(preemptions=2.0)), (5.0 + seconds, work(preemptions=2.0))]
    assert number(timeline, "llm_kv_saturation_risk_ratio") == risk
    assert number(timeline[:1], "llm_kv_saturation_risk_ratio") is None


# Models --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("away", "total"), [(599.0, 6.0), (600.0, 0.0)])
def test_a_model_that_was_away_for_ten_minutes_starts_again(away: float, total: float) -> None:
    timeline = [firsts(0.0, 4, 4), (5.0, []), firsts(away, 10, 10)]
    assert values(polls(timeline)[1], "llm_slo_requests_total", "slo") == {"ttft": total}


def test_of_models_that_are_away_those_seen_last_are_remembered() -> None:
    memory = Memory()
    for at in range(MOST_MODELS + 2):
        memory, _ = advance(memory, [point(schema.REQUESTS_RUNNING, 1.0, model=f"m{at}")], float(at), base=BASE)
    assert len(memory.models) == MOST_MODELS + 1
    assert "m0" not in memory.models
    assert "m1" in memory.models


@pytest.mark.parametrize("base", [BASE, Common(BASE)])
def test_labels_of_the_target_are_those_of_what_is_derived(base: dict[str, str]) -> None:
    _, derived = advance(Memory(), [point(schema.REQUESTS_RUNNING, 1.0)], 0.0, base=base)
    assert {(each.series.label("target"), each.series.label("model")) for each in derived} == {("t", "m")}


def test_a_poll_that_is_not_later_changes_nothing() -> None:
    memory, _ = polls([firsts(0.0, 0, 0), firsts(5.0, 3, 3)])
    for at in (5.0, 4.0, -1.0):
        again, derived = advance(memory, firsts(at, 9, 9)[1], at, base=BASE)
        assert again.models == memory.models
        assert values(derived, "llm_slo_requests_total", "slo") == {"ttft": 3.0}


def test_a_model_that_appears_has_begun_unless_another_one_went() -> None:
    reading = restart.Reading(sources=frozenset({"metrics"}))

    def named(model: str, count: float) -> list[Point]:
        return [point(schema.TIME_TO_FIRST_TOKEN, Histogram((2.5, math.inf), (count, count), 1.0), model=model)]

    def counted(*timeline: list[Point]) -> dict[str, float]:
        memory, derived = Memory(), list[Point]()
        for at, points in enumerate(timeline):
            memory, derived = advance(memory, points, 5.0 * at, base=BASE, objectives=slo.USUAL[:1], reading=reading)
        return {
            each.series.label("model"): float(each.value)  # type: ignore[arg-type]
            for each in derived
            if each.series.metric is schema.SLO_REQUESTS
        }

    assert counted(named("a", 4.0), [*named("a", 4.0), *named("b", 3.0)]) == {"a": 0.0, "b": 3.0}
    assert counted(named("a", 4.0), named("b", 7.0)) == {"b": 0.0}
    assert counted(named("a", 4.0), [], named("b", 7.0)) == {"b": 0.0}
    both = [*named("a", 4.0), *named("b", 3.0)]
    assert counted(named("x", 1.0), both, [*both, *named("c", 2.0)])["c"] == 2.0, "x went a poll earlier"


@pytest.mark.parametrize("seconds", [1.0, 2.5])
def test_objectives_with_other_bounds_begin_anew(seconds: float) -> None:
    """Of first tokens as they come, all by 2.5 s and none by 1 s, after two minutes of an objective of 2.5 s."""

    def judged(memory: Memory, at: float, limit: float) -> tuple[Memory, list[Point]]:
        points = [*work(running=1.0), ttft(0.0, 0.0, at, at, at)]
        return advance(memory, points, at, base=BASE, objectives=slo.objectives(Objectives(ttft=limit)))

    memory, _ = judged(Memory(), 0.0, 2.5)
    for at in range(5, 125, 5):
        memory, before = judged(memory, float(at), 2.5)
    estimate = Estimate(at=120.0, headroom={"ttft": Headroom(2.0, "compute")}, rate=1.0, since=0.0)
    memory = with_estimate(memory, "m", estimate)
    memory, at_once = judged(memory, 125.0, seconds)
    memory, later = judged(memory, 130.0, seconds)
    same = seconds == 2.5

    assert values(before, "llm_slo_requests_total", "slo")["ttft"] == 120
    assert values(at_once, "llm_slo_requests_total", "slo")["ttft"] == (125 if same else 5)
    assert values(later, "llm_slo_requests_total", "slo")["ttft"] == (130 if same else 10)
    assert values(later, "llm_slo_requests_good_total", "slo")["ttft"] == 130 * same
    assert values(later, "llm_slo_threshold_seconds", "slo")["ttft"] == seconds
    assert values(later, "llm_ttft_slow_ratio", "window")["60s"] == 0.0 if same else 1.0
    assert values(later, "llm_ttft_window_requests", "window")["60s"] == (60 if same else 10)
    assert (memory.models["m"].load.estimate is None) is not same


# Load headroom -------------------------------------------------------------------------------------------------------
def test_an_estimate_is_of_the_life_in_which_it_began() -> None:
    memory, _ = polls([(10.0, work()), (15.0, work())])
    estimate = Estimate(at=10.0, headroom={"ttft": Headroom(2.0, "compute")}, rate=1.0, since=0.0)
    assert with_estimate(memory, "m", estimate).models["m"].load.estimate == estimate
    assert with_estimate(memory, "m", replace(estimate, at=9.9)) is memory
    assert with_estimate(memory, "other", estimate) is memory


def test_new_models_inherit_from_the_same_model_elsewhere() -> None:
    capacity = point(schema.KV_CACHE_CAPACITY, 1000.0)
    young, _ = polls([(0.0, [capacity])])
    learner = Learner(cost=StepCost(0.02, 1e-4, 1e-4, 0.0, 0.0))
    (name, known), *_ = young.models.items()
    elder = replace(known, load=replace(known.load, learner=learner, traffic=Traffic(busy=700.0)))
    assert with_kin(young, [Memory({name: elder})]).models[name].load.learner.cost == learner.cost
    assert with_kin(young, [Memory({"other": elder})]).models[name].load.learner == Learner()
    grown = Memory({name: elder})
    assert with_kin(grown, [Memory({name: elder})]) is grown
    assert with_kin(Memory(), [grown]) == Memory()
