"""Grafana dashboards, generated: `llm-headroom bundle --only dashboards` writes them.

The builder is our own: frozen values (`panel`, `dashboard`), PromQL over values of the schema (`scope`), and one module
for each dashboard.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from llm_headroom.bundle.dashboards import compare, engine, exporter, fleet, gpu, kv
from llm_headroom.bundle.dashboards.scope import Scope

if TYPE_CHECKING:
    from llm_headroom.bundle.dashboards.dashboard import Dashboard
    from llm_headroom.bundle.settings import BundleSettings

_OURS: Final = 'alertname=~"LLM.+"'


def dashboards(settings: BundleSettings) -> tuple[Dashboard, ...]:
    """Return the dashboards as values."""
    scope = Scope(settings.selector)
    limits = settings.thresholds
    alerts = f"{_OURS}, {settings.selector}" if settings.selector else _OURS
    return (
        fleet.dashboard(scope, limits, alerts),
        engine.dashboard(scope, limits, alerts),
        kv.dashboard(scope, limits, alerts),
        gpu.dashboard(Scope(settings.selector, gpus=True), limits, alerts),
        compare.dashboard(scope, alerts),
        exporter.dashboard(scope, limits, alerts),
    )


def files(settings: BundleSettings) -> dict[str, str]:
    """Return the text of each file by its path: classic JSON for Grafana 10.4 and newer."""
    runbook = settings.runbook_base_url.rstrip("/") + "/{alert}.md"
    return {
        f"dashboards/{one.uid}.json": json.dumps(one.to_json(runbook), indent=2, ensure_ascii=False) + "\n"
        for one in dashboards(settings)
    }
