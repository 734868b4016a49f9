"""What asks for a push over OTLP, and how: OpenTelemetry's variables, the file, the flag."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from llm_headroom.config.endpoint import Secret, Tls
from llm_headroom.config.errors import ConfigError
from llm_headroom.config.load import load
from llm_headroom.config.settings import Config, OtlpSettings
from llm_headroom.otlp.resource import attributes

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


@pytest.mark.parametrize(
    ("variables", "url", "path"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "http://c:4318", "/v1/metrics"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/"}, "http://c:4318", "/v1/metrics"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c/otlp"}, "https://c/otlp", "/v1/metrics"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "c:4318"}, "http://c:4318", "/v1/metrics"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "c:4318", "OTEL_EXPORTER_OTLP_INSECURE": "false"},
            "https://c:4318",
            "/v1/metrics",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "c:1", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://m:9/a/v1/metrics"},
            "http://m:9/a",
            "/v1/metrics",
        ),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://m:9/push"}, "http://m:9", "/push"),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://m:9"}, "http://m:9", "/"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_METRICS_EXPORTER": "otlp"},
            "http://c:4318",
            "/v1/metrics",
        ),
    ],
)
def test_an_endpoint_of_the_variables(
    monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str], url: str, path: str
) -> None:
    set_all(monkeypatch, variables)
    assert loaded().otlp == OtlpSettings(url=url, path=path)


def test_the_flag_goes_before_the_file_and_the_file_before_the_variables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_all(
        monkeypatch,
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://variable:1",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "1000",
            "OTEL_METRIC_EXPORT_INTERVAL": "2000",
        },
    )
    path = written(tmp_path, "otlp: {endpoint: 'http://file:2/v1/metrics', timeout: 3s}")
    assert loaded(path).otlp == OtlpSettings(url="http://file:2", timeout=3.0, interval=2.0)
    assert loaded(path, otlp_endpoint="flag:3").otlp == OtlpSettings(url="http://flag:3", timeout=3.0, interval=2.0)


def test_every_standard_variable_has_its_meaning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).touch()
    set_all(
        monkeypatch,
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "https://c:4317",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc",
            "OTEL_EXPORTER_OTLP_HEADERS": "api-key=a%20b%3D, x-tenant = 7",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "2500",
            "OTEL_EXPORTER_OTLP_CERTIFICATE": str(tmp_path / "ca"),
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(tmp_path / "cert"),
            "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(tmp_path / "key"),
            "OTEL_METRIC_EXPORT_INTERVAL": "60000",
            "OTEL_RESOURCE_ATTRIBUTES": "team=a%2Cb,service.name=unused",
            "OTEL_SERVICE_NAME": "gpu-box",
        },
    )
    assert loaded().otlp == OtlpSettings(
        url="https://c:4317",
        protocol="grpc",
        headers={"api-key": "a b=", "x-tenant": "7"},
        tls=Tls(ca_file=tmp_path / "ca", cert_file=tmp_path / "cert", key_file=tmp_path / "key"),
        gzip=False,
        timeout=2.5,
        interval=60.0,
        resource={"team": "a,b", "service.name": "gpu-box"},
    )


def test_secrets_are_named_by_file_or_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOKEN", "Bearer x")
    (tmp_path / "key").touch()
    text = "otlp: {endpoint: c, headers_env: {Authorization: TOKEN}, headers_file: {X-Api-Key: key}}"
    settings = loaded(written(tmp_path, text)).otlp
    assert settings is not None
    assert settings.secrets == {"Authorization": Secret(env="TOKEN"), "X-Api-Key": Secret(file=tmp_path / "key")}


# What is refused -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("interval: 5s\notlp: {timeout: 5s}", ":2: otlp: endpoint is missing"),
        ("otlp: {endpoint: 'ftp://c'}", ":1: otlp.endpoint: expected a URL with http:// or https://, got 'ftp://c'"),
        (
            "otlp: {endpoint: c, protocol: http/json}",
            "otlp.protocol: expected one of http/protobuf, grpc, got 'http/json'",
        ),
        ("otlp: {endpoint: c, headers: {Authorization: 'Bearer x'}}", "otlp.headers.Authorization: a secret must not"),
        ("otlp: {endpoint: c, headers: {'a b': x}}", "expected the name of an HTTP header"),
        ('otlp: {endpoint: c, headers: {a: "x\\ny"}}', "otlp.headers.a: expected a header's value"),
        ("otlp: {endpoint: c, headers_env: {a: UNSET}}", "otlp.headers_env.a: the environment variable that is named"),
        ("otlp: {endpoint: c, tls: {insecure_skip_verify: true}}", "otlp.tls: is given, but the endpoint is not https"),
        (
            "otlp: {endpoint: 'https://c', protocol: grpc, tls: {insecure_skip_verify: true}}",
            "otlp.tls.insecure_skip_verify: gRPC cannot do it; give ca_file instead",
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


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "expected one of http/protobuf, grpc, got 'http/json'"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "expected milliseconds from 100 to 60000, got '10s'"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1", "expected milliseconds from 100 to 3600000, got '1'"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", "expected one of gzip, none, got 'zstd'"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2", "expected name=value, separated by commas"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nonexistent/ca", "/nonexistent/ca: no such file"),
        ("OTEL_RESOURCE_ATTRIBUTES", "=x", "expected name=value, separated by commas"),
    ],
)
def test_what_is_wrong_in_a_variable_is_told_with_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "https://c:4318")
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as error:
        loaded()
    assert str(error.value) == f"{name}: {told}"


def test_a_wrong_variable_is_no_matter_where_nothing_is_pushed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    assert loaded().otlp is None


# Who pushes ----------------------------------------------------------------------------------------------------------
def test_a_pod_tells_its_names_and_what_is_given_wins() -> None:
    environment = {"POD_NAME": "vllm-0", "K8S_NAMESPACE_NAME": "llm", "POD_NAMESPACE": "other", "NODE_NAME": "gpu-7"}
    found = attributes({"host.name": "box", "k8s.node.name": "node"}, environment, "9836")
    assert found.pop("service.version")
    assert found == {
        "service.name": "llm-headroom",
        "service.instance.id": "box:9836",
        "host.name": "box",
        "k8s.pod.name": "vllm-0",
        "k8s.namespace.name": "llm",
        "k8s.node.name": "node",
    }


def test_outside_of_kubernetes_there_is_no_pod() -> None:
    assert not [name for name in attributes({}, {}, "9836") if name.startswith("k8s.")]
