"""When sources are polled: spread over an interval, in bursts, on a common beat. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from llm_headroom.host.engines import Watched

BURSTS: Final = 4
"""Times in an interval at which sources are polled. Many at a time cost half as much CPU as one by one (measured at 50
targets: caches stay warm), all at once would make the last ones late."""
MOST_AT_ONCE: Final = 50
"""Targets of one burst; of more targets there are more bursts. What is being read of them is in memory together."""
START_SPACING: Final = 0.25
"""Seconds between bursts at the start, when each target takes more CPU than later and none has been read yet."""
HOST_SECONDS: Final = 15.0
HOST_POLLS: Final = 10
"""Host memory is read every `HOST_SECONDS`, or every so many polls where these are faster."""


class Pace(NamedTuple):
    """When a source is polled: first `after` seconds, then `phase` of an interval (0 to below 1) behind the beat."""

    after: float = 0.0
    phase: float = 0.0

    def next(self, now: float, step: float) -> float:
        """The next time on the clock of `now`, later than that, whose beat is every `step` seconds.

        What was missed is skipped, not caught up in a burst.
        """
        return (math.floor(now / step - self.phase) + 1 + self.phase) * step


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
