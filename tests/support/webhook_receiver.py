"""A receiver of webhooks as its senders find it: an HTTP server that keeps what is posted to it."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    import ssl

DEADLINE = 90.0
"""Seconds after which what a test waits for is held not to come."""


class Post(NamedTuple):
    """One request: its path, its headers (lower case) and its JSON."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class Receiver:
    """Listens on a port of its own. `answers` are the next statuses, after which all is taken; others have `words`."""

    def __init__(self, *answers: int, words: str = "no such\x1b[31m hook", tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._refusal = words.encode()
        self.posts: list[Post] = []
        self._answers = [*answers]
        self._news = threading.Condition()

    def __enter__(self) -> Self:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                headers = {name.lower(): value for name, value in self.headers.items()}
                status = outer._take(Post(self.path, headers, body))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(b"ok" if status == 200 else outer._refusal)

            def log_message(self, *_: object) -> None:
                """The tests look at `posts`."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if self._tls is not None:
            self._server.socket = self._tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._server.server_address[1]}"

    def _take(self, post: Post) -> int:
        with self._news:
            self.posts.append(post)
            self._news.notify_all()
            return self._answers.pop(0) if self._answers else 200

    def post(self, number: int) -> Post:
        """The post of a number, from 0; waits for it."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.posts) > number, DEADLINE), self.posts
            return self.posts[number]
