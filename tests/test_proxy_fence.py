"""Nothing that an engine or a client does takes the proxy down, and nothing that the proxy sees touches a byte."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

import bounded
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.objectives import Objectives
from llm_headroom.config.settings import Config, ProxySettings, Target
from llm_headroom.proxy import backlog, documents, framing, relay
from llm_headroom.proxy.gate import Gate
from llm_headroom.proxy.service import Proxies
from proxied import ASK, LAST, LINE, STREAM, Place, chunk, head, place, post, replaying

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
HUGE = b"9" * 400


def measured_alone(found: dict[str, float]) -> dict[str, float]:
    """What was measured, without how long somebody has been waiting."""
    return {key: value for key, value in found.items() if not key.startswith("proxy_")}


# Numbers and answers that cannot be read ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("path", "last"),
    [
        ("/api/chat", b'{"model":"m","message":{},"done":true,"total_duration":%b,"eval_count":3}\n' % HUGE),
        ("/api/chat", b'{"model":"m","message":{},"done":true,"eval_count":%b,"prompt_eval_count":1}\n' % HUGE),
        ("/v1/chat/completions", b'{"model":"m","usage":{"prompt_tokens":1,"completion_tokens":%b}}\n' % HUGE),
        ("/completion", b'{"stop":true,"timings":{"predicted_ms":%b,"prompt_ms":-1e400}}\n' % HUGE),
        ("/api/chat", b'{"model":"\\ud800x","message":{"content":"a"},"done":true}\n'),
    ],
)
def test_no_number_of_an_engine_cuts_its_stream(path: str, last: bytes) -> None:
    async def test() -> None:
        message = STREAM + chunk(LINE) + chunk(last) + chunk(LINE) + chunk(b"")
        async with place(replaying(message)) as here:
            reader, writer = await here.connect()
            for _ in range(3):
                writer.write(post(path))
                assert await reader.readexactly(len(message)) == message
            writer.close()
            assert not any(key.startswith("requests_running") for key in here.told())

    bounded.run(test())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokEXTRA",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_a_connection_goes_on_for_ever_after_an_answer_that_cannot_be_read(answer: bytes) -> None:
    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            reply = answer
            while True:
                await head(reader)
                await reader.readexactly(len(ASK))
                writer.write(reply)
                await writer.drain()
                reply = PLAIN

        async with place(serve) as here:
            reader, writer = await here.connect()
            writer.write(post())
            assert await reader.readexactly(len(answer)) == answer
            for _ in range(200):
                writer.write(post())
                assert await reader.readexactly(len(PLAIN)) == PLAIN
            # the first one's answer may have been whole; of what followed nothing was seen, so nothing is counted
            assert not any(key.startswith("requests_running") for key in here.told())
            assert sum(value for key, value in here.told().items() if key.startswith("requests_f")) <= 1
            writer.close()

    bounded.run(test())


# Upgrades -------------------------------------------------------------------------------------------------------------
UPGRADE = b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n"


def test_what_a_client_sends_before_the_101_arrives_after_the_request() -> None:
    async def test() -> None:
        early, more = b"EARLY-FRAME", bytes(range(256)) * 1024
        sent = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head(reader)
            await sent.wait()
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
            writer.write(await reader.readexactly(len(early + more)))
            assert await reader.read() == b"end"  # the client's half-close comes through, too
            writer.write(b"bye")
            await writer.drain()

        async with place(serve) as here:
            reader, writer = await here.connect()
            writer.write(UPGRADE + early)
            await writer.drain()
            writer.write(more)
            sent.set()
            assert b" 101 " in await head(reader)
            assert await reader.readexactly(len(early + more)) == early + more
            writer.write(b"end")
            writer.write_eof()
            assert await reader.read() == b"bye"
            writer.close()

    bounded.run(test())


def test_a_request_that_follows_a_refused_upgrade_is_a_request() -> None:
    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head(reader)
            writer.write(PLAIN)
            assert b"Host: 127.0.0.1" in await head(reader)
            await reader.readexactly(len(ASK))
            writer.write(STREAM + chunk(LINE) + chunk(LAST) + chunk(b""))
            await writer.drain()

        async with place(serve) as here:
            reader, writer = await here.connect()
            writer.write(UPGRADE + post().replace(b"proxy.example", b"localhost"))
            assert await reader.readexactly(len(PLAIN)) == PLAIN
            assert await head(reader) == STREAM
            await here.until("requests_finished_total{small:latest,stop}")
            writer.close()

    bounded.run(test())


# Host -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1:11435", True),
        ("[::1]:11435", True),
        ("192.0.2.7", True),
        ("localhost", True),
        ("LocalHost.:80", True),
        ("[::1]", True),
        (socket.gethostname().upper(), True),
        (socket.gethostname().partition(".")[0] + ":80", True),
        ("localhost:x", False),
        ("", False),
        ("evil.example", False),
        ("evil.example:11435", False),
        ("127.0.0.1.evil.example", False),
    ],
)
def test_an_engine_on_loopback_still_sees_a_foreign_name_that_a_browser_was_lured_to(host: str, *, own: bool) -> None:
    async def test() -> None:
        seen: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.set_result(await head(reader))
            writer.write(PLAIN)

        async with place(serve) as here:
            reader, writer = await here.connect()
            writer.write(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            await reader.readexactly(len(PLAIN))
            expected = f"127.0.0.1:{here.engine_port}" if own else host
            assert f"Host: {expected}\r\n".encode() in await seen
            writer.close()

    bounded.run(test())


@pytest.mark.parametrize(
    ("engine", "local"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("0.0.0.0", False),  # an address that reaches this host and is none of loopback
        ("127.1", False),  # no address as it is written, so a name as any other
    ],
)
def test_an_engine_elsewhere_sees_its_own_name_whatever_the_client_calls_the_proxy(engine: str, *, local: bool) -> None:
    async def test() -> None:
        seen: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.set_result(await head(reader))
            writer.write(PLAIN)

        async with place(serve, name=engine) as here:
            reader, writer = await here.connect()
            writer.write(b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n")
            await reader.readexactly(len(PLAIN))
            expected = "other.example" if local else f"{engine}:{here.engine_port}"
            assert f"Host: {expected}\r\n".encode() in await seen
            writer.close()

    bounded.run(test())


def test_without_a_host_in_its_address_a_proxy_listens_on_loopback_alone() -> None:
    async def test() -> None:
        target = Target(name="engine", endpoint=Endpoint(url="http://127.0.0.1:1"), engine="ollama")
        proxies = Proxies(Config(targets=(target,), proxies=(ProxySettings(listen=":0", target="engine"),)))
        await proxies.start()
        try:
            assert {address.rpartition(":")[0] for address in proxies.addresses} <= {"127.0.0.1", "[::1]"}
        finally:
            await proxies.close()

    bounded.run(test())


# Connections and heads ------------------------------------------------------------------------------------------------
def test_idle_clients_make_room_for_others_and_requests_under_way_do_not(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        answer = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head(reader)
            await reader.readexactly(len(ASK))
            writer.write(STREAM + chunk(LINE))
            await answer.wait()
            writer.write(chunk(LAST) + chunk(b""))
            await writer.drain()

        async with place(serve, connections=4) as here:
            busy = [await here.connect() for _ in range(2)]
            for reader, writer in busy:
                writer.write(post())
                await reader.readexactly(len(STREAM + chunk(LINE)))
            idle = [await here.connect() for _ in range(50)]
            for reader, _ in idle[:48]:
                assert await reader.read() == b""
            last_reader, last_writer = idle[-1]
            last_writer.write(post())
            assert await head(last_reader) == STREAM
            answer.set()
            for reader, _ in busy:
                await reader.readuntil(b"0\r\n\r\n")
            for _, writer in [*busy, *idle]:
                writer.close()

    bounded.run(test())
    assert [each.getMessage() for each in caplog.records].count("a proxy's connections are at their limit") == 1


class Visitor:
    """A client of a gate, and how it was asked to leave."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def retire(self) -> None:
        """Leave since it idles."""
        self.asked.append("idle")

    def head_too_late(self) -> None:
        """Leave since its head does not come."""
        self.asked.append("head")

    def close(self) -> None:
        """Leave since the proxy ends."""
        self.asked.append("end")


