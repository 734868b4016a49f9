"""What a number of NVML has to be to become a value, and which of its codes mean what, over the stub of NVML."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pynvml
import pytest

import nvml_library
from llm_headroom import schema
from llm_headroom.gpu import GpuError, Gpus
from llm_headroom.gpu.device import GpuProcess
from llm_headroom.model import Cause
from nvml_library import values

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from llm_headroom.gpu import Reading

UNKNOWN, NOT_SUPPORTED, GPU_IS_LOST = 999, 3, 15
FIELDS, PROCESSES = "nvmlDeviceGetFieldValues", "nvmlDeviceGetComputeRunningProcesses_v3"
PEBIBYTE = 2**50
UINT, ULONGLONG = "", " 3"


@pytest.fixture
def gpus(library: Path, machine: nvml_library.Description) -> Iterator[Gpus]:  # noqa: ARG001 (read through the environment)
    gpus = Gpus(library=library, pcie=True)
    yield gpus
    gpus.close()


def found(reading: Reading, name: str) -> float | None:
    return values(reading, "0").get(name)


# Limits --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("key", "answer", "most", "name", "value"),
    [
        ("nvmlDeviceGetUtilizationRates", "{} 5", 100, "utilization_ratio", 1),
        ("nvmlDeviceGetUtilizationRates", "5 {}", 100, "memory_controller_utilization_ratio", 1),
        ("nvmlDeviceGetPowerUsage", "{}", 10_000_000, "power_watts", 10_000),
        ("nvmlDeviceGetEnforcedPowerLimit", "{}", 10_000_000, "power_limit_watts", 10_000),
        ("field 83", "{} 3", 10**16, "energy_joules_total", 10**13),
        ("nvmlDeviceGetTemperature 0", "{}", 200, "temperature_celsius gpu", 200),
        ("field 82", "{}", 200, "temperature_celsius memory", 200),
        ("nvmlDeviceGetClockInfo 2", "{}", 100_000, "clock_hertz memory", 10**11),
        ("nvmlDeviceGetMaxClockInfo 0", "{}", 100_000, "clock_max_hertz graphics", 10**11),
        ("field 79", "{} 3", 10**18, "throttle_seconds_total reliability", 10**9),
        ("field 230", "{}", 100, "recovery_action", 100),
        ("field 5", "{} 3", 2**48, "ecc_errors_total corrected", 2**48),
        ("field 6", "{} 3", 2**48, "ecc_errors_total uncorrected", 2**48),
        ("field 142", "{} 3", 2**48, "row_remap_rows correctable", 2**48),
        ("field 143", "{} 3", 2**48, "row_remap_rows uncorrectable", 2**48),
        ("field 144", "{}", 1, "row_remap_pending", 1),
        ("field 145", "{}", 1, "row_remap_failure", 1),
        ("field 94", "{} 3", 2**48, "pcie_replays_total", 2**48),
        ("nvmlDeviceGetCurrPcieLinkGeneration", "{}", 20, "pcie_link_generation", 20),
        ("nvmlDeviceGetCurrPcieLinkWidth", "{}", 64, "pcie_link_width", 64),
        ("field 138 4294967295", "{} 3", PEBIBYTE, "nvlink_bytes_total transmit", 2**60),
        ("nvmlDeviceGetPcieThroughput 1", "{}", 10**9, "pcie_bytes_per_second receive", 10**12),
        ("nvmlDeviceGetMemoryInfo_v2", "{} 1 1 1", PEBIBYTE, "memory_total_bytes", PEBIBYTE),
        ("nvmlDeviceGetMemoryInfo_v2", "1000 1 1 {}", 1000, "memory_used_bytes", 1000),
        ("nvmlDeviceGetMemoryInfo_v2", "1000 1 {} 1", 1000, "memory_free_bytes", 1000),
        ("nvmlDeviceGetMemoryInfo_v2", "1000 {} 1 1", 1000, "memory_reserved_bytes", 1000),
    ],
)
def test_the_most_that_a_value_can_be_is_one_and_what_exceeds_it_is_none(  # noqa: PLR0913, PLR0917 (one row of a table)
    gpus: Gpus, machine: nvml_library.Description, key: str, answer: str, most: int, name: str, value: float
) -> None:
    machine.say("gpu 0", key, answer.format(most))
    reading = gpus.read()
    assert (found(reading, name), reading.warnings) == (value, ())

    gpus.close()  # what never changes is read once
    machine.say("gpu 0", key, answer.format(most + 1))
    reading = gpus.read()
    assert found(reading, name) is None
    assert len(reading.warnings) == 1


def test_the_speed_of_each_fan_up_to_three_times_its_nominal_one(gpus: Gpus, machine: nvml_library.Description) -> None:
    machine.become(nvml_library.fixture("rtx4080s"))
    machine.say("gpu 0", "nvmlDeviceGetFanSpeed_v2 0", 300)
    machine.say("gpu 0", "nvmlDeviceGetFanSpeed_v2 1", 301)
    reading = gpus.read()
    assert (found(reading, "fan_speed_ratio 0"), found(reading, "fan_speed_ratio 1")) == (3, None)
    assert len(reading.warnings) == 1


@pytest.mark.parametrize(("celsius", "value"), [(-50, -50), (-51, None), (0, 0)])
def test_the_lowest_temperature(
    gpus: Gpus, machine: nvml_library.Description, celsius: int, value: float | None
) -> None:
    machine.say("gpu 0", "nvmlDeviceGetTemperature 0", celsius)
    reading = gpus.read()
    assert found(reading, "temperature_celsius gpu") == value
    assert len(reading.warnings) == (value is None)


@pytest.mark.parametrize(
    ("number", "verdict"),
    [
        *((2**31 - 17, "value"), (2**31 - 16, "none"), (2**31 - 1, "none"), (2**31, "value")),
        *((2**32 - 2, "value"), (2**32 - 1, "none"), (2**32, "value")),
        *((2**63 - 17, "impossible"), (2**63 - 16, "none"), (2**63 - 1, "none"), (2**63, "impossible")),
        *((2**64 - 2, "impossible"), (2**64 - 1, "none"), (0, "value")),
    ],
)
def test_which_numbers_stand_for_no_value(
    gpus: Gpus, machine: nvml_library.Description, number: int, verdict: str
) -> None:
    machine.say("gpu 0", "field 83", f"{number} 3")
    reading = gpus.read()
    assert found(reading, "energy_joules_total") == (number / 1000 if verdict == "value" else None)
    assert len(reading.warnings) == (verdict == "impossible")


def test_a_memory_sensor_that_says_zero_is_none_but_one_degree_is(
    gpus: Gpus, machine: nvml_library.Description
) -> None:
    machine.say("gpu 0", "field 82", 0)
    assert found(gpus.read(), "temperature_celsius memory") is None
    machine.say("gpu 0", "field 82", 1)
    assert found(gpus.read(), "temperature_celsius memory") == 1


@pytest.mark.parametrize(("kind", "value"), [(0, 61), (1, 61), (2, 61), (3, 61), (4, 61), (5, 61), (6, 61), (7, None)])
def test_the_types_of_a_field(gpus: Gpus, machine: nvml_library.Description, kind: int, value: float | None) -> None:
    machine.say("gpu 0", "field 82", f"61 {kind}")
    reading = gpus.read()
    assert found(reading, "temperature_celsius memory") == value
    assert len(reading.warnings) == (value is None)


@pytest.mark.parametrize(("bits", "active"), [(1 << bit, bit) for bit in range(9)])
def test_each_reason_of_a_slow_clock_is_a_bit(
    gpus: Gpus, machine: nvml_library.Description, bits: int, active: int
) -> None:
    machine.say("gpu 0", "nvmlDeviceGetCurrentClocksEventReasons", bits)
    reasons = [value for name, value in values(gpus.read(), "0").items() if name.startswith("throttle_active")]
    assert reasons == [float(bit == active) for bit in range(9)]


@pytest.mark.parametrize(("cuda", "text"), [("12080", "12.8"), ("13010", "13.1"), ("11090", "11.9"), ("!3", "")])
def test_the_version_of_cuda(gpus: Gpus, machine: nvml_library.Description, cuda: str, text: str) -> None:
    machine.say("system", "nvmlSystemGetCudaDriverVersion_v2", cuda)
    (series,) = (point.series for point in gpus.read().points if point.series.metric is schema.GPU_INFO)
    assert series.label("cuda") == text


# Codes ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("code", [19, 21, 27, 7])
def test_a_value_that_is_not_there_now_needs_no_words(gpus: Gpus, machine: nvml_library.Description, code: int) -> None:
    machine.fail("gpu 0", "nvmlDeviceGetPowerUsage", code)
    machine.fail("gpu 0", "field 83", code)
    reading = gpus.read()
    assert (found(reading, "power_watts"), found(reading, "energy_joules_total"), reading.warnings) == (None, None, ())
    machine.restore("gpu 0", "nvmlDeviceGetPowerUsage")
    machine.restore("gpu 0", "field 83")
    assert found(gpus.read(), "power_watts") == 512.345
    assert found(gpus.read(), "energy_joules_total") == 123456789.012


@pytest.mark.parametrize("code", [3, 13, 4, 6, 2, 25, 26, 22])
def test_what_a_device_never_answers_is_not_asked_again(
    gpus: Gpus, machine: nvml_library.Description, code: int
) -> None:
    machine.fail("gpu 0", "nvmlDeviceGetPowerUsage", code)
    machine.fail("gpu 0", "field 230", code)
    assert gpus.read().warnings == ()
    machine.restore("gpu 0", "nvmlDeviceGetPowerUsage")
    machine.restore("gpu 0", "field 230")
    reading = gpus.read()
    assert (found(reading, "power_watts"), found(reading, "recovery_action")) == (None, None)


@pytest.mark.parametrize("code", [10, 11, 8, 15, 16, 28, 1, 9, 18])
@pytest.mark.parametrize("key", ["nvmlDeviceGetPowerUsage", "field 230", FIELDS, PROCESSES, "nvmlDeviceGetMigMode"])
def test_a_device_that_is_lost_is_not_read(gpus: Gpus, machine: nvml_library.Description, key: str, code: int) -> None:
    gpus.read()
    machine.fail("gpu 0", key, code)
    with pytest.raises(GpuError):
        gpus.read()


@pytest.mark.parametrize("key", ["nvmlDeviceGetPciInfo_v3", "nvmlDeviceGetName", "nvmlDeviceGetNumFans"])
def test_a_device_that_is_lost_before_it_is_known_is_not_read(
    gpus: Gpus, machine: nvml_library.Description, key: str
) -> None:
    machine.fail("gpu 0", key, GPU_IS_LOST)
    with pytest.raises(GpuError, match="GPU 0: "):
        gpus.read()


def test_texts_that_a_device_does_not_give_are_empty(gpus: Gpus, machine: nvml_library.Description) -> None:
    for key in ("nvmlDeviceGetPciInfo_v3", "nvmlDeviceGetName", "nvmlDeviceGetVbiosVersion"):
        machine.fail("gpu 0", key, NOT_SUPPORTED)
    (series,) = (point.series for point in gpus.read().points if point.series.metric is schema.GPU_INFO)
    assert [series.label(name) for name in ("pci_bus_id", "name", "vbios", "gpu")] == ["", "", "", "0"]


# Fields --------------------------------------------------------------------------------------------------------------
def test_fields_that_cannot_be_read_now_are_one_warning_and_read_by_the_next(
    gpus: Gpus, machine: nvml_library.Description
) -> None:
    before = values(gpus.read(), "0")
    machine.fail("gpu 0", FIELDS, UNKNOWN)

    reading = gpus.read()

    missing = {name.split(" ")[0] for name in before.keys() - values(reading, "0").keys()}
    assert missing == {
        *("energy_joules_total", "temperature_celsius", "throttle_seconds_total", "recovery_action"),
        *("ecc_errors_total", "row_remap_rows", "row_remap_pending", "row_remap_failure"),
        *("pcie_replays_total", "nvlink_bytes_total"),
    }
    (warning,) = reading.warnings
    assert FIELDS in warning.message
    machine.restore("gpu 0", FIELDS)
    assert values(gpus.read(), "0") == before


@pytest.mark.parametrize(
    ("fields", "name", "origin"),
    [
        (("5", "6"), "ecc_errors_total", "nvmlDeviceGetTotalEccErrors"),
        (("5",), "ecc_errors_total", "NVML_FI_DEV_ECC_DBE_AGG_TOTAL"),
        (("142", "143", "144", "145"), "row_remap_failure", "nvmlDeviceGetRemappedRows"),
        (("94",), "pcie_replays_total", "nvmlDeviceGetPcieReplayCounter"),
        (("83",), "energy_joules_total", "nvmlDeviceGetTotalEnergyConsumption"),
    ],
)
def test_a_function_steps_in_once_no_field_of_a_question_is_supported(
    gpus: Gpus, machine: nvml_library.Description, fields: tuple[str, ...], name: str, origin: str
) -> None:
    for field in fields:
        machine.fail("gpu 0", f"field {field}", NOT_SUPPORTED)
    for _ in range(2):
        points = gpus.read().points
        assert {point.origin for point in points if point.series.metric.name == f"llm_gpu_{name}"} == {origin}


def test_a_package_that_knows_fewer_fields_and_functions_reads_the_others(
    gpus: Gpus, machine: nvml_library.Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older nvidia-ml-py: the module without names that came later."""
    everything = values(gpus.read(), "0")
    gpus.close()
    later = ("TOTAL_ENERGY_CONSUMPTION", "GET_GPU_RECOVERY_ACTION", "REMAPPED_PENDING", "ECC_SBE_AGG_TOTAL")
    for name in (*later, "ECC_DBE_AGG_TOTAL"):
        monkeypatch.delattr(pynvml, f"NVML_FI_DEV_{name}")
    monkeypatch.delattr(pynvml, "nvmlDeviceGetTemperatureV", raising=False)
    machine.fail("gpu 0", "nvmlDeviceGetTemperature 0", NOT_SUPPORTED)

    reading = gpus.read()

    assert everything.keys() - values(reading, "0").keys() == {
        *("recovery_action", "row_remap_pending", "temperature_celsius gpu")
    }
    assert reading.warnings == ()
    origins = {point.origin for point in reading.points}
    assert origins >= {"nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetTotalEccErrors"}


