"""The push over OTLP against a real receiver: what arrives, and what becomes of a collector that does not take it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import grpc
import pytest
import trustme
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

from captures import Capture
from engine_server import EngineServer, replayed
from exporter_process import DEADLINE, Exporter
from free_port import free_port
from llm_headroom import schema
from llm_headroom.config.endpoint import Basic, Bearer, Secret, Tls
from llm_headroom.config.settings import OtlpSettings
from llm_headroom.model import Histogram, Point, Series
from llm_headroom.otlp.options import options
from llm_headroom.otlp.push import Push, next_beat
from llm_headroom.otlp.pusher import Pusher
from llm_headroom.otlp.tally import Tally
from otlp_receiver import GrpcReceiver, HttpReceiver, Reply
from otlp_translation import samples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

pytestmark = pytest.mark.waits(0.8)
VLLM = Capture("vllm", "0.32.0", "saturated")
RUNNING = Series(schema.REQUESTS_RUNNING, {"engine": "vllm", "target": "a"})
TOKENS = Series(schema.PROMPT_TOKENS, {"engine": "vllm", "target": "a"})
NOW = Reply(503, b"busy", {"Retry-After": "0"}, "text/plain")
ONCE: Final = 0.75
"""Seconds in which there is one attempt: the SDK's second one comes after 0.8 s at the soonest."""
TWICE: Final = 2.35
"""Seconds in which there are two: the second comes after 1.2 s at the latest, a third after 2.4 s at the soonest."""


class Pushing:
    """A push in this process of what `points` holds; `until` runs it until something holds, then closes it."""

    def __init__(self, endpoint: str, **settings: Any) -> None:  # noqa: ANN401 - fields of the settings
        self.settings = OtlpSettings(endpoint=endpoint, **{"interval": 3600.0, **settings})
        self.points = [Point(RUNNING, 3.0, "")]
        self.beside: list[Point] = []
        self.tally = Tally()
        self.changes = 0

    def _changed(self) -> None:
        self.changes += 1

    def told(self) -> dict[str, float]:
        """How the push went: the label's value → count."""
        return {
            dict(series.labels)["result" if series.metric is schema.OTLP_EXPORTS else "cause"]: float(value)  # type: ignore[arg-type]
            for series, value, _ in self.tally.points()
            if series.metric in {schema.OTLP_EXPORTS, schema.OTLP_DROPPED}
        }

    def until(self, holds: Callable[[], bool], collector: HttpReceiver | GrpcReceiver | None = None) -> Any:  # noqa: ANN401 - see below
        """Push until something holds; how it went before the last export at the end, and the attempts that it took."""

        async def main() -> Any:  # noqa: ANN401 - the same
            push = Push(
                options(self.settings, {}),
                self.tally,
                sources=lambda: [(time.time(), list(points)) for points in (self.beside, self.points)],
                changed=self._changed,
                port="9836",
            )
            push.start(lambda: asyncio.sleep(0))
            async with asyncio.timeout(DEADLINE):
                while not holds():  # noqa: ASYNC110 - what holds is seen by threads of receivers
                    await asyncio.sleep(0.01)
            told = self.told()
            attempts = collector.attempts if collector else 0
            await push.close()
            return (told, attempts) if collector else told

        return asyncio.run(main())


# What arrives --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("receiver", [HttpReceiver, GrpcReceiver])
def test_what_is_pushed_is_what_is_scraped(receiver: type[HttpReceiver | GrpcReceiver]) -> None:
    protocol = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"} if receiver is GrpcReceiver else {}
    with (
        EngineServer(replayed(VLLM)) as engine,
        receiver() as collector,
        Exporter(
            *("--target", f"vllm={engine.url}", "--no-gpu", "--interval", "1h", "--otlp-endpoint", collector.url),
            extra={"OTEL_SERVICE_NAME": "box", **protocol},
        ) as exporter,
    ):
        received = collector.wait()
        scraped = exporter.metrics()
    assert received.resource()["service.name"] == "box"
    pushed = samples(received.metrics().values())
    # These go on by themselves between two looks.
    moving = ("llm_exporter_", "llm_otlp_", "llm_host_", "process_", "python_gc_")
    still = {name: series for name, series in scraped.items() if not name.startswith(moving)}
    assert len(still) > 60
    assert {name: series for name, series in pushed.items() if not name.startswith(moving)} == still


