"""vLLM, engines V0 and V1, 0.6 and newer.

Sources: vllm-project/vllm, vllm/v1/metrics/loggers.py (V1) and vllm/engine/metrics.py (V0) of the releases named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from llm_headroom import schema
from llm_headroom.engines import kv_transfer
from llm_headroom.engines.answers import Replicas, Text, Versioned, Whole
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
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from llm_headroom.exposition.text import Layout

_FAILED = "abort|error"


def _number(text: str | None) -> float | None:
    """A number out of an info label; unknown ones are the text `None`."""
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _capacity(infos: Sequence[Mapping[str, str]]) -> Iterator[float | None]:
    """KV capacity in tokens of each engine (data-parallel rank) from the labels of cache_config_info.

    kv_cache_size_tokens (0.24.0) is right for each engine. Before, block_size * num_gpu_blocks has to do, where
    num_gpu_blocks is the sum over all engines, repeated at each of them. For hybrid models that product is wrong.
    """
    engines = len({info.get("engine", "") for info in infos})
    for info in infos:
        tokens = _number(info.get("kv_cache_size_tokens"))
        if tokens is None:
            block_size, blocks = _number(info.get("block_size")), _number(info.get("num_gpu_blocks"))
            hybrid = any(
                info.get(label, "None") not in ("None", "") for label in ("mamba_block_size", "sliding_window")
            )
            if block_size is not None and blocks is not None and not hybrid:
                tokens = block_size * blocks / engines
        yield tokens


def _kv_cache_memory(infos: Sequence[Mapping[str, str]]) -> Iterator[float | None]:
    """Bytes of KV cache on each GPU where the operator gave them (--kv-cache-memory-bytes); 0 stands for not given."""
    return (_number(info.get("kv_cache_memory_bytes")) or None for info in infos)


def _reservation(infos: Sequence[Mapping[str, str]]) -> Iterator[float | None]:
    """The share of each GPU that vLLM fills; --kv-cache-memory-bytes puts it out of force."""
    given = _kv_cache_memory(infos)
    return (
        None if memory else _number(info.get("gpu_memory_utilization"))
        for info, memory in zip(infos, given, strict=True)
    )


_TIERS: Final = {"disk": "storage", "p2p": "peer", "external_unspecified": "external"}
_ROLES: Final = {"kv_producer": "prefill", "kv_consumer": "decode", "kv_both": "both"}
"""vLLM's names in vllm/config/kv_transfer.py → ours, which are those of the phases."""


def _tier(source: str) -> str:
    return _TIERS.get(source, source)


def _lora_slots(infos: Sequence[Mapping[str, str]]) -> Iterator[float | None]:
    """0 stands for adapters that are off (V0)."""
    return (_number(info.get("max_lora")) or None for info in infos)


