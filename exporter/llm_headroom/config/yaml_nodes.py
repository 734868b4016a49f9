"""YAML files read as nodes, not as Python objects, so that each error names the file, a line and a key."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from llm_headroom.config.errors import (
    MOST_VALUES,
    ConfigError,
    OversizeError,
    Place,
    Problems,
    UnreadError,
    shown,
)
from llm_headroom.net.files import content, named

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from yaml.nodes import Node

T = TypeVar("T")

LARGEST_FILE: Final = 1024 * 1024
"""Bytes of a configuration file: what a Kubernetes ConfigMap can hold."""
MOST_PLAIN: Final = 64 * 1024
"""Bytes of a file that PyYAML's own scanner reads, whose errors say more; it takes a second for 100 KiB."""

_YAML: Final = "tag:yaml.org,2002:"
_ADVICE: Final = {
    r"'\t'": "indent with spaces, not with tabs",
    "<block end>": "is this line indented as its neighbours are?",
    "did not find expected key": "is this line indented as its neighbours are?",
    "expected '-' indicator": "is this line indented as its neighbours are?",
    "mapping values": "is this line indented as its neighbours are, and is a text with a colon in quotes?",
    "expected ':'": "is a colon missing at the end of a key, here or in the line before?",
    "quoted scalar": "is a closing quote missing?",
}
"""Part of a complaint of PyYAML, or of libyaml → what people most probably did."""
_KINDS: Final = {
    ("mapping", "map"): "a mapping",
    ("sequence", "seq"): "a list",
    ("scalar", "str"): "a string",
    ("scalar", "int"): "a number",
    ("scalar", "float"): "a number",
    ("scalar", "bool"): "true or false",
    ("scalar", "null"): "nothing",
    ("scalar", "timestamp"): "a date",
}


class ReportedError(Exception):
    """A value cannot be used, and the reason is among the problems already."""


class Document:
    """What is known while a file is read: its problems so far, and who checks names and finished structures.

    `check` gets the role and the text of a name, `accept` a structure that was read and its place. Both raise
    ConfigError.
    """

    def __init__(
        self, problems: Problems, check: Callable[[str, str], None], accept: Callable[[Any, Place], None]
    ) -> None:
        self.problems = problems
        self.check = check
        self.accept = accept


@dataclass(frozen=True, slots=True)
class Value:
    """A node of the file, the place of its key, and its key (empty in a list)."""

    document: Document
    node: Node
    place: Place
    key: str = ""

    @property
    def directory(self) -> Path:
        """The directory at which relative paths in the file start."""
        return self.place.file.absolute().parent

    @property
    def kind(self) -> str:
        """What it is, as errors put it."""
        name = self.node.tag.removeprefix(_YAML)
        return _KINDS.get((getattr(self.node, "id", ""), name), "a value of a YAML type that is not supported")

    def report(self, message: str, hint: Callable[[], str] = str) -> None:
        """Adds a problem of this value to those of the file; see `Problems.add`."""
        self.document.problems.add(self.place.line_for(message), self.place.line, hint)

    def attempt(self, read: Callable[[Value], T]) -> T | None:
        """What the function reads; None if there is a problem, which is then among those of the file."""
        try:
            return read(self)
        except ConfigError as error:
            self.report(error.message, error.hint)
        except ReportedError:
            pass
        return None

    def boolean(self) -> bool:
        """True or false."""
        self._expect("true or false")
        return str(self.node.value).lower() in {"true", "yes", "on"}

    def string(self) -> str:
        """A string. The error does not repeat what else it is: it may be a misplaced secret."""
        self._expect("a string")
        return str(self.node.value)

    def number(self) -> str:
        """A number as it is written, with or without a unit or quotes."""
        self._expect("a number", "a string")
        return str(self.node.value)

    def scalar(self) -> str:
        """A scalar as it is written, whatever its YAML type; null, however it is written, is empty."""
        if getattr(self.node, "id", "") != "scalar":  # not by its class, since PyYAML is loaded late
            self._expect("a string")
        return "" if self.kind == "nothing" else str(self.node.value)

    def items(self) -> list[Value]:
        """The values of a list."""
        self._expect("a list")
        values = []
        for index, node in enumerate(self.node.value):
            place = Place(self.place.file, node.start_mark.line + 1, f"{self.place.key}[{index}]")
            values.append(Value(self.document, node, place))
        return values

    def entries(
        self, visible: Collection[str] | None = None, *, plain: bool = False, above: tuple[Node, ...] = ()
    ) -> dict[str, Value]:
        """The values of a mapping, with those that merge keys bring in; nothing is an empty mapping.

        If `visible` is given, no error repeats any other key. With `plain`, keys need no quotes, whatever YAML takes
        them for. `above` are the mappings that this one is merged into.
        """
        if self.kind == "nothing":
            return {}
        self._expect("a mapping")
        if any(self.node is node for node in above):
            raise ConfigError("a merge key must not include the mapping that contains it")
        own: dict[str, Value] = {}
        merged: dict[str, Value] = {}
        for name, node in self.node.value:
            there = replace(self, node=name, place=replace(self.place, line=name.start_mark.line + 1))
            if name.tag == f"{_YAML}merge":
                source = replace(there, node=node)
                for one in source.items() if source.kind == "a list" else [source]:
                    mapping = replace(one, place=replace(one.place, key=self.place.key))
                    merged = mapping.entries(visible, plain=plain, above=(*above, self.node)) | merged
                continue
            if there.kind != "a string" and not (plain and getattr(name, "id", "") == "scalar"):
                there.report(f"expected strings as keys, got {there.kind}: put it in quotes")
                raise ReportedError
            key = str(name.value)
            bare = key if re.fullmatch(r"[\w-]{1,60}", key) else shown(key)
            public = "" if visible is not None and key not in visible else bare
            if key in own:
                there.report(f"duplicate key{public and f' {public}'}; first defined on line {own[key].place.line}")
                raise ReportedError
            path = f"{self.place.key}.{public}".lstrip(".") if public else self.place.key
            own[key] = Value(self.document, node, replace(there.place, key=path), key)
        return merged | own

    def _expect(self, expected: str, *others: str) -> None:
        if self.kind not in (expected, *others):
            advice = ""
            if expected == "a string" and self.kind in {"a number", "true or false", "a date"}:
                advice = ": put it in quotes"  # what a scalar without quotes may be taken for
            elif expected == "a list":
                mapping = self.kind == "a mapping"
                advice = ": begin each of its entries with a dash" if mapping else ": put it in brackets"
            raise ConfigError(f"expected {expected}, got {self.kind}{advice}")


