"""In which order several processes run the tests."""

from __future__ import annotations

import pytest

from balance import balanced

LONG = {
    "c/3": ("waits", 40.0),
    "d/1": ("works", 30.0),
    "d/2": ("works", 1.0),
    "e/1": ("waits", 9.0),
    "f/1": ("works", 8),
}
TESTS = [f"{module}/{number}" for module in "abcdefgh" for number in range(1, 6)]


@pytest.mark.parametrize("processes", [2, 3, 4, 7, 60])
def test_every_test_runs_once(processes: int) -> None:
    found = order(processes)

    assert sorted(found) == TESTS


def test_what_takes_long_begins_a_piece_and_what_waits_is_beside_what_works() -> None:
    found = order(4)

    assert [found[at] for at in (0, 10, 20, 30)] == ["c/3", "e/1", "d/1", "f/1"]
    assert found[21] == "d/2", "a module stays together"


def order(processes: int) -> list[str]:
    """The order of these tests."""
    return balanced(
        TESTS,
        processes,
        lambda test: test.split("/")[0],
        lambda test, marker: dict([LONG.get(test, ("", 0.0))]).get(marker, 0.0),
    )
