"""GPUs through the real pynvml, over a library that answers what a description says (see nvml_library)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import nvml_library
from llm_headroom import schema
from llm_headroom.gpu import GpuError, Gpus
from llm_headroom.gpu.device import DeviceProcesses, GpuProcess
from llm_headroom.model import Cause
from nvml_library import values

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_headroom.gpu import Reading

H100 = "GPU-1f0f6a3c-7c3b-4d52-9b0e-3a1f5f3d2c10"
H200_3 = "GPU-0b6b1c5e-2f4d-4b7a-8c11-000000000203"
MIG_PARENT = "GPU-2a7d1e90-55c4-4c0b-8a53-9d1be0f4a7c2"
MIG_SMALL = "MIG-6f1d2a33-0c52-5a0e-9d7b-1f3c5e7a9b01"
MIG_LARGE = "MIG-a0b1c2d3-e4f5-5061-b2c3-d4e5f6a7b802"
UNKNOWN, GPU_IS_LOST, NOT_SUPPORTED, FUNCTION_NOT_FOUND, DRIVER_NOT_LOADED = 999, 15, 3, 13, 9

REPORT = """
import json
from llm_headroom.gpu import GpuError, Gpus
try:
    reading = Gpus(processes=True).read()
    print(json.dumps({"points": [[repr(p.series), p.value, p.origin] for p in reading.points]}))
except GpuError as error:
    print(json.dumps({"cause": error.failure.cause, "message": error.failure.message}))
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "calls"
    path.touch()
    monkeypatch.setenv("NVML_STUB_LOG", str(path))
    return path


@pytest.fixture
def gpus(library: Path, machine: nvml_library.Description) -> Iterator[Gpus]:  # noqa: ARG001 (read through the environment)
    gpus = Gpus(library=library)
    yield gpus
    gpus.close()


def origins(reading: Reading) -> dict[str, str]:
    return {series.metric.name.removeprefix("llm_gpu_"): origin for series, _, origin in reading.points}


def devices(reading: Reading) -> set[str]:
    return {series.label("gpu") for series, _, _ in reading.points} - {""}


def info(reading: Reading, gpu: str) -> dict[str, str]:
    (labels,) = (
        dict(series.labels)
        for series, _, _ in reading.points
        if series.metric is schema.GPU_INFO and series.label("gpu") == gpu
    )
    return labels


def count(reading: Reading) -> object:
    (value,) = (value for series, value, _ in reading.points if series.metric is schema.GPUS)
    return value


def run(environment: dict[str, str]) -> dict[str, object]:
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", REPORT],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    report = json.loads(answer.stdout)
    assert isinstance(report, dict)
    return report


# Values --------------------------------------------------------------------------------------------------------------
def test_every_value_of_an_h100(gpus: Gpus) -> None:
    reading = gpus.read()

    assert values(reading, "0") == {
        "memory_total_bytes": 85520809984.0,
        "memory_used_bytes": 77000000000.0,
        "memory_free_bytes": 8018542080.0,
        "memory_reserved_bytes": 502267904.0,
        "utilization_ratio": 0.97,
        "memory_controller_utilization_ratio": 0.57,
        "power_watts": 512.345,
        "power_limit_watts": 700.0,
        "energy_joules_total": 123456789.012,
        "temperature_celsius gpu": 61.0,
        "temperature_celsius memory": 74.0,
        "clock_hertz graphics": 1980e6,
        "clock_hertz sm": 1980e6,
        "clock_hertz memory": 2619e6,
        "clock_hertz video": 1545e6,
        "clock_max_hertz graphics": 1980e6,
        "clock_max_hertz sm": 1980e6,
        "clock_max_hertz memory": 2619e6,
        "clock_max_hertz video": 1545e6,
        "throttle_active idle": 0.0,
        "throttle_active application_clocks": 0.0,
        "throttle_active sw_power_cap": 1.0,
        "throttle_active hw_slowdown": 0.0,
        "throttle_active sync_boost": 0.0,
        "throttle_active sw_thermal": 1.0,
        "throttle_active hw_thermal": 0.0,
        "throttle_active hw_power_brake": 0.0,
        "throttle_active display_clock": 0.0,
        "throttle_seconds_total power": 5.5,
        "throttle_seconds_total thermal": 0.25,
        "throttle_seconds_total sync_boost": 0.0,
        "throttle_seconds_total board_limit": 0.0,
        "throttle_seconds_total low_utilization": 9.0,
        "throttle_seconds_total reliability": 0.0,
        "recovery_action": 0.0,
        "ecc_errors_total corrected": 3.0,
        "ecc_errors_total uncorrected": 1.0,
        "row_remap_rows correctable": 2.0,
        "row_remap_rows uncorrectable": 1.0,
        "row_remap_pending": 1.0,
        "row_remap_failure": 0.0,
        "pcie_replays_total": 7.0,
        "pcie_link_generation": 5.0,
        "pcie_link_width": 16.0,
        "nvlink_bytes_total transmit": 4000000 * 1024.0,
        "nvlink_bytes_total receive": 5000000 * 1024.0,
    }
    assert info(reading, "0") == {
        "gpu": "0",
        "uuid": H100,
        "name": "NVIDIA H100 80GB HBM3",
        "driver": "570.86.15",
        "cuda": "12.8",
        "vbios": "96.00.89.00.01",
        "pci_bus_id": "00000000:18:00.0",
    }
    assert count(reading) == 1.0
    assert [value for series, value, _ in reading.points if series.metric is schema.GPU_INFO] == [1.0]
    assert reading.driver == "570.86.15"
    assert reading.warnings == ()


