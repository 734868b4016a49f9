"""Who it is that pushes: resource attributes.

Spec: https://opentelemetry.io/docs/specs/semconv/resource/ (service, host, k8s), version 1.41.0.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

from opentelemetry.sdk.resources import OTELResourceDetector, Resource

from llm_headroom import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.41.0"

_FROM_ENVIRONMENT: Final[Mapping[str, tuple[str, ...]]] = {
    "k8s.pod.name": ("K8S_POD_NAME", "POD_NAME", "OTEL_RESOURCE_ATTRIBUTES_POD_NAME"),
    "k8s.pod.uid": ("K8S_POD_UID", "POD_UID", "OTEL_RESOURCE_ATTRIBUTES_POD_UID"),
    "k8s.pod.ip": ("K8S_POD_IP", "POD_IP"),
    "k8s.namespace.name": ("K8S_NAMESPACE_NAME", "K8S_NAMESPACE", "POD_NAMESPACE"),
    "k8s.node.name": ("K8S_NODE_NAME", "NODE_NAME", "OTEL_RESOURCE_ATTRIBUTES_NODE_NAME"),
    "k8s.container.name": ("K8S_CONTAINER_NAME",),
    "k8s.cluster.name": ("K8S_CLUSTER_NAME",),
}
"""Attributes by the variables that a pod's template usually fills from the downward API, the first one set wins."""


def resource(given: Mapping[str, str], port: str) -> Resource:
    """What is given wins over OpenTelemetry's variables, these over what is detected.

    The instance is host name and port, since it must stay the same over restarts: it becomes Prometheus' `instance`.
    """
    found: dict[str, object] = {"service.name": "llm-headroom", "service.version": __version__}
    found["host.name"] = socket.gethostname()
    for attribute, variables in _FROM_ENVIRONMENT.items():
        value = next((os.environ[name] for name in variables if os.environ.get(name)), "")
        if value:
            found[attribute] = value
    found |= {**OTELResourceDetector().detect().attributes, **given}
    found.setdefault("service.instance.id", f"{found['host.name']}:{port}")
    return Resource.create(found, SCHEMA_URL)  # type: ignore[arg-type]  # texts, whatever the detector's type says
