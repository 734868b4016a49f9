"""The event loop of a service that runs for long: uvloop's, where it can be had."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

made: Callable[[], asyncio.AbstractEventLoop] | None
try:
    from uvloop import Loop
except ImportError:  # no wheel exists for some platforms and interpreters: asyncio's own loop does the same, slower
    made = None
else:

    class _Loop(Loop):
        """Looks up names in the default executor, as asyncio's own loop does.

        uvloop does it in two threads of libuv, which names without an answer fill, and which the process's end waits
        for. It still does where a connection is made to a name; so one is looked up first.
        """

        async def getaddrinfo(self, *asked: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:  # noqa: A002, ANN401 - uvloop's signature
            return await self.run_in_executor(None, socket.getaddrinfo, *asked, family, type, proto, flags)

    made = _Loop


def run(service: Coroutine[None, None, None]) -> None:
    """Run a service to its end; raises what it raises."""
    with asyncio.Runner(loop_factory=made) as runner:
        runner.run(service)
