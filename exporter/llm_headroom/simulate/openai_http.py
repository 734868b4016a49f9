"""vLLM's and SGLang's HTTP: completions, streamed or not, at the pace of the simulated engine; metrics and documents.

Forms follow the OpenAI API reference (completions, chat completions, their stream objects) as vllm-project/vllm
vllm/entrypoints/openai and sgl-project/sglang python/sglang/srt/entrypoints/openai answer them.
"""

from __future__ import annotations

import json
import time
from contextlib import aclosing
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from llm_headroom.simulate import prompts
from llm_headroom.simulate.batching import Outcome
from llm_headroom.simulate.exposition import renamed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from llm_headroom.simulate.exposition import Exposition
    from llm_headroom.simulate.http_server import Reply, Request
    from llm_headroom.simulate.live import Event, LiveEngine
    from llm_headroom.simulate.traffic import Request as Work

METRICS: Final = "text/plain; version=0.0.4; charset=utf-8"
_EVENTS: Final = "text/event-stream; charset=utf-8"
_COMPLETIONS: Final = "/v1/completions"
_CHAT: Final = "/v1/chat/completions"
_DEFAULT_TOKENS: Final = {_COMPLETIONS: 16, _CHAT: 256}
"""16 is the API's default; a chat may fill the context, and here ends by itself earlier."""
_TEXT: Final = " token"
_CUT: Final = ("crash", "rejected_down")


class OpenAiApi:
    """Answers for one engine.

    Attributes:
        renames: metric names to be served under others, as after an upgrade.
    """

    def __init__(self, live: LiveEngine, exposition: Exposition, model: str) -> None:
        self.renames: dict[str, str] = {}
        self._live = live
        self._exposition = exposition
        self._model = model
        self._answers = 0

    async def handle(self, request: Request, reply: Reply) -> None:
        """Answer one request; a client that leaves cancels this, which aborts its request in the engine."""
        if request.path in _DEFAULT_TOKENS:
            if request.method != "POST":
                await _refuse(reply, HTTPStatus.METHOD_NOT_ALLOWED, "Method Not Allowed")
                return
            try:
                document = request.json()
                work = _work(request.path, document)
            except ValueError as error:
                await _refuse(reply, HTTPStatus.BAD_REQUEST, str(error))
                return
            await self._complete(request.path == _CHAT, document, work, reply)
        elif request.path == "/metrics":
            body = self._exposition.render((self._live.read(),), now=self._live.clock.started + self._live.clock.now())
            await reply.whole(renamed(body, self.renames) if self.renames else body, content_type=METRICS)
        elif request.path in ("/health", "/health_generate", "/ping"):
            await reply.whole(b"")
        else:
            found = self._exposition.documents((self._live.read(),)).get(request.path)
            if found is None:
                await reply.json({"detail": "Not Found"}, HTTPStatus.NOT_FOUND)
            else:
                await reply.json(found)

    async def _complete(self, chat: bool, document: Mapping[str, Any], work: Work, reply: Reply) -> None:  # noqa: FBT001 - which of two forms
        self._answers += 1
        form = _Form(chat, f"{'chatcmpl' if chat else 'cmpl'}-{self._answers:08d}", document.get("model", self._model))
        async with aclosing(self._live.ask(work)) as events:
            first = await anext(events)
            if isinstance(first, Outcome) and first.reason in _CUT:
                return
            if isinstance(first, Outcome):
                await self._reject(first, reply)
            elif document.get("stream"):
                options = document.get("stream_options") or {}
                await _stream(form, work, events, reply, usage=bool(options.get("include_usage")))
            else:
                await _whole(form, work, events, reply)

    async def _reject(self, outcome: Outcome, reply: Reply) -> None:
        if outcome.reason == "rejected_queue":
            await _refuse(reply, HTTPStatus.SERVICE_UNAVAILABLE, "The request queue is full.")
            return
        asked = outcome.request.prompt_tokens + outcome.request.output_tokens
        longest = self._live.engine.config.longest
        why = f"This model's maximum context length is {longest} tokens. However, your request has {asked} tokens."
        await _refuse(reply, HTTPStatus.BAD_REQUEST, why)


