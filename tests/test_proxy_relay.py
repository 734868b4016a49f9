"""One client's relay while its engine is being connected to, cannot be had, or has an answer under way."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import socket
import struct
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

import bounded
from llm_headroom.proxy import relay
from llm_headroom.proxy.circle import Circle
from llm_headroom.proxy.gate import Gate
from llm_headroom.proxy.measures import Measures
from llm_headroom.proxy.observer import Observer
from llm_headroom.proxy.relay import MOST_PIPELINED, TURN, Client
from measured_values import told
from proxied import ASK, LAST, LINE, STREAM, chunk, head, place, post

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from llm_headroom.proxy.framing import RequestHead

EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"


class Engine:
    """An engine that is connected to when a test says so, and what happens then."""

    authority = "engine:1"

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.circle = Circle()
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()
        self.given_up = asyncio.Event()
        self.port = 0

    def addressed(self, head: RequestHead) -> bytes:
        """As it came."""
        return head.raw

    async def connect(self, made: Callable[[], asyncio.BaseProtocol]) -> asyncio.Transport:
        """A connection, or the error."""
        self.asked.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.given_up.set()
            raise
        if self.error is not None:
            raise self.error
        transport, _ = await asyncio.get_running_loop().create_connection(made, "127.0.0.1", self.port)
        return transport


class Door:
    """Where a relay's clients connect, and what was measured."""

    def __init__(self, port: int, measures: Measures) -> None:
        self.port = port
        self.measures = measures

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A client's connection."""
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def until(self, key: str) -> None:
        """Waits until something has been measured once."""
        while told(self.measures).get(key) != 1:  # noqa: ASYNC110 - nobody says when
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def relaying(
    engine: Engine, serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any] | None = None
) -> AsyncIterator[Door]:
    """Relays to an engine that serves so."""
    measures, gate = Measures(limit=10), Gate(100)

    def client() -> Client:
        made = Client(engine, measures, gate)
        gate.enter(made)
        return made

    serving: list[asyncio.Task[object] | None] = []

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert serve is not None
        serving.append(asyncio.current_task())
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):  # the relay has left
            await serve(reader, writer)
        writer.close()

    servers = []
    if serve is not None:
        servers.append(await asyncio.start_server(served, "127.0.0.1", 0))
        engine.port = servers[0].sockets[0].getsockname()[1]
    servers.append(await asyncio.get_running_loop().create_server(client, "127.0.0.1", 0))
    try:
        yield Door(servers[-1].sockets[0].getsockname()[1], measures)
    finally:
        gate.close()
        await asyncio.gather(*filter(None, serving))
        for server in servers:
            server.close()
            await server.wait_closed()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TimeoutError(), "no answer"),
        (OSError(errno.ECONNREFUSED, "it refuses"), "it refuses"),
        (OSError("only text"), "only text"),
        (ConnectionError(), "ConnectionError"),
    ],
)
@pytest.mark.parametrize(("path", "shape"), [("/api/chat", str), ("/v1/messages", dict), ("/v1", str)])
def test_why_an_engine_cannot_be_had_is_said_as_its_api_says_errors(
    error: OSError, reason: str, path: str, shape: type
) -> None:
    async def test() -> None:
        engine = Engine(error)
        engine.go_on.set()
        async with relaying(engine) as door:
            reader, writer = await door.connect()
            writer.write(post(path))
            first = await head(reader)
            assert first.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
            assert b"Content-Type: application/json\r\n" in first
            assert b"Connection: close\r\n" in first
            body = await reader.read()
            assert b"Content-Length: %d\r\n" % len(body) in first
            found: Any = json.loads(body)["error"]
            said = f"llm-headroom proxy: cannot connect to engine:1: {reason}"
            assert type(found) is shape
            assert found == (said if shape is str else {"message": said, "type": "proxy_error", "code": 502})
            writer.close()
            if path != "/v1":
                await door.until("requests_failed_total{upstream_unreachable}")
                assert told(door.measures)["http_responses_total{5xx}"] == 1

    bounded.run(test())


