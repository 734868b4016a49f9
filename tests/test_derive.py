"""Derived signals on timelines made of literals: what a target says poll by poll, and what follows from it."""

from __future__ import annotations

import math

import pytest

from captures import mapped, value, values
from llm_headroom import schema
from llm_headroom.derive import slo
from llm_headroom.derive.memory import Memory, advance
from llm_headroom.model import Histogram, Point
from timelines import BASE, BOUNDS, point, polls, steadily, traffic, ttft


# Headroom of the KV cache --------------------------------------------------------------------------------------------
def test_headroom_counts_what_is_not_held_and_leaves_out_what_waits_once_its_size_is_known() -> None:
    _, first = polls([(0.0, traffic(0, waiting=3))])
    _, later = polls([*steadily(100), (105.0, traffic(105, waiting=3))])

    assert value(first, "llm_kv_cache_headroom_tokens") == 15_000
    assert value(later, "llm_kv_cache_headroom_tokens") == pytest.approx(15_000 - 3 * 400)
    assert value(later, "llm_kv_cache_headroom_ratio") == pytest.approx((15_000 - 3 * 400) / 20_000)


def test_headroom_is_never_negative() -> None:
    _, derived = polls([*steadily(100), (105.0, traffic(105, waiting=500))])

    assert value(derived, "llm_kv_cache_headroom_tokens") == 0
    assert value(derived, "llm_kv_cache_headroom_requests") == 0


def test_headroom_in_requests_is_that_of_whole_requests() -> None:
    _, derived = polls(steadily(100))

    assert value(derived, "llm_kv_cache_headroom_requests") == pytest.approx(15_000 / 500)


def test_headroom_in_requests_does_not_depend_on_how_many_may_run() -> None:
    limit = point(schema.REQUESTS_RUNNING_LIMIT, 16.0)
    _, derived = polls([(at, [*points, limit]) for at, points in steadily(100)])

    assert value(derived, "llm_kv_cache_headroom_requests") == pytest.approx(15_000 / 500)


def test_cached_parts_of_prompts_need_no_room() -> None:
    """Of each prompt's 400 tokens 300 are those of the request before: it needs 100, and 100 for its answer."""
    cached = [(at, [*points, point(schema.PROMPT_TOKENS_CACHED, 300.0 * 2.0 * at)]) for at, points in steadily(300)]
    _, derived = polls(cached)

    assert value(derived, "llm_kv_cache_headroom_requests") == pytest.approx(15_000 / 200)


def test_requests_that_have_become_larger_are_counted_as_they_are_now() -> None:
    """After ten minutes of answers of 100 tokens there is one of 2,100."""
    changed = []
    for at in range(605, 661, 5):
        answers = Histogram((1e3, math.inf), (1_200.0, 2.0 * at), 100.0 * 1_200 + 2_100.0 * (2.0 * at - 1_200))
        kept = [each for each in traffic(at) if each.series.metric is not schema.REQUEST_GENERATION_TOKENS]
        changed.append((float(at), [*kept, point(schema.REQUEST_GENERATION_TOKENS, answers)]))
    _, derived = polls([*steadily(600), *changed])

    requests = value(derived, "llm_kv_cache_headroom_requests")
    assert isinstance(requests, float)
    assert 15_000 / 2_500 < requests < 15_000 / 1_500


def test_evictable_cache_is_headroom() -> None:
    """SGLang: 11,454 tokens free and 2,915 evictable of 16,384."""
    _, derived = advance(Memory(), mapped("sglang", "sglang/0.5.23/draining"), 0.0, base=BASE)
    points = mapped("sglang", "sglang/0.5.23/draining")
    free = value(points, "llm_kv_cache_capacity_tokens"), value(points, "llm_kv_cache_used_tokens")

    assert isinstance(free[0], float)
    assert isinstance(free[1], float)
    assert value(derived, "llm_kv_cache_headroom_tokens") == free[0] - free[1]


