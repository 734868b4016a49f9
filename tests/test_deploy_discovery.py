"""Prometheus finds sidecars and engines by plain service discovery of Kubernetes, with the example that is shipped."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Final

import pytest
import yaml

from captures import Capture
from engine_server import EngineServer, replayed
from exporter_process import DEADLINE, Exporter
from llm_headroom.commands import programs
from pods_api import PodsApi, pod
from programs import program
from prometheus_server import asked

EXAMPLE: Final = Path(__file__).parents[1] / "deploy/examples/kubernetes-sd.yml"


def test_sidecars_are_scraped_and_engines_probed_without_an_operator(tmp_path: Path) -> None:
    checked = subprocess.run(
        [program("promtool", "prometheus"), "check", "config", "--syntax-only", EXAMPLE],
        capture_output=True,
        text=True,
        check=False,
    )
    if "kubernetes_sd_configs not found" in checked.stderr:
        pytest.skip("this Prometheus was built without discovery in Kubernetes (Debian 12's)")
    settings = tmp_path / "config.yml"
    settings.write_text("probe: {allow: ['127.0.0.0/8'], modules: {vllm: {engine: vllm}}}\n")
    inside = {"POD_NAME": "vllm-0", "POD_NAMESPACE": "llm"}
    with (
        EngineServer(replayed(Capture("vllm", "0.32.0", "saturated"))) as engine,
        Exporter("--target", f"vllm={engine.url}", "--no-gpu", extra=inside) as sidecar,
        Exporter("--config", str(settings), "--no-gpu", "--no-discover") as probing,
    ):
        of_engine, of_sidecar = (int(url.rpartition(":")[2]) for url in (engine.url, sidecar.url))
        pods = [
            pod("vllm-0", {"app": "with-sidecar"}, "llm-headroom", of_sidecar),
            pod("vllm-1", {"app": "vllm"}, "http", of_engine),
            pod("router", {"app": "router"}, "http", 9),
        ]
        with PodsApi(pods) as api:
            config = yaml.safe_load(EXAMPLE.read_text())
            for job in config["scrape_configs"]:
                job["kubernetes_sd_configs"][0]["api_server"] = api.url
                for rule in job["relabel_configs"]:
                    if rule.get("target_label") == "__address__":
                        rule["replacement"] = probing.url.removeprefix("http://")
            config["global"] = {"scrape_interval": "1s"}
            with programs.prometheus(tmp_path, config) as prometheus:
                end = time.monotonic() + DEADLINE
                while len(found := asked(prometheus.address, "query", query="llm_up == 1")["result"]) < 2:
                    assert time.monotonic() < end, asked(prometheus.address, "targets")
                    time.sleep(0.2)

    known = ("job", "namespace", "pod", "node", "instance", "target")
    assert {tuple(one["metric"][name] for name in known) for one in found} == {
        ("llm-headroom", "llm", "vllm-0", "gpu-7", f"127.0.0.1:{of_sidecar}", f"vllm-0.llm:{of_engine}"),
        ("llm-headroom", "llm", "vllm-1", "gpu-7", f"127.0.0.1:{of_engine}", f"127.0.0.1:{of_engine}"),
    }
