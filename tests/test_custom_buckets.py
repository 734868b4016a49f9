"""Prometheus 3 can turn histograms into native ones with custom buckets as it scrapes them: what rules then read."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from engine_server import EngineServer, Reply
from llm_headroom import schema
from llm_headroom.commands import programs
from llm_headroom.model import Histogram, point
from llm_headroom.render.prometheus import Format, Renderer, exposition
from programs import prometheus_version
from prometheus_server import DEADLINE, asked

if TYPE_CHECKING:
    from pathlib import Path

FIRST: Final = 3
"""The first Prometheus that has native histograms with custom buckets switched on by a scrape's configuration."""
METRIC: Final = schema.TIME_TO_FIRST_TOKEN
SHOWN: Final = Histogram((0.1, 0.5, 1.0, float("inf")), (10.0, 60.0, 99.0, 100.0), 50.0)


def answered(address: str, query: str) -> list[Any]:
    """What a query finds, as soon as the exporter has been scraped."""
    end = time.monotonic() + DEADLINE
    while not asked(address, "query", query='up{job="llm-headroom"} == 1')["result"]:
        assert time.monotonic() < end
    found: list[Any] = asked(address, "query", query=query)["result"]
    return found


@pytest.mark.parametrize("classic", [True, False])
def test_rules_read_converted_histograms_where_the_classic_ones_stay(tmp_path: Path, classic: bool) -> None:  # noqa: FBT001 - a parameter
    if prometheus_version() < FIRST:
        pytest.skip(f"Prometheus {FIRST} or newer is not installed")
    shown = point(METRIC, SHOWN, "", {"engine": "vllm", "model": "m", "target": "t"})
    body = exposition([Renderer().lines([shown])], Format.TEXT)
    with EngineServer({"*": Reply(body, content_type=Format.TEXT)}) as server:
        scrape = {
            "job_name": "llm-headroom",
            "convert_classic_histograms_to_nhcb": True,
            "always_scrape_classic_histograms": classic,
            "static_configs": [{"targets": [f"127.0.0.1:{server.port}"]}],
        }
        config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [scrape]}
        with programs.prometheus(tmp_path, config, "--enable-feature=native-histograms") as started:
            native = answered(started.address, f"histogram_quantile(0.9, {METRIC.name})")
            buckets = answered(started.address, f"histogram_quantile(0.9, {METRIC.name}_bucket)")

    assert len(native) == 1
    assert [each["value"][1] for each in buckets] == ([native[0]["value"][1]] if classic else [])
