"""What rules and dashboards cost over a fleet with three days of data: in a real Prometheus, engine by engine the same.

    .venv/bin/python bench/fleet_rules.py [--engines 1000,5000] [--days 3] [--peer FILE] [--screens NAMES] [--write]

One sidecar with a GPU (the stub of NVML) is recorded over a simulated vLLM under traffic. What it shows is continued
over three days at one sample in 15 s and written as blocks of Prometheus' storage for so many engines. Prometheus then
evaluates every rule once, one after the other, of the shipped file and of `--peer` FILE if given; and it answers the
queries of each dashboard's first screen, everything selected. All is its CPU, since the machine may be busy. Recorded
rates of objectives are in the blocks; what else rules record for one another is not. `--write` writes docs/fleet.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import yaml

import blocks
from fleet import ROOT, fetched, own, recorded, write_part
from llm_headroom.bundle.settings import BundleSettings
from llm_headroom.commands import bundle, programs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

STEP: Final = 15_000
AHEAD: Final = 20 * 60_000
"""Milliseconds that the blocks reach beyond their making: time to measure in, without anybody scraped."""
HOUR: Final = 3_600_000
DAY: Final = 24 * HOUR
LINE: Final = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
GROWING: Final = ("_total", "_bucket", "_count", "_sum")
SCREEN: Final = 28
"""Grafana's units of height that a screen of 1080 lines shows."""
RANGE: Final = 3600
DASHBOARDS: Final = "fleet,engine,kv,gpu,compare,exporter,ollama"


class Cost(NamedTuple):
    """One file of rules over so many engines: CPU seconds of each rule, and the interval of its group in seconds."""

    engines: int
    series: int
    rules: dict[str, tuple[float, float]]

    @property
    def once(self) -> float:
        """CPU seconds of one evaluation of everything."""
        return sum(seconds for seconds, _ in self.rules.values())

    @property
    def cores(self) -> float:
        """CPU seconds per second, each group at its interval."""
        return sum(seconds / interval for seconds, interval in self.rules.values())


def templates(bodies: Sequence[bytes], block: blocks.Block) -> Iterator[blocks.Template]:
    """Every series of the recorded sidecar, continued over the block: counters grow on, gauges go round."""
    seen: dict[tuple[tuple[str, str], ...], list[float]] = {}
    for body in bodies:
        for name, labels, value in LINE.findall(body.decode()):
            own_labels = dict(LABEL.findall(labels)) | {"__name__": name, "job": "llm-headroom"}
            seen.setdefault(tuple(sorted(own_labels.items())), []).append(float(value))
    end = (block.begin + block.samples * block.step) / 1000
    for pairs, found in seen.items():
        labels, first = dict(pairs), found[0]
        name = labels["__name__"]
        if "timestamp_seconds" in name:
            age = min(time.time() - found[-1], 5.0)
            values = [end - age - (block.samples - place) * block.step / 1000 for place in range(block.samples)]
        elif name.endswith(GROWING) and found[-1] > first:
            growth = [after - before for before, after in itertools.pairwise(found)]
            values, value = [], first
            for place in range(block.samples):
                values.append(value)
                value += growth[place % len(growth)]
        else:
            values = [found[place % len(found)] for place in range(block.samples)]
        yield blocks.Template(labels, values)
    up = {"__name__": "up", "job": "llm-headroom"}
    yield blocks.Template(up, [1.0] * block.samples)


def recordings(rules: Path, found: Sequence[blocks.Template], block: blocks.Block) -> Iterator[blocks.Template]:
    """Recorded rates of objectives, which rules of long windows read, as if they had been recorded for days."""
    for template in found:
        labels = dict(template.labels)
        name = labels.pop("__name__").removesuffix("_total")
        if not name.startswith("llm_slo_requests"):
            continue
        record = f"engine_model:{name}:rate5m"
        if record in rules.read_text():
            kept = {key: labels[key] for key in ("job", "engine", "model", "slo")} | {"namespace": "llm"}
            pace = [10.0 + (place % 7) / 10 for place in range(block.samples)]
            yield blocks.Template({"__name__": record, **kept}, pace, each=False)


