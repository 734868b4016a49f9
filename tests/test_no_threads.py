"""Where the system gives no thread, as at a limit of the control group: what needs one is missed, and comes back."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

import bounded
import documents_read
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Config, GpuSettings, OtlpSettings, Target
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.host.engines import Finder, Watched
from llm_headroom.model import Cause, Health, Point, Series, Snapshot
from llm_headroom.net import loop
from llm_headroom.net.threads import NoThreadError, in_thread
from llm_headroom.net.workers import Workers
from llm_headroom.otlp.options import options
from llm_headroom.otlp.push import Push
from llm_headroom.otlp.tally import Tally
from llm_headroom.poll.local import GpuSource, HostWatch
from llm_headroom.poll.poller import Poller
from llm_headroom.schema import REQUESTS_RUNNING
from llm_headroom.scrape.llama_server import ServerLayer
from llm_headroom.scrape.ollama_runners import RunnerLayer
from no_threads import no_threads
from otlp_receiver import HttpReceiver
from proc_tree import ProcTree
from silent_source import Silent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from llm_headroom.gpu.reading import Reading

OLLAMA = Target(name="t", endpoint=Endpoint(url="http://127.0.0.1:11434"), engine="ollama")


class Card:
    """A GPU that cannot be read, which is known only once it was tried."""

    tries = 0
    closed = False

    def read(self) -> Reading:
        """Count one try."""
        self.tries += 1
        raise ZeroDivisionError

    def xids(self) -> list[Point]:
        """None."""
        return []

    def close(self) -> None:
        """Say so."""
        self.closed = True


def test_a_call_without_a_thread_is_an_error_and_the_next_one_is_made() -> None:
    async def test() -> None:
        with (
            no_threads(),
            pytest.raises(NoThreadError, match=r"no thread can be started \(reader\): a limit is reached"),
        ):
            await in_thread(int, "reader")
        assert await in_thread(int, "reader") == 0

    bounded.run(test())


def test_gpus_without_a_thread_are_down_and_say_why() -> None:
    async def test() -> None:
        card = Card()
        source = GpuSource(Config(), tuple, Finder(), explain=False, events=False, reader=card)
        with no_threads():
            snapshot = await source.collect()
            await source.close()
        assert (card.tries, card.closed, snapshot.points) == (0, False, ())
        assert snapshot.health.error is not None
        assert snapshot.health.error.cause is Cause.INTERNAL
        assert snapshot.health.error.message.startswith("no thread can be started (nvml)")
        with pytest.raises(ZeroDivisionError):
            await source.collect()
        await source.close()
        assert card.closed

    bounded.run(test())


def test_the_host_without_a_thread_is_not_read_and_the_next_time_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = Target(name="t", endpoint=Endpoint(url="http://127.0.0.1:1"))
    engines = [Watched(target, Snapshot(target="t", engine="one", taken=1.0, health=Health(up=True)))]

    async def test() -> None:
        host = HostWatch(Finder(ProcTree(tmp_path).proc), timeout=60.0)
        assert host.may_see([target], gpus=False)
        with no_threads():
            assert await host.read(engines) == {}
        assert list(await host.read(engines)) == ["t"]

    bounded.run(test())
    (said,) = [vars(each)["reason"] for each in caplog.records if each.msg == "host memory not read"]
    assert said.startswith("no thread can be started (host)")


def test_what_processes_show_of_an_engine_is_not_seen_without_a_thread(tmp_path: Path) -> None:
    tree = ProcTree(tmp_path)
    tree.listen(11434, 7)
    tree.process(60, sockets=(7,), name="llama-server", command=("llama-server",))
    documents = documents_read.read(
        BUILT_IN["ollama"], {"/api/ps": {"models": [{"name": "small"}]}, "/api/show small": {"modelfile": "FROM /blob"}}
    )

    async def test() -> None:
        server = ServerLayer(OLLAMA, tree.proc)
        runners = RunnerLayer(OLLAMA, label_limit=9, proc=tree.proc, explain=True)
        with no_threads():
            assert (await server.read({}, time.monotonic() + 60.0)).documents == {}
            (warning,) = (await runners.read(documents, time.monotonic() + 60.0)).warnings
        assert warning.message.startswith("no runner found for small: no thread can be started (runners)")

    bounded.run(test())


class Once(Silent):
    """A source whose pace is broken once, and what a poller shows whenever it is read."""

    name = "once"
    labels: Mapping[str, str] = {}
    asked = 0

    def __init__(self) -> None:
        self.poller = Poller(Config(gpu=GpuSettings(enabled=False), host=False, discover=False), beside=[self])
        self.shown: list[int] = []

    @property
    def interval(self) -> float:  # type: ignore[override]
        """A defect, then 10 ms."""
        self.asked += 1
        if self.asked == 1:
            raise RuntimeError("out of paper")
        return 0.01

    async def collect(self) -> Snapshot:
        """It is up."""
        self.shown.append(len(self.poller.snapshots()))
        return Snapshot(target="once", engine="vllm", taken=1.0, points=(), health=Health(up=True))

    async def estimate(self) -> None:
        """Nothing."""


def test_work_that_failed_has_read_nothing_and_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_headroom.poll.poller.LOOK_AGAIN", 0.01)
    source = Once()

    async def test() -> None:
        source.poller.start()
        try:
            while len(source.shown) < 3:  # noqa: ASYNC110 - nobody tells of a later round
                await asyncio.sleep(0.01)
        finally:
            await source.poller.stop()

    bounded.run(test())
    assert source.shown[:3] == [0, 0, 1]


def test_a_push_without_a_thread_is_dropped_and_goes_on_once_there_are_some() -> None:
    tally, points = Tally(), [Point(Series(REQUESTS_RUNNING, {"engine": "vllm", "target": "a"}), 3.0, "")]

    def told() -> set[str]:
        return {value for each in tally.points() for _, value in each.series.labels}

    async def test(endpoint: str) -> None:
        push = Push(
            options(OtlpSettings(endpoint=endpoint, interval=0.05), {}),
            tally,
            sources=lambda: [(time.time(), points)],
            changed=lambda: None,
            port="9836",
        )
        with no_threads():
            push.start(lambda: asyncio.sleep(0))
            while "dropped" not in told():  # noqa: ASYNC110 - counted by a task
                await asyncio.sleep(0.01)
        while "accepted" not in told():  # noqa: ASYNC110 - the same
            await asyncio.sleep(0.01)
        await push.close()

    with HttpReceiver() as receiver:
        bounded.run(test(receiver.url))


# The event loop ------------------------------------------------------------------------------------------------------
def test_a_service_ends_by_its_own_error_where_no_thread_can_be_had() -> None:
    async def service() -> None:
        asyncio.get_running_loop().set_default_executor(Workers("names", 1))
        raise ZeroDivisionError

    with no_threads(), pytest.raises(ZeroDivisionError):
        loop.run(service())


@pytest.mark.parametrize(("host", "found"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1")])
def test_an_address_waits_neither_for_a_thread_nor_behind_names_without_an_answer(host: str, found: str) -> None:
    async def test() -> None:
        here, gate = asyncio.get_running_loop(), threading.Event()
        here.set_default_executor(Workers("names", 1))
        waiting = here.run_in_executor(None, gate.wait, 60)
        try:
            (*_, address), *_ = await here.getaddrinfo(host, 80, type=socket.SOCK_STREAM)
            assert address[0] == found
            assert not waiting.done()
        finally:
            gate.set()
            await waiting
        with no_threads():
            assert await here.getaddrinfo(host, 80)

    bounded.run(test())
