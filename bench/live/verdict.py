"""Truth beside exporter beside proxy, and whether they agree."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_ABSENT: Final = "–"


class Verdict(StrEnum):
    """Whether what was said is what was."""

    EXACT = "exact"
    EXPLAINED = "explained"
    WRONG = "**wrong**"


@dataclass(frozen=True)
class Expected:
    """What a side says in place of the truth, and why that is no fault. None: it says nothing.

    `asked` is False where the signal is none of that side's: its silence then counts for nothing.
    """

    value: float | None
    why: str
    asked: bool = True


@dataclass(frozen=True)
class Row:
    """One signal.

    `exporter` and `proxy` are what they said; None is nothing. What can be counted has to be the same number. Times and
    what moves while it is read may differ by `within`, which is explained and not exact. Where a side is `expected` to
    say something else, it has to say just that.
    """

    signal: str
    truth: float
    exporter: float | None
    proxy: float | None
    within: float = 0.0
    expected_exporter: Expected | None = None
    expected_proxy: Expected | None = None
    note: str = ""
    verdict: Verdict = field(init=False)

    def __post_init__(self) -> None:
        """Judge."""
        sides = {
            self._judge(self.exporter, self.expected_exporter),
            self._judge(self.proxy, self.expected_proxy),
        }
        worst = max(sides, key=list(Verdict).index)
        object.__setattr__(self, "verdict", worst)

    def _judge(self, said: float | None, expected: Expected | None) -> Verdict:
        if said is not None and math.isclose(said, self.truth, rel_tol=1e-9):
            return Verdict.EXACT
        if said is not None and abs(said - self.truth) <= self.within:
            return Verdict.EXPLAINED
        if expected is not None and said == expected.value:
            return Verdict.EXPLAINED if expected.asked else Verdict.EXACT
        return Verdict.WRONG

    def cells(self) -> str:
        """A row of the table."""
        why = [each.why for each in (self.expected_exporter, self.expected_proxy) if each is not None]
        within = [f"within {self.within:.3g}"] if self.within else []
        remark = "; ".join(dict.fromkeys((*within, *([self.note] if self.note else []), *why)))
        numbers = " | ".join(map(_number, (self.truth, self.exporter, self.proxy)))
        return f"| {self.signal} | {numbers} | {self.verdict} | {remark} |"


def _number(value: float | None) -> str:
    if value is None:
        return _ABSENT
    return f"{value:.0f}" if value == round(value) else f"{value:.4f}"


def counted(text: str) -> dict[Verdict, int]:
    """How many rows of tables have each verdict."""
    return {verdict: text.count(f" | {verdict} | ") for verdict in Verdict}


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The lines of a table."""
    yield "| signal | truth | exporter | proxy | verdict | remark |"
    yield "|---|---|---|---|---|---|"
    yield from (row.cells() for row in rows)
