"""How many times its traffic an engine can take: learned from polls, on simulated engines whose limit is known."""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.replay import points as read
from llm_headroom import schema
from llm_headroom.config.objectives import Objectives
from llm_headroom.derive import capacity, slo
from llm_headroom.derive.capacity import Estimate, Headroom, Missing, begun, saturation, targets
from llm_headroom.derive.memory import Memory, advance, with_estimate, with_kin
from llm_headroom.derive.observation import Observation, observe
from llm_headroom.derive.step_cost import StepCost
from llm_headroom.derive.traffic import Lengths
from llm_headroom.derive.trial import estimated, factor
from llm_headroom.model import Point, Series
from llm_headroom.scrape.load_estimates import FAILED_SECONDS, LoadEstimates
from llm_headroom.simulate.batching import Engine
from llm_headroom.simulate.engine_state import EngineConfig
from llm_headroom.simulate.hardware import A100_80GB, L4, LLAMA_3_8B, Gpu, Roofline
from llm_headroom.simulate.traffic import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_headroom.derive.capacity import Known
    from llm_headroom.model import Metric

LABELS = {"engine": "vllm", "target": "t", "model": "m"}
OBJECTIVES = slo.objectives(Objectives(ttft=2.5, inter_token_latency=5.0))
LIMIT = 2.05
"""Requests of 4,000 + 50 tokens per second at which 5 % of first tokens come after 2.5 s, by bisection."""
LIMIT_OF_THREE = 0.71
"""The same where three of them come at once."""


class Simulated:
    """A simulated engine under Poisson arrivals of constant sizes, so many `together`, polled every five seconds.

    The first `shared` tokens of all prompts are the same.
    """

    def __init__(  # noqa: PLR0913 - what tests vary, by name
        self,
        rate: float,
        *,
        prompt: int = 4000,
        answer: int = 50,
        gpu: Gpu = A100_80GB,
        blocks: int = 27_669,
        together: int = 1,
        shared: int = 0,
    ) -> None:
        self.engine = Engine(EngineConfig(Roofline(LLAMA_3_8B, gpu), total_blocks=blocks), seed=1)
        chance, at = random.Random(7), 0.0
        while (at := at + chance.expovariate(rate / together)) < 2000.0:
            for _ in range(together):
                prefix = (1,) if shared else ()
                self.engine.submit(Request(at, prompt, answer, prefix=prefix, prefix_block_tokens=shared))

    def poll(self) -> list[Point]:
        """What it says five seconds later."""
        self.engine.advance(self.engine.now + 5.0)
        return read(self.engine.read(), LABELS)


def polled(simulated: Simulated, seconds: int, memory: Memory | None = None) -> tuple[Memory, list[Point]]:
    memory, derived = memory or Memory(), list[Point]()
    for _ in range(0, seconds, 5):
        points = simulated.poll()
        memory, derived = advance(memory, points, simulated.engine.now, base=LABELS, objectives=OBJECTIVES)
    return memory, derived


@lru_cache
def learned(rate: float) -> Memory:
    """What is known after a quarter of an hour of so many requests per second."""
    return polled(Simulated(rate), 900)[0]


def estimate_of(memory: Memory) -> Estimate:
    known = memory.models["m"]
    found = estimated(known.load, targets(OBJECTIVES, known.tallies))
    assert found is not None
    return found


def values(derived: Sequence[Point], metric: Metric, label: str) -> dict[str, float]:
    return {
        series.label(label): value
        for series, value, _ in derived
        if series.metric is metric and isinstance(value, float)
    }


@pytest.mark.parametrize("load", [0.3, 0.6, 1.0])
def test_the_limit_is_found_from_a_share_of_it(load: float) -> None:
    found = estimate_of(learned(load * LIMIT))
    assert found.headroom["ttft"].ratio * load == pytest.approx(1.0, rel=0.25)
    assert found.headroom["ttft"].binding == "compute"
    assert found.rate == pytest.approx(load * LIMIT, rel=0.15)


@pytest.mark.parametrize("load", [0.8, 1.0])
def test_bursts_within_a_poll_are_known_by_what_first_tokens_waited(load: float) -> None:
    memory, _ = polled(Simulated(load * LIMIT_OF_THREE, together=3), 1200)
    model = memory.models["m"]
    found = estimate_of(memory).headroom["ttft"].ratio * load
    unseen = replace(model.load, traffic=replace(model.load.traffic, waited=Lengths()))
    without = estimated(unseen, targets(OBJECTIVES, model.tallies))
    assert without is not None
    assert found == pytest.approx(1.0, rel=0.25)
    assert abs(math.log(found)) < abs(math.log(without.headroom["ttft"].ratio * load))


