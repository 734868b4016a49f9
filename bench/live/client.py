"""A client of OpenAI's API that keeps its own books: what it asked for, what came, and when."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Iterable

_OK: Final = 200
_PATH: Final = "/v1/completions"
LONGEST: Final = 240.0
"""Seconds for one request: engines that were frozen go on."""


@dataclass
class Books:
    """What a client saw. Durations in seconds; tokens are those that the engine put into `usage`."""

    finished: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    errors_in_streams: int = 0
    aborted: int = 0
    broken: int = 0
    unreachable: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    cached_tokens: int = 0
    without_text: int = 0
    first_token: list[float] = field(default_factory=list)
    durations: list[float] = field(default_factory=list)
    events: int = 0
    """Events with text of the requests under way."""

    def refused(self) -> int:
        """Requests that were answered with an error."""
        return self.statuses.total() - self.statuses[_OK]

    def ended(self) -> int:
        """Requests with a whole answer."""
        return self.finished.total()


@dataclass(frozen=True)
class Request:
    """What to ask: a prompt as text or tokens; `leave` after so many events with text, None to stay to the end."""

    prompt: str | tuple[int, ...] = "a short question"
    tokens: int = 16
    stream: bool = True
    model: str = "tiny"
    stop: str = ""
    leave: int | None = None

    def body(self) -> dict[str, Any]:
        """Its JSON."""
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": self.prompt,
            "max_tokens": self.tokens,
            "ignore_eos": True,
            "stream": self.stream,
        }
        if self.stream:
            body["stream_options"] = {"include_usage": True}
        if self.stop:
            body["stop"] = [self.stop]
        return body


class Client:
    """Asks one address and writes into one set of books."""

    def __init__(self, url: str) -> None:
        self.books = Books()
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=LONGEST)
        self._http = aiohttp.ClientSession(url, connector=connector, timeout=timeout)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()

    async def crowd(self, requests: Iterable[Request], *, at_once: int, apart: float = 0.0) -> None:
        """Ask all, so many at a time; `apart` are the seconds from one start to the next at the beginning."""
        gate = asyncio.Semaphore(at_once)

        async def one(number: int, request: Request) -> None:
            await asyncio.sleep(number * apart)
            async with gate:
                await self.ask(request)

        await asyncio.gather(*(one(number, request) for number, request in enumerate(requests)))

    async def garbage(self) -> None:
        """A body that is no JSON."""
        async with self._http.post(_PATH, data=b"{", headers={"content-type": "application/json"}) as response:
            self.books.statuses[response.status] += 1

    async def ask(self, request: Request) -> float | None:
        """One request; the seconds to its first event with text, None where there was none."""
        begun = time.perf_counter()
        try:
            async with self._http.post(_PATH, json=request.body()) as response:
                self.books.statuses[response.status] += 1
                if response.status != _OK:
                    await response.read()
                elif request.stream:
                    return await self._read(response, request, begun)
                else:
                    self._whole(json.loads(await response.read()), begun)
        except aiohttp.ClientConnectorError:
            self.books.unreachable += 1
        except aiohttp.ClientError:
            self.books.broken += 1
        return None

    async def _read(self, response: aiohttp.ClientResponse, request: Request, begun: float) -> float | None:
        texts, reason, first = 0, "", None
        usage: dict[str, Any] = {}
        async for raw in response.content:
            await asyncio.sleep(0)  # lines that are there already come without a pause, and others must have their turn
            line = raw.decode()
            if not line.startswith("data: {"):
                if line.startswith("error:"):
                    self.books.errors_in_streams += 1
                    return first
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                self.books.errors_in_streams += 1
                return first
            usage = event.get("usage") or usage
            for choice in event.get("choices", ()):
                reason = choice.get("finish_reason") or reason
                if choice.get("text"):
                    texts += 1
                    self.books.events += 1
                    if first is None:
                        first = time.perf_counter() - begun
                        self.books.first_token.append(first)
            if request.leave is not None and texts >= request.leave:
                self.books.aborted += 1
                return first
        self.books.without_text += first is None
        self._book(reason, usage, begun)
        return first

    def _whole(self, document: dict[str, Any], begun: float) -> None:
        self._book(document["choices"][0]["finish_reason"], document["usage"], begun)

    def _book(self, reason: str, usage: dict[str, Any], begun: float) -> None:
        books = self.books
        books.finished[reason] += 1
        books.durations.append(time.perf_counter() - begun)
        books.prompt_tokens += usage["prompt_tokens"]
        books.generation_tokens += usage["completion_tokens"]
        books.cached_tokens += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
