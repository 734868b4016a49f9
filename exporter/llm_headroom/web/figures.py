"""The history of a card: a band of states above curves, over the last minutes or the last day."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom.view import text
from llm_headroom.view.history import SPAN
from llm_headroom.web.charts import SHORTEST, Curve, Segment, band, chart, rounded_up

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from llm_headroom.view.day import Minute
    from llm_headroom.view.values import Line

DAY: Final = 86400.0
STEP: Final = 5
"""Minutes that one point of a day's curve stands for: more than that no card is wide enough to show."""
_MINUTE: Final = 60


class Figure(NamedTuple):
    """A chart: its title, the unit of its axis, and its lines: name, class of the colour, what people call it."""

    title: str
    unit: str
    lines: tuple[tuple[str, str, str], ...]


ENGINE_FIGURES: Final = (
    Figure("Requests", "", (("running", "running", "running"), ("waiting", "waiting", "waiting"))),
    Figure("Active requests", "", (("active", "running", "active"),)),
    Figure(
        "Tokens per second", "", (("generation_rate", "generated", "generated"), ("prompt_rate", "prompt", "prompt"))
    ),
    Figure("KV cache held", "ratio", (("kv_usage", "kv", "held"),)),
    Figure("First tokens, p95", "seconds", (("ttft", "first", "p95"),)),
)
GPU_FIGURES: Final = (
    Figure("Utilisation", "ratio", (("utilization", "busy", "busy"),)),
    Figure("Memory used", "bytes", (("memory_used", "used", "used"),)),
    Figure("Power", "watts", (("power", "power", "power"),)),
)


class Past(NamedTuple):
    """What a card's history is drawn from: lines with their ages, and the minutes of the day.

    `tops` has where an axis ends by its unit. `now` is in unix seconds; `day` whether to show the whole day.
    """

    lines: Sequence[Line]
    ages: Sequence[float]
    minutes: Sequence[Minute]
    now: float
    day: bool
    tops: Mapping[str, float | None]


def history(figures: Sequence[Figure], past: Past, other: str) -> str:
    """A card's history; `other` is the address of the page with the other time. Nothing where nothing is known."""
    curves, ages = (
        (_daily(past), _bin_ages(past)) if past.day else ({line.name: line.values for line in past.lines}, past.ages)
    )
    segments = _segments(past)
    if past.day:
        span = DAY
    elif ages:
        span = max(SHORTEST, *ages)
    else:  # of what does not answer now there are states alone
        span = max([SHORTEST, *(min(each.start, SPAN) for each in segments)])
    drawn = [made for figure in figures if (made := _figure(figure, curves, ages, span, past.tops))]
    if not drawn and not segments:
        return ""
    choices = [(False, text.span(span) if not past.day else "minutes"), (True, "24 h")]
    shown = " ".join(
        f"<b>{name}</b>" if day is past.day else f'<a href="{other}" data-look>{name}</a>' for day, name in choices
    )
    states = band(segments, span, _spoken(segments)) if segments else ""
    return (
        f'<section class="history" data-span="{span:.0f}"><h4>History <span>{shown}</span></h4>{states}'
        f'<div class="charts">{"".join(drawn)}</div></section>'
    )


def _figure(
    figure: Figure,
    curves: Mapping[str, Sequence[float | None]],
    ages: Sequence[float],
    span: float,
    tops: Mapping[str, float | None],
) -> str:
    drawn = [Curve(kind, called, curves[name]) for name, kind, called in figure.lines if name in curves]
    known = [value for curve in drawn for value in curve.values if value is not None]
    if not known:
        return ""
    top = 1.0 if figure.unit == "ratio" else tops.get(figure.unit) or rounded_up(max(known))
    names = "".join(f'<span class="key {curve.kind}">{curve.name}</span>' for curve in drawn) if len(drawn) > 1 else ""
    most = amount(max(known), figure.unit)
    label = f"{figure.title}: at most {most} in the last {text.span(span)}"
    return (
        f'<figure data-top="{top:g}" data-unit="{figure.unit}"><figcaption>{figure.title} {names}</figcaption>'
        f'<div class="plot"><span class="top">{amount(top, figure.unit)}</span><span class="zero">0</span>'
        f"{chart(drawn, ages, top=top, span=span, label=label)}"
        f'<span class="then">{text.span(span)} ago</span><span class="now">now</span></div></figure>'
    )


def amount(value: float, unit: str) -> str:
    """A value in the unit of an axis."""
    match unit:
        case "ratio":
            return text.percent(value)
        case "bytes":
            return text.size(value)
        case "watts":
            return text.watts(value)
        case "seconds":
            return text.seconds(value)
        case _:
            return text.count(value)


def _bins(minutes: Iterable[Minute]) -> Iterable[tuple[int, list[Minute]]]:
    return ((number, list(group)) for number, group in groupby(minutes, key=lambda each: each.minute // STEP))


def _bin_ages(past: Past) -> list[float]:
    ages = [past.now - (number * STEP + STEP / 2) * _MINUTE for number, _ in _bins(past.minutes)]
    return [min(max(age, 0.0), DAY) for age in ages]


def _daily(past: Past) -> dict[str, list[float | None]]:
    """The highest value of each line in each `STEP` minutes."""
    lines: dict[str, list[float | None]] = {}
    for _, group in _bins(past.minutes):
        for name in group[0].values:
            lines.setdefault(name, []).append(
                max((value for each in group if (value := each.values[name]) is not None), default=None)
            )
    return lines


def _segments(past: Past) -> list[Segment]:
    """Runs of minutes of the same state."""
    found = []
    for state, group in groupby(past.minutes, key=lambda each: each.state):
        if state is None:
            continue
        run = list(group)
        start = past.now - run[0].minute * _MINUTE
        end = max(past.now - (run[-1].minute + 1) * _MINUTE, 0.0)
        until = f"until {text.span(end)} ago" if end else "until now"
        found.append(Segment(start, end, str(state.level), f"{state.name}: from {text.span(start)} ago {until}"))
    return found


def _spoken(segments: Sequence[Segment]) -> str:
    worse = [each.label for each in segments if each.level != "good"]
    return f"States: {'; '.join(worse[-5:])}" if worse else "States: nothing wrong"
