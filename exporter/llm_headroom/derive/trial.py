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

_STEPS: Final = 12
"""Factors are powers of the twelfth root of 2, so that whoever asks for one asks for the same ones."""
_REACH: Final = 1.5
"""How far beyond the factor that is asked for a draw is made, since the next one may be higher."""
_FIRST_GUESS: Final = 2.0
_WANTED_CALLS: Final = 2000.0
"""Requests of all draws together; more of few requests, since each says as much."""
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
_MOST_CALLS: Final = {"ttft": 6000.0, "inter_token": 3000.0}
"""Requests of one replay; of a busier engine the latest minutes are enough, since their count says as much. A request
has one first token, but many after it."""


def estimated(known: Known, targets: Sequence[Target]) -> Estimate | None:
    """Run the twin; None where something is missing. Takes tenths of a second of CPU: not for the poll's path."""
    sizes = known.traffic.sizes()
    engine = None if sizes is None else known.twin(sizes)
    if sizes is None or engine is None or not known.traffic.rate:
        return None
    found, factors = {}, {}
    for target in targets:
        trial = _Trial(known, sizes, engine, target)
        ratio = trial.ratio()
        found[target.name] = Headroom(ratio, trial.binding(ratio))
        factors[target.name] = trial.factors
    rate = known.traffic.rate * known.replicas
    return Estimate(at=known.at, headroom=found, rate=rate, since=known.since, factors=factors)


def factor(excess: Callable[[float], bool], guess: float) -> float:
    """The factor from which on there is an excess, by bisection around a guess; within the bounds of the headroom."""
    least, most = round(_STEPS * math.log2(LEAST)), round(_STEPS * math.log2(MOST))
    low = high = round(_STEPS * math.log2(min(max(guess, LEAST), MOST)))
    width = 1
    if excess(_times(high)):
        while low > least:
            low, width = max(least, low - width), 2 * width
            if not excess(_times(low)):
                break
            high = low
        else:
            return LEAST
    else:
        while high < most:
            high, width = min(most, high + width), 2 * width
            if excess(_times(high)):
                break
            low = high
        else:
            return MOST
    while high - low > 1:
        middle = (low + high) // 2
        if excess(_times(middle)):
            high = middle
        else:
            low = middle
    return _times((low + high) / 2.0)


def _times(step: float) -> float:
    return float(2.0 ** (step / _STEPS))


