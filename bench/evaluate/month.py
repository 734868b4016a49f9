"""A month of operations: whom the shipped alerts would have called, and for what.

    python -m evaluate.month [--days 7]

replays four engine-weeks (`month_plan`) and writes its part of docs/evaluation.md anew; `make evaluate` does so, too.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sections
from evaluate.incidents import Span, merged
from evaluate.month_plan import DAY, FLEET, HOUR, WEEK, Kind
from evaluate.month_replay import Week, replay
from evaluate.pages import Fired, Page, inhibitions, pages, uninhibited
from evaluate.prometheus import Prometheus, backfill, missing
from evaluate.report import table
from evaluate.rules import firing, metrics, read
from evaluate.scoring import AFTERWARDS, HORIZON
from llm_headroom.bundle.alerts import ALERTS
from llm_headroom.bundle.rule import Severity

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from evaluate.month_plan import Event, Member
    from evaluate.rules import Rule

ROOT: Final = Path(__file__).parents[2]
SHIPPED: Final = ROOT / "alerts" / "llm-headroom.rules.yml"
DOCUMENT: Final = ROOT / "docs" / "evaluation.md"
TITLE: Final = "## A month of operations"
BEFORE: Final = "## Limits of this evaluation"
"""Before which the part goes where there is none yet."""
LONG: Final = 300.0
"""Seconds from which an incident has to be caught."""
_LEFT_OUT: Final = re.compile(r"\[[13]d\b|_bucket|llm_gpu|llm_host|llm_oom")
"""Rules that look back a day or more, on buckets, GPUs or memory: tickets, and nothing of it is replayed here."""
_SEVERITIES: Final = {alert.name: alert.severity for alert in ALERTS}


@dataclass(frozen=True)
class Month:
    """What came of it: each engine's week, when clients of each model suffered, and pages and tickets."""

    fleet: Sequence[Member]
    weeks: Sequence[Week]
    suffered: dict[str, list[Span]]
    pages: Sequence[Page]
    tickets: Sequence[Page]
    days: float

    def right(self, page: Page) -> bool:
        """Whether an incident of the page's model is on, begins within five minutes or ended two ago."""
        at = page.span.begin
        spans = [span for model in self.models(page) for span in self.suffered[model]]
        return any(begin - HORIZON <= at <= end + AFTERWARDS for begin, end in spans)

    def models(self, page: Page) -> set[str]:
        """What a page is about; an alert on a target, such as a crash loop, names no model, nor does an exporter's."""
        if page.model:
            return {page.model}
        return {each.model for each in self.fleet if each.name in page.targets} or {""}


def rules() -> list[Rule]:
    """The shipped alerts that are evaluated."""
    return [rule for rule in read(SHIPPED) if not _LEFT_OUT.search(rule.expression)]


