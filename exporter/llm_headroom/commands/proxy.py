"""`llm-headroom proxy`: only the measuring proxy of one engine."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from llm_headroom.commands import logs, service
from llm_headroom.commands.exits import fail
from llm_headroom.commands.options import loaded
from llm_headroom.config.errors import ConfigError
from llm_headroom.net.listen import ListenError

if TYPE_CHECKING:
    from llm_headroom.config.settings import Config


@click.command("proxy")
@click.option("--listen", required=True, metavar="[HOST]:PORT", help="Where clients find the engine from now on.")
@click.option(
    "--upstream", required=True, metavar="ENGINE=URL", help="The engine, such as ollama=http://127.0.0.1:11434"
)
@click.option(
    "--metrics-listen",
    default=":9836",
    show_default=True,
    metavar="[HOST]:PORT",
    help="Address of the exporter's own /metrics.",
)
@click.option("--log-format", metavar="logfmt|json", help="How to log.  [default: logfmt]")
def command(listen: str, upstream: str, metrics_listen: str, log_format: str | None) -> None:
    """Measure the requests to one engine, and serve /metrics: `run` with a proxy and nothing but its engine."""

    def read() -> Config:
        found = loaded(
            None,
            targets=(upstream,),
            proxy=(listen,),
            listen=(metrics_listen,),
            log_format=log_format,
            gpu=False,
            discover=False,
        )
        return replace(found, host=False)

    try:
        config = read()
        logs.set_up(config.log.level, config.log.format)
        asyncio.run(service.run(config, file=None, read=read))
    except (ConfigError, ListenError) as error:
        fail(str(error))
