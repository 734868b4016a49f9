"""Clocks of simulated engines that a test moves."""

from __future__ import annotations

from llm_headroom.simulate.clock import Clock

FAR = 3600.0
"""Real seconds that no test lasts."""


class Hands(Clock):
    """A clock that stands until it is moved; who waits for something to come waits for `wait` real seconds."""

    def __init__(self, wait: float = FAR) -> None:
        super().__init__(1.0)
        self.started = 1_795_000_000.0
        self.moment = 0.0
        self._wait = wait

    def now(self) -> float:
        """Return the moment that it was moved to."""
        return self.moment

    def seconds_until(self, moment: float) -> float:
        """Return the wait, 0 for what has passed."""
        return self._wait if moment > self.moment else 0.0


class Jumps(Hands):
    """A clock that is at once where somebody waits for it to be."""

    def seconds_until(self, moment: float) -> float:
        """Pass the time."""
        self.moment = max(self.moment, moment)
        return 0.0
