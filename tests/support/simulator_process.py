"""`llm-headroom simulate` and `llm-headroom demo` as their users run them: processes, spoken to over HTTP."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import threading
from typing import TYPE_CHECKING, Any, Self

from exporter_process import DEADLINE, started

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Simulator:
    """A command that says where it listens, each line `NAME http://HOST:PORT/ …`; ends with the block."""

    def __init__(self, *arguments: str, extra: Mapping[str, str] | None = None) -> None:
        self.arguments = arguments
        self.lines: list[str] = []
        self._extra = extra
        self._ended = False
        self._news = threading.Condition()

    def __enter__(self) -> Self:
        output, write = os.pipe()
        try:
            self.process = started(self.arguments, self._extra, {1: write})
        finally:
            os.close(write)
        self._reader = threading.Thread(target=self._read, args=(output,), daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _read(self, output: int) -> None:
        with open(output, encoding="utf-8") as lines:
            for line in lines:
                with self._news:
                    self.lines.append(line.strip())
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Have it end; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(DEADLINE)
        self._reader.join()
        return status

    def said(self, pattern: str) -> re.Match[str]:
        """The first line in which a pattern is found; waits for it, unless the command has ended."""

        def found() -> re.Match[str] | None:
            return next((match for line in self.lines if (match := re.search(pattern, line))), None)

        with self._news:
            self._news.wait_for(lambda: found() is not None or self._ended, DEADLINE)
            match = found()
            assert match is not None, (pattern, self.lines)
            return match

    def address(self, name: str) -> str:
        """`host:port` at which something listens."""
        return self.said(rf"^{re.escape(name)} +http://([^/]+)/")[1]


def ask(address: str, method: str, path: str, document: object = None) -> tuple[int, bytes]:
    """Status and body of an answer."""
    connection = http.client.HTTPConnection(address, timeout=DEADLINE)
    try:
        connection.request(method, path, None if document is None else json.dumps(document))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def post(address: str, path: str, document: object) -> Any:  # noqa: ANN401 - JSON
    """The JSON of an answer that is fine."""
    status, body = ask(address, "POST", path, document)
    assert status == 200, body
    return json.loads(body)


def events(body: bytes) -> Sequence[Any]:
    """The JSON documents of a stream of server-sent events, which must end as it should."""
    *parts, last, rest = body.decode().split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    return [json.loads(part.removeprefix("data: ")) for part in parts]
