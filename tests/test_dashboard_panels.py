"""How every panel of every dashboard shows what its queries give: kind, size, unit, colours, ends of its scale.

`fixtures/dashboard_panels.txt` has a line for each. Nothing writes it: who changes a panel changes it there, too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from dashboard_queries import drawn
from llm_headroom.bundle import dashboards
from llm_headroom.bundle.settings import BundleSettings

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


def test_every_panel_is_shown_as_it_is_written_down() -> None:
    found: list[str] = []
    for name, text in dashboards.files(BundleSettings()).items():
        if name.endswith(".json"):
            found += [f"# {Path(name).stem}", *map(shown, drawn(json.loads(text)))]
    assert found == WRITTEN.read_text(encoding="utf-8").splitlines()
