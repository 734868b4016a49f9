"""An engine's vocabulary: which names of its exposition are mapped, which are passed over on purpose."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from llm_headroom.model import SampleState

if TYPE_CHECKING:
    from llm_headroom.engines.rules import Engine

HISTOGRAM_PARTS: Final = ("_bucket", "_sum", "_count")
MOST_NAMES: Final = 10_000
"""An endpoint that invents names must not fill our memory."""


def family(name: str, kind: str) -> str:
    """The family that a sample belongs to, by its name and its family's type."""
    if kind in ("histogram", "summary", "gaugehistogram"):
        for part in HISTOGRAM_PARTS:
            if name.endswith(part):
                return name.removesuffix(part)
    return name


class Vocabulary:
    """An engine's rules and exceptions, indexed: whether a family is mapped, ignored or unknown."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._mapped = engine.vocabulary
        self._judged = lru_cache(maxsize=MOST_NAMES)(self._judge)

    def state(self, name: str, kind: str) -> SampleState:
        """How a sample of this name and family type is handled."""
        return self._judged(family(name, kind), name)

    def _judge(self, base: str, name: str) -> SampleState:
        if base in self._mapped or name in self._mapped or any(base + part in self._mapped for part in HISTOGRAM_PARTS):
            return SampleState.MAPPED
        canonical = self._canonical(base)
        if any(fnmatchcase(canonical, pattern) for pattern in self.engine.ignored):
            return SampleState.IGNORED
        return SampleState.UNKNOWN

    def _canonical(self, name: str) -> str:
        for prefix in self.engine.prefixes:
            if prefix and name.startswith(prefix):
                return self.engine.prefixes[0] + name.removeprefix(prefix)
        return name
