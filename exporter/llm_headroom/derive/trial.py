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
    from llm_headroom.derive.traffic import Call, Lengths, Sizes, Traffic

_PRECISION: Final = 1.06
_STEP: Final = 1.12
"""By which the first guess is widened; the next ones by its square, and so on."""
_REACH: Final = 1.5
"""How far beyond the factor that is asked for draws are made, since the next one may be higher."""
_FIRST_GUESS: Final = 2.0
_WANTED_CALLS: Final = 2000.0
_MOST_DRAWS: Final = 4
_LEAST_SEEN: Final = 20.0
"""First tokens of which latencies have to be seen before the twin is compared with them."""
_COMPARED: Final = (0.01, 0.3)
"""Shares of first tokens at which the twin's latencies are compared with those seen: rarer ones are chance."""
_MOST_CORRECTION: Final = 4.0
_LEAST_TRUST: Final = 0.25
"""Of the share that the objective allows: so many slow ones begin to say more of the load than latencies do."""
_MOST_SLOW: Final = 4.0
"""Times the share that the objective allows: an engine with more slow ones is beyond its limit for a while."""
_OF_SERVED: Final = 0.5
"""Of the requests that ended per second while others waited: at least so many fit within an objective of first tokens.
On the tuning traces, with five minutes of waiting, 0.79 to 1.01 of them did; with constant sizes on a small engine
0.54."""
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
        ratio = trial.ratio(target, guesses[target.name], known.traffic)
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

    def ratio(self, target: Target, guess: float, seen: Traffic) -> float:
        """The factor at which as many are slow as the objective allows; for first tokens by what is `seen` of them."""
        if target.field != "ttft":
            return factor(lambda times: self._slow_tokens(times) > target.allowed, guess)
        return _served(self._corrected(target, guess, seen.waited), seen)

    def _corrected(self, target: Target, guess: float, waited: Lengths) -> float:
        """The factor for first tokens, corrected by what they wait now beside what the twin's do at the present load.

        Bursts within a poll, and what else the twin cannot know, are in both.
        """
        if waited.total < _LEAST_SEEN:
            return self._kept(target, target.seconds, guess)
        slow = waited.beyond(target.seconds)
        trust = min(max((slow / target.allowed - _LEAST_TRUST) / (1.0 - _LEAST_TRUST), 0.0), 1.0)
        found = 1.0
        if trust < 1.0:
            alike = target.seconds * self._quicker(target, waited)
            found *= self._kept(target, alike, guess) ** (1.0 - trust)
        if trust > 0.0:
            found *= (self._kept(target, target.seconds, guess) / self._present(target, slow)) ** trust
        return min(max(found, LEAST), MOST)

    def _kept(self, target: Target, seconds: float, guess: float) -> float:
        """The factor up to which no more first tokens than allowed come later than so many seconds."""
        return factor(lambda times: self._beyond(times, seconds) > target.allowed, guess)

    def _present(self, target: Target, slow: float) -> float:
        """The factor at which the twin has as many slow first tokens as are seen; 1 where both have more than enough.

        With a backlog their share grows with its age, and says no more of the load than that it is beyond.
        """
        most = _MOST_SLOW * target.allowed
        if slow >= most and self._beyond(1.0, target.seconds) >= most:
            return 1.0
        return _bounded(factor(lambda times: self._beyond(times, target.seconds) > min(slow, most), 1.0))

    def _quicker(self, target: Target, waited: Lengths) -> float:
        """How many times the latency that is seen the twin's is, at the share nearest to the one that is allowed."""
        low, high = _COMPARED
        seen = [(bound, share) for bound in waited.bounds if low <= (share := waited.beyond(bound)) <= high]
        seconds = sorted(each for one in self.outcomes(1.0) for each in one.first_seconds)
        if not seen or not seconds:
            return 1.0
        bound, share = min(seen, key=lambda each: abs(math.log(each[1] / target.allowed)))
        return _bounded(seconds[min(len(seconds) - 1, int((1.0 - share) * len(seconds)))] / bound)

    def _beyond(self, times: float, seconds: float) -> float:
        """The share of first tokens that come later than so many seconds."""
        waits = [wait > seconds for one in self.outcomes(times) for wait in one.first_seconds]
        return sum(waits) / max(1, len(waits))

    def _slow_tokens(self, times: float) -> float:
        """The share of tokens that come late after the one before."""
        outcomes = self.outcomes(times)
        return sum(one.slow_tokens for one in outcomes) / max(1.0, sum(one.tokens for one in outcomes))

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


def _served(ratio: float, traffic: Traffic) -> float:
    """The factor, but no less than half of what the engine was seen to do while requests waited.

    An engine that was never seen but beyond its limit does all steps alike, and their cost is a guess.
    """
    served = traffic.served
    return max(ratio, min(1.0, _OF_SERVED * served / traffic.rate)) if served else ratio


def _bounded(correction: float) -> float:
    return min(max(correction, 1.0 / _MOST_CORRECTION), _MOST_CORRECTION)
