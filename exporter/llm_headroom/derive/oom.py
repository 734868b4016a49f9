"""The chance that an allocation fails for lack of memory: on a GPU, and on the host under an engine.

A card at 95 % is normal for an engine that reserves its pool when it starts, so a level says nothing. What counts is
free memory against the rises that this device has shown (activations, graphs, other processes), and a trend that goes
on. Memory that engines take when they start or load a model is no transient: such times are left out.
"""

from __future__ import annotations

import math
from dataclasses import field, replace
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom import schema
from llm_headroom.derive.loaded import loaded
from llm_headroom.derive.trend import Trend
from llm_headroom.frozen import frozen_named
from llm_headroom.model import numbers, point

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llm_headroom.derive.gpu_memory import DeviceKey
    from llm_headroom.gpu.attribution import Holding
    from llm_headroom.host.engines import Watched
    from llm_headroom.model import Point

RISE_SECONDS: Final = 1800.0
"""Length of a window over which a rise is taken: its highest reading less its first one."""
WINDOW_STEP: Final = 300.0
"""Seconds from the start of one window to that of the next one."""
MOST_RISES: Final = 288
"""Rises that are retained: those of 24 hours."""
_TAIL: Final = 0.05
"""Share of the rises, the greatest ones, that the tail is fitted to."""
_LEAST_SPREAD: Final = 0.1
_RARE: Final = 0.02
"""The chance that is presumed before any rise was seen, worth one window."""
FLOOR_SECONDS: Final = 3600.0
"""Memory that a leak has taken does not come back: it raises the lowest reading of the hour."""
MOST_FLOORS: Final = 6
_LEAST_RISING: Final = 2
"""Hours, of five, in which the floor rises: one step alone is a model's warm-up."""
_LEAST_STEP: Final = 2**24
"""Bytes by which a floor rises at least."""
_SOON: Final = 0.5
"""The chance where a leak would fill the device within an hour, the warning's threshold."""
_MOST_OF_LEAK: Final = 0.95
_USUAL: Final = 0.9
"""Share of the rises that are no greater than a usual one."""
_LEAST_ROOM: Final = 0.25
"""Of the free memory: rises alone make no leak."""
KILLED_SECONDS: Final = 300.0
"""Seconds for which an OOM kill counts."""
_PRESSED: Final = 0.1
"""Share of time in which all tasks waited for memory from which on the host is about to kill."""


class _Floor(NamedTuple):
    """The lowest reading, in bytes, of one hour of the clock."""

    hour: int
    low: float


class _Window(NamedTuple):
    """A window that is still open: when it began, the first reading in bytes, and the highest one."""

    start: float
    first: float
    high: float


