"""The state of each model of an engine, with a reason in words that contains its numbers.

Pure: from what is remembered, and one collection with its health. The alerts judge the same metrics by the same
thresholds; a contract test holds both together. No forecast takes part: what is judged has happened.
"""

from __future__ import annotations

import math
from dataclasses import field, replace
from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.derive.counts import COUNTED, Sample, increase, of_this_life
from llm_headroom.derive.figures import figures
from llm_headroom.derive.observation import growth
from llm_headroom.derive.settled import Finding, Settled, settle
from llm_headroom.derive.words import span
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.frozen import frozen, frozen_named
from llm_headroom.model import ENGINE_STATES, Cause, Point, Series, State, numbers
from llm_headroom.thresholds import DEFAULT, RATE_SECONDS, RESTARTS_SECONDS, SETTLED_SECONDS, SLOW_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from llm_headroom.model import Failure, Judged, Snapshot

SAMPLE_SECONDS: Final = 14.0
"""Seconds between remembered counts: as fine as Prometheus' usual scrapes, which the alerts see."""
RISE: Final[Mapping[State, float]] = {
    **dict.fromkeys((State.DOWN, State.MISREAD, State.UNKNOWN), 9.0),
    State.LAGGING: 60.0,
    State.TIGHT: 14.0,
    State.IDLE: 60.0,
}
"""Seconds for which a finding must last before it is the state: one lost poll is no outage. Others hold at once."""
CLEAR: Final[Mapping[State, float]] = {
    **dict.fromkeys((State.FAILING, State.SLOW, State.LAGGING, State.TIGHT), 60.0),
    State.BLOCKED: 15.0,
}
"""Seconds after its last sign for which a state goes on, so that none flickers. Others end at once."""

UNSURE_SECONDS: Final = 600.0
"""The same of slow first tokens while almost none comes in time: that few ask heals nothing."""
_UNSURE: Final = {**CLEAR, State.SLOW: UNSURE_SECONDS}
REPLACED_SECONDS: Final = 1800.0
"""Time for which a model is missed whose place another one has taken."""
ANSWERED_SECONDS: Final = 60.0
"""Time for which an answer through its proxy shows that an engine is there although it cannot be read."""
AT_WORK_SECONDS: Final = 30.0
"""An engine that ends within so much of its last request has not been drained: it ended unplanned."""
_LATE_TOKENS: Final = 30.0
"""Fewest late tokens that count: of the few of a single answer some always wait for the prompt of another one."""
_MOST: Final = 0.5
"""Share of late tokens that is most of them, as for LLMTokensTrickle."""
_ABSENT: Final = frozenset({Cause.REFUSED, Cause.UNREACHABLE, Cause.TIMEOUT, Cause.STATUS, Cause.PROTOCOL})
"""Failures of an engine that is not there, or not yet."""
_MISREAD: Final = frozenset({Cause.NOT_THIS_ENGINE, Cause.FORMAT, Cause.REDIRECT, Cause.TOO_LARGE, Cause.TRUNCATED})
"""Failures of something that answers, but not as this engine."""

PROGRESS: Final = ("first", "prompts", "finished")
"""Counters that move when a request is admitted: first tokens, prompt tokens; without these, finished requests."""
_MOVES: Final = (*PROGRESS, "routed", "generated")
"""Counters that show that an engine gets on with its requests; the last one does not of those that wait."""
_SEEN_BY: Final = ("running", "waiting", "firsts", "first", "workers")
"""Without any of these nobody knows whether requests wait: those that end say nothing of it."""


_LOSABLE: Final[Mapping[str, str]] = {
    "first": "first tokens",
    "waiting": "waiting requests",
    "running": "running requests",
}
"""What an engine that is upgraded may call otherwise from then on, so that it is no longer judged, in words."""
LOADS_SECONDS: Final = 3600.0
"""Window within which loads of a model are counted, as LLMModelThrash does."""
LOST_SECONDS: Final = 86_400.0
"""Time for which it is missed: as long as LLMSignalLost looks back."""

