"""What Ollama's documents say of its models, condition by condition (see test_ollama for whole servers)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from documents_read import asked, read, told
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Target
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.engines.built_in.ollama import paths
from llm_headroom.host.runners import Runner

if TYPE_CHECKING:
    from collections.abc import Mapping


OLLAMA = BUILT_IN["ollama"]
LOADED = {"name": "m", "digest": "d" * 64, "context_length": 300}
SHOW = {
    "model_info": {
        "general.architecture": "a",
        "general.parameter_count": 5,
        "a.context_length": 4096,
        "a.block_count": 1,
        "a.attention.head_count": 1,
        "a.embedding_length": 8,
    },
    "modelfile": "# x\nFROM /path/of weights \nTEMPLATE y\n",
}
INFO = f"model_info m {'d' * 12}"
BASE = {"models_loaded": 1, "model_loaded m": 1, INFO: 1, "model_context_tokens m": 300}


def of_ollama(model: Mapping[str, Any], show: Mapping[str, Any] | None = None, **more: object) -> dict[str, float]:
    answers = {"/api/ps": {"models": [LOADED | dict(model)]}, "/api/show m": show}
    return told(OLLAMA, read(OLLAMA, answers) | more)


@pytest.mark.parametrize(
    ("fields", "facts"),
    [
        ({}, {}),
        (
            {"size": 100, "size_vram": 25},
            {"model_memory_bytes m total": 100, "model_memory_bytes m device": 25, "model_offload_ratio m": 0.25},
        ),
        (
            {"size": 100, "size_vram": 101},
            {"model_memory_bytes m total": 100, "model_memory_bytes m device": 101, "model_offload_ratio m": 1.0},
        ),
        ({"size": 9}, {"model_memory_bytes m total": 9, "model_memory_bytes m device": 0, "model_offload_ratio m": 0}),
        ({"size": 100, "size_vram": None}, {}),
        ({"size": 0, "size_vram": 0}, {}),
        ({"size": 100, "size_vram": -1}, {}),
        ({"size": -1, "size_vram": 1}, {}),
        ({"expires_at": "1970-01-01T00:01:00.5Z"}, {"model_expiry_timestamp_seconds m": 60.5}),
        ({"expires_at": "1970-01-01T00:01:00"}, {}),
        ({"expires_at": "never"}, {}),
    ],
)
def test_what_ollama_says_of_a_loaded_model(fields: dict[str, Any], facts: dict[str, float]) -> None:
    assert of_ollama(fields) == BASE | facts


def test_a_model_of_ollama_that_expires_within_a_century_expires() -> None:
    year = datetime.now(tz=UTC).year
    for years, known in ((100, True), (101, False)):
        found = of_ollama({"expires_at": f"{year + years}-12-31T00:00:00Z"})
        assert ("model_expiry_timestamp_seconds m" in found) is known


def test_without_a_context_ollama_s_model_has_no_cache() -> None:
    found = of_ollama({"context_length": 0}, SHOW, settings=settings(limit=2))
    assert found == {
        "models_loaded": 1,
        "model_loaded m": 1,
        INFO: 1,
        "model_parameters m": 5,
        "model_trained_context_tokens m": 4096,
    }


def settings(*, limit: int | None = None, kind: Any = None) -> Target:  # noqa: ANN401 - one of the types' names
    return Target(name="t", endpoint=Endpoint(url="http://x:1"), requests_running_limit=limit, kv_cache_type=kind)


def running(*, parallel: int | None = 2, keys: str = "f16", values: str = "q8_0") -> dict[str, Runner]:
    return {"/path/of weights": Runner("/path/of weights", 1, "", parallel=parallel, keys=keys, values=values)}


@pytest.mark.parametrize(
    ("runners", "given", "slots", "each"),
    [
        (None, None, None, None),
        (None, settings(), None, None),
        (None, settings(limit=3), 3, None),
        (None, settings(limit=3, kind="f16"), 3, 8 * 2 * 2.0),
        (None, settings(kind="f16"), None, None),
        (running(), None, 2, 8 * (2 + 34 / 32)),
        (running(), settings(limit=3, kind="f32"), 2, 8 * (2 + 34 / 32)),
        (running(parallel=None), settings(limit=3, kind="f32"), 3, 8 * (2 + 34 / 32)),
        (running(parallel=None), None, None, None),
        (running(keys="", values=""), settings(limit=3, kind="f32"), 2, 8 * 2 * 4.0),
        (running(keys="", values=""), settings(), 2, None),
        (running(keys="strange"), None, 2, None),
    ],
)
def test_slots_and_cache_of_ollama_are_the_runner_s_else_what_is_configured(
    runners: dict[str, Runner] | None, given: Target | None, slots: int | None, each: float | None
) -> None:
    found = of_ollama({}, SHOW, runners=runners, settings=given)
    expected = BASE | {"model_parameters m": 5.0, "model_trained_context_tokens m": 4096.0}
    if slots is not None:
        expected |= {"requests_running_limit m": slots, "kv_cache_capacity_tokens m": slots * 512}
    if slots is not None and each is not None:
        expected["model_memory_bytes m kv_cache"] = slots * 512 * each
    assert found == expected


@pytest.mark.parametrize(
    "show",
    [
        SHOW | {"capabilities": ["embedding"]},
        SHOW | {"model_info": {"general.parameter_count": -5, "general.architecture": "b", "a.context_length": 1}},
        {},
    ],
)
def test_details_of_ollama_that_say_nothing(show: dict[str, Any]) -> None:
    found = of_ollama({}, show, settings=settings(limit=2, kind="f16"))
    assert "model_memory_bytes m kv_cache" not in found
    assert ("model_parameters m" in found) is (show.get("capabilities") is not None)
    assert ("requests_running_limit m" in found) is (show.get("capabilities") is None)


def test_which_weights_belong_to_which_model_of_ollama() -> None:
    shows = {"/api/show a": SHOW, "/api/show b": {"modelfile": "FROM other:7b\n"}}
    models = [{"name": name, "digest": name} for name in "abc"]
    known = read(OLLAMA, {"/api/ps": {"models": models}} | shows)
    assert paths(known) == {"/path/of weights": "a"}
    assert paths({}) == {}


def test_ollama_s_library_and_how_many_models_it_is_asked_about() -> None:
    models = [{"name": f"m{number}", "digest": str(number)} for number in range(70)]
    tags = {"models": [{"name": "m0", "size": 5, "digest": "0"}, {"name": "x", "size": 7, "digest": "y" * 13}]}
    elsewhere = [{"name": "r", "remote_host": "h", "size": 1}, {"name": "s", "remote_model": "m", "size": 1}]
    known = read(OLLAMA, {"/api/ps": {"models": models + elsewhere}, "/api/tags": tags})
    found = told(OLLAMA, known)
    assert found["models_loaded"] == 70
    assert (found["models_installed"], found["models_installed_bytes"]) == (2, 12)
    assert (found["model_loaded m0"], found["model_loaded x"], found[f"model_info x {'y' * 12}"]) == (1, 0, 1)
    assert "model_loaded r" not in found
    assert "model_loaded s" not in found
    assert len([path for path in asked(OLLAMA, known) if path == "/api/show"]) == 64
    many = {"models": [{"name": f"m{number}", "size": 1} for number in range(1001)]}
    found = told(OLLAMA, read(OLLAMA, {"/api/ps": {"models": None}, "/api/tags": many}))
    loaded = [name for name in found if "info" in name]
    assert (loaded[0], loaded[-1], len(loaded)) == ("model_info m0", "model_info m999", 1000)
