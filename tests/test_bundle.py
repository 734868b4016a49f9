"""`llm-headroom bundle` as its users run it."""

from __future__ import annotations

import re
import resource
import stat
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from exporter_process import ran
from llm_headroom.bundle import chart, kubernetes, pushed, sidecars
from llm_headroom.bundle.rule import expression, scaled, words
from llm_headroom.bundle.settings import BundleSettings
from llm_headroom.bundle.text import as_yaml
from llm_headroom.commands.bundle import files, renew, settings
from llm_headroom.thresholds import DEFAULT

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

RULES = "alerts/llm-headroom.rules.yml"


def bundle(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command's outcome."""
    return ran("bundle", *arguments)


def test_everything_is_written_with_the_users_choices(tmp_path: Path) -> None:
    done = bundle(
        *("--output", str(tmp_path), "--threshold", "headroom_requests_low=5", "--selector", 'cluster="x"'),
        *("--job", "engines", "--runbooks", "https://wiki/r", "--grafana", "https://grafana", "--only", "alerts"),
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        str(tmp_path / "alerts" / name)
        for name in (
            "llm-headroom.rules.yml",
            "grafana-alerting.yaml",
            "grafana-notifications.yaml",
            "alertmanager.yml",
            "pushed.yml",
        )
    ]
    text = (tmp_path / RULES).read_text()
    assert 'expr: min without (replica) (llm_kv_cache_headroom_requests{cluster="x"} < 5) and' in text
    assert 'expr: up{job="engines", cluster="x"} == 0 or absent(up{job="engines", cluster="x"})\n' in text
    assert "runbook_url: https://wiki/r/LLMKVHeadroomLow.md\n" in text
    assert "dashboard_url: https://grafana/d/llm-headroom-kv?orgId=1" in text


def test_runbooks_show_the_users_thresholds_and_job(tmp_path: Path) -> None:
    chosen = ("headroom_requests_low=5", "certificate_soon=604800", "gpu_headroom_low_bytes=2147483648")
    options = [word for each in chosen for word in ("--threshold", each)]
    done = bundle("--output", str(tmp_path), *options, "--job", "engines", "--only", "runbooks")

    assert (done.returncode, done.stderr) == (0, "")
    texts = {path.stem: path.read_text() for path in (tmp_path / "alerts/runbooks").glob("*.md")}
    assert "**5** (`headroom_requests_low`) requests" in texts["LLMKVHeadroomLow"]
    assert "**7 d** (`certificate_soon`)" in texts["LLMCertificateExpiring"]
    assert "**3%** (`gpu_headroom_low`) of the device or **2 GiB** (" in texts["LLMGpuMemoryHeadroomLow"]
    assert 'up{job="engines"} == 0' in texts["LLMExporterDown"]
    assert 'job="llm-headroom"' not in "".join(texts.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--threshold", "nonsense=1"), "threshold nonsense: unknown threshold; valid names: ttft_slow_share, "),
        (("--threshold", "kv_usage_high"), "threshold kv_usage_high: expected a number, got nothing"),
        (("--threshold", "kv_usage_high=nan"), "threshold kv_usage_high: expected a number, got nan"),
        (
            ("--threshold", "kv_usage_hihg=0.8"),
            "threshold kv_usage_hihg: unknown threshold; did you mean kv_usage_h",
        ),
        (("--threshold", "kv_usage_high=85"), "threshold kv_usage_high: expected a ratio from 0 to 1, got 85"),
        (("--threshold", "error_share=-1"), "threshold error_share: expected a ratio from 0 to 1, got -1"),
        (("--threshold", "source_stale=-1"), "threshold source_stale: expected 0 or more, got -1"),
        (
            ("--threshold", "kv_usage_high=0.99"),
            "threshold kv_usage_high: 0.99 is more than kv_usage_critical",
        ),
        (("--for-scale", "-2"), "for-scale: expected a number above 0, got -2"),
        (("--runbooks", "wiki/r"), "runbooks wiki/r: expected a URL with http:// or https://"),
        (("--grafana", "ftp://g"), "grafana ftp://g: expected a URL with http:// or https://"),
        (("--selector", "cluster=x"), "selector cluster=x: expected label matchers, such as "),
        (("--selector", 'a="b"} or up{c="d"'), 'selector a="b"} or up{c="d": expected label matchers, such as '),
        (("--only", "nothing"), "part nothing: unknown part; valid names: alerts, "),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = bundle("--output", str(tmp_path / "out"), *arguments)

    assert done.returncode == 2
    assert done.stderr.startswith(f"llm-headroom: {message}")
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "alerts").write_text("a file")

    done = bundle("--output", str(tmp_path))

    assert done.returncode == 2
    assert str(tmp_path / "alerts") in done.stderr


def test_an_edited_file_is_overwritten_only_by_force(tmp_path: Path) -> None:
    first = bundle("--output", str(tmp_path), "--only", "alerts")
    again = bundle("--output", str(tmp_path), "--only", "alerts", "--threshold", "waiting_high=20")
    edited = tmp_path / RULES
    edited.write_text(edited.read_text() + "# ours\n")
    refused = bundle("--output", str(tmp_path), "--only", "alerts")
    kept = edited.read_text()
    forced = bundle("--output", str(tmp_path), "--only", "alerts", "--force")

    assert (first.returncode, again.returncode, refused.returncode, forced.returncode) == (0, 0, 2, 0)
    assert refused.stderr == f"llm-headroom: {RULES}: edited since it was written; --force overwrites it\n"
    assert kept.endswith("# ours\n")
    assert "# ours" not in edited.read_text()


def test_a_full_disk_leaves_everything_as_it_was_and_asks_for_no_force(tmp_path: Path) -> None:
    def there() -> dict[str, bytes]:
        return {str(each.relative_to(tmp_path)): each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()}

    other = files(settings(("waiting_high=20",), ""), ("alerts", "runbooks"))
    renew(tmp_path, files(settings((), ""), ("alerts", "runbooks")))
    (tmp_path / RULES).chmod(0o640)
    before = there()
    least, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(other[RULES]) - 1, most))
    try:
        with pytest.raises(OSError, match=re.escape(str(tmp_path / RULES))):
            renew(tmp_path, {"alerts/first.md": "small", **other})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))
    after = there()
    renew(tmp_path, other)

    assert after == before
    assert there()[RULES] == other[RULES].encode()
    assert not [each for each in there() if each.endswith(".new")]
    assert stat.S_IMODE((tmp_path / RULES).stat().st_mode) == 0o640