_REMEDY: Final = "no measuring proxy has received any yet (`proxies`)"
_REMEDIES: Final = {
    name: f"no measuring proxy has received any yet; start llm-headroom with {engine.proxy_flag} and send clients to "
    "that port"
    for name, engine in BUILT_IN.items()
    if engine.proxy_flag
}
"""How to have requests seen where an engine does not show them, by engine."""


@frozen_named
class Known:
    """What is remembered of one model: its state, its recent counts, since when requests wait and none is taken in.

    `counts` are the latest. `restarts` is the counter as it was read last, `restarted` when it grew within
    `RESTARTS_SECONDS`; `loads` and `loaded` are the same of loads of the model within `LOADS_SECONDS`. `exposed` is
    when each of `_LOSABLE` was seen last, `missed` how many requests had ended when one of them was missed first.
    `met` is what `_MOVES` were when it was seen first, as long as it has requests and nothing shows that it gets on.
    """

    settled: Settled | None = None
    samples: tuple[Sample, ...] = ()
    counts: tuple[float | None, ...] = ()
    progress: tuple[float | None, ...] = ()
    moved: float = 0.0
    unqueued: float = 0.0
    restarts: float = math.inf
    restarted: tuple[float, ...] = ()
    loads: float = math.inf
    loaded: tuple[float, ...] = ()
    exposed: Mapping[str, float] = field(default_factory=dict)
    missed: float | None = None
    met: Sample | None = None


@frozen
class Memory:
    """What is remembered of one target: when it was judged first, whether it has ever been up, and its models.

    `at_work`: at the last collection that succeeded it had requests, or had had one within `AT_WORK_SECONDS`.
    `replaced`: models that it no longer serves although they had requests, and since when. `away`: models that are
    loaded on demand and were in memory within `LOADS_SECONDS`. `finished`: requests that a proxy had seen answered at
    the last collection, which failed, and `answered` when another one was.
    """

    began: float
    ever_up: bool = False
    at_work: bool = False
    models: Mapping[str, Known] = field(default_factory=dict)
    replaced: Mapping[str, float] = field(default_factory=dict)
    away: Mapping[str, Known] = field(default_factory=dict)
    finished: float = math.inf
    answered: float = -math.inf


def judge(
    memory: Memory | None,
    snapshot: Snapshot,
    at: float,
    beside: Sequence[Point] = (),
) -> tuple[Memory, tuple[Judged, ...]]:
    """The memory after a collection, and the state of each model; of the target where no model is known.

    `at` is a monotonic time in seconds. Late first tokens are a fault where they have an objective: a target for
    batches has none. `beside` is what this host, or a proxy, shows of the engine while it does not answer.
    """
    memory = memory or Memory(at)
    seen = figures(snapshot.points) if snapshot.health.up else {}
    if snapshot.health.up:
        memory, found = _answered(memory, seen, snapshot.engine, at)
    else:
        memory, found = _unanswered(memory, snapshot, at, beside)
    judged, models = [], {}
    for model, known in memory.models.items():
        clear = _UNSURE if model in seen and _unsure(known, seen[model], at) else CLEAR
        settled = settle(known.settled, found[model], at, snapshot.taken, ENGINE_STATES, RISE, clear)
        models[model] = replace(known, settled=settled)
        judged.append(settled.judged(model=model))
    return replace(memory, models=models), tuple(judged)


