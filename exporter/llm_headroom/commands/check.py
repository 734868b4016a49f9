"""One collection of everything, reported: what is seen, what is missing and why, what upstream exposes besides."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import replace
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import click

from llm_headroom import __version__, schema
from llm_headroom.commands import logs, variables
from llm_headroom.commands.exits import SOME_SOURCE_FAILED, fail
from llm_headroom.commands.options import collecting, loaded
from llm_headroom.config.errors import ConfigError
from llm_headroom.poll.poller import Poller
from llm_headroom.render import json as as_json
from llm_headroom.scrape import coverage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
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


def text(reports: Iterable[Mapping[str, Any]], absent: Iterable[Mapping[str, Any]]) -> str:
    """The report for people."""
    lines: list[str] = []
    for report in reports:
        lines += _source_lines(report)
    absent = list(absent)
    if absent:
        lines += ["Not found on this host", *(_absent_line(entry) for entry in absent), ""]
    return "\n".join(lines).rstrip()


def _absent_line(entry: Mapping[str, Any]) -> str:
    return f"  {entry['address']:<18} {entry['usual']}: {entry['error']['message']}"


def _source_lines(report: Mapping[str, Any]) -> Iterator[str]:
    engine = " ".join(part for part in (report["engine"] or "unknown engine", report["version"]) if part)
    state = "up" if report["up"] else "DOWN"
    yield f"{report['target']}  {engine}  {state}  ({report['duration_seconds'] * 1000:.1f} ms)"
    if report["error"]:
        yield f"  error ({report['error']['cause']}): {report['error']['message']}"
    for warning in report["warnings"]:
        yield f"  warning ({warning['cause']}): {warning['message']}"
    points = report["points"]
    if points:
        width = max(len(_series(point)) for point in points)
        yield "  signals"
        for point in points:
            yield f"    {_series(point):<{width}}  {_value(point):>14}  {point['source']}"
    if report["up"] and report["missing"]:
        yield "  missing"
        lacking = ((entry["metric"], entry["reason"]) for entry in report["missing"])
        for reason, names in coverage.by_reason(lacking).items():
            yield from _wrapped(f"{reason}:", names)
    if report["unmapped"]:
        yield "  unmapped upstream names"
        for name in report["unmapped"]:
            yield f"    {name}"
    yield ""


def _wrapped(reason: str, names: Sequence[str]) -> Iterator[str]:
    if len(names) == 1:
        yield f"    {names[0]}: {reason.removesuffix(':')}"
        return
    yield f"    {reason}"
    yield from wrap(", ".join(names), width=100, initial_indent="      ", subsequent_indent="      ")


def _series(point: Mapping[str, Any]) -> str:
    labels = {name: value for name, value in point["labels"].items() if name not in ("engine", "target")}
    inside = ", ".join(f"{name}={value}" for name, value in labels.items())
    return f"{point['metric']}{{{inside}}}" if inside else str(point["metric"])


def _value(point: Mapping[str, Any]) -> str:
    histogram = point.get("histogram")
    if histogram is None:
        return f"{point['value']:.6g}" if abs(point["value"]) < 1e15 else f"{point['value']:.0f}"  # noqa: PLR2004
    count = histogram["count"]
    return f"n={count:.0f}" + (f" mean={histogram['sum'] / count:.4g}" if count else "")


@click.command("check")
@collecting
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(path: Path | None, form: str, **flags: Any) -> None:  # noqa: ANN401 - click's values
    """Collect everything once and report each signal, where it came from, and what is missing and why.

    Exit status: 0 all sources are fine, 1 some source failed, 2 the usage or the configuration is wrong.
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
        click.echo(text(reports, absent) or "Nothing to check: no engine and no GPU was found.")
    sys.exit(SOME_SOURCE_FAILED if any(not report["up"] for report in reports) else 0)
