"""What SGLang's JSON documents say: its limits, memory and load, and figures where the metrics are off.

Source: sgl-project/sglang, python/sglang/srt/entrypoints/http_server.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from llm_headroom import schema
from llm_headroom.engines.openai_api import MODELS, SLOWLY, model_facts, only_model, present
from llm_headroom.engines.rules import Absent, Document, Fact

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

GIB: Final = float(1 << 30)


def _server_info(document: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """The few fields wanted of a document that also holds API keys and passwords."""
    states = document.get("internal_states") or []
    return {
        "version": document.get("version"),
        "model": document.get("served_model_name") or document.get("model_path"),
        "capacity": document.get("max_total_num_tokens"),
        "context": document.get("context_length"),
        "limit": document.get("max_running_requests"),
        "reservation": document.get("mem_fraction_static"),
        "replicas": [
            {
                "limit": state.get("effective_max_running_requests_per_dp"),
                "capacity": (state.get("memory_usage") or {}).get("token_capacity"),
                "weights": (state.get("memory_usage") or {}).get("weight"),
                "kv_cache": (state.get("memory_usage") or {}).get("kvcache"),
                "graph": _graph((state.get("memory_usage") or {}).get("graph")),
            }
            for state in states
        ],
    }


def _graph(memory: Any) -> float | None:  # noqa: ANN401 - JSON
    """GiB of CUDA graphs; newer releases tell them by phase."""
    return sum(memory.values()) if isinstance(memory, dict) else memory


_LOAD_FIELDS: Final = (
    "dp_rank",
    "num_running_reqs",
    "num_waiting_reqs",
    "num_waiting_uncached_tokens",
    "num_used_tokens",
    "max_total_num_tokens",
    "max_running_requests",
    "token_usage",
)


def _loads(document: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    return {
        "version": document.get("version"),
        "loads": [{field: load.get(field) for field in _LOAD_FIELDS} for load in document["loads"]],
    }


_METRICS: Final = Document(key="metrics", path="/metrics", text=True, tolerated=(404,))
_SERVER_INFO: Final = Document(
    key="server_info",
    path="/server_info",
    every=SLOWLY,
    optional=True,
    tolerated=(401, 403, 404, 405),
    read=_server_info,
)
_GET_SERVER_INFO: Final = replace(_SERVER_INFO, key="get_server_info", path="/get_server_info")
_LOADS: Final = Document(key="loads", path="/v1/loads?include=core", read=_loads)


def documents(known: Mapping[str, Any]) -> Iterator[Document]:
    """What to fetch next."""
    yield _METRICS
    yield MODELS
    yield _SERVER_INFO
    if isinstance(known.get("server_info"), Absent):
        yield _GET_SERVER_INFO  # its only name until 0.5.5
    if isinstance(known.get("metrics"), Absent):
        yield _LOADS  # without --enable-metrics this is all there is (0.5.8)


def _known_of_the_server(known: Mapping[str, Any]) -> dict[str, Any]:
    return present(known, "server_info") or present(known, "get_server_info") or {}


def version(known: Mapping[str, Any]) -> str:
    """The server's version, "" if unknown."""
    loads = present(known, "loads") or {}
    return _known_of_the_server(known).get("version") or loads.get("version") or ""


def model(known: Mapping[str, Any]) -> str:
    """The model of series that name none, "" if unknown."""
    return only_model(known) or _known_of_the_server(known).get("model") or ""


def facts(known: Mapping[str, Any]) -> Iterator[Fact]:
    """Values out of the documents."""
    name = model(known)
    yield from model_facts(known)
    yield from _loads_facts(known, name)
    info = _known_of_the_server(known)
    replicas = info.get("replicas", [])
    for index, replica in enumerate(replicas):
        alone = len(replicas) == 1
        labels = {"model": name} if alone else {"model": name, "replica": str(index)}
        limit = replica["limit"] or (info["limit"] if alone else None)
        capacity = replica["capacity"] or (info["capacity"] if alone else None)
        if limit is not None:
            yield Fact(schema.REQUESTS_RUNNING_LIMIT, labels, float(limit), "/server_info max_running_requests")
        if capacity is not None:
            yield Fact(schema.KV_CACHE_CAPACITY, labels, float(capacity), "/server_info max_total_num_tokens")
        for kind in ("weights", "kv_cache", "graph"):
            if replica[kind] is not None:
                yield Fact(
                    schema.MODEL_MEMORY, labels | {"kind": kind}, replica[kind] * GIB, "/server_info memory_usage"
                )
    if info.get("reservation") is not None:
        yield Fact(
            schema.ENGINE_GPU_RESERVATION,
            {"model": name},
            float(info["reservation"]),
            "/server_info mem_fraction_static",
        )
    if info.get("context") is not None:
        yield Fact(schema.MODEL_CONTEXT, {"model": name}, float(info["context"]), "/server_info context_length")


def _loads_facts(known: Mapping[str, Any], name: str) -> Iterator[Fact]:
    loads = (present(known, "loads") or {}).get("loads", [])
    for load in loads:
        labels = {"model": name}
        if len(loads) > 1:
            labels["replica"] = str(load["dp_rank"])
        for metric, field in (
            (schema.REQUESTS_RUNNING, "num_running_reqs"),
            (schema.REQUESTS_WAITING, "num_waiting_reqs"),
            (schema.REQUESTS_RUNNING_LIMIT, "max_running_requests"),
            (schema.WAITING_TOKENS, "num_waiting_uncached_tokens"),
            (schema.KV_CACHE_CAPACITY, "max_total_num_tokens"),
            (schema.KV_CACHE_USED, "num_used_tokens"),
            (schema.KV_CACHE_USAGE, "token_usage"),
        ):
            if load[field] is not None:
                yield Fact(metric, labels, float(load[field]), f"/v1/loads {field}")
