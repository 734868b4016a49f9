"""The content of responses in the engines' APIs: which documents carry output, how it ended, what it took.

Forms: ollama/ollama docs/api.md and openai/, anthropic/ packages of its source (v0.33); vllm-project/vllm
vllm/entrypoints/openai/protocol.py; sgl-project/sglang python/sglang/srt/entrypoints; ggml-org/llama.cpp
tools/server/README.md (b10488).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from llm_headroom.engines.openai_api import whole
from llm_headroom.proxy.documents import DONE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_NANOSECOND: Final = 1e-9
_MILLISECOND: Final = 1e-3
_REASONS: Final = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
    "eos": "stop",
    "word": "stop",
    "limit": "length",
    "completed": "stop",
    "incomplete": "length",
}
NO_INFERENCE: Final = frozenset({"load", "unload"})
"""Ollama's reasons of answers to requests that only load or unload a model."""
_ABORT: Final = "abort"
_UNFINISHED: Final = {
    _ABORT: "engine_aborted",
    "error": "engine_error",
    "failed": "engine_error",
    "cancelled": "aborted",
}
"""Finish reasons of what is no answer: what the engine has given up although its client waits, and what a client has
cancelled through the API, /v1/responses (vllm-project/vllm vllm/v1/engine/__init__.py, FinishReason; sgl-project/sglang
python/sglang/srt/managers/schedule_batch.py, FINISH_ABORT)."""
UNAVAILABLE: Final = 503
_CLIENT_ERRORS: Final = range(400, 500)
_MOST_TOKENS: Final = 10**9
"""Of one request: a larger count is no count."""


class Api(Enum):
    """A family of inference endpoints."""

    OLLAMA = "ollama"
    OPENAI = "openai"
    RESPONSES = "responses"
    ANTHROPIC = "anthropic"
    LLAMACPP = "llamacpp"
    SGLANG = "sglang"
    EMBEDDING = "embedding"


_PATHS: Final[Mapping[str, Api]] = {
    "/api/chat": Api.OLLAMA,
    "/api/generate": Api.OLLAMA,
    "/v1/chat/completions": Api.OPENAI,
    "/v1/completions": Api.OPENAI,
    "/chat/completions": Api.OPENAI,
    "/v1/responses": Api.RESPONSES,
    "/v1/messages": Api.ANTHROPIC,
    "/completion": Api.LLAMACPP,
    "/completions": Api.LLAMACPP,
    "/generate": Api.SGLANG,
    "/api/embed": Api.EMBEDDING,
    "/api/embeddings": Api.EMBEDDING,
    "/v1/embeddings": Api.EMBEDDING,
    "/embedding": Api.EMBEDDING,
    "/embeddings": Api.EMBEDDING,
}


def api_of(method: str, target: str) -> Api | None:
    """The API that a request belongs to; None if it asks for no inference."""
    return _PATHS.get(target.partition("?")[0].rstrip("/")) if method == "POST" else None


@dataclass(slots=True)
class Answer:
    """Values from the documents of one response so far; None where there are none yet.

    `output`: whether the latest document bears output (text, reasoning, a tool call). `failure`: why there is no whole
    answer, as a value of the label `reason`. Token counts are of the whole request. `total`, `prefill` and `decode` are
    the engine's own durations in seconds, `load` what passed before the model was there.
    """

    output: bool = False
    model: str = ""
    reason: str = ""
    ended: bool = False
    failure: str = ""
    prompt: int | None = None
    generated: int | None = None
    cached: int | None = None
    total: float | None = None
    load: float | None = None
    prefill: float | None = None
    decode: float | None = None

    def read(self, api: Api | None, document: Any) -> None:  # noqa: ANN401 - JSON
        """Take in the next document. What has another form than the API's is passed over."""
        self.output = False
        if document is DONE:
            self.ended = True
        elif isinstance(document, dict):
            if document.get("error"):
                self.failure = _failure(document)
            else:
                _READ[api](self, document)

    def end(self, reason: object) -> None:
        """Note that nothing more is generated, and why."""
        self.ended = True
        if not reason:
            return
        known = str(reason)
        if known in _UNFINISHED:
            self.failure = self.failure or _UNFINISHED[known]
        else:
            self.reason = known if known in NO_INFERENCE else _REASONS.get(known, "other")


