"""From one poll to the next: what has to be remembered of a target, and the signals that follow. Pure and frozen."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.derive import headroom, risk, slo
from llm_headroom.derive.estimates import Estimates
from llm_headroom.derive.observation import Observation, growth, observe, restarted
from llm_headroom.model import Point, series_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from llm_headroom.model import Labels, Metric

PEAK_SECONDS: Final = 60.0
FINEST_SECONDS: Final = 1.0
"""Polls that follow one another faster are remembered as one, so that memory does not grow with their rate."""
STALLED_SECONDS: Final = 60.0
"""Longer than the longest chunk of prefill, and than the 30 s for which an idle SGLang may show stale gauges."""
FORGOTTEN_SECONDS: Final = 600.0
"""A model that has not been seen for so long begins anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMemory:
    """What is remembered of one model. `at` is the time of `last`, in seconds of the same clock as every poll's.

    `moved` is when its steps or tokens last moved, `restarts` how often its counters began anew.
    """

    at: float
    last: Observation
    estimates: Estimates = field(default_factory=Estimates)
    firsts: tuple[slo.Firsts, ...] = ()
    tallies: Mapping[str, slo.Tally] = field(default_factory=dict)
    moved: float
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered of one target: its models by name, and its replicas' recent KV usage by labels."""

    models: Mapping[str, ModelMemory] = field(default_factory=dict)
    usage: Mapping[Labels, tuple[tuple[float, float], ...]] = field(default_factory=dict)


def advance(
    memory: Memory,
    points: Sequence[Point],
    at: float,
    *,
    base: Mapping[str, str],
    objectives: Sequence[slo.Objective] = slo.OBJECTIVES,
) -> tuple[Memory, list[Point]]:
    """The memory after a poll, and the derived points.

    `at` is a monotonic time in seconds, `base` the labels that every series of the target has. A poll that comes no
    later than the one before adds nothing but is answered.
    """
    observations = observe(points)
    models = {model: _remembered(memory.models.get(model), now, at, objectives) for model, now in observations.items()}
    kept = {
        model: known
        for model, known in memory.models.items()
        if model not in models and at - known.at < FORGOTTEN_SECONDS
    }
    usage = _usage(memory.usage, points, at)
    derived = list(_peaks(usage))
    prompts = {model: known.estimates.prompt.value for model, known in models.items() if known.estimates.prompt.value}
    derived += headroom.kv_headroom(points, prompts)
    for model, known in models.items():
        derived += _signals(known, at, {**base, "model": model}, objectives)
    return Memory({**kept, **models}, usage), derived


def _remembered(
    known: ModelMemory | None, now: Observation, at: float, objectives: Sequence[slo.Objective]
) -> ModelMemory:
    if known is None or at <= known.at:
        tallies = {each.name: slo.tallied(slo.Tally(), each, None, now) for each in objectives}
        return ModelMemory(at=at, last=now, tallies=tallies, moved=at) if known is None else known
    elapsed, before = at - known.at, known.last
    tallies = {
        each.name: slo.tallied(known.tallies.get(each.name, slo.Tally()), each, before, now) for each in objectives
    }
    if restarted(before, now):
        return ModelMemory(at=at, last=now, tallies=tallies, moved=at, restarts=known.restarts + 1)
    moving = (
        growth(before.steps, now.steps) > 0
        or growth(before.generation_tokens, now.generation_tokens) > 0
        or growth(before.prompt_tokens, now.prompt_tokens) > 0
        or not _busy(now)
    )
    firsts = tuple(each for each in known.firsts if each.at > at - max(slo.WINDOWS))
    ttft = next((each for each in objectives if each.field == "ttft"), None)
    if ttft is not None and elapsed <= slo.LONGEST_GAP:
        fresh = slo.first_tokens(ttft, before, now, at)
        firsts = _with(firsts, fresh)
    return replace(
        known,
        at=at,
        last=now,
        estimates=known.estimates.after(before, now, elapsed),
        firsts=firsts,
        tallies=tallies,
        moved=at if moving else known.moved,
    )