def operate(fleet: Sequence[Member], seconds: float, chosen: Sequence[Rule], seed: int = 31) -> Month:
    """Replay the fleet, have a real Prometheus evaluate the rules, and see what reaches people."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        work = partial(_week, seconds=seconds, seed=seed, names=frozenset(metrics(chosen)), directory=directory)
        with Pool(2) as pool:
            weeks = pool.map(work, enumerate(fleet), chunksize=1)
        backfill([directory / f"{index}.samples" for index in range(len(fleet))], directory)
        fired = []
        with Prometheus(directory) as server:
            for rule in chosen:
                for labels, times in server.holds(rule.expression, seconds):
                    spans = firing(times, rule.for_seconds, rule.keep_seconds)
                    severity = _SEVERITIES[rule.name].value
                    fired.append(Fired(rule.name, {**labels, "severity": severity}, spans))
    heard = uninhibited(fired, inhibitions())
    by_severity = {
        severity: pages(each for each in heard if _SEVERITIES[each.name] is severity)
        for severity in (Severity.PAGE, Severity.TICKET)
    }
    suffered = {
        model: merged(
            [span for week, each in zip(weeks, fleet, strict=True) if each.model == model for span in week.suffered]
        )
        for model in {each.model for each in fleet}
    }
    suffered[""] = [event.span for each in fleet for event in each.events if event.kind is Kind.EXPORTER]
    return Month(fleet, weeks, suffered, by_severity[Severity.PAGE], by_severity[Severity.TICKET], seconds / DAY)


def _week(place: tuple[int, Member], *, seconds: float, seed: int, names: frozenset[str], directory: Path) -> Week:
    index, member = place
    return replay(member, seed + index, seconds, names, directory / f"{index}.samples")


def section(month: Month) -> str:
    """The part of docs/evaluation.md."""
    long = [(model, span) for model, span in _incidents(month) if span.end - span.begin >= LONG]
    missed = [each for each in long if _caught(month, *each) is None]
    wrong = [page for page in month.pages if not month.right(page)]
    parts = [
        TITLE + "\n",
        HEAD,
        table(["", "goal", "came out", "met"], _goals(month, long, missed, wrong)),
        PLAYED,
        table(["", "times", "paged", "seconds to the page", "tickets"], _played(month)),
        "Pages and tickets by the alert that came first:\n",
        table(["alert", "severity", "notifications", "for an incident"], _alerts(month)),
        "Engines:\n",
        table(["", "requests", "late or lost", "incidents", "of 5 min or more"], _engines(month)),
    ]
    if missed or wrong:
        parts += ["What went wrong:\n", *_wrong(missed, wrong)]
    return "\n".join(parts)


PLAYED: Final = """What was played, how often, how many of them had a page or a ticket that began while they lasted
or within two minutes after, and the longest wait for a page:
"""
HEAD: Final = """Two replicas of a chat model behind a balancer, one engine alone with a model for code, and one that
works off a batch each night (its target says `purpose: batch`) live through a week each. Traffic swings over the day
and nearly ends at night. Deploys drain an engine before they restart it; crashes do not, and their processes are
started again at once and load for minutes. A stall begins with a request in the engine: one of an idle engine is seen
by nobody but a proxy. Exporters end, too, and then forget; scrapes are missed (0.2 %, and all for
two minutes). The exporter's derivation and judgement run in the loop, a real Prometheus evaluates the rules over what
was scraped (those on GPUs and memory and those that look back a day or more aside), and Alertmanager's inhibition and
grouping are applied to what fires. A page is one notification: a group of cluster, engine, model and severity from its
first alert to the first look at which nothing fires. `LLMFirstTokensSlow` calls somebody when it has fired for two
minutes; before it had that wait, a first run had 8.0 pages in an engine-week, most of them for what was over by then.

