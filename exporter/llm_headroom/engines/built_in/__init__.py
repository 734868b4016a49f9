"""One module for each kind of engine: what it exposes and what that means, as data.

Adding an engine is adding a module with an `ENGINE` (and a directory of captures for the tests).
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from llm_headroom.engines.rules import Engine

if TYPE_CHECKING:
    from collections.abc import Mapping


def _discover() -> Mapping[str, Engine]:
    found = {}
    for module in pkgutil.iter_modules(__path__):
        engine = getattr(import_module(f"{__name__}.{module.name}"), "ENGINE", None)
        if isinstance(engine, Engine):
            found[engine.name] = engine
    return MappingProxyType(found)


BUILT_IN: Final[Mapping[str, Engine]] = _discover()
"""Every engine of the package by name."""
