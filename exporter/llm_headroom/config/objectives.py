"""Latency objectives: those of the configuration, and those that a target has in their place."""

from dataclasses import dataclass

from llm_headroom.config.kinds import Share, Threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives:
    """Objectives: thresholds in seconds of up to three latencies, and the target share of requests within each."""

    ttft: Threshold = 2.5
    """Time to first token."""
    inter_token_latency: Threshold = 0.2
    """Inter-token latency."""
    request_duration: Threshold | None = None
    """Request duration (E2E). Default: none, as long answers are no fault. Example: `30s`."""
    ratio: Share = 0.95
    """Target share of requests within each threshold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnObjectives:
    """Objectives of one target; None: as in the whole configuration."""

    ttft: Threshold | None = None
    """Time to first token. Default: the top-level value. Example: `2s`."""
    inter_token_latency: Threshold | None = None
    """Inter-token latency. Default: the top-level value. Example: `50ms`."""
    request_duration: Threshold | None = None
    """Request duration (E2E). Default: the top-level value. Example: `30s`."""
    ratio: Share | None = None
    """Target share of requests within each threshold. Default: the top-level value. Example: `0.99`."""
