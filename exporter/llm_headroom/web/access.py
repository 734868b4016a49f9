"""What a client passes on its way to a page: the configuration in force, its certificates and its rate limit."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Final

from llm_headroom.config.errors import ConfigError
from llm_headroom.net.files import stamp
from llm_headroom.web import config as web_config
from llm_headroom.web.users import Proved, Users

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping
    from pathlib import Path

    from llm_headroom.net.files import Stamp

_log = logging.getLogger(__name__)

LOOK_AGAIN: Final = 5.0
"""Seconds after which files that could not be used are read again: it may have been descriptors that were missing."""


class Access:
    """One web configuration, ready for use. A changed file makes a new one; what was proved before goes on to count."""

    __slots__ = ("config", "rate", "tls", "users")

    def __init__(self, config: web_config.WebConfig, proved: Proved) -> None:
        """Raises ConfigError if the certificates are unusable."""
        self.config = config
        self.tls: ssl.SSLContext | None = None
        if config.tls is not None:
            from llm_headroom.web.tls import server_context  # noqa: PLC0415 - only a configuration with TLS pays for it

            self.tls = server_context(config.tls)
        self.users = Users(config.users, proved) if config.users else None
        self.rate = TokenBucket(config.rate_limit) if config.rate_limit else None

    def admits_certificate(self, certificate: Mapping[str, object] | None) -> bool:
        """Whether the client's certificate, if it gave one, bears an allowed name."""
        tls = self.config.tls
        if tls is None or not tls.client_allowed_sans or not certificate:
            return True
        from llm_headroom.web.tls import names_one_of  # noqa: PLC0415 - only a configuration with TLS pays for it

        return names_one_of(certificate, tls.client_allowed_sans)


class Watched:
    """The web configuration in force: read again when one of its files changes; unchanged as long as that fails."""

    __slots__ = ("_access", "_again", "_path", "_problem", "_proved", "_stamps", "_watched")

    def __init__(self, path: Path | None) -> None:
        """Raises ConfigError if the file is unusable; without a path nothing is configured or watched."""
        self._path = path
        self._proved = Proved()
        self._watched: tuple[Path, ...] = ()
        self._stamps: tuple[Stamp | None, ...] = ()
        self._again, self._problem = math.inf, ""
        self._access = Access(web_config.WebConfig(), self._proved) if path is None else self._read(path)

    def current(self) -> Access:
        """The configuration in force, after a look at whether the files are still those that were read."""
        if self._path is not None and (
            tuple(map(stamp, self._watched)) != self._stamps or time.monotonic() >= self._again
        ):
            began = time.monotonic()
            try:
                self._access = self._read(self._path)
            except ConfigError as error:
                end = time.monotonic()
                self._again = end + max(LOOK_AGAIN, 20 * (end - began))
                if str(error) != self._problem:
                    _log.error("web configuration not reloaded", extra={"error": str(error)})
                self._problem = str(error)
            else:
                self._again, self._problem = math.inf, ""
                _log.info("web configuration reloaded", extra={"file": str(self._path)})
        return self._access

    def _read(self, path: Path) -> Access:
        # Stamps are taken before the files are read: a write in between is found as a change by the next look.
        self._watched = (path,)
        self._stamps = (stamp(path),)
        config = web_config.parse(path)
        self._watched += config.pem_files
        self._stamps += tuple(map(stamp, config.pem_files))
        access = Access(config, self._proved)
        for note in config.notes:
            _log.warning("web configuration", extra={"file": str(path), "note": note})
        return access


class TokenBucket:
    """The rate limit: a token every `interval` seconds, at most `burst` of them saved up."""

    __slots__ = ("_burst", "_interval", "_tokens", "_when")

    def __init__(self, limit: web_config.RateLimit) -> None:
        """Starts full."""
        self._interval = limit.interval
        self._burst = limit.burst
        self._tokens = float(limit.burst)
        self._when: float | None = None

    def take(self, now: float) -> bool:
        """Takes a token at a moment of a monotonic clock (seconds), if there is one."""
        if self._when is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._when) / self._interval)
        self._when = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
