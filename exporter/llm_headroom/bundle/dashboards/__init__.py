"""Grafana dashboards, generated: `llm-headroom bundle --only dashboards` writes them.

The builder is our own: frozen values (`panel`, `dashboard`), PromQL over values of the schema (`scope`), and one module
for each dashboard's rows, which `plan` makes whole.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from llm_headroom.bundle.dashboards import compare, engine, exporter, fleet, gpu, kv, ollama

if TYPE_CHECKING:
    from llm_headroom.bundle.dashboards.dashboard import Dashboard
    from llm_headroom.bundle.settings import BundleSettings

_PLANS: Final = tuple(module.DASHBOARD for module in (fleet, engine, kv, gpu, ollama, compare, exporter))


def dashboards(settings: BundleSettings) -> tuple[Dashboard, ...]:
    """The dashboards as values."""
    return tuple(plan.drawn(settings) for plan in _PLANS)


def files(settings: BundleSettings) -> dict[str, str]:
    """The text of each file by its path: classic JSON for Grafana 10.4 and newer."""
    base = settings.runbook_base_url.rstrip("/")
    runbook = f"{base}/{{alert}}.md" if base else ""
    return {
        f"dashboards/{one.uid}.json": json.dumps(one.to_json(runbook), indent=2, ensure_ascii=False) + "\n"
        for one in dashboards(settings)
    }
