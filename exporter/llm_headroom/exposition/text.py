"""Exposition text to samples: the Prometheus text format 0.0.4 and OpenMetrics 1.0.

Which TYPE line a sample belongs to follows prometheus/client_python, prometheus_client/parser.py and
prometheus_client/openmetrics/parser.py; `text_lines` has the grammar.

Engines expose the same lines at every scrape and only the numbers move, so a `Parser` remembers what stood before
each number. There are four ways through a body, each falling back on the next one:

1. every line is as remembered up to its number: the numbers are read without Python bytecode for each line;
2. the lines differ in one stretch, as when a series appears: so is the rest, and the stretch is read as below;
3. line by line, but what stands before a number was met in the last scrape: its key is looked up;
4. the line is parsed in full.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from itertools import chain, compress
from operator import indexOf
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple
from weakref import WeakValueDictionary

import msgspec

from llm_headroom.exposition.text_lines import (
    OPENMETRICS_SUFFIXES,
    TEXT_SUFFIXES,
    UNTYPED,
    parse_family,
    parse_series,
    parse_type,
    parse_value,
    split_comment,
    split_sample,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llm_headroom.exposition.text_lines import LineLabels

_PROBLEMS_KEPT: Final = 5
_PROBLEM_TEXT: Final = 80
_INVERTED: Final = b"\x01" + bytes(255)
_NOT_TYPED: Final = ""
_NUMBERS: Final = msgspec.json.Decoder(list[float])
_PARTS_OF_TYPE: Final = 4
_PARTS_OF_HELP: Final = 3


class SampleKey(NamedTuple):
    """A sample without its value.

    `name` and `labels` are those of the line, `labels` in the order of the line. `type` is the type of the family
    that the sample belongs to, as its TYPE line spells it, "untyped" if it belongs to none.
    """

    name: str
    labels: LineLabels
    type: str


@dataclass(frozen=True, eq=False, slots=True)
class Layout:
    """All of a body but the values. Compared by identity.

    `families` are the declared families with their types, those without samples included ("untyped" where only a HELP
    line speaks of one). `invalid` counts the lines that were dropped, a missing `# EOF` of OpenMetrics among them.
    `problems` shows the operator the first few of these, as they were when this layout was first seen.
    """

    keys: tuple[SampleKey, ...]
    families: Mapping[str, str]
    invalid: int
    problems: tuple[str, ...]


class Exposition(NamedTuple):
    """The content of a body: `values` has one number for each of the layout's keys."""

    layout: Layout
    values: list[float]


class TooManyLines(Exception):  # noqa: N818 - what was answered, not an error of ours
    """A body has more line feeds than a parser reads; the argument is how many."""


class Parser:
    """Parses the scrapes of one endpoint, of at most so many lines, and remembers the lines of the last one.

    As long as keys, families and the number of invalid lines stay the same, successive expositions carry the
    identical `Layout` object. Parsers whose endpoints expose the same may share one `Layout`.
    """

    __slots__ = ("_last", "_most")

    _last: _Lines | None

    def __init__(self, most: int = sys.maxsize - 1) -> None:
        self._last = None
        self._most = most

    def parse(self, body: bytes, *, openmetrics: bool = False) -> Exposition:
        """Reads a body; raises nothing but `TooManyLines`, whatever its bytes.

        A malformed line is dropped and counted, and so is a last line without its line feed, since its value may be
        cut. Timestamps and exemplars are read over. A native histogram is no number and counts as malformed.
        """
        lines = body.split(b"\n", self._most + 1)
        if len(lines) > self._most + 1:
            raise TooManyLines(body.count(b"\n"))
        last = self._last
        if last is not None and last.plain and last.openmetrics is openmetrics:
            values = last.values(body, lines)
            if values is not None:
                return Exposition(last.layout, values)
            patched = _patch(last, lines)
            if patched is not None:
                self._last, values = patched
                return Exposition(self._last.layout, values)
        reader = _Reader(openmetrics=openmetrics, last=last)
        tail = lines.pop()
        reader.read(lines)
        reader.finish(tail)
        self._last = reader.remember()
        return Exposition(self._last.layout, reader.values)


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True, kw_only=True)
class _Lines:
    """A body's lines without the values.

    `heads` has one item for each line: of a sample what stands before its value, of any other (comments, blank and
    malformed lines, the rest after the last line feed) the whole line. `samples` and `begins` hold one byte for each
    line, which is 1 where the line is a sample, and where it begins a family.
    `length` is the length of the body less that of the values. `plain` says that nothing but the values follows the
    heads: no timestamp, no exemplar. `regular` says that no line is invalid, that each sample is in a typed family and
    that each of these has one TYPE line, ahead of its samples.
    """

    openmetrics: bool
    plain: bool
    regular: bool
    heads: tuple[bytes, ...]
    samples: bytes
    begins: bytes
    length: int
    layout: Layout

    def values(self, body: bytes, lines: list[bytes]) -> list[float] | None:
        """The values of a body that has these lines, else None."""
        if len(lines) != len(self.heads):
            return None
        rests = list(map(bytes.removeprefix, lines, self.heads))
        # A line that lacks its head stays whole, and may be a bare number: then the lengths do not add up.
        if len(body) - sum(map(len, rests)) != self.length:
            return None
        return _numbers(rests, self.samples)

    def others(self, begin: int, end: int) -> list[bytes]:
        """The lines from `begin` to `end` that are not samples."""
        return list(compress(self.heads[begin:end], self.samples[begin:end].translate(_INVERTED)))

    def sample_heads(self) -> list[bytes]:
        """The heads of the samples, one for each key of the layout."""
        return list(compress(self.heads, self.samples))


