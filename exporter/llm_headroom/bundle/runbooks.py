"""The runbooks: written by people, with the thresholds in force and the exporters' job put in."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llm_headroom.bundle.rule import words
from llm_headroom.thresholds import Thresholds

if TYPE_CHECKING:
    from llm_headroom.bundle.settings import BundleSettings

_PLACES: Final = (Path(__file__).with_name("runbooks"), Path(__file__).parents[3] / "alerts" / "runbooks")
"""Within an installed package, and within a source tree."""
_NAMES: Final = "|".join(each.name for each in dataclasses.fields(Thresholds))
_VALUE: Final = re.compile(rf"\*\*[^*]+\*\* \(`({_NAMES})`\)")
"""A threshold as runbooks show it: its value in bold, and its name behind."""


def files(settings: BundleSettings) -> dict[str, str]:
    """The runbooks' texts by relative path."""
    folder = next(place for place in _PLACES if place.is_dir())
    return {
        f"alerts/runbooks/{path.name}": _filled(path.read_text(encoding="utf-8"), settings)
        for path in sorted(folder.glob("*.md"))
    }


def _filled(text: str, settings: BundleSettings) -> str:
    valued = _VALUE.sub(lambda found: words(f"**${found[1]}** (`{found[1]}`)", settings), text)
    return valued.replace('job="llm-headroom"', f'job="{settings.exporter_job}"')
