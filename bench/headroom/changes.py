"""What the load headroom says after requests have become others, as a section of docs/load-headroom.md.

    PYTHONPATH=bench python -m headroom.changes [--seeds 3] [--rows FILE] [--output docs/load-headroom.md]

Takes a quarter of an hour of CPU for each seed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing import Pool
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final, NamedTuple

import sections
from evaluate.replay import POLL_SECONDS, points
from evaluate.scenarios import A100_8B, L4_8B, SGLANG_70B
from headroom import report
from headroom.truth import ALLOWED
from llm_headroom.derive.capacity import LEAST, MOST, Known, Target, begun
from llm_headroom.derive.observation import Observation, observe
from llm_headroom.derive.trial import estimated
from llm_headroom.simulate.batching import Engine
from llm_headroom.simulate.traffic import Request

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llm_headroom.simulate.engine_state import Outcome

OBJECTIVE: Final = 2.5
CHANGED: Final = 900.0
AFTER: Final = (30, 60, 90, 120, 180, 300)
"""Seconds after the change at which it is looked at what is said."""
REST: Final = 75.0
"""Seconds between two estimates: they take 0.3 to 0.45 s of CPU."""
_FIRST: Final = 300.0
"""Seconds before the change from which on estimates are made."""
_WARM, _COUNTED, _DRAIN = 300.0, 1000.0, 400.0
_PRECISION: Final = 1.08
_LONGEST: Final = (24_000, 4_000)
_OPTIMISTIC: Final = 1.3


class Kind(NamedTuple):
    """Requests of one kind: their share of all, mean tokens of prompt and answer, and the share of prompts cached."""

    share: float
    prompt: int
    answer: int
    cached: float = 0.0


class Style(NamedTuple):
    """How sizes vary (the deviation of their logarithm) and arrivals: 1 is Poisson, 5 has five times its variance."""

    sigma: float
    burstiness: float


MIXES: Final = {
    "cached": (Kind(1.0, 2000, 150, 0.85),),
    "not cached": (Kind(1.0, 2000, 150),),
    "short prompts": (Kind(1.0, 500, 150),),
    "long prompts": (Kind(1.0, 4000, 150),),
    "short answers": (Kind(1.0, 1000, 100),),
    "long answers": (Kind(1.0, 1000, 600),),
    "with a batch job": (Kind(0.7, 1000, 100), Kind(0.3, 6000, 100)),
}
CHANGES: Final = (
    ("cached", "not cached"),
    ("not cached", "cached"),
    ("short prompts", "long prompts"),
    ("long prompts", "short prompts"),
    ("short answers", "long answers"),
    ("long answers", "short answers"),
    ("short answers", "with a batch job"),
    ("with a batch job", "short answers"),
)
WORSE: Final = ("not cached", "long prompts", "with a batch job")
"""What engines are also changed to from a tenth of the limit, so that it is not beyond the new one."""
VARIED, CONSTANT, BURSTY = Style(0.5, 1.0), Style(0.0, 1.0), Style(0.5, 5.0)
ENGINES: Final = {A100_8B: (VARIED, CONSTANT, BURSTY), SGLANG_70B: (VARIED,), L4_8B: (VARIED,)}
FEW: Final = L4_8B.name
"""The engine that has less than a request a second, so that ten of a new mix take long."""
SETUPS: Final = {setup.name: setup for setup in ENGINES}


class Play(NamedTuple):
    """One change: on which engine, from which mix to which, at which share of the old limit."""

    setup: str
    before: str
    after: str
    style: Style
    load: float
    seed: int


@dataclass(frozen=True, slots=True)
class Row:
    """What was said so many seconds after a change, if anything, and what is true of the new mix."""

    setup: str
    before: str
    after: str
    load: float
    seconds: float
    said: float | None
    true: float

    @property
    def error(self) -> float | None:
        """The logarithm of what was said over what is true, bounded as the metric is."""
        return None if self.said is None else math.log(self.said / min(MOST, max(LEAST, self.true)))


def requests(mix: str, style: Style, rate: float, span: tuple[float, float], seed: int) -> Iterator[Request]:
    """The requests of a mix from one second to another."""
    chance = random.Random(seed)  # noqa: S311 - simulation, not security

    def length(mean: float, most: int) -> int:
        if not style.sigma:
            return round(mean)
        return min(most, max(1, round(mean * math.exp(chance.gauss(0.0, style.sigma) - style.sigma**2 / 2.0))))

    kinds, (at, end) = MIXES[mix], span
    while (at := at + chance.gammavariate(1.0 / style.burstiness, style.burstiness) / rate) < end:
        kind = kinds[0] if chance.random() < kinds[0].share else kinds[-1]
        shared = round(kind.prompt * kind.cached / 16) * 16
        prompt, answer = shared + length(kind.prompt - shared, _LONGEST[0]), length(kind.answer, _LONGEST[1])
        prefix = ((7,), shared) if shared else ((), 512)
        yield Request(at, prompt, answer, _LONGEST[1] + 96, *prefix)


def _slow_share(setup: str, mix: str, style: Style, rate: float) -> float:
    """The share of first tokens later than the objective; those that never came are."""
    engine, firsts = Engine(SETUPS[setup].config(), seed=11), []

    def ended(outcome: Outcome) -> None:
        if outcome.first_token is not None and outcome.request.arrival >= _WARM:
            firsts.append(outcome.first_token - outcome.request.arrival)

    counted = 0
    for each in requests(mix, style, rate, (0.0, _COUNTED), 11):
        counted += each.arrival >= _WARM
        engine.submit(each, on_end=ended)
    engine.advance(_COUNTED + _DRAIN)
    return 1.0 - sum(first <= OBJECTIVE for first in firsts) / max(1, counted)


@cache
def limit(setup: str, mix: str, style: Style) -> float:
    """Requests per second of a mix at which the allowed share is slow."""
    low = high = 0.2 if setup == FEW else 2.0
    while _slow_share(setup, mix, style, high) <= ALLOWED:
        low, high = high, high * 1.6
    while _slow_share(setup, mix, style, low) > ALLOWED:
        low, high = low / 1.6, low
    while high / low > _PRECISION:
        middle = math.sqrt(low * high)
        if _slow_share(setup, mix, style, middle) > ALLOWED:
            high = middle
        else:
            low = middle
    return math.sqrt(low * high)


def polls(play: Play, rate: float) -> Iterator[tuple[float, Observation]]:
    """What the exporter reads, poll by poll."""
    engine = Engine(SETUPS[play.setup].config(), seed=play.seed)
    end = CHANGED + AFTER[-1] + 2.0 * POLL_SECONDS
    for mix, span, seed in ((play.before, (0.0, CHANGED), 100), (play.after, (CHANGED, end), 200)):
        for each in requests(mix, play.style, rate, span, seed + play.seed):
            engine.submit(each)
    for poll in range(1, int((CHANGED + AFTER[-1]) / POLL_SECONDS) + 1):
        engine.advance(poll * POLL_SECONDS)
        seen = observe(points(engine.read(), {"engine": "e", "target": "t", "model": "m"}))["m"]
        yield poll * POLL_SECONDS, replace(seen, limit=float(engine.config.max_num_seqs))


def played(play: Play) -> list[Row]:
    """What is said after one change, with estimates as far apart as the exporter's."""
    rate = play.load * limit(play.setup, play.before, play.style)
    true = limit(play.setup, play.after, play.style) / rate
    targets = (Target("ttft", "ttft", OBJECTIVE, ALLOWED),)
    rested = CHANGED - _FIRST + random.Random(f"{play}").uniform(0.0, REST)  # noqa: S311 - simulation, not security
    owed: float | None = None
    known: Known | None = None
    rows = []
    for at, now in polls(play, rate):
        known = known.after(now, at) if known else begun(now, at, SETUPS[play.setup].scheduler)
        early = at < rested
        may = owed is None and known.of_other_mix and at > CHANGED - _FIRST if early else True
        if known.due and may and (estimate := estimated(known, targets)) is not None:
            known = known.with_estimate(estimate)
            rested, owed = at + REST + (owed or 0.0), rested - at if early else None
        if at - CHANGED in AFTER:
            said = known.headroom["ttft"].ratio if known.headroom else None
            rows.append(Row(play.setup, play.before, play.after, play.load, at - CHANGED, said, true))
    return rows


