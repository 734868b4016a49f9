"""What is judged: quarters of an hour of traces on engines, and steady traffic of constant sizes.

Constants were tuned on two traces alone; the others are held out.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final

from evaluate.replay import ITL_SLO
from evaluate.scenarios import (
    A100_8B,
    A100_70B,
    CODE,
    CONV,
    H100_70B,
    L4_8B,
    LARGE,
    MOONCAKE,
    REASONING,
    SCENARIOS,
    SGLANG_8B,
    SGLANG_70B,
    USUAL_MAX_TOKENS,
    Setup,
    trace,
)
from evaluate.scenarios import Scenario as Loads
from llm_headroom.simulate.traffic import Request

if TYPE_CHECKING:
    from collections.abc import Sequence

SETTLED: Final = 600.0
"""Seconds from which on requests count, so that ten busy minutes lie before."""
COUNTED: Final = 1500.0
"""Seconds until which they do: a quarter of an hour, of which the limit is found."""
SPAN: Final = 1560.0
"""Seconds of each scenario."""
COPIES: Final = 4
"""Copies of a trace, shifted by parts of its span, of which marks choose: factors up to this one can be drawn."""


@dataclass(frozen=True)
class Scenario:
    """Traffic on an engine. `group` is the trace, by which results are resampled.

    `tokens` says that the objective is one of inter-token latency instead of first tokens. `shared` are tokens at the
    begin of each prompt that are the same in all.
    """

    group: str
    setup: Setup
    begin: float = 0.0
    sizes: tuple[int, int] = (0, 0)
    tuning: bool = False
    tokens: bool = False
    shared: int = 0

    @property
    def name(self) -> str:
        """Traffic, engine, where in the trace, and the objective if it is not one of first tokens."""
        where = f", from {self.begin:.0f} s" if self.begin else ""
        return f"{self.group} @ {self.setup.name}{where}" + (", inter-token" if self.tokens else "")

    @property
    def steady(self) -> bool:
        """Whether arrivals are Poisson and sizes constant."""
        return self.sizes != (0, 0)

    @cached_property
    def objective(self) -> float:
        """Seconds to the first token, or from token to token, that the engine should keep."""
        if self.tokens:
            return ITL_SLO
        if self.steady:
            return 2.5
        return Loads(self.group, self.setup, ()).slo()

    @cached_property
    def marked(self) -> Sequence[tuple[float, Request]]:
        """Requests with marks: those with a mark up to a factor are the traffic at that factor."""
        chance = random.Random(f"{self.name}")  # noqa: S311 - simulation, not security
        if self.steady:
            prompt, answer = self.sizes
            rate, at, steady = 60.0, 0.0, []
            while (at := at + chance.expovariate(rate)) < SPAN:
                own = Request(at, prompt, answer, max(USUAL_MAX_TOKENS, answer))
                if self.shared:
                    own = replace(own, prefix=(1,), prefix_block_tokens=self.shared)
                steady.append((chance.random(), own))
            return steady
        rows = trace(self.group)
        span = rows[-1].arrival + 0.001
        drawn = []
        for copy in range(COPIES):
            shift = (copy + chance.random()) * span / COPIES if copy else 0.0
            for one in rows:
                mark, at = copy + chance.random(), (one.arrival + shift - self.begin) % span
                if at < SPAN:
                    allowed = max(USUAL_MAX_TOKENS, one.output_tokens)
                    prefix = tuple(key * COPIES + copy for key in one.prefix)
                    drawn.append((mark, replace(one, arrival=at, max_tokens=allowed, prefix=prefix)))
        return sorted(drawn, key=lambda each: each[1].arrival)

    def traffic(self, times: float) -> list[Request]:
        """The traffic at a factor."""
        return [request for mark, request in self.marked if mark <= times]

    @property
    def usual(self) -> float:
        """A factor from which the limit is not far."""
        for one in SCENARIOS:
            if one.trace == self.group and one.setup == self.setup:
                return one.loads[1]
        return 0.02 if self.steady else 0.3


def _of(group: str, setups: Sequence[Setup], begins: Sequence[float], *, tuning: bool = False) -> list[Scenario]:
    return [Scenario(group, setup, begin, tuning=tuning) for setup in setups for begin in begins]


_HOUR: Final = (0.0, 900.0, 1800.0)
_TWO_HOURS: Final = (0.0, 1800.0, 3600.0, 5400.0)
_FRESH_HOUR: Final = (2700.0,)
"""The quarter of an hour that no version of the model was judged on before."""
_FRESH_TWO_HOURS: Final = (900.0, 2700.0, 4500.0)
TUNING: Final = (
    *_of(CONV, (A100_8B, L4_8B), _HOUR, tuning=True),
    *_of(LARGE, (A100_8B, A100_70B), _TWO_HOURS, tuning=True),
    *_of(CONV, (SGLANG_8B,), (0.0, 1800.0), tuning=True),
    *_of(LARGE, (SGLANG_8B, SGLANG_70B), (900.0, 4500.0), tuning=True),
    *_of(CONV, (H100_70B,), (900.0,), tuning=True),
)
HELD_OUT: Final = (
    *_of(CODE, (A100_8B, H100_70B, SGLANG_8B), _FRESH_HOUR),
    *_of(MOONCAKE, (A100_8B, H100_70B, SGLANG_70B), _FRESH_HOUR),
    *_of(REASONING, (A100_8B, H100_70B, SGLANG_8B), _FRESH_TWO_HOURS),
)
STEADY: Final = tuple(
    Scenario(f"steady {prompt} + {answer}", setup, sizes=(prompt, answer))
    for prompt, answer, setup in (
        (1000, 200, A100_8B),
        (200, 500, A100_8B),
        (4000, 100, H100_70B),
        (500, 1000, SGLANG_8B),
        (2000, 300, L4_8B),
    )
)
SYSTEM_PROMPT: Final = tuple(
    Scenario(f"steady {prompt} ({shared} the same) + {answer}", setup, sizes=(prompt, answer), shared=shared)
    for prompt, shared, answer, setup in (
        (2000, 1696, 150, L4_8B),
        (2000, 1696, 150, A100_8B),
        (6000, 4096, 300, A100_8B),
        (2000, 1696, 150, SGLANG_70B),
        (1000, 512, 400, SGLANG_8B),
    )
)
INTER_TOKEN: Final = tuple(
    Scenario(group, setup, begin, tokens=True)
    for group, setup, begin in (
        (CODE, A100_8B, 2700.0),
        (CODE, SGLANG_8B, 2700.0),
        (MOONCAKE, H100_70B, 2700.0),
        (REASONING, A100_8B, 900.0),
        (REASONING, H100_70B, 2700.0),
    )
)
LADDER: Final = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
