"""The configuration: one YAML file, and above it what the command line and the environment say.

The file is read as YAML nodes, not as Python objects, so that each error names a line and a key. What may be written is
in the tables that end up in `SECTIONS`: a key's name and the function that reads it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias, TypeVar

from llm_headroom import schema
from llm_headroom.fetch import Basic, Bearer, Endpoint, Secret, Tls
from llm_headroom.model import NOTHING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from yaml.nodes import Node

T = TypeVar("T")
K = TypeVar("K")

LARGEST_FILE: Final = 1024 * 1024
"""Bytes of a configuration file: what a Kubernetes ConfigMap can hold."""
MOST_VALUES: Final = 200_000
"""Values that a file may expand to by its aliases and merge keys."""
MOST_PROBLEMS: Final = 20
"""Problems that one error message lists."""
LAST_PORT: Final = 65535

RESERVED_LABELS: Final = frozenset({"le", "quantile"}.union(*(metric.labels for metric in schema.ALL)))
"""Labels that a target must not add to its series."""
_OWN: Final = (
    schema.UP,
    schema.SOURCE_LAST_SUCCESS,
    schema.SOURCE_DURATION,
    schema.SOURCE_ERRORS,
    schema.SOURCE_SAMPLES,
    schema.LABEL_VALUES_CAPPED,
)
ENGINE_METRICS: Final = frozenset(
    metric.name for metric in schema.ALL if "target" in metric.labels and metric not in _OWN
)
"""Names that a rule may give values to: an engine tells nothing of GPUs, nor of how its collection went."""


class ConfigError(Exception):
    """The configuration cannot be used; `str(error)` is the whole message for the operator, one problem a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One engine to poll.

    `name` is the value of the label `target`. `engine` None: find out which one it is. `interval` and `timeout` are
    seconds, None: those of the configuration. `labels` are extra labels on its series. `requests_running_limit` is the
    operator's word for what some engines do not tell (vLLM's max_num_seqs).
    """

    name: str
    endpoint: Endpoint
    engine: str | None = None
    interval: float | None = None
    timeout: float | None = None
    labels: Mapping[str, str] = field(default_factory=lambda: NOTHING, hash=False)
    requests_running_limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSettings:
    """How a metric of the schema is found among an engine's own.

    `names` are upstream names, newest first. `where` are regular expressions which whole label values must match.
    `labels` maps upstream labels to ours. `combine` (sum, max, first) says what becomes of several upstream series that
    fall on one of ours.
    """

    metric: str
    names: tuple[str, ...]
    where: Mapping[str, str] = field(default_factory=lambda: NOTHING, hash=False)
    labels: Mapping[str, str] = field(default_factory=lambda: NOTHING, hash=False)
    scale: float = 1.0
    combine: str = "sum"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """An engine that is not built in. `prefixes` are how its metrics begin, `ignored` are globs of upstream names."""

    name: str
    path: str = "/metrics"
    port: int | None = None
    prefixes: tuple[str, ...] = ()
    model_label: str | None = None
    replica_label: str | None = None
    rules: tuple[RuleSettings, ...] = ()
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """How `/probe?module=NAME` speaks to a target; `timeout` in seconds, None: that of the configuration."""

    name: str
    engine: str | None = None
    timeout: float | None = None
    tls: Tls = field(default_factory=Tls)
    credentials: Bearer | Basic | None = None
    max_bytes: int = Endpoint(url="").max_bytes
    gzip: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSettings:
    """Which targets `/probe` may reach: globs of their host:port. None means that `/probe` is off."""

    allow: tuple[str, ...] = ()
    modules: Mapping[str, Module] = field(default_factory=lambda: MappingProxyType({}), hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSettings:
    """Whether GPUs are read (None: if NVML is there), each process too, and every how many seconds."""

    enabled: bool | None = None
    processes: bool = False
    interval: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What is logged, and how."""

    level: str = "info"
    format: str = "logfmt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration. Equal configurations ask for the same behaviour; durations are seconds.

    `discover` None: look for engines on this host if no target is configured. `mappings` are extra rules by engine.
    `label_limit` is how many different values of one label a target may have.
    """

    listen: tuple[str, ...] = (":9836",)
    interval: float = 5.0
    timeout: float = 5.0
    targets: tuple[Target, ...] = ()
    discover: bool | None = None
    gpu: GpuSettings = field(default_factory=GpuSettings)
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    mappings: Mapping[str, tuple[RuleSettings, ...]] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    engines: tuple[EngineSettings, ...] = ()
    label_limit: int = 200
    web_config: Path | None = None
    log: Log = field(default_factory=Log)


# From text to values: each of these raises a ConfigError that says what was expected, not where ----------------------
def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}…")  # noqa: PLR2004 - what fits a log line


def _near(word: str, known: Iterable[str]) -> str:
    """What the operator may have meant; the words that exist if they are few."""
    from difflib import get_close_matches  # noqa: PLC0415 - only errors need it

    words = sorted(known)
    if near := get_close_matches(word[:100], words, n=3):
        return f"; did you mean {' or '.join(near)}?"
    return f"; known: {', '.join(words)}" if len(words) <= 15 else ""  # noqa: PLR2004 - more is no help


def _word(text: str) -> str:
    if not text or not text.isprintable() or text != text.strip():
        raise ConfigError("expected a text of printable characters without blanks at its ends")
    return text


def _shaped(pattern: str, meaning: str, *, show: bool = True) -> Callable[[str], str]:
    """Takes texts that match the pattern whole; `show` False where people may have written a password."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ConfigError(f"expected {meaning}" + (f", got {_shown(text)}" if show else ""))
        return text

    return parse