def test_counters_start_with_their_engine_and_the_last_interval_is_flushed() -> None:
    with EngineServer(replayed(VLLM)) as engine, HttpReceiver() as collector:
        with Exporter(
            *("--target", f"vllm={engine.url}", "--no-gpu", "--interval", "1h", "--otlp-endpoint", collector.url)
        ) as exporter:
            first = collector.wait()
            exporter.until(lambda: exporter.value("llm_otlp_exports_total", result="accepted") == 1.0)
            exporter.process.send_signal(signal.SIGTERM)
            assert exporter.process.wait(DEADLINE) == 0
        last = collector.wait(2)
    assert len(collector.received) == 2
    ((_, started),) = first.points("llm_engine_start_time_seconds").items()
    for received in (first, last):
        for name in ("llm_prompt_tokens_total", "llm_time_to_first_token_seconds"):
            for point in received.points(name).values():
                assert point.start_time_unix_nano == pytest.approx(started.as_double * 1e9, abs=1000)
    assert last.points("llm_otlp_exports_total")[(("result", "accepted"),)].as_double == 1.0
    assert first.headers["content-encoding"] == "gzip"
    assert first.headers["content-type"] == "application/x-protobuf"
    assert collector.paths == ["/v1/metrics"] * 2


def test_headers_and_compression_are_as_configured(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("Bearer hunter2\n")
    with HttpReceiver() as collector:
        push = Pushing(
            f"{collector.url}/prefix",
            headers={"X-Tenant": "7"},
            headers_file={"Authorization": Secret(file=tmp_path / "token")},
            compression="none",
        )
        push.until(lambda: bool(collector.received))
    headers = collector.received[0].headers
    assert (headers["x-tenant"], headers["authorization"]) == ("7", "Bearer hunter2")
    assert "content-encoding" not in headers
    assert set(collector.paths) == {"/prefix/v1/metrics"}


@pytest.mark.parametrize(
    ("credentials", "header"),
    [
        (Bearer(Secret(env="TOKEN")), "Bearer hunter2"),
        (Basic("me", Secret(env="TOKEN")), "Basic bWU6aHVudGVyMg=="),
    ],
)
def test_credentials_become_the_header_authorization(
    monkeypatch: pytest.MonkeyPatch, credentials: Bearer | Basic, header: str
) -> None:
    monkeypatch.setenv("TOKEN", "hunter2")
    with HttpReceiver() as collector:
        Pushing(collector.url, credentials=credentials).until(lambda: bool(collector.received))
    assert collector.received[0].headers["authorization"] == header


def test_a_file_of_passwords_of_other_programs_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine localhost login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("TOKEN", "hunter2")
    with HttpReceiver() as collector:
        Pushing(collector.url, credentials=Bearer(Secret(env="TOKEN"))).until(lambda: bool(collector.received))
        assert {each.headers["authorization"] for each in collector.received} == {"Bearer hunter2"}
        before = len(collector.received)
        Pushing(collector.url).until(lambda: len(collector.received) > before)
    assert "authorization" not in collector.received[-1].headers


def test_a_collector_s_cookies_are_not_kept() -> None:
    with HttpReceiver(Reply(headers={"Set-Cookie": "a=b"})) as collector:
        Pushing(collector.url, interval=0.05).until(lambda: len(collector.received) > 1)
    assert "cookie" not in collector.received[-1].headers


def test_headers_are_metadata_in_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-words=two words,X-Tenant=1")
    with GrpcReceiver() as collector:
        Pushing(collector.url, protocol="grpc", headers={"X-Tenant": "7"}).until(lambda: bool(collector.received))
    headers = collector.received[0].headers
    assert (headers["x-tenant"], headers["x-words"]) == ("7", "two words")


def test_a_header_that_cannot_be_read_is_told_and_sends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with HttpReceiver() as collector:
        push = Pushing(collector.url, headers_file={"Authorization": Secret(file=tmp_path / "gone")})
        assert push.until(lambda: bool(push.told())) == {"dropped": 1.0, "credentials": 1.0}
    assert not collector.attempts
    assert any(str(tmp_path / "gone") in str(record.__dict__.get("error")) for record in caplog.records)


def test_what_a_collector_repeats_of_a_secret_is_not_shown(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("TOKEN", "hunter2"), ("KEY", "key-of-mine")):
        monkeypatch.setenv(name, value)
    words = b"no: authorization: Bearer hunter2, token hunter2, x-key: key-of-mine, x-tenant: shop, again: Bearer hun"
    with HttpReceiver(Reply(400, words, content_type="text/plain")) as collector:
        push = Pushing(
            collector.url,
            credentials=Bearer(Secret(env="TOKEN")),
            headers_env={"X-Key": Secret(env="KEY")},
            headers={"X-Tenant": "shop"},
        )
        push.until(lambda: bool(push.told()))
    (said,) = (record.__dict__["error"] for record in caplog.records if record.getMessage() == "otlp export failed")
    assert said == "HTTP status 400: no: authorization: …, token …, x-key: …, x-tenant: shop, again: …"


def test_a_header_may_come_from_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "Bearer hunter2")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", " ")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-all=1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "x-words=two words,authorization=other,x-tenant=1")
    with HttpReceiver() as collector:
        push = Pushing(collector.url, headers={"X-Tenant": "7"}, headers_env={"Authorization": Secret(env="TOKEN")})
        push.until(lambda: bool(collector.received))
    headers = collector.received[0].headers
    assert (headers["authorization"], headers["x-tenant"], headers["x-words"]) == ("Bearer hunter2", "7", "two words")
    assert "x-all" not in headers
    assert {"EMPTY", "OTEL_EXPORTER_OTLP_CERTIFICATE"} & os.environ.keys() == {"EMPTY"}, "its own are unset"


