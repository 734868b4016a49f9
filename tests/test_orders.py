"""No slip of a digit: every number that a module names is of the order that is written down for it.

`fixtures/orders.txt` has them: numbers, those within tables, and the defaults of values' fields. Nothing
writes it: a number may be tuned by a factor of four, beyond that both change, and of new ones a few may wait for their
line. Small whole numbers are what is written: one more of them is something else.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[1] / "exporter"
WRITTEN: Final = Path(__file__).parent / "fixtures" / "orders.txt"
SMALL: Final = 10


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Every module with its source."""
    for path in sorted((ROOT / "llm_headroom").rglob("*.py")):
        if path.stem != "__main__":
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), ast.parse(path.read_bytes())


def within(name: str, value: object) -> Iterator[tuple[str, float]]:
    """The numbers of a value, and how they are called."""
    if isinstance(value, int | float):
        if not isinstance(value, bool):
            yield name, float(value)
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from within(f"{name}[{getattr(key, 'name', key)}]", each)


def numbers() -> dict[str, float]:
    """Every number that a module names, by module and name."""
    found: dict[str, float] = {}
    for module, source in modules():
        made = vars(importlib.import_module(module))
        for statement in source.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
                found.update(within(f"{module} {statement.target.id}", made.get(statement.target.id)))
            elif isinstance(statement, ast.ClassDef) and dataclasses.is_dataclass(made[statement.name]):
                for field in dataclasses.fields(made[statement.name]):
                    found.update(within(f"{module} {statement.name}.{field.name}", field.default))
    return found


def test_every_named_number_is_of_its_order() -> None:
    lines = [line.rpartition(" ") for line in WRITTEN.read_text(encoding="utf-8").splitlines()]
    written = {name: float(value) for name, _, value in lines}
    found = numbers()

    assert len(found.keys() - written.keys()) < 0.1 * len(found)
    strange = {
        name: (value, order)
        for name, order in written.items()
        if (value := found.get(name, order)) != order
        and (not order or (abs(order) < SMALL and order.is_integer()) or not 0.25 < value / order < 4.0)
    }
    assert strange == {}