def test_who_makes_room_is_who_idles_for_longest_and_then_whose_head_is_the_oldest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate, visitors = Gate(8), [Visitor() for _ in range(12)]
    for visitor in visitors[:8]:
        assert gate.admits()
        gate.enter(visitor)
        gate.idle(visitor)
        gate.busy(visitor)
    gate.head_begins(visitors[2])
    gate.head_begins(visitors[1])
    gate.idle(visitors[4])
    gate.idle(visitors[3])
    for newcomer in visitors[8:11]:
        assert gate.admits()
        gate.enter(newcomer)
    assert [visitor.asked for visitor in visitors[:8]] == [[], [], ["head"], ["idle"], ["idle"], [], [], []]
    assert gate.admits(), "the other head"
    gate.enter(visitors[11])
    assert not gate.admits(), "all others have a request under way"

    for visitor in visitors[5:10]:
        gate.gone(visitor)
    assert gate.admits()
    for visitor in visitors[5:10]:
        gate.enter(visitor)
    assert not gate.admits()
    assert len(caplog.records) == 2, "said again once more than half of the places had been free"
    gate.close()
    assert [visitor.asked[-1:] for visitor in visitors] == [
        ["end"],
        ["head"],
        ["head"],
        ["idle"],
        ["idle"],
        *[["end"]] * 7,
    ]


