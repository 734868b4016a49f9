"""What is remembered of a source, exactly: which readings, over which windows, and which minutes of the day."""

from __future__ import annotations

from array import array
from dataclasses import replace
from math import inf

import pytest

from llm_headroom import schema
from llm_headroom.model import Health, Histogram, Level, Point, Series, Snapshot
from llm_headroom.view.day import MINUTES, MOST_STATES, Day, Minute
from llm_headroom.view.history import SPACING, SPAN, Grown, History, Reading, grown, p95, rate, rates
from llm_headroom.view.values import Condition
from llm_headroom.web.figures import ENGINE_FIGURES, Past
from llm_headroom.web.figures import history as history_of

TOKENS, TTFT = schema.GENERATION_TOKENS, schema.TIME_TO_FIRST_TOKEN
BOUNDS = (1.0, 2.0, inf)


def polled(at: float, tokens: float | None = None, *, running: float = 1.0) -> Snapshot:
    """An engine that is up, or, without tokens, one that has just failed."""
    points = [Point(Series(schema.REQUESTS_RUNNING, {"model": "m"}), running, "")]
    if tokens is not None:
        points.append(Point(Series(TOKENS, {"model": "m"}), tokens, ""))
    up = tokens is not None
    return Snapshot(target="t", engine="vllm", taken=at, points=tuple(points) if up else (), health=Health(up=up))


def remembered(*polls: Snapshot) -> list[float]:
    history = History()
    for each in polls:
        history.record([each])
    return [reading.at for reading in history.readings("t", "m")]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ((0.0, SPACING), [0.0, SPACING]),
        ((0.0, 1.0, 2.0, 3.0), [0.0, 3.0]),
        ((0.0, 1.0, SPACING), [0.0, 1.0, SPACING]),
        ((0.0, 1.0, SPACING, SPACING + 0.5), [0.0, 1.0, SPACING + 0.5]),
        ((0.0, 3.0, 5.0), [0.0, 3.0, 5.0]),
        ((0.0, 100.0, SPAN), [0.0, 100.0, SPAN]),
        ((0.0, 100.0, SPAN + 0.5), [100.0, SPAN + 0.5]),
    ],
)
def test_readings_are_so_far_apart_and_not_older_than_the_span(times: tuple[float, ...], expected: list[float]) -> None:
    assert remembered(*(polled(at, at) for at in times)) == expected


def test_of_the_whole_span_every_reading_is_there() -> None:
    times = [SPACING * number for number in range(101)]
    assert remembered(*(polled(at, at) for at in times)) == [at for at in times if at >= times[-1] - SPAN]


def test_a_failed_poll_replaces_no_reading_and_is_replaced_by_none() -> None:
    polls = [polled(0.0, 1.0), polled(1.0, 2.0), polled(2.0), polled(3.0, 3.0)]
    assert remembered(*polls) == [0.0, 1.0, 2.0, 3.0]


