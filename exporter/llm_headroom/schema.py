"""Every canonical metric, once: the only place where names, kinds, units, help texts and labels exist.

Units are UCUM codes as OpenTelemetry wants them. `1` stands on ratios alone, so that a translation from OTLP to
Prometheus leaves each name as it is (open-telemetry/opentelemetry-specification,
specification/compatibility/prometheus_and_openmetrics.md).
"""

from __future__ import annotations

from functools import partial
from typing import Final

from llm_headroom.model import Across, Kind, Metric, Subject

_ENGINE = ("engine", "model", "target", "replica")
_SOURCE = ("engine", "target")
_GPU = ("gpu", "uuid")


def _gauge(
    name: str,
    unit: str,
    text: str,
    *labels: str,
    across: Across = Across.SUM,
    subject: Subject = Subject.ENGINE,
) -> Metric:
    return Metric(f"llm_{name}", Kind.GAUGE, unit, text, (*_ENGINE, *labels), across, subject=subject)


def _counter(name: str, unit: str, text: str, *labels: str, subject: Subject = Subject.ENGINE) -> Metric:
    return Metric(f"llm_{name}", Kind.COUNTER, unit, text, (*_ENGINE, *labels), Across.SUM, subject=subject)


def _histogram(name: str, unit: str, text: str, subject: Subject = Subject.ENGINE) -> Metric:
    return Metric(f"llm_{name}", Kind.HISTOGRAM, unit, text, _ENGINE, Across.SUM, subject=subject)


_derived_gauge = partial(_gauge, subject=Subject.DERIVED)
_derived_counter = partial(_counter, subject=Subject.DERIVED)
_router_gauge = partial(_gauge, subject=Subject.ROUTER)
_router_counter = partial(_counter, subject=Subject.ROUTER)


def _target(subject: Subject, name: str, kind: Kind, unit: str, text: str, *labels: str) -> Metric:
    """Of one target as a whole."""
    return Metric(f"llm_{name}", kind, unit, text, (*_SOURCE, *labels), subject=subject)


_whole = partial(_target, Subject.ENGINE)
_derived = partial(_target, Subject.DERIVED)
_host = partial(_target, Subject.HOST)
_collection = partial(_target, Subject.COLLECTION)


def _gpu(name: str, kind: Kind, unit: str, text: str, *labels: str) -> Metric:
    return Metric(f"llm_gpu_{name}", kind, unit, text, (*_GPU, *labels), subject=Subject.GPU)


def _held(name: str, kind: Kind, unit: str, text: str, *labels: str) -> Metric:
    """Of one engine on one GPU."""
    return Metric(f"llm_gpu_{name}", kind, unit, text, (*_GPU, *_SOURCE, *labels), subject=Subject.ATTRIBUTION)


def _own(name: str, kind: Kind, unit: str, text: str, *labels: str) -> Metric:
    """Of llm-headroom itself."""
    return Metric(f"llm_{name}", kind, unit, text, labels, subject=Subject.EXPORTER)


def _process(name: str, kind: Kind, unit: str, text: str, *labels: str) -> Metric:
    """Of llm-headroom's own process, under the name that prometheus-client gives to it in every Python process."""
    return Metric(name, kind, unit, text, labels, subject=Subject.PROCESS)


