"""Every benchmark in one run, and whether the goals are met: `make bench`.

    python bench/run.py [--seconds N] [--peer DIR ...]

Exit status: 0 all goals that could be measured are met, 1 one is missed, 2 something could not be measured.
"""

from __future__ import annotations

import platform
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

import engine_side
import parse
import poll

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

LEAST_PARSE_RATIO: Final = 30.0
MOST_RESIDENT: Final = 48e6
MOST_OF_ANOTHER: Final = 1.1
"""CPU of a poll as a share of another source tree's."""


class Goal(NamedTuple):
    """Something to reach, and what was measured in its terms; None where the peer is missing."""

    text: str
    measured: str
    met: bool | None


def parse_table(costs: Sequence[parse.Cost]) -> str:
    """The parser's costs as lines: the numbers alone move, a series is new at each scrape, nothing is known yet."""
    lines = [f"{'body':34} {'samples':>7} {'peer us':>8} {'steady us':>16} {'growing us':>16} {'first us':>16}"]
    for cost in costs:
        cells = (
            f"{own * 1e6:8.0f} {'1/' + format(ratio, '.1f'):>7}"
            for own, ratio in (
                (cost.steady, cost.steady_ratio),
                (cost.growing, cost.growing_ratio),
                (cost.first, cost.first_ratio),
            )
        )
        lines.append(f"{cost.body:34} {cost.samples:7} {cost.peer * 1e6:8.0f} {' '.join(cells)}")
    return "\n".join(lines)


def parse_goals(costs: Sequence[parse.Cost]) -> Iterator[Goal]:
    """Goals of the parser."""
    for cost in costs:
        yield Goal(
            f"{cost.body}: parse CPU at most 1/{LEAST_PARSE_RATIO:.0f} of prometheus_client's",
            f"1/{cost.steady_ratio:.0f}",
            cost.steady_ratio >= LEAST_PARSE_RATIO,
        )


def poll_goals(results: Sequence[poll.Result], trees: Sequence[Path]) -> Iterator[Goal]:
    """Goals of the whole poll."""
    for result in results:
        own, peer = result.of(poll.EXPORTER), result.of(poll.VMAGENT)
        if own is None:
            continue
        if result.case.goal:
            text = f"{result.case.title}, /metrics not read: CPU at most vmagent's with its remote write"
            ratio = None if peer is None else own.cpu / peer.cpu
            yield Goal(
                text, "no vmagent" if ratio is None else f"{ratio:.2f} of it", None if ratio is None else ratio <= 1
            )
        for tree in trees:
            other = result.of(tree.resolve().name)
            if other is not None:
                ratio = own.cpu / other.cpu
                text = f"{result.case.title}: CPU at most {MOST_OF_ANOTHER:g} times that of {other.name}"
                yield Goal(text, f"{ratio:.2f} times", ratio <= MOST_OF_ANOTHER)
        if sum(result.case.targets.values()) == 1:
            yield Goal(
                f"{result.case.title}: at most {MOST_RESIDENT / 1e6:.0f} MB resident",
                f"{own.resident / 1e6:.1f} MB",
                own.resident <= MOST_RESIDENT,
            )


def main() -> int:
    """Runs everything; returns the exit status."""
    arguments = poll.parser("Measures llm-headroom beside its peers.").parse_args()
    seconds: float = arguments.seconds
    print(f"Python {platform.python_version()}; " + "; ".join(f"{name} {text}" for name, text in poll.versions()))
    for name in poll.missing():
        print(f"without {name}: {poll.MISSING[name]}")
    print("\nParsing: CPU per scrape beside prometheus_client's parser")
    costs = parse.measure()
    print(parse_table(costs))
    print(f"\nThe whole poll: CPU per scrape of one target, all at the same time over {seconds:g} s")
    results = []
    for case in poll.CASES:
        try:
            results.append(poll.measure(case, seconds, arguments.peer))
        except poll.NotMeasuredError as error:
            print(f"{case.title}: not measured: {error}", file=sys.stderr)
            return 2
        print(poll.table(results[-1]), flush=True)
    print(f"\nThe engine's side: CPU to render a scrape, and per hour at {engine_side.INTERVAL:g} s for each scraper")
    print(engine_side.table(engine_side.measure()))
    print("\nGoals")
    goals = [*parse_goals(costs), *poll_goals(results, arguments.peer)]
    for goal in goals:
        verdict = "open" if goal.met is None else "met" if goal.met else "missed"
        print(f"  {verdict:6}  {goal.text} ({goal.measured})")
    return 1 if any(goal.met is False for goal in goals) else 0


if __name__ == "__main__":
    sys.exit(main())
