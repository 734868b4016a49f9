"""How far the simulator lies from real engines under load, and what it costs.

    .venv/bin/python bench/simulator.py [--splitwise perf_model.csv]

The figures of the real engines come from captures of running servers on a CPU with a two-layer Llama, partly in
tests/fixtures/captures (``vllm/0.32.0``, ``sglang/0.5.23``); those of the vLLM load generator and of captures that are
not in the tree are written here. Calibrated from the captures are only the two constants of the step's cost; with a
closed loop, that fixes the time scale, so that the means of TTFT and queue are no independent check of it, while
running, waiting, KV usage, preemptions, tokens per step and the shapes of the histograms are.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import itertools
import random
import time
import tracemalloc
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING

from llm_headroom.simulate.batching import Engine
from llm_headroom.simulate.engine_state import EngineConfig, EngineReading, Outcome
from llm_headroom.simulate.hardware import A100_80GB, H100_SXM, LLAMA_2_70B, LLAMA_3_8B, Roofline, plan_memory
from llm_headroom.simulate.traffic import Lengths, Request, Synthetic

if TYPE_CHECKING:
    from collections.abc import Callable

# vLLM 0.32.0 --max-num-seqs 16 --max-num-batched-tokens 1024 --block-size 32 --num-gpu-blocks-override 64:
# after_load.prom less the share of the load of moderate.prom (664 requests of loadgen_moderate.json against 361
# finished in moderate.prom); the saturated load was 48 closed-loop streams, 244 requests (loadgen_saturated.json).
SCALE = 664 / 361
REQUESTS = 908 - 664
GENERATED = 102_008 - SCALE * 14_613
STEPS = 23_314 - SCALE * 5_500
PREEMPTIONS = 401
E2E_SUM = 3343.05 - SCALE * 68.89
QUEUE_SUM = 2556.60
TTFT_SUM = 2585.90 - SCALE * 8.119
ITL_SUM = 757.56 - SCALE * 61.19
STREAMS = 48
STEP_MODERATE = 61.19 / 14_300  # mean ITL of the moderate load, which generated 14,662 tokens in 5,500 steps
SEQUENCES_MODERATE = 14_662 / 5_500
STEP_SATURATED = E2E_SUM / STREAMS / STEPS  # Little's law: the load lasted E2E_SUM / STREAMS seconds
PROMPTS = (80, 166)  # uniform; mean 123 as captured, 64 of 244 at most 100, none above 200
ALLOWED = (302, 400)  # uniform; mean 351 as captured, all in (200, 500]
STOP = 1 - (1 - 45 / 244) ** (1 / 351)  # chance of the stop token per token: 45 of 244 stopped early

CLIENTS, SLOTS = 20, 8  # SGLang 0.5.23: load generator's clients, --max-running-requests
SPAN = 1800.0  # virtual seconds over which the cost is measured


@dataclass(frozen=True)
class PerSequence:
    """A step costs a base and a share per sequence."""

    base: float
    each: float
    prefill: float = 0.0

    def step_seconds(
        self,
        prefill_tokens: int,
        decode_sequences: int,
        context_tokens: int,  # noqa: ARG002  the protocol's
        attention_pairs: int = 0,  # noqa: ARG002  the protocol's
    ) -> float:
        """Return seconds."""
        return self.base + self.each * decode_sequences + self.prefill * prefill_tokens


def closed_loop(
    engine: Engine, streams: int, requests: int, make: Callable[[float], Request], every: float
) -> tuple[list[Outcome], list[EngineReading]]:
    """Keep so many requests in the engine until the given number has been sent; return ends and readings."""
    ends: list[Outcome] = []
    sent = 0

    def send(now: float) -> None:
        nonlocal sent
        if sent < requests:
            sent += 1
            engine.submit(make(now), on_end=ended)

    def ended(outcome: Outcome) -> None:
        ends.append(outcome)
        send(outcome.ended)

    for _ in range(streams):
        send(engine.now)
    readings = []
    while len(ends) < requests:
        engine.advance(engine.now + every)
        readings.append(engine.read())
    return ends, readings


def row(name: str, real: float, simulated: float) -> None:
    """Print one comparison."""
    print(f"  {name:<38}{real:>10.3f}{simulated:>12.3f}{simulated / real - 1:>+10.0%}")


def vllm_saturated() -> None:
    """Compare with vLLM 0.32.0 under 48 streams."""
    chance = random.Random(1)  # noqa: S311  simulation, not security
    each = (STEP_SATURATED - STEP_MODERATE) / (GENERATED / STEPS - SEQUENCES_MODERATE)
    base = STEP_MODERATE - each * SEQUENCES_MODERATE
    config = EngineConfig(PerSequence(base, each), "vllm", 64, 32, 16, 1024, max_model_len=1024)

    def make(now: float) -> Request:
        allowed = chance.randint(*ALLOWED)
        output = next((place for place in range(1, allowed) if chance.random() < STOP), allowed)
        return Request(now, chance.randint(*PROMPTS), output, allowed)

    runs = [closed_loop(Engine(config, seed), STREAMS, REQUESTS, make, 0.5) for seed in range(5)]
    print(f"vLLM 0.32.0, 48 streams, 63 blocks of 32 (step {base * 1e3:.2f} ms + {each * 1e3:.2f} ms per sequence)")
    print(f"  {'':<38}{'captured':>10}{'simulated':>12}{'error':>10}")
    last = [readings[-1] for _, readings in runs]
    full = [one for _, readings in runs for one in readings if one.running + one.waiting == STREAMS]
    row("running while 48 are in (7, 8 seen)", 7.5, mean(one.running for one in full))
    row("waiting while 48 are in (40, 39 seen)", 39.5, mean(one.waiting for one in full))
    row("KV usage (1.0, 0.984 seen)", 0.992, mean(one.usage for one in full))
    row("preemptions per request", PREEMPTIONS / REQUESTS, mean(one.counters.preemptions for one in last) / REQUESTS)
    row("share preempted at most once", (778 - 664) / 244, mean(share(one, 1.0) for one in last))
    row(
        "output tokens per request",
        GENERATED / REQUESTS,
        mean(one.counters.generated_tokens for one in last) / REQUESTS,
    )
    row("generated tokens per step", GENERATED / STEPS, mean(generated_per_step(one) for one in last))
    row("steps", STEPS, mean(one.counters.steps for one in last))
    row("TTFT mean, s", TTFT_SUM / REQUESTS, mean(one.histograms.ttft.mean or 0.0 for one in last))
    row("queue mean, s", QUEUE_SUM / REQUESTS, mean(one.histograms.queue.mean or 0.0 for one in last))
    row("ITL mean (preemptions included), ms", ITL_SUM / (GENERATED - REQUESTS) * 1e3, itl_ms(last))
    # after_load.prom, requests beyond the 664 moderate ones: 0.3 s..5 s, ..10 s, ..15 s, ..20 s
    for low, high, real in ((0.0, 5.0, 25), (5.0, 10.0, 45), (10.0, 15.0, 161), (15.0, 20.0, 13)):
        counts = [sum(low <= queued(end) < high for end in ends) for ends, _ in runs]
        row(f"requests queued {low:.0f} to {high:.0f} s", real, mean(counts))


def queued(end: Outcome) -> float:
    """Return the seconds that an admitted request waited."""
    return (end.admitted or end.request.arrival) - end.request.arrival


def share(reading: EngineReading, bound: float) -> float:
    """Return the share of requests that were preempted at most so often."""
    histogram = reading.histograms.preemptions
    return histogram.cumulative()[histogram.bounds.index(bound)] / histogram.count


def generated_per_step(reading: EngineReading) -> float:
    """Return generated tokens per step."""
    return reading.counters.generated_tokens / reading.counters.steps


def itl_ms(readings: list[EngineReading]) -> float:
    """Return the mean inter-token latency in milliseconds."""
    return mean(one.histograms.itl.mean or 0.0 for one in readings) * 1e3


def sglang_saturated() -> None:
    """Compare with SGLang 0.5.23 under 20 clients, 8 running (differences between saturated.prom and draining.prom)."""
    step = (970.43 - 451.50) / (2030 - 1148)
    prompt, output = (4154 - 1934) // 8, (1830 - 870) // 8
    config = EngineConfig(PerSequence(step, 0.0), "sglang", 16_384, 1, SLOTS, 8192, max_model_len=2048)
    ends, readings = closed_loop(
        Engine(config), CLIENTS, 3 * CLIENTS, lambda now: Request(now, prompt, output), step
    )  # fmt: skip
    second = [one for one in ends if SLOTS < one.number <= 2 * SLOTS]
    full = [one for one in readings if one.running + one.waiting == CLIENTS]
    print(f"\nSGLang 0.5.23, 20 clients, 16,384 tokens, 8 running at most (step {step * 1e3:.0f} ms, from its ITL)")
    print(f"  {'':<38}{'captured':>10}{'simulated':>12}{'error':>10}")
    row("running", 8, mean(one.running for one in full))
    row("waiting", 12, mean(one.waiting for one in full))
    row("token_usage (0.12, 0.14 seen)", 0.13, mean(one.usage for one in full))
    row("queue of the second eight, s", (882.47 - 234.05) / 8, mean((one.admitted or 0) for one in second))


def splitwise(path: Path) -> None:
    """Compare the roofline with measurements of Llama-2-70B (Mutinifni/splitwise-sim, MIT)."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode()
    prefill: dict[tuple[str, int], list[float]] = defaultdict(list)
    decode: dict[tuple[str, int], list[float]] = defaultdict(list)
    gpus = {"a100-80gb": A100_80GB, "h100-80gb": H100_SXM}
    for one in csv.DictReader(text.splitlines()):
        if one["model"] != "llama2-70b" or one["hardware"] not in gpus:
            continue
        key = (one["hardware"], int(one["tensor_parallel"]))
        cost = Roofline(LLAMA_2_70B, gpus[key[0]], key[1])
        prompt, batch, output = int(one["prompt_size"]), int(one["batch_size"]), int(one["token_size"])
        seconds = cost.step_seconds(prompt * batch, 0, 0, batch * prompt * prompt // 2)
        prefill[key].append(seconds * 1e3 / float(one["prompt_time"]) - 1)
        seconds = cost.step_seconds(0, batch, batch * (prompt + output // 2))
        decode[key].append(seconds * 1e3 / float(one["token_time"]) - 1)
    print("\nRoofline against measured Llama-2-70B (Splitwise, 2023 software)")
    for key, errors in prefill.items():
        print(
            f"  {key[0]} x {key[1]}: median error {median(errors):+.0%} in prefill, "
            f"{median(decode[key]):+.0%} in decode ({len(errors)} settings)"
        )


def cost() -> None:
    """Measure what simulating costs on this machine."""
    print("\nCost on this machine")
    plan = plan_memory(LLAMA_3_8B, A100_80GB)
    for scheduler, blocks, block in (("vllm", plan.kv_tokens // 16, 16), ("sglang", plan.kv_tokens, 1)):
        config = EngineConfig(Roofline(LLAMA_3_8B, A100_80GB), scheduler, blocks, block, 256, 2048)  # type: ignore[arg-type]
        engine, process = Engine(config), Synthetic(5, Lengths(1000), Lengths(150), max_tokens=1024)
        begin = time.process_time()
        for request in itertools.takewhile(lambda one: one.arrival < SPAN, process.requests(1)):
            engine.advance(request.arrival)
            engine.submit(request)
        seconds, counters = time.process_time() - begin, engine.read().counters
        print(
            f"  {scheduler}: 8B on an A100 at 5 requests/s: {SPAN / seconds:,.0f} engine-seconds per CPU-second, "
            f"{counters.steps / seconds:,.0f} steps/s, {counters.submitted / seconds:,.0f} requests/s"
        )
    tracemalloc.start()
    engines = [Engine(EngineConfig(Roofline(LLAMA_3_8B, A100_80GB)), seed) for seed in range(1000)]
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    begin = time.process_time()
    for second in range(1, 11):
        for engine in engines:
            engine.advance(second)
    idle = time.process_time() - begin
    begin = time.process_time()
    for engine in engines:
        engine.read()
    reading = time.process_time() - begin
    print(
        f"  1,000 idle engines: {size / 1000:,.0f} bytes each, {idle / 10 * 1e3:.1f} ms to advance all of them, "
        f"{reading * 1e3:.0f} ms to read all of them"
    )


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    here = Path(__file__).parent.parent
    parser.add_argument(
        "--splitwise", type=Path, default=here / "tests/fixtures/traces/splitwise_llama2_70b_tp2.csv",
        help="perf_model.csv of Mutinifni/splitwise-sim; by default the extract with two GPUs",
    )  # fmt: skip
    arguments = parser.parse_args()
    vllm_saturated()
    sglang_saturated()
    splitwise(arguments.splitwise)
    cost()


if __name__ == "__main__":
    main()
