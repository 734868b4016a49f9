"""What is measured of captured answers, however they are cut; and what is not, of answers that nobody can read."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_headroom import schema
from llm_headroom.model import Histogram
from llm_headroom.proxy import documents, framing
from llm_headroom.proxy.measures import BOUNDS, Measures
from llm_headroom.proxy.observer import Observer
from llm_headroom.scrape.label_cap import AGE
from measured_values import told
from stream_captures import ANSWERS, Answer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_headroom.proxy.documents import Reader

SMALL, THINK, GGUF = "small:latest", "think:latest", "/models/small.gguf"


def measured(answer: Answer, pieces: Iterable[bytes], *, request: bytes = b"", untagged: str = "latest") -> Measures:
    """What one exchange leaves behind: sent at 1 s, each piece a millisecond after the one before."""
    measures = Measures(limit=10, untagged=untagged)
    observer = asking(measures, answer.path, request)
    now = 1.0
    for piece in pieces:
        now += 0.001
        observer.answer(piece, now)
    assert not observer.pending
    assert not observer.blind
    return measures


def asking(measures: Measures, path: str = "/api/chat", body: bytes = b"") -> Observer:
    """A connection with a request that was sent at 1 s."""
    observer = Observer(measures, lambda: None)
    observer.request(framing.request_head(f"POST {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()), 1.0)
    observer.request_body([body], 1.0)
    observer.request_sent([], 1.0)
    return observer


def summary(name: str) -> tuple[str, float, float, float | None, float | None, float | None, str]:
    """Of a capture: model, first tokens, gaps, prompt, generated, cached tokens, reason or failure."""
    answer = ANSWERS[name]
    found = told(measured(answer, [answer.message()], untagged="latest" if name.startswith("ollama") else ""))
    ends = [key for key in found if key.startswith(("requests_finished", "requests_failed"))]
    assert len(ends) <= 1
    labels = ends[0].partition("{")[2].rstrip("}") if ends else ""
    model, _, end = labels.rpartition(",")

    def count(metric: str) -> float | None:
        return found.get(f"{metric}{{{model}}}")

    return (
        model,
        count("time_to_first_token_seconds") or count("proxy_first_token_after_load_seconds") or 0.0,
        count("inter_token_latency_seconds") or 0.0,
        count("prompt_tokens_total"),
        count("generation_tokens_total"),
        count("prompt_tokens_cached_total"),
        end,
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "ollama/chat_stream.ndjson": (SMALL, 1, 23, 30, 24, None, "length"),
        "ollama/chat_length.ndjson": (SMALL, 1, 2, 30, 3, None, "length"),
        "ollama/chat_nonstream.json": (SMALL, 1, 0, 30, 24, None, "length"),
        **{f"ollama/conc_chat_{n}.ndjson": (SMALL, 1, 79, 439, 80, None, "length") for n in range(6)},
        "ollama/generate_nonstream.json": (SMALL, 1, 0, 99, 40, None, "length"),
        "ollama/generate_stream_cold.ndjson": (SMALL, 1, 39, 379, 40, None, "length"),
        "ollama/generate_stream_warm_cached.ndjson": (SMALL, 1, 39, 379, 40, None, "length"),
        "ollama/generate_thinking_stream.ndjson": (THINK, 1, 5, 29, 6, None, "length"),
        "ollama/crash_midstream.ndjson": (SMALL, 1, 2, None, None, None, "engine_error"),
        "ollama/v1_chat_stream.sse": (SMALL, 1, 11, None, None, None, "length"),
        "ollama/v1_chat_stream_usage.sse": (SMALL, 1, 11, 30, 12, None, "length"),
        "ollama/v1_chat_thinking_stream.sse": (THINK, 1, 5, None, None, None, "length"),
        "ollama/v1_chat_nonstream.json": (SMALL, 0, 0, 30, 12, None, "length"),
        "ollama/v1_completions_stream_usage.sse": (SMALL, 1, 7, 26, 8, None, "length"),
        "ollama/v1_completions_nonstream.json": (SMALL, 0, 0, 26, 8, None, "length"),
        "ollama/v1_messages_stream.sse": (SMALL, 1, 7, 26, 8, None, "length"),
        "ollama/v1_messages_nonstream.json": (SMALL, 0, 0, 26, 8, None, "length"),
        "ollama/v1_responses_stream.sse": (SMALL, 1, 7, 26, 8, None, "stop"),
        "ollama/v1_responses_nonstream.json": (SMALL, 0, 0, 26, 8, None, "stop"),
        "ollama/embed.json": ("", 0, 0, None, None, None, "embedding"),
        "ollama/embeddings_legacy.json": ("", 0, 0, None, None, None, "embedding"),
        "ollama/v1_embeddings.json": ("", 0, 0, None, None, None, "embedding"),
        "ollama/load_only.json": ("", 0, 0, None, None, None, ""),
        "ollama/unload.json": ("", 0, 0, None, None, None, ""),
        "ollama/embed_on_llm.json": ("", 0, 0, None, None, None, "server_error"),
        "ollama/chat_tools_err.json": ("", 0, 0, None, None, None, "client_error"),
        "ollama/ctx_overflow_chat.ndjson": ("", 0, 0, None, None, None, "client_error"),
        "ollama/ctx_overflow_truncate_false.json": ("", 0, 0, None, None, None, "client_error"),
        "ollama/err_bad_json.json": ("", 0, 0, None, None, None, "client_error"),
        "ollama/err_model_not_found.json": ("", 0, 0, None, None, None, "client_error"),
        "ollama/err_v1_not_found.json": ("", 0, 0, None, None, None, "client_error"),
        "ollama/queue_full_503.json": ("", 0, 0, None, None, None, "overloaded"),
        "ollama/queue_full_503_v1.json": ("", 0, 0, None, None, None, "overloaded"),
        "llamacpp/chat_nonstream.json": (GGUF, 0, 0, 21, 4, 8, "length"),
        "llamacpp/chat_stream_0.sse": (GGUF, 1, 199, 500, 200, None, "length"),
        "llamacpp/chat_stream_1.sse": (GGUF, 1, 199, 500, 200, None, "length"),
        "llamacpp/completion_stream.sse": (GGUF, 1, 15, 482, 16, 2, "length"),
        "llamacpp/completion_stream_cached.sse": (GGUF, 1, 15, 482, 16, 481, "length"),
        "llamacpp/error_context.json": ("", 0, 0, None, None, None, "client_error"),
    }.items(),
)
def test_every_captured_answer_is_measured(name: str, expected: tuple[object, ...]) -> None:
    assert summary(name) == expected


def test_every_capture_is_among_those_above() -> None:
    marks = test_every_captured_answer_is_measured.pytestmark  # type: ignore[attr-defined]
    assert {name for name, _ in marks[0].args[1]} == set(ANSWERS)


def test_ollamas_own_durations_are_told_in_seconds_and_its_queue_is_what_is_left_of_them() -> None:
    answer = ANSWERS["ollama/conc_chat_2.ndjson"]
    sums = {
        series.metric.name: value.sum
        for series, value, _ in measured(answer, [answer.message()]).points({})
        if isinstance(value, Histogram)
    }

    # it waited for a slot behind four others
    assert sums["llm_request_prefill_seconds"] == pytest.approx(0.856076)
    assert sums["llm_request_decode_seconds"] == pytest.approx(2.486761)
    assert sums["llm_request_queue_seconds"] == pytest.approx(5.799609, abs=1e-5)


def test_first_token_and_time_per_token_of_an_answer_that_is_not_streamed_come_from_ollamas_durations() -> None:
    answer = ANSWERS["ollama/chat_nonstream.json"]
    last = json.loads(answer.body)
    sums = {
        series.metric.name: value.sum
        for series, value, _ in measured(answer, [answer.message()]).points({})
        if isinstance(value, Histogram)
    }

    assert sums["llm_time_to_first_token_seconds"] * 1e9 == pytest.approx(
        last["total_duration"] - last["eval_duration"]
    )
    assert sums["llm_time_per_output_token_seconds"] * 1e9 == pytest.approx(last["eval_duration"] / 23)


# Cuts ----------------------------------------------------------------------------------------------------------------
STREAMED = sorted(name for name, answer in ANSWERS.items() if answer.chunked and len(answer.body) < 11_000)


@pytest.mark.parametrize("name", STREAMED)
def test_a_cut_at_any_byte_changes_nothing(name: str) -> None:
    answer = ANSWERS[name]
    message = answer.message(97)
    whole = told(measured(answer, [message]))
    single = [bytes([byte]) for byte in message]

    assert told(measured(answer, single)) == whole
    # each boundary once costs too much for each capture: those of the head and of the first chunks
    for cut in range(1, min(len(message), 400)):
        assert told(measured(answer, [message[:cut], message[cut:]])) == whole, cut


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_cuts_change_nothing(data: st.DataObject) -> None:
    answer = ANSWERS[data.draw(st.sampled_from(STREAMED))]
    message = answer.message(data.draw(st.integers(1, 300)))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(message) - 1), max_size=40)))
    pieces = [message[start:end] for start, end in pairwise([0, *cuts, len(message)])]

    assert told(measured(answer, pieces)) == told(measured(answer, [answer.message()]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=20), st.data())
def test_a_chunked_body_is_decoded_however_it_is_cut(chunks: list[bytes], data: st.DataObject) -> None:
    parts = [b"%x;ext=1\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks if chunk]
    coded = b"".join(parts) + b"0\r\nTrailer: yes\r\n\r\n"
    cuts = sorted(data.draw(st.sets(st.integers(1, len(coded) - 1), max_size=20)))
    body, payload, done = framing.Chunked(), list[bytes](), False
    for start, end in pairwise([0, *cuts, len(coded)]):
        assert not done
        taken, done = body.take(coded[start:end], 0, payload)
        assert taken == end - start

    assert done
    assert b"".join(payload) == b"".join(chunks)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_at_all_break_the_looking(garbage: bytes) -> None:
    measures = Measures(limit=1)
    observer = asking(measures)

    observer.answer(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n", 1.0)
    observer.answer(garbage, 2.0)
    observer.answer(garbage[::-1], 3.0)
    observer.end_of_answers(b"", 4.0)
    observer.broken("upstream_closed", 5.0)

    assert told(measures).get("requests_running{}") is None


# Documents -----------------------------------------------------------------------------------------------------------
def read(reader: Reader, *pieces: bytes) -> list[object]:
    found = [document for piece in pieces for document in reader.feed(piece)]
    return [*found, *reader.end()]


def test_events_may_have_comments_carriage_returns_and_several_lines() -> None:
    stream = b': ping\r\n\r\nevent: x\r\ndata: {"a":\r\ndata: 1}\r\n\r\ndata:{"b":2}\n\nid: 1\n\ndata: [DONE]\n\n'

    assert read(documents.Events(), stream) == [{"a": 1}, {"b": 2}, documents.DONE]


def test_the_last_line_and_event_need_not_end() -> None:
    assert read(documents.Lines(), b'{"a":1}\n\n{"b"', b":2}") == [{"a": 1}, {"b": 2}]
    assert read(documents.Events(), b'data: {"a":1}') == [{"a": 1}]


@pytest.mark.parametrize("reader", [documents.Lines(), documents.Events(), documents.Whole()])
def test_a_line_without_end_is_given_up_and_not_kept(reader: Reader) -> None:
    half = b"x" * (documents.MOST_BYTES // 2 + 1)

    assert not list(reader.feed(half))
    with pytest.raises(documents.UnreadableError, match="too_long"):
        list(reader.feed(half))


def json_answer(*documents_: object, path: str = "/v1/chat/completions") -> Answer:
    body = b"".join(b"data: %b\n\n" % json.dumps(each).encode() for each in documents_) + b"data: [DONE]\n\n"
    return Answer("", path, 200, "text/event-stream", chunked=True, body=body)


def delta(**what: object) -> dict[str, object]:
    return {"model": "m", "choices": [{"index": 0, "delta": what, "finish_reason": None}]}


FINISH = {"model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


@pytest.mark.parametrize(
    ("documents_", "outputs"),
    [
        ([delta(role="assistant", content=""), delta(content="a"), delta(content="b")], 2),
        ([delta(role="assistant"), delta(reasoning_content="hm"), delta(content="b")], 2),
        ([delta(reasoning="hm"), delta(content="b")], 2),
        ([delta(tool_calls=[{"index": 0, "function": {"arguments": "{"}}]), delta(content=None)], 1),
        ([delta(role="assistant", content="")], 0),
    ],
)
def test_a_first_token_is_text_reasoning_or_a_tool_call_never_a_role_alone(
    documents_: list[dict[str, object]], outputs: int
) -> None:
    answer = json_answer(*documents_, FINISH)
    found = told(measured(answer, [answer.message(30)], untagged=""))

    assert found.get("time_to_first_token_seconds{m}", 0) == min(outputs, 1)
    assert found.get("inter_token_latency_seconds{m}", 0) == max(outputs - 1, 0)


def test_the_last_usage_counts_where_each_event_has_one() -> None:
    events = [
        delta(content="a") | {"usage": {"prompt_tokens": 5, "completion_tokens": 1}},
        delta(content="b")
        | {"usage": {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}},
        FINISH,
    ]
    answer = json_answer(*events)
    found = told(measured(answer, [answer.message()], untagged=""))

    assert found["generation_tokens_total{m}"] == 2
    assert found["prompt_tokens_total{m}"] == 5
    assert found["prompt_tokens_cached_total{m}"] == 4


def test_sglangs_own_endpoint_repeats_the_text_and_counts_tokens() -> None:
    def event(text: str, tokens: int, reason: str | None = None) -> dict[str, object]:
        finish = None if reason is None else {"type": reason}
        meta = {"prompt_tokens": 7, "completion_tokens": tokens, "cached_tokens": 3, "finish_reason": finish}
        return {"text": text, "meta_info": meta}

    answer = json_answer(event("a", 1), event("ab", 2), event("ab", 2, "length"), path="/generate")
    found = told(measured(answer, [answer.message()], untagged=""))

    assert found["time_to_first_token_seconds{}"] == 1
    assert found["inter_token_latency_seconds{}"] == 1
    assert found["generation_tokens_total{}"] == 2
    assert found["requests_finished_total{length}"] == 1


# What is not measured ------------------------------------------------------------------------------------------------
def with_head(head: str, body: bytes, path: str = "/api/chat") -> dict[str, float]:
    message = f"HTTP/1.1 200 OK\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    answer = Answer("", path, 200, "", chunked=False, body=body)
    return told(measured(answer, [message], request=b'{"model": "secret-model"}'))


def test_answers_that_cannot_be_read_are_counted_as_unmeasured_by_cause() -> None:
    compressed = with_head("Content-Type: application/json\r\nContent-Encoding: gzip\r\n", b"\x1f\x8b")
    assert compressed["proxy_requests_unmeasured_total{compressed}"] == 1
    assert compressed["requests_finished_total{unknown}"] == 1
    assert with_head("Content-Type: text/plain\r\n", b"hello")["proxy_requests_unmeasured_total{format}"] == 1
    lines = with_head("Content-Type: application/x-ndjson\r\n", b"{broken\n")
    assert lines["requests_failed_total{malformed}"] == 1
    long = with_head("Content-Type: application/x-ndjson\r\n", b"x" * (documents.MOST_BYTES + 1))
    assert long["proxy_requests_unmeasured_total{too_long}"] == 1


@pytest.mark.parametrize("missing", ["prompt_tokens", "completion_tokens"])
@pytest.mark.parametrize("instead", [None, -1, 10**12, 1.5, "7", True])
def test_a_count_that_is_none_is_missing_and_the_other_one_counts(missing: str, instead: object) -> None:
    usage: dict[str, object] = {"prompt_tokens": 5, "completion_tokens": 3, missing: instead}
    answer = json_answer(delta(content="a"), FINISH | {"usage": {k: v for k, v in usage.items() if v is not None}})
    found = told(measured(answer, [answer.message()], untagged=""))

    counted = {name for name in ("prompt_tokens_total{m}", "generation_tokens_total{m}") if name in found}
    assert counted == {"generation_tokens_total{m}" if missing == "prompt_tokens" else "prompt_tokens_total{m}"}
    assert found["proxy_requests_unmeasured_total{m,usage_missing}"] == 1


def test_a_stream_that_ends_without_its_last_document_is_a_failure() -> None:
    line = b'{"model":"m","message":{"content":"a"},"done":false}\n'

    found = with_head("Content-Type: application/x-ndjson\r\n", line)

    assert found["requests_failed_total{m:latest,incomplete}"] == 1


def test_what_clients_call_models_never_becomes_a_label() -> None:
    measures = Measures(limit=2)
    for number in range(100):
        asking(measures, body=b'{"model": "invented-%d"}' % number).broken("aborted", 2.0)

    assert told(measures) == {"requests_failed_total{aborted}": 100}


def test_models_that_engines_name_are_capped() -> None:
    measures = Measures(limit=2)

    assert [measures.label(name) for name in ("a", "b", "c", "a")] == ["a", "b", "other", "a"]
    assert measures.asked("b") == "b"
    assert measures.asked("c") == ""
    assert measures.cap.capped() == {"model": 1}


def test_a_model_that_nobody_asks_for_any_more_frees_its_place() -> None:
    now = [0.0]
    measures = Measures(limit=2, clock=lambda: now[0])

    def models() -> set[str]:
        return {each.series.label("model") for each in measures.points({})} - {""}

    def answered(model: str) -> None:
        measures.finished(measures.label(model), "stop")

    for name in ("a", "b", "c"):
        answered(name)
    under_way = measures.begin("b", 0.0, streams=False)
    assert models() == {"a", "b", "other"}
    now[0] = AGE
    answered("c")
    assert models() == {"b", "other"}

    answered("c")
    assert models() == {"b", "c", "other"}
    measures.end(under_way)
    now[0] = 3 * AGE
    assert models() == {"other"}


def test_requests_beyond_the_known_limit_wait() -> None:
    measures = Measures(limit=2, running_limit=2)
    for _ in range(5):
        asking(measures)

    found = told(measures)
    assert (found["requests_running{}"], found["requests_waiting{}"]) == (2, 3)


def test_embeddings_carry_the_model_that_the_engine_has_taken() -> None:
    answer = ANSWERS["ollama/embed.json"]
    found = told(measured(answer, [answer.message()], request=b'{"model":"embed","input":"x"}'))

    assert found["requests_finished_total{embed:latest,embedding}"] == 1
    assert found["request_duration_seconds{embed:latest}"] == 1


def sums(measures: Measures) -> dict[str, float]:
    """Of each histogram, by the metric's name."""
    return {
        series.metric.name.removeprefix("llm_"): value.sum
        for series, value, _ in measures.points({})
        if isinstance(value, Histogram)
    }


