"""Panels as frozen values, and Grafana's classic JSON of them (Grafana 10.4 and newer; schema version 39)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeAlias

from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.view.text import STATE_MARKS

Json: TypeAlias = dict[str, Any]

DATASOURCE: Final[Json] = {"type": "prometheus", "uid": "${datasource}"}
NOT_EXPOSED: Final = -2
"""Stands for a reading that no selected source gives although one is up; no metric that a panel shows can be -2."""
NOT_FILLING: Final = -3
"""Stands for a time that does not come, as nothing grows."""

ENGINE_COLOURS: Final = {engine.name: engine.colour for engine in BUILT_IN.values()} | {"nvml": "#8e8e99"}
"""The same on every dashboard: a series whose name begins with an engine has a shade of its colour."""

_METRIC: Final = re.compile(r"\b(?:(?:\w+:)?llm_\w+(?::\w+)?|ALERTS|up(?=\{)|scrape_\w+|process_\w+)")
GOOD: Final = "#1E9A85"
WARN: Final = "#FFC845"
BAD: Final = "#960F35"
UNKNOWN: Final = "#D4D6E0"
"""Colours of judgements. They differ in lightness, so that those who see no green or no red tell them apart, too."""
_LOWEST: Final = -1e15
"""Below every reading."""
_WORDS: Final = {
    GOOD: f"{STATE_MARKS['good']} fine",
    WARN: f"{STATE_MARKS['warn']} watch",
    BAD: f"{STATE_MARKS['bad']} bad",
}


class Kind(StrEnum):
    """Types of panels by Grafana's names."""

    TIMESERIES = "timeseries"
    STAT = "stat"
    TABLE = "table"
    BARS = "bargauge"
    HEATMAP = "heatmap"


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression and how its series are called, in Grafana's `{{label}}` form."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Steps:
    """Colours by value: `base` below the first bound, then each colour from its bound on."""

    base: str
    bounds: tuple[tuple[float, str], ...] = ()


PLAIN: Final = Steps("text")


def above(warning: float, critical: float | None = None) -> Steps:
    """Good until a value rises to `warning`, bad from `critical` on; the alerts' own bounds."""
    return Steps(GOOD, ((warning, WARN),) + (((critical, BAD),) if critical is not None else ()))


