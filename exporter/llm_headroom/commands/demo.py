"""The demo: simulated vLLM, SGLang and Ollama on two simulated GPUs under replayed traffic, monitored by the exporter.

All of it is one process, so that nothing is left when it ends, apart from Prometheus, Alertmanager and Grafana where
they are installed (`demo_stack`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import click

from llm_headroom.commands import demo_stack, logs
from llm_headroom.commands.exits import fail
from llm_headroom.commands.simulate import VERSIONS
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Config, Cost, GpuSettings, ModelMemory, ProxySettings, Target
from llm_headroom.net.listen import ListenError, visited
from llm_headroom.poll.poller import Poller
from llm_headroom.poll.published import Published
from llm_headroom.proxy.service import Proxies
from llm_headroom.simulate import clients, scenario
from llm_headroom.simulate.clock import Clock
from llm_headroom.simulate.gpus import UNSEEN_PID, Holder, SimulatedGpus
from llm_headroom.simulate.hardware import A100_80GB, GIB, LLAMA_3_8B, LLAMA_3_70B, QWEN_2_5_7B, Model
from llm_headroom.simulate.misbehave import Burst, Misbehaviour
from llm_headroom.simulate.ollama_model import OllamaConfig
from llm_headroom.simulate.scenario import Incident
from llm_headroom.simulate.server import EngineServer, batching_server, ollama_server
from llm_headroom.simulate.traffic import Lengths, Synthetic, bundled_trace, repeated, scaled, sharing
from llm_headroom.web.app import App
from llm_headroom.web.server import serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llm_headroom.simulate.traffic import Request

log = logging.getLogger("llm_headroom.demo")

DAY: Final = 1200.0
"""Virtual seconds of the demo's day."""
_SWING: Final = 0.6
_TRACE_SECONDS: Final = {"azure_conv": 600.0, "azure_code": 1200.0}
_VLLM_SHARE: Final = 0.42
_SGLANG_SHARE: Final = 0.5
_NEIGHBOUR: Final = 6 * GIB
_GPU_HOUR: Final = 3.0
_XID: Final = 31
"""Of the crash: the GPU met an address that the program had not mapped (NVIDIA's Xid catalog)."""
_SYSTEM_PROMPT: Final = 512
"""Tokens with which prompts begin that are longer: what a prefix cache finds again."""
SMALL: Final = "llama3:8b"
LARGE: Final = "llama3:70b"


def four_bit(model: Model) -> Model:
    """A model as Ollama usually runs it."""
    return replace(model, bytes_per_parameter=0.58)  # llama.cpp's Q4_K_M: 4.6 to 4.9 bits per weight


OLLAMA: Final = OllamaConfig(
    models={SMALL: four_bit(LLAMA_3_8B), LARGE: four_bit(LLAMA_3_70B)},
    gpu=A100_80GB,
    gpu_reserved=round(A100_80GB.memory_bytes * _SGLANG_SHARE) + GIB,
    num_parallel=4,
    keep_alive=120.0,
)

INCIDENTS: Final = (
    Incident(60.0, "vllm", Misbehaviour(burst=Burst(7.0, 75.0, 700, 700)), "a burst that fills vLLM's KV cache"),
    Incident(240.0, "sglang", Misbehaviour(burst=Burst(0.5, 60.0, 14_000, 250)), "long prompts reach SGLang"),
    Incident(
        420.0,
        "ollama",
        Misbehaviour(burst=Burst(0.1, 90.0, 300, 60, LARGE)),
        "a request to Ollama for a model that does not fit the GPU",
    ),
    Incident(580.0, "sglang", Misbehaviour(burst=Burst(3.0, 40.0, 1000, 500)), "a minute of high load on SGLang"),
    Incident(600.0, "sglang", Misbehaviour(stall_seconds=100.0), "SGLang stalls for 100 s"),
    Incident(720.0, "vllm", Misbehaviour(leak_bytes_per_second=150e6), "vLLM leaks 150 MB of GPU memory per second"),
    Incident(900.0, "vllm", Misbehaviour(crash_seconds=60.0), "vLLM crashes and restarts after 60 s"),
    Incident(1020.0, "sglang", Misbehaviour(slowdown=3.0), "SGLang's GPU is throttled to a third"),
    Incident(1100.0, "sglang", Misbehaviour(slowdown=1.0), "SGLang's GPU is back to full speed"),
)

