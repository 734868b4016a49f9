#!/usr/bin/env python3
"""Print what each engine cost, made and burnt, out of a Prometheus, as a table of Markdown.

    deploy/examples/cost_report.py http://localhost:9090 30d

The second argument is Prometheus' range, up to now. It needs Python alone, and prices in the exporter's configuration
(docs/configuration.md). What an engine does not report is "–", never 0.
"""

from __future__ import annotations

import json
import sys
import urllib.parse
import urllib.request
from typing import Final

COLUMNS: Final = {
    "cost": "sum by (engine, currency) (increase(llm_engine_cost_total[{range}]))",
    "million tokens": "1e-6 * sum by (engine) (increase(llm_generation_tokens_total{{target!~'.+/proxy'}}[{range}]))",
    "kWh": "sum by (engine) (increase(llm_engine_energy_joules_total[{range}])) / 3.6e6",
}
"""Each column's query; every result has the label `engine`."""


def asked(prometheus: str, query: str) -> dict[str, tuple[str, float]]:
    """Currency, if there is one, and value by engine."""
    url = f"{prometheus.rstrip('/')}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - the address that the user has given
        results = json.load(answer)["data"]["result"]
    return {
        each["metric"].get("engine", ""): (each["metric"].get("currency", ""), float(each["value"][1]))
        for each in results
    }


def report(prometheus: str, over: str) -> str:
    """The table: an engine a row."""
    columns = {name: asked(prometheus, query.format(range=over)) for name, query in COLUMNS.items()}
    lines = ["| engine | cost | million tokens | cost per million tokens | kWh |", "|---|---|---|---|---|"]
    for engine in sorted(set().union(*columns.values())):
        currency, cost = columns["cost"].get(engine, ("", None))
        tokens, energy = (columns[name].get(engine, ("", None))[1] for name in ("million tokens", "kWh"))
        each = cost / tokens if cost is not None and tokens else None
        numbers = (shown(cost, currency), shown(tokens), shown(each, currency), shown(energy))
        lines.append(f"| {engine} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def shown(value: float | None, unit: str = "") -> str:
    """A number with its unit."""
    return "–" if value is None else f"{value:,.2f} {unit}".strip()


if __name__ == "__main__":
    if len(sys.argv) != 3:  # noqa: PLR2004 - the program and two arguments
        sys.exit(__doc__)
    print(report(*sys.argv[1:]))  # noqa: T201 - that is what it is for
