"""`llm-headroom run`: the exporter."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llm_headroom.commands import logs, service, variables
from llm_headroom.commands.exits import fail
from llm_headroom.commands.options import collecting, loaded
from llm_headroom.commands.reload import watched
from llm_headroom.config.errors import ConfigError
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.net import loop
from llm_headroom.net.listen import ListenError

if TYPE_CHECKING:
    from llm_headroom.config.settings import Config

log = logging.getLogger("llm_headroom")


@click.command(
    "run",
    help=f"""Monitor engines and GPUs and serve /metrics.

    Without configuration it detects {", ".join(f"{engine.title} ({engine.port})" for engine in BUILT_IN.values())} on
    their default ports on this host, and NVIDIA GPUs, and logs what it found.
    """,
)
@collecting
@click.option(
    "--listen",
    multiple=True,
    envvar="LLM_HEADROOM_LISTEN",
    metavar="[HOST]:PORT",
    help="Address to listen on; may be given several times.  [default: :9836]",
)
@click.option(
    "--interval", envvar="LLM_HEADROOM_INTERVAL", metavar="DURATION", help="Time between polls.  [default: 5s]"
)
@click.option(
    "--web-config",
    type=click.Path(path_type=Path),
    envvar="LLM_HEADROOM_WEB_CONFIG",
    metavar="FILE",
    help="TLS and basic authentication, in the format of Prometheus' exporter-toolkit.",
)
@click.option(
    "--otlp-endpoint",
    envvar="LLM_HEADROOM_OTLP_ENDPOINT",
    metavar="URL",
    help="Also push to this OpenTelemetry collector, such as http://localhost:4318.  [default: from OTEL_* variables]",
)
@click.option(
    "--ollama-proxy",
    multiple=True,
    envvar="LLM_HEADROOM_OLLAMA_PROXY",
    metavar="[HOST]:PORT",
    help="Address of a measuring proxy in front of Ollama (its target, or else 127.0.0.1:11434).",
)
def command(path: Path | None, **flags: Any) -> None:  # noqa: ANN401 - click's values
    """Monitor engines and GPUs and serve /metrics."""

    def read() -> Config:
        return loaded(path, **flags)

    try:
        file = None if path is None else watched(path)
        config = read()
        logs.set_up(config.log.level, config.log.format)
        for name, problem in variables.unknown(os.environ):
            log.warning("unknown environment variable", extra={"variable": name, "problem": problem})
        loop.run(service.run(config, file=file, read=read))
    except (ConfigError, ListenError) as error:
        fail(str(error))
