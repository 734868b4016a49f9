"""The collector for other services' registries, and the metrics of our own process."""

from __future__ import annotations

import re
import resource
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.parser import text_string_to_metric_families

import llm_headroom
from captures import Capture
from engine_server import EngineServer, hang, replayed
from exporter_process import DEADLINE, Exporter, environment
from llm_headroom import HeadroomCollector, schema
from llm_headroom.config.errors import ConfigError
from llm_headroom.model import Subject
from llm_headroom.poll.process_series import ProcessSeries
from proc_tree import BOOT, ProcTree

if TYPE_CHECKING:
    from collections.abc import Iterator

VLLM = Capture("vllm", "0.32.0", "saturated")
OLLAMA = Capture("ollama", "0.33.0-rc2", "ps_loaded")
ROOT = Path(__file__).parents[1]
PROCESS = tuple(metric for metric in schema.ALL if metric.subject is Subject.PROCESS)


@pytest.fixture
def vllm() -> Iterator[EngineServer]:
    """A saturated vLLM server."""
    with EngineServer(replayed(VLLM)) as server:
        yield server


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry like prometheus-client's global one."""
    return CollectorRegistry(auto_describe=True)


def exposed(registry: CollectorRegistry) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Labels and values by the name of the samples."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


# In a service's registry ---------------------------------------------------------------------------------------------
def test_a_registry_exposes_what_the_exporter_does(vllm: EngineServer, registry: CollectorRegistry) -> None:
    with EngineServer(replayed(OLLAMA)) as ollama:
        targets = (f"vllm={vllm.url}", f"ollama={ollama.url}")
        Counter("shop_questions", "Its own.", registry=registry).inc()
        with HeadroomCollector(targets, interval="1h", gpu=False) as headroom:
            registry.register(headroom)
            assert headroom.ready(DEADLINE)
            ours = exposed(registry)
        options = (*(f"--target={target}" for target in targets), "--no-gpu", "--interval", "1h")
        with Exporter(*options) as exporter:
            exporter.until(lambda: exporter.get("/-/ready")[0] == 200)
            theirs = {name: len(samples) for name, samples in exporter.metrics().items()}

    assert ours.pop("shop_questions_total") == [({}, 1.0)]
    del ours["shop_questions_created"]
    own = {metric.name for metric in (*PROCESS, schema.EXPORTER_CPU, schema.EXPORTER_MEMORY)}
    own |= {schema.CONFIG_RELOAD_SUCCESS.name, schema.CONFIG_RELOAD_TIME.name}
    assert {name: len(samples) for name, samples in ours.items() if not name.startswith("llm_host_")} == {
        name: count for name, count in theirs.items() if name not in own and not name.startswith("llm_host_")
    }
    assert sorted(value for _, value in ours["llm_up"]) == [1.0, 1.0]
    assert [value for labels, value in ours["llm_requests_waiting"] if labels["target"] == vllm.name] == [39.0]


def test_polling_goes_on_and_ends_with_close(vllm: EngineServer, registry: CollectorRegistry) -> None:
    headroom = HeadroomCollector([f"vllm={vllm.url}"], interval="100ms", gpu=False)
    registry.register(headroom)
    assert exposed(registry) == {}
    assert not headroom.ready(0.0)

    for _ in range(2):  # it can begin anew
        assert headroom.start().start() is headroom
        assert [thread.name for thread in threading.enumerate()].count("llm-headroom") == 1
        assert headroom.ready(DEADLINE)
        before, until = len(vllm.requests), time.monotonic() + DEADLINE
        while len(vllm.requests) < before + 3:
            assert time.monotonic() < until
            assert exposed(registry)["llm_up"] == [({"engine": "vllm", "target": vllm.name}, 1.0)]
        headroom.close()
        headroom.close()
        assert "llm-headroom" not in {thread.name for thread in threading.enumerate()}
        assert exposed(registry) == {}


