"""Models that an engine loads and unloads by itself, as Ollama does: how often it was seen to do so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom import schema
from llm_headroom.model import Point, series_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_MOST_MODELS: Final = 200
_CLOCK_STEP: Final = 2.0
"""Seconds by which the start of one process may seem to move when the host's clock is set."""


class Instance(NamedTuple):
    """One load of a model: its context in tokens and the unix time at which its process started, as far as told."""

    context: float | None = None
    start: float | None = None

    def differs(self, other: Instance) -> bool:
        """Whether the two cannot be the same load."""
        if self.context is not None and other.context is not None and self.context != other.context:
            return True
        return self.start is not None and other.start is not None and abs(self.start - other.start) > _CLOCK_STEP

    def known(self, other: Instance) -> Instance:
        """The same load, with what the other poll knew of it where this one does not tell."""
        return Instance(
            other.context if self.context is None else self.context, other.start if self.start is None else self.start
        )


class Count(NamedTuple):
    """Loads and unloads of one model so far."""

    loads: int = 0
    unloads: int = 0


@dataclass(frozen=True, slots=True)
class Turnover:
    """What is remembered: the models in memory, and the counts of all that were ever seen."""

    loaded: Mapping[str, Instance]
    counts: Mapping[str, Count] = field(default_factory=dict)


def advance(known: Turnover | None, points: Iterable[Point]) -> Turnover | None:
    """What is remembered after a poll; None for an engine that does not tell which models are in memory.

    A model that is in memory at the first poll has not been loaded before our eyes. One that is there at two polls with
    another context, or another process, has been loaded anew. What happens between two polls and leaves no trace is
    not counted.
    """
    points = tuple(points)
    if not any(series.metric is schema.MODELS_LOADED for series, _, _ in points):
        return known
    now, seen = _loaded(points)
    before = now if known is None else known.loaded
    counts = {} if known is None else dict(known.counts)
    for model in (*seen, *before):
        counts.setdefault(model, Count())
    for model in now.keys() | before.keys():
        has, had = now.get(model), before.get(model)
        anew = has is not None and had is not None and has.differs(had)
        loads, unloads = counts[model]
        counts[model] = Count(loads + (had is None or anew), unloads + (has is None or anew))
        if has is not None and had is not None and not anew:
            now[model] = has.known(had)
    for model in list(counts):
        if len(counts) <= _MOST_MODELS:
            break
        if model not in now:
            del counts[model]
    return Turnover(now, counts)


def _loaded(points: Iterable[Point]) -> tuple[dict[str, Instance], dict[str, None]]:
    """The models in memory, and the names of all models, in memory or not."""
    loaded: set[str] = set()
    seen: dict[str, None] = {}
    context: dict[str, float] = {}
    start: dict[str, float] = {}
    for series, value, _ in points:
        if not isinstance(value, float):
            continue
        model = series.label("model")
        if series.metric is schema.MODEL_LOADED:
            seen[model] = None
            if value == 1.0:
                loaded.add(model)
        elif series.metric is schema.MODEL_CONTEXT:
            context[model] = value
        elif series.metric is schema.ENGINE_START:
            start[model] = value
    return {model: Instance(context.get(model), start.get(model)) for model in loaded}, seen


def points(known: Turnover, base: Mapping[str, str]) -> Iterator[Point]:
    """The counters; a model that was never loaded begins with 0, so that its first load shows as growth."""
    for model, count in known.counts.items():
        labels = (*base.items(), ("model", model))
        yield Point(series_of(schema.MODEL_LOADS, labels), float(count.loads), "models in memory, poll by poll")
        yield Point(series_of(schema.MODEL_UNLOADS, labels), float(count.unloads), "models in memory, poll by poll")
