"""Colours: of judgements, and of things. A thing has one colour under every filter.

They differ in lightness, so that those who see no green or no red tell them apart, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.model import Level, Subject

if TYPE_CHECKING:
    from llm_headroom.engines.rules import Engine

GOOD: Final = "#1E9A85"
WARN: Final = "#FFC845"
BAD: Final = "#960F35"
UNKNOWN: Final = "#D4D6E0"
JUDGED: Final = {Level.GOOD: GOOD, Level.WARN: WARN, Level.BAD: BAD, Level.UNKNOWN: UNKNOWN}

HUES: Final = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "purple": "#7D30E8",
    "yellow": "#F0E442",
    "brown": "#774400",
    "sky": "#88BBFF",
    "lime": "#AADD88",
}
"""By the word that an engine has as its `colour`. The first five are of Okabe and Ito, "Color Universal Design" (2008),
but for a purple that is farther from the green; yellow is near orange, and a router's."""
GREY: Final = "#BFC3D1"


def hue(engine: Engine) -> str:
    """The colour of an engine.

    Raises:
        ValueError: it has none, or one that is not among HUES.
    """
    if engine.colour not in HUES:
        taken = {each.colour for each in BUILT_IN.values()}
        free = ", ".join(word for word in HUES if word not in taken)
        raise ValueError(f"{engine.name} has the colour {engine.colour!r}, which is not in HUES; free: {free}")
    return HUES[engine.colour]


ENGINES: Final = {name: hue(engine) for name, engine in BUILT_IN.items()} | {"nvml": GREY}

QUEUE: Final = "#D55E00"
PREFILL: Final = "#56B4E9"
DECODE: Final = "#004D80"
"""Of the parts of a request's time."""

KINDS: Final = {
    "other|graph": -0.65,
    "weights|model": -0.4,
    "kv_used|kv_cache": 0.0,
    "kv_evictable": 0.35,
    "kv_free": 0.65,
}
"""Kinds of memory, from below, and how much lighter (or darker, below 0) than its owner's colour each is."""


def shades() -> dict[str, str]:
    """The colour of an engine's memory by a pattern of names such as `vllm-0 (vllm) kv_used`."""
    return {
        rf"\({name}\) ({kinds})$": shade(ENGINES[name], lighter)
        for name, engine in BUILT_IN.items()
        if engine.subject is not Subject.ROUTER
        for kinds, lighter in KINDS.items()
    }


def shade(colour: str, lighter: float) -> str:
    """A colour such as #aabbcc, mixed with as much white, or black below 0."""
    towards = 255 if lighter > 0 else 0
    parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(one + (towards - one) * abs(lighter)):02X}" for one in parts)
