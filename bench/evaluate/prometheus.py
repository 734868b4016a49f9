"""A real Prometheus over the scrapes of simulated runs: blocks made by promtool, expressions asked over HTTP."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Final, NamedTuple, Self
from urllib.parse import urlencode

from llm_headroom.commands import programs

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

EPOCH: Final = 1_767_225_600
"""Unix time of every run's begin: 2026-01-01 00:00, on a block's edge."""
STEP_SECONDS: Final = 15.0
MOST_POINTS: Final = 11_000
"""What Prometheus answers of a series at a time."""
LOOKBACK: Final = "20s"
"""Backfilled series get no staleness markers; so a series that has ended is gone after one missed scrape instead."""


class Vector(NamedTuple):
    """One series of an answer: its labels, and when it had a value, in seconds since the runs' begin."""

    labels: dict[str, str]
    times: tuple[float, ...]


def missing() -> str | None:
    """Which of the programs that are needed is not installed."""
    return next((name for name in ("prometheus", "promtool") if shutil.which(name) is None), None)


def backfill(files: Iterable[Path], directory: Path) -> None:
    """Make blocks of files of samples `name{labels} value timestamp`, and remove the files.

    Raises:
        RuntimeError: promtool refuses them; it says why.
    """
    whole = directory / "scrapes.openmetrics"
    with whole.open("wb") as out:
        for file in files:
            out.write(file.read_bytes())
            file.unlink()
        out.write(b"# EOF\n")
    # Few blocks, since the whole file is read again for each; the option is hidden from promtool's help.
    command = ["promtool", "tsdb", "create-blocks-from", "--max-block-duration=200h", "openmetrics", "--quiet"]
    command += [str(whole), str(directory / "data")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"promtool: {done.stderr.strip() or done.stdout.strip()}")
    whole.unlink()


class Prometheus:
    """A server on the blocks below a directory, as a context; it scrapes nothing."""

    def __init__(self, directory: Path) -> None:
        """Start it.

        Raises:
            NotStartedError: it is not installed.
        """
        self._program = programs.prometheus(
            directory,
            {},
            "--storage.tsdb.retention.time=100y",
            f"--query.lookback-delta={LOOKBACK}",
            "--query.max-samples=200000000",
            "--query.timeout=10m",
        )

    def __enter__(self) -> Self:
        """Wait until it answers.

        Raises:
            NotStartedError: it ended, or did not answer in time.
        """
        self._program.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._program.end()

    def holds(self, expression: str, seconds: float) -> list[Vector]:
        """When an alert's expression holds, at every 15 s of the first `seconds`.

        Raises:
            RuntimeError: Prometheus refuses the expression.
        """
        found: dict[frozenset[tuple[str, str]], Vector] = {}
        part = STEP_SECONDS * (MOST_POINTS - 1)
        begin = 0.0
        while begin <= seconds:
            for labels, times in self._held(expression, begin, min(begin + part, seconds)):
                key = frozenset(labels.items())
                known = found.get(key, Vector(labels, ()))
                found[key] = known._replace(times=(*known.times, *times))
            begin += part + STEP_SECONDS
        return [*found.values()]

    def _held(self, expression: str, begin: float, end: float) -> list[Vector]:
        form = {
            "query": expression,
            "start": str(EPOCH + begin),
            "end": str(EPOCH + end),
            "step": str(STEP_SECONDS),
        }
        connection = http.client.HTTPConnection(self._program.address, timeout=600)
        try:
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            connection.request("POST", "/api/v1/query_range", urlencode(form), headers)
            response = connection.getresponse()
            answer = json.load(response)
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise RuntimeError(f"{expression}: {answer.get('error', response.status)}")
        return [
            Vector(series["metric"], tuple(float(at) - EPOCH for at, _ in series["values"]))
            for series in answer["data"]["result"]
        ]
