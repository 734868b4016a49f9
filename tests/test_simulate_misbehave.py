"""Simulated engines that go wrong: what a server does and holds then, how faults are written, and when they begin."""

from __future__ import annotations

import asyncio
import logging

import pytest

from hand_clock import Hands, Jumps
from llm_headroom.simulate.hardware import A100_80GB, GIB, L4, LLAMA_3_8B, RTX_4090, TINY_LLAMA, plan_memory
from llm_headroom.simulate.live import LiveEngine, LiveOllama
from llm_headroom.simulate.misbehave import Burst, Misbehaviour, parsed
from llm_headroom.simulate.ollama_model import OllamaConfig
from llm_headroom.simulate.scenario import Incident, play, play_until
from llm_headroom.simulate.server import batching_server, ollama_server

SMALL = "small:latest"
OLLAMA = OllamaConfig(models={SMALL: TINY_LLAMA}, gpu=L4, gpu_reserved=GIB)


# Servers -------------------------------------------------------------------------------------------------------------
def test_a_server_holds_what_its_plan_says_and_what_it_leaks() -> None:
    clock = Hands()
    clock.moment = 50.0
    server = batching_server("vllm", clock, version="0.32.0", model=LLAMA_3_8B, gpu=A100_80GB, seed=1, utilisation=0.5)
    plan = plan_memory(LLAMA_3_8B, A100_80GB, utilisation=0.5)
    held = plan.weights + plan.activations + plan.graphs + plan.kv_pool
    assert server.gpu_memory() == held

    server.misbehave(Misbehaviour(leak_bytes_per_second=1000.0))
    clock.moment = 60.0
    assert server.gpu_memory() == held + 10_000
    server.misbehave(Misbehaviour(leak_bytes_per_second=500.0))
    clock.moment = 70.0
    server.misbehave(Misbehaviour(leak_bytes_per_second=0.0))
    clock.moment = 80.0
    assert server.gpu_memory() == held + 15_000
    server.misbehave(Misbehaviour(leak_bytes_per_second=1000.0))
    server.misbehave(Misbehaviour(crash_seconds=5.0, refuse=False))
    clock.moment = 84.9
    assert server.gpu_memory() == 0
    clock.moment = 95.0
    assert server.gpu_memory() == held


def test_a_server_misbehaves_in_several_ways_at_once() -> None:
    clock = Hands()
    server = batching_server("sglang", clock, version="0.5.23", model=LLAMA_3_8B, gpu=A100_80GB, seed=1)
    live = server.live
    assert isinstance(live, LiveEngine)
    assert (server.name, live.engine.config.block_tokens, live.engine.config.max_num_seqs) == ("sglang", 1, 256)
    server.misbehave(Misbehaviour(slowdown=2.0, stall_seconds=5.0, burst=Burst(5.0, 2.0)))
    assert (live.slowdown, 0.0 < live.feed.next_arrival < 2.0) == (2.0, True)
    clock.moment = 4.0
    assert live.read().counters.busy_seconds == 0.0
    first = live.feed.next_arrival
    clock.moment = 20.0
    submitted = live.read().counters.submitted
    assert 3 <= submitted <= 25
    assert first == float("inf")
    server.misbehave(Misbehaviour(burst=Burst(5.0, 2.0)))
    assert live.feed.next_arrival > 20.0
    clock.moment = 40.0
    assert live.read().counters.submitted > submitted


