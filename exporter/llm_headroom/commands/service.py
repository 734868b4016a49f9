"""The exporter as a service: wires poller, server, proxies and pusher; reloads, ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom import __version__, clock
from llm_headroom.commands.certificates import Certificates
from llm_headroom.config.errors import ConfigError, UnreadError
from llm_headroom.net import descriptors
from llm_headroom.net.files import stamp
from llm_headroom.net.http_connection import Limits
from llm_headroom.net.listen import ListenError
from llm_headroom.net.threads import NoThreadError, in_thread
from llm_headroom.net.workers import Workers
from llm_headroom.notify.notifier import Notifier
from llm_headroom.otlp.pusher import Pusher
from llm_headroom.otlp.tally import Tally
from llm_headroom.poll.poller import Poller
from llm_headroom.poll.published import Published, Reload
from llm_headroom.proxy.service import Proxies
from llm_headroom.web.app import App
from llm_headroom.web.server import serve

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import FrameType

    from llm_headroom.config.settings import Config
    from llm_headroom.net.files import Stamp
    from llm_headroom.net.http_server import HttpServer

log = logging.getLogger("llm_headroom")

LOOK_AT_FILE: Final = 5.0
"""Seconds between checks of the configuration file for changes."""
YOUNG_OBJECTS: Final = 20_000
"""New containers after which the garbage collector looks at the young ones; 700 is Python's default."""
END_SECONDS: Final = 5
"""After which the process is gone, however it came to be asked."""
GRACE_SECONDS: Final = 3.0
"""For answers under way at the end."""
MOST_NAMES: Final = 64
"""Host names that are looked up at once."""
NOT_RELOADED: Final = ("listen", "proxies", "web_config", "log")


class Watched(NamedTuple):
    """A configuration file and its state before it was read, so that no change in between is missed."""

    path: Path
    identity: Stamp | None


def watched(path: Path) -> Watched:
    """A file to watch from now on."""
    return Watched(path, stamp(path))


async def run(config: Config, *, file: Watched | None, read: Callable[[], Config]) -> None:
    """Serve until SIGTERM or SIGINT.

    `file` is the configuration file to watch, `read` reads file and flags again (on SIGHUP, or when the file changes).

    Raises:
        llm_headroom.net.listen.ListenError: an address cannot be listened on.
        llm_headroom.config.errors.ConfigError: the web configuration is wrong.
    """
    loop = asyncio.get_running_loop()
    loop.set_default_executor(Workers("names", MOST_NAMES, shared=True))  # asyncio looks up names there
    room = descriptors.shares(descriptors.available(), len(config.targets))
    proxies = Proxies(config, connections=room.proxied)
    poller = Poller(config, beside=proxies.sources, measured=proxies.joined)
    tally = Tally()
    notifier = Notifier(poller.snapshots, lambda: {target.name: target.labels for target in poller.config.targets})
    certificates = Certificates(lambda: poller.config)
    published = Published(poller, lambda: [*tally.points(), *notifier.points(), *certificates.points()])
    app = App(published, lambda: [*notifier.problems(), *certificates.problems(), *poller.strain.problems()])

    def changed() -> None:
        app.changed()
        notifier.changed()

    pusher = Pusher(
        tally,
        sources=published.sources,
        changed=app.changed,
        ready=poller.first_round,
        port=config.listen[0].rpartition(":")[2],
    )
    poller.on_change(changed)
    notifier.apply(config.notify)
    proxies.know_engines_by(poller.models, poller.polled)
    limits = Limits(connections=room.own, grace_seconds=GRACE_SECONDS)
    server = await serve(app.handle, config.listen, web_config=config.web_config, limits=limits)
    try:
        await proxies.start()
    except ListenError:
        await server.close()
        raise
    ended, reload = asyncio.Event(), asyncio.Event()

    def must_end(_number: int, _frame: FrameType | None) -> None:
        # First of all, and without any memory of its own: whatever a thread or a library does, the kernel ends it then.
        signal.alarm(END_SECONDS)
        loop.call_soon_threadsafe(ended.set)

    for number in (signal.SIGTERM, signal.SIGINT):
        # Python's own handler, and not the loop's: it also runs while the loop's thread waits for a lock.
        signal.signal(number, must_end)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    # What is loaded by now stays; a poll leaves no cycles behind, so that young objects need not be looked at often.
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 50)
    log.info("listening", extra={"version": __version__, "addresses": ",".join(server.addresses)})
    poller.start()
    await pusher.apply(config.otlp)
    watching = loop.create_task(_watch(file, reload)) if file is not None else None
    reloading = loop.create_task(_reload(published, proxies, pusher, notifier, app.changed, read, reload))
    try:
        await ended.wait()
    finally:
        log.info("ending")
        for task in (watching, reloading):
            if task is not None:
                task.cancel()
        await proxies.close()
        await _end(server, poller, app, pusher, notifier)


async def _end(server: HttpServer, poller: Poller, app: App, pusher: Pusher, notifier: Notifier) -> None:
    """Close everything, each as far as it goes in the time that is left."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(END_SECONDS - 1):
            await asyncio.gather(notifier.close(), pusher.close(), server.close(), return_exceptions=True)
            await asyncio.gather(poller.stop(), app.close(), return_exceptions=True)


async def _watch(file: Watched, reload: asyncio.Event) -> None:
    known = file.identity
    while True:
        await asyncio.sleep(LOOK_AT_FILE)
        try:
            now = await in_thread(partial(stamp, file.path), "watch")  # its disk may hang
        except NoThreadError:
            now = stamp(file.path)
        if now is not None and now != known:
            known = now
            reload.set()


async def _reload(  # noqa: PLR0913, PLR0917 - all that a reload reaches
    published: Published,
    proxies: Proxies,
    pusher: Pusher,
    notifier: Notifier,
    changed: Callable[[], None],
    read: Callable[[], Config],
    reload: asyncio.Event,
) -> None:
    unread = ""
    while True:
        await reload.wait()
        reload.clear()
        said, unread = unread, ""
        try:
            await _applied(published, proxies, pusher, notifier, read)
        except (ConfigError, NoThreadError) as error:
            if str(error) != said:
                log.error("configuration not reloaded", extra={"error": str(error)})  # noqa: TRY400 - no defect of ours
            published.reload = published.reload._replace(error=str(error))
            if isinstance(error, UnreadError | NoThreadError):  # what is missing now may be there then
                unread = str(error)
                asyncio.get_running_loop().call_later(LOOK_AT_FILE, reload.set)
        except Exception as error:  # the next one may go well
            log.exception("configuration not reloaded: internal error (bug)")
            defect = f"{type(error).__name__} in llm-headroom; see its log"
            published.reload = published.reload._replace(error=defect)
        else:
            published.reload = Reload(clock.now())
        changed()


async def _applied(
    published: Published, proxies: Proxies, pusher: Pusher, notifier: Notifier, read: Callable[[], Config]
) -> None:
    config = await in_thread(read, "reload")  # thousands of targets take seconds: others have their turn
    await pusher.apply(config.otlp)
    old = published.poller.config
    fixed = {name for name in NOT_RELOADED if getattr(old, name) != getattr(config, name)}
    if not await proxies.apply(config):
        fixed.add("proxies")
    if fixed:
        log.warning("not applied, restart required", extra={"keys": ",".join(sorted(fixed))})
    await published.poller.apply(config)
    notifier.apply(config.notify)
    log.info("configuration reloaded", extra={"targets": len(config.targets)})
