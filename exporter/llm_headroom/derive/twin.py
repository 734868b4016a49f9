"""A small twin of an engine: replays requests faster than time, by what a step was learned to cost.

Continuous batching with a paged KV cache, first come first served, chunked prefill, and preemption of the last
admitted; one that prefills first decodes only in steps without prompts. Steps that only decode are skipped over, so
that the work grows with the requests and not with their tokens.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from llm_headroom.frozen import frozen_named

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_headroom.derive.step_cost import StepCost
    from llm_headroom.derive.traffic import Call

KV_CACHE: Final = "kv_cache"
COMPUTE: Final = "compute"
CONCURRENCY: Final = "concurrency"
STEP_TOKENS: Final = 4096
"""Tokens that a step computes at most; engines do not report theirs."""
_LONGEST_SHARE: Final = 0.45
"""Of the cache that one prompt, or one answer, may take: an engine refuses what does not fit."""


@frozen_named
class Engine:
    """What the twin stands for: the cost of a step, KV tokens, running requests, and the tokens a sequence gets in one.

    Requests are admitted up to `ceiling`, a share of the KV tokens; what runs may grow beyond. `shared` tokens are held
    once for all. `prefill_first` is how SGLang schedules; vLLM decodes in every step.
    """

    cost: StepCost
    capacity: float
    ceiling: float = 1.0
    shared: float = 0.0
    limit: float = math.inf
    per_step: float = 1.0
    prefill_first: bool = False
    step_tokens: int = STEP_TOKENS


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What requests suffered: times to first tokens, inter-token latencies, and how many of them were too slow.

    `objective` is that of first tokens in seconds. `first_seconds` are the times to them, infinite of those that were
    late and had not come. `waits` are the seconds that requests waited for their first token, by what held them up.
    """

    objective: float
    first_seconds: list[float] = field(default_factory=list)
    tokens: float = 0.0
    slow_tokens: float = 0.0
    waits: dict[str, float]

    @property
    def firsts(self) -> int:
        """First tokens, and those that were late and had not come."""
        return len(self.first_seconds)

    @property
    def slow_firsts(self) -> int:
        """Those of them that were later than the objective."""
        return sum(each > self.objective for each in self.first_seconds)


def replay(calls: Sequence[Call], engine: Engine, *, first: float, between: float, since: float = 0.0) -> Outcome:
    """Replay requests in order of arrival; those that arrive from `since` on count.

    `first` and `between` are the objectives of the first token and of inter-token latency in seconds.
    """
    batch = _Batch(calls, engine, first, between, since)
    batch.run()
    return batch.outcome