def test_a_point_names_the_nvml_function_or_field_that_it_came_from(gpus: Gpus) -> None:
    assert (
        origins(gpus.read()).items()
        >= {
            "memory_reserved_bytes": "nvmlDeviceGetMemoryInfo_v2",
            "energy_joules_total": "NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
            "power_watts": "nvmlDeviceGetPowerUsage",
            "nvlink_bytes_total": "NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX",
            "throttle_active": "nvmlDeviceGetCurrentClocksEventReasons",
        }.items()
    )


@pytest.mark.parametrize("name", ["h100", "h100_mig", "h200x8", "rtx4080s"])
def test_every_series_is_declared_and_appears_once(gpus: Gpus, machine: nvml_library.Description, name: str) -> None:
    machine.become(nvml_library.fixture(name))

    points = gpus.read().points

    assert points
    for series, _, _ in points:
        assert series.metric in schema.ALL
        assert {name for name, _ in series.labels} <= set(series.metric.labels), series
    assert [series for series, times in Counter(series for series, _, _ in points).items() if times > 1] == []


def test_a_workstation_card_lacks_what_it_does_not_support(
    gpus: Gpus, machine: nvml_library.Description, log: Path
) -> None:
    machine.become(nvml_library.fixture("rtx4080s"))

    reading = gpus.read()

    found = values(reading, "0")
    absent = ("ecc_errors", "row_remap", "nvlink", "temperature_celsius memory")
    assert [name for name in found if name.startswith(absent)] == []
    assert found["fan_speed_ratio 0"] == 0.3
    assert found["fan_speed_ratio 1"] == 0.31
    assert found["memory_total_bytes"] == 17171480576.0
    assert found["energy_joules_total"] == 8123456.789
    assert reading.warnings == ()

    log.write_text("", encoding="utf-8")
    assert values(gpus.read(), "0") == found
    asked = log.read_text(encoding="utf-8")
    assert "gpu 0 field 83" in asked
    for unsupported in ("field 82", "field 5", "TotalEccErrors", "RemappedRows", "field 138", "MigMode"):
        assert unsupported not in asked


def test_a_card_that_does_not_count_its_fans_tells_the_first(gpus: Gpus, machine: nvml_library.Description) -> None:
    machine.become(nvml_library.fixture("rtx4080s"))
    machine.fail("gpu 0", "nvmlDeviceGetNumFans", NOT_SUPPORTED)

    found = values(gpus.read(), "0")

    assert [name for name in found if name.startswith("fan")] == ["fan_speed_ratio 0"]


def test_without_the_second_version_of_memory_used_includes_the_reserved_part(
    gpus: Gpus, machine: nvml_library.Description, log: Path
) -> None:
    machine.fail("gpu 0", "nvmlDeviceGetMemoryInfo_v2", FUNCTION_NOT_FOUND)

    found = values(gpus.read(), "0")
    gpus.read()

    assert found["memory_total_bytes"] == 85520809984.0
    assert found["memory_used_bytes"] == 77502267904.0
    assert found["memory_free_bytes"] == 8018542080.0
    assert "memory_reserved_bytes" not in found
    assert log.read_text(encoding="utf-8").count("nvmlDeviceGetMemoryInfo_v2") == 1


def test_functions_step_in_for_fields(gpus: Gpus, machine: nvml_library.Description) -> None:
    with_fields = values(gpus.read(), "0")
    gpus.close()
    machine.fail("gpu 0", "nvmlDeviceGetFieldValues", FUNCTION_NOT_FOUND)

    reading = gpus.read()

    only_fields = {
        "recovery_action",
        *("temperature_celsius memory", "nvlink_bytes_total transmit", "nvlink_bytes_total receive"),
    }
    assert values(reading, "0") == {name: with_fields[name] for name in with_fields.keys() - only_fields}
    assert origins(reading)["energy_joules_total"] == "nvmlDeviceGetTotalEnergyConsumption"
    assert reading.warnings == ()


def test_one_field_that_is_not_supported_leaves_the_others_of_its_group(
    gpus: Gpus, machine: nvml_library.Description
) -> None:
    machine.fail("gpu 0", "field 144", NOT_SUPPORTED)

    for reading in (gpus.read(), gpus.read()):
        found = values(reading, "0")
        assert "row_remap_pending" not in found
        assert found["row_remap_rows correctable"] == 2.0
        assert found["row_remap_failure"] == 0.0


