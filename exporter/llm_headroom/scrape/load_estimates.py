"""Runs an engine's twin now and then, off the poll's path and within a budget of CPU time."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from llm_headroom.derive.capacity import ESTIMATE_SECONDS, Estimate, targets
from llm_headroom.derive.trial import estimated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_headroom.derive.capacity import Known, Target
    from llm_headroom.derive.memory import Memory
    from llm_headroom.derive.slo import Objective

log = logging.getLogger("llm_headroom")

REST: Final = 200.0
"""Seconds of rest for each second of CPU that an estimate took: half a percent of a core for each model."""
FAILED_SECONDS: Final = 600.0


class LoadEstimates:
    """The estimates of one target's models. `objectives` are those of the target, `clock` is monotonic, in seconds."""

    def __init__(
        self, target: str, objectives: Sequence[Objective], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._target, self._objectives, self._clock = target, tuple(objectives), clock
        self._not_before: dict[str, float] = {}
        self._owed: dict[str, float] = {}

    async def made(self, memory: Memory) -> list[tuple[str, Estimate]]:
        """An estimate, made in a worker thread, for each model whose last one is old enough, or of another mix.

        The seconds that one comes early by are rested after the next one.
        """
        now = self._clock()
        self._not_before = {model: at for model, at in self._not_before.items() if at > now}
        self._owed = {model: seconds for model, seconds in self._owed.items() if model in memory.models}
        found = []
        for model, known in memory.models.items():
            early = self._not_before.get(model, now) - now
            if not known.load.due or (early and (model in self._owed or not known.load.of_other_mix)):
                continue
            wanted = targets(self._objectives, known.tallies)
            estimate, spent = await asyncio.to_thread(self._run, model, known.load, wanted)
            self._not_before[model] = now + max(ESTIMATE_SECONDS, REST * spent) + self._owed.pop(model, 0.0)
            if early:
                self._owed[model] = early
            if estimate is not None:
                found.append((model, estimate))
        return found

    def _run(self, model: str, known: Known, wanted: Sequence[Target]) -> tuple[Estimate | None, float]:
        began = time.thread_time()
        try:
            estimate = estimated(known, wanted)
        except Exception:  # an estimate that fails must not end the estimates of others
            log.exception("load headroom failed", extra={"target": self._target, "model": model})
            return None, FAILED_SECONDS / REST
        return estimate, time.thread_time() - began
