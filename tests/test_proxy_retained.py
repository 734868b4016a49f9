"""What a proxy retains of the requests to an engine, and how that is reported."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Final

import pytest

import captures
from llm_headroom import schema
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Config, ProxySettings, Target
from llm_headroom.derive.slo import Objective
from llm_headroom.model import Histogram, Point, Series
from llm_headroom.proxy.framing import FramingError
from llm_headroom.proxy.measures import BOUNDS, RETRY_SECONDS, Measures
from llm_headroom.proxy.service import Proxies
from measured_values import Clock, counted, values

SENT: Final = 1.0


# What is retained ----------------------------------------------------------------------------------------------------
def test_an_observation_at_a_bound_lies_below_it() -> None:
    measures = Measures(limit=1)
    measures.observe(schema.REQUEST_PROMPT_TOKENS, "m", 1.0, 1.5, 2.0, 1e9)
    (found,) = [value for _, value, _ in measures.points({}) if isinstance(value, Histogram)]
    assert (found.counts[:3], found.counts[-2:], found.sum) == ((1.0, 3.0, 3.0), (3.0, 4.0), 1e9 + 4.5)


def test_tokens_are_counted_in_ones_twos_and_fives() -> None:
    steps = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000)
    for metric in (schema.REQUEST_PROMPT_TOKENS, schema.REQUEST_GENERATION_TOKENS):
        assert BOUNDS[metric] == (*map(float, steps), inf)


def test_seconds_are_counted_in_vllm_s_buckets_and_finer_ones_for_small_models() -> None:
    found = captures.mapped("vllm", captures.of("vllm/0.32.0/saturated"))
    vllm = {series.metric: value.bounds for series, value, _ in found if isinstance(value, Histogram)}
    vllm[schema.PROXY_FIRST_TOKEN_AFTER_LOAD] = vllm[schema.REQUEST_DURATION]
    tokens = {schema.INTER_TOKEN_LATENCY, schema.TIME_PER_OUTPUT_TOKEN}
    for metric in BOUNDS.keys() - {schema.REQUEST_PROMPT_TOKENS, schema.REQUEST_GENERATION_TOKENS}:
        finer = (0.001, 0.0025, 0.005) if metric in tokens else (0.05, 0.1, 0.2)
        assert BOUNDS[metric] == ((*finer, *vllm[metric]) if metric != schema.TIME_TO_FIRST_TOKEN else vllm[metric])


@pytest.mark.parametrize(
    ("untagged", "model", "label"),
    [("latest", "m", "m:latest"), ("latest", "m:1b", "m:1b"), ("", "m", "m"), ("latest", "", "")],
)
def test_a_model_without_a_tag_has_the_engine_s(untagged: str, model: str, label: str) -> None:
    measures = Measures(limit=1, untagged=untagged)
    assert measures.asked(model) == ""
    assert measures.label(model) == label
    assert measures.asked(model) == label


def test_a_model_that_the_engine_does_not_serve_is_another_one() -> None:
    measures = Measures(limit=1)
    measures.serves = lambda model: model == "m"
    assert [measures.label(each) for each in ("x", "m", "")] == ["other", "m", ""]
    assert measures.cap.capped() == {}


@pytest.mark.parametrize("reason", ["aborted", "client_error", "proxy_stopped", "overloaded", "upstream_refused"])
def test_availability_is_of_what_the_engine_can_do_something_about(reason: str) -> None:
    measures = Measures(limit=1)
    measures.failed("m", reason)
    measures.finished("m", "stop")
    found = counted(measures, "slo_requests")
    engines = reason in {"overloaded", "upstream_refused"}
    assert found["slo_requests_total{m,availability}"] == (2 if engines else 1)
    assert found["slo_requests_good_total{m,availability}"] == 1


def test_why_answers_cannot_be_read_is_logged_once_for_each_cause(caplog: pytest.LogCaptureFixture) -> None:
    measures = Measures(limit=1)
    errors = (FramingError("one"), FramingError("two"), FramingError("one"), KeyError("a"), KeyError("b"))
    for error in errors:
        measures.unseen(error)
    logged = [(vars(record)["reason"], bool(record.exc_info)) for record in caplog.records]
    assert logged == [("one", False), ("two", False), ("KeyError", True)]


def objective(name: str, field: str, seconds: float, ratio: float) -> Objective:
    return Objective(name=name, field=field, seconds=seconds, ratio=ratio)


@pytest.mark.parametrize(
    ("seconds", "age", "late"), [(2.5, 2.5, 0.0), (2.5, 3.0, 1.0), (3.0, 5.0, 0.0), (3.0, 5.5, 1.0), (1e6, 2e6, 0.0)]
)
def test_a_request_is_overdue_beyond_its_objective_s_bound(seconds: float, age: float, late: float) -> None:
    """As one that has ended is judged: by the next bound of the histogram."""
    clock = Clock(SENT + age)
    objectives = (objective("first", "ttft", seconds, 0.9), objective("whole", "duration", seconds, 0.95))
    measures = Measures(limit=1, clock=clock, objectives=objectives)
    first = measures.begin("m", SENT, streams=True)
    assert values(measures, schema.PROXY_OVERDUE) == [late, late]
    first.first = SENT
    measures.begin("m", SENT, streams=False)
    assert values(measures, schema.PROXY_OVERDUE) == [0.0, 2 * late]


def test_the_objective_of_availability_is_the_strictest() -> None:
    objectives = (objective("first", "ttft", 2.0, 0.99), objective("whole", "duration", 2.0, 0.9))
    for given, expected in (((), []), (objectives, [0.99])):
        measures = Measures(limit=1, objectives=given)
        measures.finished("m", "stop")
        assert values(measures, schema.SLO_OBJECTIVE) == expected


@pytest.mark.parametrize(
    ("left", "answered", "again", "silence"),
    [
        (5.0, False, 5.0 + RETRY_SECONDS, 29.0),
        (5.0, False, 5.1 + RETRY_SECONDS, 14.9),
        (5.0, True, 6.0, 24.0),
        (None, False, 6.0, 24.0),
    ],
)
def test_who_asks_again_soon_has_been_waiting_all_the_while(
    left: float | None, again: float, silence: float, *, answered: bool
) -> None:
    clock = Clock(30.0)
    measures = Measures(limit=1, clock=clock)
    first = measures.begin("m", SENT, streams=True)
    first.first = 2.0 if answered else None
    if left is None:
        measures.end(first)
    else:
        measures.end(first, left)
    assert values(measures, schema.PROXY_SILENCE) == [0.0]
    measures.begin("m", again, streams=True)
    assert values(measures, schema.PROXY_SILENCE) == [pytest.approx(silence)]


def test_a_silence_begins_with_the_first_of_the_streams_under_way_and_is_never_negative() -> None:
    clock = Clock(9.0)
    measures = Measures(limit=1, clock=clock)
    first, second = (measures.begin("m", at, streams=True) for at in (1.0, 4.0))
    assert values(measures, schema.PROXY_SILENCE) == [8.0]
    measures.end(first, 5.0)
    measures.end(first, 5.0)
    assert values(measures, schema.PROXY_SILENCE) == [8.0]
    second.traffic.heard = 10.0
    assert values(measures, schema.PROXY_SILENCE) == [0.0]
    measures.end(second, 5.0)
    measures.begin("m", 20.0, streams=True)
    clock.now = 21.0
    assert values(measures, schema.PROXY_SILENCE) == [1.0]


@pytest.mark.parametrize(
    ("limit", "running", "expected"),
    [(None, 3, [3.0]), (2, 1, [1.0, 0.0]), (2, 2, [2.0, 0.0]), (2, 3, [2.0, 1.0])],
)
def test_beyond_what_an_engine_runs_at_once_requests_wait(
    limit: int | None, running: int, expected: list[float]
) -> None:
    measures = Measures(limit=1, running_limit=limit)
    for _ in range(running):
        measures.begin("m", SENT, streams=False)
    assert values(measures, schema.REQUESTS_RUNNING) + values(measures, schema.REQUESTS_WAITING) == expected


@pytest.mark.parametrize(
    ("replicas", "running", "expected"),
    [((), 3, [2.0, 1.0]), (("",), 3, [2.0, 1.0]), (("0",), 3, [2.0, 1.0]), (("0", "1"), 5, [4.0, 1.0])],
)
def test_the_limit_is_that_of_each_replica_that_polls_have_shown(
    replicas: tuple[str, ...], running: int, expected: list[float]
) -> None:
    measures = Measures(limit=1, running_limit=2)
    for _ in range(running):
        measures.begin("m", SENT, streams=False)
    own = [Point(Series(schema.REQUESTS_RUNNING, {"replica": each} if each else {}), 1.0, "") for each in replicas]

    shown = {series.metric: value for series, value, _ in measures.points({}, own)}
    later = {series.metric: value for series, value, _ in measures.points({})}  # a poll that failed shows nothing

    assert [shown[schema.REQUESTS_RUNNING], shown[schema.REQUESTS_WAITING]] == expected
    assert later == shown


def test_requests_without_a_model_are_shown_until_the_engine_has_named_one() -> None:
    measures = Measures(limit=1)

    def models() -> dict[str, float]:
        found = [each for each in measures.points({}) if each.series.metric is schema.REQUESTS_RUNNING]
        return {series.label("model"): value for series, value, _ in found if isinstance(value, float)}

    nameless = measures.begin("", SENT, streams=False)
    assert models() == {"": 1.0}
    measures.end(nameless)
    assert models() == {"": 0.0}
    measures.begin("m", SENT, streams=False)
    assert models() == {"m": 1.0}
    measures.begin("", SENT, streams=False)
    assert models() == {"": 1.0, "m": 1.0}


@pytest.mark.parametrize("engine", ["ollama", "vllm"])
def test_nobody_waits_for_a_target_for_batches(engine: str) -> None:
    """As its polls, the proxy in front of it judges no latency; that requests are answered is judged all the same."""
    target = Target(name="t", endpoint=Endpoint(url="http://127.0.0.1:1"), engine=engine)
    judged = {}
    for purpose in ("interactive", "batch"):
        proxy = ProxySettings(listen="127.0.0.1:0", target="t")
        proxies = Proxies(Config(targets=(replace(target, purpose=purpose),), proxies=(proxy,)))
        measures = next(iter((*proxies.joined.values(), *(each.measures for each in proxies.sources))))
        measures.finished("m", "stop")
        measures.begin("m", -inf, streams=True)
        judged[purpose] = {
            f"{series.metric.name} {series.label('slo')}"
            for series, _, _ in measures.points({})
            if series.metric in {schema.PROXY_OVERDUE, schema.SLO_OBJECTIVE}
        }

    available = "llm_slo_objective_ratio availability"
    assert judged == {"interactive": {available, "llm_proxy_requests_overdue ttft"}, "batch": {available}}


@pytest.mark.parametrize(
    ("engine", "shown", "silence", "overdue"),
    [
        ("vllm", None, 40.0, 1.0),
        ("vllm", 0.0, 40.0, 1.0),
        ("llamacpp", None, 40.0, 1.0),
        ("llamacpp", 1.0, 40.0, 1.0),
        ("llamacpp", 0.0, 0.0, 0.0),
        ("ollama", None, 0.0, 0.0),
    ],
)
def test_a_load_may_explain_silence_where_engines_load_on_demand(
    engine: str, shown: float | None, silence: float, overdue: float
) -> None:
    """llama.cpp's polls show which models are in memory; Ollama's do not show the one that it is loading."""
    now = 0.0
    target = Target(name="t", endpoint=Endpoint(url="http://127.0.0.1:1"), engine=engine)
    door = ProxySettings(listen="127.0.0.1:0", target="t")
    proxies = Proxies(Config(targets=(target,), proxies=(door,)), clock=lambda: now)
    (measures,) = (*proxies.joined.values(), *(each.measures for each in proxies.sources))
    own = [] if shown is None else [Point(Series(schema.MODEL_LOADED, {"model": "m"}), shown, "")]
    measures.points({}, own)
    measures.begin("m", 1.0, streams=True)
    now = 41.0

    found = {(series.metric, series.label("slo")): value for series, value, _ in measures.points({}, own)}

    assert (found[schema.PROXY_SILENCE, ""], found[schema.PROXY_OVERDUE, "ttft"]) == (silence, overdue)
