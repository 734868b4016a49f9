"""What `detail: essential` leaves: what the shipped rules and the first screens of the dashboards read."""

from __future__ import annotations

import math
from itertools import compress
from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.model import Histogram, Point, numbers

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence

    from llm_headroom.model import Metric, Series

_NAMES: Final = """
engine_cost_total engine_energy_joules_total engine_gpus engine_info engine_restarts_total engine_role engine_stalled
engine_start_time_seconds engine_state eviction_risk_ratio first_tokens_overdue generation_tokens_total
gpu_ecc_errors_total gpu_memory_attribution_info gpu_memory_engine_bytes gpu_memory_headroom_bytes
gpu_memory_headroom_ratio gpu_memory_overcommitted_bytes gpu_memory_total_bytes gpu_memory_unattributed_bytes
gpu_pcie_link_width gpu_power_limit_watts gpu_power_watts gpu_recovery_action gpu_row_remap_failure
gpu_row_remap_pending gpu_state gpu_temperature_celsius gpu_throttle_active gpu_throttle_seconds_total
gpu_utilization_ratio gpu_xid_errors_total gpu_xid_last_timestamp_seconds gpus host_memory_oom_kills_total
http_responses_total inter_token_latency_seconds kv_cache_capacity_tokens kv_cache_exhaustion_seconds
kv_cache_headroom_ratio kv_cache_headroom_requests kv_cache_headroom_tokens kv_cache_usage_peak_ratio
kv_cache_usage_ratio kv_transfer_failures_total label_values_capped_total load_headroom_binding
load_headroom_ratio model_context_tokens model_expiry_timestamp_seconds model_loaded model_loads_total
model_memory_bytes model_offload_ratio model_unloads_total models_loaded oom_risk_ratio preemptions_total pressure_ratio
prompt_tokens_cached_total prompt_tokens_total proxy_first_token_wait_seconds proxy_requests_overdue
request_decode_seconds request_duration_seconds request_generation_tokens request_prefill_seconds request_prompt_tokens
request_queue_seconds requests_failed_total requests_finished_total requests_running requests_running_limit
requests_waiting router_errors_total router_requests_total router_worker_healthy saturation_high_water_ratio
saturation_ratio slo_objective_ratio slo_requests_good_total slo_requests_total slo_threshold_seconds
source_duration_seconds source_errors_total source_last_success_timestamp_seconds source_samples spill_risk_ratio
sustainable_requests_per_second time_to_first_token_seconds up
"""
NAMES: Final = frozenset(f"llm_{name}" for name in _NAMES.split())
"""The metrics that stay; tests/test_essential.py takes them from the rules and dashboards."""

OF_OLLAMA: Final = frozenset((schema.MODEL_MEMORY, schema.MODEL_CONTEXT))
"""Of these, those that nothing but the queries on Ollama reads."""

COMPUTED: Final = frozenset((schema.REQUEST_PREFILL, schema.REQUEST_DECODE))
"""What the queries that read it compute from other histograms where it is absent."""

STATES: Final = frozenset(("mapped", "ignored", "unknown", "invalid"))
"""Of `llm_source_samples`, what is read."""

QUANTILES: Final[Mapping[Metric, tuple[float, float, str]]] = {
    schema.INTER_TOKEN_LATENCY: (0.01, 2.0, "inter_token_latency"),
    schema.REQUEST_DURATION: (1.0, 300.0, "request_duration"),
    schema.REQUEST_GENERATION_TOKENS: (20.0, 40_000.0, ""),
    schema.REQUEST_PROMPT_TOKENS: (20.0, 200_000.0, ""),
    schema.TIME_TO_FIRST_TOKEN: (0.1, 60.0, "ttft"),
}
"""Histograms whose buckets are read: the least and the greatest bound that stays, and the objective whose bound does.

Of other histograms only the mean is read.
"""
STEP: Final = 4.0
"""Least factor between two bounds that stay. A quantile between them is as coarse as that."""


def essential(points: Sequence[Point]) -> Iterator[Point]:
    """The points that stay, their histograms with fewer bounds: those of the objectives are among them."""
    objectives = {(dict(series.labels)["slo"], value) for series, value in numbers(points, schema.SLO_THRESHOLD)}
    present = {point.series.metric for point in points}
    for point in points:
        series, value, origin = point
        if series.metric.name not in NAMES or not _read(series, present):
            continue
        if isinstance(value, Histogram):
            value = _coarse(value, *QUANTILES.get(series.metric, (math.inf, 0.0, "")), objectives)
        yield Point(series, value, origin)


def _read(series: Series, present: Container[Metric]) -> bool:
    labels, metric = dict(series.labels), series.metric
    if metric in OF_OLLAMA:
        return labels.get("engine") == "ollama"
    if metric in COMPUTED:
        return schema.TIME_TO_FIRST_TOKEN not in present or schema.REQUEST_DURATION not in present
    return metric is not schema.SOURCE_SAMPLES or labels["state"] in STATES


def _coarse(
    histogram: Histogram, low: float, high: float, slo: str, objectives: Container[tuple[str, float]]
) -> Histogram:
    """The histogram without the bounds outside a span or close above another; what they counted is in the next one."""
    wanted, last = [], 0.0
    for bound in histogram.bounds:
        stays = math.isinf(bound) or (slo, bound) in objectives or (low <= bound <= high and bound >= STEP * last)
        wanted.append(stays)
        last = bound if stays else last
    bounds, counts = (tuple(compress(each, wanted)) for each in (histogram.bounds, histogram.counts))
    return Histogram(bounds, counts, histogram.sum)
