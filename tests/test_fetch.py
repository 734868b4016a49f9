"""The HTTP client against real servers that behave, misbehave and lie."""

from __future__ import annotations

import asyncio
import datetime as dt
import gzip
import os
import socket
import ssl
import struct
import threading
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import pytest
import trustme

from free_port import free_port, has_ipv6
from llm_headroom import __version__
from llm_headroom.config.endpoint import Basic, Bearer, Endpoint, Secret, Tls
from llm_headroom.model import Cause
from llm_headroom.net.lean_httpx import httpx
from llm_headroom.scrape.http import Client, FetchError, Response
from llm_headroom.scrape.transport import prepared
from scripted_server import EngineServer, Request, hang, head, in_turn, pour, raw, reply, running, trickle

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from scripted_server import Answer

BODY = b"".join(b'vllm:bucket{le="%d"} %d.0\n' % (number, number * 7) for number in range(4000))
SOON = 0.5
PATIENT = 10.0


class Options(TypedDict, total=False):
    """What an endpoint may be given beside its URL."""

    tls: Tls
    credentials: Bearer | Basic
    max_bytes: int
    gzip: bool


def fetch(
    server: EngineServer, path: str = "/metrics", *, timeout: float = PATIENT, **options: Unpack[Options]
) -> Response:
    """One request of a client of its own to a server of its own."""

    async def main() -> Response:
        async with server:
            client = Client(Endpoint(url=server.url, **options))
            try:
                return await client.get(path, timeout=timeout)
            finally:
                await client.close()

    return asyncio.run(main())


def failure_of(
    server: EngineServer, path: str = "/metrics", *, timeout: float = PATIENT, **options: Unpack[Options]
) -> FetchError:
    with pytest.raises(FetchError) as caught:
        fetch(server, path, timeout=timeout, **options)
    assert f"127.0.0.1:{server.port}{path}: " in caught.value.failure.message
    return caught.value


def with_client(
    server: EngineServer, use: Callable[[Client], Coroutine[Any, Any, None]], **options: Unpack[Options]
) -> None:
    async def main() -> None:
        async with server:
            client = Client(Endpoint(url=server.url, **options))
            try:
                await use(client)
            finally:
                await client.close()

    asyncio.run(main())


# Answers


def test_a_body_arrives_whole_with_its_status_and_headers_in_lower_case() -> None:
    with running(EngineServer({"/metrics": reply(BODY, headers={"X-Engine": "one"})})) as server:

        async def main() -> Response:
            client = Client(Endpoint(url=server.url))
            response = await client.get("/metrics", timeout=PATIENT)
            await client.close()
            return response

        response = asyncio.run(main())
    assert (response.status, response.body) == (200, BODY)
    assert response.headers["x-engine"] == "one"


@pytest.mark.parametrize("chunk", [1, 1000, len(BODY)])
def test_a_chunked_body_is_put_together(chunk: int) -> None:
    assert fetch(EngineServer({"/metrics": reply(BODY, chunk=chunk)})).body == BODY


def test_a_body_that_ends_with_the_connection_is_complete() -> None:
    assert fetch(EngineServer({"/metrics": raw(b"HTTP/1.0 200 OK\r\n\r\n" + BODY)})).body == BODY


def test_an_informational_answer_is_not_the_final_one() -> None:
    answer = raw(b"HTTP/1.1 103 Early Hints\r\n\r\n" + head(200, {"Content-Length": "2"}) + b"ok")
    assert fetch(EngineServer({"/metrics": answer})).body == b"ok"


def test_more_informational_answers_than_anybody_sends_end_the_connection() -> None:
    interim, final = b"HTTP/1.1 103 Early Hints\r\n\r\n", head(200, {"Content-Length": "2"}) + b"ok"
    assert fetch(EngineServer({"/metrics": raw(interim * 15 + final)})).body == b"ok"
    for flood in (raw(interim * 200_000 + final), pour(b"", interim * 100, 10**9, [])):
        failure = failure_of(EngineServer({"/metrics": flood})).failure
        assert failure.cause is Cause.PROTOCOL
        assert failure.message.endswith("more than 16 answers at once")


@pytest.mark.parametrize("status", [204, 304, 401, 403, 404, 500, 503])
def test_every_final_status_is_the_callers_to_judge(status: int) -> None:
    assert fetch(EngineServer({"/metrics": raw(head(status, {"Content-Length": "0"}))})).status == status


def test_a_redirect_that_says_not_where_to_is_a_final_status() -> None:
    assert fetch(EngineServer({"/metrics": reply(status=302)})).status == 302


def test_a_request_says_who_asks_for_what_and_avoids_compression() -> None:
    server = EngineServer({"/metrics": reply(BODY)})
    fetch(server)
    assert server.requests[0].method == "GET"
    assert server.requests[0].headers == {
        "host": f"127.0.0.1:{server.port}",
        "user-agent": f"llm-headroom/{__version__}",
        "accept": "text/plain;version=0.0.4,*/*;q=0.1",
        "accept-encoding": "identity",
    }