def _answered(
    memory: Memory, seen: Mapping[str, Mapping[str, float]], engine: str, at: float
) -> tuple[Memory, dict[str, Sequence[Finding]]]:
    """The memory after a collection that succeeded, and what is found of each model."""
    models = {
        model: _seen(memory.models.get(model) or _back(memory.away.get(model), at), own, at)
        for model, own in seen.items()
    }
    remedy = _REMEDIES.get(engine, _REMEDY)
    found: dict[str, Sequence[Finding]] = {
        model: _findings(models[model], own, at, remedy) for model, own in seen.items()
    }
    working = any(_at_work(models[model], own, at) for model, own in seen.items())
    replaced = _replaced(memory, seen, at)
    for model, since in replaced.items():
        models[model] = memory.models[model]
        instead = f"{', '.join(seen)} is served here instead since {span(at - since)}"
        found[model] = [Finding(State.MISREAD, f"{instead}, and this model had requests then")]
    away = {
        model: known
        for model, known in {**memory.away, **memory.models}.items()
        if model not in models and known.samples and at - known.samples[-1].at < LOADS_SECONDS
    }
    return Memory(memory.began, ever_up=True, at_work=working, models=models, replaced=replaced, away=away), found


def _unanswered(
    memory: Memory, snapshot: Snapshot, at: float, beside: Sequence[Point]
) -> tuple[Memory, dict[str, Sequence[Finding]]]:
    """The memory after a collection that failed, and the one finding, the same of each model."""
    models = memory.models or {"": Known()}
    finished = sum(value for _, value in numbers(beside, schema.REQUESTS_FINISHED))
    answered = at if finished > memory.finished else memory.answered
    memory = replace(memory, models=models, finished=finished, answered=answered)
    return memory, dict.fromkeys(models, (_unread(memory, snapshot, at, beside),))


def state_points(judged: Iterable[Judged], labels: Mapping[str, str]) -> Iterator[Point]:
    """A state set for each model: a series for each state, 1 for the one that holds."""
    for each in judged:
        for state in ENGINE_STATES:
            series = Series(schema.ENGINE_STATE, {**labels, "model": each.model, "state": state})
            yield Point(series, float(state is each.state), "judgement of the last collection")


def _seen(known: Known | None, own: Mapping[str, float], at: float) -> Known:
    """What is remembered after a collection that succeeded, its state aside."""
    progress = tuple(own.get(name) for name in PROGRESS)
    queued = own.get("waiting", 0.0) > 0
    counts = tuple(own.get(name) for name in COUNTED)
    restarts = own.get("restarts", math.inf)
    loads = own.get("loads", math.inf)
    exposed = {name: at for name in _LOSABLE if name in own}
    if known is None:
        return Known(
            samples=(Sample(at, counts),),
            counts=counts,
            progress=progress,
            moved=at,
            unqueued=at,
            restarts=restarts,
            loads=loads,
            exposed=exposed,
            met=_met(own, at),
        )
    exposed = {name: last for name, last in known.exposed.items() if at - last < LOST_SECONDS} | exposed
    ended = min(own.get("finished", 0.0), math.inf if known.missed is None else known.missed)
    samples = of_this_life(known.samples, known.counts, counts)
    if not samples or at - samples[-1].at >= SAMPLE_SECONDS:
        oldest = at - RATE_SECONDS - 2 * SAMPLE_SECONDS
        samples = (*(each for each in samples if each.at > oldest), Sample(at, counts))
    return Known(
        settled=known.settled,
        samples=samples,
        counts=counts,
        progress=progress,
        moved=at if progress != known.progress else known.moved,
        unqueued=known.unqueued if queued else at,
        restarts=restarts,
        restarted=_times(known.restarted, known.restarts, restarts, at, RESTARTS_SECONDS),
        loads=loads,
        loaded=_times(known.loaded, known.loads, loads, at, LOADS_SECONDS),
        exposed=exposed,
        missed=ended if exposed.keys() - own.keys() else None,
        met=None if known.met is None or _gets_on(known.met, samples, own, at) else known.met,
    )


def _has_requests(own: Mapping[str, float]) -> bool:
    return any(own.get(name) for name in ("running", "waiting", "overdue"))


def _met(own: Mapping[str, float], at: float) -> Sample | None:
    """Where an engine stands that has requests when it is seen first; None where nothing could show that it moves."""
    counts = tuple(own.get(name) for name in _MOVES)
    return Sample(at, counts) if _has_requests(own) and any(each is not None for each in counts) else None


