"""The Helm chart and the kustomize components, rendered by the real programs and held against the real schemas."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from exporter_process import check
from kubernetes_objects import ROOT, built, objects, only, pod_of, program, ran, validate
from llm_headroom import __version__, schema
from llm_headroom.bundle import alerts, sidecars
from llm_headroom.bundle import kubernetes as bundled
from llm_headroom.bundle.settings import BundleSettings
from llm_headroom.config.load import load
from llm_headroom.thresholds import DEFAULT

if TYPE_CHECKING:
    from pathlib import Path

HELM = ROOT / "deploy/helm"
KUSTOMIZE = ROOT / "deploy/kustomize"
RULES = """
thresholds: {high: 0.5}
units: {high: ratio}
groups:
  - name: any
    rules:
      - {record: 'a:b:c', expr: up}
      - alert: Any
        expr: up{job="@job@"} < @high@
        labels: {severity: page}
        annotations: {summary: '{{ $value }}', runbook_url: '@runbooks@/Any.md', dashboard_url: '@grafana@/d/x'}
      - {alert: Other, expr: up == 1, labels: {severity: info}, annotations: {summary: other}}
"""
EXAMPLES = ("probe", "gpu-nodes", "keda", "hpa")


@pytest.fixture(scope="session")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart as `helm package` packs it, with one rule and one dashboard of its own."""
    copy = tmp_path_factory.mktemp("chart") / "llm-headroom"
    shutil.copytree(HELM / "llm-headroom", copy, ignore=lambda *_: ["files"])
    (copy / "files/dashboards").mkdir(parents=True)
    (copy / "files/dashboards/Fleet_1.json").write_text('{"title": "{{model}}"}')
    (copy / "files/rules.yml").write_text(RULES)
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


def kinds(found: list[dict[str, Any]]) -> list[str]:
    return sorted(one["kind"] for one in found if "helm.sh/hook" not in one["metadata"].get("annotations", {}))


