"""The parts of a collection, each on literals: mapped values, labels, vocabularies, who answers, what is missing."""

from __future__ import annotations

import errno
import math
import socket
import ssl
from dataclasses import replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import pytest

from llm_headroom import schema
from llm_headroom.config.settings import EngineSettings, RuleSettings
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.engines.rules import Combine, Engine, Fact, Rule, always
from llm_headroom.exposition.text import Parser
from llm_headroom.model import Cause, Failure, Health, Histogram, Point, SampleState, Series, Snapshot
from llm_headroom.scrape import coverage, kv_cache
from llm_headroom.scrape.catalog import engines
from llm_headroom.scrape.identify import without_port
from llm_headroom.scrape.label_cap import OVERFLOW, LabelCap
from llm_headroom.scrape.layers import merge
from llm_headroom.scrape.mapping import Mapper
from llm_headroom.scrape.plan import Buckets, Derived, Newest, Plan, Rest, Scalar, bounded, is_share, possible, product
from llm_headroom.scrape.refusals import broken, root, unanswered, unconnected
from llm_headroom.scrape.vocabulary import Vocabulary, family

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_headroom.model import Metric

RUNNING, USAGE, TTFT = schema.REQUESTS_RUNNING, schema.KV_CACHE_USAGE, schema.TIME_TO_FIRST_TOKEN
INF, NAN = math.inf, math.nan


def point(metric: Metric, value: float | Histogram, **labels: str) -> Point:
    return Point(Series(metric, labels), value, "there")


# Plans ---------------------------------------------------------------------------------------------------------------
def plan(**parts: Any) -> Plan:  # noqa: ANN401 - fields of several types
    fields: dict[str, Any] = dict.fromkeys(
        ("numbers", "scalars", "distributions", "histograms", "constants", "unmapped", "problems"), ()
    )
    return Plan(**{**fields, "states": {}, "owned": True, **parts})


@pytest.mark.parametrize(
    ("metric", "combine", "scale", "values", "expected", "invalid"),
    [
        (RUNNING, Combine.SUM, 1.0, (2.0,), 2.0, 0),
        (RUNNING, Combine.SUM, 1.0, (0.0,), 0.0, 0),
        (RUNNING, Combine.SUM, 1.0, (-1.0,), None, 1),
        (RUNNING, Combine.SUM, 1.0, (NAN,), None, 1),
        (RUNNING, Combine.SUM, 1.0, (INF,), None, 1),
        (RUNNING, Combine.SUM, 0.001, (2000.0,), 2.0, 0),
        (RUNNING, Combine.SUM, 1.0, (2.0, 3.0), 5.0, 0),
        (RUNNING, Combine.SUM, 1.0, (2.0, NAN), None, 2),
        (RUNNING, Combine.MAX, 1.0, (2.0, 3.0), 3.0, 0),
        (USAGE, Combine.MAX, 1.0, (1.0,), 1.0, 0),
        (USAGE, Combine.MAX, 1.0, (1.01,), 1.0, 0),
        (USAGE, Combine.MAX, 1.0, (1.011,), None, 1),
        (USAGE, Combine.MAX, 0.01, (100.0,), 1.0, 0),
        (USAGE, Combine.MAX, 0.01, (100.9,), 1.0, 0),
        (USAGE, Combine.MAX, 0.01, (102.0,), None, 1),
    ],
)
def test_a_number_is_read_where_it_can_be_one(  # noqa: PLR0913, PLR0917 - a table
    metric: Metric, combine: Combine, scale: float, values: tuple[float, ...], expected: float | None, invalid: int
) -> None:
    most = 1.0 / scale if metric is USAGE else 1.7e308
    how = Scalar("it", tuple(range(len(values))), scale, combine, most)
    mapped = plan(numbers=(Series(metric, {}),), scalars=(how,)).apply(values)
    assert [each.value for each in mapped.points] == ([] if expected is None else [expected])
    above = expected is None and metric is USAGE
    assert (mapped.invalid, len(mapped.problems)) == (invalid, int(above))
    if above:
        assert mapped.problems == (f"it is above 1, which no share can be: {USAGE.name} is withheld",)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((1.0, 3.0, 4.0), Histogram((1.0, INF), (1.0, 3.0), 8.0)),
        ((3.0, 3.0, 0.0), Histogram((1.0, INF), (3.0, 3.0), 0.0)),
        ((3.0, 1.0, 4.0), None),
        ((-1.0, 1.0, 4.0), None),
        ((1.0, INF, 4.0), None),
        ((1.0, 3.0, -1.0), None),
        ((1.0, 3.0, INF), None),
        ((1.0, NAN, 4.0), None),
    ],
)
def test_a_histogram_is_read_where_it_is_one(values: tuple[float, ...], expected: Histogram | None) -> None:
    one = Buckets("it", (1.0, INF), (itemgetter(0, 1),), (2,), 2.0)
    found = plan(distributions=(Series(TTFT, {}),), histograms=(one,)).apply(values)
    assert [each.value for each in found.points] == ([] if expected is None else [expected])
    assert found.invalid == (2 if expected is None else 0)
    two = one._replace(parts=(itemgetter(0, 1), itemgetter(0, 1)), sums=(2, 2), scale=1.0)
    both = plan(distributions=(Series(TTFT, {}),), histograms=(two,)).apply(values)
    assert both.invalid == (4 if expected is None else 0)
    if expected is not None:
        doubled = Histogram((1.0, INF), tuple(2.0 * count for count in expected.counts), expected.sum)
        assert [each.value for each in both.points] == [doubled]