def test_a_body_is_posted_as_json() -> None:
    server = EngineServer({"/api/show": reply(b"{}")})

    async def use(client: Client) -> None:
        await client.get("/api/show", timeout=PATIENT, body=b'{"model":"m"}', accept="application/json")

    with_client(server, use)
    request = server.requests[0]
    assert (request.method, request.body) == ("POST", b'{"model":"m"}')
    assert request.headers["content-type"] == request.headers["accept"] == "application/json"


def test_the_urls_path_is_a_prefix_and_the_query_is_kept() -> None:
    server = EngineServer({"/engine1/metrics": reply(BODY)})

    async def main() -> None:
        async with server:
            client = Client(Endpoint(url=f"{server.url}/engine1/"))
            assert (await client.get("/metrics?name[]=a", timeout=PATIENT)).body == BODY
            await client.close()

    asyncio.run(main())
    assert server.requests[0].target == "/engine1/metrics?name[]=a"


@pytest.mark.parametrize(("url", "port"), [("http://h", 80), ("https://h", 443), ("http://h:443", 443)])
def test_a_url_without_a_port_has_its_schemes(url: str, port: int) -> None:
    assert prepared(httpx.Request("GET", f"{url}/metrics")).port == port


def test_localhost_is_reached_on_whichever_address_family_listens() -> None:
    server = EngineServer({"/metrics": reply(BODY)})

    async def main() -> None:
        async with server:
            client = Client(Endpoint(url=f"http://localhost:{server.port}"))
            assert (await client.get("/metrics", timeout=PATIENT)).body == BODY
            await client.close()

    asyncio.run(main())
    assert server.requests[0].headers["host"] == f"localhost:{server.port}"


@pytest.mark.skipif(not has_ipv6(), reason="this host has no IPv6")
def test_an_ipv6_address_is_bracketed_in_the_host_header() -> None:
    hosts: list[bytes] = []

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
            hosts.append(next(line for line in lines if line.startswith(b"host:")))
            writer.write(head(200, {"Content-Length": "0"}))
            writer.close()

        async with await asyncio.start_server(serve, "::1", 0) as listener:
            port = listener.sockets[0].getsockname()[1]
            client = Client(Endpoint(url=f"http://[0:0::1]:{port}"))
            await client.get("/metrics", timeout=PATIENT)
            await client.close()
            assert hosts == [f"host: [::1]:{port}".encode()]

    asyncio.run(main())


# Keep-alive


def test_one_connection_serves_many_requests() -> None:
    server = EngineServer({"/metrics": reply(BODY), "/chunked": reply(BODY, chunk=5000)})

    async def use(client: Client) -> None:
        for path in ("/metrics", "/chunked", "/missing", "/metrics"):
            await client.get(path, timeout=PATIENT)

    with_client(server, use)
    assert (len(server.requests), server.connections) == (4, 1)


def test_an_idle_connection_that_the_server_closed_is_replaced() -> None:
    server = EngineServer({"/metrics": in_turn(raw(head(200, {"Content-Length": "2"}) + b"ok"), reply(BODY))})

    async def use(client: Client) -> None:
        assert (await client.get("/metrics", timeout=PATIENT)).body == b"ok"
        await server.all_left()
        assert (await client.get("/metrics", timeout=PATIENT)).body == BODY

    with_client(server, use)
    assert (len(server.requests), server.connections) == (2, 2)


def test_a_request_is_sent_once_more_if_the_kept_connection_dies_under_it() -> None:
    server = EngineServer({"/metrics": in_turn(reply(b"1"), raw(b""), reply(b"3"))})

    async def use(client: Client) -> None:
        assert (await client.get("/metrics", timeout=PATIENT)).body == b"1"
        assert (await client.get("/metrics", timeout=PATIENT)).body == b"3"

    with_client(server, use)
    assert [request.connection for request in server.requests] == [1, 1, 2]


@pytest.mark.parametrize(
    ("last", "sent"),
    [
        pytest.param(raw(b""), 3, id="no answer: sent once more, and no third time"),
        pytest.param(raw(b"HTTP/1.1 200 OK\r\n"), 2, id="an answer that breaks off: not asked for again"),
    ],
)
def test_a_retained_connection_that_dies(last: Answer, sent: int) -> None:
    server = EngineServer({"/metrics": in_turn(reply(b"1"), last)})

    async def use(client: Client) -> None:
        await client.get("/metrics", timeout=PATIENT)
        with pytest.raises(FetchError) as caught:
            await client.get("/metrics", timeout=PATIENT)
        assert caught.value.failure.cause is Cause.TRUNCATED

    with_client(server, use)
    assert len(server.requests) == sent


def test_a_fresh_connection_that_closes_without_an_answer_is_not_tried_again() -> None:
    server = EngineServer({"/metrics": raw(b"")})
    assert failure_of(server).failure.cause is Cause.TRUNCATED
    assert len(server.requests) == 1


