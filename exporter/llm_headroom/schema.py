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
REQUESTS_WAITING: Final = _gauge("requests_waiting", "{request}", "Requests waiting to be scheduled.")
REQUESTS_WAITING_BY_REASON: Final = _gauge(
    "requests_waiting_by_reason",
    "{request}",
    "Waiting requests by what they wait for: capacity (a place in the batch, KV cache), deferred (an adapter's place, "
    "KV cache from elsewhere), grammar (its compilation).",
    "reason",
)
REQUESTS_IN_KV_TRANSFER: Final = _gauge(
    "requests_in_kv_transfer",
    "{request}",
    "Requests whose KV cache comes from elsewhere or goes there, by stage, as the engine calls it.",
    "wait_stage",
)
REQUESTS_RUNNING_BY_PRIORITY: Final = _gauge(
    "requests_running_by_priority", "{request}", "Requests in the running batch by priority.", "request_priority"
)
REQUESTS_WAITING_BY_PRIORITY: Final = _gauge(
    "requests_waiting_by_priority",
    "{request}",
    "Requests waiting to be scheduled by priority.",
    "request_priority",
)
LORA_ADAPTER_ACTIVE: Final = _gauge(
    "lora_adapter_active",
    "{adapter}",
    "1 while requests of a LoRA adapter are running, or waiting, by state; absent while it has none.",
    "adapter",
    "state",
    across=Across.MAX,
)
LORA_SLOTS: Final = _gauge("lora_slots", "{adapter}", "LoRA adapters that fit into one batch.", across=Across.MAX)
LORA_SLOTS_USED: Final = _gauge(
    "lora_slots_used", "{adapter}", "LoRA adapters that are in the places of a batch.", across=Across.MAX
)
REQUESTS_RUNNING_LIMIT: Final = _gauge(
    "requests_running_limit", "{request}", "Maximum number of requests that the engine runs at once."
)
REQUESTS_FINISHED: Final = _counter(
    "requests_finished_total",
    "{request}",
    "Requests that completed, by finish reason.",
    "reason",
)
REQUESTS_FAILED: Final = _counter(
    "requests_failed_total",
    "{request}",
    "Requests that did not complete, by reason: aborted, failed or rejected.",
    "reason",
)
PROXY_TARGET: Final = "/proxy"
"""What the name of a target ends with that is what the measuring proxy saw of an engine with metrics of its own.

The same requests are counted under both names, in buckets that differ."""


def proxied(target: str) -> str:
    """The name of what a measuring proxy saw of a target."""
    return f"{target}{PROXY_TARGET}"


NO_FAULT: Final = ("abort", "aborted", "client_error", "proxy_stopped")
"""Reasons of `REQUESTS_FAILED` that are no failure of the engine: the client left, as engines (abort) and the measuring
proxy (aborted) call it, or asked for what there is not, or the proxy itself ended."""
PROXY_UNMEASURED: Final = _counter(
    "proxy_requests_unmeasured_total",
    "{request}",
    "Requests through the measuring proxy whose tokens could not be counted, by cause (usage_missing: the engine did "
    "not report them; compressed, format, too_long: the response could not be read).",
    "reason",
    subject=Subject.PROXY,
)
PROXY_FIRST_TOKEN_WAIT: Final = _gauge(
    "proxy_first_token_wait_seconds",
    "s",
    "Age of the oldest streamed request through the measuring proxy without a first token; 0 if there is none.",
    across=Across.MAX,
    subject=Subject.PROXY,
)
PROXY_FIRST_TOKEN_AFTER_LOAD: Final = _histogram(
    "proxy_first_token_after_load_seconds",
    "s",
    "Time to first token of requests through the measuring proxy for which the engine had to load the model. Neither "
    "this time nor their duration is among those of other requests, or counts towards their objectives.",
    Subject.PROXY,
)
PROXY_SILENCE: Final = _gauge(
    "proxy_silence_seconds",
    "s",
    "Time during which streamed requests have been in progress through the measuring proxy without a byte of any "
    "response, or clients have left one after the other and none got any output; 0 if neither is so.",
    across=Across.MAX,
    subject=Subject.PROXY,
)
PROXY_OVERDUE: Final = _gauge(
    "proxy_requests_overdue",
    "{request}",
    "Requests in progress through the measuring proxy that have already missed an objective (ttft: streamed, and "
    "without a first token; request_duration: not finished).",
    "slo",
    subject=Subject.PROXY,
)
PROXY_MISSED: Final = _counter(
    "proxy_requests_missed_total",
    "{request}",
    "Requests through the measuring proxy that ended later than an objective without what it is about (ttft: streamed, "
    "and without a first token; request_duration: without their end): their clients left, or they failed. They count "
    "in llm_slo_requests_total, and not as good.",
    "slo",
    subject=Subject.PROXY,
)
HTTP_RESPONSES: Final = _counter(
    "http_responses_total", "{response}", "HTTP responses of the inference endpoints, by class of status code.", "code"
)
PREEMPTIONS: Final = _counter(
    "preemptions_total",
    "{preemption}",
    "Running requests that were preempted (SGLang: retracted) because the KV cache was full.",
)
PREEMPTED_TOKENS: Final = _counter(
    "preempted_tokens_total",
    "{token}",
    "Tokens of requests that were put back (preempted, retracted): their KV cache is gone and is computed again; by "
    "kind (prompt, generation).",
    "kind",
)
PROMPT_TOKENS: Final = _counter("prompt_tokens_total", "{token}", "Prompt tokens, including cached ones.")
GENERATION_TOKENS: Final = _counter("generation_tokens_total", "{token}", "Generated tokens.")
PROMPT_TOKENS_CACHED: Final = _counter(
    "prompt_tokens_cached_total", "{token}", "Prompt tokens found in a cache, which needed no prefill."
)
PROCESSED_TOKENS: Final = _counter(
    "processed_tokens_total",
    "{token}",
    "Tokens computed by the engine, counted at each step and without cached ones, by phase (prefill, decode).",
    "phase",
)
WAITING_TOKENS: Final = _gauge("waiting_tokens", "{token}", "Uncached prompt tokens of waiting requests.")
ENGINE_STEPS: Final = _counter(
    "engine_steps_total",
    "{step}",
    "Forward passes (engine steps). If it stops growing while requests run, the engine is stalled.",
)
ENGINE_STEP_TOKENS: Final = _histogram("engine_step_tokens", "{token}", "Tokens in one engine step.")
BATCH_TOKENS: Final = _gauge("batch_tokens", "{token}", "Tokens in the last engine step.")
FORWARD_SECONDS: Final = _gauge("forward_seconds", "s", "Duration of the last forward pass.", across=Across.MAX)
PREFILL_THROUGHPUT: Final = _gauge(
    "prefill_tokens_per_second",
    "{token}/s",
    "Prefill throughput as averaged by the engine; prefer rates of the token counters.",
)
DECODE_THROUGHPUT: Final = _gauge(
    "decode_tokens_per_second",
    "{token}/s",
    "Decode throughput as averaged by the engine; prefer rates of the token counters.",
)

