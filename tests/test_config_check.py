"""`llm-headroom config check`, and variables that are likely slips."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import pytest

from exporter_process import Exporter, check, ran
from llm_headroom.commands import variables
from llm_headroom.commands.cli import COMMANDS, main

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path


def config_check(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    return ran("config", "check", *arguments, extra=extra)


def written(directory: Path, text: str) -> str:
    (directory / "headroom.yml").write_text(text)
    return str(directory / "headroom.yml")


def test_a_usable_file_is_fine(tmp_path: Path) -> None:
    path = written(tmp_path, "targets: ['vllm=http://127.0.0.1:1']")
    done = config_check(path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}: valid\n", "")
    assert config_check(LLM_HEADROOM_CONFIG=path).stdout == f"{path}: valid\n"


def test_all_problems_are_listed_with_those_of_the_environment(tmp_path: Path) -> None:
    path = written(tmp_path, "".join(f"unknown_{number}: 1\n" for number in range(30)))
    done = config_check(path, LLM_HEADROOM_TARGET="vllm=http://a", LLM_HEADROOM_INTERVAL="soon")
    lines = done.stderr.splitlines()
    assert done.returncode == 2
    assert len(lines) == 32
    assert lines[29].endswith("headroom.yml:30: unknown_29: unknown key")
    assert lines[30] == "--interval/LLM_HEADROOM_INTERVAL: expected a duration such as 5s, got 'soon'"
    assert lines[31].startswith("LLM_HEADROOM_TARGET: unknown variable; did you mean LLM_HEADROOM_TARGETS")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tls_server_config: {cert_file: server.crt}\n", "web.yml:1: tls_server_config: key_file (or key) is missing"),
        ("tls_server_config:\n  cert_file: a.crt\n  key_file: b.key\n", "this file"),
    ],
)
def test_the_web_configuration_is_checked_with_its_certificates(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "web.yml").write_text(text)
    done = config_check(written(tmp_path, "web_config: web.yml"))
    assert done.returncode == 2
    assert problem in done.stderr


# Variables -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["LLM_HEADROOM_TARGET", "LLM_HEADROOM_LOGLEVEL", "LLM_HEADROOM_X"])
def test_a_variable_that_nothing_reads_is_reported(name: str) -> None:
    assert [found for found, _ in variables.unknown({name: "x", "PATH": "/"})] == [name]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LLM_HEADROOM_TARGETS", "http://a"),
        ("LLM_HEADROOM_SERVICE_HOST", "10.0.0.1"),
        ("LLM_HEADROOM_SERVICE_PORT", "9836"),
        ("LLM_HEADROOM_SERVICE_PORT_HTTP", "9836"),
        ("LLM_HEADROOM_PORT", "tcp://10.0.0.1:9836"),
        ("LLM_HEADROOM_PORT_9836_TCP", "tcp://10.0.0.1:9836"),
        ("LLM_HEADROOM_PORT_9836_TCP_ADDR", "10.0.0.1"),
        ("LLM_HEADROOM_METRICS_SERVICE_HOST", "10.0.0.2"),
        ("LLM_HEADROOM_METRICS_PORT", "tcp://10.0.0.2:1"),
    ],
)
def test_what_kubernetes_sets_for_a_service_of_that_name_is_no_slip(name: str, value: str) -> None:
    assert not list(variables.unknown({name: value}))


def test_a_port_that_is_no_service_is_a_slip() -> None:
    assert [name for name, _ in variables.unknown({"LLM_HEADROOM_PORT": "9836"})] == ["LLM_HEADROOM_PORT"]


def test_the_known_variables_are_those_that_options_read() -> None:
    context = click.Context(main)
    commands = [main.get_command(context, name) for name in COMMANDS]
    read = {str(option.envvar) for each in commands if each is not None for option in each.params if option.envvar}
    assert read == variables.KNOWN


def test_run_warns_of_a_slip_and_goes_on() -> None:
    with Exporter("--no-gpu", "--no-discover", extra={"LLM_HEADROOM_TARGET": "http://a"}) as exporter:
        line = exporter.logged("unknown environment variable")
    assert line["variable"] == "LLM_HEADROOM_TARGET"
    assert "LLM_HEADROOM_TARGETS" in line["problem"]


def test_check_warns_of_a_slip() -> None:
    done = check("--no-gpu", "--no-discover", extra={"LLM_HEADROOM_TARGET": "http://a"})
    assert done.returncode == 1, "nothing was found"
    assert "LLM_HEADROOM_TARGET: unknown variable; did you mean LLM_HEADROOM_TARGETS" in done.stderr
