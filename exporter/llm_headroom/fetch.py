"""The HTTP client: one connection to one engine, kept alive between polls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Secret:
    """Where a secret lies: a file (read anew each time it is used, so that it may be rotated) or an environment variable."""

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
