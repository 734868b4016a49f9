"""Where messages and documents begin and end, of single heads, bodies and pieces."""

from __future__ import annotations

import re
from itertools import product

import pytest

from llm_headroom.proxy import documents, framing
from llm_headroom.proxy.documents import Events, Lines, UnreadableError, Whole, reader_of
from llm_headroom.proxy.framing import Chunked, FramingError, HeadReader, Length, UntilClose


def request(*lines: str, method: str = "POST") -> framing.RequestHead:
    return framing.request_head("\r\n".join([f"{method} /x HTTP/1.1", *lines, "", ""]).encode("latin-1"))


def response(*lines: str, status: int = 200) -> framing.ResponseHead:
    return framing.response_head("\r\n".join([f"HTTP/1.1 {status} OK", *lines, "", ""]).encode("latin-1"))


# Heads ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("lines", "upgrades"),
    [
        ([], False),
        (["Upgrade: h2c"], False),
        (["Connection: upgrade"], False),
        (["Upgrade: h2c", "Connection: close"], False),
        (["Upgrade: h2c", "Connection: HTTP2-Settings", "connection: UPGRADE"], True),
    ],
)
def test_an_upgrade_is_asked_for_in_two_headers(lines: list[str], *, upgrades: bool) -> None:
    assert request(*lines).upgrades is upgrades


def test_a_head_has_its_fields_by_name_and_several_in_one() -> None:
    head = request("A:  1 ", "B-c:d:e", "a: 2", "Empty:")
    assert (head.method, head.target) == ("POST", "/x")
    assert {name: head.headers[name] for name in ("a", "b-c", "empty")} == {"a": "1, 2", "b-c": "d:e", "empty": ""}
    answer = response("A: é", status=418)
    assert (answer.status, answer.headers["a"]) == (418, "é")


def test_the_host_is_replaced_and_nothing_else() -> None:
    head = request("X-Host: a", "hOST: b", "Z-Host: c").raw
    assert framing.request_head(head).to("h:1") == head.replace(b"hOST: b", b"Host: h:1")


@pytest.mark.parametrize(
    "raw",
    [
        b"POST /x HTTP/2\r\n\r\n",
        b"POST  /x HTTP/1.1\r\n\r\n",
        b"POST /x y HTTP/1.1\r\n\r\n",
        b"/x HTTP/1.1\r\n\r\n",
        b"POST /x HTTP/1.1\r\nA : b\r\n\r\n",
        b"POST /x HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
        b"POST /x HTTP/1.1\r\nA: b\r\n: c\r\n\r\n",
        b"POST /x HTTP/1.1\r\nA: b\r\n\r\nrest",
        b"POST /x HTTP/1.1\nA: b\r\n\r\n",
        b"POST /x HTTP/1.1\r\nA: b\n\r\n",
        b"POST /x HTTP/1.1\r\nA: b\r\n\n",
        b"POST /x HTTP/1.1\r\nA: b\0c\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        b"POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_a_head_that_engines_may_read_otherwise_is_none(raw: bytes) -> None:
    with pytest.raises(FramingError):
        framing.request_head(raw)


@pytest.mark.parametrize(
    "raw", [b"HTTP/2 200\r\n\r\n", b"HTTP/1.1 099 x\r\n\r\n", b"HTTP/1.1 2000\r\n\r\n", b"x\r\n\r\n"]
)
def test_a_head_without_a_status_is_none(raw: bytes) -> None:
    with pytest.raises(FramingError):
        framing.response_head(raw)


def test_a_head_may_be_so_long_and_no_longer() -> None:
    for longer in (0, 1):
        reader = HeadReader()
        piece = b"A" * (framing.MOST_HEAD_BYTES + longer)
        if longer:
            with pytest.raises(FramingError, match="longer than 65536 bytes"):
                reader.take(piece, 0)
        else:
            assert reader.take(piece, 0) == (len(piece), None)
            assert not reader.empty


@pytest.mark.parametrize(
    ("pieces", "taken", "found"),
    [
        ([b"A: b\r\n\r\nrest"], [8], b"A: b\r\n\r\n"),
        ([b"\r\n\r\nA: b\n\nrest"], [10], b"A: b\n\n"),
        ([b"\r\n", b"\n\n", b"A\n\n"], [2, 2, 3], b"A\n\n"),
        ([b"A: b\r\n", b"\r", b"\nrest"], [6, 1, 1], b"A: b\r\n\r\n"),
        ([b"A\r", b"\n\r\n"], [2, 3], b"A\r\n\r\n"),
        ([b"A\n", b"B\n\n\n"], [2, 3], b"A\nB\n\n"),
    ],
)
def test_a_head_ends_at_the_first_empty_line_after_its_first_one(
    pieces: list[bytes], taken: list[int], found: bytes
) -> None:
    reader = HeadReader()
    ends = [reader.take(piece, 0) for piece in pieces]
    assert [end for end, _ in ends] == taken
    assert [head for _, head in ends] == [None] * (len(pieces) - 1) + [found]
    assert reader.empty


def test_every_mix_of_line_ends_ends_a_head_alike_whole_and_byte_by_byte() -> None:
    for rest in product(b"a\r\n", repeat=6):
        data = b"A" + bytes(rest)
        found = re.search(rb"\r?\n\r?\n", data)
        head = None if found is None else data[: found.end()]
        assert HeadReader().take(data, 0) == (len(head or data), head)
        reader = HeadReader()
        heads = (reader.take(data[at : at + 1], 0)[1] for at in range(len(data)))
        assert next(filter(None, heads), None) == head


# Bodies --------------------------------------------------------------------------------------------------------------
BOTH = ("Content-Length: 5", "Transfer-Encoding: chunked")


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        ([], Length),
        (["Content-Length: 5"], Length),
        (["Transfer-Encoding: chunked"], Chunked),
        (["Transfer-Encoding: \t CHUNKED \t"], Chunked),
    ],
)
def test_a_request_s_body_ends_as_its_head_says(lines: list[str], kind: type[framing.Body]) -> None:
    assert type(framing.request_body(request(*lines))) is kind