@pytest.mark.parametrize("content", [b"two\nlines\n", b"\xff", "é".encode()])
@pytest.mark.parametrize("key", ["headers_file", "credentials"])
def test_a_header_of_a_file_is_one_line_of_ascii(tmp_path: Path, content: bytes, key: str) -> None:
    (tmp_path / "token").write_bytes(content)
    secret = Secret(file=tmp_path / "token")
    given = {"headers_file": {"Authorization": secret}, "credentials": Bearer(secret)}
    with HttpReceiver() as collector:
        push = Pushing(collector.url, **{key: given[key]})
        assert push.until(lambda: bool(push.told())) == {"dropped": 1.0, "credentials": 1.0}
    assert not collector.attempts


def test_names_of_the_conventions_are_sent_on_request_beside_ours() -> None:
    for asked, names in ((False, {"llm_gpu_power_watts"}), (True, {"llm_gpu_power_watts", "hw.power"})):
        with HttpReceiver() as collector:
            push = Pushing(collector.url, semantic_conventions=asked)
            push.points = [Point(Series(schema.GPU_POWER, {"gpu": "0", "uuid": "GPU-1"}), 70.0, "")]
            push.until(lambda collector=collector: bool(collector.received))  # type: ignore[misc]
        assert collector.received[0].metrics().keys() == names


@pytest.mark.parametrize("receiver", [HttpReceiver, GrpcReceiver])
def test_a_source_that_cannot_be_encoded_costs_nobody_else_the_push(
    receiver: type[HttpReceiver | GrpcReceiver], caplog: pytest.LogCaptureFixture
) -> None:
    beyond = Histogram((1.0, math.inf), (1e300, 1e300), 1.0)  # more than 64 bits hold
    with receiver() as collector:
        push = Pushing(collector.url, **({"protocol": "grpc"} if receiver is GrpcReceiver else {}))
        push.beside = [Point(Series(schema.TIME_TO_FIRST_TOKEN, {"target": "b"}), beyond, "")]
        push.until(lambda: bool(collector.received))
    assert collector.received[0].metrics().keys() == {RUNNING.metric.name}
    assert {getattr(each, "target", "") for each in caplog.records if "rendering failed" in each.getMessage()} == {"b"}


# TLS -----------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def certificates(tmp_path: Path, authority: trustme.CA) -> Tls:
    """What a client needs; beside it the server's `server.key` and `server.crt`."""
    server, client = authority.issue_cert("localhost"), authority.issue_cert("exporter@example.org")
    server.private_key_pem.write_to_path(tmp_path / "server.key")
    server.cert_chain_pems[0].write_to_path(tmp_path / "server.crt")
    client.private_key_pem.write_to_path(tmp_path / "client.key")
    client.cert_chain_pems[0].write_to_path(tmp_path / "client.crt")
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    return Tls(ca_file=tmp_path / "ca.crt", cert_file=tmp_path / "client.crt", key_file=tmp_path / "client.key")


