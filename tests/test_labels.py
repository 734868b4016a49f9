"""A label that no rule knows is never summed away in silence."""

from __future__ import annotations

import functools
import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import captures
import field_inputs
from captures import Capture, value, values
from llm_headroom import schema
from llm_headroom.derive import replicas
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.engines.rules import Fact, Rule
from llm_headroom.exposition.text import Parser
from llm_headroom.model import Histogram, SampleState
from llm_headroom.scrape import kv_cache
from one_target import polled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_headroom.model import Point, Series

ENGINES = [capture for capture in captures.ALL if capture.engine in {"vllm", "sglang"}]
STRANGE = ("WorkerId", "ReplicaId", "shard", "zone")
RANKS = ("moe_rank", "cp_rank", "local_rank", "rank", "RankId", "global_rank_index", "tp")
OF_EACH_RANK = {
    rule.metric.name for engine in BUILT_IN.values() for rule in engine.rules if rule.per_rank or rule.newest
}
"""Metrics that each rank has of its own, and those of the newest series."""


@functools.cache
def gauged() -> Sequence[Capture]:
    """Captures with gauges: of SGLang's counters and histograms labels that nobody knows add up."""
    return [
        each
        for each in ENGINES
        if values(captures.mapped(each.engine, captures.parsed(each.exposition)), "llm_requests_running")
    ]


def labelled(text: bytes, label: str, texts: Sequence[str]) -> bytes:
    """An exposition whose every series stands there once for each value of a further label."""

    def again(line: str) -> list[str]:
        name, brace, rest = line.partition("{")
        if brace:
            return [f'{name}{{{label}="{each}",{rest}' for each in texts]
        name, _, number = line.partition(" ")
        return [f'{name}{{{label}="{each}"}} {number}' for each in texts]

    lines = text.decode().splitlines()
    return "".join(
        f"{new}\n" for line in lines for new in ([line] if line.startswith("#") or not line else again(line))
    ).encode()


def mapped(engine: str, text: bytes) -> tuple[list[Point], dict[SampleState, int], tuple[str, ...]]:
    """Points with what they imply of the KV cache, the states of samples, and what there is to say."""
    plan, found = captures.mapper(engine).map(Parser().parse(text))
    points = found.points
    return [*points, *kv_cache.implied(points)], dict(plan.states), plan.problems


def holds(points: Sequence[Point]) -> None:
    """What must be true of any engine: no ratio above 1, nothing used beyond the capacity."""
    for each in points:
        if each.series.metric.name.endswith("_ratio"):
            assert isinstance(each.value, float)
            assert each.value <= 1.0, each
    capacity = values(points, "llm_kv_cache_capacity_tokens", "model", "replica")
    for key, used in values(points, "llm_kv_cache_used_tokens", "model", "replica").items():
        assert isinstance(used, float)
        assert used <= capacity.get(key, math.inf), key  # type: ignore[operator]  # both are numbers


def of_target(points: Sequence[Point], metric: str) -> float:
    """The sum of a metric over the target's models and replicas."""
    found = [each.value for each in points if each.series.metric.name == metric]
    return sum(each for each in found if not isinstance(each, Histogram))


def once(points: Sequence[Point]) -> dict[Series, float | Histogram]:
    """Values of all series but those of metrics that each rank has of its own."""
    return {each.series: each.value for each in points if each.series.metric.name not in OF_EACH_RANK}


@pytest.mark.parametrize("capture", ENGINES, ids=str)
def test_the_figures_of_captures_hold(capture: Capture) -> None:
    points, states, _ = mapped(capture.engine, capture.exposition.read_bytes())

    holds(points)
    assert SampleState.UNKNOWN_LABEL not in states


