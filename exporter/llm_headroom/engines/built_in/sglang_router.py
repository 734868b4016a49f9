"""SGLang's router, later the model gateway, and vLLM's router, which began as a copy of it.

`sgl_router_*` up to 0.2, `smg_*` since 0.3; vLLM's has the suffixes of the former behind `vllm_router_`.

What the router repeats of its engines is passed over: watch the engines themselves, and nothing is counted twice.
Sources: the metric reference of smg-project/smg, src/metrics.rs of vllm-project/router, the routers' own expositions.
"""

from __future__ import annotations

from typing import Final

from llm_headroom import schema
from llm_headroom.engines.openai_api import INFERENCE_PATHS, status_class
from llm_headroom.engines.rules import Document, Engine, Rule, always
from llm_headroom.model import Subject

_WORKER: Final = {"worker": "worker"}
_GONE_WORKERS: Final = "A worker that was removed shows -1 there, and nothing here."


def _before_0_3(suffix: str) -> tuple[str, str]:
    """A name of SGLang's router before 0.3, and the same of vLLM's router."""
    return f"sgl_router_{suffix}", f"vllm_router_{suffix}"


_IGNORED_BEFORE_0_3: Final = {
    "cache_*": "the router's own estimate of prefix hits",
    "cb_*": "circuit breaker: its state is mapped",
    "discovery_*": "service discovery",
    "embeddings_*": "embeddings",
    "generate_duration_seconds": "durations by route are mapped",
    "load_balancing_events_total": "decisions of the policy",
    "max_load": "load by worker is mapped",
    "min_load": "load by worker is mapped",
    "pd_*": "disaggregated prefill and decode",
    "policy_*": "decisions of the policy",
    "processed_requests_total": "requests by worker",
    "retry_backoff_duration_seconds": "waits between retries",
    "tree_size": "the router's own estimate of prefix hits",
    "worker_load": "requests by worker are mapped",
}
"""Suffixes of families that both old dialects have → why they are passed over."""


