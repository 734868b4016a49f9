"""Which models an engine has in memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom import schema
from llm_headroom.model import numbers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llm_headroom.model import Metric, Point

_CLOCK_STEP: Final = 2.0
"""Seconds by which the start of one process may seem to move when the host's clock is set."""


class Instance(NamedTuple):
    """One load of a model, each None where unknown: its context in tokens, the unix time at which its process started,
    and the share of it that is on GPUs.
    """  # noqa: D205 - the line is one sentence too long

    context: float | None = None
    start: float | None = None
    offload: float | None = None

    def differs(self, other: Instance) -> bool:
        """Whether the two cannot be the same load."""
        if self.context is not None and other.context is not None and self.context != other.context:
            return True
        return self.start is not None and other.start is not None and abs(self.start - other.start) > _CLOCK_STEP

    def known(self, other: Instance) -> Instance:
        """The same load, with what the other poll knew of it where this one does not."""
        return Instance(*(theirs if own is None else own for own, theirs in zip(self, other, strict=True)))


class Loaded(NamedTuple):
    """One poll: the models in memory, the names of all that were listed, in memory or not, and whether the engine says
    how many are in memory, which those do that load and unload models by themselves.
    """  # noqa: D205 - the line is one sentence too long

    models: dict[str, Instance]
    listed: tuple[str, ...]
    by_itself: bool


_PARTS: Final = (schema.MODEL_CONTEXT, schema.ENGINE_START, schema.MODEL_OFFLOAD)


def loaded(points: Iterable[Point]) -> Loaded:
    """Which models are in memory."""
    states: dict[str, float] = {}
    parts: dict[str, dict[Metric, float]] = {}
    by_itself = False
    for series, value in numbers(points, schema.MODELS_LOADED, schema.MODEL_LOADED, *_PARTS):
        metric, model = series.metric, series.model
        if metric is schema.MODELS_LOADED:
            by_itself = True
        elif metric is schema.MODEL_LOADED:
            states[model] = value
        else:
            parts.setdefault(model, {})[metric] = value
            if metric is schema.MODEL_OFFLOAD:
                states.setdefault(model, 1.0)
    awake = [model for model, state in states.items() if state == 1.0]
    models = {model: Instance(*map(parts.get(model, {}).get, _PARTS)) for model in awake}
    return Loaded(models, tuple(states), by_itself)


class Ready(NamedTuple):
    """Since when a model has been in memory, in seconds of the polls' clock: infinity while it is not."""

    since: float
    instance: Instance = Instance()


def ready(known: Mapping[str, Ready], polled: Loaded, at: float) -> dict[str, Ready]:
    """Since when each listed model has been in memory, after a poll at `at` seconds.

    What is there at the first poll has always been. Of a load nothing is known but the first poll that shows it.
    """
    after = {}
    for model in polled.listed:
        now, before = polled.models.get(model), known.get(model, Ready(math.inf if known else -math.inf))
        if now is None:
            after[model] = Ready(math.inf)
        elif before.since > at or now.differs(before.instance):
            after[model] = Ready(at, now)
        else:
            after[model] = Ready(before.since, now.known(before.instance))
    return after
