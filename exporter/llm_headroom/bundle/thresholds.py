"""Where alerts fire and dashboards change colour, in one place, and what else a user of the bundle chooses."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """The thresholds of the alerts; the dashboards draw the same ones."""

    ttft_slow_share: float = 0.03
    """Share of first tokens slower than the objective within 60 s, at which somebody is paged [ratio]."""
    ttft_slow_share_long: float = 0.05
    """The same within 300 s [ratio]."""
    ttft_slow_count: float = 2
    """Fewest slow first tokens within a window that are worth a page: one slow request is none [requests]."""
    ttft_slow_count_long: float = 3
    """The same within 300 s [requests]."""
    high_water_risk: float = 0.3
    """`llm_saturation_high_water_risk_ratio` at which there is a warning [ratio]."""
    high_water_risk_clear: float = 0.21
    """The same, at which the warning ends [ratio]."""
    burn_rate_fast: float = 14.4
    """Consumption of a 30-day error budget over 1 h and 5 min that is paged: 2 % of the budget in an hour [factor]."""
    burn_rate_slow: float = 6
    """The same over 6 h and 30 min: 5 % of the budget [factor]."""
    burn_rate_day: float = 3
    """Consumption over 1 day and 2 h that is a ticket: 10 % of the budget [factor]."""
    burn_rate_days: float = 1
    """The same over 3 days and 6 h: 10 % of the budget [factor]."""
    traffic_floor: float = 0.01
    """Requests a second below which no share of them is judged, as one request would decide [requests/s]."""
    inter_token_slow: float = 0.2
    """p95 of the inter-token latency that is slow; a bucket boundary of vLLM and SGLang [s]."""
    error_share_high: float = 0.05
    """Share of requests that fail at which somebody is paged [ratio]."""
    error_share: float = 0.01
    """The same for a ticket [ratio]."""
    waiting_high: float = 10
    """Waiting requests that are a queue, if they are more than those that run [requests]."""
    kv_usage_high: float = 0.9
    """Usage of the KV cache that is high, if requests wait or are preempted at the same time [ratio]."""
    kv_usage_critical: float = 0.95
    """Usage of the KV cache that is exhaustion, if preemptions are many [ratio]."""
    preemption_share: float = 0.01
    """Preemptions per finished request that cost throughput [ratio]."""
    preemption_share_critical: float = 0.05
    """The same with an exhausted KV cache [ratio]."""
    headroom_requests_low: float = 2
    """Requests of the recent mean size for which the KV cache still has room [requests]."""
    kv_exhaustion_soon: float = 600
    """Time until the KV cache is full that is soon [s]."""
    kv_exhaustion_usage: float = 0.7
    """Usage of the KV cache below which the time until it is full is not told [ratio]."""
    gpu_headroom_low: float = 0.03
    """Free share of a GPU's memory that is low; below any usual reservation's rest [ratio]."""
    gpu_headroom_low_bytes: float = 2**30
    """Free memory of a GPU that is low whatever the share; the larger of both counts [bytes]."""
    gpu_headroom_critical: float = 0.01
    """Free share of a GPU's memory that is exhaustion [ratio]."""
    gpu_headroom_critical_bytes: float = 2**29
    """Free memory of a GPU that is exhaustion whatever the share; the larger of both counts [bytes]."""
    gpu_oom_ratio: float = 0.1
    """Free share of a GPU's memory above which its trend is not told [ratio]."""
    gpu_oom_horizon: float = 3600
    """Time within which the trend of a GPU's free memory must reach zero [s]."""
    oom_risk: float = 0.5
    """`llm_oom_risk_ratio` at which there is a warning [ratio]."""
    gpu_growth_bytes: float = 2**30
    """Growth in 6 h of GPU memory that no engine is known to hold, which is a leak or a neighbour [bytes]."""
    gpu_temperature_high: float = 85
    """Temperature of a GPU that is high [degrees Celsius]."""
    gpu_idle_utilization: float = 0.1
    """Utilisation below which a GPU is idle although requests wait [ratio]."""
    offload_low: float = 0.999
    """Share of a model's memory on GPUs below which it has spilled to the CPU [ratio]."""
    model_loads_high: float = 6
    """Loads of one model in an hour that are thrash [loads]."""
    source_stale: float = 300
    """Age of a source's last success that is stale [s]."""
    source_slow: float = 2.5
    """Duration of a collection that is slow; by default one is given up after 5 s [s]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleSettings:
    """What a user chooses. Every part of the bundle has `files(settings) -> dict[relative path, text]`."""

    thresholds: Thresholds = field(default_factory=Thresholds)
    selector: str = ""
    """Label matchers that every query gets, such as `cluster="x"`; empty for none."""
    exporter_job: str = "llm-headroom"
    """The label `job` of the exporters."""
    runbook_base_url: str = "https://github.com/llm-headroom/llm-headroom/blob/main/alerts/runbooks"
    """URL below which each alert has its page, `<alert>.md`."""
    dashboard_base_url: str = "http://localhost:3000"
    """URL of Grafana."""
    for_scale: float = 1.0
    """Factor on how long conditions must hold; below 1 for demonstrations and tests."""
