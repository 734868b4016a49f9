"""What a source does not expose of the schema, and why, as far as it can be known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.derive import capacity
from llm_headroom.derive.observation import observe
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.model import Subject, numbers

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from llm_headroom.engines.rules import Engine, Rule
    from llm_headroom.model import Metric, Snapshot

GPUS: Final = "nvml"
"""The engine label of GPU snapshots."""
_OF_GPUS: Final = frozenset({Subject.GPU, Subject.ATTRIBUTION})
_OF_ROUTERS: Final = frozenset({Subject.ROUTER})
_OF_ENGINES: Final = frozenset({Subject.ENGINE, Subject.DERIVED, Subject.PROXY, Subject.HOST})
_JUDGED: Final = frozenset({schema.ENGINE_STATE, schema.GPU_STATE})
"""Published with every collection, and no part of one."""
_GIVEN_BY_OTHERS: Final = {
    Subject.DERIVED: "worked out from several readings under traffic; see `llm-headroom top` after some minutes of it",
    Subject.HOST: "read on the engine's own host; run llm-headroom there, beside the engine",
    Subject.ATTRIBUTION: "no engine is known to hold memory of these devices",
}
"""Why a metric is missing that its source does not give alone, and what to do."""
_OF_LOADS: Final = frozenset({schema.MODEL_LOADS, schema.MODEL_UNLOADS, schema.SPILL_RISK, schema.EVICTION_RISK})
_MOST_WORDS: Final = 3
_WITHIN_HOST: Final = {
    schema.HOST_MEMORY_LIMIT: "the engine's control group has no memory limit",
    schema.HOST_MEMORY_PRESSURE: "the kernel reports it of control groups of version 2 only",
}
"""Why a metric of the host is missing where others are read there."""
BY_PROXY: Final = frozenset(
    {
        schema.TIME_TO_FIRST_TOKEN,
        schema.INTER_TOKEN_LATENCY,
        schema.TIME_PER_OUTPUT_TOKEN,
        schema.REQUEST_DURATION,
        schema.REQUEST_QUEUE,
        schema.REQUEST_PREFILL,
        schema.REQUEST_DECODE,
        schema.REQUEST_PROMPT_TOKENS,
        schema.REQUEST_GENERATION_TOKENS,
        schema.REQUESTS_RUNNING,
        schema.REQUESTS_FINISHED,
        schema.REQUESTS_FAILED,
        schema.PROMPT_TOKENS,
        schema.GENERATION_TOKENS,
    }
)
"""What a measuring proxy gives where the engine itself does not."""
_WANTING: Final = {
    **dict.fromkeys(
        (schema.ENGINE_COST, schema.COST_PER_MILLION_TOKENS),
        "needs the price of a GPU and the GPUs of the engine; set `gpu_hour` under `cost`",
    ),
    **dict.fromkeys(
        (schema.ENGINE_ENERGY, schema.ENERGY_PER_TOKEN), "needs the engine's GPUs to be read on this host through NVML"
    ),
    schema.ENGINE_GPUS: "needs the engine's GPUs to be read on this host through NVML, or `gpu_count` of its target",
    schema.GPU_PROCESS_MEMORY: "off, or no process is listed; set `processes: true` under `gpu` to get it",
    schema.GPU_PCIE_THROUGHPUT: "off, since it takes 40 ms for each GPU; set `pcie: true` under `gpu` to get it",
    schema.GPU_XID_ERRORS: "counted while the exporter runs; none seen since start",
    schema.GPU_XID_LAST: "counted while the exporter runs; none seen since start",
    schema.GPU_XID_WATCHED: "counted while the exporter runs",
}
"""What a metric wants that neither the engine nor the devices give by themselves."""


def expected(snapshot: Snapshot, engine: Engine | None) -> Iterator[Metric]:
    """The canonical metrics that a kind of source could give: those of GPUs, of routers, or of engines."""
    if snapshot.engine == GPUS:
        subjects = _OF_GPUS
    else:
        subjects = _OF_ROUTERS if engine is not None and engine.subject is Subject.ROUTER else _OF_ENGINES
    return (metric for metric in schema.ALL if metric.subject in subjects and metric not in _JUDGED)


def missing(snapshot: Snapshot, engine: Engine | None) -> Iterator[tuple[str, str]]:
    """Names of canonical metrics that the source did not expose, each with the reason."""
    down = ""
    if not snapshot.health.up:
        down = snapshot.health.error.message if snapshot.health.error else "the source is down"
    exposed = {point.series.metric for point in snapshot.points}
    read = {origin for point in snapshot.points for origin in point.origin.split()}
    for metric in expected(snapshot, engine):
        if metric not in exposed:
            yield (
                metric.name,
                down
                or _load_headroom(metric, snapshot, engine)
                or _reason(metric, engine, exposed, read, snapshot.health.withheld),
            )


def _load_headroom(metric: Metric, snapshot: Snapshot, engine: Engine | None) -> str:
    """Why there is no load headroom, nor what follows from it, for the first model that lacks something."""
    if metric not in capacity.FOLLOWING:
        return ""
    if any(value for _, value in numbers(snapshot.points, schema.ENGINE_STALLED)):
        return f"derived: {capacity.Missing.STALLED}"
    models = observe(snapshot.points)
    if not models:
        return _proxy(engine) if _proxy_flag(engine) else f"derived: {capacity.Missing.REQUESTS}"
    reasons = (capacity.begun(now, 0.0, snapshot.engine).missing for now in models.values())
    return next((f"derived: {reason}" for reason in reasons if reason is not None), "")


def by_reason(missing: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Missing metrics' names by reason."""
    found: dict[str, list[str]] = {}
    for name, reason in missing:
        found.setdefault(reason, []).append(name)
    return found


