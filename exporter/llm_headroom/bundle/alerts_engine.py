"""Alerts on engines: latency, errors, absence, queues, the KV cache, models that do not fit."""

from __future__ import annotations

from typing import Final

from llm_headroom.bundle.rule import Alert, Dashboard, Severity

_WHO: Final = "{{ $labels.engine }} {{ $labels.target }} ({{ $labels.model }})"
_SOURCE: Final = "{{ $labels.engine }} {{ $labels.target }} on {{ $labels.instance }}"
_FLEET: Final = "{{ $labels.model }} on {{ $labels.engine }}"

_MISSED: Final = "engine_model:llm_slo_missed:ratio_rate"
_BUDGET: Final = "(1 - engine_model:llm_slo_objective_ratio:max)"
_BUSY: Final = "engine_model:llm_slo_requests:rate1h > $traffic_floor"


def _burn(rate: str, long: str, short: str) -> str:
    return f"({_MISSED}{long} > {rate} * {_BUDGET} and {_MISSED}{short} > {rate} * {_BUDGET} and {_BUSY})"


def _errors(share: str) -> str:
    """Requests that failed, or responses of class 5xx, or requests that the router could not have answered.

    A client that leaves is no failure of the engine.
    """
    failed = 'sum without (replica, reason) (rate(llm_requests_failed_total{reason!="abort"}[5m]))'
    ended = f"({failed} + sum without (replica, reason) (rate(llm_requests_finished_total[5m])))"
    wrong = 'sum without (replica, code) (rate(llm_http_responses_total{code="5xx"}[5m]))'
    answers = "sum without (replica, code) (rate(llm_http_responses_total[5m]))"
    lost = "sum without (replica, reason) (rate(llm_router_errors_total[5m]))"
    routed = "sum without (replica) (rate(llm_router_requests_total[5m]))"
    return " or ".join(
        f"({part} / {whole} > {share} and {whole} > $traffic_floor)"
        for part, whole in ((failed, ended), (wrong, answers), (lost, routed))
    )


def _slow(window: str, share: str, count: str) -> str:
    """Enough slow first tokens, and enough of them; half a request less than the count, as shares are rounded."""
    ratio = f'llm_ttft_slow_ratio{{window="{window}"}}'
    requests = f'llm_ttft_window_requests{{window="{window}"}}'
    return f"{ratio} >= {share} and {ratio} * {requests} > {count} - 0.5"


