"""Alerts on GPUs, host memory, sources of data and the exporter itself."""

from __future__ import annotations

from typing import Final

from llm_headroom.bundle.recording import LATEST, NEEDED
from llm_headroom.bundle.rule import LOADS_LONG, MODEL, SOURCE, Alert, Dashboard, Severity
from llm_headroom.thresholds import FATAL_XIDS, XID_SECONDS

_GPU: Final = "{{ with $labels.gpu }}GPU {{ . }}{{ else }}A GPU{{ end }} of {{ $labels.instance }}"
_HOST: Final = "cluster, namespace, job, instance"

_ACTION: Final = (
    "{{ if eq $value 1.0 }}reset the GPU{{ else if eq $value 2.0 }}reboot the node{{ else if eq $value 3.0 }}end "
    "peer-to-peer work{{ else if eq $value 4.0 }}drain it and reset it{{ else }}action {{ $value }}{{ end }}"
)
"""As `llm_gpu_recovery_action` counts them."""

_FATAL: Final = "|".join(map(str, FATAL_XIDS))


def _xid(numbers: str) -> str:
    """By a timestamp that is new: a counter that is absent until the first error has no increase at it.

    It is compared with no clock, since a host's may be minutes off.
    """
    last, window = f'llm_gpu_xid_last_timestamp_seconds{{xid=~"{numbers}"}}', f"{XID_SECONDS:.0f}s"
    return f"changes({last}[{window}]) > 0 or {last} unless last_over_time({last}[1h] offset {window})"


_OUTSIDE: Final = "gpu:llm_gpu_memory_outside_bytes:max"
_HEADROOM: Final = "gpu:llm_gpu_memory_headroom_bytes:min"
"""Recorded every 2 min: a trend of an hour needs no more, and costs a fifth."""

_STARTED: Final = f"""unless on ({_HOST})
    (increase(llm_engine_restarts_total[15m]) > 0 or changes(llm_models_loaded[15m]) > 0
        or changes(llm_model_loaded[15m]) > 0 or time() - llm_engine_start_time_seconds < 900)"""

_LOST: Final = " or ".join(
    f"""label_replace(last_over_time(target:{signal}:present1d[{LATEST}])
        unless on ({_HOST}, engine, target) {signal}, "signal", "{signal.removeprefix("llm_")}", "", "")"""
    for signal in NEEDED
)

GPU_MEMORY: Final = (
    Alert(
        name="LLMGpuMemoryHeadroomLow",
        severity=Severity.TICKET,
        dashboard=Dashboard.GPU,
        expr="""llm_gpu_memory_headroom_bytes
            < clamp_min($gpu_headroom_low * llm_gpu_memory_total_bytes, $gpu_headroom_low_bytes)""",
        wait="5m",
        summary=f"{_GPU} has little free memory",
        description="{{ $value | humanize1024 }}B can still be allocated; engines reserve less than all of it, so "
        "this is below what they leave.",
    ),
    Alert(
        name="LLMGpuMemoryExhausted",
        severity=Severity.TICKET,
        dashboard=Dashboard.GPU,
        expr="""llm_gpu_memory_headroom_bytes
            < clamp_min($gpu_headroom_critical * llm_gpu_memory_total_bytes, $gpu_headroom_critical_bytes)""",
        wait="2m",
        summary=f"{_GPU} has no free memory",
        description="{{ $value | humanize1024 }}B can still be allocated; the next allocation may fail.",
    ),
    Alert(
        name="LLMOomRisk",
        severity=Severity.TICKET,
        dashboard=Dashboard.GPU,
        expr="llm_oom_risk_ratio >= $oom_risk",
        wait="5m",
        summary="Memory ({{ $labels.memory }}) is likely to run out on {{ $labels.instance }}",
        description="An allocation of {{ $labels.engine }} {{ $labels.target }}{{ with $labels.gpu }} on GPU {{ . }}"
        "{{ end }} fails within 30 minutes with a probability of {{ $value | humanizePercentage }}.",
    ),
    Alert(
        name="LLMGpuMemoryRunningOut",
        severity=Severity.TICKET,
        dashboard=Dashboard.GPU,
        expr=f"""llm_gpu_memory_headroom_ratio < $gpu_oom_ratio
            and predict_linear({_HEADROOM}[1h], $gpu_oom_horizon) < 0
            and deriv({_HEADROOM}[15m]) < 0
            and {_HEADROOM} offset 45m
            {_STARTED}""",
        wait="15m",
        summary=f"{_GPU}: free memory shrinks towards zero",
        description="{{ $value | humanizePercentage }} of the memory is free, and none within $gpu_oom_horizon if "
        "the trend of the last hour continues.",
    ),
    Alert(
        name="LLMGpuReservationOverlap",
        severity=Severity.TICKET,
        dashboard=Dashboard.GPU,
        expr="llm_gpu_memory_overcommitted_bytes > 0",
        wait="5m",
        summary=f"{_GPU}: memory is overcommitted",
        description="Reservations, other processes and reserved memory exceed the device by "
        "{{ $value | humanize1024 }}B; the last one to start or grow fails.",
    ),
    Alert(
        name="LLMHostOomKill",
        severity=Severity.TICKET,
        dashboard=Dashboard.ENGINE,
        expr="increase(llm_host_memory_oom_kills_total[10m]) > 0",
        summary=f"A process of {SOURCE} was OOM-killed",
        description='Kills within the last ten minutes: {{ printf "%.0f" $value }}.',
    ),
)