@pytest.mark.parametrize("at_once", [True, False])
def test_what_a_server_says_unasked_is_no_answer_to_the_next_request(at_once: bool) -> None:  # noqa: FBT001 - a case
    unasked = head(408, {"Content-Length": "0", "Connection": "close"})

    async def talkative(request: Request, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, {"Content-Length": "1"}) + b"1" + (unasked if at_once else b""))
        if request.connection == 1 and not at_once:
            await answered.wait()
            writer.write(unasked)
            writer.close()
            await writer.wait_closed()

    answered = asyncio.Event()
    server = EngineServer({"/metrics": talkative})

    async def use(client: Client) -> None:
        assert (await client.get("/metrics", timeout=PATIENT)).status == 200
        answered.set()
        await server.all_left()
        assert (await client.get("/metrics", timeout=PATIENT)).status == 200

    with_client(server, use)
    assert server.connections == 2


def test_what_a_server_says_unasked_while_it_stays_connected_is_no_answer_either() -> None:
    async def talkative(request: Request, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, {"Content-Length": "1"}) + b"%d" % request.connection)
        if request.connection == 1:
            await answered.wait()
            writer.write(head(200, {"Content-Length": "4"}) + b"late")

    answered = asyncio.Event()
    server = EngineServer({"/metrics": talkative})

    async def use(client: Client) -> None:
        assert (await client.get("/metrics", timeout=PATIENT)).body == b"1"
        answered.set()
        other = Client(Endpoint(url=server.url))
        assert (await other.get("/metrics", timeout=PATIENT)).body == b"2"  # by now the first client has heard it
        await other.close()
        assert (await client.get("/metrics", timeout=PATIENT)).body == b"3"

    with_client(server, use)


def test_a_post_is_sent_once_more_too() -> None:
    server = EngineServer({"/api/show": in_turn(reply(b"1"), raw(b""), reply(b"3"))})

    async def use(client: Client) -> None:
        for expected in (b"1", b"3"):
            answer = await client.get("/api/show", timeout=PATIENT, body=b"{}")
            assert answer.body == expected

    with_client(server, use)
    assert [(request.connection, request.body) for request in server.requests] == [(1, b"{}"), (1, b"{}"), (2, b"{}")]


def test_cookies_are_not_kept() -> None:
    server = EngineServer({"/metrics": reply(BODY, headers={"Set-Cookie": "a=1; Path=/"})})

    async def use(client: Client) -> None:
        for _ in range(2):
            await client.get("/metrics", timeout=PATIENT)

    with_client(server, use)
    assert all("cookie" not in request.headers for request in server.requests)


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetch(EngineServer({"/metrics": reply(BODY)})).body == BODY


def test_a_closed_client_leaves_no_connection_and_can_be_used_again() -> None:
    server = EngineServer({"/metrics": reply(BODY)})

    async def use(client: Client) -> None:
        await client.close()
        await client.get("/metrics", timeout=PATIENT)
        await client.close()
        await server.all_left()
        assert (await client.get("/metrics", timeout=PATIENT)).body == BODY

    with_client(server, use)
    assert server.connections == 2


def test_two_requests_at_once_are_refused() -> None:
    server = EngineServer({"/slow": hang(), "/metrics": reply(BODY)})

    async def use(client: Client) -> None:
        first = asyncio.create_task(client.get("/slow", timeout=SOON))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="already under way"):
            await client.get("/metrics", timeout=PATIENT)
        with pytest.raises(FetchError):
            await first
        assert (await client.get("/metrics", timeout=PATIENT)).body == BODY

    with_client(server, use)


# Deadlines and cancellation


@pytest.mark.parametrize(
    ("answer", "doing"),
    [
        pytest.param(hang(), "waiting for the answer", id="silence"),
        pytest.param(hang(b"HTTP/1.1 200 OK\r\nContent-"), "waiting for the answer", id="half a header"),
        pytest.param(hang(head(200, {"Content-Length": "9"}) + b"half"), "reading the body", id="half a body"),
        pytest.param(trickle(head(200, {"Content-Length": "9999"})), "reading the body", id="trickling body"),
        pytest.param(trickle(b"HTTP/1.1 200 OK\r\nX: "), "waiting for the answer", id="trickling header"),
        pytest.param(
            pour(head(200, {"Transfer-Encoding": "chunked"}), b"1\r\nx\r\n" * 1000, 10**9, []),
            "reading the body",
            id="endless tiny chunks",
        ),
    ],
)
def test_the_deadline_cuts_a_slow_answer_and_the_connection(answer: Answer, doing: str) -> None:
    server = EngineServer({"/metrics": answer})

    async def use(client: Client) -> None:
        with pytest.raises(FetchError) as caught:
            await client.get("/metrics", timeout=SOON)
        assert caught.value.failure.cause is Cause.TIMEOUT
        assert caught.value.failure.message.endswith(f"/metrics: no answer within 0.5 s ({doing})")
        await server.all_left()

    with_client(server, use)


def test_the_deadline_cuts_even_a_body_that_is_all_there_but_takes_too_long_to_take_apart() -> None:
    server = EngineServer({"/metrics": reply(bytes(1_000_000), chunk=1)})
    assert failure_of(server, timeout=0.01).failure.cause is Cause.TIMEOUT


