"""Engines that cost nothing: serves captures of real ones, their numbers moving from scrape to scrape.

    python bench/capture_server.py vllm/0.32.0=25 sglang/0.5.23=25

Prints one line of JSON with the ports, then serves until it is ended. Each target has a port of its own. Whoever
scrapes a target over one connection gets the same bodies in the same order. Bodies are never compressed, whatever a
client asks for. A POST to any port is taken and thrown away: the other end of a remote write. `/-/counts` tells how
many scrapes and POSTs came, by User-Agent; who asks below `/as/NAME/` is counted by that name instead.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CAPTURES: Final = Path(__file__).parents[1] / "tests" / "fixtures" / "captures"
SCRAPE: Final = "saturated.prom"
BODIES: Final = 100
"""Scrapes until the numbers start again, which looks like a restart of the engine: more than a window has."""
DOCUMENTS: Final = {"/version": "version.json", "/v1/models": "models.json", "/server_info": "server_info.json"}
ALIAS: Final = "/as/"
_SAMPLE: Final = re.compile(r"^([^#\s{][^{\s]*)(\{.*\})? (\S+)$")
_BOUND: Final = re.compile(r'le="[^"]*",?')
_NOT_FOUND: Final = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
_TAKEN: Final = b"HTTP/1.1 204 No Content\r\n\r\n"


def moving(text: str, count: int) -> Iterator[str]:
    """Successive scrapes of one busy engine.

    Counters and histograms grow, buckets stay cumulative, gauges go up and down. What was 0 in the capture stays 0,
    and so do gauges that are 1 (infos, states) and times of creation.
    """
    draw = random.Random(7)  # noqa: S311 - a reproducible input, no secret
    for _ in range(count):
        text = _moved(text, draw)
        yield text


def _moved(text: str, draw: random.Random) -> str:
    kind = ""
    grown: dict[str, int] = {}
    lines = text.split("\n")
    for index, line in enumerate(lines):
        if line.startswith("# TYPE "):
            kind = line.rsplit(" ", 1)[1]
        found = _SAMPLE.match(line)
        if found is None:
            continue
        name, labels, value = found[1], found[2] or "", float(found[3])
        if value == 0.0 or name.endswith(("_created", "_start_time_seconds")):
            continue
        if kind == "histogram" and not name.endswith("_sum"):
            others = _BOUND.sub("", labels).strip("{},")
            series = name.removesuffix("_bucket").removesuffix("_count") + others
            if name.endswith("_bucket"):
                grown[series] = grown.get(series, 0) + draw.randrange(4)
            value += grown[series]
        elif kind in ("counter", "histogram"):
            value += draw.randrange(1, 100) if value.is_integer() else draw.random()
        elif value == 1.0:
            continue
        elif value.is_integer():
            value = max(1.0, value + draw.randrange(-3, 4))
        else:
            value = draw.random() if value < 1.0 else value * draw.uniform(0.9, 1.1)
        lines[index] = f"{name}{labels} {floatToGoString(value)}"
    return "\n".join(lines)


def _response(body: bytes, content_type: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class Engine:
    """A capture's responses."""

    def __init__(self, capture: str) -> None:
        folder = CAPTURES / capture
        text = (folder / SCRAPE).read_text(encoding="utf-8")
        self.scrapes = [
            _response(body.encode(), "text/plain; version=0.0.4; charset=utf-8") for body in moving(text, BODIES)
        ]
        self.documents = {
            path: _response((folder / name).read_bytes(), "application/json")
            for path, name in DOCUMENTS.items()
            if (folder / name).exists()
        }


class _Connection(asyncio.Protocol):
    def __init__(self, engine: Engine, counts: Counter[str]) -> None:
        self._engine = engine
        self._counts = counts
        self._received = b""
        self._skip = 0
        self._scrapes = 0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise TypeError(f"{transport!r} is no stream")
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while True:
            if self._skip:
                taken = min(self._skip, len(self._received))
                self._received, self._skip = self._received[taken:], self._skip - taken
                if self._skip:
                    return
                self._transport.write(_TAKEN)
            head, end, rest = self._received.partition(b"\r\n\r\n")
            if not end:
                return
            self._received = rest
            line, *fields = head.decode("latin-1").split("\r\n")
            pairs = (field.partition(":") for field in fields)
            self._answer(line, {name.lower(): value.strip() for name, _, value in pairs})

    def _answer(self, line: str, headers: Mapping[str, str]) -> None:
        method, target, _ = line.split(" ")
        path = target.partition("?")[0]
        agent = headers.get("user-agent", "")
        if path.startswith(ALIAS):
            agent, _, rest = path.removeprefix(ALIAS).partition("/")
            path = f"/{rest}"
        if method == "POST":
            self._counts[f"POST {agent}"] += 1
            self._skip = int(headers.get("content-length", "0"))
            if not self._skip:
                self._transport.write(_TAKEN)
        elif path == "/metrics":
            self._counts[agent] += 1
            self._transport.write(self._engine.scrapes[self._scrapes % BODIES])
            self._scrapes += 1
        elif path == "/-/counts":
            self._transport.write(_response(json.dumps(self._counts).encode(), "application/json"))
        else:
            self._transport.write(self._engine.documents.get(path, _NOT_FOUND))


async def serve(wanted: Mapping[str, int]) -> None:
    """Serves so many targets of each capture."""
    loop = asyncio.get_running_loop()
    counts: Counter[str] = Counter()
    targets = []
    for capture, number in wanted.items():
        engine = Engine(capture)
        for _ in range(number):
            server = await loop.create_server(lambda engine=engine: _Connection(engine, counts), "127.0.0.1", 0)  # type: ignore[misc]
            targets.append((capture.partition("/")[0], server.sockets[0].getsockname()[1]))
    print(json.dumps(targets), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    pairs = (argument.partition("=") for argument in sys.argv[1:])
    asyncio.run(serve({capture: int(number or 1) for capture, _, number in pairs}))
