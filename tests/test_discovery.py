"""Engines that share a usual port: who answers there is told by its metrics, and who was looked for by their names."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import bounded
from engine_server import EngineServer, Reply, garbage
from exporter_process import Exporter, check
from free_port import free_port
from llm_headroom.config.load import load
from llm_headroom.poll.poller import Poller

if TYPE_CHECKING:
    from pathlib import Path

    from engine_server import Behaviour


def configured(tmp_path: Path, port: int) -> Path:
    """A file with two engines that have the same usual port."""
    path = tmp_path / "headroom.yml"
    engines = "".join(
        f"  {name}: {{port: {port}, prefixes: [{name}_],"
        f" rules: [{{metric: llm_requests_running, names: [{name}_running]}}]}}\n"
        for name in ("one", "two")
    )
    path.write_text(f"gpu: false\nhost: false\ninterval: 100ms\nengines:\n{engines}", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["one", "two"])
def test_discovery_finds_out_which_of_two_engines_has_the_port(tmp_path: Path, name: str) -> None:
    with EngineServer({"/metrics": Reply(f"{name}_running 7\n".encode())}) as server:
        path = configured(tmp_path, server.port)
        with Exporter("--config", str(path)) as exporter:
            found = exporter.logged("engine found", address=server.name)
            exporter.until(lambda: exporter.value("llm_requests_running", target=server.name, engine=name) == 7.0)
        reports = json.loads(check("--config", str(path), "--format", "json").stdout)["sources"]

    assert found["engine"] == name
    assert [report["engine"] for report in reports if report["target"] == server.name] == [name]


def test_a_port_where_a_target_is_configured_is_not_looked_at_again(tmp_path: Path) -> None:
    with EngineServer({"/metrics": Reply(b"one_running 7\n")}) as server:
        path = configured(tmp_path, server.port)
        targets = f"discover: true\ntargets: [{{name: mine, engine: one, url: '{server.url}'}}]\n"
        path.write_text(path.read_text() + targets, encoding="utf-8")
        reports = json.loads(check("--config", str(path), "--format", "json").stdout)["sources"]

    # The machine may have engines of its own on their usual ports.
    names = [report["target"] for report in reports]
    assert (names.count("mine"), server.name in names) == (1, False)


def test_a_silent_port_is_told_with_every_engine_that_may_be_there(tmp_path: Path) -> None:
    with free_port() as port, Exporter("--config", str(configured(tmp_path, port))) as exporter:
        said = exporter.logged("not found", what=f"127.0.0.1:{port} (one, two)")

    assert (said["cause"], said["reason"]) == ("refused", "nothing listens on this port"), "nobody said that it does"


def test_why_nothing_was_found_is_logged_once_for_each_cause(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def look(server: EngineServer, answers: list[Reply | Behaviour]) -> None:
        poller = Poller(load(configured(tmp_path, server.port), engine_names=()))
        for answer in answers:
            server.routes["*"] = answer
            await poller.once()
        await poller.stop()

    wrong = Reply(b"", 404)
    with EngineServer() as server:
        bounded.run(look(server, [wrong, wrong, garbage, garbage, wrong]))

    said = [record.__dict__["cause"] for record in caplog.records if server.name in str(record.__dict__.get("what"))]
    assert said == ["not_this_engine", "protocol", "not_this_engine"]
