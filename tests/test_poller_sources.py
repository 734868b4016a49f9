"""What the poller makes of its sources: which there are, what a reload leaves, and what reaches which of them."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import pytest

import bounded
from engine_server import EngineServer, Reply
from llm_headroom import schema
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Config, EngineSettings, GpuSettings, RuleSettings, Target
from llm_headroom.host.engines import Finder, Watched
from llm_headroom.host.proc import Proc
from llm_headroom.model import Cause, Failure, Health, Point, Series, Snapshot
from llm_headroom.poll.local import GPU_TARGET, GpuSource, HostWatch
from llm_headroom.poll.poller import Poller
from one_card import Card

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from pathlib import Path

    from engine_server import Behaviour
    from llm_headroom.config.kinds import Detail

ALONE = Config(gpu=GpuSettings(enabled=False), host=False, discover=False, interval=0.05)
RUNNING, MOVING = (
    RuleSettings(metric=f"llm_requests_{name}", names=(f"one_{name}",)) for name in ("running", "in_kv_transfer")
)
ONE = replace(
    ALONE, engines={"one": EngineSettings(name="one", prefixes=("one_",), model_label="model", rules=(RUNNING, MOVING))}
)
ROUTES: Mapping[str, Reply | Behaviour] = {
    "/metrics": Reply(b'one_running{model="m"} 7\none_in_kv_transfer{model="m"} 0\n'),
    "/bare/metrics": Reply(b"one_running 7\n"),
}
POINTS: Final = (schema.GPU_CLOCK, schema.REQUESTS_RUNNING)
"""One that `detail: essential` leaves out, and one that it does not."""


@dataclass
class Beside:
    """A source that no configuration names."""

    name: str = "beside"
    labels: Mapping[str, str] = field(default_factory=lambda: {"zone": "eu"})
    retained: tuple[Point, ...] = ()
    capped: Mapping[str, int] = field(default_factory=dict)
    interval: float = 0.05
    broken: bool = False
    closed: int = 0

    async def collect(self) -> Snapshot:
        """Two points."""
        if self.broken:
            raise RuntimeError("out of paper")
        points = tuple(Point(Series(metric, {"target": self.name}), 1.0, "") for metric in POINTS)
        return Snapshot(target=self.name, engine="proxy", taken=1.0, points=points, health=Health(up=True))

    async def estimate(self) -> None:
        """There is nothing to estimate."""

    async def close(self) -> None:
        """Counted."""
        self.closed += 1


def polling(poller: Poller, test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """A test beside a poller that polls."""

    async def run() -> None:
        poller.start()
        try:
            await test()
        finally:
            await poller.stop()

    bounded.run(run())


async def until(condition: Callable[[], object]) -> None:
    """Wait for what the poller does in the background."""
    while not condition():  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0.005)


def target(server: EngineServer, name: str = "t", **fields: Any) -> Target:  # noqa: ANN401 - fields of the class
    return Target(name=name, endpoint=Endpoint(url=server.url), **fields)


def names(poller: Poller, slot: str) -> set[str]:
    return {point.series.metric.name for point in poller.slots[slot].points()}


# Sources -------------------------------------------------------------------------------------------------------------
def test_a_source_that_raises_is_down_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    poller = Poller(ALONE, beside=[Beside(broken=True), Beside("other")])

    async def test() -> None:
        await until(lambda: len(poller.snapshots()) == 2)
        found = {each.target: each for each in poller.snapshots()}
        failure = Failure(Cause.INTERNAL, "RuntimeError in llm-headroom; see its log")
        assert (found["beside"].health.up, found["beside"].health.error) == (False, failure)
        assert found["other"].health.up
        assert 0.0 <= found["beside"].health.duration_seconds < 60.0

    polling(poller, test)
    assert "collection failed: internal error (bug)" in caplog.text


@pytest.mark.parametrize("detail", ["full", "essential"])
def test_every_source_is_exported_in_the_detail_that_is_wanted(detail: Detail) -> None:
    with EngineServer(ROUTES) as engine:
        config = replace(ONE, gpu=GpuSettings(enabled=True), detail=detail, targets=(target(engine),))

        def check(poller: Poller) -> None:
            for name in poller.slots:
                assert ({"llm_gpu_clock_hertz", "llm_requests_in_kv_transfer"} & names(poller, name) != set()) is (
                    detail == "full"
                ), name
                assert "llm_up" in names(poller, name)

        poller = Poller(config, gpus=Card(), beside=[Beside()])

        async def polled() -> None:
            await until(lambda: len(poller.snapshots()) == 3)
            check(poller)

        polling(poller, polled)

        async def once() -> None:
            await poller.once()
            assert len(poller.slots) == 2
            check(poller)
            await poller.stop()
            assert (poller.slots, poller.snapshots()) == ({}, [])

        bounded.run(once())


def test_it_is_ready_when_every_target_has_been_collected_once() -> None:
    release = threading.Event()

    def late(_server: EngineServer, connection: socket.socket) -> None:
        release.wait(60.0)
        connection.sendall(b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n")

    with EngineServer(ROUTES) as engine, EngineServer({"*": late}) as other:
        poller = Poller(replace(ONE, timeout=60.0, targets=(target(engine), target(other, "late"))))

        async def test() -> None:
            await until(poller.snapshots)
            before = poller.ready
            release.set()
            await poller.first_round()
            assert (before, poller.ready, len(poller.snapshots())) == (False, True, 2)

        polling(poller, test)

    nothing = Poller(ALONE)
    changed: list[bool] = []

    async def ready() -> None:
        assert nothing.ready
        nothing.on_change(lambda: changed.append(True))
        await nothing.apply(replace(ALONE, interval=1.0))

    polling(nothing, ready)
    assert changed == [True], "what was rendered is thrown away after a reload"


def test_what_has_changed_is_given_once() -> None:
    poller = Poller(replace(ALONE, interval=60.0), beside=[Beside(interval=60.0), Beside("other", interval=60.0)])

    async def test() -> None:
        await until(lambda: len(poller.snapshots()) == 2)
        assert [each.target for each in poller.fresh()] == ["beside", "other"]
        assert [*poller.fresh()] == []

    polling(poller, test)


def test_the_models_of_a_target_are_known_once_it_was_asked() -> None:
    with EngineServer(ROUTES) as engine, EngineServer() as gone:
        other = Target(name="gone", endpoint=Endpoint(url=gone.url), engine="one")
        bare = Target(name="bare", endpoint=Endpoint(url=f"{engine.url}/bare"), engine="one")
        poller = Poller(replace(ONE, targets=(target(engine, engine="one"), other, bare)), beside=[Beside()])

        async def test() -> None:
            assert poller.models("t") is None
            assert poller.polled("t") == poller.polled("nobody") == ()
            await poller.first_round()
            await until(lambda: "beside" in {each.target for each in poller.snapshots()})
            assert poller.models("t") == {"m"}
            assert poller.models("gone") == ()
            assert poller.polled("t") == next(each.points for each in poller.snapshots() if each.target == "t") != ()
            assert (poller.models("bare"), poller.models("beside"), poller.models("nobody")) == (None, None, None)

        polling(poller, test)


def outside_address() -> str:
    """The address from which packets to others leave this host; one of loopback where it has no other."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
        try:
            trial.connect(("198.51.100.1", 9))  # nothing is sent
        except OSError:
            return "127.0.0.1"
        return str(trial.getsockname()[0])


