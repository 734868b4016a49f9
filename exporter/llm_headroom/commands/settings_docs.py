"""What documents and editors need of the settings, from their structures: JSON Schema, an example, tables of keys."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache
from textwrap import wrap
from types import NoneType
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args, get_origin

import msgspec

from llm_headroom.config.kinds import Kind, kind_of, written
from llm_headroom.config.reader import Key, shape
from llm_headroom.config.settings import Config
from llm_headroom.engines.built_in import BUILT_IN

_SHORT: Final = {"a string": "string", "true or false": "boolean"}
"""JSON Schema's types of the short forms of sections."""
_UNSET: Final[tuple[object, ...]] = (None, "", (), {})
"""Defaults that are not shown."""


class Words(NamedTuple):
    """The docstring of a field: its meaning, its default in words if there is no value, and an example in YAML."""

    meaning: str
    default: str
    example: str

    @property
    def plain(self) -> str:
        """Meaning and default without the page's links."""
        text = self.meaning + (f" Default: {self.default}." if self.default else "")
        return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"[;,.]? see \[[^\]]*\]\([^)]*\)", "", text))


@cache
def words(section: type) -> Mapping[str, Words]:
    """The docstrings below the fields of a structure, in parts. BUILT_IN in them stands for the engines' names."""
    [body] = ast.parse(inspect.getsource(section)).body
    assert isinstance(body, ast.ClassDef)  # noqa: S101 - the source of a class is one
    found = {}
    for line, after in zip(body.body, body.body[1:], strict=False):
        match line, after:
            case ast.AnnAssign(target=ast.Name(field)), ast.Expr(ast.Constant(str(text))):
                text = " ".join(text.split()).replace("BUILT_IN", ", ".join(f"`{name}`" for name in BUILT_IN))
                parts = re.fullmatch(r"(.*?)(?: Default: (.*?)\.)?(?: Example: `(.*)`\.)?", text)
                assert parts  # noqa: S101 - every part may be missing
                found[field] = Words(parts[1], parts[2] or "", parts[3] or "")
    return found


def _keys(section: type) -> Iterator[tuple[str, Key, Words]]:
    of = shape(section)
    for name, key in of.keys.items():
        yield name, key, words(of.inline.get(key.inside, section))[key.field]


def _section(kind: Kind) -> type | None:
    found = kind.form.section or kind.base
    return found if kind.form.read is None and is_dataclass(found) and isinstance(found, type) else None


# JSON Schema ---------------------------------------------------------------------------------------------------------
def schema() -> dict[str, Any]:
    """The JSON Schema of the configuration file."""
    definitions: dict[str, Any] = {}
    _define(Config, definitions)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Configuration of llm-headroom",
        "$ref": "#/definitions/Config",
        "definitions": dict(sorted(definitions.items())),
    }


def _define(section: type, definitions: dict[str, Any]) -> None:
    properties: dict[str, Any] = {}
    required = [name for name, key, _ in _keys(section) if key.required]
    definitions[section.__name__] = {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        **({"required": required} if required else {}),
    }
    for name, key, notes in _keys(section):
        if key.kind.base is NoneType:
            continue
        of = _schema(key.kind, definitions)
        note = notes.plain
        if not key.required:
            of = _or_null(of)  # a key without a value is as if it were not there
        if not key.required and key.default not in _UNSET and not is_dataclass(key.default):
            note += f" Default: {_plain(key)}."
        properties[name] = {"description": note, **of}


def _or_null(of: dict[str, Any]) -> dict[str, Any]:
    match of:
        case {"type": str(one)}:
            return of | {"type": [one, "null"]}
        case {"type": [*several]}:
            return of | {"type": [*several, "null"]}
        case {"enum": [*several]}:
            return of | {"enum": [*several, None]}
    return {"anyOf": [*of.get("anyOf", [of]), {"type": "null"}]}


def _schema(kind: Kind, definitions: dict[str, Any]) -> dict[str, Any]:
    of = _long(kind, definitions)
    return of if kind.form.short is None else {"anyOf": [{"type": _SHORT[kind.form.short[0]]}, of]}


def _long(kind: Kind, definitions: dict[str, Any]) -> dict[str, Any]:
    section, origin = _section(kind), get_origin(kind.base)
    if section is not None:
        _define(section, definitions)
        return {"$ref": f"#/definitions/{section.__name__}"}
    if origin is tuple:
        least = {"minItems": kind.meta.min_length} if kind.meta.min_length else {}
        return {"type": "array", "items": _schema(kind_of(get_args(kind.base)[0]), definitions), **least}
    if origin is Mapping:
        names, of = (kind_of(each) for each in get_args(kind.base))
        pattern = {"propertyNames": {"pattern": names.meta.pattern}} if names.meta.pattern else {}
        return {"type": "object", "additionalProperties": _schema(of, definitions), **pattern}
    if kind.base is bool or origin is Literal:
        return msgspec.json.schema(kind.base)
    if kind.base in (int, float):
        units = "|".join(kind.form.units or [""])
        written_out = {"type": ["number", "string"]} | ({"pattern": f"^[0-9.]+({units})$"} if kind.form.units else {})
        return msgspec.json.schema(Annotated[kind.base, kind.meta]) | written_out
    types = {"type": ["string", "integer"]} if kind.form.scalar else {}
    return msgspec.json.schema(Annotated[str, kind.meta]) | types


