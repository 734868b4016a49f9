"""The command line."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

import click

from llm_headroom import __version__
from llm_headroom.config.load import Config, ConfigError, load

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")

SOME_SOURCE_FAILED: Final = 1
USAGE: Final = 2


class _Targets(click.ParamType[str]):
    """A target; the environment variable separates several by commas."""

    name = "[ENGINE=]URL"

    def split_envvar_value(self, rv: str) -> list[str]:
        """The targets of a comma-separated list."""
        return [part.strip() for part in rv.split(",") if part.strip()]


def _common(command: Callable[P, R]) -> Callable[P, R]:
    """The options of everything that collects."""
    for option in (
        click.option(
            "--discover/--no-discover",
            default=None,
            envvar="LLM_HEADROOM_DISCOVER",
            help="Look for engines on this host's usual ports.  [default: if no target is named]",
        ),
        click.option(
            "--gpu/--no-gpu", default=None, envvar="LLM_HEADROOM_GPU", help="Read GPUs.  [default: if NVML is there]"
        ),
        click.option(
            "--log-format",
            envvar="LLM_HEADROOM_LOG_FORMAT",
            metavar="logfmt|json",
            help="How to log.  [default: logfmt]",
        ),
        click.option(
            "--log-level",
            envvar="LLM_HEADROOM_LOG_LEVEL",
            metavar="LEVEL",
            help="debug, info, warning or error.  [default: info]",
        ),
        click.option(
            "--config",
            "path",
            type=click.Path(path_type=Path),
            envvar="LLM_HEADROOM_CONFIG",
            metavar="FILE",
            help="Configuration file (YAML).",
        ),
        click.option(
            "--target",
            "targets",
            type=_Targets(),
            multiple=True,
            envvar="LLM_HEADROOM_TARGETS",
            help="An engine to watch, such as vllm=http://127.0.0.1:8000; may be given several times. "
            "Without ENGINE= the engine is found out.",
        ),
    ):
        command = option(command)
    return command


def _loaded(path: Path | None, **flags: Any) -> Config:  # noqa: ANN401 - click's values
    from llm_headroom.engines.built_in import BUILT_IN  # noqa: PLC0415 - `--help` needs no engines

    return load(path, **flags, engine_names=BUILT_IN)


def _fail(message: str) -> None:
    click.echo(f"llm-headroom: {message}", err=True)
    sys.exit(USAGE)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="llm-headroom")
def main() -> None:
    """Metrics, headroom and alerts for vLLM, SGLang and Ollama in one schema."""


@main.command()
@_common
@click.option(
    "--listen",
    multiple=True,
    envvar="LLM_HEADROOM_LISTEN",
    metavar="[HOST]:PORT",
    help="Address to serve on; may be given several times.  [default: :9836]",
)
@click.option("--interval", envvar="LLM_HEADROOM_INTERVAL", metavar="DURATION", help="Between polls.  [default: 5s]")
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
    help="Push to this OpenTelemetry collector too, such as http://localhost:4318.  [default: as OTEL_* variables say]",
)
@click.option(
    "--ollama-proxy",
    multiple=True,
    envvar="LLM_HEADROOM_OLLAMA_PROXY",
    metavar="[HOST]:PORT",
    help="Measure the requests to Ollama: what comes here is passed to its target, or else to 127.0.0.1:11434.",
)
def run(path: Path | None, **flags: Any) -> None:  # noqa: ANN401 - click's values
    """Watch engines and GPUs and serve /metrics.

    With no configuration it looks for vLLM (port 8000), SGLang (30000), its router (29000), Ollama (11434) and
    llama.cpp (8080) on this host and for NVIDIA GPUs, and says what it found.
    """
    from llm_headroom.commands import logs  # noqa: PLC0415 - `--help` needs none of it
    from llm_headroom.commands import run as service  # noqa: PLC0415
    from llm_headroom.net.listen import ListenError  # noqa: PLC0415
    from llm_headroom.web.config import WebConfigError  # noqa: PLC0415

    def read() -> Config:
        return _loaded(path, **flags)

    try:
        file = None if path is None else service.watched(path)
        config = read()
        logs.set_up(config.log.level, config.log.format)
        asyncio.run(service.run(config, file=file, read=read))
    except (ConfigError, WebConfigError, ListenError) as error:
        _fail(str(error))


@main.command()
@click.option("--listen", required=True, metavar="[HOST]:PORT", help="Where clients find the engine from now on.")
@click.option(
    "--upstream", required=True, metavar="ENGINE=URL", help="The engine, such as ollama=http://127.0.0.1:11434"
)
@click.option("--metrics-listen", default=":9836", show_default=True, metavar="[HOST]:PORT", help="Of /metrics.")
@click.option("--log-format", metavar="logfmt|json", help="How to log.  [default: logfmt]")
def proxy(listen: str, upstream: str, metrics_listen: str, log_format: str | None) -> None:
    """Measure the requests to one engine, and serve /metrics: `run` with a proxy and nothing but its engine."""
    from llm_headroom.commands import logs  # noqa: PLC0415 - `--help` needs none of it
    from llm_headroom.commands import run as service  # noqa: PLC0415
    from llm_headroom.net.listen import ListenError  # noqa: PLC0415

    def read() -> Config:
        found = _loaded(
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
        _fail(str(error))


@main.command()
@_common
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def check(path: Path | None, form: str, **flags: Any) -> None:  # noqa: ANN401 - click's values
    """Collect everything once and report each signal, where it came from, and what is missing and why.

    Exit status: 0 all sources are fine, 1 some source failed, 2 the usage or the configuration is wrong.
    """
    from llm_headroom.commands import check as checking  # noqa: PLC0415 - `--help` needs none of it
    from llm_headroom.commands import logs  # noqa: PLC0415

    try:
        config = _loaded(path, **flags)
    except ConfigError as error:
        _fail(str(error))
        return
    logs.set_up("error", config.log.format)
    reports, absent = asyncio.run(checking.collect(config))
    if form == "json":
        click.echo(json.dumps({"version": __version__, "sources": reports, "not_found": absent}, allow_nan=False))
    else:
        click.echo(checking.text(reports, absent) or "Nothing to check: no engine and no GPU was found.")
    sys.exit(SOME_SOURCE_FAILED if any(not report["up"] for report in reports) else 0)


@main.command()
@click.option("--url", envvar="LLM_HEADROOM_URL", metavar="URL", help="[default: this host, by LLM_HEADROOM_LISTEN]")
@click.option("--timeout", type=float, default=3.0, show_default=True, help="Seconds.")
@click.option("--cert-file", type=click.Path(path_type=Path), metavar="FILE", help="For an exporter that wants one.")
@click.option("--key-file", type=click.Path(path_type=Path), metavar="FILE", help="Of the certificate.")
def health(url: str | None, timeout: float, cert_file: Path | None, key_file: Path | None) -> None:
    """Tell whether an exporter answers: a container's health check.

    Exit status: 0 it does, 1 it does not, 2 the usage is wrong.
    """
    from llm_headroom.commands import health as checking  # noqa: PLC0415 - `--help` needs none of it

    try:
        exporter = url or checking.url(os.environ.get("LLM_HEADROOM_LISTEN"))
        problem = checking.problem(exporter, timeout, cert_file=cert_file, key_file=key_file)
    except ValueError as error:
        _fail(str(error))
        return
    if problem is not None:
        click.echo(f"llm-headroom: {problem}", err=True)
        sys.exit(SOME_SOURCE_FAILED)


@main.command()
@click.option("--engine", type=click.Choice(["vllm", "sglang", "ollama"]), default="vllm", show_default=True)
@click.option("--version", metavar="VERSION", help="Whose metrics it serves.  [default: the newest that is known]")
@click.option("--model", default="llama-3-8b", show_default=True, help="What it runs.")
@click.option("--gpu", default="a100-80gb", show_default=True, help="On what: a100-80gb, h100, l4 or rtx4090.")
@click.option("--listen", metavar="[HOST]:PORT", help="[default: 127.0.0.1 and the engine's usual port]")
@click.option("--speed", type=float, default=1.0, show_default=True, help="Virtual seconds per real second.")
@click.option(
    "--trace", metavar="NAME|FILE", help="Requests: azure_conv, azure_code, or a CSV file; repeated for ever."
)
@click.option("--rate", type=float, help="Factor on the trace's rate; without a trace, requests per second.")
@click.option("--clients", type=int, default=0, help="Clients that each send one request after the other.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random.")
@click.option("--scenario", type=click.Path(path_type=Path), metavar="FILE", help="What goes wrong, and when (YAML).")
def simulate(**flags: Any) -> None:  # noqa: ANN401 - click's values
    """Serve one simulated engine: its metrics, its API at a simulated pace, and POST /-/misbehave."""
    from llm_headroom.commands import simulate as command  # noqa: PLC0415 - only this command needs the simulator
    from llm_headroom.net.listen import ListenError  # noqa: PLC0415

    try:
        asyncio.run(command.run(command.Settings(**flags), click.echo))
    except (ValueError, OSError, ListenError) as error:
        _fail(str(error))


@main.command()
@click.option("--listen", default="127.0.0.1:9836", show_default=True, metavar="[HOST]:PORT", help="Of the exporter.")
@click.option("--speed", type=float, default=1.0, show_default=True, help="Virtual seconds per real second.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random.")
@click.option(
    "--prometheus/--no-prometheus",
    "stack",
    default=True,
    help="Start Prometheus, Alertmanager and Grafana too, where they are installed.  [default: --prometheus]",
)
def demo(**flags: Any) -> None:  # noqa: ANN401 - click's values
    """Show llm-headroom without a GPU: simulated engines, their traffic and incidents, and the status page."""
    from llm_headroom.commands import demo as showing  # noqa: PLC0415
    from llm_headroom.commands import logs  # noqa: PLC0415 - only this command needs the simulator
    from llm_headroom.net.listen import ListenError  # noqa: PLC0415

    logs.set_up("error", "logfmt")
    try:
        asyncio.run(showing.run(showing.Settings(**flags), click.echo))
    except (ValueError, ListenError) as error:
        _fail(str(error))


@main.command()
@_common
@click.option(
    "--url",
    envvar="LLM_HEADROOM_URL",
    metavar="URL",
    help="A running exporter.  [default: http://localhost:9836 if one is there and no target is named]",
)
@click.option("--once", is_flag=True, help="Print once and exit, as it does where the output is no terminal.")
def top(path: Path | None, url: str | None, *, once: bool, **flags: Any) -> None:  # noqa: ANN401 - click's values
    """Show engines and GPUs in the terminal, from a running exporter or by polling them itself. `q` quits.

    Exit status: 0 it was shown, 1 there was nothing to show, 2 the usage or the configuration is wrong.
    """
    from llm_headroom.commands import logs, top as terminal  # noqa: I001, PLC0415 - `--help` needs none of it

    named = path is not None or bool(flags["targets"])
    if url is None and not named and terminal.running():
        url = terminal.USUAL
    try:
        config = None if url is not None else _loaded(path, **flags)
    except ConfigError as error:
        _fail(str(error))
        return
    logs.set_up("error", "logfmt")
    try:
        terminal.run(
            lambda latest: terminal.follow(url or "", latest) if config is None else terminal.poll(config, latest),
            once=once,
        )
    except terminal.Unusable as error:
        click.echo(f"llm-headroom: {error}", err=True)
        sys.exit(SOME_SOURCE_FAILED)


@main.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Where to write.")
@click.option("--threshold", "thresholds", multiple=True, metavar="NAME=VALUE", help="Another threshold of the alerts.")
@click.option("--selector", default="", metavar="MATCHERS", help="For every query, such as 'cluster=\"x\"'.")
@click.option("--only", multiple=True, metavar="PART", help="alerts, dashboards or kubernetes.  [default: all]")
@click.option("--job", "exporter_job", default="llm-headroom", show_default=True, help="Label `job` of the exporters.")
@click.option("--runbooks", "runbook_base_url", metavar="URL", help="Where alerts/runbooks is published.")
@click.option("--grafana", "dashboard_base_url", metavar="URL", help="Of Grafana, for links to dashboards.")
@click.option("--for-scale", type=float, help="Factor on how long conditions must hold; below 1 for tests.")
def bundle(output: Path, thresholds: tuple[str, ...], selector: str, only: tuple[str, ...], **others: Any) -> None:  # noqa: ANN401 - click's values
    """Write alerts, dashboards and Kubernetes objects with thresholds and label matchers of your own."""
    from llm_headroom.commands import bundle as command  # noqa: PLC0415 - only this command needs it

    if unknown := set(only) - set(command.PARTS):
        _fail(f"part {', '.join(sorted(unknown))}: there are {', '.join(command.PARTS)}")
    try:
        given = {name: value for name, value in others.items() if value is not None}
        texts = command.files(command.settings(thresholds, selector, **given), only)
        command.write(output, texts)
    except (ValueError, OSError) as error:
        _fail(str(error))
        return
    for name in texts:
        click.echo(output / name)
