"""The simulated engines in virtual time: what a scheduler must do, and what must add up whatever happens."""

from __future__ import annotations

import csv
import gzip
import itertools
import random
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_headroom.simulate.batching import Engine
from llm_headroom.simulate.engine_state import EngineConfig, Outcome
from llm_headroom.simulate.hardware import (
    A100_80GB,
    H100_SXM,
    LLAMA_2_70B,
    LLAMA_3_8B,
    LLAMA_3_70B,
    QWEN_2_5_7B,
    RTX_4090,
    Roofline,
    plan_memory,
)  # fmt: skip
from llm_headroom.simulate.measures import Histogram
from llm_headroom.simulate.ollama_model import OllamaConfig, OllamaServer
from llm_headroom.simulate.traffic import (
    Burst,
    Lengths,
    Request,
    Synthetic,
    bundled_trace,
    cut,
    read_trace,
    repeated,
    scaled,
)  # fmt: skip

if TYPE_CHECKING:
    from llm_headroom.simulate.engine_state import Scheduler

TRACES = Path(__file__).parent / "fixtures" / "traces"


@dataclass(frozen=True)
class FixedCost:
    """Every step takes the same time."""

    seconds: float = 1.0

    def step_seconds(
        self,
        prefill_tokens: int,  # noqa: ARG002  the protocol's
        decode_sequences: int,  # noqa: ARG002  the protocol's
        context_tokens: int,  # noqa: ARG002  the protocol's
        attention_pairs: int = 0,  # noqa: ARG002  the protocol's
    ) -> float:
        """Return the same for every step."""
        return self.seconds


def vllm(blocks: int = 101, *, seqs: int = 8, budget: int = 64, caching: bool = True) -> EngineConfig:
    return EngineConfig(FixedCost(), "vllm", blocks, 4, seqs, budget, prefix_caching=caching)


def sglang(tokens: int = 400, *, seqs: int = 8, budget: int = 64) -> EngineConfig:
    return EngineConfig(FixedCost(), "sglang", tokens, 1, seqs, budget)


CONFIGS = {"vllm": vllm(), "sglang": sglang()}
request_lists = st.lists(
    st.tuples(
        st.floats(0, 60),
        st.integers(1, 120),
        st.integers(1, 60),
        st.integers(0, 400),
        st.lists(st.integers(0, 3), max_size=4),
    ),
    min_size=1,
    max_size=25,
)


def build(rows: list[tuple[float, int, int, int, list[int]]]) -> list[Request]:
    made = [
        Request(arrival, prompt, output, output + extra, tuple(prefix), 8)
        for arrival, prompt, output, extra, prefix in rows
    ]
    return sorted(made, key=lambda one: one.arrival)


