"""The shipped rules, and what they and other queries read: promtool is given no more than a test needs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import yaml

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

_WORD: Final = re.compile(r"(?<![\w:.])[a-z_]+:llm_\w+:\w+|(?<![\w:])(?:llm_\w+|process_\w+|up)(?=\s*[{\[)]|\s|$)")


def document(path: Path) -> Any:  # noqa: ANN401 - YAML
    """What a YAML file says, read by libyaml: PyYAML's own reader takes ten times the CPU."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)


def metrics(expr: str) -> set[str]:
    """Names of the series that a query reads."""
    return set(_WORD.findall(re.sub(r'"[^"]*"', '""', expr)))


def needed(groups: Sequence[dict[str, Any]], tested: AbstractSet[str], asked: Sequence[str]) -> set[str]:
    """The recorded series that some alerts and queries read, and those that these are made of."""
    rules = [rule for group in groups for rule in group["rules"]]
    records = {rule["record"]: rule["expr"] for rule in rules if "record" in rule}
    found: set[str] = set()
    new = [*asked, *(rule["expr"] for rule in rules if rule.get("alert") in tested)]
    while new:
        names = {name for expr in new for name in metrics(expr)} & records.keys() - found
        found |= names
        new = [records[name] for name in names]
    return found
