"""What each engine's documents say, document by document: which are asked for, and which facts come of them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Target
from llm_headroom.engines.answers import MOST_BYTES, MOST_VALUES, NotUnderstood, decode
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.engines.built_in.llamacpp import PROCESS, runner
from llm_headroom.engines.built_in.ollama import paths
from llm_headroom.engines.openai_api import MODELS, status_class, whole
from llm_headroom.engines.rules import Absent
from llm_headroom.host.runners import Runner

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_headroom.engines.rules import Engine

GIB = 1 << 30


def read(engine: Engine, answers: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that an engine with these answers, by path and model asked for, is read to say; others are 404."""
    known: dict[str, Any] = {}
    while new := [each for each in engine.documents(known) if each.key not in known]:
        for each in new:
            name = f"{each.path} {json.loads(each.body)['model']}" if each.body else each.path
            found = answers.get(name)
            if found is None:
                known[each.key] = Absent(404)
            else:
                known[each.key] = found if each.text else decode(each, json.dumps(found).encode())
    return known


def told(engine: Engine, known: Mapping[str, Any]) -> dict[str, float]:
    """Facts by metric and the texts of their labels, each once."""
    found: dict[str, float] = {}
    for fact in engine.facts(known):
        assert fact.metric.subject is engine.subject
        labels = " ".join(text for name, text in fact.labels.items() if text and name != "model")
        name = f"{fact.metric.name.removeprefix('llm_')} {fact.labels.get('model', '')} {labels}".strip()
        assert name not in found
        found[name] = fact.value
    return found


def asked(engine: Engine, known: Mapping[str, Any]) -> list[str]:
    return [each.path for each in engine.documents(known)]


# What all have in common ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("code", "words"), [("503", "5xx"), ("200", "2xx"), ("4xx", "4xx"), ("abc", "abc"), ("", "")])
def test_the_class_of_a_status(code: str, words: str) -> None:
    assert status_class(code) == words


@pytest.mark.parametrize(("value", "number"), [(0, 0), (7, 7), (-1, None), (True, None), (1.0, None), ("1", None)])
def test_whole_numbers_of_json(value: object, number: int | None) -> None:
    assert whole(value) == number


def test_a_body_is_read_up_to_a_number_of_bytes_and_of_values() -> None:
    body = b'{"data": []}'
    assert decode(MODELS, body + b" " * (MOST_BYTES - len(body))) == []
    with pytest.raises(NotUnderstood, match=f"{MOST_BYTES + 1} bytes"):
        decode(MODELS, body + b" " * (MOST_BYTES + 1 - len(body)))
    values = b'{"data": [], "x": [' + b"0," * (MOST_VALUES - 1) + b"0]}"
    assert decode(MODELS, values) == []
    with pytest.raises(NotUnderstood, match=f"{MOST_VALUES + 1} values"):
        decode(MODELS, values.replace(b"[0,", b"[0,0,"))


# SGLang --------------------------------------------------------------------------------------------------------------
SGLANG = BUILT_IN["sglang"]
SERVER = {"served_model_name": "m", "model_path": "/m", "version": "0.5.10", "context_length": 4096}
MEMORY = {"token_capacity": 900, "weight": 2.0, "kvcache": 3.0, "graph": {"decode": 0.5, "prefill": 0.25}}


def state(limit: int | None = None, memory: object = None) -> dict[str, Any]:
    return {"effective_max_running_requests_per_dp": limit, "memory_usage": memory}


def test_sglang_asks_for_older_names_and_for_loads_where_there_is_nothing_else() -> None:
    usual = ["/metrics", "/v1/models", "/server_info"]
    assert asked(SGLANG, {}) == usual
    assert asked(SGLANG, {"server_info": Absent(404)}) == [*usual, "/get_server_info"]
    assert asked(SGLANG, {"metrics": Absent(404)}) == [*usual, "/v1/loads?include=core"]


@pytest.mark.parametrize(
    ("server", "facts"),
    [
        ({}, {}),
        ({"mem_fraction_static": 0.8}, {"engine_gpu_memory_reservation_ratio m": 0.8}),
        (
            {"internal_states": [state(8, MEMORY)], "max_running_requests": 16, "max_total_num_tokens": 999},
            {
                "requests_running_limit m": 8,
                "kv_cache_capacity_tokens m": 900,
                "model_memory_bytes m weights": 2 * GIB,
                "model_memory_bytes m kv_cache": 3 * GIB,
                "model_memory_bytes m graph": 0.75 * GIB,
            },
        ),
        (
            {"internal_states": [state()], "max_running_requests": 16, "max_total_num_tokens": 999},
            {"requests_running_limit m": 16, "kv_cache_capacity_tokens m": 999},
        ),
        (
            {
                "internal_states": [state(8), state(None, {"token_capacity": 7, "graph": 1.5})],
                "max_running_requests": 16,
                "max_total_num_tokens": 999,
            },
            {
                "requests_running_limit m 0": 8,
                "kv_cache_capacity_tokens m 1": 7,
                "model_memory_bytes m 1 graph": 1.5 * GIB,
            },
        ),
    ],
)
def test_what_sglang_says_of_its_server(server: dict[str, Any], facts: dict[str, float]) -> None:
    for path in ("/server_info", "/get_server_info"):
        known = read(SGLANG, {"/metrics": "", path: SERVER | server})
        assert told(SGLANG, known) == facts | {"model_context_tokens m": 4096}
        assert (SGLANG.version(known), SGLANG.model(known)) == ("0.5.10", "m")


