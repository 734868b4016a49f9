"""What a client's JSON asks for, in tokens: one word is one token, unless the request states its tokens."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Final

from llm_headroom.simulate.traffic import Request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_PREFIX_TOKENS: Final = 64
"""Words that are cached, or not, together; a multiple of every block size in use."""


def request_of(document: Mapping[str, Any], words: Sequence[str], allowed: int) -> Request:
    """The request that a document makes, arriving at 0.

    Two fields of ours state lengths that words cannot: `prompt_tokens` (then nothing is shared with other requests)
    and `output_tokens`, after which the answer stops by itself before `allowed` is reached.

    Raises:
        ValueError: a length is no whole number, or below 1.
    """
    stated = document.get("prompt_tokens")
    prompt = max(len(words), 1) if stated is None else whole("prompt_tokens", stated)
    output = min(whole("output_tokens", document.get("output_tokens", allowed)), allowed)
    prefix = tuple(_prefix(words)) if stated is None else ()
    return Request(0.0, prompt, output, allowed, prefix, _PREFIX_TOKENS)


def _prefix(words: Sequence[str]) -> Iterator[int]:
    """Ids of the whole blocks of words; each depends on all before it."""
    known = 0
    for begin in range(0, len(words) - _PREFIX_TOKENS + 1, _PREFIX_TOKENS):
        known = zlib.crc32(" ".join(words[begin : begin + _PREFIX_TOKENS]).encode(), known)
        yield known


def words_of(prompt: object) -> list[str]:
    """The words of a text, or the ids of a tokenised one.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(prompt, str):
        return prompt.split()
    if isinstance(prompt, list) and all(isinstance(token, int) for token in prompt):
        return [str(token) for token in prompt]
    raise ValueError("the prompt must be one text, or one list of token ids")


def words_of_messages(messages: object) -> list[str]:
    """The words of a conversation.

    Raises:
        ValueError: it is no list of messages.
    """
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError("messages must be a list of messages")
    words: list[str] = []
    for message in messages:
        content = message.get("content") or ""
        parts = content if isinstance(content, list) else [{"text": content}]
        for part in parts:
            words += str(part.get("text", "") if isinstance(part, dict) else part).split()
    return words


def whole(name: str, value: object) -> int:
    """A whole number of at least 1.

    Raises:
        ValueError: it is none; the message names the field.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1")
    return value
