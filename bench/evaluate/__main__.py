"""Replays traces on simulated engines, lets a real Prometheus evaluate rules over them, and writes what came of it.

    make evaluate [ARGS='--seeds 21,22']

writes docs/evaluation.md and its pictures. Needs Prometheus and promtool (Debian: prometheus).
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sections
from evaluate import document, month
from evaluate.month_plan import FLEET, WEEK
from evaluate.prometheus import EPOCH, Prometheus, backfill, missing
from evaluate.replay import replay
from evaluate.report import pictures
from evaluate.results import Results
from evaluate.rules import SATURATION_ALERTS, Rule, alerts, metrics, read
from evaluate.scenarios import CODE, L4_8B, SCENARIOS, Scenario

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evaluate.replay import Run

ROOT: Final = Path(__file__).parents[2]
SHIPPED: Final = ROOT / "alerts" / "llm-headroom.rules.yml"
PEERS: Final = Path(__file__).parent / "peers.rules.yml"
SEEDS: Final = (21, 22)
"""Draws that neither the loads nor the constants were found on."""
QUICK: Final = (Scenario(CODE, L4_8B, (0.01, 0.3)),)
QUICK_SECONDS: Final = 1500.0


def job(
    place: tuple[Scenario, int, int], *, names: frozenset[str], directory: Path, most_seconds: float
) -> tuple[Run, Path]:
    """One replay; what was scraped goes to a file."""
    scenario, load, seed = place
    run = replay(scenario, load, seed, names=names, most_seconds=most_seconds)
    file = directory / f"{SCENARIOS.index(scenario) if scenario in SCENARIOS else 0}-{load}-{seed}.samples"
    with file.open("w") as out:
        for at, samples in run.scrapes:
            out.writelines(f"{series} {value!r} {EPOCH + at:.3f}\n" for series, value in samples)
    run.scrapes = []
    return run, file


def evaluate(
    scenarios: Sequence[Scenario], seeds: Sequence[int], rules: Sequence[Rule], *, most_seconds: float = math.inf
) -> Results:
    """Replay every scenario at every load with every seed, and see when rules fire."""
    places = [(one, load, seed) for one in scenarios for load in range(len(one.loads)) for seed in seeds]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        work = partial(job, names=frozenset(metrics(rules)), directory=directory, most_seconds=most_seconds)
        with Pool(min(len(places), 2)) as pool:
            done = pool.map(work, places, chunksize=1)
        runs = [run for run, _ in done]
        backfill([file for _, file in done], directory)
        fired = {}
        with Prometheus(directory) as server:
            for rule in rules:
                answer = server.holds(rule.expression, max(run.span for run in runs))
                fired.update({(rule.name, run): spans for run, spans in alerts(rule, answer).items()})
    return Results(runs, rules, fired)


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="draws of each load, divided by commas")
    parser.add_argument("--rules", type=Path, default=SHIPPED, help="the rules file whose alerts are evaluated")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="where the document and pictures go")
    parser.add_argument("--quick", action="store_true", help="one small scenario: whether all of it works, no figures")
    options = parser.parse_args(arguments)
    if program := missing():
        print(f"{program} is not installed (Debian: prometheus)", file=sys.stderr)
        return 1
    began = time.monotonic()
    rules = [rule for rule in read(options.rules) if rule.name in SATURATION_ALERTS] + read(PEERS)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if options.quick:
        results = evaluate(QUICK, seeds[:1], rules, most_seconds=QUICK_SECONDS)
    else:
        results = evaluate(SCENARIOS, seeds, rules)
    options.output.mkdir(parents=True, exist_ok=True)
    text = document.text(results, seeds)
    if not options.quick:
        text = sections.replaced(text, month.section(month.operate(FLEET, WEEK, month.rules())), month.BEFORE)
    (options.output / "evaluation.md").write_text(text)
    for name, picture in pictures(results).items():
        (options.output / name).write_text(picture)
    print(f"{len(results.runs)} runs, {len(rules)} rules, {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
