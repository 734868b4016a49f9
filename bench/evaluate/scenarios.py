"""What is replayed: traces on engines, at four loads from calm to overload, and which of them constants were fitted on.

The loads are factors on a trace's arrivals. They were found once by `python -m evaluate.loads` as those at which
about 0, 2, 8 and 20 % of the time lie between the first and the last breach of an incident; the first is 60 % of the
second.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llm_headroom.simulate.engine_state import EngineConfig
from llm_headroom.simulate.hardware import (
    A100_80GB,
    H100_SXM,
    L4,
    LLAMA_3_8B,
    LLAMA_3_70B,
    Gpu,
    Model,
    Roofline,
    plan_memory,
)
from llm_headroom.simulate.traffic import Request, read_trace

if TYPE_CHECKING:
    from llm_headroom.simulate.engine_state import Scheduler

TRACES: Final = Path(__file__).parent / "traces"
USUAL_MAX_TOKENS: Final = 2048
"""What clients are taken to allow, if their answer is not longer; the traces do not tell. SGLang reserves by it."""
LEAST_SLO: Final = 2.0
"""Seconds; the objective is the first bucket boundary from there on, or from twice the idle engine's p99."""
STEP_JITTER: Final = 0.05


@dataclass(frozen=True, slots=True)
class Setup:
    """A model on GPUs under one of the two schedulers."""

    name: str
    model: Model
    gpu: Gpu
    gpus: int = 1
    scheduler: Scheduler = "vllm"

    def config(self) -> EngineConfig:
        """The engine, its KV pool sized by what the model leaves of the memory."""
        tokens = plan_memory(self.model, self.gpu, tensor_parallel=self.gpus).kv_tokens
        block = 16 if self.scheduler == "vllm" else 1
        cost = Roofline(self.model, self.gpu, self.gpus)
        return EngineConfig(
            cost, self.scheduler, total_blocks=tokens // block, block_tokens=block, step_jitter=STEP_JITTER
        )


A100_8B: Final = Setup("8B on A100", LLAMA_3_8B, A100_80GB)
L4_8B: Final = Setup("8B on L4", LLAMA_3_8B, L4)
A100_70B: Final = Setup("70B on 4 A100", LLAMA_3_70B, A100_80GB, 4)
H100_70B: Final = Setup("70B on 4 H100", LLAMA_3_70B, H100_SXM, 4)
SGLANG_8B: Final = Setup("8B on A100, SGLang", LLAMA_3_8B, A100_80GB, 1, "sglang")
SGLANG_70B: Final = Setup("70B on 4 H100, SGLang", LLAMA_3_70B, H100_SXM, 4, "sglang")


