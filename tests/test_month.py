"""The month of operations: what reaches people of alerts that fire, and how that is held against what was suffered."""

from __future__ import annotations

import re

import pytest

import sections
from evaluate import month, prometheus
from evaluate.incidents import Span
from evaluate.month_plan import Event, Kind, Member
from evaluate.pages import Fired, Inhibition, inhibitions, pages, uninhibited, without
from evaluate.scenarios import CODE, SGLANG_8B

WHERE = {"cluster": "c", "engine": "vllm", "model": "m", "severity": "page", "instance": "i", "target": "t"}


def fired(name: str, *spans: tuple[float, float], **labels: str) -> Fired:
    return Fired(name, {**WHERE, **labels}, [Span(*span) for span in spans])


@pytest.mark.parametrize(
    ("silenced", "left"),
    [
        ((0.0, 50.0), [(100.0, 200.0)]),
        ((50.0, 150.0), [(150.0, 200.0)]),
        ((150.0, 250.0), [(100.0, 150.0)]),
        ((120.0, 130.0), [(100.0, 120.0), (130.0, 200.0)]),
        ((50.0, 250.0), []),
    ],
)
def test_a_silence_takes_its_part_out_of_an_alert(
    silenced: tuple[float, float], left: list[tuple[float, float]]
) -> None:
    assert without([Span(100.0, 200.0)], [Span(*silenced)]) == left


def test_an_alert_silences_others_only_where_labels_agree() -> None:
    rule = Inhibition("Down", re.compile("Slow|Stale"), ("target",))
    alerts = [
        fired("Down", (0, 100)),
        fired("Slow", (50, 150)),
        fired("Slow", (50, 150), target="other"),
        fired("Errors", (50, 150)),
    ]

    heard = uninhibited(alerts, [rule])

    assert [[*each.spans] for each in heard] == [[(0, 100)], [(100, 150)], [(50, 150)], [(50, 150)]]


def test_the_shipped_inhibitions_are_applied() -> None:
    heard = uninhibited([fired("LLMEngineDown", (0, 100)), fired("LLMFirstTokensSlow", (10, 90))], inhibitions())

    assert [len(each.spans) for each in heard] == [1, 0]


def test_what_comes_and_goes_is_one_page_until_a_look_finds_nothing() -> None:
    alerts = [fired("Stalled", (0, 100), (250, 350), (700, 750)), fired("Errors", (300, 320))]

    found = pages(alerts)

    assert [(page.span.begin, page.alerts) for page in found] == [(10, ("Stalled", "Errors")), (710, ("Stalled",))]


def test_slow_first_tokens_call_nobody_unless_they_last() -> None:
    alerts = [fired("LLMFirstTokensSlow", (0, 100), (1000, 1130), (2000, 2050), (2080, 2200))]

    assert [page.span.begin for page in pages(alerts)] == [1120, 2120]


def test_models_are_pages_of_their_own_and_targets_of_one_model_are_not() -> None:
    found = pages([fired("Slow", (0, 20)), fired("Slow", (1, 20), target="u"), fired("Slow", (2, 20), model="n")])

    assert [(page.model, page.span.begin) for page in found] == [("m", 10), ("n", 12)]


def test_the_part_of_the_document_is_replaced_and_nothing_else() -> None:
    document = "# A\n\n## First\n\na\n\n## Limits of this evaluation\n\nb\n"

    once = sections.replaced(document, f"{month.TITLE}\n\nold\n", month.BEFORE)
    again = sections.replaced(once, f"{month.TITLE}\n\nnew\n", month.BEFORE)

    assert once == document.replace("## Limits", f"{month.TITLE}\n\nold\n\n## Limits")
    assert again == once.replace("old", "new")


def test_a_crash_under_load_pages_and_a_drained_restart_does_not() -> None:
    if program := prometheus.missing():
        pytest.skip(f"{program} is not installed (Debian: prometheus)")
    crash = Event(Kind.CRASH, 600.0, 400.0, loading=388.0)
    deploy = Event(Kind.DEPLOY, 1500.0, 400.0, loading=388.0)
    solo = Member("solo", "sglang", "solo", CODE, SGLANG_8B, 1.0, 2.5, (crash, deploy))

    played = month.operate([solo], 2100.0, month.rules())

    (page,) = played.pages
    assert page.alerts == ("LLMModelDown",)
    assert ("LLMEngineDown",) in [ticket.alerts for ticket in played.tickets]  # it reads what sources say of themselves
    assert crash.begin + 120.0 <= page.span.begin <= crash.begin + 190.0
    assert played.right(page)
    assert played.weeks[0].slow > 0
    assert "| incidents of 5 min or more, paged | all | 1 of 1 | yes |" in month.section(played)