def plays(seeds: int) -> list[Play]:
    """Every change on every engine."""
    return [
        Play(setup.name, before, after, style, load, seed)
        for seed in range(1, seeds + 1)
        for setup, styles in ENGINES.items()
        for before, after in CHANGES
        for style in styles
        for load in (*((0.1,) if after in WORSE else ()), 0.3, 0.6, 0.9)
    ]


HEAD: Final = f"""{report.OF_CHANGES}

Written by `python -m headroom.changes`. Simulated engines get one mix of requests for a quarter of an hour and then, at
the same requests per second, another one: at 10 to 90 % of the old limit, which is from nearly nothing to 60 times the
new one. Sizes are log-normal or constant, arrivals Poisson or in bursts with five times the variance; estimates are
75 s apart, but for one that a change makes due. What is true is the limit of the new mix, by bisection, over the rate;
both are bounded at 1/8 and 16, as the metric is. The error is the logarithm as above: median and worst, so many seconds
after the change.
"""
TAIL: Final = """What is still far off after two minutes is nearly always a relief that few requests show: less than ten
are not told apart from those before, nor less than a hundred or two where a batch job had most of the tokens. The L4
gets less than a request a second, and one in ten where the old mix is heavy. What is left there after five minutes is
not due to the change: of long prompts some are late even alone.

A smaller mean is judged as one of gamma variates, since short requests seldom come together by chance. Judged by
standard errors alone, as a larger one still is, twice as many changes misled. More than 2.5 times off after two
minutes were, over this draw and nearly four others, with 95 % intervals, paired for differences:

| engines | changes | by standard errors | now | difference |
| --- | --- | --- | --- | --- |
| those above | 562 | 8.7% | 4.3% [2.7%, 6.0%] | -4.4% [-6.2%, -2.8%] |
| 8B on L4 | 103 | 47.6% | 40.8% [32.0%, 50.5%] | -6.8% [-12.6%, -1.0%] |

Of the 24 that are left 15 are a batch job that ended, in whose place 21 to 222 requests came, and four are long
prompts that ended, with three to eight. Another five were seen, but the requests of these two minutes were a burst, or
waited. On the L4 no change to shorter answers was seen in time, nor any end of a batch job. What is not seen in two
minutes often stays so for the quarter of an hour, since the first of the new requests count as old ones by then. To
look at four and eight minutes, too, found 3 of 266 more within five minutes, but took the swings of the tuning traces
for changes 182 times in 55 hours, for 99 now, and 76 by standard errors; from these to now the mean error there changed
by +0.005 [-0.004, +0.016]. The 360 estimates of first tokens held out, those of steady traffic and 32 loops of the
autoscaler (in C++) are the same with either. Of 72 held out with an objective from token to token 7 differ, 4 of them
for the worse, by +0.003 [0.000, +0.008] over all. Requests of the traces' sizes in random order looked falsely like
others ten times in 108 hours with either.
"""