@pytest.fixture(params=["http/protobuf", "grpc"])
def tls_collector(
    request: pytest.FixtureRequest, tmp_path: Path, certificates: Tls
) -> Iterator[tuple[str, HttpReceiver | GrpcReceiver]]:
    """A receiver that wants a client's certificate, and its protocol."""
    assert certificates.ca_file
    if request.param == "grpc":
        files = (tmp_path / "server.key", tmp_path / "server.crt", tmp_path / "ca.crt")
        with GrpcReceiver(certificates=files) as collector:
            yield request.param, collector
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    context.load_verify_locations(tmp_path / "ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    with HttpReceiver(tls=context) as collector:
        yield request.param, collector


def test_both_sides_show_certificates(
    tls_collector: tuple[str, HttpReceiver | GrpcReceiver], certificates: Tls
) -> None:
    protocol, collector = tls_collector
    push = Pushing(collector.url, protocol=protocol, tls=certificates)
    assert push.until(lambda: bool(push.told())) == {"accepted": 1.0}
    assert collector.received[0].points("llm_requests_running")


def test_a_collector_of_an_unknown_authority_gets_nothing(
    tls_collector: tuple[str, HttpReceiver | GrpcReceiver], tmp_path: Path
) -> None:
    protocol, collector = tls_collector
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.crt")
    push = Pushing(collector.url, protocol=protocol, tls=Tls(ca_file=tmp_path / "other.crt"), interval=0.1, timeout=2.0)
    told = push.until(lambda: bool(push.told()))
    assert told.keys() == {"dropped", "tls"}
    assert not collector.received


@pytest.mark.parametrize("server_name", ["localhost", None])
def test_a_certificate_may_be_wanted_of_another_name_than_the_address_has(
    tls_collector: tuple[str, HttpReceiver | GrpcReceiver], certificates: Tls, server_name: str | None
) -> None:
    protocol, collector = tls_collector
    tls = replace(certificates, server_name=server_name)
    push = Pushing(f"https://127.0.0.1:{collector.port}", protocol=protocol, tls=tls, timeout=TWICE)
    told = push.until(lambda: bool(push.told()))
    assert told == ({"accepted": 1.0} if server_name else {"dropped": 1.0, "tls": 1.0})


def test_over_http_the_collector_s_certificate_may_go_unverified(tmp_path: Path, certificates: Tls) -> None:
    assert certificates.ca_file
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    with HttpReceiver(tls=context) as collector:
        push = Pushing(collector.url, tls=Tls(insecure_skip_verify=True))
        assert push.until(lambda: bool(push.told())) == {"accepted": 1.0}


# Collectors that do not take it --------------------------------------------------------------------------------------
def test_a_busy_collector_is_asked_again_and_gets_the_same_interval_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with HttpReceiver(Reply(503, b"busy")) as collector:
        push = Pushing(collector.url)
        assert push.until(lambda: bool(push.told()), collector) == ({"accepted": 1.0}, 2)
    assert [record.getMessage() for record in caplog.records if "otlp" in record.getMessage()] == ["otlp export works"]


@pytest.mark.parametrize("value", ["0", "Mon, 01 Jan 2024 00:00:00 GMT", "soon", "-1"])
def test_a_collector_cannot_make_us_ask_again_at_once(value: str) -> None:
    with HttpReceiver(*[Reply(503, b"", {"Retry-After": value})] * 9) as collector:
        push = Pushing(collector.url, timeout=TWICE)
        told, attempts = push.until(lambda: bool(push.told()), collector)
    assert (told, attempts) == ({"dropped": 1.0, "unavailable": 1.0}, 2)


def test_a_collector_that_asks_to_wait_is_left_alone() -> None:
    with HttpReceiver(Reply(429, b"", {"Retry-After": "120"})) as collector:
        push = Pushing(collector.url, interval=0.1)
        told, attempts = push.until(lambda: push.told().get("dropped", 0) >= 3, collector)
    assert told.keys() == {"dropped", "unavailable"}
    assert attempts == 1


def test_points_of_every_source_are_dropped_while_a_collector_wants_to_be_left_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    with HttpReceiver(Reply(429, b"", {"Retry-After": "1"})) as collector:
        push = Pushing(collector.url, interval=0.1, timeout=ONCE)
        push.beside = [Point(RUNNING, 1.0, ""), Point(TOKENS, 1.0, "")]
        told = push.until(lambda: bool(push.told().get("accepted")))
    (works,) = (each.__dict__ for each in caplog.records if each.getMessage() == "otlp export works")
    assert told["dropped"] >= 2
    assert (works["points"], works["dropped"]) == (3, 3 * told["dropped"])


def test_a_collector_that_refuses_is_not_asked_again_with_the_same(caplog: pytest.LogCaptureFixture) -> None:
    refusal = Reply(400, b"\x12\x0abad metric")
    with HttpReceiver(refusal) as collector:
        push = Pushing(collector.url)
        assert push.until(lambda: bool(push.told()), collector) == ({"dropped": 1.0, "refused": 1.0}, 1)
    assert collector.attempts == 1, "at the end it is left alone"
    (record,) = (record for record in caplog.records if record.getMessage() == "otlp export failed")
    assert record.__dict__["error"] == "HTTP status 400: bad metric"


@pytest.mark.parametrize(
    ("reply", "cause"),
    [
        (Reply(401), "auth"),
        (Reply(404, b"no such page", content_type="text/plain"), "refused"),
        (Reply(200, b"<html>", content_type="text/html; charset=utf-8"), "protocol"),
        (Reply(302, b"", {"Location": "https://login.example/"}), "protocol"),
    ],
    ids=["401", "404", "page", "login"],
)
def test_why_points_were_dropped_is_counted(reply: Reply, cause: str, caplog: pytest.LogCaptureFixture) -> None:
    with HttpReceiver(reply) as collector:
        push = Pushing(collector.url)
        assert push.until(lambda: bool(push.told())) == {"dropped": 1.0, cause: 1.0}
    (failed,) = (record.__dict__["error"] for record in caplog.records if record.getMessage() == "otlp export failed")
    assert ("credentials are missing or wrong (`otlp.auth`" in failed) is (cause == "auth")


def test_points_that_were_rejected_are_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    response = ExportMetricsServiceResponse()
    response.partial_success.rejected_data_points = 2
    response.partial_success.error_message = "too old"
    partial = Reply(body=response.SerializeToString())
    with HttpReceiver(partial, partial) as collector:
        push = Pushing(collector.url, interval=0.1)
        told = push.until(lambda: push.told().get("partial", 0) >= 2)
    assert told["rejected"] == 4.0
    warnings = [record.__dict__["reason"] for record in caplog.records if record.getMessage() == "otlp points rejected"]
    assert warnings == ["too old"]


def test_what_was_dropped_is_said_once_and_so_is_what_a_collector_says(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    note = ExportMetricsServiceResponse()
    note.partial_success.error_message = "slow down"
    refusal = Reply(400, b"no", content_type="text/plain")
    with HttpReceiver(refusal, refusal, Reply(body=note.SerializeToString()), refusal) as collector:
        push = Pushing(collector.url, interval=0.1)
        push.until(lambda: push.told().get("accepted", 0) >= 2)
    said = [record.__dict__ for record in caplog.records]
    assert [each["dropped"] for each in said if each["msg"] == "otlp export works"] == [2, 1]
    assert [each["detail"] for each in said if each["msg"] == "otlp collector message"] == ["slow down"]


def test_a_dead_collector_costs_its_intervals_and_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    receiver: list[HttpReceiver] = []
    with free_port() as port, ExitStack() as stack:
        push = Pushing(f"http://127.0.0.1:{port}", interval=0.1, timeout=ONCE)

        def returns() -> bool:
            if push.told().get("dropped", 0) >= 3 and not receiver:
                receiver.append(stack.enter_context(HttpReceiver(port=port)))
            return bool(push.told().get("accepted"))

        told = push.until(returns)
    assert told["unreachable"] == told["dropped"] >= 3
    failed, works = (record for record in caplog.records if "otlp" in record.getMessage())
    assert (failed.getMessage(), failed.__dict__["cause"]) == ("otlp export failed", "unreachable")
    assert (works.getMessage(), works.__dict__["points"]) == ("otlp export works", 1)
    assert works.__dict__["dropped"] == told["dropped"]  # there is one point in each interval
    # Nothing was queued: what came is one interval.
    assert all(len(each.points("llm_requests_running")) == 1 for each in receiver[0].received)


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00d", "protocol"),  # gRPC: HTTP/2's SETTINGS
        (b"220 ready\r\n", "protocol"),
        (b"", "unreachable"),
    ],
    ids=["grpc", "another protocol", "closed"],
)
def test_a_collector_that_speaks_no_http_is_told_apart_from_one_that_hangs_up(answer: bytes, cause: str) -> None:
    class Answering(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65_536)
            self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        push = Pushing(f"http://127.0.0.1:{server.server_address[1]}", timeout=3.0)
        told = push.until(lambda: bool(push.told()))
        server.shutdown()
        thread.join()
    assert told == {"dropped": 1.0, cause: 1.0}


