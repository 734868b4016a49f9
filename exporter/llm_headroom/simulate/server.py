"""A simulated engine as a server: its HTTP, its misbehaviour, and the GPU memory that it holds."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from llm_headroom.net import listen as net_listen
from llm_headroom.net.http_connection import Limits
from llm_headroom.net.http_server import HttpServer
from llm_headroom.simulate import replies
from llm_headroom.simulate.engine_state import EngineConfig
from llm_headroom.simulate.exposition import Exposition
from llm_headroom.simulate.hardware import Roofline, plan_memory
from llm_headroom.simulate.live import LiveEngine, LiveOllama
from llm_headroom.simulate.misbehave import Misbehaviour, parsed
from llm_headroom.simulate.ollama_http import OllamaApi
from llm_headroom.simulate.openai_http import OpenAiApi

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from llm_headroom.net.http_messages import Request, Response
    from llm_headroom.simulate.clock import Clock
    from llm_headroom.simulate.engine_state import Scheduler
    from llm_headroom.simulate.hardware import Gpu, Model
    from llm_headroom.simulate.ollama_model import OllamaConfig

_log = logging.getLogger("llm_headroom.simulate")

MISBEHAVE: Final = "/-/misbehave"
_TICK: Final = 5.0
"""Real seconds after which an engine that nobody asks does what was due, so that no question waits for long."""


_LIMITS: Final = Limits(connections=10_000, body_bytes=16 * 1024 * 1024, grace_seconds=0.0)
"""An engine takes long prompts of many clients, and dies without a goodbye."""


class EngineServer:
    """One simulated engine that answers HTTP.

    Attributes:
        name: for messages.
        live: the engine.
        address: `host:port` where it listens, once it was started.
    """

    address: str

    def __init__(self, name: str, live: LiveEngine | LiveOllama, api: OpenAiApi | OllamaApi, memory: int = 0) -> None:
        """`memory`: bytes of GPU memory that it holds from its start on, apart from Ollama's models."""
        self.name = name
        self.live = live
        self._api = api
        self._memory = memory
        self._listeners: Sequence[socket.socket] = ()
        self._http: HttpServer | None = None
        self._leaked = self._leak_rate = 0.0
        self._leak_since = live.clock.now()
        self._seeds = itertools.count(1)
        self._back: float
        self._down: asyncio.Task[None] | None = None
        self._ticking: asyncio.Task[None] | None = None

    async def start(self, listen: str) -> None:
        """Listen on `[HOST]:PORT`.

        Raises:
            llm_headroom.net.listen.ListenError: the address cannot be listened on.
        """
        self._serve(await net_listen.bind(listen))
        self.address = net_listen.bound_address(self._listeners[0])
        self._ticking = asyncio.get_running_loop().create_task(self._tick())

    async def close(self) -> None:
        """End."""
        for task in (self._down, self._ticking):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        if self._http is not None:
            await self._http.close()

    def _serve(self, listeners: Sequence[socket.socket]) -> None:
        self._listeners = listeners
        self._http = HttpServer(self._handle, listeners, limits=_LIMITS, needs_client=True)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            self.live.catch_up()

    # -- memory --------------------------------------------------------------------------------------------------------

    def gpu_memory(self) -> int:
        """The bytes of GPU memory that it holds now; none while it is down."""
        if not self.live.alive:
            return 0
        models = self.live.read().vram_used if isinstance(self.live, LiveOllama) else 0
        return self._memory + models + round(self._leak())

    def _leak(self) -> float:
        now = self.live.clock.now()
        self._leaked += self._leak_rate * (now - self._leak_since)
        self._leak_since = now
        return self._leaked

    # -- misbehaviour --------------------------------------------------------------------------------------------------

    def misbehave(self, how: Misbehaviour) -> None:
        """Begin to misbehave.

        Raises:
            ValueError: this kind of engine cannot; nothing has changed then.
        """
        if isinstance(self.live, LiveOllama):
            _check_ollama(how, self.live)
        live = self.live
        if how.burst is not None:
            live.feed.add(how.burst.requests(next(self._seeds)), live.clock.now(), how.burst.model)
        if how.leak_bytes_per_second is not None:
            self._leak()
            self._leak_rate = how.leak_bytes_per_second
        if how.slowdown is not None:
            live.slow_down(how.slowdown)
        if how.stall_seconds is not None:
            live.stall(how.stall_seconds)
        if how.rename and isinstance(self._api, OpenAiApi):
            self._api.renames |= how.rename
        if how.crash_seconds is not None:
            self._crash(how.crash_seconds, refuse=how.refuse)

    def _crash(self, seconds: float, *, refuse: bool) -> None:
        self.live.crash(seconds)
        self._leaked = self._leak_rate = 0.0
        self._back = self.live.clock.now() + seconds
        if refuse and (self._down is None or self._down.done()):
            self._down = asyncio.get_running_loop().create_task(self._refuse())

    async def _refuse(self) -> None:
        """Cut every connection and refuse new ones, with the port held, until it is back."""
        if self._http is None:
            return
        names = [(one.family, one.getsockname()) for one in self._listeners]
        await self._http.close()
        with contextlib.ExitStack() as on_failure:
            held = []
            for family, name in names:
                held.append(net_listen.hold(family, name))
                on_failure.callback(held[-1].close)
            # a crash while it is down makes it stay down for longer
            while (wait := self.live.clock.seconds_until(self._back)) > 0:  # noqa: ASYNC110 - time passes, nothing is set
                await asyncio.sleep(wait)
            for one in held:
                one.listen(net_listen.BACKLOG)
            on_failure.pop_all()
        self._serve(held)

    # -- HTTP ----------------------------------------------------------------------------------------------------------

    async def _handle(self, request: Request) -> Response:
        if request.path == MISBEHAVE:
            return self._admin(request)
        if not self.live.alive:
            return replies.as_json({"error": "the simulated engine is starting"}, HTTPStatus.SERVICE_UNAVAILABLE)
        return await self._api.handle(request)

    def _admin(self, request: Request) -> Response:
        if request.method != "POST":
            return replies.as_json({"error": "POST a JSON object"}, HTTPStatus.METHOD_NOT_ALLOWED)
        try:
            self.misbehave(parsed(replies.document(request)))
        except ValueError as error:
            return replies.as_json({"error": str(error)}, HTTPStatus.BAD_REQUEST)
        _log.info("misbehaviour started", extra={"engine": self.name, "how": request.body.decode("utf-8", "replace")})
        return replies.as_json({"accepted": True})


