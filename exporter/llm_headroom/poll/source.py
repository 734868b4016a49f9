"""What is polled: the protocol of a source, and the snapshot of a collection that failed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from llm_headroom.model import Health, Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from llm_headroom.model import Failure, Point
    from llm_headroom.scrape.label_cap import LabelCap


class Source(Protocol):
    """Something that is collected: an engine or this host's GPUs."""

    @property
    def capped(self) -> Mapping[str, int]:
        """Label values that were reported as `other`, by label."""
        ...

    @property
    def interval(self) -> float:
        """Seconds between collections."""
        ...

    @property
    def retained(self) -> Sequence[Point]:
        """Points that the source counts itself, exported also while it fails."""
        ...

    async def collect(self) -> Snapshot:
        """One collection; failures are in its health, never raised."""
        ...

    async def estimate(self) -> None:
        """What takes too long for a collection, if it is time for it; the next collection has it."""
        ...

    async def close(self) -> None:
        """Let go of connections and libraries."""
        ...


class NamedSource(Source, Protocol):
    """A source beside those of the configuration; `labels` are those of its own series."""

    @property
    def name(self) -> str:
        """Its target's name."""
        ...

    @property
    def labels(self) -> Mapping[str, str]:
        """The operator's labels."""
        ...


class Measured(Protocol):
    """What was measured of the traffic to a target; `cap` has the models that it names."""

    @property
    def cap(self) -> LabelCap:
        """The label values that it has let through."""
        ...

    def points(self, base: Mapping[str, str], own: Sequence[Point] = ()) -> Iterable[Point]:
        """Everything so far; `base` are the labels that every series of the target has, `own` what it exposes."""
        ...


def failed(  # noqa: PLR0913, PLR0917 - a snapshot's fields
    target: str, engine: str, taken: float, started: float, failure: Failure, last_success: float | None = None
) -> Snapshot:
    """A collection that began at `taken` (unix time; `started` on the monotonic clock) and gave nothing."""
    return Snapshot(
        target=target,
        engine=engine,
        taken=taken,
        health=Health(up=False, error=failure, duration_seconds=time.monotonic() - started, last_success=last_success),
    )