# Values and kinds in words -------------------------------------------------------------------------------------------
def _plain(key: Key) -> str:
    """A default as it is written in YAML."""
    if isinstance(key.default, bool) or not isinstance(key.default, (int, float)):
        return json.dumps(key.default) if isinstance(key.default, (bool, tuple)) else str(key.default)
    return written(key.default, key.kind.form.units)


def _kind(kind: Kind) -> str:
    """What may be written, for a table."""
    origin, short = get_origin(kind.base), kind.form.short
    if short is not None:
        return f"{_SHORT[short[0]]} or mapping"
    if origin is tuple:
        inner = kind_of(get_args(kind.base)[0])
        return (
            "list" if _section(inner) else f"list of {inner.form.name}{'es' if inner.form.name.endswith('s') else 's'}"
        )
    if origin is Mapping or _section(kind):
        return "mapping"
    if origin is Literal:
        return " or ".join(", ".join(f"`{each}`" for each in get_args(kind.base)).rsplit(", ", 1))
    name = "boolean" if kind.base is bool else kind.form.name
    return f"{name}, {kind.bounds[0]} to {kind.bounds[1]}" if kind.bounds else name


def table(section: type) -> str:
    """The keys of a section as a table in Markdown."""
    lines = ["| Key | Type | Default | Meaning |", "|---|---|---|---|"]
    for name, key, notes in _keys(section):
        default = "mandatory" if key.required else notes.default
        if not default and not is_dataclass(key.default):
            default = "none" if key.default in _UNSET else f"`{_plain(key)}`"
        if key.kind.base is NoneType:
            default = ""
        lines.append(f"| `{name}` | {_kind(key.kind)} | {default} | {notes.meaning.removesuffix('.')} |")
    return "".join(f"{line}\n" for line in lines)


def page(text: str) -> str:
    """The configuration page with its tables written again; each follows a comment that names its structure."""
    sections = {each.__name__: each for each in _sections(Config)}

    def made(match: re.Match[str]) -> str:
        return f"{match[1]}{table(sections[match[2]])}"

    return re.sub(r"(<!-- keys of (\w+) -->\n\n)(?:\|.*\n)*", made, text)


def _sections(section: type) -> Iterator[type]:
    yield section
    for key in shape(section).keys.values():
        kind = key.kind
        while get_origin(kind.base) in (tuple, Mapping):
            kind = kind_of([each for each in get_args(kind.base) if each is not Ellipsis][-1])
        if (inner := _section(kind)) is not None:
            yield from _sections(inner)


# The example ---------------------------------------------------------------------------------------------------------
def example() -> str:
    """A configuration file with every key, its meaning and its default or an example."""
    head = (
        "# Every key that llm-headroom's configuration file may have. None is mandatory but those of lists' entries;\n"
        "# what is commented out excludes its neighbours. Generated: make docs\n"
        "# yaml-language-server: $schema=config.schema.json\n"
    )
    return head + "".join(f"{line}\n" for line in _example(Config, ""))


def _example(section: type, indent: str) -> Iterator[str]:
    for name, key, notes in _keys(section):
        if key.kind.base is NoneType:
            continue
        if not indent:
            yield ""
        kind = _kind(key.kind)
        yield from wrap(
            f"{kind[:1].upper()}{kind[1:]}. {notes.plain}",
            120,
            initial_indent=f"{indent}# ",
            subsequent_indent=f"{indent}# ",
        )
        yield from _entry(name, key.kind, notes.example, key, indent)


def _entry(name: str, kind: Kind, sample: str, key: Key, indent: str) -> Iterator[str]:
    outline: list[str] = []
    while get_origin(kind.base) in (tuple, Mapping):
        *_, of = (each for each in get_args(kind.base) if each is not Ellipsis)
        outline.append(f"{sample}:" if get_origin(kind.base) is Mapping else "-")
        kind = kind_of(of)
    if (section := _section(kind)) is not None:
        for line in (f"{name}:", *outline):
            yield f"{indent}{line}"
            indent += "  "
        yield from _example(section, indent)
    elif sample:
        yield f"{indent}{name}: {sample}"
    elif key.default in _UNSET:
        yield f"{indent}# {name}:"
    else:
        yield f"{indent}{name}: {_plain(key)}"
