"""Fleet's tiles and the shipped alerts on the same series: where an alert fires, no tile is painted as good."""

from __future__ import annotations

import functools
import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from llm_headroom.bundle.dashboards import dashboards
from llm_headroom.bundle.dashboards.colours import GOOD
from llm_headroom.bundle.dashboards.panel import NOT_EXPOSED, above
from llm_headroom.bundle.settings import BundleSettings
from programs import program
from rules_read import document, needed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from llm_headroom.bundle.dashboards.panel import Panel

RULES: Final = Path(__file__).parents[1] / "alerts" / "llm-headroom.rules.yml"
JUDGING: Final = {"Unreachable", "Engines", "Pages firing", "On time 5m", "Failed 5m"}
TARGET_LABELS: Final = 'engine="vllm", target="127.0.0.1:8000", model="m"'
INCIDENT: Final = {
    "calm": {"up": "1x60", "5xx": "0x60", "good": "0+60x60"},
    "crash": {"llm_up": "1x30 0x30"},
    "errors": {"5xx": "0+30x60"},
    "slow": {"good": "0+40x60"},
    "dead": {"up": "1x30 0x30"},
}
"""Hosts with the same address of an engine: what differs from a calm one, minute by minute."""


def host(name: str) -> Iterator[tuple[str, str]]:
    """The series of one host; those of an exporter that died end with it."""
    own = {**INCIDENT["calm"], "llm_up": "1x60", **INCIDENT[name]}
    where = f'job="llm-headroom", instance="{name}:9836", cluster="c"'
    last = "1x30 _x30" if name == "dead" else ""
    down = own["llm_up"] != "1x60"
    yield f"up{{{where}}}", own["up"]
    yield f'llm_up{{{where}, engine="vllm", target="127.0.0.1:8000"}}', last or own["llm_up"]
    for state, flags in {"down": "0x30 1x30" if down else "0x60", "ok": "1x30 0x30" if down else "1x60"}.items():
        flag = "0x30 _x30" if last and state == "down" else last or flags
        yield f'llm_engine_state{{{where}, {TARGET_LABELS}, state="{state}"}}', flag
    counters = {
        'llm_http_responses_total{code="5xx", ': own["5xx"],
        'llm_http_responses_total{code="2xx", ': "0+70x60",
        'llm_slo_requests_total{slo="ttft", ': "0+60x60",
        'llm_slo_requests_good_total{slo="ttft", ': own["good"],
    }
    for metric, values in counters.items():
        yield f"{metric}{where}, {TARGET_LABELS}}}", values.replace("x60", "x30 _x30") if last else values


@functools.cache
def groups() -> list[dict[str, Any]]:
    """The shipped rules."""
    found: list[dict[str, Any]] = document(RULES)["groups"]
    return found


def tiles() -> dict[str, Panel]:
    """The tiles of Fleet by title."""
    fleet = next(one for one in dashboards(BundleSettings()) if one.uid == "llm-headroom-fleet")
    return {panel.title: panel for row in fleet.rows for panel in row.panels if panel.kind == "stat"}


def good(tile: Panel) -> str:
    """A query that has a sample if the first reading of a tile is painted as good."""
    steps = tile.steps if tile.steps.bounds else above(1, 1)
    (first, colour), *_ = reversed(steps.bounds)
    within = f">= {first}" if colour == GOOD else f"< {min(at for at, _ in steps.bounds)} > {NOT_EXPOSED}"
    reading = re.sub(r"[$]\w+", ".*", tile.queries[0].expr.replace("$__range", "5m"))
    return f"count(({reading}) {within})"


def judged(tmp_path: Path, hosts: Sequence[str], expected: Mapping[str, bool], pages_firing: set[str]) -> None:
    """Let promtool evaluate the shipped rules and tiles on the same series after 45 minutes."""
    cases = [
        {"expr": good(tiles()[title]), "eval_time": "45m", "exp_samples": [{"labels": "{}", "value": 1}] * is_good}
        for title, is_good in expected.items()
    ]
    firing = 'group by (alertname) (ALERTS{alertstate="firing", severity="page"})'
    pages = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(pages_firing)]
    cases.append({"expr": firing, "eval_time": "45m", "exp_samples": pages})
    evaluate(tmp_path, hosts, cases)


