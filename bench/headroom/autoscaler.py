"""An autoscaler in a loop with simulated engines: what requests suffer, and for how many replica-hours.

    PYTHONPATH=bench python -m headroom.autoscaler [--seeds 3] [--rows FILE] [--output docs/load-headroom.md]

Traffic rises from a fifth of four times the limit of one engine to all of it, and falls to two fifths, over two
hours; spread over several engines its bursts are smoother, so fewer than four can be enough at the peak. Every minute
the autoscaler wants as many replicas as a Kubernetes autoscaler would for an average of its target; an engine takes
three minutes to start, or one, it grows by two engines in three minutes at most, and shrinks to the most that was
wanted in ten minutes, as the chart has it. Takes half an hour of CPU for each seed; what lies in the file of rows is
not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections import deque
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from itertools import product
from multiprocessing import Pool
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Final

import sections
from evaluate.replay import ITL_SLO, points
from evaluate.scenarios import A100_8B, CODE, CONV, L4_8B, LARGE, MOONCAKE, USUAL_MAX_TOKENS, trace
from headroom import report
from headroom.loops import Outcome, section
from headroom.peers import first_token_quantile
from headroom.scenarios import Scenario
from headroom.truth import ALLOWED, limit
from llm_headroom.config.objectives import Objectives
from llm_headroom.derive import slo
from llm_headroom.derive.capacity import Target, saturation
from llm_headroom.derive.memory import Memory, advance, with_estimate, with_kin
from llm_headroom.derive.observation import Observation, observe
from llm_headroom.derive.trial import estimated
from llm_headroom.simulate.batching import Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from llm_headroom.simulate.engine_state import Outcome as Ended
    from llm_headroom.simulate.traffic import Request

WORKLOADS: Final = ((CODE, L4_8B), (MOONCAKE, A100_8B), (CONV, L4_8B), (LARGE, L4_8B))
"""Two held-out traces and the two that constants were tuned on; engines on which each has some requests a second."""
HOURS: Final = 2.0
FULL: Final = 4
"""Engines whose limits, each by itself, are the peak together."""
AT_FIRST: Final = 2
MOST: Final = 12
SLOW_START: Final = 180.0
QUICK_START: Final = 60.0
"""Seconds until an engine is ready: with its image and weights to be fetched, and with both on the node."""
SHRINK_SECONDS: Final = 600.0
GROWN_AT_ONCE: Final = 2
GROW_SECONDS: Final = 180.0
"""As the chart has it: `scaleDownSeconds`, and `pods` and `seconds` of `scaleUp`."""
TOLERANCE: Final = 0.1
"""By which a figure may be off its target; the default of Kubernetes."""
POLL_SECONDS: Final = 5.0
EVERY: Final = 60.0
SHARED_SECONDS: Final = 300.0
"""The load of an engine is that of so many seconds, in which it was shared by the engines that there were."""
WINDOW: Final = 60.0
"""Seconds of which the p95 of first tokens is."""
ESTIMATE_SECONDS: Final = 90.0
"""Between two estimates of the load headroom; an exporter makes them every 60 to 96 s."""
_DRAIN: Final = 3600.0
"""Seconds after the last arrival in which all that was begun comes to its end."""
_BASE: Final = {"engine": "vllm", "target": "t"}


@dataclass(slots=True, eq=False)
class Replica:
    """One engine: when it is ready, and what an exporter knows of it."""

    engine: Engine
    ready: float
    objective: float
    memory: Memory = field(default_factory=Memory)
    seen: deque[tuple[float, Observation]] = field(default_factory=deque)
    estimate_due: float = 0.0
    under_way: int = 0

    def poll(self, at: float, others: Sequence[Replica], *, derives: bool) -> None:
        """Read it; `derives` says that more than what it exposes itself is wanted, also by what `others` have shown."""
        self.engine.advance(at)
        read = points(self.engine.read(), {**_BASE, "model": "m"})
        self.seen.append((at, observe(read)["m"]))
        while self.seen[0][0] < at - WINDOW:
            self.seen.popleft()
        if derives:
            objectives = slo.objectives(Objectives(ttft=self.objective, inter_token_latency=ITL_SLO))
            self.memory, _ = advance(self.memory, read, at, base=_BASE, objectives=objectives)
            self.memory = with_kin(self.memory, [each.memory for each in others if each is not self])

    def saturation(self) -> float | None:
        """What the exporter would export."""
        known = self.memory.models["m"].load
        if known.due and known.at >= self.estimate_due:
            self.estimate_due = known.at + ESTIMATE_SECONDS
            estimate = estimated(known, (Target("ttft", "ttft", self.objective, ALLOWED),))
            if estimate is not None:
                self.memory = with_estimate(self.memory, "m", estimate)
                known = self.memory.models["m"].load
        return saturation(known)

    def pressure(self) -> float | None:
        """The most pressed resource, as the exporter exported it for autoscalers before."""
        return max(self.memory.models["m"].levels.by_resource().values(), default=None)

    def usage(self) -> float | None:
        """Usage of the KV cache."""
        return self.seen[-1][1].usage if self.seen else None

    def waiting(self) -> float | None:
        """Waiting requests."""
        return self.seen[-1][1].waiting if self.seen else None

    def late(self) -> float | None:
        """The 95th percentile of a minute's first tokens, as a share of the objective."""
        if not self.seen:
            return None
        slow = first_token_quantile(self.seen[0][1], self.seen[-1][1], 0.95)
        return None if slow is None else slow / self.objective