def test_one_in_four_connections_may_be_in_the_middle_of_a_head() -> None:
    gate, visitors = Gate(8), [Visitor() for _ in range(4)]
    for visitor in visitors:
        gate.enter(visitor)
    for visitor in visitors[:2]:
        gate.head_begins(visitor)
    gate.head_came(visitors[0])
    gate.head_begins(visitors[2])
    assert [visitor.asked for visitor in visitors] == [[], [], [], []]
    gate.head_begins(visitors[3])
    assert [visitor.asked for visitor in visitors] == [[], ["head"], [], []]
    gate.idle(Visitor())
    assert Gate(1).admits()


def test_where_every_client_is_busy_one_more_is_turned_away() -> None:
    async def test() -> None:
        answer = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head(reader)
            writer.write(STREAM)
            await answer.wait()

        async with place(serve, connections=2) as here:
            busy = [await here.connect() for _ in range(2)]
            for reader, writer in busy:
                writer.write(post())
                await head(reader)
            reader, writer = await here.connect()
            assert await reader.read() == b""
            answer.set()
            for _, each in [*busy, (reader, writer)]:
                each.close()

    bounded.run(test())


def test_of_many_heads_that_never_end_the_oldest_ones_are_given_up() -> None:
    async def test() -> None:
        async with place(replaying(PLAIN), connections=40) as here:
            heads = [await here.connect() for _ in range(11)]
            for _, writer in heads:
                writer.write(b"POST / HTTP/1.1\r\nX: ")
                await writer.drain()
            assert b" 408 " in await heads[0][0].readuntil(b"\r\n\r\n")
            for _, writer in heads:
                writer.close()

    bounded.run(test())


# What an answer means -------------------------------------------------------------------------------------------------
def answered(status: int, document: object, *, kind: str = "application/json") -> bytes:
    body = json.dumps(document).encode() + b"\n"
    head_ = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head_.encode() + body


def event(document: object) -> bytes:
    body = b"data: " + json.dumps(document).encode() + b"\n\n"
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


