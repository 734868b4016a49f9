"""Kinds of values: type, bounds and wording of each, declared once for files, flags, documents and the JSON Schema.

A kind is `Annotated[TYPE, Meta(...), Form(...)]`. `msgspec.Meta` has bounds, patterns and descriptions: msgspec checks
them and writes them as JSON Schema. `Form` has what Meta has no word for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple, TypeAlias, Union, get_args, get_origin

import msgspec
from msgspec import Meta

from llm_headroom.config.errors import ConfigError, shown
from llm_headroom.config.reach import LAST_PORT, reach
from llm_headroom.net.files import named

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llm_headroom.config.yaml_nodes import Value


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)  # hashed by identity, as annotations in a union are
class Form:
    """How values of a kind are written. All functions raise ConfigError.

    `called`: what errors expect. `name`: the kind in documentation. `quoted`: errors repeat the text (people write
    passwords in odd places). `scalar`: numbers and booleans need no quotes. `units`: factors by unit. `parse` makes the
    value of a text, `read` of a node, `short` of a node of the kind that it names, where others are mappings. `role`:
    the check that a name must pass. `section`: the value's shape in the file, if it is another one; `finish` turns that
    into the value. `inline`: the keys stand among those of the section around. `from_key`: the value is the key that
    the section lies under. `internal`: no file can give it. `key`: its name in the file, if not the field's.
    """

    called: str = ""
    name: str = ""
    quoted: bool = True
    scalar: bool = False
    units: Mapping[str, float] | None = None
    parse: Callable[[str], Any] | None = None
    read: Callable[[Value], Any] | None = None
    short: tuple[str, Callable[[Value], Any]] | None = None
    role: str = ""
    section: type | None = None
    finish: Callable[[Any], Any] | None = None
    inline: bool = False
    from_key: bool = False
    internal: bool = False
    key: str = ""


class Kind(NamedTuple):
    """A kind taken apart: the plain type, bounds, and form."""

    base: Any
    meta: Meta
    form: Form

    @property
    def bounds(self) -> tuple[str, str] | None:
        """The lowest and the highest value, as they are written."""
        if self.meta.ge is None or self.meta.le is None:
            return None
        return written(self.meta.ge, self.form.units), written(self.meta.le, self.form.units)


@lru_cache(maxsize=1024)
def kind_of(hint: Any) -> Kind:  # noqa: ANN401 - a type of any form
    """Takes an annotation apart; outer annotations override inner ones."""
    given: list[Any] = []
    while True:
        if get_origin(hint) is Annotated:
            given[:0] = hint.__metadata__
            hint = hint.__origin__
        elif get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint):
            hint = Union[tuple(each for each in get_args(hint) if each is not NoneType)]  # noqa: UP007 - of a tuple
        else:
            break
    metas: dict[str, Any] = {}
    for each in given:
        if isinstance(each, Meta):
            metas |= {key: each for key, each in ((key, getattr(each, key)) for key in _META) if each is not None}
    forms = [each for each in given if isinstance(each, Form)]
    return Kind(hint, Meta(**metas), forms[-1] if forms else Form())


_META: Final = ("ge", "le", "pattern", "min_length")


def parsed(hint: Any, text: str) -> Any:  # noqa: ANN401 - any kind and its value
    """The value of a text; ConfigError has what was expected, not where."""
    kind = hint if isinstance(hint, Kind) else kind_of(hint)
    form, base = kind.form, kind.base
    got = f", got {shown(text)}" if form.quoted else ""
    if get_origin(base) is Literal:
        form, base = Form(called=f"one of {', '.join(get_args(base))}"), str
        value: Any = text
    elif form.parse is not None:
        value = form.parse(text)
    elif base in (int, float):
        value = _number(text, kind)
    else:
        value = text
    if kind.meta.pattern and not text.isprintable():  # `$` in a pattern lets a line end pass
        raise ConfigError(f"expected {form.called}{got}")
    try:
        return msgspec.convert(value, Annotated[kind.base, kind.meta])
    except msgspec.ValidationError:
        bounds = " from {} to {}".format(*kind.bounds) if kind.bounds else ""
        raise ConfigError(f"expected {form.called}{bounds}{got}") from None


def _number(text: str, kind: Kind) -> float:
    digits = r"[0-9]{1,15}" if kind.base is int and not kind.form.units else r"[0-9]{1,15}(?:\.[0-9]{1,15})?"
    units = kind.form.units or {"": 1}
    match = re.fullmatch(rf"({digits})({'|'.join(units)})", text)
    if match is None:
        raise ConfigError(f"expected {kind.form.called}, got {shown(text)}")
    return kind.base(round(float(match[1]) * units[match[2]], 6))  # type: ignore[no-any-return]  # int or float


def written(number: float, units: Mapping[str, float] | None) -> str:
    """A number as people write it: `200ms`, `16MiB`, `0.95`."""
    for unit, factor in reversed([*(units or {}).items()]):
        if unit and number >= factor and round(number / factor, 1) == number / factor:
            return f"{number / factor:g}{unit}"
    exact = f"{number:.15g}"
    return exact if len(exact) <= 10 else f"{number:g}".replace("e+", "e")  # noqa: PLR2004 - a number one can read


def _scale(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _path(text: str) -> Path:
    if not text.startswith("/"):
        raise ConfigError("expected a path starting with /")
    return Path(parsed(Word, text))


def existing(path: Path, called: str = "") -> Path:
    """An existing file; ConfigError if it is missing, with its path or with `called`."""
    called = called or named(path)
    try:
        path.stat()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{called}: {getattr(error, 'strerror', 'no such file')}") from None
    if path.is_dir():
        raise ConfigError(f"{called}: is a directory")
    return path


def secret_file(value: Value) -> Path:
    """An existing file of what may be secret. No error repeats its name: people write the secret in its place."""
    called = f"this file (a relative path starts at {value.directory})"
    return existing(value.directory / parsed(Word, value.string()), called)


def _regular_expression(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError) as error:
        raise ConfigError(f"expected a regular expression: {error}") from None
    return text


_SECONDS: Final = {"": 1.0, "ms": 0.001, "m": 60.0, "s": 1.0, "h": 3600.0}
_BYTES: Final = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_DURATION: Final = Form(called="a duration such as 5s", name="duration", units=_SECONDS)
_SIZE: Final = Form(called="a size such as 16MiB", name="size", units=_BYTES)
_NUMBER: Final = Form(called="a whole number", name="number")

Interval: TypeAlias = Annotated[float, Meta(ge=0.1, le=3600.0), _DURATION]
"""Seconds between two polls."""
Timeout: TypeAlias = Annotated[float, Meta(ge=0.1, le=60.0), _DURATION]
"""Seconds that one poll may take."""
Threshold: TypeAlias = Annotated[
    float, Meta(ge=0.001, le=3600.0), Form(called="a duration such as 2.5s", name="duration", units=_SECONDS)
]
Share: TypeAlias = Annotated[float, Meta(ge=0.5, le=0.99999), Form(called="a number such as 0.95", name="number")]
Price: TypeAlias = Annotated[float, Meta(ge=0.0, le=1e6), Form(called="a price such as 2.5", name="number")]
Scale: TypeAlias = Annotated[float, Meta(ge=1e-12, le=1e12), Form(called="a number", name="number", parse=_scale)]
Size: TypeAlias = Annotated[int, Meta(ge=2**10, le=2**30), _SIZE]
Memory: TypeAlias = Annotated[
    int, Meta(ge=1, le=100_000 * 2**30), Form(called="a size such as 15GiB", name="size", units=_BYTES)
]
Port: TypeAlias = Annotated[int, Meta(ge=1, le=LAST_PORT), _NUMBER]
Limit: TypeAlias = Annotated[int, Meta(ge=1, le=10**9), _NUMBER]
LabelLimit: TypeAlias = Annotated[int, Meta(ge=1, le=100_000), _NUMBER]
ProcessId: TypeAlias = Annotated[int, Meta(ge=1, le=2**22), _NUMBER]
GpuCount: TypeAlias = Annotated[int, Meta(ge=1, le=10_000), _NUMBER]

_WORD: Final = "printable text without leading or trailing spaces"
Word: TypeAlias = Annotated[str, Meta(pattern=r"^\S(.*\S)?$"), Form(called=_WORD, name="text", quoted=False)]
"""A text that can be recognised by looking at it."""
Host: TypeAlias = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]+$"), Form(called="a host name", name="host name")]
User: TypeAlias = Annotated[
    str, Meta(pattern=r"^[^:]+$"), Form(called="a user name without a colon", name="text", quoted=False)
]
Label: TypeAlias = Annotated[
    str, Meta(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$"), Form(called="a Prometheus label name", name="label name")
]
Metric: TypeAlias = Annotated[
    str, Meta(pattern=r"^[a-zA-Z_:][a-zA-Z0-9_:]*$"), Form(called="a Prometheus metric name", name="name")
]
MetricGlob: TypeAlias = Annotated[
    str, Meta(pattern=r"^[a-zA-Z0-9_:*?\[\]!-]+$"), Form(called="a glob of metric names", name="glob")
]
Regex: TypeAlias = Annotated[str, Form(name="regular expression", parse=_regular_expression)]
Engine: TypeAlias = Annotated[str, Form(name="name", role="engine")]
"""An engine that is built in or defined by the file."""
NewEngine: TypeAlias = Annotated[
    str,
    Meta(pattern=r"^[a-z][a-z0-9_]*$"),
    Form(called="an engine name of lower-case letters, digits and _", name="name", role="new engine"),
]
Gpu: TypeAlias = Annotated[
    str,
    Meta(pattern=r"^([0-9]{1,4}(:[0-9]{1,4})?|(GPU|MIG)-[A-Za-z0-9/-]+)$"),
    Form(called="a GPU's index, `0:1` for a MIG instance, or uuid", name="GPU", scalar=True),
]
"""A GPU by NVML index or uuid."""
UrlPath: TypeAlias = Annotated[str, Meta(pattern=r'^/[!-"$-~]*$'), Form(called="a path starting with /", name="path")]


def _reachable(text: str) -> str:
    reach(text)
    return text


Reachable: TypeAlias = Annotated[str, Form(name="host pattern", parse=_reachable)]
"""What `/probe` may reach, see `reach`."""
Currency: TypeAlias = Annotated[
    str,
    Meta(pattern="^[A-Z]{3}$"),
    Form(called="a currency's code of three letters, such as USD", name="three capital letters"),
]
ReceiverKind: TypeAlias = Literal["webhook", "slack", "ntfy"]
Severity: TypeAlias = Literal["warning", "critical"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
LogFormat: TypeAlias = Literal["logfmt", "json"]
KvCacheType: TypeAlias = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
"""Types of a KV cache's elements as llama.cpp names them."""
Detail: TypeAlias = Literal["essential", "full"]
Purpose: TypeAlias = Literal["interactive", "batch"]
Combine: TypeAlias = Literal["sum", "max", "first"]
Compression: TypeAlias = Literal["gzip", "none"]
OtlpProtocol: TypeAlias = Literal["http/protobuf", "grpc"]
File: TypeAlias = Annotated[
    Path, Form(name="file", read=lambda value: existing(value.directory / parsed(Word, value.string())))
]
"""A file that must exist; a relative path starts at the directory of the configuration file."""
KeyFile: TypeAlias = Annotated[Path, Form(name="file", read=secret_file)]
"""The same of a file that may hold a private key."""
ExistingFile: TypeAlias = Annotated[Path, Form(name="file", parse=lambda text: existing(Path(text)))]
"""A file that must exist, as flags name it: relative to where the program was started."""
Directory: TypeAlias = Annotated[Path, Form(name="path", parse=_path)]
"""A directory that may come and go, such as a control group's."""


