"""Half an hour of every series that the schema knows, with values that follow from its name and labels alone.

Two hosts with two targets and a GPU each go on; a third one's exporter ends ten minutes before the end. Counters grow
evenly, gauges stay: what a query gives is known exactly, and changes with nothing but the query. Much later nothing is
known but that one engine is up and one is down.
"""

from __future__ import annotations

import subprocess
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Final
from zlib import crc32

from llm_headroom import schema
from llm_headroom.bundle.alerts import RECORDINGS
from llm_headroom.bundle.rule import DOWN
from llm_headroom.model import (
    ENGINE_STATES,
    GPU_STATES,
    Histogram,
    Kind,
    Metric,
    Point,
    SampleState,
    Series,
    Subject,
)
from programs import program

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

END: Final = 1_767_225_600
"""Unix time of the last sample."""
ALONE: Final = END + 7200
"""When nothing is known but that a source is up and one is down."""
STEP: Final = 30
STEPS: Final = 60
DEAD: Final = 20
"""Steps from the end at which the third exporter has its last sample."""
HOSTS: Final = {"a": STEPS, "b": STEPS, "dead": STEPS - DEAD}
NAMESPACES: Final = ("n", "o")
"""An exporter is scraped twice, by jobs of two namespaces: what it exposes is there twice, and differs."""
TARGETS: Final = (("vllm", "m", "one:8000", ("0", "1")), ("ollama", "n", "two:11434", ("",)))
NONE: Final = ("", "", "", ("",))
BOUNDS: Final = {"0.1": 0.3, "0.5": 0.6, "1.0": 0.9, "5.0": 0.99, "+Inf": 1.0}
"""Of every histogram's buckets, with the share of the observations up to each."""
VALUES: Final[Mapping[str, tuple[str, ...]]] = {
    "cause": ("refused", "timeout"),
    "code": ("2xx", "5xx"),
    "domain": ("sm", "memory"),
    "kind": ("weights", "kv_cache", "kv_used", "kv_evictable", "kv_free", "graph", "other", "total", "device"),
    "memory": ("gpu", "host"),
    "objective": ("ttft", "inter_token_latency"),
    "reason": ("stop", "abort", "error", "hw_thermal"),
    "resource": ("kv_cache", "compute", "concurrency", "max"),
    "sensor": ("gpu", "memory"),
    "severity": ("corrected", "uncorrected"),
    "slo": ("ttft", "inter_token_latency"),
    "window": ("60s", "300s"),
    "xid": ("31", "79", "94"),
}
"""Of labels by which dashboards select; any other one has one value."""
STATES: Final[Mapping[Metric, tuple[str, ...]]] = {
    schema.ENGINE_STATE: tuple(map(str, ENGINE_STATES)),
    schema.GPU_STATE: tuple(map(str, GPU_STATES)),
    schema.SOURCE_SAMPLES: tuple(map(str, SampleState)),
}
FLAGS: Final = frozenset({schema.UP, schema.MODEL_LOADED})
_PLACE: Final = ("engine", "model", "target", "replica", "gpu", "uuid", "state")


def _text(labels: Mapping[str, str]) -> str:
    return ",".join(f'{name}="{value}"' for name, value in labels.items() if value)


def _drawn(name: str, labels: str) -> int:
    """A number of 20 to 119 that follows from the series."""
    return 20 + crc32(f"{name}{{{labels}}}".encode()) % 100


def _up_to(share: float, drawn: int) -> float:
    """Of so many observations those in a bucket; not of every series the same part, so that a quantile is of all."""
    return share ** (1 + drawn % 2) * drawn


def _value(metric: Metric, drawn: int, step: int) -> float:
    if metric.kind is Kind.COUNTER:
        return drawn / 10.0 * step * STEP
    if metric.name.endswith("timestamp_seconds"):
        return float(END + (60 if "expiry" in metric.name or "not_after" in metric.name else -60) * drawn)
    scale = {"1": 0.008, "By": 1e9, "s": 0.01}.get(metric.unit, 1.0)
    return drawn * scale


def _own(metric: Metric, host: str) -> Iterator[dict[str, str]]:
    """The labels of a metric's series of one host."""
    others = [name for name in metric.labels if name not in _PLACE]
    targets = TARGETS if "target" in metric.labels else (NONE,)
    if metric.subject is Subject.GPU and "utilization" in metric.name and "target" in metric.labels:
        targets = (TARGETS[0], NONE)  # an engine may report what NVML does
    states = STATES.get(metric) or ("active" if "state" in metric.labels else "",)
    for engine, model, target, replicas in targets:
        for replica in replicas if "replica" in metric.labels else ("",):
            known = {"engine": engine, "model": model, "target": target, "replica": replica}
            known |= {"gpu": "0", "uuid": f"GPU-{host}"}
            fixed = {name: known[name] for name in metric.labels if name in known}
            for state, *chosen in product(states, *(VALUES.get(name, ("x",)) for name in others)):
                yield fixed | ({"state": state} if state else {}) | dict(zip(others, chosen, strict=True))