def test_the_deadline_covers_the_tls_handshake() -> None:
    async def main() -> None:
        async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()
            left.set()

        left = asyncio.Event()
        async with await asyncio.start_server(mute, "127.0.0.1", 0) as listener:
            client = Client(Endpoint(url=f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}"))
            message = ""
            async with asyncio.timeout(60 * SOON):  # asyncio itself gives a handshake twice as long
                while "connecting" not in message:  # a busy machine may still be reading certificates
                    with pytest.raises(FetchError) as caught:
                        await client.get("/metrics", timeout=SOON)
                    assert caught.value.failure.cause is Cause.TIMEOUT
                    message = caught.value.failure.message
            await left.wait()

    asyncio.run(main())


def test_the_deadline_is_one_for_all_redirects_together() -> None:
    server = EngineServer({"/metrics": reply(status=302, headers={"Location": "/b"}), "/b": hang()})
    assert failure_of(server, timeout=SOON).failure.cause is Cause.TIMEOUT


@pytest.mark.parametrize("beginning", [b"", head(200, {"Content-Length": "9"}) + b"late"])
def test_after_a_cancellation_the_next_request_gets_its_own_answer(beginning: bytes) -> None:
    async def late(_: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(beginning)
        arrived.set()
        await reader.read()
        writer.write(head(200, {"Content-Length": "4"}) + b"late")

    arrived = asyncio.Event()
    server = EngineServer({"/late": late, "/metrics": reply(BODY)})

    async def use(client: Client) -> None:
        await client.get("/metrics", timeout=PATIENT)
        task = asyncio.create_task(client.get("/late", timeout=PATIENT))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await client.get("/metrics", timeout=PATIENT)).body == BODY

    with_client(server, use)
    assert server.connections == 2


# What else can go wrong


def test_a_dead_port_is_refused() -> None:
    with free_port() as port:
        for host in ("127.0.0.1", "localhost"):
            with pytest.raises(FetchError) as caught:
                asyncio.run(Client(Endpoint(url=f"http://{host}:{port}")).get("/metrics", timeout=PATIENT))
            assert caught.value.failure.cause is Cause.REFUSED
            assert f"http://{host}:{port}/metrics: " in str(caught.value)


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("a..b", "cannot be resolved"),
        ("999.1.1.1", "cannot be resolved"),
        ("x." * 150 + "invalid", "cannot be resolved"),
        ("224.0.0.1", "cannot connect"),  # Linux connects TCP to no multicast address
    ],
)
def test_a_host_that_cannot_be_found_is_unreachable(host: str, reason: str) -> None:
    with pytest.raises(FetchError, match=reason) as caught:
        asyncio.run(Client(Endpoint(url=f"http://{host}:8000")).get("/metrics", timeout=PATIENT))
    assert caught.value.failure.cause is Cause.UNREACHABLE


