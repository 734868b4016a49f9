"""The figures as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headroom import score
from headroom.ladder import OURS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headroom.ladder import Row


def text(rows: Sequence[Row]) -> str:
    """A table of estimators for each kind of scenarios, and one of ours by load and by scenario."""
    parts = []
    for kind in ("held out", "tuning", "steady"):
        own = [row for row in rows if row.kind == kind]
        if own:
            parts += [f"## {kind}, {len({row.scenario for row in own})} scenarios\n", _estimators(own), _levels(own)]
            parts += [_scenarios(own)]
    return "\n".join(parts)


def _estimators(rows: Sequence[Row]) -> str:
    lines = [
        "| estimator | median of the error | p90 | bias | worst bias of a load | AUC | beyond 1 at 60 % | without |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    names = sorted({row.name for row in rows}, key=lambda name: score.middle([r for r in rows if r.name == name]))
    most = max(sum(row.name == name for row in rows) for name in names)
    for name in names:
        own = [row for row in rows if row.name == name]
        low, high = score.interval(own, score.middle)
        lines.append(
            f"| {name} | {score.middle(own):.2f} [{low:.2f}, {high:.2f}] | {score.tail(own):.2f} "
            f"| {score.bias(own):+.2f} | {score.worst_bias(own):+.2f} | {score.ranking(own):.3f} "
            f"| {score.cried(own):.1%} | {1.0 - len(own) / most:.0%} |"
        )
    return "\n".join(lines) + "\n"


def _levels(rows: Sequence[Row]) -> str:
    lines = ["| load | median said load | p10 | p90 | bias |", "| --- | --- | --- | --- | --- |"]
    own = [row for row in rows if row.name == OURS]
    for level in sorted({row.level for row in own}):
        at = [row for row in own if row.level == level]
        loads = [1.0 / row.said for row in at]
        lines.append(
            f"| {level:.0%} | {score.quantile(loads, 0.5):.2f} | {score.quantile(loads, 0.1):.2f} "
            f"| {score.quantile(loads, 0.9):.2f} | {score.bias(at):+.2f} |"
        )
    return "\n".join(lines) + "\n"


def _scenarios(rows: Sequence[Row]) -> str:
    lines = ["| scenario | median of the error | p90 | bias |", "| --- | --- | --- | --- |"]
    own = [row for row in rows if row.name == OURS]
    for name in sorted({row.scenario for row in own}):
        at = [row for row in own if row.scenario == name]
        lines.append(f"| {name} | {score.middle(at):.2f} | {score.tail(at):.2f} | {score.bias(at):+.2f} |")
    return "\n".join(lines) + "\n"
