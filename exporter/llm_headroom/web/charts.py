"""Bars and history lines as SVG. Sizes are attributes and colours classes, since the page allows no inline styles."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH: Final = 300.0
HEIGHT: Final = 40.0
SHORTEST: Final = 60.0
"""Seconds that a chart shows at least; it grows with what is remembered."""
_MARGIN: Final = 2.0
"""Room for half a line's width above and below, in units of the drawing."""


def bar(parts: Sequence[tuple[str, float]], label: str) -> str:
    """Shares of a whole side by side, each with its class; what is left of the whole is the bar's ground.

    `label` says the same in words.
    """
    drawn, at = [], 0.0
    for kind, share in parts:
        width = min(max(share, 0.0), 1.0 - at)
        if width > 0:
            drawn.append(f'<rect class="{kind}" x="{at * 100:.2f}" y="0" width="{width * 100:.2f}" height="1"/>')
        at += width
    return (
        f'<svg class="bar" viewBox="0 0 100 1" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        f"{''.join(drawn)}</svg>"
    )


def chart(lines: Sequence[tuple[str, Sequence[float | None]]], ages: Sequence[float], *, top: float, label: str) -> str:
    """Lines over the remembered time, each with its class, from 0 to `top`; gaps where there was no value."""
    drawn = []
    span = max(SHORTEST, *ages)
    for kind, values in lines:
        for run in _runs(values, ages):
            points = [(WIDTH * (1 - age / span), _up(value, top)) for age, value in run]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            (first, _), (last, _) = points[0], points[-1]
            drawn.append(
                f'<polygon class="{kind}" points="{first:.1f},{HEIGHT:g} {line} {last:.1f},{HEIGHT:g}"/>'
                f'<polyline class="{kind}" points="{line}"/>'
            )
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}">{"".join(drawn)}</svg>'
    )


def _up(value: float, top: float) -> float:
    share = min(max(value / top, 0.0), 1.0) if top > 0 else 0.0
    return HEIGHT - _MARGIN - share * (HEIGHT - 2 * _MARGIN)


def _runs(values: Sequence[float | None], ages: Sequence[float]) -> list[list[tuple[float, float]]]:
    """The values without gaps between them, with their ages."""
    found: list[list[tuple[float, float]]] = [[]]
    for age, value in zip(ages, values, strict=True):
        if value is not None:
            found[-1].append((age, value))
        elif found[-1]:
            found.append([])
    return [run for run in found if run]
