"""What a fleet of sidecars costs: each of them, the network, and the Prometheus that scrapes them.

    .venv/bin/python bench/fleet.py [--engines 10,100,1000] [--interval 15] [--seconds 60] [--rules FILE]

Expositions are recorded from real exporters over simulated engines under traffic, and served again to a real
Prometheus (Debian's) as if there were so many sidecars, each with a pod's name. Targets are named after their pods by
relabelling, as sidecars name them in a pod, and that this keeps engines apart is checked. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

ROOT: Final = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

import nvml_library  # noqa: E402 - of the tests
from llm_headroom.commands import programs  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection

PORTS: Final = {"vllm": 18400, "sglang": 18401, "ollama": 18402}
TRAFFIC: Final = {
    "vllm": ("--trace", "azure_conv"),
    "sglang": ("--trace", "azure_code"),
    "ollama": ("--rate", "0.2"),
}
RECORDED: Final = 20
"""Successive expositions of one sidecar; they are served in turn, so that numbers move as they do."""
SPEED: Final = 15.0
"""Virtual seconds of the engine between two recorded expositions, which are one real second apart."""
SAMPLE: Final = re.compile(rb"^[^#\s]", re.MULTILINE)
RELABEL: Final = {
    "source_labels": ["pod", "target"],
    "regex": r"(.+);(?:127\.0\.0\.1|localhost|\[::1\]):(\d+)",
    "target_label": "target",
    "replacement": "$1:$2",
}
"""What is recorded was outside of any pod, so that its target is 127.0.0.1."""


@dataclass(frozen=True, slots=True)
class Sidecar:
    """One exporter with its engine: what it showed, one second after the other, and what it cost."""

    engine: str
    bodies: tuple[bytes, ...]
    cpu_per_second: float
    megabytes: float

    @property
    def series(self) -> int:
        """Samples of the last exposition."""
        return len(SAMPLE.findall(self.bodies[-1]))


@contextmanager
def running(*command: str | Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program that is ended with the block; `variables` are added to its environment."""
    environment = os.environ | variables
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def fetched(url: str, patience: float = 30.0) -> bytes:
    """A page, as soon as there is one."""
    end = time.monotonic() + patience
    while True:
        try:
            with urllib.request.urlopen(url, timeout=patience) as answer:  # noqa: S310 - our own programs
                body: bytes = answer.read()
                return body
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def value(body: bytes, name: str) -> float:
    """The value of a series without labels."""
    found = re.search(rf"^{name} (\S+)$".encode(), body, re.MULTILINE)
    if found is None:
        raise LookupError(f"{name} is not there")
    return float(found[1])


def recorded(engine: str, seconds: float, *, gpu: bool = False, detail: str = "full") -> Sidecar:
    """A sidecar at its defaults, read every 15 s, for its cost; then a fast one, for its expositions."""
    program, port = Path(sys.executable).with_name("llm-headroom"), PORTS[engine]
    target = f"{engine}=http://127.0.0.1:{port}"
    with ExitStack() as stack:
        variables = {}
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llm-headroom-recorded-")))
        (folder / "headroom.yml").write_text(f"detail: {detail}\n")
        if gpu:
            described = nvml_library.Description(folder / "gpus", nvml_library.fixture("h200x8"))
            described.say("system", "nvmlDeviceGetCount_v2", 1)
            library = nvml_library.build(folder)
            variables = {**described.environment(), "LD_LIBRARY_PATH": str(library.parent)}

        def simulated(speed: float) -> subprocess.Popen[bytes]:
            listen = f"127.0.0.1:{port}"
            command = (program, "simulate", "--engine", engine, "--listen", listen, "--speed", str(speed))
            return stack.enter_context(running(*command, *TRAFFIC[engine]))

        def exporter(listen: str, interval: str) -> str:
            address = f"127.0.0.1:{listen}"
            only = ("--gpu" if gpu else "--no-gpu", "--no-discover", "--target", target)
            config = ("--config", str(folder / "headroom.yml"))
            command = (program, "run", *config, "--listen", address, "--interval", interval, *only)
            stack.enter_context(running(*command, **variables))
            return f"http://{address}/metrics"

        slow = simulated(1.0)
        url = exporter("18410", "5s")
        fetched(url)
        time.sleep(10)
        first, began = fetched(url), time.monotonic()
        last = first
        while time.monotonic() < began + seconds:
            time.sleep(15)
            last = fetched(url)
        elapsed = time.monotonic() - began
        cost = value(last, "process_cpu_seconds_total") - value(first, "process_cpu_seconds_total")
        slow.terminate()
        slow.wait(30)
        simulated(SPEED)
        url = exporter("18411", "1s")
        time.sleep(5)
        bodies = []
        for _ in range(RECORDED):
            bodies.append(fetched(url))
            time.sleep(1)
    return Sidecar(engine, tuple(bodies), cost / elapsed, value(last, "process_resident_memory_bytes") / 1e6)


# The fleet, and who scrapes it ---------------------------------------------------------------------------------------


