"""Numbers as people read them, alike on the page and in the terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final
from unicodedata import category

from llm_headroom import schema
from llm_headroom.derive import words
from llm_headroom.thresholds import LOAD_HEADROOM_LOW

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_headroom.view.values import Latency, Load, Quantile

_UNPRINTABLE: Final = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})
UNKNOWN: Final = "–"
STATE_MARKS: Final = {"good": "✓", "warn": "▲", "bad": "■", "unknown": "?"}
"""Marks of levels that differ by their shape."""
OBJECTIVES: Final = {
    schema.TIME_TO_FIRST_TOKEN.name: "ttft",
    schema.INTER_TOKEN_LATENCY.name: "inter_token_latency",
    schema.TIME_PER_OUTPUT_TOKEN.name: "inter_token_latency",
}
"""The objectives that latencies are judged by."""
MOST_TIMES: Final = 16.0
RESOURCE_NAMES: Final = {"kv_cache": "KV cache", "compute": "compute", "concurrency": "the running limit"}
_LEAST_SHARE: Final = 1e-6
LATENCY_NAMES: Final = {
    schema.TIME_TO_FIRST_TOKEN.name: "TTFT",
    schema.INTER_TOKEN_LATENCY.name: "Inter-token",
    schema.TIME_PER_OUTPUT_TOKEN.name: "Per token",
}


def count(value: float | None) -> str:
    """A number of requests or tokens in at most about five characters: 8, 1,234, 63.5k, 1.2M."""
    if value is None:
        return UNKNOWN
    for limit, divisor, unit in ((9_999.5, 1.0, ""), (999_500.0, 1e3, "k"), (999.5e6, 1e6, "M")):
        if abs(value) < limit:
            scaled = value / divisor
            return f"{scaled:,.0f}{unit}" if not unit or scaled >= 100 else f"{scaled:.1f}{unit}"  # noqa: PLR2004 - three digits
    return f"{value / 1e9:.1f}G"


def rate(value: float | None) -> str:
    """A rate per second, or another number that need not be whole: a digit more where it is small, and never 0 then."""
    if value is None or value <= 0 or value >= 9.95:  # noqa: PLR2004 - two digits are enough from here on
        return count(value)
    return f"{value:.1f}" if value >= 0.095 else f"{max(value, 0.001):.1g}"  # noqa: PLR2004 - rounded to 0.1


def times(value: float | None) -> str:
    """A factor in two digits: 1.8 ×; the greatest that is shown is 16 or more, and what is below 1 looks so."""
    if value is None:
        return UNKNOWN
    if value < 1.0:
        return f"{min(value, 0.99):.2f} ×"
    return "≥ 16 ×" if value >= MOST_TIMES else f"{value:.1f} ×" if value < 9.95 else f"{value:.0f} ×"  # noqa: PLR2004 - two digits


def takes(load: Load) -> str:
    """How much more an engine takes, and what binds then."""
    ends = "; ".join(part for part in (ends_at(load), binds(load) if load.binding else "") if part)
    return f"takes {times(load.headroom)} its traffic{f'; {ends}' if ends else ''}"


def ends_at(load: Load) -> str:
    """The objective that it leaves first, unless that is the usual one of first tokens."""
    return "" if load.objective == "ttft" else f"{load.objective.replace('_', '-', 1).replace('_', ' ')} is late first"


def binds(load: Load) -> str:
    """The resource that binds at the limit."""
    return f"{RESOURCE_NAMES.get(load.binding, load.binding)} binds"


def urgency_of(load: Load) -> str:
    """Whether a load is more than the engine takes (bad) or soon will be (warn)."""
    return "bad" if load.headroom < 1.0 else "warn" if load.headroom < LOAD_HEADROOM_LOW else ""


def percent(value: float | None, digits: int = 0) -> str:
    """A ratio; what is neither nothing nor all has digits enough not to look so."""
    if value is None:
        return UNKNOWN
    if 0.0 < value < 1.0:
        value = min(max(value, _LEAST_SHARE), 1.0 - _LEAST_SHARE)
        while float(f"{value:.{digits}%}"[:-1]) in {0.0, 100.0}:
            digits += 1
    return f"{value:.{digits}%}"


def attained(value: float) -> str:
    """A share that an objective wants: rounded down, so that it never looks as if it were met."""
    return f"{math.floor(value * 1000.0 + 1e-9) / 10.0:.1f}%"


def size(value: float | None) -> str:
    """Bytes in binary units."""
    if value is None:
        return UNKNOWN
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:  # noqa: PLR2004 - the step between the units
            return f"{value:.0f} {unit}" if unit in ("B", "KiB") else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def seconds(value: float | None) -> str:
    """A latency: 3.2 ms, 0.84 s, 12.5 s, 140 s."""
    if value is None:
        return UNKNOWN
    if value < 0.1:  # noqa: PLR2004 - below, milliseconds read better
        return f"{value * 1000:.3g} ms"
    return f"{value:.0f} s" if value >= 100 else f"{value:.3g} s"  # noqa: PLR2004 - three digits


def watts(value: float | None) -> str:
    """An electrical power."""
    return UNKNOWN if value is None else f"{value:.0f} W"


def celsius(value: float | None) -> str:
    """A temperature."""
    return UNKNOWN if value is None else f"{value:.0f} °C"


def span(value: float | None) -> str:
    """A duration in the units that matter: 45 s, 3 min, 2 h 5 min, 3 d."""
    return UNKNOWN if value is None else words.span(value)


def quantile(value: Quantile) -> str:
    """The estimate, or that it is beyond the last bound."""
    if value.estimate is None:
        return f"> {seconds(value.low)}"
    return seconds(value.estimate)


def row(latency: Latency) -> tuple[str, list[str]]:
    """The quantiles of a latency in one unit, that of the largest, and the unit."""
    known = [
        (each.estimate is None, each.low if each.estimate is None else each.estimate) for each in latency.quantiles
    ]
    unit = "ms" if max((value for _, value in known), default=0.0) < 1 else "s"
    return unit, [f"{'> ' if beyond else ''}{in_unit(value, unit)}" for beyond, value in known]


def in_unit(value: float, unit: str) -> str:
    """Seconds as a number of `s` or `ms`, of three digits."""
    scaled = value * 1000 if unit == "ms" else value
    return f"{scaled:.0f}" if scaled >= 100 else f"{scaled:.3g}"  # noqa: PLR2004 - three digits


def bucket(value: Quantile) -> str:
    """The bounds between which a quantile surely lies."""
    if value.high is None:
        return "beyond the last bucket"
    low, high = seconds(value.low), seconds(value.high)
    low = low.removesuffix(high[high.index(" ") :])
    return f"{'0' if value.low == 0 else low}–{high}"


def p95(latency: Latency) -> Quantile | None:
    """The 95th percentile; None without traffic."""
    return next((each for each in latency.quantiles if each.rank == 0.95), None)  # noqa: PLR2004 - the p95


def first_tokens(latencies: Sequence[Latency]) -> Latency | None:
    """The latency of first tokens, None where the engine does not report it."""
    return next((each for each in latencies if OBJECTIVES.get(each.metric) == "ttft"), None)


def p95_seconds(latencies: Sequence[Latency]) -> float | None:
    """The 95th percentile of first tokens, or the bound that it is beyond."""
    first = first_tokens(latencies)
    found = None if first is None else p95(first)
    return None if found is None else found.low if found.estimate is None else found.estimate


def later(value: Quantile | None, threshold: float | None) -> bool:
    """Whether a quantile is beyond an objective, as far as the buckets show."""
    if value is None or threshold is None:
        return False
    return (value.low if value.estimate is None else value.estimate) > threshold


def plain(text: str) -> str:
    r"""A text that engines or users made up, for people: nothing in it colours, moves or turns what is shown.

    Control and format characters (Unicode's categories Cc, Cf, Co, Cs, Zl, Zp; the latter turn the direction of
    writing) become escapes such as `\x1b`.
    """
    if text.isprintable():
        return text
    return "".join(each if category(each) not in _UNPRINTABLE else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def latency_name(value: Latency) -> str:
    """The short name of a latency."""
    return LATENCY_NAMES.get(value.metric, value.metric)
