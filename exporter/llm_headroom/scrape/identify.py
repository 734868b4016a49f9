"""Which engine answers at an address: by the names of its metrics, else by what its API says of itself."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Final

from llm_headroom.exposition.text import Parser
from llm_headroom.model import Cause, Failure
from llm_headroom.scrape.http import Client, FetchError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llm_headroom.config.endpoint import Endpoint
    from llm_headroom.engines.rules import Engine
    from llm_headroom.scrape.http import Response

OK: Final = 200


async def identify(
    endpoint: Endpoint,
    engines: Mapping[str, Engine],
    *,
    timeout: float,  # noqa: ASYNC109 - one deadline over several requests
) -> Engine:
    """The engine at an endpoint, with at most three requests within `timeout` seconds.

    Raises:
        FetchError: nothing answers there, or what answers is none of the engines (NOT_THIS_ENGINE).
    """
    client = Client(endpoint)
    deadline = time.monotonic() + timeout

    async def get(path: str) -> Response:
        return await client.get(path, timeout=max(deadline - time.monotonic(), 0.001))

    try:
        response = await get("/metrics")
        engine = _by_names(response, engines.values())
        if engine is None:
            engine = _by_owner(await get("/v1/models"), engines.values())
        if engine is None:
            engine = _by_greeting(await get("/"), engines.values())
    finally:
        await client.close()
    if engine is None:
        known = ", ".join(each.title for each in engines.values())
        raise FetchError(
            Failure(
                Cause.NOT_THIS_ENGINE,
                f"{endpoint.url} answers (/metrics with {response.status}), but could not be identified as any "
                f"of {known}; name its engine: --target ENGINE=URL",
            )
        )
    return engine


def _by_names(response: Response, engines: Iterable[Engine]) -> Engine | None:
    if response.status != OK:
        return None
    names = {key.name for key in Parser().parse(response.body).layout.keys}
    return next((engine for engine in engines if any(engine.owns(name) for name in names)), None)


def _by_owner(response: Response, engines: Iterable[Engine]) -> Engine | None:
    try:
        owners = {str(entry["owned_by"]) for entry in json.loads(response.body)["data"]}
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return next((engine for engine in engines if engine.owned_by and engine.owned_by in owners), None)


def _by_greeting(response: Response, engines: Iterable[Engine]) -> Engine | None:
    text = response.body[:200].decode("utf-8", "replace")
    return next((engine for engine in engines if engine.greeting and engine.greeting in text), None)
