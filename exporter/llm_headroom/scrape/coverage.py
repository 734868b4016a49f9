"""What a source does not expose of the schema, and why, as far as it can be known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.derive import capacity
from llm_headroom.derive.observation import observe
from llm_headroom.model import Subject

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from llm_headroom.engines.rules import Engine
    from llm_headroom.model import Metric, Snapshot

GPUS: Final = "nvml"
"""The engine label of GPU snapshots."""
_OF_GPUS: Final = frozenset({Subject.GPU, Subject.ATTRIBUTION})
_OF_ROUTERS: Final = frozenset({Subject.ROUTER})
_OF_ENGINES: Final = frozenset({Subject.ENGINE, Subject.DERIVED, Subject.PROXY, Subject.HOST})
_GIVEN_BY_OTHERS: Final = {
    Subject.DERIVED: "derived: needs traffic over some polls, or a metric that the engine does not expose",
    Subject.PROXY: "exposed by a measuring proxy in front of the engine",
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
    if snapshot.engine == GPUS:
        subjects = _OF_GPUS
    else:
        subjects = _OF_ROUTERS if engine is not None and engine.subject is Subject.ROUTER else _OF_ENGINES
    return (metric for metric in schema.ALL if metric.subject in subjects)


def missing(snapshot: Snapshot, engine: Engine | None) -> Iterator[tuple[str, str]]:
    """Names of canonical metrics that the source did not expose, each with the reason."""
    down = ""
    if not snapshot.health.up:
        down = snapshot.health.error.message if snapshot.health.error else "the source is down"
    exposed = {point.series.metric for point in snapshot.points}
    for metric in expected(snapshot, engine):
        if metric not in exposed:
            yield (
                metric.name,
                down or _load_headroom(metric, snapshot) or _reason(metric, engine, snapshot.health.withheld),
            )


def _load_headroom(metric: Metric, snapshot: Snapshot) -> str:
    """Why there is no load headroom, nor what follows from it, for the first model that lacks something."""
    if metric not in capacity.FOLLOWING:
        return ""
    models = observe(snapshot.points)
    reasons = (capacity.begun(now, 0.0, snapshot.engine).missing for now in models.values())
    return next((f"derived: {reason}" for reason in reasons if reason is not None), "")


def by_reason(missing: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Missing metrics' names by reason."""
    found: dict[str, list[str]] = {}
    for name, reason in missing:
        found.setdefault(reason, []).append(name)
    return found


def _reason(metric: Metric, engine: Engine | None, withheld: Collection[str]) -> str:
    if metric.subject in _GIVEN_BY_OTHERS:
        return _GIVEN_BY_OTHERS[metric.subject]
    if engine is None:
        return _UNTOLD.get(metric, "not supported by these devices or this driver")
    rules = [rule for rule in engine.rules if rule.metric is metric]
    where = engine.fact_sources.get(metric.name)
    if not rules and where is None:
        return f"{engine.title} does not expose this metric"
    parts = []
    if rules:
        names = ", ".join(dict.fromkeys(name for rule in rules for name in rule.names))
        needs = "; ".join(dict.fromkeys(rule.needs for rule in rules if rule.needs))
        parts.append(f"none of {names} has samples{f' (needs: {needs})' if needs else ''}")
    if where is not None:
        parts.append(f"not found in {where.replace('`', '')}")
        if withheld:
            parts.append(f"{', '.join(withheld)} wants credentials: give the target auth.bearer_token_file")
    return "; ".join(parts)
