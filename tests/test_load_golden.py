"""What is learned of an engine for its load headroom, number by number: step costs, traffic, the twin, its estimates.

`pytest --update` writes the files; review the diff. What each number should be, other tests say; this one shows which
of them a change moves.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from llm_headroom.config.objectives import Objectives
from llm_headroom.derive import capacity, slo, twin
from llm_headroom.derive.capacity import begun, targets
from llm_headroom.derive.interval import Interval
from llm_headroom.derive.observation import Observation
from llm_headroom.derive.step_cost import Learner, StepCost
from llm_headroom.derive.traffic import Call, Lengths, Traffic
from llm_headroom.derive.trial import estimated
from llm_headroom.model import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from llm_headroom.derive.capacity import Known

EXPECTED: Final = Path(__file__).parent / "fixtures" / "load_headroom"
COST: Final = StepCost(step=0.02, token=1e-4, sequence=1e-4, context=2e-8, pair=1e-9)
SECONDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, math.inf)
SIZES: Final = (0.5, 10.0, 100.0, 500.0, 1000.0, 5000.0, math.inf)


def written(numbers: Iterable[float]) -> str:
    """With the digits that matter."""
    return " ".join(f"{number:.5g}" for number in numbers)


# Step costs ----------------------------------------------------------------------------------------------------------
def polled(chance: random.Random, cost: StepCost) -> Interval:
    """Some seconds of an engine whose steps cost that: few requests or many, long or short, alone or in a queue."""
    seconds = chance.choice((2.0, 5.0, 5.0, 5.0, 30.0, 44.0))
    sequences, prompts = float(chance.choice((0, 1, 4, 30, 60))), float(chance.choice((0, 0, 1, 2, 3)))
    length = chance.choice((200.0, 1000.0, 3000.0))
    context = 700.0 * sequences
    prompt, cached = length * prompts, chance.choice((0.0, 0.3)) * length * prompts
    computed = prompt - cached
    pairs = computed * (prompt - computed / 2.0) / prompts if prompts else 0.0
    decode = cost.decode_seconds(sequences, context)
    steps = max(0.1, (seconds - cost.prefill_seconds(computed, pairs)) / decode)
    return Interval(
        seconds=seconds, firsts=prompts, prompt=prompt, cached=cached,
        first_seconds=prompts * 1.5 * decode + cost.prefill_seconds(computed, pairs) * chance.uniform(0.8, 1.3),
        tokens=steps * sequences, token_seconds=seconds * sequences * chance.uniform(0.9, 1.1), running=sequences,
        preemptions=float(chance.random() < 0.05), held=(context, 1.1 * context),
        waiting=(0.0, float(chance.random() < 0.1)),
    )  # fmt: skip


def step_costs() -> Iterator[str]:
    learner, chance = Learner(), random.Random(5)
    for poll in range(1, 241):
        if poll == 160:
            learner = learner.heir()
        learner = learner.after(polled(chance, COST if poll < 200 else StepCost(*(1.5 * each for each in COST))), 4e5)
        if poll in {5, 6, 7, 10} or poll % 20 == 0:
            yield f"poll {poll}: cost {written(learner.cost or ())}"
            evidence = (*(row[place] for place, row in enumerate(learner.evidence.squares)), *learner.evidence.products)
            yield f"  evidence {written(evidence)}"
            yield f"  rate {learner.prefill_rate:.5g}, light {written(learner.light)}, {learner.since_fit:g} s since"
            yield f"  least {learner.least_latency or 0.0:.5g}, {written((learner.predicted, learner.seen))} s"


# Traffic -------------------------------------------------------------------------------------------------------------
class Requests:
    """Counters of an engine that grow by chance; prompts are of another length from a time on."""

    def __init__(self, seed: int, rate: float) -> None:
        self._chance, self._rate = random.Random(seed), rate
        self._first, self._between = [0.0] * len(SECONDS), [0.0] * len(SECONDS)
        self._prompts, self._answers = [0.0] * len(SIZES), [0.0] * len(SIZES)
        self._sums = [0.0] * 4
        self._now = Observation(
            running=0.0, waiting=0.0, capacity=60_000.0, used=0.0, prompt_tokens=0.0, cached_tokens=0.0,
            generation_tokens=0.0, finished=0.0, preemptions=0.0,
        )  # fmt: skip

    def _observe(self, which: int, counts: list[float], bounds: tuple[float, ...], value: float, by: float) -> None:
        for place, bound in enumerate(bounds):
            counts[place] += by * (value <= bound)
        self._sums[which] += by * value

    def poll(self, seconds: float, prompt: float, *, idle: bool = False) -> Observation:
        """What is exposed so many seconds later."""
        chance, now = self._chance, self._now
        came = 0 if idle else round(chance.expovariate(1.0 / (self._rate * seconds)))
        answers = 0.0
        tokens = 0.0
        for _ in range(came):
            length, answer = prompt * chance.uniform(0.3, 1.7), 80.0 * chance.expovariate(1.0)
            latency = 0.025 + 0.0005 * came
            self._observe(0, self._first, SECONDS, 0.05 + 1e-4 * length + 0.02 * came, 1.0)
            self._observe(1, self._between, SECONDS, latency, answer)
            self._observe(2, self._prompts, SIZES, length, 1.0)
            self._observe(3, self._answers, SIZES, answer, 1.0)
            tokens, answers = tokens + length, answers + answer
        first, between, prompts, lengths = (
            Histogram(bounds, tuple(counts), self._sums[which])
            for which, (bounds, counts) in enumerate(
                ((SECONDS, self._first), (SECONDS, self._between), (SIZES, self._prompts), (SIZES, self._answers))
            )
        )
        waiting = float(chance.randrange(1, 5)) if came > 2.5 * self._rate * seconds else 0.0
        running = min(20.0, came * 2.0)
        self._now = replace(
            now, running=running, waiting=waiting, used=min(59_000.0, running * (prompt + 80.0)),
            finished=(now.finished or 0.0) + came, prompt_tokens=(now.prompt_tokens or 0.0) + tokens,
            cached_tokens=(now.cached_tokens or 0.0) + 0.2 * tokens, ttft=first, inter_token=between,
            prompt_sizes=prompts, generation_sizes=lengths,
            generation_tokens=(now.generation_tokens or 0.0) + answers,
        )  # fmt: skip
        return self._now


def traffic_of(known: Traffic) -> Iterator[str]:
    """Its figures, and sums over a draw."""
    yield "  " + written(
        (known.seconds, known.alike, known.busy, known.quiet, known.generated, known.answered, known.warm_up)
    )
    for lengths in (known.prompts, known.answers, known.waited):
        yield f"  lengths {written(lengths.counts)}; {lengths.beyond(1.0):.5g}"
    yield f"  rates {written((known.rate, known.recent_rate(61.0), known.latest(30.0).seconds, known.served or -1.0))}"
    sizes = known.sizes()
    if sizes is None:
        yield "  no sizes"
        return
    yield f"  sizes {written((sizes.prompt, sizes.answer, sizes.cached, sizes.per_step))}"
    for lengths, mean in ((known.prompts, sizes.prompt), (known.answers, sizes.answer)):
        yield f"  deviation {lengths.sampler(mean).deviation:.5g}"
    ratios = known.prompt_ratios(sizes.prompt, known.prompts.sampler(sizes.prompt).deviation)
    yield f"  ratios {written((ratios[0], ratios[-1], sum(each**2 for each in ratios)))}"
    drawn = known.draw(sizes, 3.0, random.Random(2))
    calls = [call for _, call in drawn]
    yield "  drawn " + written(
        (len(drawn), sum(mark for mark, _ in drawn), *(sum(each) for each in zip(*calls, strict=True)))
    )


ENGINES: Final = {"vllm": (1, 1.0), "sglang": (2, 3.0), "llamacpp": (1, 0.6)}
"""Replicas, and requests a second of all of them."""


def known_of(engine: str, *polls: int) -> Iterator[Known]:
    """What is known after some polls of half an hour: with idle minutes, another mix, and requests that wait."""
    replicas, rate = ENGINES[engine]
    requests = Requests(7, rate)
    limit: dict[str, Any] = {"limit": 24.0} if engine == "llamacpp" else {}
    known, at = begun(replace(requests.poll(5.0, 500.0), **limit), 0.0, engine), 0.0
    for poll in range(1, max(polls) + 1):
        seconds = (5.0, 5.0, 10.0, 4.5)[poll % 4]
        at += seconds
        now = requests.poll(seconds, 500.0 if poll < 250 else 1500.0, idle=40 <= poll < 60)
        known = known.after(replace(now, **limit), at, replicas)
        if poll in polls:
            yield known


def traffic() -> Iterator[str]:
    for engine in ENGINES:
        for known in known_of(engine, 20, 52, 62, 130, 254, 329):
            yield f"{engine}: missing {known.missing}, due {known.due}, cost {written(known.learner.cost or ())}"
            yield from traffic_of(known.traffic)


# The twin ------------------------------------------------------------------------------------------------------------
TWINS: Final = {
    "large": twin.Engine(cost=COST, capacity=1e6),
    "of few requests": twin.Engine(cost=COST, capacity=1e6, limit=6.0),
    "small": twin.Engine(cost=COST, capacity=9000.0),
    "small, prefill first": twin.Engine(cost=COST, capacity=9000.0, ceiling=0.7, prefill_first=True),
    "large, prefill first": twin.Engine(cost=COST, capacity=1e6, ceiling=0.9, prefill_first=True),
    "speculating": twin.Engine(cost=COST, capacity=20_000.0, per_step=2.5, limit=30.0),
    "of small steps": twin.Engine(cost=COST, capacity=30_000.0, step_tokens=256),
}


def replays() -> Iterator[str]:
    chance, at, calls = random.Random(11), 0.0, list[Call]()
    for _ in range(160):
        at += chance.expovariate(2.0) if chance.random() < 0.95 else 12.0
        prompt = round(chance.choice((20.0, 400.0, 2500.0)) * chance.uniform(0.5, 1.5))
        calls.append(Call(at, prompt, round(prompt * chance.choice((0.0, 0.0, 0.6))), round(chance.expovariate(0.01))))
    for name, engine in TWINS.items():
        for first, between, since in ((2.5, 0.05, 0.0), (0.4, 0.021, 30.0)):
            found = twin.replay(calls, engine, first=first, between=between, since=since)
            came = [each for each in found.first_seconds if math.isfinite(each)]
            seconds = written((sum(came), max(came)))
            yield f"{name}: first tokens {found.firsts} {len(came)} {found.slow_firsts}, {seconds} s"
            yield f"  tokens {written((found.tokens, found.slow_tokens))}, waits {written(found.waits.values())}"


# Estimates -----------------------------------------------------------------------------------------------------------
NAMES: Final = ("ttft", "inter_token_latency", "request_duration")


def estimates() -> Iterator[str]:
    """The headroom of two minutes' traffic: as first tokens were, and with so large a share of slow ones."""
    objectives = targets(
        slo.objectives(Objectives(ttft=1.0, inter_token_latency=0.05)), dict.fromkeys(NAMES, slo.Tally())
    )
    for engine, shares in (("vllm", (None, 0.0, 0.02, 0.5)), ("sglang", (0.2,)), ("llamacpp", (0.01,))):
        (known,) = known_of(engine, 20)
        waited = known.traffic.waited
        for slow in shares:
            counts = () if slow is None else (70.0 - 100.0 * slow, 20.0, 6.0, 4.0, 100.0 * slow, 0.0, 0.0, 0.0)
            lengths = waited if slow is None else Lengths(waited.bounds, counts)
            other = replace(known, traffic=replace(known.traffic, waited=lengths, busy=900.0))
            found = estimated(other, objectives)
            assert found is not None
            seen = (f"{name} {each.ratio:.5g} {each.binding}" for name, each in found.headroom.items())
            yield f"{engine}, {slow} slow: {', '.join(seen)} of {found.rate:.5g}/s"
            after = other.with_estimate(found)
            yield f"  saturation {capacity.saturation(after) or 0.0:.5g}, suspect {after.suspect}"


@pytest.mark.parametrize("part", [step_costs, traffic, replays, estimates], ids=lambda part: part.__name__)
def test_what_is_learned_drawn_replayed_and_estimated(
    part: Callable[[], Iterator[str]],
    update: bool,  # noqa: FBT001 - a fixture
) -> None:
    found = "\n".join(part()) + "\n"
    expected = EXPECTED / f"{part.__name__}.txt"
    if update:
        expected.parent.mkdir(exist_ok=True)
        expected.write_text(found, encoding="utf-8")

    assert found == expected.read_text(encoding="utf-8")
