"""From states to incidents: one begins when trouble has lasted, and ends when it has been over for as long. Pure.

Times are seconds of a clock that nobody sets; what is sent has unix time.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from llm_headroom.model import Level
from llm_headroom.view.values import ORDER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llm_headroom.model import Snapshot

_SEVERITIES = {Level.WARN: "warning", Level.BAD: "critical"}


class Subject(NamedTuple):
    """What an incident is about: a target with its models, or a GPU; `labels` name it.

    `key` is that of the target, whichever of its models is the worst.
    """

    key: str
    name: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What is wrong with a subject: the state, why in words, and how severe.

    `states` are all that there were since it began, `sent` whether anyone was notified, `over` since when it is not any
    more, if so.
    """

    subject: Subject
    state: str
    reason: str
    severity: str
    since: float
    states: tuple[str, ...]
    sent: bool = False
    over: float | None = None


class Message(NamedTuple):
    """The beginning of an incident, or with `ended` its end."""

    trouble: Trouble
    ended: float | None = None

    def dated(self, offset: float) -> Message:
        """The same with its times moved by an offset."""
        ended = None if self.ended is None else self.ended + offset
        return Message(replace(self.trouble, since=self.trouble.since + offset), ended)


class Judgement(NamedTuple):
    """The worst state of a subject at one time."""

    subject: Subject
    state: str
    level: Level
    reason: str


@dataclass(frozen=True, slots=True)
class Incidents:
    """The troubles that last, by their subjects' keys."""

    open: Mapping[str, Trouble] = field(default_factory=dict)


def judgements(snapshots: Sequence[Snapshot], labels: Mapping[str, Mapping[str, str]]) -> list[Judgement]:
    """The worst state of each target, and of each GPU, with the operator's labels by target."""
    found: list[Judgement] = []
    for snapshot in snapshots:
        worst: dict[str, Judgement] = {}
        for each in sorted(snapshot.states, key=lambda each: ORDER[each.state.level]):
            where = each.uuid or snapshot.target
            if where in worst:
                continue
            own = {"target": snapshot.target, "engine": snapshot.engine, **labels.get(snapshot.target, {})}
            own |= {"model": each.model, "gpu": each.gpu, "uuid": each.uuid}
            name = f"GPU {each.gpu}" if each.uuid else snapshot.target
            if each.model:
                name = f"{each.model} on {name}"
            subject = Subject(where, name, {label: value for label, value in own.items() if value})
            worst[where] = Judgement(subject, str(each.state), each.state.level, each.reason)
        found += worst.values()
    return found


def step(
    incidents: Incidents, judged: Sequence[Judgement], now: float, *, least: str, after: float
) -> tuple[Incidents, list[Message]]:
    """The incidents after judgements at a time, and what is to be sent.

    Only what is at least as severe as `least` counts. Where nothing can be judged, an incident neither begins nor ends.
    """
    open_: dict[str, Trouble] = {}
    messages: list[Message] = []
    for each in judged:
        known = incidents.open.get(each.subject.key)
        severity = _SEVERITIES.get(each.level, "")
        wrong = severity == "critical" or (severity == "warning" and least == "warning")
        if wrong:
            trouble = _lasting(known, each, severity, now)
            if not trouble.sent and now - trouble.since >= after:
                trouble = replace(trouble, sent=True)
                messages.append(Message(trouble))
            open_[each.subject.key] = trouble
        elif known is None:
            continue
        elif each.level is Level.UNKNOWN:
            open_[each.subject.key] = known
        else:
            over = known.over if known.over is not None else now
            if now - over < after:
                open_[each.subject.key] = replace(known, over=over)
            elif known.sent:
                messages.append(Message(known, over))
    gone = incidents.open.keys() - {each.subject.key for each in judged}
    messages += [Message(incidents.open[key], now) for key in gone if incidents.open[key].sent]
    return Incidents(open_), messages


def _lasting(known: Trouble | None, each: Judgement, severity: str, now: float) -> Trouble:
    if known is None:
        return Trouble(
            subject=each.subject,
            state=each.state,
            reason=each.reason,
            severity=severity,
            since=now,
            states=(each.state,),
        )
    states = known.states if each.state in known.states else (*known.states, each.state)
    if known.sent:  # what was sent stays what it is about, so that its end fits its beginning
        return replace(known, states=states, over=None)
    return replace(
        known, subject=each.subject, state=each.state, reason=each.reason, severity=severity, states=states, over=None
    )