def _listen(text: str) -> str:
    match = re.fullmatch(r"(?:\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?\]|[A-Za-z0-9_.-]*):([0-9]{1,5})", text)
    if match is None or int(match[1]) > LAST_PORT:
        raise ConfigError(f"expected an address such as :9836, 127.0.0.1:9836 or [::1]:9836, got {shown(text)}")
    return text


def url(text: str) -> str:
    """A URL in its one spelling: no default port; no slash, `/metrics` or `/v1` at its end; without a scheme http."""
    if "@" in text:  # first, since what follows repeats the URL in errors
        raise ConfigError("the URL must not contain a user or password; give them under the key auth")
    if "?" in text or "#" in text:
        raise ConfigError("the URL must have neither a query nor a fragment")
    scheme, colon, rest = text.partition("://")
    scheme, rest = (scheme.lower(), rest) if colon else ("http", text)
    if scheme not in {"http", "https"}:
        raise ConfigError(f"expected a URL with http:// or https://, got {shown(text)}")
    host = r"\[[0-9A-Fa-f:.]+(?:%\w+)?\]|(?!https?/)[A-Za-z0-9_.-]+"  # http/ is a scheme whose colon was left out
    match = re.fullmatch(rf"({host})(?::([0-9]{{1,5}}))?(/[!-~]*)?", rest, re.ASCII)
    # A number alone is a port whose host was left out.
    if match is None or match[1].isdigit() or (match[1].startswith("[") and not _is_ipv6(match[1][1:-1])):
        raise ConfigError(f"expected a URL such as http://127.0.0.1:8000 or http://[::1]:8000, got {shown(text)}")
    usual = 443 if scheme == "https" else 80
    port = int(match[2] or usual)
    if not 1 <= port <= LAST_PORT:
        raise ConfigError(f"expected a port from 1 to {LAST_PORT}, got {shown(text)}")
    prefix = (match[3] or "").rstrip("/").removesuffix("/metrics").rstrip("/")
    prefix = prefix.removesuffix("/v1").rstrip("/")  # the address that clients of the OpenAI API are given
    return f"{scheme}://{match[1].lower()}{'' if port == usual else f':{port}'}{prefix}"


def _is_ipv6(text: str) -> bool:
    from ipaddress import IPv6Address  # noqa: PLC0415 - few addresses need it

    try:
        return bool(IPv6Address(text))
    except ValueError:
        return False


Address: TypeAlias = Annotated[str, Form(name="address", parse=_listen)]
"""Address to listen on: `:PORT`, `HOST:PORT` or `[IPV6]:PORT`."""
Link: TypeAlias = Annotated[
    str,
    Meta(pattern=r'^(|https?://[!"$-.0->A-~]+([/?#][!-~]*[!-.0-~])?)$'),
    Form(
        called="an address with http:// or https://, no user or password and no slash at its end",
        name="URL",
        quoted=False,
    ),
]
"""Where a page of ours may lead, or messages are sent; empty for nowhere. It may hold a secret, as Slack's do."""
Url: TypeAlias = Annotated[str, Form(name="URL", parse=url)]
