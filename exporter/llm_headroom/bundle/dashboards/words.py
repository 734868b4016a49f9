"""States in words: each with its mark and its colour, for tables, tiles and timelines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_headroom.bundle.dashboards.colours import JUDGED, UNKNOWN
from llm_headroom.bundle.dashboards.scope import ranked
from llm_headroom.model import ENGINE_STATES, GPU_STATES, Level
from llm_headroom.view.text import STATE_MARKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_headroom.bundle.dashboards.panel import Words
    from llm_headroom.model import State

_UNREACHABLE: Final = f"{STATE_MARKS[Level.UNKNOWN]} exporter unreachable"


def _words(states: Sequence[State]) -> Words:
    """Each state's place from the end, its mark and word, and its colour; worst first, as `Scope.state` does."""
    order = ranked(states)
    return tuple((float(len(order) - place), *_named(state)) for place, state in enumerate(order))


def _named(state: State | None) -> tuple[str, str]:
    if state is None:
        return _UNREACHABLE, UNKNOWN
    return f"{STATE_MARKS[state.level]} {state}", JUDGED[state.level]


ENGINE_WORDS: Final = _words(ENGINE_STATES)
GPU_WORDS: Final = _words(GPU_STATES)
EXPORTER_WORDS: Final[Words] = (
    (0.0, f"{STATE_MARKS[Level.BAD]} unreachable", JUDGED[Level.BAD]),
    (1.0, f"{STATE_MARKS[Level.GOOD]} reached", JUDGED[Level.GOOD]),
)
SEVERITY_WORDS: Final[Words] = (
    (3.0, f"{STATE_MARKS[Level.BAD]} page", JUDGED[Level.BAD]),
    (2.0, f"{STATE_MARKS[Level.WARN]} ticket", JUDGED[Level.WARN]),
    (1.0, "info", UNKNOWN),
)
UP_WORDS: Final[Words] = (
    (0.0, f"{STATE_MARKS[Level.BAD]} down", JUDGED[Level.BAD]),
    (1.0, f"{STATE_MARKS[Level.GOOD]} up", JUDGED[Level.GOOD]),
    (2.0, _UNREACHABLE, UNKNOWN),
)