@pytest.mark.parametrize("load", [0.3, 0.8])
def test_a_system_prompt_that_all_share_is_held_once(load: float) -> None:
    """With 1,696 of the 2,000 tokens of each prompt the cache has room for 40 requests instead of 8."""
    limit = 1.93  # per second, by bisection; the twin that holds them once for each says 0.45
    simulated = Simulated(limit * load, prompt=2000, answer=150, gpu=L4, blocks=1171, shared=1696)
    found = estimate_of(polled(simulated, 900)[0])
    assert found.headroom["ttft"].ratio * load == pytest.approx(1.0, abs=0.25)


def test_the_age_of_a_backlog_does_not_count_as_load() -> None:
    """An hour beyond the limit makes all first tokens slow, as twice the limit does."""
    model = learned(LIMIT).models["m"]
    waited = model.load.traffic.waited
    late = Lengths(waited.bounds, tuple(100.0 * (bound > 2.5) for bound in waited.bounds))
    found = estimated(
        replace(model.load, traffic=replace(model.load.traffic, waited=late)), targets(OBJECTIVES, model.tallies)
    )
    assert found is not None
    assert 0.75 < found.headroom["ttft"].ratio < 1.0


@pytest.mark.parametrize(
    ("counts", "ratio"),
    [
        ((100.0, 0.0, 0.0, 0.0), 1.64),  # nothing to compare: as the twin has it
        ((98.0, 2.0, 0.0, 0.0), 2.06),
        ((60.0, 40.0, 0.0, 0.0), 1.64),  # more than a third are no tail
        ((60.0, 28.0, 12.0, 0.0), 1.63),
        ((0.0, 50.0, 45.0, 5.0), 1.01),  # as many are slow as may be
    ],
)
def test_what_first_tokens_waited_corrects_the_twin(counts: tuple[float, ...], ratio: float) -> None:
    model = learned(0.7 * LIMIT).models["m"]
    waited = Lengths((0.5, 1.0, 2.5, 5.0), counts)
    known = replace(model.load, traffic=replace(model.load.traffic, waited=waited))
    found = estimated(known, targets(OBJECTIVES, model.tallies))
    assert found is not None
    assert found.headroom["ttft"].ratio == pytest.approx(ratio, rel=0.01)


@pytest.mark.parametrize("begins", [{}, {"alike": 16.0}, {"alike": 1.6}, {"alike": 0.125}])
def test_an_estimate_is_the_same_wherever_it_begins(begins: dict[str, float]) -> None:
    model = learned(0.7 * LIMIT).models["m"]
    wanted = targets(OBJECTIVES, model.tallies)
    last = Estimate(at=0.0, headroom={}, rate=1.0, since=0.0, factors={"ttft": begins})
    found = estimated(replace(model.load, estimate=last), wanted)
    assert found is not None
    assert found.headroom["ttft"].ratio == pytest.approx(1.6, rel=0.2)
    assert found.factors["ttft"] == {"alike": found.headroom["ttft"].ratio}
    assert found.factors["inter_token_latency"] == {"tokens": found.headroom["inter_token_latency"].ratio}


def test_a_dear_step_cost_cannot_say_less_than_half_of_what_was_served_while_requests_waited() -> None:
    memory = learned(2.0 * LIMIT)
    known = memory.models["m"].load
    assert known.learner.cost is not None
    wrong = StepCost(*(50.0 * each for each in known.learner.cost))
    found = estimated(
        replace(known, learner=replace(known.learner, cost=wrong)), targets(OBJECTIVES, memory.models["m"].tallies)
    )
    assert found is not None
    waiting = [each for each in known.traffic.intervals if min(each.waiting) > 0]
    served = sum(each.finished for each in waiting) / sum(each.seconds for each in waiting)
    assert 0.4 < served / known.traffic.rate < 0.7
    assert found.headroom["ttft"].ratio == pytest.approx(0.5 * served / known.traffic.rate)