def test_what_sglang_says_of_its_load_where_it_has_no_metrics() -> None:
    load = {"dp_rank": 3, "num_running_reqs": 1, "num_waiting_reqs": 2, "num_used_tokens": 0, "token_usage": 0.5}
    more = {"num_waiting_uncached_tokens": 4, "max_total_num_tokens": 5, "max_running_requests": 6}
    alone = {"loads": [load | more], "version": "0.5.8"}
    known = read(SGLANG, {"/v1/loads?include=core": alone})
    assert told(SGLANG, known) == {
        "requests_running": 1,
        "requests_waiting": 2,
        "requests_running_limit": 6,
        "waiting_tokens": 4,
        "kv_cache_capacity_tokens": 5,
        "kv_cache_used_tokens": 0,
        "kv_cache_usage_ratio": 0.5,
    }
    assert (SGLANG.version(known), SGLANG.model(known)) == ("0.5.8", "")
    two = {"loads": [{"dp_rank": 3, "num_running_reqs": 0}, {"dp_rank": 4, "num_running_reqs": 7}]}
    assert told(SGLANG, read(SGLANG, {"/v1/loads?include=core": two})) == {
        "requests_running  3": 0,
        "requests_running  4": 7,
    }
    named = {"/metrics": "", "/server_info": {"model_path": "/m", "version": None}, "/v1/loads?include=core": alone}
    assert SGLANG.model(read(SGLANG, named)) == "/m"


def test_models_that_are_served_are_loaded_but_adapters_are_not_models() -> None:
    models = [{"id": "m", "max_model_len": 0}, {"id": "n"}, {"id": "lora", "parent": "m", "max_model_len": 9}]
    for engine in (SGLANG, BUILT_IN["vllm"]):
        known = read(engine, {"/metrics": "", "/v1/models": {"data": models}})
        assert told(engine, known) == {"model_loaded m": 1, "model_loaded n": 1, "model_context_tokens m": 0}
        assert engine.model(known) == ""
        assert engine.model(read(engine, {"/metrics": "", "/v1/models": {"data": models[1:]}})) == "n"


# llama.cpp -----------------------------------------------------------------------------------------------------------
LLAMACPP = BUILT_IN["llamacpp"]
MODEL = {"/v1/models": {"data": [{"id": "m"}]}}
ROUTER = {"/props": {"role": "router"}}


def slot(context: int, tokens: int | None = None, *, busy: bool = False) -> dict[str, Any]:
    return {"n_ctx": context, "is_processing": busy, "n_prompt_tokens": tokens}


@pytest.mark.parametrize(
    ("slots", "unified", "facts"),
    [
        ([slot(100)], None, {"context_tokens": 100, "capacity_tokens": 100, "limit": 1, "running": 0}),
        ([slot(100), slot(80)], None, {"context_tokens": 80, "limit": 2, "running": 0}),
        ([slot(100), slot(80)], True, {"context_tokens": 80, "capacity_tokens": 100, "limit": 2, "running": 0}),
        ([slot(100), slot(80)], False, {"context_tokens": 80, "capacity_tokens": 180, "limit": 2, "running": 0}),
        (
            [slot(100, 7, busy=True), slot(100, 5), slot(100, 0, busy=True), slot(100, 3)],
            None,
            {"context_tokens": 100, "limit": 4, "running": 2, "used_tokens": 7, "evictable_tokens": 8},
        ),
        ([slot(100, 7, busy=True), slot(100)], None, {"context_tokens": 100, "limit": 2, "running": 1}),
        ([], None, {"limit": 3}),
        (None, None, {"limit": 3}),
    ],
)
def test_what_the_slots_of_llama_cpp_say(
    slots: list[dict[str, Any]] | None, *, unified: bool | None, facts: dict[str, float]
) -> None:
    known = read(LLAMACPP, {"/props": {"total_slots": 3, "model_path": "m"}, "/slots": slots})
    if unified is not None:
        known[PROCESS] = unified
    found = told(LLAMACPP, known)
    short = {
        "requests_running": "running",
        "requests_running_limit": "limit",
        "model_context_tokens": "context_tokens",
        "kv_cache_capacity_tokens": "capacity_tokens",
        "kv_cache_used_tokens": "used_tokens",
        "kv_cache_evictable_tokens": "evictable_tokens",
    }
    assert {short[name.removesuffix(" m")]: value for name, value in found.items()} == facts


