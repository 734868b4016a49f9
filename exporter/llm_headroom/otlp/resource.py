"""Who it is that pushes: resource attributes.

Spec: https://opentelemetry.io/docs/specs/semconv/resource/ (service, host, k8s), version 1.41.0.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

from opentelemetry.sdk.resources import OTELResourceDetector, Resource

from llm_headroom import __version__
from llm_headroom.config import identity

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.41.0"


def resource(given: Mapping[str, str], port: str) -> Resource:
    """What is given wins over OpenTelemetry's variables, these over what is detected.

    The instance is the pod's name, or else the host's, and the port, since it must stay the same over restarts: it
    becomes Prometheus' `instance`.
    """
    found: dict[str, object] = {"service.name": "llm-headroom", "service.version": __version__}
    found["host.name"] = socket.gethostname()
    found |= identity.attributes(os.environ)
    found |= {**OTELResourceDetector().detect().attributes, **given}
    found.setdefault("service.instance.id", f"{identity.pod(os.environ) or found['host.name']}:{port}")
    return Resource.create(found, SCHEMA_URL)  # type: ignore[arg-type]  # texts, whatever the detector's type says
