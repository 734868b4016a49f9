"""Basic authentication: who has the password of which user, checked against bcrypt hashes."""

from __future__ import annotations

import asyncio
import binascii
import os
from collections import deque
from typing import TYPE_CHECKING, Final

from llm_headroom.net.threads import NoThreadError
from llm_headroom.net.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Mapping

_VERIFIED_LIMIT: Final = 256
_CHECKS_LIMIT: Final = 64
"""Passwords that wait to be checked."""
_CHECKING = Workers("passwords", 1)


class TooManyChecksError(Exception):
    """So many passwords wait to be checked that this one is not: somebody is trying many, or far too many ask."""


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
