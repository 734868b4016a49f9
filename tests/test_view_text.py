"""Numbers as people read them, at both sides of every step."""

from __future__ import annotations

from math import inf

import pytest

from llm_headroom.view import text
from llm_headroom.view.quantiles import quantile
from llm_headroom.view.values import Latency, Quantile

KIB = 1024.0
TTFT = "llm_time_to_first_token_seconds"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.0, "0"),
        (9_999.0, "9,999"),
        (10_000.0, "10.0k"),
        (99_900.0, "99.9k"),
        (100_000.0, "100k"),
        (999_000.0, "999k"),
        (999_900.0, "1.0M"),
        (1e6, "1.0M"),
        (99.9e6, "99.9M"),
        (100e6, "100M"),
        (999e6, "999M"),
        (1e9, "1.0G"),
        (150e9, "150.0G"),
        (-12_000.0, "-12.0k"),
    ],
)
def test_a_count_has_about_five_characters(value: float, written: str) -> None:
    assert text.count(value) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "–"),
        (0.0, "0"),
        (0.0004, "0.001"),
        (0.04, "0.04"),
        (0.098, "0.1"),
        (9.94, "9.9"),
        (9.96, "10"),
        (9.9, "9.9"),
        (10.0, "10"),
        (12_300.0, "12.3k"),
    ],
)
def test_a_small_rate_has_a_digit_more(value: float | None, written: str) -> None:
    assert text.rate(value) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "–"),
        (0.0, "0%"),
        (1e-9, "0.0001%"),
        (0.0004, "0.04%"),
        (0.004, "0.4%"),
        (0.006, "1%"),
        (0.994, "99%"),
        (0.996, "99.6%"),
        (0.9996, "99.96%"),
        (1.0 - 1e-9, "99.9999%"),
        (1.0, "100%"),
        (1.2, "120%"),
    ],
)
def test_a_ratio_that_is_neither_nothing_nor_all_does_not_look_so(value: float | None, written: str) -> None:
    assert text.percent(value) == written


@pytest.mark.parametrize(("value", "written"), [(0.5, "50.0%"), (0.0004, "0.04%"), (0.9996, "99.96%"), (0.0, "0.0%")])
def test_a_ratio_has_as_many_digits_as_are_wanted_or_more(value: float, written: str) -> None:
    assert text.percent(value, 1) == written


@pytest.mark.parametrize(
    ("value", "written"), [(0.94996, "94.9%"), (0.95, "95.0%"), (0.9996, "99.9%"), (1.0, "100.0%")]
)
def test_an_objective_that_is_missed_does_not_look_met(value: float, written: str) -> None:
    assert text.attained(value) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.125, "0.12 ×"),
        (0.96, "0.96 ×"),
        (0.998, "0.99 ×"),
        (1.0, "1.0 ×"),
        (9.9, "9.9 ×"),
        (9.96, "10 ×"),
        (10.0, "10 ×"),
        (15.9, "16 ×"),
        (16.1, "≥ 16 ×"),
    ],
)
def test_a_factor_has_two_digits(value: float, written: str) -> None:
    assert text.times(value) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "–"),
        (1023.0, "1023 B"),
        (KIB, "1 KiB"),
        (1023.0 * KIB, "1023 KiB"),
        (KIB**2, "1.0 MiB"),
        (1023.0 * KIB**2, "1023.0 MiB"),
        (KIB**3, "1.0 GiB"),
        (1023.0 * KIB**3, "1023.0 GiB"),
        (KIB**4, "1.0 TiB"),
        (2048.0 * KIB**4, "2048.0 TiB"),
        (-2.0 * KIB, "-2 KiB"),
    ],
)
def test_bytes_are_in_the_largest_unit_that_they_fill(value: float | None, written: str) -> None:
    assert text.size(value) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "–"),
        (0.0, "0 ms"),
        (0.0999, "99.9 ms"),
        (0.1, "0.1 s"),
        (99.4, "99.4 s"),
        (100.0, "100 s"),
        (1234.5, "1234 s"),
    ],
)
def test_a_latency_has_three_digits(value: float | None, written: str) -> None:
    assert text.seconds(value) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "–"),
        (-3.0, "0 s"),
        (119.0, "119 s"),
        (120.0, "2 min"),
        (3599.0, "60 min"),
        (3600.0, "1 h"),
        (3660.0, "1 h 1 min"),
        (86_399.0, "23 h 59 min"),
        (86_400.0, "24 h"),
        (172_800.0, "2 d"),
        (200_000.0, "2 d"),
    ],
)
def test_a_duration_has_the_units_that_matter(value: float | None, written: str) -> None:
    assert text.span(value) == written


