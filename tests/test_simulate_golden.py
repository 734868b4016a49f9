"""What simulated engines and GPUs do in a known run: every count, time and figure.

`pytest --update` writes the file; review the diff. What must hold whatever happens, other tests say; this one shows
what a change moves.
"""

from __future__ import annotations

import json
from dataclasses import astuple, fields, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hand_clock import Hands
from llm_headroom.simulate import ollama_api
from llm_headroom.simulate.batching import Engine
from llm_headroom.simulate.engine_state import EngineConfig
from llm_headroom.simulate.exposition import Exposition
from llm_headroom.simulate.gpus import Holder, SimulatedGpus
from llm_headroom.simulate.hardware import GIB, H100_SXM, L4, LLAMA_3_8B, QWEN_2_5_7B, TINY_LLAMA, Roofline, plan_memory
from llm_headroom.simulate.measures import Counters, HistogramReading, Histograms
from llm_headroom.simulate.ollama_model import OllamaConfig, OllamaServer
from llm_headroom.simulate.traffic import Burst, Lengths, Request, Synthetic

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from llm_headroom.simulate.engine_state import EngineReading, Outcome

EXPECTED: Final = Path(__file__).parent / "fixtures" / "simulated.txt"
START: Final = 1_795_000_000.0
TRAFFIC: Final = Synthetic(
    12.0,
    Lengths(150, 0.5),
    Lengths(110, 0.5, maximum=160),
    burstiness=2.0,
    day_swing=0.5,
    day_seconds=8.0,
    bursts=(Burst(1.0, 1.5, 5.0),),
    max_tokens=160,
    prefixes=2,
    prefix_tokens=64,
)


def written(value: object) -> str:
    """A value as text; of a float nine digits, which are the same on every machine."""
    if isinstance(value, HistogramReading):
        return f"{' '.join(map(str, value.counts))} sum {written(value.total)}"
    if isinstance(value, dict):
        return " ".join(f"{key}:{written(each)}" for key, each in sorted(value.items()))
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def state(reading: EngineReading) -> Iterator[str]:
    """What an engine reads, as far as it is not 0."""
    gauges = [field.name for field in fields(reading) if field.name not in {"counters", "histograms"}]
    for name in gauges:
        yield f"  {name} {written(getattr(reading, name))}"
    for field in fields(Counters):
        if value := getattr(reading.counters, field.name):
            yield f"  {field.name} {written(value)}"
    for field in fields(Histograms):
        yield f"  {field.name} {written(getattr(reading.histograms, field.name))}"


