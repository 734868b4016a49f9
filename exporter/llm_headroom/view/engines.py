"""Cards of engines: one for each model of a target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.derive import replicas
from llm_headroom.model import Level, Subject, numbers
from llm_headroom.thresholds import DEFAULT
from llm_headroom.view.history import HISTOGRAM_SPAN, grown, key_of, rate, rates
from llm_headroom.view.quantiles import RANKS, quantile
from llm_headroom.view.signals import UNJUDGED, Said, ages, gauge_line, line
from llm_headroom.view.text import percent
from llm_headroom.view.values import (
    ORDER,
    Condition,
    EngineCard,
    KvCache,
    Latency,
    Load,
    Objective,
    Router,
    Share,
    Slow,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llm_headroom.model import Metric, Point, Snapshot
    from llm_headroom.view.history import History, Reading
    from llm_headroom.view.values import Missing, Source

NOT_LOADED: Final = Condition("not loaded", Level.GOOD, "the next request loads it")
"""Of a model that an engine could load: no state of the engine is about it."""
MOST_NAMES: Final = 3
"""Models of a target that is down whose names are shown."""
RATE_WINDOW: Final = 30.0
"""Seconds over which tokens per second are taken."""
LATENCY_WINDOW: Final = HISTOGRAM_SPAN
"""Seconds over which latencies are shown."""
_KV: Final = {
    "capacity": schema.KV_CACHE_CAPACITY,
    "used": schema.KV_CACHE_USED,
    "evictable": schema.KV_CACHE_EVICTABLE,
    "usage": schema.KV_CACHE_USAGE,
    "peak": schema.KV_CACHE_USAGE_PEAK,
    "headroom_tokens": schema.KV_CACHE_HEADROOM_TOKENS,
    "headroom_ratio": schema.KV_CACHE_HEADROOM_RATIO,
    "headroom_requests": schema.KV_CACHE_HEADROOM_REQUESTS,
    "exhaustion_seconds": schema.KV_CACHE_EXHAUSTION,
}
_KINDS: Final = ("weights", "kv_cache", "graph", "total", "device")


def cards(
    snapshot: Snapshot, source: Source, history: History, missing: tuple[Missing, ...], states: Mapping[str, Condition]
) -> tuple[EngineCard, ...]:
    """The cards of a target, with the states of its models by name.

    One that is down has a single card with the error, the names of its models, and no value from before. So have models
    that are judged although they are no longer exposed, as where others have taken their place.
    """
    if not source.up:
        return (_bare(source, history.models(source.target), states),)
    by_model: dict[str, list[Point]] = {}
    for point in snapshot.points:
        by_model.setdefault(key_of(point), []).append(point)
    whole = by_model.pop("", [])
    router = any(point.series.metric.subject is Subject.ROUTER for point in snapshot.points)
    if not by_model or router:
        every = [*whole, *(point for points in by_model.values() for point in points)]
        if router:
            readings = [history.readings(source.target, key) for key in ("", *by_model)]
            return (_router(every, source, readings, missing, states.get("")),)
        return (_card("", every, source, history.readings(source.target, ""), missing, states.get("")),)
    # Models that are in memory first; the order of the engine otherwise.
    models = sorted(by_model, key=lambda name: Said(by_model[name]).get(schema.MODEL_LOADED) == 0.0)
    # What an engine exposes of itself and of no model is of the only model, where there is only one.
    shared = whole if len(models) == 1 else []
    found = [
        _card(
            name, [*by_model[name], *shared], source, history.readings(source.target, name), missing, states.get(name)
        )
        for name in models
    ]
    gone = {model: state for model, state in states.items() if model and model not in by_model}
    return (*found, _bare(source, tuple(gone), gone)) if gone else tuple(found)


def _id(target: str, model: str) -> str:
    return f"engine/{target}/{model}"


def _bare(source: Source, models: Sequence[str], states: Mapping[str, Condition]) -> EngineCard:
    """A card without values, of the worst state.

    The name of the only model stays in its id, so that whoever looks at it goes on to see it.
    """
    only = models[0] if len(models) == 1 else ""
    worst = min(states.values(), key=lambda state: ORDER[state.level], default=None)
    return EngineCard(
        id=_id(source.target, only),
        source=source,
        state=worst or Condition("down", Level.BAD, source.error),
        model=only or ", ".join(models[:MOST_NAMES]) + (" …" if len(models) > MOST_NAMES else ""),
    )


def _card(  # noqa: PLR0913, PLR0917 - what a card is made of
    model: str,
    points: Sequence[Point],
    source: Source,
    readings: Sequence[Reading],
    missing: tuple[Missing, ...],
    state: Condition | None,
) -> EngineCard:
    said = Said(replicas.combined(points))
    waiting, running = said.get(schema.REQUESTS_WAITING), said.get(schema.REQUESTS_RUNNING)
    kv = _kv_cache(said, points)
    offload, loaded = said.get(schema.MODEL_OFFLOAD), said.get(schema.MODEL_LOADED)
    memory = said.by(schema.MODEL_MEMORY, "kind")
    saturations = said.by(schema.SATURATION, "resource")
    saturation = saturations.pop("max", None)
    return EngineCard(
        id=_id(source.target, model),
        source=source,
        state=state or (NOT_LOADED if loaded == 0.0 else UNJUDGED),
        notes=_notes(offload, source),
        model=model,
        replicas=len({replica for point in points if (replica := point.series.replica)}),
        load=_load(points, said),
        running=running,
        waiting=waiting,
        limit=said.get(schema.REQUESTS_RUNNING_LIMIT),
        saturation=saturation,
        saturation_by=max(saturations, key=saturations.__getitem__, default="") if saturation is not None else "",
        prompt_rate=rate(readings, schema.PROMPT_TOKENS, RATE_WINDOW),
        generation_rate=rate(readings, schema.GENERATION_TOKENS, RATE_WINDOW),
        latencies=_latencies(readings),
        kv=kv,
        loaded=None if loaded is None else bool(loaded),
        memory=tuple(Share(kind, memory[kind]) for kind in _KINDS if kind in memory),
        offload=offload,
        expires=said.get(schema.MODEL_EXPIRY),
        slow=tuple(Slow(window, ratio) for window, ratio in said.by(schema.TTFT_SLOW, "window").items()),
        objectives=_objectives(points, said),
        risks=said.risks(),
        ages=ages(readings),
        lines=(
            *gauge_line("running", readings, schema.REQUESTS_RUNNING),
            *gauge_line("waiting", readings, schema.REQUESTS_WAITING),
            *line("prompt_rate", rates(readings, schema.PROMPT_TOKENS)),
            *line("generation_rate", rates(readings, schema.GENERATION_TOKENS)),
            *gauge_line("kv_usage", readings, schema.KV_CACHE_USAGE),
        ),
        missing=missing,
    )


def _load(points: Sequence[Point], said: Said) -> tuple[Load, ...]:
    binding = {
        series.label("objective"): series.label("resource")
        for series, value in numbers(points, schema.LOAD_HEADROOM_BINDING)
        if value
    }
    sustainable = said.by(schema.SUSTAINABLE_REQUESTS, "objective")
    suspect = bool(said.get(schema.LOAD_HEADROOM_SUSPECT))
    return tuple(
        Load(objective, headroom, binding.get(objective, ""), sustainable.get(objective), suspect)
        for objective, headroom in said.by(schema.LOAD_HEADROOM, "objective").items()
    )


def _latencies(readings: Sequence[Reading]) -> tuple[Latency, ...]:
    first = _latency(readings, schema.TIME_TO_FIRST_TOKEN)
    between = _latency(readings, schema.INTER_TOKEN_LATENCY) or _latency(readings, schema.TIME_PER_OUTPUT_TOKEN)
    return tuple(each for each in (first, between) if each is not None)


def _latency(readings: Sequence[Reading], metric: Metric) -> Latency | None:
    """A latency over the last `LATENCY_WINDOW` seconds; None where the histogram was not seen twice."""
    found = grown(readings, metric, LATENCY_WINDOW)
    if found is None:
        return None
    seconds, growth = found
    quantiles = tuple(each for rank in RANKS if (each := quantile(rank, growth.bounds, growth.counts)) is not None)
    return Latency(metric.name, seconds, growth.counts[-1], quantiles)


def _objectives(points: Sequence[Point], said: Said) -> tuple[Objective, ...]:
    """Objectives that anything has counted for, all replicas together."""
    counted: dict[str, dict[str, float]] = {}
    for series, value in numbers(points, schema.SLO_REQUESTS, schema.SLO_REQUESTS_GOOD):
        sums = counted.setdefault(series.label("slo"), {})
        sums[series.metric.name] = sums.get(series.metric.name, 0.0) + value
    thresholds, wanted = said.by(schema.SLO_THRESHOLD, "slo"), said.by(schema.SLO_OBJECTIVE, "slo")
    return tuple(
        Objective(
            name, thresholds.get(name), wanted.get(name), sums.get(schema.SLO_REQUESTS_GOOD.name, 0.0) / total, total
        )
        for name, sums in counted.items()
        if (total := sums.get(schema.SLO_REQUESTS.name, 0.0)) > 0
    )


def _kv_cache(said: Said, points: Sequence[Point]) -> KvCache | None:
    found = {name: said.get(metric) for name, metric in _KV.items()}
    if found["usage"] is None and found["used"] is None:
        return None
    usages = [value for _, value in numbers(points, schema.KV_CACHE_USAGE)]
    capacity, used = found["capacity"], found["used"]
    free = None
    if capacity is not None and used is not None:
        free = max(capacity - used - (found["evictable"] or 0.0), 0.0)
    return KvCache(free=free, worst=max(usages) if len(usages) > 1 else None, **found)


def _notes(offload: float | None, source: Source) -> tuple[str, ...]:
    found = []
    if offload is not None and offload < DEFAULT.offload_low:
        found.append("on the CPU" if offload == 0.0 else f"{percent(1 - offload)} spilled to the CPU")
    if source.warnings:
        found.append("partly collected: see warning")
    return tuple(found)


def _router(
    points: Sequence[Point],
    source: Source,
    histories: Sequence[Sequence[Reading]],
    missing: tuple[Missing, ...],
    state: Condition | None,
) -> EngineCard:
    said = Said(points)
    healthy = said.by(schema.ROUTER_WORKER_HEALTHY, "worker")
    workers = said.get(schema.ROUTER_WORKERS)
    up = sum(1.0 for value in healthy.values() if value)
    rates_in = [rate(readings, schema.ROUTER_REQUESTS, RATE_WINDOW) for readings in histories]
    taken_in = [each for each in rates_in if each is not None]
    own = histories[0]
    return EngineCard(
        id=_id(source.target, ""),
        source=source,
        state=state or UNJUDGED,
        notes=_notes(None, source),
        router=Router(
            active=said.get(schema.ROUTER_REQUESTS_ACTIVE),
            waiting=said.get(schema.ROUTER_REQUESTS_WAITING),
            workers=float(len(healthy)) if workers is None and healthy else workers,
            healthy=up if healthy else None,
            request_rate=sum(taken_in) if taken_in else None,
        ),
        ages=ages(own),
        lines=gauge_line("active", own, schema.ROUTER_REQUESTS_ACTIVE),
        missing=missing,
    )