@pytest.mark.parametrize(
    ("host", "found"),
    [
        *((host, False) for host in ("localhost", "127.0.0.1", "[::1]", "gpu-box", outside_address())),
        *((host, True) for host in ("127.0.0.2", "198.51.100.1", "gpu-box-2")),
    ],
)
def test_a_usual_port_is_looked_at_where_no_target_of_this_host_has_it(
    monkeypatch: pytest.MonkeyPatch, host: str, *, found: bool
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "GPU-box")
    with EngineServer(ROUTES) as engine:
        looking = replace(ONE, engines={"one": replace(ONE.engines["one"], port=engine.port)}, discover=True)
        mine = Target(name="mine", endpoint=Endpoint(url=f"http://{host}:{engine.port}"), engine="one")
        poller = Poller(replace(looking, targets=(mine,)))

        async def once() -> None:
            await poller.once()
            assert (engine.name in poller.slots) is found
            await poller.stop()

        bounded.run(once())


def test_once_a_target_that_is_up_is_joined_with_what_this_host_shows_or_why_it_does_not() -> None:
    nobody = 4_194_303  # a process that is very likely not there
    with EngineServer(ROUTES) as engine, EngineServer() as gone:
        targets = (target(engine), target(engine, "other", pid=nobody), target(gone, "gone", engine="one", pid=nobody))
        poller = Poller(replace(ONE, host=True, targets=targets))

        async def once() -> None:
            await poller.once()
            found = {each.target: each for each in poller.snapshots()}
            shown = {point.series.metric.name for point in found["t"].points}
            assert "llm_host_processes" in shown
            assert found["t"].health.warnings == ()
            assert [each.message for each in found["other"].health.warnings] != []
            assert (found["gone"].points, found["gone"].health.warnings) == ((), ())
            await poller.stop()

        bounded.run(once())