# Latency -------------------------------------------------------------------------------------------------------------
TIME_TO_FIRST_TOKEN: Final = _histogram(
    "time_to_first_token_seconds", "s", "Time from a request's arrival to its first token, including time in the queue."
)
INTER_TOKEN_LATENCY: Final = _histogram(
    "inter_token_latency_seconds", "s", "Time between successive tokens of one request."
)
TIME_PER_OUTPUT_TOKEN: Final = _histogram(
    "time_per_output_token_seconds",
    "s",
    "Mean time per token after the first one, observed once per finished request.",
)
REQUEST_DURATION: Final = _histogram("request_duration_seconds", "s", "Time from a request's arrival to its end.")
REQUEST_QUEUE: Final = _histogram(
    "request_queue_seconds", "s", "Time from a request's arrival until it is first scheduled."
)
REQUEST_PREFILL: Final = _histogram(
    "request_prefill_seconds", "s", "Time from a request's first scheduling to its first token."
)
REQUEST_DECODE: Final = _histogram("request_decode_seconds", "s", "Time from a request's first token to its last one.")
REQUEST_PROMPT_TOKENS: Final = _histogram("request_prompt_tokens", "{token}", "Prompt tokens of one request.")
REQUEST_GENERATION_TOKENS: Final = _histogram(
    "request_generation_tokens", "{token}", "Generated tokens of one request."
)

# Speculative decoding ------------------------------------------------------------------------------------------------
SPEC_DECODE_DRAFT_TOKENS: Final = _counter("spec_decode_draft_tokens_total", "{token}", "Draft tokens proposed.")
SPEC_DECODE_ACCEPTED_TOKENS: Final = _counter(
    "spec_decode_accepted_tokens_total", "{token}", "Draft tokens accepted by the model."
)
SPEC_DECODE_ACCEPTANCE: Final = _gauge(
    "spec_decode_acceptance_ratio",
    "1",
    "Share of draft tokens accepted, as averaged by the engine; prefer rates of the token counters.",
    across=Across.MAX,
)

SPEC_DECODE_DRAFTS: Final = _counter(
    "spec_decode_drafts_total", "{draft}", "Drafts that the model has verified: steps of speculative decoding."
)
SPEC_DECODE_ACCEPTED_BY_POSITION: Final = _counter(
    "spec_decode_accepted_tokens_by_position_total",
    "{token}",
    "Accepted draft tokens by their position in the draft, from 0; divide by the drafts for the acceptance of each.",
    "position",
)
# KV cache ------------------------------------------------------------------------------------------------------------
KV_CACHE_CAPACITY: Final = _gauge("kv_cache_capacity_tokens", "{token}", "Capacity of the KV cache in tokens.")
KV_CACHE_USED: Final = _gauge(
    "kv_cache_used_tokens", "{token}", "KV cache in use by requests, in tokens; cannot be reclaimed."
)
KV_CACHE_EVICTABLE: Final = _gauge(
    "kv_cache_evictable_tokens",
    "{token}",
    "KV cache that holds only reusable prefixes, in tokens; reclaimed when needed.",
)
KV_CACHE_USAGE: Final = _gauge(
    "kv_cache_usage_ratio",
    "1",
    "Share of the KV cache in use by requests, which cannot be reclaimed.",
    across=Across.CAPACITY_WEIGHTED,
)
PREFIX_CACHE_QUERIES: Final = _counter(
    "prefix_cache_queries_total", "{token}", "Prompt tokens looked up in the prefix cache."
)
PREFIX_CACHE_HITS: Final = _counter(
    "prefix_cache_hits_total", "{token}", "Prompt tokens found in the prefix cache, in any tier."
)
PREFIX_CACHE_HIT_RATIO: Final = _gauge(
    "prefix_cache_hit_ratio",
    "1",
    "Hit ratio as averaged by the engine over its own window; prefer rates of hits and queries.",
    across=Across.NONE,
)

