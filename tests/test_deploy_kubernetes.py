"""The Helm chart and the kustomize components, rendered by the real programs and held against the real schemas."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from exporter_process import check
from kubernetes_objects import ROOT, objects, program, ran, validate
from llm_headroom import __version__, schema
from llm_headroom.bundle import kubernetes as bundled
from llm_headroom.bundle.settings import BundleSettings
from llm_headroom.config.load import load

if TYPE_CHECKING:
    from pathlib import Path

HELM = ROOT / "deploy/helm"
KUSTOMIZE = ROOT / "deploy/kustomize"
RULES = (
    "groups:\n  - name: any\n    rules:\n      - {alert: Any, expr: up == 0, annotations: {summary: '{{ $value }}'}}\n"
)
EXAMPLES = ("probe", "gpu-nodes", "keda", "hpa")


@pytest.fixture(scope="session")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart as `helm package` packs it, with one rule and one dashboard of its own."""
    copy = tmp_path_factory.mktemp("chart") / "llm-headroom"
    shutil.copytree(HELM / "llm-headroom", copy, ignore=lambda *_: ["files"])
    (copy / "files/dashboards").mkdir(parents=True)
    (copy / "files/dashboards/Fleet_1.json").write_text('{"title": "{{model}}"}')
    (copy / "files/llm-headroom.rules.yml").write_text(RULES)
    return copy


def rendered(chart: Path, *arguments: str, values: object = None) -> list[dict[str, Any]]:
    """What the chart renders, each object of it valid."""
    if values is not None:
        file = chart.parent / "values.json"
        file.write_text(json.dumps(values))
        arguments = (*arguments, "-f", str(file))
    done = ran(program("helm"), "template", "rel", chart, "--namespace", "obs", *arguments)
    assert done.returncode == 0, done.stderr
    found = objects(done.stdout)
    for one in found:
        validate(one)
    return found


