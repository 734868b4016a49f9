"""Reads files into the structures of `settings`, or the web server's own: all problems at once, with their places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, partial
from types import MappingProxyType, NoneType
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_origin, get_type_hints

from llm_headroom.config.errors import MOST_VALUES, ConfigError, OversizeError, Place, Problems, near
from llm_headroom.config.kinds import Kind, kind_of, parsed
from llm_headroom.config.yaml_nodes import Document, ReportedError, Value, root

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Key(NamedTuple):
    """One key of a section: the field that it fills, how it is read, and the field around it if its class is inline."""

    field: str
    kind: Kind
    default: Any
    inside: str = ""

    @property
    def required(self) -> bool:
        """Whether it must be there."""
        return self.default is MISSING


class Shape(NamedTuple):
    """The keys of a section by name, in the order in which they are read, and fields that no key of its own fills."""

    keys: Mapping[str, Key]
    inline: Mapping[str, type]
    place: str = ""
    name: str = ""


@cache
def shape(section: type) -> Shape:
    """The keys that a section may have."""
    hints = get_type_hints(section, include_extras=True)
    keys: dict[str, Key] = {}
    inline: dict[str, type] = {}
    others = {}
    for each in fields(section):
        kind = kind_of(hints[each.name])
        if kind.form.internal:
            continue
        if kind.form.inline:
            inline[each.name] = kind.base
            keys |= {key: inner._replace(inside=each.name) for key, inner in shape(kind.base).keys.items()}
        elif kind.base is Place:
            others["place"] = each.name
        elif kind.form.from_key:
            others["name"] = each.name
        else:
            default = each.default if each.default_factory is MISSING else each.default_factory()
            keys[kind.form.key or each.name] = Key(each.name, kind, default)
    return Shape(MappingProxyType(keys), inline, **others)


def read(
    path: Path,
    section: type,
    problems: Problems,
    *,
    check: Callable[[str, str], None] = lambda _role, _name: None,
    accept: Callable[[Any, Place], None] = lambda _value, _place: None,
) -> dict[str, Any]:
    """The values in the file for the fields of its outermost section; none for an empty file.

    Problems of single values are added to `problems`, and the values cannot be used then. `check` gets the role and
    the text of each name of an engine, `accept` each finished structure with its place. Both raise ConfigError, and so
    does this function if there is nothing to look at: the file cannot be read, is too large, or is not YAML.
    """
    try:
        top = root(path, Document(problems, check, accept))
        return (top.attempt(lambda value: _fields(value, section)) if top else None) or {}
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply") from None
    except OversizeError:
        raise ConfigError(f"{path}: has more than {MOST_VALUES:,} values, or its aliases expand to as many") from None


def _value(value: Value, kind: Kind) -> Any:  # noqa: ANN401 - whatever the kind is of
    form = kind.form
    if form.short is not None and form.short[0] == value.kind:
        short = form.short[1](value)
        value.document.accept(short, value.place)
        return short
    if form.read is not None:
        return form.read(value)
    if is_dataclass(section := form.section or kind.base):
        built = _section(value, section)
        return built if form.finish is None or built is None else form.finish(built)
    origin = get_origin(kind.base)
    if origin is tuple:
        return _list(value, kind)
    if origin is Mapping:
        return _mapping(value, *get_args(kind.base))
    if kind.base is bool:
        return value.boolean()
    text = value.scalar() if form.scalar else value.number() if kind.base in (int, float) else value.string()
    return _named(value, kind, text)


def _named(value: Value, kind: Kind, text: str) -> Any:  # noqa: ANN401 - whatever the kind is of
    found = parsed(kind, text)
    if kind.form.role:
        value.document.check(kind.form.role, text)
    return found


def _list(value: Value, kind: Kind) -> tuple[Any, ...]:
    of = kind_of(get_args(kind.base)[0])
    before = len(value.document.problems)
    found = _all({str(index): (one, of) for index, one in enumerate(value.items())}, value, before)
    if kind.meta.min_length and not found:
        raise ConfigError("expected at least one entry, got an empty list")
    return tuple(found.values())


def _mapping(value: Value, keys: Any, values: Any) -> Mapping[str, Any]:  # noqa: ANN401 - annotations
    key_kind, of, before = kind_of(keys), kind_of(values), len(value.document.problems)
    entries = value.entries(plain=key_kind.form.scalar)
    # The names first: an entry may refer to another one by name.
    good = {key: one for key, one in entries.items() if one.attempt(lambda one: _named(one, key_kind, one.key)) == key}
    return MappingProxyType(_all({key: (one, of) for key, one in good.items()}, value, before))


def _all(values: Mapping[str, tuple[Value, Kind]], of: Value, before: int) -> dict[str, Any]:
    """Reads them all, so that the problems of all are reported; ReportedError if there was one since `before`."""
    found = {name: one.attempt(partial(_value, kind=kind)) for name, (one, kind) in values.items()}
    if len(of.document.problems) > before:
        raise ReportedError
    return found


def _fields(value: Value, section: type) -> dict[str, Any]:
    """The values of a section by key."""
    keys, before = shape(section).keys, len(value.document.problems)
    hidden = getattr(section, "hides_unknown_keys", False)
    entries = value.entries(keys if hidden else None)
    for key, one in entries.items():
        if key not in keys:
            one.report("unknown key", partial(_known, keys) if hidden else partial(near, key, keys))
    given = {key: one for key, one in entries.items() if one.kind != "nothing"}
    for key, each in keys.items():
        if each.required and key not in given:
            value.report(f"missing key {key}")
    return _all({key: (given[key], each.kind) for key, each in keys.items() if key in given}, value, before)


def _known(keys: Mapping[str, Key]) -> str:
    return f"; known: {', '.join(sorted(key for key, each in keys.items() if each.kind.base is not NoneType))}"


def _section(value: Value, section: type) -> Any:  # noqa: ANN401 - an instance of the class
    found, of = _fields(value, section), shape(section)
    inner: dict[str, dict[str, Any]] = {"": {}, **{name: {} for name in of.inline}}
    for key, each in found.items():
        inner[of.keys[key].inside][of.keys[key].field] = each
    given = inner[""] | {name: inline(**inner[name]) for name, inline in of.inline.items()}
    given |= {name: each for name, each in ((of.place, value.place), (of.name, value.key)) if name}
    try:
        built = section(**given)
        value.document.accept(built, value.place)
    except ConfigError as error:
        value.entries().get(error.key, value).report(error.message, error.hint)
        raise ReportedError from None
    return built
