"""What the status page and `top` show: values out of snapshots and a short history."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import bounded
import captures
from llm_headroom import schema
from llm_headroom.config.people import Links
from llm_headroom.config.settings import Config, GpuSettings
from llm_headroom.model import Cause, Failure, Health, Histogram, Judged, Level, Point, Series, Snapshot, State
from llm_headroom.poll.poller import Poller
from llm_headroom.view import board, text
from llm_headroom.view.day import MINUTES, Day
from llm_headroom.view.history import HISTOGRAM_SPAN, MOST_READINGS, MOST_TRACKS, SPAN, History
from llm_headroom.view.quantiles import RANKS, quantile
from llm_headroom.view.signals import risk_word
from llm_headroom.view.values import (
    Absent,
    Condition,
    EngineCard,
    Load,
    Missing,
    Objective,
    Share,
    Slow,
    as_json,
    from_json,
    standing,
)
from llm_headroom.web import cards, table
from llm_headroom.web.look import Look

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_headroom.model import Metric
    from llm_headroom.view.values import EngineCard, GpuCard, View

AROUND = cards.Around(100.0, Look(), (), Links())
GIB = 2.0**30
BOUNDS = (0.1, 1.0, inf)


def point(metric: Metric, value: float | Histogram, **labels: str) -> Point:
    return Point(Series(metric, labels), value, "test")


def of_model(metric: Metric, value: float | Histogram, **labels: str) -> Point:
    return point(metric, value, **{"model": "m", "engine": "vllm", "target": "t", **labels})


def snapshot(at: float, *points: Point, engine: str = "vllm", target: str = "t", state: State = State.OK) -> Snapshot:
    models = dict.fromkeys(each.series.label("model") for each in points)
    subjects = (
        [{"gpu": "0", "uuid": "GPU-1"}]
        if any(each.series.label("uuid") for each in points)
        else [{"model": model} for model in models]
    )
    return Snapshot(
        target=target,
        engine=engine,
        taken=at,
        points=points,
        health=Health(up=True, last_success=at, version="1.2"),
        states=tuple(Judged(state=state, reason="because", since=50.0, **whose) for whose in subjects),
    )


def failed(at: float, target: str = "t") -> Snapshot:
    error = Failure(Cause.REFUSED, "http://t: the connection was refused")
    health = Health(up=False, error=error, last_success=90.0)
    states = (Judged(state=State.DOWN, reason=error.message, since=at, model="m"),)
    return Snapshot(target=target, engine="vllm", taken=at, health=health, states=states)


def shown(*rounds: Sequence[Snapshot]) -> View:
    """The view after some rounds of polls."""
    history = History()
    for snapshots in rounds:
        history.record(snapshots)
    titles, missing = {"vllm": "vLLM"}, (Missing("does not expose it", ("llm_x",)),)
    made = [(snapshot, board.cards(snapshot, history, titles, lambda _: missing)) for snapshot in rounds[-1]]
    return board.assembled(made, {"GPUs": "libnvidia-ml.so.1 not found"}, 200.0)


def engine(*snapshots: Snapshot) -> EngineCard:
    """The only card after one snapshot after the other."""
    (card,) = shown(*([each] for each in snapshots)).engines
    return card


def gpu(*points: Point) -> GpuCard:
    (card,) = shown([snapshot(100.0, *points, engine="nvml", target="gpus")]).gpus
    return card


# Engines -------------------------------------------------------------------------------------------------------------
def test_an_engine_shows_its_traffic_and_what_it_does_not_tell() -> None:
    card = engine(
        snapshot(100.0, of_model(schema.GENERATION_TOKENS, 1000.0), of_model(schema.PROMPT_TOKENS, 50.0)),
        snapshot(
            110.0,
            of_model(schema.GENERATION_TOKENS, 1500.0),
            of_model(schema.PROMPT_TOKENS, 50.0),
            of_model(schema.REQUESTS_RUNNING, 3.0),
            of_model(schema.REQUESTS_WAITING, 0.0),
        ),
    )

    assert (card.running, card.waiting, card.limit) == (3.0, 0.0, None)
    assert (card.generation_rate, card.prompt_rate) == (50.0, 0.0)
    assert (card.source.title, card.source.version, card.model) == ("vLLM", "1.2", "m")
    assert (card.state, card.notes) == (Condition("ok", Level.GOOD, "because", 50.0), ())
    assert card.missing == (Missing("does not expose it", ("llm_x",)),)
    assert card.ages == (10.0, 0.0)


def test_after_one_poll_no_rate_and_no_latency_is_made_up() -> None:
    ttft = of_model(schema.TIME_TO_FIRST_TOKEN, Histogram(BOUNDS, (5.0, 5.0, 5.0), 0.2))
    card = engine(snapshot(100.0, of_model(schema.GENERATION_TOKENS, 1000.0), ttft))

    assert (card.generation_rate, card.latencies, card.lines) == (None, (), ())


def test_a_restart_of_the_engine_makes_no_rate_negative() -> None:
    card = engine(
        snapshot(100.0, of_model(schema.GENERATION_TOKENS, 9000.0)),
        snapshot(110.0, of_model(schema.GENERATION_TOKENS, 200.0)),
    )

    assert card.generation_rate == 20.0


def test_latencies_are_those_of_the_window_and_not_those_since_the_engine_began() -> None:
    def ttft(*counts: float) -> Point:
        return of_model(schema.TIME_TO_FIRST_TOKEN, Histogram(BOUNDS, counts, 0.0))

    card = engine(snapshot(100.0, ttft(1000.0, 1000.0, 1000.0)), snapshot(110.0, ttft(1000.0, 1010.0, 1010.0)))

    (latency,) = card.latencies
    assert (latency.count, latency.window) == (10.0, 10.0)
    assert [(each.rank, each.low, each.high) for each in latency.quantiles] == [(rank, 0.1, 1.0) for rank in RANKS]
    assert latency.quantiles[0].estimate == pytest.approx(0.55)


def test_without_traffic_a_latency_has_no_quantiles() -> None:
    quiet = of_model(schema.TIME_TO_FIRST_TOKEN, Histogram(BOUNDS, (7.0, 7.0, 7.0), 0.0))

    (latency,) = engine(snapshot(100.0, quiet), snapshot(110.0, quiet)).latencies

    assert (latency.count, latency.quantiles) == (0.0, ())


def test_the_kv_cache_of_replicas_adds_up_and_the_fullest_one_is_named() -> None:
    kv = engine(
        snapshot(
            100.0,
            *(of_model(schema.KV_CACHE_CAPACITY, 100.0, replica=each) for each in "01"),
            *(of_model(schema.KV_CACHE_USED, used, replica=each) for each, used in (("0", 80.0), ("1", 20.0))),
            *(of_model(schema.KV_CACHE_EVICTABLE, 10.0, replica=each) for each in "01"),
            *(of_model(schema.KV_CACHE_USAGE, usage, replica=each) for each, usage in (("0", 0.8), ("1", 0.2))),
            *(of_model(schema.KV_CACHE_USAGE_PEAK, peak, replica=each) for each, peak in (("0", 0.9), ("1", 0.3))),
            *(of_model(schema.KV_CACHE_HEADROOM_TOKENS, 45.0, replica=each) for each in "01"),
            of_model(schema.KV_CACHE_HEADROOM_REQUESTS, 4.0, replica="0"),
            of_model(schema.KV_CACHE_EXHAUSTION, 60.0, replica="0"),
        )
    ).kv

    assert kv is not None
    assert (kv.capacity, kv.used, kv.evictable, kv.free) == (200.0, 100.0, 20.0, 80.0)
    assert (kv.usage, kv.worst, kv.peak) == (0.5, 0.8, 0.9)
    assert (kv.headroom_tokens, kv.headroom_requests, kv.exhaustion_seconds) == (90.0, 4.0, 60.0)


def test_how_much_more_an_engine_takes_is_said_with_what_binds() -> None:
    points = [
        of_model(schema.LOAD_HEADROOM, 1.83, objective="ttft"),
        of_model(schema.SUSTAINABLE_REQUESTS, 4.2, objective="ttft"),
        of_model(schema.LOAD_HEADROOM_BINDING, 1.0, objective="ttft", resource="kv_cache"),
        of_model(schema.LOAD_HEADROOM_BINDING, 0.0, objective="ttft", resource="compute"),
        of_model(schema.LOAD_HEADROOM_SUSPECT, 1.0),
    ]
    card = engine(snapshot(100.0, *points))

    assert card.load == (Load("ttft", 1.83, "kv_cache", 4.2, suspect=True),)
    assert text.takes(card.load[0]) == "takes 1.8 × its traffic; KV cache binds"
    html = cards.engine(card, AROUND)
    assert (
        '<dt>TTFT</dt><dd><b class="">1.8 ×</b> <small>KV cache binds · 4.2 requests/s · suspect</small></dd>' in html
    )
    assert engine(snapshot(100.0, of_model(schema.REQUESTS_RUNNING, 1.0))).load == ()


@pytest.mark.parametrize(
    ("headroom", "written"),
    [
        (None, "–"),
        (0.624, "0.62 ×"),
        (0.998, "0.99 ×"),
        (1.0, "1.0 ×"),
        (9.94, "9.9 ×"),
        (12.4, "12 ×"),
        (16.0, "≥ 16 ×"),
    ],
)
def test_times_are_written_for_people(headroom: float | None, written: str) -> None:
    assert text.times(headroom) == written


@pytest.mark.parametrize(("headroom", "level"), [(0.9, "bad"), (1.1, "warn"), (1.3, "")])
def test_an_engine_near_its_limit_is_coloured(headroom: float, level: str) -> None:
    card = engine(snapshot(100.0, of_model(schema.LOAD_HEADROOM, headroom, objective="ttft")))
    assert f'<b class="{level}">{text.times(headroom)}</b>' in cards.engine(card, AROUND)


def test_of_many_engines_that_are_well_those_that_take_least_more_come_first() -> None:
    def of(name: str, headroom: float | None, state: str = "ok", level: Level = Level.GOOD) -> EngineCard:
        load = () if headroom is None else (Load("ttft", headroom, "", None, suspect=False),)
        known = engine(snapshot(100.0, of_model(schema.REQUESTS_RUNNING, 1.0)))
        return replace(known, model=name, state=Condition(state, level), load=load)

    made = [
        of("idle", None, "idle"),
        of("much", 9.0),
        of("little", 1.2),
        of("no less, by its steps", 1.25),
        of("slow", 8.0, "slow", Level.BAD),
        of("down", None, "down", Level.BAD),
        of("not known", None),
    ]
    order = ["down", "slow", "little", "no less, by its steps", "much", "idle", "not known"]
    assert [card.model for card in sorted(made, key=standing)] == order


def test_an_engine_that_tells_no_kv_cache_has_none() -> None:
    assert engine(snapshot(100.0, of_model(schema.REQUESTS_RUNNING, 1.0))).kv is None


def test_risks_objectives_and_slow_first_tokens_are_shown_as_derived() -> None:
    card = engine(
        snapshot(
            100.0,
            of_model(schema.KV_SATURATION_RISK, 0.6),
            of_model(schema.EVICTION_RISK, 0.05),
            of_model(schema.TTFT_SLOW, 0.25, window="60s"),
            of_model(schema.SLO_REQUESTS, 200.0, slo="ttft"),
            of_model(schema.SLO_REQUESTS_GOOD, 150.0, slo="ttft"),
            of_model(schema.SLO_THRESHOLD, 2.5, slo="ttft"),
            of_model(schema.SLO_OBJECTIVE, 0.95, slo="ttft"),
            of_model(schema.SLO_REQUESTS, 0.0, slo="request_duration"),
            of_model(schema.SLO_REQUESTS_GOOD, 0.0, slo="request_duration"),
        )
    )

    assert [(risk.metric, risk.value) for risk in card.risks] == [
        ("llm_kv_saturation_risk_ratio", 0.6),
        ("llm_eviction_risk_ratio", 0.05),
    ]
    assert [risk_word(risk) for risk in card.risks] == ["high", "low"]
    assert "60%" not in cards.engine(card, AROUND), "a rank is no probability"
    assert card.level is Level.GOOD, "a forecast alone makes nothing red"
    assert card.slow == (Slow("60s", 0.25),)
    assert card.objectives == (Objective("ttft", 2.5, 0.95, 0.75, 200.0),)


@pytest.mark.parametrize("state", State)
def test_a_card_is_as_bad_as_its_state(state: State) -> None:
    card = engine(snapshot(100.0, of_model(schema.REQUESTS_RUNNING, 1.0), state=state))
    html = cards.engine(card, AROUND)

    assert card.state == Condition(str(state), state.level, "because", 50.0)
    assert f'<article class="card {state.level}"' in html
    assert f"<b>{state}</b> for" in html
    assert "because" in html


@pytest.mark.parametrize(("share", "said"), [(0.75, ("25% spilled to the CPU",)), (0.0, ("on the CPU",)), (1.0, ())])
def test_a_model_beside_the_gpus_is_noted(share: float, said: tuple[str, ...]) -> None:
    card = engine(snapshot(100.0, of_model(schema.MODEL_OFFLOAD, share)))

    assert (card.notes, card.level) == (said, Level.GOOD)


def test_what_nobody_has_judged_is_unknown_and_a_model_that_is_not_loaded_is_neither_good_nor_bad() -> None:
    points = [of_model(schema.REQUESTS_RUNNING, 1.0, model="other"), of_model(schema.MODEL_LOADED, 0.0, model="cold")]
    states = {card.model: card.state for card in shown([replace(snapshot(100.0, *points), states=())]).engines}

    assert (states["other"].name, states["other"].level) == ("unknown", Level.UNKNOWN)
    assert (states["cold"].name, states["cold"].level) == ("not loaded", Level.GOOD)


def test_a_latency_beyond_its_objective_says_so_and_a_row_has_one_unit() -> None:
    def ttft(*counts: float) -> Point:
        return of_model(schema.TIME_TO_FIRST_TOKEN, Histogram((0.1, 1.0, 10.0, inf), counts, 0.0))

    slo = [
        of_model(schema.SLO_REQUESTS, 20.0, slo="ttft"),
        of_model(schema.SLO_REQUESTS_GOOD, 15.0, slo="ttft"),
        of_model(schema.SLO_THRESHOLD, 2.5, slo="ttft"),
        of_model(schema.TTFT_SLOW, 0.25, window="60s"),
    ]
    card = engine(snapshot(100.0, ttft(0.0, 0.0, 0.0, 0.0)), snapshot(110.0, ttft(10.0, 10.0, 20.0, 20.0), *slo))
    html = cards.engine(card, AROUND)

    assert text.row(card.latencies[0]) == ("s", ["0.1", "9.1", "9.82"])
    assert 'TTFT, s</th><td class="" title="0–0.1 s">0.1</td><td class="bad" title="1–10 s">9.1</td>' in html
    assert "≤ 2.5</td>" in html
    assert '<b class="bad">25%</b> later than 2.5 s' in html


def test_a_source_that_is_down_shows_its_error_and_no_value_from_before() -> None:
    busy = snapshot(100.0, of_model(schema.REQUESTS_RUNNING, 3.0), of_model(schema.KV_CACHE_USAGE, 0.5))
    view = shown([busy], [failed(105.0)])

    (card,) = view.engines
    assert (view.sources, view.up) == (1, 0)
    assert (card.level, card.source.error, card.source.cause) == (
        Level.BAD,
        "http://t: the connection was refused",
        "refused",
    )
    assert card.source.last_success == 90.0
    assert (card.running, card.kv, card.lines, card.missing) == (None, None, (), ())
    assert (card.model, card.id) == ("m", shown([busy]).engines[0].id), "its name stays, and its place"


def test_a_history_line_has_a_gap_while_the_source_was_down() -> None:
    def busy(at: float, value: float) -> Snapshot:
        return snapshot(at, of_model(schema.REQUESTS_RUNNING, value))

    card = engine(busy(100.0, 1.0), busy(105.0, 2.0), failed(110.0), busy(115.0, 3.0), busy(120.0, 4.0))

    (line,) = card.lines
    assert (line.name, line.values) == ("running", (1.0, 2.0, None, 3.0, 4.0))
    assert card.ages == (20.0, 15.0, 10.0, 5.0, 0.0)


def test_each_model_of_a_target_has_a_card_those_in_memory_first() -> None:
    view = shown(
        [
            snapshot(
                100.0,
                of_model(schema.MODEL_LOADED, 0.0, model="cold"),
                of_model(schema.MODEL_LOADED, 1.0, model="warm"),
                of_model(schema.MODEL_MEMORY, 2 * GIB, model="warm", kind="total"),
            )
        ]
    )

    assert [(card.model, card.loaded) for card in view.engines] == [("warm", True), ("cold", False)]
    assert view.engines[0].memory == (Share("total", 2 * GIB),)
    assert len({card.id for card in view.engines}) == 2


def test_what_was_not_found_is_listed() -> None:
    assert shown([]).absent == (Absent("GPUs", "libnvidia-ml.so.1 not found"),)


def test_a_history_stays_short_and_forgets_sources_that_are_gone() -> None:
    history = History()
    for second in range(1000):
        history.record([snapshot(float(second), of_model(schema.REQUESTS_RUNNING, float(second)))])
    readings = history.readings("t", "m")

    assert 60 < len(readings) <= MOST_READINGS
    assert (readings[-1].at, readings[-1].gauges["llm_requests_running"]) == (999.0, 999.0)
    history.record([])
    assert history.readings("t", "m") == ()


def test_histograms_are_remembered_for_the_longest_window_and_counters_for_the_whole_span() -> None:
    history, ttft, tokens = History(), schema.TIME_TO_FIRST_TOKEN, schema.PROMPT_TOKENS
    for second in range(0, 600, 15):
        if second in {300, 315}:
            history.record([failed(float(second))])
            continue
        total = float(second)
        points = of_model(ttft, Histogram(BOUNDS, (0.0, total, total), 0.0)), of_model(tokens, total)
        history.record([snapshot(float(second), *points)])
    readings = [reading for reading in history.readings("t", "m") if reading.grown]
    ages = [readings[-1].at - reading.at for reading in readings]

    assert max(ages) > HISTOGRAM_SPAN
    assert all(tokens.name in reading.grown for reading in readings)
    for reading, age in zip(readings, ages, strict=True):
        assert (ttft.name in reading.grown) == (age <= HISTOGRAM_SPAN)


def of_models(at: float, *models: str) -> Snapshot:
    return snapshot(at, *(of_model(schema.REQUESTS_RUNNING, 1.0, model=model) for model in models))


def test_only_so_many_models_of_a_target_have_a_history_and_one_that_is_gone_makes_room() -> None:
    history, names = History(), [f"m{number:02}" for number in range(MOST_TRACKS)]
    history.record([of_models(0.0, *names)])
    history.record([of_models(1.0, *names, "late")])
    assert history.readings("t", "late") == ()

    for second in range(2, int(SPAN) + 2):
        history.record([of_models(float(second), *names[1:])])
    history.record([of_models(SPAN + 2.0, *names[1:], "late")])

    assert [reading.at for reading in history.readings("t", "late")] == [SPAN + 2.0]
    assert history.readings("t", "m00") == ()
    assert all(len(history.readings("t", name)) > 60 for name in names[1:])


def test_of_several_models_that_are_gone_the_one_that_was_known_first_makes_room() -> None:
    history, names = History(), [f"m{number:02}" for number in range(MOST_TRACKS)]
    history.record([of_models(0.0, *names)])
    for second in (SPAN + 1.0, SPAN + 2.0):
        history.record([of_models(second, *names[2:], *(["late"] if second > SPAN + 1 else []))])

    assert [bool(history.readings("t", name)) for name in ("m00", "m01", "late")] == [False, True, True]


class Scripted:
    """A source that gives one snapshot after the other."""

    name, labels, retained, capped, interval = "t", dict[str, str](), (), dict[str, int](), 0.001

    def __init__(self, *snapshots: Snapshot) -> None:
        self._snapshots = list(snapshots)

    async def collect(self) -> Snapshot:
        """The next one, the last one again and again."""
        return self._snapshots.pop(0) if len(self._snapshots) > 1 else self._snapshots[0]

    async def estimate(self) -> None:
        """There is nothing to estimate."""

    async def close(self) -> None:
        """Nothing is open."""


def test_what_a_card_lacks_is_what_is_not_exposed_now_and_why_that_is_so_now() -> None:
    def polled(at: float, *points: Point, withheld: tuple[str, ...] = ()) -> Snapshot:
        now = snapshot(at, *points)
        return replace(now, health=replace(now.health, withheld=withheld))

    running, waiting = of_model(schema.REQUESTS_RUNNING, 1.0), of_model(schema.REQUESTS_WAITING, 1.0)
    stalled = [of_model(schema.ENGINE_STALLED, value) for value in (0.0, 1.0)]
    rounds = (
        polled(1.0, running),
        polled(2.0, running, waiting),
        polled(3.0, running, withheld=("/v1/models",)),
        polled(4.0, running, stalled[0]),
        polled(5.0, running, stalled[1]),
    )

    async def test() -> None:
        poller = Poller(Config(gpu=GpuSettings(enabled=False), host=False, discover=False), beside=[Scripted(*rounds)])
        views, ended = board.Board(poller), asyncio.Event()
        shown: dict[float, EngineCard] = {}

        def look() -> None:
            views.record()
            for card in views.view().engines:
                shown[card.source.taken] = card
            if len(shown) == len(rounds):
                ended.set()

        poller.on_change(look)
        poller.start()
        await ended.wait()
        await poller.stop()
        assert views.view().engines == ()
        told = [{name: each.reason for each in shown[at.taken].missing for name in each.metrics} for at in rounds]
        assert ["llm_requests_waiting" in missing for missing in told][:3] == [True, False, True]
        assert ["credentials" in missing["llm_model_context_tokens"] for missing in told][:3] == [False, False, True]
        assert ["progress" in missing["llm_load_headroom_ratio"] for missing in told] == [False] * 4 + [True]

    bounded.run(test())


# The day -------------------------------------------------------------------------------------------------------------
def minutes(day: Day, now: float) -> list[tuple[float | None, str]]:
    """The value and the state of each of the last five minutes."""
    return [(each.values["waiting"], each.state.name if each.state else "") for each in list(day.minutes(now))[-5:]]


def condition(name: str, level: Level) -> Condition:
    return Condition(name, level, "a reason that is not kept", 12.0)


def test_a_minute_keeps_its_highest_value_and_its_worst_state() -> None:
    day = Day(("waiting",))
    for at, waiting, state in (
        (60.0, 3.0, condition("ok", Level.GOOD)),
        (65.0, 9.0, condition("slow", Level.BAD)),
        (70.0, 1.0, condition("ok", Level.GOOD)),
        (125.0, None, condition("down", Level.BAD)),
        (250.0, 2.0, None),
    ):
        day.put(at, {"waiting": waiting}, state)

    assert minutes(day, 250.0) == [(None, ""), (9.0, "slow"), (None, "down"), (None, ""), (2.0, "")]


def test_a_day_forgets_what_is_older() -> None:
    day = Day(("waiting",))
    for minute in range(2 * MINUTES):
        day.put(60.0 * minute, {"waiting": float(minute)}, condition("ok", Level.GOOD))
    now = 60.0 * (2 * MINUTES - 1)
    values = [each.values["waiting"] for each in day.minutes(now)]

    assert values == [float(minute) for minute in range(MINUTES, 2 * MINUTES)]
    assert [each.state for each in day.minutes(now + 120.0)][-3:] == [Condition("ok", Level.GOOD), None, None]
    day.put(now + 3 * 86400.0, {"waiting": 1.0}, None)
    assert [each.values["waiting"] for each in day.minutes(now + 3 * 86400.0)] == [None] * (MINUTES - 1) + [1.0]


def test_a_clock_that_is_set_back_changes_nothing_that_was_kept() -> None:
    day = Day(("waiting",))
    day.put(300.0, {"waiting": 5.0}, None)
    day.put(60.0, {"waiting": 7.0}, None)

    assert minutes(day, 300.0)[-1] == (5.0, "")


def test_the_history_keeps_a_day_of_each_model_with_its_states() -> None:
    history = History()
    for second in range(0, 600, 10):
        state = State.SLOW if 240 <= second < 300 else State.OK
        history.record([snapshot(float(second), of_model(schema.REQUESTS_WAITING, float(second)), state=state)])
    history.record([failed(605.0)])
    found = [each for each in history.minutes("t", "m", 605.0) if each.state]

    assert [each.state.name for each in found if each.state] == [*["ok"] * 4, "slow", *["ok"] * 5, "down"]
    assert [each.values["waiting"] for each in found] == [*(60.0 * minute + 50.0 for minute in range(10)), None]


# GPUs ----------------------------------------------------------------------------------------------------------------
def of_gpu(metric: Metric, value: float, **labels: str) -> Point:
    return point(metric, value, **{"gpu": "0", "uuid": "GPU-1", **labels})


def test_a_gpu_shows_who_holds_its_memory_and_for_what() -> None:
    card = gpu(
        of_gpu(schema.GPU_INFO, 1.0, name="H100"),
        of_gpu(schema.GPU_MEMORY_TOTAL, 80 * GIB),
        of_gpu(schema.GPU_MEMORY_USED, 60 * GIB),
        of_gpu(schema.GPU_MEMORY_FREE, 20 * GIB),
        of_gpu(schema.GPU_MEMORY_UNATTRIBUTED, 10 * GIB),
        of_gpu(schema.GPU_MEMORY_ENGINE, 20 * GIB, target="a", engine="vllm", kind="weights"),
        of_gpu(schema.GPU_MEMORY_ENGINE, 15 * GIB, target="a", engine="vllm", kind="kv_used"),
        of_gpu(schema.GPU_MEMORY_ENGINE, 15 * GIB, target="b", engine="sglang", kind="weights"),
    )

    assert (card.gpu, card.uuid, card.name, card.level) == ("0", "GPU-1", "H100", Level.GOOD)
    assert card.engines == (Share("a", 35 * GIB), Share("b", 15 * GIB))
    assert card.parts == (Share("weights", 35 * GIB), Share("kv_used", 15 * GIB))
    assert card.unattributed == 10 * GIB


@pytest.mark.parametrize(
    ("total", "free", "said"),
    [
        (80.0, 20.0, "75%"),
        (80.0, 80.0, "0%"),
        (80.0, None, None),
        (None, 20.0, None),
        (0.0, 0.0, None),
        (None, None, None),
    ],
)
def test_a_row_says_how_much_of_a_gpu_s_memory_is_used_where_both_numbers_are_known(
    total: float | None, free: float | None, said: str | None
) -> None:
    given = ((schema.GPU_MEMORY_TOTAL, total), (schema.GPU_MEMORY_FREE, free), (schema.GPU_POWER, 70.0))
    card = gpu(*(of_gpu(metric, value) for metric, value in given if value is not None))
    shown = re.findall(r">(\d+%)<", table.gpu_row(card, Look(), ""))
    assert shown == ([] if said is None else [said])


def test_a_gpu_of_one_reading_has_its_number() -> None:
    assert gpu(of_gpu(schema.GPU_UTILIZATION, 0.5, gpu="3")).gpu == "3"


def test_a_throttled_or_overcommitted_gpu_is_noted_an_idle_one_is_not() -> None:
    slow = gpu(
        of_gpu(schema.GPU_THROTTLE, 1.0, reason="hw_thermal"),
        of_gpu(schema.GPU_THROTTLE, 0.0, reason="sync_boost"),
        of_gpu(schema.GPU_MEMORY_OVERCOMMITTED, GIB),
    )
    idle = gpu(of_gpu(schema.GPU_THROTTLE, 1.0, reason="idle"), of_gpu(schema.GPU_MEMORY_OVERCOMMITTED, 0.0))

    assert set(slow.notes) == {"clocks throttled: hw thermal", "GPU memory overcommitted"}
    assert idle.notes == ()


# Quantiles -----------------------------------------------------------------------------------------------------------
@given(
    st.lists(st.floats(0.0, 50.0), min_size=1, max_size=60),
    st.lists(st.floats(0.01, 40.0), min_size=1, max_size=8, unique=True),
    st.sampled_from(RANKS),
)
@example([2.0, 18.0], [1.2170677927222027, 17.812690076064474], 0.5)  # low + (high - low) is above high
def test_a_quantile_lies_in_the_bucket_that_it_is_said_to_lie_in(
    seconds: list[float], bounds: list[float], rank: float
) -> None:
    edges = (*sorted(bounds), inf)
    found = quantile(rank, edges, [float(sum(each <= edge for each in seconds)) for edge in edges])

    # The least observation that at least this share of all does not exceed.
    exact = min(each for each in seconds if sum(other <= each for other in seconds) >= rank * len(seconds))
    assert found is not None
    assert exact > found.low or found.low == 0.0
    assert exact <= (inf if found.high is None else found.high)
    if found.estimate is not None and found.high is not None:
        assert found.low <= found.estimate <= found.high


def test_beyond_the_last_bound_no_number_is_made_up() -> None:
    found = quantile(0.99, BOUNDS, (0.0, 1.0, 100.0))

    assert found is not None
    assert (found.low, found.high, found.estimate) == (1.0, None, None)
    assert (text.quantile(found), text.bucket(found)) == ("> 1 s", "beyond the last bucket")


# JSON and text -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("capture", captures.ALL, ids=str)
def test_a_view_survives_json(capture: captures.Capture) -> None:
    points = tuple(captures.mapped(capture.engine, captures.parsed(capture.exposition)))
    rounds = [[snapshot(at, *points, engine=capture.engine)] for at in (100.0, 105.0)]
    view = shown(*rounds)

    assert view.engines
    assert from_json(json.loads(json.dumps(as_json(view), allow_nan=False))) == view


@pytest.mark.parametrize("data", [None, [], {}, {"version": "1"}, "view", 3])
def test_what_is_no_view_is_refused(data: object) -> None:
    with pytest.raises(ValueError, match="not a view"):
        from_json(data)


def test_a_view_with_a_wrong_level_is_refused() -> None:
    data = as_json(shown([failed(100.0)]))
    data["engines"][0]["state"]["level"] = "awful"

    with pytest.raises(ValueError, match="awful"):
        from_json(data)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (text.count(None), "–"),
        (text.count(8.0), "8"),
        (text.count(1234.0), "1,234"),
        (text.count(63500.0), "63.5k"),
        (text.count(412000.0), "412k"),
        (text.count(1.2e6), "1.2M"),
        (text.count(250e6), "250M"),
        (text.count(3e9), "3.0G"),
        (text.rate(0.25), "0.2"),
        (text.rate(0.0), "0"),
        (text.percent(0.984), "98%"),
        (text.size(512.0), "512 B"),
        (text.size(79.6 * GIB), "79.6 GiB"),
        (text.size(3 * 1024 * GIB), "3.0 TiB"),
        (text.seconds(0.0032), "3.2 ms"),
        (text.seconds(0.84), "0.84 s"),
        (text.seconds(140.0), "140 s"),
        (text.span(45.0), "45 s"),
        (text.span(190.0), "3 min"),
        (text.span(7500.0), "2 h 5 min"),
        (text.span(3 * 86400.0), "3 d"),
    ],
)
def test_numbers_are_written_for_people(written: str, expected: str) -> None:
    assert written == expected


def test_the_least_load_is_that_of_the_objective_that_is_left_first() -> None:
    def takes(**headrooms: float) -> str:
        points = [of_model(schema.LOAD_HEADROOM, value, objective=name) for name, value in headrooms.items()]
        load = engine(snapshot(100.0, *points)).least_load
        assert load is not None
        return text.takes(load)

    assert takes(ttft=3.0, inter_token_latency=1.2) == "takes 1.2 × its traffic; inter-token latency is late first"
    assert takes(ttft=1.2, inter_token_latency=3.0) == "takes 1.2 × its traffic"
    assert takes(inter_token_latency=2.0) == "takes 2.0 × its traffic; inter-token latency is late first"
    assert engine(snapshot(100.0, of_model(schema.REQUESTS_RUNNING, 1.0))).least_load is None
