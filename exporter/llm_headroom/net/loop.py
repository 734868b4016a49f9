"""The event loop of a service that runs for long: uvloop's, where it can be had."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine

try:
    from uvloop import Loop
except ImportError:  # no wheel exists for some platforms and interpreters: asyncio's own loop does the same, slower
    from asyncio import SelectorEventLoop as Loop  # type: ignore[assignment]


class _Loop(Loop):
    """Looks up names, and names alone, in the default executor, and ends where no thread can be had.

    uvloop looks them up in two threads of libuv, which names without an answer fill, and which the process's end waits
    for. It still does where a connection is made to a name; so one is looked up first.
    """

    async def getaddrinfo(  # noqa: PLR0913 - asyncio's signature
        self,
        host: Any,  # noqa: ANN401
        port: Any,  # noqa: ANN401
        *,
        family: int = 0,
        type: int = 0,  # noqa: A002
        proto: int = 0,
        flags: int = 0,
    ) -> Any:  # noqa: ANN401
        try:  # of an address nobody is asked: it waits neither for a thread nor behind names without an answer
            return socket.getaddrinfo(host, port, family, type, proto, flags | socket.AI_NUMERICHOST)
        except socket.gaierror:
            return await self.run_in_executor(None, socket.getaddrinfo, host, port, family, type, proto, flags)

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncio's
        del timeout
        with contextlib.suppress(RuntimeError):  # it waits in a thread of its own: what the service uses needs none
            await super().shutdown_default_executor()


def run(service: Coroutine[None, None, None]) -> None:
    """Run a service to its end; raises what it raises."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        runner.run(service)
