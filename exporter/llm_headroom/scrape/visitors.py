"""Whether anybody uses an engine that goes to sleep when nobody does: to ask it would keep it awake.

llama.cpp's server takes `/slots` and `/metrics` for work (ggml-org/llama.cpp, tools/server/README.md, sleeping on
idle). So the quieter it has been, the longer it is left alone: as long again as it has been quiet, which leaves it
asleep after two or three times its own patience. On this host the kernel shows whether clients are connected, so that
nothing is missed; elsewhere figures are absent while it is left alone.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from llm_headroom.host.proc import Proc
from llm_headroom.net.addresses import addresses_of

if TYPE_CHECKING:
    from llm_headroom.config.endpoint import Endpoint

LONGEST: Final = 900.0
"""Seconds for which an engine on another host is left alone at most: its patience, if longer, is never met."""
LOOK: Final = 0.5
"""Seconds between looks at the kernel's table of sockets, which is long on a busy host."""
PATIENCE: Final = 10.0
"""Seconds without a sign of work after which an engine is quiet."""


class Visitors:
    """The signs of work of the engine at an address. Seconds are of the monotonic clock."""

    def __init__(self, endpoint: Endpoint, proc: Proc | None = None) -> None:
        self._proc = proc or Proc()
        self._port = endpoint.port
        addresses = addresses_of(urlsplit(endpoint.url).hostname or "")
        here = self._proc.addresses()
        local = any(each.is_loopback or each in here for each in addresses)
        self.seen_all = local and bool(self._proc.listeners({self._port}))
        """Whether every client would have been seen: figures that were read before then still hold."""
        self._worked = time.monotonic()
        self._looked = -LOOK

    def work_seen(self, now: float) -> None:
        """It has done something since it was asked before."""
        self._worked = now

    def quiet_for(self, now: float) -> float:
        """For how many seconds it is to be left alone after it was asked: 0 while there is work."""
        if self.seen_all and self._worked < now and self._looked + LOOK <= now:
            self._looked = now
            if self._proc.clients(self._port):
                self._worked = now
        quiet = now - self._worked
        if quiet < PATIENCE:
            return 0.0
        return quiet if self.seen_all else min(quiet, LONGEST)
