"""Alerts on engines: latency, errors, absence, queues, the KV cache, models that do not fit."""

from __future__ import annotations

from typing import Final

from llm_headroom.bundle.recording import HELD, USED
from llm_headroom.bundle.rule import DOWN, LOADS_LONG, MODEL, NOT_PROXIED, PROXIED, SOURCE, Alert, Dashboard, Severity
from llm_headroom.thresholds import RESTARTS_SECONDS, SETTLED_SECONDS

_WHO: Final = "{{ $labels.engine }} {{ $labels.target }}{{ with $labels.model }} ({{ . }}){{ end }}"

_MISSED: Final = "engine_model:llm_slo_missed:ratio_rate"
_BUDGET: Final = "(1 - engine_model:llm_slo_objective_ratio:max)"
_BUSY: Final = "engine_model:llm_slo_requests:rate1h > $traffic_floor"
_RESTARTS: Final = f"{RESTARTS_SECONDS / 60:.0f}m"
_SETTLED: Final = f"{SETTLED_SECONDS / 60:.0f}m"


def _burn(rate: str, long: str, short: str) -> str:
    return f"({_MISSED}{long} > {rate} * {_BUDGET} and {_MISSED}{short} > {rate} * {_BUDGET} and {_BUSY})"


_BURNING: Final = f"{_MISSED}5m > {_BUDGET}"
"""Whether any budget is lost now: what no longer happens pages nobody, however much of the last half hour it was."""


_FAILING: Final = "target_model:llm_failed:ratio_rate"


def held(state: str) -> str:
    """The flag of a state of engines; it stays for an hour where nobody can know better: silence heals nothing.

    That is an exporter that died, or one that has started since and knows no model of an engine that it never saw up.
    """
    flag = f'llm_engine_state{{state="{state}", {NOT_PROXIED}}}'
    return (
        f"({flag} or last_over_time({flag}[1h])"
        f' and on (job, instance) (up{{job="$exporter_job"}} == 0 or {DOWN})'
        ' unless on (job, instance, target) llm_up{engine!="nvml"} == 1)'
    )


_MODEL: Final = "cluster, namespace, job, engine, model"
_ROLES: Final = ("prefill", "decode")


def _of_a_role() -> str:
    """1 for a model without a prefill or a decode worker; not where an engine is up that may be both."""
    flag = f'llm_engine_state{{state="down", {NOT_PROXIED}}}'
    part = 'on (job, instance, target) llm_engine_role{engine_role=~"%s"}'
    roles = " or ".join(
        f'label_replace(min by ({_MODEL}) ({flag} and {part % role}), "engine_role", "{role}", "", "")'
        for role in _ROLES
    )
    return f"({roles}) == 1 unless on ({_MODEL}) ({flag} == 0 unless {part % '|'.join(_ROLES)})"


def _dead() -> str:
    """1 for an engine that is down, or that loads for longer than any takes although its model was used; else 0."""
    loads = f'llm_engine_state{{state="loading", {NOT_PROXIED}}}'
    used = f"on ({_MODEL}) {USED} > 0"
    return f"max without (state) ({held('down')} or {loads} * ({loads} offset {LOADS_LONG}) and {used})"


_ANSWERED: Final = f"rate(llm_requests_finished_total{{{PROXIED}}}[1m]) > 0"
"""Whether clients get answers through a measuring proxy, which is a target of its own and never down itself."""

_PROGRESS: Final = """increase(llm_requests_finished_total[${blocked_seconds}s])
    or label_replace(increase(llm_time_to_first_token_seconds_count[${blocked_seconds}s]), "reason", "first", "", "")
    or label_replace(increase(llm_prompt_tokens_total[${blocked_seconds}s]), "reason", "prompt", "", "")"""
"""What grows when requests are taken in; engines that embed know neither first tokens nor generated ones.

The label `reason`, which only finished requests have of their own, keeps the three apart.
"""