def test_a_server_of_a_model_that_fits_has_as_many_blocks_as_its_pool_holds() -> None:
    clock = Hands()
    for scheduler, version, block in (("vllm", "0.12.0", 16), ("sglang", "0.5.10", 1)):
        server = batching_server(
            "vllm" if scheduler == "vllm" else "sglang", clock, version=version, model=LLAMA_3_8B, gpu=RTX_4090, seed=1,
            utilisation=0.95, max_num_seqs=7,
        )  # fmt: skip
        assert isinstance(server.live, LiveEngine)
        config = server.live.engine.config
        tokens = plan_memory(LLAMA_3_8B, RTX_4090, utilisation=0.95).kv_tokens
        assert (config.total_blocks, config.block_tokens, config.max_num_seqs) == (tokens // block, block, 7)
        assert (config.max_step_tokens, config.step_jitter) == (8192, 0.05)
    with pytest.raises(ValueError, match="has 2 replicas"):
        batching_server("vllm", clock, version="0.32.0-dp2", model=LLAMA_3_8B, gpu=A100_80GB, seed=1)


def test_an_ollama_server_holds_its_models_and_what_it_leaks() -> None:
    clock = Hands()
    server = ollama_server(OLLAMA, clock)
    assert server.gpu_memory() == 0
    server.misbehave(Misbehaviour(burst=Burst(20.0, 0.5, 10, 2, SMALL), leak_bytes_per_second=10.0))
    clock.moment = 30.0
    assert isinstance(server.live, LiveOllama)
    (model,) = server.live.read().loaded
    assert server.gpu_memory() == model.size_vram + 300


def test_a_server_misbehaves_on_request_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    how = b'{"slowdown": 2}'

    async def run() -> bytes:
        server = batching_server("vllm", Hands(), version="0.32.0", model=LLAMA_3_8B, gpu=A100_80GB, seed=1)
        await server.start("127.0.0.1:0")
        host, _, port = server.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /-/misbehave HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 15\r\n\r\n" + how)
        answer = await reader.read()
        writer.close()
        await server.close()
        return answer

    assert asyncio.run(run()).endswith(b'{"accepted": true}')
    (said,) = [vars(each) for each in caplog.records if each.getMessage() == "misbehaviour started"]
    assert (said["engine"], said["how"]) == ("vllm", how.decode())


def test_a_server_that_refuses_is_back_at_its_address_and_a_crash_while_down_makes_it_longer() -> None:
    async def run() -> None:
        clock = Hands(wait=0.001)
        server = batching_server("vllm", clock, version="0.32.0", model=LLAMA_3_8B, gpu=A100_80GB, seed=1)
        await server.start("127.0.0.1:0")
        host, _, port = server.address.rpartition(":")

        async def taken() -> bool:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                return False
            writer.close()
            return True

        try:
            async with asyncio.timeout(60.0):
                assert await taken()
                server.misbehave(Misbehaviour(crash_seconds=5.0))
                while await taken():
                    pass
                clock.moment = 2.0
                server.misbehave(Misbehaviour(crash_seconds=5.0))
                clock.moment = 6.9
                assert not any([await taken() for _ in range(20)])
                clock.moment = 7.0
                while not await taken():
                    pass
        finally:
            await server.close()
            assert not await taken()

    asyncio.run(run())


# Misbehaviour as JSON ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("document", "how"),
    [
        ({}, Misbehaviour()),
        ({"stall_seconds": 2}, Misbehaviour(stall_seconds=2.0)),
        ({"slowdown": 0.5, "refuse": False}, Misbehaviour(slowdown=0.5, refuse=False)),
        ({"leak_bytes_per_second": 0}, Misbehaviour(leak_bytes_per_second=0.0)),
        ({"rename": {"a": "b", "c": ""}}, Misbehaviour(rename={"a": "b", "c": ""})),
        (
            {"burst": {"requests_per_second": 0.1, "seconds": 3, "prompt_tokens": 0.2, "output_tokens": 2.6}},
            Misbehaviour(burst=Burst(0.1, 3.0, 1, 3)),
        ),
        (
            {"burst": {"requests_per_second": 1, "seconds": 3, "output_tokens": 0.2, "model": "m"}},
            Misbehaviour(burst=Burst(1.0, 3.0, 1000, 1, "m")),
        ),
        ({"burst": {"requests_per_second": 1, "seconds": 3}}, Misbehaviour(burst=Burst(1.0, 3.0, 1000, 200, ""))),
    ],
)
def test_misbehaviour_is_read_from_json(document: dict[str, object], how: Misbehaviour) -> None:
    assert parsed(document) == how


