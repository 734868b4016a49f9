"""Large bodies on their way to clients: one is shared by all who asked in time, and unread ones are bounded."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

LARGE: Final = 256 * 1024
MOST_BYTES: Final = 32 * 1024 * 1024


class Bodies:
    """What is being sent. Beyond `most` bytes whoever is still being sent the oldest body is cut off."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        self._most = most
        self._sending: dict[int, tuple[bytes, set[asyncio.Task[object]]]] = {}

    @contextmanager
    def sending(self, body: bytes, task: asyncio.Task[object] | None) -> Iterator[None]:
        """While a task sends a body; the task may be cancelled."""
        if len(body) < LARGE or task is None:
            yield
            return
        body, tasks = self._sending.setdefault(id(body), (body, set()))
        tasks.add(task)
        while len(self._sending) > 1 and sum(len(each) for each, _ in self._sending.values()) > self._most:
            _, waiting = self._sending.pop(next(iter(self._sending)))
            for each in waiting:
                each.cancel()
        try:
            yield
        finally:
            tasks.discard(task)
            if not tasks:
                self._sending.pop(id(body), None)