GPU_HEALTH: Final = (
    Alert(
        name="LLMGpuLost",
        severity=Severity.PAGE,
        dashboard=Dashboard.GPU,
        expr='llm_gpu_state{state="lost"} == 1 or max_over_time(llm_gpus[1h]) - llm_gpus > 0',
        wait="1m",
        summary=f"{_GPU} is lost",
        description="A GPU that was there, or that NVML lists, cannot be read any more. Such GPUs: {{ $value }}.",
    ),
    Alert(
        name="LLMGpuXidCritical",
        severity=Severity.PAGE,
        dashboard=Dashboard.GPU,
        expr=_xid(_FATAL),
        summary=f"{_GPU} reported the fatal error Xid {{{{ $labels.xid }}}}",
        description="It did so within ten minutes; what runs on it is lost or about to be.",
    ),
    Alert(
        name="LLMGpuXidContained",
        severity=Severity.TICKET,
        dashboard=Dashboard.GPU,
        expr=_xid("94"),
        summary=f"{_GPU} reported a contained memory error (Xid 94)",
        description="It did so within ten minutes; the affected process is lost, others continue.",
    ),
    Alert(
        name="LLMGpuRowRemapFailure",
        severity=Severity.PAGE,
        dashboard=Dashboard.GPU,
        expr="llm_gpu_row_remap_failure > 0",
        summary=f"{_GPU} could not remap a row of its memory",
        description="Its memory can no longer be repaired: replace the device.",
    ),
    Alert(
        name="LLMGpuRowRemapPending",
        severity=Severity.TICKET,
        dashboard=Dashboard.GPU,
        expr="llm_gpu_row_remap_pending > 0",
        wait="5m",
        summary=f"{_GPU} waits for a reset to remap a row",
        description="The repair of its memory takes effect at the next reset of the device.",
    ),
    Alert(
        name="LLMGpuRecoveryAction",
        severity=Severity.PAGE,
        dashboard=Dashboard.GPU,
        expr="llm_gpu_recovery_action > 0",
        wait="1m",
        summary=f"{_GPU}: its driver requests a recovery",
        description=f"What it asks for: {_ACTION}.",
    ),
    Alert(
        name="LLMGpuThrottled",
        severity=Severity.TICKET,
        dashboard=Dashboard.GPU,
        expr="""llm_gpu_throttle_active{reason=~"hw_thermal|hw_power_brake"} == 1
            or min_over_time(llm_gpu_throttle_active{reason="sw_thermal"}[25m]) == 1""",
        wait="5m",
        summary=f"{_GPU} is throttled ({{{{ $labels.reason }}}})",
        description="Heat or the power supply has reduced the clocks for minutes; answers come slower.",
    ),
    Alert(
        name="LLMGpuTemperatureHigh",
        severity=Severity.INFO,
        dashboard=Dashboard.GPU,
        expr='llm_gpu_temperature_celsius{sensor="gpu"} > $gpu_temperature_high',
        wait="10m",
        summary=f"{_GPU} is hot",
        description='It has {{ printf "%.0f" $value }} °C, more than $gpu_temperature_high.',
    ),
    Alert(
        name="LLMGpuIdleWhileQueued",
        severity=Severity.TICKET,
        dashboard=Dashboard.GPU,
        expr=f"""sum without (model, replica) (llm_requests_waiting) > 0
            and on ({_HOST}, engine, target)
            (max by ({_HOST}, engine, target) (llm_gpu_memory_attribution_info * on ({_HOST}, gpu, uuid)
                group_left () llm_gpu_utilization_ratio{{engine=""}}) < $gpu_idle_utilization)""",
        wait="5m",
        summary=f"Requests wait at {SOURCE} while its GPUs idle",
        description="Requests waiting: {{ $value }}. No GPU of the engine is busy for more than "
        "$gpu_idle_utilization of the time.",
    ),
)

