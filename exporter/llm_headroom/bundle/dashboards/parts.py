"""Panels by type, with this project's defaults."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from llm_headroom import schema
from llm_headroom.bundle.dashboards.colours import UNKNOWN
from llm_headroom.bundle.dashboards.panel import (
    NOT_KNOWN,
    UNPAINTED,
    Column,
    Json,
    Kind,
    Panel,
    Query,
    above,
    below,
    fixed,
    thresholds,
)
from llm_headroom.thresholds import LOAD_HEADROOM_LOW

if TYPE_CHECKING:
    from llm_headroom.bundle.dashboards.scope import Scope
    from llm_headroom.thresholds import Thresholds


_RECENT: Final = re.compile(r'\[5m\]|:rate5m\{[^}]*\}(?!\[)|window="300s"')
"""What a query has that reads five minutes, no longer window of what is recorded of them."""


def _queries(what: tuple[Query | str, ...]) -> tuple[Query, ...]:
    return tuple(one if isinstance(one, Query) else Query(one) for one in what)


def _named(title: str, queries: tuple[Query, ...], window: str = "5 min") -> str:
    """The title with the window of its rates, which is one everywhere."""
    between = ", " if "," in title else " "
    return f"{title}{between}{window}" if any(_RECENT.search(one.expr) for one in queries) else title


def _without_nan(expr: str) -> str:
    """Drop NaN, which a quotient of two idle counters is, and a quantile of no observations."""
    return f"({expr}) > -Inf" if " / " in expr or "histogram_quantile" in expr else expr


def lines(title: str, answers: str, *queries: Query | str, **more: Any) -> Panel:  # noqa: ANN401 - fields of Panel
    """Curves over time, with gaps where there is nothing to divide by."""
    drawn = tuple(Query(_without_nan(one.expr), one.legend) for one in _queries(queries))
    return Panel(kind=Kind.TIMESERIES, title=_named(title, drawn), answers=answers, queries=drawn, **more)


def areas(title: str, answers: str, *queries: Query | str, **more: Any) -> Panel:  # noqa: ANN401 - fields of Panel
    """Parts of a whole over time, one on another, from 0."""
    drawn = _queries(queries)
    shown = {"lowest": 0.0} | more
    return Panel(
        kind=Kind.TIMESERIES, title=_named(title, drawn), answers=answers, queries=drawn, stacked=True, **shown
    )


def stat(title: str, answers: str, *queries: Query | str, **more: Any) -> Panel:  # noqa: ANN401 - fields of Panel
    """Current values; several of them need names."""
    defaults = {"width": 3, "height": 4} | more
    shown = _queries(queries)
    return Panel(kind=Kind.STAT, title=_named(title, shown, "5m"), answers=answers, queries=shown, **defaults)


def responding(title: str, answers: str, scope: Scope, up: str, **more: Any) -> Panel:  # noqa: ANN401 - the same
    """Of the sources of `up` those that are down, those behind an unreachable exporter, and those that respond."""
    return stat(
        title,
        answers,
        Query(f"sum(1 - ({up} or {scope.behind(up)} == 0))", "down"),
        Query(f"count({scope.behind(up)} == 1)", "unknown"),
        Query(f"sum({scope.reached(up)})", "up"),
        steps=UNPAINTED,
        styles=(("^down$", {"thresholds": thresholds(above(1, 1))}), ("^unknown$", fixed(UNKNOWN))),
        empty="where no exporter is unreachable",
        alert="LLMEngineDown",
        **more,
    )


def finished_requests_now(scope: Scope) -> Panel:
    """The current rate of finished requests, over all that is selected."""
    return stat(
        "Traffic",
        "Finished requests per second, added up.",
        scope.exposed(f"sum({scope.rate(schema.REQUESTS_FINISHED)})"),
        unit="requests/s",
        whose="sum",
    )


def load_headroom(scope: Scope, **more: Any) -> Panel:  # noqa: ANN401 - fields of Panel
    """The present load headroom within the objectives, of the target that has least."""
    shown = {"whose": "worst"} | more
    return stat(
        "Headroom",
        "How many times its traffic of 15 minutes the target takes that is nearest its limit; below 1 it breaks an "
        "objective of latency. Known after ten minutes with requests, of engines that report their KV cache.",
        scope.exposed(f"min({scope.of(schema.LOAD_HEADROOM)})", absent=NOT_KNOWN),
        unit="suffix: ×",
        decimals=1,
        steps=below(LOAD_HEADROOM_LOW, 1),
        **shown,
    )


def failed_share(scope: Scope, limits: Thresholds) -> Panel:
    """The current share of failed requests."""
    return stat(
        "Failed",
        "Of the target where most fail: requests that did not complete, responses of class 5xx, or requests that a "
        "router could not place, whichever share is greatest. As the alert counts: a client that leaves is no failure.",
        scope.exposed(scope.failed()),
        whose="worst",
        unit="percentunit",
        steps=above(limits.error_share, limits.error_share_high),
        alert="LLMErrorRatioHigh",
    )


def bars(title: str, answers: str, query: Query, **more: Any) -> Panel:  # noqa: ANN401 - fields of Panel
    """One bar for the current value of each series."""
    return Panel(kind=Kind.BARS, title=title, answers=answers, queries=(query,), **more)


def heatmap(title: str, answers: str, query: str, **more: Any) -> Panel:  # noqa: ANN401 - fields of Panel
    """How a histogram's observations are spread over time."""
    shown = (Query(query, "{{le}}"),)
    return Panel(kind=Kind.HEATMAP, title=_named(title, shown), answers=answers, queries=shown, **more)


def table(title: str, answers: str, columns: tuple[tuple[str, Column] | Column, ...], **more: Any) -> Panel:  # noqa: ANN401
    """A table; each column is of a label, or comes with the query that fills it."""
    queries: list[Query] = []
    found: list[Column] = []
    for one in columns:
        if isinstance(one, Column):
            found.append(one)
        else:
            expr, column = one
            found.append(replace(column, query=len(queries)))
            queries.append(Query(expr))
    defaults = {"width": 24} | more
    return Panel(
        kind=Kind.TABLE,
        title=_named(title, tuple(queries)),
        answers=answers,
        queries=tuple(queries),
        columns=tuple(found),
        **defaults,
    )


def dashed(colour: str = "") -> Json:
    """The style of a curve that bounds others: a limit, a capacity."""
    found: Json = {
        "custom.lineStyle": {"fill": "dash", "dash": [8, 6]},
        "custom.lineWidth": 1,
        "custom.fillOpacity": 0,
        "custom.stacking": {"mode": "none", "group": "B"},
    }
    if colour:
        found["color"] = {"mode": "fixed", "fixedColor": colour}
    return found


OBJECTIVE: Final = ("^objective$", dashed("text"))
"""The style of `objective`."""


def objective(scope: Scope, slo: str) -> Query:
    """An objective's threshold, the strictest of all that is selected."""
    return Query(f"min({scope.of(schema.SLO_THRESHOLD, slo=slo)})", "objective")


def quiet() -> Json:
    """The style of a curve that stays in the background."""
    return {"custom.lineStyle": {"fill": "dash", "dash": [4, 4]}, "custom.fillOpacity": 0}