@pytest.mark.parametrize(
    ("properties", "facts", "asks"),
    [
        ({}, {"model_loaded m": 1}, True),
        ({"is_sleeping": False}, {"model_loaded m": 1, "model_asleep m": 0}, True),
        ({"is_sleeping": True}, {"model_loaded m": 0, "model_asleep m": 1}, False),
    ],
)
def test_whether_llama_cpp_sleeps(properties: dict[str, Any], facts: dict[str, float], *, asks: bool) -> None:
    known = read(LLAMACPP, {"/props": properties, **MODEL})
    assert told(LLAMACPP, known) == facts
    documents = {each.path: each.wakes for each in LLAMACPP.documents(known)}
    assert list(documents) == ["/props", "/v1/models", *(("/slots", "/metrics") if asks else ())]
    assert documents.get("/slots", False) is documents.get("/metrics", False) is bool(asks and properties)
    assert asked(LLAMACPP, {}) == ["/props", "/v1/models"]


def test_the_name_of_llama_cpp_s_model_and_its_build() -> None:
    two = {"/v1/models": {"data": [{"id": "a"}, {"id": "b"}]}}
    alias = {"/props": {"model_alias": "alias", "model_path": "/path", "build_info": "b1"}}
    path = {"/props": {"model_alias": "", "model_path": "/path"}}
    found = [LLAMACPP.model(read(LLAMACPP, each)) for each in (MODEL | alias, two | alias, two | path, two, {}, ROUTER)]
    assert found == ["m", "alias", "/path", "", "", ""]
    assert [LLAMACPP.version(read(LLAMACPP, each)) for each in (alias, path, {})] == ["b1", "", ""]


def test_a_router_of_llama_cpp_is_asked_for_each_model_that_is_loaded() -> None:
    states = [("a b", None), ("n", {"value": "loaded"}), ("gone", {"value": "unloaded"}), ("z", {"value": "sleeping"})]
    models = {"data": [{"id": name, "status": status} for name, status in states]}
    answers = ROUTER | {
        "/v1/models": models,
        "/props?model=a%20b": {"is_sleeping": False},
        "/slots?model=a%20b": [slot(100), slot(100)],
        "/props?model=n": {"is_sleeping": True},
    }
    known = read(LLAMACPP, answers)
    assert told(LLAMACPP, known) == {
        "model_loaded a b": 1,
        "model_asleep a b": 0,
        "requests_running a b": 0,
        "requests_running_limit a b": 2,
        "model_context_tokens a b": 100,
        "model_loaded n": 0,
        "model_asleep n": 1,
        "model_loaded gone": 0,
        "model_loaded z": 0,
        "model_asleep z": 1,
    }
    documents = {each.path: each for each in LLAMACPP.documents(known)}
    assert list(documents) == [
        *("/props", "/v1/models", "/props?model=a%20b", "/slots?model=a%20b", "/metrics?model=a%20b"),
        "/props?model=n",
    ]
    assert [documents[path].every for path in ("/props", "/v1/models", "/props?model=n")] == [0, 0, 0]
    assert [documents[path].leads for path in ("/props", "/v1/models", "/slots?model=a%20b")] == [True, True, False]
    assert [documents[path].optional for path in ("/props", "/v1/models", "/slots?model=a%20b")] == [False, True, True]
    assert [documents[f"/{path}?model=a%20b"].wakes for path in ("props", "slots", "metrics")] == [False, True, True]
    assert documents["/metrics?model=a%20b"].model == "a b"
    assert documents["/slots?model=a%20b"].tolerated == (400, 401, 403, 404, 501)
    assert LLAMACPP.model(known) == ""


def test_a_runner_inside_ollama_has_a_cache_for_each_slot() -> None:
    engine = runner("m")
    known = read(engine, {"/slots": [slot(100, 1), slot(100, 2, busy=True)], "/props": {"total_slots": 9}})
    assert told(engine, known) == {
        "requests_running m": 1,
        "requests_running_limit m": 2,
        "model_context_tokens m": 100,
        "kv_cache_capacity_tokens m": 200,
        "kv_cache_used_tokens m": 2,
        "kv_cache_evictable_tokens m": 1,
    }
    assert asked(engine, known) == ["/slots", "/metrics", "/props"]
    assert (engine.name, engine.owned_by, engine.model({})) == ("ollama", "", "m")


# Ollama --------------------------------------------------------------------------------------------------------------
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