def _numbers(rests: list[bytes], samples: bytes) -> list[float] | None:
    """The values that are left of lines without their heads; None if anything else is left of them."""
    texts = list(compress(rests, samples))
    if len(rests) - rests.count(b"") != len(texts):
        return None
    return _floats(texts)


def _floats(texts: list[bytes]) -> list[float] | None:
    """Texts as numbers, None if one is none. As one JSON list, where they can be: that takes a sixth of it."""
    joined = b",".join(texts)
    # `float` takes the underscores of Python's literals, the formats do not know them.
    if b"_" in joined:
        return None
    odd = [place for place, text in enumerate(texts) if text == b"NaN"] if b"NaN" in joined else []
    if odd:  # JSON has none; SGLang always exposes one
        for place in odd:
            texts[place] = b"0"
        joined = b",".join(texts)
    values = _json_list(joined)
    if len(values) != len(texts) or b"-0" in joined.replace(b"e-0", b""):  # JSON's -0 is read as 0
        try:
            values = list(map(float, texts))
        except ValueError:
            return None
    for place in odd:
        values[place] = math.nan
    return values


def _json_list(joined: bytes) -> list[float]:
    try:
        return _NUMBERS.decode(b"[%b]" % joined)
    except msgspec.DecodeError:
        return []


def _patch(last: _Lines, lines: list[bytes]) -> tuple[_Lines, list[float]] | None:
    """The lines and values of a body that differs from the last one in one stretch; None if that does not serve.

    The stretch is read from the family on in which it begins. It may add, drop and move samples, not comments: then
    the lines behind it stand in the same families as before.
    """
    front = _agreeing(lines, last.heads)
    back = min(_agreeing(lines[::-1], last.heads[::-1]), min(len(lines), len(last.heads)) - front)
    begin = max(0, last.begins.rfind(1, 0, front))
    old_end, end = len(last.heads) - back, len(lines) - back
    if not last.regular or back == 0 or end - begin > len(lines) // 2:
        return None
    reader = _Reader(openmetrics=last.openmetrics, last=last)
    reader.read(lines[begin:end])
    before = _numbers(list(map(bytes.removeprefix, lines[:begin], last.heads)), last.samples[:begin])
    after = _numbers(list(map(bytes.removeprefix, lines[end:], last.heads[old_end:])), last.samples[old_end:])
    if before is None or after is None or not reader.fits(last.others(begin, old_end)):
        return None
    return reader.replace_stretch(last, begin, old_end), [*before, *reader.values, *after]


def _agreeing(lines: Sequence[bytes], heads: Sequence[bytes]) -> int:
    """How many lines, from the first one on, start with their heads."""
    return indexOf(chain(map(bytes.startswith, lines, heads), (False,)), 0)


_latest: Final[WeakValueDictionary[int, _Lines]] = WeakValueDictionary()
"""The latest lines by the hash of their comments: the same for all replicas of one engine version and configuration."""


def _share(lines: _Lines, last: _Lines | None) -> _Lines:
    """The same lines, reusing objects that another endpoint's lines hold in memory already."""
    comments = hash(tuple(lines.others(0, len(lines.heads))))
    other = _latest.get(comments)
    # The reader made use of the endpoint's own last lines.
    if other is not None and other is not last:
        held = {head: head for head in other.heads}
        keys = dict(zip(other.sample_heads(), other.layout.keys, strict=True))
        layout = replace(
            lines.layout,
            keys=tuple(
                [
                    keys[head] if keys.get(head) == key else key
                    for head, key in zip(lines.sample_heads(), lines.layout.keys, strict=True)
                ]
            ),
        )
        if layout.families == other.layout.families:
            layout = replace(layout, families=other.layout.families)
        if _same_layout(layout, other.layout):
            layout = other.layout
        if layout is other.layout and (lines.heads, lines.samples, lines.openmetrics, lines.plain) == (
            other.heads,
            other.samples,
            other.openmetrics,
            other.plain,
        ):
            return other
        lines = replace(lines, layout=layout, heads=tuple([held.get(head, head) for head in lines.heads]))
    _latest[comments] = lines
    return lines