def test_once_there_is_nothing_to_join_with_a_target_of_another_host() -> None:
    far = Target(name="far", endpoint=Endpoint(url="http://192.0.2.1:9"), engine="one", timeout=0.1)  # RFC 5737
    poller = Poller(replace(ONE, host=True, targets=(far,)))

    async def once() -> None:
        await poller.once()
        assert [(each.target, each.health.up, each.points) for each in poller.snapshots()] == [("far", False, ())]
        await poller.stop()

    bounded.run(once())


# GPUs ----------------------------------------------------------------------------------------------------------------
ABSENT = Failure(Cause.LIBRARY, "no NVML")


@pytest.mark.parametrize(
    ("enabled", "failure", "slots", "absent"),
    [
        (None, None, 1, 0),
        (None, ABSENT, 0, 1),
        (True, ABSENT, 1, 0),
        (True, None, 1, 0),
        (False, None, 0, 0),
    ],
)
def test_gpus_are_there_where_they_can_be_read_or_are_wanted(
    enabled: bool | None,  # noqa: FBT001 - a case
    failure: Failure | None,
    slots: int,
    absent: int,
) -> None:
    config = replace(ALONE, gpu=GpuSettings(enabled=enabled))

    async def once() -> None:
        card = Card(failure)
        poller = Poller(config, gpus=card)
        await poller.once()
        assert (len(poller.slots), [str(what) for what in poller.absent]) == (slots, ["GPUs"] * absent)
        assert card.closed == absent
        await poller.stop()
        assert card.closed == absent + slots

    bounded.run(once())
    card = Card(failure)
    poller = Poller(config, gpus=card)

    async def polled() -> None:
        await until(lambda: card.reads or enabled is False)
        await until(lambda: (len(poller.slots), len(poller.absent)) == (slots, absent))
        await until(lambda: len(poller.snapshots()) == slots)
        if slots:
            assert "llm_gpu_state" in names(poller, GPU_TARGET)
            assert (GPU_TARGET, poller.snapshots()[0].health.error) == (poller.snapshots()[0].target, failure)

    polling(poller, polled)
    assert card.closed == slots + absent


def gpu_source(config: Config, card: Card) -> GpuSource:
    return GpuSource(config, tuple, Finder(), explain=False, events=False, reader=card)


async def answered(source: GpuSource) -> Snapshot:
    """A collection that NVML has answered in time, on a busy machine, too."""
    while True:
        snapshot = await source.collect()
        if snapshot.health.error is None or snapshot.health.error.cause is not Cause.TIMEOUT:
            return snapshot


def test_a_driver_that_hangs_costs_the_gpus_alone_and_is_not_asked_twice() -> None:
    async def test() -> None:
        card = Card()
        config = replace(ALONE, interval=7.0, timeout=0.02)
        source = gpu_source(config, card)
        assert source.interval == 7.0
        first = await answered(source)
        reads = card.reads
        assert (first.health.up, first.health.last_success, first.health.version) == (True, first.taken, "1.0")
        card.hangs = threading.Event()
        late, later = await source.collect(), await source.collect()
        assert card.reads == reads + 1
        for each in (late, later):
            assert (each.target, each.engine, each.points) == ("nvml", "nvml", ())
            assert (each.health.up, each.health.last_success) == (False, first.taken)
            assert each.health.error is not None
            assert each.health.error.cause is Cause.TIMEOUT
            assert each.health.error.message.startswith("NVML has not answered for ")
        await source.close()
        assert card.closed == 0, "a call is on its way"
        card.hangs.set()
        card.hangs = None
        again = await answered(source)
        assert again.health.up
        card.failure = ABSENT
        failed = await answered(source)
        assert (failed.health.error, failed.health.last_success) == (ABSENT, again.taken)
        assert [point.series.metric for point in source.retained] == [schema.GPU_XID_ERRORS]
        await source.close()
        assert card.closed == 1

    bounded.run(test())


def test_gpus_have_an_interval_of_their_own_if_that_is_wanted() -> None:
    config = replace(ALONE, gpu=GpuSettings(interval=3.0))
    assert gpu_source(config, Card()).interval == 3.0


