"""Finds the loads of the scenarios: `python -m evaluate.loads` prints them for scenarios.py. Takes some minutes."""

from __future__ import annotations

from dataclasses import replace
from multiprocessing import Pool
from typing import Final

from evaluate.incidents import any_trouble
from evaluate.replay import replay
from evaluate.scenarios import SCENARIOS, Scenario

WANTED: Final = (0.02, 0.08, 0.2)
"""Shares of the time, by first and last breaches."""
CALM: Final = 0.6
"""The calm load, beside the first of the others."""
SEEDS: Final = (101, 102)
BISECTIONS: Final = 7


def suffering(scenario: Scenario, load: float) -> float:
    """The share of the time that lies between the first and the last breach of an incident."""
    busy = total = 0.0
    for seed in SEEDS:
        run = replay(replace(scenario, loads=(load,)), 0, seed)
        slow = [first.at for first in run.firsts if first.slow]
        for begin, end in any_trouble(run):
            busy += max((at for at in slow if begin <= at <= end), default=end) - begin
        total += run.span
    return busy / total


def loads(scenario: Scenario) -> tuple[float, ...]:
    """The four loads of a scenario, by bisection of the logarithm."""
    lowest, highest = 0.02, 4.0
    found: list[float] = []
    tried: dict[float, float] = {}
    for wanted in WANTED:
        low = max((load for load, share in tried.items() if share < wanted), default=lowest)
        high = min((load for load, share in tried.items() if share >= wanted and load > low), default=highest)
        for _ in range(BISECTIONS):
            if high / low < 1.02:
                break
            middle = (low * high) ** 0.5
            tried[middle] = suffering(scenario, middle)
            low, high = (middle, high) if tried[middle] < wanted else (low, middle)
        found.append(high)
    return tuple(float(f"{load:.3g}") for load in (CALM * found[0], *found))


def _told(scenario: Scenario) -> None:
    print(scenario.name, loads(scenario), flush=True)


if __name__ == "__main__":
    with Pool(2) as pool:
        pool.map(_told, SCENARIOS, chunksize=1)