LATENCY: Final = (
    Alert(
        name="LLMFirstTokensSlow",
        severity=Severity.PAGE,
        dashboard=Dashboard.ENGINE,
        expr=_slow("60s", "$ttft_slow_share", "$ttft_slow_count"),
        summary=f"TTFT of {_WHO} is high",
        description="{{ $value | humanizePercentage }} of the requests of the last minute missed the "
        "TTFT objective; at least $ttft_slow_count did.",
    ),
    Alert(
        name="LLMFirstTokensSlowSustained",
        severity=Severity.PAGE,
        dashboard=Dashboard.ENGINE,
        expr=_slow("300s", "$ttft_slow_share_long", "$ttft_slow_count_long"),
        summary=f"TTFT of {_WHO} has been high for minutes",
        description="{{ $value | humanizePercentage }} of the requests of the last five minutes missed "
        "the TTFT objective; at least $ttft_slow_count_long did.",
    ),
    Alert(
        name="LLMSaturationRisk",
        severity=Severity.TICKET,
        dashboard=Dashboard.KV,
        expr="""llm_saturation_high_water_ratio >= $high_water_risk
            or (llm_saturation_high_water_ratio >= $high_water_risk_clear
                and max_over_time(llm_saturation_high_water_ratio[5m]) >= $high_water_risk)""",
        summary=f"{_WHO} is close to saturation",
        description="The peaks of the last ten minutes make high TTFT or KV cache exhaustion within five minutes "
        "likely: {{ $value | humanizePercentage }}.",
    ),
    Alert(
        name="LLMLatencyBudgetBurnFast",
        severity=Severity.PAGE,
        dashboard=Dashboard.FLEET,
        expr=f"{_burn('$burn_rate_fast', '1h', '5m')} or {_burn('$burn_rate_slow', '6h', '30m')}",
        wait="2m",
        summary=f"{_FLEET} burns its {{{{ $labels.slo }}}} error budget fast",
        description="{{ $value | humanizePercentage }} of the requests of the objective {{ $labels.slo }} missed its "
        "threshold over the long window (1 h or 6 h); the 30-day budget is gone in at most 5 days.",
    ),
    Alert(
        name="LLMLatencyBudgetBurnSlow",
        severity=Severity.TICKET,
        dashboard=Dashboard.FLEET,
        expr=f"{_burn('$burn_rate_day', '1d', '2h')} or {_burn('$burn_rate_days', '3d', '6h')}",
        wait="1h",
        summary=f"{_FLEET} burns its {{{{ $labels.slo }}}} error budget",
        description="{{ $value | humanizePercentage }} of the requests of the objective {{ $labels.slo }} missed its "
        "threshold over the long window (1 d or 3 d); the 30-day budget does not last.",
    ),
    Alert(
        name="LLMInterTokenLatencySlow",
        severity=Severity.TICKET,
        dashboard=Dashboard.ENGINE,
        expr="""histogram_quantile(0.95, sum without (replica) (rate(llm_inter_token_latency_seconds_bucket[5m])))
            > $inter_token_slow
            and sum without (replica) (rate(llm_inter_token_latency_seconds_count[5m])) > $traffic_floor""",
        wait="10m",
        summary=f"{_WHO} has high inter-token latency",
        description="p95 of the inter-token latency is {{ $value | humanizeDuration }}, above $inter_token_slow s.",
    ),
)

AVAILABILITY: Final = (
    Alert(
        name="LLMErrorRatioHigh",
        severity=Severity.PAGE,
        dashboard=Dashboard.ENGINE,
        expr=_errors("$error_share_high"),
        wait="5m",
        summary=f"Many requests to {_WHO} fail",
        description="{{ $value | humanizePercentage }} of the requests of the last five minutes failed.",
    ),
    Alert(
        name="LLMErrorRatio",
        severity=Severity.TICKET,
        dashboard=Dashboard.ENGINE,
        expr=_errors("$error_share"),
        wait="10m",
        summary=f"Some requests to {_WHO} fail",
        description="{{ $value | humanizePercentage }} of the requests of the last five minutes failed.",
    ),
    Alert(
        name="LLMEngineDown",
        severity=Severity.PAGE,
        dashboard=Dashboard.FLEET,
        expr='llm_up{engine!="nvml"} == 0',
        wait="3m",
        summary=f"{_SOURCE} is down",
        description="llm-headroom has not reached the engine for 3 minutes; llm_up is {{ $value }}.",
    ),
    Alert(
        name="LLMEngineStalled",
        severity=Severity.PAGE,
        dashboard=Dashboard.ENGINE,
        expr="max without (replica) (llm_engine_stalled) == 1",
        wait="1m",
        summary=f"{_WHO} is stalled",
        description="There are requests, but neither steps nor tokens have increased for over a minute; "
        "llm_engine_stalled is {{ $value }}.",
    ),
    Alert(
        name="LLMQueueStarved",
        severity=Severity.PAGE,
        dashboard=Dashboard.ENGINE,
        expr="""sum without (replica) (llm_requests_waiting) > 0
            and sum without (replica) (rate(llm_generation_tokens_total[2m])) == 0""",
        wait="3m",
        summary=f"Requests wait at {_WHO} and nothing is generated",
        description="{{ $value }} requests wait, and no token has been generated for minutes.",
    ),
    Alert(
        name="LLMQueueBuilding",
        severity=Severity.TICKET,
        dashboard=Dashboard.ENGINE,
        expr="""sum without (replica) (llm_requests_waiting) > $waiting_high
            and sum without (replica) (llm_requests_waiting) > sum without (replica) (llm_requests_running)""",
        wait="10m",
        summary=f"Requests queue at {_WHO}",
        description="{{ $value }} requests wait, more than are running.",
    ),
)

