"""`llm-headroom simulate`: one simulated engine, until it is stopped."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from llm_headroom.commands.exits import fail
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.net.listen import ListenError, visited
from llm_headroom.simulate import scenario
from llm_headroom.simulate.clock import Clock
from llm_headroom.simulate.hardware import GPUS, MODELS
from llm_headroom.simulate.live import LiveEngine, keep_busy
from llm_headroom.simulate.ollama_model import OllamaConfig
from llm_headroom.simulate.server import MISBEHAVE, EngineServer, batching_server, ollama_server
from llm_headroom.simulate.traffic import (
    BUNDLED_TRACES,
    Lengths,
    Synthetic,
    bundled_trace,
    read_trace,
    repeated,
    scaled,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from llm_headroom.simulate.engine_state import Scheduler
    from llm_headroom.simulate.scenario import Incident
    from llm_headroom.simulate.traffic import Request

T = TypeVar("T")

VERSIONS: Final = {"vllm": "0.32.0", "sglang": "0.5.23"}
SIMULATED: Final = (*VERSIONS, "ollama")
_PROMPT: Final = Lengths(500, 0.8)
_OUTPUT: Final = Lengths(200, 0.8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How an engine is started.

    Attributes:
        engine: vllm, sglang or ollama.
        version: engine version whose metrics it serves; None: the newest known.
        model: a key of `hardware.MODELS`.
        gpu: a key of `hardware.GPUS`.
        listen: `[HOST]:PORT`; None: the engine's default port on 127.0.0.1.
        speed: virtual seconds per real second.
        trace: a bundled trace's name, or a file; None: none.
        rate: factor on the trace's rate; without a trace, requests per second.
        clients: that each send one request after the other.
        seed: random seed.
        scenario: a file of incidents.
    """

    engine: str = "vllm"
    version: str | None = None
    model: str = "llama-3-8b"
    gpu: str = "a100-80gb"
    listen: str | None = None
    speed: float = 1.0
    trace: str | None = None
    rate: float | None = None
    clients: int = 0
    seed: int = 0
    scenario: Path | None = None


def make(settings: Settings, clock: Clock) -> EngineServer:
    """The engine under its traffic, not yet listening.

    Raises:
        ValueError: a setting is wrong.
        OSError: the trace cannot be read.
    """
    model = _one_of("model", settings.model, MODELS)
    gpu = _one_of("GPU", settings.gpu, GPUS)
    if settings.engine == "ollama":
        name = f"{settings.model}:latest"
        server = ollama_server(OllamaConfig(models={name: model}, gpu=gpu), clock)
    else:
        version = settings.version or VERSIONS[settings.engine]
        kind: Scheduler = "vllm" if settings.engine == "vllm" else "sglang"
        server = batching_server(kind, clock, version=version, model=model, gpu=gpu, seed=settings.seed)
        name = ""
    if settings.trace is not None:
        server.live.feed.add(_replayed(settings.trace, settings.rate or 1.0), clock.now(), name)
    elif settings.rate:
        requests = Synthetic(settings.rate, _PROMPT, _OUTPUT).requests(settings.seed)
        server.live.feed.add(requests, clock.now(), name)
    if settings.clients:
        if not isinstance(server.live, LiveEngine):
            raise ValueError("--clients is for vLLM and SGLang; give Ollama a --rate")
        keep_busy(server.live, settings.clients, Synthetic(1.0, _PROMPT, _OUTPUT).requests(settings.seed + 1))
    return server


def _replayed(trace: str, rate: float) -> Iterator[Request]:
    rows = tuple(scaled(bundled_trace(trace) if trace in BUNDLED_TRACES else read_trace(Path(trace)), rate))
    if not rows:
        raise ValueError(f"the trace {trace} has no requests")
    return repeated(rows, rows[-1].arrival + 1.0)


def _one_of(what: str, name: str, known: Mapping[str, T]) -> T:
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}; known: {', '.join(known)}")
    return known[name]


async def run(settings: Settings, say: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; `say` gets the address to show.

    Raises:
        ValueError: a setting or the scenario is wrong.
        OSError: a file cannot be read.
        llm_headroom.net.listen.ListenError: the address cannot be listened on.
    """
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    clock = Clock(settings.speed)
    incidents = () if settings.scenario is None else scenario.read(settings.scenario)
    for incident in incidents:
        if incident.engine != settings.engine:
            raise ValueError(
                f"{settings.scenario}: unknown engine {incident.engine!r}; this command runs only {settings.engine}"
            )
    server = make(settings, clock)
    async with AsyncExitStack() as stack:
        await server.start(settings.listen or f"127.0.0.1:{BUILT_IN[settings.engine].port}")
        stack.push_async_callback(server.close)
        say(f"{settings.engine} http://{visited(server.address)}/  faults: POST {MISBEHAVE}")

        def begin(incident: Incident) -> None:
            say(f"incident: {incident.what or incident.how}")
            server.misbehave(incident.how)

        await scenario.play_until(ended, incidents, clock, begin)


@click.command("simulate")
@click.option("--engine", type=click.Choice(SIMULATED), default="vllm", show_default=True)
@click.option(
    "--version", metavar="VERSION", help="Engine version whose metrics it serves.  [default: the newest known]"
)
@click.option("--model", default="llama-3-8b", show_default=True, help="Model.")
@click.option("--gpu", default="a100-80gb", show_default=True, help="GPU: a100-80gb, h100, l4 or rtx4090.")
@click.option(
    "--listen", metavar="[HOST]:PORT", help="Address to listen on.  [default: 127.0.0.1 and the engine's default port]"
)
@click.option("--speed", type=float, default=1.0, show_default=True, help="Virtual seconds per real second.")
@click.option(
    "--trace", metavar="NAME|FILE", help="Requests: azure_conv, azure_code, or a CSV file; replayed in a loop."
)
@click.option("--rate", type=float, help="Factor on the trace's rate; without a trace, requests per second.")
@click.option("--clients", type=int, default=0, help="Number of clients, each sending one request after the other.")
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed.")
@click.option(
    "--scenario", type=click.Path(path_type=Path), metavar="FILE", help="File of incidents and their times (YAML)."
)
def command(**flags: Any) -> None:  # noqa: ANN401 - click's values
    """Run one simulated engine: its metrics, its API at simulated speed, and POST /-/misbehave for faults."""
    try:
        asyncio.run(run(Settings(**flags), click.echo))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (ValueError, ListenError) as error:
        fail(str(error))
