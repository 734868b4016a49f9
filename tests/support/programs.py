"""Programs of Debian that tests run, or the reason why a test is skipped."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest


def program(name: str, package: str) -> str:
    """The path of a program."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: {package})")
    return found


def prometheus_version() -> int:
    """The major version of the Prometheus that is installed."""
    said = subprocess.run(
        [program("prometheus", "prometheus"), "--version"], capture_output=True, text=True, check=True
    )
    version = re.search(r"version (\d+)\.", said.stdout + said.stderr)
    assert version is not None
    return int(version[1])