def test_few_minutes_of_waiting_do_not_bound_what_fits() -> None:
    memory = learned(2.0 * LIMIT)
    known = memory.models["m"].load
    assert known.learner.cost is not None
    brief = tuple(
        replace(each, waiting=(0.0, 0.0)) if index < len(known.traffic.intervals) - 59 else each
        for index, each in enumerate(known.traffic.intervals)
    )
    wrong = StepCost(*(50.0 * each for each in known.learner.cost))
    found = estimated(
        replace(known, learner=replace(known.learner, cost=wrong), traffic=replace(known.traffic, intervals=brief)),
        targets(OBJECTIVES, memory.models["m"].tallies),
    )
    assert found is not None
    assert found.headroom["ttft"].ratio == capacity.LEAST


def test_what_is_exported_follows_from_the_estimate() -> None:
    simulated = Simulated(0.5 * LIMIT)
    memory, before = polled(simulated, 900)
    assert memory.models["m"].load.due
    assert memory.models["m"].load.missing is Missing.PENDING
    assert values(before, schema.LOAD_HEADROOM, "objective") == {}
    assert values(before, schema.SATURATION, "resource") == {}

    memory, derived = polled(simulated, 5, with_estimate(memory, "m", estimate_of(memory)))
    assert not memory.models["m"].load.due
    ratios = values(derived, schema.LOAD_HEADROOM, "objective")
    assert ratios["ttft"] == pytest.approx(2.0, rel=0.3)
    rate = memory.models["m"].load.traffic.rate
    assert values(derived, schema.SUSTAINABLE_REQUESTS, "objective")["ttft"] == pytest.approx(ratios["ttft"] * rate)
    binding = [point for point in derived if point.series.metric is schema.LOAD_HEADROOM_BINDING]
    bound = {(point.series.label("objective"), point.series.label("resource")) for point in binding if point.value}
    assert ("ttft", "compute") in bound
    assert len(bound) == 2
    assert len(binding) == 6
    assert values(derived, schema.LOAD_HEADROOM_SUSPECT, "model") == {"m": 0.0}
    assert values(derived, schema.SATURATION, "resource")["max"] == pytest.approx(1 / ratios["ttft"], rel=0.15)


def test_an_engine_that_makes_no_progress_has_no_headroom_until_it_goes_on() -> None:
    simulated = Simulated(0.5 * LIMIT)
    memory, _ = polled(simulated, 900)
    memory, _ = polled(simulated, 5, with_estimate(memory, "m", estimate_of(memory)))
    running = simulated.poll()
    seen = {}
    for seconds in (5.0, 60.0, 65.0, 70.0):
        points = simulated.poll() if seconds > 65.0 else running
        at = simulated.engine.now + seconds
        memory, derived = advance(memory, points, at, base=LABELS, objectives=OBJECTIVES)
        stalled = values(derived, schema.ENGINE_STALLED, "model")["m"]
        seen[seconds] = stalled, {point.series.metric for point in derived} >= capacity.FOLLOWING

    assert seen == {5.0: (0.0, True), 60.0: (0.0, True), 65.0: (1.0, False), 70.0: (0.0, True)}


def test_an_estimate_grows_stale_and_does_not_outlive_the_engine() -> None:
    simulated = Simulated(0.5 * LIMIT)
    memory, _ = polled(simulated, 900)
    estimate = estimate_of(memory)
    memory, derived = polled(simulated, 600, with_estimate(memory, "m", estimate))
    assert "ttft" in values(derived, schema.LOAD_HEADROOM, "objective")
    memory, derived = polled(simulated, 350, memory)
    assert values(derived, schema.LOAD_HEADROOM, "objective") == {}

    anew = Simulated(0.5 * LIMIT)
    anew.engine.advance(5.0)
    memory, derived = advance(memory, read(anew.engine.read(), LABELS), 2500.0, base=LABELS, objectives=OBJECTIVES)
    memory = with_estimate(memory, "m", estimate)
    assert memory.models["m"].load.estimate is None
    assert memory.models["m"].load.missing is Missing.BUSY
    assert memory.models["m"].load.learner.cost is not None  # what a step costs outlives a restart


def test_replicas_that_share_the_traffic_have_the_headroom_of_one() -> None:
    one = Simulated(0.5 * LIMIT)
    alone, shared = Memory(), Memory()
    for _ in range(0, 900, 5):
        points = one.poll()
        at = one.engine.now
        twins = [
            Point(Series(series.metric, {**dict(series.labels), "replica": replica}), value, origin)
            for replica in ("0", "1")
            for series, value, origin in points
        ]
        alone, _ = advance(alone, points, at, base=LABELS, objectives=OBJECTIVES)
        shared, _ = advance(shared, twins, at, base=LABELS, objectives=OBJECTIVES)
    first, second = estimate_of(alone), estimate_of(shared)
    assert second.headroom["ttft"].ratio == pytest.approx(first.headroom["ttft"].ratio, rel=0.25)
    assert second.rate == pytest.approx(2 * first.rate)


