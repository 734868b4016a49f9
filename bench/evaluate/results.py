"""What came of an evaluation: the runs, and when which rule fired in them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from evaluate.incidents import any_trouble
from evaluate.scoring import Score, score, total

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from evaluate.incidents import Span
    from evaluate.replay import Run
    from evaluate.rules import Rule

    Incidents = Callable[[Run], list[Span]]


CALM_GROUP: Final = "load headroom"
"""The group of the peers' rules that read what follows from estimates of the load headroom."""


@dataclass(frozen=True)
class Results:
    """Runs, rules in the order of the tables, and for each rule's name and run's target when it fired."""

    runs: Sequence[Run]
    rules: Sequence[Rule]
    fired: Mapping[tuple[str, str], list[Span]]

    @cached_property
    def held_out(self) -> list[Run]:
        """The runs on which nothing was fitted."""
        return [run for run in self.runs if not run.tuning and not run.calm]

    @cached_property
    def calm(self) -> list[Run]:
        """Whole days at low load."""
        return [run for run in self.runs if run.calm]

    @cached_property
    def busy_rules(self) -> list[Rule]:
        """The rules that are judged near the limit: all but those on estimates, which are made on calm days alone."""
        return [rule for rule in self.rules if rule.group != CALM_GROUP]

    @cached_property
    def quiet(self) -> list[Run]:
        """Those of them in which no request suffered."""
        return [run for run in self.held_out if not any_trouble(run)]

    def scores(self, rule: Rule, runs: Sequence[Run], incidents: Incidents = any_trouble) -> list[Score]:
        """How a rule did in each run."""
        return [score(incidents(run), self.fired.get((rule.name, run.target), []), run.span) for run in runs]

    def score(self, rule: Rule, runs: Sequence[Run], incidents: Incidents = any_trouble) -> Score:
        """How a rule did in all of them."""
        return total(self.scores(rule, runs, incidents))