# Traffic -------------------------------------------------------------------------------------------------------------
REQUESTS_RUNNING: Final = _gauge("requests_running", "{request}", "Requests in the running batch.")
REQUESTS_WAITING: Final = _gauge("requests_waiting", "{request}", "Requests that wait to be scheduled.")
REQUESTS_RUNNING_LIMIT: Final = _gauge(
    "requests_running_limit", "{request}", "The most requests that the engine runs at once."
)
REQUESTS_FINISHED: Final = _counter(
    "requests_finished_total",
    "{request}",
    "Requests that ended with an answer, by the reason why generation ended.",
    "reason",
)
REQUESTS_FAILED: Final = _counter(
    "requests_failed_total",
    "{request}",
    "Requests that ended without a whole answer: aborted, failed or rejected.",
    "reason",
)
PROXY_UNMEASURED: Final = _counter(
    "proxy_requests_unmeasured_total",
    "{request}",
    "Requests through the measuring proxy whose tokens it could not count, by cause (usage_missing: the engine did not "
    "tell them; compressed, format, too_long: the answer could not be read).",
    "reason",
    subject=Subject.PROXY,
)
HTTP_RESPONSES: Final = _counter(
    "http_responses_total", "{response}", "HTTP responses of the inference endpoints by class of status code.", "code"
)
PREEMPTIONS: Final = _counter(
    "preemptions_total",
    "{preemption}",
    "Running requests that were put back for want of KV cache (preempted, retracted).",
)
PROMPT_TOKENS: Final = _counter("prompt_tokens_total", "{token}", "Prompt tokens, cached ones included.")
GENERATION_TOKENS: Final = _counter("generation_tokens_total", "{token}", "Generated tokens.")
PROMPT_TOKENS_CACHED: Final = _counter(
    "prompt_tokens_cached_total", "{token}", "Prompt tokens that were found in a cache and needed no prefill."
)
PROCESSED_TOKENS: Final = _counter(
    "processed_tokens_total",
    "{token}",
    "Tokens as the engine works them off step by step, cached ones excluded, by phase (prefill, decode).",
    "phase",
)
WAITING_TOKENS: Final = _gauge("waiting_tokens", "{token}", "Uncached prompt tokens of the waiting requests.")
ENGINE_STEPS: Final = _counter(
    "engine_steps_total", "{step}", "Forward passes (engine steps). Flat while requests run means stalled."
)
ENGINE_STEP_TOKENS: Final = _histogram("engine_step_tokens", "{token}", "Tokens in one engine step.")
BATCH_TOKENS: Final = _gauge("batch_tokens", "{token}", "Tokens in the last engine step.")
FORWARD_SECONDS: Final = _gauge("forward_seconds", "s", "Duration of the last forward pass.", across=Across.MAX)
PREFILL_THROUGHPUT: Final = _gauge(
    "prefill_tokens_per_second",
    "{token}/s",
    "Prefill throughput as the engine averages it; prefer rates of the token counters.",
)
DECODE_THROUGHPUT: Final = _gauge(
    "decode_tokens_per_second",
    "{token}/s",
    "Decode throughput as the engine averages it; prefer rates of the token counters.",
)

# Latency -------------------------------------------------------------------------------------------------------------
TIME_TO_FIRST_TOKEN: Final = _histogram(
    "time_to_first_token_seconds", "s", "From a request's arrival to its first token, the time in the queue included."
)
INTER_TOKEN_LATENCY: Final = _histogram("inter_token_latency_seconds", "s", "Between successive tokens of one request.")
TIME_PER_OUTPUT_TOKEN: Final = _histogram(
    "time_per_output_token_seconds",
    "s",
    "Mean time per token after the first one, one observation for each finished request.",
)
REQUEST_DURATION: Final = _histogram("request_duration_seconds", "s", "From a request's arrival to its end.")
REQUEST_QUEUE: Final = _histogram("request_queue_seconds", "s", "From a request's arrival to its first scheduling.")
REQUEST_PREFILL: Final = _histogram(
    "request_prefill_seconds", "s", "From a request's first scheduling to its first token."
)
REQUEST_DECODE: Final = _histogram("request_decode_seconds", "s", "From a request's first token to its last one.")
REQUEST_PROMPT_TOKENS: Final = _histogram("request_prompt_tokens", "{token}", "Prompt tokens of one request.")
REQUEST_GENERATION_TOKENS: Final = _histogram(
    "request_generation_tokens", "{token}", "Generated tokens of one request."
)

# Speculative decoding ------------------------------------------------------------------------------------------------
SPEC_DECODE_DRAFT_TOKENS: Final = _counter(
    "spec_decode_draft_tokens_total", "{token}", "Tokens that the draft proposed."
)
SPEC_DECODE_ACCEPTED_TOKENS: Final = _counter(
    "spec_decode_accepted_tokens_total", "{token}", "Draft tokens that the model accepted."
)
SPEC_DECODE_ACCEPTANCE: Final = _gauge(
    "spec_decode_acceptance_ratio",
    "1",
    "Accepted share of the draft tokens as the engine averages it; prefer rates of the token counters.",
    across=Across.MAX,
)

# KV cache ------------------------------------------------------------------------------------------------------------
KV_CACHE_CAPACITY: Final = _gauge("kv_cache_capacity_tokens", "{token}", "Tokens that the KV cache can hold.")
KV_CACHE_USED: Final = _gauge(
    "kv_cache_used_tokens", "{token}", "KV cache held by requests: tokens that cannot be reclaimed."
)
KV_CACHE_EVICTABLE: Final = _gauge(
    "kv_cache_evictable_tokens", "{token}", "KV cache kept only for reuse: tokens that are reclaimed when needed."
)
KV_CACHE_USAGE: Final = _gauge(
    "kv_cache_usage_ratio",
    "1",
    "Share of the KV cache that is held by requests and cannot be reclaimed.",
    across=Across.CAPACITY_WEIGHTED,
)
PREFIX_CACHE_QUERIES: Final = _counter(
    "prefix_cache_queries_total", "{token}", "Prompt tokens looked up in the prefix cache."
)
PREFIX_CACHE_HITS: Final = _counter("prefix_cache_hits_total", "{token}", "Prompt tokens found in the prefix cache.")
PREFIX_CACHE_HIT_RATIO: Final = _gauge(
    "prefix_cache_hit_ratio",
    "1",
    "Hit ratio as the engine averages it, over a window of its own; prefer rates of hits and queries.",
    across=Across.NONE,
)

