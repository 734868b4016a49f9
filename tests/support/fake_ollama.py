"""A small `ollama`: `serve` and `create`, with the answers that were captured of 0.33, for tests of `make live`.

Run as `python fake_ollama.py serve`, it obeys OLLAMA_HOST, OLLAMA_MODELS and OLLAMA_NUM_PARALLEL. A token takes three
milliseconds, or FAKE_SECONDS; prompts have as many tokens as characters. Requests that find no place wait.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

CAPTURES: Final = Path(__file__).parents[1] / "fixtures" / "captures" / "ollama" / "0.33.0-rc2"
SECONDS: Final = float(os.environ.get("FAKE_SECONDS", "0.003"))


def captured(name: str) -> Any:  # noqa: ANN401 - JSON
    """An answer as it was captured."""
    return json.loads((CAPTURES / f"{name}.json").read_text())


def listed(name: str, models: set[str]) -> dict[str, Any]:
    """A captured list of models with other names."""
    (entry, *_) = captured(name)["models"]
    return {"models": [{**entry, "name": f"{model}:latest", "model": f"{model}:latest"} for model in sorted(models)]}


class Server(ThreadingHTTPServer):
    """Installed models are files in the folder of models; loaded ones are forgotten with the process."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], models: Path, places: int) -> None:
        super().__init__(address, Handler)
        self.models = models
        self.loaded: set[str] = set()
        self.places = threading.Semaphore(places)
        models.mkdir(parents=True, exist_ok=True)

    def installed(self) -> set[str]:
        """The names of the models that were created."""
        return {file.name for file in self.models.iterdir()}


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        """The documents."""
        answers = {
            "/api/version": captured("version"),
            "/api/ps": listed("ps_loaded", self.server.loaded),
            "/api/tags": listed("tags", self.server.installed()),
        }
        found = answers.get(self.path)
        self._answer(200 if found else 404, found or {"error": "not found"})

    def do_POST(self) -> None:
        """What is asked of a model, or done to one."""
        try:
            document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        except ValueError:
            message = "invalid character '\n' looking for beginning of object key string"
            self._answer(400, {"error": {"message": message, "type": "invalid_request_error"}})
            return
        if self.path == "/api/create":
            (self.server.models / document["model"]).touch()
            self._answer(200, {"status": "success"})
        elif self.path == "/api/show":
            self._answer(200, captured("show"))
        elif document.get("model") not in self.server.installed():
            self._answer(404, {"error": {"message": "model not found", "type": "not_found_error"}})
        else:
            with self.server.places:
                self.server.loaded.add(document["model"])
                self._complete(document)

    def _complete(self, document: dict[str, Any]) -> None:
        tokens, asked = document["max_tokens"], len(document["prompt"])
        usage = {"prompt_tokens": asked, "completion_tokens": tokens, "total_tokens": asked + tokens}
        if not document.get("stream"):
            time.sleep(tokens * SECONDS)
            self._answer(200, self._part(document, "x" * tokens, "length", usage))
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        none = dict.fromkeys(usage, 0)
        for _ in range(tokens):
            time.sleep(SECONDS)
            self._event(self._part(document, "x", None, none))
        self._event(self._part(document, "", "length", none))
        self._event({**self._part(document, "", None, usage), "choices": []})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    @staticmethod
    def _part(document: dict[str, Any], text: str, reason: str | None, usage: dict[str, int]) -> dict[str, Any]:
        return {
            "id": "cmpl-201",
            "object": "text_completion",
            "created": int(time.time()),
            "choices": [{"text": text, "index": 0, "finish_reason": reason}],
            "model": document["model"],
            "system_fingerprint": "fp_ollama",
            "usage": usage,
        }

    def _event(self, part: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(part).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _answer(self, status: int, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle(self) -> None:
        """Clients may leave."""
        try:
            super().handle()
        except ConnectionError:
            return

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


def main() -> None:
    """What the command line says."""
    host, _, port = os.environ["OLLAMA_HOST"].removeprefix("http://").rpartition(":")
    if sys.argv[1] == "serve":
        models = Path(os.environ["OLLAMA_MODELS"])
        Server((host, int(port)), models, int(os.environ["OLLAMA_NUM_PARALLEL"])).serve_forever()
    elif sys.argv[1] == "create" and Path(sys.argv[4]).read_text().startswith("FROM "):
        body = json.dumps({"model": sys.argv[2]}).encode()
        urllib.request.urlopen(f"http://{host}:{port}/api/create", data=body).read()
    else:
        sys.exit(f"unknown: {sys.argv[1:]}")


if __name__ == "__main__":
    main()
