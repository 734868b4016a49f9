"""Where this exporter runs in a cluster, from the variables that a pod's template fills by the Downward API.

Every sidecar reaches its engine at 127.0.0.1. Named after the pod, its series are unique in a cluster whether they are
scraped, pushed or written to a remote store.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLES: Final[Mapping[str, tuple[str, ...]]] = {
    "k8s.pod.name": ("K8S_POD_NAME", "POD_NAME", "OTEL_RESOURCE_ATTRIBUTES_POD_NAME"),
    "k8s.pod.uid": ("K8S_POD_UID", "POD_UID", "OTEL_RESOURCE_ATTRIBUTES_POD_UID"),
    "k8s.pod.ip": ("K8S_POD_IP", "POD_IP"),
    "k8s.namespace.name": ("K8S_NAMESPACE_NAME", "K8S_NAMESPACE", "POD_NAMESPACE"),
    "k8s.node.name": ("K8S_NODE_NAME", "NODE_NAME", "OTEL_RESOURCE_ATTRIBUTES_NODE_NAME"),
    "k8s.container.name": ("K8S_CONTAINER_NAME",),
    "k8s.cluster.name": ("K8S_CLUSTER_NAME",),
}
"""Variables by OpenTelemetry's attribute (https://opentelemetry.io/docs/specs/semconv/resource/k8s/); the first one
that is set counts."""
_LOOPBACK: Final = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?=:\d)")


def attributes(environment: Mapping[str, str]) -> dict[str, str]:
    """What is known of the pod, by OpenTelemetry's attribute."""
    found = {
        attribute: next((environment[name] for name in variables if environment.get(name)), "")
        for attribute, variables in VARIABLES.items()
    }
    return {attribute: value for attribute, value in found.items() if value}


def pod(environment: Mapping[str, str]) -> str:
    """`POD.NAMESPACE`, which is unique in a cluster, as a namespace has no dot; `POD` without one, "" outside a pod."""
    known = attributes(environment)
    name, namespace = known.get("k8s.pod.name", ""), known.get("k8s.namespace.name", "")
    return f"{name}.{namespace}" if name and namespace else name


def placed(target: str, environment: Mapping[str, str]) -> str:
    """The name of a target; where it is the loopback address of a pod, as in `127.0.0.1:8000`, with the pod's name."""
    here = pod(environment)
    return _LOOPBACK.sub(lambda _: here, target, count=1) if here and _LOOPBACK.match(target) else target
