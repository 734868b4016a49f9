"""Rates, sizes and dispersion of the traffic as decayed means, from which demand on KV cache and prefill follows."""

from __future__ import annotations

import math
from dataclasses import field, replace
from typing import TYPE_CHECKING, Final

from llm_headroom.derive.observation import growth, histogram_growth
from llm_headroom.frozen import frozen, frozen_named

if TYPE_CHECKING:
    from llm_headroom.derive.observation import Observation

GROWTH_SECONDS: Final = 10.0
WARM_SECONDS: Final = 60.0
WARM_REQUESTS: Final = 20.0
LEAST_DISPERSION: Final = 1.0
MOST_DISPERSION: Final = 30.0


@frozen
class Mean:
    """A decayed sum over a decayed sum, which uneven polls do not bias. `seconds` is the time constant."""

    seconds: float
    above: float = 0.0
    below: float = 0.0

    def add(self, above: float, below: float, elapsed: float) -> Mean:
        """The mean with one more interval of `elapsed` seconds."""
        decay = math.exp(-elapsed / self.seconds)
        return Mean(self.seconds, self.above * decay + above, self.below * decay + below)

    def shared(self, parts: int) -> Mean:
        """One of several equal parts of the mean."""
        return Mean(self.seconds, self.above / parts, self.below)

    @property
    def value(self) -> float | None:
        """The mean, None before there is anything."""
        return self.above / self.below if self.below > 1e-9 else None  # noqa: PLR2004 - decayed to nothing


