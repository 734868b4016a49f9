"""A fleet on a second store: Prometheus in agent mode writes to VictoriaMetrics, and vmalert evaluates the rules there.

    .venv/bin/python bench/second_store.py [--engines 1000] [--seconds 240] [--recorded DIR]

Sidecars are recorded expositions, served as in `fleet.py`. Says how many rules failed and what they recorded, and the
p95 of TTFT by recorded and by raw buckets. Needs Debian's packages prometheus and victoria-metrics.

vmalert evaluates a rule for half a minute ago (`-rule.evalDelay`), cut down to the group's interval: the buckets,
recorded every minute, have their first sample up to three minutes after the start. A shorter run says None for them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fleet import RELABEL, ROOT, fetched, own, query, running, serve
from fleet_rules import bodies_of, fleet_of
from llm_headroom.commands import programs

STORE, RULES, AGENT = 18430, 18431, 18432


def main() -> None:
    """Run the fleet, and print what the store has of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--recorded", type=Path)
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
        rules: Any = json.loads(fetched(f"http://127.0.0.1:{RULES}/api/v1/rules"))["data"]["groups"]
        failed = {rule["name"]: rule["lastError"] for group in rules for rule in group["rules"] if rule["lastError"]}
        print(f"engines seen          {query(store, 'count(count by (target) (llm_up))')}")
        print(f"rules                 {sum(len(group['rules']) for group in rules)}, failed {failed or 'none'}")
        recorded = 'count({__name__=~".+:.+"})'
        print(f"recorded series       {query(store, recorded)}")
        buckets = "llm_time_to_first_token_seconds_bucket"
        for which, rate in (("recorded", f"engine_model:{buckets}:rate5m"), ("raw", f"rate({buckets}[5m])")):
            p95 = query(store, f"histogram_quantile(0.95, sum by (le) ({rate}))")
            print(f"{f'p95 of TTFT, {which}':21} {p95}")
        for name, address in (("agent", AGENT), ("store", STORE), ("vmalert", RULES)):
            cpu = own(f"127.0.0.1:{address}")
            print(
                f"{name:21} {cpu['process_cpu_seconds_total']:.1f} s of CPU, "
                f"{cpu['process_resident_memory_bytes'] / 1e6:.0f} MB"
            )
    fleet.terminate()


if __name__ == "__main__":
    main()
