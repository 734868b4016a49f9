"""What a client passes on its way to a page: the configuration in force, basic authentication, the rate limit."""

from __future__ import annotations

import asyncio
import binascii
import logging
import math
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from llm_headroom.net.files import stamp
from llm_headroom.net.threads import NoThreadError
from llm_headroom.net.workers import Workers
from llm_headroom.web import config as web_config

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping
    from pathlib import Path

    from llm_headroom.net.files import Stamp

_log = logging.getLogger(__name__)

LOOK_AGAIN: Final = 5.0
"""Seconds after which files that could not be used are read again: it may have been descriptors that were missing."""
_VERIFIED_LIMIT: Final = 256
_CHECKS_LIMIT: Final = 64
"""Passwords that wait to be checked."""
_CHECKING = Workers("passwords", 1)


class TooManyChecksError(Exception):
    """So many passwords wait to be checked that this one is not: somebody is trying many, or far too many ask."""


class Access:
    """One web configuration, ready for use. A changed file makes a new one; what was proved before goes on to count."""

    __slots__ = ("config", "rate", "tls", "users")

    def __init__(self, config: web_config.WebConfig, proved: Proved) -> None:
        """Raises WebConfigError if the certificates are unusable."""
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
        """Raises WebConfigError if the file is unusable; without a path nothing is configured or watched."""
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
            except web_config.WebConfigError as error:
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


class Proved:
    """Users, hashes and passwords that were found to go together, as salted digests: never as the passwords."""

    __slots__ = ("_digests", "_salt")

    def __init__(self) -> None:
        """Starts empty."""
        self._salt = os.urandom(32)
        self._digests: dict[bytes, None] = {}

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._digests

    def add(self, digest: bytes) -> None:
        """Remember one more; of too many the oldest is forgotten."""
        if len(self._digests) >= _VERIFIED_LIMIT:
            del self._digests[next(iter(self._digests))]
        self._digests[digest] = None

    def digest(self, user: str, hashed: str, password: bytes) -> bytes:
        """What stands for the three; with another hash of the user's it is another one."""
        from hashlib import blake2b  # noqa: PLC0415 - only a server with users pays for it

        name = user.encode()
        digest = blake2b(len(name).to_bytes(8, "big"), key=self._salt, digest_size=32)
        digest.update(name)
        digest.update(hashed.encode())  # always 60 characters
        digest.update(password)
        return digest.digest()


class Users:
    """Basic authentication against bcrypt hashes.

    A bcrypt check takes some 50 to 100 ms by design. It runs in a thread, one at a time, the newest first: those who
    guess wait for one another, and who has just come with the right password waits for one check at most.
    """

    __slots__ = ("_checking", "_hashes", "_proved", "_waiting")

    def __init__(self, hashes: Mapping[str, str], proved: Proved) -> None:
        """`hashes` are bcrypt hashes by user name, at least one."""
        self._hashes = hashes
        self._proved = proved
        self._checking = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def admit(self, authorization: str) -> bool:
        """Whether the value of an Authorization header names a user and the user's password.

        Raises:
            TooManyChecksError: too many newer checks are waiting. One that was right before never waits.
        """
        credentials = _credentials(authorization)
        if credentials is None:
            return False
        user, password = credentials
        known = self._hashes.get(user)
        # An unknown name is checked against some user's hash, so that it takes as long as a wrong password.
        hashed = known or next(iter(self._hashes.values()))
        digest = self._proved.digest(user, hashed, password)
        if known and digest in self._proved:
            return True
        await self._turn()
        try:
            if known and digest in self._proved:
                return True
            loop = asyncio.get_running_loop()
            right = await loop.run_in_executor(_CHECKING, _matches, password, hashed.encode())
        except NoThreadError as error:
            raise TooManyChecksError from error
        finally:
            self._pass_on()
        if not (right and known):
            return False
        self._proved.add(digest)
        return True

    async def _turn(self) -> None:
        """Waits until this check is the one to be made."""
        if not self._checking:
            self._checking = True
            return
        if len(self._waiting) >= _CHECKS_LIMIT:
            self._waiting.popleft().set_exception(TooManyChecksError())
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting.remove(turn)
            elif turn.exception() is None:
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        if self._waiting:
            self._waiting.pop().set_result(None)
        else:
            self._checking = False


def _matches(password: bytes, hashed: bytes) -> bool:
    import bcrypt  # noqa: PLC0415 - only a server with users pays for it

    try:
        # bcrypt has never looked at more than 72 bytes; its newer versions refuse longer ones instead.
        return bcrypt.checkpw(password[:72], hashed)
    except ValueError:
        return False


def _credentials(authorization: str) -> tuple[str, bytes] | None:
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = binascii.a2b_base64(encoded.strip(), strict_mode=True).partition(b":")
        return (user.decode(), password) if colon else None
    except ValueError:
        return None


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
