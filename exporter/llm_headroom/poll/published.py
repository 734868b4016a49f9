"""What is published, for every output alike: the latest reading of each source, and the exporter's own metrics."""

from __future__ import annotations

import platform
import resource
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom import __version__, schema
from llm_headroom.model import Point, Series

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from llm_headroom.poll.poller import Poller

_BUILD: Final = Series(schema.BUILD_INFO, {"version": __version__, "python": platform.python_version()})
_RELOADED: Final = Series(schema.CONFIG_RELOAD_SUCCESS, {})
_RELOAD_TIME: Final = Series(schema.CONFIG_RELOAD_TIME, {})
_CPU: Final = Series(schema.PROCESS_CPU, {})
_MEMORY: Final = Series(schema.PROCESS_MEMORY, {})


class Reload(NamedTuple):
    """How the last reading of the configuration went, and the unix time of the last one that succeeded."""

    succeeded: bool
    last_success: float


class Published:
    """What a poller holds, and points about the exporter itself; `more` gives points about what else it does."""

    def __init__(self, poller: Poller, more: Callable[[], Iterable[Point]] = tuple) -> None:
        self.poller = poller
        self._more = more
        self.reload = Reload(succeeded=True, last_success=time.time())

    def sources(self) -> list[tuple[float, Sequence[Point]]]:
        """Everything, by source: the unix time at which its points were taken, and the points."""
        slots = [(slot.snapshot.taken, slot.points()) for slot in self.poller.slots.values() if slot.snapshot]
        return [*slots, (time.time(), self.own())]

    def own(self) -> list[Point]:
        """The exporter's own metrics as they are now."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        points = [
            Point(_BUILD, 1.0, ""),
            Point(_RELOADED, float(self.reload.succeeded), ""),
            Point(_RELOAD_TIME, self.reload.last_success, ""),
            Point(_CPU, usage.ru_utime + usage.ru_stime, ""),
        ]
        resident = resident_bytes()
        if resident is not None:
            points.append(Point(_MEMORY, resident, ""))
        return [*points, *self._more()]


def resident_bytes() -> float | None:
    """Resident memory of this process in bytes, None where the kernel does not tell (proc(5), /proc/self/statm)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123 - one line of procfs
            return float(statm.read().split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return None
