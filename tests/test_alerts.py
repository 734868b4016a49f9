"""The shipped rules: checked and unit-tested by Prometheus' own promtool, whole, and true to the schema."""

from __future__ import annotations

import functools
import json
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from llm_headroom import schema
from llm_headroom.bundle import alerts, dashboards, kubernetes
from llm_headroom.bundle.rule import Alert, Recording, expression
from llm_headroom.bundle.settings import BundleSettings
from llm_headroom.model import Kind
from llm_headroom.thresholds import Thresholds
from programs import program
from rules_read import document, metrics, needed

ROOT: Final = Path(__file__).parents[1]
FOLDER: Final = ROOT / "alerts"
RULES: Final = "llm-headroom.rules.yml"
DEFAULTS: Final = BundleSettings()
NAMES: Final = frozenset(alert.name for alert in alerts.ALERTS)
RECORDED: Final = frozenset(rule.name for rule in alerts.RECORDINGS)
FLAGS: Final = frozenset(
    {
        "LLMConfigReloadFailed",
        "LLMEngineDown",
        "LLMEngineLoadingLong",
        "LLMEngineMisread",
        "LLMEngineStalled",
        "LLMExporterBlind",
        "LLMExporterDown",
        "LLMGpuRowRemapFailure",
        "LLMGpuRowRemapPending",
        "LLMGpuSourceDown",
        "LLMGpuThrottled",
        "LLMGpuXidContained",
        "LLMGpuXidCritical",
        "LLMModelDown",
        "LLMSignalLost",
    }
)
"""Alerts whose value says nothing that the alert itself does not say."""
EVERY: Final[tuple[Alert | Recording, ...]] = (*alerts.ALERTS, *alerts.RECORDINGS)
MEMORY: Final = 2 * 3600
"""Seconds that Prometheus has in its memory at least."""


