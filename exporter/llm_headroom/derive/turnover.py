"""Models that an engine loads and unloads by itself, as Ollama does: how often it was seen to do so."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom import schema
from llm_headroom.frozen import frozen
from llm_headroom.model import point

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llm_headroom.derive.loaded import Instance, Loaded
    from llm_headroom.model import Point

_MOST_MODELS: Final = 200


class Count(NamedTuple):
    """Loads and unloads of one model so far."""

    loads: int = 0
    unloads: int = 0


@frozen
class Turnover:
    """What is remembered: the models in memory, and the counts of all that were ever seen."""

    loaded: Mapping[str, Instance]
    counts: Mapping[str, Count] = field(default_factory=dict)


def advance(known: Turnover | None, polled: Loaded) -> Turnover | None:
    """What is remembered after a poll; None for an engine that loads none by itself.

    A model that is in memory at the first poll has not been loaded before our eyes. One that is there at two polls with
    another context, or another process, has been loaded again. What happens between two polls and leaves no trace is
    not counted.
    """
    if not polled.by_itself:
        return known
    now, seen = dict(polled.models), polled.listed
    before = now if known is None else known.loaded
    counts = {} if known is None else dict(known.counts)
    for model in (*seen, *before):
        counts.setdefault(model, Count())
    for model in now.keys() | before.keys():
        has, had = now.get(model), before.get(model)
        reloaded = has is not None and had is not None and has.differs(had)
        loads, unloads = counts[model]
        counts[model] = Count(loads + (had is None or reloaded), unloads + (has is None or reloaded))
        if has is not None and had is not None and not reloaded:
            now[model] = has.known(had)
    for model in list(counts):
        if len(counts) <= _MOST_MODELS:
            break
        if model not in now:
            del counts[model]
    return Turnover(now, counts)


def points(known: Turnover, base: Mapping[str, str]) -> Iterator[Point]:
    """The counters; a model that was never loaded begins with 0, so that its first load shows as growth."""
    for model, count in known.counts.items():
        origin = "models in memory, poll by poll"
        yield point(schema.MODEL_LOADS, float(count.loads), origin, base, model=model)
        yield point(schema.MODEL_UNLOADS, float(count.unloads), origin, base, model=model)
