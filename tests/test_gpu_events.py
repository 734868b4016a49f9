"""Xid errors through NVML's events, and what else a running exporter asks of GPUs, over the stub (see nvml_library)."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

import nvml_library
from llm_headroom import schema
from llm_headroom.clock import LEAST_STEP
from llm_headroom.gpu import GpuError, Gpus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from llm_headroom.model import Point

H100 = "GPU-1f0f6a3c-7c3b-4d52-9b0e-3a1f5f3d2c10"
DEADLINE = 60.0
GPU_IS_LOST, NOT_SUPPORTED, UNKNOWN = 15, 3, 999


@pytest.fixture
def gpus(library: Path, machine: nvml_library.Description) -> Iterator[Gpus]:  # noqa: ARG001 (read through the environment)
    gpus = Gpus(library=library, events=True)
    yield gpus
    gpus.close()


def errors(points: Iterable[Point]) -> dict[tuple[str, str], object]:
    """Counts of Xid errors by device and number."""
    return {
        (series.label("gpu"), series.label("xid")): value
        for series, value, _ in points
        if series.metric is schema.GPU_XID_ERRORS
    }


def watched(points: Iterable[Point]) -> dict[str, object]:
    return {series.label("gpu"): value for series, value, _ in points if series.metric is schema.GPU_XID_WATCHED}


def waiting() -> int:
    """How many threads wait for events."""
    return [thread.name for thread in threading.enumerate()].count("nvml-events")


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds; events come in a thread of their own."""
    end = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < end


def test_errors_are_counted_by_number_with_the_time_of_the_latest(
    gpus: Gpus, machine: nvml_library.Description
) -> None:
    before = time.time()
    assert errors(gpus.read().points) == {}

    machine.say("gpu 0", "events", "79 13 79")
    until(lambda: errors(gpus.xids()) == {("0", "79"): 2.0, ("0", "13"): 1.0})

    last = {series.labels: value for series, value, _ in gpus.read().points if series.metric is schema.GPU_XID_LAST}
    assert {dict(labels)["xid"] for labels in last} == {"79", "13"}
    assert all(dict(labels)["uuid"] == H100 for labels in last)
    after = time.time() + LEAST_STEP  # a clock that is set by less than this is not followed
    assert all(isinstance(value, float) and before - LEAST_STEP < value < after for value in last.values())


def test_errors_from_before_the_first_reading_are_not_made_up(gpus: Gpus, machine: nvml_library.Description) -> None:
    machine.say("gpu 0", "events", "48 63")

    assert watched(gpus.read().points) == {"0": 1.0}
    machine.say("gpu 0", "events", "48 63 94")

    until(lambda: errors(gpus.xids()) != {})
    assert errors(gpus.xids()) == {("0", "94"): 1.0}


def test_each_of_eight_gpus_has_its_own_errors(gpus: Gpus, machine: nvml_library.Description) -> None:
    machine.become(nvml_library.fixture("h200x8"))
    assert watched(gpus.read().points) == {str(index): 1.0 for index in range(8)}

    machine.say("gpu 3", "events", "31")
    machine.say("gpu 6", "events", "43")

    until(lambda: errors(gpus.xids()) == {("3", "31"): 1.0, ("6", "43"): 1.0})


def test_errors_outlive_a_reloaded_driver_and_new_ones_are_counted_on(
    gpus: Gpus, machine: nvml_library.Description
) -> None:
    gpus.read()
    machine.say("gpu 0", "events", "79")
    until(lambda: errors(gpus.xids()) == {("0", "79"): 1.0})

    machine.say("system", "session", "2")
    with pytest.raises(GpuError):
        gpus.read()
    assert errors(gpus.xids()) == {("0", "79"): 1.0}
    assert errors(gpus.read().points) == {("0", "79"): 1.0}
    machine.say("gpu 0", "events", "79 79")

    until(lambda: errors(gpus.xids()) == {("0", "79"): 2.0})


def test_the_error_that_takes_the_last_gpu_along_is_counted(gpus: Gpus, machine: nvml_library.Description) -> None:
    gpus.read()
    machine.say("gpu 0", "events", "79")
    machine.fail("gpu 0", "*", GPU_IS_LOST)

    until(lambda: errors(gpus.xids()) == {("0", "79"): 1.0})
    with pytest.raises(GpuError):
        gpus.read()
    assert errors(gpus.xids()) == {("0", "79"): 1.0}