LATENCY: Final = (
    Alert(
        name="LLMFirstTokensSlow",
        severity=Severity.PAGE,
        dashboard=Dashboard.ENGINE,
        expr=HELD,
        kept="0s",
        summary=f"First tokens of {_WHO} are slow",
        description="{{ $value | humanizePercentage }} of the first tokens of two minutes, those that "
        "are still awaited included, missed the TTFT objective; a share of $ttft_slow_share and at least "
        "$ttft_slow_count of them are worth a page. It lasts until as many come in time within two minutes, or "
        "nobody waits where the engine does not count them, at most ten minutes.",
    ),
    Alert(
        name="LLMTokensTrickle",
        severity=Severity.PAGE,
        dashboard=Dashboard.ENGINE,
        expr="""sum without (replica) (rate(llm_inter_token_latency_seconds_sum[2m]))
                / sum without (replica) (rate(llm_inter_token_latency_seconds_count[2m]) > 10 * $traffic_floor)
                > ignoring (slo) $inter_token_trickle * llm_slo_threshold_seconds{slo="inter_token_latency"}
            and ignoring (slo) (2 * increase(llm_slo_requests_good_total{slo="inter_token_latency"}[2m])
                < increase(llm_slo_requests_total{slo="inter_token_latency"}[2m]))""",
        summary=f"Tokens of {_WHO} trickle",
        description="{{ $value | humanizeDuration }} pass from one token to the next, on average of the last two "
        "minutes: $inter_token_trickle times as long as the objective of inter-token latency allows, or longer, and "
        "most tokens miss it.",
    ),
    Alert(
        name="LLMSaturationRisk",
        severity=Severity.TICKET,
        dashboard=Dashboard.KV,
        expr="""llm_saturation_high_water_ratio >= $high_water_risk_clear
            and max_over_time(llm_saturation_high_water_ratio[5m]) >= $high_water_risk""",
        kept="0s",
        summary=f"{_WHO} is close to saturation",
        description="The last ten minutes came close to slow first tokens or to a full KV cache, or reached them: "
        '{{ printf "%.2f" $value }} on a scale from 0 to 1, which is no probability.',
    ),
    Alert(
        name="LLMLatencyBudgetBurnFast",
        severity=Severity.PAGE,
        dashboard=Dashboard.FLEET,
        expr=f"{_burn('$burn_rate_fast', '1h', '5m')} or {_burn('$burn_rate_slow', '6h', '30m')} and {_BURNING}",
        wait="2m",
        kept="5m",
        summary=f"{MODEL} burns its {{{{ $labels.slo }}}} error budget fast",
        description="{{ $value | humanizePercentage }} of what counts towards the objective {{ $labels.slo }} missed "
        "it over the last 1 h or 6 h, and more than the objective allows still does. If this goes on, the error budget "
        "of 30 days is gone within 5 days.",
    ),
    Alert(
        name="LLMLatencyBudgetBurnSlow",
        severity=Severity.TICKET,
        dashboard=Dashboard.FLEET,
        expr=f"{_burn('$burn_rate_day', '1d', '2h')} or {_burn('$burn_rate_days', '3d', '6h')}",
        wait="1h",
        summary=f"{MODEL} burns its {{{{ $labels.slo }}}} error budget",
        description="{{ $value | humanizePercentage }} of what counts towards the objective {{ $labels.slo }} missed "
        "it over the last 1 d or 3 d. If this goes on, the error budget does not last for 30 days.",
    ),
)

TOKENS: Final = (
    Alert(
        name="LLMInterTokenLatencySlow",
        severity=Severity.TICKET,
        dashboard=Dashboard.ENGINE,
        expr="""max without (slo) (1 - rate(llm_slo_requests_good_total{slo="inter_token_latency"}[5m])
            / (rate(llm_slo_requests_total{slo="inter_token_latency"}[5m]) > $traffic_floor)
            > $inter_token_slow_share)""",
        wait="10m",
        summary=f"{_WHO} has high inter-token latency",
        description="{{ $value | humanizePercentage }} of the tokens of the last five minutes came later than the "
        "objective of inter-token latency allows.",
    ),
)

