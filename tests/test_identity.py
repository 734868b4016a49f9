"""Who answers is who they say: engines are told apart by names that only they use."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import pytest

import captures
import field_inputs
from captures import Capture, value, values
from engine_server import EngineServer, Reply, as_json, hang, replayed
from llm_headroom import schema
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import parse_target
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.model import point
from llm_headroom.scrape import coverage
from llm_headroom.scrape.http import FetchError
from llm_headroom.scrape.identify import identify
from one_target import polled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine_server import Behaviour

NIM = b"""\
# TYPE num_requests_running gauge
num_requests_running{model_name="meta/llama-3.1-8b-instruct"} 7
# TYPE num_requests_waiting gauge
num_requests_waiting{model_name="meta/llama-3.1-8b-instruct"} 2
# TYPE num_request_max gauge
num_request_max{model_name="meta/llama-3.1-8b-instruct"} 256
# TYPE gpu_cache_usage_perc gauge
gpu_cache_usage_perc{model_name="meta/llama-3.1-8b-instruct"} 0.5
# TYPE prompt_tokens_total counter
prompt_tokens_total{model_name="meta/llama-3.1-8b-instruct"} 1000
# TYPE request_success_total counter
request_success_total{model_name="meta/llama-3.1-8b-instruct"} 40
# TYPE request_failure_total counter
request_failure_total{model_name="meta/llama-3.1-8b-instruct"} 3
# TYPE time_to_first_token_seconds histogram
time_to_first_token_seconds_bucket{model_name="meta/llama-3.1-8b-instruct",le="1"} 39
time_to_first_token_seconds_bucket{model_name="meta/llama-3.1-8b-instruct",le="+Inf"} 40
time_to_first_token_seconds_sum{model_name="meta/llama-3.1-8b-instruct"} 8
time_to_first_token_seconds_count{model_name="meta/llama-3.1-8b-instruct"} 40
"""
MLX = b"""\
# TYPE vllm_mlx_requests_running gauge
vllm_mlx_requests_running 1
# TYPE vllm_mlx_generation_tokens_total counter
vllm_mlx_generation_tokens_total 10
"""


def identified(routes: Mapping[str, Reply | Behaviour]) -> str:
    """The name of the engine that is found at a server."""

    async def ask() -> str:
        with EngineServer(routes) as server:
            return (await identify(Endpoint(url=server.url), BUILT_IN, timeout=30)).name

    return asyncio.run(ask())


@pytest.mark.parametrize("owner", ["vllm", "sglang", "llamacpp"])
def test_an_engine_without_metrics_is_the_owner_of_its_models(owner: str) -> None:
    models = [{"id": "adapter", "owned_by": "somebody"}, {"id": "m", "owned_by": owner}]
    assert identified({"/v1/models": as_json({"data": models})}) == owner


def test_an_engine_is_known_by_its_greeting() -> None:
    assert identified({"/": Reply(b"Ollama is running")}) == "ollama"


@pytest.mark.parametrize("owner", ["", "somebody"])
def test_an_owner_that_is_no_engine_identifies_none(owner: str) -> None:
    with pytest.raises(FetchError, match="could not be identified"):
        identified({"/": Reply(b""), "/v1/models": as_json({"data": [{"id": "m", "owned_by": owner}]})})


def test_the_router_of_vllm_is_a_router() -> None:
    assert identified(field_inputs.routes("10")) == "sglang_router"
    points = polled("sglang_router", field_inputs.routes("10")).snapshot.points

    assert value(points, "llm_router_requests_total") == 120
    assert values(points, "llm_router_errors_total", "reason") == {"request_failed": 3}
    assert value(points, "llm_router_workers") == 2
    assert values(points, "llm_router_worker_healthy", "worker") == {
        "http://10.0.0.5:8000": 1,
        "http://10.0.0.6:8000": 0,
    }
    assert values(points, "llm_router_worker_requests_active", "worker") == {"http://10.0.0.5:8000": 7}


def test_a_prefix_that_others_begin_with_is_claimed_in_known_names_only() -> None:
    with pytest.raises(FetchError):
        identified({"/metrics": Reply(MLX)})
    assert identified({"/metrics": Reply(b"vllm_num_requests_running 1\n")}) == "vllm"
    assert identified({"/metrics": Reply(b"vllm:a_metric_of_tomorrow 1\n")}) == "vllm"


def test_names_without_a_prefix_identify_only_together() -> None:
    assert identified({"/metrics": Reply(NIM)}) == "vllm"
    with pytest.raises(FetchError):
        identified({"/metrics": Reply(b"num_requests_running 1\nprompt_tokens_total 3\n")})


def test_nvidia_nim_serves_the_names_of_vllm_without_prefix_below_v1() -> None:
    snapshot = polled("vllm", {"/v1/metrics": Reply(NIM)}).snapshot
    points = snapshot.points

    assert snapshot.health.up
    assert snapshot.health.unmapped == ()
    assert values(points, "llm_requests_running", "model") == {"meta/llama-3.1-8b-instruct": 7}
    assert value(points, "llm_requests_waiting") == 2
    assert value(points, "llm_requests_running_limit") == 256
    assert value(points, "llm_kv_cache_usage_ratio") == 0.5
    assert value(points, "llm_requests_finished_total") == 40
    assert value(points, "llm_requests_failed_total") == 3
    assert captures.histogram(points, "llm_time_to_first_token_seconds").count == 40


def test_an_expiry_is_right_with_any_number_of_fraction_digits_and_any_offset() -> None:
    found = values(
        polled("ollama", field_inputs.routes("18")).snapshot.points, "llm_model_expiry_timestamp_seconds", "model"
    )
    day = datetime(2027, 8, 8, 0, 7, 26, tzinfo=UTC).timestamp()
    earlier = datetime(2024, 6, 4, 14, 38, 31, tzinfo=UTC).timestamp()

    assert found == {
        "nine:1": pytest.approx(day - 2 * 3600 + 0.817827, abs=1e-5),
        "eight:1": pytest.approx(day - 2 * 3600 + 0.817827, abs=1e-5),
        "seven:1": pytest.approx(day - 2 * 3600 + 0.817827, abs=1e-5),
        "six:1": pytest.approx(day - 2 * 3600 + 0.817827, abs=1e-5),
        "three:1": pytest.approx(day + 7 * 3600 + 0.817, abs=1e-5),
        "none:1": pytest.approx(day + 7 * 3600, abs=1e-5),
        "utc8:1": pytest.approx(day + 0.817827, abs=1e-5),
        "five-docs:1": pytest.approx(earlier + 7 * 3600 + 0.83753, abs=1e-5),
        "four:1": pytest.approx(earlier + 7 * 3600 + 0.8375, abs=1e-5),
    }


@pytest.mark.parametrize(
    ("routes", "said"),
    [
        ({"/metrics": Reply(b"node_load1 0.5\n")}, "this looks like node_exporter"),
        ({"/metrics": Reply(b"acme_widgets 0.5\n")}, "the metrics of something else (acme_widgets, …)"),
        ({"/": Reply(b"<!doctype html><title>Grafana</title>")}, "this looks like a web page (Grafana)"),
        ({"*": Reply(b"<html><title>Sign in &amp; go\x1b[31m</title>")}, "a login page (Sign in & go[31m)"),
        (
            {"/": Reply(b"<html><input type=password>", 401)},
            "or `username` and `password_file`",
        ),
        (field_inputs.routes("16"), "OLLAMA_HOST"),
        (
            {"*": Reply(b"<html><title>Sign In</title>", 403)},
            "answered 403 to every path; this looks like a login page",
        ),
        (
            {"*": Reply(b"<html><title>Sign In</title>", 403), "/": Reply(b"no", 404)},
            "(/metrics with 403), but could not",
        ),
        ({"/": Reply(b"<html><title>" + b"x" * 61 + b"</title>")}, f"this looks like a web page ({'x' * 60});"),
        ({"/": Reply(b"<html>" + b" " * 19_977 + b"<title>It</title")}, "this looks like a web page (It);"),
        ({"/": Reply(b"<html>" + b" " * 20_000 + b"<title>It</title")}, "this looks like a web page;"),
        ({"/": Reply(b"It <html>")}, "SGLang/vLLM router, vLLM; check the port"),
        (
            {"/metrics": Reply(b"tgi_queue_size 1\n")},
            "this looks like Text Generation Inference, an engine",
        ),
        ({"/metrics": Reply(b"acme_x 1\n")}, "one that is not built in is described under `engines`"),
        ({"/": Reply(b" " * 190 + b"Ollama is running")}, "(/metrics with 404), but could not be identified"),
        ({"/metrics": Reply(b"node_load1 0.5\n", 503)}, "(/metrics with 503), but could not be identified"),
        ({"/metrics": Reply(b"<html>A page"), "/": Reply(b"<html>sign in")}, "this looks like a web page;"),
        ({"/metrics": Reply(b"envoy_x 1\nlitellm_x 1\n")}, "this looks like LiteLLM's proxy;"),
    ],
)
def test_what_is_no_engine_is_described(routes: Mapping[str, Reply | Behaviour], said: str) -> None:
    with pytest.raises(FetchError) as raised:
        identified(routes)

    assert said in raised.value.failure.message


ANSWERING: Final = {
    "vllm": replayed(Capture("vllm", "0.32.0", "after_load")),
    "sglang": replayed(Capture("sglang", "0.5.23", "moderate")),
    "llamacpp": replayed(Capture("llamacpp", "b10488", "load_5")),
    "ollama": replayed(Capture("ollama", "0.33.0-rc2", "ps_loaded")),
    "sglang_router": field_inputs.routes("10"),
}
MODEL_LIST: Final = as_json({"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "somebody"}]})


@pytest.mark.parametrize("named", BUILT_IN)
@pytest.mark.parametrize("answering", ANSWERING)
def test_an_engine_that_is_named_wrongly_is_down_and_the_right_one_is_said(named: str, answering: str) -> None:
    snapshot = polled(named, ANSWERING[answering]).snapshot

    assert snapshot.health.up is (named == answering)
    if snapshot.health.error is not None:
        assert snapshot.health.error.cause == "not_this_engine"
        assert f"this looks like {BUILT_IN[answering].title}" in snapshot.health.error.message


@pytest.mark.parametrize("named", ["vllm", "sglang", "llamacpp", "sglang_router"])
@pytest.mark.parametrize(
    "routes",
    [
        {"/metrics": Reply(b"acme_widgets 1\n")},
        {"/metrics": Reply(b"acme_widgets 1\n"), "/v1/models": MODEL_LIST},
        {"/metrics": Reply(b"acme_widgets 1\n"), "/v1/models": MODEL_LIST, "/version": as_json({"version": "1"})},
    ],
    ids=["metrics", "model list", "version"],
)
def test_a_server_with_a_model_list_alone_is_no_engine(named: str, routes: Mapping[str, Reply]) -> None:
    error = polled(named, routes).snapshot.health.error

    assert error is not None
    assert error.cause == "not_this_engine"
    assert "the metrics of something else (acme_widgets, …)" in error.message


def test_a_vllm_without_metrics_is_known_by_its_model_list() -> None:
    models = as_json({"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 5}]})
    snapshot = polled("vllm", {"/metrics": Reply(b"python_info 1\n"), "/v1/models": models}).snapshot

    assert snapshot.health.up
    assert "--disable-log-stats" in snapshot.health.warnings[0].message


def test_the_production_stack_s_router_is_refused_also_while_nothing_runs() -> None:
    text = b'vllm:current_qps{server="http://a"} 0\nvllm:healthy_pods_total{server="http://a"} 1\n'
    error = polled("vllm", {"/metrics": Reply(text)}).snapshot.health.error

    assert error is not None
    assert "engines behind it" in error.message


def test_ollama_that_refuses_a_foreign_host_says_how_to_allow_it() -> None:
    error = polled("ollama", field_inputs.routes("16")).snapshot.health.error

    assert error is not None
    assert "OLLAMA_HOST" in error.message
    assert "credentials" not in error.message


def test_a_model_can_be_named_where_the_engine_s_own_name_says_nothing() -> None:
    routes = replayed(Capture("vllm", "0.32.0", "saturated"))
    points = polled("vllm", routes, model="llama-3-8b").snapshot.points
    own = polled("vllm", routes).snapshot.points

    assert {point.series.label("model") for point in points} == {"", "llama-3-8b"}
    assert len(points) == len(own)


def test_what_wants_credentials_beside_the_metrics_is_no_warning_and_a_reason() -> None:
    routes = {**replayed(Capture("vllm", "0.32.0", "saturated")), "/v1/models": Reply(b"{}", 401)}
    snapshot = polled("vllm", routes, polls=2).snapshot

    assert snapshot.health.warnings == ()
    reasons = dict(coverage.missing(snapshot, BUILT_IN["vllm"]))
    assert "/v1/models wants credentials" in reasons["llm_model_context_tokens"]


def test_what_an_engine_can_never_have_is_not_said_to_come_with_time() -> None:
    """Nor is a metric that exists, and says nothing of this, said to be missing."""
    snapshot = polled("vllm", replayed(Capture("vllm", "0.12.0", "saturated"))).snapshot
    reasons = dict(coverage.missing(snapshot, BUILT_IN["vllm"]))

    assert "load models on demand" in reasons["llm_model_loads_total"]
    assert "load models on demand" in reasons["llm_spill_risk_ratio"]
    assert "limit their queue" in reasons["llm_queue_overflow_risk_ratio"]
    assert "`gpu_count`" in reasons["llm_engine_gpus"]
    assert "several readings" in reasons["llm_pressure_ratio"]
    assert reasons["llm_model_memory_bytes"].startswith("vllm:cache_config_info of the engine does not say it")
    assert "the engine exposes no vllm:lora_requests_info" in reasons["llm_lora_slots"]
    assert "vllm:hf3fs_save_duration_seconds_count" not in reasons["llm_kv_transfers_total"], (
        "the first of many will do"
    )
    assert " or 5 more (needs: NixlConnector; " in reasons["llm_kv_transfers_total"]
    assert "run llm-headroom there" in reasons["llm_host_memory_limit_bytes"]


@pytest.mark.parametrize(("stalled", "said"), [(0.0, "ten minutes with requests"), (1.0, "makes no progress")])
def test_an_engine_that_is_stalled_has_no_load_headroom_for_that_reason(stalled: float, said: str) -> None:
    snapshot = polled("vllm", replayed(Capture("vllm", "0.32.0", "saturated"))).snapshot
    points = [each for each in snapshot.points if each.series.metric is not schema.ENGINE_STALLED]
    judged = point(schema.ENGINE_STALLED, stalled, "", {"target": "a"})
    reasons = dict(coverage.missing(replace(snapshot, points=(*points, judged)), BUILT_IN["vllm"]))

    assert said in reasons["llm_load_headroom_ratio"]
    assert said in reasons["llm_saturation_ratio"]


def test_where_host_memory_is_read_a_missing_limit_is_no_wrong_host() -> None:
    snapshot = polled("vllm", replayed(Capture("vllm", "0.32.0", "saturated"))).snapshot
    used = point(schema.HOST_MEMORY_USED, 1.0, "cgroup", {"target": "a"})
    reasons = dict(coverage.missing(replace(snapshot, points=(*snapshot.points, used)), BUILT_IN["vllm"]))

    assert reasons["llm_host_memory_limit_bytes"] == "the engine's control group has no memory limit"
    assert "version 2" in reasons["llm_host_memory_pressure_seconds_total"]


def test_what_is_left_of_a_deadline_is_said_in_round_numbers() -> None:
    routes = {**replayed(Capture("vllm", "0.32.0", "saturated")), "/version": hang}
    (warning, *_) = polled("vllm", routes, timeout=1.5).snapshot.health.warnings

    assert re.search(r"/version: no answer within [01]\.\d s", warning.message)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1/metrics", "127.0.0.1:8000/v1/"])
def test_the_address_that_clients_are_given_is_understood(url: str) -> None:
    target = parse_target(f"vLLM={url}")

    assert (target.engine, target.endpoint.url) == ("vllm", "http://127.0.0.1:8000")


def test_a_url_without_a_port_says_which_was_tried() -> None:
    with pytest.raises(FetchError, match=r"has no port, so 80 was tried \(.*vLLM 8000"):
        asyncio.run(identify(Endpoint(url="http://127.0.0.1"), BUILT_IN, timeout=5))
