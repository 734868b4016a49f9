"""Prometheus, Alertmanager and Grafana beside the demo: how they are started, and what they are told."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from llm_headroom.commands import demo_stack, programs
from llm_headroom.commands.programs import NotStartedError, Program, free_place

if TYPE_CHECKING:
    from pathlib import Path

READY = """#!{python}
import http.server, json, os, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "{ready}" else 404)
        self.end_headers()
    def log_message(self, *_): pass
address = [one.rpartition(":")[2] for one in sys.argv if one.startswith("--web.listen-address=")]
with open("{name}.started", "w") as file:
    json.dump([sys.argv[1:], dict(os.environ)], file)
port = int(address[0] if address else os.environ["GF_SERVER_HTTP_PORT"])
http.server.HTTPServer(("127.0.0.1", port), Answer).serve_forever()
"""


def install(folder: Path, name: str, ready: str) -> None:
    """A program that only answers that it is ready."""
    (folder / name).write_text(READY.format(python=sys.executable, name=name, ready=ready))
    (folder / name).chmod(0o755)


def test_a_program_that_ends_at_once_is_said_with_its_last_line(tmp_path: Path) -> None:
    for script, said in (("print('first'); print('last words ')", "last words"), ("", "it wrote no output")):
        command = [sys.executable, "-c", script]
        program = Program(command, free_place(), "/", tmp_path / "log")
        with pytest.raises(NotStartedError) as raised:
            program.wait()
        assert str(raised.value) == said
        with pytest.raises(NotStartedError), Program(command, free_place(), "/", tmp_path / "log"):
            raise AssertionError


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert programs.installed(programs.ALERTMANAGER) is None
    with pytest.raises(NotStartedError, match="alertmanager is not installed"):
        programs.alertmanager(tmp_path, {})
    install(tmp_path, "prometheus-alertmanager", "/")
    assert programs.installed(programs.ALERTMANAGER) == str(tmp_path / "prometheus-alertmanager")
    install(tmp_path, "alertmanager", "/")
    assert programs.installed(programs.ALERTMANAGER) == str(tmp_path / "alertmanager")


def test_grafana_reads_its_source_and_its_dashboards_where_there_are_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "grafana-server", "/api/health")
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, dashboards in (("with", tmp_path), ("without", tmp_path / "none")):
        (tmp_path / name).mkdir()
        with programs.grafana(tmp_path / name, "http://prometheus:1", dashboards) as grafana:
            arguments, variables = json.loads((tmp_path / name / "grafana-server.started").read_text())
        provisioned = tmp_path / name / "provisioning"
        assert variables["GF_PATHS_PROVISIONING"] == str(provisioned)
        assert grafana.address == f"127.0.0.1:{variables['GF_SERVER_HTTP_PORT']}"
        assert (arguments[0], variables["GF_AUTH_ANONYMOUS_ENABLED"]) == ("--homepath", "true")
        sources = yaml.safe_load((provisioned / "datasources" / "prometheus.yml").read_text())
        assert sources["apiVersion"] == 1
        (source,) = sources["datasources"]
        assert (source["type"], source["url"], source["isDefault"]) == ("prometheus", "http://prometheus:1", True)
        assert {each.name for each in provisioned.iterdir()} == {"datasources", "dashboards", "plugins", "alerting"}
        file = provisioned / "dashboards" / "llm-headroom.yml"
        assert file.exists() is (name == "with")
    (provider,) = yaml.safe_load((tmp_path / "with/provisioning/dashboards/llm-headroom.yml").read_text())["providers"]
    assert (provider["type"], provider["options"]) == ("file", {"path": str(tmp_path)})
    assert grafana.process.returncode == -15


def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> tuple[list[str], dict[str, Any]]:
    """What a demo beside these programs says, and what they were configured with."""
    ready = {"prometheus": "/-/ready", "alertmanager": "/-/ready", "grafana-server": "/api/health"}
    (tmp_path / "bin").mkdir()
    (tmp_path / "tmp").mkdir()
    for name in names:
        install(tmp_path / "bin", name, ready[name])
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))

    async def run() -> tuple[list[str], dict[str, Any]]:
        async with AsyncExitStack() as stack:
            lines = await demo_stack.start("exporter:1", stack, 2.0)
            found = [path for folder in (tmp_path / "tmp").iterdir() for path in folder.glob("*.yml")]
            configured = {path.name: yaml.safe_load(path.read_text()) for path in found}
        assert not [*(tmp_path / "tmp").iterdir()]
        return lines, configured

    return asyncio.run(run())


def test_without_prometheus_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, configured = started(tmp_path, monkeypatch, "alertmanager", "grafana-server")
    assert lines == ["prometheus   not installed; Prometheus, Alertmanager and Grafana are not started"]
    assert configured == {}


def test_prometheus_alone_scrapes_the_exporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, configured = started(tmp_path, monkeypatch, "prometheus")
    assert [line.split()[0] for line in lines] == ["prometheus"]
    assert configured["prometheus.yml"] == {
        "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
        "rule_files": ["llm-headroom.rules.yml"],
        "scrape_configs": [{"job_name": "llm-headroom", "static_configs": [{"targets": ["exporter:1"]}]}],
        "alerting": {"alertmanagers": []},
    }
    rules = [rule for group in configured["llm-headroom.rules.yml"]["groups"] for rule in group["rules"]]
    (down,) = (rule for rule in rules if rule.get("alert") == "LLMEngineDown")
    assert down["for"] == "9000ms", "of three minutes a tenth, and twice as fast"


def test_prometheus_sends_alerts_where_there_is_an_alertmanager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, configured = started(tmp_path, monkeypatch, "prometheus", "alertmanager")
    assert [line.split()[0] for line in lines] == ["prometheus", "alertmanager"]
    (receiver,) = configured["prometheus.yml"]["alerting"]["alertmanagers"]
    (address,) = receiver["static_configs"][0]["targets"]
    assert lines[1].endswith(f"http://{address}/")
    assert {"route", "receivers"} <= configured["alertmanager.yml"].keys()
