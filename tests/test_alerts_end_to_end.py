"""Simulated engines → exporter → Prometheus → Alertmanager → webhook: seven incidents at once, and two calm engines.

Whenever Alertmanager has told of one, the snapshot, the page, `top` and the dashboards' queries show the same state.
Conditions need hold a sixtieth of the time that they do in production; all else of the rules is as shipped.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final, Self

import pytest

from faces import Faces
from llm_headroom.bundle import alerts
from llm_headroom.bundle.settings import BundleSettings
from llm_headroom.commands import programs
from llm_headroom.commands.simulate import VERSIONS
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Config, GpuSettings, Target
from llm_headroom.poll.poller import Poller
from llm_headroom.poll.published import Published
from llm_headroom.simulate.clock import Clock
from llm_headroom.simulate.gpus import UNSEEN_PID, Holder, SimulatedGpus
from llm_headroom.simulate.hardware import A100_80GB, GIB, LLAMA_3_8B, LLAMA_3_70B
from llm_headroom.simulate.live import LiveEngine
from llm_headroom.simulate.misbehave import Burst, Misbehaviour
from llm_headroom.simulate.ollama_model import OllamaConfig
from llm_headroom.simulate.server import EngineServer, batching_server, ollama_server
from llm_headroom.simulate.traffic import Lengths, Synthetic
from llm_headroom.web.app import App
from llm_headroom.web.server import serve
from programs import program
from prometheus_server import asked

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llm_headroom.commands.programs import Program

SPEED: Final = 5.0
"""Virtual seconds of the engines per real one."""
DEADLINE: Final = 600.0
"""Seconds in which all of it must have come; a healthy run takes a small part of them."""
INSTANCE: Final = "exporter:9836"
RULES: Final = "llm-headroom.rules.yml"
LARGE: Final = "llama3:70b"
SATURATED: Final = 40
"""Waiting requests with which an engine stays saturated until the next burst."""

SATURATION: Final = {
    *("LLMFirstTokensSlow", "LLMSaturationRisk", "LLMLatencyBudgetBurnFast", "LLMLatencyBudgetBurnSlow"),
    *("LLMInterTokenLatencySlow", "LLMQueueBuilding", "LLMKVHeadroomLow", "LLMKVCacheExhausted"),
}
MAY_FIRE: Final = {
    "saturated": SATURATION,
    "leaky": {"LLMEngineDown", "LLMOomRisk"},
    "crashed": {"LLMEngineDown"},
    "renamed": {"LLMSignalLost"},
    "stalled": {"LLMEngineStalled", "LLMFirstTokensSlow"},  # the latter once it goes on: who waited, waited too long
    "loading": {"LLMEngineLoadingLong"},
    "ollama": {"LLMModelSpilledToCPU"},
    "gpu 1": {"LLMGpuMemoryHeadroomLow", "LLMGpuMemoryExhausted", "LLMOomRisk"},
}
"""What each incident may cause, by the target or GPU; whatever else fires is wrong."""


class Webhook:
    """Receives what Alertmanager sends."""

    def __init__(self) -> None:
        self.firing: set[tuple[str, str]] = set()
        self.seen: list[tuple[str, str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                document = json.loads(self.rfile.read(int(self.headers["content-length"])))
                for alert in document["alerts"]:
                    outer.take(self.path.strip("/"), alert)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def take(self, receiver: str, alert: dict[str, Any]) -> None:
        """Note an alert that came to a receiver."""
        labels = alert["labels"]
        where = labels.get("target") or (f"gpu {labels['gpu']}" if "gpu" in labels else labels.get("model", ""))
        key = (labels["alertname"], where)
        if alert["status"] == "firing":
            self.firing.add(key)
            if (*key, receiver) not in self.seen:
                self.seen.append((*key, receiver))
        else:
            self.firing.discard(key)


def has_seen(prometheus: Program, engines: int) -> bool:
    """Whether Prometheus knows so many engines as they are when they are well."""
    query = 'count(llm_source_samples{state="mapped", engine!="nvml"} > 0)'
    result = asked(prometheus.address, "query", query=query)["result"]
    return bool(result) and float(result[0]["value"][1]) == engines


def was_down(prometheus: str) -> bool:
    """Whether scrapes failed, as on a busy machine: where five seconds stand for five minutes, that pages."""
    return bool(asked(prometheus, "query", query='min_over_time(up{job="llm-headroom"}[1h]) == 0')["result"])


def engines(clock: Clock) -> dict[str, EngineServer]:
    """Engines under light traffic, one for each incident, and one that stays calm."""

    def vllm(share: float, seed: int) -> EngineServer:
        return batching_server(
            "vllm",
            clock,
            version=VERSIONS["vllm"],
            model=LLAMA_3_8B,
            gpu=A100_80GB,
            utilisation=share,
            seed=seed,
        )

    large = replace(LLAMA_3_70B, bytes_per_parameter=0.58)
    found = {
        "calm": vllm(0.3, 1),
        "saturated": vllm(0.3, 2),
        "leaky": vllm(0.9, 3),
        "renamed": vllm(0.3, 4),
        "crashed": vllm(0.5, 5),
        "stalled": vllm(0.3, 7),
        "quiet": vllm(0.3, 8),
        "ollama": ollama_server(
            OllamaConfig(models={LARGE: large}, gpu=A100_80GB, gpu_reserved=50 * GIB, keep_alive=30.0), clock
        ),
    }
    for number, (name, server) in enumerate(found.items()):
        if name not in {"ollama", "quiet"}:
            server.live.feed.add(Synthetic(1.0, Lengths(300, 0.3), Lengths(100, 0.3)).requests(number), 0.0)
    return found


def gpus(servers: dict[str, EngineServer], clock: Clock) -> SimulatedGpus:
    """Four devices: three small engines, the leaky one, Ollama and the one that crashes, and two small ones more."""
    pids = {name: UNSEEN_PID + number for number, name in enumerate(servers)}

    def device(*names: str) -> tuple[Any, tuple[Holder, ...]]:
        return A100_80GB, tuple(
            Holder(servers[name].gpu_memory, pids[name], lambda name=name: servers[name].live.busy_seconds)  # type: ignore[misc]
            for name in names
        )

    return SimulatedGpus(
        clock,
        (
            device("calm", "saturated", "renamed"),
            device("leaky"),
            device("ollama", "crashed"),
            device("stalled", "quiet"),
        ),
    )


async def exporter(servers: dict[str, EngineServer], simulated: SimulatedGpus, stack: AsyncExitStack) -> str:
    """The exporter's address; one of its targets has not begun to listen."""
    places = {"calm": "0", "saturated": "0", "renamed": "0", "leaky": "1", "ollama": "2", "crashed": "2"}
    places |= {"stalled": "3", "quiet": "3"}
    nobody = stack.enter_context(socket.socket())
    nobody.bind(("127.0.0.1", 0))  # and never listens
    loading = Target(
        name="loading",
        endpoint=Endpoint(url="http://{}:{}".format(*nobody.getsockname())),
        engine="vllm",
    )
    config = Config(
        listen=("127.0.0.1:0",),
        interval=1.0,
        targets=(
            loading,
            *(
                Target(
                    name=name,
                    endpoint=Endpoint(url=f"http://{server.address}"),
                    engine="ollama" if name == "ollama" else "vllm",
                    pid=UNSEEN_PID + number,
                    gpus=(places[name],),
                )
                for number, (name, server) in enumerate(servers.items())
            ),
        ),
        discover=False,
        gpu=GpuSettings(enabled=True),
        host=False,
    )
    poller = Poller(config, gpus=simulated)
    app = App(Published(poller))
    poller.on_change(app.changed)
    server = await serve(app.handle, config.listen)
    stack.push_async_callback(app.close)
    stack.push_async_callback(poller.stop)
    stack.push_async_callback(server.close)
    poller.start()
    return server.addresses[0]


