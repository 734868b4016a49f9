"""Image, compose stack and systemd unit, as far as they can be judged without a container engine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_headroom import __version__
from llm_headroom.commands.simulate import SIMULATED
from llm_headroom.engines.built_in import BUILT_IN

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose"
PORTS = {name: BUILT_IN[name].port for name in SIMULATED}


def loaded(path: Path) -> Any:  # noqa: ANN401 - YAML
    return yaml.safe_load(path.read_text())


def sbom(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, DEPLOY / "sbom.py", folder], capture_output=True, text=True, check=False, timeout=90
    )


# Image ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder as `pip install --target` leaves it, with the exporter beside."""
    (tmp_path / "llm_headroom").mkdir()
    (tmp_path / "llm_headroom" / "__init__.py").write_text('"""Text."""\n\n__version__ = "1.2.3"\n')
    for name, version, more in (
        ("Zed.Pack", "2.0", "License-Expression: MIT OR Apache-2.0\n"),
        ("alpha", "1.1", "Classifier: License :: OSI Approved :: BSD License\n"),
    ):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{more}\n")
    return tmp_path


def test_the_sbom_lists_what_is_installed_with_versions_and_licences(installed: Path) -> None:
    first, second = sbom(installed), sbom(installed)

    document = json.loads(first.stdout)
    assert document["metadata"]["component"]["purl"] == "pkg:pypi/llm-headroom@1.2.3"
    assert [(one["purl"], one["licenses"]) for one in document["components"]] == [
        ("pkg:pypi/alpha@1.1", [{"license": {"name": "BSD License"}}]),
        ("pkg:pypi/zed-pack@2.0", [{"expression": "MIT OR Apache-2.0"}]),
    ]
    assert first.stdout == second.stdout, "the same folder gives the same document"
    assert re.fullmatch(
        r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", document["serialNumber"]
    )


def test_the_sbom_of_an_unknown_version_is_an_error(installed: Path) -> None:
    (installed / "llm_headroom" / "__init__.py").write_text("")

    assert sbom(installed).returncode != 0


def test_the_build_needs_nothing_that_is_kept_out_of_its_context() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)

    assert {source for line in copied for source in line.split()} == kept
    assert all((ROOT / source).exists() for source in kept)
    assert (ROOT / "exporter/llm_headroom/__init__.py").read_text().count(f'__version__ = "{__version__}"') == 1


def test_the_image_says_which_version_it_is_and_compose_has_its_health_check() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    healthcheck = loaded(COMPOSE / "compose.yaml")["services"]["llm-headroom"]["healthcheck"]

    assert f"ARG VERSION={__version__}\n" in text
    command = re.search(r"^HEALTHCHECK .* CMD (\[.*\])$", text, re.MULTILINE)
    assert command is not None
    assert healthcheck["test"] == ["CMD", *json.loads(command[1])]


# Compose -------------------------------------------------------------------------------------------------------------


def test_prometheus_takes_the_compose_stack_s_configuration() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is missing (Debian package prometheus)")
    done = subprocess.run(
        ["promtool", "check", "config", COMPOSE / "prometheus.yml"],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr


def test_the_compose_stack_speaks_of_services_ports_and_files_that_are_there() -> None:
    services = loaded(COMPOSE / "compose.yaml")["services"]
    prometheus = loaded(COMPOSE / "prometheus.yml")
    datasource = loaded(COMPOSE / "grafana/datasources/prometheus.yml")["datasources"][0]
    said = [target for job in prometheus["scrape_configs"] for target in job["static_configs"][0]["targets"]]
    said += prometheus["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    said += re.findall(r"https?://([^,}\s]+)", services["llm-headroom"]["environment"]["LLM_HEADROOM_TARGETS"])
    said.append(datasource["url"].removeprefix("http://"))
    ports = {"llm-headroom": 9836, "prometheus": 9090, "alertmanager": 9093, **PORTS}

    for name, port in (target.split(":") for target in said if not target.startswith("localhost")):
        assert name in services
        assert ports[name] == int(port), name
    for engine, port in PORTS.items():
        command = services[engine]["command"]
        assert command[command.index("--listen") + 1] == f"0.0.0.0:{port}"
        assert command[command.index("--engine") + 1] == engine
    for service in services.values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert not source.startswith("./") or (COMPOSE / source).exists(), source


@pytest.mark.parametrize("folder", ["alerts", "dashboards"])
def test_rules_and_dashboards_are_mounted_from_the_tree(folder: str) -> None:
    services = loaded(COMPOSE / "compose.yaml")["services"]
    sources = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())}

    assert f"../../{folder}" in sources
    assert any((ROOT / folder).iterdir())


def test_grafana_provisions_from_the_folder_that_is_mounted() -> None:
    volumes = loaded(COMPOSE / "compose.yaml")["services"]["grafana"]["volumes"]
    path = loaded(COMPOSE / "grafana/dashboards/llm-headroom.yml")["providers"][0]["options"]["path"]

    assert f"../../dashboards:{path}:ro" in volumes


def test_gpus_are_shown_to_the_exporter_and_none_is_taken() -> None:
    exporter = loaded(COMPOSE / "compose.gpu.yaml")["services"]["llm-headroom"]

    assert exporter["environment"] == {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "utility"}
    assert "deploy" not in exporter, "a reservation would take a GPU from the engines"


# systemd -------------------------------------------------------------------------------------------------------------


def test_the_unit_is_valid_and_exposes_little(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is missing (Debian package systemd)")
    text = (DEPLOY / "systemd/llm-headroom.service").read_text()
    unit = tmp_path / "llm-headroom.service"
    unit.write_text(
        text.replace("/opt/llm-headroom/bin/llm-headroom", "/bin/true")
    )  # verify wants a program that is there

    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False, timeout=90
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=20", unit],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert judged.returncode == 0, judged.stdout
    assert "Overall exposure level" in judged.stdout