def test_a_lost_gpu_leaves_the_others_watched(
    gpus: Gpus, machine: nvml_library.Description, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "calls"
    monkeypatch.setenv("NVML_STUB_LOG", str(log))
    machine.become(nvml_library.fixture("h200x8"))
    gpus.read()
    machine.fail("gpu 2", "*", GPU_IS_LOST)
    until(lambda: log.read_text(encoding="utf-8").count("nvmlEventSetCreate") >= 2)
    added = "45"

    def counted() -> bool:
        nonlocal added
        added += " 45"  # those that come while the driver ends the waiting for all are lost
        machine.say("gpu 5", "events", added)
        return ("5", "45") in errors(gpus.xids())

    until(counted)


def test_a_waiting_that_fails_is_begun_anew_by_the_next_reading(gpus: Gpus, machine: nvml_library.Description) -> None:
    gpus.read()
    machine.fail("system", "nvmlEventSetWait_v2", UNKNOWN)
    gpus.read()
    machine.restore("system", "nvmlEventSetWait_v2")
    added = "1"

    def counted() -> bool:
        nonlocal added
        gpus.read()
        added += " 1"
        machine.say("gpu 0", "events", added)
        return errors(gpus.xids()) != {}

    until(counted)


def test_a_waiting_that_fails_ends_until_the_next_reading(gpus: Gpus, machine: nvml_library.Description) -> None:
    gpus.read()
    assert waiting() == 1
    machine.fail("system", "nvmlEventSetWait_v2", UNKNOWN)
    until(lambda: waiting() == 0)
    machine.restore("system", "nvmlEventSetWait_v2")
    gpus.read()
    assert waiting() == 1
    gpus.read()
    assert waiting() == 1


def test_of_gpus_without_events_each_says_so(gpus: Gpus, machine: nvml_library.Description) -> None:
    machine.become(nvml_library.fixture("h200x8"))
    machine.fail("gpu 3", "nvmlDeviceRegisterEvents", NOT_SUPPORTED)
    assert watched(gpus.read().points) == {str(index): float(index != 3) for index in range(8)}


@pytest.mark.parametrize(("section", "key"), [("gpu 0", "nvmlDeviceRegisterEvents"), ("system", "nvmlEventSetCreate")])
def test_a_driver_without_events_says_so_and_counts_nothing(
    gpus: Gpus, machine: nvml_library.Description, section: str, key: str
) -> None:
    machine.fail(section, key, NOT_SUPPORTED)

    reading = gpus.read()
    machine.say("gpu 0", "events", "79")
    again = gpus.read()

    assert watched(reading.points) == watched(again.points) == {"0": 0.0}
    assert errors(again.points) == {}
    assert again.warnings == ()


def test_in_mig_mode_errors_are_the_whole_gpu_s(gpus: Gpus, machine: nvml_library.Description) -> None:
    machine.become(nvml_library.fixture("h100_mig"))
    assert watched(gpus.read().points) == {"0": 1.0}
    machine.say("gpu 0", "events", "94")
    until(lambda: errors(gpus.xids()) == {("0", "94"): 1.0})


def test_nothing_waits_for_events_unless_asked_to(
    library: Path, machine: nvml_library.Description, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "calls"
    log.touch()
    monkeypatch.setenv("NVML_STUB_LOG", str(log))
    gpus = Gpus(library=library)
    machine.say("gpu 0", "events", "79")

    points = gpus.read().points
    gpus.close()

    assert (errors(points), watched(points)) == ({}, {})
    assert gpus.xids() == []
    assert "nvmlEvent" not in log.read_text(encoding="utf-8")
    assert "RegisterEvents" not in log.read_text(encoding="utf-8")


def test_closing_ends_the_waiting_before_nvml(
    gpus: Gpus, machine: nvml_library.Description, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stub ends the program if NVML is shut down under a waiting thread."""
    log = tmp_path / "calls"
    monkeypatch.setenv("NVML_STUB_LOG", str(log))
    for _ in range(3):
        gpus.read()
        gpus.close()
    assert watched(gpus.xids()) == {}
    machine.fail("gpu 0", "nvmlDeviceRegisterEvents", NOT_SUPPORTED)
    gpus.read()
    calls = log.read_text(encoding="utf-8")
    assert calls.count("nvmlEventSetCreate") == calls.count("nvmlEventSetFree") == 4


# What is off by default ----------------------------------------------------------------------------------------------
def test_pcie_throughput_is_asked_only_on_demand(
    library: Path, gpus: Gpus, machine: nvml_library.Description, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "calls"
    monkeypatch.setenv("NVML_STUB_LOG", str(log))
    gpus.read()
    assert "PcieThroughput" not in log.read_text(encoding="utf-8")
    asked = Gpus(library=library, pcie=True)

    points = asked.read().points
    asked.close()
    machine.say("gpu 0", "nvmlDeviceGetPcieThroughput 0", "0xFFFFFFFF")
    sentinel = asked.read().points
    asked.close()

    machine.say("gpu 0", "nvmlDeviceGetPcieThroughput 0", "1000000001")
    absurd = asked.read().points
    asked.close()

    def found(points: Iterable[Point]) -> dict[str, object]:
        return {
            series.label("direction"): value
            for series, value, _ in points
            if series.metric is schema.GPU_PCIE_THROUGHPUT
        }

    assert found(points) == {"transmit": 2.5e9, "receive": 4e8}
    assert found(sentinel) == found(absurd) == {"receive": 4e8}


@pytest.mark.parametrize("value", ["9223372036854775794 3", "0xFFFFFFFFFFFFFFFF 3"])
def test_stand_ins_for_no_throttle_time_are_dropped(gpus: Gpus, machine: nvml_library.Description, value: str) -> None:
    machine.say("gpu 0", "field 74", value)

    policies = {
        series.label("policy") for series, _, _ in gpus.read().points if series.metric is schema.GPU_THROTTLE_TIME
    }

    assert policies == {"thermal", "sync_boost", "board_limit", "low_utilization", "reliability"}


def test_a_recovery_action_is_told(gpus: Gpus, machine: nvml_library.Description) -> None:
    machine.say("gpu 0", "field 230", "1")
    (value,) = (value for series, value, _ in gpus.read().points if series.metric is schema.GPU_RECOVERY_ACTION)
    assert value == 1.0
