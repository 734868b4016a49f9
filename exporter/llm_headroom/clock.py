"""Unix time that nobody sets: as it was when the process began, plus what has passed since.

What is remembered has such a time, so that how long ago it was is right after the host's clock has been set. Whoever
shows a time shows it by the host's clock as it is then.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

LEAST_STEP: Final = 1.0
"""Seconds by which the host's clock must have moved to count as set: a time that is shown stays the same till then."""


class Clock:
    """Begins at the host's unix time, and goes on by a monotonic clock."""

    def __init__(self, unix: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._unix, self._monotonic = unix, monotonic
        self._ahead = unix() - monotonic()
        self._set_by = 0.0

    def now(self) -> float:
        """The time to remember."""
        return self._monotonic() + self._ahead

    def set_by(self) -> float:
        """Seconds by which the host's clock has been set since the process began."""
        moved = self._unix() - self.now()
        if abs(moved - self._set_by) >= LEAST_STEP:
            self._set_by = moved
        return self._set_by

    def shown(self, moment: float) -> float:
        """A time that was remembered, by the host's clock as it is set now."""
        return moment + self.set_by()


_CLOCK: Final = Clock(lambda: time.time(), lambda: time.monotonic())  # noqa: PLW0108 - looked up each time
now: Final = _CLOCK.now
set_by: Final = _CLOCK.set_by
shown: Final = _CLOCK.shown
