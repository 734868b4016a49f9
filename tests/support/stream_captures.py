"""Captured answers of inference endpoints as HTTP messages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

STREAMS: Final = Path(__file__).parents[1] / "fixtures" / "streams"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: the endpoint that gave it, and what it was."""

    name: str
    path: str
    status: int
    content_type: str
    chunked: bool
    body: bytes

    def message(self, chunk: int = 100) -> bytes:
        """The answer as HTTP/1.1, in chunks of so many bytes if it came in chunks."""
        head = f"HTTP/1.1 {self.status} Status\r\nContent-Type: {self.content_type}\r\n"
        if not self.chunked:
            return f"{head}Content-Length: {len(self.body)}\r\n\r\n".encode() + self.body
        pieces = [self.body[start : start + chunk] for start in range(0, len(self.body), chunk)]
        coded = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])
        return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + coded


def _read(name: str, told: dict[str, object]) -> Answer:
    status, chunked = told["status"], told["chunked"]
    assert isinstance(status, int)
    assert isinstance(chunked, bool)
    body = (STREAMS / name).read_bytes()
    return Answer(name, str(told["path"]), status, str(told["content_type"]), chunked, body)


ANSWERS: Final = {name: _read(name, told) for name, told in json.loads((STREAMS / "answers.json").read_text()).items()}