LINES = (
    b'{"model":"m","message":{"content":"a"},"done":false}\n',
    b'{"model":"m","message":{"content":"b"},"done":false}\n',
)


def last(**durations: float) -> bytes:
    """Ollama's last line, with three tokens."""
    told_by_it = {"done_reason": "stop", "prompt_eval_count": 7, "eval_count": 3, **durations}
    return json.dumps({"model": "m", "message": {"content": ""}, "done": True, **told_by_it}).encode() + b"\n"


def ollama_stream(end: bytes) -> Measures:
    """Asked at 1 s, first output at 3.5 s, the next one at 4 s, the end at 11 s."""
    measures = Measures(limit=10)
    observer = asking(measures)
    observer.answer(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n", 2.0)
    for now, line in ((3.5, LINES[0]), (4.0, LINES[1]), (11.0, end)):
        observer.answer(b"%x\r\n%b\r\n" % (len(line), line), now)
    observer.answer(b"0\r\n\r\n", 11.0)
    return measures


def test_every_duration_of_a_stream_is_measured_from_when_it_was_asked() -> None:
    found = sums(ollama_stream(last()))

    assert found["time_to_first_token_seconds"] == 2.5
    assert found["inter_token_latency_seconds"] == 0.5
    assert found["request_duration_seconds"] == 10.0
    assert found["time_per_output_token_seconds"] == 0.25  # 0.5 s for the two tokens after the first
    assert found["request_prompt_tokens"] == 7
    assert found["request_generation_tokens"] == 3


def test_an_engines_durations_are_of_the_steps_that_it_names() -> None:
    found = sums(ollama_stream(last(total_duration=9e9, prompt_eval_duration=2e9, eval_duration=4e9)))

    assert found["request_prefill_seconds"] == pytest.approx(2.0)
    assert found["request_decode_seconds"] == pytest.approx(4.0)
    assert found["request_queue_seconds"] == pytest.approx(3.0)


@pytest.mark.parametrize("absurd", [-1.0, 1e30])
def test_absurd_durations_of_an_engine_are_none(absurd: float) -> None:
    found = sums(ollama_stream(last(total_duration=absurd, prompt_eval_duration=absurd, eval_duration=absurd)))

    assert not {name for name in found if name.startswith(("request_prefill", "request_decode", "request_queue"))}


@pytest.mark.parametrize("head", ["GET /api/tags", "POST /api/show", "GET /api/chat"])
def test_what_asks_for_no_inference_is_not_counted_before_or_after_its_answer(head: str) -> None:
    measures = Measures(limit=10)
    observer = Observer(measures, lambda: None)
    observer.request(framing.request_head(f"{head} HTTP/1.1\r\nHost: x\r\n\r\n".encode()), 1.0)
    observer.request_sent([], 1.0)
    assert told(measures) == {}
    observer.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}", 2.0)

    assert told(measures) == {}
    assert not observer.pending
    observer.broken("aborted", 3.0)
    assert told(measures) == {}


