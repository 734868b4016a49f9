"""How the push goes, in numbers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from llm_headroom import schema
from llm_headroom.model import Point, Series

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_headroom.otlp.outcome import Drop


class Tally:
    """Counts exports by result, and the data points that were dropped by cause, since this process runs."""

    def __init__(self) -> None:
        self._exports: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._last_success: float | None = None

    def accepted(self, at: float, rejected: int) -> None:
        """An export was accepted at a unix time, but for some data points."""
        self._exports["partial" if rejected else "accepted"] += 1
        self._last_success = at
        if rejected:
            self._dropped["rejected"] += rejected

    def dropped(self, cause: Drop, points: int) -> None:
        """An interval was given up."""
        self._exports["dropped"] += 1
        self._dropped[cause] += points

    def points(self) -> Iterator[Point]:
        """The counts so far; what has not happened is absent."""
        for result, count in self._exports.items():
            yield Point(Series(schema.OTLP_EXPORTS, {"result": result}), float(count), "")
        for cause, count in self._dropped.items():
            yield Point(Series(schema.OTLP_DROPPED, {"cause": cause}), float(count), "")
        if self._last_success is not None:
            yield Point(Series(schema.OTLP_LAST_SUCCESS, {}), self._last_success, "")
