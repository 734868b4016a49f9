"""The measuring proxy as part of the exporter: simulated engines, real requests, and what `/metrics` says of them."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

import captures
from engine_server import EngineServer, Reply, as_json, replayed
from exporter_process import DEADLINE, Exporter, ran
from free_port import free_port
from simulator_process import Simulator, events, post

if TYPE_CHECKING:
    from pathlib import Path

    from engine_server import Behaviour

VLLM_MODEL = "meta-llama/Meta-Llama-3-8B"
CHAT = {"model": "llama-3-8b", "messages": [{"role": "user", "content": "hello there"}]}


def streamed(address: str, path: str, document: object) -> list[bytes]:
    """The lines of an answer as they come."""
    connection = http.client.HTTPConnection(address, timeout=DEADLINE)
    try:
        connection.request("POST", path, json.dumps(document))
        return list(connection.getresponse())
    finally:
        connection.close()


def counted(exporter: Exporter, metric: str, **labels: str) -> float:
    """The value of the only such series, 0 before it is there."""
    value = exporter.value(metric, **labels)
    return 0.0 if value is None else value


@pytest.mark.parametrize(
    ("listen", "host"),
    [("127.0.0.1", "127.0.0.1"), ("", "localhost"), ("0.0.0.0", "127.0.0.1"), ("0.0.0.0", "localhost")],
)
def test_a_proxy_that_leads_back_to_itself_says_so_to_the_first_who_asks(listen: str, host: str) -> None:
    with free_port() as port:
        loop = (f"--ollama-proxy={listen}:{port}", f"--target=ollama=http://{host}:{port}")
        with Exporter(*loop, "--no-gpu", "--interval", "100ms") as exporter:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
            connection.request("GET", "/api/tags")
            answer = connection.getresponse()
            said = json.load(answer)["error"]
            connection.close()
            exporter.logged("source down", cause="status", error=f"http://{host}:{port}/api/ps answered 502")

    assert answer.status == 502
    assert "it leads back to a proxy of llm-headroom" in said


def test_ollama_gets_the_metrics_that_it_has_not(tmp_path: Path) -> None:
    config = tmp_path / "headroom.yml"
    with Simulator("simulate", "--engine", "ollama", "--listen", "127.0.0.1:0", "--speed", "20") as simulator:
        engine = simulator.address("ollama")
        config.write_text(
            f"targets: [{{url: 'http://{engine}', name: box, engine: ollama, requests_running_limit: 1}}]\n"
            "proxies: [{listen: '127.0.0.1:0', target: box}]\ngpu: false\nhost: false\n"
        )
        with Exporter("--config", str(config), "--interval", "100ms") as exporter:
            proxy = exporter.logged("proxying", target="box")["address"]
            lines = streamed(proxy, "/api/chat", {**CHAT, "options": {"num_predict": 20}})
            last = json.loads(lines[-1])
            labels = {"engine": "ollama", "target": "box", "model": "llama-3-8b:latest"}
            # no objective counts what was there at the first poll: let one pass
            exporter.until(lambda: exporter.value("llm_time_to_first_token_seconds_count", **labels) == 0)
            whole: Any = post(proxy, "/api/chat", {**CHAT, "stream": False, "options": {"num_predict": 5}})
            exporter.until(lambda: counted(exporter, "llm_requests_finished_total", **labels, reason="length") == 2)

            assert (last["eval_count"], whole["eval_count"]) == (20, 5)
            assert exporter.value("llm_generation_tokens_total", **labels) == 25
            prompts = last["prompt_eval_count"] + whole["prompt_eval_count"]
            assert exporter.value("llm_prompt_tokens_total", **labels) == prompts
            # the first request waited for the model, which the other one found in memory
            assert exporter.value("llm_proxy_first_token_after_load_seconds_count", **labels) == 1
            assert exporter.value("llm_time_to_first_token_seconds_count", **labels) == 1
            assert exporter.value("llm_slo_requests_total", **labels, slo="ttft") == 1
            assert exporter.value("llm_inter_token_latency_seconds_count", **labels) == 19
            assert exporter.value("llm_request_decode_seconds_count", **labels) == 2
            assert exporter.value("llm_request_duration_seconds_count", **labels) == 1
            assert exporter.value("llm_requests_running", **labels) == 0
            assert exporter.value("llm_requests_waiting", **labels) == 0
            # what is polled and what is derived stand beside it, under the same labels
            assert exporter.value("llm_model_loaded", **labels) == 1
            assert exporter.value("llm_slo_threshold_seconds", **labels, slo="ttft") == 2.5


def test_a_model_that_llama_cpp_s_router_loads_on_demand_is_no_late_first_token(tmp_path: Path) -> None:
    config, go = tmp_path / "headroom.yml", threading.Event()
    chunk = {"choices": [{"index": 0, "delta": {"content": "a"}}], "model": "m", "object": "chat.completion.chunk"}
    stream = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()

    def answer(_server: EngineServer, connection: socket.socket) -> None:
        go.wait(DEADLINE)
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: "
        connection.sendall(f"{head}{len(stream)}\r\n\r\n".encode() + stream)

    def listed(state: str) -> Reply:
        return as_json({"data": [{"id": "m", "owned_by": "llamacpp", "status": {"value": state}}]})

    routes: dict[str, Reply | Behaviour] = {
        "/props": as_json({"role": "router", "build_info": "b1"}),
        "/v1/models": listed("unloaded"),
        "/v1/chat/completions": answer,
    }
    with EngineServer(routes) as engine:
        config.write_text(
            f"targets: [{{url: '{engine.url}', name: box, engine: llamacpp}}]\n"
            "proxies: [{listen: '127.0.0.1:0', target: box}]\ngpu: false\nhost: false\n"
        )
        with Exporter("--config", str(config), "--interval", "100ms") as exporter:
            proxy = exporter.logged("proxying", target="box")["address"]
            count = {"target": "box/proxy", "model": "m"}
            exporter.until(lambda: exporter.value("llm_model_loaded", model="m") == 0)
            asking = threading.Thread(
                target=streamed, args=(proxy, "/v1/chat/completions", {"model": "m", "messages": [], "stream": True})
            )
            asking.start()
            exporter.until(lambda: exporter.value("llm_requests_running", target="box/proxy") == 1)
            engine.routes["/v1/models"] = listed("loaded")
            exporter.until(lambda: exporter.value("llm_model_loaded", model="m") == 1)
            go.set()
            asking.join()
            exporter.until(lambda: exporter.value("llm_proxy_first_token_after_load_seconds_count", **count) == 1)
            assert counted(exporter, "llm_time_to_first_token_seconds_count", **count) == 0

            streamed(proxy, "/v1/chat/completions", {"model": "m", "messages": [], "stream": True})
            exporter.until(lambda: exporter.value("llm_time_to_first_token_seconds_count", **count) == 1)
            assert exporter.value("llm_proxy_first_token_after_load_seconds_count", **count) == 1


def test_an_engine_with_metrics_and_its_proxy_stand_side_by_side(tmp_path: Path) -> None:
    config = tmp_path / "headroom.yml"
    with Simulator("simulate", "--engine", "vllm", "--listen", "127.0.0.1:0", "--speed", "20") as simulator:
        engine = simulator.address("vllm")
        config.write_text(
            f"targets: [{{url: 'http://{engine}', name: a, engine: vllm, labels: {{team: x}}}}]\n"
            "proxies: [{listen: '127.0.0.1:0', target: a}]\ngpu: false\nhost: false\n"
        )
        with Exporter("--config", str(config), "--interval", "100ms") as exporter:
            proxy = exporter.logged("proxying", target="a")["address"]
            asked = {
                **CHAT,
                "model": VLLM_MODEL,
                "stream": True,
                "max_tokens": 30,
                "stream_options": {"include_usage": True},
            }
            found = events(b"".join(streamed(proxy, "/v1/chat/completions", asked)))
            exporter.until(lambda: counted(exporter, "llm_requests_finished_total", target="a/proxy") == 1)
            exporter.until(lambda: counted(exporter, "llm_generation_tokens_total", target="a") == 30)

            assert found[-1]["usage"]["completion_tokens"] == 30
            for target in ("a", "a/proxy"):
                labels = {"engine": "vllm", "target": target, "model": VLLM_MODEL, "team": "x"}
                assert exporter.value("llm_time_to_first_token_seconds_count", **labels) == 1
                assert exporter.value("llm_generation_tokens_total", **labels) == 30
            assert exporter.value("llm_up", target="a/proxy") == 1
            assert exporter.value("llm_kv_cache_usage_ratio", target="a/proxy") is None


def test_a_router_its_engines_and_a_proxy_before_it_are_told_apart_by_target_and_agree_on_the_rest(
    tmp_path: Path,
) -> None:
    """The router's and an engine's captures; requests go through the proxy to a simulated engine."""
    router = next(each for each in captures.ALL if "smg-1.13.0" in str(each) and "saturated" in str(each))
    engine = next(each for each in captures.ALL if "0.5.23-dp2" in str(each) and "saturated" in str(each))
    config = tmp_path / "headroom.yml"
    with (
        EngineServer(replayed(router)) as metrics,
        EngineServer(replayed(engine)) as behind,
        Simulator("simulate", "--engine", "sglang", "--listen", "127.0.0.1:0", "--speed", "20") as simulator,
    ):
        config.write_text(
            f"""