async def reset(_: Request, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(head(200, {"Content-Length": "9"}) + b"half")
    await writer.drain()
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(raw(head(200, {"Content-Length": "9"}) + b"half"), id="short of its length"),
        pytest.param(raw(head(200, {"Transfer-Encoding": "chunked"}) + b"4\r\nhalf\r\n"), id="no last chunk"),
        pytest.param(raw(b"HTTP/1.1 200 OK\r\nContent-"), id="half a header"),
        pytest.param(reset, id="reset"),
    ],
)
def test_half_an_answer_is_truncated(answer: Answer) -> None:
    assert failure_of(EngineServer({"/metrics": answer})).failure.cause is Cause.TRUNCATED


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(hang(b"SSH-2.0-OpenSSH_9.6\r\n"), id="another protocol that waits"),
        pytest.param(raw(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00"), id="HTTP/2"),
        pytest.param(raw(b"# HELP up no header at all\nup 1\n\n\n"), id="no status line"),
        pytest.param(hang(b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n"), id="a header without a colon"),
        pytest.param(hang(head(200, {"Content-Length": "-5"})), id="a negative length"),
        pytest.param(hang(head(200, {"Content-Length": "5", "content-length": "6"})), id="two lengths"),
        pytest.param(hang(head(200, {"Transfer-Encoding": "chunked"}) + b"zz\r\n"), id="a chunk size that is none"),
        pytest.param(hang(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000), id="an endless header"),
        pytest.param(reply(BODY, headers={"Content-Encoding": "br"}), id="an unknown encoding"),
        pytest.param(reply(BODY, headers={"Content-Encoding": "gzip"}), id="not gzip at all"),
        pytest.param(reply(BODY, headers={"Content-Encoding": "deflate"}), id="not deflate at all"),
        pytest.param(reply(gzip.compress(BODY)[:-9], headers={"Content-Encoding": "gzip"}), id="gzip cut off"),
        pytest.param(reply(gzip.compress(BODY) + b"more", headers={"Content-Encoding": "gzip"}), id="more than gzip"),
        pytest.param(
            reply(gzip.compress(BODY)[:-8] + bytes(8), headers={"Content-Encoding": "gzip"}), id="a wrong checksum"
        ),
    ],
)
def test_what_is_no_valid_http_is_a_protocol_failure(answer: Answer) -> None:
    assert failure_of(EngineServer({"/metrics": answer})).failure.cause is Cause.PROTOCOL


def test_a_failure_shows_no_query() -> None:
    server = EngineServer({"/metrics": raw(b"nonsense")})
    with pytest.raises(FetchError) as caught:
        fetch(server, "/metrics?key=hunter2")
    assert "hunter2" not in str(caught.value)


# Sizes and compression


def test_a_body_of_just_the_limit_is_taken() -> None:
    assert fetch(EngineServer({"/metrics": reply(BODY)}), max_bytes=len(BODY)).body == BODY


@pytest.mark.parametrize("chunk", [None, 1000])
def test_a_body_one_byte_over_the_limit_is_too_large(chunk: int | None) -> None:
    error = failure_of(EngineServer({"/metrics": reply(BODY, chunk=chunk)}), max_bytes=len(BODY) - 1)
    assert error.failure.cause is Cause.TOO_LARGE
    assert f"{len(BODY) - 1} bytes" in error.failure.message


def test_a_length_over_the_limit_is_refused_before_the_body_comes() -> None:
    server = EngineServer({"/metrics": hang(head(200, {"Content-Length": "1001"}))})
    assert failure_of(server, max_bytes=1000).failure.cause is Cause.TOO_LARGE


def peak_of(use: Callable[[], FetchError]) -> tuple[FetchError, int]:
    tracemalloc.start()
    try:
        return use(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_huge_body_is_cut_at_the_limit_and_not_held() -> None:
    poured: list[int] = []
    piece = b"10000\r\n" + bytes(65536) + b"\r\n"
    server = EngineServer({"/metrics": pour(head(200, {"Transfer-Encoding": "chunked"}), piece, 1600, poured)})
    error, peak = peak_of(lambda: failure_of(server, max_bytes=1_000_000))
    assert error.failure.cause is Cause.TOO_LARGE
    assert sum(poured) < 30_000_000  # the socket buffers of both ends took some more than the limit
    assert peak < 5_000_000


@pytest.mark.parametrize(("coding", "wbits"), [("gzip", 31), ("deflate", 15)])
def test_a_compression_bomb_costs_no_more_than_the_limit(coding: str, wbits: int) -> None:
    compressor = zlib.compressobj(wbits=wbits)
    bomb = b"".join([*(compressor.compress(bytes(1_000_000)) for _ in range(100)), compressor.flush()])
    server = EngineServer({"/metrics": reply(bomb, headers={"Content-Encoding": coding})})
    error, peak = peak_of(lambda: failure_of(server, max_bytes=1_000_000))
    assert error.failure.cause is Cause.TOO_LARGE
    assert peak < 5_000_000


@pytest.mark.parametrize(
    ("coding", "wbits"), [("gzip", 31), ("x-gzip", 31), ("GZIP", 31), ("deflate", 15), ("deflate", -15)]
)
@pytest.mark.parametrize("chunk", [None, 1, 700])
def test_compressed_bodies_are_decompressed_even_unasked(coding: str, wbits: int, chunk: int | None) -> None:
    compressor = zlib.compressobj(wbits=wbits)
    packed = compressor.compress(BODY) + compressor.flush()
    assert (
        fetch(EngineServer({"/metrics": reply(packed, chunk=chunk, headers={"Content-Encoding": coding})})).body == BODY
    )


def test_gzip_is_asked_for_where_it_is_configured() -> None:
    server = EngineServer({"/metrics": reply(gzip.compress(BODY), headers={"Content-Encoding": "gzip"})})
    assert fetch(server, gzip=True, max_bytes=len(BODY)).body == BODY
    assert server.requests[0].headers["accept-encoding"] == "gzip"


# Redirects


def redirect(location: str, status: int = 307) -> Answer:
    return reply(b"moved", status=status, headers={"Location": location})


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["/metrics/", "metrics/", "HTTP://127.0.0.1:{port}/metrics/#top"])
def test_a_redirect_within_the_origin_is_followed_on_the_same_connection(status: int, location: str) -> None:
    async def moved(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await redirect(location.format(port=server.port), status)(request, reader, writer)

    server = EngineServer({"/metrics": moved, "/metrics/": reply(BODY)})
    assert fetch(server).body == BODY
    assert [request.target for request in server.requests] == ["/metrics", "/metrics/"]
    assert server.connections == 1


@pytest.mark.parametrize(
    ("location", "status", "asked"),
    [
        ("/elsewhere", 301, ["/metrics", "/elsewhere", "/elsewhere"]),
        ("/elsewhere", 308, ["/metrics", "/elsewhere", "/elsewhere"]),
        ("/metrics/", 307, ["/metrics", "/metrics/", "/metrics/"]),
        ("/elsewhere", 307, ["/metrics", "/elsewhere", "/metrics", "/elsewhere"]),
    ],
)
def test_only_a_lasting_redirect_is_remembered(location: str, status: int, asked: list[str]) -> None:
    server = EngineServer({"/metrics": redirect(location, status), location: reply(BODY)})

    async def use(client: Client) -> None:
        for _ in range(2):
            assert (await client.get("/metrics", timeout=PATIENT)).body == BODY

    with_client(server, use)
    assert [request.target for request in server.requests] == asked


def test_a_remembered_redirect_is_forgotten_once_it_leads_nowhere() -> None:
    server = EngineServer({"/metrics": redirect("/old", 301), "/old": reply(BODY)})

    async def use(client: Client) -> None:
        await client.get("/metrics", timeout=PATIENT)
        del server.answers["/old"]
        server.answers["/metrics"] = reply(b"new")
        assert (await client.get("/metrics", timeout=PATIENT)).status == 404
        assert (await client.get("/metrics", timeout=PATIENT)).body == b"new"

    with_client(server, use)


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("http://127.0.0.1:1/metrics", "http://127.0.0.1:1/metrics"),
        ("https://127.0.0.1:{port}/metrics", "https://127.0.0.1:{port}/metrics"),
        ("//sso.example/login?state=hunter2", "http://sso.example/login"),
        ("http://user:hunter2@127.0.0.1:{port}/", "cannot be followed"),
        ("ftp://127.0.0.1/?hunter2", "ftp://127.0.0.1/"),
        ("http://[::1/", "cannot be followed"),
        ("/with blank", "cannot be followed"),
    ],
)
def test_a_redirect_elsewhere_is_named_and_not_followed(location: str, shown: str) -> None:
    async def moved(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await redirect(location.format(port=server.port))(request, reader, writer)

    server = EngineServer({"/metrics": moved})
    failure = failure_of(server).failure
    assert failure.cause is Cause.REDIRECT
    assert shown.format(port=server.port) in failure.message
    assert "hunter2" not in failure.message
    assert len(server.requests) == 1


def test_a_loop_of_redirects_ends() -> None:
    server = EngineServer({"/metrics": redirect("/b", 301), "/b": redirect("/metrics", 301)})
    assert failure_of(server).failure.cause is Cause.REDIRECT
    assert len(server.requests) == 4


@pytest.mark.parametrize(("status", "method"), [(301, "GET"), (302, "GET"), (303, "GET"), (307, "POST"), (308, "POST")])
def test_a_posted_body_goes_along_only_where_the_status_says_so(status: int, method: str) -> None:
    server = EngineServer({"/a": redirect("/b", status), "/b": reply(BODY)})

    async def use(client: Client) -> None:
        await client.get("/a", timeout=PATIENT, body=b"{}")

    with_client(server, use)
    assert server.requests[1].method == method
    assert server.requests[1].body == (b"{}" if method == "POST" else b"")


# Credentials


def test_a_token_is_read_anew_when_its_file_changes(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    server = EngineServer({"/metrics": reply(BODY)})

    async def use(client: Client) -> None:
        await client.get("/metrics", timeout=PATIENT)
        replacement = tmp_path / "next"
        replacement.write_text("secnd\n")
        replacement.replace(token)
        await client.get("/metrics", timeout=PATIENT)
        token.write_text("the third\r\n".replace(" ", "-"))
        await client.get("/metrics", timeout=PATIENT)
        assert "third" not in repr(client)

    with_client(server, use, credentials=Bearer(Secret(file=token)))
    sent = [request.headers["authorization"] for request in server.requests]
    assert sent == ["Bearer first", "Bearer secnd", "Bearer the-third"]


def test_a_token_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_TOKEN", "abc")
    server = EngineServer({"/metrics": reply(BODY)})
    fetch(server, credentials=Bearer(Secret(env="ENGINE_TOKEN")))
    assert server.requests[0].headers["authorization"] == "Bearer abc"


def test_basic_authentication_is_sent_in_utf8(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("pass wörd:\n", encoding="utf-8")
    server = EngineServer({"/metrics": reply(BODY)})
    fetch(server, credentials=Basic("Aladdin", Secret(file=password)))
    assert server.requests[0].headers["authorization"] == "Basic QWxhZGRpbjpwYXNzIHfDtnJkOg=="


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"hunter2\r\nX-Injected: 1", b"hunter2\rx", b"hunter2 x", b"hunter2\xff"]
)
def test_a_secret_that_is_none_is_named_by_its_file_alone(tmp_path: Path, content: bytes) -> None:
    token = tmp_path / "token"
    token.write_bytes(content)
    server = EngineServer({"/metrics": reply(BODY)})
    error = failure_of(server, credentials=Bearer(Secret(file=token)))
    assert error.failure.cause is Cause.CREDENTIALS
    assert str(token) in error.failure.message
    assert "hunter2" not in str(error) + repr(error) + repr(error.failure)
    assert server.requests == []


def test_a_password_of_two_lines_is_refused(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("hunter2\nhunter2\n")
    error = failure_of(EngineServer({}), credentials=Basic("me", Secret(file=password)))
    assert error.failure.cause is Cause.CREDENTIALS
    assert "hunter2" not in str(error)


def test_a_missing_secret_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENGINE_TOKEN", raising=False)
    for secret in (Secret(file=tmp_path / "none"), Secret(env="ENGINE_TOKEN")):
        error = failure_of(EngineServer({}), credentials=Bearer(secret))
        assert error.failure.cause is Cause.CREDENTIALS
        assert str(secret.file or secret.env) in error.failure.message


# Endpoints


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2@host:8000",
        "http://hunter2@host",
        "http://user:hun/ter2@host",
        "host:8000",
        "ftp://host",
        "http://",
        "http://:8000",
        "http://host:port",
        "http://host:0",
        "http://host:65536",
        "http://[::1",
        "http://[nonsense]",
        "http://host/metrics?token=hunter2",
        "http://host#top",
        "http://ho st",
        "http://host\r\nX-Injected: 1",
        "http://hôte",
    ],
)
def test_a_url_that_cannot_be_asked_is_refused_without_showing_secrets(url: str) -> None:
    with pytest.raises(ValueError, match="URL") as caught:
        Client(Endpoint(url=url))
    assert "hunter2" not in str(caught.value)
    assert "ter2" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"credentials": Bearer(Secret())},
        {"credentials": Bearer(Secret(file=Path("a"), env="B"))},
        {"credentials": Basic("a:b", Secret(env="B"))},
        {"credentials": Basic("a\r\nb", Secret(env="B"))},
        {"tls": Tls(key_file=Path("key.pem"))},
    ],
)
def test_an_endpoint_that_contradicts_itself_is_refused(options: Options) -> None:
    with pytest.raises(ValueError, match="http://host"):
        Client(Endpoint(url="http://host", **options))


