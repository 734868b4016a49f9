"""Pieces of a stream that say the same as the one before but for their text, as almost all do: found without parsing.

Engines send each token in a chunk of its own, with the same document around it. Whether a document bears output depends
on a text's being there, not on what it is; so the bytes around the texts are compared with those of a document that
has been read, and the rest is taken from there.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

_TEXTS: Final = re.compile(
    rb'("(?:content|reasoning_content|reasoning|thinking|text|response|delta|partial_json|created_at)": ?")'
    rb'[^"\\\x00-\x1f]+(?=")'
)
"""Texts that `dialects` asks for presence alone, wherever they are in a document."""
_TEXT: Final = re.compile(rb'[^"\\\x00-\x1f]+')
"""Of JSON without escapes."""


class Repeat:
    """The bytes of one chunk around the texts in it."""

    __slots__ = ("_end", "_first", "_middle")

    def __init__(self, document: bytes) -> None:
        """`document`: a chunk's content that holds one whole document."""
        parts = _TEXTS.split(document)  # what is around a text, and the text's name, by turns
        around = [b"".join(parts[at : at + 2]) for at in range(0, len(parts), 2)]
        self._first, *self._middle = around[:-1] or [b""]
        self._end = around[-1] + b"\r\n"

    @staticmethod
    def possible(document: bytes) -> bool:
        """Whether it holds a text, and nothing that could be mistaken for a text's end."""
        return b"\\" not in document and _TEXTS.search(document) is not None

    def __call__(self, data: bytes) -> bool:
        """Whether these bytes are one whole chunk that differs from the document in its texts alone."""
        size = _size_line(len(data))
        if not data.startswith(size + self._first):
            return False
        text = _TEXT.match(data, len(size) + len(self._first))
        for between in self._middle:
            if text is None or not data.startswith(between, text.end()):
                return False
            text = _TEXT.match(data, text.end() + len(between))
        if text is None or data[text.end() :] != self._end:
            return False
        return data.isascii() or _is_text(data)


@lru_cache(maxsize=1024)
def _size_line(size: int) -> bytes:
    """The first line of a plainly written chunk (RFC 9112, section 7.1) of so many bytes with that line and its end."""
    for digits in range(1, 9):
        line = b"%x\r\n" % max(0, size - digits - 4)
        if len(line) == digits + 2:
            return line
    return b"-"  # no chunk is so long


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
