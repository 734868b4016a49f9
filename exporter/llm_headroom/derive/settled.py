"""From findings to a state that does not flicker."""

from __future__ import annotations

import math
from dataclasses import field, replace
from typing import TYPE_CHECKING, NamedTuple

from llm_headroom.derive.words import span
from llm_headroom.frozen import frozen_named
from llm_headroom.model import Judged, State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class Finding(NamedTuple):
    """What one reading shows: a state, and why."""

    state: State
    reason: str


class Sign(NamedTuple):
    """A finding from its first reading to its latest one, in monotonic seconds, and the latest reason."""

    first: float
    last: float
    reason: str


@frozen_named
class Settled:
    """The state that holds, its reason, when it began by `clock`, and all signs of states at present.

    `seen` is when the state last had a sign, in monotonic seconds.
    """

    state: State
    reason: str
    since: float
    seen: float
    signs: Mapping[State, Sign] = field(default_factory=dict)

    def judged(self, *, model: str = "", gpu: str = "", uuid: str = "") -> Judged:
        """The judgement of a model or a GPU."""
        return Judged(state=self.state, reason=self.reason, since=self.since, model=model, gpu=gpu, uuid=uuid)


def settle(  # noqa: PLR0913, PLR0917 - two clocks and three tables
    known: Settled | None,
    findings: Iterable[Finding],
    at: float,
    taken: float,
    order: Sequence[State],
    rise: Mapping[State, float],
    clear: Mapping[State, float],
) -> Settled:
    """The state after a reading at `at` (monotonic) and `taken` (by `clock`): the worst of `order` that holds.

    A finding holds once it has lasted `rise` seconds, or once the state that held has been without a sign for so long;
    where it must last, one reading is never enough. It holds until `clear` seconds after its last sign, and its reason
    says when that was. The first reading of all holds at once. Where none holds yet, the state stays.
    """
    found = dict(reversed([*findings]))  # of two findings of one state the first one speaks
    before = {} if known is None else known.signs
    signs: dict[State, Sign] = {}
    for state in order:
        sign = before.get(state)
        if state in found:
            signs[state] = Sign(at if sign is None else sign.first, at, found[state])
        elif sign is not None and at - sign.last < clear.get(state, 0.0):
            signs[state] = sign
    for state, sign in signs.items():
        if known is None or state is not known.state:
            waited = math.inf if known is None else at - (sign.first if known.state in signs else known.seen)
            # However far polls are apart, one reading may be a slip: the first one that the state has no sign in.
            alone = known is not None and sign.first == at and known.state in before
            if state in rise and (alone or waited < rise[state]):
                continue
        began = taken if known is None or state is not known.state else known.since
        # What held on for `clear` was counted then, and is no reading of now.
        reason = sign.reason if sign.last == at else f"{sign.reason}; last seen {span(at - sign.last)} ago"
        return Settled(state=state, reason=reason, since=began, seen=sign.last, signs=signs)
    if known is None:
        return Settled(state=State.UNKNOWN, reason="nothing was seen", since=taken, seen=at, signs=signs)
    return replace(known, signs=signs)