def test_every_alert_that_is_written_has_its_runbook_beside_it(tmp_path: Path) -> None:
    assert bundle("--output", str(tmp_path), "--only", "alerts", "--only", "runbooks").returncode == 0

    groups = yaml.safe_load((tmp_path / RULES).read_text())["groups"]
    names = {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}
    assert {path.stem for path in (tmp_path / "alerts" / "runbooks").iterdir()} == names


def test_grafana_groups_and_routes_as_alertmanager_does(tmp_path: Path) -> None:
    assert bundle("--output", str(tmp_path), "--only", "alerts").returncode == 0

    ours = yaml.safe_load((tmp_path / "alerts" / "alertmanager.yml").read_text())["route"]
    parts = yaml.safe_load((tmp_path / "alerts" / "grafana-notifications.yaml").read_text())
    (grafana,) = parts["policies"]
    organisations = [each["orgId"] for name in ("contactPoints", "muteTimes", "policies") for each in parts[name]]
    assert organisations == [1, 1, 1, 1], "the first one, which every Grafana has"
    assert grafana["group_by"] == ["cluster", "engine", "model", "severity"]
    timing = ("group_by", "group_wait", "group_interval", "repeat_interval")
    assert {name: grafana[name] for name in timing} == {name: ours[name] for name in timing}
    assert routed(grafana) == routed(ours)


def routed(route: dict[str, Any]) -> list[Any]:
    """What is matched, how long it waits, and the routes below, however the program writes matchers."""
    found = []
    for each in route.get("routes", ()):
        ours = each.get("matchers") or [f'{name} {how} "{value}"' for name, how, value in each["object_matchers"]]
        found.append((ours, each.get("group_wait"), each.get("repeat_interval"), routed(each)))
    return found


