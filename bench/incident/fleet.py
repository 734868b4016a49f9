"""Who is there and what goes wrong: 36 engines behind 4 exporters, in 2 clusters, and an hour of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llm_headroom.commands.demo import LARGE, SMALL, four_bit
from llm_headroom.commands.simulate import VERSIONS
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Config, Cost, GpuSettings, ModelMemory, ProxySettings, Target
from llm_headroom.simulate.gpus import UNSEEN_PID, Holder, SimulatedGpus
from llm_headroom.simulate.hardware import A100_80GB, GIB, LLAMA_3_8B, LLAMA_3_70B, QWEN_2_5_7B
from llm_headroom.simulate.misbehave import Burst, Misbehaviour
from llm_headroom.simulate.ollama_model import OllamaConfig
from llm_headroom.simulate.server import EngineServer, batching_server, ollama_server
from llm_headroom.simulate.traffic import Lengths, Synthetic

if TYPE_CHECKING:
    from llm_headroom.simulate.clock import Clock

_RATES: Final = (1.1, 2.2, 1.6, 2.8, 0.7)
"""Requests per second of a host's vLLM engines."""
OLLAMA_RATE: Final = 0.25
NOTHING: Final = Misbehaviour()


@dataclass(frozen=True, slots=True)
class Host:
    """A machine, and when its exporter dies."""

    name: str
    cluster: str
    dies: float | None = None

    @property
    def instance(self) -> str:
        """Where Prometheus scrapes it."""
        return f"{self.name}:9836"


_HOSTS: Final = (
    Host("gpu-a", "eu-1"),
    Host("gpu-b", "eu-1", dies=3000.0),
    Host("gpu-c", "us-1"),
    Host("gpu-d", "us-1", dies=3120.0),
)


@dataclass(frozen=True, slots=True)
class Wrong:
    """Something that goes wrong at a second on a host, with an engine or (`xid`) with a GPU."""

    at: float
    host: str
    engine: str = ""
    how: Misbehaviour = NOTHING
    xid: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """Machines with so many vLLM and SGLang each, and an Ollama, and what happens to them in so many seconds.

    `interval` is that of the exporters' polls, in seconds.
    """

    hosts: tuple[Host, ...]
    vllm: int
    sglang: int
    seconds: float
    incidents: tuple[Wrong, ...]
    interval: float = 5.0

    def gpu(self, engine: str) -> int:
        """The GPU of an engine. Ollama shares the last one."""
        kind, _, place = engine.partition("-")
        first = {"vllm": 0, "sglang": self.vllm, "ollama": self.vllm + self.sglang - 1}
        return first[kind] + int(place or 0)


_INCIDENTS: Final = (
    Wrong(700.0, "gpu-a", "sglang-0", Misbehaviour(burst=Burst(3.0, 90.0, 3000, 250))),
    Wrong(1300.0, "gpu-c", "sglang-1", Misbehaviour(slowdown=3.0)),
    Wrong(1800.0, "gpu-b", "vllm-0", Misbehaviour(crash_seconds=90.0)),
    Wrong(1805.0, "gpu-b", xid=(0, 31)),
    Wrong(1900.0, "gpu-c", "sglang-1", Misbehaviour(slowdown=1.0)),
    Wrong(2000.0, "gpu-a", "vllm-3", Misbehaviour(leak_bytes_per_second=4.2e6)),
    Wrong(2400.0, "gpu-a", "ollama", Misbehaviour(burst=Burst(0.05, 1200.0, 300, 60, LARGE))),
    Wrong(2600.0, "gpu-c", "ollama", Misbehaviour(burst=Burst(0.3, 1000.0, 300, 60, LARGE))),
    Wrong(2900.0, "gpu-a", "vllm-1", Misbehaviour(burst=Burst(9.0, 700.0, 1500, 500))),
    Wrong(3000.0, "gpu-c", "sglang-2", Misbehaviour(slowdown=3.0)),
    Wrong(3090.0, "gpu-c", xid=(1, 79)),
    Wrong(3100.0, "gpu-c", "vllm-1", Misbehaviour(crash_seconds=3600.0)),
    Wrong(3380.0, "gpu-a", "sglang-2", Misbehaviour(stall_seconds=600.0)),
)


