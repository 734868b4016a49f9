"""What each API's documents mean, one by one: output, ends, failures, counts and durations."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest

from llm_headroom.proxy.dialects import Answer, Api, api_of
from llm_headroom.proxy.documents import DONE
from llm_headroom.proxy.parts import FORMS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def read(api: Api, *documents: object) -> dict[str, Any]:
    """What is known after these documents, as far as it is anything."""
    answer = Answer()
    for each in documents:
        answer.read(api, each)
    return {name: value for name, value in asdict(answer).items() if value or type(value) in (int, float)}


@pytest.mark.parametrize(
    ("method", "target", "api"),
    [
        ("POST", "/api/chat", Api.OLLAMA),
        ("POST", "/api/generate/?x=/y", Api.OLLAMA),
        ("POST", "/v1/chat/completions", Api.OPENAI),
        ("POST", "/v1/completions", Api.OPENAI),
        ("POST", "/chat/completions", Api.OPENAI),
        ("POST", "/v1/responses", Api.RESPONSES),
        ("POST", "/v1/messages", Api.ANTHROPIC),
        ("POST", "/completion", Api.LLAMACPP),
        ("POST", "/completions", Api.LLAMACPP),
        ("POST", "/generate", Api.SGLANG),
        ("POST", "/api/embed", Api.EMBEDDING),
        ("POST", "/v1/embeddings", Api.EMBEDDING),
        ("GET", "/v1/completions", None),
        ("POST", "/v1/models", None),
        ("POST", "/x?/api/chat", None),
    ],
)
def test_an_api_is_known_by_its_path(method: str, target: str, api: Api | None) -> None:
    assert api_of(method, target) is api


@pytest.mark.parametrize("api", Api)
@pytest.mark.parametrize("document", [None, [], "text", 1, [{"error": "x"}]])
def test_what_is_no_mapping_is_passed_over(api: Api, document: object) -> None:
    assert read(api, document) == {}


@pytest.mark.parametrize("api", Api)
def test_the_mark_of_the_end_ends(api: Api) -> None:
    assert read(api, DONE) == {"ended": True}


def test_output_is_that_of_the_latest_document() -> None:
    part = {"message": {"content": "a"}}
    assert read(Api.OLLAMA, part) == {"output": True}
    assert read(Api.OLLAMA, part, DONE) == {"ended": True}
    assert read(Api.OLLAMA, part, {"error": "x"}) == {"failure": "engine_error"}
    assert read(Api.OLLAMA, part, []) == {}


@pytest.mark.parametrize(
    ("document", "failure"),
    [
        ({"error": "x"}, "engine_error"),
        ({"error": "Loading Model x"}, "loading"),
        ({"error": {"message": "loading model", "code": 500}}, "loading"),
        ({"error": {"code": 503}}, "overloaded"),
        ({"error": {"code": "503"}}, "overloaded"),
        ({"error": {"type": "overloaded_error"}}, "overloaded"),
        ({"error": {"type": "api_error"}}, "engine_error"),
        ({"error": {"code": 500}, "code": 503}, "engine_error"),
        ({"error": "x", "code": 503}, "overloaded"),
        ({"error": {}}, None),
        ({"error": ""}, None),
        ({"error": ["x"]}, "engine_error"),
    ],
)
def test_an_error_has_a_cause(document: object, failure: str | None) -> None:
    assert read(Api.OPENAI, document).get("failure") == failure


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("stop", {"reason": "stop"}),
        ("length", {"reason": "length"}),
        ("tool_calls", {"reason": "tool_calls"}),
        ("function_call", {"reason": "tool_calls"}),
        ("content_filter", {"reason": "content_filter"}),
        ("eos", {"reason": "stop"}),
        ("word", {"reason": "stop"}),
        ("limit", {"reason": "length"}),
        ("load", {"reason": "load"}),
        ("unload", {"reason": "unload"}),
        ("strange", {"reason": "other"}),
        (7, {"reason": "other"}),
        ("abort", {"failure": "engine_aborted"}),
        ("error", {"failure": "engine_error"}),
        ("failed", {"failure": "engine_error"}),
        ("cancelled", {"failure": "aborted"}),
        ("", {}),
        (None, {}),
    ],
)
def test_an_answer_ends_for_a_reason(reason: object, expected: dict[str, str]) -> None:
    found = read(Api.OLLAMA, {"done": True, "done_reason": reason})
    assert {name: found[name] for name in ("reason", "failure") if name in found} == expected
    assert found["ended"]


def test_what_failed_before_it_was_aborted_failed_for_its_own_cause() -> None:
    assert read(Api.OLLAMA, {"error": {"code": 503}}, {"done": True, "done_reason": "abort"})["failure"] == "overloaded"


# Ollama --------------------------------------------------------------------------------------------------------------
BEARING: Final[Mapping[Api, Sequence[object]]] = {
    Api.OLLAMA: [
        {"response": "a"},
        {"thinking": "a"},
        {"message": {"content": "a"}},
        {"message": {"thinking": "a"}},
        {"message": {"tool_calls": [{}]}},
        {"tool_calls": [{}]},
    ],
    Api.OPENAI: [
        *(
            {"choices": [{place: {name: "a"}}]}
            for place in ("delta", "message")
            for name in (
                *("content", "reasoning_content", "reasoning"),
                *("tool_calls", "function_call", "refusal"),
            )
        ),
        {"choices": [{"text": "a"}]},
        {"choices": [{"text": ""}, {"text": "a"}]},
        {"choices": [{"text": "a"}, {"text": ""}]},
        {"choices": [None, {"delta": {}, "message": {"content": "a"}}]},
    ],
    Api.ANTHROPIC: [
        *({"type": "content_block_delta", "delta": {name: "a"}} for name in ("text", "thinking", "partial_json")),
    ],
    Api.RESPONSES: [{"type": "response.output_text.delta", "delta": "a"}],
    Api.LLAMACPP: [{"content": "a"}, {"choices": [{"text": "a"}], "content": ""}],
    Api.SGLANG: [],
}
SILENT: Final[Mapping[Api, Sequence[object]]] = {
    Api.OLLAMA: [{}, {"response": "", "message": {"content": ""}}, {"message": "a"}, {"done": False}],
    Api.OPENAI: [{}, {"choices": None}, {"choices": []}, {"choices": [{"delta": {"role": "a"}}]}, {"choices": ["a"]}],
    Api.ANTHROPIC: [
        {"type": "ping"},
        {"type": "content_block_delta"},
        {"type": "content_block_delta", "delta": {"signature": "a"}},
        {"type": "content_block_start", "delta": {"text": "a"}},
        {"type": "message_delta", "delta": {"text": "a"}},
    ],
    Api.RESPONSES: [{"type": "x.delta", "delta": ""}, {"type": "response.created", "delta": "a"}, {"type": 1}],
    Api.LLAMACPP: [{}, {"content": "", "stop": False}, {"choices": [], "content": "a"}],
    Api.SGLANG: [{"text": "a"}, {"text": "a", "meta_info": {"completion_tokens": None}}],
}


@pytest.mark.parametrize(("api", "document"), [(api, each) for api, all_ in BEARING.items() for each in all_])
def test_text_reasoning_and_tool_calls_are_output(api: Api, document: object) -> None:
    assert read(api, document) == {"output": True}


@pytest.mark.parametrize(("api", "document"), [(api, each) for api, all_ in SILENT.items() for each in all_])
def test_what_bears_nothing_is_no_output(api: Api, document: object) -> None:
    assert read(api, document) == {}


@pytest.mark.parametrize("api", [Api.OLLAMA, Api.OPENAI, Api.LLAMACPP, Api.EMBEDDING])
def test_a_model_is_named_by_a_text(api: Api) -> None:
    assert read(api, {"model": "m"}, {"model": ""}, {"model": 7}, {})["model"] == "m"
    assert read(api, {"model": "m"}, {"model": "n"})["model"] == "n"


def test_ollamas_last_document_has_its_counts_and_durations() -> None:
    end = {"done": True, "done_reason": "stop"}
    full = {
        "prompt_eval_count": 5,
        "eval_count": 3,
        "prompt_eval_cached_count": 2,
        "total_duration": 4_000_000_000,
        "prompt_eval_duration": 1_000_000_000,
        "eval_duration": 2_000_000_000,
    }
    assert read(Api.OLLAMA, {**end, **full}) == {
        "ended": True,
        "reason": "stop",
        "prompt": 5,
        "generated": 3,
        "cached": 2,
        "total": 4.0,
        "prefill": 1.0,
        "decode": 2.0,
    }
    assert read(Api.OLLAMA, end) == {"ended": True, "reason": "stop", "prompt": 0, "generated": 0}
    assert read(Api.OLLAMA, {**full, "done": False}) == {}
    assert read(Api.OLLAMA, {**full, "done": 1}) == {}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0),
        (10**9, 10**9),
        (10**9 + 1, None),
        (-1, None),
        (3.0, None),
        (True, None),
        ("3", None),
        (None, None),
    ],
)
def test_a_count_is_a_whole_number_that_a_request_can_have(value: object, expected: int | None) -> None:
    assert read(Api.OLLAMA, {"done": True, "eval_count": value}).get("generated") == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0.0),
        (1, 1e-9),
        (2.5e9, 2.5),
        (10**18 - 1000, pytest.approx(1e9)),
        (10**18, None),
        (-1, None),
        (True, None),
        ("1", None),
    ],
)
def test_a_duration_is_a_number_that_is_neither_negative_nor_absurd(value: object, expected: float | None) -> None:
    assert read(Api.OLLAMA, {"done": True, "total_duration": value}).get("total") == expected


# OpenAI and llama.cpp ------------------------------------------------------------------------------------------------
def usage(prompt: object = None, generated: object = None, cached: object = None) -> dict[str, object]:
    return {
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "prompt_tokens_details": None if cached is None else {"cached_tokens": cached},
        }
    }


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ([usage(5, 3, 2)], {"prompt": 5, "generated": 3, "cached": 2}),
        ([usage(5, 3, 0)], {"prompt": 5, "generated": 3, "cached": 0}),
        ([usage(0, 0, 4)], {}),
        ([usage(5, 3, 2), usage(0, 0, 0)], {"prompt": 5, "generated": 3, "cached": 2}),
        ([usage(5, 0)], {"prompt": 5, "generated": 0}),
        ([usage(0, 3)], {"prompt": 0, "generated": 3}),
        ([usage(5, 3, 2), usage(6, None)], {"prompt": 6, "generated": 3, "cached": 2}),
        ([usage(5, 3, 2), usage(None, 4, 1)], {"prompt": 5, "generated": 4, "cached": 1}),
        ([{"usage": None}], {}),
        ([{"usage": 5}], {}),
        ([{"timings": {"prompt_ms": 1500, "predicted_ms": 2500}}], {"prefill": 1.5, "decode": 2.5}),
        ([{"timings": {"prompt_ms": 1500}}, {"timings": {"predicted_ms": 500}}], {"prefill": 1.5, "decode": 0.5}),
        ([{"timings": {"prompt_ms": 1500, "predicted_ms": 500}}, {"timings": {}}], {"prefill": 1.5, "decode": 0.5}),
    ],
)
def test_usage_and_timings_are_the_latest_that_say_anything(
    documents: list[object], expected: dict[str, object]
) -> None:
    assert read(Api.OPENAI, *documents) == expected


def test_a_choice_that_ends_ends_the_answer() -> None:
    assert read(Api.OPENAI, {"choices": [{"finish_reason": None}, {"finish_reason": ""}]}) == {}
    ended = {"ended": True, "reason": "length"}
    assert read(Api.OPENAI, {"choices": [{"finish_reason": "length"}]}) == ended
    assert read(Api.OPENAI, {"choices": [{"finish_reason": "length"}, {}]}) == ended


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"stop": True, "stop_type": "eos"}, {"ended": True, "reason": "stop"}),
        ({"stop": True}, {"ended": True, "reason": "other"}),
        ({"stop": True, "stop_type": ""}, {"ended": True, "reason": "other"}),
        ({"stop": False, "tokens_predicted": 3}, {}),
        ({"stop": 1, "tokens_predicted": 3}, {}),
        (
            {"stop": True, "tokens_evaluated": 5, "tokens_predicted": 3, "timings": {"cache_n": 2, "prompt_ms": 1000}},
            {"ended": True, "reason": "other", "prompt": 5, "generated": 3, "cached": 2, "prefill": 1.0},
        ),
    ],
)
def test_llama_cpps_own_answer_ends_with_its_counts(document: object, expected: dict[str, object]) -> None:
    assert read(Api.LLAMACPP, document) == expected


# Anthropic -----------------------------------------------------------------------------------------------------------
START: Final = {
    "type": "message_start",
    "message": {"model": "m", "usage": {"input_tokens": 5, "cache_read_input_tokens": 2}},
}


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ([START], {"model": "m", "prompt": 5, "cached": 2}),
        ([{"type": "message_start", "model": "x"}], {}),
        ([{"type": "ping", "model": "x"}], {}),
        (
            [START, {"type": "message_delta", "usage": {"input_tokens": 7, "output_tokens": 3}}],
            {"model": "m", "prompt": 7, "generated": 3, "cached": 2},
        ),
        (
            [START, {"type": "message_delta", "usage": {"output_tokens": 3, "cache_read_input_tokens": 1}}],
            {"model": "m", "prompt": 5, "generated": 3, "cached": 1},
        ),
        (
            [{"type": "message_delta", "usage": {"output_tokens": 3, "input_tokens_details": {"cached_tokens": 4}}}],
            {"generated": 3, "cached": 4},
        ),
        ([{"type": "message_delta", "delta": {"stop_reason": "end_turn"}}], {"ended": True, "reason": "stop"}),
        ([{"type": "message_delta", "delta": {"stop_reason": "stop_sequence"}}], {"ended": True, "reason": "stop"}),
        ([{"type": "message_delta", "delta": {"stop_reason": "max_tokens"}}], {"ended": True, "reason": "length"}),
        ([{"type": "message_delta", "delta": {"stop_reason": "tool_use"}}], {"ended": True, "reason": "tool_calls"}),
        ([{"type": "message_delta", "delta": {"stop_reason": "refusal"}}], {"ended": True, "reason": "content_filter"}),
        ([{"type": "message_delta", "delta": {"stop_reason": None}}], {}),
        ([{"type": "ping", "delta": {"stop_reason": "end_turn"}}], {}),
        (
            [
                {
                    "type": "message",
                    "model": "m",
                    "content": [{}],
                    "stop_reason": "end_turn",
                    "usage": {"input_tokens": 5, "output_tokens": 3},
                }
            ],
            {"model": "m", "output": True, "ended": True, "reason": "stop", "prompt": 5, "generated": 3},
        ),
        ([{"type": "message", "content": []}], {"ended": True}),
    ],
)
def test_anthropics_events_build_up_an_answer(documents: list[object], expected: dict[str, object]) -> None:
    assert read(Api.ANTHROPIC, *documents) == expected


# Responses -----------------------------------------------------------------------------------------------------------
def whole(**more: object) -> dict[str, object]:
    return {"model": "m", "status": "completed", **more}


USED: Final = {"usage": {"input_tokens": 5, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 2}}}
UNUSED: Final = {"usage": {"input_tokens": 5, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 0}}}
COUNTED: Final = {"prompt": 5, "generated": 3}


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"type": "response.created", "response": whole(**USED)}, {"model": "m"}),
        ({"type": "response.completed", "response": whole()}, {"model": "m", "ended": True, "reason": "stop"}),
        (
            {"type": "response.incomplete", "response": whole(status="incomplete", **USED)},
            {"model": "m", "ended": True, "reason": "length", "cached": 2, **COUNTED},
        ),
        (
            {"type": "response.completed", "response": whole(**UNUSED), "output": [1]},
            {"model": "m", "ended": True, "reason": "stop", **COUNTED},
        ),
        (
            {"type": "response.failed", "response": whole(error={"code": 503})},
            {"model": "m", "failure": "overloaded"},
        ),
        ({"type": "response.failed", "response": whole()}, {"model": "m", "failure": "engine_error"}),
        (
            {"object": "response", **whole(**USED, output=[1])},
            {"model": "m", "output": True, "ended": True, "reason": "stop", "cached": 2, **COUNTED},
        ),
        ({"object": "response", **whole(output=[])}, {"model": "m", "ended": True, "reason": "stop"}),
        ({"object": "other", **whole(output=[1])}, {}),
        ({"object": "other", "response": whole()}, {"model": "m"}),
    ],
)
def test_responses_end_as_a_whole_or_with_an_event(document: object, expected: dict[str, object]) -> None:
    assert read(Api.RESPONSES, document) == expected


# SGLang --------------------------------------------------------------------------------------------------------------
def meta(**more: object) -> dict[str, object]:
    return {"text": "a", "meta_info": more}


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ([meta(completion_tokens=0)], {"generated": 0}),
        ([meta(completion_tokens=1)], {"output": True, "generated": 1}),
        ([meta(completion_tokens=1), meta(completion_tokens=1)], {"generated": 1}),
        ([meta(completion_tokens=1), meta(completion_tokens=2)], {"output": True, "generated": 2}),
        ([meta(completion_tokens=1), meta()], {"generated": 1}),
        ([meta(prompt_tokens=5, cached_tokens=2), meta(prompt_tokens=0)], {"prompt": 5, "cached": 2}),
        ([meta(cached_tokens=2), meta(cached_tokens=3)], {"cached": 3}),
        ([meta(finish_reason={"type": "stop"})], {"ended": True, "reason": "stop"}),
        ([meta(finish_reason=None)], {}),
        ([meta(finish_reason={"type": "abort"})], {"ended": True, "failure": "engine_aborted"}),
        ([meta(finish_reason={"type": "abort", "status_code": 503})], {"ended": True, "failure": "overloaded"}),
        ([meta(finish_reason={"type": "abort", "status_code": 500})], {"ended": True, "failure": "engine_error"}),
        ([meta(finish_reason={"type": "abort", "status_code": 399})], {"ended": True, "failure": "engine_error"}),
        ([meta(finish_reason={"type": "abort", "status_code": 400})], {"ended": True, "failure": "client_error"}),
        ([meta(finish_reason={"type": "abort", "status_code": 499})], {"ended": True, "failure": "client_error"}),
        ([meta(finish_reason={"type": "abort", "status_code": "?"})], {"ended": True, "failure": "engine_aborted"}),
        ([meta(finish_reason={"type": "stop", "status_code": 500})], {"ended": True, "reason": "stop"}),
        ([meta(finish_reason={"type": "stop", "status_code": 503})], {"ended": True, "reason": "stop"}),
    ],
)
def test_sglangs_answer_counts_its_tokens(documents: list[object], expected: dict[str, object]) -> None:
    assert read(Api.SGLANG, *documents) == expected


def test_an_answer_to_an_embedding_ends_and_is_no_output() -> None:
    assert read(Api.EMBEDDING, {"model": "m", "data": [1.0]}) == {"model": "m", "ended": True}


# Forms ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("api", "document"),
    [
        (Api.OLLAMA, b'{"model":"m","message":{"content":"a"}}'),
        (Api.OPENAI, b'{"model":"m","choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":0}}'),
        (Api.ANTHROPIC, b'{"type":"content_block_delta","delta":{"text":"a"}}'),
        (Api.RESPONSES, b'{"type":"x.delta","delta":"a"}'),
        (Api.LLAMACPP, b'{"content":"a"}'),
    ],
)
def test_parts_are_values_that_the_garbage_collector_has_nothing_to_do_with(api: Api, document: bytes) -> None:
    part: Any = FORMS[api](document)
    inside = [getattr(part, name, None) for name in ("message", "delta", "usage")]
    inside += [each for choice in part.choices for each in (choice, choice.delta)] if api is Api.OPENAI else []
    for each in (part, *inside):
        if isinstance(each, msgspec.Struct):
            assert (each.__struct_config__.frozen, each.__struct_config__.gc) == (True, False)
