"""Asynchronous tests that end, whatever hangs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llm_headroom.net import loop

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

LIMIT = 60  # seconds; a healthy test takes a small part of them


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test in an event loop of its own, of the kind that the service has.

    Raises:
        TimeoutError: it did not end.
    """

    async def bounded() -> None:
        async with asyncio.timeout(LIMIT):
            await test

    loop.run(bounded())