LOADING = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
BUSY = {"error": {"code": 503, "message": "The queue is full", "type": "unavailable_error"}}
ABORTED = {"model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "abort"}]}


@pytest.mark.parametrize(
    ("path", "answer", "reason"),
    [
        ("/v1/chat/completions", answered(503, BUSY), "overloaded"),
        ("/v1/chat/completions", event(BUSY), "overloaded"),
        ("/v1/chat/completions", answered(503, LOADING), "loading"),
        ("/v1/chat/completions", event(LOADING), "loading"),
        ("/api/chat", answered(503, {"error": "server busy, please try again"}), "overloaded"),
        ("/v1/chat/completions", event({"error": {"code": 500, "message": "x"}}), "engine_error"),
        ("/v1/messages", event({"type": "error", "error": {"type": "overloaded_error"}}), "overloaded"),
        ("/v1/chat/completions", event(ABORTED), "engine_aborted"),
        ("/generate", event({"text": "", "meta_info": {"finish_reason": {"type": "abort"}}}), "engine_aborted"),
        (
            "/generate",
            event({"text": "", "meta_info": {"finish_reason": {"type": "abort", "status_code": 503}}}),
            "overloaded",
        ),
    ],
)
def test_an_end_without_a_whole_answer_is_a_failure_with_its_cause(path: str, answer: bytes, reason: str) -> None:
    async def test() -> None:
        async with place(replaying(answer)) as here:
            reader, writer = await here.connect()
            writer.write(post(path))
            assert await reader.readexactly(len(answer)) == answer
            found = here.told()
            failed = {key: value for key, value in found.items() if key.startswith("requests_failed_total")}
            assert [(key.rpartition(",")[2].strip("{}").rpartition("{")[2], failed[key]) for key in failed] == [
                (reason, 1)
            ]
            assert not any(key.startswith("requests_finished_total") for key in found)
            writer.close()

    bounded.run(test())


def test_availability_counts_failures_of_the_engine_and_the_proxys_own_502_among_them() -> None:
    async def test() -> None:
        async with place(replaying(PLAIN)) as here:
            reader, writer = await here.connect()
            writer.write(post())
            await reader.readexactly(len(PLAIN))
            writer.close()
            dead = Target(name="engine", endpoint=Endpoint(url="http://127.0.0.1:1"), engine="ollama")
            proxies = Proxies(Config(targets=(dead,), proxies=(ProxySettings(listen="127.0.0.1:0", target="engine"),)))
            await proxies.start()
            refused = Place(proxies, 1)
            try:
                for _ in range(3):
                    reader, writer = await refused.connect()
                    writer.write(post())
                    assert b" 502 " in await head(reader)
                    writer.close()
                assert refused.told()["http_responses_total{5xx}"] == 3
                assert refused.told()["slo_requests_total{availability}"] == 3
                assert "slo_requests_good_total{availability}" not in refused.told()
            finally:
                await proxies.close()
            assert here.told()["slo_requests_total{availability}"] == 1
            assert here.told()["slo_requests_good_total{availability}"] == 1
            assert here.told()["slo_objective_ratio{availability}"] == 0.95

    bounded.run(test())


# What engines cannot see ----------------------------------------------------------------------------------------------
async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An engine that gives a first piece where it is asked at /v1/, and then nothing until the client leaves."""
    if b"/v1/" in await head(reader):
        writer.write(STREAM + chunk(b'{"model":"m","choices":[{"delta":{"content":"a"}}]}\n'))
    await reader.read()
    writer.close()


def test_a_silent_engine_is_stalled_after_a_minute_and_its_requests_are_overdue() -> None:
    clock = [0.0]

    async def test() -> None:
        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        target = Target(name="a", endpoint=Endpoint(url=f"http://127.0.0.1:{port}"), engine="vllm")
        proxies = Proxies(
            Config(
                targets=(target,),
                proxies=(ProxySettings(listen="127.0.0.1:0", target="a"),),
                objectives=Objectives(request_duration=30.0),
            ),
            clock=lambda: asyncio.get_running_loop().time() + clock[0],
        )
        await proxies.start()
        (source,) = proxies.sources

        async def values() -> dict[str, float]:
            found = {}
            for series, value, _ in (await source.collect()).points:
                if isinstance(value, float):
                    found[series.metric.name + series.label("slo")] = value
            return found

        try:
            reader, writer = await asyncio.open_connection(*proxies.addresses[0].split(":"))
            writer.write(post("/v1/chat/completions", b'{"model":"m","stream":true}'))
            await head(reader)
            _, waiting = await asyncio.open_connection(*proxies.addresses[0].split(":"))
            waiting.write(post("/generate", b'{"stream":true}'))
            while (await values()).get("llm_requests_running", 0.0) < 2:  # noqa: ASYNC110 - as below
                await asyncio.sleep(0.005)
            early = await values()
            assert early["llm_engine_stalled"] == 0
            assert early["llm_proxy_requests_overduettft"] == 0
            clock[0] = 75.0
            late = await values()
            assert late["llm_engine_stalled"] == 1
            assert late["llm_proxy_silence_seconds"] >= 75
            assert late["llm_proxy_first_token_wait_seconds"] >= 75
            assert late["llm_proxy_requests_overduettft"] == 1
            assert late["llm_proxy_requests_overduerequest_duration"] == 2
            writer.close()
            waiting.close()
            while (await values())["llm_requests_running"]:  # noqa: ASYNC110 - nobody tells when something is measured
                await asyncio.sleep(0.005)
            assert (await values())["llm_engine_stalled"] == 0
        finally:
            await proxies.close()
            server.close()
            await server.wait_closed()

    bounded.run(test())


@pytest.mark.parametrize(
    ("limit", "least", "most"),
    [
        (relay.CONNECT_SECONDS, 5.0, 30.0),
        (relay.HEAD_SECONDS, 10.0, 60.0),
        (relay.REFUSED_SECONDS, 0.5, 5.0),
        (relay.MOST_BUFFERED, 16 * 1024, 1024 * 1024),
        (relay.MOST_PIPELINED, 8, 256),
        (backlog.MOST_PIECES * backlog.LARGE, 64 * 1024, 4 * 1024 * 1024),
        (framing.MOST_HEAD_BYTES, 16 * 1024, 256 * 1024),
        (documents.MOST_BYTES, 256 * 1024, 4 * 1024 * 1024),
    ],
)
def test_limits_are_of_an_order_that_honest_clients_never_meet(limit: float, least: float, most: float) -> None:
    assert least <= limit <= most
