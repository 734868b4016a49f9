"""Runs everything and writes `docs/reliability.md`; some minutes, loopback alone.

python -m torture [--seconds 60] [--output FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import platform
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from torture import clients, mutations
from torture.figures import Figure, table
from torture.soak import soak

PAGE = """\
# Reliability

For those who run this beside engines and clients that they do not trust. At the end you know what hostile and broken
surroundings do to the exporter. Written by `make torture` ({date}, Python {python},
{seconds:.0f} s for each of the mutations, seed {seed}; loopback alone). A fault is an exception, an altered byte, a
request that stays open, an honest client that waits for more than 2 s, or what has grown in the last third of the soak
against the first: on {cpus} cores that other work kept busy,
too (load average {load:.0f}). [SECURITY.md](../SECURITY.md) says who is trusted with what.

{table}
"""
BY_HAND = "\n## Surroundings\n"
"""From here on the page is written by hand."""


def soaked(hours: float, speed: float, seed: int) -> Figure:
    """The soak, in a process whose clock may be another one."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(soak, hours, speed, random.Random(seed)).result()  # noqa: S311 - no secret


def main() -> int:
    """The number of faults, at most 1."""
    parser = argparse.ArgumentParser(prog="torture")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hours", type=float, default=6.0, help="virtual ones of the soak")
    parser.add_argument("--speed", type=float, default=120.0, help="of the soak's clock")
    parser.add_argument("--output", type=Path, default=Path("docs/reliability.md"))
    chosen = parser.parse_args()
    dice = random.Random(chosen.seed)  # noqa: S311 - no secret
    figures = [
        mutations.expositions(chosen.seconds, dice),
        asyncio.run(mutations.streams(chosen.seconds, dice)),
        clients.idle_proxied(64, 200),
        clients.idle_proxied(1024, 1100),
        clients.hanging_probes(60),
        clients.guesses(60),
        clients.non_readers(200),
        clients.ends(),
        soaked(chosen.hours, chosen.speed, chosen.seed),
    ]
    machine = {"cpus": os.cpu_count(), "load": os.getloadavg()[0]}
    fields = machine | {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version(), "seed": chosen.seed}
    known = chosen.output.read_text() if chosen.output.exists() else ""
    by_hand = "".join(known.partition(BY_HAND)[1:])
    chosen.output.write_text(PAGE.format(table=table(figures), seconds=chosen.seconds, **fields) + by_hand)
    print(table(figures))
    return int(any(each.faults for each in figures))


if __name__ == "__main__":
    sys.exit(main())