def _gets_on(met: Sample, samples: Sequence[Sample], own: Mapping[str, float], at: float) -> bool:
    """Whether an engine that had requests when it was seen first is seen to get on with them.

    If not, what is wrong shows at last: by then a stall, slow first tokens and a queue that stands are seen.
    """
    if not _has_requests(own) or at - met.at >= DEFAULT.blocked_seconds:
        return True
    grown = increase(samples, own, at, SLOW_SECONDS)
    total, late = _late(own, grown)
    names = _MOVES[:-1] if own.get("waiting") else _MOVES
    moves = any(growth(before or 0.0, own.get(name)) > 0 for name, before in zip(names, met.counts, strict=False))
    return moves and not (late and late >= DEFAULT.ttft_slow_share * total)


def _times(times: Sequence[float], before: float, now: float, at: float, window: float) -> tuple[float, ...]:
    """When a counter has grown within a window's seconds, after another reading at `at`."""
    return (*(each for each in times if at - each < window), *([at] if before < now < math.inf else ()))


def _back(known: Known | None, at: float) -> Known | None:
    """What is remembered of a model that was away: that nothing moved meanwhile says nothing."""
    return None if known is None else replace(known, moved=at, unqueued=at)


def _replaced(memory: Memory, seen: Mapping[str, Mapping[str, float]], at: float) -> dict[str, float]:
    """The models whose place others have taken without a drain: what answers may be another engine.

    None where models are loaded on demand: they come and go.
    """
    replaced = {
        model: since for model, since in memory.replaced.items() if model not in seen and at - since < REPLACED_SECONDS
    }
    before = memory.models.keys() - memory.replaced.keys()
    on_demand = any("models" in own or "loaded" in own for own in seen.values())
    if memory.at_work and not on_demand and "" not in {*before, *seen} and before.isdisjoint(seen):
        replaced |= dict.fromkeys(before, at)
    return replaced


def _findings(known: Known, own: Mapping[str, float], at: float, remedy: str) -> list[Finding]:
    """Everything that can be said of a model whose engine answers."""
    grown = {window: increase(known.samples, own, at, window) for window in (RATE_SECONDS, SLOW_SECONDS)}
    found = [*_queue(known, own, at), *_failures(known, grown[RATE_SECONDS], at), *_workers(own)]
    found += [*_slow(own, grown[SLOW_SECONDS]), *_lagging(own, grown)]
    found += [*_room(own), *_thrash(known, at), *_lost(known, own)]
    running, waiting = own.get("running"), own.get("waiting")
    if own.get("asleep"):
        found.append(Finding(State.ASLEEP, "it is in sleep mode and holds no GPU memory"))
    if own.get("models") == 0.0 and not running:
        found.append(Finding(State.IDLE, "no model is in memory; one is loaded by the next request"))
    elif running == 0.0 and not waiting:
        found.append(Finding(State.IDLE, "no requests"))
    if not any(name in own for name in _SEEN_BY):
        if not found:
            found.append(Finding(State.UNKNOWN, f"it responds, but its requests cannot be seen: {remedy}"))
        return found
    counts = (("running", running), ("waiting", waiting))
    numbers = ", ".join(f"{value:.0f} {name}" for name, value in counts if value is not None)
    if known.met is not None:
        found.append(Finding(State.UNKNOWN, f"{numbers}; it was not seen yet whether it gets on with them"))
    else:
        found.append(Finding(State.OK, numbers or "no problem found"))
    return found


