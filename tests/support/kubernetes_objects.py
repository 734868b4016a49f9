"""Rendered manifests, and the schemas they must fit.

Built-in kinds are held against the schemas that kubernetes-validate brings, and no field may be unknown. Kinds of
operators are held against their CustomResourceDefinitions where LLM_HEADROOM_CRDS names a folder with them
(prometheus-operator's and KEDA's); without it, only the keys that we use are known to be right.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of what kubernetes-validate imports
    import jsonschema
    import kubernetes_validate

# For each object it reads 2 MB of definitions, and looks which versions there are: both stay as they are.
kubernetes_validate.utils.schema_contents = cache(kubernetes_validate.utils.schema_contents)
kubernetes_validate.utils.all_versions = cache(kubernetes_validate.utils.all_versions)

ROOT: Final = Path(__file__).parents[2]
VERSIONS: Final = ("1.37.0", "1.29.0")
"""Of Kubernetes: the newest with schemas, and the oldest with sidecars as init containers that stay."""
SPECS: Final = {
    "PodMonitor": {"namespaceSelector", "selector", "podMetricsEndpoints", "podTargetLabels", "sampleLimit"},
    "ServiceMonitor": {"namespaceSelector", "selector", "endpoints", "podTargetLabels", "sampleLimit"},
    "PrometheusRule": {"groups"},
    "ScaledObject": {
        "scaleTargetRef", "minReplicaCount", "maxReplicaCount", "fallback", "advanced", "triggers",
    },
}  # fmt: skip
"""Keys of `spec` that we use, by kind; as in prometheus-operator v0.93.0 and KEDA's main of August 2026."""


def program(name: str) -> str:
    """The path of helm or kubectl; skips the test where there is none."""
    own = ROOT / ".tools/bin" / name
    found = str(own) if own.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is missing (.ci/deploy-tools puts it into .tools/bin)")
    return found


def ran(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """A command that has ended."""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


class _Strict(yaml.CSafeLoader):
    """Refuses a key that stands twice, as API servers with strict validation do; PyYAML takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - PyYAML's own signature
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = {key for key in keys if keys.count(key) > 1}
        assert not twice, f"line {node.start_mark.line + 1}: {twice} twice"
        return super().construct_mapping(node, deep=deep)


def objects(text: str) -> list[dict[str, Any]]:
    """The objects of a stream of manifests."""
    return [one for one in yaml.load_all(text, Loader=_Strict) if one is not None]


def only(found: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The only object of a kind."""
    (one,) = [each for each in found if each["kind"] == kind]
    return one


def pod_of(found: dict[str, Any]) -> dict[str, Any]:
    """The spec of a workload's pods."""
    spec: dict[str, Any] = found["spec"]["template"]["spec"]
    return spec


def built(folder: Path) -> list[dict[str, Any]]:
    """What kustomize builds, each object of it valid."""
    done = ran(program("kubectl"), "kustomize", folder)
    assert done.returncode == 0, done.stderr
    found = objects(done.stdout)
    for one in found:
        validate(one)
    return found


def validate(found: dict[str, Any]) -> None:
    """Fail unless an object is one that the API server would take without a warning."""
    kind, version = found["kind"], found["apiVersion"]
    if kind not in SPECS:
        for kubernetes in VERSIONS:
            kubernetes_validate.validate(found, kubernetes, strict=True)
        return
    unknown = found["spec"].keys() - SPECS[kind]
    assert not unknown, f"{kind}: {unknown}"
    schema = _definitions().get((kind, version))
    if schema is not None:
        found_errors = jsonschema.Draft7Validator(schema).iter_errors(found)
        errors = [f"{'/'.join(map(str, one.absolute_path))}: {one.message}" for one in found_errors]
        assert not errors, (kind, found["metadata"]["name"], errors)


@cache
def _definitions() -> dict[tuple[str, str], dict[str, Any]]:
    folder = os.environ.get("LLM_HEADROOM_CRDS")
    if folder is None:
        return {}
    found = {}
    for file in Path(folder).glob("*.yaml"):
        spec = yaml.safe_load(file.read_text())["spec"]
        for version in spec["versions"]:
            schema = _strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            found[spec["names"]["kind"], f"{spec['group']}/{version['name']}"] = schema
    return found


def _strict(schema: Any) -> Any:  # noqa: ANN401 - JSON
    """A structural schema with what the API server adds to it: unknown fields are errors."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    if strict.get("x-kubernetes-int-or-string"):
        strict.pop("type", None)
        strict["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if strict.get("type") == "object" and "properties" in strict and "additionalProperties" not in strict:
        strict["additionalProperties"] = bool(strict.get("x-kubernetes-preserve-unknown-fields"))
    return strict
