"""The pages of the documentation, and the command lines that they show."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = tuple(
    sorted(chain.from_iterable(ROOT.glob(each) for each in ("*.md", "docs/*.md", "bench/*.md", "alerts/runbooks/*.md")))
)
FENCE: Final = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
SPAN: Final = re.compile(r"`(llm-headroom [^`]+)`")


class Shown(NamedTuple):
    """A command line of a page; one in running text (`prose`) may leave mandatory options out."""

    page: str
    line: str
    prose: bool = False


def name(page: Path) -> str:
    """A page's path from the root."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block of code."""
    return [
        (language, re.sub(f"^{indent}", "", text, flags=re.MULTILINE))
        for indent, language, text in FENCE.findall(page.read_text(encoding="utf-8"))
    ]


def _command_lines() -> list[Shown]:
    found = []
    for page in PAGES:
        for language, text in blocks(page):
            if language in {"", "sh", "bash", "shell", "console"}:
                whole = re.sub(r"\\\n *", "", text)
                found += [Shown(name(page), re.sub(r" +#.*", "", line)) for line in whole.splitlines()]
        prose = FENCE.sub("", page.read_text(encoding="utf-8"))
        found += [Shown(name(page), line, prose=True) for line in SPAN.findall(prose)]
    return found


SHOWN: Final = _command_lines()