@pytest.mark.parametrize(
    ("values", "left"),
    [
        ((9.0, 1.0, 3.0, 4.0), [(10.0, 3.0)]),
        ((1.0, 1.0, 3.0, 4.0), [(2.0, 0.0)]),
        ((9.0, 1.0, 0.0, 0.0), [(10.0, 10.0)]),
        ((9.0, 1.0, -3.0, 0.0), []),
        ((9.0, 1.0, INF, 0.0), []),
        ((INF, 1.0, 3.0, 4.0), []),
        ((NAN, 1.0, 3.0, 4.0), []),
    ],
)
def test_what_is_left_of_a_counter(values: tuple[float, ...], left: list[tuple[float, float]]) -> None:
    rest = Rest(Series(RUNNING, {}), "it", (0, 1), (2, 3))
    assert [(whole, less) for _, whole, less in plan(rests=(rest,)).left(values)] == left


def test_of_infos_the_newest_holds_and_products_stand_behind_the_values() -> None:
    old, new = (point(schema.ENGINE_INFO, 1.0, version=name) for name in ("old", "new"))
    constant = point(RUNNING, 7.0)
    made = Derived(product, (0, 1))
    found = plan(
        newest=(Newest((0, 1), ((old,), (new,))),), constants=(constant,), derived=(made,),
        numbers=(Series(RUNNING, {}),), scalars=(Scalar("it", (2,), 1.0, Combine.SUM, 1e9),),
    )  # fmt: skip
    assert found.apply((3.0, 4.0)).points == [constant, Point(Series(RUNNING, {}), 12.0, "it"), new]
    assert found.apply((4.0, 3.0)).points[-1] == old


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [(2.0, 3.0, 6.0), (0.0, 3.0, 0.0), (3.0, 0.0, 0.0), (-1.0, 3.0, None), (3.0, -1.0, None), (-1.0, -1.0, None)],
)
def test_a_product_of_what_cannot_be_is_none(one: float, other: float, expected: float | None) -> None:
    found = product(one, other)
    assert found == expected or (expected is None and math.isnan(found))


def test_shares_are_at_most_1() -> None:
    assert is_share(USAGE)
    assert not is_share(RUNNING)
    assert not is_share(schema.GPU_UTILIZATION)
    assert (bounded(0.5), bounded(1.005), bounded(1.01), bounded(1.02)) == (0.5, 1.0, 1.0, None)
    assert (possible(5.0, RUNNING), possible(5.0, USAGE), possible(0.5, USAGE)) == (5.0, None, 0.5)


