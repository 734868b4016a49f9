"""From which number on a finding is one, and from which second on it is the state: both sides of each bound."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from llm_headroom import schema
from llm_headroom.derive import gpu_state, state
from llm_headroom.derive.counts import COUNTED, Sample
from llm_headroom.derive.settled import Finding, Settled, Sign, settle
from llm_headroom.derive.state import Known, Memory
from llm_headroom.model import Cause, Failure, Health, Histogram, Judged, Point, Series, Snapshot, State
from state_metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_headroom.model import Metric

NOW = 1000.0
EPOCH = 1_800_000_000.0


def snapshot(**amounts: float) -> Snapshot:
    points = [
        Point(Series(METRICS[name][0], {"model": "m", **METRICS[name][1]}), value, "")
        for name, value in amounts.items()
        if name != "first"
    ]
    if "first" in amounts:
        firsts = Histogram((1.0,), (amounts["first"],), 1.0)
        points.append(Point(Series(schema.TIME_TO_FIRST_TOKEN, {"model": "m"}), firsts, ""))
    return Snapshot(target="t", engine="vllm", taken=EPOCH, points=tuple(points), health=Health(up=True))


def sample(at: float, **counts: float) -> Sample:
    return Sample(at, tuple(counts.get(name) for name in COUNTED))


def judged(known: Known | None, **amounts: float) -> tuple[str, str]:
    """The state and its reason at `NOW`, after what is known."""
    memory = Memory(0.0, ever_up=True, models={} if known is None else {"m": known})
    _, (found,) = state.judge(memory, snapshot(**amounts), NOW)
    return found.state.value, found.reason


# Engines -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("amounts", "expected"),
    [
        ({"running": 4.0, "waiting": 3.0}, ("ok", "4 running, 3 waiting")),
        ({"running": 0.0}, ("idle", "no requests")),
        ({"running": 0.0, "waiting": 1.0}, ("ok", "0 running, 1 waiting")),
        ({"waiting": 0.0}, ("ok", "0 waiting")),
        ({"firsts": 3.0}, ("ok", "no problem found")),
        ({"running": 4.0, "asleep": 1.0}, ("asleep", "it is in sleep mode and holds no GPU memory")),
        ({"running": 4.0, "asleep": 0.0}, ("ok", "4 running")),
        ({"asleep": 1.0}, ("asleep", "it is in sleep mode and holds no GPU memory")),
        ({"models": 0.0}, ("idle", "no model is in memory; one is loaded by the next request")),
        ({"models": 0.0, "running": 0.0}, ("idle", "no model is in memory; one is loaded by the next request")),
        ({"models": 0.0, "running": 1.0}, ("ok", "1 running")),
        ({"models": 1.0, "running": 0.0}, ("idle", "no requests")),
        ({"healthy": 1.0}, ("ok", "no problem found")),
        ({"healthy": 1.0, "sick": 0.0}, ("tight", "1 of 2 workers unhealthy")),
        ({"healthy": 0.0, "sick": 0.0}, ("failing", "2 of 2 workers unhealthy")),
        ({"stalled": 1.0, "running": 2.0}, (
            "stalled", "2 running and 0 waiting requests, and neither steps nor tokens have increased for a minute",
        )),
        ({"stalled": 0.0, "running": 2.0}, ("ok", "2 running")),
    ],
)  # fmt: skip
def test_what_one_collection_shows(amounts: dict[str, float], expected: tuple[str, str]) -> None:
    assert judged(None, **amounts) == expected


@pytest.mark.parametrize("name", ["running", "waiting", "firsts", "first", "healthy"])
def test_any_of_these_says_whether_requests_wait(name: str) -> None:
    assert judged(None, usage=0.1)[0] == "unknown"
    assert judged(None, usage=0.1, **{name: 1.0})[0] != "unknown"


def test_an_engine_of_which_only_ends_are_seen_does_not_look_fine() -> None:
    """So a version looks that has renamed what says whether requests wait."""
    ends = {"usage": 0.1, "finished": 3.0, "generated": 9.0, "prompts": 9.0, "asleep": 0.0, "stalled": 0.0}
    assert judged(None, **ends)[0] == "unknown"
    assert judged(Known(), **ends, running=1.0)[0] == "ok"


@pytest.mark.parametrize(
    ("amounts", "tight"),
    [
        ({"room": 1.9, "usage": 0.71}, True),
        ({"room": 2.0, "usage": 0.71}, False),
        ({"room": 1.9, "usage": 0.7}, False),
        ({"room": 1.9}, False),
        ({"usage": 0.9}, False),
        ({"room": 1.0, "usage": 0.9, "limit": 8.0, "running": 5.0, "waiting": 1.0}, True),
        ({"room": 1.0, "usage": 0.9, "limit": 8.0, "running": 5.0, "waiting": 2.0}, False),
        ({"room": 1.0, "usage": 0.9, "limit": 1.0}, False),
        ({"room": 1.0, "usage": 0.9, "limit": 2.0}, True),
    ],
)
def test_little_room_is_tight(amounts: dict[str, float], *, tight: bool) -> None:
    assert (judged(None, finished=1.0, **amounts)[0] == "tight") is tight


def waiting(progress: tuple[float | None, ...], moved: float, unqueued: float) -> Known:
    return Known(samples=(sample(NOW),), progress=progress, moved=moved, unqueued=unqueued)


@pytest.mark.parametrize(
    ("known", "amounts", "reason"),
    [
        (waiting((7.0, None, None), 820.0, 0.0), {"first": 7.0}, "1 request waiting, and no first token for 3 min"),
        (waiting((7.0, None, None), 0.0, 820.0), {"first": 7.0}, "1 request waiting, and no first token for 3 min"),
        (waiting((7.0, None, None), 821.0, 0.0), {"first": 7.0}, None),
        (waiting((7.0, None, None), 0.0, 821.0), {"first": 7.0}, None),
        (waiting((7.0, None, None), 820.0, 0.0), {"first": 8.0}, None),
        (waiting((7.0, None, None), 820.0, 0.0), {"first": 7.0, "waiting": 0.0}, None),
        (waiting((None, 9.0, None), 820.0, 0.0), {"prompts": 9.0, "waiting": 2.0},
         "2 requests waiting, and no request admitted for 3 min"),
        (waiting((None, None, 9.0), 820.0, 0.0), {"finished": 9.0},
         "1 request waiting, and no request admitted for 3 min"),
        (waiting((None, None, None), 820.0, 0.0), {}, None),
    ],
)  # fmt: skip
def test_requests_that_wait_while_none_is_taken_in_are_blocked(
    known: Known, amounts: dict[str, float], reason: str | None
) -> None:
    found = judged(known, running=1.0, **{"waiting": 1.0, **amounts})
    assert found == (("blocked", reason) if reason else (found[0], found[1]))
    assert (found[0] == "blocked") is (reason is not None)


@pytest.mark.parametrize(
    ("part", "whole", "failing"),
    [
        ({"failed": 5.0}, {"finished": 94.0}, True),
        ({"failed": 5.0}, {"finished": 95.0}, False),  # exactly a twentieth
        ({"failed": 1.0}, {"finished": 2.0}, False),  # three requests are too few
        ({"failed": 1.0}, {"finished": 3.0}, True),
        ({"wrong": 6.0}, {"responses": 94.0}, True),
        ({"wrong": 5.0}, {"responses": 95.0}, False),
        ({"lost": 6.0}, {"routed": 100.0}, True),
        ({"lost": 5.0}, {"routed": 100.0}, False),
    ],
)
def test_requests_that_fail(part: dict[str, float], whole: dict[str, float], *, failing: bool) -> None:
    none = sample(700.0, **dict.fromkeys(COUNTED, 0.0))
    found = judged(Known(samples=(none,)), running=1.0, **part, **whole)
    assert (found[0] == "failing") is failing


def test_failures_are_counted_within_five_minutes() -> None:
    older, newer = sample(699.0, finished=0.0, failed=0.0), sample(701.0, finished=0.0, failed=10.0)
    counts = {"finished": 90.0, "failed": 10.0, "running": 1.0}
    reason = "10 of 100 requests of the last 5 min failed (10%)"
    assert judged(Known(samples=(older, newer)), **counts) == ("failing", reason)
    assert judged(Known(samples=(older, replace_at(newer, 700.0))), **counts)[0] == "ok"
    assert judged(Known(samples=(newer,)), **counts)[0] == "ok"


def replace_at(one: Sample, at: float) -> Sample:
    return one._replace(at=at)


@pytest.mark.parametrize(
    ("firsts", "slow", "amounts", "reason"),
    [
        (100.0, 3.0, {}, "3 of 100 first tokens of the last 2 min (3%) came later than the objective"),
        (101.0, 3.0, {}, None),
        (3.0, 3.0, {"objective": 2.5}, "3 of 3 first tokens of the last 2 min (100%) came later than 2.5 s"),
        (2.0, 2.0, {}, None),
        (98.0, 0.0, {"overdue": 2.0}, None),
        (
            97.0,
            0.0,
            {"overdue": 3.0, "unended": 9.0},
            "3 of 100 first tokens of the last 2 min (3%) came later than the objective; 3 are still awaited",
        ),
        (98.0, 0.0, {"overdue": 3.0}, None),
        (96.0, 2.0, {"unended": 9.0}, None),
        (
            96.0,
            1.0,
            {"overdue": 2.0},
            "3 of 98 first tokens of the last 2 min (3%) came later than the objective; 2 are still awaited",
        ),
        (
            0.0,
            0.0,
            {"overdue": 3.0, "objective": 2.5},
            "3 of 3 first tokens of the last 2 min (100%) came later than 2.5 s; 3 are still awaited",
        ),
    ],
)
def test_slow_first_tokens(firsts: float, slow: float, amounts: dict[str, float], reason: str | None) -> None:
    none = sample(880.0, firsts=0.0, good=0.0)
    found = judged(Known(samples=(none,)), running=1.0, firsts=firsts, good=firsts - slow, **amounts)
    assert found == (("slow", reason) if reason else ("ok", "1 running"))


@pytest.mark.parametrize(
    ("firsts", "overdue", "reason"),
    [
        (0.0, 1.0, "1 request waiting for a first token for longer than 2.5 s"),
        (60.0, 2.0, "2 requests waiting for a first token for longer than 2.5 s"),
        (65.0, 2.0, None),
        (0.0, 0.0, None),
    ],
)
def test_few_first_tokens_that_are_owed_call_nobody_and_are_not_fine(
    firsts: float, overdue: float, reason: str | None
) -> None:
    none = sample(880.0, firsts=0.0, good=0.0)
    amounts = {"firsts": firsts, "good": firsts, "overdue": overdue, "objective": 2.5}
    found = judged(Known(samples=(none,)), running=1.0, **amounts)
    assert found == (("tight", reason) if reason else ("ok", "1 running"))


def test_what_is_remembered_of_a_model() -> None:
    def seen(at: float, known: Known, **amounts: float) -> Known:
        memory, _ = state.judge(Memory(0.0, models={"m": known}), snapshot(**amounts), at)
        return memory.models["m"]

    known = Known(samples=(sample(0.0), sample(672.0), sample(673.0)), progress=(None, None, 1.0), moved=5.0)
    later = seen(NOW, known, finished=2.0, running=1.0)
    assert [each.at for each in later.samples] == [673.0, NOW]
    assert (later.moved, later.unqueued, later.progress) == (NOW, NOW, (None, None, 2.0))
    same = seen(686.9, known, finished=1.0, waiting=1.0)
    assert same.samples == known.samples
    assert (same.moved, same.unqueued) == (5.0, 0.0)
    assert [each.at for each in seen(687.0, known, finished=1.0).samples] == [672.0, 673.0, 687.0]


@pytest.mark.parametrize(
    ("amounts", "moved", "at_work"),
    [
        ({"running": 0.0}, 0.0, False),
        ({"waiting": 0.0}, 0.0, False),
        ({"running": 1.0}, 0.0, True),
        ({"waiting": 1.0}, 0.0, True),
        ({"running": 0.0}, 970.0, False),
        ({"running": 0.0}, 971.0, True),
    ],
)
def test_whether_an_engine_is_at_work(amounts: dict[str, float], moved: float, *, at_work: bool) -> None:
    known = Known(samples=(sample(NOW),), progress=(None, None, None), moved=moved)
    memory, _ = state.judge(Memory(0.0, models={"m": known}), snapshot(**amounts), NOW)
    assert (memory.ever_up, memory.at_work) == (True, at_work)


@pytest.mark.parametrize(
    ("memory", "last", "starts", "expected"),
    [
        (Memory(NOW - 90.0), None, (), ("loading", "no response since llm-headroom started 90 s ago: why")),
        (Memory(0.0, ever_up=True), EPOCH - 50.0, (), ("down", "why")),
        (Memory(0.0, ever_up=True), EPOCH - 50.0, (EPOCH - 50.0,), ("down", "why")),
        (Memory(0.0, ever_up=True), None, (EPOCH - 40.0,), ("down", "why")),
        (Memory(0.0, ever_up=True), EPOCH - 50.0, (EPOCH - 60.0, EPOCH - 40.0),
         ("loading", "its process started 40 s ago and does not respond yet: why")),
        (Memory(0.0, ever_up=True, at_work=True), EPOCH - 50.0, (EPOCH - 40.0,),
         ("down", "it ended while it had requests; its process started 40 s ago and does not respond yet: why")),
    ],
)  # fmt: skip
def test_what_does_not_answer_is_down_or_loading(
    memory: Memory, last: float | None, starts: Sequence[float], expected: tuple[str, str]
) -> None:
    health = Health(up=False, error=Failure(Cause.REFUSED, "why"), last_success=last)
    failed = Snapshot(target="t", engine="vllm", taken=EPOCH, health=health)
    beside = [Point(Series(schema.HOST_PROCESS_START, {"pid": str(start)}), start, "") for start in starts]
    beside.append(Point(Series(schema.HOST_MEMORY_USED, {}), EPOCH + 99.0, ""))
    after, (found,) = state.judge(memory, failed, NOW, beside)
    assert ((found.state.value, found.reason), found.model) == (expected, "")
    assert (after.ever_up, after.at_work) == (memory.ever_up, memory.at_work)


def test_what_was_not_read_is_unknown() -> None:
    silent = Snapshot(target="t", engine="vllm", taken=EPOCH, health=Health(up=False))
    _, (found,) = state.judge(None, silent, NOW)
    assert (found.state, found.reason) == (State.UNKNOWN, "it was not read")


# Settling ------------------------------------------------------------------------------------------------------------
ORDER = (State.DOWN, State.SLOW, State.TIGHT, State.OK)
RISE = {State.DOWN: 9.0, State.TIGHT: 14.0}
CLEAR = {State.SLOW: 60.0}


def settled(known: Settled | None, at: float, *states: State) -> Settled:
    return settle(
        known, [Finding(each, f"{each.value} at {at:g}") for each in states], at, EPOCH + at, ORDER, RISE, CLEAR
    )


OK = Settled(state=State.OK, reason="fine", since=1.0, seen=0.0, signs={State.OK: Sign(0.0, 0.0, "fine")})


def test_the_first_reading_holds_at_once() -> None:
    first = settled(None, 5.0, State.DOWN, State.OK)
    assert (first.state, first.reason, first.since, first.seen) == (State.DOWN, "down at 5", EPOCH + 5.0, 5.0)
    assert first.judged(model="m") == Judged(state=State.DOWN, reason="down at 5", since=EPOCH + 5.0, model="m")
    none = settled(None, 5.0)
    assert none == Settled(state=State.UNKNOWN, reason="nothing was seen", since=EPOCH + 5.0, seen=5.0)
    twice = settle(None, [Finding(State.OK, "a"), Finding(State.OK, "b")], 5.0, 5.0, ORDER, RISE, CLEAR)
    assert twice.reason == "a"


@pytest.mark.parametrize(("seconds", "tight"), [(0.0, False), (13.9, False), (14.0, True)])
def test_a_finding_that_must_last_does(seconds: float, *, tight: bool) -> None:
    seen = settled(OK, 10.0, State.TIGHT, State.OK)
    found = settled(seen, 10.0 + seconds, State.TIGHT, State.OK)
    assert (found.state is State.TIGHT) is tight
    assert found.since == (EPOCH + 10.0 + seconds if tight else 1.0)
    assert found.signs[State.TIGHT].first == 10.0


@pytest.mark.parametrize(
    ("times", "down"),
    [
        ((8.0,), False),
        ((9.0,), False),
        ((100.0,), False),
        ((8.9, 8.9), False),
        ((5.0, 9.0), True),
        ((100.0, 101.0), True),
    ],
)
def test_where_the_state_has_no_sign_any_more_its_last_one_counts(times: tuple[float, ...], *, down: bool) -> None:
    found = OK
    for at in times:
        found = settled(found, at, State.DOWN)
    assert (found.state is State.DOWN) is down
    assert found.seen == (times[-1] if down else 0.0)


def test_others_hold_at_once_and_go_on_until_they_are_cleared() -> None:
    slow = settled(OK, 10.0, State.SLOW, State.OK)
    assert (slow.state, slow.since) == (State.SLOW, EPOCH + 10.0)
    still = settled(slow, 69.0, State.OK)
    assert (still.state, still.reason, still.since, still.seen) == (
        State.SLOW, "slow at 10; last seen 59 s ago", EPOCH + 10.0, 10.0,
    )  # fmt: skip
    over = settled(still, 70.0, State.OK)
    assert (over.state, over.reason, over.since) == (State.OK, "ok at 70", EPOCH + 70.0)
    assert settled(OK, 10.0).state is State.OK


# GPUs ----------------------------------------------------------------------------------------------------------------
def gpu(metric: Metric, value: float, gpu: str = "0", **labels: str) -> Point:
    return Point(Series(metric, {"gpu": gpu, "uuid": f"GPU-{gpu}", **labels}), value, "")


INFO = gpu(schema.GPU_INFO, 1.0)


def gpus(
    *points: Point,
    memory: gpu_state.Memory | None = None,
    error: Failure | None = None,
    **more: Any,  # noqa: ANN401
) -> list[tuple[str, str, str]]:
    """The GPUs and their states and reasons after a reading."""
    health = Health(up=error is None, error=error)
    reading = Snapshot(target="gpu", engine="nvidia", taken=EPOCH, points=points, health=health)
    after, found = gpu_state.judge(memory, reading, NOW, **more)
    assert len(after.gpus) == len(found)
    return [(each.gpu, each.state.value, each.reason) for each in found]


@pytest.mark.parametrize(
    ("points", "state"),
    [
        ([gpu(schema.GPU_XID_LAST, EPOCH - 599.0, xid="79")], "error"),
        ([gpu(schema.GPU_XID_LAST, EPOCH - 600.0, xid="79")], "ok"),
        ([gpu(schema.GPU_XID_LAST, EPOCH, xid="x79")], "ok"),
        ([gpu(schema.GPU_XID_LAST, EPOCH, xid="31"), gpu(schema.GPU_XID_LAST, EPOCH, xid="48")], "error"),
        ([gpu(schema.GPU_RECOVERY_ACTION, 0.0), gpu(schema.GPU_ROW_REMAP_FAILURE, 0.0)], "ok"),
        ([gpu(schema.GPU_THROTTLE, 0.0, reason="hw_thermal")], "ok"),
        ([gpu(schema.GPU_MEMORY_HEADROOM, 2.0**29 - 1.0)], "full"),
        ([gpu(schema.GPU_MEMORY_HEADROOM, 2.0**29)], "ok"),
        ([gpu(schema.GPU_MEMORY_HEADROOM, 0.9e9), gpu(schema.GPU_MEMORY_TOTAL, 91e9)], "full"),
        ([gpu(schema.GPU_MEMORY_HEADROOM, 0.9e9), gpu(schema.GPU_MEMORY_TOTAL, 89e9)], "ok"),
        ([gpu(schema.GPU_MEMORY_TOTAL, 91e9)], "ok"),
    ],
)
def test_from_which_number_on_a_gpu_is_in_trouble(points: list[Point], state: str) -> None:
    ((_, found, _),) = gpus(INFO, *points)
    assert found == state


@pytest.mark.parametrize(
    ("action", "words"),
    [(1.0, "reset the GPU"), (2.0, "reboot the node"), (3.0, "end peer-to-peer work"), (4.0, "drain and reset"),
     (5.0, "action 5")],
)  # fmt: skip
def test_what_a_driver_requests(action: float, words: str) -> None:
    reason = f"its driver requests a recovery: {words}"
    assert gpus(INFO, gpu(schema.GPU_RECOVERY_ACTION, action)) == [("0", "error", reason)]


@pytest.mark.parametrize(
    "metric", [schema.GPU_INFO, schema.GPU_MEMORY_TOTAL, schema.GPU_UTILIZATION, schema.GPU_TEMPERATURE]
)
def test_a_gpu_that_gives_any_of_these_can_be_read(metric: Metric) -> None:
    assert gpus(gpu(metric, 1.0)) == [("0", "ok", "no problem found")]
    assert gpus(gpu(schema.GPU_MEMORY_HEADROOM, 1.0)) == []


def test_gpus_that_were_there() -> None:
    first = Snapshot(target="gpu", engine="nvidia", taken=EPOCH, points=(INFO,), health=Health(up=True))
    memory, _ = gpu_state.judge(None, first, NOW - 5.0)
    assert gpus(memory=memory) == [("0", "ok", "no problem found")]
    lost = replace(memory, gpus={known: replace(each, signs={}, seen=-9.0) for known, each in memory.gpus.items()})
    assert gpus(memory=lost) == [("0", "lost", "it can no longer be read")]
    why = Failure(Cause.DRIVER, "why")
    assert gpus(memory=lost, error=why) == [("0", "unknown", "why")]
    fatal = gpu(schema.GPU_XID_LAST, EPOCH, xid="79")
    assert gpus(memory=lost, error=why, retained=[fatal]) == [("0", "error", "fatal error Xid 79, 0 s ago")]
    assert gpus(fatal, memory=lost) == [("0", "lost", "it can no longer be read")]


@pytest.mark.parametrize(
    ("listed", "indices", "lost"),
    [
        (2.0, ("0",), "1 of 2 GPUs cannot be read"),
        (1.0, ("0",), None),
        (1.0, ("0", "0:1"), None),
        (2.0, ("0", "0:1"), "1 of 2 GPUs cannot be read"),
        (0.0, (), None),
    ],
)
def test_gpus_that_are_listed_and_were_never_read(listed: float, indices: Sequence[str], lost: str | None) -> None:
    infos = [gpu(schema.GPU_INFO, 1.0, index) for index in indices]
    found = gpus(Point(Series(schema.GPUS, {}), listed, ""), *infos)
    assert [each for each in found if not each[0]] == ([("", "lost", lost)] if lost else [])
    assert gpus(error=Failure(Cause.DRIVER, "why")) == [("", "unknown", "why")]
