"""`llm-headroom top`: the status page in a terminal, from a running exporter or from polls of its own."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import click
from click.core import ParameterSource
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from llm_headroom.commands import logs
from llm_headroom.commands.exits import SOME_SOURCE_FAILED, fail
from llm_headroom.commands.options import collecting, loaded
from llm_headroom.commands.top_screen import Chosen, pressed, report, screen
from llm_headroom.config.endpoint import Tls
from llm_headroom.config.errors import ConfigError
from llm_headroom.model import Level
from llm_headroom.net.lean_httpx import httpx
from llm_headroom.net.tls import TlsFileError, client_context
from llm_headroom.poll.poller import Poller
from llm_headroom.scrape.refusals import root
from llm_headroom.view.board import Board
from llm_headroom.view.text import plain
from llm_headroom.view.values import as_json, from_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from rich.console import RenderableType

    from llm_headroom.config.settings import Config
    from llm_headroom.view.values import EngineCard, GpuCard, View

USUAL: Final = "http://localhost:9836"
ALONE: Final = (
    f"No exporter answers at {USUAL}: these are polls of top itself, of what it detects on this host. An exporter may "
    "watch more; name it with --url."
)
"""Said where nobody chose so: an exporter that has died would otherwise look as if all were fine."""
INTERVAL: Final = 1.0
"""Seconds between polls of our own at most, so that a rate is there after the second one."""
SETTLING: Final = 2.5
"""Seconds of our own polls after which all that is there has been seen twice."""
TIMEOUT: Final = 20.0
"""Seconds without a word (a heartbeat comes every 15) after which an exporter is held to be gone."""
RETRY: Final = 2.0
REDRAW: Final = 0.5
MOST_LINE: Final = 64 * 1024 * 1024
"""Bytes of a line of an exporter's stream: a view of twenty thousand engines is one."""
WIDEST: Final = 10_000
"""Columns of a pipe, which has no width of its own: lines must not break, and nothing is cut off."""


class Unusable(Exception):  # noqa: N818 - what it says about the exporter, not about our code
    """There is nothing to show; the message says why."""


class Latest:
    """What was heard last, by one thread, for another one."""

    def __init__(self) -> None:
        self.view: View | None = None
        self.problem = ""
        self.settled = threading.Event()
        self.ended = threading.Event()

    def show(self, view: View) -> None:
        """Something new to show."""
        self.view, self.problem = view, ""

    def lost(self, problem: str) -> None:
        """Nothing new, and why."""
        self.problem = problem
        self.settled.set()


class Exporter(NamedTuple):
    """A running exporter: its address, and how to speak TLS with it."""

    url: str
    tls: Tls


def running(exporter: Exporter) -> bool:
    """Whether an exporter answers there; one that wants a password does, too."""
    try:
        with _opened(exporter, "/-/healthy", 1.0) as answer:
            if answer.is_success:
                return b"llm-headroom" in next(answer.iter_bytes(), b"")
            return "llm-headroom" in answer.headers.get("WWW-Authenticate", "")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, TlsFileError):
        return False


def follow(exporter: Exporter, latest: Latest) -> None:
    """Listen to an exporter's stream, again and again, until `latest.ended`."""
    shown = _shown(exporter.url)
    while not latest.ended.is_set():
        try:
            with _opened(exporter, "/api/v1/stream", TIMEOUT) as answer:
                if answer.is_success:
                    _hear(answer, latest)
                else:
                    latest.lost(f"{shown} answered {answer.status_code} {answer.reason_phrase}")
        except httpx.ConnectError as error:
            first = root(error)
            latest.lost(f"{shown} cannot be reached: {getattr(first, 'strerror', None) or first}")
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, TlsFileError, RecursionError, MemoryError) as error:
            latest.lost(f"{shown}: {error}")
        latest.ended.wait(RETRY)


