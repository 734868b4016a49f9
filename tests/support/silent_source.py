"""A source that a test publishes for, and that nobody asks."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_headroom.model import Point, Snapshot


class Silent:
    """Polled only by a defect."""

    capped: Mapping[str, int] = MappingProxyType({})
    interval = 1.0
    retained: tuple[Point, ...] = ()

    async def collect(self) -> Snapshot:
        """Nobody asks."""
        raise AssertionError("nobody starts the poller")

    async def estimate(self) -> None:
        """Nobody asks."""
        raise AssertionError("nobody starts the poller")

    async def close(self) -> None:
        """Nothing is open."""
