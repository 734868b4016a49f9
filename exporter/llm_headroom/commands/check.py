"""One collection of everything, reported: what is seen, what is missing and why, what upstream exposes besides."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Final

import click

from llm_headroom import __version__, schema
from llm_headroom.commands import logs
from llm_headroom.commands.exits import SOME_SOURCE_FAILED, fail
from llm_headroom.commands.options import collecting, loaded
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.errors import ConfigError
from llm_headroom.config.load import Target
from llm_headroom.host.engines import Finder, Watched
from llm_headroom.model import Subject
from llm_headroom.poll.local import GPU_TARGET, GpuSource, HostWatch, runs_here
from llm_headroom.poll.poller import LOOK_TIMEOUT, EngineSource
from llm_headroom.render import json as as_json
from llm_headroom.scrape import catalog
from llm_headroom.scrape.http import FetchError
from llm_headroom.scrape.identify import identify

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from llm_headroom.config.load import Config
    from llm_headroom.engines.rules import Engine
    from llm_headroom.host.reading import Reading as HostReading
    from llm_headroom.model import Failure, Metric, Snapshot

_OF_GPUS: Final = frozenset({Subject.GPU, Subject.ATTRIBUTION})
_OF_ROUTERS: Final = frozenset({Subject.ROUTER})
_OF_ENGINES: Final = frozenset({Subject.ENGINE, Subject.DERIVED, Subject.PROXY, Subject.HOST})
_GIVEN_BY_OTHERS: Final = {
    Subject.DERIVED: "derived: needs traffic over some polls, or something that the engine does not tell",
    Subject.PROXY: "a measuring proxy in front of the engine tells it",
    Subject.HOST: "the engine runs elsewhere, or this host does not show it",
    Subject.ATTRIBUTION: "no engine is known to hold memory of these devices",
}
"""Why a metric is missing that its source does not give alone."""
_UNTOLD: Final = {
    schema.GPU_PROCESS_MEMORY: "off (gpu.processes), or no process is listed",
    schema.GPU_PCIE_THROUGHPUT: "off (gpu.pcie), since it takes 40 ms for each GPU",
    schema.GPU_XID_ERRORS: "counted while the exporter runs; none has come",
    schema.GPU_XID_LAST: "counted while the exporter runs; none has come",
    schema.GPU_XID_WATCHED: "counted while the exporter runs",
}
"""Why a metric of GPUs is missing, if not for the devices' sake."""


def expected(snapshot: Snapshot, engine: Engine | None) -> Iterator[Metric]:
    """The canonical metrics that a kind of source could give: those of GPUs, of routers, or of engines."""
    if snapshot.engine == GPU_TARGET:
        subjects = _OF_GPUS
    else:
        subjects = _OF_ROUTERS if engine is not None and engine.subject is Subject.ROUTER else _OF_ENGINES
    return (metric for metric in schema.ALL if metric.subject in subjects)


def missing(snapshot: Snapshot, engine: Engine | None) -> list[dict[str, str]]:
    """Canonical metrics that the source did not tell, each with the reason as far as it can be known."""
    if not snapshot.health.up:
        reason = snapshot.health.error.message if snapshot.health.error else "the source is down"
        return [{"metric": metric.name, "reason": reason} for metric in expected(snapshot, engine)]
    told = {point.series.metric.name for point in snapshot.points}
    return [
        {"metric": metric.name, "reason": _reason(metric, engine)}
        for metric in expected(snapshot, engine)
        if metric.name not in told
    ]


def _reason(metric: Metric, engine: Engine | None) -> str:
    if metric.subject in _GIVEN_BY_OTHERS:
        return _GIVEN_BY_OTHERS[metric.subject]
    if engine is None:
        return _UNTOLD.get(metric, "not supported by these devices or this driver")
    rules = [rule for rule in engine.rules if rule.metric is metric]
    where = engine.fact_sources.get(metric.name)
    if not rules and where is None:
        return f"{engine.title} does not tell it"
    parts = []
    if rules:
        names = ", ".join(dict.fromkeys(name for rule in rules for name in rule.names))
        needs = "; ".join(dict.fromkeys(rule.needs for rule in rules if rule.needs))
        parts.append(f"none of {names} has samples{f' (needs: {needs})' if needs else ''}")
    if where is not None:
        parts.append(f"not found in {where.replace('`', '')}")
    return "; ".join(parts)


