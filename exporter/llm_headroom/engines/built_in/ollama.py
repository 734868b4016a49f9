"""Ollama. It has no metrics endpoint in any release; its models are described by its API.

Sources: ollama/ollama, server/routes.go, api/types.go; for metrics that may come: pull requests #18508, #16998, #11159.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

from msgspec import Meta, Struct, field

from llm_headroom import schema
from llm_headroom.engines.answers import Text, Versioned, Whole
from llm_headroom.engines.ollama_geometry import cells, geometry
from llm_headroom.engines.openai_api import MOST_NAMED, SLOWLY, present, whole
from llm_headroom.engines.rules import Beside, Document, Engine, Fact, Rule

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from llm_headroom.config.settings import Target
    from llm_headroom.engines.ollama_geometry import Geometry

NEVER_AFTER_YEARS: Final = 100
"""keep_alive = -1 shows as an expiry about 292 years ahead."""
MOST_SHOWN: Final = 64
"""Models whose details are asked for; more than that are never loaded at once."""
ONCE: Final = float("inf")
_FROM: Final = re.compile(r"^FROM (/\S.*?)\s*$", re.MULTILINE)
"""The line of a model's file that names the path of its weights, which is also its runner's `--model`."""


class _Details(Struct):
    architecture: Text | None = field(default=None, name="family")
    parameters: Text | None = field(default=None, name="parameter_size")
    quantization: Text | None = field(default=None, name="quantization_level")
    format: Text | None = None


class _Listed(Struct):
    """A model in memory or in the library; one with a `remote_…` runs elsewhere (ollama.com)."""

    name: Text
    digest: Text | None = None
    size: Whole | None = None
    size_vram: Whole | None = 0
    context_length: Whole | None = None
    expires_at: Text | None = None
    details: _Details | None = None
    remote_host: Text | None = None
    remote_model: Text | None = None

    @property
    def here(self) -> bool:
        """Whether something of it is in the memory or on the disk of this server."""
        return not self.remote_host and not self.remote_model


class _Loaded(Struct):
    models: Annotated[list[_Listed], Meta(max_length=1000)] | None


class _Installed(Struct):
    models: Annotated[list[_Listed], Meta(max_length=10_000)] | None


class _Show(Struct):
    """Details of a model; its tokens are not listed unless they are asked for."""

    model_info: dict[Text, bool | Whole | float | Text | list[Any] | None] | None = None
    modelfile: str | None = None
    capabilities: list[Text] | None = None


class Model(NamedTuple):
    """A model of this server: bytes, those of them on GPUs, tokens of a slot, and when it is unloaded (unix seconds).

    `details` are labels; what is None is not known, of `expires` also what never comes.
    """

    name: str
    digest: str
    size: int | None
    on_gpus: int | None
    context: int | None
    expires: float | None
    details: dict[str, str]

    @property
    def show(self) -> str:
        """The key of the document about it."""
        return f"show {self.digest}"


class Shown(NamedTuple):
    """What is known of a model besides; `path` is that of its weights, empty if unknown."""

    parameters: int | None
    trained_context: int | None
    path: str
    geometry: Geometry | None
    embedding: bool


def _models(answer: _Loaded | _Installed) -> list[Model]:
    return [
        Model(
            each.name,
            each.digest or "",
            each.size,
            each.size_vram,
            each.context_length,
            _expiry(each.expires_at or ""),
            _details(each),
        )
        for each in answer.models or ()
        if each.here
    ]


def _details(model: _Listed) -> dict[str, str]:
    details = model.details or _Details()
    return {
        "architecture": details.architecture or "",
        "parameters": details.parameters or "",
        "quantization": details.quantization or "",
        "format": details.format or "",
        "digest": (model.digest or "")[:12],
    }


def _shown(answer: _Show) -> Shown:
    info = answer.model_info or {}
    architecture = info.get("general.architecture", "")
    path = _FROM.search(answer.modelfile or "")
    return Shown(
        parameters=whole(info.get("general.parameter_count")),
        trained_context=whole(info.get(f"{architecture}.context_length")),
        path=path[1] if path else "",
        geometry=geometry(info),
        embedding=answer.capabilities == ["embedding"],
    )


def _expiry(text: str) -> float | None:
    """Unix seconds of an RFC 3339 time with any number of fraction digits; None if a model never expires."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None or moment.year - datetime.now(tz=moment.tzinfo).year > NEVER_AFTER_YEARS:
        return None
    return moment.timestamp()


