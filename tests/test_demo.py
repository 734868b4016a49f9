"""The demo as a newcomer runs it: three engines, two GPUs, the exporter, incidents, and nothing left at the end."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from exporter_process import DEADLINE, Exporter
from prometheus_server import asked
from simulator_process import Simulator, ask, post

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ENGINES = ("vllm", "sglang", "ollama")
HELD = "llm_gpu_memory_engine_bytes"
ARGUMENTS = ("demo", "--listen", "127.0.0.1:0", "--seed", "1")


def exporter_of(demo: Simulator) -> Exporter:
    """What the demo's exporter answers."""
    exporter = Exporter()
    exporter.url = f"http://{demo.address('llm-headroom')}"
    return exporter


def held(exporter: Exporter) -> Mapping[tuple[tuple[str, str], ...], float]:
    """What is told of the engines' GPU memory."""
    return exporter.metrics().get(HELD, {})


def children(pid: int) -> Sequence[int]:
    """The processes that a process has started and that still run."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def demo() -> Iterator[Simulator]:
    """A demo eight times as fast, without Prometheus: what happens in it lasts for some polls of a busy machine."""
    with Simulator(*ARGUMENTS, "--speed", "8", "--no-prometheus") as running:
        running.said("Ctrl-C stops everything")
        yield running


def test_three_engines_and_two_gpus_are_up(demo: Simulator) -> None:
    exporter = exporter_of(demo)
    exporter.until(lambda: all(exporter.value("llm_up", target=name) == 1 for name in (*ENGINES, "nvml")))
    exporter.until(lambda: {dict(one)["engine"] for one in exporter.metrics()["llm_engine_info"]} == set(ENGINES))
    assert exporter.value("llm_gpus") == 2
    status, headers, page = exporter.get("/")
    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/html")
    assert all(name in page.decode() for name in ENGINES)


def test_the_parts_of_each_gpus_memory_add_up(demo: Simulator) -> None:
    exporter = exporter_of(demo)
    exporter.until(lambda: {value for key in held(exporter) for name, value in key if name == "target"} == {*ENGINES})
    found = exporter.metrics()
    assert len(found["llm_gpu_memory_total_bytes"]) == 2
    for labels, total in found["llm_gpu_memory_total_bytes"].items():
        parts = [found[f"llm_gpu_memory_{part}_bytes"][labels] for part in ("used", "free", "reserved")]
        assert sum(parts) == total
    holders = {dict(labels)["target"]: dict(labels)["gpu"] for labels in found[HELD]}
    assert holders == {"vllm": "0", "sglang": "1", "ollama": "1"}


def test_traffic_flows_and_the_gpus_work(demo: Simulator) -> None:
    exporter = exporter_of(demo)
    exporter.until(lambda: (exporter.value("llm_generation_tokens_total", target="vllm") or 0) > 0)
    exporter.until(lambda: (exporter.value("llm_generation_tokens_total", target="sglang") or 0) > 0)
    exporter.until(lambda: (exporter.value("llm_gpu_utilization_ratio", gpu="0") or 0) > 0)
    exporter.until(lambda: (exporter.value("llm_gpu_energy_joules_total", gpu="0") or 0) > 0)


def test_the_first_incident_fills_the_kv_cache_and_it_shows(demo: Simulator) -> None:
    exporter = exporter_of(demo)
    demo.said("incident: a burst that fills vLLM's KV cache")
    exporter.until(lambda: (exporter.value("llm_kv_cache_usage_ratio", target="vllm") or 0) > 0.9)


def test_a_leak_shows_in_the_gpus_used_memory_until_the_engine_crashes(demo: Simulator) -> None:
    exporter = exporter_of(demo)

    def used() -> float:
        return exporter.value("llm_gpu_memory_used_bytes", gpu="0") or 0.0

    exporter.until(lambda: used() > 0)
    before = used()
    post(demo.address("vllm"), "/-/misbehave", {"leak_bytes_per_second": 1e8})
    exporter.until(lambda: used() > before + 1e9)
    post(demo.address("vllm"), "/-/misbehave", {"crash_seconds": 120})
    exporter.until(lambda: exporter.value("llm_up", target="vllm") == 0)
    exporter.until(lambda: exporter.value("llm_up", target="vllm") == 1)
    exporter.until(lambda: 0 < used() <= before)


def test_it_ends_by_a_signal_and_leaves_nothing(tmp_path: Path) -> None:
    extra = {"TMPDIR": str(tmp_path)}
    for number in (signal.SIGTERM, signal.SIGINT):
        with Simulator(*ARGUMENTS, "--no-prometheus", extra=extra) as running:
            running.said("Ctrl-C stops everything")
            address = running.address("vllm")
            assert ask(address, "GET", "/health")[0] == 200
            assert not children(running.process.pid)
            assert running.end(number) == 0
            with pytest.raises(ConnectionRefusedError):
                ask(address, "GET", "/health")
        assert not list(tmp_path.iterdir())


def test_an_address_in_use_ends_it_with_a_reason(demo: Simulator) -> None:
    taken = demo.address("llm-headroom")
    with Simulator("demo", "--listen", taken, "--no-prometheus") as second:
        assert second.process.wait(DEADLINE) == 2


@pytest.mark.waits(22)
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus (Debian package prometheus)")
def test_prometheus_scrapes_the_exporter_and_ends_with_the_demo(tmp_path: Path) -> None:
    with Simulator(*ARGUMENTS, extra={"TMPDIR": str(tmp_path)}) as running:
        address = running.address("prometheus")
        started = children(running.process.pid)
        assert started

        def scraped() -> set[str]:
            return {one["metric"]["target"] for one in asked(address, "query", query="llm_up == 1")["result"]}

        exporter_of(running).until(lambda: scraped() >= set(ENGINES))
        assert running.end() == 0
    assert not list(tmp_path.iterdir())
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


PROGRAM = """#!{python}
import os, socket, sys
name = os.path.basename(sys.argv[0])
if name == "{broken}":
    sys.exit("it is broken")
