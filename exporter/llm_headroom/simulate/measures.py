"""What a simulated engine counts: counters and histograms, and their frozen readings."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field, fields
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_LATENCIES = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
              960.0, 1920.0, 7680.0)  # fmt: skip
_LENGTHS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0, 50000.0)
_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
         160.0, 640.0, 2560.0)  # fmt: skip
_ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
        80.0)  # fmt: skip
_STEP = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)


@dataclass(frozen=True, slots=True)
class HistogramBounds:
    """Finite upper bounds of each histogram, ascending; seconds or tokens. The defaults are those of vLLM 0.32.

    Attributes:
        ttft: seconds from arrival to first token, queueing included.
        itl: seconds between two tokens of one request, across preemptions.
        tpot: seconds per output token of one finished request, the first token left out.
        e2e: seconds from arrival to last token.
        queue: seconds from arrival to first admission.
        prefill: seconds from first admission to first token.
        decode: seconds from first to last token.
        inference: seconds from first admission to last token.
        prompt: prompt tokens of a finished request.
        generation: generated tokens of a finished request.
        max_tokens: tokens that the client of a finished request allowed.
        step_tokens: tokens that one step booked: computed prompts of first tokens, and generated ones.
        preemptions: preemptions (retractions) of a finished request.
        prefill_computed: prompt tokens of a finished request that no prefix cache held.
    """

    ttft: tuple[float, ...] = _TTFT
    itl: tuple[float, ...] = _ITL
    tpot: tuple[float, ...] = _ITL
    e2e: tuple[float, ...] = _LATENCIES
    queue: tuple[float, ...] = _LATENCIES
    prefill: tuple[float, ...] = _LATENCIES
    decode: tuple[float, ...] = _LATENCIES
    inference: tuple[float, ...] = _LATENCIES
    prompt: tuple[float, ...] = _LENGTHS
    generation: tuple[float, ...] = _LENGTHS
    max_tokens: tuple[float, ...] = _LENGTHS
    step_tokens: tuple[float, ...] = _STEP
    preemptions: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)
    prefill_computed: tuple[float, ...] = _LENGTHS


VLLM_BOUNDS = HistogramBounds()


@dataclass(frozen=True, slots=True)
class HistogramReading:
    """One histogram at one moment.

    Attributes:
        bounds: finite upper bounds, ascending; an observation equal to a bound counts as below it (Prometheus' `le`).
        counts: observations per bucket, not cumulative; one more than `bounds`, the last is `+Inf`.
        total: the sum of all observations, in their unit.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        """The number of observations."""
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """The mean observation; None without any."""
        return self.total / self.count if self.count else None

    def cumulative(self) -> tuple[int, ...]:
        """The counts as Prometheus exposes them, `+Inf` last."""
        return tuple(accumulate(self.counts))

    def since(self, earlier: HistogramReading) -> HistogramReading:
        """The observations made after an earlier reading of the same histogram, with no restart between."""
        counts = tuple(now - then for now, then in zip(self.counts, earlier.counts, strict=True))
        return HistogramReading(self.bounds, counts, self.total - earlier.total)


class Histogram:
    """A histogram that grows; `read` freezes it."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `times` observations of the same value."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._total += value * times

    def read(self) -> HistogramReading:
        """What was observed so far."""
        return HistogramReading(self._bounds, tuple(self._counts), self._total)


@dataclass(frozen=True, slots=True)
class Histograms:
    """Readings of every histogram of one engine; fields as in `HistogramBounds`."""

    ttft: HistogramReading
    itl: HistogramReading
    tpot: HistogramReading
    e2e: HistogramReading
    queue: HistogramReading
    prefill: HistogramReading
    decode: HistogramReading
    inference: HistogramReading
    prompt: HistogramReading
    generation: HistogramReading
    max_tokens: HistogramReading
    step_tokens: HistogramReading
    preemptions: HistogramReading
    prefill_computed: HistogramReading


@dataclass(frozen=True, slots=True)
class Counters:
    """Totals since the engine started; a restart sets them to 0.

    Attributes:
        steps: forward passes.
        busy_seconds: virtual seconds spent in them.
        prompt_tokens: whole prompts, booked at the first token (as vLLM does).
        cached_tokens: the part of `prompt_tokens` that the prefix cache held.
        prefill_tokens: tokens computed by prefill steps, recomputation after preemption included (SGLang's
            `realtime_tokens_total{mode="prefill_compute"}`).
        generated_tokens: output tokens, booked step by step.
        recomputed_tokens: the part of `prefill_tokens` that had been computed before a preemption.
        finished_prompt_tokens: prompt tokens of finished requests (as SGLang books them).
        finished_generated_tokens: output tokens of finished requests (as SGLang books them).
        cache_queries: prompt tokens looked up in the prefix cache at first admission.
        cache_hits: tokens of those that were found.
        evicted_tokens: cached tokens that were evicted.
        preemptions: preemptions (vLLM) or retractions (SGLang).
        retracted_input_tokens: prompt tokens of preempted requests, once per preemption.
        retracted_output_tokens: tokens generated before each preemption.
        submitted: requests that arrived, rejected ones included.
        finished: ended requests by reason: `stop`, `length`, `abort`, `rejected_length`, `rejected_queue`,
            `rejected_down`; a reason is there from its first request on.
    """

    steps: int = 0
    busy_seconds: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefill_tokens: int = 0
    generated_tokens: int = 0
    recomputed_tokens: int = 0
    finished_prompt_tokens: int = 0
    finished_generated_tokens: int = 0
    cache_queries: int = 0
    cache_hits: int = 0
    evicted_tokens: int = 0
    preemptions: int = 0
    retracted_input_tokens: int = 0
    retracted_output_tokens: int = 0
    submitted: int = 0
    finished: Mapping[str, int] = field(default_factory=dict)


class Measures:
    """The counters and histograms of one engine life."""

    __slots__ = (*(f"h_{one.name}" for one in fields(Histograms)), *(one.name for one in fields(Counters)))

    def __init__(self, bounds: HistogramBounds) -> None:
        self.h_ttft = Histogram(bounds.ttft)
        self.h_itl = Histogram(bounds.itl)
        self.h_tpot = Histogram(bounds.tpot)
        self.h_e2e = Histogram(bounds.e2e)
        self.h_queue = Histogram(bounds.queue)
        self.h_prefill = Histogram(bounds.prefill)
        self.h_decode = Histogram(bounds.decode)
        self.h_inference = Histogram(bounds.inference)
        self.h_prompt = Histogram(bounds.prompt)
        self.h_generation = Histogram(bounds.generation)
        self.h_max_tokens = Histogram(bounds.max_tokens)
        self.h_step_tokens = Histogram(bounds.step_tokens)
        self.h_preemptions = Histogram(bounds.preemptions)
        self.h_prefill_computed = Histogram(bounds.prefill_computed)
        self.steps = 0
        self.busy_seconds = 0.0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.prefill_tokens = 0
        self.generated_tokens = 0
        self.recomputed_tokens = 0
        self.finished_prompt_tokens = 0
        self.finished_generated_tokens = 0
        self.cache_queries = 0
        self.cache_hits = 0
        self.evicted_tokens = 0
        self.preemptions = 0
        self.retracted_input_tokens = 0
        self.retracted_output_tokens = 0
        self.submitted = 0
        self.finished: dict[str, int] = {}

    def counters(self) -> Counters:
        """The totals so far."""
        totals = {one.name: getattr(self, one.name) for one in fields(Counters)}
        return Counters(**{**totals, "finished": dict(self.finished)})

    def histograms(self) -> Histograms:
        """The histograms so far."""
        return Histograms(**{one.name: getattr(self, f"h_{one.name}").read() for one in fields(Histograms)})