def _queue(known: Known, own: Mapping[str, float], at: float) -> Iterator[Finding]:
    waiting, running = own.get("waiting", 0.0), own.get("running", 0.0)
    if own.get("stalled"):
        there = f"{running:.0f} running and {waiting:.0f} waiting requests"
        if own.get("silence"):
            asked = there if running or waiting else "clients ask again and again"
            yield Finding(State.STALLED, f"{asked}, and none has got any output for {span(own['silence'])}")
            return
        where = f" at {own['stalled']:.0f} of {own['replicas']:.0f} replicas" if own["replicas"] > 1 else ""
        yield Finding(State.STALLED, f"{there}, and{where} neither steps nor tokens have increased for a minute")
    since = max(known.moved, known.unqueued)
    if waiting > 0 and any(each is not None for each in known.progress) and at - since >= DEFAULT.blocked_seconds:
        what = "no first token" if known.progress[0] is not None else "no request admitted"
        yield Finding(State.BLOCKED, f"{_requests(waiting)} waiting, and {what} for {span(at - since)}")


def _failures(known: Known, grown: Mapping[str, float], at: float) -> Iterator[Finding]:
    fails = known.settled is not None and known.settled.state is State.FAILING
    least = 0.0 if fails else DEFAULT.traffic_floor * RATE_SECONDS  # that few ask heals nothing
    for part, whole, which in (
        (grown["failed"], grown["failed"] + grown["finished"], ""),
        (grown["wrong"], grown["responses"], ""),
        (grown["lost"], grown["routed"], ""),
        (grown["unnamed_failed"], grown["unnamed_failed"] + grown["unnamed_finished"], ", of no known model,"),
        (grown["unnamed_wrong"], grown["unnamed_responses"], ", of no known model,"),
    ):
        if whole > least and part > DEFAULT.error_share_high * whole:
            share = f"{part:.0f} of {_requests(whole)} of the last {span(RATE_SECONDS)}{which} failed"
            yield Finding(State.FAILING, f"{share} ({part / whole:.0%})")
    times = known.restarted
    if len(times) >= DEFAULT.restarts_high and at - times[-1] < SETTLED_SECONDS:
        often = f"it restarted {len(times)} times within {span(RESTARTS_SECONDS)}"
        yield Finding(State.FAILING, f"{often}, the last time {span(at - times[-1])} ago")


def _workers(own: Mapping[str, float]) -> Iterator[Finding]:
    workers, healthy = own.get("workers", 0.0), own.get("healthy", 0.0)
    if workers and healthy < workers:
        state = State.TIGHT if healthy else State.FAILING
        yield Finding(state, f"{workers - healthy:.0f} of {workers:.0f} workers unhealthy")


def _late(own: Mapping[str, float], grown: Mapping[str, float]) -> tuple[float, float]:
    """How many first tokens came or are overdue, and how many of these are late."""
    total = grown["firsts"] + own.get("overdue", 0.0)
    return total, total - grown["good"]


def _slow(own: Mapping[str, float], grown: Mapping[str, float]) -> Iterator[Finding]:
    """Few that are still awaited are no reason to call anybody, and nothing that is fine."""
    awaited = own.get("overdue", 0.0)
    total, slow = _late(own, grown)
    if not slow or slow < DEFAULT.ttft_slow_share * total:
        return
    objective = _objective(own, "objective")
    if slow >= DEFAULT.ttft_slow_count:
        late = f"{slow:.0f} of {total:.0f} first tokens of the last {span(SLOW_SECONDS)}"
        still = f"; {awaited:.0f} are still awaited" if awaited else ""
        yield Finding(State.SLOW, f"{late} ({slow / total:.0%}) came later than {objective}{still}")
    elif awaited:
        yield Finding(State.TIGHT, f"{_requests(awaited)} waiting for a first token for longer than {objective}")


def _unsure(known: Known, own: Mapping[str, float], at: float) -> bool:
    """Whether first tokens were slow, and too few have come in time since to say that they no longer are.

    Of an engine that does not count them: whether any request waits.
    """
    if known.settled is None or State.SLOW not in known.settled.signs:
        return False
    if "firsts" not in own:
        return own.get("waiting", 0.0) > 0
    return increase(known.samples, own, at, SLOW_SECONDS)["good"] < DEFAULT.ttft_slow_count


def _objective(own: Mapping[str, float], name: str) -> str:
    return f"{own[name]:g} s" if name in own else "the objective"


