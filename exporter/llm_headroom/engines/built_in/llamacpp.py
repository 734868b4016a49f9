"""llama.cpp's `llama-server`, which is also what serves each model inside Ollama.

Source: ggml-org/llama.cpp, tools/server (server-context.cpp, README.md).
A router (`llama-server` without a model) answers for several such servers, each named by `?model=`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import quote

from msgspec import Meta, Struct, field

from llm_headroom import schema
from llm_headroom.engines.answers import Text, Whole
from llm_headroom.engines.openai_api import SLOWLY, present
from llm_headroom.engines.rules import Beside, Document, Engine, Fact, Rule, always

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Slot(Struct):
    """The few fields wanted: slots can hold prompts."""

    context: Whole = field(name="n_ctx")
    busy: bool = field(name="is_processing")
    tokens: Whole | None = field(default=None, name="n_prompt_tokens")
    task: Whole | None = field(default=None, name="id_task")


class Properties(Struct):
    """What `/props` says of the server; `role` is "router" where it has no model of its own."""

    slots: Whole | None = field(default=None, name="total_slots")
    build: Text | None = field(default=None, name="build_info")
    alias: Text | None = field(default=None, name="model_alias")
    path: Text | None = field(default=None, name="model_path")
    role: Text | None = None
    asleep: bool | None = field(default=None, name="is_sleeping")

    @property
    def routes(self) -> bool:
        """Whether it passes requests on to a server for each model."""
        return self.role == "router"

    @property
    def model(self) -> str:
        """Its model's name."""
        return self.alias or self.path or ""


class _Status(Struct):
    value: Text = "loaded"


class _Model(Struct):
    """Of a router also a model that is not loaded, which has a status."""

    id: Text
    status: _Status | None = None

    @property
    def loaded(self) -> bool:
        return self.status is None or self.status.value == "loaded"

    @property
    def asleep(self) -> bool | None:
        """Whether a router says that it sleeps; None where it does not say so."""
        return True if self.status is not None and self.status.value == "sleeping" else None


class _Models(Struct):
    data: Annotated[list[_Model], Meta(max_length=10_000)]


PROCESS: Final = "process"
"""The key of what this host shows of the process: whether its slots share one KV cache."""
_REFUSED: Final = (401, 403, 404, 501)
_SLOTS: Final = Document(
    key="slots", path="/slots", tolerated=(404, 501), form=Annotated[list[Slot], Meta(max_length=1024)]
)
_METRICS: Final = Document(key="metrics", path="/metrics", text=True, optional=True, tolerated=(404, 501))
PROPERTIES: Final = Document(
    key="properties", path="/props", every=SLOWLY, optional=True, tolerated=_REFUSED, form=Properties
)
_STATE: Final = replace(PROPERTIES, every=0.0, leads=True, optional=False)
"""Asked at each poll, and first: neither this nor the model list keeps an idle server from going to sleep.

Without an answer to it nothing else is asked, so that it alone shows that a server hangs or is gone.
"""
_MODELS: Final = Document(
    key="models",
    path="/v1/models",
    every=SLOWLY,
    optional=True,
    tolerated=_REFUSED,
    form=_Models,
    read=lambda models: models.data,
)


def _documents(known: Mapping[str, Any]) -> Iterator[Document]:
    """What to ask, by what `/props` says: a server that is asleep is left alone, a router is asked for each model."""
    yield _STATE
    state: Properties | None = present(known, _STATE.key)
    if state and state.routes:
        yield replace(_MODELS, every=0.0, leads=True)
        for model in present(known, _MODELS.key) or ():
            if model.loaded:
                yield from _of_model(model.id, known)
        return
    yield _MODELS
    if _STATE.key in known and not (state and state.asleep):
        wakes = state is not None and state.asleep is not None
        yield replace(_SLOTS, wakes=wakes)
        yield replace(_METRICS, wakes=wakes)