def test_the_bounds_of_every_histogram_ascend_to_infinity() -> None:
    for metric, bounds in BOUNDS.items():
        assert all(low < high for low, high in pairwise(bounds)), metric.name
        assert bounds[-1] == float("inf"), metric.name
        assert all(high <= 8 * low for low, high in pairwise(bounds[:-1])), metric.name  # no gap, no slip of a digit


@pytest.mark.parametrize(
    "body",
    [
        b"3\r\nabcd\r\n0\r\n\r\n",  # longer than its size
        b"x\r\n",
        b"-1\r\n",
        b"\r\n",
        b"1" * 20 + b"\r\n",
        b"3\r\nabc\r\n" + b"0" * (framing.MOST_LINE_BYTES + 1),
    ],
)
def test_a_body_that_is_not_framed_as_it_should_be_is_not_seen_any_further(body: bytes) -> None:
    for cut in (len(body), 1, 4):
        measures = Measures(limit=10)
        observer = asking(measures)
        observer.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 2.0)
        observer.answer(body[:cut], 2.0)
        observer.answer(body[cut:], 2.0)

        assert observer.blind
        assert not observer.pending
        assert told(measures) == {}


@pytest.mark.parametrize(("trailer", "lines"), [(b"", "\r\n"), (b"x: y\r\n", "\r\n"), (b"", "\n")])
def test_a_chunked_body_ends_after_its_trailers(trailer: bytes, lines: str) -> None:
    body = (b"3\r\nabc\r\n0\r\n" + trailer + b"\r\n").replace(b"\r\n", lines.encode())
    for cut in range(len(body)):
        observer = asking(Measures(limit=10))
        observer.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 2.0)
        observer.answer(body[:cut], 2.0)
        assert len(observer.pending) == 1
        observer.answer(body[cut:], 2.0)
        assert not observer.pending
        assert not observer.blind


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("GET", b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 199 Odd\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"),
    ],
)
def test_what_follows_an_answer_without_a_body_is_measured(method: str, answer: bytes) -> None:
    measures = Measures(limit=10, untagged="latest")
    observer = Observer(measures, lambda: None)
    observer.request(framing.request_head(f"{method} /api/tags HTTP/1.1\r\nHost: x\r\n\r\n".encode()), 1.0)
    observer.request_sent([], 1.0)
    observer.request(framing.request_head(b"POST /api/chat HTTP/1.1\r\nHost: x\r\n\r\n"), 1.0)
    observer.request_sent([], 1.0)

    observer.answer(answer, 2.0)
    assert [exchange.method for exchange in observer.pending] == ["POST"]
    observer.answer(ANSWERS["ollama/chat_stream.ndjson"].message(), 3.0)

    assert not observer.pending
    assert told(measures)["requests_finished_total{small:latest,length}"] == 1.0


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n", b"HTTP/1.1 200 OK\nA: b\n\n", b"\r\n\nHTTP/1.1 200\n\r\n"]
)
def test_a_head_is_found_wherever_it_is_cut(head: bytes) -> None:
    for first in range(len(head)):
        for second in range(first, len(head)):
            reader = framing.HeadReader()
            assert reader.take(head[:first], 0) == (first, None)
            assert reader.take(b"." + head[first:second], 1) == (second - first + 1, None)
            end, found = reader.take(head[second:] + b"body", 0)
            assert (end, reader.empty) == (len(head) - second, True)
            assert found is not None
            assert found.strip() == head.strip()


