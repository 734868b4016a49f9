"""The paged cache of simulated engines: what is held, what is found again, and what has to go."""

from __future__ import annotations

import pytest

from llm_headroom.simulate.kv_pool import KvPool

ONE, TWO, MINE = (1,), (2,), (-1, 7)


def state(pool: KvPool) -> tuple[int, int, int, int]:
    """Blocks that are held, cached, obtainable and evicted so far."""
    return pool.held, pool.cached, pool.obtainable, pool.evicted


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_tokens_take_whole_blocks(tokens: int, blocks: int) -> None:
    assert KvPool(10, 4, caching=True).blocks_for(tokens) == blocks


def test_no_more_is_taken_than_there_is() -> None:
    pool = KvPool(10, 4, caching=True)
    assert pool.take(4)
    assert not pool.take(7)
    assert state(pool) == (4, 0, 6, 0)
    assert pool.take(6)
    assert pool.take(0)
    assert not pool.take(1)


def left() -> KvPool:
    """A pool after a request that held a shared segment of 2 blocks, and 4 of its own of which 3 were full."""
    pool = KvPool(10, 4, caching=True)
    assert pool.take(6)
    assert pool.publish(ONE, 2)
    assert not pool.publish(ONE, 2)
    pool.release([ONE], MINE, 4, 3)
    assert state(pool) == (0, 5, 10, 0)
    return pool


@pytest.mark.parametrize(
    ("keys", "segment", "limit", "found"),
    [
        ([ONE], 2, 9, (1, 5, 5)),
        ([ONE], 2, 4, (1, 4, 4)),
        ([ONE], 2, 2, (1, 2, 2)),
        ([ONE], 2, 1, (0, 0, 0)),
        ([ONE], 3, 9, (0, 0, 0)),
        ([ONE, TWO], 2, 9, (1, 2, 2)),
        ([TWO, ONE], 2, 9, (0, 0, 0)),
        ([], 2, 9, (0, 3, 3)),
        ([], 2, 1, (0, 1, 1)),
    ],
)
def test_what_is_found_of_a_prompt(
    keys: list[tuple[int, ...]], segment: int, limit: int, found: tuple[int, int, int]
) -> None:
    pool = left()
    assert pool.match(keys, MINE, segment, limit) == found
    assert state(pool) == (0, 5, 10, 0)


def test_a_segment_is_held_until_its_last_holder_has_gone() -> None:
    pool = left()
    pool.hold([ONE], 2)
    assert state(pool) == (2, 3, 8, 0)
    assert not pool.publish(ONE, 2)
    pool.hold([ONE], 2)
    assert state(pool) == (2, 3, 8, 0)
    assert pool.match([ONE], MINE, 2, 9) == (1, 5, 3)
    pool.release([ONE], (-1, 8), 0, 0)
    assert state(pool) == (2, 3, 8, 0)
    pool.release([ONE], (-1, 8), 0, 0)
    assert state(pool) == (0, 5, 10, 0)


def test_a_request_finds_its_own_again_and_the_rest_of_it_is_dropped() -> None:
    pool = left()
    pool.reclaim(MINE, 1)
    assert state(pool) == (1, 2, 9, 0)
    pool.reclaim(MINE, 0)
    assert state(pool) == (1, 2, 9, 0)
    assert pool.match([], MINE, 2, 9) == (0, 0, 0)


def test_the_least_recently_used_goes_first_and_only_as_much_as_is_needed() -> None:
    pool = left()
    assert pool.take(5)
    assert state(pool) == (5, 5, 5, 0)
    assert pool.take(2)
    assert state(pool) == (7, 3, 3, 2)
    assert pool.match([ONE], MINE, 2, 9) == (1, 3, 3)
    assert pool.take(1)
    assert pool.match([ONE], MINE, 2, 9) == (1, 2, 2)
    assert pool.take(2)
    assert state(pool) == (10, 0, 0, 5)
    assert pool.match([ONE], MINE, 2, 9) == (0, 0, 0)


def test_of_several_segments_the_tail_is_evicted_before_what_it_hangs_on() -> None:
    pool = KvPool(10, 4, caching=True)
    assert pool.take(4)
    assert pool.publish(ONE, 2)
    assert pool.publish(TWO, 2)
    pool.release([ONE, TWO], MINE, 0, 0)
    assert pool.take(8)
    assert pool.match([ONE, TWO], MINE, 2, 9) == (1, 2, 2)


def test_without_caching_nothing_is_found_again() -> None:
    pool = KvPool(10, 4, caching=False)
    assert pool.take(6)
    assert not pool.publish(ONE, 2)
    pool.release([], MINE, 6, 5)
    assert state(pool) == (0, 0, 10, 0)
    assert pool.match([ONE], MINE, 2, 9) == (0, 0, 0)
