"""What came of autoscalers in a loop with engines, as a section of docs/load-headroom.md."""

from __future__ import annotations

import random
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Final

from headroom.score import quantile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TITLE: Final = "## As an autoscaler's signal"
OURS: Final = "llm_saturation_ratio 0.8"
MOST_SLOW: Final = 0.005
MORE_HOURS: Final = 1.05
_RESAMPLES: Final = 400
HEAD: Final = """Written by `python -m headroom.autoscaler`. Traffic rises from a fifth of four times the limit of one
engine, as above, to all of it and falls to two fifths, over two hours, with the swings of its trace on top. Every
minute the autoscaler wants as many engines as Kubernetes would for an average at the target (tolerance 10 %, 12 at
most); an engine takes three minutes to start, it grows by two in three minutes at most, and it shrinks to the most
that was wanted in ten minutes, as the chart has it. One exporter sees all engines, so that new ones begin with the
step cost of the others. Slow are first tokens later than the objective; replica-hours count engines that start. Each
workload counts once; in brackets 95 % intervals, over workloads, then over seeds. The fixed size that does as well is
the smallest one with at most 0.5 % slow in that workload and with that seed, or eight engines.

The rule that knows the ramp to come has as many engines, in time, as its load of their limits wants; it shows what is
due to the swings of the traffic, which no size for the ramp alone can take.
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One loop: the share of first tokens that were slow, and replica-hours."""

    scenario: str
    group: str
    seed: int
    rule: str
    slow: float
    hours: float
    balancer: str = "at random"


def section(rows: Sequence[Outcome]) -> str:
    """The section, with its title."""
    loops, seeds = len({row.scenario for row in rows}), len({row.seed for row in rows})
    parts = [TITLE + "\n", HEAD, f"Workloads: {loops}, seeds of each: {seeds}.\n"]
    for balancer in sorted({row.balancer for row in rows}):
        parts += _behind(balancer, [row for row in rows if row.balancer == balancer])
    goal = "Goal: at most 0.5 % slow, at no more than 1.05 times the replica-hours of that fixed size.\n"
    return "\n".join([*parts, goal])


def _behind(balancer: str, rows: Sequence[Outcome]) -> list[str]:
    """The tables of what was played behind a balancer."""
    names = {row.rule: None for row in rows}
    lines = [f"Each request goes to an engine {balancer}:\n"]
    lines += ["| rule | slow first tokens | worst workload | replica-hours |", "| --- | --- | --- | --- |"]
    for name in sorted(names, key=lambda name: (name != OURS, name.startswith("always"), name)):
        own = [row for row in rows if row.rule == name]
        worst = max(fmean(row.slow for row in own if row.group == group) for group in {row.group for row in own})
        slow, (low, high) = mean(own, lambda row: row.slow), interval(own, lambda row: row.slow)
        hours, (least, most) = mean(own, lambda row: row.hours), interval(own, lambda row: row.hours)
        lines.append(
            f"| {name} | {slow:.2%} [{low:.2%}, {high:.2%}] | {worst:.2%} | {hours:.1f} [{least:.1f}, {most:.1f}] |"
        )
    lines += ["", f"`{OURS}` in each workload, the mean of its seeds:", ""]
    lines += [
        "| workload | slow | replica-hours | fixed size that does as well | goal met |",
        "| --- | --- | --- | --- | --- |",
    ]
    for scenario in dict.fromkeys(row.scenario for row in rows):
        own = [row for row in rows if row.scenario == scenario]
        ours = [row for row in own if row.rule == OURS]
        slow, hours = fmean(row.slow for row in ours), fmean(row.hours for row in ours)
        fixed = fmean(as_good(own, row.seed) for row in ours)
        met = slow <= MOST_SLOW and hours <= MORE_HOURS * fixed
        lines.append(f"| {scenario} | {slow:.2%} | {hours:.1f} | {fixed:.1f} hours | {'yes' if met else '**no**'} |")
    return [*lines, ""]


def as_good(rows: Sequence[Outcome], seed: int) -> float:
    """Replica-hours of the smallest fixed size with few slow first tokens; of the largest one if none has."""
    fixed = sorted((row.hours, row.slow) for row in rows if row.seed == seed and row.rule.startswith("always"))
    return next((hours for hours, slow in fixed if slow <= MOST_SLOW), fixed[-1][0])


def mean(rows: Sequence[Outcome], get: Callable[[Outcome], float]) -> float:
    """The mean in which each workload counts once."""
    return fmean(fmean(get(row) for row in rows if row.group == group) for group in {row.group for row in rows})


def interval(rows: Sequence[Outcome], get: Callable[[Outcome], float]) -> tuple[float, float]:
    """Its 95 % bootstrap interval, over workloads, then over the seeds of each."""
    by_group: dict[str, list[float]] = {}
    for row in rows:
        by_group.setdefault(row.group, []).append(get(row))
    chance = random.Random(1)  # noqa: S311 - simulation, not security
    means = [
        fmean(
            fmean(chance.choices(by_group[group], k=len(by_group[group])))
            for group in chance.choices(sorted(by_group), k=len(by_group))
        )
        for _ in range(_RESAMPLES)
    ]
    return quantile(means, 0.025), quantile(means, 0.975)
