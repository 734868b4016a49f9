"""What the documentation shows is true: its commands parse, its configurations load, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Final

import click
import pytest

from llm_headroom.commands.cli import main
from llm_headroom.commands.options import loaded
from llm_headroom.config.reader import shape
from llm_headroom.config.settings import Config
from pages import FENCE, PAGES, ROOT, SHOWN, Shown, blocks, name

if TYPE_CHECKING:
    from pathlib import Path

OWN: Final = re.compile(r"^(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*/)?llm-headroom (?=[a-z-]+( |$))")
MAKE: Final = re.compile(r"^make (\w+)(?: ARGS=(.*))?$")
STAND_INS: Final = {"FILE": "some.yml", "DIR": "some", "NAME": "some", "URL": "http://127.0.0.1:8000"}
"""Words in capitals that stand for a value of the reader's."""


COMMANDS: Final = [Shown(page, OWN.sub("", line), prose) for page, line, prose in SHOWN if OWN.match(line)]
MADE: Final = [(page, *found.groups()) for page, line, _ in SHOWN if (found := MAKE.match(line))]


def _parse(line: str) -> None:
    """Parse a command line without the program's name, and run nothing; raises click.UsageError."""
    command: click.Command = main
    context = click.Context(main, info_name="llm-headroom")
    words = [STAND_INS.get(word, word) for word in shlex.split(line.partition(" > ")[0])]
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        if isinstance(found, click.Group) and not words:
            return
        command, context = found, click.Context(found, info_name=name, parent=context)
    command.make_context(command.name, words)


def test_commands_are_found() -> None:
    """The test below must not pass because nothing matches any more."""
    assert {line.split()[0] for _, line, _ in COMMANDS} >= {"run", "check", "config", "top", "proxy", "bundle", "demo"}
    assert {target for _, target, _ in MADE} >= {"demo", "test", "bench", "docs"}


@pytest.mark.parametrize(("page", "line", "prose"), COMMANDS)
def test_every_command_line_parses(page: str, line: str, prose: bool) -> None:  # noqa: FBT001 - a field of Shown
    try:
        _parse(line)
    except click.UsageError as error:
        if not (prose and isinstance(error, click.MissingParameter)):
            pytest.fail(f"{page}: llm-headroom {line}: {error.format_message()}")


@pytest.mark.parametrize(("page", "target", "arguments"), MADE)
def test_every_make_target_exists_and_passes_its_arguments(page: str, target: str, arguments: str | None) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), page
    if arguments and target in main.commands:
        [quoted] = shlex.split(arguments)
        _parse(f"{target} {quoted}")


def _configurations() -> list[tuple[str, str]]:
    """Blocks of YAML that are configurations of llm-headroom, by the names of their keys."""
    known = set(shape(Config).keys)
    return [
        (name(page), text)
        for page in PAGES
        for language, text in blocks(page)
        if language == "yaml" and (keys := set(re.findall(r"^([^\s#][^:\n]*)", text, re.MULTILINE))) and keys <= known
    ]


def test_configurations_are_found() -> None:
    assert {page for page, _ in _configurations()} >= {"docs/configuration.md", "docs/ollama.md"}


@pytest.mark.parametrize(("page", "text"), _configurations())
def test_every_configuration_loads(page: str, text: str, tmp_path: Path) -> None:
    for file in re.findall(r"(?:file|config): ([\w./-]+)", text):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("secret\n", encoding="ascii")
    path = tmp_path / "headroom.yml"
    path.write_text(text, encoding="utf-8")

    assert loaded(path).targets is not None, page


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    plain = (re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in titles)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = target.partition("#")
        if ":" in path:
            continue
        there = page if not path else (page.parent / path).resolve()
        if not there.exists() or (anchor and anchor not in _anchors(there)):
            broken.append(target)
    assert broken == []


def test_the_readme_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in sorted((ROOT / "docs").glob("*.md")) if f"(docs/{page.name})" not in readme] == []
