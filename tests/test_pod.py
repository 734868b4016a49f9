"""In a pod a target on loopback is named after the pod, so that its series are unique in the cluster on every path."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from captures import Capture
from engine_server import EngineServer, replayed
from exporter_process import Exporter
from llm_headroom.config.errors import ConfigError
from llm_headroom.config.load import load

if TYPE_CHECKING:
    from pathlib import Path

NAMES = frozenset({"vllm", "ollama"})


@pytest.fixture
def in_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_NAME", "vllm-0")
    monkeypatch.setenv("POD_NAMESPACE", "llm")


@pytest.mark.usefixtures("in_a_pod")
@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("vllm=http://127.0.0.1:8000", "vllm-0.llm:8000"),
        ("vllm=http://localhost:8000/prefix", "vllm-0.llm:8000/prefix"),
        ("vllm=http://[::1]:8000", "vllm-0.llm:8000"),
        ("vllm=http://10.0.0.5:8000", "10.0.0.5:8000"),
        ("vllm=http://localhost.example:8000", "localhost.example:8000"),
    ],
)
def test_loopback_is_the_pod_and_other_addresses_are_themselves(target: str, name: str) -> None:
    (found,) = load(None, targets=[target], engine_names=NAMES).targets

    assert found.name == name
    assert found.endpoint.url == target.partition("=")[2]


@pytest.mark.parametrize("variable", ["POD_NAME", "K8S_POD_NAME"])
def test_a_pod_without_its_namespace_is_named_alone(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "vllm-0")
    (found,) = load(None, targets=["vllm=http://127.0.0.1:8000"], engine_names=NAMES).targets

    assert found.name == "vllm-0:8000"


@pytest.mark.usefixtures("in_a_pod")
def test_a_name_of_one_s_own_stays_and_a_proxy_finds_its_target_by_the_address(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text(
        "targets: [{url: 'http://127.0.0.1:8000', name: mine}, {url: 'http://127.0.0.1:8001', engine: vllm}]\n"
        "proxies: [{listen: '127.0.0.1:9001', target: '127.0.0.1:8001'}]\n"
    )
    config = load(file, engine_names=NAMES)

    assert [one.name for one in config.targets] == ["mine", "vllm-0.llm:8001"]
    assert [one.target for one in config.proxies] == ["vllm-0.llm:8001"]


@pytest.mark.usefixtures("in_a_pod")
def test_two_spellings_of_loopback_are_one_name_and_refused() -> None:
    with pytest.raises(ConfigError, match=r"duplicate name 'vllm-0\.llm:8000'"):
        load(None, targets=["vllm=http://127.0.0.1:8000", "vllm=http://localhost:8000"], engine_names=NAMES)


def test_what_is_scraped_from_a_sidecar_has_the_pod_s_name() -> None:
    pod = {"POD_NAME": "vllm-0", "POD_NAMESPACE": "llm", "NODE_NAME": "gpu-7"}
    with (
        EngineServer(replayed(Capture("vllm", "0.32.0", "saturated"))) as engine,
        Exporter("--target", f"vllm={engine.url}", "--no-gpu", extra=pod) as exporter,
    ):
        port = engine.url.rpartition(":")[2]
        exporter.until(lambda: exporter.value("llm_up", target=f"vllm-0.llm:{port}") == 1)
        targets = {
            dict(labels)["target"]
            for series in exporter.metrics().values()
            for labels in series
            if "target" in dict(labels)
        }
    assert targets == {f"vllm-0.llm:{port}"}