# Facts and labels ----------------------------------------------------------------------------------------------------
def placed(*facts: Fact, given: Sequence[Point] = (), model: str = "", limit: int = 10) -> tuple[list[Any], int]:
    mapper = Mapper(BUILT_IN["ollama"], {"target": "t"}, cap=LabelCap(limit), model=model)
    found = mapper.place(facts, given)
    return [(each.series.metric, each.series.label("model"), each.value) for each in found.points], found.invalid


def test_facts_become_points_where_no_rule_gave_their_metric() -> None:
    facts = [Fact(RUNNING, {"model": name}, value, "it") for name, value in (("a", 1.0), ("b", 2.0))]
    assert placed(*facts) == ([(RUNNING, "a", 1.0), (RUNNING, "b", 2.0)], 0)
    assert placed(*facts, given=[point(RUNNING, 9.0)]) == ([], 0)
    for impossible in (-1.0, INF, NAN):
        assert placed(Fact(RUNNING, {"model": "a"}, impossible, "it")) == ([], 0)
    assert placed(Fact(RUNNING, {"model": "a"}, 0.0, "it")) == ([(RUNNING, "a", 0.0)], 0)
    assert placed(Fact(schema.MODEL_OFFLOAD, {"model": "a"}, 1.5, "it")) == ([], 1)
    assert placed(facts[0], model="mine") == ([(RUNNING, "mine", 1.0)], 0)
    assert placed(Fact(schema.MODELS_LOADED, {}, 1.0, "it"), model="mine") == ([(schema.MODELS_LOADED, "", 1.0)], 0)


def test_facts_beyond_the_cap_are_added_up_or_the_largest() -> None:
    running = [Fact(RUNNING, {"model": name}, value, "it") for name, value in (("a", 1.0), ("b", 2.0), ("c", 4.0))]
    assert placed(*running, limit=1) == ([(RUNNING, "a", 1.0), (RUNNING, OVERFLOW, 6.0)], 0)
    shares = [Fact(schema.MODEL_OFFLOAD, fact.labels, fact.value / 10.0, "it") for fact in running]
    assert placed(*shares, limit=1)[0][1:] == [(schema.MODEL_OFFLOAD, OVERFLOW, 0.4)]
    twice = [running[0], Fact(RUNNING, {"model": "a"}, 5.0, "it")]
    assert placed(*twice) == ([(RUNNING, "a", 1.0)], 0), "the first one is used"


def test_layers_give_each_metric_of_a_model_once() -> None:
    rich = [point(RUNNING, 1.0, model="a", replica="0"), point(RUNNING, 2.0, model="a", replica="1")]
    poor = [point(RUNNING, 9.0, model="a"), point(RUNNING, 3.0, model="b"), point(USAGE, 0.1, model="a")]
    assert merge([rich, poor]) == [*rich, *poor[1:]]


