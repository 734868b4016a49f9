"""The dashboards on an incident (bench/incident): engines crash, stall and are overrun, and an exporter dies."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from evaluate.prometheus import LOOKBACK
from llm_headroom.bundle.dashboards import dashboards
from llm_headroom.bundle.dashboards.colours import GOOD
from llm_headroom.bundle.dashboards.panel import Kind
from llm_headroom.bundle.settings import BundleSettings
from llm_headroom.commands import programs
from programs import program
from prometheus_server import asked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_headroom.bundle.dashboards.panel import Panel

pytestmark = pytest.mark.works(6)
ROOT: Final = Path(__file__).parents[1]
END: Final = 1_767_225_600 + 945
CHOSEN: Final = {"baseline": "vllm"}
ONE: Final = {"instance": "gpu-c:9836", "target": "vllm-0"}
"""The engine whose page is opened."""
DASHBOARDS: Final = dashboards(BundleSettings())
PANELS: Final = [(one.uid, panel) for one in DASHBOARDS for row in one.rows for panel in row.panels]


@pytest.fixture(name="address", scope="module")
def _address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus that holds the incident, with what it recorded and which alerts fire."""
    program("promtool", "prometheus")
    folder = tmp_path_factory.mktemp("incident")
    command = [sys.executable, "-m", "incident", str(folder), "--small"]
    paths = os.pathsep.join(str(ROOT / name) for name in ("bench", "exporter"))
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    flags = ("--storage.tsdb.retention.time=100y", f"--query.lookback-delta={LOOKBACK}")
    with programs.prometheus(folder, {}, *flags) as server:
        yield server.address


def filled_in(uid: str, expr: str) -> str:
    """An expression with all selected, or one engine where only one is shown."""
    chosen = CHOSEN | (ONE if uid == "llm-headroom-engine" else {})
    expr = expr.replace("$__range", "900s")
    return re.sub(r"\$(\w+)", lambda match: chosen.get(match[1], ".*"), expr)


def readings(address: str, uid: str, expr: str) -> list[float]:
    """What a query gives at the end of the incident."""
    found = asked(address, "query", query=filled_in(uid, expr), time=str(END))["result"]
    return [float(one["value"][1]) for one in found]


def test_every_query_finds_data(address: str) -> None:
    silent = [
        (uid, panel.title, query.expr)
        for uid, panel in PANELS
        for query in panel.queries
        if panel.empty is None and not readings(address, uid, query.expr)
    ]
    assert silent == []


def test_what_may_be_empty_is_not_where_it_applies(address: str) -> None:
    """Panels of trouble, of the proxy and of load headroom; not those of features that no simulated engine has."""
    shown = {
        re.sub(",? 5 ?m(in)?$", "", panel.title)
        for uid, panel in PANELS
        if panel.empty is not None and any(readings(address, uid, query.expr) for query in panel.queries)
    }
    assert shown >= {
        *("Engines", "Since when", "Firing alerts", "Failed requests", "Error budget left"),
        *("Mean request", "First tokens", "Prompts", "Answers", "How requests end", "HTTP responses", "Hits by tier"),
        *("What binds", "Saturation", "Load headroom", "Time until full", "High water of ten minutes"),
        *("Devices in trouble", "Throttled", "Xid errors", "OOM risk", "SM clock as a share of its maximum"),
        *("Share on GPUs", "Responses", "Time to first token, p95", "Loads and unloads", "Failing", "Oldest wait"),
        *("Per hour", "Price of 1M", "Per joule", "Budget left", "Cost per million generated tokens"),
        *("Failed collections", "Sources"),
    }


def is_good(panel: Panel, value: float) -> bool:
    """Whether a tile is painted as good at a reading."""
    colour = panel.steps.base
    for bound, hue in panel.steps.bounds:
        colour = hue if value >= bound else colour
    return colour == GOOD


def test_no_tile_contradicts_an_alert(address: str) -> None:
    """A tile that links to the runbook of an alert that fires is not green; of the engine's page, if it is that one."""
    firing = {one["metric"]["alertname"] for one in asked(address, "query", query="ALERTS", time=str(END))["result"]}
    assert firing >= {"LLMExporterDown", "LLMFirstTokensSlow", "LLMErrorRatioHigh", "LLMEngineStalled"}
    judged = [
        (uid, panel, value)
        for uid, panel in PANELS
        if panel.kind is Kind.STAT and panel.alert in firing and uid != "llm-headroom-engine" and panel.steps.bounds
        for value in readings(address, uid, panel.queries[0].expr)
    ]
    assert len(judged) > 8
    assert [(uid, panel.title, value) for uid, panel, value in judged if is_good(panel, value)] == []


def test_parts_of_a_gpus_memory_add_up(address: str) -> None:
    panel = next(one for uid, one in PANELS if one.repeat == "gpu")
    *parts, total, _ = (query.expr.replace("$gpu", "0").replace("$instance", "gpu-c:9836") for query in panel.queries)
    found = sum(value for part in parts for value in readings(address, "", part))
    assert found == pytest.approx(readings(address, "", total)[0])


def test_a_page_shows_few_curves(address: str) -> None:
    """However many targets there are: what is drawn for each of them is drawn of the worst."""
    for uid, panel in PANELS:
        if panel.kind is Kind.TIMESERIES and "$__range" in "".join(query.expr for query in panel.queries):
            assert all(len(readings(address, uid, query.expr)) <= 10 for query in panel.queries), panel.title
