"""The traffic of the last minutes, and draws of traffic like it: how bursty it is, and how long requests are."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom.derive.mix import (
    ANSWER,
    COMPUTED,
    LEAST_ARRIVALS,
    PROMPT,
    between_minutes,
    blocks_of,
    by_minute,
    changed,
)
from llm_headroom.derive.observation import histogram_growth
from llm_headroom.frozen import frozen, frozen_named

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Iterator, Sequence

    from llm_headroom.derive.interval import Interval
    from llm_headroom.derive.observation import Observation
    from llm_headroom.model import Histogram

WINDOW_SECONDS: Final = 900.0
QUIET_SECONDS: Final = 60.0
"""A minute is busy if anything happens in it."""
LEAST_SECONDS: Final = 120.0
COARSE_SECONDS: Final = 60.0
"""Bursts are estimated at this scale first, and within it at that of single intervals."""
ANSWER_SECONDS: Final = 1800.0
"""Time constant of the mean answer: long answers end late, so that a short window misses them."""
WAITED_SECONDS: Final = WINDOW_SECONDS / 2.0
"""Time constant of the times to first tokens, which are then as old on average as the traffic of the window."""
USUAL_SECONDS: Final = 300.0
PRESENT_SECONDS: Final = 60.0
"""The present rate is that of five minutes, or of the last one where that is higher by more than chance."""
_MOST_CHANGE: Final = 2.0
FULL_SECONDS: Final = 300.0
"""With requests that wait, after which what ends meanwhile is what the engine can do."""
LEAST_FIRSTS: Final = 5
_MOST_DISPERSION: Final = 20.0
_LEAST_WARM_UP: Final = 60.0
_TRIES: Final = 4
"""Draws of an interval's lengths, of which the one whose sum is nearest is taken."""
_RESIDENCES: Final = 3.0
"""Residence times after which a simulated engine has settled."""


class Call(NamedTuple):
    """A request: seconds of its arrival, tokens of its prompt, how many are cached, and tokens of its answer.

    `shared` are those of the cached ones that the engine holds once for all who run.
    """

    arrival: float
    prompt: int
    cached: int
    answer: int
    shared: int = 0


@frozen
class Lengths:
    """Lengths of prompts or outputs in tokens, or of waits in seconds: a histogram whose observations fade.

    `counts` are per bucket.
    """

    bounds: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()

    def after(self, before: Histogram | None, now: Histogram | None, keep: float) -> Lengths:
        """The lengths with those between two readings, the older ones with a weight `keep` times as great."""
        faded = Lengths(self.bounds, tuple(count * keep for count in self.counts))
        grown = histogram_growth(before, now)
        if grown is None:
            return faded
        fresh = tuple(b - a for a, b in zip((0.0, *grown.counts), grown.counts, strict=False))
        if faded.bounds != grown.bounds:
            return Lengths(grown.bounds, fresh)
        return Lengths(grown.bounds, tuple(a + b for a, b in zip(faded.counts, fresh, strict=True)))

    @property
    def total(self) -> float:
        """How many observations there are, as far as they have not faded."""
        return sum(self.counts)

    def beyond(self, bound: float) -> float:
        """The share above a bucket's bound."""
        above = sum(count for upper, count in zip(self.bounds, self.counts, strict=True) if upper > bound)
        return above / self.total if self.total else 0.0

    @property
    def variation(self) -> float:
        """The standard deviation as a share of the mean."""
        return self.sampler(1.0).deviation

    def sampler(self, mean: float) -> Sampler:
        """Draws lengths of the given mean in tokens; exponential ones where there is no histogram."""
        total = self.total
        if total <= 0:
            return Sampler((), (), mean)
        edges = [
            (low, high if math.isfinite(high) else 2.0 * low)
            for low, high in zip((1.0, *self.bounds), (max(1.0, bound) for bound in self.bounds), strict=False)
        ]
        shares = [count / total for count in self.counts]
        own = sum(
            share * ((high - low) / math.log(high / low) if high > low else low)
            for share, (low, high) in zip(shares, edges, strict=True)
        )
        scale = mean / own
        return Sampler(
            tuple(accumulate(shares)), tuple((low * scale, math.log(high / low)) for low, high in edges), mean
        )


