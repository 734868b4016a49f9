"""Numbers as people read them, alike on the page and in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from llm_headroom.view.values import Latency, Load, Quantile

UNKNOWN: Final = "–"
MOST_TIMES: Final = 16.0
RESOURCE_NAMES: Final = {"kv_cache": "KV cache", "compute": "compute", "concurrency": "the running limit"}
_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86400
LATENCY_NAMES: Final = {
    "llm_time_to_first_token_seconds": "TTFT",
    "llm_inter_token_latency_seconds": "Inter-token",
    "llm_time_per_output_token_seconds": "Per token",
}


def count(value: float | None) -> str:
    """A number of requests or tokens in at most about five characters: 8, 1,234, 63.5k, 1.2M."""
    if value is None:
        return UNKNOWN
    for limit, divisor, unit in ((1e4, 1.0, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M")):
        if abs(value) < limit:
            scaled = value / divisor
            return f"{scaled:,.0f}{unit}" if not unit or scaled >= 100 else f"{scaled:.1f}{unit}"  # noqa: PLR2004 - three digits
    return f"{value / 1e9:.1f}G"


def rate(value: float | None) -> str:
    """A rate per second; a digit more where it is small."""
    if value is None or value == 0 or value >= 10:  # noqa: PLR2004 - two digits are enough from here on
        return count(value)
    return f"{value:.1f}"


def times(value: float | None) -> str:
    """A factor: 1.8 ×; the greatest that is told is 16 or more."""
    if value is None:
        return UNKNOWN
    return "≥ 16 ×" if value >= MOST_TIMES else f"{value:.1f} ×" if value < 10 else f"{value:.0f} ×"  # noqa: PLR2004 - two digits


def takes(load: Load) -> str:
    """How much more an engine takes, and what binds then."""
    binds = f"; {RESOURCE_NAMES.get(load.binding, load.binding)} binds" if load.binding else ""
    return f"takes {times(load.headroom)} its traffic{binds}"


def percent(value: float | None) -> str:
    """A ratio."""
    return UNKNOWN if value is None else f"{value:.0%}"


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


def span(value: float | None) -> str:
    """A duration in the two units that matter: 45 s, 3 min, 2 h 5 min, 3 d."""
    if value is None:
        return UNKNOWN
    if value < 2 * _MINUTE:
        return f"{max(value, 0):.0f} s"
    if value < _HOUR:
        return f"{value / _MINUTE:.0f} min"
    if value < _DAY:
        hours, rest = divmod(value, _HOUR)
        return f"{hours:.0f} h {rest // _MINUTE:.0f} min"
    return f"{value / _DAY:.0f} d"


def quantile(value: Quantile) -> str:
    """The estimate, or that it is beyond the last bound."""
    if value.estimate is None:
        return f"> {seconds(value.low)}"
    return seconds(value.estimate)


def bucket(value: Quantile) -> str:
    """The bounds between which a quantile surely lies."""
    if value.high is None:
        return "beyond the last bucket"
    low, high = seconds(value.low), seconds(value.high)
    if low.endswith(" ms") and high.endswith(" ms"):
        low = low.removesuffix(" ms")
    elif low.endswith(" s") and high.endswith(" s"):
        low = low.removesuffix(" s")
    return f"{'0' if value.low == 0 else low}–{high}"


def latency_name(value: Latency) -> str:
    """The short name of a latency."""
    return LATENCY_NAMES.get(value.metric, value.metric)
