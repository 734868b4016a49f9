"""The exporter beside an engine: the container, once, and where the charts and operators of others take it."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING, Any, Final

from llm_headroom import __version__
from llm_headroom.bundle.text import as_yaml

if TYPE_CHECKING:
    from llm_headroom.bundle.settings import BundleSettings

PORT: Final = "llm-headroom"
"""The name of the sidecars' container port."""
IMAGE: Final = f"llm-headroom:{__version__}"
_GROUP_RESTARTS: Final = """
    LeaderWorkerSet deletes the whole group when any container of a pod restarts, a sidecar's as well
    (kubernetes-sigs/lws, pkg/utils/pod/pod_utils.go, ContainerRestarted). So no liveness probe, and memory enough.
"""


def container(targets: str, *, image: str = IMAGE) -> dict[str, Any]:
    """The sidecar for such targets, as an entry of a pod's `initContainers`.

    It stays (Kubernetes 1.29 and newer): there before the engine starts and after it ends. No probe: an exporter that
    fails must neither take its engine out of service nor restart, which in a group restarts every pod.
    """
    fields = {
        "POD_NAME": "metadata.name",
        "POD_NAMESPACE": "metadata.namespace",
        "NODE_NAME": "spec.nodeName",
    }
    return {
        "name": "llm-headroom",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "restartPolicy": "Always",
        "args": ["run"],
        "env": [
            *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()),
            *([{"name": "LLM_HEADROOM_TARGETS", "value": targets}] if targets else []),
            {"name": "LLM_HEADROOM_DISCOVER", "value": "false"},
            {"name": "LLM_HEADROOM_GPU", "value": "false"},
        ],
        "ports": [{"name": PORT, "containerPort": 9836, "protocol": "TCP"}],
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsGroup": 65532,
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def files(_settings: BundleSettings) -> dict[str, str]:
    """The texts of the component and of the examples by relative path; they depend on no setting."""
    component = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "any"},
        "spec": {"template": {"spec": {"initContainers": [container("", image="llm-headroom")]}}},
    }
    return {
        "deploy/kustomize/sidecar/container.yaml": as_yaml(component),
        **{f"deploy/sidecars/{name}.yaml": _text(comment, document) for name, (comment, document) in _EXAMPLES.items()},
    }


def _text(comment: str, document: dict[str, Any]) -> str:
    return "".join(f"# {line}\n" for line in wrap(" ".join(comment.split()), 118)) + as_yaml(document)


def _engine(name: str, *arguments: str) -> dict[str, Any]:
    images = {"vllm": "vllm/vllm-openai:v0.12.0", "sglang": "lmsysorg/sglang:v0.5.10"}
    return {"name": name, "image": images[name.partition("-")[0]], "args": list(arguments)}


def _with_sidecar(targets: str, *containers: dict[str, Any]) -> dict[str, Any]:
    return {"initContainers": [container(targets)], "containers": list(containers)}


def _object(api: str, kind: str, spec: dict[str, Any], **metadata: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    return {"apiVersion": api, "kind": kind, "metadata": {"name": "llama-3-70b", **metadata}, "spec": spec}


_EXAMPLES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "vllm-chart": (
        """
        Values for vLLM's own chart (vllm-project/vllm, examples/deployment/chart-helm): helm upgrade --install vllm
        ./chart-helm -f your-values.yaml -f vllm-chart.yaml
        """,
        {"extraInit": {"initContainers": [container("vllm=http://127.0.0.1:8000")]}},
    ),
    "ollama-helm": (
        "Values for the chart ollama (otwld/ollama-helm).",
        {"initContainers": [container("ollama=http://127.0.0.1:11434")]},
    ),
    "llm-d-modelservice": (
        """
        Values for the chart llm-d-modelservice. The routing proxy has port 8000 of a decode pod; vLLM is behind it on
        routing.proxy.targetPort. Prefill pods have no proxy. Multi-node (multinode: true) is a LeaderWorkerSet.
        """
        + _GROUP_RESTARTS,
        {
            "decode": {"initContainers": [container("vllm=http://127.0.0.1:8200")]},
            "prefill": {"initContainers": [container("vllm=http://127.0.0.1:8000")]},
        },
    ),
    "lws": (
        "The leader alone: it has the engine's port." + _GROUP_RESTARTS,
        _object(
            "leaderworkerset.x-k8s.io/v1",
            "LeaderWorkerSet",
            {
                "replicas": 1,
                "leaderWorkerTemplate": {
                    "size": 2,
                    "leaderTemplate": {
                        "spec": _with_sidecar(
                            "vllm=http://127.0.0.1:8080", _engine("vllm-leader", "serve", "--port", "8080")
                        )
                    },
                    "workerTemplate": {"spec": {"containers": [_engine("vllm-worker", "serve")]}},
                },
            },
        ),
    ),
    "ome": (
        """
        On several nodes; on one: the same lists in spec.engine itself. OME makes a LeaderWorkerSet of the two roles.
        """
        + _GROUP_RESTARTS,
        _object(
            "ome.io/v1beta1",
            "InferenceService",
            {
                "model": {"name": "llama-3-70b"},
                "engine": {
                    "leader": {"initContainers": [container("sglang=http://127.0.0.1:30000")]},
                    "worker": {"size": 1},
                },
            },
        ),
    ),
    "kserve": (
        """
        In Standard mode: Knative takes no sidecar that is an init container; use its `containers` and leave out
        restartPolicy. In LLMInferenceService the same lists are in spec.template.
        """,
        _object(
            "serving.kserve.io/v1beta1",
            "InferenceService",
            {
                "predictor": {
                    "model": {"modelFormat": {"name": "huggingface"}, "storageUri": "hf://meta-llama/Llama-3.3-70B"},
                    "initContainers": [container("vllm=http://127.0.0.1:8080")],
                }
            },
            annotations={"serving.kserve.io/deploymentMode": "Standard"},
        ),
    ),
    "ray-serve": (
        """
        Engines under Ray Serve have no port of their own: each node of Ray serves the metrics of what runs on it on its
        metrics port, 8080 in KubeRay, as ray_vllm:… So every node that runs replicas gets a sidecar.
        """,
        _object(
            "ray.io/v1",
            "RayService",
            {
                "serveConfigV2": "applications: []\n",
                "rayClusterConfig": {
                    "headGroupSpec": {
                        "rayStartParams": {},
                        "template": {
                            "spec": {"containers": [{"name": "ray-head", "image": "rayproject/ray-llm:2.52.0"}]}
                        },
                    },
                    "workerGroupSpecs": [
                        {
                            "groupName": "gpu",
                            "replicas": 1,
                            "rayStartParams": {"metrics-export-port": "8080"},
                            "template": {
                                "spec": _with_sidecar(
                                    "vllm=http://127.0.0.1:8080",
                                    {"name": "ray-worker", "image": "rayproject/ray-llm:2.52.0"},
                                )
                            },
                        }
                    ],
                },
            },
        ),
    ),
}
"""Each with what to know: values of charts, and objects of operators. The keys are those of the projects named."""