def test_a_source_whose_points_cannot_be_remembered_costs_no_other_its_history(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = replace(polled(1.0, 1.0), target="broken", points=(None,))  # type: ignore[arg-type]  # broken on purpose
    history = History()
    history.record([broken, polled(1.0, 1.0)])
    assert [vars(each)["target"] for each in caplog.records] == ["broken"]
    assert [each.at for each in history.readings("t", "m")] == [1.0]


def reading(at: float, total: float | Grown | None, *, up: bool = True) -> Reading:
    name = TTFT.name if isinstance(total, Grown) else TOKENS.name
    return Reading(at, {"llm_requests_running": 1.0} if up else {}, {} if total is None else {name: total})


def counted(*counts: float, bounds: tuple[float, ...] = BOUNDS) -> Grown:
    return Grown(bounds, array("d", counts))


@pytest.mark.parametrize(
    ("readings", "expected"),
    [
        ([], None),
        ([reading(0.0, 5.0)], None),
        ([reading(0.0, 0.0), reading(10.0, 50.0)], 5.0),
        ([reading(0.0, 0.0), reading(10.0, 50.0), reading(40.0, 110.0)], 2.0),  # the window's edge is in it
        ([reading(0.0, 0.0), reading(9.0, 50.0), reading(40.0, 50.0)], None),
        ([reading(0.0, 0.0), reading(10.0, None, up=False), reading(20.0, 50.0)], 2.5),
        ([reading(0.0, 0.0), reading(10.0, None), reading(20.0, 50.0)], None),
        ([reading(0.0, 0.0), reading(10.0, 20.0), reading(20.0, None, up=False)], 2.0),
        ([reading(0.0, 0.0), reading(10.0, 20.0), reading(50.0, None, up=False)], None),
        ([reading(5.0, 0.0), reading(5.0, 20.0)], None),
    ],
)
def test_a_rate_is_the_growth_within_the_window_of_a_run_without_a_break(
    readings: list[Reading], expected: float | None
) -> None:
    assert rate(readings, TOKENS, 30.0) == expected


def test_rates_are_between_each_reading_and_the_one_before() -> None:
    assert rates([], TOKENS) == ()
    assert rates([reading(0.0, 1.0)], TOKENS) == (None,)
    readings = [reading(0.0, 0.0), reading(5.0, 10.0), reading(10.0, None), reading(15.0, 30.0), reading(20.0, 70.0)]
    assert rates(readings, TOKENS) == (None, 2.0, None, None, 8.0)


def test_a_histogram_has_grown_by_its_buckets_as_long_as_they_are_the_same() -> None:
    same = [reading(0.0, counted(1.0, 2.0, 4.0)), reading(20.0, counted(3.0, 8.0, 12.0))]
    assert grown(same, TTFT, 60.0) == (20.0, counted(2.0, 6.0, 8.0))
    assert p95(same, TTFT, 60.0) == 2.0, "beyond the last bound it is that bound"
    assert p95([same[0], reading(20.0, counted(3.0, 12.0, 14.0))], TTFT, 60.0) == pytest.approx(1.0 + 7.5 / 8.0)
    assert p95([same[0], reading(20.0, counted(1.0, 2.0, 4.0))], TTFT, 60.0) is None
    assert p95(same[:1], TTFT, 60.0) is None

    other = reading(10.0, counted(1.0, 1.0, 2.0, bounds=(1.0, 3.0, inf)))
    assert grown([same[0], other, reading(20.0, counted(3.0, 8.0, 12.0))], TTFT, 60.0) is None
    later = reading(30.0, counted(2.0, 3.0, 6.0, bounds=(1.0, 3.0, inf)))
    assert grown([same[0], other, later], TTFT, 60.0) == (20.0, counted(1.0, 2.0, 4.0, bounds=(1.0, 3.0, inf)))


def test_replicas_whose_bounds_differ_have_no_common_histogram() -> None:
    def ttft(at: float, *replicas: Histogram) -> Snapshot:
        points = tuple(
            Point(Series(TTFT, {"model": "m", "replica": str(number)}), each, "")
            for number, each in enumerate(replicas)
        )
        return Snapshot(target="t", engine="vllm", taken=at, points=points, health=Health(up=True))

    one, two = Histogram(BOUNDS, (1.0, 2.0, 3.0), 4.0), Histogram(BOUNDS, (2.0, 4.0, 6.0), 8.0)
    other = Histogram((1.0, 3.0, inf), (1.0, 2.0, 3.0), 4.0)
    history = History()
    for at, replicas in enumerate([(one, one), (two, two), (two, other), (one, two)]):
        history.record([ttft(10.0 * at, *replicas)])

    found = [reading.grown.get(TTFT.name) for reading in history.readings("t", "m")]
    assert found == [counted(0.0, 0.0, 0.0), counted(2.0, 4.0, 6.0), None, counted(1.0, 2.0, 3.0)]


def test_a_day_is_of_so_many_minutes_whatever_the_hour() -> None:
    day, first = Day(("running",)), 59
    day.put(60.0 * first, {"running": 1.0}, None)
    for later, known in ((MINUTES - 1, 1.0), (MINUTES, None)):
        day.put(60.0 * (first + later), {"running": 2.0}, None)
        seen = {each.minute: each.values["running"] for each in day.minutes(60.0 * (first + later), MINUTES + 1)}
        assert (len(seen), seen[first], seen[first + later]) == (MINUTES + 1, known, 2.0)


def test_a_minute_has_its_highest_value_and_the_latest_of_its_worst_states() -> None:
    def state(name: str, level: Level) -> Condition:
        return Condition(name, level)

    day = Day(("running",))
    for value, condition in (
        (2.0, state("ok", Level.GOOD)),
        (5.0, state("slow", Level.WARN)),
        (3.0, state("busy", Level.WARN)),
        (None, state("ok", Level.GOOD)),
        (1.0, None),
    ):
        day.put(90.0, {"running": value}, condition)
    (minute,) = day.minutes(119.9, 1)
    assert (minute.minute, minute.values, minute.state) == (1, {"running": 5.0}, state("busy", Level.WARN))


def test_a_day_knows_so_many_different_states_and_no_more() -> None:
    day = Day(())
    for number in range(MOST_STATES + 1):
        day.put(60.0 * number, {}, Condition(f"state {number}", Level.GOOD, "a reason", 3.0))
    states = [each.state for each in day.minutes(60.0 * MOST_STATES, MOST_STATES + 1)]
    assert states == [*(Condition(f"state {number}", Level.GOOD) for number in range(MOST_STATES)), None]


def test_a_point_of_a_day_s_curve_is_the_highest_of_five_minutes_and_stands_in_their_middle() -> None:
    known = [Minute(minute, {"running": float(minute)}, None) for minute in (*range(10, 15), *range(90, 100))]
    html = history_of(ENGINE_FIGURES[:1], Past((), (), known, 6000.0, True, {}), "other")  # noqa: FBT003 - a tuple's field
    # 5250, 450 and 150 of 86,400 seconds ago, out of 1000 units; 14, 94 and 99 under a top of 100
    assert 'points="939,860 995,60 998,10"' in html
    assert "Requests: at most 99 in the last 24 h" in html
