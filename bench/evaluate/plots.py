"""Two pictures as SVG, which follow the reader's light or dark theme."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evaluate.probability import Bin

SIZE: Final = 360
LEFT, TOP, BOTTOM, KEY = 56, 16, 48, 400
COLOURS: Final = ("a", "b", "c", "d")
STYLE: Final = """<style>
text{font:13px system-ui,sans-serif;fill:#24292f}
.grid{stroke:#d0d7de;stroke-width:1}.even{stroke:#57606a;stroke-dasharray:4 4;fill:none}
.back{fill:#fff}.line{fill:none;stroke-width:2}
.a{stroke:#0969da}.b{stroke:#bc4c00}.c{stroke:#1a7f37}.d{stroke:#57606a}
circle.a{fill:#0969da}circle.b{fill:#bc4c00}circle.c{fill:#1a7f37}circle.d{fill:#57606a}
@media (prefers-color-scheme: dark){
text{fill:#e6edf3}.grid{stroke:#30363d}.even{stroke:#8b949e}.back{fill:#0d1117}
.a{stroke:#58a6ff}.b{stroke:#f0883e}.c{stroke:#3fb950}.d{stroke:#8b949e}
circle.a{fill:#58a6ff}circle.b{fill:#f0883e}circle.c{fill:#3fb950}circle.d{fill:#8b949e}
}
</style>"""


class Mark(NamedTuple):
    """A rule in the picture of precision and recall; `kind` indexes the colours."""

    label: str
    recall: float
    precision: float
    kind: int


def _x(value: float) -> float:
    return LEFT + value * SIZE


def _y(value: float) -> float:
    return TOP + (1.0 - value) * SIZE


def _frame(title: str, across: str, upwards: str, inside: Sequence[str], height: int) -> str:
    width = LEFT + SIZE + KEY
    grid = []
    for tick in range(6):
        value = tick / 5
        grid += [
            f'<path class="grid" d="M{_x(value):.1f} {TOP}v{SIZE}M{LEFT} {_y(value):.1f}h{SIZE}"/>',
            f'<text x="{_x(value):.1f}" y="{TOP + SIZE + 18}" text-anchor="middle">{value:g}</text>',
            f'<text x="{LEFT - 8}" y="{_y(value) + 4:.1f}" text-anchor="end">{value:g}</text>',
        ]
    labels = [
        f'<text x="{_x(0.5)}" y="{TOP + SIZE + 38}" text-anchor="middle">{escape(across)}</text>',
        f'<text transform="translate(16 {_y(0.5)}) rotate(-90)" text-anchor="middle">{escape(upwards)}</text>',
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">'
    back = f'<rect class="back" width="{width}" height="{height}"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", STYLE, back, *grid, *labels, *inside, "</svg>", ""])


def reliability(curves: Mapping[str, Sequence[Bin]]) -> str:
    """How often what was foretold happened, by what was foretold; dots are as large as their share of the forecasts."""
    inside = [f'<path class="even" d="M{_x(0)} {_y(0)}L{_x(1)} {_y(1)}"/>']
    for index, (name, curve) in enumerate(curves.items()):
        colour, whole = COLOURS[index], sum(one.cases for one in curve)
        path = "L".join(f"{_x(one.foretold):.1f} {_y(one.observed):.1f}" for one in curve)
        inside.append(f'<path class="line {colour}" d="M{path}"/>')
        for one in curve:
            radius = 2.0 + 8.0 * math.sqrt(one.cases / whole)
            inside.append(
                f'<circle class="{colour}" cx="{_x(one.foretold):.1f}" cy="{_y(one.observed):.1f}" r="{radius:.1f}"/>'
            )
        y = TOP + 16 + 22 * index
        inside.append(f'<circle class="{colour}" cx="{LEFT + SIZE + 20}" cy="{y - 4}" r="5"/>')
        inside.append(f'<text x="{LEFT + SIZE + 32}" y="{y}">{escape(name)}</text>')
    title = "Reliability of the risks on held-out traces"
    return _frame(title, "foretold probability", "how often it happened", inside, TOP + SIZE + BOTTOM)


def precision_recall(marks: Sequence[Mark]) -> str:
    """Rules by recall and precision, numbered; the key has their names."""
    inside = []
    for index, mark in enumerate(marks, start=1):
        x, y, colour = _x(mark.recall), _y(mark.precision), COLOURS[mark.kind]
        inside.append(f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        inside.append(f'<text x="{x + 8:.1f}" y="{y + 4 + (index % 2) * 10 - 5:.1f}">{index}</text>')
        row = TOP + 8 + 19 * index - 8
        inside.append(f'<circle class="{colour}" cx="{LEFT + SIZE + 24}" cy="{row - 4}" r="4"/>')
        inside.append(f'<text x="{LEFT + SIZE + 34}" y="{row}">{index} {escape(mark.label)}</text>')
    height = max(TOP + SIZE + BOTTOM, TOP + 19 * len(marks) + 16)
    title = "Precision and recall of alerts on held-out traces"
    return _frame(title, "recall", "precision", inside, height)