@dataclass(frozen=True, slots=True)
class Rule:
    """What of a replica is to be at a target on average; `derives` says that the exporter has to derive it.

    The mean is taken times the engines that are ready; if it is of the last `seconds`, then times those that were on
    average, as the chart's query has it: what came was shared among these, and not among those that have just begun.
    Without a figure it knows the ramp that is to come, as shares of what the engines take each by itself: no real rule
    does, but it shows what of the slow ones is due to the traffic's own swings.
    """

    figure: Callable[[Replica], float | None] | None
    target: float
    derives: bool = False
    seconds: float = 0.0


RULES: Final = {
    "llm_saturation_ratio 0.8": Rule(Replica.saturation, 0.8, derives=True, seconds=SHARED_SECONDS),
    "llm_saturation_ratio 0.65": Rule(Replica.saturation, 0.65, derives=True, seconds=SHARED_SECONDS),
    "llm_pressure_ratio 0.8": Rule(Replica.pressure, 0.8, derives=True),
    "KV usage 0.8": Rule(Replica.usage, 0.8),
    "waiting 5": Rule(Replica.waiting, 5.0),
    "p95 of TTFT at half the objective": Rule(Replica.late, 0.5),
    "knows the ramp to come, 0.8": Rule(None, 0.8),
}
FIXED: Final = {f"always {count}": count for count in range(2, 9)}


def at_random(ready: Sequence[Replica], chance: random.Random, at: float) -> Replica:  # noqa: ARG001 - as the other
    """Any of them, as a Service of Kubernetes does."""
    return chance.choice(ready)


def less_loaded(ready: Sequence[Replica], chance: random.Random, at: float) -> Replica:
    """That of any two with fewer requests under way, as Envoy and gateways do that know what they have sent."""
    one, other = chance.choice(ready), chance.choice(ready)
    for each in (one, other):
        each.engine.advance(at)
    return one if one.under_way <= other.under_way else other


def least_loaded(ready: Sequence[Replica], chance: random.Random, at: float) -> Replica:
    """That with the fewest requests under way, as one router does that sends them all; any of those with as few."""
    for each in ready:
        each.engine.advance(at)
    return min(ready, key=lambda one: (one.under_way, chance.random()))


BALANCERS: Final = {
    "at random": at_random,
    "that is the less loaded of two": less_loaded,
    "that has the fewest open requests": least_loaded,
}
STARTS: Final[dict[float, tuple[str, ...]]] = {
    SLOW_START: tuple(RULES),
    QUICK_START: ("llm_saturation_ratio 0.8", "llm_saturation_ratio 0.65"),
}
"""Which rules are played with which start; a fixed size starts no engine, so that one run of it is enough."""


