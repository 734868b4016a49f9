"""Quantiles of a histogram, no more exact than its buckets are."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Final

from llm_headroom.view.values import Quantile

if TYPE_CHECKING:
    from collections.abc import Sequence

RANKS: Final = (0.5, 0.95, 0.99)


def quantile(rank: float, bounds: Sequence[float], counts: Sequence[float]) -> Quantile | None:
    """The bucket that holds a quantile, out of cumulative counts; None if nothing was counted.

    Buckets begin at 0, since durations do.
    """
    total = counts[-1]
    if total <= 0:
        return None
    wanted = rank * total
    index = next(at for at, count in enumerate(counts) if count >= wanted and count > 0)
    low = bounds[index - 1] if index else min(0.0, bounds[0])
    high = bounds[index]
    if not isfinite(high):
        return Quantile(rank, low, None, None)
    below = counts[index - 1] if index else 0.0
    share = (wanted - below) / (counts[index] - below)
    estimate = low + (high - low) * share
    return Quantile(rank, low, high, min(estimate, high))  # rounding may carry it beyond the bound