LOADING: Final = 20.0
"""Virtual seconds for which SGLang does not answer at first: it has never answered, so it is loading and not down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the demo is started.

    Attributes:
        listen: address of the exporter.
        speed: virtual seconds per real second.
        seed: random seed.
        stack: whether Prometheus, Alertmanager and Grafana are started where they are installed.
        interval: seconds between the exporter's polls.
    """

    listen: str
    speed: float
    seed: int
    stack: bool
    interval: float = 2.0


def engines(settings: Settings, clock: Clock) -> dict[str, EngineServer]:
    """The demo's engines by name, under traffic, not yet listening."""
    seed = settings.seed
    found = {
        "vllm": batching_server(
            "vllm",
            clock,
            version=VERSIONS["vllm"],
            model=LLAMA_3_8B,
            gpu=A100_80GB,
            utilisation=_VLLM_SHARE,
            seed=seed,
        ),
        "sglang": batching_server(
            "sglang",
            clock,
            version=VERSIONS["sglang"],
            model=QWEN_2_5_7B,
            gpu=A100_80GB,
            utilisation=_SGLANG_SHARE,
            max_num_seqs=64,
            seed=seed,
        ),
        "ollama": ollama_server(OLLAMA, clock),
    }
    for name, trace, rate in (("vllm", "azure_conv", 0.6), ("sglang", "azure_code", 0.7)):
        again = repeated(scaled(bundled_trace(trace), rate), _TRACE_SECONDS[trace] / rate)
        found[name].live.feed.add(sharing(scenario.daily(again, DAY, _SWING), 5, _SYSTEM_PROMPT, seed), 0.0)
    return found


def chats(seed: int) -> Iterator[Request]:
    """What Ollama's clients ask for; they come through the proxy, as Ollama has no metrics of its own."""
    return Synthetic(0.3, Lengths(200, 0.6), Lengths(150, 0.6), day_swing=_SWING, day_seconds=DAY).requests(seed)


def targets(servers: dict[str, EngineServer]) -> tuple[Target, ...]:
    """The exporter's configuration for the engines.

    The simulated GPUs list processes of vLLM and SGLang that /proc does not have, so their GPUs are configured.
    Ollama's process is this one.
    """
    pids = {"vllm": UNSEEN_PID, "sglang": UNSEEN_PID + 1, "ollama": os.getpid()}
    gpus = {"vllm": ("0",), "sglang": ("1",)}
    memory = {"vllm": ModelMemory(weights=LLAMA_3_8B.weights_bytes, kv_bytes_per_token=LLAMA_3_8B.kv_bytes_per_token)}
    return tuple(
        Target(
            name=name,
            endpoint=Endpoint(url=f"http://{server.address}"),
            engine=name,
            pid=pids[name],
            gpus=gpus.get(name, ()),
            model_memory=memory.get(name, ModelMemory()),
        )
        for name, server in servers.items()
    )


def simulated_gpus(servers: dict[str, EngineServer], clock: Clock) -> SimulatedGpus:
    """Two A100: one with vLLM and a neighbour, one with SGLang and Ollama."""

    def holder(name: str, pid: int) -> Holder:
        server = servers[name]
        return Holder(server.gpu_memory, pid, lambda: server.live.busy_seconds, lambda: server.live.slowdown)

    first = (holder("vllm", UNSEEN_PID), Holder(lambda: _NEIGHBOUR))
    second = (holder("sglang", UNSEEN_PID + 1), holder("ollama", os.getpid()))
    return SimulatedGpus(clock, ((A100_80GB, first), (A100_80GB, second)))