def ended(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """How requests ended: number, prompt and output tokens, reason, times, tokens, preemptions."""
    for one in outcomes:
        size = f"{one.request.prompt_tokens}+{one.request.output_tokens}"
        yield f"  {one.number} {size} {' '.join(map(written, astuple(replace(one, request=None))[2:]))}"  # type: ignore[arg-type]


def samples(body: bytes) -> Iterator[str]:
    """The lines of an exposition that say something."""
    for line in body.decode().splitlines():
        name, _, value = line.rpartition(" ")
        if not line.startswith("#") and float(value) != 0.0 and "_bucket" not in name:
            yield f"  {name} {written(float(value))}"


def batching(version: str, config: EngineConfig) -> Iterator[str]:
    """A server under bursts, with clients that leave, a stall, a slow spell and a crash."""
    memory = plan_memory(TINY_LLAMA, L4, utilisation=0.9)
    exposition = Exposition(version, model="m", config=config, start=START, speed=2.0, memory=memory)
    engine = Engine(replace(config, bounds=exposition.bounds), seed=5)
    ends: list[Outcome] = []
    numbers = [
        engine.submit(one, on_end=ends.append) for one in takewhile(lambda one: one.arrival < 8.0, TRAFFIC.requests(3))
    ]
    for one in (Request(0.5, 560, 3), Request(0.6, 300, 40, 5000), Request(4.0, 10**6, 3)):
        engine.submit(one, on_end=ends.append)
    for moment in (0.25, 1.1, 1.7, 2.5, 3.6, 5.0, 6.0, 7.0, 60.0):
        engine.advance(moment)
        if moment == 1.7:
            for number in numbers[20:40:3]:
                engine.abort(number)
        elif moment == 2.5:
            engine.stall(0.4)
        elif moment == 3.6:
            engine.slowdown = 2.5
        elif moment == 5.0:
            engine.slowdown = 1.0
        elif moment == 6.0:
            engine.crash(0.5)
        reading = engine.read()
        yield f"{version} at {moment}"
        yield from state(reading)
        if moment in {3.6, 60.0}:
            readings = [reading] * exposition.ranks
            yield from samples(exposition.render(readings, now=START + moment))
            yield "  " + json.dumps(exposition.documents(readings), sort_keys=True)
    yield f"{version} ended"
    yield from ended(ends)


def ollama() -> Iterator[str]:
    """Three models of which one spills, loads that push out others, a full queue, a stall, and models that expire."""
    models = {"small:latest": TINY_LLAMA, "middle:7b": QWEN_2_5_7B, "large:8b": LLAMA_3_8B}
    config = OllamaConfig(
        models=models, gpu=L4, gpu_reserved=8 * GIB, num_parallel=2, max_loaded=2, max_queue=6, keep_alive=40.0,
        context_length=2000,
    )  # fmt: skip
    server = OllamaServer(config, start=10.0)
    ends: list[Outcome] = []
    asked: dict[float, tuple[tuple[str, int, int], ...]] = {
        10.0: (("small:latest", 300, 200), ("small:latest", 50, 400), ("small:latest", 3000, 20)),
        12.0: (("large:8b", 100, 60), ("small:latest", 20, 100)),
        20.0: (("middle:7b", 200, 30), *(("middle:7b", 10 * each, 5) for each in range(1, 10))),
        60.0: (("small:latest", 20, 30), ("large:8b", 40, 20)),
    }
    for moment in (10.0, 11.0, 12.0, 13.0, 20.0, 21.0, 30.0, 60.0, 61.0, 70.0, 90.0, 400.0):
        server.advance(moment)
        for model, prompt, output in asked.get(moment, ()):
            number = server.submit(model, Request(moment, prompt, output), on_end=ends.append)
            if output == 100 and number is not None:
                server.abort(number)
        if moment == 13.0:
            server.stall(1.5)
        if moment == 21.0:
            server.slowdown = 1.5
        reading = server.read()
        yield f"ollama at {moment}"
        for field in fields(reading):
            if field.name != "loaded":
                yield f"  {field.name} {written(getattr(reading, field.name))}"
        for one in reading.loaded:
            row = {field.name: getattr(one, field.name) for field in fields(one) if field.name != "engine"}
            yield f"  {written(row)} running:{one.engine.running} waiting:{one.engine.waiting}"
        yield "  " + json.dumps(
            ollama_api.documents(reading, config, start=START, speed=2.0)["/api/ps"], sort_keys=True
        )
    documents = ollama_api.documents(server.read(), config, start=START)
    yield from (
        f"  {json.dumps(each, sort_keys=True)}"
        for each in (documents, *(ollama_api.show(name, config) for name in models))
    )
    yield "ollama ended"
    yield from ended(ends)


def gpus() -> Iterator[str]:
    """Two GPUs: one works at half of its time, gets hot and slow, and reports errors; one is nearly full."""
    clock = Hands()
    slow = [1.0, 1.0]
    held = [10 * GIB, 2 * GIB]
    holders = [
        Holder(lambda: held[0], 77, lambda: 0.5 * clock.moment, lambda: slow[0]),
        Holder(lambda: held[1], None, lambda: 0.1 * clock.moment, lambda: slow[1]),
    ]
    full = [Holder(lambda: 79 * GIB, 78), Holder(lambda: 30 * GIB)]
    seen = SimulatedGpus(clock, [(L4, holders), (H100_SXM, full)])
    for moment in (0.0, 1.0, 30.0, 31.0, 90.0):
        clock.moment = moment
        if moment == 30.0:
            slow[0] = 3.0
        if moment == 90.0:
            slow[:] = [1.0, 1.0]
            held[1] = 0
        seen.sample()
        yield f"gpus at {moment}"
        for point in seen.read().points:
            labels = " ".join(f"{key}={text}" for key, text in point.series.labels if key != "uuid")
            yield f"  {point.series.metric.name} {labels} {written(point.value)}"
        yield from (f"  {each}" for each in seen.read().processes)


def story() -> Iterator[str]:
    """Every run, one after the other."""
    cost = Roofline(TINY_LLAMA, L4)
    vllm = EngineConfig(cost, total_blocks=30, block_tokens=32, max_num_seqs=8, max_step_tokens=512, step_jitter=0.1)
    sglang = EngineConfig(cost, "sglang", 900, 1, 10, 512, max_queue=30, schedule_conservativeness=0.1, step_jitter=0.1)
    yield from batching("vllm/0.32.0", vllm)
    yield from batching("sglang/0.5.23", sglang)
    yield from ollama()
    yield from gpus()


def test_a_known_run_gives_what_it_gave(*, update: bool) -> None:
    found = "".join(f"{line}\n" for line in story())
    if update:
        EXPECTED.write_text(found, encoding="utf-8")
    assert found.splitlines() == EXPECTED.read_text(encoding="utf-8").splitlines()
