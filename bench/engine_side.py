"""What a scrape costs the engine: CPU of prometheus_client to render a registry as large as an engine's.

    python bench/engine_side.py [rounds]

The registry is rebuilt from a capture: the same families, labels and buckets, in one process. Reading the request and
writing the response are not counted. Engines of several processes (SGLang, vLLM with several API servers) read files
of all of them at each scrape and pay more.
"""

from __future__ import annotations

import gzip
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Summary,
    disable_created_metrics,
    enable_created_metrics,
    generate_latest,
)
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prometheus_client.metrics_core import Metric

CAPTURES: Final = Path(__file__).parents[1] / "tests" / "fixtures" / "captures"
M = TypeVar("M", Counter, Gauge, Histogram, Summary)
BODIES: Final = ("vllm/0.32.0/saturated.prom", "sglang/0.5.23/saturated.prom")
ROUNDS: Final = 15
INTERVAL: Final = 5.0
"""Seconds between scrapes, for the cost per hour: the exporter's default."""
GZIP_LEVEL: Final = 9
"""The level of prometheus_client's ASGI and WSGI apps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """CPU in seconds per scrape, as medians: of the text format, of the same with gzip, and of OpenMetrics."""

    body: str
    samples: int
    text: float
    compressed: float
    openmetrics: float

    @property
    def per_hour(self) -> float:
        """CPU seconds that one scraper of the text format costs an engine in an hour."""
        return self.text * 3600.0 / INTERVAL


def measure(rounds: int = ROUNDS) -> list[Cost]:
    """The costs for each of the captures."""
    return [_measure(body, rounds) for body in BODIES]


def _measure(body: str, rounds: int) -> Cost:
    text = (CAPTURES / body).read_text(encoding="utf-8")
    if "_created{" in text:
        enable_created_metrics()
    else:  # as where several processes share files
        disable_created_metrics()
    registry = rebuilt(text_string_to_metric_families(text))
    times: dict[str, list[float]] = {"text": [], "compressed": [], "openmetrics": []}
    ways: dict[str, Callable[[], object]] = {
        "text": lambda: generate_latest(registry),
        "compressed": lambda: gzip.compress(generate_latest(registry), GZIP_LEVEL),
        "openmetrics": lambda: generate_openmetrics(registry),
    }
    for _ in range(rounds):
        for name, render in ways.items():
            begin = time.process_time()
            render()
            times[name].append(time.process_time() - begin)
    return Cost(
        body=body,
        samples=sum(len(family.samples) for family in registry.collect()),
        text=median(times["text"]),
        compressed=median(times["compressed"]),
        openmetrics=median(times["openmetrics"]),
    )


def rebuilt(families: Iterable[Metric]) -> CollectorRegistry:
    """A registry that exposes the same series. Creation times are left out: prometheus_client adds its own."""
    registry = CollectorRegistry()
    for family in families:
        if not family.samples or family.name.endswith("_created"):
            continue
        names = tuple(name for name in family.samples[0].labels if name != "le" or family.type != "histogram")
        if family.type == "histogram":
            _add_histogram(registry, family, names)
        elif family.type == "counter":
            counter = Counter(family.name, family.documentation, names, registry=registry)
            for sample in family.samples:
                _child(counter, sample.labels).inc(max(0.0, sample.value))
        elif family.type == "summary":
            summary = Summary(family.name, family.documentation, names, registry=registry)
            for sample in family.samples:
                _child(summary, sample.labels).observe(sample.value)
        else:
            gauge = Gauge(family.name, family.documentation, names, registry=registry)
            for sample in family.samples:
                _child(gauge, sample.labels).set(sample.value)
    return registry


def _add_histogram(registry: CollectorRegistry, family: Metric, names: tuple[str, ...]) -> None:
    buckets = [sample for sample in family.samples if sample.name.endswith("_bucket")]
    bounds = sorted({float(sample.labels["le"]) for sample in buckets})
    histogram = Histogram(family.name, family.documentation, names, buckets=bounds, registry=registry)
    for sample in buckets:
        labels = {name: value for name, value in sample.labels.items() if name != "le"}
        child = _child(histogram, labels)
        if sample.value and not math.isinf(float(sample.labels["le"])):
            child.observe(float(sample.labels["le"]))


def _child(metric: M, labels: Mapping[str, str]) -> M:
    return metric.labels(**labels) if labels else metric


def table(costs: Iterable[Cost]) -> str:
    """The costs as lines."""
    lines = [f"{'body':34} {'samples':>7} {'text ms':>8} {'+ gzip':>8} {'OpenMetrics':>12} {'CPU s/hour':>11}"]
    lines += [
        f"{cost.body:34} {cost.samples:7} {cost.text * 1e3:8.2f} {cost.compressed * 1e3:8.2f}"
        f" {cost.openmetrics * 1e3:12.2f} {cost.per_hour:11.2f}"
        for cost in costs
    ]
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    print(table(measure(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)))


if __name__ == "__main__":
    main()
