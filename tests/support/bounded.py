"""Asynchronous tests that end, whatever hangs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llm_headroom.net import loop

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    import pytest

LIMIT = 180  # seconds; a healthy test takes a small part of them, on a busy machine, too


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test in an event loop of its own, of the kind that the service has.

    Raises:
        TimeoutError: it did not end.
    """

    async def bounded() -> None:
        async with asyncio.timeout(LIMIT):
            await test

    loop.run(bounded())


def timers_are_early(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the timers of the loops that follow fire so long before their time, as uvloop's do by up to a millisecond."""

    class Early(loop._Loop):  # noqa: SLF001 - the loop that the service has, but for its timers
        def call_later(  # type: ignore[override]
            self,
            delay: float,
            *args: Any,  # noqa: ANN401 - handed on
            **options: Any,  # noqa: ANN401
        ) -> asyncio.TimerHandle:
            return super().call_later(max(delay - seconds, 0.0), *args, **options)

    monkeypatch.setattr(loop, "_Loop", Early)