def root(path: Path, document: Document) -> Value | None:
    """The top of a file, None if it is empty.

    Raises ConfigError if there is nothing to look at: the file cannot be read, is too large, or is not YAML; and
    OversizeError if its aliases make a small file cost much time.
    """
    import yaml  # noqa: PLC0415 - a run without a configuration file is spared its memory

    def malformed(reason: str, *lines: int) -> ConfigError:
        return ConfigError(f"{':'.join(map(str, (path, *lines)))}: is not valid YAML: {reason}")

    data = _data(path)
    try:
        text = data.decode()
        loader = _loader(len(data))
        node = yaml.compose(text, loader)
    except UnicodeDecodeError as error:
        raise Place(path, data.count(b"\n", 0, error.start) + 1).error("is not UTF-8") from None
    except yaml.MarkedYAMLError as error:
        # The names of anchors and tags are cut off: a secret that starts with * or ! looks like one.
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        problem = re.sub(r"(undefined alias|undefined tag handle|duplicate anchor) '.*", r"\1", problem)
        if error.problem == "found character that cannot start any token" and error.problem_mark:  # libyaml's
            problem = problem.replace("character", f"character {text[error.problem_mark.index]!r}", 1)
        problem += "".join(f"; {advice}" for part, advice in _ADVICE.items() if part in problem)
        raise malformed(problem, error.problem_mark.line + 1 if error.problem_mark else 1) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position].encode() if loader is yaml.SafeLoader else data[: error.position]
        raise malformed(error.reason, before.count(b"\n") + 1) from None
    except (ValueError, OverflowError):  # what PyYAML makes of an escape beyond Unicode
        raise malformed("invalid escape in a string") from None
    if node is None:
        return None
    if _expanded(node, {}) > MOST_VALUES:
        raise OversizeError
    return Value(document, node, Place(path, 1))


def _loader(size: int) -> Any:  # noqa: ANN401 - PyYAML's loaders have no type in common
    """What finds the nodes of a file of so many bytes."""
    import yaml  # noqa: PLC0415 - see `root`

    if size > MOST_PLAIN and yaml.__with_libyaml__:
        from llm_headroom.config.fast_yaml import FastLoader  # noqa: PLC0415 - only there with libyaml

        return FastLoader
    return yaml.SafeLoader


def _expanded(node: Node, known: dict[int, int]) -> int:
    """Values within a node, each as often as aliases repeat it; `known` has those of nodes by their identity.

    Where a node contains itself, that is not followed: whoever reads it ends by its depth.
    """
    if id(node) not in known:
        known[id(node)] = 0
        kind = getattr(node, "id", "")
        within = node.value if kind == "sequence" else [value for _, value in node.value] if kind == "mapping" else ()
        known[id(node)] = sum(1 + _expanded(value, known) for value in within)
    return known[id(node)]


def _data(path: Path) -> bytes:
    try:
        return content(path, LARGEST_FILE)
    except OSError as error:
        raise UnreadError(f"{named(path)}: {error.strerror}") from None
