"""Ramps: what the exporter says at a third of an engine's load that it takes, and what it takes.

An engine is filled for some seconds to learn roughly how much it takes. Then an exporter that knows nothing watches it
at 30 % of that, with random arrivals, until it has a load headroom. Then the arrivals grow by steps until more first
tokens are slow than the objective allows. Where that is lies between two steps, by their slow shares.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Final

from live.client import Client, Request

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from live.exporter import Exporter

ALLOWED: Final = 0.05
"""The share of first tokens that may be slow."""
LEARNED_AT: Final = 0.3
"""Of the requests per second that the engine ends when it is kept full."""
FILLED_SECONDS: Final = 40.0
WARM_SECONDS: Final = 10.0
"""At the beginning, which do not count: the first requests of a size make an engine prepare for it."""
LONGEST_LEARNING: Final = 900.0
"""Seconds until there must be a load headroom: it takes ten busy minutes."""
POLL_SECONDS: Final = 5.0
FIRST_FACTOR: Final = 1.5
GROWTH: Final = 1.2
MOST_FACTOR: Final = 12.0
STEP_SECONDS: Final = 40.0
LEAST_ASKED: Final = 120.0
"""Requests of a step, about: of fewer, a twentieth is a matter of luck."""
WITHIN: Final = 1.35
BOUNDARIES: Final = (2.5, 5.0, 7.5, 10.0, 20.0, 40.0)
"""Seconds at which vLLM's and SGLang's histograms of first tokens have buckets."""
IDLE_TIMES: Final = 3.0
"""By which the objective is longer than the first token of an engine that has nothing else to do, at least."""
_TOKENS: Final = range(3, 96)
"""Any tokens will do; these are single characters in most vocabularies."""
_LONGEST_ANSWER: Final = 4.0
"""Means; answers are exponential below it."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Requests by the mean numbers of their tokens."""

    prompt: int
    answer: int

    def request(self, chance: random.Random, model: str) -> Request:
        """One of them: prompts of half to one and a half times the mean that no cache has seen, exponential answers."""
        prompt = max(1, round(self.prompt * chance.uniform(0.5, 1.5)))
        answer = min(_LONGEST_ANSWER, chance.expovariate(1.0)) * self.answer
        return Request(tuple(chance.choices(_TOKENS, k=prompt)), max(1, round(answer)), model=model)


@dataclass(slots=True)
class Asked:
    """One request: when, and the seconds to its first token once there is one."""

    at: float
    first: float | None = None

    def slow(self, objective: float) -> bool:
        """Whether it came late, or never."""
        return self.first is None or self.first > objective


@dataclass(frozen=True, slots=True)
class Step:
    """So many times the arrivals of the learning: first tokens, and those that were slow."""

    times: float
    asked: int
    slow: int

    @property
    def share(self) -> float:
        """The slow share; 0 without any."""
        return self.slow / self.asked if self.asked else 0.0


@dataclass(frozen=True, slots=True)
class Ramp:
    """What was said and what was found; `rate` in requests per second is that of the learning."""

    mix: Mix
    objective: float
    rate: float
    said: float | None
    binding: str
    suspect: bool
    seconds: float
    steps: Sequence[Step]

    @property
    def found(self) -> float | None:
        """The factor at which the allowed share is slow; None where no step, or the first one, is beyond it."""
        for before, step in zip(self.steps, self.steps[1:], strict=False):
            if before.share <= ALLOWED < step.share:
                part = (ALLOWED - before.share) / (step.share - before.share)
                return before.times * math.exp(part * math.log(step.times / before.times))
        return None

    @property
    def off(self) -> float | None:
        """What was said over what was found."""
        return self.said / self.found if self.said and self.found else None