def load(at: float) -> float:
    """The traffic as a share of its peak."""
    share = at / (HOURS * 3600.0)
    if share < 0.5:
        return 0.2 + 0.8 * share / 0.5
    return 1.0 - 0.6 * (share - 0.5) / 0.5


def traffic(scenario: Scenario, most: float, seed: int) -> Iterator[Request]:
    """The trace again and again, thinned and laid over itself to follow the load."""
    rows, chance = trace(scenario.group), random.Random(seed)  # noqa: S311 - simulation, not security
    span = rows[-1].arrival + 0.001
    wanted = FULL * most
    copies = math.ceil(wanted)
    shifts = [(copy + chance.random()) * span / copies for copy in range(copies)]
    drawn = []
    for turn in range(math.ceil(HOURS * 3600.0 / span) + 1):
        for copy, shift in enumerate(shifts):
            for one in rows:
                at = one.arrival + shift + (turn - 1) * span
                if 0.0 <= at < HOURS * 3600.0 and chance.random() < load(at) * wanted / copies:
                    allowed = max(USUAL_MAX_TOKENS, one.output_tokens)
                    prefix = tuple(key * copies + copy for key in one.prefix)
                    drawn.append(replace(one, arrival=at, max_tokens=allowed, prefix=prefix))
    yield from sorted(drawn, key=lambda one: one.arrival)


@dataclass(slots=True)
class Loop:
    """The engines, and the autoscaler; `rule` gives a replica's figure, None a fixed number of `replicas`."""

    scenario: Scenario
    rule: Rule | None
    seed: int
    balance: Callable[[Sequence[Replica], random.Random, float], Replica]
    start: float = SLOW_START
    replicas: list[Replica] = field(default_factory=list)
    wanted: list[tuple[float, int]] = field(default_factory=list)
    added: list[float] = field(default_factory=list)
    ready: deque[int] = field(default_factory=lambda: deque(maxlen=int(SHARED_SECONDS / POLL_SECONDS)))
    slow: int = 0
    total: int = 0
    seconds: float = 0.0

    def run(self, requests: Iterator[Request], count: int) -> tuple[float, float]:
        """The share of slow first tokens, and replica-hours, of traffic on `count` engines at first."""
        chance = random.Random(self.seed)  # noqa: S311 - simulation, not security
        gone: list[Replica] = []
        for _ in range(count):
            self._add(0.0, 0.0)
        coming = next(requests, None)
        for poll in range(1, int(HOURS * 3600.0 / POLL_SECONDS) + 1):
            at = poll * POLL_SECONDS
            while coming is not None and coming.arrival <= at:
                ready = [one for one in self.replicas if one.ready <= coming.arrival]
                self.total += 1
                one = self.balance(ready, chance, coming.arrival)
                one.under_way += 1
                one.engine.submit(coming, on_end=partial(self._ended, one))
                coming = next(requests, None)
            for one in self.replicas:
                if self.rule is not None and self.rule.figure is not None and one.ready <= at:
                    one.poll(at, self.replicas, derives=self.rule.derives)
            self.seconds += POLL_SECONDS * len(self.replicas)
            self.ready.append(sum(one.ready <= at for one in self.replicas))
            if self.rule is not None and at % EVERY == 0:
                gone += self._scale(at)
        for one in (*self.replicas, *gone):
            one.engine.advance(HOURS * 3600.0 + _DRAIN)
        return self.slow / self.total, self.seconds / 3600.0

    def _ended(self, one: Replica, outcome: Ended) -> None:
        one.under_way -= 1
        first = outcome.first_token
        self.slow += first is None or first - outcome.request.arrival > self.scenario.objective

    def _add(self, at: float, delay: float) -> None:
        engine = Engine(self.scenario.setup.config(), seed=len(self.replicas), start=at)
        self.replicas.append(Replica(engine, at + delay, self.scenario.objective))

    def _scale(self, at: float) -> list[Replica]:
        """Add or take away replicas; the newest ones go first, and end what they have begun."""
        count = self._wanted(at)
        if count is None:
            return []
        self.wanted = [each for each in self.wanted if each[0] > at - SHRINK_SECONDS]
        self.wanted.append((at, min(MOST, max(1, count))))
        count = max(self.wanted[-1][1], min(len(self.replicas), max(each for _, each in self.wanted)))
        self.added = [each for each in self.added if each > at - GROW_SECONDS]
        for _ in range(min(count - len(self.replicas), GROWN_AT_ONCE - len(self.added))):
            self._add(at, self.start)
            self.added.append(at)
        gone = self.replicas[count:]
        del self.replicas[count:]
        return gone

    def _wanted(self, at: float) -> int | None:
        """So many as Kubernetes wants by the rule, for an average value; None where the rule knows nothing yet."""
        if self.rule is None:
            return None
        if self.rule.figure is None:
            return math.ceil(load(min(at + self.start + EVERY, HOURS * 3600.0)) * FULL / self.rule.target)
        known = [value for one in self.replicas if one.ready <= at and (value := self.rule.figure(one)) is not None]
        if not known:
            return None
        shared = list(self.ready)[-max(1, round(self.rule.seconds / POLL_SECONDS)) :]
        count = fmean(known) * fmean(shared) / self.rule.target
        return math.ceil(count) if abs(count / len(self.replicas) - 1.0) > TOLERANCE else len(self.replicas)


