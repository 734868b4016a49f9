"""What a client passes on its way to a page: the configuration in force, its certificates and its rate limit."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom.config.errors import ConfigError
from llm_headroom.net.files import Stamp, stamp
from llm_headroom.net.workers import Workers
from llm_headroom.web import config as web_config
from llm_headroom.web.users import Proved, Users

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping
    from pathlib import Path

_log = logging.getLogger(__name__)

LOOK_AGAIN: Final = 5.0
"""Seconds after which files that could not be used are read again: it may have been descriptors that were missing."""
PATIENCE: Final = 0.5
"""Seconds for which a request waits for a look at the files: a probe of Kubernetes waits for one."""


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


class _Files(NamedTuple):
    """The files of a web configuration, and what they were like before they were read."""

    paths: tuple[Path, ...]
    stamps: tuple[Stamp | None, ...]


class _Found(NamedTuple):
    """What a look at the files has found; `access` or `error` if they were read."""

    files: _Files
    access: Access | None = None
    error: ConfigError | None = None
    seconds: float = 0.0


class Watched:
    """The web configuration in force: read again when one of its files changes; unchanged as long as that fails.

    It is no `net.made_of.MadeOf`: which files it is made of stands in one of them, what fails leaves the former one in
    force, and its thread is its own, so that no disk of a target keeps pages from anybody.
    """

    __slots__ = ("_access", "_again", "_files", "_late", "_path", "_problem", "_proved", "_thread", "_turn")

    def __init__(self, path: Path | None) -> None:
        """Raises ConfigError if the file is unusable; without a path nothing is configured or watched."""
        self._path = path
        self._proved = Proved()
        self._files = _Files((), ())
        self._again, self._problem = math.inf, ""
        self._thread = Workers("web configuration", 1)
        self._turn = asyncio.Lock()
        self._late = False
        self._access = Access(web_config.WebConfig(), self._proved)
        if path is not None:
            found = _look(path, self._files, self._proved)
            if found.error is not None:
                raise found.error
            self._files, self._access = found.files, found.access or self._access

    async def current(self) -> Access:
        """The configuration in force, after a look at whether the files are still those that were read.

        Where a look takes long, as on a disk that hangs, nobody waits for it any longer until it is done.
        """
        if self._path is not None and not self._late:
            async with self._turn:
                if not self._late:
                    await self._looked(self._path)
        return self._access

    async def _looked(self, path: Path) -> None:
        look = partial(_look, path, self._files, self._proved, again=time.monotonic() >= self._again)
        try:
            looking = asyncio.get_running_loop().run_in_executor(self._thread, look)
        except OSError:  # there is no thread: better all wait than that nobody is told of a change
            self._take(look())
            return
        if (await asyncio.wait({looking}, timeout=PATIENCE))[0]:
            self._take(looking.result())
            return
        self._late = True
        _log.warning("web configuration: no answer to a look at its files, what was read before stays in force")
        looking.add_done_callback(self._came)

    def _came(self, looking: asyncio.Future[_Found]) -> None:
        self._late = False
        if not looking.cancelled():
            self._take(looking.result())

    def _take(self, found: _Found) -> None:
        self._files = found.files
        if found.error is not None:
            self._again = time.monotonic() + max(LOOK_AGAIN, 20 * found.seconds)
            if str(found.error) != self._problem:
                _log.error("web configuration not reloaded", extra={"error": str(found.error)})
            self._problem = str(found.error)
        elif found.access is not None:
            self._access = found.access
            self._again, self._problem = math.inf, ""
            _log.info("web configuration reloaded", extra={"file": str(self._path)})


def _look(path: Path, files: _Files, proved: Proved, *, again: bool = False) -> _Found:
    """The files as they are now, and what they say where that is not known, or is asked for again."""
    if not again and files.paths and tuple(map(stamp, files.paths)) == files.stamps:
        return _Found(files)
    began = time.monotonic()
    # Stamps are taken before the files are read: a write in between is found as a change by the next look.
    found = _Files((path,), (stamp(path),))
    try:
        config = web_config.parse(path)
        found = _Files((path, *config.pem_files), (*found.stamps, *map(stamp, config.pem_files)))
        access = Access(config, proved)
    except ConfigError as error:
        return _Found(found, error=error, seconds=time.monotonic() - began)
    for note in config.notes:
        _log.warning("web configuration", extra={"file": str(path), "note": note})
    return _Found(found, access)


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