def _proxy_flag(engine: Engine | None) -> str:
    """The flag for a measuring proxy, empty if the engine reports requests by itself."""
    return "" if engine is None else engine.proxy_flag


def _proxy(engine: Engine | None) -> str:
    seen = "seen only by a measuring proxy in front of the engine"
    if flag := _proxy_flag(engine):
        return f"{seen}; run with `{flag}` to get it"
    return f"{seen}; name one under `proxies` to get it"


def _few(words: Sequence[str], between: str) -> str:
    """The first of many, and how many more there are: METRICS.md lists them all."""
    more = len(words) - _MOST_WORDS
    return between.join([*words[:_MOST_WORDS], *([f"{more} more"] if more > 0 else [])])


def _inapplicable(metric: Metric, engine: Engine | None, exposed: Collection[Metric]) -> str:
    """Why a source like this never has a metric, whatever one waits for; empty if it may."""
    if metric in _OF_LOADS and schema.MODELS_LOADED not in exposed:
        return "only of engines that load models on demand, such as Ollama"
    if metric is schema.QUEUE_OVERFLOW_RISK and engine is not None and engine.queue_limit is None:
        return "only of engines that limit their queue by default, such as Ollama"
    if metric in _WITHIN_HOST and any(other.subject is Subject.HOST for other in exposed):
        return _WITHIN_HOST[metric]
    return _WANTING.get(metric, "")


def _reason(
    metric: Metric,
    engine: Engine | None,
    exposed: Collection[Metric],
    read: Collection[str],
    withheld: Collection[str],
) -> str:
    if why := _inapplicable(metric, engine, exposed):
        return why
    if metric.subject in _GIVEN_BY_OTHERS:
        return _GIVEN_BY_OTHERS[metric.subject]
    if metric.subject is Subject.PROXY or (metric in BY_PROXY and _proxy_flag(engine)):
        return _proxy(engine)
    if engine is None:
        return "not supported by these devices or this driver"
    rules = [rule for rule in engine.rules if rule.metric is metric]
    where = engine.fact_sources.get(metric.name)
    if not rules and where is None:
        if engine.name not in BUILT_IN:
            return f"no rule under `engines.{engine.name}` gives it"
        return _proxy(engine) if metric in BY_PROXY else f"{engine.title} does not expose this metric"
    return "; ".join(_not_found(rules, where, read, withheld))


def _not_found(
    rules: Sequence[Rule], where: str | None, read: Collection[str], withheld: Collection[str]
) -> Iterator[str]:
    """Why neither the engine's rules nor its documents gave a metric which they could."""
    if rules:
        names = _few([*dict.fromkeys(name for rule in rules for name in rule.names)], " or ")
        needs = _few([*dict.fromkeys(rule.needs for rule in rules if rule.needs)], "; ")
        there = next((name for rule in rules for name in rule.names if name in read), "")
        lacking = f"{there} of the engine does not say it" if there else f"the engine exposes no {names}"
        yield f"{lacking}{f' (needs: {needs})' if needs else ''}"
    if where is not None:
        yield f"not found in {where.replace('`', '')}"
        if withheld:
            yield f"{', '.join(withheld)} wants credentials: give the target auth.bearer_token_file"
