"""Objects for Kubernetes: the rules as a PrometheusRule of the Prometheus operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_headroom.bundle.alerts import groups
from llm_headroom.bundle.text import as_yaml

if TYPE_CHECKING:
    from llm_headroom.bundle.thresholds import BundleSettings


def files(settings: BundleSettings) -> dict[str, str]:
    """Return the texts of the objects' files by relative path."""
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "llm-headroom", "labels": {"app.kubernetes.io/name": "llm-headroom"}},
        "spec": {"groups": groups(settings)},
    }
    return {"alerts/prometheusrule.yaml": as_yaml(rule)}
