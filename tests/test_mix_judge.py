"""The judge of changes of the mix: the requests of a mix, and the table out of rows."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from statistics import fmean

import pytest

from evaluate.scenarios import A100_8B
from headroom import changes, report
from headroom.changes import AFTER, BURSTY, CHANGED, CONSTANT, FEW, VARIED, Row

ROW = Row(A100_8B.name, "cached", "not cached", 0.3, 120, 1.0, 0.5)


def test_requests_are_of_the_mix() -> None:
    drawn = list(changes.requests("with a batch job", CONSTANT, 10.0, (100.0, 1100.0), 1))
    assert len(drawn) == pytest.approx(10_000, rel=0.05)
    assert all(100.0 <= each.arrival < 1100.0 for each in drawn)
    assert {each.prompt_tokens for each in drawn} == {1000, 6000}
    assert fmean(each.prompt_tokens for each in drawn) == pytest.approx(2500, rel=0.05)
    cached = list(changes.requests("cached", VARIED, 10.0, (0.0, 500.0), 1))
    assert {(each.prefix, each.prefix_block_tokens) for each in cached} == {((7,), 1696)}
    assert fmean(each.prompt_tokens for each in cached) == pytest.approx(2000, rel=0.05)


def test_bursts_have_five_times_the_variance_of_poisson() -> None:
    def variance(style: changes.Style) -> float:
        drawn = changes.requests("cached", style, 10.0, (0.0, 3000.0), 1)
        gaps = [b.arrival - a.arrival for a, b in pairwise(drawn)]
        return 100.0 * fmean((gap - 0.1) ** 2 for gap in gaps)

    assert variance(VARIED) == pytest.approx(1.0, rel=0.1)
    assert variance(BURSTY) == pytest.approx(5.0, rel=0.1)


def test_what_is_polled_is_of_the_new_mix_after_the_change() -> None:
    play = changes.Play(A100_8B.name, "short prompts", "long prompts", CONSTANT, 0.3, 1)
    seen = dict(changes.polls(play, 0.2))
    before, after = seen[CHANGED], seen[CHANGED + AFTER[-1]]
    assert max(seen) == CHANGED + AFTER[-1]
    assert before.ttft is not None
    assert after.ttft is not None
    assert before.prompt_tokens == 500.0 * before.ttft.count
    assert (after.prompt_tokens or 0.0) - before.prompt_tokens > 3000.0 * (after.ttft.count - before.ttft.count)


def test_the_table_has_the_median_and_the_worst_and_what_was_said_beyond_the_limit() -> None:
    rows = [replace(ROW, seconds=float(each)) for each in AFTER]
    rows += [replace(ROW, seconds=float(each), said=1.4, true=0.9) for each in AFTER]
    rows += [replace(ROW, seconds=float(each), setup=FEW, said=None) for each in AFTER]
    written = changes.section(rows)
    assert written.startswith(report.OF_CHANGES)
    assert "| cached, not cached | 2 | 0.57, +0.69 |" in written
    assert "| short prompts, long prompts | 0 |  |" in written
    assert f"| all, {FEW} | 1 |  |" in written
    assert (
        "Of the 3 that are beyond the new limit more than 1.3 is said, at these seconds, of\n1, 1, 1, 1, 1, 1."
        in written
    )


def test_errors_are_bounded_as_the_metric_is() -> None:
    assert replace(ROW, said=16.0, true=40.0).error == 0.0
    assert replace(ROW, said=0.125, true=0.01).error == 0.0