@pytest.mark.parametrize(
    ("receiver", "replies", "protocol"),
    [
        (HttpReceiver, (NOW, None), "http/protobuf"),
        (GrpcReceiver, (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED), "grpc"),
    ],
    ids=["http", "grpc"],
)
def test_why_an_attempt_failed_is_not_hidden_by_the_next_one_that_the_deadline_cuts(
    receiver: type[HttpReceiver | GrpcReceiver], replies: Sequence[Any], protocol: str
) -> None:
    with receiver(*replies) as collector:
        push = Pushing(collector.url, protocol=protocol, timeout=TWICE)
        told, attempts = push.until(lambda: bool(push.told()), collector)
    assert (told, attempts) == ({"dropped": 1.0, "unavailable": 1.0}, 2)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_collector_that_never_answers_times_out_and_does_not_hold_up_the_end(protocol: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts by its backlog, and says nothing
        push = Pushing(f"http://127.0.0.1:{silent.getsockname()[1]}", protocol=protocol, timeout=0.3, interval=0.2)
        told = push.until(lambda: push.told().get("dropped", 0) >= 2)
    assert told.keys() == {"dropped", "timeout"}


def test_a_collector_that_drips_an_answer_counts_as_one_that_does_not_answer_in_time() -> None:
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\n")
                while not ended.wait(0.05):
                    connection.sendall(b"A: b\r\n")

        thread = threading.Thread(target=drip)
        thread.start()
        push = Pushing(f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=0.1, interval=0.1)
        told = push.until(lambda: push.told().get("dropped", 0) >= 3)
        ended.set()
        thread.join()
    assert told.keys() == {"dropped", "timeout"}


def test_a_collector_that_never_answers_delays_no_collection() -> None:
    with (
        EngineServer(replayed(VLLM)) as engine,
        HttpReceiver(None, None, None) as collector,
        Exporter(
            *("--target", f"vllm={engine.url}", "--no-gpu", "--interval", "100ms", "--otlp-endpoint", collector.url),
            extra={"OTEL_EXPORTER_OTLP_TIMEOUT": "60000", "OTEL_METRIC_EXPORT_INTERVAL": "100"},
        ) as exporter,
    ):
        collector.wait_attempts(1)
        polls = len(engine.requests)
        exporter.until(lambda: len(engine.requests) > polls + 10)
        assert collector.attempts == 1
        assert exporter.value("llm_up") == 1.0
        collector.closing.set()  # else the flush waits for as long as it may


def test_grpc_that_is_unavailable_is_tried_again() -> None:
    with GrpcReceiver(grpc.StatusCode.UNAVAILABLE) as collector:
        push = Pushing(collector.url, protocol="grpc")
        assert push.until(lambda: bool(push.told()), collector) == ({"accepted": 1.0}, 2)


@pytest.mark.parametrize(
    ("code", "cause", "attempts"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "refused", 1),
        (grpc.StatusCode.UNAUTHENTICATED, "auth", 1),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "unavailable", 2),
        (grpc.StatusCode.UNIMPLEMENTED, "protocol", 1),
    ],
)
def test_why_grpc_failed_is_counted(code: grpc.StatusCode, cause: str, attempts: int) -> None:
    with GrpcReceiver(*[code] * 9) as collector:
        push = Pushing(collector.url, protocol="grpc", timeout=TWICE)
        assert push.until(lambda: bool(push.told()), collector) == ({"dropped": 1.0, cause: 1.0}, attempts)


