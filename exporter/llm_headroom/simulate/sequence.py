"""A request inside a simulated engine."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from llm_headroom.simulate.engine_state import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_headroom.simulate.measures import Measures
    from llm_headroom.simulate.traffic import Request


class State(Enum):
    """Where a request is."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    ENDED = "ended"


class Sequence:
    """One request's progress. While it decodes, `generated` and `computed` are those at `entry_step`.

    Attributes:
        number: of the request in its engine.
        request: as submitted.
        on_token: who waits for each token.
        allowed: tokens that the client allows.
        state: where it is.
        target: tokens that the present prefill computes: the prompt, and what was generated before a preemption.
        computed: tokens in the cache.
        generated: tokens generated.
        shared: keys of the shared segments that it holds, and `shared_blocks` their blocks.
        own_blocks: blocks that it alone holds; not updated while it decodes.
        entry_step: the engine's count of decode steps when it began to decode; `due` that with which it ends.
        phase: decode steps at which it needs a block, modulo the block size.
        admitted: time of the first admission.
        first_token: time of it; `last_token` the latest known outside of decode.
        cached: prompt tokens that the cache held at first admission.
        preemptions: so far.
    """

    __slots__ = (
        "_on_end", "admitted", "allowed", "cached", "computed", "due", "entry_step", "first_token", "generated",
        "last_token", "number", "on_token", "own_blocks", "phase", "preemptions", "request", "shared", "shared_blocks",
        "state", "target",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        request: Request,
        on_token: Callable[[float, int], None] | None,
        on_end: Callable[[Outcome], None] | None,
    ) -> None:
        self.number = number
        self.request = request
        self.on_token = on_token
        self._on_end = on_end
        self.allowed = request.output_tokens if request.max_tokens is None else request.max_tokens
        self.state = State.WAITING
        self.generated = self.cached = self.preemptions = 0
        self.admitted: float | None = None
        self.first_token: float | None = None
        # From its admission on:
        self.target: int
        self.computed: int
        self.shared: list[tuple[int, ...]]
        self.shared_blocks: int
        self.own_blocks: int
        # From its first token on:
        self.entry_step: int
        self.due: int
        self.phase: int
        self.last_token: float

    @property
    def private_key(self) -> tuple[int, ...]:
        """The key of its own blocks in the cache; longer than a shared key, so that they never meet."""
        return (-1, self.number)

    def prefix_keys(self, block_tokens: int) -> tuple[tuple[tuple[int, ...], ...], int]:
        """The keys of the shared segments that the prompt holds whole, and the blocks of one of them."""
        request = self.request
        blocks = request.prefix_block_tokens // block_tokens
        whole = request.prompt_tokens // request.prefix_block_tokens if blocks else 0
        return tuple((one,) for one in request.prefix[:whole]), blocks

    @property
    def natural_reason(self) -> str:
        """The finish reason when all its tokens are there."""
        return "stop" if self.request.output_tokens < self.allowed else "length"

    def enter_decode(self, step: int, block_tokens: int) -> None:
        """Begin to decode, at that count of decode steps."""
        self.state = State.DECODE
        self.entry_step = step
        self.due = step + self.request.output_tokens - self.generated
        self.phase = (step - self.computed) % block_tokens

    def leave_decode(self, step: int) -> None:
        """Bring the counts up to date."""
        self.computed += step - self.entry_step
        self.generated += step - self.entry_step

    def generated_at(self, step: int) -> int:
        """The tokens generated when the engine has done so many decode steps."""
        return self.generated + step - self.entry_step if self.state is State.DECODE else self.generated

    def tell_token(self, time: float, index: int) -> None:
        """Deliver a token to the client."""
        if self.on_token:
            self.on_token(time, index)

    def measure_finish(self, measures: Measures, now: float, *, queue: bool) -> None:
        """Add what it took to the measures, with its time in the queue for an engine that observes that at the end.

        Raises:
            RuntimeError: it has not run.
        """
        arrival, admitted, first = self.request.arrival, self.admitted, self.first_token
        if admitted is None or first is None:
            raise RuntimeError(f"request {self.number} finished without having run")
        measures.finished_prompt_tokens += self.request.prompt_tokens
        measures.finished_generated_tokens += self.generated
        measures.h_e2e.observe(now - arrival)
        if queue:
            measures.h_queue.observe(admitted - arrival)
        measures.h_prefill.observe(first - admitted)
        measures.h_decode.observe(now - first)
        measures.h_inference.observe(now - admitted)
        measures.h_tpot.observe((now - first) / max(self.generated - 1, 1))
        measures.h_prompt.observe(self.request.prompt_tokens)
        measures.h_generation.observe(self.generated)
        measures.h_max_tokens.observe(self.allowed)
        measures.h_preemptions.observe(self.preemptions)
        measures.h_prefill_computed.observe(self.request.prompt_tokens - self.cached)

    def tell_end(self, reason: str, time: float) -> None:
        """Report to the client how it ended."""
        self.state = State.ENDED
        if self._on_end:
            self._on_end(
                Outcome(
                    number=self.number,
                    request=self.request,
                    reason=reason,
                    ended=time,
                    admitted=self.admitted,
                    first_token=self.first_token,
                    generated=self.generated,
                    cached=self.cached,
                    preemptions=self.preemptions,
                )
            )
