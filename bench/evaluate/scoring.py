"""How good alerts are: precision, recall, lead and false alarms, for runs together and for each scenario alone."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import dataclass, field, fields
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from evaluate.incidents import Span

HORIZON: Final = 300.0
"""Seconds: an alert is right if an incident begins within so much, and leads count no more."""
AFTERWARDS: Final = 120.0
"""Seconds after an incident within which an alert is still right."""
EARLY: Final = 30.0
WARM_UP: Final = 300.0
"""Seconds of each run in which nothing counts: windows are not full yet."""
FRESH: Final = 1800.0
"""Seconds without an incident (or since the begin of the run) after which an onset is fresh."""
DAY: Final = 86_400.0
BOOTSTRAPS: Final = 400


@dataclass(frozen=True, slots=True)
class Score:
    """A rule over some runs: counts of alerts and incidents, days, seconds of (useful) firing, leads [s].

    Leads, and what is early, are of alerts that began after the incident before had ended.
    """

    alerts: int = 0
    right: int = 0
    incidents: int = 0
    caught: int = 0
    early: int = 0
    fresh: int = 0
    fresh_early: int = 0
    days: float = 0.0
    firing: float = 0.0
    useful: float = 0.0
    leads: tuple[float, ...] = field(default=())

    @property
    def precision(self) -> float:
        """Share of the alerts that are right; NaN without any."""
        return self.right / self.alerts if self.alerts else math.nan

    @property
    def recall(self) -> float:
        """Share of the incidents during or before which an alert fires; NaN without any."""
        return self.caught / self.incidents if self.incidents else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 if nothing was caught."""
        if not self.incidents:
            return math.nan
        both = self.precision + self.recall
        return 2.0 * self.precision * self.recall / both if both > 0 else 0.0

    @property
    def early_recall(self) -> float:
        """Share of the incidents before which a new alert begins by at least 30 s."""
        return self.early / self.incidents if self.incidents else math.nan

    @property
    def fresh_early_recall(self) -> float:
        """The same of incidents after a calm half hour."""
        return self.fresh_early / self.fresh if self.fresh else math.nan

    @property
    def false_alarms(self) -> float:
        """Wrong alerts a day."""
        return (self.alerts - self.right) / self.days if self.days else math.nan

    @property
    def useful_share(self) -> float:
        """Share of the time of firing in which an incident is on or begins within five minutes."""
        return self.useful / self.firing if self.firing else math.nan

    @property
    def duty(self) -> float:
        """Share of the time in which an alert fires; NaN without any time."""
        return self.firing / (self.days * DAY) if self.days else math.nan

    @property
    def lead(self) -> float:
        """Median seconds from the new alert to the onset; negative if it comes later. NaN without any."""
        return statistics.median(self.leads) if self.leads else math.nan


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


def score(incidents: Sequence[Span], alerts: Sequence[Span], duration: float) -> Score:
    """How a rule does in one run, `duration` seconds long.

    Incidents that begin, and
    alerts that end, in the warm-up do not count.
    """
    counted = [span for span in incidents if span.begin >= WARM_UP]
    fires = [span for span in alerts if span.end >= WARM_UP]
    right = sum(any(begin - HORIZON <= at <= end + AFTERWARDS for begin, end in incidents) for at, _ in fires)
    leads = []
    early = caught = fresh = fresh_early = 0
    for begin, end in counted:
        hits = [at for at, until in alerts if until >= begin - HORIZON and at <= end]
        caught += bool(hits)
        ended = max((other.end for other in incidents if other.begin < begin), default=-math.inf)
        began = min((at for at in hits if at > ended), default=None)
        lead = -math.inf if began is None else min(begin - began, HORIZON)
        if began is not None:
            leads.append(lead)
        early += lead >= EARLY
        if all(other.end < begin - FRESH for other in incidents if other.begin < begin):
            fresh += 1
            fresh_early += lead >= EARLY
    firing = [(max(at, WARM_UP), until) for at, until in alerts if until > WARM_UP]
    useful = sum(_overlap(span, (begin - HORIZON, end)) for span in firing for begin, end in _apart(incidents))
    return Score(
        alerts=len(fires),
        right=right,
        incidents=len(counted),
        caught=caught,
        early=early,
        fresh=fresh,
        fresh_early=fresh_early,
        days=max(0.0, duration - WARM_UP) / DAY,
        firing=sum(until - at for at, until in firing),
        useful=useful,
        leads=tuple(leads),
    )


def _overlap(one: tuple[float, float], other: tuple[float, float]) -> float:
    return max(0.0, min(one[1], other[1]) - max(one[0], other[0]))


def _apart(incidents: Sequence[Span]) -> list[tuple[float, float]]:
    """Incidents, each begin so late that the five minutes before it do not lie within the one before."""
    ends = [-math.inf, *(span.end for span in incidents)]
    return [(max(span.begin, end + HORIZON), span.end) for span, end in zip(incidents, ends, strict=False)]


def total(scores: Iterable[Score]) -> Score:
    """The runs of some scores together."""
    every = list(scores)
    sums = {each.name: sum(getattr(one, each.name) for one in every) for each in fields(Score) if each.name != "leads"}
    return Score(**sums, leads=tuple(lead for one in every for lead in one.leads))


class Macro(NamedTuple):
    """Scenarios counting once each: means, and the worst scenario's recall and precision. NaNs are left out."""

    precision: float
    recall: float
    f1: float
    early_recall: float
    worst_precision: float
    worst_recall: float
    median_false_alarms: float
    most_false_alarms: float


def macro(scored: Sequence[tuple[str, Score]]) -> Macro:
    """The macro view of scores by scenario."""
    ordered = sorted(scored, key=lambda pair: pair[0])
    each = [total(one for _, one in group) for _, group in groupby(ordered, key=lambda pair: pair[0])]

    def values(get: Callable[[Score], float]) -> list[float]:
        return [value for value in map(get, each) if not math.isnan(value)] or [math.nan]

    precision, recall = values(lambda one: one.precision), values(lambda one: one.recall)
    alarms = values(lambda one: one.false_alarms)
    return Macro(
        statistics.fmean(precision),
        statistics.fmean(recall),
        statistics.fmean(values(lambda one: one.f1)),
        statistics.fmean(values(lambda one: one.early_recall)),
        min(precision),
        min(recall),
        statistics.median(alarms),
        max(alarms),
    )


def interval(scored: Sequence[tuple[str, Score]], get: Callable[[Score], float], seed: int = 0) -> Interval:
    """The 95 % bootstrap interval of a figure of the total of scores: over traces, then over each one's runs.

    Scores come with their traces: runs of one trace are too alike to be drawn alone.
    """
    chance = random.Random(seed)  # noqa: S311  simulation, not security
    by_trace: dict[str, list[Score]] = {}
    for trace, one in scored:
        by_trace.setdefault(trace, []).append(one)
    drawn = (
        get(
            total(
                one
                for trace in chance.choices(sorted(by_trace), k=len(by_trace))
                for one in chance.choices(by_trace[trace], k=len(by_trace[trace]))
            )
        )
        for _ in range(BOOTSTRAPS if by_trace else 0)
    )
    values = sorted(value for value in drawn if not math.isnan(value))
    if not values:
        return Interval(math.nan, math.nan)
    return Interval(values[int(0.025 * len(values))], values[min(int(0.975 * len(values)), len(values) - 1)])
