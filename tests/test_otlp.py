"""The push over OTLP against a real receiver: what arrives, and what becomes of a collector that does not take it."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import trustme
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

from captures import Capture
from engine_server import EngineServer, replayed
from exporter_process import COMMAND, DEADLINE, Exporter, environment
from llm_headroom import schema
from llm_headroom.config.endpoint import Secret, Tls
from llm_headroom.config.settings import OtlpSettings
from llm_headroom.model import Point, Series
from llm_headroom.otlp.over_grpc import GrpcTransport
from llm_headroom.otlp.over_http import HttpTransport
from llm_headroom.otlp.push import Push
from llm_headroom.otlp.tally import Tally
from otlp_receiver import GrpcReceiver, HttpReceiver, Reply
from otlp_translation import samples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

VLLM = Capture("vllm", "0.32.0", "saturated")
RUNNING = Series(schema.REQUESTS_RUNNING, {"engine": "vllm", "target": "a"})
TOKENS = Series(schema.PROMPT_TOKENS, {"engine": "vllm", "target": "a"})
NOW = Reply(503, b"busy", {"Retry-After": "0"}, "text/plain")


class Pushing:
    """A push in this process of what `points` holds; `until` runs it until something holds, then closes it."""

    def __init__(self, url: str, **settings: Any) -> None:  # noqa: ANN401 - fields of the settings
        self.settings = OtlpSettings(url=url, **{"interval": 3600.0, **settings})
        self.points = [Point(RUNNING, 3.0, "")]
        self.tally = Tally()

    def told(self) -> dict[str, float]:
        """How the push went: the label's value → count."""
        return {
            dict(series.labels)["result" if series.metric is schema.OTLP_EXPORTS else "cause"]: float(value)  # type: ignore[arg-type]
            for series, value, _ in self.tally.points()
            if series.labels
        }

    def until(self, holds: Callable[[], bool], *, flush: bool = False) -> dict[str, float]:
        """Push until something holds; how it went."""

        async def main() -> None:
            transport = (
                GrpcTransport(self.settings) if self.settings.protocol == "grpc" else HttpTransport(self.settings)
            )
            push = Push(
                self.settings,
                sources=lambda: [(time.time(), list(self.points))],
                settled=lambda: None,
                transport=transport,
                tally=self.tally,
                resource={"service.name": "test"},
                began=1.0,
            )
            push.start(lambda: asyncio.sleep(0))
            async with asyncio.timeout(DEADLINE):
                while not holds():  # noqa: ASYNC110 - what holds is seen by threads of receivers
                    await asyncio.sleep(0.01)
            await push.close(flush=flush)

        asyncio.run(main())
        return self.told()


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
    moving = ("llm_exporter_", "llm_otlp_", "llm_host_")
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
            secrets={"Authorization": Secret(file=tmp_path / "token")},
            gzip=False,
        )
        push.until(lambda: bool(collector.received))
    headers = collector.received[0].headers
    assert (headers["x-tenant"], headers["authorization"]) == ("7", "Bearer hunter2")
    assert "content-encoding" not in headers
    assert collector.paths == ["/prefix/v1/metrics"]


def test_headers_are_metadata_in_grpc() -> None:
    with GrpcReceiver() as collector:
        Pushing(collector.url, protocol="grpc", headers={"X-Tenant": "7"}).until(lambda: bool(collector.received))
    assert collector.received[0].headers["x-tenant"] == "7"


def test_a_header_that_cannot_be_read_is_told_and_sends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with HttpReceiver() as collector:
        push = Pushing(collector.url, secrets={"Authorization": Secret(file=tmp_path / "gone")})
        assert push.until(lambda: bool(push.told())) == {"dropped": 1.0, "credentials": 1.0}
    assert not collector.attempts
    assert f"{tmp_path / 'gone'}" in caplog.text or "gone" in str([record.__dict__ for record in caplog.records])


def test_names_of_the_conventions_are_sent_on_request_beside_ours() -> None:
    for asked, names in ((False, {"llm_gpu_power_watts"}), (True, {"llm_gpu_power_watts", "hw.power"})):
        with HttpReceiver() as collector:
            push = Pushing(collector.url, semantic_conventions=asked)
            push.points = [Point(Series(schema.GPU_POWER, {"gpu": "0", "uuid": "GPU-1"}), 70.0, "")]
            push.until(lambda collector=collector: bool(collector.received))  # type: ignore[misc]
        assert collector.received[0].metrics().keys() == names


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
    push = Pushing(collector.url, protocol=protocol, tls=Tls(ca_file=tmp_path / "other.crt"), interval=0.1, timeout=5.0)
    told = push.until(lambda: bool(push.told()))
    assert told.keys() == {"dropped", "tls"}
    assert not collector.received


# Collectors that do not take it --------------------------------------------------------------------------------------
def test_a_busy_collector_is_asked_again_and_gets_the_same_interval_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with HttpReceiver(NOW, Reply(429, b"", {"Retry-After": "0"}), Reply(502, b"", {"Retry-After": "0"})) as collector:
        push = Pushing(collector.url)
        assert push.until(lambda: bool(push.told())) == {"accepted": 1.0}
    assert (collector.attempts, len(collector.received)) == (4, 1)
    assert [record.getMessage() for record in caplog.records if "otlp" in record.getMessage()] == ["otlp export works"]


