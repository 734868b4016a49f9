"""Ollama's runners: found in a /proc made of files, asked over HTTP, joined to the models that Ollama lists."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

import captures
import documents_read
from captures import Capture, values
from engine_server import EngineServer, Reply, as_json, garbage, hang, replayed
from free_port import free_port
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Target
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.host import runners
from llm_headroom.host.runners import Runner, command
from llm_headroom.scrape.collect import Collector
from llm_headroom.scrape.ollama_runners import RunnerLayer
from proc_tree import BOOT, ProcTree, ticks

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from llm_headroom.model import Point, Snapshot
    from llm_headroom.scrape.layers import Reported

LOADED = Capture("ollama", "0.33.0-rc2", "ps_loaded")
BLOB = "/var/lib/ollama/models/blobs/sha256-7ad8577599e2f55c08f79d9fd9a057d7c6bf00d4d7f0a1c141519d3e28ea2da7"
CAPTURED = (
    "/opt/ollama/lib/ollama/llama-server --model {blob} --port {port} --host 127.0.0.1 --no-webui --offline -c 4096 "
    "-np 2 --log-verbosity 4 --no-log-prefix --no-log-timestamps --load-mode none --flash-attn auto -b 512 -ub 512 -t "
    "1 --context-shift --keep 4"
)
SERVER, RUNNER = 100, 200


def words(port: int, blob: str = BLOB, *more: str) -> tuple[str, ...]:
    return (*CAPTURED.format(blob=blob, port=port).split(), *more)


# Command lines -------------------------------------------------------------------------------------------------------
def test_the_captured_command_line() -> None:
    assert command(words(41609)) == Runner(BLOB, 41609, "", parallel=2, keys="f16", values="f16")


def test_cache_types_and_forms_of_flags() -> None:
    told = command(
        ["llama-server", "-m", "/x", "--port=8001", "--parallel", "4", "-ctk", "q8_0", "--cache-type-v=q4_0"]
    )

    assert told == Runner("/x", 8001, "", parallel=4, keys="q8_0", values="q4_0")


def test_a_runner_of_before_0_30_has_nothing_to_ask() -> None:
    told = command(["/usr/bin/ollama", "runner", "--model", "/x", "--port", "4000"])

    assert told is not None
    assert (told.bare, told.keys) == (True, "")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "llama-server",
        "llama-server --list-devices",
        "llama-server --port 9000",
        "llama-server --model /x --port",
        "llama-server --model /x --port 0",
        "llama-server --model /x --port 65536",
        "llama-server --model /x --port 0000000080",
        "llama-server --port 80 --model=",
        "ollama runner --model /x",
        "ollama --model /x --port 80 runner",
        "ollama serve runner --model /x --port 80",
        "llama-server --model /x --port -1",
        "llama-server --model /x --port ²",
        "ollama serve --model /x --port 9000",
    ],
)
def test_other_processes_are_no_runners(line: str) -> None:
    assert command(line.split()) is None


@pytest.mark.parametrize(
    ("line", "runner"),
    [
        ("llama-server --model /x --port 65535", Runner("/x", 65535, "", keys="f16", values="f16")),
        ("llama-server --model /x --port 000000001", Runner("/x", 1, "", keys="f16", values="f16")),
        ("llama-server -np x -m /x --port 80 -ctv q4_0", Runner("/x", 80, "", keys="f16", values="q4_0")),
        ("llama-server --model /y -m /x --port 80 -np", Runner("/x", 80, "", keys="f16", values="f16")),
        ("ollama runner -m /x --port 80 -np 2 -ctk q8_0", Runner("/x", 80, "", parallel=2, bare=True)),
        ("x --model=/x --port=80 -kvu -np=3", Runner("/x", 80, "", parallel=3, keys="f16", values="f16")),
    ],
)
def test_what_is_read_of_a_command_line(line: str, runner: Runner) -> None:
    assert command(line.split()) == runner


@given(
    st.lists(st.sampled_from(("-np 1", "-np hunter2", "-c =", "--api-key hunter2", "--api-key=hunter2", "-kvu", "x")))
)
def test_of_a_command_line_what_is_of_use_is_retained_and_no_key(line: list[str]) -> None:
    found = command(f"llama-server --api-key hunter2 {' '.join(line)} -m /x --port 8001".split())

    assert found is not None
    assert found._replace(parallel=None) == Runner("/x", 8001, "", keys="f16", values="f16")
    assert found.parallel in {None, 1}


@given(st.lists(st.sampled_from(("--model", "--port", "-ctk", "=")) | st.text(), max_size=9))
def test_any_command_line_is_read_without_error(line: list[str]) -> None:
    found = command(["llama-server", *line])

    assert found is None or (found.model in "".join(line) and 0 < found.port < 65536)


# The process list ----------------------------------------------------------------------------------------------------
@pytest.fixture
def tree(tmp_path: Path) -> ProcTree:
    return ProcTree(tmp_path)


def serve(tree: ProcTree, port: int) -> None:
    tree.process(SERVER, sockets=(900,), name="ollama", command=("ollama", "serve"))
    tree.listen(port, 900)


def run(tree: ProcTree, port: int, *more: str, pid: int = RUNNER, blob: str = BLOB, parent: int = SERVER) -> None:
    tree.process(pid, parent, start=ticks(5), name="llama-server", command=words(port, blob, *more))
    tree.listen(port, 1000 + pid)


def test_runners_are_found_in_the_process_list(tree: ProcTree) -> None:
    serve(tree, 11434)
    run(tree, 41609)
    tree.process(300, SERVER, name="llama-server", command=("llama-server", "--list-devices"))
    tree.process(301, name="python", command=words(41609))

    (found,) = runners.find(tree.proc, 11434).runners

    assert (found.model, found.port, found.started) == (BLOB, 41609, BOOT + 5.0)
    assert found.life == f"{RUNNER}@{ticks(5)}"


def test_those_of_another_server_are_left_alone(tree: ProcTree) -> None:
    serve(tree, 11434)
    tree.process(150, sockets=(901,), name="ollama")
    tree.listen(11435, 901)
    run(tree, 41609, parent=150)
    run(tree, 41610, pid=201)

    assert [found.port for found in runners.find(tree.proc, 11434).runners] == [41610]
    assert [found.port for found in runners.find(tree.proc, 11435).runners] == [41609]


def test_a_server_behind_a_proxy_on_another_port_is_found_too(tree: ProcTree) -> None:
    serve(tree, 11434)
    run(tree, 41609)
    tree.listen(8080, 902)

    assert [found.port for found in runners.find(tree.proc, 8080).runners] == [41609]


def test_those_in_a_network_of_their_own_are_counted_but_not_asked(tree: ProcTree) -> None:
    tree.process(RUNNER, SERVER, name="llama-server", command=words(41609))

    assert runners.find(tree.proc, 11434) == ((), 1)


def test_a_number_of_runners_is_looked_at_and_no_more(tree: ProcTree) -> None:
    for number in range(17):
        run(tree, 41600 + number, pid=RUNNER + number)
    assert len(runners.find(tree.proc, 11434).runners) == 16


def test_a_runner_may_listen_on_any_port_of_the_loopback_but_the_server_s(tree: ProcTree) -> None:
    for port, address in ((1023, "127.0.0.1"), (1024, "127.0.0.1"), (65535, "::1"), (2000, "0.0.0.0"), (11434, "::1")):
        tree.listen(port, port + 1, address)
    assert runners.candidates(tree.proc, 11434) == {1024: 1025, 65535: 65536}


# Asked ---------------------------------------------------------------------------------------------------------------
def answers(state: str) -> dict[str, Reply]:
    """What a runner answered when it was captured."""
    folder = captures.CAPTURES / "ollama/0.33.0-rc2"
    return {
        "/metrics": Reply((folder / f"runner_{state}_metrics.txt").read_bytes()),
        "/slots": Reply((folder / f"runner_{state}_slots.json").read_bytes()),
        "/props": Reply((folder / "runner_small_props.json").read_bytes()),
    }


class Setting(AbstractContextManager["Setting"]):
    """An Ollama server as captured, a runner, and what the exporter sees of both."""

    def __init__(self, tree: ProcTree, state: str = "small", **settings: Any) -> None:  # noqa: ANN401 - of a target
        self.tree = tree
        self.state = state
        self.settings = settings
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        routes = replayed(LOADED)
        self.ollama = self._stack.enter_context(EngineServer(routes))
        self.runner = self._stack.enter_context(EngineServer(answers(self.state)))
        serve(self.tree, self.ollama.port)
        target = Target(name="t", endpoint=Endpoint(url=self.ollama.url), engine="ollama", **self.settings)
        layer = RunnerLayer(target, label_limit=200, proc=self.tree.proc, explain=True)
        self.collector = Collector(target, BUILT_IN["ollama"], timeout=30, label_limit=200, layers=(layer,))
        self._loop = asyncio.new_event_loop()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self.collector.close())
        self._loop.close()
        self._stack.close()

    def start(self, *more: str, pid: int = RUNNER) -> None:
        """The model is loaded: its runner shows in the process list."""
        run(self.tree, self.runner.port, *more, pid=pid)

    def poll(self) -> Snapshot:
        """One collection, without a series that comes twice."""
        snapshot = self._loop.run_until_complete(self.collector.collect())
        assert snapshot.health.error is None
        series = [point.series for point in snapshot.points]
        assert len(series) == len(set(series))
        return snapshot


def one(points: Iterable[Point], metric: str) -> Any:  # noqa: ANN401 - a number, or what is wrong
    return values(points, metric, "model").get("small:latest")


def test_a_runner_tells_what_ollama_does_not(tree: ProcTree) -> None:
    with Setting(tree, "busy_2") as setting:
        setting.start()
        points = setting.poll().points

    assert one(points, "llm_requests_running") == 2.0
    assert one(points, "llm_requests_running_limit") == 2.0
    assert one(points, "llm_kv_cache_capacity_tokens") == 4096.0
    assert one(points, "llm_prompt_tokens_total") == 1372.0 + 699.0
    assert one(points, "llm_prompt_tokens_cached_total") == 699.0
    assert one(points, "llm_generation_tokens_total") == 255.0
    assert one(points, "llm_engine_start_time_seconds") == BOOT + 5.0
    assert values(points, "llm_model_memory_bytes", "kind")["kv_cache"] == 16 * 1024 * 1024
    assert values(points, "llm_requests_waiting", "model") == {}
    assert {point.series.label("engine") for point in points} == {"ollama"}
    told = {point.series.metric.name: point.origin for point in points}
    assert told["llm_kv_cache_capacity_tokens"] == "/slots n_ctx"
    assert told["llm_model_loaded"].startswith("/api/")


@pytest.mark.parametrize("number", range(5))
def test_every_captured_moment_is_whole(tree: ProcTree, number: int) -> None:
    slots = json.loads((captures.CAPTURES / f"ollama/0.33.0-rc2/runner_busy_{number}_slots.json").read_bytes())
    held = float(sum(slot["n_prompt_tokens"] for slot in slots if slot["is_processing"]))
    with Setting(tree, f"busy_{number}") as setting:
        setting.start()
        snapshot = setting.poll()

    assert snapshot.health.warnings == ()
    assert one(snapshot.points, "llm_kv_cache_used_tokens") == held
    assert one(snapshot.points, "llm_kv_cache_usage_ratio") == held / 4096.0


def test_counters_go_on_when_a_model_is_loaded_anew(tree: ProcTree) -> None:
    with Setting(tree, "busy_4") as setting:
        setting.start()
        first = one(setting.poll().points, "llm_generation_tokens_total")
        tree.end(RUNNER)
        gone = setting.poll().points
        setting.runner.routes |= answers("busy_0")
        setting.start(pid=201)
        second = setting.poll().points

    assert first == 415.0
    assert one(gone, "llm_generation_tokens_total") == 415.0
    assert one(gone, "llm_requests_running") is None
    assert one(second, "llm_generation_tokens_total") == 415.0 + 255.0


def test_without_metrics_of_the_runner_its_slots_still_tell(tree: ProcTree) -> None:
    with Setting(tree) as setting:
        setting.runner.routes["/metrics"] = as_json({"error": {"code": 501}}, 501)
        setting.start("--cache-type-k", "q8_0", "--cache-type-v", "q8_0")
        points = setting.poll().points

    assert one(points, "llm_requests_running") == 0.0
    assert one(points, "llm_kv_cache_evictable_tokens") == 33.0 + 418.0
    assert one(points, "llm_generation_tokens_total") is None
    assert values(points, "llm_model_memory_bytes", "kind")["kv_cache"] == 8.5 * 1024 * 1024


@pytest.mark.parametrize(
    "broken",
    [Reply(b"[]x"), Reply(b'{"slots": 1}'), Reply(b"", 503), garbage, hang],
    ids=["text", "form", "503", "garbage", "hang"],
)
def test_a_runner_that_fails_costs_only_what_it_alone_tells(tree: ProcTree, broken: Any) -> None:  # noqa: ANN401 - an answer
    with Setting(tree) as setting:
        setting.runner.routes["/slots"] = broken
        setting.start()
        snapshot = setting.poll()
        setting.runner.closing.set()

    assert one(snapshot.points, "llm_model_loaded") == 1.0
    assert one(snapshot.points, "llm_requests_running") is None
    assert one(snapshot.points, "llm_kv_cache_capacity_tokens") == 4096.0  # by the command line
    assert [warning.message.startswith("runner of small:latest: ") for warning in snapshot.health.warnings] == [True]


def test_a_runner_that_has_ended_between_the_look_and_the_question(tree: ProcTree) -> None:
    with Setting(tree) as setting, free_port() as port:
        run(tree, port)
        snapshot = setting.poll()

    assert [warning.cause.value for warning in snapshot.health.warnings] == ["refused"]


def test_what_is_configured_stands_in_for_a_runner_that_is_not_seen(tree: ProcTree) -> None:
    with Setting(tree, requests_running_limit=4, kv_cache_type="q8_0") as setting:
        snapshot = setting.poll()

    assert one(snapshot.points, "llm_requests_running_limit") == 4.0
    assert one(snapshot.points, "llm_kv_cache_capacity_tokens") == 8192.0
    assert values(snapshot.points, "llm_model_memory_bytes", "kind")["kv_cache"] == 4 * 4.25 * 1024 * 1024
    (warning,) = snapshot.health.warnings
    assert warning.message == "no runner found for small:latest: no process of one is visible here"


def test_without_any_of_it_slots_and_cache_are_absent(tree: ProcTree) -> None:
    with Setting(tree) as setting:
        points = setting.poll().points

    assert one(points, "llm_requests_running_limit") is None
    assert one(points, "llm_kv_cache_capacity_tokens") is None
    assert set(values(points, "llm_model_memory_bytes", "kind")) == {"total", "device"}


def test_where_processes_are_hidden_the_shared_network_shows_the_runner(tmp_path: Path) -> None:
    tree = ProcTree(tmp_path, namespace=4026532000)
    with Setting(tree, "busy_2") as setting, free_port() as port:
        tree.listen(setting.runner.port, 950)
        tree.listen(port, 951)
        first = setting.poll()
        asked = len([path for _, path in setting.runner.requests if path == "/props"])
        setting.poll()
        again = len([path for _, path in setting.runner.requests if path == "/props"])

    assert one(first.points, "llm_requests_running") == 2.0
    assert first.health.warnings == ()
    assert asked == again == 2  # to learn what it is, and its version


def test_a_runner_of_a_model_that_ollama_does_not_list_is_not_told(tree: ProcTree) -> None:
    with Setting(tree) as setting:
        setting.start()
        setting.ollama.routes["/api/ps"] = as_json({"models": []})
        points = setting.poll().points

        assert values(points, "llm_requests_running", "model") == {}
        assert setting.runner.requests == []


def why(setting: Setting) -> str:
    """What is said of the only model's runner."""
    (warning,) = setting.poll().health.warnings
    return warning.message


