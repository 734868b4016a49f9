"""A dashboard: rows of panels, the variables that select what they show, annotations, and links to its siblings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from llm_headroom.bundle.dashboards.panel import Json, Panel

TAG: Final = "llm-headroom"
"""By which Grafana finds them."""
_GRID: Final = 24
_OLDEST: Final = "10.4.0"
"""Grafana's version from which on they are tested."""
_PANELS: Final = {
    "timeseries": "Time series",
    "stat": "Stat",
    "table": "Table",
    "bargauge": "Bar gauge",
    "heatmap": "Heatmap",
    "state-timeline": "State timeline",
}


_SELECTOR: Final[Json] = {
    "name": "selector",
    "label": "Selector of logs",
    "type": "textbox",
    "query": '{container=~"vllm|sglang|ollama"}',
    "current": {"text": '{container=~"vllm|sglang|ollama"}', "value": '{container=~"vllm|sglang|ollama"}'},
    "options": [],
    "hide": 0,
}
"""Which logs are the engines' is a matter of each site: to be written once, and saved with a copy of the dashboard."""


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a title that is the question which they answer.

    `optional` says for whom: a collapsed row of what not everybody has. `repeat` is a variable for each of whose values
    the row is drawn.
    """

    title: str
    panels: tuple[Panel, ...]
    optional: str = ""
    repeat: str = ""


@dataclass(frozen=True, slots=True)
class Variable:
    """Something to choose: the values of a label, `several` at once or one.

    One that is `hidden` filters nothing here: links carry it on.
    """

    name: str
    label: str
    query: str
    several: bool = True
    regex: str = ""
    hidden: bool = False

    def to_json(self, source: Json) -> Json:
        """Grafana's form of it."""
        found: Json = {
            "name": self.name,
            "label": self.label,
            "type": "query",
            "datasource": source,
            "query": {"query": self.query, "refId": f"variable-{self.name}"},
            "definition": self.query,
            "refresh": 2,  # on a change of the time range
            "regex": self.regex,
            "sort": 1,
            "multi": self.several,
            "includeAll": self.several,
            "hide": 2 * self.hidden,
            "options": [],
            "allValue": ".*",
        }
        if self.several:
            found |= {"current": {"selected": True, "text": ["All"], "value": ["$__all"]}}
        return found


@dataclass(frozen=True, slots=True)
class Annotation:
    """Events on the time axis.

    `exact` is for expressions whose value is the event's own time, in milliseconds.
    """

    name: str
    expr: str
    title: str
    text: str
    colour: str
    exact: bool = False

    def to_json(self, source: Json) -> Json:
        """Grafana's form of it."""
        return {
            "name": self.name,
            "datasource": source,
            "enable": True,
            "hide": False,
            "iconColor": self.colour,
            "expr": self.expr,
            "step": "1m",
            "titleFormat": self.title,
            "textFormat": self.text,
            "tagKeys": "engine,target,model,gpu",
            "useValueForTime": self.exact,
        }


@dataclass(frozen=True, slots=True)
class Link:
    """A way to another page, at the top. One that is `whole` gets every variable; else its URL has what it gets."""

    title: str
    url: str
    whole: bool = True

    def to_json(self) -> Json:
        """Grafana's form of it."""
        return {
            "title": self.title,
            "type": "link",
            "url": self.url,
            "includeVars": self.whole,
            "keepTime": True,
            "targetBlank": False,
            "asDropdown": False,
            "icon": "dashboard",
            "tags": [],
            "tooltip": "",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """A dashboard; `uid` is part of its address and never changes.

    `source` is the type of its data source, `beside` are sources of logs and traces that its links lead to.
    """

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    annotations: tuple[Annotation, ...]
    rows: tuple[Row, ...]
    links: tuple[Link, ...]
    since: str = "now-1h"
    source: str = "prometheus"
    beside: tuple[tuple[str, str], ...] = ()

    def to_json(self, runbook_url: str) -> Json:
        """Grafana's form of it, each alert's runbook at `runbook_url` with `{alert}` replaced."""
        source = {"type": self.source, "uid": "${datasource}"}
        sources = [_source("datasource", "Data source", self.source)]
        sources += [_source(name, name.capitalize(), kind) for name, kind in self.beside]
        sources += [_SELECTOR] if self.beside else []
        built_in = {
            "name": "Annotations & Alerts",
            "datasource": {"type": "grafana", "uid": "-- Grafana --"},
            "type": "dashboard",
            "builtIn": 1,
            "enable": True,
            "hide": True,
            "iconColor": "rgba(0, 211, 255, 1)",
        }
        panels = self._panels(runbook_url, source)
        return {
            "__inputs": [],
            "__elements": {},
            "__requires": self._requires(),
            "id": None,
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": [TAG],
            "schemaVersion": 39,
            "version": 1,
            "editable": False,
            "graphTooltip": 1,
            "refresh": "30s",
            "timezone": "",
            "time": {"from": self.since, "to": "now"},
            "timepicker": {},
            "fiscalYearStartMonth": 0,
            "weekStart": "",
            "links": [one.to_json() for one in self.links],
            "templating": {"list": [sources[0], *(one.to_json(source) for one in self.variables), *sources[1:]]},
            "annotations": {"list": [built_in, *(one.to_json(source) for one in self.annotations)]},
            "panels": panels,
        }

    def _requires(self) -> list[Json]:
        """What grafana.com says that an import needs."""
        kinds = sorted({str(panel.kind) for row in self.rows for panel in row.panels})
        return [
            {"type": "grafana", "id": "grafana", "name": "Grafana", "version": _OLDEST},
            {"type": "datasource", "id": self.source, "name": self.source.capitalize(), "version": "1.0.0"},
            *({"type": "panel", "id": kind, "name": _PANELS[kind], "version": ""} for kind in kinds),
        ]

    def _panels(self, runbook_url: str, source: Json) -> list[Json]:
        found: list[Json] = []
        number, top = 1, 0
        for row in self.rows:
            head: Json = {
                "id": number,
                "type": "row",
                "title": row.title,
                "collapsed": bool(row.optional),
                "gridPos": {"x": 0, "y": top, "w": _GRID, "h": 1},
                "panels": [],
            }
            if row.repeat:
                head["repeat"] = row.repeat
            number, top, left, height = number + 1, top + 1, 0, row.panels[0].height
            placed = []
            for panel in row.panels:
                if left + panel.width > _GRID:
                    left, top = 0, top + height
                url = runbook_url.replace("{alert}", panel.alert)
                placed.append(panel.to_json(number, (left, top), url, source))
                number, left, height = number + 1, left + panel.width, panel.height
            found.append(head)
            if row.optional:
                head["panels"] = placed
                top = int(head["gridPos"]["y"]) + 1
            else:
                found.extend(placed)
                top += height
        return found


def _source(name: str, label: str, kind: str) -> Json:
    """A variable for a data source of a type."""
    return {
        "name": name,
        "label": label,
        "type": "datasource",
        "query": kind,
        "regex": "",
        "refresh": 1,
        "multi": False,
        "includeAll": False,
        "hide": 0,
        "options": [],
        "current": {},
    }
