"""The runbooks: written by people, and shipped as they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from llm_headroom.bundle.settings import BundleSettings

_PLACES: Final = (Path(__file__).with_name("runbooks"), Path(__file__).parents[3] / "alerts" / "runbooks")
"""Within an installed package, and within a source tree."""


def files(_settings: BundleSettings) -> dict[str, str]:
    """Return the runbooks' texts by relative path."""
    folder = next(place for place in _PLACES if place.is_dir())
    return {f"alerts/runbooks/{path.name}": path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.md"))}