def test_a_text_that_is_no_text_is_that_device_s_failure(gpus: Gpus, machine: nvml_library.Description) -> None:
    machine.path.write_bytes(machine.path.read_bytes().replace(b"= GPU-1f0f", b"= GPU-\xff"))
    with pytest.raises(GpuError, match=r"GPU 0: nvmlDeviceGetUUID failed \(not a text in UTF-8\)"):
        gpus.read()


# Processes -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("listed", "memory"),
    [
        ("7 10 0 0 7 5 1 0", 15),
        ("7 10 0 0 7 0xFFFFFFFFFFFFFFFF 1 0", None),
        ("7 0xFFFFFFFFFFFFFFFF 0 0 7 10 1 0", None),
        (f"7 {2**32 - 1} 0 0", None),
        (f"7 {2**63 - 14} 0 0", None),
        (f"7 {PEBIBYTE} 0 0", PEBIBYTE),
        (f"7 {PEBIBYTE + 1} 0 0", None),
        ("7 0 0 0", 0),
    ],
)
def test_the_memory_of_a_process_is_known_only_if_all_of_it_is(
    gpus: Gpus, machine: nvml_library.Description, listed: str, memory: int | None
) -> None:
    machine.say("gpu 0", PROCESSES, listed)
    (device,) = gpus.read().processes
    assert device.processes == (GpuProcess(7, memory),)