def _lora_adapters(info: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Adapters with running and with waiting requests, which vLLM lists in label values without their numbers."""
    for state in ("running", "waiting"):
        for adapter in info.get(f"{state}_lora_adapters", "").split(","):
            if adapter:
                yield {"adapter": adapter, "state": state}


class _Scheduler(Struct):
    max_num_seqs: Whole | None = None


class _Parallel(Struct):
    data_parallel_size: Replicas | None = None


class _Model(Struct):
    served_model_name: Text | list[Text] | None = None


class _Transfer(Struct):
    kv_role: Text | None = None


class _Config(Struct):
    scheduler_config: _Scheduler | None = None
    parallel_config: _Parallel | None = None
    model_config: _Model | None = None
    kv_transfer_config: _Transfer | None = None


class _ServerInfo(Struct):
    vllm_config: _Config


def _documents(known: Mapping[str, Any]) -> Iterable[Document]:
    """NVIDIA NIM serves vLLM's metrics at /v1/metrics, without their prefix, and nothing at /metrics."""
    return (_METRICS, _NIM_METRICS, *_OTHERS) if isinstance(known.get("metrics"), Absent) else (_METRICS, *_OTHERS)


_METRICS: Final = Document(key="metrics", path="/metrics", text=True, tolerated=(404,))
_NIM_METRICS: Final = Document(key="nim_metrics", path="/v1/metrics", text=True, after="/metrics")
_OTHERS: Final = (
    Document(
        key="version",
        path="/version",
        every=SLOWLY,
        optional=True,
        tolerated=(401, 403, 404),
        form=Versioned,
        read=lambda answer: answer.version or "",
    ),
    MODELS,
    Document(
        key="server_info",
        path="/server_info?config_format=json",
        every=SLOWLY,
        optional=True,
        tolerated=(400, 401, 403, 404, 422),
        form=_ServerInfo,
        read=lambda answer: answer.vllm_config,
    ),
)


def _facts(documents: Mapping[str, Any]) -> Iterator[Fact]:
    yield from model_facts(documents)
    config: _Config | None = present(documents, "server_info")
    if config is None:
        return
    served = config.model_config.served_model_name if config.model_config else None
    name = only_model(documents) or (served[0] if isinstance(served, list) and served else str(served or ""))
    if role := _ROLES.get((config.kv_transfer_config and config.kv_transfer_config.kv_role) or ""):
        labels = {"model": name, "engine_role": role}
        yield Fact(schema.ENGINE_ROLE, labels, 1.0, "/server_info kv_transfer_config.kv_role")
    if config.scheduler_config and config.scheduler_config.max_num_seqs:
        for replica in range((config.parallel_config and config.parallel_config.data_parallel_size) or 1):
            yield Fact(
                schema.REQUESTS_RUNNING_LIMIT,
                {"model": name, "replica": str(replica)},
                float(config.scheduler_config.max_num_seqs),
                "/server_info scheduler_config.max_num_seqs",
            )


_COORDINATOR: Final = frozenset({"role", "pod_ip", "instance_id"})
"""Labels that MindIE's coordinator gives the series of the engines behind it."""


def _refuse(layout: Layout) -> str:
    """Routers and coordinators that export vLLM's names again, for other things or with the engines' values added."""
    for key in layout.keys:
        labels = dict(key.labels)
        if labels.get("server") and key.name.startswith(("vllm:", "vllm_")):
            return (
                "this is the router of the vLLM production stack, which reuses vLLM's metric names for other "
                "things; point this target at the engines behind it"
            )
        running = key.name.endswith((":num_requests_running", "_num_requests_running"))
        if running and "engine" not in labels and not _COORDINATOR.isdisjoint(labels):
            return (
                "this is a coordinator in front of several engines, which exports their metrics again; point this "
                "target at the engines behind it"
            )
    return ""


ENGINE: Final = Engine(
    name="vllm",
    title="vLLM",
    port=8000,
    releases="0.6 to 0.33 (V0 and V1)",
    colour="blue",
    prefixes=("vllm:", "vllm_", "ray_vllm:", "ray_vllm_", ""),
    replica_label="engine",
    model_parts=("stage",),
    adds_up=("method", "handler", "path", "status", "tier"),
    documents=_documents,
    owned_by="vllm",
    facts=_facts,
    fact_sources={
        "llm_model_context_tokens": "`/v1/models` max_model_len",
        "llm_model_loaded": "`/v1/models`",
        "llm_engine_role": "`/server_info` kv_role (VLLM_SERVER_DEV_MODE=1)",
        "llm_requests_running_limit": "`/server_info` max_num_seqs (VLLM_SERVER_DEV_MODE=1), "
        "or `requests_running_limit` in the configuration",
    },
    version=lambda documents: present(documents, "version") or "",
    model=only_model,
    refuse=_refuse,
    silent="no vllm: metrics: the server was started with --disable-log-stats, or has just started",
    rules=(
        Rule(schema.REQUESTS_RUNNING, ("vllm:num_requests_running", "vllm:running_requests")),
        Rule(schema.REQUESTS_RUNNING, ("vllm:omni_num_requests_running",), also=True, needs="vllm-omni"),
        Rule(schema.REQUESTS_RUNNING_LIMIT, ("vllm:num_request_max",), needs="NVIDIA NIM"),
        Rule(
            schema.REQUESTS_WAITING,
            ("vllm:num_requests_waiting",),
            note="From 0.20.0 with the requests deferred for LoRA slots or KV transfer.",
        ),
        Rule(schema.REQUESTS_WAITING, ("vllm:omni_num_requests_waiting",), also=True, needs="vllm-omni"),
        Rule(
            schema.REQUESTS_WAITING_BY_REASON,
            ("vllm:num_requests_waiting_by_reason",),
            labels={"reason": "reason"},
            needs="0.20.0",
            note="The reasons add up to llm_requests_waiting.",
        ),
        Rule(
            schema.REQUESTS_IN_KV_TRANSFER,
            ("vllm:num_requests_kv_fetch_by_stage",),
            labels={"stage": "wait_stage"},
            needs="0.32.0, a connector that receives",
            note="They are among the waiting ones.",
        ),
        Rule(
            schema.LORA_ADAPTER_ACTIVE,
            ("vllm:lora_requests_info",),
            newest=_lora_adapters,
            sums=True,
            needs="--enable-lora",
            note="Of the data-parallel engine that wrote last. vLLM does not say how many requests.",
        ),
        Rule(schema.LORA_SLOTS, ("vllm:lora_requests_info",), read=_lora_slots, sums=True, needs="--enable-lora"),
        Rule(
            schema.REQUESTS_FINISHED,
            ("vllm:request_success_total",),
            where={"finished_reason": f"(?!({_FAILED})$).*"},
            labels={"finished_reason": "reason"},
        ),
        Rule(
            schema.REQUESTS_FINISHED,
            ("vllm:omni_requests_success_total",),
            labels={"finished_reason": "reason"},
            also=True,
            needs="vllm-omni",
        ),
        Rule(
            schema.REQUESTS_FAILED,
            ("vllm:request_success_total",),
            where={"finished_reason": _FAILED},
            labels={"finished_reason": "reason"},
            note="Clients that go away are not counted by vLLM (vllm-project/vllm#31503).",
        ),
        Rule(
            schema.REQUESTS_FAILED,
            ("vllm:admission_rejections_total",),
            labels={"reason": "reason"},
            also=True,
            needs="0.32.0; counts with --max-num-queued-reqs or --max-num-queued-tokens",
        ),
        Rule(
            schema.REQUESTS_FAILED,
            ("vllm:request_failure_total",),
            also=True,
            needs="NVIDIA NIM",
            note="NIM does not say why.",
        ),
        Rule(
            schema.HTTP_RESPONSES,
            ("http_requests_total",),
            where={"handler": INFERENCE_PATHS},
            labels={"status": "code"},
            rewrite={"code": status_class},
            note="Streams that fail after their head count as 2xx.",
        ),
        Rule(schema.PREEMPTIONS, ("vllm:num_preemptions_total",)),
        Rule(
            schema.PROMPT_TOKENS,
            ("vllm:prompt_tokens_total",),
            note="V0 counts prompts again that are computed again after a preemption.",
        ),
        Rule(schema.GENERATION_TOKENS, ("vllm:generation_tokens_total", "vllm:num_generation_tokens_total")),
        Rule(schema.PROMPT_TOKENS_CACHED, ("vllm:prompt_tokens_cached_total",), needs="0.16.0"),
        Rule(
            schema.PROCESSED_TOKENS,
            ("vllm:prompt_tokens_by_source_total",),
            where={"source": "local_compute"},
            fixed={"phase": "prefill"},
            needs="0.16.0",
        ),
        Rule(schema.PROCESSED_TOKENS, ("vllm:generation_tokens_total",), fixed={"phase": "decode"}),
        Rule(schema.ENGINE_STEPS, ("vllm:iteration_tokens_total_count",)),
        Rule(
            schema.ENGINE_STEP_TOKENS,
            ("vllm:iteration_tokens_total",),
            note="From 0.23.0 without cached prompt tokens.",
        ),
        Rule(schema.BATCH_TOKENS, ("vllm:num_batched_tokens",)),
        Rule(schema.PREFILL_THROUGHPUT, ("vllm:avg_prompt_throughput_toks_per_s",), needs="0.6 (V0)"),
        Rule(schema.DECODE_THROUGHPUT, ("vllm:avg_generation_throughput_toks_per_s",), needs="0.6 (V0)"),
        Rule(schema.TIME_TO_FIRST_TOKEN, ("vllm:time_to_first_token_seconds",)),
        Rule(
            schema.INTER_TOKEN_LATENCY,
            ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
            note="One observation for each decode step, which can bring several tokens with speculative decoding. "
            "`time_per_output_token_seconds` is its old name (until 0.14), not the mean of a request.",
        ),
        Rule(schema.TIME_PER_OUTPUT_TOKEN, ("vllm:request_time_per_output_token_seconds",), needs="0.11.0"),
        Rule(schema.REQUEST_DURATION, ("vllm:e2e_request_latency_seconds",), note="Finished requests only."),
        Rule(
            schema.REQUEST_QUEUE,
            ("vllm:request_queue_time_seconds", "vllm:time_in_queue_requests"),
            note="Smallest bound 0.3 s: below it use sum / count.",
        ),
        Rule(schema.REQUEST_PREFILL, ("vllm:request_prefill_time_seconds",)),
        Rule(schema.REQUEST_DECODE, ("vllm:request_decode_time_seconds",)),
        Rule(schema.REQUEST_PROMPT_TOKENS, ("vllm:request_prompt_tokens",)),
        Rule(schema.REQUEST_GENERATION_TOKENS, ("vllm:request_generation_tokens",)),
        Rule(
            schema.SPEC_DECODE_DRAFT_TOKENS, ("vllm:spec_decode_num_draft_tokens_total",), needs="speculative decoding"
        ),
        Rule(
            schema.SPEC_DECODE_ACCEPTED_TOKENS,
            ("vllm:spec_decode_num_accepted_tokens_total",),
            needs="speculative decoding",
        ),
        Rule(schema.SPEC_DECODE_DRAFTS, ("vllm:spec_decode_num_drafts_total",), needs="0.8.5, speculative decoding"),
        Rule(
            schema.SPEC_DECODE_ACCEPTED_BY_POSITION,
            ("vllm:spec_decode_num_accepted_tokens_per_pos_total",),
            labels={"position": "position"},
            needs="0.8.5, speculative decoding",
        ),
        Rule(
            schema.SPEC_DECODE_ACCEPTANCE,
            ("vllm:spec_decode_draft_acceptance_rate", "vllm:spec_decodeAccepted_tokens"),
            needs="V0 with speculative decoding",
        ),
        Rule(
            schema.KV_CACHE_CAPACITY,
            ("vllm:cache_config_info",),
            read=_capacity,
            note="kv_cache_size_tokens (0.24.0), before that block_size * num_gpu_blocks / engines.",
        ),
        Rule(
            schema.KV_CACHE_USAGE,
            ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "vllm:gpu_cache_usage_utilization"),
            note="A ratio in spite of its name. Evictable blocks count as free.",
        ),
        Rule(
            schema.PREFIX_CACHE_QUERIES,
            ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
            note="Before 0.27.1 waiting requests are counted again at each attempt to schedule them.",
        ),
        Rule(
            schema.PREFIX_CACHE_HITS,
            ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
            plus=("vllm:external_prefix_cache_hits_total",),
            note="With what a KV connector found: it is asked for what the engine's own cache does not have.",
        ),
        Rule(
            schema.PREFIX_CACHE_HITS_BY_TIER,
            ("vllm:prompt_tokens_cached_by_source_total",),
            labels={"source": "cache_tier"},
            rewrite={"cache_tier": _tier},
            needs="0.32.0",
        ),
        Rule(
            schema.EXTERNAL_CACHE_QUERIES,
            ("vllm:external_prefix_cache_queries_total",),
            needs="0.11.1",
            note="0 without a KV connector.",
        ),
        Rule(
            schema.EXTERNAL_CACHE_HITS,
            ("vllm:external_prefix_cache_hits_total",),
            needs="0.11.1",
            note="0 without a KV connector.",
        ),
        Rule(schema.MM_CACHE_QUERIES, ("vllm:mm_cache_queries_total",), needs="0.11.1"),
        Rule(schema.MM_CACHE_HITS, ("vllm:mm_cache_hits_total",), needs="0.11.1"),
        *kv_transfer.VLLM,
        Rule(
            schema.PREFIX_CACHE_HIT_RATIO,
            ("vllm:gpu_prefix_cache_hit_rate", "vllm:kv_cache_hit_rate"),
            needs="V0; -1 stands for prefix caching that is off",
        ),
        Rule(schema.MODEL_LOADED, ("vllm:engine_sleep_state",), where={"sleep_state": "awake"}),
        Rule(
            schema.MODEL_ASLEEP,
            ("vllm:engine_sleep_state",),
            where={"sleep_state": "weights_offloaded|discard_all"},
            needs="sleep mode",
        ),
        Rule(
            schema.MODEL_MEMORY,
            ("vllm:cache_config_info",),
            fixed={"kind": "kv_cache"},
            read=_kv_cache_memory,
            needs="--kv-cache-memory-bytes",
            note="Of each GPU.",
        ),
        Rule(
            schema.ENGINE_GPU_RESERVATION,
            ("vllm:cache_config_info",),
            read=_reservation,
            note="gpu_memory_utilization, which --kv-cache-memory-bytes puts out of force.",
        ),
        Rule(schema.ENGINE_START, ("process_start_time_seconds",), needs="one API server process"),
    ),
    ignored={
        **RUNTIME,
        "http_*": "HTTP layer without a model; responses are mapped",
        "vllm:http_*": "HTTP layer without a model",
        "request_finish_total": "NVIDIA NIM: finished requests by reason; success and failure are mapped",
        "vllm:num_requests_swapped": "V0's swapping, gone since V1",
        "vllm:cpu_*": "V0's swap space",
        "vllm:kv_block_*": "sampled block lifetimes (--kv-cache-metrics)",
        "vllm:tokens_total": "prompt and generation tokens together",
        "vllm:prompt_tokens_recomputed_total": "0.16 to 0.19 only",
        "vllm:request_num_preemptions": "preemptions per request; the total is mapped",
        "vllm:request_inference_time_seconds": "prefill and decode together",
        "vllm:request_max_num_generation_tokens": "what requests asked for",
        "vllm:request_params_*": "what requests asked for",
        "vllm:request_prefill_kv_computed_tokens": "prompt tokens less cached ones",
        "vllm:corrupted_requests_total": "NaN in logits (debugging)",
        "vllm:watermark_requests_total": "watermarking",
        "vllm:model_forward_time_milliseconds": "V0, hidden since 0.8",
        "vllm:model_execute_time_milliseconds": "V0, hidden since 0.8",
        "vllm:spec_decode_*": "V0; the totals are mapped",
        "vllm:diffusion_*": "diffusion models",
        "vllm:estimated_*": "estimates for MFU (--enable-mfu-metrics)",
        "vllm:nixl_*": "KV transfer (NIXL): bytes, seconds and failures are mapped",
        "vllm:mooncake_*": "KV transfer (Mooncake): bytes, seconds and failures are mapped",
        "vllm:hf3fs_*": "KV transfer (HF3FS): bytes, seconds and failures are mapped",
        "vllm:umbp_*": "KV transfer (UMBP): bytes, seconds and failures are mapped",
        "vllm:hisparse_*": "KV on the host (HiSparse)",
        "vllm:kv_offload_*": "KV offloading: bytes, seconds and failures are mapped",
        "vllm:simple_kv_offload_*": "KV offloading, in blocks",
        "vllm:websocket_*": "realtime API",
        "vllm:tool_call_parser_*": "tool call parsers",
        "vllm:sleep_mode_*": "operations of the sleep mode",
        "vllm:rl_weight_update_*": "weight updates for reinforcement learning",
    },
)
