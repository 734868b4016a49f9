"""The examples of sidecars, put into the charts and operators of others by the shape that was read in their source."""

from __future__ import annotations

import re
import shutil
from functools import reduce
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml

from kubernetes_objects import ROOT, built, objects, only, pod_of, program, ran, validate
from llm_headroom.bundle import sidecars
from llm_headroom.bundle.settings import BundleSettings
from llm_headroom.config.load import load
from llm_headroom.engines.built_in import BUILT_IN
from pod_security import profile

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLES: Final = ROOT / "deploy/sidecars"
CHARTS: Final = yaml.safe_load((ROOT / "tests/fixtures/upstream_charts.yaml").read_text())
POD_SPECS: Final = {
    # kubernetes-sigs/lws, config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml at 060ab4d
    "lws": "leaderWorkerTemplate.leaderTemplate.spec",
    # sgl-project/ome, pkg/apis/ome/v1beta1: EngineSpec, LeaderSpec and WorkerSpec have a pod's spec inline
    "ome": "engine.leader",
    # kserve/kserve, pkg/apis/serving/v1beta1: PredictorSpec has a pod's spec inline
    "kserve": "predictor",
    # ray-project/kuberay, ray-operator/apis/ray/v1: WorkerGroupSpec.template
    "ray-serve": "rayClusterConfig.workerGroupSpecs.0.template.spec",
}
"""Where in an object's spec a pod's is."""
KINDS: Final = {
    ("apps/v1", "DaemonSet"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "StatefulSet"),
    ("argoproj.io/v1alpha1", "AnalysisTemplate"),
    ("kustomize.config.k8s.io/v1alpha1", "Component"),
    ("kustomize.config.k8s.io/v1beta1", "Kustomization"),
    ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"),
    ("monitoring.coreos.com/v1", "PodMonitor"),
    ("ome.io/v1beta1", "InferenceService"),
    ("ray.io/v1", "RayService"),
    ("serving.kserve.io/v1beta1", "InferenceService"),
}
"""Version and kind of every object that is shipped as a file: those of the sources above, of kustomize and Argo."""


def at(value: Any, path: str) -> Any:  # noqa: ANN401 - JSON
    return reduce(lambda inner, key: inner[int(key) if isinstance(inner, list) else key], path.split("."), value)


def example(name: str) -> Any:  # noqa: ANN401 - YAML
    return yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())


def is_sidecar(container: dict[str, Any]) -> None:
    """Fail unless this is the container of the bundle, with targets that the exporter takes."""
    (targets,) = [one["value"] for one in container["env"] if one["name"] == "LLM_HEADROOM_TARGETS"]
    assert container == sidecars.container(targets)
    assert load(None, targets=[targets], engine_names=BUILT_IN).targets[0].engine == targets.partition("=")[0]


def as_pod(spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, "spec": spec}


def test_every_example_is_read_somewhere_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == POD_SPECS.keys() | CHARTS.keys() - {"production-stack"}


def test_every_object_is_of_a_version_and_a_kind_that_there_are() -> None:
    files = [path for path in (ROOT / "deploy").rglob("*.yaml") if "templates" not in path.parts]
    found = [one for path in files for one in yaml.safe_load_all(path.read_text()) if "kind" in one]
    assert {(one["apiVersion"], one["kind"]) for one in found} == KINDS


@pytest.mark.parametrize("name", sorted(CHARTS.keys() - {"production-stack"}))
def test_a_chart_takes_the_sidecar_from_its_values(name: str, tmp_path: Path) -> None:
    shape = CHARTS[name]
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text(f"apiVersion: v2\nname: {name}\nversion: 1.0.0\n")
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(shape["values"]))
    for pod, parts in shape["pods"].items():
        spec = yaml.safe_dump(as_pod({"containers": parts["containers"]}))
        text = f"{spec}  initContainers: {{{{ toJson .Values.{parts['initContainers']} }}}}\n"
        (tmp_path / f"templates/{pod}.yaml").write_text(text.replace("name: any", f"name: {pod}"))
    done = ran(program("helm"), "template", "rel", tmp_path, "-f", EXAMPLES / f"{name}.yaml")
    assert done.returncode == 0, done.stderr

    rendered = objects(done.stdout)
    assert {one["metadata"]["name"] for one in rendered} == shape["pods"].keys()
    for one in rendered:
        validate(one)
        (sidecar,) = one["spec"]["initContainers"]
        is_sidecar(sidecar)
        if "args" in one["spec"]["containers"][0]:
            port = one["spec"]["containers"][0]["args"][1]
            assert {"name": "LLM_HEADROOM_TARGETS", "value": f"vllm=http://127.0.0.1:{port}"} in sidecar["env"]
    for path in (parts["initContainers"] for parts in shape["pods"].values()):
        assert at(example(name), path), "the example sets what the chart reads, and nothing beside it"