PREFIX_CACHE_HITS_BY_TIER: Final = _counter(
    "prefix_cache_hits_by_tier_total",
    "{token}",
    "Prompt tokens found in the prefix cache by where they were: device (the GPU), host (its memory), storage (disk or "
    "a store), peer (another engine), external (behind a connector that does not say).",
    "cache_tier",
)
EXTERNAL_CACHE_QUERIES: Final = _counter(
    "external_cache_queries_total",
    "{token}",
    "Prompt tokens that were not in the engine's own cache and were looked up behind a KV connector.",
)
EXTERNAL_CACHE_HITS: Final = _counter(
    "external_cache_hits_total", "{token}", "Prompt tokens found behind a KV connector."
)
KV_CACHE_HOST_CAPACITY: Final = _gauge(
    "kv_cache_host_capacity_tokens", "{token}", "Tokens that the cache tier in the host's memory can hold."
)
KV_CACHE_HOST_USED: Final = _gauge(
    "kv_cache_host_used_tokens", "{token}", "Tokens in the cache tier in the host's memory."
)
MM_CACHE_QUERIES: Final = _counter(
    "mm_cache_queries_total", "{item}", "Images, sounds and videos looked up in the cache of multi-modal inputs."
)
MM_CACHE_HITS: Final = _counter(
    "mm_cache_hits_total", "{item}", "Images, sounds and videos found in the cache of multi-modal inputs."
)

# KV cache on its way: disaggregated prefill and decode, offloading ---------------------------------------------------
KV_TRANSFER_BYTES: Final = _counter(
    "kv_transfer_bytes_total",
    "By",
    "KV cache moved between engines or tiers, by connector and operation (load: to the GPU, store: from it).",
    "connector",
    "operation",
)
KV_TRANSFER_SECONDS: Final = _counter(
    "kv_transfer_seconds_total",
    "s",
    "Time that transfers of KV cache between engines or tiers took, summed over those that ran at once.",
    "connector",
    "operation",
)
KV_TRANSFERS: Final = _counter(
    "kv_transfers_total", "{transfer}", "Transfers of KV cache that were done.", "connector", "operation"
)
KV_TRANSFER_FAILURES: Final = _counter(
    "kv_transfer_failures_total", "{failure}", "Transfers of KV cache that failed, by reason.", "connector", "reason"
)
ENGINE_ROLE: Final = _gauge(
    "engine_role",
    "{info}",
    "Always 1; the engine's part in disaggregated serving in a label (prefill, decode, both, dynamic; unified: none).",
    "engine_role",
    across=Across.NONE,
)
EXPERT_BALANCE: Final = _counter(
    "expert_balance_score_total",
    "{score}",
    "Balance of load among experts (mean by maximum, 1 is even) summed over the passes of which it was taken.",
    "phase",
)
EXPERT_BALANCE_PASSES: Final = _counter(
    "expert_balance_passes_total", "{pass}", "Forward passes of which the balance was taken.", "phase"
)
# Model and engine ----------------------------------------------------------------------------------------------------
MODEL_INFO: Final = _gauge(
    "model_info",
    "{info}",
    "Always 1; properties of the model as labels.",
    "architecture",
    "parameters",
    "quantization",
    "format",
    "digest",
    across=Across.NONE,
)
MODEL_CONTEXT: Final = _gauge(
    "model_context_tokens", "{token}", "Maximum context length of one request: prompt plus output.", across=Across.NONE
)
MODEL_TRAINED_CONTEXT: Final = _gauge(
    "model_trained_context_tokens",
    "{token}",
    "Maximum context length that the model was trained for.",
    across=Across.NONE,
)
MODEL_PARAMETERS: Final = _gauge(
    "model_parameters", "{parameter}", "Number of parameters of the model.", across=Across.NONE
)
MODEL_MEMORY: Final = _gauge(
    "model_memory_bytes",
    "By",
    "Memory of the model by kind, as reported by the engine: weights, kv_cache, graph, total (GPU and host), device "
    "(the part on GPUs).",
    "kind",
)
ENGINE_GPU_RESERVATION: Final = _gauge(
    "engine_gpu_memory_reservation_ratio",
    "1",
    "Share of each of its GPUs' memory that the engine is configured to reserve at startup.",
    across=Across.MAX,
)
MODEL_LOADED: Final = _gauge("model_loaded", "{model}", "1 while the model is in memory.", across=Across.NONE)
MODEL_ASLEEP: Final = _gauge(
    "model_asleep",
    "{model}",
    "1 while the model sleeps, on request or because it was idle: it is out of GPU memory until it is woken.",
    across=Across.MAX,
)
MODEL_EXPIRY: Final = _gauge(
    "model_expiry_timestamp_seconds",
    "s",
    "Unix time at which the model is unloaded if it stays idle; absent if never.",
    across=Across.NONE,
)
MODEL_OFFLOAD: Final = _gauge(
    "model_offload_ratio",
    "1",
    "Share of the model's memory that is on GPUs; below 1, part of it has spilled to the CPU.",
    across=Across.NONE,
)
MODELS_LOADED: Final = _whole("models_loaded", Kind.GAUGE, "{model}", "Models in memory.")
MODELS_INSTALLED: Final = _whole("models_installed", Kind.GAUGE, "{model}", "Models in the engine's library on disk.")
MODELS_INSTALLED_BYTES: Final = _whole(
    "models_installed_bytes",
    Kind.GAUGE,
    "By",
    "Total size on disk of the models in the library; files shared by several models count for each.",
)
ENGINE_INFO: Final = _whole(
    "engine_info", Kind.GAUGE, "{info}", "Always 1; the engine's version as a label.", "version"
)
ENGINE_START: Final = _gauge(
    "engine_start_time_seconds", "s", "Unix time at which the engine's server process started.", across=Across.NONE
)

