"""What asks for a push over OTLP, and how: OpenTelemetry's variables, the file, the flag."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

from llm_headroom.config.endpoint import Bearer, Secret, Tls
from llm_headroom.config.errors import ConfigError
from llm_headroom.config.load import load
from llm_headroom.config.settings import Config, OtlpSettings
from llm_headroom.otlp.options import options
from llm_headroom.otlp.resource import SCHEMA_URL, resource

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    import os  # noqa: PLC0415 - here alone

    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


def loaded(path: Path | None = None, **flags: Any) -> Config:  # noqa: ANN401 - whatever load takes
    return load(path, engine_names=("vllm",), **flags)


def written(directory: Path, text: str) -> Path:
    path = directory / "headroom.yml"
    path.write_text(text)
    return path


def set_all(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


# Whether -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_SERVICE_NAME": "x", "OTEL_EXPORTER_OTLP_HEADERS": "a=b"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_METRICS_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_METRICS_EXPORTER": "prometheus"},
    ],
)
def test_nothing_is_pushed_unless_someone_asks(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> None:
    set_all(monkeypatch, variables)
    assert loaded().otlp is None


def test_the_file_can_switch_off_what_the_variables_ask_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")
    assert loaded(written(tmp_path, "otlp: {enabled: false}")).otlp is None


def test_the_flag_goes_before_the_file_and_the_file_before_the_variables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://variable:1",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1000",
        "OTEL_METRIC_EXPORT_INTERVAL": "2000",
    }
    set_all(monkeypatch, variables)
    path = written(tmp_path, "otlp: {endpoint: 'http://file:2/v1/metrics', timeout: 3s}")
    for settings, endpoint, timeout in (
        (loaded().otlp, None, 1.0),
        (loaded(path).otlp, "http://file:2/v1/metrics", 3.0),
        (loaded(path, otlp_endpoint="flag:3").otlp, "http://flag:3/v1/metrics", 3.0),
    ):
        assert settings is not None
        found = options(settings, variables)
        assert (found.endpoint, found.timeout, found.interval) == (endpoint, timeout, 2.0)
        assert not found.problems


def test_variables_have_the_specification_s_meaning() -> None:
    found = options(
        OtlpSettings(),
        {
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "https://user:hunter2@c/otlp?key=hunter2",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "HTTP/protobuf",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "60000",
            "OTEL_METRIC_EXPORT_TIMEOUT": "2500",
            "OTEL_METRIC_EXPORT_INTERVAL": "60000",
            "OTEL_EXPORTER_OTLP_HEADERS": "api-key=a%20b%3D, x-tenant = 7,",
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "cumulative",
        },
    )
    assert not found.problems
    assert (found.protocol, found.gzip, found.timeout, found.interval) == ("http/protobuf", False, 2.5, 60.0)
    assert found.endpoint is None
    assert found.shown == "https://c/otlp"


ALL, METRICS = "OTEL_EXPORTER_OTLP_", "OTEL_EXPORTER_OTLP_METRICS_"
C = {f"{ALL}ENDPOINT": "http://c"}
PAIRS = "expected name=value, separated by commas"


@pytest.mark.parametrize(
    ("settings", "variables", "found"),
    [
        ({}, C, {"protocol": "http/protobuf", "gzip": True, "timeout": 10.0, "interval": 15.0, "shown": "http://c"}),
        ({}, {**C, f"{METRICS}ENDPOINT": " "}, {"shown": "http://c"}),
        ({}, {**C, f"{METRICS}ENDPOINT": "https://m"}, {"shown": "https://m", "endpoint": None}),
        ({"endpoint": "f"}, C, {"shown": "f", "endpoint": "http://f/v1/metrics"}),
        ({"endpoint": "https://f"}, C, {"shown": "https://f", "endpoint": "https://f/v1/metrics"}),
        ({"endpoint": "f", "protocol": "grpc"}, C, {"protocol": "grpc", "endpoint": "f"}),
        ({"endpoint": "f"}, {f"{ALL}PROTOCOL": "GRPC"}, {"protocol": "grpc", "endpoint": "f"}),
        ({"protocol": "http/protobuf"}, {**C, f"{ALL}PROTOCOL": "grpc"}, {"protocol": "http/protobuf"}),
        ({}, {f"{ALL}PROTOCOL": "grpc", f"{ALL}ENDPOINT": "c:4317"}, {"shown": "c:4317", "usable": True}),
        ({"endpoint": "f", "compression": "gzip"}, {f"{ALL}COMPRESSION": "none"}, {"gzip": True}),
        ({"endpoint": "f", "compression": "none"}, {f"{ALL}COMPRESSION": "gzip"}, {"gzip": False}),
        ({"endpoint": "f"}, {f"{ALL}COMPRESSION": "gzip", f"{METRICS}COMPRESSION": "none"}, {"gzip": False}),
        ({"endpoint": "f"}, {f"{ALL}TIMEOUT": "3000", f"{METRICS}TIMEOUT": "2000"}, {"timeout": 2.0}),
        ({"endpoint": "f", "timeout": 7.0}, {f"{ALL}TIMEOUT": "2000"}, {"timeout": 7.0}),
        ({"endpoint": "f", "interval": 3.0}, {"OTEL_METRIC_EXPORT_INTERVAL": "2000"}, {"interval": 3.0}),
        ({"endpoint": "f", "timeout": 7.0}, {"OTEL_METRIC_EXPORT_TIMEOUT": "6000"}, {"timeout": 6.0}),
        ({"endpoint": "f"}, {"OTEL_METRIC_EXPORT_TIMEOUT": "20000"}, {"timeout": 10.0}),
        ({"endpoint": "f"}, {f"{ALL}TIMEOUT": "7200000"}, {"timeout": 3600.0}),
        ({"endpoint": "f"}, {f"{ALL}TIMEOUT": "100", "OTEL_METRIC_EXPORT_INTERVAL": "999999999"},
         {"timeout": 0.1, "interval": 999_999.999}),
    ],
)  # fmt: skip
def test_how_metrics_are_pushed(settings: dict[str, Any], variables: dict[str, str], found: dict[str, Any]) -> None:
    made = options(OtlpSettings(**settings), variables)
    assert {name: getattr(made, name) for name in found} == found
    assert not made.problems


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({f"{ALL}ENDPOINT": "c:4318"}, (f"{ALL}ENDPOINT", "off", "expected a URL with http:// or https://")),
        ({**C, f"{METRICS}ENDPOINT": "c:1"}, (f"{METRICS}ENDPOINT", "off", "expected a URL with http:// or https://")),
        ({**C, f"{ALL}PROTOCOL": "http/json"}, (f"{ALL}PROTOCOL", "off", "expected http/protobuf or grpc")),
        ({**C, f"{METRICS}PROTOCOL": "\x01x"}, (f"{METRICS}PROTOCOL", "off", "expected http/protobuf or grpc")),
        ({**C, f"{METRICS}COMPRESSION": "zstd"}, (f"{METRICS}COMPRESSION", "ignored", "expected gzip or none")),
        *(
            ({**C, name: text}, (name, "ignored", "expected milliseconds, 100 or more"))
            for name in (f"{ALL}TIMEOUT", "OTEL_METRIC_EXPORT_TIMEOUT", "OTEL_METRIC_EXPORT_INTERVAL")
            for text in ("99", "1000000000", "1s")
        ),
        ({**C, f"{ALL}HEADERS": "a"}, (f"{ALL}HEADERS", "ignored", PAIRS)),
        ({**C, f"{METRICS}HEADERS": "a=b,=c"}, (f"{METRICS}HEADERS", "ignored", PAIRS)),
        ({**C, "OTEL_RESOURCE_ATTRIBUTES": "a=b, c"}, ("OTEL_RESOURCE_ATTRIBUTES", "ignored", PAIRS)),
        ({**C, f"{METRICS}TEMPORALITY_PREFERENCE": "delta"},
         (f"{METRICS}TEMPORALITY_PREFERENCE", "ignored", "expected cumulative, which is all that is sent")),
        ({**C, f"{METRICS}DEFAULT_HISTOGRAM_AGGREGATION": "x"},
         (f"{METRICS}DEFAULT_HISTOGRAM_AGGREGATION", "ignored",
          "expected explicit_bucket_histogram, since the buckets are the engines' own")),
    ],
)  # fmt: skip
def test_a_variable_that_cannot_be_used(variables: dict[str, str], problem: tuple[str, str, str]) -> None:
    made = options(OtlpSettings(), variables)
    assert [tuple(each) for each in made.problems] == [problem]
    assert made.usable is (problem[1] != "off")


def test_what_is_given_replaces_a_variable_that_is_wrong() -> None:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}
    assert not options(OtlpSettings(), environment).usable
    assert options(OtlpSettings(protocol="http/protobuf"), environment).usable


def test_grpc_by_a_variable_cannot_leave_certificates_unverified() -> None:
    settings = OtlpSettings(endpoint="https://c:4317", tls=Tls(insecure_skip_verify=True))
    (problem,) = options(settings, {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}).problems
    assert (problem.setting, problem.effect) == ("tls.insecure_skip_verify", "off")


def test_secrets_are_named_by_file_or_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOKEN", "Bearer x")
    (tmp_path / "key").touch()
    text = "otlp: {endpoint: c, headers_env: {Authorization: TOKEN}, headers_file: {X-Api-Key: key}}"
    settings = loaded(written(tmp_path, text)).otlp
    assert settings is not None
    assert settings.secrets == {"Authorization": Secret(env="TOKEN"), "X-Api-Key": Secret(file=tmp_path / "key")}
    settings = loaded(written(tmp_path, "otlp: {endpoint: c, auth: {bearer_token_file: key}}")).otlp
    assert settings is not None
    assert settings.credentials == Bearer(Secret(file=tmp_path / "key"))


# What is refused -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("interval: 5s\notlp: {timeout: 5s}", ":2: otlp: missing endpoint"),
        ("otlp: {endpoint: 'ftp://c'}", ":1: otlp.endpoint: expected a URL with http:// or https://, got 'ftp://c'"),
        (
            "otlp: {endpoint: c, protocol: http/json}",
            "otlp.protocol: expected one of http/protobuf, grpc, got 'http/json'",
        ),
        ("otlp: {endpoint: c, headers: {Authorization: 'Bearer x'}}", "headers.Authorization: secrets are not allowed"),
        ("otlp: {endpoint: c, headers: {'a b': x}}", "expected the name of an HTTP header"),
        ('otlp: {endpoint: c, headers: {a: "x\\ny"}}', "otlp.headers.a: expected a header's value"),
        ("otlp: {endpoint: c, headers_env: {a: UNSET}}", "otlp.headers_env.a: this environment variable"),
        ("otlp: {endpoint: c, tls: {insecure_skip_verify: true}}", "otlp.tls: is set, but the endpoint is not https"),
        (
            "otlp: {endpoint: 'https://c', protocol: grpc, tls: {insecure_skip_verify: true}}",
            "otlp.tls.insecure_skip_verify: not supported with gRPC; use ca_file instead",
        ),
        (
            "otlp: {endpoint: c, headers_env: {authorization: PATH}, auth: {bearer_token_env: PATH}}",
            "otlp.auth: the header authorization is there already",
        ),
        ("otlp: {endpoint: 'http://c/x', protocol: grpc}", "otlp.endpoint: with gRPC it must not have a path"),
        ("otlp: {endpoint: c, compresion: gzip}", "otlp.compresion: unknown key; did you mean compression?"),
    ],
)
def test_what_is_wrong_in_the_file_is_told_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        loaded(path)
    assert str(error.value).startswith(f"{path}:")
    assert told in str(error.value)
    assert "Bearer" not in str(error.value)


# Who pushes -----------------------------------------------------------------------------------------------------------
def test_a_pod_reports_its_names_and_what_is_given_wins_over_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(
        monkeypatch,
        {
            "POD_NAME": "vllm-0",
            "K8S_NAMESPACE_NAME": "llm",
            "POD_NAMESPACE": "other",
            "NODE_NAME": "gpu-7",
            "OTEL_RESOURCE_ATTRIBUTES": "team=a%2Cb,service.name=unused,host.name=variable,k8s.pod.name=vllm-1",
            "OTEL_SERVICE_NAME": "gpu-box",
        },
    )
    found = dict(resource({"host.name": "box", "k8s.node.name": "node"}, "9836").attributes)
    assert found.pop("service.version")
    assert {name: value for name, value in found.items() if not name.startswith("telemetry.sdk.")} == {
        "service.name": "gpu-box",
        "service.instance.id": "vllm-0.llm:9836",
        "host.name": "box",
        "team": "a,b",
        "k8s.pod.name": "vllm-1",
        "k8s.namespace.name": "llm",
        "k8s.node.name": "node",
    }


def test_outside_of_kubernetes_there_is_no_pod() -> None:
    found = resource({}, "9836")
    assert not [name for name in found.attributes if name.startswith("k8s.")]
    assert found.attributes["service.name"] == "llm-headroom"
    assert found.attributes["host.name"] == socket.gethostname()
    assert found.attributes["service.instance.id"] == f"{socket.gethostname()}:9836"  # the same over restarts
    assert found.schema_url == SCHEMA_URL
