"""A paged KV cache with a prefix cache: who holds which part of the pool, and what can be evicted.

The pool is counted in segments, not in single blocks: a *shared* segment is one prefix id of a prompt, a *private* one
is everything else that a request has computed. A segment that nobody holds any more stays cached, as both vLLM's free
queue and SGLang's radix tree keep it, and is evicted tail first, least recently used segment first.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_Key = tuple[int, ...]


class KvPool:
    """A pool of `blocks` usable blocks of `block_tokens` tokens each.

    Attributes:
        blocks: usable blocks (without vLLM's null block).
        block_tokens: tokens per block; 1 for SGLang's token pool.
        held: blocks that live requests hold.
        cached: blocks that nobody holds and that a later request may hit or evict.
        evicted: blocks evicted so far.
    """

    __slots__ = ("_caching", "_holders", "_idle", "block_tokens", "blocks", "cached", "evicted", "held")

    def __init__(self, blocks: int, block_tokens: int, *, caching: bool) -> None:
        self.blocks = blocks
        self.block_tokens = block_tokens
        self.held = 0
        self.cached = 0
        self.evicted = 0
        self._caching = caching
        self._holders: dict[_Key, list[int]] = {}  # shared segments in use: [holders, blocks]
        self._idle: OrderedDict[_Key, int] = OrderedDict()  # segments nobody holds: blocks, least recently used first

    @property
    def obtainable(self) -> int:
        """Blocks that could be taken now, by evicting what is cached."""
        return self.blocks - self.held

    def blocks_for(self, tokens: int) -> int:
        """The blocks that so many tokens need."""
        return -(-tokens // self.block_tokens)

    def take(self, blocks: int) -> bool:
        """Hold so many more blocks, evicting cached ones where needed; return False and do nothing if they lack."""
        if self.held + blocks > self.blocks:
            return False
        self.held += blocks
        while self.held + self.cached > self.blocks:
            self._evict(self.held + self.cached - self.blocks)
        return True

    def _evict(self, blocks: int) -> None:
        key, size = next(iter(self._idle.items()))
        gone = min(size, blocks)
        if gone == size:
            del self._idle[key]
        else:
            self._idle[key] = size - gone
        self.cached -= gone
        self.evicted += gone

    def match(self, shared: Sequence[_Key], private: _Key, segment_blocks: int, limit: int) -> tuple[int, int, int]:
        """Look a prompt up, changing nothing.

        Args:
            shared: keys of the prompt's shared segments, first one first.
            private: key of what the request itself had computed before a preemption.
            segment_blocks: blocks of a whole shared segment.
            limit: greatest number of blocks that may be taken from the cache.

        Returns:
            whole shared segments found; blocks found, private ones included; how many of these nobody holds now (which
            holding them would take from `obtainable`).
        """
        found = blocks = idle = 0
        for key in shared:
            if blocks + segment_blocks > limit:
                return found, blocks, idle
            if key in self._holders:
                found, blocks = found + 1, blocks + segment_blocks
            elif self._idle.get(key) == segment_blocks:
                found, blocks, idle = found + 1, blocks + segment_blocks, idle + segment_blocks
            else:
                return found, blocks, idle
        own = min(self._idle.get(private, 0), limit - blocks)
        return found, blocks + own, idle + own

    def hold(self, shared: Sequence[_Key], segment_blocks: int) -> None:
        """Hold cached shared segments that `match` found."""
        for key in shared:
            holder = self._holders.get(key)
            if holder:
                holder[0] += 1
                continue
            del self._idle[key]
            self.cached -= segment_blocks
            self.held += segment_blocks
            self._holders[key] = [1, segment_blocks]

    def reclaim(self, private: _Key, blocks: int) -> None:
        """Hold so many cached blocks of a preempted request's own again; drop the rest of them from the cache."""
        size = self._idle.pop(private, 0)
        self.cached -= size
        self.held += blocks

    def publish(self, key: _Key, blocks: int) -> bool:
        """Turn blocks that one request holds into a shared segment; return False if the cache has that one already."""
        if not self._caching or key in self._holders or key in self._idle:
            return False
        self._holders[key] = [1, blocks]
        return True

    def release(self, shared: Sequence[_Key], private: _Key, blocks: int, full_blocks: int) -> None:
        """Give up what a request holds.

        Args:
            shared: the shared segments that it holds.
            private: key under which its own blocks stay cached.
            blocks: its own blocks.
            full_blocks: those of them that are full of tokens; only these can be cached.
        """
        self.held -= blocks
        if self._caching and full_blocks > 0:
            self._idle[private] = full_blocks
            self.cached += full_blocks
        for key in reversed(shared):  # the tail is evicted before what it hangs on
            holder = self._holders[key]
            holder[0] -= 1
            if holder[0] == 0:
                del self._holders[key]
                self.held -= holder[1]
                self.cached += holder[1]
                self._idle[key] = holder[1]
