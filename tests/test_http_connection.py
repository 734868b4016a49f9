"""One connection of the HTTP server, over a pair of sockets: what is read, what is answered, and its limits."""

from __future__ import annotations

import asyncio
import re
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from bounded import run
from llm_headroom.net import http_connection
from llm_headroom.net.bodies import Bodies
from llm_headroom.net.http_connection import Connection, Limits
from llm_headroom.net.http_messages import Request, Response

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from llm_headroom.net.http_messages import Handler

HEAD = b"GET / HTTP/1.1\r\nHost: h\r\n"
KB = 1024


async def echo(request: Request) -> Response:
    return Response(request.body or b"nothing")


@dataclass
class Talk:
    """A client that has said all that it says, and has closed its side; what it gets and what it was not read."""

    said: bytes
    handler: Handler = echo
    limits: Limits = field(default_factory=Limits)
    answer: bytes = b""
    unread: bytes = b""

    def __post_init__(self) -> None:
        self.connection: Connection | None = None

    @property
    def statuses(self) -> list[int]:
        """Of the answers."""
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", self.answer)]

    async def end(self) -> Talk:
        """The talk once both have ended it."""
        here, there = socket.socketpair()
        _, writer = await asyncio.open_connection(sock=here)
        other, other_writer = await asyncio.open_connection(sock=there)
        reader = asyncio.StreamReader()
        reader.feed_data(self.said)
        reader.feed_eof()
        self.connection = Connection(self.limits, self.handler, Bodies())
        getting = asyncio.create_task(other.read())
        await self.connection.converse(reader, writer)
        writer.close()
        self.answer = await getting
        self.unread = await reader.read()
        other_writer.close()
        return self


def talked(
    said: bytes,
    handler: Handler = echo,
    limits: Limits = Limits(),  # noqa: B008 - limits are a value
) -> Talk:
    """A whole talk."""
    talk = Talk(said, handler, limits)

    async def test() -> None:
        await talk.end()

    run(test())
    return talk


# What is read --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", {}),
        ("/a%20b?c=d%20e+f", "/a b", {"c": "d e f"}),
        ("/?a=1&a=2&b=", "/", {"a": "1", "b": ""}),
        ("/?", "/", {}),
        ("/a?b?c=d", "/a", {"b?c": "d"}),
        ("http://h/a/b?c=d", "/a/b", {"c": "d"}),
        ("http://h", "/", {}),
        ("*", "/", {}),
        ("/?" + "&".join(f"k{at}=1" for at in range(100)), "/", {f"k{at}": "1" for at in range(100)}),
    ],
)
def test_a_target_is_a_path_and_a_query(target: str, path: str, query: dict[str, str]) -> None:
    seen: list[Request] = []

    async def handler(request: Request) -> Response:
        seen.append(request)
        return Response(b"")

    talked(f"GET {target} HTTP/1.1\r\nHost: h\r\nA: 1\r\na: 2\r\n\r\n".encode(), handler)
    (request,) = seen
    assert (request.method, request.path, request.query) == ("GET", path, query)
    assert request.headers == {"host": "h", "a": "1, 2"}


def test_a_hundred_parameters_are_enough() -> None:
    query = "&".join(f"k{at}=1" for at in range(101))
    assert talked(f"GET /?{query} HTTP/1.1\r\nHost: h\r\n\r\n".encode()).statuses == [400]


@pytest.mark.parametrize(("more", "status"), [(0, 200), (1, 431)])
def test_headers_may_be_so_large_and_no_larger(more: int, status: int) -> None:
    value = b"v" * (100 - len("host" + "h") - 4 - len("a") - 4 + more)
    talk = talked(b"GET / HTTP/1.1\r\nHost: h\r\nA: " + value + b"\r\n\r\n", limits=Limits(head_bytes=100))
    assert talk.statuses == [status]
    assert talk.answer.endswith(b"\r\n\r\nThe request's headers are too large.\n") == bool(more)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"Content-Length: 5\r\n\r\nhello", 200),
        (b"Content-Length: 6\r\n\r\nhello!", 413),
        (b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", 200),
        (b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n4\r\nllo!\r\n0\r\n\r\n", 413),
    ],
)
@pytest.mark.parametrize("method", [b"POST", b"PUT", b"GET", b"DELETE"])
def test_a_body_may_be_so_large_and_no_larger(method: bytes, body: bytes, status: int) -> None:
    talk = talked(method + b" / HTTP/1.1\r\nHost: h\r\n" + body, limits=Limits(body_bytes=5))
    assert talk.statuses == [status]
    expected = b"hello" if method in (b"POST", b"PUT") else b"nothing"
    assert talk.answer.endswith(b"\r\n\r\n" + expected) == (status == 200)


