"""Several places that tell of one target: which one speaks, and counters that outlive what they are read of."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llm_headroom import schema
from llm_headroom.derive.lives import ENDED_ORIGIN, Total, accumulated
from llm_headroom.model import Metric, Point, Series
from llm_headroom.scrape.layers import merge


def point(metric: Metric, model: str, value: float, origin: str = "", **labels: str) -> Point:
    return Point(Series(metric, {"model": model, **labels}), value, origin)


def test_the_richest_layer_that_tells_a_metric_of_a_model_tells_it_alone() -> None:
    runner = [point(schema.KV_CACHE_CAPACITY, "a", 4096.0, "slots")]
    api = [
        point(schema.KV_CACHE_CAPACITY, "a", 2048.0, "ps"),
        point(schema.KV_CACHE_CAPACITY, "b", 8192.0, "ps"),
        point(schema.MODEL_LOADED, "a", 1.0, "ps"),
    ]

    assert merge([runner, api]) == [runner[0], api[1], api[2]]
    assert merge([api, runner]) == api
    assert merge([[], api]) == api


def test_parts_of_one_metric_are_never_of_two_layers() -> None:
    richest = [
        point(schema.REQUESTS_FINISHED, "a", 5.0, reason="stop"),
        point(schema.REQUESTS_FINISHED, "a", 1.0, reason="length"),
    ]
    other = [point(schema.REQUESTS_FINISHED, "a", 9.0, reason="load")]

    assert merge([richest, other]) == richest


METRICS = (schema.REQUESTS_RUNNING, schema.REQUESTS_FINISHED, schema.PROMPT_TOKENS)
POINTS = st.lists(
    st.builds(
        point,
        st.sampled_from(METRICS),
        st.sampled_from(("a", "b", "")),
        st.floats(0, 9),
        st.just(""),
        reason=st.sampled_from(("x", "y")),
    ),
    unique_by=lambda each: each.series,
)


@given(st.lists(POINTS, max_size=4))
def test_no_series_comes_twice_and_no_metric_of_a_model_is_lost(layers: list[list[Point]]) -> None:
    merged = merge(layers)
    told = {(each.series.metric.name, each.series.label("model")) for layer in layers for each in layer}

    assert len({each.series for each in merged}) == len(merged)
    assert {(each.series.metric.name, each.series.label("model")) for each in merged} == told


def test_a_counter_goes_on_from_one_process_to_the_next() -> None:
    totals: dict[Series, Total] = {}
    values = []
    for life, value in (("1", 10.0), ("1", 25.0), ("2", 3.0), ("2", 4.0), ("3", 50.0)):
        totals, points = accumulated(totals, [(life, [point(schema.PROMPT_TOKENS, "a", value)])])
        values.append(points[0].value)

    assert values == [10.0, 25.0, 28.0, 29.0, 79.0]


def test_a_counter_stays_where_it_is_while_no_process_runs() -> None:
    totals, _ = accumulated({}, [("1", [point(schema.PROMPT_TOKENS, "a", 10.0, "upstream")])])

    totals, points = accumulated(totals, [])

    assert points == [point(schema.PROMPT_TOKENS, "a", 10.0, ENDED_ORIGIN)]
    assert accumulated(totals, [("1", [point(schema.PROMPT_TOKENS, "a", 12.0)])])[1][0].value == 12.0


def test_a_gauge_ends_with_its_process() -> None:
    running = point(schema.REQUESTS_RUNNING, "a", 2.0)
    totals, points = accumulated({}, [("1", [running])])

    assert points == [running]
    assert accumulated(totals, []) == ({}, [])


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 1e9)) | st.none()))
def test_an_accumulated_counter_never_falls(readings: list[tuple[str, float] | None]) -> None:
    totals: dict[Series, Total] = {}
    last = 0.0
    for reading in readings:
        told = [] if reading is None else [(reading[0], [point(schema.PROMPT_TOKENS, "m", reading[1])])]
        totals, points = accumulated(totals, told)
        for each in points:
            assert isinstance(each.value, float)
            assert each.value >= last
            last = each.value
