"""How a command exits when it fails."""

from __future__ import annotations

import sys
from typing import Final, NoReturn

import click

SOME_SOURCE_FAILED: Final = 1
USAGE: Final = 2


def fail(message: str) -> NoReturn:
    """Exit with an error about the usage or the configuration."""
    click.echo(f"llm-headroom: {message}", err=True)
    sys.exit(USAGE)
