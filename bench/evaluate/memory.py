"""How GPU memory runs out in twelve kinds of processes, and what the OOM risk says before.

    PYTHONPATH=bench python -m evaluate.memory [--seeds 1 2 3]

Each is read once a minute for five days. Where its memory runs out, it is restarted and begins anew. An alert is right
if memory runs out while it is on or within `HORIZON` of its begin; a leak is caught in time if an alert is on five
minutes before. What takes memory at once cannot be foreseen, and is counted apart.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom.derive.oom import Device

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

GIB: Final = 2.0**30
TOTAL: Final = 80.0 * GIB
MINUTES: Final = 5 * 24 * 60
THRESHOLD: Final = 0.5
FOR: Final = 5
"""Minutes for which the risk has to last, as in `LLMOomRisk`."""
HORIZON: Final = 120
"""Minutes; a leak is said to fill the device within an hour."""
AHEAD: Final = 5


@dataclass(frozen=True, slots=True)
class Process:
    """Memory in GiB at its begin, leaked per hour (in steps of `stairs` hours), and of its bursts on average.

    `sudden` is the chance in a day that something takes the rest at once, `caches` what an allocator takes within hours
    and never gives back.
    """

    name: str
    base: float
    leak: float = 0.0
    stairs: float = 0.0
    burst: float = 0.5
    sudden: float = 0.0
    caches: float = 0.0

    def used(self, chance: random.Random) -> Iterator[float]:
        """Used GiB, minute by minute from its start."""
        minute, burst, jumped = 0, 0.0, 0.0
        while True:
            hours = minute / 60.0
            grown = self.leak * (math.floor(hours / self.stairs) * self.stairs if self.stairs else hours)
            cached = self.caches * (1.0 - math.exp(-hours / 3.0))
            burst *= 0.7
            if chance.random() < 0.05:
                burst += chance.expovariate(1.0 / self.burst)
            if chance.random() < self.sudden / 1440.0:
                jumped = TOTAL / GIB
            yield self.base + grown + cached + burst + jumped + chance.gauss(0.0, 0.02)
            minute += 1


PROCESSES: Final = (
    Process("a calm server", 60.0),
    Process("a full pool", 76.0, burst=0.2),
    Process("an allocator that caches", 50.0, caches=25.0),
    Process("one that caches nearly everything", 40.0, caches=37.0, burst=0.3),
    Process("bursts of long prompts", 60.0, burst=2.0),
    Process("a slow leak", 60.0, leak=0.4),
    Process("a leak", 60.0, leak=1.0),
    Process("a fast leak", 60.0, leak=4.0),
    Process("a leak in stairs of two hours", 60.0, leak=0.8, stairs=2.0),
    Process("a leak in stairs of an hour", 60.0, leak=1.5, stairs=1.0),
    Process("a neighbour that starts", 60.0, sudden=1.0),
    Process("a calm one with a neighbour", 40.0, sudden=0.7, caches=10.0),
)


class Outcome(NamedTuple):
    """Of one process: times at which memory ran out, of them caught in time, alerts, and of them right ones."""

    process: str
    leaks: bool
    ended: int
    caught: int
    alerts: int
    right: int


def watch(process: Process, seed: int) -> Outcome:
    """What the risk of one process says for five days."""
    chance = random.Random(f"{process.name} {seed}")  # noqa: S311 - simulation, not security
    device, life = Device(), 0
    used = process.used(chance)
    ends: list[int] = []
    on: list[bool] = []
    lasting = 0
    for minute in range(MINUTES):
        taken = next(used) * GIB
        if taken >= TOTAL:
            ends.append(minute)
            life, used = life + 1, process.used(chance)
            taken = next(used) * GIB
        device = device.after(60.0 * minute, taken, {f"life {life}": frozenset()}, settled=True)
        risk = device.risk(TOTAL - taken, taken)
        lasting = lasting + 1 if risk is not None and risk >= THRESHOLD else 0
        on.append(lasting > FOR)
    begins = [minute for minute in range(1, MINUTES) if on[minute] and not on[minute - 1]]
    right = sum(any(begin <= end <= _last(on, begin, HORIZON) for end in ends) for begin in begins)
    caught = sum(on[max(0, end - AHEAD)] for end in ends)
    return Outcome(process.name, process.leak > 0, len(ends), caught, len(begins), right)


def _last(on: Sequence[bool], begin: int, horizon: int) -> int:
    """The minute after an alert's end, or after the horizon."""
    end = begin
    while end < len(on) and on[end]:
        end += 1
    return max(end, begin + horizon)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="0 is what the leak was tuned on")
    options = parser.parse_args(arguments)
    found = [watch(process, seed) for process in PROCESSES for seed in options.seeds]
    print("| process | ran out | caught 5 min before | alerts | right |\n| --- | --- | --- | --- | --- |")
    for process in PROCESSES:
        own = [each for each in found if each.process == process.name]
        sums = (sum(part) for part in zip(*(each[2:] for each in own), strict=True))
        print(f"| {process.name} | " + " | ".join(map(str, sums)) + " |")
    leaks = [each for each in found if each.leaks]
    alerts, right = sum(each.alerts for each in found), sum(each.right for each in found)
    ended, caught = sum(each.ended for each in leaks), sum(each.caught for each in leaks)
    print(f"\nLeaks caught in time: {caught} of {ended}; alerts right: {right} of {alerts}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
