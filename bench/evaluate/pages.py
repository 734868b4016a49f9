"""What reaches people of the alerts that fire: Alertmanager's inhibition and grouping, over spans of time."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from evaluate.incidents import Span, merged
from evaluate.rules import seconds
from llm_headroom.bundle.alerts import BRIEF, GROUPED_BY, INHIBITIONS, PATIENCE, alertmanager

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_ROUTE: Final = alertmanager()["route"]
WAIT_SECONDS: Final = seconds(_ROUTE["group_wait"])
BRIEF_WAIT_SECONDS: Final = seconds(PATIENCE)
LOOK_SECONDS: Final = seconds(_ROUTE["group_interval"])


class Fired(NamedTuple):
    """An alert with its labels, and when it fired."""

    name: str
    labels: Mapping[str, str]
    spans: Sequence[Span]


class Page(NamedTuple):
    """One notification group from its first alert to its last: where, when, and which alerts were in it, in order."""

    model: str
    targets: frozenset[str]
    span: Span
    alerts: tuple[str, ...]


class Inhibition(NamedTuple):
    """Alerts of the name `source` silence those whose names match, where these labels agree."""

    source: str
    targets: re.Pattern[str]
    equal: tuple[str, ...]


def without(spans: Iterable[Span], silenced: Iterable[Span]) -> list[Span]:
    """What is left of spans outside of others."""
    left = [*spans]
    for begin, end in silenced:
        left = [
            part
            for span in left
            for part in (Span(span.begin, min(span.end, begin)), Span(max(span.begin, end), span.end))
            if part.begin < part.end or (part == span and not begin <= span.begin <= end)
        ]
    return left


def uninhibited(fired: Sequence[Fired], rules: Sequence[Inhibition]) -> list[Fired]:
    """The alerts, each without the time in which another one silences it. Labels that both lack agree."""
    found = []
    for alert in fired:
        silenced = [
            span
            for rule in rules
            if rule.targets.fullmatch(alert.name)
            for source in fired
            if source.name == rule.source
            and source is not alert
            and all(source.labels.get(name, "") == alert.labels.get(name, "") for name in rule.equal)
            for span in source.spans
        ]
        found.append(alert._replace(spans=without(alert.spans, silenced)))
    return found


def inhibitions() -> list[Inhibition]:
    """The shipped ones."""
    return [
        Inhibition(source, re.compile(targets), ("cluster", "namespace", *equal))
        for source, targets, equal in INHIBITIONS
    ]


def pages(fired: Iterable[Fired]) -> list[Page]:
    """The notifications that begin an incident, of alerts of one severity, in order of time.

    As Alertmanager has it: a group notifies after its `group_wait` if something fires then, and is looked at again
    every `group_interval`. It ends at the first look at which nothing fires; what fires later begins another one. What
    is mostly brief has a route of its own, and so groups of its own.
    """
    groups: dict[tuple[str, ...], list[Fired]] = {}
    for alert in fired:
        if alert.spans:
            key = (*(alert.labels.get(name, "") for name in GROUPED_BY), str(alert.name == BRIEF))
            groups.setdefault(key, []).append(alert)
    found = []
    for key, alerts in groups.items():
        labels = dict(zip(GROUPED_BY, key, strict=False))
        wait = BRIEF_WAIT_SECONDS if alerts[0].name == BRIEF else WAIT_SECONDS
        for whole in _notified(merged([span for alert in alerts for span in alert.spans], 0.0), wait):
            inside = sorted(
                (span.begin, alert.name)
                for alert in alerts
                for span in alert.spans
                if span.begin <= whole.end and span.end >= whole.begin
            )
            names = tuple(dict.fromkeys(name for _, name in inside))
            targets = frozenset(alert.labels.get("target", "") for alert in alerts)
            found.append(Page(labels["model"], targets, whole, names))
    return sorted(found, key=lambda page: page.span)


def _notified(firing: Sequence[Span], wait: float) -> Iterator[Span]:
    """From its notification on, how long a group lasts whose alerts fire in these spans, in order and apart."""
    end = -math.inf
    for index, span in enumerate(firing):
        if span.begin <= end:
            continue
        look = span.begin + wait
        if not _fires(firing[index:], look):
            end = look  # nothing is sent of what is over by then
            continue
        while _fires(firing[index:], look):
            look += LOOK_SECONDS
        end = look
        yield Span(span.begin + wait, end)


def _fires(firing: Sequence[Span], at: float) -> bool:
    return any(begin <= at <= end for begin, end in firing)
