"""Commands of the documentation that end by themselves and touch nothing are run, as they are shown."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest

from exporter_process import environment
from kubernetes_objects import program as deploy_program
from pages import ROOT, SHOWN, blocks
from programs import program

if TYPE_CHECKING:
    from pathlib import Path

STAND_INS: Final = {"DIR": "written", "my": "written", "FILE": "some.yml"}
BLOCKS: Final = [(shown.page, shown.line.removeprefix("$ ").strip()) for shown in SHOWN if not shown.prose]
OWN: Final = [
    each for each in BLOCKS if re.match(r"llm-headroom (bundle|completion|hash-password|config check)\b", each[1])
]
HELM: Final = [each for each in BLOCKS if each[1].startswith(("helm upgrade", "helm template"))]
VICTORIA: Final = [each for each in BLOCKS if each[1].startswith(("victoria-metrics ", "vmalert "))]


def test_commands_are_found() -> None:
    assert {line.split()[1] for _, line in OWN} >= {"bundle", "completion", "hash-password"}
    assert HELM
    assert len(VICTORIA) == 2


@pytest.mark.parametrize(("page", "line"), sorted(set(OWN)))
def test_a_command_of_the_program_does_what_it_says(page: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "llm-headroom").write_text(f'#!/bin/sh\nexec {sys.executable} -W error -m llm_headroom "$@"\n')
    (tmp_path / "llm-headroom").chmod(0o755)
    (tmp_path / "some.yml").write_text("interval: 5s\n")
    written = re.findall(r" > (?:~/)?(\S+)", line)
    for name in written:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    words = " ".join(STAND_INS.get(word, word) for word in line.split(" "))
    done = subprocess.run(
        ["sh", "-c", words],
        input="a password\n",
        cwd=tmp_path,
        env=environment({"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}),
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, ""), page
    assert done.stdout or written
    assert all((tmp_path / name).stat().st_size for name in written)


def test_the_simulator_s_example_runs() -> None:
    [example] = [text for language, text in blocks(ROOT / "docs/simulator.md") if language == "python"]
    done = subprocess.run([sys.executable, "-W", "error", "-c", example], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert all(float(number) > 0 for number in done.stdout.split())


@pytest.mark.parametrize(("page", "line"), sorted(set(HELM)))
def test_helm_renders_what_it_is_shown_to_install(page: str, line: str) -> None:
    words = shlex.split(line.replace("helm upgrade --install", "helm template"))
    done = subprocess.run(
        [deploy_program("helm"), *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )

    assert done.returncode == 0, (page, done.stderr)
    assert "kind: " in done.stdout


@pytest.mark.parametrize(("page", "line"), sorted(set(VICTORIA)))
def test_victoria_metrics_takes_the_files_that_it_is_shown_with(page: str, line: str, tmp_path: Path) -> None:
    name, *words = shlex.split(line)
    path = program(name, "victoria-metrics")
    place = [f"-storageDataPath={tmp_path}"] if name == "victoria-metrics" else []
    done = subprocess.run(
        [path, *words, *place, "-dryRun"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    if "flag provided but not defined" in done.stderr:
        pytest.skip(f"this {name} is too old")

    assert done.returncode == 0, (page, done.stderr)