def duration(text: str) -> int:
    """Seconds of one of Prometheus' durations."""
    return int(text[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[text[-1]]


def known(name: str) -> bool:
    """Whether the exporter, the rules or Prometheus itself make such a series."""
    if name in RECORDED or name == "up" or name in schema.BY_NAME:
        return True
    histogram = schema.BY_NAME.get(re.sub(r"_(bucket|sum|count)$", "", name))
    return histogram is not None and histogram.kind is Kind.HISTOGRAM


@functools.cache
def timelines() -> dict[str, dict[str, Any]]:
    """The unit tests of the rules by the name of their file."""
    return {path.name: document(path) for path in sorted((FOLDER / "tests").glob("*.yml"))}


def test_what_is_committed_is_what_is_generated() -> None:
    for path, text in (alerts.files(DEFAULTS) | kubernetes.files(DEFAULTS)).items():
        assert (ROOT / path).read_text() == text, f"{path} is old: run `make docs`"


def test_prometheus_accepts_the_rules() -> None:
    subprocess.run([program("promtool", "prometheus"), "check", "rules", FOLDER / RULES], check=True)


def test_alertmanager_accepts_the_routes_and_inhibitions() -> None:
    amtool = program("amtool", "prometheus-alertmanager")
    subprocess.run([amtool, "check-config", FOLDER / "alertmanager.yml"], check=True)


def test_vmalert_accepts_the_rules() -> None:
    vmalert = program("vmalert", "victoria-metrics")
    subprocess.run([vmalert, "-dryRun", f"-rule={FOLDER / RULES}"], check=True, capture_output=True)


@pytest.mark.works(8)
def test_every_timeline_ends_as_it_should(tmp_path: Path) -> None:
    """Promtool compares annotations, too, so it gets the rules without them; each timeline gets the rules it tests.

    They are evaluated no more often than there are new samples: a timeline of a day took as long as fifty others.
    """
    promtool = program("promtool", "prometheus")
    groups = document(FOLDER / RULES)["groups"]
    for group in groups:
        for rule in group["rules"]:
            rule.pop("annotations", None)
    names = []
    for name, timeline in timelines().items():
        written = [each for case in timeline["tests"] for each in case["input_series"]]
        assert not [each for each in written if not isinstance(each["values"], str)], "without quotes 0x60 is 96"
        for number, case in enumerate(timeline["tests"]):
            tested = {test["alertname"] for test in case.get("alert_rule_test", ())}
            read = tested | needed(groups, tested, [test["expr"] for test in case.get("promql_expr_test", ())])
            kept = [
                group | {"rules": [rule for rule in group["rules"] if rule.get("alert", rule.get("record")) in read]}
                for group in groups
            ]
            kept = [group for group in kept if group["rules"]]
            order = [group["name"] for group in kept]  # else promtool draws one
            own = f"{name}-{number}"
            (tmp_path / f"{own}.rules").write_text(json.dumps({"groups": kept}))  # JSON is YAML, written in no time
            every = max(timeline["evaluation_interval"], case["interval"], key=duration)
            alone = {"rule_files": [f"{own}.rules"], "group_eval_order": order, "tests": [case]}
            alone |= {"evaluation_interval": every}
            (tmp_path / own).write_text(json.dumps(timeline | alone))
            names.append(own)

    done = subprocess.run(
        [promtool, "test", "rules", *names], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, re.sub(r"Unit Testing:  .*\n  SUCCESS\n\n", "", done.stdout + done.stderr)


def test_every_alert_has_a_firing_and_a_quiet_timeline() -> None:
    firing, quiet = set(), set()
    for name, timeline in timelines().items():
        for case in timeline["tests"]:
            for test in case.get("alert_rule_test", ()):
                if test["exp_alerts"]:
                    firing.add(test["alertname"])
                elif name != "fleet.yml":
                    quiet.add(test["alertname"])

    assert firing == NAMES
    assert quiet == NAMES


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    assert {path.stem for path in (FOLDER / "runbooks").glob("*.md")} == NAMES


def test_every_series_of_a_rule_exists() -> None:
    for rule in EVERY:
        read = metrics(expression(rule.expr, DEFAULTS))

        assert read, rule.name
        assert not {name for name in read if not known(name)}, rule.name


def test_what_looks_back_over_hours_reads_what_is_recorded_or_is_evaluated_rarely() -> None:
    """Raw series of hours, of every engine, are what rules cost most: see docs/fleet.md."""
    rare = {name for name, group in alerts.GROUPS.items() if group.interval.endswith("m")}
    for name, group in alerts.GROUPS.items():
        for rule in group.rules:
            raw = re.findall(r"(?<![\w:])(llm_\w+)(?:\{[^}]*\})?\[(\d+[hd])\]", rule.expr)
            hours = {metric for metric, window in raw if window != "1h"}
            assert not hours or name in rare, rule.name
            assert not any(metric.startswith("llm_slo_") for metric in hours), rule.name


def test_what_looks_back_over_hours_reads_nothing_raw_beside_it() -> None:
    """A query looks for each of its series in all blocks of its longest window: raw ones are four times as dear."""
    mixed = {
        rule.name
        for rule in EVERY
        if any(duration(each) > MEMORY for each in re.findall(r"(?:\[|offset )(\d+[smhd])", rule.expr))
        and any(":" not in name for name in metrics(rule.expr))
    }
    assert mixed == {"LLMModelSpilledToCPU"}, "its models come and go between what is recorded every 30 minutes"


def test_what_is_recorded_rarely_is_read_over_more_than_its_interval() -> None:
    for group in alerts.GROUPS.values():
        for recorded in (rule.name for rule in group.rules if isinstance(rule, Recording)):
            for rule in EVERY:
                for window in re.findall(rf"(?<![\w:]){recorded}\[(\w+)\]", rule.expr):
                    assert duration(window) > duration(group.interval), (rule.name, recorded)


def test_nothing_that_alerts_read_at_an_instant_is_recorded_too_rarely_for_it() -> None:
    """Prometheus takes a series without a sample for five minutes for gone."""
    rare = {
        rule.name
        for group in alerts.GROUPS.values()
        for rule in group.rules
        if isinstance(rule, Recording) and group.interval not in {"30s", "1m", "2m"}
    }
    for alert in alerts.ALERTS:
        instant = re.sub(r"[\w:]+\[\w+\]", "", alert.expr)
        assert not metrics(instant) & rare, alert.name


def test_no_rule_reads_what_grafana_and_vmalert_do_not_record() -> None:
    assert [rule for rule in EVERY if "ALERTS" in rule.expr] == []


def test_every_threshold_is_used_by_an_alert_or_drawn_by_a_dashboard() -> None:
    text = "\n".join(rule.expr for rule in EVERY).replace("${", "$")
    drawn = "\n".join(path.read_text() for path in Path(dashboards.__file__).parent.glob("*.py"))

    unused = {name for name in Thresholds.__dataclass_fields__ if f"${name}" not in text}
    assert not {name for name in unused if f"limits.{name}" not in drawn}


@pytest.mark.parametrize("alert", alerts.ALERTS, ids=lambda alert: alert.name)
def test_what_an_alert_tells(alert: Alert) -> None:
    notes = alerts.described(alert, DEFAULTS)

    shown = re.search(r"\{\{[^}]*\$value", notes["description"]) is not None
    assert shown != (alert.name in FLAGS), "a number is shown, and a flag, which is always the same, is not"
    for text in (notes["summary"], notes["description"]):
        assert set(re.findall(r"\$(\w+)", text)) <= {"labels", "value"}, text
        assert "llm_" not in text, text  # words, no names of metrics
    assert set(notes) == {"summary", "description"}  # no links where nobody has said where to


def test_thresholds_are_written_as_people_write_them() -> None:
    texts = {alert.name: alerts.described(alert, DEFAULTS)["description"] for alert in alerts.ALERTS}

    assert "a share of 3% and at least 3 of them" in texts["LLMFirstTokensSlow"]
    assert "For 3 min there was no first token" in texts["LLMQueueStarved"]
    assert "more than 2.5 s" in texts["LLMCollectionSlow"]
    assert "more than 85 °C" in texts["LLMGpuTemperatureHigh"]


def test_links_lead_to_what_is_meant() -> None:
    settings = BundleSettings(runbook_base_url="https://wiki/r/", dashboard_base_url="https://grafana/")
    (alert,) = (each for each in alerts.ALERTS if each.name == "LLMFirstTokensSlow")
    notes = alerts.described(alert, settings)

    assert notes["runbook_url"] == "https://wiki/r/LLMFirstTokensSlow.md"
    begin = "https://grafana/d/llm-headroom-engine?orgId=1{{ with $labels.job }}&var-job={{ . }}{{ end }}"
    assert notes["dashboard_url"].startswith(begin)
    assert "&var-target={{ . }}" in notes["dashboard_url"]


def test_histograms_are_never_added_over_engines() -> None:
    for rule in EVERY:
        for by in re.findall(r"sum by \(([^)]*)\) \(rate\(llm_\w+_bucket", rule.expr):
            assert {"engine", "le"} <= set(by.split(", ")), rule.name


def test_forecasts_page_nobody() -> None:
    forecasts = ("predict_linear", "_risk_ratio", "exhaustion_seconds", "deriv(")
    assert not [a.name for a in alerts.ALERTS if a.severity == "page" and any(word in a.expr for word in forecasts)]


def test_inhibitions_name_alerts_and_never_the_source_itself() -> None:
    for source, targets, _ in alerts.INHIBITIONS:
        hit = {name for name in NAMES if re.fullmatch(targets, name)}

        assert source in NAMES
        assert hit
        assert source not in hit
        for part in re.split(r"\|(?![^(]*\))", targets):
            assert any(re.fullmatch(part, name) for name in NAMES), part


def test_no_ticket_silences_a_page_about_what_clients_get_now() -> None:
    """A proxy counts the errors of an engine that is down. Of such an engine the pages that are left are of before."""
    severity = {rule.name: rule.severity for rule in alerts.ALERTS}
    silenced = {
        (source, name)
        for source, targets, _ in alerts.INHIBITIONS
        for name in NAMES
        if re.fullmatch(targets, name) and severity[name] == "page" and severity[source] != "page"
    }
    of_before = ("LLMEngineStalled", "LLMFirstTokensSlow", "LLMQueueStarved", "LLMTokensTrickle")

    assert silenced == {("LLMEngineDown", name) for name in of_before}


def test_a_selector_reaches_every_metric_and_no_recorded_series() -> None:
    settings = BundleSettings(selector='cluster="x"')

    assert expression('sum(rate(llm_a_total{code="5"}[5m])) / engine_model:llm_up:sum > llm_b and up', settings) == (
        'sum(rate(llm_a_total{code="5", cluster="x"}[5m])) / engine_model:llm_up:sum '
        '> llm_b{cluster="x"} and up{cluster="x"}'
    )


def test_rules_with_a_selector_are_ones_that_prometheus_takes(tmp_path: Path) -> None:
    """A regular expression within a selector has braces of its own."""
    found = alerts.files(BundleSettings(selector='cluster="x"'))[f"alerts/{RULES}"]
    (tmp_path / RULES).write_text(found)
    done = subprocess.run(
        [program("promtool", "prometheus"), "check", "rules", tmp_path / RULES],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_unknown_threshold_is_an_error() -> None:
    with pytest.raises(KeyError, match="nonsense"):
        expression("llm_up > $nonsense", DEFAULTS)


def test_thresholds_and_scale_reach_the_file() -> None:
    settings = BundleSettings(thresholds=Thresholds(headroom_requests_low=7), for_scale=0.01, exporter_job="mine")
    rules = yaml.safe_load(alerts.files(settings)[f"alerts/{RULES}"])
    by_name = {rule["alert"]: rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule}

    assert "(llm_kv_cache_headroom_requests < 7) and " in by_name["LLMKVHeadroomLow"]["expr"]
    assert by_name["LLMKVHeadroomLow"]["for"] == "3000ms"
    assert "for" not in by_name["LLMFirstTokensSlow"]
    assert by_name["LLMExporterDown"]["expr"] == 'up{job="mine"} == 0 or absent(up{job="mine"})'


def test_what_is_around_the_expressions_is_what_is_written_down_for_it() -> None:
    """Routes, inhibitions, groups, severities and waits; nothing writes `fixtures/alerts_frame.json`."""
    texts = {name: yaml.safe_load(text) for name, text in alerts.files(DEFAULTS).items()}
    rules, grafana = texts[f"alerts/{RULES}"]["groups"], texts["alerts/grafana-alerting.yaml"]
    first = grafana["groups"][0]["rules"][0]
    first["annotations"] = sorted(first["annotations"])
    first["data"][0]["model"]["expr"] = "…"
    found = {
        "alertmanager": texts["alerts/alertmanager.yml"],
        "grafana-notifications": texts["alerts/grafana-notifications.yaml"],
        "grafana-alerting": {
            **grafana,
            "groups": [{key: value for key, value in group.items() if key != "rules"} for group in grafana["groups"]],
        },
        "grafana rule": first,
        "pushed": texts["alerts/pushed.yml"],
        "intervals": {group["name"]: group["interval"] for group in rules},
        "alerts": {
            rule["alert"]: f"{rule['labels']['severity']} after {rule.get('for', '0s')}, "
            f"kept {rule.get('keep_firing_for', '0s')}"
            for group in rules
            for rule in group["rules"]
            if "alert" in rule
        },
    }

    assert found == json.loads((ROOT / "tests/fixtures/alerts_frame.json").read_text(encoding="utf-8"))


def test_without_a_receiver_alerts_are_posted_to_nobody() -> None:
    assert alerts.alertmanager(None)["receivers"] == [{"name": "page"}, {"name": "ticket"}, {"name": "none"}]


def test_operator_and_grafana_get_the_same_expressions() -> None:
    texts = alerts.files(DEFAULTS)
    plain = yaml.safe_load(texts[f"alerts/{RULES}"])["groups"]
    operator = yaml.safe_load(kubernetes.files(DEFAULTS)["alerts/prometheusrule.yaml"])
    grafana = yaml.safe_load(texts["alerts/grafana-alerting.yaml"])["groups"]

    assert operator["spec"]["groups"] == plain
    assert {rule["title"]: rule["data"][0]["model"]["expr"] for group in grafana for rule in group["rules"]} == {
        rule["alert"]: rule["expr"] for group in plain for rule in group["rules"] if "alert" in rule
    }


def test_buckets_that_fleets_are_advised_to_drop_are_read_by_no_rule() -> None:
    page = (FOLDER.parent / "docs/fleet.md").read_text()
    [dropped] = re.findall(r"source_labels: \[__name__\]\n    regex: (llm_\S+_bucket)\n    action: drop", page)
    read = set(re.findall(r"\bllm_\w+_bucket\b", (FOLDER / RULES).read_text()))

    assert read
    assert not {name for name in read if re.fullmatch(dropped, name)}


def queries() -> list[tuple[str, str]]:
    """Each query of a runbook with the runbook's name."""
    return [
        (path.stem, query.strip())
        for path in sorted((FOLDER / "runbooks").glob("*.md"))
        for query in re.findall(r"```promql\n(.*?)```", path.read_text(), re.DOTALL)
    ]


def test_queries_of_runbooks_parse(tmp_path: Path) -> None:
    promtool = program("promtool", "prometheus")
    rules = [{"record": f"a:b{number}:c", "expr": query} for number, (_, query) in enumerate(queries())]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))

    done = subprocess.run(
        [promtool, "check", "rules", "queries.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr


def test_queries_of_runbooks_read_series_that_exist() -> None:
    for runbook, query in queries():
        read = metrics(query)

        assert read or "ALERTS{" in query, (runbook, query)  # Prometheus' own, of what fires
        assert not {name for name in read if not known(name)}, (runbook, query)


def test_what_a_runbook_is_to_be_filled_in_with_stands_on_the_alert_or_in_its_first_query() -> None:
    labels: dict[str, set[str]] = {}
    for timeline in timelines().values():
        for case in (case for test in timeline["tests"] for case in test.get("alert_rule_test", ())):
            for alert in case.get("exp_alerts") or ():
                labels.setdefault(case["alertname"], set()).update(name.upper() for name in alert["exp_labels"])

    for path in sorted((FOLDER / "runbooks").glob("*.md")):
        text = path.read_text()
        blocks = re.findall(r"```(?:sh|promql)\n(.*?)```", text, re.DOTALL)
        wanted = {
            name for block in blocks for name in re.findall(r"\b(?:INSTANCE|TARGET|ENGINE|MODEL|GPU|SLO)\b", block)
        }
        given = labels[path.stem]
        if "INSTANCE and TARGET are those that the first query lists." in text:
            assert not {"INSTANCE", "TARGET"} & {*re.findall(r"[A-Z]+", blocks[1])}, path.stem
            given |= {"INSTANCE", "TARGET"}
        assert wanted <= given, (path.stem, wanted - given)


def test_only_of_what_has_ended_is_the_log_of_the_container_before_asked_for() -> None:
    """`kubectl logs --previous` fails for a container that was never restarted."""
    asked = {path.stem for path in (FOLDER / "runbooks").glob("*.md") if "--previous" in path.read_text()}

    assert asked == {"LLMModelDown", "LLMEngineDown", "LLMEngineCrashLoop"}


RUNBOOK: Final = (
    "Meaning",
    "Impact",
    "What is normal",
    "Diagnosis",
    "Mitigation",
    "What takes a restart",
    "When to wake somebody else",
)
"""Parts of a runbook, in the order in which one who was woken needs them."""


@pytest.mark.parametrize("path", sorted((FOLDER / "runbooks").glob("*.md")), ids=lambda path: path.stem)
def test_runbooks_have_their_parts_and_name_options_that_engines_have(path: Path) -> None:
    text = path.read_text()

    assert re.findall(r"^#+ (.*)$", text, re.MULTILINE) == [path.stem, *RUNBOOK]
    assert text.startswith(f"# {path.stem}\n\nRun first:\n\n```sh\n")
    assert "```promql" in text
    for option in re.findall(r"`(--[a-z-]+|OLLAMA_\w+)", text):
        assert option in OPTIONS, option
    for word in re.findall(r"`([a-z]+_[a-z_]+)`", text):
        assert word in SETTINGS or word in Thresholds.__dataclass_fields__ or known(word), word
    valued = re.findall(r"\*\*[^*]+\*\* \(`([a-z_]+)`\)", text)
    assert {word for word in re.findall(r"`(\w+)`", text) if word in Thresholds.__dataclass_fields__} == {*valued}


OPTIONS: Final = frozenset(
    {
        # vLLM 0.32 (fields of its /server_info and `vllm serve --help`)
        *("--gpu-memory-utilization", "--max-num-seqs", "--max-num-batched-tokens", "--max-model-len"),
        *("--kv-cache-dtype", "--tensor-parallel-size", "--kv-offloading-size", "--cpu-offload-gb", "--enforce-eager"),
        *(
            "--max-num-queued-reqs",
            "--max-num-queued-tokens",
            "--api-server-count",
            "--show-hidden-metrics-for-version",
        ),
        *("--served-model-name", "--lora-modules"),
        # SGLang 0.5 (fields of its /get_server_info); --kv-cache-dtype and --cpu-offload-gb, too
        *("--mem-fraction-static", "--max-running-requests", "--schedule-conservativeness", "--chunked-prefill-size"),
        *("--max-prefill-tokens", "--max-queued-requests", "--max-total-tokens", "--context-length", "--tp-size"),
        *("--dp-size", "--enable-hierarchical-cache", "--hicache-ratio", "--cuda-graph-max-bs", "--watchdog-timeout"),
        *("--allow-auto-truncate", "--enable-metrics", "--lora-paths"),
        # Ollama 0.33 (`ollama serve --help`)
        *("OLLAMA_NUM_PARALLEL", "OLLAMA_MAX_LOADED_MODELS", "OLLAMA_MAX_QUEUE", "OLLAMA_KEEP_ALIVE"),
        *("OLLAMA_CONTEXT_LENGTH", "OLLAMA_KV_CACHE_TYPE", "OLLAMA_FLASH_ATTENTION", "OLLAMA_GPU_OVERHEAD"),
        *("OLLAMA_SCHED_SPREAD", "OLLAMA_LOAD_TIMEOUT"),
    }
)
"""What engines are started with."""
SETTINGS: Final = frozenset(
    {
        *("label_limit", "num_ctx", "num_gpu", "max_num_queued_reqs", "max_num_queued_tokens"),
        *("upstream_unreachable", "upstream_closed", "server_error", "engine_error", "engine_aborted"),
    }
)
"""Of llm-headroom's configuration, of requests to Ollama, and reasons of vLLM's and of the measuring proxy's."""
