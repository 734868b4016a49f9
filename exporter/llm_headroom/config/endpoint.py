"""An engine's address, and how to speak to it: values, and what makes them valid."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_PORTS: Final = {"http": 80, "https": 443}
VISIBLE: Final = re.compile(r"[\x21-\x7e]+")
"""ASCII without blanks and control characters: what URLs and tokens are made of."""


@dataclass(frozen=True, slots=True)
class Secret:
    """Where a secret lies: a file (read anew at each use, so that it may be rotated) or an environment variable."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """TLS towards an engine: without a CA file the system's certificates are trusted."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str | None = None
    insecure_skip_verify: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An engine's address and how to speak to it.

    `url` is `http(s)://host[:port][/prefix]`, `max_bytes` caps a body after decompression, `gzip` asks for
    compressed bodies (off by default: compressing costs the engine more than the bytes cost a local network).
    """

    url: str
    tls: Tls = field(default_factory=Tls)
    credentials: Bearer | Basic | None = None
    max_bytes: int = 16 * 1024 * 1024
    gzip: bool = False


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
        raise ValueError("a target's URL must not hold a user name or password; set the target's credentials instead")
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
    """A target's URL as `parse_url` gives it; ValueError if it is none, or has a query."""
    origin, host, path = parse_url(url)
    if "?" in url or "#" in url:
        raise ValueError(f"{without_query(url)!r}: a target's URL must not hold a query or a fragment")
    return origin, host, path.rstrip("/")


def without_query(url: str) -> str:
    """A URL for a message: without its query, which may hold keys and tokens, and not too long."""
    return url.partition("?")[0][:200]


def check(endpoint: Endpoint) -> None:
    """Raises ValueError if certificate, key and credentials do not go together."""
    credentials = endpoint.credentials
    if endpoint.tls.key_file is not None and endpoint.tls.cert_file is None:
        raise ValueError(f"{endpoint.url}: a TLS key file is of no use without a certificate file")
    if credentials is None:
        return
    secret = credentials.token if isinstance(credentials, Bearer) else credentials.password
    if (secret.file is None) == (not secret.env):
        raise ValueError(f"{endpoint.url}: a secret needs either a file or an environment variable")
    if isinstance(credentials, Basic) and (":" in credentials.username or not credentials.username.isprintable()):
        raise ValueError(f"{endpoint.url}: a user name must hold neither colons nor control characters")