def test_what_a_gpu_reading_is_made_of() -> None:
    async def test() -> None:
        snapshot = await gpu_source(ALONE, Card()).collect()
        found = {point.series.metric.name: point.value for point in snapshot.points}
        assert found["llm_gpu_memory_unattributed_bytes"] == 40.0
        assert found["llm_gpu_memory_headroom_bytes"] == 60.0
        assert [*snapshot.health.samples.values()] == [4]
        assert 0.0 <= snapshot.health.duration_seconds < 60.0

    bounded.run(test())


def test_xid_errors_are_exported_while_gpus_cannot_be_read() -> None:
    card = Card()
    poller = Poller(replace(ALONE, gpu=GpuSettings(enabled=True)), gpus=card)

    async def test() -> None:
        await until(poller.snapshots)
        assert "llm_gpu_xid_errors_total" not in names(poller, GPU_TARGET), "a reading has them itself"
        card.failure = ABSENT
        await until(lambda: not poller.snapshots()[0].health.up)
        assert "llm_gpu_xid_errors_total" in names(poller, GPU_TARGET)

    polling(poller, test)


# Host ----------------------------------------------------------------------------------------------------------------
def test_engines_may_be_seen_on_this_host_or_where_its_gpus_are_read() -> None:
    here, elsewhere = (
        Target(name=host, endpoint=Endpoint(url=f"http://{host}:1")) for host in ("127.0.0.1", "10.9.9.9")
    )
    for targets, gpus, seen in (
        ([here, elsewhere], False, True),
        ([elsewhere], False, False),
        ([elsewhere], True, True),
        ([], True, False),
    ):
        assert HostWatch(Finder(), timeout=1.0).may_see(targets, gpus=gpus) is seen


def test_why_an_engine_is_not_seen_is_said_once_and_not_of_one_that_runs_elsewhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    targets = [Target(name=host, endpoint=Endpoint(url=f"http://{host}:1")) for host in ("127.0.0.1", "10.9.9.9")]
    up = [
        Watched(each, Snapshot(target=each.name, engine="one", taken=1.0, health=Health(up=True))) for each in targets
    ]

    async def test() -> None:
        host = HostWatch(Finder(Proc(tmp_path)), timeout=60.0)
        assert host.may_see(targets, gpus=False)
        for _ in range(2):
            found = await host.read(up)
            assert [name for name, each in found.items() if each.hidden] == ["127.0.0.1"]
        assert [vars(each)["target"] for each in caplog.records if each.msg == "not seen"] == ["127.0.0.1"]
        assert await host.read([]) == {}
        await host.read(up)
        assert len([each for each in caplog.records if each.msg == "not seen"]) == 2

    bounded.run(test())


# Reloads -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "gpus_go_on", "beside_goes_on"),
    [
        ({"listen": (":1",)}, True, True),
        ({"interval": 0.06}, False, True),
        ({"gpu": GpuSettings(enabled=True, pcie=True)}, False, True),
        ({"label_limit": 100}, False, False),
    ],
)
def test_a_reload_leaves_what_it_does_not_concern(
    change: dict[str, Any], *, gpus_go_on: bool, beside_goes_on: bool
) -> None:
    config = replace(ALONE, gpu=GpuSettings(enabled=True))
    poller = Poller(config, gpus=Card(), beside=[Beside()])

    async def test() -> None:
        await until(lambda: len(poller.snapshots()) == 2)
        before = dict(poller.slots)
        states = {name: slot.snapshot for name, slot in before.items()}
        await poller.apply(replace(config, **change))
        await until(lambda: len(poller.slots) == 2)
        goes_on = {name: poller.slots[name] is slot for name, slot in before.items()}
        assert goes_on == {GPU_TARGET: gpus_go_on, "beside": beside_goes_on}
        for name, slot in poller.slots.items():
            assert slot.snapshot is not None
            was = states[name]
            assert was is not None
            assert [each.since for each in slot.snapshot.states] == [each.since for each in was.states]

    polling(poller, test)


def test_gpus_and_discovery_are_switched_off_by_a_reload() -> None:
    config = replace(ALONE, gpu=GpuSettings(enabled=True))
    card = Card()
    poller = Poller(config, gpus=card)

    async def test() -> None:
        await until(poller.snapshots)
        await poller.apply(replace(config, gpu=GpuSettings(enabled=False)))
        assert not poller.slots
        await until(lambda: card.closed == 1)

    polling(poller, test)
