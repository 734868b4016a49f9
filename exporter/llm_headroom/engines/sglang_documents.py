"""What SGLang's JSON documents say: its limits, memory and load, and figures where the metrics are off.

Source: sgl-project/sglang, python/sglang/srt/entrypoints/http_server.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta, Struct, field

from llm_headroom import schema
from llm_headroom.engines.answers import Text, Versioned, Whole
from llm_headroom.engines.openai_api import MODELS, SLOWLY, model_facts, only_model, present
from llm_headroom.engines.rules import Absent, Document, Fact

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

GIB: Final = float(1 << 30)


class _Memory(Struct):
    """GiB of a replica; those of CUDA graphs come by phase in newer releases."""

    token_capacity: Whole | None = None
    weights: float | None = field(default=None, name="weight")
    kv_cache: float | None = field(default=None, name="kvcache")
    graph: float | dict[Text, float] | None = None


class _State(Struct):
    effective_max_running_requests_per_dp: Whole | None = None
    memory_usage: _Memory | None = None


class _ServerInfo(Versioned):
    """The few fields wanted of a document that also holds API keys and passwords."""

    served_model_name: Text | None = None
    model_path: Text | None = None
    max_total_num_tokens: Whole | None = None
    context_length: Whole | None = None
    max_running_requests: Whole | None = None
    mem_fraction_static: float | None = None
    internal_states: Annotated[list[_State], Meta(max_length=1024)] | None = None

    @property
    def model(self) -> str:
        return self.served_model_name or self.model_path or ""


class _Load(Struct):
    """The load of one replica."""

    dp_rank: Whole | None = None
    num_running_reqs: Whole | None = None
    num_waiting_reqs: Whole | None = None
    num_waiting_uncached_tokens: Whole | None = None
    num_used_tokens: Whole | None = None
    max_total_num_tokens: Whole | None = None
    max_running_requests: Whole | None = None
    token_usage: float | None = None


class _Loads(Versioned, kw_only=True):
    loads: Annotated[list[_Load], Meta(max_length=1024)]


_METRICS: Final = Document(key="metrics", path="/metrics", text=True, tolerated=(404,))
_SERVER_INFO: Final = Document(
    key="server_info",
    path="/server_info",
    every=SLOWLY,
    optional=True,
    tolerated=(401, 403, 404, 405),
    form=_ServerInfo,
)
_GET_SERVER_INFO: Final = replace(_SERVER_INFO, key="get_server_info", path="/get_server_info")
_LOADS: Final = Document(key="loads", path="/v1/loads?include=core", tolerated=(404,), form=_Loads)  # since 0.5.8


def documents(known: Mapping[str, Any]) -> Iterator[Document]:
    """What to fetch next."""
    yield _METRICS
    yield MODELS
    yield _SERVER_INFO
    if isinstance(known.get("server_info"), Absent):
        yield _GET_SERVER_INFO  # its only name until 0.5.5
    if isinstance(known.get("metrics"), Absent):
        yield _LOADS  # without --enable-metrics this is all there is (0.5.8)


def _known_of_the_server(known: Mapping[str, Any]) -> _ServerInfo:
    found: _ServerInfo | None = present(known, "server_info") or present(known, "get_server_info")
    return found or _ServerInfo()


def _loads(known: Mapping[str, Any]) -> _Loads:
    found: _Loads | None = present(known, "loads")
    return found or _Loads(loads=[])


def version(known: Mapping[str, Any]) -> str:
    """The server's version, "" if unknown."""
    return _known_of_the_server(known).version or _loads(known).version or ""


def model(known: Mapping[str, Any]) -> str:
    """The model of series that name none, "" if unknown."""
    return only_model(known) or _known_of_the_server(known).model


def facts(known: Mapping[str, Any]) -> Iterator[Fact]:
    """Values out of the documents."""
    name = model(known)
    yield from model_facts(known)
    yield from _loads_facts(known, name)
    info = _known_of_the_server(known)
    replicas = info.internal_states or []
    for index, replica in enumerate(replicas):
        alone = len(replicas) == 1
        labels = {"model": name} if alone else {"model": name, "replica": str(index)}
        memory = replica.memory_usage or _Memory()
        limit = replica.effective_max_running_requests_per_dp or (info.max_running_requests if alone else None)
        capacity = memory.token_capacity or (info.max_total_num_tokens if alone else None)
        if limit is not None:
            yield Fact(schema.REQUESTS_RUNNING_LIMIT, labels, float(limit), "/server_info max_running_requests")
        if capacity is not None:
            yield Fact(schema.KV_CACHE_CAPACITY, labels, float(capacity), "/server_info max_total_num_tokens")
        graph = sum(memory.graph.values()) if isinstance(memory.graph, dict) else memory.graph
        for kind, gigabytes in (("weights", memory.weights), ("kv_cache", memory.kv_cache), ("graph", graph)):
            if gigabytes is not None:
                yield Fact(schema.MODEL_MEMORY, labels | {"kind": kind}, gigabytes * GIB, "/server_info memory_usage")
    if info.mem_fraction_static is not None:
        yield Fact(
            schema.ENGINE_GPU_RESERVATION,
            {"model": name},
            info.mem_fraction_static,
            "/server_info mem_fraction_static",
        )
    if info.context_length is not None:
        yield Fact(schema.MODEL_CONTEXT, {"model": name}, float(info.context_length), "/server_info context_length")


def _loads_facts(known: Mapping[str, Any], name: str) -> Iterator[Fact]:
    loads = _loads(known).loads
    for load in loads:
        labels = {"model": name}
        if len(loads) > 1:
            labels["replica"] = str(load.dp_rank)
        for metric, value, origin in (
            (schema.REQUESTS_RUNNING, load.num_running_reqs, "num_running_reqs"),
            (schema.REQUESTS_WAITING, load.num_waiting_reqs, "num_waiting_reqs"),
            (schema.REQUESTS_RUNNING_LIMIT, load.max_running_requests, "max_running_requests"),
            (schema.WAITING_TOKENS, load.num_waiting_uncached_tokens, "num_waiting_uncached_tokens"),
            (schema.KV_CACHE_CAPACITY, load.max_total_num_tokens, "max_total_num_tokens"),
            (schema.KV_CACHE_USED, load.num_used_tokens, "num_used_tokens"),
            (schema.KV_CACHE_USAGE, load.token_usage, "token_usage"),
        ):
            if value is not None:
                yield Fact(metric, labels, float(value), f"/v1/loads {origin}")
