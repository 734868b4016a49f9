"""What the dashboards ask a Prometheus."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

Json: TypeAlias = dict[str, Any]


def drawn(document: Json) -> Iterator[Json]:
    """The panels of a dashboard, those of collapsed rows included, without the rows."""
    for panel in document["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def expressions(document: Json) -> Iterator[tuple[str, str]]:
    """Each panel's title with each of its expressions."""
    for panel in drawn(document):
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def asked_for(document: Json) -> Iterator[str]:
    """Every expression of a dashboard: panels', annotations', and the selectors of variables."""
    yield from (expr for _, expr in expressions(document))
    yield from (one["expr"] for one in document["annotations"]["list"] if "expr" in one)
    yield from (values_of(one)[0] for one in document["templating"]["list"] if one["type"] == "query")


def values_of(variable: Json) -> tuple[str, str]:
    """The selector and the label of a variable."""
    match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
    assert match, variable
    return match[1], match[2]


def filled_in(expr: str, baseline: str = "vllm") -> str:
    """An expression with all selected, as Grafana would send it."""
    expr = expr.replace("$__range", "300s").replace("$baseline", baseline)
    expr = re.sub(r"\$(job|cluster|namespace|instance|engine|model|target|gpu)\b", ".*", expr)
    assert "$" not in expr, expr
    return expr
