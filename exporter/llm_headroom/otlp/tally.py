"""How the push goes, in numbers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from llm_headroom import schema
from llm_headroom.model import Point, Series

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llm_headroom.otlp.options import Problem
    from llm_headroom.otlp.outcome import Outcome


class Tally:
    """Counts exports by result and dropped data points by cause since this process runs; holds problems of settings."""

    def __init__(self) -> None:
        self._exports: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._last_success: float | None = None
        self.problems: Sequence[Problem] = ()

    def count(self, outcome: Outcome, points: int, at: float) -> None:
        """An export of so many points ended at a unix time."""
        if outcome.cause is not None:
            self._exports["dropped"] += 1
            self._dropped[outcome.cause] += points
            return
        self._exports["partial" if outcome.rejected else "accepted"] += 1
        self._last_success = at
        if outcome.rejected:
            self._dropped["rejected"] += outcome.rejected

    def points(self) -> Iterator[Point]:
        """The counts so far; what has not happened is absent."""
        for result, count in self._exports.items():
            yield Point(Series(schema.OTLP_EXPORTS, {"result": result}), float(count), "")
        for cause, count in self._dropped.items():
            yield Point(Series(schema.OTLP_DROPPED, {"cause": cause}), float(count), "")
        if self._last_success is not None:
            yield Point(Series(schema.OTLP_LAST_SUCCESS, {}), self._last_success, "")
        for setting, effect, _ in self.problems:
            yield Point(Series(schema.OTLP_SETTING_PROBLEM, {"setting": setting, "effect": effect}), 1.0, "")
