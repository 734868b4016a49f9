"""Asynchronous tests that end, whatever hangs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

LIMIT = 60  # seconds; a healthy test takes a small part of them


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test in an event loop of its own.

    Raises:
        TimeoutError: it did not end.
    """

    async def bounded() -> None:
        async with asyncio.timeout(LIMIT):
            await test

    asyncio.run(bounded())