AVAILABILITY: Final = (
    Alert(
        name="LLMErrorRatioHigh",
        severity=Severity.PAGE,
        dashboard=Dashboard.ENGINE,
        expr=f"""max without (of) ({_FAILING}1m > $error_share_most and {_FAILING}5m > $error_share_high
            or {_FAILING}5m and min_over_time({_FAILING}5m[5m]) > $error_share_high
                and last_over_time({_FAILING}5m[2m] offset 5m))""",
        summary=f"Many requests to {_WHO} fail",
        description="{{ $value | humanizePercentage }} of the requests failed, of the last minute or of the last "
        "five; more than $error_share_most of a minute's, or $error_share_high for five minutes, are worth a page.",
    ),
    Alert(
        name="LLMErrorRatio",
        severity=Severity.TICKET,
        dashboard=Dashboard.ENGINE,
        expr=f"max without (of) ({_FAILING}5m > $error_share)",
        wait="10m",
        summary=f"Some requests to {_WHO} fail",
        description="{{ $value | humanizePercentage }} of the requests of the last five minutes failed.",
    ),
    Alert(
        name="LLMRequestsRefused",
        severity=Severity.TICKET,
        dashboard=Dashboard.ENGINE,
        expr="""sum without (replica, code) (rate(llm_http_responses_total{code="4xx"}[5m]))
            / (sum without (replica, code) (rate(llm_http_responses_total[5m])) > $traffic_floor)
            > $error_share_high""",
        wait="10m",
        summary=f"Many requests to {_WHO} are refused as wrong",
        description="{{ $value | humanizePercentage }} of the responses of the last five minutes were of class 4xx: a "
        "model or adapter that is not there, a key that is not accepted, a limit, or a client that asks wrongly.",
    ),
    Alert(
        name="LLMModelDown",
        severity=Severity.PAGE,
        dashboard=Dashboard.FLEET,
        expr=f"""(min by ({_MODEL}) ({_dead()}) == 1 or on ({_MODEL}) ({_of_a_role()}))
            unless on ({_MODEL}) {_ANSWERED}""",
        wait="2m",
        summary="No {{ with $labels.engine_role }}{{ . }} worker{{ else }}engine{{ end }} serves " + MODEL,
        description="Every engine of the model{{ with $labels.engine_role }} that does its {{ . }}{{ end }} was up and "
        "does not answer llm-headroom any more, and none is starting, or has been for less than half an hour.",
    ),
    Alert(
        name="LLMEngineDown",
        severity=Severity.TICKET,
        dashboard=Dashboard.FLEET,
        expr=f"""max without (state) (llm_engine_state{{state="down"}} == 1
            or llm_engine_state{{state="loading"}} == 1
                and on (job, instance, target) ({DOWN} and max_over_time(llm_up{{engine!="nvml"}}[1h]) == 1))""",
        wait="3m",
        kept="1m",
        summary=f"{_WHO} is down",
        description="The engine was up and has not answered llm-headroom for 3 minutes: one of several, or a restart.",
    ),
    Alert(
        name="LLMEngineLoadingLong",
        severity=Severity.TICKET,
        dashboard=Dashboard.FLEET,
        expr='llm_engine_state{state="loading"} == 1',
        wait=LOADS_LONG,
        summary=f"{_WHO} has not answered for half an hour",
        description="It has been loading for 30 minutes, or is not there at all.",
    ),
    Alert(
        name="LLMEngineCrashLoop",
        severity=Severity.PAGE,
        dashboard=Dashboard.ENGINE,
        expr=f"""max without (model, replica) (increase(llm_engine_restarts_total[{_RESTARTS}]) > $restarts_high - 0.5)
                and max without (model, replica) (increase(llm_engine_restarts_total[{_SETTLED}]) > 0)
            or (changes(llm_up{{engine!="nvml"}}[{_RESTARTS}]) / 2 > $restarts_high - 0.5
                and changes(llm_up{{engine!="nvml"}}[{_SETTLED}]) > 0
                unless on (job, instance, target) last_over_time(llm_generation_tokens_total[5m]) > 0)""",
        summary=f"{SOURCE} restarts again and again",
        description='It restarted, or came and went, {{ printf "%.0f" $value }} times within 30 minutes, the last time '
        "within 15 minutes; $restarts_high times are worth a page.",
    ),
    Alert(
        name="LLMEngineMisread",
        severity=Severity.TICKET,
        dashboard=Dashboard.EXPORTER,
        expr='llm_engine_state{state="misread"} == 1',
        wait="5m",
        summary=f"What answers for {_WHO} is not this engine",
        description="Something answers at the target's address, but not as the engine that it is said to be, or with "
        "another model than before, or with what cannot be read.",
    ),
    Alert(
        name="LLMExporterBlind",
        severity=Severity.TICKET,
        dashboard=Dashboard.EXPORTER,
        expr=f'{DOWN} and on (job, instance, target) llm_engine_state{{state="unknown"}} == 1',
        wait="10m",
        summary=f"{SOURCE} cannot be read",
        description="Credentials, certificates, metrics that take longer than the timeout or are old, or a defect keep "
        "llm-headroom from reading it, so nothing is known of it.",
    ),
    Alert(
        name="LLMEngineStalled",
        severity=Severity.PAGE,
        dashboard=Dashboard.ENGINE,
        expr="""max without (replica) (llm_engine_stalled == 1
            or last_over_time(llm_engine_stalled[10m]) == 1 and on (job, instance) up{job="$exporter_job"} == 0)""",
        wait="1m",
        summary=f"{_WHO} is stalled",
        description="There are requests, but neither steps nor tokens of the engine, or of one of its data-parallel "
        "replicas, have increased for over a minute; or no client has got anything through its measuring proxy.",
    ),
    Alert(
        name="LLMQueueStarved",
        severity=Severity.PAGE,
        dashboard=Dashboard.ENGINE,
        expr=f"""sum without (replica) (min_over_time(llm_requests_waiting[${{blocked_seconds}}s])) > 0
            and max without (replica, reason) ({_PROGRESS}) == 0""",
        wait="1m",
        summary=f"Requests wait at {_WHO} and none is admitted",
        description="Requests waiting: {{ $value }}. For $blocked_seconds there was no first token, no prompt token "
        "and no finished request.",
    ),
    Alert(
        name="LLMQueueBuilding",
        severity=Severity.TICKET,
        dashboard=Dashboard.ENGINE,
        expr="""(sum without (replica) (llm_requests_waiting) > $waiting_high)
            > sum without (replica) (llm_requests_running)""",
        wait="10m",
        summary=f"Requests queue at {_WHO}",
        description="Requests waiting: {{ $value }}, more than are running.",
    ),
    Alert(
        name="LLMRouterWorkersUnhealthy",
        severity=Severity.TICKET,
        dashboard=Dashboard.ENGINE,
        expr="sum without (worker) (1 - llm_router_worker_healthy) > 0",
        wait="5m",
        summary=f"The router {SOURCE} has unhealthy workers",
        description="Unhealthy workers: {{ $value }}.",
    ),
)

