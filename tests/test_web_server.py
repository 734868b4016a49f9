"""The web server over real sockets: framing, limits, and how it starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import re
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from bounded import run
from free_port import free_port, has_ipv6
from llm_headroom.net.http_connection import Limits
from llm_headroom.net.http_messages import Request, Response
from llm_headroom.net.listen import ListenError
from llm_headroom.web.server import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from llm_headroom.net.http_server import HttpServer


async def page(request: Request) -> Response:
    return Response(f"{request.method} {request.path}".encode(), headers=(("X-Page", "yes"),))


@contextlib.asynccontextmanager
async def serving(
    handler: Callable[[Request], Awaitable[Response]] = page,
    *,
    max_requests: int = 40,
    methods: Sequence[str] = ("GET", "HEAD"),
    limits: Limits | None = None,
) -> AsyncIterator[HttpServer]:
    server = await serve(handler, ["127.0.0.1:0"], max_requests=max_requests, methods=methods, limits=limits)
    try:
        yield server
    finally:
        await server.close()


def address(server: HttpServer) -> tuple[str, int]:
    host, _, port = server.addresses[0].rpartition(":")
    return host, int(port)


async def ask(
    server: HttpServer, path: str = "/", method: str = "GET", headers: Mapping[str, str] | None = None
) -> tuple[int, Mapping[str, str], bytes]:
    """One request with a connection of its own, by the standard library's client: status, headers, body."""

    def blocking() -> tuple[int, Mapping[str, str], bytes]:
        client = http.client.HTTPConnection(*address(server), timeout=60)
        try:
            client.request(method, path, headers=dict(headers or {}))
            response = client.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            client.close()

    return await asyncio.to_thread(blocking)


async def say(server: HttpServer, payload: bytes) -> bytes:
    """Everything that the server sends in answer to raw bytes until it closes the connection."""
    reader, writer = await asyncio.open_connection(*address(server))
    try:
        writer.write(payload)
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