def _hear(stream: httpx.Response, latest: Latest) -> None:
    for line in _lines(stream):
        if line.startswith(b"data: "):
            latest.show(from_json(json.loads(line[6:])))
            latest.settled.set()
        if latest.ended.is_set():
            return


def _lines(stream: httpx.Response) -> Iterator[bytes]:
    """The lines of a stream as they come, without their ends.

    Raises:
        ValueError: one does not end.
    """
    begun = bytearray()
    for piece in stream.iter_bytes():
        begun += piece
        if b"\n" in piece:
            *whole, last = bytes(begun).split(b"\n")
            begun = bytearray(last)
            yield from whole
        if len(begun) > MOST_LINE:
            raise ValueError(f"a line of more than {MOST_LINE} bytes; an exporter of llm-headroom sends none")


def poll(config: Config, latest: Latest) -> None:
    """Poll what a configuration names, or what is on this host, until `latest.ended`."""
    asyncio.run(_poll(replace(config, interval=min(config.interval, INTERVAL)), latest))


async def _poll(config: Config, latest: Latest) -> None:
    poller = Poller(config)
    board = Board(poller)

    def changed() -> None:
        board.record()
        latest.show(board.view())

    poller.on_change(changed)
    poller.start()
    await poller.first_round()
    await asyncio.sleep(SETTLING)
    changed()
    latest.settled.set()
    await asyncio.to_thread(latest.ended.wait)
    await poller.stop()


