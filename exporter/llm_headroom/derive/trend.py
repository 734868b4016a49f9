"""The trend of a level that leaks or ramps, and the chance that it crosses a limit: host memory, a GPU's used memory.

Robust against single jumps (Theil-Sen: the median of the slopes between all pairs, of either half of the window; the
lesser of both counts, as ramps continue). Not for the KV cache, whose occupancy is shot noise around a mean and has
no trend.
"""

from __future__ import annotations

from statistics import NormalDist, median
from typing import Final

from llm_headroom.frozen import frozen

WINDOW_SECONDS: Final = 1800.0
STEP_SECONDS: Final = 30.0
"""Readings are at least this far apart: 60 of them make the window, 870 pairs its trend."""
WARM_SECONDS: Final = 300.0
HORIZON_SECONDS: Final = 1800.0
_LEAST_READINGS: Final = 4
_NORMAL_QUARTILE: Final = 0.6745


@frozen
class Trend:
    """Readings of the last half hour, (seconds, value); `slope` per second and its deviation, None before it is known.

    Both are of the last retained reading.
    """

    readings: tuple[tuple[float, float], ...] = ()
    slope: float | None = None
    deviation: float = 0.0

    def after(self, at: float, value: float) -> Trend:
        """The trend with one more reading; a reading soon after the last one, or from before it, adds nothing."""
        if self.readings and at - self.readings[-1][0] < STEP_SECONDS:
            return self
        recent = (*(each for each in self.readings if each[0] > at - WINDOW_SECONDS), (at, value))
        if recent[-1][0] - recent[0][0] < WARM_SECONDS or len(recent) < _LEAST_READINGS:
            return Trend(recent)
        # A step in the middle of the window is half of all pairs, but it lies in one half only; a ramp is in both.
        middle = len(recent) // 2
        slope, spread = min(_line(recent[:middle]), _line(recent[middle:]))
        return Trend(recent, slope, 2.0 * spread / (recent[-1][0] - recent[0][0]))

    def chance(self, room: float, horizon: float = HORIZON_SECONDS) -> float | None:
        """The probability that the value grows by `room` within the horizon; None before there is a trend.

        A trend that would need more than the horizon by far gives next to nothing, one that is certain next to 1.
        """
        if self.slope is None:
            return None
        if room <= 0:
            return 1.0
        expected = self.slope * horizon
        error = max(self.deviation * horizon, 0.05 * abs(expected), 0.01 * room)
        return NormalDist(room, error).cdf(expected)


def _line(readings: tuple[tuple[float, float], ...]) -> tuple[float, float]:
    """The slope of some readings, and how far they lie from it, as a standard deviation."""
    slope = median(
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for index, later in enumerate(readings)
        for earlier in readings[:index]
    )
    residuals = [level - slope * when for when, level in readings]
    center = median(residuals)
    return slope, median(abs(each - center) for each in residuals) / _NORMAL_QUARTILE
