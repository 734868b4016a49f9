"""When the certificates run out that llm-headroom shows of itself: as a server, to engines and to receivers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from llm_headroom import schema
from llm_headroom.config.errors import ConfigError, UnreadError
from llm_headroom.derive.words import span
from llm_headroom.model import Point, Series
from llm_headroom.net.certificate import validity
from llm_headroom.net.files import content, stamp
from llm_headroom.net.made_of import beside
from llm_headroom.thresholds import DEFAULT
from llm_headroom.web import config as web_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from llm_headroom.config.settings import Config
    from llm_headroom.net.certificate import Validity
    from llm_headroom.net.files import Stamp


_Found = TypeVar("_Found")

LOOK_AGAIN: Final = 5.0
"""Seconds between looks at the files, and for which one is waited for: the service begins with one."""


class _Files(Generic[_Found]):
    """What was read of files; a file is read again when it has changed, or could not be read."""

    def __init__(self, read: Callable[[Path], _Found]) -> None:
        self._read = read
        self._known: dict[Path, tuple[Stamp | None, _Found]] = {}

    def of(self, file: Path) -> _Found | None:
        now, known = stamp(file), self._known.get(file)
        if known is None or known[0] != now:
            try:
                known = self._known[file] = now, self._read(file)
            except (OSError, UnreadError):  # what is missing now may be there the next time
                return None
        return known[1]


class Certificates:
    """Those of the configuration in force; one whose file cannot be read, or holds no certificate, is absent.

    A look at the files is made in a thread, since a disk may hang; meanwhile holds what was seen before.
    """

    def __init__(self, config: Callable[[], Config]) -> None:
        self._config = config
        self._validity = _Files(_validity)
        self._served = _Files(_served)
        self._valid: tuple[tuple[Path, Validity], ...] = ()

    async def watch(self) -> None:
        """Look again and again; never returns."""
        while True:
            await asyncio.sleep(LOOK_AGAIN)
            await self.look()

    async def look(self) -> None:
        """See what the files hold now."""
        config = self._config()
        if config.web_config is None and not any(_shown(config)):
            self._valid = ()
            return
        with contextlib.suppress(OSError):  # too many others wait, or this takes too long: the next look joins it
            async with asyncio.timeout(LOOK_AGAIN):
                self._valid = await beside(self._seen, config.web_config, tuple(_shown(config)))

    def points(self) -> Iterator[Point]:
        """Begin and end of the validity of each file's first certificate to run out."""
        for file, valid in self._valid:
            labels = {"file": str(file)}
            yield Point(Series(schema.CERTIFICATE_NOT_BEFORE, labels), valid.begin, "")
            yield Point(Series(schema.CERTIFICATE_NOT_AFTER, labels), valid.end, "")

    def problems(self) -> Iterable[str]:
        """What runs out soon, has run out or is not valid yet, in words, by the alert's thresholds."""
        now = time.time()
        for file, (begin, end) in self._valid:
            if begin > now:
                yield f"The certificate in {file} is not valid before {span(begin - now)} have passed"
            elif end - now < min(DEFAULT.certificate_soon, DEFAULT.certificate_share * (end - begin)):
                yield f"The certificate in {file} " + (
                    f"ran out {span(now - end)} ago" if end <= now else f"runs out in {span(end - now)}"
                )

    def _seen(self, web: Path | None, shown: tuple[Path, ...]) -> tuple[tuple[Path, Validity], ...]:
        served = None if web is None else self._served.of(web)
        files = dict.fromkeys(shown if served is None else (served, *shown))
        return tuple((file, valid) for file in files if (valid := self._validity.of(file)) is not None)


def _shown(config: Config) -> Iterator[Path]:
    """Files of certificates that are shown to others."""
    clients = [target.endpoint.tls for target in config.targets] + [each.tls for each in config.notify]
    if config.otlp is not None:
        clients.append(config.otlp.tls)
    yield from (tls.cert_file for tls in clients if tls.cert_file is not None)


def _validity(file: Path) -> Validity | None:
    return validity(content(file))


def _served(path: Path) -> Path | None:
    """The file that holds the server's certificate: the web configuration itself, where it is written there."""
    try:
        tls = web_config.parse(path).tls
    except UnreadError:
        raise
    except ConfigError:
        return None  # the server goes on with what it read before, and says so
    return None if tls is None else tls.cert.file or path