@pytest.mark.parametrize(("name", "path"), POD_SPECS.items())
def test_an_operator_s_object_has_the_sidecar_in_a_pod_s_spec(name: str, path: str) -> None:
    found = example(name)
    spec = at(found["spec"], path)

    (sidecar,) = spec["initContainers"]
    is_sidecar(sidecar)
    known = {key: value for key, value in spec.items() if key in {"initContainers", "containers"}}
    validate(as_pod({"containers": [{"name": "engine", "image": "engine"}], **known}))


def test_a_group_of_nodes_is_a_leader_and_one_worker() -> None:
    assert example("lws")["spec"]["replicas"] == 1
    assert example("lws")["spec"]["leaderWorkerTemplate"]["size"] == 2, "the leader is counted, too"
    assert example("ome")["spec"]["engine"]["worker"]["size"] == 1
    (workers,) = example("ray-serve")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert workers["replicas"] == 1


def test_an_inference_service_of_kserve_is_a_plain_deployment() -> None:
    """Knative takes no sidecar that is an init container."""
    assert example("kserve")["metadata"]["annotations"] == {"serving.kserve.io/deploymentMode": "Standard"}


def test_what_examples_say_is_wrapped_for_people_to_read() -> None:
    said = [line for text in sidecars.files(BundleSettings()).values() for line in text.splitlines() if "# " in line]
    assert 110 < max(map(len, said)) <= 120


def test_no_restart_of_a_sidecar_is_asked_for_and_it_is_never_killed_for_memory() -> None:
    """In a LeaderWorkerSet any container that restarts ends the whole group."""
    sidecar = sidecars.container("vllm=http://127.0.0.1:8000")

    assert not [key for key in sidecar if key.endswith("Probe")]
    assert sidecar["resources"]["limits"] == {"memory": "256Mi"}, "the largest body that is read takes some 205 MB"
    assert "engine" not in str(example("lws")["spec"]["leaderWorkerTemplate"]["workerTemplate"])


def test_the_post_renderer_gives_a_sidecar_to_engines_and_not_to_the_router(tmp_path: Path) -> None:
    folder = tmp_path / "kustomize"
    shutil.copytree(ROOT / "deploy/kustomize", folder)
    labelled = CHARTS["production-stack"]["deployments"]
    rendered = [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "labels": labels},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [{"name": "main", "image": "main"}]},
                },
            },
        }
        for name, labels in labelled.items()
    ]
    (folder / "examples/production-stack/engines/rendered.yaml").write_text(yaml.safe_dump_all(rendered))
    found = {one["metadata"]["name"]: pod_of(one) for one in built(folder / "examples/production-stack")}

    assert "initContainers" not in found["stack-deployment-router"]
    (sidecar,) = found["stack-llama3-deployment-vllm"]["initContainers"]
    assert {"name": "LLM_HEADROOM_TARGETS", "value": "vllm=http://127.0.0.1:8000"} in sidecar["env"]


def test_the_nvidia_runtime_is_asked_for_by_its_component_alone(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "deploy/kustomize", tmp_path / "kustomize")
    overlay = tmp_path / "kustomize/examples/vllm"
    assert "runtimeClassName" not in pod_of(only(built(overlay), "Deployment"))
    file = overlay / "kustomization.yaml"
    file.write_text(file.read_text().replace("../../gpu]", "../../gpu, ../../nvidia-runtime]"))

    assert pod_of(only(built(overlay), "Deployment"))["runtimeClassName"] == "nvidia"


def test_the_table_of_pod_security_standards_is_true() -> None:
    def workload(*settings: str) -> str:
        done = ran(program("helm"), "template", "rel", ROOT / "deploy/helm/llm-headroom", "--set", ",".join(settings))
        assert done.returncode == 0, done.stderr
        (one,) = [each for each in objects(done.stdout) if each["kind"] in {"Deployment", "DaemonSet"}]
        return profile(pod_of(one))

    def sidecar(example: str) -> str:
        (one,) = [each for each in built(ROOT / f"deploy/kustomize/examples/{example}") if "template" in each["spec"]]
        return profile({**pod_of(one), "containers": []})

    text = (ROOT / "docs/deployment.md").read_text()
    rows = dict(re.findall(r"^\| (.+?) \| (restricted|baseline|privileged) \|", text, re.MULTILINE))
    assert rows == {
        "`mode: deployment`": workload("mode=deployment", "webConfigSecret=web"),
        "`mode: daemonset`, `daemonset.hostPID: false`": workload("mode=daemonset", "daemonset.hostPID=false"),
        "`mode: daemonset`": workload("mode=daemonset"),
        "`mode: deployment`, `hostNetwork: true`": workload("mode=deployment", "hostNetwork=true"),
        "sidecar of chart, kustomize and examples": sidecar("sglang"),
        "sidecar with `kustomize/gpu`": sidecar("vllm"),
    }
