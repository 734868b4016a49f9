"""What `detail: essential` leaves: what the shipped rules and the first screens of the dashboards read."""

from __future__ import annotations

import math
from itertools import compress
from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.model import Histogram, Point, numbers

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

STEP: Final = 3.0
"""Factor between two bounds of a histogram that stay. A quantile between them is as coarse as that."""
_NAMES: Final = """
engine_cost_total engine_energy_joules_total engine_gpus engine_info engine_restarts_total engine_stalled
engine_start_time_seconds engine_state eviction_risk_ratio generation_tokens_total gpu_ecc_errors_total
gpu_memory_attribution_info gpu_memory_engine_bytes gpu_memory_headroom_bytes gpu_memory_headroom_ratio
gpu_memory_overcommitted_bytes gpu_memory_total_bytes gpu_memory_unattributed_bytes gpu_pcie_link_width
gpu_power_limit_watts gpu_power_watts gpu_recovery_action gpu_row_remap_failure gpu_row_remap_pending gpu_state
gpu_temperature_celsius gpu_throttle_active gpu_throttle_seconds_total gpu_utilization_ratio gpu_xid_errors_total
gpu_xid_last_timestamp_seconds gpus host_memory_oom_kills_total http_responses_total inter_token_latency_seconds
kv_cache_capacity_tokens kv_cache_exhaustion_seconds kv_cache_headroom_ratio kv_cache_headroom_requests
kv_cache_headroom_tokens kv_cache_usage_peak_ratio kv_cache_usage_ratio kv_cache_used_tokens
kv_transfer_failures_total label_values_capped_total load_headroom_binding load_headroom_ratio model_context_tokens
model_expiry_timestamp_seconds model_loaded model_loads_total model_memory_bytes model_offload_ratio
model_unloads_total models_loaded oom_risk_ratio preemptions_total pressure_ratio prompt_tokens_cached_total
prompt_tokens_total proxy_first_token_wait_seconds request_decode_seconds request_duration_seconds
request_generation_tokens request_prefill_seconds request_prompt_tokens request_queue_seconds requests_failed_total
requests_finished_total requests_running requests_running_limit requests_waiting router_errors_total
router_requests_total router_worker_healthy saturation_high_water_ratio saturation_ratio slo_objective_ratio
slo_requests_good_total slo_requests_total slo_threshold_seconds source_duration_seconds source_errors_total
source_last_success_timestamp_seconds source_samples spill_risk_ratio sustainable_requests_per_second
time_per_output_token_seconds time_to_first_token_seconds up
"""
NAMES: Final = frozenset(f"llm_{name}" for name in _NAMES.split())
"""The metrics that stay; tests/test_essential.py takes them from the rules and dashboards."""

QUANTILES: Final = frozenset(
    (
        schema.INTER_TOKEN_LATENCY,
        schema.REQUEST_DURATION,
        schema.REQUEST_GENERATION_TOKENS,
        schema.REQUEST_PROMPT_TOKENS,
        schema.REQUEST_QUEUE,
        schema.TIME_PER_OUTPUT_TOKEN,
        schema.TIME_TO_FIRST_TOKEN,
    )
)
"""Histograms whose buckets are read; of others only the mean is."""


def essential(points: Sequence[Point]) -> Iterator[Point]:
    """The points that stay, their histograms with fewer bounds: those of the objectives are among them."""
    objectives = {value for _, value in numbers(points, schema.SLO_THRESHOLD)}
    for point in points:
        series, value, origin = point
        if series.metric.name not in NAMES:
            continue
        if isinstance(value, Histogram):
            value = _coarse(value, objectives) if series.metric in QUANTILES else _plain(value)
        yield Point(series, value, origin)


def _coarse(histogram: Histogram, objectives: Container[float]) -> Histogram:
    """The histogram without the bounds that are close above another one; what they counted is in the next one."""
    wanted, last = [], 0.0
    for bound in histogram.bounds:
        stays = math.isinf(bound) or bound >= STEP * last or bound in objectives
        wanted.append(stays)
        last = bound if stays else last
    bounds, counts = (tuple(compress(each, wanted)) for each in (histogram.bounds, histogram.counts))
    return Histogram(bounds, counts, histogram.sum)


def _plain(histogram: Histogram) -> Histogram:
    return Histogram(histogram.bounds[-1:], histogram.counts[-1:], histogram.sum)
