"""A fleet on a second store: Prometheus in agent mode writes to VictoriaMetrics, and vmalert evaluates the rules there.

    .venv/bin/python bench/second_store.py [--engines 1000] [--seconds 240] [--recorded DIR] [--write]

Sidecars are recorded expositions, served as in `fleet.py`. Says how many rules failed and what they recorded, which
queries of all dashboards failed there, and the p95 of TTFT by recorded and by raw buckets. Needs Debian's packages
prometheus and victoria-metrics. `--write` writes docs/fleet.md.

vmalert evaluates a rule for half a minute ago (`-rule.evalDelay`), cut down to the group's interval: the buckets,
recorded every minute, have their first sample up to three minutes after the start. A shorter run says None for them.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fleet import RELABEL, ROOT, fetched, own, query, running, serve, write_part
from fleet_rules import asked_by, bodies_of, fleet_of
from llm_headroom.bundle.settings import BundleSettings
from llm_headroom.commands import bundle, programs

STORE, RULES, AGENT = 18430, 18431, 18432


def main() -> None:
    """Run the fleet, and print what the store has of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--recorded", type=Path)
    parser.add_argument("--write", action="store_true", help="write the table to docs/fleet.md")
    given = parser.parse_args()
    mine, theirs = multiprocessing.Pipe()
    fleet = multiprocessing.Process(target=serve, args=(bodies_of(given.recorded), theirs), daemon=True)
    fleet.start()
    port, store = mine.recv(), f"127.0.0.1:{STORE}"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llm-headroom-store-")))
        targets = [
            {"targets": [f"127.0.0.1:{port}"], "labels": {"__metrics_path__": f"/{place}", **labels}}
            for place, labels in enumerate(fleet_of(given.engines))
        ]
        scrape = {"job_name": "llm-headroom", "static_configs": targets, "metric_relabel_configs": [RELABEL]}
        config = {
            "global": {"scrape_interval": "15s"},
            "remote_write": [{"url": f"http://{store}/api/v1/write"}],
            "scrape_configs": [scrape],
        }
        (folder / "agent.yml").write_text(json.dumps(config))
        path = {name: programs.installed((name,)) or name for name in ("prometheus", "victoria-metrics", "vmalert")}
        stack.enter_context(
            running(path["victoria-metrics"], f"-storageDataPath={folder}/store", f"-httpListenAddr={store}")
        )
        fetched(f"http://{store}/health")
        stack.enter_context(
            running(
                path["prometheus"],
                "--enable-feature=agent",
                f"--config.file={folder}/agent.yml",
                f"--storage.agent.path={folder}/agent",
                f"--web.listen-address=127.0.0.1:{AGENT}",
            )
        )
        stack.enter_context(
            running(
                path["vmalert"],
                f"-rule={ROOT}/alerts/llm-headroom.rules.yml",
                f"-datasource.url=http://{store}",
                f"-remoteWrite.url=http://{store}",
                "-notifier.blackhole",
                f"-httpListenAddr=127.0.0.1:{RULES}",
            )
        )
        time.sleep(given.seconds)
        found = report(store, given.engines, given.seconds)
    print(found)
    if given.write:
        write_part("store", found)
    fleet.terminate()


def report(store: str, engines: int, seconds: float) -> str:
    """What the store has of the fleet, and what it took, as a table."""
    rules: Any = json.loads(fetched(f"http://127.0.0.1:{RULES}/api/v1/rules"))["data"]["groups"]
    every = [rule for group in rules for rule in group["rules"]]
    wrong = {rule["name"]: rule["lastError"] for rule in every if rule["lastError"]}
    seen = query(store, "count(count by (target) (llm_up))")
    recorded = query(store, 'count({__name__=~".+:.+"})')
    buckets = "llm_time_to_first_token_seconds_bucket"
    p95 = [
        query(store, f"histogram_quantile(0.95, sum by (le) ({rate}))")
        for rate in (f"engine_model:{buckets}:rate5m", f"rate({buckets}[5m])")
    ]
    costs = {name: own(f"127.0.0.1:{port}") for name, port in (("agent", AGENT), ("store", STORE), ("vmalert", RULES))}
    drawn = answers(store)
    failed = {f"{name}: {title}": error for name, title, error, _ in drawn if error}
    lines = [
        "| | |",
        "|---|---|",
        f"| engines | {engines:,} |",
        f"| targets seen, all GPUs as one | {seen:,.0f} |",
        f"| rules without an error | {len(every) - len(wrong)} of {len(every)} |",
        f"| recorded series | {recorded or 0:,.0f} |",
        f"| p95 of TTFT by recorded and by raw buckets, s | {', '.join(f'{value or math.nan:.3f}' for value in p95)} |",
        f"| queries of all dashboards that were answered | {len(drawn) - len(failed)} of {len(drawn)} |",
        f"| of these with data | {sum(data for *_, data in drawn)} |",
    ]
    for name, cost in costs.items():
        cpu, memory = cost["process_cpu_seconds_total"], cost["process_resident_memory_bytes"] / 1e6
        lines.append(f"| {name}: CPU in {seconds:.0f} s, resident memory | {cpu:.1f} s, {memory:,.0f} MB |")
    lines += [f"| failed: {name} | {error} |" for name, error in (wrong | failed).items()]
    load = f"load average {os.getloadavg()[1]:.0f} on {os.cpu_count()} cores"
    return "\n".join([*lines, "", f"Measured on {time.strftime('%Y-%m-%d')} at {load}."])


def answers(store: str) -> list[tuple[str, str, str, bool]]:
    """Dashboard and title of every query of the dashboards, why it failed if it did, and whether it had data."""
    found = []
    for path, text in bundle.files(BundleSettings(), ["dashboards"]).items():
        for title, kind, parameters in asked_by(json.loads(text), time.time(), math.inf):
            try:
                url = f"http://{store}/api/v1/{kind}?{urlencode(parameters)}"
                with urllib.request.urlopen(url, timeout=120) as answer:
                    found.append((Path(path).stem, title, "", bool(json.load(answer)["data"]["result"])))
            except urllib.error.HTTPError as error:
                found.append((Path(path).stem, title, error.read().decode(errors="replace")[:200], False))
    return found


if __name__ == "__main__":
    main()
