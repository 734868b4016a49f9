"""What this host shows of a llama.cpp server: whether its slots share one KV cache."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from llm_headroom.engines.built_in.llamacpp import PROCESS
from llm_headroom.host import runners
from llm_headroom.host.proc import Proc
from llm_headroom.net.threads import NoThreadError, in_thread
from llm_headroom.scrape.layers import Reported

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_headroom.config.settings import Target

LOOK_AGAIN: Final = 60.0
"""Seconds between looks for the process: it opens the descriptors of every process that may be looked into."""


class ServerLayer:
    """The process of a llama.cpp server that runs here, looked for now and then."""

    def __init__(self, target: Target, proc: Proc | None = None) -> None:
        self._proc = proc or Proc()
        self._port = target.endpoint.port
        self._looked = -LOOK_AGAIN
        self._server: runners.Server | None = None

    async def read(self, documents: Mapping[str, Any], deadline: float) -> Reported:
        """Whether the slots share one KV cache, under the key `PROCESS`; nothing if the process is not visible."""
        del documents
        now = time.monotonic()
        if now - self._looked >= LOOK_AGAIN:
            self._looked = now
            try:
                async with asyncio.timeout(max(deadline - now, 0.0)):
                    self._server = await in_thread(lambda: runners.server(self._proc, self._port), "llama-server")
            except (TimeoutError, NoThreadError):
                self._server = None
        return Reported() if self._server is None else Reported(documents={PROCESS: self._server.unified})

    async def close(self) -> None:
        """Nothing is open."""
