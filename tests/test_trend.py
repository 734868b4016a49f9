"""A trend of readings, and how likely the value grows by so much."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llm_headroom.derive.trend import HORIZON_SECONDS, STEP_SECONDS, WARM_SECONDS, WINDOW_SECONDS, Trend

if TYPE_CHECKING:
    from collections.abc import Callable


def after(count: int, value: Callable[[int], float], *, step: float = STEP_SECONDS, start: float = 1000.0) -> Trend:
    """The trend of so many readings, one for each step."""
    trend = Trend()
    for place in range(count):
        trend = trend.after(start + place * step, value(place))
    return trend


def test_a_reading_too_soon_or_from_before_adds_nothing() -> None:
    trend = Trend().after(1000.0, 5.0)
    assert trend.after(1000.0 + STEP_SECONDS - 0.01, 6.0) is trend
    assert trend.after(900.0, 6.0) is trend
    assert trend.after(1000.0 + STEP_SECONDS, 6.0).readings == ((1000.0, 5.0), (1000.0 + STEP_SECONDS, 6.0))


def test_readings_older_than_the_window_are_dropped() -> None:
    trend = Trend(((0.0, 1.0), (STEP_SECONDS, 2.0)))
    assert trend.after(WINDOW_SECONDS, 3.0).readings == ((STEP_SECONDS, 2.0), (WINDOW_SECONDS, 3.0))
    assert len(trend.after(WINDOW_SECONDS - 0.5, 3.0).readings) == 3


def test_a_trend_is_known_after_so_long_and_so_many_readings() -> None:
    many = int(WARM_SECONDS / STEP_SECONDS)
    assert after(many, lambda place: 7.0 * place).slope is None
    assert after(many + 1, lambda place: 7.0 * place * STEP_SECONDS).slope == pytest.approx(7.0)
    few = after(3, float, step=WARM_SECONDS)
    assert (few.slope, few.chance(1.0)) == (None, None)


def test_a_line_is_certain_a_step_is_none_and_what_swings_is_uncertain() -> None:
    many = 40
    line = after(many, lambda place: 5.0 + 2.0 * place * STEP_SECONDS)
    step = after(many, lambda place: 0.0 if place < many // 2 else 1e6)
    begins = after(many, lambda place: max(0.0, place - many / 2))
    ends = after(many, lambda place: min(float(place), many / 2))
    swings = after(many, lambda place: 2.0 * place * STEP_SECONDS + (100.0 if place % 2 else -100.0))

    assert line.slope == pytest.approx(2.0)
    assert line.deviation == pytest.approx(0.0, abs=1e-9)
    assert step.slope == begins.slope == ends.slope == 0.0  # the lesser of both halves
    assert swings.slope is not None
    assert abs(swings.slope - 2.0) < 100.0 / (many // 2 * STEP_SECONDS)
    # residuals of +-100 are 100 / 0.6745 in deviations, over half of the time that the readings span
    assert swings.deviation == pytest.approx(2.0 * 100.0 / 0.6745 / ((many - 1) * STEP_SECONDS), rel=0.1)


@pytest.mark.parametrize(
    ("slope", "deviation", "room", "horizon", "chance"),
    [
        (1.0, 0.0, 0.0, 100.0, 1.0),
        (-1.0, 0.0, -5.0, 100.0, 1.0),
        (1.0, 0.1, 100.0, 100.0, 0.5),
        (1.0, 0.1, 110.0, 100.0, 0.1587),  # one deviation above what is expected
        (1.0, 0.1, 90.0, 100.0, 0.8413),
        (1.0, 0.0, 105.0, 100.0, 0.1587),  # at least a twentieth of what is expected
        (1.0, 0.0, 95.0, 100.0, 0.8413),
        (-1.0, 0.0, 5.0, 100.0, 0.0),
        (0.0, 0.0, 100.0, 100.0, 0.0),
        (0.99, 0.0, 100.0, 100.0, 0.4199),
        (0.001, 0.0, 0.101, 100.0, 0.4208),  # a twentieth of 0.1 is more than a hundredth of the room
        (0.0, 0.1, 10.0, 100.0, 0.1587),
    ],
)
def test_the_chance_to_grow_by_so_much(
    slope: float, deviation: float, room: float, horizon: float, chance: float
) -> None:
    assert Trend((), slope, deviation).chance(room, horizon) == pytest.approx(chance, abs=1e-4)


def test_the_usual_horizon() -> None:
    trend = Trend((), 1.0, 0.1)
    assert trend.chance(HORIZON_SECONDS) == pytest.approx(0.5)
    assert trend.chance(1.1 * HORIZON_SECONDS) == pytest.approx(0.1587, abs=1e-4)
