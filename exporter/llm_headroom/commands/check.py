"""One collection of every source, reported: how engines are, what they expose, what is missing and what to do."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from llm_headroom import __version__, schema
from llm_headroom.commands import logs, variables
from llm_headroom.commands.check_report import fine, text_report
from llm_headroom.commands.exits import SOME_SOURCE_FAILED, fail
from llm_headroom.commands.options import collecting, loaded
from llm_headroom.config.errors import ConfigError
from llm_headroom.poll.poller import Poller
from llm_headroom.render import json as as_json
from llm_headroom.scrape import coverage

if TYPE_CHECKING:
    from pathlib import Path

    from llm_headroom.config.settings import Config
    from llm_headroom.engines.rules import Engine
    from llm_headroom.model import Snapshot


def report(snapshot: Snapshot, engine: Engine | None) -> dict[str, Any]:
    """A source as `check --format json` prints it; its points in the order of the schema."""
    order = {metric.name: index for index, metric in enumerate(schema.ALL)}
    points = sorted(snapshot.points, key=lambda point: order[point.series.metric.name])
    lacking = [{"metric": name, "reason": reason} for name, reason in coverage.missing(snapshot, engine)]
    return as_json.source(replace(snapshot, points=tuple(points))) | {"missing": lacking}


async def collect(config: Config) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Every source collected once: reports, and what was looked for on this host and not found."""
    poller = Poller(config, explain=True)
    await poller.once()
    reports = [report(snapshot, poller.engines.get(snapshot.engine)) for snapshot in poller.snapshots()]
    await poller.stop()
    by_port = sorted(poller.absent, key=lambda what: (what.usual == "GPUs", len(what.address), what.address))
    return reports, [{**what._asdict(), "error": as_json.failure(poller.absent[what])} for what in by_port]


@click.command("check")
@collecting
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(path: Path | None, form: str, **flags: Any) -> None:  # noqa: ANN401 - click's values
    """Collect everything once and report how each engine is, its metrics, and what is missing and what to do about it.

    Exit status: 0 everything is fine, 1 something is not or nothing was found, 2 the usage or the configuration is
    wrong.
    """
    try:
        config = loaded(path, **flags)
    except ConfigError as error:
        fail(str(error))
    logs.set_up("error", config.log.format)
    for name, problem in variables.unknown(os.environ):
        click.echo(f"llm-headroom: {name}: {problem}", err=True)
    reports, absent = asyncio.run(collect(config))
    if form == "json":
        click.echo(json.dumps({"version": __version__, "sources": reports, "not_found": absent}, allow_nan=False))
    else:
        click.echo(text_report(reports, absent))
    sys.exit(0 if reports and all(map(fine, reports)) else SOME_SOURCE_FAILED)