def _work(path: str, document: Mapping[str, Any]) -> Work:
    if document.get("n", 1) != 1:
        raise ValueError("the simulator gives one choice: n must be 1")
    words = (
        prompts.words_of_messages(document.get("messages"))
        if path == _CHAT
        else prompts.words_of(document.get("prompt", ""))
    )
    limit = document.get("max_completion_tokens") if path == _CHAT else None
    limit = document.get("max_tokens") if limit is None else limit
    return prompts.request_of(document, words, prompts.whole("max_tokens", limit or _DEFAULT_TOKENS[path]))


class _Form:
    """How answers look: those of chats and those of completions."""

    def __init__(self, chat: bool, name: str, model: str) -> None:  # noqa: FBT001 - which of two forms
        self.chat = chat
        self._head = {"id": name, "created": int(time.time()), "model": model}

    def chunk(self, text: str | None, reason: str | None, *, role: bool = False) -> dict[str, Any]:
        """One part of a stream."""
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": reason}
        if self.chat:
            choice["delta"] = {**({"role": "assistant"} if role else {}), "content": text}
        else:
            choice["text"] = text
        return {**self._head, "object": self._kind(stream=True), "choices": [choice]}

    def usage(self, usage: Mapping[str, int]) -> dict[str, Any]:
        """The last part of a stream that was asked to tell its tokens."""
        return {**self._head, "object": self._kind(stream=True), "choices": [], "usage": usage}

    def whole(self, text: str, reason: str, usage: Mapping[str, int]) -> dict[str, Any]:
        """A whole answer."""
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": reason}
        if self.chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        return {**self._head, "object": self._kind(stream=False), "choices": [choice], "usage": usage}

    def _kind(self, *, stream: bool) -> str:
        if not self.chat:
            return "text_completion"
        return "chat.completion.chunk" if stream else "chat.completion"


def _usage(work: Work) -> dict[str, int]:
    prompt, output = work.prompt_tokens, work.output_tokens
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


def _reason(work: Work) -> str:
    return "length" if work.max_tokens is None or work.output_tokens == work.max_tokens else "stop"


async def _stream(form: _Form, work: Work, events: AsyncIterator[Event], reply: Reply, *, usage: bool) -> None:
    """Send the tokens, the first of which has been taken from ``events``, as they come."""
    told = {"usage": None} if usage else {}
    await reply.begin(_EVENTS)

    async def send(value: dict[str, Any]) -> None:
        await reply.write(b"data: " + json.dumps(value).encode() + b"\n\n")

    async def token(index: int) -> None:
        await send(form.chunk(_TEXT, _reason(work) if index == work.output_tokens else None) | told)

    if form.chat:
        await send(form.chunk("", None, role=True) | told)
    await token(1)
    async for event in events:
        if not isinstance(event, Outcome):
            await token(event)
        elif event.reason not in ("stop", "length"):
            return  # the connection is cut: the stream has no end
    if usage:
        await send(form.usage(_usage(work)))
    await reply.write(b"data: [DONE]\n\n")
    await reply.end()


async def _whole(form: _Form, work: Work, events: AsyncIterator[Event], reply: Reply) -> None:
    async for event in events:
        if isinstance(event, Outcome) and event.reason not in ("stop", "length"):
            return
    await reply.json(form.whole(_TEXT * work.output_tokens, _reason(work), _usage(work)))


async def _refuse(reply: Reply, status: HTTPStatus, why: str) -> None:
    kind = "BadRequestError" if status is HTTPStatus.BAD_REQUEST else status.phrase
    await reply.json({"error": {"message": why, "type": kind, "param": None, "code": status}}, status)