def _failure(document: Mapping[str, Any]) -> str:
    """What an error means, as a value of the label `reason`: a text (Ollama), or a mapping that may hold a status.

    llama.cpp's server returns 503 with `Loading model` while it loads (tools/server of its source).
    """
    error = document["error"]
    within = error if isinstance(error, dict) else {}
    if "loading model" in str(within.get("message", error)).lower():
        return "loading"
    code = within.get("code", document.get("code"))
    overloaded = (
        str(code) == str(UNAVAILABLE) or within.get("type") == "overloaded_error"
    )  # the latter: Anthropic's 529
    return "overloaded" if overloaded else "engine_error"


def _count(value: object) -> int | None:
    count = whole(value)
    return None if count is None or count > _MOST_TOKENS else count


def _seconds(value: object, unit: float) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e9 / unit:
        return None
    return value * unit


def _inner(document: object, name: str) -> dict[str, Any]:
    found = document.get(name) if isinstance(document, dict) else None
    return found if isinstance(found, dict) else {}


def _model(answer: Answer, document: Mapping[str, Any]) -> None:
    model = document.get("model")
    if isinstance(model, str) and model:
        answer.model = model


def _ollama(answer: Answer, document: dict[str, Any]) -> None:
    _model(answer, document)
    message = _inner(document, "message")
    answer.output = bool(
        document.get("response")
        or document.get("thinking")
        or message.get("content")
        or message.get("thinking")
        or message.get("tool_calls")
        or document.get("tool_calls")
    )
    if document.get("done") is True:
        answer.end(document.get("done_reason"))
        # what is 0 is left out
        answer.prompt = _count(document.get("prompt_eval_count", 0))
        answer.generated = _count(document.get("eval_count", 0))
        answer.cached = _count(document.get("prompt_eval_cached_count"))
        answer.total = _seconds(document.get("total_duration"), _NANOSECOND)
        answer.load = _seconds(document.get("load_duration"), _NANOSECOND)
        answer.prefill = _seconds(document.get("prompt_eval_duration"), _NANOSECOND)
        answer.decode = _seconds(document.get("eval_duration"), _NANOSECOND)


def _usage(answer: Answer, usage: Mapping[str, Any], prompt: str, generated: str, details: str) -> None:
    counts = _count(usage.get(prompt)), _count(usage.get(generated))
    if not any(counts):  # Ollama's /v1/completions puts zeros into each part of a stream
        return
    answer.prompt = answer.prompt if counts[0] is None else counts[0]
    answer.generated = answer.generated if counts[1] is None else counts[1]
    cached = _count(_inner(usage, details).get("cached_tokens"))
    answer.cached = answer.cached if cached is None else cached


def _timings(answer: Answer, timings: Mapping[str, Any]) -> None:
    """What llama.cpp adds to every form of answer."""
    answer.prefill = _seconds(timings.get("prompt_ms"), _MILLISECOND) or answer.prefill
    answer.decode = _seconds(timings.get("predicted_ms"), _MILLISECOND) or answer.decode


def _openai(answer: Answer, document: dict[str, Any]) -> None:
    _model(answer, document)
    choices = document.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if not isinstance(choice, dict):
            continue
        part = _inner(choice, "delta") or _inner(choice, "message")
        answer.output |= bool(
            part.get("content")
            or part.get("reasoning_content")
            or part.get("reasoning")
            or part.get("tool_calls")
            or part.get("function_call")
            or part.get("refusal")
            or choice.get("text")
        )
        if choice.get("finish_reason"):
            answer.end(choice["finish_reason"])
    _usage(answer, _inner(document, "usage"), "prompt_tokens", "completion_tokens", "prompt_tokens_details")
    _timings(answer, _inner(document, "timings"))


