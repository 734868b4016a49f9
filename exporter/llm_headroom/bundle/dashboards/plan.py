"""What all dashboards have in common: their addresses, their links, their variables and their annotations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from llm_headroom.bundle.dashboards.dashboard import Dashboard, Link, Row, Variable
from llm_headroom.bundle.dashboards.scope import Scope
from llm_headroom.thresholds import Thresholds

if TYPE_CHECKING:
    from llm_headroom.bundle.settings import BundleSettings

Rows: TypeAlias = Callable[[Scope, Thresholds, str], tuple[Row, ...]]
"""Makes rows from what is selected, the bounds at which colours change, and the matchers of our alerts in ALERTS."""

TITLES: Final = {
    "fleet": "Fleet",
    "engine": "Engine",
    "kv": "KV cache and capacity",
    "gpu": "GPU",
    "ollama": "Ollama",
    "compare": "Engine comparison",
    "exporter": "Exporter health",
}
"""By name, which is part of the address and never changes."""
KEPT: Final = "&".join(f"${{{name}:queryparam}}" for name in ("datasource", "job", "cluster", "namespace"))
"""What a link that does not take every variable takes."""
_OURS: Final = 'alertname=~"LLM.+", cluster=~"|$cluster", namespace=~"|$namespace"'
"""Alerts of the selected clusters; one of no cluster is everyone's."""
_ALL: Final = ("engine", "model", "target")
_RANGE: Final = '"range":{"from":"${__from}","to":"${__to}"}'
_EXPLORE: Final = "/explore?schemaVersion=1&panes="
_LOGS: Final = Link(
    "Logs",
    f'{_EXPLORE}{{"a":{{"datasource":"${{logs}}","queries":[{{"refId":"A","expr":${{selector:json}}}}],{_RANGE}}}}}',
    whole=False,
)
_TRACES: Final = Link(
    "Traces",
    f'{_EXPLORE}{{"a":{{"datasource":"${{traces}}","queries":[{{"refId":"A","queryType":"traceqlSearch"}}],{_RANGE}}}}}',
    whole=False,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """A dashboard, but for what the user chooses.

    `choices` are what can be selected besides the place; the rest of them is carried on to other pages. With `single`
    one target must be chosen, so that the page asks for few series however large the fleet is; its links also lead to
    logs and traces. With `baseline` there is one engine to which others are compared.
    """

    name: str
    description: str
    rows: Rows
    choices: tuple[str, ...] = _ALL
    single: bool = False
    baseline: bool = False
    since: str = "now-1h"

    def drawn(self, settings: BundleSettings) -> Dashboard:
        """The dashboard as the user wants it."""
        scope = Scope(settings.selector, settings.exporter_job, self.choices)
        alerts = ", ".join(filter(None, (_OURS, settings.selector)))
        return Dashboard(
            uid=_uid(self.name),
            title=f"llm-headroom / {TITLES[self.name]}",
            description=self.description,
            variables=(*scope.variables(single=self.single), *([_baseline(scope)] if self.baseline else [])),
            annotations=scope.annotations(alerts),
            rows=self.rows(scope, settings.thresholds, alerts),
            links=(*_links(self.name), *((_LOGS, _TRACES) if self.single else ())),
            since=self.since,
            source=settings.datasource_type,
            beside=(("logs", "loki"), ("traces", "tempo")) if self.single else (),
        )


def _uid(name: str) -> str:
    return f"llm-headroom-{name}"


def _links(name: str) -> tuple[Link, ...]:
    """The ways to the other pages. The engine's page has its own target, since it shows one."""
    found = {other: Link(title, f"/d/{_uid(other)}") for other, title in TITLES.items() if other != name}
    if name != "engine":
        url = f"/d/{_uid('engine')}?{KEPT}&${{engine:queryparam}}&${{model:queryparam}}"
        found["engine"] = Link(TITLES["engine"], url, whole=False)
    return tuple(found.values())


def _baseline(scope: Scope) -> Variable:
    query = f"label_values(llm_generation_tokens_total{{{scope.matchers(())}}}, engine)"
    return Variable("baseline", "Baseline", query, several=False)