def _opened(exporter: Exporter, path: str, timeout: float) -> AbstractContextManager[httpx.Response]:
    """An answer to be read as it comes; a user name and password of the URL are sent."""
    parts = urlsplit(exporter.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("an exporter's address is http://HOST:PORT or https://HOST:PORT")
    address = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/") + path, "", ""))
    context = client_context(exporter.tls)
    return httpx.stream("GET", address, timeout=timeout, verify=context, follow_redirects=True, trust_env=False)


def _shown(url: str) -> str:
    """An address without its password."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def show_once(listen: Callable[[Latest], None], form: str) -> bool:
    """Show what `listen` hears first, as `text` or `json`; whether everything is fine.

    Raises:
        Unusable: there was nothing to show.
    """
    latest = Latest()
    thread = threading.Thread(target=listen, args=(latest,), daemon=True)
    thread.start()
    latest.settled.wait()
    latest.ended.set()
    view = latest.view
    if view is None:
        raise Unusable(latest.problem)
    if form == "json":
        click.echo(json.dumps(as_json(view), allow_nan=False))
    else:
        console = Console()
        if not console.is_terminal:
            console.width = max(console.width, WIDEST)
        console.print(report(view, "", time.time(), width=console.width))
    thread.join(1.0)
    cards: list[EngineCard | GpuCard] = [*view.engines, *view.gpus]
    # As in `check`: what answers and exposes too little to be judged is not wrong.
    return bool(cards) and all(card.level in {Level.GOOD, Level.UNKNOWN} and card.source.up for card in cards)


def live(listen: Callable[[Latest], None], note: str = "") -> None:
    """Show what `listen` hears until `q` or Ctrl-C, under a note if there is one."""
    latest = Latest()
    thread = threading.Thread(target=listen, args=(latest,), daemon=True)
    logging.disable(logging.CRITICAL)  # it would be written across the screen; troubles are shown in the tables
    thread.start()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have had it ignored, as `nohup` and `&` do
    try:
        _live(Console(), latest, note)
    except KeyboardInterrupt:
        pass
    finally:
        latest.ended.set()
        thread.join(1.0)


def _live(console: Console, latest: Latest, note: str) -> None:
    chosen = Chosen()
    above = [Text(note, style="yellow", no_wrap=True, overflow="ellipsis")] if note else []
    with _keys() as wait, Live(console=console, screen=True, auto_refresh=False) as shown:
        while True:
            drawn: RenderableType = Text(plain(latest.problem) or "Waiting for the first collection …", style="dim")
            if latest.view is not None:
                size = {"width": console.width, "height": console.height - len(above)}
                drawn = screen(latest.view, latest.problem, time.time(), chosen, **size)
            shown.update(Group(*above, drawn), refresh=True)
            keys = wait(REDRAW)
            after = pressed(chosen, keys) if keys else chosen
            if after is None:
                return
            chosen = after


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """A function that waits for keys for so many seconds and gives what was pressed."""
    if not sys.stdin.isatty():

        def nothing(seconds: float) -> str:
            time.sleep(seconds)
            return ""

        yield nothing
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        return os.read(descriptor, 64).decode(errors="replace") if ready else ""

    tty.setcbreak(descriptor)
    try:
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


_FILE: Final = click.Path(path_type=Path)


def _only(urls: tuple[str, ...]) -> str | None:
    """The exporter's address, if one was given; what would not be shown ends the program."""
    if len(urls) > 1:
        fail(f"--url names one exporter, not {len(urls)}: start one top for each")
    if urls and _typed("urls") and (_typed("targets") or _typed("path")):
        fail("--url shows what a running exporter watches: --target and --config have no part in it")
    return urls[0] if urls else None


def _typed(parameter: str) -> bool:
    """Whether it was given on the command line, not by a variable that other commands read, too."""
    return click.get_current_context().get_parameter_source(parameter) is ParameterSource.COMMANDLINE


@click.command("top")
@collecting
@click.option(
    "--url",
    "urls",
    multiple=True,
    envvar="LLM_HEADROOM_URL",
    metavar="URL",
    help="A running exporter.  [default: http://localhost:9836 if one is there and no target is named]",
)
@click.option("--once", is_flag=True, help="Print once and exit, as it does where the output is no terminal.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="With --once: tables, or all values as JSON.",
)
@click.option("--ca-file", type=_FILE, metavar="FILE", help="Certificates to trust.  [default: the system's]")
@click.option("--cert-file", type=_FILE, metavar="FILE", help="Client certificate, if the exporter requires one.")
@click.option("--key-file", type=_FILE, metavar="FILE", help="Private key for --cert-file.")
@click.option("--insecure", is_flag=True, help="Accept any certificate of the exporter.")
def command(  # noqa: PLR0913 - the options
    path: Path | None,
    urls: tuple[str, ...],
    *,
    once: bool,
    form: str,
    ca_file: Path | None,
    cert_file: Path | None,
    key_file: Path | None,
    insecure: bool,
    **flags: Any,  # noqa: ANN401 - click's values
) -> None:
    """Show engines and GPUs in the terminal, from a running exporter or by polling them itself. `?` helps, `q` quits.

    Exit status of --once: 0 all is fine, 1 something is not or there is nothing to show, 2 the usage or the
    configuration is wrong.
    """
    tls = Tls(ca_file=ca_file, cert_file=cert_file, key_file=key_file, insecure_skip_verify=insecure)
    if key_file is not None and cert_file is None:
        fail("--key-file needs --cert-file")
    url = _only(urls)
    note = ""
    if url is None and path is None and not flags["targets"]:
        url, note = (USUAL, "") if running(Exporter(USUAL, tls)) else (None, ALONE)
    try:
        config = None if url is not None else loaded(path, **flags)
    except ConfigError as error:
        fail(str(error))
    logs.set_up("error", "logfmt")

    def listen(latest: Latest) -> None:
        if config is None:
            follow(Exporter(url or "", tls), latest)
        else:
            poll(config, latest)

    try:
        if not once and form == "text" and Console().is_terminal:
            live(listen, note)
        else:
            if note:
                click.echo(f"llm-headroom: {note}", err=True)
            if show_once(listen, form):
                return
            sys.exit(SOME_SOURCE_FAILED)
    except Unusable as error:
        click.echo(f"llm-headroom: {plain(str(error))}", err=True)
        sys.exit(SOME_SOURCE_FAILED)
