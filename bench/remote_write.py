"""Writes the recent past of a whole fleet into a running Prometheus' memory, where it has what it scraped lately.

Prometheus' remote write 1.0 (prometheus/prometheus, prompb/remote.proto and types.proto), its snappy blocks
uncompressed (google/snappy, format_description.txt: a literal may be the whole block).
"""

from __future__ import annotations

import http.client
import struct
from typing import TYPE_CHECKING, Final

from blocks import uvarint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from blocks import Block, Template

FLAGS: Final = (
    "--web.enable-remote-write-receiver",
    "--storage.tsdb.min-block-duration=8h",
    "--storage.tsdb.max-block-duration=8h",
)
"""Prometheus takes samples that are at most half of a block's duration old."""
BATCH: Final = 1 << 20
_HEADERS: Final = {
    "Content-Encoding": "snappy",
    "Content-Type": "application/x-protobuf",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
}
_LITERAL: Final = struct.Struct("<BI")
_SAMPLE: Final = struct.Struct("<Bd")


def send(address: str, templates: Sequence[Template], engines: Sequence[Mapping[str, str]], block: Block) -> None:
    """Send every template's samples, each of each engine.

    Raises:
        ConnectionError: Prometheus refused some.
    """
    connection = http.client.HTTPConnection(address)
    pairs: dict[tuple[str, str], bytes] = {}
    waiting = bytearray()
    for template in templates:
        samples = _samples(template, block)
        for engine in engines if template.each else ({},):
            series = b""
            for pair in sorted({**template.labels, **engine}.items()):
                if pair not in pairs:
                    name, value = (part.encode() for part in pair)
                    pairs[pair] = _field(1, _field(1, name) + _field(2, value))
                series += pairs[pair]
            waiting += _field(1, series + samples)
            if len(waiting) > BATCH:
                _post(connection, bytes(waiting))
                waiting.clear()
    _post(connection, bytes(waiting))
    connection.close()


def _samples(template: Template, block: Block) -> bytes:
    found = b""
    for place in range(0, block.samples, template.every):
        time = block.begin + place * block.step
        found += _field(2, _SAMPLE.pack(0x09, template.values[place]) + b"\x10" + uvarint(time))
    return found


def _field(number: int, content: bytes) -> bytes:
    return uvarint(number << 3 | 2) + uvarint(len(content)) + content


def _post(connection: http.client.HTTPConnection, body: bytes) -> None:
    literal = _LITERAL.pack(63 << 2, len(body) - 1)
    connection.request("POST", "/api/v1/write", uvarint(len(body)) + literal + body, _HEADERS)
    answer = connection.getresponse()
    text = answer.read()
    if answer.status != http.client.NO_CONTENT:
        raise ConnectionError(f"remote write: {answer.status} {text.decode(errors='replace')}")
