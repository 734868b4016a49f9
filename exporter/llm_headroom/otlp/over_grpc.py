"""The SDK's exporter over gRPC. The reason of a failure is only in its log.

Spec: https://opentelemetry.io/docs/specs/otlp/#otlpgrpc-response
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import grpc
from opentelemetry.exporter.otlp.proto.grpc import exporter as sdk
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

from llm_headroom.net.files import content
from llm_headroom.otlp.outcome import Drop, Outcome

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from opentelemetry.sdk.metrics.export import MetricExporter

    from llm_headroom.otlp.options import Options

_DROPS: Final = {
    grpc.StatusCode.DEADLINE_EXCEEDED: Drop.TIMEOUT,
    grpc.StatusCode.CANCELLED: Drop.UNAVAILABLE,
    grpc.StatusCode.ABORTED: Drop.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS: Drop.UNAVAILABLE,
    grpc.StatusCode.OUT_OF_RANGE: Drop.UNAVAILABLE,
    grpc.StatusCode.UNAVAILABLE: Drop.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Drop.UNAVAILABLE,
    grpc.StatusCode.UNAUTHENTICATED: Drop.AUTH,
    grpc.StatusCode.PERMISSION_DENIED: Drop.AUTH,
    grpc.StatusCode.UNIMPLEMENTED: Drop.PROTOCOL,
}
_NOT_CONNECTED: Final = ("failed to connect", "connection refused", "dns resolution failed", "errors resolving")
_NO_TLS: Final = ("handshake", "verification", "certificate", "ssl", "tls")


def opened(
    options: Options, headers: Mapping[str, str]
) -> tuple[MetricExporter, Callable[[Sequence[logging.LogRecord]], Outcome]]:
    """An exporter, and the outcome of an export, from the exporter's lines of log, one for each attempt.

    Raises:
        OSError: a certificate's file cannot be read.
    """
    tls = options.settings.tls
    credentials = None
    if tls.ca_file or tls.cert_file:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=_read(tls.ca_file),
            private_key=_read(tls.key_file or tls.cert_file),
            certificate_chain=_read(tls.cert_file),
        )
    # It leaves repeated messages out, and with them the reasons of the next exports.
    for each in list(sdk.logger.filters):
        sdk.logger.removeFilter(each)
    exporter = OTLPMetricExporter(
        endpoint=options.endpoint,
        credentials=credentials,
        headers=tuple(headers.items()),
        timeout=options.timeout,
        compression=grpc.Compression.Gzip if options.gzip else grpc.Compression.NoCompression,
        channel_options=(("grpc.ssl_target_name_override", tls.server_name),) if tls.server_name else None,
    )
    return exporter, outcome_of


def _read(path: Path | None) -> bytes | None:
    return None if path is None else content(path)


def outcome_of(lines: Sequence[logging.LogRecord]) -> Outcome:
    """Why the newest attempt failed; if the deadline cut it, why an older one did, which had more time."""
    failed = [_failed(line) for line in lines]
    reasons = [each for each in failed if each.cause not in {Drop.TIMEOUT, Drop.OTHER}]
    if failed and failed[-1].cause is Drop.TIMEOUT and reasons:
        return reasons[-1]
    return failed[-1] if failed else Outcome()


def _failed(record: logging.LogRecord) -> Outcome:
    arguments = record.args if isinstance(record.args, tuple) else ()
    code = next((each for each in arguments if isinstance(each, grpc.StatusCode)), None)
    details = " ".join(str(arguments[-1]).split()) if arguments else record.getMessage()
    details = re.sub(r"\S*@", "", details)[:300]  # a URL's user and password
    cause = _DROPS.get(code, Drop.REFUSED if code else Drop.OTHER)
    lower = details.lower()
    if code is grpc.StatusCode.UNAVAILABLE and any(word in lower for word in _NO_TLS):
        cause = Drop.TLS
    elif code is grpc.StatusCode.UNAVAILABLE and any(word in lower for word in _NOT_CONNECTED):
        cause = Drop.UNREACHABLE
    return Outcome(cause, f"{code.name if code else ''} {details}".strip())
