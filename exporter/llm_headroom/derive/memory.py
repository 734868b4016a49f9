"""From one poll to the next: what has to be remembered of a target, and the signals that follow. Pure and frozen."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import field, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.derive import capacity, headroom, pressure, residency, restart, risk, slo, stalls, turnover
from llm_headroom.derive.estimates import Estimates
from llm_headroom.derive.loaded import loaded
from llm_headroom.derive.observation import Observation, growth, histogram_growth, observe
from llm_headroom.frozen import frozen, frozen_named
from llm_headroom.model import Common, Point, numbers, point, series_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from llm_headroom.model import Labels, Metric

PEAK_SECONDS: Final = 60.0
HAPPENING_SECONDS: Final = 60.0
"""For how long after a preemption requests are taken to be preempted."""
_THEN: Final = itemgetter(0)
_USAGE: Final = itemgetter(1)
_LATE_SHARE: Final = 0.05
_LATE_FIRSTS: Final = 3
FORGOTTEN_SECONDS: Final = 600.0
"""A model that has not been seen for so long starts again."""
MOST_MODELS: Final = 200
"""Models that are remembered while they are away, those that were seen last."""


@frozen_named
class ModelMemory:
    """What is remembered of one model. `at` is the time of `last`, in seconds of the same clock as every poll's.

    `counts` is `last` with the latest values of the counters that it lacks. `hottest` is `last` with the KV
    cache and queue of the fullest of its `replicas`. `moved` is when its steps or tokens last moved, `restarts` how
    often its counters were reset, `preempted` when requests were last seen to be preempted, `load` what its load
    headroom follows from. `queue` is what waits for a first token.
    """

    at: float
    last: Observation
    counts: Observation = field(default_factory=Observation)
    estimates: Estimates = field(default_factory=Estimates)
    firsts: tuple[slo.Firsts, ...] = ()
    queue: slo.Queue = field(default_factory=slo.Queue)
    tallies: Mapping[str, slo.Tally] = field(default_factory=dict)
    levels: pressure.Levels = field(default_factory=pressure.Levels)
    replicas: int = 1
    hottest: Observation = field(default_factory=Observation)
    moved: float
    restarts: int = 0
    preempted: float = -math.inf
    load: capacity.Known


@frozen
class Memory:
    """What is remembered of one target.

    Its models by name, its replicas' recent KV usage and progress by labels, which models were in memory, and how
    often they came and went. `reading` is what the last poll could read, `gap` says that polls have failed since.
    """

    models: Mapping[str, ModelMemory] = field(default_factory=dict)
    usage: Mapping[Labels, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    replicas: Mapping[Labels, stalls.Replica] = field(default_factory=dict)
    resident: residency.Residency | None = None
    turnover: turnover.Turnover | None = None
    reading: restart.Reading | None = None
    gap: bool = False


_NOTHING_READ: Final = restart.Reading()


def advance(  # noqa: PLR0913 - each is a choice of its own
    memory: Memory,
    points: Sequence[Point],
    at: float,
    *,
    base: Mapping[str, str],
    objectives: Sequence[slo.Objective] = slo.USUAL,
    queue_limit: int | None = None,
    reading: restart.Reading = _NOTHING_READ,
) -> tuple[Memory, list[Point]]:
    """The memory after a poll, and the derived points.

    `at` is a monotonic time in seconds, `base` the labels that every series of the target has, `queue_limit` the most
    requests that may wait, `reading` what this poll could read. A poll that comes no later than the one before adds
    nothing but is answered.
    """
    pools = headroom.kv_pools(points)
    time = restart.between(memory.reading, reading, gap=memory.gap)
    observed = observe(points)
    latest = max((known.at for known in memory.models.values()), default=at)
    if any(known.at == latest and model not in observed for model, known in memory.models.items()):
        time = time._replace(born=False)  # a model that appears may be one that was named otherwise
    models = {
        model: _remembered(
            memory.models.get(model),
            now,
            headroom.fullest(pools, model, now),
            at,
            objectives,
            time,
            base.get("engine", ""),
        )
        for model, now in observed.items()
    }
    away = sorted(memory.models.keys() - models.keys(), key=lambda model: memory.models[model].at)
    retained = {model: memory.models[model] for model in away[-MOST_MODELS:]}
    usage = _usage(memory.usage, points, at)
    derived = list(_peaks(usage))
    prompts = {
        model: known.estimates.computed.value
        for model, known in models.items()
        if known.estimates.computed.value is not None
    }
    derived += headroom.kv_headroom(pools, prompts)
    progress = stalls.advance(memory.replicas, pools, points, at)
    for model, known in models.items():
        labels = base.extended("model", model) if isinstance(base, Common) else {**base, "model": model}
        stalled = [*stalls.stalled(progress, model, at)] or [*_stalled(known, at, labels)]
        derived += stalled
        derived += _signals(known, at, labels, objectives, queue_limit)
        if not any(each.value for each in stalled):  # what it would take if it went on is no answer to how much fits
            derived += capacity.points(known.load, labels)
    in_memory = loaded(points)
    resident = residency.advance(memory.resident, in_memory, at)
    if resident is not None:
        derived += residency.risks(resident, base)
    turned = turnover.advance(memory.turnover, in_memory)
    if turned is not None:
        derived += turnover.points(turned, base)
    return Memory({**retained, **models}, usage, progress, resident, turned, reading), derived


def with_estimate(memory: Memory, model: str, estimate: capacity.Estimate) -> Memory:
    """The memory with an estimate of a model's load headroom, which took its time: nothing if it is gone since."""
    known = memory.models.get(model)
    if known is None or known.load.begun > estimate.at:
        return memory
    return replace(memory, models={**memory.models, model: replace(known, load=known.load.with_estimate(estimate))})


