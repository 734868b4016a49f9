"""Incidents: what requests suffered, not what metrics say."""

from __future__ import annotations

from collections import deque
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from evaluate.replay import Firsts, Run, Trouble

MERGED_SECONDS: Final = 120.0
"""Incidents with no longer a gap between them are one."""


class Span(NamedTuple):
    """From begin to end, in seconds."""

    begin: float
    end: float


class Definition(NamedTuple):
    """Within `window` seconds at least `least` first tokens, and `share` of them, were slower than the objective."""

    window: float
    share: float
    least: int


USUAL: Final = Definition(60.0, 0.05, 3)
DEFINITIONS: Final = (USUAL, Definition(30.0, 0.2, 3), Definition(120.0, 0.1, 5), Definition(300.0, 0.05, 5))
EVERY_SECONDS: Final = 5.0
BLOCKED_POLLS: Final = 1
PREEMPTIONS: Final = 3
SLOW_TOKENS: Final = 30


def merged(spans: Iterable[Span], gap: float = MERGED_SECONDS) -> list[Span]:
    """The spans in order, those no more than `gap` seconds apart as one."""
    found: list[Span] = []
    for span in sorted(spans):
        if found and span.begin - found[-1].end <= gap:
            found[-1] = Span(found[-1].begin, max(found[-1].end, span.end))
        else:
            found.append(span)
    return found


def slow_firsts(firsts: Sequence[Firsts], definition: Definition = USUAL) -> list[Span]:
    """Incidents of first tokens; each begins with the first slow one of the window that makes it an incident."""
    return merged(_breaches(((one.at, 1, int(one.slow)) for one in firsts), definition))


def slow_tokens(troubles: Sequence[Trouble]) -> list[Span]:
    """Incidents of inter-token latency: 5 % of a minute's tokens, and at least 30, slower than the objective."""
    counted = ((one.at, one.tokens, one.slow_tokens) for one in troubles)
    return merged(_breaches(counted, Definition(60.0, 0.05, SLOW_TOKENS)))


def kv_exhaustion(troubles: Sequence[Trouble]) -> list[Span]:
    """Incidents of the KV cache: within a minute 3 preemptions, or a poll that finds the head of the queue blocked."""
    blocked = ((one.at, 1, int(one.blocked)) for one in troubles)
    preempted = ((one.at, one.preemptions, one.preemptions) for one in troubles)
    return merged(
        [
            *_breaches(blocked, Definition(60.0, 0.0, BLOCKED_POLLS)),
            *_breaches(preempted, Definition(60.0, 0.0, PREEMPTIONS)),
        ]
    )


@cache
def any_trouble(run: Run) -> list[Span]:
    """Incidents of first tokens or of the KV cache."""
    return merged([*slow_firsts(run.firsts), *kv_exhaustion(run.troubles)])


def _breaches(events: Iterable[tuple[float, int, int]], definition: Definition) -> Iterator[Span]:
    """Every 5 s at which the window before satisfies a definition: from its first bad event to that moment.

    Events are in order: when, how many, how many of them bad.
    """
    coming = deque(events)
    recent: deque[tuple[float, int, int]] = deque()
    total = bad = 0
    moment = 0.0
    while coming or recent:
        moment += EVERY_SECONDS
        while coming and coming[0][0] <= moment:
            recent.append(coming.popleft())
            total, bad = total + recent[-1][1], bad + recent[-1][2]
        while recent and recent[0][0] <= moment - definition.window:
            _, gone, gone_bad = recent.popleft()
            total, bad = total - gone, bad - gone_bad
        if bad >= definition.least and bad >= definition.share * total:
            yield Span(next(at for at, _, worse in recent if worse), moment)
