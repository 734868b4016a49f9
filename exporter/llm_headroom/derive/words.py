"""Numbers in the words of reasons."""

from __future__ import annotations

from typing import Final

_MINUTE: Final = 60.0
_HOUR: Final = 3600.0


def span(seconds: float) -> str:
    """A duration in the unit that matters: 45 s, 3 min, 2 h."""
    if seconds < 2 * _MINUTE:
        return f"{max(seconds, 0.0):.0f} s"
    return f"{seconds / _MINUTE:.0f} min" if seconds < 2 * _HOUR else f"{seconds / _HOUR:.0f} h"