def test_an_exporter_that_has_pushed_is_down_for_an_hour_after_its_last_push() -> None:
    (group,) = pushed.groups(BundleSettings(exporter_job="ours"))["groups"]
    by = "max by (cluster, namespace, job, instance)"
    now, before = 'llm_build_info{job="ours"}', 'last_over_time(llm_build_info{job="ours"}[1h])'
    assert group["rules"] == [{"record": "up", "expr": f"{by} ({now}) or {by} ({before}) * 0"}]


def test_the_chart_s_rules_leave_to_its_values_what_users_choose() -> None:
    document = yaml.safe_load(chart.rules())
    rules = {rule["alert"]: rule for group in document["groups"] for rule in group["rules"] if "alert" in rule}
    low = rules["LLMKVHeadroomLow"]
    assert "llm_kv_cache_headroom_requests < @headroom_requests_low@" in low["expr"]
    assert "more than @kv_tight_usage:said@ of" in low["annotations"]["description"]
    assert low["annotations"]["runbook_url"] == "@runbooks@/LLMKVHeadroomLow.md"
    assert low["annotations"]["dashboard_url"].startswith("@grafana@/d/llm-headroom-kv?")
    assert rules["LLMExporterDown"]["expr"] == 'up{job="@job@"} == 0 or absent(up{job="@job@"})'
    assert document["thresholds"] == asdict(DEFAULT)
    assert (document["units"]["kv_tight_usage"], document["units"]["blocked_seconds"]) == ("ratio", "s")


def test_sidecars_are_scraped_in_every_namespace_by_their_port() -> None:
    text = kubernetes.files(BundleSettings(exporter_job="ours"))["deploy/kustomize/monitor/podmonitor.yaml"]
    spec = yaml.safe_load(text)["spec"]
    assert spec["namespaceSelector"] == {"any": True}
    (endpoint,) = spec["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"], endpoint["interval"]) == (sidecars.PORT, "/metrics", "15s")
    assert endpoint["relabelings"][0] == {"targetLabel": "job", "replacement": "ours"}


def test_yaml_is_in_the_order_that_it_was_made_in_for_people_to_read() -> None:
    same = ["again"]
    document = {"b": {"z": "é – ≥", "a": ["x " * 300 + "x"]}, "a": "one\ntwo\n", "c": same, "d": same}
    header, *lines = as_yaml(document).splitlines()
    assert header.startswith("# Written by ")
    assert [line.partition(":")[0].strip(" -") for line in lines[:3]] == ["b", "z", "a"]
    assert lines[1] == "  z: é – ≥"
    assert lines[3].count("x") == 301, "no line is wrapped"
    assert [line for line in lines if "again" in line] == ["- again", "- again"], "nothing is an alias"
    assert yaml.safe_load("\n".join(lines)) == document


@pytest.mark.parametrize(
    ("duration", "factor", "text"),
    [
        ("5m", 1.0, "5m"), ("5m", 0.5, "150000ms"), ("30s", 0.0001, "3ms"), ("1h", 0.001, "3600ms"),
        ("2d", 0.1, "17280000ms"), ("1.5s", 2.0, "3000ms"),
    ],
)  # fmt: skip
def test_a_duration_is_scaled_to_the_millisecond(duration: str, factor: float, text: str) -> None:
    assert scaled(duration, factor) == text


@pytest.mark.parametrize(("seconds", "text"), [(119.0, "119 s"), (120.0, "2 min"), (90.5, "90.5 s")])
def test_a_threshold_of_two_minutes_or_more_is_written_in_minutes(seconds: float, text: str) -> None:
    assert words("$blocked_seconds", BundleSettings(thresholds=replace(DEFAULT, blocked_seconds=seconds))) == text


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("", 'rate(llm_a[5m]) > 0.95 and up{job="llm-headroom"} or a:llm_b:rate1m + llm_c{}'),
        ('x="y"', 'rate(llm_a{x="y"}[5m]) > 0.95 and up{job="llm-headroom", x="y"} or a:llm_b:rate1m + llm_c{x="y"}'),
    ],
)  # fmt: skip
def test_a_selector_is_put_into_every_series_but_recorded_ones(selector: str, expected: str) -> None:
    expr = 'rate(llm_a[5m]) > $kv_usage_high\n and up{job="$exporter_job"} or a:llm_b:rate1m + llm_c{}'
    settings = BundleSettings(selector=selector, thresholds=replace(DEFAULT, kv_usage_high=0.95))
    assert expression(expr, settings) == expected
