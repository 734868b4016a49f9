"""Parts of a stream that are read by their form: the same is measured, however a part comes and is read."""

from __future__ import annotations

import asyncio
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import bounded
from llm_headroom import schema
from llm_headroom.model import point
from llm_headroom.proxy import dialects, framing
from llm_headroom.proxy.backlog import LARGE, MOST_PIECES, Backlog
from llm_headroom.proxy.dialects import Api, api_of
from llm_headroom.proxy.documents import reader_of
from llm_headroom.proxy.measures import Measures
from llm_headroom.proxy.observer import Observer
from llm_headroom.proxy.parts import FORMS, OTHER
from llm_headroom.schema import PROXY_FIRST_TOKEN_WAIT, PROXY_SILENCE
from measured_values import told
from proxied import LAST, LINE, STREAM, chunk, head, place, post
from stream_captures import ANSWERS, Answer

STREAMED = [answer for answer in ANSWERS.values() if answer.chunked]
SHORT = [answer for answer in STREAMED if len(answer.body) < 11_000]
COLD = {"ollama/generate_stream_cold.ndjson"}
"""Those for which the engine had to load its model."""
OLLAMA = b'{"model":"small","created_at":"2026-01-01T00:00:0%d.5Z","message":{"content":"%b"},"done":false}\n'


def documents(answer: Answer) -> list[bytes]:
    """A body as an engine sends it: each document in a chunk of its own."""
    end = rb"(?<=\n\n)" if answer.content_type.startswith("text/event-stream") else rb"(?<=\n)"
    return [piece for piece in re.split(end, answer.body) if piece]


def settled(measures: Measures) -> list[object]:
    """What does not depend on the clock's present time."""
    return [each for each in measures.points({}) if each.series.metric not in {PROXY_SILENCE, PROXY_FIRST_TOKEN_WAIT}]


