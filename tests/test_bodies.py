"""Large bodies on their way to clients that read slowly: how many bytes of them are in memory."""

from __future__ import annotations

import asyncio

import pytest

from bounded import run
from llm_headroom.net.bodies import LARGE, Bodies

BODY = b"a" * LARGE
SMALL = b"b" * (LARGE - 1)


class Sending:
    """Clients that do not read."""

    def __init__(self, most: int) -> None:
        self._bodies = Bodies(most)

    async def send(self, body: bytes, clients: int = 1) -> list[asyncio.Task[None]]:
        """So many clients are being sent a body."""

        async def stuck() -> None:
            with self._bodies.sending(body, asyncio.current_task()):
                await asyncio.Event().wait()

        tasks = [asyncio.create_task(stuck()) for _ in range(clients)]
        await asyncio.sleep(0)  # they begin
        await asyncio.sleep(0)  # and whoever is cut off ends
        return tasks


def cut(*tasks: list[asyncio.Task[None]]) -> list[int]:
    """How many of each lot were cut off; the others are ended."""
    ended = [sum(task.cancelled() for task in lot) for lot in tasks]
    for lot in tasks:
        for task in lot:
            task.cancel()
    return ended


def test_clients_of_one_body_share_it_and_the_oldest_body_gives_way() -> None:
    async def test() -> None:
        sending = Sending(2 * LARGE)
        lots = [await sending.send(BODY[:-1] + bytes([at]), 50) for at in range(2)]
        assert [sum(task.done() for task in lot) for lot in lots] == [0, 0]
        lots.append(await sending.send(BODY, 1))
        lots.append(await sending.send(BODY[:-1] + b"x", 1))
        assert cut(*lots) == [50, 50, 0, 0]

    run(test())


def test_one_body_is_sent_however_large_it_is() -> None:
    async def test() -> None:
        assert cut(await Sending(1).send(BODY, 3)) == [0]

    run(test())


def test_a_body_that_has_been_sent_counts_no_more() -> None:
    async def test() -> None:
        sending = Sending(2 * LARGE)
        first, second = await sending.send(BODY + b"1", 1), await sending.send(BODY[1:] + b"2", 1)
        assert cut(first) == [1]  # the two are more than allowed
        second[0].cancel()
        await asyncio.gather(*second, return_exceptions=True)
        assert cut(await sending.send(BODY[1:] + b"3", 1), await sending.send(BODY[1:] + b"4", 1)) == [0, 0]

    run(test())


@pytest.mark.parametrize("task", [True, False])
def test_small_bodies_and_those_of_nobody_do_not_count(*, task: bool) -> None:
    async def test() -> None:
        bodies = Bodies(1)
        sender = asyncio.create_task(asyncio.Event().wait()) if task else None
        other = asyncio.create_task(asyncio.Event().wait())
        body = SMALL if task else BODY
        with bodies.sending(body, sender), bodies.sending(bytes(bytearray(body)), other):
            await asyncio.sleep(0)
        ended = [each.cancelled() for each in (sender, other) if each is not None]
        for each in (sender, other):
            if each is not None:
                each.cancel()
        assert not any(ended)

    run(test())


def test_a_body_that_has_been_sent_is_let_go_of() -> None:
    gone: list[int] = []

    class Body(bytes):
        __slots__ = ()

        def __del__(self) -> None:
            gone.append(len(self))

    async def test() -> None:
        bodies = Bodies()
        with bodies.sending(Body(LARGE), asyncio.current_task()):
            assert gone == []
        assert gone == [LARGE]

    run(test())
