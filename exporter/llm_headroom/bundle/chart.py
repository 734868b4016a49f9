"""The rules as the Helm chart has them: `@NAME@` stands for a threshold or a setting that its values give.

`@NAME:said@` is the threshold in words, which the chart makes by its unit as `rule.words` does.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Final

from llm_headroom.bundle.alerts import groups
from llm_headroom.bundle.rule import Placeholder
from llm_headroom.bundle.settings import BundleSettings
from llm_headroom.bundle.text import as_yaml
from llm_headroom.thresholds import DEFAULT, Thresholds

RULES: Final = "deploy/helm/llm-headroom/files/rules.yml"


def rules() -> str:
    """The groups with placeholders, and the thresholds' defaults."""
    settings = BundleSettings(
        thresholds=Thresholds(**{field.name: _placeholder(field.name) for field in fields(Thresholds)}),
        exporter_job="@job@",
        runbook_base_url="@runbooks@",
        dashboard_base_url="@grafana@",
    )
    units = {field.name: field.metadata["unit"] for field in fields(Thresholds)}
    return as_yaml({"thresholds": asdict(DEFAULT), "units": units, "groups": groups(settings)})


def _placeholder(name: str) -> Placeholder:
    made = Placeholder()
    made.name = name
    return made