_DELTAS: Final = frozenset({"text", "thinking", "partial_json"})


def _anthropic(answer: Answer, document: dict[str, Any]) -> None:
    kind = document.get("type")
    message = _inner(document, "message") if kind == "message_start" else document
    if kind == "content_block_delta":
        answer.output = any(_inner(document, "delta").get(name) for name in _DELTAS)
        return
    if kind in ("message_start", "message"):
        _model(answer, message)
    usage = _inner(message, "usage")
    if kind == "message_start":  # an estimate, which message_delta replaces
        answer.prompt = _count(usage.get("input_tokens"))
    elif usage:
        _usage(answer, usage, "input_tokens", "output_tokens", "input_tokens_details")
    cached = _count(usage.get("cache_read_input_tokens"))
    answer.cached = answer.cached if cached is None else cached
    if kind == "message":
        answer.output = bool(document.get("content"))
        answer.end(document.get("stop_reason"))
    elif kind == "message_delta" and _inner(document, "delta").get("stop_reason"):
        answer.end(_inner(document, "delta")["stop_reason"])


def _responses(answer: Answer, document: dict[str, Any]) -> None:
    kind = document.get("type")
    if isinstance(kind, str) and kind.endswith(".delta"):
        answer.output = bool(document.get("delta"))
        return
    if kind == "response.failed":
        answer.failure = _failure({"error": _inner(document, "response").get("error")})
    whole = document if document.get("object") == "response" else _inner(document, "response")
    _model(answer, whole)
    if kind in ("response.completed", "response.incomplete") or (kind is None and whole is document):
        answer.output = kind is None and bool(document.get("output"))
        _usage(answer, _inner(whole, "usage"), "input_tokens", "output_tokens", "input_tokens_details")
        answer.cached = answer.cached or None  # Ollama always reports 0
        answer.end(whole.get("status"))


def _llamacpp(answer: Answer, document: dict[str, Any]) -> None:
    if "choices" in document:
        _openai(answer, document)
        return
    _model(answer, document)
    answer.output = bool(document.get("content"))
    if document.get("stop") is True:
        answer.end(document.get("stop_type") or "other")
        answer.prompt = _count(document.get("tokens_evaluated"))
        answer.generated = _count(document.get("tokens_predicted"))
        timings = _inner(document, "timings")
        answer.cached = _count(timings.get("cache_n"))
        _timings(answer, timings)


def _sglang(answer: Answer, document: dict[str, Any]) -> None:
    # `text` is the whole text so far, so new output shows in the number of tokens
    meta = _inner(document, "meta_info")
    generated = _count(meta.get("completion_tokens"))
    answer.output = bool(generated) and generated != answer.generated
    answer.generated = answer.generated if generated is None else generated
    answer.prompt = _count(meta.get("prompt_tokens")) or answer.prompt
    cached = _count(meta.get("cached_tokens"))
    answer.cached = answer.cached if cached is None else cached
    finish = _inner(meta, "finish_reason")
    status = whole(finish.get("status_code"))
    if finish.get("type") == _ABORT and status is not None:
        refused = "client_error" if status in _CLIENT_ERRORS else "engine_error"
        answer.failure = "overloaded" if status == UNAVAILABLE else refused
    if finish.get("type"):
        answer.end(finish["type"])


def _embedding(answer: Answer, document: dict[str, Any]) -> None:
    _model(answer, document)
    answer.ended = True


_READ: Final[Mapping[Api | None, Callable[[Answer, dict[str, Any]], None]]] = {
    Api.OLLAMA: _ollama,
    Api.OPENAI: _openai,
    Api.RESPONSES: _responses,
    Api.ANTHROPIC: _anthropic,
    Api.LLAMACPP: _llamacpp,
    Api.SGLANG: _sglang,
    Api.EMBEDDING: _embedding,
}
