"""What rules and dashboards cost over a fleet with three days of data: in a real Prometheus, engine by engine the same.

    .venv/bin/python bench/fleet_rules.py [--engines 1000] [--days 3] [--rules FILE] [--screens NAMES]
        [--detail essential] [--write]

One sidecar with a GPU (the stub of NVML) is recorded over a simulated vLLM under traffic. What it shows is continued
over three days at one sample in 15 s for so many engines, with all that the rules record: as blocks of Prometheus'
storage, as long as its compaction leaves them, but for the last 80 minutes, which are in its memory, as a server has
its last two to three hours. It then evaluates every rule once, one after the other; and it answers what each dashboard
asks for its first screen as it opens: its variables, its annotations and its panels. All is its CPU, since the machine
may be busy, less that of a query that reads nothing.

Prometheus' garbage collector runs when a share of what is in memory has been allocated again, and looks at all of that:
seconds of CPU, for whichever queries come then. So it is made to run between the queries, and its part is stated apart:
by what the rules allocate. `--write` writes docs/fleet.md.

Fleets of more than 2,000 engines have only the series that the rules read, the last 20 minutes in memory, and no
dashboards, for the sake of memory; they are another table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import operator
import os
import re
import tempfile
import time
import urllib.parse
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import yaml

import blocks
import remote_write
from fleet import ROOT, fetched, recorded, write_part
from llm_headroom.bundle.settings import BundleSettings
from llm_headroom.commands import bundle, programs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

STEP: Final = 15_000
RECENT: Final = 320
"""Samples that are in memory: 80 minutes, so that 80 samples are in the open chunk.

A query reads a chunk from its start, and also the one before where its window begins in that: on average over the 120
samples until a chunk is full, windows of five minutes read as many as here.
"""
RECENT_OF_MANY: Final = 80
"""Samples in memory of a fleet that is not whole."""
RESTART: Final = 900.0
"""Seconds within which Prometheus has read its log, after the recent samples were written.

It is started again since it remembers for each sample which transaction brought it, until that series gets the next one
(prometheus/prometheus, tsdb/isolation.go, txRing), and looks at all of these in every query. One that scrapes has one
of them for each series; written at once, they are as many as the samples.
"""
BLOCKS: Final = (2, 6, 18, 18)
"""Hours of the blocks before what is in memory, the newest first; one more has the rest.

As they are between two compactions, each three times as long as the next (prometheus/prometheus, tsdb/db.go,
ExponentialBlockRanges), at most a tenth of the time that is retained. A window of a day reads three of them.
"""
WHOLE: Final = 2_000
"""Engines up to which every series is there."""
DAY: Final = 24 * 3_600_000
LINE: Final = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
VALUES: Final = re.compile(r"label_values\((.*), (\w+)\)")
READ: Final = re.compile(r"(?<![\w:])(?:llm_\w+|up)(?![\w:])")
GROWING: Final = ("_total", "_bucket", "_count", "_sum")
SCREEN: Final = 28
"""Grafana's units of height that a screen of 1080 lines shows."""
REPEATS: Final = 3
BATCH: Final = 25
"""Queries between two collections of garbage, few enough for none to come of itself."""
FLAGS: Final = ("--storage.tsdb.retention.time=90d", "--query.timeout=5m", *remote_write.FLAGS)
DASHBOARDS: Final = "fleet,engine,kv,gpu,compare,exporter,ollama"


class Cost(NamedTuple):
    """One file of rules over so many engines.

    CPU seconds of each rule, and the interval of its group in seconds; those of the garbage collector for all of them.
    """

    engines: int
    series: int
    rules: dict[str, tuple[float, float]]
    collector: float

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


