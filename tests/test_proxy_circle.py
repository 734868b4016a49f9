"""Proxies whose engines are each other, as through two processes: a request ends; all others go on as they came."""

from __future__ import annotations

import asyncio
import itertools
import json
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

import bounded
from free_port import free_port
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Config, ProxySettings, Target
from llm_headroom.proxy.service import Proxies
from proxied import place, post

if TYPE_CHECKING:
    from collections.abc import Sequence

FEW = 24  # clients at once, half of whom may wait before a request is marked
WAITING = FEW // 2
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
HERE = "127.0.0.1"


def proxies(port: int, engine: int, connections: int) -> Proxies:
    """One proxy, as in a process of its own."""
    target = Target(name="next", endpoint=Endpoint(url=f"http://{HERE}:{engine}"), engine="ollama")
    door = ProxySettings(listen=f"{HERE}:{port}", target="next")
    return Proxies(Config(targets=(target,), proxies=(door,)), connections=connections)


async def in_a_row(stack: AsyncExitStack, ports: Sequence[int], connections: int) -> None:
    """Proxies at all of these ports but the last, each of which has the next port for its engine."""
    for port, engine in itertools.pairwise(ports):
        one = proxies(port, engine, connections)
        await one.start()
        stack.push_async_callback(one.close)


async def answer_of(port: int, request: bytes) -> bytes:
    """All that a client gets."""
    reader, writer = await asyncio.open_connection(HERE, port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize("request_", [post("/v1/chat/completions"), b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"])
@pytest.mark.parametrize("connections", [200, 12])
@pytest.mark.parametrize("number", [2, 3])
def test_a_request_in_a_circle_of_proxies_is_refused_with_the_reason(
    number: int, connections: int, request_: bytes
) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            ports = [stack.enter_context(free_port()) for _ in range(number)]
            await in_a_row(stack, [*ports, ports[0]], connections)
            for _ in range(2):  # the second one finds nothing that the first has left
                answer = await answer_of(ports[0], request_)

                assert answer.startswith(b"HTTP/1.1 502 ")
                said = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
                assert "it leads back to a proxy of llm-headroom" in said

    bounded.run(test())


def test_a_request_is_marked_only_where_many_wait_and_each_is_answered() -> None:
    async def test() -> None:
        came: list[bytes] = []
        go = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            came.append(await reader.readuntil(b"\r\n\r\n"))
            if len(came) == WAITING + 2:
                go.set()
            await go.wait()
            writer.write(ANSWER)
            writer.close()

        # two in a row, of which each counts its own
        async with AsyncExitStack() as stack:
            door = await stack.enter_async_context(place(serve, connections=FEW))
            first = stack.enter_context(free_port())
            await in_a_row(stack, [first, door.port], FEW)
            request = f"GET /v1/models HTTP/1.1\r\nHost: {HERE}:{door.engine_port}\r\n\r\n".encode()
            answers = await asyncio.gather(*(answer_of(first, request) for _ in range(WAITING + 2)))

            assert answers == [ANSWER] * len(answers)
            marked = [each for each in came if each != request]
            assert len(marked) == 2
            for each in marked:
                extra = each.removeprefix(request.removesuffix(b"\r\n")).removesuffix(b"\r\n").decode()
                assert [line.partition("llm-headroom-")[0] for line in extra.splitlines()] == ["Via: 1.1 "] * 2
            # nobody waits any longer
            came.clear()
            assert await answer_of(first, request) == ANSWER
            assert came == [request]

    bounded.run(test())


def test_who_leaves_waits_no_longer() -> None:
    async def test() -> None:
        came: asyncio.Queue[bytes] = asyncio.Queue()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            came.put_nowait(await reader.readuntil(b"\r\n\r\n"))
            await reader.read()
            writer.close()

        async with place(serve, connections=FEW) as door:
            request = f"GET / HTTP/1.1\r\nHost: {HERE}:{door.engine_port}\r\n\r\n".encode()
            for _ in range(WAITING + 2):
                _, writer = await door.connect()
                writer.write(request)
                assert await came.get() == request
                writer.close()
                await writer.wait_closed()

    bounded.run(test())
