"""Writes blocks of Prometheus' storage for a whole fleet, so that days of it exist without having to pass.

All engines share the chunks of one, which are read and decoded once for each of them: what a query costs is what it
would cost if they differed, but for the disk that they do not need. The formats are those of prometheus/prometheus,
tsdb/docs/format/{index,chunks}.md (version 2.53).
"""

from __future__ import annotations

import itertools
import json
import os
import struct
from array import array
from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

SAMPLES: Final = 120
"""Samples of a chunk, as Prometheus makes them."""
_POLYNOMIAL: Final = 0x82F63B78  # Castagnoli, reflected
_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_DOUBLE: Final = struct.Struct(">d")
_FULL: Final = 64


class Template(NamedTuple):
    """A series of one engine, or (`each` false) of the fleet: its labels, and its value at every step.

    One that is rarer than the block's step has a sample at each `every`-th of them.
    """

    labels: Mapping[str, str]
    values: Sequence[float]
    each: bool = True
    every: int = 1


class Block(NamedTuple):
    """Times of a block: its first sample's and the step to the next in milliseconds, and how many there are."""

    begin: int
    step: int
    samples: int


def _table() -> tuple[int, ...]:
    found = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        found.append(value)
    return tuple(found)


_TABLE: Final = _table()


def _run(state: int, data: bytes) -> int:
    table = _TABLE
    for byte in data:
        state = table[(state ^ byte) & 255] ^ state >> 8
    return state


def checksum(data: bytes) -> bytes:
    """CRC32C, as everything in a block has it."""
    return struct.pack(">I", _run(0xFFFFFFFF, data) ^ 0xFFFFFFFF)


class _Tail:
    """The checksum of many texts with the same end: the register is linear in what it begins with."""

    def __init__(self, tail: bytes) -> None:
        self._constant = _run(0, tail)
        zeros = bytes(len(tail))
        bits = [_run(1 << bit, zeros) for bit in range(32)]
        self._tables = [
            [self._combined(bits[8 * part : 8 * part + 8], byte) for byte in range(256)] for part in range(4)
        ]

    @staticmethod
    def _combined(bits: Sequence[int], byte: int) -> int:
        value = 0
        for place, bit in enumerate(bits):
            if byte >> place & 1:
                value ^= bit
        return value

    def after(self, head: bytes) -> bytes:
        state = _run(0xFFFFFFFF, head)
        a, b, c, d = self._tables
        moved = a[state & 255] ^ b[state >> 8 & 255] ^ c[state >> 16 & 255] ^ d[state >> 24]
        return struct.pack(">I", moved ^ self._constant ^ 0xFFFFFFFF)