def test_processes_that_cannot_be_listed_now_are_a_warning_and_listed_by_the_next_reading(
    gpus: Gpus, machine: nvml_library.Description
) -> None:
    machine.fail("gpu 0", PROCESSES, UNKNOWN)
    reading = gpus.read()
    assert reading.processes == ()
    assert [PROCESSES in warning.message for warning in reading.warnings] == [True]
    machine.say("gpu 0", PROCESSES, "7 10 0 0")
    assert [device.processes for device in gpus.read().processes] == [(GpuProcess(7, 10),)]


# MIG -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("mode", "instances"), [("0 1", 0), ("1 0", 2), ("!999", 0)])
def test_mig_mode_is_the_current_one_and_asked_for_each_reading(
    gpus: Gpus, machine: nvml_library.Description, mode: str, instances: int
) -> None:
    machine.become(nvml_library.fixture("h100_mig"))
    machine.say("gpu 0", "nvmlDeviceGetMigMode", mode)
    assert len({point.series.label("gpu") for point in gpus.read().points} - {"", "0"}) == instances
    machine.restore("gpu 0", "nvmlDeviceGetMigMode")
    assert len({point.series.label("gpu") for point in gpus.read().points} - {"", "0"}) == 2


def test_an_instance_that_cannot_be_named_now_is_a_warning_and_the_others_are_read(
    gpus: Gpus, machine: nvml_library.Description
) -> None:
    machine.become(nvml_library.fixture("h100_mig"))
    machine.fail("mig 0 0", "nvmlDeviceGetUUID", UNKNOWN)
    reading = gpus.read()
    assert {point.series.label("gpu") for point in reading.points} == {"", "0", "0:2"}
    assert [warning.message.startswith("GPU 0:0: ") for warning in reading.warnings] == [True]