# The KV cache --------------------------------------------------------------------------------------------------------
CAPACITY, USED = schema.KV_CACHE_CAPACITY, schema.KV_CACHE_USED


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({CAPACITY: 200.0, USAGE: 0.25}, {CAPACITY: 200.0, USAGE: 0.25, USED: 50.0}),
        ({CAPACITY: 200.0, USED: 50.0}, {CAPACITY: 200.0, USAGE: 0.25, USED: 50.0}),
        ({CAPACITY: 200.0, USED: 50.0, USAGE: 0.9}, {CAPACITY: 200.0, USED: 50.0, USAGE: 0.9}),
        ({CAPACITY: 200.0, USED: 300.0}, {CAPACITY: 200.0, USED: 200.0, USAGE: 1.0}),
        ({CAPACITY: 200.0, USED: 200.0}, {CAPACITY: 200.0, USED: 200.0, USAGE: 1.0}),
        ({CAPACITY: 0.0, USED: 50.0, RUNNING: 1.0}, {USED: 50.0, RUNNING: 1.0}),
        ({CAPACITY: 1.0, USAGE: 0.5}, {CAPACITY: 1.0, USAGE: 0.5, USED: 0.5}),
        ({USED: 50.0}, {USED: 50.0}),
        ({CAPACITY: 200.0}, {CAPACITY: 200.0}),
    ],
)
def test_what_follows_of_two_parts_of_the_kv_cache(given: dict[Metric, float], expected: dict[Metric, float]) -> None:
    points = [point(metric, value, replica="0") for metric, value in given.items()]
    found = kv_cache.completed(points)
    assert {each.series.metric: each.value for each in found} == expected
    assert {each.series.label("replica") for each in found} == {"0"}
    other = point(USED, 999.0, replica="1")
    assert other in kv_cache.completed([*points, other])


def test_what_follows_names_both_of_its_origins() -> None:
    parts = [Point(Series(CAPACITY, {}), 4.0, "blocks"), Point(Series(USAGE, {}), 0.5, "share")]
    assert [each.origin for each in kv_cache.implied(parts)] == ["share * blocks"]
    parts = [Point(Series(CAPACITY, {}), 4.0, "blocks"), Point(Series(USED, {}), 2.0, "held")]
    assert [each.origin for each in kv_cache.implied(parts)] == ["held / blocks"]


# Vocabularies --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("a_bucket", "histogram", "a"), ("a_sum", "summary", "a"), ("a_count", "gaugehistogram", "a"),
        ("a_bucket", "gauge", "a_bucket"), ("a", "histogram", "a"), ("a_sum_count", "summary", "a_sum"),
    ],
)  # fmt: skip
def test_the_family_of_a_sample(name: str, kind: str, expected: str) -> None:
    assert family(name, kind) == expected


OURS = Engine(
    name="x", title="X", port=0, prefixes=("x:", "x_"), documents=always(),
    rules=(Rule(RUNNING, ("x:running",)), Rule(TTFT, ("x:first_seconds",))), ignored={"x:old_*": "", "plain": ""},
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind", "state"),
    [
        ("x:running", "gauge", SampleState.MAPPED),
        ("x_running", "gauge", SampleState.MAPPED),
        ("x:first_seconds_bucket", "histogram", SampleState.MAPPED),
        ("x:old_one", "gauge", SampleState.IGNORED),
        ("x_old_one", "gauge", SampleState.IGNORED),
        ("y_old_one", "gauge", SampleState.UNKNOWN),
        ("plain", "gauge", SampleState.IGNORED),
        ("x:other", "gauge", SampleState.UNKNOWN),
    ],
)
def test_how_a_sample_is_handled(name: str, kind: str, state: SampleState) -> None:
    vocabulary = Vocabulary(OURS)
    assert [vocabulary.state(name, kind) for _ in range(2)] == [state, state]


def mapped(*lines: str, engine: Engine = OURS, model: str = "") -> tuple[Plan, dict[tuple[str, str], Any]]:
    mapper = Mapper(engine, {"target": "t"}, cap=LabelCap(10))
    made, found = mapper.map(Parser().parse("".join(f"{line}\n" for line in lines).encode()), model=model)
    return made, {(each.series.label("model"), each.series.label("replica")): each.value for each in found.points}


