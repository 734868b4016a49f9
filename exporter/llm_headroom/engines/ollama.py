"""Ollama. It has no metrics endpoint in any release; what it tells of its models comes from its API.

Sources: ollama/ollama, server/routes.go, api/types.go; for metrics that may come: pull requests #18508, #16998, #11159.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from llm_headroom import schema
from llm_headroom.engines.openai_api import SLOWLY, present
from llm_headroom.rules import Absent, Document, Engine, Fact, Rule

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NEVER_AFTER_YEARS: Final = 100
"""keep_alive = -1 shows as an expiry about 292 years ahead."""
MOST_SHOWN: Final = 64
"""Models whose details are asked for; more than that are never loaded at once."""
ONCE: Final = float("inf")


def _details(model: Mapping[str, Any]) -> dict[str, str]:
    details = model.get("details") or {}
    return {
        "architecture": details.get("family") or "",
        "parameters": details.get("parameter_size") or "",
        "quantization": details.get("quantization_level") or "",
        "format": details.get("format") or "",
        "digest": (model.get("digest") or "")[:12],
    }


def _loaded(document: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - JSON
    return [
        {
            "name": model["name"],
            "digest": model.get("digest") or "",
            "size": model.get("size"),
            "size_vram": model.get("size_vram", 0),
            "context": model.get("context_length"),
            "expires": _expiry(model.get("expires_at") or ""),
            "details": _details(model),
        }
        for model in document["models"] or ()
    ]


def _installed(document: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - JSON
    return [
        {"name": model["name"], "remote": bool(model.get("remote_host")), "details": _details(model)}
        for model in document["models"] or ()
    ]


def _shown(document: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    info = document.get("model_info") or {}
    architecture = info.get("general.architecture", "")
    return {
        "parameters": info.get("general.parameter_count"),
        "trained_context": info.get(f"{architecture}.context_length"),
    }


def _expiry(text: str) -> float | None:
    """Unix seconds of an RFC 3339 time with nanoseconds; None if a model never expires."""
    try:
        moment = datetime.fromisoformat(
            text[:26].rstrip("Z") + "+00:00" if text.endswith("Z") else text[:26] + text[29:]
        )
    except ValueError:
        return None
    if moment.year - datetime.now(tz=moment.tzinfo).year > NEVER_AFTER_YEARS:
        return None
    return moment.timestamp()


_PS: Final = Document(key="ps", path="/api/ps", read=_loaded)
_TAGS: Final = Document(
    key="tags", path="/api/tags", every=60.0, optional=True, tolerated=(401, 403, 404), read=_installed
)
_VERSION: Final = Document(
    key="version",
    path="/api/version",
    every=SLOWLY,
    optional=True,
    tolerated=(401, 403, 404),
    read=lambda document: document["version"],
)
_METRICS: Final = Document(key="metrics", path="/metrics", text=True, optional=True, tolerated=(401, 403, 404, 405))


def _documents(known: Mapping[str, Any]) -> Iterator[Document]:
    yield _PS
    yield _TAGS
    yield _VERSION
    yield _METRICS
    for model in (present(known, "ps") or ())[:MOST_SHOWN]:
        yield Document(
            key=f"show {model['digest']}",
            path="/api/show",
            method="POST",
            body=json.dumps({"model": model["name"]}).encode(),
            every=ONCE,
            optional=True,
            tolerated=(400, 401, 403, 404),
            read=_shown,
        )


def _facts(documents: Mapping[str, Any]) -> Iterator[Fact]:
    loaded = present(documents, "ps") or []
    yield Fact(schema.MODELS_LOADED, {}, float(len(loaded)), "/api/ps models")
    for model in loaded:
        labels = {"model": model["name"]}
        yield Fact(schema.MODEL_LOADED, labels, 1.0, "/api/ps models")
        yield Fact(schema.MODEL_INFO, labels | model["details"], 1.0, "/api/ps details")
        if model["context"]:
            yield Fact(schema.MODEL_CONTEXT, labels, float(model["context"]), "/api/ps context_length")
        if model["expires"] is not None:
            yield Fact(schema.MODEL_EXPIRY, labels, model["expires"], "/api/ps expires_at")
        size, device = model["size"], model["size_vram"]
        if size:
            yield Fact(schema.MODEL_MEMORY, labels | {"kind": "total"}, float(size), "/api/ps size")
            yield Fact(schema.MODEL_MEMORY, labels | {"kind": "device"}, float(device), "/api/ps size_vram")
            yield Fact(schema.MODEL_OFFLOAD, labels, min(1.0, device / size), "/api/ps size_vram / size")
        shown = documents.get(f"show {model['digest']}")
        if shown is not None and not isinstance(shown, Absent):
            if shown["parameters"]:
                yield Fact(schema.MODEL_PARAMETERS, labels, float(shown["parameters"]), "/api/show parameter_count")
            if shown["trained_context"]:
                yield Fact(
                    schema.MODEL_TRAINED_CONTEXT, labels, float(shown["trained_context"]), "/api/show context_length"
                )
    names = {model["name"] for model in loaded}
    for model in present(documents, "tags") or ():
        if model["name"] not in names and not model["remote"]:
            labels = {"model": model["name"]}
            yield Fact(schema.MODEL_LOADED, labels, 0.0, "/api/tags models")
            yield Fact(schema.MODEL_INFO, labels | model["details"], 1.0, "/api/tags details")


_NATIVE: Final = "a release with a metrics endpoint; none has one yet"

ENGINE: Final = Engine(
    name="ollama",
    title="Ollama",
    port=11434,
    prefixes=("ollama_", "ollama:"),
    model_label="model",
    documents=_documents,
    greeting="Ollama is running",
    facts=_facts,
    fact_sources={
        "llm_models_loaded": "`/api/ps`",
        "llm_model_loaded": "`/api/ps`, and `/api/tags` for those that are not loaded",
        "llm_model_info": "`/api/ps`, `/api/tags`",
        "llm_model_context_tokens": "`/api/ps` context_length (of one slot)",
        "llm_model_expiry_timestamp_seconds": "`/api/ps` expires_at",
        "llm_model_memory_bytes": "`/api/ps` size (total), size_vram (device)",
        "llm_model_offload_ratio": "`/api/ps` size_vram / size",
        "llm_model_parameters": "`/api/show`",
        "llm_model_trained_context_tokens": "`/api/show`",
    },
    version=lambda documents: present(documents, "version") or "",
    interval=10.0,  # each poll writes a line into Ollama's log
    timeout=8.0,  # /api/ps waits while a model is unloaded, up to 5 s
    rules=(
        Rule(metric=schema.REQUESTS_WAITING, names=("ollama_requests_queued",), needs=_NATIVE),
        Rule(metric=schema.REQUESTS_FINISHED, names=("ollama_requests_total",), needs=_NATIVE),
        Rule(
            metric=schema.PROMPT_TOKENS,
            names=("ollama_prompt_tokens_total", "ollama_prompt_eval_total"),
            needs=_NATIVE,
        ),
        Rule(
            metric=schema.GENERATION_TOKENS,
            names=("ollama_generated_tokens_total", "ollama_eval_total", "ollama_completion_tokens_total"),
            needs=_NATIVE,
        ),
        Rule(metric=schema.PROMPT_TOKENS_CACHED, names=("ollama_prompt_cached_tokens_total",), needs=_NATIVE),
        Rule(metric=schema.PREFIX_CACHE_HIT_RATIO, names=("ollama_cache_hit_rate",), needs=_NATIVE),
        Rule(metric=schema.REQUEST_DURATION, names=("ollama_request_duration_seconds",), needs=_NATIVE),
        Rule(metric=schema.GPU_UTILIZATION, names=("ollama_gpu_utilization_percent",), scale=0.01, needs=_NATIVE),
        Rule(metric=schema.GPU_TEMPERATURE, names=("ollama_temperature_celsius",), needs=_NATIVE),
        Rule(
            metric=schema.MODEL_MEMORY,
            names=("ollama_loaded_model_size_bytes",),
            fixed={"kind": "total"},
            needs=_NATIVE,
        ),
        Rule(
            metric=schema.MODEL_MEMORY,
            names=("ollama_loaded_model_vram_bytes", "ollama_memory_used_bytes"),
            fixed={"kind": "device"},
            needs=_NATIVE,
        ),
        Rule(metric=schema.MODEL_EXPIRY, names=("ollama_loaded_model_expiry_timestamp_seconds",), needs=_NATIVE),
        Rule(metric=schema.MODELS_LOADED, names=("ollama_models_loaded",), needs=_NATIVE),
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
