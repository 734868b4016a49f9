"""A real Prometheus over the scrapes of simulated runs: blocks made by promtool, expressions asked over HTTP."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Self
from urllib.parse import urlencode

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import TracebackType

EPOCH: Final = 1_767_225_600
"""Unix time of every run's begin: 2026-01-01 00:00, on a block's edge."""
STEP_SECONDS: Final = 15.0
LOOKBACK: Final = "20s"
"""Backfilled series get no staleness markers; so a series that has ended is gone after one missed scrape instead."""
STARTING_SECONDS: Final = 60.0


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
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "--quiet", str(whole), str(directory / "data")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"promtool: {done.stderr.strip() or done.stdout.strip()}")
    whole.unlink()


class Prometheus:
    """A server on the blocks below a directory, as a context; it scrapes nothing."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start, and wait until it answers.

        Raises:
            RuntimeError: it ended, or did not answer in time.
        """
        config, log = self._directory / "prometheus.yml", self._directory / "prometheus.log"
        config.write_text("{}\n")
        command = [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={self._directory / 'data'}",
            "--storage.tsdb.retention.time=100y",
            f"--web.listen-address=127.0.0.1:{self._port}",
            f"--query.lookback-delta={LOOKBACK}",
            "--query.max-samples=200000000",
            "--query.timeout=10m",
        ]
        with log.open("wb") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out)
        deadline = time.monotonic() + STARTING_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if self._ask("/-/ready")[0] == http.client.OK:
                    return self
            except OSError:
                pass
            time.sleep(0.05)
        self._stop()
        raise RuntimeError(f"prometheus did not start: {log.read_text()[-500:]}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self._stop()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def _ask(self, path: str, form: dict[str, str] | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        try:
            if form is None:
                connection.request("GET", path)
            else:
                headers = {"Content-Type": "application/x-www-form-urlencoded"}
                connection.request("POST", path, urlencode(form), headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def holds(self, expression: str, seconds: float) -> list[Vector]:
        """When an alert's expression holds, at every 15 s of the first `seconds`.

        Raises:
            RuntimeError: Prometheus refuses the expression.
        """
        form = {
            "query": expression,
            "start": str(EPOCH),
            "end": str(EPOCH + seconds),
            "step": str(STEP_SECONDS),
        }
        status, body = self._ask("/api/v1/query_range", form)
        answer = json.loads(body)
        if status != http.client.OK:
            raise RuntimeError(f"{expression}: {answer.get('error', status)}")
        return [
            Vector(series["metric"], tuple(float(at) - EPOCH for at, _ in series["values"]))
            for series in answer["data"]["result"]
        ]
