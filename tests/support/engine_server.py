"""A server that answers as it is told: what an engine would, or what a broken one would."""

from __future__ import annotations

import json
import socketserver
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from captures import Capture

    Behaviour = Callable[["EngineServer", socket.socket], None]

TEXT = "text/plain; version=0.0.4; charset=utf-8"
NOT_FOUND = b'{"detail":"Not Found"}'


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    body: bytes
    status: int = 200
    content_type: str = TEXT


def as_json(value: Any, status: int = 200) -> Reply:  # noqa: ANN401 - JSON
    """A JSON answer."""
    return Reply(json.dumps(value).encode(), status, "application/json")


# Behaviours of broken servers ----------------------------------------------------------------------------------------
def hang(server: EngineServer, _connection: socket.socket) -> None:
    """Say nothing for as long as the server lives."""
    server.closing.wait()


def garbage(_server: EngineServer, connection: socket.socket) -> None:
    """Answer with bytes that are no HTTP."""
    connection.sendall(b"\x16\x03\x01\x00\xff" * 100)


def half(body: bytes) -> Behaviour:
    """Announce a body, send half of it, and close."""

    def answer(_server: EngineServer, connection: socket.socket) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {TEXT}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body[: len(body) // 2])

    return answer


def huge(megabytes: int) -> Behaviour:
    """Send a body without end, or rather of so many megabytes, as one line after the other."""

    def answer(_server: EngineServer, connection: socket.socket) -> None:
        connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Type: {TEXT}\r\nConnection: close\r\n\r\n".encode())
        block = b"x 1\n" * (1 << 18)
        for _ in range(megabytes):
            connection.sendall(block)

    return answer


class EngineServer:
    """Serves `routes`: path, with or without its query, or `*` → a reply or a behaviour. They may change."""

    def __init__(self, routes: Mapping[str, Reply | Behaviour] | None = None) -> None:
        self.routes: dict[str, Reply | Behaviour] = dict(routes or {})
        self.requests: list[tuple[str, str]] = []
        self.closing = threading.Event()
        self.port = 0

    def __enter__(self) -> Self:
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            disable_nagle_algorithm = True

            def handle(self) -> None:
                while outer._answer(self):
                    pass

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                """A client that goes away in the middle is nothing to report."""

        self._server = Server(("127.0.0.1", self.port), Handler)
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
        return f"http://127.0.0.1:{self.port}"

    @property
    def name(self) -> str:
        """What the exporter calls it."""
        return f"127.0.0.1:{self.port}"

    def _answer(self, handler: socketserver.StreamRequestHandler) -> bool:
        line = handler.rfile.readline().decode("latin-1")
        if not line.strip():
            return False
        method, path, _ = line.split(" ", 2)
        length = 0
        while (header := handler.rfile.readline()).strip():
            name, _, value = header.partition(b":")
            length = int(value) if name.strip().lower() == b"content-length" else length
        handler.rfile.read(length)
        self.requests.append((method, path))
        if self.closing.is_set():
            return False
        found = next(
            (self.routes[key] for key in (path, path.partition("?")[0], "*") if key in self.routes),
            Reply(NOT_FOUND, 404),
        )
        if not isinstance(found, Reply):
            found(self, handler.connection)
            return False
        handler.wfile.write(
            f"HTTP/1.1 {found.status} X\r\nContent-Type: {found.content_type}\r\n"
            f"Content-Length: {len(found.body)}\r\n\r\n".encode()
            + found.body
        )
        return True


PATHS = {
    "vllm": {"/version": "version", "/v1/models": "models", "/server_info": "server_info"},
    "sglang": {"/v1/models": "models", "/server_info": "server_info", "/get_server_info": "get_server_info"},
    "sglang_router": {},
    "llamacpp": {"/slots": "slots_{state}", "/props": "properties", "/v1/models": "models"},
    "ollama": {"/api/ps": "{state}", "/api/tags": "tags", "/api/show": "show", "/api/version": "version"},
}
"""Where each engine serves the documents that lie in a capture's directory."""


def replayed(capture: Capture) -> dict[str, Reply | Behaviour]:
    """The routes of the server that a capture was taken of."""
    routes: dict[str, Reply | Behaviour] = {}
    if capture.exposition.exists():
        routes["/metrics"] = Reply(capture.exposition.read_bytes())
    for path, name in PATHS[capture.engine].items():
        file = capture.directory / f"{name.format(state=capture.state)}.json"
        if file.exists():
            routes[path] = Reply(file.read_bytes(), content_type="application/json")
    if capture.engine == "ollama":
        routes["/"] = Reply((capture.directory / "root.txt").read_bytes())
        routes["/metrics"] = Reply((capture.directory / "metrics_404.txt").read_bytes(), 404)
    return routes
