"""The last 24 hours of one model or GPU, minute by minute, in a ring whose size never changes."""

from __future__ import annotations

from array import array
from math import isnan, nan
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom.view.values import ORDER, Condition

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MINUTES: Final = 24 * 60
_MINUTE: Final = 60
_BYTES: Final = 4
MOST_STATES: Final = 255
"""Different states in one ring: their numbers are bytes."""


class Minute(NamedTuple):
    """A minute's number since 1970, the highest value of each line in it, and the worst state; None if unknown."""

    minute: int
    values: Mapping[str, float | None]
    state: Condition | None


class Day:
    """A ring of the last `MINUTES` minutes: the highest value of each of some lines, and the worst state."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = {name: array("f", [nan]) * MINUTES for name in lines}
        self._numbers = bytearray(MINUTES)
        self._states: list[Condition] = []
        self._newest: int | None = None

    @staticmethod
    def size(lines: int) -> int:
        """Bytes that a ring of so many lines takes, whatever was put into it."""
        return MINUTES * (_BYTES * lines + 1)

    def put(self, at: float, values: Mapping[str, float | None], state: Condition | None) -> None:
        """Take over what was read at a unix time; what is older than the newest minute is left out."""
        minute = int(at // _MINUTE)
        if self._newest is None:
            self._newest = minute
        if minute < self._newest:
            return
        for passed in range(max(self._newest + 1, minute - MINUTES + 1), minute + 1):
            for line in self._lines.values():
                line[passed % MINUTES] = nan
            self._numbers[passed % MINUTES] = 0
        self._newest = minute
        place = minute % MINUTES
        for name, value in values.items():
            line = self._lines[name]
            if value is not None and not line[place] >= value:  # NaN is not, either
                line[place] = value
        if state is not None:
            before = self._state(place)
            if before is None or ORDER[state.level] <= ORDER[before.level]:
                self._numbers[place] = self._number(state)

    def minutes(self, now: float, count: int = MINUTES) -> Iterable[Minute]:
        """The last `count` minutes up to now, oldest first; those of which nothing is known are among them."""
        last = int(now // _MINUTE)
        newest = last if self._newest is None else self._newest
        for minute in range(last - count + 1, last + 1):
            place = minute % MINUTES
            known = newest - MINUTES < minute <= newest
            values = {
                name: line[place] if known and not isnan(line[place]) else None for name, line in self._lines.items()
            }
            yield Minute(minute, values, self._state(place) if known else None)

    def _state(self, place: int) -> Condition | None:
        number = self._numbers[place]
        return self._states[number - 1] if number else None

    def _number(self, state: Condition) -> int:
        """The number of a state without its reason and time, which a band does not show."""
        bare = Condition(state.name, state.level)
        if bare not in self._states:
            if len(self._states) == MOST_STATES:
                return 0
            self._states.append(bare)
        return self._states.index(bare) + 1
