"""What reaches people of the alerts that fire: Alertmanager's inhibition and grouping, over spans of time."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from evaluate.incidents import Span, merged
from evaluate.rules import seconds
from llm_headroom.bundle.alerts import GROUPED_BY, INHIBITIONS, alertmanager

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_ROUTE: Final = alertmanager()["route"]
WAIT_SECONDS: Final = seconds(_ROUTE["group_wait"])
LOOK_SECONDS: Final = seconds(_ROUTE["group_interval"])


class Fired(NamedTuple):
    """An alert with its labels, and when it fired."""

    name: str
    labels: Mapping[str, str]
    spans: Sequence[Span]


class Page(NamedTuple):
    """One notification group from its first alert to its last: where, when, and which alerts were in it, in order."""

    engine: str
    model: str
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

    As Alertmanager has it: a group notifies after `group_wait`, and is looked at again every `group_interval`. It ends
    at the first look at which nothing fires; what fires later begins another one.
    """
    groups: dict[tuple[str, ...], list[Fired]] = {}
    for alert in fired:
        if alert.spans:
            groups.setdefault(tuple(alert.labels.get(name, "") for name in GROUPED_BY), []).append(alert)
    found = []
    for key, alerts in groups.items():
        labels = dict(zip(GROUPED_BY, key, strict=True))
        for whole in _notified(merged([span for alert in alerts for span in alert.spans], 0.0)):
            inside = sorted(
                (span.begin, alert.name)
                for alert in alerts
                for span in alert.spans
                if whole.begin <= span.begin <= whole.end
            )
            names = tuple(dict.fromkeys(name for _, name in inside))
            found.append(Page(labels["engine"], labels["model"], whole, names))
    return sorted(found, key=lambda page: page.span)


def _notified(firing: Sequence[Span]) -> Iterator[Span]:
    """From when to when a group lasts whose alerts fire in these spans, which are in order and apart."""
    end = -math.inf
    for index, span in enumerate(firing):
        if span.begin <= end:
            continue
        look = span.begin + WAIT_SECONDS + LOOK_SECONDS
        while any(each.begin <= look <= each.end for each in firing[index:]):
            look += LOOK_SECONDS
        end = look
        yield Span(span.begin, end)
