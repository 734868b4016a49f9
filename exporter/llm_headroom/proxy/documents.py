"""The JSON documents in a payload that comes in pieces of any size: lines (NDJSON), events (SSE), or one whole."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_BYTES: Final = 1024 * 1024
"""Of one line, event or document. The last line of /api/generate holds all token ids: some 100 KB."""
DONE: Final = "[DONE]"
"""What ends a stream of OpenAI's API; given as if it were a document."""


class UnreadableError(Exception):
    """A payload cannot be read on; the text is one of a few words (too_long, format)."""


class Reader(Protocol):
    """Finds documents in a payload."""

    @property
    def empty(self) -> bool:
        """Whether it holds no part of a document that is to come."""
        ...

    def feed(self, data: bytes) -> Sequence[Any]:
        """The documents that these bytes complete.

        Raises:
            UnreadableError: there is no use in reading on.
        """
        ...

    def end(self) -> Sequence[Any]:
        """The documents that the payload's end completes; raises as `feed` does."""
        ...


_decoded: Final = msgspec.json.Decoder().decode


def _parsed(text: bytes) -> Any:  # noqa: ANN401 - JSON
    try:
        return _decoded(text)
    except (msgspec.DecodeError, UnicodeDecodeError):  # stricter than engines are: NaN, halves of surrogate pairs
        try:
            return json.loads(text.decode())
        except (ValueError, RecursionError):
            raise UnreadableError("format") from None
    except RecursionError:
        raise UnreadableError("format") from None


class Lines:
    """One document a line; a last line need not end."""

    def __init__(self) -> None:
        self._held = bytearray()

    @property
    def empty(self) -> bool:
        """See `Reader`."""
        return not self._held

    def feed(self, data: bytes) -> Sequence[Any]:
        """See `Reader`."""
        if not self._held and data.find(b"\n") == len(data) - 1 > 0:  # one whole line, as almost always
            return self._line(data[:-1])
        found: list[Any] = []
        start = 0
        while (newline := data.find(b"\n", start)) >= 0:
            line = data[start:newline]
            if self._held:
                line = bytes(self._held) + line
                self._held.clear()
            start = newline + 1
            found += self._line(line)
        self._held += data[start:]
        if len(self._held) > MOST_BYTES:
            raise UnreadableError("too_long")
        return found

    def end(self) -> Sequence[Any]:
        """See `Reader`."""
        line = bytes(self._held)
        self._held.clear()
        return self._line(line)

    def _line(self, line: bytes) -> Sequence[Any]:
        return (_parsed(line),) if line and not line.isspace() else ()


class Events(Lines):
    """Server-sent events (WHATWG HTML, section 9.2): `data:` lines up to an empty one; the rest is of no use here."""

    def __init__(self) -> None:
        super().__init__()
        self._data: list[bytes] = []
        self._size = 0

    @property
    def empty(self) -> bool:
        """See `Reader`."""
        return not self._held and not self._data

    def feed(self, data: bytes) -> Sequence[Any]:
        """See `Reader`."""
        plain = not self._held and not self._data and data.startswith(b"data:")
        if plain and data.endswith(b"\n\n") and data.find(b"\n") == len(data) - 2:  # one whole event, as almost always
            return _event(data[5:-2].strip())
        return super().feed(data)

    def end(self) -> Sequence[Any]:
        """See `Reader`; an event that no empty line ends is none, but some servers forget it after the last one."""
        return (*super().end(), *self._ended())

    def _line(self, line: bytes) -> Sequence[Any]:
        if line.endswith(b"\r"):
            line = line[:-1]
        if not line:
            return self._ended()
        if line.startswith(b"data:"):
            self._data.append(line[5:])
            self._size += len(line)
            if self._size > MOST_BYTES:
                raise UnreadableError("too_long")
        return ()

    def _ended(self) -> Sequence[Any]:
        data = b"\n".join(self._data).strip()
        self._data.clear()
        self._size = 0
        return _event(data)


def _event(data: bytes) -> Sequence[Any]:
    if not data:
        return ()
    return (DONE,) if data == b"[DONE]" else (_parsed(data),)


class Whole:
    """One document."""

    def __init__(self) -> None:
        self._held = bytearray()

    @property
    def empty(self) -> bool:
        """See `Reader`."""
        return not self._held

    def feed(self, data: bytes) -> Sequence[Any]:
        """See `Reader`."""
        self._held += data
        if len(self._held) > MOST_BYTES:
            self._held = bytearray()
            raise UnreadableError("too_long")
        return ()

    def end(self) -> Sequence[Any]:
        """See `Reader`."""
        return (_parsed(bytes(self._held)),) if self._held else ()


def reader_of(content_type: str) -> Reader | None:
    """The reader for a payload of this type; None if it holds no documents. Servers stream by content type alone."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "text/event-stream":
        return Events()
    if kind in ("application/x-ndjson", "application/jsonl"):
        return Lines()
    return Whole() if kind == "application/json" else None