def parts(piece: bytes, *, halves: bool) -> list[bytes]:
    """What comes at once; a half is never recognised, but read."""
    return [piece[: len(piece) // 2], piece[len(piece) // 2 :]] if halves else [piece]


def asked(measures: Measures, path: str) -> Observer:
    """A connection with a request for a stream that was sent at 1 s."""
    observer = Observer(measures, lambda: None)
    observer.request(framing.request_head(f"POST {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()), 1.0)
    observer.request_body([b'{"stream":true}'], 1.0)
    observer.request_sent([], 1.0)
    return observer


def points(path: str, content_type: str, bodies: list[bytes], *, halves: bool) -> list[object]:
    """All that is measured of chunks that come a millisecond apart, each at once or in two halves."""
    measures = Measures(limit=10)
    observer = asked(measures, path)
    observer.answer(STREAM.replace(b"application/x-ndjson", content_type.encode()), 1.0)
    now = 1.0
    for piece in [*map(chunk, bodies), b"0\r\n\r\n"]:
        now += 0.001
        for part in parts(piece, halves=halves):
            observer.answer(part, now)
    observer.broken("aborted", now)
    return settled(measures)


@pytest.mark.parametrize("answer", STREAMED, ids=lambda answer: answer.name)
def test_a_captured_stream_is_measured_the_same_in_whole_chunks_and_in_halves(answer: Answer) -> None:
    bodies = documents(answer)

    whole = points(answer.path, answer.content_type, bodies, halves=False)
    assert whole == points(answer.path, answer.content_type, bodies, halves=True)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_it_does_not_matter_when_what_has_passed_is_looked_at_or_read(data: st.DataObject) -> None:
    answer = data.draw(st.sampled_from(SHORT))
    pieces = [STREAM.replace(b"application/x-ndjson", answer.content_type.encode())]
    for body in [*map(chunk, documents(answer)), b"0\r\n\r\n"]:
        cut = data.draw(st.sampled_from([0, 0, 0, 1, len(body) // 2, len(body) - 1]))
        pieces += [part for part in (body[:cut], body[cut:]) if part]
    readings = data.draw(st.sets(st.integers(0, len(pieces) - 1)))

    cold = answer.name in COLD  # polls that show the model absent decide before the engine's own words do
    absent = [
        point(schema.MODELS_LOADED, 0.0, "", {}),
        point(schema.MODEL_LOADED, 0.0, "", {"model": "small"}),
    ]

    found = []
    for reads in (set(range(len(pieces))), readings, set[int]()):
        measures = Measures(limit=10, loads=cold)
        observer = asked(measures, answer.path)
        for number, piece in enumerate(pieces):
            measures.backlog.passed.append((observer.answer, piece, 1.0 + number / 1024))
            if number in reads:
                measures.points({}, absent if cold else ())
        found.append(settled(measures))

    assert found[0] == found[1] == found[2]


def test_a_reading_within_a_stream_has_all_that_passed_before() -> None:
    measures = Measures(limit=10)
    observer = asked(measures, "/api/chat")
    for now, piece in enumerate([STREAM, *(chunk(OLLAMA % (0, b"a")) for _ in range(5))], 2):
        measures.backlog.passed.append((observer.answer, piece, float(now)))
        found = told(measures)
        outputs = now - 2
        assert found.get("time_to_first_token_seconds{small}", 0) == min(1, outputs)
        assert found.get("inter_token_latency_seconds{small}", 0) == max(0, outputs - 1)


def test_a_stream_that_never_ends_takes_no_more_memory() -> None:
    """Each piece comes by itself, so that it may wait among others."""

    async def test() -> None:
        taken = asyncio.Semaphore()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head(reader)
            writer.write(STREAM)
            for _ in range(2 * MOST_PIECES):
                await taken.acquire()
                writer.write(chunk(LINE))
                await writer.drain()

        async with place(serve) as here:
            backlog = here.proxies.joined["engine"].backlog
            reader, writer = await here.connect()
            writer.write(post())
            await head(reader)
            waiting = []
            for _ in range(2 * MOST_PIECES):
                await reader.readuntil(LINE)
                waiting.append(len(backlog.passed))
                assert sum(len(piece) for _, piece, _ in backlog.passed) <= MOST_PIECES * LARGE
                taken.release()
            writer.close()
        assert MOST_PIECES / 2 < max(waiting) < MOST_PIECES

    bounded.run(test())


@settings(deadline=None)  # of many streams
@given(
    st.lists(st.one_of(st.text(max_size=3).map(str.encode), st.binary(max_size=3)), min_size=1, max_size=6),
    st.booleans(),
)
@example([b"", b"\n", b'"', b"\\", b"\\n", b'","done":true,"x":"'], False)  # noqa: FBT003 - hypothesis's form
@example([b"\xff"], False)  # noqa: FBT003
@example(["é".encode(), "語".encode()], False)  # noqa: FBT003
def test_no_text_changes_what_is_measured(texts: list[bytes], named: bool) -> None:  # noqa: FBT001 - hypothesis's form
    bodies = [OLLAMA % (0, b"one"), OLLAMA % (1, b"two"), *(OLLAMA % (2, text) for text in texts), LAST]
    if named:
        bodies = [body.replace(b'"model":"small",', b"") for body in bodies]

    whole = points("/api/chat", "application/x-ndjson", bodies, halves=False)
    assert whole == points("/api/chat", "application/x-ndjson", bodies, halves=True)


DAMAGED = chunk(OLLAMA % (1, b"two"))


@pytest.mark.parametrize("byte", [b"x", b'"', b"1", b"\n"])
def test_no_byte_of_a_repeated_chunk_is_passed_over(byte: bytes) -> None:
    for at in range(len(DAMAGED)):
        found = []
        for halves in (False, True):
            measures = Measures(limit=10)
            observer = Observer(measures, lambda: None)
            observer.request(framing.request_head(b"POST /api/chat HTTP/1.1\r\n\r\n"), 1.0)
            observer.request_sent([], 1.0)
            damaged = DAMAGED[:at] + byte + DAMAGED[at + 1 :]
            for now, piece in enumerate([STREAM, chunk(OLLAMA % (0, b"one")), damaged, chunk(LAST)], 1):
                for part in parts(piece, halves=halves):
                    observer.answer(part, now)
            observer.answer(b"0\r\n\r\n", 6.0)
            observer.broken("upstream_closed", 6.0)
            found.append((observer.blind, settled(measures)))

        assert found[0] == found[1], (at, damaged)


def by_its_form(api: Api, document: bytes) -> tuple[str, bool] | None:
    """The model and whether there is output, of a document of its API's form."""
    try:
        part = FORMS[api](document)
    except OTHER:
        return None
    bears = part.bears()
    return None if bears is None else (part.model, bears)


@pytest.mark.parametrize("answer", STREAMED, ids=lambda answer: answer.name)
def test_what_a_form_says_of_a_captured_document_is_what_its_dialect_says(answer: Answer) -> None:
    api = api_of("POST", answer.path)
    assert api is not None
    reader = reader_of(answer.content_type)
    assert reader is not None
    by_form = 0
    for body in documents(answer):
        text = reader.alone(body, 0, len(body))
        found = None if text is None else by_its_form(api, text)
        for document in reader.feed(body):
            by_dialect = dialects.Answer()
            by_dialect.read(api, document)
            if found is not None:
                by_form += 1
                assert by_dialect == dialects.Answer(model=found[0], output=found[1])

    assert by_form >= 0.7 * len(documents(answer)) - 4  # all but its first and last ones


@pytest.mark.parametrize(
    ("api", "document", "found"),
    [
        (Api.OLLAMA, b'{"model":"m","response":"a","done":false}', ("m", True)),
        (Api.OLLAMA, b'{"model":"m","thinking":"a","done":false}', ("m", True)),
        (Api.OLLAMA, b'{"message":{"content":"","thinking":"a"}}', ("", True)),
        (Api.OLLAMA, b'{"message":{"content":""},"done":false}', ("", False)),
        (Api.OLLAMA, b'{"message":{"content":"a"},"done":true}', None),
        (Api.OLLAMA, b'{"message":{"content":"a"},"error":"b"}', None),
        (Api.OLLAMA, b'{"message":{"content":"a","tool_calls":[{}]}}', None),
        (
            Api.OPENAI,
            b'{"model":"m","choices":[{"delta":{"content":"a"},"finish_reason":null}],"usage":null}',
            ("m", True),
        ),
        (Api.OPENAI, b'{"choices":[{"delta":{"reasoning_content":"a","content":null}}]}', ("", True)),
        (Api.OPENAI, b'{"choices":[{"delta":{"reasoning":"a"}}]}', ("", True)),
        (Api.OPENAI, b'{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}', ("", True)),
        (Api.OPENAI, b'{"choices":[{"delta":{"tool_calls":[],"content":""}}]}', ("", False)),
        (Api.OPENAI, b'{"choices":[{"text":"a"}]}', ("", True)),
        (Api.OPENAI, b'{"choices":[{"text":""},{"text":"a","finish_reason":""}]}', ("", True)),
        (Api.OPENAI, b'{"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}', None),
        (Api.OPENAI, b'{"choices":[{"delta":{},"message":{"content":"a"}}]}', None),
        (Api.OPENAI, b'{"choices":[{"delta":{"refusal":"a"}}]}', None),
        (Api.OPENAI, b'{"choices":[{"delta":{"function_call":{}}}]}', None),
        (Api.OPENAI, b'{"choices":[],"usage":{"prompt_tokens":1}}', None),
        (Api.OPENAI, b'{"choices":[],"timings":{}}', None),
        (Api.OPENAI, b'{"error":{"code":503}}', None),
        (Api.ANTHROPIC, b'{"type":"content_block_delta","delta":{"type":"text_delta","text":"a"}}', ("", True)),
        (Api.ANTHROPIC, b'{"type":"content_block_delta","delta":{"thinking":"a"}}', ("", True)),
        (Api.ANTHROPIC, b'{"type":"content_block_delta","delta":{"partial_json":"a"}}', ("", True)),
        (Api.ANTHROPIC, b'{"type":"content_block_delta","delta":{"text":""}}', ("", False)),
        (Api.ANTHROPIC, b'{"type":"message_delta","delta":{}}', None),
        (Api.ANTHROPIC, b'{"type":"content_block_delta","delta":{},"error":{}}', None),
        (Api.RESPONSES, b'{"type":"response.output_text.delta","delta":"a"}', ("", True)),
        (Api.RESPONSES, b'{"type":"response.output_text.delta","delta":""}', ("", False)),
        (Api.RESPONSES, b'{"type":"response.completed","delta":"a"}', None),
        (Api.RESPONSES, b'{"type":"x.delta","delta":"a","error":1}', None),
        (Api.LLAMACPP, b'{"content":"a","stop":false,"model":"m"}', ("m", True)),
        (Api.LLAMACPP, b'{"content":"","stop":false}', ("", False)),
        (Api.LLAMACPP, b'{"content":"a","stop":true}', None),
        (Api.LLAMACPP, b'{"content":"a","choices":[]}', None),
        (Api.LLAMACPP, b'{"content":"a","error":1}', None),
        (Api.OLLAMA, b"[" * 5000, None),
        (Api.OLLAMA, b"", None),
    ],
)
def test_a_form_is_of_what_bears_text_and_ends_nothing(
    api: Api, document: bytes, found: tuple[str, bool] | None
) -> None:
    assert by_its_form(api, document) == found


def test_a_chunk_is_recognised_by_its_length() -> None:
    for size in (1, 15, 16, 200, 255, 256, 4096):
        whole = chunk(b"a" * size)
        assert whole.startswith(framing.size_line(len(whole)))
    for other in (chunk(LINE)[:-1], chunk(LINE) + b"0", chunk(LINE) * 2, b"1" + chunk(LINE), chunk(b""), b"a", b""):
        assert not other.startswith(framing.size_line(len(other)))


def test_what_was_relayed_is_looked_at_in_its_order_and_before_it_is_much() -> None:
    backlog, seen = Backlog(), list[tuple[int, float]]()

    def look(what: int, when: float) -> None:
        seen.append((what, when))

    for number in range(MOST_PIECES):
        assert not seen
        backlog.add(look, number, number / 2)
    assert seen == [(number, number / 2) for number in range(MOST_PIECES)]  # as many as may wait

    backlog.add(look, -1, 1.0)
    assert len(seen) == MOST_PIECES
    backlog.add(look, -2, 2.0, LARGE + 1)  # one that does not wait
    assert seen[-2:] == [(-1, 1.0), (-2, 2.0)]
    backlog.add(look, -3, 3.0)
    backlog.look()
    assert seen[-1] == (-3, 3.0)
