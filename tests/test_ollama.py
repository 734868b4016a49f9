"""What Ollama's API tells: other versions, models that run elsewhere, times, and answers that are none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import captures
from captures import Capture, value, values
from engine_server import Reply, as_json, replayed
from one_target import polled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from one_target import Polled

LOADED = Capture("ollama", "0.33.0-rc2", "ps_loaded")
ROW = captures.document("ollama/0.33.0-rc2/ps_loaded")["models"][0]


def collected(routes: Mapping[str, Any], *, polls: int = 1, **settings: Any) -> Polled:  # noqa: ANN401 - answers, and a target's settings
    """The last of some polls of a server that answers as captured but for `routes`; and the paths asked for."""
    return polled("ollama", {**replayed(LOADED), **routes}, polls=polls, **settings)


def models(*rows: Mapping[str, Any]) -> Reply:
    return as_json({"models": rows})


def test_details_of_a_model_are_asked_for_once() -> None:
    _, asked = collected({}, polls=3)

    assert {path: asked.count(path) for path in asked} == {
        "/api/ps": 3,
        "/api/tags": 1,
        "/api/version": 1,
        "/metrics": 1,
        "/api/show": 1,
    }


def test_models_that_run_elsewhere_are_neither_loaded_nor_in_the_library() -> None:
    cloud = {"name": "gpt-oss:120b-cloud", "digest": "c" * 64, "size": 384, "remote_host": "https://ollama.com:443"}
    snapshot, asked = collected({"/api/ps": models(cloud), "/api/tags": models(cloud, ROW)})

    assert value(snapshot.points, "llm_models_loaded") == 0.0
    assert value(snapshot.points, "llm_models_installed") == 1.0
    assert values(snapshot.points, "llm_model_loaded", "model") == {"small:latest": 0.0}
    assert "/api/show" not in asked


@pytest.mark.parametrize(("size", "total"), [(1000, 54757637.0), (None, None)])
def test_the_library_has_a_size_where_each_of_its_models_has_one(size: int | None, total: float | None) -> None:
    other = ROW | {"name": "other:latest", "size": size}
    snapshot, _ = collected({"/api/tags": models(ROW, other)})

    assert value(snapshot.points, "llm_models_installed") == 2.0
    assert value(snapshot.points, "llm_models_installed_bytes") == total


def test_an_embedding_model_has_no_cache() -> None:
    shown = captures.document("ollama/0.33.0-rc2/show") | {"capabilities": ["embedding"]}
    snapshot, _ = collected({"/api/show": as_json(shown)}, requests_running_limit=1, kv_cache_type="f16")

    assert value(snapshot.points, "llm_kv_cache_capacity_tokens") is None
    assert set(values(snapshot.points, "llm_model_memory_bytes", "kind")) == {"total", "device"}


def test_a_release_of_before_context_lengths() -> None:
    old = {key: ROW[key] for key in ("name", "model", "size", "digest", "expires_at", "size_vram")}
    snapshot, _ = collected({"/api/ps": models(old)}, requests_running_limit=2, kv_cache_type="f16")

    assert snapshot.health.up
    assert value(snapshot.points, "llm_model_context_tokens") is None
    assert value(snapshot.points, "llm_kv_cache_capacity_tokens") is None
    assert value(snapshot.points, "llm_models_loaded") == 1.0


@pytest.mark.parametrize(
    ("text", "unix"),
    [
        ("2318-11-03T12:00:00.123456789Z", None),
        ("2318-11-03T12:00:00.123456789+02:00", None),
        ("2026-11-24T10:00:00.123456789Z", 1795514400.123456),
        ("2026-11-24T12:00:00.123456789+02:00", 1795514400.123456),
        ("2001-01-01T00:00:00.123456789Z", 978307200.123456),  # a clock that is far behind
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_when_a_model_expires(text: str | None, unix: float | None) -> None:
    snapshot, _ = collected({"/api/ps": models(ROW | {"expires_at": text})})

    assert value(snapshot.points, "llm_model_expiry_timestamp_seconds") == unix


@pytest.mark.parametrize(
    ("fields", "share"),
    [
        ({"size_vram": 0}, 0.0),
        ({"size_vram": 27378318}, 27378318 / 54756637),
        ({"size_vram": "all"}, None),
        ({"size": 0}, None),
        ({"size": -1}, None),
    ],
)
def test_the_share_on_gpus(fields: dict[str, Any], share: float | None) -> None:
    snapshot, _ = collected({"/api/ps": models(ROW | fields)})

    assert value(snapshot.points, "llm_model_offload_ratio") == share


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"models": 5}', b'{"models": [5]}', b'{"models": [{}]}', b"null"])
def test_answers_that_are_none_are_told_as_such(body: bytes) -> None:
    snapshot, _ = collected({"/api/ps": Reply(body)})

    assert snapshot.health.error is not None
    assert snapshot.health.error.cause == "format"
    assert "/api/ps" in snapshot.health.error.message


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"model_info": 5}', b'{"modelfile": 5}', b'{"model_info": {"general.architecture": {}}}']
)
def test_details_that_are_none_cost_only_themselves(body: bytes) -> None:
    snapshot, _ = collected({"/api/show": Reply(body)}, requests_running_limit=1)

    assert snapshot.health.up
    assert values(snapshot.points, "llm_model_loaded", "model")["small:latest"] == 1.0
    assert value(snapshot.points, "llm_model_parameters") is None


def test_metrics_of_a_release_to_come_are_taken() -> None:
    """Names of ollama/ollama pull requests 18508 and 16998."""
    text = b"""# TYPE ollama_requests_queued gauge
ollama_requests_queued 3
# TYPE ollama_prompt_tokens_total counter
ollama_prompt_tokens_total{model="small:latest"} 100
# TYPE ollama_prompt_cached_tokens_total counter
ollama_prompt_cached_tokens_total{model="small:latest"} 40
# TYPE ollama_generated_tokens_total counter
ollama_generated_tokens_total{model="small:latest"} 7
# TYPE ollama_requests_total counter
ollama_requests_total{model="small:latest"} 2
# TYPE ollama_eval_duration_seconds_total counter
ollama_eval_duration_seconds_total{model="small:latest"} 2.5
# TYPE ollama_queue_capacity gauge
ollama_queue_capacity 512
"""
    snapshot, _ = collected({"/metrics": Reply(text)})

    assert value(snapshot.points, "llm_requests_waiting") == 3.0
    assert values(snapshot.points, "llm_prompt_tokens_total", "model") == {"small:latest": 100.0}
    assert values(snapshot.points, "llm_prompt_tokens_cached_total", "model") == {"small:latest": 40.0}
    assert values(snapshot.points, "llm_generation_tokens_total", "model") == {"small:latest": 7.0}
    assert value(snapshot.points, "llm_requests_finished_total") == 2.0
    assert snapshot.health.unmapped == ()


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_a_server_does_not_offer_beside_its_models_is_no_trouble(status: int) -> None:
    refused = Reply(b"", status)
    routes = {"/api/ps": as_json({"models": []}), "/api/tags": refused, "/api/version": refused, "/metrics": refused}
    snapshot, _ = polled("ollama", routes)

    assert snapshot.health.up
    assert snapshot.health.warnings == ()
