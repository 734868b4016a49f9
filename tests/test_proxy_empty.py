"""Answers in which nothing is said: seen where the engine takes them for whole, and never taken for failures."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest

from llm_headroom.proxy import framing
from llm_headroom.proxy.exchange import Exchange
from llm_headroom.proxy.measures import Measures
from measured_values import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

CHAT: Final = "/v1/chat/completions"


def finished(path: str, kind: str, body: bytes) -> list[str]:
    """The finish reason of an answer; its failure if it failed."""
    measures = Measures(limit=4)
    exchange = Exchange(measures, framing.request_head(f"POST {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()))
    exchange.asks(b'{"stream":true}')
    exchange.sent(1.0)
    exchange.answers(framing.ResponseHead(200, {"content-type": kind}), 2.0)
    exchange.received(body, 2.0)
    exchange.ended(3.0)
    found = counted(measures, "requests_f")
    return [key.rpartition(",")[2].rpartition("{")[2].strip("}") for key in found]


def whole(path: str, document: Mapping[str, Any]) -> list[str]:
    return finished(path, "application/json", json.dumps(document).encode())


def chat(message: Mapping[str, Any] | None = None, reason: str = "stop", tokens: int | None = 1) -> dict[str, Any]:
    usage = {} if tokens is None else {"usage": {"prompt_tokens": 3, "completion_tokens": tokens}}
    return {"model": "m", "choices": [{"message": message or {"content": ""}, "finish_reason": reason}], **usage}


EMPTY: Final = {
    "one token, which ends it": (CHAT, chat()),
    "no tokens": (CHAT, chat(tokens=0)),
    "tokens that nobody counts": (CHAT, chat(tokens=None)),
    "no content": (CHAT, chat({"content": None})),
    "text": ("/v1/completions", {"choices": [{"text": "", "finish_reason": "stop"}]}),
    "anthropic": ("/v1/messages", {"type": "message", "content": [], "stop_reason": "end_turn"}),
    "responses": ("/v1/responses", {"object": "response", "status": "completed", "output": []}),
    "llama.cpp": ("/completion", {"content": "", "stop": True, "stop_type": "eos", "tokens_predicted": 1}),
    "sglang": ("/generate", {"text": "", "meta_info": {"completion_tokens": 0, "finish_reason": {"type": "stop"}}}),
    "ollama": ("/api/chat", {"message": {"content": ""}, "done": True, "done_reason": "stop", "eval_count": 1}),
}


@pytest.mark.parametrize("which", EMPTY)
def test_an_answer_that_is_whole_and_says_nothing_is_empty(which: str) -> None:
    assert whole(*EMPTY[which]) == ["empty"]


SAID: Final = {
    "content": (CHAT, chat({"content": "a"}), "stop"),
    "a tool call alone": (CHAT, chat({"content": None, "tool_calls": [{"id": "1"}]}, "tool_calls"), "tool_calls"),
    "a tool call that ends by stop": (CHAT, chat({"tool_calls": [{"id": "1"}]}), "stop"),
    "reasoning alone": (CHAT, chat({"content": None, "reasoning_content": "a"}), "stop"),
    "a refusal": (CHAT, chat({"refusal": "a"}), "stop"),
    "output in a form that we do not know": (CHAT, chat({"content": "", "thoughts": "a"}, tokens=9), "stop"),
    "a limit of one token": (CHAT, chat(reason="length"), "length"),
    "a filter": (CHAT, chat(reason="content_filter"), "content_filter"),
    "an end that nobody explains": (CHAT, {"model": "m"}, "unknown"),
    "an embedding": ("/v1/embeddings", {"data": []}, "embedding"),
    "one token of a class": (
        "/generate",
        {"meta_info": {"completion_tokens": 1, "finish_reason": {"type": "stop"}}},
        "stop",
    ),
}


@pytest.mark.parametrize("which", SAID)
def test_one_that_is_short_or_says_it_elsewhere_is_not(which: str) -> None:
    path, document, reason = SAID[which]
    assert whole(path, document) == [reason]


@pytest.mark.parametrize(
    ("deltas", "reason"),
    [
        ([{"role": "assistant"}], "empty"),
        ([{"content": ""}], "empty"),
        ([{"role": "assistant"}, {"content": "a"}], "stop"),
        ([{"reasoning_content": "a"}, {"content": ""}], "stop"),
        ([{"tool_calls": [{"index": 0}]}], "stop"),
    ],
)
def test_so_it_is_with_streams(deltas: list[dict[str, Any]], reason: str) -> None:
    events = [{"model": "m", "choices": [{"delta": delta}]} for delta in deltas]
    events.append({"model": "m", "choices": [{"delta": {}, "finish_reason": "stop"}]})
    body = b"".join(f"data: {json.dumps(each)}\n\n".encode() for each in events)
    assert finished(CHAT, "text/event-stream", body + b"data: [DONE]\n\n") == [reason]


def test_what_cannot_be_read_is_not_taken_for_empty() -> None:
    assert finished(CHAT, "text/plain", b"hello") == ["unknown"]
