"""Threads for calls that block, so many for each kind of work: none can hold up another, or the process's end."""

from __future__ import annotations

import _thread
import asyncio
import errno
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from llm_headroom.net.threads import NoThreadError

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")

MOST_WAITING: Final = 1000
"""Calls that wait for a thread."""


class Workers(ThreadPoolExecutor):
    """An executor of `most` threads that live as long as there is work, and that nobody waits for at the end.

    With `shared` a call that is under way already is not made once more: whoever asks gets its result, too. A name
    server that does not answer then takes one thread for each name, however often the name is asked for.
    """

    def __init__(self, name: str, most: int, *, shared: bool = False) -> None:
        super().__init__(most)
        self._name = name
        self._most = most
        self._shared = shared
        self._lock = threading.Lock()
        self._running = 0
        self._waiting: deque[tuple[object, Callable[[], Any]]] = deque()
        self._asked: dict[object, list[Future[Any]]] = {}

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a call made; see `concurrent.futures.Executor`.

        Raises:
            OSError: too many calls wait, or the system gives no thread.
        """
        future: Future[T] = Future()
        key: object = (fn, args, tuple(kwargs.items())) if self._shared else future
        with self._lock:
            if key in self._asked:
                self._asked[key].append(future)
                return future
            if len(self._waiting) >= MOST_WAITING:
                raise OSError(errno.EAGAIN, f"too many calls wait ({self._name})")
            self._asked[key] = [future]
            self._waiting.append((key, lambda: fn(*args, **kwargs)))
            if self._running < self._most:
                try:
                    self._start()
                except OSError:
                    self._waiting.pop()
                    del self._asked[key]
                    raise
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - the base's
        """Let go of the threads: they end with their work, or with the process."""

    def _start(self) -> None:
        try:
            # threading.Thread waits for the new thread, without end where memory is too short for that to begin.
            _thread.start_new_thread(self._work, ())
        except (RuntimeError, MemoryError) as error:
            if not self._running:
                raise NoThreadError(self._name) from error

    def _work(self) -> None:
        with self._lock:
            if self._running >= self._most:
                return
            self._running += 1  # by the thread itself: of one that could not begin nobody hears
        while True:
            with self._lock:
                if not self._waiting:
                    self._running -= 1
                    return
                key, call = self._waiting.popleft()
            result, raised = None, None
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001 - handed to whoever waits for it
                raised = error
            with self._lock:
                futures = self._asked.pop(key)
            for future in futures:
                if not future.set_running_or_notify_cancel():
                    continue
                if raised is not None:
                    future.set_exception(raised)
                else:
                    future.set_result(result)
            del call, futures, result, raised


_HEAVY: Final = Workers("heavy", 2)
"""Two: the interpreter lets one compute at a time, and the second keeps a long piece from holding up all others."""


class Heavy:
    """Work of one owner that would hold up the event loop, one piece at a time: it may share state with the next one.

    The threads are shared by all owners, so that many targets with large bodies neither start many threads nor hold
    much in memory at once.
    """

    def __init__(self) -> None:
        self._under_way: asyncio.Future[Any] | None = None

    @property
    def busy(self) -> bool:
        """Whether an earlier piece is still under way."""
        return self._under_way is not None and not self._under_way.done()

    async def do(self, work: Callable[[], T], deadline: float) -> T:
        """The result of some work by a deadline in seconds of the monotonic clock, which is asyncio's.

        Work that is late goes on, since no thread can be ended; the owner's next piece waits for it.

        Raises:
            TimeoutError: it is not done in time.
            OSError: too much work waits, or the system gives no thread.
        """
        async with asyncio.timeout_at(deadline):
            if self._under_way is not None:
                await asyncio.wait([self._under_way])
            future = asyncio.get_running_loop().run_in_executor(_HEAVY, work)
            future.add_done_callback(_retrieved)
            self._under_way = future
            return await asyncio.shield(future)


def _retrieved(future: asyncio.Future[Any]) -> None:
    """Takes note of an error that nobody waits for any more."""
    if not future.cancelled():
        future.exception()
