"""Pieces of a stream that are recognised instead of parsed: the same is measured, however a piece is found."""

from __future__ import annotations

import asyncio
import re
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_headroom.proxy import framing
from llm_headroom.proxy.backlog import MOST_PIECES, Backlog
from llm_headroom.proxy.measures import Measures
from llm_headroom.proxy.observer import Observer
from llm_headroom.proxy.repeat import Repeat
from llm_headroom.schema import PROXY_FIRST_TOKEN_WAIT, PROXY_SILENCE
from proxied import LAST, LINE, STREAM, chunk
from stream_captures import ANSWERS, Answer

STREAMED = [answer for answer in ANSWERS.values() if answer.chunked]
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


def points(path: str, content_type: str, bodies: list[bytes], *, halves: bool) -> list[object]:
    """All that is measured of chunks that come a millisecond apart, each at once or in two halves."""
    measures = Measures(limit=10)
    observer = Observer(measures, lambda: None)
    observer.request(framing.request_head(f"POST {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()))
    observer.request_body([b'{"stream":true}'])
    observer.request_sent(1.0)
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
            observer.request(framing.request_head(b"POST /api/chat HTTP/1.1\r\n\r\n"))
            observer.request_sent(1.0)
            damaged = DAMAGED[:at] + byte + DAMAGED[at + 1 :]
            for now, piece in enumerate([STREAM, chunk(OLLAMA % (0, b"one")), damaged, chunk(LAST)], 1):
                for part in parts(piece, halves=halves):
                    observer.answer(part, now)
            observer.answer(b"0\r\n\r\n", 6.0)
            observer.broken("upstream_closed", 6.0)
            found.append((observer.blind, settled(measures)))

        assert found[0] == found[1], (at, damaged)


@pytest.mark.parametrize(
    "name", ["ollama/chat_stream.ndjson", "ollama/v1_chat_stream.sse", "llamacpp/chat_stream_0.sse"]
)
def test_most_pieces_of_a_stream_are_repeats(name: str) -> None:
    bodies = [body for body in documents(ANSWERS[name]) if Repeat.possible(body)]
    again = [Repeat(one)(chunk(other)) for one, other in pairwise(bodies)]

    assert sum(again) >= len(documents(ANSWERS[name])) * 0.7


def test_a_repeat_is_one_whole_chunk_with_text() -> None:
    repeat = Repeat(LINE)

    assert repeat(chunk(LINE.replace(b'"a"', b'"another"')))
    for other in (
        chunk(LINE)[:-1],
        chunk(LINE) + b"0",
        chunk(LINE) * 2,
        chunk(LINE.replace(b'"a"', b'""')),
        chunk(LINE.replace(b'"a"', b'"a\\n"')),
        chunk(LINE.replace(b"false", b"true")),
        b"1" + chunk(LINE),
    ):
        assert not repeat(other)


def test_what_was_relayed_is_looked_at_in_its_order_and_in_time() -> None:
    async def main() -> list[bytes]:
        backlog, seen, last = Backlog(), list[bytes](), asyncio.Event()

        def look(data: bytes) -> None:
            seen.append(data)
            if data == b"last":
                last.set()

        for number in range(MOST_PIECES):
            backlog.add(look, 1, b"%d" % number)
        assert len(seen) == MOST_PIECES  # as many as may wait
        backlog.add(look, 1, b"more")
        assert len(seen) == MOST_PIECES
        backlog.look()
        backlog.add(look, 1, b"last")
        await last.wait()  # nobody asks for it
        return seen

    assert asyncio.run(asyncio.wait_for(main(), 30)) == [
        *(b"%d" % each for each in range(MOST_PIECES)),
        b"more",
        b"last",
    ]