@settings(deadline=None, max_examples=25)
@given(
    capture=st.deferred(lambda: st.sampled_from(gauged())),
    label=st.sampled_from(STRANGE),
    texts=st.lists(st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True), min_size=2, max_size=4, unique=True),
)
def test_series_under_an_unknown_label_are_kept_apart_and_it_is_said(
    capture: Capture, label: str, texts: list[str]
) -> None:
    text = capture.exposition.read_bytes()
    before, _, _ = mapped(capture.engine, text)
    points, states, problems = mapped(capture.engine, labelled(text, label, texts))

    holds(points)
    assert states[SampleState.UNKNOWN_LABEL] > 0
    assert any(label in problem and "separated" in problem for problem in problems)
    for metric in ("llm_requests_running", "llm_requests_waiting", "llm_kv_cache_capacity_tokens"):
        assert of_target(points, metric) == pytest.approx(len(texts) * of_target(before, metric))
    usage = values(replicas.combined(points), "llm_kv_cache_usage_ratio", "model")
    assert usage == pytest.approx(values(replicas.combined(before), "llm_kv_cache_usage_ratio", "model"))


@settings(deadline=None, max_examples=25)
@given(capture=st.sampled_from(ENGINES), label=st.sampled_from(RANKS), ranks=st.integers(2, 5))
def test_what_an_unknown_rank_repeats_counts_once(capture: Capture, label: str, ranks: int) -> None:
    text = capture.exposition.read_bytes()
    before, _, _ = mapped(capture.engine, text)
    points, states, problems = mapped(capture.engine, labelled(text, label, [str(rank) for rank in range(ranks)]))

    holds(points)
    assert states[SampleState.UNKNOWN_LABEL] > 0
    assert any(label in problem and "largest" in problem for problem in problems)
    assert once(points) == once(before)


def test_stages_of_a_pipeline_are_models_of_their_own() -> None:
    snapshot = polled("vllm", field_inputs.routes("04")).snapshot
    points = snapshot.points

    holds(points)
    running = values(points, "llm_requests_running", "model", "replica")
    assert running == {
        ("omni", ""): 3.0,
        ("omni/thinker", "0"): 3.0,
        ("omni/talker", "0"): 2.0,
        ("omni/talker", "1"): 1.0,
        ("omni/code2wav", "0"): 0.0,
    }
    assert values(points, "llm_requests_finished_total", "model") == {"omni": 20.0}
    assert values(points, "llm_kv_cache_capacity_tokens", "model", "replica")["omni/thinker", "0"] == 200000.0
    assert any("replica" in warning.message for warning in snapshot.health.warnings)


@pytest.mark.parametrize("name", ["routes.json", "routes2.json"])
def test_a_coordinator_that_exports_its_engines_metrics_again_is_refused(name: str) -> None:
    snapshot = polled("vllm", field_inputs.routes("06", name)).snapshot

    assert snapshot.health.error is not None
    assert snapshot.health.error.cause == "not_this_engine"
    assert "engines behind it" in snapshot.health.error.message


def test_ranks_of_data_parallelism_are_replicas() -> None:
    text = b"".join(
        b'vllm:num_requests_running{model_name="m",dp_rank="%d"} %d\nvllm:kv_cache_usage_perc{dp_rank="%d"} 0.9\n'
        % (rank, rank + 1, rank)
        for rank in range(2)
    )
    points, _, _ = mapped("vllm", text)

    assert values(points, "llm_requests_running", "replica") == {"0": 1.0, "1": 2.0}
    assert value(list(replicas.combined(points)), "llm_kv_cache_usage_ratio") == pytest.approx(0.9)


def test_every_ratio_that_engines_expose_is_named_so() -> None:
    ratios = [metric.name for metric in schema.ALL if metric.unit == "1" and metric.exposed_by_engines]

    assert ratios
    assert all(re.search(r"_ratio$|_acceptance$", name) for name in ratios)


