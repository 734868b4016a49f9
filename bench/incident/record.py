"""What Prometheus would have of it: scrapes, recorded series and alerts, as blocks."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
from typing import IO, TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import yaml

from evaluate.prometheus import LOOKBACK, STEP_SECONDS, backfill
from evaluate.rules import firing, seconds
from incident.virtual import EPOCH
from llm_headroom.commands import programs
from llm_headroom.render.prometheus import Renderer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from incident.fleet import Host
    from llm_headroom.poll.published import Published

_RECORDED: Final = re.compile(r"\w+:\w+:\w+")
FLAGS: Final = (
    "--storage.tsdb.retention.time=100y",
    f"--query.lookback-delta={LOOKBACK}",
    "--query.max-samples=200000000",
)


class Scraper:
    """Scrapes one exporter into a file."""

    def __init__(self, host: Host, published: Published, out: IO[bytes]) -> None:
        self.host = host
        self._published = published
        self._out = out
        self._renderers: dict[int, Renderer] = {}
        where = {"job": "llm-headroom", "instance": host.instance, "cluster": host.cluster, "namespace": "llm"}
        self._labels = ",".join(f'{name}="{value}"' for name, value in where.items()).encode()

    def scrape(self, at: float) -> None:
        """One scrape, with what Prometheus itself adds; of a dead exporter, that it is dead."""
        alive = self.host.dies is None or at < self.host.dies
        if not alive:
            self._write([b"up 0.0\n"], at)
            return
        lines: list[bytes] = []
        for place, (_, points) in enumerate(self._published.sources()):
            found = self._renderers.setdefault(place, Renderer()).lines(points)
            text = "".join([each for metric in found.places for each in found.texts(metric)])
            lines += text.encode().splitlines(keepends=True)
        duration = 2e-6 * len(lines)
        own = (f"up 1.0\nscrape_samples_scraped {len(lines)}\nscrape_duration_seconds {duration:.4f}\n").encode()
        self._write([*lines, *own.splitlines(keepends=True)], at)

    def _write(self, lines: list[bytes], at: float) -> None:
        end = f" {EPOCH + at:.3f}\n".encode()
        for line in lines:
            series, _, value = line.rstrip().rpartition(b" ")
            name, _, labels = series.partition(b"{")
            both = self._labels + (b"," + labels if labels else b"}")
            self._out.write(name + b"{" + both + b" " + value + end)


def blocks(samples: Path, folder: Path, rules: Path, span: float) -> None:
    """Make blocks of what was scraped, of the recorded series, and of alerts that fire.

    Raises:
        RuntimeError: promtool or Prometheus refuses something; it says why.
    """
    backfill([samples], folder)
    document = yaml.safe_load(rules.read_text())
    file = folder / "rules.yml"  # one name: Prometheus places a group's evaluations by its name and its file's
    for recorded in _passes(document):
        file.write_text(json.dumps({"groups": [{"name": "recorded", "rules": recorded}]}))
        with programs.prometheus(folder, {}, *FLAGS) as server:
            command = ["promtool", "tsdb", "create-blocks-from", "rules", "--output-dir", str(folder / "data")]
            command += ["--url", f"http://{server.address}", "--eval-interval", f"{STEP_SECONDS:.0f}s"]
            command += ["--start", f"{EPOCH:.0f}", "--end", f"{EPOCH + span:.0f}", str(file)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"promtool: {done.stderr.strip()}")
    with programs.prometheus(folder, {}, *FLAGS) as server, samples.open("wb") as out:
        for line in _alerts(server.address, document, span):
            out.write(line)
    backfill([samples], folder)


def _passes(document: Mapping[str, Any]) -> Iterator[list[dict[str, str]]]:
    """Recording rules, those after the others that read what these record: promtool evaluates each on what is there."""
    left = {rule["record"]: rule for group in document["groups"] for rule in group["rules"] if "record" in rule}
    while left:
        ready = [  # one that reads itself, as it was at the look before, begins without
            rule for name, rule in left.items() if not (left.keys() - {name}) & set(_RECORDED.findall(rule["expr"]))
        ]
        yield ready
        for rule in ready:
            del left[rule["record"]]


def _alerts(address: str, rules: Mapping[str, Any], span: float) -> Iterator[bytes]:
    for rule in (rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule):
        waits = [seconds(rule.get(name, "0s")) for name in ("for", "keep_firing_for")]
        for labels, times in _ranges(address, rule["expr"], span):
            shown = labels | rule["labels"] | {"alertname": rule["alert"], "alertstate": "firing"}
            inside = ",".join(f"{name}={json.dumps(value)}" for name, value in shown.items() if name != "__name__")
            for begin, end in firing(times, *waits):
                for step in range(int(begin // STEP_SECONDS), int(min(end, span) // STEP_SECONDS) + 1):
                    yield f"ALERTS{{{inside}}} 1 {EPOCH + step * STEP_SECONDS:.3f}\n".encode()


def _ranges(address: str, expression: str, span: float) -> Iterator[tuple[dict[str, str], tuple[float, ...]]]:
    form = {"query": expression, "start": EPOCH, "end": EPOCH + span, "step": STEP_SECONDS}
    connection = http.client.HTTPConnection(address, timeout=600)
    connection.request(
        "POST", "/api/v1/query_range", urlencode(form), {"Content-Type": "application/x-www-form-urlencoded"}
    )
    answer = json.load(connection.getresponse())
    connection.close()
    if answer["status"] != "success":
        raise RuntimeError(f"{expression}: {answer['error']}")
    for series in answer["data"]["result"]:
        yield series["metric"], tuple(at - EPOCH for at, _ in series["values"])
