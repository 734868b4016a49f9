"""Whether requests have become others: longer prompts, less of them in the cache, longer answers, or the reverse."""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import accumulate
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from llm_headroom.derive.interval import Interval

CHANGE_SECONDS: Final = (30.0, 60.0, 120.0)
"""How long ago the mix of requests is looked at for a change."""
LEAST_ARRIVALS: Final = 10
"""Requests from which on a mix is known well enough to be told from another one."""
LIKE_SECONDS: Final = 60.0
"""Requests of so many seconds are taken to be alike, as far as they are."""
_CHANGED: Final = 6.0
"""Standard errors by which the mean of a new mix lies away."""
_LEAST_RATIO: Final = 0.1
"""Means of new requests that are a smaller part of the old mean say no more: all of a few may be cached by chance."""
_LEAST_FACTOR: Final = 1.3
"""Means that are closer are of one mix: more requests are known of it then, which is worth more."""


class Part(NamedTuple):
    """What is counted of requests: the field of an interval that has tokens, and that of their requests.

    `old_seconds` of the old mix have to be known: in less, minutes that differ anyway look like a change.
    """

    tokens: str
    requests: str
    old_seconds: float


PROMPT: Final = Part("prompt", "firsts", 120.0)
COMPUTED: Final = Part("computed", "firsts", 120.0)
ANSWER: Final = Part("generated", "admitted", 240.0)
"""Answers that began together end together, so that a full engine's minutes differ for some time."""


def changed(intervals: Sequence[Interval], part: Part, variation: Callable[[], float]) -> int:
    """How many of the latest intervals are of requests with another mean than those before; 0 if none are.

    `variation` tells the standard deviation of a single request's tokens as a share of their mean; it is seldom needed.
    """
    sums = _Sums(intervals, part)
    found = max((sums.difference(count, variation), count) for count in map(sums.count, CHANGE_SECONDS))
    return sums.begin(found[1]) if found[0] > 1.0 else 0


class _Sums:
    """Tokens and their requests, summed from the latest interval on backwards."""

    def __init__(self, intervals: Sequence[Interval], part: Part) -> None:
        self._intervals, self._part = intervals, part
        self._seconds, self._tokens, self._requests = (
            list(accumulate(map(attrgetter(name), reversed(intervals))))
            for name in ("seconds", part.tokens, part.requests)
        )

    def count(self, seconds: float) -> int:
        """How many intervals the last so many seconds are."""
        return min(bisect_left(self._seconds, seconds) + 1, len(self._seconds))

    def _means(self, count: int) -> tuple[float, float, float]:
        """The mean before the last so many intervals, the one of them, and of how many requests that is; or zeros."""
        tokens, requests = self._tokens[count - 1], self._requests[count - 1]
        others = self._requests[-1] - requests
        if min(requests, others) < LEAST_ARRIVALS:
            return 0.0, 0.0, 0.0
        return (self._tokens[-1] - tokens) / others, tokens / requests, requests

    def difference(self, count: int, variation: Callable[[], float]) -> float:
        """How far the mean of the last so many intervals is from the one before: from 1 on it is of another mix.

        The error is that of the requests' own deviation and of what minutes differ by.
        """
        mean, now, requests = self._means(count)
        old_seconds = self._seconds[-1] - self._seconds[count - 1]
        if old_seconds < self._part.old_seconds or mean <= 0 or 1.0 / _LEAST_FACTOR < now / mean < _LEAST_FACTOR:
            return 0.0
        own = variation() * mean
        apart, chance = mean * _distance(now / mean) / _CHANGED, own**2 / requests
        if apart <= math.sqrt(chance):
            return 0.0  # what minutes differ by, which takes long to find, would only make it less
        minutes = max(1.0, self._seconds[count - 1] / LIKE_SECONDS)
        before = self._intervals[: len(self._intervals) - count]
        return apart / math.sqrt(chance + between_minutes(before, self._part, mean, own) / minutes)

    def begin(self, count: int) -> int:
        """Of the last so many intervals those since the mean has changed: where it differs by most for its requests."""

        def evidence(since: int) -> float:
            mean, now, requests = self._means(since)
            return float((now - mean) ** 2 * requests * (1.0 - requests / self._requests[-1]))

        return max(range(1, count + 1), key=evidence)


def _distance(ratio: float) -> float:
    """How unlikely a mean of so many times the expected one is, in deviations that are as large as what is expected.

    Sizes are skewed: many short ones are rarer by chance than one that is very long. So a smaller mean is as unlikely
    as one of gamma variates, a larger one, of which that would say less than was seen, as one of a normal variate.
    """
    if ratio >= 1.0:
        return ratio - 1.0
    least = max(ratio, _LEAST_RATIO)
    return math.sqrt(2.0 * (least - 1.0 - math.log(least)))


def by_minute(intervals: Sequence[Interval], part: Part, mean: float) -> Iterator[tuple[list[int], float, float]]:
    """Minute by minute: which intervals, how many requests, and their mean; that of all where there are none."""
    for block in blocks_of([each.seconds for each in intervals], LIKE_SECONDS):
        count = sum(getattr(intervals[i], part.requests) for i in block)
        yield block, count, sum(getattr(intervals[i], part.tokens) for i in block) / count if count else mean


def between_minutes(intervals: Sequence[Interval], part: Part, mean: float, deviation: float) -> float:
    """The variance of the mean from minute to minute, beyond what the deviation of single requests explains."""
    known = [(count, each) for _, count, each in by_minute(intervals, part, mean)]
    total = sum(count for count, _ in known)
    if total <= 0:
        return 0.0
    spread = total - sum(count**2 for count, _ in known) / total
    seen = sum(count * (each - mean) ** 2 for count, each in known)
    return max(0.0, (seen - (len(known) - 1) * deviation**2) / spread) if spread > 0 else 0.0


def blocks_of(seconds: Sequence[float], length: float) -> list[list[int]]:
    """Indices of neighbouring intervals, together about `length` seconds."""
    blocks: list[list[int]] = [[]]
    filled = 0.0
    for index, each in enumerate(seconds):
        if filled >= length:
            blocks.append([])
            filled = 0.0
        blocks[-1].append(index)
        filled += each
    return blocks
