"""Whatever numbers an engine exposes, what is made of them is a number, and nothing fails."""

from __future__ import annotations

import math

import pytest

import captures
from captures import Capture
from llm_headroom.derive.memory import Memory, advance
from llm_headroom.exposition.text import Exposition, Parser
from llm_headroom.model import Histogram, Point
from llm_headroom.scrape import kv_cache
from llm_headroom.scrape.plan import MOST

EXTREMES = (0.0, 5e-324, 1e-9, MOST, 5e-324, math.nextafter(MOST, math.inf), 1.7e308, math.inf, 0.0, MOST)
"""What all series of a poll are, one poll after the other."""


def numbers(point: Point) -> tuple[float, ...]:
    value = point.value
    return (*value.counts, value.sum) if isinstance(value, Histogram) else (value,)


@pytest.mark.parametrize("capture", captures.ALL, ids=str)
def test_what_is_made_of_extreme_numbers_is_a_number(capture: Capture) -> None:
    layout = captures.parsed(capture.exposition).layout
    mapper, memory = captures.mapper(capture.engine), Memory()
    base = {"engine": capture.engine, "target": "t"}
    for poll, extreme in enumerate(EXTREMES):
        points = kv_cache.completed(mapper.map(Exposition(layout, [extreme] * len(layout.keys)))[1].points)
        memory, derived = advance(memory, points, 5.0 * poll, base=base)
        odd = [point for point in (*points, *derived) if not all(map(math.isfinite, numbers(point)))]
        assert not odd, extreme


@pytest.mark.parametrize(("exposed", "read"), [(MOST, True), (2.0 * MOST, False), (1.7e308, False)])
def test_a_number_that_no_engine_can_have_is_withheld_and_said(exposed: float, *, read: bool) -> None:
    name, buckets = "vllm:num_requests_running", "vllm:time_to_first_token_seconds"
    text = (
        f"# TYPE {name} gauge\n{name} {exposed}\n# TYPE {buckets} histogram\n"
        f'{buckets}_bucket{{le="1"}} 0\n{buckets}_bucket{{le="+Inf"}} {exposed}\n'
        f"{buckets}_sum 1\n{buckets}_count {exposed}\n"
    )
    found = captures.mapper("vllm").map(Parser().parse(text.encode()))[1]

    assert [point.series.metric.name for point in found.points] == [
        "llm_requests_running",
        "llm_time_to_first_token_seconds",
    ] * read
    assert found.invalid == (0 if read else 3)
    assert list(found.problems) == [
        f"{name} is beyond 1e+24, which no engine can have: llm_requests_running is withheld"
    ] * (not read)