@frozen
class Sampler:
    """A distribution of lengths: its cumulative shares, and each bucket's low end and logarithmic width."""

    shares: tuple[float, ...]
    buckets: tuple[tuple[float, float], ...]
    mean: float

    @property
    def deviation(self) -> float:
        """The standard deviation in tokens."""
        if not self.shares:
            return self.mean
        square = last = 0.0
        for share, (low, width) in zip(self.shares, self.buckets, strict=True):
            high = low * math.exp(width)
            square += (share - last) * ((high**2 - low**2) / (2.0 * width) if width > 0 else low**2)
            last = share
        return math.sqrt(max(0.0, square - self.mean**2))

    def draw(self, chance: random.Random) -> int:
        """One length in tokens, at least 1; within a bucket logarithms are equally likely."""
        if not self.shares:
            return max(1, round(chance.expovariate(1.0 / self.mean)))
        index = min(bisect_left(self.shares, chance.random()), len(self.buckets) - 1)
        low, width = self.buckets[index]
        return max(1, round(low * math.exp(width * chance.random())))


@frozen_named
class Sizes:
    """Mean prompt and answer in tokens, the share of prompts that is cached, and tokens that a step yields.

    `shared` is the share of prompts that the engine holds once for all who run, such as a system prompt.
    """

    prompt: float
    answer: float
    cached: float
    per_step: float
    shared: float = 0.0


