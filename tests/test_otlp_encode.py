"""What OTLP receivers get of our readings; since when counters count; names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk.resources import Resource

from llm_headroom import schema
from llm_headroom.model import Histogram, Kind, Metric, Point, Series, Subject
from llm_headroom.otlp.conventions import CONVENTIONS, conventional
from llm_headroom.otlp.cumulative import PROXY, Started, Starts
from llm_headroom.otlp.data import Reading, metrics_data, reading
from llm_headroom.otlp.over_http import retry_after
from llm_headroom.proxy.measures import ORIGIN
from otlp_receiver import points_of
from otlp_translation import translated

if TYPE_CHECKING:
    from collections.abc import Iterable

INF = float("inf")
SECOND = 1_000_000_000
TTFT = Histogram((0.1, 1.0, INF), (2.0, 5.0, 6.0), 4.5)
GPU = {"gpu": "0", "uuid": "GPU-1"}


def decoded(*readings: Reading, **attributes: str) -> Any:  # noqa: ANN401 - a generated message
    data = metrics_data(readings, Resource(attributes, "https://schema"))
    return ExportMetricsServiceRequest.FromString(encode_metrics(data).SerializeToString())


def read(metric: Metric, labels: Iterable[tuple[str, str]], value: float | Histogram, start: int, time: int) -> Reading:
    return reading(Started(Point(Series(metric, dict(labels)), value, ""), start, time))


# The wire ------------------------------------------------------------------------------------------------------------
def test_a_request_as_the_messages_of_opentelemetry_read_it() -> None:
    labels = (("engine", "vllm"), ("target", "a"))
    request = decoded(
        read(schema.REQUESTS_RUNNING, labels, 3.0, 0, 7 * SECOND),
        read(schema.PROMPT_TOKENS, labels, 12.0, 5 * SECOND, 7 * SECOND),
        read(schema.TIME_TO_FIRST_TOKEN, labels, TTFT, 5 * SECOND, 7 * SECOND),
        read(schema.REQUESTS_RUNNING, (("target", "b"),), 4.0, 0, 8 * SECOND),
        service="x",
    )
    (resource_metrics,) = request.resource_metrics
    assert resource_metrics.schema_url == "https://schema"
    assert [(pair.key, pair.value.string_value) for pair in resource_metrics.resource.attributes] == [("service", "x")]
    (scope_metrics,) = resource_metrics.scope_metrics
    assert scope_metrics.scope.name == "llm_headroom"
    running, tokens, ttft = scope_metrics.metrics
    assert (running.name, running.unit) == ("llm_requests_running", "{request}")
    assert running.description == "Requests in the running batch."
    assert [(labels, point.as_double, point.time_unix_nano) for labels, point in points_of(running)] == [
        (labels, 3.0, 7 * SECOND),
        ((("target", "b"),), 4.0, 8 * SECOND),
    ]
    assert running.WhichOneof("data") == "gauge"
    assert (tokens.sum.is_monotonic, tokens.sum.aggregation_temporality) == (True, 2)
    ((_, point),) = points_of(tokens)
    assert (point.as_double, point.start_time_unix_nano, point.time_unix_nano) == (12.0, 5 * SECOND, 7 * SECOND)
    assert ttft.histogram.aggregation_temporality == 2
    ((_, point),) = points_of(ttft)
    assert (list(point.explicit_bounds), list(point.bucket_counts)) == ([0.1, 1.0], [2, 3, 1])
    assert (point.count, point.sum, point.start_time_unix_nano) == (6, 4.5, 5 * SECOND)


def test_buckets_that_fall_still_add_up_to_the_count() -> None:
    odd = Histogram((0.1, 1.0, INF), (5.0, 4.0, 6.0), 3.0)
    request = decoded(read(schema.TIME_TO_FIRST_TOKEN, (), odd, 1, 2))
    ((_, point),) = points_of(request.resource_metrics[0].scope_metrics[0].metrics[0])
    assert (list(point.bucket_counts), point.count) == ([5, 0, 1], 6)


LABELS = st.dictionaries(st.text(min_size=1, max_size=6), st.text(min_size=1, max_size=200), max_size=4)
VALUES = st.floats() | st.lists(st.integers(0, 2**40), min_size=1, max_size=40).map(
    lambda counts: Histogram(
        (*(0.5 * index for index in range(len(counts) - 1)), INF), tuple(float(each) for each in sorted(counts)), 1.5
    )
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(LABELS, VALUES, st.integers(0, 2**63), st.integers(0, 2**63)), max_size=8))
def test_whatever_is_sent_is_what_a_receiver_reads(given_: list[Any]) -> None:
    for labels, value, start, at in given_:
        metric = schema.TIME_TO_FIRST_TOKEN if isinstance(value, Histogram) else schema.PROMPT_TOKENS
        request = decoded(read(metric, labels.items(), value, start, at))
        ((pairs, point),) = points_of(request.resource_metrics[0].scope_metrics[0].metrics[0])
        assert pairs == tuple(sorted(labels.items()))
        assert (point.start_time_unix_nano, point.time_unix_nano) == (start, at)
        if isinstance(value, Histogram):
            assert list(point.explicit_bounds) == list(value.bounds[:-1])
            assert sum(point.bucket_counts) == point.count == value.count
            assert not point.HasField("min")
            assert not point.HasField("max")
        else:
            assert repr(point.as_double) == repr(value)


def test_a_label_that_is_no_unicode_does_not_break_the_rest() -> None:
    request = decoded(read(schema.REQUESTS_RUNNING, (("model", "a\udcffb"),), 1.0, 0, 1))
    ((labels, _),) = points_of(request.resource_metrics[0].scope_metrics[0].metrics[0])
    assert labels == (("model", "a?b"),)


# Answers --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0), (" 7 ", 7.0), ("0", 0.0), ("", 0.0), ("soon", 0.0), ("-1", 0.0), ("²", 0.0),
        ("Thu, 01 Jan 1970 00:16:50 GMT", 10.0), ("Thu, 01 Jan 1970 00:16:50 -0000", 10.0),
        ("Thu, 01 Jan 1970 01:16:50 +0100", 10.0), ("Thu, 01 Jan 1970 00:16:30 GMT", 0.0),
        (f"Mon, 01 Jan 2026 00:00:00 +{'9' * 400}", 0.0),
        (f"Mon, {'9' * 20} Jan 2026 00:00:00 GMT", 0.0),
    ],
)  # fmt: skip
def test_retry_after_is_a_number_or_a_date(value: str, seconds: float) -> None:
    assert retry_after(value, 1000.0) == seconds


# Since when ----------------------------------------------------------------------------------------------------------
TOKENS = Series(schema.PROMPT_TOKENS, {"target": "a"})
FIRST = Series(schema.TIME_TO_FIRST_TOKEN, {"target": "a"})
START = Series(schema.ENGINE_START, {"target": "a"})
RESTARTS = Series(schema.ENGINE_RESTARTS, {"target": "a"})
ENERGY = Series(schema.GPU_ENERGY, {"gpu": "0"})


def starts(starts_: Starts, at: float, *points: tuple[Series, float | Histogram]) -> dict[str, float]:
    """By metric, since when it counts in seconds."""
    made = [Point(series, value, "") for series, value in points]
    return {each.point.series.metric.name: each.start / SECOND for each in starts_.started([(at, made)])}


def test_a_counter_counts_since_its_engine_started_where_that_is_known() -> None:
    known = starts(Starts(500.0), 1000.0, (TOKENS, 9.0), (FIRST, TTFT), (START, 400.0), (RESTARTS, 0.0), (ENERGY, 1.0))
    assert known == {
        "llm_prompt_tokens_total": 400.0,
        "llm_time_to_first_token_seconds": 400.0,
        "llm_engine_start_time_seconds": 0.0,
        "llm_engine_restarts_total": 500.0,
        "llm_gpu_energy_joules_total": 1000.0,
    }


def test_a_start_outlives_a_restart_of_the_exporter() -> None:
    for began in (500.0, 900.0):
        assert starts(Starts(began), 1000.0, (TOKENS, 9.0), (START, 400.0))["llm_prompt_tokens_total"] == 400.0


@pytest.mark.parametrize("series", [RESTARTS, Series(schema.GPU_XID_ERRORS, {"target": "a"})])
def test_what_is_counted_here_knows_no_restart_of_an_engine(series: Series) -> None:
    memory = Starts(500.0)
    seen = [
        starts(memory, at, (series, value), (START, started))[series.metric.name]
        for at, value, started in ((1000.0, 5.0, 400.0), (1060.0, 6.0, 1030.0), (1120.0, 2.0, 1090.0))
    ]
    assert seen == [500.0, 500.0, 1060.0], "since this process began, or since the look before it fell"


def test_an_unknown_start_is_the_first_look_and_stays() -> None:
    memory = Starts(500.0)
    assert [starts(memory, at, (TOKENS, at))["llm_prompt_tokens_total"] for at in (1000.0, 1005.0)] == [1000.0, 1000.0]


@pytest.mark.parametrize(
    ("series", "before", "after"), [(TOKENS, 9.0, 8.0), (FIRST, TTFT, Histogram((0.1, 1.0, INF), (0.0, 1.0, 1.0), 0.5))]
)
def test_a_counter_that_falls_counts_since_the_look_before(
    series: Series, before: float | Histogram, after: float | Histogram
) -> None:
    memory, name = Starts(500.0), series.metric.name
    starts(memory, 1000.0, (series, before))
    assert starts(memory, 1005.0, (series, after))[name] == 1000.0
    assert starts(memory, 1010.0, (series, after))[name] == 1000.0


def test_an_engine_that_restarted_moves_the_start_even_if_its_counter_is_past_the_old_value() -> None:
    memory = Starts(500.0)
    starts(memory, 1000.0, (TOKENS, 9.0), (START, 400.0))
    assert starts(memory, 1060.0, (TOKENS, 90.0), (START, 1030.0))["llm_prompt_tokens_total"] == 1030.0


def test_a_restart_while_the_source_was_down_is_noticed() -> None:
    memory = Starts(500.0)
    starts(memory, 1000.0, (TOKENS, 9.0))
    assert starts(memory, 1005.0) == {}
    assert starts(memory, 1010.0, (TOKENS, 2.0))["llm_prompt_tokens_total"] == 1000.0


def test_a_start_is_never_in_the_future_and_a_jittering_one_moves_nothing() -> None:
    memory = Starts(500.0)
    assert starts(memory, 1000.0, (TOKENS, 9.0), (START, 1000.4))["llm_prompt_tokens_total"] == 1000.0
    assert starts(memory, 1005.0, (TOKENS, 9.0), (START, 999.9))["llm_prompt_tokens_total"] == 1000.0
    assert starts(memory, 1010.0, (TOKENS, 9.0), (START, 1000.2))["llm_prompt_tokens_total"] == 1000.0


def test_a_restart_moves_the_start_though_the_one_before_was_not_always_known() -> None:
    memory = Starts(500.0)
    looks = [((START, 400.0),), (), ((START, 1030.0),), ((START, 1032.0),), ((START, 1090.0),)]
    seen = [
        starts(memory, at, (TOKENS, at), *more)["llm_prompt_tokens_total"]
        for at, more in zip((1000.0, 1020.0, 1060.0, 1120.0, 1180.0), looks, strict=True)
    ]
    assert seen == [400.0, 400.0, 1030.0, 1060.0, 1120.0], "intervals never overlap"


@pytest.mark.parametrize(("later", "start"), [(401.0, 400.0), (399.0, 400.0), (402.0, 1000.0), (398.0, 1000.0)])
def test_a_start_that_moves_by_more_than_a_second_is_a_restart(later: float, start: float) -> None:
    memory = Starts(500.0)
    starts(memory, 1000.0, (TOKENS, 9.0), (START, 400.0))
    assert starts(memory, 1010.0, (TOKENS, 9.0), (START, later))["llm_prompt_tokens_total"] == start


@pytest.mark.parametrize("started", [0.0, -5.0, 1001.0])
def test_a_start_that_cannot_be_is_none(started: float) -> None:
    assert starts(Starts(500.0), 1000.0, (TOKENS, 9.0), (START, started))["llm_prompt_tokens_total"] == 1000.0


def test_what_the_kernel_counts_starts_with_the_first_look() -> None:
    killed = Series(schema.HOST_OOM_KILLS, {"target": "a"})
    assert starts(Starts(500.0), 1000.0, (killed, 1.0), (START, 400.0))["llm_host_memory_oom_kills_total"] == 1000.0


def test_processes_of_one_engine_that_started_at_different_times_tell_no_start() -> None:
    other = Series(schema.ENGINE_START, {"target": "a", "replica": "1"})
    known = starts(Starts(500.0), 1000.0, (TOKENS, 9.0), (START, 400.0), (other, 600.0))
    assert known["llm_prompt_tokens_total"] == 1000.0


def test_what_the_measuring_proxy_counts_starts_with_this_process_though_the_engine_is_older() -> None:
    assert PROXY == ORIGIN
    started = Starts(500.0).started([(1000.0, [Point(TOKENS, 9.0, ORIGIN), Point(START, 400.0, "")])])
    assert [each.start / SECOND for each in started] == [500.0, 0.0]


# Names ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("metric", schema.ALL, ids=lambda metric: metric.name)
def test_a_name_survives_the_translation_to_prometheus(metric: Metric) -> None:
    name = translated(metric.name, metric.unit, counter=metric.kind is Kind.COUNTER, gauge=metric.kind is Kind.GAUGE)
    assert name == metric.name


@pytest.mark.parametrize(
    ("name", "unit", "kind", "translation"),
    [
        ("http.server.duration", "s", "histogram", "http_server_duration_seconds"),
        ("requests", "{request}", "counter", "requests_total"),
        ("hw.gpu.utilization", "1", "gauge", "hw_gpu_utilization_ratio"),
        ("disk.io", "By/s", "gauge", "disk_io_bytes_per_second"),
    ],
)
def test_the_translation_itself(name: str, unit: str, kind: str, translation: str) -> None:
    assert translated(name, unit, counter=kind == "counter", gauge=kind == "gauge") == translation


def test_no_name_of_the_conventions_is_a_name_of_ours() -> None:
    assert not {each.stream.name for each in CONVENTIONS.values()} & schema.BY_NAME.keys()


def test_what_the_conventions_call_it() -> None:
    engine = {"engine": "vllm", "model": "llama", "target": "a", "replica": "0"}
    points = [
        Started(Point(Series(schema.TIME_TO_FIRST_TOKEN, engine), TTFT, ""), 1, 2),
        Started(Point(Series(schema.GPU_MEMORY_USED, GPU), 7.0, ""), 0, 2),
        Started(Point(Series(schema.GPU_TEMPERATURE, {**GPU, "sensor": "memory"}), 60.0, ""), 0, 2),
        Started(Point(Series(schema.GPU_UTILIZATION, {"engine": "sglang", "target": "a"}), 0.5, ""), 0, 2),
        Started(Point(Series(schema.REQUESTS_RUNNING, engine), 7.0, ""), 0, 2),
    ]
    request = decoded(*conventional(points))
    found = {metric.name: metric for metric in request.resource_metrics[0].scope_metrics[0].metrics}
    assert {name: [dict(labels) for labels, _ in points_of(metric)] for name, metric in found.items()} == {
        "gen_ai.server.time_to_first_token": [
            {"gen_ai.provider.name": "vllm", "gen_ai.request.model": "llama", "target": "a", "replica": "0"}
        ],
        "hw.gpu.memory.usage": [{"hw.id": "GPU-1", "hw.type": "gpu"}],
        "hw.temperature": [{"hw.id": "GPU-1", "hw.type": "gpu", "hw.sensor_location": "memory"}],
    }
    usage = found["hw.gpu.memory.usage"]
    assert (usage.unit, usage.sum.is_monotonic, usage.sum.aggregation_temporality) == ("By", False, 2)


@pytest.mark.parametrize(
    ("series", "stream", "attributes"),
    [
        (Series(schema.TIME_PER_OUTPUT_TOKEN, {"engine": "vllm"}),
         ("gen_ai.server.time_per_output_token", "histogram", "s"), {"gen_ai.provider.name": "vllm"}),
        (Series(schema.REQUEST_DURATION, {"finished_reason": "stop", "target": "a"}),
         ("gen_ai.server.request.duration", "histogram", "s"), {"target": "a"}),
        (Series(schema.GPU_MEMORY_TOTAL, GPU), ("hw.gpu.memory.limit", "sum", "By"), {}),
        (Series(schema.GPU_UTILIZATION, GPU), ("hw.gpu.utilization", "gauge", "1"), {"hw.gpu.task": "general"}),
        (Series(schema.GPU_ENERGY, GPU), ("hw.energy", "sum", "J"), {}),
        (Series(schema.GPU_POWER, GPU), ("hw.power", "gauge", "W"), {}),
        (Series(schema.GPU_TEMPERATURE, {**GPU, "sensor": "gpu"}), ("hw.temperature", "gauge", "Cel"),
         {"hw.sensor_location": "gpu"}),
        (Series(schema.GPU_FAN, {**GPU, "fan": "1"}), ("hw.fan.speed_ratio", "gauge", "1"),
         {"hw.sensor_location": "1"}),
        (Series(schema.GPU_XID_ERRORS, {**GPU, "xid": "79"}), ("hw.errors", "sum", "{error}"),
         {"error.type": "xid", "xid": "79"}),
    ],
)  # fmt: skip
def test_what_the_conventions_say_of_a_metric(
    series: Series, stream: tuple[str, str, str], attributes: dict[str, str]
) -> None:
    value = TTFT if series.metric.kind is Kind.HISTOGRAM else 1.0
    request = decoded(*conventional([Started(Point(series, value, ""), 1, 2)]))
    (metric,) = request.resource_metrics[0].scope_metrics[0].metrics
    assert (metric.name, metric.WhichOneof("data"), metric.unit) == stream
    ((labels, _),) = points_of(metric)
    gpu = {"hw.id": "GPU-1", "hw.type": "gpu"} if series.metric.subject is Subject.GPU else {}
    assert dict(labels) == gpu | attributes
    assert metric.sum.is_monotonic is (series.metric.kind is Kind.COUNTER)


def test_the_page_lists_every_name_of_the_conventions() -> None:
    page = (Path(__file__).parent.parent / "docs" / "otlp.md").read_text()
    listed = re.findall(r"^\| `(llm_\w+)` \| `((?:gen_ai|hw)\.[\w.]+)` \| ", page, re.MULTILINE)
    assert listed == [(metric.name, each.stream.name) for metric, each in CONVENTIONS.items()]
