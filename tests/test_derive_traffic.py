"""Traffic of the last minutes, and draws of traffic like it."""

import random
from dataclasses import replace
from statistics import fmean, pvariance

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_headroom.derive.interval import Interval, between
from llm_headroom.derive.observation import Observation
from llm_headroom.derive.traffic import Lengths, Traffic, ratios
from llm_headroom.model import Histogram

NOTHING = Observation()


def traffic(counts: list[float], *, replicas: int = 1) -> Traffic:
    """One interval of five seconds for each count; prompts of 1,000 tokens, half of them cached, answers of 50."""
    known = Traffic()
    for count in counts:
        share = count / replicas
        interval = Interval(
            seconds=5.0, replicas=replicas, arrivals=share, finished=share, admitted=share, firsts=share,
            prompt=1000 * share, cached=500 * share, generated=50 * share, tokens=49 * share, token_seconds=share,
            running=3.0,
        )  # fmt: skip
        known = known.after(interval, NOTHING, NOTHING)
    return known


def histogram(bounds: tuple[float, ...], counts: tuple[float, ...]) -> Histogram:
    return Histogram((*bounds, float("inf")), counts, 0.0)


def test_the_window_is_fifteen_minutes() -> None:
    assert traffic([1.0] * 500).seconds == 900.0
    assert traffic([1.0] * 100).seconds == 500.0
    assert traffic([1.0] * 500).busy == 2500.0


def test_sizes_are_those_of_first_tokens_and_of_admitted_requests() -> None:
    sizes = traffic([2.0] * 60).sizes()
    assert sizes is not None
    assert (sizes.prompt, sizes.answer, sizes.cached, sizes.per_step) == (1000.0, 50.0, 0.5, 1.0)


@pytest.mark.parametrize("counts", [[0.0] * 100, [1.0] * 9, [0.1] * 40])
def test_too_few_requests_have_no_sizes(counts: list[float]) -> None:
    assert traffic(counts).sizes() is None


def test_arrivals_are_what_ended_and_what_the_engine_took_in() -> None:
    before = Observation(running=3.0, waiting=1.0, finished=10.0)
    now = Observation(running=4.0, waiting=3.0, finished=15.0)
    assert between(before, now, 5.0).arrivals == 8.0
    assert between(before, now, 5.0, replicas=2).arrivals == 4.0


def test_draws_are_as_many_as_asked_for_and_marks_thin_them() -> None:
    known = traffic([10.0] * 180)
    sizes = known.sizes()
    assert sizes is not None
    drawn = known.draw(sizes, 4.0, random.Random(1))
    expected = 10.0 / 5.0 * (900.0 + known.warm_up)
    for times in (1.0, 2.0, 4.0):
        assert sum(mark <= times for mark, _ in drawn) == pytest.approx(times * expected, rel=0.06)
    arrivals = [call.arrival for _, call in drawn]
    assert arrivals == sorted(arrivals)
    assert fmean(call.prompt for _, call in drawn) == pytest.approx(1000.0, rel=0.05)
    assert all(call.cached < call.prompt for _, call in drawn)


def test_what_came_is_among_the_draws_when_it_came_and_as_long_as_it_was() -> None:
    chance = random.Random(4)
    known = traffic([float(chance.randrange(4)) for _ in range(180)])
    lengths = [1000.0 * (1 + index % 7) for index in range(180)]
    known = replace(
        known,
        intervals=tuple(
            replace(each, prompt=each.firsts * length) for each, length in zip(known.intervals, lengths, strict=True)
        ),
    )
    sizes = known.sizes()
    assert sizes is not None
    came = [call for mark, call in known.draw(sizes, 3.0, random.Random(1)) if mark <= 1.0]
    for index, each in enumerate(known.intervals):
        begin = known.warm_up + 5.0 * index
        own = [call.prompt for call in came if begin <= call.arrival < begin + 5.0]
        assert len(own) == each.arrivals
        assert sum(own) == pytest.approx(each.prompt, abs=len(own))