class Recorded(NamedTuple):
    """A series that a rule records over one engine: its labels, its value, and the seconds between two of them."""

    labels: dict[str, str]
    value: float
    interval: int

    def template(self, engine: dict[str, str], block: blocks.Block) -> blocks.Template:
        """The series over a block, of each engine if its labels say which one, else of the fleet."""
        each = "instance" in self.labels
        labels = {name: value for name, value in self.labels.items() if not each or name not in engine}
        values = [self.value * (1 + place % 7 / 1000) for place in range(block.samples)]
        return blocks.Template(labels, values, each=each, every=self.interval * 1000 // STEP)


def recordings(bodies: Sequence[bytes], rules: Path) -> list[Recorded]:
    """What rules record, so that those which read it find days of it: asked over one engine, until nothing is new."""
    known: set[tuple[tuple[str, str], ...]] = set()
    fleet = fleet_of(1)
    with stored(1, bodies, 0.1, ()) as store:
        block = blocks.Block(int(store.now * 1000) - (RECENT - 1) * STEP, STEP, RECENT)
        while True:
            found = [
                Recorded({**each["metric"], "__name__": rule["record"]}, float(each["value"][1]), interval)
                for rule, interval in rules_of(rules)
                if "record" in rule
                for each in asked(store.address, "query", query=rule["expr"], time=store.now)["result"]
            ]
            new = {tuple(sorted(one.labels.items())): one for one in found}
            if new.keys() <= known:
                return found
            fresh = [one.template(fleet[0], block) for labels, one in new.items() if labels not in known]
            remote_write.send(store.address, fresh, fleet, block)
            known |= new.keys()


def rules_of(rules: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Every rule of a file with its group's interval in seconds, 30 where it has none."""
    for group in yaml.safe_load(rules.read_text())["groups"]:
        for rule in group["rules"]:
            yield rule, seconds(group.get("interval", "30s"))


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


class Store(NamedTuple):
    """A Prometheus with a fleet's days.

    Its address, process and version, the last sample's time in seconds, its engines and series.
    """

    address: str
    pid: int
    version: str
    now: float
    engines: int
    series: int


@contextmanager
def stored(
    engines: int, bodies: Sequence[bytes], days: float, recorded: Sequence[Recorded], read: set[str] | None = None
) -> Iterator[Store]:
    """Start a Prometheus over the fleet's days, with all series or those of the metrics that are `read`."""
    end = int(time.time() * 1000) // STEP * STEP
    recent = RECENT if read is None else RECENT_OF_MANY
    total = int(days * DAY) // STEP
    whole = blocks.Block(end - (total - 1) * STEP, STEP, total)
    fleet = fleet_of(engines)
    every = [one for one in templates(bodies, whole) if read is None or one.labels["__name__"] in read]
    every += [one.template(fleet[0], whole) for one in recorded]

    def part(first: int, length: int) -> tuple[list[blocks.Template], list[dict[str, str]], blocks.Block]:
        cut = [one._replace(values=one.values[first : first + length]) for one in every]
        return cut, fleet, blocks.Block(whole.begin + first * STEP, STEP, length)

    with tempfile.TemporaryDirectory(prefix="llm-headroom-fleet-") as name:
        (Path(name) / "data").mkdir()
        ends = itertools.accumulate(
            (hours * 3_600_000 // STEP for hours in BLOCKS), operator.sub, initial=total - recent
        )
        edges = [0, *sorted(end for end in ends if end > 0)]
        for first, after in itertools.pairwise(edges):
            series = blocks.write(Path(name) / "data", *part(first, after - first))
        with programs.prometheus(Path(name), {}, *FLAGS) as server:
            remote_write.send(server.address, *part(edges[-1], recent))
        again = programs.prometheus(Path(name), {}, *FLAGS)
        again.patience = RESTART
        with again as server:
            version = asked(server.address, "status/buildinfo")["version"]
            yield Store(server.address, server.process.pid, version, end / 1000, engines, series)


def asked(address: str, path: str, **parameters: object) -> Any:  # noqa: ANN401 - of JSON
    """An answer of Prometheus' interface."""
    return json.loads(fetched(f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", 300.0))["data"]


def used(store: Store, answer: Callable[[], object]) -> float:
    """CPU seconds that Prometheus takes for an answer, by the scheduler's account of its threads."""
    before = on_cpu(store.pid)
    answer()
    return on_cpu(store.pid) - before


def collected(store: Store, *, really: bool = True) -> None:
    """Let Prometheus write a profile of its memory, which collects garbage before it."""
    fetched(f"http://{store.address}/debug/pprof/heap{'?gc=1' if really else ''}", 300.0)


def gauge(store: Store, name: str) -> float:
    """A figure of Prometheus' own memory."""
    found = re.search(rf"^{name} (\S+)$", fetched(f"http://{store.address}/metrics", 60.0).decode(), re.MULTILINE)
    if found is None:
        raise LookupError(name)
    return float(found[1])


def collector(store: Store, rules: Sequence[str]) -> float:
    """CPU seconds of the garbage collector for one evaluation of rules: its part by what that allocates."""
    idle = min(used(store, partial(collected, store, really=False)) for _ in range(REPEATS))
    seconds = min(used(store, partial(collected, store)) for _ in range(REPEATS)) - idle
    until_next = gauge(store, "go_memstats_next_gc_bytes") - gauge(store, "go_memstats_heap_alloc_bytes")
    before = gauge(store, "go_memstats_alloc_bytes_total")
    for rule in rules:
        asked(store.address, "query", query=rule, time=store.now)
    return seconds * (gauge(store, "go_memstats_alloc_bytes_total") - before) / until_next


def on_cpu(pid: int) -> float:
    """CPU seconds of a process' threads so far (Linux, Documentation/scheduler/sched-stats.rst)."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def costs_of(store: Store, queries: Sequence[tuple[str, dict[str, object]]]) -> list[float]:
    """CPU seconds of each query (its path and parameters), less those of one that reads nothing.

    They are asked in turn, again and again, and the least is taken: what else the machine does only adds.
    """
    nothing = min(used(store, partial(asked, store.address, "query", query="vector(1)")) for _ in range(20))
    rounds = [
        [
            seconds
            for first in range(0, len(queries), BATCH)
            for seconds in undisturbed(store, queries[first : first + BATCH])
        ]
        for _ in range(REPEATS)
    ]
    return [max(min(times) - nothing, 0.0) for times in zip(*rounds, strict=True)]


def undisturbed(store: Store, queries: Sequence[tuple[str, dict[str, object]]]) -> list[float]:
    """CPU seconds of each of a few queries, asked again if garbage was collected meanwhile.

    Raises:
        RuntimeError: it was each time.
    """
    for _ in range(5):
        collected(store)
        before = gauge(store, "go_gc_duration_seconds_count")
        found = [used(store, partial(asked, store.address, path, **given)) for path, given in queries]
        if gauge(store, "go_gc_duration_seconds_count") == before:
            return found
    raise RuntimeError(f"garbage is collected within {len(queries)} queries")


def evaluated(store: Store, rules: Path) -> Cost:
    """What each rule takes, and the garbage collector for all of them."""
    every = list(rules_of(rules))
    costs = costs_of(store, [("query", {"query": rule["expr"], "time": store.now}) for rule, _ in every])
    named: dict[str, tuple[float, float]] = {
        rule.get("record") or rule["alert"]: (cost, seconds) for (rule, seconds), cost in zip(every, costs, strict=True)
    }
    return Cost(store.engines, store.series, named, collector(store, [rule["expr"] for rule, _ in every]))


Asked: TypeAlias = "tuple[str, str, dict[str, object]]"
"""What a query is for, its path and its parameters."""


def opened(store: Store, dashboard: dict[str, Any]) -> tuple[dict[str, str], list[Asked]]:
    """What a dashboard's variables select as it opens, everything or the first value, and the queries for that."""
    chosen: dict[str, str] = {}
    found: list[Asked] = []
    shown = shown_by(dashboard)
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query" and (parts := VALUES.fullmatch(variable["definition"])):
            selector = substituted(parts[1], shown, chosen)
            path, label = f"label/{parts[2]}/values", variable["name"]
            found.append((label, path, {"match[]": selector, "start": store.now - seconds(shown), "end": store.now}))
            values = asked(store.address, path, **found[-1][2])
            fitting = sorted(value for value in values if re.search(variable["regex"].strip("/"), value))
            chosen[label] = ".*" if variable["includeAll"] else next(iter(fitting), "")
    return chosen, found


def noted(dashboard: dict[str, Any], now: float, chosen: Mapping[str, str]) -> Iterator[Asked]:
    """The queries for a dashboard's annotations."""
    shown = shown_by(dashboard)
    for note in dashboard["annotations"]["list"]:
        if "expr" in note:
            times = {"start": now - seconds(shown), "end": now, "step": seconds(note["step"])}
            yield note["name"], "query_range", {"query": substituted(note["expr"], shown, chosen), **times}


def shown_by(dashboard: dict[str, Any]) -> str:
    """The time that a dashboard opens with, a duration."""
    return str(dashboard["time"]["from"]).removeprefix("now-")


def asked_by(
    dashboard: dict[str, Any], now: float, height: float, chosen: Mapping[str, str] | None = None
) -> Iterator[Asked]:
    """The queries for a dashboard's panels above a height; of everything where nothing is chosen."""
    shown = shown_by(dashboard)
    for panel in dashboard["panels"]:
        if panel["gridPos"]["y"] < height:
            for target in panel.get("targets", ()):
                if target.get("hide"):
                    continue
                query = substituted(target["expr"], shown, chosen or {})
                if target.get("instant"):
                    yield panel["title"], "query", {"query": query, "time": now}
                else:
                    step = {"start": now - seconds(shown), "end": now, "step": seconds(panel.get("interval", "15s"))}
                    yield panel["title"], "query_range", {"query": query, **step}


def seconds(duration: str) -> int:
    """A duration of Grafana's or Prometheus' in seconds."""
    return int(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]


def substituted(expression: str, shown: str, chosen: Mapping[str, str]) -> str:
    """An expression over the time that is shown, with everything selected but for what is chosen."""
    text = expression.replace("$__rate_interval", "1m").replace("$__interval", "15s").replace("$__range", shown)
    names = r"\$\{?(job|cluster|namespace|instance|engine|model|target|gpu|baseline)\b(:\w+)?\}?"
    return re.sub(names, lambda name: chosen.get(name[1], ".*"), text)


class Screen(NamedTuple):
    """What a dashboard's first screen takes of Prometheus: CPU seconds of all queries, and the dearest one's."""

    queries: int
    seconds: float
    slowest: float
    title: str


def screens(store: Store, shown: Sequence[str]) -> dict[str, Screen]:
    """Each dashboard's first screen as it opens, its queries one after the other."""
    found: dict[str, Screen] = {}
    for path, text in bundle.files(BundleSettings(), ["dashboards"]).items():
        name = Path(path).stem.removeprefix("llm-headroom-")
        if name not in shown:
            continue
        dashboard = json.loads(text)
        chosen, queries = opened(store, dashboard)
        queries += [*noted(dashboard, store.now, chosen), *asked_by(dashboard, store.now, SCREEN, chosen)]
        costs = costs_of(store, [(path, parameters) for _, path, parameters in queries])
        worst, title = max((cost, title) for cost, (title, _, _) in zip(costs, queries, strict=True))
        found[name] = Screen(len(costs), sum(costs), worst, title)
    return found


def measured(
    engines: int, bodies: Sequence[bytes], days: float, rules: Path, shown: Sequence[str]
) -> tuple[Cost, dict[str, Screen], str]:
    """One fleet: the rules, then the dashboards that are to be `shown`, and Prometheus' version."""
    read = set(READ.findall(rules.read_text())) if engines > WHOLE else None
    with stored(engines, bodies, days, recordings(bodies, rules), read) as store:
        cost = evaluated(store, rules)
        return cost, screens(store, shown if read is None else ()), store.version


def rules_table(cost: Cost) -> str:
    """What the rules take."""
    worst = max(cost.rules, key=lambda name: cost.rules[name])
    return (
        "| engines | series | every rule once, CPU s | its garbage | at its intervals, cores | dearest rule, CPU s |\n"
        "|---|---|---|---|---|---|\n"
        f"| {cost.engines:,} | {cost.series:,} | **{cost.once:.2f}** | {cost.collector:.2f} | {cost.cores:.3f} "
        f"| {cost.rules[worst][0]:.2f} `{worst}` |"
    )


def screens_table(engines: int, found: dict[str, Screen]) -> str:
    """What each dashboard's first screen takes."""
    lines = [f"| dashboard, {engines:,} engines | queries | all, CPU s | dearest, CPU s |", "|---|---|---|---|"]
    for name, screen in found.items():
        lines.append(f"| {name} | {screen.queries} | **{screen.seconds:.2f}** | {screen.slowest:.2f} {screen.title} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", type=int, default=1000)
    parser.add_argument("--days", type=float, default=3.0)
    parser.add_argument("--rules", type=Path, default=ROOT / "alerts" / "llm-headroom.rules.yml")
    parser.add_argument("--recorded", type=Path, help="a folder of expositions instead of a recording; filled if empty")
    parser.add_argument("--detail", default="full", help="what the sidecar exposes: full or essential")
    parser.add_argument("--screens", default=DASHBOARDS, help="dashboards, separated by commas (%(default)s)")
    parser.add_argument("--write", action="store_true", help="write the tables to docs/fleet.md")
    given = parser.parse_args()
    bodies = bodies_of(given.recorded, given.detail)
    cost, shown, version = measured(given.engines, bodies, given.days, given.rules, given.screens.split(","))
    tables = {"rules": rules_table(cost)} | ({"screens": screens_table(given.engines, shown)} if shown else {})
    for name, (seconds, _) in sorted(cost.rules.items(), key=lambda each: -each[1][0])[:20]:
        print(f"  {seconds:8.3f} s  {name}")
    load = f"load average {os.getloadavg()[1]:.0f} on {os.cpu_count()} cores"
    busy = f"\n\nMeasured on {time.strftime('%Y-%m-%d')} with Prometheus {version} at {load}."
    part = ("-many" if given.engines > WHOLE else "") + ("" if given.detail == "full" else f"-{given.detail}")
    for name, table in tables.items():
        print(table)
        if given.write:
            write_part(f"{name}{part}", table + busy)


def bodies_of(folder: Path | None, detail: str = "full") -> Sequence[bytes]:
    """Successive expositions of one sidecar with a GPU."""
    if folder is not None and folder.is_dir():
        return [path.read_bytes() for path in sorted(folder.iterdir())]
    bodies = recorded("vllm", 0.0, gpu=True, detail=detail).bodies
    if folder is not None:
        folder.mkdir()
        for place, body in enumerate(bodies):
            (folder / f"{place:02}").write_bytes(body)
    return bodies


if __name__ == "__main__":
    main()
