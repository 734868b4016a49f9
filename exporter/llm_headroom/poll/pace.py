"""When sources are polled: spread over an interval, in bursts, on a common beat."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from llm_headroom.host.engines import Watched

log = logging.getLogger("llm_headroom")

BURSTS: Final = 4
"""Times in an interval at which sources are polled. Many at a time cost half as much CPU as one by one (measured at 50
targets: caches stay warm), all at once would make the last ones late."""
MOST_AT_ONCE: Final = 50
"""Targets of one burst; of more targets there are more bursts. What is being read of them is in memory together."""
START_SPACING: Final = 0.25
"""Seconds between bursts at the start, when each target takes more CPU than later and none has been read yet."""
STRAIN_SECONDS: Final = 1.0
"""Seconds over which it is judged whether polls begin late."""
LATE: Final = 0.5
"""Seconds of delay, on average, of polls that this process cannot keep up with."""
STOPPED: Final = 3
"""Such times in a row that are no single stop of all: that may reach into two."""
MOST_STRETCH: Final = 50.0
STRAINED: Final = 1.5
"""From here on people are told of it."""
HOST_SECONDS: Final = 15.0
HOST_POLLS: Final = 10
"""Host memory is read every `HOST_SECONDS`, or every so many polls where these are faster."""


class Pace(NamedTuple):
    """When a source is polled: first `after` seconds, then `phase` of an interval (0 to below 1) behind the beat.

    The first time is later where those that began before keep this process busy.
    """

    after: float = 0.0
    phase: float = 0.0

    def next(self, now: float, step: float, last: float = -math.inf) -> float:
        """The next time on the clock of `now`, later than that, whose beat is every `step` seconds.

        What was missed is skipped, not caught up in a burst. The time at `last` is over, though the timer that was set
        to it may be a little early by that clock.
        """
        now = max(now, last + 0.5 * step)
        return (math.floor(now / step - self.phase) + 1 + self.phase) * step


class Strain:
    """By how much longer than configured the time between polls is, where polls begin late all the time.

    This process cannot keep up with them then: whoever asks for `/metrics` would wait behind all that are due.
    """

    def __init__(self) -> None:
        self.stretch = 1.0
        self._late: list[float] = []
        self._began = -math.inf
        self._running = 0

    def note(self, due: float, now: float) -> None:
        """A poll begins that was due at another time."""
        self._late.append(now - due)
        if now - self._began < STRAIN_SECONDS:
            return
        late = sum(self._late) / len(self._late)
        self._late, self._began, self._running = [], now, (self._running + 1) * (late > LATE)
        if self._running >= STOPPED:
            self._set(min(self.stretch * min(max(1.5, late), 3.0), MOST_STRETCH))
        elif not self._running:
            self._set(max(self.stretch * 0.98, 1.0))

    def problems(self) -> Iterable[str]:
        """What is wrong, in words."""
        if self.stretch >= STRAINED:
            yield f"Sources are read {self.stretch:.1f} times as rarely as configured: there is too little CPU for them"

    def _set(self, stretch: float) -> None:
        before, self.stretch = self.stretch, stretch
        if before < STRAINED <= stretch:
            log.warning("sources are read more rarely: too little CPU", extra={"times": round(stretch, 1)})
        elif stretch == 1.0 < before:
            log.info("sources are read as often as configured")


def paces(count: int) -> Iterator[Pace]:
    """Those of so many sources that start together."""
    bursts = max(BURSTS, math.ceil(count / MOST_AT_ONCE))
    for index in range(count):
        yield Pace(START_SPACING * (index // MOST_AT_ONCE), index * bursts // count / bursts)


def host_pause(interval: float, readings: Mapping[str, object] | None, watched: Iterable[Watched]) -> float:
    """Seconds until host memory is read again, where sources are polled at an interval.

    It costs about as much as a poll and changes slowly, so less often than that as soon as there were `readings`, and
    each engine that is watched has been collected.
    """
    if readings is None or any(each.snapshot is None for each in watched):
        return interval
    return max(interval, min(HOST_SECONDS, HOST_POLLS * interval))