# Model and engine ----------------------------------------------------------------------------------------------------
MODEL_INFO: Final = _gauge(
    "model_info",
    "{info}",
    "Always 1; what is known of the model in its labels.",
    "architecture",
    "parameters",
    "quantization",
    "format",
    "digest",
    across=Across.NONE,
)
MODEL_CONTEXT: Final = _gauge(
    "model_context_tokens", "{token}", "The longest prompt plus answer of one request.", across=Across.NONE
)
MODEL_TRAINED_CONTEXT: Final = _gauge(
    "model_trained_context_tokens", "{token}", "The longest context that the model was trained for.", across=Across.NONE
)
MODEL_PARAMETERS: Final = _gauge("model_parameters", "{parameter}", "Parameters of the model.", across=Across.NONE)
MODEL_MEMORY: Final = _gauge(
    "model_memory_bytes",
    "By",
    "Memory of the model by kind, as the engine tells it: weights, kv_cache, graph, total (wherever it lies), "
    "device (the part on GPUs).",
    "kind",
)
ENGINE_GPU_RESERVATION: Final = _gauge(
    "engine_gpu_memory_reservation_ratio",
    "1",
    "Share of each of its GPUs' memory that the engine was told to reserve at its start.",
    across=Across.MAX,
)
MODEL_LOADED: Final = _gauge("model_loaded", "{model}", "1 while the model is in memory.", across=Across.NONE)
MODEL_ASLEEP: Final = _gauge(
    "model_asleep",
    "{model}",
    "1 while the model sleeps, put to sleep or for want of work: it is out of GPU memory until it is woken.",
    across=Across.MAX,
)
MODEL_EXPIRY: Final = _gauge(
    "model_expiry_timestamp_seconds",
    "s",
    "Unix time at which an idle model is unloaded; absent if never.",
    across=Across.NONE,
)
MODEL_OFFLOAD: Final = _gauge(
    "model_offload_ratio",
    "1",
    "Share of the model's memory that lies on GPUs; below 1 it has spilled to the CPU.",
    across=Across.NONE,
)
MODELS_LOADED: Final = _whole("models_loaded", Kind.GAUGE, "{model}", "Models in memory.")
MODELS_INSTALLED: Final = _whole(
    "models_installed", Kind.GAUGE, "{model}", "Models in the engine's library on its disk."
)
MODELS_INSTALLED_BYTES: Final = _whole(
    "models_installed_bytes",
    Kind.GAUGE,
    "By",
    "Size on disk of the models in the library, summed; files that models share are counted for each.",
)
ENGINE_INFO: Final = _whole(
    "engine_info", Kind.GAUGE, "{info}", "Always 1; the engine's version in a label.", "version"
)
ENGINE_START: Final = _gauge(
    "engine_start_time_seconds", "s", "Unix time at which the engine's server process started.", across=Across.NONE
)