async def run(settings: Settings, say: Callable[[str], None]) -> None:
    """Run the demo until SIGINT or SIGTERM; `say` gets lines of text to show.

    Raises:
        llm_headroom.net.listen.ListenError: the exporter's address cannot be listened on.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    clock = Clock(settings.speed)
    servers = engines(settings, clock)
    async with AsyncExitStack() as stack:
        for server in servers.values():
            await server.start("127.0.0.1:0")
            stack.push_async_callback(server.close)
        gpus = await stack.enter_async_context(simulated_gpus(servers, clock))
        servers["sglang"].misbehave(Misbehaviour(crash_seconds=LOADING))
        address, proxy = await _export(settings, targets(servers), gpus, stack)
        for name, server in servers.items():
            say(f"{name:<12} http://{server.address}/   (simulated)")
        say(f"proxy        http://{proxy}/   measures what Ollama does not expose")
        say(f"llm-headroom http://{visited(address)}/   status page; metrics at /metrics")
        if settings.stack:
            for line in await demo_stack.start(address, stack, settings.speed):
                say(line)
        say(f"A day takes {DAY / settings.speed / 60:.0f} minutes. Ctrl-C stops everything.")

        def begin(incident: Incident) -> None:
            say(f"incident: {incident.what}")
            servers[incident.engine].misbehave(incident.how)
            if incident.how.crash_seconds is not None:
                gpus.fail(0, _XID)

        asking = loop.create_task(clients.chat(proxy, SMALL, chats(settings.seed), clock))
        repeating = (replace(one, every=DAY) for one in INCIDENTS)
        try:
            await scenario.play_until(ended, repeating, clock, begin)
        finally:
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking
    say("ended")


async def _export(
    settings: Settings, watched: tuple[Target, ...], gpus: SimulatedGpus, stack: AsyncExitStack
) -> tuple[str, str]:
    """Start the exporter over the engines; return the address of its page, and of the proxy before Ollama."""
    config = Config(
        listen=(settings.listen,),
        interval=settings.interval,
        timeout=settings.interval,
        targets=watched,
        discover=False,
        gpu=GpuSettings(enabled=True),
        host=False,
        cost=Cost(gpu_hour=_GPU_HOUR),
        proxies=(ProxySettings(listen="127.0.0.1:0", target="ollama"),),
    )
    proxies = Proxies(config)
    poller = Poller(config, gpus=gpus, beside=proxies.sources, measured=proxies.joined)
    app = App(Published(poller))
    poller.on_change(app.changed)
    await proxies.start()
    stack.push_async_callback(proxies.close)
    server = await serve(app.handle, config.listen)
    stack.push_async_callback(app.close)
    stack.push_async_callback(poller.stop)
    stack.push_async_callback(server.close)
    poller.start()
    return server.addresses[0], proxies.addresses[0]


@click.command("demo")
@click.option(
    "--listen",
    default="127.0.0.1:9836",
    show_default=True,
    metavar="[HOST]:PORT",
    help="Address of the exporter.",
)
@click.option("--speed", type=float, default=1.0, show_default=True, help="Virtual seconds per real second.")
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed.")
@click.option(
    "--prometheus/--no-prometheus",
    "stack",
    default=True,
    help="Start Prometheus, Alertmanager and Grafana too, where they are installed.  [default: --prometheus]",
)
def command(**flags: Any) -> None:  # noqa: ANN401 - click's values
    """Try llm-headroom without a GPU: simulated engines with traffic and incidents, and the status page."""
    logs.set_up("error", "logfmt")
    try:
        asyncio.run(run(Settings(**flags), click.echo))
    except (ValueError, ListenError) as error:
        fail(str(error))
