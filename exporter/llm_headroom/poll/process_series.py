"""The exporter's own process, under the names that dashboards and alerts for any Prometheus exporter use.

Names and values are those of prometheus-client's collectors: CPU, memory and files of the process, Python's version,
garbage collection.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from llm_headroom import schema
from llm_headroom.model import Point, series_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.registry import Collector

log = logging.getLogger("llm_headroom")

_ALIASES: Final = {schema.PROCESS_CPU: schema.EXPORTER_CPU, schema.PROCESS_MEMORY: schema.EXPORTER_MEMORY}
"""Metrics that had a name of our own before, which stays for one release."""


class ProcessSeries:
    """Reads this process again at each call of `points`; `proc` is where the kernel's procfs is mounted."""

    def __init__(self, proc: str = "/proc") -> None:
        # Not prometheus-client's global registry: what other code of the process puts there is not ours to expose.
        self._collectors: list[Collector] = [
            ProcessCollector(proc=proc, registry=None),
            PlatformCollector(registry=None),
            GCCollector(registry=CollectorRegistry()),
        ]

    def points(self) -> Iterator[Point]:
        """What the collectors give now. One that fails is logged and asked no more; the others go on."""
        for collector in tuple(self._collectors):
            try:
                families = list(collector.collect())
            except Exception:
                log.exception("own process not read", extra={"collector": type(collector).__name__})
                self._collectors.remove(collector)
                continue
            for family in families:
                for sample in family.samples:
                    metric = schema.BY_NAME.get(sample.name)
                    if metric is None:
                        continue  # of a newer prometheus-client; nothing is exposed that METRICS.md does not list
                    labels = tuple(sample.labels.items())
                    yield Point(series_of(metric, labels), float(sample.value), "process")
                    if metric in _ALIASES:
                        yield Point(series_of(_ALIASES[metric], labels), float(sample.value), "process")
