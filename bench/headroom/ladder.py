"""Estimates along a ladder of loads, from a fifth of the true limit to a fifth beyond it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from headroom.peers import Peers
from headroom.scenarios import LADDER
from headroom.truth import ALLOWED, limit, polls
from llm_headroom.derive.capacity import Known, Target, begun
from llm_headroom.derive.trial import estimated

if TYPE_CHECKING:
    from headroom.scenarios import Scenario

OURS: Final = "llm_load_headroom_ratio"
FROM: Final = 1380.0
EVERY: Final = 60.0
MAX_RUNNING: Final = 256.0


@dataclass(frozen=True, slots=True)
class Row:
    """One estimate: whose, at what share of the limit, at what second, what it says, and what is true."""

    scenario: str
    group: str
    kind: str
    level: float
    at: float
    name: str
    said: float
    true: float


def ladder(scenario: Scenario, *, levels: tuple[float, ...] = LADDER, peers: bool = True) -> tuple[list[Row], float]:
    """The rows of a scenario, none where it has no limit, and the mean CPU seconds of an estimate of ours."""
    kind = (
        "inter-token"
        if scenario.tokens
        else "tuning"
        if scenario.tuning
        else "system prompt"
        if scenario.shared
        else "steady"
        if scenario.steady
        else "held out"
    )
    rows: list[Row] = []
    most, spent, runs = limit(scenario), 0.0, 0
    name, field = ("inter_token_latency", "inter_token") if scenario.tokens else ("ttft", "ttft")
    targets = (Target(name, field, scenario.objective, ALLOWED),)
    if math.isinf(most):
        return [], 0.0
    for level in levels:
        known: Known | None = None
        others = Peers(scenario.objective, MAX_RUNNING)
        due = FROM
        for at, now in polls(scenario, most * level):
            if known is None:
                known = begun(now, at, scenario.setup.scheduler)
            known = known.after(now, at)
            others.poll(at, now)
            if at < due:
                continue
            due += EVERY
            began = time.process_time()
            estimate = estimated(known, targets)
            spent, runs = spent + time.process_time() - began, runs + 1
            said = others.estimates() if peers and not scenario.tokens else {}
            if estimate is not None:
                known = known.with_estimate(estimate)
                if known.headroom:
                    said[OURS] = known.headroom[name].ratio
            rows += [
                Row(scenario.name, scenario.group, kind, level, at, who, value, 1.0 / level)
                for who, value in said.items()
            ]
    return rows, spent / max(1, runs)