_PS: Final = Document(key="ps", path="/api/ps", form=_Loaded, read=_models)
_TAGS: Final = Document(
    key="tags",
    path="/api/tags",
    every=60.0,
    optional=True,
    tolerated=(401, 403, 404),
    form=_Installed,
    read=_models,
)
_VERSION: Final = Document(
    key="version",
    path="/api/version",
    every=SLOWLY,
    optional=True,
    tolerated=(401, 403, 404),
    form=Versioned,
    read=lambda answer: answer.version or "",
)
_METRICS: Final = Document(key="metrics", path="/metrics", text=True, optional=True, tolerated=(401, 403, 404, 405))


def _documents(known: Mapping[str, Any]) -> Iterator[Document]:
    yield _PS
    yield _TAGS
    yield _VERSION
    yield _METRICS
    for model in _in_memory(known)[:MOST_SHOWN]:
        yield Document(
            key=model.show,
            path="/api/show",
            body=json.dumps({"model": model.name}).encode(),
            every=ONCE,
            optional=True,
            tolerated=(400, 401, 403, 404),
            form=_Show,
            read=_shown,
        )


def _in_memory(documents: Mapping[str, Any]) -> Sequence[Model]:
    return present(documents, _PS.key) or ()


def paths(documents: Mapping[str, Any]) -> dict[str, str]:
    """The models in memory by the path of their weights, as far as known."""
    found = {}
    for model in _in_memory(documents):
        shown: Shown | None = present(documents, model.show)
        if shown is not None and shown.path:
            found[shown.path] = model.name
    return found


def _facts(documents: Mapping[str, Any]) -> Iterator[Fact]:
    """Values out of the API; `runners` (by path) and `settings` add what the API lacks about the cache."""
    loaded = _in_memory(documents)
    yield Fact(schema.MODELS_LOADED, {}, float(len(loaded)), "/api/ps models")
    for model in loaded:
        labels = {"model": model.name}
        yield Fact(schema.MODEL_LOADED, labels, 1.0, "/api/ps models")
        yield Fact(schema.MODEL_INFO, labels | model.details, 1.0, "/api/ps details")
        if model.context:
            yield Fact(schema.MODEL_CONTEXT, labels, float(model.context), "/api/ps context_length")
        if model.expires is not None:
            yield Fact(schema.MODEL_EXPIRY, labels, model.expires, "/api/ps expires_at")
        size, device = model.size, model.on_gpus
        if size and device is not None and min(size, device) >= 0:
            yield Fact(schema.MODEL_MEMORY, labels | {"kind": "total"}, float(size), "/api/ps size")
            yield Fact(schema.MODEL_MEMORY, labels | {"kind": "device"}, float(device), "/api/ps size_vram")
            yield Fact(schema.MODEL_OFFLOAD, labels, min(1.0, device / size), "/api/ps size_vram / size")
        shown: Shown | None = present(documents, model.show)
        if shown is not None:
            if shown.parameters:
                yield Fact(schema.MODEL_PARAMETERS, labels, float(shown.parameters), "/api/show parameter_count")
            if shown.trained_context:
                yield Fact(
                    schema.MODEL_TRAINED_CONTEXT, labels, float(shown.trained_context), "/api/show context_length"
                )
            yield from _cache(model, shown, documents)
    yield from _library({model.name for model in loaded}, documents)


