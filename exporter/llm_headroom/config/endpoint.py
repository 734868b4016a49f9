"""An engine's address, and how to speak to it: values, and what makes them valid."""

import ipaddress
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Final, NamedTuple, NoReturn, TypeAlias
from urllib.parse import urlsplit

from llm_headroom.config.errors import ConfigError
from llm_headroom.config.kinds import File, Form, Host, KeyFile, Size, Url, User, secret_file
from llm_headroom.config.yaml_nodes import Value

DEFAULT_PORTS: Final = {"http": 80, "https": 443}
VISIBLE: Final = re.compile(r"[\x21-\x7e]+")
"""ASCII without spaces and control characters, for URLs and tokens."""


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret in a file (read again at each use, so that it can be rotated) or in an environment variable."""

    file: Path | None = None
    env: str | None = None


@dataclass(frozen=True, slots=True)
class Bearer:
    """`Authorization: Bearer …`."""

    token: Secret


@dataclass(frozen=True, slots=True)
class Basic:
    """`Authorization: Basic …`."""

    username: str
    password: Secret


def _secret_file(value: Value) -> Secret:
    return Secret(file=secret_file(value))


def _secret_variable(value: Value) -> Secret:
    name = value.string()
    # Without the name in errors, since people write the secret itself in its place.
    if not name.isprintable() or not os.environ.get(name):
        raise ConfigError("this environment variable is not set or is empty")
    return Secret(env=name)


def _secret_itself(value: Value) -> NoReturn:
    raise ConfigError(f"secrets are not allowed in this file: use {value.key}_file or {value.key}_env")


SecretFile: TypeAlias = Annotated[Secret, Form(name="file", read=_secret_file)]
SecretVariable: TypeAlias = Annotated[Secret, Form(name="name", read=_secret_variable)]
Refused: TypeAlias = Annotated[None, Form(read=_secret_itself)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """Credentials as they are configured: a token, or a user name and a password, by file or variable."""

    hides_unknown_keys: ClassVar[bool] = True  # a key that we do not know may be a misplaced secret

    bearer_token_file: SecretFile | None = None
    """File with the token. It must exist when the configuration is read; it is read again at each use, so that it can
    be rotated. Example: `secrets/token`."""
    bearer_token_env: SecretVariable | None = None
    """Environment variable with the token; must be set."""
    username: User | None = None
    """User name for basic authentication."""
    password_file: SecretFile | None = None
    """File with the password, read like `bearer_token_file`."""
    password_env: SecretVariable | None = None
    """Environment variable with the password."""
    bearer_token: Refused = None
    """Not allowed: use a file or a variable."""
    password: Refused = None
    """Not allowed: use a file or a variable."""

    def credentials(self) -> Bearer | Basic:
        """What goes into requests; ConfigError if it is too little or too much."""
        tokens = [each for each in (self.bearer_token_file, self.bearer_token_env) if each]
        passwords = [each for each in (self.password_file, self.password_env) if each]
        match tokens, passwords, self.username:
            case [token], [], None:
                return Bearer(token)
            case [], [password], str(username):
                return Basic(username, password)
        raise ConfigError(
            "expected either one of bearer_token_file and bearer_token_env, "
            "or username with one of password_file and password_env"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """TLS towards an engine: without a CA file the system's certificates are trusted."""

    ca_file: File | None = None
    """Trusted certificates. Default: the system's certificates. Example: `tls/ca.pem`."""
    cert_file: KeyFile | None = None
    """The exporter's client certificate. Example: `tls/client.pem`."""
    key_file: KeyFile | None = None
    """The key of the client certificate. Default: in `cert_file`. Example: `tls/client-key.pem`."""
    server_name: Host | None = None
    """Expected name in the engine's certificate. Default: host of the URL. Example: `llm-a`."""
    insecure_skip_verify: bool = False
    """Accept any certificate. A man in the middle can then read credentials."""


def _checked_tls(tls: Tls) -> Tls:
    if tls.key_file and not tls.cert_file:
        raise ConfigError("key_file needs cert_file")
    return tls


