"""One estimate of the load headroom: recent traffic at several factors, replayed on the engine's twin.

The headroom is the factor at which as many tokens are slow as the objective allows.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Final

from llm_headroom.derive import twin
from llm_headroom.derive.capacity import LEAST, MOST, Estimate, Headroom

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_headroom.derive.capacity import Known, Target
    from llm_headroom.derive.traffic import Call, Sizes, Traffic

_PRECISION: Final = 1.06
_STEP: Final = 1.12
"""By which the first guess is widened; the next ones by its square, and so on."""
_REACH: Final = 1.5
"""How far beyond the factor that is asked for draws are made, since the next one may be higher."""
_FIRST_GUESS: Final = 2.0
_WANTED_CALLS: Final = 2000.0
_MOST_DRAWS: Final = 4
_MOST_CALLS: Final = 15_000.0
"""Requests of one replay; of a busier engine the latest minutes are enough, since their count says as much."""
_NEVER: Final = 1e9
"""Seconds: where there is no objective."""


def estimated(known: Known, targets: Sequence[Target]) -> Estimate | None:
    """Run the twin; None where something is missing. Takes tenths of a second of CPU: not for the poll's path."""
    sizes = known.traffic.sizes()
    engine = None if sizes is None else known.twin(sizes)
    if sizes is None or engine is None or not known.traffic.rate:
        return None
    guesses = {target.name: _FIRST_GUESS for target in targets}
    guesses |= {name: math.exp(total / weight) for name, (total, weight) in known.smoothed.items()}
    trial = _Trial(known.traffic.latest(_MOST_CALLS / max(guesses.values())), sizes, engine, targets, round(known.at))
    found = {}
    for target in targets:
        ratio = factor(trial.excess(target), guesses[target.name])
        found[target.name] = Headroom(ratio, trial.binding(target, ratio))
    return Estimate(at=known.at, headroom=found, rate=known.traffic.rate * known.replicas)


def factor(excess: Callable[[float], bool], guess: float) -> float:
    """The factor from which on there is an excess, by bisection around a guess; within the bounds of the headroom."""
    low = high = min(max(guess, LEAST), MOST)
    step = _STEP
    if excess(high):
        while low > LEAST:
            low, step = max(LEAST, low / step), step**2
            if not excess(low):
                break
            high = low
        else:
            return LEAST
    else:
        while high < MOST:
            high, step = min(MOST, high * step), step**2
            if excess(high):
                break
            low = high
        else:
            return MOST
    while high / low > _PRECISION:
        middle = math.sqrt(low * high)
        if excess(middle):
            high = middle
        else:
            low = middle
    return math.sqrt(low * high)


class _Trial:
    """Replays of the same draws at several factors, each done once."""

    def __init__(
        self, traffic: Traffic, sizes: Sizes, engine: twin.Engine, targets: Sequence[Target], seed: int
    ) -> None:
        self._traffic, self._sizes, self._engine, self._seed = traffic, sizes, engine, seed
        seconds = {target.field: target.seconds for target in targets}
        self._first, self._between = seconds.get("ttft", _NEVER), seconds.get("inter_token", _NEVER)
        wanted = math.ceil(_WANTED_CALLS / max(1.0, traffic.total("arrivals")))
        self._count = min(_MOST_DRAWS, max(1, wanted))
        self._most = 0.0
        self._draws: list[list[tuple[float, Call]]] = []
        self._done: dict[float, list[twin.Outcome]] = {}

    def outcomes(self, times: float) -> list[twin.Outcome]:
        """What `times` the traffic suffers, in each draw."""
        if times > self._most:  # draws reach a little further than asked for, and are nested below
            self._most = min(MOST, times * _REACH)
            self._done.clear()
            self._draws = [
                self._traffic.draw(self._sizes, self._most, random.Random(self._seed + draw))  # noqa: S311 - simulation
                for draw in range(self._count)
            ]
        if times not in self._done:
            self._done[times] = [
                twin.replay(
                    [call for mark, call in draw if mark <= times],
                    self._engine,
                    first=self._first,
                    between=self._between,
                    since=self._traffic.warm_up,
                )
                for draw in self._draws
            ]
        return self._done[times]

    def excess(self, target: Target) -> Callable[[float], bool]:
        """Whether more than the allowed share is slow at a factor."""

        def firsts(times: float) -> bool:
            outcomes = self.outcomes(times)
            slow = sum(one.slow_firsts for one in outcomes)
            return slow > target.allowed * sum(one.firsts for one in outcomes)

        def tokens(times: float) -> bool:
            outcomes = self.outcomes(times)
            slow = sum(one.slow_tokens for one in outcomes)
            return slow > target.allowed * sum(one.tokens for one in outcomes)

        return firsts if target.field == "ttft" else tokens

    def binding(self, target: Target, times: float) -> str:
        """What first tokens wait for at a factor; tokens after the first wait for computation."""
        if target.field != "ttft":
            return twin.COMPUTE
        nearest = min(self._done, key=lambda done: abs(math.log(done / times)))
        waits: dict[str, float] = {}
        for one in self._done[nearest]:
            for resource, seconds in one.waits.items():
                waits[resource] = waits.get(resource, 0.0) + seconds
        return max(waits, key=lambda resource: waits[resource])
