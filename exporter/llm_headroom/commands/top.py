"""`llm-headroom top`: the status page in a terminal, from a running exporter or from polls of its own."""

from __future__ import annotations

import asyncio
import json
import logging
import select
import ssl
import sys
import termios
import threading
import time
import tty
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llm_headroom.commands import logs
from llm_headroom.commands.exits import SOME_SOURCE_FAILED, fail
from llm_headroom.commands.options import collecting, loaded
from llm_headroom.config.errors import ConfigError
from llm_headroom.net.lean_httpx import httpx
from llm_headroom.poll.poller import Poller
from llm_headroom.scrape.refusals import root
from llm_headroom.view import text
from llm_headroom.view.board import Board
from llm_headroom.view.values import ORDER, Level, from_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from rich.console import RenderableType

    from llm_headroom.config.settings import Config
    from llm_headroom.view.values import EngineCard, GpuCard, Latency, Trouble, View

USUAL: Final = "http://localhost:9836"
INTERVAL: Final = 1.0
"""Seconds between polls of our own at most, so that a rate is there after the second one."""
SETTLING: Final = 2.5
"""Seconds of our own polls after which all that is there has been seen twice."""
TIMEOUT: Final = 20.0
"""Seconds without a word (a heartbeat comes every 15) after which an exporter is held to be gone."""
RETRY: Final = 2.0
REDRAW: Final = 0.5
BAR: Final = 8
STYLES: Final = {Level.GOOD: "green", Level.WARN: "yellow", Level.BAD: "red"}


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


def running(url: str = USUAL) -> bool:
    """Whether an exporter answers there; one that wants a password does, too."""
    try:
        with _opened(url, "/-/healthy", 1.0) as answer:
            if answer.is_success:
                return b"llm-headroom" in next(answer.iter_bytes(), b"")
            return "llm-headroom" in answer.headers.get("WWW-Authenticate", "")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return False


def follow(url: str, latest: Latest) -> None:
    """Listen to an exporter's stream, again and again, until `latest.ended`."""
    while not latest.ended.is_set():
        try:
            with _opened(url, "/api/v1/stream", TIMEOUT) as answer:
                if answer.is_success:
                    _hear(answer, latest)
                else:
                    latest.lost(f"{_shown(url)} answered {answer.status_code} {answer.reason_phrase}")
        except httpx.ConnectError as error:
            first = root(error)
            latest.lost(f"{_shown(url)} cannot be reached: {getattr(first, 'strerror', None) or first}")
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            latest.lost(f"{_shown(url)}: {error}")
        latest.ended.wait(RETRY)


def _hear(stream: httpx.Response, latest: Latest) -> None:
    for line in stream.iter_lines():
        if line.startswith("data: "):
            latest.show(from_json(json.loads(line[6:])))
            latest.settled.set()
        if latest.ended.is_set():
            return


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


def _opened(url: str, path: str, timeout: float) -> AbstractContextManager[httpx.Response]:
    """An answer to be read as it comes; a user name and password of the URL are sent."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("an exporter's address is http://HOST:PORT or https://HOST:PORT")
    address = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/") + path, "", ""))
    context = ssl.create_default_context()  # the system's authorities, where httpx has its own
    return httpx.stream("GET", address, timeout=timeout, verify=context, follow_redirects=True, trust_env=False)


def _shown(url: str) -> str:
    """An address without its password."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def run(listen: Callable[[Latest], None], *, once: bool) -> None:
    """Show what `listen` hears: once, if asked or if there is no terminal, or else until `q` or Ctrl-C.

    Raises:
        Unusable: there was nothing to show once.
    """
    latest = Latest()
    thread = threading.Thread(target=listen, args=(latest,), daemon=True)
    console = Console()
    if not once and console.is_terminal:
        logging.disable(logging.CRITICAL)  # it would be written across the screen; troubles are shown in cards
    thread.start()
    try:
        if once or not console.is_terminal:
            latest.settled.wait()
            if latest.view is None:
                raise Unusable(latest.problem)
            if not console.is_terminal:
                console.width = max(console.width, 160)  # a pipe has no width: lines must not break
            console.print(screen(latest.view, "", time.time(), width=console.width, whole=True))
        else:
            _live(console, latest)
    except KeyboardInterrupt:
        pass
    finally:
        latest.ended.set()
        thread.join(1.0)


def _live(console: Console, latest: Latest) -> None:
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            shown: RenderableType = Text(latest.problem or "Waiting for the first collection …", style="dim")
            if latest.view is not None:
                shown = screen(latest.view, latest.problem, time.time(), width=console.width)
            live.update(shown, refresh=True)
            if "q" in pressed(REDRAW).lower():
                return


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
        return sys.stdin.read(1) if ready else ""

    tty.setcbreak(descriptor)
    try:
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def screen(view: View, problem: str, now: float, *, width: int, whole: bool = False) -> RenderableType:
    """Everything as tables of some width, what is in trouble first; `whole` adds what was not found."""
    parts: list[RenderableType] = [_title(view, problem, now)]
    if view.engines:
        engines = sorted(view.engines, key=lambda card: ORDER[card.level])
        parts.append(_table(ENGINE_COLUMNS, map(_engine_row, engines), width))
    if view.gpus:
        gpus = sorted(view.gpus, key=lambda card: ORDER[card.level])
        parts.append(_table(GPU_COLUMNS, map(_gpu_row, gpus), width))
    if not view.engines and not view.gpus:
        parts.append(Text("No engine and no GPU yet.", style="dim"))
    sources = [*(card.source for card in view.engines), *(card.source for card in view.gpus)]
    lines = [Text(f"{source.target}: {source.error}", "red") for source in sources if source.error]
    if whole or not view.engines:
        lines += [Text(f"not found: {each.what}: {each.why}", "dim") for each in view.absent]
    for line in lines:
        line.no_wrap, line.overflow = whole, "ignore" if whole else "fold"
    parts += lines
    if not whole:
        parts.append(Text("q quits", style="dim"))
    return Group(*parts)


