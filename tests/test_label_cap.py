"""How many values a label may have, and when one that is gone makes room."""

from __future__ import annotations

from llm_headroom.scrape.label_cap import AGE, LONGEST_LABEL_VALUE, OVERFLOW, LabelCap


def admitted(cap: LabelCap, *values: str) -> list[str]:
    return [cap.admit("model", value) for value in values]


def test_the_first_values_stay_and_later_ones_are_counted_once_each() -> None:
    cap = LabelCap(2)

    assert admitted(cap, "a", "b", "c", "a", "c", "d") == ["a", "b", OVERFLOW, "a", OVERFLOW, OVERFLOW]
    assert cap.capped() == {"model": 2}
    assert cap.admit("adapter", "x") == "x"  # each label by itself


def test_what_is_remembered_of_those_beyond_is_bounded() -> None:
    cap = LabelCap(3)
    admitted(cap, *map(str, range(1000)))

    assert cap.capped() == {"model": 30}


def test_a_long_value_is_cut_and_the_same_each_time() -> None:
    cap = LabelCap(1)
    longest, longer = "x" * LONGEST_LABEL_VALUE, "x" * (LONGEST_LABEL_VALUE + 1)

    assert admitted(cap, longer, longer) == [longest[:-1] + "…"] * 2
    assert admitted(LabelCap(1), longest) == [longest]


def test_a_value_that_is_gone_makes_room_where_another_wants_it() -> None:
    cap = LabelCap(2)
    admitted(cap, "gone", "here")
    assert not cap.release([("model", "here")], 0.0)
    assert not cap.release([("model", "here")], 10 * AGE)  # nobody wants the place

    assert admitted(cap, "new") == [OVERFLOW]
    seen = [("model", "here"), ("model", OVERFLOW)]
    start = 20 * AGE
    assert not cap.release(seen, start)  # the first look at it
    assert not cap.release(seen, start + AGE - 1)
    assert cap.release(seen, start + AGE)
    assert admitted(cap, "new", "gone", "here") == ["new", OVERFLOW, "here"]


def test_a_value_that_comes_back_in_time_stays() -> None:
    cap = LabelCap(1)
    admitted(cap, "a", "b")
    for at in (0.0, AGE / 2, AGE, 1.5 * AGE):
        assert not cap.release([("model", "a")] if at in {0.0, AGE} else [], at)
    assert cap.release([], 2 * AGE)