@pytest.mark.parametrize(
    ("low", "high", "written"),
    [
        (0.0, 0.05, "0–50 ms"),
        (0.025, 0.05, "25–50 ms"),
        (0.05, 0.25, "50 ms–0.25 s"),
        (0.25, 2.5, "0.25–2.5 s"),
        (0.0, 2.5, "0–2.5 s"),
        (2.5, None, "beyond the last bucket"),
    ],
)
def test_the_bounds_of_a_bucket_share_a_unit_where_they_have_the_same(
    low: float, high: float | None, written: str
) -> None:
    assert text.bucket(Quantile(0.5, low, high, None)) == written


@pytest.mark.parametrize(
    ("estimates", "row"),
    [
        ((), ("ms", [])),
        ((0.0123, 0.999), ("ms", ["12.3", "999"])),
        ((0.0123, 1.0), ("s", ["0.0123", "1"])),
        ((0.0995, 0.2), ("ms", ["99.5", "200"])),
        ((99.5, 100.4), ("s", ["99.5", "100"])),
        ((0.5, None), ("s", ["0.5", "> 7"])),
    ],
)
def test_the_quantiles_of_a_row_are_in_the_unit_of_the_largest(
    estimates: tuple[float | None, ...], row: tuple[str, list[str]]
) -> None:
    assert text.row(latency(*estimates)) == row


def latency(*estimates: float | None, metric: str = TTFT) -> Latency:
    """With these estimates at the ranks .5, .95 and .99; None is beyond a last bound of 7 s."""
    ranks = (0.5, 0.95, 0.99)
    quantiles = tuple(
        Quantile(rank, 7.0 if each is None else 0.0, None if each is None else 8.0, each)
        for rank, each in zip(ranks, estimates, strict=False)
    )
    return Latency(metric, 60.0, 10.0, quantiles)


@pytest.mark.parametrize(
    ("latencies", "expected"),
    [
        ((), None),
        ((latency(),), None),
        ((latency(0.5, 2.0, 3.0),), 2.0),
        ((latency(0.5, None, None),), 7.0),
        ((latency(0.1, 0.2, 0.3, metric="llm_inter_token_latency_seconds"), latency(0.5, 2.0, 3.0)), 2.0),
        ((latency(0.1, 0.2, 0.3, metric="llm_inter_token_latency_seconds"),), None),
    ],
)
def test_of_first_tokens_the_95th_percentile_is_known_or_the_bound_that_it_is_beyond(
    latencies: tuple[Latency, ...], expected: float | None
) -> None:
    assert text.p95_seconds(latencies) == expected


@pytest.mark.parametrize(
    ("value", "threshold", "expected"),
    [
        (None, 2.0, False),
        (Quantile(0.95, 0.0, 8.0, 2.1), None, False),
        (Quantile(0.95, 0.0, 8.0, 2.0), 2.0, False),
        (Quantile(0.95, 0.0, 8.0, 2.1), 2.0, True),
        (Quantile(0.95, 2.1, None, None), 2.0, True),
        (Quantile(0.95, 2.0, None, None), 2.0, False),
    ],
)
def test_a_quantile_is_later_than_an_objective_that_it_is_beyond(
    value: Quantile | None, threshold: float | None, *, expected: bool
) -> None:
    assert text.later(value, threshold) is expected


@pytest.mark.parametrize(
    ("rank", "bounds", "counts", "expected"),
    [
        (0.5, (1.0, 2.0, inf), (0.0, 0.0, 0.0), None),
        (0.5, (1.0, 2.0, inf), (4.0, 4.0, 4.0), Quantile(0.5, 0.0, 1.0, 0.5)),
        (0.5, (1.0, 2.0, inf), (2.0, 4.0, 4.0), Quantile(0.5, 0.0, 1.0, 1.0)),
        (0.5, (1.0, 2.0, inf), (0.0, 1.0, 1.0), Quantile(0.5, 1.0, 2.0, 1.5)),
        (0.5, (1.0, 2.0, inf), (3.0, 1.0, 2.0), Quantile(0.5, 0.0, 1.0, 1.0 / 3.0)),
        (0.5, (1.0, 2.0, inf), (1.0, 5.0, 5.0), Quantile(0.5, 1.0, 2.0, 1.375)),
        (0.5, (1.0, 2.0, 4.0, inf), (0.0, 0.0, 3.0, 3.0), Quantile(0.5, 2.0, 4.0, 3.0)),
        (0.0, (1.0, 2.0, inf), (0.0, 3.0, 3.0), Quantile(0.0, 1.0, 2.0, 1.0)),
        (0.5, (-1.0, 2.0, inf), (3.0, 3.0, 3.0), Quantile(0.5, -1.0, -1.0, -1.0)),
        (0.95, (1.0, 2.0, inf), (1.0, 1.0, 2.0), Quantile(0.95, 2.0, None, None)),
    ],
)
def test_a_quantile_is_where_its_rank_lies_between_the_bounds_of_its_bucket(
    rank: float, bounds: tuple[float, ...], counts: tuple[float, ...], expected: Quantile | None
) -> None:
    assert quantile(rank, bounds, counts) == expected
