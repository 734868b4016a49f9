"""What an answer of a collector means, over HTTP and over gRPC."""

from __future__ import annotations

import logging
from http.client import BadStatusLine, RemoteDisconnected
from typing import TYPE_CHECKING

import grpc
import pytest
import requests
import urllib3
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

from llm_headroom.otlp.options import Problem
from llm_headroom.otlp.outcome import Drop, Outcome
from llm_headroom.otlp.over_grpc import outcome_of
from llm_headroom.otlp.over_http import failed, judged
from llm_headroom.otlp.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Mapping

PROTOBUF = {"Content-Type": "application/x-protobuf"}
BAD = Status(message="bad metric").SerializeToString()
TEXT = {"Content-Type": "text/plain; charset=utf-8"}


def partial(rejected: int, message: str = "") -> bytes:
    """The body of a collector that has taken only a part."""
    answer = ExportMetricsServiceResponse()
    answer.partial_success.rejected_data_points = rejected
    answer.partial_success.error_message = message
    body: bytes = answer.SerializeToString()
    return body


@pytest.mark.parametrize(
    ("status", "headers", "body", "outcome"),
    [
        (200, PROTOBUF, b"", Outcome()),
        (299, {}, b"", Outcome()),
        (200, PROTOBUF, partial(3, "too old"), Outcome(rejected=3, message="too old")),
        (200, {}, partial(3), Outcome(rejected=3)),
        (200, {"Content-Type": " Application/X-Protobuf ; a=b"}, partial(3), Outcome(rejected=3)),
        (200, PROTOBUF, partial(-3, "odd"), Outcome(message="odd")),
        (200, PROTOBUF, b"\xff\xff", Outcome()),
        (200, TEXT, partial(3), Outcome()),
        (
            200,
            {"Content-Type": "text/html"},
            b"<html>",
            Outcome(Drop.PROTOCOL, "HTTP status 200 text/html: the endpoint is not an OTLP receiver"),
        ),
        (300, TEXT, b"", Outcome(Drop.PROTOCOL, "HTTP status 300 text/plain: the endpoint is not an OTLP receiver")),
        (399, TEXT, b"", Outcome(Drop.PROTOCOL, "HTTP status 399 text/plain: the endpoint is not an OTLP receiver")),
        (400, PROTOBUF, BAD, Outcome(Drop.REFUSED, "HTTP status 400: bad metric")),
        (400, PROTOBUF, b"\xff\xff", Outcome(Drop.REFUSED, "HTTP status 400")),
        (404, TEXT, b"no\n such  page", Outcome(Drop.REFUSED, "HTTP status 404: no such page")),
        (404, {"Content-Type": "text/html"}, b"<p>", Outcome(Drop.REFUSED, "HTTP status 404: <p>")),
        (401, TEXT, b"", Outcome(Drop.AUTH, "HTTP status 401")),
        (403, TEXT, b"who?", Outcome(Drop.AUTH, "HTTP status 403: who?")),
        (429, {**TEXT, "Retry-After": "7"}, b"", Outcome(Drop.UNAVAILABLE, "HTTP status 429", 7.0)),
        (502, TEXT, b"", Outcome(Drop.UNAVAILABLE, "HTTP status 502")),
        (503, TEXT, b"busy", Outcome(Drop.UNAVAILABLE, "HTTP status 503: busy")),
        (504, TEXT, b"", Outcome(Drop.UNAVAILABLE, "HTTP status 504")),
        (500, {**TEXT, "Retry-After": "7"}, b"", Outcome(Drop.REFUSED, "HTTP status 500")),
        (500, TEXT, b"a" * 9000, Outcome(Drop.REFUSED, f"HTTP status 500: {'a' * 200}")),
        (500, TEXT, b" " * 399 + b"aa", Outcome(Drop.REFUSED, "HTTP status 500: a")),
        (500, TEXT, b"\xff", Outcome(Drop.REFUSED, "HTTP status 500: \ufffd")),
    ],
)  # fmt: skip
def test_what_a_response_means(status: int, headers: Mapping[str, str], body: bytes, outcome: Outcome) -> None:
    response = requests.Response()
    response.status_code = status
    response.headers.update(headers)
    assert judged(response, body) == outcome


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (requests.exceptions.SSLError("wrong host"), Outcome(Drop.TLS, "wrong host")),
        (FileNotFoundError("no file"), Outcome(Drop.TLS, "no file")),
        (requests.ReadTimeout("late"), Outcome(Drop.TIMEOUT, "late")),
        (requests.ConnectTimeout("late"), Outcome(Drop.TIMEOUT, "late")),
        (requests.exceptions.InvalidURL("no host"), Outcome(Drop.OTHER, "no host")),
        (requests.ConnectionError("refused"), Outcome(Drop.UNREACHABLE, "refused")),
        (requests.ConnectionError(), Outcome(Drop.UNREACHABLE, "")),
        (
            requests.ConnectionError(urllib3.exceptions.ProtocolError("aborted", RemoteDisconnected("gone"))),
            Outcome(Drop.UNREACHABLE, "('aborted', RemoteDisconnected('gone'))"),
        ),
        (
            requests.ConnectionError(urllib3.exceptions.ProtocolError("aborted", BadStatusLine("220 ready"))),
            Outcome(Drop.PROTOCOL, "the response is not HTTP; port 4317 is usually gRPC (protocol: grpc)"),
        ),
        (
            requests.ConnectionError(urllib3.exceptions.ProtocolError("aborted", OSError("reset"))),
            Outcome(Drop.UNREACHABLE, "('aborted', OSError('reset'))"),
        ),
        (
            requests.ConnectionError(
                urllib3.exceptions.MaxRetryError(
                    urllib3.HTTPConnectionPool("a"), "/", OSError("<A object at 0x7f01>: Connection refused")
                )
            ),
            Outcome(Drop.UNREACHABLE, "Connection refused"),
        ),
    ],
)
def test_why_there_was_no_response(error: OSError, outcome: Outcome) -> None:
    assert failed(error) == outcome


