"""Whether and how metrics are pushed, as the configuration changes.

What pushes is imported only where it is asked for.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from llm_headroom.config.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from llm_headroom.config.load import Config, OtlpSettings
    from llm_headroom.model import Point
    from llm_headroom.otlp.outcome import Transport
    from llm_headroom.otlp.push import Push
    from llm_headroom.otlp.tally import Tally
    from llm_headroom.poll.published import Published

_BEGAN: Final = time.time()


class Pusher:
    """The push to a collector, if one is configured; begun anew where its settings change."""

    def __init__(self) -> None:
        self._settings: OtlpSettings | None = None
        self._push: Push | None = None
        self._tally: Tally | None = None

    def points(self) -> Iterable[Point]:
        """How the push goes."""
        return () if self._tally is None else self._tally.points()

    async def apply(self, config: Config, published: Published, changed: Callable[[], None]) -> None:
        """Take over a configuration; `changed` is called when `points` has something new.

        Raises:
            ConfigError: its protocol needs an extra that is not installed; what ran before goes on.
        """
        if config.otlp == self._settings:
            return
        transport = None if config.otlp is None else _transport(config.otlp)
        await self.close()
        self._settings = config.otlp
        if config.otlp is None or transport is None:
            return
        from llm_headroom.otlp.push import Push  # noqa: PLC0415 - only for those who push
        from llm_headroom.otlp.resource import attributes  # noqa: PLC0415
        from llm_headroom.otlp.tally import Tally  # noqa: PLC0415

        self._tally = self._tally or Tally()
        self._push = Push(
            config.otlp,
            sources=published.sources,
            settled=changed,
            transport=transport,
            tally=self._tally,
            resource=attributes(config.otlp.resource, os.environ, config.listen[0].rpartition(":")[2]),
            began=_BEGAN,
        )
        self._push.start(published.poller.first_round)

    async def close(self) -> None:
        """Push what holds now, and end."""
        push, self._push = self._push, None
        if push is not None:
            await push.close(flush=True)


def _transport(settings: OtlpSettings) -> Transport:
    if settings.protocol != "grpc":
        from llm_headroom.otlp.over_http import HttpTransport  # noqa: PLC0415

        return HttpTransport(settings)
    from llm_headroom.otlp.over_grpc import GrpcTransport, MissingGrpcError  # noqa: PLC0415

    try:
        return GrpcTransport(settings)
    except MissingGrpcError as error:
        raise ConfigError(f"otlp: {error}") from None
