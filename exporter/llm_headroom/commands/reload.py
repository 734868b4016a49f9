"""A changed configuration in a running exporter: when it is read again, and what it then reaches."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom import clock
from llm_headroom.config.errors import ConfigError, UnreadError
from llm_headroom.net.files import stamp
from llm_headroom.net.threads import NoThreadError, in_thread
from llm_headroom.poll.published import Reload

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llm_headroom.config.settings import Config
    from llm_headroom.net.files import Stamp
    from llm_headroom.notify.notifier import Notifier
    from llm_headroom.otlp.pusher import Pusher
    from llm_headroom.poll.published import Published
    from llm_headroom.proxy.service import Proxies

log = logging.getLogger("llm_headroom")

LOOK_AT_FILE: Final = 5.0
"""Seconds between checks of the configuration file for changes."""
NOT_RELOADED: Final = ("listen", "proxies", "web_config", "log")


class Watched(NamedTuple):
    """A configuration file and its state before it was read, so that no change in between is missed."""

    path: Path
    identity: Stamp | None


def watched(path: Path) -> Watched:
    """A file to watch from now on."""
    return Watched(path, stamp(path))


async def watch(file: Watched, wanted: asyncio.Event) -> None:
    """Asks for a reload whenever the file has changed."""
    known = file.identity
    while True:
        await asyncio.sleep(LOOK_AT_FILE)
        try:
            now = await in_thread(partial(stamp, file.path), "watch")  # its disk may hang
        except NoThreadError:
            now = stamp(file.path)
        if now is not None and now != known:
            known = now
            wanted.set()


class Running(NamedTuple):
    """The parts of an exporter that a reload reaches."""

    published: Published
    proxies: Proxies
    pusher: Pusher
    notifier: Notifier

    async def apply(self, config: Config) -> None:
        """Goes on by another configuration, as far as that needs no restart."""
        await self.pusher.apply(config.otlp)
        old = self.published.poller.config
        fixed = {name for name in NOT_RELOADED if getattr(old, name) != getattr(config, name)}
        if not await self.proxies.apply(config):
            fixed.add("proxies")
        if fixed:
            log.warning("not applied, restart required", extra={"keys": ",".join(sorted(fixed))})
        await self.published.poller.apply(config)
        self.notifier.apply(config.notify)
        log.info("configuration reloaded", extra={"targets": len(config.targets)})


async def reload(
    running: Running, read: Callable[[], Config], wanted: asyncio.Event, changed: Callable[[], None]
) -> None:
    """Reads and applies the configuration whenever that is wanted, and tells of each attempt; never returns."""
    published = running.published
    unread = ""
    while True:
        await wanted.wait()
        wanted.clear()
        said, unread = unread, ""
        try:
            # In a thread, since thousands of targets take seconds: others have their turn.
            await running.apply(await in_thread(read, "reload"))
        except (ConfigError, NoThreadError) as error:
            if str(error) != said:
                log.error("configuration not reloaded", extra={"error": str(error)})  # noqa: TRY400 - no defect of ours
            published.reload = published.reload._replace(error=str(error))
            if isinstance(error, UnreadError | NoThreadError):  # what is missing now may be there then
                unread = str(error)
                asyncio.get_running_loop().call_later(LOOK_AT_FILE, wanted.set)
        except Exception as error:  # the next one may go well
            log.exception("configuration not reloaded: internal error (bug)")
            defect = f"{type(error).__name__} in llm-headroom; see its log"
            published.reload = published.reload._replace(error=defect)
        else:
            published.reload = Reload(clock.now())
        changed()
