"""YAML mappings read entry by entry, so that each error can name file, line and key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import yaml


class WebConfigError(Exception):
    """The web configuration cannot be used; the message names the file, the line and the key."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the file an entry stands: `line` counts from 1, `key` is dotted."""

    file: Path
    line: int
    key: str

    def error(self, problem: str) -> WebConfigError:
        """The error to raise about this entry."""
        return WebConfigError(f"{self.file}:{self.line}: {self.key + ': ' if self.key else ''}{problem}")


_TAG: Final = "tag:yaml.org,2002:"


class Section:
    """One mapping of the file. Entries are taken out by name; `nothing_else` complains about those that stay.

    An entry without a value counts as absent, as it does for exporter-toolkit.
    """

    def __init__(self, place: Place, entries: dict[str, tuple[Place, yaml.Node]]) -> None:
        self.place = place
        self.is_empty = not entries
        self._entries = entries

    @classmethod
    def of(cls, place: Place, node: yaml.Node) -> Section:
        """The mapping that a node must be."""
        if _form(node) != "mapping":
            raise place.error(f"must be a mapping of keys to values, not {_kind(node)}")
        entries: dict[str, tuple[Place, yaml.Node]] = {}
        for key_node, value in node.value:
            line = key_node.start_mark.line + 1
            if _form(key_node) != "scalar":
                raise Place(place.file, line, place.key).error("a key must be a plain string")
            name = key_node.value
            at = Place(place.file, line, f"{place.key}.{name}" if place.key else name)
            if name in entries:
                raise at.error(f"is given twice, first in line {entries[name][0].line}")
            entries[name] = (at, value)
        return cls(place, entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def section(self, name: str) -> Section:
        """An entry that is a mapping itself; an absent one is an empty mapping."""
        place, node = self._take(name)
        return Section(place, {}) if node is None else Section.of(place, node)

    def text(self, name: str) -> tuple[Place, str]:
        """An entry that is a string, empty if absent, and its place."""
        place, node = self._take(name)
        return place, "" if node is None else _text(place, node)

    def boolean(self, name: str, *, default: bool) -> bool:
        """An entry that is true or false."""
        place, node = self._take(name)
        if node is None:
            return default
        if node.tag != _TAG + "bool":
            raise place.error(f"must be true or false, not {_kind(node)}")
        return str(node.value).lower() in {"true", "yes", "on"}

    def texts(self, name: str) -> tuple[tuple[Place, str], ...]:
        """An entry that is a list of strings, with the place of each; empty if absent."""
        place, node = self._take(name)
        if node is None:
            return ()
        if _form(node) != "sequence":
            raise place.error(f"must be a list of strings, not {_kind(node)}")
        places = (Place(place.file, item.start_mark.line + 1, place.key) for item in node.value)
        return tuple((at, _text(at, item)) for at, item in zip(places, node.value, strict=True))

    def scalars(self) -> Iterator[tuple[Place, str, str]]:
        """All entries as place, name and the value as it is written, whatever type YAML gives it."""
        for name in tuple(self._entries):
            place, node = self._take(name)
            if node is not None and _form(node) != "scalar":
                raise place.error(f"must be a string, not {_kind(node)}")
            yield place, name, "" if node is None else node.value

    def nothing_else(self) -> None:
        """Raises if an entry is left that nobody took."""
        for place, _ in self._entries.values():
            raise place.error("unknown key")

    def _take(self, name: str) -> tuple[Place, yaml.Node | None]:
        entry = self._entries.pop(name, None)
        if entry is None:
            return Place(self.place.file, self.place.line, f"{self.place.key}.{name}".lstrip(".")), None
        place, node = entry
        return place, None if node.tag == _TAG + "null" else node


def _text(place: Place, node: yaml.Node) -> str:
    if _form(node) != "scalar" or node.tag != _TAG + "str":
        raise place.error(f"must be a string, not {_kind(node)}")
    return str(node.value)


def _form(node: yaml.Node) -> str:
    """`scalar`, `sequence` or `mapping`: told without the classes, since PyYAML is loaded late."""
    return str(getattr(node, "id", ""))


def _kind(node: yaml.Node) -> str:
    names = {"seq": "a list", "map": "a mapping", "bool": "a boolean", "int": "an integer", "null": "nothing"}
    kind = node.tag.removeprefix(_TAG)
    return names.get(kind, f"a {kind}")


def read(path: Path) -> Section:
    """The whole file; an empty one is an empty mapping.

    Raises:
        WebConfigError: the file cannot be read, or is not a YAML mapping.
    """
    import yaml  # noqa: PLC0415 - an exporter without a web configuration does without its memory

    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise WebConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise Place(path, line, "").error("is not UTF-8 text") from error
    whole = Place(path, 1, "")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        # The mark's own text would quote the line, which may hold a password's hash.
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise Place(path, line, "").error(f"is not YAML: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise Place(path, line, "").error(f"is not YAML: {error.reason}") from error
    except RecursionError as error:
        raise whole.error("is nested too deeply") from error
    if node is None or node.tag == _TAG + "null":
        return Section(whole, {})
    return Section.of(whole, node)