@cache
def _limit(group: str) -> float:
    return limit(Scenario(group, dict(WORKLOADS)[group]))


def played(place: tuple[str, float, str, int, str]) -> Outcome:
    """A rule or fixed size behind a balancer, with engines that take so long to start, on a workload with a seed."""
    balancer, start, group, seed, name = place
    scenario = Scenario(group, dict(WORKLOADS)[group])
    requests = traffic(scenario, _limit(group), seed)
    loop = Loop(scenario, RULES.get(name), seed, BALANCERS[balancer], start)
    slow, hours = loop.run(requests, FIXED.get(name, AT_FIRST))
    return Outcome(scenario.name, group, seed, name, slow, hours, balancer, start)


def whole(rows: Sequence[Outcome]) -> list[Outcome]:
    """Those of the draws in which every rule and size was played; a run may have been ended before."""
    draws: dict[tuple[str, float, str, int], set[str]] = {}
    for row in rows:
        draws.setdefault((row.balancer, row.start, row.group, row.seed), set()).add(row.rule)

    def complete(row: Outcome) -> bool:
        fixed = draws.get((row.balancer, SLOW_START, row.group, row.seed), set())
        wanted = FIXED if row.rule in FIXED else STARTS[row.start]
        return (
            {*FIXED} <= fixed
            and row.rule in wanted
            and {*wanted} <= draws[row.balancer, row.start, row.group, row.seed]
        )

    return [row for row in rows if complete(row)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Play what is not in the file of rows, and print or write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="draws of each workload; 0 plays none")
    parser.add_argument("--rows", type=Path, help="file of rows to add to, one JSON object a line")
    parser.add_argument("--output", type=Path, help="the document whose section is written; without it, it is printed")
    options = parser.parse_args(arguments)
    rows: list[Outcome] = []
    if options.rows and options.rows.exists():
        rows = [Outcome(**json.loads(line)) for line in options.rows.read_text().splitlines()]
    done = {(row.balancer, row.start, row.group, row.seed, row.rule) for row in rows}
    seeds = range(1, options.seeds + 1)
    places = product(seeds, BALANCERS, STARTS, (group for group, _ in WORKLOADS))
    wanted = [
        (balancer, start, group, seed, name)
        for seed, balancer, start, group in places
        for name in (*STARTS[start], *(FIXED if start == SLOW_START else ()))
    ]
    with Pool(2) as pool:
        for row in pool.imap_unordered(played, [each for each in wanted if each not in done]):
            rows.append(row)
            if options.rows:
                with options.rows.open("a") as out:
                    out.write(json.dumps(asdict(row)) + "\n")
            print(
                f"{row.balancer}, start {row.start:g} s, {row.scenario}, seed {row.seed}, {row.rule}: "
                f"{row.slow:.2%} @ {row.hours:.1f}",
                file=sys.stderr,
            )
    part = section(whole(rows))
    if options.output:
        sections.put(part, options.output, report.LAST)
    else:
        print(part)
    return 0


if __name__ == "__main__":
    sys.exit(main())
