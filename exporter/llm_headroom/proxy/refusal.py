"""What a client gets of the proxy itself, in the engine's place."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from http import HTTPStatus


def answer(status: HTTPStatus, text: str, target: str) -> bytes:
    """A whole answer, after which the connection ends, to a request for `target`: why it is not answered by the engine.

    For OpenAI's and Anthropic's API the text is where their clients look for a message.
    """
    error: object = f"llm-headroom proxy: {text}"
    if target.startswith("/v1/"):
        error = {"message": error, "type": "proxy_error", "code": status.value}
    body = json.dumps({"error": error}).encode() + b"\n"
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
