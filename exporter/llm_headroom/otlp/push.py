"""The push: at each interval the newest readings go to the collector, and never older ones.

Everything is cumulative, so that an interval which is lost costs only its resolution. That is why nothing is queued: a
collector that was away gets what holds now.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from llm_headroom.otlp.conventions import Conventions
from llm_headroom.otlp.cumulative import Started, Starts, nanoseconds
from llm_headroom.otlp.outcome import Drop, Outcome
from llm_headroom.otlp.resource import SCHEMA_URL
from llm_headroom.render.otlp import Encoder, Line, Reading, line_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from llm_headroom.config.endpoint import Secret
    from llm_headroom.config.settings import OtlpSettings
    from llm_headroom.model import Point, Series
    from llm_headroom.otlp.outcome import Transport
    from llm_headroom.otlp.tally import Tally

log = logging.getLogger("llm_headroom")

Sources: TypeAlias = "Iterable[tuple[float, Sequence[Point]]]"
"""What is exported: for each source the unix time at which its points were taken, and the points."""

FIRST_DELAY: Final = 1.0
MOST_DELAY: Final = 30.0
LONGEST_PAUSE: Final = 300.0
"""Seconds for which a collector is obeyed that asks to be left alone."""
MOST_LINES: Final = 200_000
"""Series that are remembered, gone ones included."""
FLUSH: Final = 5.0
"""Seconds that the last export may take at most, since whoever ends us waits."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A request, and the readings in it that stand for series."""

    body: bytes
    count: int
    alive: Mapping[tuple[str, bytes], Reading]


class Push:
    """Pushes what `sources` gives until it is closed. `began` is the unix time at which this process started.

    `settled` is called when the tally has changed.
    """

    def __init__(  # noqa: PLR0913 - what it works with
        self,
        settings: OtlpSettings,
        *,
        sources: Callable[[], Sources],
        settled: Callable[[], None],
        transport: Transport,
        tally: Tally,
        resource: Mapping[str, str],
        began: float,
    ) -> None:
        self._settings = settings
        self._sources = sources
        self._settled = settled
        self._transport = transport
        self._tally = tally
        self._encoder = Encoder(resource, SCHEMA_URL)
        self._starts = Starts(began)
        self._conventions = Conventions() if settings.semantic_conventions else None
        self._lines: dict[Series, Line] = {}
        self._alive: Mapping[tuple[str, bytes], Reading] = {}
        self._pause_until = 0.0
        self._told: object = None
        self._dropped = 0
        self._task: asyncio.Task[None] | None = None

    def start(self, ready: Callable[[], Awaitable[None]]) -> None:
        """Begin as soon as `ready` returns; itself it does so at once."""
        self._task = asyncio.get_running_loop().create_task(self._run(ready))

    async def close(self, *, flush: bool) -> None:
        """End; before that, push what holds now."""
        if self._task is not None:
            self._task.cancel()
            await self._transport.close()  # a call that blocks a thread ends with it
            await asyncio.gather(self._task, return_exceptions=True)
        if flush:
            prepared = self._prepare(time.time())
            outcome = await self._attempt(prepared, min(self._settings.timeout, FLUSH))
            self._settle(prepared, outcome)
        await self._transport.close()

    async def _run(self, ready: Callable[[], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        await ready()
        interval = self._settings.interval
        beat = loop.time()
        while True:
            try:
                await self._export(beat + interval)
            except Exception:
                log.exception("export failed by a defect of llm-headroom")
            # Beats that passed during a slow export are skipped: the next one has what they would have told.
            beat += interval * max(1, math.ceil((loop.time() - beat) / interval))
            await asyncio.sleep(beat - loop.time())

    async def _export(self, deadline: float) -> None:
        """Push what holds now; try again until the next interval's is due."""
        loop = asyncio.get_running_loop()
        prepared = await asyncio.to_thread(self._prepare, time.time(), self._gathered())
        if loop.time() < self._pause_until:
            self._settle(prepared, Outcome(Drop.UNAVAILABLE, "the collector has asked to wait"))
            return
        delay = FIRST_DELAY
        while True:
            outcome = await self._attempt(prepared, self._settings.timeout)
            wait = delay * random.uniform(0.5, 1.0) if outcome.retry_after is None else outcome.retry_after  # noqa: S311
            if not outcome.retry or loop.time() + wait >= deadline:
                break
            await asyncio.sleep(wait)
            delay = min(delay * 2, MOST_DELAY)
        if outcome.cause is not None and outcome.retry_after is not None:
            self._pause_until = loop.time() + min(outcome.retry_after, LONGEST_PAUSE)
        self._settle(prepared, outcome)

    async def _attempt(self, prepared: _Prepared, timeout: float) -> Outcome:  # noqa: ASYNC109
        try:
            headers = {**self._settings.headers, **{name: _secret(s) for name, s in self._settings.secrets.items()}}
        except (OSError, ValueError) as error:
            return Outcome(Drop.CREDENTIALS, str(error))
        return await self._transport.send(prepared.body, headers, timeout)

    def _gathered(self) -> list[Started]:
        return self._starts.started(self._sources())

    def _prepare(self, now: float, started: list[Started] | None = None) -> _Prepared:
        if started is None:
            started = self._gathered()
        readings = [self._reading(each) for each in started]
        if self._conventions is not None:
            readings += self._conventions.readings(started)
        if len(self._lines) > MOST_LINES:
            self._lines = {series: self._lines[series] for (series, _, _), _, _ in started}
        alive = {reading.line.key: reading for reading in readings}
        # Without a word about series that are gone, backends go on with their last values for minutes.
        gone = [
            last._replace(value=None, time=nanoseconds(now)) for key, last in self._alive.items() if key not in alive
        ]
        body = self._encoder.request([*readings, *gone])
        return _Prepared(body, len(readings) + len(gone), alive)

    def _reading(self, started: Started) -> Reading:
        (series, value, _), start, at = started
        line = self._lines.get(series)
        if line is None:
            line = self._lines[series] = line_of(series)
        return Reading(line, value, start, at)

    def _settle(self, prepared: _Prepared, outcome: Outcome) -> None:
        """Count what became of an interval, and log it if it is news."""
        if outcome.cause is None:
            self._alive = prepared.alive
            self._tally.accepted(time.time(), outcome.rejected)
        else:
            self._tally.dropped(outcome.cause, prepared.count)
            self._dropped += prepared.count
        self._settled()
        told = (outcome.cause, outcome.rejected > 0, outcome.message if outcome.cause is None else "")
        if told == self._told:
            return
        fields = {"endpoint": self._settings.url}
        if outcome.cause is not None:
            log.warning("otlp export failed", extra={**fields, "cause": outcome.cause, "error": outcome.message})
        else:
            if not isinstance(self._told, tuple) or self._told[0] is not None:
                log.info("otlp export works", extra={**fields, "points": prepared.count, "dropped": self._dropped})
            if outcome.rejected:
                refused = {"rejected": outcome.rejected, "reason": outcome.message}
                log.warning("otlp points rejected", extra={**fields, **refused})
            elif outcome.message:
                log.warning("otlp collector says", extra={**fields, "message_of_it": outcome.message})
            self._dropped = 0
        self._told = told


def _secret(secret: Secret) -> str:
    """A header's value, read anew at each use."""
    if secret.file is None:
        import os  # noqa: PLC0415

        return os.environ.get(secret.env or "", "")
    with suppress(UnicodeDecodeError):
        value = secret.file.read_text(encoding="utf-8").strip("\r\n")
        if value.isascii() and value.isprintable():
            return value
    raise ValueError(f"file {secret.file} does not hold one line of ASCII")