def test_each_replica_has_headroom_of_its_own() -> None:
    points = [
        point(metric, amount, replica=replica)
        for replica, used in (("0", 90.0), ("1", 10.0))
        for metric, amount in ((schema.KV_CACHE_CAPACITY, 100.0), (schema.KV_CACHE_USED, used))
    ]
    _, derived = advance(Memory(), points, 0.0, base=BASE)

    assert values(derived, "llm_kv_cache_headroom_tokens", "replica") == {"0": 10, "1": 90}


def test_without_a_capacity_there_is_no_headroom() -> None:
    _, derived = advance(Memory(), [point(schema.KV_CACHE_USAGE, 0.5)], 0.0, base=BASE)

    assert {each.series.metric for each in derived} == {schema.KV_CACHE_USAGE_PEAK, schema.ENGINE_RESTARTS}


def test_peak_is_the_highest_poll_of_the_last_minute() -> None:
    usage = [(0.0, 0.2), (5.0, 0.9), (10.0, 0.3), (64.0, 0.1), (66.0, 0.1)]
    memory, peaks = Memory(), []
    for at, ratio in usage:
        memory, derived = advance(memory, [point(schema.KV_CACHE_USAGE, ratio)], at, base=BASE)
        peaks.append(value(derived, "llm_kv_cache_usage_peak_ratio"))

    assert peaks == [0.2, 0.9, 0.9, 0.9, 0.3]


# Time to exhaustion and risks ----------------------------------------------------------------------------------------
def test_demand_that_fits_never_exhausts() -> None:
    """2 requests/s, each held for 5 s at 500 tokens: 5,000 tokens of 20,000."""
    _, derived = polls(steadily(600))

    assert value(derived, "llm_kv_cache_exhaustion_seconds") is None
    kv = value(derived, "llm_kv_saturation_risk_ratio")
    assert isinstance(kv, float)
    assert kv < 0.05


def test_demand_beyond_the_capacity_exhausts_in_finite_time() -> None:
    """Arrivals double and nobody leaves sooner: what they will hold does not fit into 7,000 tokens."""
    growing = [*steadily(300, capacity=7_000)]
    for at in range(305, 420, 5):
        extra = 2.0 * (at - 300)  # requests beyond the steady two a second, all of them still running
        growing.append((float(at), traffic(at, capacity=7_000, used=6_900, running=10 + extra)))
    _, derived = polls(growing)

    seconds, risk = value(derived, "llm_kv_cache_exhaustion_seconds"), value(derived, "llm_kv_saturation_risk_ratio")
    assert isinstance(seconds, float)
    assert 0 < seconds < 60
    assert isinstance(risk, float)
    assert risk > 0.5


def test_time_to_exhaustion_is_zero_when_what_waits_does_not_fit() -> None:
    _, derived = polls([*steadily(300), (305.0, traffic(305, used=19_900, waiting=10))])

    assert value(derived, "llm_kv_cache_exhaustion_seconds") == 0


def test_requests_that_wait_because_no_more_may_run_do_not_exhaust_the_cache() -> None:
    limit = point(schema.REQUESTS_RUNNING_LIMIT, 10.0)
    full = [(at, [*points, limit]) for at, points in steadily(300)]
    _, derived = polls([*full, (305.0, [*traffic(305, used=5_000, waiting=200), limit])])

    assert value(derived, "llm_kv_cache_exhaustion_seconds") is None


def kv_risk(*more: tuple[float, list[Point]]) -> float:
    _, derived = polls([*steadily(600), *more])
    risk = value(derived, "llm_kv_saturation_risk_ratio")
    assert isinstance(risk, float)
    return risk


def test_a_cache_that_fills_faster_than_chance_explains_is_a_risk_before_it_is_full() -> None:
    """By 4,700 tokens each five seconds, of 20,000, while every mean still says that 5,000 are held."""
    filling = [(605.0 + 5 * step, traffic(605 + 5 * step, used=9_700 + 4_700.0 * step)) for step in range(3)]
    assert kv_risk() < 0.05
    assert kv_risk(*filling) > 0.5
    assert kv_risk(*((at, traffic(at)) for at in (605.0, 610.0, 615.0))) < 0.05