def _with(firsts: tuple[slo.Firsts, ...], fresh: slo.Firsts | None) -> tuple[slo.Firsts, ...]:
    if fresh is None:
        return firsts
    if firsts and fresh.at - firsts[-1].at < FINEST_SECONDS:
        *before, last = firsts
        return (*before, slo.Firsts(last.at, last.total + fresh.total, last.slow + fresh.slow))
    return (*firsts, fresh)


def _busy(now: Observation) -> bool:
    """Whether requests are said to be there. Where steps are not told, a running request alone may be a stale gauge."""
    waiting = (now.waiting or 0.0) > 0
    return waiting or (now.steps is not None and (now.running or 0.0) > 0)


def _usage(
    known: Mapping[Labels, tuple[tuple[float, float], ...]], points: Sequence[Point], at: float
) -> dict[Labels, tuple[tuple[float, float], ...]]:
    usage: dict[Labels, tuple[tuple[float, float], ...]] = {}
    for series, value, _ in points:
        if series.metric is schema.KV_CACHE_USAGE and isinstance(value, float):
            recent = [each for each in known.get(series.labels, ()) if at - PEAK_SECONDS < each[0] < at]
            if recent and at - recent[-1][0] < FINEST_SECONDS and recent[-1][1] <= value:
                recent.pop()  # the higher one of two polls in quick succession speaks for both
            elif recent and at - recent[-1][0] < FINEST_SECONDS:
                usage[series.labels] = tuple(recent)
                continue
            usage[series.labels] = (*recent, (at, value))
    return usage


def _peaks(usage: Mapping[Labels, tuple[tuple[float, float], ...]]) -> Iterator[Point]:
    for labels, recent in usage.items():
        peak = max(value for _, value in recent)
        yield Point(series_of(schema.KV_CACHE_USAGE_PEAK, labels), peak, "highest poll of the last minute")


def _signals(
    known: ModelMemory, at: float, labels: Mapping[str, str], objectives: Sequence[slo.Objective]
) -> Iterator[Point]:
    now, estimates, own = known.last, known.estimates, tuple(labels.items())

    def point(metric: Metric, value: float | None, origin: str, **more: str) -> Iterator[Point]:
        if value is not None:
            yield Point(series_of(metric, (*own, *more.items())), value, origin)

    yield from point(schema.ENGINE_RESTARTS, float(known.restarts), "counters that fell")
    if now.steps is not None or now.generation_tokens is not None:
        stalled = _busy(now) and at - known.moved >= STALLED_SECONDS
        yield from point(schema.ENGINE_STALLED, float(stalled), "busy while steps and tokens do not move")
    yield from point(schema.KV_CACHE_HEADROOM_REQUESTS, headroom.requests(now, estimates), "headroom / request size")
    yield from point(schema.KV_CACHE_EXHAUSTION, headroom.exhaustion_seconds(now, estimates), "demand and residence")
    yield from point(schema.KV_SATURATION_RISK, risk.kv_saturation(now, estimates), "demand and its dispersion")
    for each in objectives:
        tally = known.tallies[each.name]
        if tally.boundary is None:
            continue
        told = {"slo": each.name}
        yield from point(schema.SLO_REQUESTS, tally.total, each.field, **told)
        yield from point(schema.SLO_REQUESTS_GOOD, tally.good, each.field, **told)
        yield from point(schema.SLO_THRESHOLD, tally.boundary, each.field, **told)
        yield from point(schema.SLO_OBJECTIVE, each.ratio, "configuration", **told)
        if each.field != "ttft":
            continue
        chance = risk.saturation(now, estimates, tally.boundary)
        yield from point(schema.SATURATION_RISK, chance, "load on prefill and KV demand")
        for window in slo.WINDOWS:
            share = slo.slow_share(known.firsts, window, at)
            if share is not None:
                name = f"{window:.0f}s"
                yield from point(schema.TTFT_SLOW, share[0], "first tokens of the window", window=name)
                yield from point(schema.TTFT_WINDOW_REQUESTS, share[1], "first tokens of the window", window=name)
