"""Numbers in the words of reasons."""

from __future__ import annotations

from typing import Final

_MINUTE: Final = 60.0
_HOUR: Final = 3600.0
_DAY: Final = 86_400.0


def span(seconds: float) -> str:
    """A duration in the units that matter: 45 s, 3 min, 2 h, 2 h 5 min, 3 d; page.js does the same."""
    if seconds < 2 * _MINUTE:
        return f"{max(seconds, 0.0):.0f} s"
    if seconds < _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    if seconds < 2 * _DAY:
        hours, rest = divmod(seconds, _HOUR)
        return f"{hours:.0f} h" if rest < _MINUTE else f"{hours:.0f} h {rest // _MINUTE:.0f} min"
    return f"{seconds / _DAY:.0f} d"