# Derived by the exporter ---------------------------------------------------------------------------------------------
KV_CACHE_HEADROOM_TOKENS: Final = _derived_gauge(
    "kv_cache_headroom_tokens",
    "{token}",
    "KV cache that can still be given to new requests: free and evictable tokens less what already waits.",
)
KV_CACHE_HEADROOM_RATIO: Final = _derived_gauge(
    "kv_cache_headroom_ratio",
    "1",
    "Headroom of the KV cache as a share of its capacity.",
    across=Across.CAPACITY_WEIGHTED,
)
KV_CACHE_HEADROOM_REQUESTS: Final = _derived_gauge(
    "kv_cache_headroom_requests",
    "{request}",
    "Requests of the recent mean size that can still be admitted and end without running out of KV cache.",
)
KV_CACHE_EXHAUSTION: Final = _derived_gauge(
    "kv_cache_exhaustion_seconds",
    "s",
    "Time until the KV cache is full if demand stays as it is; absent if it does not fill up so.",
    across=Across.NONE,
)
KV_CACHE_USAGE_PEAK: Final = _derived_gauge(
    "kv_cache_usage_peak_ratio",
    "1",
    "Highest usage of the KV cache among the polls of the last minute.",
    across=Across.MAX,
)
TTFT_SLOW: Final = _derived_gauge(
    "ttft_slow_ratio",
    "1",
    "Share of first tokens slower than the TTFT objective in a sliding window; absent without traffic.",
    "window",
    across=Across.NONE,
)
TTFT_WINDOW_REQUESTS: Final = _derived_gauge(
    "ttft_window_requests", "{request}", "First tokens in the sliding window of llm_ttft_slow_ratio.", "window"
)
SATURATION_RISK: Final = _derived_gauge(
    "saturation_risk_ratio",
    "1",
    "Probability of KV cache trouble or first tokens slower than the objective within five minutes.",
    across=Across.MAX,
)
KV_SATURATION_RISK: Final = _derived_gauge(
    "kv_saturation_risk_ratio",
    "1",
    "Probability that requests are preempted or blocked for want of KV cache within five minutes.",
    across=Across.MAX,
)
SATURATION_HIGH_WATER_RISK: Final = _derived_gauge(
    "saturation_high_water_risk_ratio",
    "1",
    "Probability of KV cache trouble or first tokens slower than the objective within five minutes, from the highest "
    "forecast of TTFT and the highest KV demand of the last ten minutes.",
    across=Across.MAX,
)
SATURATION: Final = _derived_gauge(
    "saturation_ratio",
    "1",
    "How far a resource (kv_cache, concurrency, prefill, gpu_memory) is used: 1 where TTFT begins to leave its "
    "objective, more beyond. `max` is the one that binds; scale on that.",
    "resource",
    across=Across.MAX,
)
OOM_RISK: Final = Metric(
    "llm_oom_risk_ratio",
    Kind.GAUGE,
    "1",
    "Probability that an allocation fails for want of memory within the next 30 minutes: of a GPU (gpu), or of the "
    "host or control group under an engine (host).",
    (*_GPU, *_SOURCE, "memory"),
    subject=Subject.DERIVED,
)
SPILL_RISK: Final = _derived_gauge(
    "spill_risk_ratio",
    "1",
    "Probability that the model, or its next load, does not fit on the GPUs and runs in part on the CPU.",
    across=Across.MAX,
)
EVICTION_RISK: Final = _derived_gauge(
    "eviction_risk_ratio",
    "1",
    "Probability that the loaded model is unloaded to make room for another one within five minutes.",
    across=Across.MAX,
)
QUEUE_OVERFLOW_RISK: Final = _derived_gauge(
    "queue_overflow_risk_ratio",
    "1",
    "Probability that the engine turns requests away because its queue is full within five minutes; of engines whose "
    "queue is bounded by default (Ollama: 512), where waiting requests are known.",
    across=Across.MAX,
)
TOKEN_THROUGHPUT: Final = _derived_gauge(
    "tokens_per_second", "{token}/s", "Tokens per second of the last minute by phase (prompt, generation).", "phase"
)
ENGINE_GPUS: Final = _derived(
    "engine_gpus", Kind.GAUGE, "{gpu}", "GPUs that the engine has memory on, or was configured with."
)
ENGINE_COST: Final = _derived(
    "engine_cost_total",
    Kind.COUNTER,
    "{currency}",
    "Price of the engine's GPUs for the time that llm-headroom has watched it, in the configured currency.",
    "currency",
)
ENGINE_ENERGY: Final = _derived(
    "engine_energy_joules_total",
    Kind.COUNTER,
    "J",
    "Energy of the engine's GPUs since llm-headroom watches it; that of a shared GPU is split by the memory held.",
)
COST_PER_MILLION_TOKENS: Final = _derived(
    "cost_per_million_tokens",
    Kind.GAUGE,
    "{currency}",
    "Price of the engine's GPUs over the tokens that it generated in the last five minutes, per million of them.",
    "currency",
)
ENERGY_PER_TOKEN: Final = _derived(
    "energy_per_token_joules",
    Kind.GAUGE,
    "J",
    "Energy of the engine's GPUs over the tokens that it generated in the last five minutes.",
)
ENGINE_STATE: Final = _derived(
    "engine_state",
    Kind.GAUGE,
    "{flag}",
    "1 for the state that the model of an engine is judged to be in, 0 for each other one (down, misread, stalled, "
    "failing, blocked, slow, loading, tight, unknown, asleep, idle, ok). Goes on while the engine does not answer.",
    "model",
    "state",
)
ENGINE_STALLED: Final = _derived_gauge(
    "engine_stalled",
    "{flag}",
    "1 if requests are there but neither steps nor tokens have moved for a minute.",
    across=Across.MAX,
)
ENGINE_RESTARTS: Final = _derived_counter(
    "engine_restarts_total", "{restart}", "Times that the engine's counters began anew."
)
MODEL_LOADS: Final = _derived_counter(
    "model_loads_total",
    "{load}",
    "Times that the engine was seen to have loaded the model since llm-headroom watches it. Many of them mean that "
    "models push each other out, or that requests want different contexts.",
)
MODEL_UNLOADS: Final = _derived_counter(
    "model_unloads_total", "{unload}", "Times that the engine was seen to have unloaded the model."
)
SLO_REQUESTS: Final = _derived_counter(
    "slo_requests_total",
    "{request}",
    "Requests that count for an objective (tokens, for inter-token latency); goes on over restarts of the engine.",
    "slo",
)
SLO_REQUESTS_GOOD: Final = _derived_counter(
    "slo_requests_good_total", "{request}", "Requests (tokens) within the threshold of an objective.", "slo"
)
SLO_THRESHOLD: Final = _derived_gauge(
    "slo_threshold_seconds",
    "s",
    "Threshold of an objective, moved to the next bucket boundary that the engine has.",
    "slo",
    across=Across.NONE,
)
SLO_OBJECTIVE: Final = _derived_gauge(
    "slo_objective_ratio",
    "1",
    "Share of requests that an objective wants within the threshold.",
    "slo",
    across=Across.NONE,
)