@frozen_named
class Traffic:
    """The intervals of the last fifteen minutes, and lengths of a little longer.

    `waited` are times to first tokens in seconds.
    `generated` and `answered` are tokens and the requests they are of, fading slowly. `alike` are the seconds since
    the mix of requests last changed. `busy` are the seconds since
    the engine started in which it had something to do, or had within a minute; `quiet` are those since it had.
    """

    intervals: tuple[Interval, ...] = ()
    prompts: Lengths = field(default_factory=Lengths)
    answers: Lengths = field(default_factory=Lengths)
    generated: float = 0.0
    answered: float = 0.0
    alike: float = 0.0
    busy: float = 0.0
    quiet: float = math.inf
    waited: Lengths = field(default_factory=Lengths)

    def after(self, interval: Interval, before: Observation, now: Observation) -> Traffic:
        """The traffic with one more interval, which lies between the two observations."""
        keep = math.exp(-interval.seconds / WINDOW_SECONDS)
        keep_answers = math.exp(-interval.seconds / ANSWER_SECONDS)
        quiet = 0.0 if interval.busy else self.quiet + interval.seconds
        retained, seconds = [interval], interval.seconds
        for each in reversed(self.intervals):
            if seconds >= WINDOW_SECONDS:
                break
            retained.append(each)
            seconds += each.seconds
        known = replace(
            self,
            intervals=tuple(reversed(retained)),
            prompts=self.prompts.after(before.prompt_sizes, now.prompt_sizes, keep),
            answers=self.answers.after(before.generation_sizes, now.generation_sizes, keep_answers),
            waited=self.waited.after(before.ttft, now.ttft, math.exp(-interval.seconds / WAITED_SECONDS)),
            generated=self.generated * keep_answers + interval.generated,
            answered=self.answered * keep_answers + interval.admitted,
            alike=self.alike + interval.seconds,
            busy=self.busy + (interval.seconds if quiet < QUIET_SECONDS else 0.0),
            quiet=quiet,
        )
        return known._of_one_mix()  # noqa: SLF001 - of the same class

    def _latest(self, seconds: float) -> tuple[Interval, ...]:
        """The intervals of the last so many seconds."""
        count, filled = 0, 0.0
        for each in reversed(self.intervals):
            if filled >= seconds:
                break
            filled += each.seconds
            count += 1
        return self.intervals[len(self.intervals) - count :]

    def _of_one_mix(self) -> Traffic:
        """The same, or what came since the mix of requests has changed."""
        alike = self._latest(self.alike)
        prompts = changed(alike, PROMPT, lambda: self.prompts.variation)
        computed = changed(alike, COMPUTED, lambda: self._computed_variation(alike))
        # the tokens of some seconds are of other requests than those that end in them
        answers = changed(alike, ANSWER, lambda: math.hypot(1.0, self.answers.variation))
        since = max(prompts, computed, answers)
        return self._since(alike[len(alike) - since :], of_other_answers=answers > 0) if since else self

    def _computed_variation(self, alike: Sequence[Interval]) -> float:
        """That of what is computed of a prompt, if each is either cached or not, so that they differ by most."""
        share = sum(each.computed for each in alike) / sum(each.prompt for each in alike)
        return math.sqrt(max(0.0, (1.0 + self.prompts.variation**2) / share - 1.0))

    def _since(self, recent: Sequence[Interval], *, of_other_answers: bool) -> Traffic:
        """The traffic with the sizes of the latest intervals alone; how it arrives is still known of all of it.

        Answers that have not changed as far as is seen weigh as much as those of the latest intervals.
        """
        generated, answered = sum(each.generated for each in recent), sum(each.admitted for each in recent)
        keep = 0.0 if of_other_answers or not self.answered else min(1.0, answered / self.answered)
        return replace(
            self,
            prompts=Lengths(),
            answers=Lengths(),
            waited=Lengths(),
            generated=generated + keep * max(0.0, self.generated - generated),
            answered=answered + keep * max(0.0, self.answered - answered),
            alike=sum(each.seconds for each in recent),
        )

    def latest(self, arrivals: float) -> Traffic:
        """The traffic of the last so many arrivals, and at least of the last minutes."""
        retained: list[Interval] = []
        seconds = 0.0
        for each in reversed(self.intervals):
            if arrivals <= 0 and seconds >= LEAST_SECONDS:
                break
            retained.append(each)
            seconds += each.seconds
            arrivals -= each.arrivals
        return replace(self, intervals=tuple(reversed(retained)))

    def total(self, name: str) -> float:
        """The sum of a field over the window."""
        return float(sum(getattr(each, name) for each in self.intervals))

    @property
    def seconds(self) -> float:
        """How long the window is by now."""
        return self.total("seconds")

    @property
    def rate(self) -> float:
        """Arrivals per second."""
        return self.total("arrivals") / self.seconds if self.intervals else 0.0

    def recent_rate(self, seconds: float) -> float:
        """Arrivals per second of the last so many seconds."""
        recent = self._latest(seconds)
        return sum(each.arrivals for each in recent) / sum(each.seconds for each in recent) if recent else 0.0

    @property
    def present_rate(self) -> float:
        """Arrivals per second by now: those of five minutes, or of the last one as far as chance explains no such rise.

        The more minutes have differed beyond chance, the more the last one counts, up to twice the rate of five. A lull
        is no reason to hurry: autoscalers take engines away late.
        """
        usual = self.recent_rate(USUAL_SECONDS)
        minute = self._latest(PRESENT_SECONDS)
        came = sum(each.arrivals * each.replicas for each in minute)
        expected = sum(usual * each.seconds * each.replicas for each in minute)
        if came <= expected:
            return usual
        _, *minutes = self._coarse()
        differ = dispersion(*minutes)
        return usual * min((1.0 + differ * came) / (1.0 + differ * expected), _MOST_CHANGE)

    def _coarse(self) -> tuple[list[list[int]], list[float], list[float]]:
        """The window's intervals in blocks of about a minute: their indices, what came in each, what was expected."""
        seconds = [each.seconds for each in self.intervals]
        counts = [each.arrivals * each.replicas for each in self.intervals]
        rate = sum(counts) / sum(seconds) if seconds else 0.0
        blocks = blocks_of(seconds, COARSE_SECONDS)
        came = [sum(counts[i] for i in block) for block in blocks]
        return blocks, came, [rate * sum(seconds[i] for i in block) for block in blocks]

    @property
    def served(self) -> float | None:
        """Requests per second that ended while others waited, which is all that was possible; None where few did."""
        full = [each for each in self._latest(self.alike) if all(each.waiting)]
        seconds = sum(each.seconds for each in full)
        return sum(each.finished for each in full) / seconds if seconds >= FULL_SECONDS else None

    @property
    def warm_up(self) -> float:
        """Seconds of traffic after which an engine that began empty is as full as it will be."""
        held = sum(each.running * each.seconds for each in self.intervals)
        residence = held / max(self.total("finished"), 1.0)
        return min(self.seconds, max(_LEAST_WARM_UP, _RESIDENCES * residence))

    def sizes(self) -> Sizes | None:
        """What requests are like; None before enough of them were seen."""
        alike = self._latest(self.alike)
        firsts, prompt = sum(each.firsts for each in alike), sum(each.prompt for each in alike)
        if firsts < LEAST_FIRSTS or prompt <= 0 or self.generated <= 0 or self.total("arrivals") < LEAST_ARRIVALS:
            return None
        steps = self.total("tokens") + firsts
        sizes = Sizes(
            prompt=prompt / firsts,
            answer=max(1.0, self.generated / max(1.0, self.answered)),
            cached=sum(each.cached for each in alike) / prompt,
            per_step=max(1.0, self.total("generated") / steps),
        )
        return replace(sizes, shared=self._shared(alike, sizes))

    def _shared(self, alike: Sequence[Interval], sizes: Sizes) -> float:
        """The share of prompts that running requests hold together: by how much less is held than they have.

        Only cached tokens can be.
        """
        variation = self.answers.variation if self.answers.total else 1.0
        whole = sizes.prompt + sizes.answer * (1.0 + variation**2) / 2.0
        begun = sizes.prompt * (1.0 + sizes.cached) / 2.0
        have = held = others = 0.0
        for each in alike:
            if each.context:
                decoding = min(each.decoding, each.running)
                have += each.seconds * (decoding * whole + (each.running - decoding) * begun)
                held += each.seconds * each.context
                others += each.seconds * max(0.0, each.running - 1.0)
        return min(max(0.0, (have - held) / (others * sizes.prompt)), sizes.cached) if others else 0.0

    def intensity(self, chance: random.Random) -> list[float]:
        """Arrivals per second of each interval, drawn from what its count leaves open.

        Counts are of a Poisson process whose intensity itself varies, by minutes and within them; a gamma prior of the
        variance that was seen shrinks each count towards its expectation.
        """
        counts = [each.arrivals * each.replicas for each in self.intervals]
        seconds = [each.seconds for each in self.intervals]
        mean = sum(counts) / sum(seconds)
        blocks, came, expected = self._coarse()
        by_block = ratios(came, expected, chance)
        likely = [0.0] * len(counts)
        for block, ratio in zip(blocks, by_block, strict=True):
            for i in block:
                likely[i] = mean * seconds[i] * ratio
        fine = ratios(counts, likely, chance)
        return [a * b / (each.seconds * each.replicas) for a, b, each in zip(likely, fine, self.intervals, strict=True)]

    def prompt_ratios(self, mean: float, deviation: float) -> list[float]:
        """For each interval how its minute's mean prompt compares with the window's: bursts are of like requests.

        What chance explains, with requests of that standard deviation, is shrunk away.
        """
        alike = self._latest(self.alike)
        between = between_minutes(alike, PROMPT, mean, deviation)
        found = [1.0] * (len(self.intervals) - len(alike))
        for block, count, each in by_minute(alike, PROMPT, mean):
            trust = between * count / (between * count + deviation**2) if count and between else 0.0
            found += [1.0 + trust * (each / mean - 1.0)] * len(block)
        return found

    def draw(self, sizes: Sizes, most: float, chance: random.Random) -> list[tuple[float, Call]]:
        """Requests of `most` times this traffic, in order, each with a mark: those up to a factor are that traffic.

        Those that came are among them, at marks up to the number of replicas, which share them; the others are drawn.
        The end of the window is put before its begin, for the engine to settle: `warm_up` seconds.
        """
        prompts, answers = self.prompts.sampler(sizes.prompt), self.answers.sampler(sizes.answer)
        span, lead = self.seconds, self.warm_up
        drawn: list[tuple[float, Call]] = []
        came = self._came(prompts, chance)
        like = self.prompt_ratios(sizes.prompt, prompts.deviation)
        begin = lead
        for rate, ratio, interval in zip(self.intensity(chance), like, self.intervals, strict=True):
            marks = [
                chance.random() * interval.replicas
                for _ in range(_whole(interval.arrivals * interval.replicas, chance))
            ]
            sent = [(begin + interval.seconds * chance.random(), mark, next(came)) for mark in marks]
            more, at = rate * (most - interval.replicas), begin
            while more > 0 and (at := at + chance.expovariate(more)) < begin + interval.seconds:
                mark = interval.replicas + chance.random() * (most - interval.replicas)
                sent.append((at, mark, max(1, round(ratio * prompts.draw(chance)))))
            for at, mark, prompt in sorted(sent):
                cached = min(prompt - 1, round(prompt * sizes.cached))
                shared = min(cached, round(prompt * sizes.shared))
                call = Call(at, prompt, cached, answers.draw(chance), shared)
                if mark <= most:
                    drawn.append((mark, call))
            begin += interval.seconds
        before = [(mark, call._replace(arrival=call.arrival - span)) for mark, call in drawn if call.arrival >= span]
        return before + drawn

    def _came(self, prompts: Sampler, chance: random.Random) -> Iterator[int]:
        """Prompts in the order of arrival, as the sums of those that got first tokens say; then drawn ones."""
        alike = len(self.intervals) - len(self._latest(self.alike))
        unknown = round(self.intervals[0].waiting[0] * self.intervals[0].replicas)
        for index, each in enumerate(self.intervals):
            count = _whole(each.firsts * each.replicas, chance)
            total = each.prompt * each.replicas if index >= alike else 0.0
            for prompt in _summing(prompts, count, total, chance):
                if unknown > 0:
                    unknown -= 1
                else:
                    yield prompt
        while True:
            yield prompts.draw(chance)