@pytest.mark.parametrize(
    ("now", "expected"),
    [(100.0, 115.0), (101.0, 115.0), (114.0, 115.0), (115.0, 115.0), (116.0, 130.0), (162.0, 175.0)],
)
def test_after_a_slow_export_the_next_one_is_at_the_next_beat(now: float, expected: float) -> None:
    assert next_beat(100.0, 15.0, now) == expected


def test_a_slow_export_is_not_followed_by_those_that_it_held_up() -> None:
    interval, pushed = 0.1, list[float]()

    class Slow(HttpReceiver):
        """Answers the first export after some intervals."""

        def attempted(self) -> int:
            count = super().attempted()
            if count == 1:
                threading.Event().wait(6 * interval)
                answered.append(time.monotonic())
            else:
                pushed.append(time.monotonic())
            return count

    answered = list[float]()
    with Slow() as collector:
        push = Pushing(collector.url, interval=interval)
        push.until(lambda: len(pushed) >= 5)
    assert pushed[4] - answered[0] >= 4 * interval


# What changes --------------------------------------------------------------------------------------------------------
def test_a_series_that_is_gone_is_not_sent_again() -> None:
    with HttpReceiver() as collector:
        push = Pushing(collector.url, interval=0.1)
        push.points = [Point(RUNNING, 3.0, ""), Point(TOKENS, 5.0, "")]

        def holds() -> bool:
            if collector.attempts:
                push.points = [Point(RUNNING, 3.0, "")]
            return len(collector.received) >= 3

        push.until(holds)
    sent = [len(each.points("llm_prompt_tokens_total")) for each in collector.received]
    assert sent == sorted(sent, reverse=True)
    assert (sent[0], sent[-1]) == (1, 0)