# Router (gateway) ----------------------------------------------------------------------------------------------------
ROUTER_REQUESTS: Final = _router_counter("router_requests_total", "{request}", "Requests that the router took in.")
ROUTER_ERRORS: Final = _router_counter(
    "router_errors_total", "{request}", "Requests that the router could not have answered, by reason.", "reason"
)
ROUTER_REJECTED: Final = _router_counter(
    "router_rejected_total", "{request}", "Requests that the router turned away (rate limit, overload).", "reason"
)
ROUTER_RETRIES: Final = _router_counter("router_retries_total", "{request}", "Requests that the router sent again.")
ROUTER_RESPONSE_HEAD: Final = _histogram(
    "router_response_head_seconds",
    "s",
    "From a request's arrival at the router to the head of its response.",
    subject=Subject.ROUTER,
)
ROUTER_REQUESTS_ACTIVE: Final = _router_gauge(
    "router_requests_active", "{request}", "Requests that the router has under way."
)
ROUTER_REQUESTS_WAITING: Final = _router_gauge(
    "router_requests_waiting", "{request}", "Requests that wait in the router for admission."
)
ROUTER_WORKERS: Final = _router_gauge("router_workers", "{worker}", "Workers that the router knows.")
ROUTER_WORKER_HEALTHY: Final = _router_gauge(
    "router_worker_healthy",
    "{worker}",
    "1 if the router holds the worker for healthy, else 0.",
    "worker",
    across=Across.NONE,
)
ROUTER_WORKER_REQUESTS: Final = _router_gauge(
    "router_worker_requests_active", "{request}", "Requests that the router has under way at the worker.", "worker"
)
ROUTER_CIRCUIT_STATE: Final = _router_gauge(
    "router_worker_circuit_state",
    "{state}",
    "The router's circuit breaker for the worker: 0 closed, 1 open (no requests are sent), 2 half open.",
    "worker",
    across=Across.NONE,
)