def only(found: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (one,) = [each for each in found if each["kind"] == kind]
    return one


def kinds(found: list[dict[str, Any]]) -> list[str]:
    return sorted(one["kind"] for one in found)


def pod(found: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    spec: dict[str, Any] = only(found, kind)["spec"]["template"]["spec"]
    return spec


# Chart ---------------------------------------------------------------------------------------------------------------


def test_by_default_one_exporter_answers_probes_and_may_do_nothing_else(chart: Path) -> None:
    found = rendered(chart)

    assert kinds(found) == ["ConfigMap", "Deployment", "NetworkPolicy", "Service", "ServiceAccount"]
    spec = pod(found, "Deployment")
    container = spec["containers"][0]
    assert only(found, "Deployment")["spec"]["replicas"] == 1
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert "cpu" not in container["resources"]["limits"]
    assert "runtimeClassName" not in spec


def test_the_exporter_takes_the_configuration_that_the_chart_writes(chart: Path, tmp_path: Path) -> None:
    values = {
        "config": {"interval": "10s", "probe": {"allow": ["10.0.0.0/8:1"]}},
        "probe": {"modules": {"v": {"engine": "vllm"}}},
    }
    written = only(rendered(chart, values=values), "ConfigMap")["data"]["config.yml"]
    (tmp_path / "config.yml").write_text(written)

    config = load(tmp_path / "config.yml", engine_names=frozenset({"vllm"}))
    assert config.interval == 10.0
    assert config.probe.allow == ("10.0.0.0/8:1",)
    assert config.probe.modules["v"].engine == "vllm"
    empty = only(rendered(chart, "--set", "mode=daemonset"), "ConfigMap")["data"]["config.yml"]
    (tmp_path / "empty.yml").write_text(empty)
    checked = check("--config", str(tmp_path / "empty.yml"), "--no-discover", "--no-gpu")
    assert (checked.returncode, checked.stderr) == (1, ""), "it is valid, and names nothing"


def test_on_nodes_with_gpus_it_sees_them_all_and_asks_for_none(chart: Path) -> None:
    found = rendered(chart, "-f", str(HELM / "examples/gpu-nodes.yaml"))

    spec = pod(found, "DaemonSet")
    container = spec["containers"][0]
    assert (spec["runtimeClassName"], spec["hostPID"]) == ("nvidia", True)
    assert {one["name"]: one["value"] for one in container["env"]}.items() >= {
        ("NVIDIA_VISIBLE_DEVICES", "all"),
        ("NVIDIA_DRIVER_CAPABILITIES", "utility"),
    }
    assert "nvidia.com/gpu" not in json.dumps(container["resources"]), "none is taken from the scheduler"
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert kinds(found) == [
        "ConfigMap", "DaemonSet", "NetworkPolicy", "PodMonitor", "Service", "ServiceAccount", "ServiceMonitor",
    ]  # fmt: skip


def test_engines_are_probed_through_the_deployment(chart: Path) -> None:
    found = rendered(chart, "-f", str(HELM / "examples/probe.yaml"))

    monitors = {one["metadata"]["name"]: one["spec"] for one in found if one["kind"] == "PodMonitor"}
    assert monitors.keys() == {"rel-llm-headroom-vllm", "rel-llm-headroom-sglang"}
    endpoint = monitors["rel-llm-headroom-vllm"]["podMetricsEndpoints"][0]
    assert (endpoint["path"], endpoint["params"], endpoint["port"]) == ("/probe", {"module": ["vllm"]}, "http")
    assert endpoint["relabelings"] == [
        {"sourceLabels": ["__address__"], "targetLabel": "__param_target"},
        {"sourceLabels": ["__address__"], "targetLabel": "instance"},
        {"targetLabel": "__address__", "replacement": "rel-llm-headroom.obs.svc:9836"},
        {"targetLabel": "job", "replacement": "llm-headroom"},
    ]
    assert monitors["rel-llm-headroom-sglang"]["podMetricsEndpoints"][0]["portNumber"] == 30000
    policy = only(found, "NetworkPolicy")["spec"]
    assert policy["ingress"][0]["from"][0]["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": "monitoring"
    }


def test_rules_and_dashboards_come_out_as_they_are(chart: Path) -> None:
    found = rendered(chart, "-f", str(HELM / "examples/probe.yaml"))

    assert only(found, "PrometheusRule")["spec"] == yaml.safe_load(RULES)
    (dashboard,) = [one for one in found if "grafana_dashboard" in one["metadata"]["labels"]]
    assert dashboard["metadata"]["name"] == "rel-llm-headroom-fleet-1"
    assert dashboard["data"] == {"Fleet_1.json": '{"title": "{{model}}"}'}


@pytest.mark.parametrize("link", ["llm-headroom.rules.yml", "dashboards"])
def test_the_chart_s_rules_and_dashboards_are_those_of_the_tree(chart: Path, link: str) -> None:
    target = {"llm-headroom.rules.yml": ROOT / "alerts/llm-headroom.rules.yml", "dashboards": ROOT / "dashboards"}[link]
    path = HELM / "llm-headroom/files" / link
    assert path.is_symlink()
    assert path.resolve() == target
    copy = chart.parent / f"with-{link}"
    shutil.copytree(chart, copy, ignore=lambda *_: ["files"])
    (copy / "files").mkdir()
    (copy / "files" / link).symlink_to(target)
    if link == "dashboards":
        found = rendered(copy, "--set", "mode=none,dashboards.enabled=true")
        assert {json.loads(text)["title"] for one in found for text in one["data"].values()}
    else:
        found = rendered(copy, "--set", "mode=none,prometheusRule.enabled=true")
        assert only(found, "PrometheusRule")["spec"] == yaml.safe_load(target.read_text())


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_renders_and_the_chart_lints(chart: Path, example: str) -> None:
    assert rendered(chart, "-f", str(HELM / f"examples/{example}.yaml"))
    done = ran(program("helm"), "lint", "--strict", chart, "-f", HELM / f"examples/{example}.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_autoscalers_use_the_load_as_a_share_of_what_an_engine_takes(chart: Path) -> None:
    keda = only(rendered(chart, "-f", str(HELM / "examples/keda.yaml")), "ScaledObject")["spec"]
    hpa = only(rendered(chart, "-f", str(HELM / "examples/hpa.yaml")), "HorizontalPodAutoscaler")["spec"]

    assert 'llm_saturation_ratio{resource="max"' in keda["triggers"][0]["metadata"]["query"]
    metric = hpa["metrics"][0]["external"]
    assert metric["metric"]["selector"]["matchLabels"]["resource"] == "max"
    assert metric["target"] == {"type": "AverageValue", "averageValue": "0.8"}
    assert "llm_saturation_ratio" in {one.name for one in schema.ALL}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mode": "sidecar"}, "mode"),
        ({"sidecar": {"engine": "tgi"}}, "engine"),
        ({"imgae": {}}, "imgae"),
        ({"config": {"targets": [{"url": "http://a", "timeot": "5s"}]}}, "timeot"),
        ({"monitors": {"probes": [{"name": "x"}]}}, "selector"),
        ({"mode": "none", "monitors": {"probes": [{"name": "x", "port": "p", "selector": {"a": "b"}}]}}, "set mode"),
        ({"monitors": {"probes": [{"name": "x", "selector": {"a": "b"}}]}}, "port or portNumber"),
        ({"autoscaling": {"kind": "keda"}}, "autoscaling.target.name"),
        ({"image": {"digest": "latest"}}, "digest"),
    ],
)
def test_values_that_mean_nothing_are_refused_by_name(chart: Path, values: object, said: str) -> None:
    file = chart.parent / "wrong.json"
    file.write_text(json.dumps(values))
    done = ran(program("helm"), "template", "rel", chart, "-f", file)

    assert done.returncode != 0
    assert said in done.stderr


def test_every_value_has_a_schema_and_a_default(chart: Path) -> None:
    def paths(value: object, *, declared: bool) -> set[str]:
        inner = value.get("properties", {}) if declared and isinstance(value, dict) else value
        if not isinstance(inner, dict) or (declared and isinstance(value, dict) and "properties" not in value):
            return set()
        return {
            path
            for key, below in inner.items()
            for path in ({key} | {f"{key}.{more}" for more in paths(below, declared=declared)})
        }

    values = paths(yaml.safe_load((chart / "values.yaml").read_text()), declared=False)
    known = paths(json.loads((chart / "values.schema.json").read_text()), declared=True)
    assert known - {"global"} <= values
    assert {path for path in values if "." not in path} <= known


def test_a_web_configuration_is_mounted_and_a_password_does_not_fail_the_probes(chart: Path) -> None:
    container = pod(rendered(chart, "--set", "webConfigSecret=web,scheme=HTTPS"), "Deployment")["containers"][0]

    assert "tcpSocket" in container["livenessProbe"]
    assert {"name": "web-config", "mountPath": "/etc/llm-headroom-web", "readOnly": True} in container["volumeMounts"]


PARENT = {
    "Chart.yaml": "apiVersion: v2\nname: engine\nversion: 1.0.0\ndependencies: [{name: llm-headroom}]\n",
    "values.yaml": "llm-headroom: {mode: none}\n",
    "templates/pod.yaml": """apiVersion: v1
kind: Pod
metadata: {name: engine}
spec:
  containers:
    - {name: vllm, image: vllm}
  initContainers:
    {{- include "llm-headroom.sidecar" (index .Subcharts "llm-headroom") | nindent 4 }}
""",
}


@pytest.fixture(scope="session")
def parent(chart: Path) -> Path:
    """A chart of an engine that takes the sidecar from ours."""
    folder = chart.parent / "engine"
    for name, text in PARENT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    shutil.copytree(chart, folder / "charts/llm-headroom")
    return folder


def test_another_chart_includes_the_sidecar(parent: Path) -> None:
    spec = only(rendered(parent), "Pod")["spec"]

    (sidecar,) = spec["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    environment = {one["name"]: one["value"] for one in sidecar["env"]}
    assert environment["LLM_HEADROOM_TARGETS"] == "vllm=http://127.0.0.1:8000"
    assert "readinessProbe" not in sidecar, "an exporter that fails must not take its engine out of service"
    assert sidecar["securityContext"]["runAsUser"] == 65532


def test_the_included_sidecar_follows_its_values(parent: Path) -> None:
    values = {
        "llm-headroom": {
            "sidecar": {
                "engine": "sglang", "native": False, "gpu": {"enabled": True}, "extraArgs": ["--interval", "2s"],
                "securityContext": {"runAsUser": 0, "runAsNonRoot": False},
            }
        }
    }  # fmt: skip
    (sidecar,) = only(rendered(parent, values=values), "Pod")["spec"]["initContainers"]

    environment = {one["name"]: one["value"] for one in sidecar["env"]}
    assert environment == {
        "LLM_HEADROOM_TARGETS": "sglang=http://127.0.0.1:30000",
        "LLM_HEADROOM_DISCOVER": "false",
        "LLM_HEADROOM_GPU": "true",
        "NVIDIA_VISIBLE_DEVICES": "all",
        "NVIDIA_DRIVER_CAPABILITIES": "utility",
    }
    assert sidecar["args"] == ["run", "--interval", "2s"]
    assert "restartPolicy" not in sidecar
    assert sidecar["securityContext"]["runAsUser"] == 0
    assert sidecar["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    off = only(rendered(parent, "--set", "llm-headroom.sidecar.enabled=false"), "Pod")["spec"]
    assert not off["initContainers"]


def test_the_values_for_vllm_s_chart_are_the_sidecar(parent: Path) -> None:
    (shown,) = yaml.safe_load((HELM / "examples/vllm-chart-values.yaml").read_text())["extraContainers"]
    values = {"llm-headroom": {"sidecar": {"native": False}}}

    assert only(rendered(parent, values=values), "Pod")["spec"]["initContainers"] == [shown]


# Kustomize -----------------------------------------------------------------------------------------------------------


def built(folder: Path) -> list[dict[str, Any]]:
    done = ran(program("kubectl"), "kustomize", folder)
    assert done.returncode == 0, done.stderr
    found = objects(done.stdout)
    for one in found:
        validate(one)
    return found


@pytest.mark.parametrize(
    ("engine", "kind", "port"),
    [("vllm", "Deployment", 8000), ("sglang", "StatefulSet", 30000), ("ollama", "DaemonSet", 11434)],
)
def test_the_component_puts_a_sidecar_beside_an_engine(engine: str, kind: str, port: int) -> None:
    spec = pod(built(KUSTOMIZE / "examples" / engine), kind)

    assert [one["name"] for one in spec["containers"]] == [engine], "the engine stays as it is, and the pod's first"
    (sidecar,) = spec["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    environment = {one["name"]: one["value"] for one in sidecar["env"]}
    assert environment["LLM_HEADROOM_TARGETS"] == f"{engine}=http://127.0.0.1:{port}"
    assert sidecar["image"] == "llm-headroom:0.1.0"
    assert "limits" in spec["containers"][0]["resources"]
    assert "nvidia.com/gpu" not in json.dumps(sidecar["resources"])


def test_with_gpus_the_sidecar_may_look_into_the_engine_s_processes_and_no_more() -> None:
    spec = pod(built(KUSTOMIZE / "examples/vllm"), "Deployment")

    assert spec["shareProcessNamespace"] is True
    assert spec["runtimeClassName"] == "nvidia"
    assert spec["initContainers"][0]["securityContext"]["capabilities"] == {"add": ["SYS_PTRACE"], "drop": ["ALL"]}
    assert {one["name"]: one["value"] for one in spec["initContainers"][0]["env"]}["LLM_HEADROOM_GPU"] == "true"
    without = pod(built(KUSTOMIZE / "examples/sglang"), "StatefulSet")
    assert "shareProcessNamespace" not in without
    assert without["initContainers"][0]["securityContext"]["runAsNonRoot"] is True


def test_other_workloads_are_left_alone(tmp_path: Path) -> None:
    engine = (KUSTOMIZE / "examples/ollama/engine.yaml").read_text().replace(", llm-headroom/engine: ollama", "")
    (tmp_path / "engine.yaml").write_text(engine)
    shutil.copytree(KUSTOMIZE / "sidecar", tmp_path / "sidecar")
    (tmp_path / "kustomization.yaml").write_text("resources: [engine.yaml]\ncomponents: [sidecar]\n")

    assert "initContainers" not in pod(built(tmp_path), "DaemonSet")


def test_the_sidecars_of_chart_and_component_are_the_same(parent: Path) -> None:
    values = {"llm-headroom": {"sidecar": {"engine": "ollama"}}}
    (of_chart,) = only(rendered(parent, values=values), "Pod")["spec"]["initContainers"]
    (of_component,) = pod(built(KUSTOMIZE / "examples/ollama"), "DaemonSet")["initContainers"]

    def comparable(container: dict[str, Any]) -> dict[str, Any]:
        environment = sorted(container["env"], key=lambda one: one["name"])
        probe = {**container["livenessProbe"], "httpGet": {"scheme": "HTTP", **container["livenessProbe"]["httpGet"]}}
        ports = [{"protocol": "TCP", **one} for one in container["ports"]]
        return {
            "imagePullPolicy": "IfNotPresent",
            **container,
            "env": environment,
            "livenessProbe": probe,
            "ports": ports,
        }

    assert comparable(of_component) == comparable(of_chart)


def test_the_monitor_of_kustomize_is_that_of_the_chart(chart: Path) -> None:
    arguments = ("--set", "mode=none,monitors.sidecars.enabled=true,monitors.sidecars.namespaces={*}")
    of_chart = only(rendered(chart, *arguments), "PodMonitor")
    (own,) = built(KUSTOMIZE / "monitor")

    assert own["spec"] == of_chart["spec"]


def test_manifests_name_the_version_that_is_in_the_tree() -> None:
    chart = yaml.safe_load((HELM / "llm-headroom/Chart.yaml").read_text())
    images = {
        image["newTag"]
        for file in (KUSTOMIZE / "examples").glob("*/kustomization.yaml")
        for image in yaml.safe_load(file.read_text())["images"]
    }

    assert (chart["version"], chart["appVersion"], images) == (__version__, __version__, {__version__})


def test_what_the_bundle_writes_for_kubernetes_is_valid() -> None:
    for text in bundled.files(BundleSettings(exporter_job="llm")).values():
        (one,) = objects(text)
        validate(one)
