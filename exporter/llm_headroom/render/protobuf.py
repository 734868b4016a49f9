"""The protobuf wire format, as far as OTLP metrics need it.

Spec: https://protobuf.dev/programming-guides/encoding/. Written by hand: it is small, costs less CPU than generated
messages (bench/otlp.py), and takes no library into memory.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

VARINT: Final = 0
FIXED64: Final = 1
LENGTH: Final = 2
FIXED32: Final = 5
_MOST_BYTES: Final = 10
"""Of a varint: 64 bits in groups of seven."""
_LOW: Final = 0x7F
_MORE: Final = 0x80


def varint(number: int) -> bytes:
    """A number from 0 to 2**64 - 1."""
    out = bytearray()
    while number > _LOW:
        out.append(number & _LOW | _MORE)
        number >>= 7
    out.append(number)
    return bytes(out)


def tag(field: int, wire: int) -> bytes:
    """What stands before a field's value."""
    return varint(field << 3 | wire)


def sized(field: int, content: bytes) -> bytes:
    """A field that holds bytes or a message."""
    return tag(field, LENGTH) + varint(len(content)) + content


def text(field: int, content: str) -> bytes:
    """A field that holds a text, nothing if it is empty. Lone surrogates, which UTF-8 has no bytes for, become `?`."""
    return sized(field, content.encode(errors="replace")) if content else b""


def number(field: int, value: int) -> bytes:
    """A field that holds a varint."""
    return tag(field, VARINT) + varint(value)


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message: number, and varint or content.

    Raises:
        ValueError: it is no message.
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        field, wire = key >> 3, key & 7
        if not field:
            raise ValueError("a field with the number 0")
        if wire == VARINT:
            value, at = _varint(data, at)
            yield field, value
            continue
        if wire == LENGTH:
            size, at = _varint(data, at)
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire} is not used by proto3")
        if at + size > len(data):
            raise ValueError("the message stops in the middle of a field")
        yield field, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    result = 0
    for index, byte in enumerate(data[at : at + _MOST_BYTES]):
        result |= (byte & _LOW) << 7 * index
        if not byte & _MORE:
            return result & 0xFFFFFFFFFFFFFFFF, at + index + 1
    raise ValueError("a varint without an end")


def doubles(values: tuple[float, ...]) -> bytes:
    """Packed doubles, without a tag."""
    return struct.pack(f"<{len(values)}d", *values)
