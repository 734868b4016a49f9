"""What the exporter makes of each capture, byte for byte, and that prometheus-client's writer says the same.

`pytest --update` writes the files; review the diff.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from functools import cache
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as text_families
from prometheus_client.registry import Collector as Registered

import captures
from captures import Capture
from engine_server import EngineServer, replayed
from llm_headroom import schema
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.objectives import Objectives
from llm_headroom.config.settings import Target
from llm_headroom.derive import slo
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.model import Histogram, Point, Series
from llm_headroom.render.families import families
from llm_headroom.render.prometheus import Format, Renderer, exposition
from llm_headroom.scrape.collect import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from prometheus_client import Metric

    from llm_headroom.model import Metric as Canonical

OLLAMA = tuple(
    Capture("ollama", "0.33.0-rc2", state) for state in ("ps_empty", "ps_loaded", "ps_keepalive_forever_q8", "ps_after")
)
ALL = (*captures.ALL, *OLLAMA)


@cache
def collected(capture: Capture) -> tuple[Point, ...]:
    """One collection of a server that answers as captured."""

    async def collect() -> tuple[Point, ...]:
        with EngineServer(replayed(capture)) as server:
            target = Target(name="target", endpoint=Endpoint(url=server.url))
            every = slo.objectives(Objectives(request_duration=30.0))
            collector = Collector(target, BUILT_IN[capture.engine], timeout=30, label_limit=200, objectives=every)
            snapshot = await collector.collect()
            await collector.close()
        assert snapshot.health.error is None
        return snapshot.points

    return asyncio.run(collect())


def rendered(points: Iterable[Point], form: Format) -> str:
    """The exposition of points."""
    return exposition([Renderer().lines(points)], form).decode()


def test_a_family_that_cannot_be_rendered_costs_no_other_and_no_other_source_its_lines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def source(target: str, ttft: Histogram) -> tuple[Point, Point]:
        labels = {"target": target}
        running = Point(Series(schema.REQUESTS_RUNNING, labels), 1.0, "")
        return running, Point(Series(schema.TIME_TO_FIRST_TOKEN, labels), ttft, "")

    whole = Histogram((1.0, float("inf")), (2.0, 3.0), 4.0)
    broken = Histogram((1.0, float("inf")), (2.0,), 4.0)  # a count is missing
    lines = [Renderer().lines(source("a", broken)), Renderer().lines(source("b", whole))]

    text = exposition(lines, Format.TEXT).decode()
    assert [line for line in text.splitlines() if not line.startswith("#")] == [
        'llm_requests_running{target="a"} 1.0',
        'llm_requests_running{target="b"} 1.0',
        'llm_time_to_first_token_seconds_bucket{target="b",le="1.0"} 2.0',
        'llm_time_to_first_token_seconds_bucket{target="b",le="+Inf"} 3.0',
        'llm_time_to_first_token_seconds_count{target="b"} 3.0',
        'llm_time_to_first_token_seconds_sum{target="b"} 4.0',
    ]
    failed = [each for each in caplog.records if "rendering failed" in each.getMessage()]
    assert [(each.target, each.metric) for each in failed] == [("a", schema.TIME_TO_FIRST_TOKEN.name)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("capture", ALL, ids=str)
def test_a_capture_gives_what_it_should(capture: Capture, update: bool) -> None:  # noqa: FBT001 - a fixture
    found = rendered(collected(capture), Format.TEXT)
    if update:
        capture.expected.write_text(found)

    assert found == capture.expected.read_text()


@pytest.mark.parametrize("capture", ALL, ids=str)
def test_promtool_finds_nothing(capture: Capture) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing: install the Debian package `prometheus`")
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=capture.expected.read_bytes(), capture_output=True, check=False
    )

    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


# Beside prometheus-client's own writer -------------------------------------------------------------------------------
class Fixed(Registered):
    """A collector of some points."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._points = points

    def collect(self) -> Iterable[Metric]:
        """Their families."""
        return families(self._points)


def differences(points: Sequence[Point], form: Format) -> list[tuple[Metric, Metric]]:
    """Families that are not the same in our exposition and in prometheus-client's, as its parser reads both."""
    registry = CollectorRegistry()
    registry.register(Fixed(points))
    if form is Format.TEXT:
        parse, theirs = text_families, generate_latest(registry)
    else:
        parse, theirs = openmetrics_families, generate_openmetrics(registry)
    pairs = zip(parse(rendered(points, form)), parse(theirs.decode()), strict=True)
    return [(one, other) for one, other in pairs if one != other]


@pytest.mark.parametrize("form", Format)
@pytest.mark.parametrize("capture", ALL, ids=str)
def test_a_capture_is_written_as_prometheus_client_writes_it(capture: Capture, form: Format) -> None:
    assert differences(collected(capture), form) == []


VALUES = st.floats(0, allow_infinity=True, allow_nan=False)
TEXTS = st.text(st.sampled_from('\\"\n,}= n') | st.characters(), max_size=5)
LABELS = st.dictionaries(st.sampled_from(("engine", "model", "target", "zone")), TEXTS)
HISTOGRAMS = st.lists(VALUES, min_size=1, max_size=5, unique=True).flatmap(
    lambda bounds: st.builds(
        Histogram,
        st.just((*sorted(bound for bound in bounds if bound < float("inf")), float("inf"))),
        st.just(tuple(float(count) for count in range(1 + sum(bound < float("inf") for bound in bounds)))),
        st.floats(0, 1e300),
    )
)
POINTS = st.one_of(
    st.tuples(st.sampled_from((schema.REQUESTS_RUNNING, schema.PROMPT_TOKENS, schema.KV_CACHE_USAGE)), LABELS, VALUES),
    st.tuples(st.just(schema.TIME_TO_FIRST_TOKEN), LABELS, HISTOGRAMS),
)


@settings(deadline=None)
@given(st.lists(POINTS), st.sampled_from(Format))
def test_whatever_labels_and_values_are_both_write_the_same(
    drawn: list[tuple[Canonical, dict[str, str], float | Histogram]], form: Format
) -> None:
    points = {Series(metric, labels): value for metric, labels, value in drawn}

    assert differences([Point(series, value, "") for series, value in points.items()], form) == []
