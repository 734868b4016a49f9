"""Virtual time that follows real time."""

from __future__ import annotations

import time


class Clock:
    """Virtual seconds since it was made: real seconds times `speed`.

    Attributes:
        speed: virtual seconds per real second, above 0; 1.0 is real time.
        started: unix time of virtual second 0. What engines report as unix time is this plus virtual seconds, so that
            it agrees with the clocks of others only at speed 1.
    """

    def __init__(self, speed: float = 1.0) -> None:
        if not speed > 0:
            raise ValueError(f"the speed must be above 0, not {speed:g}")
        self.speed = speed
        self.started = time.time()
        self._origin = time.monotonic()

    def now(self) -> float:
        """The virtual second of this moment."""
        return (time.monotonic() - self._origin) * self.speed

    def seconds_until(self, moment: float) -> float:
        """The real seconds until a virtual second, 0 for one that has passed."""
        return max(0.0, (moment - self.now()) / self.speed)