@pytest.mark.parametrize("method", [b"GET", b"POST"])
@pytest.mark.parametrize(("chunks", "statuses"), [(512, [200]), (60_000, [413])])
def test_a_body_comes_in_so_many_parts_and_no_more(method: bytes, chunks: int, statuses: list[int]) -> None:
    """150 clients with a body in chunks of a byte took `/metrics` from everybody for a minute."""
    body = b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * chunks + b"0\r\n\r\n"
    assert talked(method + b" / HTTP/1.1\r\nHost: h\r\n" + body).statuses == statuses


def test_what_a_refused_client_still_sends_is_read_up_to_a_limit() -> None:
    head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9999999\r\n\r\n"
    for size in (0, 1, 5000, http_connection.LINGER_BYTES - 8 * KB):
        talk = talked(head + b"x" * size)
        assert (talk.statuses, talk.unread) == ([413], b"")
    assert 0 < len(talked(head + b"x" * (http_connection.LINGER_BYTES + 8 * KB)).unread) <= 8 * KB


@pytest.mark.parametrize(
    ("said", "statuses", "unread"),
    [
        (HEAD + b"\r\n" + HEAD + b"Connection: close\r\n\r\n", [200, 200], False),
        (HEAD + b"Connection: close\r\n\r\n" + b"x" * 9 * KB, [200], True),
        (HEAD + b"\r\n" + b"broken\r\n\r\n" + b"x" * 9 * KB, [200, 400], False),
        (HEAD + b"Content-Length: x\r\n\r\n", [400], False),
        (b"GET / HTTP/1.0\r\n\r\n", [200], False),
        (b"", [], False),
        (HEAD, [400], False),
    ],
)
def test_a_talk_ends_when_one_of_both_wants_it(said: bytes, statuses: list[int], *, unread: bool) -> None:
    talk = talked(said)
    assert (talk.statuses, bool(talk.unread)) == (statuses, unread)
    assert (b"Connection: close" in talk.answer) == bool(said)


def test_a_connection_that_ends_says_so_and_answers_no_other_request() -> None:
    async def handler(_: Request) -> Response:
        assert talk.connection is not None
        talk.connection.ending = True
        return Response(b"last")

    talk = Talk((HEAD + b"\r\n") * 2, handler)

    async def test() -> None:
        await talk.end()

    run(test())
    assert talk.statuses == [200]
    assert b"Connection: close\r\n" in talk.answer


# What is answered ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ((), b"X-Content-Type-Options: nosniff"),
        ((("x-content-type-options", "none"),), b"x-content-type-options: none"),
        ((("A", "b"),), b"A: b\r\nContent-Length: 4\r\nX-Content-Type-Options: nosniff"),
    ],
)
def test_an_answer_has_its_headers_and_those_of_the_server(
    headers: tuple[tuple[str, str], ...], expected: bytes
) -> None:
    async def handler(_: Request) -> Response:
        return Response(b"body", 418, "text/x", headers)

    answer = talked(HEAD + b"\r\n", handler).answer
    assert answer.startswith(b"HTTP/1.1 418 I'm a Teapot\r\nContent-Type: text/x\r\n")
    assert expected in answer
    assert answer.lower().count(b"x-content-type-options") == 1
    assert answer.endswith(b"\r\n\r\nbody")


