"""Colours of judgements as somebody sees them who has no cones for green, or none for red."""

from __future__ import annotations

import math
import re
from itertools import combinations, pairwise
from typing import Final, TypeAlias

import pytest

from llm_headroom.bundle.dashboards.colours import (
    BAD,
    DECODE,
    GOOD,
    GREY,
    HUES,
    PREFILL,
    QUEUE,
    UNKNOWN,
    WARN,
    shade,
    shades,
)
from llm_headroom.bundle.dashboards.fleet import DASHBOARD as FLEET
from llm_headroom.bundle.settings import BundleSettings
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.model import ENGINE_STATES, Subject

Triple: TypeAlias = tuple[float, float, float]
SIGHT: Final = {
    "normal": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
}
"""Linear RGB to what is seen of it (Machado, Oliveira and Fernandes 2009, severity 1)."""
JUDGEMENTS: Final = {"good": GOOD, "warn": WARN, "bad": BAD, "unknown": UNKNOWN}
DISTINCT: Final = 25
"""Distance in CIE L*a*b* that is seen at a glance; 2.3 is just noticed."""
LIGHTER: Final = 15
"""Difference in lightness that is left in a print without colour."""


def linear(colour: str) -> Triple:
    """The light of a colour such as #aabbcc."""
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts)
    return red, green, blue


def seen(colour: str, sight: str) -> Triple:
    """CIE L*a*b* under D65 of what is seen."""
    light = linear(colour)
    red, green, blue = (
        min(1.0, max(0.0, sum(part * one for part, one in zip(row, light, strict=True)))) for row in SIGHT[sight]
    )
    x, y, z = (
        one ** (1 / 3) if one > 0.008856 else 7.787 * one + 16 / 116
        for one in (
            (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505,
            0.2126 * red + 0.7152 * green + 0.0722 * blue,
            (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.089,
        )
    )
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("sight", SIGHT)
def test_judgements_look_different(sight: str) -> None:
    for (name, one), (other_name, other) in combinations(JUDGEMENTS.items(), 2):
        assert math.dist(seen(one, sight), seen(other, sight)) > DISTINCT, (name, other_name)


@pytest.mark.parametrize("sight", SIGHT)
def test_good_doubtful_and_bad_differ_in_lightness(sight: str) -> None:
    bad, good, warn = (seen(colour, sight)[0] for colour in (BAD, GOOD, WARN))
    assert bad + LIGHTER < good < warn - LIGHTER


@pytest.mark.parametrize("sight", SIGHT)
def test_parts_of_a_request_look_different(sight: str) -> None:
    for one, other in combinations((QUEUE, PREFILL, DECODE), 2):
        assert math.dist(seen(one, sight), seen(other, sight)) > DISTINCT, (one, other)


@pytest.mark.parametrize("sight", SIGHT)
def test_engines_look_different(sight: str) -> None:
    """Those of every hue, also of one that no engine has yet; yellow is a router's, which holds no memory of a GPU."""
    for (name, one), (other_name, other) in combinations([*HUES.items(), ("grey", GREY)], 2):
        if "yellow" not in {name, other_name}:
            assert math.dist(seen(one, sight), seen(other, sight)) > DISTINCT, (name, other_name)
    assert {engine.subject for engine in BUILT_IN.values() if engine.colour == "yellow"} == {Subject.ROUTER}


@pytest.mark.parametrize("sight", SIGHT)
def test_kinds_of_memory_differ_in_lightness(sight: str) -> None:
    """Of one owner, in the order in which they lie on one another."""
    by_engine: dict[str, list[float]] = {}
    for pattern, colour in shades().items():
        by_engine.setdefault(pattern.split()[0], []).append(seen(colour, sight)[0])
    assert len(by_engine) > 3
    for engine, own in by_engine.items():
        assert all(after - before > 4 for before, after in pairwise(own)), (engine, own)


def test_shades_lie_between_a_colour_and_white_or_black() -> None:
    found = [shade("#204080", lighter) for lighter in (-1.0, -0.25, 0.0, 0.25, 1.0)]
    assert found == ["#000000", "#183060", "#204080", "#5870A0", "#FFFFFF"]
    assert all(re.fullmatch("#[0-9A-F]{6}", colour) for colour in shades().values())
    assert not [pattern for pattern in shades() if "router" in pattern]


def test_red_and_green_of_old_would_fail() -> None:
    green, red = (seen(colour, "deuteranopia") for colour in ("#73bf69", "#f2495c"))
    assert abs(green[0] - red[0]) < LIGHTER


def test_states_have_a_mark_and_a_word_each() -> None:
    fleet = FLEET.drawn(BundleSettings())
    words = next(column.words for row in fleet.rows for panel in row.panels for column in panel.columns if column.words)
    assert [at for at, _, _ in words] == list(range(len(ENGINE_STATES) + 1, 0, -1)), "worst first"
    assert words[0][1] == "■ down"
    assert words[-1][1] == "✓ ok"
    marks = {"■": BAD, "▲": WARN, "✓": GOOD, "?": UNKNOWN}
    assert all(marks[text.split()[0]] == colour for _, text, colour in words)
    assert {text.split()[1] for _, text, _ in words} == {*map(str, ENGINE_STATES), "exporter"}
