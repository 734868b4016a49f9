"""A dashboard: rows of panels, the variables that select what they show, annotations, and links to its siblings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llm_headroom.bundle.dashboards.panel import DATASOURCE

if TYPE_CHECKING:
    from llm_headroom.bundle.dashboards.panel import Json, Panel

TAG: Final = "llm-headroom"
"""What links the dashboards to one another."""
_GRID: Final = 24


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
    """Something to choose: the values of a label, `several` at once or one."""

    name: str
    label: str
    query: str
    several: bool = True
    regex: str = ""

    def to_json(self) -> Json:
        """Return Grafana's form of it."""
        found: Json = {
            "name": self.name,
            "label": self.label,
            "type": "query",
            "datasource": DATASOURCE,
            "query": {"query": self.query, "refId": f"variable-{self.name}"},
            "definition": self.query,
            "refresh": 2,  # on a change of the time range
            "regex": self.regex,
            "sort": 1,
            "multi": self.several,
            "includeAll": self.several,
            "hide": 0,
            "options": [],
        }
        if self.several:
            found |= {"allValue": ".*", "current": {"selected": True, "text": ["All"], "value": ["$__all"]}}
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
    shown: bool = True

    def to_json(self) -> Json:
        """Return Grafana's form of it."""
        return {
            "name": self.name,
            "datasource": DATASOURCE,
            "enable": self.shown,
            "hide": False,
            "iconColor": self.colour,
            "expr": self.expr,
            "step": "30s",
            "titleFormat": self.title,
            "textFormat": self.text,
            "tagKeys": "engine,target,model,gpu",
            "useValueForTime": self.exact,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """A dashboard; `uid` is part of its address and never changes."""

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    annotations: tuple[Annotation, ...]
    rows: tuple[Row, ...]
    since: str = "now-1h"

    def to_json(self, runbook_url: str) -> Json:
        """Return Grafana's form of it, each alert's runbook at `runbook_url` with `{alert}` replaced."""
        source = {
            "name": "datasource",
            "label": "Data source",
            "type": "datasource",
            "query": "prometheus",
            "regex": "",
            "refresh": 1,
            "multi": False,
            "includeAll": False,
            "hide": 0,
            "options": [],
            "current": {},
        }
        built_in = {
            "name": "Annotations & Alerts",
            "datasource": {"type": "grafana", "uid": "-- Grafana --"},
            "type": "dashboard",
            "builtIn": 1,
            "enable": True,
            "hide": True,
            "iconColor": "rgba(0, 211, 255, 1)",
        }
        return {
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
            "links": [_siblings()],
            "templating": {"list": [source, *(one.to_json() for one in self.variables)]},
            "annotations": {"list": [built_in, *(one.to_json() for one in self.annotations)]},
            "panels": self._panels(runbook_url),
        }

    def _panels(self, runbook_url: str) -> list[Json]:
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
            number, top, left, height = number + 1, top + 1, 0, 0
            placed = []
            for panel in row.panels:
                if left + panel.width > _GRID:
                    left, top = 0, top + height
                url = runbook_url.replace("{alert}", panel.alert)
                placed.append(panel.to_json(number, (left, top), url))
                number, left, height = number + 1, left + panel.width, panel.height
            found.append(head)
            if row.optional:
                head["panels"] = placed
                top = int(head["gridPos"]["y"]) + 1
            else:
                found.extend(placed)
                top += height
        return found


def _siblings() -> Json:
    return {
        "title": "llm-headroom",
        "type": "dashboards",
        "tags": [TAG],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "icon": "external link",
        "tooltip": "",
        "url": "",
    }