WHOLE: Final = Stage(_HOSTS, 5, 3, 3600.0, _INCIDENTS)
FEW: Final = Stage(
    (Host("gpu-c", "us-1"), Host("gpu-d", "us-1", dies=240.0)),
    3,
    2,
    960.0,
    (
        Wrong(360.0, "gpu-c", "sglang-1", Misbehaviour(slowdown=3.0)),
        Wrong(400.0, "gpu-c", "ollama", Misbehaviour(burst=Burst(0.3, 560.0, 300, 60, LARGE))),
        Wrong(420.0, "gpu-c", xid=(1, 79)),
        Wrong(480.0, "gpu-c", "vllm-0", Misbehaviour(burst=Burst(9.0, 480.0, 1500, 500))),
        Wrong(580.0, "gpu-c", "vllm-1", Misbehaviour(crash_seconds=3600.0)),
        Wrong(590.0, "gpu-c", "vllm-2", Misbehaviour(stall_seconds=600.0)),
    ),
    interval=15.0,
)
"""Enough for every kind of trouble, in a tenth of the time: it is polled as often as it is scraped.

The crash and the stall come before these engines are known well enough for an estimate of their load headroom, which
takes seconds of CPU.
"""


def engines(stage: Stage, clock: Clock, seed: int) -> dict[str, EngineServer]:
    """A host's engines by name, under traffic, not yet listening; those of Ollama are asked by clients."""
    found: dict[str, EngineServer] = {}
    for place in range(stage.vllm):
        version, model = VERSIONS["vllm"], LLAMA_3_8B
        server = batching_server("vllm", clock, version=version, model=model, gpu=A100_80GB, seed=seed + place)
        chats = Synthetic(
            _RATES[place] * (0.8 + 0.1 * (seed % 5)), Lengths(900, 0.8), Lengths(220, 0.7), 1.5, 0.4, 5400.0,
            prefixes=6, prefix_tokens=512,
        )  # fmt: skip
        server.live.feed.add(chats.requests(seed + place), 0.0)
        found[f"vllm-{place}"] = server
    for place in range(stage.sglang):
        share = 0.5 if place == stage.sglang - 1 else 0.88
        server = batching_server(
            "sglang", clock, version=VERSIONS["sglang"], model=QWEN_2_5_7B, gpu=A100_80GB, utilisation=share,
            seed=seed + 10 + place,
        )  # fmt: skip
        code = Synthetic(1.3 + 0.4 * place, Lengths(1600, 0.6), Lengths(90, 0.8), 2.0, 0.3, 4800.0, prefixes=4)
        server.live.feed.add(code.requests(seed + 10 + place), 0.0)
        found[f"sglang-{place}"] = server
    config = OllamaConfig(
        models={SMALL: four_bit(LLAMA_3_8B), LARGE: four_bit(LLAMA_3_70B)},
        gpu=A100_80GB,
        gpu_reserved=round(A100_80GB.memory_bytes * 0.5) + GIB,
        num_parallel=4,
        max_queue=3,
    )
    found["ollama"] = ollama_server(config, clock)
    return found


def _pid(engine: str, place: int) -> int:
    """A process that the GPUs list; where two engines share a GPU, one must be a process that there is."""
    return os.getpid() if engine == "ollama" else UNSEEN_PID + place


def gpus(stage: Stage, servers: dict[str, EngineServer], clock: Clock) -> SimulatedGpus:
    """A host's A100."""
    holders: list[list[Holder]] = [[] for _ in range(stage.vllm + stage.sglang)]
    for place, (name, server) in enumerate(servers.items()):
        live = server.live
        busy, slow = (lambda live=live: live.busy_seconds), (lambda live=live: live.slowdown)
        holders[stage.gpu(name)].append(Holder(server.gpu_memory, _pid(server.name, place), busy, slow))
    return SimulatedGpus(clock, [(A100_80GB, own) for own in holders])


def config(stage: Stage, servers: dict[str, EngineServer]) -> Config:
    """The exporter's configuration on a host."""
    memory = ModelMemory(weights=LLAMA_3_8B.weights_bytes, kv_bytes_per_token=LLAMA_3_8B.kv_bytes_per_token)
    targets = tuple(
        Target(
            name=name,
            endpoint=Endpoint(url=f"http://{server.address}"),
            engine=server.name,
            pid=_pid(server.name, place),
            gpus=(str(stage.gpu(name)),),
            model_memory=memory if server.name == "vllm" else ModelMemory(),
        )
        for place, (name, server) in enumerate(servers.items())
    )
    return Config(
        targets=targets,
        discover=False,
        interval=stage.interval,
        gpu=GpuSettings(enabled=True),
        host=False,
        cost=Cost(gpu_hour=1.8),
        proxies=(ProxySettings(listen="127.0.0.1:0", target="ollama"),),
    )
