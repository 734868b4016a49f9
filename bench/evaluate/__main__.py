"""Replays traces on simulated engines, lets a real Prometheus evaluate rules over them, and writes what came of it.

    make evaluate [ARGS='--seeds 21,22']

writes docs/evaluation.md and its pictures. Needs Prometheus and promtool (Debian: prometheus).
"""

from __future__ import annotations

import argparse
import math
import pickle
import shutil
import sys
import tempfile
import time
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sections
from evaluate import document, month, trivial
from evaluate.month_plan import FLEET, WEEK
from evaluate.prometheus import EPOCH, Prometheus, backfill, missing
from evaluate.replay import replay, replay_day
from evaluate.report import pictures
from evaluate.results import Results
from evaluate.rules import SATURATION_ALERTS, Rule, alerts, metrics, read
from evaluate.scenarios import CALM_DAYS, CODE, L4_8B, SCENARIOS, Scenario

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evaluate.incidents import Span
    from evaluate.replay import Run

ROOT: Final = Path(__file__).parents[2]
SHIPPED: Final = ROOT / "alerts" / "llm-headroom.rules.yml"
PEERS: Final = Path(__file__).parent / "peers.rules.yml"
SEEDS: Final = (21, 22)
"""Draws that neither the loads nor the constants were found on."""
QUICK: Final = (Scenario(CODE, L4_8B, (0.01, 0.3)),)
QUICK_SECONDS: Final = 1500.0


def job(
    place: tuple[Scenario, int | None, int], *, names: frozenset[str], directory: Path, most_seconds: float
) -> tuple[Run, Path]:
    """One replay, of a calm day if there is no load; it and what was scraped go to files, and are read if there."""
    scenario, load, seed = place
    file = directory / f"{SCENARIOS.index(scenario) if scenario in SCENARIOS else 0}-{load}-{seed}.samples"
    stored = file.with_suffix(".run")
    if stored.exists():
        known: Run = pickle.loads(stored.read_bytes())  # noqa: S301 - written below
        return known, file
    if load is None:
        run = replay_day(scenario, seed, names=names, most_seconds=most_seconds)
    else:
        run = replay(scenario, load, seed, names=names, most_seconds=most_seconds)
    with file.open("w") as out:
        for at, samples in run.scrapes:
            out.writelines(f"{series} {value!r} {EPOCH + at:.3f}\n" for series, value in samples)
    run.scrapes = []
    stored.write_bytes(pickle.dumps(run))
    return run, file


def evaluate(  # noqa: PLR0913 - each is a choice of its own
    scenarios: Sequence[Scenario],
    seeds: Sequence[int],
    rules: Sequence[Rule],
    *,
    calm: Sequence[Scenario] = (),
    days: int = 1,
    runs: Path | None = None,
    most_seconds: float = math.inf,
) -> Results:
    """Replay every scenario at every load with every seed, and so many calm `days` of some, and see when rules fire.

    `runs` is a folder for the replays, from which those are taken that are there already.
    """
    places: list[tuple[Scenario, int | None, int]] = [(one, None, day) for one in calm for day in range(days)]
    places += [(one, load, seed) for one in scenarios for load in range(len(one.loads)) for seed in seeds]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        kept = runs or directory
        kept.mkdir(parents=True, exist_ok=True)
        work = partial(job, names=frozenset(metrics(rules)), directory=kept, most_seconds=most_seconds)
        with Pool(min(len(places), 2)) as pool:
            done = pool.map(work, places, chunksize=1)
        replayed = [run for run, _ in done]
        files = [file for _, file in done]
        backfill(files if runs is None else [Path(shutil.copy(file, directory)) for file in files], directory)
        fired: dict[tuple[str, str], list[Span]] = {}
        with Prometheus(directory) as server:
            for rule in rules:
                answer = server.holds(rule.expression, max(run.span for run in replayed))
                fired.update({(rule.name, run): spans for run, spans in alerts(rule, answer).items()})
    for calm_ones in (True, False):
        fired.update(trivial.fired([run for run in replayed if run.calm is calm_ones], fired))
    return Results(replayed, [*rules, *trivial.RULES], fired)


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="draws of each load, divided by commas")
    parser.add_argument("--rules", type=Path, default=SHIPPED, help="the rules file whose alerts are evaluated")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="where the document and pictures go")
    parser.add_argument("--days", type=int, default=1, help="calm days of each held-out trace")
    parser.add_argument("--runs", type=Path, help="a folder for replays; those that are there are not done again")
    parser.add_argument("--no-month", action="store_true", help="leave the document's part on the month as it is")
    parser.add_argument("--quick", action="store_true", help="one small scenario: whether all of it works, no figures")
    options = parser.parse_args(arguments)
    if program := missing():
        print(f"{program} is not installed (Debian: prometheus)", file=sys.stderr)
        return 1
    began = time.monotonic()
    rules = [rule for rule in read(options.rules) if rule.name in SATURATION_ALERTS] + read(PEERS)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if options.quick:
        results = evaluate(QUICK, seeds[:1], rules, calm=QUICK, most_seconds=QUICK_SECONDS)
    else:
        results = evaluate(SCENARIOS, seeds, rules, calm=CALM_DAYS, days=options.days, runs=options.runs)
    options.output.mkdir(parents=True, exist_ok=True)
    text = document.text(results, seeds)
    page = options.output / "evaluation.md"
    if options.no_month:
        for part in sections.titled(page.read_text(), month.TITLE):
            text = sections.replaced(text, part, month.BEFORE)
    elif not options.quick:
        text = sections.replaced(text, month.section(month.operate(FLEET, WEEK, month.rules())), month.BEFORE)
    page.write_text(text)
    for name, picture in pictures(results).items():
        (options.output / name).write_text(picture)
    print(f"{len(results.runs)} runs, {len(rules)} rules, {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
