"""The command line: a module of this package for each command, loaded when it is called."""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from llm_headroom import __version__
from llm_headroom.commands.exits import fail
from llm_headroom.commands.huge_pages import SERVICES

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMANDS: Final = {
    "run": "Monitor engines and GPUs and serve /metrics.",
    "check": "Collect once and report every signal.",
    "config": "Check the configuration without polling: `config check [FILE]`.",
    "top": "Show engines and GPUs in the terminal.",
    "proxy": "Run only the measuring proxy, in front of one engine.",
    "health": "Health check of a running exporter.",
    "bundle": "Write alerts, dashboards and Kubernetes objects.",
    "demo": "Try llm-headroom without a GPU.",
    "simulate": "Run one simulated engine.",
    "hash-password": "Hash a password for the web configuration.",
    "completion": "Print the completion script of a shell.",
}
"""The summary of each command in `--help`, here so that `--help` imports none of them."""
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def _quick() -> Iterator[None]:
    """Leaves out of imports what takes a fifth of the start of `run`.

    Garbage is not looked for, as modules stay. aiohttp makes two TLS contexts with all authorities that the system
    trusts (aio-libs/aiohttp, aiohttp/connector.py, `_make_ssl_context`): they remain without any and so trust nobody.
    We ask nobody by them: whoever speaks TLS here brings a context of its own (`net/tls.py`), made later. Only here,
    where no other code runs in the process.
    """
    import ssl  # noqa: PLC0415 - takes 5 ms, and `--help` does without

    gc.disable()
    ssl.SSLContext.set_default_verify_paths = lambda self: None  # type: ignore[method-assign]  # noqa: ARG005 - its form
    try:
        yield
    finally:
        del ssl.SSLContext.set_default_verify_paths
        gc.enable()


def _open_standard_streams() -> None:
    """Opens the null device for each standard stream that whoever started us has closed.

    A socket would get its number: libuv aborts the process when it closes such a one, and what is written to standard
    error would go into it. A file gets the lowest number that is free, which is that of the stream.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(opened, mode, encoding="utf-8", closefd=False))


class _Commands(click.Group):
    """A group that imports a command's module when the command is called."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - click's signature
        """Run a command. Standard streams may be closed, or on a disk that is full."""
        _open_standard_streams()
        try:
            return super().__call__(*arguments, **named)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            with Path(os.devnull).open("wb") as nothing:
                os.dup2(nothing.fileno(), 1)  # what is still held for standard output must not fail again at the end
            fail(f"cannot write: {error.strerror}")

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands' names, most used first."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if it does not exist."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        if cmd_name in SERVICES:  # SIGHUP is a wish to reload, which must not end what is only beginning
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with _quick():
            command = import_module(f"llm_headroom.commands.{cmd_name.replace('-', '_')}").command
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="llm-headroom")
def main() -> None:
    """Metrics, headroom and alerts for vLLM, SGLang and Ollama in one schema."""
