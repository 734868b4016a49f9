"""Calls that block, each in a thread of its own; and work that takes long, in a few threads for all."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
_WORKERS: Final = ThreadPoolExecutor(2, thread_name_prefix="heavy")
"""Two: the interpreter lets one compute at a time, and the second keeps a long piece from holding up all others."""


def in_thread(work: Callable[[], T], name: str) -> asyncio.Future[T]:
    """Run a blocking call in a daemon thread: one that never returns must not keep the process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # T may include None

    def run() -> None:
        try:
            result, error = work(), None
        except BaseException as raised:  # noqa: BLE001 - handed to whoever awaits the future
            result, error = None, raised
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


class Heavy:
    """Work of one owner that would hold up the event loop, one piece at a time: it may share state with the next one.

    The workers are shared by all owners, so that many targets with large bodies neither start many threads nor hold
    much in memory at once.
    """

    def __init__(self) -> None:
        self._under_way: asyncio.Future[Any] | None = None

    async def do(self, work: Callable[[], T], deadline: float) -> T:
        """The result of some work by a deadline in seconds of the monotonic clock, which is asyncio's.

        Work that is late goes on, since no thread can be ended; the owner's next piece waits for it.

        Raises:
            TimeoutError: it is not done in time.
        """
        async with asyncio.timeout_at(deadline):
            if self._under_way is not None:
                await asyncio.wait([self._under_way])
            future = asyncio.get_running_loop().run_in_executor(_WORKERS, work)
            future.add_done_callback(_retrieved)
            self._under_way = future
            return await asyncio.shield(future)


def _retrieved(future: asyncio.Future[Any]) -> None:
    """Takes note of an error that nobody waits for any more."""
    if not future.cancelled():
        future.exception()