@pytest.mark.parametrize(
    "document",
    [
        {"stall_seconds": True},
        {"slowdown": float("inf")},
        {"slowdown": float("nan")},
        {"leak_bytes_per_second": -0.1},
        {"leak_bytes_per_second": None},
        {"crash_seconds": 0.0},
        {"refuse": None},
        {"rename": {"a": 1}},
        {"rename": {1: "a"}},
        {"burst": {"requests_per_second": 0, "seconds": 1}},
        {"burst": {"requests_per_second": 1, "seconds": 0}},
        {"burst": {"requests_per_second": 1, "seconds": 1, "prompt_tokens": 0}},
        {"burst": {"requests_per_second": 1, "seconds": 1, "output_tokens": 0}},
    ],
)
def test_what_is_no_misbehaviour_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must|above"):
        parsed(document)


def test_the_requests_of_a_burst_have_its_lengths() -> None:
    assert (Burst(1.0, 2.0).prompt_tokens, Burst(1.0, 2.0).output_tokens, Burst(1.0, 2.0).model) == (1000, 200, "")
    made = [*Burst(50.0, 20.0, 400, 60).requests(1)]
    prompts, outputs = sorted(one.prompt_tokens for one in made), sorted(one.output_tokens for one in made)
    assert 950 < len(made) < 1050
    assert prompts[len(made) // 2] == pytest.approx(400, rel=0.1)
    assert outputs[len(made) // 2] == pytest.approx(60, rel=0.1)
    assert prompts[len(made) // 6] == pytest.approx(400 * 2.718**-0.3, rel=0.1)
    assert outputs[-len(made) // 6] == pytest.approx(60 * 2.718**0.3, rel=0.1)


# Incidents -----------------------------------------------------------------------------------------------------------
def test_incidents_begin_in_order_and_again() -> None:
    clock = Jumps()
    begun: list[tuple[float, str]] = []

    def begin(one: Incident) -> None:
        begun.append((clock.moment, one.what))
        if len(begun) == 6:
            raise EOFError

    how = Misbehaviour(stall_seconds=1.0)
    incidents = [
        Incident(7.0, "vllm", how, "late"),
        Incident(2.0, "vllm", how, "again", 3.0),
        Incident(2.0, "vllm", how, "once"),
    ]
    with pytest.raises(EOFError):
        asyncio.run(play(incidents, clock, begin))
    assert begun == [(2.0, "again"), (2.0, "once"), (5.0, "again"), (7.0, "late"), (8.0, "again"), (11.0, "again")]

    begun.clear()
    asyncio.run(play(incidents[:1], clock, begin))
    assert begun == [(11.0, "late")]


def test_incidents_are_played_until_the_end_and_not_only_until_the_last() -> None:
    async def run() -> list[str]:
        clock, ended = Hands(), asyncio.Event()
        begun: list[str] = []

        def begin(one: Incident) -> None:
            begun.append(one.what)

        playing = asyncio.ensure_future(
            play_until(ended, [Incident(0.0, "vllm", Misbehaviour(), "first")], clock, begin)
        )
        while not begun:  # noqa: ASYNC110 - a task of the same loop
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        assert not playing.done()
        ended.set()
        await playing
        waits = asyncio.ensure_future(play_until(ended, [Incident(9.0, "vllm", Misbehaviour())], clock, begin))
        await waits

        def fails(_: Incident) -> None:
            raise EOFError

        with pytest.raises(EOFError):
            await play_until(asyncio.Event(), [Incident(0.0, "vllm", Misbehaviour())], clock, fails)
        return begun

    assert asyncio.run(run()) == ["first"]