An incident is what requests suffered: by the definition above, requests that are lost or fail being late; and, of an
engine without replicas, a crash, stall or run of failures that was played, whoever noticed. A page is right if an
incident of its model begins within 300 s, is on, or ended less than 120 s ago. A page for an exporter is right while
one is down.
"""


def _goals(
    month: Month, long: Sequence[object], missed: Sequence[object], wrong: Sequence[Page]
) -> Iterator[Sequence[str]]:
    weeks, count = len(month.weeks) * month.days / 7, len(month.pages)
    yield _goal("pages in an engine-week", "≤ 5", f"{count / weeks:.1f}", met=count <= 5 * weeks)
    share = f"{count - len(wrong)} of {count}"
    yield _goal("pages for an incident", "≥ 95 %", share, met=len(wrong) <= 0.05 * count)
    yield _goal("incidents of 5 min or more, paged", "all", f"{len(long) - len(missed)} of {len(long)}", met=not missed)
    for kind in (Kind.DEPLOY, Kind.MISSED, Kind.RENAMED):
        # An upgrade's names stay changed: what follows it within the hour is counted.
        false = sum(any(_answers(month, page, *event) for event in _events(month, kind)) for page in wrong)
        yield _goal(f"pages without an incident at: {kind}", "0", str(false), met=not false)
    batch = sum("batch" in month.models(page) for page in wrong)
    yield _goal("pages without an incident of the batch engine", "0", str(batch), met=not batch)


def _goal(what: str, goal: str, out: str, *, met: bool) -> Sequence[str]:
    return [what, goal, out, "yes" if met else "**no**"]


def _played(month: Month) -> Iterator[Sequence[str]]:
    for kind in Kind:
        events = _events(month, kind)
        waits = [
            min(
                (max(page.span.begin - event.begin, 0.0) for page in month.pages if _answers(month, page, each, event)),
                default=None,
            )
            for each, event in events
        ]
        paged = [wait for wait in waits if wait is not None]
        tickets = sum(any(_answers(month, page, each, event) for page in month.tickets) for each, event in events)
        if events:
            yield [str(kind), str(len(events)), str(len(paged)), f"{max(paged):.0f}" if paged else "–", str(tickets)]


def _events(month: Month, kind: Kind) -> list[tuple[Member, Event]]:
    return [
        (each, event)
        for each in month.fleet
        for event in each.events
        if event.kind is kind and event.begin < month.days * DAY
    ]


def _answers(month: Month, page: Page, member: Member, event: Event) -> bool:
    """Whether a page or ticket speaks of an event: it began while that lasted, or soon after."""
    of = "" if event.kind is Kind.EXPORTER else member.model
    return (
        of in month.models(page) and event.begin <= page.span.begin <= min(event.end, event.begin + HOUR) + AFTERWARDS
    )


def _alerts(month: Month) -> Iterator[Sequence[str]]:
    for severity, found in (("page", month.pages), ("ticket", month.tickets)):
        for name in sorted({each.alerts[0] for each in found}):
            first = [each for each in found if each.alerts[0] == name]
            yield [f"`{name}`", severity, str(len(first)), str(sum(map(month.right, first)))]


def _engines(month: Month) -> Iterator[Sequence[str]]:
    for week in month.weeks:
        long = sum(end - begin >= LONG for begin, end in week.suffered)
        yield [week.name, f"{week.requests:,}", f"{week.slow:,}", str(len(week.suffered)), str(long)]


def _wrong(missed: Sequence[tuple[str, Span]], wrong: Sequence[Page]) -> Iterator[str]:
    for model, (begin, end) in missed:
        minutes = (end - begin) / 60.0
        yield f"- nobody was paged for an incident of {model} on {_when(begin)}, which lasted {minutes:.0f} min"
    for page in wrong:
        whose = ", ".join(filter(None, (page.model, *page.targets))) or "an exporter"
        yield f"- `{page.alerts[0]}` called somebody for {whose} on {_when(page.span.begin)} without an incident"
    yield ""


def _when(at: float) -> str:
    day = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")[int(at // DAY)]
    return f"{day} at {int(at % DAY // HOUR):02}:{int(at % HOUR // 60):02}"


def _incidents(month: Month) -> Iterator[tuple[str, Span]]:
    for model, spans in month.suffered.items():
        if model:
            yield from ((model, span) for span in spans)


def _caught(month: Month, model: str, span: Span) -> float | None:
    """Seconds from an incident's begin to its page; None if nobody was paged before its end."""
    heard = [
        page.span
        for page in month.pages
        if model in month.models(page) and page.span.end >= span.begin - HORIZON and page.span.begin <= span.end
    ]
    return min((max(each.begin - span.begin, 0.0) for each in heard), default=None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=float, default=7.0, help="how much of the week is replayed")
    parser.add_argument("--output", type=Path, default=DOCUMENT, help="the document whose part is written anew")
    options = parser.parse_args(arguments)
    if program := missing():
        print(f"{program} is not installed (Debian: prometheus)", file=sys.stderr)
        return 1
    began = time.monotonic()
    month = operate(FLEET, min(options.days * DAY, WEEK), rules())
    sections.put(section(month), options.output, BEFORE)
    print(f"{len(month.pages)} pages, {len(month.tickets)} tickets, {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
