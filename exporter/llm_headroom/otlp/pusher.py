"""Whether metrics are pushed, as the configuration changes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from llm_headroom.otlp.options import options
from llm_headroom.otlp.push import Push

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llm_headroom.config.settings import OtlpSettings
    from llm_headroom.otlp.push import Sources
    from llm_headroom.otlp.tally import Tally


class Pusher:
    """The push to a collector, if one is configured; restarted when its settings change.

    `sources` gives what is pushed, `changed` is called when the tally has changed, `ready` returns when there is
    something to push, `port` is the one that we serve on.
    """

    def __init__(
        self,
        tally: Tally,
        *,
        sources: Sources,
        changed: Callable[[], None],
        ready: Callable[[], Awaitable[None]],
        port: str,
    ) -> None:
        self._tally, self._sources, self._changed, self._ready = tally, sources, changed, ready
        self._port = port
        self._settings: OtlpSettings | None = None
        self._push: Push | None = None

    async def apply(self, settings: OtlpSettings | None) -> None:
        """Apply settings; None: push nothing. Problems are logged and counted, never raised."""
        if settings == self._settings:
            return
        await self.close()
        self._settings = settings
        self._tally.problems = ()
        if settings is not None:
            wanted = options(settings, os.environ)
            self._push = Push(wanted, self._tally, sources=self._sources, changed=self._changed, port=self._port)
            self._push.start(self._ready)
        self._changed()

    async def close(self) -> None:
        """Push the current readings, and end."""
        push, self._push = self._push, None
        if push is not None:
            await push.close()
