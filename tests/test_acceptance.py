"""`make live`: when a signal of a real engine is exact, explained or wrong, and what the page says of the last run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from live.exporter import Reading
from live.verdict import Expected, Row, Verdict

PAGE = Path(__file__).parents[1] / "docs" / "acceptance.md"
ABSENT = Expected(None, "the engine has no such metric")
ZERO = Expected(0, "the engine does not count them")
NOT_ASKED = Expected(None, "only the engine knows", asked=False)


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (Row("same", 5, 5, 5), Verdict.EXACT),
        (Row("one too many", 5, 6, 5), Verdict.WRONG),
        (Row("silent without a reason", 5, 5, None), Verdict.WRONG),
        (Row("silent for a reason", 5, None, 5, expected_exporter=ABSENT), Verdict.EXPLAINED),
        (Row("not its business", 5, 5, None, expected_proxy=NOT_ASKED), Verdict.EXACT),
        (Row("foreseen", 5, 0, 5, expected_exporter=ZERO), Verdict.EXPLAINED),
        (Row("not what was foreseen", 5, 1, 5, expected_exporter=ZERO), Verdict.WRONG),
        (Row("within bounds", 0.5, 0.6, 0.4, within=0.2), Verdict.EXPLAINED),
        (Row("out of bounds", 0.5, 0.6, 0.1, within=0.2), Verdict.WRONG),
    ],
    ids=lambda part: part.signal if isinstance(part, Row) else "",
)
def test_a_signal_is_as_wrong_as_its_worse_side(row: Row, verdict: Verdict) -> None:
    assert row.verdict is verdict


def test_series_of_a_target_are_summed_and_an_absent_metric_is_none() -> None:
    reading = Reading(
        'a{target="engine",reason="x"} 1\na{target="engine",reason="y"} 2\na{target="engine/proxy",reason="x"} 4\n'
    )

    assert reading.of("a") == 3
    assert reading.of("a", reason="y") == 2
    assert reading.of("a", "engine/proxy") == 4
    assert reading.of("b") is None


def test_the_page_counts_every_row_that_it_shows() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if re.match(r"\| .* \| .* \| .* \|", line) and "verdict" not in line]
    shown = {
        verdict: sum(f"| {verdict} |" in row or f"| **{verdict}** |" in row for row in rows) for verdict in Verdict
    }
    counted = re.search(r"^Of (\d+) signals: (.*)\.$", text, re.MULTILINE)

    assert len(rows) > 50
    assert counted is not None
    assert int(counted[1]) == len(rows) == sum(shown.values())
    numbers = {verdict: re.search(rf"(\d+) {re.escape(verdict)}", counted[2]) for verdict in Verdict}
    assert {verdict: int(number[1]) if number else 0 for verdict, number in numbers.items()} == shown