KV_CACHE: Final = (
    Alert(
        name="LLMKVCacheHigh",
        severity=Severity.TICKET,
        dashboard=Dashboard.KV,
        expr="""max without (replica) (llm_kv_cache_usage_ratio) > $kv_usage_high
            and (sum without (replica) (llm_requests_waiting) > 0
                or sum without (replica) (rate(llm_preemptions_total[5m])) > 0)""",
        wait="10m",
        summary=f"The KV cache of {_WHO} is nearly full and requests wait or are preempted",
        description="{{ $value | humanizePercentage }} of the KV cache is in use, and requests wait or are preempted.",
    ),
    Alert(
        name="LLMKVCacheExhausted",
        severity=Severity.TICKET,
        dashboard=Dashboard.KV,
        expr="""max without (replica) (llm_kv_cache_usage_ratio) > $kv_usage_critical
            and sum without (replica) (rate(llm_preemptions_total[5m]))
                > $preemption_share_critical * sum without (replica, reason) (rate(llm_requests_finished_total[5m]))""",
        wait="5m",
        summary=f"The KV cache of {_WHO} is exhausted",
        description="{{ $value | humanizePercentage }} of the KV cache is in use, and there are more preemptions than "
        "$preemption_share_critical per finished request.",
    ),
    Alert(
        name="LLMPreemptionsHigh",
        severity=Severity.TICKET,
        dashboard=Dashboard.KV,
        expr="""sum without (replica) (rate(llm_preemptions_total[5m]))
            / sum without (replica, reason) (rate(llm_requests_finished_total[5m])) > $preemption_share
            and sum without (replica, reason) (rate(llm_requests_finished_total[5m])) > $traffic_floor""",
        wait="10m",
        summary=f"{_WHO} preempts requests",
        description="{{ $value | humanize }} preemptions per finished request; preempted work is computed again.",
    ),
    Alert(
        name="LLMKVHeadroomLow",
        severity=Severity.TICKET,
        dashboard=Dashboard.KV,
        expr="min without (replica) (llm_kv_cache_headroom_requests) < $headroom_requests_low",
        wait="5m",
        summary=f"{_WHO} has almost no KV cache headroom",
        description="{{ $value | humanize }} requests of the recent mean size still fit.",
    ),
    Alert(
        name="LLMKVTimeToFull",
        severity=Severity.INFO,
        dashboard=Dashboard.KV,
        expr="""llm_kv_cache_exhaustion_seconds < $kv_exhaustion_soon
            and max without (replica) (llm_kv_cache_usage_ratio) > $kv_exhaustion_usage""",
        wait="10m",
        summary=f"The KV cache of {_WHO} is filling up",
        description="Full in {{ $value | humanizeDuration }} at the current demand. A forecast, for planning.",
    ),
)

MODELS: Final = (
    Alert(
        name="LLMModelSpilledToCPU",
        severity=Severity.TICKET,
        dashboard=Dashboard.GPU,
        expr="""max without (replica) (llm_model_offload_ratio) < $offload_low
          and on (job, instance, target)
            max by (job, instance, target) (max_over_time(llm_model_offload_ratio[1d])) > 0""",
        wait="5m",
        summary=f"{_WHO} runs partly on the CPU",
        description="Only {{ $value | humanizePercentage }} of the model's memory is on GPUs.",
    ),
    Alert(
        name="LLMModelThrash",
        severity=Severity.TICKET,
        dashboard=Dashboard.ENGINE,
        expr="increase(llm_model_loads_total[1h]) > $model_loads_high",
        summary=f"{_WHO} is loaded repeatedly",
        description="{{ $value | humanize }} loads in the last hour.",
    ),
)
