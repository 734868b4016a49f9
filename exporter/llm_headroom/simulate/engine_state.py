"""The values around one simulated engine: how it is configured, how it reads, how a request ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from llm_headroom.simulate.measures import VLLM_BOUNDS, Counters, HistogramBounds, Histograms

if TYPE_CHECKING:
    from llm_headroom.simulate.traffic import Request

Scheduler = Literal["vllm", "sglang"]


class StepCost(Protocol):
    """What one forward pass costs; `hardware.Roofline` is one."""

    def step_seconds(
        self, prefill_tokens: int, decode_sequences: int, context_tokens: int, attention_pairs: int = 0
    ) -> float:
        """The seconds of one step, above 0.

        Args:
            prefill_tokens: prompt tokens computed in the step.
            decode_sequences: sequences that get one token each.
            context_tokens: cached tokens that those sequences read, plus those that prefills have behind them.
            attention_pairs: pairs of a prefill token and a token it attends to.
        """
        ...


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """One engine (one data-parallel replica).

    Attributes:
        cost: what a step costs.
        scheduler: `vllm` (V1: decode first, prompts share the rest of the step's budget, preemption of the last
            admitted) or `sglang` (prefill first, reservation by `new_token_ratio`, retraction).
        total_blocks: size of the KV pool in blocks. vLLM uses one of them as its null block.
        block_tokens: tokens per block; 1 for SGLang.
        max_num_seqs: most running requests (SGLang: `max_running_requests`).
        max_step_tokens: token budget of a step (vLLM `max_num_batched_tokens`, SGLang `chunked_prefill_size`).
        max_model_len: most tokens of prompt and output together; None: what the pool holds.
        prefix_caching: reuse of cached prefixes.
        max_queue: most waiting requests, more are rejected; None: no limit.
        schedule_conservativeness: SGLang's flag of that name; scales the reservation.
        step_jitter: standard deviation of the logarithm of a random factor on each step's duration.
        bounds: of the histograms.
    """

    cost: StepCost
    scheduler: Scheduler = "vllm"
    total_blocks: int = 4096
    block_tokens: int = 16
    max_num_seqs: int = 256
    max_step_tokens: int = 8192
    max_model_len: int | None = None
    prefix_caching: bool = True
    max_queue: int | None = None
    schedule_conservativeness: float = 1.0
    step_jitter: float = 0.0
    bounds: HistogramBounds = VLLM_BOUNDS

    def __post_init__(self) -> None:
        """Refuse what the real engines refuse too."""
        if self.usable_blocks < 1 or self.block_tokens < 1 or self.max_num_seqs < 1:
            raise ValueError("the pool, the block size and max_num_seqs must be at least 1")
        if self.scheduler == "vllm" and self.max_step_tokens < self.max_num_seqs:
            # vllm-project/vllm vllm/config/scheduler.py verifies the same
            raise ValueError(f"max_step_tokens {self.max_step_tokens} is less than max_num_seqs {self.max_num_seqs}")
        if self.max_step_tokens < 1:
            raise ValueError("max_step_tokens must be at least 1")

    @property
    def usable_blocks(self) -> int:
        """Blocks that requests can hold."""
        return self.total_blocks - 1 if self.scheduler == "vllm" else self.total_blocks

    @property
    def longest(self) -> int:
        """Most tokens that one request may have, prompt and output together."""
        pool = self.usable_blocks * self.block_tokens
        return pool if self.max_model_len is None else min(pool, self.max_model_len)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request ended; all times in seconds of virtual time.

    Attributes:
        number: what `submit` returned.
        request: the request.
        reason: `stop`, `length`, `abort`, `crash`, `rejected_length` (longer than the engine takes),
            `rejected_queue` (queue full) or `rejected_down` (not running).
        ended: when.
        admitted: first admission; None if it never ran.
        first_token: None if there was none.
        generated: output tokens.
        cached: prompt tokens found in the prefix cache at first admission.
        preemptions: how often it lost its cache.
    """

    number: int
    request: Request
    reason: str
    ended: float
    admitted: float | None
    first_token: float | None
    generated: int
    cached: int
    preemptions: int


@dataclass(frozen=True, slots=True)
class EngineReading:
    """The state of an engine at one moment of virtual time.

    Attributes:
        time: of the reading.
        alive: False between a crash and the restart; everything else is then that of a fresh engine.
        started_at: when the present life began.
        running: admitted requests.
        waiting: requests in the queue; those that arrive during a stall are not in it until it ends.
        used_tokens: cache tokens (whole blocks) that live requests hold.
        evictable_tokens: cached tokens that nobody holds.
        free_tokens: tokens that hold nothing.
        total_tokens: the three together; without vLLM's null block.
        usage: what the engine calls its KV usage, 0..1. vLLM: used / total; SGLang: the same, to 2 decimals.
        new_token_ratio: SGLang's reservation ratio; None for vLLM.
        counters: totals of this life.
        histograms: of this life.
    """

    time: float
    alive: bool
    started_at: float
    running: int
    waiting: int
    used_tokens: int
    evictable_tokens: int
    free_tokens: int
    total_tokens: int
    usage: float
    new_token_ratio: float | None
    counters: Counters
    histograms: Histograms