def _cache(model: Model, shown: Shown, documents: Mapping[str, Any]) -> Iterator[Fact]:
    """The KV cache, which is allocated whole when a model is loaded. Embedding models keep none between requests."""
    if not model.context or shown.embedding:
        return
    labels = {"model": model.name}
    runner = (documents.get("runners") or {}).get(shown.path)
    given: Target | None = documents.get("settings")
    parallel, slots_from = (runner and runner.parallel) or None, "the runner's -np"
    if parallel is None and given is not None and given.requests_running_limit is not None:
        parallel, slots_from = given.requests_running_limit, "requests_running_limit of the configuration"
    if parallel is None:
        return
    yield Fact(schema.REQUESTS_RUNNING_LIMIT, labels, float(parallel), slots_from)
    capacity = parallel * cells(model.context)
    yield Fact(schema.KV_CACHE_CAPACITY, labels, float(capacity), f"/api/ps context_length * {slots_from}")
    types, types_from = (runner.keys, runner.values) if runner and runner.keys else None, "the runner's cache types"
    if types is None and given is not None and given.kv_cache_type is not None:
        types, types_from = (given.kv_cache_type, given.kv_cache_type), "kv_cache_type of the configuration"
    if types is None or shown.geometry is None:
        return
    each = shown.geometry.token_bytes(model.context, *types)
    if each is not None:
        origin = f"/api/show geometry * capacity, {types_from}"
        yield Fact(schema.MODEL_MEMORY, labels | {"kind": "kv_cache"}, capacity * each, origin)


def _library(loaded: Collection[str], documents: Mapping[str, Any]) -> Iterator[Fact]:
    installed: list[Model] | None = present(documents, _TAGS.key)
    if installed is None:
        return
    yield Fact(schema.MODELS_INSTALLED, {}, float(len(installed)), "/api/tags models")
    sizes = [model.size for model in installed if model.size is not None]
    if len(sizes) == len(installed):
        yield Fact(schema.MODELS_INSTALLED_BYTES, {}, float(sum(sizes)), "/api/tags size")
    for model in installed[:MOST_NAMED]:
        if model.name not in loaded:
            labels = {"model": model.name}
            yield Fact(schema.MODEL_LOADED, labels, 0.0, "/api/tags models")
            yield Fact(schema.MODEL_INFO, labels | model.details, 1.0, "/api/tags details")


_COUNTED: Final = (
    "llm_prompt_tokens_total",
    "llm_prompt_tokens_cached_total",
    "llm_prefix_cache_queries_total",
    "llm_prefix_cache_hits_total",
    "llm_generation_tokens_total",
    "llm_processed_tokens_total",
    "llm_engine_steps_total",
    "llm_spec_decode_draft_tokens_total",
    "llm_spec_decode_accepted_tokens_total",
)
_NATIVE: Final = "a release with a metrics endpoint; none has one yet"

