"""No slip of a digit: every number that a module names is of the order that is written down for it.

`fixtures/orders.txt` has them: numbers, those within tables, and the defaults of values' fields. Nothing
writes it: a number may be tuned by a factor of four, beyond that both change, and of new ones a few may wait for their
line. Small whole numbers are what is written: one more of them is something else.

Nor is a field of a value anything that nobody gives, but for those that are `GIVEN`.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[1] / "exporter"
WRITTEN: Final = Path(__file__).parent / "fixtures" / "orders.txt"
SMALL: Final = 10
GIVEN: Final[Mapping[str, str | bool | int]] = {
    "bundle.dashboards.dashboard Dashboard.since": "now-1h",
    "bundle.dashboards.dashboard Dashboard.source": "prometheus",
    "bundle.dashboards.dashboard Link.whole": True,
    "bundle.dashboards.dashboard Variable.several": True,
    "bundle.dashboards.panel Panel.no_value": "No data",
    "bundle.dashboards.panel Panel.unit": "short",
    "bundle.dashboards.plan Plan.since": "now-1h",
    "bundle.dashboards.scope Scope.job": "llm-headroom",
    "bundle.rule Alert.kept": "3m",
    "bundle.rule Alert.wait": "0s",
    "bundle.settings BundleSettings.datasource": "prometheus",
    "bundle.settings BundleSettings.datasource_type": "prometheus",
    "bundle.settings BundleSettings.exporter_job": "llm-headroom",
    "commands.simulate Settings.engine": "vllm",
    "commands.simulate Settings.gpu": "a100-80gb",
    "commands.simulate Settings.model": "llama-3-8b",
    "commands.top_table Column.number": True,
    "config.kinds Form.quoted": True,
    "config.people Receiver.kind": "webhook",
    "config.people Receiver.least": "critical",
    "config.settings Config.detail": "full",
    "config.settings Config.host": True,
    "config.settings Cost.currency": "USD",
    "config.settings EngineSettings.path": "/metrics",
    "config.settings Log.format": "logfmt",
    "config.settings Log.level": "info",
    "config.settings OtlpSettings.enabled": True,
    "config.settings RuleSettings.combine": "sum",
    "config.settings Target.purpose": "interactive",
    "engines.built_in.llamacpp _Status.value": "loaded",
    "engines.rules Engine.model_label": "model_name",
    "engines.rules Engine.subject": "engine",
    "engines.rules Rule.combine": "sum",
    "gpu.nvml Value.per": 1,
    "gpu.nvml Value.times": 1,
    "model Metric.across": "none",
    "net.http_messages Response.content_type": "text/plain; charset=utf-8",
    "simulate.engine_state EngineConfig.prefix_caching": True,
    "simulate.engine_state EngineConfig.scheduler": "vllm",
    "simulate.misbehave Misbehaviour.refuse": True,
    "web.config TlsServer.client_auth": "NoClientCert",
    "web.config TlsServer.max_version": "TLS13",
    "web.config TlsServer.min_version": "TLS12",
    "web.config TlsServer.prefer_server_ciphers": True,
}
"""Fields that are something where nobody gives them: module, class, name → what. Numbers of dataclasses are above."""


def modules() -> Iterator[tuple[str, Path]]:
    """Every module and its file."""
    for path in sorted((ROOT / "llm_headroom").rglob("*.py")):
        if path.stem != "__main__":
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


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
    for module, path in modules():
        made = vars(importlib.import_module(module))
        for statement in ast.parse(path.read_bytes()).body:
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


def defaults(kind: Any) -> Iterator[tuple[str, object]]:  # noqa: ANN401 - a class of values
    """What a class's fields are where nobody gives them, without the numbers that have an order."""
    if dataclasses.is_dataclass(kind):
        given = ((field.name, field.default) for field in dataclasses.fields(kind))
        yield from (each for each in given if isinstance(each[1], str | bool))
    elif issubclass(kind, msgspec.Struct):
        yield from ((field.name, field.default) for field in msgspec.structs.fields(kind))
    else:
        yield from getattr(kind, "_field_defaults", {}).items()


def test_a_field_that_nobody_gives_is_nothing() -> None:
    given = {
        f"{module.removeprefix('llm_headroom.')} {name}.{field}": value
        for module, _ in modules()
        for name, kind in vars(importlib.import_module(module)).items()
        if isinstance(kind, type) and kind.__module__ == module
        for field, value in defaults(kind)
        if value and value == value and isinstance(value, str | bool | int | float)  # noqa: PLR0124 - no NaN
    }
    assert given == GIVEN
