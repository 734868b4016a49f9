"""What is seen of one connection: which answers belong to which requests, when it ends, and what ends the seeing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llm_headroom.proxy import framing
from llm_headroom.proxy.measures import Measures
from llm_headroom.proxy.observer import Observer
from measured_values import told
from proxied import chunk

if TYPE_CHECKING:
    from collections.abc import Sequence

SHORT = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}"
LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"
CLOSING = b"HTTP/1.1 200 OK\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"


class Seen:
    """A connection's observer with requests that were sent, and how often it has said that something went on."""

    def __init__(self, *paths: str) -> None:
        self.measures = Measures(limit=10)
        self.progress = 0
        self.observer = Observer(self.measures, self._progressed)
        for path in paths:
            self.ask(path)

    def _progressed(self) -> None:
        self.progress += 1

    def ask(self, path: str, body: bytes = b"{}") -> None:
        """Another request, sent at 1 s."""
        self.observer.request(framing.request_head(f"POST {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()), 1.0)
        self.observer.request_body([body[:1], body[1:]], 1.0)
        self.observer.request_sent([], 1.0)

    @property
    def state(self) -> tuple[int, int, bool, int]:
        """How many requests are pending and answered, whether it is blind, and its progress."""
        return len(self.observer.pending), self.observer.answered, self.observer.blind, self.progress


@pytest.mark.parametrize(
    ("answers", "state"),
    [
        ([], (2, 0, False, 0)),
        ([SHORT[:20]], (2, 0, False, 0)),
        ([LONG], (2, 0, False, 1)),
        ([SHORT], (1, 1, False, 2)),
        ([SHORT, SHORT], (0, 2, False, 4)),
        ([SHORT + SHORT], (0, 2, False, 4)),
        ([b"HTTP/1.1 100 Continue\r\n\r\n"], (2, 0, False, 0)),
        ([b"HTTP/1.1 100 Continue\r\n\r\n" + SHORT], (1, 1, False, 2)),
        ([SHORT, SHORT, b"x"], (0, 2, True, 5)),
        ([b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + SHORT], (0, 0, True, 1)),
        ([SHORT, b"HTTP/1.1 101 Switching Protocols\r\n\r\n", SHORT], (0, 1, True, 3)),
        ([b"what?\r\n\r\n", SHORT], (0, 0, True, 1)),
    ],
)
def test_answers_belong_to_requests_in_their_order(answers: Sequence[bytes], state: tuple[int, int, bool, int]) -> None:
    seen = Seen("/api/chat", "/api/tags")
    for each in answers:
        seen.observer.answer(each, 2.0)
    assert seen.state == state


@pytest.mark.parametrize(
    ("answer", "until_close", "ends"),
    [(b"", False, False), (SHORT, False, True), (LONG, False, False), (CLOSING, True, True), (CHUNKED, False, False)],
)
def test_only_an_answer_without_a_length_ends_with_the_connection(
    answer: bytes, *, until_close: bool, ends: bool
) -> None:
    seen = Seen("/api/chat")
    seen.measures.backlog.passed.append((seen.observer.answer, answer, 2.0))
    assert seen.observer.until_close is until_close
    seen.observer.end_of_answers(b"", 3.0)
    assert (not seen.observer.pending) is ends
    assert seen.observer.until_close is False
    seen.observer.broken("upstream_closed", 4.0)
    assert not seen.observer.pending
    assert seen.observer.answered == 1


def test_of_a_blind_observer_nobody_knows_how_its_answer_ends() -> None:
    seen = Seen("/api/chat")
    seen.observer.answer(b"what?\r\n\r\n", 2.0)
    assert seen.observer.until_close
    seen.ask("/api/chat")
    seen.observer.answer(SHORT, 3.0)
    seen.observer.end_of_answers(b"", 3.0)
    seen.observer.broken("aborted", 4.0)
    assert seen.state == (0, 0, True, 1)
    assert told(seen.measures) == {}


def test_all_that_is_pending_breaks_for_the_same_reason() -> None:
    seen = Seen("/api/chat", "/api/tags", "/api/generate")
    seen.observer.answer(LONG, 2.0)
    seen.observer.unreachable(502, 3.0)
    assert seen.state == (0, 3, False, 1)
    assert told(seen.measures) == {
        "requests_failed_total{upstream_unreachable}": 2,
        "http_responses_total{2xx}": 1,
        "http_responses_total{5xx}": 1,
        "slo_requests_total{availability}": 2,
    }


def test_pieces_of_a_body_are_of_the_request_that_is_arriving() -> None:
    seen = Seen()
    seen.measures.label("m")
    seen.ask("/api/chat", b'{"model":"m"}')
    seen.observer.request_body([b"of no request"], 1.0)
    seen.observer.request_sent([], 9.0)
    assert told(seen.measures)["requests_running{m}"] == 1


def test_an_answer_to_no_request_is_said_to_be_one(caplog: pytest.LogCaptureFixture) -> None:
    seen = Seen("/api/chat")
    seen.observer.answer(SHORT + SHORT, 2.0)
    assert [vars(record)["reason"] for record in caplog.records] == ["an answer to no request"]


PART = b'{"model":"m","message":{"content":"a"}}      \n'
"""46 bytes, since 2e is no number in JSON."""


@pytest.mark.parametrize(
    ("head", "outputs"),
    [
        (b"Transfer-Encoding: chunked\r\n\r\n" + chunk(PART), 2),
        (b"Transfer-Encoding: chunked\r\n\r\n" + chunk(PART) + b"%x\r\n" % len(chunk(PART)), 1),
        (b"Content-Length: 999\r\n\r\n" + PART, 1),
        (b"\r\n" + PART, 1),
    ],
)
def test_what_looks_like_a_chunk_is_one_only_where_one_may_begin(head: bytes, outputs: int) -> None:
    seen = Seen("/api/chat")
    seen.observer.answer(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n" + head, 2.0)
    seen.observer.answer(chunk(PART), 3.0)
    assert told(seen.measures).get("inter_token_latency_seconds{m}", 0) == outputs - 1


def test_whatever_the_looking_raises_ends_the_looking_alone(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: str) -> bool:
        raise LookupError("broken on purpose")

    seen = Seen("/api/chat", "/api/chat")
    seen.measures.serves = broken
    seen.observer.answer(SHORT.replace(b": 2", b": 13").replace(b"{}", b'{"model":"m"}'), 2.0)
    assert seen.state == (0, 0, True, 2)
    assert [vars(record)["reason"] for record in caplog.records] == ["LookupError"]
