"""Ollama's HTTP: ``/api/chat`` and ``/api/generate`` at the pace of the simulated server, and what it tells of itself.

Forms follow ollama/ollama docs/api.md and server/routes.go.
"""

from __future__ import annotations

import json
from contextlib import aclosing
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from llm_headroom.simulate import ollama_api, prompts
from llm_headroom.simulate.batching import Outcome
from llm_headroom.simulate.live import QueueFullError
from llm_headroom.simulate.ollama_model import BUSY_MESSAGE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from llm_headroom.simulate.http_server import Reply, Request
    from llm_headroom.simulate.live import Event, LiveOllama
    from llm_headroom.simulate.traffic import Request as Work

_LINES: Final = "application/x-ndjson"
_CHAT: Final = "/api/chat"
_GENERATE: Final = "/api/generate"
_DEFAULT_TOKENS: Final = 128
_TEXT: Final = " token"
_NANOSECONDS: Final = 1_000_000_000


class OllamaApi:
    """Answers for one server."""

    def __init__(self, live: LiveOllama) -> None:
        self._live = live

    async def handle(self, request: Request, reply: Reply) -> None:
        """Answer one request."""
        if request.method == "POST" and request.path in (_CHAT, _GENERATE):
            try:
                document = request.json()
                work = _work(request.path, document)
            except ValueError as error:
                await reply.json({"error": str(error)}, HTTPStatus.BAD_REQUEST)
                return
            await self._answer(request.path == _CHAT, document, work, reply)
        elif request.path == "/":
            await reply.whole(b"Ollama is running", content_type="text/plain; charset=utf-8")
        else:
            await self._describe(request, reply)

    async def _describe(self, request: Request, reply: Reply) -> None:
        config = self._live.server.config
        if request.path == "/api/show" and request.method == "POST":
            try:
                asked = str(request.json().get("model", ""))
                await reply.json(ollama_api.show(_tagged(asked), config))
            except ValueError as error:
                await reply.json({"error": str(error)}, HTTPStatus.BAD_REQUEST)
            except KeyError:
                await reply.json({"error": f"model '{asked}' not found"}, HTTPStatus.NOT_FOUND)
            return
        found = ollama_api.documents(self._live.read(), config, start=self._live.clock.started).get(request.path)
        if found is None:
            await reply.whole(b"404 page not found", HTTPStatus.NOT_FOUND, "text/plain")
        else:
            await reply.json(found)

    async def _answer(self, chat: bool, document: Mapping[str, Any], work: Work, reply: Reply) -> None:  # noqa: FBT001 - which of two forms
        asked = str(document.get("model", ""))
        name = _tagged(asked)
        async with aclosing(self._live.ask(name, work)) as events:
            try:
                first = await anext(events)
            except KeyError:
                await reply.json({"error": f"model '{asked}' not found"}, HTTPStatus.NOT_FOUND)
                return
            except QueueFullError:
                await reply.json({"error": BUSY_MESSAGE}, HTTPStatus.SERVICE_UNAVAILABLE)
                return
            await self._tell(
                _Form(chat, asked), name, _after(first, events), reply, stream=document.get("stream", True)
            )

    async def _tell(self, form: _Form, name: str, events: AsyncIterator[Event], reply: Reply, *, stream: bool) -> None:
        if stream:
            await reply.begin(_LINES)
        tokens = 0
        async for event in events:
            if not isinstance(event, Outcome):
                tokens += 1
                if stream:
                    await reply.write(form.line(_TEXT))
            elif event.reason not in ("stop", "length"):
                return  # the connection is cut: the answer has no end
            else:
                last = form.line("" if stream else _TEXT * tokens, _timings(event, self._live.loaded_at(name)))
                if not stream:
                    await reply.whole(last)
                    return
                await reply.write(last)
                await reply.end()


def _tagged(name: str) -> str:
    return name if ":" in name else f"{name}:latest"


async def _after(first: Event, rest: AsyncIterator[Event]) -> AsyncIterator[Event]:
    yield first
    async for event in rest:
        yield event


class _Form:
    """How answers look: those of chats and those of generations."""

    def __init__(self, chat: bool, model: str) -> None:  # noqa: FBT001 - which of two forms
        self._chat = chat
        self._model = model

    def line(self, text: str, last: Mapping[str, Any] | None = None) -> bytes:
        """One line of a stream; ``last`` has the end's reason and timings."""
        part = {"message": {"role": "assistant", "content": text}} if self._chat else {"response": text}
        moment = datetime.now(tz=UTC).isoformat().replace("+00:00", "Z")
        end = {"done": False} if last is None else {"done": True, **last}
        return json.dumps({"model": self._model, "created_at": moment, **part, **end}).encode() + b"\n"


def _timings(outcome: Outcome, loaded_at: float | None) -> dict[str, Any]:
    """The durations that the last line tells, in nanoseconds of virtual time."""
    begin, admitted, first = outcome.request.arrival, outcome.admitted, outcome.first_token
    if admitted is None or first is None:
        raise RuntimeError("a request ended well without having run")
    load = max(0.0, (begin if loaded_at is None else loaded_at) - begin)
    return {
        "done_reason": outcome.reason,
        "total_duration": round((outcome.ended - begin) * _NANOSECONDS),
        "load_duration": round(load * _NANOSECONDS),
        "prompt_eval_count": outcome.request.prompt_tokens,
        "prompt_eval_duration": round((first - admitted) * _NANOSECONDS),
        "eval_count": outcome.generated,
        "eval_duration": round((outcome.ended - first) * _NANOSECONDS),
    }


def _work(path: str, document: Mapping[str, Any]) -> Work:
    if path == _CHAT:
        words = prompts.words_of_messages(document.get("messages", []))
    else:
        words = prompts.words_of(document.get("prompt", ""))
    options = document.get("options") or {}
    allowed = options.get("num_predict", _DEFAULT_TOKENS)
    return prompts.request_of(
        document, words, _DEFAULT_TOKENS if allowed == -1 else prompts.whole("num_predict", allowed)
    )
