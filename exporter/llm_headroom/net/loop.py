"""The event loop of a service that runs for long: uvloop's, where it can be had."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

try:
    from uvloop import new_event_loop
except ImportError:  # no wheel exists for some platforms and interpreters: asyncio's own loop does the same, slower
    made: Callable[[], asyncio.AbstractEventLoop] | None = None
else:
    made = new_event_loop


def run(service: Coroutine[None, None, None]) -> None:
    """Run a service to its end; raises what it raises."""
    with asyncio.Runner(loop_factory=made) as runner:
        runner.run(service)
