"""Words that people read: those of the field, never the private ones that grew in this code."""

from __future__ import annotations

import ast
import re
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import pytest

from llm_headroom.commands.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[1]
PACKAGE: Final = ROOT / "exporter" / "llm_headroom"
VISIBLE: Final = (
    *("*.md", "docs/*.md", "docs/*.yaml", "bench/*.md", "alerts/**/*.md", "alerts/*.yml", "alerts/*.yaml"),
    *("dashboards/*.json", "deploy/**/*.yaml", "deploy/**/*.tpl", "deploy/**/*.txt", "Makefile"),
    "exporter/llm_headroom/web/static/*",
)
PRIVATE: Final = {
    r"\btold\b(?! apart)": "exposed, reported",
    r"\btells?\b(?! .{0,40}\bapart)": "exposes, reports, says",
    r"\d to look at\b": "N warnings",
    r"\b(became|becomes|become) of\b": "how it was handled",
    r"\bwhose memory it is\b": "attribution",
    r"\bof everything\b": "of all",
    r"\bfor ever\b": "in a loop",
    r"\banew\b": "again",
    r"\b[Nn]o news\b|\b[Nn]ews of\b": "stale",
    r"(?<!Nothing )\bis held back\b|\bare held back\b": "throttled",
    r"\bas far as can be\b": "as far as known",
    r"\bis found out\b|\bare found out\b": "detected",
    r"\bhardly\b": "almost no, rarely",
    r"\bis none of\b": "must be one of",
    r"\bmust not stand in\b|\bmay stand in\b": "not allowed, is in",
    r"\bfor want of\b": "for lack of, because … is full",
    r"\bwhatever happens\b": "always",
    r"\bha(s|ve) come\b": "was received, there was",
    r"\b[Rr]oom for\b|\[room\]|\blittle room\b|\b[Ll]east room\b|\bany room\b": "headroom",
    r"\bpromised\b": "reserved, overcommitted",
    r"\bgiven up when\b": "reclaimed, freed",
    r"\band the like\b": "such as",
    r"\b(lies|lay) in\b": "is in",
    r"\b(is|are|was|were) taken in\b": "admitted",
}
"""What is not to be seen, and what to write instead."""


def _strings(path: Path) -> Iterator[tuple[int, str]]:
    """The texts of a module with more than one word: all but docstrings, which only programmers read."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in alone
            and " " in node.value
        ):
            yield node.lineno, node.value


def _help(command: click.Command, name: str = "llm-headroom") -> Iterator[tuple[str, str]]:
    """The help of a command and of those below it."""
    context = click.Context(command, info_name=name)
    yield name, command.get_help(context)
    if isinstance(command, click.Group):
        for sub in command.list_commands(context):
            found = command.get_command(context, sub)
            assert found is not None
            yield from _help(found, f"{name} {sub}")


@pytest.fixture(name="seen", scope="module")
def _seen() -> tuple[tuple[str, str], ...]:
    """Everything that a person reads: where it is, and the text, line breaks as blanks."""
    return tuple(visible())


def visible() -> Iterator[tuple[str, str]]:
    """The same, one after the other."""
    for path in sorted({*chain.from_iterable(ROOT.glob(pattern) for pattern in VISIBLE)}):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            for place, part in enumerate(re.split(r"\n\s*\n", text)):
                yield f"{path.relative_to(ROOT)}, paragraph {place + 1}", re.sub(r"\s+", " ", part)
    for path in sorted(PACKAGE.rglob("*.py")):
        for line, text in _strings(path):
            yield f"{path.relative_to(ROOT)}:{line}", re.sub(r"\s+", " ", text)
    yield from _help(main)


def test_what_people_read_is_found(seen: tuple[tuple[str, str], ...]) -> None:
    """The test below must not pass because nothing is looked at any more."""
    places = " ".join(place for place, _ in seen)
    for part in ("README.md", "docs/signals.md", "alerts/runbooks/", "dashboards/", "schema.py", "headroom check"):
        assert part in places, part


@pytest.mark.parametrize("private", PRIVATE)
def test_no_private_word_is_seen(private: str, seen: tuple[tuple[str, str], ...]) -> None:
    pattern = re.compile(private)
    found = [
        f"{place}: …{text[max(0, at.start() - 50) : at.end() + 30]}…"
        for place, text in seen
        for at in pattern.finditer(text)
    ]

    assert not found, f"write instead: {PRIVATE[private]}\n" + "\n".join(found)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_every_page_opens_with_its_readers_and_what_they_will_have(page: Path) -> None:
    _, opening, *_ = page.read_text(encoding="utf-8").split("\n\n")

    assert opening.startswith("For "), "whom the page is for"
    assert "At the end" in opening, "what they will have done"
