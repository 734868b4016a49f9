"""The true limit of a scenario, by bisection on the simulator, and what an engine shows at a share of it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from evaluate.replay import POLL_SECONDS, points
from headroom.scenarios import COUNTED, SETTLED, SPAN
from llm_headroom.derive.observation import observe
from llm_headroom.simulate.batching import Engine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headroom.scenarios import Scenario
    from llm_headroom.derive.observation import Observation
    from llm_headroom.simulate.engine_state import Outcome

ALLOWED: Final = 0.05
_PRECISION: Final = 1.03
_MOST: Final = 4.0
_DRAIN: Final = 3600.0
"""Seconds after the last arrival that counts, so that every request ends: what is known of it is known then."""


def slow_share(scenario: Scenario, times: float) -> float:
    """The share of what the objective is of that is beyond it in the quarter of an hour."""
    return _slow_tokens(scenario, times) if scenario.tokens else _slow_firsts(scenario, times)


def _slow_tokens(scenario: Scenario, times: float) -> float:
    engine = Engine(scenario.setup.config(), seed=1)
    for request in scenario.traffic(times):
        if request.arrival < COUNTED:
            engine.submit(request)
    engine.advance(SETTLED)
    before = engine.read().histograms.itl
    engine.advance(COUNTED)
    grown = engine.read().histograms.itl.since(before)
    beyond = sum(grown.counts[grown.bounds.index(scenario.objective) + 1 :])
    return beyond / grown.count if grown.count else 0.0


def _slow_firsts(scenario: Scenario, times: float) -> float:
    """Of first tokens; those that never came are slow."""
    engine, firsts = Engine(scenario.setup.config(), seed=1), []

    def ended(outcome: Outcome) -> None:
        if outcome.first_token is not None and SETTLED <= outcome.request.arrival < COUNTED:
            firsts.append(outcome.first_token - outcome.request.arrival)

    sent = [
        one
        for one in scenario.traffic(times)
        if one.arrival < COUNTED and one.prompt_tokens + one.output_tokens <= engine.config.longest
    ]
    for request in sent:
        engine.submit(request, on_end=ended)
    engine.advance(COUNTED + _DRAIN)
    counted = sum(one.arrival >= SETTLED for one in sent)
    quick = sum(1 for first in firsts if first <= scenario.objective)
    return 1.0 - quick / counted if counted else 0.0


def limit(scenario: Scenario) -> float:
    """The factor on the trace's arrivals at which the allowed share is slow; infinite if it is not at 4 times them."""
    low = high = scenario.usual
    while slow_share(scenario, high) <= ALLOWED:
        if high >= _MOST:
            return math.inf
        low, high = high, min(_MOST, high * 1.4)
    while slow_share(scenario, low) > ALLOWED:
        low, high = low / 1.4, low
    while high / low > _PRECISION:
        middle = math.sqrt(low * high)
        if slow_share(scenario, middle) > ALLOWED:
            high = middle
        else:
            low = middle
    return math.sqrt(low * high)


def polls(scenario: Scenario, times: float, every: float = POLL_SECONDS) -> Iterator[tuple[float, Observation]]:
    """What the exporter reads, poll by poll, of the scenario at a factor; the running limit is known."""
    engine = Engine(scenario.setup.config(), seed=1)
    for request in scenario.traffic(times):
        engine.submit(request)
    for poll in range(1, int(SPAN / every) + 1):
        engine.advance(poll * every)
        seen = observe(points(engine.read(), {"engine": "e", "target": "t", "model": "m"}))["m"]
        yield poll * every, replace(seen, limit=float(engine.config.max_num_seqs))
