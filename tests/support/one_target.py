"""One target polled: what a server that answers so and so comes to."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

from engine_server import EngineServer
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Target
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.scrape.collect import Collector

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine_server import Behaviour, Reply
    from llm_headroom.model import Snapshot
    from llm_headroom.scrape.layers import Layer


class Polled(NamedTuple):
    """The last of some polls, and every path that the server was asked for."""

    snapshot: Snapshot
    asked: list[str]


def polled(
    engine: str,
    routes: Mapping[str, Reply | Behaviour],
    *,
    polls: int = 1,
    layers: Sequence[Layer] = (),
    **settings: Any,  # noqa: ANN401 - a target's settings
) -> Polled:
    """Polls a server as an engine."""

    async def collect() -> Polled:
        with EngineServer(routes) as server:
            target = Target(name="t", endpoint=Endpoint(url=server.url), **settings)
            collector = Collector(target, BUILT_IN[engine], timeout=30, label_limit=200, layers=layers)
            for _ in range(polls):
                snapshot = await collector.collect()
            await collector.close()
            return Polled(snapshot, [path for _, path in server.requests])

    return asyncio.run(collect())
