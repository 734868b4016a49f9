"""What an OTLP export costs: our encoder beside OpenTelemetry's generated messages, on the same points in one run.

python bench/otlp.py
"""

from __future__ import annotations

import gzip
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.exposition.text import Parser
from llm_headroom.model import Histogram, Kind, Point, Series
from llm_headroom.otlp.cumulative import Started, Starts
from llm_headroom.render.otlp import Encoder, Line, Reading, line_of
from llm_headroom.scrape.mapping import LabelCap, Mapper

if TYPE_CHECKING:
    from collections.abc import Callable

CAPTURE = Path(__file__).parent.parent / "tests" / "fixtures" / "captures" / "vllm" / "0.32.0" / "saturated.prom"
ROUNDS = 7


def points(targets: int) -> list[tuple[float, list[Point]]]:
    """The points of so many vLLM engines."""
    exposition = Parser().parse(CAPTURE.read_bytes())
    engine = BUILT_IN["vllm"]
    found = []
    for number in range(targets):
        mapper = Mapper(engine, {"engine": "vllm", "target": f"t{number}"}, cap=LabelCap(200))
        found.append((1_000_000.0, list(mapper.map(exposition, model="")[1].points)))
    return found


def by_messages(started: list[Started]) -> bytes:
    """The same content by generated messages."""
    request = ExportMetricsServiceRequest()
    scope = request.resource_metrics.add().scope_metrics.add()
    metrics: dict[str, tuple[object, object]] = {}
    for (series, value, _), start, at in started:
        metric = series.metric
        if metric.name not in metrics:
            made = scope.metrics.add(name=metric.name, unit=metric.unit, description=metric.help)
            data = {Kind.GAUGE: "gauge", Kind.COUNTER: "sum", Kind.HISTOGRAM: "histogram"}[metric.kind]
            holder = getattr(made, data)
            if metric.kind is not Kind.GAUGE:
                holder.aggregation_temporality = 2
            if metric.kind is Kind.COUNTER:
                holder.is_monotonic = True
            metrics[metric.name] = (made, holder)
        point = metrics[metric.name][1].data_points.add(start_time_unix_nano=start, time_unix_nano=at)  # type: ignore[attr-defined]
        for name, text in series.labels:
            pair = point.attributes.add(key=name)
            pair.value.string_value = text
        if isinstance(value, Histogram):
            point.count = round(value.count)
            point.sum = value.sum
            point.explicit_bounds.extend(value.bounds[:-1])
            before = (0.0, *value.counts)
            point.bucket_counts.extend(round(b - a) for a, b in zip(before, value.counts, strict=False))
        else:
            point.as_double = value
    body: bytes = request.SerializeToString()
    return body


def cost(work: Callable[[], object]) -> float:
    """Milliseconds of CPU of one run, the median of several."""
    work()
    spent = []
    for _ in range(ROUNDS):
        before = time.process_time()
        work()
        spent.append((time.process_time() - before) * 1000)
    return statistics.median(spent)


def main() -> None:
    """Print the table."""
    heads = ("targets", "points", "bytes", "gzip", "starts", "encode", "gzip ms", "messages")
    print(" ".join(f"{head:>9}" for head in heads), " ratio")
    for targets in (1, 10, 50):
        sources = points(targets)
        memory, encoder = Starts(0.0), Encoder({"service.name": "bench"})
        started = memory.started(sources)
        lines = {series: line_of(series) for (series, _, _), _, _ in started}

        def readings(started: list[Started] = started, lines: dict[Series, Line] = lines) -> list[Reading]:
            return [Reading(lines[series], value, start, at) for (series, value, _), start, at in started]

        body = encoder.request(readings())
        since = cost(lambda memory=memory, sources=sources: memory.started(sources))  # type: ignore[misc]
        ours = cost(lambda encoder=encoder, readings=readings: encoder.request(readings()))  # type: ignore[misc]
        packed = cost(lambda body=body: gzip.compress(body, 1, mtime=0))  # type: ignore[misc]
        theirs = cost(lambda started=started: by_messages(started))  # type: ignore[misc]
        print(
            f"{targets:>9} {len(started):>9} {len(body):>9} {len(gzip.compress(body, 1, mtime=0)):>9} "
            f"{since:>9.2f} {ours:>9.2f} {packed:>9.2f} {theirs:>9.2f}  1/{theirs / ours:.1f}"
        )


if __name__ == "__main__":
    main()