@pytest.mark.parametrize(
    ("key", "text", "name", "expected"),
    [
        ("field 83", "5000.5 0", "energy_joules_total", 5.0005),
        ("field 83", "5000 4", "energy_joules_total", 5.0),
        ("field 83", "5000 2", "energy_joules_total", 5.0),
        ("field 82", "61 5", "temperature_celsius memory", 61.0),
        ("field 82", "62 6", "temperature_celsius memory", 62.0),
    ],
)
def test_a_field_is_read_as_the_type_that_it_has(  # noqa: PLR0913, PLR0917 (one row of a table)
    gpus: Gpus, machine: nvml_library.Description, key: str, text: str, name: str, expected: float
) -> None:
    machine.say("gpu 0", key, text)
    assert values(gpus.read(), "0")[name] == expected


def test_a_field_of_an_unknown_type_is_dropped(gpus: Gpus, machine: nvml_library.Description) -> None:
    machine.say("gpu 0", "field 82", "61 9")
    reading = gpus.read()
    assert "temperature_celsius memory" not in values(reading, "0")
    assert "NVML_FI_DEV_MEMORY_TEMP" in reading.warnings[0].message


def test_older_names_of_calls_step_in(gpus: Gpus, machine: nvml_library.Description) -> None:
    machine.fail("gpu 0", "nvmlDeviceGetCurrentClocksEventReasons", FUNCTION_NOT_FOUND)
    machine.fail("gpu 0", "nvmlDeviceGetTemperature 0", FUNCTION_NOT_FOUND)
    machine.say("gpu 0", "nvmlDeviceGetTemperatureV 0", 58)

    reading = gpus.read()

    assert values(reading, "0")["throttle_active sw_power_cap"] == 1.0
    assert values(reading, "0")["temperature_celsius gpu"] == 58.0
    assert origins(reading)["throttle_active"] == "nvmlDeviceGetCurrentClocksThrottleReasons"


def test_a_temperature_below_zero(gpus: Gpus, machine: nvml_library.Description) -> None:
    machine.say("gpu 0", "nvmlDeviceGetTemperature 0", -5)
    assert values(gpus.read(), "0")["temperature_celsius gpu"] == -5.0


@pytest.mark.parametrize(
    ("key", "text", "name"),
    [
        ("nvmlDeviceGetPowerUsage", "0xFFFFFFFF", "power_watts"),
        ("nvmlDeviceGetUtilizationRates", "0xFFFFFFFF 57", "utilization_ratio"),
        ("nvmlDeviceGetTemperature 0", "0xFFFFFFFF", "temperature_celsius gpu"),
        ("field 83", "9223372036854775794 3", "energy_joules_total"),
        ("field 83", "0xFFFFFFFFFFFFFFFF 3", "energy_joules_total"),
        ("field 82", "0", "temperature_celsius memory"),
        ("field 5", "9223372036854775794 3", "ecc_errors_total corrected"),
        ("nvmlDeviceGetCurrentClocksEventReasons", "0xFFFFFFFFFFFFFFFF", "throttle_active sw_thermal"),
        ("nvmlDeviceGetClockInfo 1", "2147483632", "clock_hertz sm"),
        ("nvmlDeviceGetMemoryInfo_v2", "85520809984 0xFFFFFFFFFFFFFFFF 1 1", "memory_reserved_bytes"),
    ],
)
def test_a_stand_in_for_no_value_is_dropped_silently(
    gpus: Gpus, machine: nvml_library.Description, key: str, text: str, name: str
) -> None:
    expected = set(values(gpus.read(), "0"))
    machine.say("gpu 0", key, text)

    reading = gpus.read()

    missing = expected - set(values(reading, "0"))
    assert name in missing
    assert missing == {name} or {part.split(" ")[0] for part in missing} == {"throttle_active"}
    assert reading.warnings == ()


@pytest.mark.parametrize(
    ("key", "text", "name"),
    [
        ("nvmlDeviceGetUtilizationRates", "101 57", "utilization_ratio"),
        ("nvmlDeviceGetUtilizationRates", "97 130", "memory_controller_utilization_ratio"),
        ("nvmlDeviceGetTemperature 0", "201", "temperature_celsius gpu"),
        ("nvmlDeviceGetTemperature 0", "-51", "temperature_celsius gpu"),
        ("field 82", "255", "temperature_celsius memory"),
        ("nvmlDeviceGetPowerUsage", "10000001", "power_watts"),
        ("nvmlDeviceGetEnforcedPowerLimit", "4000000000", "power_limit_watts"),
        ("nvmlDeviceGetMemoryInfo_v2", "1000 0 500 1001", "memory_used_bytes"),
        ("nvmlDeviceGetMemoryInfo_v2", "1000 0 1001 500", "memory_free_bytes"),
        ("field 83", "99999999999999999 3", "energy_joules_total"),
        ("field 144", "2", "row_remap_pending"),
        ("nvmlDeviceGetCurrPcieLinkGeneration", "21", "pcie_link_generation"),
        ("nvmlDeviceGetCurrPcieLinkWidth", "65", "pcie_link_width"),
    ],
)
def test_an_impossible_value_is_dropped_with_a_warning(
    gpus: Gpus, machine: nvml_library.Description, key: str, text: str, name: str
) -> None:
    expected = set(values(gpus.read(), "0"))
    machine.say("gpu 0", key, text)

    reading = gpus.read()

    assert expected - set(values(reading, "0")) == {name}
    (warning,) = reading.warnings
    assert warning.cause is Cause.DEVICE
    assert f"GPU 0 ({H100})" in warning.message
    assert f"llm_gpu_{name.split(' ', maxsplit=1)[0]}" in warning.message