# Derived by the exporter ---------------------------------------------------------------------------------------------
KV_CACHE_HEADROOM_TOKENS: Final = _derived_gauge(
    "kv_cache_headroom_tokens",
    "{token}",
    "KV cache available to new requests: free and evictable tokens minus the demand of waiting requests.",
)
KV_CACHE_HEADROOM_RATIO: Final = _derived_gauge(
    "kv_cache_headroom_ratio",
    "1",
    "KV cache headroom as a share of its capacity.",
    across=Across.CAPACITY_WEIGHTED,
)
KV_CACHE_HEADROOM_REQUESTS: Final = _derived_gauge(
    "kv_cache_headroom_requests",
    "{request}",
    "Requests of the recent mean size that can still be admitted and finish without running out of KV cache.",
)
KV_CACHE_EXHAUSTION: Final = _derived_gauge(
    "kv_cache_exhaustion_seconds",
    "s",
    "Time until the KV cache is full at the current demand; absent if it is not filling up.",
    across=Across.NONE,
)
KV_CACHE_USAGE_PEAK: Final = _derived_gauge(
    "kv_cache_usage_peak_ratio",
    "1",
    "Highest KV cache usage among the polls of the last minute.",
    across=Across.MAX,
)
TTFT_SLOW: Final = _derived_gauge(
    "ttft_slow_ratio",
    "1",
    "Share of requests whose TTFT missed the objective in a sliding window, those included that a measuring proxy saw "
    "end without a first token; absent without traffic.",
    "window",
    across=Across.NONE,
)
TTFT_WINDOW_REQUESTS: Final = _derived_gauge(
    "ttft_window_requests",
    "{request}",
    "Requests of the sliding window of llm_ttft_slow_ratio: those that got their first token in it, or ended without.",
    "window",
)
FIRST_TOKENS_OVERDUE: Final = _derived_gauge(
    "first_tokens_overdue",
    "{request}",
    "Waiting requests that have missed the TTFT objective already: as many as waited for longer than that, less the "
    "first tokens since. Absent where there are none, and where a measuring proxy counts for the engine.",
)
KV_SATURATION_RISK: Final = _derived_gauge(
    "kv_saturation_risk_ratio",
    "1",
    "Probability that requests are preempted or blocked by a full KV cache within five minutes.",
    across=Across.MAX,
)
SATURATION_HIGH_WATER: Final = _derived_gauge(
    "saturation_high_water_ratio",
    "1",
    "How close the last ten minutes came to KV cache exhaustion or to TTFT beyond the objective (0 to 1), from the "
    "highest TTFT forecast and the highest KV cache demand. Use it to rank engines; it is not a probability.",
    across=Across.MAX,
)
LOAD_HEADROOM: Final = _derived_gauge(
    "load_headroom_ratio",
    "1",
    "Multiple of its traffic of the last 15 minutes that the engine can take within the objective; 16 means 16 or "
    "more. Absent until there were ten busy minutes.",
    "objective",
    across=Across.NONE,
)
SUSTAINABLE_REQUESTS: Final = _derived_gauge(
    "sustainable_requests_per_second",
    "{request}/s",
    "Requests per second, like those of the last 15 minutes, that the engine can take within the objective.",
    "objective",
)
LOAD_HEADROOM_BINDING: Final = _derived_gauge(
    "load_headroom_binding",
    "{flag}",
    "1 for the resource (kv_cache, compute, concurrency) that is the bottleneck at the end of the load headroom, 0 for "
    "the others.",
    "objective",
    "resource",
    across=Across.NONE,
)
LOAD_HEADROOM_SUSPECT: Final = _derived_gauge(
    "load_headroom_suspect",
    "{flag}",
    "1 while tokens are generated more than 15 % faster or slower than predicted: the load headroom is then "
    "unreliable.",
    across=Across.MAX,
)
SATURATION: Final = _derived_gauge(
    "saturation_ratio",
    "1",
    "Present arrivals and waiting requests, as a share of what the engine can take within the TTFT objective: 1 at the "
    "limit, 2 at most. Autoscale on it (`max`), target 0.8.",
    "resource",
    across=Across.MAX,
)
PRESSURE: Final = _derived_gauge(
    "pressure_ratio",
    "1",
    "Demand on a resource (kv_cache, concurrency, prefill, gpu_memory) over what there is of it; no share of what the "
    "engine can take.",
    "resource",
    across=Across.MAX,
)
OOM_RISK: Final = Metric(
    "llm_oom_risk_ratio",
    Kind.GAUGE,
    "1",
    "Probability that an allocation fails for lack of memory within 30 minutes: on a GPU (gpu), or on the engine's "
    "host or in its control group (host).",
    (*_GPU, *_SOURCE, "memory"),
    subject=Subject.DERIVED,
)
SPILL_RISK: Final = _derived_gauge(
    "spill_risk_ratio",
    "1",
    "Probability that the model, or its next load, does not fit on the GPUs and partly runs on the CPU.",
    across=Across.MAX,
)
EVICTION_RISK: Final = _derived_gauge(
    "eviction_risk_ratio",
    "1",
    "Probability that the loaded model is unloaded to make space for another one within five minutes.",
    across=Across.MAX,
)
QUEUE_OVERFLOW_RISK: Final = _derived_gauge(
    "queue_overflow_risk_ratio",
    "1",
    "Probability that the engine rejects requests because its queue is full within five minutes; only for engines with "
    "a queue limit by default (Ollama: 512) whose waiting requests are known.",
    across=Across.MAX,
)
TOKEN_THROUGHPUT: Final = _derived_gauge(
    "tokens_per_second",
    "{token}/s",
    "Tokens per second, by phase (prompt, generation): a mean that fades with a time constant of one minute.",
    "phase",
)
ENGINE_GPUS: Final = _derived(
    "engine_gpus", Kind.GAUGE, "{gpu}", "Number of GPUs that the engine holds memory on, or is configured with."
)
ENGINE_COST: Final = _derived(
    "engine_cost_total",
    Kind.COUNTER,
    "{currency}",
    "Cost of the engine's GPUs since llm-headroom started to monitor it, in the configured currency.",
    "currency",
)
ENGINE_ENERGY: Final = _derived(
    "engine_energy_joules_total",
    Kind.COUNTER,
    "J",
    "Energy of the engine's GPUs since llm-headroom started to monitor it; a shared GPU's energy is split by memory "
    "held.",
)
COST_PER_MILLION_TOKENS: Final = _derived(
    "cost_per_million_tokens",
    Kind.GAUGE,
    "{currency}",
    "Cost of the engine's GPUs per million generated tokens; both fade with a time constant of five minutes.",
    "currency",
)
ENERGY_PER_TOKEN: Final = _derived(
    "energy_per_token_joules",
    Kind.GAUGE,
    "J",
    "Energy of the engine's GPUs per generated token; both fade with a time constant of five minutes.",
)
ENGINE_STATE: Final = _derived(
    "engine_state",
    Kind.GAUGE,
    "{flag}",
    "1 for the current state of the engine's model, 0 for each other one (down, misread, stalled, failing, blocked, "
    "slow, loading, lagging, tight, unknown, asleep, idle, ok). Exported also while the engine does not respond.",
    "model",
    "state",
)
ENGINE_STALLED: Final = _derived_gauge(
    "engine_stalled",
    "{flag}",
    "1 if there are requests but neither steps nor tokens have increased for a minute.",
    across=Across.MAX,
)
ENGINE_RESTARTS: Final = _derived_counter(
    "engine_restarts_total", "{restart}", "Restarts of the engine, recognised by a reset of its counters."
)
MODEL_LOADS: Final = _derived_counter(
    "model_loads_total",
    "{load}",
    "Model loads observed since llm-headroom started to monitor the engine. Frequent loads mean that models evict each "
    "other, or that requests ask for different context lengths.",
)
MODEL_UNLOADS: Final = _derived_counter(
    "model_unloads_total", "{unload}", "Model unloads observed since llm-headroom started to monitor the engine."
)
SLO_REQUESTS: Final = _derived_counter(
    "slo_requests_total",
    "{request}",
    "Requests that count towards an objective (tokens, for inter-token latency); not reset when the engine restarts.",
    "slo",
)
SLO_REQUESTS_GOOD: Final = _derived_counter(
    "slo_requests_good_total", "{request}", "Requests (tokens) that met the threshold of an objective.", "slo"
)
SLO_THRESHOLD: Final = _derived_gauge(
    "slo_threshold_seconds",
    "s",
    "Threshold of an objective, rounded up to the next bucket boundary of the engine's histogram.",
    "slo",
    across=Across.NONE,
)
SLO_OBJECTIVE: Final = _derived_gauge(
    "slo_objective_ratio",
    "1",
    "Target share of requests that meet the threshold of an objective.",
    "slo",
    across=Across.NONE,
)

