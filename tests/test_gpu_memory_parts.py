"""How an engine's own account is cut to what it holds on each device: both sides of each bound."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llm_headroom import schema
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import ModelMemory, Target
from llm_headroom.derive.gpu_memory import attributable, derived, device_memory, unified
from llm_headroom.gpu.attribution import Holding, Method
from llm_headroom.gpu.device import DeviceProcesses, GpuProcess
from llm_headroom.host.engines import Watched
from llm_headroom.model import Health, Point, Series, Snapshot

if TYPE_CHECKING:
    from llm_headroom.model import Metric

KINDS = schema.GPU_MEMORY_ENGINE


def point(metric: Metric, value: float, **labels: str) -> Point:
    return Point(Series(metric, labels), value, "")


def device(gpu: int, used: float, total: float = 1000.0, **parts: float) -> list[Point]:
    own = {"gpu": str(gpu), "uuid": f"u{gpu}"}
    values = {
        schema.GPU_MEMORY_TOTAL: total, schema.GPU_MEMORY_USED: used,
        schema.GPU_MEMORY_FREE: parts.get("free", total - used),
    }  # fmt: skip
    if "reserved" in parts:
        values[schema.GPU_MEMORY_RESERVED] = parts["reserved"]
    return [point(metric, value, **own) for metric, value in values.items()]


def memory(kind: str, size: float, **labels: str) -> Point:
    return point(schema.MODEL_MEMORY, size, **{"model": "m", "kind": kind, **labels})


def engine(name: str, *points: Point, up: bool = True, given: ModelMemory | None = None) -> Watched:
    target = Target(name=name, endpoint=Endpoint(url="http://x:1"), model_memory=given or ModelMemory())
    return Watched(target, Snapshot(target=name, engine="vllm", taken=0.0, points=points, health=Health(up=up)))


def found(
    devices: list[Point], held: dict[tuple[int, str], float], *engines: Watched
) -> tuple[dict[tuple[str, str, str], float], int]:
    """Every value by metric, device, and the kind or target; and how many warnings."""
    holdings = [Holding(str(gpu), f"u{gpu}", target, size, Method.PID) for (gpu, target), size in held.items()]
    made = derived(device_memory(devices), holdings, engines, most=attributable(devices, ()))
    values = {}
    for series, value, _ in made.points:
        name = series.metric.name.removeprefix("llm_gpu_").removesuffix("_bytes")
        values[name, series.label("gpu"), series.label("kind") or series.label("target")] = float(value)  # type: ignore[arg-type]
    return values, len(made.warnings)


def kinds(
    held: dict[tuple[int, str], float], *points: Point, given: ModelMemory | None = None
) -> tuple[dict[str, float], int]:
    """By kind what engine `a` uses on the first device, and how many warnings."""
    devices = [each for gpu, _ in held for each in device(gpu, 900.0)]
    values, warnings = found(devices, held, engine("a", *points, given=given))
    name = KINDS.name.removeprefix("llm_gpu_").removesuffix("_bytes")
    return {kind: size for (metric, gpu, kind), size in values.items() if (metric, gpu) == (name, "0")}, warnings


ONE = {(0, "a"): 400.0}
TWO = {(0, "a"): 400.0, (1, "a"): 200.0}


@pytest.mark.parametrize(
    ("held", "points", "expected", "warnings"),
    [
        (ONE, [], {"other": 400.0}, 0),
        (ONE, [memory("weights", 100.0)], {"weights": 100.0, "other": 300.0}, 0),
        (ONE, [memory("weights", 400.0)], {"weights": 400.0, "other": 0.0}, 0),
        (ONE, [memory("weights", 410.0)], {"weights": 400.0, "other": 0.0}, 0),  # engines and NVML round
        (ONE, [memory("weights", 420.0)], {"weights": 400.0, "other": 0.0}, 0),
        (ONE, [memory("weights", 421.0)], {"weights": 400.0, "other": 0.0}, 1),
        (ONE, [memory("strange", 100.0)], {"other": 400.0}, 0),
        (ONE, [memory("weights", 100.0, replica="0"), memory("weights", 200.0, replica="1")],
         {"weights": 150.0, "other": 250.0}, 0),
        (ONE, [memory("weights", 100.0), memory("weights", 200.0, model="n")], {"weights": 300.0, "other": 100.0}, 0),
        # of one rank on each device, until it is more than the fullest one holds
        (TWO, [memory("weights", 400.0)], {"weights": 400.0, "other": 0.0}, 1),
        (TWO, [memory("weights", 420.0)], {"weights": 400.0, "other": 0.0}, 1),
        (TWO, [memory("weights", 422.0)], {"weights": 211.0, "other": 189.0}, 1),
        # of all devices together
        (TWO, [memory("device", 300.0)], {"model": 200.0, "other": 200.0}, 0),
        (TWO, [memory("device", 200.0), memory("device", 100.0, model="n")], {"model": 200.0, "other": 200.0}, 0),
    ],
)  # fmt: skip
def test_the_kinds_add_up_to_what_is_held(
    held: dict[tuple[int, str], float], points: list[Point], expected: dict[str, float], warnings: int
) -> None:
    values, warned = kinds(held, *points)
    assert values == pytest.approx(expected)
    assert warned == warnings


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ({}, {"kv_cache": 100.0}),
        ({"usage": 0.25}, {"kv_used": 25.0, "kv_free": 75.0}),
        ({"usage": 1.5}, {"kv_used": 100.0, "kv_free": 0.0}),
        ({"usage": -0.5}, {"kv_used": 0.0, "kv_free": 100.0}),
        ({"capacity": 10.0, "used": 4.0, "usage": 0.9}, {"kv_used": 40.0, "kv_free": 60.0}),
        ({"capacity": 0.0, "used": 4.0, "usage": 0.9}, {"kv_used": 90.0, "kv_free": 10.0}),
        ({"used": 4.0}, {"kv_cache": 100.0}),
        ({"capacity": 10.0, "used": 4.0, "evictable": 3.0}, {"kv_used": 40.0, "kv_evictable": 30.0, "kv_free": 30.0}),
        ({"capacity": 10.0, "used": 4.0, "evictable": 8.0}, {"kv_used": 40.0, "kv_evictable": 60.0, "kv_free": 0.0}),
        ({"capacity": 10.0, "used": 4.0, "evictable": 0.0}, {"kv_used": 40.0, "kv_evictable": 0.0, "kv_free": 60.0}),
        ({"usage": 0.4, "evictable": 3.0}, {"kv_used": 40.0, "kv_free": 60.0}),
    ],
)
def test_the_kv_cache_is_cut_as_far_as_it_is_known(points: dict[str, float], expected: dict[str, float]) -> None:
    metrics = {
        "capacity": schema.KV_CACHE_CAPACITY, "used": schema.KV_CACHE_USED, "usage": schema.KV_CACHE_USAGE,
        "evictable": schema.KV_CACHE_EVICTABLE,
    }  # fmt: skip
    exposed = [point(metrics[name], value, model="m") for name, value in points.items()]
    values, _ = kinds(ONE, memory("kv_cache", 100.0), *exposed)
    assert values == pytest.approx({**expected, "other": 300.0})


@pytest.mark.parametrize(
    ("given", "points", "expected"),
    [
        (ModelMemory(weights=90), [], {"weights": 90.0, "other": 310.0}),
        (ModelMemory(weights=90), [memory("weights", 10.0), memory("graph", 5.0)],
         {"weights": 90.0, "graph": 5.0, "other": 305.0}),
        (ModelMemory(weights=90), [memory("device", 70.0)], {"weights": 90.0, "other": 310.0}),
        (ModelMemory(weights=90),
         [point(schema.KV_CACHE_CAPACITY, 1.0, model="m", replica=each) for each in ("0", "1", "2")],
         {"weights": 270.0, "other": 130.0}),
        (ModelMemory(kv_bytes_per_token=2), [point(schema.KV_CACHE_CAPACITY, 50.0, model="m")],
         {"kv_cache": 100.0, "other": 300.0}),
        (ModelMemory(kv_bytes_per_token=2),
         [point(schema.KV_CACHE_CAPACITY, 50.0, model="m"), point(schema.KV_CACHE_CAPACITY, 30.0, model="n"),
          memory("device", 70.0)], {"kv_cache": 160.0, "other": 240.0}),
        (ModelMemory(kv_bytes_per_token=2), [memory("device", 70.0)], {"model": 70.0, "other": 330.0}),
    ],
)  # fmt: skip
def test_what_the_operator_says_goes_before_what_the_engine_does(
    given: ModelMemory, points: list[Point], expected: dict[str, float]
) -> None:
    assert kinds(ONE, *points, given=given)[0] == pytest.approx(expected)


def test_a_device_with_two_engines() -> None:
    share = [point(schema.ENGINE_GPU_RESERVATION, value, replica=str(value)) for value in (0.5, 0.3)]
    engines = engine("a", *share), engine("b", point(schema.ENGINE_GPU_RESERVATION, 0.9), up=False)
    values, _ = found(device(0, 600.0, reserved=50.0), {(0, "a"): 400.0, (0, "b"): 100.0}, *engines)
    assert values["memory_engine_reservation", "0", "a"] == 500.0
    assert values["memory_engine_reservation", "0", "b"] == 100.0
    assert values["memory_unattributed", "0", ""] == 100.0
    assert values["memory_overcommitted", "0", ""] == 0.0
    assert values["memory_headroom", "0", ""] == 400.0
    assert values["memory_headroom_ratio", "0", ""] == 0.4

    full, _ = found(device(0, 950.0, reserved=50.0), {(0, "a"): 800.0, (0, "b"): 100.0}, *engines)
    assert full["memory_overcommitted", "0", ""] == 0.0, "exactly full"
    over, _ = found(device(0, 960.0, reserved=50.0), {(0, "a"): 800.0, (0, "b"): 100.0}, *engines)
    assert over["memory_overcommitted", "0", ""] == 10.0
    none, _ = found(device(0, 960.0), {(0, "a"): 800.0, (0, "b"): 100.0}, *engines)
    assert none["memory_overcommitted", "0", ""] == 0.0
    more, _ = found(device(0, 600.0), {(0, "a"): 600.0, (0, "b"): 200.0}, *engines)
    assert (more["memory_engine_reservation", "0", "a"], more["memory_engine_reservation", "0", "b"]) == (500.0, 150.0)
    assert more["memory_unattributed", "0", ""] == 0.0


def test_memory_that_is_the_host_s() -> None:
    info = [point(schema.GPU_INFO, 1.0, gpu="1", uuid="u1")]
    listed = [DeviceProcesses("1", "u1", (GpuProcess(1, 7), GpuProcess(2, None)))]
    shared = unified(info, listed, (100.0, 30.0))
    assert [(each.series.metric, each.value) for each in shared] == [
        (schema.GPU_MEMORY_UNIFIED, 1.0), (schema.GPU_MEMORY_TOTAL, 100.0), (schema.GPU_MEMORY_USED, 70.0),
        (schema.GPU_MEMORY_FREE, 30.0),
    ]  # fmt: skip
    assert unified(info, [DeviceProcesses("1", "u1", (GpuProcess(1, 0),))], (100.0, 30.0)) == []
    assert unified([*info, *device(1, 5.0)], listed, (100.0, 30.0)) == []
    assert attributable([*info, *shared], listed) == {("1", "u1"): 7.0}
    assert attributable(device(1, 5.0), listed) == {("1", "u1"): 5.0}
    assert device_memory(device(0, 5.0)[:2]) == {}
