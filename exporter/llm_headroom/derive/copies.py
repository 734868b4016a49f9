"""Whether what an engine answers is said by itself now, or a copy of what it said before. Pure.

A process that answers spends CPU time on it, which prometheus_client exposes in hundredths of a second
(prometheus_client/process_collector.py). An exposition whose CPU time was seen to move, and which then stays the same
to the last digit, was not made for us. One whose engine core is dead was: the server before it goes on to answer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom.derive.stalls import STALLED_SECONDS
from llm_headroom.derive.words import span
from llm_headroom.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Hashable

CPU: Final = "process_cpu_seconds_total"
"""The sample that moves with each answer, without labels."""
_SURE_ANSWERS: Final = 4
"""Fewest answers after the first one that must be the same: each one would have cost some milliseconds."""
_CACHED_SECONDS: Final = 15.0
"""How long answers must be the same to show that there is a cache, which may be younger than a stall the next time."""
_CACHED_ANSWERS: Final = 3
_UNDER_WAY: Final = 10.0
"""Seconds for which what a proxy forwards may still be of before: it passes on what the engine said last."""
_ENDED: Final = 3.0
"""Fewest requests whose end shows that the engine works: a client that reads slowly ends one late."""


class Answer(NamedTuple):
    """What of an answer says when it was made: all its values in one, its CPU time, and its `Age` in seconds.

    `cpu` is None where there is none, `age` 0: only caches add one (RFC 9111, section 5.1).
    """

    content: Hashable
    cpu: float | None
    age: float = 0.0


@frozen
class Copies:
    """What is remembered of the answers of a target, in monotonic seconds.

    `ticks`: its CPU time was seen to move. `since` is when the answer of now was seen first, `again` how often since.
    `cached`: something keeps answers for a while. `copied`: the answer is none of now, and no figure of it holds.
    """

    last: Answer | None = None
    ticks: bool = False
    since: float = -math.inf
    again: int = 0
    cached: bool = False
    copied: bool = False

    def after(self, answer: Answer, at: float) -> Copies:
        """What is known after an answer at `at`.

        What was a copy is none any more once the answer has changed twice within a minute, or twice in a row: a cache
        that fetches anew now and then gives copies in between.
        """
        before = self.last
        spent = None if before is None else before.cpu
        ticks = self.ticks or (spent is not None and answer.cpu is not None and answer.cpu > spent)
        telling = (ticks and answer.cpu is not None) or answer.age > 0.0
        same = before is not None and telling and answer.content == before.content
        since, again = (self.since, self.again + 1) if same else (at, 0)
        stands = at - since
        sure = (again >= _SURE_ANSWERS and stands >= STALLED_SECONDS) or answer.age >= STALLED_SECONDS
        renewed = not same and (self.again == 0 or at - self.since < STALLED_SECONDS)
        return Copies(
            last=answer,
            ticks=ticks,
            since=since,
            again=again,
            cached=self.cached or answer.age > 0.0 or (again >= _CACHED_ANSWERS and stands >= _CACHED_SECONDS),
            copied=sure or (self.copied and not renewed),
        )

    def made(self, at: float) -> float:
        """When the answer at `at` was made, as far as is known: behind a cache, when it was seen first."""
        return self.since if self.cached and self.again else at

    def why(self, at: float) -> str:
        """How it is known that the answer is a copy."""
        age = 0.0 if self.last is None else self.last.age
        if age >= STALLED_SECONDS:
            return f"it is a copy, made {span(age)} ago as its header Age says: is a cache in front of it?"
        if self.again:
            stood = f"nothing of it has changed for {span(at - self.since)}, not even the CPU time of its process"
            return f"{stood}, so it is a copy: is a cache in front of it?"
        return "it was a copy until now; two that differ within a minute show that it is none any more"


@frozen
class Witness:
    """What a proxy in front of an engine has seen since the engine's own counters have moved last.

    `counts` are these counters, `moved` is when they did, in monotonic seconds. `firsts` and `ended` are the first
    tokens and finished requests that the proxy had counted when all that was under way then had come.
    """

    counts: Hashable = None
    moved: float = -math.inf
    firsts: float = 0.0
    ended: float = 0.0

    def after(self, counts: Hashable, firsts: float, ended: float, at: float) -> Witness:
        """What is known after a poll at `at`."""
        if counts != self.counts:
            return Witness(counts, at, firsts, ended)
        if at - self.moved < _UNDER_WAY or firsts < self.firsts or ended < self.ended:
            return Witness(counts, self.moved, firsts, ended)
        return self

    def contradicts(self, firsts: float, ended: float, at: float) -> str:
        """Why counters that stand are not those of now, by what the proxy has counted; empty if they may be."""
        began, finished = firsts - self.firsts, ended - self.ended
        if at - self.moved < STALLED_SECONDS or not (began >= 1.0 or finished >= _ENDED):
            return ""
        seen = f"its proxy has counted {began:.0f} first tokens and {finished:.0f} whole answers"
        return f"its counters have stood still for {span(at - self.moved)}, and meanwhile {seen}"