@pytest.mark.parametrize(("receiver", "protocol"), [(HttpReceiver, "http/protobuf"), (GrpcReceiver, "grpc")])
def test_a_secret_that_was_rotated_is_used_from_the_next_export_on(
    tmp_path: Path, receiver: type[HttpReceiver | GrpcReceiver], protocol: str
) -> None:
    (tmp_path / "token").write_text("Bearer one\n")
    with receiver() as collector:
        secrets = {"Authorization": Secret(file=tmp_path / "token")}
        push = Pushing(collector.url, headers_file=secrets, interval=0.1, protocol=protocol)

        def holds() -> bool:
            if collector.received:
                (tmp_path / "token").write_text("Bearer two\n")
                return collector.received[-1].headers["authorization"] == "Bearer two"
            return False

        push.until(holds)
    assert collector.received[0].headers["authorization"] == "Bearer one"


def test_the_last_interval_is_flushed() -> None:
    with HttpReceiver() as collector:
        push = Pushing(collector.url)

        def holds() -> bool:
            if collector.received:
                push.points = [Point(RUNNING, 9.0, "")]
                return True
            return False

        push.until(holds)
    assert [
        [point.as_double for point in each.points("llm_requests_running").values()] for each in collector.received
    ] == [[3.0], [9.0]]
    assert (push.changes, push.told()) == (2, {"accepted": 2.0})


def test_readings_that_cannot_be_had_are_a_defect_that_is_logged_and_ends_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    push = Pushing("http://127.0.0.1:9")
    push.points = None  # type: ignore[assignment]  # broken on purpose
    assert push.until(lambda: bool(caplog.records)) == push.told() == {}
    assert [each.getMessage() for each in caplog.records] == ["internal error (bug)"] * 2, "and the last one's"


def test_an_export_that_is_under_way_at_the_end_is_waited_for() -> None:
    class Slow(HttpReceiver):
        """Answers after a moment."""

        def attempted(self) -> int:
            count = super().attempted()
            threading.Event().wait(0.1)
            return count

    with Slow() as collector:
        push = Pushing(collector.url)
        assert push.until(lambda: bool(collector.attempts)) == {}
    assert push.told() == {"accepted": 2.0}, "and the last interval is flushed"


def test_an_export_that_waits_to_try_again_is_not_waited_for_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_headroom.otlp.push.PATIENCE", 0.0)
    with HttpReceiver(*[NOW] * 9) as collector:
        push = Pushing(collector.url, timeout=60.0)
        assert push.until(lambda: bool(collector.attempts)) == {}
    assert push.told() == {"dropped": 1.0, "unavailable": 1.0}, "and is counted"


def test_a_reload_begins_to_push_and_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "headroom.yml"
    path.write_text("gpu: false\ndiscover: false\n")
    with HttpReceiver() as collector, Exporter("--config", str(path)) as exporter:
        path.write_text(f"gpu: false\ndiscover: false\notlp: {{endpoint: '{collector.url}', interval: 100ms}}\n")
        exporter.process.send_signal(signal.SIGHUP)
        collector.wait(2)
        path.write_text("gpu: false\ndiscover: false\n")
        exporter.process.send_signal(signal.SIGHUP)
        exporter.until(lambda: sum(line["msg"] == "configuration reloaded" for line in exporter.log) >= 2)
        ended = len(collector.received)
        told = exporter.value("llm_otlp_exports_total", result="accepted")
        assert told is not None
        assert ended - 1 <= told <= ended, "one that was under way for too long at the end counts as none"
        exporter.process.send_signal(signal.SIGTERM)
        exporter.process.wait(DEADLINE)
        assert len(collector.received) <= ended + 1, "and may still arrive"


