"""An Ollama server in virtual time: models that load, spill, expire and queue.

A loaded model is one `batching.Engine` without preemption: its cache is allocated whole at load, context times
slots. Meanings follow ollama/ollama server/sched.go; figures of the hardware are assumptions stated here.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llm_headroom.simulate.batching import Engine
from llm_headroom.simulate.engine_state import EngineConfig, EngineReading, Outcome
from llm_headroom.simulate.hardware import GIB, Gpu, Model, Roofline

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llm_headroom.simulate.traffic import Request

KEEP_ALIVE_SECONDS = 300.0
BUSY_MESSAGE = "server busy, please try again.  maximum pending requests exceeded"  # with HTTP 503
_MODELS_PER_GPU = 3
_PHYSICAL_BATCH = 512  # llama.cpp's n_ubatch
_COMPUTE_BUFFER = GIB // 4


@dataclass(frozen=True, slots=True)
class Host:
    """Where what does not fit the GPU runs, and where models are read from.

    Attributes:
        bandwidth: bytes per second of main memory.
        flops: operations per second of the CPU.
        disk: bytes per second at which a model file is read.
        load_overhead: seconds of every load, beside reading.
    """

    bandwidth: float = 60e9
    flops: float = 1e12
    disk: float = 2e9
    load_overhead: float = 1.0


@dataclass(frozen=True, slots=True)
class OllamaConfig:
    """An Ollama server.

    Attributes:
        models: by name with tag, as clients ask for them.
        gpu: None runs on the CPU alone.
        gpu_reserved: bytes of the GPU that Ollama leaves alone, or others hold.
        num_parallel: OLLAMA_NUM_PARALLEL, slots per model.
        max_loaded: OLLAMA_MAX_LOADED_MODELS.
        max_queue: OLLAMA_MAX_QUEUE: most requests that wait for a model that is not ready.
        keep_alive: OLLAMA_KEEP_ALIVE in seconds; negative: never unload; 0: unload after the request.
        context_length: tokens per slot.
        host: where spilled layers run.
    """

    models: Mapping[str, Model]
    gpu: Gpu | None
    gpu_reserved: int = GIB
    num_parallel: int = 1
    max_loaded: int = _MODELS_PER_GPU
    max_queue: int = 512
    keep_alive: float = KEEP_ALIVE_SECONDS
    context_length: int = 4096
    host: Host = Host()

    @property
    def cells(self) -> int:
        """Cached tokens per slot: the context, rounded up to 256 as llama.cpp does."""
        return -(-self.context_length // 256) * 256

    def size(self, model: Model) -> int:
        """The bytes of a loaded model: weights, cache of all slots, compute buffer."""
        cache = self.cells * self.num_parallel * model.kv_bytes_per_token
        return model.weights_bytes + cache + _COMPUTE_BUFFER


@dataclass(frozen=True, slots=True)
class SpilledCost:
    """Steps of a model whose layers are partly on the CPU: one part after the other.

    Attributes:
        model: what runs.
        gpu: on what; None for the CPU alone.
        host: what runs the rest.
        gpu_share: share of the layers on the GPU.
    """

    model: Model
    gpu: Gpu | None
    host: Host
    gpu_share: float

    def step_seconds(
        self, prefill_tokens: int, decode_sequences: int, context_tokens: int, attention_pairs: int = 0
    ) -> float:
        """The seconds of one step; see `engine_state.StepCost`."""
        work = (prefill_tokens, decode_sequences, context_tokens, attention_pairs)
        cpu = Gpu("CPU", 0, self.host.bandwidth, self.host.flops)
        on_cpu = Roofline(self.model, cpu).step_seconds(*work)
        on_gpu = Roofline(self.model, self.gpu).step_seconds(*work) if self.gpu else 0.0
        return self.gpu_share * on_gpu + (1.0 - self.gpu_share) * on_cpu


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """One row of `/api/ps`.

    Attributes:
        name: of the model.
        size: bytes; `size_vram` those on the GPU, less than `size` when it spilled.
        context_length: tokens per slot.
        expires_at: virtual seconds, as set when its last request ended; infinite if it is never unloaded.
        loaded_at: virtual seconds at which it became ready.
        engine: the state of its slots; running and waiting are those of this model.
    """

    name: str
    size: int
    size_vram: int
    context_length: int
    expires_at: float
    loaded_at: float
    engine: EngineReading


@dataclass(frozen=True, slots=True)
class OllamaReading:
    """The state of the server at one moment.

    Attributes:
        time: virtual seconds.
        loaded: models that are ready, the last to expire first.
        loading: the model that loads; None if none does.
        pending: requests that wait for a model that is not ready.
        loads: loads so far; `evictions` models unloaded for another one, `expirations` unloaded by keep-alive.
        rejected: requests answered with 503 so far.
        truncated: requests whose prompt was longer than the context and lost its front.
        vram_used: bytes of the GPU that loaded models hold.
    """

    time: float
    loaded: tuple[LoadedModel, ...]
    loading: str | None
    pending: int
    loads: int
    evictions: int
    expirations: int
    rejected: int
    truncated: int
    vram_used: int


@dataclass(slots=True)
class _Runner:
    name: str
    size: int
    size_vram: int
    engine: Engine
    loaded_at: float
    expires_at: float
    active: int = 0


@dataclass(frozen=True, slots=True)
class _Pending:
    number: int
    model: str
    request: Request
    on_token: Callable[[float, int], None] | None
    on_end: Callable[[Outcome], None] | None


class OllamaServer:
    """One simulated Ollama server.

    Attributes:
        config: as given.
        now: virtual seconds.
        slowdown: factor on the duration of every step that begins from now on; 1.0 is healthy.
    """

    def __init__(self, config: OllamaConfig, start: float = 0.0) -> None:
        self.config = config
        self.now = start
        self.slowdown = 1.0
        self._numbers = 0
        self._running: dict[int, tuple[Engine, int]] = {}  # the engine's own number of each request that a model has
        self._not_before = start  # the end of a stall
        self._runners: dict[str, _Runner] = {}
        self._pending: deque[_Pending] = deque()
        self._loading: tuple[str, float, int] | None = None  # name, ready at, bytes on the GPU
        self._loads = self._evictions = self._expirations = self._rejected = self._truncated = 0

    def submit(
        self,
        model: str,
        request: Request,
        on_token: Callable[[float, int], None] | None = None,
        on_end: Callable[[Outcome], None] | None = None,
    ) -> int | None:
        """Hand over a request that arrives now (`request.arrival` is when it began to wait); callbacks as the Engine.

        Returns:
            Its number, from 1. None if the queue is full: HTTP 503 with `BUSY_MESSAGE`; a model that is ready takes
            any number of requests.

        Raises:
            KeyError: there is no such model (HTTP 404).
        """
        self.config.models[model]
        runner = self._runners.get(model)
        request = self._fitted(request)
        if runner is None and len(self._pending) >= self.config.max_queue:
            self._rejected += 1
            return None
        self._numbers += 1
        one = _Pending(self._numbers, model, request, on_token, on_end)
        if runner is None:
            self._pending.append(one)
            self._start_load()
        else:
            self._run(runner, one)
        return one.number

    def abort(self, number: int) -> None:
        """Drop a request whose client has gone; a load that it started continues. Unknown numbers are ignored."""
        if number in self._running:
            engine, own = self._running[number]
            engine.abort(own)
            return
        for one in self._pending:
            if one.number == number:
                self._pending.remove(one)
                if one.on_end:
                    one.on_end(Outcome(number, one.request, "abort", self.now, None, None, 0, 0, 0))
                return

    def stall(self, seconds: float) -> None:
        """Do nothing for so long: models neither compute nor load; those that are idle expire as ever."""
        self._not_before = max(self._not_before, self.now) + seconds
        for runner in self._runners.values():
            runner.engine.stall(seconds)
        if self._loading:
            name, ready, vram = self._loading
            self._loading = (name, ready + seconds, vram)

    def _fitted(self, request: Request) -> Request:
        """Cut a prompt that is longer than the context to about half of it, and the output to what is left."""
        context, prompt = self.config.context_length, request.prompt_tokens
        if prompt >= context:
            self._truncated += 1
            prompt = max(context // 2, 1)
        output = min(request.output_tokens, max(context - prompt, 1))
        return replace(request, prompt_tokens=prompt, output_tokens=output, prefix=request.prefix)

    def _run(self, runner: _Runner, one: _Pending) -> None:
        runner.active += 1

        def ended(outcome: Outcome) -> None:
            self._running.pop(one.number, None)
            runner.active -= 1
            keep = self.config.keep_alive
            runner.expires_at = math.inf if keep < 0 else outcome.ended + keep
            if one.on_end:
                one.on_end(outcome)

        active = runner.active
        number = runner.engine.submit(one.request, one.on_token, ended)
        if runner.active == active:  # it did not end at once
            self._running[one.number] = (runner.engine, number)

    @property
    def next_event(self) -> float | None:
        """When something happens next; None while there is nothing to do."""
        moment = self._next()
        return None if moment == math.inf else moment

    def _next(self) -> float:
        moments = [self._loading[1]] if self._loading else []
        for runner in self._runners.values():
            event = runner.engine.next_event
            moments.append(runner.expires_at if event is None else event)
        return max(min(moments, default=math.inf), self.now)

    def advance(self, until: float) -> None:
        """Move virtual time to `until`.

        Raises:
            ValueError: `until` is in the past.
        """
        if until < self.now:
            raise ValueError(f"virtual time is {self.now} s and cannot go back to {until} s")
        while (moment := self._next()) <= until:
            self._move(moment)
            if self._loading and self._loading[1] <= moment:
                self._finish_load(*self._loading)
            for runner in tuple(self._runners.values()):
                if not runner.active and runner.expires_at <= moment:
                    del self._runners[runner.name]
                    self._expirations += 1
            self._start_load()
        self._move(until)

    def _move(self, moment: float) -> None:
        self.now = moment
        busy = sum(runner.active > 0 for runner in self._runners.values())
        for runner in self._runners.values():
            runner.engine.slowdown = max(busy, 1) * self.slowdown  # those that compute together share the device
            runner.engine.advance(moment)

    def _start_load(self) -> None:
        """Start loading the model that the head of the queue waits for, evicting idle ones if it needs their memory."""
        while self._pending and self._pending[0].model in self._runners:
            one = self._pending.popleft()
            self._run(self._runners[one.model], one)
        if self._loading or not self._pending:
            return
        config, name = self.config, self._pending[0].model
        size = config.size(config.models[name])
        while self._runners and (len(self._runners) >= config.max_loaded or size > self._free_vram()):
            idle = [runner for runner in self._runners.values() if not runner.active]
            if not idle:
                return  # waits until a model has no request left
            del self._runners[min(idle, key=lambda runner: runner.expires_at).name]
            self._evictions += 1
        seconds = config.host.load_overhead + config.models[name].weights_bytes / config.host.disk
        self._loading = (name, max(self.now, self._not_before) + seconds, min(size, self._free_vram()))

    def _finish_load(self, name: str, ready: float, vram: int) -> None:
        config, model = self.config, self.config.models[name]
        size = config.size(model)
        cells = config.cells * config.num_parallel
        engine = EngineConfig(
            cost=SpilledCost(model, config.gpu, config.host, vram / size),
            total_blocks=cells + 1,
            block_tokens=1,
            max_num_seqs=config.num_parallel,
            max_step_tokens=max(_PHYSICAL_BATCH, config.num_parallel),
            max_model_len=config.cells,
        )
        self._loading = None
        self._loads += 1
        runner = _Runner(name, size, vram, Engine(engine, start=ready), ready, ready)
        self._runners[name] = runner
        waiting, self._pending = self._pending, deque()
        for one in waiting:
            if one.model == name:
                self._run(runner, one)
            else:
                self._pending.append(one)

    def _free_vram(self) -> int:
        if self.config.gpu is None:
            return 0
        held = sum(runner.size_vram for runner in self._runners.values())
        return max(self.config.gpu.memory_bytes - self.config.gpu_reserved - held, 0)

    def read(self) -> OllamaReading:
        """The state at `now`."""
        loaded = [
            LoadedModel(
                name=one.name,
                size=one.size,
                size_vram=one.size_vram,
                context_length=self.config.cells,
                expires_at=one.expires_at,
                loaded_at=one.loaded_at,
                engine=one.engine.read(),
            )
            for one in sorted(self._runners.values(), key=lambda one: -one.expires_at)
        ]
        return OllamaReading(
            time=self.now,
            loaded=tuple(loaded),
            loading=self._loading[0] if self._loading else None,
            pending=len(self._pending),
            loads=self._loads,
            evictions=self._evictions,
            expirations=self._expirations,
            rejected=self._rejected,
            truncated=self._truncated,
            vram_used=sum(one.size_vram for one in loaded),
        )
