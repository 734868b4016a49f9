"""The grammar of one line of the Prometheus text format 0.0.4 and of OpenMetrics 1.0.

Sources: https://prometheus.io/docs/instrumenting/exposition_formats/ and
https://prometheus.io/docs/specs/om/open_metrics_spec/, quoted UTF-8 names after prometheus/proposals, 0028-utf8.md.
White space is taken as leniently in OpenMetrics as in the text format. Every function raises ValueError, with the
reason, on what is malformed.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LineLabels: TypeAlias = tuple[tuple[str, str], ...]
"""Label names and values in the order of a line, empty values included."""

UNTYPED: Final = "untyped"

TEXT_SUFFIXES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "counter": ("",),
        "gauge": ("",),
        "histogram": ("_bucket", "_sum", "_count"),
        "summary": ("", "_sum", "_count"),
        "gaugehistogram": ("",),
        "info": ("",),
        "stateset": ("",),
        "unknown": ("",),
        UNTYPED: ("",),
    }
)
"""What follows a family's name in the names of its samples, by the family's type (prometheus/client_python,
prometheus_client/parser.py)."""

OPENMETRICS_SUFFIXES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        **TEXT_SUFFIXES,
        "counter": ("_total", "_created"),
        "histogram": ("_bucket", "_sum", "_count", "_created"),
        "summary": ("", "_sum", "_count", "_created"),
        "gaugehistogram": ("_bucket", "_gsum", "_gcount"),
        "info": ("_info",),
    }
)
"""The same for OpenMetrics (prometheus_client/openmetrics/parser.py)."""

_TYPES: Final = {kind.encode(): kind for kind in TEXT_SUFFIXES}
_NAME_LABEL: Final = "__name__"

# Possessive quantifiers bound the time to linear in the length of a line, whatever its content.
_QUOTED: Final = r'"(?:[^"\\]|\\.)*+"'
_NAME: Final = r"[a-zA-Z_:][a-zA-Z0-9_:]*+"
_BRACES: Final = rf'\{{(?:[^"}}]|{_QUOTED})*+\}}'

# Only a blank, a tab or a brace ends an unquoted name: a prefix is never the beginning of a longer name.
_PREFIX: Final = re.compile(rf'[ \t]*+[^ \t{{"#]*+[ \t]*+(?:{_BRACES}[ \t]*+)?+'.encode(), re.DOTALL)
_SERIES: Final = re.compile(rf"[ \t]*+({_NAME})?+[ \t]*+(?:\{{[ \t]*+(.*)\}}[ \t]*+)?", re.DOTALL)
_TERM: Final = re.compile(
    rf"(?:({_NAME})|({_QUOTED}))[ \t]*+(?:=[ \t]*+({_QUOTED})[ \t]*+)?+(?:,[ \t]*+|\Z)", re.DOTALL
)
_VALUE: Final = re.compile(
    rf"\s*+([^\s#]++)(?:\s++([^\s#]++))?+(?:\s++#\s*+{_BRACES}\s++(\S++)(?:\s++(\S++))?+)?+\s*+".encode(), re.DOTALL
)
_QUOTED_METADATA: Final = re.compile(rf"#\s++(\w++)\s++({_QUOTED})(?:\s++(.*))?+".encode(), re.DOTALL)
_FAMILY: Final = re.compile(_NAME.encode())
_QUOTED_FAMILY: Final = re.compile(_QUOTED.encode(), re.DOTALL)
_ESCAPE: Final = re.compile(r'\\([\\n"])')


def split_sample(line: bytes) -> tuple[bytes, bytes]:
    """A sample line split into the part before the value, including white space, and the rest."""
    match = _PREFIX.match(line)
    end = match.end() if match else 0
    return line[:end], line[end:]


def parse_series(prefix: bytes) -> tuple[str, LineLabels]:
    """Name and labels of a sample, the labels in the order of the line."""
    series = _SERIES.fullmatch(prefix.decode())
    if series is None:
        raise ValueError("it is neither a comment nor a sample")
    name, inside = series.groups()
    labels: dict[str, str] = {}
    for label, value in _terms(inside) if inside else ():
        if label in labels:
            raise ValueError(f"it has {label} twice")
        labels[label] = value
    if not name:
        name = labels.pop(_NAME_LABEL, "")
    if not name or _NAME_LABEL in labels:
        raise ValueError("it has no name, or two")
    return name, tuple(labels.items())


def parse_value(text: bytes) -> tuple[float, bool]:
    """The value that a sample line ends in, and whether nothing else (timestamp, exemplar) follows it."""
    if b"_" not in text:
        try:
            return float(text), True
        except ValueError:
            pass
    rest = _VALUE.fullmatch(text)
    if rest is None:
        raise ValueError("what follows the name and labels is malformed")
    value, *others = [_number(token) for token in rest.groups() if token is not None]
    return value, not others


def split_comment(line: bytes) -> list[bytes]:
    """A comment, without white space at its ends, as `#`, keyword, name (in its quotes) and the rest: what there is."""
    if b'"' in line:
        quoted = _QUOTED_METADATA.fullmatch(line)
        if quoted is not None:
            return [b"#", *(group for group in quoted.groups() if group)]
    return line.split(None, 3)


def parse_family(token: bytes) -> str:
    """The name of the family that a TYPE, HELP or UNIT line speaks of."""
    if _FAMILY.fullmatch(token):
        return token.decode()
    if _QUOTED_FAMILY.fullmatch(token) and token != b'""':
        return _unquoted(token.decode())
    raise ValueError("it names no valid metric")


def parse_type(token: bytes) -> str:
    """The type that a TYPE line declares."""
    kind = _TYPES.get(token)
    if kind is None:
        raise ValueError("it declares an unknown type")
    return kind


def _terms(inside: str) -> Iterator[tuple[str, str]]:
    """What the braces hold as labels, a quoted metric name as the label `__name__`."""
    at = 0
    while at < len(inside):
        term = _TERM.match(inside, at)
        if term is None or (term[1] and not term[3]):
            raise ValueError("its labels are malformed")
        at = term.end()
        name, quoted, value = term.groups()
        if value is None:
            yield _NAME_LABEL, _unquoted(quoted)
        else:
            yield name or _unquoted(quoted), _unquoted(value)


def _unquoted(text: str) -> str:
    text = text[1:-1]
    return _ESCAPE.sub(lambda escape: "\n" if escape[1] == "n" else escape[1], text) if "\\" in text else text


def _number(token: bytes) -> float:
    if b"_" in token:
        raise ValueError("it has an underscore in a number")
    try:
        return float(token)
    except ValueError:
        raise ValueError("its value, timestamp or exemplar is no number") from None
