"""YAML files read as nodes, not as Python objects, so that each error names the file, a line and a key.

What may be written is a table: a key's name and the function that reads its value. Such a function takes a `Value` and
raises ConfigError if it is of no use; all problems of a file are found before any is told.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeAlias, TypeVar

from llm_headroom.config.errors import ConfigError, Place, Problems, near, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from yaml.nodes import Node

T = TypeVar("T")
K = TypeVar("K")
C = TypeVar("C")

Read: TypeAlias = "Callable[[Value[C]], Any]"
"""Reads a value, in a file whose context is a C. Raises ConfigError."""

LARGEST_FILE: Final = 1024 * 1024
"""Bytes of a configuration file: what a Kubernetes ConfigMap can hold."""
MOST_VALUES: Final = 200_000
"""Values that a file may expand to by its aliases and merge keys."""

_YAML: Final = "tag:yaml.org,2002:"
_KINDS: Final = {
    ("mapping", f"{_YAML}map"): "mapping",
    ("sequence", f"{_YAML}seq"): "list",
    ("scalar", f"{_YAML}str"): "string",
    ("scalar", f"{_YAML}int"): "integer",
    ("scalar", f"{_YAML}float"): "float",
    ("scalar", f"{_YAML}bool"): "boolean",
    ("scalar", f"{_YAML}null"): "nothing",
    ("scalar", f"{_YAML}timestamp"): "date",
}
_KIND_NAMES: Final = {
    "mapping": "a mapping",
    "list": "a list",
    "string": "a string",
    "integer": "a number",
    "float": "a number",
    "boolean": "true or false",
    "nothing": "nothing",
    "date": "a date",
}
_IN_QUOTES: Final = frozenset({"integer", "float", "boolean", "date"})
"""What a scalar without quotes may be taken for, where a string was meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """In what two kinds of files differ: which keys they may have, and the wording of errors (for `str.format`).

    With `plain_keys` every scalar is a key, taken as it is written; otherwise keys are strings, and a merge key (`<<`)
    brings in the entries of other mappings. Keys that match `bare_keys` stand in errors without quotes.
    """

    plain_keys: bool = False
    bare_keys: str = r"[\w-]{1,60}"
    item: str = "[{index}]"
    unreadable: str = "{file}: {reason}"
    malformed: str = "is not valid YAML: {reason}"
    too_deep: str = "{file}: is nested too deeply, or its aliases expand to too much"
    mismatch: str = "expected {expected}, got {kind}"
    twice: str = "{key} is given twice, first on line {line}"
    twice_at_key: bool = False
    mapping: str = "a mapping"
    list: str = "a list"
    kinds: Mapping[str, str] = field(default_factory=lambda: _KIND_NAMES)


class _ReportedError(Exception):
    """A value is of no use, and why is among the problems already."""


class _OversizeError(Exception):
    """The file expands to more values than any configuration has."""


class _Document(Generic[C]):
    """What is known while a file is read."""

    def __init__(self, context: C, problems: Problems, style: Style) -> None:
        self.context = context
        self.problems = problems
        self.style = style
        self._values = 0

    def count(self) -> None:
        """Counts a value, so that few bytes cannot keep the exporter busy."""
        self._values += 1
        if self._values > MOST_VALUES:
            raise _OversizeError