def line(*arguments: object, text: str = "%s") -> logging.LogRecord:
    """A line of the exporter's log."""
    return logging.LogRecord("sdk", logging.ERROR, "", 0, text, arguments, None)


Code = grpc.StatusCode


@pytest.mark.parametrize(
    ("record", "outcome"),
    [
        (line(text="it failed"), Outcome(Drop.OTHER, "it failed")),
        (line("metrics", "no such\n host"), Outcome(Drop.OTHER, "no such host")),
        (line("metrics", Code.INTERNAL, "broken"), Outcome(Drop.REFUSED, "INTERNAL broken")),
        (line("metrics", Code.DEADLINE_EXCEEDED, "late"), Outcome(Drop.TIMEOUT, "DEADLINE_EXCEEDED late")),
        (line("metrics", Code.CANCELLED, "c"), Outcome(Drop.UNAVAILABLE, "CANCELLED c")),
        (line("metrics", Code.ABORTED, "c"), Outcome(Drop.UNAVAILABLE, "ABORTED c")),
        (line("metrics", Code.DATA_LOSS, "c"), Outcome(Drop.UNAVAILABLE, "DATA_LOSS c")),
        (line("metrics", Code.OUT_OF_RANGE, "c"), Outcome(Drop.UNAVAILABLE, "OUT_OF_RANGE c")),
        (line("metrics", Code.RESOURCE_EXHAUSTED, "c"), Outcome(Drop.UNAVAILABLE, "RESOURCE_EXHAUSTED c")),
        (line("metrics", Code.UNAUTHENTICATED, "c"), Outcome(Drop.AUTH, "UNAUTHENTICATED c")),
        (line("metrics", Code.PERMISSION_DENIED, "c"), Outcome(Drop.AUTH, "PERMISSION_DENIED c")),
        (line("metrics", Code.UNIMPLEMENTED, "c"), Outcome(Drop.PROTOCOL, "UNIMPLEMENTED c")),
        (line("metrics", Code.UNAVAILABLE, "busy"), Outcome(Drop.UNAVAILABLE, "UNAVAILABLE busy")),
        (line("metrics", Code.UNAVAILABLE, "a" * 400), Outcome(Drop.UNAVAILABLE, f"UNAVAILABLE {'a' * 300}")),
        (
            line("metrics", Code.UNAVAILABLE, "http://me:secret@host is busy"),
            Outcome(Drop.UNAVAILABLE, "UNAVAILABLE host is busy"),
        ),
        (
            line("metrics", Code.INTERNAL, "connection refused, no certificate"),
            Outcome(Drop.REFUSED, "INTERNAL connection refused, no certificate"),
        ),
        *(
            (line("metrics", Code.UNAVAILABLE, words), Outcome(Drop.TLS, f"UNAVAILABLE {words}"))
            for words in ("Handshake failed", "verification", "no certificate", "SSL", "TLS, connection refused")
        ),
        *(
            (line("metrics", Code.UNAVAILABLE, words), Outcome(Drop.UNREACHABLE, f"UNAVAILABLE {words}"))
            for words in ("Failed to connect", "Connection refused", "DNS resolution failed", "errors resolving a")
        ),
    ],
)
def test_what_the_exporter_over_grpc_has_logged(record: logging.LogRecord, outcome: Outcome) -> None:
    assert outcome_of([record]) == outcome


