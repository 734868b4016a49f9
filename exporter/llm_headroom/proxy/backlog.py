"""What has been relayed and not been looked at yet.

Looking at one piece between two waits for the next costs three times what it costs among others, since by then other
work has had the caches. So pieces are looked at in lots, and never before they have been sent on.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, TypeVarTuple, Unpack

if TYPE_CHECKING:
    from collections.abc import Callable

Given = TypeVarTuple("Given")
LOOK_SECONDS: Final = 0.2
"""For which a piece waits at most."""
MOST_PIECES: Final = 128
"""That wait: a lot is looked at within a fraction of a millisecond, so that no stream is held up by another one's."""
MOST_BYTES: Final = 256 * 1024


class Backlog:
    """What passed, in its order: each a function that looks at it, and what it is given."""

    __slots__ = ("_bytes", "_due", "_passed")

    def __init__(self) -> None:
        self._passed: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._bytes = 0
        self._due: asyncio.TimerHandle | None = None

    def add(self, look: Callable[[Unpack[Given]], None], size: int, *given: *Given) -> None:
        """Something of so many bytes has been relayed: `look`, which must not raise, is to be called with `given`."""
        self._passed.append((look, given))
        self._bytes += size
        if len(self._passed) >= MOST_PIECES or self._bytes >= MOST_BYTES:
            self.look()
        elif self._due is None:
            self._due = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look_at_last)

    def look(self) -> None:
        """Look at all that waits."""
        passed, self._passed = self._passed, []
        self._bytes = 0
        for look, given in passed:
            look(*given)

    def _look_at_last(self) -> None:
        self._due = None
        self.look()
