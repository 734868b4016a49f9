"""What holds between the schema, the engines' rules, the captures and the documents."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import captures
from captures import CAPTURES, parsed
from llm_headroom import schema
from llm_headroom.commands import docs
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.exposition.text import Parser
from llm_headroom.model import Kind, Metric, SampleState
from llm_headroom.render.prometheus import UNIT_WORDS
from llm_headroom.scrape.mapping import HISTOGRAM_PARTS, Mapper, Vocabulary, family

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_headroom.engines.rules import Engine, Rule

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
    assert unknown == []
    # in OpenMetrics a counter's family is called as its samples are without `_total`
    bare = "openmetrics" in path.name
    declared = [
        f"{name.removesuffix('_total')}_total" if kind == "counter" and bare else name
        for name, kind in layout.families.items()
    ]
    assert [name for name in declared if vocabulary.state(name, "untyped") is SampleState.UNKNOWN] == []


def upstream_names(engine: str) -> Iterator[tuple[str, str]]:
    """Every name and type that a release of an engine has ever defined."""
    for line in (ROOT / "tests" / "fixtures" / "upstream_names" / f"{engine}.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, kind, _since, _until = line.split("\t")
            yield name, kind


@pytest.mark.parametrize("engine", ["vllm", "sglang", "sglang_router"])
def test_every_name_that_a_release_has_ever_defined_is_mapped_or_ignored_on_purpose(engine: str) -> None:
    vocabulary = Vocabulary(BUILT_IN[engine])
    names = list(upstream_names(engine))

    assert len(names) > 150
    assert [name for name, kind in names if vocabulary.state(name, kind) is SampleState.UNKNOWN] == []


@pytest.mark.parametrize("engine", tuple(BUILT_IN.values()), ids=tuple(BUILT_IN))
def test_no_pattern_of_ignored_names_hides_a_mapped_one(engine: Engine) -> None:
    vocabulary = Vocabulary(engine)

    for rule in engine.rules:
        for name in (*rule.names, *rule.plus):
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
        if name in {"vllm", "sglang", "sglang_router"}:
            seen |= {upstream for upstream, _ in upstream_names(name)}
        if name == "ollama":
            continue  # there is no exposition of Ollama
        for pattern in engine.ignored.keys() - guesses:
            expression = re.compile(pattern.replace("*", ".*"))
            assert any(expression.fullmatch(each) for each in seen), (name, pattern)


# Aliases -------------------------------------------------------------------------------------------------------------
EXAMPLES = (
    "",
    "true",
    "stop",
    "abort",
    "/v1/completions",
    "local_compute",
    "awake",
    "prefill_compute",
    "prefill_cache",
    "prefill_forward",
    "device_hit",
    "decode",
    "rejected",
)


def aliases() -> Iterator[tuple[Engine, Rule, str]]:
    """Every upstream name of every rule, in every spelling."""
    for engine in BUILT_IN.values():
        for rule in engine.rules:
            for name in (*rule.names, *rule.plus):
                for spelling in engine.spellings(name):
                    yield engine, rule, spelling


def exposition(rule: Rule, name: str) -> bytes:
    """The least that an endpoint exposes for a rule to find something under a name."""
    labels = {}
    for label, pattern in rule.where.items():
        labels[label] = next(example for example in EXAMPLES if re.fullmatch(pattern, example))
    labels |= dict.fromkeys(rule.labels.keys() - labels.keys(), "x")
    if rule.read is not None:
        labels |= {"kv_cache_size_tokens": "4", "gpu_memory_utilization": "0.9"}
        labels |= {"kv_cache_memory_bytes": "4"} if rule.fixed else {}
    inside = ",".join(f'{label}="{value}"' for label, value in labels.items())
    if rule.metric.kind is not Kind.HISTOGRAM:
        return f"{name}{{{inside}}} 4\n".encode()
    bucket = ",".join(part for part in (inside, 'le="+Inf"') if part)
    return (
        f"# TYPE {name} histogram\n{name}_bucket{{{bucket}}} 4\n{name}_sum{{{inside}}} 4\n{name}_count{{{inside}}} 4\n"
    ).encode()


@pytest.mark.parametrize(
    ("engine", "rule", "name"), tuple(aliases()), ids=lambda part: part if isinstance(part, str) else ""
)
def test_every_alias_finds_its_metric(engine: Engine, rule: Rule, name: str) -> None:
    body = exposition(rule, name)
    if name.removeprefix("llamacpp") in {":prompt_tokens_cached_total", "_prompt_tokens_cached_total"} and rule.plus:
        body += exposition(rule, "llamacpp:prompt_tokens_total")

    found = [point for point in captures.mapped(engine, body) if point.series.metric is rule.metric]

    assert found
    assert all(name in point.origin for point in found)


@pytest.mark.parametrize("proposed", docs.WRITTEN_ABOUT, ids=lambda proposed: proposed.name)
def test_names_that_are_written_about_are_accepted(proposed: docs.Proposed) -> None:
    name = proposed.name.replace(" ", "_")  # two of them hold a blank, which no exposition can
    engine = BUILT_IN[name.partition(":")[0]]

    assert any(name in engine.spellings(alias) for rule in engine.rules for alias in rule.names)


# Schema --------------------------------------------------------------------------------------------------------------
def test_metrics_are_distinct() -> None:
    assert len({metric.name for metric in schema.ALL}) == len(schema.ALL)


@pytest.mark.parametrize("metric", schema.ALL, ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric: Metric) -> None:
    assert re.fullmatch(r"llm_[a-z][a-z0-9]*(_[a-z0-9]+)*", metric.name) or metric in schema.PROCESS
    assert metric.name.endswith("_total") is (metric.kind is Kind.COUNTER)
    stem = metric.name.removesuffix("_total")
    if metric.unit in UNIT_WORDS:
        assert stem.endswith(f"_{UNIT_WORDS[metric.unit]}")
    else:
        assert re.fullmatch(r"\{\w+\}(/s)?", metric.unit)
        assert not stem.endswith(tuple(f"_{word}" for word in UNIT_WORDS.values()))
    assert not stem.endswith(HISTOGRAM_PARTS)
    assert metric.help.endswith(".")
    assert "\n" not in metric.help
    assert len(set(metric.labels)) == len(metric.labels)
    assert not {"le", "quantile", "job", "instance", "cluster", "namespace", "pod"} & set(metric.labels)


def test_every_metric_of_engines_is_told_by_some_engine_and_the_reverse() -> None:
    told = {rule.metric.name for engine in BUILT_IN.values() for rule in engine.rules}
    told |= {name for engine in BUILT_IN.values() for name in engine.fact_sources}
    own = {"llm_up", "llm_engine_info", *(metric.name for metric in schema.DERIVED)}
    engines = {
        metric.name
        for metric in schema.ALL
        if metric not in schema.PROCESS
        and not metric.name.startswith(
            (
                "llm_gpu",
                "llm_host_",
                "llm_otlp_",
                "llm_proxy_",
                "llm_otlp_",
                "llm_source_",
                "llm_label_",
                "llm_build_",
                "llm_config_",
                "llm_exporter_",
            )
        )
    }

    assert engines - own - told == set()
    assert told - set(schema.BY_NAME) == set()


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
def test_engines_have_ports_of_their_own_and_speak_for_themselves(engine: Engine) -> None:
    assert [other.name for other in BUILT_IN.values() if other.port == engine.port] == [engine.name]
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
def test_metrics_document_is_fresh() -> None:
    for path, text in docs.files(ROOT).items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run: make docs"


def test_metrics_document_names_every_metric_and_every_alias() -> None:
    text = docs.markdown()

    assert [metric.name for metric in schema.ALL if f"`{metric.name}`" not in text] == []
    assert [
        name for engine in BUILT_IN.values() for rule in engine.rules for name in rule.names if name not in text
    ] == []
