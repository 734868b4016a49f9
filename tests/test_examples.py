"""Queries of documents and examples: PromQL over metrics that exist, with the results that they promise."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml

from llm_headroom import schema
from llm_headroom.bundle import recording
from llm_headroom.bundle.dashboards import dashboards
from llm_headroom.bundle.settings import BundleSettings
from llm_headroom.commands import programs
from llm_headroom.model import Kind
from programs import program
from prometheus_server import asked

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = sorted(chain([ROOT / "README.md"], ROOT.glob("docs/*.md"), ROOT.glob("alerts/runbooks/*.md")))
EXAMPLES: Final = ROOT / "deploy" / "examples"
QUERY: Final = re.compile(r"```promql\n(.*?)```|`([^`\n]*\bllm_\w+[^`\n]*)`", re.DOTALL)
SUFFIXES: Final = {Kind.HISTOGRAM: ("", "_bucket", "_sum", "_count")}
PACKAGE: Final = "llm_headroom"
HOURS, STEP = 3, 60
TRAFFIC: Final = {
    # metric and labels → growth per second
    'llm_engine_cost{engine="vllm",target="a",currency="USD"}': 0.001,
    'llm_generation_tokens{engine="vllm",target="a"}': 500.0,
    'llm_generation_tokens{engine="sglang",target="b"}': 100.0,
    'llm_engine_energy_joules{engine="sglang",target="b"}': 400.0,
    'llm_slo_requests{slo="ttft",target="vllm-new-x:8000"}': 2.0,
    'llm_slo_requests_good{slo="ttft",target="vllm-new-x:8000"}': 1.5,
    'llm_slo_requests{slo="ttft",target="vllm-old-x:8000"}': 4.0,
    'llm_slo_requests_good{slo="ttft",target="vllm-old-x:8000"}': 3.8,
    'llm_requests_finished{target="vllm-new-x:8000"}': 2.0,
    'llm_requests_finished{target="vllm-old-x:8000"}': 4.0,
    'llm_requests_failed{reason="error",target="vllm-new-x:8000"}': 0.1,
    'llm_requests_failed{reason="aborted",target="vllm-old-x:8000"}': 2.0,
    'llm_requests_failed{reason="error",target="vllm-dead-x:8000"}': 1.0,
    'llm_generation_tokens{engine="vllm",target="a/proxy"}': 500.0,
    'llm_engine_cost{engine="ollama",target="c",currency="USD"}': 0.001,
    'llm_generation_tokens{engine="ollama",target="c"}': 0.0,
}


def queries(page: Path) -> Iterator[str]:
    """What a page shows as PromQL: blocks of that language, and code in its text that is more than a name."""
    for block, span in QUERY.findall(page.read_text(encoding="utf-8")):
        text = block or span.replace("\\|", "|")
        if block or (
            re.search(r"[({]\w|[<>*/+] ", text) and not re.search(r"…|\{\w+(, ?\w+)*[},]|=\{|: \{|^\S+\{\}|\} 1$", text)
        ):
            yield text.strip()


SHOWN: Final = sorted({query for page in PAGES for query in queries(page)})


def names() -> set[str]:
    """Every name that a query can ask for."""
    exported = {metric.name + suffix for metric in schema.ALL for suffix in SUFFIXES.get(metric.kind, ("",))}
    return exported | {rule.name for rule in recording.FLEET}


def analyses() -> dict[str, dict[str, Any]]:
    """The metrics of the analysis, by name."""
    document = yaml.safe_load((EXAMPLES / "argo-rollouts.yaml").read_text(encoding="utf-8"))
    return {metric["name"]: metric for metric in document["spec"]["metrics"]}


def test_queries_are_found() -> None:
    """The tests below must not pass because nothing matches any more."""
    assert len(SHOWN) > 40
    assert any("llm_engine_cost_total" in query for query in SHOWN)


def test_every_query_is_promql(tmp_path: Path) -> None:
    promtool = program("promtool", "prometheus")
    file = tmp_path / "rules.yml"
    rules = [{"record": f"r{place}", "expr": query} for place, query in enumerate(SHOWN)]
    file.write_text(json.dumps({"groups": [{"name": "documents", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stderr, dict(enumerate(SHOWN)))


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "upgrading.md"], ids=lambda page: page.name)
def test_every_metric_that_a_page_names_exists(page: Path) -> None:
    found = set(re.findall(r"\bllm_[a-z]\w*[a-z0-9]\b(?![*_…]|:\w)", page.read_text(encoding="utf-8")))
    assert found - names() - {PACKAGE} == set()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus with three hours of TRAFFIC, up to now."""
    promtool = program("promtool", "prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    now = int(time.time())
    lines = []
    for series, growth in sorted(TRAFFIC.items()):
        name, labels = series.split("{")
        lines.append(f"# TYPE {name} counter")
        lines += [
            f"{name}_total{{{labels} {growth * (at + HOURS * 3600)} {now + at}" for at in range(-HOURS * 3600, 1, STEP)
        ]
    lines = [line for place, line in enumerate(lines) if not line.startswith("#") or line not in lines[:place]]
    (folder / "samples").write_text("\n".join([*lines, "# EOF", ""]))
    subprocess.run(
        [promtool, "tsdb", "create-blocks-from", "openmetrics", "samples", "data"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    with programs.prometheus(folder, {}) as server:
        yield server.address


def judged(prometheus: str, name: str, canary: str, stable: str) -> list[float]:
    """The result of an analysis, as its conditions get it."""
    query = analyses()[name]["provider"]["prometheus"]["query"]
    query = query.replace("{{args.canary}}", canary).replace("{{args.stable}}", stable)
    return [float(each["value"][1]) for each in asked(prometheus, "query", query=query)["result"]]


def condition(text: str, result: list[float]) -> bool:
    """A condition of Argo Rollouts, whose language (expr-lang/expr) writes && for and."""
    return bool(eval(text.replace("&&", "and"), {"len": len}, {"result": result}))  # noqa: S307 - of our own example


def test_a_canary_that_misses_the_objective_or_fails_is_stopped(prometheus: str) -> None:
    ttft, failures = (judged(prometheus, name, "new", "old") for name in ("ttft", "failures"))

    assert ttft == pytest.approx([0.75 - 0.95])
    assert failures == pytest.approx([0.1 / 2.1])
    assert judged(prometheus, "failures", "dead", "old") == pytest.approx([1.0])
    for name, result in (("ttft", ttft), ("failures", failures)):
        assert condition(analyses()[name]["failureCondition"], result)
        assert not condition(analyses()[name]["successCondition"], result)


def test_a_canary_that_is_as_good_passes_and_one_without_traffic_is_neither(prometheus: str) -> None:
    for name, analysis in analyses().items():
        if name != "inter-token-latency":
            assert condition(analysis["successCondition"], judged(prometheus, name, "old", "old"))
        for missing in (("none", "old"), ("old", "none")):
            result = judged(prometheus, name, *missing)
            assert not condition(analysis["successCondition"], result)
            assert not condition(analysis["failureCondition"], result)


def test_the_cost_report_shows_what_is_known_and_leaves_out_the_rest(prometheus: str) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "cost_report.py", f"http://{prometheus}", "1h"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.splitlines()[2:] == [
        "| ollama | 3.60 USD | 0.00 | – | – |",
        "| sglang | – | 0.36 | – | 0.40 |",
        "| vllm | 3.60 USD | 1.80 | 2.00 USD | – |",
    ]


@pytest.mark.parametrize(
    ("panel", "expected"),
    [
        ("Price of 1M", {"": 4.0}),  # the idle one is paid for
        ("Price of 1 M tokens", {"vllm": 2.0}),
        ("Per joule", {"": 0.25}),
        ("Tokens per joule", {"sglang": 0.25}),
    ],
)
def test_the_comparison_divides_what_is_known_of_both_and_counts_no_request_twice(
    prometheus: str, panel: str, expected: dict[str, float]
) -> None:
    rows = next(each for each in dashboards(BundleSettings()) if each.uid == "llm-headroom-compare").rows
    (query,) = next(each for row in rows for each in row.panels if each.title == panel).queries
    expr = re.sub(r"\$\w+", ".*", query.expr.replace("$__range", "1h"))
    found = asked(prometheus, "query", query=expr)["result"]
    assert {each["metric"].get("engine", ""): float(each["value"][1]) for each in found} == pytest.approx(expected)
