"""GPUs, engines and this host together in a running exporter: the NVML stub, captured engines, real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import nvml_library
from captures import Capture
from engine_server import EngineServer, Reply, replayed
from exporter_process import Exporter, check
from field_inputs import FIELD

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SGLANG = Capture("sglang", "0.5.23", "saturated")
GIB = 2**30
PROCESSES = "nvmlDeviceGetComputeRunningProcesses_v3"
USED = 77000000000
FAST = ("--interval", "100ms", "--no-discover")


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nvml_library.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def machine(tmp_path: Path) -> nvml_library.Description:
    """One H100. The engines of these tests are threads of this very process, which thus holds their memory."""
    description = nvml_library.Description(tmp_path / "gpus", nvml_library.fixture("h100"))
    description.say("gpu 0", PROCESSES, f"{os.getpid()} {60 * GIB} 0 0")
    return description


@pytest.fixture
def sglang() -> Iterator[EngineServer]:
    with EngineServer(replayed(SGLANG)) as server:
        yield server


def sums(exporter: Exporter, metric: str) -> float:
    return sum(exporter.metrics().get(metric, {}).values())


def test_memory_is_the_engine_s_whose_process_holds_it(
    machine: nvml_library.Description, nvml: Path, sglang: EngineServer
) -> None:
    extra = machine.environment(nvml)
    with Exporter(f"--target=sglang={sglang.url}", *FAST, extra=extra) as exporter:
        exporter.until(lambda: exporter.value("llm_gpu_memory_engine_bytes", kind="weights") is not None)
        metrics = exporter.metrics()

    (info,) = (dict(key) for key in metrics["llm_gpu_memory_attribution_info"])
    assert (info["engine"], info["target"], info["gpu"], info["method"]) == ("sglang", sglang.name, "0", "pid")
    assert sum(metrics["llm_gpu_memory_engine_bytes"].values()) == pytest.approx(60 * GIB)
    kinds = {dict(key)["kind"] for key in metrics["llm_gpu_memory_engine_bytes"]}
    assert kinds == {"weights", "graph", "kv_used", "kv_evictable", "kv_free", "other"}
    assert [*metrics["llm_gpu_memory_unattributed_bytes"].values()] == [USED - 60 * GIB]
    assert [*metrics["llm_gpu_memory_headroom_bytes"].values()] == [8018542080]
    assert [*metrics["llm_gpu_xid_watched"].values()] == [1]


def test_memory_comes_and_goes_with_processes(
    machine: nvml_library.Description, nvml: Path, sglang: EngineServer
) -> None:
    extra = machine.environment(nvml)
    with (
        subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as worker,
        Exporter(f"--target=sglang={sglang.url}", *FAST, extra=extra) as exporter,
    ):
        exporter.until(lambda: sums(exporter, "llm_gpu_memory_engine_bytes") == pytest.approx(60 * GIB))
        machine.say("gpu 0", PROCESSES, f"{os.getpid()} {60 * GIB} 0 0 {worker.pid} {5 * GIB} 0 0 1 {GIB} 0 0")
        exporter.until(lambda: sums(exporter, "llm_gpu_memory_engine_bytes") == pytest.approx(65 * GIB))
        machine.restore("gpu 0", PROCESSES)
        exporter.until(lambda: "llm_gpu_memory_engine_bytes" not in exporter.metrics())

        assert exporter.value("llm_gpu_memory_unattributed_bytes") == USED
        worker.communicate()


def test_a_dead_engine_keeps_its_memory_but_loses_its_parts(
    machine: nvml_library.Description, nvml: Path, sglang: EngineServer
) -> None:
    extra = machine.environment(nvml)
    with Exporter(f"--target=sglang={sglang.url}", *FAST, extra=extra) as exporter:
        exporter.until(lambda: exporter.value("llm_gpu_memory_engine_bytes", kind="weights") is not None)
        sglang.routes["/metrics"] = Reply(b"broken", 500)
        exporter.until(lambda: exporter.value("llm_gpu_memory_engine_bytes", kind="weights") is None)

        exporter.until(lambda: exporter.value("llm_gpu_memory_engine_bytes", kind="other") == 60 * GIB)


def test_gpus_that_the_configuration_names(
    tmp_path: Path, machine: nvml_library.Description, nvml: Path, sglang: EngineServer
) -> None:
    machine.say("gpu 0", PROCESSES, f"4000000000 {60 * GIB} 0 0")
    path = tmp_path / "headroom.yml"
    path.write_text(
        f"interval: 100ms\ngpu: {{pcie: true}}\nhost: false\ntargets: [{{url: '{sglang.url}', name: a, gpus: [0], "
        "model_memory: {weights: 10GiB}}]\n",
        encoding="utf-8",
    )
    with Exporter("--config", str(path), extra=machine.environment(nvml)) as exporter:
        exporter.until(lambda: exporter.value("llm_gpu_memory_engine_bytes", kind="weights") == 10 * GIB)
        metrics = exporter.metrics()

    (info,) = (dict(key) for key in metrics["llm_gpu_memory_attribution_info"])
    assert (info["target"], info["method"]) == ("a", "gpus")
    assert {dict(key)["direction"] for key in metrics["llm_gpu_pcie_bytes_per_second"]} == {"transmit", "receive"}
    assert not any(name.startswith("llm_host_") for name in metrics)


def test_the_xid_that_takes_the_last_gpu_along_is_still_told(machine: nvml_library.Description, nvml: Path) -> None:
    with Exporter(*FAST, extra=machine.environment(nvml)) as exporter:
        exporter.until(lambda: exporter.value("llm_gpu_xid_watched") == 1)
        machine.say("gpu 0", "events", "79")
        exporter.until(lambda: exporter.value("llm_gpu_xid_errors_total", xid="79") == 1)
        machine.fail("gpu 0", "*", 15)
        exporter.until(lambda: exporter.value("llm_up", target="nvml") == 0)

        assert exporter.value("llm_gpu_xid_errors_total", xid="79") == 1
        assert exporter.value("llm_gpu_memory_used_bytes") is None


# Host ----------------------------------------------------------------------------------------------------------------
def test_the_engine_s_host_memory_is_told_while_it_is_up_and_while_it_is_down(sglang: EngineServer) -> None:
    with Exporter(f"--target=sglang={sglang.url}", "--no-gpu", *FAST) as exporter:
        exporter.until(lambda: exporter.value("llm_host_process_resident_bytes", kind="anonymous") is not None)
        up = exporter.metrics()
        sglang.routes["/metrics"] = Reply(b"broken", 500)
        exporter.until(lambda: exporter.value("llm_up") == 0)
        down = exporter.metrics()

    for metrics in (up, down):
        ((key, started),) = metrics["llm_host_process_start_time_seconds"].items()
        assert dict(key) == {"engine": "sglang", "target": sglang.name}
        assert started > 1.6e9
        assert next(iter(metrics["llm_host_processes"].values())) >= 1


def test_an_engine_elsewhere_has_no_host_memory(tmp_path: Path) -> None:
    path = tmp_path / "headroom.yml"
    path.write_text("gpu: false\ntargets: ['vllm=http://198.51.100.7:8000']\ntimeout: 100ms\n", encoding="utf-8")
    with Exporter("--config", str(path)) as exporter:
        exporter.until(lambda: exporter.value("llm_up") == 0)
        assert not any(name.startswith("llm_host_") for name in exporter.metrics())


# Check ---------------------------------------------------------------------------------------------------------------
def test_check_tells_what_is_attributed_and_how(
    machine: nvml_library.Description, nvml: Path, sglang: EngineServer
) -> None:
    checked = check(f"--target=sglang={sglang.url}", "--format", "json", extra=machine.environment(nvml))
    engine, gpus = json.loads(checked.stdout)["sources"]

    told = {point["metric"] for point in engine["points"]}
    assert {"llm_host_process_start_time_seconds", "llm_host_processes"} <= told
    (info,) = (each for each in gpus["points"] if each["metric"] == "llm_gpu_memory_attribution_info")
    assert info["labels"]["method"] == "pid"
    missing = {each["metric"]: each["reason"] for each in gpus["missing"]}
    assert "40 ms" in missing["llm_gpu_pcie_bytes_per_second"]
    assert "while the exporter runs" in missing["llm_gpu_xid_errors_total"]


def test_check_says_why_memory_is_unattributed_and_what_would_help(
    machine: nvml_library.Description, nvml: Path, sglang: EngineServer
) -> None:
    machine.say("gpu 0", PROCESSES, f"4000000000 {60 * GIB} 0 0")

    checked = check(f"--target=sglang={sglang.url}", extra=machine.environment(nvml))

    assert (
        "GPU 0: 71.7 GiB are not attributed to any engine: processes 4000000000 are not visible here" in checked.stdout
    )
    assert "shareProcessNamespace" in checked.stdout
    assert "no engine is known to hold memory of these devices" in checked.stdout


def test_a_device_that_shares_the_host_s_memory_takes_total_and_free_from_the_host(
    machine: nvml_library.Description, nvml: Path, sglang: EngineServer
) -> None:
    described = (FIELD / "01" / "gb10.nvml").read_text().replace("PIDHERE", str(os.getpid()))
    machine.become(described)  # whatever this host has: what NVML lists of processes holds
    with Exporter(f"--target=sglang={sglang.url}", *FAST, extra=machine.environment(nvml)) as exporter:
        exporter.until(lambda: exporter.value("llm_gpu_memory_engine_bytes", kind="weights") is not None)
        metrics = exporter.metrics()
    names = ("total", "used", "free", "headroom")
    parts = {name: sum(metrics[f"llm_gpu_memory_{name}_bytes"].values()) for name in names}

    assert [*metrics["llm_gpu_memory_unified"].values()] == [1.0]
    assert sum(metrics["llm_gpu_memory_engine_bytes"].values()) == pytest.approx(67037757440)
    assert parts["total"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert parts["used"] + parts["free"] == parts["total"]
    assert parts["headroom"] == parts["free"]
