"""One engine with continuous batching, in virtual time: vLLM V1's scheduler or SGLang's.

The cost of a step in Python does not depend on the number of decoding sequences: all of them advance in lockstep, so
the engine counts decode steps, and a sequence knows at which one it ends and at which ones it needs a new block. Work
per sequence is done only when it is admitted, prefilled, preempted, watched token by token, or ends.

Facts: vllm-project/vllm vllm/v1/core/sched/scheduler.py (0.28); sgl-project/sglang
python/sglang/srt/managers/{schedule_policy,schedule_batch,scheduler}.py (0.5).
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from typing import TYPE_CHECKING

from llm_headroom.simulate.engine_state import EngineConfig, EngineReading, Outcome
from llm_headroom.simulate.kv_pool import KvPool
from llm_headroom.simulate.measures import Measures
from llm_headroom.simulate.sequence import Sequence, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_headroom.simulate.traffic import Request

# sgl-project/sglang: SGLANG_INIT_NEW_TOKEN_RATIO, _MIN_NEW_TOKEN_RATIO_FACTOR, _NEW_TOKEN_RATIO_DECAY_STEPS,
# SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION, SGLANG_RETRACT_DECODE_STEPS
_INITIAL_RATIO = 0.7
_LEAST_RATIO_FACTOR = 0.14
_RATIO_DECAY_STEPS = 600
_RESERVE_AT_MOST = 4096
_RETRACT_HEADROOM_STEPS = 20


class Engine:
    """One simulated engine (one data-parallel replica).

    Time is virtual and moves only in `advance`. The same configuration, seed and calls give the same run.

    Attributes:
        config: as given.
        now: virtual seconds.
        slowdown: factor on the duration of every step that begins from now on; 1.0 is healthy.
    """

    def __init__(self, config: EngineConfig, seed: int = 0, start: float = 0.0) -> None:
        self.config = config
        self.now = start
        self.slowdown = 1.0
        self._chance = random.Random(seed) if config.step_jitter else None  # noqa: S311  simulation, not security
        self._numbers = 0
        self._inbox: list[tuple[float, int, Sequence]] = []
        self._not_before = start  # the end of a stall
        self._restart_at: float | None = None
        self._fresh(start)

    def _fresh(self, start: float) -> None:
        config = self.config
        self._started_at = start
        self._measures = Measures(config.bounds)
        self._pool = KvPool(config.usable_blocks, config.block_tokens, caching=config.prefix_caching)
        self._waiting: deque[Sequence] = deque()
        self._running: dict[int, Sequence] = {}  # in order of admission
        self._prefilling: dict[int, Sequence] = {}
        self._watched: dict[int, Sequence] = {}  # decoding, with a client that waits for each token
        self._decoding = 0
        self._context = 0  # tokens that the decoding sequences have in the cache
        self._decode_steps = 0
        self._due: dict[int, list[Sequence]] = {}  # decode step -> sequences that may end with it
        self._block_phases = [0] * config.block_tokens  # decode step modulo block -> sequences that need a block
        self._last_decode: float
        self._entered: list[float] = []  # times at which sequences began to decode since the last decode step
        self._step_end = math.inf
        self._chunks: list[tuple[Sequence, int]]  # prompts, or parts of them, of the step in flight
        self._decodes: bool  # whether the step in flight advances the decoding sequences
        self._aborting: list[Sequence] = []
        self._ratio = self._first_ratio = min(_INITIAL_RATIO * config.schedule_conservativeness, 1.0)
        self._full = False  # SGLang's batch_is_full: no admission is tried until a request leaves

    # -- requests ------------------------------------------------------------------------------------------------------

    def submit(
        self,
        request: Request,
        on_token: Callable[[float, int], None] | None = None,
        on_end: Callable[[Outcome], None] | None = None,
    ) -> int:
        """Hand over a request, now or for later; return its number.

        Args:
            request: `arrival` may lie in the future; one in the past counts from its own time, but is seen now.
            on_token: called with the time and the index (from 1) of every token; may itself submit requests.
            on_end: called once, for rejected requests too; those that arrive now are rejected before this returns.
        """
        self._numbers += 1
        sequence = Sequence(self._numbers, request, on_token, on_end)
        if request.arrival <= self.now and (self._restart_at is not None or self.now >= self._not_before):
            self._receive(sequence)
        else:
            heapq.heappush(self._inbox, (request.arrival, self._numbers, sequence))
        return self._numbers

    def _receive(self, sequence: Sequence) -> None:
        config, request = self.config, sequence.request
        self._measures.submitted += 1
        if self._restart_at is not None:
            self._end(sequence, "rejected_down")
        elif request.prompt_tokens + request.output_tokens > config.longest:
            self._end(sequence, "rejected_length")
        elif config.max_queue is not None and len(self._waiting) >= config.max_queue:
            self._end(sequence, "rejected_queue")
        else:
            if config.scheduler == "sglang":  # it lowers max_new_tokens to what can fit
                sequence.allowed = max(
                    min(sequence.allowed, config.longest - request.prompt_tokens), request.output_tokens
                )
            self._waiting.append(sequence)

    def abort(self, number: int) -> None:
        """Drop a request whose client has gone; a running one ends with its step. Unknown numbers are ignored."""
        sequence = self._running.get(number) or next((one for one in self._waiting if one.number == number), None)
        if sequence is None:
            self._inbox = [one for one in self._inbox if one[1] != number]
            heapq.heapify(self._inbox)
        elif sequence.state is State.WAITING:
            self._waiting.remove(sequence)
            self._end(sequence, "abort")
        elif self._step_end == math.inf:
            self._leave(sequence, "abort")
        else:
            self._aborting.append(sequence)

    # -- misbehaviour --------------------------------------------------------------------------------------------------

    def stall(self, seconds: float) -> None:
        """Do nothing for so long: gauges freeze, counters stay, the step in flight ends that much later."""
        self._not_before = max(self._not_before, self.now) + seconds
        self._step_end += seconds

    def crash(self, restart_after: float) -> None:
        """Die now and start again with empty state and counters; every request ends with the reason `crash`."""
        lost = [*self._running.values(), *self._waiting]
        self._fresh(self.now + restart_after)
        self._restart_at = self.now + restart_after
        self._not_before = self.now
        for sequence in lost:
            sequence.tell_end("crash", self.now)

    # -- time ----------------------------------------------------------------------------------------------------------

    @property
    def next_event(self) -> float | None:
        """When something happens next; None while there is nothing to do."""
        moment = self._next()
        return None if moment == math.inf else moment

    def _next(self) -> float:
        arrival = self._inbox[0][0] if self._inbox else math.inf
        if self._restart_at is not None:
            return min(self._restart_at, max(arrival, self.now))
        arrival = max(arrival, self._not_before, self.now)
        if self._step_end == math.inf and (self._waiting or self._running):
            return max(self.now, self._not_before)
        return min(self._step_end, arrival)

    def advance(self, until: float) -> None:
        """Move virtual time to `until`; a step that would end later is in flight then.

        Raises:
            ValueError: `until` is in the past.
        """
        if until < self.now:
            raise ValueError(f"virtual time is {self.now} s and cannot go back to {until} s")
        while (moment := self._next()) <= until:
            self.now = moment
            if self._restart_at is not None and moment >= self._restart_at:
                self._restart_at = None
            if moment >= self._step_end:
                self._complete_step()
            while self._inbox and self._inbox[0][0] <= moment and self._hears():
                self._receive(heapq.heappop(self._inbox)[2])
            if self._step_end == math.inf and self._restart_at is None and (self._waiting or self._running):
                self._begin_step()
        self.now = until

    def _hears(self) -> bool:
        return self._restart_at is not None or self.now >= self._not_before

    def read(self) -> EngineReading:
        """The state at `now`, as of the last step that has ended (gauges: of the step in flight)."""
        pool, sglang = self._pool, self.config.scheduler == "sglang"
        used = pool.held / pool.blocks
        return EngineReading(
            time=self.now,
            alive=self._restart_at is None,
            started_at=self._started_at,
            running=len(self._running),
            waiting=len(self._waiting),
            used_tokens=pool.held * pool.block_tokens,
            evictable_tokens=pool.cached * pool.block_tokens,
            free_tokens=(pool.blocks - pool.held - pool.cached) * pool.block_tokens,
            total_tokens=pool.blocks * pool.block_tokens,
            usage=round(used, 2) if sglang else used,
            new_token_ratio=self._ratio if sglang else None,
            counters=self._measures.counters(),
            histograms=self._measures.histograms(),
        )

    # -- a step: scheduling at its begin -------------------------------------------------------------------------------

    def _begin_step(self) -> None:
        self._chunks = []
        if self.config.scheduler == "vllm":
            self._schedule_vllm()
        else:
            self._schedule_sglang()
        decoding, context = (self._decoding, self._context) if self._decodes else (0, 0)
        prefill = pairs = 0
        for sequence, tokens in self._chunks:
            prefill += tokens
            context += sequence.computed
            pairs += tokens * (2 * sequence.computed + tokens) // 2
        if not prefill and not decoding:
            raise RuntimeError("a step without work: the scheduler admitted a request that it cannot serve")
        seconds = self.config.cost.step_seconds(prefill, decoding, context, pairs) * self.slowdown
        if self._chance:
            seconds *= math.exp(self._chance.gauss(0.0, self.config.step_jitter))
        self._step_end = self.now + seconds
        self._measures.busy_seconds += seconds

    def _needed_blocks(self) -> int:
        return self._block_phases[self._decode_steps % self.config.block_tokens]

    def _schedule_vllm(self) -> None:
        before = self._measures.preemptions
        while not self._pool.take(self._needed_blocks()):
            self._preempt(next(reversed(self._running.values())))
        self._decodes = self._decoding > 0
        budget = self.config.max_step_tokens - self._decoding
        for sequence in tuple(self._prefilling.values()):
            tokens = min(sequence.target - sequence.computed, budget)
            if tokens > 0 and sequence.state is State.PREFILL and self._extend_or_preempt(sequence, tokens):
                self._chunks.append((sequence, tokens))
                budget -= tokens
        if self._measures.preemptions > before:
            return  # nothing is admitted in a step that preempts
        while self._waiting and budget > 0 and len(self._running) < self.config.max_num_seqs:
            sequence = self._waiting[0]
            if not self._admit(sequence, self._pool.obtainable):
                return
            tokens = min(sequence.target - sequence.computed, budget)
            self._extend(sequence, tokens)
            self._chunks.append((sequence, tokens))
            budget -= tokens

    def _extend_or_preempt(self, sequence: Sequence, tokens: int) -> bool:
        """Find blocks for a chunk, preempting the last admitted; return False if that was the sequence itself."""
        while not self._extend(sequence, tokens):
            victim = next(reversed(self._prefilling.values()))  # nothing that decodes was admitted later
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _schedule_sglang(self) -> None:
        budget, before = self.config.max_step_tokens, len(self._running)
        for sequence in self._prefilling.values():
            tokens = min(sequence.target - sequence.computed, budget, self._pool.obtainable)
            if tokens > 0 and self._extend(sequence, tokens):
                self._chunks.append((sequence, tokens))
                budget -= tokens
        if self._waiting and not self._full and budget > 0:
            self._admit_sglang(budget)
        self._decodes = not self._chunks
        if self._decodes:
            if self._pool.take(self._decoding):
                least = self._first_ratio * _LEAST_RATIO_FACTOR
                self._ratio = max(self._ratio - (self._first_ratio - least) / _RATIO_DECAY_STEPS, least)
            else:
                self._retract()
        if len(self._running) < before:
            self._full = False

    def _admit_sglang(self, budget: int) -> None:
        available = float(self._pool.obtainable)
        for sequence in self._running.values():
            left = sequence.allowed - sequence.generated_at(self._decode_steps)
            reserve = self._ratio * min(left, _RESERVE_AT_MOST)
            available -= reserve + (sequence.target - sequence.computed if sequence.state is State.PREFILL else 0)
        while self._waiting and budget > 0:
            sequence = self._waiting[0]
            reserve = min(sequence.allowed - sequence.generated, _RESERVE_AT_MOST)
            if len(self._running) >= self.config.max_num_seqs or not self._admit(
                sequence, math.floor(available - reserve)
            ):
                self._full = bool(self._running)
                return
            tokens = min(sequence.target - sequence.computed, budget)
            available -= sequence.target - sequence.computed + reserve
            self._extend(sequence, tokens)
            self._chunks.append((sequence, tokens))
            budget -= tokens

    def _admit(self, sequence: Sequence, available: int) -> bool:
        """Admit the head of the queue if its whole input fits into `available` blocks beside what the cache holds."""
        pool, config = self._pool, self.config
        tokens = sequence.request.prompt_tokens + sequence.generated
        keys, per_segment = sequence.prefix_keys(config.block_tokens)
        limit = (tokens - 1) // config.block_tokens  # at least one token is computed, for its logits
        found, blocks, idle = pool.match(keys, sequence.private_key, per_segment, limit)
        if pool.blocks_for(tokens) - blocks + idle > available:
            return False
        self._waiting.popleft()
        pool.hold(keys[:found], per_segment)
        own = blocks - found * per_segment
        pool.reclaim(sequence.private_key, own)
        sequence.state, sequence.target = State.PREFILL, tokens
        sequence.shared, sequence.shared_blocks = list(keys[:found]), found * per_segment
        sequence.own_blocks, sequence.computed = own, blocks * config.block_tokens
        self._running[sequence.number] = self._prefilling[sequence.number] = sequence
        if sequence.admitted is None:
            sequence.admitted, sequence.cached = self.now, sequence.computed
            self._measures.cache_queries += tokens
            self._measures.cache_hits += sequence.cached
            if config.scheduler == "sglang":  # observed when it is scheduled; vLLM observes it at the end
                self._measures.h_queue.observe(self.now - sequence.request.arrival)
        return True

    def _extend(self, sequence: Sequence, tokens: int) -> bool:
        blocks = self._pool.blocks_for(sequence.computed + tokens) - sequence.shared_blocks - sequence.own_blocks
        if not self._pool.take(blocks):
            return False
        sequence.own_blocks += blocks
        return True

    # -- a step: its end -----------------------------------------------------------------------------------------------

    def _complete_step(self) -> None:
        measures, self._step_end = self._measures, math.inf
        measures.steps += 1
        booked = 0
        if self._decodes and self._decoding:
            booked = self._complete_decode()
        for sequence, tokens in self._chunks:
            sequence.computed += tokens
            measures.prefill_tokens += tokens
            if sequence.preemptions:
                measures.recomputed_tokens += tokens
            if sequence.computed == sequence.target:
                booked += self._complete_prefill(sequence)
        measures.h_step_tokens.observe(booked)
        measures.evicted_tokens = self._pool.evicted * self.config.block_tokens
        for sequence in self._aborting:
            if sequence.state in {State.PREFILL, State.DECODE}:
                self._leave(sequence, "abort")
        self._aborting = []

    def _complete_decode(self) -> int:
        now, tokens, observe = self.now, self._decoding, self._measures.h_itl.observe
        self._decode_steps += 1
        self._context += tokens
        self._measures.generated_tokens += tokens
        for entered in self._entered:
            observe(now - entered)
        if tokens > len(self._entered):
            observe(now - self._last_decode, tokens - len(self._entered))
        self._entered, self._last_decode = [], now
        for sequence in tuple(self._watched.values()):
            sequence.tell_token(now, sequence.generated_at(self._decode_steps))
        for sequence in self._due.pop(self._decode_steps, ()):
            if sequence.state is State.DECODE and sequence.due == self._decode_steps:
                self._leave(sequence, sequence.natural_reason)
        return tokens

    def _complete_prefill(self, sequence: Sequence) -> int:
        """Book the token that a whole prefill yields; return the tokens that the step books for it."""
        measures, now = self._measures, self.now
        del self._prefilling[sequence.number]
        self._publish(sequence)
        sequence.generated += 1
        measures.generated_tokens += 1
        booked = 1
        if sequence.first_token is None:
            sequence.first_token = now
            measures.h_ttft.observe(now - sequence.request.arrival)
            measures.prompt_tokens += sequence.request.prompt_tokens
            measures.cached_tokens += sequence.cached
            booked += sequence.request.prompt_tokens - sequence.cached
        else:
            measures.h_itl.observe(now - sequence.last_token)
        sequence.enter_decode(self._decode_steps, self.config.block_tokens)
        self._block_phases[sequence.phase] += 1
        self._decoding += 1
        self._context += sequence.computed
        self._entered.append(now)
        sequence.last_token = now
        if sequence.on_token:
            self._watched[sequence.number] = sequence
            sequence.tell_token(now, sequence.generated)
        if sequence.due == self._decode_steps:
            self._leave(sequence, sequence.natural_reason)
        else:
            self._due.setdefault(sequence.due, []).append(sequence)
        return booked

    def _publish(self, sequence: Sequence) -> None:
        """Make the prompt's prefix blocks that this sequence has just computed hittable by others."""
        keys, per_segment = sequence.prefix_keys(self.config.block_tokens)
        for key in keys[len(sequence.shared) :]:
            if not self._pool.publish(key, per_segment):
                return
            sequence.shared.append(key)
            sequence.shared_blocks += per_segment
            sequence.own_blocks -= per_segment

    # -- leaving -------------------------------------------------------------------------------------------------------

    def _withdraw(self, sequence: Sequence) -> None:
        """Take a sequence out of the batch and give its blocks back."""
        if sequence.state is State.DECODE:
            steps = self._decode_steps
            if sequence.entry_step == steps:
                self._entered.remove(sequence.last_token)
            else:
                sequence.last_token = self._last_decode
            sequence.leave_decode(steps)
            self._decoding -= 1
            self._context -= sequence.computed
            self._block_phases[sequence.phase] -= 1
            self._watched.pop(sequence.number, None)
            sequence.own_blocks = self._pool.blocks_for(sequence.computed) - sequence.shared_blocks
        else:
            del self._prefilling[sequence.number]
        del self._running[sequence.number]
        full = sequence.computed // self.config.block_tokens - sequence.shared_blocks
        self._pool.release(sequence.shared, sequence.private_key, sequence.own_blocks, full)
        sequence.shared, sequence.shared_blocks, sequence.own_blocks = [], 0, 0

    def _preempt(self, sequence: Sequence, *, to_tail: bool = False) -> None:
        self._chunks = [one for one in self._chunks if one[0] is not sequence]
        self._withdraw(sequence)
        sequence.state = State.WAITING
        sequence.preemptions += 1
        self._measures.preemptions += 1
        self._measures.retracted_input_tokens += sequence.request.prompt_tokens
        self._measures.retracted_output_tokens += sequence.generated
        if to_tail:
            self._waiting.append(sequence)
        else:
            self._waiting.appendleft(sequence)

    def _retract(self) -> None:
        """Retract the decoding sequences with the fewest tokens until 20 more steps fit."""
        steps = self._decode_steps
        ranked = [one for one in self._running.values() if one.state is State.DECODE]
        ranked.sort(key=lambda one: (-one.generated_at(steps), one.request.prompt_tokens))
        first = True
        while len(ranked) > 1 and (first or self._pool.obtainable < len(ranked) * _RETRACT_HEADROOM_STEPS):
            self._preempt(ranked.pop(), to_tail=True)
            first = False
        generated = sum(one.generated_at(steps) for one in ranked) + _RETRACT_HEADROOM_STEPS * len(ranked)
        self._ratio = min(1.0, generated / (sum(one.allowed for one in ranked) + 1))
        if not self._pool.take(len(ranked)):
            raise RuntimeError("a lone request does not fit into the pool although it was admitted")

    def _leave(self, sequence: Sequence, reason: str) -> None:
        self._withdraw(sequence)
        self._full = False
        if reason in {"stop", "length"}:
            sequence.measure_finish(self._measures, self.now, queue=self.config.scheduler == "vllm")
        self._end(sequence, reason)

    def _end(self, sequence: Sequence, reason: str) -> None:
        sequence.state = State.ENDED
        self._measures.finished[reason] = self._measures.finished.get(reason, 0) + 1
        sequence.tell_end(reason, self.now)
