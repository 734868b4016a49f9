"""What happened between two polls of one engine: the growth of its counters, and its gauges at both ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_headroom.derive.observation import growth, histogram_growth
from llm_headroom.frozen import frozen_named

if TYPE_CHECKING:
    from llm_headroom.derive.observation import Observation


@frozen_named
class Interval:
    """Some seconds of one engine.

    `arrivals`, `finished` and `firsts` (first tokens) are requests; `prompt`, `cached` and `generated` are tokens;
    `first_seconds` is the sum of the times to those first tokens; `tokens` are inter-token latencies and
    `token_seconds` their sum; `preemptions` are requests. Gauges: `running` at the end, `waiting` and `held` (KV
    tokens) at begin and end. All are those of the mean one of `replicas`.
    """

    seconds: float
    replicas: int = 1
    arrivals: float = 0.0
    finished: float = 0.0
    admitted: float = 0.0
    firsts: float = 0.0
    first_seconds: float = 0.0
    prompt: float = 0.0
    cached: float = 0.0
    generated: float = 0.0
    tokens: float = 0.0
    token_seconds: float = 0.0
    preemptions: float = 0.0
    running: float = 0.0
    waiting: tuple[float, float] = (0.0, 0.0)
    held: tuple[float, float] = (0.0, 0.0)

    @property
    def computed(self) -> float:
        """Prompt tokens that no prefix cache held."""
        return max(0.0, self.prompt - self.cached)

    @property
    def pairs(self) -> float:
        """Pairs of a computed prompt token and a token it attends to, as if all prompts were of the mean length."""
        if not self.firsts:
            return 0.0
        return self.computed * (self.prompt - self.computed / 2.0) / self.firsts

    @property
    def decoding(self) -> float:
        """Sequences that decoded, on average: each second of inter-token latency is a sequence for a second."""
        return self.token_seconds / self.seconds

    @property
    def context(self) -> float:
        """KV tokens held, on average."""
        return sum(self.held) / 2.0

    @property
    def busy(self) -> bool:
        """Whether the engine had something to do."""
        return self.tokens > 0 or self.firsts > 0


def between(before: Observation, now: Observation, seconds: float, replicas: int = 1) -> Interval:
    """The interval between two observations of one life of an engine; of the mean replica where there are several.

    Engines do not count arrivals: they are what ended plus what the queue and the batch grew by, which holds but for
    requests that were aborted.
    """

    def share(value: float | None) -> float:
        # The same objects wherever that can be: hundreds of intervals are remembered of each engine.
        return 0.0 if not value else value if replicas == 1 else value / replicas

    finished = growth(before.finished, now.finished)
    running = (now.running or 0.0) - (before.running or 0.0)
    waiting = (now.waiting or 0.0) - (before.waiting or 0.0)
    firsts, tokens = histogram_growth(before.ttft, now.ttft), histogram_growth(before.inter_token, now.inter_token)
    return Interval(
        seconds=seconds,
        replicas=replicas,
        arrivals=share(max(0.0, finished + running + waiting)),
        finished=share(finished),
        admitted=share(finished + running / 2.0),
        firsts=share(firsts.count if firsts else 0.0),
        first_seconds=share(firsts.sum if firsts else 0.0),
        prompt=share(growth(before.prompt_tokens, now.prompt_tokens)),
        cached=share(growth(before.cached_tokens, now.cached_tokens)),
        generated=share(growth(before.generation_tokens, now.generation_tokens)),
        tokens=share(tokens.count if tokens else 0.0),
        token_seconds=share(tokens.sum if tokens else 0.0),
        preemptions=share(growth(before.preemptions, now.preemptions)),
        running=share(now.running),
        waiting=(share(before.waiting), share(now.waiting)),
        held=(share(before.used), share(now.used)),
    )
