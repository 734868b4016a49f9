"""What one request adds to what a proxy has measured, by its answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import pytest

from llm_headroom import schema
from llm_headroom.proxy import framing
from llm_headroom.proxy.documents import MOST_BYTES
from llm_headroom.proxy.exchange import MOST_REQUEST_BYTES, Exchange
from llm_headroom.proxy.measures import Measures
from measured_values import Clock, counted, told, total, values

if TYPE_CHECKING:
    from collections.abc import Mapping

SENT: Final = 1.0
RESPONSES: Final = schema.HTTP_RESPONSES


def asking(measures: Measures, path: str = "/api/chat", body: bytes = b"{}") -> Exchange:
    """A request that was sent at 1 s."""
    made = Exchange(measures, framing.request_head(f"POST {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()))
    made.asks(body)
    made.sent(SENT)
    return made


def answer(status: int = 200, kind: str = "application/json", **headers: str) -> framing.ResponseHead:
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return framing.ResponseHead(status, {"content-type": kind, **more})


NDJSON: Final = "application/x-ndjson"
EVENTS: Final = "text/event-stream"
PART: Final = b'{"model":"m","message":{"content":"a"}}\n'
LAST: Final = b'{"model":"m","done":true,"done_reason":"stop","prompt_eval_count":5,"eval_count":3}\n'


# The request ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("more", "model"), [(-1, "m"), (0, "m"), (1, "")])
def test_of_a_request_so_many_bytes_are_looked_at(more: int, model: str) -> None:
    measures = Measures(limit=1)
    measures.label("m")
    body = b'{"model":"m","stream":false,"x":"'
    body += b"a" * (MOST_REQUEST_BYTES + more - len(body) - 2) + b'"}'
    asking(measures, body=body[:100])  # a part of it names nothing
    made = Exchange(measures, framing.request_head(b"POST /api/chat HTTP/1.1\r\n\r\n"))
    for start in (0, 1000):
        made.asks(body[start : 1000 if start == 0 else None])
    made.asks(b"")
    made.sent(SENT)
    assert told(measures)[f"requests_running{{{model}}}"] == (1 if model else 2)


@pytest.mark.parametrize(
    ("path", "body", "streams"),
    [
        ("/api/chat", b"{}", True),
        ("/api/chat", b'{"stream":true}', True),
        ("/api/chat", b'{"stream":false}', False),
        ("/api/chat", b'{"stream":"no"}', True),
        ("/api/chat", b"broken", True),
        ("/v1/completions", b"{}", False),
        ("/v1/completions", b'{"stream":true}', True),
        ("/v1/completions", b"[" * 5000, False),
        ("/v1/completions", b"x" * (MOST_REQUEST_BYTES + 1), True),
        ("/api/embed", b'{"stream":true}', False),
    ],
)
def test_who_waits_for_first_output_has_asked_for_a_stream(path: str, body: bytes, *, streams: bool) -> None:
    measures = Measures(limit=1, clock=Clock(4.0))
    asking(measures, path, body)
    assert values(measures, schema.PROXY_FIRST_TOKEN_WAIT) == [3.0 if streams else 0.0]


@pytest.mark.parametrize(("model", "label"), [(b'"m"', "m"), (b"7", ""), (b"null", ""), (b'["m"]', "")])
def test_a_model_is_asked_for_by_a_text(model: bytes, label: str) -> None:
    measures = Measures(limit=1)
    measures.label("m")
    asking(measures, body=b'{"model":' + model + b"}")
    assert told(measures)[f"requests_running{{{label}}}"] == 1


def test_a_request_that_is_answered_before_it_was_sent_is_under_way_since_then() -> None:
    measures = Measures(limit=1)
    made = Exchange(measures, framing.request_head(b"POST /api/chat HTTP/1.1\r\n\r\n"))
    made.answers(answer(kind=NDJSON), 3.0)
    made.sent(5.0)
    made.received(PART, 4.0)
    assert total(measures, schema.TIME_TO_FIRST_TOKEN) == 1.0


# The answer ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("status", "path", "body", "expected"),
    [
        (200, "/api/chat", LAST, {"requests_finished_total{m,stop}": 1}),
        (302, "/api/chat", LAST, {"requests_finished_total{unknown}": 1}),
        (399, "/api/chat", LAST, {"requests_finished_total{unknown}": 1}),
        (400, "/api/chat", LAST, {"requests_failed_total{client_error}": 1}),
        (499, "/api/chat", b"", {"requests_failed_total{client_error}": 1}),
        (500, "/api/chat", LAST, {"requests_failed_total{server_error}": 1}),
        (502, "/api/chat", b'{"error":"loading model"}', {"requests_failed_total{server_error}": 1}),
        (503, "/api/chat", b"", {"requests_failed_total{overloaded}": 1}),
        (503, "/api/chat", b'{"error":"loading model"}', {"requests_failed_total{loading}": 1}),
        (503, "/api/embed", b'{"error":"loading model"}', {"requests_failed_total{loading}": 1}),
        (503, "/api/chat", b"broken", {"requests_failed_total{overloaded}": 1}),
        (200, "/api/chat", b'{"error":"x"}', {"requests_failed_total{engine_error}": 1}),
        (200, "/api/chat", b'{"done":true,"done_reason":"load"}', {}),
        (200, "/api/chat", b'{"done":true}', {"requests_finished_total{unknown}": 1}),
        (200, "/api/embed", b"broken", {"requests_finished_total{embedding}": 1}),
    ],
)
def test_an_answer_ends_by_its_status_then_by_its_content(
    status: int, path: str, body: bytes, expected: Mapping[str, float]
) -> None:
    measures = Measures(limit=1)
    made = asking(measures, path)
    made.answers(answer(status), 2.0)
    made.received(body, 2.0)
    assert made.status == status
    made.ended(3.0)
    assert counted(measures, "requests_finished", "requests_failed") == expected
    responses = counted(measures, "http_responses_total")
    assert [number for key, number in responses.items() if f"{status // 100}xx" in key] == [1]
    made.ended(4.0)
    made.broken("aborted", 4.0)
    assert counted(measures, "http_responses_total") == responses, "it ends once"


@pytest.mark.parametrize(
    ("head", "body", "unmeasured"),
    [
        (answer(kind="text/plain"), LAST, "format"),
        (answer(content_encoding="gzip"), LAST, "compressed"),
        (answer(kind="text/plain", content_encoding="br"), LAST, "compressed"),
        (answer(content_encoding="Identity"), LAST, None),
        (answer(content_encoding=""), LAST, None),
        (answer(), b'{"done":true,"eval_count":3}', None),
        (answer(), b'{"done":true,"eval_count":-3}', "usage_missing"),
        (answer(), b'{"done":true,"prompt_eval_count":-3}', "usage_missing"),
        (answer(kind=NDJSON), PART + LAST, None),
    ],
)
def test_what_could_not_be_read_is_counted_with_its_cause(
    head: framing.ResponseHead, body: bytes, unmeasured: str | None
) -> None:
    measures = Measures(limit=1)
    made = asking(measures)
    made.answers(head, 2.0)
    made.received(body, 2.0)
    made.ended(3.0)
    found = counted(measures, "proxy_requests_unmeasured_total")
    assert [key.rpartition(",")[2].rpartition("{")[2].strip("}") for key in found] == [unmeasured] * bool(unmeasured)
    assert len(counted(measures, "requests_finished")) == 1


@pytest.mark.parametrize(
    ("status", "kind", "body", "reason"),
    [
        (200, NDJSON, PART, "incomplete"),
        (200, EVENTS, b"data: {}\n\n", "incomplete"),
        (200, "application/json", b"{}", None),
        (200, NDJSON, LAST, None),
        (200, NDJSON, b"broken\n", "malformed"),
        (200, NDJSON, PART + b"broken\n" + LAST, "malformed"),
        (200, EVENTS, b"data: broken\n\n", "malformed"),
        (200, EVENTS, b"data: " + b"1" * (MOST_BYTES + 1), None),
        (200, "application/json", b"<html>", "malformed"),
        (200, "application/json", b"", "malformed"),
        (200, "text/html", b"<html>", None),
        (503, NDJSON, PART, "overloaded"),
        (503, "application/json", b"broken", "overloaded"),
    ],
)
def test_only_a_stream_can_be_incomplete_and_any_document_malformed(
    status: int, kind: str, body: bytes, reason: str | None
) -> None:
    measures = Measures(limit=1)
    made = asking(measures)
    made.answers(answer(status, kind), 2.0)
    made.received(body, 2.0)
    made.ended(3.0)
    failed = counted(measures, "requests_failed_total")
    assert [key.rpartition(",")[2].rpartition("{")[2].strip("}") for key in failed] == [reason] * bool(reason)


@pytest.mark.parametrize(
    ("bodies", "expected"),
    [
        ([], {"requests_failed_total{aborted}": 1}),
        ([PART], {"requests_failed_total{m,aborted}": 1}),
        ([PART, LAST], {"requests_finished_total{m,stop}": 1}),
        ([b'{"error":"x"}\n'], {"requests_failed_total{engine_error}": 1}),
        ([LAST, b'{"error":"x"}\n'], {"requests_failed_total{m,engine_error}": 1}),
    ],
)
def test_who_leaves_after_the_last_document_has_been_answered(
    bodies: list[bytes], expected: Mapping[str, float]
) -> None:
    measures = Measures(limit=1)
    made = asking(measures)
    made.answers(answer(kind=NDJSON), 2.0)
    for body in bodies:
        made.received(body, 2.0)
    made.broken("aborted", 3.0, 502)
    assert made.status == 200
    assert counted(measures, "requests_finished", "requests_failed") == expected
    assert ["2xx" in key for key in counted(measures, "http_responses_total")] == [True]


def test_an_answer_of_the_proxy_s_own_has_its_status_and_one_that_never_came_none() -> None:
    measures = Measures(limit=1)
    for status in (502, 0):
        asking(measures).broken("upstream_refused", 2.0, status)
    assert told(measures) == {
        "http_responses_total{5xx}": 1,
        "requests_failed_total{upstream_refused}": 2,
        "slo_requests_total{availability}": 2,
    }


def test_responses_of_class_5xx_are_counted_from_0_so_that_the_first_one_is_growth() -> None:
    measures = Measures(limit=1)
    made = asking(measures)
    made.answers(answer(), 2.0)
    made.received(LAST, 2.0)
    made.ended(2.0)

    found = {series.label("code"): value for series, value, _ in measures.points({}) if series.metric is RESPONSES}
    assert found == {"2xx": 1.0, "5xx": 0.0}


def test_what_is_dropped_is_counted_as_nothing() -> None:
    measures = Measures(limit=1)
    made = asking(measures)
    made.drop()
    made.answers(answer(kind=NDJSON), 2.0)
    made.received(PART + LAST, 2.0)
    made.ended(3.0)
    made.broken("aborted", 3.0)
    assert told(measures) == {}
    Exchange(measures, framing.request_head(b"POST /api/chat HTTP/1.1\r\n\r\n")).drop()
    assert told(measures) == {}


@pytest.mark.parametrize(
    ("size", "fits"),
    [(4096, True), (4097, False)],
)
def test_a_part_is_read_by_its_form_up_to_so_many_bytes(size: int, *, fits: bool) -> None:
    measures = Measures(limit=1)
    made = asking(measures)
    made.answers(answer(kind=NDJSON), 2.0)
    part = PART[:-1] + b" " * (size - len(PART)) + b"\n"
    assert made.part(b"." + part, 1, size + 1, 2.5) is fits
    assert total(measures, schema.TIME_TO_FIRST_TOKEN) == (1.5 if fits else None)


@pytest.mark.parametrize(
    ("kind", "part", "expected"),
    [
        (NDJSON, PART, True),
        (NDJSON, LAST, False),
        (NDJSON, PART[:-1], False),
        (NDJSON, b'{"model":"\xff"}\n', False),
        (NDJSON, b'{"x":"\xff"}\n', False),
        (NDJSON, '{"x":"é"}\n'.encode(), True),
        ("application/json", PART, False),
        (EVENTS, PART, False),
    ],
)
def test_only_a_whole_part_of_a_stream_is_read_by_its_form(kind: str, part: bytes, *, expected: bool) -> None:
    made = asking(Measures(limit=1))
    assert not made.part(part, 0, len(part), 1.5)
    made.answers(answer(kind=kind), 2.0)
    assert made.part(part, 0, len(part), 2.5) is expected


@pytest.mark.parametrize("kind", ["text/plain", "application/json", NDJSON])
def test_every_piece_of_an_answer_breaks_the_silence(kind: str) -> None:
    measures = Measures(limit=1, clock=Clock(9.0))
    made = asking(measures)
    made.answers(answer(kind=kind), 2.0)
    made.received(b"{", 5.0)
    assert values(measures, schema.PROXY_SILENCE) == [4.0]


@pytest.mark.parametrize(("kind", "label"), [("application/json", "m"), (NDJSON, "other")])
def test_numbers_of_an_embedding_are_not_read_but_where_they_are_lines(kind: str, label: str) -> None:
    measures = Measures(limit=2)
    made = asking(measures, "/api/embed", b'{"model":"m"}')
    made.answers(answer(kind=kind), 2.0)
    made.received(b'{"model":"other"}\n', 2.0)
    made.ended(3.0)
    assert counted(measures, "requests_finished") == {f"requests_finished_total{{{label},embedding}}": 1}


def test_a_part_that_bears_nothing_is_no_output_and_breaks_the_silence() -> None:
    measures = Measures(limit=1, clock=Clock(9.0))
    made = asking(measures)
    made.answers(answer(kind=NDJSON), 2.0)
    empty = b'{"model":"m","message":{"content":""}}\n'
    assert made.part(empty, 0, len(empty), 5.0)
    assert values(measures, schema.PROXY_SILENCE) == [4.0]
    assert values(measures, schema.PROXY_FIRST_TOKEN_WAIT) == [8.0]


def streamed(*times: float, generated: int = 3, end: float = 9.0, **more: int) -> Measures:
    """Outputs at these times, then the end."""
    measures = Measures(limit=1)
    made = asking(measures)
    made.answers(answer(kind=NDJSON), 2.0)
    for now in times:
        made.received(PART, now)
    last = {"model": "m", "done": True, "done_reason": "stop", "prompt_eval_count": 5, "eval_count": generated, **more}
    made.received(json.dumps(last).encode() + b"\n", end)
    made.ended(end)
    return measures


@pytest.mark.parametrize(
    ("times", "generated", "expected"),
    [
        ((2.0, 4.0), 3, 1.0),
        ((2.0, 4.0), 2, 2.0),
        ((2.0, 4.0), 1, None),
        ((2.0,), 2, 0.0),
        ((), 2, None),
    ],
)
def test_time_per_token_is_that_after_the_first(
    times: tuple[float, ...], generated: int, expected: float | None
) -> None:
    assert total(streamed(*times, generated=generated), schema.TIME_PER_OUTPUT_TOKEN) == expected


def test_of_many_outputs_every_gap_is_counted() -> None:
    for outputs in (2, 64, 65, 66, 130):
        found = told(streamed(*(2.0 + number for number in range(outputs)), end=200.0))
        assert found["inter_token_latency_seconds{m}"] == outputs - 1
        assert found["time_to_first_token_seconds{m}"] == 1


SECOND: Final = 1_000_000_000


@pytest.mark.parametrize(
    ("durations", "expected"),
    [
        ({"total_duration": 9, "eval_duration": 4, "prompt_eval_duration": 2}, (5.0, 3.0, 2.0, 4.0)),
        ({"total_duration": 9, "eval_duration": 4}, (5.0, None, None, 4.0)),
        ({"total_duration": 9, "prompt_eval_duration": 2}, (None, None, 2.0, None)),
        ({"eval_duration": 4, "prompt_eval_duration": 2}, (None, None, 2.0, 4.0)),
        ({"total_duration": 4, "eval_duration": 4}, (0.0, None, None, 4.0)),
        ({"total_duration": 3, "eval_duration": 4}, (None, None, None, 4.0)),
        ({"total_duration": 5, "eval_duration": 4, "prompt_eval_duration": 2}, (1.0, 0.0, 2.0, 4.0)),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_s_own_durations_are_of_its_steps(
    durations: Mapping[str, int], expected: tuple[float | None, ...], *, stream: bool
) -> None:
    given = {name: seconds * SECOND for name, seconds in durations.items()}
    if stream:
        measures = streamed(2.0, 4.0, **given)
    else:
        measures = Measures(limit=1)
        made = asking(measures, body=b'{"stream":false}')
        made.answers(answer(), 2.0)
        made.received(json.dumps({"model": "m", "done": True, "eval_count": 3, **given}).encode(), 9.0)
        made.ended(9.0)
    metrics = (
        schema.TIME_TO_FIRST_TOKEN,
        schema.REQUEST_QUEUE,
        schema.REQUEST_PREFILL,
        schema.REQUEST_DECODE,
        schema.TIME_PER_OUTPUT_TOKEN,
    )
    per_token = None if expected[3] is None else expected[3] / 2
    wanted = (1.0, *expected[1:], 1.0) if stream else (*expected, per_token)
    assert tuple(total(measures, metric) for metric in metrics) == wanted
    assert total(measures, schema.REQUEST_DURATION) == 8.0


def test_what_a_request_took_is_counted_in_tokens() -> None:
    found = streamed(2.0, prompt_eval_cached_count=2)
    assert counted(found, "prompt_tokens", "generation_tokens", "request_") == {
        "prompt_tokens_total{m}": 5,
        "generation_tokens_total{m}": 3,
        "prompt_tokens_cached_total{m}": 2,
        "request_prompt_tokens{m}": 1,
        "request_generation_tokens{m}": 1,
        "request_duration_seconds{m}": 1,
    }
    assert total(found, schema.REQUEST_PROMPT_TOKENS) == 5.0
    assert total(found, schema.REQUEST_GENERATION_TOKENS) == 3.0
    assert not counted(streamed(2.0), "prompt_tokens_cached")


def test_a_model_that_is_named_at_the_end_has_all_that_came_before() -> None:
    measures = Measures(limit=1)
    made = asking(measures)
    made.answers(answer(kind=NDJSON), 2.0)
    for now in (2.0, 3.0, 4.0):
        made.received(b'{"message":{"content":"a"}}\n', now)
        assert not counted(measures, "time_to_first_token", "inter_token")
    made.received(LAST, 5.0)
    assert counted(measures, "time_to_first_token", "inter_token") == {
        "time_to_first_token_seconds{m}": 1,
        "inter_token_latency_seconds{m}": 2,
    }
    assert total(measures, schema.TIME_TO_FIRST_TOKEN) == 1.0


@pytest.mark.parametrize(
    ("status", "expected"),
    [(200, "requests_finished_total{m,embedding}"), (500, "requests_failed_total{server_error}")],
)
def test_an_embedding_is_of_the_model_that_was_asked_for_once_the_engine_has_taken_it(
    status: int, expected: str
) -> None:
    measures = Measures(limit=1)
    made = asking(measures, "/api/embed", b'{"model":"m"}')
    made.answers(answer(status), 2.0)
    made.received(b"{}", 2.0)
    made.ended(3.0)
    assert counted(measures, "requests_f", "proxy_requests_unmeasured") == {expected: 1}


def test_many_outputs_of_an_answer_that_names_no_model_do_not_wait_for_it() -> None:
    measures = Measures(limit=1)
    made = asking(measures)
    made.answers(answer(kind=NDJSON), 2.0)
    for number in range(64):
        made.received(b'{"message":{"content":"a"}}\n', 2.0 + number)
    assert not counted(measures, "time_to_first_token", "inter_token")
    made.received(b'{"message":{"content":"a"}}\n', 66.0)
    assert counted(measures, "time_to_first_token", "inter_token") == {
        "time_to_first_token_seconds{}": 1,
        "inter_token_latency_seconds{}": 64,
    }


def test_an_answer_that_names_no_model_is_of_the_one_asked_for_if_the_engine_has_named_that_before() -> None:
    measures = Measures(limit=1)
    measures.label("m")
    asking(measures, body=b'{"model":"m"}').broken("aborted", 2.0)
    assert counted(measures, "requests_failed") == {"requests_failed_total{m,aborted}": 1}


def test_where_nothing_was_streamed_there_are_no_gaps() -> None:
    measures = Measures(limit=1)
    made = asking(measures)
    made.answers(answer(), 2.0)
    made.received(LAST, 2.0)
    made.ended(3.0)
    assert total(measures, schema.INTER_TOKEN_LATENCY) is None
