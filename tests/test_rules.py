"""Rules of a configuration over what engines expose: nothing stands there twice, and two series can be multiplied."""

from __future__ import annotations

import asyncio
import json
import random
from typing import TYPE_CHECKING

import pytest

import captures
from captures import Capture, value, values
from engine_server import EngineServer, Reply, replayed
from llm_headroom import schema
from llm_headroom.config.errors import ConfigError
from llm_headroom.config.load import load
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.model import Kind
from llm_headroom.poll.engine import EngineSource
from llm_headroom.scrape import catalog

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from llm_headroom.config.settings import Config
    from llm_headroom.engines.rules import Engine
    from llm_headroom.model import Metric, Point, Snapshot

EXPOSED = tuple(metric for metric in schema.ALL if metric.exposed_by_engines)
OTHERS = tuple(metric for metric in schema.ALL if not metric.exposed_by_engines)


def configured(tmp_path: Path, text: str) -> Config:
    """What a file says."""
    path = tmp_path / "headroom.yml"
    path.write_text(text, encoding="utf-8")
    return load(path, engine_names=BUILT_IN)


def collected(config: Config) -> Snapshot:
    """One collection of the configuration's only target."""

    async def collect() -> Snapshot:
        (target,) = config.targets
        source = EngineSource(target, catalog.engines(config), config)
        snapshot = await source.collect()
        await source.close()
        return snapshot

    snapshot = asyncio.run(collect())
    assert snapshot.health.error is None
    return snapshot


# Whose metric it is --------------------------------------------------------------------------------------------------
def generated(capture: Capture, dice: random.Random) -> list[dict[str, object]]:
    """A rule for every metric that engines may expose, over names and labels that the capture has."""
    keys = captures.parsed(capture.exposition).layout.keys
    rules: list[dict[str, object]] = []
    for metric in EXPOSED:
        some = dice.sample(keys, min(3, len(keys)))
        upstream = sorted({name for key in some for name, _ in key.labels} - {"le"})
        ours = sorted(set(metric.labels) - {"engine", "target"})
        labels = dict(zip(dice.sample(upstream, min(len(upstream), len(ours), 2)), ours, strict=False))
        names = [key.name.removesuffix("_bucket") for key in some]
        combine = "sum" if metric.kind is Kind.HISTOGRAM else dice.choice(["sum", "max"])
        rules.append({"metric": metric.name, "names": names, "labels": labels, "combine": combine})
    return rules


@pytest.mark.parametrize("capture", captures.ALL, ids=str)
def test_no_series_stands_there_twice_whatever_rules_a_user_adds(tmp_path: Path, capture: Capture) -> None:
    rules = generated(capture, random.Random(str(capture)))
    with EngineServer(replayed(capture)) as server:
        document = {
            "targets": [{"url": server.url, "name": "t", "engine": capture.engine}],
            "mappings": {capture.engine: rules},
        }
        snapshot = collected(configured(tmp_path, json.dumps(document)))

    series = [point.series for point in snapshot.points]
    assert len(series) == len(set(series))
    assert len(series) > len(EXPOSED) / 4


@pytest.mark.parametrize("metric", OTHERS, ids=lambda metric: metric.name)
def test_a_rule_for_what_others_give_is_refused_with_file_key_and_metric(tmp_path: Path, metric: Metric) -> None:
    with pytest.raises(ConfigError) as refused:
        configured(tmp_path, f"engines: {{mine: {{rules: [{{metric: {metric.name}, names: [x]}}]}}}}")

    where = f"{tmp_path}/headroom.yml:1: engines.mine.rules[0].metric: "
    assert str(refused.value).startswith(f"{where}{metric.name!r} is not a metric that an engine can provide")


def test_the_version_that_a_rule_gives_is_the_only_one(tmp_path: Path) -> None:
    capture = Capture("vllm", "0.32.0", "saturated")
    rule = "{metric: llm_engine_info, names: ['vllm:cache_config_info'], labels: {block_size: version}}"
    with EngineServer(replayed(capture)) as server:
        config = configured(tmp_path, f"targets: ['vllm={server.url}']\nmappings: {{vllm: [{rule}]}}")
        points = collected(config).points

    assert list(values(points, "llm_engine_info", "version")) == ["32"]