GPU_DAYS: Final = (
    Alert(
        name="LLMGpuMemoryGrowthOutsideReservation",
        severity=Severity.TICKET,
        dashboard=Dashboard.GPU,
        expr=f"{_OUTSIDE} - {_OUTSIDE} offset 6h > $gpu_growth_bytes and deriv({_OUTSIDE}[6h]) > 0",
        wait="15m",
        summary=f"{_GPU}: memory grows outside the engines' reservations",
        description="{{ $value | humanize1024 }}B more than six hours ago: a leak, or another process.",
    ),
    Alert(
        name="LLMGpuUncorrectableEcc",
        severity=Severity.PAGE,
        dashboard=Dashboard.GPU,
        expr=f"""last_over_time(gpu:llm_gpu_ecc_errors_uncorrected:increase1d[{LATEST}])
            or max without (severity) (increase(llm_gpu_ecc_errors_total{{severity="uncorrected"}}[{LATEST}]) > 0)""",
        summary=f"{_GPU} has uncorrectable memory errors",
        description='Such errors within a day: {{ printf "%.0f" $value }}.',
    ),
    Alert(
        name="LLMGpuPcieDegraded",
        severity=Severity.TICKET,
        dashboard=Dashboard.GPU,
        expr=f"llm_gpu_pcie_link_width < last_over_time(gpu:llm_gpu_pcie_link_width:max1d[{LATEST}])",
        wait="10m",
        summary=f"{_GPU} has lost PCIe lanes",
        description="Lanes in use: {{ $value }}, fewer than within the last day.",
    ),
)
"""On GPUs over hours and days, from what `recording` records of them; the newest errors from the counter itself."""

