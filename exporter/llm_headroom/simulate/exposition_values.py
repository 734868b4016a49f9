"""Which value of a simulated engine each sample of vLLM and SGLang is.

Meanings follow vllm-project/vllm vllm/v1/metrics/loggers.py and sgl-project/sglang
python/sglang/srt/observability/metrics_collector.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llm_headroom.simulate.engine_state import EngineReading


# What a reading has, by our own names --------------------------------------------------------------------------------
def _done(reading: EngineReading) -> int:
    finished = reading.counters.finished
    return finished.get("stop", 0) + finished.get("length", 0)


def _hit_ratio(reading: EngineReading) -> float:
    counters = reading.counters
    return counters.cache_hits / counters.cache_queries if counters.cache_queries else 0.0


SCALARS: Final[Mapping[str, Callable[[EngineReading], float]]] = {
    "running": lambda one: one.running,
    "waiting": lambda one: one.waiting,
    "present": lambda one: one.running + one.waiting,
    "usage": lambda one: one.usage,
    "exact_usage": lambda one: one.used_tokens / one.total_tokens,
    "used": lambda one: one.used_tokens,
    "evictable": lambda one: one.evictable_tokens,
    "free": lambda one: one.free_tokens,
    "ratio": lambda one: one.new_token_ratio or 0.0,
    "steps": lambda one: one.counters.steps,
    "prompt": lambda one: one.counters.prompt_tokens,
    "cached": lambda one: one.counters.cached_tokens,
    "computed": lambda one: one.counters.prompt_tokens - one.counters.cached_tokens,
    "generated": lambda one: one.counters.generated_tokens,
    "prefilled": lambda one: one.counters.prefill_tokens,
    # a prefill yields its first token by itself; those of prefills after a retraction are counted here
    "decoded": lambda one: one.counters.generated_tokens - one.histograms.ttft.count,
    "finished_prompt": lambda one: one.counters.finished_prompt_tokens,
    "finished_generated": lambda one: one.counters.finished_generated_tokens,
    "queries": lambda one: one.counters.cache_queries,
    "hits": lambda one: one.counters.cache_hits,
    "hit_ratio": _hit_ratio,
    "preemptions": lambda one: one.counters.preemptions,
    "retracted_input": lambda one: one.counters.retracted_input_tokens,
    "retracted_output": lambda one: one.counters.retracted_output_tokens,
    "submitted": lambda one: one.counters.submitted - one.counters.finished.get("rejected_down", 0),
    "stop": lambda one: one.counters.finished.get("stop", 0),
    "length": lambda one: one.counters.finished.get("length", 0),
    "abort": lambda one: one.counters.finished.get("abort", 0),
    "done": _done,
    "ended": lambda one: _done(one) + one.counters.finished.get("abort", 0),
    "queue_full": lambda one: one.counters.finished.get("rejected_queue", 0),
}

# Which sample is which value: name -> labels that it must have, value ------------------------------------------------
SAMPLES: Final[Mapping[str, tuple[tuple[Mapping[str, str], str], ...]]] = {
    "vllm:num_requests_running": (({}, "running"),),
    "vllm:num_requests_waiting": (({}, "waiting"),),
    "vllm:num_requests_waiting_by_reason": (({"reason": "capacity"}, "waiting"),),
    "vllm:kv_cache_usage_perc": (({}, "usage"),),
    "vllm:gpu_cache_usage_perc": (({}, "usage"),),
    "vllm:prefix_cache_queries_total": (({}, "queries"),),
    "vllm:prefix_cache_hits_total": (({}, "hits"),),
    "vllm:num_preemptions_total": (({}, "preemptions"),),
    "vllm:prompt_tokens_total": (({}, "prompt"),),
    "vllm:prompt_tokens_by_source_total": (
        ({"source": "local_compute"}, "computed"),
        ({"source": "local_cache_hit"}, "cached"),
    ),
    "vllm:prompt_tokens_cached_total": (({}, "cached"),),
    "vllm:prompt_tokens_cached_by_source_total": (({"source": "device"}, "cached"),),
    "vllm:generation_tokens_total": (({}, "generated"),),
    # clients that go away are not counted (vllm-project/vllm#31503)
    "vllm:request_success_total": (({"finished_reason": "stop"}, "stop"), ({"finished_reason": "length"}, "length")),
    "vllm:admission_rejections_total": (({"reason": "max_num_queued_reqs"}, "queue_full"),),
    "http_requests_total": (({"handler": "/v1/completions", "status": "2xx"}, "done"),),
    "sglang:num_running_reqs": (({}, "running"),),
    "sglang:num_queue_reqs": (({}, "waiting"),),
    "sglang:gen_throughput": (({}, "throughput"),),
    "sglang:cache_hit_rate": (({}, "hit_ratio"),),
    "sglang:token_usage": (({}, "usage"),),
    "sglang:full_token_usage": (({}, "exact_usage"),),
    "sglang:num_used_tokens": (({}, "used"),),
    "sglang:kv_used_tokens": (({}, "used"),),
    "sglang:kv_evictable_tokens": (({}, "evictable"),),
    "sglang:kv_available_tokens": (({}, "free"),),
    "sglang:new_token_ratio": (({}, "ratio"),),
    "sglang:total_retracted_reqs": (({}, "preemptions"),),
    "sglang:prompt_tokens_total": (({"is_streaming": "true"}, "finished_prompt"),),
    "sglang:generation_tokens_total": (({"is_streaming": "true"}, "finished_generated"),),
    "sglang:num_requests_total": (({"is_streaming": "true"}, "ended"),),
    "sglang:num_aborted_requests_total": (({}, "abort"),),
    "sglang:cached_tokens_total": (({}, "cached"),),
    "sglang:prefill_effective_tokens_total": (({"mode": "input"}, "prefilled"), ({"mode": "device_hit"}, "hits")),
    "sglang:realtime_tokens_total": (
        ({"mode": "prefill_compute"}, "prefilled"),
        ({"mode": "decode"}, "decoded"),
        ({"mode": "prefill_cache"}, "hits"),
    ),
    "sglang:cuda_graph_passes_total": (({"mode": "decode_none"}, "steps"),),
    "sglang:http_requests_total": (({"endpoint": "/v1/chat/completions"}, "submitted"),),
    "sglang:http_responses_total": (({"endpoint": "/v1/chat/completions", "status_code": "200"}, "done"),),
    "sglang:http_requests_active": (({"endpoint": "/v1/chat/completions"}, "present"),),
}
HISTOGRAMS: Final = {
    "vllm:time_to_first_token_seconds": "ttft",
    "vllm:inter_token_latency_seconds": "itl",
    "vllm:time_per_output_token_seconds": "itl",  # its name until 0.14
    "vllm:request_time_per_output_token_seconds": "tpot",
    "vllm:e2e_request_latency_seconds": "e2e",
    "vllm:request_queue_time_seconds": "queue",
    "vllm:request_prefill_time_seconds": "prefill",
    "vllm:request_decode_time_seconds": "decode",
    "vllm:request_inference_time_seconds": "inference",
    "vllm:request_prompt_tokens": "prompt",
    "vllm:request_generation_tokens": "generation",
    "vllm:request_max_num_generation_tokens": "generation",  # the longest of n answers; here n is 1
    "vllm:request_params_max_tokens": "max_tokens",
    "vllm:iteration_tokens_total": "step_tokens",
    "vllm:request_num_preemptions": "preemptions",
    "vllm:request_prefill_kv_computed_tokens": "prefill_computed",
    "sglang:time_to_first_token_seconds": "ttft",
    "sglang:inter_token_latency_seconds": "itl",
    "sglang:request_time_per_output_token_seconds": "tpot",
    "sglang:e2e_request_latency_seconds": "e2e",
    "sglang:queue_time_seconds": "queue",
    "sglang:per_stage_req_latency_seconds": "prefill",
    "sglang:prompt_tokens_histogram": "prompt",
    "sglang:generation_tokens_histogram": "generation",
    "sglang:uncached_prompt_tokens_histogram": "prefill_computed",
    "sglang:num_retractions": "preemptions",
}
MODELLED_PARTS: Final = {"is_streaming": "true", "stage": "prefill_forward"}
"""Of histograms that come in parts: the simulated clients stream, and one stage is modelled."""
ANSWERS_ASKED_FOR: Final = "vllm:request_params_n"  # 1 for every request

IDLE: Final[Mapping[str, str]] = {
    "python_info": "1.0",
    "process_virtual_memory_bytes": "1.6e+10",
    "process_resident_memory_bytes": "1e+09",
    "process_open_fds": "64.0",
    "process_max_fds": "65536.0",
    "vllm:cache_config_info": "1.0",
    "sglang:cache_config_info": "1.0",
    "sglang:fwd_occupancy": "NaN",  # needs a device timer
}

# SGLang's counters that appear with their first event and that no capture under load has; texts and labels are those
# of 0.5.23's own collectors (tests/fixtures/captures/sglang/0.5.23-all-features-collector-only).
FIRST_EVENTS: Final = (
    ("sglang:num_retracted_requests_total", "Total number of retracted requests.", "preemptions"),
    ("sglang:num_retracted_input_tokens_total", "Total number of retracted input tokens.", "retracted_input"),
    ("sglang:num_retracted_output_tokens_total", "Total number of retracted output tokens.", "retracted_output"),
    ("sglang:num_aborted_requests_total", "Number of requests aborted.", "abort"),
)
WITHOUT_FIRST_EVENTS: Final = ("0.5.2",)  # counts retractions in a gauge that is always there
TYPICAL: Final = ("sglang:new_token_ratio", "sglang:num_requests_total")
"""Families whose labels are those of each replica's counters, and those of the whole server's."""
