"""What the exporter makes of each capture, byte for byte. `pytest --update` writes the files; review the diff."""

from __future__ import annotations

import asyncio
import shutil
import subprocess

import pytest

import captures
from captures import Capture
from engine_server import EngineServer, replayed
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Target
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.render.prometheus import Format, Renderer, exposition
from llm_headroom.scrape.collect import Collector

OLLAMA = tuple(
    Capture("ollama", "0.33.0-rc2", state) for state in ("ps_empty", "ps_loaded", "ps_keepalive_forever_q8", "ps_after")
)
ALL = (*captures.ALL, *OLLAMA)


def collected(capture: Capture) -> str:
    """One collection of a server that answers as captured, rendered."""

    async def collect() -> str:
        with EngineServer(replayed(capture)) as server:
            target = Target(name="target", endpoint=Endpoint(url=server.url))
            collector = Collector(target, BUILT_IN[capture.engine], timeout=30, label_limit=200)
            snapshot = await collector.collect()
            await collector.close()
        assert snapshot.health.error is None
        return exposition([Renderer().lines(snapshot.points)], Format.TEXT).decode()

    return asyncio.run(collect())


@pytest.mark.parametrize("capture", ALL, ids=str)
def test_a_capture_gives_what_it_should(capture: Capture, update: bool) -> None:  # noqa: FBT001 - a fixture
    found = collected(capture)
    if update:
        capture.expected.write_text(found)

    assert found == capture.expected.read_text()


@pytest.mark.parametrize("capture", ALL, ids=str)
def test_promtool_finds_nothing(capture: Capture) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing: install the Debian package `prometheus`")
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=capture.expected.read_bytes(), capture_output=True, check=False
    )

    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
