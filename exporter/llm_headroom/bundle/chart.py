"""The rules as the Helm chart has them: `@NAME@` stands for a threshold or a setting that its values give."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Final

from llm_headroom.bundle.alerts import groups
from llm_headroom.bundle.settings import BundleSettings
from llm_headroom.bundle.text import as_yaml
from llm_headroom.thresholds import DEFAULT, Thresholds

RULES: Final = "deploy/helm/llm-headroom/files/rules.yml"


class _Placeholder(float):
    """A threshold that is written as its name, whatever the format."""

    name: str

    def __format__(self, _form: str, /) -> str:
        return f"@{self.name}@"


def rules() -> str:
    """Return the groups with placeholders, and the thresholds' defaults."""
    settings = BundleSettings(
        thresholds=Thresholds(**{field.name: _placeholder(field.name) for field in fields(Thresholds)}),
        exporter_job="@job@",
        runbook_base_url="@runbooks@",
        dashboard_base_url="@grafana@",
    )
    return as_yaml({"thresholds": asdict(DEFAULT), "groups": groups(settings)})


def _placeholder(name: str) -> _Placeholder:
    made = _Placeholder()
    made.name = name
    return made
