"""What one exporter over many targets costs, while a twentieth of them hang: CPU, memory, and who is late.

    .venv/bin/python bench/many_targets.py [--targets 1000] [--interval 15] [--seconds 60] [--hang 0.05]

Engines are captures of vLLM whose numbers move, each on a port of its own (`capture_server.py`); those that hang take
a connection and never answer. `/metrics` is read once per interval, compressed. Linux only.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from fleet import fetched, running, write_part

if TYPE_CHECKING:
    from collections.abc import Sequence

BENCH: Final = Path(__file__).parent
PORT: Final = 18420
SUCCESS: Final = re.compile(r'^llm_source_last_success_timestamp_seconds\{.*target="([^"]+)".*\} (\S+)$', re.MULTILINE)


class Found(NamedTuple):
    """CPU in cores, megabytes resident, the age in seconds of the oldest reading of a target that does not hang."""

    targets: int
    hanging: int
    cores: float
    megabytes: float
    oldest: float
    metrics: float
    page: float
    stream: float


def process(pid: int) -> tuple[float, float]:
    """CPU seconds and resident megabytes."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return (int(fields[11]) + int(fields[12])) / 100, pages * 4096 / 1e6


def timed(path: str) -> float:
    """Seconds until an answer is whole; of a stream, its first event."""
    began = time.monotonic()
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}", timeout=60) as answer:
        if path.endswith("stream"):
            while answer.readline().strip():
                pass
        else:
            answer.read()
    return time.monotonic() - began


def scraped() -> str:
    """The exposition, compressed on the way as Prometheus asks for it."""
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/metrics", headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - our own
        return gzip.decompress(answer.read()).decode()


def measured(targets: int, share: float, interval: float, seconds: float) -> Found:
    """One exporter over so many targets."""
    hanging = round(targets * share)
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(hanging)]
        command = [sys.executable, str(BENCH / "capture_server.py"), f"vllm/0.32.0={targets - hanging}"]
        server = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
        stack.callback(server.terminate)
        ports: Sequence[int] = [port for _, port in json.loads((server.stdout and server.stdout.readline()) or b"[]")]
        names = [f"well-{place}" for place in range(len(ports))]
        every = [*zip(names, ports, strict=True)]
        every += [(f"hangs-{place}", each.getsockname()[1]) for place, each in enumerate(silent)]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llm-headroom-many-")))
        config = {
            "interval": f"{interval:g}s",
            "gpu": False,
            "host": False,
            "targets": [{"name": name, "engine": "vllm", "url": f"http://127.0.0.1:{port}"} for name, port in every],
        }
        (folder / "config.yml").write_text(json.dumps(config))
        program = Path(sys.executable).with_name("llm-headroom")
        listen = f"127.0.0.1:{PORT}"
        exporter = stack.enter_context(
            running(program, "run", "--config", folder / "config.yml", "--listen", listen, "--log-level", "error")
        )
        fetched(f"http://{listen}/-/ready", 120.0)
        time.sleep(2 * interval)
        before, began = process(exporter.pid)[0], time.monotonic()
        oldest = 0.0
        while time.monotonic() < began + seconds:
            time.sleep(interval)
            ages = {name: time.time() - float(value) for name, value in SUCCESS.findall(scraped())}
            oldest = max(oldest, *(ages.get(name, float("inf")) for name in names))
        after, megabytes = process(exporter.pid)
        cores = (after - before) / (time.monotonic() - began)
        return Found(targets, hanging, cores, megabytes, oldest, timed("/metrics"), timed("/"), timed("/api/v1/stream"))


def table(rows: Sequence[Found]) -> str:
    """One line for each number of targets."""
    lines = [
        "| targets | hanging | CPU, cores | resident MB | oldest reading, s | `/metrics`, s | page, s | `top`, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = f"{row.oldest:.1f} | {row.metrics:.2f} | {row.page:.2f} | {row.stream:.2f}"
        lines.append(f"| {row.targets:,} | {row.hanging} | **{row.cores:.2f}** | {row.megabytes:.0f} | {times} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", default="1,1000")
    parser.add_argument("--interval", type=float, default=15.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--hang", type=float, default=0.05)
    parser.add_argument("--write", action="store_true", help="write the table to docs/fleet.md")
    given = parser.parse_args()
    rows = [
        measured(targets, given.hang, given.interval, given.seconds) for targets in map(int, given.targets.split(","))
    ]
    print(table(rows))
    if given.write:
        write_part("many", table(rows))


if __name__ == "__main__":
    main()