def watched(folder: Path, address: str, hook: Webhook, stack: ExitStack) -> tuple[Program, Program]:
    """Start Prometheus and Alertmanager over the exporter, without rules yet; return both."""
    (folder / RULES).write_text('{"groups": []}')
    routes = alerts.alertmanager(hook.url)
    routes["route"] |= {"group_wait": "500ms", "group_interval": "1s", "group_by": ["..."]}
    for below in (each for route in routes["route"]["routes"] for each in route.get("routes", ())):
        below["group_wait"] = "500ms"
    alertmanager = stack.enter_context(programs.alertmanager(folder, routes))
    scrape = {"job_name": "llm-headroom", "static_configs": [{"targets": [address], "labels": {"instance": INSTANCE}}]}
    config = {
        # a scrape that fails begins every `for` again: on a busy machine one takes more than a second
        "global": {"scrape_interval": "4s", "scrape_timeout": "4s", "evaluation_interval": "1s"},
        "rule_files": [RULES],
        "scrape_configs": [scrape],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager.address]}]}]},
    }
    return stack.enter_context(programs.prometheus(folder, config)), alertmanager


def load(prometheus: Program, folder: Path, settings: BundleSettings) -> None:
    """Have the rules evaluated from now on: absence is no news before the first scrape."""
    (folder / RULES).write_text(json.dumps({"groups": alerts.groups(settings)}))
    prometheus.process.send_signal(signal.SIGHUP)