def test_estimates_are_made_in_a_thread_for_each_model_that_is_due_and_not_again_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    memory, now = learned(0.5 * LIMIT), 0.0
    estimates = LoadEstimates("t", OBJECTIVES, clock=lambda: now)

    def made() -> list[tuple[str, Estimate]]:
        return asyncio.run(estimates.made(memory))

    first = made()
    assert [model for model, _ in first] == ["m"]
    assert first[0][1].headroom["ttft"].ratio == pytest.approx(2.0, rel=0.3)
    now += capacity.ESTIMATE_SECONDS - 1.0
    assert made() == []
    monkeypatch.setattr("llm_headroom.scrape.load_estimates.estimated", None)  # it fails
    for later, failed in ((1e6, 1), (FAILED_SECONDS - 1.0, 1), (2.0, 2)):
        now += later
        assert made() == []
        assert [each.__dict__["model"] for each in caplog.records] == ["m"] * failed


def test_an_estimate_of_another_mix_is_made_at_once_and_rested_for_after_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, known = 0.0, learned(0.5 * LIMIT).models["m"]
    monkeypatch.setattr("llm_headroom.scrape.load_estimates.REST", 0.0)
    monkeypatch.setattr("llm_headroom.scrape.load_estimates.estimated", lambda load, _: settled_at(load))
    estimates = LoadEstimates("t", OBJECTIVES, clock=lambda: now)

    def settled_at(load: Known) -> Estimate:
        return Estimate(at=load.at, headroom={"ttft": Headroom(2.0, "compute")}, rate=1.0, since=load.since)

    def made(alike: float) -> bool:
        nonlocal known
        load = replace(known.load, at=1000.0 + now, traffic=replace(known.load.traffic, alike=alike))
        memory = Memory(models={"m": replace(known, load=load)})
        for model, estimate in asyncio.run(estimates.made(memory)):
            memory = with_estimate(memory, model, estimate)
        found, known = memory.models["m"].load.estimate is not known.load.estimate, memory.models["m"]
        return found

    assert made(900.0)
    now = 40.0
    assert not made(940.0)
    assert made(10.0), "the mix has changed"
    now = 50.0
    assert not made(20.0)
    assert not made(10.0), "it has again, but twenty seconds are owed"
    now = 99.0
    assert not made(59.0)
    now = 100.0
    assert made(60.0)
    now = 179.0
    assert not made(139.0), "a minute, and what was owed"
    now = 180.0
    assert made(140.0)
    now = 181.0
    assert made(10.0)


def test_a_new_engine_has_nothing_to_estimate() -> None:
    memory, _ = polled(Simulated(1.0), 60)
    assert asyncio.run(LoadEstimates("t", OBJECTIVES).made(memory)) == []


def complete() -> Observation:
    simulated = Simulated(1.0)
    return observe(simulated.poll())["m"]


@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        ("capacity", Missing.CAPACITY),
        ("ttft", Missing.LATENCIES),
        ("inter_token", Missing.LATENCIES),
        ("running", Missing.REQUESTS),
        ("finished", Missing.REQUESTS),
        ("limit", Missing.BUSY),
    ],
)
def test_what_is_missing_is_said(lost: str, reason: Missing) -> None:
    known = begun(replace(complete(), **{lost: None}), 0.0, "vllm")
    assert known.missing is reason
    assert not known.due
    assert list(capacity.points(known, LABELS)) == []


def test_an_idle_engine_and_one_that_does_not_decode_say_so() -> None:
    now = complete()
    idle = begun(now, 0.0, "vllm")
    for at in range(5, 1200, 5):
        idle = idle.after(now, float(at))
    assert idle.missing is Missing.BUSY
    assert estimated(idle, []) is None


def test_engines_with_slots_need_no_cache_but_their_number() -> None:
    now = replace(complete(), capacity=None, limit=4.0)
    assert begun(now, 0.0, "llamacpp").missing is Missing.BUSY
    assert begun(now, 0.0, "vllm").missing is Missing.CAPACITY
    assert begun(replace(now, limit=None), 0.0, "ollama").missing is Missing.SLOTS


