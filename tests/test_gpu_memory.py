"""What each GPU's memory is used for, out of NVML's totals, who holds what, and what the engines tell."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captures import Capture, mapped, parsed
from llm_headroom import schema
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import ModelMemory, Target
from llm_headroom.derive.gpu_memory import attributable, derived, device_memory, unified
from llm_headroom.gpu.attribution import Holding, Method
from llm_headroom.gpu.device import DeviceProcesses, GpuProcess
from llm_headroom.host.engines import Watched
from llm_headroom.model import Health, Point, Series, Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from llm_headroom.derive.gpu_memory import Derived
    from llm_headroom.model import Metric

GIB = float(2**30)
RESERVED = 0.5


def gpus(*used: float, total: float = 80.0) -> list[Point]:
    """Points of GPUs, numbered from 0, of which so many GiB are used."""
    points = []
    for index, size in enumerate(used):
        labels = {"gpu": str(index), "uuid": f"GPU-{index}"}
        parts = (
            (schema.GPU_MEMORY_TOTAL, total),
            (schema.GPU_MEMORY_USED, size),
            (schema.GPU_MEMORY_RESERVED, RESERVED),
            (schema.GPU_MEMORY_FREE, total - size - RESERVED),
        )
        points += [Point(Series(metric, labels), value * GIB, "nvml") for metric, value in parts]
    return points


def holding(gpu: int, target: str, size: float, method: Method = Method.PID) -> Holding:
    return Holding(str(gpu), f"GPU-{gpu}", target, size * GIB, method)


def said(metric: Metric, value: float, **labels: str) -> Point:
    return Point(Series(metric, {"model": "m"} | labels), value, "engine")


def engine(
    name: str, *points: Point, kind: str = "vllm", up: bool = True, memory: ModelMemory | None = None, **labels: str
) -> Watched:
    target = Target(name=name, endpoint=Endpoint(url="http://x:1"), model_memory=memory or ModelMemory(), labels=labels)
    return Watched(target, Snapshot(target=name, engine=kind, taken=0.0, points=points, health=Health(up=up)))


def result(points: Iterable[Point], holdings: Sequence[Holding], *engines: Watched) -> Derived:
    points = tuple(points)
    return derived(device_memory(points), holdings, engines, most=attributable(points, ()))


def kinds(found: Derived, gpu: int = 0) -> dict[str, float]:
    """GiB by kind of engine `a` on one GPU."""
    return {
        series.label("kind"): round(value / GIB, 6)
        for series, value, _ in found.points
        if series.metric is schema.GPU_MEMORY_ENGINE
        and (series.label("gpu"), series.label("target")) == (str(gpu), "a")
        and isinstance(value, float)
    }


def value(found: Derived, metric: Metric, **labels: str) -> float:
    (one,) = (
        point.value
        for point in found.points
        if point.series.metric is metric and labels.items() <= dict(point.series.labels).items()
    )
    assert isinstance(one, float)
    return one


# Parts ---------------------------------------------------------------------------------------------------------------
def sglang(weights: float, kv: float, graph: float, **labels: str) -> list[Point]:
    """What SGLang tells of one replica, in GiB; a fifth of its KV cache is used, a half evictable."""
    return [
        said(schema.MODEL_MEMORY, weights * GIB, kind="weights", **labels),
        said(schema.MODEL_MEMORY, kv * GIB, kind="kv_cache", **labels),
        said(schema.MODEL_MEMORY, graph * GIB, kind="graph", **labels),
        said(schema.KV_CACHE_CAPACITY, 1000.0, **labels),
        said(schema.KV_CACHE_USED, 200.0, **labels),
        said(schema.KV_CACHE_EVICTABLE, 500.0, **labels),
    ]


def test_sglang_on_one_gpu() -> None:
    found = result(gpus(70), [holding(0, "a", 66)], engine("a", *sglang(15, 40, 2)))

    assert kinds(found) == {
        "weights": 15,
        "kv_used": 8,
        "kv_evictable": 20,
        "kv_free": 12,
        "graph": 2,
        "other": 9,
    }
    assert found.warnings == []


@pytest.mark.parametrize("ranks", [1, 2], ids=["first rank tells", "all ranks tell"])
def test_tensor_parallel_ranks_are_scaled_to_one_gpu(ranks: int) -> None:
    told = sglang(15 * ranks, 40 * ranks, 2 * ranks)
    found = result(gpus(70, 70), [holding(0, "a", 66), holding(1, "a", 64)], engine("a", *told))

    for gpu, other in ((0, 9), (1, 7)):
        assert kinds(found, gpu) == {
            "weights": 15,
            "kv_used": 8,
            "kv_evictable": 20,
            "kv_free": 12,
            "graph": 2,
            "other": other,
        }


def test_data_parallel_replicas_have_gpus_of_their_own() -> None:
    told = [*sglang(15, 40, 2, replica="0"), *sglang(15, 42, 2, replica="1")]
    found = result(gpus(70, 70), [holding(0, "a", 66), holding(1, "a", 66)], engine("a", *told))
    assert sum(size for kind, size in kinds(found).items() if kind.startswith("kv")) == pytest.approx(41)


def test_vllm_tells_nothing_of_its_memory() -> None:
    points = mapped("vllm", parsed(Capture("vllm", "0.12.0", "saturated").exposition))
    found = result(gpus(75), [holding(0, "a", 72)], engine("a", *points))
    assert "weights" not in kinds(found)
    assert sum(kinds(found).values()) == pytest.approx(72)


def test_vllm_with_the_operator_s_word_for_weights_and_geometry() -> None:
    told = [
        said(schema.KV_CACHE_CAPACITY, 400_000.0),
        said(schema.KV_CACHE_USAGE, 0.25),
        said(schema.KV_CACHE_USED, 1e5),
    ]
    memory = ModelMemory(weights=int(16 * GIB), kv_bytes_per_token=131072)
    found = result(gpus(75, 39), [holding(0, "a", 60), holding(1, "a", 30)], engine("a", *told, memory=memory))

    pool = 400_000 * 131072 / GIB
    assert kinds(found, 0) == {
        "weights": round(16 * 2 / 3, 6),
        "kv_used": round(pool / 4 * 2 / 3, 6),
        "kv_free": round(pool * 3 / 4 * 2 / 3, 6),
        "other": round(60 - (16 + pool) * 2 / 3, 6),
    }
    assert kinds(found, 1)["weights"] == round(16 / 3, 6)


def test_vllm_with_a_pool_of_given_bytes_but_unknown_use() -> None:
    found = result(gpus(75), [holding(0, "a", 60)], engine("a", said(schema.MODEL_MEMORY, 30 * GIB, kind="kv_cache")))
    assert kinds(found) == {"kv_cache": 30, "other": 30}


def test_ollama_s_models_are_spread_as_its_runners_are() -> None:
    told = [
        said(schema.MODEL_MEMORY, 9 * GIB, kind="total", model="x"),
        said(schema.MODEL_MEMORY, 6 * GIB, kind="device", model="x"),
        said(schema.MODEL_MEMORY, 3 * GIB, kind="device", model="y"),
    ]
    found = result(gpus(9, 5), [holding(0, "a", 8), holding(1, "a", 4)], engine("a", *told, kind="ollama"))
    assert kinds(found, 0) == {"model": 6, "other": 2}
    assert kinds(found, 1) == {"model": 3, "other": 1}


def test_an_engine_that_is_down_keeps_its_memory_but_has_no_parts() -> None:
    found = result(gpus(70), [holding(0, "a", 66)], engine("a", *sglang(15, 40, 2), up=False))
    assert kinds(found) == {"other": 66}
    assert value(found, schema.GPU_MEMORY_RESERVATION) == 66 * GIB


def test_parts_that_exceed_what_is_held_are_scaled_down_with_a_warning() -> None:
    memory = ModelMemory(weights=int(150 * GIB))
    found = result(gpus(70), [holding(0, "a", 60)], engine("a", memory=memory))
    assert kinds(found) == {"weights": 60, "other": 0}
    (warning,) = found.warnings
    assert warning.message.startswith("a holds 60.0 GiB on GPU 0, but reports 150.0 GiB")


# Memory that is the host's --------------------------------------------------------------------------------------------
def test_a_device_whose_processes_alone_are_known_has_the_hosts_memory_if_that_is_known() -> None:
    plain, strange = ({"gpu": str(at), "uuid": f"GPU-{at}"} for at in (0, 1))
    points = [*gpus(70), *(Point(Series(schema.GPU_INFO, labels), 1.0, "nvml") for labels in (plain, strange))]
    listed = [
        DeviceProcesses("0", "GPU-0", (GpuProcess(1, 5),)),
        DeviceProcesses("1", "GPU-1", (GpuProcess(2, 7), GpuProcess(3, None), GpuProcess(4, 2))),
    ]
    found = unified(points, listed, (128.0, 40.0))

    assert {series.label("gpu") for series, _, _ in found} == {"1"}
    assert {series.metric: value for series, value, _ in found} == {
        schema.GPU_MEMORY_UNIFIED: 1.0,
        schema.GPU_MEMORY_TOTAL: 128.0,
        schema.GPU_MEMORY_USED: 88.0,
        schema.GPU_MEMORY_FREE: 40.0,
    }
    assert attributable([*points, *found], listed) == {("0", "GPU-0"): 70 * GIB, ("1", "GPU-1"): 9.0}
    assert unified(points, listed, None) == []
    assert unified(points, [DeviceProcesses("1", "GPU-1", (GpuProcess(3, None),))], (128.0, 40.0)) == []


# Devices -------------------------------------------------------------------------------------------------------------
def test_headroom_is_what_nvml_calls_free_and_the_rest_is_unattributed() -> None:
    found = result(gpus(70), [holding(0, "a", 40), holding(0, "b", 20)], engine("a"), engine("b", kind="ollama"))
    free = 80 - 70 - RESERVED
    assert value(found, schema.GPU_MEMORY_HEADROOM) == free * GIB
    assert value(found, schema.GPU_MEMORY_HEADROOM_RATIO) == pytest.approx(free / 80)
    assert value(found, schema.GPU_MEMORY_UNATTRIBUTED) == 10 * GIB
    assert value(found, schema.GPU_MEMORY_OVERCOMMITTED) == 0.0


def test_reservations_of_two_engines_that_exceed_the_device() -> None:
    two = [engine(name, said(schema.ENGINE_GPU_RESERVATION, share)) for name, share in (("a", 0.6), ("b", 0.5))]
    found = result(gpus(60), [holding(0, "a", 45), holding(0, "b", 10)], *two)

    assert value(found, schema.GPU_MEMORY_RESERVATION, target="a") == pytest.approx(48 * GIB)
    assert value(found, schema.GPU_MEMORY_RESERVATION, target="b") == pytest.approx(40 * GIB)
    assert value(found, schema.GPU_MEMORY_OVERCOMMITTED) == pytest.approx((48 + 40 + 5 + RESERVED - 80) * GIB)


def test_how_memory_was_attributed_is_told_with_the_target_s_labels() -> None:
    holdings = [holding(0, "a", 10), holding(0, "a", 5, Method.GPUS)]
    found = result(gpus(70), holdings, engine("a", team="search"))

    infos = [dict(each.series.labels) for each in found.points if each.series.metric is schema.GPU_ATTRIBUTION_INFO]
    assert {info["method"] for info in infos} == {"pid", "gpus"}
    assert infos[0].items() >= {"engine": "vllm", "target": "a", "team": "search", "gpu": "0", "uuid": "GPU-0"}.items()
    assert kinds(found) == {"other": 15}


def test_a_gpu_that_is_cut_into_mig_instances_is_no_place_for_engines() -> None:
    parent = gpus(70)
    instance = {"gpu": "0:1", "uuid": "MIG-1"}
    own = [Point(Series(each.series.metric, instance), each.value, "nvml") for each in gpus(70)]
    info = Point(Series(schema.GPU_INFO, {**instance, "mig_parent": "GPU-0"}), 1.0, "nvml")
    assert device_memory([*parent, *own, info]).keys() == {("0:1", "MIG-1")}


def test_a_device_without_memory_has_nothing_derived() -> None:
    assert device_memory([Point(Series(schema.GPU_POWER, {"gpu": "0", "uuid": "u"}), 1.0, "nvml")]) == {}


# Everything adds up --------------------------------------------------------------------------------------------------
share = st.floats(0, 1)
size = st.integers(0, 2**37)


@st.composite
def machines(draw: st.DrawFn) -> tuple[list[Point], list[Holding], list[Watched]]:
    """Up to four GPUs and three engines with whatever they may hold and tell, true or not."""
    count = draw(st.integers(1, 4))
    points: list[Point] = []
    used = []
    for index in range(count):
        total = draw(st.integers(2**30, 2**38))
        reserved = int(total * draw(st.floats(0, 0.1)))
        busy = int((total - reserved) * draw(share))
        used.append(busy)
        labels = {"gpu": str(index), "uuid": f"GPU-{index}"}
        parts = (
            (schema.GPU_MEMORY_TOTAL, total),
            (schema.GPU_MEMORY_USED, busy),
            (schema.GPU_MEMORY_FREE, total - reserved - busy),
            (schema.GPU_MEMORY_RESERVED, reserved),
        )
        points += [Point(Series(metric, labels), float(part), "nvml") for metric, part in parts]
    engines, holdings = [], []
    for name in sorted(draw(st.sets(st.sampled_from("abc")))):
        told = [
            said(schema.MODEL_MEMORY, float(draw(size)), kind=kind, replica=replica)
            for kind in sorted(draw(st.sets(st.sampled_from(("weights", "kv_cache", "graph", "device", "total")))))
            for replica in draw(st.sampled_from((("",), ("0", "1"))))
        ]
        tokens = (schema.KV_CACHE_CAPACITY, schema.KV_CACHE_USED, schema.KV_CACHE_EVICTABLE)
        told += [said(metric, float(draw(st.integers(0, 10**6)))) for metric in tokens if draw(st.booleans())]
        if draw(st.booleans()):
            told.append(said(schema.KV_CACHE_USAGE, draw(share)))
        memory = ModelMemory(weights=draw(st.none() | size), kv_bytes_per_token=draw(st.none() | st.integers(1, 2**20)))
        engines.append(engine(name, *told, up=draw(st.booleans()), memory=memory))
        for gpu in sorted(draw(st.sets(st.integers(0, count - 1)))):
            holdings += [holding(gpu, name, used[gpu] * draw(st.floats(0, 1.2)) / GIB)]
    return points, holdings, engines


@given(machines())
def test_engines_unattributed_reserved_and_free_add_up_to_the_device(
    machine: tuple[list[Point], list[Holding], list[Watched]],
) -> None:
    points, holdings, engines = machine
    memory = device_memory(points)

    found = derived(memory, holdings, engines, most=attributable(points, ()))

    parts: Mapping[str, float] = memory[next(iter(memory))]
    sums: dict[str, float] = defaultdict(float)
    held: dict[str, float] = defaultdict(float)
    for series, number, _ in found.points:
        assert isinstance(number, float)
        assert number >= 0
        if series.metric is schema.GPU_MEMORY_ENGINE:
            held[series.label("gpu")] += number
        if series.metric in {schema.GPU_MEMORY_ENGINE, schema.GPU_MEMORY_UNATTRIBUTED, schema.GPU_MEMORY_HEADROOM}:
            sums[series.label("gpu")] += number
    for (gpu, _), parts in memory.items():
        assert sums[gpu] + parts["reserved"] == pytest.approx(parts["total"], rel=1e-9)
        told = sum(each.memory for each in holdings if each.gpu == gpu)
        assert held[gpu] == pytest.approx(min(told, parts["used"]), rel=1e-9, abs=1.0)
    assert len({point.series for point in found.points}) == len(found.points)
    for point in found.points:
        assert {name for name, _ in point.series.labels} <= set(point.series.metric.labels)
