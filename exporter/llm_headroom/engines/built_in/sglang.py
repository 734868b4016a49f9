"""SGLang's engine, 0.4 and newer.

Sources: sgl-project/sglang, python/sglang/srt/metrics/collector.py (srt/observability/ in newer releases).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.engines import kv_transfer, sglang_documents
from llm_headroom.engines.openai_api import INFERENCE_PATHS, RUNTIME, status_class
from llm_headroom.engines.rules import Engine, Rule

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_TOTAL_OF_PRIORITIES: Final = {"priority": ""}
_EACH_PRIORITY: Final = {"priority": ".+"}
_PRIORITIES: Final = "0.5.10, --enable-priority-scheduling"
_DISAGGREGATION: Final = "disaggregated prefill and decode"
_SPECULATION: Final = "0.5.13, speculative decoding"
_TRANSFER_QUEUES: Final = {
    "prefill_bootstrap": ("sglang:num_prefill_bootstrap_queue_reqs", "sglang:num_prefill_prealloc_queue_reqs"),
    "prefill_inflight": ("sglang:num_prefill_inflight_queue_reqs", "sglang:num_prefill_infight_queue_reqs"),
    "decode_prealloc": ("sglang:num_decode_prealloc_queue_reqs",),
    "decode_transfer": ("sglang:num_decode_transfer_queue_reqs",),
}
"""Our stage → SGLang's queue, one of which had a slip of the pen in its name until 0.5.1."""
_BEFORE_RUNNING: Final = tuple(
    name for stage, names in _TRANSFER_QUEUES.items() if stage != "prefill_inflight" for name in names
)
"""Queues of requests that wait, in none of which is one that the engine's own queue has."""
_STREAMING: Final = {"is_streaming": "(true)?"}
_FIRST_EVENT: Final = "appears with its first event"


def _one(infos: Sequence[Mapping[str, str]]) -> Iterator[float]:
    return (1.0 for _ in infos)


def _tier(source: str) -> str:
    """`device_hit` and `device` are the same."""
    return source.removesuffix("_hit")


