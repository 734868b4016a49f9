"""Panels as frozen values, and Grafana's classic JSON of them (Grafana 10.4 and newer; schema version 39)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeAlias

from llm_headroom.bundle.dashboards.colours import BAD, ENGINES, GOOD, UNKNOWN, WARN
from llm_headroom.view.text import STATE_MARKS

Json: TypeAlias = dict[str, Any]
Words: TypeAlias = tuple[tuple[float, str, str], ...]
"""Values with their texts and colours."""

NOT_EXPOSED: Final = -2
"""Stands for a reading that no selected source gives although one is up; no metric that a panel shows can be -2."""
NOT_KNOWN: Final = -4
"""The same of what is worked out, and takes traffic to be known."""
NOT_FILLING: Final = -3
"""Stands for a time that does not come, as nothing grows."""

_METRIC: Final = re.compile(r"\b(?:(?:\w+:)?llm_\w+(?::\w+)?|ALERTS|up(?=\{)|scrape_\w+|process_\w+)")
NO_DATA: Final = "No data"
_GRID: Final = 24
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
    STATES = "state-timeline"


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
UNPAINTED: Final = Steps("transparent")
"""Of readings beside others that are judged."""


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
    words: Words = ()

    def field(self, queries: int) -> str:
        """What Grafana calls it in a table of so many queries, before it is renamed."""
        return self.label or (f"Value #{chr(ord('A') + self.query)}" if queries > 1 else "Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel.

    Attributes:
        answers: what a reader learns from it, and what to make of it.
        empty: why it may have no data though all is well; None for one that must have some.
        alert: the alert whose runbook it links to.
        no_value: what a reading says that has no series.
        whose: of a tile, what one number of many it is: the sum, the worst target's.
        styles: per regular expression of series names, properties that differ.
        calcs: what a legend as a table says of each curve, the first of which sorts it.
        words: of a state timeline, its states; of a tile, what its numbers mean.
        repeat: the variable for each of whose values it is drawn.
        step: the least time from one point of its curves to the next, where it is not as of others.
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
    no_value: str = NO_DATA
    whose: str = ""
    calcs: tuple[str, ...] = ()
    words: Words = ()
    repeat: str = ""
    step: str = ""

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

    def to_json(self, number: int, place: tuple[int, int], runbook_url: str, source: Json) -> Json:
        """Grafana's form of it, `number` its id, `place` its left upper corner in the grid."""
        left, top = place
        found: Json = {
            "id": number,
            "type": str(self.kind),
            "title": self.title,
            "description": self.description(),
            "datasource": source,
            "gridPos": {"x": left, "y": top, "w": self.width, "h": self.height},
            "targets": [
                {"refId": chr(ord("A") + place), "datasource": source, "expr": query.expr} | self._form(query)
                for place, query in enumerate(self.queries)
            ],
            "fieldConfig": {"defaults": self._defaults(), "overrides": self._overrides()},
            "options": self._options(),
        }
        if step := self._step():
            found["interval"] = step
        if self.kind is Kind.TABLE:
            found["transformations"] = self._transformations()
        if self.repeat:
            found |= {"repeat": self.repeat, "repeatDirection": "h", "maxPerRow": _GRID // self.width}
        if self.alert and runbook_url:
            found["links"] = [{"title": f"Runbook: {self.alert}", "url": runbook_url, "targetBlank": True}]
        return found

    def _step(self) -> str:
        """Least step of its curves: pages judge states twice a minute, and a rate of 5 min changes little within one.

        Each step costs Prometheus a look at every series; over a fleet they are what a dashboard costs.
        """
        if self.step or self.kind is Kind.STATES:
            return self.step or "30s"
        drawn = self.kind in {Kind.TIMESERIES, Kind.HEATMAP}
        return "1m" if drawn and any("[5m]" in query.expr for query in self.queries) else ""

    def _form(self, query: Query) -> Json:
        if self.kind is Kind.TABLE:
            return {"format": "table", "instant": True, "range": False}
        if self.kind in {Kind.BARS, Kind.STAT}:
            return {"legendFormat": query.legend or "__auto", "instant": True, "range": False}
        if self.kind is Kind.HEATMAP:
            return {"legendFormat": "{{le}}", "format": "heatmap", "range": True}
        return {"legendFormat": query.legend or "__auto", "range": True}

    def _defaults(self) -> Json:
        found: Json = {
            "unit": _unit(self.unit, self.decimals),
            "mappings": [
                *_mappings(),
                *([_MISSING] if self.kind is Kind.TABLE else []),
                *([_worded(self.words)] if self.kind is Kind.STAT and self.words else []),
            ],
            "thresholds": thresholds(self.steps),
            "color": {"mode": "thresholds"},
            "noValue": self._nothing(),
        }
        found |= {
            name: value
            for name, value in (("min", self.lowest), ("max", self.highest), ("decimals", self.decimals))
            if value is not None
        }
        if self.whose:
            found["displayName"] = self.whose
        if self.link:
            found["links"] = [{"title": "Look into it", "url": self.link}]
        if self.kind is Kind.TIMESERIES:
            found["color"] = {"mode": "palette-classic-by-name"}
            found["custom"] = {
                "drawStyle": "line",
                "lineInterpolation": "linear",
                "lineWidth": 0 if self.stacked else 1,
                "fillOpacity": 65 if self.stacked else 0 if self.calcs else 5,
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
            found["color"] = {"mode": "thresholds" if self.steps.bounds else "palette-classic-by-name"}
        elif self.kind is Kind.STATES:
            found["mappings"] = [_worded(self.words)]
            found["custom"] = {"fillOpacity": 85, "lineWidth": 0, "insertNulls": False}
        elif self.kind is Kind.TABLE:
            found["custom"] = {"align": "auto", "filterable": False, "cellOptions": {"type": "auto"}}
        return found

    def _nothing(self) -> str:
        """What it says that has no data: nobody must take what is blind for what is well."""
        if self.kind is Kind.TABLE:
            return "–"
        expected = self.empty is not None and self.no_value == NO_DATA and self.kind is not Kind.STAT
        return f"{NO_DATA}: normal {self.empty}" if expected else self.no_value

    def _overrides(self) -> list[Json]:
        if self.kind is Kind.TABLE:
            return [_override("byName", column.title, _cells(column)) for column in self.columns]
        found = []
        if self.kind in {Kind.TIMESERIES, Kind.BARS}:
            found = [
                override
                for engine, colour in ENGINES.items()
                for override in (
                    _override("byRegexp", f"/^{engine}$/", fixed(colour)),
                    _override("byRegexp", f"/^{engine} · [^·]+$/", {"color": {"mode": "shades", "fixedColor": colour}}),
                )
            ]
        elif self._judged():
            found = _spoken(self.steps, self.whose)
        return found + [_override("byRegexp", f"/{pattern}/", style) for pattern, style in self.styles]

    def _judged(self) -> bool:
        """Whether it is one reading with bounds."""
        return self.kind is Kind.STAT and len(self.queries) == 1 and bool(self.steps.bounds)

    def _options(self) -> Json:
        reduced = {"calcs": ["last"], "fields": "", "values": False}
        match self.kind:
            case Kind.TIMESERIES:
                return {
                    "legend": self._legend(),
                    "tooltip": {"mode": "multi", "sort": "desc"},
                }
            case Kind.STAT:
                return {
                    "reduceOptions": reduced,
                    "colorMode": "background_solid" if self.steps.bounds or self.styles else "none",
                    "graphMode": "none",
                    "justifyMode": "center",
                    "textMode": "value_and_name" if len(self.queries) > 1 or self.whose or self._judged() else "value",
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
                    "text": {"titleSize": 14, "valueSize": 16},
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
            case Kind.STATES:
                return {
                    "showValue": "auto",
                    "rowHeight": 0.85,
                    "mergeValues": True,
                    "alignValue": "left",
                    "legend": {"showLegend": False, "displayMode": "list", "placement": "bottom"},
                    "tooltip": {"mode": "single", "sort": "none"},
                }
            case Kind.TABLE:
                found: Json = {"showHeader": True, "cellHeight": "sm", "footer": {"show": False}}
                if self.sort:
                    falling = self.sort.startswith("-")
                    found["sortBy"] = [{"displayName": self.sort.removeprefix("-"), "desc": falling}]
                return found

    def _legend(self) -> Json:
        if not self.calcs:
            return {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []}
        names = {"lastNotNull": "Last *", "max": "Max", "min": "Min", "mean": "Mean"}
        sort = {"sortBy": names[self.calcs[0]], "sortDesc": self.calcs[0] != "min"}
        return {"showLegend": True, "displayMode": "table", "placement": "right", "calcs": [*self.calcs], **sort}

    def _transformations(self) -> list[Json]:
        """Put the queries' rows together by their labels, then name and order the columns."""
        keys = {
            label: True
            for label in ("engine", "cluster", "namespace", "job", "instance")
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
        {
            "type": "value",
            "options": {
                str(NOT_EXPOSED): {"text": "Not exposed", "color": UNKNOWN, "index": 0},
                str(NOT_KNOWN): {"text": "Not known yet", "color": UNKNOWN, "index": 3},
            },
        },
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
    """Grafana's form of the colours. Its base is also the colour of no data, which is neither good nor bad."""
    judged = ((_LOWEST, steps.base), *steps.bounds) if steps.bounds else ()
    base = UNKNOWN if judged else steps.base
    bounds = [{"color": base, "value": None}, *({"color": name, "value": at} for at, name in judged)]
    return {"mode": "absolute", "steps": bounds}


def _spoken(steps: Steps, whose: str) -> list[Json]:
    """Name a reading by what its colour means, and of whom it is; the last name that fits counts."""
    named = [
        ("gte", at, " · ".join(filter(None, (_WORDS.get(colour), whose))) or " ")
        for at, colour in ((_LOWEST, steps.base), *steps.bounds)
    ]
    named.append(("eq", NOT_FILLING, _WORDS[GOOD]))
    named += [("eq", absent, f"{STATE_MARKS['unknown']} unknown") for absent in (NOT_EXPOSED, NOT_KNOWN)]
    return [
        {
            "matcher": {"id": "byValue", "options": {"reducer": "last", "op": op, "value": at}},
            "properties": [{"id": "displayName", "value": name}],
        }
        for op, at, name in named
    ]


def _worded(words: Words) -> Json:
    options = {f"{at:g}": {"text": text, "color": hue, "index": n} for n, (at, text, hue) in enumerate(words)}
    return {"type": "value", "options": options}


def fixed(colour: str) -> Json:
    """The style of a thing that has one colour wherever it is drawn."""
    return {"color": {"mode": "fixed", "fixedColor": colour}}


def _override(matcher: str, options: str, properties: Json) -> Json:
    return {
        "matcher": {"id": matcher, "options": options},
        "properties": [{"id": name, "value": value} for name, value in properties.items()],
    }


def _unpainted(colour: str) -> str:
    """Leave a cell without colour if all is well: in a table only what is wrong catches the eye."""
    return "transparent" if colour == GOOD else colour


def _unit(unit: str, decimals: int | None) -> str:
    """Whole numbers stay whole: `short` would make 1 K of 1041."""
    return "none" if decimals == 0 and unit in {"", "short"} else unit


def _cells(column: Column) -> Json:
    found: Json = {}
    if unit := _unit(column.unit, column.decimals):
        found["unit"] = unit
    if column.steps is not None:
        painted = Steps(_unpainted(column.steps.base), tuple((at, _unpainted(hue)) for at, hue in column.steps.bounds))
        found["thresholds"] = thresholds(column.steps if column.bar is not None else painted)
        found["custom.cellOptions"] = {"type": "color-background", "mode": "basic"}
    if column.bar is not None:
        found |= {"min": 0, "max": column.bar}
        found["custom.cellOptions"] = {"type": "gauge", "mode": "basic", "valueDisplayMode": "text"}
    if column.words:
        found["mappings"] = [_worded(column.words), _MISSING]
        found["custom.align"] = "left"
        found["custom.cellOptions"] = {"type": "color-background", "mode": "basic"}
    if column.decimals is not None:
        found["decimals"] = column.decimals
    if column.width is not None:
        found["custom.width"] = column.width
    if column.link:
        found["links"] = [{"title": "Open ${__value.text}", "url": column.link}]
    return found