def section(rows: Sequence[Row]) -> str:
    """The section, with its title."""
    lines = [HEAD, f"| from, to | changes | {' | '.join(f'{each} s' for each in AFTER)} |"]
    lines.append("| --- | --- |" + " --- |" * len(AFTER))
    usual = [row for row in rows if row.setup != FEW]
    for before, after in CHANGES:
        lines.append(_line(f"{before}, {after}", [row for row in usual if (row.before, row.after) == (before, after)]))
    lines += [_line("all of these", usual), _line(f"all, {FEW}", [row for row in rows if row.setup == FEW])]
    beyond = [row for row in rows if row.true < 1.0]
    said = (sum((row.said or 0.0) > _OPTIMISTIC for row in beyond if row.seconds == seconds) for seconds in AFTER)
    count = len(beyond) // len(AFTER)
    lines += ["", f"Of the {count} that are beyond the new limit more than {_OPTIMISTIC} is said, at these seconds, of"]
    lines += [", ".join(map(str, said)) + ".\n"]
    return "\n".join([*lines, TAIL])


def _line(name: str, rows: Sequence[Row]) -> str:
    cells = []
    for seconds in AFTER:
        errors = [row.error for row in rows if row.seconds == seconds and row.error is not None]
        cells.append(f"{median(map(abs, errors)):.2f}, {max(errors, key=abs):+.2f}" if errors else "")
    return f"| {name} | {len(rows) // len(AFTER)} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Play the changes, and print or write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="draws of each change")
    parser.add_argument(
        "--rows", type=Path, help="file of rows, one JSON object a line; is it there, nothing is played"
    )
    parser.add_argument("--output", type=Path, help="the document whose section is written; without it, it is printed")
    options = parser.parse_args(arguments)
    if options.rows and options.rows.exists():
        rows = [Row(**json.loads(line)) for line in options.rows.read_text().splitlines()]
    else:
        with Pool(os.cpu_count()) as pool:
            rows = [row for each in pool.imap(played, plays(options.seeds)) for row in each]
        if options.rows:
            options.rows.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    part = section(rows)
    if options.output:
        sections.put(part, options.output, report.LAST)
    else:
        print(part)
    return 0


if __name__ == "__main__":
    sys.exit(main())
