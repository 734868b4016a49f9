"""Several sources of one target: its own API, the processes that it starts, a proxy in front of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from llm_headroom.model import NOTHING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from llm_headroom.model import Failure, Point


class Reported(NamedTuple):
    """What a layer reports at one poll; `documents` are for the engine's own facts, by key."""

    points: Sequence[Point] = ()
    warnings: Sequence[Failure] = ()
    documents: Mapping[str, Any] = NOTHING


class Layer(Protocol):
    """Another source of a target, beside its own API."""

    async def read(self, documents: Mapping[str, Any], deadline: float) -> Reported:
        """One reading, by a deadline in seconds of the monotonic clock; failures are among its warnings, never raised.

        `documents` is what has been read of the engine itself at this poll.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


def merge(layers: Iterable[Iterable[Point]]) -> list[Point]:
    """One set of points out of those of several layers, the richest layer first.

    For each metric and model only the first layer that has it is used: values of two sources are never mixed, and
    no series appears twice. A model that one layer does not see comes from the next one.
    """
    merged: list[Point] = []
    taken: set[tuple[str, str]] = set()
    for layer in layers:
        mine: set[tuple[str, str]] = set()
        for point in layer:
            key = (point.series.metric.name, point.series.model)
            if key not in taken:
                mine.add(key)
                merged.append(point)
        taken |= mine
    return merged
