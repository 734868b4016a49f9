"""What holds between the schema, the engines' rules, the captures and the documents."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final
from zlib import crc32

import pytest

import captures
from captures import CAPTURES, parsed
from llm_headroom import schema
from llm_headroom.bundle import chart as of_chart
from llm_headroom.bundle.alerts import ALERTS
from llm_headroom.bundle.dashboards.colours import HUES, hue
from llm_headroom.commands import docs, generated, settings_docs
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.engines.rules import Rule
from llm_headroom.exposition.text import Parser
from llm_headroom.model import Histogram, Kind, Metric, Point, SampleState, Subject
from llm_headroom.render.prometheus import UNIT_WORDS
from llm_headroom.scrape.vocabulary import HISTOGRAM_PARTS, Vocabulary, family
from llm_headroom.thresholds import Thresholds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_headroom.engines.rules import Engine
    from llm_headroom.scrape.mapping import Mapper

ROOT = Path(__file__).parent.parent
EXPOSITIONS = tuple(path for path in sorted(CAPTURES.glob("*/*/*.prom")) if ".v1_loads_" not in path.name)


def engine_of(path: Path) -> Engine:
    """The engine that an exposition of a capture belongs to; a router's merged view is its engines'."""
    name = path.parent.parent.name
    if path.parent.name.startswith(captures.ROUTERS) and ".engine_metrics." not in path.name:
        name = "sglang_router"
    return BUILT_IN[name]


# Names ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", EXPOSITIONS, ids=lambda path: "/".join(path.parts[-3:]))
def test_every_family_of_every_capture_is_mapped_or_ignored_on_purpose(path: Path) -> None:
    vocabulary = Vocabulary(engine_of(path))
    layout = parsed(path).layout
    exposed = {family(key.name, key.type): key for key in layout.keys}

    unknown = [name for name, key in exposed.items() if vocabulary.state(key.name, key.type) is SampleState.UNKNOWN]
    assert unknown == [], f"neither in a rule nor ignored: {' '.join(unknown)}"
    # in OpenMetrics a counter's family is called as its samples are without `_total`
    bare = "openmetrics" in path.name
    declared = [
        f"{name.removesuffix('_total')}_total" if kind == "counter" and bare else name
        for name, kind in layout.families.items()
    ]
    assert [name for name in declared if vocabulary.state(name, "untyped") is SampleState.UNKNOWN] == []


UPSTREAM_NAMES = ROOT / "tests" / "fixtures" / "upstream_names"
LISTED = tuple(sorted(path.stem for path in UPSTREAM_NAMES.glob("*.txt")))
"""Engines whose every name is known, out of their sources."""


def upstream_names(engine: str) -> Iterator[tuple[str, str]]:
    """Every name and type that a release of an engine has ever defined."""
    for line in (UPSTREAM_NAMES / f"{engine}.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, kind, _since, _until = line.split("\t")
            yield name, kind


@pytest.mark.parametrize("engine", LISTED)
def test_every_name_that_a_release_has_ever_defined_is_mapped_or_ignored_on_purpose(engine: str) -> None:
    vocabulary = Vocabulary(BUILT_IN[engine])
    names = list(upstream_names(engine))

    assert len(names) > len(BUILT_IN[engine].rules)
    assert [name for name, kind in names if vocabulary.state(name, kind) is SampleState.UNKNOWN] == []


@pytest.mark.parametrize("engine", tuple(BUILT_IN.values()), ids=tuple(BUILT_IN))
def test_no_pattern_of_ignored_names_hides_a_mapped_one(engine: Engine) -> None:
    vocabulary = Vocabulary(engine)

    for rule in engine.rules:
        for name in (*rule.names, *rule.plus, *rule.less):
            assert vocabulary.state(name, "untyped") is SampleState.MAPPED


def test_every_pattern_of_ignored_names_hits_something() -> None:
    """Those for families that no capture and no list of upstream names has: our guesses at runtimes and proposals."""
    guesses = {"python_*", "process_*", "go_*", "promhttp_*", "http_*", "vllm:http_*", "*_created"}
    for name, engine in BUILT_IN.items():
        seen = {
            family(key.name, key.type)
            for path in EXPOSITIONS
            if engine_of(path) is engine
            for key in parsed(path).layout.keys
        }
        if name in LISTED:
            seen |= {upstream for upstream, _ in upstream_names(name)}
        if not seen:
            continue  # there is no exposition of it, as of Ollama
        for pattern in engine.ignored.keys() - guesses:
            expression = re.compile(pattern.replace("*", ".*"))
            assert any(expression.fullmatch(each) for each in seen), (name, pattern)


# Aliases -------------------------------------------------------------------------------------------------------------
@cache
def examples() -> frozenset[str]:
    """Every value that a label has in a capture."""
    return frozenset(value for path in EXPOSITIONS for key in parsed(path).layout.keys for _, value in key.labels)


UNSEEN = ("", "x", "/v1/completions", "prefill_forward", "rejected", "cpu_to_gpu", "gpu_to_cpu")
"""Values that rules look for and no capture has."""


ALIASES = ROOT / "tests" / "fixtures" / "aliases.txt"
"""What becomes of each upstream name: engine, name, metric, its value where the engine exposes 4, or 0.5 of a ratio (of
a histogram its count and its sum), and its labels. Nothing writes this list: a rule that changes must change here, too.
"""


@cache
def meanings() -> frozenset[str]:
    """The lines of the list."""
    return frozenset(line for line in ALIASES.read_text().splitlines() if not line.startswith("#"))


def aliases() -> Iterator[tuple[Engine, Rule, str, str]]:
    """Every upstream name of every rule, and each of its spellings."""
    for engine in BUILT_IN.values():
        for rule in engine.rules:
            for name in (*rule.names, *rule.plus):
                for spelling in engine.spellings(name):
                    yield engine, rule, name, spelling


def test_every_meaning_that_is_written_down_is_of_an_alias() -> None:
    names = {(engine.name, name, rule.metric.name) for engine, rule, name, _ in aliases()}
    old = {line for line in meanings() if tuple(line.split()[:3]) not in names}

    assert old == set(), f"no rule has what {ALIASES.name} says of: {sorted(old)}"


def exposed(rule: Rule, name: str, value: float, **more: str) -> bytes:
    """The least that an endpoint exposes for a rule to find something under a name, with more labels."""
    labels = {}
    for label, pattern in rule.where.items():
        fitting = (example for example in (*UNSEEN, *sorted(examples())) if re.fullmatch(pattern, example))
        found = next(fitting, None)
        assert found is not None, f"no capture has a label value such as {label}=~{pattern!r}: add one to UNSEEN"
        labels[label] = found
    labels |= {label: "503" if ours == "code" else "x" for label, ours in rule.labels.items() if label not in labels}
    if rule.read is not None:
        labels |= {"kv_cache_size_tokens": "4", "gpu_memory_utilization": "0.9", "max_lora": "4"}
        labels |= {"kv_cache_memory_bytes": "4"} if rule.fixed else {}
    if rule.newest is not None:
        labels |= {"running_lora_adapters": "one"}
    inside = ",".join(f'{label}="{text}"' for label, text in (labels | more).items())
    if rule.metric.kind is not Kind.HISTOGRAM:
        return f"{name}{{{inside}}} {value}\n".encode()
    bucket = ",".join(part for part in (inside, 'le="+Inf"') if part)
    lines = (f"{name}_bucket{{{bucket}}}", f"{name}_sum{{{inside}}}", f"{name}_count{{{inside}}}")
    return "".join(f"{line} {value}\n" for line in (f"# TYPE {name} histogram\n{lines[0]}", *lines[1:])).encode()


def exposition(rule: Rule, name: str) -> bytes:
    """The same with the value 4, or 0.5 of a ratio: no share is above 1."""
    return exposed(rule, name, 0.5 if rule.metric.name.endswith("_ratio") else 4)


def test_every_alias_finds_its_metric() -> None:
    """All in one test: as a test for each they were a twelfth of all tests, and took more CPU around than in them."""
    wrong = [said for alias in aliases() for said in wrong_of(*alias)]

    assert not wrong, "\n".join(wrong)


def wrong_of(engine: Engine, rule: Rule, upstream: str, name: str) -> Iterator[str]:
    """What is wrong with an upstream name of a rule in one of its spellings."""
    body = exposition(rule, name)
    if any(name in engine.spellings(added) for added in rule.plus):
        body += exposition(rule, rule.names[0])
    for factor in rule.times[:1]:
        body += exposition(rule, factor)

    found = [point for point in captures.mapped(engine, body) if point.series.metric is rule.metric]

    if not found:
        yield f"{engine.name}: {name} does not give {rule.metric.name}"
        return
    if not all(name in point.origin for point in found):
        yield f"{engine.name}: {rule.metric.name} of {name} is said to be of {[point.origin for point in found]}"
    labels = " ".join(f"{name}={text}" for name, text in found[0].series.labels if name not in {"engine", "target"})
    line = f"{engine.name} {upstream} {rule.metric.name} {shown(found[0].value)} {labels}".rstrip()
    if line not in meanings():
        yield f"{ALIASES.name} does not say, but should if it is right: {line}"


def shown(value: float | Histogram) -> str:
    """A value as the list of aliases writes it."""
    return f"{value:.6g}" if isinstance(value, float) else f"{value.count:.6g}/{value.sum:.6g}"


TOGETHER: Final = ROOT / "tests" / "fixtures" / "exposed_together.txt"


def together(engine: Engine) -> bytes:
    """All that an engine's rules look for at once, each by replicas, ranks, parts that add up, and a label of nobody's.

    Values differ: what is added up, what is the greatest and what comes first are not the same.
    """
    ranks = engine.rank_labels[:1] or ("tp_rank",)
    apart = (*filter(None, (engine.replica_label,)), *engine.model_parts, *engine.adds_up, *ranks, "zone", "pid")
    families: dict[str, dict[bytes, None]] = defaultdict(dict)
    for rule in engine.rules:
        for name in (*rule.names[:1], *rule.plus, *rule.less, *rule.times[:1]):
            for place, label in enumerate((*ranks, *apart)):
                number = 3 + 2 * place + crc32(name.encode()) % 7 - 2 * (name in rule.less)
                share = rule.metric.name.endswith("_ratio")
                own = {engine.model_label: "n" if rule.also else "m"} | (
                    {label: str(place)} if label not in {*rule.where, *rule.labels} else {}
                )
                families[name][exposed(rule, name, number / 50 if share else number, **own)] = None
    return b"".join(line for lines in families.values() for line in lines)


@pytest.mark.parametrize("engine", BUILT_IN.values(), ids=BUILT_IN.keys())
def test_what_becomes_of_all_that_an_engine_exposes_at_once(engine: Engine) -> None:
    """Of each metric how many series there are, with which labels, and their sum. Nothing writes the list."""
    found: dict[Metric, list[Point]] = defaultdict(list)
    for point in captures.mapped(engine, together(engine)):
        found[point.series.metric].append(point)
    lines = []
    for metric, points in found.items():
        names = {name for point in points for name, _ in point.series.labels} - {"engine", "target"}
        total = sum(point.value if isinstance(point.value, float) else point.value.sum for point in points)
        lines.append(f"{engine.name} {metric.name} {len(points)} {total:.10g} {' '.join(sorted(names))}".rstrip())

    written = [line for line in TOGETHER.read_text().splitlines() if line.startswith(f"{engine.name} ")]
    assert lines == written


@pytest.mark.parametrize("proposed", docs.FROM_ARTICLES, ids=lambda proposed: proposed.name)
def test_names_that_are_written_about_are_accepted(proposed: docs.Proposed) -> None:
    name = proposed.name.replace(" ", "_")  # two of them hold a blank, which no exposition can
    engine = BUILT_IN[name.partition(":")[0]]

    assert any(name in engine.spellings(alias) for rule in engine.rules for alias in rule.names)


# Schema --------------------------------------------------------------------------------------------------------------
def test_metrics_are_distinct() -> None:
    assert len({metric.name for metric in schema.ALL}) == len(schema.ALL)


@pytest.mark.parametrize("metric", schema.ALL, ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric: Metric) -> None:
    assert re.fullmatch(r"llm_[a-z][a-z0-9]*(_[a-z0-9]+)*", metric.name) or metric.subject is Subject.PROCESS
    assert metric.name.endswith("_total") is (metric.kind is Kind.COUNTER)
    stem = metric.name.removesuffix("_total")
    if metric.unit in UNIT_WORDS:
        assert stem.endswith(f"_{UNIT_WORDS[metric.unit]}")
    else:
        assert re.fullmatch(r"\{\w+\}(/s)?", metric.unit)
        assert not stem.endswith(tuple(f"_{word}" for word in UNIT_WORDS.values()))
    assert not stem.endswith(HISTOGRAM_PARTS)
    assert metric.help.endswith(".")
    assert not re.search(r"^(Those|These|They|It)\b|\bthat these\b|\bat which it\b", metric.help)  # it stands alone
    assert not set('\\\n"') & set(metric.help)  # expositions would have to escape them
    assert len(set(metric.labels)) == len(metric.labels)
    assert not {"le", "quantile", "job", "instance", "cluster", "namespace", "pod"} & set(metric.labels)


def test_every_metric_of_engines_is_exposed_by_some_engine_and_no_other_is() -> None:
    exposed = {rule.metric for engine in BUILT_IN.values() for rule in engine.rules}
    exposed |= {schema.BY_NAME[name] for engine in BUILT_IN.values() for name in engine.fact_sources}
    own = {schema.ENGINE_INFO}  # from the version that an engine's documents give
    of_engines = {metric for metric in schema.ALL if metric.exposed_by_engines}

    assert [metric.name for metric in of_engines - own - exposed] == []
    assert [metric.name for metric in exposed - of_engines] == []


OTHERS = tuple(metric for metric in schema.ALL if not metric.exposed_by_engines)


@pytest.mark.parametrize("metric", OTHERS, ids=lambda metric: metric.name)
def test_no_rule_gives_what_no_engine_exposes(metric: Metric) -> None:
    with pytest.raises(ValueError, match=f"^{metric.name} is not a metric that an engine exposes"):
        Rule(metric=metric, names=("x",))


@pytest.mark.parametrize("engine", tuple(BUILT_IN.values()), ids=tuple(BUILT_IN))
def test_an_engine_gives_what_its_kind_is_about(engine: Engine) -> None:
    """Whoever has metrics of routers is one; a router may have what engines have, too (its HTTP responses)."""
    given = {rule.metric.subject for rule in engine.rules}
    given |= {schema.BY_NAME[name].subject for name in engine.fact_sources}

    assert (Subject.ROUTER in given) is (engine.subject is Subject.ROUTER)
    assert given <= {Subject.ENGINE, Subject.ROUTER, Subject.GPU}


@pytest.mark.parametrize("engine", tuple(BUILT_IN.values()), ids=tuple(BUILT_IN))
def test_rules_give_only_labels_that_their_metric_declares(engine: Engine) -> None:
    for rule in engine.rules:
        assert {*rule.labels.values(), *rule.fixed} <= set(rule.metric.labels), rule.names


@pytest.mark.parametrize("capture", captures.ALL, ids=str)
def test_points_of_every_capture_are_declared_and_distinct(capture: captures.Capture) -> None:
    points = captures.mapped(capture.engine, parsed(capture.exposition))

    assert len({point.series for point in points}) == len(points)
    for point in points:
        assert schema.BY_NAME[point.series.metric.name] is point.series.metric
        assert {name for name, _ in point.series.labels} <= set(point.series.metric.labels)


@pytest.mark.parametrize("engine", tuple(BUILT_IN.values()), ids=tuple(BUILT_IN))
def test_engines_have_ports_and_speak_for_themselves(engine: Engine) -> None:
    assert 0 < engine.port < 1 << 16
    assert engine.title
    assert all(reason for reason in engine.ignored.values())


def test_a_plan_is_compiled_once_for_a_layout() -> None:
    parser = Parser()
    body = (CAPTURES / "vllm" / "0.32.0" / "saturated.prom").read_bytes()
    mapper: Mapper = captures.mapper("vllm")

    first = mapper.plan(parser.parse(body).layout)
    again = mapper.plan(parser.parse(body.replace(b"} 39.0", b"} 40.0")).layout)

    assert again is first


# Documents -----------------------------------------------------------------------------------------------------------
def emptied(root: Path) -> Path:
    """A checkout in which nothing is in the place of what is generated."""
    for path in (path for pattern in (*generated.MARKED, generated.CHART_SCHEMA) for path in ROOT.glob(pattern)):
        text = generated.filled(path.read_text(encoding="utf-8"), defaultdict(str))
        if path.name == "values.schema.json":
            chart = json.loads(text)
            chart["definitions"], chart["properties"]["config"] = {}, {}
            chart["properties"]["sidecar"]["properties"]["engine"]["enum"] = []
            text = json.dumps(chart)
        copy = root / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(re.sub(r"(<!-- keys of \w+ -->\n\n)(?:\|.*\n)*", r"\1", text), encoding="utf-8")
    return root


def test_generated_files_and_parts_are_fresh(tmp_path: Path) -> None:
    made = generated.files(emptied(tmp_path))
    old = [path for path, text in made.items() if (ROOT / path).read_text(encoding="utf-8") != text]

    assert old == [], "run: make docs"
    assert made.keys() >= {
        "METRICS.md",
        "README.md",
        "docs/config.example.yaml",
        "docs/config.schema.json",
        *generated.COMPLETIONS.values(),
        generated.MANUAL,
        generated.CONFIGURATION,
        generated.CHART_SCHEMA,
        of_chart.RULES,
    }
    assert {path.split("/")[0] for path in made} >= {"alerts", "dashboards", "deploy"}


def test_the_schema_of_the_configuration_names_every_engine() -> None:
    text = settings_docs.schema()["definitions"]["Target"]["properties"]["engine"]["description"]

    assert [name for name in BUILT_IN if f"`{name}`" not in text] == []


def test_every_generated_part_stands_somewhere() -> None:
    texts = [(ROOT / path).read_text(encoding="utf-8") for path in generated.files(ROOT)]

    assert [
        name
        for name in generated.parts() | generated.figures(ROOT)
        if not any(f"generated: {name}" in text for text in texts)
    ] == []


def test_figures_are_those_of_the_evaluation_s_row_by_its_columns(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/evaluation.md").write_text(
        "## Alerts, 2.5 held-out days in 7 runs, 31 incidents\n\n"
        "| rule | FA/day | recall | precision | lead s |\n|---|---|---|---|---|\n"
        "| other | 9 | 9 | 9 | 9 |\n| `LLMFirstTokensSlow` | 1.5 | 0.75 [0.7, 0.8] | 0.5 [0.4, 0.6] | -27 |\n"
    )
    (tmp_path / "docs/load-headroom.md").write_text(
        "| estimator | median of the error | p90 |\n|---|---|---|\n"
        "| llm_load_headroom_ratio | 0.69 [0.1, 0.9] | 1.1 |\n"
        "| 400 + 8 | 611 s | kv_cache | 3.24 × | 2.62 × | 1.24 | 45% |\n"
        "| 40 + 60 | 607 s | concurrency | 3.63 ×, suspect | 4.14 × | 0.88 | 66% |\n"
        "| 40 + 9 | 607 s | – | none | 4.14 × | – | 66% |\n"
    )

    assert generated.figures(tmp_path) == {
        "headroom-error": "1.99 at the median and 3.00 at the 90th percentile",
        "headroom-ramps": "it said 0.88 to 1.24 times what 2 ramps found",
        "page-figures": "On 2.5 days of production traffic, replayed on simulated engines near their limit,\n"
        "  with 31 incidents, the page on slow first tokens was right in 50%, caught 75% of them, 27 s after they\n"
        "  began at the median, and gave 1.5 false alarms a day",
    }
    (tmp_path / "docs/load-headroom.md").write_text("nothing")
    with pytest.raises(ValueError, match="no table has a row llm_load_headroom_ratio"):
        generated.figures(tmp_path)


def test_a_part_that_nobody_generates_is_an_error() -> None:
    with pytest.raises(KeyError, match="nothing"):
        generated.filled("<!-- generated: nothing --><!-- end -->", generated.parts())


def test_the_document_of_alerts_lists_each_with_its_thresholds() -> None:
    text = generated.parts()["alerts"]
    rows = re.findall(r"^\| \[(\w+)\]\(\.\./alerts/runbooks/\1\.md\) \| (\w+) \| (\w+) \| (.*) \|$", text, re.MULTILINE)

    assert {(name, severity, wait, frozenset(re.findall(r"`(\w+)`", used))) for name, severity, wait, used in rows} == {
        (a.name, a.severity, a.wait, frozenset(re.findall(r"\$(\w+)", a.expr)) - {"exporter_job"}) for a in ALERTS
    }
    assert all((ROOT / "alerts" / "runbooks" / f"{name}.md").is_file() for name, *_ in rows)


def test_every_threshold_has_a_unit_and_a_meaning() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \| (.+) \| (.+\.) \|$", generated.parts()["thresholds"], re.MULTILINE)

    assert {(name, float(value)) for name, value, *_ in rows} == set(asdict(Thresholds()).items())


def test_engines_have_colours_of_their_own() -> None:
    by_colour: dict[str, list[str]] = defaultdict(list)
    for engine in BUILT_IN.values():
        by_colour[engine.colour].append(engine.name)

    assert [names for names in by_colour.values() if len(names) > 1] == [], f"free: {HUES.keys() - by_colour.keys()}"


def test_a_colour_that_no_dashboard_has_is_refused_with_those_that_are_free() -> None:
    with pytest.raises(ValueError, match=r"vllm has the colour '', which is not in HUES; free: "):
        hue(replace(BUILT_IN["vllm"], colour=""))


def test_metrics_document_names_every_metric_and_every_alias() -> None:
    text = docs.markdown()

    assert [metric.name for metric in schema.ALL if f"`{metric.name}`" not in text] == []
    assert [
        name for engine in BUILT_IN.values() for rule in engine.rules for name in rule.names if name not in text
    ] == []