def test_labels_that_no_rule_knows_keep_series_apart_and_ranks_repeat_one_another() -> None:
    assert mapped('x:running{model_name="m"} 2')[1] == {("m", ""): 2.0}
    assert mapped("x:running 2", model="n")[1] == {("n", ""): 2.0}
    apart, values = mapped('x:running{shard="a"} 2', 'x:running{shard="b"} 3')
    assert values == {("", "a"): 2.0, ("", "b"): 3.0}
    assert apart.problems == ("no rule knows the label shard: its series are separated as replicas",)
    assert apart.states[SampleState.UNKNOWN_LABEL] == 2
    alike, values = mapped('x:running{shard="a",zone="z"} 2', 'x:running{shard="b",zone="z"} 3')
    assert (values, alike.problems) == ({("", "a"): 2.0, ("", "b"): 3.0}, apart.problems)
    for label in ("local_rank", "RankId", "tp", "pp_index", "EP"):
        ranks, values = mapped(f'x:running{{{label}="0"}} 2', f'x:running{{{label}="1"}} 3')
        assert values == {("", ""): 3.0}
        assert ranks.problems[0].startswith(f"no rule knows the label {label}: the largest of what it repeats")
    for label in ("dp_rank", "data_rank", "dpRank", "shard_tp"):
        assert mapped(f'x:running{{{label}="0"}} 2', f'x:running{{{label}="1"}} 3')[1] == {
            ("", "0"): 2.0,
            ("", "1"): 3.0,
        }
    one, values = mapped('x:running{shard="a"} 2')
    assert (values, one.problems) == ({("", ""): 2.0}, ())


def test_a_rule_of_the_configuration_adds_up_ranks_that_repeat_one_another_for_others() -> None:
    engine = replace(OURS, rules=(*OURS.rules, Rule(schema.REQUESTS_WAITING, ("x:waiting",), sums=True)))
    lines = [
        f'x:{name}{{local_rank="{rank}",model_name="{name}"}} {value}'
        for name in ("running", "waiting")
        for rank, value in ((0, 2), (1, 3))
    ]
    assert mapped(*lines, engine=engine)[1] == {("running", ""): 3.0, ("waiting", ""): 5.0}


@pytest.mark.parametrize(
    ("metric", "combine", "expected"),
    [
        (schema.REQUESTS_WAITING, Combine.SUM, 0.875),
        (schema.REQUESTS_WAITING, Combine.MAX, 0.5),
        (schema.REQUESTS_WAITING, Combine.FIRST, 0.25),
        (USAGE, Combine.SUM, 0.5),  # ratios are never summed
        (USAGE, Combine.FIRST, 0.25),
    ],
)
def test_a_rule_of_the_configuration_combines_series_as_it_says(
    metric: Metric, combine: Combine, expected: float
) -> None:
    engine = replace(OURS, rules=(Rule(metric, ("x:some",), combine=combine, sums=True),))
    lines = (f'x:some{{queue="{name}"}} {value}' for name, value in (("b", 0.25), ("a", 0.5), ("c", 0.125)))
    assert mapped(*lines, engine=engine)[1] == {("", ""): expected}


def test_a_series_that_is_exposed_twice_is_read_once() -> None:
    made, values = mapped('x:running{a="b"} 2', 'x:running{a="b"} 7', "x:new 1")
    assert values == {("", ""): 2.0}
    assert made.problems == ("exposed more than once with the same labels, the first is read: x:running",)
    assert (made.states[SampleState.INVALID], made.unmapped) == (1, ("x:new",))


def test_of_known_ranks_the_lowest_speaks() -> None:
    engine = replace(OURS, rank_labels=("tp_rank",))
    lines = [f'x:running{{tp_rank="{rank}"}} {value}' for rank, value in (("10", 1), ("2", 5), ("3", 9))]
    assert mapped(*lines, engine=engine)[1] == {("", ""): 5.0}
    assert mapped('x:running{tp_rank="x"} 4', *lines, engine=engine)[1] == {("", ""): 4.0}


def test_a_model_that_all_others_name_is_that_of_those_without() -> None:
    two = replace(OURS, rules=(*OURS.rules, Rule(schema.REQUESTS_WAITING, ("x:waiting",))))
    assert mapped("x:running 2", 'x:waiting{model_name="m"} 3', engine=two)[1] == {("m", ""): 3.0}
    several = ['x:waiting{model_name="m"} 3', 'x:waiting{model_name="n"} 4']
    assert mapped("x:running 2", *several, engine=two)[1][("", "")] == 2.0