def has_recorded(prometheus: Program, engines: int) -> bool:
    """Whether the rules have recorded so many engines as they are when they are well, which alerts look back at."""
    query = (
        'count(target:llm_requests_running:count and on (target) target:llm_source_samples_mapped:max{engine="vllm"})'
    )
    result = asked(prometheus.address, "query", query=query)["result"]
    return bool(result) and float(result[0]["value"][1]) == engines


@pytest.mark.waits(75)
def test_the_right_alerts_reach_people_and_end(tmp_path: Path) -> None:
    program("prometheus", "prometheus")
    program("prometheus-alertmanager", "prometheus-alertmanager")

    async def play(hook: Webhook) -> None:
        async with asyncio.timeout(DEADLINE), AsyncExitStack() as stack:
            clock = Clock(SPEED)
            servers = engines(clock)
            for server in servers.values():
                await server.start("127.0.0.1:0")
                stack.push_async_callback(server.close)
            simulated = await stack.enter_async_context(gpus(servers, clock))
            address = await exporter(servers, simulated, stack)
            started = await asyncio.to_thread(watched, tmp_path, address, hook, stack.enter_context(ExitStack()))
            prometheus, alertmanager = started
            while not await asyncio.to_thread(has_seen, prometheus, len(servers)):  # noqa: ASYNC110 - another program tells
                await asyncio.sleep(0.2)
            load(prometheus, tmp_path, BundleSettings(for_scale=1 / 60))
            while not await asyncio.to_thread(has_recorded, prometheus, len(servers) - 1):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.2)
            await incidents(servers, hook, Faces(address, prometheus.address, alertmanager.address))

    with Webhook() as hook:
        try:
            asyncio.run(play(hook))
        except TimeoutError:
            logs = [log.read_text() for log in tmp_path.glob("*.log")]
            raise AssertionError(("what is missing did not come in time", hook.firing, hook.seen, logs)) from None


async def incidents(servers: dict[str, EngineServer], hook: Webhook, faces: Faces) -> None:
    """All incidents at once, each until it was told, and then until it was told to be over."""
    await asyncio.gather(
        saturation(servers["saturated"], hook, faces),
        leak(servers["leaky"], hook),
        crash(servers["crashed"], hook, faces),
        rename(servers["renamed"], hook),
        spill(servers["ollama"], hook),
        stall(servers["stalled"], hook, faces),
        agreed(faces, "loading", "loading", {"LLMEngineLoadingLong"}),
        agreed(faces, "quiet", "idle", set()),
        agreed(faces, "calm", "ok", set()),
    )
    for name, where, receiver in hook.seen:
        wanted = next(alert.severity.value for alert in alerts.ALERTS if alert.name == name)
        fleet = name.startswith("LLMLatencyBudget")  # of a model, not of a target
        late = name == "LLMExporterDown" and await asyncio.to_thread(was_down, faces.prometheus)
        late |= name == "LLMCollectionSlow"  # on a busy machine it is
        assert fleet or late or name in MAY_FIRE.get(where, ()), hook.seen
        assert receiver == wanted, (name, receiver)


async def agreed(faces: Faces, target: str, state: str, told: set[str]) -> None:
    """Wait until every face shows a state of a target, and Alertmanager notifies of it by such alerts."""

    def agree() -> bool:
        return faces.alerts(target) >= told and faces.agree(target, state) and (bool(told) or not faces.alerts(target))

    while not await asyncio.to_thread(agree):  # noqa: ASYNC110 - other programs tell
        await asyncio.sleep(0.5)


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds; the test's deadline bounds it."""
    while not holds():  # noqa: ASYNC110 - another thread tells
        await asyncio.sleep(0.1)


