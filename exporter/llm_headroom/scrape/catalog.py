"""The engines of a run: those of the package, with the rules and engines that the configuration adds."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from llm_headroom import schema
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.engines.openai_api import RUNTIME
from llm_headroom.engines.rules import Combine, Document, Engine, Rule, always
from llm_headroom.model import Subject

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_headroom.config.settings import Config, EngineSettings, RuleSettings


def engines(config: Config) -> Mapping[str, Engine]:
    """Every engine by name. Rules from the configuration go before those of the package."""
    found = dict(BUILT_IN)
    for settings in config.engines.values():
        found[settings.name] = _engine(settings)
    for name, rules in config.mappings.items():
        engine = found[name]
        found[name] = replace(engine, rules=(*(_rule(rule) for rule in rules), *engine.rules))
    return MappingProxyType(found)


def _rule(settings: RuleSettings) -> Rule:
    return Rule(
        metric=schema.BY_NAME[settings.metric],
        names=settings.names,
        where=settings.where,
        labels=settings.labels,
        times=settings.times,
        scale=settings.scale,
        combine=Combine(settings.combine),
        sums=True,
    )


def _engine(settings: EngineSettings) -> Engine:
    rules = tuple(_rule(rule) for rule in settings.rules)
    routes = any(rule.metric.subject is Subject.ROUTER for rule in rules)
    return Engine(
        name=settings.name,
        title=settings.name,
        port=settings.port or 0,
        prefixes=settings.prefixes,
        documents=always(Document(key="metrics", path=settings.path, text=True)),
        rules=rules,
        subject=Subject.ROUTER if routes else Subject.ENGINE,
        ignored={**RUNTIME, **dict.fromkeys(settings.ignored, "by the configuration")},
        model_label=settings.model_label or "",
        replica_label=settings.replica_label or "",
        silent=f"no metrics that begin with {' or '.join(settings.prefixes)}" if settings.prefixes else "",
    )
