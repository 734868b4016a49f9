"""How every panel of every dashboard shows what its queries give: kind, size, unit, colours, ends of its scale, names.

`fixtures/dashboard_panels.txt` has a line for each. Nothing writes it: who changes a panel changes it there, too.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from dashboard_queries import drawn
from llm_headroom.bundle import dashboards
from llm_headroom.bundle.dashboards.panel import Panel
from llm_headroom.bundle.settings import BundleSettings

ELSE: Final = frozenset(
    ("at_least", "stacked", "empty", "alert", "sort", "styles", "link", "whose", "calcs", "repeat", "step")
)
"""Fields that `shown` and the readings of queries (test_query_readings) do not say."""
WRITTEN: Final = Path(__file__).parent / "fixtures" / "dashboard_panels.txt"


def steps_of(fields: Any) -> str:  # noqa: ANN401 - JSON
    """From which value on there is which colour."""
    return " ".join(f"{step['color']}@{step['value']}" for step in fields.get("thresholds", {}).get("steps", ()))


def shown(panel: Any) -> str:  # noqa: ANN401 - JSON
    """A panel in a line: title, kind, width and height, unit, decimals, scale, colours from which value on.

    One of several readings in a tile may have colours of its own.
    """
    fields = panel["fieldConfig"]["defaults"]
    colours = steps_of(fields)
    for each in panel["fieldConfig"]["overrides"]:
        if panel["type"] == "stat" and (own := steps_of({one["id"]: one["value"] for one in each["properties"]})):
            colours += f" | {each['matcher']['options']} {own}"
    place = panel["gridPos"]
    known = {name: fields[name] for name in ("unit", "decimals", "min", "max", "noValue") if name in fields}
    size = f"{panel['type']} {place['w']}x{place['h']}"
    return f"{panel['title']} | {size} | {json.dumps(known, ensure_ascii=False)} | {colours}"


def more(panel: Panel) -> str:
    """What else a panel does not have by default, and the names of its curves."""
    found = {each.name: getattr(panel, each.name) for each in fields(Panel) if each.name in ELSE}
    defaults = {each.name: each.default for each in fields(Panel)}
    found = {name: value for name, value in found.items() if value != defaults[name]}
    legends = [query.legend for query in panel.queries if query.legend]
    return " ".join(f"{name}={value}" for name, value in (found | ({"names": legends} if legends else {})).items())


def test_every_panel_is_shown_as_it_is_written_down() -> None:
    found: list[str] = []
    texts = dashboards.files(BundleSettings())
    for one in dashboards.dashboards(BundleSettings()):
        found.append(f"# {one.uid} from {one.since} on")
        forms = map(shown, drawn(json.loads(texts[f"dashboards/{one.uid}.json"])))
        for row in one.rows:
            found.append(f"## {row.title} {row.optional} {row.repeat}".rstrip())
            found += [f"{next(forms)} | {more(panel)}".rstrip() for panel in row.panels]
    assert found == WRITTEN.read_text(encoding="utf-8").splitlines()
