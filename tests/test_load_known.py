"""What is known of an engine for its load headroom: when it is enough, how long it lasts, and what the twin is like."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from llm_headroom import schema
from llm_headroom.derive import capacity
from llm_headroom.derive.capacity import Estimate, Headroom, Known, Missing, Target, begun, saturation, targets
from llm_headroom.derive.interval import Interval
from llm_headroom.derive.observation import Observation
from llm_headroom.derive.slo import Objective, Tally
from llm_headroom.derive.step_cost import Learner, StepCost
from llm_headroom.derive.traffic import Lengths, Sizes, Traffic
from llm_headroom.derive.trial import factor
from llm_headroom.model import Histogram

if TYPE_CHECKING:
    from collections.abc import Mapping

COST = StepCost(step=0.02, token=1e-4, sequence=1e-4, context=2e-8, pair=1e-9)
SIZES = Sizes(prompt=1000.0, answer=50.0, cached=0.5, per_step=1.5)
NONE = Histogram((1.0, math.inf), (0.0, 0.0), 0.0)
LAST = Observation(
    running=4.0, waiting=30.0, finished=0.0, generation_tokens=0.0, prompt_tokens=0.0, capacity=8000.0, used=100.0,
    ttft=NONE, inter_token=NONE,
)  # fmt: skip
MINUTE = Interval(
    seconds=60.0, arrivals=6.0, finished=6.0, firsts=6.0, prompt=6000.0, generated=300.0, admitted=6.0, tokens=294.0
)


def known(**changes: Any) -> Known:  # noqa: ANN401 - fields of several types
    """An engine that has been seen for fifteen busy minutes, with an estimate of its headroom."""
    traffic = Traffic(intervals=(MINUTE,) * 15, generated=300.0, answered=6.0, alike=900.0, busy=900.0, quiet=0.0)
    before = Known(begun=0.0, at=1000.0, last=LAST, engine="vllm", traffic=traffic, learner=Learner(cost=COST))
    return replace(before.with_estimate(estimate()), **changes)


def estimate(ratio: float = 2.0, at: float = 1000.0) -> Estimate:
    return Estimate(at=at, headroom={"ttft": Headroom(ratio, "compute")}, rate=0.1, since=100.0)


def last(**changes: Any) -> Observation:  # noqa: ANN401 - fields of several types
    return replace(LAST, **changes)


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({}, None),
        ({"last": last(capacity=None)}, Missing.CAPACITY),
        ({"last": last(capacity=0.0)}, Missing.CAPACITY),
        ({"last": last(ttft=None)}, Missing.LATENCIES),
        ({"last": last(inter_token=None)}, Missing.LATENCIES),
        ({"last": last(running=None)}, Missing.REQUESTS),
        ({"last": last(finished=None)}, Missing.REQUESTS),
        ({"last": last(generation_tokens=None)}, Missing.REQUESTS),
        ({"traffic": replace(known().traffic, busy=599.0)}, Missing.BUSY),
        ({"traffic": replace(known().traffic, busy=600.0)}, None),
        ({"traffic": replace(known().traffic, generated=0.0)}, Missing.TRAFFIC),
        ({"learner": Learner()}, Missing.DECODING),
        ({"estimate": None}, Missing.PENDING),
        ({"at": 1900.0}, None),
        ({"at": 1901.0}, Missing.PENDING),
    ],
)
def test_why_there_is_no_load_headroom(changes: Mapping[str, Any], missing: Missing | None) -> None:
    found = known(**changes)
    assert found.missing is missing
    assert bool(found.headroom) == bool(list(capacity.points(found, {}))) == (missing is None)
    assert found.due == (missing is Missing.PENDING or found.at == 1900.0)


@pytest.mark.parametrize(("age", "due"), [(0.0, False), (59.0, False), (60.0, True)])
def test_the_next_estimate_is_due_after_a_minute(age: float, *, due: bool) -> None:
    found = known(at=1000.0 + age, traffic=replace(known().traffic, alike=900.0 + age))
    assert found.due is due
    assert not found.of_other_mix


@pytest.mark.parametrize(("alike", "other"), [(901.0, False), (896.5, False), (895.0, True), (5.0, True)])
def test_an_estimate_is_due_at_once_for_another_mix_of_requests(alike: float, *, other: bool) -> None:
    found = known(at=1001.0, traffic=replace(known().traffic, alike=alike))
    assert (found.of_other_mix, found.due) == (other, other)
    assert not replace(found, estimate=None).of_other_mix
    lacking = replace(found, last=last(capacity=None))
    assert (lacking.of_other_mix, lacking.due) == (other, False)


@pytest.mark.parametrize(
    ("busy", "learner", "enough"),
    [
        (240.0, Learner(cost=COST, inherited=True, predicted=1.0, seen=1.1), True),
        (239.0, Learner(cost=COST, inherited=True, predicted=1.0, seen=1.1), False),
        (240.0, Learner(cost=COST, inherited=False, predicted=1.0, seen=1.1), False),
        (240.0, Learner(cost=COST, inherited=True), False),  # nothing of its own yet
        (240.0, Learner(cost=COST, inherited=True, predicted=1.0, seen=1.2), False),  # it predicts badly
    ],
)
def test_an_inherited_cost_that_predicts_well_needs_fewer_busy_minutes(
    busy: float, learner: Learner, *, enough: bool
) -> None:
    found = known(learner=learner, traffic=replace(known().traffic, busy=busy))
    assert (found.missing is not Missing.BUSY) is enough


@pytest.mark.parametrize(
    ("predicted", "seen", "suspect"),
    [(1.0, 1.149, False), (1.0, 1.151, True), (1.149, 1.0, False), (1.151, 1.0, True), (0.0, 1.0, False)],
)
def test_a_figure_is_suspect_beyond_fifteen_percent(predicted: float, seen: float, *, suspect: bool) -> None:
    assert known(learner=Learner(cost=COST, predicted=predicted, seen=seen)).suspect is suspect


@pytest.mark.parametrize(
    ("seconds", "taken", "traffic"), [(4.4, False, 15), (4.5, True, 15), (300.0, True, 11), (301.0, True, 0)]
)
def test_polls_that_are_close_are_one_and_a_long_gap_begins_anew(seconds: float, traffic: int, *, taken: bool) -> None:
    before = known()
    full = replace(before, traffic=replace(before.traffic, waited=Lengths((1.0,), (3.0,))))
    found = full.after(last(finished=5.0), 1000.0 + seconds, 2)
    assert (found is not full) is taken
    assert len(found.traffic.intervals) == traffic + (taken and seconds == 4.5)
    assert bool(found.traffic.waited.counts) is (traffic > 0)
    if taken:
        assert (found.at, found.last) == (1000.0 + seconds, last(finished=5.0))
    assert found.traffic.busy == pytest.approx(900.0 + seconds * (seconds == 4.5))


def test_what_a_step_costs_is_learned_where_the_size_of_the_cache_is_known() -> None:
    def polled(**changes: Any) -> Known:  # noqa: ANN401 - fields of several types
        found = begun(last(**changes), 0.0, "vllm")
        for poll in range(1, 8):
            tokens = Histogram((1.0, math.inf), (100.0 * poll,) * 2, 2.0 * poll)
            found = found.after(last(inter_token=tokens, **changes), 5.0 * poll)
        return found

    assert polled().learner.cost is not None
    assert polled(capacity=None).learner == Learner()
    assert polled(capacity=None).at == 35.0


def test_estimates_are_smoothed_over_two_minutes() -> None:
    found = known().with_estimate(estimate(8.0, at=1120.0))
    fade = math.exp(-1.0)
    assert found.smoothed["ttft"] == pytest.approx((math.log(2.0) * fade + math.log(8.0), fade + 1.0))
    assert found.headroom["ttft"] == pytest.approx((2.0 ** ((3.0 + fade) / (fade + 1.0)), "compute"))
    other = found.with_estimate(Estimate(at=1120.0, headroom={"itl": Headroom(4.0, "kv_cache")}, rate=0.1, since=100.0))
    assert list(other.headroom) == ["itl"]
    assert other.headroom["itl"] == pytest.approx((4.0, "kv_cache"))


@pytest.mark.parametrize(("alike", "smoothed"), [(30.0, False), (179.0, False), (180.0, True), (900.0, True)])
def test_an_estimate_of_another_mix_of_requests_is_not_smoothed_with_those_before(
    alike: float, *, smoothed: bool
) -> None:
    before = known()
    changed = replace(before, at=1060.0, traffic=replace(before.traffic, alike=alike))
    found = changed.with_estimate(estimate(8.0, at=1060.0))
    assert (found.headroom["ttft"].ratio < 7.0) is smoothed
    assert smoothed or found.headroom["ttft"].ratio == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("engine", "limit", "replicas", "tokens"),
    [
        ("vllm", None, 1, 8000.0),
        ("vllm", 8.0, 2, 4000.0),
        ("ollama", None, 2, 4000.0),
        ("ollama", 8.0, 2, 4.0 * 131_072.0),
        ("llamacpp", 1.0, 1, 131_072.0),
    ],
)
def test_the_capacity_is_that_of_a_replica(engine: str, limit: float | None, replicas: int, tokens: float) -> None:
    assert known(engine=engine, last=last(limit=limit), replicas=replicas).capacity == tokens


def twin_of(*intervals: Interval, engine: str = "vllm", **changes: Any) -> Any:  # noqa: ANN401 - a twin's engine
    found = known(engine=engine, traffic=replace(known().traffic, intervals=intervals), **changes)
    return found.twin(SIZES)


def test_the_twin_is_like_the_engine() -> None:
    found = twin_of(MINUTE)
    assert (found.cost, found.capacity, found.ceiling, found.limit) == (COST, 8000.0, 1.0, math.inf)
    assert (found.per_step, found.prefill_first) == (1.5, False)
    reserving = twin_of(MINUTE, engine="sglang")
    assert (reserving.ceiling, reserving.prefill_first) == (0.9, True)
    assert twin_of(MINUTE, learner=Learner()) is None
    assert twin_of(MINUTE, last=last(capacity=None)) is None
    assert twin_of(MINUTE, last=last(limit=64.0), replicas=4).limit == 16.0
    assert twin_of().limit == math.inf
    sharing = known().twin(replace(SIZES, shared=0.5))
    assert sharing is not None
    assert sharing.shared == 0.5 * SIZES.prompt


def full(running: float, before: float, after: float, held: float = 0.0) -> Interval:
    return replace(MINUTE, running=running, waiting=(before, after), held=(held, held / 2.0))


@pytest.mark.parametrize(
    ("intervals", "limit"),
    [
        ([full(16.0, 1.0, 1.0)] * 3, 16.0),
        ([full(16.0, 1.0, 1.0)] * 2, math.inf),
        ([full(15.0, 1.0, 1.0)] * 3, math.inf),
        ([full(16.0, 1.0, 1.0)] * 2 + [full(16.0, 0.0, 1.0)] * 9, math.inf),
        ([full(16.0, 1.0, 1.0)] * 3 + [full(17.0, 0.0, 0.0)], math.inf),
        ([full(9.0, 1.0, 1.0)] * 9 + [full(32.0, 1.0, 1.0)] * 3, 32.0),
    ],
)
def test_the_limit_is_where_requests_were_seen_to_wait(intervals: list[Interval], limit: float) -> None:
    assert twin_of(*intervals).limit == limit


@pytest.mark.parametrize(
    ("intervals", "ceiling"),
    [
        ([full(4.0, 1.0, 1.0, held=6000.0)] * 6, 0.75),
        ([full(4.0, 1.0, 1.0, held=6000.0)] * 5, 0.9),
        ([full(4.0, 1.0, 0.0, held=6000.0)] * 6, 0.9),
        ([full(4.0, 1.0, 1.0, held=4800.0)] * 6, 0.6),
        ([full(4.0, 1.0, 1.0, held=4799.0)] * 6, 0.9),
        ([full(4.0, 1.0, 1.0, held=9000.0)] * 6, 1.0),
        ([full(4.0, 1.0, 1.0, held=5000.0)] * 5 + [full(4.0, 1.0, 1.0, held=7000.0)] * 6, 0.875),
        ([full(9.7, 1.0, 1.0, held=6000.0)] * 6, 0.9),  # as many run as may
        ([full(9.6, 1.0, 1.0, held=6000.0)] * 6, 0.75),
    ],
)
def test_an_engine_that_reserves_admits_up_to_where_requests_waited(intervals: list[Interval], ceiling: float) -> None:
    assert twin_of(*intervals, engine="sglang", last=last(limit=10.0)).ceiling == ceiling


@pytest.mark.parametrize(
    ("changes", "heir"),
    [
        ({}, True),
        ({"traffic": replace(known().traffic, busy=599.0)}, False),
        ({"traffic": replace(known().traffic, busy=600.0)}, True),
        ({"learner": Learner()}, False),
        ({"engine": "sglang"}, False),
        ({"last": last(limit=8.0)}, False),
        ({"last": last(capacity=None)}, False),
        ({"last": last(capacity=8150.0)}, True),
        ({"last": last(capacity=8170.0)}, False),
        ({"last": last(capacity=7850.0)}, True),
        ({"last": last(capacity=7830.0)}, False),
    ],
)
def test_a_new_engine_is_the_heir_of_one_of_its_kind(changes: Mapping[str, Any], *, heir: bool) -> None:
    new = begun(LAST, 0.0, "vllm")
    found = new.heir_of([known(**changes)])
    assert (found is not new) is heir
    assert found.learner.inherited is heir
    assert replace(new, last=last(capacity=None)).heir_of([known()]).learner == Learner()


def test_of_two_elders_the_one_that_was_busy_longer_is_the_parent() -> None:
    cheap = replace(known(), learner=Learner(cost=StepCost(*(0.5 * each for each in COST))))
    longer = replace(known(), traffic=replace(known().traffic, busy=1000.0))
    for kin in ([cheap, longer], [longer, cheap]):
        assert begun(LAST, 0.0, "vllm").heir_of(kin).learner.cost == COST


@pytest.mark.parametrize(("busy", "inherited", "new"), [(59.0, False, True), (60.0, False, False), (59.0, True, False)])
def test_an_engine_is_new_for_a_busy_minute(busy: float, *, inherited: bool, new: bool) -> None:
    traffic = replace(known().traffic, busy=busy)
    assert known(traffic=traffic, learner=Learner(inherited=inherited)).new is new


def test_the_next_life_of_an_engine_has_its_cost_and_nothing_else() -> None:
    taught = replace(known(), learner=Learner(cost=COST, recent=(MINUTE,), seen=3.0))
    assert begun(LAST, 7.0, "vllm", taught) == Known(
        begun=7.0, at=7.0, last=LAST, engine="vllm", learner=Learner(cost=COST, seen=3.0)
    )
    assert begun(LAST, 7.0, "vllm").learner == Learner()


def test_there_is_a_headroom_for_objectives_of_tokens_at_the_bound_that_counts() -> None:
    seconds = {"ttft": 2.0, "inter_token": 0.2, "duration": 30.0}
    objectives = [Objective(field, field, bound, 0.75) for field, bound in seconds.items()]
    tallies = {"ttft": Tally(boundary=2.5), "inter_token": Tally(), "duration": Tally(boundary=30.0)}
    assert targets(objectives, tallies) == [
        Target("ttft", "ttft", 2.5, 0.25),
        Target("inter_token", "inter_token", 0.2, 0.25),
    ]


def test_saturation_is_load_over_what_fits() -> None:
    quiet = known(last=last(waiting=0.0))
    assert saturation(quiet) == pytest.approx(0.5)
    assert saturation(known(last=last(waiting=None))) == pytest.approx(0.5)
    assert saturation(known()) == pytest.approx((0.1 + 30.0 / 300.0) / 0.2)
    assert saturation(known(replicas=2)) == pytest.approx((0.2 + 30.0 / 300.0) / 0.4)
    assert saturation(known(last=last(waiting=1e6))) == 2.0
    calm, busy = replace(MINUTE, arrivals=0.0), replace(MINUTE, arrivals=60.0)
    more = replace(known().traffic, intervals=(*(MINUTE,) * 14, busy))
    assert saturation(known(traffic=more, last=last(waiting=0.0))) == pytest.approx(2.0 * 0.28 / (2.0 * 0.16))
    fewer = replace(known().traffic, intervals=(*(MINUTE,) * 10, *(calm,) * 5))
    assert saturation(known(traffic=fewer, last=last(waiting=0.0))) == 0.0
    only = Estimate(at=1000.0, headroom={"itl": Headroom(2.0, "compute")}, rate=0.1, since=100.0)
    assert saturation(replace(known(smoothed={}), estimate=None).with_estimate(only)) is None


def test_what_is_exposed_of_the_load_headroom() -> None:
    found = {
        (each.series.metric, each.series.label("objective"), each.series.label("resource")): each.value
        for each in capacity.points(known(last=last(waiting=0.0), replicas=2), {"model": "m"})
    }
    assert found == pytest.approx(
        {
            (schema.LOAD_HEADROOM, "ttft", ""): 2.0,
            (schema.SUSTAINABLE_REQUESTS, "ttft", ""): 0.4,
            (schema.LOAD_HEADROOM_BINDING, "ttft", "kv_cache"): 0.0,
            (schema.LOAD_HEADROOM_BINDING, "ttft", "compute"): 1.0,
            (schema.LOAD_HEADROOM_BINDING, "ttft", "concurrency"): 0.0,
            (schema.LOAD_HEADROOM_SUSPECT, "", ""): 0.0,
            (schema.SATURATION, "", "max"): 0.5,
        }
    )


@pytest.mark.parametrize(
    ("true", "guess", "asked"),
    [
        (2.05, 2.0, [2.0, 2.119]),
        (1.9, 2.0, [2.0, 1.888]),
        (3.0, 2.0, [2.0, 2.119, 2.378, 2.997, 4.757, 3.775, 3.364, 3.175]),
        (0.01, 1.0, [1.0, 0.944, 0.841, 0.667, 0.42, 0.167, 0.125]),
        (99.0, 8.0, [8.0, 8.476, 9.514, 11.986, 16.0]),
        (0.125, 0.01, [0.125, 0.132]),
        (16.5, 99.0, [16.0]),
    ],
)
def test_a_threshold_is_looked_for_in_steps_that_grow_and_then_halves(
    true: float, guess: float, asked: list[float]
) -> None:
    seen: list[float] = []

    def excess(times: float) -> bool:
        seen.append(times)
        return times > true

    factor(excess, guess)
    assert seen == pytest.approx(asked, abs=1e-3)


@pytest.mark.parametrize(
    ("engine", "changes", "kept"),
    [
        ("vllm", {}, True),
        ("vllm", {"capacity": 8150.0}, True),  # what a start finds free differs by as much
        ("vllm", {"capacity": 8170.0}, False),
        ("vllm", {"capacity": 2000.0}, False),
        ("vllm", {"capacity": None}, True),  # not read yet
        ("vllm", {"limit": 8.0}, True),
        ("llamacpp", {"limit": 4.0}, True),
        ("llamacpp", {"limit": 8.0}, False),
    ],
)
def test_what_a_step_costs_outlives_a_restart_with_a_kv_cache_of_the_same_size(
    engine: str, changes: dict[str, float | None], *, kept: bool
) -> None:
    before = known(engine=engine, last=last(limit=4.0))
    after = begun(last(**{"limit": 4.0, **changes}), 2000.0, engine, before)
    assert after.learner.cost == (COST if kept else None)