ENGINE: Final = Engine(
    name="sglang_router",
    subject=Subject.ROUTER,
    title="SGLang/vLLM router",
    port=29000,
    releases="and model gateway",
    colour="yellow",
    prefixes=("smg_",),
    marks=("smg_", "sgl_router_", "vllm_router_"),
    model_label="model",
    adds_up=("method", "path", "route", "stage", "endpoint", "worker_type", "backend_type", "connection_mode"),
    documents=always(Document(key="metrics", path="/metrics", text=True)),
    silent="no smg_, sgl_router_ or vllm_router_ metrics: is this the router's metrics port (--prometheus-port)?",
    rules=(
        Rule(
            schema.ROUTER_REQUESTS,
            ("smg_router_requests_total", *_before_0_3("requests_total")),
            note="Without a model in the body the router calls it `default` or `unknown`.",
        ),
        Rule(
            schema.ROUTER_ERRORS,
            ("smg_router_request_errors_total", *_before_0_3("request_errors_total")),
            labels={"error_type": "reason"},
            needs="the first error",
        ),
        Rule(
            schema.ROUTER_REJECTED,
            ("smg_http_rate_limit_total",),
            where={"result": "rejected"},
            fixed={"reason": "rate_limit"},
            needs="--max-concurrent-requests",
        ),
        Rule(
            schema.ROUTER_REJECTED,
            ("smg_admission_queue_rejected_total",),
            labels={"reason": "reason"},
            needs="smg 1.10",
        ),
        Rule(
            schema.ROUTER_REJECTED, ("smg_worker_overload_shed_total",), fixed={"reason": "overload"}, needs="smg 1.10"
        ),
        Rule(
            schema.HTTP_RESPONSES,
            ("smg_http_responses_total", *_before_0_3("http_responses_total")),
            where={"path": f"({INFERENCE_PATHS})?"},
            labels={"status_code": "code"},
            rewrite={"code": status_class},
        ),
        Rule(
            schema.ROUTER_RESPONSE_HEAD,
            ("smg_router_request_duration_seconds", *_before_0_3("request_duration_seconds")),
            note="About TTFT for streamed requests.",
        ),
        Rule(
            schema.TIME_TO_FIRST_TOKEN,
            ("smg_router_ttft_seconds",),
            needs="gRPC workers; a summary, without buckets, in 0.3",
        ),
        Rule(
            schema.TIME_PER_OUTPUT_TOKEN,
            ("smg_router_tpot_seconds",),
            needs="gRPC workers; a summary, without buckets, in 0.3",
        ),
        Rule(
            schema.ROUTER_REQUESTS_ACTIVE,
            ("smg_http_connections_active",),
            note="Requests under way, in spite of its name.",
        ),
        Rule(schema.ROUTER_REQUESTS_WAITING, ("smg_admission_queue_depth",), needs="smg 1.10"),
        Rule(schema.ROUTER_WORKERS, ("smg_worker_pool_size", *_before_0_3("active_workers"))),
        Rule(
            schema.ROUTER_WORKER_HEALTHY,
            ("smg_worker_health", *_before_0_3("worker_health")),
            labels=_WORKER,
            note=_GONE_WORKERS,
        ),
        Rule(
            schema.ROUTER_WORKER_REQUESTS,
            ("smg_worker_requests_active", *_before_0_3("running_requests")),
            labels=_WORKER,
        ),
        Rule(
            schema.ROUTER_CIRCUIT_STATE,
            ("smg_worker_cb_state", *_before_0_3("cb_state")),
            labels=_WORKER,
            note=_GONE_WORKERS,
        ),
        Rule(schema.ROUTER_RETRIES, ("smg_worker_retries_total", *_before_0_3("retries_total"))),
        Rule(
            schema.ROUTER_RETRIES_EXHAUSTED,
            ("smg_worker_retries_exhausted_total", *_before_0_3("retries_exhausted_total")),
        ),
        Rule(
            schema.ROUTER_ERROR_RESPONSES,
            ("smg_http_responses_total",),
            where={"path": f"({INFERENCE_PATHS})?", "error_code": ".+"},
            labels={"error_code": "reason"},
            needs="0.3; the first error",
        ),
    ),
    ignored={
        "*_created": "times of creation of other series",
        "smg_admission_inflight": "requests under way are mapped",
        "smg_allocator_*": "the router's own memory",
        "smg_cache_*": "the router's own estimate of prefix hits",
        "smg_consistent_hashing_*": "decisions of the policy",
        "smg_manual_policy_*": "decisions of the policy",
        "smg_prefix_hash_*": "decisions of the policy",
        "smg_pd_*": "disaggregated prefill and decode",
        "smg_db_*": "storage",
        "smg_history_*": "storage",
        "smg_detokenize_*": "tokenizers",
        "smg_tokenizer_*": "tokenizers",
        "smg_discovery_*": "service discovery",
        "smg_engine_*": "exposed by the engines themselves",
        "smg_http_*": "HTTP layer; responses are mapped",
        "smg_kv_event_*": "KV events",
        "smg_log_*": "the router's own log",
        "smg_mcp_*": "tools",
        "smg_mm_*": "multi-modal inputs",
        "smg_rl_*": "reinforcement learning",
        "smg_router_generation_duration_seconds": "gRPC workers; exposed by the engines themselves",
        "smg_router_tokens_total": "gRPC workers; exposed by the engines themselves",
        "smg_router_request_body_path_total": "how bodies are read",
        "smg_router_request_buffers_*": "how bodies are read",
        "smg_router_stage_duration_seconds": "declared, never sent",
        "smg_router_upstream_*": "responses of the workers; those to clients are mapped",
        "smg_routing_key*": "routing keys",
        "smg_scheduler_*": "priority scheduler",
        "smg_tokio_*": "the router's own runtime",
        "smg_worker_*": "workers: pool, health, requests and circuit are mapped",
        "smg_workers_overloaded": "overload protection",
        "sgl_tokenizer_*": "tokenizers",
        "router_mesh_*": "mesh of routers",
        "sgl_router_job_*": "control plane",
        "vllm_router_agent_aware_*": "decisions of the policy",
        "vllm_tokenizer_*": "tokenizers",
        **{name: why for suffix, why in _IGNORED_BEFORE_0_3.items() for name in _before_0_3(suffix)},
    },
)
