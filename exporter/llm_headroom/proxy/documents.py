"""The JSON documents in a payload that comes in pieces of any size: lines (NDJSON), events (SSE), or one whole."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_BYTES: Final = 1024 * 1024
"""Of one line, event or document. The last line of /api/generate holds all token ids: some 100 KB."""
DONE: Final = "[DONE]"
"""What ends a stream of OpenAI's API; given as if it were a document."""


class UnreadableError(Exception):
    """A payload cannot be read on; the text is one of a few words (too_long, format)."""


class Reader(Protocol):
    """Finds documents in a payload."""

    def feed(self, data: bytes) -> Iterator[Any]:
        """The documents that these bytes complete.

        Raises:
            UnreadableError: there is no use in reading on.
        """
        ...

    def end(self) -> Iterator[Any]:
        """The documents that the payload's end completes; raises as `feed` does."""
        ...


def _parsed(text: bytes) -> Any:  # noqa: ANN401 - JSON
    try:
        return json.loads(text.decode())
    except (ValueError, RecursionError):
        raise UnreadableError("format") from None


class Lines:
    """One document a line; a last line need not end."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """See `Reader`."""
        start = 0
        while (newline := data.find(b"\n", start)) >= 0:
            line = data[start:newline]
            if self._held:
                line = bytes(self._held) + line
                self._held.clear()
            start = newline + 1
            yield from self._line(line)
        self._held += data[start:]
        if len(self._held) > MOST_BYTES:
            raise UnreadableError("too_long")

    def end(self) -> Iterator[Any]:
        """See `Reader`."""
        line = bytes(self._held)
        self._held.clear()
        yield from self._line(line)

    def _line(self, line: bytes) -> Iterator[Any]:
        if not line.isspace() and line:
            yield _parsed(line)


class Events(Lines):
    """Server-sent events (WHATWG HTML, section 9.2): `data:` lines up to an empty one; the rest is of no use here."""

    def __init__(self) -> None:
        super().__init__()
        self._data: list[bytes] = []
        self._size = 0

    def end(self) -> Iterator[Any]:
        """See `Reader`; an event that no empty line ends is none, but some servers forget it after the last one."""
        yield from super().end()
        yield from self._event()

    def _line(self, line: bytes) -> Iterator[Any]:
        if line.endswith(b"\r"):
            line = line[:-1]
        if not line:
            yield from self._event()
        elif line.startswith(b"data:"):
            self._data.append(line[5:])
            self._size += len(line)
            if self._size > MOST_BYTES:
                raise UnreadableError("too_long")

    def _event(self) -> Iterator[Any]:
        if not self._data:
            return
        data = b"\n".join(self._data).strip()
        self._data.clear()
        self._size = 0
        if data == b"[DONE]":
            yield DONE
        elif data:
            yield _parsed(data)


class Whole:
    """One document."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """See `Reader`."""
        self._held += data
        if len(self._held) > MOST_BYTES:
            self._held = bytearray()
            raise UnreadableError("too_long")
        return iter(())

    def end(self) -> Iterator[Any]:
        """See `Reader`."""
        if self._held:
            yield _parsed(bytes(self._held))


def reader_of(content_type: str) -> Reader | None:
    """The reader for a payload of this type; None if it holds no documents. Servers stream by content type alone."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "text/event-stream":
        return Events()
    if kind in ("application/x-ndjson", "application/jsonl"):
        return Lines()
    return Whole() if kind == "application/json" else None