def test_what_happens_already_is_no_question_of_probability() -> None:
    preempting = [(at, [*points, point(schema.PREEMPTIONS, 3.0 if at > 606 else 0.0)]) for at, points in steadily(700)]
    assert kv_risk(*(each for each in preempting if 600 < each[0] < 660)) >= 0.95
    assert kv_risk(*(each for each in preempting if each[0] > 600)) < 0.1

    blocked = traffic(605, used=19_700, waiting=1)
    assert kv_risk((605.0, blocked)) >= 0.95


def test_first_tokens_that_come_too_late_now_are_certain_trouble() -> None:
    slow = [each for each in traffic(605) if each.series.metric is not schema.TIME_TO_FIRST_TOKEN]
    late = Histogram(BOUNDS, (1_200.0, 1_202.0, 1_202.0, 1_210.0, 1_210.0), 100.0)
    _, derived = polls([*steadily(600), (605.0, [*slow, point(schema.TIME_TO_FIRST_TOKEN, late)])])

    found = value(derived, "llm_saturation_high_water_ratio")
    assert isinstance(found, float)
    assert found >= 0.95
    assert value(derived, "llm_kv_saturation_risk_ratio") != 0.95


def test_risk_grows_with_the_load() -> None:
    risks = []
    for used in (2_000.0, 10_000.0, 19_000.0):
        _, derived = polls(steadily(600, used=used))
        risks.append(value(derived, "llm_kv_saturation_risk_ratio"))

    assert risks == sorted(risks)  # type: ignore[type-var]
    assert risks[0] != risks[-1]


def test_risks_stay_absent_until_enough_was_seen() -> None:
    _, early = polls(steadily(20))
    _, idle = polls([(float(at), traffic(0)) for at in range(0, 600, 5)])

    for derived in (early, idle):
        assert value(derived, "llm_kv_saturation_risk_ratio") is None
        assert value(derived, "llm_kv_cache_exhaustion_seconds") is None


# Slow first tokens ---------------------------------------------------------------------------------------------------
def test_share_of_slow_first_tokens_is_exact_at_the_bound_of_the_objective() -> None:
    _, derived = polls([(0.0, [ttft(10, 10, 10, 10, 10)]), (5.0, [ttft(10, 12, 16, 18, 20)])])

    assert values(derived, "llm_ttft_slow_ratio", "window") == {"60s": 0.4, "300s": 0.4}
    assert values(derived, "llm_ttft_window_requests", "window") == {"60s": 10, "300s": 10}


def test_windows_slide() -> None:
    _, derived = polls(
        [
            (0.0, [ttft(0, 0, 0, 0, 0)]),
            (5.0, [ttft(0, 0, 0, 0, 10)]),
            (30.0, [ttft(0, 0, 0, 0, 10)]),
            (50.0, [ttft(10, 10, 10, 10, 20)]),
            (70.0, [ttft(10, 10, 10, 10, 20)]),
        ]
    )

    assert values(derived, "llm_ttft_slow_ratio", "window") == {"60s": 0.0, "300s": 0.5}


def test_without_traffic_the_share_is_absent() -> None:
    _, derived = polls([(float(at), [ttft(5, 5, 5, 5, 9)]) for at in range(0, 600, 5)])

    assert values(derived, "llm_ttft_slow_ratio", "window") == {}


def test_a_restart_empties_the_windows() -> None:
    _, derived = polls([(0.0, [ttft(0, 0, 0, 0, 0)]), (5.0, [ttft(0, 0, 0, 0, 10)]), (10.0, [ttft(1, 1, 1, 1, 1)])])

    assert values(derived, "llm_ttft_slow_ratio", "window") == {}
    assert value(derived, "llm_engine_restarts_total") == 1


