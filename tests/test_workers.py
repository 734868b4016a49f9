"""Threads for calls that block: so many at once, shared where the call is the same, and in nobody's way at the end."""

from __future__ import annotations

import asyncio
import errno
import gc
import subprocess
import sys
import threading
from concurrent.futures import wait

import pytest

from llm_headroom.net.workers import MOST_WAITING, Heavy, Workers
from no_threads import no_threads


def test_so_many_calls_run_at_once_and_the_others_wait_for_their_turn() -> None:
    workers = Workers("test", 2)
    gate, running = threading.Event(), threading.Semaphore(0)

    def call(number: int) -> int:
        running.release()
        assert gate.wait(60)
        return number

    futures = [workers.submit(call, number) for number in range(5)]
    for _ in range(2):
        assert running.acquire(timeout=60)
    assert not running.acquire(blocking=False)
    gate.set()
    assert [future.result(60) for future in futures] == [0, 1, 2, 3, 4]


def test_threads_that_begin_late_are_not_more_than_there_may_be() -> None:
    workers, gate, ran = Workers("test", 2), threading.Event(), list[int]()

    def call() -> None:
        ran.append(threading.get_ident())
        assert gate.wait(60)

    before = sys.getswitchinterval()
    sys.setswitchinterval(60.0)  # no thread begins while calls are asked for
    try:
        futures = [workers.submit(call) for _ in range(8)]
    finally:
        sys.setswitchinterval(before)
    while len(ran) < 2:
        threading.Event().wait(0.001)
    threading.Event().wait(0.05)
    gate.set()
    wait(futures, 60)
    assert len(set(ran)) <= 2


def test_the_same_call_is_made_once_for_all_who_ask_while_it_runs() -> None:
    workers = Workers("test", 4, shared=True)
    gate, calls = threading.Event(), []

    def look_up(name: str) -> str:
        calls.append(name)
        assert gate.wait(60)
        return name.upper()

    futures = [workers.submit(look_up, name) for name in ("a", "a", "b", "a")]
    futures[1].cancel()
    gate.set()
    wait([futures[0], futures[2], futures[3]], 20)
    assert [futures[index].result() for index in (0, 2, 3)] == ["A", "B", "A"]
    assert sorted(calls) == ["a", "b"]


def test_what_a_call_raises_is_for_whoever_waits_for_it() -> None:
    workers = Workers("test", 1)
    with pytest.raises(ZeroDivisionError):
        workers.submit(divmod, 1, 0).result(20)
    assert workers.submit(divmod, 7, 2).result(20) == (3, 1)


def test_calls_beyond_those_that_may_wait_are_refused() -> None:
    workers = Workers("test", 1)
    begun, gate = threading.Event(), threading.Event()

    def first() -> bool:
        begun.set()
        return gate.wait(60)

    workers.submit(first)
    assert begun.wait(60)
    futures = [workers.submit(int, 1) for _ in range(MOST_WAITING)]
    with pytest.raises(OSError, match=r"too many calls wait \(test\)") as raised:
        workers.submit(int, 1)
    assert raised.value.errno == errno.EAGAIN
    gate.set()
    assert futures[-1].result(20) == 1
    assert workers.submit(int, 2).result(20) == 2


@pytest.mark.parametrize(("shared", "calls"), [(False, 4), (True, 3)])
def test_a_call_is_the_same_if_all_that_it_is_made_with_is(*, shared: bool, calls: int) -> None:
    workers = Workers("test", 4, shared=shared)
    gate, made = threading.Event(), list[tuple[int, int]]()

    def call(one: int, *, other: int) -> tuple[int, int]:
        made.append((one, other))
        assert gate.wait(60)
        return one, other

    asked = [(1, 1), (1, 2), (2, 1), (1, 1)]
    futures = [workers.submit(call, one, other=other) for one, other in asked]
    gate.set()
    assert [future.result(60) for future in futures] == asked
    assert len(made) == calls
    assert workers.submit(call, 1, other=1).result(60) == (1, 1)
    assert len(made) == calls + 1, "it is over, and so it is made again"


