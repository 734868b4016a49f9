"""Which of the Pod Security Standards a pod meets (https://kubernetes.io/docs/concepts/security/pod-security-standards/).

The controls that fields of ours touch; AppArmor, SELinux, sysctls, proc mounts and Windows are not used here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

BASELINE_CAPABILITIES: Final = frozenset(
    {
        *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP"),
        *("SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
    }
)
RESTRICTED_VOLUMES: Final = frozenset(
    {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
)


def profile(spec: dict[str, Any]) -> str:
    """The strictest profile that takes a pod: restricted, baseline, or privileged, which is none."""
    if any(_beyond_baseline(spec)):
        return "privileged"
    return "baseline" if any(_beyond_restricted(spec)) else "restricted"


def _containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def _beyond_baseline(spec: dict[str, Any]) -> Iterator[bool]:
    yield from (bool(spec.get(name)) for name in ("hostNetwork", "hostPID", "hostIPC"))
    yield from ("hostPath" in volume for volume in spec.get("volumes", []))
    for container in _containers(spec):
        context = container.get("securityContext", {})
        yield bool(context.get("privileged"))
        yield not set(context.get("capabilities", {}).get("add", [])) <= BASELINE_CAPABILITIES
        yield any("hostPort" in port for port in container.get("ports", []))
        yield context.get("seccompProfile", {}).get("type") == "Unconfined"


def _beyond_restricted(spec: dict[str, Any]) -> Iterator[bool]:
    yield from (not volume.keys() - {"name"} <= RESTRICTED_VOLUMES for volume in spec.get("volumes", []))
    for container in _containers(spec):
        context = {**spec.get("securityContext", {}), **container.get("securityContext", {})}
        yield context.get("allowPrivilegeEscalation") is not False
        yield context.get("runAsNonRoot") is not True
        yield context.get("runAsUser") == 0
        yield context.get("seccompProfile", {}).get("type") not in {"RuntimeDefault", "Localhost"}
        yield context.get("capabilities", {}).get("drop") != ["ALL"]
        yield not set(context.get("capabilities", {}).get("add", [])) <= {"NET_BIND_SERVICE"}