def test_prompts_of_requests_that_waited_before_the_window_are_not_those_of_later_ones() -> None:
    known = traffic([1.0] * 180)
    first, *others = known.intervals
    queued = replace(first, arrivals=0.0, firsts=4.0, prompt=80_000.0, waiting=(4.0, 0.0))
    known = replace(known, intervals=(queued, *others))
    sizes = known.sizes()
    assert sizes is not None
    came = [call.prompt for mark, call in known.draw(sizes, 1.0, random.Random(1)) if mark <= 1.0]
    assert set(came) == {1000}


def test_one_of_two_replicas_gets_half_of_what_came() -> None:
    known = traffic([10.0] * 180, replicas=2)
    sizes = known.sizes()
    assert sizes is not None
    drawn = [mark for mark, call in known.draw(sizes, 2.0, random.Random(1)) if call.arrival >= known.warm_up]
    assert len(drawn) == 1800
    assert sum(mark <= 1.0 for mark in drawn) == pytest.approx(900, rel=0.1)


def test_the_share_of_waits_beyond_a_bound() -> None:
    waits = Lengths((1.0, 2.5, float("inf")), (80.0, 15.0, 5.0))
    assert (waits.beyond(1.0), waits.beyond(2.5), waits.total) == (0.2, 0.05, 100.0)
    assert Lengths().beyond(1.0) == 0.0


def test_replicas_share_the_traffic_but_not_its_bursts() -> None:
    """Counts of one of eight replicas vary less than Poisson; the bursts that are left are those of the whole."""
    chance = random.Random(3)
    counts = [float(chance.choice((0, 0, 0, 40))) for _ in range(180)]
    of_one = traffic(counts, replicas=8)
    intensity = of_one.intensity(random.Random(1))
    assert fmean(intensity) == pytest.approx(fmean(counts) / 8 / 5, rel=0.1)
    assert pvariance(intensity) > fmean(intensity) ** 2


def test_poisson_counts_are_shrunk_to_their_mean_and_bursts_are_not() -> None:
    chance = random.Random(5)
    steady = [float(sum(chance.random() < 0.01 for _ in range(1000))) for _ in range(180)]
    drawn = traffic(steady).intensity(random.Random(1))
    assert pvariance(drawn) < 0.2 * fmean(drawn)
    bursts = [50.0 if index % 30 == 0 else 8.0 for index in range(180)]
    drawn = traffic(bursts).intensity(random.Random(1))
    assert drawn[30] == pytest.approx(10.0, rel=0.4)
    assert fmean(drawn[31:60]) == pytest.approx(1.6, rel=0.4)


def test_prompts_of_a_burst_are_alike_only_if_chance_does_not_explain_it() -> None:
    alike = traffic([10.0] * 180)
    assert alike.prompt_ratios(1000.0, 1000.0) == [1.0] * 180

    long = Interval(seconds=5.0, arrivals=10.0, firsts=10.0, prompt=50_000.0)
    short = Interval(seconds=5.0, arrivals=10.0, firsts=10.0, prompt=5_000.0)
    mixed = replace(alike, intervals=(*(short,) * 168, *(long,) * 12))
    mean = (168 * 500 + 12 * 5000) / 180
    ratios_of = mixed.prompt_ratios(mean, 1000.0)
    assert ratios_of[0] == pytest.approx(500 / mean, rel=0.05)
    assert ratios_of[-1] == pytest.approx(5000 / mean, rel=0.05)
    assert mixed.prompt_ratios(mean, 1e5) == [1.0] * 180


def test_lengths_follow_the_histogram_and_have_the_mean_that_was_seen() -> None:
    bounds = (10.0, 100.0, 1000.0)
    before = histogram(bounds, (0.0, 0.0, 0.0, 0.0))
    now = histogram(bounds, (0.0, 90.0, 100.0, 100.0))
    lengths = Lengths().after(before, now, 1.0)
    assert lengths.counts == (0.0, 90.0, 10.0, 0.0)
    chance = random.Random(2)
    drawn = [lengths.sampler(80.0).draw(chance) for _ in range(4000)]
    assert fmean(drawn) == pytest.approx(80.0, rel=0.05)
    assert sum(each > 120 for each in drawn) / len(drawn) == pytest.approx(0.1, abs=0.02)
    assert lengths.after(now, now, 0.5).counts == (0.0, 45.0, 5.0, 0.0)


