"""One source that is polled: what it said last, as it is published, logged and exported."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from llm_headroom.model import Common
from llm_headroom.poll.essential import essential
from llm_headroom.poll.health import health_points, labels_of
from llm_headroom.poll.judging import EngineJudge, GpuJudge, gist, log_changes
from llm_headroom.poll.local import GPU_TARGET

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping, Sequence

    from llm_headroom.config.kinds import Detail
    from llm_headroom.model import Cause, Point, Snapshot
    from llm_headroom.poll.source import Source

log = logging.getLogger("llm_headroom")

OVERDUE: Final = 90.0
"""Seconds after which a collection that was due has come to its end, whatever its time limit, of 60 s at most."""


class Slot:
    """A source that is being polled, and what it said last; it goes on from a `former` slot of the same target."""

    def __init__(
        self, name: str, source: Source, extra: Mapping[str, str], detail: Detail = "full", former: Slot | None = None
    ) -> None:
        self.name = name
        self._thin = essential if detail == "essential" else list
        self.source = source
        self._extra = extra
        self._labels = Common({})
        self._judge = GpuJudge() if name == GPU_TARGET else EngineJudge()
        self.snapshot: Snapshot | None = None
        self.errors: Counter[Cause] = Counter()
        self.task: asyncio.Task[None] | None = None
        self.due = math.inf
        """When it is to be collected next, in seconds of the event loop's clock; infinite while nobody has said."""
        self._logged: tuple[Any, ...] = ()
        if former is not None:
            self.snapshot, self.errors = former.snapshot, former.errors
            self._judge, self._logged = former._judge, former._logged  # noqa: SLF001 - of its own class

    def publish(self, snapshot: Snapshot, measured: Sequence[Point] = ()) -> Snapshot:
        """Publish a snapshot with its state, by what a proxy has `measured`, too; count failures, log what changed."""
        before = () if self.snapshot is None else self.snapshot.states
        remembered = () if self.snapshot is None else self.snapshot.health.warnings
        beside = () if snapshot.health.up else (*self.source.retained, *measured)
        self.snapshot = snapshot = self._judge.judged(snapshot, time.monotonic(), beside)
        log_changes(snapshot, before)
        health = snapshot.health
        if health.error is not None:
            self.errors[health.error.cause] += 1
        for part in health.warnings:
            # The same object is no other failure, but remembered until it is tried again.
            if not any(part is known for known in remembered):
                self.errors[part.cause] += 1
        state = (health.up, health.error and health.error.cause, tuple(health.warnings), health.version)
        if state != self._logged:
            self._log(snapshot, state)
        return snapshot

    def forget(self) -> None:
        """Be as if nothing had been read."""
        self.snapshot = None

    def _log(self, snapshot: Snapshot, state: tuple[object, ...]) -> None:
        health = snapshot.health
        fields = {"target": snapshot.target, "engine": snapshot.engine or "unknown"}
        if health.error is not None:
            log.warning("source down", extra={**fields, "cause": health.error.cause, "error": health.error.message})
        elif not self._logged or not self._logged[0] or self._logged[3] != health.version:
            log.info("source up", extra={**fields, "version": health.version, "points": len(snapshot.points)})
        known = set(map(gist, self._logged[2])) if self._logged else set()
        for warning in health.warnings:
            if gist(warning) not in known:
                log.warning("source incomplete", extra={**fields, "cause": warning.cause, "error": warning.message})
        self._logged = state

    def points(self) -> list[Point]:
        """Everything to export of this source: its points, its state, and the health of its collection.

        Nothing where it should have been collected again long ago: this process was stopped, or a collection hangs.
        """
        if self.snapshot is None or time.monotonic() > self.due + OVERDUE:
            return []
        retained = () if self.snapshot.health.up else self.source.retained
        if self._labels.get("engine") != self.snapshot.engine:
            self._labels = labels_of(self.snapshot, self._extra)
        health = health_points(self.snapshot, self.errors, self.source.capped, self._labels)
        states = self._judge.points(self.snapshot, self._labels)
        return list(self._thin([*self.snapshot.points, *retained, *states, *health]))
