"""The exporter as a service: wires poller, server, proxies and pusher, and ends them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
from typing import TYPE_CHECKING, Final

from llm_headroom import __version__
from llm_headroom.commands.certificates import Certificates
from llm_headroom.commands.reload import Running, Watched, reload, watch
from llm_headroom.net import descriptors
from llm_headroom.net.http_connection import Limits
from llm_headroom.net.listen import ListenError
from llm_headroom.net.workers import Workers
from llm_headroom.notify.notifier import Notifier
from llm_headroom.otlp.pusher import Pusher
from llm_headroom.otlp.tally import Tally
from llm_headroom.poll.poller import Poller
from llm_headroom.poll.published import Published
from llm_headroom.proxy.service import Proxies
from llm_headroom.web.app import App
from llm_headroom.web.server import serve

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from llm_headroom.config.settings import Config
    from llm_headroom.net.http_server import HttpServer

log = logging.getLogger("llm_headroom")

YOUNG_OBJECTS: Final = 20_000
"""New containers after which the garbage collector looks at the young ones; 700 is Python's default."""
END_SECONDS: Final = 5
"""After which the process is gone, however it came to be asked."""
GRACE_SECONDS: Final = 3.0
"""For answers under way at the end."""
MOST_NAMES: Final = 64
"""Host names that are looked up at once."""


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
    await certificates.look()
    limits = Limits(connections=room.own, grace_seconds=GRACE_SECONDS)
    server = await serve(app.handle, config.listen, web_config=config.web_config, limits=limits)
    try:
        await proxies.start()
    except ListenError:
        await server.close()
        raise
    ended, reload_wanted = asyncio.Event(), asyncio.Event()

    def must_end(_number: int, _frame: FrameType | None) -> None:
        # First of all, and without any memory of its own: whatever a thread or a library does, the kernel ends it then.
        signal.alarm(END_SECONDS)
        loop.call_soon_threadsafe(ended.set)

    for number in (signal.SIGTERM, signal.SIGINT):
        # Python's own handler, and not the loop's: it also runs while the loop's thread waits for a lock.
        signal.signal(number, must_end)
    loop.add_signal_handler(signal.SIGHUP, reload_wanted.set)
    # What is loaded by now stays; a poll leaves no cycles behind, so that young objects need not be looked at often.
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 50)
    log.info("listening", extra={"version": __version__, "addresses": ",".join(server.addresses)})
    poller.start()
    await pusher.apply(config.otlp)
    tasks = [
        loop.create_task(reload(Running(published, proxies, pusher, notifier), read, reload_wanted, app.changed)),
        loop.create_task(certificates.watch()),
    ]
    if file is not None:
        tasks.append(loop.create_task(watch(file, reload_wanted)))
    try:
        await ended.wait()
    finally:
        log.info("ending")
        for task in tasks:
            task.cancel()
        await proxies.close()
        await _end(server, poller, app, pusher, notifier)


async def _end(server: HttpServer, poller: Poller, app: App, pusher: Pusher, notifier: Notifier) -> None:
    """Close everything, each as far as it goes in the time that is left."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(END_SECONDS - 1):
            await asyncio.gather(notifier.close(), pusher.close(), server.close(), return_exceptions=True)
            await asyncio.gather(poller.stop(), app.close(), return_exceptions=True)
