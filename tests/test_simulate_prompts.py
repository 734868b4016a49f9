"""What requests in JSON ask simulated engines for."""

from __future__ import annotations

from typing import Any

import pytest

from llm_headroom.simulate.live import Feed
from llm_headroom.simulate.prompts import request_of, whole, words_of, words_of_messages
from llm_headroom.simulate.traffic import Request


def words(count: int) -> list[str]:
    return [f"w{number}" for number in range(count)]


@pytest.mark.parametrize(
    ("document", "said", "prompt", "output", "blocks"),
    [
        ({}, 0, 1, 10, 0),
        ({}, 3, 3, 10, 0),
        ({}, 63, 63, 10, 0),
        ({}, 64, 64, 10, 1),
        ({}, 127, 127, 10, 1),
        ({}, 128, 128, 10, 2),
        ({"prompt_tokens": 500}, 128, 500, 10, 0),
        ({"output_tokens": 4}, 3, 3, 4, 0),
        ({"output_tokens": 10}, 3, 3, 10, 0),
        ({"output_tokens": 40}, 3, 3, 10, 0),
        ({"prompt_tokens": 1, "output_tokens": 1}, 3, 1, 1, 0),
    ],
)
def test_lengths_of_a_request(document: dict[str, Any], said: int, prompt: int, output: int, blocks: int) -> None:
    made = request_of(document, words(said), 10)
    assert (made.arrival, made.prompt_tokens, made.output_tokens, made.max_tokens) == (0.0, prompt, output, 10)
    assert (len(made.prefix), made.prefix_block_tokens) == (blocks, 64)


def test_a_block_is_shared_where_it_and_all_before_it_are_the_same() -> None:
    one, longer = (request_of({}, words(count), 10).prefix for count in (200, 300))
    other = request_of({}, [*words(64), "x", *words(200)[65:]], 10).prefix
    first = request_of({}, ["x", *words(200)[1:]], 10).prefix

    assert longer[:3] == one
    assert [mine == theirs for mine, theirs in zip(one, other, strict=True)] == [True, False, False]
    assert not set(first) & set(one)
    assert len(set(longer)) == 4


@pytest.mark.parametrize("value", [0, -1, 1.0, "1", True, None])
def test_a_length_is_a_whole_number_of_at_least_one(value: object) -> None:
    with pytest.raises(ValueError, match=r"^output_tokens must be a whole number of at least 1$"):
        whole("output_tokens", value)
    assert whole("output_tokens", 1) == 1


def test_words_of_texts_tokens_and_conversations() -> None:
    assert words_of(" a  b\nc ") == ["a", "b", "c"]
    assert words_of([7, 8]) == ["7", "8"]
    for wrong in (None, 5, ["a"], [1, "a"], {"a": 1}):
        with pytest.raises(ValueError, match=r"one text, or one list of token ids"):
            words_of(wrong)
    conversation = [
        {"role": "system", "content": "a b"},
        {"content": [{"type": "text", "text": "c d"}, {"type": "image"}, "e"]},
        {"content": None},
        {},
    ]
    assert words_of_messages(conversation) == ["a", "b", "c", "d", "e"]
    for broken in (None, "a", ["a"], [{"content": "a"}, "b"], {"content": "a"}):
        with pytest.raises(ValueError, match=r"a list of messages"):
            words_of_messages(broken)


def test_streams_of_requests_are_merged_and_begin_when_they_were_added() -> None:
    def stream(*arrivals: float) -> list[Request]:
        return [Request(arrival, 1, 1) for arrival in arrivals]

    feed = Feed()
    feed.add(stream(0.0, 2.0, 4.0), 10.0, "a")
    feed.add(stream(1.0, 1.5), 10.5, "b")
    feed.add([], 0.0, "c")

    assert feed.next_arrival == 10.0
    assert [(model, one.arrival) for model, one in feed.until(12.0)] == [
        ("a", 10.0),
        ("b", 11.5),
        ("a", 12.0),
        ("b", 12.0),
    ]
    assert feed.next_arrival == 14.0
    assert [(model, one.arrival) for model, one in feed.until(13.9)] == []
    assert [(model, one.arrival) for model, one in feed.until(20.0)] == [("a", 14.0)]
    assert feed.next_arrival == float("inf")
