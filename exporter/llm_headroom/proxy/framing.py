"""HTTP/1.1 messages in one direction of a connection: where heads and bodies start and end (RFC 9112).

Bytes are never rewritten: the relay forwards pieces as they arrive, and payload is observed on the side.
h11 would frame them again, and reject what an engine may accept; here only a message's extent must be known.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

MOST_HEAD_BYTES: Final = 64 * 1024
MOST_LINE_BYTES: Final = 16 * 1024
NO_CONTENT: Final = 204
NOT_MODIFIED: Final = 304
SWITCHING: Final = 101
FIRST_FINAL: Final = 200

_REQUEST: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([^ \r\n]+) HTTP/1\.([01])\r\n")
_FIELDS: Final = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*\r\n)*\r\n")
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [^\r\n]*)?\r?\n")
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_SIZE: Final = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]*)?\r?\n")
_PLAIN_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n")
_BLANKS: Final = " \t\r"
"""Around names and values: those of RFC 9110, section 5.6.3, alone, and what is left of a line's end."""
_HOST: Final = re.compile(rb"(?im)^host[ \t]*:[^\r\n]*")


class FramingError(Exception):
    """The bytes are not an HTTP/1.1 message; the error has the reason, without quoting them."""


class RequestHead(NamedTuple):
    """A request's first lines: `target` as it was sent, `headers` by lower-case name, several joined by commas."""

    method: str
    target: str
    headers: dict[str, str]
    raw: bytes

    def to(self, authority: str) -> bytes:
        """The head with another Host, else unchanged."""
        return _HOST.sub(b"Host: " + authority.encode("latin-1"), self.raw, count=1)

    @property
    def upgrades(self) -> bool:
        """Whether it asks for another protocol, whose bytes may follow at once (RFC 9110, section 7.8)."""
        return "upgrade" in self.headers and "upgrade" in self.headers.get("connection", "").lower()


class ResponseHead(NamedTuple):
    """A response's first lines: `headers` by lower-case name, several joined by commas."""

    status: int
    headers: dict[str, str]


class Body(Protocol):
    """How a body's end is found."""

    def take(self, data: bytes, start: int, payload: list[bytes]) -> tuple[int, bool]:
        """Where the body's bytes end in `data`, and whether the body does; its content is added to `payload`.

        Raises:
            FramingError: this is no such body.
        """
        ...


class Length:
    """A body of so many bytes."""

    __slots__ = ("_left",)

    def __init__(self, size: int) -> None:
        self._left = size

    def take(self, data: bytes, start: int, payload: list[bytes]) -> tuple[int, bool]:
        """See `Body`."""
        end = min(len(data), start + self._left)
        if end > start:
            payload.append(data[start:end])
        self._left -= end - start
        return end, not self._left


class UntilClose:
    """A body that the connection's end ends."""

    __slots__ = ()

    def take(self, data: bytes, start: int, payload: list[bytes]) -> tuple[int, bool]:
        """See `Body`."""
        if start < len(data):
            payload.append(data[start:])
        return len(data), False


class Chunked:
    """A body in chunks, with trailers at its end; `strict`: a line that engines read in different ways is an error."""

    __slots__ = ("_expect", "_left", "_line", "_strict")

    def __init__(self, *, strict: bool = False) -> None:
        self._strict = strict
        self._left = 0
        self._line = b""
        self._expect = "size"

    @property
    def between(self) -> bool:
        """Whether a chunk may begin."""
        return self._expect == "size" and not self._line

    def take(self, data: bytes, start: int, payload: list[bytes]) -> tuple[int, bool]:
        """See `Body`."""
        while start < len(data):
            if self._left:
                end = min(len(data), start + self._left)
                payload.append(data[start:end])
                self._left -= end - start
                start = end
                continue
            if self._expect == "size" and not self._line and (end := _whole_chunk(data, start)):
                size_end = data.find(b"\n", start) + 1
                payload.append(data[size_end : end - 2])
                start = end
                continue
            newline = data.find(b"\n", start)
            if newline < 0:
                self._line += data[start:]
                if len(self._line) > MOST_LINE_BYTES:
                    raise FramingError("a line of the chunked coding is too long")
                return len(data), False
            line = self._line + data[start : newline + 1]
            self._line = b""
            start = newline + 1
            if self._step(line):
                return start, True
        return start, False

    def _step(self, line: bytes) -> bool:
        """Take a line between chunks; True if it ends the body."""
        if self._strict and (line.startswith((b" ", b"\t")) or not line.endswith(b"\r\n")):
            raise FramingError("a line of the chunked coding that engines read in different ways")
        blank = line in (b"\r\n", b"\n")
        if self._expect == "end of chunk":
            if not blank:
                raise FramingError("a chunk does not end at its declared size")
            self._expect = "size"
        elif self._expect == "trailer":
            return blank
        else:
            match = _SIZE.fullmatch(line)
            if match is None:
                raise FramingError("a chunk has no size")
            self._left = int(match[1], 16)
            self._expect = "end of chunk" if self._left else "trailer"
        return False


