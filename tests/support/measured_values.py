"""What a proxy has measured, as a flat mapping that tests can compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_headroom.model import Histogram

if TYPE_CHECKING:
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
