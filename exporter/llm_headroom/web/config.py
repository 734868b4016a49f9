"""The web configuration file: TLS, access and headers of the exporter's own web server.

The format is the one that Prometheus' exporters share (prometheus/exporter-toolkit, docs/web-configuration.md and
web/tls_config.go), so that one file serves node_exporter and llm-headroom alike.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, Literal, TypeAlias, cast

from llm_headroom.config import reader
from llm_headroom.config.errors import ConfigError, Place, Problems
from llm_headroom.config.kinds import Form
from llm_headroom.config.yaml_nodes import Value


class ClientAuth(StrEnum):
    """How clients must identify themselves; the names are those of Go's crypto/tls ClientAuthType."""

    NONE = "NoClientCert"
    REQUEST = "RequestClientCert"
    VERIFY_IF_GIVEN = "VerifyClientCertIfGiven"
    REQUIRE_AND_VERIFY = "RequireAndVerifyClientCert"


VERIFYING: Final = frozenset({ClientAuth.VERIFY_IF_GIVEN, ClientAuth.REQUIRE_AND_VERIFY})


@dataclass(frozen=True, slots=True)
class Pem:
    """Certificates or a key: the text itself, or the file that holds it."""

    place: Place
    file: Path | None = None
    text: str = field(default="", repr=False)


def _pem_file(value: Value) -> Pem | None:
    return Pem(value.place, file=value.directory / name) if (name := value.string()) else None


def _pem_text(value: Value) -> Pem | None:
    return Pem(value.place, text=text) if (text := value.string()) else None


# Go's suites (crypto/tls CipherSuites) under OpenSSL's names; those of TLS 1.3 cannot be chosen, in Go neither.
_CIPHERS: Final = {
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
_CURVES: Final = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}


def _one_of(allowed: Mapping[str, str], text: str) -> str:
    if text not in allowed:
        raise ConfigError(f"expected one of {', '.join(allowed)}, got {text!r}")
    return allowed[text]


def _client_auth(name: str) -> ClientAuth:
    if name in {"RequireAnyClientCert", "RequireClientCert"}:
        raise ConfigError(f"{name} is not supported: Python verifies each certificate; use RequireAndVerifyClientCert")
    return ClientAuth(_one_of({each: each for each in ClientAuth}, name or ClientAuth.NONE))


PemFile: TypeAlias = Annotated[Pem | None, Form(read=_pem_file)]
Version: TypeAlias = Literal["TLS10", "TLS11", "TLS12", "TLS13"]
Cipher: TypeAlias = Annotated[str, Form(parse=lambda text: _one_of(_CIPHERS, text))]
Curve: TypeAlias = Annotated[str, Form(parse=lambda text: _one_of(_CURVES, text))]


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsServer:
    """`tls_server_config`.

    Versions are spelt TLS10 to TLS13. `cipher_suites` and `curves` are OpenSSL's names, the former empty for suites of
    TLS 1.3, the latter in order of preference.
    """

    place: Place
    cert_text: Annotated[Pem | None, Form(key="cert", read=_pem_text)] = None
    cert_file: PemFile = None
    key_text: Annotated[Pem | None, Form(key="key", read=_pem_text)] = None
    key_file: PemFile = None
    client_ca_text: Annotated[Pem | None, Form(key="client_ca", read=_pem_text)] = None
    client_ca_file: PemFile = None
    client_auth: Annotated[ClientAuth, Form(key="client_auth_type", parse=_client_auth)] = ClientAuth.NONE
    client_allowed_sans: tuple[str, ...] = ()
    min_version: Version = "TLS12"
    max_version: Version = "TLS13"
    cipher_suites: tuple[Cipher, ...] = ()
    curves: Annotated[tuple[Curve, ...], Form(key="curve_preferences")] = ()
    prefer_server_ciphers: Annotated[bool, Form(key="prefer_server_cipher_suites")] = True

    def __post_init__(self) -> None:
        for key in ("cert", "key", "client_ca"):
            if getattr(self, f"{key}_text") and getattr(self, f"{key}_file"):
                raise ConfigError(f"excludes {key}_file: give one of the two", key)
        for key in ("cert", "key"):
            if not (getattr(self, f"{key}_text") or getattr(self, f"{key}_file")):
                raise ConfigError(f"{key}_file (or {key}) is missing")
        if self.min_version > self.max_version:
            raise ConfigError(f"{self.max_version} is below min_version, {self.min_version}", "max_version")
        if self.client_ca is not None and self.client_auth is ClientAuth.NONE:
            key = "client_ca" if self.client_ca_text else "client_ca_file"
            raise ConfigError("needs a client_auth_type: RequireAndVerifyClientCert, say", key)
        if self.client_allowed_sans and self.client_auth not in VERIFYING:
            problem = "needs a client_auth_type that verifies certificates: RequireAndVerifyClientCert, say"
            raise ConfigError(problem, "client_allowed_sans")
        if self.ciphers == () and self.max_version != "TLS13":
            raise ConfigError(f"lists suites of TLS 1.3 alone, but max_version is {self.max_version}", "cipher_suites")

    @property
    def cert(self) -> Pem:
        """The server's certificate and what it is signed with."""
        return cast("Pem", self.cert_text or self.cert_file)  # one of them is there, else this was refused

    @property
    def key(self) -> Pem:
        """The certificate's private key."""
        return cast("Pem", self.key_text or self.key_file)

    @property
    def client_ca(self) -> Pem | None:
        """The certificates that sign those of clients; None for the system's."""
        return self.client_ca_text or self.client_ca_file

    @property
    def ciphers(self) -> tuple[str, ...] | None:
        """Suites up to TLS 1.2; None for the defaults, empty where only suites of TLS 1.3 were listed."""
        return tuple(filter(None, self.cipher_suites)) if self.cipher_suites else None


