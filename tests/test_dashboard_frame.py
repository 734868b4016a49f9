"""Grafana's form of a dashboard that has one panel of each kind: what is around the queries of every dashboard.

`fixtures/dashboard_frame.json` is what Grafana is to get, without the colours of engines. Nothing writes it: who
changes the form changes it there, too.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

from dashboard_queries import drawn
from llm_headroom import schema
from llm_headroom.bundle.dashboards.colours import ENGINES
from llm_headroom.bundle.dashboards.dashboard import Annotation, Dashboard, Link, Row, Variable
from llm_headroom.bundle.dashboards.panel import Column, Kind, Panel, Query, Steps, above, below, fixed
from llm_headroom.bundle.dashboards.parts import areas, dashed, lines, quiet
from llm_headroom.bundle.dashboards.scope import Scope

EXPECTED: Final = Path(__file__).parent / "fixtures" / "dashboard_frame.json"
UP, FREE = Query("llm_up", "{{target}}"), Query("llm_kv_cache_headroom_ratio{a='b'}")
WORDS: Final = ((2.0, "■ down", "red"), (1.0, "✓ ok", "green"))


def panel(kind: Kind, *queries: Query, **more: Any) -> Panel:  # noqa: ANN401 - fields of Panel
    """A panel of a kind, named after it."""
    return Panel(kind=kind, title=str(kind), answers="What it answers.", queries=queries or (UP,), **more)


PLAIN_ROW: Final = Row(
    "Is it up?",
    (
        panel(Kind.STAT, steps=above(1, 2), whose="worst", width=4, height=4, alert="LLMEngineDown", link="/d/x"),
        panel(Kind.STAT, FREE, steps=below(0.1), width=4, height=4, lowest=0.0, highest=1.0, decimals=2),
        panel(Kind.STAT, UP, FREE, width=4, height=4, styles=(("a", fixed("red")),), no_value="none"),
        panel(Kind.TIMESERIES, UP, FREE, width=12, height=4, styles=(("b", dashed("blue")), ("c", quiet()))),
        panel(Kind.TIMESERIES, stacked=True, steps=above(3), at_least=5.0, empty="while idle", calcs=("max", "mean")),
        panel(Kind.BARS, steps=above(1)),
        panel(Kind.BARS, unit="bytes", repeat="gpu"),
    ),
)
OPTIONAL: Final = Row(
    "And what else?",
    (
        panel(Kind.HEATMAP, unit="s"),
        panel(Kind.STATES, words=WORDS, width=16),
        panel(
            Kind.TABLE,
            columns=(
                Column(title="State", query=0, words=WORDS, width=70),
                Column(title="Target", label="target", link="/d/y?${__value.text}"),
            ),
        ),
        panel(
            Kind.TABLE,
            UP,
            FREE,
            width=16,
            sort="-Up",
            columns=(
                Column(title="Up", query=0, steps=Steps("red", ((1.0, "yellow"),)), decimals=1),
                Column(title="Free", query=1, unit="percentunit", steps=below(0.1), bar=1.0),
                Column(title="Engine", label="engine"),
            ),
        ),
        panel(Kind.TIMESERIES, calcs=("min",)),
    ),
    optional="for some",
    repeat="engine",
)
DASHBOARD: Final = Dashboard(
    uid="x",
    title="X",
    description="All of it.",
    variables=(
        Variable("job", "Job", "label_values(llm_up, job)"),
        Variable("one", "One", "q", several=False, regex="/a/", hidden=True),
    ),
    annotations=(
        Annotation("A", "a", "title", "text", "red"),
        Annotation("B", "b", "t", "u", "blue", exact=True),
    ),
    rows=(PLAIN_ROW, OPTIONAL),
    links=(Link("There", "/d/there"), Link("Logs", "/explore", whole=False)),
    beside=(("logs", "loki"),),
)


def form() -> Any:  # noqa: ANN401 - JSON
    """Grafana's form of it, without the colours of engines."""
    made: Any = DASHBOARD.to_json("https://wiki/{alert}.md")
    for each in drawn(made):
        fields = each["fieldConfig"]
        fields["overrides"] = [
            one
            for one in fields["overrides"]
            if not any(str(one["matcher"]["options"]).startswith(f"/^{engine}") for engine in ENGINES)
        ]
    return made


def test_what_grafana_gets() -> None:
    assert form() == json.loads(EXPECTED.read_text(encoding="utf-8"))


def test_a_reading_that_is_not_bad_and_nobody_s_has_no_name() -> None:
    made: Any = panel(Kind.STAT, steps=Steps("text", ((2.0, "red"),))).to_json(1, (0, 0), "", {})
    assert made["fieldConfig"]["overrides"][0]["properties"] == [{"id": "displayName", "value": " "}]


def test_curves_have_gaps_where_there_is_nothing_to_divide_by() -> None:
    quotient, quantile, plain = lines("t", "a", "x / y", "histogram_quantile(0.5, b)", "x").queries
    assert (quotient.expr, quantile.expr) == ("(x / y) > -Inf", "(histogram_quantile(0.5, b)) > -Inf")
    assert plain.expr == "x"


def test_recorded_buckets_of_five_minutes_are_read_as_they_are_and_added_up_over_longer() -> None:
    plain, longer = (Scope().engines_quantile(0.5, schema.TIME_TO_FIRST_TOKEN, *window) for window in ((), ("9m",)))
    assert re.findall(r"(\w+)\([^()]*\[(\w+)\]", plain) == [("rate", "5m")]
    assert re.findall(r"(\w+)\([^()]*\[(\w+)\]", longer) == [("sum_over_time", "9m"), ("rate", "9m")]


def test_areas_lie_on_one_another_from_nothing_on() -> None:
    assert (areas("t", "a", "x").stacked, areas("t", "a", "x").lowest, lines("t", "a", "x").stacked) == (
        True,
        0.0,
        False,
    )