# GPU -----------------------------------------------------------------------------------------------------------------
GPU_INFO: Final = _gpu(
    "info",
    Kind.GAUGE,
    "{info}",
    "Always 1; name, versions and place of the device in its labels; of a MIG instance its parent's uuid and profile.",
    "name",
    "driver",
    "cuda",
    "vbios",
    "pci_bus_id",
    "mig_parent",
    "mig_profile",
)
GPU_MEMORY_TOTAL: Final = _gpu("memory_total_bytes", Kind.GAUGE, "By", "Memory of the device.")
GPU_MEMORY_USED: Final = _gpu(
    "memory_used_bytes",
    Kind.GAUGE,
    "By",
    "Memory that processes hold; with a driver that tells no reserved memory, that too.",
)
GPU_MEMORY_FREE: Final = _gpu("memory_free_bytes", Kind.GAUGE, "By", "Memory that can still be allocated.")
GPU_MEMORY_RESERVED: Final = _gpu(
    "memory_reserved_bytes", Kind.GAUGE, "By", "Memory that the driver and firmware keep."
)
GPU_MEMORY_HEADROOM: Final = _gpu(
    "memory_headroom_bytes",
    Kind.GAUGE,
    "By",
    "Memory that can still be allocated on a device that engines may use: its free memory, never total less used.",
)
GPU_MEMORY_HEADROOM_RATIO: Final = _gpu(
    "memory_headroom_ratio", Kind.GAUGE, "1", "Headroom as a share of the device's memory."
)
GPU_MEMORY_ENGINE: Final = _held(
    "memory_engine_bytes",
    Kind.GAUGE,
    "By",
    "Memory that an engine's processes hold, by what it is used for (weights, kv_used, kv_evictable, kv_free, kv_cache "
    "where its use is unknown, graph, model where the engine tells no parts, other). The kinds add up to what it has.",
    "kind",
)
GPU_MEMORY_UNATTRIBUTED: Final = _gpu(
    "memory_unattributed_bytes",
    Kind.GAUGE,
    "By",
    "Used memory that no engine is known to hold. Engines, unattributed, reserved and free add up to total.",
)
GPU_MEMORY_RESERVATION: Final = _held(
    "memory_engine_reservation_bytes",
    Kind.GAUGE,
    "By",
    "Memory that an engine takes or was told to take, whichever is more.",
)
GPU_MEMORY_OVERCOMMITTED: Final = _gpu(
    "memory_overcommitted_bytes",
    Kind.GAUGE,
    "By",
    "By how much the engines' reservations, unattributed and reserved memory together exceed the device's; else 0.",
)
GPU_ATTRIBUTION_INFO: Final = _held(
    "memory_attribution_info",
    Kind.GAUGE,
    "{info}",
    "Always 1; how it was found out that the engine holds memory of the device (pid, configured_pid, container, "
    "process_group, cgroup, gpus, elimination).",
    "method",
)
GPU_PROCESS_MEMORY: Final = _gpu(
    "process_memory_bytes", Kind.GAUGE, "By", "Memory that one process holds on the device.", "pid", "process"
)
GPU_UTILIZATION: Final = _gpu(
    "utilization_ratio",
    Kind.GAUGE,
    "1",
    "Share of the last sample period in which a kernel ran.",
    *_SOURCE,  # an engine that tells it itself cannot name the device
)
GPU_MEMORY_CONTROLLER: Final = _gpu(
    "memory_controller_utilization_ratio",
    Kind.GAUGE,
    "1",
    "Share of the last sample period in which device memory was read or written: bandwidth, not occupancy.",
)
GPU_POWER: Final = _gpu("power_watts", Kind.GAUGE, "W", "Power draw.")
GPU_POWER_LIMIT: Final = _gpu("power_limit_watts", Kind.GAUGE, "W", "Power limit in force.")
GPU_ENERGY: Final = _gpu("energy_joules_total", Kind.COUNTER, "J", "Energy used since the driver was loaded.")
GPU_TEMPERATURE: Final = _gpu(
    "temperature_celsius", Kind.GAUGE, "Cel", "Temperature by sensor (gpu, memory).", "sensor", *_SOURCE
)
GPU_FAN: Final = _gpu(
    "fan_speed_ratio", Kind.GAUGE, "1", "Intended fan speed as a share of the loudest; may exceed 1.", "fan"
)
GPU_CLOCK: Final = _gpu("clock_hertz", Kind.GAUGE, "Hz", "Clock by domain (graphics, sm, memory, video).", "domain")
GPU_CLOCK_MAX: Final = _gpu("clock_max_hertz", Kind.GAUGE, "Hz", "Highest clock by domain.", "domain")
GPU_THROTTLE: Final = _gpu(
    "throttle_active",
    Kind.GAUGE,
    "{flag}",
    "1 while the reason holds the clocks below their maximum, else 0; idle and application_clocks are no trouble.",
    "reason",
)
GPU_THROTTLE_TIME: Final = _gpu(
    "throttle_seconds_total",
    Kind.COUNTER,
    "s",
    "Time for which a policy has held the clocks down (power, thermal, sync_boost, board_limit, low_utilization, "
    "reliability).",
    "policy",
)
GPU_XID_ERRORS: Final = _gpu(
    "xid_errors_total",
    Kind.COUNTER,
    "{error}",
    "Errors that the driver reported (Xid messages) by number since llm-headroom watches. Absent until the first one.",
    "xid",
)
GPU_XID_LAST: Final = _gpu(
    "xid_last_timestamp_seconds", Kind.GAUGE, "s", "Unix time at which the latest Xid error of a number came.", "xid"
)
GPU_XID_WATCHED: Final = _gpu(
    "xid_watched", Kind.GAUGE, "{flag}", "1 if Xid errors of the device are counted, 0 if the driver does not allow it."
)
GPU_RECOVERY_ACTION: Final = _gpu(
    "recovery_action",
    Kind.GAUGE,
    "{action}",
    "What the driver asks for: 0 nothing, 1 reset the GPU, 2 reboot the node, 3 end peer-to-peer work, 4 drain and "
    "reset, and so on as nvmlDeviceGpuRecoveryAction_t counts.",
)
GPU_ECC_ERRORS: Final = _gpu(
    "ecc_errors_total",
    Kind.COUNTER,
    "{error}",
    "ECC memory errors over the device's life (corrected, uncorrected).",
    "severity",
)
GPU_ROW_REMAP_ROWS: Final = _gpu(
    "row_remap_rows",
    Kind.GAUGE,
    "{row}",
    "Rows remapped after errors over the device's life (correctable, uncorrectable).",
    "severity",
)
GPU_ROW_REMAP_PENDING: Final = _gpu(
    "row_remap_pending", Kind.GAUGE, "{flag}", "1 if a row is to be remapped at the next reset."
)
GPU_ROW_REMAP_FAILURE: Final = _gpu("row_remap_failure", Kind.GAUGE, "{flag}", "1 if a row could not be remapped.")
GPU_STATE: Final = _gpu(
    "state",
    Kind.GAUGE,
    "{flag}",
    "1 for the state that the GPU is judged to be in, 0 for each other one (lost, error, throttled, full, unknown, "
    "ok). Goes on while the GPU cannot be read.",
    "state",
)
GPU_PCIE_REPLAYS: Final = _gpu("pcie_replays_total", Kind.COUNTER, "{replay}", "PCIe packets sent again.")
GPU_PCIE_LINK_GENERATION: Final = _gpu("pcie_link_generation", Kind.GAUGE, "{generation}", "PCIe generation in use.")
GPU_PCIE_LINK_WIDTH: Final = _gpu("pcie_link_width", Kind.GAUGE, "{lane}", "PCIe lanes in use.")
GPU_PCIE_THROUGHPUT: Final = _gpu(
    "pcie_bytes_per_second",
    Kind.GAUGE,
    "By/s",
    "PCIe throughput over 20 ms by direction (transmit, receive); opt-in.",
    "direction",
)
GPU_NVLINK_BYTES: Final = _gpu(
    "nvlink_bytes_total",
    Kind.COUNTER,
    "By",
    "Data moved over all NVLinks by direction (transmit, receive).",
    "direction",
)
GPUS: Final = Metric("llm_gpus", Kind.GAUGE, "{gpu}", "GPUs that NVML lists, lost ones included.", subject=Subject.GPU)

