"""The prepared run on a GPU, on the stub: its checks hold where the exporter is right, and fail where NVML lies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nvml_library
from device import scripted
from device.load import Sample, energy
from device.processes import Metrics
from device.rows import GIB, Verdict, compared, not_run, table

ROOT = Path(__file__).parents[1]
OVER_TIME = {"load: energy against power summed up", "load: PCIe, received while the host copies"}
"""Rows of amounts over time, which a busy machine stretches: what they judge is tested with literals below."""
NVIDIA_SMI = """#!/bin/sh
# Answers a query for several columns only if it knows all of them, as nvidia-smi does.
for each in "$@"; do
  case $each in
    --query-gpu=memory.total) echo 81559 ;;
    --query-gpu=temperature.gpu) echo 61 ;;
    --query-gpu=temperature.memory) echo 12 ;;
    --query-gpu=pcie.link.width.current) echo '[N/A]' ;;
    --query-gpu=*) echo 'Field is not a valid field to query.'; exit 2 ;;
  esac
done
"""


def rows_of(output: Path, *arguments: str, **variables: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit status of a run on the stub, and its rows by part and what they are about."""
    nvml_library.build(output)  # skips where there is no compiler
    found = subprocess.run(
        [ROOT / "bench" / "device" / "run.sh", "--stub", "--quick", "--output", output / "out", *arguments],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert found.returncode in {0, 1}, found.stderr
    result = json.loads((output / "out" / "results.json").read_text(encoding="utf-8"))
    assert result["where"]["stub"] is True
    assert found.stdout.startswith("THE STUB, NOT A GPU")
    return found.returncode, {f"{row['part']}: {row['what']}": row for row in result["rows"]}


@pytest.mark.works(8)
def test_every_check_of_an_honest_card_passes_and_one_of_a_lying_peer_fails(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(NVIDIA_SMI, encoding="ascii")
    program.chmod(0o755)

    status, rows = rows_of(tmp_path, PATH=f"{program.parent}:{os.environ['PATH']}")

    assert {row["part"] for row in rows.values()} == {"answers", "cost", "memory", "rights", "load"}
    wrong = {name for name, row in rows.items() if row["verdict"] == Verdict.FAIL}
    assert wrong - OVER_TIME == {"load: nvidia-smi temperature.memory"}
    assert all(rows[name]["truth"] > 0 for name in OVER_TIME)
    assert status == 1
    assert {name for name in rows if "nvidia-smi" in name} == {
        f"load: nvidia-smi {column}" for column in ("memory.total", "temperature.gpu", "temperature.memory")
    }
    assert rows["memory: headroom: what another process could allocate"]["truth"] > 10 * GIB
    assert rows["memory: sglang: reservation"]["ours"] == pytest.approx(0.3 * scripted.TOTAL)
    assert len(list((tmp_path / "out").iterdir())) <= 8


@pytest.mark.works(6)
def test_memory_that_nvml_reports_wrongly_fails_its_rows(tmp_path: Path) -> None:
    status, rows = rows_of(tmp_path, "--parts", "memory", **{scripted.LIE: str(2**30)})

    assert status == 1
    assert rows["memory: parts add up to the total"]["verdict"] == Verdict.FAIL
    assert rows["load: the whole part"]["verdict"] == Verdict.NOT_RUN


def test_without_a_gpu_the_run_says_so(tmp_path: Path) -> None:
    found = subprocess.run(
        [ROOT / "bench" / "device" / "run.sh", "--output", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )

    if found.returncode == 0:
        pytest.skip("there is a GPU here")
    assert found.returncode == 2
    assert "--stub" in found.stderr
    assert not (tmp_path / "out").exists()


def reading(at: float, joules: float) -> Metrics:
    """What is exported of a reading at some time."""
    return Metrics(
        {
            "llm_gpu_energy_joules_total": {(("gpu", "0"),): joules},
            "llm_source_last_success_timestamp_seconds": {(("target", "nvml"),): at},
        }
    )


@pytest.mark.parametrize(
    ("grown", "verdict"),
    [(4000.0, Verdict.PASS), (4119.0, Verdict.PASS), (4121.0, Verdict.FAIL), (4.0, Verdict.FAIL)],
)
def test_energy_is_held_to_three_percent_of_the_power_summed_up(grown: float, verdict: Verdict) -> None:
    """Power rises from 300 W to 500 W, looked at over another time than that between the readings."""
    samples = [Sample(0.0, 300.0), Sample(4.0, 400.0), Sample(8.0, 500.0)]

    [row] = energy(reading(10.0, 1e6), reading(20.0, 1e6 + grown), samples)

    assert (row.truth, row.ours, row.verdict) == (4000.0, grown, verdict)


def test_what_is_absent_is_never_a_pass() -> None:
    assert compared("p", "w", 1.0, None, within=5.0).verdict is Verdict.FAIL
    assert compared("p", "w", 1.0, 1.5, within=0.4).verdict is Verdict.FAIL
    assert compared("p", "w", 1.0, 1.5, within=0.5).verdict is Verdict.PASS
    assert "| not run | no GPU |" in table([not_run("p", "w", "no GPU")])


def test_answers_are_recorded_in_the_words_of_the_stub(library: Path, machine: nvml_library.Description) -> None:
    """Recorded from the stub, the description says again what the stub was given, refusals included."""
    machine.fail("gpu 0", "nvmlDeviceGetPowerUsage", 3)
    script = (
        "import pynvml; from device import answers; pynvml.nvmlInit();"
        "print(answers.description(answers.recorded(pynvml), 'title'))"
    )
    environment = os.environ | machine.environment(library) | {"PYTHONPATH": f"{ROOT}/bench:{ROOT}/tests/support"}
    command = [sys.executable, "-W", "error", "-c", script]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()

    assert "nvmlDeviceGetPowerUsage = !3" in found
    assert "nvmlDeviceGetMemoryInfo_v2 = 85520809984 502267904 8018542080 77000000000" in found
    assert "field 138 4294967295 = 4000000 3" in found
    assert "nvmlDeviceGetTemperatureV 0 = !3" in found
