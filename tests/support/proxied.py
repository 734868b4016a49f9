"""A measuring proxy in front of a server of the test's own, in this process."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from llm_headroom.config.endpoint import Endpoint, Tls
from llm_headroom.config.settings import Config, ProxySettings, Target
from llm_headroom.proxy.service import Proxies
from measured_values import told

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

ASK = b'{"model":"small","messages":[]}'
LINE = b'{"model":"small","message":{"role":"assistant","content":"a"},"done":false}\n'
LAST = b'{"model":"small","message":{"content":""},"done":true,"done_reason":"stop","eval_count":2}\n'
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"


def post(path: str = "/api/chat", body: bytes = ASK, extra: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: proxy.example\r\n{extra}Content-Length: {len(body)}\r\n\r\n".encode() + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Place:
    """An engine, a proxy in front of it, and what the proxy has measured."""

    def __init__(self, proxies: Proxies, engine_port: int) -> None:
        self.proxies = proxies
        self.engine_port = engine_port

    @property
    def port(self) -> int:
        """Where the proxy listens."""
        return int(self.proxies.addresses[0].rpartition(":")[2])

    def told(self) -> dict[str, float]:
        """What has been measured."""
        return told(self.proxies.joined["engine"])

    async def until(self, key: str, value: float = 1) -> None:
        """Waits until something has been measured."""
        while self.told().get(key) != value:  # noqa: ASYNC110 - nobody tells when something is measured
            await asyncio.sleep(0.005)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A client's connection to the proxy."""
        return await asyncio.open_connection("127.0.0.1", self.port)


@asynccontextmanager
async def place(
    serve: Serve,
    *,
    tls: ssl.SSLContext | None = None,
    ca: Path | None = None,
    connections: int = 1024,
    name: str = "127.0.0.1",
) -> AsyncIterator[Place]:
    """A proxy in front of a server of the test's own, which it knows by this name."""
    failures: list[BaseException] = []

    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the proxy has left, as some tests want it to
        except AssertionError as error:
            failures.append(error)
        finally:
            writer.close()

    server = await asyncio.start_server(guarded, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    url = f"{'https' if ca else 'http'}://{name}:{port}"
    target = Target(name="engine", endpoint=Endpoint(url=url, tls=Tls(ca_file=ca)), engine="ollama")
    config = Config(targets=(target,), proxies=(ProxySettings(listen="127.0.0.1:0", target="engine"),))
    proxies = Proxies(config, connections=connections)
    await proxies.start()
    try:
        yield Place(proxies, port)
    finally:
        await proxies.close()
        server.close()
        await server.wait_closed()
    assert not failures, failures


async def head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def replaying(answer: bytes) -> Serve:
    """Answers every request on a connection with the same bytes, after its head and Content-Length body."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            lines = (await head(reader)).decode().lower().split("\r\n")
            length = next((int(line[15:]) for line in lines if line.startswith("content-length:")), 0)
            await reader.readexactly(length)
            writer.write(answer)
            await writer.drain()

    return serve
