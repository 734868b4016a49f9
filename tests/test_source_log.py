"""What is logged and counted of a source's collections, and what `check` reads beside them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import bounded
from captures import Capture
from engine_server import EngineServer, replayed
from llm_headroom import schema
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Config, GpuSettings, Target
from llm_headroom.model import Cause, Common, Failure, Health, Judged, Point, Series, Snapshot, State
from llm_headroom.poll.judging import EngineJudge, log_changes
from llm_headroom.poll.local import GPU_TARGET
from llm_headroom.poll.poller import Poller
from llm_headroom.poll.slot import Slot

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest

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


def test_a_line_of_an_engine_that_is_another_at_each_poll_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    slot = Slot("a", Quiet(), {})
    texts = [f"line {number}: malformed: 'it\\'s {number * 'x'} {number}.5'" for number in range(8, 12)]
    first, *later = [published(slot, caplog, warnings=(Failure(Cause.FORMAT, text),)) for text in texts]
    assert [row[-1] for row in first if row[0] == "source incomplete"] == [texts[0]]
    assert later == [[], [], []]
    other = Failure(Cause.FORMAT, "line 12: no name: 'x'")
    assert [row[-1] for row in published(slot, caplog, warnings=(other,))] == [other.message]


def exported(slot: Slot) -> dict[str, set[tuple[str, str]]]:
    """What is exported of a source: the metrics, with all of their labels."""
    found: dict[str, set[tuple[str, str]]] = {}
    for point in slot.points():
        found.setdefault(point.series.metric.name, set()).update(point.series.labels)
    return found


def test_what_is_exported_of_a_source_while_it_answers_and_while_it_does_not() -> None:
    kept = Point(Series(schema.HOST_PROCESSES, {"target": "a", "engine": "vllm"}), 2.0, "host")
    own = Point(Series(schema.REQUESTS_RUNNING, {"target": "a", "engine": "vllm"}), 3.0, "engine")
    slot = Slot("a", Quiet(retained=(kept,), capped={"model": 4}), {"zone": "eu"})
    assert slot.points() == []

    def seen(engine: str, *points: Point, up: bool) -> dict[str, set[tuple[str, str]]]:
        health = Health(up=up, error=None if up else GONE)
        slot.publish(Snapshot(target="a", engine=engine, taken=1.0, points=points, health=health))
        return exported(slot)

    unknown = seen("", up=False)
    assert unknown["llm_up"] == {("target", "a"), ("zone", "eu")}
    up = seen("vllm", own, up=True)
    assert up["llm_up"] == {("target", "a"), ("engine", "vllm"), ("zone", "eu")}
    assert {"llm_requests_running", "llm_engine_state", "llm_label_values_capped_total"} <= up.keys()
    assert "llm_host_processes" not in up, "a collection has them itself"
    down = seen("vllm", up=False)
    assert "llm_requests_running" not in down
    assert {"llm_host_processes", "llm_engine_state", "llm_source_errors_total"} <= down.keys()


def test_what_is_counted_of_a_source_that_does_not_answer_is_part_of_its_state(
    caplog: pytest.LogCaptureFixture,
) -> None:
    card = {"gpu": "0", "uuid": "GPU-0"}
    xid = Point(Series(schema.GPU_XID_LAST, {**card, "xid": "79"}), 940.0, "driver")

    def state(*retained: Point) -> list[str]:
        slot = Slot(GPU_TARGET, Quiet(retained=retained), {})
        read = (Point(Series(schema.GPU_TEMPERATURE, card), 50.0, "driver"),)
        before = slot.publish(Snapshot(target="a", engine="", taken=930.0, points=read, health=Health(up=True)))
        after = slot.publish(Snapshot(target="a", engine="", taken=950.0, health=Health(up=False, error=GONE)))
        return [each.state.value for snapshot in (before, after) for each in snapshot.states]

    assert state() == ["ok", "ok"]
    assert state(xid) == ["ok", "error"]
    assert [vars(each)["before"] for each in caplog.records if each.msg == "state"] == ["ok"]


def test_states_that_change_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def judged(state: State, **subject: str) -> Judged:
        return Judged(state=state, reason="why", since=1.0, **subject)

    def logged(states: tuple[Judged, ...], before: tuple[Judged, ...]) -> list[tuple[str, ...]]:
        caplog.clear()
        log_changes(Snapshot(target="a", engine="vllm", taken=1.0, health=Health(up=True), states=states), before)
        names = ("levelname", "msg", "target", "state", "reason", "model", "gpu", "before")
        return [tuple(vars(each)[name] for name in names if name in vars(each)) for each in caplog.records]

    fine, slow = judged(State.OK, model="m"), judged(State.SLOW, model="m")
    assert logged((fine,), ()) == []
    assert logged((slow,), ()) == [("WARNING", "state", "a", "slow", "why", "m")]
    assert logged((slow,), (slow,)) == []
    unknown = judged(State.UNKNOWN, model="m")
    assert logged((unknown,), ()) == [("INFO", "state", "a", "unknown", "why", "m")]
    assert logged((unknown,), (fine,)) == [("WARNING", "state", "a", "unknown", "why", "m", "ok")]
    assert logged((slow,), (fine,)) == [("WARNING", "state", "a", "slow", "why", "m", "ok")]
    assert logged((fine,), (slow,)) == [("INFO", "state", "a", "ok", "why", "m", "slow")]
    cards = tuple(judged(State.LOST, gpu=gpu, uuid=f"GPU-{gpu}") for gpu in "01")
    assert logged(cards, cards[:1]) == [("WARNING", "state", "a", "lost", "why", "1")]
    models = judged(State.SLOW, model="m"), judged(State.SLOW, model="n")
    assert logged(models, models[:1]) == [("WARNING", "state", "a", "slow", "why", "n")]


def test_states_are_exported_as_they_are_now() -> None:
    judge, memory = EngineJudge(), Common({"target": "a", "engine": "vllm"})

    def shown(state: State, labels: Mapping[str, str]) -> list[tuple[str, str]]:
        states = (Judged(state=state, reason="", since=1.0, model="m"),)
        snapshot = Snapshot(target="a", engine="vllm", taken=1.0, health=Health(up=True), states=states)
        points = judge.points(snapshot, labels)
        return [(each.series.label("state"), each.series.label("zone")) for each in points if each.value == 1.0]

    assert shown(State.OK, memory) == shown(State.OK, memory) == [("ok", "")]
    assert shown(State.SLOW, memory) == [("slow", "")]
    assert shown(State.SLOW, Common({**memory, "zone": "eu"})) == [("slow", "eu")]


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