def _check_ollama(how: Misbehaviour, live: LiveOllama) -> None:
    if how.rename:
        raise ValueError("the simulated Ollama has no metrics to rename")
    if how.burst is not None and how.burst.model not in live.server.config.models:
        raise ValueError(f"burst.model must be one of {', '.join(live.server.config.models)}")


def batching_server(  # noqa: PLR0913 - what an engine is started with
    scheduler: Scheduler,
    clock: Clock,
    *,
    version: str,
    model: Model,
    gpu: Gpu,
    utilisation: float = 0.9,
    max_num_seqs: int = 256,
    seed: int,
) -> EngineServer:
    """A vLLM or SGLang server, as started with default flags.

    Args:
        scheduler: `vllm` or `sglang`.
        clock: that it follows.
        version: engine version whose metrics it serves, one of `exposition.versions()` with one replica.
        model: what it runs.
        gpu: on what.
        utilisation: share of the GPU's memory that it takes (vLLM's --gpu-memory-utilization).
        max_num_seqs: most running requests.
        seed: random seed.

    Raises:
        ValueError: the model does not fit, or the version is unknown.
    """
    plan = plan_memory(model, gpu, utilisation=utilisation)
    block = 16 if scheduler == "vllm" else 1
    config = EngineConfig(
        cost=Roofline(model, gpu),
        scheduler=scheduler,
        total_blocks=plan.kv_tokens // block,
        block_tokens=block,
        max_num_seqs=max_num_seqs,
        max_step_tokens=8192,
        step_jitter=0.05,
    )
    exposition = Exposition(
        f"{scheduler}/{version}",
        model=model.name,
        config=config,
        start=clock.started,
        memory=plan,
        utilisation=utilisation,
    )
    if exposition.ranks != 1:
        raise ValueError(f"{scheduler} {version} has {exposition.ranks} replicas; a server simulates one")
    live = LiveEngine(replace(config, bounds=exposition.bounds), clock, seed)
    memory = plan.weights + plan.activations + plan.graphs + plan.kv_pool
    return EngineServer(scheduler, live, OpenAiApi(live, exposition, model.name), memory)


def ollama_server(config: OllamaConfig, clock: Clock) -> EngineServer:
    """An Ollama server."""
    live = LiveOllama(config, clock)
    return EngineServer("ollama", live, OllamaApi(live))
