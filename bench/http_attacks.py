"""What hostile clients can do to the HTTP server, over loopback: slow heads, idle and rapid connections, smuggling.

    .venv/bin/python bench/http_attacks.py

The server is a process of its own with the limits of the exporter's pages and a page of 64 KiB. While each attack
lasts, an honest client in a process of its own asks for that page; its answers and its slowest one are printed, and
the server's memory and CPU. Exits 1 where the server lets an attack through or no longer answers the honest client.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import multiprocessing
import os
import re
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llm_headroom.net.http_messages import Request, Response
from llm_headroom.web.server import serve

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

SLOW, IDLE, RAPID = 400, 1000, 10_000
TRICKLE: Final = 12.0
"""Seconds for which slow heads trickle; the server allows 10 for a head."""
PAGE: Final = bytes(64 * 1024)
GET: Final = b"GET / HTTP/1.1\r\nHost: h\r\n"
SMUGGLED: Final = {
    "Content-Length and Transfer-Encoding": (
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        # RFC 9112, section 6.3: Transfer-Encoding overrides, and what follows is the next request
        [405],
    ),
    "two Content-Lengths": (GET + b"Content-Length: 0\r\nContent-Length: 44\r\n\r\n", [400]),
    "a Content-Length with a sign": (GET + b"Content-Length: +4\r\n\r\n", [400]),
    "a Content-Length in hexadecimal": (GET + b"Content-Length: 0x4\r\n\r\n", [400]),
    "an unknown Transfer-Encoding": (GET + b"Transfer-Encoding: xchunked\r\n\r\n", [501]),
    "Transfer-Encoding twice": (GET + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n", [501]),
    "a space before the colon": (GET + b"Content-Length : 44\r\n\r\n", [400]),
    "a folded header with a length": (GET + b"A: b\r\n\tContent-Length: 44\r\n\r\n", [200]),
    "a bare carriage return": (GET + b"A: b\rContent-Length: 44\r\n\r\n", [400]),
    "a zero byte": (GET + b"A: b\0c\r\n\r\n", [400]),
    "a chunk without a size": (GET + b"Transfer-Encoding: chunked\r\n\r\nx\r\n", [400]),
    "a chunk longer than its size": (GET + b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n", [400]),
    "an empty header name": (GET + b": b\r\n\r\n", [400]),
    "two hosts": (GET + b"Host: g\r\n\r\n", [400]),
}
"""What a proxy and a server might read differently: bytes, and the statuses of all answers."""


def server(ready: Connection) -> None:
    """Serve a page until the process is ended."""

    async def page(_: Request) -> Response:
        return Response(PAGE)

    async def run() -> None:
        started = await serve(page, ["127.0.0.1:0"])
        ready.send(started.addresses[0])
        await asyncio.Event().wait()

    asyncio.run(run())


def used(process: int) -> tuple[float, float]:
    """Resident megabytes and CPU seconds of a process (proc(5))."""
    stat = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    ticks = int(stat[11]) + int(stat[12])
    return int(stat[21]) * resource.getpagesize() / 1e6, ticks / os.sysconf("SC_CLK_TCK")


def honest(port: int, orders: Connection) -> None:
    """Ask for the page until an order comes, once at least; send answers, refusals and the slowest answer's seconds."""
    answers, refused, slowest = 0, 0, 0.0
    while not answers + refused or not orders.poll(0.02):
        begun = time.monotonic()
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            client.request("GET", "/")
            answers += client.getresponse().read() == PAGE
        except (OSError, http.client.HTTPException):
            refused += 1
        finally:
            client.close()
        slowest = max(slowest, time.monotonic() - begun)
    orders.send((answers, refused, slowest))


async def slow_heads(port: int) -> str:
    """Trickle heads over many connections; return how many of them the server has ended."""

    async def one() -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        end = time.monotonic() + TRICKLE
        try:
            writer.write(GET)
            while time.monotonic() < end and not reader.at_eof():
                writer.write(b"A: b\r\n")
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(1), 0.5)
        except OSError:
            return True
        finally:
            writer.close()
        return reader.at_eof()

    ended = sum(await asyncio.gather(*(one() for _ in range(SLOW))))
    return f"{ended} of {SLOW} ended by the server"


async def idle(port: int) -> str:
    """Open many connections and say nothing; return how many of them the server has ended for others."""
    clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(IDLE)]
    await asyncio.sleep(1)
    ended = 0
    for reader, writer in clients:
        with contextlib.suppress(OSError):  # TimeoutError is one
            await asyncio.wait_for(reader.read(1), 0.001)
        ended += reader.at_eof()
        writer.close()
    return f"{ended} of {IDLE} ended by the server"


async def rapid(port: int) -> str:
    """Open and leave connections as fast as one process can; return the rate."""
    begun = time.monotonic()
    for _ in range(RAPID // 100):
        opened = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(100)))
        for _, writer in opened:
            writer.close()
    return f"{RAPID / (time.monotonic() - begun):.0f} connections a second"


async def smuggling(port: int) -> str:
    """Send what two parsers might read as one request or two; return how many were read as they must be."""
    for name, (payload, expected) in SMUGGLED.items():
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(payload)
            writer.write_eof()
            answer = await reader.read()
            writer.close()
        statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]
        if statuses != expected:
            raise SystemExit(f"{name}: answered {statuses}, not {expected}")
    return f"{len(SMUGGLED)} of {len(SMUGGLED)} read as one request or refused"


def attacked(process: int, port: int) -> None:
    """Attack, and print how the server stood it."""
    context = multiprocessing.get_context("spawn")
    before, _ = used(process)
    print(f"{'':12}{'honest: answers':>16}{'refused':>9}{'slowest':>10}{'CPU':>8}{'resident':>10}")
    print(f"{'before':12}{'':43}{before:>7.0f} MB")
    attacks = {"slow heads": slow_heads, "idle": idle, "rapid": rapid, "smuggling": smuggling}
    for name, attack in attacks.items():
        orders, others = context.Pipe()
        client = context.Process(target=honest, args=(port, others), daemon=True)
        client.start()
        _, cpu = used(process)
        outcome = asyncio.run(attack(port))
        orders.send("enough")
        answers, refused, slowest = orders.recv()
        client.join()
        resident, now = used(process)
        cost = f"{slowest * 1e3:>7.0f} ms{now - cpu:>6.1f} s{resident:>7.0f} MB"
        print(f"{name:12}{answers:>16}{refused:>9}{cost}   {outcome}")
        if not answers:
            raise SystemExit("the honest client got no answer")


def main() -> None:
    """Start the server, and attack it."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=server, args=(there,), daemon=True)
    process.start()
    port = int(here.recv().rpartition(":")[2])
    try:
        attacked(process.pid or 0, port)
        if not process.is_alive():
            sys.exit("the server has ended")
    finally:
        process.terminate()
        process.join()


if __name__ == "__main__":
    main()