def test_an_instance_that_moves_to_another_place_has_its_number(gpus: Gpus, machine: nvml_library.Description) -> None:
    machine.become(nvml_library.fixture("h100_mig"))
    gpus.read()
    machine.become(nvml_library.fixture("h100_mig").replace("[mig 0 2]", "[mig 0 6]"))
    assert {point.series.label("gpu") for point in gpus.read().points} == {"", "0", "0:0", "0:6"}


def test_the_last_place_of_an_instance_is_looked_at_and_none_after_it(
    gpus: Gpus, machine: nvml_library.Description
) -> None:
    machine.become(nvml_library.fixture("h100_mig"))
    for most, expected in ((3, {"0:0", "0:2"}), (2, {"0:0"})):
        machine.say("gpu 0", "nvmlDeviceGetMaxMigDeviceCount", most)
        assert {point.series.label("gpu") for point in gpus.read().points} - {"", "0"} == expected


def test_an_instance_whose_processes_are_lost_leaves_none(gpus: Gpus, machine: nvml_library.Description) -> None:
    machine.become(nvml_library.fixture("h100_mig"))
    machine.fail("mig 0 0", PROCESSES, GPU_IS_LOST)
    reading = gpus.read()
    assert [device.gpu for device in reading.processes] == ["0:2"]
    assert [warning.message.startswith("GPU 0:0 (MIG-") for warning in reading.warnings] == [True]