def _same_layout(one: Layout, other: Layout) -> bool:
    return one.invalid == other.invalid and one.keys == other.keys and one.families == other.families


class _Reader:
    """Reads lines one by one, with the keys of the last body at hand."""

    def __init__(self, *, openmetrics: bool, last: _Lines | None) -> None:
        self.values: list[float] = []
        self._last = last
        self._known = dict(zip(last.sample_heads(), last.layout.keys, strict=True)) if last is not None else {}
        self._openmetrics = openmetrics
        self._suffixes = OPENMETRICS_SUFFIXES if openmetrics else TEXT_SUFFIXES
        self._strings: dict[str, str] = {}
        self._pairs: dict[tuple[str, str], tuple[str, str]] = {}
        self._label_sets: dict[LineLabels, LineLabels] = {}
        self._keys: list[SampleKey] = []
        self._heads: list[bytes] = []
        # Indices of lines: of those that are no samples, and of those that begin a family.
        self._others: list[int] = []
        self._begins: list[int] = []
        self._plain = True
        self._regular = True
        self._families: dict[str, str] = {}
        self._invalid = 0
        self._problems: list[str] = []
        self._ended = False
        # The family that the lines are in: its name as the line spells it and as it is, the type that a TYPE line gave
        # it, the names of its samples, and how many samples came before it.
        self._token = b""
        self._family = ""
        self._type = _NOT_TYPED
        self._names: tuple[str, ...] = ()
        self._start = 0

    def read(self, lines: list[bytes]) -> None:
        known = self._known.get
        add_value, add_key, add_head = self.values.append, self._keys.append, self._heads.append
        kind, names = self._type, self._names
        for line in lines:
            cut = line.rfind(b" ") + 1
            head = line[:cut]
            key = known(head)
            if key is not None and key.type == kind and key.name in names:
                text = line[cut:]
                if b"_" not in text:
                    try:
                        add_value(float(text))
                    except ValueError:
                        pass
                    else:
                        add_key(key)
                        add_head(head)
                        continue
            self._read_other(line)
            kind, names = self._type, self._names

    def finish(self, tail: bytes) -> None:
        """Reads what follows the last line feed."""
        if self._openmetrics and tail.strip() == b"# EOF":
            self._read_other(tail)
        else:
            if tail.strip():
                self._drop(tail, "the last line has no line feed at its end: the body may be cut")
            self._add_other(tail)
        if self._openmetrics and not self._ended:
            self._drop(b"", "the body does not end with # EOF: it may be cut")

    def remember(self) -> _Lines:
        """The lines that were read, of a whole body."""
        layout = Layout(tuple(self._keys), MappingProxyType(self._families), self._invalid, tuple(self._problems))
        samples, begins = self._masks()
        return self._settle(
            _Lines(
                openmetrics=self._openmetrics,
                plain=self._plain,
                regular=self._regular and not self._invalid,
                heads=tuple(self._heads),
                samples=samples,
                begins=begins,
                length=_length(self._heads),
                layout=layout,
            )
        )

    def fits(self, others: list[bytes]) -> bool:
        """Whether what was read is regular and has just these lines beside its samples."""
        return (
            self._regular
            and self._plain
            and not self._invalid
            and [self._heads[index] for index in self._others] == others
        )

    def replace_stretch(self, last: _Lines, begin: int, end: int) -> _Lines:
        """The last lines, but those from `begin` to `end` replaced by the ones that were read, which must fit."""
        samples, begins = self._masks()
        heads = (*last.heads[:begin], *self._heads, *last.heads[end:])
        keys = last.layout.keys
        key_begin, key_end = last.samples.count(1, 0, begin), last.samples.count(1, 0, end)
        return self._settle(
            replace(
                last,
                heads=heads,
                samples=last.samples[:begin] + samples + last.samples[end:],
                begins=last.begins[:begin] + begins + last.begins[end:],
                length=_length(heads),
                layout=replace(last.layout, keys=(*keys[:key_begin], *self._keys, *keys[key_end:])),
            )
        )

    def _settle(self, lines: _Lines) -> _Lines:
        last = self._last
        if last is not None and _same_layout(last.layout, lines.layout):
            return replace(lines, layout=last.layout)
        return _share(lines, last)

    def _masks(self) -> tuple[bytes, bytes]:
        samples, begins = bytearray(b"\x01" * len(self._heads)), bytearray(len(self._heads))
        for index in self._others:
            samples[index] = 0
        for index in self._begins:
            begins[index] = 1
        return bytes(samples), bytes(begins)

    def _read_other(self, line: bytes) -> None:
        """Reads a line that is not just a known head and a number."""
        stripped = line.strip()
        if not stripped or self._ended:
            if stripped:
                self._drop(line, "it follows # EOF")
            self._add_other(line)
            return
        try:
            if not stripped.startswith(b"#"):
                self._read_sample(line)
                return
            self._read_comment(stripped)
        except ValueError as error:
            self._drop(line, "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error))
        self._add_other(line)

    def _read_comment(self, line: bytes) -> None:
        parts = split_comment(line)
        keyword = parts[1] if len(parts) > 1 and parts[0] == b"#" else b""
        if keyword == b"TYPE":
            if len(parts) != _PARTS_OF_TYPE:
                raise ValueError("a TYPE line needs a name and a type")
            if parts[2] != self._token:
                self._enter(parts[2])
            self._set_type(parse_type(parts[3]))
        elif keyword == b"HELP" or (keyword == b"UNIT" and self._openmetrics):
            if len(parts) < _PARTS_OF_HELP:
                raise ValueError("it names no metric")
            if parts[2] != self._token:
                self._enter(parts[2])
        elif keyword == b"EOF" and self._openmetrics:
            self._ended = True
            self._names = ()

    def _enter(self, token: bytes) -> None:
        """Starts a family whose type is not known yet."""
        self._family = parse_family(token)
        self._token = token
        self._type = _NOT_TYPED
        self._names = (self._family,)
        self._start = len(self._keys)
        self._begins.append(len(self._heads))
        self._families.setdefault(self._family, UNTYPED)

    def _set_type(self, kind: str) -> None:
        family, suffixes = self._family, self._suffixes[kind]
        names = tuple([family + suffix for suffix in suffixes])
        if self._openmetrics and ":" in family:
            # prometheus_client 0.23 and newer, asked for OpenMetrics without escaping=allow-utf-8, writes underscores
            # for the colons of sample names but not for those of TYPE and HELP lines.
            renamed = family.replace(":", "_")
            names += tuple([renamed + suffix for suffix in suffixes])
        if self._type or self._start < len(self._keys):
            # The last TYPE line holds for the whole family, for samples ahead of it too.
            self._keys[self._start :] = [key._replace(type=kind) for key in self._keys[self._start :]]
            self._regular = False
        self._type = kind
        self._names = names
        self._families[family] = kind

    def _read_sample(self, line: bytes) -> None:
        head, rest = split_sample(line)
        value, plain = parse_value(rest)
        key = self._known.get(head)
        name, labels = (key.name, key.labels) if key is not None else self._parse_series(head)
        kind = self._type or UNTYPED
        if name not in self._names:
            # A sample of another name ends the family for good.
            kind, self._token, self._type, self._names = UNTYPED, b"", _NOT_TYPED, ()
        self._regular &= bool(self._type)
        self._plain &= plain
        self._heads.append(head)
        self._keys.append(key if key is not None and key.type == kind else SampleKey(name, labels, kind))
        self.values.append(value)

    def _parse_series(self, head: bytes) -> tuple[str, LineLabels]:
        """Name and labels, made of strings and tuples that earlier lines made."""
        name, labels = parse_series(head)
        strings, pairs = self._strings, self._pairs
        items = tuple(
            [
                pairs.setdefault(pair, (strings.setdefault(pair[0], pair[0]), strings.setdefault(pair[1], pair[1])))
                for pair in labels
            ]
        )
        return strings.setdefault(name, name), self._label_sets.setdefault(items, items)

    def _add_other(self, line: bytes) -> None:
        self._others.append(len(self._heads))
        self._heads.append(line)

    def _drop(self, line: bytes, reason: str) -> None:
        self._invalid += 1
        if len(self._problems) < _PROBLEMS_KEPT:
            text = f": {line[:_PROBLEM_TEXT].decode(errors='replace')!r}" if line else ""
            self._problems.append(f"line {len(self._heads) + 1}: {reason}{text}")


def _length(heads: Sequence[bytes]) -> int:
    """The length of a body of these lines less that of its values."""
    return sum(map(len, heads)) + len(heads) - 1