def _choice(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ConfigError(f"expected one of {', '.join(words)}, got {_shown(text)}")
        return text

    return parse


def _quantity(
    meaning: str, units: Mapping[str, float], lowest: str, highest: str, digits: str = r"[0-9]{1,15}(?:\.[0-9]{1,15})?"
) -> Callable[[str], float]:
    """Reads numbers with a unit between two bounds, themselves written like the numbers that it reads."""

    def value(text: str) -> float:
        match = re.fullmatch(rf"({digits})({'|'.join(units)})", text)
        if match is None:
            raise ConfigError(f"expected {meaning}, got {_shown(text)}")
        return round(float(match[1]) * units[match[2]], 6)

    def parse(text: str) -> float:
        if not value(lowest) <= value(text) <= value(highest):
            raise ConfigError(f"expected {meaning} from {lowest} to {highest}, got {_shown(text)}")
        return value(text)

    return parse


def _scale(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 1e-12 <= number <= 1e12:  # noqa: PLR2004 - also false for NaN
        raise ConfigError(f"expected a number from 1e-12 to 1e12, got {_shown(text)}")
    return number


def _integer(lowest: int, highest: int) -> Callable[[str], int]:
    parse = _quantity("a whole number", {"": 1}, str(lowest), str(highest), r"[0-9]{1,15}")
    return lambda text: int(parse(text))


def _size(text: str) -> int:
    return int(_bytes(text))


_SECONDS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_BYTES: Final = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

_interval: Final = _quantity("a duration such as 5s", _SECONDS, "100ms", "1h")
_timeout: Final = _quantity("a duration such as 5s", _SECONDS, "100ms", "60s")
_bytes: Final = _quantity("a size such as 16MiB", _BYTES, "1KiB", "1GiB")
_level: Final = _choice("debug", "info", "warning", "error")
_format: Final = _choice("logfmt", "json")
_host: Final = _shaped(r"[A-Za-z0-9_.:-]+", "a host name")
_user: Final = _shaped(r"[^:\x00-\x1f\x7f]+", "a user name without a colon", show=False)
_label: Final = _shaped(r"[a-zA-Z_][a-zA-Z0-9_]*", "a Prometheus label name")
_metric: Final = _shaped(r"[a-zA-Z_:][a-zA-Z0-9_:]*", "a Prometheus metric name")
_engine_name: Final = _shaped(r"[a-z][a-z0-9_]*", "an engine's name of small letters, digits and _")
_path: Final = _shaped(r"/[!-\"$-~]*", "a path that begins with /")
_globbed_metric: Final = _shaped(r"[a-zA-Z0-9_:*?\[\]!-]+", "a glob of metric names")
_globbed_address: Final = _shaped(r"[^\s/@]+", "a glob of host:port, with neither scheme nor path", show=False)
_LISTEN: Final = r"(?:\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?\]|[A-Za-z0-9_.-]*):([0-9]{1,5})"


def _listen(text: str) -> str:
    match = re.fullmatch(_LISTEN, text)
    if match is None or int(match[1]) > LAST_PORT:
        raise ConfigError(f"expected an address such as :9836, 127.0.0.1:9836 or [::1]:9836, got {_shown(text)}")
    return text


def _url(text: str) -> tuple[str, str]:
    """The URL in its one spelling (no default port, no slash at its end), and host:port/prefix as a name for it."""
    if "@" in text:  # first, since what follows repeats the URL in errors
        raise ConfigError("the URL must not hold a user or password; give them under the key auth")
    if "?" in text or "#" in text:
        raise ConfigError("the URL must have neither a query nor a fragment")
    scheme, colon, rest = text.partition("://")
    scheme, rest = (scheme.lower(), rest) if colon else ("http", text)
    if scheme not in {"http", "https"}:
        raise ConfigError(f"expected a URL with http:// or https://, got {_shown(text)}")
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?(/[!-~]*)?", rest, re.ASCII)
    if match is None or (match[1].startswith("[") and not _is_ipv6(match[1][1:-1])):
        raise ConfigError(f"expected a URL such as http://127.0.0.1:8000 or http://[::1]:8000, got {_shown(text)}")
    host, usual = match[1].lower(), 443 if scheme == "https" else 80
    port = int(match[2] or usual)
    if not 1 <= port <= LAST_PORT:
        raise ConfigError(f"expected a port from 1 to {LAST_PORT}, got {_shown(text)}")
    prefix = (match[3] or "").rstrip("/").removesuffix("/metrics").rstrip("/")
    return f"{scheme}://{host}{'' if port == usual else f':{port}'}{prefix}", f"{host}:{port}{prefix}"


def _is_ipv6(text: str) -> bool:
    from ipaddress import IPv6Address  # noqa: PLC0415 - few addresses need it

    try:
        return bool(IPv6Address(text))
    except ValueError:
        return False


def parse_target(text: str) -> Target:
    """Reads `URL` or `ENGINE=URL`, as in `vllm=http://127.0.0.1:8000`; without a scheme it is http.

    Raises ConfigError. Whether the engine exists is for `load` to say.
    """
    engine, equals, url = text.partition("=")
    if not equals or re.search(r"[:/?#\[@]", engine):
        engine, url = "", text
    elif not engine:
        raise ConfigError("expected an engine before the =, as in vllm=http://127.0.0.1:8000")
    url, name = _url(url.strip())
    return Target(name=name, endpoint=Endpoint(url=url), engine=engine.strip() or None)


# From YAML nodes to values -------------------------------------------------------------------------------------------
_Read: TypeAlias = "Callable[[_Value], Any]"

_YAML: Final = "tag:yaml.org,2002:"
_KINDS: Final = {
    ("mapping", f"{_YAML}map"): "a mapping",
    ("sequence", f"{_YAML}seq"): "a list",
    ("scalar", f"{_YAML}str"): "a string",
    ("scalar", f"{_YAML}int"): "a number",
    ("scalar", f"{_YAML}float"): "a number",
    ("scalar", f"{_YAML}bool"): "true or false",
    ("scalar", f"{_YAML}null"): "nothing",
    ("scalar", f"{_YAML}timestamp"): "a date",
}


class _ReportedError(Exception):
    """A value is of no use, and why is among the document's problems already."""


class _OversizeError(Exception):
    """The file expands to more values than any configuration has."""


class _Document:
    """What is known while a configuration is read: the problems so far, and what must not occur twice."""

    def __init__(self, path: Path | None, built_in: Collection[str]) -> None:
        self.file = str(path)
        self.directory = path.parent.absolute() if path else Path.cwd()
        self.built_in = frozenset(built_in)
        self.engines = set(built_in)
        self.problems: list[tuple[float, str]] = []
        self.claims: dict[str, str] = {}
        self.values = 0

    def count(self) -> None:
        self.values += 1
        if self.values > MOST_VALUES:
            raise _OversizeError

    def checked(self, target: Target, where: str) -> Target:
        """Refuses a target that cannot be told from another one by its name or URL, or of an unknown engine."""
        self.check_engine(target.engine)
        if target.name == "nvml":
            raise ConfigError("the target name nvml is reserved for GPUs")
        claims = (f"URL {target.endpoint.url}", f"name {target.name!r}")
        for claim in claims:
            if claim in self.claims:
                raise ConfigError(f"the {claim} is already that of the target at {self.claims[claim]}")
        self.claims |= dict.fromkeys(claims, where)
        return target

    def check_engine(self, name: str | None) -> None:
        if name is not None and name not in self.engines:
            raise ConfigError(f"unknown engine {_shown(name)}{_near(name, self.engines)}")

    def check(self) -> None:
        """Raises all problems as one ConfigError."""
        if self.problems:
            lines = [text for _, text in sorted(self.problems, key=lambda problem: problem[0])]
            more = len(lines) - MOST_PROBLEMS
            raise ConfigError("\n".join(lines[:MOST_PROBLEMS] + ([f"… and {more} more"] if more > 0 else [])))


@dataclass(frozen=True, slots=True)
class _Value:
    """A node of the file, the key that it lies under (empty in a list), the key's line, and the path from the top."""

    document: _Document
    node: Node
    line: int
    path: str = ""
    key: str = ""

    @property
    def kind(self) -> str:
        return _KINDS.get((getattr(self.node, "id", ""), self.node.tag), "a value of a YAML type that is not supported")

    @property
    def where(self) -> str:
        return f"{self.document.file}:{self.line}"

    def problem(self, message: str) -> None:
        self.document.problems.append((self.line, f"{self.where}: {self.path}{': ' if self.path else ''}{message}"))

    def reject(self, message: str) -> NoReturn:
        self.problem(message)
        raise _ReportedError

    def attempt(self, read: Callable[[_Value], T]) -> T | None:
        try:
            return read(self)
        except ConfigError as error:
            self.problem(str(error))
        except _ReportedError:
            pass
        return None

    def string(self, *also: str) -> str:
        """A scalar as it is written. The error does not repeat it: it may be a misplaced secret."""
        if self.kind not in {"a string", *also}:
            quote = ": put it in quotes" if self.kind in {"a number", "true or false", "a date"} else ""
            raise ConfigError(f"expected {also[0] if also else 'a string'}, got {self.kind}{'' if also else quote}")
        return str(self.node.value)

    def items(self) -> list[_Value]:
        if self.kind != "a list":
            raise ConfigError(f"expected a list, got {self.kind}")
        values = []
        for index, node in enumerate(self.node.value):
            self.document.count()
            values.append(_Value(self.document, node, node.start_mark.line + 1, f"{self.path}[{index}]"))
        return values

    def entries(self, above: tuple[Node, ...] = ()) -> dict[str, _Value]:
        """The values of a mapping, with those that merge keys (`<<`) bring in; `above` are the mappings merged into."""
        if self.kind == "nothing":
            return {}
        if self.kind != "a mapping":
            raise ConfigError(f"expected a mapping, got {self.kind}")
        if any(self.node is node for node in above):
            raise ConfigError("a merge key must not bring in the mapping that it stands in")
        own: dict[str, _Value] = {}
        merged: dict[str, _Value] = {}
        for name, node in self.node.value:
            self.document.count()
            line = name.start_mark.line + 1
            if name.tag == f"{_YAML}merge":
                source = replace(self, node=node, line=line)
                for one in source.items() if source.kind == "a list" else [source]:
                    merged = replace(one, path=self.path).entries((*above, self.node)) | merged
                continue
            there = replace(self, node=name, line=line)
            if there.kind != "a string":
                there.reject(f"expected strings as keys, got {there.kind}: put it in quotes")
            key = str(name.value)
            shown = key if re.fullmatch(r"[\w-]{1,60}", key) else _shown(key)
            if key in own:
                there.reject(f"the key {shown} is given twice, first on line {own[key].line}")
            own[key] = _Value(self.document, node, line, f"{self.path}.{shown}".lstrip("."), key)
        return merged | own

    def fields(self, table: Mapping[str, _Read], *required: str) -> dict[str, Any]:
        """What is written for the keys of a table, in the table's order; a key without a value is as if absent."""
        before = len(self.document.problems)
        entries = self.entries()
        known = [key for key, read in table.items() if read is not _literal_secret]
        for key, value in entries.items():
            if key not in table:
                value.problem(f"unknown key{_near(key, known)}")
        entries = {key: value for key, value in entries.items() if value.kind != "nothing"}
        for key in required:
            if key not in entries:
                self.problem(f"the key {key} is missing")
        return self.attempts({key: (entries[key], read) for key, read in table.items() if key in entries}, before)

    def attempts(self, values: Mapping[K, tuple[_Value, _Read]], before: int | None = None) -> dict[K, Any]:
        """Reads them all, so that the problems of all are reported, and gives them if there was none."""
        before = len(self.document.problems) if before is None else before
        read = {name: value.attempt(how) for name, (value, how) in values.items()}
        if len(self.document.problems) > before:
            raise _ReportedError
        return read


def _from_string(parse: Callable[[str], T]) -> Callable[[_Value], T]:
    return lambda value: parse(value.string())


def _from_number(parse: Callable[[str], T]) -> Callable[[_Value], T]:
    return lambda value: parse(value.string("a number"))


def _list_of(read: Callable[[_Value], T]) -> Callable[[_Value], tuple[T, ...]]:
    return lambda value: tuple(value.attempts({one.path: (one, read) for one in value.items()}).values())


def _mapping_of(read: Callable[[_Value], T]) -> Callable[[_Value], Mapping[str, T]]:
    def mapping(value: _Value) -> Mapping[str, T]:
        return MappingProxyType(value.attempts({key: (one, read) for key, one in value.entries().items()}))

    return mapping


def _some(read: Callable[[_Value], tuple[T, ...]]) -> Callable[[_Value], tuple[T, ...]]:
    def some(value: _Value) -> tuple[T, ...]:
        return read(value) or value.reject("expected at least one entry, got an empty list")

    return some


def _boolean(value: _Value) -> bool:
    if value.kind != "true or false":
        raise ConfigError(f"expected true or false, got {value.kind}")
    return str(value.node.value).lower() in {"true", "yes", "on"}


def _existing(path: Path, shown: str = "") -> Path:
    try:
        path.stat()
    except OSError as error:
        raise ConfigError(f"{shown or path}: {error.strerror}") from None
    if path.is_dir():
        raise ConfigError(f"{shown or path}: is a directory")
    return path


def _file(value: _Value) -> Path:
    return _existing(value.document.directory / _word(value.string()))


def _secret_file(value: _Value) -> Secret:
    # Without its name in errors, since people write the secret itself in the name's place.
    shown = f"the file that is named here (a relative path begins at {value.document.directory})"
    return Secret(file=_existing(value.document.directory / _word(value.string()), shown))


def _secret_variable(value: _Value) -> Secret:
    name = value.string()
    if not os.environ.get(name):  # without the name, since people write the secret itself in its place
        raise ConfigError("the environment variable that is named here is not set, or empty")
    return Secret(env=name)


def _literal_secret(value: _Value) -> NoReturn:
    raise ConfigError(f"a secret must not stand in this file: use {value.key}_file or {value.key}_env")


# What may be written -------------------------------------------------------------------------------------------------
_TLS: Final[Mapping[str, _Read]] = {
    "ca_file": _file,
    "cert_file": _file,
    "key_file": _file,
    "server_name": _from_string(_host),
    "insecure_skip_verify": _boolean,
}
_AUTH: Final[Mapping[str, _Read]] = {
    "bearer_token_file": _secret_file,
    "bearer_token_env": _secret_variable,
    "bearer_token": _literal_secret,
    "username": _from_string(_user),
    "password_file": _secret_file,
    "password_env": _secret_variable,
    "password": _literal_secret,
}


def _tls(value: _Value) -> Tls:
    tls = Tls(**value.fields(_TLS))
    if tls.key_file and not tls.cert_file:
        raise ConfigError("key_file needs cert_file beside it")
    return tls


def _auth(value: _Value) -> Bearer | Basic:
    given = value.fields(_AUTH)
    match sorted(given):
        case ["bearer_token_env" | "bearer_token_file" as key]:
            return Bearer(given[key])
        case ["password_env" | "password_file" as key, "username"]:
            return Basic(given["username"], given[key])
    raise ConfigError(
        "expected either one of bearer_token_file and bearer_token_env, "
        "or username with one of password_file and password_env"
    )


def _engine(value: _Value) -> str:
    value.document.check_engine(value.string())
    return value.string()


def _target_label(value: _Value) -> str:
    _label(value.key)
    if value.key in RESERVED_LABELS or value.key.startswith("__"):
        raise ConfigError("the label is reserved for the metrics' own use; choose another name")
    return _word(value.string())


_CONNECTION: Final[Mapping[str, _Read]] = {
    "engine": _engine,
    "timeout": _from_number(_timeout),
    "tls": _tls,
    "auth": _auth,
    "max_bytes": _from_number(_size),
    "gzip": _boolean,
}
_TARGET: Final[Mapping[str, _Read]] = {
    "url": _from_string(_url),
    "name": _from_string(_word),
    **_CONNECTION,
    "interval": _from_number(_interval),
    "labels": _mapping_of(_target_label),
    "requests_running_limit": _from_number(_integer(1, 10**9)),
}


def _connection(given: dict[str, Any]) -> dict[str, Any]:
    return {"credentials" if key == "auth" else key: value for key, value in given.items()}


def _target(value: _Value) -> Target:
    if value.kind == "a string":
        return value.document.checked(parse_target(value.string()), value.where)
    given = _connection(value.fields(_TARGET, "url"))
    url, name = given.pop("url")
    if "tls" in given and not url.startswith("https:"):
        raise ConfigError("tls is given, but the URL is not https")
    there = {key: given.pop(key) for key in ("tls", "credentials", "max_bytes", "gzip") if key in given}
    target = Target(**{"name": name, **given}, endpoint=Endpoint(url=url, **there))
    return value.document.checked(target, value.where)


def _rule_label(value: _Value) -> str:
    _label(value.key)
    if value.string() in {"engine", "target"}:
        raise ConfigError("the labels engine and target are given by the exporter")
    return value.string()


def _selector(value: _Value) -> str:
    _label(value.key)
    try:
        re.compile(value.string())
    except (re.error, OverflowError) as error:
        raise ConfigError(f"expected a regular expression: {error}") from None
    return value.string()


def _canonical(text: str) -> str:
    if text not in ENGINE_METRICS:
        raise ConfigError(
            f"{_shown(text)} is no metric of the schema that an engine can give{_near(text, ENGINE_METRICS)}"
        )
    return text


_RULE: Final[Mapping[str, _Read]] = {
    "metric": _from_string(_canonical),
    "names": _some(_list_of(_from_string(_metric))),
    "where": _mapping_of(_selector),
    "labels": _mapping_of(_rule_label),
    "scale": _from_number(_scale),
    "combine": _from_string(_choice("sum", "max", "first")),
}


def _rule(value: _Value) -> RuleSettings:
    rule = RuleSettings(**value.fields(_RULE, "metric", "names"))
    declared = schema.BY_NAME[rule.metric].labels
    for label in rule.labels.values():
        if label not in declared:
            raise ConfigError(f"{rule.metric} has no label {_shown(label)}{_near(label, declared)}")
    if len(set(rule.labels.values())) < len(rule.labels):
        raise ConfigError("two labels must not become the same one")
    return rule


_ENGINE: Final[Mapping[str, _Read]] = {
    "path": _from_string(_path),
    "port": _from_number(_integer(1, LAST_PORT)),
    "prefixes": _list_of(_from_string(_metric)),
    "model_label": _from_string(_label),
    "replica_label": _from_string(_label),
    "rules": _some(_list_of(_rule)),
    "ignored": _list_of(_from_string(_globbed_metric)),
}


def _engine_settings(value: _Value) -> EngineSettings:
    _engine_name(value.key)
    if value.key in value.document.built_in:
        raise ConfigError(f"{value.key} is built in; give it extra rules under mappings.{value.key}")
    return EngineSettings(name=value.key, **value.fields(_ENGINE, "rules"))


def _engines(value: _Value) -> tuple[EngineSettings, ...]:
    value.document.engines |= value.entries().keys()
    return tuple(_mapping_of(_engine_settings)(value).values())


def _mapping(value: _Value) -> tuple[RuleSettings, ...]:
    value.document.check_engine(value.key)
    return _some(_list_of(_rule))(value)


def _module(value: _Value) -> Module:
    return Module(name=_word(value.key), **_connection(value.fields(_CONNECTION)))


_PROBE: Final[Mapping[str, _Read]] = {
    "allow": _list_of(_from_string(_globbed_address)),
    "modules": _mapping_of(_module),
}
_GPU: Final[Mapping[str, _Read]] = {
    "enabled": _boolean,
    "processes": _boolean,
    "interval": _from_number(_interval),
}
_LOG: Final[Mapping[str, _Read]] = {"level": _from_string(_level), "format": _from_string(_format)}


def _gpu(value: _Value) -> GpuSettings:
    if value.kind == "true or false":
        return GpuSettings(enabled=_boolean(value))
    return GpuSettings(**value.fields(_GPU))


_ROOT: Final[Mapping[str, _Read]] = {
    "engines": _engines,  # first: the others are checked against the names that it defines
    "listen": _some(_list_of(_from_string(_listen))),
    "interval": _from_number(_interval),
    "timeout": _from_number(_timeout),
    "targets": _list_of(_target),
    "discover": _boolean,
    "gpu": _gpu,
    "probe": lambda value: ProbeSettings(**value.fields(_PROBE)),
    "mappings": _mapping_of(_mapping),
    "label_limit": _from_number(_integer(1, 100_000)),
    "web_config": _file,
    "log": lambda value: Log(**value.fields(_LOG)),
}

SECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    name: tuple(table)
    for name, table in {
        "": _ROOT,
        "targets": _TARGET,
        "tls": _TLS,
        "auth": _AUTH,
        "gpu": _GPU,
        "probe": _PROBE,
        "probe.modules": _CONNECTION,
        "mappings": _RULE,
        "engines": _ENGINE,
        "log": _LOG,
    }.items()
}
"""The keys of each section, for whoever has to speak of all of them."""


def _read(path: Path, document: _Document) -> dict[str, Any]:
    """What the file says, by the names of Config's fields; problems are left in the document."""
    import yaml  # noqa: PLC0415 - a run without a configuration file is spared its memory

    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if len(data) > LARGEST_FILE:
        raise ConfigError(f"{path}: is larger than {LARGEST_FILE} bytes")
    try:
        text = data.decode()
        root = yaml.compose(text, yaml.SafeLoader)
        read = _Value(document, root, 1).attempt(lambda top: top.fields(_ROOT)) if root else None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        # The names of anchors and tags are cut off: a secret that begins with * or ! reads like one.
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        problem = re.sub(r"(undefined alias|undefined tag handle|duplicate anchor) '.*", r"\1", problem)
        raise ConfigError(f"{path}:{line}: is not valid YAML: {problem}") from None
    except (RecursionError, _OversizeError):
        raise ConfigError(f"{path}: is nested too deeply, or its aliases expand to too much") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{path}:{line}: is not valid YAML: {error.reason}") from None
    except (ValueError, OverflowError):  # what PyYAML makes of an escape beyond Unicode
        raise ConfigError(f"{path}: is not valid YAML: an escape in a string means no character") from None
    return read or {}


def load(  # noqa: PLR0913 - one argument for each flag
    path: Path | None,
    *,
    targets: Sequence[str] = (),
    listen: Sequence[str] = (),
    interval: str | None = None,
    web_config: Path | None = None,
    log_level: str | None = None,
    log_format: str | None = None,
    gpu: bool | None = None,
    discover: bool | None = None,
    engine_names: Collection[str],
) -> Config:
    """Reads the configuration file, and puts above it what the flags or their environment variables say.

    Flags win over the file, but targets from flags are added to those of the file. `targets` and `listen` may hold
    several values in one text, with commas between them. Relative paths in the file begin at its directory.
    `engine_names` are the engines that are built in. Raises ConfigError with all problems that were found.
    """
    variable = {"target": "targets"}
    document = _Document(path, engine_names)
    values = _read(path, document) if path else {}

    def flag(name: str, parse: Callable[[str], T], text: str) -> T | None:
        try:
            return parse(text)
        except ConfigError as error:
            option = f"--{name}/LLM_HEADROOM_{variable.get(name, name).upper().replace('-', '_')}"
            document.problems.append((float("inf"), f"{option}: {error}"))
            return None

    def flags(name: str, parse: Callable[[str], T], texts: Sequence[str]) -> tuple[T | None, ...]:
        words = [word.strip() for text in texts for word in text.split(",")]
        return tuple(flag(name, parse, word) for word in words if word)

    added = flags("target", lambda text: document.checked(parse_target(text), "--target"), targets)
    parsed = {
        "listen": flags("listen", _listen, listen),
        "interval": flag("interval", _interval, interval) if interval else None,
        "web_config": flag("web-config", lambda text: _existing(Path(text)), str(web_config)) if web_config else None,
    }
    level = flag("log-level", _level, log_level) if log_level else None
    form = flag("log-format", _format, log_format) if log_format else None
    document.check()
    values |= {key: value for key, value in parsed.items() if value}
    values["targets"] = (*values.get("targets", ()), *added)
    log, gpus = values.get("log", Log()), values.get("gpu", GpuSettings())
    values["log"] = Log(level=level or log.level, format=form or log.format)
    values["gpu"] = replace(gpus, enabled=gpus.enabled if gpu is None else gpu)
    values["discover"] = values.get("discover") if discover is None else discover
    return Config(**values)
