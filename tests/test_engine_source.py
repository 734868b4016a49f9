"""An engine as a source: its pace, its price, its layers, and what it is while nobody knows it."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

import bounded
from captures import CAPTURES, Capture, value
from engine_server import EngineServer, Reply, hang, replayed
from llm_headroom import schema
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.objectives import Objectives, OwnObjectives
from llm_headroom.config.settings import Config, Cost, ProxySettings, Target
from llm_headroom.derive import slo
from llm_headroom.derive.economy import Gpus
from llm_headroom.derive.memory import Memory
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.model import Cause, Point, Series
from llm_headroom.poll.engine import EngineSource
from llm_headroom.proxy.service import Proxies

if TYPE_CHECKING:
    from llm_headroom.model import Snapshot

CONFIG = Config(host=False, interval=3.0)
NOWHERE = Target(name="t", endpoint=Endpoint(url="http://127.0.0.1:9"), engine="vllm")
SATURATED = Capture("vllm", "0.32.0", "saturated")
DISAGGREGATED = Capture("sglang", "0.5.23", "saturated")


@pytest.mark.parametrize(
    ("engine", "own", "interval"),
    [("vllm", None, 3.0), ("vllm", 4.0, 4.0), ("ollama", 4.0, 10.0), ("ollama", 30.0, 30.0), (None, 4.0, 4.0)],
)
def test_a_target_is_polled_as_often_as_is_wanted_and_its_engine_bears(
    engine: str | None, own: float | None, interval: float
) -> None:
    target = replace(NOWHERE, engine=engine, interval=own)
    assert EngineSource(target, BUILT_IN, CONFIG).interval == interval


def test_nothing_is_known_of_what_was_not_identified() -> None:
    source = EngineSource(replace(NOWHERE, engine=None), BUILT_IN, CONFIG)
    assert (source.engine, source.models, source.retained, source.capped) == (None, frozenset(), (), {})
    assert source.memory == Memory()
    source.here = (Point(Series(schema.HOST_PROCESSES, {}), 1.0, "host"),)
    assert source.retained == source.here
    known = EngineSource(replace(NOWHERE, engine=None), BUILT_IN, CONFIG, identified="sglang")
    assert known.engine is BUILT_IN["sglang"]
    named = EngineSource(NOWHERE, BUILT_IN, CONFIG, identified="sglang")
    assert named.engine is BUILT_IN["vllm"]

    async def unused() -> None:
        await source.estimate()
        await source.close()

    bounded.run(unused())


def test_who_was_identified_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    collected(replace(NOWHERE, engine=None), CONFIG)
    logged = [(vars(each)["target"], vars(each)["engine"]) for each in caplog.records if each.msg == "identified"]
    assert logged == [("t", "vllm")]


@pytest.mark.parametrize("own", [None, 0.05])
def test_whoever_does_not_answer_is_waited_for_as_long_as_is_wanted(own: float | None) -> None:
    with EngineServer({"*": hang}) as server:
        config = replace(CONFIG, timeout=0.05 if own is None else 3600.0)
        target = replace(NOWHERE, endpoint=Endpoint(url=server.url), engine=None, timeout=own)

        async def test() -> None:
            snapshot = await EngineSource(target, BUILT_IN, config).collect()
            assert snapshot.health.error is not None
            assert (snapshot.target, snapshot.engine, snapshot.points) == ("t", "", ())
            assert snapshot.health.error.cause is Cause.TIMEOUT

        bounded.run(test())


def collected(target: Target, config: Config, gpus: Gpus | None = None) -> Snapshot:
    """The second collection, so that something can have happened between two."""
    found: list[Snapshot] = []

    async def test() -> None:
        with EngineServer(replayed(SATURATED)) as server:
            source = EngineSource(replace(target, endpoint=Endpoint(url=server.url)), BUILT_IN, config)
            source.gpus = gpus
            source.here = (Point(Series(schema.HOST_PROCESSES, {"target": "t"}), 5.0, "host"),)
            await source.collect()
            found.append(await source.collect())
            await source.close()

    bounded.run(test())
    return found[0]


def test_what_part_in_serving_an_engine_has_is_known_while_it_is_down() -> None:
    async def test() -> None:
        with EngineServer(replayed(DISAGGREGATED)) as server:
            target = replace(NOWHERE, engine="sglang", endpoint=Endpoint(url=server.url))
            source = EngineSource(target, BUILT_IN, CONFIG)
            assert not source.retained
            assert value((await source.collect()).points, "llm_engine_role") == 1.0
        assert not (await source.collect()).health.up
        assert value(source.retained, "llm_engine_role") == 1.0
        await source.close()

    bounded.run(test())


DEVICES = Gpus(3, {"GPU-0": (100.0, 1.0)})


@pytest.mark.parametrize(
    ("count", "seen", "gpus", "energy"),
    [(None, None, None, False), (None, DEVICES, 3.0, True), (2, DEVICES, 2.0, True), (2, None, 2.0, False)],
)
def test_the_gpus_of_an_engine_are_those_it_was_seen_on_or_as_many_as_were_said(
    count: int | None, seen: Gpus | None, gpus: float | None, *, energy: bool
) -> None:
    points = collected(replace(NOWHERE, gpu_count=count), CONFIG, seen).points
    assert value(points, "llm_engine_gpus") == gpus
    assert (value(points, "llm_engine_energy_joules_total") is not None) is energy
    assert value(points, "llm_engine_cost_total") is None, "nobody has named a price"
    assert value(points, "llm_host_processes") == 5.0


def test_of_an_engine_that_holds_no_gpu_any_more_nothing_is_said_of_its_gpus() -> None:
    async def test() -> None:
        with EngineServer(replayed(SATURATED)) as server:
            source = EngineSource(replace(NOWHERE, endpoint=Endpoint(url=server.url)), BUILT_IN, CONFIG)
            for gpus, exported in ((DEVICES, False), (DEVICES, True), (None, False)):
                source.gpus = gpus
                names = {point.series.metric.name for point in (await source.collect()).points}
                assert ("llm_engine_energy_joules_total" in names) is exported
            await source.close()

    bounded.run(test())


@pytest.mark.parametrize(
    ("whole", "own", "dearer"), [(None, 3.6, False), (3.6, None, False), (3.6, 7200.0, True), (7200.0, 0.0, False)]
)
def test_the_price_of_a_gpu_is_the_target_s_or_that_of_all(
    whole: float | None, own: float | None, *, dearer: bool
) -> None:
    target = replace(NOWHERE, gpu_hour=own, gpu_count=1, labels={"team": "search"})
    points = collected(target, replace(CONFIG, cost=Cost(gpu_hour=whole, currency="EUR"))).points
    (cost,) = (point for point in points if point.series.metric.name == "llm_engine_cost_total")
    labels = {"engine": "vllm", "target": "t", "team": "search", "currency": "EUR"}
    assert dict(cost.series.labels) == labels
    (count,) = (point for point in points if point.series.metric.name == "llm_engine_gpus")
    assert dict(count.series.labels) == {name: text for name, text in labels.items() if name != "currency"}
    assert isinstance(cost.value, float)
    price = 7200.0 if dearer else (whole if own is None else own) or 0.0
    # Two polls are at least a few milliseconds apart, and less than a minute.
    assert price * 1e-4 / 3600 <= cost.value <= price * 60.0 / 3600


@pytest.mark.parametrize(("purpose", "judged"), [("interactive", True), ("batch", False)])
def test_a_target_for_batches_has_no_objectives(purpose: str, *, judged: bool) -> None:
    points = collected(replace(NOWHERE, purpose=purpose), CONFIG).points  # type: ignore[arg-type]  # one of the words
    assert ("llm_slo_requests_total" in {point.series.metric.name for point in points}) is judged


def test_a_target_is_judged_by_its_own_objectives_and_by_the_others_where_it_has_none() -> None:
    configured = replace(CONFIG, objectives=Objectives(ttft=4.0, ratio=0.9))
    own = replace(NOWHERE, objectives=OwnObjectives(inter_token_latency=0.05, ratio=0.99))
    judged = slo.judging(own, configured.objectives)
    assert {each.name: (each.seconds, each.ratio) for each in judged} == {
        "ttft": (4.0, 0.99),
        "inter_token_latency": (0.05, 0.99),
    }
    points = collected(own, configured).points
    assert {point.value for point in points if point.series.metric.name == "llm_slo_objective_ratio"} == {0.99}


def test_label_values_that_were_capped_are_those_of_the_engine_and_of_the_proxy() -> None:
    metrics = b"".join(b'vllm:num_requests_running{model_name="m%d"} 1\n' % number for number in range(5))

    async def test() -> None:
        with EngineServer({"/metrics": Reply(metrics)}) as server:
            target = replace(NOWHERE, endpoint=Endpoint(url=server.url))
            source = EngineSource(target, BUILT_IN, replace(CONFIG, label_limit=2))
            await source.collect()
            assert source.capped == {"model": 3}
            await source.close()
        target = replace(NOWHERE, engine="ollama")
        proxies = (ProxySettings(listen="127.0.0.1:0", target="t"),)
        config = replace(CONFIG, targets=(target,), proxies=proxies, label_limit=2)
        measures = Proxies(config).joined["t"]
        for number in range(6):
            measures.count(schema.GENERATION_TOKENS, measures.label(f"p{number}"), by=1)
        assert EngineSource(target, BUILT_IN, config, measures).capped == {"model": 4}

    bounded.run(test())


OLLAMA: Final = {
    f"/api/{path}": Reply((CAPTURES / "ollama/0.33.0-rc2" / name).read_bytes(), 200, "application/json")
    for path, name in (
        ("ps", "ps_loaded.json"),
        ("tags", "tags.json"),
        ("show", "show.json"),
        ("version", "version.json"),
    )
}


@pytest.mark.parametrize(("host", "explain", "said"), [(True, True, True), (False, True, False), (True, False, False)])
def test_the_runners_of_ollama_are_looked_for_where_this_host_is_looked_at(
    *, host: bool, explain: bool, said: bool
) -> None:
    async def test() -> None:
        with EngineServer(OLLAMA) as server:
            target = replace(NOWHERE, endpoint=Endpoint(url=server.url), engine="ollama")
            source = EngineSource(target, BUILT_IN, replace(CONFIG, host=host), explain=explain)
            snapshot = await source.collect()
            await source.close()
        assert snapshot.health.up
        assert any("runner" in warning.message for warning in snapshot.health.warnings) is said

    bounded.run(test())
