"""docs/load-headroom.md: the figures as tables, and what has to be known to read them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from headroom import loops, score
from headroom.ladder import OURS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headroom.ladder import Row


HEAD: Final = """# How good the load headroom is

For those who scale engines or plan their number. At the end you know how far the load headroom may be off, beside what
other estimates are off by, and where it fails.
"""
METHOD: Final = """## How it was judged

Written by `make evaluate`; do not edit. Quarters of an hour of production traces are replayed on simulated engines. The
**true limit** of each is found by bisection: the factor on its arrivals at which 5 % of first tokens come later than
the objective (the first bucket boundary of at least 2 s and twice an idle engine's p99). Then each is replayed at 20 to
120 % of its limit, polled every 5 s as the exporter polls, from ten minutes before; at its end every estimator says
what it would say. What is true is the limit over the load: 1.25 at 80 %. The error is the natural logarithm of what was
said over what is true: 0.18 is a factor of 1.2. A factor above 1 lays shifted copies of a trace over one another. In
brackets 95 % intervals, by bootstrap over traces, then over their quarters of an hour.

- `AUC`: how well moments at or beyond the limit are told apart from those at 80 % or below.
- `beyond 1 at 60 %`: how often 60 % load is taken for more than the engine takes.
- `without`: how often there is no estimate; ours needs ten busy minutes.

Constants were tuned on azure_llm_2023_conv and servegen_mlarge_day6 alone; everything else is held out, but the
engines' hardware models are the same. What is held out was looked at several times, so that fresh traffic may do a
little worse. One look led to a change: that a backlog's age no longer counts.

| as it was | median | p90 | AUC | beyond 1 at 60 % |
| --- | --- | --- | --- | --- |
| without the requests that came and what first tokens waited | 0.17 | 0.65 | 0.903 | 6.7 % |
| where a backlog's age counted | 0.13 | 0.55 | 0.973 | 0 % |
| with three times the CPU time; three looks since | 0.12 | 0.42 | 0.970 | 1.7 % |
| where a failed cache or longer answers were no other mix; two looks since | 0.115 | 0.43 | 0.972 | 0 % |
| where each request held a shared prefix: the same, but 0.26 and 1.58 with a system prompt | | | | |

`WVA` are the three analyzers of llm-d's Workload Variant Autoscaler by their formulas, with the defaults found there
(llm-d/llm-d-workload-variant-autoscaler, internal/engines/analyzers). The queueing model is fitted by least squares
over 15 minutes, not by its Kalman filter, and given a third of the objective as its mean: both help it.
"""
TITLES: Final = {
    "held out": "Held out",
    "inter-token": "Objective of 0.2 s from token to token, held out",
    "tuning": "Tuning",
    "steady": "Steady traffic of constant sizes",
    "system prompt": "Steady traffic with a system prompt that all share",
}
LAST: Final = "## Where it fails"
OF_CHANGES: Final = "## After a change of mix"
OF_OTHERS: Final = ("## On a real engine", loops.TITLE, OF_CHANGES)
"""Begins of the titles of sections that `make live`, `headroom.autoscaler` and `headroom.changes` write."""
TAIL: Final = f"""{LAST}

- Bursts within a poll are known only by what first tokens waited: far below the limit, where few wait, it stays
  optimistic or pessimistic by a fifth or more.
- An engine that was never seen but beyond its limit does all its steps alike, so that their cost cannot be learned: the
  figure is then too low, by a factor of two at worst.
- Bursts outside the last 15 minutes are not predicted: the limit of the next half hour is then a different one.
- Where requests are few and each is a tenth of the cache (mooncake on one A100), a quarter of an hour says little.
- At low load only cheap steps were seen; where a step's cost is no line in its load, the limit is overestimated by a
  tenth or so until the load is higher.
- Where the mix of requests changes within the quarter of an hour, the figure is of the new mix, and the limit here of
  both. A change is seen once ten requests of the new mix came, or more where they vary much: of engines with a request
  in ten seconds or less the figure is of the old mix for many minutes.
- What running requests share of their prompts is known by how much less the cache holds than they have: where seldom
  two run at a time, or each of many tenants has a prefix of its own, less is known, and the figure is a little low.
- At the present load the requests are those that came, but for when within a poll they did, and for which prompt had
  which answer. With both known the median error on the tuning traces was 0.09.
- As an autoscaler's signal at 0.8 it lets up to 3 % of first tokens be slow on small engines with less than a request
  a second each, whose traffic swings by a half within the minutes in which an engine starts; so do fixed sizes of the
  same hours, and a rule that knows the ramp to come.
- Speculation, data-parallel replicas and disaggregation were not judged here.
"""


def document(rows: Sequence[Row]) -> str:
    """The whole document."""
    return "\n".join((HEAD, _short(rows), "## Gates, held out\n", _gates(rows), METHOD, text(rows), TAIL))


def _short(rows: Sequence[Row]) -> str:
    """What a reader wants who reads no more."""
    held = [row for row in rows if row.kind == "held out" and row.name == OURS]
    if not held:
        return ""
    low, high = score.interval(held, score.middle)
    middle, tail, least, most = (math.exp(round(each, 2)) for each in (score.middle(held), score.tail(held), low, high))
    traces = len({row.group for row in held})
    return (
        f"On held-out traffic and simulated engines it is off by a factor of {middle:.2f} at the median (95 % interval "
        f"{least:.2f} to\n{most:.2f}, over {traces} traces), and of {tail:.2f} or more in one case of ten. It ranks "
        f"engines at their limit above those at 80 %\nof it or less with an AUC of {score.ranking(held):.2f}. Ramps "
        "of a real engine are below, and at the end [where it fails](#where-it-fails).\n"
        "It is a capacity, and no alarm.\n"
    )


def _gates(rows: Sequence[Row]) -> str:
    held = [row for row in rows if row.kind == "held out" and row.name == OURS]
    steady = [row for row in rows if row.kind == "steady" and row.name == OURS]
    if not held or not steady:
        return ""
    gates = (
        ("median of the error", "≤ 0.18", score.middle(held), score.middle(held) <= 0.18),
        ("90th percentile", "≤ 0.50", score.tail(held), score.tail(held) <= 0.5),
        ("bias of the worst load", "≤ 0.10", score.worst_bias(held), abs(score.worst_bias(held)) <= 0.1),
        ("AUC", "≥ 0.92", score.ranking(held), score.ranking(held) >= 0.92),
        ("beyond 1 at 60 %", "≤ 0.03", score.cried(held), score.cried(held) <= 0.03),
        ("steady traffic: median", "≤ 0.08", score.middle(steady), score.middle(steady) <= 0.08),
        ("steady traffic: 90th percentile", "≤ 0.25", score.tail(steady), score.tail(steady) <= 0.25),
    )
    lines = ["| what | goal | seen | met |", "| --- | --- | --- | --- |"]
    lines += [f"| {what} | {goal} | {seen:.3f} | {'yes' if met else '**no**'} |" for what, goal, seen, met in gates]
    return "\n".join(lines) + "\n"


def text(rows: Sequence[Row]) -> str:
    """For each kind of scenarios a table of estimators, and of ours by load and by scenario."""
    parts = []
    for kind, title in TITLES.items():
        own = [row for row in rows if row.kind == kind]
        if own:
            parts += [f"## {title}, {len({row.scenario for row in own})} scenarios\n", _estimators(own)]
            parts += [f"`{OURS}` by load, as a share of the limit:\n", _levels(own), _scenarios(own)]
    return "\n".join(parts)


def _estimators(rows: Sequence[Row]) -> str:
    lines = [
        "| estimator | median of the error | p90 | bias | worst bias of a load | AUC | beyond 1 at 60 % | without |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    names = sorted({row.name for row in rows}, key=lambda name: score.middle([r for r in rows if r.name == name]))
    most = max(sum(row.name == name for row in rows) for name in names)
    for name in names:
        own = [row for row in rows if row.name == name]
        low, high = score.interval(own, score.middle)
        lines.append(
            f"| {name} | {score.middle(own):.2f} [{low:.2f}, {high:.2f}] | {score.tail(own):.2f} "
            f"| {score.bias(own):+.2f} | {score.worst_bias(own):+.2f} | {score.ranking(own):.3f} "
            f"| {score.cried(own):.1%} | {1.0 - len(own) / most:.0%} |"
        )
    return "\n".join(lines) + "\n"


def _levels(rows: Sequence[Row]) -> str:
    lines = ["| load | median said load | p10 | p90 | bias |", "| --- | --- | --- | --- | --- |"]
    own = [row for row in rows if row.name == OURS]
    for level in sorted({row.level for row in own}):
        at = [row for row in own if row.level == level]
        loads = [1.0 / row.said for row in at]
        lines.append(
            f"| {level:.0%} | {score.quantile(loads, 0.5):.2f} | {score.quantile(loads, 0.1):.2f} "
            f"| {score.quantile(loads, 0.9):.2f} | {score.bias(at):+.2f} |"
        )
    return "\n".join(lines) + "\n"


def _scenarios(rows: Sequence[Row]) -> str:
    lines = ["| scenario | median of the error | p90 | bias |", "| --- | --- | --- | --- |"]
    own = [row for row in rows if row.name == OURS]
    for name in sorted({row.scenario for row in own}):
        at = [row for row in own if row.scenario == name]
        lines.append(f"| {name} | {score.middle(at):.2f} | {score.tail(at):.2f} | {score.bias(at):+.2f} |")
    return "\n".join(lines) + "\n"