def _whole(count: float, chance: random.Random) -> int:
    """A whole number that is the count on average."""
    return math.floor(count + chance.random())


def _summing(sampler: Sampler, count: int, total: float, chance: random.Random) -> list[int]:
    """So many lengths, which are the total together; any if there is no total."""
    if count <= 0 or total <= 0:
        return [sampler.draw(chance) for _ in range(count)]
    tries = [[sampler.draw(chance) for _ in range(count)] for _ in range(_TRIES)]
    best = min(tries, key=lambda lengths: abs(math.log(sum(lengths) / total)))
    scale = total / sum(best)
    return [max(1, round(length * scale)) for length in best]


def ratios(counts: Iterable[float], expected: Sequence[float], chance: random.Random) -> list[float]:
    """For each count a draw of how its intensity compares with what was expected."""
    counts = tuple(counts)
    beyond = dispersion(counts, expected)
    if beyond < 1e-3:  # noqa: PLR2004 - as good as Poisson
        return [1.0] * len(counts)
    shape = 1.0 / beyond
    return [
        chance.gammavariate(shape + count, 1.0 / (shape + mean)) for count, mean in zip(counts, expected, strict=True)
    ]


def dispersion(counts: Sequence[float], expected: Sequence[float]) -> float:
    """The variance of the intensity over its square, beyond what chance explains: 0 for a Poisson process."""
    beyond = sum((count - mean) ** 2 - mean for count, mean in zip(counts, expected, strict=True))
    weight = sum(mean**2 for mean in expected)
    return min(max(beyond / weight, 0.0), _MOST_DISPERSION) if weight > 0 else 0.0
