"""`llm-headroom hash-password`: what stands for a password in the web configuration."""

from __future__ import annotations

import sys
from typing import Final

import click

from llm_headroom.commands.exits import fail

LONGEST: Final = 72
"""Bytes of a password that bcrypt looks at."""


@click.command("hash-password")
@click.option(
    "--cost",
    type=click.IntRange(4, 31),
    default=10,
    show_default=True,
    help="Each step more doubles the time of a check, some 50 to 100 ms at 10.",
)
def command(cost: int) -> None:
    """Hash a password for `basic_auth_users` of the web configuration.

    Asks for it, or reads one line from standard input if that is no terminal.
    """
    import bcrypt  # noqa: PLC0415 - of this command alone

    asked = sys.stdin.isatty()
    password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True) if asked else _line()
    if not password:
        fail("the password is empty")
    if len(password.encode()) > LONGEST:
        fail(f"the password is longer than {LONGEST} bytes, which is all that bcrypt looks at")
    click.echo(bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode("ascii"))


def _line() -> str:
    return sys.stdin.readline().rstrip("\r\n")
