"""What is judged of a source from one collection to the next, and what that is published as."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from llm_headroom import clock
from llm_headroom.derive import gpu_state, state
from llm_headroom.model import Level

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from llm_headroom.model import Cause, Failure, Judged, Point, Snapshot

log = logging.getLogger("llm_headroom")


class EngineJudge:
    """Judges the models of one target."""

    def __init__(self) -> None:
        self._memory: state.Memory | None = None
        self._points: tuple[object, Sequence[Point]] = (None, ())

    def judged(self, snapshot: Snapshot, at: float, beside: Sequence[Point]) -> Snapshot:
        """The snapshot with its states."""
        self._memory, states = state.judge(self._memory, snapshot, at, beside=beside)
        return replace(snapshot, states=states)

    def points(self, snapshot: Snapshot, labels: Mapping[str, str]) -> Iterable[Point]:
        """The states to export; `labels` are those of the source."""
        shown = labels, [(each.model, each.state) for each in snapshot.states]
        if self._points[0] != shown:  # a state lasts, and has a point for each that it could be
            self._points = (shown, tuple(state.state_points(snapshot.states, labels)))
        return self._points[1]


class GpuJudge:
    """Judges the GPUs of this host."""

    def __init__(self) -> None:
        self._memory: gpu_state.Memory | None = None

    def judged(self, snapshot: Snapshot, at: float, beside: Sequence[Point]) -> Snapshot:
        """The snapshot with its states."""
        self._memory, states = gpu_state.judge(self._memory, snapshot, at, beside, clock.set_by())
        return replace(snapshot, states=states)

    def points(self, snapshot: Snapshot, _labels: Mapping[str, str]) -> Iterable[Point]:
        """The states to export."""
        return gpu_state.state_points(snapshot.states)


_QUOTED: Final = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[0-9]+""")


def gist(failure: Failure) -> tuple[Cause, str]:
    """A failure without numbers and what it quotes, which may be others at each poll: so it is not logged again."""
    return failure.cause, _QUOTED.sub("", failure.message)


def log_changes(snapshot: Snapshot, before: Iterable[Judged]) -> None:
    """Log each state that is another one than before; states that are well from the start are no news."""
    known = {(each.model, each.uuid): each for each in before}
    for each in snapshot.states:
        was = known.get((each.model, each.uuid))
        if (was is None and each.state.level is Level.GOOD) or (was is not None and was.state is each.state):
            continue
        harmless = each.state.level is Level.GOOD or (was is None and each.state.level is Level.UNKNOWN)
        level = logging.INFO if harmless else logging.WARNING  # what is not known yet is no trouble
        fields = {"model": each.model, "gpu": each.gpu, "before": was and was.state.value}
        log.log(
            level,
            "state",
            extra={"target": snapshot.target, "state": each.state.value, "reason": each.reason}
            | {name: value for name, value in fields.items() if value},
        )
