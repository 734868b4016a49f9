"""Windows, sizes and changes of the traffic at both sides of each bound; draws in the middle of every distribution."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest

from llm_headroom.derive.interval import Interval
from llm_headroom.derive.observation import Observation
from llm_headroom.derive.traffic import Lengths, Sampler, Sizes, Traffic, ratios
from llm_headroom.model import Histogram

NOTHING = Observation()


class Middle(random.Random):
    """Draws the middle of every distribution; of a gamma its mean."""

    def random(self) -> float:
        """Half of what is possible."""
        return 0.5


def poll(firsts: float = 2.0, length: float = 1000.0, **more: Any) -> Interval:  # noqa: ANN401 - fields of an interval
    return Interval(**{
        "seconds": 5.0, "arrivals": firsts, "finished": firsts, "admitted": firsts, "firsts": firsts,
        "prompt": firsts * length, **more,
    })  # fmt: skip


# Lengths -------------------------------------------------------------------------------------------------------------
def test_a_sampler_has_the_buckets_of_its_histogram_scaled_to_the_mean() -> None:
    lengths = Lengths((0.5, 10.0, 100.0, math.inf), (1.0, 2.0, 4.0, 1.0))
    # logarithms are equally likely within a bucket; the last one ends at twice its begin; below 1 all is 1
    own = 1.0 / 8.0 + (9.5 / math.log(20.0)) / 4.0 + (90.0 / math.log(10.0)) / 2.0 + (100.0 / math.log(2.0)) / 8.0
    found = lengths.sampler(2.0 * own)
    assert found.shares == (0.125, 0.375, 0.875, 1.0)
    assert [each for bucket in found.buckets for each in bucket] == pytest.approx(
        [2.0, 0.0, 1.0, math.log(20.0), 20.0, math.log(10.0), 200.0, math.log(2.0)]
    )
    assert found.mean == 2.0 * own
    assert Lengths((1.0, math.inf), (0.0, 0.0)).sampler(7.0) == Sampler((), (), 7.0)
    assert Lengths((1.0, math.inf), (0.5, 0.0)).sampler(7.0).shares == (1.0, 1.0)


def test_the_deviation_of_a_sampler() -> None:
    alike = Sampler((0.25, 1.0), ((10.0, 0.0), (30.0, 0.0)), 25.0)
    assert alike.deviation == pytest.approx(math.sqrt(0.25 * 100.0 + 0.75 * 900.0 - 625.0))
    wide = Sampler((1.0,), ((10.0, math.log(10.0)),), 90.0 / math.log(10.0))
    assert wide.deviation == pytest.approx(math.sqrt(9900.0 / (2.0 * math.log(10.0)) - wide.mean**2))
    assert Sampler((1.0,), ((10.0, 0.0),), 11.0).deviation == 0.0
    assert Sampler((), (), 7.0).deviation == 7.0


@pytest.mark.parametrize(
    ("sampler", "length"),
    [
        (Sampler((), (), 100.0), 69),
        (Sampler((), (), 0.1), 1),
        (Sampler((0.4, 1.0), ((7.0, 0.0), (10.0, math.log(10.0))), 9.0), 32),
        (Sampler((0.5, 1.0), ((7.0, 0.0), (10.0, 0.0)), 9.0), 7),
        (Sampler((0.49,), ((7.0, 0.0),), 9.0), 7),  # shares that do not reach 1 for rounding
        (Sampler((1.0,), ((0.2, 0.0),), 9.0), 1),
    ],
)
def test_a_draw_in_the_middle(sampler: Sampler, length: int) -> None:
    assert sampler.draw(Middle()) == length


def test_lengths_fade_each_at_its_own_pace() -> None:
    def seen(count: float) -> Observation:
        histogram = Histogram((1.0, math.inf), (count, count), count)
        return Observation(ttft=histogram, prompt_sizes=histogram, generation_sizes=histogram)

    known = Traffic()
    for _ in range(2):
        known = known.after(poll(generated=90.0, seconds=45.0), seen(0.0), seen(4.0))
    assert known.prompts.counts == pytest.approx((4.0 * math.exp(-0.05) + 4.0, 0.0))
    assert known.answers.counts == pytest.approx((4.0 * math.exp(-0.025) + 4.0, 0.0))
    assert known.waited.counts == pytest.approx((4.0 * math.exp(-0.1) + 4.0, 0.0))
    assert known.generated == pytest.approx(90.0 * math.exp(-0.025) + 90.0)
    assert known.answered == pytest.approx(2.0 * math.exp(-0.025) + 2.0)
    assert known.alike == 90.0


# Windows -------------------------------------------------------------------------------------------------------------
def test_the_window_retains_fifteen_minutes_and_the_interval_that_fills_them() -> None:
    known = Traffic()
    for number in range(6):
        known = known.after(poll(arrivals=float(number), seconds=400.0), NOTHING, NOTHING)
    assert [each.arrivals for each in known.intervals] == [3.0, 4.0, 5.0]
    exact = Traffic(intervals=(poll(seconds=300.0),) * 9).after(poll(seconds=300.0), NOTHING, NOTHING)
    assert len(exact.intervals) == 3


def test_a_minute_is_busy_if_anything_happens_in_it() -> None:
    known = Traffic().after(Interval(seconds=5.0), NOTHING, NOTHING)
    assert (known.busy, known.quiet) == (0.0, math.inf)
    known = known.after(poll(), NOTHING, NOTHING)
    assert (known.busy, known.quiet) == (5.0, 0.0)
    for number in range(1, 14):
        known = known.after(Interval(seconds=5.0), NOTHING, NOTHING)
        assert (known.busy, known.quiet) == (5.0 + 5.0 * min(number, 11), 5.0 * number)


def minutes(*arrivals: float, replicas: int = 1) -> Traffic:
    """Minutes in which so many requests came to each of the replicas."""
    return Traffic(intervals=tuple(Interval(seconds=60.0, arrivals=count, replicas=replicas) for count in arrivals))


DISPERSION = (4 * 12.0**2 + 48.0**2 - 5 * 72.0) / (5 * 72.0**2)
CHANGED = (1.0 + DISPERSION * 120.0) / (1.0 + DISPERSION * 72.0)
"""Minutes with 60, 60, 60, 60 and 120 requests, 72 on average: what they differ by beyond chance, and the last one."""


@pytest.mark.parametrize(
    ("known", "usual", "ratio"),
    [
        (minutes(6, 6, 6, 6, 6), 0.1, 1.0),
        (minutes(99, 6, 6, 6, 6, 6), 0.1, 1.0),  # more than five minutes ago
        (minutes(6, 6, 6, 6, 12), 0.12, 1.0),  # chance
        (minutes(12, 6, 6, 6, 6), 0.12, 1.0),
        (minutes(60, 60, 60, 60, 120), 1.2, CHANGED),  # of more requests it is less by chance
        (minutes(6, 6, 6, 6, 12, replicas=10), 0.12, CHANGED),
        (minutes(60, 60, 60, 60, 9000), 30.8, 2.0),
        (minutes(600, 600, 600, 600, 0), 8.0, 1.0),  # a lull is no reason to hurry
        (minutes(60, 0, 0, 0, 0, 0), 0.0, 1.0),
        (Traffic(), 0.0, 1.0),
    ],
)
def test_the_present_rate_is_that_of_the_last_minute_as_far_as_it_is_no_chance(
    known: Traffic, usual: float, ratio: float
) -> None:
    assert known.present_rate == pytest.approx(usual * ratio)


def test_rates_of_the_last_seconds() -> None:
    known = Traffic(intervals=tuple(poll(arrivals=float(number)) for number in (1, 2, 4, 8)))
    assert [known.recent_rate(seconds) for seconds in (0.0, 5.0, 5.1, 10.0, 99.0)] == [0.0, 1.6, 1.2, 1.2, 0.75]
    assert (known.rate, Traffic().rate, Traffic().recent_rate(9.0)) == (0.75, 0.0, 0.0)
    assert (known.total("arrivals"), known.seconds) == (15.0, 20.0)


def test_the_latest_arrivals_and_at_least_two_minutes() -> None:
    known = Traffic(intervals=(poll(seconds=60.0, arrivals=10.0),) * 10)
    assert [len(known.latest(arrivals).intervals) for arrivals in (5.0, 40.0, 41.0, 50.0, 51.0, 1e9)] == [
        2, 4, 5, 5, 6, 10,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("full", "waiting", "served"),
    [(60, (1.0, 1.0), 0.4), (59, (1.0, 1.0), None), (60, (1.0, 0.0), None), (60, (0.0, 1.0), None)],
)
def test_what_was_served_while_requests_waited(full: int, waiting: tuple[float, float], served: float | None) -> None:
    known = Traffic(intervals=(*(poll(),) * 9, *(poll(waiting=waiting),) * full), alike=345.0)
    assert known.served == served
    assert replace(known, alike=295.0).served is None, "what others waited for"


@pytest.mark.parametrize(
    ("running", "finished", "count", "seconds"),
    [(0.0, 2.0, 60, 60.0), (20.0, 2.0, 60, 150.0), (20.0, 2.0, 20, 100.0), (1.0, 0.0, 60, 300.0), (0.1, 0.0, 60, 90.0)],
)
def test_an_engine_has_settled_after_three_residences(
    running: float, finished: float, count: int, seconds: float
) -> None:
    known = Traffic(intervals=(poll(running=running, finished=finished),) * count)
    assert known.warm_up == pytest.approx(seconds)


def test_what_requests_are_like() -> None:
    intervals = (poll(cached=500.0, generated=90.0, tokens=43.0), *(poll(cached=500.0, tokens=43.0),) * 4)
    known = Traffic(intervals=intervals, generated=90.0, answered=3.0, alike=25.0)
    assert known.sizes() == Sizes(prompt=1000.0, answer=30.0, cached=0.25, per_step=1.0)
    fast = replace(known, intervals=(poll(generated=900.0, tokens=40.0),) * 5)
    assert fast.sizes() == Sizes(prompt=1000.0, answer=30.0, cached=0.0, per_step=4500.0 / 210.0)
    assert replace(known, generated=0.5, answered=0.2).sizes() == Sizes(
        prompt=1000.0, answer=1.0, cached=0.25, per_step=1.0
    )


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({}, 0.1),  # 4,500 tokens are held of 4 * (1,000 + 50) + 700, and each of four others would hold 100 more
        ({"held": (4600.0, 4400.0)}, 0.1),
        ({"held": (4899.0, 4899.0)}, 0.00025),
        ({"held": (4901.0, 4901.0)}, 0.0),
        ({"held": (0.0, 0.0)}, 0.0),  # not told
        ({"held": (100.0, 100.0)}, 0.4),  # no more than is cached
        ({"cached": 0.0}, 0.0),
        ({"running": 1.0}, 0.0),  # nobody to share with
        ({"token_seconds": 30.0}, 0.1875),  # a preempted one is no more than one that runs
    ],
)
def test_what_running_requests_share_is_what_is_held_less_than_they_have(
    changes: dict[str, Any], shared: float
) -> None:
    like = {"cached": 800.0, "running": 5.0, "token_seconds": 20.0, "held": (4500.0, 4500.0), **changes}
    known = Traffic(intervals=(poll(**like),) * 5, generated=50.0, answered=1.0, alike=25.0)
    sizes = known.sizes()
    assert sizes is not None
    assert sizes.shared == pytest.approx(shared)


def test_answers_of_one_length_are_half_done_on_average() -> None:
    like: dict[str, Any] = {"cached": 800.0, "running": 4.0, "token_seconds": 20.0, "held": (3800.0, 3800.0)}
    known = Traffic(intervals=(poll(**like),) * 5, generated=50.0, answered=1.0, alike=25.0)
    alike = replace(known, answers=Lengths((49.999, 50.0), (0.0, 7.0)))
    for traffic, had in ((known, 50.0), (alike, 25.0)):
        sizes = traffic.sizes()
        assert sizes is not None
        assert sizes.shared == pytest.approx((4.0 * (1000.0 + had) - 3800.0) / 3000.0, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "interval", "known"),
    [
        ({}, {}, True),
        ({}, {"firsts": 0.99}, False),
        ({"alike": 10.0}, {}, False),  # of those that are alike only four first tokens were seen
        ({"alike": 11.0}, {}, True),
        ({}, {"prompt": 0.0}, False),
        ({}, {"prompt": 0.1}, True),
        ({}, {"arrivals": 1.99}, False),
        ({"generated": 0.0}, {}, False),
        ({"generated": 0.1}, {}, True),
    ],
)
def test_requests_are_known_once_enough_were_seen(
    changes: dict[str, float], interval: dict[str, float], *, known: bool
) -> None:
    seen = Traffic(intervals=(poll(**{"firsts": 2.0, "arrivals": 2.0, **interval}),) * 5, generated=9.0, alike=25.0)
    if "firsts" in interval:
        seen = replace(seen, intervals=(replace(poll(**interval), arrivals=2.0),) * 5)
    assert (replace(seen, **changes).sizes() is not None) is known  # type: ignore[arg-type]


# Draws ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("counts", "expected", "found"),
    [
        ((10.0, 30.0), (20.0, 20.0), (0.6, 1.4)),  # a dispersion of a fifth: five more of the expected ones
        ((20.0, 20.0), (20.0, 20.0), (1.0, 1.0)),
        ((1040.0,), (1000.0,), (1.0,)),
        ((1050.0,), (1000.0,), (1050.0 + 2000.0 / 3.0,)),
        ((3.0,), (0.0,), (1.0,)),
        ((), (), ()),
    ],
)
def test_counts_are_shrunk_towards_what_was_expected(
    counts: tuple[float, ...], expected: tuple[float, ...], found: tuple[float, ...]
) -> None:
    if counts == (1050.0,):
        found = (found[0] / (1000.0 + 2000.0 / 3.0),)
    assert ratios(counts, expected, Middle()) == pytest.approx(list(found))


def test_no_dispersion_is_believed_beyond_twenty() -> None:
    shape = 1.0 / 20.0
    alike = random.Random(3).gammavariate(shape + 100.0, 1.0 / (shape + 1.0))
    assert ratios((100.0,), (1.0,), random.Random(3)) == [alike]


def test_the_intensity_is_shrunk_by_minutes_and_within_them() -> None:
    counts = [5.0, 15.0, 40.0, 20.0]
    known = Traffic(intervals=tuple(poll(count / 2.0, seconds=30.0, replicas=2) for count in counts))
    by_minute = ratios([20.0, 60.0], [40.0, 40.0], Middle())
    likely = [20.0 * by_minute[place // 2] for place in range(4)]
    expected = [a * b / 60.0 for a, b in zip(likely, ratios(counts, likely, Middle()), strict=True)]
    assert known.intensity(Middle()) == pytest.approx(expected)
    assert expected[0] < expected[1] < expected[2]


def test_prompts_of_a_minute_are_as_long_as_chance_does_not_explain() -> None:
    known = Traffic(
        intervals=(poll(10.0, 100.0, seconds=60.0), poll(10.0, 500.0, seconds=60.0), poll(10.0, 1500.0, seconds=60.0)),
        alike=120.0,
    )
    # a variance of (5,000,000 - 100^2) / 10 between minutes: all but a part in 500 is trusted
    trust = 4_990_000.0 / 5_000_000.0
    assert known.prompt_ratios(1000.0, 100.0) == pytest.approx([1.0, 1.0 - 0.5 * trust, 1.0 + 0.5 * trust])
    assert known.prompt_ratios(1000.0, 2300.0) == [1.0, 1.0, 1.0]
    idle = replace(known, intervals=(*known.intervals[1:], poll(0.0, seconds=60.0)), alike=180.0)
    assert idle.prompt_ratios(1000.0, 100.0)[2] == 1.0
    assert replace(known, intervals=(poll(0.0),) * 3, alike=15.0).prompt_ratios(1000.0, 100.0) == [1.0] * 3


def test_a_draw_in_the_middle_has_those_that_came_and_as_many_more() -> None:
    intervals = (poll(1.0, 300.0, seconds=40.0, generated=50.0), poll(1.0, 500.0, seconds=40.0))
    known = Traffic(intervals=intervals, alike=80.0, generated=100.0, answered=2.0)
    sizes = Sizes(prompt=400.0, answer=50.0, cached=0.25, per_step=1.0, shared=0.2)
    drawn = known.draw(sizes, 2.0, Middle())
    assert known.warm_up == 60.0
    assert [(mark, *call) for mark, call in drawn if mark <= 1.0] == [
        (0.5, 0.0, 300, 75, 35, 60), (0.5, 40.0, 500, 125, 35, 100),
        (0.5, 80.0, 300, 75, 35, 60), (0.5, 120.0, 500, 125, 35, 100),
    ]  # fmt: skip
    more = [(mark, *call) for mark, call in drawn if mark > 1.0]
    step = math.log(2.0) * 40.0
    assert [mark for mark, *_ in more] == [1.5] * 4
    assert [arrival for _, arrival, *_ in more] == pytest.approx([each + step for each in (-20.0, 20.0, 60.0, 100.0)])
    assert {prompt for _, _, prompt, *_ in more} == {277}
    assert [mark for mark, _ in known.draw(sizes, 0.5, Middle())] == [0.5] * 4
    assert known.draw(sizes, 0.4, Middle()) == []
