"""Whether the process that answers is still the one of the poll before, and what its counters were then.

Counters of a Python engine appear with their first event, and are gone after a restart until they do: what is absent
says something, too, as long as whatever could have exposed it was read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, NamedTuple

from llm_headroom.derive.observation import COUNTERS, HISTOGRAMS, Observation
from llm_headroom.model import Histogram

_COUNTED: Final = (*COUNTERS, "cached_tokens", "preemptions", "missed_ttft", "missed_duration", *HISTOGRAMS)
_TELLING: Final = (*COUNTERS, *HISTOGRAMS)
"""Those whose fall means a restart: some engines take others back."""
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
    had = [name for name in _COUNTED if _amount(counts, name)]
    missing = [name for name in had if getattr(now, name) is None]
    gone = time.lacks and bool(missing) and (time.gap or len(missing) == len(had))
    return time.started or time.upgraded or gone or _fallen(counts, now)


def begun(counts: Observation, now: Observation, time: Between, *, restart: bool) -> Observation:
    """The counters at the poll before: those that have begun since are 0, and so are all of another process."""
    if restart and (time.started or not _any_of_both(counts, now)):
        counts = Observation()
    if not restart and not time.born:
        return counts
    fresh = {name: _zero(now, name) for name in _COUNTED if getattr(counts, name) is None and _told(now, name)}
    return replace(counts, **fresh) if fresh else counts


def carried(counts: Observation, now: Observation) -> Observation:
    """The latest value of each counter: those of this poll, and of polls before where it lacks one."""
    return Observation(**{name: getattr(now if _told(now, name) else counts, name) for name in _COUNTED})


def since(last: Observation, counts: Observation, begun: Observation) -> Observation:
    """The poll before, for rates: with the counters that have begun since then, without those that it lacked."""
    absent = {name: getattr(begun, name) for name in _COUNTED if not _told(counts, name)}
    return replace(last, **absent) if absent else last


def _told(observation: Observation, name: str) -> bool:
    return getattr(observation, name) is not None


def _any_of_both(counts: Observation, now: Observation) -> bool:
    return any(_told(counts, name) and _told(now, name) for name in _COUNTED)


def _amount(observation: Observation, name: str) -> float:
    value = getattr(observation, name)
    return value.count if isinstance(value, Histogram) else value or 0.0


def _fallen(counts: Observation, now: Observation) -> bool:
    return any(_told(now, name) and _amount(now, name) < _amount(counts, name) for name in _TELLING)


def _zero(now: Observation, name: str) -> Any:  # noqa: ANN401 - of the field's type
    value = getattr(now, name)
    return Histogram(value.bounds, (0.0,) * len(value.counts), 0.0) if isinstance(value, Histogram) else 0.0