def pod(found: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return pod_of(only(found, kind))


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
    assert spec["hostPID"] is True
    assert "runtimeClassName" not in spec, "a pod that names a class which is not there is refused"
    assert {one["name"]: one.get("value") for one in container["env"]}.items() >= {
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
    assert policy["ingress"][0]["from"][1]["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": "monitoring"
    }


def test_without_a_name_only_pods_of_the_release_itself_reach_it(chart: Path) -> None:
    policy = only(rendered(chart), "NetworkPolicy")["spec"]

    (rule,) = policy["ingress"]
    assert rule["from"] == [{"podSelector": policy["podSelector"]}]


def test_rules_and_dashboards_come_out_as_they_are(chart: Path) -> None:
    found = rendered(chart, "-f", str(HELM / "examples/probe.yaml"))

    recorded, alert, _ = only(found, "PrometheusRule")["spec"]["groups"][0]["rules"]
    assert recorded == {"record": "a:b:c", "expr": "up"}
    assert alert == {
        "alert": "Any",
        "expr": 'up{job="llm-headroom"} < 0.5',
        "labels": {"severity": "page"},
        "annotations": {"summary": "{{ $value }}"},
    }
    (dashboard,) = [one for one in found if "grafana_dashboard" in one["metadata"]["labels"]]
    assert dashboard["metadata"]["name"] == "rel-llm-headroom-fleet-1"
    assert dashboard["data"] == {"Fleet_1.json": '{"title": "{{model}}"}'}


def test_the_chart_s_rules_and_dashboards_are_those_of_the_tree(chart: Path) -> None:
    copy = chart.parent / "with-files"
    shutil.copytree(chart, copy, ignore=lambda *_: ["files"])
    shutil.copytree(HELM / "llm-headroom/files", copy / "files")
    found = rendered(copy, "--set", "mode=none,dashboards.enabled=true,prometheusRule.enabled=true")

    titles = {json.loads(text)["title"] for one in found for text in one.get("data", {}).values()}
    assert titles == {json.loads(path.read_text())["title"] for path in (ROOT / "dashboards").glob("*.json")}
    shipped = yaml.safe_load((ROOT / "alerts/llm-headroom.rules.yml").read_text())
    assert only(found, "PrometheusRule")["spec"] == shipped

    own = {
        "ttft_slow_share": 0.125,
        "gpu_temperature_high": 77.5,
        "gpu_growth_bytes": 600 * 1024 * 1024,
        "source_stale": 90,
        "kv_exhaustion_soon": 7200,
        "blocked_seconds": 3900,
        "gpu_oom_horizon": 259_200,
    }
    found = rendered(copy, values={"mode": "none", "prometheusRule": {"enabled": True, "thresholds": own}})
    bundled_rules = alerts.files(BundleSettings(thresholds=dataclasses.replace(DEFAULT, **own)))
    assert only(found, "PrometheusRule")["spec"] == yaml.safe_load(bundled_rules["alerts/llm-headroom.rules.yml"])


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
        ({"podLabels": {"app.kubernetes.io/name": "x"}}, "podLabels"),
        ({"commonLabels": {"helm.sh/chart": "x"}}, "commonLabels"),
        ({"fullnameOverride": "1st"}, "fullnameOverride"),
        ({"monitors": {"endpoint": {"relabelings": []}}}, "endpoint"),
        ({"monitors": {"exporter": {"enabled": True}}, "service": {"enabled": False}}, "service.enabled"),
        ({"autoscaling": {"kind": "hpa", "minReplicas": 5}}, "more than maxReplicas"),
        ({"autoscaling": {"kind": "keda", "minReplicas": 0}}, "autoscaling.atZero.query"),
        ({"autoscaling": {"kind": "hpa", "minReplicas": 0, "atZero": {"query": "x"}}}, "kind: keda"),
        ({"autoscaling": {"hpaMetric": {"matchLabels": {"model": "meta-llama/Llama-3"}}}}, "matchLabels"),
        ({"prometheusRule": {"enabled": True, "thresholds": {"hihg": 1}}}, "valid names: high"),
        ({"prometheusRule": {"enabled": True, "disabled": ["Nay"]}}, "there is no alert Nay"),
        (
            {"prometheusRule": {"enabled": True, "thresholds": {"high": 85}}},
            "thresholds.high: expected a ratio from 0 to 1, got 85",
        ),
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
        if declared and isinstance(inner, dict):
            inner = {key: below for key, below in inner.items() if below is not False}  # a key that is refused
        if not isinstance(inner, dict) or (declared and isinstance(value, dict) and "properties" not in value):
            return set()
        return {
            path
            for key, below in inner.items()
            for path in ({key} | {f"{key}.{more}" for more in paths(below, declared=declared)})
        }

    values = paths(yaml.safe_load((chart / "values.yaml").read_text()), declared=False)
    known = paths(json.loads((chart / "values.schema.json").read_text()), declared=True)
    assert known <= values
    assert {path for path in values if "." not in path} <= known


def test_a_web_configuration_is_mounted_and_a_password_does_not_fail_the_probes(chart: Path) -> None:
    container = pod(rendered(chart, "--set", "webConfigSecret=web,scheme=HTTPS"), "Deployment")["containers"][0]

    assert "tcpSocket" in container["livenessProbe"]
    assert {"name": "llm-headroom-web", "mountPath": "/etc/llm-headroom-web", "readOnly": True} in container[
        "volumeMounts"
    ]


def monitors(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The endpoints of all monitors."""
    specs = [one["spec"] for one in found if one["kind"] in {"PodMonitor", "ServiceMonitor"}]
    return [one for spec in specs for one in spec.get("endpoints", spec.get("podMetricsEndpoints"))]


def test_relabelings_of_the_user_come_after_those_of_the_chart(chart: Path) -> None:
    drop = {"action": "drop", "sourceLabels": ["node"], "regex": "x"}
    values = {
        "monitors": {
            "exporter": {"enabled": True},
            "sidecars": {"enabled": True},
            "probes": [{"name": "vllm", "port": "http", "selector": {"app": "vllm"}}],
            "relabelings": [drop],
            "metricRelabelings": [drop],
            "sampleLimit": 9000,
            "podTargetLabels": ["team"],
        }
    }
    found = rendered(chart, values=values)

    assert len(monitors(found)) == 3
    for endpoint in monitors(found):
        *own, last = endpoint["relabelings"]
        assert {"targetLabel": "job", "replacement": "llm-headroom"} in own
        assert last == drop
        assert endpoint["metricRelabelings"] == [drop]
    assert {one["spec"]["sampleLimit"] for one in found if "Monitor" in one["kind"]} == {9000}
    assert only(found, "ServiceMonitor")["spec"]["podTargetLabels"] == ["team"]


def test_no_exporter_is_scraped_by_two_monitors(chart: Path) -> None:
    """Its GPUs would be counted twice, and each of its alerts come twice."""
    for mode in ("daemonset", "deployment"):
        values = {"mode": mode, "monitors": {"exporter": {"enabled": True}, "sidecars": {"enabled": True}}}
        found = rendered(chart, values=values)
        labels = pod_labels(found)
        (excluded,) = only(found, "PodMonitor")["spec"]["selector"]["matchExpressions"]

        assert only(found, "ServiceMonitor")["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert excluded["operator"] == "NotIn"
        assert labels[excluded["key"]] in excluded["values"]


def pod_labels(found: list[dict[str, Any]]) -> dict[str, str]:
    """Labels of the workload's pods."""
    (workload,) = (one for one in found if one["kind"] in {"Deployment", "DaemonSet"})
    return dict(workload["spec"]["template"]["metadata"]["labels"])


def test_an_object_s_own_label_goes_before_a_common_one_of_the_same_name(chart: Path) -> None:
    values = {
        "commonLabels": {"team": "common", "shift": "night"},
        "podLabels": {"team": "pod"},
        "service": {"labels": {"team": "service"}},
        "monitors": {"labels": {"team": "monitor"}, "exporter": {"enabled": True}},
    }
    found = rendered(chart, values=values)

    assert pod_labels(found).items() >= {"team": "pod", "shift": "night"}.items()
    labels = {one["kind"]: one["metadata"]["labels"] for one in found}
    assert {kind: labels[kind]["team"] for kind in ("Service", "ServiceMonitor", "Deployment")} == {
        "Service": "service",
        "ServiceMonitor": "monitor",
        "Deployment": "common",
    }
    assert {each["shift"] for each in labels.values()} == {"night"}


def test_a_variable_of_the_user_replaces_the_chart_s(chart: Path) -> None:
    values = {
        "extraEnv": [{"name": "LLM_HEADROOM_LISTEN", "value": "[::]:9836"}, {"name": "X", "value": "y"}],
        "extraArgs": ["--interval", "2s"],
    }
    container = pod(rendered(chart, values=values), "Deployment")["containers"][0]

    names = [one["name"] for one in container["env"]]
    assert len(names) == len(set(names))
    assert {"name": "LLM_HEADROOM_LISTEN", "value": "[::]:9836"} in container["env"]
    assert container["args"][-2:] == ["--interval", "2s"]


def test_probes_ports_and_registries_are_the_user_s(chart: Path) -> None:
    values = {
        "global": {"imageRegistry": "registry.example", "imagePullSecrets": [{"name": "a"}]},
        "imagePullSecrets": [{"name": "b"}],
        "listenPort": 19836, "hostNetwork": True, "livenessProbe": None, "terminationGracePeriodSeconds": 30,
        "readinessProbe": {"exec": {"command": ["x"]}, "periodSeconds": 3},
        "service": {"labels": {"a": "b"}, "ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4", "IPv6"]},
        "namespaceOverride": "elsewhere", "strategy": {"type": "RollingUpdate"}, "revisionHistoryLimit": 2,
        "extraManifests": ["apiVersion: v1\nkind: ConfigMap\nmetadata: {name: '{{ .Release.Name }}-more'}"],
    }  # fmt: skip
    found = rendered(chart, values=values)
    spec = pod(found, "Deployment")
    container = spec["containers"][0]

    assert container["image"] == f"registry.example/llm-headroom:{__version__}"
    assert [one["name"] for one in spec["imagePullSecrets"]] == ["a", "b"]
    assert (spec["hostNetwork"], spec["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    assert container["ports"] == [{"name": "llm-headroom", "containerPort": 19836}]
    assert {"name": "LLM_HEADROOM_LISTEN", "value": ":19836"} in container["env"]
    assert "livenessProbe" not in container
    assert container["readinessProbe"] == {"exec": {"command": ["x"]}, "periodSeconds": 3, "timeoutSeconds": 5}
    assert only(found, "Service")["spec"]["ipFamilies"] == ["IPv4", "IPv6"]
    assert only(found, "Deployment")["spec"]["strategy"] == {"type": "RollingUpdate"}
    assert "rel-more" in {one["metadata"]["name"] for one in found if one["kind"] == "ConfigMap"}
    assert {one["metadata"].get("namespace") for one in found} == {"elsewhere", None}
    usual = pod(rendered(chart), "Deployment")["containers"][0]
    assert usual["readinessProbe"]["httpGet"]["path"] == "/-/ready"
    assert usual["livenessProbe"]["httpGet"]["path"] == "/-/healthy"


def test_a_change_of_mode_changes_nothing_that_cannot_be_changed(chart: Path) -> None:
    one, other = (only(rendered(chart, "--set", f"mode={mode}"), "Service") for mode in ("deployment", "daemonset"))

    assert one == other, "a Service keeps its cluster IP for life"
    off = rendered(chart, "--set", "service.enabled=false")
    assert kinds(off) == ["ConfigMap", "Deployment", "NetworkPolicy", "ServiceAccount"]


def test_a_release_whose_name_begins_with_a_digit_is_refused_by_name(chart: Path) -> None:
    done = ran(program("helm"), "template", "1st", chart)

    assert done.returncode != 0
    assert "set fullnameOverride" in done.stderr


def test_alerts_thresholds_and_links_are_the_user_s(chart: Path) -> None:
    values = {
        "mode": "none",
        "monitors": {"job": "engines"},
        "prometheusRule": {
            "enabled": True, "disabled": ["Other"], "thresholds": {"high": 0.25}, "alertLabels": {"team": "llm"},
            "runbookUrl": "https://wiki/r", "grafanaUrl": "https://grafana",
        },
    }  # fmt: skip
    (group,) = only(rendered(chart, values=values), "PrometheusRule")["spec"]["groups"]

    assert group["rules"] == [
        {"record": "a:b:c", "expr": "up"},
        {
            "alert": "Any",
            "expr": 'up{job="engines"} < 0.25',
            "labels": {"severity": "page", "team": "llm"},
            "annotations": {
                "summary": "{{ $value }}",
                "runbook_url": "https://wiki/r/Any.md",
                "dashboard_url": "https://grafana/d/x",
            },
        },
    ]


def test_scaling_up_is_bounded_and_the_target_is_how_much_more_an_engine_can_take(chart: Path) -> None:
    scaling = {"kind": "keda", "target": {"name": "vllm"}, "headroom": 2, "scaleUp": {"pods": 1, "seconds": 300}}
    spec = only(rendered(chart, values={"mode": "none", "autoscaling": scaling}), "ScaledObject")["spec"]

    assert spec["triggers"][0]["metadata"]["threshold"] == "0.5"
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleUp"]["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 300}]


def test_a_queue_in_front_wakes_the_first_engine(chart: Path) -> None:
    queue = {"query": "sum(llm_router_requests_waiting)", "threshold": "5"}
    scaling = {"kind": "keda", "target": {"name": "vllm"}, "minReplicas": 0, "atZero": queue}
    spec = only(rendered(chart, values={"mode": "none", "autoscaling": scaling}), "ScaledObject")["spec"]

    load, waiting = (trigger["metadata"] for trigger in spec["triggers"])
    assert spec["minReplicaCount"] == 0
    assert spec["fallback"]["replicas"] == 1
    assert load["ignoreNullValues"] == "true", "without an engine there is no load"
    assert (waiting["query"], waiting["activationThreshold"]) == (queue["query"], "0")


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
  volumes:
    {{- include "llm-headroom.sidecarVolumes" (index .Subcharts "llm-headroom") | nindent 4 }}
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
    environment = {one["name"]: one.get("value") for one in sidecar["env"]}
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

    environment = {one["name"]: one.get("value") for one in sidecar["env"]}
    assert {name: value for name, value in environment.items() if value is not None} == {
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


def test_https_and_another_port_reach_the_sidecar(chart: Path, parent: Path) -> None:
    values = {
        "llm-headroom": {
            "webConfigSecret": "web", "scheme": "HTTPS",
            "sidecar": {"listenPort": 19836, "livenessProbe": {"periodSeconds": 30}},
        }
    }  # fmt: skip
    spec = only(rendered(parent, values=values), "Pod")["spec"]
    (sidecar,) = spec["initContainers"]

    assert {"name": "LLM_HEADROOM_LISTEN", "value": ":19836"} in sidecar["env"]
    assert {"name": "LLM_HEADROOM_WEB_CONFIG", "value": "/etc/llm-headroom-web/web.yml"} in sidecar["env"]
    assert sidecar["ports"][0]["containerPort"] == 19836
    assert sidecar["livenessProbe"] == {"periodSeconds": 30, "tcpSocket": {"port": "llm-headroom"}}
    assert spec["volumes"] == [{"name": "llm-headroom-web", "secret": {"secretName": "web"}}]
    assert sidecar["volumeMounts"][0]["name"] == "llm-headroom-web"
    arguments = ("--set", "mode=none,monitors.sidecars.enabled=true,scheme=HTTPS")
    assert monitors(rendered(chart, *arguments))[0]["scheme"] == "https"


# Kustomize -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "kind", "port"),
    [("vllm", "Deployment", 8000), ("sglang", "StatefulSet", 30000), ("ollama", "DaemonSet", 11434)],
)
def test_the_component_puts_a_sidecar_beside_an_engine(engine: str, kind: str, port: int) -> None:
    spec = pod(built(KUSTOMIZE / "examples" / engine), kind)

    assert [one["name"] for one in spec["containers"]] == [engine], "the engine stays as it is, and the pod's first"
    (sidecar,) = spec["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    environment = {one["name"]: one.get("value") for one in sidecar["env"]}
    assert environment["LLM_HEADROOM_TARGETS"] == f"{engine}=http://127.0.0.1:{port}"
    assert sidecar["image"] == f"llm-headroom:{__version__}"
    assert "limits" in spec["containers"][0]["resources"]
    assert "nvidia.com/gpu" not in json.dumps(sidecar["resources"])


def test_with_gpus_the_sidecar_may_look_into_the_engine_s_processes_and_no_more() -> None:
    spec = pod(built(KUSTOMIZE / "examples/vllm"), "Deployment")

    assert spec["shareProcessNamespace"] is True
    assert spec["initContainers"][0]["securityContext"]["capabilities"] == {"add": ["SYS_PTRACE"], "drop": ["ALL"]}
    assert {one["name"]: one.get("value") for one in spec["initContainers"][0]["env"]}["LLM_HEADROOM_GPU"] == "true"
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

    assert of_chart == sidecars.container("ollama=http://127.0.0.1:11434")
    of_component["env"].sort(key=lambda one: one["name"])
    of_chart["env"].sort(key=lambda one: one["name"])
    assert of_component == of_chart


def test_the_monitor_of_kustomize_is_that_of_the_chart(chart: Path) -> None:
    arguments = ("--set", "mode=none,monitors.sidecars.enabled=true,monitors.sidecars.namespaces={*}")
    of_chart = only(rendered(chart, *arguments), "PodMonitor")
    (own,) = built(KUSTOMIZE / "monitor")

    assert own["spec"] == of_chart["spec"]


def test_manifests_and_pages_name_the_version_that_is_in_the_tree() -> None:
    chart = yaml.safe_load((HELM / "llm-headroom/Chart.yaml").read_text())
    files = [
        *KUSTOMIZE.rglob("kustomization.yaml"),
        *(ROOT / "deploy/sidecars").iterdir(),
        *(ROOT / "docs").glob("*.md"),
    ]
    named = re.compile(
        r"newTag: ([\d.]+)|image: llm-headroom:([\d.]+)|llm[_-]headroom[_-](\d[\d.]*\d)[_-](?:py3|amd64)"
    )
    found = {next(filter(None, each)) for file in files for each in named.findall(file.read_text())}

    assert (chart["version"], chart["appVersion"], found) == (__version__, __version__, {__version__})


def test_what_the_bundle_writes_for_kubernetes_is_valid() -> None:
    for text in bundled.files(BundleSettings(exporter_job="llm")).values():
        (one,) = objects(text)
        validate(one)
