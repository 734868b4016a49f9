"""What counters of one model were at times, and what they have grown by within a window. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom.derive.figures import UNNAMED
from llm_headroom.derive.observation import growth

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

COUNTED: Final = (
    *("firsts", "good", "tokens", "timely", "finished", "failed", "responses", "wrong", "routed", "lost"),
    *UNNAMED.values(),
)
"""The counters of which the last minutes are judged."""


class Sample(NamedTuple):
    """The counters of `COUNTED` at one time; None where one is not exposed."""

    at: float
    counts: tuple[float | None, ...]


def of_this_life(
    samples: tuple[Sample, ...], before: Sequence[float | None], now: Sequence[float | None]
) -> tuple[Sample, ...]:
    """The samples, in which counters that have begun anew were 0: two of them may have passed what they were since.

    Their difference would then be of two lives, or of two objectives.
    """
    begun = {
        place
        for place, (last, count) in enumerate(zip(before, now, strict=False))
        if last is not None and count is not None and count < last
    }
    if not begun:
        return samples
    return tuple(
        Sample(at, tuple(0.0 if place in begun and count is not None else count for place, count in enumerate(counts)))
        for at, counts in samples
    )


def increase(samples: Sequence[Sample], own: Mapping[str, float], at: float, window: float) -> dict[str, float]:
    """What each counter has grown by within a window's seconds, as far back as is remembered; never negative.

    One that began within the window has grown from its first sample on, as Prometheus sees it.
    """
    base = next((number for number in reversed(range(len(samples))) if samples[number].at <= at - window), 0)
    found = dict.fromkeys(COUNTED, 0.0)
    for place, name in enumerate(COUNTED):
        now = own.get(name)
        if now is None:
            continue
        first = samples[base].counts[place] if samples else None
        if first is None:
            first = next((count for each in samples[base:] if (count := each.counts[place]) is not None), None)
        found[name] = growth(first, now)
    return found