def _title(view: View, problem: str, now: float) -> Text:
    title = Text.assemble(("llm-headroom ", "bold"), (view.version, "dim"), "   ")
    level = Level.GOOD if view.up == view.sources else Level.BAD
    title.append(f"{view.up} of {view.sources} sources up", STYLES[level])
    title.append(f"   {text.span(max(now - view.time, 0.0))} ago", "dim")
    if problem:
        title.append(f"   {problem}", "red")
    return title


class Column(NamedTuple):
    """A column, and the width of the terminal from which on there is room for it."""

    name: str
    number: bool = False
    room: int = 0
    narrowest: int = 1


ENGINE_COLUMNS: Final = (
    Column(""),
    Column("MODEL", narrowest=10),
    Column("ENGINE", room=110),
    Column("RUN", number=True),
    Column("WAIT", number=True),
    Column("TOK/S", number=True, room=70),
    Column("KV CACHE", number=True),
    Column("ROOM", number=True, room=100),
    Column("TTFT P95", number=True, room=80),
    Column("ITL P95", number=True, room=110),
    Column("RISK", number=True, room=90),
    Column("", narrowest=14),
)
GPU_COLUMNS: Final = (
    Column(""),
    Column("GPU", narrowest=4),
    Column("NAME", room=100),
    Column("BUSY", number=True),
    Column("MEMORY", number=True),
    Column("FREE", number=True, room=70),
    Column("POWER", number=True, room=80),
    Column("TEMP", number=True, room=80),
    Column("", narrowest=14),
)


def _table(columns: Sequence[Column], rows: Iterable[Sequence[Text | str]], width: int) -> Table:
    table = Table(box=None, expand=True, padding=(0, 1), header_style="dim")
    shown = [index for index, column in enumerate(columns) if width >= column.room]
    for index in shown:
        name, number, _, narrowest = columns[index]
        table.add_column(name, justify="right" if number else "left", no_wrap=number, min_width=narrowest)
    for row in rows:
        table.add_row(*(row[index] for index in shown))
    return table


def _engine_row(card: EngineCard) -> tuple[Text | str, ...]:
    source, kv, router = card.source, card.kv, card.router
    first, between = _p95(card.latencies)
    return (
        Text("●", STYLES[card.level]),
        Text(card.model or source.target),
        Text(f"{source.title} {source.version}".strip(), "dim"),
        text.count(card.running if router is None else router.active),
        text.count(card.waiting if router is None else router.waiting),
        text.rate(card.generation_rate),
        _bar(None if kv is None else kv.usage),
        text.count(None if kv is None else kv.headroom_requests),
        first,
        between,
        text.percent(max((risk.value for risk in card.risks), default=None)),
        _notes(card.troubles),
    )


def _gpu_row(card: GpuCard) -> tuple[Text | str, ...]:
    return (
        Text("●", STYLES[card.level]),
        Text(card.gpu or card.source.target),
        Text(" ".join(part for part in (card.name, card.profile) if part), "dim"),
        text.percent(card.utilization),
        _bar(None if not card.total or card.free is None else 1 - card.free / card.total),
        text.size(card.free),
        text.UNKNOWN if card.power is None else f"{card.power:.0f} W",
        text.UNKNOWN if card.temperature is None else f"{card.temperature:.0f} °C",
        _notes(card.troubles),
    )


def _p95(latencies: Sequence[Latency]) -> tuple[str, str]:
    shown = {"TTFT": text.UNKNOWN, "": text.UNKNOWN}
    for latency in latencies:
        kind = "TTFT" if text.latency_name(latency) == "TTFT" else ""
        found = next((each for each in latency.quantiles if each.rank == 0.95), None)  # noqa: PLR2004 - the p95
        shown[kind] = "no traffic" if found is None else text.quantile(found)
    return shown["TTFT"], shown[""]


def _bar(share: float | None) -> Text:
    if share is None:
        return Text(text.UNKNOWN)
    full = round(min(max(share, 0.0), 1.0) * BAR)
    return Text.assemble(("█" * full, "blue"), ("░" * (BAR - full), "dim"), f" {text.percent(share):>4}")


def _notes(troubles: Sequence[Trouble]) -> Text:
    return Text(", ").join(Text(each.text, STYLES[each.level]) for each in troubles)


@click.command("top")
@collecting
@click.option(
    "--url",
    envvar="LLM_HEADROOM_URL",
    metavar="URL",
    help="A running exporter.  [default: http://localhost:9836 if one is there and no target is named]",
)
@click.option("--once", is_flag=True, help="Print once and exit, as it does where the output is no terminal.")
def command(path: Path | None, url: str | None, *, once: bool, **flags: Any) -> None:  # noqa: ANN401 - click's values
    """Show engines and GPUs in the terminal, from a running exporter or by polling them itself. `q` quits.

    Exit status: 0 it was shown, 1 there was nothing to show, 2 the usage or the configuration is wrong.
    """
    named = path is not None or bool(flags["targets"])
    if url is None and not named and running():
        url = USUAL
    try:
        config = None if url is not None else loaded(path, **flags)
    except ConfigError as error:
        fail(str(error))
    logs.set_up("error", "logfmt")
    try:
        run(lambda latest: follow(url or "", latest) if config is None else poll(config, latest), once=once)
    except Unusable as error:
        click.echo(f"llm-headroom: {error}", err=True)
        sys.exit(SOME_SOURCE_FAILED)