class _Batch:
    """The engine's state. A sequence's tokens follow from the decode step at which it began to decode."""

    __slots__ = (
        "_admitted",
        "_arrivals",
        "_arrived",
        "_begun",
        "_blocked",
        "_calls",
        "_computed",
        "_context",
        "_decoded_at",
        "_decoding",
        "_due",
        "_ends",
        "_engine",
        "_generated",
        "_held",
        "_now",
        "_objectives",
        "_queue",
        "_running",
        "_since",
        "_steps",
        "_whole",
        "outcome",
    )

    def __init__(self, calls: Sequence[Call], engine: Engine, first: float, between: float, since: float) -> None:
        self.outcome = Outcome(objective=first, waits={KV_CACHE: 0.0, COMPUTE: 0.0, CONCURRENCY: 0.0})
        longest = max(1, int((engine.capacity - engine.shared) * _LONGEST_SHARE))
        self._calls = [_fitting(each, longest) for each in calls]
        self._engine, self._objectives, self._since = engine, (first, between), since
        self._arrivals = [*(call.arrival for call in self._calls), math.inf]
        self._whole = [call.prompt for call in self._calls]  # tokens to compute before it decodes
        self._now = calls[0].arrival if calls else 0.0
        self._arrived = 0
        self._queue: deque[int] = deque()
        self._computed: dict[int, int] = {}  # of those in prefill, in order of admission
        self._admitted: list[int] = []  # in order; some have ended
        self._generated = [0] * len(calls)  # tokens when decoding began, or was given up
        self._begun: dict[int, int] = {}  # decode step at which those that decode began
        self._due: dict[int, int] = {}
        self._ends: list[tuple[int, int]] = []  # (decode step, sequence); one that was preempted since is stale
        self._running = self._decoding = self._steps = 0
        self._held = self._context = engine.shared
        self._decoded_at = self._now
        self._blocked = COMPUTE

    def run(self) -> None:
        """Step until the last request has had its first token, or is late for it."""
        arrivals, queue = self._arrivals, self._queue
        if not self._calls:
            return
        end = arrivals[-2] + self._objectives[0]
        while self._now <= end or self._arrived < len(self._calls):
            while arrivals[self._arrived] <= self._now:
                queue.append(self._arrived)
                self._arrived += 1
            if self._running or queue:
                self._step()
            elif self._arrived < len(self._calls):
                self._now = self._decoded_at = arrivals[self._arrived]
            else:
                break
        for one in (*self._queue, *self._computed):
            if not self._generated[one]:
                self._count_first(one, unserved=True)

    def _count_first(self, one: int, *, unserved: bool = False) -> None:
        arrival = self._arrivals[one]
        waited = self._now - arrival
        slow = waited > self._objectives[0]
        if arrival >= self._since and (slow or not unserved):
            self.outcome.first_seconds.append(math.inf if unserved else waited)

    def _step(self) -> None:
        engine = self._engine
        before = len(self._queue)
        while self._decoding and self._held + self._decoding * engine.per_step > engine.capacity:
            self._preempt()
        preempted = len(self._queue) > before
        self._blocked = COMPUTE
        chunks = self._schedule(admit=not preempted) if self._queue or self._computed else []
        if preempted:
            self._blocked = KV_CACHE
        if chunks:
            self._prefill(chunks)
        elif self._decoding:
            self._glide()
        else:  # prompts fill the cache before one of them is whole
            self._preempt()
        ends = self._ends
        while ends and ends[0][0] <= self._steps:
            due, one = heapq.heappop(ends)
            if self._due.get(one) == due:
                self._withdraw(one)
                self._running -= 1

    def _schedule(self, *, admit: bool) -> list[tuple[int, int]]:
        """The prompts, and how much of each, that the next step computes; admits from the queue."""
        engine, queue = self._engine, self._queue
        budget = engine.step_tokens - (0 if engine.prefill_first else self._decoding)
        room = engine.capacity - self._held - self._decoding * engine.per_step
        chunks = []
        for one, computed in self._computed.items():
            part = int(min(self._whole[one] - computed, budget, room))
            if part <= 0:
                break
            chunks.append((one, part))
            budget -= part
            room -= part
        reserved = engine.capacity * (1.0 - engine.ceiling)
        while admit and queue and budget > 0:
            one = queue[0]
            target = self._whole[one]
            if self._running >= engine.limit:
                self._blocked = CONCURRENCY
                break
            if target - self._calls[one].shared > room - reserved and self._running:
                self._blocked = KV_CACHE
                break
            queue.popleft()
            self._running += 1
            self._admitted.append(one)
            call = self._calls[one]
            begin = call.shared if self._generated[one] else call.cached
            self._computed[one] = begin
            self._held += begin - call.shared
            part = min(target - begin, budget)
            chunks.append((one, part))
            budget -= part
            room -= begin - call.shared + part
        return chunks

    def _pass(self, seconds: float) -> None:
        self._now += seconds
        waits = self.outcome.waits
        if self._queue:
            waits[self._blocked] += seconds * len(self._queue)
        if self._computed:
            waits[COMPUTE] += seconds * len(self._computed)

    def _prefill(self, chunks: Sequence[tuple[int, int]]) -> None:
        engine, cost = self._engine, self._engine.cost
        tokens = pairs = 0.0
        for one, part in chunks:
            tokens += part
            pairs += part * (self._computed[one] + part / 2.0)
        decodes = self._decoding > 0 and not engine.prefill_first
        seconds = cost.prefill_seconds(tokens, pairs)
        if decodes:
            seconds += cost.decode_seconds(self._decoding, self._context)
        elif engine.prefill_first:  # latencies have what such a step costs beside its tokens with the tokens
            seconds = max(seconds, cost.step)
        else:
            seconds += cost.step
        self._pass(seconds)
        if decodes:
            self._decode(1, self._now - self._decoded_at)
        for one, part in chunks:
            self._computed[one] += part
            self._held += part
            if self._computed[one] >= self._whole[one]:
                self._begin_decode(one)
        if decodes or self._decoding == 0:
            self._decoded_at = self._now

    def _begin_decode(self, one: int) -> None:
        del self._computed[one]
        if not self._generated[one]:
            self._count_first(one)
        if not self._decoding:
            self._decoded_at = self._now
        self._context += self._whole[one] - self._calls[one].shared
        self._generated[one] += 1
        self._begun[one] = self._steps
        self._decoding += 1
        left = max(0.0, self._calls[one].answer - self._generated[one])
        due = self._due[one] = self._steps + math.ceil(left / self._engine.per_step)
        heapq.heappush(self._ends, (due, one))

    def _decode(self, steps: int, seconds: float) -> None:
        """Count decode steps, each `seconds` after the one before."""
        engine = self._engine
        grown = steps * self._decoding * engine.per_step
        self._steps += steps
        self._held += grown
        self._context += grown
        if self._now >= self._since:
            tokens = float(steps * self._decoding)
            self.outcome.tokens += tokens
            if seconds > self._objectives[1]:
                self.outcome.slow_tokens += tokens

    def _glide(self) -> None:
        """Decode until a sequence ends, a request arrives that could be admitted, or the cache is full."""
        engine, cost = self._engine, self._engine.cost
        seconds = cost.decode_seconds(self._decoding, self._context)
        steps = 1
        if self._decoded_at >= self._now:  # else the first step ends a pause in which others were prefilled
            ends = self._ends
            while self._due.get(ends[0][1]) != ends[0][0]:
                heapq.heappop(ends)
            room = (engine.capacity - self._held) / (self._decoding * engine.per_step)
            steps = max(1, min(ends[0][0] - self._steps, int(room)))
            until = math.inf if self._queue else (self._arrivals[self._arrived] - self._now) / seconds
            if until < steps:
                steps = max(1, math.ceil(until))
        growth = cost.context * self._decoding * engine.per_step * (steps - 1) / 2.0
        since = self._decoded_at if steps == 1 else self._now
        self._pass(steps * (seconds + growth))
        self._decode(steps, (self._now - since) / steps)
        self._decoded_at = self._now

    def _withdraw(self, one: int) -> float:
        """Take a sequence that decodes out of the batch; the tokens that it has by now."""
        decoded = (self._steps - self._begun.pop(one)) * self._engine.per_step
        call = self._calls[one]
        held = call.prompt - call.shared + self._generated[one] - 1 + decoded
        self._held -= held
        self._context -= held
        self._decoding -= 1
        del self._due[one]
        return self._generated[one] + decoded

    def _preempt(self) -> None:
        """Take the last admitted out of the batch, back to the head of the queue; it computes its tokens again."""
        one = self._admitted.pop()
        if one in self._begun:
            self._generated[one] = int(self._withdraw(one))
            self._whole[one] = self._calls[one].prompt + self._generated[one]
        elif one in self._computed:
            self._held -= self._computed.pop(one) - self._calls[one].shared
        else:
            return  # has ended
        self._running -= 1
        self._queue.appendleft(one)


def _fitting(call: Call, longest: int) -> Call:
    """The call, with no more tokens of its own than an engine takes."""
    if call.prompt - call.shared + call.answer <= longest:
        return call
    prompt = call.shared + min(call.prompt - call.shared, longest)
    return call._replace(prompt=prompt, cached=min(call.cached, prompt - 1), answer=min(call.answer, longest))
