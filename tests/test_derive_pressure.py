"""Pressure on resources, high-water risk, throughput, and models that come and go, on timelines made of literals."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import pytest

from captures import value, values
from llm_headroom import schema
from llm_headroom.derive.memory import Memory, advance
from llm_headroom.model import Histogram, Point, Series
from timelines import BASE, BOUNDS, point, polls, steadily, traffic

if TYPE_CHECKING:
    from collections.abc import Sequence

POOL = {schema.KV_CACHE_CAPACITY, schema.KV_CACHE_USED}


def number(points: list[Point], metric: str) -> float:
    """The value of a metric with one series that is no histogram."""
    found = value(points, metric)
    assert isinstance(found, float)
    return found


def pools(at: int, *used: float) -> list[Point]:
    """Steady traffic over replicas of 10,000 tokens each, which hold so much."""
    kept = [each for each in traffic(at) if each.series.metric not in POOL]
    for replica, held in enumerate(used):
        kept.append(point(schema.KV_CACHE_CAPACITY, 10_000.0, replica=str(replica)))
        kept.append(point(schema.KV_CACHE_USED, held, replica=str(replica)))
    return kept


def pressure(points: list[Point]) -> dict[str, float]:
    return {
        series.label("resource"): number
        for series, number, _ in points
        if series.metric is schema.PRESSURE and isinstance(number, float)
    }


# Pressure ------------------------------------------------------------------------------------------------------------
def test_each_resource_has_its_pressure() -> None:
    limit = point(schema.REQUESTS_RUNNING_LIMIT, 16.0)
    _, derived = polls([(at, [*points, limit]) for at, points in steadily(600)])

    told = pressure(derived)
    assert told["kv_cache"] == pytest.approx(5_000 / 20_000)
    assert told["concurrency"] == pytest.approx(10 / 16)
    # 800 tokens/s are prefilled, at 8,000 tokens/s each; so the engine could do 8,800
    assert told["prefill"] == pytest.approx(800 / 8_800)


def test_what_an_engine_does_not_report_has_no_pressure() -> None:
    _, derived = polls(steadily(100))
    assert pressure(derived).keys() == {"kv_cache", "prefill"}

    _, silent = polls([(float(at), [point(schema.REQUESTS_RUNNING, 3.0)]) for at in range(0, 100, 5)])
    assert pressure(silent) == {}


def test_pressure_rises_with_the_queue_and_passes_one_where_first_tokens_leave_their_objective() -> None:
    def prefill(waiting: float) -> float:
        _, derived = polls(
            [*steadily(100), *((105.0 + 5 * n, traffic(105 + 5 * n, waiting=waiting)) for n in range(60))]
        )
        return pressure(derived)["prefill"]

    # by Little's law requests wait for half a second for each that waits: 2 of them begin in a second
    levels = [prefill(waiting) for waiting in (0, 1, 3, 5, 20)]
    assert levels == sorted(levels)
    assert levels[0] < 1.0 < levels[-1]
    assert prefill(5.0) == pytest.approx(5 / 2 / 2.5, rel=0.02)


def shared(*loads: tuple[int, float]) -> list[tuple[float, list[Point]]]:
    """Polls of an engine that prefills 8,000 tokens/s, of which a request gets what others leave, for seconds each."""
    replaced = {schema.REQUESTS_FINISHED, schema.PROMPT_TOKENS, schema.TIME_TO_FIRST_TOKEN, schema.REQUEST_QUEUE}
    at, finished, prefilling = 0, 0.0, 0.0
    timeline = []
    for seconds, load in loads:
        for _ in range(0, seconds, 5):
            at, arrived = at + 5, 5 * load * 8_000 / 400
            finished, prefilling = finished + arrived, prefilling + arrived * 400 / (8_000 * (1.0 - load))
            points = [
                *(kept for kept in traffic(at) if kept.series.metric not in replaced),
                point(schema.REQUESTS_FINISHED, finished, reason="stop"),
                point(schema.PROMPT_TOKENS, 400.0 * finished),
                point(schema.TIME_TO_FIRST_TOKEN, Histogram((2.5, math.inf), (finished, finished), prefilling)),
                point(schema.REQUEST_QUEUE, Histogram((1.0, math.inf), (finished, finished), 0.0)),
            ]
            timeline.append((float(at), points))
    return timeline


@pytest.mark.parametrize("load", [0.1, 0.5, 0.9])
def test_requests_that_share_the_engine_are_not_taken_for_its_limit(load: float) -> None:
    _, derived = polls(shared((900, load)))
    assert pressure(derived)["prefill"] == pytest.approx(load, rel=0.01)


def test_pressure_falls_with_the_load_after_a_burst() -> None:
    _, derived = polls(shared((900, 0.1), (120, 0.95), (480, 0.1)))
    assert pressure(derived)["prefill"] == pytest.approx(0.1, rel=0.3)


def test_a_single_poll_that_happens_upon_a_queue_is_no_wait() -> None:
    _, calm = polls(steadily(300))
    queued = [(300.0, traffic(300, waiting=6)), *((float(at), traffic(at)) for at in range(305, 311, 5))]
    _, derived = polls([*steadily(295), *queued])

    assert pressure(derived)["prefill"] == pytest.approx(pressure(calm)["prefill"], rel=0.25)


def test_the_slow_first_requests_of_an_engine_are_not_remembered() -> None:
    def cold(seconds: int) -> list[Point]:
        points = [each for each in traffic(seconds) if each.series.metric is not schema.TIME_TO_FIRST_TOKEN]
        firsts = 2.0 * seconds
        slow = 30.0 if firsts else 0.0  # the first request compiles for half a minute
        return [*points, point(schema.TIME_TO_FIRST_TOKEN, Histogram(BOUNDS, (firsts,) * 5, 0.05 * firsts + slow))]

    timeline = [(float(seconds), cold(seconds)) for seconds in range(0, 601, 5)]
    _, soon = polls(timeline[:6])
    _, later = polls(timeline)

    assert "prefill" not in pressure(soon)
    assert pressure(later)["prefill"] < 0.3
    assert number(later, "llm_saturation_high_water_ratio") < 0.15


def test_a_stall_that_is_over_does_not_lower_the_capacity() -> None:
    stalled = [(300.0 + 5 * n, traffic(300, waiting=20)) for n in range(1, 25)]
    after = [(420.0 + at, traffic(300 + at)) for at in range(5, 601, 5)]
    _, during = polls([*steadily(300), *stalled])
    _, later = polls([*steadily(300), *stalled, *after])
    _, calm = polls(steadily(300))

    assert pressure(during)["prefill"] > 1.0
    assert pressure(later)["prefill"] == pytest.approx(pressure(calm)["prefill"], rel=0.05)


def test_pressure_does_not_jump_with_one_poll() -> None:
    _, before = polls(steadily(100))
    _, after = polls([*steadily(100), (105.0, traffic(105, used=20_000))])

    step = pressure(after)["kv_cache"] - pressure(before)["kv_cache"]
    assert 0 < step < 0.25 * (1.0 - 0.25)


def test_the_fullest_replica_speaks_for_the_target() -> None:
    _, derived = polls([(float(at), pools(at, 1_000.0, 9_500.0)) for at in range(0, 301, 5)])
    _, whole = polls(steadily(300, used=10_500))

    assert pressure(derived)["kv_cache"] == pytest.approx(0.95)
    assert pressure(whole)["kv_cache"] == pytest.approx(0.525)
    assert number(derived, "llm_kv_saturation_risk_ratio") > number(whole, "llm_kv_saturation_risk_ratio")


def test_the_fullest_replica_s_own_requests_stand_against_its_own_limit() -> None:
    own = {schema.REQUESTS_RUNNING: 8.0, schema.REQUESTS_WAITING: 40.0, schema.REQUESTS_RUNNING_LIMIT: 16.0}
    points = [each for each in pools(0, 5_000.0, 9_000.0) if each.series.metric not in own]
    points += [point(metric, number, replica=replica) for metric, number in own.items() for replica in "01"]
    _, derived = polls([(float(at), points) for at in range(0, 301, 5)])

    assert pressure(derived)["concurrency"] == pytest.approx(48 / 16)


def test_a_replica_that_goes_leaves_the_other_one_to_speak() -> None:
    _, derived = polls(
        [
            *((float(at), pools(at, 1_000.0, 9_000.0)) for at in range(0, 301, 5)),
            *((float(at), pools(at, 1_000.0)) for at in range(305, 901, 5)),
        ]
    )
    assert pressure(derived)["kv_cache"] == pytest.approx(0.1, abs=0.01)


# High-water risk -----------------------------------------------------------------------------------------------------
def test_the_high_water_risk_remembers_a_peak_for_ten_minutes() -> None:
    calm = steadily(300)
    peak = [(305.0, traffic(305, used=19_900, waiting=30))]
    _, before = polls(calm)
    _, at_peak = polls([*calm, *peak])
    _, later = polls([*calm, *peak, *((float(at), traffic(at)) for at in range(310, 800, 5))])
    _, forgotten = polls([*calm, *peak, *((float(at), traffic(at)) for at in range(310, 1_500, 5))])

    name = "llm_saturation_high_water_ratio"
    assert number(at_peak, name) == 0.95  # requests are blocked
    assert number(later, name) > 2 * number(before, name)
    assert number(forgotten, name) == pytest.approx(number(before, name), rel=0.01)


def test_risks_are_absent_until_enough_was_seen_and_again_after_a_restart() -> None:
    _, soon = polls(steadily(30))
    _, restarted = polls([*steadily(300), (305.0, traffic(2))])

    for derived in (soon, restarted):
        assert values(derived, "llm_saturation_high_water_ratio") == {}
    assert pressure(restarted) == {}


def test_a_clock_that_stands_or_goes_back_changes_nothing() -> None:
    memory, first = polls(steadily(300))
    again, second = advance(memory, traffic(300), 300.0, base=BASE)
    _, third = advance(again, traffic(305), 200.0, base=BASE)

    assert pressure(first) == pressure(second) == pressure(third)


def test_jittered_and_missed_polls_do_not_move_rates() -> None:
    times = [0, 4, 11, 15, 19, 26, 30, 60, 64, 71, 75, 81, 120, 126, 129, 135, 140]
    _, even = polls(steadily(140))
    _, uneven = polls([(float(at), traffic(at)) for at in times])

    for derived in (even, uneven):
        assert values(derived, "llm_tokens_per_second", "phase") == {
            "prompt": pytest.approx(800.0),
            "generation": pytest.approx(200.0),
        }


# Models that come and go ---------------------------------------------------------------------------------------------
def resident(**shares: float) -> list[Point]:
    points = [Point(Series(schema.MODELS_LOADED, BASE), float(len(shares)), "test")]
    for model, share in shares.items():
        points.append(Point(Series(schema.MODEL_LOADED, {**BASE, "model": model}), 1.0, "test"))
        points.append(Point(Series(schema.MODEL_OFFLOAD, {**BASE, "model": model}), share, "test"))
    return points


def test_a_model_that_has_spilled_is_certain_to_have_and_one_that_often_does_is_likely_to() -> None:
    memory, whole = advance(Memory(), resident(a=1.0), 0.0, base=BASE)
    assert value(whole, "llm_spill_risk_ratio") == pytest.approx(0.01)

    memory, spilled = advance(memory, resident(a=1.0, b=0.6), 5.0, base=BASE)
    assert values(spilled, "llm_spill_risk_ratio", "model") == {"a": pytest.approx(0.01), "b": 1.0}

    memory, _ = advance(memory, resident(a=1.0), 10.0, base=BASE)
    _, back = advance(memory, resident(a=1.0, b=1.0), 15.0, base=BASE)
    assert values(back, "llm_spill_risk_ratio", "model")["b"] == pytest.approx(1.02 / 3)


def test_a_host_without_gpus_has_nothing_to_spill_from() -> None:
    memory, derived = advance(Memory(), resident(a=0.0), 0.0, base=BASE)
    assert values(derived, "llm_spill_risk_ratio") == {}
    memory, _ = advance(memory, resident(a=0.0, b=1.0), 5.0, base=BASE)
    _, derived = advance(memory, resident(a=0.0), 10.0, base=BASE)
    assert values(derived, "llm_spill_risk_ratio", "model") == {"a": 1.0}


def eviction(*changes: tuple[float, str]) -> float | Histogram | None:
    """The risk after the last of some polls: the models in memory, a letter each, at each time in seconds."""
    _, derived = polls([(at, resident(**dict.fromkeys(models, 1.0))) for at, models in changes])
    return value(derived, "llm_eviction_risk_ratio")


THRASH: Final = [(60.0 * poll, "ab"[poll % 2]) for poll in range(21)]


def test_eviction_counts_models_that_gave_way_and_not_those_that_expired() -> None:
    assert eviction((0.0, "a"), (300.0, "a")) is None
    assert eviction((0.0, "ab"), (300.0, "b"), (700.0, "b")) == 0.0
    assert number(polls([(at, resident(**{model: 1.0})) for at, model in THRASH])[1], "llm_eviction_risk_ratio") > 0.95


@pytest.mark.parametrize(
    ("first", "then"),
    [("ab", "b"), ("", "b")],  # the new one comes before the old one goes, or after it
)
def test_a_model_gives_way_to_one_that_comes_at_about_the_same_time(first: str, then: str) -> None:
    soon = eviction((0.0, "a"), (1000.0, first), (1020.0, then))
    late = eviction((0.0, "a"), (1000.0, first), (1040.0, then))

    assert late == 0.0
    assert soon == pytest.approx(1.0 - math.exp(-300.0 / (20.0 + 1000.0 * math.exp(-20.0 / 3600.0))), rel=0.01)


def test_evictions_fade_within_hours() -> None:
    assert eviction(*THRASH, (1200.0 + 4 * 3600.0, "a")) == pytest.approx(0.005, abs=0.004)


def test_an_engine_that_tells_no_models_in_memory_has_neither_risk() -> None:
    _, derived = polls(steadily(900))
    assert values(derived, "llm_spill_risk_ratio") == values(derived, "llm_eviction_risk_ratio") == {}


# Queue ---------------------------------------------------------------------------------------------------------------
def overflow(waiting: Sequence[float], limit: int | None = 512) -> float | Histogram | None:
    memory, derived = Memory(), list[Point]()
    for index, depth in enumerate(waiting):
        memory, derived = advance(memory, traffic(5 * index, waiting=depth), 5.0 * index, base=BASE, queue_limit=limit)
    return value(derived, "llm_queue_overflow_risk_ratio")


def test_a_queue_that_grows_towards_its_limit_is_a_risk_and_a_short_or_steady_one_is_none() -> None:
    assert overflow([3.0] * 60) == pytest.approx(0.0, abs=1e-6)
    assert overflow([10.0 * index for index in range(40)]) == pytest.approx(1.0, abs=1e-3)
    assert overflow([*[3.0] * 60, 512.0]) == 1.0


def test_an_engine_without_a_limit_of_its_queue_has_no_risk_of_overflow() -> None:
    assert overflow([500.0] * 60, limit=None) is None
    assert overflow([500.0] * 3) is None  # too early to tell
