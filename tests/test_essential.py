"""`detail: essential`: fewer series, and nothing that a rule or a dashboard's first screen reads is lost."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final

import pytest

from captures import Capture
from engine_server import EngineServer, at_work, replayed
from exporter_process import Exporter
from llm_headroom import schema
from llm_headroom.bundle import alerts
from llm_headroom.bundle.dashboards import dashboards
from llm_headroom.bundle.rule import expression
from llm_headroom.bundle.settings import BundleSettings
from llm_headroom.model import Histogram, Kind, Subject
from llm_headroom.poll.essential import COMPUTED, NAMES, OF_OLLAMA, QUANTILES, essential
from timelines import point

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import TypeAlias

    from llm_headroom.model import Metric

    Samples: TypeAlias = dict[tuple[tuple[str, str], ...], float]


SCREEN: Final = 28
"""Grafana's units of height on a screen of 1080 lines."""
OF_THE_EXPORTER: Final = frozenset((Subject.EXPORTER, Subject.PROCESS))
"""These are exposed once, not for each target, and always."""


def metrics(expr: str) -> set[str]:
    """The metrics that a query reads."""
    names = re.findall(r"(?<![\w:])llm_\w+", re.sub(r'"[^"]*"', "", expr))
    return {name if name in schema.BY_NAME else re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


def opened() -> Iterator[str]:
    """Every query of the rules, and those that Grafana asks when a dashboard opens."""
    settings = BundleSettings()
    for group in alerts.GROUPS.values():
        yield from (expression(rule.expr, settings) for rule in group.rules)
    for dashboard in dashboards(settings):
        document = dashboard.to_json("")
        yield from (variable.get("definition", "") for variable in document["templating"]["list"])
        yield from (annotation.get("expr", "") for annotation in document["annotations"]["list"])
        for panel in document["panels"]:
            if panel["gridPos"]["y"] < SCREEN:
                yield from (target["expr"] for target in panel.get("targets", ()))


def test_what_stays_is_what_rules_and_first_screens_read() -> None:
    read = {name for expr in opened() for name in metrics(expr)}

    assert {name for name in read if schema.BY_NAME[name].subject not in OF_THE_EXPORTER} == NAMES
    ollama = re.compile(r'(llm_\w+)\{[^}]*engine="ollama"')
    elsewhere = {name for expr in opened() for name in metrics(ollama.sub("", expr))}
    assert not elsewhere & {metric.name for metric in OF_OLLAMA}
    buckets = {name for expr in opened() for name in re.findall(r"(?<![\w:])(llm_\w+)_bucket", expr)}
    assert buckets == {metric.name for metric in QUANTILES}


def exposed(capture: Capture, folder: Path, detail: str) -> dict[str, Samples]:
    """Values by name and labels."""
    with EngineServer(at_work(capture) if capture.engine == "vllm" else replayed(capture)) as server:
        config = folder / f"{detail}.yml"
        target = f"{{name: t, engine: {capture.engine}, url: '{server.url}'}}"
        config.write_text(f"detail: {detail}\ngpu: false\nhost: false\ntargets: [{target}]\n")
        with Exporter("--config", str(config)) as exporter:
            exporter.logged("source up")
            found = exporter.metrics()
    return {name: samples for name, samples in found.items() if any("target" in dict(labels) for labels in samples)}


def bounds(buckets: Samples) -> set[float]:
    """Upper bounds of a histogram."""
    return {float(dict(labels)["le"]) for labels in buckets}


@pytest.mark.parametrize(
    ("capture", "most"),
    [(Capture("vllm", "0.32.0", "saturated"), 91), (Capture("sglang", "0.5.23", "saturated"), 90)],
    ids=lambda value: value.engine if isinstance(value, Capture) else "",
)
def test_fewer_series_of_which_those_that_stay_say_the_same(capture: Capture, most: int, tmp_path: Path) -> None:
    full, few = exposed(capture, tmp_path, "full"), exposed(capture, tmp_path, "essential")

    assert sum(map(len, few.values())) <= most < sum(map(len, full.values()))
    for name, samples in few.items():
        if name.endswith("_bucket"):
            assert math.inf in bounds(samples)
            assert samples.items() <= full[name].items(), "a bound that stays counts what it counted"
        elif schema.BY_NAME.get(name, schema.UP).kind is not Kind.GAUGE:
            assert samples == full[name]
        else:
            assert {dict(labels).get("state") for labels in full[name].keys() - samples.keys()} <= {"unknown_label"}
            assert samples.keys() <= full[name].keys()


def test_what_a_query_computes_from_others_is_left_out_where_they_are_there(tmp_path: Path) -> None:
    few = exposed(Capture("vllm", "0.32.0", "saturated"), tmp_path, "essential")

    for metric in COMPUTED:
        assert f"{metric.name}_sum" not in few
        assert [expr for expr in opened() if f"{metric.name}_sum" in expr and " or " in expr]
    for name in ("time_to_first_token", "request_queue", "request_duration"):
        assert few[f"llm_{name}_seconds_sum"]


def test_the_bounds_of_objectives_stay(tmp_path: Path) -> None:
    few = exposed(Capture("vllm", "0.32.0", "saturated"), tmp_path, "essential")

    objectives = {dict(labels)["slo"]: value for labels, value in few["llm_slo_threshold_seconds"].items()}
    for slo, name in (
        ("ttft", "llm_time_to_first_token_seconds"),
        ("inter_token_latency", "llm_inter_token_latency_seconds"),
    ):
        assert objectives[slo] in bounds(few[f"{name}_bucket"])


@pytest.mark.parametrize(
    ("metric", "threshold", "bounds", "stay"),
    [
        # from 0.1 s to 60 s, each at least four times the last one
        (
            schema.TIME_TO_FIRST_TOKEN,
            None,
            (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 1.0, 1.6, 60.0, 61.0),
            (0.1, 0.4, 1.6, 60.0),
        ),
        (schema.TIME_TO_FIRST_TOKEN, ("ttft", 0.05), (0.05, 0.1, 0.2, 0.4), (0.05, 0.2)),
        (schema.TIME_TO_FIRST_TOKEN, ("ttft", 0.2), (0.1, 0.2, 0.4, 0.8), (0.1, 0.2, 0.8)),
        (schema.TIME_TO_FIRST_TOKEN, ("ttft", 100.0), (60.0, 80.0, 100.0), (60.0, 100.0)),
        (schema.TIME_TO_FIRST_TOKEN, ("request_duration", 0.2), (0.1, 0.2, 0.4), (0.1, 0.4)),
        (schema.INTER_TOKEN_LATENCY, None, (0.005, 0.01, 0.02, 0.04, 2.0, 4.0), (0.01, 0.04, 2.0)),
        (schema.REQUEST_DURATION, None, (0.5, 1.0, 3.9, 4.0, 300.0, 600.0), (1.0, 4.0, 300.0)),
        (schema.REQUEST_GENERATION_TOKENS, None, (10.0, 20.0, 80.0, 40_000.0, 80_000.0), (20.0, 80.0, 40_000.0)),
        (schema.REQUEST_PROMPT_TOKENS, None, (10.0, 20.0, 80.0, 200_000.0, 1e6), (20.0, 80.0, 200_000.0)),
        (schema.REQUEST_QUEUE, ("ttft", 0.2), (0.1, 0.2, 0.4), ()),
    ],
)
def test_which_bounds_stay(
    metric: Metric, threshold: tuple[str, float] | None, bounds: tuple[float, ...], stay: tuple[float, ...]
) -> None:
    counts = tuple(float(place) for place in range(len(bounds) + 1))
    points = [point(metric, Histogram((*bounds, math.inf), counts, 5.0))]
    if threshold is not None:
        points.append(point(schema.SLO_THRESHOLD, threshold[1], slo=threshold[0]))

    coarse = next(each.value for each in essential(points) if each.series.metric is metric)

    assert coarse == Histogram((*stay, math.inf), (*(counts[bounds.index(bound)] for bound in stay), counts[-1]), 5.0)


@pytest.mark.parametrize(
    ("metric", "labels", "beside", "stays"),
    [
        (schema.MODEL_MEMORY, {"engine": "ollama"}, (), True),
        (schema.MODEL_MEMORY, {"engine": "vllm"}, (), False),
        (schema.MODEL_CONTEXT, {"engine": "vllm"}, (), False),
        (schema.REQUEST_PREFILL, {}, (), True),
        (schema.REQUEST_PREFILL, {}, (schema.TIME_TO_FIRST_TOKEN,), True),
        (schema.REQUEST_DECODE, {}, (schema.REQUEST_DURATION,), True),
        (schema.REQUEST_DECODE, {}, (schema.TIME_TO_FIRST_TOKEN, schema.REQUEST_DURATION), False),
        (schema.SOURCE_SAMPLES, {"state": "unknown"}, (), True),
        (schema.SOURCE_SAMPLES, {"state": "unknown_label"}, (), False),
        (schema.ENGINE_STEPS, {}, (), False),
    ],
)
def test_which_series_stay(metric: Metric, labels: dict[str, str], beside: tuple[Metric, ...], *, stays: bool) -> None:
    points = [point(metric, 1.0, **labels), *(point(each, 1.0) for each in beside)]
    assert any(each.series.metric is metric for each in essential(points)) is stays