def fleet_of(engines: int) -> list[dict[str, str]]:
    """The labels that a scrape adds, of each engine."""
    return [
        {
            "instance": f"10.{index >> 16}.{index >> 8 & 255}.{index & 255}:9836",
            "namespace": "llm",
            "pod": f"vllm-5f7c9d8b6-{index:05x}",
        }
        for index in range(engines)
    ]


def stored(folder: Path, engines: int, bodies: Sequence[bytes], days: float, rules: Path) -> int:
    """Write the fleet's days as blocks; returns the number of its series.

    The last hours are one of their own, as a server holds them apart in its head; what is older, two large ones.
    """
    end = int(time.time() * 1000) // STEP * STEP + AHEAD
    last = (3 * HOUR + AHEAD) // STEP
    half = int(days * DAY / 2) // STEP - last // 2
    fleet = fleet_of(engines)
    lengths = (half, half, last)
    whole = blocks.Block(end - sum(lengths) * STEP, STEP, sum(lengths))
    every = list(templates(bodies, whole))
    every += recordings(rules, every, whole)
    (folder / "data").mkdir()
    first = 0
    for length in lengths:
        block = blocks.Block(whole.begin + first * STEP, STEP, length)
        cut = [one._replace(values=one.values[first : first + length]) for one in every]
        count = blocks.write(folder / "data", cut, fleet, block)
        first += length
    return count