targets:
  - {{url: "{metrics.url}", name: router, engine: sglang_router}}
  - {{url: "{behind.url}", name: engine-0, engine: sglang}}
proxies: [{{listen: "127.0.0.1:0", target: router, upstream: "http://{simulator.address("sglang")}"}}]
gpu: false
host: false
"""
        )
        with Exporter("--config", str(config), "--interval", "100ms") as exporter:
            proxy = exporter.logged("proxying", target="router")["address"]
            streamed(proxy, "/v1/chat/completions", {**CHAT, "max_tokens": 5, "stream": True})
            exporter.until(lambda: counted(exporter, "llm_requests_finished_total", target="router/proxy") == 1)
            exporter.until(lambda: exporter.value("llm_up", target="engine-0") == 1)
            exporter.until(lambda: exporter.value("llm_up", target="router") == 1)
            samples = exporter.metrics()

    def targets(metric: str) -> set[tuple[str | None, str | None]]:
        return {(dict(key).get("engine"), dict(key).get("target")) for key in samples.get(metric, {})}

    assert targets("llm_router_requests_total") == {("sglang_router", "router")}
    assert targets("llm_router_workers") == {("sglang_router", "router")}
    assert targets("llm_kv_cache_usage_ratio") == {("sglang", "engine-0")}
    assert targets("llm_time_to_first_token_seconds_count") == {
        ("sglang", "engine-0"),
        ("sglang_router", "router/proxy"),
    }
    # engines and what is measured before them have one name each: nothing is counted under two
    assert targets("llm_generation_tokens_total") >= {("sglang", "engine-0")}
    assert ("sglang_router", "router") not in targets("llm_generation_tokens_total")


def test_the_command_needs_nothing_but_two_addresses() -> None:
    with Simulator("simulate", "--engine", "ollama", "--listen", "127.0.0.1:0", "--speed", "20") as simulator:
        engine = simulator.address("ollama")
        command = Exporter("--upstream", f"ollama={engine}", "--metrics-listen", "127.0.0.1:0", command="proxy")
        with command as exporter:
            proxy = exporter.logged("proxying")["address"]
            post(proxy, "/api/generate", {"model": "llama-3-8b", "prompt": "hi", "stream": False})
            exporter.until(lambda: counted(exporter, "llm_requests_finished_total", target=engine) == 1)
            metrics = exporter.metrics()
            said = {line["msg"] for line in exporter.log}
    assert not [name for name in metrics if name.startswith(("llm_gpu_", "llm_host_"))], "nothing else is looked at"
    assert {dict(labels)["target"] for labels in metrics["llm_up"]} <= {engine, "proxy"}
    assert "not found" not in said


def test_an_upstream_that_cannot_be_is_named_as_it_was_given() -> None:
    ended = ran("proxy", "--listen", "127.0.0.1:0", "--upstream", "olama=http://127.0.0.1:1")

    assert ended.returncode == 2
    assert ended.stderr.startswith("llm-headroom: --upstream: unknown engine 'olama'; did you mean ollama")


def test_an_address_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = ran("run", "--listen", "127.0.0.1:0", "--no-gpu", "--ollama-proxy", f"127.0.0.1:{port}")

    assert ended.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}: the address is in use" in ended.stderr


def test_clients_of_the_proxy_leave_descriptors_to_metrics() -> None:
    with Simulator("simulate", "--engine", "ollama", "--listen", "127.0.0.1:0", "--speed", "20") as simulator:
        engine = simulator.address("ollama")
        arguments = ("--upstream", f"ollama={engine}", "--metrics-listen", "127.0.0.1:0")
        with Exporter(*arguments, command="proxy", descriptors=64) as exporter, contextlib.ExitStack() as clients:
            host, _, port = exporter.logged("proxying")["address"].rpartition(":")
            for _ in range(150):
                clients.enter_context(socket.create_connection((host, int(port))))
            exporter.until(lambda: exporter.value("llm_up", target=engine) == 1)
            post(f"{host}:{port}", "/api/generate", {"model": "llama-3-8b", "prompt": "hi", "stream": False})
            exporter.until(lambda: counted(exporter, "llm_requests_finished_total", target=engine) == 1)

    assert len([line for line in exporter.log if line.get("level") in ("warning", "error")]) <= 1
