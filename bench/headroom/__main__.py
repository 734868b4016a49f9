"""Judges the load headroom on replayed traffic, and writes docs/load-headroom.md.

    PYTHONPATH=bench .venv/bin/python -m headroom [--kind held-out --rows FILE]

Takes ten minutes of CPU for each kind of scenarios; what lies in the file of rows is not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import sections
from headroom import report
from headroom.ladder import Row, ladder
from headroom.scenarios import HELD_OUT, INTER_TOKEN, STEADY, SYSTEM_PROMPT, TUNING

if TYPE_CHECKING:
    from collections.abc import Sequence

KINDS = {
    "tuning": TUNING,
    "held-out": HELD_OUT,
    "steady": STEADY,
    "system prompt": SYSTEM_PROMPT,
    "inter-token": INTER_TOKEN,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is not in the file of rows yet, and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=KINDS, action="append", help="which scenarios; all of them if not given")
    parser.add_argument("--rows", type=Path, help="file of rows to add to, one JSON object a line")
    parser.add_argument("--output", type=Path, help="the document to write; without it tables are printed")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    if options.rows and options.rows.exists():
        rows = [Row(**json.loads(line)) for line in options.rows.read_text().splitlines()]
    done = {row.scenario for row in rows}
    for kind in options.kind or KINDS:
        for scenario in KINDS[kind]:
            if scenario.name in done:
                continue
            began = time.process_time()
            fresh, cpu = ladder(scenario)
            rows += fresh
            if options.rows:
                with options.rows.open("a") as out:
                    out.writelines(json.dumps(asdict(row)) + "\n" for row in fresh)
            took = time.process_time() - began
            print(f"{scenario.name}: {took:.0f} s, {cpu * 1e3:.0f} ms an estimate", file=sys.stderr, flush=True)
    if options.output:
        text = report.document(rows)
        before = options.output.read_text() if options.output.exists() else ""
        for begin in report.OF_OTHERS:
            for part in sections.titled(before, begin):
                text = sections.replaced(text, part, report.LAST)
        options.output.write_text(text)
    else:
        print(report.text(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
