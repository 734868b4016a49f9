"""The web configuration file: TLS, access and headers of the exporter's own web server.

The format is the one that Prometheus' exporters share (prometheus/exporter-toolkit, docs/web-configuration.md and
web/tls_config.go), so that one file serves node_exporter and llm-headroom alike.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from llm_headroom.web.section import Section, WebConfigError, read

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from llm_headroom.web.section import Place

__all__ = ["ClientAuth", "Pem", "RateLimit", "TlsServer", "WebConfig", "WebConfigError", "load", "parse"]


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
    root = read(path)
    tls_section = root.section("tls_server_config")
    http = root.section("http_server_config")
    users = root.section("basic_auth_users")
    rate = root.section("rate_limit")
    root.nothing_else()

    notes: list[str] = []
    tls = _tls(tls_section, path.parent, notes)
    if "http2" in http:
        http.boolean("http2", default=True)
        notes.append("http_server_config.http2 has no effect: this server speaks HTTP/1.1")
    headers = _headers(http.section("headers"))
    http.nothing_else()
    return WebConfig(
        tls=tls,
        headers=headers,
        users=MappingProxyType(_users(users)),
        rate_limit=_rate_limit(rate),
        notes=tuple(notes),
    )


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


def _tls(section: Section, directory: Path, notes: list[str]) -> TlsServer | None:
    cert = _pem(section, "cert", directory)
    key = _pem(section, "key", directory)
    client_ca = _pem(section, "client_ca", directory)
    auth_place, auth_name = section.text("client_auth_type")
    client_auth = _client_auth(auth_place, auth_name)
    sans = section.texts("client_allowed_sans")
    min_place, min_version = section.text("min_version")
    min_version = _one_of(min_place, min_version or "TLS12", _VERSIONS)
    max_place, max_version = section.text("max_version")
    max_version = _one_of(max_place, max_version or "TLS13", _VERSIONS)
    suites = section.texts("cipher_suites")
    curves = section.texts("curve_preferences")
    prefer_server = section.boolean("prefer_server_cipher_suites", default=True)
    section.nothing_else()

    if section.is_empty:
        return None
    if cert is None:
        raise section.place.error("cert_file (or cert) is missing")
    if key is None:
        raise section.place.error("key_file (or key) is missing")
    if min_version > max_version:
        raise max_place.error(f"{max_version} is below min_version, {min_version}")
    verifies = client_auth in {ClientAuth.VERIFY_IF_GIVEN, ClientAuth.REQUIRE_AND_VERIFY}
    if client_ca is not None and client_auth is ClientAuth.NONE:
        raise client_ca.place.error("needs a client_auth_type: RequireAndVerifyClientCert, say")
    if sans and not verifies:
        raise sans[0][0].error("needs a client_auth_type that verifies certificates: RequireAndVerifyClientCert, say")
    if client_auth is ClientAuth.REQUEST:
        notes.append(f"{auth_place.key}: RequestClientCert keeps nobody out, and has the effect of NoClientCert")
    if len(curves) > 1:
        notes.append(f"{curves[0][0].key}: more than one curve can be set from Python 3.15 on; before, OpenSSL's apply")
    return TlsServer(
        place=section.place,
        cert=cert,
        key=key,
        client_ca=client_ca,
        client_auth=client_auth,
        client_allowed_sans=tuple(name for _, name in sans),
        min_version=min_version,
        max_version=max_version,
        ciphers=_ciphers(suites, max_version),
        curves=tuple(_CURVES[_one_of(at, name, _CURVES)] for at, name in curves),
        prefer_server_ciphers=prefer_server,
    )


def _ciphers(suites: tuple[tuple[Place, str], ...], max_version: str) -> tuple[str, ...] | None:
    if not suites:
        return None
    ciphers = tuple(filter(None, (_CIPHERS[_one_of(place, name, _CIPHERS)] for place, name in suites)))
    if not ciphers and max_version != "TLS13":
        raise suites[0][0].error(f"lists suites of TLS 1.3 alone, but max_version is {max_version}")
    return ciphers


def _pem(section: Section, name: str, directory: Path) -> Pem | None:
    inline_place, inline = section.text(name)
    file_place, file = section.text(f"{name}_file")
    if inline and file:
        raise inline_place.error(f"excludes {name}_file: give one of the two")
    if inline:
        return Pem(inline_place, text=inline)
    return Pem(file_place, file=directory / file) if file else None


def _client_auth(place: Place, name: str) -> ClientAuth:
    if name in {"RequireAnyClientCert", "RequireClientCert"}:
        raise place.error(f"{name} is not supported: Python verifies each certificate; use RequireAndVerifyClientCert")
    return ClientAuth(_one_of(place, name or ClientAuth.NONE, tuple(ClientAuth)))


def _one_of(place: Place, value: str, allowed: Mapping[str, str] | tuple[str, ...]) -> str:
    if value not in allowed:
        raise place.error(f"{value!r} is not one of {', '.join(allowed)}")
    return value


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


def _headers(section: Section) -> tuple[tuple[str, str], ...]:
    headers: list[tuple[str, str]] = []
    for place, name, written in section.scalars():
        if name not in _HEADERS:
            raise place.error(f"this header cannot be set; those that can are {', '.join(_HEADERS)}")
        value = written.strip()
        if not value:
            continue
        if not _HEADER_VALUE.fullmatch(value):
            raise place.error("a header's value must be one line of printable ASCII")
        if allowed := _HEADERS[name]:
            _one_of(place, value, allowed)
        headers.append((name, value))
    return tuple(headers)


_BCRYPT: Final = re.compile(r"\$2[aby]\$(0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{53}")


def _users(section: Section) -> dict[str, str]:
    users: dict[str, str] = {}
    for place, name, hashed in section.scalars():
        if ":" in name:
            raise place.error("a user name cannot contain a colon")
        if not _BCRYPT.fullmatch(hashed):
            raise place.error("must be the bcrypt hash of a password ($2y$10$… or the like, 60 characters)")
        users[name] = hashed
    return users


_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_SECONDS: Final = MappingProxyType(
    {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
)


def _rate_limit(section: Section) -> RateLimit | None:
    interval, burst = 0.0, 0
    burst_place = section.place
    for place, name, value in section.scalars():
        if name == "interval":
            interval = _duration(place, value)
        elif name == "burst":
            burst_place = place
            if not re.fullmatch(r"\d{1,9}", value):
                raise place.error("must be a count of requests, 0 or more")
            burst = int(value)
        else:
            raise place.error("unknown key")
    if not interval:
        return None
    if not burst:
        raise burst_place.error("burst must be at least 1 beside an interval: every request would be refused")
    return RateLimit(interval, burst)


def _duration(place: Place, text: str) -> float:
    """Seconds of a duration as Go writes it: `1s`, `500ms`, `1m30s`, `0`."""
    if text in {"", "0"}:
        return 0.0
    if re.sub(_DURATION_PART, "", text):
        raise place.error("must be a duration with a unit: 500ms, 1s, 1m30s, or 0 for no limit")
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text))
