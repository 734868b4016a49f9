"""Bars, bands and history lines as SVG. Sizes are attributes and colours classes: the page allows no inline styles."""

from __future__ import annotations

from math import floor, log10
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom.web.look import escape

if TYPE_CHECKING:
    from collections.abc import Sequence

SIDE: Final = 1000
"""Width and height of a drawing in its own units; it is stretched to its place."""
SHORTEST: Final = 60.0
"""Seconds that a chart shows at least; it grows with what is remembered."""
_HEIGHTS: Final = {"bad": 3, "warn": 2, "unknown": 2, "good": 1}
"""Thirds of a band's height, so that levels differ by more than their colour."""


class Curve(NamedTuple):
    """A line: its class, its name, and a value for each of the chart's ages; None where there was none."""

    kind: str
    name: str
    values: Sequence[float | None]


class Segment(NamedTuple):
    """A part of a band, from and to so many seconds ago: the level, and what it says in words."""

    start: float
    end: float
    level: str
    label: str


def bar(parts: Sequence[tuple[str, float]], label: str) -> str:
    """Shares of a whole side by side, each with its class; what is left of the whole is the bar's ground.

    `label` says the same in words.
    """
    drawn, at = [], 0.0
    for kind, share in parts:
        width = min(max(share, 0.0), 1.0 - at)
        if width > 0:
            drawn.append(f'<rect class="{kind}" x="{at * 100:.1f}" y="0" width="{width * 100:.1f}" height="1"/>')
        at += width
    return (
        f'<svg class="bar" viewBox="0 0 100 1" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        f"{''.join(drawn)}</svg>"
    )


def band(segments: Sequence[Segment], span: float, label: str) -> str:
    """States over the last `span` seconds."""
    drawn = []
    for each in segments:
        left, right = (SIDE * (1 - min(age, span) / span) for age in (each.start, each.end))
        if right > left:
            height = _HEIGHTS[each.level]
            drawn.append(
                f'<rect class="{each.level}" x="{left:.0f}" y="{3 - height}" width="{right - left:.0f}" '
                f'height="{height}"><title>{escape(each.label)}</title></rect>'
            )
    return (
        f'<svg class="band" viewBox="0 0 {SIDE} 3" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        f"{''.join(drawn)}</svg>"
    )


def chart(curves: Sequence[Curve], ages: Sequence[float], *, top: float, span: float, label: str) -> str:
    """Lines over the last `span` seconds, from 0 to `top`; gaps where there was no value."""
    drawn = []
    for kind, name, values in curves:
        for run in _runs(values, ages):
            points = " ".join(f"{SIDE * (1 - age / span):.0f},{_up(value, top):.0f}" for age, value in run)
            if len(run) == 1:
                points += f" {points}"  # a dot, by the round cap of the line
            drawn.append(f'<polyline class="{kind}" data-name="{escape(name)}" points="{points}"/>')
    return (
        f'<svg class="chart" viewBox="0 0 {SIDE} {SIDE}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}">{"".join(drawn)}</svg>'
    )


def rounded_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50, …: where an axis may end."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** floor(log10(value))
    return next(step * unit for step in (1, 2, 5, 10) if step * unit >= value * (1 - 1e-9))


def _up(value: float, top: float) -> float:
    return SIDE * (1 - (min(max(value / top, 0.0), 1.0) if top > 0 else 0.0))


def _runs(values: Sequence[float | None], ages: Sequence[float]) -> list[list[tuple[float, float]]]:
    """The values without gaps between them, with their ages."""
    found: list[list[tuple[float, float]]] = [[]]
    for age, value in zip(ages, values, strict=True):
        if value is not None:
            found[-1].append((age, value))
        elif found[-1]:
            found.append([])
    return [run for run in found if run]