def test_an_answer_that_names_no_model_takes_no_model_s_place() -> None:
    measures = Measures(limit=1)
    assert [measures.label(model) for model in ("", "small", "large", "")] == ["", "small", "other", ""]
    assert [measures.asked(model) for model in ("", "small", "large")] == ["", "small", ""]


@pytest.mark.parametrize(
    ("loads", "answered", "expected"),
    [(False, 0, (15.0, 15.0)), (True, 0, (15.0, 0.0)), (True, 1, (14.0, 12.0)), (True, 2, (0.0, 12.0))],
)
def test_an_engine_that_loads_models_owes_no_byte_before_its_first(
    answered: int, expected: tuple[float, float], *, loads: bool
) -> None:
    now = [25.0]
    measures = Measures(limit=2, silent_loads=loads, clock=lambda: now[0])
    requests = [measures.begin("m", at, streams=True) for at in (10.0, 11.0)]
    for request in requests[:answered]:
        request.first = request.traffic.heard = 13.0
    measures.begin("m", 1.0, streams=False)

    def waits() -> tuple[object, object]:
        found = {series.metric: value for series, value, _ in measures.points({})}
        return found[schema.PROXY_FIRST_TOKEN_WAIT], found[schema.PROXY_SILENCE]

    assert waits() == expected
    for request in requests:
        measures.end(request, 25.0)
    assert waits() == (0.0, 0.0)


def test_no_load_explains_that_streams_alone_are_under_way_for_five_minutes_without_a_byte() -> None:
    now = [309.0]
    measures = Measures(limit=1, silent_loads=True, clock=lambda: now[0])
    measures.begin("m", 10.0, streams=True)

    def silence() -> list[object]:
        return [value for series, value, _ in measures.points({}) if series.metric is schema.PROXY_SILENCE]

    assert silence() == [0.0]
    now[0] = 310.0
    assert silence() == [300.0]
    measures.begin("m", 20.0, streams=False)  # it may be this one's whole answer that is being computed
    assert silence() == [0.0]