# Products ------------------------------------------------------------------------------------------------------------
BLOCKS = "engines: {mine: {model_label: m, replica_label: r, rules: [{RULE}]}}".replace(
    "RULE", "metric: llm_kv_cache_capacity_tokens, names: [old_blocks, blocks], times: [old_size, size]"
)


def mine(tmp_path: Path, text: str = BLOCKS) -> Engine:
    """The engine that a configuration defines."""
    return catalog.engines(configured(tmp_path, text))["mine"]


def product(tmp_path: Path, *lines: str) -> Iterable[Point]:
    """What `BLOCKS` makes of an exposition."""
    return captures.mapped(mine(tmp_path), "".join(f"{line}\n" for line in lines).encode())


def test_two_series_are_multiplied(tmp_path: Path) -> None:
    points = product(tmp_path, 'blocks{m="a"} 6048', 'size{m="a"} 32')

    assert value(points, "llm_kv_cache_capacity_tokens") == 193_536.0
    assert captures.origin(points, "llm_kv_cache_capacity_tokens") == "blocks × size"


@pytest.mark.parametrize(
    ("one", "other", "both"), [("0.5", "8", 4.0), ("8", "0.5", 4.0), ("0", "5", 0.0), ("5", "0", 0.0)]
)
def test_factors_may_be_small_or_nothing(tmp_path: Path, one: str, other: str, both: float) -> None:
    points = product(tmp_path, f"blocks {one}", f"size {other}")

    assert value(points, "llm_kv_cache_capacity_tokens") == both


def test_the_order_of_labels_does_not_matter(tmp_path: Path) -> None:
    points = product(tmp_path, 'blocks{m="a",x="b"} 3', 'size{x="b",m="a"} 4')

    assert value(points, "llm_kv_cache_capacity_tokens") == 12.0


@pytest.mark.parametrize(
    "lines",
    [
        ("blocks 6048",),
        ("size 32",),
        ('blocks{m="a"} 6048', 'size{m="b"} 32'),
        ('blocks{m="a"} 6048', "size 32"),
        ("blocks 6048", "size NaN"),
        ("blocks -1", "size -1"),
        ("blocks 1e300", "size 1e300"),
    ],
    ids=["no second", "no first", "another's", "other labels", "NaN", "two negative ones", "too large"],
)
def test_a_product_is_absent_without_both(tmp_path: Path, lines: tuple[str, ...]) -> None:
    assert value(product(tmp_path, *lines), "llm_kv_cache_capacity_tokens") is None


def test_each_series_has_its_own_factor_before_several_are_added(tmp_path: Path) -> None:
    """10 × 2 + 20 × 3 of one model; the other replica of another one is missing its factor, so all of it is absent."""
    points = product(
        tmp_path,
        *('blocks{m="a",pool="1"} 10', 'blocks{m="a",pool="2"} 20', 'size{m="a",pool="1"} 2', 'size{m="a",pool="2"} 3'),
        *('blocks{m="b",pool="1"} 10', 'blocks{m="b",pool="2"} 20', 'size{m="b",pool="1"} 2'),
    )

    assert values(points, "llm_kv_cache_capacity_tokens", "model") == {"a": 80.0}


def test_replicas_are_multiplied_each_on_its_own(tmp_path: Path) -> None:
    lines = (f'{name}{{m="a",r="{rank}"}} {rank + 2}' for name in ("blocks", "size") for rank in (0, 1))
    points = product(tmp_path, *lines)

    assert values(points, "llm_kv_cache_capacity_tokens", "replica") == {"0": 4.0, "1": 9.0}


def test_both_names_of_a_product_are_mapped_ones(tmp_path: Path) -> None:
    with EngineServer({"/metrics": Reply(b"blocks 1\nsize 2\nelse 3\n")}) as server:
        text = f"targets: [{{url: '{server.url}', engine: mine}}]\n{BLOCKS}"
        health = collected(configured(tmp_path, text)).health

    assert health.unmapped == ("else",)
