"""What each engine's documents say, document by document: which are asked for, and which facts come of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import captures
from documents_read import asked, read, told
from engine_server import Reply, as_json
from llm_headroom import schema
from llm_headroom.engines.answers import MOST_BYTES, MOST_VALUES, NotUnderstood, decode
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.engines.built_in.llamacpp import PROCESS, runner
from llm_headroom.engines.openai_api import MODELS, status_class, whole
from llm_headroom.engines.rules import Absent
from llm_headroom.exposition.text import Parser
from llm_headroom.model import Subject
from one_target import polled

if TYPE_CHECKING:
    from llm_headroom.model import Metric

GIB = 1 << 30


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
    with pytest.raises(NotUnderstood, match="nested too deeply"):
        decode(MODELS, b'{"x": ' + b"[" * 100_000)


MODELS_REPLY = as_json({"data": [{"id": "m"}]})
WHOLE: dict[str, dict[str, Reply]] = {
    "vllm": {
        "/metrics": Reply(b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 1\n"),
        "/v1/models": MODELS_REPLY,
        "/version": as_json({"version": "0.12.0"}),
        "/server_info": as_json({"vllm_config": {}}),
    },
    "sglang": {
        "/metrics": Reply(b"# TYPE sglang:num_running_reqs gauge\nsglang:num_running_reqs 1\n"),
        "/v1/models": MODELS_REPLY,
        "/server_info": as_json({}),
    },
    "llamacpp": {
        "/props": as_json({}),
        "/slots": as_json([{"n_ctx": 1, "is_processing": False}]),
        "/metrics": Reply(b"# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing 1\n"),
        "/v1/models": MODELS_REPLY,
    },
    "ollama": {
        "/api/ps": as_json({"models": [{"name": "m", "digest": "d"}]}),
        "/api/tags": as_json({"models": []}),
        "/api/version": as_json({"version": "1"}),
        "/api/show": as_json({}),
        "/metrics": Reply(b"", 404),
    },
}


@pytest.mark.parametrize(
    ("engine", "path", "statuses"),
    [
        ("vllm", "/v1/models", (401, 403, 404, 501)),
        ("vllm", "/version", (401, 403, 404)),
        ("vllm", "/server_info", (400, 401, 403, 404, 422)),
        ("sglang", "/server_info", (401, 403, 404, 405)),
        ("llamacpp", "/props", (401, 403, 404, 501)),
        ("llamacpp", "/slots", (404, 501)),
        ("llamacpp", "/metrics", (404, 501)),
        ("llamacpp", "/v1/models", (401, 403, 404, 501)),
        ("ollama", "/api/tags", (401, 403, 404)),
        ("ollama", "/api/version", (401, 403, 404)),
        ("ollama", "/api/show", (400, 401, 403, 404)),
        ("ollama", "/metrics", (401, 403, 404, 405)),
    ],
)
def test_which_refusals_are_an_answer_and_no_trouble(engine: str, path: str, statuses: tuple[int, ...]) -> None:
    for status in (*statuses, 500):
        snapshot, asks = polled(engine, WHOLE[engine] | {path: Reply(b"", status)})
        assert any(each.partition("?")[0] == path for each in asks)
        fine = snapshot.health.up and not snapshot.health.warnings
        assert fine is (status != 500), (status, snapshot.health)
    assert snapshot.health.up is (path not in {"/props", "/slots"}), "without it the engine is not known to be up"


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ("vllm", {"/metrics": (0, ""), "/version": (300, "o"), "/v1/models": (300, "o"), "/server_info": (300, "o")}),
        ("sglang", {"/metrics": (0, ""), "/v1/models": (300, "o"), "/server_info": (300, "o")}),
        ("llamacpp", {"/props": (0, "l"), "/v1/models": (300, "o"), "/slots": (0, ""), "/metrics": (0, "o")}),
        (
            "ollama",
            {
                "/api/ps": (0, ""),
                "/api/tags": (60, "o"),
                "/api/version": (300, "o"),
                "/metrics": (0, "o"),
                "/api/show": (float("inf"), "o"),
            },
        ),
    ],
)
def test_how_often_documents_are_fetched_and_which_are_optional_or_lead(
    engine: str, expected: dict[str, tuple[float, str]]
) -> None:
    answers: dict[str, Any] = {path: {} for path in ("/props", "/api/show m")} | {
        "/api/ps": {"models": [{"name": "m"}]}
    }
    known = read(BUILT_IN[engine], answers | {"/metrics": "", "/slots": [], "/server_info": {}})
    found = {
        each.path.partition("?")[0]: (each.every, "o" * each.optional + "l" * each.leads)
        for each in BUILT_IN[engine].documents(known)
    }
    assert found == expected


def test_where_engines_listen_and_what_they_bear() -> None:
    found = {
        name: (sorted(each.ports), each.interval, each.timeout, each.queue_limit, each.slotted, each.reserves)
        for name, each in BUILT_IN.items()
    }
    assert found == {
        "llamacpp": ([8080, 9931], 0, 0, None, True, False),
        "ollama": ([11434], 10, 8, 512, True, False),
        "sglang": ([30000], 0, 0, None, False, True),
        "sglang_router": ([29000], 0, 0, None, False, False),
        "vllm": ([8000], 0, 0, None, False, False),
    }
    assert [name for name, each in BUILT_IN.items() if each.limit_per_model] == ["ollama"]
    of_proxies = {
        name: (each.proxy_flag, each.loads_on_demand, each.hides_loads, each.default_tag)
        for name, each in BUILT_IN.items()
    }
    assert {name: facts for name, facts in of_proxies.items() if any(facts)} == {
        "llamacpp": ("", True, False, ""),
        "ollama": ("--ollama-proxy :11435", True, True, "latest"),
    }
    assert [name for name, each in BUILT_IN.items() if each.labels_requests] == ["sglang"]
    assert {name: each.subject for name, each in BUILT_IN.items() if each.subject is not Subject.ENGINE} == {
        "sglang_router": Subject.ROUTER
    }


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


# vLLM ----------------------------------------------------------------------------------------------------------------
VLLM = BUILT_IN["vllm"]
SERVER_INFO = "/server_info?config_format=json"


def test_vllm_s_metrics_are_looked_for_where_nim_has_them_too() -> None:
    others = ["/version", "/v1/models", SERVER_INFO]
    assert asked(VLLM, {}) == asked(VLLM, {"metrics": ""}) == ["/metrics", *others]
    assert asked(VLLM, {"metrics": Absent(404)}) == ["/metrics", "/v1/metrics", *others]


@pytest.mark.parametrize(
    ("config", "facts"),
    [
        ({}, {}),
        ({"scheduler_config": {"max_num_seqs": 8}}, {"requests_running_limit  0": 8}),
        ({"scheduler_config": {"max_num_seqs": 0}, "model_config": {}}, {}),
        (
            {
                "scheduler_config": {"max_num_seqs": 8},
                "parallel_config": {"data_parallel_size": 2},
                "model_config": {"served_model_name": "m"},
                "kv_transfer_config": {"kv_role": "kv_producer"},
            },
            {"requests_running_limit m 0": 8, "requests_running_limit m 1": 8, "engine_role m prefill": 1},
        ),
        (
            {"model_config": {"served_model_name": ["a", "b"]}, "kv_transfer_config": {"kv_role": "kv_consumer"}},
            {"engine_role a decode": 1},
        ),
        (
            {"model_config": {"served_model_name": []}, "kv_transfer_config": {"kv_role": "kv_both"}},
            {"engine_role  both": 1},
        ),
        ({"kv_transfer_config": {"kv_role": "other"}}, {}),
        ({"kv_transfer_config": {}}, {}),
    ],
)
def test_what_vllm_says_of_its_server(config: dict[str, Any], facts: dict[str, float]) -> None:
    known = read(VLLM, {"/metrics": "", SERVER_INFO: {"vllm_config": config}, "/version": {"version": "0.12.0"}})
    assert told(VLLM, known) == facts
    assert VLLM.version(known) == "0.12.0"
    assert VLLM.version(read(VLLM, {"/metrics": ""})) == ""


def test_vllm_s_model_is_the_one_that_it_lists() -> None:
    config = {"scheduler_config": {"max_num_seqs": 8}, "model_config": {"served_model_name": "m"}}
    answers = {"/metrics": "", SERVER_INFO: {"vllm_config": config}, "/v1/models": {"data": [{"id": "listed"}]}}
    assert told(VLLM, read(VLLM, answers)) == {"model_loaded listed": 1, "requests_running_limit listed 0": 8}


@pytest.mark.parametrize(
    ("metric", "infos", "values"),
    [
        (schema.KV_CACHE_CAPACITY, [{"kv_cache_size_tokens": "100", "block_size": "16", "num_gpu_blocks": "9"}], [100]),
        (schema.KV_CACHE_CAPACITY, [{"block_size": "16", "num_gpu_blocks": "9"}], [144]),
        (
            schema.KV_CACHE_CAPACITY,
            [{"block_size": "16", "num_gpu_blocks": "10", "engine": engine} for engine in "01"],
            [80, 80],
        ),
        (schema.KV_CACHE_CAPACITY, [{"block_size": "None", "num_gpu_blocks": "9"}, {"block_size": "16"}], [None, None]),
        (
            schema.KV_CACHE_CAPACITY,
            [
                {"block_size": "16", "num_gpu_blocks": "9", label: value}
                for label in ("mamba_block_size", "sliding_window")
                for value in ("", "None", "4096")
            ],
            [144, 144, None] * 2,
        ),
        (
            schema.ENGINE_GPU_RESERVATION,
            [
                {"gpu_memory_utilization": "0.8"},
                {"gpu_memory_utilization": "0.8", "kv_cache_memory_bytes": "0"},
                {"gpu_memory_utilization": "0.8", "kv_cache_memory_bytes": "5"},
                {},
            ],
            [0.8, 0.8, None, None],
        ),
        (
            schema.MODEL_MEMORY,
            [{"kv_cache_memory_bytes": "5"}, {"kv_cache_memory_bytes": "0"}, {"kv_cache_memory_bytes": "None"}],
            [5, None, None],
        ),
    ],
)
def test_what_labels_of_vllm_mean(metric: Metric, infos: list[dict[str, str]], values: list[float | None]) -> None:
    (reader,) = (rule.read for rule in VLLM.rules if rule.metric is metric and rule.read is not None)
    assert [*reader(infos)] == values


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('vllm:num_requests_running{server="x"} 1', "router of the vLLM production stack"),
        ('vllm_num_requests_running{server="x"} 1', "router of the vLLM production stack"),
        ('vllm:num_requests_running{server=""} 1', ""),
        ('other{server="x"} 1', ""),
        ('vllm:num_requests_running{pod_ip="x"} 1', "coordinator"),
        ('vllm_num_requests_running{role="x"} 1', "coordinator"),
        ('num_requests_running{role="x"} 1', ""),
        ('vllm:num_requests_running{engine="0",role="x"} 1', ""),
        ('vllm:num_requests_waiting{instance_id="x"} 1', ""),
        ('vllm:num_requests_running{model_name="x"} 1', ""),
    ],
)
def test_what_only_looks_like_vllm(line: str, words: str) -> None:
    found = VLLM.refuse(Parser().parse(f"{line}\n".encode()).layout)
    assert words in found
    assert bool(found) is bool(words)


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
    states += [("plain", {})]
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
        "model_loaded plain": 1,
    }
    documents = {each.path: each for each in LLAMACPP.documents(known)}
    assert list(documents) == [
        *("/props", "/v1/models", "/props?model=a%20b", "/slots?model=a%20b", "/metrics?model=a%20b"),
        *("/props?model=n", "/props?model=plain", "/slots?model=plain", "/metrics?model=plain"),
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


@pytest.mark.parametrize(
    ("capture", "expected"),
    [("0.32.0", {"": 256.0}), ("0.32.0-dp2-api2", {"0": 256.0, "1": 256.0})],
)
def test_a_configured_limit_is_that_of_each_replica(capture: str, expected: dict[str, float]) -> None:
    """Of each data-parallel rank, as vLLM means its max_num_seqs and SGLang its limit."""
    exposition = (captures.CAPTURES / "vllm" / capture / "saturated.prom").read_bytes()

    points = polled("vllm", {"/metrics": Reply(exposition)}, requests_running_limit=256).snapshot.points

    assert captures.values(points, "llm_requests_running_limit", "replica") == expected