def has_elders(memory: Memory) -> bool:
    """Whether new models may take over something of it."""
    return any(known.load.elder for known in memory.models.values())


def with_kin(memory: Memory, others: Iterable[Memory]) -> Memory:
    """The memory in which models that are new have the step cost of the same model on `others` of the same kind."""
    new = {model: known for model, known in memory.models.items() if known.load.new}
    if not new:
        return memory
    kin = [(model, known.load) for each in others for model, known in each.models.items()]
    heirs = {
        model: replace(known, load=known.load.heir_of(load for name, load in kin if name == model))
        for model, known in new.items()
    }
    return replace(memory, models={**memory.models, **heirs})


def _remembered(  # noqa: PLR0913, PLR0917 - each is of one poll
    known: ModelMemory | None,
    now: Observation,
    fullest: tuple[Observation, int],
    at: float,
    objectives: Sequence[slo.Objective],
    time: restart.Between,
    engine: str,
) -> ModelMemory:
    hottest, replicas = fullest
    if known is not None and at <= known.at:
        return known

    def fresh(tallies: Mapping[str, slo.Tally], restarts: int = 0) -> ModelMemory:
        return ModelMemory(
            at=at,
            last=now,
            counts=now,
            tallies=tallies,
            replicas=replicas,
            hottest=hottest,
            moved=at,
            restarts=restarts,
            load=capacity.begun(now, at, engine, None if known is None else known.load),
        )

    if known is None or at - known.at >= FORGOTTEN_SECONDS:
        # A model that was never seen has begun like a counter, one that was forgotten may have gone on meanwhile.
        before = restart.begun(Observation(), now, time, restart=False) if known is None else Observation()
        return fresh(_tallies({}, before, now, objectives))
    restarted = restart.restarted(known.counts, now, time)
    begun = restart.begun(known.counts, now, time, restart=restarted)
    tallies = _tallies(known.tallies, begun, now, objectives)
    if restarted:
        return fresh(tallies, known.restarts + 1)
    if _judged_otherwise(known.tallies, tallies):
        known = replace(
            known, firsts=(), queue=slo.Queue(), levels=pressure.Levels(), load=known.load.without_estimates()
        )
    # What was not read for a while has grown in a time that nobody knows: it is counted, but makes no rate.
    before = restart.since(known.last, known.counts, begun)
    elapsed = at - known.at
    firsts = known.firsts
    ttft = next((each for each in objectives if each.field == "ttft"), None)
    if ttft is not None and elapsed <= slo.LONGEST_GAP:
        firsts = slo.first_tokens(firsts, ttft, before, now, at)
    estimates = known.estimates.after(before, now, elapsed)
    threshold = None if ttft is None else tallies[ttft.name].boundary
    preempted = at if growth(before.preemptions, now.preemptions) > 0 else known.preempted
    own = estimates.of_one(replicas)
    return ModelMemory(
        at=at,
        last=now,
        counts=restart.carried(known.counts, now),
        estimates=estimates,
        replicas=replicas,
        hottest=hottest,
        levels=known.levels.after(
            pressure.resources(hottest, own, threshold),
            pressure.mark(hottest, own, threshold, at),
            at,
            elapsed,
        ),
        firsts=firsts,
        queue=_queue(known.queue, before, now, at, ttft, threshold, preempted=at - preempted < HAPPENING_SECONDS),
        tallies=tallies,
        moved=at if _moving(before, now) else known.moved,
        restarts=known.restarts,
        preempted=preempted,
        load=known.load.after(now, at, replicas),
    )


