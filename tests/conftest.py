"""Options and fixtures that several tests share."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

import nvml_library
from balance import balanced

if TYPE_CHECKING:
    from pathlib import Path

# How long an example takes says how busy the machine is; and what a change has broken is told from what luck has found.
settings.register_profile("same", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("explore", settings.get_profile("same"), derandomize=False, max_examples=1000)
settings.load_profile("same")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--update` writes what golden files should hold, to be reviewed as a diff."""
    parser.addoption("--update", action="store_true", help="write the golden files anew")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests for the processes that run them."""

    def seconds(item: pytest.Item, marker: str) -> float:
        found = item.get_closest_marker(marker)
        return found.args[0] if found else 0.0

    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if processes > 1:
        items[:] = balanced(items, processes, lambda item: str(item.path), seconds)


gc.disable()  # until all tests are collected, which leaves no garbage: an eighth of its CPU went into looking for some


def pytest_collection_finish() -> None:
    """What was collected stays to the end: a tenth of the tests' CPU went into looking for garbage among it."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def update(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written."""
    return bool(request.config.getoption("--update"))


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stub of NVML, built once."""
    return nvml_library.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nvml_library.Description:
    """One H100 as the stub tells of it."""
    description = nvml_library.Description(tmp_path / "machine", nvml_library.fixture("h100"))
    for name, value in description.environment().items():
        monkeypatch.setenv(name, value)
    return description