def test_memory_of_size_zero_is_not_exported(gpus: Gpus, machine: nvml_library.Description) -> None:
    machine.say("gpu 0", "nvmlDeviceGetMemoryInfo_v2", "0 0 0 0")
    reading = gpus.read()
    assert {"memory_total_bytes", "memory_used_bytes", "memory_free_bytes", "memory_reserved_bytes"}.isdisjoint(
        values(reading, "0")
    )
    assert reading.warnings == ()


def test_a_call_that_fails_takes_only_its_value_and_is_tried_again(
    gpus: Gpus, machine: nvml_library.Description
) -> None:
    before = values(gpus.read(), "0")
    machine.fail("gpu 0", "nvmlDeviceGetPowerUsage", UNKNOWN)
    machine.fail("gpu 0", "field 94", UNKNOWN)

    reading = gpus.read()

    assert before.keys() - values(reading, "0").keys() == {"power_watts", "pcie_replays_total"}
    assert [warning.cause for warning in reading.warnings] == [Cause.DEVICE, Cause.DEVICE]
    text = " ".join(warning.message for warning in reading.warnings)
    assert f"GPU 0 ({H100}): nvmlDeviceGetPowerUsage failed (Unknown Error)" in text
    machine.restore("gpu 0", "nvmlDeviceGetPowerUsage")
    machine.restore("gpu 0", "field 94")
    assert values(gpus.read(), "0") == before


def test_no_data_yet_is_no_trouble(gpus: Gpus, machine: nvml_library.Description) -> None:
    machine.fail("gpu 0", "nvmlDeviceGetUtilizationRates", 21)
    reading = gpus.read()
    assert "utilization_ratio" not in values(reading, "0")
    assert reading.warnings == ()
    machine.restore("gpu 0", "nvmlDeviceGetUtilizationRates")
    assert values(gpus.read(), "0")["utilization_ratio"] == 0.97


def test_a_reading_asks_for_all_fields_at_once_and_for_what_never_changes_once(gpus: Gpus, log: Path) -> None:
    first = gpus.read()
    second = gpus.read()

    asked = log.read_text(encoding="utf-8").splitlines()
    assert asked.count("gpu 0 nvmlDeviceGetFieldValues") == 2
    assert asked.count("gpu 0 nvmlDeviceGetMaxClockInfo 1") == 1
    assert asked.count("gpu 0 nvmlDeviceGetClockInfo 1") == 2
    assert second.points == first.points


def test_series_are_kept_between_readings(gpus: Gpus) -> None:
    first, second = gpus.read(), gpus.read()
    assert [id(point.series) for point in first.points] == [id(point.series) for point in second.points]


# Devices that come and go --------------------------------------------------------------------------------------------
def test_eight_gpus(gpus: Gpus, machine: nvml_library.Description) -> None:
    machine.become(nvml_library.fixture("h200x8"))

    reading = gpus.read()

    assert count(reading) == 8.0
    assert devices(reading) == {str(index) for index in range(8)}
    assert info(reading, "3")["uuid"] == H200_3
    assert {values(reading, gpu)["memory_total_bytes"] for gpu in devices(reading)} == {150754820096.0}
    assert {values(reading, gpu)["memory_reserved_bytes"] for gpu in devices(reading)} == {643825664.0}
    assert values(reading, "3")["memory_free_bytes"] == 110994432.0
    assert values(reading, "4")["memory_free_bytes"] == 14110994432.0


def test_a_lost_gpu_gives_a_warning_and_no_points_until_it_returns(
    gpus: Gpus, machine: nvml_library.Description
) -> None:
    machine.become(nvml_library.fixture("h200x8"))
    whole = gpus.read()
    machine.fail("gpu 3", "*", GPU_IS_LOST)

    for reading in (gpus.read(), gpus.read(), gpus.read()):
        assert devices(reading) == {"0", "1", "2", "4", "5", "6", "7"}
        assert count(reading) == 8.0
        (warning,) = reading.warnings
        assert warning.cause is Cause.DEVICE
        assert warning.message.startswith("GPU 3")
        assert "GPU is lost" in warning.message
        assert "reset" in warning.message

    machine.restore("gpu 3", "*")
    returned = gpus.read()
    assert returned.warnings == ()
    assert returned.points == whole.points


