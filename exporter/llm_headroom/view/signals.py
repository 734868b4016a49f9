"""A model's or GPU's points by name, and the signals that engines and GPUs share: risks and history lines."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.model import Kind, Level
from llm_headroom.thresholds import RISK_BAD, RISK_WARN
from llm_headroom.view.values import Condition, Line, Risk

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llm_headroom.model import Metric, Point
    from llm_headroom.view.history import Reading

RISKS: Final = {
    schema.KV_SATURATION_RISK.name: "KV cache saturation within 5 min",
    schema.OOM_RISK.name: "running out of memory within 30 min",
    schema.SPILL_RISK.name: "spilling to the CPU",
    schema.EVICTION_RISK.name: "eviction within 5 min",
}
"""Metrics that are probabilities of a trouble, and what a person calls the trouble, and until when."""


UNJUDGED: Final = Condition("unknown", Level.UNKNOWN, "it was not judged yet")


class Said:
    """Gauges of one model or GPU, replicas combined, by name of metric and the value of one further label."""

    def __init__(self, points: Iterable[Point]) -> None:
        self._gauges = [
            (point.series, point.value)
            for point in points
            if point.series.metric.kind is Kind.GAUGE and isinstance(point.value, float) and isfinite(point.value)
        ]
        self._first: dict[str, float] = {}
        for series, value in self._gauges:
            self._first.setdefault(series.metric.name, value)

    def get(self, metric: Metric) -> float | None:
        """The value of a metric; None if it is absent."""
        return self._first.get(metric.name)

    def by(self, metric: Metric, label: str) -> dict[str, float]:
        """The values of a metric by the value of a label, those without the label left out."""
        return {
            said: value
            for series, value in self._gauges
            if series.metric.name == metric.name and (said := series.label(label))
        }

    def risks(self) -> tuple[Risk, ...]:
        """Every exported risk, the greatest first."""
        found = [Risk(series.metric.name, value) for series, value in self._gauges if series.metric.name in RISKS]
        return tuple(sorted(found, key=lambda risk: -risk.value))


def risk_name(risk: Risk) -> str:
    """What a person calls a risk."""
    return RISKS.get(risk.metric, risk.metric)


def risk_word(risk: Risk) -> str:
    """How high a risk is: a rank, since not all of them are calibrated probabilities."""
    return "high" if risk.value >= RISK_BAD else "raised" if risk.value >= RISK_WARN else "low"


def ages(readings: Sequence[Reading]) -> tuple[float, ...]:
    """Seconds from each reading to the latest one."""
    return tuple(round(readings[-1].at - reading.at, 1) for reading in readings)


def line(name: str, values: Iterable[float | None]) -> tuple[Line, ...]:
    """A history line of four digits, or nothing where there are no two values to draw between."""
    short = tuple(None if value is None else float(f"{value:.4g}") for value in values)
    return (Line(name, short),) if sum(value is not None for value in short) > 1 else ()


def gauge_line(name: str, readings: Sequence[Reading], metric: Metric) -> tuple[Line, ...]:
    """The history line of a gauge."""
    return line(name, (reading.gauges.get(metric.name) for reading in readings))
