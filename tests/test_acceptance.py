"""`make live`: when a signal of a real engine is exact, explained or wrong, and what the page says of the last run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from live.__main__ import page
from live.exporter import Reading
from live.verdict import Expected, Row, Verdict, table

BENCH = Path(__file__).parents[1] / "bench"
SUPPORT = Path(__file__).parent / "support"
PAGE = Path(__file__).parents[1] / "docs" / "acceptance.md"
ABSENT = Expected(None, "the engine has no such metric")
ZERO = Expected(0, "the engine does not count them")
NOT_ASKED = Expected(None, "only the engine knows", asked=False)


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (Row("same", 5, 5, 5), Verdict.EXACT),
        (Row("one too many", 5, 6, 5), Verdict.WRONG),
        (Row("silent without a reason", 5, 5, None), Verdict.WRONG),
        (Row("silent for a reason", 5, None, 5, expected_exporter=ABSENT), Verdict.EXPLAINED),
        (Row("not its business", 5, 5, None, expected_proxy=NOT_ASKED), Verdict.EXACT),
        (Row("foreseen", 5, 0, 5, expected_exporter=ZERO), Verdict.EXPLAINED),
        (Row("not what was foreseen", 5, 1, 5, expected_exporter=ZERO), Verdict.WRONG),
        (Row("within bounds", 0.5, 0.6, 0.4, within=0.2), Verdict.EXPLAINED),
        (Row("out of bounds", 0.5, 0.6, 0.1, within=0.2), Verdict.WRONG),
    ],
    ids=lambda part: part.signal if isinstance(part, Row) else "",
)
def test_a_signal_is_as_wrong_as_its_worse_side(row: Row, verdict: Verdict) -> None:
    assert row.verdict is verdict


def test_series_of_a_target_are_summed_and_an_absent_metric_is_none() -> None:
    reading = Reading(
        'a{target="engine",reason="x"} 1\na{target="engine",reason="y"} 2\na{target="engine/proxy",reason="x"} 4\n'
    )

    assert reading.of("a") == 3
    assert reading.of("a", reason="y") == 2
    assert reading.of("a", "engine/proxy") == 4
    assert reading.of("b") is None


def rows_of(text: str) -> list[list[str]]:
    """The cells of every row: signal, truth, exporter, proxy, verdict, remark."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and "| verdict |" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def faults(text: str) -> list[str]:
    """What a page says that is not so: a row whose verdict does not follow from its numbers, or a wrong one."""
    found = []
    for signal, truth, *sides, verdict, remark in rows_of(text):
        others = [side for side in sides if side != truth]
        same = len(others) < len(sides) and set(others) <= {"–"}
        if verdict == Verdict.WRONG or (verdict == Verdict.EXACT and not same) or (others and not remark):
            found.append(signal)
    return found


def test_the_page_has_no_wrong_row_and_counts_every_one() -> None:
    text = PAGE.read_text(encoding="utf-8")
    shown = Counter(verdict for _, _, _, _, verdict, _ in rows_of(text))
    counted = re.search(r"^Of (\d+) signals: (.*)\.$", text, re.MULTILINE)

    assert faults(text) == []
    assert {"## llama.cpp", "## vLLM"} <= {line.rpartition(" ")[0] for line in text.splitlines()}
    assert counted is not None
    assert int(counted[1]) == shown.total() > 90
    assert counted[2] == ", ".join(f"{shown[verdict]} {verdict}" for verdict in Verdict)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("| running | 3 | 3 | 3 | exact |  |", False),
        ("| running | 3 | 0 | 3 | **wrong** |  |", True),
        ("| running | 3 | 0 | 3 | **wrong** | for a reason |", True),
        ("| running | 3 | 0 | 3 | exact | for a reason |", True),
        ("| running | 3 | – | – | exact | for a reason |", True),
        ("| running | 3 | 3 | – | exact | only the engine knows |", False),
        ("| running | 3 | 3 | – | exact |  |", True),
        ("| running | 3 | 0 | 3 | explained | for a reason |", False),
        ("| running | 3 | 0 | 3 | explained |  |", True),
    ],
)
def test_a_row_whose_verdict_does_not_follow_from_it_is_found(row: str, *, fault: bool) -> None:
    assert faults(page(["\n".join([*table([Row("up", 1, 1, 1)]), row])], ())) == ["running"] * fault


@pytest.mark.waits(40)
def test_an_ollama_binary_is_run_and_its_part_stands_beside_those_of_earlier_runs(tmp_path: Path) -> None:
    binary, folder, written = tmp_path / "ollama", tmp_path / "live", tmp_path / "acceptance.md"
    binary.write_text(f'#!/bin/sh\nexec {sys.executable} {SUPPORT / "fake_ollama.py"} "$@"\n')
    binary.chmod(0o755)
    programs = folder / "venv" / "bin"  # as if everything were installed
    programs.mkdir(parents=True)
    (programs / "python").symlink_to(sys.executable)
    (programs / "llama-server-vulkan").touch()
    (folder / "tiny.gguf").touch()
    (folder / "vllm.md").write_text("## vLLM 0.32.0\n\n| up | 1 | 1 | 1 | exact |  |\n")

    options = ("--only", "ollama", "--ollama", binary, "--step", "aborts", "--step", "errors", "--page", written)
    ran = subprocess.run(
        (sys.executable, "-m", "live", "--folder", folder, *options),
        env={**os.environ, "PYTHONPATH": str(BENCH)},
        capture_output=True,
        check=False,
    )

    text = written.read_text()
    assert (ran.returncode, faults(text)) == (0, []), ran.stdout.decode()
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## vLLM 0.32.0", "## Ollama 0.33.0-rc2"]
    assert {"aborted", "running, afterwards", "HTTP responses, 4xx"} <= {row[0] for row in rows_of(text)}
