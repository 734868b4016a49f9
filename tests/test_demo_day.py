"""What the demo's day is made of: its engines, their traffic, what they hold of GPUs, and its incidents."""

from __future__ import annotations

import os
from itertools import takewhile
from typing import TYPE_CHECKING

import pytest

from llm_headroom.commands.demo import (
    DAY,
    INCIDENTS,
    LARGE,
    OLLAMA,
    SMALL,
    Settings,
    chats,
    engines,
    simulated_gpus,
    targets,
)
from llm_headroom.simulate.clock import Clock
from llm_headroom.simulate.hardware import GIB
from llm_headroom.simulate.live import LiveEngine, LiveOllama

if TYPE_CHECKING:
    from llm_headroom.simulate.misbehave import Misbehaviour
    from llm_headroom.simulate.server import EngineServer


@pytest.fixture(name="servers")
def fixture_servers() -> dict[str, EngineServer]:
    """Its engines, as if they listened."""
    found = engines(Settings(listen="127.0.0.1:0", speed=1.0, seed=1, stack=False), Clock(1.0))
    for port, server in enumerate(found.values(), 1001):
        server.address = f"127.0.0.1:{port}"
    return found


def test_the_engines_have_their_models_and_their_shares_of_a_gpu(servers: dict[str, EngineServer]) -> None:
    seen = {}
    for name in ("vllm", "sglang"):
        live = servers[name].live
        assert isinstance(live, LiveEngine)
        config = live.engine.config
        seen[name] = (config.scheduler, config.total_blocks * config.block_tokens, config.max_num_seqs)
    assert seen == {"vllm": ("vllm", 128_128, 256), "sglang": ("sglang", 427_197, 64)}
    assert [round(server.gpu_memory() / GIB, 1) for server in servers.values()] == [33.6, 40.0, 0.0]
    ollama = servers["ollama"].live
    assert isinstance(ollama, LiveOllama)
    assert ollama.server.config is OLLAMA
    assert {name: round(model.weights_bytes / GIB, 1) for name, model in OLLAMA.models.items()} == {
        SMALL: 4.3,
        LARGE: 38.1,
    }
    assert (OLLAMA.gpu_reserved / GIB, OLLAMA.num_parallel, OLLAMA.keep_alive) == (41.0, 4, 120.0)


def test_the_engines_are_scraped_as_what_they_are(servers: dict[str, EngineServer]) -> None:
    found = {target.name: target for target in targets(servers)}
    assert {(name, each.engine, each.endpoint.url) for name, each in found.items()} == {
        (name, name, f"http://127.0.0.1:{port}") for port, name in enumerate(("vllm", "sglang", "ollama"), 1001)
    }
    assert [each.gpus for each in found.values()] == [("0",), ("1",), ()]
    memory = found["vllm"].model_memory
    assert (memory.weights, memory.kv_bytes_per_token) == (2 * 8_030_261_248, 2 * 32 * 8 * 128 * 2)
    assert {each.model_memory.weights for name, each in found.items() if name != "vllm"} == {None}
    pids = [each.pid for each in found.values()]
    assert pids[2] == os.getpid()
    reading = simulated_gpus(servers, Clock(1.0)).read()
    listed = [[process.pid for process in device.processes] for device in reading.processes]
    assert listed == [[pids[0]], [pids[1]]], "Ollama has loaded nothing yet"
    used = [value for series, value, _ in reading.points if series.metric.name == "llm_gpu_memory_used_bytes"]
    assert [round(value / GIB, 1) for value in used if isinstance(value, float)] == [39.6, 40.0], "with the neighbour's"


def test_traffic_is_that_of_the_recordings_and_swings_over_the_day(servers: dict[str, EngineServer]) -> None:
    def asked(name: str, until: float) -> tuple[int, int, int, int]:
        found = [request for _, request in servers[name].live.feed.until(until)]
        return (
            len(found),
            sum(one.prompt_tokens for one in found),
            sum(one.output_tokens for one in found),
            sum(len(one.prefix) for one in found),
        )

    night, noon = (417, 381_574, 108_928, 257), (2461, 2_910_586, 638_106, 1775)
    assert [asked("vllm", until) for until in (300.0, 900.0)] == [night, noon]
    night, noon = (63, 147_578, 1478, 43), (1903, 3_741_672, 57_017, 1409)
    assert [asked("sglang", until) for until in (300.0, 900.0)] == [night, noon]
    assert asked("ollama", 900.0) == (0, 0, 0, 0), "its clients come through the proxy"


def test_ollama_is_asked_most_in_the_middle_of_the_day() -> None:
    night, noon = (
        [one for one in takewhile(lambda one: one.arrival < DAY, chats(1)) if (300.0 <= one.arrival < 900.0) is middle]
        for middle in (False, True)
    )
    assert (len(night), len(noon)) == (110, 225)
    assert sorted(one.prompt_tokens for one in noon)[len(noon) // 2] == 187
    assert sorted(one.output_tokens for one in noon)[len(noon) // 2] == 160
    assert next(chats(2)) != next(chats(1))


def test_incidents_come_one_after_the_other_and_do_what_they_say() -> None:
    assert [one.at for one in INCIDENTS] == [60.0, 240.0, 420.0, 580.0, 600.0, 720.0, 900.0, 1020.0, 1100.0]
    assert {one.at < DAY for one in INCIDENTS} == {True}
    assert [(one.what, _as_words(one.how)) for one in INCIDENTS] == [
        ("a burst that fills vLLM's KV cache", "75 s: 7 per second of 700 and 700 tokens"),
        ("long prompts reach SGLang", "60 s: 0.5 per second of 14000 and 250 tokens"),
        ("a request to Ollama for a model that does not fit the GPU", "90 s: 0.1 per second of 300 and 60 tokens"),
        ("a minute of high load on SGLang", "40 s: 3 per second of 1000 and 500 tokens"),
        ("SGLang stalls for 100 s", "stall_seconds: 100"),
        ("vLLM leaks 150 MB of GPU memory per second", "leak_bytes_per_second: 1.5e+08"),
        ("vLLM crashes and restarts after 60 s", "crash_seconds: 60"),
        ("SGLang's GPU is throttled to a third", "slowdown: 3"),
        ("SGLang's GPU is back to full speed", "slowdown: 1"),
    ]


def _as_words(how: Misbehaviour) -> str:
    if (burst := how.burst) is not None:
        rate, tokens = f"{burst.requests_per_second:g} per second", f"{burst.prompt_tokens} and {burst.output_tokens}"
        return f"{burst.seconds:g} s: {rate} of {tokens} tokens"
    names = ("stall_seconds", "leak_bytes_per_second", "crash_seconds", "slowdown")
    return ", ".join(f"{name}: {value:g}" for name in names if (value := getattr(how, name)) is not None)
