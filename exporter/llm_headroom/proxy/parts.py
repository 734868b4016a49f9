"""Parts of streams that bear text and end nothing, as almost all do: read by their form, at a fraction of the cost.

A form names all that `dialects` asks such a document for, each as it is where there is nothing else to be learned from
it. A document of another form is left to `dialects`, which would find the same in one of this form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, Protocol

import msgspec

from llm_headroom.proxy.dialects import Api

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Part(Protocol):
    """A part of a stream; `model` is empty where it is not named."""

    @property
    def model(self) -> str:
        """The model that it names."""
        ...

    def bears(self) -> bool | None:
        """Whether it bears output; None if it ends something, and `dialects` must be asked."""
        ...


class _Message(msgspec.Struct, frozen=True, gc=False):
    content: str = ""
    thinking: str = ""
    tool_calls: None = None


class _Ollama(msgspec.Struct, frozen=True, gc=False):
    model: str = ""
    message: _Message = _Message()
    response: str = ""
    thinking: str = ""
    tool_calls: None = None
    done: bool = False
    error: None = None

    def bears(self) -> bool | None:
        message = self.message
        return None if self.done else bool(message.content or self.response or message.thinking or self.thinking)


class _Delta(msgspec.Struct, frozen=True, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None
    function_call: None = None
    refusal: None = None


class _Choice(msgspec.Struct, frozen=True, gc=False):
    delta: _Delta = _Delta()
    message: None = None
    text: str | None = None
    finish_reason: Literal[""] | None = None


class _NoUsage(msgspec.Struct, frozen=True, gc=False):
    """As in each part of Ollama's /v1/completions."""

    prompt_tokens: Literal[0] | None = None
    completion_tokens: Literal[0] | None = None


class _OpenAi(msgspec.Struct, frozen=True, gc=False):
    model: str = ""
    choices: list[_Choice] = []
    usage: _NoUsage | None = None
    timings: None = None
    error: None = None

    def bears(self) -> bool | None:
        for choice in self.choices:
            delta = choice.delta
            if delta.content or choice.text or delta.reasoning_content or delta.reasoning or delta.tool_calls:
                return True
        return False


class _AnthropicDelta(msgspec.Struct, frozen=True, gc=False):
    text: str = ""
    thinking: str = ""
    partial_json: str = ""


class _Anthropic(msgspec.Struct, frozen=True, gc=False):
    type: Literal["content_block_delta"]
    delta: _AnthropicDelta
    error: None = None
    model = ""

    def bears(self) -> bool | None:
        return bool(self.delta.text or self.delta.thinking or self.delta.partial_json)


class _Responses(msgspec.Struct, frozen=True, gc=False):
    type: str
    delta: str
    error: None = None
    model = ""

    def bears(self) -> bool | None:
        return bool(self.delta) if self.type.endswith(".delta") else None


class _LlamaCpp(msgspec.Struct, frozen=True, gc=False):
    content: str
    model: str = ""
    stop: bool = False
    choices: msgspec.UnsetType = msgspec.UNSET
    error: None = None

    def bears(self) -> bool | None:
        return None if self.stop else bool(self.content)


FORMS: Final[Mapping[Api | None, Callable[[bytes], Part]]] = {
    Api.OLLAMA: msgspec.json.Decoder(_Ollama).decode,
    Api.OPENAI: msgspec.json.Decoder(_OpenAi).decode,
    Api.ANTHROPIC: msgspec.json.Decoder(_Anthropic).decode,
    Api.RESPONSES: msgspec.json.Decoder(_Responses).decode,
    Api.LLAMACPP: msgspec.json.Decoder(_LlamaCpp).decode,
}
"""Reads a document of an API's form, raises one of `OTHER` if it has another one. SGLang's own has none: its output
shows in a count alone."""
OTHER: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
