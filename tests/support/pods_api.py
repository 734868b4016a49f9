"""As much of Kubernetes' API as Prometheus' service discovery reads: the list of pods, and a watch without news.

Newer clients ask for the list as the first events of a watch (kubernetes/enhancements, sig-api-machinery 3157).
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Sequence


def pod(name: str, labels: dict[str, str], port_name: str, port: int) -> dict[str, Any]:
    """A running pod at this host's loopback with one port."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "llm", "labels": labels, "uid": name, "resourceVersion": "1"},
        "spec": {
            "nodeName": "gpu-7",
            "containers": [
                {"name": "main", "image": "x", "ports": [{"name": port_name, "containerPort": port, "protocol": "TCP"}]}
            ],
        },
        "status": {"phase": "Running", "podIP": "127.0.0.1", "hostIP": "127.0.0.1"},
    }


class PodsApi:
    """Serves some pods until the block ends."""

    def __init__(self, pods: Sequence[dict[str, Any]]) -> None:
        ended = self._ended = threading.Event()
        listed = json.dumps(
            {"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "1"}, "items": list(pods)}
        ).encode()
        begun = {"resourceVersion": "1", "annotations": {"k8s.io/initial-events-end": "true"}}
        bookmark = {"type": "BOOKMARK", "object": {"apiVersion": "v1", "kind": "Pod", "metadata": begun}}
        events = [*({"type": "ADDED", "object": each} for each in pods), bookmark]
        streamed = "".join(json.dumps(event) + "\n" for event in events).encode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                query = parse_qs(url.query)
                watching = "watch" in query
                self.send_response(200 if url.path == "/api/v1/pods" else 404)
                self.send_header("Content-Type", "application/json")
                if not watching:
                    self.send_header("Content-Length", str(len(listed)))
                self.end_headers()
                if watching:
                    self.wfile.write(streamed if "sendInitialEvents" in query else b"")
                    self.wfile.flush()
                    ended.wait()
                elif url.path == "/api/v1/pods":
                    self.wfile.write(listed)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
