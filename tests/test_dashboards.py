"""The dashboards: what holds for every panel, and that each query finds what it asks for in a real Prometheus."""

from __future__ import annotations

import json
import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from dashboard_queries import Json, asked_for, drawn, expressions, filled_in, values_of
from llm_headroom import schema
from llm_headroom.bundle.alerts import GROUPS
from llm_headroom.bundle.dashboards import dashboards, files
from llm_headroom.bundle.dashboards.colours import BAD, GOOD, UNKNOWN, WARN
from llm_headroom.bundle.dashboards.panel import NOT_EXPOSED, NOT_KNOWN
from llm_headroom.bundle.rule import Recording
from llm_headroom.bundle.settings import BundleSettings
from llm_headroom.commands import programs
from llm_headroom.derive import capacity
from llm_headroom.model import Kind
from llm_headroom.thresholds import Thresholds
from programs import program
from prometheus_server import asked
from simulator_process import Simulator

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT: Final = Path(__file__).parents[1]
COMMITTED: Final = ROOT / "dashboards"
RULES: Final = ROOT / "alerts" / "llm-headroom.rules.yml"
UIDS: Final = {f"llm-headroom-{name}" for name in ("fleet", "engine", "kv", "gpu", "ollama", "compare", "exporter")}
DOCUMENTS: Final[Sequence[Json]] = [json.loads(path.read_bytes()) for path in sorted(COMMITTED.iterdir())]
VARIABLES: Final = ("job", "cluster", "namespace", "instance", "engine", "model", "target")
CARRIED: Final = {"exporter": ("model",), "gpu": ("engine", "model", "target"), "ollama": ("engine",)}
"""Variables that a dashboard does not use, and hands on to the others."""
PROMETHEUS_OWN: Final = {"ALERTS", "up", "scrape_samples_scraped", "scrape_duration_seconds"}
RECORDED: Final = {rule.name for group in GROUPS.values() for rule in group.rules if isinstance(rule, Recording)}
LEVELS: Final = {
    "llm_gpu_xid_errors_total",
    "llm_gpu_ecc_errors_total",
    "llm_host_memory_oom_kills_total",
    "llm_engine_restarts_total",
}
"""Counters that are shown as they stand: a counter that appears with its first event has no rate."""
STORIES: Final = (
    "llm_prefix_cache_hits_total > 0",
    'llm_http_responses_total{engine="ollama"} > 0',
    'llm_time_to_first_token_seconds_count{engine="ollama"} > 0',
)
"""What the demo shows beside what every panel asks for."""
SELECTOR: Final = re.compile(r"((?:\b\w+:)?\bllm_\w+(?::\w+)?|\bALERTS|\bup|\bscrape_\w+|\bprocess_\w+)\{([^}]*)\}")


def test_the_committed_files_are_what_the_generator_writes() -> None:
    written = files(BundleSettings())
    assert {f"dashboards/{path.name}": path.read_text(encoding="utf-8") for path in COMMITTED.iterdir()} == written
    assert set(written) == {f"dashboards/{uid}.json" for uid in UIDS}
    assert {document["uid"] for document in DOCUMENTS} == UIDS


def test_the_files_can_be_read_and_compared() -> None:
    for path in COMMITTED.iterdir():
        text = path.read_text(encoding="utf-8")
        assert text.startswith('{\n  "__inputs"'), "two spaces for each level"
        assert "·" in text, "and every sign as itself"


@pytest.fixture(name="document", params=DOCUMENTS, ids=[document["uid"] for document in DOCUMENTS])
def _document(request: pytest.FixtureRequest) -> Json:
    """Each dashboard, for what the dashboard linter of Grafana asks for, and more."""
    found: Json = request.param
    return found


def test_conventions_of_dashboard(document: Json) -> None:
    assert not document["editable"]
    assert document["graphTooltip"] == 1
    assert document["schemaVersion"] == 39
    assert document["id"] is None
    assert document["description"]
    links = [(link["url"].split("?")[0], link) for link in document["links"]]
    assert {f"/d/{uid}" for uid in UIDS} == {*(url for url, _ in links), f"/d/{document['uid']}"} - {"/explore"}
    one_target = document["uid"] == "llm-headroom-engine"
    assert [link["title"] for url, link in links if url == "/explore"] == ["Logs", "Traces"] * one_target
    for url, link in links:
        assert link["keepTime"]
        assert link["includeVars"] == (url not in {"/d/llm-headroom-engine", "/explore"}), "an engine's page shows one"
    used = {panel["type"] for panel in drawn(document)} | {"grafana", document["templating"]["list"][0]["query"]}
    assert {one["id"] for one in document["__requires"]} == used
    names = [one["name"] for one in document["annotations"]["list"][1:]]
    assert names == ["Alerts", "Engine restarts", "Model loads", "GPU errors (Xid)"]


