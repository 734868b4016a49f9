"""A real Prometheus with nothing to scrape, and questions to any Prometheus."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DEADLINE: Final = 60.0
"""Seconds after which Prometheus is held not to come."""


def needed(program: str) -> str:
    """Where a program of the Debian package prometheus is; skips the test where it is not installed."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"needs {program}: install the Debian package prometheus")
    return found


def asked(address: str, path: str, **parameters: str) -> Any:  # noqa: ANN401 - JSON
    """The data of an answer.

    Raises:
        AssertionError: the question was refused, for the reason that it holds.
    """
    url = f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    try:
        with urllib.request.urlopen(url, timeout=DEADLINE) as response:
            return json.load(response)["data"]
    except urllib.error.HTTPError as refused:
        with refused:
            raise AssertionError((parameters, refused.read().decode())) from refused


def ready(address: str) -> None:
    """Wait until a Prometheus answers questions; it listens before it does."""
    end = time.monotonic() + DEADLINE
    while True:
        try:
            with urllib.request.urlopen(f"http://{address}/-/ready", timeout=DEADLINE):
                return
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)


@contextmanager
def empty_prometheus(folder: Path) -> Iterator[str]:
    """The address of a Prometheus that scrapes nothing; ends with the block."""
    program = needed("prometheus")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    (folder / "prometheus.yml").write_text("{}\n")
    command = [
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            ready(address)
            yield address
        finally:
            process.terminate()
