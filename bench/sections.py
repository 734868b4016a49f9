"""Sections of documents that several programs write: each replaces its own and leaves the others."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SECTION: Final = re.compile(r"^## .*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def titled(document: str, begin: str) -> Iterator[str]:
    """The sections whose title begins so, each from its title to the next one's."""
    return (each for each in _SECTION.findall(document) if each.startswith(begin))


def replaced(document: str, part: str, before: str) -> str:
    """A document with the section of the part's own title replaced.

    Where there is none yet, the part goes before the section titled `before`. Raises ValueError without that one.
    """
    title = part.split("\n", 1)[0]
    own = next((each for each in titled(document, title) if each.split("\n", 1)[0] == title), None)
    if own is not None:
        return document.replace(own, part.rstrip() + "\n\n", 1).rstrip() + "\n"
    begin = document.index(f"\n{before}") + 1
    return document[:begin] + part.rstrip() + "\n\n" + document[begin:]


def put(part: str, page: Path, before: str) -> None:
    """Write the part into a page, as `replaced` does."""
    page.write_text(replaced(page.read_text(), part, before))
