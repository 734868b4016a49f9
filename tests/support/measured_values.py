"""What a proxy has measured, as a flat mapping that tests can compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_headroom.model import Histogram

if TYPE_CHECKING:
    from llm_headroom.model import Metric
    from llm_headroom.proxy.measures import Measures


def told(measures: Measures) -> dict[str, float]:
    """Metric, its labels' values → value, or the number of observations; zeros left out."""
    found = {}
    for series, value, _ in measures.points({"engine": "e"}):
        labels = ",".join(text for name, text in series.labels if name != "engine")
        number = value.count if isinstance(value, Histogram) else value
        if number:
            found[f"{series.metric.name.removeprefix('llm_')}{{{labels}}}"] = number
    return found


def counted(measures: Measures, *names: str) -> dict[str, float]:
    """What was counted under these metrics."""
    found = told(measures)
    return {key: found[key] for key in found if key.startswith(names)}


def values(measures: Measures, metric: Metric) -> list[float]:
    """Of a metric's series, in their order."""
    return [value for series, value, _ in measures.points({}) if series.metric is metric and isinstance(value, float)]


def total(measures: Measures, metric: Metric) -> float | None:
    """The sum of a histogram."""
    found = [value for series, value, _ in measures.points({}) if series.metric is metric]
    return found[0].sum if found and isinstance(found[0], Histogram) else None


class Clock:
    """A time that a test sets, in seconds."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        """The time."""
        return self.now