@pytest.mark.parametrize("path", ["metrics", "/a b", "/a\r\nX: 1", "", "/é"])
def test_a_path_that_is_none_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        asyncio.run(Client(Endpoint(url="http://127.0.0.1:1")).get(path, timeout=PATIENT))


# TLS


class Certificates:
    """An authority and what it signed, as files."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self.ca_file = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(self.ca_file)
        self.client_file = folder / "client.pem"
        self.ca.issue_cert("client@example.org").private_key_and_cert_chain_pem.write_to_path(self.client_file)

    def server(
        self,
        *names: str,
        clients: bool = False,
        not_before: dt.datetime | None = None,
        not_after: dt.datetime | None = None,
    ) -> ssl.SSLContext:
        """A server's side for a certificate with these names (127.0.0.1 without any)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*names or ("127.0.0.1",), not_before=not_before, not_after=not_after).configure_cert(context)
        if clients:
            context.verify_mode = ssl.CERT_REQUIRED
            self.ca.configure_trust(context)
        return context


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def test_a_server_of_a_known_authority_is_trusted_and_its_connection_kept(certificates: Certificates) -> None:
    server = EngineServer({"/metrics": reply(BODY)}, tls=certificates.server())

    async def use(client: Client) -> None:
        for _ in range(3):
            assert (await client.get("/metrics", timeout=PATIENT)).body == BODY

    with_client(server, use, tls=Tls(ca_file=certificates.ca_file))
    assert server.connections == 1