# Host ----------------------------------------------------------------------------------------------------------------
HOST_MEMORY_LIMIT: Final = _host(
    "host_memory_limit_bytes",
    Kind.GAUGE,
    "By",
    "Memory limit of the engine's control group: the lowest of those that can be seen. Absent if there is none.",
)
HOST_MEMORY_USED: Final = _host(
    "host_memory_used_bytes",
    Kind.GAUGE,
    "By",
    "Working set of the engine's control group: its memory less inactive file cache.",
)
HOST_MEMORY_PRESSURE: Final = _host(
    "host_memory_pressure_seconds_total",
    Kind.COUNTER,
    "s",
    "Time for which some or all (full) tasks of the engine's control group waited for memory (PSI).",
    "severity",
)
HOST_OOM_KILLS: Final = _host(
    "host_memory_oom_kills_total",
    Kind.COUNTER,
    "{kill}",
    "Processes of the engine's control group that were killed for want of memory.",
)
HOST_MEMORY_INFO: Final = _host(
    "host_memory_info",
    Kind.GAUGE,
    "{info}",
    "Always 1; the version of the engine's control group (v1, v2), how it was found (listener, configured, container) "
    "and whose it is (engine, shared with other targets or this exporter).",
    "cgroup",
    "method",
    "scope",
)
HOST_PROCESS_MEMORY: Final = _host(
    "host_process_resident_bytes",
    Kind.GAUGE,
    "By",
    "Resident memory of the engine's processes by kind (anonymous, file, shared). Pages that several of them map are "
    "counted for each.",
    "kind",
)
HOST_PROCESSES: Final = _host(
    "host_processes", Kind.GAUGE, "{process}", "The engine's processes: the one that listens and those below it."
)
HOST_PROCESS_START: Final = _host(
    "host_process_start_time_seconds",
    Kind.GAUGE,
    "s",
    "Unix time at which the engine's process started; another one means a restart.",
)