@pytest.mark.parametrize(
    "broken_lines",
    [
        ['x:first_seconds_bucket{le="1"} 1', "x:first_seconds_sum 2"],
        ['x:first_seconds_bucket{le="1"} 1', 'x:first_seconds_bucket{le="+Inf"} 2'],
        ['x:first_seconds_bucket{le="nan"} 1', "x:first_seconds_sum 2"],
        ['x:first_seconds_bucket{le="x"} 1', "x:first_seconds_sum 2"],
    ],
)
def test_a_histogram_that_lacks_a_part_is_dropped(broken_lines: list[str]) -> None:
    made, values = mapped("# TYPE x:first_seconds histogram", *broken_lines)
    assert values == {}
    text = "x:first_seconds: a histogram without its +Inf bucket, its sum or one of its bounds was dropped"
    assert text in made.problems


def test_a_histogram_in_another_unit_has_scaled_bounds_and_sum() -> None:
    engine = replace(OURS, rules=(Rule(TTFT, ("x:first_ms",), scale=0.001),))
    lines = ['x:first_ms_bucket{le="500"} 1', 'x:first_ms_bucket{le="+Inf"} 2', "x:first_ms_sum 3000"]
    assert mapped(*lines, engine=engine)[1] == {("", ""): Histogram((0.5, INF), (1.0, 2.0), 3.0)}


def test_a_histogram_has_at_most_200_bounds() -> None:
    def lines(count: int) -> list[str]:
        bounds = [*map(str, range(1, count)), "+Inf"]
        return [*(f'x:first_seconds_bucket{{le="{bound}"}} 1' for bound in bounds), "x:first_seconds_sum 2"]

    assert len(mapped(*lines(200))[1]) == 1
    made, values = mapped(*lines(201))
    assert values == {}
    assert made.problems == ("x:first_seconds: a histogram of 201 bounds was dropped; 200 are the most",)


def test_what_was_taken_off_a_counter_does_not_make_it_fall() -> None:
    rule = Rule(schema.PROMPT_TOKENS, ("x:all",), less=("x:part",))
    mapper = Mapper(replace(OURS, rules=(rule,)), {}, cap=LabelCap(10))
    parser, found = Parser(), []
    for whole, part in ((10, 4), (10, 6), (12, 7), (3, 1), (4, 3)):
        _, made = mapper.map(parser.parse(f"x:all {whole}\nx:part {part}\n".encode()))
        found.append(made.points[0].value)
    assert found == [6.0, 6.0, 6.0, 2.0, 2.0]
    assert made.points[0].origin == "x:all - x:part"


# Engines of the configuration ----------------------------------------------------------------------------------------
def test_engines_and_rules_of_the_configuration() -> None:
    from llm_headroom.config.settings import Config  # noqa: PLC0415 - beside its one use

    rule = RuleSettings(metric="llm_requests_running", names=("tgi_size",), scale=2.0, combine="max")
    tgi = EngineSettings(name="tgi", rules=(rule,), prefixes=("tgi_", "t_"), ignored=("tgi_x*",), path="/m", port=8080)
    route = EngineSettings(name="r", rules=(RuleSettings(metric="llm_router_requests_total", names=("a",)),))
    found = engines(Config(engines={"tgi": tgi, "r": route}, mappings={"vllm": (rule,)}))
    assert set(found) == {*BUILT_IN, "tgi", "r"}
    made = found["tgi"]
    (document,) = made.documents({})
    assert (document.path, document.text, made.port, made.title, made.subject.value) == (
        "/m", True, 8080, "tgi", BUILT_IN["vllm"].subject.value,
    )  # fmt: skip
    assert made.silent == "no metrics that begin with tgi_ or t_"
    assert (found["r"].silent, found["r"].port, found["r"].subject) == ("", 0, BUILT_IN["sglang_router"].subject)
    first = found["vllm"].rules[0]
    assert (first.names, first.scale, first.combine, first.sums) == (("tgi_size",), 2.0, Combine.MAX, True)
    assert found["vllm"].rules[1:] == BUILT_IN["vllm"].rules
    vocabulary = Vocabulary(made)
    states = [vocabulary.state(name, "gauge") for name in ("tgi_xy", "process_open_fds", "tgi_size", "tgi_y")]
    assert states == [SampleState.IGNORED, SampleState.IGNORED, SampleState.MAPPED, SampleState.UNKNOWN]
    snapshot = Snapshot(target="t", engine="tgi", taken=0.0, points=(), health=Health(up=True))
    reasons = dict(coverage.missing(snapshot, made))
    assert {reasons[schema.KV_CACHE_CAPACITY.name], reasons[schema.PROMPT_TOKENS.name]} == {
        "no rule under `engines.tgi` gives it"
    }


