"""The part of the configuration that is about OTLP: the file's key `otlp`, and OpenTelemetry's environment variables.

Spec: https://opentelemetry.io/docs/specs/otel/protocol/exporter/ and
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from llm_headroom.config.endpoint import Tls
from llm_headroom.config.errors import ConfigError, shown
from llm_headroom.config.kinds import Compression, OtlpProtocol, UrlPath, parsed, url
from llm_headroom.config.settings import Header, HeaderValue, OtlpSection, OtlpSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from llm_headroom.config.errors import Problems

PATH: Final = "/v1/metrics"
_PREFIX: Final = "OTEL_EXPORTER_OTLP_"
_AS_THEY_ARE: Final = ("protocol", "headers", "tls", "timeout", "interval", "semantic_conventions")


def endpoint(text: str) -> tuple[str, str]:
    """A collector's URL, and the path of metrics there: `/v1/metrics` below it, unless it ends so already."""
    return url(text.rstrip("/").removesuffix(PATH)), PATH


def _exact_endpoint(text: str) -> tuple[str, str]:
    """A URL that is used as it is."""
    if text.rstrip("/").endswith(PATH):
        return endpoint(text)
    parts = urlsplit(text if "://" in text else f"http://{text}")
    url(text)
    return url(f"{parts.scheme}://{parts.netloc}"), parsed(UrlPath, parts.path or "/")


def settled(
    file: OtlpSection, flag: str | None, environment: Mapping[str, str], problems: Problems
) -> OtlpSettings | None:
    """The flag above the file above OpenTelemetry's variables; None if nobody asks for a push."""
    if not file.enabled or environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None

    def report(key: str, problem: str) -> None:
        if file.place is None:
            problems.add(f"otlp{key}: {problem}")
        else:
            problems.add(f"{file.place}: {file.place.key}{key}: {problem}", file.place.line)

    asked, standard = _endpoint(file, flag, environment, problems), _Standard(environment, problems)
    if asked is None:
        if replace(file, place=None) != OtlpSection():
            report("", "endpoint is missing (or --otlp-endpoint, or OTEL_EXPORTER_OTLP_ENDPOINT)")
        return None
    address, path = asked
    given: dict[str, Any] = standard.values()
    if not address.startswith("https:"):
        given.pop("tls", None)  # certificates for all signals may well be there
    given |= {key: each for key in _AS_THEY_ARE if (each := getattr(file, key)) not in (None, {})}
    if file.compression is not None:
        given["gzip"] = file.compression == "gzip"
    secrets = MappingProxyType({**file.headers_env, **file.headers_file})
    given["resource"] = {**given.get("resource", {}), **file.resource}
    settings = OtlpSettings(url=address, path=path, secrets=secrets, **given)
    for key, problem in _contradictions(settings, file):
        report(key, problem)
    return settings


def _contradictions(settings: OtlpSettings, file: OtlpSection) -> Iterator[tuple[str, str]]:
    if file.tls is not None and not settings.url.startswith("https:"):
        yield ".tls", "is given, but the endpoint is not https"
    if settings.protocol == "grpc" and settings.tls.insecure_skip_verify:
        yield ".tls.insecure_skip_verify", "gRPC cannot do it; give ca_file instead"
    if settings.protocol == "grpc" and urlsplit(settings.url).path:
        yield ".endpoint", f"with gRPC it must not have a path, as {settings.url} has"


def _endpoint(
    file: OtlpSection, flag: str | None, environment: Mapping[str, str], problems: Problems
) -> tuple[str, str] | None:
    if flag:
        return _address(endpoint, flag, "--otlp-endpoint/LLM_HEADROOM_OTLP_ENDPOINT", problems)
    if file.endpoint is not None:
        return file.endpoint, PATH
    exporters = environment.get("OTEL_METRICS_EXPORTER", "").strip()
    if exporters and "otlp" not in [each.strip() for each in exporters.split(",")]:
        return None
    for name, read in ((f"{_PREFIX}METRICS_ENDPOINT", _exact_endpoint), (f"{_PREFIX}ENDPOINT", endpoint)):
        text = environment.get(name, "").strip()
        if text:
            if "://" not in text and environment.get(f"{_PREFIX}INSECURE", "").strip().lower() == "false":
                text = f"https://{text}"
            return _address(read, text, name, problems)
    return None


