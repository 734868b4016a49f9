"""Simulated engines over real sockets, and the exporter over them."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from exporter_process import DEADLINE, Exporter, ran
from hand_clock import Hands
from llm_headroom.simulate import scenario
from llm_headroom.simulate.hardware import A100_80GB, LLAMA_3_8B
from llm_headroom.simulate.live import LiveOllama
from llm_headroom.simulate.misbehave import Burst, Misbehaviour, parsed
from llm_headroom.simulate.ollama_model import BUSY_MESSAGE, OllamaConfig
from llm_headroom.simulate.server import ollama_server
from llm_headroom.simulate.traffic import Request
from simulator_process import Simulator, ask, events, post

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ANYWHERE = ("--listen", "127.0.0.1:0")


@pytest.fixture(scope="module")
def vllm() -> Iterator[str]:
    """The address of a healthy vLLM without traffic."""
    with Simulator("simulate", "--engine", "vllm", *ANYWHERE) as simulator:
        yield simulator.address("vllm")


@pytest.fixture(scope="module")
def ollama() -> Iterator[str]:
    """The address of an Ollama without traffic, twenty times as fast as a real one."""
    with Simulator("simulate", "--engine", "ollama", "--speed", "20", *ANYWHERE) as simulator:
        yield simulator.address("ollama")


def metric(address: str, name: str) -> float:
    """The sum of a metric's samples on an engine's own `/metrics`."""
    status, body = ask(address, "GET", "/metrics")
    assert status == 200
    samples = [one for family in text_string_to_metric_families(body.decode()) for one in family.samples]
    return sum(one.value for one in samples if one.name == name)


def until(address: str, name: str, value: float) -> None:
    """Wait until a metric has a value."""
    end = time.monotonic() + DEADLINE
    while (found := metric(address, name)) != value:
        assert time.monotonic() < end, found


@contextlib.contextmanager
def streaming(address: str, **document: Any) -> Iterator[http.client.HTTPResponse]:  # noqa: ANN401 - JSON
    """A completion that is being streamed, its first event read."""
    connection = http.client.HTTPConnection(address, timeout=DEADLINE)
    connection.request("POST", "/v1/completions", json.dumps({"prompt": "a b", "stream": True, **document}))
    response = connection.getresponse()
    try:
        assert response.readline().startswith(b"data: ")
        yield response
    finally:
        response.close()
        connection.close()


# The API of vLLM and SGLang -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_streamed_completion_has_every_token_and_then_its_usage(engine: str) -> None:
    with Simulator("simulate", "--engine", engine, "--seed", "3", *ANYWHERE) as simulator:
        document = {
            "prompt": "one two three",
            "max_tokens": 7,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        status, body = ask(simulator.address(engine), "POST", "/v1/completions", document)
    assert status == 200
    *tokens, usage = events(body)
    assert [part["choices"][0]["finish_reason"] for part in tokens] == [None] * 6 + ["length"]
    assert all(part["choices"][0]["text"] and part["usage"] is None for part in tokens)
    assert (usage["choices"], usage["usage"]) == (
        [],
        {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10},
    )


def test_the_last_token_has_the_reason_and_may_be_the_first(vllm: str) -> None:
    for count in (1, 2):
        document = {"prompt": "a", "max_tokens": count, "stream": True}
        tokens = events(ask(vllm, "POST", "/v1/completions", document)[1])
        assert [part["choices"][0]["finish_reason"] for part in tokens] == [*[None] * (count - 1), "length"]


def test_a_chat_streams_its_role_first_and_stops_by_itself(vllm: str) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a b"}]},
    ]
    document = {"messages": messages, "max_tokens": 50, "output_tokens": 4, "stream": True}
    first, *tokens = events(ask(vllm, "POST", "/v1/chat/completions", document)[1])
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert [part["choices"][0]["finish_reason"] for part in tokens] == [None, None, None, "stop"]
    whole = post(vllm, "/v1/chat/completions", {**document, "stream": False})
    assert whole["choices"][0]["message"]["content"].split() == ["token"] * 4
    assert whole["usage"] == {"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8}


def test_tokens_never_come_before_their_time(vllm: str) -> None:
    before = metric(vllm, "vllm:e2e_request_latency_seconds_sum")
    begun = time.monotonic()
    post(vllm, "/v1/completions", {"prompt_tokens": 2000, "prompt": "", "max_tokens": 20})
    elapsed = time.monotonic() - begun
    assert 0 < metric(vllm, "vllm:e2e_request_latency_seconds_sum") - before <= elapsed


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": "a", "n": 2}, "n must be 1"),
        ({"prompt": "a", "prompt_tokens": "many"}, "prompt_tokens"),
        (["no object"], "JSON object"),
        ({"prompt": "", "prompt_tokens": 100_000_000}, "maximum context length"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_with_the_reason(vllm: str, document: Any, complaint: str) -> None:  # noqa: ANN401 - JSON
    status, body = ask(vllm, "POST", "/v1/completions", document)
    assert status == 400
    assert complaint in json.loads(body)["error"]["message"]


def test_unknown_paths_are_not_found(vllm: str) -> None:
    assert ask(vllm, "GET", "/nothing")[0] == 404
    assert ask(vllm, "GET", "/v1/completions")[0] == 405


def test_a_client_that_leaves_aborts_its_request(vllm: str) -> None:
    with streaming(vllm, max_tokens=100_000):
        until(vllm, "vllm:num_requests_running", 1)
    until(vllm, "vllm:num_requests_running", 0)


def test_pipelined_and_repeated_requests_are_answered_in_order(vllm: str) -> None:
    host, port = vllm.split(":")
    request = b'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\n{"prompt":"a", "max_tokens":2}'
    with socket.create_connection((host, int(port)), DEADLINE) as connection:
        connection.sendall(request + request + b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.count(b"HTTP/1.1 200") == 3
    assert answer.count(b'"completion_tokens": 2') == 2


# The API of Ollama ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("path", "part"), [("/api/chat", "message"), ("/api/generate", "response")])
def test_ollama_streams_lines_and_tells_its_timings_last(ollama: str, path: str, part: str) -> None:
    document = {
        "model": "llama-3-8b",
        "prompt": "a b c",
        "messages": [{"role": "user", "content": "a b c"}],
        "options": {"num_predict": 5},
    }
    status, body = ask(ollama, "POST", path, document)
    assert status == 200
    *tokens, last = [json.loads(line) for line in body.splitlines()]
    assert len(tokens) == 5
    assert all(part in token and not token["done"] for token in tokens)
    assert (last["done"], last["done_reason"]) == (True, "length")
    assert (last["prompt_eval_count"], last["eval_count"]) == (3, 5)
    assert last["total_duration"] >= last["load_duration"] + last["prompt_eval_duration"] + last["eval_duration"] - 3
    whole = post(ollama, path, {**document, "stream": False})
    assert whole["done"]
    assert "token token token token token" in str(whole[part])


def test_ollama_tells_of_the_model_that_it_has_loaded(ollama: str) -> None:
    post(ollama, "/api/generate", {"model": "llama-3-8b", "prompt": "a", "stream": False})
    (loaded,) = json.loads(ask(ollama, "GET", "/api/ps")[1])["models"]
    assert loaded["name"] == "llama-3-8b:latest"
    assert post(ollama, "/api/show", {"model": "llama-3-8b"})["model_info"]["general.parameter_count"] > 1e9
    assert "version" in json.loads(ask(ollama, "GET", "/api/version")[1])
    assert ask(ollama, "GET", "/")[1] == b"Ollama is running"
    assert ask(ollama, "GET", "/metrics")[0] == 404


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/show"])
def test_ollama_does_not_know_other_models(ollama: str, path: str) -> None:
    status, body = ask(ollama, "POST", path, {"model": "nope"})
    assert (status, json.loads(body)) == (404, {"error": "model 'nope' not found"})


async def _send(address: str, path: str, document: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps(document).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    return reader, writer


def test_ollama_is_busy_when_its_queue_is_full() -> None:
    async def queue() -> bytes:
        config = OllamaConfig(models={"small:latest": LLAMA_3_8B}, gpu=A100_80GB, max_queue=1)
        server = ollama_server(config, Hands())  # the model is never loaded
        await server.start("127.0.0.1:0")
        document = {"model": "small", "prompt": "a"}
        try:
            async with asyncio.timeout(DEADLINE):
                _, first = await _send(server.address, "/api/generate", document)
                while isinstance(server.live, LiveOllama) and not server.live.read().pending:  # noqa: ASYNC110 - a client
                    await asyncio.sleep(0)
                reader, second = await _send(server.address, "/api/generate", document)
                answer = await reader.read()
            for writer in (first, second):
                writer.close()
            return answer
        finally:
            await server.close()

    answer = asyncio.run(queue())
    assert answer.startswith(b"HTTP/1.1 503")
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {"error": BUSY_MESSAGE}


def test_a_client_of_ollama_that_leaves_aborts_its_request_and_a_stall_stops_all() -> None:
    async def leave() -> None:
        config = OllamaConfig(models={"small:latest": LLAMA_3_8B}, gpu=A100_80GB, context_length=100_000)
        clock = Hands()
        server = ollama_server(config, clock)
        await server.start("127.0.0.1:0")
        live = server.live
        assert isinstance(live, LiveOllama)

        def tokens() -> int:
            return sum(one.engine.counters.generated_tokens for one in live.read().loaded)

        try:
            async with asyncio.timeout(DEADLINE):
                document = {"model": "small", "prompt": "a", "options": {"num_predict": 80_000}}
                reader, writer = await _send(server.address, "/api/generate", document)
                while not live.read().pending:  # noqa: ASYNC110 - a client
                    await asyncio.sleep(0)
                clock.moment = 60.0
                begun = tokens()
                server.misbehave(Misbehaviour(stall_seconds=20.0))
                clock.moment = 79.0
                assert 0 < tokens() == begun
                writer.close()
                while live.read().loaded[0].engine.running:  # it has left after the stall
                    clock.moment += 0.01
                    await asyncio.sleep(0)
                assert begun < tokens() < 80_000
                del reader
        finally:
            await server.close()

    asyncio.run(leave())


# Misbehaviour, seen by the exporter -----------------------------------------------------------------------------------
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_exporter_follows_what_the_engine_does(engine: str) -> None:
    with Simulator("simulate", "--engine", engine, *ANYWHERE) as simulator, contextlib.ExitStack() as stack:
        address = simulator.address(engine)
        post(address, "/v1/completions", {"prompt": "", "prompt_tokens": 700, "max_tokens": 30})
        for _ in range(3):
            stack.enter_context(streaming(address, max_tokens=20_000))
        options = ("--no-discover", "--no-gpu", "--interval", "0.2s", "--target", f"{engine}=http://{address}")
        exporter = stack.enter_context(Exporter(*options))
        exporter.until(lambda: exporter.value("llm_requests_running") == 3)
        assert exporter.value("llm_requests_waiting") == 0
        assert exporter.value("llm_time_to_first_token_seconds_count") == 4
        assert exporter.value("llm_requests_finished_total", reason="length") in (1, None)
        generated = exporter.value("llm_generation_tokens_total")
        assert generated is not None
        used = exporter.value("llm_kv_cache_usage_ratio")
        assert used is not None
        assert 0 <= used < 0.1


def test_an_engine_that_crashes_is_down_and_comes_back_with_its_counters_at_0() -> None:
    with Simulator("simulate", *ANYWHERE) as simulator:
        address = simulator.address("vllm")
        post(address, "/v1/completions", {"prompt": "a", "max_tokens": 9})
        options = ("--no-discover", "--no-gpu", "--interval", "0.1s", "--target", f"vllm=http://{address}")
        with Exporter(*options) as exporter:
            exporter.until(lambda: exporter.value("llm_generation_tokens_total") == 9)
            with streaming(address, max_tokens=50_000) as stream:
                post(address, "/-/misbehave", {"crash_seconds": 1.5})
                with pytest.raises((http.client.IncompleteRead, OSError)):
                    stream.read()
            exporter.until(lambda: exporter.value("llm_up") == 0)
            assert exporter.value("llm_generation_tokens_total") is None
            exporter.until(lambda: exporter.value("llm_source_errors_total", cause="refused") is not None)
            exporter.until(lambda: exporter.value("llm_up") == 1)
            assert exporter.value("llm_generation_tokens_total") == 0
        assert simulator.end() == 0


def test_an_engine_can_crash_behind_something_that_answers_503() -> None:
    with Simulator("simulate", *ANYWHERE) as simulator:
        address = simulator.address("vllm")
        post(address, "/-/misbehave", {"crash_seconds": 3600, "refuse": False})
        assert ask(address, "GET", "/metrics")[0] == 503
        assert ask(address, "POST", "/v1/completions", {"prompt": "a"})[0] == 503


def test_renamed_metrics_show_as_unknown_and_their_signals_are_absent() -> None:
    with Simulator("simulate", *ANYWHERE) as simulator:
        address = simulator.address("vllm")
        options = ("--no-discover", "--no-gpu", "--interval", "0.1s", "--target", f"vllm=http://{address}")
        with Exporter(*options) as exporter:
            exporter.until(lambda: exporter.value("llm_requests_running") == 0)
            unknown = exporter.value("llm_source_samples", state="unknown") or 0
            post(address, "/-/misbehave", {"rename": {"vllm:num_requests_running": "vllm:requests_in_flight"}})
            exporter.until(lambda: exporter.value("llm_requests_running") is None)
            assert exporter.value("llm_source_samples", state="unknown") == unknown + 1
            assert exporter.value("llm_up") == 1
            assert exporter.value("llm_requests_waiting") == 0


def test_a_stalled_engine_keeps_its_requests_and_makes_no_progress() -> None:
    with Simulator("simulate", *ANYWHERE) as simulator:
        address = simulator.address("vllm")
        with streaming(address, max_tokens=50_000):
            post(address, "/-/misbehave", {"stall_seconds": 3600})
            generated = metric(address, "vllm:generation_tokens_total")
            assert [metric(address, "vllm:generation_tokens_total") for _ in range(20)] == [generated] * 20
            assert metric(address, "vllm:num_requests_running") == 1


def test_a_burst_fills_the_engine() -> None:
    with Simulator("simulate", "--speed", "50", *ANYWHERE) as simulator:
        address = simulator.address("vllm")
        burst = {"requests_per_second": 50, "seconds": 3600, "prompt_tokens": 3000, "output_tokens": 500}
        post(address, "/-/misbehave", {"burst": burst})
        end = time.monotonic() + DEADLINE
        while not metric(address, "vllm:num_requests_waiting"):
            assert time.monotonic() < end


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ({"crash": 1}, "unknown key crash"),
        ({"crash_seconds": 0}, "crash_seconds"),
        ({"stall_seconds": "long"}, "stall_seconds"),
        ({"leak_bytes_per_second": -1}, "leak_bytes_per_second"),
        ({"refuse": 1}, "refuse"),
        ({"rename": ["a"]}, "rename"),
        ({"burst": {"seconds": 1}}, "requests_per_second"),
        ({"burst": {"seconds": 1, "requests_per_second": 1, "x": 1}}, r"burst\.x"),
        ({"burst": 3}, "burst"),
    ],
)
def test_misbehaviour_that_makes_no_sense_is_refused(vllm: str, how: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parsed(how)
    status, body = ask(vllm, "POST", "/-/misbehave", how)
    assert status == 400
    assert complaint.replace("\\", "") in json.loads(body)["error"]


def test_ollama_refuses_what_it_cannot_do(ollama: str) -> None:
    assert ask(ollama, "POST", "/-/misbehave", {"rename": {"a": "b"}})[0] == 400
    burst = {"seconds": 1, "requests_per_second": 1, "model": "nope"}
    status, body = ask(ollama, "POST", "/-/misbehave", {"burst": burst})
    assert (status, "llama-3-8b:latest" in json.loads(body)["error"]) == (400, True)


# Scenarios and traffic ------------------------------------------------------------------------------------------------
def test_a_scenario_is_played(tmp_path: Path) -> None:
    file = tmp_path / "scenario.yml"
    file.write_text("- {at: 1, engine: vllm, what: it dies, crash_seconds: 3600, refuse: false}\n")
    with Simulator("simulate", "--speed", "10", "--scenario", str(file), *ANYWHERE) as simulator:
        assert ask(simulator.address("vllm"), "GET", "/health")[0] in (200, 503)
        simulator.said("incident: it dies")
        assert ask(simulator.address("vllm"), "GET", "/health")[0] == 503


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("at: 1", "expected a list"),
        ("- {at: 1}", "incident 1: expected a mapping with at and engine"),
        ("- {at: soon, engine: vllm}", "incident 1: at must be"),
        ("- {at: 1, engine: vllm}\n- {at: 1, every: 0, engine: vllm}", "incident 2: every must be"),
        ("- {at: 1, engine: vllm, explode: 1}", "unknown key explode"),
        ("- [", "scenario.yml"),
    ],
)
def test_a_scenario_with_a_mistake_is_refused_and_the_place_named(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "scenario.yml"
    file.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        scenario.read(file)


def test_a_scenario_may_repeat_and_words_itself(tmp_path: Path) -> None:
    file = tmp_path / "scenario.yml"
    burst = "{requests_per_second: 2, seconds: 9, prompt_tokens: 10, output_tokens: 5}"
    file.write_text(f"- {{at: 1.5, every: 60, engine: vllm, what: more, burst: {burst}}}")
    (found,) = scenario.read(file)
    how = Misbehaviour(burst=Burst(2.0, 9.0, 10, 5))
    assert found == scenario.Incident(1.5, "vllm", how, "more", 60.0)


def test_a_bursts_requests_lie_within_it() -> None:
    arrivals = [one.arrival for one in Burst(20.0, 5.0, 100, 10).requests(1)]
    assert arrivals == sorted(arrivals)
    assert arrivals[0] >= 0
    assert arrivals[-1] < 5.0
    assert len(arrivals) > 50


@given(st.floats(0.0, 0.95), st.floats(10.0, 10_000.0))
def test_a_day_moves_requests_and_keeps_their_order_and_number(swing: float, day: float) -> None:
    even = [Request(index * day / 100.0, 1, 1) for index in range(200)]
    arrivals = [one.arrival for one in scenario.daily(even, day, swing)]
    assert arrivals == sorted(arrivals)
    assert arrivals[100] == pytest.approx(day, abs=1e-4)
    assert arrivals[50] == pytest.approx(day / 2, abs=1e-4)
    assert arrivals[25] >= day / 4 - 1e-4


def test_a_day_without_a_trough_is_refused() -> None:
    with pytest.raises(ValueError, match="swing"):
        next(scenario.daily([Request(0.0, 1, 1)], 10.0, 1.0))


# The command ----------------------------------------------------------------------------------------------------------
def test_a_trace_and_clients_make_traffic() -> None:
    options = ("--trace", "azure_conv", "--rate", "2", "--clients", "4", "--speed", "20")
    with Simulator("simulate", *options, *ANYWHERE) as simulator:
        address = simulator.address("vllm")
        end = time.monotonic() + DEADLINE
        while metric(address, "vllm:request_success_total") < 10:
            assert time.monotonic() < end


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--model", "gpt-9"), "unknown model 'gpt-9'"),
        (("--gpu", "abacus"), "unknown GPU 'abacus'"),
        (("--version", "0.0.1"), "0.0.1"),
        (("--speed", "0"), "speed"),
        (("--trace", "nothing.csv"), "llm-headroom: nothing.csv: No such file or directory"),
        (("--engine", "ollama", "--clients", "3"), "--clients"),
        (("--model", "llama-2-70b"), "leaves no memory"),
        (("--listen", "nowhere"), "nowhere"),
    ],
)
def test_a_wrong_option_ends_with_a_reason(arguments: tuple[str, ...], complaint: str) -> None:
    run = ran("simulate", *arguments)
    assert run.returncode == 2
    assert complaint in run.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_while_clients_wait(number: int) -> None:
    with Simulator("simulate", *ANYWHERE) as simulator, streaming(simulator.address("vllm"), max_tokens=100_000):
        assert simulator.end(number) == 0