def below(warning: float, critical: float | None = None) -> Steps:
    """Bad up to `critical`, doubtful up to `warning`, good from there on."""
    if critical is None:
        return Steps(WARN, ((warning, GOOD),))
    return Steps(BAD, ((critical, WARN), (warning, GOOD)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table: of a query (`query` is its place) or of a label (`label`).

    `link` is where a click on its cells leads.
    """

    title: str
    label: str = ""
    query: int = -1
    unit: str = ""
    steps: Steps | None = None
    bar: float | None = None  # the value at which a bar is full
    width: int | None = None
    decimals: int | None = None
    link: str = ""
    words: tuple[tuple[float, str, str], ...] = ()  # a value, its text and its colour

    def field(self, queries: int) -> str:
        """Return what Grafana calls it in a table of so many queries, before it is renamed."""
        return self.label or (f"Value #{chr(ord('A') + self.query)}" if queries > 1 else "Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel.

    Attributes:
        answers: what a reader learns from it, and what to make of it.
        empty: why it may have no data though all is well; None for one that must have some.
        alert: the alert whose runbook it links to.
        no_value: what a reading says that has no series.
        styles: per regular expression of series names, properties that differ.
    """

    kind: Kind
    title: str
    answers: str
    queries: tuple[Query, ...]
    unit: str = "short"
    width: int = 8
    height: int = 8
    steps: Steps = PLAIN
    lowest: float | None = None
    highest: float | None = None
    decimals: int | None = None
    at_least: float | None = None  # the axis reaches so far, even if no curve does
    stacked: bool = False
    empty: str | None = None
    alert: str = ""
    columns: tuple[Column, ...] = ()
    sort: str = ""
    styles: tuple[tuple[str, Json], ...] = ()
    link: str = ""
    no_value: str = "No data"

    def description(self) -> str:
        """What it answers, why it may be empty, and from which metrics."""
        parts = [self.answers]
        if self.empty is not None:
            parts.append(f"Empty {self.empty}.")
        names = dict.fromkeys(
            re.sub(r"_(bucket|sum|count)$", "", name) if name.startswith("llm_") else name
            for query in self.queries
            for name in _METRIC.findall(query.expr)
        )
        return "\n\n".join([*parts, "Metrics: " + ", ".join(f"`{name}`" for name in names)])

    def to_json(self, number: int, place: tuple[int, int], runbook_url: str) -> Json:
        """Return Grafana's form of it, `number` its id, `place` its left upper corner in the grid."""
        left, top = place
        found: Json = {
            "id": number,
            "type": str(self.kind),
            "title": self.title,
            "description": self.description(),
            "datasource": DATASOURCE,
            "gridPos": {"x": left, "y": top, "w": self.width, "h": self.height},
            "targets": [self._target(place, query) for place, query in enumerate(self.queries)],
            "fieldConfig": {"defaults": self._defaults(), "overrides": self._overrides()},
            "options": self._options(),
        }
        if self.kind is Kind.TABLE:
            found["transformations"] = self._transformations()
        if self.alert and runbook_url:
            found["links"] = [{"title": f"Runbook: {self.alert}", "url": runbook_url, "targetBlank": True}]
        return found

    def _target(self, place: int, query: Query) -> Json:
        found: Json = {"refId": chr(ord("A") + place), "datasource": DATASOURCE, "expr": query.expr}
        if self.kind is Kind.TABLE:
            return {**found, "format": "table", "instant": True, "range": False}
        if self.kind in {Kind.BARS, Kind.STAT}:
            return {**found, "legendFormat": query.legend or "__auto", "instant": True, "range": False}
        if self.kind is Kind.HEATMAP:
            return {**found, "legendFormat": "{{le}}", "format": "heatmap", "range": True}
        return {**found, "legendFormat": query.legend or "__auto", "range": True}

    def _defaults(self) -> Json:
        found: Json = {
            "unit": self.unit,
            "mappings": [*_mappings(), *([_MISSING] if self.kind is Kind.TABLE else [])],
            "thresholds": thresholds(self.steps),
            "color": {"mode": "thresholds"},
            "noValue": self.no_value if self.kind is not Kind.TABLE else "–",
        }
        found |= {
            name: value
            for name, value in (("min", self.lowest), ("max", self.highest), ("decimals", self.decimals))
            if value is not None
        }
        if self.link:
            found["links"] = [{"title": "Look into it", "url": self.link}]
        if self.kind is Kind.TIMESERIES:
            found["color"] = {"mode": "palette-classic"}
            found["custom"] = {
                "drawStyle": "line",
                "lineInterpolation": "linear",
                "lineWidth": 0 if self.stacked else 1,
                "fillOpacity": 65 if self.stacked else 5,
                "gradientMode": "none",
                "showPoints": "never",
                "spanNulls": False,
                "axisSoftMin": 0,
                "stacking": {"mode": "normal" if self.stacked else "none", "group": "A"},
                "thresholdsStyle": {"mode": "dashed" if self.steps.bounds else "off"},
            }
            if self.at_least is not None:
                found["custom"]["axisSoftMax"] = self.at_least
        elif self.kind is Kind.BARS:
            found["color"] = {"mode": "palette-classic"}
        elif self.kind is Kind.TABLE:
            found["custom"] = {"align": "auto", "filterable": False, "cellOptions": {"type": "auto"}}
        return found

    def _overrides(self) -> list[Json]:
        if self.kind is Kind.TABLE:
            return [_override("byName", column.title, _cells(column)) for column in self.columns]
        found = []
        if self.kind in {Kind.TIMESERIES, Kind.BARS}:
            found = [
                _override("byRegexp", f"/^{engine}( |$)/", {"color": {"mode": "shades", "fixedColor": colour}})
                for engine, colour in ENGINE_COLOURS.items()
            ]
        elif self._judged():
            found = _spoken(self.steps)
        return found + [_override("byRegexp", f"/{pattern}/", style) for pattern, style in self.styles]

    def _judged(self) -> bool:
        """Whether it is one reading with bounds."""
        return self.kind is Kind.STAT and len(self.queries) == 1 and bool(self.steps.bounds)

    def _options(self) -> Json:
        reduced = {"calcs": ["last"], "fields": "", "values": False}
        match self.kind:
            case Kind.TIMESERIES:
                return {
                    "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []},
                    "tooltip": {"mode": "multi", "sort": "desc"},
                }
            case Kind.STAT:
                return {
                    "reduceOptions": reduced,
                    "colorMode": "background_solid" if self.steps.bounds or self.styles else "none",
                    "graphMode": "none",
                    "justifyMode": "center",
                    "textMode": "value_and_name" if len(self.queries) > 1 or self._judged() else "value",
                    "orientation": "auto",
                }
            case Kind.BARS:
                return {
                    "reduceOptions": reduced,
                    "displayMode": "basic",
                    "orientation": "horizontal",
                    "showUnfilled": True,
                    "valueMode": "color",
                    "minVizHeight": 16,
                }
            case Kind.HEATMAP:
                return {
                    "calculate": False,
                    "cellGap": 1,
                    "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5},
                    "yAxis": {"unit": self.unit, "axisPlacement": "left"},
                    "rowsFrame": {"layout": "auto"},
                    "filterValues": {"le": 1e-9},
                    "tooltip": {"mode": "single", "yHistogram": True, "showColorScale": True},
                    "legend": {"show": True},
                }
            case Kind.TABLE:
                found: Json = {"showHeader": True, "cellHeight": "sm", "footer": {"show": False}}
                if self.sort:
                    falling = self.sort.startswith("-")
                    found["sortBy"] = [{"displayName": self.sort.removeprefix("-"), "desc": falling}]
                return found

    def _transformations(self) -> list[Json]:
        """Put the queries' rows together by their labels, then name and order the columns."""
        keys = {
            label: True
            for label in ("engine", "cluster", "namespace", "instance")
            if label not in {one.label for one in self.columns}
        }
        fields = [column.field(len(self.queries)) for column in self.columns]
        return [
            {"id": "merge", "options": {}},
            {
                "id": "organize",
                "options": {
                    "excludeByName": {"Time": True} | keys,
                    "indexByName": {name: place for place, name in enumerate(fields)},
                    "renameByName": {name: column.title for name, column in zip(fields, self.columns, strict=True)},
                },
            },
        ]


def _mappings() -> list[Json]:
    """Texts for what is not a number: a value that no source exposes, and one that needs traffic."""
    return [
        {"type": "value", "options": {str(NOT_EXPOSED): {"text": "Not exposed", "color": UNKNOWN, "index": 0}}},
        {"type": "value", "options": {str(NOT_FILLING): {"text": "Not filling", "color": GOOD, "index": 2}}},
        {
            "type": "special",
            "options": {"match": "nan", "result": {"text": "No traffic", "color": UNKNOWN, "index": 1}},
        },
    ]


_MISSING: Final[Json] = {
    "type": "special",
    "options": {"match": "null", "result": {"text": "–", "color": "transparent", "index": 99}},
}
"""A cell without a value must not have the colour of a bad one."""


def thresholds(steps: Steps) -> Json:
    """Return Grafana's form of the colours. Its base is also the colour of no data, which is neither good nor bad."""
    judged = ((_LOWEST, steps.base), *steps.bounds) if steps.bounds else ()
    base = UNKNOWN if judged else steps.base
    bounds = [{"color": base, "value": None}, *({"color": name, "value": at} for at, name in judged)]
    return {"mode": "absolute", "steps": bounds}


def _spoken(steps: Steps) -> list[Json]:
    """Name a reading by what its colour means; the last one that fits counts."""
    named = [("gte", at, _WORDS.get(colour, " ")) for at, colour in ((_LOWEST, steps.base), *steps.bounds)]
    named.append(("eq", NOT_EXPOSED, f"{STATE_MARKS['unknown']} unknown"))
    return [
        {
            "matcher": {"id": "byValue", "options": {"reducer": "last", "op": op, "value": at}},
            "properties": [{"id": "displayName", "value": name}],
        }
        for op, at, name in named
    ]


def _override(matcher: str, options: str, properties: Json) -> Json:
    return {
        "matcher": {"id": matcher, "options": options},
        "properties": [{"id": name, "value": value} for name, value in properties.items()],
    }


def _cells(column: Column) -> Json:
    found: Json = {}
    if column.unit:
        found["unit"] = column.unit
    if column.steps is not None:
        found["thresholds"] = thresholds(column.steps)
        found["custom.cellOptions"] = {"type": "color-background", "mode": "basic"}
    if column.bar is not None:
        found |= {"min": 0, "max": column.bar}
        found["custom.cellOptions"] = {"type": "gauge", "mode": "basic", "valueDisplayMode": "color"}
    if column.words:
        options = {
            f"{at:g}": {"text": text, "color": hue, "index": n} for n, (at, text, hue) in enumerate(column.words)
        }
        found["mappings"] = [{"type": "value", "options": options}, _MISSING]
        found["custom.cellOptions"] = {"type": "color-background", "mode": "basic"}
    if column.decimals is not None:
        found["decimals"] = column.decimals
    if column.width is not None:
        found["custom.width"] = column.width
    if column.link:
        found["links"] = [{"title": "Open ${__value.text}", "url": column.link}]
    return found