@dataclass(frozen=True, slots=True)
class Scenario:
    """A trace on an engine; `loads` are factors on its arrivals, `tuning` says that constants were fitted on it."""

    trace: str
    setup: Setup
    loads: tuple[float, ...]
    tuning: bool = False

    @property
    def name(self) -> str:
        """Trace and engine."""
        return f"{self.trace} @ {self.setup.name}"

    def slo(self) -> float:
        """The objective of the first token in seconds: a bucket boundary that an idle engine keeps."""
        config = self.setup.config()
        prompts = sorted(request.prompt_tokens for request in trace(self.trace))
        prompt = prompts[int(0.99 * len(prompts))]
        idle = config.cost.step_seconds(prompt, 0, 0, prompt * prompt // 2)
        return next(bound for bound in config.bounds.ttft if bound >= max(LEAST_SLO, 2.0 * idle))


CONV, CODE, MOONCAKE = "azure_llm_2023_conv", "azure_llm_2023_code", "mooncake_fast25_conversation"
LARGE, REASONING = "servegen_mlarge_day6", "servegen_r1_day1"
SCENARIOS: Final = (
    Scenario(CONV, A100_8B, (0.478, 0.796, 0.847, 1.1), tuning=True),
    Scenario(CONV, L4_8B, (0.0352, 0.0587, 0.0722, 0.0776), tuning=True),
    Scenario(LARGE, A100_8B, (0.15, 0.25, 0.341, 0.689), tuning=True),
    Scenario(LARGE, A100_70B, (0.0712, 0.119, 0.146, 0.24), tuning=True),
    Scenario(CODE, A100_8B, (0.156, 0.26, 0.32, 0.39)),
    Scenario(CODE, H100_70B, (0.227, 0.378, 0.537, 0.71)),
    Scenario(CODE, SGLANG_8B, (0.163, 0.271, 0.327, 0.39)),
    Scenario(MOONCAKE, A100_8B, (0.0533, 0.0888, 0.102, 0.116)),
    Scenario(MOONCAKE, H100_70B, (0.0951, 0.158, 0.172, 0.187)),
    Scenario(MOONCAKE, SGLANG_70B, (0.084, 0.14, 0.169, 0.183)),
    Scenario(REASONING, A100_8B, (0.329, 0.548, 0.675, 0.718)),
    Scenario(REASONING, H100_70B, (0.519, 0.865, 0.92, 0.959)),
    Scenario(REASONING, SGLANG_8B, (0.358, 0.596, 0.654, 0.689)),
)


_CALM: Final = ((CODE, SGLANG_8B), (MOONCAKE, H100_70B), (REASONING, A100_8B))
CALM_DAYS: Final = tuple(one for one in SCENARIOS if (one.trace, one.setup) in _CALM)
"""Of which whole calm days are replayed: each held-out trace on another engine."""
CALM: Final = 0.7
"""The busiest hour of a calm day, beside the first of a scenario's loads, at which there is hardly an incident."""
NIGHT: Final = 0.25
"""The calmest hour beside the busiest."""
DAY_SECONDS: Final = 86_400.0


@lru_cache
def trace(name: str) -> tuple[Request, ...]:
    """The requests of a trace, in order of arrival."""
    return tuple(read_trace(TRACES / f"{name}.csv.gz"))


def traffic(name: str, load: float, seed: int) -> list[Request]:
    """A trace with `load` times its arrivals: what one replica behind a random balancer sees.

    Beyond 1, copies shifted by parts of the span are laid over one another before the draw; each copy has prefixes of
    its own, so that none hits what another left in the cache.
    """
    rows = trace(name)
    span, copies = rows[-1].arrival + 0.001, math.ceil(load)
    chance = random.Random(seed)  # noqa: S311  simulation, not security
    drawn = []
    for copy in range(copies):
        shift = (copy + chance.random()) * span / copies if copy else 0.0
        drawn += [
            replace(
                one,
                arrival=(one.arrival + shift) % span,
                max_tokens=max(USUAL_MAX_TOKENS, one.output_tokens),
                prefix=tuple(key * copies + copy for key in one.prefix),
            )
            for one in rows
            if chance.random() < load / copies
        ]
    return sorted(drawn, key=lambda one: one.arrival)


def calm_day(scenario: Scenario, seed: int) -> list[Request]:
    """A day of a scenario's traffic at low load: its trace again and again, thinned by a wave over the day.

    Each turn begins somewhere else in the trace, and has prefixes of its own.
    """
    rows, chance = trace(scenario.trace), random.Random(seed)  # noqa: S311  simulation, not security
    span = rows[-1].arrival + 0.001
    turns = math.ceil(DAY_SECONDS / span)
    busiest = CALM * scenario.loads[0]
    drawn = []
    for turn in range(turns):
        shift = chance.random() * span
        for one in rows:
            at = turn * span + (one.arrival + shift) % span
            wave = NIGHT + (1.0 - NIGHT) * math.sin(math.pi * at / DAY_SECONDS) ** 2
            if chance.random() < busiest * wave and at < DAY_SECONDS:
                allowed = max(USUAL_MAX_TOKENS, one.output_tokens)
                prefix = tuple(key * turns + turn for key in one.prefix)
                drawn.append(replace(one, arrival=at, max_tokens=allowed, prefix=prefix))
    return sorted(drawn, key=lambda one: one.arrival)