def _of_model(name: str, known: Mapping[str, Any]) -> Iterator[Document]:
    """What a router passes on to the server of a loaded model."""
    query = f"?model={quote(name, safe='')}"
    state: Properties | None = present(known, f"{_STATE.key} {name}")
    yield replace(_STATE, key=f"{_STATE.key} {name}", path=_STATE.path + query, optional=True)
    if f"{_STATE.key} {name}" in known and not (state and state.asleep):
        wakes = state is not None and state.asleep is not None
        slots = replace(_SLOTS, optional=True, tolerated=(400, *_REFUSED), wakes=wakes)
        yield replace(slots, key=f"{_SLOTS.key} {name}", path=_SLOTS.path + query)
        metrics = replace(_METRICS, tolerated=(400, *_REFUSED), wakes=wakes, model=name)
        yield replace(metrics, key=f"{_METRICS.key} {name}", path=_METRICS.path + query)


def _model(documents: Mapping[str, Any]) -> str:
    state: Properties = present(documents, _STATE.key) or Properties()
    if state.routes:
        return ""
    names = [model.id for model in present(documents, _MODELS.key) or ()]
    return names[0] if len(names) == 1 else state.model


def _facts(documents: Mapping[str, Any]) -> Iterator[Fact]:
    state: Properties = present(documents, _STATE.key) or Properties()
    for model in present(documents, _MODELS.key) or ():
        labels = {"model": model.id}
        own: Properties | None = state if not state.routes else present(documents, f"{_STATE.key} {model.id}")
        asleep = own.asleep if own else model.asleep
        yield Fact(schema.MODEL_LOADED, labels, float(model.loaded and not asleep), "/v1/models, /props is_sleeping")
        if asleep is not None:
            yield Fact(schema.MODEL_ASLEEP, labels, float(asleep), "/props is_sleeping")
        if state.routes:
            yield from _slot_facts(model.id, documents, f"{_SLOTS.key} {model.id}", unified=None)
    if not state.routes:
        unified = documents.get(PROCESS)
        yield from _slot_facts(_model(documents), documents, _SLOTS.key, unified=unified)


def _slot_facts(model: str, documents: Mapping[str, Any], key: str, *, unified: bool | None) -> Iterator[Fact]:
    """Facts of the slots; `unified` says whether they share one KV cache, None if that is not known."""
    labels = {"model": model}
    slots: list[Slot] | None = present(documents, key)
    if slots:
        busy = [slot for slot in slots if slot.busy]
        contexts = [slot.context for slot in slots]
        yield Fact(schema.REQUESTS_RUNNING, labels, float(len(busy)), "/slots is_processing")
        yield Fact(schema.REQUESTS_RUNNING_LIMIT, labels, float(len(slots)), "/slots")
        yield Fact(schema.MODEL_CONTEXT, labels, float(min(contexts)), "/slots n_ctx")
        if len(slots) == 1 or unified is not None:
            capacity = max(contexts) if unified else sum(contexts)
            yield Fact(schema.KV_CACHE_CAPACITY, labels, float(capacity), "/slots n_ctx")
        if all(slot.tokens is not None for slot in slots):
            held = float(sum(slot.tokens or 0 for slot in busy))
            idle = float(sum(slot.tokens or 0 for slot in slots)) - held
            yield Fact(schema.KV_CACHE_USED, labels, held, "/slots n_prompt_tokens of busy slots")
            yield Fact(schema.KV_CACHE_EVICTABLE, labels, idle, "/slots n_prompt_tokens of idle slots")
    elif (properties := present(documents, _STATE.key)) and properties.slots:
        yield Fact(schema.REQUESTS_RUNNING_LIMIT, labels, float(properties.slots), "/props total_slots")


