"""Clients that reach an engine over HTTP, for what only a proxy in front of it can measure."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_headroom.simulate.clock import Clock
    from llm_headroom.simulate.traffic import Request


async def chat(address: str, model: str, requests: Iterable[Request], clock: Clock) -> None:
    """Send requests to Ollama's `/api/chat` at `host:port`, streamed, each when its virtual second has come.

    Requests do not wait for one another. One that fails is given up, as by a client without retries.
    """
    began = clock.now()
    async with asyncio.TaskGroup() as group:
        for request in requests:
            await asyncio.sleep(clock.seconds_until(began + request.arrival))
            group.create_task(_asked(address, model, request))


async def _asked(address: str, model: str, request: Request) -> None:
    host, _, port = address.rpartition(":")
    body = json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": "?"}],
            "prompt_tokens": request.prompt_tokens,
            "output_tokens": request.output_tokens,
            "options": {"num_predict": request.output_tokens + 1},
        }
    ).encode()
    head = f"POST /api/chat HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(head.encode() + body)
            while await reader.read(65536):
                pass
        finally:
            writer.close()
