"""What a user of the bundle chooses."""

from __future__ import annotations

from dataclasses import dataclass

from llm_headroom.thresholds import DEFAULT, Thresholds


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleSettings:
    """What a user chooses. Every part of the bundle has `files(settings) -> dict[relative path, text]`."""

    thresholds: Thresholds = DEFAULT
    selector: str = ""
    """Label matchers that every query gets, such as `cluster="x"`; empty for none."""
    exporter_job: str = "llm-headroom"
    """The label `job` of the exporters."""
    runbook_base_url: str = ""
    """URL below which each alert has its page, `<alert>.md`; without one, alerts carry no link to it."""
    dashboard_base_url: str = ""
    """URL of Grafana; without one, alerts carry no link to a dashboard."""
    datasource: str = "prometheus"
    """The uid of the data source that Grafana's alerts read."""
    datasource_type: str = "prometheus"
    """The type of the dashboards' data source: a store that speaks PromQL may have a plugin of its own."""
    for_scale: float = 1.0
    """Factor on how long conditions hold and how often they are evaluated; below 1 for demonstrations and tests."""