def test_a_kept_tls_connection_that_the_server_closed_is_replaced(certificates: Certificates) -> None:
    answers = in_turn(reply(b"1"), raw(b""), raw(head(200, {"Content-Length": "1"}) + b"3"), reply(b"4"))
    server = EngineServer({"/metrics": answers}, tls=certificates.server())

    async def use(client: Client) -> None:
        for expected in (b"1", b"3", b"4"):
            assert (await client.get("/metrics", timeout=PATIENT)).body == expected

    with_client(server, use, tls=Tls(ca_file=certificates.ca_file))


def test_a_server_of_an_unknown_authority_is_not_trusted(certificates: Certificates) -> None:
    failure = failure_of(EngineServer({}, tls=certificates.server())).failure
    assert failure.cause is Cause.TLS
    assert "ca_file" in failure.message


def test_a_certificate_for_another_name_is_refused_unless_that_name_is_expected(certificates: Certificates) -> None:
    server = EngineServer({"/metrics": reply(BODY)}, tls=certificates.server("engine.example"))
    failure = failure_of(server, tls=Tls(ca_file=certificates.ca_file)).failure
    assert failure.cause is Cause.TLS
    assert "server_name" in failure.message
    assert fetch(server, tls=Tls(ca_file=certificates.ca_file, server_name="engine.example")).body == BODY


def test_an_expired_certificate_is_refused(certificates: Certificates) -> None:
    past = dt.datetime(2020, 1, 2, tzinfo=dt.UTC)
    context = certificates.server(not_before=past - dt.timedelta(days=1), not_after=past)
    failure = failure_of(EngineServer({}, tls=context), tls=Tls(ca_file=certificates.ca_file)).failure
    assert failure.cause is Cause.TLS
    assert "expired" in failure.message


def test_a_certificate_that_is_not_yet_valid_is_no_matter_of_its_authority(certificates: Certificates) -> None:
    begin = dt.datetime.now(dt.UTC) + dt.timedelta(days=2)
    context = certificates.server(not_before=begin, not_after=begin + dt.timedelta(days=1))
    failure = failure_of(EngineServer({}, tls=context), tls=Tls(ca_file=certificates.ca_file)).failure
    assert failure.cause is Cause.TLS
    assert failure.message.endswith("is not yet valid; compare the clocks of both hosts")


