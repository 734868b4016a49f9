"""In which order an engine's documents are asked for, and what each one's failure costs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from captures import value
from engine_server import EngineServer, Reply, as_json, hang
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Target
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.engines.rules import Document, always
from llm_headroom.model import Cause, Snapshot
from llm_headroom.scrape.collect import Collector
from llm_headroom.scrape.credentials import HINT

if TYPE_CHECKING:
    from engine_server import Behaviour

ENGINE = replace(
    BUILT_IN["vllm"],
    documents=always(
        Document(key="extra", path="/extra", optional=True, form=dict),
        Document(key="metrics", path="/metrics", text=True),
        Document(key="first", path="/first", leads=True, form=dict),
    ),
)
METRICS = Reply(b'vllm:num_requests_running{model_name="m"} 4\n')
SOUND: dict[str, Reply | Behaviour] = {"/extra": as_json({}), "/metrics": METRICS, "/first": as_json({})}


def collected(**broken: Reply | Behaviour) -> tuple[Snapshot, list[str]]:
    """One collection where some documents, by key, are answered otherwise; and the paths that were asked for."""

    async def collect(server: EngineServer) -> Snapshot:
        target = Target(name="t", endpoint=Endpoint(url=server.url))
        collector = Collector(target, ENGINE, timeout=1.0, label_limit=10)
        try:
            return await collector.collect()
        finally:
            await collector.close()

    with EngineServer(SOUND | {f"/{key}": reply for key, reply in broken.items()}) as server:
        return asyncio.run(collect(server)), [path for _, path in server.requests]


def test_what_others_depend_on_comes_first_and_what_is_optional_last() -> None:
    assert collected()[1] == ["/first", "/metrics", "/extra"]


def test_an_optional_document_that_hangs_costs_only_itself() -> None:
    snapshot, _ = collected(extra=hang)

    assert snapshot.health.up
    assert value(snapshot.points, "llm_requests_running") == 4.0
    assert [warning.cause for warning in snapshot.health.warnings] == [Cause.TIMEOUT]


@pytest.mark.parametrize(
    ("key", "status", "cause"),
    [
        ("metrics", 401, Cause.AUTH),
        ("metrics", 403, Cause.AUTH),
        ("metrics", 500, Cause.STATUS),
        ("first", 401, Cause.AUTH),
        ("first", 403, Cause.AUTH),
    ],
)
def test_a_required_document_that_is_refused_takes_the_source_down(key: str, status: int, cause: Cause) -> None:
    snapshot, asked = collected(**{key: Reply(b"no", status)})

    assert not snapshot.health.up
    assert snapshot.points == ()
    assert snapshot.health.error is not None
    assert snapshot.health.error.cause is cause
    assert f"/{key} answered {status}" in snapshot.health.error.message
    assert "/extra" not in asked


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (401, HINT),
        (403, HINT),
        (404, "is this the right engine and port?"),
        (500, ""),
        (503, "the engine is loading or overloaded"),
    ],
)
def test_a_refusal_says_what_to_do(status: int, hint: str) -> None:
    error = collected(metrics=Reply(b"no", status))[0].health.error

    assert error is not None
    assert error.message.partition(f"/metrics answered {status}")[2] == (f": {hint}" if hint else "")


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_an_optional_document_that_is_refused_is_a_warning(status: int) -> None:
    snapshot, _ = collected(extra=Reply(b"no", status))

    assert snapshot.health.up
    (warning,) = snapshot.health.warnings
    assert f"/extra answered {status}" in warning.message
