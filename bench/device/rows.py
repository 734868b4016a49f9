"""Rows of the result: a truth and what the exporter says, side by side."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

MIB = 2**20
GIB = 2**30


class Verdict(StrEnum):
    """How a row ended."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "FAIL"
    NOT_RUN = "not run"
    FIGURE = "figure"
    """A measurement without a right or wrong."""


class Row(NamedTuple):
    """One line of the table. `truth` and `ours` are in `unit`; `note` says why where there is nothing to compare."""

    part: str
    what: str
    verdict: Verdict
    truth: float | str | None = None
    ours: float | str | None = None
    unit: str = ""
    note: str = ""


def compared(  # noqa: PLR0913 - the columns of a row
    part: str, what: str, truth: float, ours: float | None, unit: str = "", *, within: float = 0.0, note: str = ""
) -> Row:
    """A row that passes if the exporter's value is there and differs from the truth by no more than `within`."""
    right = ours is not None and abs(ours - truth) <= within
    margin = f"within {shown(within, unit)}" if within else ""
    return Row(part, what, _verdict(right), truth, ours, unit, "; ".join(filter(None, (margin, note))))


def held(  # noqa: PLR0913 - the columns of a row
    part: str, what: str, truth: str, ours: str, *, right: bool, note: str = ""
) -> Row:
    """A row whose truth is a condition."""
    return Row(part, what, _verdict(right), truth, ours, note=note)


def not_run(part: str, what: str, why: str) -> Row:
    """A row for what could not be looked at: never a pass."""
    return Row(part, what, Verdict.NOT_RUN, note=why)


def figure(part: str, what: str, ours: float, unit: str, note: str = "") -> Row:
    """A measurement."""
    return Row(part, what, Verdict.FIGURE, None, ours, unit, note)


def shown(value: float | str | None, unit: str = "") -> str:
    """A value for people: bytes in MiB or GiB, other numbers with four significant digits."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if unit == "B":
        return f"{value / GIB:.3f} GiB" if abs(value) >= GIB else f"{value / MIB:.1f} MiB"
    digits = f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"
    return f"{digits} {unit}".strip()


def table(rows: Iterable[Row]) -> str:
    """All rows as a table of Markdown."""
    lines = ["| part | what | truth | exporter | verdict | note |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row.part} | {row.what} | {shown(row.truth, row.unit)} | {shown(row.ours, row.unit)} | {row.verdict} "
        f"| {row.note} |"
        for row in rows
    ]
    return "\n".join(lines)


def _verdict(right: bool) -> Verdict:  # noqa: FBT001 - the question itself
    return Verdict.PASS if right else Verdict.FAIL
