"""One push: at each interval the newest readings go to the collector, and never older ones.

Everything is cumulative, so that an interval which is lost costs only its resolution. That is why nothing is queued: a
collector that was away gets what holds now. The SDK is imported, and blocks, in a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import TYPE_CHECKING, Final, TypeAlias

from llm_headroom.net.threads import NoThreadError, in_thread
from llm_headroom.otlp.options import Problem
from llm_headroom.otlp.outcome import Drop, Outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from llm_headroom.model import Point
    from llm_headroom.otlp.exporter import Exporter
    from llm_headroom.otlp.options import Options
    from llm_headroom.otlp.tally import Tally

log = logging.getLogger("llm_headroom")

Sources: TypeAlias = "Callable[[], list[tuple[float, Sequence[Point]]]]"
"""What is pushed: for each source the unix time at which its points were taken, and the points."""

_BEGAN: Final = time.time()
LONGEST_PAUSE: Final = 300.0
"""Maximum seconds for which a collector's request to wait is obeyed."""
FLUSH: Final = 3.0
"""Maximum seconds of the shutdown, since a supervisor waits for it."""
PATIENCE: Final = 1.0
"""Seconds of these for the current export to end by itself."""

_AUTH_HINT: Final = "; credentials are missing or wrong (`otlp.auth`, or OTEL_EXPORTER_OTLP_HEADERS)"


def next_beat(beat: float, interval: float, now: float) -> float:
    """When to push next, in seconds of the clock that `beat`, the time of the last push, and `now` are read from.

    Beats that passed during a slow export are skipped: the next one has what they would have shown.
    """
    return beat + interval * max(1, math.ceil((now - beat) / interval))


class Push:
    """Pushes with some options until it is closed; `changed` is called when the tally has changed."""

    def __init__(
        self, options: Options, tally: Tally, *, sources: Sources, changed: Callable[[], None], port: str
    ) -> None:
        self._options = options
        self._tally = tally
        self._sources = sources
        self._changed = changed
        self._port = port
        self._exporter: Exporter | None = None
        self._export: asyncio.Future[tuple[Outcome, int]] | None = None  # one that is not settled
        self._task: asyncio.Task[None] | None = None
        self._pause_until = 0.0
        self._failing = False
        self._dropped = 0
        self._reported: object = None

    def start(self, ready: Callable[[], Awaitable[None]]) -> None:
        """Report problems of the options, and start as soon as `ready` returns if they can be used."""
        for problem in self._options.problems:
            self._report(problem)
        if self._options.usable:
            self._task = asyncio.get_running_loop().create_task(self._run(ready))

    async def close(self) -> None:
        """Push the current readings, and end, within a few seconds whatever the collector does."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._exporter is None:
            return
        try:
            async with asyncio.timeout(FLUSH):
                if self._export is not None:
                    if not (await asyncio.wait({self._export}, timeout=PATIENCE))[0]:
                        self._exporter.interrupt()
                    self._settle(*await self._export)
                if not self._failing:  # else the exporter would try again for as long as it may
                    await self._push(self._exporter)
        except TimeoutError:
            log.warning("last otlp export given up", extra={"endpoint": self._options.shown, "seconds": FLUSH})
        except Exception:
            log.exception("internal error (bug)")
        self._exporter.interrupt()

    async def _run(self, ready: Callable[[], Awaitable[None]]) -> None:
        loop, interval = asyncio.get_running_loop(), self._options.interval
        await ready()
        try:
            while self._exporter is None:
                try:
                    self._exporter = await in_thread(self._made, "otlp")
                except NoThreadError as error:
                    self._settle(Outcome(Drop.OTHER, error.strerror), 0)
                    await asyncio.sleep(interval)
        except Exception as error:  # noqa: BLE001 - the SDK has no class of its own for settings that it refuses
            self._report(Problem("sdk", "off", f"{type(error).__name__}: {error}"))
            self._changed()
            return
        beat = loop.time()
        while True:
            try:
                await self._push(self._exporter)
            except Exception:
                log.exception("internal error (bug)")
            beat = next_beat(beat, interval, loop.time())
            await asyncio.sleep(beat - loop.time())

    def _made(self) -> Exporter:
        from llm_headroom.otlp.exporter import Exporter  # noqa: PLC0415 - megabytes, only for those who push

        return Exporter(self._options, port=self._port, began=_BEGAN)

    async def _push(self, exporter: Exporter) -> None:
        loop, sources = asyncio.get_running_loop(), self._sources()
        outcome, count = Outcome(Drop.TIMEOUT, "the export does not end"), sum(len(points) for _, points in sources)
        if loop.time() < self._pause_until:
            outcome = Outcome(Drop.UNAVAILABLE, "the collector has asked to wait")
        elif self._export is None or self._export.done():
            self._export = in_thread(lambda: exporter.export(sources), "otlp")
            # Its own deadline is renewed by each piece that a collector sends.
            try:
                async with asyncio.timeout(2 * self._options.timeout + 1):
                    outcome, count = await asyncio.shield(self._export)
                    self._export = None
            except NoThreadError as error:
                outcome = Outcome(Drop.OTHER, error.strerror)
            except TimeoutError:
                pass
            self._pause_until = loop.time() + min(outcome.pause, LONGEST_PAUSE)
        self._settle(outcome, count)

    def _report(self, problem: Problem) -> None:
        self._tally.problems = (*self._tally.problems, problem)
        extra = {"setting": problem.setting, "effect": problem.effect, "error": problem.message}
        log.warning("otlp setting cannot be used", extra=extra)

    def _settle(self, outcome: Outcome, count: int) -> None:
        """Count the outcome of an interval, and log it if it has changed."""
        self._tally.count(outcome, count, time.time())
        self._failing = outcome.cause is not None
        self._dropped += count if self._failing else 0
        self._changed()
        news = (outcome.cause, outcome.rejected > 0, outcome.message if outcome.cause is None else "")
        if news == self._reported:
            return
        fields = {"endpoint": self._options.shown}
        if self._failing:
            hint = _AUTH_HINT if outcome.cause is Drop.AUTH else ""
            error = f"{outcome.message}{hint}"
            log.warning("otlp export failed", extra={**fields, "cause": outcome.cause, "error": error})
        else:
            if not isinstance(self._reported, tuple) or self._reported[0] is not None:
                log.info("otlp export works", extra={**fields, "points": count, "dropped": self._dropped})
            if outcome.rejected:
                refused = {"rejected": outcome.rejected, "reason": outcome.message}
                log.warning("otlp points rejected", extra={**fields, **refused})
            elif outcome.message:
                log.warning("otlp collector message", extra={**fields, "detail": outcome.message})
            self._dropped = 0
        self._reported = news
