"""The small parts of the derived signals, each on literals: growth, intervals, replicas, lives, models, money."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from llm_headroom import schema
from llm_headroom.config.objectives import Objectives
from llm_headroom.derive import economy, lives, replicas, residency, slo
from llm_headroom.derive.estimates import Mean
from llm_headroom.derive.figures import figures
from llm_headroom.derive.interval import Interval, between
from llm_headroom.derive.loaded import Instance, Loaded, loaded
from llm_headroom.derive.observation import Observation, growth, histogram_growth, observe
from llm_headroom.derive.restart import Between, Reading, begun, carried, restarted, since
from llm_headroom.derive.restart import between as readings_between
from llm_headroom.derive.words import span
from llm_headroom.model import Histogram, Kind, Point, Series, Subject

if TYPE_CHECKING:
    from llm_headroom.model import Metric

LARGEST = {
    "llm_engine_gpu_memory_reservation_ratio",
    "llm_engine_stalled",
    "llm_eviction_risk_ratio",
    "llm_forward_seconds",
    "llm_kv_cache_usage_peak_ratio",
    "llm_kv_saturation_risk_ratio",
    "llm_load_headroom_suspect",
    "llm_lora_adapter_active",
    "llm_lora_slots",
    "llm_lora_slots_used",
    "llm_model_asleep",
    "llm_pressure_ratio",
    "llm_proxy_first_token_wait_seconds",
    "llm_proxy_silence_seconds",
    "llm_queue_overflow_risk_ratio",
    "llm_saturation_high_water_ratio",
    "llm_saturation_ratio",
    "llm_spec_decode_acceptance_ratio",
    "llm_spill_risk_ratio",
}
"""Metrics of which the largest value of a target's replicas is the target's own."""
OWN = {
    "llm_cost_per_million_tokens",
    "llm_energy_per_token_joules",
    "llm_engine_cost_total",
    "llm_engine_energy_joules_total",
    "llm_engine_gpus",
    "llm_engine_info",
    "llm_engine_role",
    "llm_engine_start_time_seconds",
    "llm_engine_state",
    "llm_kv_cache_exhaustion_seconds",
    "llm_load_headroom_binding",
    "llm_load_headroom_ratio",
    "llm_model_context_tokens",
    "llm_model_expiry_timestamp_seconds",
    "llm_model_info",
    "llm_model_loaded",
    "llm_model_offload_ratio",
    "llm_model_parameters",
    "llm_model_trained_context_tokens",
    "llm_models_installed",
    "llm_models_installed_bytes",
    "llm_models_loaded",
    "llm_oom_risk_ratio",
    "llm_prefix_cache_hit_ratio",
    "llm_router_worker_circuit_state",
    "llm_router_worker_healthy",
    "llm_slo_objective_ratio",
    "llm_slo_threshold_seconds",
    "llm_ttft_slow_ratio",
}
"""Metrics whose replicas are alone where they differ: what is known of a model or an engine, quotients and times."""


def point(metric: Metric, value: float | Histogram, **labels: str) -> Point:
    return Point(Series(metric, labels), value, "test")


def histogram(*counts: float, total: float = 0.0, bounds: tuple[float, ...] = (1.0, math.inf)) -> Histogram:
    return Histogram(bounds, counts, total)


# Growth --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [(None, 5.0, 0.0), (5.0, None, 0.0), (5.0, 8.0, 3.0), (5.0, 5.0, 0.0), (5.0, 4.0, 4.0), (0.0, 4.0, 4.0)],
)
def test_what_a_counter_has_grown_by(before: float | None, now: float | None, expected: float) -> None:
    assert growth(before, now) == expected


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (None, histogram(1.0, 2.0), None),
        (histogram(1.0, 2.0), None, None),
        (histogram(1.0, 2.0), histogram(1.0, 2.0), None),
        (histogram(1.0, 2.0), histogram(2.0, 3.0, bounds=(2.0, math.inf)), None),
        (histogram(1.0, 2.0, total=3.0), histogram(1.0, 5.0, total=9.0), histogram(0.0, 3.0, total=6.0)),
        (histogram(3.0, 4.0, total=9.0), histogram(1.0, 5.0, total=2.0), histogram(1.0, 5.0, total=2.0)),
        (histogram(3.0, 4.0), histogram(0.0, 0.0), None),
    ],
)
def test_what_a_histogram_has_grown_by(
    before: Histogram | None, now: Histogram | None, expected: Histogram | None
) -> None:
    assert histogram_growth(before, now) == expected


def test_an_observation_is_of_a_model_whose_replicas_and_reasons_are_taken_together() -> None:
    points = [
        point(schema.REQUESTS_FINISHED, 3.0, model="a", reason="stop"),
        point(schema.REQUESTS_FINISHED, 4.0, model="a", reason="length"),
        point(schema.REQUESTS_RUNNING, 1.0, model="a", replica="0"),
        point(schema.REQUESTS_RUNNING, 2.0, model="a", replica="1"),
        point(schema.TIME_TO_FIRST_TOKEN, histogram(1.0, 2.0), model="b"),
        point(schema.GPU_TEMPERATURE, 50.0, model="c"),
    ]
    assert observe(points) == {
        "a": Observation(finished=7.0, running=3.0),
        "b": Observation(ttft=histogram(1.0, 2.0)),
    }


# Intervals -----------------------------------------------------------------------------------------------------------
def test_an_interval_has_what_grew_and_the_gauges_of_both_ends() -> None:
    none = histogram(0.0, 0.0)
    before = Observation(
        running=2.0, waiting=6.0, used=100.0, finished=10.0, prompt_tokens=0.0, cached_tokens=0.0,
        generation_tokens=0.0, preemptions=1.0, ttft=none, inter_token=none,
    )  # fmt: skip
    now = Observation(
        running=6.0, waiting=4.0, used=300.0, finished=18.0, prompt_tokens=800.0, cached_tokens=200.0,
        generation_tokens=400.0, preemptions=5.0, ttft=histogram(4.0, 8.0, total=2.0),
        inter_token=histogram(0.0, 40.0, total=20.0),
    )  # fmt: skip
    whole = Interval(
        seconds=10.0, replicas=1, arrivals=10.0, finished=8.0, admitted=10.0, firsts=8.0, first_seconds=2.0,
        prompt=800.0, cached=200.0, generated=400.0, tokens=40.0, token_seconds=20.0, preemptions=4.0, running=6.0,
        waiting=(6.0, 4.0), held=(100.0, 300.0),
    )  # fmt: skip
    assert between(before, now, 10.0) == whole
    assert (whole.computed, whole.decoding, whole.context, whole.busy) == (600.0, 2.0, 200.0, True)
    assert whole.pairs == 600.0 * (800.0 - 300.0) / 8.0
    half = between(before, now, 10.0, replicas=2)
    assert (half.replicas, half.seconds, half.arrivals, half.waiting, half.held) == (
        2, 10.0, 5.0, (3.0, 2.0), (50.0, 150.0),
    )  # fmt: skip
    assert between(before, replace(before, running=0.0, waiting=0.0), 5.0).arrivals == 0.0
    assert between(Observation(), Observation(), 5.0) == Interval(seconds=5.0)


@pytest.mark.parametrize(
    ("interval", "computed", "pairs", "busy"),
    [
        (Interval(seconds=5.0), 0.0, 0.0, False),
        (Interval(seconds=5.0, prompt=100.0, cached=200.0, firsts=1.0), 0.0, 0.0, True),
        (Interval(seconds=5.0, prompt=100.0), 100.0, 0.0, False),
        (Interval(seconds=5.0, tokens=1.0), 0.0, 0.0, True),
    ],
)
def test_an_interval_is_busy_with_tokens_or_first_ones(
    interval: Interval, computed: float, pairs: float, *, busy: bool
) -> None:
    assert (interval.computed, interval.pairs, interval.busy) == (computed, pairs, busy)


# Replicas ------------------------------------------------------------------------------------------------------------
def combined(
    metric: Metric, *values: float | Histogram, capacities: tuple[float, ...] = ()
) -> float | Histogram | None:
    points = [point(metric, value, replica=str(place)) for place, value in enumerate(values)]
    points += [point(schema.KV_CACHE_CAPACITY, size, replica=str(place)) for place, size in enumerate(capacities)]
    found = [each for each in replicas.combined(points) if each.series.metric is metric]
    assert all(each.series == Series(metric, {}) for each in found)
    return found[0].value if found else None


def test_each_metric_combines_over_replicas_in_its_own_way() -> None:
    assert combined(schema.REQUESTS_RUNNING, 2.0, 3.0) == 5.0
    assert combined(schema.REQUESTS_RUNNING, 2.0) == 2.0
    assert combined(schema.PROXY_SILENCE, 2.0, 9.0, 3.0) == 9.0
    assert combined(schema.KV_CACHE_USAGE, 0.2, 0.8, capacities=(300.0, 100.0)) == pytest.approx(0.35)
    assert combined(schema.KV_CACHE_USAGE, 0.2, 0.8) == 0.5
    assert combined(schema.KV_CACHE_USAGE, 0.2, 0.8, capacities=(300.0,)) == 0.5
    first, second = histogram(1.0, 2.0, total=3.0), histogram(4.0, 6.0, total=5.0)
    assert combined(schema.TIME_TO_FIRST_TOKEN, first, second) == histogram(5.0, 8.0, total=8.0)
    other = histogram(4.0, 6.0, bounds=(2.0, math.inf))
    assert combined(schema.TIME_TO_FIRST_TOKEN, first, other) is None
    alike = next(metric for metric in schema.ALL if metric.across.name not in {"SUM", "MAX", "CAPACITY_WEIGHTED"})
    assert (combined(alike, 4.0, 4.0), combined(alike, 4.0, 5.0)) == (4.0, None)


def test_what_each_metric_is_over_replicas() -> None:
    subjects = {Subject.ENGINE, Subject.DERIVED, Subject.PROXY, Subject.ROUTER}
    plain = [each for each in schema.ALL if each.subject in subjects and each.kind is not Kind.HISTOGRAM]
    weighted = {"llm_kv_cache_usage_ratio", "llm_kv_cache_headroom_ratio"}
    found = {
        each.name: combined(each, 1.0, 3.0, capacities=(3.0, 1.0) if each.name in weighted else ()) for each in plain
    }
    assert {name for name, value in found.items() if value == 1.5} == weighted
    assert {name for name, value in found.items() if value == 3.0} == LARGEST, "the worst one speaks for all"
    assert {name for name, value in found.items() if value is None} == OWN
    assert set(found.values()) == {1.5, 3.0, None, 4.0}, "and the others add up"


def test_points_of_no_replica_are_those_that_they_were() -> None:
    points = [point(schema.REQUESTS_RUNNING, 2.0, model="a"), point(schema.REQUESTS_WAITING, 2.0, model="a")]
    assert all(one is other for one, other in zip(replicas.combined(points), points, strict=True))
    more = [*points, point(schema.REQUESTS_WAITING, 3.0, model="b", replica="1")]
    found = list(replicas.combined(more))
    assert found[:2] == points
    assert found[2] == point(schema.REQUESTS_WAITING, 3.0, model="b")


# Lives ---------------------------------------------------------------------------------------------------------------
def test_a_counter_goes_on_over_lives_and_other_points_pass() -> None:
    gauge, counter = schema.REQUESTS_RUNNING, schema.REQUESTS_FINISHED
    totals: dict[Series, lives.Total] = {}
    sums = []
    for life, value in (("a", 5.0), ("a", 7.0), ("b", 2.0), ("b", 1.0), ("a", 3.0)):
        totals, points = lives.accumulated(totals, [(life, [point(counter, value), point(gauge, value)])])
        assert points[1] == point(gauge, value)
        sums.append(points[0].value)
    assert sums == [5.0, 7.0, 9.0, 10.0, 13.0]
    totals, points = lives.accumulated(totals, [])
    assert points == [Point(Series(counter, {}), 13.0, "runners that have ended")]
    _, points = lives.accumulated(totals, [("a", [point(counter, 4.0)]), ("b", [point(counter, 6.0)])])
    assert [each.value for each in points] == [14.0]


# Models in memory ----------------------------------------------------------------------------------------------------
def test_which_models_are_in_memory() -> None:
    points = [
        point(schema.MODEL_LOADED, 1.0, model="a"),
        point(schema.MODEL_LOADED, 0.0, model="b"),
        point(schema.MODEL_OFFLOAD, 0.5, model="b"),
        point(schema.MODEL_OFFLOAD, 0.7, model="c"),
        point(schema.MODEL_CONTEXT, 2048.0, model="a"),
        point(schema.ENGINE_START, 77.0, model="a"),
        point(schema.MODEL_CONTEXT, 1.0, model="d"),
    ]
    models = {"a": Instance(2048.0, 77.0, None), "c": Instance(None, None, 0.7)}
    assert loaded(points) == Loaded(models, ("a", "b", "c"), by_itself=False)
    assert loaded([*points, point(schema.MODELS_LOADED, 0.0)]).by_itself is True


@pytest.mark.parametrize(
    ("own", "other", "differs"),
    [
        (Instance(), Instance(1.0, 1.0, 1.0), False),
        (Instance(1.0), Instance(2.0), True),
        (Instance(1.0), Instance(1.0), False),
        (Instance(None, 1.0), Instance(2.0, 1.0), False),
        (Instance(2.0, 1.0), Instance(None, 1.0), False),
        (Instance(1.0, 10.0), Instance(1.0, 12.0), False),
        (Instance(1.0, 12.1), Instance(1.0, 10.0), True),
        (Instance(1.0, 10.0), Instance(1.0, 12.1), True),
        (Instance(1.0, 10.0), Instance(1.0, None), False),
        (Instance(1.0, 1.0, 0.5), Instance(1.0, 1.0, 0.9), False),
    ],
)
def test_two_loads_differ_by_their_context_or_their_start(own: Instance, other: Instance, *, differs: bool) -> None:
    assert own.differs(other) is differs
    assert Instance(None, 3.0, 0.0).known(Instance(4.0, 5.0, 6.0)) == Instance(4.0, 3.0, 0.0)


def polled(at: float, known: residency.Residency | None = None, **offload: float) -> residency.Residency:
    models = {name: Instance(offload=share) for name, share in offload.items()}
    found = residency.advance(known, Loaded(models, tuple(models), by_itself=True), at)
    assert found is not None
    return found


def test_models_that_give_way_are_counted_within_half_a_minute() -> None:
    known = polled(0.0, a=1.0)
    assert (known.gpu, known.since, known.loads) == (True, 0.0, {"a": residency.Loads(1, 0)})
    assert polled(0.0, a=0.0).gpu is False
    assert polled(0.0, known, b=1.0) is known, "no later than the one before"
    gone = polled(10.0, known)
    assert (gone.gone, gone.came, gone.evictions.above) == ((10.0,), (), 0.0)
    soon, late = polled(39.0, gone, b=0.9), polled(40.0, gone, b=0.9)
    assert (soon.gone, soon.came, late.gone, late.came) == ((), (), (), (40.0,))
    assert (soon.evictions.above, late.evictions.above) == (1.0, 0.0)
    assert soon.evictions.below == pytest.approx(10.0 * math.exp(-29.0 / 3600.0) + 29.0)
    assert soon.loads == {"a": residency.Loads(1, 0), "b": residency.Loads(1, 1)}
    two = polled(45.0, soon, c=1.0, d=1.0)
    assert (two.gone, two.came, two.evictions.above > 1.9) == ((), (45.0,), True)


def test_the_loads_of_200_models_are_remembered() -> None:
    known = polled(0.0)
    for number in range(201):
        known = polled(1.0 + number, known, **{f"m{number}": 1.0})
    assert (len(known.loads), "m0" in known.loads, "m1" in known.loads) == (200, False, True)


def test_the_risks_of_models_in_memory() -> None:
    def risks(known: residency.Residency) -> dict[tuple[str, str], float]:
        return {
            (each.series.metric.name, each.series.label("model")): float(each.value)  # type: ignore[arg-type]
            for each in residency.risks(known, {})
        }

    known = residency.Residency(
        at=600.0, since=0.0, gpu=True, offload={"a": 1.0, "b": 0.5, "c": None},
        loads={"a": residency.Loads(3, 1), "b": residency.Loads(1, 0)}, evictions=Mean(3600.0, 2.0, 600.0),
    )  # fmt: skip
    spill, eviction = "llm_spill_risk_ratio", "llm_eviction_risk_ratio"
    evicted = pytest.approx(1.0 - math.exp(-1.0))
    assert risks(known) == {
        (spill, "a"): 1.02 / 4, (spill, "b"): 1.0, (eviction, "a"): evicted, (eviction, "b"): evicted,
        (eviction, "c"): evicted,
    }  # fmt: skip
    assert set(risks(replace(known, gpu=False))) == {(eviction, "a"), (eviction, "b"), (eviction, "c")}
    assert set(risks(replace(known, at=599.0))) == {(spill, "a"), (spill, "b")}
    unseen = replace(known, loads={}, evictions=Mean(3600.0))
    assert (risks(unseen)[spill, "a"], risks(unseen)[eviction, "a"]) == (0.02, 0.0)


# Restarts ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("before", "now", "gap", "expected"),
    [
        (None, Reading(), True, Between()),
        (Reading(), Reading(), False, Between(lacks=True, born=True)),
        (Reading(), Reading(), True, Between(gap=True, lacks=True)),
        (Reading(started=10.0), Reading(started=11.0), False, Between(lacks=True, born=True)),
        (Reading(started=10.0), Reading(started=11.1), False, Between(started=True, lacks=True, born=True)),
        (Reading(started=10.0), Reading(), False, Between(lacks=True, born=True)),
        (Reading(), Reading(started=10.0), False, Between(lacks=True, born=True)),
        (Reading(version="1"), Reading(version="2"), True, Between(upgraded=True, gap=True, lacks=True)),
        (Reading(version="1"), Reading(version="2"), False, Between(lacks=True, born=True)),
        (Reading(version="1"), Reading(version="1"), True, Between(gap=True, lacks=True)),
        (Reading(version=""), Reading(version="2"), True, Between(gap=True, lacks=True)),
        (Reading(version="1"), Reading(version=""), True, Between(gap=True, lacks=True)),
        (Reading(frozenset("a")), Reading(frozenset("ab")), False, Between(lacks=True)),
        (Reading(frozenset("ab")), Reading(frozenset("a")), False, Between(born=True)),
    ],
)
def test_what_two_readings_say_of_the_time_between_them(
    before: Reading | None, now: Reading, expected: Between, *, gap: bool
) -> None:
    assert readings_between(before, now, gap=gap) == expected


COUNTS = Observation(finished=5.0, prompt_tokens=9.0, ttft=histogram(1.0, 2.0), cached_tokens=3.0)


@pytest.mark.parametrize(
    ("now", "time", "expected"),
    [
        (COUNTS, Between(), False),
        (COUNTS, Between(started=True), True),
        (COUNTS, Between(upgraded=True), True),
        (replace(COUNTS, finished=4.0), Between(), True),
        (replace(COUNTS, ttft=histogram(1.0, 1.0)), Between(), True),
        (replace(COUNTS, cached_tokens=1.0), Between(), False),  # some engines take these back
        (replace(COUNTS, finished=None), Between(lacks=True), False),
        (replace(COUNTS, finished=None), Between(lacks=True, gap=True), True),
        (replace(COUNTS, finished=None), Between(gap=True), False),
        (Observation(), Between(lacks=True), True),
        (Observation(), Between(), False),
    ],
)
def test_whether_an_engine_has_restarted(now: Observation, time: Between, *, expected: bool) -> None:
    assert restarted(COUNTS, now, time) is expected
    assert restarted(Observation(finished=0.0), Observation(), Between(lacks=True, gap=True)) is False


def test_counters_at_the_poll_before() -> None:
    zero = histogram(0.0, 0.0)
    now = Observation(finished=2.0, steps=4.0, ttft=histogram(1.0, 1.0))
    before = Observation(finished=5.0)
    assert begun(before, now, Between(), restart=False) is before
    born = Observation(finished=5.0, steps=0.0, ttft=zero)
    assert begun(before, now, Between(born=True), restart=False) == born
    assert begun(before, now, Between(), restart=True) == born
    anew = Observation(finished=0.0, steps=0.0, ttft=zero)
    assert begun(before, now, Between(started=True), restart=True) == anew
    other = Observation(prompt_tokens=7.0)
    assert begun(other, now, Between(), restart=True) == anew, "nothing is exposed at both ends"
    assert begun(before, before, Between(born=True), restart=False) is before


def test_counters_are_carried_over_polls_that_lack_them() -> None:
    now = Observation(finished=9.0, running=3.0)
    assert carried(COUNTS, now) == replace(COUNTS, finished=9.0, running=3.0)
    assert carried(now, COUNTS) is COUNTS
    last = Observation(running=1.0, finished=5.0)
    assert since(last, Observation(finished=5.0, steps=1.0), Observation(finished=5.0, steps=1.0)).steps is None
    assert since(last, Observation(finished=5.0), Observation(finished=5.0, steps=0.0)) == replace(last, steps=0.0)
    every = Observation(
        prompt_tokens=1.0, generation_tokens=1.0, finished=1.0, steps=1.0, cached_tokens=1.0, preemptions=1.0,
        ttft=histogram(1.0, 1.0), inter_token=histogram(1.0, 1.0), duration=histogram(1.0, 1.0),
        queue=histogram(1.0, 1.0), prompt_sizes=histogram(1.0, 1.0), generation_sizes=histogram(1.0, 1.0),
        missed_ttft=1.0, missed_duration=1.0,
    )  # fmt: skip
    assert since(last, every, Observation()) is last


# Objectives ----------------------------------------------------------------------------------------------------------
def test_objectives_have_their_usual_thresholds() -> None:
    usual = [("ttft", 2.5, 0.95), ("inter_token", 0.2, 0.95)]
    assert [(each.field, each.seconds, each.ratio) for each in slo.USUAL] == usual
    with_duration = slo.objectives(Objectives(request_duration=30.0))
    assert [(each.field, each.seconds, each.ratio) for each in with_duration] == [*usual, ("duration", 30.0, 0.95)]


def test_first_tokens_between_two_polls() -> None:
    objective = slo.Objective("ttft", "ttft", 1.0, 0.95)
    before, now = Observation(ttft=histogram(1.0, 2.0)), Observation(ttft=histogram(4.0, 9.0))
    known = (slo.Firsts(5.0, 10.0, 1.0),)
    assert slo.first_tokens((), objective, before, now, 7.0) == (slo.Firsts(7.0, 7.0, 4.0),)
    assert slo.first_tokens(known, objective, before, now, 7.0) == (*known, slo.Firsts(7.0, 17.0, 5.0))
    assert slo.first_tokens(known, objective, before, now, 5.9) == (slo.Firsts(5.0, 17.0, 5.0),)
    assert slo.first_tokens(known, objective, now, now, 7.0) is known
    beyond = slo.Objective("ttft", "ttft", 1.1, 0.95)
    assert slo.first_tokens(known, beyond, before, replace(now, missed_ttft=1.0), 7.0) is known


def test_a_first_token_that_nobody_got_counts_and_is_not_good() -> None:
    objective = slo.Objective("ttft", "ttft", 1.0, 0.95)
    before, now = (
        Observation(ttft=histogram(1.0, 2.0), duration=histogram(1.0, 2.0), missed_ttft=n) for n in (1.0, 4.0)
    )
    both = replace(now, ttft=histogram(2.0, 4.0))
    known = (slo.Firsts(5.0, 10.0, 1.0),)
    for later, total, good in ((now, 3.0, 0.0), (both, 5.0, 1.0)):
        assert slo.tallied(slo.Tally(), objective, before, later) == slo.Tally(total, good, 1.0)
        found = slo.first_tokens(known, objective, before, later, 7.0)
        assert found == (*known, slo.Firsts(7.0, 10.0 + total, 1.0 + total - good))
    duration = replace(objective, field="duration")
    assert slo.tallied(slo.Tally(), duration, before, now) == slo.Tally(0.0, 0.0, 1.0)
    late = [replace(each, missed_duration=n) for each, n in ((before, 1.0), (now, 4.0))]
    assert slo.tallied(slo.Tally(), duration, *late) == slo.Tally(3.0, 0.0, 1.0)


def test_a_window_has_just_the_first_tokens_of_its_polls_however_long_it_is_filled() -> None:
    objective = slo.Objective("ttft", "ttft", 1.0, 0.95)
    recent: tuple[slo.Firsts, ...] = ()
    polls = [(float(at), float(at % 7), float(at % 3 * (at % 7) // 2)) for at in range(2, 1000, 2)]
    good = total = 0.0
    for at, count, slow in polls:
        before = Observation(ttft=histogram(good, total))
        good, total = good + count - slow, total + count
        recent = slo.first_tokens(recent, objective, before, Observation(ttft=histogram(good, total)), at)
        for window in slo.WINDOWS:
            within = [each for each in polls if at - window < each[0] <= at]
            came = sum(each[1] for each in within)
            share = (sum(each[2] for each in within) / came, came) if came else None
            assert slo.slow_share(recent, window, at) == share, (at, window)
    assert len(recent) <= max(slo.WINDOWS) / 2.0 + 2


def test_the_share_of_slow_ones_is_of_those_in_the_window() -> None:
    recent = (slo.Firsts(0.0, 10.0, 10.0), slo.Firsts(40.0, 16.0, 13.0), slo.Firsts(60.0, 20.0, 14.0))
    assert slo.slow_share(recent, 60.0, 60.0) == (0.4, 10.0)
    assert slo.slow_share(recent, 60.0, 59.0) == (0.7, 20.0)
    assert slo.slow_share(recent, 60.0, 120.0) is None


def test_a_tally_is_of_one_bound() -> None:
    objective = slo.Objective("ttft", "ttft", 1.0, 0.95)
    before, now = (Observation(ttft=histogram(*counts)) for counts in ((1.0, 2.0), (4.0, 9.0)))
    known = slo.Tally(10.0, 9.0, 1.0)
    assert slo.tallied(known, objective, before, now) == slo.Tally(17.0, 12.0, 1.0)
    assert slo.tallied(known, replace(objective, seconds=0.9), before, now) == slo.Tally(17.0, 12.0, 1.0)
    for last in (None, Observation(), now):
        assert slo.tallied(known, objective, last, now) == known
    assert slo.tallied(known, objective, now, Observation()) is known
    assert slo.tallied(known, replace(objective, seconds=1.1), None, now) is known
    assert slo.tallied(replace(known, boundary=0.5), objective, before, now) == slo.Tally(7.0, 3.0, 1.0)


# Words and money -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5.0, "0 s"),
        (119.0, "119 s"),
        (120.0, "2 min"),
        (3600.0, "1 h"),
        (7199.0, "1 h 59 min"),
        (7200.0, "2 h"),
        (86_400.0, "24 h"),
        (172_800.0, "2 d"),
        (30 * 86_400.0, "30 d"),
    ],
)
def test_a_duration_in_words(seconds: float, words: str) -> None:
    assert span(seconds) == words


def test_a_ledger_pays_for_the_time_between_two_polls() -> None:
    held, price = economy.Gpus(2, {"x": (100.0, 0.5), "y": (50.0, 1.0)}), economy.Price(36.0, "EUR")
    tokens = [point(schema.GENERATION_TOKENS, 10.0)]
    first = economy.advance(None, tokens, held, price, 0.0)
    assert (first.cost, first.energy, first.at) == (0.0, None, 0.0)
    later = economy.Gpus(2, {"x": (140.0, 0.5), "z": (9.0, 1.0)})
    found = economy.advance(first, [point(schema.GENERATION_TOKENS, 30.0)], later, price, 120.0)
    assert (found.cost, found.energy, found.at) == (2.4, 20.0, 120.0)
    assert (found.cost_per_token.above, found.cost_per_token.below) == (2.4, 20.0)
    assert (found.energy_per_token.above, found.cost_per_token.seconds) == (20.0, 300.0)
    gap = economy.advance(first, tokens, later, price, 121.0)
    assert (gap.cost, gap.energy, gap.at, gap.counters) == (0.0, None, 121.0, later.energy)
    unseen = economy.advance(first, tokens, None, None, 120.0)
    assert (unseen.cost, unseen.energy, unseen.energy_per_token.above, unseen.counters) == (0.0, None, 0.0, {})
    again = economy.advance(found, [], later, price, 180.0)
    assert again.energy == 20.0
    assert again.cost == pytest.approx(3.6)
    assert again.cost_per_token.below == pytest.approx(20.0 * math.exp(-0.2))


@pytest.mark.parametrize(("tokens", "priced"), [(0.9, False), (1.0, True)])
def test_a_price_per_token_needs_a_token(tokens: float, *, priced: bool) -> None:
    mean = Mean(300.0, 0.5, tokens)
    known = economy.Ledger(
        at=0.0, tokens={}, counters={}, energy=7.0, cost=3.0, cost_per_token=mean, energy_per_token=mean
    )
    found = {
        each.series.metric: each.value
        for each in economy.points(known, economy.Gpus(3), economy.Price(1.0, "EUR"), {"target": "t"})
    }
    always = {schema.ENGINE_GPUS: 3.0, schema.ENGINE_COST: 3.0, schema.ENGINE_ENERGY: 7.0}
    each = {schema.COST_PER_MILLION_TOKENS: 0.5 / tokens * 1e6, schema.ENERGY_PER_TOKEN: 0.5 / tokens}
    assert found == always | (each if priced else {})


def test_a_device_that_nothing_is_held_on_is_paid_for_whole() -> None:
    empty = point(schema.GPU_MEMORY_ENGINE, 0.0, target="t", uuid="x")
    energy = point(schema.GPU_ENERGY, 5.0, uuid="x")
    assert economy.held_gpus([empty, energy]) == {"t": economy.Gpus(1, {}, 1.0)}


# Figures -------------------------------------------------------------------------------------------------------------
def test_the_figures_of_each_model() -> None:
    def of(model: str, metric: Metric, value: float | Histogram, **labels: str) -> Point:
        return point(metric, value, **{**({"model": model} if model else {}), **labels})

    found = figures(
        [
            of("a", schema.REQUESTS_RUNNING, 2.0, replica="0"),
            of("a", schema.REQUESTS_RUNNING, 3.0, replica="1"),
            of("a", schema.KV_CACHE_USAGE, 0.2, replica="0"),
            of("a", schema.KV_CACHE_USAGE, 0.1, replica="1"),
            of("a", schema.KV_CACHE_HEADROOM_REQUESTS, 7.0),
            of("a", schema.KV_CACHE_HEADROOM_REQUESTS, 8.0, replica="1"),
            of("a", schema.TIME_TO_FIRST_TOKEN, histogram(1.0, 6.0)),
            of("a", schema.REQUESTS_FAILED, 1.0, reason="error"),
            *(of("a", schema.REQUESTS_FAILED, 4.0, reason=reason) for reason in schema.NO_FAULT),
            of("a", schema.SLO_REQUESTS, 9.0, slo="ttft"),
            of("a", schema.SLO_REQUESTS, 5.0, slo="request_duration"),
            of("", schema.HTTP_RESPONSES, 5.0, code="2xx"),
            of("", schema.HTTP_RESPONSES, 2.0, code="5xx"),
            of("", schema.ROUTER_WORKER_HEALTHY, 1.0, worker="x"),
            of("", schema.ROUTER_WORKER_HEALTHY, 0.0, worker="y"),
            of("b", schema.MODEL_LOADED, 0.0),
            of("c", schema.MODEL_LOADED, 0.0),
            of("c", schema.REQUESTS_WAITING, 1.0),
            of("d", schema.GPU_TEMPERATURE, 50.0),
        ]
    )
    unnamed = {"unnamed_responses": 7.0, "unnamed_wrong": 2.0}
    whole = {"responses": 7.0, "wrong": 2.0, "healthy": 1.0, "workers": 2.0, **unnamed}
    own = {"running": 5.0, "usage": 0.2, "room": 7.0, "first": 6.0, "failed": 1.0, "firsts": 9.0}
    assert found == {"a": {**whole, **own}, "c": {**whole, "loaded": 0.0, "waiting": 1.0}}
    assert figures([of("", schema.HTTP_RESPONSES, 5.0, code="5xx")]) == {"": {"responses": 5.0, "wrong": 5.0}}
    assert figures([of("b", schema.MODEL_LOADED, 0.0)]) == {"": {}}
    assert figures([of("b", schema.MODEL_LOADED, 0.0), of("b", schema.REQUESTS_RUNNING, 1.0)]).keys() == {"b"}
