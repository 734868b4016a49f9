"""A real OTLP receiver for metrics, gRPC and HTTP, decoded by OpenTelemetry's own messages."""

from __future__ import annotations

import gzip
import threading
from concurrent import futures
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

import grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest as Request,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceResponse as Response,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import (
    MetricsServiceServicer,
    add_MetricsServiceServicer_to_server,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Mapping
    from pathlib import Path

DEADLINE = 90.0
Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Received:
    """An export as it came: its headers (lower case), its message, and the bytes on the wire before decompression."""

    headers: Mapping[str, str]
    request: Any
    size: int

    def resource(self) -> dict[str, str]:
        """The attributes of the only resource."""
        (only,) = self.request.resource_metrics
        return {pair.key: pair.value.string_value for pair in only.resource.attributes}

    def metrics(self) -> dict[str, Any]:
        """The metrics by name; each must be there once."""
        found = {}
        for metric in self.request.resource_metrics[0].scope_metrics[0].metrics:
            assert metric.name not in found
            found[metric.name] = metric
        return found

    def points(self, name: str) -> dict[Labels, Any]:
        """A metric's data points by attributes."""
        metric = self.metrics().get(name)
        return {} if metric is None else dict(points_of(metric))


def points_of(metric: Any) -> Iterator[tuple[Labels, Any]]:  # noqa: ANN401 - a generated message
    """The data points of a metric and their attributes."""
    for point in getattr(metric, metric.WhichOneof("data")).data_points:
        yield tuple(sorted((pair.key, pair.value.string_value) for pair in point.attributes)), point


@dataclass(frozen=True, slots=True)
class Reply:
    """What an HTTP receiver answers."""

    status: int = 200
    body: bytes = Response().SerializeToString()
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/x-protobuf"


class _Receiver:
    """What both protocols share: what has come, and waiting for it."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.attempts = 0
        self.closing = threading.Event()
        self._news = threading.Condition()

    def add(self, received: Received) -> None:
        """Keep an export."""
        with self._news:
            self.received.append(received)
            self._news.notify_all()

    def attempted(self) -> int:
        """Count an attempt, whatever becomes of it."""
        with self._news:
            self.attempts += 1
            self._news.notify_all()
            return self.attempts

    def wait(self, count: int = 1) -> Received:
        """The newest export as soon as there are so many."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.received) >= count, DEADLINE), len(self.received)
            return self.received[-1]

    def wait_attempts(self, count: int) -> None:
        """Wait for so many attempts."""
        with self._news:
            assert self._news.wait_for(lambda: self.attempts >= count, DEADLINE), self.attempts


class HttpReceiver(_Receiver):
    """Answers each POST with the next of `replies`, and with success after the last one. None: never answer."""

    def __init__(self, *replies: Reply | None, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        super().__init__()
        self.replies = list(replies)
        self.paths: list[str] = []
        self._tls = tls
        self._port = port

    def __enter__(self) -> Self:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.paths.append(self.path)
                number = outer.attempted()
                reply = outer.replies[number - 1] if number <= len(outer.replies) else Reply()
                if reply is None:
                    outer.closing.wait()
                    self.close_connection = True
                    return
                headers = {name.lower(): value for name, value in self.headers.items()}
                plain = gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body
                if reply.status == 200:
                    outer.add(Received(headers, Request.FromString(plain), len(body)))
                self.send_response(reply.status)
                for name, value in {"Content-Type": reply.content_type, **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """A client that goes away is nothing to report."""

        self._server = Server(("127.0.0.1", self._port), Handler)
        if self._tls is not None:
            self._server.socket = self._tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{'https' if self._tls else 'http'}://localhost:{self.port}"


class GrpcReceiver(_Receiver):
    """Answers each call with the next of `replies`, an error's code or None for success, then with success."""

    def __init__(self, *replies: grpc.StatusCode | None, certificates: tuple[Path, Path, Path] | None = None) -> None:
        super().__init__()
        self._replies = list(replies)
        self._certificates = certificates

    def __enter__(self) -> Self:
        outer = self

        class Servicer(MetricsServiceServicer):
            def Export(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802 - the service's own
                number = outer.attempted()
                code = outer._replies[number - 1] if number <= len(outer._replies) else None
                if code is not None:
                    context.abort(code, "told to")
                size = request.ByteSize()
                outer.add(Received(dict(context.invocation_metadata()), request, size))
                return Response()

        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        add_MetricsServiceServicer_to_server(Servicer(), self._server)
        if self._certificates is None:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            key, chain, authority = (path.read_bytes() for path in self._certificates)
            credentials = grpc.ssl_server_credentials([(key, chain)], authority, require_client_auth=True)
            self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.stop(None).wait()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{'https' if self._certificates else 'http'}://localhost:{self.port}"