def asked(address: str, path: str, **parameters: object) -> Any:  # noqa: ANN401 - of JSON
    """An answer of Prometheus' interface."""
    return json.loads(fetched(f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", 300.0))["data"]


def used(address: str, path: str, **parameters: object) -> float:
    """CPU seconds that Prometheus takes for an answer."""
    before = own(address)["process_cpu_seconds_total"]
    asked(address, path, **parameters)
    return own(address)["process_cpu_seconds_total"] - before


def evaluated(address: str, rules: Path) -> dict[str, tuple[float, float]]:
    """CPU seconds of each rule, and its group's interval, 30 s where it has none."""
    found: dict[str, tuple[float, float]] = {}
    for group in yaml.safe_load(rules.read_text())["groups"]:
        interval = group.get("interval", "30s")
        seconds = float(interval[:-1]) * (60 if interval.endswith("m") else 1)
        for rule in group["rules"]:
            name = rule.get("record") or rule["alert"]
            found[name] = (used(address, "query", query=rule["expr"], time=time.time()), seconds)
    return found


def first_screen(dashboard: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Title, expression and whether it is instant, of every query that is asked when a dashboard opens."""
    for panel in dashboard["panels"]:
        if panel["gridPos"]["y"] < SCREEN:
            for target in panel.get("targets", ()):
                if not target.get("hide"):
                    yield panel["title"], substituted(target["expr"]), bool(target.get("instant"))


def substituted(expression: str) -> str:
    """An expression with everything selected."""
    text = expression.replace("$__rate_interval", "1m").replace("$__interval", "15s").replace("$__range", "1h")
    return re.sub(r"\$\{?(job|cluster|namespace|instance|engine|model|target|gpu)\b(:\w+)?\}?", ".*", text)


class Screen(NamedTuple):
    """What a dashboard's first screen takes of Prometheus: CPU seconds of all queries, and the dearest one's."""

    queries: int
    seconds: float
    slowest: float
    title: str


def screens(address: str, shown: Sequence[str]) -> dict[str, Screen]:
    """Each dashboard's first screen, its queries one after the other, by CPU: the machine may be busy."""
    found: dict[str, Screen] = {}
    for path, text in bundle.files(BundleSettings(), ["dashboards"]).items():
        name = Path(path).stem.removeprefix("llm-headroom-")
        if name not in shown:
            continue
        costs = []
        for title, expression, instant in first_screen(json.loads(text)):
            now = time.time()
            if instant:
                cost = used(address, "query", query=expression, time=now)
            else:
                cost = used(address, "query_range", query=expression, start=now - RANGE, end=now, step=15)
            costs.append((cost, title))
        worst, title = max(costs)
        found[name] = Screen(len(costs), sum(cost for cost, _ in costs), worst, title)
    return found


def measured(
    engines: int, bodies: Sequence[bytes], days: float, files: Sequence[Path], shown: Sequence[str]
) -> tuple[list[Cost], dict[str, Screen]]:
    """One fleet: each file's rules, then the dashboards that are to be `shown`."""
    with tempfile.TemporaryDirectory(prefix="llm-headroom-fleet-") as name:
        folder = Path(name)
        series = stored(folder, engines, bodies, days, files[-1])
        flags = ("--storage.tsdb.retention.time=90d", "--storage.tsdb.max-block-duration=2h", "--query.timeout=5m")
        with programs.prometheus(folder, {}, *flags) as server:
            costs = [Cost(engines, series, evaluated(server.address, rules)) for rules in files]
            return costs, screens(server.address, shown)


def rules_table(costs: Sequence[tuple[str, Cost]]) -> str:
    """All costs, one a line."""
    lines = [
        "| rules | engines | series | everything once, CPU s | at its intervals, cores | dearest rule, CPU s |",
        "|---|---|---|---|---|---|",
    ]
    for which, cost in costs:
        worst = max(cost.rules, key=lambda name: cost.rules[name])
        lines.append(
            f"| {which} | {cost.engines:,} | {cost.series:,} | **{cost.once:.2f}** | {cost.cores:.3f} "
            f"| {cost.rules[worst][0]:.2f} `{worst}` |"
        )
    return "\n".join(lines)


def screens_table(engines: int, found: dict[str, Screen]) -> str:
    """What each dashboard's first screen takes."""
    lines = [f"| dashboard, {engines:,} engines | queries | all, CPU s | dearest, CPU s |", "|---|---|---|---|"]
    for name, screen in found.items():
        lines.append(f"| {name} | {screen.queries} | **{screen.seconds:.2f}** | {screen.slowest:.2f} {screen.title} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", default="1000,5000")
    parser.add_argument("--days", type=float, default=3.0)
    parser.add_argument("--peer", type=Path, help="another file of rules, measured over the same data")
    parser.add_argument("--rules", type=Path, default=ROOT / "alerts" / "llm-headroom.rules.yml")
    parser.add_argument("--recorded", type=Path, help="a folder of expositions instead of a recording; filled if empty")
    parser.add_argument("--screens", default=DASHBOARDS, help="dashboards, separated by commas (%(default)s)")
    parser.add_argument("--write", action="store_true", help="write the tables to docs/fleet.md")
    given = parser.parse_args()
    bodies = bodies_of(given.recorded)
    named = {"before": given.peer, "shipped": given.rules} if given.peer else {"shipped": given.rules}
    costs: list[tuple[str, Cost]] = []
    shown: list[str] = []
    for engines in map(int, given.engines.split(",")):
        found, screened = measured(engines, bodies, given.days, list(named.values()), given.screens.split(","))
        costs += zip(named, found, strict=True)
        print(rules_table(costs))
        for which, cost in zip(named, found, strict=True):
            for name, (seconds, _) in sorted(cost.rules.items(), key=lambda each: -each[1][0])[:12]:
                print(f"  {which}: {seconds:8.3f} s  {name}")
        if screened:
            shown.append(screens_table(engines, screened))
            print(shown[-1])
        sys.stdout.flush()
    if given.write:
        write_part("rules", rules_table(costs))
        if shown:
            write_part("screens", "\n\n".join(shown))


def bodies_of(folder: Path | None) -> Sequence[bytes]:
    """Successive expositions of one sidecar with a GPU."""
    if folder is not None and folder.is_dir():
        return [path.read_bytes() for path in sorted(folder.iterdir())]
    bodies = recorded("vllm", 0.0, gpu=True).bodies
    if folder is not None:
        folder.mkdir()
        for place, body in enumerate(bodies):
            (folder / f"{place:02}").write_bytes(body)
    return bodies


if __name__ == "__main__":
    main()