TlsSettings: TypeAlias = Annotated[Tls, Form(finish=_checked_tls)]
Credentials: TypeAlias = Annotated[Bearer | Basic | None, Form(key="auth", section=Auth, finish=Auth.credentials)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An engine's address and how to speak to it; `url` in its one spelling, `http(s)://host[:port][/prefix]`."""

    url: Url
    """`http://` or `https://`, host, port, and a prefix if the engine has one. Without a scheme it is `http`.
    A `/metrics` or `/v1` at the end is removed. A query, a fragment or a password is not allowed. Example:
    `https://llm-a.internal:8000`."""
    tls: TlsSettings = field(default_factory=Tls)
    """TLS towards the engine, only with `https://`; see [TLS](#tls). Default: the system's certificates."""
    credentials: Credentials = None
    """Credentials for the engine; see [Authentication](#authentication)."""
    max_bytes: Size = 16 * 1024 * 1024
    """Maximum size of a response, after decompression."""
    gzip: bool = False
    """Whether to ask for compressed responses. Compression costs the engine more than it saves on a local network."""
    address: Annotated[str, Form(internal=True)] = ""
    """The IP address to connect to, if it is known already: the URL's host is then for Host and TLS alone."""

    @property
    def port(self) -> int:
        """The URL's port, or its scheme's."""
        parts = urlsplit(self.url)
        return parts.port or DEFAULT_PORTS[parts.scheme]


class Origin(NamedTuple):
    """RFC 9110, section 4.3.1: what the URLs of one server have in common."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """The value of a Host header: no default port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


def parse_url(url: str) -> tuple[Origin, str, str]:
    """A URL's origin, its host as it is to be connected to, its path and query."""
    if "@" in url.partition("?")[0]:
        raise ValueError("a target's URL must not contain a user or password; set the target's credentials instead")
    shown = repr(without_query(url))
    if not VISIBLE.fullmatch(url):
        raise ValueError(f"{shown} is not a URL: it holds characters other than visible ASCII ones")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        plain = host.partition("%")[0].rstrip(".")
        if ":" in plain:
            plain = ipaddress.IPv6Address(plain).compressed
    except ValueError:
        raise ValueError(f"{shown} is not a URL: its host or port is malformed") from None
    if parts.scheme not in DEFAULT_PORTS or not plain or port == 0:
        raise ValueError(f"{shown} is not a URL of the form http(s)://host[:port][/prefix]")
    origin = Origin(parts.scheme, plain, port or DEFAULT_PORTS[parts.scheme])
    return origin, host.replace("%25", "%"), f"{parts.path}?{parts.query}" if parts.query else parts.path


def parse_target(url: str) -> tuple[Origin, str, str]:
    """A target's URL as `parse_url` returns it; ValueError if it is not a URL, or has a query."""
    origin, host, path = parse_url(url)
    if "?" in url or "#" in url:
        raise ValueError(f"{without_query(url)!r}: a target's URL must not contain a query or a fragment")
    return origin, host, path.rstrip("/")


def without_query(url: str) -> str:
    """A URL for a message: without its query, which may hold keys and tokens, and not too long."""
    return url.partition("?")[0][:200]


def check(endpoint: Endpoint) -> None:
    """Raises ValueError if certificate, key and credentials do not go together."""
    credentials = endpoint.credentials
    if endpoint.tls.key_file is not None and endpoint.tls.cert_file is None:
        raise ValueError(f"{endpoint.url}: a TLS key file needs a certificate file")
    if credentials is None:
        return
    secret = credentials.token if isinstance(credentials, Bearer) else credentials.password
    if (secret.file is None) == (not secret.env):
        raise ValueError(f"{endpoint.url}: a secret needs either a file or an environment variable")
    if isinstance(credentials, Basic) and (":" in credentials.username or not credentials.username.isprintable()):
        raise ValueError(f"{endpoint.url}: a user name must not contain colons or control characters")