@dataclass(frozen=True, slots=True)
class Value(Generic[C]):
    """A node of the file, the place of its key, and the key that it lies under (empty in a list)."""

    document: _Document[C]
    node: Node
    place: Place
    key: str = ""

    @property
    def context(self) -> C:
        """What the caller of `read` gave to the functions of its tables."""
        return self.document.context

    @property
    def directory(self) -> Path:
        """Where relative paths in the file begin."""
        return self.place.file.parent

    @property
    def kind(self) -> str:
        """One of mapping, list, string, integer, float, boolean, nothing, date and other."""
        return _KINDS.get((getattr(self.node, "id", ""), self.node.tag), "other")

    @property
    def is_scalar(self) -> bool:
        """Whether it is neither a mapping nor a list, whatever type YAML takes it for."""
        return getattr(self.node, "id", "") == "scalar"  # not by its class, since PyYAML is loaded late

    @property
    def told_kind(self) -> str:
        """Its kind, as errors put it."""
        return self.document.style.kinds.get(self.kind, "a value of a YAML type that is not supported")

    def report(self, message: str, place: Place | None = None) -> None:
        """Adds a problem of this value, or of a place in it, to those of the file."""
        place = place or self.place
        self.document.problems.add(place.told(message), place.line)

    def reject(self, message: str, place: Place | None = None) -> NoReturn:
        """Adds a problem and gives the value up."""
        self.report(message, place)
        raise _ReportedError

    def attempt(self, read: Callable[[Value[C]], T]) -> T | None:
        """What the function reads; None if there is a problem, which is then among those of the file."""
        try:
            return read(self)
        except ConfigError as error:
            self.report(str(error))
        except _ReportedError:
            pass
        return None

    def boolean(self) -> bool:
        """True or false."""
        if self.kind != "boolean":
            raise self._mismatch("true or false")
        return str(self.node.value).lower() in {"true", "yes", "on"}

    def string(self) -> str:
        """A string. The error does not repeat what else it is: it may be a misplaced secret."""
        if self.kind != "string":
            raise self._mismatch("a string", ": put it in quotes" if self.kind in _IN_QUOTES else "")
        return str(self.node.value)

    def number(self) -> str:
        """A number as it is written, with or without a unit or quotes."""
        if self.kind not in {"string", "integer", "float"}:
            raise self._mismatch("a number")
        return str(self.node.value)

    def scalar(self) -> str:
        """A scalar as it is written, whatever type YAML takes it for; nothing, however it is written, is empty."""
        if not self.is_scalar:
            raise self._mismatch("a string")
        return "" if self.kind == "nothing" else str(self.node.value)

    def items(self) -> list[Value[C]]:
        """The values of a list."""
        if self.kind != "list":
            raise self._mismatch(self.document.style.list)
        values = []
        for index, node in enumerate(self.node.value):
            self.document.count()
            path = self.place.key + self.document.style.item.format(index=index)
            values.append(Value(self.document, node, Place(self.place.file, node.start_mark.line + 1, path)))
        return values

    def entries(self, visible: Collection[str] | None = None, above: tuple[Node, ...] = ()) -> dict[str, Value[C]]:
        """The values of a mapping, with those that merge keys bring in; nothing is an empty mapping.

        If `visible` is given, no error repeats any other key. `above` are the mappings that this one is merged into.
        """
        if self.kind == "nothing":
            return {}
        if self.kind != "mapping":
            raise self._mismatch(self.document.style.mapping)
        if any(self.node is node for node in above):
            raise ConfigError("a merge key must not bring in the mapping that it stands in")
        style = self.document.style
        own: dict[str, Value[C]] = {}
        merged: dict[str, Value[C]] = {}
        for name, node in self.node.value:
            self.document.count()
            there = replace(self, node=name, place=replace(self.place, line=name.start_mark.line + 1))
            if name.tag == f"{_YAML}merge" and not style.plain_keys:
                source = replace(there, node=node)
                for one in source.items() if source.kind == "list" else [source]:
                    mapping = replace(one, place=replace(one.place, key=self.place.key))
                    merged = mapping.entries(visible, (*above, self.node)) | merged
                continue
            if there.kind != "string" and not (style.plain_keys and there.is_scalar):
                there.reject(f"expected strings as keys, got {there.told_kind}: put it in quotes")
            key = str(name.value)
            told = "" if visible is not None and key not in visible else _told(key, style)
            path = f"{self.place.key}.{told}".lstrip(".") if told else self.place.key
            place = replace(there.place, key=path)
            if key in own:
                named = f"the key {told}" if told else "a key"
                message = style.twice.format(key=named, line=own[key].place.line)
                there.reject(message, place if style.twice_at_key else there.place)
            own[key] = Value(self.document, node, place, key)
        return merged | own

    def fields(self, table: Mapping[str, Read[C]], *required: str, instead: Collection[str] = ()) -> dict[str, Any]:
        """What is written for the keys of a table, in the table's order; a key without a value is as if absent.

        If `instead` is given, no error repeats an unknown key, since it may be a misplaced secret: these are named.
        """
        problems = self.document.problems
        before = len(problems)
        entries = self.entries(table if instead else None)
        for key, value in entries.items():
            if key not in table:
                value.report("unknown key" + (f"; known: {', '.join(instead)}" if instead else near(key, table)))
        entries = {key: value for key, value in entries.items() if value.kind != "nothing"}
        for key in required:
            if key not in entries:
                self.report(f"the key {key} is missing")
        return self.attempts({key: (entries[key], read) for key, read in table.items() if key in entries}, before)

    def attempts(self, values: Mapping[K, tuple[Value[C], Read[C]]], before: int | None = None) -> dict[K, Any]:
        """Reads them all, so that the problems of all are reported, and gives them if there was none.

        `before` is how many problems there were earlier, if some of these values' own are known already.
        """
        before = len(self.document.problems) if before is None else before
        read = {name: value.attempt(how) for name, (value, how) in values.items()}
        if len(self.document.problems) > before:
            raise _ReportedError
        return read

    def _mismatch(self, expected: str, hint: str = "") -> ConfigError:
        return ConfigError(self.document.style.mismatch.format(expected=expected, kind=self.told_kind) + hint)


