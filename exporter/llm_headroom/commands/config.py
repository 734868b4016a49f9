"""`llm-headroom config`: validate the configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llm_headroom.commands import run, variables
from llm_headroom.commands.exits import fail
from llm_headroom.commands.options import loaded
from llm_headroom.config.errors import ConfigError
from llm_headroom.web import config as web_config

if TYPE_CHECKING:
    from collections.abc import Iterator


@click.group("config")
def command() -> None:
    """Validate the configuration."""


@command.command("check")
@click.argument("path", metavar="[FILE]", required=False, type=click.Path(path_type=Path))
def check(path: Path | None) -> None:
    """Validate a configuration file without polling. Without FILE: the one in LLM_HEADROOM_CONFIG.

    Everything that `run` reads is checked: the file, LLM_HEADROOM_… and OTEL_… variables, and the web configuration
    with its certificates.

    Exit status: 0 valid, 2 not valid; all problems are listed.
    """
    context = run.command.make_context("run", [] if path is None else ["--config", str(path)])
    problems = list(_problems(context))
    if problems:
        fail("\n".join(problems))
    click.echo(f"{context.params['path'] or 'flags and environment'}: valid")


def _problems(context: click.Context) -> Iterator[str]:
    try:
        config = loaded(**context.params)
        if config.web_config is not None:
            tls = web_config.parse(config.web_config).tls
            if tls is not None:
                from llm_headroom.web.tls import server_context  # noqa: PLC0415 - only TLS pays for it

                server_context(tls)
    except ConfigError as error:
        yield from error.problems
    for name, problem in variables.unknown(os.environ):
        yield f"{name}: {problem}"
