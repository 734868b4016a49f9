"""A new configuration while engines are polled: what it does not change goes on, and no judgement starts anew."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

import bounded
from captures import Capture
from engine_server import EngineServer, Reply, replayed
from llm_headroom.commands.reload import Running, reload
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.objectives import Objectives
from llm_headroom.config.settings import Config, Cost, EngineSettings, GpuSettings, RuleSettings, Target
from llm_headroom.notify.notifier import Notifier
from llm_headroom.otlp.pusher import Pusher
from llm_headroom.otlp.tally import Tally
from llm_headroom.poll.poller import Poller
from llm_headroom.poll.published import Published
from llm_headroom.proxy.service import Proxies

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llm_headroom.model import Snapshot


def config(url: str) -> Config:
    target = Target(name="t", endpoint=Endpoint(url=url))
    return Config(gpu=GpuSettings(enabled=False), host=False, interval=0.1, targets=(target,))


async def another(poller: Poller, known: Snapshot | None = None) -> Snapshot:
    """The target's next snapshot that is not one that is known (the wall clock may be set back, so not by time)."""
    while True:
        for snapshot in poller.snapshots():
            if known is None or snapshot is not known:
                return snapshot
        await asyncio.sleep(0.005)


def reloaded(before: Config, after: Config) -> tuple[Snapshot, Snapshot, bool]:
    """Snapshots before and after a new configuration, and whether its source has gone on."""
    results: list[tuple[Snapshot, Snapshot, bool]] = []

    async def test() -> None:
        poller = Poller(before)
        poller.start()
        try:
            first = await another(poller)
            source = poller.slots["t"].source
            await poller.apply(after)
            published = poller.snapshots()
            assert published[0].states == first.states  # nothing is absent until the next poll
            second = await another(poller, published[0])
            results.append((first, second, poller.slots["t"].source is source))
        finally:
            await poller.stop()

    bounded.run(test())
    return results[0]


NEW: Final = EngineSettings(
    name="new", prefixes=("new_",), rules=(RuleSettings(metric="llm_requests_running", names=("new_running",)),)
)
CHANGES: Final[Mapping[str, tuple[Callable[[Config], Config], bool]]] = {
    "listen": (lambda config: replace(config, listen=(":1",)), True),
    "interval": (lambda config: replace(config, interval=0.2), True),
    "cost": (lambda config: replace(config, cost=Cost(gpu_hour=2.0)), True),
    "gpu": (lambda config: replace(config, gpu=GpuSettings(enabled=False, pcie=True)), True),
    "label_limit": (lambda config: replace(config, label_limit=100), False),
    "timeout": (lambda config: replace(config, timeout=4.0), False),
    "host": (lambda config: replace(config, host=True), False),
    "engines": (lambda config: replace(config, engines={"new": NEW}), False),
    "mappings": (
        lambda config: replace(config, mappings={"vllm": (replace(NEW.rules[0], names=("vllm:new",)),)}),
        False,
    ),
    "objectives": (lambda config: replace(config, objectives=Objectives(ttft=3.0)), False),
    "detail": (lambda config: replace(config, detail="essential"), False),
}
"""By key: a change, and whether a target's source goes on."""


@pytest.mark.parametrize("key", CHANGES)
def test_a_target_goes_on_where_it_can_and_its_state_always(key: str) -> None:
    change, goes_on = CHANGES[key]
    with EngineServer(replayed(Capture("vllm", "0.32.0", "saturated"))) as engine:
        before = config(engine.url)
        first, second, same = reloaded(before, change(before))

    assert same is goes_on
    assert second.health.up
    assert second.engine == first.engine == "vllm"
    assert [(each.state, each.since) for each in second.states] == [(each.state, each.since) for each in first.states]


def test_a_target_that_is_gone_is_polled_no_longer(caplog: pytest.LogCaptureFixture) -> None:
    def polling() -> set[str]:
        return {task.get_name() for task in asyncio.all_tasks()}

    with EngineServer(replayed(Capture("vllm", "0.32.0", "saturated"))) as engine:

        async def test() -> None:
            before = config(engine.url)
            other = replace(before.targets[0], name="other")
            poller = Poller(replace(before, targets=(*before.targets, other)))
            poller.start()
            try:
                while len(poller.snapshots()) < 2:  # noqa: ASYNC110 - nobody tells of a round
                    await asyncio.sleep(0.005)
                assert {"t", "other"} <= polling()
                await poller.apply(before)
                assert "t" in polling()
                assert "other" not in polling()
                assert [each.target for each in poller.snapshots()] == ["t"]
                await another(poller, poller.snapshots()[0])
            finally:
                await poller.stop()
            assert "t" not in polling()

        bounded.run(test())
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_another_engine_under_the_same_name_is_judged_anew() -> None:
    capture = Capture("vllm", "0.32.0", "saturated")
    with EngineServer(replayed(capture)) as engine, EngineServer(replayed(capture)) as other:

        async def test() -> None:
            poller = Poller(config(engine.url))
            poller.start()
            try:
                first = await another(poller)
                await poller.apply(config(other.url))
                second = await another(poller, first)
                assert second.states[0].since > first.states[0].since
            finally:
                await poller.stop()

        bounded.run(test())