@pytest.mark.parametrize("size", [0, 1, 64 * KB, 64 * KB + 1, 300 * KB])
def test_a_body_of_any_size_arrives_as_it_is(size: int) -> None:
    body = (bytes(range(251)) * (size // 251 + 1))[:size]

    async def handler(_: Request) -> Response:
        return Response(body)

    answer = talked(HEAD + b"\r\n", handler).answer
    assert b"Content-Length: %d\r\n" % size in answer
    assert answer.partition(b"\r\n\r\n")[2] == body


@pytest.mark.parametrize(
    ("method", "status", "length", "body"),
    [
        ("GET", 200, True, b"body"),
        ("HEAD", 200, True, b""),
        ("GET", 204, False, b""),
        ("GET", 304, False, b""),
        ("GET", 205, True, b"body"),
    ],
)
def test_a_body_is_left_out_where_http_has_none(method: str, status: int, body: bytes, *, length: bool) -> None:
    async def handler(_: Request) -> Response:
        return Response(b"body", status)

    answer = talked(f"{method} / HTTP/1.1\r\nHost: h\r\n\r\n".encode(), handler).answer
    assert (b"Content-Length: 4\r\n" in answer) == length
    assert answer.partition(b"\r\n\r\n")[2] == body


def test_while_a_request_is_answered_the_connection_waits_for_none() -> None:
    states: list[tuple[bool, bool, bool]] = []

    def noted() -> None:
        assert talk.connection is not None
        one = talk.connection
        states.append((one.waiting_since is None, one.streaming, one.stuck_since is None))

    async def parts() -> AsyncGenerator[bytes, None]:
        noted()
        yield b"one"
        noted()

    async def handler(request: Request) -> Response:
        noted()
        return Response(b"", stream=parts()) if request.path == "/stream" else Response(b"whole")

    talk = Talk(b"GET /stream HTTP/1.1\r\nHost: h\r\n\r\n" + HEAD + b"Connection: close\r\n\r\n", handler)

    async def test() -> None:
        await talk.end()

    run(test())
    answering, streaming = (True, False, True), (True, True, True)
    assert states == [answering, streaming, streaming, answering]


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what nobody says."""
    while not holds():  # noqa: ASYNC110 - the connection has no event for it
        await asyncio.sleep(0)


def test_a_stream_is_one_while_it_is_sent_and_a_client_is_stuck_until_it_reads() -> None:
    async def test() -> None:
        here, there = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=here)
        other, other_writer = await asyncio.open_connection(sock=there)
        began = asyncio.get_running_loop().time()
        go_on = asyncio.Event()

        async def parts() -> AsyncGenerator[bytes, None]:
            assert connection.streaming
            await go_on.wait()
            yield bytes(8 * KB * KB)

        async def handler(request: Request) -> Response:
            assert connection.waiting_since is None
            assert not connection.streaming
            return Response(b"", stream=parts()) if request.path == "/stream" else Response(b"whole")

        connection = Connection(Limits(), handler, Bodies())
        talking = asyncio.create_task(connection.converse(reader, writer))
        assert connection.waiting_since is not None
        assert connection.waiting_since >= began
        other_writer.write(b"GET /stream HTTP/1.1\r\nHost: h\r\n\r\n")
        await until(lambda: connection.streaming)
        assert connection.stuck_since is None
        go_on.set()
        await until(lambda: connection.stuck_since is not None and connection.stuck_since >= began)
        await other.readuntil(b"\r\n\r\n")
        assert len(await other.readexactly(len(b"800000\r\n") + 8 * KB * KB)) > 8 * KB * KB
        assert await other.readuntil(b"0\r\n\r\n") == b"\r\n0\r\n\r\n"
        await until(lambda: connection.waiting_since is not None)
        assert (connection.streaming, connection.stuck_since) == (False, None)
        other_writer.write(HEAD + b"Connection: close\r\n\r\n")
        assert (await other.readuntil(b"whole")).startswith(b"HTTP/1.1 200")
        await talking
        writer.close()
        other_writer.close()

    run(test())


@pytest.mark.parametrize(("path", "most"), [("/parts", 2 * KB), ("/whole", 64 * KB)])
def test_what_a_client_does_not_read_is_held_by_the_kernel_but_for_one_part(path: str, most: int) -> None:
    async def parts() -> AsyncGenerator[bytes, None]:
        for _ in range(4 * KB):
            yield bytes(KB)

    async def handler(_: Request) -> Response:
        return Response(b"", stream=parts()) if path == "/parts" else Response(bytes(4 * KB * KB))

    async def test() -> None:
        here, there = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=here)
        _, other_writer = await asyncio.open_connection(sock=there)
        connection = Connection(Limits(), handler, Bodies())
        talking = asyncio.create_task(connection.converse(reader, writer))
        other_writer.write(HEAD.replace(b"/", path.encode(), 1) + b"\r\n")
        await until(lambda: connection.stuck_since is not None or talking.done())
        held = writer.transport.get_write_buffer_size()
        writer.transport.abort()
        other_writer.transport.abort()
        talking.cancel()
        await asyncio.wait([talking])
        assert 0 < held <= most

    run(test())


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_stream_without_parts_ends_at_once_and_is_closed(method: str) -> None:
    closed: list[bool] = []

    class Nothing:
        def __aiter__(self) -> Nothing:
            assert method == "GET"
            return self

        async def __anext__(self) -> bytes:
            raise StopAsyncIteration

        async def aclose(self) -> None:
            closed.append(True)

    async def test() -> None:
        here, there = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=here)
        other, other_writer = await asyncio.open_connection(sock=there)

        async def handler(_: Request) -> Response:
            return Response(b"", stream=Nothing())

        connection = Connection(Limits(), handler, Bodies())
        talking = asyncio.create_task(connection.converse(reader, writer))
        other_writer.write(f"{method} / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
        await talking
        writer.close()
        assert (await other.read()).partition(b"\r\n\r\n")[2] == (b"0\r\n\r\n" if method == "GET" else b"")
        other_writer.close()

    run(test())
    assert closed == [True]


@pytest.mark.parametrize("size", [0, 300 * KB])
@pytest.mark.parametrize("stream", [False, True])
def test_nothing_is_sent_to_a_client_that_is_gone(size: int, *, stream: bool) -> None:
    async def parts() -> AsyncGenerator[bytes, None]:
        yield b"never sent"
        raise AssertionError("the client is gone")

    async def test() -> None:
        here, there = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=here)
        _, other_writer = await asyncio.open_connection(sock=there)

        async def handler(_: Request) -> Response:
            writer.transport.abort()
            return Response(b"", stream=parts()) if stream else Response(bytes(size))

        other_writer.write(HEAD + b"\r\n")
        with pytest.raises(ConnectionResetError):
            await Connection(Limits(), handler, Bodies()).converse(reader, writer)
        other_writer.close()

    run(test())


async def mirror(request: Request) -> Response:
    """What it was asked, as a whole or, below /stream, in parts."""
    said = f"{request.method} {request.path} {dict(request.query)} {dict(request.headers)}".encode() + request.body

    async def parts() -> AsyncGenerator[bytes, None]:
        yield said[:5]
        yield said[5:]

    if request.path.startswith("/stream"):
        return Response(b"", stream=parts())
    return Response(said, 404 if request.path == "/none" else 200, headers=(("Vary", "Accept"),))


ASKED = (
    HEAD + b"Accept: a\r\n\r\n",
    HEAD + b"Accept: b\r\n\r\n",
    HEAD.replace(b"GET", b"HEAD") + b"Accept: a\r\n\r\n",
    HEAD.replace(b"GET", b"POST") + b"Content-Length: 3\r\n\r\nabc",
    HEAD + b"Content-Length: 4\r\n\r\n\r\n\r\n",
    HEAD.replace(b"GET", b"POST") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    HEAD.replace(b"GET", b"HEAD") + b"Content-Length: 0\r\n\r\n",
    HEAD.replace(b"/", b"/stream", 1) + b"\r\n",
    HEAD.replace(b"/", b"/none", 1) + b"\r\n",
    b"GET / HTTP/1.1\nHost: h\n\nGET /none HTTP/1.1\r\nHost: h\r\n\r\n",
)


def test_a_request_that_comes_again_is_answered_as_it_was() -> None:
    """Whatever came between: each gets what it gets on a connection of its own."""
    order = [place for place in range(len(ASKED)) for _ in range(3)] + [
        0,
        1,
        0,
        2,
        0,
        3,
        0,
        4,
        2,
        2,
        6,
        0,
        0,
        6,
        0,
        7,
        8,
        9,
        0,
    ]

    async def test() -> None:
        here, there = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=here)
        other, other_writer = await asyncio.open_connection(sock=there)
        talking = asyncio.create_task(Connection(Limits(), mirror, Bodies()).converse(reader, writer))
        for place in order:
            alone = (await Talk(ASKED[place], mirror).end()).answer
            other_writer.write(ASKED[place])
            assert await other.readexactly(len(alone)) == alone, ASKED[place]
        other_writer.close()
        await talking
        writer.close()
        assert await other.read() == b""

    run(test())


def test_a_head_that_comes_again_may_have_another_body() -> None:
    async def test() -> None:
        here, there = socket.socketpair()
        _, writer = await asyncio.open_connection(sock=here)
        other, other_writer = await asyncio.open_connection(sock=there)
        reader = asyncio.StreamReader()
        talking = asyncio.create_task(Connection(Limits(), echo, Bodies()).converse(reader, writer))
        for body in (b"one", b"two", b"six"):
            reader.feed_data(HEAD.replace(b"GET", b"POST") + b"Content-Length: 3\r\n\r\n")
            await until(lambda: not reader._buffer)  # type: ignore[attr-defined]  # noqa: SLF001 - read on its own
            reader.feed_data(body)
            await other.readuntil(b"\r\n\r\n")
            assert await other.readexactly(3) == body
        reader.feed_eof()
        await talking
        writer.close()
        other_writer.close()

    run(test())


def test_a_request_that_comes_again_at_the_end_is_told_of_it() -> None:
    async def test() -> None:
        here, there = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=here)
        other, other_writer = await asyncio.open_connection(sock=there)
        asked: list[Request] = []

        async def handler(request: Request) -> Response:
            asked.append(request)
            connection.ending = len(asked) == 4
            return Response(b"", 204)

        connection = Connection(Limits(), handler, Bodies())
        talking = asyncio.create_task(connection.converse(reader, writer))
        for _ in range(4):
            other_writer.write(HEAD + b"\r\n")
            answer = await other.readuntil(b"\r\n\r\n")
            assert (b"Connection: close" in answer) == connection.ending
        await talking
        writer.close()
        other_writer.close()
        assert asked[1] is asked[2], "not parsed again"

    run(test())