ENGINE: Final = Engine(
    name="llamacpp",
    title="llama.cpp server",
    port=8080,
    later_port=9931,  # announced at each start (ggml-org/llama.cpp, pull request 26508)
    colour="purple",
    loads_on_demand=True,
    slotted=True,
    beside=Beside.COMMAND_LINE,
    prefixes=("llamacpp:", "llamacpp_"),
    model_label="model",
    documents=_documents,
    owned_by="llamacpp",
    facts=_facts,
    fact_sources={
        "llm_requests_running": "`/slots` is_processing, if the metrics are off",
        "llm_requests_running_limit": "`/slots`, `/props` total_slots",
        "llm_kv_cache_capacity_tokens": "`/slots` n_ctx; of several slots only where the server runs on this host, "
        "whose command line says whether they share it",
        "llm_kv_cache_used_tokens": "`/slots` n_prompt_tokens of busy slots",
        "llm_kv_cache_evictable_tokens": "`/slots` n_prompt_tokens of idle slots, which serve as prefix cache",
        "llm_model_context_tokens": "`/slots` n_ctx of one slot",
        "llm_model_loaded": "`/v1/models`, `/props` is_sleeping",
        "llm_model_asleep": "`/props` is_sleeping",
    },
    version=lambda documents: (present(documents, "properties") or Properties()).build or "",
    model=_model,
    rules=(
        Rule(schema.REQUESTS_RUNNING, ("llamacpp:requests_processing",), needs="--metrics"),
        Rule(
            schema.REQUESTS_WAITING,
            ("llamacpp:requests_deferred",),
            needs="--metrics",
            note="Too low while a long prefill runs, and where more clients wait than the server has threads for HTTP "
            "(--threads-http). Inside Ollama it stays 0: Ollama holds requests back itself.",
        ),
        Rule(
            schema.PROMPT_TOKENS,
            ("llamacpp:prompt_tokens_total",),
            plus=("llamacpp:prompt_tokens_cached_total",),
            needs="--metrics",
            note="llama.cpp counts cached tokens apart; old builds do not expose them.",
        ),
        Rule(schema.PROMPT_TOKENS_CACHED, ("llamacpp:prompt_tokens_cached_total",), needs="--metrics"),
        Rule(
            schema.PREFIX_CACHE_QUERIES,
            ("llamacpp:prompt_tokens_total",),
            plus=("llamacpp:prompt_tokens_cached_total",),
            needs="--metrics",
        ),
        Rule(schema.PREFIX_CACHE_HITS, ("llamacpp:prompt_tokens_cached_total",), needs="--metrics"),
        Rule(
            schema.GENERATION_TOKENS,
            ("llamacpp:tokens_predicted_total",),
            needs="--metrics",
            note="Counted when a request ends.",
        ),
        Rule(schema.PROCESSED_TOKENS, ("llamacpp:prompt_tokens_total",), fixed={"phase": "prefill"}, needs="--metrics"),
        Rule(
            schema.PROCESSED_TOKENS,
            ("llamacpp:tokens_predicted_total",),
            fixed={"phase": "decode"},
            needs="--metrics",
            note="Counted when a request ends.",
        ),
        Rule(schema.ENGINE_STEPS, ("llamacpp:n_decode_total",), needs="--metrics"),
        Rule(schema.SPEC_DECODE_DRAFT_TOKENS, ("llamacpp:spec_decode_num_draft_tokens_total",), needs="--metrics"),
        Rule(
            schema.SPEC_DECODE_ACCEPTED_TOKENS, ("llamacpp:spec_decode_num_accepted_tokens_total",), needs="--metrics"
        ),
        Rule(
            schema.KV_CACHE_USAGE,
            ("llamacpp:kv_cache_usage_ratio",),
            needs="a build of before 2025-05; else used / capacity",
        ),
        Rule(schema.KV_CACHE_USED, ("llamacpp:kv_cache_tokens",), needs="a build of before 2025-05"),
    ),
    ignored={
        "*_created": "times of creation of other series",
        "llamacpp:prompt_seconds_total": "sums of durations over all requests",
        "llamacpp:tokens_predicted_seconds_total": "sums of durations over all requests",
        "llamacpp:n_tokens_max": "a high-water mark that is called a counter",
        "llamacpp:spec_decode_*": "per draft and per position; the totals are mapped",
        "llamacpp:prompt_tokens_seconds": "averages since the last scrape, which each scraper takes from the others",
        "llamacpp:predicted_tokens_seconds": "averages since the last scrape, which each scraper takes from the others",
        "llamacpp:n_busy_slots_per_decode": "an average over the server's life",
    },
)


def runner(model: str) -> Engine:
    """The server as the runner of one of Ollama's models, whose name Ollama gives.

    Waiting requests are not exposed: Ollama queues them itself, so that the server always reports 0 (captured with four
    requests waiting).
    """
    return replace(
        ENGINE,
        name="ollama",
        owned_by="",
        documents=always(_SLOTS, _METRICS, PROPERTIES),
        facts=lambda documents: _slot_facts(model, documents, _SLOTS.key, unified=False),
        model=lambda _: model,
        rules=tuple(rule for rule in ENGINE.rules if rule.metric is not schema.REQUESTS_WAITING),
        ignored={**ENGINE.ignored, "llamacpp:requests_deferred": "always 0 inside Ollama, which holds requests back"},
    )
