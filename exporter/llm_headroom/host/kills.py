"""Kills for lack of memory, of an engine over all control groups that it has had.

The group of a container or service ends with its main process, and takes along the count of the kill that ended it; the
next one begins at 0. What outlives it is the count of the group above (version 2, where it is visible), and that of the
whole host: both hold the kills of every group below (torvalds/linux, include/linux/memcontrol.h, memcg_memory_event;
mm/oom_kill.c, __oom_kill_process).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from llm_headroom.host.proc import Stat


class Kills(NamedTuple):
    """What is known after a reading: the process and its group, and what that has counted, None if unknown.

    `above` has what the group above and the whole host have counted, by their name, the nearer first. `past` are the
    kills of groups that are no more.
    """

    process: Stat | None
    group: Path | None
    own: float | None
    above: Mapping[str, float]
    past: float = 0.0

    @property
    def total(self) -> float | None:
        """Kills so far; None if nothing of the engine is there, or nothing counts them."""
        seen = self.own is not None or self.past or (self.process is not None and self.above)
        return self.past + (self.own or 0.0) if seen else None


def followed(before: Kills | None, now: Kills) -> Kills:
    """What is known after one more reading, `now` without its past.

    A process that is gone, with a group that did not live to count it, was killed if the nearest above that was there
    all the time has counted a kill meanwhile. Somebody else may have been killed within the same seconds while the
    engine ended by itself: the nearer, the less likely.
    """
    if before is None:
        return now
    if now.own is None and now.group == before.group:
        now = now._replace(own=before.own)
    was, counts = before.own or 0.0, now.own or 0.0
    replaced = now.group != before.group or counts < was
    gone = before.process is not None and now.process != before.process
    grown = [now.above[name] > count for name, count in before.above.items() if name in now.above]
    unseen = gone and (replaced or counts == was) and bool(grown) and grown[0]
    return now._replace(past=before.past + (was if replaced else 0.0) + (1.0 if unseen else 0.0))
