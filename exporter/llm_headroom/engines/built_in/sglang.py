"""SGLang's engine, 0.4 and newer.

Sources: sgl-project/sglang, python/sglang/srt/metrics/collector.py (srt/observability/ in newer releases).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from llm_headroom import schema
from llm_headroom.engines.openai_api import (
    INFERENCE_PATHS,
    MODELS,
    RUNTIME,
    SLOWLY,
    model_facts,
    only_model,
    present,
    status_class,
)
from llm_headroom.engines.rules import Absent, Document, Engine, Fact, Rule

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

GIB: Final = float(1 << 30)
_TOTAL_OF_PRIORITIES: Final = {"priority": ""}
_STREAMING: Final = {"is_streaming": "(true)?"}
_FIRST_EVENT: Final = "appears with its first event"


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


def _documents(known: Mapping[str, Any]) -> Iterator[Document]:
    yield _METRICS
    yield MODELS
    yield _SERVER_INFO
    if isinstance(known.get("server_info"), Absent):
        yield _GET_SERVER_INFO  # its only name until 0.5.5
    if isinstance(known.get("metrics"), Absent):
        yield _LOADS  # without --enable-metrics this is all there is (0.5.8)


def _known_of_the_server(documents: Mapping[str, Any]) -> dict[str, Any]:
    return present(documents, "server_info") or present(documents, "get_server_info") or {}


def _version(documents: Mapping[str, Any]) -> str:
    loads = present(documents, "loads") or {}
    return _known_of_the_server(documents).get("version") or loads.get("version") or ""


def _model(documents: Mapping[str, Any]) -> str:
    return only_model(documents) or _known_of_the_server(documents).get("model") or ""


def _facts(documents: Mapping[str, Any]) -> Iterator[Fact]:
    name = _model(documents)
    yield from model_facts(documents)
    yield from _loads_facts(documents, name)
    info = _known_of_the_server(documents)
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


def _loads_facts(documents: Mapping[str, Any], name: str) -> Iterator[Fact]:
    loads = (present(documents, "loads") or {}).get("loads", [])
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


ENGINE: Final = Engine(
    name="sglang",
    title="SGLang",
    port=30000,
    releases="0.4 to 0.5.23",
    colour="orange",
    prefixes=("sglang:", "sglang_"),
    replica_label="dp_rank",
    adds_up=("priority", "mode", "phase"),
    labels_requests=True,
    rank_labels=("tp_rank", "pp_rank", "moe_ep_rank"),
    documents=_documents,
    owned_by="sglang",
    facts=_facts,
    fact_sources={
        "llm_requests_running_limit": "`/server_info` effective_max_running_requests_per_dp, max_running_requests",
        "llm_kv_cache_capacity_tokens": "`/server_info` max_total_num_tokens",
        "llm_model_context_tokens": "`/v1/models` max_model_len, `/server_info` context_length",
        "llm_model_loaded": "`/v1/models`",
        "llm_model_memory_bytes": "`/server_info` memory_usage",
        "llm_engine_gpu_memory_reservation_ratio": "`/server_info` mem_fraction_static",
        "llm_requests_running": "`/v1/loads` if the metrics are off",
        "llm_requests_waiting": "`/v1/loads` if the metrics are off",
        "llm_kv_cache_used_tokens": "`/v1/loads` if the metrics are off",
        "llm_kv_cache_usage_ratio": "`/v1/loads` if the metrics are off",
        "llm_waiting_tokens": "`/v1/loads` if the metrics are off",
    },
    version=_version,
    model=_model,
    silent="no sglang: metrics: the server was started without --enable-metrics",
    rules=(
        Rule(
            schema.REQUESTS_RUNNING,
            ("sglang:num_running_reqs",),
            where=_TOTAL_OF_PRIORITIES,
            note="Written when batches are reported, so it lags; up to 0.5.15 an idle server can show it for 30 s.",
        ),
        Rule(schema.REQUESTS_WAITING, ("sglang:num_queue_reqs",), where=_TOTAL_OF_PRIORITIES),
        Rule(
            schema.REQUESTS_FINISHED,
            ("sglang:num_requests_total",),
            note="Without a reason; requests aborted while they ran are among them.",
        ),
        Rule(
            schema.REQUESTS_FAILED,
            ("sglang:num_aborted_requests_total",),
            fixed={"reason": "abort"},
            needs=_FIRST_EVENT,
        ),
        Rule(
            schema.HTTP_RESPONSES,
            ("sglang:http_responses_total",),
            where={"endpoint": INFERENCE_PATHS},
            labels={"status_code": "code"},
            rewrite={"code": status_class},
            needs="0.5.7",
        ),
        Rule(
            schema.PREEMPTIONS,
            ("sglang:num_retracted_requests_total", "sglang:total_retracted_reqs"),
            needs=f"{_FIRST_EVENT}; 0.5.7, or 0.4.10 to 0.5.2 as a gauge that only grows",
        ),
        Rule(
            schema.PROMPT_TOKENS,
            ("sglang:prompt_tokens_total",),
            note="Counted when a request ends; `llm_processed_tokens_total` moves with each step.",
        ),
        Rule(
            schema.GENERATION_TOKENS,
            ("sglang:generation_tokens_total",),
            note="Counted when a request ends; `llm_processed_tokens_total` moves with each step.",
        ),
        Rule(schema.PROMPT_TOKENS_CACHED, ("sglang:cached_tokens_total",), needs=f"0.4.4; {_FIRST_EVENT}"),
        Rule(
            schema.PROCESSED_TOKENS,
            ("sglang:realtime_tokens_total",),
            where={"mode": "prefill_compute"},
            fixed={"phase": "prefill"},
            needs="0.5.7",
        ),
        Rule(
            schema.PROCESSED_TOKENS,
            ("sglang:realtime_tokens_total",),
            where={"mode": "decode"},
            fixed={"phase": "decode"},
            needs="0.5.7",
        ),
        Rule(schema.WAITING_TOKENS, ("sglang:num_waiting_tokens",)),
        Rule(schema.ENGINE_STEPS, ("sglang:cuda_graph_passes_total",), needs="0.5.7"),
        Rule(schema.FORWARD_SECONDS, ("sglang:forward_latency_ms",), scale=1e-3),
        Rule(schema.PREFILL_THROUGHPUT, ("sglang:prefill_throughput",)),
        Rule(
            schema.DECODE_THROUGHPUT,
            ("sglang:gen_throughput", "sglang:decode_throughput"),
            note="Keeps its last value for a while on an idle server.",
        ),
        Rule(
            schema.TIME_TO_FIRST_TOKEN,
            ("sglang:time_to_first_token_seconds",),
            where=_STREAMING,
            note="Streamed requests only, where they can be told apart (0.5.17). Before, and up to 0.5.21, requests "
            "that are not streamed count with the time of their first 50 tokens.",
        ),
        Rule(
            schema.INTER_TOKEN_LATENCY,
            ("sglang:inter_token_latency_seconds", "sglang:time_per_output_token_seconds"),
            needs=_FIRST_EVENT,
        ),
        Rule(schema.TIME_PER_OUTPUT_TOKEN, ("sglang:request_time_per_output_token_seconds",), needs="0.5.22"),
        Rule(schema.REQUEST_DURATION, ("sglang:e2e_request_latency_seconds",)),
        Rule(schema.REQUEST_QUEUE, ("sglang:queue_time_seconds", "sglang:queue_time_s"), needs="0.5.2"),
        Rule(
            schema.REQUEST_PREFILL,
            ("sglang:per_stage_req_latency_seconds",),
            where={"stage": "prefill_forward"},
            needs="0.5.3",
        ),
        Rule(
            schema.REQUEST_PROMPT_TOKENS,
            ("sglang:prompt_tokens_histogram",),
            needs="0.4.7; up to 0.5.10 with --collect-tokens-histogram",
        ),
        Rule(
            schema.REQUEST_GENERATION_TOKENS,
            ("sglang:generation_tokens_histogram",),
            needs="0.4.7; up to 0.5.10 with --collect-tokens-histogram",
        ),
        Rule(
            schema.SPEC_DECODE_ACCEPTANCE,
            ("sglang:spec_accept_rate",),
            needs="0.5.4",
            note="0 also without speculative decoding.",
        ),
        Rule(schema.KV_CACHE_CAPACITY, ("sglang:max_total_num_tokens",), needs="0.5.6"),
        Rule(schema.KV_CACHE_USED, ("sglang:kv_used_tokens", "sglang:num_used_tokens")),
        Rule(schema.KV_CACHE_EVICTABLE, ("sglang:kv_evictable_tokens", "sglang:radix_cache_size"), needs="0.5.11"),
        Rule(
            schema.KV_CACHE_USAGE,
            ("sglang:full_token_usage", "sglang:token_usage"),
            note="`token_usage`, before 0.5.10, is the fullest of several pools, rounded to two decimals.",
        ),
        Rule(
            schema.PREFIX_CACHE_QUERIES,
            ("sglang:prefill_effective_tokens_total",),
            needs="0.5.18; before, what the next rules find",
        ),
        Rule(
            schema.PREFIX_CACHE_QUERIES, ("sglang:realtime_tokens_total",), where={"mode": "prefill_.*"}, needs="0.5.7"
        ),
        Rule(schema.PREFIX_CACHE_QUERIES, ("sglang:prompt_tokens_total",)),
        Rule(
            schema.PREFIX_CACHE_HITS,
            ("sglang:prefill_effective_tokens_total",),
            where={"mode": ".*_hit"},
            needs="0.5.18; before, what the next rules find",
        ),
        Rule(
            schema.PREFIX_CACHE_HITS, ("sglang:realtime_tokens_total",), where={"mode": "prefill_cache"}, needs="0.5.7"
        ),
        Rule(schema.PREFIX_CACHE_HITS, ("sglang:cached_tokens_total",), needs="0.4.4"),
        Rule(
            schema.PREFIX_CACHE_HIT_RATIO,
            ("sglang:cache_hit_rate",),
            note="Of the last prefill batch alone (0.4.4); keeps its value for ever.",
        ),
        Rule(schema.MODEL_CONTEXT, ("sglang:context_len",), needs="0.5.11"),
        Rule(
            schema.MODEL_MEMORY,
            ("sglang:weight_memory_usage_gb",),
            fixed={"kind": "weights"},
            scale=GIB,
            per_rank=True,
            needs="0.5.17",
            note="Of the ranks that report: all of them with --enable-metrics-for-all-schedulers, else the first.",
        ),
        Rule(
            schema.MODEL_MEMORY,
            ("sglang:kv_cache_memory_usage_gb",),
            fixed={"kind": "kv_cache"},
            scale=GIB,
            per_rank=True,
            needs="0.5.17",
        ),
        Rule(
            schema.MODEL_MEMORY,
            ("sglang:graph_memory_usage_gb",),
            fixed={"kind": "graph"},
            scale=GIB,
            per_rank=True,
            needs="0.5.17",
        ),
        Rule(schema.MODELS_LOADED, ("sglang:num_running_models",)),
    ),
    ignored={
        **RUNTIME,
        "sglang:process_cpu_seconds_total": "the server's processes",
        "sglang:http_*": "HTTP layer; responses are mapped",
        "http_*": "HTTP layer",
        "sglang:num_grammar_*": "structured output",
        "sglang:grammar_*": "structured output",
        "sglang:num_so_requests_total": "structured output",
        "sglang:func_latency_seconds": "debugging",
        "sglang:avg_request_queue_latency": "a mean of the last batch; queue_time_seconds is mapped",
        "sglang:decode_sum_seq_lens": "tokens of the running batch; kv_used_tokens is mapped",
        "sglang:swa_*": "pools of sliding-window layers",
        "sglang:mamba_*": "pools of Mamba layers",
        "sglang:max_total_num_tokens_swa": "pools of sliding-window layers",
        "sglang:kv_available_tokens": "capacity less used and evictable tokens",
        "sglang:pending_prealloc_token_usage": "disaggregated prefill and decode",
        "sglang:prealloc_*": "disaggregated prefill and decode",
        "sglang:num_prefill_*": "queues of disaggregated prefill",
        "sglang:num_decode_*": "queues of disaggregated decode",
        "sglang:decode_deferred_kv_release_*": "disaggregated decode",
        "sglang:num_bootstrap_failed_reqs_total": "disaggregated prefill and decode",
        "sglang:num_transfer_failed_reqs_total": "disaggregated prefill and decode",
        "sglang:kv_transfer_*": "disaggregated prefill and decode; gauges until 0.5.9, histograms since",
        "sglang:failed_session_recoveries_total": "disaggregated prefill and decode",
        "sglang:spec_*": "per verify step; the acceptance rate is mapped",
        "sglang:utilization": "never set (stays 0, or -1)",
        "sglang:max_running_requests_under_SLO": "never set",
        "sglang:fwd_occupancy": "needs a device timer; NaN without",
        "sglang:new_token_ratio": "the scheduler's own estimate",
        "sglang:is_cuda_graph": "mode of the last pass",
        "sglang:forward_execution_seconds_total": "needs a device timer",
        "sglang:gpu_overlap_wait_seconds_total": "needs a device timer",
        "sglang:time_to_first_token_seconds_offline_batch": "offline batches",
        "sglang:estimated_*": "estimates for MFU (--enable-mfu-metrics)",
        "sglang:gpu_execution_seconds_total": "needs a device timer",
        "sglang:dp_cooperation_*": "data-parallel attention",
        "sglang:dp_attention_*": "data-parallel attention",
        "sglang:lora_pool_*": "LoRA slots",
        "sglang:hicache_*": "cache tiers on the host",
        "sglang:load_back_*": "cache tiers on the host",
        "sglang:evicted_tokens_total": "evictions of the prefix cache (times the ranks until 0.5.20)",
        "sglang:eviction_duration_seconds": "evictions of the prefix cache",
        "sglang:storage_*": "cache tiers on storage",
        "sglang:prefetch*": "cache tiers on storage",
        "sglang:backup*": "cache tiers on storage",
        "sglang:num_streaming_sessions": "sessions",
        "sglang:streaming_session_held_tokens": "sessions",
        "sglang:*routing_key*": "routing keys; gauges with le labels that are no histogram",
        "sglang:num_retracted_reqs": "since the last report only, and by process id",
        "sglang:num_paused_reqs": "since the last report only, and by process id",
        "sglang:num_retracted_input_tokens_total": "tokens of retracted requests; requests are mapped",
        "sglang:num_retracted_output_tokens_total": "tokens of retracted requests; requests are mapped",
        "sglang:num_retractions": "retractions per request (0.5.5 to 0.5.10)",
        "sglang:uncached_prompt_tokens_histogram": "prompt tokens less cached ones",
        "sglang:num_running_reqs_offline_batch": "offline batches",
        "sglang:page_size": "capacity in tokens is mapped",
        "sglang:num_pages": "capacity in tokens is mapped",
        "sglang:cache_config_info": "capacity in tokens is mapped",
        "sglang:startup_*": "durations of the start",
        "sglang:engine_startup_time": "durations of the start",
        "sglang:engine_load_weights_time": "durations of the start",
        "sglang:weight_load_duration_seconds": "durations of the start",
        "sglang:scheduler_*": "the scheduler's own time",
        "sglang:get_loads_duration_seconds": "the load endpoint's own time",
        "sglang:prefill_delayer_*": "prefill delayer",
        "sglang:encoder_*": "encoder server",
        "sglang:diffusion_*": "diffusion server",
        "sglang:eplb_*": "expert load balancing",
    },
)
