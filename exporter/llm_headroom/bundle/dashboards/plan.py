"""What all dashboards have in common: their address, their variables and their annotations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from llm_headroom.bundle.dashboards.dashboard import Dashboard, Row, Variable
from llm_headroom.bundle.dashboards.scope import Scope
from llm_headroom.thresholds import Thresholds

if TYPE_CHECKING:
    from llm_headroom.bundle.settings import BundleSettings

Rows: TypeAlias = Callable[[Scope, Thresholds, str], tuple[Row, ...]]
"""Makes rows from what is selected, the bounds at which colours change, and the matchers of our alerts in ALERTS."""


_OURS: Final = 'alertname=~"LLM.+", cluster=~"|$cluster", namespace=~"|$namespace"'
"""Alerts of the selected clusters; one of no cluster is everyone's."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A dashboard, but for what the user chooses; `name` is part of its address and never changes.

    With `gpus` GPUs can be selected, and with `baseline` one engine to which others are compared.
    """

    name: str
    title: str
    description: str
    rows: Rows
    gpus: bool = False
    baseline: bool = False
    since: str = "now-1h"

    def drawn(self, settings: BundleSettings) -> Dashboard:
        """Return the dashboard as the user wants it."""
        scope = Scope(settings.selector, settings.exporter_job, gpus=self.gpus)
        alerts = ", ".join(filter(None, (_OURS, settings.selector)))
        return Dashboard(
            uid=f"llm-headroom-{self.name}",
            title=f"llm-headroom / {self.title}",
            description=self.description,
            variables=(*scope.variables(), *([_baseline(scope)] if self.baseline else [])),
            annotations=scope.annotations(alerts),
            rows=self.rows(scope, settings.thresholds, alerts),
            since=self.since,
        )


def _baseline(scope: Scope) -> Variable:
    query = f"label_values(llm_generation_tokens_total{{{scope.matchers(())}}}, engine)"
    return Variable("baseline", "Baseline", query, several=False)
