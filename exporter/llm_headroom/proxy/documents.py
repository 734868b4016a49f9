"""The JSON documents in a payload that comes in pieces of any size: lines (NDJSON), events (SSE), or one whole."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_BYTES: Final = 1024 * 1024
"""Of one line, event or document. The last line of /api/generate holds all token ids: some 100 KB."""
_NEWLINE: Final = 10
DONE: Final = "[DONE]"
"""What ends a stream of OpenAI's API; given as if it were a document."""


class UnreadableError(Exception):
    """A payload cannot be read on; the text is one of a few words (too_long, format)."""


class Reader(Protocol):
    """Finds documents in a payload."""

    def alone(self, data: bytes, start: int, end: int) -> bytes | None:
        """The text of the one document that these bytes of `data` are, if they are no part of another one."""
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

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = bytearray()

    def alone(self, data: bytes, start: int, end: int) -> bytes | None:
        """See `Reader`."""
        return data[start:end] if data.find(b"\n", start) == end - 1 and not self._held else None

    def feed(self, data: bytes) -> Sequence[Any]:
        """See `Reader`."""
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

    __slots__ = ("_data", "_size")

    def __init__(self) -> None:
        super().__init__()
        self._data: list[bytes] = []
        self._size = 0

    def alone(self, data: bytes, start: int, end: int) -> bytes | None:
        """See `Reader`; the event may have a name."""
        if data.startswith(b"event:", start):
            start = data.find(b"\n", start) + 1
        whole = data.startswith(b"data:", start) and data.find(b"\n", start) == end - 2 and data[end - 1] == _NEWLINE
        return data[start + 5 : end - 2] if whole and not self._held and not self._data else None

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

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = bytearray()

    def alone(self, data: bytes, start: int, end: int) -> bytes | None:  # noqa: ARG002 - only the payload's end ends it
        """See `Reader`."""
        return None

    def feed(self, data: bytes) -> Sequence[Any]:
        """See `Reader`."""
        self._held += data
        if len(self._held) > MOST_BYTES:
            self._held = bytearray()
            raise UnreadableError("too_long")
        return ()

    def end(self) -> Sequence[Any]:
        """See `Reader`."""
        return (_parsed(bytes(self._held)),)


def reader_of(content_type: str) -> Reader | None:
    """The reader for a payload of this type; None if it holds no documents. Servers stream by content type alone."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "text/event-stream":
        return Events()
    if kind in ("application/x-ndjson", "application/jsonl"):
        return Lines()
    return Whole() if kind == "application/json" else None
