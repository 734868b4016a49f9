"""What is logged and counted of a source's collections, and what `check` reads beside them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import bounded
from captures import Capture
from engine_server import EngineServer, replayed
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Config, GpuSettings, Target
from llm_headroom.model import Cause, Failure, Health, Snapshot
from llm_headroom.poll.poller import Poller, Slot

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest

    from llm_headroom.model import Point

SLOW = Failure(Cause.TIMEOUT, "late")
GONE = Failure(Cause.REFUSED, "refused")
NO_SLOTS = Failure(Cause.STATUS, "/slots answered 500")


@dataclass
class Quiet:
    """A source that nobody collects from: its snapshots are published by the test."""

    interval: float = 5.0
    retained: tuple[Point, ...] = ()
    capped: Mapping[str, int] = field(default_factory=dict)

    async def collect(self) -> Snapshot:
        """Never asked."""
        raise NotImplementedError

    async def estimate(self) -> None:
        """There is nothing to estimate."""

    async def close(self) -> None:
        """Nothing is open."""


def published(
    slot: Slot,
    caplog: pytest.LogCaptureFixture,
    engine: str = "vllm",
    **health: Any,  # noqa: ANN401 - fields of the class
) -> list[tuple[str, ...]]:
    """What a further snapshot brings into the log."""
    caplog.clear()
    slot.publish(Snapshot(target="a", engine=engine, taken=1.0, health=Health(**{"up": True, **health})))
    names = ("msg", "target", "engine", "version", "points", "cause", "error")
    rows = [vars(record) for record in caplog.records]
    return [tuple(str(row[name]) for name in names if name in row) for row in rows if row["msg"].startswith("source ")]


def test_what_changes_is_logged_and_failures_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    slot = Slot("a", Quiet(), {})
    down = {"up": False, "error": SLOW}

    assert published(slot, caplog, "", **down) == [("source down", "a", "unknown", "timeout", "late")]
    assert published(slot, caplog, "", **down) == []
    assert published(slot, caplog, "", up=False, error=GONE) == [("source down", "a", "unknown", "refused", "refused")]
    assert published(slot, caplog, version="1") == [("source up", "a", "vllm", "1", "0")]
    assert published(slot, caplog, version="1") == []
    assert published(slot, caplog, version="2") == [("source up", "a", "vllm", "2", "0")]
    incomplete = ("source incomplete", "a", "vllm", "status", "/slots answered 500")
    assert published(slot, caplog, version="2", warnings=(NO_SLOTS,)) == [incomplete]
    assert published(slot, caplog, version="2", warnings=(NO_SLOTS,)) == []
    late = ("source incomplete", "a", "vllm", "timeout", "late")
    assert published(slot, caplog, version="2", warnings=(NO_SLOTS, SLOW)) == [late]
    assert published(slot, caplog, version="2") == []
    assert published(slot, caplog, version="2", warnings=(NO_SLOTS,)) == [incomplete]
    assert slot.errors == {Cause.TIMEOUT: 3, Cause.REFUSED: 1, Cause.STATUS: 2}  # remembered ones count once


def test_check_reads_what_this_host_shows_of_an_engine_too() -> None:
    async def names(*, host: bool) -> set[str]:
        with EngineServer(replayed(Capture("vllm", "0.32.0", "saturated"))) as engine:
            target = Target(name="t", endpoint=Endpoint(url=engine.url))
            poller = Poller(Config(gpu=GpuSettings(enabled=False), host=host, targets=(target,)))
            try:
                await poller.once()
                (snapshot,) = poller.snapshots()
                return {point.series.metric.name for point in snapshot.points}
            finally:
                await poller.stop()

    async def both() -> tuple[set[str], set[str]]:
        return await names(host=True), await names(host=False)

    found: list[tuple[set[str], set[str]]] = []

    async def test() -> None:
        found.append(await both())

    bounded.run(test())
    ((here, alone),) = found
    assert "llm_host_processes" in here
    assert here >= alone
    assert not any(name.startswith("llm_host_") for name in alone)