def uvarint(value: int) -> bytes:
    """A number as seven bits a byte, the lowest first."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def _varint(value: int) -> bytes:
    return uvarint(value << 1 if value >= 0 else ~value << 1 | 1)


def chunk(begin: int, step: int, values: Sequence[float]) -> bytes:
    """The samples of an even pace in the XOR encoding, with encoding and checksum."""
    numbers = [int.from_bytes(_DOUBLE.pack(value)) for value in values]
    bits: list[str] = []
    lead = trail = _FULL
    for place, (last, number) in enumerate(itertools.pairwise(numbers)):
        if place:
            bits.append("0")  # the pace has not changed
        changed = last ^ number
        if not changed:
            bits.append("0")
            continue
        leading, trailing = min(_FULL - changed.bit_length(), 31), (changed & -changed).bit_length() - 1
        if lead != _FULL and leading >= lead and trailing >= trail:
            bits.append(f"10{changed >> trail:0{_FULL - lead - trail}b}")
            continue
        lead, trail = leading, trailing
        width = _FULL - lead - trail
        bits.append(f"11{lead:05b}{width & 63:06b}{changed >> trail:0{width}b}")
    head = struct.pack(">H", len(values)) + _varint(begin) + _DOUBLE.pack(values[0])
    # The second sample's step comes before its value, at a byte's boundary.
    if len(values) > 1:
        head += uvarint(step)
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    data = b"\x01" + head + (int(text, 2).to_bytes(len(text) // 8) if text else b"")
    return uvarint(len(data) - 1) + data + checksum(data)


class _Writer:
    """A file with its position."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=1 << 20)
        self.position = 0

    def put(self, data: bytes) -> int:
        """Append; returns where it begins."""
        begin = self.position
        self._file.write(data)
        self.position += len(data)
        return begin

    def align(self, size: int) -> None:
        """Fill up with zeros to a multiple of a size."""
        self.put(bytes(-self.position % size))

    def section(self, data: bytes) -> int:
        """Append a part with its length before it and its checksum after it."""
        return self.put(struct.pack(">I", len(data)) + data + checksum(data))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def write(folder: Path, templates: Sequence[Template], engines: Sequence[Mapping[str, str]], block: Block) -> int:
    """Write one block below a data folder; returns its number of series.

    Each template is there for each engine, with the engine's labels over its own.
    """
    name = "".join(_CROCKFORD[byte & 31] for byte in b"\x00" + os.urandom(25))
    path = folder / name
    (path / "chunks").mkdir(parents=True)
    tails = _chunks(path / "chunks" / "000001", templates, block)
    names = {name for one in templates for name in one.labels} | {name for engine in engines for name in engine}
    values = {value for one in templates for value in one.labels.values()}
    values |= {value for engine in engines for value in engine.values()}
    symbols = {text: place for place, text in enumerate(sorted(names | values))}
    index = _Writer(path / "index")
    index.put(b"\xba\xaa\xd7\x00\x02")
    texts = b"".join(uvarint(len(text.encode())) + text.encode() for text in symbols)
    places = [index.section(struct.pack(">I", len(symbols)) + texts)]
    index.align(16)
    places.append(index.position)
    postings: dict[tuple[str, str], array[int]] = defaultdict(lambda: array("I"))
    pairs: dict[tuple[str, str], bytes] = {}
    count = 0
    for labels, which in _ordered(templates, engines):
        tail, ending = tails[which]
        head = uvarint(len(labels))
        for pair in labels:
            if pair not in pairs:
                pairs[pair] = uvarint(symbols[pair[0]]) + uvarint(symbols[pair[1]])
            head += pairs[pair]
        index.align(16)
        begin = index.put(uvarint(len(head) + len(tail)) + head + tail + ending.after(head))
        for pair in (("", ""), *labels):
            postings[pair].append(begin // 16)
        count += 1
    places += [index.position, index.position]  # the index of labels, which nobody reads any more
    index.section(struct.pack(">I", 0))
    index.align(4)
    places.append(index.position)
    table = [struct.pack(">I", len(postings))]
    for (label, value), found in sorted(postings.items()):
        index.align(4)
        found.byteswap()
        at = index.section(struct.pack(">I", len(found)) + found.tobytes())
        texts = b"".join(uvarint(len(text.encode())) + text.encode() for text in (label, value))
        table.append(b"\x02" + texts + uvarint(at))
    places.append(index.section(b"".join(table)))
    symbols_at, series_at, labels_at, _, postings_at, table_at = places
    end = struct.pack(">6Q", symbols_at, series_at, labels_at, labels_at, postings_at, table_at)
    index.put(end + checksum(end))
    index.close()
    chunks = count * -(-block.samples // SAMPLES)
    meta = {
        "ulid": name,
        "minTime": block.begin,
        "maxTime": block.begin + block.samples * block.step,
        "stats": {
            "numSamples": block.samples * count,
            "numSeries": count,
            "numChunks": chunks,
        },
        "compaction": {"level": 1, "sources": [name]},
        "version": 1,
    }
    (path / "meta.json").write_text(json.dumps(meta))
    return count


def _chunks(path: Path, templates: Sequence[Template], block: Block) -> list[tuple[bytes, _Tail]]:
    """Write each template's chunks; returns the part of its series' entries that lists them."""
    file = _Writer(path)
    file.put(b"\x85\xbd\x40\xdd\x01\x00\x00\x00")
    entries: list[tuple[bytes, _Tail]] = []
    known: dict[bytes, _Tail] = {}
    for template in templates:
        samples, step = template.values[:: template.every], block.step * template.every
        text = uvarint(-(-len(samples) // SAMPLES))
        last, reference = 0, 0
        for first in range(0, len(samples), SAMPLES):
            values = samples[first : first + SAMPLES]
            begin, length = block.begin + first * step, (len(values) - 1) * step
            at = file.put(chunk(begin, step, values))
            if first:
                text += uvarint(begin - last) + uvarint(length) + _varint(at - reference)
            else:
                text += _varint(begin) + uvarint(length) + uvarint(at)
            last, reference = begin + length, at
        known[text] = known.get(text) or _Tail(text)
        entries.append((text, known[text]))
    file.close()
    return entries


def _ordered(
    templates: Sequence[Template], engines: Sequence[Mapping[str, str]]
) -> Iterator[tuple[tuple[tuple[str, str], ...], int]]:
    """The labels of every series in their order, with the place of its template."""
    own = frozenset(engines[0])
    first = min(own)

    def before(place: int) -> tuple[tuple[str, str], ...]:
        labels = templates[place].labels.items()
        return (*sorted(pair for pair in labels if pair[0] < first), (first if templates[place].each else "~", ""))

    def sort(places: Iterable[int]) -> list[int]:
        return sorted(places, key=before)

    ordered = sorted(engines, key=lambda engine: engine[first])
    for _, group in itertools.groupby(sort(range(len(templates))), key=before):
        places = list(group)
        if not templates[places[0]].each:
            yield from sorted((tuple(sorted(templates[place].labels.items())), place) for place in places)
            continue
        for engine in ordered:
            yield from sorted((tuple(sorted({**templates[place].labels, **engine}.items())), place) for place in places)