def test_a_collector_that_refuses_is_not_asked_again_with_the_same(caplog: pytest.LogCaptureFixture) -> None:
    refusal = Reply(400, b"\x12\x0abad metric")
    with HttpReceiver(refusal) as collector:
        push = Pushing(collector.url)
        assert push.until(lambda: bool(push.told())) == {"dropped": 1.0, "refused": 1.0}
    assert collector.attempts == 1
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
def test_why_points_were_dropped_is_counted(reply: Reply, cause: str) -> None:
    with HttpReceiver(reply) as collector:
        push = Pushing(collector.url)
        assert push.until(lambda: bool(push.told())) == {"dropped": 1.0, cause: 1.0}


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


def test_a_dead_collector_costs_its_intervals_and_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    push = Pushing(f"http://127.0.0.1:{port}", interval=0.1)
    receiver: list[HttpReceiver] = []

    def returns() -> bool:
        if push.told().get("dropped", 0) >= 3 and not receiver:
            receiver.append(HttpReceiver(port=port).__enter__())
        return bool(receiver and receiver[0].received)

    try:
        told = push.until(returns)
    finally:
        for each in receiver:
            each.__exit__()
    assert told["unreachable"] == told["dropped"] >= 3
    messages = [record.getMessage() for record in caplog.records if "otlp" in record.getMessage()]
    assert messages in (["otlp export failed", "otlp export works"], ["otlp export failed"])  # the end may come first
    # Nothing was queued: what came is one interval.
    assert all(len(each.points("llm_requests_running")) == 1 for each in receiver[0].received)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_collector_that_never_answers_times_out_and_does_not_hold_up_the_end(protocol: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts by its backlog, and says nothing
        push = Pushing(f"http://127.0.0.1:{silent.getsockname()[1]}", protocol=protocol, timeout=0.3, interval=0.2)
        told = push.until(lambda: push.told().get("dropped", 0) >= 2)
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
        assert push.until(lambda: bool(push.told())) == {"accepted": 1.0}
    assert collector.attempts == 2


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "refused"),
        (grpc.StatusCode.UNAUTHENTICATED, "auth"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "unavailable"),
        (grpc.StatusCode.UNIMPLEMENTED, "protocol"),
    ],
)
def test_grpc_errors_that_trying_again_does_not_mend(code: grpc.StatusCode, cause: str) -> None:
    with GrpcReceiver(code) as collector:
        push = Pushing(collector.url, protocol="grpc")
        assert push.until(lambda: bool(push.told())) == {"dropped": 1.0, cause: 1.0}
    assert collector.attempts == 1


# What changes --------------------------------------------------------------------------------------------------------
def test_a_series_that_is_gone_is_told_of_once_even_if_the_first_telling_is_lost() -> None:
    with HttpReceiver(Reply(), Reply(400)) as collector:
        push = Pushing(collector.url, interval=0.1)
        push.points = [Point(RUNNING, 3.0, ""), Point(TOKENS, 5.0, "")]

        def holds() -> bool:
            if collector.attempts:
                push.points = [Point(RUNNING, 3.0, "")]
            return len(collector.received) >= 3

        push.until(holds)
    gone = [each.points("llm_prompt_tokens_total") for each in collector.received]
    told = [[point.flags for point in points.values()] for points in gone]
    first = told.index([1])
    assert told[0] == [0]
    assert told[first + 1 :] == [[]] * (len(told) - first - 1)


def test_the_last_interval_is_flushed() -> None:
    with HttpReceiver() as collector:
        push = Pushing(collector.url)

        def holds() -> bool:
            if collector.received:
                push.points = [Point(RUNNING, 9.0, "")]
                return True
            return False

        push.until(holds, flush=True)
    assert [
        [point.as_double for point in each.points("llm_requests_running").values()] for each in collector.received
    ] == [[3.0], [9.0]]


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
        assert told == ended
        exporter.process.send_signal(signal.SIGTERM)
        exporter.process.wait(DEADLINE)
        assert len(collector.received) == ended


def test_without_the_extra_grpc_names_it(tmp_path: Path) -> None:
    (tmp_path / "grpc.py").write_text("raise ImportError('not installed')\n")
    ran = subprocess.run(
        [*COMMAND, "run", "--listen", "127.0.0.1:0", "--no-gpu", "--no-discover", "--otlp-endpoint", "localhost:4317"],
        env=environment({"PYTHONPATH": str(tmp_path), "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}),
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
    )
    assert ran.returncode == 2
    assert "pip install 'llm-headroom[otlp-grpc]'" in ran.stderr


def test_what_pushes_is_not_imported_where_nobody_asks() -> None:
    code = "import sys, llm_headroom.commands.run; print(sorted(m for m in sys.modules if 'otlp' in m or 'grpc' in m))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=DEADLINE)
    assert ran.stdout.strip() == "['llm_headroom.config.otlp', 'llm_headroom.otlp', 'llm_headroom.otlp.pusher']"
