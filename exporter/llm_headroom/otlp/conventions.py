"""Our metrics under OpenTelemetry's own names, sent in addition on request.

Spec: https://github.com/open-telemetry/semantic-conventions/blob/v1.41.0/docs/gen-ai/gen-ai-metrics.md and
docs/hardware/gpu.md, docs/hardware/common.md. All of them are in development there. What the conventions require and
no engine exposes (`gen_ai.operation.name`) stays absent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom import schema
from llm_headroom.model import NOTHING, Subject
from llm_headroom.otlp.data import Reading, Shape, Stream

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from llm_headroom.model import Labels, Metric
    from llm_headroom.otlp.cumulative import Started

RENAMED: Final[Mapping[str, str]] = {
    "engine": "gen_ai.provider.name",
    "model": "gen_ai.request.model",
    "uuid": "hw.id",
    "target": "target",
    "replica": "replica",
}
"""Our labels → attributes. Those that are not here are in `Convention.renamed`, or left out."""


class Convention(NamedTuple):
    """How a metric of ours is called by the conventions: its stream, fixed attributes, and attributes of labels."""

    stream: Stream
    added: Mapping[str, str] = NOTHING
    renamed: Mapping[str, str] = NOTHING


def _latency(name: str, description: str) -> Convention:
    return Convention(Stream(f"gen_ai.server.{name}", Shape.HISTOGRAM, "s", description))


def _gpu(stream: Stream, renamed: Mapping[str, str] = NOTHING, **added: str) -> Convention:
    fixed = {"hw.type": "gpu"} | {name.replace("_", "."): value for name, value in added.items()}
    return Convention(stream, fixed, renamed)


CONVENTIONS: Final[Mapping[Metric, Convention]] = {
    schema.TIME_TO_FIRST_TOKEN: _latency(
        "time_to_first_token", "Time to generate first token for successful responses."
    ),
    schema.TIME_PER_OUTPUT_TOKEN: _latency(
        "time_per_output_token", "Time per output token generated after the first token for successful responses."
    ),
    schema.REQUEST_DURATION: _latency(
        "request.duration", "Generative AI server request duration such as time-to-last byte or last output token."
    ),
    schema.GPU_MEMORY_TOTAL: _gpu(Stream("hw.gpu.memory.limit", Shape.LEVEL, "By", "Size of the GPU memory.")),
    schema.GPU_MEMORY_USED: _gpu(Stream("hw.gpu.memory.usage", Shape.LEVEL, "By", "GPU memory used.")),
    schema.GPU_UTILIZATION: _gpu(
        Stream("hw.gpu.utilization", Shape.GAUGE, "1", "Fraction of time spent in a specific task."),
        hw_gpu_task="general",
    ),
    schema.GPU_ENERGY: _gpu(Stream("hw.energy", Shape.COUNTER, "J", "Energy consumed by the component.")),
    schema.GPU_POWER: _gpu(Stream("hw.power", Shape.GAUGE, "W", "Instantaneous power consumed by the component.")),
    schema.GPU_TEMPERATURE: _gpu(
        Stream("hw.temperature", Shape.GAUGE, "Cel", "Temperature in degrees Celsius."),
        {"sensor": "hw.sensor_location"},
    ),
    schema.GPU_FAN: _gpu(
        Stream("hw.fan.speed_ratio", Shape.GAUGE, "1", "Fan speed expressed as a fraction of its maximum speed."),
        {"fan": "hw.sensor_location"},
    ),
    schema.GPU_XID_ERRORS: _gpu(
        Stream("hw.errors", Shape.COUNTER, "{error}", "Number of errors encountered by the component."),
        {"xid": "xid"},
        error_type="xid",
    ),
}


def conventional(points: Iterable[Started]) -> Iterator[Reading]:
    """The points for which there is a name, under that name."""
    for (series, value, _), start, time in points:
        convention = CONVENTIONS.get(series.metric)
        if convention is None:
            continue
        if series.metric.subject is Subject.GPU and not series.label("uuid"):
            continue  # reported by an engine, which cannot name the device
        yield Reading(convention.stream, _labels(convention, series.labels), value, start, time)


def _labels(convention: Convention, labels: Labels) -> Labels:
    names = {**RENAMED, **convention.renamed}
    found = {names[name]: value for name, value in labels if name in names}
    return tuple(sorted({**found, **convention.added}.items()))