# Exporter ------------------------------------------------------------------------------------------------------------
UP: Final = _collection("up", Kind.GAUGE, "{source}", "1 if the last collection of the source succeeded, else 0.")
SOURCE_LAST_SUCCESS: Final = _collection(
    "source_last_success_timestamp_seconds", Kind.GAUGE, "s", "Unix time of the last collection that succeeded."
)
SOURCE_DURATION: Final = _collection("source_duration_seconds", Kind.GAUGE, "s", "Duration of the last collection.")
SOURCE_ERRORS: Final = _collection(
    "source_errors_total", Kind.COUNTER, "{error}", "Collections that failed, and parts of others, by cause.", "cause"
)
SOURCE_SAMPLES: Final = _collection(
    "source_samples", Kind.GAUGE, "{sample}", "Samples of the last collection by what became of them.", "state"
)
LABEL_VALUES_CAPPED: Final = _collection(
    "label_values_capped_total",
    Kind.COUNTER,
    "{value}",
    "Label values beyond the cap, reported as `other`, by label.",
    "label",
)
BUILD_INFO: Final = _own(
    "build_info", Kind.GAUGE, "{info}", "Always 1; the version of llm-headroom in a label.", "version", "python"
)
CONFIG_RELOAD_SUCCESS: Final = _own(
    "config_last_reload_success",
    Kind.GAUGE,
    "{flag}",
    "1 if the last reading of the configuration succeeded, else 0.",
)
CONFIG_RELOAD_TIME: Final = _own(
    "config_last_reload_success_timestamp_seconds",
    Kind.GAUGE,
    "s",
    "Unix time of the last reading of the configuration that succeeded.",
)
EXPORTER_CPU: Final = _own(
    "exporter_cpu_seconds_total",
    Kind.COUNTER,
    "s",
    "Deprecated, removed in the release after this one: the same as process_cpu_seconds_total.",
)
EXPORTER_MEMORY: Final = _own(
    "exporter_resident_memory_bytes",
    Kind.GAUGE,
    "By",
    "Deprecated, removed in the release after this one: the same as process_resident_memory_bytes.",
)
PROCESS_CPU: Final = _process(
    "process_cpu_seconds_total", Kind.COUNTER, "s", "User and system CPU time of llm-headroom itself."
)
PROCESS_MEMORY: Final = _process(
    "process_resident_memory_bytes", Kind.GAUGE, "By", "Resident memory of llm-headroom itself."
)
PROCESS_VIRTUAL_MEMORY: Final = _process(
    "process_virtual_memory_bytes", Kind.GAUGE, "By", "Virtual memory of llm-headroom itself."
)
PROCESS_START: Final = _process(
    "process_start_time_seconds", Kind.GAUGE, "s", "Unix time at which llm-headroom was started."
)
PROCESS_FILES: Final = _process(
    "process_open_fds", Kind.GAUGE, "{file}", "Open file descriptors of llm-headroom, its connections included."
)
PROCESS_FILES_LIMIT: Final = _process(
    "process_max_fds", Kind.GAUGE, "{file}", "The most file descriptors that llm-headroom may open."
)
PYTHON_INFO: Final = _process(
    "python_info",
    Kind.GAUGE,
    "{info}",
    "Always 1; the Python that llm-headroom runs on.",
    "implementation",
    "major",
    "minor",
    "patchlevel",
    "version",
)
GC_COLLECTED: Final = _process(
    "python_gc_objects_collected_total",
    Kind.COUNTER,
    "{object}",
    "Objects that the garbage collector has freed, by generation.",
    "generation",
)
GC_UNCOLLECTABLE: Final = _process(
    "python_gc_objects_uncollectable_total",
    Kind.COUNTER,
    "{object}",
    "Objects that the garbage collector found and could not free, by generation.",
    "generation",
)
GC_COLLECTIONS: Final = _process(
    "python_gc_collections_total",
    Kind.COUNTER,
    "{collection}",
    "Runs of the garbage collector, by generation.",
    "generation",
)
OTLP_EXPORTS: Final = _own(
    "otlp_exports_total",
    Kind.COUNTER,
    "{export}",
    "Intervals pushed over OTLP by what became of them: accepted, partial (some points were rejected), dropped.",
    "result",
)
OTLP_DROPPED: Final = _own(
    "otlp_dropped_points_total",
    Kind.COUNTER,
    "{point}",
    "Data points that no OTLP collector took, by cause; the next interval brings newer ones.",
    "cause",
)
OTLP_LAST_SUCCESS: Final = _own(
    "otlp_last_success_timestamp_seconds",
    Kind.GAUGE,
    "s",
    "Unix time of the last export that an OTLP collector accepted.",
)
OTLP_SETTING_PROBLEM: Final = _own(
    "otlp_setting_problem",
    Kind.GAUGE,
    "{flag}",
    "Always 1; an OTLP setting that is wrong or not supported, and whether the push is off for it or it is ignored.",
    "setting",
    "effect",
)

ALL: Final[tuple[Metric, ...]] = tuple(value for value in vars().values() if isinstance(value, Metric))
"""Every metric in the order in which it is defined, which is the order of the exposition and of METRICS.md."""

BY_NAME: Final[dict[str, Metric]] = {metric.name: metric for metric in ALL}
