"""Whether OTLP push is on, by the flag, the file, or OpenTelemetry's environment variables.

What else those variables say is read where the push begins (`otlp/options.py`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llm_headroom.config.endpoint import Tls
from llm_headroom.config.errors import ConfigError
from llm_headroom.config.kinds import parsed
from llm_headroom.config.settings import Collector, OtlpSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llm_headroom.config.errors import Problems


def settled(
    file: OtlpSettings | None, flag: str | None, environment: Mapping[str, str], problems: Problems
) -> OtlpSettings | None:
    """The flag over the file; None if the push is off, also by OpenTelemetry's variables."""
    settings = file or OtlpSettings()
    if not settings.enabled or environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if flag:
        try:
            settings = replace(settings, endpoint=parsed(Collector, flag))
        except ConfigError as error:
            problems.add(f"--otlp-endpoint/LLM_HEADROOM_OTLP_ENDPOINT: {error}")
            return None
    found = list(_contradictions(settings))
    asked = settings.endpoint is not None or _asked(environment)
    if not asked:
        missing = ("", "missing endpoint (or --otlp-endpoint, or OTEL_EXPORTER_OTLP_ENDPOINT)")
        found = [missing] if settings != OtlpSettings() else []
    for key, problem in found:
        if settings.place is None:
            problems.add(f"otlp{key}: {problem}")
        else:
            problems.add(replace(settings.place, key=f"otlp{key}").line_for(problem), settings.place.line)
    return settings if asked else None


def _asked(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's variables turn the push on."""
    exporters = environment.get("OTEL_METRICS_EXPORTER", "").strip()
    if exporters and "otlp" not in [each.strip() for each in exporters.split(",")]:
        return False
    names = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return any(environment.get(name, "").strip() for name in names)


def _contradictions(settings: OtlpSettings) -> Iterator[tuple[str, str]]:
    scheme, separator, rest = (settings.endpoint or "https://").partition("://")
    grpc = settings.protocol == "grpc"
    if settings.tls != Tls() and scheme != "https" and (separator or not grpc):
        yield ".tls", "is set, but the endpoint is not https"
    for name in settings.secrets:
        if settings.credentials and name.lower() == "authorization":
            yield ".auth", f"the header {name} is there already"
    if grpc and settings.tls.insecure_skip_verify:
        yield ".tls.insecure_skip_verify", "not supported with gRPC; use ca_file instead"
    if grpc and "/" in rest:
        yield ".endpoint", f"with gRPC it must not have a path, as {settings.endpoint} has"