def _schema(host: str, place: dict[str, str], steps: int) -> Iterator[tuple[str, list[float]]]:
    for metric in schema.ALL:
        for own in _own(metric, host):
            labels = _text(place | own)
            drawn = _drawn(metric.name, labels)
            if metric.kind is Kind.HISTOGRAM:
                for bound, share in BOUNDS.items():
                    counts = [_up_to(share, drawn) * step for step in range(steps)]
                    yield f'{metric.name}_bucket{{{labels},le="{bound}"}}', counts
                yield f"{metric.name}_count{{{labels}}}", counts
                yield f"{metric.name}_sum{{{labels}}}", [0.7 * count for count in counts]
                continue
            if metric in STATES and metric is not schema.SOURCE_SAMPLES:
                same = _text(place | own | {"state": ""})
                worst = place["instance"].startswith("dead") and place["namespace"] == "o"
                chosen = STATES[metric][0 if worst else _drawn(metric.name, same) % len(STATES[metric])]
                yield f"{metric.name}{{{labels}}}", [float(own["state"] == chosen)] * steps
                continue
            if metric.name.endswith("_info") or metric in FLAGS:
                again = place["namespace"] == "o"
                yield f"{metric.name}{{{labels}}}", [float(own.get("engine") == "vllm" or host == "a" or again)] * steps
                continue
            yield f"{metric.name}{{{labels}}}", [_value(metric, drawn, step) for step in range(steps)]


def _prometheus(place: dict[str, str], steps: int) -> Iterator[tuple[str, list[float]]]:
    """What Prometheus and its rules add."""
    labels = _text(place)
    yield f"up{{{labels}}}", [1.0] * steps + [0.0] * (STEPS - steps)
    for name in ("scrape_samples_scraped", "scrape_duration_seconds"):
        yield f"{name}{{{labels}}}", [float(_drawn(name, labels))] * steps
    yield f'llm_up{{{labels},engine="nvml",target="gpu"}}', [1.0] * steps
    for engine, _, target, _ in TARGETS:
        yield f'{DOWN}{{{labels},engine="{engine}",target="{target}"}}', [0.0] * steps
    for severity, alert, hosts in (("page", "LLMExporterDown", "dead"), ("ticket", "LLMKVHeadroomLow", "a b")):
        if place["instance"].removesuffix(":9836") not in hosts.split():
            continue
        where = f'{labels},alertname="{alert}",alertstate="firing",severity="{severity}",engine="vllm",model="m"'
        yield f"ALERTS{{{where}}}", [1.0] * STEPS


def _recorded() -> Iterator[tuple[str, list[float]]]:
    for rule, namespace in product((one for one in RECORDINGS if one.name != DOWN), NAMESPACES):
        for engine, model, target, _ in TARGETS:
            labels = f'cluster="c",namespace="{namespace}",job="llm-headroom",engine="{engine}",model="{model}"'
            drawn = _drawn(rule.name, labels)
            labels += f',instance="a:9836",target="{target}"' if rule.name.startswith("target_model:") else ""
            if "_bucket:" in rule.name:
                for bound, share in BOUNDS.items():
                    yield f'{rule.name}{{{labels},le="{bound}"}}', [_up_to(share, drawn)] * STEPS
            else:
                labels += ',slo="ttft"' if "slo" in rule.name else ""
                yield f"{rule.name}{{{labels}}}", [drawn * (0.008 if "ratio" in rule.name else 1.0)] * STEPS


def series() -> Iterator[tuple[str, list[float]]]:
    """Each series with its values, from the first step on."""
    for host, namespace in product(HOSTS, NAMESPACES):
        steps = HOSTS[host]
        place = {"cluster": "c", "namespace": namespace, "job": "llm-headroom", "instance": f"{host}:9836"}
        yield from _schema(host, place, steps)
        yield from _prometheus(place, steps)
    yield from _recorded()


def _alone() -> Iterator[tuple[str, list[float]]]:
    place = 'cluster="c",namespace="n",job="llm-headroom",instance="a:9836"'
    yield f"up{{{place}}}", [1.0] * STEPS
    for engine, up in (("vllm", 1.0), ("ollama", 0.0), ("nvml", 1.0)):
        yield f'llm_up{{{place},engine="{engine}",target="{engine}"}}', [up] * STEPS


@cache
def _series(host: str, target: str, subject: Subject) -> tuple[tuple[Series, int], ...]:
    """The series of a target, with what their values follow from."""
    return tuple(
        (Series(metric, {name: value for name, value in own.items() if value}), _drawn(metric.name, _text(own)))
        for metric in schema.ALL
        for own in _own(metric, host)
        if own.get("target", "") == target and _of(metric) is subject
    )


def _of(metric: Metric) -> Subject:
    return metric.subject if metric.subject in {Subject.GPU, Subject.ROUTER} else Subject.ENGINE


@cache
def points(host: str, target: str, subject: Subject, step: int) -> tuple[Point, ...]:
    """What a target exposes at a step as an engine or a router, or for no target what is known of its host's GPU."""
    series = _series(host, target, subject)
    return tuple(Point(each, _content(each.metric, drawn, step), "test") for each, drawn in series)


def _content(metric: Metric, drawn: int, step: int) -> float | Histogram:
    if metric.kind is not Kind.HISTOGRAM:
        return _value(metric, drawn, step)
    counts = tuple(round(share * drawn * step) * 1.0 for share in BOUNDS.values())
    return Histogram(tuple(map(float, BOUNDS)), counts, 0.7 * counts[-1])


def write(folder: Path) -> None:
    """Make Prometheus' blocks of them, in `data` below a folder."""
    with (folder / "samples").open("w", encoding="utf-8") as file:
        for end, some in ((END, series()), (ALONE, _alone())):
            start = end - STEP * (STEPS - 1)
            for name, values in some:
                file.writelines(f"{name} {value:.10g} {start + STEP * step}\n" for step, value in enumerate(values))
        file.write("# EOF\n")
    promtool = program("promtool", "prometheus")
    command = [promtool, "tsdb", "create-blocks-from", "openmetrics", "--quiet", "samples", "data"]
    subprocess.run(command, cwd=folder, check=True)