# Router (gateway) ----------------------------------------------------------------------------------------------------
ROUTER_REQUESTS: Final = _router_counter("router_requests_total", "{request}", "Requests received by the router.")
ROUTER_ERRORS: Final = _router_counter(
    "router_errors_total", "{request}", "Requests that failed in the router, by reason.", "reason"
)
ROUTER_REJECTED: Final = _router_counter(
    "router_rejected_total", "{request}", "Requests rejected by the router (rate limit, overload), by reason.", "reason"
)
ROUTER_RETRIES: Final = _router_counter("router_retries_total", "{request}", "Requests retried by the router.")
ROUTER_RETRIES_EXHAUSTED: Final = _router_counter(
    "router_retries_exhausted_total", "{request}", "Requests that the router gave up after all its retries."
)
ROUTER_ERROR_RESPONSES: Final = _router_counter(
    "router_error_responses_total",
    "{response}",
    "Responses of the router's inference endpoints that carried an error code, by that code.",
    "reason",
)
ROUTER_RESPONSE_HEAD: Final = _histogram(
    "router_response_head_seconds",
    "s",
    "Time from a request's arrival at the router to the head of its response.",
    subject=Subject.ROUTER,
)
ROUTER_REQUESTS_ACTIVE: Final = _router_gauge(
    "router_requests_active", "{request}", "Requests in progress in the router."
)
ROUTER_REQUESTS_WAITING: Final = _router_gauge(
    "router_requests_waiting", "{request}", "Requests waiting for admission in the router."
)
ROUTER_WORKERS: Final = _router_gauge("router_workers", "{worker}", "Workers known to the router.")
ROUTER_WORKER_HEALTHY: Final = _router_gauge(
    "router_worker_healthy",
    "{worker}",
    "1 if the router considers the worker healthy, else 0.",
    "worker",
    across=Across.NONE,
)
ROUTER_WORKER_REQUESTS: Final = _router_gauge(
    "router_worker_requests_active", "{request}", "Requests in progress at the worker.", "worker"
)
ROUTER_CIRCUIT_STATE: Final = _router_gauge(
    "router_worker_circuit_state",
    "{state}",
    "State of the router's circuit breaker for the worker: 0 closed, 1 open (no requests are sent), 2 half open.",
    "worker",
    across=Across.NONE,
)

