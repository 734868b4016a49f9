"""A server that answers as it is told: what an engine would, or what a broken one would."""

from __future__ import annotations

import itertools
import json
import re
import socketserver
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from captures import parsed
from llm_headroom.engines.answers import decode
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.engines.rules import Absent

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


def _head(size: int) -> bytes:
    """The head of an exposition of so many bytes."""
    return f"HTTP/1.1 200 OK\r\nContent-Type: {TEXT}\r\nContent-Length: {size}\r\n\r\n".encode()


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
        connection.sendall(_head(len(body)) + body[: len(body) // 2])

    return answer


def huge(megabytes: int) -> Behaviour:
    """Send a body without end, or rather of so many megabytes, as one line after the other."""

    def answer(_server: EngineServer, connection: socket.socket) -> None:
        connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Type: {TEXT}\r\nConnection: close\r\n\r\n".encode())
        block = b"x 1\n" * (1 << 18)
        for _ in range(megabytes):
            connection.sendall(block)

    return answer


_VLLM_AT_WORK = r"vllm:(?:time_to_first_token_seconds|iteration_tokens_total)_(?:bucket|count)"


def going_on(metrics: bytes, counters: str, by: int = 1) -> Behaviour:
    """The metrics of an engine that goes on: each answer has `by` more of these counters (a pattern) than the last.

    A capture that is served as it is stands still: with requests in it the engine is `slow` after seconds and `stalled`
    after a minute, and without any it is left alone.
    """
    answers = itertools.count()
    sample = re.compile(rb"^(%s\S* )(\S+)$" % counters.encode(), re.MULTILINE)

    def answer(_server: EngineServer, connection: socket.socket) -> None:
        number = next(answers)
        body = sample.sub(lambda line: b"%s%f" % (line[1], float(line[2]) + number * by), metrics)
        connection.sendall(_head(len(body)) + body)

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


def at_work(capture: Capture) -> dict[str, Reply | Behaviour]:
    """The routes of a vLLM that goes on, as it was when the capture was taken.

    So many more steps and quick first tokens at each poll that nobody has waited for long, however seldom it is polled.
    """
    return {**replayed(capture), "/metrics": going_on(capture.exposition.read_bytes(), _VLLM_AT_WORK, by=100)}


def replayed(capture: Capture) -> dict[str, Reply | Behaviour]:
    """The routes of the server that a capture was taken of: every document that its engine's description asks for.

    A document lies in the capture's directory under its key: `models.json`, or `slots_STATE.json` if it was taken in
    each state.
    """
    engine = BUILT_IN[capture.engine]
    routes: dict[str, Reply | Behaviour] = {}
    known: dict[str, Any] = {}
    while new := [document for document in engine.documents(known) if document.key not in known]:
        for document in new:
            found = _captured(capture, document.key.partition(" ")[0])
            known[document.key] = Absent(404)
            if document.text and capture.exposition.exists():
                routes[document.path] = Reply(capture.exposition.read_bytes())
                known[document.key] = parsed(capture.exposition)
            elif found is not None and not document.text:
                routes[document.path.partition("?")[0]] = Reply(found, content_type="application/json")
                known[document.key] = decode(document, found)
    for path, name, status in (("/", "root", 200), ("/metrics", "metrics_404", 404)):
        file = capture.directory / f"{name}.txt"
        if file.exists():
            routes[path] = Reply(file.read_bytes(), status)
    return routes


def _captured(capture: Capture, key: str) -> bytes | None:
    whole = [capture.state] if capture.state.startswith(f"{key}_") else []
    for name in (*whole, f"{key}_{capture.state}", key):
        file = capture.directory / f"{name}.json"
        if file.exists():
            return file.read_bytes()
    return None
