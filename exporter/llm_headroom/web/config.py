"""The web configuration file: TLS, access and headers of the exporter's own web server.

The format is the one that Prometheus' exporters share (prometheus/exporter-toolkit, docs/web-configuration.md and
web/tls_config.go), so that one file serves node_exporter and llm-headroom alike.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from llm_headroom.config import yaml_nodes
from llm_headroom.config.errors import ConfigError, Problems
from llm_headroom.config.yaml_nodes import Style, Value, from_scalar, from_string, list_of, mapping_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from llm_headroom.config.errors import Place

__all__ = ["ClientAuth", "Pem", "RateLimit", "TlsServer", "WebConfig", "WebConfigError", "load", "parse"]

WebConfigError: TypeAlias = ConfigError
"""The web configuration cannot be used; each problem names the file, the line and the key."""


class ClientAuth(StrEnum):
    """How clients must identify themselves; the names are those of Go's crypto/tls ClientAuthType."""

    NONE = "NoClientCert"
    REQUEST = "RequestClientCert"
    VERIFY_IF_GIVEN = "VerifyClientCertIfGiven"
    REQUIRE_AND_VERIFY = "RequireAndVerifyClientCert"


@dataclass(frozen=True, slots=True)
class Pem:
    """Certificates or a key: the text itself, or the file that holds it."""

    place: Place
    file: Path | None = None
    text: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsServer:
    """`tls_server_config`.

    Versions are spelt TLS10 to TLS13. `ciphers` are OpenSSL's names of suites up to TLS 1.2, None for the defaults
    and empty where only suites of TLS 1.3 were listed. `curves` are OpenSSL's names in order of preference.
    """

    place: Place
    cert: Pem
    key: Pem
    client_ca: Pem | None = None
    client_auth: ClientAuth = ClientAuth.NONE
    client_allowed_sans: tuple[str, ...] = ()
    min_version: str = "TLS12"
    max_version: str = "TLS13"
    ciphers: tuple[str, ...] | None = None
    curves: tuple[str, ...] = ()
    prefer_server_ciphers: bool = True


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A token bucket for all clients together: one request every `interval` seconds, `burst` of them at once."""

    interval: float
    burst: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WebConfig:
    """A web configuration file that was read. `notes` tell the operator which entries have no effect here."""

    tls: TlsServer | None = None
    headers: tuple[tuple[str, str], ...] = ()
    users: Mapping[str, str] = field(default_factory=dict, repr=False)
    rate_limit: RateLimit | None = None
    notes: tuple[str, ...] = ()

    @property
    def pem_files(self) -> tuple[Path, ...]:
        """The certificate and key files that the configuration refers to."""
        if self.tls is None:
            return ()
        pems = (self.tls.cert, self.tls.key, self.tls.client_ca)
        return tuple(pem.file for pem in pems if pem is not None and pem.file is not None)


def load(path: Path) -> WebConfig:
    """Reads a web configuration file and the certificates that it names, and checks that they fit together.

    Raises:
        WebConfigError: the file cannot be read, is not of this format, or its certificates are unusable.
    """
    config = parse(path)
    if config.tls is not None:
        from llm_headroom.web.tls import server_context  # noqa: PLC0415 - only a configuration with TLS pays for it

        server_context(config.tls)
    return config


def parse(path: Path) -> WebConfig:
    """Reads a web configuration file without opening the certificates that it names.

    Raises:
        WebConfigError: the file cannot be read or is not of this format.
    """
    problems = Problems()
    given = yaml_nodes.read(path, _ROOT, None, problems, _STYLE)
    problems.check()
    tls, http = given.get("tls_server_config"), given.get("http_server_config", {})
    notes = _notes(tls) if tls else []
    if "http2" in http:
        notes.append("http_server_config.http2 has no effect: this server speaks HTTP/1.1")
    return WebConfig(
        tls=tls,
        headers=http.get("headers", ()),
        users=given.get("basic_auth_users", MappingProxyType({})),
        rate_limit=given.get("rate_limit"),
        notes=tuple(notes),
    )


def _notes(tls: TlsServer) -> list[str]:
    notes = []
    if tls.client_auth is ClientAuth.REQUEST:
        notes.append(
            f"{tls.place.key}.client_auth_type: RequestClientCert keeps nobody out, and has the effect of NoClientCert"
        )
    if len(tls.curves) > 1:
        notes.append(
            f"{tls.place.key}.curve_preferences: "
            "more than one curve can be set from Python 3.15 on; before, OpenSSL's apply"
        )
    return notes


_Value: TypeAlias = Value[None]
_Read: TypeAlias = "yaml_nodes.Read[None]"

_STYLE: Final = Style(
    plain_keys=True,
    bare_keys=r"[ -~]{1,60}",
    item="",
    unreadable="{file}: cannot be read: {reason}",
    malformed="is not YAML: {reason}",
    too_deep="{file}:1: is nested too deeply, or its aliases expand to too much",
    mismatch="must be {expected}, not {kind}",
    twice="is given twice, first in line {line}",
    twice_at_key=True,
    mapping="a mapping of keys to values",
    list="a list of strings",
    kinds=MappingProxyType(
        {
            "mapping": "a mapping",
            "list": "a list",
            "string": "a str",
            "integer": "an integer",
            "float": "a float",
            "boolean": "a boolean",
            "nothing": "nothing",
            "date": "a timestamp",
        }
    ),
)


def _one_of(allowed: Collection[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ConfigError(f"{text!r} is not one of {', '.join(allowed)}")
        return text

    return parse


_VERSIONS: Final = ("TLS10", "TLS11", "TLS12", "TLS13")

# Go's suites (crypto/tls CipherSuites) under OpenSSL's names; those of TLS 1.3 cannot be chosen, in Go neither.
_CIPHERS: Final = MappingProxyType(
    {
        "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
        "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
        "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
        "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
        "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
        "TLS_AES_128_GCM_SHA256": "",
        "TLS_AES_256_GCM_SHA384": "",
        "TLS_CHACHA20_POLY1305_SHA256": "",
    }
)

_CURVES: Final = MappingProxyType(
    {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}
)


def _client_auth(name: str) -> ClientAuth:
    if name in {"RequireAnyClientCert", "RequireClientCert"}:
        raise ConfigError(f"{name} is not supported: Python verifies each certificate; use RequireAndVerifyClientCert")
    return ClientAuth(_one_of(tuple(ClientAuth))(name or ClientAuth.NONE))


_version: Final = _one_of(_VERSIONS)
_TLS: Final[Mapping[str, _Read]] = {
    "cert": Value.string,
    "cert_file": Value.string,
    "key": Value.string,
    "key_file": Value.string,
    "client_ca": Value.string,
    "client_ca_file": Value.string,
    "client_auth_type": from_string(_client_auth),
    "client_allowed_sans": list_of(Value.string),
    "min_version": from_string(lambda text: _version(text or "TLS12")),
    "max_version": from_string(lambda text: _version(text or "TLS13")),
    "cipher_suites": list_of(from_string(lambda text: _CIPHERS[_one_of(_CIPHERS)(text)])),
    "curve_preferences": list_of(from_string(lambda text: _CURVES[_one_of(_CURVES)(text)])),
    "prefer_server_cipher_suites": Value.boolean,
}


def _tls(value: _Value) -> TlsServer | None:
    entries, given = value.entries(), value.fields(_TLS)
    if not entries:
        return None
    cert, key, client_ca = (_pem(value, entries, given, name) for name in ("cert", "key", "client_ca"))
    if cert is None:
        raise ConfigError("cert_file (or cert) is missing")
    if key is None:
        raise ConfigError("key_file (or key) is missing")
    tls = TlsServer(
        place=value.place,
        cert=cert,
        key=key,
        client_ca=client_ca,
        client_auth=given.get("client_auth_type", ClientAuth.NONE),
        client_allowed_sans=given.get("client_allowed_sans", ()),
        min_version=given.get("min_version", "TLS12"),
        max_version=given.get("max_version", "TLS13"),
        ciphers=tuple(filter(None, given["cipher_suites"])) if given.get("cipher_suites") else None,
        curves=given.get("curve_preferences", ()),
        prefer_server_ciphers=given.get("prefer_server_cipher_suites", True),
    )
    if tls.min_version > tls.max_version:
        entries["max_version"].reject(f"{tls.max_version} is below min_version, {tls.min_version}")
    if client_ca is not None and tls.client_auth is ClientAuth.NONE:
        value.reject("needs a client_auth_type: RequireAndVerifyClientCert, say", client_ca.place)
    if tls.client_allowed_sans and tls.client_auth not in {ClientAuth.VERIFY_IF_GIVEN, ClientAuth.REQUIRE_AND_VERIFY}:
        entries["client_allowed_sans"].items()[0].reject(
            "needs a client_auth_type that verifies certificates: RequireAndVerifyClientCert, say"
        )
    if tls.ciphers == () and tls.max_version != "TLS13":
        entries["cipher_suites"].items()[0].reject(
            f"lists suites of TLS 1.3 alone, but max_version is {tls.max_version}"
        )
    return tls


def _pem(value: _Value, entries: Mapping[str, _Value], given: Mapping[str, str], name: str) -> Pem | None:
    inline, file = given.get(name), given.get(f"{name}_file")
    if inline and file:
        entries[name].reject(f"excludes {name}_file: give one of the two")
    if inline:
        return Pem(entries[name].place, text=inline)
    return Pem(entries[f"{name}_file"].place, file=value.directory / file) if file else None


# What exporter-toolkit's web/handler.go lets through, and the values where it restricts them.
_HEADERS: Final = MappingProxyType(
    {
        "Content-Security-Policy": (),
        "Strict-Transport-Security": (),
        "X-Content-Type-Options": ("nosniff",),
        "X-Frame-Options": ("deny", "sameorigin"),
        "X-XSS-Protection": (),
    }
)
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e]+")


def _header(value: _Value) -> str:
    if value.key not in _HEADERS:
        raise ConfigError(f"this header cannot be set; those that can are {', '.join(_HEADERS)}")
    text = value.scalar().strip()
    if text and not _HEADER_VALUE.fullmatch(text):
        raise ConfigError("a header's value must be one line of printable ASCII")
    if text and (allowed := _HEADERS[value.key]):
        _one_of(allowed)(text)
    return text


def _headers(value: _Value) -> tuple[tuple[str, str], ...]:
    return tuple((name, text) for name, text in mapping_of(_header)(value).items() if text)


_BCRYPT: Final = re.compile(r"\$2[aby]\$(0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{53}")


def _password_hash(value: _Value) -> str:
    if ":" in value.key:
        raise ConfigError("a user name cannot contain a colon")
    if not _BCRYPT.fullmatch(value.scalar()):
        raise ConfigError("must be the bcrypt hash of a password ($2y$10$… or the like, 60 characters)")
    return value.scalar()


_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_SECONDS: Final = MappingProxyType(
    {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
)


def _duration(text: str) -> float:
    """Seconds of a duration as Go writes it: `1s`, `500ms`, `1m30s`, `0`."""
    if text in {"", "0"}:
        return 0.0
    if re.sub(_DURATION_PART, "", text):
        raise ConfigError("must be a duration with a unit: 500ms, 1s, 1m30s, or 0 for no limit")
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text))


def _count(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text):
        raise ConfigError("must be a count of requests, 0 or more")
    return int(text)


_RATE: Final[Mapping[str, _Read]] = {"interval": from_scalar(_duration), "burst": from_scalar(_count)}


def _rate_limit(value: _Value) -> RateLimit | None:
    given = value.fields(_RATE)
    burst = value.entries().get("burst", value)
    if burst.kind == "nothing":  # unlike other keys, since a limit that somebody began to write is none without it
        burst.reject("must be a count of requests, 0 or more")
    if not given.get("interval"):
        return None
    if not given.get("burst"):
        burst.reject("burst must be at least 1 beside an interval: every request would be refused")
    return RateLimit(given["interval"], given["burst"])


_HTTP: Final[Mapping[str, _Read]] = {"http2": Value.boolean, "headers": _headers}


def _http(value: _Value) -> dict[str, Any]:
    return value.fields(_HTTP)


_ROOT: Final[Mapping[str, _Read]] = {
    "tls_server_config": _tls,
    "http_server_config": _http,
    "basic_auth_users": mapping_of(_password_hash),
    "rate_limit": _rate_limit,
}