def test_a_call_that_never_returns_does_not_keep_the_process() -> None:
    program = (
        "import asyncio, threading\n"
        "from llm_headroom.net.workers import Workers\n"
        "async def main():\n"
        "    loop = asyncio.get_running_loop()\n"
        "    loop.set_default_executor(Workers('names', 1))\n"
        "    loop.run_in_executor(None, threading.Event().wait)\n"
        "asyncio.run(main())\n"
        "print('ended')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=90)
    assert done.stdout == "ended\n"


def test_work_that_is_late_goes_on_and_the_next_piece_of_its_owner_waits_for_it() -> None:
    gate, order = threading.Event(), list[str]()

    def late() -> None:
        assert gate.wait(60)
        order.append("late")

    async def worked() -> None:
        heavy, other, loop = Heavy(), Heavy(), asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            await heavy.do(late, loop.time())
        assert heavy.busy
        second = asyncio.create_task(heavy.do(lambda: order.append("next"), loop.time() + 20.0))
        await other.do(gate.set, loop.time() + 20.0)
        await second

    asyncio.run(worked())

    assert order == ["late", "next"]


def test_an_owner_is_busy_while_a_piece_of_its_own_is_under_way() -> None:
    async def worked() -> None:
        heavy, other, loop, gate = Heavy(), Heavy(), asyncio.get_running_loop(), threading.Event()
        assert not heavy.busy
        work = asyncio.create_task(heavy.do(lambda: gate.wait(60), loop.time() + 60.0))
        await asyncio.sleep(0)
        assert (heavy.busy, other.busy) == (True, False)
        gate.set()
        assert await work
        assert not heavy.busy

    asyncio.run(worked())


def test_two_pieces_of_heavy_work_go_on_at_once_and_no_third() -> None:
    async def worked() -> None:
        loop, gate = asyncio.get_running_loop(), threading.Event()
        running = threading.Semaphore(0)

        def work() -> None:
            running.release()
            assert gate.wait(60)

        pieces = [asyncio.create_task(Heavy().do(work, loop.time() + 60.0)) for _ in range(3)]
        for _ in range(2):
            assert await asyncio.to_thread(running.acquire, timeout=60)
        assert not running.acquire(blocking=False)
        gate.set()
        await asyncio.gather(*pieces)

    asyncio.run(worked())


def test_an_error_of_work_that_was_given_up_is_nobody_s(caplog: pytest.LogCaptureFixture) -> None:
    async def worked() -> None:
        heavy, loop, gate = Heavy(), asyncio.get_running_loop(), threading.Event()

        def broken() -> None:
            assert gate.wait(60)
            raise LookupError

        with pytest.raises(TimeoutError):
            await heavy.do(broken, loop.time())
        gate.set()
        while heavy.busy:  # noqa: ASYNC110 - nobody says when
            await asyncio.sleep(0.001)
        del heavy
        gc.collect()

    asyncio.run(worked())
    assert caplog.records == []


def test_an_error_of_heavy_work_is_its_owners() -> None:
    async def worked() -> None:
        heavy, loop = Heavy(), asyncio.get_running_loop()
        with pytest.raises(ZeroDivisionError):
            await heavy.do(lambda: 1 // 0, loop.time() + 20.0)
        assert await heavy.do(lambda: 1, loop.time() + 20.0) == 1

    asyncio.run(worked())


def test_a_call_that_no_thread_can_make_is_refused_at_once_and_the_next_one_is_made() -> None:
    workers = Workers("test", 2)
    with no_threads(), pytest.raises(OSError, match=r"no thread can be started \(test\)"):
        workers.submit(int, 1)
    assert workers.submit(int, 2).result(20) == 2


def test_a_call_waits_for_the_threads_that_there_are_where_no_other_can_be_started() -> None:
    workers = Workers("test", 2)
    started, gate = threading.Event(), threading.Event()

    def first() -> bool:
        started.set()
        return gate.wait(60)

    waiting = workers.submit(first)
    assert started.wait(60)
    with no_threads():
        second = workers.submit(int, 2)
    gate.set()
    assert (waiting.result(20), second.result(20)) == (True, 2)