def test_a_lost_gpu_is_named_by_its_uuid_if_it_was_seen_before(gpus: Gpus, machine: nvml_library.Description) -> None:
    machine.become(nvml_library.fixture("h200x8"))
    gpus.read()
    machine.fail("gpu 3", "*", GPU_IS_LOST)
    assert gpus.read().warnings[0].message.startswith(f"GPU 3 ({H200_3}): ")


@pytest.mark.parametrize("key", ["nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetUUID"])
def test_a_gpu_without_memory_or_identity_is_lost(gpus: Gpus, machine: nvml_library.Description, key: str) -> None:
    machine.become(nvml_library.fixture("h200x8"))
    machine.fail("gpu 5", key, UNKNOWN)

    reading = gpus.read()

    assert devices(reading) == {"0", "1", "2", "3", "4", "6", "7"}
    (warning,) = reading.warnings
    assert warning.message.startswith("GPU 5")
    machine.restore("gpu 5", key)
    assert "5" in devices(gpus.read())


def test_a_gpu_lost_in_the_middle_of_a_reading_gives_no_points_at_all(
    gpus: Gpus, machine: nvml_library.Description
) -> None:
    machine.become(nvml_library.fixture("h200x8"))
    machine.fail("gpu 0", "nvmlDeviceGetCurrPcieLinkWidth", GPU_IS_LOST)
    assert "0" not in devices(gpus.read())


def test_while_a_gpu_is_lost_nvml_is_initialised_anew_ever_more_rarely(
    gpus: Gpus, machine: nvml_library.Description, log: Path
) -> None:
    machine.become(nvml_library.fixture("h200x8"))
    machine.fail("gpu 3", "*", GPU_IS_LOST)

    initialised_at = []
    for number in range(1, 17):
        log.write_text("", encoding="utf-8")
        gpus.read()
        if "nvmlInit" in log.read_text(encoding="utf-8"):
            initialised_at.append(number)

    assert initialised_at == [1, 2, 4, 8, 16]


def test_when_every_gpu_is_lost_the_reading_fails_and_names_them(gpus: Gpus, machine: nvml_library.Description) -> None:
    machine.become(nvml_library.fixture("h200x8"))
    gpus.read()
    machine.fail("gpu *", "*", GPU_IS_LOST)

    with pytest.raises(GpuError) as caught:
        gpus.read()

    assert caught.value.failure.cause is Cause.DEVICE
    assert "GPU 0" in caught.value.failure.message
    assert f"GPU 3 ({H200_3})" in caught.value.failure.message
    machine.restore("gpu *", "*")
    assert len(devices(gpus.read())) == 8


def test_a_reloaded_driver_fails_one_reading_and_is_picked_up_by_the_next(
    gpus: Gpus, machine: nvml_library.Description
) -> None:
    before = gpus.read()
    machine.say("system", "session", 2)
    machine.say("system", "nvmlSystemGetDriverVersion", "580.95.05")

    with pytest.raises(GpuError) as caught:
        gpus.read()
    assert caught.value.failure.cause is Cause.DRIVER

    reading = gpus.read()
    assert reading.driver == "580.95.05"
    assert info(reading, "0")["driver"] == "580.95.05"
    assert values(reading, "0") == values(before, "0")


def test_a_driver_that_goes_away_and_comes_back(gpus: Gpus, machine: nvml_library.Description) -> None:
    before = gpus.read()
    machine.fail("system", "*", 9)
    machine.fail("system", "nvmlInitWithFlags", 9)

    for _ in range(3):
        with pytest.raises(GpuError) as caught:
            gpus.read()
        assert caught.value.failure.cause is Cause.DRIVER

    machine.restore("system", "*")
    machine.restore("system", "nvmlInitWithFlags")
    assert gpus.read().points == before.points


@pytest.mark.parametrize("code", [1, 9, 18])
def test_a_driver_that_goes_away_in_the_middle_of_a_reading_costs_every_gpu(
    gpus: Gpus, machine: nvml_library.Description, code: int
) -> None:
    machine.become(nvml_library.fixture("h200x8"))
    gpus.read()
    machine.fail("gpu 3", "nvmlDeviceGetPowerUsage", code)
    with pytest.raises(GpuError) as caught:
        gpus.read()
    assert caught.value.failure.cause is Cause.DRIVER


def test_a_gpu_that_is_lost_while_it_is_asked_for_its_names_is_lost(
    gpus: Gpus, machine: nvml_library.Description
) -> None:
    machine.become(nvml_library.fixture("h200x8"))
    machine.fail("gpu 3", "nvmlDeviceGetVbiosVersion", GPU_IS_LOST)
    assert "3" not in devices(gpus.read())


def test_what_was_not_supported_is_asked_again_after_a_restart(gpus: Gpus, machine: nvml_library.Description) -> None:
    machine.fail("gpu 0", "nvmlDeviceGetPowerUsage", NOT_SUPPORTED)
    assert "power_watts" not in values(gpus.read(), "0")
    machine.restore("gpu 0", "nvmlDeviceGetPowerUsage")
    assert "power_watts" not in values(gpus.read(), "0")
    gpus.close()
    assert values(gpus.read(), "0")["power_watts"] == 512.345