_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


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


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A token bucket for all clients together: one request every `interval` seconds, `burst` of them at once."""

    interval: Annotated[float, Form(parse=_duration, scalar=True)] = 0.0
    burst: Annotated[int, Form(parse=_count, scalar=True)] = 0

    def __post_init__(self) -> None:
        if self.interval and not self.burst:
            raise ConfigError("burst must be at least 1 beside an interval: every request would be refused", "burst")


# What exporter-toolkit's web/handler.go lets through, and the values where it restricts them.
_HEADERS: Final = {
    "Content-Security-Policy": (),
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
}


def _header(value: Value) -> str:
    if value.key not in _HEADERS:
        raise ConfigError(f"this header cannot be set; those that can are {', '.join(_HEADERS)}")
    text = value.scalar().strip()
    if text and not re.fullmatch(r"[\t\x20-\x7e]+", text):
        raise ConfigError("a header's value must be one line of printable ASCII")
    if text and (allowed := _HEADERS[value.key]):
        _one_of({each: each for each in allowed}, text)
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpServer:
    """`http_server_config`."""

    http2: bool | None = None
    headers: Mapping[str, Annotated[str, Form(read=_header)]] = field(default_factory=dict)


def _user(text: str) -> str:
    if ":" in text:
        raise ConfigError("a user name cannot contain a colon")
    return text


def _bcrypt(text: str) -> str:
    if not re.fullmatch(r"\$2[aby]\$(0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{53}", text):
        raise ConfigError("must be the bcrypt hash of a password (such as $2y$10$…, 60 characters)")
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class WebFile:
    """The file as it is written."""

    tls_server_config: TlsServer | None = None
    http_server_config: HttpServer = field(default_factory=HttpServer)
    basic_auth_users: Mapping[
        Annotated[str, Form(parse=_user, scalar=True)], Annotated[str, Form(parse=_bcrypt, scalar=True)]
    ] = field(default_factory=lambda: MappingProxyType({}))
    rate_limit: RateLimit = field(default_factory=RateLimit)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebConfig:
    """A web configuration file that was read. `notes` say which entries have no effect here."""

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


def parse(path: Path) -> WebConfig:
    """Reads a web configuration file without opening the certificates that it names.

    Raises:
        ConfigError: the file cannot be read or is not of this format.
    """
    problems = Problems()
    given = reader.read(path, WebFile, problems)
    problems.check()
    file = WebFile(**given)
    notes = _notes(file.tls_server_config) if file.tls_server_config else []
    if file.http_server_config.http2 is not None:
        notes.append("http_server_config.http2 has no effect: this server speaks HTTP/1.1")
    return WebConfig(
        tls=file.tls_server_config,
        headers=tuple((name, text) for name, text in file.http_server_config.headers.items() if text),
        users=file.basic_auth_users,
        rate_limit=file.rate_limit if file.rate_limit.interval else None,
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