def test_of_what_does_not_add_up_the_largest_is_that_of_the_values_beyond_the_cap() -> None:
    facts = [
        Fact(metric, {"model": f"m{number}"}, value, "")
        for number in range(5)
        for metric, value in ((schema.MODEL_OFFLOAD, 0.2 * number), (schema.MODEL_CONTEXT, 100.0 * number))
    ]
    facts += [Fact(schema.MODEL_MEMORY, {"model": f"m{number}", "kind": "total"}, 10.0, "") for number in range(5)]
    points = captures.mapper("ollama", limit=2).place(facts, ()).points

    assert values(points, "llm_model_offload_ratio", "model")["other"] == pytest.approx(0.8)
    assert values(points, "llm_model_context_tokens", "model")["other"] == 400
    assert values(points, "llm_model_memory_bytes", "model")["other"] == 30


def test_of_a_series_exposed_twice_the_first_counts() -> None:
    text = (
        b"# TYPE vllm:num_requests_running gauge\n"
        b'vllm:num_requests_running{model_name="m",engine="0"} 8\n'
        b'vllm:num_requests_running{engine="0",model_name="m"} 500\n'
    )
    points, states, problems = mapped("vllm", text)

    assert of_target(points, "llm_requests_running") == 8.0
    assert states[SampleState.INVALID] == 1
    assert any("vllm:num_requests_running" in problem for problem in problems)


@pytest.mark.parametrize(("exposed", "usage", "invalid"), [(1.005, 1.0, 0), (1.02, None, 1), (37.0, None, 1)])
def test_a_share_above_one_is_rounding_or_withheld(exposed: float, usage: float | None, invalid: int) -> None:
    text = f'# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{{model_name="m"}} {exposed}\n'
    _, found = captures.mapper("vllm").map(Parser().parse(text.encode()))

    assert captures.value(found.points, "llm_kv_cache_usage_ratio") == usage
    assert found.invalid == invalid
    assert ["llm_kv_cache_usage_ratio" in problem for problem in found.problems] == [True] * invalid


@pytest.mark.parametrize(("exposed", "usage"), [(50.0, 0.5), (100.0, 1.0), (100.5, 1.0), (102.0, None)])
def test_a_share_in_percent_is_rounded_or_withheld_alike(exposed: float, usage: float | None) -> None:
    rule = Rule(schema.KV_CACHE_USAGE, ("vllm:kv_percent",), scale=0.01)
    engine = replace(BUILT_IN["vllm"], rules=(rule,))
    points = captures.mapped(engine, f"# TYPE vllm:kv_percent gauge\nvllm:kv_percent {exposed}\n".encode())

    assert value(points, "llm_kv_cache_usage_ratio") == usage


def test_a_document_s_share_above_one_is_withheld() -> None:
    facts = [Fact(schema.MODEL_OFFLOAD, {"model": "m"}, 3.0, "/api/ps size_vram / size")]
    found = captures.mapper("ollama").place(facts, ())

    assert not found.points
    assert found.invalid == 1
    assert "llm_model_offload_ratio" in found.problems[0]


def test_a_histogram_of_a_negative_sum_is_invalid() -> None:
    name = "vllm:time_to_first_token_seconds"
    text = (
        f"# TYPE {name} histogram\n"
        f'{name}_bucket{{model_name="m",le="+Inf"}} 2\n{name}_count{{model_name="m"}} 2\n'
        f'{name}_sum{{model_name="m"}} -5\n'
    )
    _, found = captures.mapper("vllm").map(Parser().parse(text.encode()))

    assert not found.points
    assert found.invalid > 0


def test_a_share_above_one_in_a_label_is_withheld() -> None:
    text = (
        b"# TYPE vllm:cache_config_info gauge\n"
        b'vllm:cache_config_info{engine="0",gpu_memory_utilization="1.5",block_size="16",num_gpu_blocks="10"} 1\n'
    )
    points, states, problems = mapped("vllm", text)

    assert not values(points, "llm_engine_gpu_memory_reservation_ratio")
    assert states[SampleState.INVALID] == 1
    assert any("llm_engine_gpu_memory_reservation_ratio" in problem for problem in problems)
