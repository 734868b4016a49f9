"""No slip of a digit: every number that a module names is of the order that is written down for it.

`fixtures/orders.txt` has them. Nothing writes it: a number may be tuned by a factor of four, beyond that both change,
and of new ones a few may wait for their line.
"""

from __future__ import annotations

import ast
import importlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[1] / "exporter"
WRITTEN: Final = Path(__file__).parent / "fixtures" / "orders.txt"
LEFT_OUT: Final = {"simulate", "commands"}
"""Of what nobody runs against an engine."""


def named() -> Iterator[tuple[str, str]]:
    """Modules and their annotated names."""
    for path in sorted((ROOT / "llm_headroom").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[1] in LEFT_OUT:
            continue
        for statement in ast.parse(path.read_bytes()).body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
                yield ".".join(parts).removesuffix(".__init__"), statement.target.id


def numbers() -> dict[str, float]:
    """Every number that a module names, by module and name."""
    found = {}
    for module, name in named():
        value = getattr(importlib.import_module(module), name, None)
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{module} {name}"] = float(value)
    return found


def test_every_named_number_is_of_its_order() -> None:
    lines = [line.rpartition(" ") for line in WRITTEN.read_text(encoding="utf-8").splitlines()]
    written = {name: float(value) for name, _, value in lines}
    found = numbers()

    assert len(found.keys() - written.keys()) < 0.1 * len(found)
    strange = {
        name: (value, order)
        for name, order in written.items()
        if (value := found.get(name, order)) != order and not 0.25 < value / (order or math.inf) < 4.0
    }
    assert strange == {}