def statuses(raw: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", raw)]


def test_a_page_comes_with_its_length_type_and_headers() -> None:
    async def test() -> None:
        async with serving() as server:
            status, headers, body = await ask(server, "/metrics")
            assert (status, body) == (200, b"GET /metrics")
            assert headers == {
                "Content-Type": "text/plain; charset=utf-8",
                "Content-Length": "12",
                "X-Page": "yes",
                "X-Content-Type-Options": "nosniff",
            }

    run(test())


def test_path_query_and_headers_reach_the_handler_decoded() -> None:
    async def test() -> None:
        seen: list[Request] = []

        async def handler(request: Request) -> Response:
            seen.append(request)
            return Response(b"")

        async with serving(handler) as server:
            await ask(server, "/a%20b%2Fc?target=h%3A1&target=second&flag=&x=1+2", headers={"X-Mixed-Case": "v"})
            await say(
                server, b"GET http://host/absolute?q=1 HTTP/1.1\r\nHost: h\r\nConnection: close\r\nA: 1\r\nA: 2\r\n\r\n"
            )
        first, second = seen
        assert (first.method, first.path) == ("GET", "/a b/c")
        assert first.query == {"target": "h:1", "flag": "", "x": "1 2"}
        assert first.headers["x-mixed-case"] == "v"
        assert (second.path, second.query, second.headers["a"]) == ("/absolute", {"q": "1"}, "1, 2")

    run(test())


def test_head_gives_the_length_of_the_body_without_the_body() -> None:
    async def test() -> None:
        async with serving() as server:
            raw = await say(server, b"HEAD /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        head, _, body = raw.partition(b"\r\n\r\n")
        assert b"Content-Length: 7" in head
        assert body == b""

    run(test())


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_a_body_has_neither_body_nor_length(status: int) -> None:
    async def test() -> None:
        async def handler(_: Request) -> Response:
            return Response(b"ignored", status)

        async with serving(handler) as server:
            raw = await say(server, b"GET / HTTP/1.1\r\nHost: h\r\n\r\nGET / HTTP/1.0\r\n\r\n")
        assert statuses(raw) == [status, status]
        assert b"ignored" not in raw
        assert b"Content-Length" not in raw

    run(test())


def test_other_methods_are_refused_with_those_allowed() -> None:
    async def test() -> None:
        async with serving() as server:
            for method in ("POST", "DELETE", "OPTIONS", "FROB"):
                status, headers, _ = await ask(server, method=method)
                assert (status, headers["Allow"]) == (405, "GET, HEAD")
            raw = await say(server, b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            assert statuses(raw) == [405]
        async with serving(methods=("POST",)) as server:
            assert (await ask(server, "/-/reload", "POST"))[2] == b"POST /-/reload"

    run(test())


def test_pipelined_requests_are_answered_each_and_in_order() -> None:
    async def test() -> None:
        one = b"GET /%d HTTP/1.1\r\nHost: h\r\n"
        payload = b"".join(one % n + b"\r\n" for n in range(100)) + one % 100 + b"Connection: close\r\n\r\n"
        async with serving() as server:
            raw = await say(server, payload)
        assert statuses(raw) == [200] * 101
        bodies = [raw.index(b"GET /%dHTTP/1.1" % n) for n in range(100)]
        assert bodies == sorted(bodies)
        assert raw.endswith(b"GET /100")

    run(test())


def test_a_connection_serves_many_requests_until_the_client_asks_to_close() -> None:
    async def test() -> None:
        async with serving() as server:

            def blocking() -> None:
                client = http.client.HTTPConnection(*address(server), timeout=60)
                client.connect()
                first_socket = client.sock
                for _ in range(3):
                    client.request("GET", "/")
                    assert client.getresponse().read() == b"GET /"
                    assert client.sock is first_socket
                client.request("GET", "/", headers={"Connection": "close"})
                response = client.getresponse()
                assert response.getheader("Connection") == "close"
                response.read()
                assert client.sock is None
                client.close()

            await asyncio.to_thread(blocking)

    run(test())


def test_http_1_0_gets_an_answer_and_a_close() -> None:
    async def test() -> None:
        async with serving() as server:
            raw = await say(server, b"GET / HTTP/1.0\r\n\r\n")
        assert statuses(raw) == [200]
        assert b"Connection: close" in raw
        assert raw.endswith(b"\r\n\r\nGET /")

    run(test())


def test_a_client_that_has_shut_its_writing_side_still_gets_the_answer() -> None:
    async def test() -> None:
        async with serving() as server:
            reader, writer = await asyncio.open_connection(*address(server))
            writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            writer.write_eof()
            assert (await reader.read()).endswith(b"GET /")
            writer.close()

    run(test())


@pytest.mark.parametrize(
    ("payload", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET / HTTP/1.1\r\nHost: h\r\nbroken\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET /?" + b"&".join(b"a%d=1" % n for n in range(200)) + b" HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nA: " + b"a" * 17_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: h\r\n" + b"A: b\r\n" * 10_000 + b"\r\n", 431),
        (b"GET /" + b"a" * 100_000, 431),
        (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 65537\r\n\r\n" + b"a" * 65_537, 413),
        (b"GET / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n", 413),
        (
            b"HEAD / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
            + (b"1000\r\n" + b"a" * 4096 + b"\r\n") * 100,
            413,
        ),
        (
            b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
            + (b"1000\r\n" + b"a" * 4096 + b"\r\n") * 100,
            413,
        ),
    ],
)
def test_what_is_malformed_or_too_large_is_refused_and_the_connection_closed(payload: bytes, status: int) -> None:
    async def test() -> None:
        async with serving() as server:
            raw = await say(server, payload)
            assert statuses(raw) == [status]
            assert b"Connection: close" in raw
            assert (await ask(server))[0] == 200

    run(test())


def test_a_small_body_is_read_over_and_the_connection_goes_on() -> None:
    async def test() -> None:
        last = b"GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
        async with serving() as server:
            for body in (
                b"Content-Length: 5\r\n\r\nhello",
                b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            ):
                raw = await say(server, b"GET / HTTP/1.1\r\nHost: h\r\n" + body + last)
                assert statuses(raw) == [200, 200]
                assert raw.endswith(b"GET /last")

    run(test())


def test_who_waits_to_be_told_to_send_a_body_is_answered_without_it() -> None:
    async def test() -> None:
        async with serving() as server:
            raw = await say(server, b"GET / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert statuses(raw) == [200]

    run(test())


@pytest.mark.parametrize(
    ("payload", "answer"),
    [
        (b"", []),
        (b"GET / HTTP/1.1\r\nHost: h\r\nA:", [408]),
        (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhel", [408]),
    ],
)
def test_a_client_that_does_not_finish_its_request_is_closed(payload: bytes, answer: list[int]) -> None:
    async def test() -> None:
        async with serving(limits=Limits(head_seconds=0.3)) as server:
            assert statuses(await say(server, payload)) == answer

    run(test())


async def trickled(server: HttpServer) -> tuple[int, list[int]]:
    """How many headers a client wrote one by one until it got an answer, and the answer's status.

    Raises:
        ConnectionResetError: the last header crossed the server's close.
    """
    reader, writer = await asyncio.open_connection(*address(server))
    writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n")
    answer = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
    sent = 0
    with contextlib.closing(writer):
        while not answer.done():
            writer.write(b"A: b\r\n")
            sent += 1
            await asyncio.wait([answer], timeout=0.02)
        status = statuses(await answer)
        await reader.read()  # until the server closes
    return sent, status


def test_a_client_that_trickles_its_headers_is_closed() -> None:
    async def test() -> None:
        async with serving(limits=Limits(head_seconds=0.2)) as server:
            found = None
            while found is None or found[0] < 2:
                with contextlib.suppress(ConnectionResetError):
                    found = await trickled(server)
        assert found[1] == [408]

    run(test())


def test_an_idle_connection_is_closed() -> None:
    async def test() -> None:
        async with serving(limits=Limits(idle_seconds=0.1)) as server:
            assert statuses(await say(server, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")) == [200]

    run(test())


def test_one_request_more_than_allowed_at_once_gets_503() -> None:
    async def test() -> None:
        started = 0
        all_started, release = asyncio.Event(), asyncio.Event()

        async def handler(_: Request) -> Response:
            nonlocal started
            started += 1
            if started == 40:
                all_started.set()
            await release.wait()
            return Response(b"done")

        async with serving(handler, max_requests=40) as server:
            request = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
            for _ in range(2):  # whoever has been answered makes room, and no more than that
                started = 0
                all_started.clear()
                release.clear()
                held = [asyncio.create_task(say(server, request)) for _ in range(40)]
                await all_started.wait()
                status, _, body = await ask(server)
                assert (status, started) == (503, 40)
                assert b"Limit of concurrent requests reached (40)" in body
                release.set()
                assert [statuses(raw) for raw in await asyncio.gather(*held)] == [[200]] * 40
            assert (await ask(server))[0] == 200

    run(test())


def test_beyond_the_limit_of_connections_the_one_that_idles_longest_makes_room() -> None:
    async def test() -> None:
        async with serving(limits=Limits(connections=3)) as server:
            clients = [await asyncio.open_connection(*address(server)) for _ in range(3)]
            for reader, writer in clients:
                writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
                await reader.readuntil(b"GET /")
            assert (await ask(server))[0] == 200
            assert await clients[0][0].read() == b""
            reader, writer = clients[2]
            writer.write(b"GET /again HTTP/1.1\r\nHost: h\r\n\r\n")
            await reader.readuntil(b"GET /again")
            for _, writer in clients:
                writer.close()

    run(test())


def test_when_every_connection_is_at_work_further_ones_are_turned_away() -> None:
    async def test() -> None:
        started, release = asyncio.Event(), asyncio.Event()

        async def handler(_: Request) -> Response:
            started.set()
            await release.wait()
            return Response(b"done")

        async with serving(handler, limits=Limits(connections=1)) as server:
            held = asyncio.create_task(say(server, b"GET / HTTP/1.0\r\n\r\n"))
            await started.wait()
            reader, writer = await asyncio.open_connection(*address(server))
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
            release.set()
            assert statuses(await held) == [200]

    run(test())


def test_a_handler_that_raises_gives_500_and_its_traceback_goes_to_the_log_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        async def handler(_: Request) -> Response:
            raise RuntimeError("the inner secret")

        async with serving(handler) as server:
            raw = await say(server, b"GET /x HTTP/1.1\r\nHost: h\r\n\r\nGET /y HTTP/1.0\r\n\r\n")
        assert statuses(raw) == [500, 500]
        assert b"text/plain" in raw
        assert b"secret" not in raw
        assert b"Traceback" not in raw

    run(test())
    failures = [vars(record).get("path") for record in caplog.records if record.message == "handler failed"]
    assert failures == ["/x", "/y"]
    assert "the inner secret" in caplog.text


def test_a_header_that_would_split_the_response_is_never_sent(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async def handler(_: Request) -> Response:
            return Response(b"", headers=(("X-Name", "a\r\nSet-Cookie: b"),))

        async with serving(handler) as server:
            assert b"Set-Cookie" not in await say(server, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")

    run(test())
    assert "closed after an internal error" in caplog.text


def test_clients_that_reset_their_connections_leave_no_trace_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        handled = asyncio.Event()

        async def handler(_: Request) -> Response:
            handled.set()
            return Response(bytes(8 * 1024 * 1024))

        def reset(client: socket.socket) -> None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()

        async with serving(handler) as server:
            for payload in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"):
                client = socket.create_connection(address(server))
                client.sendall(payload)
                if payload.endswith(b"\r\n\r\n"):
                    await handled.wait()
                reset(client)
            assert (await ask(server))[0] == 200

    with caplog.at_level(logging.DEBUG, "llm_headroom.net.http_server"):
        run(test())
    assert {(each.levelno, each.getMessage()) for each in caplog.records} == {(logging.DEBUG, "connection ended early")}


LARGE = 32 * 1024 * 1024
"""More than the socket buffers of both sides hold."""


async def large_and_small(request: Request) -> Response:
    return Response(bytes(LARGE) if request.path == "/large" else b"small")


def begin_large(server: HttpServer) -> socket.socket:
    """A client that has asked for the large page and read one byte of the response."""
    client = socket.create_connection(address(server), timeout=60)
    client.sendall(b"GET /large HTTP/1.0\r\n\r\n")
    client.recv(1)
    return client


def read_rest(client: socket.socket) -> int:
    """The number of bytes that still come."""
    received = 0
    with client, contextlib.suppress(ConnectionResetError):
        while data := client.recv(1024 * 1024):
            received += len(data)
    return received


def test_a_slow_reader_does_not_hold_up_others() -> None:
    async def test() -> None:
        async with serving(large_and_small) as server:
            slow = await asyncio.to_thread(begin_large, server)
            assert (await ask(server, "/small"))[2] == b"small"
            assert await asyncio.to_thread(read_rest, slow) > LARGE

    run(test())


def test_a_reader_that_stops_reading_is_cut_off_and_its_place_is_free_again() -> None:
    async def test() -> None:
        async with serving(large_and_small, limits=Limits(connections=1, write_seconds=0.2)) as server:
            refusals = 0
            while not refusals:  # on a busy machine it may be cut off before anybody else has come
                slow, body = await asyncio.to_thread(begin_large, server), b""
                while not body:
                    try:
                        _, _, body = await ask(server, "/small")
                    except (ConnectionError, http.client.BadStatusLine):
                        refusals += 1
                assert body == b"small"
                assert await asyncio.to_thread(read_rest, slow) < LARGE

    run(test())


def test_a_reader_that_stops_reading_gives_its_place_to_another_one_after_a_moment() -> None:
    async def test() -> None:
        large = bytes(LARGE)

        async def handler(request: Request) -> Response:
            return Response(large if request.path == "/large" else b"small")

        async with serving(handler, limits=Limits(connections=2, write_seconds=1000.0)) as server:
            slow = [await asyncio.to_thread(begin_large, server) for _ in range(2)]
            body = b""
            while not body:
                with contextlib.suppress(ConnectionError, http.client.BadStatusLine):
                    _, _, body = await ask(server, "/small")
            received = [await asyncio.to_thread(read_rest, each) for each in slow]
            assert [each < LARGE for each in received] == [True, False], "the one that has not read for longest"

    run(test())


def test_a_large_response_arrives_whole() -> None:
    async def test() -> None:
        body = bytes(range(256)) * 32768  # 8 MiB

        async def handler(_: Request) -> Response:
            return Response(body)

        async with serving(handler) as server:
            assert (await ask(server))[2] == body

    run(test())


def test_close_lets_a_request_under_way_finish_and_refuses_new_ones() -> None:
    async def test() -> None:
        started, release = asyncio.Event(), asyncio.Event()

        async def handler(_: Request) -> Response:
            started.set()
            await release.wait()
            return Response(b"finished")

        server = await serve(handler, ["127.0.0.1:0"])
        idle_reader, idle_writer = await asyncio.open_connection(*address(server))
        request = asyncio.create_task(say(server, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"))
        await started.wait()
        closing = asyncio.create_task(server.close())
        assert await idle_reader.read() == b""
        idle_writer.close()
        with pytest.raises(ConnectionError):
            await asyncio.open_connection(*address(server))
        assert not closing.done()
        release.set()
        raw = await request
        assert b"Connection: close" in raw
        assert raw.endswith(b"finished")
        await closing
        await server.close()

    run(test())


def test_close_cuts_what_outlasts_the_grace_period() -> None:
    async def test() -> None:
        started = asyncio.Event()
        outcome: list[str] = []

        async def handler(_: Request) -> Response:
            started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                outcome.append("cancelled")
                raise
            return Response(b"")

        server = await serve(handler, ["127.0.0.1:0"], limits=Limits(grace_seconds=0.1))
        request = asyncio.create_task(say(server, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"))
        await started.wait()
        await server.close()
        assert outcome == ["cancelled"]
        with contextlib.suppress(ConnectionResetError):
            assert await request == b""

    run(test())


def test_a_connection_in_the_queue_when_the_server_closes_is_closed_too() -> None:
    async def test() -> None:
        server = await serve(page, ["127.0.0.1:0"])
        with socket.create_connection(address(server)) as client:
            await server.close()
            client.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""

    run(test())


async def answered(host: str, port: int) -> None:
    """Fail unless there is an answer at this address."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()


def test_a_port_alone_is_every_address_of_both_families() -> None:
    async def test() -> None:
        server = await serve(page, [":0"])
        try:
            port = int(server.addresses[0].rpartition(":")[2])
            hosts = ["127.0.0.1"] + (["::1"] if has_ipv6() else [])
            for host in hosts:
                await answered(host, port)
        finally:
            await server.close()

    run(test())


def test_addresses_are_those_really_bound() -> None:
    async def test() -> None:
        server = await serve(page, ["127.0.0.1:0", "0.0.0.0:0", "localhost:0"])
        try:
            hosts = [entry.rpartition(":")[0] for entry in server.addresses]
            assert hosts[:2] == ["127.0.0.1", "0.0.0.0"]
            assert set(hosts[2:]) <= {"127.0.0.1", "[::1]"}
            assert len(hosts) >= 3
            assert all(int(entry.rpartition(":")[2]) > 0 for entry in server.addresses)
        finally:
            await server.close()

    run(test())


@pytest.mark.skipif(not has_ipv6(), reason="this host has no IPv6")
def test_an_ipv6_address_stands_in_brackets() -> None:
    async def test() -> None:
        server = await serve(page, ["[::1]:0"])
        try:
            host, _, port = server.addresses[0].rpartition(":")
            assert host == "[::1]"
            await answered("::1", int(port))
        finally:
            await server.close()

    run(test())


def test_an_address_in_use_is_named_and_the_others_are_given_back() -> None:
    async def test() -> None:
        async with serving() as server:
            taken = server.addresses[0]
            with free_port() as port:
                free = f"127.0.0.1:{port}"
                with pytest.raises(ListenError, match=f"cannot listen on {taken}: the address is in use"):
                    await serve(page, [free, taken])
                again = await serve(page, [free])
                await again.close()

    run(test())


@pytest.mark.parametrize(
    ("listen", "problem"),
    [
        ([], "no address to listen on"),
        (["9836"], "'9836' is not a valid listen address"),
        (["::1:9836"], "'::1:9836' is not a valid listen address"),
        ([":99999"], "':99999' is not a valid listen address"),
        ([":http"], "':http' is not a valid listen address"),
        (["192.0.2.1:0"], r"cannot listen on 192\.0\.2\.1:0: .*EADDRNOTAVAIL"),
        (["no-such-host.invalid:0"], r"cannot listen on no-such-host\.invalid:0: the host name is unknown"),
    ],
)
def test_what_cannot_be_listened_on_is_named(listen: list[str], problem: str) -> None:
    async def test() -> None:
        with pytest.raises(ListenError, match=problem):
            await serve(page, listen)

    run(test())