def test_another_number_of_gpus_is_listed_anew(gpus: Gpus, machine: nvml_library.Description) -> None:
    machine.become(nvml_library.fixture("h200x8"))
    assert len(devices(gpus.read())) == 8
    machine.say("system", "nvmlDeviceGetCount_v2", 7)
    assert len(devices(gpus.read())) == 7
    machine.restore("system", "nvmlDeviceGetCount_v2")
    assert len(devices(gpus.read())) == 8


def test_another_gpu_in_the_same_place_is_listed_anew(gpus: Gpus, machine: nvml_library.Description) -> None:
    gpus.read()
    machine.become(nvml_library.fixture("rtx4080s"))

    reading = gpus.read()

    assert info(reading, "0")["name"] == "NVIDIA GeForce RTX 4080 SUPER"
    assert {series.label("uuid") for series, _, _ in reading.points} == {"", info(reading, "0")["uuid"]}
    assert "ecc_errors_total corrected" not in values(reading, "0")


def test_close_shuts_nvml_down_and_a_later_reading_starts_it_again(gpus: Gpus, log: Path) -> None:
    first = gpus.read()
    gpus.close()
    gpus.close()
    assert log.read_text(encoding="utf-8").count("nvmlShutdown") == 1
    assert gpus.read().points == first.points


# No GPU --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("code", "cause", "words"),
    [
        (9, Cause.DRIVER, ("Driver Not Loaded", "modprobe nvidia", "NVIDIA_DRIVER_CAPABILITIES=utility")),
        (18, Cause.DRIVER, ("different versions", "restart llm-headroom")),
        (4, Cause.DRIVER, ("Insufficient Permissions", "/dev/nvidiactl")),
        (10, Cause.DRIVER, ("Timeout", "does not respond")),
        (999, Cause.DRIVER, ("Unknown Error", "does not respond")),
        (15, Cause.DEVICE, ("GPU is lost", "reset the GPU")),
        (13, Cause.LIBRARY, ("lacks nvmlInit", "too old")),
        (12, Cause.LIBRARY, ("not found", "NVIDIA_DRIVER_CAPABILITIES=utility")),
    ],
)
def test_an_nvml_that_cannot_start_says_why_and_what_to_do(
    gpus: Gpus, machine: nvml_library.Description, code: int, cause: Cause, words: tuple[str, ...]
) -> None:
    machine.fail("system", "nvmlInitWithFlags", code)

    with pytest.raises(GpuError) as caught:
        gpus.read()

    assert caught.value.failure.cause is cause
    for word in words:
        assert word in caught.value.failure.message
    assert str(caught.value) == caught.value.failure.message
    assert str(caught.value.__cause__).startswith("nvmlInit: ")


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        (Path(__file__), "is loaded, but its library is hidden from this process"),
        (Path(__file__) / "none", "seems not to be installed"),
    ],
)
def test_without_the_library_it_matters_whether_the_driver_is_loaded(
    gpus: Gpus, machine: nvml_library.Description, monkeypatch: pytest.MonkeyPatch, driver: Path, words: str
) -> None:
    monkeypatch.setattr("llm_headroom.gpu.reading._DRIVER", driver)
    machine.fail("system", "nvmlInitWithFlags", 12)
    with pytest.raises(GpuError, match=words):
        gpus.read()


def test_a_library_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(GpuError) as caught:
        Gpus(library=tmp_path / "libnvidia-ml.so.1").read()
    assert caught.value.failure.cause is Cause.LIBRARY
    assert str(tmp_path / "libnvidia-ml.so.1") in caught.value.failure.message


def test_a_machine_without_nvml_says_what_a_container_needs(tmp_path: Path) -> None:
    # A file that is no library hides a real NVML on this machine.
    (tmp_path / "libnvidia-ml.so.1").write_text("no library", encoding="utf-8")

    report = run({"LD_LIBRARY_PATH": str(tmp_path)})

    assert report["cause"] == "library"
    for word in ("libnvidia-ml.so.1 not found", "NVIDIA runtime", "NVIDIA_DRIVER_CAPABILITIES=utility"):
        assert word in str(report["message"])


def test_a_library_without_newer_functions_is_read_through_older_ones(
    tmp_path: Path, machine: nvml_library.Description
) -> None:
    old = nvml_library.build(
        tmp_path,
        without=(
            *("nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetFieldValues", "nvmlDeviceGetCurrentClocksEventReasons"),
            *("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetNumFans", "nvmlDeviceGetMigMode"),
            *("nvmlSystemGetCudaDriverVersion_v2", "nvmlDeviceGetPciInfo_v3"),
        ),
    )
    machine.say("gpu 0", "nvmlDeviceGetComputeRunningProcesses_v2", "4000000000 1000 0 0")

    report = run(machine.environment(old))

    points = report["points"]
    assert isinstance(points, list)
    found = {series.partition("{")[0]: (value, origin) for series, value, origin in points}
    assert found["llm_gpu_memory_used_bytes"] == (77502267904.0, "nvmlDeviceGetMemoryInfo")
    assert found["llm_gpu_row_remap_failure"] == (0.0, "nvmlDeviceGetRemappedRows")
    assert found["llm_gpu_throttle_active"] == (0.0, "nvmlDeviceGetCurrentClocksThrottleReasons")
    assert found["llm_gpu_process_memory_bytes"] == (1000.0, "nvmlDeviceGetComputeRunningProcesses_v2")
    assert "llm_gpu_memory_reserved_bytes" not in found


