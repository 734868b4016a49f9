"""OTLP on the wire, compared with OpenTelemetry's own messages; since when counters count; names."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

from llm_headroom import schema
from llm_headroom.model import Histogram, Kind, Metric, Point, Series
from llm_headroom.otlp.conventions import CONVENTIONS, Conventions
from llm_headroom.otlp.cumulative import PROXY, Started, Starts
from llm_headroom.otlp.over_grpc import retry_delay
from llm_headroom.otlp.over_http import retry_after
from llm_headroom.proxy.measures import ORIGIN
from llm_headroom.render.otlp import Answer, Encoder, Line, Reading, answer, line_of, status_message
from llm_headroom.render.protobuf import fields, number, sized, text, varint
from otlp_receiver import points_of
from otlp_translation import translated

if TYPE_CHECKING:
    from collections.abc import Iterable

INF = float("inf")
SECOND = 1_000_000_000
TTFT = Histogram((0.1, 1.0, INF), (2.0, 5.0, 6.0), 4.5)


def line(metric: Metric, labels: Iterable[tuple[str, str]] = ()) -> Line:
    return line_of(Series(metric, dict(labels)))


def decoded(*readings: Reading, **resource: str) -> Any:  # noqa: ANN401 - a generated message
    return ExportMetricsServiceRequest.FromString(Encoder(resource, "https://schema").request(readings))


# The wire ------------------------------------------------------------------------------------------------------------
def test_a_request_as_the_messages_of_opentelemetry_read_it() -> None:
    labels = (("engine", "vllm"), ("target", "a"))
    request = decoded(
        Reading(line(schema.REQUESTS_RUNNING, labels), 3.0, 0, 7 * SECOND),
        Reading(line(schema.PROMPT_TOKENS, labels), 12.0, 5 * SECOND, 7 * SECOND),
        Reading(line(schema.TIME_TO_FIRST_TOKEN, labels), TTFT, 5 * SECOND, 7 * SECOND),
        Reading(line(schema.REQUESTS_RUNNING, (("target", "b"),)), 4.0, 0, 8 * SECOND),
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


@pytest.mark.parametrize("metric", [schema.REQUESTS_RUNNING, schema.PROMPT_TOKENS, schema.TIME_TO_FIRST_TOKEN])
def test_a_series_that_is_gone_has_no_recorded_value(metric: Metric) -> None:
    request = decoded(Reading(line(metric, (("target", "a"),)), None, 0, 7 * SECOND))
    ((labels, point),) = points_of(request.resource_metrics[0].scope_metrics[0].metrics[0])
    assert (labels, point.flags, point.time_unix_nano) == ((("target", "a"),), 1, 7 * SECOND)


def test_buckets_that_fall_still_add_up_to_the_count() -> None:
    odd = Histogram((0.1, 1.0, INF), (5.0, 4.0, 6.0), 3.0)
    request = decoded(Reading(line(schema.TIME_TO_FIRST_TOKEN, ()), odd, 1, 2))
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
def test_whatever_is_encoded_is_what_the_oracle_reads(given_: list[Any]) -> None:
    encoder = Encoder({"service.name": "é"})
    lines: dict[Any, Line] = {}
    for _ in range(2):  # the second time from what is remembered
        for labels, value, start, at in given_:
            metric = schema.TIME_TO_FIRST_TOKEN if isinstance(value, Histogram) else schema.PROMPT_TOKENS
            known = lines.setdefault((metric, *sorted(labels.items())), line(metric, labels.items()))
            request = ExportMetricsServiceRequest.FromString(encoder.request([Reading(known, value, start, at)]))
            ((pairs, point),) = points_of(request.resource_metrics[0].scope_metrics[0].metrics[0])
            assert pairs == tuple(sorted(labels.items()))
            assert (point.start_time_unix_nano, point.time_unix_nano) == (start, at)
            if isinstance(value, Histogram):
                assert list(point.explicit_bounds) == list(value.bounds[:-1])
                assert sum(point.bucket_counts) == point.count == value.count
            else:
                assert repr(point.as_double) == repr(value)


def test_a_label_that_is_no_unicode_does_not_break_the_rest() -> None:
    request = decoded(Reading(line(schema.REQUESTS_RUNNING, (("model", "a\udcffb"),)), 1.0, 0, 1))
    ((labels, _),) = points_of(request.resource_metrics[0].scope_metrics[0].metrics[0])
    assert labels == (("model", "a?b"),)


# Answers -------------------------------------------------------------------------------------------------------------
@given(st.integers(0, 2**62), st.text(max_size=300))
def test_what_a_collector_rejected_is_read(rejected: int, message: str) -> None:
    response = ExportMetricsServiceResponse()
    response.partial_success.rejected_data_points = rejected
    response.partial_success.error_message = message
    assert answer(response.SerializeToString()) == Answer(rejected, message)


def test_an_empty_answer_is_full_success() -> None:
    assert answer(b"") == Answer(0, "")


@given(st.binary(max_size=60))
def test_any_bytes_are_an_answer_or_a_value_error(data: bytes) -> None:
    with suppress(ValueError):
        assert answer(data).rejected >= 0
    assert isinstance(status_message(data), str)


@pytest.mark.parametrize(
    "data",
    [b"\x0a\x05ab", b"\xff" * 11, b"\x0b", b"\x00\x01", b"\x09\x01"],
    ids=["cut", "endless", "group", "zero", "8"],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"field|varint|wire type"):
        list(fields(data))


def test_the_message_of_an_error_is_found() -> None:
    assert status_message(number(1, 3) + text(2, "bad metric")) == "bad metric"
    assert status_message(b"<html>") == ""


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), ("", None), ("soon", None), ("-1", None), ("Thu, 01 Jan 1970 00:16:50 GMT", 10.0)],
)
def test_retry_after_is_a_number_or_a_date(value: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": value}, 1000.0) == seconds


def test_the_delay_that_grpc_details_ask_for_is_read() -> None:
    delay = sized(1, number(1, 3) + number(2, 500_000_000))
    info = text(1, "type.googleapis.com/google.rpc.RetryInfo") + sized(2, delay)
    status = number(1, 8) + text(2, "slow down") + sized(3, info)
    assert retry_delay([("x", "y"), ("grpc-status-details-bin", status)]) == 3.5
    assert retry_delay([("grpc-status-details-bin", b"\xff")]) is None
    assert retry_delay([]) is None


def test_a_varint_of_every_size_is_what_protobuf_has() -> None:
    assert [varint(each) for each in (0, 127, 128, 300, 2**64 - 1)] == [
        b"\x00",
        b"\x7f",
        b"\x80\x01",
        b"\xac\x02",
        b"\xff" * 9 + b"\x01",
    ]


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
    gpu = {"gpu": "0", "uuid": "GPU-1"}
    points = [
        Started(Point(Series(schema.TIME_TO_FIRST_TOKEN, engine), TTFT, ""), 1, 2),
        Started(Point(Series(schema.GPU_MEMORY_USED, gpu), 7.0, ""), 0, 2),
        Started(Point(Series(schema.GPU_TEMPERATURE, {**gpu, "sensor": "memory"}), 60.0, ""), 0, 2),
        Started(Point(Series(schema.GPU_UTILIZATION, {"engine": "sglang", "target": "a"}), 0.5, ""), 0, 2),
        Started(Point(Series(schema.REQUESTS_RUNNING, engine), 7.0, ""), 0, 2),
    ]
    request = decoded(*Conventions().readings(points))
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


def test_the_page_lists_every_name_of_the_conventions() -> None:
    page = (Path(__file__).parent.parent / "docs" / "otlp.md").read_text()
    listed = re.findall(r"^\| `(llm_\w+)` \| `((?:gen_ai|hw)\.[\w.]+)` \| ", page, re.MULTILINE)
    assert listed == [(metric.name, each.stream.name) for metric, each in CONVENTIONS.items()]
