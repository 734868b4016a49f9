"""A configuration that is read again: what proxies measure is judged by the new one from then on."""

from __future__ import annotations

import asyncio
import json
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import bounded
from captures import Capture
from engine_server import EngineServer, replayed
from exporter_process import Exporter
from llm_headroom import schema
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.objectives import Objectives, OwnObjectives
from llm_headroom.config.settings import Config, ProxySettings, Target
from llm_headroom.model import Point, Series
from llm_headroom.proxy import framing
from llm_headroom.proxy.exchange import Exchange
from llm_headroom.proxy.service import Proxies

if TYPE_CHECKING:
    from pathlib import Path

    from llm_headroom.proxy.measures import Measures

TARGET = Target(name="a", endpoint=Endpoint(url="http://127.0.0.1:1"), engine="vllm")
CONFIG = Config(targets=(TARGET,), proxies=(ProxySettings(listen="127.0.0.1:0", target="a"),))


def asked(measures: Measures, at: float) -> Exchange:
    """A stream that was asked for."""
    exchange = Exchange(measures, framing.request_head(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n\r\n"))
    exchange.asks(b'{"model":"m","stream":true}')
    exchange.sent(at)
    return exchange


def answered(measures: Measures, seconds: float) -> None:
    """A stream whose first token came after so many seconds."""
    exchange = asked(measures, 1.0)
    exchange.answers(framing.ResponseHead(200, {"content-type": "text/event-stream"}), 1.0)
    event = {"model": "m", "choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]}
    exchange.received(f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode(), 1.0 + seconds)
    exchange.ended(1.0 + seconds)


class Read:
    """What the one source of some proxies says at each collection."""

    def __init__(self, proxies: Proxies) -> None:
        (self._source,) = proxies.sources

    async def values(self, slo: str) -> dict[str, float]:
        """Values of metrics of one objective."""
        points = (await self._source.collect()).points
        return {
            each.series.metric.name: each.value
            for each in points
            if isinstance(each.value, float) and each.series.label("slo") == slo and each.series.label("model")
        }


@pytest.mark.parametrize(
    "change",
    [
        {"objectives": Objectives(ttft=1.0, ratio=0.9)},
        {"targets": (replace(TARGET, objectives=OwnObjectives(ttft=1.0, ratio=0.9)),)},
    ],
)
def test_what_comes_after_a_reload_is_judged_by_the_new_objectives(change: dict[str, Any]) -> None:
    async def test() -> None:
        proxies = Proxies(CONFIG, clock=lambda: 100.0)
        (source,) = proxies.sources
        read = Read(proxies)
        for _ in range(5):
            answered(source.measures, 0.1)
            await read.values("ttft")
        for _ in range(7):
            answered(source.measures, 2.0)
        assert await proxies.apply(replace(CONFIG, **change))
        assert (await read.values("ttft"))["llm_slo_requests_total"] == 0
        answered(source.measures, 2.0)
        answered(source.measures, 0.1)
        waits = asked(source.measures, 98.0)
        found = await read.values("ttft")
        assert found["llm_slo_requests_total"] == 2
        assert found["llm_slo_requests_good_total"] == 1
        assert found["llm_slo_threshold_seconds"] == 1.0
        assert found["llm_slo_objective_ratio"] == 0.9
        assert found["llm_proxy_requests_overdue"] == 1
        assert (await read.values("availability"))["llm_slo_objective_ratio"] == 0.9
        waits.broken("aborted", 99.5)
        assert (await read.values("ttft"))["llm_proxy_requests_missed_total"] == 1

    bounded.run(test())


def test_batches_are_judged_no_longer_and_a_limit_holds_at_once() -> None:
    async def test() -> None:
        proxies = Proxies(CONFIG, clock=lambda: 100.0)
        (source,) = proxies.sources
        read = Read(proxies)
        answered(source.measures, 0.1)
        assert await read.values("ttft")
        asked(source.measures, 1.0)
        asked(source.measures, 1.0).broken("aborted", 50.0)
        target = replace(TARGET, purpose="batch", requests_running_limit=1)
        assert await proxies.apply(replace(CONFIG, targets=(target,), interval=7.0, label_limit=3))
        assert not (await read.values("ttft")).keys() - {"llm_proxy_requests_missed_total"}
        asked(source.measures, 1.0)
        points = (await source.collect()).points
        assert [each.value for each in points if each.series.metric is schema.REQUESTS_WAITING] == [1.0]
        assert source.interval == 7.0
        assert source.measures.cap.limit == 3

    bounded.run(test())


def test_what_stands_among_the_series_of_its_engine_is_judged_by_the_new_objectives_too() -> None:
    target = replace(TARGET, engine="ollama")
    config = replace(CONFIG, targets=(target,))
    proxies = Proxies(config, clock=lambda: 400.0)
    measures = proxies.joined["a"]
    measures.label("m:latest")
    loaded = [Point(Series(schema.MODEL_LOADED, {"model": "m:latest"}), 1.0, "")]
    measures.points({}, loaded)
    asked(measures, 398.0)

    def overdue() -> list[object]:
        points = measures.points({}, loaded)
        return [each.value for each in points if each.series.metric is schema.PROXY_OVERDUE]

    assert overdue() == [0.0]
    assert asyncio.run(proxies.apply(replace(config, objectives=Objectives(ttft=1.0))))
    assert overdue() == [1.0]


@pytest.mark.parametrize(
    ("targets", "whole"),
    [
        ((replace(TARGET, timeout=1.0),), True),
        ((replace(TARGET, endpoint=Endpoint(url="http://127.0.0.1:2")),), False),
        ((replace(TARGET, engine="sglang"),), False),
        ((replace(TARGET, labels={"team": "x"}),), False),
        ((), False),
    ],
)
def test_what_a_proxy_cannot_take_over_is_said(targets: tuple[Target, ...], *, whole: bool) -> None:
    assert asyncio.run(Proxies(CONFIG).apply(replace(CONFIG, targets=targets))) is whole


@pytest.mark.waits(5)
def test_sighup_reaches_proxies(tmp_path: Path) -> None:
    path = tmp_path / "headroom.yml"

    def written(ttft: str, url: str) -> None:
        path.write_text(
            "interval: 100ms\ngpu: false\ndiscover: false\n"
            f"targets: [{{url: '{url}', engine: vllm, name: a, objectives: {{ttft: {ttft}}}}}]\n"
            "proxies: [{listen: '127.0.0.1:0', target: a}]\n"
        )

    with EngineServer(replayed(Capture("vllm", "0.32.0", "saturated"))) as engine:
        written("1s", engine.url)
        with Exporter("--config", str(path)) as exporter:
            exporter.until(lambda: exporter.value("llm_slo_threshold_seconds", target="a", slo="ttft") == 1.0)
            written("5s", engine.url.replace("127.0.0.1", "localhost"))
            exporter.process.send_signal(signal.SIGHUP)
            exporter.until(lambda: exporter.value("llm_slo_threshold_seconds", target="a", slo="ttft") == 5.0)
            assert exporter.logged("not applied, restart required")["keys"] == "proxies"
