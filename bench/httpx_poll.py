"""What a poll by the usual libraries is: httpx fetches, prometheus_client parses, and nothing is done with it.

    python bench/httpx_poll.py SECONDS URL [URL ...]

`poll.py` starts this and measures it from outside.
"""

from __future__ import annotations

import asyncio
import sys

import httpx
from prometheus_client.parser import text_string_to_metric_families


async def _poll(client: httpx.AsyncClient, url: str, interval: float, phase: float) -> None:
    loop = asyncio.get_running_loop()
    due = loop.time() + interval * phase
    while True:
        await asyncio.sleep(due - loop.time())
        response = await client.get(url, headers={"Accept-Encoding": "identity"})
        list(text_string_to_metric_families(response.text))
        due = max(due + interval, loop.time())


async def _main(interval: float, urls: list[str]) -> None:
    async with httpx.AsyncClient(limits=httpx.Limits(max_keepalive_connections=None)) as client:
        await asyncio.gather(*(_poll(client, url, interval, index / len(urls)) for index, url in enumerate(urls)))


if __name__ == "__main__":
    asyncio.run(_main(float(sys.argv[1]), sys.argv[2:]))
