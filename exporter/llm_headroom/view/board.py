"""The view over time: the history, and the cards of sources that have said nothing new since they were made."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from llm_headroom import __version__, clock, schema
from llm_headroom.model import NOTHING, Cause, Failure, Health, numbers
from llm_headroom.scrape import coverage
from llm_headroom.scrape.coverage import GPUS
from llm_headroom.view import engines, gpus
from llm_headroom.view.history import History
from llm_headroom.view.judged import states
from llm_headroom.view.values import Absent, GpuCard, Missing, Source, View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import TypeAlias

    from llm_headroom.engines.rules import Engine
    from llm_headroom.model import Snapshot
    from llm_headroom.poll.poller import Poller
    from llm_headroom.view.day import Minute
    from llm_headroom.view.values import EngineCard

    Cards: TypeAlias = tuple[EngineCard, ...] | tuple[GpuCard, ...]


log = logging.getLogger("llm_headroom")

UNSHOWN: Final = "not shown: internal error (bug), see the log"


def cards(
    snapshot: Snapshot,
    history: History,
    titles: Mapping[str, str],
    missing: Callable[[Snapshot], tuple[Missing, ...]],
    labels: Mapping[str, str] = NOTHING,
) -> Cards:
    """The cards of one source; `labels` are the operator's."""
    health = snapshot.health
    source = Source(
        target=snapshot.target,
        engine=snapshot.engine,
        title=titles.get(snapshot.engine, snapshot.engine or "Unknown engine"),
        version=health.version,
        up=health.up,
        taken=clock.shown(snapshot.taken),
        duration=health.duration_seconds,
        last_success=health.last_success and clock.shown(health.last_success),
        cause="" if health.error is None else str(health.error.cause),
        error="" if health.error is None else health.error.message,
        warnings=tuple(warning.message for warning in health.warnings),
        labels=tuple(sorted(labels.items())),
    )
    lacking = missing(snapshot) if health.up else ()
    make = gpus.cards if snapshot.engine == GPUS else engines.cards
    return make(snapshot, source, history, lacking, states(snapshot))


def assembled(
    made: Sequence[tuple[Snapshot, Cards]], absent: Mapping[str, str], now: float, notices: Iterable[str] = ()
) -> View:
    """The view of cards that are made already, in the order of their sources."""
    return View(
        version=__version__,
        time=now,
        sources=len(made),
        up=sum(snapshot.health.up and all(card.source.up for card in found) for snapshot, found in made),
        engines=tuple(card for snapshot, found in made if snapshot.engine != GPUS for card in found),  # type: ignore[misc]
        gpus=tuple(card for snapshot, found in made if snapshot.engine == GPUS for card in found),  # type: ignore[misc]
        absent=tuple(Absent(what, why) for what, why in sorted(absent.items())),
        notices=tuple(notices),
    )


class Board:
    """The view of a poller: `record` after each of its changes, `view` whenever somebody looks.

    `notices` gives the troubles of the exporter itself.
    """

    def __init__(self, poller: Poller, notices: Callable[[], Iterable[str]] = tuple) -> None:
        self._poller = poller
        self._notices = notices
        self._history = History()
        self._cards: dict[str, tuple[Snapshot, Cards]] = {}
        self._missing: dict[str, tuple[object, tuple[Missing, ...]]] = {}

    def record(self) -> None:
        """Take the poller's latest snapshots into the history."""
        self._history.record(self._poller.fresh(), self._poller.slots)

    def view(self) -> View:
        """What to show now."""
        titles = {name: engine.title for name, engine in self._poller.engines.items()} | {GPUS: "NVML"}
        labels = {target.name: target.labels for target in self._poller.config.targets}
        made: dict[str, tuple[Snapshot, Cards]] = {}
        for snapshot in self._poller.snapshots():
            known = self._cards.get(snapshot.target)
            if known is None or known[0] is not snapshot:
                known = (snapshot, self._made(snapshot, titles, labels.get(snapshot.target, NOTHING)))
            made[snapshot.target] = known
        self._cards = made
        for gone in self._missing.keys() - made.keys():
            del self._missing[gone]
        absent = {str(what): failure.message for what, failure in self._poller.absent.items()}
        return assembled(list(made.values()), absent, time.time(), self._notices())

    def _made(self, snapshot: Snapshot, titles: Mapping[str, str], labels: Mapping[str, str]) -> Cards:
        try:
            return cards(snapshot, self._history, titles, self._lacking, labels)
        except Exception:  # it costs no other source its card
            log.exception("rendering failed: internal error (bug)", extra={"target": snapshot.target})
            failure = Failure(Cause.INTERNAL, UNSHOWN)
            bare = replace(snapshot, states=(), health=Health(up=False, error=failure))
            return cards(bare, History(), titles, lambda _: (), labels)

    def minutes(self, card: EngineCard | GpuCard, now: float, count: int) -> Iterable[Minute]:
        """What is known of a card's last `count` minutes, 24 hours at most."""
        key = card.uuid if isinstance(card, GpuCard) else card.model
        moved = clock.set_by()
        for each in self._history.minutes(card.source.target, key, now - moved, count):
            yield each._replace(minute=each.minute + round(moved / 60))

    def _lacking(self, snapshot: Snapshot) -> tuple[Missing, ...]:
        """As at the last view if what it follows from is the same: half of what a card takes."""
        stalled = any(value for _, value in numbers(snapshot.points, schema.ENGINE_STALLED))
        names = {point.series.metric.name for point in snapshot.points}
        reasons = (snapshot.engine, snapshot.health.withheld, names, stalled)
        known, found = self._missing.get(snapshot.target, (None, ()))
        if reasons != known:
            found = lacking(snapshot, self._poller.engines.get(snapshot.engine))
            self._missing[snapshot.target] = reasons, found
        return found


def lacking(snapshot: Snapshot, engine: Engine | None) -> tuple[Missing, ...]:
    """What a source does not expose, by reason."""
    by_reason = coverage.by_reason(coverage.missing(snapshot, engine))
    return tuple(Missing(reason, tuple(metrics)) for reason, metrics in by_reason.items())