def test_an_engine_that_hangs_does_not_hang_the_service(vllm: EngineServer, registry: CollectorRegistry) -> None:
    with (
        EngineServer({"/metrics": hang}) as hung,
        HeadroomCollector([f"vllm={vllm.url}", f"vllm={hung.url}"], interval="1h", gpu=False) as headroom,
    ):
        registry.register(headroom)
        assert not headroom.ready(0.1)
        until = time.monotonic() + DEADLINE
        while not (found := exposed(registry).get("llm_up")):
            assert time.monotonic() < until

    assert found == [({"engine": "vllm", "target": vllm.name}, 1.0)]


def test_names_clash_when_the_second_is_registered_and_not_at_a_scrape(registry: CollectorRegistry) -> None:
    registry.register(HeadroomCollector(discover=False))

    with pytest.raises(ValueError, match=r"Duplicated timeseries.*llm_requests_running"):
        registry.register(HeadroomCollector(discover=False))


def test_a_registry_is_told_of_every_family_that_may_come_and_of_no_other() -> None:
    own = {metric for metric in schema.ALL if metric.subject in {Subject.EXPORTER, Subject.PROCESS}}
    expected = {metric.name.removesuffix("_total") for metric in schema.ALL if metric not in own - {schema.BUILD_INFO}}
    told = HeadroomCollector(discover=False).describe()
    assert {family.name for family in told} == expected
    assert [family for family in told if family.samples] == []
    assert len(told) == len(expected)


def test_the_process_is_the_services_own() -> None:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)

    registry.register(HeadroomCollector(discover=False))


def test_what_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError, match=r"(?s)unknown engine 'targte'.*expected a duration such as 5s, got 'soon'"):
        HeadroomCollector(["vllm=http://127.0.0.1:8000", "targte=http://127.0.0.1:1"], interval="soon")


def test_a_configuration_file_is_taken(tmp_path: Path, vllm: EngineServer, registry: CollectorRegistry) -> None:
    file = tmp_path / "headroom.yml"
    file.write_text(
        f"gpu: false\ntargets: [{{url: '{vllm.url}', name: prod, engine: vllm, labels: {{team: search}}}}]\n"
    )
    with HeadroomCollector(config=str(file)) as headroom:
        registry.register(headroom)
        assert headroom.ready(DEADLINE)
        ((labels, _),) = exposed(registry)["llm_up"]

    assert labels == {"engine": "vllm", "target": "prod", "team": "search"}


def test_a_fork_starts_anew(vllm: EngineServer) -> None:
    """In a program of its own: a fork of a test's process would take along pytest's threads and locks."""
    program = f"""
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: a fork beside threads
from llm_headroom import HeadroomCollector
headroom = HeadroomCollector(["vllm={vllm.url}"], interval="1h", gpu=False).start()
assert headroom.ready({DEADLINE})
child = os.fork()
if child == 0:
    waited = headroom.ready({10 * DEADLINE})  # for nothing, and so not at all
    before, after = headroom.collect(), headroom.start().ready({DEADLINE}) and headroom.collect()
    headroom.close()
    os._exit(0 if not waited and not before and after else 1)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
headroom.close()
raise SystemExit(status)
"""
    done = subprocess.run([sys.executable, "-c", program], env=environment(), timeout=2 * DEADLINE, check=False)

    assert done.returncode == 0


def test_the_example_of_the_documentation_runs(vllm: EngineServer) -> None:
    found = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "embedding.md").read_text(), re.DOTALL)
    assert found is not None
    program = found[1].replace("http://127.0.0.1:8000", vllm.url).replace("9100", "0")
    assert program.count(vllm.url) == 1
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program], env=environment(), stdout=subprocess.PIPE, text=True
    ) as service:
        try:
            assert service.stdout is not None
            url = service.stdout.readline().strip()
            until, body = time.monotonic() + DEADLINE, ""
            while "\nllm_up{" not in body or "\nshop_questions_total 1.0\n" not in body:
                assert time.monotonic() < until, body
                with urllib.request.urlopen(url, timeout=DEADLINE) as answer:  # noqa: S310 - our own server
                    body = answer.read().decode()
        finally:
            service.send_signal(signal.SIGTERM)
        assert service.wait(DEADLINE) == 0

    assert f'llm_up{{engine="vllm",target="{vllm.name}"}} 1.0' in body
    assert "\nprocess_cpu_seconds_total " in body


