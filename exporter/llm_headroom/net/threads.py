"""Calls that block, each in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class NoThreadError(OSError):
    """The system gives no thread, which may be over a moment later."""

    strerror: str

    def __init__(self, wanted: str) -> None:
        """`wanted` is what the thread was for."""
        reason = f"no thread can be started ({wanted}): a limit is reached (ulimit -u, pids.max of the control group)"
        super().__init__(errno.EAGAIN, reason)


def in_thread(work: Callable[[], T], name: str) -> asyncio.Future[T]:
    """Run a blocking call in a daemon thread: one that never returns must not prevent the process from ending.

    Its result is a NoThreadError where there is no thread to be had.
    """
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

    try:
        threading.Thread(target=run, name=name, daemon=True).start()
    except (RuntimeError, MemoryError):
        future.set_exception(NoThreadError(name))
    return future