def _told(key: str, style: Style) -> str:
    return key if re.fullmatch(style.bare_keys, key) else shown(key)


def from_string(parse: Callable[[str], T]) -> Callable[[Value[Any]], T]:
    """Reads strings."""
    return lambda value: parse(value.string())


def from_number(parse: Callable[[str], T]) -> Callable[[Value[Any]], T]:
    """Reads numbers, which may have a unit."""
    return lambda value: parse(value.number())


def from_scalar(parse: Callable[[str], T]) -> Callable[[Value[Any]], T]:
    """Reads scalars as they are written."""
    return lambda value: parse(value.scalar())


def list_of(read: Callable[[Value[C]], T]) -> Callable[[Value[C]], tuple[T, ...]]:
    """Reads lists."""
    return lambda value: tuple(value.attempts({index: (one, read) for index, one in enumerate(value.items())}).values())


def mapping_of(read: Callable[[Value[C]], T]) -> Callable[[Value[C]], Mapping[str, T]]:
    """Reads mappings whose keys the operator chooses; `read` finds the key in `Value.key`."""

    def mapping(value: Value[C]) -> Mapping[str, T]:
        return MappingProxyType(value.attempts({key: (one, read) for key, one in value.entries().items()}))

    return mapping


def some(read: Callable[[Value[C]], tuple[T, ...]]) -> Callable[[Value[C]], tuple[T, ...]]:
    """Refuses an empty list."""

    def read_some(value: Value[C]) -> tuple[T, ...]:
        return read(value) or value.reject("expected at least one entry, got an empty list")

    return read_some


def read(
    path: Path, table: Mapping[str, Read[C]], context: C, problems: Problems, style: Style = Style()
) -> dict[str, Any]:
    """What the file says for the keys of a table; an empty file says nothing.

    What is wrong with single values is added to `problems`, and the values are of no use then. Raises ConfigError if
    there is nothing to look at: the file cannot be read, is too large, or is not YAML.
    """
    data = _data(path, style)
    document = _Document(context, problems, style)
    try:
        root = _root(path, data, style)
        top = None if root is None else Value(document, root, Place(path, 1))
        return (top.attempt(lambda value: value.fields(table)) if top else None) or {}
    except (RecursionError, _OversizeError):
        raise ConfigError(style.too_deep.format(file=path)) from None


def _data(path: Path, style: Style) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(style.unreadable.format(file=path, reason=error.strerror)) from None
    if len(data) > LARGEST_FILE:
        raise ConfigError(f"{path}: is larger than {LARGEST_FILE} bytes")
    return data


def _root(path: Path, data: bytes, style: Style) -> Node | None:
    import yaml  # noqa: PLC0415 - a run without a configuration file is spared its memory

    def malformed(reason: str, *lines: int) -> ConfigError:
        return ConfigError(f"{':'.join(map(str, (path, *lines)))}: {style.malformed.format(reason=reason)}")

    try:
        text = data.decode()
        return yaml.compose(text, yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise Place(path, data.count(b"\n", 0, error.start) + 1).error("is not UTF-8") from None
    except yaml.MarkedYAMLError as error:
        # The names of anchors and tags are cut off: a secret that begins with * or ! reads like one.
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        problem = re.sub(r"(undefined alias|undefined tag handle|duplicate anchor) '.*", r"\1", problem)
        raise malformed(problem, error.problem_mark.line + 1 if error.problem_mark else 1) from None
    except yaml.reader.ReaderError as error:
        raise malformed(error.reason, text.count("\n", 0, error.position) + 1) from None
    except (ValueError, OverflowError):  # what PyYAML makes of an escape beyond Unicode
        raise malformed("an escape in a string means no character") from None
