r"""A scriptable HTTP/1.1 server for tests: it replays bodies path by path, counts what it is asked, and misbehaves.

    async with EngineServer({"/metrics": reply(b"up 1\n"), "/slow": hang()}) as server:
        ...  # server.url, server.requests, server.connections

`running` does the same in a thread of its own, for tests that have no event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeAlias

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked; `connection` is the ordinal of the connection that it came on, from 1."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    connection: int


Answer: TypeAlias = Callable[[Request, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Answers one request. The connection stays open unless the answer closes the writer."""


class EngineServer:
    """Listens on a free port of 127.0.0.1; a path (without its query) that has no answer gets status 404."""

    def __init__(self, answers: Mapping[str, Answer], *, tls: ssl.SSLContext | None = None) -> None:
        self.answers = dict(answers)
        self.requests: list[Request] = []
        self.connections = 0
        self.port = 0
        self._tls = tls
        self._writers: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}
        self._all_left = asyncio.Event()

    @property
    def url(self) -> str:
        """The URL without a path."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    async def all_left(self) -> None:
        """Waits until no client is connected."""
        await self._all_left.wait()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        tasks = list(self._writers.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.connections += 1
        self._writers[writer] = task
        self._all_left.clear()
        try:
            await self._converse(reader, writer, self.connections)
        except (asyncio.CancelledError, asyncio.IncompleteReadError, OSError):
            pass  # the client left, or the test is over
        finally:
            if not writer.is_closing():
                writer.transport.abort()
            del self._writers[writer]
            if not self._writers:
                self._all_left.set()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int) -> None:
        while not writer.is_closing():
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
            method, target, _ = first.split(" ")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            request = Request(method, target, headers, body, connection)
            self.requests.append(request)
            answer = self.answers.get(target.partition("?")[0], reply(status=404))
            await answer(request, reader, writer)
            await writer.drain()


@contextmanager
def running(server: EngineServer) -> Iterator[EngineServer]:
    """Runs a server in a thread until the block ends."""
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def main() -> None:
        async with server:
            ready.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    ready.wait()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


def head(status: int = 200, headers: Mapping[str, str] | None = None) -> bytes:
    """A status line and headers, with the empty line that ends them."""
    lines = [f"HTTP/1.1 {status} Status", *(f"{name}: {value}" for name, value in (headers or {}).items())]
    return "\r\n".join([*lines, "", ""]).encode()


def reply(
    body: bytes = b"", *, status: int = 200, headers: Mapping[str, str] | None = None, chunk: int | None = None
) -> Answer:
    """A proper answer; with `chunk` in chunks of so many bytes, else with a Content-Length."""
    fields = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8", **(headers or {})}
    if chunk is None:
        message = head(status, fields | {"Content-Length": str(len(body))}) + body
    else:
        pieces = [body[start : start + chunk] for start in range(0, len(body), chunk)]
        message = head(status, fields | {"Transfer-Encoding": "chunked"})
        message += b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])
    return raw(message, close=False)


def raw(message: bytes, *, close: bool = True) -> Answer:
    """Any bytes at all, then the end of the connection."""

    async def answer(_: Request, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(message)
        if close:
            writer.close()

    return answer


def hang(beginning: bytes = b"") -> Answer:
    """Some bytes, then silence until the client leaves."""

    async def answer(_: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(beginning)
        await reader.read()

    return answer


def trickle(beginning: bytes = b"", *, pace: float = 0.01) -> Answer:
    """Some bytes, then one more every `pace` seconds until the client leaves."""

    async def answer(_: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(beginning)
        while not reader.at_eof():
            writer.write(b"x")
            with suppress(TimeoutError):
                await asyncio.wait_for(reader.read(), pace)

    return answer


def pour(beginning: bytes, piece: bytes, times: int, poured: list[int]) -> Answer:
    """Some bytes, then a piece many times as fast as the client takes it; notes the size of each one it took."""

    async def answer(_: Request, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(beginning)
        for ___ in range(times):
            writer.write(piece)
            await writer.drain()
            poured.append(len(piece))

    return answer


def in_turn(*answers: Answer) -> Answer:
    """The first answer to the first request and so on; the last one to all that follow."""
    left = list(answers)

    async def answer(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(request, reader, writer)

    return answer
