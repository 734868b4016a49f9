"""What has been relayed and not been looked at yet.

Looking at one piece between two waits for the next costs three times what it costs among others, since by then other
work has had the caches. So pieces are looked at in lots: when there are many, and before anybody reads what was
measured. Each has been sent on before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

MOST_PIECES: Final = 256
"""That wait: a lot is looked at within a fraction of a millisecond, so that no stream is held up by another one's."""
LARGE: Final = 4096
"""Bytes of a piece that does not wait, nor do those before it: so what waits is bounded."""


class Backlog:
    """What passed, in its order.

    `passed` holds the function that looks at something, which must not raise, the thing, and the time at which it came,
    in seconds of `monotonic`. Who appends to it by himself, for speed, calls `look` as `add` would.
    """

    __slots__ = ("passed",)

    def __init__(self) -> None:
        self.passed: list[tuple[Callable[[Any, float], None], Any, float]] = []

    def add(self, look: Callable[[T, float], None], what: T, when: float, size: int = 0) -> None:
        """Something of so many bytes has been relayed; `look` is to be called with it and its time in its turn."""
        self.passed.append((look, what, when))
        if len(self.passed) >= MOST_PIECES or size > LARGE:
            self.look()

    def look(self) -> None:
        """Look at all that waits."""
        passed = self.passed.copy()
        self.passed.clear()
        for look, what, when in passed:
            look(what, when)