def _moving(before: Observation, now: Observation) -> bool:
    """Whether the engine gets on with its requests, or has none."""
    return (
        growth(before.steps, now.steps) > 0
        or growth(before.generation_tokens, now.generation_tokens) > 0
        or growth(before.prompt_tokens, now.prompt_tokens) > 0
        or not _busy(now)
    )


def _queue(  # noqa: PLR0913, PLR0917 - each is of one poll
    queue: slo.Queue,
    before: Observation,
    now: Observation,
    at: float,
    ttft: slo.Objective | None,
    threshold: float | None,
    *,
    preempted: bool,
) -> slo.Queue:
    """What waits for its first token, as far as those that came tell; `preempted`: requests were, just before."""
    came = histogram_growth(before.ttft, now.ttft)
    firsts = 0.0 if came is None else came.count
    if ttft is not None and now.ttft is None and now.generation_tokens is not None:
        # Of an engine that does not measure first tokens, such as llama.cpp, prompts that are worked off show them.
        threshold = ttft.seconds
        if growth(before.prompt_tokens, now.prompt_tokens) > 0:
            queue = slo.Queue()
    elif firsts and preempted:  # those that were preempted wait for no first token
        queue = slo.Queue()
    return queue.after(now.waiting or 0.0, at, threshold, firsts)


def _tallies(
    known: Mapping[str, slo.Tally], before: Observation, now: Observation, objectives: Sequence[slo.Objective]
) -> dict[str, slo.Tally]:
    return {each.name: slo.tallied(known.get(each.name, slo.Tally()), each, before, now) for each in objectives}


def _judged_otherwise(before: Mapping[str, slo.Tally], now: Mapping[str, slo.Tally]) -> bool:
    """Whether objectives have changed: what was counted and estimated by others is not comparable."""
    known = {name: tally.boundary for name, tally in before.items() if tally.boundary is not None}
    return any(name not in now or now[name].boundary != boundary for name, boundary in known.items())


def _busy(now: Observation) -> bool:
    return stalls.busy(now.running, now.waiting, counts_steps=now.steps is not None)


def _usage(
    known: Mapping[Labels, tuple[tuple[float, float], ...]], points: Sequence[Point], at: float
) -> dict[Labels, tuple[tuple[float, float], ...]]:
    usage: dict[Labels, tuple[tuple[float, float], ...]] = {}
    for series, value in numbers(points, schema.KV_CACHE_USAGE):
        before = known.get(series.labels, ())
        begin, end = bisect_right(before, at - PEAK_SECONDS, key=_THEN), bisect_left(before, at, key=_THEN)
        recent = [*before[begin:end]]
        if recent and at - recent[-1][0] < slo.FINEST_SECONDS:  # the higher one of two polls in quick succession speaks
            last = recent.pop()
            recent.append((at, value) if _USAGE(last) <= value else last)
        else:
            recent.append((at, value))
        usage[series.labels] = tuple(recent)
    return usage


def _peaks(usage: Mapping[Labels, tuple[tuple[float, float], ...]]) -> Iterator[Point]:
    for labels, recent in usage.items():
        peak = max(map(_USAGE, recent))
        yield Point(series_of(schema.KV_CACHE_USAGE_PEAK, labels), peak, "highest poll of the last minute")


