"""What the measuring proxy costs a stream, beside nginx as a plain reverse proxy without buffering, in the same run.

A small engine sends each stream a chunk every 100 ms, with the time at which it was sent; clients read through each
route by turns and note when it came. Clocks are one: CLOCK_MONOTONIC of this host.

    python bench/proxy.py [--chunks 60] [--streams 1,50,500]

What a stream costs once weighs more in short ones: answers in traces of chats have 200 to 350 tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from live.server import free_port

PACE: Final = 0.1
ROUNDS: Final = 2
BODY: Final = b'{"model":"bench","messages":[{"role":"user","content":"hello"}]}'
HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
NGINX: Final = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://127.0.0.1:{engine}; proxy_http_version 1.1; proxy_buffering off; }}
  }}
}}
"""


def line(*, last_of: int = 0) -> bytes:
    """A line as Ollama's, with the time at which it is sent; the last one says of how many."""
    end = b'true,"done_reason":"stop","prompt_eval_count":9,"eval_count":%d' % last_of if last_of else b"false"
    text = b'{"model":"bench","created_at":"%020d","message":{"role":"assistant","content":" word"},"done":%b}\n'
    whole = text % (time.monotonic_ns(), end)
    return b"%x\r\n%b\r\n" % (len(whole), whole)


async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chunks: int) -> None:
    """One connection of the engine."""
    loop = asyncio.get_running_loop()
    try:
        while True:
            request = await reader.readuntil(b"\r\n\r\n")
            if not request.startswith(b"POST /api/chat"):
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                continue
            await reader.readexactly(len(BODY))
            begun = loop.time()
            writer.write(HEAD + line())
            for number in range(1, chunks):
                await asyncio.sleep(begun + number * PACE - loop.time())
                writer.write(line(last_of=chunks if number == chunks - 1 else 0))
            writer.write(b"0\r\n\r\n")
    except (OSError, asyncio.IncompleteReadError):
        writer.close()


async def engine(port: int, chunks: int) -> None:
    """Serve until killed."""
    server = await asyncio.start_server(partial(stream, chunks=chunks), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


@dataclass
class Seen:
    """What clients of one route saw: seconds from request to first chunk, and from each chunk's sending to its end."""

    first: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    cpu: float = 0.0
    rss: int = 0

    def row(self, name: str, streams: int, base: Seen) -> str:
        """A row of the table; times in microseconds above those of the direct route."""
        cells = [
            f"{(quantile(mine, share) - quantile(theirs, share)) * 1e6:.0f}"
            for mine, theirs in ((self.first, base.first), (self.late, base.late))
            for share in (0.5, 0.99)
        ]
        cpu = self.cpu / len(self.late) * 1000 * 1000
        return f"| {streams} | {name} | {' | '.join(cells)} | {cpu:.1f} | {self.rss / 1024:.1f} |"


def quantile(values: list[float], share: float) -> float:
    """The value below which a share of the values lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def client(port: int, seen: Seen, chunks: int) -> None:
    """One stream."""
    await asyncio.sleep(random.uniform(0.0, 10 * PACE))  # noqa: S311 - no secret
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    asked = time.monotonic_ns()
    writer.write(b"POST /api/chat HTTP/1.1\r\nHost: bench\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY))
    await reader.readuntil(b"\r\n\r\n")
    for number in range(chunks):
        text = await reader.readuntil(b"}\n")
        now = time.monotonic_ns()
        if number == 0:
            seen.first.append((now - asked) / 1e9)
        at = text.index(b'"created_at":"') + 14
        seen.late.append((now - int(text[at : at + 20])) / 1e9)
    writer.close()


def usage(processes: list[int]) -> tuple[float, int]:
    """CPU seconds so far and resident KiB of some processes together."""
    cpu, rss = 0.0, 0
    for pid in processes:
        cpu += time.clock_gettime((~pid << 3) | 2)  # the CPU clock of another process (clock_getcpuclockid(3))
        status = Path(f"/proc/{pid}/status").read_text()
        rss += int(next(each for each in status.splitlines() if each.startswith("VmRSS")).split()[1])
    return cpu, rss


async def measure(port: int, processes: list[int], streams: int, seen: Seen, chunks: int) -> None:
    """Add one round of so many streams to what was seen."""
    before, _ = usage(processes)
    await asyncio.gather(*(client(port, seen, chunks) for _ in range(streams)))
    after, rss = usage(processes)
    seen.cpu += after - before
    seen.rss = max(seen.rss, rss)


async def listening(port: int) -> None:
    """Wait for a server."""
    for _ in range(200):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.1)
        else:
            writer.close()
            return
    raise SystemExit(f"nothing listens on {port}")


def children(pid: int) -> list[int]:
    """A process and its children."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [pid, *map(int, text.split())]


async def main(levels: list[int], chunks: int) -> None:
    """Print the table."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())

        def start(*command: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process

        behind, front, door = free_port(), free_port(), free_port()
        start(sys.executable, __file__, "--serve", str(behind), "--chunks", str(chunks))
        await listening(behind)
        listen, upstream = f"127.0.0.1:{door}", f"ollama=http://127.0.0.1:{behind}"
        ours = start(
            *(sys.executable, "-m", "llm_headroom", "proxy", "--listen", listen, "--upstream", upstream),
            *("--metrics-listen", "127.0.0.1:0"),
        )
        routes: dict[str, tuple[int, list[int]]] = {"direct": (behind, [])}
        if nginx := shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin"):
            config = Path(folder, "nginx.conf")
            config.write_text(NGINX.format(folder=folder, port=front, engine=behind))  # noqa: ASYNC240 - before it begins
            peer = start(nginx, "-c", str(config))
            await listening(front)
            routes["nginx"] = (front, children(peer.pid))
        await listening(door)
        routes["llm-headroom"] = (door, [ours.pid])
        print("| streams | through | TTFT p50 | p99 | chunk p50 | p99 | CPU ms per 1000 chunks | RSS MiB |")
        print("|---|---|---|---|---|---|---|---|")
        for streams in levels:
            seen = {name: Seen() for name in routes}
            for _ in range(ROUNDS):
                for name, (port, processes) in routes.items():
                    await measure(port, processes, streams, seen[name], chunks)
            for name, found in seen.items():
                if name != "direct":
                    print(found.row(name, streams, seen["direct"]))
            base = seen["direct"]
            firsts, lates = (
                json.dumps([round(quantile(v, q) * 1e6) for q in (0.5, 0.99)]) for v in (base.first, base.late)
            )
            print(f"<!-- {streams} streams, direct: TTFT {firsts} us, chunk {lates} us -->")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=60, help="chunks of a stream, one every 100 ms")
    parser.add_argument("--streams", default="1,50,500", help="numbers of streams at a time")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(engine(options.serve, options.chunks))
    else:
        asyncio.run(main([int(each) for each in options.streams.split(",")], options.chunks))
