"""The states of engines and GPUs: what each collection shows, what holds, and that nothing unknown looks fine."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_headroom import schema
from llm_headroom.derive import gpu_state, state
from llm_headroom.model import (
    ENGINE_STATES,
    GPU_STATES,
    Cause,
    Failure,
    Health,
    Histogram,
    Judged,
    Level,
    Point,
    Series,
    Snapshot,
    State,
)
from state_metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_headroom.model import Metric

EPOCH = 1_800_000_000.0
METRICS_OF = {"first": schema.TIME_TO_FIRST_TOKEN, "waiting": schema.REQUESTS_WAITING}
REFUSED = Failure(Cause.REFUSED, "connection refused")


def point(metric: Metric, value: float | Histogram, **labels: str) -> Point:
    return Point(Series(metric, {"engine": "vllm", "target": "t", "model": "m", **labels}), value, "test")


def busy(**changes: float) -> list[Point]:
    """A collection of an engine at work; counters by name: finished, failed, firsts, good, prompts."""
    amounts = {"running": 4.0, "waiting": 0.0, **changes}
    points = [point(METRICS[name][0], value, **METRICS[name][1]) for name, value in amounts.items() if name != "first"]
    if "first" in amounts:
        points.append(point(schema.TIME_TO_FIRST_TOKEN, Histogram((math.inf,), (amounts["first"],), 1.0)))
    return points


def answer(points: Sequence[Point] | Failure, at: float, last: float | None = None) -> Snapshot:
    """A collection at a time in seconds: what it gave, or why it failed."""
    taken = EPOCH + at
    if isinstance(points, Failure):
        health = Health(up=False, error=points, last_success=None if last is None else EPOCH + last)
        return Snapshot(target="t", engine="vllm", taken=taken, health=health)
    return Snapshot(target="t", engine="vllm", taken=taken, points=tuple(points), health=Health(up=True))


@dataclass
class Watch:
    """A target that is collected again and again, each time `step` seconds later."""

    step: float = 5.0
    at: float = 0.0
    memory: state.Memory | None = None
    last: float | None = None
    states: tuple[Judged, ...] = field(default_factory=tuple)

    def polled(self, points: Sequence[Point] | Failure, *, beside: Sequence[Point] = ()) -> Judged:
        """The state of the first model after one more collection."""
        snapshot = answer(points, self.at, self.last)
        if snapshot.health.up:
            self.last = self.at
        self.memory, self.states = state.judge(self.memory, snapshot, 7.0 + self.at, beside=beside)
        self.at += self.step
        return self.states[0]


def test_an_engine_at_work_is_ok_and_says_how_much() -> None:
    judged = Watch().polled(busy(running=12, waiting=3))

    assert judged == Judged(state=State.OK, reason="12 running, 3 waiting", since=EPOCH, model="m")


@pytest.mark.parametrize(
    ("amounts", "growth", "states"),
    [
        ({"generated": 9000.0}, {"generated": 300.0}, [State.UNKNOWN, State.OK]),
        ({"generated": 9000.0}, {}, [State.UNKNOWN] * 36 + [State.OK]),
        ({"generated": 9000.0, "waiting": 5.0, "first": 9.0}, {"generated": 300.0}, [State.UNKNOWN] * 36),
        ({"waiting": 5.0, "first": 9.0}, {"first": 1.0}, [State.UNKNOWN, State.OK]),
        (
            {"firsts": 90.0, "good": 90.0, "prompts": 9.0},
            {"firsts": 1.0, "good": 1.0, "prompts": 9.0},
            [State.UNKNOWN, State.OK],
        ),
        (
            {"firsts": 90.0, "good": 90.0, "prompts": 9.0},
            {"firsts": 1.0, "prompts": 9.0},
            [State.UNKNOWN, State.UNKNOWN, State.UNKNOWN, State.SLOW],
        ),
        ({}, {}, [State.OK]),
        ({"running": 0.0, "generated": 9000.0}, {"running": 1.0}, [State.IDLE, State.OK]),
    ],
    ids=[
        "tokens come",
        "nothing moves",
        "a queue stands",
        "a queue moves",
        "in time",
        "late",
        "it shows nothing",
        "idle",
    ],
)
def test_requests_that_were_there_first_are_no_sign_that_all_is_well(
    amounts: dict[str, float], growth: dict[str, float], states: list[State]
) -> None:
    """An exporter that starts beside an engine at work knows nothing of before."""
    watch = Watch()

    found = [
        watch.polled(busy(**{name: value + poll * growth.get(name, 0.0) for name, value in amounts.items()})).state
        for poll in range(len(states))
    ]

    assert found == states


def test_what_has_been_seen_to_get_on_is_ok_however_it_goes_on() -> None:
    """Until something is wrong for long enough; also what begins where nobody asked."""
    at_work, idle = Watch(), Watch()
    at_work.polled(busy(generated=9000.0))
    at_work.polled(busy(generated=9300.0))
    idle.polled(busy(running=0, generated=9000.0))

    assert {watch.polled(busy(generated=9300.0)).state for watch in (at_work, idle) for _ in range(20)} == {State.OK}


def test_an_engine_that_is_met_at_work_says_what_it_has() -> None:
    reason = "4 running, 2 waiting; it was not seen yet whether it gets on with them"
    assert Watch().polled(busy(waiting=2, first=5)).reason == reason


def test_one_lost_poll_is_no_outage_but_two_are() -> None:
    watch = Watch()
    watch.polled(busy())

    assert watch.polled(REFUSED).state is State.OK
    judged = watch.polled(REFUSED)
    assert (judged.state, judged.reason, judged.model) == (State.DOWN, "connection refused", "m")
    assert judged.since == EPOCH + 10.0
    assert watch.polled(busy()).state is State.OK


@pytest.mark.parametrize("step", [5.0, 10.0, 30.0])
def test_one_lost_poll_is_no_outage_however_far_polls_are_apart_and_whatever_was_known(step: float) -> None:
    plain = point(schema.MODELS_LOADED, 1.0)
    for before in ([plain], busy(), busy(running=0)):
        watch = Watch(step=step)
        known = watch.polled(before).state

        assert watch.polled(REFUSED).state is known
        assert watch.polled(REFUSED).state is State.DOWN


def test_polls_that_are_lost_for_changing_reasons_are_an_outage_too() -> None:
    watch = Watch(step=60.0)
    watch.polled(busy())
    watch.polled(Failure(Cause.REDIRECT, "moved"))

    assert watch.polled(REFUSED).state is State.DOWN


def test_an_engine_whose_metrics_come_too_late_is_unknown_and_one_slow_poll_is_nothing() -> None:
    watch, late = Watch(), Failure(Cause.SLOW, "late")
    watch.polled(busy())

    assert watch.polled(late).state is State.OK
    assert [watch.polled(late).state for _ in range(3)][-1] is State.UNKNOWN
    assert watch.polled(busy()).state is State.OK


@pytest.mark.parametrize("failure", [Failure(Cause.TIMEOUT, "late"), REFUSED])
def test_an_engine_whose_proxy_sees_answers_is_unknown_and_down_a_minute_after_the_last_one(failure: Failure) -> None:
    watch = Watch()
    watch.polled(busy())
    states = []
    for poll in range(40):
        judged = watch.polled(failure, beside=[point(schema.REQUESTS_FINISHED, 7.0 + min(poll, 20), reason="stop")])
        states.append(judged.state)
        if poll == 10:
            assert judged.reason == f"clients get answers through its proxy, but it cannot be read: {failure.message}"
    assert set(states[2:32]) == {State.UNKNOWN}
    assert set(states[35:]) == {State.DOWN}
    assert watch.polled(busy()).state is State.OK
    before = [point(schema.REQUESTS_FINISHED, 99.0)]
    assert [watch.polled(failure, beside=before).state for _ in range(3)][-1] is State.DOWN


def test_an_engine_that_never_answered_is_loading_however_long_that_takes() -> None:
    watch = Watch(step=600.0)
    judged = [watch.polled(REFUSED) for _ in range(4)]

    assert {each.state for each in judged} == {State.LOADING}
    assert judged[-1].reason == "no response since llm-headroom started 30 min ago: connection refused"
    assert judged[-1].since == EPOCH


def test_a_process_that_began_after_the_last_answer_is_loading() -> None:
    watch = Watch()
    for _ in range(7):  # drained: no request for half a minute
        watch.polled(busy(running=0, finished=9))
    began = [point(schema.HOST_PROCESS_START, EPOCH + 38.0)]
    for _ in range(5):
        judged = watch.polled(REFUSED, beside=began)

    assert judged.state is State.LOADING
    assert judged.reason == "its process started 17 s ago and does not respond yet: connection refused"


@pytest.mark.parametrize(
    "last", [{"running": 4.0}, {"running": 0.0, "waiting": 1.0}, {"running": 0.0, "finished": 9.0}]
)
def test_one_that_ended_while_it_had_requests_is_down_until_it_answers_again(last: dict[str, float]) -> None:
    watch = Watch()
    for _ in range(7):
        watch.polled(busy(running=0, finished=8))
    watch.polled(busy(**{"finished": 8.0, **last}))
    began = [point(schema.HOST_PROCESS_START, EPOCH + 43.0)]
    judged = [watch.polled(REFUSED, beside=began) for _ in range(4)][-1]

    assert judged.state is State.DOWN
    assert judged.reason == (
        "it ended while it had requests; its process started 12 s ago and does not respond yet: connection refused"
    )
    assert watch.polled(busy()).state is State.OK


def another(model: str, running: float, *more: Point) -> list[Point]:
    return [point(schema.REQUESTS_RUNNING, running, model=model), *more]


def test_a_model_whose_place_another_takes_under_traffic_is_misread_until_it_is_back() -> None:
    watch = Watch()
    watch.polled(another("m", 4.0))
    for _ in range(3):
        watch.polled(another("other", 1.0))
    judged = {each.model: each for each in watch.states}

    assert judged["other"].state is State.OK
    assert judged["m"].state is State.MISREAD
    assert judged["m"].reason == "other is served here instead since 10 s, and this model had requests then"
    watch.polled(another("m", 1.0))
    assert {each.model: each.state for each in watch.states} == {"m": State.OK, "other": State.OK}


def test_a_model_that_was_replaced_is_missed_for_half_an_hour_over_an_outage_too() -> None:
    watch = Watch(step=60.0)
    watch.polled(another("m", 4.0))
    watch.polled(REFUSED)
    missed = []
    for _ in range(33):
        watch.polled(another("other", 1.0))
        missed.append("m" in {each.model for each in watch.states})

    assert missed == [True] * 30 + [False] * 3


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (another("m", 0.0), another("other", 1.0)),  # drained
        (another("m", 4.0), [*another("m", 4.0), *another("other", 1.0)]),  # one more
        (another("m", 4.0), another("other", 1.0, point(schema.MODEL_LOADED, 1.0, model="other"))),  # on demand
        (another("m", 4.0), another("", 1.0)),  # not named
        (another("", 4.0), another("other", 1.0)),
    ],
)
def test_models_that_may_come_and_go_are_not_missed(before: list[Point], after: list[Point]) -> None:
    watch = Watch(step=60.0)
    for _ in range(3):
        watch.polled(before)
    for _ in range(3):
        watch.polled(after)

    assert State.MISREAD not in {each.state for each in watch.states}


@pytest.mark.parametrize(
    ("cause", "wanted"),
    [
        (Cause.NOT_THIS_ENGINE, State.MISREAD),
        (Cause.FORMAT, State.MISREAD),
        (Cause.AUTH, State.UNKNOWN),
        (Cause.TLS, State.UNKNOWN),
        (Cause.INTERNAL, State.UNKNOWN),
        (Cause.TIMEOUT, State.LOADING),
        (Cause.SLOW, State.UNKNOWN),
    ],
)
def test_why_a_target_cannot_be_read_decides_what_it_is(cause: Cause, wanted: State) -> None:
    judged = Watch().polled(Failure(cause, "why"))

    assert judged.state is wanted
    assert judged.reason.endswith("why")
    assert judged.state.level is not Level.GOOD


def test_slow_first_tokens_within_two_minutes_and_a_minute_after() -> None:
    watch = Watch()
    states = []
    for poll in range(60):
        first, late = 10.0 * poll, max(0.0, min(poll - 10, 4)) * 2.0
        judged = watch.polled(busy(firsts=first, good=first - late, objective=2.5))
        states.append(judged.state)
        if poll == 14:
            assert judged.reason == "8 of 140 first tokens of the last 2 min (6%) came later than 2.5 s"
        if poll == 37:  # the counts are those of then, not of the last two minutes
            assert judged.reason.endswith(" came later than 2.5 s; last seen 10 s ago")

    assert states[:12] == [State.OK] * 12
    assert states[12:38] == [State.SLOW] * 26  # from the third late one until the window and a minute are over
    assert states[-1] is State.OK


def test_counters_that_begin_anew_are_of_another_life_however_soon_they_grow() -> None:
    """As where objectives change, or an engine restarts: one of two counters has passed what it was, the other not."""
    watch = Watch()
    watch.polled(busy(firsts=1000, good=500))
    for counted in range(50, 2000, 50):
        assert (counted, watch.polled(busy(firsts=counted, good=counted)).state) == (counted, State.OK)


def test_few_requests_are_slow_until_enough_come_in_time() -> None:
    """Three in two minutes, at whose pace the window of two minutes now and then has two."""
    watch = Watch()
    states = []
    for poll in range(360):
        first = poll // 8
        late = max(0.0, min(first, 20.0) - 5.0)
        states.append(watch.polled(busy(firsts=first, good=first - late)).state)

    begun = states.index(State.SLOW)
    ended = states.index(State.OK, begun)
    assert 7 * 8 <= begun <= 8 * 8
    assert 23 * 8 <= ended <= 24 * 8
    assert set(states[ended:]) == {State.OK}


def test_slow_first_tokens_after_which_nobody_asks_are_over_in_ten_minutes() -> None:
    watch = Watch()
    watch.polled(busy(firsts=0, good=0))
    states = [watch.polled(busy(firsts=3, good=0)).state for _ in range(200)]

    assert states.index(State.OK) in range(144, 148)  # of 5 s each: the window of two minutes, and ten


def test_an_engine_that_counts_no_first_tokens_is_slow_while_anybody_waits() -> None:
    watch = Watch()
    watch.polled([*busy(waiting=4, prompts=1), point(schema.FIRST_TOKENS_OVERDUE, 4.0)])

    waited = [watch.polled(busy(waiting=1, prompts=2 + poll)).state for poll in range(60)]
    assert set(waited) == {State.SLOW}
    assert watch.polled(busy(prompts=99)).state is State.OK


def test_few_requests_that_fail_go_on_failing_until_fewer_do() -> None:
    """One in a minute and a half: the window of five minutes has three of them, or four."""
    watch = Watch()
    states = []
    for poll in range(360):
        ended = poll // 18
        failed = max(0, min(ended, 12) - 4)
        states.append(watch.polled(busy(finished=ended - failed, failed=failed)).state)

    begun = states.index(State.FAILING)
    over = states.index(State.OK, begun)
    assert begun == 5 * 18
    assert 12 * 18 + 60 <= over <= 12 * 18 + 80
    assert set(states[over:]) == {State.OK}


def test_two_slow_first_tokens_are_none() -> None:
    watch = Watch()
    watch.polled(busy(firsts=0, good=0))

    assert watch.polled(busy(firsts=3, good=1)).state is State.OK


def test_tokens_that_come_too_late_are_lagging_while_first_tokens_are_in_time() -> None:
    watch = Watch()
    judged = []
    for poll in range(200):
        tokens, late = 100.0 * poll, max(0.0, min(poll - 60, 40)) * 100.0  # all of those of 200 s
        judged.append(watch.polled(busy(firsts=poll, good=poll, tokens=tokens, timely=tokens - late, gap=0.2)))

    states = [each.state for each in judged]
    assert states[:64] == [State.OK] * 64
    begin, end = states.index(State.LAGGING), len(states) - states[::-1].index(State.LAGGING)
    assert 72 <= begin <= 78, "a minute after more than 5 % of those of five minutes are late"
    assert 155 <= end <= 175, "until the window and a minute are over"
    assert states == [State.OK] * begin + [State.LAGGING] * (end - begin) + [State.OK] * (200 - end)
    assert judged[100].reason == "66% of the tokens of the last 5 min came later than 0.2 s after the one before"
    assert judged[100].state.level is Level.WARN


def test_tokens_at_a_crawl_are_lagging_though_they_are_few_beside_those_before() -> None:
    """From 200 a second to four, each of them late."""
    watch = Watch()
    states = []
    for poll in range(120):
        late = 20.0 * max(0, poll - 60)
        timely = 1000.0 * min(poll, 60)
        states.append(watch.polled(busy(tokens=timely + late, timely=timely)).state)

    assert 82 <= states.index(State.LAGGING) <= 98, "a minute after most of those of two minutes are late"


@pytest.mark.parametrize(
    ("tokens", "late", "wanted"),
    [(600.0, 31.0, State.LAGGING), (600.0, 30.0, State.OK), (31.0, 30.0, State.LAGGING), (29.0, 29.0, State.OK)],
)
def test_how_many_late_tokens_are_lagging(tokens: float, late: float, wanted: State) -> None:
    watch = Watch(step=61.0)
    watch.polled(busy(tokens=0.0, timely=0.0))
    watch.polled(busy(tokens=tokens, timely=tokens - late))
    assert watch.polled(busy(tokens=tokens, timely=tokens - late)).state is wanted


@pytest.mark.parametrize(("gone", "words"), [("first", "first tokens"), ("waiting", "waiting requests")])
def test_what_an_engine_was_judged_by_and_no_longer_exposes_makes_it_unknown(gone: str, words: str) -> None:
    """An upgrade renames a metric: a slow engine must not look fine for it, nor one that has just restarted wrong."""
    watch = Watch()
    whole = {"first": 9.0, "waiting": 2.0, "running": 4.0}

    def polled(finished: float) -> Judged:
        points = busy(**whole, finished=finished)
        return watch.polled([each for each in points if each.series.metric is not METRICS_OF[gone]])

    watch.polled(busy(running=0, first=9.0))
    watch.polled(busy(**whole, finished=50.0))
    assert [polled(0.0).state for _ in range(9)] == [State.OK] * 9, "no request has ended since"
    found = [polled(float(1 + poll)) for poll in range(4)]
    assert found[-1].state is State.UNKNOWN
    why = f"it no longer exposes its {words}, by which it was judged; an upgrade may have renamed them"
    assert found[-1].reason == why
    assert watch.polled(busy(**whole, finished=9.0)).state is State.OK
    watch.at += 86_400.0
    assert {polled(10.0 + poll).state for poll in range(4)} == {State.OK}, "forgotten after a day"


def test_a_model_that_is_loaded_again_and_again_is_tight_although_it_is_away_in_between() -> None:
    watch = Watch(step=10.0)
    judged = []
    for poll in range(300):  # for half of each minute it is in memory, and then gives way
        there, loads = poll % 6 < 3 or poll >= 120, float(min(poll, 119) // 6 + 1)
        own = busy(running=1.0, loaded=1.0, loads=loads) if there else []
        judged.append(watch.polled([*own, point(schema.MODEL_LOADED, 1.0, model="n")]))

    tight = [poll for poll, each in enumerate(judged) if each.state is State.TIGHT]
    assert 42 <= tight[0] <= 48, "from the seventh load that was seen on"
    assert judged[tight[0]].reason.startswith("it was loaded 7 times within 1 h, the last time ")
    assert judged[tight[0]].reason.endswith(" ago; requests wait for each load")
    assert 190 <= tight[-1] <= 215, "until a quarter of an hour after the last one, and a minute"
    assert judged[-1].state is State.OK


def test_requests_that_fail_and_clients_that_leave() -> None:
    failing, left = Watch(), Watch()
    failing.polled(busy(finished=0, failed=0))
    left.polled(busy(finished=0, aborted=0))

    judged = failing.polled(busy(finished=90, failed=10))
    assert (judged.state, judged.reason) == (State.FAILING, "10 of 100 requests of the last 5 min failed (10%)")
    assert left.polled(busy(finished=90, aborted=50)).state is State.OK


def test_failures_of_requests_that_named_no_known_model_are_not_lost_beside_a_model_that_is_fine() -> None:
    watch = Watch()

    def polled(refused: float, answered: float) -> Judged:
        unnamed = point(schema.HTTP_RESPONSES, refused, model="", code="5xx")
        return watch.polled([*busy(responses=answered), unnamed])

    polled(0, 0)
    judged = polled(20, 1000)

    assert judged.model == "m"
    assert judged.state is State.FAILING
    assert judged.reason == "20 of 20 requests of the last 5 min, of no known model, failed (100%)"


def test_an_engine_that_restarts_again_and_again_fails_however_soon_it_is_back() -> None:
    """Each time requests are lost, and the engine answers again before two polls have failed."""
    watch = Watch()
    judged = [watch.polled(busy(restarts=float(min(poll // 60, 4)))) for poll in range(720)]

    assert {each.state for each in judged[:180]} == {State.OK}  # two restarts, after 5 and 10 minutes
    assert {each.state for each in judged[180:431]} == {State.FAILING}  # until the last is a quarter of an hour ago
    assert {each.state for each in judged[431:]} == {State.OK}
    assert judged[252].reason == "it restarted 4 times within 30 min, the last time 60 s ago"
    assert judged[-1].state is State.OK


def test_restarts_from_before_are_no_crash_loop_of_now() -> None:
    watch = Watch()
    watch.polled(busy(running=1.0))

    assert watch.polled(busy(restarts=7.0)).state is State.OK
    assert watch.polled(busy(restarts=7.0)).state is State.OK


def test_one_failed_request_of_three_decides_nothing() -> None:
    watch = Watch()
    watch.polled(busy(finished=0, failed=0))

    assert watch.polled(busy(finished=2, failed=1)).state is State.OK


def test_waiting_without_a_first_token_blocks_while_another_request_generates() -> None:
    watch = Watch()
    watch.polled(busy(running=0))
    states = [
        watch.polled(busy(running=1, waiting=5, first=501, prompts=900_000, generated=300.0 * poll))
        for poll in range(40)
    ]

    assert {each.state for each in states[:36]} == {State.OK}
    assert {each.state for each in states[36:]} == {State.BLOCKED}
    assert states[36].reason == "5 requests waiting, and no first token for 3 min"


def test_a_backlog_of_an_embedding_engine_that_is_worked_off_is_none() -> None:
    watch = Watch()
    for poll in range(60):
        judged = watch.polled(busy(running=64, waiting=40, prompts=30_000.0 * poll, generated=0, finished=600.0 * poll))

    assert judged.state is State.OK


def test_a_stalled_engine_says_what_is_there() -> None:
    judged = Watch().polled(busy(running=7, waiting=2, stalled=1))

    assert judged.state is State.STALLED
    assert judged.reason.startswith("7 running and 2 waiting requests")


def test_little_room_is_tight_in_the_kv_cache_and_nothing_at_the_running_limit() -> None:
    full, limited, half = (
        Watch().polled(busy(**own))
        for own in (
            {"usage": 0.95, "room": 0.4, "limit": 256},
            {"usage": 0.75, "room": 0.0, "limit": 4, "running": 4},
            {"usage": 0.5, "room": 0.4},
        )
    )

    assert (full.state, full.reason) == (State.TIGHT, "KV cache headroom for 0.4 more typical requests; 95% in use")
    assert limited.state is State.OK
    assert half.state is State.OK


def test_idle_after_a_minute_without_requests() -> None:
    watch = Watch()
    watch.polled(busy())
    states = [watch.polled(busy(running=0)).state for _ in range(14)]

    assert states == [State.OK] * 12 + [State.IDLE] * 2
    assert watch.polled(busy()).state is State.OK


def test_a_sleeping_model_is_asleep() -> None:
    assert Watch().polled(busy(running=0, asleep=1)).state is State.ASLEEP


def test_what_exposes_nothing_of_its_requests_is_unknown() -> None:
    judged = Watch().polled([point(schema.MODEL_LOADED, 1.0)])

    assert (judged.state, judged.state.level) == (State.UNKNOWN, Level.UNKNOWN)
    assert judged.reason.startswith(
        "it responds, but its requests cannot be seen: no measuring proxy has received any yet"
    )


def test_a_plain_ollama_says_how_its_requests_would_be_seen() -> None:
    points = (Point(Series(schema.MODEL_LOADED, {"engine": "ollama", "target": "t", "model": "m"}), 1.0, "test"),)
    snapshot = Snapshot(target="t", engine="ollama", taken=0.0, health=Health(up=True), points=points)

    _, (judged,) = state.judge(None, snapshot, 0.0)

    assert judged.state is State.UNKNOWN
    assert judged.reason.endswith(
        ": no measuring proxy has received any yet; start llm-headroom with --ollama-proxy :11435 and send clients to "
        "that port"
    )


def test_a_model_that_could_be_loaded_has_no_state_and_no_model_in_memory_is_idle() -> None:
    watch = Watch()
    judged = watch.polled([point(schema.MODEL_LOADED, 0.0), Point(Series(schema.MODELS_LOADED, {}), 0.0, "test")])

    assert watch.states == (judged,)
    assert (judged.state, judged.model) == (State.IDLE, "")


def test_a_router_without_healthy_workers_fails_and_with_some_is_tight() -> None:
    def workers(*healthy: float) -> list[Point]:
        return [
            point(schema.ROUTER_WORKER_HEALTHY, value, model="", worker=f"w{number}")
            for number, value in enumerate(healthy)
        ]

    assert Watch().polled(workers(1, 1)).state is State.OK
    judged = Watch().polled(workers(1, 0, 0))
    assert (judged.state, judged.reason) == (State.TIGHT, "2 of 3 workers unhealthy")
    assert Watch().polled(workers(0, 0)).state is State.FAILING


def test_each_model_has_a_state_of_its_own_and_keeps_it_by_name_while_the_engine_is_down() -> None:
    watch = Watch()
    watch.polled(
        [*busy(), point(schema.REQUESTS_RUNNING, 1.0, model="b"), point(schema.ENGINE_STALLED, 1.0, model="b")]
    )
    assert {each.model: each.state for each in watch.states} == {"m": State.OK, "b": State.STALLED}

    for _ in range(4):
        watch.polled(REFUSED)
    assert {each.model: each.state for each in watch.states} == {"m": State.DOWN, "b": State.DOWN}


def test_a_state_set_has_one_series_for_each_state_and_one_of_them_is_1() -> None:
    watch = Watch()
    watch.polled(busy())
    points = [*state.state_points(watch.states, {"engine": "vllm", "target": "t"})]

    assert [each.series.label("state") for each in points] == list(ENGINE_STATES)
    assert [each.series.label("state") for each in points if each.value == 1.0] == ["ok"]
    assert {each.series.label("model") for each in points} == {"m"}


amounts = st.floats(0, 1e9)
collections = st.one_of(
    st.sampled_from([Failure(cause, "why") for cause in Cause]),
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("running", "waiting", "limit", "finished", "failed", "firsts", "good", "prompts", "first", "room"), amounts
        )
        | {"usage": st.floats(0, 1), "stalled": st.sampled_from([0.0, 1.0])},
    ).map(lambda changes: busy(**changes)),
)


@given(st.lists(collections, min_size=1, max_size=30), st.sampled_from([1.0, 5.0, 60.0, 700.0]))
def test_every_history_has_one_state_with_a_reason_and_an_engine_that_is_not_read_is_never_good_for_long(
    history: list[list[Point] | Failure], step: float
) -> None:
    watch = Watch(step=step)
    unread = 0.0
    for each in history:
        judged = watch.polled(each)
        unread = unread + step if isinstance(each, Failure) else 0.0

        assert judged.state in ENGINE_STATES
        assert judged.reason
        assert EPOCH <= judged.since <= EPOCH + watch.at
        if unread > 2 * step + 20.0:
            assert judged.state.level is not Level.GOOD


def gpu(metric: Metric, value: float, **labels: str) -> Point:
    return Point(Series(metric, {"gpu": "0", "uuid": "GPU-a", **labels}), value, "test")


def card(**changes: float) -> list[Point]:
    found = {"total": 80.0 * 2**30, "free": 8.0 * 2**30, **changes}
    points = [gpu(schema.GPU_MEMORY_TOTAL, found["total"]), gpu(schema.GPU_MEMORY_HEADROOM, found["free"])]
    return [*points, Point(Series(schema.GPUS, {}), found.get("listed", 1.0), "test")]


def gpus(*readings: Sequence[Point] | Failure, step: float = 5.0) -> tuple[Judged, ...]:
    """What is judged after the last of some readings."""
    memory, judged = None, tuple[Judged, ...]()
    for number, points in enumerate(readings):
        memory, judged = gpu_state.judge(memory, answer(points, number * step), 7.0 + number * step)
    return judged


def test_a_gpu_is_ok() -> None:
    (judged,) = gpus(card())

    assert (judged.state, judged.gpu, judged.uuid) == (State.OK, "0", "GPU-a")


def test_a_gpu_that_is_gone_is_lost_and_stays_so() -> None:
    listed = Point(Series(schema.GPUS, {}), 1.0, "test")
    (judged,) = gpus(card(), *[[listed]] * 1000)

    assert (judged.state, judged.gpu) == (State.LOST, "0")


def test_a_gpu_that_never_could_be_read_is_lost() -> None:
    judged = gpus(card(listed=2.0))

    assert [(each.state, each.gpu) for each in judged] == [(State.OK, "0"), (State.LOST, "")]
    assert judged[1].reason == "1 of 2 GPUs cannot be read"


def test_without_a_driver_gpus_are_unknown() -> None:
    failure = Failure(Cause.DRIVER, "the driver is not loaded")

    assert [each.state for each in gpus(failure)] == [State.UNKNOWN]
    assert [each.state for each in gpus(card(), *[failure] * 4)] == [State.UNKNOWN]


@pytest.mark.parametrize(
    ("more", "wanted", "reason"),
    [
        (gpu(schema.GPU_XID_LAST, EPOCH - 60.0, xid="79"), State.ERROR, "fatal error Xid 79, 60 s ago"),
        (gpu(schema.GPU_XID_LAST, EPOCH - 3600.0, xid="79"), State.OK, None),
        (gpu(schema.GPU_XID_LAST, EPOCH - 60.0, xid="13"), State.OK, None),
        (gpu(schema.GPU_RECOVERY_ACTION, 2.0), State.ERROR, "its driver requests a recovery: reboot the node"),
        (gpu(schema.GPU_ROW_REMAP_FAILURE, 1.0), State.ERROR, "a row of its memory could not be remapped"),
        (gpu(schema.GPU_THROTTLE, 1.0, reason="hw_thermal"), State.THROTTLED, "it is throttled: hw_thermal"),
        (gpu(schema.GPU_THROTTLE, 1.0, reason="sw_power_cap"), State.OK, None),
        (gpu(schema.GPU_MEMORY_HEADROOM, 2.0**20), State.FULL, "1 MiB can still be allocated"),
    ],
)
def test_what_is_wrong_with_a_gpu(more: Point, wanted: State, reason: str | None) -> None:
    (judged,) = gpus([*card(), more])

    assert judged.state is wanted
    assert reason is None or judged.reason == reason


def test_a_moment_of_heat_is_not_throttling() -> None:
    hot = [*card(), gpu(schema.GPU_THROTTLE, 1.0, reason="hw_thermal")]

    assert gpus(card(), *[hot] * 6)[0].state is State.OK
    assert gpus(card(), *[hot] * 20)[0].state is State.THROTTLED


def test_a_state_set_of_gpus() -> None:
    points = [*gpu_state.state_points(gpus(card()))]

    assert [each.series.label("state") for each in points] == list(GPU_STATES)
    assert [each.series.label("state") for each in points if each.value == 1.0] == ["ok"]
