"""Where alerts fire and where dashboards and the status page change colour: each threshold once, with unit and meaning.

A user of the bundle chooses among `Thresholds`; what the exporter itself judges by stays as it is here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Final


def _at(value: float, unit: str, meaning: str) -> float:
    """A field with its default, its unit and what it means, for the documents."""
    return field(default=value, metadata={"unit": unit, "meaning": meaning})


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """The thresholds of the alerts; the dashboards draw the same ones."""

    ttft_slow_share: float = _at(
        0.03, "ratio", "Share of first tokens slower than the objective within 2 min, at which somebody is paged."
    )
    ttft_slow_count: float = _at(
        3, "requests", "Fewest slow first tokens within 2 min that are worth a page: one slow request is none."
    )
    blocked_seconds: float = _at(
        180, "s", "Time for which requests wait and none is admitted, after which somebody is paged."
    )
    high_water_risk: float = _at(0.5, "ratio", "`llm_saturation_high_water_ratio` at which an alert warns.")
    high_water_risk_clear: float = _at(0.35, "ratio", "The same, at which the warning ends.")
    burn_rate_fast: float = _at(
        14.4,
        "factor",
        "Burn rate of a 30-day error budget over 1 h and 5 min that pages: 2 % of the budget in an hour.",
    )
    burn_rate_slow: float = _at(6, "factor", "The same over 6 h and 30 min: 5 % of the budget.")
    burn_rate_day: float = _at(3, "factor", "Burn rate over 1 day and 2 h that opens a ticket: 10 % of the budget.")
    burn_rate_days: float = _at(1, "factor", "The same over 3 days and 6 h: 10 % of the budget.")
    traffic_floor: float = _at(
        0.01,
        "requests/s",
        "Requests per second below which shares are not evaluated, as a single request would decide.",
    )
    inter_token_slow: float = _at(0.2, "s", "p95 inter-token latency from which on dashboards warn.")
    inter_token_slow_share: float = _at(
        0.05,
        "ratio",
        "Share of tokens within 5 min, later than their objective, at which an alert warns: p95 is above it then.",
    )
    restarts_high: float = _at(3, "restarts", "Restarts of an engine within 30 min that are a crash loop.")
    inter_token_trickle: float = _at(
        2, "factor", "Mean gap between tokens within 2 min, beside the objective, at which somebody is paged."
    )
    error_share_high: float = _at(0.05, "ratio", "Share of failed requests that pages after 5 min.")
    error_share_most: float = _at(0.5, "ratio", "Share of failed requests within a minute that pages at once.")
    error_count: float = _at(5, "requests", "Fewest failed requests within a minute for that.")
    error_share: float = _at(0.01, "ratio", "The same for a ticket.")
    waiting_high: float = _at(10, "requests", "Waiting requests that count as a queue, if they exceed running ones.")
    kv_usage_high: float = _at(
        0.9, "ratio", "KV cache usage that is high, if requests wait or are preempted at the same time."
    )
    kv_usage_critical: float = _at(0.95, "ratio", "KV cache usage that is exhaustion, if there are many preemptions.")
    preemption_share: float = _at(0.01, "ratio", "Preemptions per finished request that cost throughput.")
    preemption_share_critical: float = _at(0.05, "ratio", "The same with an exhausted KV cache.")
    headroom_requests_low: float = _at(
        2, "requests", "KV cache headroom that is low, in requests of the recent mean size."
    )
    kv_exhaustion_soon: float = _at(600, "s", "Time until the KV cache is full below which dashboards warn.")
    kv_tight_usage: float = _at(0.7, "ratio", "KV cache usage below which low headroom has another cause.")
    gpu_headroom_low: float = _at(
        0.03, "ratio", "Free share of a GPU's memory that is low; less than usual reservations leave free."
    )
    gpu_headroom_low_bytes: float = _at(
        2**30, "bytes", "Free memory of a GPU that is low regardless of the share; the larger of both counts."
    )
    gpu_headroom_critical: float = _at(0.01, "ratio", "Free share of a GPU's memory that is exhaustion.")
    gpu_headroom_critical_bytes: float = _at(
        2**29, "bytes", "Free memory of a GPU that is exhaustion regardless of the share; the larger of both counts."
    )
    gpu_oom_ratio: float = _at(0.1, "ratio", "Free share of a GPU's memory above which there is no alert on its trend.")
    gpu_oom_horizon: float = _at(3600, "s", "Time within which the trend of a GPU's free memory must reach zero.")
    oom_risk: float = _at(0.5, "ratio", "`llm_oom_risk_ratio` at which an alert warns.")
    gpu_growth_bytes: float = _at(
        2**30, "bytes", "Growth of unattributed GPU memory in 6 h that indicates a leak or another program."
    )
    gpu_temperature_high: float = _at(85, "degrees Celsius", "Temperature of a GPU that is high.")
    gpu_idle_utilization: float = _at(0.1, "ratio", "Utilisation below which a GPU is idle while requests wait.")
    offload_low: float = _at(0.999, "ratio", "Share of a model's memory on GPUs below which it has spilled to the CPU.")
    model_loads_high: float = _at(6, "loads", "Loads of one model per hour that are thrashing.")
    source_stale: float = _at(300, "s", "Age of a source's last success that is stale.")
    certificate_soon: float = _at(
        1_209_600, "s", "Time before a certificate runs out at which an alert warns: two weeks."
    )
    certificate_share: float = _at(
        0.2,
        "ratio",
        "Remaining share of its validity above which it does not: those that live for a day are renewed late.",
    )
    source_slow: float = _at(2.5, "s", "Duration of a collection that is slow; by default it times out after 5 s.")


_ASCENDING: Final = (
    ("high_water_risk_clear", "high_water_risk"),
    ("burn_rate_slow", "burn_rate_fast"),
    ("burn_rate_days", "burn_rate_day"),
    ("error_share", "error_share_high"),
    ("error_share_high", "error_share_most"),
    ("kv_usage_high", "kv_usage_critical"),
    ("preemption_share", "preemption_share_critical"),
    ("gpu_headroom_critical", "gpu_headroom_low"),
    ("gpu_headroom_critical_bytes", "gpu_headroom_low_bytes"),
)
"""Thresholds of which the first must not exceed the second."""


def problem(chosen: Thresholds) -> str | None:
    """Why thresholds cannot be meant: one is out of its range, or two are in the wrong order; None if they can."""
    for each in fields(Thresholds):
        value, unit = getattr(chosen, each.name), each.metadata["unit"]
        if value < 0 or (unit == "ratio" and value > 1):
            span = "a ratio from 0 to 1" if unit == "ratio" else "0 or more"
            return f"threshold {each.name}: expected {span}, got {value:g}"
    for low, high in _ASCENDING:
        if getattr(chosen, low) > getattr(chosen, high):
            return f"threshold {low}: {getattr(chosen, low):g} is more than {high}, which is {getattr(chosen, high):g}"
    return None


DEFAULT: Final = Thresholds()
"""The default thresholds."""

RISK_WARN: Final = 0.1
"""Probability from which the status page and `top` show a risk as a warning [ratio]."""
RISK_BAD: Final = 0.5
"""Probability from which they show it as critical [ratio]."""
SATURATION_HIGH: Final = 0.8
"""`llm_saturation_ratio` from which on dashboards warn; at 1 it is full [ratio]."""

SLOW_SECONDS: Final = 120.0
"""Window within which slow first tokens are counted, by the state and by the alert [s]."""
RATE_SECONDS: Final = 300.0
"""Window within which failed requests are counted, by the state and by the alerts [s]."""
RESTARTS_SECONDS: Final = 1800.0
"""Window within which restarts of an engine are counted, by the state and by the alert [s]."""
SETTLED_SECONDS: Final = 900.0
"""Time without another restart after which a crash loop is over: three within the window are no further apart [s]."""
XID_SECONDS: Final = 600.0
"""Time after a fatal Xid error for which it is the GPU's state and an alert [s]."""
FATAL_XIDS: Final = (48, 62, 64, 74, 79, 95, 119, 120)
"""Uncorrectable ECC, microcontroller halt, remap failure, NVLink, fallen off the bus, uncontained error, GSP.

Xids that an application causes (13, 31, 43) or that report a repair (63, 92) are left out.
"""
HARD_THROTTLES: Final = ("hw_thermal", "hw_power_brake")
"""Reasons of throttling that are a fault at once; `sw_thermal` is one only after long."""
LOAD_HEADROOM_LOW: Final = 1.25
"""`llm_load_headroom_ratio` below which page and dashboards warn: a load of 80 %, which autoscalers aim at [ratio]."""
