"""OTLP metrics as Prometheus samples, literally as OpenTelemetry's specification says.

https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/, section "OTLP Metric points to
Prometheus", with the words that the collector's translator has for units
(prometheus/otlptranslator, metric_namer.go and unit_maps).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from otlp_receiver import points_of

if TYPE_CHECKING:
    from collections.abc import Iterable

MAIN = {
    "d": "days",
    "h": "hours",
    "min": "minutes",
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "ns": "nanoseconds",
    "By": "bytes",
    "KiBy": "kibibytes",
    "MiBy": "mebibytes",
    "GiBy": "gibibytes",
    "m": "meters",
    "V": "volts",
    "A": "amperes",
    "J": "joules",
    "W": "watts",
    "g": "grams",
    "Cel": "celsius",
    "Hz": "hertz",
    "1": "",
    "%": "percent",
}
PER = {"s": "second", "m": "minute", "h": "hour", "d": "day", "w": "week", "mo": "month", "y": "year"}


def translated(name: str, unit: str, *, counter: bool, gauge: bool) -> str:
    """The Prometheus name of a metric, with suffixes for unit and type."""
    tokens = [token for token in re.split(r"[^a-zA-Z0-9:]+", name) if token]
    main, _, per = unit.partition("/")
    main, per = main.strip(), per.strip()
    # "Units within curly braces are dropped."
    word = "" if "{" in main else MAIN.get(main, main)
    if word and word not in tokens:
        tokens.append(word)
    if per and "{" not in per:
        divisor = PER.get(per, per)
        if divisor not in tokens:
            tokens += ["per", divisor]
    if counter:
        tokens = [token for token in tokens if token != "total"] + ["total"]
    # A gauge whose unit is 1 is a ratio.
    if unit == "1" and gauge:
        tokens = [token for token in tokens if token != "ratio"] + ["ratio"]
    return "_".join(tokens)


def samples(metrics: Iterable[Any]) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Decoded metrics as name → labels → value, as an exposition would have them."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}

    def put(name: str, labels: tuple[tuple[str, str], ...], value: float) -> None:
        assert labels not in found.setdefault(name, {}), (name, labels)
        found[name][labels] = value

    for metric in metrics:
        kind = metric.WhichOneof("data")
        name = translated(
            metric.name, metric.unit, counter=kind == "sum" and metric.sum.is_monotonic, gauge=kind == "gauge"
        )
        for labels, point in points_of(metric):
            if point.flags & 1:
                continue
            if kind != "histogram":
                put(name, labels, point.as_double)
                continue
            below = 0
            for bound, count in zip((*point.explicit_bounds, None), point.bucket_counts, strict=True):
                below += count
                le = "+Inf" if bound is None else repr(bound)
                put(f"{name}_bucket", tuple(sorted((*labels, ("le", le)))), below)
            put(f"{name}_count", labels, point.count)
            put(f"{name}_sum", labels, point.sum)
    return found
