"""Models that an engine loads and unloads by itself, as Ollama does: will one spill to the CPU, or be evicted?

Learnt from what this server has done: how often a load did not fit, how often a model gave way to another one.
"""

from __future__ import annotations

import math
from dataclasses import field, replace
from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.derive.estimates import Mean
from llm_headroom.frozen import frozen, frozen_named
from llm_headroom.model import point
from llm_headroom.thresholds import DEFAULT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from llm_headroom.derive.loaded import Loaded
    from llm_headroom.model import Point

HORIZON_SECONDS: Final = 300.0
WARM_SECONDS: Final = 600.0
"""Eviction is not spoken of before this long a look."""
SWAP_SECONDS: Final = 30.0
"""A model that goes while another one comes within this time has made room for it."""
_RARE: Final = 0.02
"""The chance of a spill that is presumed before any load was seen, worth one load."""
_MOST_MODELS: Final = 200


@frozen
class Loads:
    """Loads of one model that were seen, and how many of them spilled."""

    seen: int = 0
    spilled: int = 0


@frozen_named
class Residency:
    """What is remembered: `offload` is the GPU share of each model now in memory, `gone` and `came` the last times.

    Times are seconds of the polls' clock. `gpu` is whether any model was seen on a GPU: a host without one has nothing
    to spill from. `evictions` are models that gave way, per second, over the last hour.
    """

    at: float
    since: float
    gpu: bool = False
    offload: Mapping[str, float | None]
    loads: Mapping[str, Loads] = field(default_factory=dict)
    gone: tuple[float, ...] = ()
    came: tuple[float, ...] = ()
    evictions: Mean = field(default_factory=lambda: Mean(3600.0))


def advance(known: Residency | None, polled: Loaded, at: float) -> Residency | None:
    """What is remembered after a poll; None for an engine that loads none by itself."""
    if not polled.by_itself:
        return None
    now = {model: each.offload for model, each in polled.models.items()}
    on_gpu = any(share for share in now.values())
    if known is None:
        return Residency(at=at, since=at, gpu=on_gpu, offload=now, loads=_counted({}, now, now))
    if at <= known.at:
        return known
    new, lost = now.keys() - known.offload.keys(), known.offload.keys() - now.keys()
    recent = at - SWAP_SECONDS
    gone = (*(each for each in known.gone if each > recent), *(at for _ in lost))
    came = (*(each for each in known.came if each > recent), *(at for _ in new))
    swapped = min(len(gone), len(came))
    return replace(
        known,
        at=at,
        gpu=known.gpu or on_gpu,
        offload=now,
        loads=_counted(known.loads, now, new),
        gone=gone[swapped:],
        came=came[swapped:],
        evictions=known.evictions.add(float(swapped), at - known.at, at - known.at),
    )


def _counted(loads: Mapping[str, Loads], now: Mapping[str, float | None], new: Iterable[str]) -> dict[str, Loads]:
    counted = dict(loads)
    for model in new:
        before, share = counted.pop(model, Loads()), now[model]
        spilled = share is not None and share < DEFAULT.offload_low
        counted[model] = Loads(before.seen + 1, before.spilled + spilled)
    while len(counted) > _MOST_MODELS:
        del counted[next(iter(counted))]
    return counted


def risks(known: Residency, base: Mapping[str, str]) -> Iterator[Point]:
    """Spill and eviction of each model in memory. A model that has spilled is certain to have, where there is a GPU."""
    eviction = 1.0 - math.exp(-HORIZON_SECONDS * (known.evictions.value or 0.0))
    for model, share in known.offload.items():
        loads = known.loads.get(model, Loads())
        if share is not None and known.gpu:
            chance = 1.0 if share < DEFAULT.offload_low else (loads.spilled + _RARE) / (loads.seen + 1)
            yield point(schema.SPILL_RISK, chance, "llm_model_offload_ratio of its loads", base, model=model)
        if known.at - known.since >= WARM_SECONDS:
            yield point(schema.EVICTION_RISK, eviction, "models that gave way to others", base, model=model)
