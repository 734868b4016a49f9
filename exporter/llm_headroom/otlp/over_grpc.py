"""OTLP over gRPC. `grpcio` blocks, so that it runs in a thread of its own.

Spec: https://opentelemetry.io/docs/specs/otlp/#otlpgrpc-response
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from llm_headroom import __version__
from llm_headroom.otlp.outcome import Drop, Outcome
from llm_headroom.render import otlp
from llm_headroom.render.protobuf import fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from llm_headroom.config.settings import OtlpSettings

METHOD: Final = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
_RETRYABLE: Final = frozenset({"CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"})
_DROPS: Final = {
    "DEADLINE_EXCEEDED": Drop.TIMEOUT,
    "CANCELLED": Drop.UNAVAILABLE,
    "ABORTED": Drop.UNAVAILABLE,
    "DATA_LOSS": Drop.UNAVAILABLE,
    "OUT_OF_RANGE": Drop.UNAVAILABLE,
    "UNAVAILABLE": Drop.UNAVAILABLE,
    "RESOURCE_EXHAUSTED": Drop.UNAVAILABLE,
    "UNAUTHENTICATED": Drop.AUTH,
    "PERMISSION_DENIED": Drop.AUTH,
    "UNIMPLEMENTED": Drop.PROTOCOL,
}
_NOT_CONNECTED: Final = ("failed to connect", "connection refused", "dns resolution failed", "name resolution")
_NO_TLS: Final = ("ssl", "tls", "handshake", "certificate")
_STATUS_DETAILS: Final = 3
_DETAIL: Final = 2


class MissingGrpcError(Exception):
    """`grpcio` is not installed; the message says how to get it."""

    def __init__(self) -> None:
        super().__init__(
            "protocol grpc needs grpcio, which is not installed: pip install 'llm-headroom[otlp-grpc]', "
            "or use protocol: http/protobuf (port 4318)"
        )


class GrpcTransport:
    """Calls a collector's MetricsService.

    Raises:
        MissingGrpcError: the extra is not installed.
    """

    def __init__(self, settings: OtlpSettings) -> None:
        try:
            import grpc  # noqa: PLC0415 - optional, and 10 MB
        except ImportError:
            raise MissingGrpcError from None
        self._grpc: Any = grpc
        self._settings = settings
        self._channel: Any = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="otlp")

    async def send(self, body: bytes, headers: Mapping[str, str], timeout: float) -> Outcome:  # noqa: ASYNC109
        """One attempt."""
        metadata = tuple((name.lower(), value) for name, value in headers.items())
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._call, body, metadata, timeout)

    async def close(self) -> None:
        """Close the channel, which ends a call that is under way."""
        self._drop()

    def _drop(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def _call(self, body: bytes, metadata: tuple[tuple[str, str], ...], timeout: float) -> Outcome:
        grpc = self._grpc
        try:
            if self._channel is None:
                self._channel = self._open()
            export = self._channel.unary_unary(METHOD, request_serializer=None, response_deserializer=None)
            compression = grpc.Compression.Gzip if self._settings.gzip else grpc.Compression.NoCompression
            answer = otlp.answer(export(body, timeout=timeout, metadata=metadata, compression=compression))
        except grpc.RpcError as error:
            # A new channel tries at once, and reads renewed certificates; an old one backs off for up to two minutes.
            self._drop()
            return _failed(error, self._settings.url)
        except OSError as error:
            return Outcome(Drop.TLS, f"cannot read file {error.filename}: {error.strerror}")
        except ValueError as error:  # also how grpc says that the channel was closed meanwhile
            self._drop()
            return Outcome(Drop.PROTOCOL, f"{self._settings.url}: {error}")
        return Outcome(None, answer.message, rejected=answer.rejected)

    def _open(self) -> Any:  # noqa: ANN401 - grpc has no types
        grpc, tls = self._grpc, self._settings.tls
        parts = urlsplit(self._settings.url)
        encrypted = parts.scheme == "https"
        address = parts.netloc if parts.port else f"{parts.netloc}:{443 if encrypted else 80}"
        options = [("grpc.primary_user_agent", f"llm-headroom/{__version__}"), ("grpc.enable_http_proxy", 0)]
        if not encrypted:
            return grpc.insecure_channel(address, options)
        if tls.server_name:
            options.append(("grpc.ssl_target_name_override", tls.server_name))
        credentials = grpc.ssl_channel_credentials(
            root_certificates=_read(tls.ca_file),
            private_key=_read(tls.key_file or tls.cert_file),
            certificate_chain=_read(tls.cert_file),
        )
        return grpc.secure_channel(address, credentials, options)


def _read(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()


def _failed(error: Any, url: str) -> Outcome:  # noqa: ANN401 - grpc has no types
    code, details = error.code().name, " ".join((error.details() or "").split())
    after = retry_delay(error.trailing_metadata() or ())
    cause = _DROPS.get(code, Drop.REFUSED)
    lower = details.lower()
    if code == "UNAVAILABLE" and any(word in lower for word in _NO_TLS):
        cause = Drop.TLS
    elif code == "UNAVAILABLE" and any(word in lower for word in _NOT_CONNECTED):
        cause = Drop.UNREACHABLE
    retry = code in _RETRYABLE or (code == "RESOURCE_EXHAUSTED" and after is not None)
    return Outcome(cause, f"{url}: {code} {details[:300]}".rstrip(), retry=retry, retry_after=after)


def retry_delay(metadata: Iterable[tuple[str, str | bytes]]) -> float | None:
    """Seconds of the RetryInfo in a status' details (google/rpc/error_details.proto), if there is one."""
    for name, value in metadata:
        if name != "grpc-status-details-bin" or not isinstance(value, bytes):
            continue
        try:
            return _delay(value)
        except ValueError:
            return None
    return None


def _delay(status: bytes) -> float | None:
    for field, detail in fields(status):
        if field != _STATUS_DETAILS or not isinstance(detail, bytes):
            continue
        parts = dict(fields(detail))
        kind, content = parts.get(1), parts.get(_DETAIL)
        if isinstance(kind, bytes) and kind.endswith(b"/google.rpc.RetryInfo") and isinstance(content, bytes):
            duration = dict(fields(content)).get(1)
            whole = dict(fields(duration)) if isinstance(duration, bytes) else {}
            seconds, nanoseconds = whole.get(1, 0), whole.get(2, 0)
            if isinstance(seconds, int) and isinstance(nanoseconds, int):
                return seconds + nanoseconds / 1e9
    return None