def test_why_a_runner_says_nothing(tree: ProcTree, tmp_path: Path) -> None:
    missing = "no runner found for small:latest: "
    with Setting(tree) as setting:
        tree.process(RUNNER, SERVER, name="llama-server", command=words(41609))
        assert why(setting) == f"{missing}they run in a network of their own: share it, as a sidecar does"
        run(tree, 41610, pid=201, blob="/another")
        ended = "it has ended although Ollama lists the model, or it is no llama-server"
        assert why(setting) == missing + ended
        bare = ("/usr/bin/ollama", "runner", "--model", BLOB, "--port", "41611")
        tree.process(202, SERVER, name="ollama", command=bare)
        tree.listen(41611, 1202)
        assert why(setting) == "runner of small:latest has no metrics: Ollama is older than 0.30"
    with Setting(ProcTree(tmp_path / "hidden", namespace=4026532000)) as setting:
        assert why(setting) == f"{missing}neither processes nor ports of one are visible here: share the network"


def test_what_is_not_seen_is_no_warning_unless_a_report_asks(tree: ProcTree) -> None:
    async def read() -> Reported:
        target = Target(name="t", endpoint=Endpoint(url="http://127.0.0.1:11434"), engine="ollama")
        layer = RunnerLayer(target, label_limit=200, proc=tree.proc)
        documents = documents_read.read(
            BUILT_IN["ollama"],
            {"/api/ps": {"models": [{"name": "small"}]}, "/api/show small": {"modelfile": f"FROM {BLOB}"}},
        )
        return await layer.read(documents, time.monotonic() + 5.0)

    assert asyncio.run(read()) == ([], [], {"runners": {}})