LATE = line("metrics", Code.DEADLINE_EXCEEDED, "late")
BUSY, DENIED = line("metrics", Code.UNAVAILABLE, "busy"), line("metrics", Code.PERMISSION_DENIED, "no")


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        ([], None),
        ([BUSY, DENIED], Drop.AUTH),
        ([DENIED, BUSY], Drop.UNAVAILABLE),
        ([DENIED, BUSY, LATE], Drop.UNAVAILABLE),
        ([LATE, LATE], Drop.TIMEOUT),
        ([line("odd"), LATE], Drop.TIMEOUT),
        ([BUSY, line("odd")], Drop.OTHER),
    ],
)
def test_of_several_attempts_the_last_that_had_time_says_why(
    lines: list[logging.LogRecord], cause: Drop | None
) -> None:
    assert outcome_of(lines).cause is cause


def test_how_the_push_went_in_numbers() -> None:
    tally = Tally()
    assert list(tally.points()) == []
    assert tuple(Outcome()) == (None, "", 0.0, 0)
    tally.problems = (Problem("sdk", "off", "no"),)
    for outcome, points, at in (
        (Outcome(Drop.TLS, "late"), 7, 1.0),
        (Outcome(), 100, 2.0),
        (Outcome(Drop.TLS), 5, 3.0),
        (Outcome(rejected=3), 100, 4.0),
        (Outcome(Drop.AUTH), 1, 5.0),
        (Outcome(rejected=2), 100, 6.0),
    ):
        tally.count(outcome, points, at)
    found = {(each.series.metric.name, *dict(each.series.labels).values()): each.value for each in tally.points()}
    assert found == {
        ("llm_otlp_exports_total", "dropped"): 3.0,
        ("llm_otlp_exports_total", "accepted"): 1.0,
        ("llm_otlp_exports_total", "partial"): 2.0,
        ("llm_otlp_dropped_points_total", "tls"): 12.0,
        ("llm_otlp_dropped_points_total", "auth"): 1.0,
        ("llm_otlp_dropped_points_total", "rejected"): 5.0,
        ("llm_otlp_last_success_timestamp_seconds",): 6.0,
        ("llm_otlp_setting_problem", "off", "sdk"): 1.0,
    }
