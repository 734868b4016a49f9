"""What has been relayed and not been looked at yet.

Looking at one piece between two waits for the next costs three times what it costs among others, since by then other
work has had the caches. So pieces are looked at in lots, and never before they have been sent on.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

LOOK_SECONDS: Final = 0.2
"""For which a piece waits at most."""
MOST_PIECES: Final = 128
"""That wait: a lot is looked at within a fraction of a millisecond, so that no stream is held up by another one's."""
MOST_BYTES: Final = 256 * 1024


class Backlog:
    """Pieces of answers, in the order in which they came, each with the time at which it did."""

    def __init__(self) -> None:
        self._pieces: list[tuple[Callable[[bytes, float], None], bytes, float]] = []
        self._bytes = 0
        self._due: asyncio.TimerHandle | None = None

    def add(self, look: Callable[[bytes, float], None], data: bytes) -> None:
        """A piece has been relayed: `look` is to be called with it and with the time, in seconds of `monotonic`."""
        self._pieces.append((look, data, monotonic()))
        self._bytes += len(data)
        if len(self._pieces) >= MOST_PIECES or self._bytes >= MOST_BYTES:
            self.look()
        elif self._due is None:
            self._due = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look_at_last)

    def look(self) -> None:
        """Look at all that waits; `look` must not raise."""
        pieces, self._pieces = self._pieces, []
        self._bytes = 0
        for look, data, when in pieces:
            look(data, when)

    def _look_at_last(self) -> None:
        self._due = None
        self.look()
