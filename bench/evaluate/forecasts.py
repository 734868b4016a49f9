"""What the risks foretold in each run, beside what happened within the five minutes that they speak of."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from evaluate.incidents import any_trouble, kv_exhaustion
from evaluate.probability import Pair
from evaluate.scoring import HORIZON, WARM_UP
from llm_headroom import schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from evaluate.incidents import Span
    from evaluate.replay import Forecast, Run

EVERY: Final = 3
"""Polls between two forecasts that are looked at: neighbours tell the same."""
MEANT: Final[dict[str, Callable[[Run], list[Span]]]] = {
    schema.SATURATION_HIGH_WATER.name: any_trouble,
    schema.KV_SATURATION_RISK.name: lambda run: kv_exhaustion(run.troubles),
}
"""The incidents that each risk is the probability of."""


def labelled(run: Run, incidents: Sequence[Span]) -> Iterator[tuple[Forecast, bool]]:
    """Forecasts after the warm-up, and whether an incident was on or began within the horizon."""
    ends = [span.end for span in incidents]
    for forecast in run.forecasts[::EVERY]:
        if forecast.at >= WARM_UP:
            index = bisect_left(ends, forecast.at)
            yield forecast, index < len(incidents) and incidents[index].begin <= forecast.at + HORIZON


def pairs(run: Run, name: str, meant: Callable[[Run], list[Span]]) -> list[Pair]:
    """A metric's value, where there is one, and what happened."""
    return [Pair(one.risks[name], happened) for one, happened in labelled(run, meant(run)) if name in one.risks]