def report(snapshot: Snapshot, engine: Engine | None) -> dict[str, Any]:
    """A source as `check --format json` prints it; its points in the order of the schema."""
    order = {metric.name: index for index, metric in enumerate(schema.ALL)}
    points = sorted(snapshot.points, key=lambda point: order[point.series.metric.name])
    return as_json.source(replace(snapshot, points=tuple(points))) | {"missing": missing(snapshot, engine)}


async def collect(config: Config) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Every source collected once: reports, and what was looked for on this host and not found."""
    engines = catalog.engines(config)
    absent: list[dict[str, Any]] = []
    targets = list(config.targets)
    if not config.targets if config.discover is None else config.discover:
        targets += await _discovered(engines, targets, absent)
    sources = [EngineSource(target, engines, config, explain=True) for target in targets]
    snapshots = await asyncio.gather(*(source.collect() for source in sources))
    finder = Finder()
    watched = [
        Watched(source.target, snapshot)
        for source, snapshot in zip(sources, snapshots, strict=True)
        if source.engine is None or source.engine.subject is not Subject.ROUTER
    ]
    gpus = await _gpus(config, watched, finder) if config.gpu.enabled is not False else None
    host = await _host(config, watched, finder)
    reports = []
    for source, snapshot in zip(sources, snapshots, strict=True):
        reports.append(report(_with_host(snapshot, host.get(snapshot.target)), source.engine))
        await source.close()
    if gpus is not None:
        error = gpus.health.error
        if error is None or config.gpu.enabled:
            reports.append(report(gpus, None))
        else:
            absent.append({"address": GPU_TARGET, "usual": "GPUs", "error": as_json.failure(error)})
    return reports, absent


async def _gpus(config: Config, watched: Sequence[Watched], finder: Finder) -> Snapshot:
    source = GpuSource(config, lambda: watched, finder, explain=True)
    snapshot = await source.collect()
    await source.close()
    return snapshot


async def _host(config: Config, watched: Sequence[Watched], finder: Finder) -> Mapping[str, HostReading]:
    if not config.host or not watched:
        return {}
    readings = await HostWatch(finder, timeout=config.timeout).read(watched)
    elsewhere = {each.target.name for each in watched if not runs_here(each.target)}
    return {name: each._replace(hidden=None) if name in elsewhere else each for name, each in readings.items()}


def _with_host(snapshot: Snapshot, host: HostReading | None) -> Snapshot:
    """An engine that is up, with what this host tells of it, or why it does not."""
    if host is None or not snapshot.health.up:
        return snapshot
    warnings = (*snapshot.health.warnings, *([host.hidden] if host.hidden else []))
    health = replace(snapshot.health, warnings=warnings)
    return replace(snapshot, points=(*snapshot.points, *host.points), health=health)


async def _discovered(
    engines: Mapping[str, Engine], targets: Sequence[Target], absent: list[dict[str, Any]]
) -> list[Target]:
    known = {target.endpoint.url for target in targets}
    ports = sorted({engine.port for engine in engines.values() if engine.port})
    found = await asyncio.gather(*(_look(port, engines) for port in ports))
    discovered = []
    for port, (engine, failure) in zip(ports, found, strict=True):
        url = f"http://127.0.0.1:{port}"
        if engine is not None and url not in known:
            target = Target(name=f"127.0.0.1:{port}", endpoint=Endpoint(url=url), engine=engine.name)
            discovered.append(target)
        elif failure is not None:
            usual = ", ".join(each.title for each in engines.values() if each.port == port)
            absent.append({"address": f"127.0.0.1:{port}", "usual": usual, "error": as_json.failure(failure)})
    return discovered


async def _look(port: int, engines: Mapping[str, Engine]) -> tuple[Engine | None, Failure | None]:
    try:
        return await identify(Endpoint(url=f"http://127.0.0.1:{port}"), engines, timeout=LOOK_TIMEOUT), None
    except FetchError as failed:
        return None, failed.failure


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
        by_reason: dict[str, list[str]] = {}
        for entry in report["missing"]:
            by_reason.setdefault(entry["reason"], []).append(entry["metric"])
        for reason, names in by_reason.items():
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
    reports, absent = asyncio.run(collect(config))
    if form == "json":
        click.echo(json.dumps({"version": __version__, "sources": reports, "not_found": absent}, allow_nan=False))
    else:
        click.echo(text(reports, absent) or "Nothing to check: no engine and no GPU was found.")
    sys.exit(SOME_SOURCE_FAILED if any(not report["up"] for report in reports) else 0)
