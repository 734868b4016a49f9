"""The risk that memory runs out, of GPUs and of the host, on timelines made of literals."""

from __future__ import annotations

import pytest

from llm_headroom import schema
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Target
from llm_headroom.derive import oom
from llm_headroom.derive.trend import Trend
from llm_headroom.gpu.attribution import Holding, Method
from llm_headroom.host.engines import Watched
from llm_headroom.model import Health, Point, Series, Snapshot

GIB = float(2**30)
KEY = ("0", "GPU-a")
TOTAL = 80 * GIB


def engine(name: str = "e", *, up: bool = True, models: tuple[str, ...] = ()) -> Watched:
    points = tuple(Point(Series(schema.MODEL_LOADED, {"target": name, "model": model}), 1.0, "") for model in models)
    health = Health(up=up, error=None, duration_seconds=0.0, last_success=0.0)
    return Watched(
        Target(name=name, endpoint=Endpoint(url="http://e"), engine="vllm"),
        Snapshot(target=name, engine="vllm", taken=0.0, points=points, health=health),
    )


def holding(name: str = "e") -> Holding:
    return Holding(gpu=KEY[0], uuid=KEY[1], target=name, memory=GIB, method=Method.PID)


def run(*readings: tuple[float, float, Watched]) -> list[Point]:
    """What is told after the last of some readings: time in minutes, GiB used, and the engine on the device."""
    devices: dict[tuple[str, str], oom.Device] = {}
    points: list[Point] = []
    for minutes, used, watched in readings:
        memory = {KEY: {"total": TOTAL, "used": used * GIB, "free": TOTAL - used * GIB}}
        devices, points = oom.gpus(devices, memory, [holding()], [watched], minutes * 60.0)
    return points


def told(points: list[Point], name: str = "llm_oom_risk_ratio") -> float | None:
    found = [point.value for point in points if point.series.metric.name == name]
    assert all(isinstance(each, float) for each in found)
    return float(found[0]) if found else None  # type: ignore[arg-type]


def flat(used: float, begin: int = 0, end: int = 60) -> list[tuple[float, float, Watched]]:
    return [(float(minute), used, engine()) for minute in range(begin, end + 1)]


# GPU -----------------------------------------------------------------------------------------------------------------
def test_a_full_card_whose_engine_has_preallocated_is_no_risk() -> None:
    risk = told(run(*flat(79.0)))
    assert risk is not None
    assert risk <= 0.02


def test_transients_that_came_close_to_the_free_memory_are_a_risk_and_those_far_below_are_not() -> None:
    def spikes(height: float) -> list[tuple[float, float, Watched]]:
        return [(float(m), 70.0 + (height if m % 10 == 9 else 0.0), engine()) for m in range(121)]

    near, far = told(run(*spikes(9.0))), told(run(*spikes(0.5)))
    assert near is not None
    assert far is not None
    assert far < 0.02
    assert near > 0.2