SOURCES: Final = (
    Alert(
        name="LLMExporterDown",
        severity=Severity.PAGE,
        dashboard=Dashboard.EXPORTER,
        expr='up{job="$exporter_job"} == 0 or absent(up{job="$exporter_job"})',
        wait="5m",
        summary="llm-headroom{{ with $labels.instance }} {{ . }}{{ end }} is down",
        description="Prometheus {{ if $labels.instance }}does not reach it{{ else }}has no target of the job "
        "{{ $labels.job }}{{ end }}, so the state of its engines is unknown; what was down before stays so for an "
        "hour.",
    ),
    Alert(
        name="LLMModelGone",
        severity=Severity.PAGE,
        dashboard=Dashboard.FLEET,
        expr=f"""last_over_time(engine_model:llm_requests_running:sum[1h]) > 0
            unless engine_model:llm_requests_running:sum
            and on (job) ((up{{job="$exporter_job"}} offset {LOADS_LONG} or up{{job="$exporter_job"}} offset 10m
                or up{{job="$exporter_job"}} offset 1h) unless up{{job="$exporter_job"}})
            unless on (cluster, namespace, job, engine) (llm_engine_state{{state="loading"}} == 1
                unless llm_engine_state{{state="loading"}} offset {LOADS_LONG} == 1)""",
        wait="5m",
        summary=f"{MODEL} is gone from monitoring",
        description="Its last engine and that engine's llm-headroom are no longer among the targets of Prometheus, as "
        "when a node is lost, and no other engine is starting, or has been for less than half an hour. Requests that "
        "were running when it was seen last: {{ $value }}.",
    ),
    Alert(
        name="LLMGpuSourceDown",
        severity=Severity.TICKET,
        dashboard=Dashboard.EXPORTER,
        expr='llm_up{engine="nvml"} == 0',
        wait="10m",
        summary="GPUs of {{ $labels.instance }} cannot be read",
        description="NVML has failed for 10 minutes, so nothing is known of them.",
    ),
    Alert(
        name="LLMSourceStale",
        severity=Severity.TICKET,
        dashboard=Dashboard.EXPORTER,
        expr="""time() - (llm_source_last_success_timestamp_seconds
            == llm_source_last_success_timestamp_seconds offset ${source_stale}s)""",
        wait="1m",
        summary=f"Data from {SOURCE} is stale",
        description="The last successful collection was {{ $value | humanizeDuration }} ago.",
    ),
    Alert(
        name="LLMCollectionSlow",
        severity=Severity.TICKET,
        dashboard=Dashboard.EXPORTER,
        expr="llm_source_duration_seconds > $source_slow",
        wait="10m",
        summary=f"Collecting from {SOURCE} is slow",
        description="It takes {{ $value | humanizeDuration }}, more than $source_slow; beyond the timeout it fails.",
    ),
    Alert(
        name="LLMSignalLost",
        severity=Severity.TICKET,
        dashboard=Dashboard.EXPORTER,
        expr=f"""label_replace(
                max without (state) (llm_source_samples{{state="mapped", engine!="nvml"}})
                < last_over_time(target:llm_source_samples_mapped:max1d[{LATEST}])
                and max without (state) (llm_source_samples{{state="unknown", engine!="nvml"}})
                > last_over_time(target:llm_source_samples_unknown:min1d[{LATEST}]),
                "signal", "unknown", "", "")
            or ({_LOST}) and on ({_HOST}, engine, target) llm_up{{engine!~"nvml|ollama"}} == 1""",
        wait="15m",
        summary=f"Signals of {SOURCE} are lost",
        description='The engine answers, but {{ if eq $labels.signal "unknown" }}fewer of its metrics are known than '
        "{{ else }}it no longer exposes {{ $labels.signal }}, as it did {{ end }}within the last day; an upgrade "
        "may have renamed its metrics.",
    ),
    Alert(
        name="LLMLabelCapReached",
        severity=Severity.INFO,
        dashboard=Dashboard.EXPORTER,
        expr="""increase(llm_label_values_capped_total[15m]) > 0
            or (llm_label_values_capped_total > 0 unless llm_label_values_capped_total offset 15m)""",
        summary=f"Too many values of the label {{{{ $labels.label }}}} of {SOURCE}",
        description='Values beyond the limit, exported as `other`: {{ printf "%.0f" $value }}.',
    ),
    Alert(
        name="LLMSamplesInvalid",
        severity=Severity.INFO,
        dashboard=Dashboard.EXPORTER,
        expr='llm_source_samples{state="invalid"} > 0',
        wait="15m",
        summary=f"Samples of {SOURCE} cannot be used",
        description="Invalid samples of a collection: {{ $value }}.",
    ),
    Alert(
        name="LLMOtlpDropped",
        severity=Severity.TICKET,
        dashboard=Dashboard.EXPORTER,
        expr="sum without (cause) (increase(llm_otlp_dropped_points_total[15m])) > 0",
        wait="5m",
        summary="llm-headroom {{ $labels.instance }} drops points of its push",
        description="Points of the last 15 minutes that did not reach the OpenTelemetry collector: "
        '{{ printf "%.0f" $value }}.',
    ),
    Alert(
        name="LLMCertificateExpiring",
        severity=Severity.TICKET,
        dashboard=Dashboard.EXPORTER,
        expr="""llm_certificate_not_after_timestamp_seconds - time() < $certificate_soon
            and llm_certificate_not_after_timestamp_seconds - time() < $certificate_share
                * (llm_certificate_not_after_timestamp_seconds - llm_certificate_not_before_timestamp_seconds)""",
        wait="15m",
        summary="A certificate of llm-headroom {{ $labels.instance }} runs out",
        description="{{ $labels.file }} is valid for {{ $value | humanizeDuration }} more; then connections that it "
        "is shown on fail.",
    ),
    Alert(
        name="LLMConfigReloadFailed",
        severity=Severity.TICKET,
        dashboard=Dashboard.EXPORTER,
        expr="llm_config_last_reload_success == 0",
        wait="5m",
        summary="llm-headroom {{ $labels.instance }} runs with an old configuration",
        description="The file could not be read when it was read last; its log says why.",
    ),
)
