"""The settings of the push, with OpenTelemetry's variables below those of the file and the flag.

Spec: https://opentelemetry.io/docs/specs/otel/protocol/exporter/ and
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/. The SDK's exporters read endpoint,
headers, certificates and `…_INSECURE` themselves. Read here is what they do not read, misread (milliseconds as seconds)
or refuse by an exception.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom.config.endpoint import without_query

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_headroom.config.settings import OtlpSettings

GRPC: Final = "grpc"
_METRICS: Final = "OTEL_EXPORTER_OTLP_METRICS_"
_ALL: Final = "OTEL_EXPORTER_OTLP_"
_PAIRS: Final = r"(?:\s*(?:[^=,\s][^=,]*=[^,]*)?(?:,|$))*"
_MILLISECONDS: Final = ("milliseconds, 100 or more", r"[1-9][0-9]{2,8}")
_EXPECTED: Final[Mapping[tuple[str, ...], tuple[str, str]]] = {
    (f"{_METRICS}PROTOCOL", f"{_ALL}PROTOCOL"): ("http/protobuf or grpc", r"http/protobuf|grpc"),
    (f"{_METRICS}COMPRESSION", f"{_ALL}COMPRESSION"): ("gzip or none", r"gzip|none"),
    (f"{_METRICS}TIMEOUT", f"{_ALL}TIMEOUT"): _MILLISECONDS,
    ("OTEL_METRIC_EXPORT_TIMEOUT",): _MILLISECONDS,
    ("OTEL_METRIC_EXPORT_INTERVAL",): _MILLISECONDS,
    (f"{_METRICS}HEADERS", f"{_ALL}HEADERS"): ("name=value, separated by commas", _PAIRS),
    ("OTEL_RESOURCE_ATTRIBUTES",): ("name=value, separated by commas", _PAIRS),
    (f"{_METRICS}TEMPORALITY_PREFERENCE",): ("cumulative, which is all that is sent", r"cumulative"),
    (f"{_METRICS}DEFAULT_HISTOGRAM_AGGREGATION",): (
        "explicit_bucket_histogram, since the buckets are the engines' own",
        r"explicit_bucket_histogram",
    ),
}
"""Allowed values by the variables of one setting; the first variable that is set counts."""


class Problem(NamedTuple):
    """A setting that is wrong or not supported; `effect`: `off` (nothing is pushed) or `ignored`."""

    setting: str
    effect: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to push. `endpoint` None: as the SDK finds it in its variables; `shown` is for messages. Seconds."""

    settings: OtlpSettings
    protocol: str
    endpoint: str | None
    shown: str
    gzip: bool
    timeout: float
    interval: float
    problems: tuple[Problem, ...]

    @property
    def usable(self) -> bool:
        """Whether anything can be pushed."""
        return all(problem.effect != "off" for problem in self.problems)


def options(settings: OtlpSettings, environment: Mapping[str, str]) -> Options:
    """What settings and variables ask for together; no variable is an error that anything else pays for."""
    found, problems = _variables(environment)
    protocol = settings.protocol or found.get("PROTOCOL", "http/protobuf")
    endpoint, (variable, standard) = settings.endpoint, _first(environment, f"{_METRICS}ENDPOINT", f"{_ALL}ENDPOINT")
    problems = [each for each in problems if not (settings.protocol and each.effect == "off")]
    if protocol == GRPC and settings.tls.insecure_skip_verify:
        problems.append(Problem("tls.insecure_skip_verify", "off", "not supported with gRPC; use ca_file instead"))
    if protocol != GRPC and endpoint is not None:
        endpoint = f"{endpoint if '://' in endpoint else f'http://{endpoint}'}/v1/metrics"
    elif protocol != GRPC and not standard.startswith(("http://", "https://")):
        problems.append(Problem(variable, "off", "expected a URL with http:// or https://"))
    timeout = settings.timeout or int(found.get("TIMEOUT", "10000")) / 1000
    return Options(
        settings=settings,
        protocol=protocol,
        endpoint=endpoint,
        shown=re.sub(r"//[^/@]*@", "//", without_query(settings.endpoint or standard)),
        gzip=(settings.compression or found.get("COMPRESSION")) != "none",
        timeout=min(timeout, int(found.get("EXPORT_TIMEOUT", "3600000")) / 1000),
        interval=settings.interval or int(found.get("EXPORT_INTERVAL", "15000")) / 1000,
        problems=tuple(problems),
    )


def _first(environment: Mapping[str, str], *names: str) -> tuple[str, str]:
    return next(((name, text) for name in names if (text := environment.get(name, "").strip())), ("", ""))


def _variables(environment: Mapping[str, str]) -> tuple[dict[str, str], list[Problem]]:
    """Valid values of variables, by the last words of the variable's name."""
    found, problems = {}, []
    for names, (meaning, pattern) in _EXPECTED.items():
        name, text = _first(environment, *names)
        key = names[-1].removeprefix(_ALL).removeprefix("OTEL_METRIC_")
        if text and re.fullmatch(pattern, text, re.IGNORECASE):
            found[key] = text.lower()
        elif text:
            # Without the text, which may hold a key.
            problems.append(Problem(name, "off" if key == "PROTOCOL" else "ignored", f"expected {meaning}"))
    return found, problems