# GPU -----------------------------------------------------------------------------------------------------------------
GPU_INFO: Final = _gpu(
    "info",
    Kind.GAUGE,
    "{info}",
    "Always 1; name, versions and PCI address of the device as labels; for a MIG instance, also its parent's uuid and "
    "its profile.",
    "name",
    "driver",
    "cuda",
    "vbios",
    "pci_bus_id",
    "mig_parent",
    "mig_profile",
)
GPU_MEMORY_TOTAL: Final = _gpu("memory_total_bytes", Kind.GAUGE, "By", "Total memory of the device.")
GPU_MEMORY_USED: Final = _gpu(
    "memory_used_bytes",
    Kind.GAUGE,
    "By",
    "Memory allocated by processes; includes reserved memory where the driver does not report that separately.",
)
GPU_MEMORY_FREE: Final = _gpu("memory_free_bytes", Kind.GAUGE, "By", "Memory that can still be allocated.")
GPU_MEMORY_UNIFIED: Final = _gpu(
    "memory_unified",
    Kind.GAUGE,
    "{flag}",
    "1 if the device shares the host's memory (GB10, Jetson): total and free memory are the host's then.",
)
GPU_MEMORY_RESERVED: Final = _gpu(
    "memory_reserved_bytes", Kind.GAUGE, "By", "Memory reserved by the driver and firmware."
)
GPU_MEMORY_HEADROOM: Final = _gpu(
    "memory_headroom_bytes",
    Kind.GAUGE,
    "By",
    "Memory that engines can still allocate on the device: its free memory, never total minus used.",
)
GPU_MEMORY_HEADROOM_RATIO: Final = _gpu(
    "memory_headroom_ratio", Kind.GAUGE, "1", "Headroom as a share of the device's memory."
)
GPU_MEMORY_ENGINE: Final = _held(
    "memory_engine_bytes",
    Kind.GAUGE,
    "By",
    "Memory held by an engine's processes, by use (weights, kv_used, kv_evictable, kv_free, kv_cache if its use is "
    "unknown, graph, model if the engine reports no parts, other). The kinds add up to the engine's total.",
    "kind",
)
GPU_MEMORY_UNATTRIBUTED: Final = _gpu(
    "memory_unattributed_bytes",
    Kind.GAUGE,
    "By",
    "Used memory that is not attributed to any engine. Engines, unattributed, reserved and free add up to total.",
)
GPU_MEMORY_RESERVATION: Final = _held(
    "memory_engine_reservation_bytes",
    Kind.GAUGE,
    "By",
    "Memory that an engine uses or is configured to use, whichever is more.",
)
GPU_MEMORY_OVERCOMMITTED: Final = _gpu(
    "memory_overcommitted_bytes",
    Kind.GAUGE,
    "By",
    "Amount by which engines' reservations, unattributed and reserved memory together exceed the device's memory; else "
    "0.",
)
GPU_ATTRIBUTION_INFO: Final = _held(
    "memory_attribution_info",
    Kind.GAUGE,
    "{info}",
    "Always 1; method by which memory of the device was attributed to the engine (pid, configured_pid, container, "
    "process_group, cgroup, gpus, elimination).",
    "method",
)
GPU_PROCESS_MEMORY: Final = _gpu(
    "process_memory_bytes", Kind.GAUGE, "By", "Memory held by one process on the device.", "pid", "process"
)
GPU_UTILIZATION: Final = _gpu(
    "utilization_ratio",
    Kind.GAUGE,
    "1",
    "Share of the last sample period during which a kernel was running.",
    *_SOURCE,  # an engine that exposes its own cannot name the device
)
GPU_MEMORY_CONTROLLER: Final = _gpu(
    "memory_controller_utilization_ratio",
    Kind.GAUGE,
    "1",
    "Share of the last sample period during which device memory was read or written: bandwidth, not occupancy.",
)
GPU_POWER: Final = _gpu("power_watts", Kind.GAUGE, "W", "Power draw.")
GPU_POWER_LIMIT: Final = _gpu("power_limit_watts", Kind.GAUGE, "W", "Power limit in force.")
GPU_ENERGY: Final = _gpu("energy_joules_total", Kind.COUNTER, "J", "Energy used since the driver was loaded.")
GPU_TEMPERATURE: Final = _gpu(
    "temperature_celsius", Kind.GAUGE, "Cel", "Temperature by sensor (gpu, memory).", "sensor", *_SOURCE
)
GPU_FAN: Final = _gpu(
    "fan_speed_ratio", Kind.GAUGE, "1", "Intended fan speed as a share of the maximum; may exceed 1.", "fan"
)
GPU_CLOCK: Final = _gpu("clock_hertz", Kind.GAUGE, "Hz", "Clock by domain (graphics, sm, memory, video).", "domain")
GPU_CLOCK_MAX: Final = _gpu("clock_max_hertz", Kind.GAUGE, "Hz", "Highest clock by domain.", "domain")
GPU_THROTTLE: Final = _gpu(
    "throttle_active",
    Kind.GAUGE,
    "{flag}",
    "1 while the reason keeps clocks below their maximum, else 0; idle and application_clocks are harmless.",
    "reason",
)
GPU_THROTTLE_TIME: Final = _gpu(
    "throttle_seconds_total",
    Kind.COUNTER,
    "s",
    "Time during which a policy reduced the clocks (power, thermal, sync_boost, board_limit, low_utilization, "
    "reliability).",
    "policy",
)
GPU_XID_ERRORS: Final = _gpu(
    "xid_errors_total",
    Kind.COUNTER,
    "{error}",
    "Xid errors reported by the driver since llm-headroom started, by Xid number. Absent until the first one.",
    "xid",
)
GPU_XID_LAST: Final = _gpu(
    "xid_last_timestamp_seconds", Kind.GAUGE, "s", "Unix time of the latest Xid error with this number.", "xid"
)
GPU_XID_WATCHED: Final = _gpu(
    "xid_watched", Kind.GAUGE, "{flag}", "1 if Xid errors of the device are counted, 0 if the driver does not allow it."
)
GPU_RECOVERY_ACTION: Final = _gpu(
    "recovery_action",
    Kind.GAUGE,
    "{action}",
    "Action requested by the driver: 0 none, 1 reset the GPU, 2 reboot the node, 3 stop peer-to-peer work, 4 drain and "
    "reset; further values as in nvmlDeviceGpuRecoveryAction_t.",
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
    "row_remap_pending", Kind.GAUGE, "{flag}", "1 if a row will be remapped at the next reset."
)
GPU_ROW_REMAP_FAILURE: Final = _gpu("row_remap_failure", Kind.GAUGE, "{flag}", "1 if a row could not be remapped.")
GPU_STATE: Final = _gpu(
    "state",
    Kind.GAUGE,
    "{flag}",
    "1 for the current state of the GPU, 0 for each other one (lost, error, throttled, full, unknown, ok). Exported "
    "also while the GPU cannot be read.",
    "state",
)
GPU_PCIE_REPLAYS: Final = _gpu("pcie_replays_total", Kind.COUNTER, "{replay}", "PCIe replays (retransmitted packets).")
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
    "Data transferred over all NVLinks, by direction (transmit, receive).",
    "direction",
)
GPUS: Final = Metric(
    "llm_gpus", Kind.GAUGE, "{gpu}", "Number of GPUs listed by NVML, including lost ones.", subject=Subject.GPU
)