# NVML as a whole -----------------------------------------------------------------------------------------------------
def test_nvml_is_initialised_again_after_a_number_of_readings_that_grows_to_a_limit_and_back(
    gpus: Gpus, machine: nvml_library.Description, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "calls"
    monkeypatch.setenv("NVML_STUB_LOG", str(log))
    machine.become("[system]\nnvmlDeviceGetCount_v2 = 2\nsession = 1\n[gpu 0]\nnvmlDeviceGetUUID = GPU-0\n")
    machine.fail("gpu 1", "*", GPU_IS_LOST)

    def initialised(readings: int) -> list[int]:
        at = []
        for number in range(1, readings + 1):
            log.write_text("", encoding="utf-8")
            gpus.read()
            if "nvmlInit" in log.read_text(encoding="utf-8"):
                at.append(number)
        return at

    assert initialised(256) == [1, 2, 4, 8, 16, 32, 64, 128, 192, 256]
    machine.restore("gpu 1", "*")
    machine.say("gpu 1", "nvmlDeviceGetUUID", "GPU-1")
    machine.say("gpu 1", "nvmlDeviceGetMemoryInfo", "3 2 1")
    assert initialised(5) == [2]  # the GPU that has returned is registered for events again
    machine.fail("gpu 1", "*", GPU_IS_LOST)
    assert initialised(8) == [2, 4, 8]


@pytest.mark.usefixtures("machine")
def test_a_driver_that_cannot_be_shut_down_is_begun_anew(gpus: Gpus) -> None:
    first = gpus.read()
    pynvml.nvmlShutdown()
    gpus.close()
    assert gpus.read().points == first.points


def test_without_its_package_nvml_is_not_read_and_the_package_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(GpuError, match="package nvidia-ml-py cannot be imported") as caught:
        Gpus().read()
    assert caught.value.failure.cause is Cause.LIBRARY