# What is missing -----------------------------------------------------------------------------------------------------
def missing(engine: str | None, *points: Point, **health: Any) -> dict[str, str]:  # noqa: ANN401 - of a Health
    name = engine or coverage.GPUS
    snapshot = Snapshot(target="t", engine=name, taken=0.0, points=points, health=Health(**{"up": True, **health}))
    return dict(coverage.missing(snapshot, None if engine is None else BUILT_IN[engine]))


def test_why_a_metric_is_missing() -> None:
    vllm = missing("vllm", point(RUNNING, 1.0))
    assert RUNNING.name not in vllm
    assert schema.ENGINE_STATE.name not in vllm
    assert vllm[schema.MODEL_LOADS.name] == "only of engines that load models on demand, such as Ollama"
    assert vllm[schema.QUEUE_OVERFLOW_RISK.name].startswith("only of engines that limit their queue")
    assert vllm[schema.HOST_MEMORY_LIMIT.name].startswith("read on the engine's own host")
    assert vllm[schema.LOAD_HEADROOM.name] == "derived: the engine does not report the size of its KV cache"
    assert vllm[schema.PRESSURE.name].startswith("worked out from several readings")
    assert vllm[schema.REQUESTS_WAITING.name].startswith("the engine exposes no vllm:num_requests_waiting")
    assert vllm[schema.PROXY_SILENCE.name].endswith("; name one under `proxies` to get it")
    assert missing("vllm")[schema.LOAD_HEADROOM.name].startswith("derived: the engine does not report the requests")

    host = missing("vllm", point(schema.HOST_MEMORY_USED, 1.0))
    assert host[schema.HOST_MEMORY_LIMIT.name] == "the engine's control group has no memory limit"
    ollama = missing("ollama", point(schema.MODELS_LOADED, 1.0))
    assert ollama[schema.MODEL_LOADS.name].startswith("worked out from several readings")
    assert ollama[schema.QUEUE_OVERFLOW_RISK.name].startswith("worked out from several readings")
    assert ollama[TTFT.name].endswith("run with `--ollama-proxy :11435` to get it")

    gpus = missing(None)
    assert gpus[schema.GPU_TEMPERATURE.name] == "not supported by these devices or this driver"
    assert gpus[schema.GPU_PCIE_THROUGHPUT.name].startswith("off, since it takes 40 ms")
    assert gpus[schema.GPU_MEMORY_ENGINE.name] == "no engine is known to hold memory of these devices"
    assert RUNNING.name not in gpus
    assert schema.ROUTER_REQUESTS.name in missing("sglang_router")
    assert schema.ROUTER_REQUESTS.name not in vllm


def test_of_what_is_down_everything_is_missing_for_one_reason() -> None:
    why = missing("vllm", up=False, error=Failure(Cause.REFUSED, "why"))
    assert set(why.values()) == {"why"}
    assert set(missing("vllm", up=False).values()) == {"the source is down"}
    assert coverage.by_reason([("a", "x"), ("b", "y"), ("c", "x")]) == {"x": ["a", "c"], "y": ["b"]}


# Refusals ------------------------------------------------------------------------------------------------------------
def tls(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, "it broke")
    error.reason = reason
    return error