def test_what_came_in_a_long_gap_belongs_to_no_window() -> None:
    _, derived = polls([(0.0, [ttft(0, 0, 0, 0, 0)]), (120.0, [ttft(0, 0, 0, 0, 10)])])

    assert values(derived, "llm_ttft_slow_ratio", "window") == {}
    assert values(derived, "llm_slo_requests_total", "slo") == {"ttft": 10}


def test_a_clock_that_stands_still_or_goes_back_adds_nothing() -> None:
    timeline = [(0.0, [ttft(0, 0, 0, 0, 0)]), (5.0, [ttft(0, 0, 0, 0, 10)])]
    _, derived = polls([*timeline, (5.0, [ttft(0, 0, 0, 0, 99)]), (-60.0, [ttft(0, 0, 0, 0, 99)])])

    assert values(derived, "llm_slo_requests_total", "slo") == {"ttft": 10}


# Objectives ----------------------------------------------------------------------------------------------------------
def test_objectives_count_from_when_the_exporter_looks_and_go_on_over_restarts() -> None:
    _, derived = polls(
        [
            (0.0, [ttft(100, 100, 100, 100, 200)]),  # before the exporter came
            (5.0, [ttft(103, 104, 106, 108, 210)]),  # 10 more, 6 good
            (10.0, [ttft(1, 1, 1, 2, 4)]),  # a new life: 4, 1 good
            (15.0, [ttft(1, 1, 3, 4, 6)]),  # 2 more, 2 good
        ]
    )

    assert values(derived, "llm_slo_requests_total", "slo") == {"ttft": 16}
    assert values(derived, "llm_slo_requests_good_total", "slo") == {"ttft": 9}


@pytest.mark.parametrize(
    ("seconds", "bounds", "moved"),
    [
        (2.5, BOUNDS, 2.5),
        (2.0, BOUNDS, 2.5),
        (2.5000000001, BOUNDS, 2.5),
        (2.6, BOUNDS, 5.0),
        (6.0, BOUNDS, None),
        (2.5, (0.1, 0.2, 4.0, math.inf), 4.0),
    ],
)
def test_thresholds_move_to_the_next_bound_that_the_engine_has(
    seconds: float, bounds: tuple[float, ...], moved: float | None
) -> None:
    objective = slo.Objective("ttft", "ttft", seconds, 0.95)
    reading = point(schema.TIME_TO_FIRST_TOKEN, Histogram(bounds, (1.0,) * len(bounds), 1.0))
    _, derived = advance(Memory(), [reading], 0.0, base=BASE, objectives=(objective,))

    found = values(derived, "llm_slo_threshold_seconds", "slo")
    assert found == ({} if moved is None else {"ttft": moved})


def test_buckets_that_change_with_an_upgrade_begin_anew() -> None:
    other = point(schema.TIME_TO_FIRST_TOKEN, Histogram((1.0, 4.0, math.inf), (3.0, 5.0, 6.0), 1.0))
    later = point(schema.TIME_TO_FIRST_TOKEN, Histogram((1.0, 4.0, math.inf), (3.0, 7.0, 9.0), 1.0))
    _, derived = polls([(0.0, [ttft(0, 0, 0, 0, 0)]), (5.0, [ttft(2, 2, 2, 2, 2)]), (10.0, [other]), (15.0, [later])])

    assert values(derived, "llm_slo_requests_total", "slo") == {"ttft": 3}
    assert values(derived, "llm_slo_requests_good_total", "slo") == {"ttft": 2}
    assert values(derived, "llm_slo_threshold_seconds", "slo") == {"ttft": 4.0}


def test_counters_never_fall() -> None:
    totals = []
    memory = Memory()
    for at, counts in enumerate([(5, 9), (7, 12), (0, 0), (1, 1), (4, 6), (0, 2), (9, 9)]):
        good, total = map(float, counts)
        memory, derived = advance(memory, [ttft(good, good, good, good, total)], at * 5.0, base=BASE)
        totals.append(values(derived, "llm_slo_requests_total", "slo")["ttft"])

    assert totals == sorted(totals)  # type: ignore[type-var]


