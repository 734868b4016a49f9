"""KV caches on their way between engines and tiers: the rules for what vLLM's and SGLang's connectors expose of it.

Sources: vllm-project/vllm, vllm/distributed/kv_transfer/kv_connector/v1 (0.11.1 to 0.33.0); sgl-project/sglang,
python/sglang/srt/observability/metrics_collector.py (0.5.2 to 0.5.23).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_headroom.engines.rules import Rule
from llm_headroom.schema import KV_TRANSFER_BYTES, KV_TRANSFER_FAILURES, KV_TRANSFER_SECONDS, KV_TRANSFERS

if TYPE_CHECKING:
    from llm_headroom.model import Metric

_MIB: Final = float(1 << 20)
_ANY: Final = ""
"""An operation that the engine does not distinguish, or whose label names it."""


def _vllm(connector: str, needs: str, *found: tuple[Metric, str, str], labelled: bool = False) -> tuple[Rule, ...]:
    """Rules of one connector: metric, operation or reason, the name without its prefix."""
    return tuple(
        Rule(
            metric,
            (f"vllm:{name}",),
            fixed={"connector": connector, **({_kind(metric): which} if which else {})},
            labels={"operation": "operation"} if labelled and not which else {},
            needs=needs,
        )
        for metric, which, name in found
    )


def _kind(metric: Metric) -> str:
    return "reason" if metric is KV_TRANSFER_FAILURES else "operation"


def _before_0_24(metric: Metric, operation: str, transfer_type: str, name: str) -> Rule:
    return Rule(
        metric,
        (f"vllm:kv_offload_{name}",),
        where={"transfer_type": transfer_type},
        fixed={"connector": "offload", "operation": operation},
        needs="0.16 to 0.23",
    )


VLLM: Final = (
    *_vllm(
        "nixl",
        "NixlConnector",
        (KV_TRANSFER_BYTES, _ANY, "nixl_bytes_transferred_sum"),
        (KV_TRANSFER_SECONDS, _ANY, "nixl_xfer_time_seconds_sum"),
        (KV_TRANSFERS, _ANY, "nixl_xfer_time_seconds_count"),
        (KV_TRANSFER_FAILURES, "transfer", "nixl_num_failed_transfers_total"),
        (KV_TRANSFER_FAILURES, "notification", "nixl_num_failed_notifications_total"),
        (KV_TRANSFER_FAILURES, "expired", "nixl_num_kv_expired_reqs_total"),
    ),
    *_vllm(
        "mooncake",
        "0.33.0, MooncakeConnector",
        (KV_TRANSFER_BYTES, _ANY, "mooncake_bytes_transferred_sum"),
        (KV_TRANSFER_SECONDS, _ANY, "mooncake_xfer_time_seconds_sum"),
        (KV_TRANSFERS, _ANY, "mooncake_xfer_time_seconds_count"),
        (KV_TRANSFER_FAILURES, "transfer", "mooncake_num_failed_transfers_total"),
        (KV_TRANSFER_FAILURES, "receive", "mooncake_num_failed_recvs_total"),
        (KV_TRANSFER_FAILURES, "expired", "mooncake_num_kv_expired_reqs_total"),
    ),
    *_vllm(
        "mooncake_store",
        "0.22.0, Mooncake's store",
        (KV_TRANSFER_BYTES, _ANY, "mooncake_store_operation_bytes_total"),
        (KV_TRANSFER_SECONDS, _ANY, "mooncake_store_operation_time_seconds_sum"),
        (KV_TRANSFERS, _ANY, "mooncake_store_operation_total"),
        (KV_TRANSFER_FAILURES, "key", "mooncake_store_operation_failed_keys_total"),
        labelled=True,
    ),
    *_vllm(
        "umbp",
        "0.33.0, UMBP's connector",
        (KV_TRANSFER_BYTES, _ANY, "umbp_transfer_bytes_total"),
        (KV_TRANSFERS, _ANY, "umbp_transfer_completed_total"),
        (KV_TRANSFER_FAILURES, "transfer", "umbp_transfer_failed_total"),
        labelled=True,
    ),
    *_vllm(
        "hf3fs",
        "0.20.0, HF3FS' connector",
        (KV_TRANSFER_SECONDS, "load", "hf3fs_load_duration_seconds_sum"),
        (KV_TRANSFER_SECONDS, "store", "hf3fs_save_duration_seconds_sum"),
        (KV_TRANSFERS, "load", "hf3fs_load_duration_seconds_count"),
        (KV_TRANSFERS, "store", "hf3fs_save_duration_seconds_count"),
        (KV_TRANSFER_FAILURES, "load", "hf3fs_num_failed_load_total"),
        (KV_TRANSFER_FAILURES, "store", "hf3fs_num_failed_save_total"),
    ),
    *_vllm(
        "offload",
        "0.24.0, OffloadingConnector",
        (KV_TRANSFER_BYTES, "load", "kv_offload_load_bytes_total"),
        (KV_TRANSFER_BYTES, "store", "kv_offload_store_bytes_total"),
        (KV_TRANSFER_SECONDS, "load", "kv_offload_load_time_total"),
        (KV_TRANSFER_SECONDS, "store", "kv_offload_store_time_total"),
        (KV_TRANSFERS, "load", "kv_offload_load_size_count"),
        (KV_TRANSFERS, "store", "kv_offload_store_size_count"),
        (KV_TRANSFER_FAILURES, "allocation", "kv_offload_allocation_failure_total"),
    ),
    _before_0_24(KV_TRANSFER_BYTES, "load", "(?i).+to_gpu", "total_bytes_total"),
    _before_0_24(KV_TRANSFER_BYTES, "store", "(?i)gpu_to.+", "total_bytes_total"),
    _before_0_24(KV_TRANSFER_SECONDS, "load", "(?i).+to_gpu", "total_time_total"),
    _before_0_24(KV_TRANSFER_SECONDS, "store", "(?i)gpu_to.+", "total_time_total"),
    *_vllm(
        "offload_tiering",
        "0.28.0, offloading to several tiers",
        (KV_TRANSFER_BYTES, "load", "kv_offload_tiering_read_bytes_total"),
        (KV_TRANSFER_BYTES, "store", "kv_offload_tiering_write_bytes_total"),
        (KV_TRANSFER_SECONDS, "load", "kv_offload_tiering_read_time_total"),
        (KV_TRANSFER_SECONDS, "store", "kv_offload_tiering_write_time_total"),
        (KV_TRANSFER_FAILURES, "promotion", "kv_offload_tiering_promotion_job_failures_total"),
        (KV_TRANSFER_FAILURES, "cascade", "kv_offload_tiering_cascade_job_failures_total"),
        (KV_TRANSFER_FAILURES, "allocation", "kv_offload_tiering_promotion_allocation_failures_total"),
    ),
)

_DISAGGREGATED: Final = {"connector": "disaggregation"}
_LOAD: Final = {"connector": "hicache", "operation": "load"}
_STORE: Final = {"connector": "hicache", "operation": "store"}
_HISTOGRAM: Final = "0.5.10, disaggregated prefill and decode"
_FAILED: Final = "disaggregated prefill and decode; the first failure"
_HICACHE: Final = "--enable-hierarchical-cache"

SGLANG: Final = (
    Rule(KV_TRANSFER_BYTES, ("sglang:kv_transfer_total_mb_sum",), fixed=_DISAGGREGATED, scale=_MIB, needs=_HISTOGRAM),
    Rule(
        KV_TRANSFER_SECONDS, ("sglang:kv_transfer_latency_ms_sum",), fixed=_DISAGGREGATED, scale=1e-3, needs=_HISTOGRAM
    ),
    Rule(KV_TRANSFERS, ("sglang:kv_transfer_latency_ms_count",), fixed=_DISAGGREGATED, needs=_HISTOGRAM),
    Rule(
        KV_TRANSFER_FAILURES,
        ("sglang:num_transfer_failed_reqs_total",),
        fixed={**_DISAGGREGATED, "reason": "transfer"},
        needs=_FAILED,
    ),
    Rule(
        KV_TRANSFER_FAILURES,
        ("sglang:num_bootstrap_failed_reqs_total",),
        fixed={**_DISAGGREGATED, "reason": "bootstrap"},
        needs=_FAILED,
    ),
    Rule(KV_TRANSFER_BYTES, ("sglang:load_back_bytes_total",), fixed=_LOAD, per_rank=True, needs=f"0.5.18, {_HICACHE}"),
    Rule(
        KV_TRANSFER_BYTES,
        ("sglang:hicache_backup_bytes_total",),
        fixed=_STORE,
        per_rank=True,
        needs=f"0.5.18, {_HICACHE}",
    ),
    Rule(KV_TRANSFER_SECONDS, ("sglang:load_back_duration_seconds_sum",), fixed=_LOAD, needs=_HICACHE),
    Rule(
        KV_TRANSFER_SECONDS,
        ("sglang:hicache_backup_duration_seconds_sum",),
        fixed=_STORE,
        needs=f"0.5.18, {_HICACHE}",
    ),
    Rule(KV_TRANSFERS, ("sglang:load_back_duration_seconds_count",), fixed=_LOAD, needs=_HICACHE),
    Rule(KV_TRANSFERS, ("sglang:hicache_backup_duration_seconds_count",), fixed=_STORE, needs=f"0.5.18, {_HICACHE}"),
)