def test_an_engine_is_no_longer_connected_to_for_a_client_that_has_left() -> None:
    async def test() -> None:
        engine = Engine()
        async with relaying(engine) as door:
            _, writer = await door.connect()
            writer.write(post())
            await engine.asked.wait()
            # an end of what it says is no end of what it wants to hear; a reset is
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            await engine.given_up.wait()
            await door.until("requests_failed_total{aborted}")

    bounded.run(test())


def test_a_client_that_has_said_all_before_the_engine_is_there_gets_its_answer() -> None:
    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert (await reader.read()).endswith(ASK)  # to the end of what the client says
            writer.write(EMPTY)

        engine = Engine()
        async with relaying(engine, serve) as door:
            reader, writer = await door.connect()
            writer.write(post())
            writer.write_eof()
            await engine.asked.wait()
            for _ in range(100):
                await asyncio.sleep(0)  # the relay sees the end
            engine.go_on.set()
            assert await reader.read() == EMPTY
            writer.close()

    bounded.run(test())


def test_a_client_is_not_read_from_while_its_engine_is_not_connected() -> None:
    async def test() -> None:
        size = 64 * 2**20
        async with relaying(Engine()) as door:
            _, writer = await door.connect()
            writer.write(f"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode())
            sent = 0
            while sent < size and writer.transport.get_write_buffer_size() < 2**20:
                writer.write(bytes(2**20))
                sent += 2**20
                for _ in range(20):
                    await asyncio.sleep(0)
            writer.transport.abort()
        assert sent < size, "what fits into the sockets' buffers, and little more"

    bounded.run(test())


async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An engine that answers each request in a few bytes, until its client has left."""
    while True:
        await head(reader)
        await reader.readexactly(len(ASK))
        writer.write(EMPTY)


def test_what_is_no_request_ends_a_connection_that_has_had_answers_without_another_one() -> None:
    async def test() -> None:
        engine = Engine()
        engine.go_on.set()
        async with relaying(engine, answering) as door:
            reader, writer = await door.connect()
            writer.write(post())
            assert await head(reader) == EMPTY
            writer.write(b"what?\r\n\r\n")
            assert await reader.read() == b""
            writer.close()

    bounded.run(test())


@pytest.mark.parametrize("asks", [0, 1])
def test_a_client_that_says_no_more_is_let_go_once_nothing_is_under_way(asks: int) -> None:
    async def test() -> None:
        engine = Engine()
        engine.go_on.set()
        async with relaying(engine, answering) as door:
            reader, writer = await door.connect()
            for _ in range(asks):
                writer.write(post())
                assert await head(reader) == EMPTY
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()

    bounded.run(test())


def test_a_client_is_let_go_when_its_engine_resets_the_connection() -> None:
    async def test() -> None:
        engine, answered = Engine(), asyncio.Event()
        engine.go_on.set()

        async def resetting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head(reader)
            await reader.readexactly(len(ASK))
            writer.write(EMPTY)
            await answered.wait()
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

        async with relaying(engine, resetting) as door:
            reader, writer = await door.connect()
            writer.write(post())
            assert await head(reader) == EMPTY
            answered.set()
            assert await reader.read() == b""
            writer.close()

    bounded.run(test())


def test_a_client_with_many_requests_under_way_is_not_read_from() -> None:
    async def test() -> None:
        begun = asyncio.Semaphore(0)
        body = bytes(2**18)
        large = f"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

        async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            while lines := await head(reader):  # it never answers
                await reader.readexactly(len(body) if b"/x" in lines else len(ASK))
                begun.release()

        engine = Engine()
        engine.go_on.set()
        async with relaying(engine, serve) as door:
            _, writer = await door.connect()
            for _ in range(MOST_PIPELINED):
                writer.write(post())
                await begun.acquire()
            sent = 0
            while sent < 200 and writer.transport.get_write_buffer_size() < 2**20:
                writer.write(large)
                sent += 1
                for _ in range(20):
                    await asyncio.sleep(0)
            assert sent < 200, "what fits into the sockets' buffers, and little more"
            writer.transport.abort()

    bounded.run(test())


def test_a_head_is_not_too_late_while_it_is_the_proxy_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "HEAD_SECONDS", 0.0)

    async def test() -> None:
        begun, gate, get = asyncio.Semaphore(0), asyncio.Event(), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for _ in range(MOST_PIPELINED):
                await head(reader)
                begun.release()
            await gate.wait()
            writer.write(EMPTY * MOST_PIPELINED)
            await head(reader)
            writer.write(EMPTY)

        engine = Engine()
        engine.go_on.set()
        async with relaying(engine, serve) as door:
            reader, writer = await door.connect()
            writer.write(get * MOST_PIPELINED + get[:9])
            for _ in range(MOST_PIPELINED):
                await begun.acquire()
            monkeypatch.undo()
            for _ in range(20):  # what is due by now comes to pass
                await asyncio.sleep(0)
            gate.set()
            writer.write(get[9:])
            wanted = EMPTY * (MOST_PIPELINED + 1)
            assert await reader.readexactly(len(wanted)) == wanted
            writer.close()

    bounded.run(test())


@pytest.mark.parametrize("pours", ["client", "engine"])
def test_whoever_pours_leaves_others_a_turn_after_each_piece(pours: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a byte take what parses them 0.1 s for each 256 KiB, and libuv would read 32 times as much at once."""
    flood = chunk(b"x") * 300_000 + chunk(b"")
    read: Counter[int] = Counter()

    async def test() -> None:
        turns, ended = 0, asyncio.Event()

        def turn() -> None:
            nonlocal turns
            turns += 1
            if not ended.is_set():
                asyncio.get_running_loop().call_soon(turn)

        def counting(method: Callable[..., None]) -> Callable[..., None]:
            def counted(self: object, data: bytes, *more: float) -> None:
                read[turns] += len(data) >= TURN
                method(self, data, *more)

            return counted

        spied, name = (Client, "data_received") if pours == "client" else (Observer, "answer")
        monkeypatch.setattr(spied, name, counting(getattr(spied, name)))

        async def whole(reader: asyncio.StreamReader) -> None:
            got = b""
            while not got.endswith(chunk(b"")):
                got = got[-8:] + await reader.read(2**20)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await whole(reader)
            writer.write(STREAM + (flood if pours == "engine" else chunk(b"")))

        engine = Engine()
        engine.go_on.set()
        async with relaying(engine, serve) as door:
            reader, writer = await door.connect()
            asked = b"POST /api/chat HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
            turn()
            writer.write(asked + (flood if pours == "client" else chunk(b"")))
            await writer.drain()
            await whole(reader)
            ended.set()
            writer.close()

    bounded.run(test())
    assert sum(read.values()) > 3
    assert max(read.values()) == 1


def test_requests_under_way_when_the_proxy_ends_have_not_failed_by_the_engine() -> None:
    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head(reader)
            writer.write(STREAM + chunk(b'{"message":{"content":"a"}}\n'))
            await reader.read()

        async with place(serve) as here:
            reader, writer = await here.connect()
            writer.write(post())
            await reader.readuntil(b"}}\n")
            await here.proxies.close()
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await reader.readexactly(9)
            found = here.told()
            assert found["requests_failed_total{proxy_stopped}"] == 1
            assert "slo_requests_total{availability}" not in found
            writer.close()

    bounded.run(test())


@pytest.mark.parametrize("who", ["client", "engine"])
def test_a_relay_that_has_ended_is_let_go_of_without_the_garbage_collector(who: str) -> None:
    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head(reader)
            writer.write(STREAM + chunk(LINE) + chunk(LAST) + b"0\r\n\r\n")
            if who == "client":
                await reader.read()
            writer.close()

        async with place(serve) as here:
            reader, writer = await here.connect()
            writer.write(post())
            await reader.readuntil(b"0\r\n\r\n")
            gone = asyncio.Event()
            weakref.finalize(next(each for each in gc.get_objects() if isinstance(each, Client)), gone.set)
            if who == "client":
                writer.close()
            await reader.read()
            await here.until("requests_finished_total{small:latest,stop}")
            await gone.wait()
            writer.close()

    gc.collect()
    gc.disable()
    try:
        bounded.run(test())
    finally:
        gc.enable()