@frozen_named
class Estimates:
    """What the recent past says of the next minutes.

    Means: `arrivals` in requests/s, `prompt` and `output` in tokens per request, `inter_token` in seconds, `held` in KV
    tokens per running request, `residence` in seconds of running per request, `dispersion` as variance over mean of
    arrivals in a poll, `prefill` in uncached prompt tokens per second of one request's prefill, `served` in uncached
    prompt tokens per second of all requests at the times that `prefill` is of, with the same weights, `prefill_rate`
    the same in the last 20 s, `computed` in uncached prompt tokens per request, `wait` in seconds in the queue during
    the last minute, `finishes` in requests/s of the last minute, `prompt_rate` and `generation_rate` in tokens/s of the
    last minute, `recent_computed` and `recent_output` the sizes of the last minute, `growth` in KV tokens/s of the last
    seconds. `seconds` and `requests` say how much has been seen.
    """

    arrivals: Mean = field(default_factory=lambda: Mean(90.0))
    prompt: Mean = field(default_factory=lambda: Mean(600.0))
    output: Mean = field(default_factory=lambda: Mean(900.0))
    inter_token: Mean = field(default_factory=lambda: Mean(60.0))
    held: Mean = field(default_factory=lambda: Mean(180.0))
    residence: Mean = field(default_factory=lambda: Mean(300.0))
    dispersion: Mean = field(default_factory=lambda: Mean(900.0))
    prefill: Mean = field(default_factory=lambda: Mean(900.0))
    served: Mean = field(default_factory=lambda: Mean(900.0))
    prefill_rate: Mean = field(default_factory=lambda: Mean(20.0))
    computed: Mean = field(default_factory=lambda: Mean(600.0))
    wait: Mean = field(default_factory=lambda: Mean(60.0))
    finishes: Mean = field(default_factory=lambda: Mean(60.0))
    prompt_rate: Mean = field(default_factory=lambda: Mean(60.0))
    generation_rate: Mean = field(default_factory=lambda: Mean(60.0))
    recent_computed: Mean = field(default_factory=lambda: Mean(60.0))
    recent_output: Mean = field(default_factory=lambda: Mean(60.0))
    growth: Mean = field(default_factory=lambda: Mean(GROWTH_SECONDS))
    seconds: float = 0.0
    requests: float = 0.0

    @property
    def sizes(self) -> tuple[float, float] | None:
        """Uncached prompt and answer in tokens, the larger of a long while's and of the last minute's."""
        prompt, output = self.computed.value, self.output.value
        if prompt is None or output is None:
            return None
        return max(prompt, self.recent_computed.value or 0.0), max(output, self.recent_output.value or 0.0)

    @property
    def warm(self) -> bool:
        """Whether enough has been seen to speak of risks."""
        return self.seconds >= WARM_SECONDS and self.requests >= WARM_REQUESTS

    @property
    def burstiness(self) -> float:
        """The dispersion within what is believable; 1 is a Poisson process."""
        return min(max(self.dispersion.value or LEAST_DISPERSION, LEAST_DISPERSION), MOST_DISPERSION)

    @property
    def prefill_capacity(self) -> float | None:
        """Uncached prompt tokens that the engine prefills per second when it has enough to do.

        Requests that are prefilled at the same time share the engine, so that under load a single one's speed falls to
        what the others leave: `C (1 - load)`, with load `served / C`. Hence `C` is the sum of both, at any load.
        """
        return None if self.prefill.value is None else self.prefill.value + (self.served.value or 0.0)

    def of_one(self, replicas: int) -> Estimates:
        """The estimates for one of several replicas which share the traffic evenly."""
        if replicas == 1:
            return self
        return replace(
            self,
            arrivals=self.arrivals.shared(replicas),
            served=self.served.shared(replicas),
            finishes=self.finishes.shared(replicas),
            growth=self.growth.shared(replicas),
        )

    def after(self, before: Observation, now: Observation, elapsed: float) -> Estimates:
        """The estimates with the interval between two polls of one life of the engine, `elapsed` seconds long."""
        running, waiting = now.running or 0.0, now.waiting or 0.0
        finished = growth(before.finished, now.finished)
        # Engines count no arrivals; this identity holds but for requests that were aborted.
        queued = running - (before.running or 0.0) + waiting - (before.waiting or 0.0)
        arrived = max(0.0, finished + queued)
        expected = (self.arrivals.value or arrived / elapsed) * elapsed
        firsts = histogram_growth(before.ttft, now.ttft)
        queues = histogram_growth(before.queue, now.queue)
        tokens = histogram_growth(before.inter_token, now.inter_token)
        sizes = histogram_growth(before.generation_sizes, now.generation_sizes)
        prompts = growth(before.prompt_tokens, now.prompt_tokens)
        computed = max(0.0, prompts - growth(before.cached_tokens, now.cached_tokens))
        prefilling = max(0.0, firsts.sum - (queues.sum if queues else 0.0)) if firsts else 0.0
        first_count = firsts.count if firsts else 0.0
        # Little's law; of two polls the lesser, since one that happens upon a short queue says nothing of the others.
        queued_seconds = min(waiting, before.waiting or 0.0) * elapsed
        prefill_rate = self.prefill_rate.add(computed, elapsed, elapsed)
        return Estimates(
            arrivals=self.arrivals.add(arrived, elapsed, elapsed),
            prompt=self.prompt.add(prompts, first_count, elapsed) if first_count else self.prompt,
            output=self.output.add(sizes.sum, sizes.count, elapsed) if sizes else self.output,
            inter_token=self.inter_token.add(tokens.sum, tokens.count, elapsed) if tokens else self.inter_token,
            held=self.held.add((now.used or 0.0) * elapsed, running * elapsed, elapsed) if running else self.held,
            residence=self.residence.add(running * elapsed, finished, elapsed),
            dispersion=self.dispersion.add((arrived - expected) ** 2, expected, elapsed)
            if expected
            else self.dispersion,
            prefill=self.prefill.add(computed, prefilling, elapsed) if prefilling else self.prefill,
            served=self.served.add((prefill_rate.value or 0.0) * prefilling, prefilling, elapsed)
            if prefilling
            else self.served,
            prefill_rate=prefill_rate,
            wait=self.wait.add(queued_seconds, first_count, elapsed),
            computed=self.computed.add(computed, first_count, elapsed) if first_count else self.computed,
            recent_computed=self.recent_computed.add(computed, first_count, elapsed),
            recent_output=self.recent_output.add(sizes.sum if sizes else 0.0, sizes.count if sizes else 0.0, elapsed),
            growth=self.growth.add((now.used or 0.0) - (before.used or 0.0), elapsed, elapsed),
            finishes=self.finishes.add(finished, elapsed, elapsed),
            prompt_rate=self.prompt_rate.add(prompts, elapsed, elapsed),
            generation_rate=self.generation_rate.add(
                growth(before.generation_tokens, now.generation_tokens), elapsed, elapsed
            ),
            seconds=self.seconds + elapsed,
            requests=self.requests + finished,
        )
