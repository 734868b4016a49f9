"""An autoscaler in a loop with simulated engines: what requests suffer, and for how many replica-hours.

    PYTHONPATH=bench python -m headroom.autoscaler

Traffic rises from a fifth of what four engines take to all of it, and falls to two fifths, over three hours. Every
minute the autoscaler wants as many replicas as a Kubernetes autoscaler would for an average of its target; an engine
takes three minutes to start, and it shrinks to the most that was wanted in ten minutes, as the chart has it.
"""

from __future__ import annotations

import math
import random
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from evaluate.replay import points
from evaluate.scenarios import A100_8B, CODE, CONV, LARGE, REASONING, USUAL_MAX_TOKENS, trace
from headroom.scenarios import Scenario
from headroom.truth import ALLOWED, limit
from llm_headroom.derive.capacity import Known, Target, begun, saturation
from llm_headroom.derive.observation import Observation, observe
from llm_headroom.derive.trial import estimated
from llm_headroom.simulate.batching import Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llm_headroom.simulate.engine_state import Outcome
    from llm_headroom.simulate.traffic import Request

WORKLOADS: Final = (CONV, LARGE, CODE, REASONING)
HOURS: Final = 3.0
FULL: Final = 4
"""Engines that the peak fills."""
AT_FIRST: Final = 2
MOST: Final = 8
START_SECONDS: Final = 180.0
SHRINK_SECONDS: Final = 600.0
TOLERANCE: Final = 0.1
"""By which a figure may be off its target; the default of Kubernetes."""
POLL_SECONDS: Final = 5.0
EVERY: Final = 60.0


@dataclass(slots=True, eq=False)
class Replica:
    """One engine: when it is ready, and what an exporter knows of it."""

    engine: Engine
    ready: float
    objective: float
    known: Known | None = None
    seen: Observation | None = None

    def poll(self, at: float) -> None:
        """Read it."""
        self.engine.advance(at)
        self.seen = observe(points(self.engine.read(), {"engine": "e", "target": "t", "model": "m"}))["m"]
        self.known = begun(self.seen, at, "vllm") if self.known is None else self.known.after(self.seen, at)

    def saturation(self) -> float | None:
        """What the exporter would export."""
        if self.known is None:
            return None
        if self.known.due:
            estimate = estimated(self.known, (Target("ttft", "ttft", self.objective, ALLOWED),))
            self.known = self.known if estimate is None else self.known.with_estimate(estimate)
        return saturation(self.known)

    def usage(self) -> float | None:
        """Usage of the KV cache."""
        return None if self.seen is None else self.seen.usage

    def waiting(self) -> float | None:
        """Waiting requests."""
        return None if self.seen is None else self.seen.waiting


RULES: Final[dict[str, tuple[Callable[[Replica], float | None], float]]] = {
    "load headroom: saturation 0.8": (Replica.saturation, 0.8),
    "KV usage 0.8": (Replica.usage, 0.8),
    "waiting 5": (Replica.waiting, 5.0),
}


def load(at: float) -> float:
    """The traffic as a share of what four engines take."""
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
    rule: tuple[Callable[[Replica], float | None], float] | None
    seed: int
    replicas: list[Replica] = field(default_factory=list)
    wanted: list[tuple[float, int]] = field(default_factory=list)
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
                chance.choice(ready).engine.submit(coming, on_end=partial(self._ended))
                coming = next(requests, None)
            for one in self.replicas:
                if one.ready <= at:
                    one.poll(at)
            self.seconds += POLL_SECONDS * len(self.replicas)
            if self.rule is not None and at % EVERY == 0:
                gone += self._scale(at)
        for one in (*self.replicas, *gone):
            one.engine.advance(one.engine.now + 3600.0)
        return self.slow / self.total, self.seconds / 3600.0

    def _ended(self, outcome: Outcome) -> None:
        first = outcome.first_token
        self.slow += first is None or first - outcome.request.arrival > self.scenario.objective

    def _add(self, at: float, delay: float) -> None:
        engine = Engine(self.scenario.setup.config(), seed=len(self.replicas), start=at)
        self.replicas.append(Replica(engine, at + delay, self.scenario.objective))

    def _scale(self, at: float) -> list[Replica]:
        """Add or take away replicas; the newest ones go first, and end what they have begun."""
        if self.rule is None:
            return []
        figure, target = self.rule
        ready = [one for one in self.replicas if one.ready <= at]
        known = [value for one in ready if (value := figure(one)) is not None]
        if not known:
            return []
        ratio = sum(known) / len(known) / target
        wanted = math.ceil(ratio * len(ready)) if abs(ratio - 1.0) > TOLERANCE else len(ready)
        self.wanted = [each for each in self.wanted if each[0] > at - SHRINK_SECONDS]
        self.wanted.append((at, min(MOST, max(1, wanted))))
        count = max(self.wanted[-1][1], min(len(self.replicas), max(each for _, each in self.wanted)))
        while len(self.replicas) < count:
            self._add(at, START_SECONDS)
        gone = self.replicas[count:]
        del self.replicas[count:]
        return gone


def main() -> int:
    """Print a table."""
    print("| traffic | rule | slow first tokens | replica-hours |\n| --- | --- | --- | --- |")
    for group in WORKLOADS:
        scenario = Scenario(group, A100_8B)
        most = limit(scenario)
        for name, rule in RULES.items():
            slow, hours = Loop(scenario, rule, 1).run(traffic(scenario, most, 1), AT_FIRST)
            print(f"| {group} | {name} | {slow:.2%} | {hours:.1f} |", flush=True)
        for count in (2, 3, 4, 5):
            slow, hours = Loop(scenario, None, 1).run(traffic(scenario, most, 1), count)
            print(f"| {group} | always {count} | {slow:.2%} | {hours:.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