def test_a_library_that_is_not_nvml(tmp_path: Path, machine: nvml_library.Description) -> None:
    strange = nvml_library.build(tmp_path, without=("nvmlInitWithFlags",))
    report = run(machine.environment(strange))
    assert report["cause"] == "library"
    assert "lacks nvmlInit" in str(report["message"])


def test_nvml_without_gpus_is_a_failure(gpus: Gpus, machine: nvml_library.Description) -> None:
    machine.say("system", "nvmlDeviceGetCount_v2", 0)
    with pytest.raises(GpuError) as caught:
        gpus.read()
    assert caught.value.failure.cause is Cause.DEVICE
    assert "lists no GPU" in caught.value.failure.message
    assert "NVIDIA_VISIBLE_DEVICES=all" in caught.value.failure.message
    machine.restore("system", "nvmlDeviceGetCount_v2")
    assert devices(gpus.read()) == {"0"}


def test_a_machine_without_gpus_is_explained_and_nvml_shut_down(
    library: Path, machine: nvml_library.Description, log: Path
) -> None:
    machine.say("system", "nvmlDeviceGetCount_v2", 0)
    with pytest.raises(GpuError, match="lists no GPU"):
        Gpus(library=library).read()
    calls = log.read_text(encoding="utf-8")
    assert calls.count("nvmlShutdown") == calls.count("nvmlInitWithFlags") == 1


def test_nothing_of_nvml_is_loaded_before_the_first_reading() -> None:
    script = "import sys; from llm_headroom.gpu import Gpus; Gpus().close(); print('pynvml' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert answer.stdout.strip() == "False"


# MIG -----------------------------------------------------------------------------------------------------------------
def test_mig_instances_are_devices_of_their_own_beside_their_parent(
    gpus: Gpus, machine: nvml_library.Description
) -> None:
    machine.become(nvml_library.fixture("h100_mig"))

    reading = gpus.read()

    assert devices(reading) == {"0", "0:0", "0:2"}
    assert count(reading) == 1.0
    assert values(reading, "0:0") == {
        "memory_total_bytes": 10334765056.0,
        "memory_used_bytes": 7000000000.0,
        "memory_free_bytes": 3334765056.0,
        "memory_reserved_bytes": 0.0,
    }
    assert values(reading, "0:2")["memory_used_bytes"] == 8000000000.0
    assert info(reading, "0:2") == {
        "gpu": "0:2",
        "uuid": MIG_LARGE,
        "name": "NVIDIA H100 80GB HBM3 MIG 2g.20gb",
        "driver": "570.86.15",
        "cuda": "12.8",
        "vbios": "96.00.89.00.01",
        "pci_bus_id": "00000000:19:00.0",
        "mig_parent": MIG_PARENT,
        "mig_profile": "2g.20gb",
    }
    parent = values(reading, "0")
    assert parent["power_watts"] == 210.0
    assert parent["memory_total_bytes"] == 85520809984.0
    assert "utilization_ratio" not in parent
    assert reading.warnings == ()


def test_mig_instances_come_and_go_while_their_parent_stays(gpus: Gpus, machine: nvml_library.Description) -> None:
    machine.become(nvml_library.fixture("h100_mig"))
    first = gpus.read()
    machine.fail("mig 0 0", "nvmlDeviceGetUUID", NOT_SUPPORTED)
    machine.say("mig 0 1", "nvmlDeviceGetUUID", "MIG-new")
    machine.say("mig 0 1", "nvmlDeviceGetMemoryInfo", "1000 400 600")

    second = gpus.read()

    assert devices(second) == {"0", "0:1", "0:2"}
    assert values(second, "0:1") == {
        "memory_total_bytes": 1000.0,
        "memory_used_bytes": 600.0,
        "memory_free_bytes": 400.0,
    }
    assert second.warnings == ()
    kept = {id(series) for series, _, _ in first.points if series.label("gpu") == "0:2"}
    assert kept == {id(series) for series, _, _ in second.points if series.label("gpu") == "0:2"}


def test_mig_mode_switched_off_leaves_the_parent_alone(gpus: Gpus, machine: nvml_library.Description) -> None:
    machine.become(nvml_library.fixture("h100_mig"))
    gpus.read()
    machine.say("gpu 0", "nvmlDeviceGetMigMode", "0 0")
    assert devices(gpus.read()) == {"0"}


def test_a_mig_instance_that_fails_leaves_the_others(gpus: Gpus, machine: nvml_library.Description) -> None:
    machine.become(nvml_library.fixture("h100_mig"))
    machine.fail("mig 0 0", "nvmlDeviceGetMemoryInfo_v2", UNKNOWN)

    reading = gpus.read()

    assert devices(reading) == {"0", "0:2"}
    (warning,) = reading.warnings
    assert warning.message.startswith(f"GPU 0:0 ({MIG_SMALL}): ")


