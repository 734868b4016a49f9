"""The captures under `fixtures/captures`, as values."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.exposition.text import Exposition, Parser
from llm_headroom.model import Histogram, Point
from llm_headroom.scrape.label_cap import LabelCap
from llm_headroom.scrape.mapping import Mapper

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from llm_headroom.engines.rules import Engine

CAPTURES = Path(__file__).parents[1] / "fixtures" / "captures"
ROUTERS = ("smg-", "vllm-router-")
OTHER_ENDPOINTS = (".openmetrics.", ".engine_metrics.", ".v1_loads_")


class Capture(NamedTuple):
    """One state of one server: `vllm/0.32.0/saturated`."""

    engine: str
    version: str
    state: str

    def __str__(self) -> str:
        return f"{self.engine}-{self.version}-{self.state}"

    @property
    def directory(self) -> Path:
        """Where its files lie."""
        return CAPTURES / ("sglang" if self.engine == "sglang_router" else self.engine) / self.version

    @property
    def exposition(self) -> Path:
        """Its metrics."""
        return self.directory / f"{self.state}.prom"

    @property
    def expected(self) -> Path:
        """What the exporter makes of it."""
        return self.directory / f"{self.state}.expected"


def _all() -> Iterator[Capture]:
    for path in sorted(CAPTURES.glob("*/*/*.prom")):
        engine, version = path.parent.parent.name, path.parent.name
        if any(part in path.name for part in OTHER_ENDPOINTS):
            continue
        if version.startswith(ROUTERS):
            engine = "sglang_router"
        yield Capture(engine, version, path.name.removesuffix(".prom"))


ALL = tuple(_all())


@cache
def parsed(path: Path) -> Exposition:
    """An exposition of a capture."""
    return Parser().parse(path.read_bytes(), openmetrics=".openmetrics." in path.name)


def of(name: str) -> Exposition:
    """The exposition of `vllm/0.32.0/saturated`."""
    return parsed(CAPTURES / f"{name}.prom")


def document(name: str) -> Any:  # noqa: ANN401 - JSON
    """The JSON document of `vllm/0.32.0/models`."""
    return json.loads((CAPTURES / f"{name}.json").read_bytes())


def mapper(engine: Engine | str, *, limit: int = 200) -> Mapper:
    """A mapper of a target named `t`."""
    if isinstance(engine, str):
        engine = BUILT_IN[engine]
    return Mapper(engine, {"engine": engine.name, "target": "t"}, cap=LabelCap(limit))


def mapped(engine: Engine | str, source: Exposition | str | bytes, *, model: str = "") -> list[Point]:
    """The points of an exposition: a capture by its name, or text."""
    if isinstance(source, bytes):
        source = Parser().parse(source)
    elif isinstance(source, str):
        source = of(source)
    return mapper(engine).map(source, model=model)[1].points


def values(points: Iterable[Point], metric: str, *labels: str) -> dict[str | tuple[str, ...], float | Histogram]:
    """The values of a metric by the values of some labels (one label: by its value alone)."""
    found: dict[str | tuple[str, ...], float | Histogram] = {}
    for point in points:
        if point.series.metric.name != metric:
            continue
        key = tuple(point.series.label(label) for label in labels)
        found[key[0] if len(key) == 1 else key] = point.value
    return found


def value(points: Iterable[Point], metric: str) -> float | Histogram | None:
    """The value of a metric with one series; None if it is absent."""
    found = [point.value for point in points if point.series.metric.name == metric]
    assert len(found) <= 1, found
    return found[0] if found else None


def histogram(points: Iterable[Point], metric: str) -> Histogram:
    """The histogram of a metric with one series."""
    found = value(points, metric)
    assert isinstance(found, Histogram)
    return found


def origin(points: Iterable[Point], metric: str) -> str:
    """The upstream name that the only series of a metric came from."""
    (found,) = {point.origin for point in points if point.series.metric.name == metric}
    return found