@pytest.mark.parametrize(
    "lines",
    [
        BOTH,
        ["Transfer-Encoding: chunked, gzip"],
        ["Transfer-Encoding: "],
        ["Transfer-Encoding: gzip, chunked"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        *([f"Transfer-Encoding: {blank}chunked"] for blank in "\x0b\x0c\x1c\x85\xa0"),
        *([f"Content-Length: 5{blank}"] for blank in "\x0b\x0c\x1c\x85\xa0"),
        ["Content-Length: +5"],
        ["Content-Length: 5, 5"],
        ["Content-Length: " + "1" * 19],
        ["Content-Length: ²"],
    ],
)
def test_a_request_whose_end_is_in_doubt_is_refused(lines: list[str]) -> None:
    with pytest.raises(FramingError):
        framing.request_body(request(*lines))


@pytest.mark.parametrize(
    ("method", "status", "lines", "kind"),
    [
        ("POST", 200, [], UntilClose),
        ("POST", 200, ["Content-Length: " + "1" * 18], Length),
        ("POST", 200, BOTH, Chunked),
        ("POST", 200, ["Transfer-Encoding: gzip"], UntilClose),
        ("HEAD", 200, BOTH, Length),
        ("POST", 199, BOTH, Length),
        ("POST", 204, BOTH, Length),
        ("POST", 304, BOTH, Length),
        ("POST", 205, BOTH, Chunked),
        ("POST", 303, BOTH, Chunked),
    ],
)
def test_an_answer_s_body_ends_by_its_status_then_by_its_head(
    method: str, status: int, lines: list[str], kind: type[framing.Body]
) -> None:
    body = framing.response_body(response(*lines, status=status), method)
    assert type(body) is kind
    if kind is Length and "Content-Length: 5" in lines:
        assert body.take(b"x", 0, []) == (0, True)


@pytest.mark.parametrize(
    ("size", "data", "start", "taken", "payload"),
    [
        (0, b"abc", 1, (1, True), []),
        (2, b"abc", 0, (2, True), [b"ab"]),
        (2, b"abc", 1, (3, True), [b"bc"]),
        (3, b"abc", 0, (3, True), [b"abc"]),
        (4, b"abc", 0, (3, False), [b"abc"]),
        (4, b"abc", 3, (3, False), []),
    ],
)
def test_a_body_of_so_many_bytes(
    size: int, data: bytes, start: int, taken: tuple[int, bool], payload: list[bytes]
) -> None:
    found: list[bytes] = []
    assert Length(size).take(data, start, found) == taken
    assert found == payload


def test_a_body_of_so_many_bytes_comes_in_pieces() -> None:
    body, found = Length(5), list[bytes]()
    assert [body.take(b"ab", 0, found) for _ in range(3)] == [(2, False), (2, False), (1, True)]
    assert found == [b"ab", b"ab", b"a"]


def test_a_body_until_the_connection_ends_never_does_by_itself() -> None:
    found: list[bytes] = []
    assert [UntilClose().take(b"abc", start, found) for start in (0, 2, 3)] == [(3, False)] * 3
    assert found == [b"abc", b"c"]


@pytest.mark.parametrize(
    ("pieces", "payload", "between"),
    [
        ([b"3\r\nabc\r\n"], [b"abc"], [True]),
        ([b"3\r\nabc\r\n2\r\nde\r\n"], [b"abc", b"de"], [True]),
        ([b"00A\r\n0123456789\r\n"], [b"0123456789"], [True]),
        ([b" 3 ;x=y\r\nabc\r\n"], [b"abc"], [True]),
        ([b"3\nabc\n"], [b"abc"], [True]),
        ([b"3\r\nabc", b"\r\n"], [b"abc"], [False, True]),
        ([b"3", b"\r\nabc\r\n"], [b"abc"], [False, True]),
        ([b"1", b"3\r\nabc\r\n"], [b"abc\r\n"], [False, False]),
        ([b"3\r\na", b"bc\r\n3"], [b"a", b"bc"], [False, False]),
        ([b"0\r\n"], [], [False]),
        ([b"000000000000003\r\nabc\r\n"], [b"abc"], [True]),
        ([b"0000000000000003\r\nabc\r\n"], [b"abc"], [True]),
        ([b"3\r\nabc\r\n\xff", b""], [b"abc"], [False, False]),
    ],
)
def test_chunks_are_found_however_they_are_written(
    pieces: list[bytes], payload: list[bytes], between: list[bool]
) -> None:
    body, found, states = Chunked(), list[bytes](), list[bool]()
    for piece in pieces:
        assert body.take(piece, 0, found) == (len(piece), False)
        states.append(body.between)
    assert (found, states) == (payload, between)


def test_a_line_of_chunks_may_be_so_long_and_no_longer() -> None:
    body = Chunked()
    half = b"0" * (framing.MOST_LINE_BYTES // 2)
    assert [body.take(half, 0, []) for _ in range(2)] == [(len(half), False)] * 2
    with pytest.raises(FramingError, match="too long"):
        body.take(b"0", 0, [])


@pytest.mark.parametrize(
    "data", [b"z\r\n", b"3\r\nabcd\r\n", b"3\r\nabc\rx\n", b"0x3\r\nabc\r\n", b"-3\r\n", b"1" * 17 + b"\r\n"]
)
def test_what_is_no_chunk_is_an_error(data: bytes) -> None:
    with pytest.raises(FramingError):
        Chunked().take(data, 0, [])


@pytest.mark.parametrize(
    "data",
    [
        b" 3\r\nabc\r\n",
        b"3\nabc\r\n",
        b"3;x\nabc\r\n",
        b"3\r\nabc\n",
        b"0\n",
        b"0\r\n\n",
        b"0\r\nX: y\n",
        b"0\r\nX: y\r\n z\r\n",
    ],
)
def test_chunks_that_engines_read_otherwise_are_a_request_s_error(data: bytes) -> None:
    Chunked().take(data, 0, [])
    body = framing.request_body(request("Transfer-Encoding: chunked"))
    with pytest.raises(FramingError, match="in different ways"):
        body.take(data, 0, [])


def test_what_follows_the_last_chunk_is_left() -> None:
    for trailer in (b"X: y\r\n", b"3\r\nabc\r\n", b""):
        found: list[bytes] = []
        data = b"..1\r\na\r\n0\r\n" + trailer + b"\r\n"
        assert Chunked().take(data + b"rest", 2, found) == (len(data), True)
        assert found == [b"a"]


def test_the_size_of_a_chunk_follows_from_the_whole() -> None:
    sizes = {0: b"no size", 5: b"no size", 6: b"1\r\n", 20: b"f\r\n", 21: b"no size", 22: b"10\r\n"}
    sizes |= {0xFFFFFFFF + 12: b"ffffffff\r\n", 0xFFFFFFF + 11: b"fffffff\r\n", 0xFFFFFFF + 12: b"no size"}
    sizes |= {0xFFFFFFFF + 13: b"no size", 0xFFFFFFFF + 14: b"no size"}
    assert {size: framing.size_line(size) for size in sizes} == sizes


# Documents -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("reader", "data", "expected"),
    [
        (Lines(), b'{"a":1}\n', b'{"a":1}\n'),
        (Lines(), b'{"a":1}', None),
        (Lines(), b'{"a":1}\n\n', None),
        (Lines(), b"\n1\n", None),
        (Events(), b"data: 1\n\n", b" 1"),
        (Events(), b"data:1\n\n", b"1"),
        (Events(), b"event: x\ndata: 1\n\n", b" 1"),
        (Events(), b"event: x\nevent: y\ndata: 1\n\n", None),
        (Events(), b"data: 1\ndata: 2\n\n", None),
        (Events(), b"data: 1\n", None),
        (Events(), b"data: 1\nx", None),
        (Events(), b"data: 1\r\n\r\n", None),
        (Events(), b"id: 1\n\n", None),
        (Events(), b"\n", None),
        (Whole(), b'{"a":1}\n', None),
    ],
)
def test_a_piece_may_be_a_whole_document(reader: documents.Reader, data: bytes, expected: bytes | None) -> None:
    assert reader.alone(data, 0, len(data)) == expected
    wrapped = b"x\n" + data + b"\n\n"
    assert reader.alone(wrapped, 2, 2 + len(data)) == expected


@pytest.mark.parametrize(
    ("reader", "before", "alone"),
    [
        (Lines(), b"1\n", True),
        (Lines(), b"1", False),
        (Events(), b"data: 1\n\n", True),
        (Events(), b": comment\n", True),
        (Events(), b"data: 1\n", False),
        (Events(), b"data", False),
    ],
)
def test_a_piece_that_goes_on_with_another_one_is_no_whole_document(
    reader: documents.Reader, before: bytes, *, alone: bool
) -> None:
    list(reader.feed(before))
    data = b"data: 2\n\n" if isinstance(reader, Events) else b"2\n"
    assert (reader.alone(data, 0, len(data)) is not None) is alone


MOST = documents.MOST_BYTES


@pytest.mark.parametrize(
    ("kind", "pieces"),
    [
        (Lines, [b"1" * (MOST // 2), b"1" * (MOST // 2)]),
        (Whole, [b"1" * (MOST // 2), b"1" * (MOST // 2)]),
        (Events, [b"data:1" + b"1" * (MOST // 2 - 6) + b"\n", b"data:1" + b"1" * (MOST // 2 - 6) + b"\n"]),
    ],
)
def test_a_document_may_be_so_long_and_no_longer(kind: type[documents.Reader], pieces: list[bytes]) -> None:
    reader = kind()
    for piece in pieces:
        assert not list(reader.feed(piece))
    with pytest.raises(UnreadableError, match="too_long"):
        reader.feed(b"data:\n" if kind is Events else b"1")


def test_what_has_been_read_counts_no_more() -> None:
    lines, events = Lines(), Events()
    text = b'"' + b"a" * (MOST // 2) + b'"'
    for _ in range(4):
        assert len(lines.feed(text + b"\n")) == 1
        assert len(events.feed(b"data: " + text + b"\n\n")) == 1


@pytest.mark.parametrize(
    ("kind", "pieces", "found", "at_end"),
    [
        (Lines, [b"1", b"2\n", b" \n\n3"], [12], [3]),
        (Lines, [b"1\n2\n"], [1, 2], []),
        (Events, [b"data: 1\n", b"\n", b"data: 2"], [1], [2]),
        (Events, [b"data: [1,\r\ndata: 2]\r\n\r\n"], [[1, 2]], []),
        (Events, [b"data:\n\n", b"event: x\n\n"], [], []),
        (Events, [b"data: [DONE]\n\n", b"data: 1\n"], [documents.DONE], [1]),
        (Events, [b"data: 1\n\ndata: 2\n\n"], [1, 2], []),
        (Whole, [b"[1,", b"2]"], [], [[1, 2]]),
        (Lines, [b"NaN\n", b'"\\ud800"\n'], [None, "\ud800"], []),
    ],
)
def test_documents_come_as_soon_as_they_are_whole(
    kind: type[documents.Reader], pieces: list[bytes], found: list[object], at_end: list[object]
) -> None:
    reader = kind()
    came = [each for piece in pieces for each in reader.feed(piece)]
    assert [None if each != each else each for each in came] == found  # noqa: PLR0124 - NaN is not itself
    assert list(reader.end()) == at_end
    assert not list(reader.end()) or kind is Whole


@pytest.mark.parametrize("text", [b"{broken", b"[" * 100_000, b"\xff", b"'a'"])
def test_what_is_no_json_is_unreadable(text: bytes) -> None:
    with pytest.raises(UnreadableError, match="format"):
        Lines().feed(text + b"\n")


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("text/event-stream", Events),
        (" Text/Event-Stream ; charset=utf-8", Events),
        ("application/x-ndjson", Lines),
        ("application/jsonl", Lines),
        ("application/json", Whole),
        ("application/json;x", Whole),
        ("text/plain", None),
        ("", None),
    ],
)
def test_a_payload_is_read_by_its_content_type(content_type: str, kind: type | None) -> None:
    reader = reader_of(content_type)
    assert (None if reader is None else type(reader)) is kind