def stairs(step: float, every: int, minutes: int) -> list[tuple[float, float, Watched]]:
    """Memory that goes up and down by 2 GiB, and for good by `step` GiB every so many minutes."""
    return [(float(m), 40.0 + 2.0 * (m % 10 == 9) + step * (m // every), engine()) for m in range(minutes)]


def test_a_leak_in_stairs_is_a_risk_before_the_device_is_full() -> None:
    # two GiB every 40 minutes, 3 GiB an hour: with 2 GiB left it is full within the hour
    full_soon, early = told(run(*stairs(2.0, 40, 760))), told(run(*stairs(2.0, 40, 360)))
    assert early is not None
    assert full_soon is not None
    assert early < 0.2
    assert full_soon >= 0.5


def test_the_next_of_high_stairs_is_a_risk_before_it_is_taken() -> None:
    # five GiB every two hours: with 5 GiB left and rises of 2 the next one fails, although it is two hours' growth
    last, early = told(run(*stairs(5.0, 120, 950))), told(run(*stairs(5.0, 120, 470)))
    assert early is not None
    assert last is not None
    assert early < 0.2
    assert last >= 0.5


def test_one_step_is_no_leak_and_another_engine_begins_anew() -> None:
    grown = told(run(*stairs(30.0, 400, 790)))
    assert grown is not None
    assert grown < 0.5
    restarted = [(720.0 + m, 76.0, engine(models=("b",))) for m in range(60)]
    anew = told(run(*stairs(2.0, 40, 720), *restarted))
    assert anew is not None
    assert anew < 0.5


def test_a_transient_that_is_on_is_not_expected_on_top_of_itself() -> None:
    def transients(minutes: int) -> list[tuple[float, float, Watched]]:
        return [(float(m), 70.0 + (6.0 if m % 20 >= 15 else 0.0), engine()) for m in range(minutes)]

    low, high = transients(255), transients(260)
    assert (low[-1][1], high[-1][1]) == (70.0, 76.0)  # 10 GiB free, and 4: less than it takes
    for readings in (low, high):
        risk = told(run(*readings))
        assert risk is not None
        assert risk < 0.05


def test_a_rise_beyond_all_that_was_seen_is_a_risk() -> None:
    seen = [(float(m), 70.0 + (3.0 if m % 20 >= 15 else 0.0), engine()) for m in range(255)]
    risk = told(run(*seen, (255.0, 79.0, engine())))
    assert risk is not None
    assert risk > 0.2


@pytest.mark.parametrize("minutes", [1, 5, 14, 15, 16, 29, 31, 45])
def test_memory_that_is_taken_once_and_held_is_no_ramp(minutes: int) -> None:
    step = [*flat(70.0, 0, 179), *flat(74.0, 180, 180 + minutes)]  # 6 GiB left
    risk = told(run(*step))
    assert risk is not None
    assert risk < 0.15


def test_a_leak_is_certain_once_half_an_hour_will_not_do() -> None:
    leak = [(float(minute), 40.0 + minute * 0.5, engine()) for minute in range(61)]
    assert told(run(*leak[:31])) == pytest.approx(0.0, abs=0.05)  # 25 GiB left, 15 in half an hour
    late = told(run(*leak))
    assert late is not None
    assert late > 0.9  # 10 GiB left


def test_an_engine_that_misses_polls_is_not_starting() -> None:
    leak = [(float(m), 40.0 + m * 0.5, engine(up=m < 50, models=("a",) if m < 50 else ())) for m in range(61)]
    risk = told(run(*leak))
    assert risk is not None
    assert risk > 0.9


def test_what_an_engine_takes_while_it_starts_is_no_transient() -> None:
    start = [(float(m), 1.0 + 7.0 * m, engine(up=False)) for m in range(11)]
    assert told(run(*start)) is None
    risk = told(run(*start, *flat(76.0, 11, 60)))
    assert risk is not None
    assert risk <= 0.02


def test_a_model_load_that_fits_is_no_transient() -> None:
    before = [(float(m), 10.0, engine(models=("a",))) for m in range(40)]
    loading = [(40.0, 30.0, engine(models=("a",))), (40.5, 60.0, engine(models=("a", "b")))]
    after = [(41.0 + m, 60.0, engine(models=("a", "b"))) for m in range(30)]

    risk = told(run(*before, *loading, *after))
    assert risk is not None
    assert risk <= 0.02


def test_pressure_on_a_gpu_is_its_greatest_rise_over_what_is_free_and_belongs_to_the_engine() -> None:
    spikes = [(float(m), 70.0 + (5.0 if m == 20 else 0.0), engine()) for m in range(31)]
    points = run(*spikes)

    assert told(points, "llm_pressure_ratio") == pytest.approx(0.5)
    series = next(point.series for point in points if point.series.metric is schema.PRESSURE)
    assert (series.label("target"), series.label("engine"), series.label("resource")) == ("e", "vllm", "gpu_memory")


def test_a_device_that_goes_is_forgotten_and_memory_stays_bounded() -> None:
    devices: dict[tuple[str, str], oom.Device] = {}
    for minute in range(3 * 24 * 60):
        memory = {KEY: {"total": TOTAL, "used": 40 * GIB, "free": 40 * GIB}}
        devices, _ = oom.gpus(devices, memory, [], [], minute * 60.0)
    assert len(devices[KEY].rises) == oom.MOST_RISES
    assert len(devices[KEY].open) <= oom.RISE_SECONDS / oom.WINDOW_STEP + 1
    assert oom.gpus(devices, {}, [], [], 0.0) == ({}, [])


# Host ----------------------------------------------------------------------------------------------------------------
def host(
    minutes: int, used: float, *, limit: float | None = 64.0, kills: float = 0.0, stalled: float = 0.0
) -> list[Point]:
    labels = {"engine": "vllm", "target": "e"}
    points = [
        Point(Series(schema.HOST_MEMORY_USED, labels), used * GIB, ""),
        Point(Series(schema.HOST_OOM_KILLS, labels), float(kills), ""),
        Point(Series(schema.HOST_MEMORY_PRESSURE, {**labels, "severity": "full"}), stalled, ""),
        Point(Series(schema.HOST_MEMORY_PRESSURE, {**labels, "severity": "some"}), minutes * 60.0, ""),
    ]
    if limit is not None:
        points.append(Point(Series(schema.HOST_MEMORY_LIMIT, labels), limit * GIB, ""))
    return points


def host_risk(*readings: tuple[float, list[Point]]) -> float | None:
    known: oom.Host | None = None
    points: list[Point] = []
    for minutes, reading in readings:
        known, points = oom.host(known, reading, minutes * 60.0)
    return told(points)


def test_host_memory_that_leaks_towards_its_limit_is_a_risk_and_flat_memory_is_none() -> None:
    assert host_risk(*((float(m), host(m, 60.0)) for m in range(31))) == pytest.approx(0.0, abs=1e-6)
    leak = host_risk(*((float(m), host(m, 40.0 + 0.6 * m)) for m in range(31)))  # 6 GiB left, 18 in half an hour
    assert leak is not None
    assert leak > 0.99
    slow = host_risk(*((float(m), host(m, 40.0 + 0.1 * m)) for m in range(31)))
    assert slow == pytest.approx(0.0, abs=1e-3)


def test_a_single_jump_of_host_memory_is_no_trend() -> None:
    jump = host_risk(*((float(m), host(m, 30.0 if m < 25 else 55.0)) for m in range(31)))
    assert jump == pytest.approx(0.0, abs=0.01)


def test_a_kill_speaks_for_five_minutes_and_pressure_while_it_lasts() -> None:
    calm = [(float(m), host(m, 30.0)) for m in range(10)]
    assert host_risk(*calm, (10.0, host(10, 30.0, kills=1))) == 0.95
    after = [(float(m), host(m, 30.0, kills=1)) for m in range(10, 17)]
    assert host_risk(*calm, *after) == pytest.approx(0.0, abs=1e-6)
    assert host_risk(*calm, (10.0, host(10, 30.0, stalled=18.0))) == pytest.approx(0.8)


def test_without_a_limit_only_hard_evidence_speaks() -> None:
    assert host_risk(*((float(m), host(m, 40.0 + m, limit=None)) for m in range(31))) is None
    evidence = [(float(m), host(m, 40.0, limit=None, kills=float(m > 8))) for m in range(10)]
    assert host_risk(*evidence) == 0.95


def test_a_control_group_that_began_anew_has_no_trend_of_its_predecessor() -> None:
    leak = [(float(m), host(m, 40.0 + 0.7 * m)) for m in range(31)]
    assert host_risk(*leak, (31.0, host(31, 5.0))) is None


def test_a_target_without_host_memory_has_no_risk() -> None:
    assert oom.host(None, [], 0.0) == (None, [])


# Trend ---------------------------------------------------------------------------------------------------------------
def test_a_few_readings_far_apart_are_no_trend() -> None:
    assert [Trend().after(0.0, 1.0).after(400.0, 2.0).after(800.0, 3.0).slope] == [None]
    assert Trend().after(0.0, 1.0).after(400.0, 5.0).after(800.0, 9.0).after(1200.0, 13.0).slope == 0.01


def test_readings_that_come_too_soon_or_from_the_past_add_nothing() -> None:
    trend = Trend().after(100.0, 1.0)
    assert trend.after(101.0, 50.0) is trend
    assert trend.after(50.0, 50.0) is trend
    assert trend.chance(1.0) is None