def _address(
    read: Callable[[str], tuple[str, str]], text: str, place: str, problems: Problems
) -> tuple[str, str] | None:
    found: tuple[str, str] | None = _read(read, text, place, problems)
    return found


def _read(read: Callable[[str], Any], text: str, place: str, problems: Problems) -> Any:  # noqa: ANN401 - what it reads
    try:
        return read(text)
    except ConfigError as error:
        problems.add(f"{place}: {error}")
        return None


def pairs(text: str) -> dict[str, str]:
    """`name=value,name=value` with percent-encoding, as W3C baggage has it."""
    found: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if not equals and not name:
            continue
        if not equals or not name.strip():
            raise ConfigError("expected name=value, separated by commas")  # without the text: it may hold a key
        found[unquote(name.strip())] = unquote(value.strip())
    return found


def _headers(text: str) -> dict[str, str]:
    found = pairs(text)
    for name, value in found.items():
        parsed(Header, name)
        parsed(HeaderValue, value)
    return found


def _milliseconds(lowest: float, highest: float) -> Callable[[str], float]:
    low, high = round(lowest * 1000), round(highest * 1000)

    def read(text: str) -> float:
        if not text.isascii() or not text.isdigit() or not lowest <= int(text[:9]) / 1000 <= highest:
            raise ConfigError(f"expected milliseconds from {low} to {high}, got {shown(text)}")
        return int(text[:9]) / 1000

    return read


def _existing(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise ConfigError(f"{text}: no such file")
    return path


class _Standard:
    """OpenTelemetry's variables; those for metrics alone come before those for all signals."""

    def __init__(self, environment: Mapping[str, str], problems: Problems) -> None:
        self._environment = environment
        self._problems = problems

    def _one(self, name: str, read: Callable[[str], Any]) -> Any:  # noqa: ANN401 - what it reads
        for variable in (f"{_PREFIX}METRICS_{name}", f"{_PREFIX}{name}"):
            text = self._environment.get(variable, "").strip()
            if text:
                return _read(read, text, variable, self._problems)
        return None

    def values(self) -> dict[str, Any]:
        """What they say of settings."""
        environment, problems = self._environment, self._problems
        found = {
            "protocol": self._one("PROTOCOL", partial(parsed, OtlpProtocol)),
            "headers": self._one("HEADERS", _headers),
            "timeout": self._one("TIMEOUT", _milliseconds(0.1, 60.0)),
        }
        compression = self._one("COMPRESSION", partial(parsed, Compression))
        if compression is not None:
            found["gzip"] = compression == "gzip"
        interval = environment.get("OTEL_METRIC_EXPORT_INTERVAL", "").strip()
        if interval:
            found["interval"] = _read(_milliseconds(0.1, 3600.0), interval, "OTEL_METRIC_EXPORT_INTERVAL", problems)
        certificates = {
            "ca_file": self._one("CERTIFICATE", _existing),
            "cert_file": self._one("CLIENT_CERTIFICATE", _existing),
            "key_file": self._one("CLIENT_KEY", _existing),
        }
        if certificates["key_file"] and not certificates["cert_file"]:
            problems.add(f"{_PREFIX}CLIENT_KEY: needs {_PREFIX}CLIENT_CERTIFICATE beside it")
        elif any(certificates.values()):
            found["tls"] = Tls(**certificates)
        attributes = environment.get("OTEL_RESOURCE_ATTRIBUTES", "").strip()
        resource = _read(pairs, attributes, "OTEL_RESOURCE_ATTRIBUTES", problems) or {}
        name = environment.get("OTEL_SERVICE_NAME", "").strip()
        found["resource"] = resource | ({"service.name": name} if name else {})
        return {key: value for key, value in found.items() if value is not None}