ENGINE: Final = Engine(
    name="ollama",
    title="Ollama",
    hints={
        403: "Ollama refuses requests for a host name that is not its own while it listens on loopback only: start it "
        "with OLLAMA_HOST=0.0.0.0, or name the target by 127.0.0.1 or its IP address"
    },
    port=11434,
    colour="green",
    prefixes=("ollama_", "ollama:"),
    model_label="model",
    documents=_documents,
    greeting="Ollama is running",
    facts=_facts,
    limit_per_model=True,
    proxy_flag="--ollama-proxy :11435",
    loads_on_demand=True,
    hides_loads=True,
    default_tag="latest",
    queue_limit=512,  # OLLAMA_MAX_QUEUE (ollama/ollama, envconfig/config.go)
    slotted=True,
    beside=Beside.RUNNERS,
    fact_sources={
        "llm_models_loaded": "`/api/ps`",
        "llm_model_loaded": "`/api/ps`, and `/api/tags` for those that are not loaded",
        "llm_model_info": "`/api/ps`, `/api/tags`",
        "llm_model_context_tokens": "`/api/ps` context_length (of one slot)",
        "llm_model_expiry_timestamp_seconds": "`/api/ps` expires_at",
        "llm_model_memory_bytes": "`/api/ps` size (total), size_vram (device); `/api/show` geometry (kv_cache)",
        "llm_model_offload_ratio": "`/api/ps` size_vram / size",
        "llm_models_installed": "`/api/tags`",
        "llm_models_installed_bytes": "`/api/tags` size",
        "llm_requests_running": "a runner's `/slots`",
        "llm_requests_running_limit": "a runner's `/slots`, its `-np`, or the configuration",
        "llm_kv_cache_capacity_tokens": "a runner's `/slots`; `/api/ps` context_length by the number of slots",
        "llm_kv_cache_used_tokens": "a runner's `/slots`",
        "llm_kv_cache_evictable_tokens": "a runner's `/slots`",
        "llm_engine_start_time_seconds": "the start of a runner's process",
        **dict.fromkeys(_COUNTED, "a runner's `/metrics` (Ollama's environment: LLAMA_ARG_ENDPOINT_METRICS=1)"),
        "llm_model_parameters": "`/api/show`",
        "llm_model_trained_context_tokens": "`/api/show`",
    },
    version=lambda documents: present(documents, "version") or "",
    interval=10.0,  # each poll writes a line into Ollama's log
    timeout=8.0,  # /api/ps waits while a model is unloaded, up to 5 s
    rules=(
        Rule(schema.REQUESTS_WAITING, ("ollama_requests_queued",), needs=_NATIVE),
        Rule(schema.REQUESTS_FINISHED, ("ollama_requests_total",), needs=_NATIVE),
        Rule(schema.PROMPT_TOKENS, ("ollama_prompt_tokens_total", "ollama_prompt_eval_total"), needs=_NATIVE),
        Rule(
            schema.GENERATION_TOKENS,
            ("ollama_generated_tokens_total", "ollama_eval_total", "ollama_completion_tokens_total"),
            needs=_NATIVE,
        ),
        Rule(schema.PROMPT_TOKENS_CACHED, ("ollama_prompt_cached_tokens_total",), needs=_NATIVE),
        Rule(schema.PREFIX_CACHE_HIT_RATIO, ("ollama_cache_hit_rate",), needs=_NATIVE),
        Rule(schema.REQUEST_DURATION, ("ollama_request_duration_seconds",), needs=_NATIVE),
        Rule(schema.GPU_UTILIZATION, ("ollama_gpu_utilization_percent",), scale=0.01, needs=_NATIVE),
        Rule(schema.GPU_TEMPERATURE, ("ollama_temperature_celsius",), needs=_NATIVE),
        Rule(schema.MODEL_MEMORY, ("ollama_loaded_model_size_bytes",), fixed={"kind": "total"}, needs=_NATIVE),
        Rule(
            schema.MODEL_MEMORY,
            ("ollama_loaded_model_vram_bytes", "ollama_memory_used_bytes"),
            fixed={"kind": "device"},
            needs=_NATIVE,
        ),
        Rule(schema.MODEL_EXPIRY, ("ollama_loaded_model_expiry_timestamp_seconds",), needs=_NATIVE),
        Rule(schema.MODELS_LOADED, ("ollama_models_loaded",), needs=_NATIVE),
    ),
    ignored={
        "*_created": "times of creation of other series",
        "go_*": "the server's Go runtime",
        "process_*": "the server's process",
        "promhttp_*": "the metrics endpoint itself",
        "http_*": "HTTP layer",
        "ollama_build_info": "the version comes from /api/version",
        "ollama_queue_capacity": "a constant",
        "ollama_peak_memory_bytes": "the server's process",
        "ollama_*_duration_*": "sums of durations over all requests",
    },
)