def test_the_package_alone_loads_nothing() -> None:
    program = "import sys, llm_headroom; print([name for name in sys.modules if name.startswith('prometheus')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE, check=True)

    assert done.stdout == "[]\n"
    with pytest.raises(AttributeError, match="no attribute 'Headroom'"):
        _ = llm_headroom.Headroom  # type: ignore[attr-defined]  # what is tested


PYTHON = {schema.PYTHON_INFO, schema.GC_COLLECTED, schema.GC_UNCOLLECTABLE, schema.GC_COLLECTIONS}


# Our own process -----------------------------------------------------------------------------------------------------
def test_the_process_has_the_names_and_kinds_that_prometheus_client_gives() -> None:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    theirs = {
        sample.name: (family.type, set(sample.labels)) for family in registry.collect() for sample in family.samples
    }

    assert {metric.name: (metric.kind.value, set(metric.labels)) for metric in PROCESS} == theirs
    points = list(ProcessSeries().points())
    assert {point.series.metric for point in points} == {*PROCESS, schema.EXPORTER_CPU, schema.EXPORTER_MEMORY}


def test_the_names_of_before_say_the_same() -> None:
    values = {point.series.metric: point.value for point in ProcessSeries().points()}

    assert values[schema.EXPORTER_CPU] == values[schema.PROCESS_CPU]
    assert values[schema.EXPORTER_MEMORY] == values[schema.PROCESS_MEMORY]


def test_values_are_the_kernels(tmp_path: Path) -> None:
    tree = ProcTree(tmp_path)
    (tree.root / "self/statm").write_text("765 210 170 1 0 120 0\n")
    values = {point.series.metric: point.value for point in ProcessSeries(str(tree.root)).points()}

    page = resource.getpagesize()
    assert values[schema.PROCESS_START] == pytest.approx(BOOT + 0.1)
    assert (values[schema.PROCESS_VIRTUAL_MEMORY], values[schema.PROCESS_MEMORY]) == (765 * page, 210 * page)
    assert values[schema.PROCESS_FILES] == 0


def test_values_are_those_that_prometheus_client_gives() -> None:
    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    ours = {(point.series.metric.name, point.series.labels): point.value for point in ProcessSeries().points()}

    for sample in (sample for family in registry.collect() for sample in family.samples):
        value = ours[sample.name, tuple(sorted(sample.labels.items()))]
        assert value == pytest.approx(sample.value, rel=0.2, abs=100.0), sample  # read a moment later


@pytest.mark.parametrize("broken", ["statm", "fd"])
def test_a_proc_that_cannot_be_understood_costs_only_what_is_in_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    tree = ProcTree(tmp_path)
    (tree.root / "self/statm").write_text("765 210 170 1 0 120 0\n" if broken == "fd" else "many pages\n")
    if broken == "fd":
        (tree.root / "self/fd").rmdir()
    process = ProcessSeries(str(tree.root))

    gone = {schema.PROCESS_FILES, schema.PROCESS_FILES_LIMIT}
    if broken == "statm":
        gone = {*PROCESS, schema.EXPORTER_CPU, schema.EXPORTER_MEMORY} - gone - PYTHON
    for _ in range(2):
        assert {*PROCESS, schema.EXPORTER_CPU, schema.EXPORTER_MEMORY} - gone == {
            point.series.metric for point in process.points()
        }
    assert [record.getMessage() for record in caplog.records] == ["own process not read"]


def test_without_procfs_there_is_what_python_says(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert {point.series.metric for point in ProcessSeries(str(tmp_path)).points()} == PYTHON
    assert not caplog.records


def test_what_is_served_of_the_process_is_read_at_the_scrape() -> None:
    """Also while nothing is published: no target is there."""
    with Exporter("--no-gpu", "--no-discover") as exporter:
        before = exporter.value("process_cpu_seconds_total")
        exporter.until(lambda: exporter.value("process_cpu_seconds_total") != before)
