"""What is published, for every output alike: the latest reading of each source, and the exporter's own metrics."""

from __future__ import annotations

import platform
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom import __version__, clock, schema
from llm_headroom.model import Point, Series
from llm_headroom.poll.process_series import ProcessSeries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from llm_headroom.poll.poller import Poller

BUILD: Final = Point(Series(schema.BUILD_INFO, {"version": __version__, "python": platform.python_version()}), 1.0, "")
_RELOADED: Final = Series(schema.CONFIG_RELOAD_SUCCESS, {})
_RELOAD_TIME: Final = Series(schema.CONFIG_RELOAD_TIME, {})


class Reload(NamedTuple):
    """What was wrong at the last reading of the configuration, if it failed; when the last success was, by `clock`."""

    last_success: float
    error: str = ""


class Published:
    """What a poller holds, and points about the exporter itself; `more` gives points about what else it does."""

    def __init__(self, poller: Poller, more: Callable[[], Iterable[Point]] = tuple) -> None:
        self.poller = poller
        self._more = more
        self._process = ProcessSeries()
        self.reload = Reload(clock.now())

    def sources(self) -> list[tuple[float, Sequence[Point]]]:
        """Everything, by source: the unix time at which its points were taken, and the points."""
        slots = self.poller.slots.values()
        read = [(clock.shown(slot.snapshot.taken), slot.points()) for slot in slots if slot.snapshot]
        return [*read, (time.time(), self.own())]

    def own(self) -> list[Point]:
        """The exporter's own metrics as they are now."""
        return [
            BUILD,
            Point(_RELOADED, float(not self.reload.error), ""),
            Point(_RELOAD_TIME, clock.shown(self.reload.last_success), ""),
            *self._process.points(),
            *self._more(),
        ]
