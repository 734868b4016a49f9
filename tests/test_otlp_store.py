"""Pods that push over OTLP into VictoriaMetrics: rules and dashboards work there as over a scraping Prometheus."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from dashboard_queries import asked_for, filled_in
from exporter_process import Exporter
from llm_headroom.bundle import alerts
from llm_headroom.bundle.dashboards import files
from llm_headroom.bundle.settings import BundleSettings
from llm_headroom.commands import programs
from llm_headroom.commands.programs import Program, free_place
from llm_headroom.net.listen import bound_address
from programs import program
from prometheus_server import asked
from simulator_process import Simulator

ROOT: Final = Path(__file__).parents[1]
DEADLINE: Final = 240.0
LEAST: Final = 150
"""Queries that a scraping Prometheus answers for one vLLM under traffic; the others are of GPUs and other engines."""
PODS: Final = ("vllm-0", "vllm-1")
FILES: Final = ("llm-headroom.rules.yml", "pushed.yml")
RULES: Final = BundleSettings(for_scale=0.001)


def store(folder: Path) -> Program:
    """VictoriaMetrics with the relabelling that is shipped."""
    path = program("victoria-metrics", "victoria-metrics")
    help_text = subprocess.run([path, "-help"], capture_output=True, text=True, check=False)
    if "-opentelemetry.usePrometheusNaming" not in help_text.stdout + help_text.stderr:
        pytest.skip("this victoria-metrics is too old for OTLP's names")
    place = free_place()
    flags = (
        "-opentelemetry.usePrometheusNaming",
        "-search.latencyOffset=0s",
        f"-storageDataPath={folder}/store",
    )
    relabel = f"-relabelConfig={ROOT}/deploy/victoria-metrics/relabel.yml"
    command = [path, f"-httpListenAddr={bound_address(place)}", relabel, *flags]
    return Program(command, place, "/health", folder / "store.log")


def evaluating(folder: Path, address: str) -> Program:
    """Vmalert with the rules that are shipped, over a store."""
    path, place = program("vmalert", "victoria-metrics"), free_place()
    url = f"http://{address}"
    return Program(
        [
            path, f"-httpListenAddr={bound_address(place)}",
            "-evaluationInterval=1s", "-datasource.queryStep=5s",
            f"-datasource.url={url}", f"-remoteWrite.url={url}", "-notifier.blackhole",
            f"-rule={folder}/rules.yml", f"-rule={folder}/pushed.yml",
        ],
        place, "/health", folder / "vmalert.log",
    )  # fmt: skip


def query(address: str, expr: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = asked(address, "query", query=expr)["result"]
    return found


def awaited(address: str, expr: str, count: int, end: float) -> list[dict[str, Any]]:
    """What a store answers as soon as it is so many series."""
    while len(found := query(address, expr)) != count:
        assert time.monotonic() < end, (expr, found)
        time.sleep(0.2)
    return found


def has_value(address: str, expr: str) -> bool:
    """Whether any series has a value: Prometheus also gives NaN, as of 0 / 0, and VictoriaMetrics nothing."""
    return any(one["value"][1] != "NaN" for one in query(address, expr))


def test_two_pods_that_push_are_as_two_pods_that_are_scraped(tmp_path: Path) -> None:
    program("prometheus", "prometheus")
    with ExitStack() as stack:
        victoria = stack.enter_context(store(tmp_path))
        engine = stack.enter_context(
            Simulator("simulate", "--engine", "vllm", "--listen", "127.0.0.1:0", "--rate", "4")
        )
        url = engine.said(r"(http://127\.0\.0\.1:\d+)")[1]
        pushing = [
            stack.enter_context(
                Exporter(
                    *("--target", f"vllm={url}", "--no-gpu", "--interval", "500ms"),
                    *("--otlp-endpoint", f"http://{victoria.address}/opentelemetry"),
                    extra={
                        "POD_NAME": pod, "POD_NAMESPACE": "llm", "NODE_NAME": "gpu-7", "K8S_CLUSTER_NAME": "east",
                        "OTEL_METRIC_EXPORT_INTERVAL": "500",
                    },
                )
            )
            for pod in PODS
        ]  # fmt: skip
        job = {
            "job_name": "llm-headroom",
            "static_configs": [{"targets": [one.url.removeprefix("http://") for one in pushing]}],
        }
        shipped, up = (yaml.safe_load(alerts.files(RULES)[f"alerts/{name}"]) for name in FILES)
        for group in shipped["groups"]:
            group.pop("interval", None)  # each second, as the others
        for name, content in (("rules.yml", shipped), ("pushed.yml", up)):
            (tmp_path / name).write_text(yaml.safe_dump(content))
        times = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config = {"global": times, "rule_files": ["rules.yml"], "scrape_configs": [job]}
        prometheus = stack.enter_context(programs.prometheus(tmp_path, config))
        vmalert = stack.enter_context(evaluating(tmp_path, victoria.address))
        end = time.monotonic() + DEADLINE

        port = url.rpartition(":")[2]
        wanted = {filled_in(expr) for text in files(RULES).values() for expr in asked_for(json.loads(text))}
        wanted -= {expr for expr in wanted if "scrape_" in expr}  # of scrapes, which there are none of
        recorded = {rule["record"] for group in shipped["groups"] for rule in group["rules"] if "record" in rule}
        scraped: set[str] = set()
        pushed: set[str] = set()
        while len(scraped) < LEAST or scraped - pushed:
            scraped |= {expr for expr in (wanted | recorded) - scraped if has_value(prometheus.address, expr)}
            pushed |= {expr for expr in scraped - pushed if has_value(victoria.address, expr)}
            assert time.monotonic() < end, (len(scraped), scraped - pushed)
            time.sleep(0.2)

        up = [one["metric"] for one in query(victoria.address, "llm_up")]
        assert [
            {name: labels[name] for name in ("job", "instance", "namespace", "cluster", "pod", "node", "target")}
            for labels in sorted(up, key=lambda labels: labels["pod"])
        ] == [
            {
                "job": "llm-headroom", "instance": f"{pod}.llm:0", "namespace": "llm", "cluster": "east", "pod": pod,
                "node": "gpu-7", "target": f"{pod}.llm:{port}",
            }
            for pod in PODS
        ]  # fmt: skip
        assert not {name for labels in up for name in labels if name.startswith(("k8s_", "service_", "telemetry_"))}
        awaited(victoria.address, 'up{job="llm-headroom"} == 1', 2, end)
        (total,) = awaited(victoria.address, "engine_model:llm_up:sum == 2", 1, end)
        assert total["metric"]["namespace"] == "llm"
        failed = [
            (rule["name"], rule["lastError"])
            for group in asked(vmalert.address, "rules")["groups"]
            for rule in group["rules"]
            if rule["lastError"]
        ]
        assert not failed

        engine.end()
        down = awaited(victoria.address, 'ALERTS{alertname="LLMEngineDown", alertstate="firing"}', 2, end)
        assert {one["metric"]["namespace"] for one in down} == {"llm"}
        pushing[0].process.send_signal(signal.SIGKILL)
        awaited(victoria.address, f'up{{instance="{PODS[0]}.llm:0"}} == 0', 1, end)
