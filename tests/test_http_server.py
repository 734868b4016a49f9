"""The HTTP server that pages and simulated engines share: request bodies, streams, cuts, clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from typing import TYPE_CHECKING

import pytest
import trustme

from bounded import run
from llm_headroom.net.http_connection import Limits
from llm_headroom.net.http_messages import CutError, Request, Response
from llm_headroom.net.http_server import HttpServer
from llm_headroom.net.listen import bind

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from llm_headroom.net.http_messages import Handler

LAST = b"GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


@contextlib.asynccontextmanager
async def serving(
    handler: Handler, *, limits: Limits | None = None, needs_client: bool = False
) -> AsyncIterator[HttpServer]:
    server = HttpServer(handler, await bind("127.0.0.1:0"), limits=limits, needs_client=needs_client)
    try:
        yield server
    finally:
        await server.close()


@contextlib.asynccontextmanager
async def client(server: HttpServer) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, _, port = server.addresses[0].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


async def say(server: HttpServer, payload: bytes) -> bytes:
    """Everything that comes back until the server closes the connection."""
    async with client(server) as (reader, writer):
        writer.write(payload)
        return await reader.read()


def statuses(raw: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", raw)]


async def echo(request: Request) -> Response:
    return Response(request.body or b"nothing")


async def parts() -> AsyncGenerator[bytes, None]:
    yield b"one "
    yield b"two"


@pytest.mark.parametrize(
    "body", [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"]
)
def test_a_body_reaches_the_handler_where_the_method_gives_it_a_meaning(body: bytes) -> None:
    async def test() -> None:
        async with serving(echo) as server:
            posted = await say(server, b"POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n" + body)
            assert posted.endswith(b"\r\n\r\nhello")
            asked = await say(server, b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n" + body)
            assert asked.endswith(b"\r\n\r\nnothing")

    run(test())


def test_a_client_that_waits_to_send_its_body_is_asked_for_it_unless_it_is_too_large() -> None:
    async def test() -> None:
        head = b"POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        async with serving(echo, limits=Limits(body_bytes=5)) as server:
            async with client(server) as (reader, writer):
                writer.write(head % 5)
                assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 \r\n\r\n"
                writer.write(b"hello")
                assert (await reader.read()).endswith(b"hello")
            assert statuses(await say(server, head % 6)) == [413]

    run(test())


def test_after_a_stream_the_connection_goes_on() -> None:
    async def test() -> None:
        async def handler(request: Request) -> Response:
            return Response(b"", stream=parts()) if request.path == "/stream" else Response(b"whole")

        async with serving(handler) as server:
            raw = await say(server, b"GET /stream HTTP/1.1\r\nHost: h\r\n\r\n" + LAST)
        assert statuses(raw) == [200, 200]
        assert b"4\r\none \r\n3\r\ntwo\r\n0\r\n\r\nHTTP/1.1 200" in raw
        assert raw.endswith(b"whole")

    run(test())


def test_a_stream_to_a_client_of_http_1_0_ends_with_the_connection() -> None:
    async def test() -> None:
        async def handler(_: Request) -> Response:
            return Response(b"", stream=parts())

        async with serving(handler) as server:
            assert (await say(server, b"GET / HTTP/1.0\r\n\r\n")).endswith(b"\r\n\r\none two")

    run(test())


def test_a_cut_sends_nothing_more_and_leaves_no_trace_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> AsyncGenerator[bytes, None]:
        yield b"one"
        raise CutError

    async def test() -> None:
        async def handler(request: Request) -> Response:
            if request.path == "/stream":
                return Response(b"", stream=broken())
            raise CutError

        async with serving(handler) as server:
            for path, expected in ((b"/", b""), (b"/stream", b"3\r\none\r\n")):
                async with client(server) as (reader, writer):
                    writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: h\r\n\r\n")
                    raw = b""
                    with contextlib.suppress(ConnectionResetError):
                        while data := await reader.read(65_536):
                            raw += data
                    assert raw.endswith(expected)
                    assert not raw.endswith(b"0\r\n\r\n")

    run(test())
    assert caplog.records == []


def test_a_handler_that_needs_its_client_is_cancelled_when_the_client_leaves() -> None:
    async def test() -> None:
        started, cancelled = asyncio.Event(), asyncio.Event()

        async def handler(_: Request) -> Response:
            started.set()
            try:
                return await asyncio.Future()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        async with serving(handler, needs_client=True) as server:
            async with client(server) as (_, writer):
                writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
                await started.wait()
            await cancelled.wait()

    run(test())


def test_a_client_that_shuts_its_side_still_gets_its_answer() -> None:
    async def test() -> None:
        started, release = asyncio.Event(), asyncio.Event()

        async def handler(_: Request) -> Response:
            started.set()
            await release.wait()
            return Response(b"late")

        async with serving(handler) as server, client(server) as (reader, writer):
            writer.write(LAST)
            writer.write_eof()
            await started.wait()
            for _ in range(100):
                await asyncio.sleep(0)  # the server sees the end of the client's side
            release.set()
            assert (await reader.read()).endswith(b"\r\n\r\nlate")

    run(test())


@pytest.mark.parametrize("leaves", [True, False])
def test_a_stream_begins_only_while_its_client_is_there(*, leaves: bool) -> None:
    async def test() -> None:
        started, release, begun = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def stream() -> AsyncGenerator[bytes, None]:
            begun.set()
            yield b"part"

        async def handler(_: Request) -> Response:
            started.set()
            await release.wait()
            return Response(b"", stream=stream())

        async with serving(handler) as server, client(server) as (reader, writer):
            writer.write(LAST)
            await started.wait()
            if leaves:
                writer.write_eof()
                for _ in range(100):
                    await asyncio.sleep(0)  # the server sees the end of the client's side
            release.set()
            with contextlib.suppress(ConnectionResetError):
                await reader.read()
            assert begun.is_set() != leaves

    run(test())


def test_a_connection_that_idles_holds_no_response() -> None:
    async def test() -> None:
        gone = asyncio.Event()

        class Body(bytes):
            __slots__ = ()

            def __del__(self) -> None:
                gone.set()

        async def handler(_: Request) -> Response:
            return Response(Body(b"whole"))

        async with serving(handler) as server, client(server) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            await reader.readuntil(b"whole")
            await gone.wait()

    run(test())


def test_a_client_that_idles_is_closed_and_gets_no_further_time_for_a_head() -> None:
    async def test() -> None:
        limits = Limits(idle_seconds=0.05, head_seconds=1000.0)
        async with serving(echo, limits=limits) as server, client(server) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            assert (await reader.read()).endswith(b"\r\n\r\nnothing")

    run(test())


AUTHORITY = trustme.CA()


class Encrypted:
    """Security that asks no client for a certificate."""

    def __init__(self) -> None:
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        AUTHORITY.issue_cert("localhost").configure_cert(self.tls)

    def admits_certificate(self, certificate: Mapping[str, object] | None) -> bool:
        """Whether it has shown none."""
        return not certificate


async def secured() -> Encrypted:
    """For each connection."""
    return Encrypted()


def ask_and_stay(server: HttpServer, request: bytes, *, encrypted: bool) -> socket.socket:
    """A client's socket after the first of what the server says; it then neither speaks, reads nor closes.

    Raises:
        OSError: the server has closed.
    """
    host, _, port = server.addresses[0].rpartition(":")
    with contextlib.ExitStack() as on_failure:
        client = on_failure.enter_context(socket.create_connection((host, int(port)), 20))
        if encrypted:
            trusting = ssl.create_default_context()
            AUTHORITY.configure_trust(trusting)
            client = on_failure.enter_context(trusting.wrap_socket(client, server_hostname="localhost"))
        client.sendall(request)
        if client.recv(9) != b"HTTP/1.1 ":
            raise ConnectionResetError
        on_failure.pop_all()
    return client


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("rest", [b"\r\n", b"Content-Length: 9\r\n\r\n"], ids=["answered", "refused"])
def test_a_client_that_never_closes_keeps_nobody_out_and_no_server_from_ending(rest: bytes, *, encrypted: bool) -> None:
    request = b"POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n" + rest

    async def test() -> None:
        limits = Limits(connections=1, body_bytes=5, grace_seconds=1000.0)
        listeners, clients = await bind("127.0.0.1:0"), list[socket.socket]()
        if encrypted:
            server = HttpServer(echo, listeners, limits=limits, security=secured)
        else:
            server = HttpServer(echo, listeners, limits=limits)
        while len(clients) < 3:  # one after the other: there is one place
            with contextlib.suppress(OSError):
                clients.append(await asyncio.to_thread(ask_and_stay, server, request, encrypted=encrypted))
        await server.close()
        for client in clients:
            client.close()

    run(test())


def test_a_cut_over_tls_is_no_end_that_a_client_could_take_for_the_whole() -> None:
    async def handler(_: Request) -> Response:
        raise CutError

    def asked(port: int) -> None:
        trusting = ssl.create_default_context()
        AUTHORITY.configure_trust(trusting)
        with (
            socket.create_connection(("127.0.0.1", port), 20) as plain,
            trusting.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False) as client,
        ):
            client.sendall(LAST)
            with pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
                client.recv(1)

    async def test() -> None:
        server = HttpServer(handler, await bind("127.0.0.1:0"), security=secured)
        await asyncio.to_thread(asked, int(server.addresses[0].rpartition(":")[2]))
        await server.close()

    run(test())


def test_what_a_cancelled_handler_still_has_to_do_is_not_cancelled_once_more() -> None:
    """Over TLS the end of the client's side and that of the connection come one after the other."""

    async def test() -> None:
        started, cancelled, released, done = (asyncio.Event() for _ in range(4))

        async def handler(_: Request) -> Response:
            started.set()
            try:
                return await asyncio.Future()
            finally:
                cancelled.set()
                await released.wait()
                done.set()

        server = HttpServer(handler, await bind("127.0.0.1:0"), security=secured, needs_client=True)
        trusting = ssl.create_default_context()
        AUTHORITY.configure_trust(trusting)
        host, _, port = server.addresses[0].rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port), ssl=trusting, server_hostname="localhost")
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await started.wait()
        writer.close()
        await cancelled.wait()
        for _ in range(100):
            await asyncio.sleep(0)
        released.set()
        await server.close()
        assert done.is_set()

    run(test())


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("connections", 64, 1024),
        ("head_bytes", 8 * 1024, 64 * 1024),
        ("body_bytes", 16 * 1024, 1024 * 1024),
        ("head_seconds", 5.0, 30.0),
        ("idle_seconds", 60.0, 300.0),  # longer than collectors pause between scrapes
        ("write_seconds", 10.0, 60.0),
        ("grace_seconds", 1.0, 8.0),  # a supervisor kills after ten
    ],
)
def test_limits_are_of_an_order_that_honest_clients_never_meet(name: str, least: float, most: float) -> None:
    assert least <= getattr(Limits(), name) <= most