address = [one.partition("=")[2] for one in sys.argv if one.startswith("--web.listen-address=")]
port = int(address[0].rpartition(":")[2] if address else os.environ["GF_SERVER_HTTP_PORT"])
listener = socket.create_server(("127.0.0.1", port))
while True:
    with listener.accept()[0] as client:
        client.recv(65536)
        client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
"""


@pytest.mark.parametrize("broken", ["", "alertmanager"])
def test_every_program_that_is_installed_is_started_and_ended_with_the_demo(tmp_path: Path, broken: str) -> None:
    programs, writes = tmp_path / "bin", tmp_path / "tmp"
    programs.mkdir()
    writes.mkdir()
    names = ("prometheus", "alertmanager", "grafana-server")
    for name in names:
        (programs / name).write_text(PROGRAM.format(python=sys.executable, broken=broken))
        (programs / name).chmod(0o755)
    with Simulator(*ARGUMENTS, extra={"PATH": str(programs), "TMPDIR": str(writes)}) as running:
        running.said("Ctrl-C stops everything")
        started = children(running.process.pid)
        assert len(started) == len(names) - bool(broken)
        assert running.address("prometheus")
        assert running.address("grafana")
        if broken:
            running.said("^alertmanager +did not start: it is broken")
        else:
            assert running.address("alertmanager")
        assert running.end() == 0
    assert not list(writes.iterdir())
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_without_prometheus_the_demo_says_so_and_goes_on(tmp_path: Path) -> None:
    with Simulator(*ARGUMENTS, extra={"PATH": str(tmp_path)}) as running:
        running.said("^prometheus +not installed")
        running.said("Ctrl-C stops everything")
        assert running.end() == 0
