"""Bars, bands, lines and their axes, and the history that is drawn of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import pytest

from llm_headroom.model import Level
from llm_headroom.view.day import Minute
from llm_headroom.view.values import Condition, Line
from llm_headroom.web.charts import Curve, Segment, band, bar, chart, rounded_up
from llm_headroom.web.figures import DAY, ENGINE_FIGURES, GPU_FIGURES, Figure, Past, amount, history
from llm_headroom.web.look import Look, look

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FIGURES: Final = (
    Figure("One", "", (("a", "red", "first"), ("b", "blue", "second"))),
    Figure("Share", "ratio", (("c", "red", "share"),)),
    Figure("Power", "watts", (("d", "red", "power"),)),
)


def rectangles(svg: str) -> list[tuple[str, ...]]:
    """Class, left, width and height of each."""
    return re.findall(r'<rect class="([^"]*)" x="([^"]*)" y="[^"]*" width="([^"]*)" height="([^"]*)"', svg)


# Drawings ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("shares", "drawn"),
    [
        ([], []),
        ([("a", 0.25), ("b", 0.5)], [("a", "0.0", "25.0"), ("b", "25.0", "50.0")]),
        ([("a", 0.75), ("b", 0.5), ("c", 0.1)], [("a", "0.0", "75.0"), ("b", "75.0", "25.0")]),
        ([("a", -0.5), ("b", 0.0), ("c", 2.0)], [("c", "0.0", "100.0")]),
    ],
)
def test_shares_stand_side_by_side_and_never_beyond_the_whole(
    shares: Sequence[tuple[str, float]], drawn: list[tuple[str, str, str]]
) -> None:
    svg = bar(shares, "<a>")
    assert [each[:3] for each in rectangles(svg)] == drawn
    assert 'aria-label="&lt;a&gt;"' in svg


@pytest.mark.parametrize(
    ("segment", "drawn"),
    [
        (Segment(100.0, 0.0, "bad", "x"), [("bad", "0", "1000", "3")]),
        (Segment(75.0, 25.0, "warn", "x"), [("warn", "250", "500", "2")]),
        (Segment(500.0, 50.0, "unknown", "x"), [("unknown", "0", "500", "2")]),
        (Segment(50.0, 49.0, "good", "x"), [("good", "500", "10", "1")]),
        (Segment(500.0, 100.0, "good", "x"), []),
        (Segment(500.0, 200.0, "good", "x"), []),
    ],
)
def test_a_state_stands_where_it_was_as_high_as_it_is_bad(segment: Segment, drawn: list[tuple[str, ...]]) -> None:
    svg = band([segment], 100.0, "<a>")
    assert rectangles(svg) == drawn
    for _, _, _, height in drawn:
        assert f'y="{3 - int(height)}"' in svg
    assert svg.count("<title>x</title>") == len(drawn)


@pytest.mark.parametrize(
    ("values", "points"),
    [
        ((), []),
        ((None, None, None), []),
        ((0.0, 5.0, 10.0), ["0,1000 500,500 1000,0"]),
        ((-5.0, 5.0, 20.0), ["0,1000 500,500 1000,0"]),
        ((5.0, None, 10.0), ["0,500 0,500", "1000,0 1000,0"]),
        ((None, 5.0, 10.0), ["500,500 1000,0"]),
        ((5.0, 10.0, None), ["0,500 500,0"]),
    ],
)
def test_a_line_has_gaps_and_a_lonely_value_is_a_dot(values: Sequence[float | None], points: list[str]) -> None:
    ages = (50.0, 25.0, 0.0)[: len(values)]
    svg = chart([Curve("red", "<n>", values)], ages, top=10.0, span=50.0, label="<a>")
    assert re.findall('class="red" data-name="&lt;n&gt;" points="([^"]*)"', svg) == points


def test_over_an_axis_of_nothing_every_value_is_at_the_bottom() -> None:
    svg = chart([Curve("red", "n", (5.0,))], (0.0,), top=0.0, span=50.0, label="a")
    assert 'points="1000,1000 1000,1000"' in svg


@pytest.mark.parametrize(
    ("value", "end"),
    [
        (-1.0, 1.0),
        (0.0, 1.0),
        (1.0, 1.0),
        (1.001, 2.0),
        (2.0, 2.0),
        (2.5, 5.0),
        (5.0, 5.0),
        (5.1, 10.0),
        (10.0, 10.0),
        (99.0, 100.0),
        (0.3, 0.5),
        (0.06 * 5, 0.5),
        (0.1 + 0.2 - 0.1, 0.2),
        (1000.000_000_1, 1000.0),
    ],
)
def test_an_axis_ends_at_one_two_or_five(value: float, end: float) -> None:
    assert rounded_up(value) == pytest.approx(end)


@pytest.mark.parametrize(
    ("unit", "written"),
    [("ratio", "1234400%"), ("bytes", "12.1 KiB"), ("watts", "12344 W"), ("seconds", "12344 s"), ("", "12.3k")],
)
def test_an_amount_has_the_unit_of_its_axis(unit: str, written: str) -> None:
    assert amount(12344.0, unit) == written.replace("12.1 KiB", "12 KiB")


# History -------------------------------------------------------------------------------------------------------------
def past(
    *,
    values: Mapping[str, Sequence[float | None]] | None = None,
    ages: Sequence[float] = (20.0, 10.0, 0.0),
    minutes: Sequence[Minute] = (),
    day: bool = False,
    tops: Mapping[str, float | None] | None = None,
) -> Past:
    lines = tuple(Line(name, tuple(each)) for name, each in (values or {}).items())
    return Past(lines, tuple(ages), tuple(minutes), 90_000.0, day, tops or {})


def drawn(made: Past) -> str:
    return history(FIGURES, made, "?other")


def minute(number: int, state: Condition | None = None, **values: float | None) -> Minute:
    return Minute(number, values, state)


BAD: Final = Condition("down", Level.BAD)
SLOW: Final = Condition("slow", Level.WARN)
GOOD: Final = Condition("ok", Level.GOOD)


def test_where_nothing_is_known_there_is_no_history() -> None:
    assert drawn(past()) == ""
    assert drawn(past(values={"a": (None, None, None), "other": (1.0, 1.0, 1.0)})) == ""
    assert drawn(past(minutes=[minute(1499, None)])) == ""
    assert drawn(past(minutes=[minute(1499, GOOD)])).count("<svg") == 1
    assert drawn(past(values={"a": (1.0, None, None)})).count("<svg") == 1


@pytest.mark.parametrize(
    ("ages", "span", "said"),
    [((20.0, 10.0, 0.0), "60", "60 s"), ((61.0, 10.0, 0.0), "61", "61 s"), ((300.0, 10.0, 0.0), "300", "5 min")],
)
def test_the_last_minutes_are_as_many_as_are_known_and_one_at_least(
    ages: Sequence[float], span: str, said: str
) -> None:
    html = drawn(past(values={"a": (1.0, 2.0, 3.0)}, ages=ages))
    assert f'<section class="history" data-span="{span}"><h4>History <span><b>{said}</b> ' in html
    assert '<a href="?other" data-look>24 h</a></span></h4><div class="charts">' in html
    assert f'<span class="then">{said} ago</span>' in html
    assert f"One: at most 3 in the last {said}" in html


def test_without_ages_the_minutes_of_states_are_shown_one_at_least_and_five_at_most() -> None:
    for count, span in ((1, "60"), (2, "120"), (5, "300"), (7, "300")):
        minutes = [minute(1500 - count, GOOD), *(minute(1500 - ago, BAD) for ago in range(count - 1, 0, -1))]
        assert f'data-span="{span}"' in drawn(past(minutes=minutes, ages=()))


def test_two_lines_have_their_names_and_one_has_none() -> None:
    two = drawn(past(values={"a": (1.0, 2.0, 3.0), "b": (0.5, None, 7.0)}))
    assert '<span class="key red">first</span><span class="key blue">second</span>' in two
    assert "at most 7" in two
    assert 'data-top="10"' in two
    one = drawn(past(values={"b": (0.5, None, 7.0)}))
    assert "key" not in one
    assert 'data-name="second"' in one


@pytest.mark.parametrize(
    ("values", "tops", "top", "written"),
    [
        ({"c": (0.1, 0.2, 0.3)}, {"ratio": 7.0}, "1", "100%"),
        ({"d": (10.0, 20.0, 30.0)}, {}, "50", "50 W"),
        ({"d": (10.0, 20.0, 30.0)}, {"watts": None}, "50", "50 W"),
        ({"d": (10.0, 20.0, 30.0)}, {"watts": 0.0}, "50", "50 W"),
        ({"d": (10.0, 20.0, 30.0)}, {"watts": 700.0}, "700", "700 W"),
    ],
)
def test_an_axis_ends_at_the_limit_or_above_the_highest_value(
    values: Mapping[str, Sequence[float]], tops: Mapping[str, float | None], top: str, written: str
) -> None:
    html = drawn(past(values=values, tops=tops))
    assert f'data-top="{top}"' in html
    assert f'<span class="top">{written}</span>' in html


@pytest.mark.parametrize(
    ("states", "spoken"),
    [
        ([GOOD, GOOD], "States: nothing wrong"),
        ([BAD], "States: down: from 60 s ago until now"),
        ([BAD, GOOD], "States: down: from 2 min ago until 60 s ago"),
        ([BAD, None, GOOD], "States: down: from 3 min ago until 2 min ago"),
        ([SLOW, BAD, GOOD], "States: slow: from 3 min ago until 2 min ago; down: from 2 min ago until 60 s ago"),
        (
            [BAD, GOOD, SLOW, BAD, SLOW, BAD, SLOW],
            "States: slow: from 5 min ago until 4 min ago; down: from 4 min ago until 3 min ago; slow: from 3 min ago",
        ),
    ],
)
def test_runs_of_a_state_are_said_in_words_the_last_five_that_are_not_good(
    states: list[Condition | None], spoken: str
) -> None:
    first = 1500 - len(states)
    html = drawn(past(minutes=[minute(first + at, state) for at, state in enumerate(states)], ages=(600.0,)))
    assert f'aria-label="{spoken}' in html
    known = [each for each in states if each is not None]
    assert html.count("<title>") == sum(each is not before for each, before in zip(known, [None, *known], strict=False))


def test_a_minute_that_has_not_ended_ends_now() -> None:
    html = drawn(past(minutes=[minute(1499, BAD), minute(1500, BAD)]))
    assert 'aria-label="States: down: from 60 s ago until now"' in html


def test_a_day_is_drawn_of_the_highest_of_each_five_minutes() -> None:
    minutes = [minute(at, None, a=float(at % 5), b=None) for at in (0, 1, 2, 60, 64, 1440, 1500)]
    html = drawn(past(minutes=minutes, day=True))
    assert '<a href="?other" data-look>minutes</a> <b>24 h</b>' in html
    assert 'data-span="86400"' in html
    assert '<span class="then">24 h ago</span>' in html
    assert "in the last 24 h" in html
    # 1500 minutes ago is before the day, and the middle of the present five minutes has not come
    assert re.findall('points="([^"]*)"', html) == ["0,600 2,200 960,1000 1000,1000"]
    assert DAY == 24 * 60 * 60


def test_the_figures_of_engines_and_gpus_have_units_and_names_of_their_own() -> None:
    figures = (*ENGINE_FIGURES, *GPU_FIGURES)
    names = [name for figure in figures for name, _, _ in figure.lines]
    assert len(set(names)) == len(names)
    assert {figure.unit for figure in figures} == {"", "ratio", "seconds", "bytes", "watts"}


# What a reader has chosen --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("query", "chosen"),
    [
        ({}, Look()),
        ({"open": "", "range": "1h"}, Look()),
        ({"open": "a,,b,"}, Look(frozenset({"a", "b"}))),
        ({"range": "24h"}, Look(day=True)),
        ({"open": ",".join(f"k{at}" for at in range(50))}, Look(frozenset(f"k{at}" for at in range(50)))),
        ({"open": ",".join(f"k{at}" for at in range(51))}, Look(frozenset(f"k{at}" for at in range(50)))),
    ],
)
def test_an_address_says_what_a_reader_wants_to_see(query: Mapping[str, str], chosen: Look) -> None:
    assert look(query) == chosen


@pytest.mark.parametrize(
    ("chosen", "toggled", "day", "address"),
    [
        (Look(), "", None, "?"),
        (Look(), "a", None, "?open=a"),
        (Look(frozenset("ba")), "", None, "?open=a,b"),
        (Look(frozenset("ba")), "a", None, "?open=b"),
        (Look(frozenset("a")), "a", None, "?"),
        (Look(day=True), "", None, "?range=24h"),
        (Look(day=True), "a", None, "?open=a&amp;range=24h"),
        (Look(day=True), "", False, "?"),
        (Look(), "", True, "?range=24h"),
    ],
)
def test_a_choice_becomes_an_address(chosen: Look, toggled: str, day: bool | None, address: str) -> None:  # noqa: FBT001 - a cell
    assert chosen.address(toggled=toggled, day=day) == address
