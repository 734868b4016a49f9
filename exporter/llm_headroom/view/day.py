"""The last 24 hours of one model or GPU, minute by minute, in hours that are made when they come."""

from __future__ import annotations

from array import array
from math import isnan, nan
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom.view.values import ORDER, Condition

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MINUTES: Final = 24 * 60
_MINUTE: Final = 60
_HOUR: Final = 60
"""Minutes."""
MOST_STATES: Final = 255
"""Different states in one ring: their numbers are bytes."""


class Minute(NamedTuple):
    """A minute's number since 1970, the highest value of each line in it, and the worst state; None if unknown."""

    minute: int
    values: Mapping[str, float | None]
    state: Condition | None


class _Hour:
    """The minutes of one hour: values by line, and the numbers of states."""

    __slots__ = ("lines", "states")

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = {name: array("f", [nan]) * _HOUR for name in lines}
        self.states = bytearray(_HOUR)


class Day:
    """The last `MINUTES` minutes: the highest value of each of some lines, and the worst state."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._names = tuple(lines)
        self._hours: dict[int, _Hour] = {}
        self._states: list[Condition] = []
        self._newest: int | None = None

    def put(self, at: float, values: Mapping[str, float | None], state: Condition | None) -> None:
        """Take over what was read at a unix time; what is older than the newest minute is left out."""
        minute = int(at // _MINUTE)
        if self._newest is not None and minute < self._newest:
            return
        self._newest = minute
        number, place = divmod(minute, _HOUR)
        hour = self._hours.get(number)
        if hour is None:
            oldest = (minute - MINUTES) // _HOUR
            self._hours = {known: each for known, each in self._hours.items() if known >= oldest}
            hour = self._hours[number] = _Hour(self._names)
        for name, value in values.items():
            line = hour.lines[name]
            if value is not None and not line[place] >= value:  # NaN is not, either
                line[place] = value
        if state is not None:
            before = self._state(hour, place)
            if before is None or ORDER[state.level] <= ORDER[before.level]:
                hour.states[place] = self._number(state)

    def minutes(self, now: float, count: int = MINUTES) -> Iterable[Minute]:
        """The last `count` minutes up to now, oldest first; those of which nothing is known are among them."""
        last = int(now // _MINUTE)
        newest = last if self._newest is None else self._newest
        for minute in range(last - count + 1, last + 1):
            number, place = divmod(minute, _HOUR)
            hour = self._hours.get(number) if newest - MINUTES < minute <= newest else None
            if hour is None:
                yield Minute(minute, dict.fromkeys(self._names), None)
                continue
            values = {name: None if isnan(line[place]) else line[place] for name, line in hour.lines.items()}
            yield Minute(minute, values, self._state(hour, place))

    def _state(self, hour: _Hour, place: int) -> Condition | None:
        number = hour.states[place]
        return self._states[number - 1] if number else None

    def _number(self, state: Condition) -> int:
        """The number of a state without its reason and time, which a band does not show."""
        bare = Condition(state.name, state.level)
        if bare not in self._states:
            if len(self._states) == MOST_STATES:
                return 0
            self._states.append(bare)
        return self._states.index(bare) + 1
