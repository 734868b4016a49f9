"""The house: rooms import downwards only, no file imports in a circle, and no file grows beyond what one can read."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).parents[1] / "exporter" / "llm_headroom"
ROOMS: Final = (
    ("commands",),
    ("proxy", "otlp", "notify", "web", "simulate", "bundle"),
    ("view",),
    ("render",),
    ("poll",),
    ("scrape",),
    ("derive",),
    ("gpu",),
    ("host",),
    ("engines",),
    ("config",),
    ("exposition", "net"),
    ("thresholds",),
    ("clock",),
    ("schema",),
    ("model",),
    ("frozen",),
)
"""From the top floor to the ground: a room imports from lower floors, never from a neighbour or from above."""
FLOOR: Final = {room: -number for number, floor in enumerate(ROOMS) for room in floor}
DOORS: Final = frozenset({"__init__", "__main__"})
"""The package's own two files: its version, which anyone may know, and its start."""
LONGEST: Final = 500
MAY_BE_LONG: Final = frozenset({"schema"})
"""Every metric in one file: the room that is easiest to find."""


def _modules() -> dict[str, Path]:
    """Each module's dotted name below the package → its file."""
    return {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _imports(path: Path, modules: dict[str, Path]) -> set[str]:
    """Modules of the package that a file names in an import: at the top, in a function, or for types alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == PACKAGE.name:
            inside = (node.module or "").partition(".")[2]
            for alias in node.names:
                name = f"{inside}.{alias.name}".lstrip(".")
                found.add(name if name in modules else inside or "__init__")
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith(f"{PACKAGE.name}.")}
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: a relative import hides its room"
    return found


def _room(module: str) -> str:
    return module.partition(".")[0]


def test_every_room_has_its_floor() -> None:
    rooms = {_room(name) for name in _modules()} - DOORS
    assert rooms == set(FLOOR)


def test_the_picture_for_contributors_shows_every_room_on_its_floor() -> None:
    text = (PACKAGE.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    drawn = re.findall(r"(?:^ |│ )([a-z]+) {2,}\S", text.split("```")[3], re.MULTILINE)

    assert len(drawn) == len(FLOOR)
    assert [FLOOR[room] for room in drawn] == sorted(FLOOR.values(), reverse=True)


def test_imports_run_downwards() -> None:
    modules = _modules()
    wrong = [
        f"{name} imports {other}"
        for name, path in modules.items()
        for other in sorted(_imports(path, modules))
        if _room(name) not in DOORS and _room(other) not in DOORS | {_room(name)}
        if FLOOR[_room(other)] >= FLOOR[_room(name)]
    ]
    assert wrong == []


def test_no_circle() -> None:
    modules = _modules()
    graph = {name: _imports(path, modules) - DOORS for name, path in modules.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" → ".join(error.args[1])) from None


def test_a_file_can_be_read_at_one_sitting() -> None:
    lines = {name: path.read_text(encoding="utf-8").count("\n") for name, path in _modules().items()}
    assert {name: count for name, count in lines.items() if count > LONGEST and name not in MAY_BE_LONG} == {}