# Settings that cannot be used ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("variables", "settings", "effect"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, ("OTEL_EXPORTER_OTLP_PROTOCOL",), "off"),
        ({"OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "10s", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ("sdk",), "off"),
        (
            IGNORED := {
                "OTEL_EXPORTER_OTLP_TIMEOUT": "10s",
                "OTEL_METRIC_EXPORT_INTERVAL": "1",
                "OTEL_EXPORTER_OTLP_COMPRESSION": "zstd",
                "OTEL_EXPORTER_OTLP_HEADERS": "hunter2",
                "OTEL_RESOURCE_ATTRIBUTES": "hunter2",
                "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta",
            },
            tuple(IGNORED),
            "ignored",
        ),
    ],
    ids=["protocol", "sdk", "ignored"],
)
def test_variables_that_cannot_be_used_are_said_and_cost_no_scrape(
    variables: dict[str, str], settings: tuple[str, ...], effect: str
) -> None:
    with (
        HttpReceiver() as collector,
        Exporter("--no-gpu", "--no-discover", extra={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **variables}) as ran,
    ):
        for setting in settings:
            assert ran.logged("otlp setting cannot be used", setting=setting, effect=effect)["error"]
        ran.until(
            lambda: all(
                ran.value("llm_otlp_setting_problem", setting=setting, effect=effect) == 1.0 for setting in settings
            )
        )
        assert "hunter2" not in str(ran.log)
        if effect == "ignored":
            collector.wait()
        else:
            assert ran.value("llm_build_info") == 1.0
            assert not collector.attempts


def test_options_that_cannot_be_used_push_nothing_and_end() -> None:
    push = Pushing("https://localhost:1", protocol="grpc", tls=Tls(insecure_skip_verify=True))
    assert push.until(lambda: True) == push.told() == {}
    assert [problem.setting for problem in push.tally.problems] == ["tls.insecure_skip_verify"]


def test_what_the_sdk_refuses_is_a_problem_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "10s")
    push = Pushing("http://localhost:1", protocol="grpc")
    assert push.until(lambda: bool(push.changes)) == {}
    assert [(problem.setting, problem.effect) for problem in push.tally.problems] == [("sdk", "off")]


def test_settings_that_change_are_applied_and_those_that_stay_are_not() -> None:
    wrong = OtlpSettings(endpoint="https://localhost:1", protocol="grpc", tls=Tls(insecure_skip_verify=True))
    tally, changes = Tally(), list[int]()

    async def main() -> None:
        pusher = Pusher(
            tally,
            sources=list,
            changed=lambda: changes.append(len(tally.problems)),
            ready=lambda: asyncio.sleep(0),
            port="1",
        )
        for settings in (None, wrong, wrong, None, wrong, replace(wrong, interval=7.0)):
            await pusher.apply(settings)
        await pusher.close()

    asyncio.run(main())
    assert changes == [1, 0, 1, 1], "problems after each change"


def test_a_certificate_that_is_missing_is_said_and_costs_no_scrape(tmp_path: Path) -> None:
    for protocol in ("http/protobuf", "grpc"):
        push = Pushing("https://localhost:1", protocol=protocol, tls=Tls(ca_file=tmp_path / "gone"), timeout=ONCE)
        assert push.until(lambda push=push: bool(push.told())).keys() == {"dropped", "tls"}  # type: ignore[misc]


@pytest.mark.parametrize("insecure", ["true", "false"])
def test_over_grpc_an_endpoint_without_a_scheme_is_encrypted_unless_a_variable_says_otherwise(insecure: str) -> None:
    with (
        GrpcReceiver() as collector,
        Exporter(
            "--no-gpu",
            "--no-discover",
            extra={
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"localhost:{collector.port}",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_INSECURE": insecure,
                "OTEL_EXPORTER_OTLP_TIMEOUT": "1000",
                "OTEL_EXPORTER_OTLP_CERTIFICATE": "",
            },
        ) as exporter,
    ):
        if insecure == "true":
            collector.wait()
        else:
            exporter.logged("otlp export failed", cause="tls")
            # What the SDK logs at each failure is held back: one line of ours says it once.
            assert not [line for line in exporter.log if "Failed to export" in line["msg"]]
            assert not collector.received


def test_a_collector_that_never_answers_does_not_hold_up_sigterm() -> None:
    with (
        HttpReceiver(None, None) as collector,
        Exporter(
            *("--no-gpu", "--no-discover", "--otlp-endpoint", collector.url),
            extra={"OTEL_EXPORTER_OTLP_TIMEOUT": "600000"},
        ) as exporter,
    ):
        collector.wait_attempts(1)
        exporter.process.send_signal(signal.SIGTERM)
        assert exporter.process.wait(DEADLINE) == 0
        assert exporter.logged("last otlp export given up")["endpoint"] == collector.url


def test_what_pushes_is_not_imported_where_nobody_asks() -> None:
    code = "import sys, llm_headroom.commands.run; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=DEADLINE)
    assert "llm_headroom" in ran.stdout
    for library in ("opentelemetry", "grpc", "requests", "urllib3", "google"):
        assert f"'{library}'" not in ran.stdout
