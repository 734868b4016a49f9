"""Virtual time: whoever sleeps is woken as soon as nobody has anything to do.

An hour of exporters over engines then takes the minutes of CPU that it costs. Sockets are real, on loopback, where what
is sent can be read at once. Work in threads is done in place, since no thread may go on while time jumps.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from llm_headroom.net import threads

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
EPOCH: Final = 1_767_225_600.0
"""Unix time at second 0: 2026-01-01 00:00, on the edge of a block of Prometheus."""
REAL: Final = time.monotonic
"""Of how long all of it takes."""


class _Now:
    """The second that it is."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def unix(self) -> float:
        return EPOCH + self.seconds


_NOW: Final = _Now()


def install() -> None:
    """Replace this process' clocks, and threads by work in place."""
    time.monotonic = _NOW.monotonic
    time.time = _NOW.unix
    threads.in_thread = lambda work, _name: done(work)  # type: ignore[assignment]  # before anybody imports it


class _Selector(selectors.EpollSelector):
    """Waits by moving time."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if found or timeout == 0:
            return found
        if timeout is None:
            return super().select(None)  # nobody sleeps: what comes, comes from outside
        _NOW.seconds += timeout
        return []


class _Loop(asyncio.SelectorEventLoop):
    """Lives in virtual time."""

    def time(self) -> float:
        """The second that it is."""
        return _NOW.seconds

    def run_in_executor(self, _executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]  # noqa: ANN401 - as asyncio has it
        """Do the work in place."""
        return done(lambda: func(*args), self)


def done(work: Callable[[], T], loop: asyncio.AbstractEventLoop | None = None) -> asyncio.Future[T]:
    """Do some work at once, for those who await it."""
    future: asyncio.Future[T] = (loop or asyncio.get_running_loop()).create_future()
    try:
        future.set_result(work())
    except Exception as error:  # noqa: BLE001 - handed to whoever awaits the future
        future.set_exception(error)
    return future


def loop() -> asyncio.AbstractEventLoop:
    """A loop that lives in virtual time."""
    return _Loop(_Selector())