def evaluate(tmp_path: Path, hosts: Sequence[str], cases: Sequence[Mapping[str, object]]) -> None:
    """Let promtool run the shipped rules over the series of some hosts, and compare what it finds.

    It runs the pages' rules, and those that record what these and the cases read.
    """
    pages = {rule["alert"] for group in groups() for rule in group["rules"] if _is_page(rule)}
    read = pages | needed(groups(), pages, [str(case["expr"]) for case in cases])
    kept = [group | {"rules": [rule for rule in group["rules"] if _name(rule) in read]} for group in groups()]
    rules = tmp_path / "rules.yml"
    rules.write_text(json.dumps({"groups": [group for group in kept if group["rules"]]}))  # JSON is YAML
    series = [{"series": name, "values": values} for one in hosts for name, values in host(one)]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": cases}
    file = tmp_path / "incident.yml"
    file.write_text(json.dumps({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": [test]}))
    promtool = program("promtool", "prometheus")
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _name(rule: Mapping[str, str]) -> str:
    return rule.get("alert") or rule["record"]


def _is_page(rule: Mapping[str, Any]) -> bool:
    return "alert" in rule and rule["labels"]["severity"] == "page"


def test_calm_tiles_are_good(tmp_path: Path) -> None:
    judged(tmp_path, ["calm"], dict.fromkeys(JUDGING, True), set())


@pytest.mark.parametrize(
    ("name", "wrong", "page"),
    [
        ("crash", {"Engines"}, set()),
        ("errors", {"Failed 5m"}, {"LLMErrorRatioHigh"}),
        ("slow", {"On time 5m"}, {"LLMFirstTokensSlow"}),
        ("dead", {"Unreachable"}, {"LLMExporterDown"}),
    ],
)
def test_no_tile_contradicts_an_alert(tmp_path: Path, name: str, wrong: set[str], page: set[str]) -> None:
    """Beside a calm host whose engine has the same address."""
    bad = wrong | ({"Pages firing"} if page else set())
    judged(tmp_path, ["calm", name], {title: title not in bad for title in JUDGING}, page)


def test_nothing_is_good_where_every_exporter_is_dead(tmp_path: Path) -> None:
    judged(tmp_path, ["dead"], dict.fromkeys(JUDGING, False), {"LLMExporterDown"})


def test_no_page_is_green_where_every_exporter_is_dead(tmp_path: Path) -> None:
    """But for how many tickets are open, which Prometheus knows by itself: the alert is a page."""
    judging = [
        panel
        for one in dashboards(BundleSettings())
        for row in one.rows
        for panel in row.panels
        if panel.kind == "stat" and panel.steps.bounds and panel.title != "Tickets open"
    ]
    assert len(judging) > 25
    evaluate(tmp_path, ["dead"], [{"expr": good(one), "eval_time": "45m", "exp_samples": []} for one in judging])


def test_a_model_that_nobody_serves_pages_and_is_down(tmp_path: Path) -> None:
    bad = {"Engines", "Pages firing"}
    judged(tmp_path, ["crash"], {title: title not in bad for title in JUDGING}, {"LLMModelDown"})


def test_engines_of_one_address_are_a_row_for_each_host_and_the_dead_come_first(tmp_path: Path) -> None:
    fleet = next(one for one in dashboards(BundleSettings()) if one.uid == "llm-headroom-fleet")
    table = next(panel for row in fleet.rows for panel in row.panels if panel.columns)
    places = {text: at for at, text, _ in table.columns[0].words}
    states = {"crash": "■ down", "dead": "? exporter unreachable", "calm": "✓ ok"}
    rows = [
        {"labels": f'{{cluster="c", instance="{name}:9836", {TARGET_LABELS}}}', "value": places[state]}
        for name, state in states.items()
    ]
    assert (
        places["■ down"] > places["▲ tight"] > places["? exporter unreachable"] > places["? unknown"] > places["✓ ok"]
    )
    query = re.sub(r"[$]\w+", ".*", table.queries[0].expr)
    evaluate(tmp_path, list(states), [{"expr": query, "eval_time": "45m", "exp_samples": rows}])
