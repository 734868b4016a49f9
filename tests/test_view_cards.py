"""What each point of a source puts on its card, and nothing else: engines, routers, GPUs, and sources that are down."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from llm_headroom import schema
from llm_headroom.model import Cause, Failure, Health, Histogram, Level, Point, Series, Snapshot
from llm_headroom.view import engines, gpus
from llm_headroom.view.history import History
from llm_headroom.view.signals import Said, ages, line, risk_name, risk_word
from llm_headroom.view.values import (
    Condition,
    EngineCard,
    GpuCard,
    KvCache,
    Line,
    Load,
    Missing,
    Objective,
    Risk,
    Router,
    Share,
    Slow,
    Source,
    as_json,
    from_json,
    urgency,
)
from llm_headroom.view.values import View as Shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_headroom.model import Metric

SOURCE = Source(target="t", engine="vllm", title="vLLM", version="1", up=True, taken=100.0, duration=0.1)
LACKING = (Missing("why", ("llm_x",)),)
GOOD = Condition("ok", Level.GOOD)


def point(metric: Metric, value: float | Histogram, model: str = "m", **labels: str) -> Point:
    return Point(Series(metric, {**({"model": model} if model else {}), **labels}), value, "")


def snapshot(at: float, *points: Point) -> Snapshot:
    return Snapshot(target="t", engine="vllm", taken=at, points=points, health=Health(up=True))


def cards(
    *points: Point,
    source: Source = SOURCE,
    states: Mapping[str, Condition] | None = None,
    before: tuple[Point, ...] = (),
) -> tuple[EngineCard, ...]:
    history = History()
    if before:
        history.record([snapshot(90.0, *before)])
    history.record([snapshot(100.0, *points)])
    return engines.cards(snapshot(100.0, *points), source, history, LACKING, {"m": GOOD} if states is None else states)


def card(*points: Point, before: tuple[Point, ...] = (), source: Source = SOURCE) -> EngineCard:
    (found,) = cards(*points, before=before, source=source)
    return found


# Engines -------------------------------------------------------------------------------------------------------------
def test_a_card_without_any_value() -> None:
    bare = EngineCard(id="engine/t/m", source=SOURCE, state=GOOD, model="m", missing=LACKING, ages=(0.0,))
    assert card(point(schema.ENGINE_INFO, 1.0)) == replace(bare, ages=())
    assert card(point(schema.PREEMPTIONS, 1.0)) == bare


def test_every_value_of_an_engine_has_its_place() -> None:
    first = Histogram((1.0, math.inf), (4.0, 4.0), 2.0)
    found = card(
        point(schema.REQUESTS_RUNNING, 3.0, replica="0"), point(schema.REQUESTS_RUNNING, 2.0, replica="1"),
        point(schema.REQUESTS_WAITING, 1.0), point(schema.REQUESTS_RUNNING_LIMIT, 8.0),
        point(schema.SATURATION, 0.7, resource="max"), point(schema.SATURATION, 0.2, resource="kv_cache"),
        point(schema.SATURATION, 0.6, resource="compute"), point(schema.MODEL_LOADED, 1.0),
        point(schema.MODEL_MEMORY, 5.0, kind="kv_cache"), point(schema.MODEL_MEMORY, 9.0, kind="weights"),
        point(schema.MODEL_MEMORY, 7.0, kind="strange"), point(schema.MODEL_OFFLOAD, 0.75),
        point(schema.MODEL_EXPIRY, 900.0), point(schema.TTFT_SLOW, 0.1, window="60s"),
        point(schema.SPILL_RISK, 0.1), point(schema.EVICTION_RISK, 0.4),
        point(schema.LOAD_HEADROOM, 1.5, objective="ttft"), point(schema.SUSTAINABLE_REQUESTS, 6.0, objective="ttft"),
        point(schema.LOAD_HEADROOM_BINDING, 1.0, objective="ttft", resource="compute"),
        point(schema.LOAD_HEADROOM_BINDING, 0.0, objective="ttft", resource="kv_cache"),
        point(schema.LOAD_HEADROOM, 2.5, objective="itl"), point(schema.LOAD_HEADROOM_SUSPECT, 1.0),
        point(schema.PROMPT_TOKENS, 300.0), point(schema.GENERATION_TOKENS, 100.0),
        point(schema.TIME_PER_OUTPUT_TOKEN, first), point(schema.KV_CACHE_USAGE, 0.5),
        before=(
            point(schema.REQUESTS_RUNNING, 1.0, replica="0"), point(schema.PROMPT_TOKENS, 100.0),
            point(schema.GENERATION_TOKENS, 50.0), point(schema.TIME_PER_OUTPUT_TOKEN, replace_counts(first)),
            point(schema.REQUESTS_WAITING, 0.0), point(schema.KV_CACHE_USAGE, 0.25),
        ),
    )  # fmt: skip
    assert (found.running, found.waiting, found.limit, found.replicas) == (5.0, 1.0, 8.0, 2)
    assert (found.saturation, found.saturation_by, found.loaded, found.offload, found.expires) == (
        0.7, "compute", True, 0.75, 900.0,
    )  # fmt: skip
    assert found.memory == (Share("weights", 9.0), Share("kv_cache", 5.0))
    assert found.notes == ("25% spilled to the CPU",)
    assert found.slow == (Slow("60s", 0.1),)
    assert found.risks == (Risk(schema.EVICTION_RISK.name, 0.4), Risk(schema.SPILL_RISK.name, 0.1))
    assert found.load == (Load("ttft", 1.5, "compute", 6.0, suspect=True), Load("itl", 2.5, "", None, suspect=True))
    assert (found.prompt_rate, found.generation_rate, found.ages) == (20.0, 5.0, (10.0, 0.0))
    assert [(each.metric, each.count, each.window) for each in found.latencies] == [
        (schema.TIME_PER_OUTPUT_TOKEN.name, 4.0, 10.0)
    ]
    assert [each.name for each in found.lines] == ["running", "waiting", "kv_usage"]
    assert found.lines[0] == Line("running", (1.0, 5.0))


def replace_counts(histogram: Histogram) -> Histogram:
    return Histogram(histogram.bounds, (0.0,) * len(histogram.bounds), 0.0)


@pytest.mark.parametrize(
    ("points", "saturation", "by"),
    [
        ({"max": 0.7}, 0.7, ""),
        ({"kv_cache": 0.7}, None, ""),
        ({"max": 0.1, "kv_cache": 0.7, "compute": 0.9}, 0.1, "compute"),
    ],
)
def test_what_is_scarcest(points: dict[str, float], saturation: float | None, by: str) -> None:
    found = card(*(point(schema.SATURATION, value, resource=name) for name, value in points.items()))
    assert (found.saturation, found.saturation_by) == (saturation, by)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, None),
        ({"capacity": 100.0}, None),
        ({"usage": 0.5}, KvCache(usage=0.5)),
        ({"used": 50.0}, KvCache(used=50.0)),
        ({"used": 50.0, "capacity": 80.0}, KvCache(used=50.0, capacity=80.0, free=30.0)),
        ({"used": 50.0, "capacity": 80.0, "evictable": 10.0},
         KvCache(used=50.0, capacity=80.0, evictable=10.0, free=20.0)),
        ({"used": 90.0, "capacity": 80.0}, KvCache(used=90.0, capacity=80.0, free=0.0)),
        ({"usage": 0.5, "capacity": 80.0}, KvCache(usage=0.5, capacity=80.0)),
        ({"usage": 0.5, "peak": 0.9, "ratio": 0.3, "tokens": 7.0, "requests": 2.0, "seconds": 60.0},
         KvCache(usage=0.5, peak=0.9, headroom_ratio=0.3, headroom_tokens=7.0, headroom_requests=2.0,
                 exhaustion_seconds=60.0)),
    ],
)  # fmt: skip
def test_the_kv_cache_of_a_card(values: dict[str, float], expected: KvCache | None) -> None:
    metrics = {
        "capacity": schema.KV_CACHE_CAPACITY, "used": schema.KV_CACHE_USED, "usage": schema.KV_CACHE_USAGE,
        "evictable": schema.KV_CACHE_EVICTABLE, "peak": schema.KV_CACHE_USAGE_PEAK,
        "ratio": schema.KV_CACHE_HEADROOM_RATIO, "tokens": schema.KV_CACHE_HEADROOM_TOKENS,
        "requests": schema.KV_CACHE_HEADROOM_REQUESTS, "seconds": schema.KV_CACHE_EXHAUSTION,
    }  # fmt: skip
    points = [point(metrics[name], value) for name, value in values.items()]
    assert card(point(schema.PREEMPTIONS, 1.0), *points).kv == expected


@pytest.mark.parametrize(
    ("counts", "objective"),
    [
        ({"requests": 4.0, "good": 3.0}, Objective("ttft", None, None, 0.75, 4.0)),
        ({"requests": 4.0}, Objective("ttft", None, None, 0.0, 4.0)),
        ({"requests": 0.5, "good": 0.5}, Objective("ttft", None, None, 1.0, 0.5)),
        ({"requests": 0.0, "good": 0.0}, None),
        ({"good": 3.0}, None),
        ({"requests": 4.0, "good": 3.0, "threshold": 2.5, "wanted": 0.9}, Objective("ttft", 2.5, 0.9, 0.75, 4.0)),
    ],
)
def test_an_objective_is_shown_once_anything_has_counted(counts: dict[str, float], objective: Objective | None) -> None:
    metrics = {
        "requests": schema.SLO_REQUESTS, "good": schema.SLO_REQUESTS_GOOD, "threshold": schema.SLO_THRESHOLD,
        "wanted": schema.SLO_OBJECTIVE,
    }  # fmt: skip
    points = [point(metrics[name], value, slo="ttft") for name, value in counts.items()]
    assert card(*points).objectives == (() if objective is None else (objective,))
    replicas = [point(metrics[name], value, slo="ttft", replica="1") for name, value in counts.items()]
    both = card(*points, *replicas).objectives
    assert [each.count for each in both] == ([] if objective is None else [2.0 * objective.count])


@pytest.mark.parametrize(
    ("offload", "warnings", "notes"),
    [
        (None, (), ()),
        (1.0, (), ()),
        (0.999, (), ()),
        (0.998, (), ("0.2% spilled to the CPU",)),
        (0.0, (), ("on the CPU",)),
        (1.0, ("x",), ("partly collected: see warning",)),
        (0.4, ("x", "y"), ("60% spilled to the CPU", "partly collected: see warning")),
    ],
)
def test_notes_of_an_engine(offload: float | None, warnings: tuple[str, ...], notes: tuple[str, ...]) -> None:
    points = [] if offload is None else [point(schema.MODEL_OFFLOAD, offload)]
    assert card(point(schema.PREEMPTIONS, 1.0), *points, source=replace(SOURCE, warnings=warnings)).notes == notes


def test_each_model_has_a_card_those_in_memory_first() -> None:
    def loaded(model: str, value: float) -> Point:
        return point(schema.MODEL_LOADED, value, model)

    own = point(schema.REQUESTS_RUNNING, 7.0, "")
    found = cards(loaded("a", 0.0), loaded("b", 1.0), loaded("c", 0.0), own, states={"b": GOOD})
    assert [(each.model, each.loaded, each.running) for each in found] == [
        ("b", True, None), ("a", False, None), ("c", False, None),
    ]  # fmt: skip
    assert [each.state.name for each in found] == ["ok", "not loaded", "not loaded"]
    assert card(loaded("m", 1.0), own).running == 7.0, "what is of no model is of the only one"
    (bare,) = cards(own, states={"": GOOD})
    assert (bare.id, bare.model, bare.running, bare.state) == ("engine/t/", "", 7.0, GOOD)
    assert cards(point(schema.REQUESTS_RUNNING, 1.0), states={})[0].state.name == "unknown"


@pytest.mark.parametrize(
    ("models", "id_", "shown"),
    [
        ((), "engine/t/", ""),
        (("a",), "engine/t/a", "a"),
        (("a", "b", "c"), "engine/t/", "a, b, c"),
        (("a", "b", "c", "d"), "engine/t/", "a, b, c …"),
    ],
)
def test_a_target_that_is_down_has_one_card(models: tuple[str, ...], id_: str, shown: str) -> None:
    history = History()
    history.record([snapshot(90.0, *(point(schema.REQUESTS_RUNNING, 1.0, model) for model in models))])
    down = replace(SOURCE, up=False, error="why")
    failure = Health(up=False, error=Failure(Cause.REFUSED, "why"))
    failed = Snapshot(target="t", engine="vllm", taken=100.0, health=failure)
    (found,) = engines.cards(failed, down, history, LACKING, {})
    assert found == EngineCard(id=id_, source=down, state=Condition("down", Level.BAD, "why"), model=shown)
    states = {"a": Condition("ok", Level.GOOD), "b": Condition("slow", Level.WARN)}
    assert engines.cards(failed, down, history, LACKING, states)[0].state.name == "slow"


# Routers -------------------------------------------------------------------------------------------------------------
def test_models_that_are_judged_and_no_longer_exposed_have_one_card() -> None:
    here, taken = point(schema.REQUESTS_RUNNING, 1.0, "b"), Condition("misread", Level.BAD, "b is served here instead")
    found = cards(here, states={"a": taken, "b": GOOD})
    assert [(each.id, each.model, each.state) for each in found] == [
        ("engine/t/b", "b", GOOD),
        ("engine/t/a", "a", taken),
    ]
    several = cards(here, states={"a": Condition("unknown", Level.UNKNOWN), "b": GOOD, "c": taken})
    assert [(each.id, each.model, each.state) for each in several[1:]] == [("engine/t/", "a, c", taken)]
    assert (several[1].running, several[1].missing) == (None, ())


def test_a_router_has_one_card_for_all_of_its_models() -> None:
    healthy = [point(schema.ROUTER_WORKER_HEALTHY, value, "", worker=name) for name, value in (("a", 1.0), ("b", 0.0))]
    found = card(
        *healthy, point(schema.ROUTER_REQUESTS_ACTIVE, 4.0, ""), point(schema.ROUTER_REQUESTS_WAITING, 2.0, ""),
        point(schema.ROUTER_REQUESTS, 60.0, ""), point(schema.ROUTER_REQUESTS, 30.0, "m"),
        before=(point(schema.ROUTER_REQUESTS, 40.0, ""), point(schema.ROUTER_REQUESTS, 20.0, "m"),
                point(schema.ROUTER_REQUESTS_ACTIVE, 1.0, "")),
    )  # fmt: skip
    assert found.router == Router(active=4.0, waiting=2.0, workers=2.0, healthy=1.0, request_rate=3.0)
    assert (found.id, found.ages, found.lines) == ("engine/t/", (10.0, 0.0), (Line("active", (1.0, 4.0)),))
    assert (found.state.name, found.missing, found.model) == ("unknown", LACKING, "")
    counted = card(*healthy, point(schema.ROUTER_WORKERS, 5.0, "")).router
    assert counted == Router(workers=5.0, healthy=1.0)
    bare = card(point(schema.ROUTER_REQUESTS_ACTIVE, 4.0, "")).router
    assert bare == Router(active=4.0)


# GPUs ----------------------------------------------------------------------------------------------------------------
def device(metric: Metric, value: float, uuid: str = "u", **labels: str) -> Point:
    return Point(Series(metric, {"gpu": "3", "uuid": uuid, **labels}), value, "")


def test_every_value_of_a_gpu_has_its_place() -> None:
    points = (
        device(schema.GPU_INFO, 1.0, name="L4", mig_profile="1g"), device(schema.GPU_MEMORY_TOTAL, 80.0),
        device(schema.GPU_MEMORY_USED, 70.0), device(schema.GPU_MEMORY_FREE, 9.0),
        device(schema.GPU_MEMORY_RESERVED, 1.0), device(schema.GPU_MEMORY_ENGINE, 5.0, target="a", kind="weights"),
        device(schema.GPU_MEMORY_ENGINE, 6.0, target="a", kind="other"),
        device(schema.GPU_MEMORY_ENGINE, 7.0, target="b", kind="other"), device(schema.GPU_MEMORY_UNATTRIBUTED, 2.0),
        device(schema.GPU_UTILIZATION, 0.5), device(schema.GPU_POWER, 300.0), device(schema.GPU_POWER_LIMIT, 400.0),
        device(schema.GPU_TEMPERATURE, 60.0, sensor="gpu"), device(schema.GPU_TEMPERATURE, 80.0, sensor="memory"),
        device(schema.GPU_THROTTLE, 1.0, reason="hw_thermal"), device(schema.GPU_THROTTLE, 1.0, reason="idle"),
        device(schema.GPU_THROTTLE, 0.0, reason="sw_power_cap"),
        device(schema.GPU_THROTTLE, 1.0, reason="application_clocks"), device(schema.OOM_RISK, 0.3),
        device(schema.GPU_MEMORY_OVERCOMMITTED, 5.0), device(schema.GPU_ROW_REMAP_FAILURE, 1.0),
        device(schema.GPU_ROW_REMAP_PENDING, 1.0),
    )  # fmt: skip
    taken = Snapshot(target="gpus", engine="nvml", taken=100.0, points=points, health=Health(up=True))
    source = replace(SOURCE, target="gpus", engine="nvml")
    (found,) = gpus.cards(taken, source, History(), LACKING, {"u": GOOD})
    assert found == GpuCard(
        id="gpu/u", source=source, state=GOOD, gpu="3", uuid="u", name="L4", profile="1g", total=80.0, used=70.0,
        free=9.0, reserved=1.0, engines=(Share("a", 11.0), Share("b", 7.0)),
        parts=(Share("weights", 5.0), Share("other", 13.0)), unattributed=2.0, utilization=0.5, power=300.0,
        power_limit=400.0, temperature=60.0, throttles=("hw_thermal",), risks=(Risk(schema.OOM_RISK.name, 0.3),),
        notes=("clocks throttled: hw thermal", "GPU memory overcommitted", "a memory row could not be remapped",
               "needs a reset: a memory row is to be remapped"),
        missing=LACKING,
    )  # fmt: skip
    plain = replace(taken, points=(device(schema.GPU_POWER, 1.0, "v"), Point(Series(schema.GPUS, {}), 2.0, "")))
    (bare,) = gpus.cards(plain, source, History(), (), {})
    assert bare == GpuCard(id="gpu/v", source=source, state=bare.state, gpu="3", uuid="v", power=1.0)
    assert bare.state.name == "unknown"
    down = replace(source, up=False, error="why")
    (lost,) = gpus.cards(plain, down, History(), LACKING, {})
    assert lost == GpuCard(id="gpu/gpus", source=down, state=Condition("down", Level.BAD, "why"))
    assert gpus.cards(plain, down, History(), LACKING, {"": GOOD})[0].state == GOOD


# Signals -------------------------------------------------------------------------------------------------------------
def test_what_is_said_are_gauges_that_are_numbers() -> None:
    said = Said(
        [
            point(schema.REQUESTS_RUNNING, math.nan), point(schema.REQUESTS_RUNNING, 2.0),
            point(schema.REQUESTS_RUNNING, 3.0), point(schema.PROMPT_TOKENS, 9.0),
            point(schema.TTFT_SLOW, 0.1), point(schema.TTFT_SLOW, 0.2, window="60s"),
        ]
    )  # fmt: skip
    assert said.get(schema.REQUESTS_RUNNING) == 2.0
    assert (said.get(schema.PROMPT_TOKENS), said.by(schema.TTFT_SLOW, "window")) == (None, {"60s": 0.2})


def test_lines_and_ages() -> None:
    assert ages([]) == ()
    assert line("a", (None, 1.0, 1.23456)) == (Line("a", (None, 1.0, 1.235)),)
    assert line("a", (None, 1.0)) == ()
    assert line("a", (0.0, 0.0)) == (Line("a", (0.0, 0.0)),)


@pytest.mark.parametrize(("value", "word"), [(0.5, "high"), (0.49, "raised"), (0.1, "raised"), (0.09, "low")])
def test_how_high_a_risk_is(value: float, word: str) -> None:
    assert risk_word(Risk("x", value)) == word
    assert risk_name(Risk("x", value)) == "x"
    assert risk_name(Risk("llm_oom_risk_ratio", value)) == "running out of memory within 30 min"


def test_the_worst_state_is_the_most_urgent() -> None:
    states = [
        Condition("down", Level.BAD), Condition("slow", Level.BAD), Condition("strange", Level.BAD),
        Condition("tight", Level.WARN), Condition("unknown", Level.UNKNOWN), Condition("ok", Level.GOOD),
    ]  # fmt: skip
    ranks = [urgency(state) for state in states]
    assert ranks == sorted(set(ranks))


@pytest.mark.parametrize(
    "change", [{"time": "x"}, {"up": 1.5}, {"version": 3}, {"engines": [{}]}, {"engines": 3}, {"absent": [{"what": 1}]}]
)
def test_a_view_with_a_wrong_value_is_none(change: dict[str, object]) -> None:
    shown = Shown(
        version="1", time=1.0, sources=1, up=1, engines=(card(point(schema.PREEMPTIONS, 1.0)),), gpus=(), absent=()
    )
    data = as_json(shown)
    assert from_json({**data, "new": 1, "time": 1}) == shown
    with pytest.raises(ValueError, match=r"^not a view of llm-headroom: "):
        from_json({**data, **change})
    with pytest.raises(ValueError, match=r"^not a view of llm-headroom"):
        from_json(None)
