"""OpenTelemetry's own names of what our metrics say, sent beside them on request.

Spec: https://github.com/open-telemetry/semantic-conventions/blob/v1.41.0/docs/gen-ai/gen-ai-metrics.md and
docs/hardware/gpu.md, docs/hardware/common.md. All of them are in development there. What the conventions require and
no engine tells (`gen_ai.operation.name`) stays absent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.model import Subject
from llm_headroom.render.otlp import Line, Reading, Shape, Stream

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from llm_headroom.model import Labels, Metric, Series
    from llm_headroom.otlp.cumulative import Started

RENAMED: Final[Mapping[str, str]] = {
    "engine": "gen_ai.provider.name",
    "model": "gen_ai.request.model",
    "uuid": "hw.id",
    "target": "target",
    "replica": "replica",
}
"""Our labels → attributes. Those that are not here are told in `Convention.renamed`, or left out."""


@dataclass(frozen=True, slots=True)
class Convention:
    """How a metric of ours is called by the conventions: its stream, fixed attributes, and attributes of labels."""

    stream: Stream
    added: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)


def _convention(  # noqa: PLR0913 - a row of the table
    name: str,
    shape: Shape,
    unit: str,
    description: str,
    *,
    added: Mapping[str, str] | None = None,
    renamed: Mapping[str, str] | None = None,
) -> Convention:
    return Convention(Stream(name, shape, unit, description), added or {}, renamed or {})


_GPU: Final = {"hw.type": "gpu"}

CONVENTIONS: Final[Mapping[Metric, Convention]] = {
    schema.TIME_TO_FIRST_TOKEN: _convention(
        "gen_ai.server.time_to_first_token",
        Shape.HISTOGRAM,
        "s",
        "Time to generate first token for successful responses.",
    ),
    schema.TIME_PER_OUTPUT_TOKEN: _convention(
        "gen_ai.server.time_per_output_token",
        Shape.HISTOGRAM,
        "s",
        "Time per output token generated after the first token for successful responses.",
    ),
    schema.REQUEST_DURATION: _convention(
        "gen_ai.server.request.duration",
        Shape.HISTOGRAM,
        "s",
        "Generative AI server request duration such as time-to-last byte or last output token.",
    ),
    schema.GPU_MEMORY_TOTAL: _convention(
        "hw.gpu.memory.limit", Shape.LEVEL, "By", "Size of the GPU memory.", added=_GPU
    ),
    schema.GPU_MEMORY_USED: _convention("hw.gpu.memory.usage", Shape.LEVEL, "By", "GPU memory used.", added=_GPU),
    schema.GPU_UTILIZATION: _convention(
        "hw.gpu.utilization",
        Shape.GAUGE,
        "1",
        "Fraction of time spent in a specific task.",
        added={**_GPU, "hw.gpu.task": "general"},
    ),
    schema.GPU_ENERGY: _convention("hw.energy", Shape.COUNTER, "J", "Energy consumed by the component.", added=_GPU),
    schema.GPU_POWER: _convention(
        "hw.power", Shape.GAUGE, "W", "Instantaneous power consumed by the component.", added=_GPU
    ),
    schema.GPU_TEMPERATURE: _convention(
        "hw.temperature",
        Shape.GAUGE,
        "Cel",
        "Temperature in degrees Celsius.",
        added=_GPU,
        renamed={"sensor": "hw.sensor_location"},
    ),
    schema.GPU_FAN: _convention(
        "hw.fan.speed_ratio",
        Shape.GAUGE,
        "1",
        "Fan speed expressed as a fraction of its maximum speed.",
        added=_GPU,
        renamed={"fan": "hw.sensor_location"},
    ),
    schema.GPU_XID_ERRORS: _convention(
        "hw.errors",
        Shape.COUNTER,
        "{error}",
        "Number of errors encountered by the component.",
        added={**_GPU, "error.type": "xid"},
        renamed={"xid": "xid"},
    ),
}


class Conventions:
    """Turns points of ours into those that the conventions name."""

    def __init__(self) -> None:
        self._lines: dict[Series, Line] = {}

    def readings(self, points: Iterable[Started]) -> Iterator[Reading]:
        """The points for which there is a name, under that name."""
        for (series, value, _), start, time in points:
            convention = CONVENTIONS.get(series.metric)
            if convention is None:
                continue
            if series.metric.subject is Subject.GPU and not series.label("uuid"):
                continue  # told by an engine, which cannot name the device
            line = self._lines.get(series)
            if line is None:
                if len(self._lines) > _MOST_KEPT:
                    self._lines.clear()
                line = self._lines[series] = Line(convention.stream, _labels(convention, series.labels))
            yield Reading(line, value, start, time)


_MOST_KEPT: Final = 200_000


def _labels(convention: Convention, labels: Labels) -> Labels:
    names = {**RENAMED, **convention.renamed}
    found = {names[name]: value for name, value in labels if name in names}
    return tuple(sorted({**found, **convention.added}.items()))