def test_what_an_upgrade_no_longer_exposes_is_not_counted_as_of_now() -> None:
    prompts = point(schema.PROMPT_TOKENS, 5e3)  # it is the same process
    memory, before = polls([(0.0, [prompts, ttft(0, 0, 0, 0, 0)]), (5.0, [prompts, ttft(4, 4, 4, 4, 4)])])
    memory, renamed = advance(memory, [prompts], 10.0, base=BASE)
    _, again = advance(memory, [prompts, ttft(6, 6, 6, 6, 6)], 15.0, base=BASE)

    assert values(before, "llm_slo_requests_total", "slo") == {"ttft": 4.0}
    assert values(renamed, "llm_slo_requests_total", "slo") == {}
    assert values(again, "llm_slo_requests_total", "slo") == {"ttft": 6.0}


# Stalls --------------------------------------------------------------------------------------------------------------
def test_a_stopped_engine_core_is_stalled_and_no_longer_so_once_it_goes_on() -> None:
    """The captures of a real vLLM whose engine core was stopped under load: metrics and /health still answered 200."""
    stopped = mapped("vllm", "vllm/0.32.0-stall-crash/engine_stopped_t8")
    still = mapped("vllm", "vllm/0.32.0-stall-crash/engine_stopped_t20")
    resumed = mapped("vllm", "vllm/0.32.0-stall-crash/engine_resumed")
    timeline = [(0.0, mapped("vllm", "vllm/0.32.0-stall-crash/before_stop")), (10.0, stopped), (30.0, still)]
    memory, early = polls(timeline)
    memory, late = advance(memory, still, 80.0, base=BASE)
    _, after = advance(memory, resumed, 85.0, base=BASE)

    assert value(early, "llm_engine_stalled") == 0
    assert value(late, "llm_engine_stalled") == 1
    assert value(after, "llm_engine_stalled") == 0


def test_an_idle_engine_is_not_stalled() -> None:
    idle = mapped("vllm", "vllm/0.32.0/after_load")
    _, derived = polls([(float(at), idle) for at in range(0, 600, 5)])

    assert value(derived, "llm_engine_stalled") == 0


def test_gauges_of_an_idle_sglang_that_went_stale_are_no_stall() -> None:
    """0.5.2 says 6 running on an idle server, and tells no steps."""
    idle = mapped("sglang", "sglang/0.5.2/after_load")
    _, derived = polls([(float(at), idle) for at in range(0, 600, 5)])

    assert value(idle, "llm_requests_running") == 6
    assert value(derived, "llm_engine_stalled") == 0


# Coming and going ----------------------------------------------------------------------------------------------------
def test_replicas_that_appear_and_disappear_are_no_restart() -> None:
    one = [point(schema.KV_CACHE_USAGE, 0.1, replica="0")]
    two = [*one, point(schema.KV_CACHE_USAGE, 0.9, replica="1")]
    _, derived = polls([(0.0, one), (5.0, two), (10.0, one)])

    assert values(derived, "llm_kv_cache_usage_peak_ratio", "replica") == {"0": 0.1}
    assert value(derived, "llm_engine_restarts_total") == 0


def test_a_model_that_was_away_comes_back_with_its_counts() -> None:
    _, derived = polls(
        [(0.0, [ttft(0, 0, 0, 0, 0)]), (5.0, [ttft(3, 3, 3, 3, 3)]), (10.0, []), (15.0, [ttft(4, 4, 4, 4, 4)])]
    )

    assert values(derived, "llm_slo_requests_total", "slo") == {"ttft": 4}


def test_what_is_not_told_makes_nothing() -> None:
    _, derived = polls([(0.0, []), (5.0, [])])

    assert derived == []
