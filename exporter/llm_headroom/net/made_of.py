"""What is made of files that may be replaced, on disks that may hang: read in threads, of which there are so many."""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from llm_headroom.net.files import named, stamp
from llm_headroom.net.threads import NoThreadError
from llm_headroom.net.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from pathlib import Path

    from llm_headroom.net.files import Stamp

T = TypeVar("T")

log = logging.getLogger("llm_headroom")

PATIENCE: Final = 0.5
"""Seconds for which a look at files is waited for where it is known what they held."""
_READING: Final = Workers("files", 16, shared=True)
"""Shared: thousands of targets with one file on a disk that hangs take one thread."""
_LATE: Final[set[tuple[Path, ...]]] = set()
"""Files of which it was said that they are waited for: once, and not for each that uses them."""


async def beside(work: Callable[..., T], *given: Hashable) -> T:
    """What some work gives that reads files, done in a thread; where there is none to be had, all else waits.

    Raises:
        Exception: what the work raises.
        OSError: too much of it waits.
    """
    try:
        future = asyncio.get_running_loop().run_in_executor(_READING, work, *given)
    except NoThreadError:
        return work(*given)
    return await future


class MadeOf(Generic[T]):
    """Something that is made of files, once and again whenever one of them has changed.

    `make` gets what was `given`; where it fails, it is asked again at the next use.
    """

    __slots__ = ("_given", "_known", "_look", "_make", "files")

    def __init__(self, files: Sequence[Path], make: Callable[..., T], *given: Hashable) -> None:
        self.files = tuple(files)
        self._make, self._given = make, given
        self._known: tuple[tuple[Stamp | None, ...], T] | None = None
        self._look: asyncio.Future[Any] | None = None

    @property
    def reading(self) -> bool:
        """Whether the files are being looked at."""
        return self._look is not None

    async def now(self) -> T:
        """It by the files as they are now; by what they held before where looking at them takes long.

        Raises:
            Exception: what `make` raises.
            OSError: nothing is known of the files, and too many others are waited for.
        """
        if self._look is None:
            self._begin()
        elif self._known is not None:
            return self._known[1]
        look = self._look
        if look is not None:
            await asyncio.wait({look}, timeout=None if self._known is None else PATIENCE)
            if look.done():
                look.result()
            elif self.files not in _LATE:
                _LATE.add(self.files)
                fields = {"files": ",".join(named(file, "(not shown)") for file in self.files)}
                log.warning("no answer to a look at files, what they held before is used", extra=fields)
        if self._known is None:  # it was there, and is no longer: another one who waited has asked once more
            return await self.now()
        return self._known[1]

    def _begin(self) -> None:
        work = self.files, None if self._known is None else self._known[0], self._make, self._given
        try:
            if self.files:
                self._look = asyncio.get_running_loop().run_in_executor(_READING, _made, *work)
                self._look.add_done_callback(self._came)
                return
        except NoThreadError:
            pass  # better all wait than that a change is missed
        except OSError as error:
            if self._known is None:
                raise OSError(errno.EAGAIN, "too many files are waited for: does a disk hang?") from error
            return
        known, self._known = self._known, None
        self._known = _made(*work) or known

    def _came(self, look: asyncio.Future[Any]) -> None:
        self._look = None
        _LATE.discard(self.files)
        if look.cancelled():
            return
        self._known = None if look.exception() is not None else look.result() or self._known


def _made(
    files: tuple[Path, ...], before: tuple[Stamp | None, ...] | None, make: Callable[..., T], given: tuple[Any, ...]
) -> tuple[tuple[Stamp | None, ...], T] | None:
    """What is made of files, with their stamps of before it: a write in between is a change at the next look."""
    stamps = tuple(map(stamp, files))
    return None if stamps == before else (stamps, make(*given))