def test_verification_can_be_switched_off(certificates: Certificates) -> None:
    server = EngineServer({"/metrics": reply(BODY)}, tls=certificates.server("engine.example"))
    assert fetch(server, tls=Tls(insecure_skip_verify=True)).body == BODY


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_certificate_is_shown_where_one_is_configured(
    certificates: Certificates, version: ssl.TLSVersion
) -> None:
    context = certificates.server(clients=True)
    context.maximum_version = version
    server = EngineServer({"/metrics": reply(BODY)}, tls=context)
    tls = Tls(ca_file=certificates.ca_file, cert_file=certificates.client_file)
    assert fetch(server, tls=tls).body == BODY
    failure = failure_of(server, tls=Tls(ca_file=certificates.ca_file)).failure
    assert failure.cause is Cause.TLS
    assert "cert_file" in failure.message


def test_an_alert_that_asks_for_a_client_certificate_is_understood(certificates: Certificates) -> None:
    context = certificates.server(clients=True)

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as wrapped:
            with suppress(ssl.SSLError):
                wrapped.do_handshake()
            # Closed with the request unread, the connection would be reset and the alert might be lost.
            raw_end = wrapped.detach()
            with socket.socket(fileno=raw_end) as plain:
                plain.shutdown(socket.SHUT_WR)
                while plain.recv(4096):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        client = Client(
            Endpoint(url=f"https://127.0.0.1:{listener.getsockname()[1]}", tls=Tls(ca_file=certificates.ca_file))
        )
        with pytest.raises(
            FetchError, match=r"refused the TLS session \(.*CERTIFICATE_REQUIRED\).*cert_file"
        ) as caught:
            asyncio.run(client.get("/metrics", timeout=PATIENT))
        thread.join()
    assert caught.value.failure.cause is Cause.TLS


def test_plain_http_on_the_tls_port_is_told_to_use_http() -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
            client = Client(Endpoint(url=f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}"))
            with pytest.raises(FetchError, match="http://") as caught:
                await client.get("/metrics", timeout=PATIENT)
            assert caught.value.failure.cause is Cause.TLS

    asyncio.run(main())


def test_a_plain_request_to_a_tls_port_is_told_to_use_https(certificates: Certificates) -> None:
    async def main() -> None:
        async with EngineServer({}, tls=certificates.server()) as server:
            client = Client(Endpoint(url=server.url.replace("https", "http")))
            with pytest.raises(FetchError, match="https://"):
                await client.get("/metrics", timeout=PATIENT)

    asyncio.run(main())


def test_a_tls_alert_on_the_plain_port_is_told_to_use_https() -> None:
    server = EngineServer({"/metrics": raw(b"\x15\x03\x01\x00\x02\x02\x46")})
    failure = failure_of(server).failure
    assert failure.cause is Cause.TLS
    assert "https://" in failure.message


def test_a_handshake_that_the_server_breaks_off_is_a_tls_failure() -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(4096)
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
            client = Client(Endpoint(url=f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}"))
            with pytest.raises(FetchError, match="handshake") as caught:
                await client.get("/metrics", timeout=PATIENT)
            assert caught.value.failure.cause is Cause.TLS

    asyncio.run(main())


def test_a_new_authority_file_is_taken_without_a_restart(certificates: Certificates, tmp_path: Path) -> None:
    other = Certificates(tmp_path)
    ca_file = tmp_path / "current.pem"
    ca_file.write_bytes(certificates.ca_file.read_bytes())
    server = EngineServer({"/metrics": reply(BODY)}, tls=certificates.server())

    async def use(client: Client) -> None:
        await client.get("/metrics", timeout=PATIENT)
        other.ca.cert_pem.write_to_path(ca_file)
        os.utime(ca_file, (1, 1))
        with pytest.raises(FetchError) as caught:
            await client.get("/metrics", timeout=PATIENT)
        assert caught.value.failure.cause is Cause.TLS
        ca_file.write_bytes(certificates.ca_file.read_bytes())
        assert (await client.get("/metrics", timeout=PATIENT)).body == BODY

    with_client(server, use, tls=Tls(ca_file=ca_file))
    assert len(server.requests) == 2


def test_a_tls_file_that_cannot_be_used_is_named(certificates: Certificates, tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    for tls in (
        Tls(ca_file=tmp_path / "none.pem"),
        Tls(ca_file=empty),
        Tls(ca_file=certificates.ca_file, cert_file=empty),
        Tls(ca_file=certificates.ca_file, cert_file=certificates.client_file, key_file=empty),
        Tls(ca_file=certificates.ca_file, cert_file=certificates.ca_file),
    ):
        failure = failure_of(EngineServer({}, tls=certificates.server()), tls=tls).failure
        assert failure.cause is Cause.TLS
        assert any(f"file {path}:" in failure.message for path in (tls.ca_file, tls.cert_file) if path is not None)