KV_CACHE: Final = (
    Alert(
        name="LLMKVCacheExhausted",
        severity=Severity.TICKET,
        dashboard=Dashboard.KV,
        expr="""max without (replica) (llm_kv_cache_usage_ratio > $kv_usage_critical)
            and sum without (replica) (rate(llm_preemptions_total[5m]) > 0)
                > $preemption_share_critical * target_model:llm_requests_finished:rate5m""",
        wait="5m",
        summary=f"The KV cache of {_WHO} is exhausted",
        description="{{ $value | humanizePercentage }} of the KV cache is in use, and preemptions are more than "
        "$preemption_share_critical of the requests that finish.",
    ),
    Alert(
        name="LLMKVHeadroomLow",
        severity=Severity.TICKET,
        dashboard=Dashboard.KV,
        expr="""min without (replica) (llm_kv_cache_headroom_requests < $headroom_requests_low)
            and max without (replica) (llm_kv_cache_usage_ratio > $kv_tight_usage)
            unless sum without (replica) (llm_requests_running_limit)
                <= min without (replica) (llm_kv_cache_headroom_requests < $headroom_requests_low)
                + sum without (replica) (llm_requests_running) + sum without (replica) (llm_requests_waiting)""",
        wait="5m",
        summary=f"{_WHO} has almost no KV cache headroom",
        description="{{ $value | humanize }} requests of the recent mean size still fit; more than $kv_tight_usage "
        "of the KV cache is held.",
    ),
    Alert(
        name="LLMKVTransferFailures",
        severity=Severity.TICKET,
        dashboard=Dashboard.KV,
        expr="sum without (replica, reason) (increase(llm_kv_transfer_failures_total[10m])) > 0",
        wait="5m",
        summary=f"Transfers of KV cache of {_WHO} fail",
        description="Transfers by {{ $labels.connector }} that failed within ten minutes: "
        '{{ printf "%.0f" $value }}. Their prefill is computed again, or their requests fail.',
    ),
)

MODELS: Final = (
    Alert(
        name="LLMModelSpilledToCPU",
        severity=Severity.TICKET,
        dashboard=Dashboard.GPU,
        expr="""max without (replica) (llm_model_offload_ratio) < $offload_low
          and on (job, instance, target) max_over_time(llm_model_offload_ratio[1d]) > 0""",
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
        description='Loads within the last hour: {{ printf "%.0f" $value }}. Requests wait for each of them.',
    ),
)