async def saturation(server: EngineServer, hook: Webhook, faces: Faces) -> None:
    """The KV cache fills: its use is told in a ticket, slow first tokens on the pager; later there is room again."""
    seen = asyncio.create_task(agreed(faces, "saturated", "slow", {"LLMFirstTokensSlow"}))

    def told(*names: str) -> bool:
        return any((name, "saturated") in hook.firing for name in names)

    full = ("LLMKVHeadroomLow", "LLMKVCacheExhausted")  # the last inhibits the others
    assert isinstance(server.live, LiveEngine)
    while not (told(*full) and told("LLMFirstTokensSlow") and seen.done()):
        if server.live.read().waiting < SATURATED:  # more would only take longer to be worked off
            server.misbehave(Misbehaviour(burst=Burst(8.0, 10.0, 800, 300)))
        await asyncio.sleep(10.0 / SPEED)  # one burst after the other
    await seen
    await until(lambda: not told(*full))


async def leak(server: EngineServer, hook: Webhook) -> None:
    """Memory leaks: it is told while the engine still runs; then it dies of it, which is told; then all is well."""
    server.misbehave(Misbehaviour(leak_bytes_per_second=120e6))
    low = {("LLMGpuMemoryHeadroomLow", "gpu 1"), ("LLMGpuMemoryExhausted", "gpu 1")}  # the second inhibits the first
    await until(lambda: bool(low & hook.firing))
    assert server.live.alive
    assert ("LLMEngineDown", "leaky") not in hook.firing
    await down_until_told(server, "leaky", hook)
    await until(lambda: not (low | {("LLMEngineDown", "leaky")}) & hook.firing)


async def down_until_told(
    server: EngineServer, name: str, hook: Webhook, seen: asyncio.Task[None] | None = None
) -> None:
    """An engine dies, and does not come back before somebody was told, however slow this machine is."""
    while ("LLMEngineDown", name) not in hook.firing or not (seen is None or seen.done()):
        server.misbehave(Misbehaviour(crash_seconds=25.0))  # while it is down, it stays down for longer
        await asyncio.sleep(10.0 / SPEED)


async def crash(server: EngineServer, hook: Webhook, faces: Faces) -> None:
    """An engine is gone, and comes back."""
    seen = asyncio.create_task(agreed(faces, "crashed", "down", {"LLMEngineDown"}))
    await down_until_told(server, "crashed", hook, seen)
    await until(lambda: ("LLMEngineDown", "crashed") not in hook.firing)


async def stall(server: EngineServer, hook: Webhook, faces: Faces) -> None:
    """An engine hangs with requests in it, until it is killed; one that hangs without any looks idle."""
    server.misbehave(Misbehaviour(burst=Burst(2.0, 10.0, 300, 2000)))
    assert isinstance(server.live, LiveEngine)
    live = server.live
    await until(lambda: live.read().running > 2)
    server.misbehave(Misbehaviour(stall_seconds=3600.0))
    assert live.read().running
    await agreed(faces, "stalled", "stalled", {"LLMEngineStalled"})
    server.misbehave(Misbehaviour(crash_seconds=1.0))
    await until(lambda: ("LLMEngineStalled", "stalled") not in hook.firing)


async def rename(server: EngineServer, hook: Webhook) -> None:
    """An upgrade renames a metric, and a newer one takes it back."""
    name = "vllm:num_requests_running"
    server.misbehave(Misbehaviour(rename={name: "vllm:requests_in_batch"}))
    await until(lambda: ("LLMSignalLost", "renamed") in hook.firing)
    server.misbehave(Misbehaviour(rename={name: name}))
    await until(lambda: ("LLMSignalLost", "renamed") not in hook.firing)


async def spill(server: EngineServer, hook: Webhook) -> None:
    """A model does not fit the GPU, until somebody was told and it is unloaded, however slow this machine is."""
    while ("LLMModelSpilledToCPU", "ollama") not in hook.firing:
        server.misbehave(Misbehaviour(burst=Burst(0.2, 10.0, 50, 10, LARGE)))
        await asyncio.sleep(10.0 / SPEED)  # the last one keeps it in memory for its keep_alive
    await until(lambda: ("LLMModelSpilledToCPU", "ollama") not in hook.firing)
