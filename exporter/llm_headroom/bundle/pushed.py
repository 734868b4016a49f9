"""What rules and dashboards need where exporters push over OTLP and nothing scrapes them: the series `up`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llm_headroom.bundle.rule import Recording, expression

if TYPE_CHECKING:
    from llm_headroom.bundle.settings import BundleSettings

_EXPORTER: Final = "max by (cluster, namespace, job, instance)"
UP: Final = Recording(
    "up",
    f'{_EXPORTER} (llm_build_info{{job="$exporter_job"}})'
    f' or {_EXPORTER} (last_over_time(llm_build_info{{job="$exporter_job"}}[1h])) * 0',
)
"""1 while an exporter pushes, and 0 for an hour after it has stopped, as Prometheus has it of those that it scrapes."""


def groups(settings: BundleSettings) -> dict[str, Any]:
    """A rule file for stores that are pushed to; beside scraped exporters it would give `up` twice."""
    rule = {"record": UP.name, "expr": expression(UP.expr, settings)}
    return {"groups": [{"name": "llm-headroom.pushed", "rules": [rule]}]}