def test_conventions_of_variables(document: Json) -> None:
    source, *others = document["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    beside = {one["name"]: one["query"] for one in others if one["type"] == "datasource"}
    assert beside == ({"logs": "loki", "traces": "tempo"} if document["uid"] == "llm-headroom-engine" else {})
    others = [one for one in others if one["type"] == "query"]
    assert ("baseline" in {one["name"] for one in others}) == (document["uid"] == "llm-headroom-compare")
    assert tuple(one["name"] for one in others)[: len(VARIABLES)] == VARIABLES
    name = document["uid"].removeprefix("llm-headroom-")
    assert ("gpu" in {one["name"] for one in others}) == (name == "gpu")
    assert tuple(one["name"] for one in others if one["hide"] == 2) == CARRIED.get(name, ()), "chosen on other pages"
    for one in others:
        assert one["refresh"] == 2, "on a change of the time range"
        assert one["datasource"]["uid"] == "${datasource}"
        assert one["allValue"] == ".*"
        single = {"instance", "target"} if document["uid"] == "llm-headroom-engine" else {"baseline"}
        assert one["multi"] == one["includeAll"] == (one["name"] not in single)
        assert one["name"] == "job" or 'job=~"$job"' in one["definition"], "each is narrowed by those before"


def test_conventions_of_panels(document: Json) -> None:
    numbers = [panel["id"] for panel in document["panels"]] + [
        panel["id"] for row in document["panels"] for panel in row.get("panels", ())
    ]
    assert len(numbers) == len(set(numbers))
    for panel in drawn(document):
        assert panel["title"], panel
        assert re.search(r"\n\nMetrics: (`[\w:]+`(, )?)+$", panel["description"]), panel["description"]
        assert panel["targets"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
        assert panel["type"] != "stat" or panel["gridPos"]["w"] > 3 or len(panel["title"]) <= 13, (
            "a longer title is cut off on a laptop"
        )
        if panel["type"] == "table":
            columns = panel["transformations"][1]["options"]["renameByName"]
            values = {name for name in columns if name.startswith("Value")}
            several = [f"Value #{target['refId']}" for target in panel["targets"]]
            assert values == set(several if len(several) > 1 else ["Value"]), panel["title"]


def test_conventions_of_titles(document: Json) -> None:
    for panel in drawn(document):
        before, found, _ = panel["title"].rpartition(" 5 min")
        assert not found or "," not in before or before.endswith(","), "what comes first is not of five minutes"


def test_whole_numbers_are_not_shortened_to_thousands(document: Json) -> None:
    for panel in drawn(document):
        fields = panel["fieldConfig"]
        assert fields["defaults"]["unit"] != "short" or fields["defaults"].get("decimals") != 0, panel["title"]
        for each in fields["overrides"]:
            own = {one["id"]: one["value"] for one in each["properties"]}
            assert own.get("decimals") != 0 or own["unit"] not in {"", "short"}, panel["title"]


def test_an_axis_of_whole_things_has_no_parts_of_them(document: Json) -> None:
    for panel in (one for one in drawn(document) if one["type"] == "timeseries"):
        defaults = panel["fieldConfig"]["defaults"]
        counted = all(re.search(r"llm_model_loaded|llm_load_headroom_binding", one["expr"]) for one in panel["targets"])
        assert defaults.get("decimals") == 0 or not counted, panel["title"]


def test_what_takes_traffic_to_be_known_is_not_called_unexposed(document: Json) -> None:
    """An engine of which nothing is known yet exposes all that it should."""
    learned = "|".join(one.name for one in (*capacity.FOLLOWING, schema.KV_CACHE_HEADROOM_REQUESTS))
    for panel in (one for one in drawn(document) if one["type"] == "stat"):
        for target in panel["targets"]:
            if re.search(learned, target["expr"]):
                assert f" * 0 - {-NOT_EXPOSED})" not in target["expr"], panel["title"]
                assert f" * 0 - {-NOT_KNOWN})" in target["expr"], panel["title"]


def test_no_legend_says_a_resource_by_its_label(document: Json) -> None:
    for panel in drawn(document):
        styles = panel["fieldConfig"]["overrides"]
        named = [
            each["matcher"]["options"] for each in styles for one in each["properties"] if one["id"] == "displayName"
        ]
        for target in panel["targets"]:
            if "{{resource}}" in target.get("legendFormat", ""):
                worded = '"resource", "kv_cache")' in target["expr"]
                assert worded or "/^kv_cache$/" in named, panel["title"]


def test_alerts_that_page_come_first() -> None:
    (panel,) = (one for document in DOCUMENTS for one in drawn(document) if one["title"] == "Firing alerts")
    assert panel["options"]["sortBy"] == [{"displayName": "Severity", "desc": True}]
    severities = re.findall(r'severity="(\w+)"\}\) \* (\d)', panel["targets"][0]["expr"])
    assert [name for name, _ in sorted(severities, key=lambda each: each[1], reverse=True)] == [
        "page",
        "ticket",
        "info",
    ]


def test_conventions_of_tiles(document: Json) -> None:
    """A tile shows this moment or nothing, and the colour of nothing is neither good nor bad."""
    for panel in (one for one in drawn(document) if one["type"] == "stat"):
        assert all(target["instant"] and not target["range"] for target in panel["targets"]), panel["title"]
        assert panel["options"]["reduceOptions"]["calcs"] == ["last"]
        assert panel["options"]["graphMode"] == "none"
        fields = panel["fieldConfig"]
        own = [one["value"] for each in fields["overrides"] for one in each["properties"] if one["id"] == "thresholds"]
        for steps in (fields["defaults"]["thresholds"], *own):
            assert steps["steps"][0]["color"] in {"text", "transparent", UNKNOWN}, panel["title"]


def test_conventions_of_judgements(document: Json) -> None:
    """One set of colours judges, and a tile with bounds says its judgement in a word with a mark."""
    for panel in drawn(document):
        fields = panel["fieldConfig"]
        colours = {step["color"] for step in fields["defaults"]["thresholds"]["steps"]}
        for each in fields["overrides"]:
            for one in each["properties"]:
                colours |= {step["color"] for step in one["value"]["steps"]} if one["id"] == "thresholds" else set()
        assert colours <= {"text", "transparent", GOOD, WARN, BAD, UNKNOWN}, panel["title"]
        if panel["type"] == "stat" and len(panel["targets"]) == 1 and len(colours) > 1:
            words = [one["properties"][0]["value"] for one in fields["overrides"]]
            assert words[-1].startswith("? unknown")
            assert BAD not in colours or any(word.startswith("■ bad") for word in words), panel["title"]


def test_conventions_of_areas(document: Json) -> None:
    for panel in drawn(document):
        styles = [one for each in panel["fieldConfig"]["overrides"] for one in each["properties"]]
        assert all(one["value"] <= 40 for one in styles if one["id"] == "custom.fillOpacity"), "what is free is faint"


def test_conventions_of_cells(document: Json) -> None:
    """A bar is painted all along, and of other cells only those that are not good: what is wrong catches the eye."""
    for panel in (one for one in drawn(document) if one["type"] == "table"):
        for column in panel["fieldConfig"]["overrides"]:
            found = {one["id"]: one["value"] for one in column["properties"]}
            if "thresholds" not in found:
                continue
            colours = {step["color"] for step in found["thresholds"]["steps"]}
            bar = found["custom.cellOptions"]["type"] == "gauge"
            assert (GOOD in colours) == bar, (panel["title"], column["matcher"])
            assert (found.get("min"), "max" in found) == ((0, True) if bar else (None, False))
            assert colours & {WARN, BAD}


def test_conventions_of_rows(document: Json) -> None:
    assert document["panels"][0]["type"] == "row"
    for row in (panel for panel in document["panels"] if panel["type"] == "row"):
        assert row["title"].endswith("?"), "a row's title is the question that it answers"
        assert bool(row["panels"]) == row["collapsed"]


def test_conventions_of_layout(document: Json) -> None:
    bands: dict[int, list[Mapping[str, int]]] = {}
    repeated = {panel["gridPos"]["y"] for panel in document["panels"] if panel.get("repeatDirection")}
    for panel in document["panels"]:
        bands.setdefault(panel["gridPos"]["y"], []).append(panel["gridPos"])
    end = 0
    for top, band in sorted(bands.items()):
        assert top == end, "no gap, and nothing overlaps"
        assert sum(place["w"] for place in band) == 24 or top in repeated
        assert len({place["h"] for place in band}) == 1
        end = top + band[0]["h"]


def test_conventions_of_metrics(document: Json) -> None:
    for expr in asked_for(document):
        found = SELECTOR.findall(expr) or [(expr, "")]
        for name, _ in found:
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            histogram = base in schema.BY_NAME and schema.BY_NAME[base].kind is Kind.HISTOGRAM
            assert name in PROMETHEUS_OWN | RECORDED or name in schema.BY_NAME or histogram, (name, expr)


def test_conventions_of_selection(document: Json) -> None:
    for title, expr in expressions(document):
        assert not re.search(r"\bllm_\w+(?![\w:{])", expr), (title, "a metric without a selector", expr)
        for name, matchers in SELECTOR.findall(expr):
            assert name in {"ALERTS"} | RECORDED or {
                'cluster=~"$cluster"',
                'namespace=~"$namespace"',
                'job=~"$job"',
                'instance=~"$instance"',
            } <= set(matchers.split(", ")), expr
            metric = schema.BY_NAME.get(name) or schema.BY_NAME.get(re.sub(r"_(bucket|sum|count)$", "", name))
            chosen = set(re.findall(r'(engine|model|target|gpu)=~"\$', matchers))
            assert metric is None or chosen <= set(metric.labels), (title, "a matcher of a label it has not", expr)
            if name.endswith("_total") and name not in LEVELS:
                assert re.search(rf"(?:rate|increase)\({re.escape(name)}\{{", expr), (title, "a counter without a rate")


def test_requests_that_engine_and_proxy_both_count_are_added_up_once() -> None:
    """With all targets the proxy's own are left out; with some the pattern fits none."""
    (compare,) = (each for each in DOCUMENTS if each["uid"] == "llm-headroom-compare")
    counted = "llm_(?:generation_tokens_total|requests_finished_total|time_to_first_token_seconds_bucket)"
    found = [
        matchers
        for _, expr in expressions(compare)
        for name, matchers in SELECTOR.findall(expr)
        if re.match(counted, name)
    ]
    assert found
    for matchers in found:
        (left_out,) = re.findall(r'target!~"([^"]*)"', matchers)
        assert re.fullmatch(left_out.replace("$target", ".*"), "llm-a/proxy")
        assert not re.fullmatch(left_out.replace("$target", ".*"), "llm-a")
        assert not re.fullmatch(left_out.replace("$target", "(llm-a/proxy|box)"), "llm-a/proxy")


def test_conventions_of_windows(document: Json) -> None:
    """One window of rates, stated in the title; the last hour is asked about exporters that died and models' loads."""
    allowed = {"5m"} | ({"$__range"} if document["uid"] == "llm-headroom-compare" else set())
    for title, whole in expressions(document):
        # Which curves are drawn is decided once for the time range, at its end.
        expr = re.sub(r"\w+\([^()]*\[\$__range\] @ end\(\)\)", "", whole)
        found = set(re.findall(r"\b(?:rate|avg_over_time)\([^\[]+\[([^\]]+)\]", expr))
        assert found <= allowed, (title, expr)
        assert set(re.findall(r"\[([^\]]+)\]", expr)) - found <= {"1h"}, (title, expr)
        assert "5m" not in found or title.endswith((" 5 min", " 5m")), title
        assert set(re.findall(r'window="(\w+)"', expr)) <= {"300s"}, title


def test_conventions_of_steps(document: Json) -> None:
    """Curves of five minutes have a point each minute; states, and nothing else, may have one each half of it."""
    for panel in drawn(document):
        rates = any("[5m]" in target["expr"] for target in panel["targets"])
        states = panel["type"] == "state-timeline"
        curves = panel["type"] in {"timeseries", "heatmap"}
        allowed = {"30s", "1m"} if states else {"1m"} if curves and rates else {None}
        assert panel.get("interval") in allowed, panel["title"]


def test_conventions_of_histograms(document: Json) -> None:
    for title, expr in expressions(document):
        for labels in re.findall(r"sum by \(([^)]*\ble\b)\)", expr):
            assert "engine" in labels.split(", "), (title, "buckets of different engines do not add up")
        assert expr.count("_bucket") == len(
            re.findall(r"sum by \([^)]*, le\) \((?:rate\(|(?:sum_over_time\()?engine_model:)llm_\w+_bucket[:{]", expr)
        )


def test_thresholds_of_the_user_are_drawn() -> None:
    chosen = Thresholds(kv_usage_high=0.777, gpu_headroom_low=0.0444, ttft_slow_share=0.0333, source_stale=123)
    steps: dict[str, set[float]] = {}
    for name, text in files(BundleSettings(thresholds=chosen)).items():
        for panel in drawn(json.loads(text)):
            found = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
            steps.setdefault(name, set()).update(step["value"] for step in found if step["value"] is not None)
    assert {0.0333, 0.0444} <= steps["dashboards/llm-headroom-fleet.json"]
    assert 0.777 in steps["dashboards/llm-headroom-kv.json"]
    assert 0.0444 in steps["dashboards/llm-headroom-gpu.json"]
    assert 123 in steps["dashboards/llm-headroom-exporter.json"]


def test_a_selector_of_the_user_is_in_every_query() -> None:
    for text in files(BundleSettings(selector='cluster="x"')).values():
        for expr in asked_for(json.loads(text)):
            for name, matchers in SELECTOR.findall(expr) or [("", expr)]:
                assert name in RECORDED or 'cluster="x"' in matchers, expr


def test_exporters_of_the_user_s_job_are_the_exporters() -> None:
    text = "".join(files(BundleSettings(exporter_job="mine")).values())
    assert 'job=\\"mine\\"' in text
    assert 'job=\\"llm-headroom\\"' not in text


def test_a_store_with_a_plugin_of_its_own_is_asked_through_it() -> None:
    kind = "victoriametrics-metrics-datasource"
    for text in files(BundleSettings(datasource_type=kind)).values():
        assert '"prometheus"' not in text
        assert {panel["datasource"]["type"] for panel in drawn(json.loads(text))} == {kind}


def test_colours_do_not_depend_on_what_else_is_shown(document: Json) -> None:
    """By name, fixed, or by value; models are shades of their engine's colour."""
    for panel in drawn(document):
        fields = panel["fieldConfig"]
        modes = [fields["defaults"]["color"]["mode"]] if "color" in fields["defaults"] else []
        modes += [
            one["value"]["mode"] for each in fields["overrides"] for one in each["properties"] if one["id"] == "color"
        ]
        assert set(modes) <= {"palette-classic-by-name", "fixed", "thresholds", "shades"}, panel["title"]


def test_runbooks_are_linked_where_the_user_has_them() -> None:
    text = files(replace(BundleSettings(), runbook_base_url="https://wiki.test/r/"))["dashboards/llm-headroom-kv.json"]
    urls = {link["url"] for panel in drawn(json.loads(text)) for link in panel.get("links", ())}
    assert "https://wiki.test/r/LLMKVHeadroomLow.md" in urls
    assert all(re.fullmatch(r"https://wiki\.test/r/LLM\w+\.md", url) for url in urls)


def test_every_linked_alert_exists() -> None:
    alerts = set(re.findall(r"alert: (\w+)", RULES.read_text()))
    linked = {
        panel.alert for one in dashboards(BundleSettings()) for row in one.rows for panel in row.panels if panel.alert
    }
    assert linked <= alerts


def test_every_expression_is_promql(tmp_path: Path) -> None:
    promtool = program("promtool", "prometheus")
    every = sorted({filled_in(expr) for document in DOCUMENTS for expr in asked_for(document)})
    rules = [{"record": f"r{place}", "expr": expr} for place, expr in enumerate(every)]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboards", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(every)} rules found" in done.stdout


def test_no_query_fails_where_nothing_was_ever_seen(tmp_path: Path) -> None:
    program("prometheus", "prometheus")
    with programs.prometheus(tmp_path, {}) as prometheus:
        for document in DOCUMENTS:
            for expr in asked_for(document):
                assert asked(prometheus.address, "query", query=filled_in(expr))["result"] == [], "nothing is made up"


@pytest.mark.waits(95)
def test_every_query_finds_data_in_the_demo(tmp_path: Path) -> None:
    program("prometheus", "prometheus")
    expected = {
        (one.uid, panel.title, query.expr)
        for one in dashboards(BundleSettings())
        for row in one.rows
        for panel in row.panels
        if panel.empty is None
        for query in panel.queries
        if not any(metric.name in query.expr for metric in capacity.FOLLOWING)  # takes ten busy minutes
    }
    selected = {
        (document["uid"], one["name"], one["definition"]): values_of(one)
        for document in DOCUMENTS
        for one in document["templating"]["list"]
        if one["type"] == "query" and one["name"] not in {"cluster", "namespace"}  # labels that its Prometheus gives
    }
    assert len(expected) > 130
    expected |= {("", "the demo's story", expr) for expr in STORIES}
    arguments = ("demo", "--listen", "127.0.0.1:0", "--seed", "1", "--speed", "10")
    with Simulator(*arguments, extra={"TMPDIR": str(tmp_path)}) as demo:
        address = demo.address("prometheus")
        end = time.monotonic() + 400
        while expected or selected:
            expected = {one for one in expected if not asked(address, "query", query=filled_in(one[2]))["result"]}
            selected = {
                name: (selector, label)
                for name, (selector, label) in selected.items()
                if not asked(address, f"label/{label}/values", **{"match[]": filled_in(selector)})
            }
            assert time.monotonic() < end, (expected, selected)
            time.sleep(0.5 if expected or selected else 0)
