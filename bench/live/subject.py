"""The engines under test: how each is started, and what it is known not to say."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from live.exporter import ENGINE, PROXY
from live.server import Server, free_port
from live.verdict import Expected

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from live.install import Folder

CONTEXT: Final = 1024
BLOCK: Final = 32
_VLLM_BLOCKS: Final = 160
_VLLM_PLACES: Final = 8
_RAMP_PLACES: Final = 16
_VLLM_AT_ONCE: Final = 14
"""Requests that run and wait at most: more are turned away."""
_LLAMACPP_PLACES: Final = 2


@dataclass(frozen=True)
class Subject:
    """An engine under test.

    `places` are the requests that it runs at once, `capacity` the tokens of its KV cache, `block` those of a block.
    `at_once` is how many run and wait at most, None for any number. `core` is the child that does the work, if the API
    is another process. `interval` is how long a change may take to be seen, in
    seconds. `silent` says why a signal is absent, by topic; `unlike` what is said instead. `proxy` is the
    target of what the proxy measures.
    """

    name: str
    title: str
    arguments: tuple[str | Path, ...]
    places: int
    ready: str
    patience: float
    capacity: int | None = None
    block: int = 1
    at_once: int | None = None
    core: str = ""
    refuses_models: bool = False
    interval: float = 1.0
    environment: Mapping[str, str] = field(default_factory=dict)
    silent: Mapping[str, str] = field(default_factory=dict)
    unlike: Mapping[str, Expected] = field(default_factory=dict)
    proxy: str = PROXY
    model: str = "tiny"

    def expected(self, topic: str) -> Expected | None:
        """What its metrics say of a topic in place of the truth; None: the truth."""
        if topic in self.silent:
            return Expected(None, self.silent[topic])
        return self.unlike.get(topic)

    def server(self, folder: Path) -> Server:
        """One that is not started yet."""
        port = free_port()
        command = [part.format(port=port) if isinstance(part, str) else part for part in self.arguments]
        return Server(
            command,
            port=port,
            ready=self.ready,
            patience=self.patience,
            log=folder / f"{self.name}.log",
            environment={name: text.format(port=port) for name, text in self.environment.items()},
        )


_ONE_PROCESS: Final = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""Without it vLLM 0.32 on CPUs does not take the executor `uni` (vllm/platforms/cpu.py)."""


def vllm_for_ramps(folder: Folder) -> Subject:
    """The engine vLLM with a smaller model that computes on one thread, 16 places, and any number that may wait.

    It computes in the engine's own process: a worker of its own spins while it waits, which takes what the engine may
    use of the CPU (vllm-project/vllm, vllm/distributed/device_communicators/shm_broadcast.py), and no GPU does that.
    """
    whole = vllm(folder)
    swapped: dict[str | Path, str | Path] = {folder.hf_model: folder.small_model, str(_VLLM_PLACES): str(_RAMP_PLACES)}
    left_out = whole.arguments.index("--max-num-queued-reqs")
    arguments = [swapped.get(part, part) for part in whole.arguments]
    return replace(
        whole,
        arguments=(*arguments[:left_out], *arguments[left_out + 2 :], "--distributed-executor-backend", "uni"),
        places=_RAMP_PLACES,
        at_once=None,
        environment={
            **whole.environment,
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            **_ONE_PROCESS,
        },
    )


def vllm(folder: Folder) -> Subject:
    """The engine vLLM on CPUs, with 160 blocks of 32 tokens, 8 places and 6 more that may wait."""
    return Subject(
        name="vllm",
        title="vLLM",
        arguments=(
            folder.python,
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            folder.hf_model,
            "--served-model-name",
            "tiny",
            "--host",
            "127.0.0.1",
            "--port",
            "{port}",
            "--load-format",
            "dummy",
            "--dtype",
            "float32",
            "--enforce-eager",
            "--block-size",
            str(BLOCK),
            "--num-gpu-blocks-override",
            str(_VLLM_BLOCKS),
            "--max-num-seqs",
            str(_VLLM_PLACES),
            "--max-num-queued-reqs",
            str(_VLLM_AT_ONCE),
            "--max-model-len",
            str(CONTEXT),
            "--enable-prompt-tokens-details",
        ),
        places=_VLLM_PLACES,
        ready="/health",
        patience=240,
        capacity=_VLLM_BLOCKS * BLOCK,
        block=BLOCK,
        at_once=_VLLM_AT_ONCE,
        core="VLLM::EngineCor",
        refuses_models=True,
        environment={"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"},
        unlike={
            "aborted": Expected(0, "vLLM does not count clients that leave (vllm-project/vllm#31503)"),
            "client errors": Expected(0, "vLLM counts them as HTTP responses alone"),
        },
    )


def llamacpp(folder: Folder) -> Subject:
    """llama.cpp's server with two slots of 1024 tokens each."""
    none = "llama.cpp has no such metric"
    return Subject(
        name="llamacpp",
        title="llama.cpp",
        arguments=(
            folder.program("llama-server-vulkan"),
            "--device",
            "none",
            "--model",
            folder.gguf_model,
            "--alias",
            "tiny",
            "--host",
            "127.0.0.1",
            "--port",
            "{port}",
            "--ctx-size",
            str(_LLAMACPP_PLACES * CONTEXT),
            "--parallel",
            str(_LLAMACPP_PLACES),
            "--threads",
            "1",
            "--threads-http",
            "16",
            "--metrics",
            "--slots",
            "--no-warmup",
        ),
        places=_LLAMACPP_PLACES,
        ready="/health",
        patience=60,
        capacity=_LLAMACPP_PLACES * CONTEXT,
        silent=dict.fromkeys(("finished", "aborted", "client errors", "http", "first token", "duration"), none),
    )


def ollama(program: Path, folder: Folder) -> Subject:
    """Ollama, from a binary that is there already; its model is made of the same GGUF file."""
    models = folder.path / "ollama-models"
    return Subject(
        name="ollama",
        title="Ollama",
        arguments=(program, "serve"),
        places=2,
        ready="/api/version",
        patience=60,
        interval=10.0,
        environment={
            "OLLAMA_HOST": "127.0.0.1:{port}",
            "OLLAMA_MODELS": str(models),
            "OLLAMA_NUM_PARALLEL": "2",
        },
        silent={"cached": "Ollama does not say how many"},
        unlike={"restarts": Expected(0, "Ollama neither counts anything nor says since when it runs")},
        proxy=ENGINE,
    )


def create_ollama_model(program: Path, folder: Folder, url: str) -> None:
    """Give the model to a running Ollama. Raises CalledProcessError if it refuses."""
    recipe = folder.path / "Modelfile"
    recipe.write_text(f"FROM {folder.gguf_model}\n")
    environment = {"OLLAMA_HOST": url, "HOME": str(folder.path)}
    subprocess.run([program, "create", "tiny", "--file", recipe], env=environment, check=True, capture_output=True)