ENGINE: Final = Engine(
    name="sglang",
    title="SGLang",
    port=30000,
    releases="0.4 to 0.5.23",
    colour="orange",
    reserves=True,
    prefixes=("sglang:", "sglang_"),
    replica_label="dp_rank",
    adds_up=("priority", "mode", "phase"),
    labels_requests=True,
    rank_labels=("tp_rank", "pp_rank", "moe_ep_rank"),
    documents=sglang_documents.documents,
    owned_by="sglang",
    facts=sglang_documents.facts,
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
    version=sglang_documents.version,
    model=sglang_documents.model,
    silent="no sglang: metrics: the server was started without --enable-metrics",
    rules=(
        Rule(
            schema.REQUESTS_RUNNING,
            ("sglang:num_running_reqs",),
            where=_TOTAL_OF_PRIORITIES,
            note="Written when batches are reported, so it lags; up to 0.5.15 an idle server can show it for 30 s.",
        ),
        Rule(
            schema.REQUESTS_WAITING,
            ("sglang:num_queue_reqs",),
            where=_TOTAL_OF_PRIORITIES,
            plus=("sglang:num_grammar_queue_reqs", *_BEFORE_RUNNING),
            note="With those whose grammar is being compiled or whose KV cache has not come: their clients wait, too.",
        ),
        Rule(
            schema.REQUESTS_RUNNING_BY_PRIORITY,
            ("sglang:num_running_reqs",),
            where=_EACH_PRIORITY,
            labels={"priority": "request_priority"},
            needs=_PRIORITIES,
        ),
        Rule(
            schema.REQUESTS_WAITING_BY_PRIORITY,
            ("sglang:num_queue_reqs",),
            where=_EACH_PRIORITY,
            labels={"priority": "request_priority"},
            needs=_PRIORITIES,
        ),
        Rule(
            schema.REQUESTS_WAITING_BY_REASON,
            ("sglang:num_grammar_queue_reqs",),
            where=_TOTAL_OF_PRIORITIES,
            fixed={"reason": "grammar"},
            note="They are among llm_requests_waiting.",
        ),
        *(
            Rule(
                schema.REQUESTS_IN_KV_TRANSFER,
                names,
                where=_TOTAL_OF_PRIORITIES,
                fixed={"wait_stage": stage},
                needs=_DISAGGREGATION,
                note="Prefilled ones that are sent are not among llm_requests_waiting.",
            )
            for stage, names in _TRANSFER_QUEUES.items()
        ),
        Rule(
            schema.ENGINE_ROLE,
            ("sglang:num_running_reqs",),
            where={"engine_type": ".+"},
            labels={"engine_type": "engine_role"},
            read=_one,
            needs="0.4.4",
        ),
        Rule(
            schema.REQUESTS_FINISHED,
            ("sglang:num_requests_total",),
            less=("sglang:num_aborted_requests_total",),
            note="Without a reason. SGLang counts aborted requests among them, which are taken off.",
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
            schema.PREEMPTED_TOKENS,
            ("sglang:num_retracted_input_tokens_total",),
            fixed={"kind": "prompt"},
            needs=f"0.5.7; {_FIRST_EVENT}",
        ),
        Rule(
            schema.PREEMPTED_TOKENS,
            ("sglang:num_retracted_output_tokens_total",),
            fixed={"kind": "generation"},
            needs=f"0.5.7; {_FIRST_EVENT}",
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
            note="Streamed requests only, where they can be distinguished (0.5.17). Before, and up to 0.5.21, requests "
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
        Rule(schema.SPEC_DECODE_DRAFTS, ("sglang:spec_verify_calls_total",), needs=_SPECULATION),
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
            schema.PREFIX_CACHE_HITS_BY_TIER,
            ("sglang:prefill_effective_tokens_total",),
            where={"mode": ".*_hit"},
            labels={"mode": "cache_tier"},
            rewrite={"cache_tier": _tier},
            needs="0.5.18",
        ),
        Rule(
            schema.PREFIX_CACHE_HITS_BY_TIER,
            ("sglang:cached_tokens_total",),
            where={"cache_source": "(?!total$).+"},
            labels={"cache_source": "cache_tier"},
            needs=f"0.5.9; {_FIRST_EVENT}",
        ),
        Rule(schema.KV_CACHE_HOST_CAPACITY, ("sglang:hicache_host_total_tokens",), needs="--enable-hierarchical-cache"),
        Rule(schema.KV_CACHE_HOST_USED, ("sglang:hicache_host_used_tokens",), needs="--enable-hierarchical-cache"),
        *kv_transfer.SGLANG,
        Rule(schema.LORA_SLOTS, ("sglang:lora_pool_slots_total",), needs="0.5.7, --enable-lora"),
        Rule(schema.LORA_SLOTS_USED, ("sglang:lora_pool_slots_used",), needs="0.5.7, --enable-lora"),
        Rule(schema.MM_CACHE_QUERIES, ("sglang:encoder_cache_total_files_total",), needs="0.5.15, --encoder-only"),
        Rule(schema.MM_CACHE_HITS, ("sglang:encoder_cache_hit_files_total",), needs="0.5.15, --encoder-only"),
        Rule(
            schema.EXPERT_BALANCE,
            ("sglang:eplb_balancedness_sum",),
            labels={"forward_mode": "phase"},
            needs="0.5.7, --expert-balancedness-report-mode",
        ),
        Rule(
            schema.EXPERT_BALANCE_PASSES,
            ("sglang:eplb_balancedness_count",),
            labels={"forward_mode": "phase"},
            needs="0.5.7, --expert-balancedness-report-mode",
        ),
        Rule(
            schema.PREFIX_CACHE_HIT_RATIO,
            ("sglang:cache_hit_rate",),
            note="Of the last prefill batch alone (0.4.4); does not fall while idle.",
        ),
        Rule(schema.MODEL_CONTEXT, ("sglang:context_len",), needs="0.5.11"),
        Rule(
            schema.MODEL_MEMORY,
            ("sglang:weight_memory_usage_gb",),
            fixed={"kind": "weights"},
            scale=sglang_documents.GIB,
            per_rank=True,
            needs="0.5.17",
            note="Of the ranks that report: all of them with --enable-metrics-for-all-schedulers, else the first.",
        ),
        Rule(
            schema.MODEL_MEMORY,
            ("sglang:kv_cache_memory_usage_gb",),
            fixed={"kind": "kv_cache"},
            scale=sglang_documents.GIB,
            per_rank=True,
            needs="0.5.17",
        ),
        Rule(
            schema.MODEL_MEMORY,
            ("sglang:graph_memory_usage_gb",),
            fixed={"kind": "graph"},
            scale=sglang_documents.GIB,
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
        "sglang:num_grammar_*": "structured output: its queue is mapped",
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
        "sglang:num_prefill_*": "retries of disaggregated prefill",
        "sglang:num_decode_*": "receiving into host memory",
        "sglang:decode_deferred_kv_release_*": "disaggregated decode",
        "sglang:kv_transfer_*": "disaggregated prefill and decode: latency and size are mapped; gauges until 0.5.9",
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
        "sglang:lora_pool_*": "used by all slots, which are mapped",
        "sglang:hicache_*": "cache tier on the host: its size and transfers are mapped",
        "sglang:load_back_*": "cache tier on the host: bytes and seconds are mapped",
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
        "sglang:encoder_*": "encoder server: its cache is mapped",
        "sglang:diffusion_*": "diffusion server",
        "sglang:eplb_*": "expert load balancing: the balance is mapped",
    },
)
