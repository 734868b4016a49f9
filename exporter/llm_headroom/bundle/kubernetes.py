"""Objects of the Prometheus operator: the rules, and what scrapes sidecars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llm_headroom.bundle.alerts import groups
from llm_headroom.bundle.sidecars import PORT
from llm_headroom.bundle.text import as_yaml

if TYPE_CHECKING:
    from llm_headroom.bundle.settings import BundleSettings


_LABELS: Final = {"app.kubernetes.io/name": "llm-headroom"}


def files(settings: BundleSettings) -> dict[str, str]:
    """The texts of the objects' files by relative path."""
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "llm-headroom", "labels": dict(_LABELS)},
        "spec": {"groups": groups(settings)},
    }
    return {
        "alerts/prometheusrule.yaml": as_yaml(rule),
        "deploy/kustomize/monitor/podmonitor.yaml": as_yaml(_sidecars(settings)),
    }


def _sidecars(settings: BundleSettings) -> dict[str, Any]:
    """The monitor of all pods with a sidecar."""
    endpoint = {
        "port": PORT,
        "path": "/metrics",
        "scheme": "http",
        "interval": "15s",
        "scrapeTimeout": "10s",
        "relabelings": [
            {"targetLabel": "job", "replacement": settings.exporter_job},
            {"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"},
        ],
    }
    # The chart's deployment and daemonset have a port of this name as well, and a monitor of their own.
    others = {"key": "app.kubernetes.io/name", "operator": "NotIn", "values": ["llm-headroom"]}
    selector = {"matchExpressions": [others]}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": {"name": "llm-headroom-sidecars", "labels": dict(_LABELS)},
        "spec": {"namespaceSelector": {"any": True}, "selector": selector, "podMetricsEndpoints": [endpoint]},
    }
