"""Ollama's HTTP: `/api/chat` and `/api/generate` at the simulated speed, and documents about its models.

Forms follow ollama/ollama docs/api.md and server/routes.go.
"""

from __future__ import annotations

import json
from contextlib import AsyncExitStack, aclosing
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from llm_headroom.net.http_messages import CutError, Response
from llm_headroom.simulate import ollama_api, prompts, replies
from llm_headroom.simulate.engine_state import Outcome
from llm_headroom.simulate.live import QueueFullError
from llm_headroom.simulate.ollama_model import BUSY_MESSAGE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from llm_headroom.net.http_messages import Request
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

    async def handle(self, request: Request) -> Response:
        """Answer one request.

        Raises:
            CutError: the server dies before it has answered.
        """
        if request.method == "POST" and request.path in (_CHAT, _GENERATE):
            try:
                document = replies.document(request)
                work = _work(request.path, document)
            except ValueError as error:
                return replies.as_json({"error": str(error)}, HTTPStatus.BAD_REQUEST)
            return await self._answer(request.path == _CHAT, document, work)
        if request.method == "POST" and request.path == "/api/show":
            return self._show(request)
        if request.path == "/":
            return Response(b"Ollama is running")
        documents = ollama_api.documents(self._live.read(), self._live.server.config, start=self._live.clock.started)
        found = documents.get(request.path)
        if found is None:
            return Response(b"404 page not found", HTTPStatus.NOT_FOUND, "text/plain")
        return replies.as_json(found)

    def _show(self, request: Request) -> Response:
        try:
            asked = str(replies.document(request).get("model", ""))
            return replies.as_json(ollama_api.show(_tagged(asked), self._live.server.config))
        except ValueError as error:
            return replies.as_json({"error": str(error)}, HTTPStatus.BAD_REQUEST)
        except KeyError:
            return _unknown(asked)

    async def _answer(self, chat: bool, document: Mapping[str, Any], work: Work) -> Response:  # noqa: FBT001 - which of two forms
        asked = str(document.get("model", ""))
        name, form = _tagged(asked), _Form(chat, asked)
        events = self._live.ask(name, work)
        async with AsyncExitStack() as ends:
            await ends.enter_async_context(aclosing(events))
            try:
                event = await anext(events)
            except KeyError:
                return _unknown(asked)
            except QueueFullError:
                return replies.as_json({"error": BUSY_MESSAGE}, HTTPStatus.SERVICE_UNAVAILABLE)
            if document.get("stream", True):
                ends.pop_all()  # the response ends them
                return replies.in_parts(_LINES, self._lines(form, name, event, events), events)
            tokens = 0
            while not isinstance(event, Outcome):
                tokens += 1
                event = await anext(events)
            return Response(form.line(_TEXT * tokens, self._end(event, name)), content_type=replies.JSON)

    async def _lines(
        self, form: _Form, name: str, event: Event, events: AsyncGenerator[Event, None]
    ) -> AsyncGenerator[bytes, None]:
        """The tokens as they come, the first of which is `event`."""
        while not isinstance(event, Outcome):
            yield form.line(_TEXT)
            event = await anext(events)
        yield form.line("", self._end(event, name))

    def _end(self, outcome: Outcome, name: str) -> dict[str, Any]:
        if outcome.reason not in ("stop", "length"):
            raise CutError
        return _timings(outcome, self._live.loaded_at(name))


def _unknown(model: str) -> Response:
    return replies.as_json({"error": f"model '{model}' not found"}, HTTPStatus.NOT_FOUND)


def _tagged(name: str) -> str:
    return name if ":" in name else f"{name}:latest"


class _Form:
    """How answers look: those of chats and those of generations."""

    def __init__(self, chat: bool, model: str) -> None:  # noqa: FBT001 - which of two forms
        self._chat = chat
        self._model = model

    def line(self, text: str, last: Mapping[str, Any] | None = None) -> bytes:
        """One line of a stream; `last` has the end's reason and timings."""
        part = {"message": {"role": "assistant", "content": text}} if self._chat else {"response": text}
        moment = datetime.now(tz=UTC).isoformat().replace("+00:00", "Z")
        end = {"done": False} if last is None else {"done": True, **last}
        return json.dumps({"model": self._model, "created_at": moment, **part, **end}).encode() + b"\n"


def _timings(outcome: Outcome, loaded_at: float | None) -> dict[str, Any]:
    """The durations in the last line, in nanoseconds of virtual time."""
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