def test_a_lost_parent_takes_its_instances_along(gpus: Gpus, machine: nvml_library.Description) -> None:
    machine.become(nvml_library.fixture("h100_mig"))
    gpus.read()
    machine.fail("gpu 0", "*", GPU_IS_LOST)
    with pytest.raises(GpuError) as caught:
        gpus.read()
    assert MIG_PARENT in caught.value.failure.message


@pytest.mark.parametrize(
    ("device", "asked", "error"),
    [
        ("gpu 0", "nvmlDeviceGetMigMode", GPU_IS_LOST),
        ("mig 0 0", "nvmlDeviceGetUUID", GPU_IS_LOST),
        ("mig 0 0", "nvmlDeviceGetMemoryInfo_v2", DRIVER_NOT_LOADED),
    ],
)
def test_a_gpu_or_driver_that_goes_while_instances_are_read_leaves_nothing_of_them(
    gpus: Gpus, machine: nvml_library.Description, device: str, asked: str, error: int
) -> None:
    machine.become(nvml_library.fixture("h100_mig"))
    gpus.read()
    machine.fail(device, asked, error)
    with pytest.raises(GpuError):
        gpus.read()


# Processes -----------------------------------------------------------------------------------------------------------
def processes(reading: Reading) -> dict[tuple[str, str, str], object]:
    return {
        (series.label("gpu"), series.label("pid"), series.label("process")): value
        for series, value, _ in reading.points
        if series.metric is schema.GPU_PROCESS_MEMORY
    }


def own_name() -> str:
    """This process' name, unless NVML's PIDs would be those of another namespace than /proc's."""
    in_the_hosts_namespace = Path("/proc/self/ns/pid").stat().st_ino == 0xEFFFFFFC
    return Path("/proc/self/comm").read_text(encoding="utf-8").strip() if in_the_hosts_namespace else ""


@pytest.fixture
def gpus_with_processes(library: Path, machine: nvml_library.Description) -> Iterator[Gpus]:  # noqa: ARG001 (read through the environment)
    gpus = Gpus(processes=True, library=library)
    yield gpus
    gpus.close()


def test_processes_have_series_only_if_asked_for(gpus: Gpus, machine: nvml_library.Description) -> None:
    machine.say("gpu 0", "nvmlDeviceGetComputeRunningProcesses_v3", "1234 8589934592 0 0 1235 0xFFFFFFFFFFFFFFFF 0 0")

    reading = gpus.read()

    assert processes(reading) == {}
    assert reading.processes == (DeviceProcesses("0", H100, (GpuProcess(1234, 8589934592), GpuProcess(1235, None))),)


def test_the_memory_of_each_process(gpus_with_processes: Gpus, machine: nvml_library.Description) -> None:
    me, gone, unknown = str(os.getpid()), "4000000000", "4000000001"
    machine.say(
        "gpu 0",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        f"{me} 8589934592 4294967295 4294967295 "
        f"{gone} 1048576 4294967295 4294967295 "
        f"{unknown} 0xFFFFFFFFFFFFFFFF 4294967295 4294967295",
    )

    reading = gpus_with_processes.read()

    assert processes(reading) == {("0", me, own_name()): 8589934592.0, ("0", gone, ""): 1048576.0}
    assert origins(reading)["process_memory_bytes"] == "nvmlDeviceGetComputeRunningProcesses_v3"
    machine.restore("gpu 0", "nvmlDeviceGetComputeRunningProcesses_v3")
    assert processes(gpus_with_processes.read()) == {}


def test_a_process_that_is_listed_twice_is_one_series(
    gpus_with_processes: Gpus, machine: nvml_library.Description
) -> None:
    machine.say("gpu 0", "nvmlDeviceGetComputeRunningProcesses_v3", "4000000000 10 0 0 4000000000 5 1 0")
    assert processes(gpus_with_processes.read()) == {("0", "4000000000", ""): 15.0}


def test_processes_that_may_not_be_listed_are_absent(
    gpus_with_processes: Gpus, machine: nvml_library.Description
) -> None:
    machine.fail("gpu 0", "nvmlDeviceGetComputeRunningProcesses_v3", 4)
    reading = gpus_with_processes.read()
    assert processes(reading) == {}
    assert reading.warnings == ()


def test_in_mig_mode_processes_belong_to_instances(
    gpus_with_processes: Gpus, machine: nvml_library.Description
) -> None:
    machine.become(nvml_library.fixture("h100_mig"))
    machine.say("gpu 0", "nvmlDeviceGetComputeRunningProcesses_v3", "4000000000 700 1 0")
    machine.say("mig 0 0", "nvmlDeviceGetComputeRunningProcesses_v3", "4000000000 700 1 0")
    assert processes(gpus_with_processes.read()) == {("0:0", "4000000000", ""): 700.0}