# Host ----------------------------------------------------------------------------------------------------------------
HOST_MEMORY_LIMIT: Final = _host(
    "host_memory_limit_bytes",
    Kind.GAUGE,
    "By",
    "Memory limit of the engine's control group: the lowest one visible in its hierarchy. Absent if there is none.",
)
HOST_MEMORY_USED: Final = _host(
    "host_memory_used_bytes",
    Kind.GAUGE,
    "By",
    "Working set of the engine's control group: its memory minus inactive file cache.",
)
HOST_MEMORY_PRESSURE: Final = _host(
    "host_memory_pressure_seconds_total",
    Kind.COUNTER,
    "s",
    "Time during which some or all (full) tasks of the engine's control group waited for memory (PSI).",
    "severity",
)
HOST_OOM_KILLS: Final = _host(
    "host_memory_oom_kills_total",
    Kind.COUNTER,
    "{kill}",
    "Processes in the engine's control group killed by the OOM killer, its main process included, whose death ends "
    "the group.",
)
HOST_MEMORY_INFO: Final = _host(
    "host_memory_info",
    Kind.GAUGE,
    "{info}",
    "Always 1; the version of the engine's control group (v1, v2), how it was found (listener, configured, container) "
    "and its scope (engine, or shared with other targets or this exporter).",
    "cgroup",
    "method",
    "scope",
)
HOST_PROCESS_MEMORY: Final = _host(
    "host_process_resident_bytes",
    Kind.GAUGE,
    "By",
    "Resident memory of the engine's processes by kind (anonymous, file, shared). Pages mapped by several processes "
    "count for each.",
    "kind",
)
HOST_PROCESSES: Final = _host(
    "host_processes",
    Kind.GAUGE,
    "{process}",
    "Number of processes of the engine: the listening process and its descendants.",
)
HOST_PROCESS_START: Final = _host(
    "host_process_start_time_seconds",
    Kind.GAUGE,
    "s",
    "Unix time at which the engine's process started; it changes with a restart.",
)

