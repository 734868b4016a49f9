"""The proxy's byte path over real sockets: what the engine sees is what the client sends, and the other way round."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest
import trustme

import bounded
from llm_headroom import schema
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Config, ProxySettings, Target
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.poll.engine import EngineSource
from llm_headroom.proxy.service import Proxies
from proxied import ASK, LAST, LINE, STREAM, Place, chunk, head, place, post, replaying
from scripted_server import EngineServer, reply
from stream_captures import ANSWERS

if TYPE_CHECKING:
    from pathlib import Path


# Bytes ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", sorted(ANSWERS))
def test_a_captured_answer_comes_out_as_it_went_in(name: str) -> None:
    async def test() -> None:
        message = ANSWERS[name].message(61)
        async with place(replaying(message)) as here:
            reader, writer = await here.connect()
            writer.write(post(ANSWERS[name].path))
            assert await reader.readexactly(len(message)) == message
            writer.close()

    bounded.run(test())


def test_a_request_goes_on_as_it_came_but_for_its_host() -> None:
    async def test() -> None:
        sent = (
            b"POST /api/blobs/sha256:1?x=%20y HTTP/1.1\r\nUser-Agent: a  b\r\nhOST:  LocalHost:1 \r\n"
            b"Authorization: Bearer k\r\nX-Odd:\xe9\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        body = b'5;ext="a"\r\nhello\r\n3\r\nyou\r\n0\r\nTrailer: t\r\n\r\n'
        seen: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            first = await head(reader)
            seen.set_result(first + await reader.readexactly(len(body)))
            writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")

        async with place(serve) as here:
            reader, writer = await here.connect()
            for byte in sent + body:
                writer.write(bytes([byte]))
                await writer.drain()
            assert b"201" in await head(reader)
            host = f"Host: 127.0.0.1:{here.engine_port}".encode()
            assert await seen == sent.replace(b"hOST:  LocalHost:1 ", host) + body
            writer.close()

    bounded.run(test())


def test_each_piece_of_a_stream_is_there_before_the_next_one_is_made() -> None:
    async def test() -> None:
        got = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head(reader)
            await reader.readexactly(len(ASK))
            writer.write(STREAM)
            for _ in range(5):
                writer.write(chunk(LINE))
                await got.wait()  # never, if anything were held back
                got.clear()
            writer.write(chunk(LAST) + chunk(b""))
            await writer.drain()

        async with place(serve) as here:
            reader, writer = await here.connect()
            writer.write(post())
            assert await head(reader) == STREAM
            for _ in range(5):
                assert await reader.readexactly(len(chunk(LINE))) == chunk(LINE)
                got.set()
            assert await reader.read() == chunk(LAST) + chunk(b"")
            found = here.told()
            assert found["inter_token_latency_seconds{small:latest}"] == 4
            assert found["requests_finished_total{small:latest,stop}"] == 1
            writer.close()

    bounded.run(test())


def test_connections_are_kept_and_pipelined_requests_answered_in_their_order() -> None:
    async def test() -> None:
        names = ["ollama/chat_stream.ndjson", "ollama/queue_full_503.json", "ollama/v1_chat_stream_usage.sse"]
        connections = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            for name in names:
                assert ANSWERS[name].path.encode() in await head(reader)
                await reader.readexactly(len(ASK))
                writer.write(ANSWERS[name].message())
            await reader.read()

        async with place(serve) as here:
            reader, writer = await here.connect()
            writer.write(b"".join(post(ANSWERS[name].path) for name in names))
            expected = b"".join(ANSWERS[name].message() for name in names)
            assert await reader.readexactly(len(expected)) == expected
            assert connections == 1
            found = here.told()
            assert found["requests_finished_total{small:latest,length}"] == 2
            assert found["requests_failed_total{overloaded}"] == 1
            writer.close()

    bounded.run(test())


def test_hundreds_of_pipelined_requests_are_relayed() -> None:
    async def test() -> None:
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        async with place(replaying(answer)) as here:
            reader, writer = await here.connect()
            for _ in range(1000):
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                await asyncio.sleep(0)
            assert await reader.readexactly(1000 * len(answer)) == answer * 1000
            writer.close()

    bounded.run(test())


@pytest.mark.parametrize(
    ("request_", "answer", "end"),
    [
        (b"HEAD /api/tags HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", False),
        (post(), b"HTTP/1.1 204 No Content\r\n\r\n", False),
        (b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\nuntil the end", True),
        (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nGrpc-Status: 0\r\n\r\n",
            False,
        ),
    ],
    ids=["HEAD", "204", "304", "HTTP/1.0", "trailers"],
)
def test_answers_end_where_http_says(request_: bytes, answer: bytes, *, end: bool) -> None:
    async def test() -> None:
        second = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head(reader)
            if request_.startswith(b"POST"):
                await reader.readexactly(len(ASK))
            writer.write(answer)
            if not end:
                assert b"/next" in await head(reader)
                writer.write(second)
                await reader.read()

        async with place(serve) as here:
            reader, writer = await here.connect()
            writer.write(request_)
            assert await reader.readexactly(len(answer)) == answer
            if end:
                assert await reader.read() == b""
            else:
                writer.write(b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n")
                assert await reader.readexactly(len(second)) == second
            writer.close()

    bounded.run(test())


def test_a_client_that_waits_for_100_continue_gets_the_engines() -> None:
    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert b"Expect: 100-continue" in await head(reader)
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await reader.readexactly(len(ASK))
            writer.write(ANSWERS["ollama/chat_nonstream.json"].message())
            await reader.read()

        async with place(serve) as here:
            reader, writer = await here.connect()
            writer.write(post(extra="Expect: 100-continue\r\n")[: -len(ASK)])
            assert await head(reader) == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(ASK)
            assert b"200" in await head(reader)
            await here.until("requests_finished_total{small:latest,length}")
            writer.close()

    bounded.run(test())


def test_an_upgraded_connection_is_a_tunnel_both_ways() -> None:
    async def test() -> None:
        switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert b"Upgrade: websocket" in await head(reader)
            writer.write(switch + b"\x81\x01a")
            assert await reader.readexactly(7) == b"\x00GET / "
            writer.write(b"\xff\n\n\r\n\r\n")
            assert await reader.read() == b""  # half-closed
            writer.write(b"bye")

        async with place(serve) as here:
            reader, writer = await here.connect()
            writer.write(b"GET /v1/realtime HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            assert await reader.readexactly(len(switch) + 3) == switch + b"\x81\x01a"
            writer.write(b"\x00GET / ")
            assert await reader.readexactly(7) == b"\xff\n\n\r\n\r\n"
            writer.write_eof()
            assert await reader.read() == b"bye"
            writer.close()

    bounded.run(test())


# Ends ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
def test_the_engine_sees_that_the_client_has_left(*, reset: bool) -> None:
    async def test() -> None:
        left = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head(reader)
            await reader.readexactly(len(ASK))
            writer.write(STREAM + chunk(LINE))
            try:
                assert await reader.read() == b""
            finally:
                left.set()

        async with place(serve) as here:
            reader, writer = await here.connect()
            writer.write(post())
            await reader.readexactly(len(STREAM + chunk(LINE)))
            if reset:
                linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
            else:
                writer.close()
            await left.wait()
            await here.until("requests_failed_total{small:latest,aborted}")
            assert "requests_running{}" not in here.told()

    bounded.run(test())


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.0 200 OK\r\n\r\npart", b"HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\npart"],
    ids=["until the end", "unreadable"],
)
def test_an_answer_that_only_its_end_ends_is_not_taken_for_whole_where_the_engine_breaks_off(answer: bytes) -> None:
    async def test() -> None:
        arrived = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head(reader)
            writer.write(answer)
            await arrived.wait()
            linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()

        async with place(serve) as here:
            reader, writer = await here.connect()
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await reader.readexactly(len(answer)) == answer
            arrived.set()
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()

    bounded.run(test())


def test_the_engine_sees_that_a_queued_client_has_left_before_any_answer() -> None:
    async def test() -> None:
        asked, left = asyncio.Event(), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
            await head(reader)
            await reader.readexactly(len(ASK))
            asked.set()
            assert await reader.read() == b""
            left.set()

        async with place(serve) as here:
            _, writer = await here.connect()
            writer.write(post())
            await asked.wait()
            await here.until("requests_running{}")
            writer.close()
            await left.wait()
            await here.until("requests_failed_total{aborted}")

    bounded.run(test())


def test_a_half_closed_client_still_gets_its_answer() -> None:
    async def test() -> None:
        message = ANSWERS["ollama/chat_stream.ndjson"].message()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head(reader)
            assert await reader.read() == ASK  # to its end: the engine sees the half-closed connection
            writer.write(message)

        async with place(serve) as here:
            reader, writer = await here.connect()
            writer.write(post())
            writer.write_eof()
            assert await reader.read() == message
            await here.until("requests_finished_total{small:latest,length}")
            writer.close()

    bounded.run(test())


def test_a_client_that_has_its_answer_can_leave_whatever_the_engine_does() -> None:
    async def test() -> None:
        left = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head(reader)
            await reader.readexactly(len(ASK))
            writer.write(STREAM + chunk(LINE) + chunk(LAST) + chunk(b""))
            await left.wait()  # it keeps its own side open

        async with place(serve) as here:
            reader, writer = await here.connect()
            writer.write(post())
            await reader.readuntil(chunk(b""))
            writer.write_eof()
            await here.until("requests_finished_total{small:latest,stop}")
            assert await reader.read() == b""
            left.set()
            writer.close()

    bounded.run(test())


def test_an_engine_that_dies_within_a_stream_ends_the_clients_too() -> None:
    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head(reader)
            await reader.readexactly(len(ASK))
            writer.write(STREAM + chunk(LINE) + b"ff\r\n{")

        async with place(serve) as here:
            reader, writer = await here.connect()
            writer.write(post())
            assert await reader.read() == STREAM + chunk(LINE) + b"ff\r\n{"
            await here.until("requests_failed_total{small:latest,upstream_closed}")
            writer.close()

    bounded.run(test())


def test_a_client_that_leaves_after_the_last_event_has_been_answered() -> None:
    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head(reader)
            await reader.readexactly(len(ASK))
            writer.write(STREAM + chunk(LINE) + chunk(LAST))
            await reader.read()

        async with place(serve) as here:
            reader, writer = await here.connect()
            writer.write(post())
            await reader.readuntil(chunk(LAST))
            writer.close()
            await here.until("requests_finished_total{small:latest,stop}")

    bounded.run(test())


def test_an_engine_may_be_known_by_a_name_that_has_several_addresses() -> None:
    async def test() -> None:
        async with place(replaying(b"HTTP/1.1 204 No Content\r\n\r\n"), name="localhost") as here:
            reader, writer = await here.connect()
            writer.write(post())
            assert await head(reader) == b"HTTP/1.1 204 No Content\r\n\r\n"
            writer.close()

    bounded.run(test())


@pytest.mark.parametrize(("path", "shape"), [("/api/chat", "text"), ("/v1/chat/completions", "object")])
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_an_engine_that_refuses_is_a_502_that_says_so(path: str, shape: str, name: str) -> None:
    async def test() -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            url = f"http://{name}:{closed.getsockname()[1]}"
            target = Target(name="engine", endpoint=Endpoint(url=url), engine="ollama")
            door = ProxySettings(listen="127.0.0.1:0", target="engine")
            proxies = Proxies(Config(targets=(target,), proxies=(door,)))
            await proxies.start()
            here = Place(proxies, 0)
            reader, writer = await here.connect()
            writer.write(post(path, b"x" * 3_000_000))  # more than any buffer takes
            first = await head(reader)
            answer: Any = json.loads(await reader.read())
            writer.close()
            await proxies.close()

        assert first.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        error = answer["error"] if shape == "text" else answer["error"]["message"]
        assert error.startswith(f"llm-headroom proxy: cannot connect to {url.removeprefix('http://')}: ")
        found = here.told()
        assert (found["requests_failed_total{upstream_unreachable}"], found["http_responses_total{5xx}"]) == (1, 1)

    bounded.run(test())


def test_an_engine_that_does_not_answer_is_a_502_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_headroom.proxy.relay.CONNECT_SECONDS", 0.1)

    async def test() -> None:
        with socket.socket() as full, ExitStack() as before:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            for _ in range(3):  # as many as it takes at all
                waiting = before.enter_context(socket.socket())
                waiting.setblocking(False)  # noqa: FBT003 - the method takes it by position alone
                waiting.connect_ex(full.getsockname())
            url = f"http://127.0.0.1:{full.getsockname()[1]}"
            target = Target(name="engine", endpoint=Endpoint(url=url), engine="ollama")
            door = ProxySettings(listen="127.0.0.1:0", target="engine")
            proxies = Proxies(Config(targets=(target,), proxies=(door,)))
            await proxies.start()
            here = Place(proxies, 0)
            reader, writer = await here.connect()
            writer.write(post())
            assert (await head(reader)).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
            assert json.loads(await reader.read())["error"].endswith(": no answer")
            await here.until("requests_failed_total{upstream_unreachable}")
            writer.close()
            await proxies.close()

    bounded.run(test())


@pytest.mark.parametrize(
    "garbage",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 9\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nA: b\r\n Content-Length: 4\r\n\r\n1234",
        b"POST / HTTP/1.1\r\nA: b\rContent-Length: 4\r\n\r\n1234",
        b"POST / HTTP/1.1\r\n: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"\x16\x03\x01\x00\xa5\r\n\r\n",
        b"G" * 300_000,
    ],
)
def test_what_is_no_request_is_refused(garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "llm_headroom")

    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
            assert await reader.read() == b""

        async with place(serve) as here:
            reader, writer = await here.connect()
            writer.write(garbage)
            assert (await head(reader)).startswith(b"HTTP/1.1 400 Bad Request\r\n")
            assert "not a request that can be relayed" in json.loads(await reader.read())["error"]
            writer.close()

    bounded.run(test())
    (refused,) = [vars(each) for each in caplog.records if each.getMessage() == "request not relayed"]
    assert refused["reason"].startswith("not a request that can be relayed: ")


def test_an_answer_that_is_no_http_is_relayed_all_the_same() -> None:
    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head(reader)
            writer.write(b"\x00\x01 what?\r\n\r\nmore")

        async with place(serve) as here:
            reader, writer = await here.connect()
            writer.write(post())
            assert await reader.read() == b"\x00\x01 what?\r\n\r\nmore"
            writer.close()

    bounded.run(test())


# Pressure ------------------------------------------------------------------------------------------------------------
def test_an_engine_is_not_read_from_while_its_client_does_not_read() -> None:
    async def test() -> None:
        piece, written = chunk(b'{"model":"small","response":"' + b"x" * 65_000 + b'"}\n'), 0
        stopped = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal written
            await head(reader)
            await reader.readexactly(len(ASK))
            writer.write(STREAM)
            while written < 2000:
                writer.write(piece)
                try:
                    await asyncio.wait_for(writer.drain(), 1.0 if written > 20 else None)
                except TimeoutError:
                    break
                written += 1
            stopped.set()
            await writer.drain()
            writer.write(chunk(b""))

        async with place(serve) as here:
            reader, writer = await here.connect()
            writer.write(post("/api/generate"))
            await stopped.wait()
            # what fits into the sockets' buffers, not the 130 MB that the engine would have liked to send
            assert written < 1000
            received = 0
            while data := await reader.read(2**20):
                received += len(data)
                if data.endswith(b"0\r\n\r\n"):
                    break
            assert received == len(STREAM) + (written + 1) * len(piece) + len(chunk(b""))
            writer.close()

    bounded.run(test())


def test_a_client_is_not_read_from_while_the_engine_does_not_read() -> None:
    async def test() -> None:
        go_on, size = asyncio.Event(), 64 * 2**20

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head(reader)
            await go_on.wait()
            left = size
            while left:
                left -= len(await reader.read(2**20))
            writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
            await reader.read()

        async with place(serve) as here:
            reader, writer = await here.connect()
            writer.write(f"POST /api/blobs/x HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode())
            sent = 0
            while sent < size:
                writer.write(bytes(2**20))
                sent += 2**20
                try:
                    await asyncio.wait_for(writer.drain(), None if go_on.is_set() else 1.0)
                except TimeoutError:
                    assert sent < size
                    go_on.set()
                    await writer.drain()
            assert go_on.is_set()
            assert b"201" in await head(reader)
            writer.close()

    bounded.run(test())


def test_hundreds_of_streams_at_once_are_measured_each() -> None:
    async def test() -> None:
        message = ANSWERS["ollama/chat_stream.ndjson"].message()
        streams, gate = 200, asyncio.Event()  # of four descriptors each, of 1024

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head(reader)
            await reader.readexactly(len(ASK))
            await gate.wait()
            for start in range(0, len(message), 500):
                writer.write(message[start : start + 500])
                await writer.drain()
                await asyncio.sleep(0)
            await reader.read()

        async def client(here: Place) -> bool:
            reader, writer = await here.connect()
            writer.write(post())
            received = await reader.readexactly(len(message))
            writer.close()
            return received == message

        async with place(serve) as here:
            clients = [asyncio.create_task(client(here)) for _ in range(streams)]
            await here.until("requests_running{}", streams)
            gate.set()
            assert all(await asyncio.gather(*clients))
            found = here.told()
            assert found["time_to_first_token_seconds{small:latest}"] == streams
            assert found["inter_token_latency_seconds{small:latest}"] == 23 * streams
            assert found["generation_tokens_total{small:latest}"] == 24 * streams
            assert "requests_running{}" not in found

    bounded.run(test())


# TLS towards the engine ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_an_engine_may_speak_tls(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    import ssl as tls_library  # noqa: PLC0415 - one test needs it

    async def test() -> None:
        authority = trustme.CA()
        context = tls_library.SSLContext(tls_library.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        file = tmp_path / "ca.pem"
        authority.cert_pem.write_to_path(file)
        message = ANSWERS["ollama/chat_stream.ndjson"].message()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head(reader)
            writer.write(message)
            await writer.drain()
            writer.close()

        async with place(serve, tls=context, ca=file, name=name) as here:
            reader, writer = await here.connect()
            writer.write(post())
            assert await reader.read() == message  # to the end: it closes, which is nothing to log
            writer.close()

    bounded.run(test())
    assert [each.getMessage() for each in caplog.records if each.levelname != "INFO"] == []


def test_a_tls_file_that_cannot_be_used_is_a_502_that_names_it(tmp_path: Path) -> None:
    async def test() -> None:
        file = tmp_path / "ca.pem"
        file.write_text("nothing")
        async with place(replaying(b""), ca=file) as here:
            reader, writer = await here.connect()
            writer.write(post())
            answer = await reader.read()
            writer.close()
        assert answer.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert f"cannot use file {file}".encode() in answer

    bounded.run(test())


# Beside what is polled -----------------------------------------------------------------------------------------------
def test_what_was_measured_is_told_while_the_engine_is_down_too() -> None:
    async def test() -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{closed.getsockname()[1]}"
            target = Target(name="engine", endpoint=Endpoint(url=url), engine="ollama")
            config = Config(targets=(target,), proxies=(ProxySettings(listen="127.0.0.1:0", target="engine"),))
            measures = Proxies(config).joined["engine"]
            measures.count(schema.GENERATION_TOKENS, measures.label("m"), by=3)
            source = EngineSource(target, BUILT_IN, config, measures)
            snapshot = await source.collect()
            await source.close()

        assert not snapshot.health.up
        (point,) = source.retained
        assert (point.series.label("model"), point.series.label("target"), point.value) == ("m:latest", "engine", 3.0)

    bounded.run(test())


def test_a_metric_that_the_engine_tells_itself_is_not_mixed_with_what_is_measured() -> None:
    async def test() -> None:
        own = b'# TYPE ollama_prompt_tokens_total counter\nollama_prompt_tokens_total{model="m"} 7\n'
        answers = {
            "/api/ps": b'{"models": []}',
            "/api/tags": b'{"models": []}',
            "/api/version": b'{"version": "1.0"}',
            "/metrics": own,
        }
        async with EngineServer({path: reply(body) for path, body in answers.items()}) as server:
            target = Target(name="engine", endpoint=Endpoint(url=server.url), engine="ollama")
            config = Config(targets=(target,), proxies=(ProxySettings(listen="127.0.0.1:0", target="engine"),))
            measures = Proxies(config).joined["engine"]
            measures.count(schema.PROMPT_TOKENS, "", by=1)
            measures.count(schema.GENERATION_TOKENS, "", by=2)
            source = EngineSource(target, BUILT_IN, config, measures)
            points = (await source.collect()).points
            await source.close()

        told_of = {
            metric: [point.value for point in points if point.series.metric is metric]
            for metric in (schema.PROMPT_TOKENS, schema.GENERATION_TOKENS)
        }
        assert told_of == {schema.PROMPT_TOKENS: [7.0], schema.GENERATION_TOKENS: [2.0]}

    bounded.run(test())


@pytest.mark.parametrize("turns", range(6))
def test_a_client_that_comes_while_the_proxy_ends_is_cut_too(turns: int) -> None:
    async def test() -> None:
        target = Target(name="engine", endpoint=Endpoint(url="http://127.0.0.1:9"), engine="ollama")
        proxies = Proxies(Config(targets=(target,), proxies=(ProxySettings(listen="127.0.0.1:0", target="engine"),)))
        await proxies.start()
        with socket.create_connection(("127.0.0.1", Place(proxies, 0).port)) as client:
            client.setblocking(False)  # noqa: FBT003 - the method takes it by position alone
            for _ in range(turns):
                await asyncio.sleep(0)
            await proxies.close()
            with suppress(ConnectionResetError):
                assert await asyncio.get_running_loop().sock_recv(client, 1) == b""

    bounded.run(test())
