"""vLLM's and SGLang's HTTP: completions, streamed or not, at the pace of the simulated engine; metrics and documents.

Forms follow the OpenAI API reference (completions, chat completions, their stream objects) as vllm-project/vllm
vllm/entrypoints/openai and sgl-project/sglang python/sglang/srt/entrypoints/openai answer them.
"""

from __future__ import annotations

import json
import time
from contextlib import AsyncExitStack, aclosing
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from llm_headroom.net.http_messages import CutError, Response
from llm_headroom.simulate import prompts, replies
from llm_headroom.simulate.engine_state import Outcome
from llm_headroom.simulate.exposition import renamed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from llm_headroom.net.http_messages import Request
    from llm_headroom.simulate.exposition import Exposition
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

    async def handle(self, request: Request) -> Response:
        """Answer one request; a client that leaves cancels this, which aborts its request in the engine.

        Raises:
            CutError: the engine dies before it has answered.
        """
        if request.path in _DEFAULT_TOKENS:
            if request.method != "POST":
                return _refusal(HTTPStatus.METHOD_NOT_ALLOWED, "Method Not Allowed")
            try:
                document = replies.document(request)
                work = _work(request.path, document)
            except ValueError as error:
                return _refusal(HTTPStatus.BAD_REQUEST, str(error))
            return await self._complete(request.path == _CHAT, document, work)
        if request.path == "/metrics":
            body = self._exposition.render((self._live.read(),), now=self._live.clock.started + self._live.clock.now())
            return Response(renamed(body, self.renames) if self.renames else body, content_type=METRICS)
        if request.path in ("/health", "/health_generate", "/ping"):
            return Response(b"", content_type=replies.JSON)
        found = self._exposition.documents((self._live.read(),)).get(request.path)
        if found is None:
            return replies.as_json({"detail": "Not Found"}, HTTPStatus.NOT_FOUND)
        return replies.as_json(found)

    async def _complete(self, chat: bool, document: Mapping[str, Any], work: Work) -> Response:  # noqa: FBT001 - which of two forms
        self._answers += 1
        form = _Form(chat, f"{'chatcmpl' if chat else 'cmpl'}-{self._answers:08d}", document.get("model", self._model))
        events = self._live.ask(work)
        async with AsyncExitStack() as ends:
            await ends.enter_async_context(aclosing(events))
            first = await anext(events)
            if isinstance(first, Outcome):
                return self._rejection(first)
            if not document.get("stream"):
                return await _whole(form, work, events)
            options = document.get("stream_options") or {}
            parts = _parts(form, work, events, usage=bool(options.get("include_usage")))
            ends.pop_all()  # the response ends them
            return replies.in_parts(_EVENTS, parts, events)

    def _rejection(self, outcome: Outcome) -> Response:
        if outcome.reason in _CUT:
            raise CutError
        if outcome.reason == "rejected_queue":
            return _refusal(HTTPStatus.SERVICE_UNAVAILABLE, "The request queue is full.")
        asked = outcome.request.prompt_tokens + outcome.request.output_tokens
        longest = self._live.engine.config.longest
        why = f"This model's maximum context length is {longest} tokens. However, your request has {asked} tokens."
        return _refusal(HTTPStatus.BAD_REQUEST, why)


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
        """The last part of a stream that was asked for its token usage."""
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


async def _parts(
    form: _Form, work: Work, events: AsyncGenerator[Event, None], *, usage: bool
) -> AsyncGenerator[bytes, None]:
    """The tokens as they come, the first of which has been taken from `events`."""
    more = {"usage": None} if usage else {}

    def token(index: int) -> bytes:
        return _sent(form.chunk(_TEXT, _reason(work) if index == work.output_tokens else None) | more)

    if form.chat:
        yield _sent(form.chunk("", None, role=True) | more)
    yield token(1)
    async for event in events:
        if not isinstance(event, Outcome):
            yield token(event)
        elif event.reason not in ("stop", "length"):
            raise CutError
    if usage:
        yield _sent(form.usage(_usage(work)))
    yield b"data: [DONE]\n\n"


def _sent(value: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


async def _whole(form: _Form, work: Work, events: AsyncGenerator[Event, None]) -> Response:
    async for event in events:
        if isinstance(event, Outcome) and event.reason not in ("stop", "length"):
            raise CutError
    return replies.as_json(form.whole(_TEXT * work.output_tokens, _reason(work), _usage(work)))


def _refusal(status: HTTPStatus, why: str) -> Response:
    kind = "BadRequestError" if status is HTTPStatus.BAD_REQUEST else status.phrase
    return replies.as_json({"error": {"message": why, "type": kind, "param": None, "code": status}}, status)
