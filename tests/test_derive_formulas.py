"""The formulas of derived signals, each on estimates made of literals: every operand, and both sides of every bound."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import pytest

from llm_headroom import schema
from llm_headroom.derive import headroom, pressure, risk
from llm_headroom.derive.estimates import Estimates, Mean
from llm_headroom.derive.observation import Observation
from llm_headroom.derive.pressure import Levels, Mark
from llm_headroom.model import Histogram

if TYPE_CHECKING:
    from llm_headroom.model import Labels, Metric


def mean(value: float) -> Mean:
    return Mean(60.0, 2.0 * value, 2.0)


KNOWN = Estimates(
    arrivals=mean(2.0),
    residence=mean(5.0),
    held=mean(500.0),
    prompt=mean(400.0),
    computed=mean(300.0),
    output=mean(100.0),
    seconds=60.0,
    requests=20.0,
)
NOW = Observation(running=10.0, waiting=4.0, capacity=4000.0, used=1000.0)


def known(**means: float | None) -> Estimates:
    """The estimates with other means; None for one that is not known."""
    others: dict[str, Any] = {name: Mean(60.0) if each is None else mean(each) for name, each in means.items()}
    return replace(KNOWN, **others)


def now(**gauges: Any) -> Observation:  # noqa: ANN401 - numbers, or None
    return replace(NOW, **gauges)


# Estimates -----------------------------------------------------------------------------------------------------------
def histogram(count: float, total: float) -> Histogram:
    return Histogram((1.0, math.inf), (count, count), total)


BEFORE = Observation(
    running=4.0, waiting=6.0, used=900.0, prompt_tokens=0.0, cached_tokens=0.0, generation_tokens=0.0, finished=0.0,
    ttft=histogram(0.0, 0.0), queue=histogram(0.0, 0.0), inter_token=histogram(0.0, 0.0),
    generation_sizes=histogram(0.0, 0.0),
)  # fmt: skip
AFTER = Observation(
    running=6.0, waiting=5.0, used=1000.0, prompt_tokens=4000.0, cached_tokens=1000.0, generation_tokens=700.0,
    finished=7.0, ttft=histogram(8.0, 12.0), queue=histogram(8.0, 2.0), inter_token=histogram(690.0, 13.8),
    generation_sizes=histogram(6.0, 600.0),
)  # fmt: skip


def means(found: Estimates) -> dict[str, tuple[float, float]]:
    return {
        each.name: (getattr(found, each.name).above, getattr(found, each.name).below)
        for each in fields(found)
        if isinstance(getattr(found, each.name), Mean)
    }


def test_one_interval_makes_each_mean() -> None:
    """Ten seconds: 7 ended, 2 more run, one less waits, so 8 came; 3,000 of 4,000 prompt tokens were computed."""
    found = Estimates().after(BEFORE, AFTER, 10.0)
    assert (found.seconds, found.requests) == (10.0, 7.0)
    assert means(found) == {
        "arrivals": (8.0, 10.0),
        "prompt": (4000.0, 8.0),
        "output": (600.0, 6.0),
        "inter_token": (13.8, 690.0),
        "held": (10_000.0, 60.0),
        "residence": (60.0, 7.0),
        "dispersion": (0.0, 8.0),
        "prefill": (3000.0, 10.0),
        "served": (3000.0, 10.0),
        "prefill_rate": (3000.0, 10.0),
        "computed": (3000.0, 8.0),
        "wait": (50.0, 8.0),
        "finishes": (7.0, 10.0),
        "prompt_rate": (4000.0, 10.0),
        "generation_rate": (700.0, 10.0),
        "recent_computed": (3000.0, 8.0),
        "recent_output": (600.0, 6.0),
        "growth": (100.0, 10.0),
    }


def test_how_long_each_mean_remembers() -> None:
    memories = {name: getattr(Estimates(), name).seconds for name in means(Estimates())}
    minute = {"inter_token", "wait", "finishes", "prompt_rate", "generation_rate", "recent_computed", "recent_output"}
    assert memories == dict.fromkeys(minute, 60.0) | {
        "arrivals": 90.0, "prompt": 600.0, "output": 900.0, "held": 180.0, "residence": 300.0, "dispersion": 900.0,
        "prefill": 900.0, "served": 900.0, "prefill_rate": 20.0, "computed": 600.0, "growth": 10.0,
    }  # fmt: skip
    kept = Mean(10.0, 5.0, 2.0).add(1.0, 3.0, 10.0)
    assert (kept.above, kept.below) == pytest.approx((5.0 / math.e + 1.0, 2.0 / math.e + 3.0))


def test_a_second_interval_is_judged_by_what_was_expected_of_it() -> None:
    first = Estimates().after(BEFORE, AFTER, 10.0)
    later = replace(AFTER, finished=9.0, waiting=15.0)
    found = first.after(AFTER, later, 5.0)  # 12 came where 0.8 a second are 4
    assert found.dispersion.above == pytest.approx(64.0)
    assert found.dispersion.below == pytest.approx(8.0 * math.exp(-5.0 / 900.0) + 4.0)
    assert found.wait.above == pytest.approx(50.0 * math.exp(-5.0 / 60.0) + 25.0)  # the lesser of 5 and 15 waited
    assert found.requests == 9.0


def test_what_an_interval_does_not_show_moves_no_mean_of_it() -> None:
    first = Estimates().after(BEFORE, AFTER, 10.0)
    found = first.after(AFTER, replace(AFTER, running=0.0, waiting=0.0), 10.0)
    for name in ("prompt", "output", "inter_token", "held", "prefill", "served", "computed"):
        assert getattr(found, name) == getattr(first, name)
    assert found.arrivals.above == pytest.approx(8.0 * math.exp(-10.0 / 90.0)), "fewer than none never come"
    first_gauges = Estimates().after(Observation(), Observation(running=3.0, waiting=2.0, used=50.0), 10.0)
    assert (first_gauges.arrivals.above, first_gauges.growth.above, first_gauges.wait.above) == (5.0, 50.0, 0.0)
    last_gauges = Estimates().after(replace(BEFORE, finished=0.0), Observation(finished=25.0), 10.0)
    assert (last_gauges.arrivals.above, last_gauges.growth.above) == (15.0, -900.0)
    nothing = Estimates().after(Observation(), Observation(), 10.0)
    assert {name for name, (above, _) in means(nothing).items() if above} == set()
    assert nothing.dispersion == Estimates().dispersion


def test_more_cached_than_prompt_tokens_and_more_queueing_than_waiting_are_none_computed_in_no_time() -> None:
    found = Estimates().after(BEFORE, replace(AFTER, cached_tokens=5000.0, queue=histogram(8.0, 20.0)), 10.0)
    assert means(found)["computed"] == (0.0, 8.0)
    assert means(found)["prefill"] == (0.0, 0.0)
    without = Estimates().after(replace(BEFORE, queue=None), replace(AFTER, queue=None), 10.0)
    assert means(without)["prefill"] == (3000.0, 12.0)


@pytest.mark.parametrize(
    ("seconds", "requests", "warm"), [(60.0, 20.0, True), (59.0, 20.0, False), (60.0, 19.0, False)]
)
def test_risks_are_spoken_of_once_a_minute_and_twenty_requests_were_seen(
    seconds: float, requests: float, *, warm: bool
) -> None:
    assert Estimates(seconds=seconds, requests=requests).warm is warm


def test_sizes_are_the_larger_of_a_long_while_and_of_the_last_minute() -> None:
    assert KNOWN.sizes == (300.0, 100.0)
    assert known(recent_computed=900.0, recent_output=50.0).sizes == (900.0, 100.0)
    assert known(recent_computed=200.0, recent_output=500.0).sizes == (300.0, 500.0)
    assert known(computed=None).sizes is None
    assert known(output=None).sizes is None


@pytest.mark.parametrize(("value", "shown"), [(None, 1.0), (0.5, 1.0), (4.0, 4.0), (29.0, 29.0), (31.0, 30.0)])
def test_burstiness_is_believable(value: float | None, shown: float) -> None:
    assert known(dispersion=value).burstiness == shown


def test_one_replica_has_its_part_of_the_rates() -> None:
    whole = known(served=800.0, finishes=2.0, growth=40.0)
    assert whole.of_one(1) is whole
    one = whole.of_one(4)
    rates = {name for name in means(whole) if getattr(one, name) != getattr(whole, name)}
    assert {name: getattr(one, name).value for name in rates} == {
        "arrivals": 0.5, "served": 200.0, "finishes": 0.5, "growth": 10.0,
    }  # fmt: skip


# Headroom ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("gauges", "means", "expected"),
    [
        ({}, {}, (3000.0 - 4 * 300.0) / 400.0),
        ({"waiting": None}, {}, 7.5),
        ({"waiting": 11.0}, {}, 0.0),
        ({"used": 4001.0, "waiting": 0.0}, {}, 0.0),
        ({"capacity": None}, {}, None),
        ({"used": None}, {}, None),
        ({}, {"output": None}, None),
        ({}, {"computed": 0.0}, 30.0),
        ({}, {"computed": 0.0, "output": 0.0}, None),
        ({}, {"computed": 0.0, "output": 0.5}, 6000.0),
    ],
)
def test_how_many_more_requests_fit(
    gauges: dict[str, float | None], means: dict[str, float | None], expected: float | None
) -> None:
    assert headroom.requests(now(**gauges), known(**means)) == expected


@pytest.mark.parametrize(
    ("gauges", "means", "expected"),
    [
        ({}, {}, 1000.0 + 4 * 400.0),
        ({"used": None}, {}, 1600.0),
        ({"waiting": None}, {}, 1000.0),
        ({}, {"prompt": None}, 1000.0),
    ],
)
def test_what_is_held_and_will_be(
    gauges: dict[str, float | None], means: dict[str, float | None], expected: float
) -> None:
    assert headroom.demanded(now(**gauges), known(**means)) == expected


@pytest.mark.parametrize("missing", ["arrivals", "residence", "held"])
def test_steady_demand_is_rate_by_time_by_size(missing: str) -> None:
    assert headroom.steady_demand(KNOWN) == 5000.0
    assert headroom.steady_demand(known(**{missing: None})) is None
    assert headroom.steady_demand(known(**{missing: 0.0})) == 0.0


@pytest.mark.parametrize(
    ("gauges", "more", "expected"),
    [
        ({"waiting": 0.0}, {}, 5.0 * math.log(4.0)),
        ({}, {}, 5.0 * math.log(2.4)),
        ({"used": 2400.0}, {}, 0.0),  # with what waits exactly the capacity
        ({"used": 2500.0}, {}, 0.0),
        ({"used": 2399.0}, {}, 5.0 * math.log(1001.0 / 1000.0)),
        ({"capacity": 5000.0}, {}, None),  # demand fits
        ({"limit": 10.0}, {}, None),  # no more may run
        ({"limit": 11.0}, {}, 5.0 * math.log(2.4)),
        ({"limit": 1.0, "running": None}, {}, 5.0 * math.log(2.4)),
        ({"limit": 0.0, "running": None}, {}, None),
        ({"capacity": None}, {}, None),
        ({"used": None}, {}, None),
        ({}, {"seconds": 59.0}, None),
        ({}, {"held": Mean(60.0)}, None),
        ({}, {"residence": Mean(60.0)}, None),
    ],
)
def test_seconds_until_the_cache_is_full(
    gauges: dict[str, float | None], more: dict[str, Any], expected: float | None
) -> None:
    found = headroom.exhaustion_seconds(now(**gauges), replace(KNOWN, **more))
    assert found == (None if expected is None else pytest.approx(expected))


def test_the_fullest_replica_stands_for_the_target() -> None:
    def pool(model: str, replica: str, **parts: float) -> tuple[Any, Any]:
        metrics = {
            "capacity": schema.KV_CACHE_CAPACITY, "used": schema.KV_CACHE_USED, "running": schema.REQUESTS_RUNNING,
            "limit": schema.REQUESTS_RUNNING_LIMIT, "waiting": schema.REQUESTS_WAITING,
        }  # fmt: skip
        labels = (("model", model), ("replica", replica)) if model else (("replica", replica),)
        return labels, {metrics[name]: value for name, value in parts.items()}

    whole = Observation(running=9.0, waiting=6.0, limit=None, capacity=300.0, used=200.0, finished=5.0)
    pools = dict(
        [
            pool("m", "0", capacity=200.0, used=100.0, running=2.0),
            pool("m", "1", capacity=100.0, used=90.0, running=7.0, limit=8.0),
            pool("m", "2", capacity=0.0, used=90.0),
            pool("m", "3", capacity=10.0),
            pool("other", "0", capacity=10.0, used=10.0),
            pool("", "0", capacity=10.0, used=10.0),
        ]
    )
    found, count = headroom.fullest(pools, "m", whole)
    assert count == 2
    assert found == Observation(running=7.0, waiting=3.0, limit=8.0, capacity=100.0, used=90.0, finished=5.0)
    for model in ("", "other", "none"):
        assert headroom.fullest(pools, model, whole) == (whole, 1)
    nothing, _ = headroom.fullest(pools, "m", Observation())
    assert (nothing.waiting, nothing.running) == (None, 7.0)


def test_headroom_of_pools_leaves_out_those_of_no_size_and_of_no_use() -> None:
    metrics = (schema.KV_CACHE_CAPACITY, schema.KV_CACHE_USED, schema.REQUESTS_WAITING)
    pools: dict[Labels, dict[Metric, float]] = {
        (("model", name),): {metric: value for metric, value in zip(metrics, values, strict=True) if value is not None}
        for name, values in {
            "a": (1000.0, 400.0, 2.0), "b": (1000.0, 400.0, None), "c": (0.0, 0.0, 0.0), "d": (None, 4.0, 0.0),
            "e": (1000.0, None, 0.0), "f": (1000.0, 900.0, 2.0),
        }.items()
    }  # fmt: skip
    pools[()] = {metrics[0]: 100.0, metrics[1]: 0.0, metrics[2]: 7.0}
    found = {
        (each.series.metric.name, each.series.label("model")): each.value
        for each in headroom.kv_headroom(pools, {"a": 100.0, "b": 100.0, "f": 100.0})
    }
    tokens, ratio = "llm_kv_cache_headroom_tokens", "llm_kv_cache_headroom_ratio"
    assert found == {
        (tokens, "a"): 400.0, (ratio, "a"): 0.4, (tokens, "b"): 600.0, (ratio, "b"): 0.6,
        (tokens, "f"): 0.0, (ratio, "f"): 0.0, (tokens, ""): 100.0, (ratio, ""): 1.0,
    }  # fmt: skip


# Pressure ------------------------------------------------------------------------------------------------------------
QUEUED = {"prefill": 1000.0, "served": 500.0, "finishes": 1.0, "wait": 0.1}


@pytest.mark.parametrize(
    ("gauges", "means", "expected"),
    [
        ({}, {}, 5 * 300.0 / 1500.0),
        ({}, {"served": None}, 5 * 300.0 / 1000.0),
        ({"waiting": 0.0}, {"wait": 9.0}, 0.2),
        ({"waiting": None}, {}, 0.2),
        ({}, {"wait": 1.5}, 1.5),
        ({}, {"wait": None}, 1.0),
        ({}, {"prefill": None}, None),
        ({}, {"computed": None}, None),
        ({}, {"prefill": 0.0, "served": None}, None),
        ({"used": 2280.0}, {}, 1.0),  # 0.97 of the cache are not yet full
        ({"used": 2281.0}, {}, 4.0),
        ({"used": 2281.0}, {"finishes": 8.0}, 1.0),
        ({"used": 2281.0}, {"finishes": None}, 1.0),
        ({"used": 2281.0}, {"wait": 9.0}, 9.0),
        ({"used": None}, {}, 1.0),
    ],
)
def test_a_first_token_waits_for_the_queue_before_it_or_as_others_have(
    gauges: dict[str, float | None], means: dict[str, float | None], expected: float | None
) -> None:
    assert pressure.forecast_ttft(now(**gauges), known(**{**QUEUED, **means})) == expected


@pytest.mark.parametrize(
    ("gauges", "more", "expected"),
    [
        ({}, {}, {"kv_cache": 0.65, "prefill": 0.5}),
        ({"capacity": None}, {}, {"prefill": 0.5}),
        ({"capacity": 0.0}, {}, {"prefill": 0.5}),
        ({"used": None}, {}, {"prefill": 0.5}),
        ({"limit": 28.0}, {}, {"kv_cache": 0.65, "concurrency": 0.5, "prefill": 0.5}),
        ({"limit": 20.0, "waiting": None}, {}, {"kv_cache": 0.25, "concurrency": 0.5, "prefill": 0.4}),
        ({"limit": 20.0, "running": None}, {}, {"kv_cache": 0.65, "prefill": 0.5}),
        ({"limit": 0.0}, {}, {"kv_cache": 0.65, "prefill": 0.5}),
        ({"waiting": 0.0}, {}, {"kv_cache": 0.25, "prefill": 0.4}),  # 600 of 1,500 tokens per second arrive
        ({}, {"seconds": 59.0}, {"kv_cache": 0.65}),
        ({}, {"prefill": Mean(60.0)}, {"kv_cache": 0.65}),
        ({}, {"arrivals": Mean(60.0)}, {"kv_cache": 0.65}),
        ({}, {"computed": Mean(60.0)}, {"kv_cache": 0.65}),
    ],
)
def test_how_far_each_resource_is_used(
    gauges: dict[str, float | None], more: dict[str, Any], expected: dict[str, float]
) -> None:
    estimates = replace(known(**QUEUED), **more)
    assert pressure.resources(now(**gauges), estimates, 2.0) == pytest.approx(expected)
    for unknown in (None, 0.0):
        less = {name: value for name, value in expected.items() if name != "prefill"}
        assert pressure.resources(now(**gauges), estimates, unknown) == pytest.approx(less)


def test_a_mark_is_of_an_engine_that_is_known_and_has_an_objective() -> None:
    estimates = known(**QUEUED)
    assert pressure.mark(NOW, estimates, 2.0, 7.0) == Mark(7.0, 0.5, 0.65)
    assert pressure.mark(now(capacity=None), estimates, 2.0, 7.0) == Mark(7.0, 0.5, 0.0)
    for none in (
        pressure.mark(NOW, replace(estimates, requests=19.0), 2.0, 7.0),
        pressure.mark(NOW, KNOWN, 2.0, 7.0),
        pressure.mark(NOW, estimates, None, 7.0),
        pressure.mark(NOW, estimates, 0.0, 7.0),
    ):
        assert none is None


def test_marks_that_are_close_are_one_and_old_ones_go() -> None:
    levels = Levels()
    for at, ttft, demand in ((0.0, 0.1, 0.9), (9.0, 0.5, 0.2), (10.0, 0.2, 0.3), (30.0, 0.1, 0.1)):
        levels = levels.after({}, Mark(at, ttft, demand), at, 5.0)
    assert levels.marks == (Mark(0.0, 0.5, 0.9), Mark(10.0, 0.2, 0.3), Mark(30.0, 0.1, 0.1))
    assert levels.high_water() == (0.5, 0.9)
    assert levels.after({}, None, 599.0, 5.0).marks == levels.marks
    assert levels.after({}, None, 600.0, 5.0).marks == levels.marks[1:]
    assert levels.after({}, None, 700.0, 5.0).high_water() is None


def test_levels_are_smoothed_over_half_a_minute() -> None:
    levels = Levels().after({"a": 0.2, "b": 1.0}, None, 0.0, 5.0).after({"a": 0.8}, None, 10.0, 10.0)
    fade = math.exp(-10.0 / 30.0)
    assert Levels({"a": Mean(30.0)}).by_resource() == {}
    assert levels.by_resource() == {"a": pytest.approx((0.2 * 5.0 * fade + 0.8 * 10.0) / (5.0 * fade + 10.0))}


# Risks ---------------------------------------------------------------------------------------------------------------
def distance(gauges: dict[str, float | None], **means: float | None) -> float | None:
    return risk.kv_distance(now(waiting=0.0, **gauges), known(**means))


def test_before_anything_has_time_to_change_the_cache_is_as_full_as_it_is() -> None:
    """Requests that stay for ever: no variance but that of the gauges, a hundredth of the capacity."""
    still = {"residence": 1e12, "arrivals": 1e-12, "held": 1.0}
    assert distance({"used": 3600.0}, **still) == pytest.approx(-10.0)
    assert distance({"used": 4040.0}, **still) == pytest.approx(1.0)
    # ten seconds of growth are more than two and a half deviations of 40 tokens; they go on for thirty
    assert distance({"used": 3600.0}, growth=10.0, **still) == pytest.approx(-10.0)
    assert distance({"used": 3600.0}, growth=10.1, **still) == pytest.approx((303.0 - 400.0) / 40.0)
    assert distance({"used": 3600.0}, growth=-10.1, **still) == pytest.approx(-10.0)


@pytest.mark.parametrize("missing", ["arrivals", "residence", "held"])
def test_a_distance_needs_each_of_its_parts(missing: str) -> None:
    assert distance({}) is not None
    assert distance({}, **{missing: None}) is None
    assert distance({}, **{missing: 0.0}) is None
    assert distance({"capacity": None}) is None
    assert distance({"capacity": 0.0}) is None
    assert distance({"used": None}) is None


def test_once_all_has_changed_the_steady_demand_stands_against_the_capacity() -> None:
    """Fifty requests of 100 tokens: a variance of twice their squares by their number, and the error of the gauges."""
    settled = {"residence": 0.001, "arrivals": 50_000.0, "held": 100.0}
    alike = math.sqrt(2.0 * 100.0**2 * 50.0 + 100.0**2)
    assert distance({"capacity": 10_000.0}, **settled) == pytest.approx(-5000.0 / alike)
    bursts = math.sqrt(4.0 * 2.0 * 100.0**2 * 50.0 + 100.0**2)
    assert distance({"capacity": 10_000.0}, dispersion=4.0, **settled) == pytest.approx(-5000.0 / bursts)


@pytest.mark.parametrize(
    ("ahead", "residence", "demand", "begin"),
    [
        (15.0, 2400.0, 1200.0, 13_000.0),
        (30.0, 54.0, 1000.0, 6250.0),
        (60.0, 141.0, 1000.0, 6850.0),
        (120.0, 198.0, 1040.0, 5720.0),
        (300.0, 3100.0, 1060.0, 5090.0),
    ],
)
def test_the_worst_of_five_moments_counts(ahead: float, residence: float, demand: float, begin: float) -> None:
    """A cache that empties while chance grows: the residence decides at which moment it is nearest to its end."""
    held, capacity = 500.0, 10_000.0
    found = risk.kv_distance(
        Observation(capacity=capacity, used=begin, waiting=0.0),
        known(residence=residence, held=held, arrivals=demand / residence / held),
    )
    left = math.exp(-ahead / residence)
    spread = math.sqrt(2.0 * held * demand * (1.0 - left**2) + (0.01 * capacity) ** 2)
    assert found == pytest.approx((demand * (1.0 - left) + begin * left - capacity) / spread)


@pytest.mark.parametrize(
    ("gauges", "means", "expected"),
    [
        ({"used": 3701.0}, {}, True),
        ({"used": 3700.0}, {}, False),  # it fits exactly
        ({"used": 3701.0, "waiting": 0.0}, {}, False),
        ({"used": 3701.0, "waiting": None}, {}, False),
        ({"used": 3701.0, "limit": 11.0}, {}, True),
        ({"used": 3701.0, "limit": 10.0}, {}, False),
        ({"used": 3701.0, "limit": 1.0, "running": None}, {}, True),
        ({"used": 3701.0}, {"computed": None}, False),
        ({"used": None}, {}, False),
        ({"used": 3701.0, "capacity": None}, {}, False),
    ],
)
def test_a_request_is_blocked_where_it_does_not_fit_and_more_could_run(
    gauges: dict[str, float | None], means: dict[str, float | None], *, expected: bool
) -> None:
    assert risk.blocked(now(**gauges), known(**means)) is expected


def test_what_happens_is_all_but_certain() -> None:
    assert risk.with_facts(0.2, False, False) == 0.2  # noqa: FBT003 - what happens, each by itself
    assert risk.with_facts(0.2, False, True) == 0.95  # noqa: FBT003 - as above
    assert risk.with_facts(0.97, True) == 0.97  # noqa: FBT003 - as above
    assert risk.with_facts(None, True) == 0.95  # noqa: FBT003 - as above
    assert risk.with_facts(None, False) is None  # noqa: FBT003 - as above


@pytest.mark.parametrize(("distance", "shown"), [(-9.0, -8.0), (-7.9, -7.9), (0.5, 0.5), (2.9, 2.9), (3.1, 3.0)])
def test_distances_are_clipped(distance: float, shown: float) -> None:
    assert risk.kv_feature(distance) == shown


def test_the_risks_are_logistic_functions() -> None:
    still = known(residence=1e12, arrivals=1e-12, held=1.0)
    observed = now(used=4040.0, waiting=0.0)
    assert risk.kv_saturation(observed, still) == pytest.approx(1.0 / (1.0 + math.exp(-1.270 - 0.821)))
    assert risk.kv_saturation(observed, replace(still, seconds=59.0)) is None
    assert risk.kv_saturation(now(used=None), still) is None

    levels = Levels(marks=(Mark(0.0, 2.0, 0.4), Mark(10.0, 1.0, 0.8)))
    expected = -0.667 + 0.775 * math.log(2.0) + 0.001 * 0.8
    assert risk.high_water(levels, KNOWN) == pytest.approx(1.0 / (1.0 + math.exp(-expected)), abs=1e-9)
    assert risk.high_water(levels, replace(KNOWN, seconds=59.0)) is None
    assert risk.high_water(Levels(), KNOWN) is None


@pytest.mark.parametrize(
    ("mark", "features"),
    [
        (Mark(0.0, 1e-4, 1.4), (math.log(1e-3), 1.4)),
        (Mark(0.0, 2e-3, 1.6), (math.log(2e-3), 1.5)),
        (Mark(0.0, 999.0, 0.0), (math.log(999.0), 0.0)),
        (Mark(0.0, 1001.0, 0.0), (math.log(1e3), 0.0)),
    ],
)
def test_features_of_the_high_water_are_clipped(mark: Mark, features: tuple[float, float]) -> None:
    assert risk.high_water_features(Levels(marks=(mark,))) == pytest.approx(features)


@pytest.mark.parametrize(
    ("waiting", "limit", "means", "expected"),
    [
        (100.0, 130, {"finishes": 1.9}, 0.5),  # as many as may are expected
        (100.0, 130, {}, 0.1224),  # 30 fewer, over a deviation of the root of 600, and of 1.3 for the gauge
        (100.0, 130, {"finishes": 1.8}, 0.8776),
        (100.0, 130, {"dispersion": 4.0}, 0.2754),
        (230.0, 230, {"finishes": 9.0}, 1.0),
        (229.0, 230, {"finishes": 9.0}, 0.0),
        (None, 130, {}, None),
        (100.0, 130, {"arrivals": None}, None),
        (100.0, 130, {"finishes": None}, None),
    ],
)
def test_a_queue_passes_its_limit_by_what_comes_beyond_what_ends(
    waiting: float | None, limit: int, means: dict[str, float | None], expected: float | None
) -> None:
    estimates = known(**{"finishes": 2.0, **means})
    found = risk.queue_overflow(now(waiting=waiting), estimates, limit)
    assert found == (None if expected is None else pytest.approx(expected, abs=2e-4))
    assert risk.queue_overflow(now(waiting=waiting), estimates, None) is None
    assert risk.queue_overflow(now(waiting=waiting), replace(estimates, seconds=59.0), limit) is None