@dataclass(slots=True)
class Load:
    """Arrivals at random times, at a rate that may change; nobody waits for an answer before asking again."""

    client: Client
    mix: Mix
    model: str
    chance: random.Random
    rate: float
    asked: list[Asked] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def arrive(self) -> None:
        """Ask until cancelled."""
        due = time.monotonic()
        while True:
            due += self.chance.expovariate(self.rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task = asyncio.create_task(self._ask())
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _ask(self) -> None:
        one = Asked(time.monotonic())
        self.asked.append(one)
        one.first = await self.client.ask(self.mix.request(self.chance, self.model))

    async def step(self, times: float, rate: float, seconds: float, objective: float) -> Step:
        """So many times a rate for some seconds, and on until the last of them can be judged."""
        self.rate = times * rate
        begin = time.monotonic()
        await asyncio.sleep(seconds + objective)
        counted = [one for one in self.asked if begin <= one.at < begin + seconds]
        return Step(times, len(counted), sum(one.slow(objective) for one in counted))

    async def end(self) -> None:
        """Leave all that is under way."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def idle(client: Client, mix: Mix, model: str) -> float:
    """The objective in seconds: a bucket boundary that an idle engine keeps easily. Raises ValueError without one."""
    chance = random.Random(0)  # noqa: S311 - traffic, not security
    firsts = [await client.ask(mix.request(chance, model)) or math.inf for _ in range(5)]
    wanted = IDLE_TIMES * median(firsts)
    for bound in BOUNDARIES:
        if bound >= wanted:
            return bound
    raise ValueError(f"an idle engine takes {median(firsts):.1f} s to the first token")


async def filled(client: Client, mix: Mix, model: str, at_once: int) -> float:
    """Requests per second that end while so many are under way."""
    chance = random.Random(1)  # noqa: S311 - traffic, not security
    ended = 0

    async def one() -> None:
        nonlocal ended
        while True:
            await client.ask(mix.request(chance, model))
            ended += 1

    tasks = [asyncio.create_task(one()) for _ in range(at_once)]
    await asyncio.sleep(WARM_SECONDS)
    began, before = time.monotonic(), ended
    await asyncio.sleep(FILLED_SECONDS)
    rate = (ended - before) / (time.monotonic() - began)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return rate


async def ramp(load: Load, exporter: Exporter, objective: float) -> Ramp:
    """One ramp from the load's rate on, over an exporter that has just been started."""
    rate = load.rate
    arrivals = asyncio.create_task(load.arrive())
    try:
        began = time.monotonic()
        reading = await exporter.until(
            lambda now: now.of("llm_load_headroom_ratio", objective="ttft") is not None,
            LONGEST_LEARNING,
            pause=POLL_SECONDS,
        )
        seconds = time.monotonic() - began
        judged = [one for one in load.asked if one.at < time.monotonic() - objective]
        steps = [Step(1.0, len(judged), sum(one.slow(objective) for one in judged))]
        times = FIRST_FACTOR
        while steps[-1].share <= ALLOWED and times <= MOST_FACTOR:
            seconds_of_step = max(STEP_SECONDS, LEAST_ASKED / (times * rate))
            steps.append(await load.step(times, rate, seconds_of_step, objective))
            print(f"  {times:.2f} times: {steps[-1].slow} of {steps[-1].asked} slow", flush=True)
            times *= GROWTH
    finally:
        arrivals.cancel()
        await load.end()
    said = reading.of("llm_load_headroom_ratio", objective="ttft")
    names = ("kv_cache", "compute", "concurrency")
    binding = [
        name for name in names if reading.of("llm_load_headroom_binding", objective="ttft", resource=name) == 1.0
    ]
    suspect = reading.of("llm_load_headroom_suspect") == 1.0
    return Ramp(load.mix, objective, len(judged) / seconds, said, ", ".join(binding), suspect, seconds, steps)


def section(title: str, how: str, ramps: Sequence[Ramp]) -> Iterator[str]:
    """The part of docs/load-headroom.md on one engine."""
    right = sum(one.off is not None and 1 / WITHIN <= one.off <= WITHIN for one in ramps)
    yield f"## {title}\n"
    yield f"Written by `make live ARGS=--ramps`. {how}\n"
    high, low = (sum(one.off is not None and side * one.off > side for one in ramps) for side in (1, -1))
    yield f"{right} of {len(ramps)} are within a factor of {WITHIN}; {high} said more than was found, {low} less.\n"
    yield (
        "| prompt + answer, mean tokens | objective | learned at | said after | binds | said limit | found limit "
        "| said / found | slow at the steps |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for one in ramps:
        said = "none" if one.said is None else f"{one.said:.2f} ×{', suspect' if one.suspect else ''}"
        found = "none" if one.found is None else f"{one.found:.2f} ×"
        off = "–" if one.off is None else f"{one.off:.2f}"
        steps = ", ".join(f"{step.times:.2f}: {step.share:.0%}" for step in one.steps)
        yield (
            f"| {one.mix.prompt} + {one.mix.answer} | {one.objective:g} s | {one.rate:.2f}/s | {one.seconds:.0f} s "
            f"| {one.binding or '–'} | {said} | {found} | {off} | {steps} |"
        )