def _whole_chunk(data: bytes, start: int) -> int:
    """Where a chunk ends that is whole within `data` and written plainly, as almost all are; else 0."""
    match = _PLAIN_SIZE.match(data, start)
    if match is None:
        return 0
    end = match.end() + int(match[1], 16) + 2
    return end if end > match.end() + 2 and data[end - 2 : end] == b"\r\n" else 0


@lru_cache(maxsize=1024)
def size_line(size: int) -> bytes:
    """The first line of a plainly written chunk (RFC 9112, section 7.1) of so many bytes with that line and its end."""
    for digits in range(1, 9):
        content = size - digits - 4
        if content > 0 and len(line := b"%x\r\n" % content) == digits + 2:
            return line
    return b"no size"  # no chunk is so short or so long


class HeadReader:
    """Gathers the bytes of a head."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = bytearray()

    @property
    def empty(self) -> bool:
        """Whether no head has started."""
        return not self._held

    def take(self, data: bytes, start: int) -> tuple[int, bytes | None]:
        """Where the head's bytes end in `data`, and the whole head as soon as it is there.

        Raises:
            FramingError: the head is too long.
        """
        if not self._held:
            while data[start : start + 1] in (b"\r", b"\n") and start < len(data):
                start += 1  # RFC 9112, section 2.2: empty lines before a request are ignored
            if end := _end(data, start):
                return end, data[start:end]
        held = len(self._held)
        self._held += data[start:]
        end = _end(self._held, max(0, held - 3))
        if not end:
            if len(self._held) > MOST_HEAD_BYTES:
                raise FramingError(f"a head is longer than {MOST_HEAD_BYTES} bytes")
            return len(data), None
        head = bytes(self._held[:end])
        self._held = bytearray()
        return start + len(head) - held, head


def _end(data: bytes | bytearray, start: int) -> int:
    """Where the first empty line after one that ends at `start` or later ends, 0 if there is none."""
    found = data.find(b"\n\r\n", start)
    bare = data.find(b"\n\n", start, found + 1 or len(data))
    if bare >= 0:
        return bare + 2
    return found + 3 if found >= 0 else 0


def _headers(raw: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in raw.decode("latin-1").split("\n")[1:-2]:  # without the first line, the empty one and what is behind
        name, _, value = line.partition(":")
        name, value = name.strip(_BLANKS).lower(), value.strip(_BLANKS)
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def request_head(raw: bytes) -> RequestHead:
    """Read a request's head.

    Raises:
        FramingError: it is none of HTTP/1.0 or 1.1, or has what engines read in different ways (RFC 9112, sections
            2.2, 3.2, 5, 6.1): a blank before the colon, a line that goes on or ends in a line feed alone, a NUL, two
            Hosts, a Transfer-Encoding in HTTP/1.0.
    """
    match = _REQUEST.match(raw)
    if match is None:
        raise FramingError("no request line of HTTP/1.1")
    if not _FIELDS.fullmatch(raw, match.end()):
        raise FramingError("a header has no name that ends at its colon, or no CR LF at its end")
    headers = _headers(raw)
    if "," in headers.get("host", ""):
        raise FramingError("several Hosts")
    if match[3] == b"0" and "transfer-encoding" in headers:
        raise FramingError("a Transfer-Encoding in HTTP/1.0")
    return RequestHead(match[1].decode("ascii"), match[2].decode("latin-1"), headers, raw)


def response_head(raw: bytes) -> ResponseHead:
    """Read a response's head.

    Raises:
        FramingError: it is none of HTTP/1.0 or 1.1.
    """
    match = _STATUS.match(raw)
    if match is None:
        raise FramingError("no status line of HTTP/1.1")
    return ResponseHead(int(match[1]), _headers(raw))


def _framed(headers: dict[str, str]) -> Body | None:
    """The body that Transfer-Encoding or Content-Length announce."""
    coding = headers.get("transfer-encoding")
    if coding is not None:
        return Chunked() if coding.lower().rpartition(",")[2].strip() == "chunked" else UntilClose()
    length = headers.get("content-length")
    if length is None:
        return None
    if not _LENGTH.fullmatch(length):
        raise FramingError("Content-Length is no number")
    return Length(int(length))


def request_body(head: RequestHead) -> Body:
    """How a request's body ends (RFC 9112, section 6.3).

    Raises:
        FramingError: its end is announced in two ways, which the engine may read otherwise, or in none. So may each
            coding but `chunked` alone: cpp-httplib 0.19 (httplib.h, `is_chunked_transfer_encoding`) sees no body then.
    """
    if head.headers.keys() >= {"content-length", "transfer-encoding"}:
        raise FramingError("both Content-Length and Transfer-Encoding")
    coding = head.headers.get("transfer-encoding")
    if coding is None:
        return _framed(head.headers) or Length(0)
    if coding.lower() != "chunked":
        raise FramingError("a Transfer-Encoding that is not chunked alone")
    return Chunked(strict=True)


def response_body(head: ResponseHead, method: str) -> Body:
    """How the body of a response to a request of this method ends (RFC 9112, section 6.3)."""
    if method == "HEAD" or head.status < FIRST_FINAL or head.status in (NO_CONTENT, NOT_MODIFIED):
        return Length(0)
    return _framed(head.headers) or UntilClose()
