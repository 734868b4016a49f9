"""Whether the process that answers is still the one of the poll before, and what its counters were then.

Counters of a Python engine appear with their first event, and are gone after a restart until they do: what is absent
says something, too, as long as whatever could have exposed it was read.
"""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llm_headroom.derive.observation import COUNTERS, HISTOGRAMS, Observation
from llm_headroom.model import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable

_COUNTED: Final = (*COUNTERS, "cached_tokens", "preemptions", "missed_ttft", "missed_duration", *HISTOGRAMS)
_TELLING: Final = (*COUNTERS, *HISTOGRAMS)
"""Those whose fall means a restart: some engines take others back."""
_counted: Final[Callable[[Observation], tuple[Any, ...]]] = attrgetter(*_COUNTED)
_telling: Final[Callable[[Observation], tuple[Any, ...]]] = attrgetter(*_TELLING)
_SAME_START: Final = 1.0
"""Seconds by which two readings of one process's start may differ."""


class Reading(NamedTuple):
    """What a poll could read of the engine itself.

    `sources` are the names of all that answered and could have exposed a counter, `started` is the unix time at which
    the process started, `version` the engine's; None and empty where they are not known.
    """

    sources: frozenset[str] = frozenset()
    started: float | None = None
    version: str = ""


class Between(NamedTuple):
    """What is known of the time between two polls of a target, before any counter is looked at.

    `started`: the process has started in between. `upgraded`: it has another version, which nobody changes in a running
    process. `gap`: some polls in between have failed. `lacks`: a counter that was there would still be if the process
    were the same. `born`: a counter that was not there then has begun at 0 since.
    """

    started: bool = False
    upgraded: bool = False
    gap: bool = False
    lacks: bool = False
    born: bool = False


def between(before: Reading | None, now: Reading, *, gap: bool) -> Between:
    """What two readings say; None before the first one. A version is compared only over a gap: it is read rarely."""
    if before is None:
        return Between()
    started = before.started is not None and now.started is not None and now.started > before.started + _SAME_START
    return Between(
        started=started,
        upgraded=gap and bool(before.version and now.version) and before.version != now.version,
        gap=gap,
        lacks=before.sources <= now.sources,
        born=not gap and now.sources <= before.sources,
    )


def restarted(counts: Observation, now: Observation, time: Between) -> bool:
    """Whether the engine has restarted since its counters were `counts`.

    One that fell says so. So does one that is missing after a gap; without a gap it takes all of them, since a single
    one may just be unreadable for once.
    """
    if time.started or time.upgraded or _fallen(counts, now):
        return True
    had = [new for old, new in zip(_counted(counts), _counted(now), strict=True) if old is not None and _amount(old)]
    missing = sum(new is None for new in had)
    return time.lacks and missing > 0 and (time.gap or missing == len(had))


def begun(counts: Observation, now: Observation, time: Between, *, restart: bool) -> Observation:
    """The counters at the poll before: those that have begun since are 0, and so are all of another process."""
    if restart and (time.started or not _any_of_both(counts, now)):
        counts = Observation()
    if not restart and not time.born:
        return counts
    both = zip(_COUNTED, _counted(counts), _counted(now), strict=True)
    fresh = {name: _zero(new) for name, old, new in both if old is None and new is not None}
    return replace(counts, **fresh) if fresh else counts


def carried(counts: Observation, now: Observation) -> Observation:
    """This poll with the latest values of the counters that it lacks."""
    both = zip(_COUNTED, _counted(counts), _counted(now), strict=True)
    lacking = {name: old for name, old, new in both if new is None and old is not None}
    return replace(now, **lacking) if lacking else now


def since(last: Observation, counts: Observation, begun: Observation) -> Observation:
    """The poll before, for rates: with the counters that have begun since then, without those that it lacked."""
    all_three = zip(_COUNTED, _counted(last), _counted(counts), _counted(begun), strict=True)
    other = {name: new for name, old, known, new in all_three if known is None and new is not old}
    return replace(last, **other) if other else last


def _any_of_both(counts: Observation, now: Observation) -> bool:
    return any(old is not None and new is not None for old, new in zip(_counted(counts), _counted(now), strict=True))


def _amount(value: float | Histogram) -> float:
    return value.count if isinstance(value, Histogram) else value


def _fallen(counts: Observation, now: Observation) -> bool:
    return any(
        old is not None and new is not None and _amount(new) < _amount(old)
        for old, new in zip(_telling(counts), _telling(now), strict=True)
    )


def _zero(value: float | Histogram) -> Any:  # noqa: ANN401 - of the field's type
    return Histogram(value.bounds, (0.0,) * len(value.counts), 0.0) if isinstance(value, Histogram) else 0.0