def unverified(code: int) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "it broke")
    error.reason, error.verify_code, error.verify_message = "CERTIFICATE_VERIFY_FAILED", code, "bad"
    return error


REFUSED = OSError(f"Multiple exceptions: [Errno {errno.ECONNREFUSED}] a, [Errno {errno.ENETUNREACH}] b")


@pytest.mark.parametrize(
    ("error", "encrypted", "cause", "words"),
    [
        (REFUSED, False, Cause.REFUSED, "the connection was refused"),
        (OSError("no way"), False, Cause.UNREACHABLE, "cannot connect: no way"),
        (socket.gaierror("x"), False, Cause.UNREACHABLE, "the host name cannot be resolved: x"),
        (UnicodeError("x"), True, Cause.UNREACHABLE, "the host name cannot be resolved: x"),
        (ConnectionResetError("x"), True, Cause.TLS, "the server closed the connection during the TLS handshake"),
        (ConnectionResetError(104, "x"), True, Cause.UNREACHABLE, "cannot connect: [Errno 104] x"),
        (ConnectionResetError("x"), False, Cause.UNREACHABLE, "cannot connect: x"),
        (OSError("x"), True, Cause.UNREACHABLE, "cannot connect: x"),
        (unverified(9), True, Cause.TLS, "is not accepted: bad; compare the clocks of both hosts"),
        (unverified(66), True, Cause.TLS, "is not accepted: bad; have it issued again with a key of 2048 bits"),
        (unverified(67), True, Cause.TLS, "is not accepted: bad; have it issued again with a key of 2048 bits"),
        (unverified(68), True, Cause.TLS, "is not accepted: bad; have it issued again with a key of 2048 bits"),
        (unverified(10), True, Cause.TLS, "is not accepted: bad; renew it on the engine"),
        (unverified(62), True, Cause.TLS, "is not accepted: bad; set the target's TLS server_name"),
        (unverified(64), True, Cause.TLS, "is not accepted: bad; set the target's TLS server_name"),
        (unverified(18), True, Cause.TLS, "is not accepted: bad; set the target's TLS ca_file"),
        (tls("WRONG_VERSION_NUMBER"), True, Cause.TLS, "the server does not speak TLS on this port"),
        (tls("TLSV13_ALERT_CERTIFICATE_REQUIRED"), True, Cause.TLS, "the server refused the TLS session"),
        (tls("OTHER"), True, Cause.TLS, "TLS failed: OTHER"),
    ],
)
def test_why_there_is_no_connection(error: Exception, cause: Cause, words: str, *, encrypted: bool) -> None:
    found = unconnected(error, encrypted=encrypted)
    assert (found.cause, words in str(found)) == (cause, True)


def test_why_a_connection_is_no_longer_there() -> None:
    assert (broken(OSError("x")).cause, str(broken(OSError("x")))) == (Cause.TRUNCATED, "the connection broke: x")
    assert str(broken(tls(""))) == "TLS failed: (1, 'it broke')" or "it broke" in str(broken(tls("")))
    assert "not accept the one that it was shown" in str(unanswered(encrypted=True))
    assert (unanswered(encrypted=False).cause, unanswered(encrypted=True).cause) == (Cause.TRUNCATED, Cause.TLS)


def test_the_first_error_is_the_reason() -> None:
    first, second, third = ValueError("1"), ValueError("2"), ValueError("3")
    second.__cause__ = first
    third.__context__ = second
    assert root(third) is third
    third.__suppress_context__ = True
    assert root(third) is first


def test_a_url_without_a_port_is_seldom_what_was_meant() -> None:
    engine = replace(OURS, port=8000)
    assert without_port("http://a:80", [engine]) == ""
    assert without_port("http://a", [engine, OURS]) == "; the URL has no port, so 80 was tried (usual: X 8000)"
    assert without_port("https://a", [engine]) == "; the URL has no port, so 443 was tried (usual: X 8000)"