def settled(ratio: float, waiting: float = 0.0) -> Known:
    known = learned(1.0).models["m"].load
    known = replace(known, last=replace(known.last, waiting=waiting))
    headroom = {"ttft": Headroom(ratio, "compute")}
    return known.with_estimate(Estimate(at=known.at, headroom=headroom, rate=known.traffic.rate, since=known.since))


@lru_cache
def level(ratio: float, waiting: float) -> float:
    found = saturation(settled(ratio, waiting))
    assert found is not None
    return found


def test_saturation_is_the_load_over_what_fits_with_the_queue_and_at_most_two() -> None:
    # about one request a second: 60 that wait are a fifth of the traffic of five minutes
    assert level(1.25, 0.0) == pytest.approx(0.8, rel=0.15)
    assert level(2.5, 0.0) == pytest.approx(level(1.25, 0.0) / 2.0)
    assert level(1.25, 60.0) == pytest.approx(0.8 * 1.2, rel=0.15)
    assert all(a < b for a, b in pairwise(level(1.25, waiting) for waiting in (0.0, 10.0, 100.0)))
    assert level(0.125, 1000.0) == 2.0


def test_saturation_falls_at_once_with_the_traffic_that_another_replica_takes() -> None:
    known = settled(1.25)
    before = saturation(known)
    half = tuple(replace(each, arrivals=each.arrivals / 2) for each in known.traffic.intervals[-60:])
    fewer = replace(known.traffic, intervals=(*known.traffic.intervals[:-60], *half))
    after = saturation(replace(known, traffic=fewer))
    assert before is not None
    assert after is not None
    assert after < 0.7 * before


def test_estimates_are_smoothed_over_minutes() -> None:
    known = settled(2.0)
    for minute in (1, 2, 3, 4, 5, 6, 7, 8):
        at = known.at + 60.0 * minute
        known = known.with_estimate(
            Estimate(at=at, headroom={"ttft": Headroom(4.0, "kv_cache")}, rate=1.0, since=known.since)
        )
        if minute == 1:
            assert 2.0 < known.headroom["ttft"].ratio < 3.5
    assert known.headroom["ttft"].ratio == pytest.approx(4.0, rel=0.05)
    assert known.headroom["ttft"].binding == "kv_cache"


@given(true=st.floats(0.13, 15.9), guess=st.floats(0.01, 100.0))
def test_a_threshold_is_found_from_any_guess(true: float, guess: float) -> None:
    asked: list[float] = []

    def excess(times: float) -> bool:
        asked.append(times)
        return times > true

    assert factor(excess, guess) == pytest.approx(true, rel=0.04)
    assert len(asked) < 20


def test_beyond_the_bounds_is_the_bound() -> None:
    assert factor(lambda _: False, 2.0) == 16.0
    assert factor(lambda _: True, 2.0) == 0.125
    assert math.isfinite(factor(lambda times: times > 1.0, 0.0))


def test_a_new_engine_inherits_the_step_cost_of_one_of_its_kind_and_has_a_figure_after_four_minutes() -> None:
    simulated = Simulated(0.6 * LIMIT)
    memory, _ = polled(simulated, 10)
    memory, _ = polled(simulated, 180, with_kin(memory, [learned(0.5 * LIMIT), memory]))
    assert memory.models["m"].load.missing is Missing.BUSY
    memory, _ = polled(simulated, 70, memory)
    assert memory.models["m"].load.due
    assert estimate_of(memory).headroom["ttft"].ratio * 0.6 == pytest.approx(1.0, rel=0.3)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: Simulated(0.1 * LIMIT, gpu=L4), id="slower, found by its own latencies"),
        pytest.param(lambda: Simulated(0.6 * LIMIT, blocks=20_000), id="another size of the KV cache"),
    ],
)
def test_what_another_kind_of_engine_has_learned_is_not_believed(other: Callable[[], Simulated]) -> None:
    simulated = other()
    memory, _ = polled(simulated, 10)
    memory, _ = polled(simulated, 400, with_kin(memory, [learned(0.5 * LIMIT)]))
    assert memory.models["m"].load.missing is Missing.BUSY
    memory, _ = polled(simulated, 250, memory)
    assert memory.models["m"].load.missing is Missing.PENDING


def test_an_engine_that_is_known_keeps_its_own_step_cost() -> None:
    memory, _ = polled(Simulated(0.5 * LIMIT), 120)
    assert with_kin(memory, [learned(0.5 * LIMIT)]) is memory