@settings(max_examples=80, deadline=None)
@given(rows=request_lists, scheduler=st.sampled_from(["vllm", "sglang"]), size=st.integers(190, 500))
def test_every_request_ends_once_and_everything_adds_up(
    rows: list[tuple[float, int, int, int, list[int]]], scheduler: Scheduler, size: int
) -> None:
    config = vllm(size // 4 + 1) if scheduler == "vllm" else sglang(size)
    engine = Engine(config)
    tokens: dict[int, list[tuple[float, int]]] = {}
    ends: list[Outcome] = []
    for key, one in enumerate(build(rows)):
        tokens[key] = []
        engine.submit(one, lambda time, index, key=key: tokens[key].append((time, index)), ends.append)  # type: ignore[misc]
    while (event := engine.next_event) is not None:
        engine.advance(event)
        seen = engine.read()
        assert seen.used_tokens + seen.evictable_tokens + seen.free_tokens == seen.total_tokens
        assert min(seen.used_tokens, seen.evictable_tokens, seen.free_tokens, seen.running, seen.waiting) >= 0
    seen = engine.read()
    assert sorted(one.number for one in ends) == list(range(1, len(rows) + 1))
    assert {one.reason for one in ends} <= {"stop", "length"}
    assert (seen.running, seen.waiting, seen.used_tokens) == (0, 0, 0)
    for heard, one in zip(tokens.values(), build(rows), strict=True):
        assert [index for _, index in heard] == list(range(1, one.output_tokens + 1))
    counters, histograms = seen.counters, seen.histograms
    assert counters.generated_tokens == sum(one.generated for one in ends)
    assert counters.prompt_tokens == sum(one.request.prompt_tokens for one in ends)
    assert counters.cached_tokens == sum(one.cached for one in ends)
    assert counters.preemptions == sum(one.preemptions for one in ends) == histograms.preemptions.total
    gaps = [later[0] - sooner[0] for heard in tokens.values() for sooner, later in itertools.pairwise(heard)]
    assert histograms.itl.count == len(gaps)
    assert histograms.itl.total == pytest.approx(sum(gaps))
    assert histograms.ttft.total == pytest.approx(
        sum(heard[0][0] - one.arrival for heard, one in zip(tokens.values(), build(rows), strict=True))
    )


@settings(max_examples=30, deadline=None)
@given(rows=request_lists, scheduler=st.sampled_from(["vllm", "sglang"]), pieces=st.lists(st.floats(0, 400)))
def test_how_finely_time_is_advanced_changes_nothing(
    rows: list[tuple[float, int, int, int, list[int]]], scheduler: str, pieces: list[float]
) -> None:
    config = replace(CONFIGS[scheduler], step_jitter=0.2)
    at_once, bit_by_bit = Engine(config, seed=7), Engine(config, seed=7)
    for engine in (at_once, bit_by_bit):
        for one in build(rows):
            engine.submit(one)
    at_once.advance(500)
    for moment in sorted(pieces):
        bit_by_bit.advance(moment)
    bit_by_bit.advance(500)
    assert at_once.read() == bit_by_bit.read()


def test_another_seed_gives_another_run() -> None:
    readings = []
    config = replace(vllm(), step_jitter=0.2)
    for engine in (Engine(config), Engine(config, 0), Engine(config, 1)):
        engine.submit(Request(0, 10, 10))
        engine.advance(50)
        readings.append(engine.read())
    assert [one == readings[0] for one in readings] == [True, True, False]


def test_a_prompt_longer_than_the_budget_is_prefilled_in_chunks() -> None:
    engine = Engine(EngineConfig(FixedCost(), "vllm", 100, 4, 4, 4))
    ends: list[Outcome] = []
    engine.submit(Request(0, 10, 3), on_end=ends.append)
    engine.advance(100)
    assert (ends[0].first_token, ends[0].ended) == (3, 5)


def test_vllm_decodes_on_while_another_prompt_is_prefilled() -> None:
    engine = Engine(EngineConfig(FixedCost(), "vllm", 100, 4, 4, 4))
    heard: list[float] = []
    engine.submit(Request(0, 4, 6), lambda time, _: heard.append(time))
    engine.submit(Request(1, 9, 1))
    engine.advance(100)
    assert heard == [1, 2, 3, 4, 5, 6]


def test_sglang_stops_decoding_while_another_prompt_is_prefilled() -> None:
    engine = Engine(EngineConfig(FixedCost(), "sglang", 100, 1, 4, 4))
    heard: list[float] = []
    engine.submit(Request(0, 4, 4), lambda time, _: heard.append(time))
    engine.submit(Request(1, 8, 1))
    engine.advance(100)
    assert heard == [1, 4, 5, 6]


def test_vllm_preempts_the_last_admitted_and_recomputes_it() -> None:
    engine = Engine(vllm(11, caching=False))
    ends: list[Outcome] = []
    for _ in range(2):
        engine.submit(Request(0, 12, 20), on_end=ends.append)
    engine.advance(100)
    assert [(one.number, one.preemptions) for one in ends] == [(1, 0), (2, 1)]
    # 10 blocks hold 5 each: the first needs a sixth after 9 tokens, when the second has generated 9 too
    assert engine.read().counters.recomputed_tokens == 12 + 9
    assert engine.read().counters.retracted_output_tokens == 9


def test_vllm_queues_behind_a_prompt_that_does_not_fit_although_usage_is_low() -> None:
    engine = Engine(vllm(26, budget=100))
    engine.submit(Request(0, 40, 50))
    engine.submit(Request(0, 70, 5))
    engine.submit(Request(0, 4, 5))
    engine.advance(5)
    seen = engine.read()
    assert (seen.running, seen.waiting) == (1, 2)
    assert seen.usage < 0.5


def test_sglang_queues_by_what_clients_allow_although_usage_is_low() -> None:
    def waiting(allowed: int) -> tuple[int, float]:
        engine = Engine(sglang(1000, budget=1000))
        for _ in range(8):
            engine.submit(Request(0, 50, 20, allowed))
        engine.advance(5)
        seen = engine.read()
        return seen.waiting, seen.usage

    queue, usage = waiting(20)
    assert queue == 0
    assert usage == pytest.approx(0.43, abs=0.02)
    queue, usage = waiting(600)
    assert queue > 4
    assert usage < 0.3


def test_sglang_retracts_the_shortest_output_and_reserves_more_afterwards() -> None:
    engine = Engine(replace(sglang(260, budget=300), schedule_conservativeness=0.05))
    ends: list[Outcome] = []
    for place in range(6):
        engine.submit(Request(3.0 * place, 20, 80, 100), on_end=ends.append)
    ratios = []
    for second in range(1, 400):
        engine.advance(second)
        ratios.append(engine.read().new_token_ratio or 0.0)
    seen = engine.read()
    assert seen.counters.preemptions > 0
    assert max(ratios) > 0.3
    assert {one.reason for one in ends} == {"stop"}
    assert len(ends) == 6


def test_sglang_admits_again_as_soon_as_a_retraction_has_made_room() -> None:
    """The last two come while the pool is full. The smaller one is not kept until one of those that run has ended."""
    engine = Engine(replace(sglang(180, budget=100), schedule_conservativeness=0.05))
    ends: list[int] = []
    for arrival, prompt, output in ((0, 13, 40), (3, 11, 40), (6, 17, 40), (9, 12, 40), (21, 18, 1), (40, 25, 1)):
        engine.submit(Request(arrival, prompt, output), on_end=lambda end: ends.append(end.number))
    engine.advance(100)
    assert ends == [5, 6, 1, 2, 3, 4]


@pytest.mark.parametrize("scheduler", ["vllm", "sglang"])
def test_a_cached_prefix_is_not_computed_again(scheduler: str) -> None:
    engine = Engine(CONFIGS[scheduler])
    ends: list[Outcome] = []
    engine.submit(Request(0, 50, 2, prefix=(1, 2, 3), prefix_block_tokens=16), on_end=ends.append)
    engine.submit(Request(20, 60, 2, prefix=(1, 2, 9), prefix_block_tokens=16), on_end=ends.append)
    engine.submit(Request(40, 60, 2, prefix=(8, 2, 3), prefix_block_tokens=16), on_end=ends.append)
    engine.advance(100)
    assert [one.cached for one in ends] == [0, 32, 0]
    assert engine.read().counters.prefill_tokens == 50 + 28 + 60
    assert engine.read().evictable_tokens > 0


def test_a_cached_prefix_is_evicted_when_live_requests_need_the_room() -> None:
    engine = Engine(vllm(21))
    ends: list[Outcome] = []
    engine.submit(Request(0, 40, 1, prefix=(1,), prefix_block_tokens=32), on_end=ends.append)
    engine.submit(Request(10, 76, 4), on_end=ends.append)
    engine.submit(Request(30, 40, 1, prefix=(1,), prefix_block_tokens=32), on_end=ends.append)
    engine.advance(100)
    assert [one.cached for one in ends] == [0, 0, 0]
    assert engine.read().counters.evicted_tokens >= 32


def test_without_prefix_caching_nothing_is_evictable() -> None:
    engine = Engine(vllm(caching=False))
    engine.submit(Request(0, 50, 2, prefix=(1, 2), prefix_block_tokens=16))
    engine.advance(20)
    assert engine.read().evictable_tokens == 0


def test_what_cannot_be_served_is_rejected_with_its_reason() -> None:
    engine = Engine(replace(vllm(seqs=1), max_queue=1, max_model_len=100))
    ends: list[Outcome] = []
    engine.submit(Request(0, 90, 20), on_end=ends.append)
    for _ in range(3):
        engine.submit(Request(0, 10, 5), on_end=ends.append)
    engine.advance(0.5)
    engine.submit(Request(0.5, 10, 5), on_end=ends.append)
    engine.submit(Request(0.5, 10, 5), on_end=ends.append)
    reasons = [one.reason for one in ends]
    assert reasons[0] == "rejected_length"
    assert reasons.count("rejected_queue") >= 1
    assert engine.read().counters.submitted == 6
    with pytest.raises(ValueError, match="max_num_seqs"):
        EngineConfig(FixedCost(), max_num_seqs=300, max_step_tokens=256)


@pytest.mark.parametrize("moment", [0.0, 0.5, 3.0])
def test_an_aborted_request_leaves_nothing_behind(moment: float) -> None:
    engine = Engine(vllm())
    ends: list[Outcome] = []
    number = engine.submit(Request(0, 10, 50), on_end=ends.append)
    engine.advance(moment)
    engine.abort(number)
    engine.advance(10)
    seen = engine.read()
    assert [one.reason for one in ends] == ["abort"]
    assert (seen.running, seen.waiting, seen.used_tokens) == (0, 0, 0)
    assert seen.histograms.e2e.count == 0


def test_a_request_aborted_before_it_arrives_never_does() -> None:
    engine = Engine(vllm())
    ends: list[Outcome] = []
    arrivals = (10, 50, 20, 60, 70, 30, 40)
    numbers = {each: engine.submit(Request(each, 4, 1), on_end=ends.append) for each in arrivals}
    engine.abort(numbers[10])
    engine.abort(numbers[10])
    assert engine.next_event == 20
    engine.advance(100)
    assert [one.request.arrival for one in ends] == [20, 30, 40, 50, 60, 70]
    assert all(one.ended - one.request.arrival < 10 for one in ends)
    assert engine.read().counters.submitted == 6


def test_a_stalled_engine_freezes_and_goes_on() -> None:
    engine = Engine(vllm())
    ends: list[Outcome] = []
    engine.submit(Request(0, 4, 5), on_end=ends.append)
    engine.advance(2.5)
    before = engine.read()
    engine.stall(10)
    engine.submit(Request(3, 4, 1), on_end=ends.append)
    engine.advance(12)
    assert engine.read() == replace(before, time=12)
    engine.advance(30)
    assert [(one.reason, one.ended) for one in ends] == [("length", 14), ("length", 15)]


def test_a_crash_loses_requests_and_resets_every_counter() -> None:
    engine = Engine(vllm())
    ends: list[Outcome] = []
    engine.submit(Request(0, 4, 50), on_end=ends.append)
    engine.advance(5)
    engine.crash(restart_after=20)
    engine.submit(Request(6, 4, 5), on_end=ends.append)
    engine.advance(10)
    seen = engine.read()
    assert not seen.alive
    assert (seen.running, seen.counters.generated_tokens, seen.histograms.ttft.count) == (0, 0, 0)
    engine.submit(Request(30, 4, 5), on_end=ends.append)
    engine.advance(60)
    assert [one.reason for one in ends] == ["crash", "rejected_down", "length"]
    assert engine.read().started_at == 25
    assert engine.read().counters.generated_tokens == 5


def test_a_slow_engine_takes_longer_by_the_factor() -> None:
    engine = Engine(vllm())
    ends: list[Outcome] = []
    engine.slowdown = 3.0
    engine.submit(Request(0, 4, 5), on_end=ends.append)
    engine.advance(100)
    assert ends[0].ended == 15


def test_time_does_not_go_back() -> None:
    engine = Engine(vllm())
    engine.advance(5)
    with pytest.raises(ValueError, match="cannot go back"):
        engine.advance(4)


def test_a_trace_is_read_with_its_prefixes() -> None:
    rows = list(read_trace(TRACES / "mooncake_conversation.csv"))
    assert len(rows) == 60
    assert all(len(one.prefix) == -(-one.prompt_tokens // 512) for one in rows)
    assert rows == sorted(rows, key=lambda one: one.arrival)


@pytest.mark.parametrize("name", ["azure_conv", "azure_code"])
def test_bundled_traces_hold_minutes_of_traffic(name: str) -> None:
    rows = list(bundled_trace(name))
    assert len(rows) > 2000
    assert 590 < rows[-1].arrival <= 1200
    with pytest.raises(ValueError, match="azure_conv"):
        next(bundled_trace("nothing"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("arrival_s,prompt_tokens\n1,2\n", "output_tokens"), ("arrival_s,prompt_tokens,output_tokens\n1,2,x\n", "line 2")],
)
def test_a_broken_trace_names_file_and_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    with pytest.raises(ValueError, match=f"trace.csv.gz.*{message}"):
        list(read_trace(path))


def test_traces_can_be_scaled_cut_and_repeated() -> None:
    rows = [Request(float(second), 10, 5) for second in range(10)]
    assert [one.arrival for one in scaled(rows, 2)][-1] == 4.5
    assert [one.arrival for one in cut(rows, 3, 6)] == [0, 1, 2]
    assert [one.arrival for one in repeated(rows, 10, 2)] == list(range(20))
    with pytest.raises(ValueError, match="period"):
        next(repeated(rows, 5))


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_synthetic_arrivals_follow_rate_day_and_burst(burstiness: float) -> None:
    process = Synthetic(
        5, Lengths(100), Lengths(50), burstiness=burstiness, day_swing=0.8, day_seconds=4000,
        bursts=(Burst(1000, 100, 5),),
    )  # fmt: skip
    arrivals = [one.arrival for one in itertools.takewhile(lambda one: one.arrival < 4000, process.requests(seed=5))]
    assert len(arrivals) == pytest.approx(5 * 4000 + 4 * 100 * 5, rel=0.08)
    night, noon = (sum(low <= one < low + 400 for one in arrivals) for low in (0, 1800))
    assert noon > 4 * night
    assert sum(1000 <= one < 1100 for one in arrivals) > 3 * sum(1100 <= one < 1200 for one in arrivals)


def test_a_request_that_no_engine_could_serve_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Request(0, 0, 1)
    with pytest.raises(ValueError, match="max_tokens"):
        Request(0, 1, 5, max_tokens=4)


def test_bytes_follow_the_models_configuration() -> None:
    assert LLAMA_3_8B.kv_bytes_per_token == 131_072
    assert LLAMA_3_70B.kv_bytes_per_token == 327_680
    assert QWEN_2_5_7B.kv_bytes_per_token == 57_344
    plan = plan_memory(LLAMA_3_8B, A100_80GB)
    assert plan.weights + plan.activations + plan.graphs + plan.kv_pool == round(A100_80GB.memory_bytes * 0.9)
    assert 380_000 < plan.kv_tokens < 480_000
    with pytest.raises(ValueError, match="no memory"):
        plan_memory(LLAMA_3_70B, RTX_4090)


@pytest.mark.parametrize("hardware", ["a100-80gb", "h100-80gb"])
def test_the_roofline_is_within_a_quarter_of_measured_times_on_two_gpus(hardware: str) -> None:
    cost = Roofline(LLAMA_2_70B, {"a100-80gb": A100_80GB, "h100-80gb": H100_SXM}[hardware], tensor_parallel=2)
    with (TRACES / "splitwise_llama2_70b_tp2.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["hardware"] == hardware]
    prefill, decode = [], []
    for row in rows:
        prompt, batch, output = int(row["prompt_size"]), int(row["batch_size"]), int(row["token_size"])
        seconds = cost.step_seconds(prompt * batch, 0, 0, batch * prompt * prompt // 2)
        prefill.append(abs(seconds * 1000 / float(row["prompt_time"]) - 1))
        seconds = cost.step_seconds(0, batch, batch * (prompt + output // 2))
        decode.append(abs(seconds * 1000 / float(row["token_time"]) - 1))
    assert median(prefill) < 0.25
    assert median(decode) < 0.25


def ollama(**changes: object) -> OllamaServer:
    models = {"small:latest": LLAMA_3_8B, "other:latest": QWEN_2_5_7B, "large:latest": LLAMA_3_70B}
    config = OllamaConfig(models, RTX_4090, context_length=8192)
    return OllamaServer(replace(config, **changes))  # type: ignore[arg-type]


def test_ollama_loads_answers_and_expires() -> None:
    server = ollama()
    ends: list[Outcome] = []
    assert server.submit("small:latest", Request(0, 100, 20), on_end=ends.append)
    assert server.read().loading == "small:latest"
    server.advance(60)
    seen = server.read()
    assert ends[0].first_token is not None
    assert ends[0].first_token > 5
    assert [one.name for one in seen.loaded] == ["small:latest"]
    assert seen.loaded[0].size == seen.loaded[0].size_vram == seen.vram_used
    assert seen.loaded[0].expires_at == ends[0].ended + 300
    server.advance(400)
    assert server.read().loaded == ()
    assert server.read().expirations == 1


def test_ollama_evicts_an_idle_model_for_another() -> None:
    server = ollama()
    server.submit("small:latest", Request(0, 100, 20))
    server.advance(30)
    server.submit("other:latest", Request(30, 100, 20))
    server.advance(60)
    seen = server.read()
    assert [one.name for one in seen.loaded] == ["other:latest"]
    assert (seen.loads, seen.evictions) == (2, 1)


def test_ollama_waits_for_a_busy_model_before_it_evicts_it() -> None:
    server = ollama()
    ends: list[Outcome] = []
    server.submit("small:latest", Request(0, 100, 2000), on_end=ends.append)
    server.advance(12)
    server.submit("other:latest", Request(12, 100, 20), on_end=ends.append)
    server.advance(15)
    assert server.read().pending == 1
    server.advance(200)
    assert [one.request.output_tokens for one in ends] == [2000, 20]


def test_ollama_spills_what_does_not_fit_and_is_slow() -> None:
    def seconds_per_token(model: str) -> float:
        server = ollama()
        ends: list[Outcome] = []
        server.submit(model, Request(0, 100, 20), on_end=ends.append)
        server.advance(250)
        seen = server.read().loaded[0]
        assert (seen.size_vram < seen.size) == (model == "large:latest")
        assert ends[0].first_token is not None
        return (ends[0].ended - ends[0].first_token) / 19

    assert seconds_per_token("large:latest") > 10 * seconds_per_token("small:latest")


def test_ollama_answers_503_only_while_a_model_is_not_ready() -> None:
    server = ollama(max_queue=2)
    assert [server.submit("small:latest", Request(0, 10, 5)) for _ in range(4)] == [1, 2, None, None]
    server.advance(60)
    assert all(server.submit("small:latest", Request(60, 10, 5)) for _ in range(8))
    server.advance(61)
    seen = server.read()
    assert seen.rejected == 2
    assert seen.loaded[0].engine.running <= 1
    with pytest.raises(KeyError):
        server.submit("absent:latest", Request(61, 10, 5))


def test_ollama_stalls_while_it_answers_and_while_it_loads() -> None:
    def ended(stalled_at: float | None) -> float:
        server = ollama()
        ends: list[Outcome] = []
        server.submit("small:latest", Request(0, 100, 500), on_end=ends.append)
        if stalled_at is not None:
            server.advance(stalled_at)
            server.stall(30)
        server.advance(200)
        return ends[0].ended

    healthy = ended(None)
    assert ended(0.5) == pytest.approx(healthy + 30)
    assert ended(healthy - 1) == pytest.approx(healthy + 30)


def test_ollama_begins_to_load_when_a_stall_is_over() -> None:
    server = ollama()
    server.stall(30)
    server.submit("small:latest", Request(0, 100, 5))
    server.advance(30)
    assert server.read().loading == "small:latest"
    server.advance(60)
    assert [one.name for one in server.read().loaded] == ["small:latest"]


def test_a_slow_ollama_takes_longer_for_each_token() -> None:
    def seconds(slowdown: float) -> float:
        server = ollama()
        server.slowdown = slowdown
        ends: list[Outcome] = []
        server.submit("small:latest", Request(0, 100, 100), on_end=ends.append)
        server.advance(200)
        assert ends[0].first_token is not None
        return ends[0].ended - ends[0].first_token

    assert seconds(3.0) == pytest.approx(3 * seconds(1.0))


def test_ollama_drops_what_its_clients_no_longer_wait_for() -> None:
    server = ollama()
    ends: list[Outcome] = []
    first = server.submit("small:latest", Request(0, 100, 2000), on_end=ends.append)
    server.advance(12)
    second = server.submit("small:latest", Request(12, 100, 2000), on_end=ends.append)
    third = server.submit("other:latest", Request(12, 100, 20), on_end=ends.append)
    server.advance(13)
    assert (server.read().pending, server.read().loaded[0].engine.running) == (1, 1)
    for number in (first, second, third):
        assert number is not None
        server.abort(number)
        server.abort(number)
    server.advance(14)
    assert [one.reason for one in ends] == ["abort"] * 3
    seen = server.read()
    assert (seen.pending, seen.loaded[0].engine.running, seen.loaded[0].engine.waiting) == (0, 0, 0)
    assert seen.loaded[0].expires_at < 14 + 300


def test_ollama_cuts_a_prompt_longer_than_the_context_to_half_of_it() -> None:
    server = ollama(keep_alive=-1)
    ends: list[Outcome] = []
    server.submit("small:latest", Request(0, 9000, 5), on_end=ends.append)
    server.advance(1000)
    assert ends[0].request.prompt_tokens == 4096
    assert server.read().truncated == 1
    assert server.read().loaded[0].expires_at == float("inf")


def test_a_busy_engine_under_random_load_never_loses_a_request() -> None:
    chance = random.Random(11)
    process = Synthetic(4, Lengths(60, maximum=200), Lengths(30, maximum=100), burstiness=4, max_tokens=100)
    for name, config in CONFIGS.items():
        engine = Engine(replace(config, cost=FixedCost(0.02)), seed=3)
        ends: list[Outcome] = []
        sent = 0
        for one in itertools.takewhile(lambda one: one.arrival < 300, process.requests(seed=2)):
            engine.advance(one.arrival)
            number = engine.submit(one, on_end=ends.append)
            sent += 1
            if chance.random() < 0.1:
                engine.abort(number - chance.randrange(3))
        engine.advance(10_000)
        seen = engine.read()
        assert len(ends) == sent, name
        assert (seen.running, seen.waiting, seen.used_tokens) == (0, 0, 0)
        assert sum(seen.counters.finished.values()) == sent


def test_a_histogram_of_what_came_between_two_readings() -> None:
    histogram = Histogram((1.0, 2.0, 4.0))
    for value, times in ((0.5, 1), (1.0, 2), (3.0, 1)):
        histogram.observe(value, times)
    before = histogram.read()
    histogram.observe(2.0)
    histogram.observe(9.0, 3)
    between = histogram.read().since(before)

    assert (before.counts, before.total, before.count, before.mean) == ((3, 0, 1, 0), 5.5, 4, 1.375)
    assert (between.counts, between.total, between.count, between.mean) == ((0, 1, 0, 3), 29.0, 4, 7.25)
    assert histogram.read().cumulative() == (3, 4, 5, 8)
    assert before.since(before).mean is None