def _lagging(own: Mapping[str, float], grown: Mapping[float, Mapping[str, float]]) -> Iterator[Finding]:
    """By a share of a longer window; or by most of a shorter one: where tokens come at a crawl, they are few."""
    for window, share in ((RATE_SECONDS, DEFAULT.inter_token_slow_share), (SLOW_SECONDS, _MOST)):
        total = grown[window]["tokens"]
        late = total - grown[window]["timely"]
        if late >= _LATE_TOKENS and late > share * total:
            which = f"{late / total:.0%} of the tokens of the last {span(window)}"
            yield Finding(State.LAGGING, f"{which} came later than {_objective(own, 'gap')} after the one before")


def _thrash(known: Known, at: float) -> Iterator[Finding]:
    """A model that gives way again and again: each time requests wait for it."""
    times = known.loaded
    if len(times) > DEFAULT.model_loads_high and at - times[-1] < SETTLED_SECONDS:
        often = (
            f"it was loaded {len(times)} times within {span(LOADS_SECONDS)}, the last time {span(at - times[-1])} ago"
        )
        yield Finding(State.TIGHT, f"{often}; requests wait for each load")


def _lost(known: Known, own: Mapping[str, float]) -> Iterator[Finding]:
    """What is no longer exposed although requests end: some engines expose nothing before the first one."""
    if known.missed is not None and own.get("finished", 0.0) > known.missed:
        lost = " and ".join(_LOSABLE[name] for name in _LOSABLE if name in known.exposed.keys() - own.keys())
        why = f"it no longer exposes its {lost}, by which it was judged; an upgrade may have renamed them"
        yield Finding(State.UNKNOWN, why)


def _room(own: Mapping[str, float]) -> Iterator[Finding]:
    """Hardly room in the KV cache; not where it is the limit of running requests that leaves none."""
    room, usage, limit = own.get("room"), own.get("usage"), own.get("limit")
    if room is None or usage is None or room >= DEFAULT.headroom_requests_low or usage <= DEFAULT.kv_tight_usage:
        return
    taken = own.get("running", 0.0) + own.get("waiting", 0.0)
    if limit is None or limit - taken > room:
        yield Finding(State.TIGHT, f"KV cache headroom for {room:.1f} more typical requests; {usage:.0%} in use")


def _unread(memory: Memory, snapshot: Snapshot, at: float, beside: Sequence[Point]) -> Finding:
    """What a collection that failed says."""
    health = snapshot.health
    failure: Failure | None = health.error
    if failure is None:
        return Finding(State.UNKNOWN, "it was not read")
    if failure.cause in _MISREAD:
        return Finding(State.MISREAD, failure.message)
    if failure.cause not in _ABSENT:
        return Finding(State.UNKNOWN, failure.message)
    if at - memory.answered < ANSWERED_SECONDS:
        return Finding(
            State.UNKNOWN, f"clients get answers through its proxy, but it cannot be read: {failure.message}"
        )
    if not memory.ever_up:
        watched = span(at - memory.began)
        return Finding(State.LOADING, f"no response since llm-headroom started {watched} ago: {failure.message}")
    starts = [each.value for each in beside if each.series.metric is schema.HOST_PROCESS_START]
    started = max((each for each in starts if isinstance(each, float)), default=0.0)
    if health.last_success is not None and started > health.last_success:
        why = f"its process started {span(snapshot.taken - started)} ago and does not respond yet: {failure.message}"
        if memory.at_work:  # before a restart by plan requests are led elsewhere and let end
            return Finding(State.DOWN, f"it ended while it had requests; {why}")
        return Finding(State.LOADING, why)
    return Finding(State.DOWN, failure.message)


def _at_work(known: Known, own: Mapping[str, float], at: float) -> bool:
    return own.get("running", 0.0) + own.get("waiting", 0.0) > 0 or at - known.moved < AT_WORK_SECONDS


def _requests(number: float) -> str:
    return f"{number:.0f} request" if round(number) == 1 else f"{number:.0f} requests"