def test_an_engine_is_not_identified_anew_and_is_where_it_was_said_to_be_another() -> None:
    async def test() -> None:
        with EngineServer(replayed(Capture("vllm", "0.32.0", "saturated"))) as engine:
            before = config(engine.url)
            poller = Poller(before)
            poller.start()
            try:
                first = await another(poller)
                engine.routes = {}
                await poller.apply(replace(before, label_limit=100))
                second = first
                while second.health.up:
                    second = await another(poller, second)
                assert (first.engine, second.engine) == ("vllm", "vllm")
                named = replace(before.targets[0], engine="sglang")
                await poller.apply(replace(before, targets=(named,)))
                third = await another(poller, second)
                assert (third.engine, third.states[0].since > first.states[0].since) == ("sglang", True)
            finally:
                await poller.stop()

    bounded.run(test())


def test_engines_that_were_found_go_on_for_as_long_as_any_are_looked_for() -> None:
    async def test() -> None:
        with EngineServer({"/metrics": Reply(b"new_running 1\n")}) as found, EngineServer() as named:
            target = Target(name="named", endpoint=Endpoint(url=named.url), engine="vllm")
            looking = Config(
                gpu=GpuSettings(enabled=False),
                host=False,
                interval=0.05,
                discover=True,
                engines={"new": replace(NEW, port=found.port)},
                targets=(target,),
            )
            poller = Poller(looking)
            poller.start()
            try:
                while found.name not in poller.slots:  # noqa: ASYNC110 - nobody tells of what is found
                    await asyncio.sleep(0.005)
                source = poller.slots[found.name].source
                await poller.apply(replace(looking, interval=0.06, targets=()))
                assert poller.slots[found.name].source is source
                assert "named" not in poller.slots
                await poller.apply(replace(looking, discover=False))
                assert [*poller.slots] == ["named"]
                await poller.apply(looking)
                while found.name not in poller.slots:  # noqa: ASYNC110 - the same
                    await asyncio.sleep(0.005)
            finally:
                await poller.stop()

    bounded.run(test())


ALONE: Final = Config(gpu=GpuSettings(enabled=False), host=False, discover=False)


def errors_of_reloads(times: int, read: Callable[[asyncio.AbstractEventLoop], Config]) -> tuple[list[str], Config]:
    """What is said to be wrong after each of some reloads of ALONE, and the configuration that then applies."""
    poller = Poller(ALONE)
    published, tally = Published(poller, list), Tally()
    errors = []

    async def test() -> None:
        here, wanted, applied = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

        async def ready() -> None:
            """At once."""

        pusher = Pusher(tally, sources=published.sources, changed=lambda: None, ready=ready, port="1")
        notifier = Notifier(poller.snapshots, dict)
        running = Running(published, Proxies(ALONE), pusher, notifier)
        reloading = here.create_task(reload(running, lambda: read(here), wanted, applied.set))
        for _ in range(times):
            applied.clear()
            wanted.set()
            await applied.wait()
            errors.append(published.reload.error)
        reloading.cancel()
        await poller.stop()

    bounded.run(test())
    return errors, poller.config


def test_a_configuration_is_read_beside_what_goes_on() -> None:
    """A file of thousands of targets takes seconds."""

    def read(here: asyncio.AbstractEventLoop) -> Config:
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), here).result(bounded.LIMIT // 4)
        return replace(ALONE, interval=7.0)

    errors, applied = errors_of_reloads(1, read)
    assert (applied.interval, errors) == (7.0, [""])


def test_a_reload_that_fails_by_a_defect_is_said_and_the_next_one_applies(caplog: pytest.LogCaptureFixture) -> None:
    found = iter((None, replace(ALONE, interval=7.0)))

    def read(here: asyncio.AbstractEventLoop) -> Config:  # noqa: ARG001 - as the other
        config = next(found)
        if config is None:
            raise ZeroDivisionError
        return config

    errors, applied = errors_of_reloads(2, read)
    assert (applied.interval, errors) == (7.0, ["ZeroDivisionError in llm-headroom; see its log", ""])
    assert "configuration not reloaded: internal error (bug)" in caplog.text
