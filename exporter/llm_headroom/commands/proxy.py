"""`llm-headroom proxy`: only the measuring proxy, in front of one engine."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from llm_headroom.commands import logs, service
from llm_headroom.commands.exits import fail
from llm_headroom.commands.options import loaded
from llm_headroom.config.errors import ConfigError
from llm_headroom.net import loop
from llm_headroom.net.listen import ListenError

if TYPE_CHECKING:
    from llm_headroom.config.settings import Config


@click.command("proxy")
@click.option(
    "--listen", required=True, metavar="[HOST]:PORT", help="Address for clients to use instead of the engine's."
)
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
@click.option("--log-format", metavar="logfmt|json", help="Log format.  [default: logfmt]")
def command(listen: str, upstream: str, metrics_listen: str, log_format: str | None) -> None:
    """Run only the measuring proxy in front of one engine, and serve /metrics with what it measures."""

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
        loop.run(service.run(config, file=None, read=read))
    except (ConfigError, ListenError) as error:
        fail(str(error).replace("--target/LLM_HEADROOM_TARGETS", "--upstream"))  # as the option is called here