@frozen_named
class Device:
    """What is remembered of one device: open windows and closed rises in bytes, and the trend of its used memory.

    `floors` are the lowest readings of the last hours. `holders` is which engines hold memory there, and the models in
    it: when they change, the open rise starts again.
    """

    holders: Mapping[str, frozenset[str]] = field(default_factory=dict)
    open: tuple[_Window, ...] = ()
    rises: tuple[float, ...] = ()
    trend: Trend = field(default_factory=Trend)
    floors: tuple[_Floor, ...] = ()

    def after(self, at: float, used: float, holders: Mapping[str, frozenset[str]], *, settled: bool) -> Device:
        """The device with one more reading. Not `settled`: an engine there is starting, and takes what it reserves."""
        if not settled or holders != self.holders:
            return replace(self, holders=holders, open=(), trend=Trend(), floors=())
        raised = tuple(_Window(each.start, each.first, max(each.high, used)) for each in self.open)
        closed = [each.high - each.first for each in raised if at - each.start >= RISE_SECONDS]
        still = tuple(each for each in raised if at - each.start < RISE_SECONDS)
        if not still or at - still[-1].start >= WINDOW_STEP:
            still = (*still, _Window(at, used, used))
        hour, floors = int(at // FLOOR_SECONDS), self.floors
        low = used
        if floors and floors[-1].hour == hour:
            *before, last = floors
            floors, low = tuple(before), min(last.low, used)
        return replace(
            self,
            open=still,
            rises=(*self.rises, *closed)[-MOST_RISES:],
            trend=self.trend.after(at, used),
            floors=(*floors, _Floor(hour, low))[-MOST_FLOORS:],
        )

    @property
    def shown(self) -> list[float]:
        """Every rise, those of open windows included, ascending."""
        return sorted((*self.rises, *(each.high - each.first for each in self.open)))

    def risk(self, free: float, used: float) -> float | None:
        """The probability of a rise beyond the free bytes within half an hour; None before anything was seen.

        A rise that is on, to the `used` bytes, counts: it is one of those that went as far, and may go beyond. What was
        reached once and is held since is where later rises begin.
        """
        rises = self.shown
        if not rises:
            return None
        level = median(each.first for each in self.open) if self.open else used
        risen = max(0.0, used - level)
        chance = self._chance(rises, risen + free)
        if risen > 0.0:
            as_far = sum(rise >= risen for rise in rises) / len(rises)
            chance = min(1.0, chance / as_far) if as_far else 1.0
        return max(chance, self.trend.chance(free) or 0.0, self._leak(rises, free, used))

    def _leak(self, rises: Sequence[float], free: float, used: float) -> float:
        """The chance that a leak, in stairs or smooth, leaves no room: from how the floor rose in six hours.

        Memory runs out once a usual rise from the floor does not fit any more, and stairs take a step at once: what
        counts is the second greatest one, since the greatest may be a warm-up.
        """
        if len(self.floors) < MOST_FLOORS:
            return 0.0
        lows = [each.low for each in self.floors]
        steps = sorted(after - before for before, after in pairwise(lows))
        hours = self.floors[-1].hour - self.floors[0].hour
        growth = (lows[-1] - lows[0]) / hours
        if steps[-_LEAST_RISING] < _LEAST_STEP or growth <= 0:
            return 0.0
        usual = rises[int(_USUAL * len(rises))]
        room = max(free + used - lows[-1] - usual, _LEAST_ROOM * free, 1.0)
        return min(_MOST_OF_LEAK, _SOON * max(growth, steps[-_LEAST_RISING]) / room)

    @staticmethod
    def _chance(rises: Sequence[float], size: float) -> float:
        """The chance of a rise of `size` bytes. Windows overlap: as many as overlap are worth one."""
        apart = RISE_SECONDS / WINDOW_STEP
        beyond = sum(rise >= size for rise in rises)
        return max((beyond / apart + _RARE) / (len(rises) / apart + 1.0), _tail(rises, size))


def _tail(rises: Sequence[float], free: float) -> float:
    """The chance of a rise beyond `free` from an exponential tail; few rises are taken for exponential as a whole.

    Rises that are all alike still vary: the tail is never steeper than a tenth of where it begins.
    """
    enough = len(rises) >= 1 / _TAIL
    threshold = rises[-round(len(rises) * _TAIL)] if enough else 0.0
    top = [rise for rise in rises if rise >= threshold]
    excess = max(sum(rise - threshold for rise in top) / len(top), _LEAST_SPREAD * threshold)
    if excess <= 0.0 or free <= threshold:
        return 0.0
    return len(top) / len(rises) * math.exp(-(free - threshold) / excess)


def gpus(
    known: Mapping[DeviceKey, Device],
    memory: Mapping[DeviceKey, Mapping[str, float]],
    holdings: Sequence[Holding],
    engines: Sequence[Watched],
    at: float,
) -> tuple[dict[DeviceKey, Device], list[Point]]:
    """What is remembered of each device after a reading; its risk, and how far engines there saturate their devices.

    `memory` is that of `gpu_memory.device_memory`. Saturation is the greatest rise over the free memory, 1 where it
    would not fit any more. A change of who holds memory, or of the models in an engine's memory, starts again, and
    nothing counts while an engine starts, which holds memory and was not up since: it takes then what it reserves.
    """
    watched = {each.target.name: each for each in engines}
    holders: dict[DeviceKey, dict[str, frozenset[str]]] = {}
    starting: set[DeviceKey] = set()
    for holding in holdings:
        key, engine = (holding.gpu, holding.uuid), watched[holding.target]
        before = known.get(key, Device()).holders
        if engine.up:
            models = loaded(engine.snapshot.points if engine.snapshot else ()).models
            holders.setdefault(key, {})[holding.target] = frozenset(models)
        elif holding.target in before:  # it misses polls, but holds what it has held
            holders.setdefault(key, {})[holding.target] = before[holding.target]
        else:
            starting.add(key)
    devices = {
        key: known.get(key, Device()).after(at, parts["used"], holders.get(key, {}), settled=key not in starting)
        for key, parts in memory.items()
    }
    points = []
    levels: dict[str, float] = {}
    for key, device in devices.items():
        free = memory[key]["free"]
        chance = device.risk(free, memory[key]["used"])
        if chance is None:
            continue
        place = {"gpu": key[0], "uuid": key[1], "memory": "gpu"}
        points.append(point(schema.OOM_RISK, chance, "rises of used memory against free memory", place))
        for target in holders.get(key, {}):
            levels[target] = max(levels.get(target, 0.0), device.shown[-1] / max(free, 1.0))
    for target, level in levels.items():
        labels = watched[target].labels
        points.append(point(schema.PRESSURE, level, "greatest rise / free memory", labels, resource="gpu_memory"))
    return devices, points


@frozen_named
class Host:
    """What is remembered of the memory of one engine's host or control group.

    `kills` and `pressure` (seconds in which all tasks waited) are the last readings of their counters, `pressed` the
    share of the time between the last two, `killed` when a kill was seen last.
    """

    at: float = 0.0
    trend: Trend = field(default_factory=Trend)
    kills: float | None = None
    killed: float | None = None
    pressure: float | None = None
    pressed: float = 0.0

    def after(self, at: float, used: float, kills: float | None, pressure: float | None) -> Host:
        """The host with one more reading."""
        killed = self.killed
        if kills is not None and self.kills is not None and kills > self.kills:
            killed = at
        pressed = self.pressed
        if pressure is not None and self.pressure is not None and at > self.at:
            pressed = max(0.0, pressure - self.pressure) / (at - self.at)
        # A control group that restarted holds less than it did: its trend is another one.
        fell = bool(self.trend.readings) and used < 0.5 * self.trend.readings[-1][1]
        trend = (Trend() if fell else self.trend).after(at, used)
        return Host(at=at, trend=trend, kills=kills, killed=killed, pressure=pressure, pressed=pressed)

    def risk(self, room: float | None) -> float | None:
        """The probability that memory runs out within half an hour; `room` bytes are left below the limit."""
        chances = [] if room is None else [self.trend.chance(room)]
        if self.killed is not None and self.at - self.killed < KILLED_SECONDS:
            chances.append(0.95)
        if self.pressed > _PRESSED:
            chances.append(min(0.9, 0.5 + self.pressed))
        known = [each for each in chances if each is not None]
        return max(known) if known else None


_HOST_PARTS: Final = {
    schema.HOST_MEMORY_USED: "used",
    schema.HOST_MEMORY_LIMIT: "limit",
    schema.HOST_OOM_KILLS: "kills",
    schema.HOST_MEMORY_PRESSURE: "pressure",
}


def host(known: Host | None, points: Sequence[Point], at: float) -> tuple[Host | None, list[Point]]:
    """What is remembered of one engine's host memory after a reading of it, and its risk."""
    parts: dict[str, float] = {}
    labels: dict[str, str] = {}
    for series, value in numbers(points, *_HOST_PARTS):
        if series.label("severity") in ("", "full"):  # of pressure: the time in which all tasks waited
            parts[_HOST_PARTS[series.metric]] = value
            labels = {key: text for key, text in series.labels if key != "severity"}
    if "used" not in parts:
        return known, []
    now = (known or Host()).after(at, parts["used"], parts.get("kills"), parts.get("pressure"))
    chance = now.risk(parts["limit"] - parts["used"] if "limit" in parts else None)
    if chance is None:
        return now, []
    return now, [point(schema.OOM_RISK, chance, "trend, kills and pressure of memory", labels, memory="host")]