def serve(bodies: Sequence[bytes], ready: Connection) -> None:
    """Answer any path with the next of the expositions, each path at its own place in their order."""
    answers = []
    for body in map(gzip.compress, bodies):
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Encoding: gzip\r\n"
        answers.append(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    places: dict[bytes, int] = {}

    class Target(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast("asyncio.Transport", transport)
            self.asked = b""

        def data_received(self, data: bytes) -> None:
            self.asked += data
            while b"\r\n\r\n" in self.asked:
                head, _, self.asked = self.asked.partition(b"\r\n\r\n")
                path = head.split(b" ", 2)[1]
                place = places.get(path, int(path.strip(b"/") or b"0"))
                places[path] = place + 1
                self.transport.write(answers[place % len(answers)])

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Target, "127.0.0.1", 0, backlog=4096)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@dataclass(frozen=True, slots=True)
class Scraped:
    """What a Prometheus over so many sidecars needed."""

    engines: int
    series: float
    samples_per_second: float
    cpu_per_second: float
    megabytes: float
    log_bytes_per_sample: float
    rules_seconds: float | None


def scraped(engines: int, port: int, interval: int, seconds: float, rules: Path | None) -> Scraped:
    """Let Prometheus scrape the fleet for a while."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llm-headroom-fleet-")))
        targets = [
            {
                "targets": [f"127.0.0.1:{port}"],
                "labels": {
                    "__metrics_path__": f"/{index}",
                    "instance": f"10.{index >> 16}.{index >> 8 & 255}.{index & 255}:9836",
                    "namespace": "llm",
                    "pod": f"vllm-5f7c9d8b6-{index:05x}",
                },
            }
            for index in range(engines)
        ]
        (folder / "targets.json").write_text(json.dumps(targets))
        config = {
            "global": {"scrape_interval": f"{interval}s", "evaluation_interval": f"{interval}s"},
            "rule_files": [str(rules)] if rules else [],
            "scrape_configs": [
                {
                    "job_name": "llm-headroom",
                    "file_sd_configs": [{"files": [str(folder / "targets.json")]}],
                    "metric_relabel_configs": [RELABEL],
                }
            ],
        }
        address = stack.enter_context(programs.prometheus(folder, config)).address
        deadline = time.monotonic() + 60 + 3 * interval
        while (apart := query(address, "count(count by (target) (llm_up))")) != engines:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{apart} targets of {engines}: not scraped in time, or not distinguished")
            time.sleep(1)
        time.sleep(interval)  # so that every series has a second sample
        first, began = own(address), time.monotonic()
        log = written(folder)
        time.sleep(seconds)
        last, elapsed = own(address), time.monotonic() - began
        appended = (
            last["prometheus_tsdb_head_samples_appended_total"] - first["prometheus_tsdb_head_samples_appended_total"]
        )
        return Scraped(
            engines,
            last["prometheus_tsdb_head_series"],
            appended / elapsed,
            (last["process_cpu_seconds_total"] - first["process_cpu_seconds_total"]) / elapsed,
            last["process_resident_memory_bytes"] / 1e6,
            (written(folder) - log) / appended,
            last["prometheus_rule_group_last_duration_seconds"] if rules else None,
        )


def own(address: str) -> dict[str, float]:
    """Prometheus' own metrics, summed over their labels."""
    found: dict[str, float] = {}
    for line in fetched(f"http://{address}/metrics").decode().splitlines():
        if not line.startswith("#"):
            name, _, number = line.rpartition(" ")
            found[name.partition("{")[0]] = found.get(name.partition("{")[0], 0.0) + float(number)
    return found


def query(address: str, expression: str) -> float | None:
    """The one value of an instant query, if it has one."""
    url = f"http://{address}/api/v1/query?query={urllib.parse.quote(expression)}"
    answer: Any = json.loads(fetched(url))
    result = answer["data"]["result"]
    return float(result[0]["value"][1]) if result else None


def written(folder: Path) -> int:
    """Bytes of the write-ahead log."""
    return sum(file.stat().st_size for file in (folder / "data" / "wal").glob("*") if file.is_file())


def write_part(name: str, text: str) -> None:
    """Put a table into docs/fleet.md, between the marks of its name."""
    path = ROOT / "docs" / "fleet.md"
    begin, end = f"<!-- measured: {name} -->\n", "\n<!-- end -->"
    head, found, rest = path.read_text(encoding="utf-8").partition(begin)
    if not found:
        raise LookupError(f"{path} has no part {name}")
    path.write_text(f"{head}{begin}{text}{end}{rest.partition(end)[2]}", encoding="utf-8")


def main() -> None:
    """Parse the arguments, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", default="10,100,1000")
    parser.add_argument("--interval", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rules", type=Path, help="recording and alerting rules that Prometheus evaluates")
    given = parser.parse_args()

    print("| sidecar of | series | bytes | compressed | CPU, ms per s | resident MB |\n|---|---|---|---|---|---|")
    sidecars = [recorded(engine, given.seconds) for engine in PORTS]
    for one in sidecars:
        body = one.bodies[-1]
        sizes = f"{len(body)} | {len(gzip.compress(body))}"
        print(f"| {one.engine} | {one.series} | {sizes} | {one.cpu_per_second * 1e3:.2f} | {one.megabytes:.1f} |")

    print(f"\n{sidecars[0].engine}, every {given.interval} s:\n")
    print("| engines | head series | samples/s | Prometheus' CPU, cores | resident MB | log bytes/sample | rules, s |")
    print("|---|---|---|---|---|---|---|", flush=True)
    mine, theirs = multiprocessing.Pipe()
    fleet = multiprocessing.Process(target=serve, args=(sidecars[0].bodies, theirs), daemon=True)
    fleet.start()
    port = mine.recv()
    for engines in map(int, given.engines.split(",")):
        found = scraped(engines, port, given.interval, given.seconds, given.rules and given.rules.resolve())
        rules = "" if found.rules_seconds is None else f"{found.rules_seconds:.3f}"
        print(
            f"| {found.engines} | {found.series:.0f} | {found.samples_per_second:.0f} | {found.cpu_per_second:.3f} "
            f"| {found.megabytes:.0f} | {found.log_bytes_per_sample:.1f} | {rules} |",
            flush=True,
        )
    fleet.terminate()


if __name__ == "__main__":
    main()
