"""Tables of `top`: which columns a terminal has room for, the most important first, and how wide they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

PADDING: Final = 2
"""Columns of the terminal between two columns of a table."""


class Column(NamedTuple):
    """A column: its name, how important it is (0 is the most), and how wide it is at least.

    What may be `cut` is as wide as it would like to be where there is room. Numbers are never cut, and stand right.
    """

    name: str
    rank: int
    width: int
    number: bool = True
    cut: bool = False


def layout(columns: Sequence[Column], rows: Sequence[Sequence[Text]], width: int) -> dict[int, int]:
    """The indexes of the columns that there is room for, with their widths.

    The most important ones come first, and what is left over goes to what may be cut. One that is empty has no room.
    """
    widths = [[cell_len(row[index].plain) for row in rows] for index in range(len(columns))]
    natural = [max(cell_len(column.name), *each, 0) for column, each in zip(columns, widths, strict=True)]
    found: dict[int, int] = {}
    left = width
    filled = [index for index, each in enumerate(widths) if any(each)]
    order = sorted(filled, key=lambda index: columns[index].rank)
    for index in order:
        column, wanted = columns[index], natural[index]
        least = min(wanted, column.width) if column.cut else max(wanted, column.width)
        if least + PADDING > left:
            break
        found[index] = least
        left -= least + PADDING
    for index in order:
        if index in found and columns[index].cut:
            more = min(natural[index] - found[index], left)
            found[index] += more
            left -= more
    return found


def whole(columns: Sequence[Column], rows: Sequence[Sequence[Text]], shown: dict[int, int], name: str) -> bool:
    """Whether a column is shown and nothing in it is cut off."""
    index = next(number for number, column in enumerate(columns) if column.name == name)
    return all(cell_len(row[index].plain) <= shown.get(index, 0) for row in rows)


def table(columns: Sequence[Column], rows: Sequence[Sequence[Text]], shown: dict[int, int]) -> Table:
    """The table, one line for each row."""
    made = Table(box=None, padding=(0, 1), header_style="dim")
    for index in sorted(shown):
        column = columns[index]
        made.add_column(column.name, justify="right" if column.number else "left", no_wrap=True, width=shown[index])
    for row in rows:
        made.add_row(*(_fitting(row[index], shown[index]) for index in sorted(shown)))
    return made


def _fitting(cell: Text, width: int) -> Text:
    """A name that is too long, such as `organisation/model`, without what stands before its last `/`."""
    if cell_len(cell.plain) <= width or "/" not in cell.plain:
        return cell
    return Text(cell.plain.rpartition("/")[2], cell.style)
