"""For how long an engine is left alone that would not go to sleep if it were asked."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from llm_headroom.config.endpoint import Endpoint
from llm_headroom.scrape.visitors import LONGEST, LOOK, PATIENCE, Visitors
from proc_tree import ProcTree

if TYPE_CHECKING:
    from pathlib import Path

CLIENT = "01"
"""The state of an established connection in /proc/net/tcp."""


@pytest.fixture
def tree(tmp_path: Path) -> ProcTree:
    tree = ProcTree(tmp_path)
    tree.listen(8080, 7)
    return tree


def about(seconds: float) -> object:
    """So many seconds, whenever the test began."""
    return pytest.approx(seconds, abs=60.0)


def test_an_engine_of_this_host_is_left_alone_until_a_client_is_seen(tree: ProcTree) -> None:
    visitors = Visitors(Endpoint(url="http://127.0.0.1:8080"), tree.proc)
    now = time.monotonic()

    assert visitors.seen_all
    assert visitors.quiet_for(now + PATIENCE / 2) == 0.0
    assert visitors.quiet_for(now + 5000.0) == about(5000.0)
    tree.listen(8080, 8, state=CLIENT)
    assert visitors.quiet_for(now + 5000.0 + LOOK / 2) == about(5000.0)  # the table is not looked at so soon
    assert visitors.quiet_for(now + 5000.0 + 2 * LOOK) == 0.0
    assert visitors.quiet_for(now + 5000.0 + 2 * LOOK) == 0.0


def test_an_engine_elsewhere_is_asked_now_and_then(tree: ProcTree) -> None:
    visitors = Visitors(Endpoint(url="http://198.51.100.9:8080"), tree.proc)
    now = time.monotonic()

    assert not visitors.seen_all
    assert visitors.quiet_for(now + 300.0) == about(300.0)
    assert visitors.quiet_for(now + 5000.0) == LONGEST
    visitors.work_seen(now + 5000.0)
    assert visitors.quiet_for(now + 5000.0 + PATIENCE / 2) == 0.0


def test_of_a_port_that_nobody_listens_on_here_nothing_is_seen(tree: ProcTree) -> None:
    assert not Visitors(Endpoint(url="http://127.0.0.1:8081"), tree.proc).seen_all
