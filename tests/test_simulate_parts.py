"""The parts of simulated engines by themselves: hardware, requests, settings and models, at each of their limits."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from typing import TYPE_CHECKING, Any

import pytest

from hand_clock import Hands, Jumps
from llm_headroom import schema
from llm_headroom.simulate import clients, scenario
from llm_headroom.simulate.engine_state import EngineConfig, Outcome
from llm_headroom.simulate.gpus import Holder, SimulatedGpus
from llm_headroom.simulate.hardware import GIB, L4, QWEN_2_5_7B, TINY_LLAMA, Gpu, Model, Roofline, plan_memory
from llm_headroom.simulate.ollama_model import Host, OllamaConfig, OllamaServer, SpilledCost
from llm_headroom.simulate.templates import template
from llm_headroom.simulate.traffic import (
    Burst,
    Lengths,
    Request,
    Synthetic,
    cut,
    read_trace,
    repeated,
    scaled,
    sharing,
)

if TYPE_CHECKING:
    from pathlib import Path

    from llm_headroom.simulate.engine_state import Scheduler
    from llm_headroom.simulate.ollama_model import OllamaReading

HOUR = 3600.0
SMALL, OTHER = "small:latest", "other:7b"


class OneSecond:
    """A step takes a second."""

    def step_seconds(self, *_: int) -> float:
        """Return the same for every step."""
        return 1.0


# Hardware ------------------------------------------------------------------------------------------------------------
MODEL = Model("m", layers=3, hidden=10, heads=5, kv_heads=2, vocab=7, parameters=1000)
GPU = Gpu("g", 10 * GIB, bandwidth=1000.0, flops=50_000.0)


def test_the_bytes_of_a_model() -> None:
    assert (MODEL.weights_bytes, MODEL.kv_bytes_per_token) == (2000, 2 * 3 * 2 * 2 * 2)
    wide = Model("m", 3, 10, 5, 2, 7, 1000, head_width=4, bytes_per_parameter=0.5, bytes_per_element=1.0)
    assert (wide.weights_bytes, wide.kv_bytes_per_token) == (500, 2 * 3 * 2 * 4)


@pytest.mark.parametrize(
    ("gpus", "work", "seconds"),
    [
        (1, (0, 1, 0, 0), 2000 / 750 + 0.003 + 3e-5),
        (1, (0, 2, 100, 0), (2000 + 100 * 48) / 750 + 0.003 + 6e-5),
        (1, (100, 0, 0, 0), 2 * 1000 * 100 / 30_000 + 0.003),
        (1, (90, 10, 10, 50), (2 * 1000 * 100 + 4 * 3 * 10 * 60) / 30_000 + 0.003 + 3e-4),
        (2, (100, 0, 0, 0), 2 * 1000 * 100 / 60_000 + 2 * 3 * 2e-5 + 0.003),
    ],
)
def test_a_step_takes_the_longer_of_reading_and_computing(
    gpus: int, work: tuple[int, int, int, int], seconds: float
) -> None:
    assert Roofline(MODEL, GPU, tensor_parallel=gpus).step_seconds(*work) == pytest.approx(seconds, rel=1e-12)


def test_what_a_start_leaves_of_the_memory() -> None:
    plan = plan_memory(MODEL, GPU, tensor_parallel=2, utilisation=0.5)
    assert (plan.weights, plan.activations, plan.graphs, plan.kv_pool) == (1000, 2 * GIB, GIB, 2 * GIB - 1000)
    assert plan.kv_tokens == (2 * GIB - 1000) * 2 // 48
    pool = 3 * GIB + 2000
    assert plan_memory(MODEL, Gpu("g", pool + 48, 1.0, 1.0), utilisation=1.0).kv_tokens == 1
    with pytest.raises(ValueError, match="m leaves no memory for the KV cache on 1 x g at 100%"):
        plan_memory(MODEL, Gpu("g", pool + 47, 1.0, 1.0), utilisation=1.0)


# Engines' settings ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("scheduler", "blocks", "block", "seqs", "budget", "fine"),
    [
        ("vllm", 2, 1, 1, 1, True),
        ("vllm", 1, 1, 1, 1, False),
        ("sglang", 1, 1, 1, 1, True),
        ("sglang", 0, 1, 1, 1, False),
        ("vllm", 2, 0, 1, 1, False),
        ("vllm", 2, 1, 0, 1, False),
        ("vllm", 2, 1, 8, 8, True),
        ("vllm", 2, 1, 8, 7, False),
        ("sglang", 2, 1, 8, 7, True),
        ("sglang", 2, 1, 8, 0, False),
    ],
)
def test_settings_that_no_engine_starts_with_are_refused(  # noqa: PLR0913 - one row of a table
    scheduler: Scheduler, blocks: int, block: int, seqs: int, budget: int, *, fine: bool
) -> None:
    if fine:
        EngineConfig(OneSecond(), scheduler, blocks, block, seqs, budget)
    else:
        with pytest.raises(ValueError, match=r"must be at least 1|is less than"):
            EngineConfig(OneSecond(), scheduler, blocks, block, seqs, budget)


@pytest.mark.parametrize(
    ("scheduler", "most", "longest"), [("vllm", None, 36), ("vllm", 35, 35), ("vllm", 37, 36), ("sglang", None, 40)]
)
def test_the_longest_request(scheduler: Scheduler, most: int | None, longest: int) -> None:
    assert EngineConfig(OneSecond(), scheduler, 10, 4, 1, 8, max_model_len=most).longest == longest


def test_a_capture_s_replicas_and_bounds() -> None:
    assert (template("vllm/0.32.0").ranks, template("vllm/0.32.0-dp2").ranks) == (1, 2)
    assert template("sglang/0.5.23-dp2").release == "0.5.23"
    assert template("vllm/0.32.0").bounds("vllm:nothing") is None
    with pytest.raises(ValueError, match=r"no simulated vllm/9; known: sglang/0\.5\.10, "):
        template("vllm/9")


# Requests ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("prompt", "output", "allowed", "fine"),
    [(1, 1, None, True), (0, 1, None, False), (1, 0, None, False), (1, 5, 5, True), (1, 5, 4, False)],
)
def test_the_least_request(prompt: int, output: int, allowed: int | None, *, fine: bool) -> None:
    if fine:
        assert Request(0.0, prompt, output, allowed).prefix_block_tokens == 512
    else:
        with pytest.raises(ValueError, match=r"request|max_tokens"):
            Request(0.0, prompt, output, allowed)


def test_a_trace_s_rows(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("x,arrival_s,prompt_tokens,output_tokens,hash_ids_16\n1,0.5,0,0,\n2,1,9,8,1-3 7\n")
    assert [*read_trace(path)] == [Request(0.5, 1, 1, None, (), 16), Request(1.0, 9, 8, None, (1, 2, 3, 7), 16)]
    path.write_text("arrival_s,prompt_tokens,output_tokens\n1,2,3\n")
    assert [*read_trace(path)] == [Request(1.0, 2, 3)]
    path.write_text("arrival_s\n")
    with pytest.raises(ValueError, match="lacks the column output_tokens, prompt_tokens"):
        next(read_trace(path))


def arrivals(requests: Any) -> list[float]:  # noqa: ANN401 - an iterable of requests
    return [one.arrival for one in requests]


def test_requests_moved_cut_and_repeated() -> None:
    rows = [Request(float(second), 10, 5) for second in range(4)]
    assert arrivals(scaled(rows, 0.5)) == [0, 2, 4, 6]
    for rate in (0.0, -1.0):
        with pytest.raises(ValueError, match="rate"):
            scaled(rows, rate)
    assert arrivals(cut(rows, 1.0, 3.0)) == [0, 1]
    assert arrivals(cut(rows, 0.5, 9.0)) == [0.5, 1.5, 2.5]
    assert arrivals(itertools.islice(repeated(rows, 3.5), 6)) == [0, 1, 2, 3, 3.5, 4.5]
    assert arrivals(repeated(rows, 3.5, 0)) == []
    assert arrivals(repeated([], 3.5)) == []
    with pytest.raises(ValueError, match=r"span 3.0 s, more than the period of 3.0 s"):
        next(repeated(rows, 3.0))


def test_longer_requests_share_a_beginning() -> None:
    shared = [*sharing([Request(0.0, tokens, 1) for tokens in (99, 100, 101, *[500] * 60)], 3, 100, seed=1)]
    assert [one.prefix for one in shared[:2]] == [(), ()]
    assert {one.prefix for one in shared[2:]} == {(0,), (1,), (2,)}
    assert {one.prefix_block_tokens for one in shared} == {100}


def test_lengths_are_within_their_limits() -> None:
    chance = random.Random(3)
    assert {Lengths(7.4, 0.0).draw(chance) for _ in range(9)} == {7}
    drawn = [Lengths(100.0, 1.0, minimum=50, maximum=200).draw(chance) for _ in range(300)]
    assert (min(drawn), max(drawn)) == (50, 200)
    assert sorted(Lengths(100.0).draw(chance) for _ in range(999))[499] == pytest.approx(100, rel=0.15)
    assert Lengths(0.1, 0.0).draw(chance) == 1


@pytest.mark.parametrize(
    ("field", "value", "fine"),
    [
        *(("rate", 0.0, False), ("rate", 0.1, True), ("burstiness", 0.0, False), ("burstiness", 0.1, True)),
        *(("day_swing", -0.1, False), ("day_swing", 0.0, True), ("day_swing", 0.99, True), ("day_swing", 1.0, False)),
    ],
)
def test_what_describes_no_arrivals_is_refused(field: str, value: float, *, fine: bool) -> None:
    settings: dict[str, Any] = {"rate": 1.0, "prompt": Lengths(1), "output": Lengths(1), field: value}
    if fine:
        Synthetic(**settings)
    else:
        with pytest.raises(ValueError, match=r"above 0|day_swing"):
            Synthetic(**settings)


def test_the_rate_of_a_day_and_of_bursts() -> None:
    bursts = (Burst(10.0, 5.0, 3.0), Burst(14.0, 5.0, 2.0))
    process = Synthetic(2.0, Lengths(1), Lengths(1), day_swing=0.5, day_seconds=100.0, bursts=bursts)
    assert process.rate_at(0.0) == 1.0
    assert process.rate_at(50.0) == pytest.approx(3.0)
    assert process.rate_at(25.0) == pytest.approx(2.0)
    flat = Synthetic(2.0, Lengths(1), Lengths(1), bursts=bursts)
    assert [flat.rate_at(at) for at in (9.9, 10.0, 13.9, 14.0, 14.9, 15.0, 18.9, 19.0)] == [2, 6, 6, 12, 12, 4, 4, 2]


def test_synthetic_requests_have_room_for_what_they_share() -> None:
    process = Synthetic(5.0, Lengths(90, 0.2), Lengths(9, 0.5), max_tokens=9, prefixes=2, prefix_tokens=100)
    made = [*itertools.islice(process.requests(1), 200)]
    assert {one.prefix for one in made} == {(0,), (1,)}
    assert min(one.prompt_tokens for one in made) == 101
    assert all(one.max_tokens == max(9, one.output_tokens) for one in made)
    plain = next(Synthetic(5.0, Lengths(90), Lengths(9)).requests(1))
    assert (plain.max_tokens, plain.prefix, plain.prefix_block_tokens) == (None, (), 512)


@pytest.mark.parametrize(("swing", "fine"), [(0.0, True), (0.99, True), (-0.1, False), (1.0, False)])
def test_the_swing_of_a_day(swing: float, *, fine: bool) -> None:
    rows = [Request(at, 1, 1) for at in (0.0, 25.0, 50.0, 75.0, 100.0)]
    if not fine:
        with pytest.raises(ValueError, match="swing"):
            next(scenario.daily(rows, 100.0, swing))
    elif not swing:
        assert arrivals(scenario.daily(rows, 100.0, swing)) == [0.0, 25.0, 50.0, 75.0, 100.0]
    else:
        night, morning, noon, evening, end = arrivals(scenario.daily(rows, 100.0, swing))
        assert (night, noon, end) == pytest.approx((0.0, 50.0, 100.0), abs=1e-5)
        assert morning == pytest.approx(100.0 - evening, abs=1e-4)
        assert 36.0 < morning < 38.0


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("{at: 0, engine: vllm}", ""),
        ("{at: 0, every: 1, engine: vllm}", ""),
        ("{at: -0.1, engine: vllm}", "at must be a number of at least 0"),
        ("{at: .inf, engine: vllm}", "at must be a number"),
        ("{at: .nan, engine: vllm}", "at must be a number"),
        ("{at: true, engine: vllm}", "at must be a number"),
        ("{at: 0, every: 0.9, engine: vllm}", "every must be a number of at least 1"),
        ("{engine: vllm}", "a mapping with at and engine"),
        ("vllm", "a mapping with at and engine"),
    ],
)
def test_when_incidents_may_be(tmp_path: Path, row: str, complaint: str) -> None:
    path = tmp_path / "scenario.yml"
    path.write_text(f"- {row}\n")
    if complaint:
        with pytest.raises(ValueError, match=f"incident 1: .*{complaint}"):
            scenario.read(path)
    else:
        (found,) = scenario.read(path)
        assert (found.at, found.engine, found.what, found.how.refuse) == (0.0, "vllm", "", True)


# Clients -------------------------------------------------------------------------------------------------------------
def test_clients_chat_at_their_time_and_give_up_what_fails() -> None:
    async def run() -> list[dict[str, Any]]:
        clock = Jumps()
        clock.moment = 100.0
        found: list[dict[str, Any]] = []

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(int(line.split(": ")[1]) for line in head.splitlines() if line.startswith("Content-Length"))
            found.append(json.loads(await reader.readexactly(length)) | {"at": clock.moment, "to": head.split()[1]})
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await clients.chat(address, "m", [Request(2.0, 30, 4)], clock)
        await clients.chat(address, "m", [Request(5.0, 31, 5)], clock)
        server.close()
        await server.wait_closed()
        await clients.chat(address, "m", [Request(0.0, 32, 6)], clock)
        return found

    assert asyncio.run(run()) == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "?"}],
            "prompt_tokens": prompt,
            "output_tokens": output,
            "options": {"num_predict": output + 1},
            "at": at,
            "to": "/api/chat",
        }
        for prompt, output, at in ((30, 4, 102.0), (31, 5, 107.0))
    ]


# GPUs ----------------------------------------------------------------------------------------------------------------
def test_gpus_are_sampled_and_report_errors() -> None:
    clock = Hands()
    held = [5 * GIB]
    gpus = SimulatedGpus(clock, [(L4, [Holder(lambda: held[0], 7), Holder(lambda: 0, 8)]), (L4, [])])
    gpus.fail(1, 79)
    gpus.fail(1, 79)
    gpus.fail(1, 13)
    errors = {(one.series.label("gpu"), one.series.label("xid")): one.value for one in gpus.xids()}
    assert errors.keys() == {("1", "79"), ("1", "13")}
    counts = [one.value for one in gpus.xids() if one.series.metric is schema.GPU_XID_ERRORS]
    times = [one.value for one in gpus.xids() if one.series.metric is schema.GPU_XID_LAST]
    assert counts == [2.0, 1.0]
    assert len(times) == 2
    assert all(isinstance(one, float) and abs(one - time.time()) < HOUR for one in times)  # the clock may be set
    assert [device.processes for device in gpus.read().processes] == [((7, 5 * GIB),), ()]
    held[0] = 99 * GIB
    assert gpus.read().processes[0].processes == ((7, 5 * GIB),)
    gpus.sample()
    free = {
        one.series.label("gpu"): one.value for one in gpus.read().points if one.series.metric is schema.GPU_MEMORY_FREE
    }
    assert free == {"0": 0.0, "1": float(L4.memory_bytes - GIB // 2)}
    assert [one.value for one in gpus.read().points if one.series.metric is schema.GPU_XID_ERRORS] == [2.0, 1.0]
    assert [one.value for one in gpus.read().points if one.series.metric is schema.GPUS] == [2.0]


def test_a_gpu_that_nobody_uses_idles_at_its_clock() -> None:
    clock = Hands()
    gpus = SimulatedGpus(clock, [(GPU, [])])
    clock.moment = 50.0
    gpus.sample()
    clock.moment = 49.0
    gpus.sample()
    found = {one.series.metric: one.value for one in gpus.read().points}
    assert (found[schema.GPU_POWER_LIMIT], found[schema.GPU_POWER]) == (300.0, 45.0)
    assert found[schema.GPU_ENERGY] == 45.0 * 50.0
    assert (found[schema.GPU_CLOCK], found[schema.GPU_CLOCK_MAX]) == (1.41e9, 1.41e9)
    assert (found[schema.GPU_UTILIZATION], found[schema.GPU_THROTTLE], found[schema.GPU_THROTTLE_TIME]) == (0, 0, 0)
    assert found[schema.GPU_MEMORY_FREE] == 10 * GIB - GIB / 2


def test_a_gpu_with_a_lowered_clock_is_throttled_and_hot_until_it_is_back() -> None:
    clock, factor = Hands(), [1.0]
    gpus = SimulatedGpus(clock, [(GPU, [Holder(lambda: 0), Holder(lambda: 0, slowdown=lambda: factor[0])])])
    metrics = (schema.GPU_THROTTLE, schema.GPU_THROTTLE_TIME, schema.GPU_CLOCK, schema.GPU_TEMPERATURE)
    seen = []
    for moment, now in ((1.0, 1.0), (41.0, 1.5), (43.0, 1.5), (1043.0, 1.0)):
        clock.moment, factor[0] = moment, now
        gpus.sample()
        found = {one.series.metric: one.value for one in gpus.read().points}
        seen.append(tuple(found[metric] for metric in metrics))
    cool = (1.41e9, 32.0), (0.94e9, 71.0), (0.94e9, 72.0), (1.41e9, 38.0)
    times = (0.0, 0.0), (1.0, 40.0), (1.0, 42.0), (0.0, 42.0)
    assert seen == [(*time_, *rest) for time_, rest in zip(times, cool, strict=True)]


# Ollama --------------------------------------------------------------------------------------------------------------
def ollama(**changes: Any) -> OllamaServer:  # noqa: ANN401 - fields of the configuration
    settings: dict[str, Any] = {"models": {SMALL: TINY_LLAMA, OTHER: QWEN_2_5_7B}, "gpu": L4, "context_length": 1000}
    return OllamaServer(OllamaConfig(**settings | changes))


def served(server: OllamaServer, prompt: int, output: int, until: float = 100.0) -> tuple[Outcome, OllamaReading]:
    ends: list[Outcome] = []
    server.submit(SMALL, Request(0.0, prompt, output), on_end=ends.append)
    server.advance(until)
    return ends[0], server.read()


@pytest.mark.parametrize(
    ("prompt", "output", "kept", "made", "truncated"),
    [(999, 1, 999, 1, 0), (999, 5, 999, 1, 0), (1000, 5, 500, 5, 1), (1500, 900, 500, 500, 1), (10, 2000, 10, 990, 0)],
)
def test_ollama_fits_a_request_into_the_context(prompt: int, output: int, kept: int, made: int, truncated: int) -> None:
    end, seen = served(ollama(), prompt, output)
    assert (end.request.prompt_tokens, end.generated, seen.truncated) == (kept, made, truncated)
    assert seen.loaded[0].context_length == 1024


def test_ollama_has_a_cache_of_the_whole_context_for_each_slot() -> None:
    server = ollama(context_length=1024, num_parallel=2)
    ends: list[Outcome] = []
    for _ in range(2):
        server.submit(SMALL, Request(0.0, 1000, 24), on_end=ends.append)
    server.advance(100.0)
    assert [(one.reason, one.generated, one.preemptions) for one in ends] == [("length", 24, 0)] * 2
    pool = server.read().loaded[0].engine
    assert (pool.total_tokens, pool.running) == (2048, 0)


def test_ollama_keeps_a_model_as_long_as_it_is_told() -> None:
    end, seen = served(ollama(keep_alive=0.0), 10, 5)
    assert (seen.loaded, seen.expirations) == ((), 1)
    server = ollama(keep_alive=7.0)
    end, seen = served(server, 10, 5, until=4.0)
    assert seen.loaded[0].expires_at == end.ended + 7.0
    server.advance(end.ended + 6.99)
    assert len(server.read().loaded) == 1
    server.advance(end.ended + 7.0)
    assert server.read().loaded == ()
    assert server.next_event is None


def test_ollama_without_a_gpu_runs_on_the_host() -> None:
    _, seen = served(ollama(gpu=None), 10, 5)
    (model,) = seen.loaded
    config = OllamaConfig({SMALL: TINY_LLAMA}, None, context_length=1000)
    assert (model.size_vram, seen.vram_used, model.size) == (0, 0, config.size(TINY_LLAMA))
    assert model.size == TINY_LLAMA.weights_bytes + 1024 * TINY_LLAMA.kv_bytes_per_token + GIB // 4
    host = Host(bandwidth=1000.0, flops=50_000.0)
    alone = SpilledCost(MODEL, None, host, 0.0).step_seconds(0, 1, 0)
    assert alone == pytest.approx(Roofline(MODEL, GPU).step_seconds(0, 1, 0))
    fast = Gpu("g", GIB, 2000.0, 100_000.0)
    parts = SpilledCost(MODEL, fast, host, 0.25).step_seconds(0, 1, 0)
    assert parts == pytest.approx(0.25 * Roofline(MODEL, fast).step_seconds(0, 1, 0) + 0.75 * alone)


def test_ollama_loads_as_fast_as_its_disk_reads() -> None:
    server = ollama(host=Host(disk=TINY_LLAMA.weights_bytes / 3.0, load_overhead=2.0))
    server.submit(SMALL, Request(0.0, 10, 1))
    assert server.next_event == pytest.approx(5.0)
    server.advance(4.99)
    assert (server.read().loading, server.read().loads, server.read().pending) == (SMALL, 0, 1)
    server.advance(5.01)
    assert (server.read().loading, server.read().loads, server.read().loaded[0].loaded_at) == (None, 1, 5.0)


@pytest.mark.parametrize(("most", "left"), [(1, [OTHER]), (2, [OTHER, SMALL])])
def test_ollama_holds_a_number_of_models_the_last_to_expire_first(most: int, left: list[str]) -> None:
    server = ollama(max_loaded=most)
    server.submit(SMALL, Request(0.0, 10, 1))
    server.advance(20.0)
    server.submit(OTHER, Request(20.0, 10, 1))
    server.advance(60.0)
    assert [one.name for one in server.read().loaded] == left
    assert server.read().evictions == 2 - most


def test_requests_of_ollama_that_are_dropped_are_no_longer_waited_for() -> None:
    server = ollama()
    ends: list[Outcome] = []
    numbers = [server.submit(SMALL, Request(0.0, 10, 1), on_end=ends.append) for _ in range(2)]
    assert numbers == [1, 2]
    server.abort(2)
    server.abort(9)
    assert [(one.number, one.reason, one.ended) for one in ends] == [(2, "abort", 0.0)]
    assert server.read().pending == 1
    server.advance(30.0)
    assert [one.reason for one in ends] == ["abort", "length"]
    with pytest.raises(ValueError, match="cannot go back"):
        server.advance(29.0)
