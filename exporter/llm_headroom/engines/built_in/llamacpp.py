"""llama.cpp's `llama-server`, which is also what serves each model inside Ollama.

Source: ggml-org/llama.cpp, tools/server (server-context.cpp, README.md).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from llm_headroom import schema
from llm_headroom.engines.openai_api import MODELS, SLOWLY, model_facts, only_model, present
from llm_headroom.engines.rules import Document, Engine, Fact, Rule, always

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def _slots(document: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - JSON
    """The few fields wanted: slots can hold prompts."""
    return [
        {"context": slot["n_ctx"], "busy": bool(slot["is_processing"]), "tokens": slot.get("n_prompt_tokens")}
        for slot in document
    ]


def _properties(document: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    return {
        "slots": document.get("total_slots"),
        "build": document.get("build_info") or "",
        "model": document.get("model_alias") or document.get("model_path") or "",
        "path": document.get("model_path") or "",
    }


_SLOTS: Final = Document(key="slots", path="/slots", tolerated=(404, 501), read=_slots)
_METRICS: Final = Document(key="metrics", path="/metrics", text=True, optional=True, tolerated=(404, 501))
PROPERTIES: Final = Document(
    key="properties", path="/props", every=SLOWLY, optional=True, tolerated=(401, 403, 404, 501), read=_properties
)


def _model(documents: Mapping[str, Any]) -> str:
    return only_model(documents) or (present(documents, "properties") or {}).get("model", "")


def _facts(documents: Mapping[str, Any]) -> Iterator[Fact]:
    yield from model_facts(documents)
    yield from _slot_facts(_model(documents), documents)


def _slot_facts(model: str, documents: Mapping[str, Any]) -> Iterator[Fact]:
    labels = {"model": model}
    slots = present(documents, "slots")
    if slots:
        busy = [slot for slot in slots if slot["busy"]]
        yield Fact(schema.REQUESTS_RUNNING, labels, float(len(busy)), "/slots is_processing")
        yield Fact(schema.REQUESTS_RUNNING_LIMIT, labels, float(len(slots)), "/slots")
        yield Fact(schema.KV_CACHE_CAPACITY, labels, float(sum(slot["context"] for slot in slots)), "/slots n_ctx")
        yield Fact(schema.MODEL_CONTEXT, labels, float(min(slot["context"] for slot in slots)), "/slots n_ctx")
        if all(slot["tokens"] is not None for slot in slots):
            held = float(sum(slot["tokens"] for slot in busy))
            kept = float(sum(slot["tokens"] for slot in slots)) - held
            yield Fact(schema.KV_CACHE_USED, labels, held, "/slots n_prompt_tokens of busy slots")
            yield Fact(schema.KV_CACHE_EVICTABLE, labels, kept, "/slots n_prompt_tokens of idle slots")
    elif (properties := present(documents, "properties")) and properties["slots"]:
        yield Fact(schema.REQUESTS_RUNNING_LIMIT, labels, float(properties["slots"]), "/props total_slots")


ENGINE: Final = Engine(
    name="llamacpp",
    title="llama.cpp server",
    port=8080,
    colour="purple",
    prefixes=("llamacpp:", "llamacpp_"),
    model_label="model",
    documents=always(_SLOTS, _METRICS, PROPERTIES, MODELS),
    owned_by="llamacpp",
    facts=_facts,
    fact_sources={
        "llm_requests_running": "`/slots` is_processing, if the metrics are off",
        "llm_requests_running_limit": "`/slots`, `/props` total_slots",
        "llm_kv_cache_capacity_tokens": "`/slots` n_ctx",
        "llm_kv_cache_used_tokens": "`/slots` n_prompt_tokens of busy slots",
        "llm_kv_cache_evictable_tokens": "`/slots` n_prompt_tokens of idle slots, kept as prefix cache",
        "llm_model_context_tokens": "`/slots` n_ctx of one slot",
        "llm_model_loaded": "`/v1/models`",
    },
    version=lambda documents: (present(documents, "properties") or {}).get("build", ""),
    model=_model,
    rules=(
        Rule(schema.REQUESTS_RUNNING, ("llamacpp:requests_processing",), needs="--metrics"),
        Rule(
            schema.REQUESTS_WAITING,
            ("llamacpp:requests_deferred",),
            needs="--metrics",
            note="Too low while a long prefill runs. Inside Ollama it stays 0: Ollama holds requests back itself.",
        ),
        Rule(
            schema.PROMPT_TOKENS,
            ("llamacpp:prompt_tokens_total",),
            plus=("llamacpp:prompt_tokens_cached_total",),
            needs="--metrics",
            note="llama.cpp counts cached tokens apart; old builds do not tell them.",
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

    What waits is not told: Ollama holds requests back itself, so that the server always says 0 (captured with four
    requests waiting).
    """
    return replace(
        ENGINE,
        name="ollama",
        documents=always(_SLOTS, _METRICS, PROPERTIES),
        facts=lambda documents: _slot_facts(model, documents),
        model=lambda _: model,
        rules=tuple(rule for rule in ENGINE.rules if rule.metric is not schema.REQUESTS_WAITING),
        ignored={**ENGINE.ignored, "llamacpp:requests_deferred": "always 0 inside Ollama, which holds requests back"},
    )
