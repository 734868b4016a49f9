"""llama.cpp's server as people run it: slots that share a cache, sleep, and many models behind one port."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

import field_inputs
from captures import value, values
from engine_server import EngineServer, Reply, as_json, garbage, going_on
from exporter_process import check
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Target
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.engines.built_in.llamacpp import PROCESS
from llm_headroom.host import runners
from llm_headroom.host.proc import Proc
from llm_headroom.scrape.collect import Collector
from llm_headroom.scrape.layers import Reported
from llm_headroom.scrape.llama_server import ServerLayer
from llm_headroom.scrape.visitors import LONGEST, PATIENCE, Visitors
from one_target import polled
from proc_tree import ProcTree

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from llm_headroom.scrape.layers import Layer

METRICS = Reply(
    b"# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing 0\n"
    b"# TYPE llamacpp:tokens_predicted_total counter\nllamacpp:tokens_predicted_total 20\n"
)
MODEL = as_json({"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "llamacpp"}]})


def slots(number: int) -> Reply:
    """Idle slots of 4096 tokens."""
    return as_json(
        [{"id": each, "n_ctx": 4096, "is_processing": False, "n_prompt_tokens": 9} for each in range(number)]
    )


def properties(*, asleep: bool | None = None) -> Reply:
    """`/props` of a build that can sleep, or of one from before."""
    known = {"total_slots": 4, "model_alias": "m", "model_path": "/m.gguf", "build_info": "b10600"}
    return as_json(known if asleep is None else {**known, "is_sleeping": asleep})


class Seen:
    """A layer that has found the process."""

    def __init__(self, *, unified: bool) -> None:
        self.unified = unified

    async def read(self, documents: Mapping[str, Any], deadline: float) -> Reported:
        """How its slots are kept."""
        del documents, deadline
        return Reported(documents={PROCESS: self.unified})

    async def close(self) -> None:
        """Nothing is open."""


def test_a_server_that_sleeps_is_left_alone_and_says_so() -> None:
    routes = {"/props": properties(asleep=True), "/slots": slots(4), "/metrics": METRICS, "/v1/models": MODEL}
    snapshot, asked = polled("llamacpp", routes, polls=3)

    assert snapshot.health.up
    assert asked == ["/props", "/v1/models", "/props", "/props"]
    assert values(snapshot.points, "llm_model_asleep", "model") == {"m": 1.0}
    assert values(snapshot.points, "llm_model_loaded", "model") == {"m": 0.0}
    assert value(snapshot.points, "llm_requests_running") is None


def test_a_server_that_has_fallen_asleep_since_the_last_poll_is_not_woken() -> None:
    async def asked() -> list[str]:
        routes = {"/props": properties(asleep=False), "/slots": slots(4), "/metrics": METRICS, "/v1/models": MODEL}
        with EngineServer(routes) as server:
            target = Target(name="t", endpoint=Endpoint(url=server.url))
            collector = Collector(target, BUILT_IN["llamacpp"], timeout=30, label_limit=200)
            await collector.collect()
            before = len(server.requests)
            server.routes["/props"] = properties(asleep=True)
            await collector.collect()
            await collector.close()
            return [path for _, path in server.requests[before:]]

    assert asyncio.run(asked()) == ["/props"]


def test_a_server_that_no_longer_answers_is_down_and_not_silent() -> None:
    snapshot, _ = polled("llamacpp", dict.fromkeys(("/props", "/v1/models", "/slots", "/metrics"), garbage))

    assert not snapshot.health.up
    assert snapshot.points == ()


def test_a_server_that_is_still_loading_is_not_up() -> None:
    loading = as_json({"error": {"code": 503, "message": "Loading model"}}, status=503)

    snapshot, _ = polled("llamacpp", dict.fromkeys(("/props", "/v1/models", "/slots", "/metrics"), loading))

    assert not snapshot.health.up
    assert snapshot.health.error is not None
    assert "loading" in snapshot.health.error.message


def test_an_awake_server_and_a_build_that_cannot_sleep_are_read_at_each_poll() -> None:
    for asleep in (False, None):
        metrics = going_on(METRICS.body, "llamacpp:tokens_predicted_total")
        others = {"/props": properties(asleep=asleep), "/slots": slots(4), "/v1/models": MODEL}
        snapshot, asked = polled("llamacpp", {**others, "/metrics": metrics}, polls=3)

        assert (asked.count("/slots"), asked.count("/metrics"), asked[0]) == (3, 3, "/props")
        assert value(snapshot.points, "llm_generation_tokens_total") == 22
        assert values(snapshot.points, "llm_model_loaded", "model") == {"m": 1.0}


def test_an_awake_server_on_another_host_gives_its_figures_while_it_is_asked() -> None:
    async def running() -> list[object]:
        routes = {"/props": properties(asleep=False), "/slots": slots(4), "/metrics": METRICS, "/v1/models": MODEL}
        with EngineServer(routes) as server:
            url = f"http://192.0.2.9:{Endpoint(url=server.url).port}"
            target = Target(name="t", endpoint=Endpoint(url=url, address="127.0.0.1"))
            collector = Collector(target, BUILT_IN["llamacpp"], timeout=30, label_limit=200)
            found = [value((await collector.collect()).points, "llm_generation_tokens_total") for _ in range(2)]
            await collector.close()
            return list(found)

    assert asyncio.run(running()) == [20.0, 20.0]


@pytest.mark.parametrize(("host", "left_alone"), [("127.0.0.1", 20.0), ("192.0.2.9", None)])
def test_of_a_quiet_server_that_is_left_alone_figures_stay_only_where_every_client_would_be_seen(
    host: str, left_alone: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def generated() -> tuple[list[object], list[str]]:
        routes = {"/props": properties(asleep=False), "/slots": slots(4), "/metrics": METRICS, "/v1/models": MODEL}
        with EngineServer(routes) as server:
            url = f"http://{host}:{Endpoint(url=server.url).port}"
            target = Target(name="t", endpoint=Endpoint(url=url, address="127.0.0.1"))
            collector = Collector(target, BUILT_IN["llamacpp"], timeout=30, label_limit=200)
            snapshots = [await collector.collect() for _ in range(4)]
            await collector.close()
            assert all(each.health.up for each in snapshots)
            found = [value(each.points, "llm_generation_tokens_total") for each in snapshots]
            return list(found), [path for _, path in server.requests]

    monkeypatch.setattr("llm_headroom.scrape.visitors.PATIENCE", 0.0)  # left alone as soon as a second answer is alike
    found, asked = asyncio.run(generated())
    assert found == [20.0, 20.0, left_alone, left_alone]
    assert (asked.count("/props"), asked.count("/slots"), asked.count("/metrics")) == (4, 2, 2)


def test_the_quieter_an_engine_the_longer_it_is_left_alone(tmp_path: Path) -> None:
    tree = ProcTree(tmp_path)
    elsewhere = Visitors(Endpoint(url="http://192.0.2.9:8080"), tree.proc)
    elsewhere.work_seen(0.0)
    assert not elsewhere.seen_all
    assert [elsewhere.quiet_for(now) for now in (0.0, PATIENCE - 1, 60.0, 1e6)] == [0.0, 0.0, 60.0, LONGEST]

    tree.listen(8080, 7)
    here = Visitors(Endpoint(url="http://127.0.0.1:8080"), tree.proc)
    here.work_seen(0.0)
    assert here.seen_all
    assert here.quiet_for(7200.0) == 7200.0
    tree.listen(8080, 8, state="01")
    assert here.quiet_for(7201.0) == 0.0
    assert here.quiet_for(7202.0) == 0.0


def test_a_router_gives_the_figures_of_the_models_that_it_has_loaded() -> None:
    snapshot, asked = polled("llamacpp", field_inputs.routes("08"), polls=2)
    points = snapshot.points

    assert snapshot.health.up, snapshot.health.error
    assert snapshot.health.warnings == ()
    assert "/metrics" not in asked
    assert not any("coder" in path or "embed" in path for path in asked)
    assert values(points, "llm_model_loaded", "model") == {
        "org/chat-GGUF:Q4_K_M": 1.0,
        "org/coder-GGUF:Q8_0": 0.0,
        "org/embed-GGUF:F16": 0.0,
    }
    running = values(points, "llm_requests_running", "model")
    assert running.keys() == {"org/chat-GGUF:Q4_K_M"}


@pytest.mark.parametrize(
    ("number", "layers", "capacity"),
    [
        (4, (), None),
        (1, (), 4096.0),
        (4, (Seen(unified=True),), 4096.0),
        (4, (Seen(unified=False),), 16384.0),
    ],
)
def test_slots_that_share_a_cache_do_not_have_one_each(
    number: int, layers: Sequence[Layer], capacity: float | None
) -> None:
    routes = {"/props": properties(), "/slots": slots(number), "/v1/models": MODEL}
    snapshot, _ = polled("llamacpp", routes, layers=layers)

    assert value(snapshot.points, "llm_kv_cache_capacity_tokens") == capacity


@pytest.mark.parametrize(("unified", "capacity"), [(True, 8192.0), (False, 14336.0)])
def test_slots_of_different_sizes(*, unified: bool, capacity: float) -> None:
    """A request may get any slot, so that the smallest one is what is certain; a shared cache is as large as any."""
    sizes = [
        {"id": at, "n_ctx": size, "is_processing": at == 1, "n_prompt_tokens": at + 1}
        for at, size in enumerate((4096, 8192, 2048))
    ]
    routes = {"/props": properties(), "/slots": as_json(sizes), "/v1/models": MODEL}
    points = polled("llamacpp", routes, layers=(Seen(unified=unified),))[0].points

    assert value(points, "llm_model_context_tokens") == 2048.0
    assert value(points, "llm_kv_cache_capacity_tokens") == capacity
    assert value(points, "llm_requests_running") == 1.0
    assert (value(points, "llm_kv_cache_used_tokens"), value(points, "llm_kv_cache_evictable_tokens")) == (2.0, 4.0)


def test_tokens_are_absent_unless_every_slot_reports_its_own() -> None:
    """A sum over some of the slots would look like an emptier cache."""
    idle = {"id": 1, "n_ctx": 4096, "is_processing": False}
    some = [{"id": 0, "n_ctx": 4096, "is_processing": True, "n_prompt_tokens": 9}, idle]
    points = polled("llamacpp", {"/props": properties(), "/slots": as_json(some), "/v1/models": MODEL})[0].points

    assert value(points, "llm_requests_running_limit") == 2.0
    assert value(points, "llm_kv_cache_used_tokens") is None
    assert value(points, "llm_kv_cache_evictable_tokens") is None


@pytest.mark.parametrize(("context", "capacity", "used"), [(4096, 4096.0, 4096.0), (0, None, 9000.0)])
def test_used_tokens_are_within_a_capacity_and_none_is_zero(context: int, capacity: float | None, used: float) -> None:
    busy = as_json([{"id": 0, "n_ctx": context, "is_processing": True, "n_prompt_tokens": 9000}])
    snapshot, _ = polled("llamacpp", {"/props": properties(), "/slots": busy, "/v1/models": MODEL})

    assert value(snapshot.points, "llm_kv_cache_capacity_tokens") == capacity
    assert value(snapshot.points, "llm_kv_cache_used_tokens") == used


@pytest.mark.parametrize(
    ("command", "environment", "unified"),
    [
        ((), (), True),
        (("-np", "4"), (), False),
        (("--parallel=4",), (), False),
        (("-np", "-1"), (), True),
        (("-np", "4", "-kvu"), (), True),
        (("--no-kv-unified",), (), False),
        ((), ("LLAMA_ARG_N_PARALLEL=4",), False),
        (("-np", "4"), ("LLAMA_ARG_KV_UNIFIED=true",), True),
        *((("-np", "4"), (f"LLAMA_ARG_KV_UNIFIED={word}",), True) for word in ("1", "ON", "enabled")),
        ((), ("LLAMA_ARG_KV_UNIFIED=0",), False),
        (("-kvu",), ("LLAMA_ARG_KV_UNIFIED=0",), True),
        (("-np", "0"), ("LLAMA_ARG_N_PARALLEL=4",), True),
    ],
)
def test_slots_share_one_cache_unless_their_number_is_given(
    tmp_path: Path, *, command: tuple[str, ...], environment: tuple[str, ...], unified: bool
) -> None:
    tree = ProcTree(tmp_path)
    tree.listen(8080, 7)
    words = ("/usr/bin/llama-server", "-m", "/m.gguf", *command)
    tree.process(60, sockets=(7,), name="llama-server", command=words, environment=("HOME=/", *environment))

    assert runners.server(tree.proc, 8080) == runners.Server(unified)


def test_how_a_server_was_started_is_unknown_where_it_is_not_visible(tmp_path: Path) -> None:
    tree = ProcTree(tmp_path)
    tree.listen(8080, 7)
    tree.process(60, sockets=(7,), name="python3")
    assert runners.server(tree.proc, 8080) is None

    tree.process(61, sockets=(7,), name="llama-server", command=("llama-server",), environment=())
    assert runners.server(tree.proc, 8080) is None


@pytest.mark.parametrize(("again", "later"), [(60.0, {PROCESS: True}), (0.0, {})])
def test_a_server_s_process_is_looked_for_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: float, later: dict[str, bool]
) -> None:
    monkeypatch.setattr("llm_headroom.scrape.llama_server.LOOK_AGAIN", again)
    tree = ProcTree(tmp_path)
    tree.listen(8080, 7)
    tree.process(60, sockets=(7,), name="llama-server", command=("llama-server",))
    here = Target(name="t", endpoint=Endpoint(url="http://127.0.0.1:8080"))

    async def seen() -> list[Mapping[str, Any]]:
        layer, late = ServerLayer(here, tree.proc), ServerLayer(here, tree.proc)
        found = [await layer.read({}, time.monotonic() + 60.0), await late.read({}, time.monotonic())]
        tree.end(60)
        found += [await each.read({}, time.monotonic() + 60.0) for each in (layer, late)]
        return [each.documents for each in found]

    assert asyncio.run(seen()) == [{PROCESS: True}, {}, later, {}]


def test_clients_are_counted_without_oneself(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert Proc().clients(port) == 0
        with socket.create_connection(("127.0.0.1", port)):
            assert Proc().clients(port) == 0

        connect = f"s = socket.create_connection(('127.0.0.1', {port}))"
        program = f"import socket, sys; {connect}; print(flush=True); sys.stdin.read()"
        with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            other.stdout.readline()
            assert Proc().clients(port) == 1
            other.communicate()

    tree = ProcTree(tmp_path)
    tree.listen(8080, 7)
    tree.listen(8080, 8, state="01")
    assert tree.proc.clients(8080) == 1


def test_it_is_looked_for_on_its_announced_port_too() -> None:
    checked = check("--no-gpu", "--discover", "--format", "json")
    looked = {entry["address"]: entry["usual"] for entry in json.loads(checked.stdout)["not_found"]}

    assert looked["127.0.0.1:9931"] == "llama.cpp server"
