"""The part of the configuration that is about OTLP: the file's key `otlp`, and whether anyone asks for a push.

What else OpenTelemetry's environment variables say is read where the push begins (`otlp/options.py`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from llm_headroom.config import settings_text
from llm_headroom.config.endpoint import Secret, Tls
from llm_headroom.config.errors import ConfigError
from llm_headroom.config.settings import OtlpSettings
from llm_headroom.config.yaml_nodes import Value, from_number, from_string, mapping_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from llm_headroom.config.errors import Place, Problems

    _Read: TypeAlias = Callable[[Value[Any]], Any]

PATH: Final = "/v1/metrics"
_SECRETS: Final = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key", "api-key"})
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A header's name: RFC 9110, section 5.6.2."""

_AS_THEY_ARE: Final = (
    "protocol",
    "headers",
    "tls",
    "compression",
    "timeout",
    "interval",
    "resource",
    "semantic_conventions",
)


def endpoint(text: str) -> str:
    """A collector's URL without `/v1/metrics`, and without a scheme if it has none."""
    url, _ = settings_text.url(text.rstrip("/").removesuffix(PATH))
    return url if "://" in text else url.removeprefix("http://")


def _header_name(name: str) -> None:
    if not _TOKEN.fullmatch(name):
        raise ConfigError("expected the name of an HTTP header")


def _header_value(text: str) -> str:
    if not text.isascii() or not text.isprintable():
        raise ConfigError("expected a header's value: printable ASCII characters")
    return text


def _header(value: Value[Any]) -> str:
    _header_name(value.key)
    if value.key.lower() in _SECRETS:
        raise ConfigError("a secret must not stand in this file: put it under headers_file or headers_env")
    return _header_value(value.string())


def _attribute(value: Value[Any]) -> str:
    settings_text.word(value.key)
    return settings_text.word(value.string())


def table(tls: _Read, secret_variable: _Read, secret_file: _Read) -> Mapping[str, _Read]:
    """The keys of the section, given how TLS and secrets are read in all sections."""

    def of_header(read: _Read) -> _Read:
        def named(value: Value[Any]) -> Any:  # noqa: ANN401 - whatever is read
            _header_name(value.key)
            return read(value)

        return mapping_of(named)

    return {
        "enabled": Value.boolean,
        "endpoint": from_string(endpoint),
        "protocol": from_string(settings_text.choice("http/protobuf", "grpc")),
        "headers": mapping_of(_header),
        "headers_env": of_header(secret_variable),
        "headers_file": of_header(secret_file),
        "tls": tls,
        "compression": from_string(settings_text.choice("gzip", "none")),
        "timeout": from_number(settings_text.timeout),
        "interval": from_number(settings_text.interval),
        "resource": mapping_of(_attribute),
        "semantic_conventions": Value.boolean,
    }


def settled(
    file: Mapping[str, Any], flag: str | None, environment: Mapping[str, str], problems: Problems
) -> OtlpSettings | None:
    """The flag above the file; None if nobody asks for a push, OpenTelemetry's variables included."""
    if file.get("enabled") is False or environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None

    def report(key: str, problem: str) -> None:
        place: Place | None = file.get("place")
        if place is None:
            problems.add(f"otlp{key}: {problem}")
        else:
            problems.add(f"{place}: {place.key}{key}: {problem}", place.line)

    url = file.get("endpoint")
    if flag:
        try:
            url = endpoint(flag)
        except ConfigError as error:
            problems.add(f"--otlp-endpoint/LLM_HEADROOM_OTLP_ENDPOINT: {error}")
            return None
    if url is None and not _asked(environment):
        if file.keys() - {"place"}:
            report("", "endpoint is missing (or --otlp-endpoint, or OTEL_EXPORTER_OTLP_ENDPOINT)")
        return None
    secrets: dict[str, Secret] = {**file.get("headers_env", {}), **file.get("headers_file", {})}
    given = {key: file[key] for key in _AS_THEY_ARE if key in file}
    settings = OtlpSettings(endpoint=url, secrets=secrets, **given)
    for key, problem in _contradictions(settings):
        report(key, problem)
    return settings


def _asked(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's variables ask for a push."""
    exporters = environment.get("OTEL_METRICS_EXPORTER", "").strip()
    if exporters and "otlp" not in [each.strip() for each in exporters.split(",")]:
        return False
    names = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return any(environment.get(name, "").strip() for name in names)


def _contradictions(settings: OtlpSettings) -> Iterator[tuple[str, str]]:
    scheme, separator, rest = (settings.endpoint or "https://").partition("://")
    grpc = settings.protocol == "grpc"
    if settings.tls != Tls() and scheme != "https" and (separator or not grpc):
        yield ".tls", "is given, but the endpoint is not https"
    if grpc and settings.tls.insecure_skip_verify:
        yield ".tls.insecure_skip_verify", "gRPC cannot do it; give ca_file instead"
    if grpc and "/" in rest:
        yield ".endpoint", f"with gRPC it must not have a path, as {settings.endpoint} has"
