"""Traffic and incidents over virtual time: what happens to simulated engines when nobody is watching them."""

from __future__ import annotations

import asyncio
import heapq
import math
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from llm_headroom.simulate.misbehave import Misbehaviour, parsed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from llm_headroom.simulate.clock import Clock
    from llm_headroom.simulate.traffic import Request

_KEYS: Final = ("at", "every", "engine", "what")


def daily(requests: Iterable[Request], day: float, swing: float) -> Iterator[Request]:
    """Yield the same requests with their rate swinging over a day, from (1 - swing) at its begin to (1 + swing).

    Args:
        requests: of an even rate, in order of arrival.
        day: seconds.
        swing: from 0 to below 1.

    Raises:
        ValueError: the swing is out of range.
    """
    if not 0 <= swing < 1:
        raise ValueError(f"the swing of a day must be at least 0 and below 1, not {swing:g}")
    turn = 2.0 * math.pi / day
    for one in requests:
        # The integral of 1 - swing cos(turn t) is the arrival; it is inverted by halving, between bounds a day apart.
        low, high = one.arrival - swing / turn, one.arrival + swing / turn
        while high - low > 1e-6:  # noqa: PLR2004 - a microsecond
            middle = (low + high) / 2.0
            if middle - swing / turn * math.sin(turn * middle) < one.arrival:
                low = middle
            else:
                high = middle
        yield replace(one, arrival=max(high, 0.0))


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that goes wrong; seconds are virtual.

    Attributes:
        at: when, first.
        engine: to which one, by its name.
        how: what it is.
        what: in words.
        every: again after so many seconds; None: once.
    """

    at: float
    engine: str
    how: Misbehaviour
    what: str = ""
    every: float | None = None


def read(path: Path) -> tuple[Incident, ...]:
    """The incidents of a YAML file: a list of mappings with `at`, `engine`, and what to do.

    `every` and `what` may be given; every other key is one of `misbehave.Misbehaviour`.

    Raises:
        ValueError: something is wrong; the message names the file and the place in its list.
        OSError: the file cannot be read.
    """
    import yaml  # noqa: PLC0415 - only where there is such a file

    try:
        rows = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of incidents")  # noqa: TRY004 - one error for all that is wrong
    found = []
    for number, row in enumerate(rows, 1):
        try:
            found.append(_incident(row))
        except ValueError as error:
            raise ValueError(f"{path}, incident {number}: {error}") from error
    return tuple(found)


def _incident(row: object) -> Incident:
    if not isinstance(row, dict) or not {"at", "engine"} <= row.keys():
        raise ValueError("expected a mapping with at and engine")
    every = row.get("every")
    return Incident(
        at=_seconds("at", row["at"], least=0.0),
        engine=str(row["engine"]),
        how=parsed(_rest(row)),
        what=str(row.get("what", "")),
        every=None if every is None else _seconds("every", every, least=1.0),
    )


def _rest(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in _KEYS}


def _seconds(key: str, value: object, *, least: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value < math.inf:
        raise ValueError(f"{key} must be a number of at least {least:g}")
    return float(value)


async def play(incidents: Iterable[Incident], clock: Clock, begin: Callable[[Incident], None]) -> None:
    """Have each incident begin at its time, for as long as there are any."""
    order = count()
    due = [(one.at, next(order), one) for one in incidents]
    heapq.heapify(due)
    while due:
        moment, _, incident = heapq.heappop(due)
        await asyncio.sleep(clock.seconds_until(moment))
        begin(incident)
        if incident.every is not None:
            heapq.heappush(due, (moment + incident.every, next(order), incident))


async def play_until(
    ended: asyncio.Event, incidents: Iterable[Incident], clock: Clock, begin: Callable[[Incident], None]
) -> None:
    """Play the incidents, and return when `ended` is set, not before; what `begin` raises is raised at once."""
    playing = asyncio.create_task(play(incidents, clock, begin))
    ending = asyncio.create_task(ended.wait())
    try:
        await asyncio.wait((playing, ending), return_when=asyncio.FIRST_COMPLETED)
        if playing.done():
            playing.result()
        await ending
    finally:
        playing.cancel()
        ending.cancel()
