"""`llm-headroom bundle`: write what is shipped, with a user's thresholds and label matchers."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import math
import re
from typing import TYPE_CHECKING, Any, Final

from llm_headroom.bundle.thresholds import BundleSettings, Thresholds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

PARTS: Final = tuple(
    part
    for part in ("alerts", "dashboards", "kubernetes")
    if importlib.util.find_spec(f"llm_headroom.bundle.{part}") is not None
)
"""Modules of the bundle; each has `files(settings)`."""
_MATCHER: Final = r'[A-Za-z_]\w*\s*(?:=|!=|=~|!~)\s*"(?:[^"\\{}]|\\.)*"'
_SELECTOR: Final = re.compile(rf"{_MATCHER}(?:\s*,\s*{_MATCHER})*")


def settings(thresholds: Iterable[str], selector: str, **others: Any) -> BundleSettings:  # noqa: ANN401 - fields
    """Return the settings of a command line; a threshold is `name=value`.

    Raises:
        ValueError: a threshold does not exist or is no number, or the selector is none.
    """
    if selector and _SELECTOR.fullmatch(selector) is None:
        raise ValueError(f'selector {selector}: expected label matchers, such as cluster="x", pod=~"vllm-.*"')
    return BundleSettings(thresholds=Thresholds(**dict(map(_threshold, thresholds))), selector=selector, **others)


def files(chosen: BundleSettings, only: Iterable[str] = ()) -> dict[str, str]:
    """Return the texts of the parts named, or of all, by relative path."""
    found: dict[str, str] = {}
    for part in tuple(only) or PARTS:
        found |= importlib.import_module(f"llm_headroom.bundle.{part}").files(chosen)
    return found


def write(folder: Path, texts: Mapping[str, str]) -> None:
    """Write files below a folder, which is made if need be.

    Raises:
        OSError: one cannot be written.
    """
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _threshold(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    names = [field.name for field in dataclasses.fields(Thresholds)]
    if name not in names:
        raise ValueError(f"threshold {name}: there is none of that name; there are {', '.join(names)}")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"threshold {name}: expected a number, not {value or 'nothing'}")
    return name, number
