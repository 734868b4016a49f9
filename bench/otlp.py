"""What an OTLP export costs: CPU of its parts on the same points, and resident memory with the push off and on.

python bench/otlp.py
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics

from llm_headroom.config.settings import OtlpSettings
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.exposition.text import Parser
from llm_headroom.otlp.cumulative import Starts
from llm_headroom.otlp.data import metrics_data, reading
from llm_headroom.otlp.exporter import Exporter
from llm_headroom.otlp.options import options
from llm_headroom.otlp.resource import resource
from llm_headroom.scrape.label_cap import LabelCap
from llm_headroom.scrape.mapping import Mapper

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_headroom.model import Point

CAPTURE = Path(__file__).parent.parent / "tests" / "fixtures" / "captures" / "vllm" / "0.32.0" / "saturated.prom"
ROUNDS = 15
EXPORTS = 5
"""Exports after which memory is looked at."""


class Collector(BaseHTTPRequestHandler):
    """Takes everything over HTTP."""

    protocol_version = "HTTP/1.1"
    taken = threading.Semaphore(0)

    def do_POST(self) -> None:
        """Answer with full success."""
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()
        Collector.taken.release()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def points(targets: int) -> list[tuple[float, list[Point]]]:
    """The points of so many vLLM engines."""
    exposition = Parser().parse(CAPTURE.read_bytes())
    engine = BUILT_IN["vllm"]
    found = []
    for number in range(targets):
        mapper = Mapper(engine, {"engine": "vllm", "target": f"t{number}"}, cap=LabelCap(200))
        found.append((1_000_000.0, list(mapper.map(exposition, model="")[1].points)))
    return found


def cost(work: Callable[[], object]) -> float:
    """Milliseconds of this thread's CPU of one run, the median of several."""
    work()
    spent = []
    for _ in range(ROUNDS):
        before = time.thread_time()
        work()
        spent.append((time.thread_time() - before) * 1000)
    return statistics.median(spent)


def cpu(url: str) -> None:
    """Print what the parts of an export cost by the number of engines, and a whole one over HTTP."""
    heads = ("targets", "points", "bytes", "starts", "objects", "encode", "whole")
    print(" ".join(f"{head:>9}" for head in heads))
    who = resource({}, "9836")
    for targets in (1, 6, 10, 50):
        sources, memory = points(targets), Starts(0.0)
        started = memory.started(sources)
        data = metrics_data(map(reading, started), who)
        exporter = Exporter(options(OtlpSettings(endpoint=url), {}), port="9836", began=0.0)
        parts = (
            cost(lambda memory=memory, sources=sources: memory.started(sources)),  # type: ignore[misc]
            cost(lambda started=started: metrics_data(map(reading, started), who)),  # type: ignore[misc]
            cost(lambda data=data: encode_metrics(data).SerializeToString()),  # type: ignore[misc]
            cost(lambda exporter=exporter, sources=sources: exporter.export(sources)),  # type: ignore[misc]
        )
        exporter.interrupt()
        size = len(encode_metrics(data).SerializeToString())
        print(f"{targets:>9} {len(started):>9} {size:>9} " + " ".join(f"{each:>9.2f}" for each in parts))


def resident(protocol: str | None, url: str, taken: Callable[[], object]) -> float:
    """MB of a `run` without a target after some exports, or without a push."""
    asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol} if protocol else {}
    interval = {"OTEL_METRIC_EXPORT_INTERVAL": "200"}
    command = [sys.executable, "-m", "llm_headroom", "run", "--listen", "127.0.0.1:0", "--no-gpu", "--no-discover"]
    with subprocess.Popen(
        command, env={**os.environ, **asked, **interval}, stderr=subprocess.PIPE, text=True
    ) as exporter:
        assert exporter.stderr is not None  # noqa: S101 - as asked for
        exporter.stderr.readline()
        for _ in range(EXPORTS if protocol else 0):
            taken()
        status = Path(f"/proc/{exporter.pid}/status").read_text(encoding="ascii")
        exporter.terminate()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def main() -> None:
    """Print both tables."""
    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    cpu(url)
    while Collector.taken.acquire(blocking=False):
        pass
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
    from otlp_receiver import GrpcReceiver  # noqa: PLC0415 - after its path

    print(f"\nresident MB: off {resident(None, '', lambda: None):.1f}", end="")
    print(f", http {resident('http/protobuf', url, Collector.taken.acquire):.1f}", end="")
    with GrpcReceiver() as collector:
        print(f", grpc {resident('grpc', collector.url, lambda: collector.wait(EXPORTS)):.1f}")


if __name__ == "__main__":
    main()
