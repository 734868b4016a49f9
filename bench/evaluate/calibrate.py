"""Fits the constants of `llm_headroom.derive.risk` on the tuning scenarios alone: `python -m evaluate.calibrate`."""

from __future__ import annotations

from functools import partial
from multiprocessing import Pool
from typing import TYPE_CHECKING

from evaluate.forecasts import MEANT, labelled
from evaluate.probability import logistic
from evaluate.replay import replay
from evaluate.scenarios import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evaluate.replay import Run

SEEDS = (11, 12)
"""None of which the evaluation replays."""


def fitted(runs: Sequence[Run], name: str) -> tuple[float, ...]:
    """The constant and the factors that fit a risk's metric to the runs."""
    rows, happened = [], []
    for run in runs:
        for forecast, trouble in labelled(run, MEANT[name](run)):
            if name in forecast.features:
                rows.append(forecast.features[name])
                happened.append(trouble)
    return logistic(rows, happened)


def main() -> None:
    """Replays and prints the constants."""
    jobs = [
        (scenario, load, seed)
        for scenario in SCENARIOS
        if scenario.tuning
        for load in range(len(scenario.loads))
        for seed in SEEDS
    ]
    with Pool() as pool:
        runs = pool.starmap(partial(replay, names=()), jobs, chunksize=1)
    for name in MEANT:
        print(name, ", ".join(f"{value:.3f}" for value in fitted(runs, name)))


if __name__ == "__main__":
    main()