def _signals(
    known: ModelMemory,
    at: float,
    labels: Mapping[str, str],
    objectives: Sequence[slo.Objective],
    queue_limit: int | None,
) -> list[Point]:
    now, estimates = known.last, known.estimates
    hottest, each_one = known.hottest, estimates.of_one(known.replicas)
    exhausted = at - known.preempted < HAPPENING_SECONDS or risk.blocked(hottest, each_one)
    found: list[Point] = []

    def say(metric: Metric, value: float | None, origin: str, **more: str) -> None:
        if value is not None:
            found.append(point(metric, value, origin, labels, **more))

    say(schema.ENGINE_RESTARTS, float(known.restarts), "counters that fell or are gone, start, version")
    say(schema.KV_CACHE_HEADROOM_REQUESTS, headroom.requests(now, estimates), "headroom / request size")
    say(schema.KV_CACHE_EXHAUSTION, headroom.exhaustion_seconds(hottest, each_one), "demand and residence")
    overflow = risk.queue_overflow(now, estimates, queue_limit)
    say(schema.QUEUE_OVERFLOW_RISK, overflow, "queue and arrivals against its limit")
    saturation = risk.with_facts(risk.kv_saturation(hottest, each_one), exhausted)
    say(schema.KV_SATURATION_RISK, saturation, "demand and its dispersion, preemptions, what waits")
    if objectives:  # it says how likely first tokens are to miss their objective: a target for batches has none
        high_water = risk.with_facts(risk.high_water(known.levels, estimates), exhausted, _overdue(known, at))
        say(schema.SATURATION_HIGH_WATER, high_water, "highest TTFT forecast and KV demand of 10 min")
    for resource, level in known.levels.by_resource().items():
        say(schema.PRESSURE, level, "demand / capacity", resource=resource)
    if now.prompt_tokens is not None:
        say(schema.TOKEN_THROUGHPUT, estimates.prompt_rate.value, "growth of llm_prompt_tokens_total", phase="prompt")
    if now.generation_tokens is not None:
        rate, origin = estimates.generation_rate.value, "growth of llm_generation_tokens_total"
        say(schema.TOKEN_THROUGHPUT, rate, origin, phase="generation")
    _service_levels(known, at, objectives, say)
    awaited = known.queue.overdue if now.overdue is None else 0.0
    say(schema.FIRST_TOKENS_OVERDUE, awaited or None, "waits, whoever gets first tokens")
    return found


def _service_levels(
    known: ModelMemory, at: float, objectives: Sequence[slo.Objective], say: Callable[..., None]
) -> None:
    now = known.last
    for each in objectives:
        tally = known.tallies[each.name]
        if tally.boundary is None or getattr(now, each.field) is None:  # what is no longer counted is no count of now
            continue
        say(schema.SLO_REQUESTS, tally.total, each.field, slo=each.name)
        say(schema.SLO_REQUESTS_GOOD, tally.good, each.field, slo=each.name)
        say(schema.SLO_THRESHOLD, tally.boundary, each.field, slo=each.name)
        say(schema.SLO_OBJECTIVE, each.ratio, "configuration", slo=each.name)
        if each.field == "ttft":
            for window in slo.WINDOWS:
                share = slo.slow_share(known.firsts, window, at)
                if share is not None:
                    name = f"{window:.0f}s"
                    say(schema.TTFT_SLOW, share[0], "first tokens of the window", window=name)
                    say(schema.TTFT_WINDOW_REQUESTS, share[1], "first tokens of the window", window=name)


def _stalled(known: ModelMemory, at: float, labels: Mapping[str, str]) -> Iterator[Point]:
    """Whether nothing moves although requests are there, and what that follows from."""
    now = known.last
    if now.silence is not None:  # a proxy counts tokens when a request ends, and sees bytes as they come
        value, sign = float(now.silence >= stalls.STALLED_SECONDS), "clients that get nothing"
    elif now.steps is not None or now.generation_tokens is not None:
        value = float(_busy(now) and at - known.moved >= stalls.STALLED_SECONDS)
        sign = "busy while steps and tokens do not move"
    else:
        return
    yield point(schema.ENGINE_STALLED, value, sign, labels)


def _overdue(known: ModelMemory, at: float) -> bool:
    """Whether first tokens come too late now: at least three of the last minute and of those awaited, and 5 %."""
    awaited = known.last.overdue or known.queue.overdue
    share, total = slo.slow_share(known.firsts, min(slo.WINDOWS), at) or (0.0, 0.0)
    late = share * total + awaited
    return late >= _LATE_FIRSTS and late / (total + awaited) >= _LATE_SHARE