def test_without_a_histogram_lengths_are_exponential() -> None:
    chance = random.Random(2)
    drawn = [Lengths().sampler(100.0).draw(chance) for _ in range(4000)]
    assert fmean(drawn) == pytest.approx(100.0, rel=0.06)
    assert sum(each > 200 for each in drawn) / len(drawn) == pytest.approx(0.135, abs=0.02)


@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=40),
    means=st.floats(0.1, 30.0),
    seed=st.integers(0, 1000),
)
def test_ratios_are_never_negative(counts: list[int], means: float, seed: int) -> None:
    found = ratios(counts, [means] * len(counts), random.Random(seed))
    assert len(found) == len(counts)
    assert all(ratio >= 0.0 for ratio in found)


def test_a_new_mix_is_seen_within_two_minutes_and_the_old_one_is_no_longer_mixed_in() -> None:
    chance = random.Random(4)
    known = traffic([])

    def minutes(known: Traffic, count: int, prompt: float, answer: float) -> Traffic:
        for _ in range(12 * count):
            firsts = float(chance.randint(2, 6))
            tokens = firsts * prompt * chance.uniform(0.8, 1.2)
            interval = Interval(
                seconds=5.0, arrivals=firsts, finished=firsts, admitted=firsts, firsts=firsts, prompt=tokens,
                generated=firsts * answer, tokens=firsts * answer, token_seconds=firsts,
            )  # fmt: skip
            known = known.after(interval, NOTHING, NOTHING)
        return known

    old = minutes(known, 30, 500.0, 100.0)
    assert old.alike == 1800.0
    sizes = minutes(old, 2, 4000.0, 300.0).sizes()
    assert sizes is not None
    assert sizes.prompt == pytest.approx(4000.0, rel=0.2)
    assert sizes.answer == pytest.approx(300.0, rel=0.2)
    later = minutes(old, 8, 4000.0, 300.0)
    later_sizes = later.sizes()
    assert later_sizes is not None
    assert later_sizes.prompt == pytest.approx(4000.0, rel=0.1)
    assert later.seconds == 900.0  # how requests arrive is still known of all of it
    assert later.prompt_ratios(4000.0, 4000.0)[:80] == [1.0] * 80


@pytest.mark.parametrize("counts", [(0.0, 90.0, 100.0, 100.0), (5.0, 5.0, 10.0, 20.0), (0.0, 0.0, 0.0, 0.0)])
def test_the_deviation_is_that_of_the_draws(counts: tuple[float, ...]) -> None:
    """Lengths below one bound, between two, and beyond the last one; without any they are exponential."""
    sampler = Lengths().after(histogram((1.0, 100.0, 1000.0), (0.0,) * 4), histogram((1.0, 100.0, 1000.0), counts), 1.0)
    drawn = sampler.sampler(5000.0)
    chance = random.Random(3)
    lengths = [drawn.draw(chance) for _ in range(20_000)]

    assert fmean(lengths) == pytest.approx(5000.0, rel=0.02)
    assert pvariance(lengths) ** 0.5 == pytest.approx(drawn.deviation, rel=0.02)


def test_prompts_of_an_unknown_total_are_drawn() -> None:
    known = traffic([2.0] * 60)
    unknown = replace(known, intervals=tuple(replace(each, prompt=0.0) for each in known.intervals))
    sizes = known.sizes()
    assert sizes is not None
    came = [call.prompt for mark, call in unknown.draw(sizes, 1.0, random.Random(1)) if mark <= 1.0]

    assert fmean(came) == pytest.approx(1000.0, rel=0.2)
    assert len(set(came)) > 50
