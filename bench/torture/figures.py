"""The table that a run writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Figure(NamedTuple):
    """One row: what was done, how often or to how many, what was seen, and how many of it are faults."""

    what: str
    amount: str
    seen: str
    faults: int = 0


def table(figures: Sequence[Figure]) -> str:
    """The rows as Markdown."""
    rows = [f"| {each.what} | {each.amount} | {each.seen} | {each.faults} |" for each in figures]
    return "\n".join(["| what | how much | what was seen | faults |", "|---|---|---|---|", *rows])