# Exporter ------------------------------------------------------------------------------------------------------------
UP: Final = _collection("up", Kind.GAUGE, "{source}", "1 if the last collection of the source succeeded, else 0.")
SOURCE_LAST_SUCCESS: Final = _collection(
    "source_last_success_timestamp_seconds", Kind.GAUGE, "s", "Unix time of the last successful collection."
)
SOURCE_DURATION: Final = _collection("source_duration_seconds", Kind.GAUGE, "s", "Duration of the last collection.")
SOURCE_ERRORS: Final = _collection(
    "source_errors_total",
    Kind.COUNTER,
    "{error}",
    "Failed collections and failed parts of collections, by cause.",
    "cause",
)
SOURCE_SAMPLES: Final = _collection(
    "source_samples", Kind.GAUGE, "{sample}", "Samples of the last collection, by state: how each was handled.", "state"
)
LABEL_VALUES_CAPPED: Final = _collection(
    "label_values_capped_total",
    Kind.COUNTER,
    "{value}",
    "Label values beyond the limit, exported as `other`, by label.",
    "label",
)
BUILD_INFO: Final = _own(
    "build_info", Kind.GAUGE, "{info}", "Always 1; the version of llm-headroom as a label.", "version", "python"
)
CONFIG_RELOAD_SUCCESS: Final = _own(
    "config_last_reload_success",
    Kind.GAUGE,
    "{flag}",
    "1 if the last reload of the configuration succeeded, else 0.",
)
CONFIG_RELOAD_TIME: Final = _own(
    "config_last_reload_success_timestamp_seconds",
    Kind.GAUGE,
    "s",
    "Unix time of the last successful reload of the configuration.",
)
CERTIFICATE_NOT_BEFORE: Final = _own(
    "certificate_not_before_timestamp_seconds",
    Kind.GAUGE,
    "s",
    "Unix time from which a certificate is valid that llm-headroom shows to clients, engines or receivers.",
    "file",
)
CERTIFICATE_NOT_AFTER: Final = _own(
    "certificate_not_after_timestamp_seconds",
    Kind.GAUGE,
    "s",
    "Unix time at which a certificate runs out that llm-headroom shows to clients, engines or receivers; of several in "
    "the file the first to do so.",
    "file",
)
NOTIFICATIONS: Final = _own(
    "notifications_total",
    Kind.COUNTER,
    "{message}",
    "Messages about states by receiver and result: sent, failed (given up after its tries), dropped (too many waited).",
    "receiver",
    "result",
)
EXPORTER_CPU: Final = _own(
    "exporter_cpu_seconds_total",
    Kind.COUNTER,
    "s",
    "Deprecated, removed in the next release: use process_cpu_seconds_total.",
)
EXPORTER_MEMORY: Final = _own(
    "exporter_resident_memory_bytes",
    Kind.GAUGE,
    "By",
    "Deprecated, removed in the next release: use process_resident_memory_bytes.",
)
PROCESS_CPU: Final = _process(
    "process_cpu_seconds_total", Kind.COUNTER, "s", "User and system CPU time of llm-headroom."
)
PROCESS_MEMORY: Final = _process("process_resident_memory_bytes", Kind.GAUGE, "By", "Resident memory of llm-headroom.")
PROCESS_VIRTUAL_MEMORY: Final = _process(
    "process_virtual_memory_bytes", Kind.GAUGE, "By", "Virtual memory of llm-headroom."
)
PROCESS_START: Final = _process(
    "process_start_time_seconds", Kind.GAUGE, "s", "Unix time at which llm-headroom started."
)
PROCESS_FILES: Final = _process(
    "process_open_fds", Kind.GAUGE, "{file}", "Open file descriptors of llm-headroom, including its connections."
)
PROCESS_FILES_LIMIT: Final = _process(
    "process_max_fds", Kind.GAUGE, "{file}", "Maximum number of file descriptors that llm-headroom may open."
)
PYTHON_INFO: Final = _process(
    "python_info",
    Kind.GAUGE,
    "{info}",
    "Always 1; the Python version that llm-headroom runs on.",
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
    "Objects freed by the garbage collector, by generation.",
    "generation",
)
GC_UNCOLLECTABLE: Final = _process(
    "python_gc_objects_uncollectable_total",
    Kind.COUNTER,
    "{object}",
    "Objects that the garbage collector found but could not free, by generation.",
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
    "OTLP exports by result: accepted, partial (some points were rejected), dropped.",
    "result",
)
OTLP_DROPPED: Final = _own(
    "otlp_dropped_points_total",
    Kind.COUNTER,
    "{point}",
    "Data points not accepted by the OTLP collector, by cause.",
    "cause",
)
OTLP_LAST_SUCCESS: Final = _own(
    "otlp_last_success_timestamp_seconds",
    Kind.GAUGE,
    "s",
    "Unix time of the last OTLP export that the collector accepted.",
)
OTLP_SETTING_PROBLEM: Final = _own(
    "otlp_setting_problem",
    Kind.GAUGE,
    "{flag}",
    "Always 1; an OTLP setting that is invalid or not supported, and its effect: export is off, or the setting is "
    "ignored.",
    "setting",
    "effect",
)

ALL: Final[tuple[Metric, ...]] = tuple(value for value in vars().values() if isinstance(value, Metric))
"""Every metric in the order in which it is defined, which is the order of the exposition and of METRICS.md."""

BY_NAME: Final[dict[str, Metric]] = {metric.name: metric for metric in ALL}