class _Trial:
    """Replays of the same draws at several factors, each done once, for one objective.

    Each question for a factor begins at the answer that the last estimate found.
    """

    def __init__(self, known: Known, sizes: Sizes, engine: twin.Engine, target: Target) -> None:
        self._seen, self._sizes, self._engine, self._target = known.traffic, sizes, engine, target
        self._seed = round(known.at)
        self._before = known.estimate.factors.get(target.name, {}) if known.estimate else {}
        farthest = max(self._before.values(), default=_FIRST_GUESS)
        self._reach = _REACH * farthest
        self._traffic = self._seen.latest(_MOST_CALLS[target.field] / farthest)
        self.factors: dict[str, float] = {}
        self._draws: dict[int, tuple[float, list[tuple[float, Call]]]] = {}
        self._done: dict[float, list[twin.Outcome]] = {}

    def outcomes(self, times: float) -> list[twin.Outcome]:
        """What `times` the traffic suffers, in each draw."""
        if times not in self._done:
            count = min(_MOST_DRAWS, max(1, round(self._share(times))))
            self._done[times] = [self._outcome(times, draw) for draw in range(count)]
        return self._done[times]

    def _share(self, times: float) -> float:
        """Draws with which there are as many requests as wanted."""
        return _WANTED_CALLS / max(1.0, times * self._traffic.total("arrivals"))

    def _outcome(self, times: float, draw: int) -> twin.Outcome:
        first = self._target.seconds if self._target.field == "ttft" else 0.0
        return twin.replay(
            [call for mark, call in self._drawn(times, draw) if mark <= times],
            self._engine,
            first=first,
            between=self._target.seconds,
            since=self._traffic.warm_up,
        )

    def _drawn(self, times: float, draw: int) -> list[tuple[float, Call]]:
        """A draw that reaches a little further than asked for, or as far as it is needed."""
        most, drawn = self._draws.get(draw, (0.0, []))
        if times > most:
            most = min(MOST, max(_REACH * times, self._reach))
            if draw:
                most = max(times, min(most, self._share(1.0) / (draw + 0.5)))
            chance = random.Random(self._seed + draw)  # noqa: S311 - simulation, not security
            drawn = self._traffic.draw(self._sizes, most, chance)
            self._draws[draw] = most, drawn
        return drawn

    def ratio(self) -> float:
        """The factor at which as many are slow as the objective allows; for first tokens by what is seen of them."""
        if self._target.field != "ttft":
            return self._factor("tokens", lambda times: self._slow_tokens(times) > self._target.allowed)
        return _served(self._corrected(self._seen.waited), self._seen)

    def _corrected(self, waited: Lengths) -> float:
        """The factor for first tokens, corrected by what they wait now beside what the twin's do at the present load.

        Bursts within a poll, and what else the twin cannot know, are in both.
        """
        target = self._target
        if waited.total < _LEAST_SEEN:
            return self._kept("seen", target.seconds)
        slow = waited.beyond(target.seconds)
        trust = min(max((slow / target.allowed - _LEAST_TRUST) / (1.0 - _LEAST_TRUST), 0.0), 1.0)
        found = 1.0
        if trust < 1.0:
            alike = target.seconds * self._quicker(waited)
            found *= self._kept("alike", alike) ** (1.0 - trust)
        if trust > 0.0:
            found *= (self._kept("seen", target.seconds) / self._present(slow)) ** trust
        return min(max(found, LEAST), MOST)

    def _factor(self, question: str, excess: Callable[[float], bool], guess: float = _FIRST_GUESS) -> float:
        self.factors[question] = found = factor(excess, self._before.get(question, guess))
        return found

    def _kept(self, question: str, seconds: float) -> float:
        """The factor up to which no more first tokens than allowed come later than so many seconds."""
        return self._factor(question, lambda times: self._beyond(times, seconds) > self._target.allowed)

    def _present(self, slow: float) -> float:
        """The factor at which the twin has as many slow first tokens as are seen; 1 where both have more than enough.

        With a backlog their share grows with its age, and says no more of the load than that it is beyond.
        """
        target = self._target
        most = _MOST_SLOW * target.allowed
        if slow >= most and self._beyond(1.0, target.seconds) >= most:
            return 1.0
        share = min(slow, most)
        return _bounded(self._factor("present", lambda times: self._beyond(times, target.seconds) > share, 1.0))

    def _quicker(self, waited: Lengths) -> float:
        """How many times the latency that is seen the twin's is, at the share nearest to the one that is allowed."""
        low, high = _COMPARED
        seen = [(bound, share) for bound in waited.bounds if low <= (share := waited.beyond(bound)) <= high]
        seconds = sorted(each for one in self.outcomes(1.0) for each in one.first_seconds)
        if not seen or not seconds:
            return 1.0
        bound, share = min(seen, key=lambda each: abs(math.log(each[1] / self._target.allowed)))
        return _bounded(seconds[min(len(seconds) - 1, int((1.0 - share) * len(seconds)))] / bound)

    def _beyond(self, times: float, seconds: float) -> float:
        """The share of first tokens that come later than so many seconds."""
        waits = [wait > seconds for one in self.outcomes(times) for wait in one.first_seconds]
        return sum(waits) / max(1, len(waits))

    def _slow_tokens(self, times: float) -> float:
        """The share of tokens that come late after the one before."""
        outcomes = self.outcomes(times)
        return sum(one.slow_tokens for one in outcomes) / max(1.0, sum(one.tokens for one in outcomes))

    def binding(self, times: float) -> str:
        """What first tokens wait for at a factor; tokens after the first wait for computation."""
        if self._target.field != "ttft":
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
